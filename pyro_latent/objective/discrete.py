"""The posterior of the discrete sites, given the other blocks: exact, by elimination, or with given probabilities."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ..recording import DiscreteSite, Recording
from ..settings import check_memory, settings
from ..values import broadcast_shapes
from .blocks import Means, starts_of
from .elimination import Table
from .factors import DiscreteFactor, joint_probabilities
from .joints import Joint
from .parts import Part, first_readers, rows_of, with_more
from .summands import Summand, sum_of

#: The numbers that are multiplied at once where only their sum is wanted.
_CHUNK = 2**20
#: The numbers of a table that each thread eliminates at once, by the kind of device: they stay near a processor.
_TABLE = {"cpu": 2**19, "cuda": 2**25}
#: The tables of all steps of an elimination, or of a part of it, take up to this share of the limit of memory.
_SHARE = 8


class DiscretePosterior(NamedTuple):
    """A posterior of the discrete sites that is held fixed.

    The weight of each factor's elements, the expected log factors plus the entropy (log Z, where it is the exact
    posterior) with their size, and the entropy.
    """

    weights: tuple[Tensor, ...]
    log_normalizer: Tensor
    magnitude: Tensor
    entropy: Tensor

    def of(self, starts: Sequence[int]) -> DiscretePosterior:
        """Keep some starts alone."""

        def take(t: Tensor) -> Tensor:
            return t[list(starts)] if t.ndim and len(t) > 1 else t

        return DiscretePosterior(
            tuple(map(take, self.weights)), *map(take, (self.log_normalizer, self.magnitude, self.entropy))
        )


@dataclass(frozen=True, eq=False)
class DiscreteElimination:
    """The discrete sites with an exact posterior, their factors, and the joints in which they are eliminated.

    ``live`` has, by masked site, where other densities vary with it.
    """

    recording: Recording
    sites: list[DiscreteSite]
    factors: list[DiscreteFactor]
    joints: list[Joint]
    live: Mapping[str, Tensor]
    _held: list[tuple[weakref.ref[Tensor], list[Summand]]] = field(default_factory=list)  # the last one, with its sums
    _turns: dict[str, list[Tensor]] = field(default_factory=dict)
    _parts: dict[tuple[int, int], list[Part]] = field(default_factory=dict)  # by joint and number of starts

    def values(self, means: Means) -> list[Tensor]:
        """The expected log factors, ``[starts] + shape``, at the same number of starts each."""
        values = [f.value(means) for f in self.factors]
        starts = max((len(v) for v in values), default=1)
        return [v.expand(starts, *v.shape[1:]) for v in values]

    def eliminate(self, means: Means, inverse_temperature: float = 1.0) -> DiscretePosterior | None:
        """The exact posterior given the other blocks; None where no density depends on a discrete site.

        ``inverse_temperature``: that of the model whose densities are those of this one, to that power.
        """

        def exact(joint: Joint, part: Part, values: list[Tensor]) -> tuple[Sequence[Tensor], Tensor, Tensor, Tensor]:
            if inverse_temperature != 1:
                values = [inverse_temperature * v for v in values]
            total, magnitude, weights = _weights(joint, part, values)
            with torch.no_grad():
                energy, sizes = _sums(values, weights)
            return weights, total.detach(), magnitude + sizes, (total - energy).detach()

        return self._by_parts(means, exact) if self.factors else None

    def _by_parts(
        self,
        means: Means,
        posterior: Callable[[Joint, Part, list[Tensor]], tuple[Sequence[Tensor], Tensor, Tensor, Tensor]],
    ) -> DiscretePosterior:
        """A posterior that is made of one joint after another, by parts of a large plate.

        ``posterior`` gives, for the expected log factors of a part, the fields of :class:`DiscretePosterior`.
        """
        starts = starts_of(means)
        weights: dict[int, Tensor] = {}
        sums = []
        for number, joint in enumerate(self.joints):
            for part in self._divided(number, starts):
                values = [f.value(means) for f in part.factors]
                found, *rest = posterior(joint, part, [v.expand(starts, *v.shape[1:]) for v in values])
                sums.append(rest)
                for i, own in zip(joint.indices, found, strict=True):
                    factor = self.factors[i]
                    full = factor.shape[part.dim] if factor.varies_along(part.dim) else 0
                    weights[i] = part.joined(weights.get(i), own, full)
                del values, found, own  # before the next part takes as much
        totals = [sum_of(each) for each in zip(*sums, strict=True)]
        return DiscretePosterior(tuple(weights[i] for i in range(len(self.factors))), *totals)

    def _divided(self, number: int, starts: int) -> list[Part]:
        """The parts in which a joint is eliminated."""
        if (number, starts) not in self._parts:
            factors = [self.factors[i] for i in self.joints[number].indices]
            dim, size, step = self._division(number, starts)
            places = [(i, min(step, size - i)) for i in range(0, size, step)] if step < size else []
            parts = [Part([f.part(dim, i, n) for f in factors], dim, i, n) for i, n in places]
            self._parts[number, starts] = parts or [Part(factors)]
        return self._parts[number, starts]

    def _division(self, number: int, starts: int) -> tuple[int, int, int]:
        """A plate of a joint that is one product, its size, and that of its parts: less where tables are large."""
        joint = self.joints[number]
        dims = [d for d in joint.divisible if all(self.factors[i].is_divisible(d) for i in joint.indices)]
        numbers, kind = starts * joint.plan.numbers, self.recording.device.type
        most = _TABLE[kind] * (torch.get_num_threads() if kind == "cpu" else 1)
        kept, limit = starts * joint.plan.total, settings.memory_limit // (_SHARE * self.recording.dtype.itemsize)
        if not dims or (numbers <= 2 * most and kept <= limit):
            return 0, 1, 1
        size, dim = max((p.size, p.dim) for p in joint.sites[0].plates if p.dim in dims)
        return dim, size, max(1, min(size * most // numbers, size * limit // kept))

    def numbers_of(self, number: int, starts: int) -> int:
        """How many numbers all tables of the elimination of a joint, or of a part of it, hold, for its gradient."""
        _, size, step = self._division(number, starts)
        return starts * self.joints[number].plan.total * step // size

    def responsibilities(
        self, means: Means, sites: Collection[str], given: Mapping[str, Tensor] = MappingProxyType({})
    ) -> dict[str, Tensor]:
        """The gradient of log Z in a log factor of each site: its probabilities, weighted by the scale of its plates.

        Args:
            means: the mean parameters of the blocks.
            sites: the names of sites with more than one value.
            given: more log factors on sites, ``[draws, values] + plates``; as many as starts, where both are several.

        Returns:
            by site, ``[starts, values] + plates``.

        Raises:
            ModelError: if a table for that many draws is over the limit of memory.
        """
        starts, like = max([starts_of(means), *map(len, given.values())]), self.recording.like
        found: dict[str, Tensor] = {}
        for number, joint in enumerate(self.joints):
            own = [s for s in joint.sites if s.name in sites]
            if not own:
                continue
            what = f"the joint posterior of {own[0].name!r} given {starts} draws"
            check_memory(what, self.numbers_of(number, starts), "Take fewer draws at once.", like.dtype.itemsize)
            for part in self._divided(number, starts):
                weights = self._responsibilities(joint, part, means, {s.name for s in own}, given, starts)
                for name, weight in weights.items():
                    full = self._laid(self.recording.discrete[name])[part.dim] if part.size else 0
                    found[name] = part.joined(found.get(name), weight, full)
        return found

    def _responsibilities(
        self,
        joint: Joint,
        part: Part,
        means: Means,
        sites: Collection[str],
        given: Mapping[str, Tensor],
        starts: int,
    ) -> dict[str, Tensor]:
        """The responsibilities of sites of a joint, at the places of a part."""
        values = [f.value(means) for f in part.factors]
        probes: dict[tuple[int, int], Tensor] = {}  # by factor and place among what it reads, for all of its rows
        with torch.enable_grad():
            where = first_readers(part.factors)
            for (i, place), rows in where.items():
                factor = part.factors[i]
                shape = self._laid(factor.layout.readings[place].site, part)
                shape[1:1] = [len(factor.rows)] if len(factor.rows) > 1 else []
                more = values[i].new_zeros(starts, *shape)
                known = {row: part.laid(given[name]) for name, row in rows.items() if name in given}
                for row, log_factor in known.items():
                    (more.select(2, row) if len(factor.rows) > 1 else more).copy_(log_factor)
                if not rows.keys().isdisjoint(sites):
                    probes[i, place] = more.requires_grad_()
                if known or (i, place) in probes:
                    values[i] = with_more(values[i], factor, place, more)
            total = joint.run(values, part.sizes)[0].sum()
            weights = torch.autograd.grad(total, list(probes.values()))
        found: dict[str, Tensor] = {}
        for (i, place), weight in zip(probes, weights, strict=True):
            each = weight.unbind(2) if len(part.factors[i].rows) > 1 else (weight,)
            found |= {name: each[row] for name, row in where[i, place].items() if name in sites}
        return found

    def _laid(self, site: DiscreteSite, part: Part | None = None) -> list[int]:
        """The shape of a factor of a site alone, or of a part of it, without starts."""
        shape = [site.cardinality, *[1] * (self.recording.max_plate_nesting - len(site.batch_shape)), *site.batch_shape]
        if part is not None and part.size:
            shape[part.dim] = part.size
        return shape

    def conditionals(self, number: int, means: Means) -> list[Table]:
        """What each site of a joint is drawn from given those before it in the list: they are one draw of the joint
        posterior.

        Raises:
            ModelError: if the tables are over the limit of memory.
        """
        tables: list[Table] = []
        joint, starts = self.joints[number], starts_of(means)
        check_memory(
            f"the tables that {joint.sites[0].name!r} is drawn from, of {starts} chains or draws",
            starts * joint.plan.total,
            "Take fewer at once, or smaller batches of data.",
            self.recording.dtype.itemsize,
        )
        joint.run([self.factors[i].value(means) for i in joint.indices], tables=tables)
        return tables[::-1]

    def hold(self, responsibilities: Mapping[str, Tensor], means: Means) -> DiscretePosterior:
        """A posterior that factorises into given probabilities.

        Args:
            responsibilities: by discrete site, ``[starts, plates..., values]``; or labels ``[starts, plates...]``, the
                numbers of values.
            means: the mean parameters of the blocks, at which the bound is taken.
        """

        def given(joint: Joint, part: Part, values: list[Tensor]) -> tuple[Sequence[Tensor], Tensor, Tensor, Tensor]:
            own = {s.name: part.of(_over_batch(s, responsibilities[s.name])) for s in joint.sites}
            probs = {s.name: as_probabilities(own[s.name], s.cardinality, self.recording.like) for s in joint.sites}
            weights = []
            for factor, value in zip(part.factors, values, strict=True):
                each = joint_probabilities(factor, probs)
                inner = factor.layout.innermost(factor.rows[0].site)
                shape = broadcast_shapes(each.shape, value.shape)
                scaled = each if isinstance(inner.scale, float) and inner.scale == 1 else each * inner.scale
                weights.append(scaled.expand(shape).sum_to_size(value.shape))
            entropy = sum_of(self._entropy_of(s, own[s.name], part) for s in joint.sites)
            energy = _sums(values, weights)[0]
            return weights, energy + entropy, energy.abs() + entropy, entropy

        return self._by_parts(means, given)

    def _entropy_of(self, site: DiscreteSite, given: Tensor, part: Part) -> Tensor:
        """The entropy of the independent elements of a site, for each start."""
        like = self.recording.like
        each = -torch.special.xlogy(given, given).sum(-1) if given.is_floating_point() else like.new_zeros(given.shape)
        seen = self.seen(site)
        seen = None if seen is None else part.of(seen.expand(site.batch_shape))
        each = each if seen is None else torch.where(seen, each, math.log(site.cardinality) * torch.ones_like(each))
        each = each * site.scale
        return each.reshape(len(each), -1).sum(1, dtype=torch.float64)

    def held_summands(self, held: DiscretePosterior | None) -> list[Summand]:
        """The factors as sums over parameters, the posterior held fixed."""
        if held is None:
            return []
        if not self._held or self._held[0][0]() is not held.weights[0]:
            found = [s for f, w in zip(self.factors, held.weights, strict=True) for s in f.summands(w)]
            self._held[:] = [(weakref.ref(held.weights[0]), found)]
        return self._held[0][1]

    def at(self, means: Means, held: DiscretePosterior | None) -> DiscretePosterior | None:
        """A held posterior as it is at other mean parameters: its sums are those of the factors there."""
        if held is None:
            return None
        energy, size = _sums(self.values(means), held.weights)
        return held._replace(log_normalizer=energy + held.entropy, magnitude=size + held.entropy.abs())

    def energies(self, means: Means, held: DiscretePosterior) -> Iterator[tuple[DiscreteFactor, Tensor, Tensor]]:
        """Row by row of each factor: the factor of that row, its weights under the exact posterior, which is held, and
        its expectation for each start, float64.
        """
        values = [f.by_row(v) for f, v in zip(self.factors, self.values(means), strict=True)]
        for joint in self.joints:
            own = [values[i] for i in joint.indices]
            weights: Sequence[Tensor] = [held.weights[i] for i in joint.indices]
            if any(len(self.factors[i].rows) > 1 for i in joint.indices):  # what does not vary by row has one weight
                weights = _weights(joint, Part([]), own)[2]
            for i, value, weight in zip(joint.indices, own, weights, strict=True):
                factor = self.factors[i]
                for number, (v, w) in enumerate(zip(rows_of(factor, value), rows_of(factor, weight), strict=True)):
                    yield factor.row(number), w, _inner(v, w)[0]

    def impossible(self, means: Means) -> set[str]:
        """The sites whose density is zero whatever the discrete latents are."""
        found: set[str] = set()
        for number, joint in enumerate(self.joints):
            for part in self._divided(number, starts_of(means)):
                values = [f.value(means) for f in part.factors]
                if bool(joint.run(values, part.sizes)[0].isneginf().any()):
                    each = zip(part.factors, values, strict=True)
                    rows = [
                        (row.site, v) for f, value in each for row, v in zip(f.rows, rows_of(f, value), strict=True)
                    ]
                    zero = {site for site, v in rows if bool(v.isneginf().any())}
                    found |= {name for name in zero if self.recording.scored[name].observed} or zero
        return found

    @cached_property
    def readers(self) -> dict[str, list[str]]:
        """By discrete site, the sites whose densities read it."""
        found: dict[str, list[str]] = {}
        for row in (row for f in self.factors for row in f.rows):
            for name in row.layout.names:
                found.setdefault(name, []).append(row.site)
        return found

    def turns_of(
        self, site: DiscreteSite, drawn: Collection[str] = (), left_out: Collection[str] = ()
    ) -> list[Tensor] | None:
        """Masks over the elements of a site that are drawn in turn; None where all are independent.

        ``drawn`` are the sites that are drawn before it, and ``left_out`` those that are not drawn at all: elements
        that hang together by one of these are drawn one by one.

        Raises:
            ModelError: if these are too many.
        """
        joint = next((j for j in self.joints if site in j.sites), None)
        if joint is None:
            return None
        if not joint.is_by_elements:
            if not left_out:
                return None
            layouts = [x for i in joint.indices for x in self.factors[i].layouts]
            return joint.turns_beside(site, [set(x.names) - set(drawn) for x in layouts], left_out)
        if site.name not in self._turns:
            self._turns[site.name] = joint.turns(site)
        return self._turns[site.name]

    def seen(self, site: DiscreteSite) -> Tensor | None:
        """The elements of a site that are not masked, or that something depends on; None: all."""
        return None if site.mask is None else site.mask | self.live[site.name]


def _weights(joint: Joint, part: Part, values: Sequence[Tensor]) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
    """log Z of a joint for each start and its size, and its gradient in the log factors: their probabilities."""
    with torch.enable_grad():
        leaves = [v.detach().requires_grad_() for v in values]
        total, magnitude = joint.run(leaves, part.sizes)
        return total, magnitude, torch.autograd.grad(total.sum(), leaves)


def _sums(values: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Σ weight × value over all factors for each start, and the same of absolute values; float64."""
    sums = [_inner(v, w) for v, w in zip(values, weights, strict=True)]
    total, size = (torch.stack(parts).sum(0) for parts in zip(*sums, strict=True))
    return total, size


def _inner(value: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Σ weight × value for each start, where what has no weight may be −∞, and the same of absolute values; float64.
    What has a weight there makes the sum −∞.
    """
    step = max(1, _CHUNK // max(1, value.shape[0]))
    parts = zip(value.flatten(1).split(step, 1), weight.expand_as(value).flatten(1).split(step, 1), strict=True)
    products = (v.masked_fill(w == 0, 0.0).mul_(w) for v, w in parts)
    found = [(p.sum(1, dtype=torch.float64), p.abs_().sum(1, dtype=torch.float64)) for p in products]
    total, size = (torch.stack(sums).sum(0) for sums in zip(*found, strict=True))
    return total, size


def _over_batch(site: DiscreteSite, given: Tensor) -> Tensor:
    """Probabilities ``[starts, plates..., values]``, or labels, over the whole batch shape of a site."""
    values = given.shape[-1:] if given.is_floating_point() else ()
    lead = len(site.batch_shape) + 1 + len(values) - given.ndim
    given = given.reshape(len(given), *[1] * lead, *given.shape[1:]) if lead > 0 else given
    return given.expand(len(given), *site.batch_shape, *values)


def as_probabilities(given: Tensor, count: int, like: Tensor) -> Tensor:
    """Probabilities over so many values in the last dimension; of labels, which are integers, zeros and ones."""
    if given.is_floating_point():
        return given
    return like.new_zeros(*given.shape, count).scatter_(-1, given.unsqueeze(-1), 1.0)


__all__ = ["DiscreteElimination", "DiscretePosterior", "as_probabilities"]
