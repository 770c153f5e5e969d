"""The normal distribution on an interval, whose mixtures of normals are differences of normal cdfs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

from .weights import NormalWeight

#: log √(2π).
_LOG_ROOT = 0.5 * math.log(2 * math.pi)
#: Ends beyond so many standard deviations are as there; the square is finite, and the density zero.
_FAR = 1e8
#: Newton's steps for a quantile: from the left they do not overshoot.
_STEPS = 12


class TruncatedNormal(NormalWeight):
    """The normal distribution of location c and scale 1 on the interval from ``low`` to ``high``.

    Its use is Φ(high − f) − Φ(low − f) = e^{−f² / 2} (Φ(high) − Φ(low)) E e^{f x} over x without a tilt. Albert and
    Chib (1993), §4. Here e^{A} is the integral of φ(x) e^{c x} over the interval, which at c = 0 is Φ(high) − Φ(low).

    Args:
        low, high: the ends, which may be infinite, low < high.
        tilt: c, of any sign.
    """

    arg_constraints = {name: constraints.real for name in ("low", "high", "tilt")}
    support = constraints.real

    def __init__(
        self,
        low: Tensor | float,
        high: Tensor | float,
        tilt: Tensor | float = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        self.low, self.high, tilt = broadcast_all(low, high, tilt)
        super().__init__(tilt, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> TruncatedNormal:
        low, high, tilt = (t.expand(batch_shape) for t in (self.low, self.high, self.tilt))
        return TruncatedNormal(low, high, tilt)

    def tilted(self, tilt: Tensor) -> TruncatedNormal:
        return TruncatedNormal(self.low.to(tilt), self.high.to(tilt), tilt)

    @property
    def log_normalizer(self) -> Tensor:
        """½ c² + log (Φ(high − c) − Φ(low − c))."""
        tilt = self.tilt.double()
        return (tilt**2 / 2 + _log_mass(*self._ends())).to(self.tilt)

    @property
    def mean(self) -> Tensor:
        """c + (φ(low − c) − φ(high − c)) / (Φ(high − c) − Φ(low − c))."""
        low, high = self._ends()
        first, second = self._ratios(low, high)
        found = self.tilt.double() + first - second
        return found.clamp(self.low.double(), self.high.double()).to(self.tilt)

    @property
    def variance(self) -> Tensor:
        low, high = self._ends()
        first, second = self._ratios(low, high)
        return (1 + low * first - high * second - (first - second) ** 2).clamp(min=0).to(self.tilt)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws are made by the inverse cdf, in the tail by Newton's steps on its logarithm."""
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            low, high = (end.expand(shape) for end in self._ends())
            turned = low > 0
            low, high = torch.where(turned, -high, low), torch.where(turned, -low, high)
            level = torch.rand_like(low)
            parts = torch.special.log_ndtr(low) + (-level).log1p(), torch.special.log_ndtr(high) + level.log()
            found = _quantile(torch.logaddexp(*parts)).clamp(low, high)
            value = self.tilt.double() + torch.where(turned, -found, found)
            return value.clamp(self.low.double(), self.high.double()).to(self.tilt)

    def _ends(self) -> tuple[Tensor, Tensor]:
        """The ends as they are seen from the location, in float64; infinite ones as finite ones without mass beyond."""
        low, high = ((end.double() - self.tilt.double()).clamp(-_FAR, _FAR) for end in (self.low, self.high))
        return low, high

    def _ratios(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The normal density at the ends, by the mass between them."""
        mass = _log_mass(low, high)
        first, second = ((-(end**2) / 2 - _LOG_ROOT - mass).exp() for end in (low, high))
        return first, second


def _log_mass(low: Tensor, high: Tensor) -> Tensor:
    """log (Φ(high) − Φ(low)), by the tail that both are in."""
    turned = low > 0
    low, high = torch.where(turned, -high, low), torch.where(turned, -low, high)
    upper = torch.special.log_ndtr(high)
    return upper + (-torch.expm1(torch.special.log_ndtr(low) - upper)).log()


def _quantile(goal: Tensor) -> Tensor:
    """Where log Φ is so much."""
    near = torch.special.ndtri(goal.exp())
    far = -(-2 * goal).sqrt()
    for _ in range(_STEPS):
        level = torch.special.log_ndtr(far)
        far = far - (level - goal) / (-(far**2) / 2 - _LOG_ROOT - level).exp()
    return torch.where(goal < -20, far, near)


__all__ = ["TruncatedNormal"]
