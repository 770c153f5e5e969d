"""Reparameterised distributions that Pyro and torch lack, each drawn as z = g(ε) with noise ε free of parameters.

Rayleigh, LogUniform (the "reciprocal" distribution), Gompertz and Triangular by their inverse distribution function,
Erlang as a sum of exponentials, and Elliptical from a direction and a radius. The whole table is in
``docs/reparameterization.md``.

To add one with an inverse distribution function: subclass :class:`InverseCDF`, name the parameters in
``arg_constraints``, and write ``log_prob``, ``cdf`` and ``icdf``.

Source: ``docs/sources.md``, [4] (163)-(166) and the three lists after them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

__all__ = ["Elliptical", "Erlang", "Gompertz", "InverseCDF", "LogUniform", "Rayleigh", "Triangular", "open_uniform"]

Parameter = Tensor | float

_NO_MOMENTS = (
    "Expected a moment in closed form; got Gompertz, whose moments need the exponential integral, which torch lacks. "
    "Write d.sample((100_000,)).{}(0), or take the median, d.icdf(torch.tensor(0.5))."
)


def open_uniform(shape: Sequence[int], like: Tensor) -> Tensor:
    """Uniform noise in the open interval (0, 1), in the dtype and on the device of ``like``: no logarithm of 0."""
    info = torch.finfo(like.dtype)
    return torch.rand(Size(shape), dtype=like.dtype, device=like.device).clamp(info.tiny, 1 - info.eps)


class InverseCDF(dist.TorchDistribution):
    """A distribution of a scalar that is drawn as icdf(ε), ε ~ U(0, 1).

    Parameters are of batch shape, and differentiable unless a subclass says otherwise. Subclasses give
    ``arg_constraints``, whose keys are the parameters, and ``support``, ``log_prob``, ``cdf`` and ``icdf``.
    """

    has_rsample = True

    def __init__(self, *, validate_args: bool | None = None, **parameters: Parameter) -> None:
        for name, value in zip(parameters, broadcast_all(*parameters.values()), strict=True):
            setattr(self, name, value)
        super().__init__(getattr(self, next(iter(parameters))).shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
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

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"scale": constraints.positive}
    support = constraints.nonnegative
    scale: Tensor

    def __init__(self, scale: Parameter, *, validate_args: bool | None = None) -> None:
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

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "low": constraints.positive,
        "high": constraints.positive,
    }
    low: Tensor
    high: Tensor

    def __init__(self, low: Parameter, high: Parameter, *, validate_args: bool | None = None) -> None:
        super().__init__(low=low, high=high, validate_args=validate_args)
        if self._validate_args and not bool((self.low < self.high).all()):
            raise ValueError(f"Expected low < high; got low={self.low} and high={self.high}. Exchange them?")

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

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "concentration": constraints.positive,
        "scale": constraints.positive,
    }
    support = constraints.nonnegative
    concentration: Tensor
    scale: Tensor

    def __init__(self, concentration: Parameter, scale: Parameter = 1.0, *, validate_args: bool | None = None) -> None:
        super().__init__(concentration=concentration, scale=scale, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        ratio = self._checked(value) / self.scale
        return self.concentration.log() - self.scale.log() + ratio - self.concentration * torch.expm1(ratio)

    def cdf(self, value: Tensor) -> Tensor:
        return -torch.expm1(-self.concentration * torch.expm1(self._checked(value) / self.scale))

    def icdf(self, value: Tensor) -> Tensor:
        return self.scale * torch.log1p(-torch.log1p(-value) / self.concentration)

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError(_NO_MOMENTS.format("mean"))

    @property
    def variance(self) -> Tensor:
        raise NotImplementedError(_NO_MOMENTS.format("var"))


class Triangular(InverseCDF):
    """A density that rises in a straight line from ``low`` to ``peak`` and falls to ``high``.

    Args:
        low, peak, high: low <= peak <= high and low < high, in the unit of the values.

    Raises:
        ValueError: if they are not so, with validation on.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "low": constraints.real,
        "peak": constraints.real,
        "high": constraints.real,
    }
    low: Tensor
    peak: Tensor
    high: Tensor

    def __init__(self, low: Parameter, peak: Parameter, high: Parameter, *, validate_args: bool | None = None) -> None:
        super().__init__(low=low, peak=peak, high=high, validate_args=validate_args)
        ordered = (self.low <= self.peak) & (self.peak <= self.high) & (self.low < self.high)
        if self._validate_args and not bool(ordered.all()):
            raise ValueError(
                f"Expected low <= peak <= high and low < high; got low={self.low}, peak={self.peak} and "
                f"high={self.high}. Sort them?"
            )

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    @property
    def _width(self) -> Tensor:
        return self.high - self.low

    def _side(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether a value is left of the peak; its distance from the end of its side; how long that side is."""
        left = value < self.peak
        distance = torch.where(left, value - self.low, self.high - value)
        return left, distance, torch.where(left, self.peak - self.low, self.high - self.peak)

    def log_prob(self, value: Tensor) -> Tensor:
        _, distance, side = self._side(self._checked(value))
        # Only a peak at the end ``high`` has a side of no length, and there the density is the peak's.
        height = torch.where(side > 0, distance, 1.0) / torch.where(side > 0, side, 1.0)
        return math.log(2) + height.log() - self._width.log()

    def cdf(self, value: Tensor) -> Tensor:
        left, distance, side = self._side(self._checked(value))
        area = distance.square() / (self._width * torch.where(side > 0, side, 1.0))
        return torch.where(left, area, 1 - area)

    def icdf(self, value: Tensor) -> Tensor:
        left = value * self._width < self.peak - self.low
        share, side = (
            torch.where(left, value, 1 - value),
            torch.where(left, self.peak - self.low, self.high - self.peak),
        )
        square = share * self._width * side
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
    bisects, and ``rsample`` adds up the inverse distribution functions of its exponentials.

    Args:
        concentration: the number of exponentials, at least 1; the same in all of the batch, and not differentiable.
        rate: positive, of batch shape, in inverse units of the values.

    Raises:
        ValueError: if ``concentration`` is not a positive integer, or ``rate`` is not positive with validation on.
    """

    def __init__(self, concentration: int, rate: Parameter, *, validate_args: bool | None = None) -> None:
        if isinstance(concentration, bool) or not isinstance(concentration, int) or concentration < 1:
            raise ValueError(f"Expected a positive integer concentration; got {concentration!r}. Use Gamma for others.")
        self.count = concentration
        rate = torch.as_tensor(rate)
        super().__init__(torch.full_like(rate, concentration).detach(), rate, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Erlang:
        new: Erlang = super().expand(Size(batch_shape), self._get_checked_instance(Erlang, _instance))
        new.count = self.count
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """``sample_shape + batch_shape``, differentiable in the rate."""
        shape = self._extended_shape(Size(sample_shape))
        return -open_uniform((self.count, *shape), self.rate).log().sum(0) / self.rate

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile, by bisection to rounding; differentiable in the rate and in ``value``."""
        count = self.concentration
        with torch.no_grad():
            root = _bisect_gamma(count, value)
        # A Newton step from the root has the derivative of the inverse function; its value is left out.
        log_density = (count - 1) * root.log() - root - torch.lgamma(count)
        step = (value - value.detach()) * (-log_density).exp()
        inside = torch.where(value < 1, root + step, math.inf)
        return torch.where(value > 0, inside, 0.0) / self.rate


def _bisect_gamma(concentration: Tensor, probability: Tensor) -> Tensor:
    """The quantile of Gamma(concentration, 1) in (0, 1); 60 halvings of the range of log z reach float64's rounding."""
    concentration, probability = torch.broadcast_tensors(concentration, probability)
    low = torch.full_like(probability, math.log(torch.finfo(probability.dtype).tiny))
    high = (concentration + 40 * concentration.sqrt() + 800).log()
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.special.gammainc(concentration, middle.exp()) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2).exp()


class Elliptical(dist.TorchDistribution):
    """loc + scale_tril · R u: a radius R of any law, and a direction u that is uniform on the sphere.

    The contours of its density are ellipsoids. With R² ~ χ²(D) it is the multivariate normal, with R² / D ~ F(D, ν) the
    multivariate Student t of ν degrees of freedom.

    Args:
        loc: the centre, ``batch + (D,)``.
        scale_tril: lower triangular with a positive diagonal, ``batch + (D, D)``.
        radius: the distribution of R, with positive support and an ``rsample``; of batch shape ``batch``, or one that
            broadcasts to it.

    Raises:
        ValueError: if the shapes do not fit, or ``radius`` is not reparameterised.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale_tril: Tensor, radius: Any, *, validate_args: bool | None = None) -> None:
        if loc.dim() < 1 or scale_tril.shape[-2:] != (loc.shape[-1], loc.shape[-1]):
            raise ValueError(
                f"Expected loc [..., D] and scale_tril [..., D, D]; got {list(loc.shape)} and "
                f"{list(scale_tril.shape)}. Give scale_tril the size of loc in both last dimensions."
            )
        if radius.event_shape or not radius.has_rsample:
            raise ValueError(
                f"Expected radius to be a reparameterised distribution of scalars; got {radius}. "
                "Use one with has_rsample and an empty event shape."
            )
        batch = torch.broadcast_shapes(loc.shape[:-1], scale_tril.shape[:-2], radius.batch_shape)
        self.loc = loc.expand(batch + loc.shape[-1:])
        self.scale_tril = scale_tril.expand(batch + scale_tril.shape[-2:])
        self.radius = radius.expand(batch)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Elliptical:
        new: Elliptical = self._get_checked_instance(Elliptical, _instance)
        batch = Size(batch_shape)
        new.loc = self.loc.expand(batch + self.event_shape)
        new.scale_tril = self.scale_tril.expand(batch + 2 * self.event_shape)
        new.radius = self.radius.expand(batch)
        super(Elliptical, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """``sample_shape + batch + (D,)``; differentiable in loc, scale_tril and the radius's parameters."""
        shape = self._extended_shape(Size(sample_shape))
        normal = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        direction = normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
        offset = self.radius.rsample(Size(sample_shape)).unsqueeze(-1) * direction
        return self.loc + (self.scale_tril @ offset.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The density of R at the distance, over the area of the sphere of that radius and the volume of scale_tril.

        At the centre it is 0 / 0: there, and nearer than the fourth root of the smallest float (4e-77 in float64, 3e-10
        in float32), it is that at this distance, and has no derivative.
        """
        if self._validate_args:
            self._validate_sample(value)
        dim = self.event_shape[0]
        offset = torch.linalg.solve_triangular(self.scale_tril, (value - self.loc).unsqueeze(-1), upper=False)
        radius = torch.linalg.vector_norm(offset.squeeze(-1), dim=-1)
        radius = radius.clamp(min=torch.finfo(radius.dtype).tiny ** 0.25)
        log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2) + (dim - 1) * radius.log()
        log_volume = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.radius.log_prob(radius) - log_area - log_volume

    @property
    def mean(self) -> Tensor:
        """The centre; where R has no mean, the median."""
        return self.loc

    @property
    def covariance_matrix(self) -> Tensor:
        """E R² / D · scale_tril scale_trilᵀ, ``batch + (D, D)``; the radius must know its mean and variance."""
        second_moment = self.radius.variance + self.radius.mean.square()
        return (second_moment / self.event_shape[0])[..., None, None] * (self.scale_tril @ self.scale_tril.mT)

    @property
    def variance(self) -> Tensor:
        return self.covariance_matrix.diagonal(dim1=-2, dim2=-1)
