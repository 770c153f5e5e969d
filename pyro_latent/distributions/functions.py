r"""Functions of a random variable, with their moments: powers of a Gamma variable, and any function of a table.

For x ~ Gamma(a, b) and a power p, E x^p = b^{-p} Γ(a + p) / Γ(a) where a + p > 0, and infinite elsewhere. The variance
is (E x^p)² (exp(d) − 1), where d = log Γ(a + 2p) − 2 log Γ(a + p) + log Γ(a) is a second difference, which cancels for
a large a: there it is a sum of derivatives of log Γ.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.transforms import PowerTransform

from .gamma_ratios import log_rising
from .tabulated import Tabulated

#: From here on, in units of the power, a second difference of log Γ is a sum of so many derivatives.
_FAR, _DERIVATIVES = 20.0, 6


class PowerOfGamma(dist.TransformedDistribution):
    """The distribution of x^p for a Gamma variable x, such as the scale whose precision is x, with p = −1/2.

    Its ``mean`` and ``variance`` are infinite where the integrals are.

    Args:
        base: the Gamma distribution.
        transform: the power.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, base: dist.Gamma, transform: PowerTransform, validate_args: bool | None = None) -> None:
        super().__init__(base, [transform], validate_args=validate_args)
        self._transform = transform

    def expand(self, batch_shape: Any, _instance: Any = None) -> PowerOfGamma:
        return PowerOfGamma(self.base_dist.expand(torch.Size(batch_shape)), self._transform, validate_args=False)

    @property
    def mean(self) -> Tensor:
        concentration, rate, power = self._parts()
        log = log_rising(concentration, power) - power * rate.log()
        return torch.where(concentration + power > 0, log.exp(), torch.inf).to(self.base_dist.rate)

    @property
    def variance(self) -> Tensor:
        concentration, _, power = self._parts()
        spread = torch.expm1(_second_difference(concentration, power))
        found = self.mean.double().square() * spread
        return torch.where(concentration + 2 * power > 0, found, torch.inf).to(self.base_dist.rate)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Concentration, rate and power, float64."""
        concentration, rate = self.base_dist.concentration.double(), self.base_dist.rate.double()
        return concentration, rate, self._transform.exponent.to(rate)


def _second_difference(concentration: Tensor, power: Tensor) -> Tensor:
    """log Γ(a + 2p) − 2 log Γ(a + p) + log Γ(a), also of a large a."""
    center = concentration + power
    near = torch.lgamma(center + power) - 2 * torch.lgamma(center) + torch.lgamma(concentration)
    far = torch.zeros_like(near)
    for k in range(1, _DERIVATIVES + 1):
        slope = torch.special.polygamma(2 * k - 1, center.clamp(min=1e-300))
        far = far + 2 * power ** (2 * k) / math.factorial(2 * k) * slope
    return torch.where(center > _FAR * power.abs().clamp(min=1e-300), far, near)


class FunctionOfTabulated(dist.TransformedDistribution):
    """The distribution of f(x) for a scalar x that has a table; its moments are integrals over the table's nodes.

    Args:
        base: the distribution of x.
        transform: f.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, base: Tabulated, transform: Any, validate_args: bool | None = None) -> None:
        super().__init__(base, [transform], validate_args=validate_args)
        self._transform = transform

    def expand(self, batch_shape: Any, _instance: Any = None) -> FunctionOfTabulated:
        return FunctionOfTabulated(self.base_dist.expand(torch.Size(batch_shape)), self._transform, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self._expectation(self._values)

    @property
    def variance(self) -> Tensor:
        values = self._values
        center = self.base_dist.expectation(values).unsqueeze(-1)
        return self._expectation((values - center).square())

    @property
    def _values(self) -> Tensor:
        """f at the nodes, float64."""
        found: Tensor = self._transform(self.base_dist.transform(self.base_dist.places))
        return found

    def _expectation(self, values: Tensor) -> Tensor:
        found: Tensor = self.base_dist.expectation(values).to(self.base_dist.left.dtype)
        return found


def function_of(base: Any, transform: Any) -> Any:
    """The distribution of f(x), with its moments where x is a point, a Gamma variable to a power, or has a table.

    Args:
        base: the distribution of x, bare.
        transform: f, a transform of scalars.
    """
    if isinstance(base, dist.Delta):
        return dist.Delta(transform(base.v), event_dim=base.event_dim)
    if isinstance(base, dist.Gamma) and isinstance(transform, PowerTransform):
        return PowerOfGamma(base, transform)
    if isinstance(base, Tabulated):
        return FunctionOfTabulated(base, transform)
    return dist.TransformedDistribution(base, [transform])


__all__ = ["FunctionOfTabulated", "PowerOfGamma", "function_of"]
