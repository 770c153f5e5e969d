"""A distribution of a scalar from its log density alone: normalized, summed up and inverted numerically.

    F(z) = ∫ p,  z = F⁻¹(ε),  dz/dθ = -(∂F/∂θ) / p(z) at fixed ε

The derivative is implicit, and needs none of the search for z.

Source: Figurnov, Mohamed and Mnih 2018; Devroye 1986, §II.2 for the inversion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from ..errors import ArgumentError
from ..values import broadcast_shapes
from .inverse_cdf import Argument, InverseCDF, open_uniform
from .quadrature import Panels, integrate, mesh, rule

MOST_STEPS = 200


class NumericInverseCDF(InverseCDF):
    """The distribution with density proportional to ``exp(log_density(z, **parameters))``.

    The numbers are float64 inside, and F is right to 1e-10. Draws, probabilities and moments are differentiable in the
    parameters, and in tensors that the log density closes over. A mode much narrower than its distance from 0, or
    from an end of the support, is not seen beside a wide one: :mod:`.quadrature` says when.

    Args:
        log_density: takes values ``[..., *batch]`` and the parameters ``[*batch]`` by name, and gives the log density
            up to a constant, elementwise, as float64.
        support: ``constraints.real``, or one with a lower or an upper bound: ``positive``, ``interval(0, 1)``.
        parameters: real, differentiable, and broadcast to the batch shape.

    Raises:
        ArgumentError: if the density is NaN, 0 everywhere, or has another shape than the values; if its integral does
            not settle to 1e-10; if the support is another; if a parameter has the name of an attribute.
    """

    arg_constraints = {}  # each instance has its own

    def __init__(
        self,
        log_density: Callable[..., Tensor],
        support: constraints.Constraint = constraints.real,
        *,
        validate_args: bool | None = None,
        **parameters: Argument,
    ) -> None:
        for name in parameters:
            if hasattr(type(self), name):
                raise ArgumentError(f"Expected parameters with names of their own; got {name!r}. Rename it.")
        self.log_density, self._support = log_density, support
        self.arg_constraints = dict.fromkeys(parameters, constraints.real)  # type: ignore[misc]
        bounds = [getattr(support, f"{end}_bound", None) for end in ("lower", "upper")]
        if support.is_discrete or (bounds == [None, None] and support is not constraints.real):
            raise ArgumentError(f"Expected real numbers, a half line or an interval; got {support}. Write positive?")
        lower, upper = (sign * math.inf if b is None else b for sign, b in zip((-1, 1), bounds, strict=True))
        *values, lower, upper = broadcast_all(*parameters.values(), lower, upper)
        if lower.requires_grad or upper.requires_grad:
            raise ArgumentError("Expected a support without gradient; got one with. Detach it, or shift z instead.")
        for name, value in zip(parameters, values, strict=True):
            setattr(self, name, value)
        self._like, self._lower, self._upper = lower, lower.double(), upper.double()
        super(InverseCDF, self).__init__(lower.shape, validate_args=validate_args)
        self._settle()

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return self._support

    def _settle(self) -> None:
        self._versions = self._current_versions()
        self._panels = integrate(self._density, mesh(self._lower, self._upper))

    def _current_versions(self) -> list[int]:
        return [getattr(self, name)._version for name in self.arg_constraints]

    def _settled(self) -> Panels:
        """The panels, found anew if an optimizer has moved a parameter in place."""
        if self._versions != self._current_versions():
            self._settle()
        return self._panels

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        new: Self = self._get_checked_instance(NumericInverseCDF, _instance)
        batch = Size(batch_shape)
        for name in ("log_density", "_support", "arg_constraints"):
            setattr(new, name, getattr(self, name))
        for name in (*self.arg_constraints, "_like", "_lower", "_upper"):
            setattr(new, name, getattr(self, name).expand(batch))
        new._panels, new._versions = self._settled().expand(batch), self._versions
        super(InverseCDF, new).__init__(batch, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _density(self, value: Tensor) -> Tensor:
        """The log density as it was given, of float64 values ``[..., *batch]``."""
        return self.log_density(value, **{name: getattr(self, name).double() for name in self.arg_constraints})

    def log_prob(self, value: Tensor) -> Tensor:
        panels = self._settled()
        log_density = self._density(self._checked(value).double() + torch.zeros_like(self._lower))
        return (log_density - panels.log_masses(self._density).logsumexp(0)).to(self._like.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        flat, shape = self._flat(self._checked(value))
        return self._cumulative(flat)[0].reshape(shape).to(self._like.dtype)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantiles of probabilities ``[..., *batch]``, differentiable in them too."""
        if self._validate_args and not bool(((value >= 0) & (value <= 1)).all()):
            raise ArgumentError(f"Expected probabilities from 0 to 1; got {value}. Write cdf for the other way.")
        probability, shape = self._flat(value)
        root = self._search(probability)
        if torch.is_grad_enabled():
            # A Newton step from the root adds one derivative, and a second step, those up to the third.
            inside, start = (probability > 0) & (probability < 1), root
            root = torch.where(inside, root, self._panels.left[:1])
            excess = (self._cumulative(root)[0] - probability).detach()
            for _ in range(2):
                cumulative, density = self._cumulative(root)
                root = root - (cumulative - probability - excess) / density
            root = torch.where(inside, start + (root - root.detach()), start)
        return root.reshape(shape).to(self._like.dtype)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """``sample_shape + batch_shape``, differentiable in the parameters."""
        return self.icdf(open_uniform(self._extended_shape(Size(sample_shape)), self._lower))

    @property
    def mean(self) -> Tensor:
        """The mean. An error says so where there is none."""
        return self._moment(lambda z: z).to(self._like.dtype)

    @property
    def variance(self) -> Tensor:
        mean = self._moment(lambda z: z)
        center = mean.detach()
        around = self._moment(lambda z: (z - center).square())
        return (around - (mean - center).square()).to(self._like.dtype)  # 0, but for its second derivative

    def _moment(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """E function(z), by an integral of |function| p that has to settle as the normalizer has, ``[*batch]``."""

        def tilted(z: Tensor) -> Tensor:
            return self._density(z) + function(z).detach().abs().log()

        panels = integrate(tilted, mesh(self._lower, self._upper), "moment")
        ratio = panels.log_masses(tilted).logsumexp(0) - self._settled().log_masses(self._density).logsumexp(0)
        return ratio.exp() * panels.expectation(tilted, lambda z: function(z).sign())

    def _flat(self, value: Tensor) -> tuple[Tensor, Size]:
        """Float64 values ``[S, *batch]``, and the shape that they had with the batch's."""
        shape = broadcast_shapes(value.shape, self.batch_shape)
        return value.double().expand(shape).reshape(-1, *self.batch_shape), shape

    def _cumulative(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """F and p at values ``[S, *batch]``."""
        panels = self._settled()
        log_masses = panels.log_masses(self._density)
        log_normalizer = log_masses.logsumexp(0)
        masses = (log_masses - log_normalizer).exp()
        index = _place(panels.right, value)
        below = (masses.cumsum(0) - masses).gather(0, index)
        left, right = panels.left.gather(0, index), panels.right.gather(0, index)
        end = torch.minimum(torch.maximum(value, left), right)
        return below + self._partial(left, end, log_normalizer), (self._density(value) - log_normalizer).exp()

    def _partial(self, left: Tensor, end: Tensor, log_normalizer: Tensor) -> Tensor:
        """The probability from the left end of a panel to a point of it, ``[S, *batch]``."""
        points, weights = (part.reshape(-1, *[1] * left.dim()) for part in rule(left))
        width = torch.where(end > left, end - left, 1.0)
        ends = torch.nextafter(self._lower, self._upper), torch.nextafter(self._upper, self._lower)
        nodes = (left + width * points).clamp(*ends)
        mass = width * ((self._density(nodes) - log_normalizer).exp() * weights).sum(0)
        return torch.where(end > left, mass, 0.0)

    @torch.no_grad()
    def _search(self, probability: Tensor) -> Tensor:
        """The quantiles, by Newton's steps inside a bracket that shrinks, ``[S, *batch]``."""
        panels = self._settled()
        log_normalizer = panels.log_normalizer
        masses = (panels.log_masses(self._density) - log_normalizer).exp()
        cumulative = masses.cumsum(0)
        index = _place(cumulative, probability)
        left, high = panels.left.gather(0, index), panels.right.gather(0, index)
        target = probability - (cumulative - masses).gather(0, index)
        low, value = left, left + target / masses.gather(0, index) * (high - left)
        for _ in range(MOST_STEPS):
            excess = self._partial(left, value, log_normalizer) - target
            low, high = torch.where(excess < 0, value, low), torch.where(excess < 0, high, value)
            done = excess.abs() <= 1e-15 * probability
            newton = value - excess / (self._density(value) - log_normalizer).exp()
            following = torch.where((low < newton) & (newton < high), newton, low + (high - low) / 2)
            value, before = torch.where(done, value, following), value
            if bool(((value - before).abs() <= 4e-16 * value.abs()).all()):
                break
        return torch.where(probability <= 0, self._lower, torch.where(probability >= 1, self._upper, value))


def _place(table: Tensor, value: Tensor) -> Tensor:
    """The first entry of ascending tables ``[P, *batch]`` that is not below values ``[S, *batch]``, or the last one."""
    found = torch.searchsorted(table.movedim(0, -1).contiguous(), value.detach().movedim(0, -1).contiguous())
    return found.movedim(-1, 0).clamp_max(len(table) - 1)
