r"""Factors of q over one scalar by one-dimensional integrals, whatever functions of it the model uses.

The optimum of a scalar x given the other blocks is q(x) ∝ exp(Σ_j η_j f_j(x)), where the f_j are the functions of x in
the log joint, the log density of its prior among them, and η_j = ∂\bar L / ∂E f_j. Its normalizer and every E f_j are
integrals over a line. What is kept of q is a table of its log density (:mod:`pyro_latent.distributions.tabulated`),
which needs no functions to be read: it stays what it is for other data, in a file, and in a step between two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ..distributions.grids import Integrals, Integrand, PanelTable
from ..distributions.panels import NoTableError, TableSearch, line_of, resolved_by, tabulate
from ..distributions.tabulated import Tabulated
from ..errors import NaturalDomainError
from ..values import is_same
from .base import Family, Mean, Natural, Params
from .exponent import Exponent
from .scalar_function import Function
from .settled_grid import SettledGrid

#: So many numbers of a function are computed in one pass.
_AT_ONCE = 2**17
#: The most probability that may lie where float64 does not tell values from the end of their support.
_UNRESOLVED = 1e-9
#: The most that the outermost nodes may add to a mean, as a share of it, or of this where it is less.
_SETTLED, _NOTHING = 1e-9, 1e-20

#: What a density that is made of tables may round by, in units of what their numbers do.
_ROUNDINGS = 256


def _alone(log_density: Callable[[Tensor], Tensor]) -> Integrand:
    """A log density without functions."""
    return lambda places: (log_density(places), places, [])


class Quadrature(Family):
    """One factor by quadrature: the family of a block, with the functions that its model uses.

    Args:
        label: the site, for errors.
        support: of an element.
        batch_shape: of the site's elements.
        why: why the site has no closed form, in words.
        device: where its tables are.
    """

    name = "quadrature"
    statistics = {"left": 1, "right": 1, "log_density": 1}
    moments = {}
    param_names = ("left", "right", "log_density")
    hint = "functions of one element of it at a time."
    remembered = (
        "_known",
        "_means",
        "_entropy",
        "_is_rough",
        "_last",
        "_stays",
        "_is_cut",
        "_kept",
    )  # of the last optimum

    def __init__(
        self, label: str, support: constraints.Constraint, batch_shape: torch.Size, why: str, device: torch.device
    ) -> None:
        self.label, self.support, self.batch_shape, self.why, self.device = label, support, batch_shape, why, device
        self.functions: dict[str, Function] = {}
        self._known: tuple[list[tuple[Tensor, int]], Tabulated] | None = None
        self._means: tuple[Tabulated, Mean] | None = None
        self._entropy: tuple[Tabulated, Tensor] | None = None
        self._last: tuple[Tensor, int] | None = None  # the left ends of its panels
        self._is_rough = False  # whether the last optimum was too rough for a grid
        self._grid = SettledGrid()

    # From η to a table.

    def optimum(
        self,
        slopes: Mapping[str, Tensor],
        scale: Tensor | float,
        mask: Tensor | None,
        inverse_temperature: float = 1.0,
        start: Natural | None = None,
    ) -> Natural:
        """q(x) ∝ exp(Σ_j η_j f_j(x)), with η_j the slopes by function ``[starts, *shape]``, divided by the scale.

        Args:
            slopes: ∂\\bar L / ∂E f_j, for each start.
            scale, mask: of the block, over its batch; where the mask does not hold, q is a standard distribution.
            inverse_temperature: what the log density is multiplied by.
            start: a table whose panels to try first.

        Raises:
            NaturalDomainError: if the integral of a density does not settle; an improper one is outside the domain.
        """
        like = next(iter(slopes.values()), None)
        if like is None:
            raise NaturalDomainError(
                f"Expected a density of {self.label!r}; got none that depends on it. Leave it out."
            )
        own = {name: self._scaled(name, slope.double() * inverse_temperature, scale) for name, slope in slopes.items()}
        exponent = Exponent(self.functions, own, self.support, self.batch_shape, mask)
        shape, rows = (exponent.starts, *self.batch_shape), self._at_once(exponent.starts)
        last = (start.left, start.right, start.log_density) if start is not None and self._is_last(start) else None
        settled = self._grid.optimum(exponent, last, rows)
        found, integrals = (
            (self._of_table(settled[0]), settled[1])
            if settled is not None
            else self._tabulated(exponent, shape, like.new_empty(0), start, rows, exponent.is_smooth)
        )
        self._grid.see(found.left, None if start is None else start.left)
        self._is_rough, self._last = integrals is None, (found.left, found.left._version)
        self._check_resolved(found)
        if integrals is not None:
            self._keep(found, integrals, exponent)
        return found

    def _scaled(self, name: str, slope: Tensor, scale: Tensor | float) -> Tensor:
        """η_j of a function: its slope, divided by the scale of its elements."""
        if not isinstance(scale, Tensor):
            return slope / scale
        weight, element = scale.double().expand(self.batch_shape), self.functions[name].element
        return slope / (weight if element is None else weight.reshape(-1)[element])

    def _keep(self, natural: Natural, integrals: Integrals, exponent: Exponent) -> None:
        """Keep what is known of a new table: E f_j, and the entropy log Z − Σ_j η_j E f_j."""
        table, means = self._table(natural), dict(zip(exponent.functions, integrals.expectations, strict=True))
        self._means = table, Mean(**{n: m.to(natural.left.dtype) for n, m in means.items()})
        self._entropy = table, (integrals.log_normalizer - exponent.energy(means)).to(natural.left.dtype)

    def _is_last(self, natural: Natural) -> bool:
        """Whether a table is the last optimum."""
        return self._last is not None and is_same(self._last, natural.left)

    def _at_once(self, starts: int) -> int:
        most = max([self.batch_shape.numel(), *(f.shape.numel() for f in self.functions.values())])
        return max(1, _AT_ONCE // max(1, starts * most))

    def _check_resolved(self, natural: Natural) -> None:
        """Raise where a density piles up at an end of its support more closely than float64 can tell."""
        ends = [getattr(self.support, name, None) for name in ("lower_bound", "upper_bound")]
        if all(end is None or (not isinstance(end, Tensor) and end == 0) for end in ends):
            return  # about zero float64 tells all values apart
        table = self._table(natural)
        low, high = resolved_by(self.support, natural.left.double())
        outside = (table.places < low.unsqueeze(-1)) | (table.places > high.unsqueeze(-1))
        lost = torch.where(outside, table.log_masses.exp(), 0.0).sum(-1)
        if bool((lost > _UNRESOLVED).any()):
            raise NaturalDomainError(
                f"Expected a density of {self.label!r} that float64 resolves; got one with a probability of "
                f"{float(lost.max()):.1g} within rounding of an end of {self.support}. Write the site as the distance "
                "from that end. The guide is as before the step."
            )

    def blend(self, old: Natural, new: Natural, step_size: float) -> Natural:
        """(1 − ρ) log q + ρ log q̂, normalized: the natural-gradient step."""
        return self.combined([new, old], [step_size, 1 - step_size])

    def combined(self, naturals: Sequence[Natural], weights: Sequence[float]) -> Natural:
        tables = [self._read(natural) for natural in naturals]

        def log_density(places: Tensor) -> Tensor:
            return torch.stack([w * t.log_density_at(places) for w, t in zip(weights, tables, strict=True)]).sum(0)

        last = naturals[-1]
        return self._tabulated(
            _alone(log_density), tables[-1].batch_shape, last.left.new_empty(0), last, is_smooth=True
        )[0]

    def joined(self, naturals: Sequence[Natural]) -> Natural:
        if len({tuple(t.shape[1:] for t in natural.values()) for natural in naturals}) == 1:
            return super().joined(naturals)
        tables, sizes = [self._read(natural) for natural in naturals], [len(natural.left) for natural in naturals]

        def log_density(places: Tensor) -> Tensor:
            return torch.cat([t.log_density_at(x) for t, x in zip(tables, places.split(sizes, 1), strict=True)], 1)

        shape, like = (sum(sizes), *tables[0].batch_shape[1:]), naturals[0].left.new_empty(0)
        return self._tabulated(_alone(log_density), shape, like, is_smooth=True)[0]

    def log_ratio(self, before: Natural, after: Natural, places: Natural) -> Tensor | None:
        return self._read(places).log_ratio(self._read(before), self._read(after))

    def tempered(self, natural: Natural, inverse_temperature: float) -> Natural:
        table = self._table(natural)

        def log_density(places: Tensor) -> Tensor:
            return inverse_temperature * table.log_density_at(places)

        like = natural.left.new_empty(0)
        return self._tabulated(_alone(log_density), table.batch_shape, like, is_smooth=True)[0]

    def _tabulated(
        self,
        integrand: Integrand,
        shape: Sequence[int],
        like: Tensor,
        start: Natural | None = None,
        rows: int | None = None,
        is_smooth: bool = False,
    ) -> tuple[Natural, Integrals | None]:
        """The table of log densities on the line, ``[*shape]`` of them, and their integrals as far as they are known.

        Raises:
            NaturalDomainError: if the integral of one does not settle.
        """
        old = None if start is None else (start.left, start.right, start.log_density)
        is_new = start is not None and not self._is_last(start)
        try:
            limit = line_of(self.support)[1]
            has_functions = isinstance(integrand, Exponent)  # others are made of tables, or of a distribution
            rounding = 0.0 if has_functions else _ROUNDINGS * torch.finfo(like.dtype).eps
            search = TableSearch(integrand, shape, limit, like, rows, has_functions, is_smooth, rounding)
            table, integrals = search.anew() if old is None else search.near(old, self._is_rough, is_new)
        except NoTableError as problem:
            raise NaturalDomainError(
                f"Expected a density of {self.label!r} that an integral can be taken of, given the other sites; got "
                f"this: {problem} A prior may be improper, or its tails too heavy: give {self.label!r} a prior with "
                "lighter tails, another init, or more data, or use float64. The guide is as before the step."
            ) from None
        return self._of_table(table), integrals

    def _of_table(self, table: PanelTable) -> Natural:
        return Natural(**dict(zip(self.statistics, table, strict=True)))

    def narrowed(self, natural: Natural, noise: Tensor) -> Natural:
        """A normal on the line about the median of a distribution, of at most half a unit's standard deviation: all
        moments of it are finite, which those of a prior need not be. That of a real number is moved by ``noise``
        ``[starts, *batch]`` times its spread, or one unit, and stays where the distribution has a density.
        """
        masses = (table := self._table(natural)).log_masses.exp()
        below = masses.cumsum(-1) - masses / 2

        def quantile(level: float) -> Tensor:
            """The place up to which a share of the probability is, between two nodes."""
            index = (below < level).sum(-1, keepdim=True).clamp(1, below.shape[-1] - 1)
            (low, high), (x, y) = ((t.gather(-1, index - 1), t.gather(-1, index)) for t in (below, table.places))
            return (x + (y - x) * ((level - low) / (high - low)).clamp(0, 1))[..., 0]

        low, center, high = map(quantile, (0.25, 0.5, 0.75))
        spread = (high - low) / 1.35
        first, last = table.left.double()[..., 0], table.right.double()[..., -1]  # a density may end there
        if self.support is constraints.real:
            center = center + spread.clamp(max=1.0) * noise
            center = center.maximum(first.lerp(last, 0.05)).minimum(first.lerp(last, 0.95))
        scale, room = spread.clamp(max=0.5), (center - first).minimum(last - center)
        scale = torch.where(room < 9 * scale, room / 10, scale)
        left, right, log_density = (t.double() for t in self.example(self.batch_shape).values())
        center, scale = center.unsqueeze(-1), scale.unsqueeze(-1)
        found = (center + scale * left, center + scale * right, log_density - scale.log())
        return Natural(**{n: t.to(natural.left) for n, t in zip(self.statistics, found, strict=True)})

    # The family.

    def _read(self, natural: Mapping[str, Tensor]) -> Tabulated:
        return Tabulated(natural["left"], natural["right"], natural["log_density"], self.support, validate_args=False)

    def _table(self, natural: Mapping[str, Tensor]) -> Tabulated:
        tensors, known = [natural[n] for n in self.statistics], self._known
        if known is not None and all(is_same(a, b) for a, b in zip(known[0], tensors, strict=True)):
            return known[1]
        table = self._read(natural)
        if tensors[0].ndim > len(self.batch_shape) + 1:  # with starts: a state, whose means and entropy are asked for
            self._known = ([(t, t._version) for t in tensors], table)
        return table

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        (value,) = values
        return Mean(**{name: f.evaluate(value.double()).to(value.dtype) for name, f in self.functions.items()})

    def mean(self, natural: Natural) -> Mean:
        """E f_j, ``[starts, *shape]`` each; where the integral does not settle infinite, or NaN of both signs."""
        table = self._table(natural)
        known = self._means if self._means is not None and self._means[0] is table else None
        if known is not None and known[1].keys() == self.functions.keys():
            return known[1]
        values = table.transform(table.places).movedim(-1, 0)  # [nodes, starts, *batch]
        weights = table.log_masses.exp().movedim(-1, 0)
        starts, found = values.shape[1], {}
        at_once = self._at_once(starts)
        for name, function in self.functions.items():
            total, size, ends = None, None, list[Tensor]()
            for places, masses in zip(values.split(at_once), weights.split(at_once), strict=True):
                value = function.at(places.reshape(-1, *self.batch_shape)).reshape(-1, starts, *function.shape)
                masses = function.read(masses)
                part = masses * value
                part = torch.where((masses > 1e-35) | part.isfinite().all(), part, 0.0)  # infinite at no mass
                ends += [part[0], part[-1]]
                total = part.sum(0) if total is None else total + part.sum(0)
                size = part.abs().sum(0) if size is None else size + part.abs().sum(0)
            assert total is not None and size is not None
            outer = torch.stack([ends[0], ends[-1]])
            is_loose = ~(outer.abs() <= _SETTLED * size.clamp(min=_NOTHING)) & function.read(table.falls)
            infinity = torch.where(is_loose, outer.sign(), 0.0).sum(0) * torch.inf
            found[name] = torch.where(is_loose.any(0), infinity, total).to(natural.left.dtype)
        self._means = (table, Mean(**found))
        return self._means[1]

    def log_normalizer(self, natural: Natural) -> Tensor:
        """The entropy, for tables are normalized: :meth:`inner` is 0."""
        table, known = self._table(natural), self._entropy
        return known[1] if known is not None and known[0] is table else table.entropy()

    def inner(self, natural: Natural, coordinates: Mean) -> Tensor:
        return torch.zeros_like(natural.left[..., 0])

    def entropy(self, natural: Natural) -> Tensor:
        return self.log_normalizer(natural)

    def log_prob(self, natural: Natural, *values: Tensor) -> Tensor:
        return self._table(natural).log_prob(values[0])

    def kl_divergence(self, natural: Natural, other: Natural) -> Tensor:
        table = self._table(natural)
        places = table.places.movedim(-1, 0)
        difference = table.log_density_at(places) - self._table(other).log_density_at(places)
        return table.expectation(difference.movedim(0, -1)).to(natural.left.dtype)

    def to_params(self, natural: Natural) -> Params:
        return {name: natural[name] for name in self.statistics}

    def from_params(self, params: Params) -> Natural:
        return Natural(**{name: params[name] for name in self.statistics})

    def in_domain(self, natural: Natural) -> Tensor:
        if self._entropy is not None and self._entropy[0] is self._table(natural):  # its integrals are finite
            return torch.ones_like(natural.left[..., 0], dtype=torch.bool)
        return torch.stack([t.sum(-1).isfinite() for t in natural.values()]).all(0)

    def distribution(self, params: Params) -> Any:
        return self._table(params)

    def distribution_params(self, distribution: Any) -> Params:
        """The table of any distribution over the support that has a log density."""
        if isinstance(distribution, Tabulated):
            return super().distribution_params(distribution)
        transform = line_of(self.support)[0]
        like = torch.empty(0, dtype=torch.float64, device=self.device)

        def log_density(places: Tensor) -> Tensor:
            values = transform(places)
            found: Tensor = distribution.log_prob(values) + transform.log_abs_det_jacobian(places, values)
            return found

        return self.to_params(self._tabulated(_alone(log_density), distribution.batch_shape, like)[0])

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        """A standard normal on the line."""
        like = torch.empty(0, device=self.device)
        table = tabulate(lambda places: -0.5 * places.square(), (), 1e3, like, is_smooth=True)
        return {n: t.expand(*batch, t.shape[-1]).clone() for n, t in zip(self.param_names, table, strict=True)}


__all__ = ["Quadrature"]
