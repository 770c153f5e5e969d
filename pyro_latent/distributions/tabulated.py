"""A distribution of a scalar by a table of its log density."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ..values import broadcast_shapes
from .inverse_cdf import open_uniform
from .panels import line_of, log_weights_of, nodes_of, rule_of_panels, to_coefficients
from .quadrature import NUM_NODES

_MOST_STEPS = 100
#: By how much less than its maximum a log density is where it has fallen, and not just ends.
_FALLEN = 20.0


@lru_cache
def _barycentric(is_grid: bool) -> np.ndarray:
    """The weights of the polynomial through a panel's nodes, or through as many of a grid."""
    points = np.arange(NUM_NODES) * 2.0 / NUM_NODES if is_grid else np.polynomial.legendre.leggauss(NUM_NODES)[0]
    differences = points[:, None] - points + np.eye(NUM_NODES)
    found = 1 / differences.prod(1)
    return found / np.abs(found).max()


@lru_cache
def _powers() -> np.ndarray:
    """The matrix that takes Legendre coefficients to those of powers, a row for each degree."""
    rows = [np.polynomial.legendre.leg2poly(row) for row in np.eye(NUM_NODES)]
    return np.stack([np.pad(row, (0, NUM_NODES - len(row))) for row in rows])


class Tabulated(TorchDistribution):
    """A distribution of a scalar by a table of its log density on the line that its support is mapped onto.

    Args:
        left, right: the ends of the panels, ascending, ``batch + [P]``.
        log_density: the normalized log density on the line at the nodes of the panels, ``batch + [P * n]``; of one
            panel with more nodes than others have, they are of equal steps.
        support: the support, whose ``biject_to`` is the map.

    Draws are by the inverse cdf, which is right to about 1e-10. ``mean`` and ``variance`` are NaN where the tails are
    too heavy for the table to tell them, or for them to exist.
    """

    arg_constraints = {
        "left": constraints.real_vector,
        "right": constraints.real_vector,
        "log_density": constraints.real_vector,
    }
    has_rsample = False

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        log_density: Tensor,
        support: constraints.Constraint = constraints.real,
        validate_args: bool | None = None,
    ) -> None:
        self.left, self.right, self.log_density = left, right, log_density
        self._support = support
        self.transform = line_of(support)[0]
        self._count = log_density.shape[-1] // max(1, left.shape[-1])
        super().__init__(left.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return self._support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Tabulated:
        batch = torch.Size(batch_shape)
        left, right, log_density = (t.expand(*batch, t.shape[-1]) for t in (self.left, self.right, self.log_density))
        return Tabulated(left, right, log_density, self._support, validate_args=False)

    @cached_property
    def places(self) -> Tensor:
        """The nodes on the line, float64 ``batch + [P * n]``."""
        return nodes_of(self.left, self.right, self._count).flatten(-2)

    @cached_property
    def _log_weights(self) -> Tensor:
        return log_weights_of(self.left, self.right, self._count).flatten(-2)

    @cached_property
    def _in_panels(self) -> Tabulated:
        """The same distribution with panels of Gauss and Legendre's nodes, each as wide as two steps of a grid."""
        if self._count == NUM_NODES:
            return self
        edges = torch.linspace(0, 1, self._count // 2 + 1, dtype=torch.float64, device=self.left.device)
        ends = self.left.double() + (self.right.double() - self.left.double()) * edges
        left, right = ends[..., :-1], ends[..., 1:]
        values = self.log_density_at(nodes_of(left, right).flatten(-2).movedim(-1, 0)).movedim(0, -1)
        return Tabulated(left, right, values, self._support, validate_args=False)

    @cached_property
    def log_masses(self) -> Tensor:
        """The log probability of each node as the integrals weigh it, float64 ``batch + [P * n]``."""
        return (self.log_density.double() + self._log_weights).log_softmax(-1)

    @cached_property
    def falls(self) -> Tensor:
        """Whether the density has fallen where the table ends, left and right, ``[2, *batch]``: where it has not, it is
        cut, and beyond it there is nothing.
        """
        return self.log_density[..., [0, -1]].movedim(-1, 0) < self.log_density.amax(-1) - _FALLEN

    def expectation(self, values: Tensor) -> Tensor:
        """E f from values of f at the nodes, ``[..., *batch, P * n]``; NaN where the integral does not settle."""
        parts = torch.where(self.log_masses > -80, self.log_masses.exp() * values, 0.0)
        total, magnitude = parts.sum(-1), parts.abs().sum(-1)
        panels = torch.stack([parts[..., :NUM_NODES].abs().sum(-1), parts[..., -NUM_NODES:].abs().sum(-1)])
        edges = torch.stack([parts[..., 0].abs(), parts[..., -1].abs()])
        is_cut = ~self.falls.reshape(2, *[1] * (total.ndim - len(self.batch_shape)), *self.batch_shape)
        settled = (edges <= 1e-9 * magnitude) | (panels <= 1e-9 * magnitude) | is_cut
        return torch.where(settled.all(0), total, torch.nan)

    @property
    def mean(self) -> Tensor:
        return self.expectation(self.transform(self.places)).to(self.left.dtype)

    @property
    def variance(self) -> Tensor:
        values = self.transform(self.places)
        mean = self.expectation(values)
        around = self.expectation((values - mean.unsqueeze(-1)).square())
        return around.to(self.left.dtype)

    def entropy(self) -> Tensor:
        places = self.places
        jacobian = self.transform.log_abs_det_jacobian(places, self.transform(places))
        log_masses = self.log_masses
        own = log_masses - self._log_weights - jacobian
        return -torch.where(log_masses > -80, log_masses.exp() * own, 0.0).sum(-1).to(self.left.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value = value.double()
        place = self.transform.inv(value)
        found = self.log_density_at(place) - self.transform.log_abs_det_jacobian(place, value)
        return found.to(self.left.dtype)

    def log_density_at(self, place: Tensor) -> Tensor:
        """The log density on the line at places ``[..., *batch]``; beyond the panels, on a straight line."""
        shape = broadcast_shapes(place.shape, self.batch_shape)
        flat = place.expand(shape).reshape(-1, *self.batch_shape)
        is_grid = self._count != NUM_NODES
        share, values = self._read_grid(flat) if is_grid else self._read_panels(flat)
        nodes = (torch.arange(NUM_NODES).to(share) + 0.5) / NUM_NODES if is_grid else rule_of_panels(share)[0]
        inside = share.clamp(0, 1).unsqueeze(-1)
        gap = inside - nodes
        weights = torch.as_tensor(_barycentric(is_grid), dtype=torch.float64, device=share.device)
        weights = weights / torch.where(gap == 0, 1.0, gap)
        weights = torch.where((gap == 0).any(-1, keepdim=True), (gap == 0).double(), weights)
        found = (weights * values).sum(-1) / weights.sum(-1)
        # A straight line through the last two nodes, where the density is below e^-37 of its maximum.
        first = (values[..., 1] - values[..., 0]) / (nodes[1] - nodes[0])
        last = (values[..., -1] - values[..., -2]) / (nodes[-1] - nodes[-2])
        found = found + torch.where(share < 0, share * first.clamp(min=0), 0.0)
        found = found + torch.where(share > 1, (share - 1) * last.clamp(max=0), 0.0)
        return found.reshape(shape)

    def log_ratio(self, before: Tabulated, after: Tabulated) -> Tensor:
        """log q_after − log q_before at the nodes ``[*batch, n]``, less its mean and times the root of their masses:
        inner products of such are covariances of log ratios.
        """
        nodes, masses = self.places.movedim(-1, 0), self.log_masses.exp()
        found = (after.log_density_at(nodes) - before.log_density_at(nodes)).movedim(0, -1)
        found = torch.where(masses > 0, found, 0.0)
        centered: Tensor = (found - (masses * found).sum(-1, keepdim=True)) * masses.sqrt()
        return centered

    def _read_panels(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Where places ``[K, *batch]`` are on their panels, from 0 to 1, and the log density at the nodes of these."""
        index = self._panel(self.right.double(), places)
        left, right = (self._picked(end.double(), index) for end in (self.left, self.right))
        share = (places - left) / torch.where(right > left, right - left, 1.0)
        return share, self._picked(self.log_density.double().unflatten(-1, (-1, NUM_NODES)), index)

    def _read_grid(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The same of a grid, whose panels overlap: as many nodes as one has, around each place."""
        steps = (places - self.left[..., 0]) / (self.right.double() - self.left.double())[..., 0] * self._count
        first = (steps.clamp(0, self._count).long() - NUM_NODES // 2).clamp(0, self._count - NUM_NODES)
        windows = self.log_density.double().unfold(-1, NUM_NODES, 1)
        return (steps - first) / NUM_NODES, self._picked(windows, first)

    def cdf(self, value: Tensor) -> Tensor:
        shape = broadcast_shapes(value.shape, self.batch_shape)
        place = self.transform.inv(value.double()).expand(shape).reshape(-1, *self.batch_shape)
        return self._in_panels._cumulative(place).reshape(shape).to(self.left.dtype)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantiles of probabilities ``[..., *batch]``."""
        found: Tensor = self.transform(self.places_at(value))
        return found.to(self.left.dtype)

    def places_at(self, value: Tensor) -> Tensor:
        """The quantiles on the line, float64, of probabilities ``[..., *batch]``, by Newton's steps in a bracket."""
        if self._in_panels is not self:
            return self._in_panels.places_at(value)
        shape = broadcast_shapes(value.shape, self.batch_shape)
        probability = value.double().expand(shape).reshape(-1, *self.batch_shape)
        masses = self._panel_masses()
        cumulative = masses.cumsum(-1)
        index = self._panel(cumulative, probability)
        mass = self._picked(masses, index)
        target = probability - self._picked(cumulative - masses, index)
        density, integral = (self._picked(part, index) for part in self._polynomials())
        low, high = -torch.ones_like(target), torch.ones_like(target)
        place = (2 * target / mass.clamp(min=1e-300) - 1).clamp(-1, 1)
        for _ in range(_MOST_STEPS):
            excess = _polynomial(integral, place) - target
            low, high = torch.where(excess < 0, place, low), torch.where(excess < 0, high, place)
            newton = place - excess / _polynomial(density, place)
            before, there = place, excess.abs() <= 1e-13 * mass  # a root is an end of its bracket, and stays
            place = torch.where((low < newton) & (newton < high), newton, (low + high) / 2)
            place = torch.where(there, before, place)
            if bool((there | ((place - before).abs() < 1e-13)).all()):
                break
        left, right = (self._picked(end.double(), index) for end in (self.left, self.right))
        return (left + (right - left) * (place + 1) / 2).reshape(shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            uniform = open_uniform(self._extended_shape(torch.Size(sample_shape)), self.left.double())
            return self.icdf(uniform)

    def _panel(self, ends: Tensor, value: Tensor) -> Tensor:
        """The first panel whose end ``batch + [P]`` is not below values ``[K, *batch]``, or the last one."""
        found = torch.searchsorted(ends.contiguous(), value.movedim(0, -1).contiguous()).movedim(-1, 0)
        return found.clamp(max=ends.shape[-1] - 1)

    def _picked(self, tensor: Tensor, index: Tensor) -> Tensor:
        """Entries of ``batch + [P] + rest`` by panels ``[K, *batch]``: ``[K, *batch] + rest``."""
        batch = len(self.batch_shape)
        rest = tensor.ndim - batch - 1
        where = index.movedim(0, -1).reshape(*index.shape[1:], -1, *[1] * rest)
        found = tensor.gather(batch, where.expand(*where.shape[: batch + 1], *tensor.shape[batch + 1 :]))
        return found.movedim(batch, 0)

    def _polynomials(self) -> tuple[Tensor, Tensor]:
        """The density on each panel and its integral from the panel's start, by powers of a place from -1 to 1 on it,
        ``batch + [P, n]`` and ``batch + [P, n + 1]``.
        """
        density = (self.log_masses - self._log_weights).exp().unflatten(-1, (-1, NUM_NODES))
        half = (self.right.double() - self.left.double()).unsqueeze(-1) / 2
        powers = torch.where(half > 0, density, 0.0) @ to_coefficients(self.left).T * half
        powers = powers @ torch.as_tensor(_powers(), dtype=torch.float64, device=half.device)
        integral = powers / torch.arange(1, NUM_NODES + 1, device=half.device)
        signs = 1 - 2 * (torch.arange(1, NUM_NODES + 1, device=half.device) % 2)
        return powers, torch.cat([-(integral * signs).sum(-1, keepdim=True), integral], -1)

    def _panel_masses(self) -> Tensor:
        return self.log_masses.exp().unflatten(-1, (-1, NUM_NODES)).sum(-1)

    def _cumulative(self, place: Tensor) -> Tensor:
        masses = self._panel_masses()
        index = self._panel(self.right.double(), place)
        left, right = (self._picked(end.double(), index) for end in (self.left, self.right))
        share = ((place - left) / torch.where(right > left, right - left, 1.0)).clamp(0, 1)
        below = self._picked(masses.cumsum(-1) - masses, index)
        return below + _polynomial(self._picked(self._polynomials()[1], index), 2 * share - 1)


def _polynomial(powers: Tensor, place: Tensor) -> Tensor:
    """A polynomial ``[..., n]`` by powers at places ``[...]``."""
    return (powers * place.unsqueeze(-1) ** torch.arange(powers.shape[-1], device=place.device)).sum(-1)


__all__ = ["Tabulated"]
