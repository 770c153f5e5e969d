"""Distributions of a scalar that Pyro and torch lack, each drawn as z = g(ε) with noise ε free of parameters.

Rayleigh, LogUniform (the "reciprocal" distribution), Gompertz and Triangular are drawn by their inverse distribution
function; Erlang is a Gamma. The whole table is in ``docs/reparameterization.md``.

A Rayleigh is a Weibull of shape 2, and LogUniform and Gompertz are transforms of a uniform and of an exponential. They
are written out, because torch's versions take 1 - exp(-x) and log(1 - ε), which lose the digits of small probabilities,
and because they leave out the ends of the support.

To add one with an inverse distribution function: subclass :class:`InverseCDF`, name the parameters in
``arg_constraints``, and write ``log_prob``, ``cdf`` and ``icdf``.

Source: ``docs/sources.md``, [4] (163)-(166) and the three lists after them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NoReturn, Self

import pyro.distributions as dist
import scipy.special
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from ..errors import ArgumentError, MissingFormulaError

Argument = Tensor | float


def open_uniform(shape: Sequence[int], like: Tensor) -> Tensor:
    """Uniform noise in the open interval (0, 1), in the dtype and on the device of ``like``: no logarithm of 0."""
    info = torch.finfo(like.dtype)
    return torch.rand(Size(shape), dtype=like.dtype, device=like.device).clamp(info.tiny, 1 - info.eps)


class InverseCDF(dist.TorchDistribution):
    """A distribution of a scalar that is drawn as icdf(ε), ε ~ U(0, 1).

    Parameters are of batch shape, and differentiable unless a subclass says otherwise. Subclasses give
    ``arg_constraints``, whose keys are the parameters, and ``support``, ``log_prob``, ``cdf`` and ``icdf``.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]]
    has_rsample = True

    def __init__(self, *, validate_args: bool | None = None, **parameters: Argument) -> None:
        for name, value in zip(parameters, broadcast_all(*parameters.values()), strict=True):
            setattr(self, name, value)
        super().__init__(getattr(self, next(iter(parameters))).shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        new: Self = self._get_checked_instance(type(self), _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(Size(batch_shape)))
        super(InverseCDF, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """``sample_shape + batch_shape``, differentiable in the parameters."""
        parameter = getattr(self, next(iter(self.arg_constraints)))
        return self.icdf(open_uniform(self._extended_shape(Size(sample_shape)), parameter))

    def _checked(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return value


class Rayleigh(InverseCDF):
    """The length of a bivariate normal with standard deviation ``scale`` in each coordinate: scale √(-2 log(1 - ε)).

    Args:
        scale: positive, in the unit of the values; the mode.

    Raises:
        ValueError: if ``scale`` is not positive, with validation on.
    """

    arg_constraints = {"scale": constraints.positive}
    support = constraints.nonnegative
    scale: Tensor

    def __init__(self, scale: Argument, *, validate_args: bool | None = None) -> None:
        super().__init__(scale=scale, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        ratio = self._checked(value) / self.scale
        return ratio.log() - self.scale.log() - ratio.square() / 2

    def cdf(self, value: Tensor) -> Tensor:
        return -torch.expm1(-(self._checked(value) / self.scale).square() / 2)

    def icdf(self, value: Tensor) -> Tensor:
        return self.scale * (-2 * torch.log1p(-value)).sqrt()

    @property
    def mean(self) -> Tensor:
        return self.scale * math.sqrt(math.pi / 2)

    @property
    def variance(self) -> Tensor:
        return self.scale.square() * (2 - math.pi / 2)


class LogUniform(InverseCDF):
    """The reciprocal distribution, density 1 / (z log(high / low)): low (high / low)^ε, uniform in log z.

    Args:
        low, high: the ends, 0 < low < high.

    Raises:
        ValueError: if the ends are not so, with validation on.
    """

    arg_constraints = {"low": constraints.positive, "high": constraints.positive}
    low: Tensor
    high: Tensor

    def __init__(self, low: Argument, high: Argument, *, validate_args: bool | None = None) -> None:
        super().__init__(low=low, high=high, validate_args=validate_args)
        if self._validate_args and not bool((self.low < self.high).all()):
            raise ArgumentError(f"Expected low < high; got low={self.low} and high={self.high}. Exchange them?")

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    @property
    def _log_ratio(self) -> Tensor:
        return (self.high / self.low).log()

    def log_prob(self, value: Tensor) -> Tensor:
        return -self._checked(value).log() - self._log_ratio.log()

    def cdf(self, value: Tensor) -> Tensor:
        return (self._checked(value) / self.low).log() / self._log_ratio

    def icdf(self, value: Tensor) -> Tensor:
        return self.low * (value * self._log_ratio).exp()

    @property
    def mean(self) -> Tensor:
        return (self.high - self.low) / self._log_ratio

    @property
    def variance(self) -> Tensor:
        return (self.high.square() - self.low.square()) / (2 * self._log_ratio) - self.mean.square()


class Gompertz(InverseCDF):
    """A lifetime whose hazard grows exponentially: scale log(1 - log(1 - ε) / concentration).

    Its hazard at z is concentration / scale · exp(z / scale). Mean and variance need the exponential integral, which
    torch lacks: they raise NotImplementedError.

    Args:
        concentration: positive, without unit.
        scale: positive, in the unit of the values.

    Raises:
        ValueError: if a parameter is not positive, with validation on.
    """

    arg_constraints = {"concentration": constraints.positive, "scale": constraints.positive}
    support = constraints.nonnegative
    concentration: Tensor
    scale: Tensor

    def __init__(self, concentration: Argument, scale: Argument = 1.0, *, validate_args: bool | None = None) -> None:
        super().__init__(concentration=concentration, scale=scale, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        ratio = self._checked(value) / self.scale
        return self.concentration.log() - self.scale.log() + ratio - self.concentration * torch.expm1(ratio)

    def cdf(self, value: Tensor) -> Tensor:
        return -torch.expm1(-self.concentration * torch.expm1(self._checked(value) / self.scale))

    def icdf(self, value: Tensor) -> Tensor:
        return self.scale * torch.log1p(-torch.log1p(-value) / self.concentration)

    @property
    def mean(self) -> NoReturn:
        raise MissingFormulaError(
            "Expected a moment in closed form; got Gompertz, whose moments need the exponential integral, which torch "
            "lacks. Write d.sample((100_000,)).mean(0) or .var(0), or take the median, d.icdf(torch.tensor(0.5))."
        )

    variance = mean


class Triangular(InverseCDF):
    """A density that rises in a straight line from ``low`` to ``peak`` and falls to ``high``.

    Args:
        low, peak, high: low <= peak <= high and low < high, in the unit of the values.

    Raises:
        ValueError: if they are not so, with validation on.
    """

    arg_constraints = {"low": constraints.real, "peak": constraints.real, "high": constraints.real}
    low: Tensor
    peak: Tensor
    high: Tensor

    def __init__(self, low: Argument, peak: Argument, high: Argument, *, validate_args: bool | None = None) -> None:
        super().__init__(low=low, peak=peak, high=high, validate_args=validate_args)
        ordered = (self.low <= self.peak) & (self.peak <= self.high) & (self.low < self.high)
        if self._validate_args and not bool(ordered.all()):
            raise ArgumentError(
                f"Expected low <= peak <= high and low < high; got low={self.low}, peak={self.peak} and "
                f"high={self.high}. Sort them?"
            )

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    def _side(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether a value lies left of the peak, its distance from the end of its side, and that side's length."""
        # A peak at ``high`` has no right side, and belongs to the left one.
        left = (value < self.peak) | (self.peak == self.high)
        distance = torch.where(left, value - self.low, self.high - value)
        return left, distance, torch.where(left, self.peak - self.low, self.high - self.peak)

    def log_prob(self, value: Tensor) -> Tensor:
        _, distance, side = self._side(self._checked(value))
        return math.log(2) + (distance / side).log() - (self.high - self.low).log()

    def cdf(self, value: Tensor) -> Tensor:
        left, distance, side = self._side(self._checked(value))
        area = distance.square() / ((self.high - self.low) * side)
        return torch.where(left, area, 1 - area)

    def icdf(self, value: Tensor) -> Tensor:
        width, rise = self.high - self.low, self.peak - self.low
        left = value * width < rise
        square = torch.where(left, value * rise, (1 - value) * (self.high - self.peak)) * width
        root = torch.where(square > 0, square, 1.0).sqrt() * (square > 0)  # √0 has no derivative
        return torch.where(left, self.low + root, self.high - root)

    @property
    def mean(self) -> Tensor:
        return (self.low + self.peak + self.high) / 3

    @property
    def variance(self) -> Tensor:
        rise, fall = self.peak - self.low, self.high - self.peak
        return (rise.square() + fall.square() + rise * fall) / 18


class Erlang(dist.Gamma):
    """The sum of ``concentration`` exponentials, a Gamma of integer shape: -(Σ_i log ε_i) / rate, ε_i ~ U(0, 1).

    The notes list it among the tractable inverse distribution functions. It has none in elementary functions: ``icdf``
    is scipy's.

    Args:
        concentration: the number of exponentials, at least 1; the same in all of the batch, and not differentiable.
        rate: positive, of batch shape, in inverse units of the values.

    Raises:
        ValueError: if ``concentration`` is not a positive integer, or ``rate`` is not positive with validation on.
    """

    def __init__(self, concentration: int, rate: Argument, *, validate_args: bool | None = None) -> None:
        if isinstance(concentration, bool) or not isinstance(concentration, int) or concentration < 1:
            raise ArgumentError(
                f"Expected a positive integer concentration; got {concentration!r}. Use Gamma for others."
            )
        self.count = concentration
        rate = torch.as_tensor(rate)
        super().__init__(torch.full_like(rate, concentration).detach(), rate, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Erlang:
        return Erlang(self.count, self.rate.expand(Size(batch_shape)), validate_args=self._validate_args)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile; differentiable in the rate and in ``value``."""
        root = torch.as_tensor(scipy.special.gammaincinv(self.count, value.detach().cpu().numpy())).to(value)
        # A Newton step from the root has the derivative of the inverse function; its value is left out.
        log_density = (self.count - 1) * root.log() - root - math.lgamma(self.count)
        step = (value - value.detach()) * (-log_density).exp()
        return torch.where((value > 0) & (value < 1), root + step, root) / self.rate
