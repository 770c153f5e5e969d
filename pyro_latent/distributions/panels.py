"""Tables of a batch of log densities on the line, at the nodes of the integrals that normalize them.

The line that the support is mapped onto is cut into panels; on each, the log density is the polynomial through the
nodes of Gauss and Legendre's rule. :func:`tabulate` finds the panels of a batch of log densities: it goes to the modes
from a mesh over all numbers, then out until the density has fallen to 1e-20 of its maximum (:mod:`.windows`), and takes
few panels that are finest at the mode. Where these do not resolve the density, adaptive panels do (:mod:`.quadrature`).
:class:`TableSearch` tries a grid (:mod:`.grids`) before, for a density with functions.

Source: Davis and Rabinowitz 1984, §2.7; Trefethen 2013, Approximation Theory and Approximation Practice, chapter 19.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import ExpTransform, biject_to, constraints

from ..errors import ArgumentError
from .grids import ANY, LOWEST, SMOOTH, Integrals, Integrand, PanelTable, cut, on_grid
from .quadrature import EPS, NUM_NODES, TOLERANCE, integrate, kept_on, rule
from .windows import DEPTH, LogDensity, Modes, NoTableError, modes_of, resolved_ends, window

#: Panels are taken if the log density has fallen by this much at their ends.
_ENOUGH = 37.0
#: Numbers of panels, of which the first that resolves the density is taken; adaptive ones start at the last.
_PANELS = (8, 12, 16, 24, 32)
#: How densely panels lie: by the curvature and the slope of the log density, less where the density is low, and some
#: everywhere. The numbers are by trial on some twenty densities.
_BY_SLOPE, _FADING, _EVERYWHERE, _SCAN = 0.25, 12.0, 0.3, 65
#: The last Legendre coefficients of a density on its panels are at most this much of its integral. An integral by n
#: nodes is exact up to degree 2n - 1: what those of a smooth one fall to until then is its error. They may be the
#: second, if what they fall to is the third.
_RESOLVED, _RESOLVED_SMOOTH, _NEGLIGIBLE = 2e-9, 1e-5, 1e-10
#: So many numbers of a log density are computed in one pass: they stay in the cache.
_AT_ONCE = 2**17


@lru_cache
def _legendre() -> np.ndarray:
    """The matrix that takes values at the nodes to Legendre coefficients."""
    points, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    degrees = np.arange(NUM_NODES)
    vander = np.polynomial.legendre.legvander(points, NUM_NODES - 1)
    matrix: np.ndarray = (2 * degrees[:, None] + 1) / 2 * vander.T * weights
    return matrix


def rule_of_panels(like: Tensor, count: int = NUM_NODES) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1] of the rule of a panel, float64: Gauss and Legendre's, or equal steps."""
    like = like.new_empty(0, dtype=torch.float64)
    if count == NUM_NODES:
        return rule(like)
    places = torch.arange(count, dtype=torch.float64, device=like.device)
    return (places + 0.5) / count, like.new_full((count,), 1 / count)


def to_coefficients(like: Tensor) -> Tensor:
    """The matrix that takes values at the nodes to Legendre coefficients, float64."""
    return kept_on(_legendre, like.device)


def line_of(support: constraints.Constraint) -> tuple[Any, float]:
    """The transform that maps the line onto a support, and how far out on the line its densities are looked at."""
    starts_at_zero = getattr(support, "lower_bound", None) == 0 and not hasattr(support, "upper_bound")
    transform = ExpTransform() if starts_at_zero else biject_to(support)  # the same, without an addition of 0
    return transform, 1e30 if support is constraints.real else 700.0


def resolved_by(support: constraints.Constraint, like: Tensor) -> tuple[Tensor, Tensor]:
    """The places on the line beyond which float64 does not tell a value from the end of its support."""
    lower, upper = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    ends = [like.new_full((), -torch.inf), like.new_full((), torch.inf)]
    width = 1.0 if lower is None or upper is None else torch.as_tensor(upper - lower).to(like)
    for i, bound in enumerate((lower, upper)):
        if bound is not None:
            gap = (EPS * torch.as_tensor(bound).to(like).abs() / width).log()
            ends[i] = gap if i == 0 else -gap if lower is not None else gap
    return ends[0], ends[1]


def nodes_of(left: Tensor, right: Tensor, count: int = NUM_NODES) -> Tensor:
    """The nodes of panels ``[..., P]``, float64 ``[..., P, count]``."""
    left, right = left.double(), right.double()
    return left.unsqueeze(-1) + (right - left).unsqueeze(-1) * rule_of_panels(left, count)[0]


def log_weights_of(left: Tensor, right: Tensor, count: int = NUM_NODES) -> Tensor:
    """The log weights of the nodes, ``[..., P, count]``; minus infinity on panels of no width."""
    return (right.double() - left.double()).log().unsqueeze(-1) + rule_of_panels(left, count)[1].log()


def tabulate(
    log_density: LogDensity, shape: Sequence[int], limit: float, like: Tensor, is_smooth: bool = False
) -> PanelTable:
    """Tables of a batch of log densities on the line.

    Args:
        log_density: takes float64 places ``[K, *shape]`` and gives as many log densities, up to a constant; NaN counts
            as minus infinity.
        shape: the batch shape.
        limit: how far from 0 to look for a mode.
        like: an empty tensor of the dtype that tables are kept in.
        is_smooth: whether the log densities are known to have no kink.

    Returns:
        The ends of the panels, left and right ``[*shape, P]``, and the normalized log density at their nodes ``[*shape,
        P * n]``.

    Raises:
        NoTableError: if a density has no finite integral, or its integral does not settle.
    """
    search = TableSearch(
        lambda places: (log_density(places), places, []), shape, limit, like, with_grids=False, is_smooth=is_smooth
    )
    return search.anew()[0]


class TableSearch:
    """A search for the tables of :func:`tabulate`, and for the integrals of functions where the pass that makes the
    tables finds them.

    Args:
        integrand: the log densities with the functions, in float64.
        shape, limit, like: as of :func:`tabulate`.
        rows: how many places it is given at a time.
        with_grids: whether grids are tried before panels.
        is_smooth: whether the log densities are known to have no kink.
        rounding: of the densities, relative, as of those from tables in single precision.
    """

    def __init__(
        self,
        integrand: Integrand,
        shape: Sequence[int],
        limit: float,
        like: Tensor,
        rows: int | None = None,
        with_grids: bool = True,
        is_smooth: bool = False,
        rounding: float = 0.0,
    ) -> None:
        self._rounding = rounding
        self._integrand, self._shape, self._limit, self._like = integrand, torch.Size(shape), limit, like
        self._rows = rows or max(1, _AT_ONCE // max(1, math.prod(shape)))
        self._with_grids, self._is_smooth = with_grids, is_smooth
        self._demands = SMOOTH if is_smooth else ANY

    @cached_property
    def _modes(self) -> Modes:
        return modes_of(self._known, self._shape, self._limit, self._like, self._rows)

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor] | None:
        return resolved_ends(self._computed, self._shape, self._limit, self._like, self._rows)

    def _known(self, places: Tensor) -> Tensor:
        """The log densities at places ``[K, *shape]``; minus infinity where they are rounding and nothing is left."""
        if self._ends is None:
            return self._computed(places)
        is_known = (places >= self._ends[0]) & (places <= self._ends[1])
        return torch.where(is_known, self._computed(places), -torch.inf)

    def _computed(self, places: Tensor) -> Tensor:
        """The log densities at places ``[K, *shape]`` as they are computed."""
        values = torch.cat([self._integrand(part)[0] for part in places.split(self._rows)])
        return values.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)

    @torch.no_grad()
    def near(self, start: PanelTable, is_rough: bool, is_new: bool) -> tuple[PanelTable, Integrals | None]:
        """The tables near those of earlier densities, whose nodes are taken again if they resolve the density.

        Args:
            start: the earlier table.
            is_rough: whether its panels are tried before grids.
            is_new: whether it is no table of densities such as these, so that it may lack one of their modes.

        Raises:
            NoTableError: as by :func:`tabulate`.
        """
        left, right = start[0][..., 0], start[1][..., -1]
        is_grid, is_few = start[0].shape[-1] == 1, start[0].shape[-1] <= _PANELS[-1]
        has_all = not is_new or self._are_seen(left, right)
        found = self._by_grids((left, right), start[2].shape[-1:]) if is_grid and has_all else None
        if found is None and self._with_grids and (is_grid or not is_rough):
            width = (right - left).double() / 2  # the density has moved, by less than its width
            found = self._by_cut(*_scanned(self._known, left - width, right + width))
            has_all = found is None and self._are_seen(left, right)
        if found is not None:
            return found
        table = self._on_panels(*start[:2], self._is_smooth) if is_few and not is_grid and has_all else None
        return self.anew() if table is None else (table, None)

    @torch.no_grad()
    def anew(self) -> tuple[PanelTable, Integrals | None]:
        """The tables about the modes of the densities.

        Raises:
            NoTableError: as by :func:`tabulate`.
        """
        ends = window(self._known, self._modes, self._limit)
        places, values = _scanned(self._known, *ends)
        if self._modes.are_narrow_in(*ends):
            edges = torch.cat([_edges(places, values, _PANELS[-1]), self._modes.edges(*ends).movedim(0, -1)], -1)
            return _adaptive(self._known, edges.sort(-1).values, self._like, self._rounding), None
        found = self._by_cut(places, values)
        return (self._by_panels(places, values), None) if found is None else found

    def _are_seen(self, left: Tensor, right: Tensor) -> bool:
        """Whether all modes are between two ends, and none is too narrow there."""
        return self._modes.are_in(left, right) and not self._modes.are_narrow_in(left, right)

    def _by_cut(self, places: Tensor, values: Tensor) -> tuple[PanelTable, Integrals] | None:
        """The tables on grids between the ends where the log densities at places ``[_SCAN, *shape]`` have fallen."""
        ends = cut(places, values, self._demands.depth)
        return self._by_grids(ends, self._demands.counts) if ends is not None and self._are_seen(*ends) else None

    def _by_grids(self, ends: tuple[Tensor, Tensor], counts: Sequence[int]) -> tuple[PanelTable, Integrals] | None:
        """The tables on the first grid between two ends that resolves the densities; None where none does."""
        if not self._with_grids:
            return None
        found = (on_grid(self._integrand, *ends, n, self._rows, self._like, self._demands) for n in counts)
        return next((f for f in found if f is not None), None)

    def _by_panels(self, places: Tensor, values: Tensor) -> PanelTable:
        """The tables on panels that are denser where the log densities bend."""
        table = self._on_few_panels(places, values, self._is_smooth)
        if table is not None:
            return table
        try:
            return _adaptive(self._known, _edges(places, values, _PANELS[-1]), self._like, self._rounding)
        except NoTableError:  # also of rounding, as in differences of lgamma of large arguments
            table = None if self._is_smooth else self._on_few_panels(places, values, True)
            if table is None:
                raise
            return table

    def _on_few_panels(self, places: Tensor, values: Tensor, is_smooth: bool) -> PanelTable | None:
        """The tables on the fewest panels that resolve the densities; None where none of these numbers does."""
        each = (_edges(places, values, count) for count in _PANELS)
        tables = (self._on_panels(edges[..., :-1], edges[..., 1:], is_smooth) for edges in each)
        return next((t for t in tables if t is not None), None)

    def _on_panels(self, left: Tensor, right: Tensor, is_smooth: bool) -> PanelTable | None:
        return _on_panels(self._known, left, right, self._like, is_smooth, self._rounding)


def _scanned(log_density: LogDensity, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Places between two ends and the log densities there, ``[_SCAN, *shape]`` both."""
    shares = torch.linspace(0, 1, _SCAN, dtype=torch.float64, device=left.device).reshape(-1, *[1] * left.ndim)
    places = left + (right - left) * shares
    return places, log_density(places)


def _edges(places: Tensor, values: Tensor, count: int) -> Tensor:
    """The ends of panels, ``[*shape, count + 1]``, denser where the log density at places ``[_SCAN, *shape]`` bends."""
    step = places[1] - places[0]
    heights = (values - values.amax(0)).clamp(min=-2 * DEPTH)
    slope = torch.gradient(heights, dim=0)[0]
    bend = torch.gradient(slope, dim=0)[0].abs().sqrt()
    dense = (bend + _BY_SLOPE * slope.abs()) * (heights / _FADING).exp()
    wide = torch.cat([dense[:1], dense, dense[-1:]])
    dense = (wide[:-2] + 2 * wide[1:-1] + wide[2:]) / 4
    dense = dense + _EVERYWHERE * dense.mean(0) + 1e-12
    sums = (
        torch.cat([torch.zeros_like(dense[:1]), ((dense[1:] + dense[:-1]) / 2).cumsum(0)]).movedim(0, -1).contiguous()
    )
    targets = torch.linspace(0, 1, count + 1, dtype=torch.float64, device=step.device) * sums[..., -1:]
    index = torch.searchsorted(sums, targets).clamp(1, _SCAN - 1)
    low, high = sums.gather(-1, index - 1), sums.gather(-1, index)
    share = (index - 1) + ((targets - low) / (high - low)).clamp(0, 1)
    return places[0].unsqueeze(-1) + step.unsqueeze(-1) * share


def _on_panels(
    log_density: LogDensity, left: Tensor, right: Tensor, like: Tensor, is_smooth: bool, rounding: float
) -> PanelTable | None:
    """The table on these panels; None where they do not resolve a density."""
    left, right = left.to(like.dtype), right.to(like.dtype)
    nodes, edges = nodes_of(left, right), torch.cat([left[..., :1], right], -1).double()
    values = log_density(torch.cat([nodes.flatten(-2), edges], -1).movedim(-1, 0)).movedim(0, -1)
    values, ends = values.split([values.shape[-1] - edges.shape[-1], edges.shape[-1]], -1)
    values = values.reshape(nodes.shape)
    most = values.amax((-2, -1), keepdim=True)
    outer = torch.maximum(ends[..., 0], ends[..., -1])[..., None, None]
    if not bool((most.isfinite() & (outer < most - _ENOUGH)).all()):
        return None
    density, at_ends = (values - most).exp(), (ends - most.squeeze(-1)).exp()
    weights, matrix = rule_of_panels(left)[1], to_coefficients(left)
    width = (right.double() - left.double()).unsqueeze(-1)
    total = (density * weights * width).sum((-2, -1), keepdim=True)
    signs = 1 - 2 * (torch.arange(NUM_NODES, dtype=torch.float64, device=left.device) % 2)
    # The last coefficients, and the polynomial at both ends of a panel: where nodes end, a kink would not be seen, so
    # that there, too, it has to meet the density.
    found = density @ torch.cat([matrix[-6:-4], matrix[-2:], matrix.sum(0, keepdim=True), (signs @ matrix)[None]]).T
    tail, before = found[..., 2:4].abs().sum(-1), found[..., :2].abs().sum(-1)
    missed = (found[..., 4] - at_ends[..., 1:]).abs() + (found[..., 5] - at_ends[..., :-1]).abs()
    falls = (tail / before.clamp(min=1e-300)).clamp(max=1) ** 3  # on to degree 2n; coefficients of a kink hardly fall
    error = ((tail + missed / 4) * width.squeeze(-1)).sum(-1)
    left_over = (tail * falls * width.squeeze(-1)).sum(-1)
    total = total[..., 0, 0]
    resolved, negligible = (_RESOLVED_SMOOTH, _NEGLIGIBLE) if is_smooth else (_RESOLVED, _RESOLVED)
    resolved, negligible = max(resolved, rounding), max(negligible, rounding)
    if not bool(((error <= resolved * total) & (left_over <= negligible * total)).all()):
        return None
    values = (values - most).clamp(min=LOWEST) - total.log()[..., None, None]
    return left, right, values.flatten(-2).to(like.dtype)


def _adaptive(log_density: LogDensity, edges: Tensor, like: Tensor, rounding: float) -> PanelTable:
    """The table on panels that are split where they have to be.

    Raises:
        NoTableError: if the integral does not settle.
    """
    margin = (edges[..., -1:] - edges[..., :1]) / 8  # where nothing is left: two panels show that the tails end
    beyond = margin * torch.arange(1, 3, dtype=margin.dtype, device=margin.device)
    edges = torch.cat([edges[..., :1] - beyond.flip(-1), edges, edges[..., -1:] + beyond], -1)
    try:
        panels = integrate(
            lambda z: log_density(z.flatten(0, z.ndim - edges.ndim)).reshape(z.shape),
            edges.movedim(-1, 0),
            tolerance=max(TOLERANCE, rounding),
        )
    except ArgumentError as problem:
        raise NoTableError(str(problem)) from None
    left, right = (end.movedim(0, -1).to(like.dtype) for end in (panels.left, panels.right))
    nodes = nodes_of(left, right)
    values = log_density(nodes.flatten(-2).movedim(-1, 0)).movedim(0, -1).reshape(nodes.shape)
    values = values.clamp(min=values.amax((-2, -1), keepdim=True) + LOWEST)
    total = (values + log_weights_of(left, right)).flatten(-2).logsumexp(-1)
    return left, right, (values - total[..., None, None]).flatten(-2).to(like.dtype)


__all__ = [
    "NoTableError",
    "TableSearch",
    "line_of",
    "log_weights_of",
    "nodes_of",
    "resolved_by",
    "rule_of_panels",
    "tabulate",
    "to_coefficients",
]
