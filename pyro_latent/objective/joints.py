"""The joint posteriors of discrete sites: which sites hang together, and how they are eliminated.

A *joint* is a connected set of discrete sites. Where every density reads their elements place by place, in nested
plates, the plates stay whole. Where elements of one site meet (``z[group]``, ``z[i]`` against ``z[j]``, a sum of them)
or plates cross, each element is a variable of its own, and the factors are cut into one for each place: exact, where
the tables that elimination makes are affordable.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..expressions.axes import Axis, Gather, Label, Labelled, Labels, axis_labels, position_axes, read, spread
from ..recording import DiscreteSite
from .elimination import Plan, Table
from .order import NotNestedError, Scope, Variable

#: The joint posterior of elements is exact where no table and no pass of elimination has more numbers than these, and
#: the elements meet in at most so many places.
_LARGEST_TABLE, _MOST_WORK, _MOST_PLACES = 2**16, 2**21, 20_000

#: The elements of a site that are drawn one by one, each by an elimination of its own.
_MOST_TURNS = 100


def elements_of(site: DiscreteSite, axes: tuple[Axis, ...]) -> Labelled:
    """The number of the element of a site that is read at each place, over the labels that its axes run along."""
    numbers = torch.arange(site.batch_shape.numel(), device=site.support.device).reshape(site.batch_shape)
    return read(numbers, axes)


def both_elements(site: DiscreteSite, a: tuple[Axis, ...], b: tuple[Axis, ...]) -> tuple[Tensor, Tensor, Labels]:
    """The numbers of the elements that two readings of a site read, over the labels that they run along."""
    (first, left), (second, right) = elements_of(site, a), elements_of(site, b)
    labels = tuple(dict.fromkeys((*left, *right)))
    where = {label: i for i, label in enumerate(labels)}
    return spread(first, left, where), spread(second, right, where), labels


def same_element(site: DiscreteSite, a: tuple[Axis, ...], b: tuple[Axis, ...]) -> Labelled:
    """Where two readings of a site read one element, over the labels that they run along."""
    first, second, labels = both_elements(site, a, b)
    return first == second, labels


@dataclass(frozen=True, eq=False)
class Reading:
    """A discrete site as a factor reads it: the axes of its batch dimensions in the labels of the factor."""

    site: DiscreteSite
    axes: tuple[Axis, ...]

    @property
    def is_aligned(self) -> bool:
        """Whether each place reads its own element."""
        return all(a is b or (isinstance(a, int) and a == b) for a, b in zip(self.axes, self.own.axes, strict=True))

    @property
    def own(self) -> Reading:
        """The reading of the site's own elements, place by place."""
        return Reading(self.site, position_axes(self.site.batch_shape))

    @property
    def labels(self) -> frozenset[Label]:
        return frozenset(x for axis in self.axes for x in axis_labels(axis))

    def element(self, place: dict[int, int]) -> tuple[Any, ...]:
        """The index of the element at a place; labels without one stay."""
        found: list[Any] = []
        for axis in self.axes:
            if axis is None:
                found.append(0)
            elif isinstance(axis, Gather):
                found.append(int(axis.index[tuple(place[x] for x in axis.labels)]))
            else:
                found.append(place.get(axis, "all"))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Layout:
    """A factor as elimination sees it: what it reads, in the order of its first dimensions, and its places.

    ``sizes`` are the sizes of the dimensions that its places run along, whose labels are −len(sizes) … −1.
    """

    readings: tuple[Reading, ...]
    sizes: tuple[int, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(r.site.name for r in self.readings)

    @cached_property
    def is_aligned(self) -> bool:
        """Whether each place reads its own elements."""
        return all(r.is_aligned for r in self.readings)

    @property
    def is_of_different_sites(self) -> bool:
        """Whether no site is read twice."""
        return len(set(self.names)) == len(self.names)

    def innermost(self, name: str) -> DiscreteSite:
        """The site that the density of a site is summed over first, whose scale it is relative to: its own, or else the
        one in the most plates.
        """
        sites = [r.site for r in self.readings]
        own = next((s for s in sites if s.name == name), None)
        return own or max(sites, key=lambda s: sum(p.size > 1 for p in s.plates))


class Joint:
    """The exact joint posterior of connected sites.

    Raises:
        TooLargeError: if it is not affordable.
        ModelError: if sites that meet have different scales.
    """

    def __init__(
        self, layouts: Sequence[Sequence[Layout]], sites: Sequence[DiscreteSite], indices: Sequence[int]
    ) -> None:
        self.sites, self.indices = list(sites), list(indices)
        self._cuts: list[list[_Cut]] | None = None
        depth = max(len(s.batch_shape) for s in sites)
        depth = max([depth, *(len(x.sizes) for rows in layouts for x in rows if x.is_aligned)])
        self._sums = [_Sum.of(rows[0], depth) if len(rows) == 1 else None for rows in layouts]
        self._layouts = [rows if s is None else [s.layout] for rows, s in zip(layouts, self._sums, strict=True)]
        self._device = sites[0].support.device
        own = {s.name: frozenset(p.dim for p in s.plates if p.size > 1) for s in sites}
        if all(x.is_aligned and x.is_of_different_sites for rows in self._layouts for x in rows):
            scopes = [[Scope(x.names, frozenset().union(*(own[n] for n in x.names))) for x in r] for r in self._layouts]
            variables = [
                Variable(s.name, s.cardinality, {p.dim: p.size for p in s.plates if p.size > 1}, s.scale) for s in sites
            ]
            try:
                self.plan = Plan(scopes, variables, self._device)
                return
            except NotNestedError:
                pass
        self._by_elements()

    @property
    def is_by_elements(self) -> bool:
        """Whether each element is a variable of its own."""
        return self._cuts is not None

    def _by_elements(self) -> None:
        layouts = [x for rows in self._layouts for x in rows]
        whole = _whole_plates(layouts, self.sites)
        _check_scales(self.sites, whole)
        places = sum(math.prod(n for i, n in enumerate(x.sizes) if i - len(x.sizes) not in whole) for x in layouts)
        if places > _MOST_PLACES:
            raise TooLargeError(f"{places} places where elements meet")
        self._cuts = [[_Cut(x, whole) for x in rows] for rows in self._layouts]
        cardinality = {s.name: s.cardinality for s in self.sites}
        scopes = [group for rows in self._cuts for cut in rows for group in cut.names]
        names = dict.fromkeys(name for group in scopes for own in group for name in own)
        kept = {p.dim: p.size for s in self.sites for p in s.plates if p.dim in whole}
        variables = [Variable(name, cardinality[name[0]], kept, _number(self.sites[0].scale)) for name in names]
        buffers = [[Scope(own, frozenset(kept)) for own in group] for group in scopes]
        self.plan = Plan(buffers, variables, self._device, (_LARGEST_TABLE, _MOST_WORK))
        if self.plan.largest > _LARGEST_TABLE or self.plan.work > _MOST_WORK:
            raise TooLargeError(f"tables of {self.plan.largest} numbers")

    def turns(self, site: DiscreteSite) -> list[Tensor]:
        """Masks over the elements of a site, which are drawn in turn: those of one mask hang together with no other of
        it, whatever the values of those before.
        """
        assert self._cuts is not None
        scopes = [own for rows in self._cuts for cut in rows for alike in cut.names for own in alike]
        group = {name: {name} for own in scopes for name in own}
        for own in scopes:
            merged = set().union(*(group[n] for n in own))
            for name in merged:
                group[name] = merged
        order: dict[int, dict[Any, int]] = {}  # by group, the turn of each of its variables
        found: list[Tensor] = []
        for place in itertools.product(*map(range, site.batch_shape)):
            name = next(n for n in group if n[0] == site.name and _is_at(n[1:], place))
            before = order.setdefault(id(group[name]), {})
            turn = before.setdefault(name, len(before))
            if turn == len(found):
                found.append(torch.zeros(site.batch_shape, dtype=torch.bool, device=site.support.device))
            found[turn][place] = True
        return found

    def turns_beside(
        self, site: DiscreteSite, scopes: Sequence[set[str]], left_out: Collection[str]
    ) -> list[Tensor] | None:
        """The turns of a site whose elements hang together by sites outside of its plates that are summed out.

        ``scopes`` are the sites of each factor, without those that are drawn before.

        Raises:
            ModelError: if they are more than :data:`_MOST_TURNS`.
        """
        near, size = {site.name}, 0
        while len(near) > size:
            size = len(near)
            near = near.union(*(names for names in scopes if names & near))
        outside = [s for s in self.sites if s.name in near and s.name in left_out]
        own = {p.dim for p in site.plates if p.size > 1}
        dims = sorted(set().union(*(own - {p.dim for p in s.plates} for s in outside)))
        if not dims:
            return None
        count = math.prod(site.batch_shape[d] for d in dims)
        if count > _MOST_TURNS:
            raise ModelError(
                f"Expected {site.name!r} to be marked for enumeration too, or {[s.name for s in outside]} not; got a "
                f"guide that draws the {count} elements of {site.name!r}, which depend on each other where these are "
                "summed out. Write infer={'enumerate': 'parallel'} at both, or at neither."
            )
        places = torch.arange(count, device=site.support.device).reshape([site.batch_shape[d] for d in dims])
        shape = [site.batch_shape[d] if d in dims else 1 for d in range(-len(site.batch_shape), 0)]
        return [(places.reshape(shape) == i).expand(site.batch_shape) for i in range(count)]

    def run(
        self,
        tensors: Sequence[Tensor],
        sizes: Mapping[int, int] = MappingProxyType({}),
        tables: list[Table] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """log Z for each start, and the size of what it sums; see :meth:`.Plan.run`."""
        tensors = [t if s is None else s.added(t) for t, s in zip(tensors, self._sums, strict=True)]
        buffers = [rows_first(t, x) for t, x in zip(tensors, self._layouts, strict=True)]
        if self._cuts is not None:
            pairs = zip(self._cuts, buffers, strict=True)
            buffers = [b for cuts, t in pairs for cut, row in zip(cuts, t, strict=True) for b in cut.buffers(row)]
        return self.plan.run(buffers, sizes, tables)

    @property
    def is_in_place(self) -> bool:
        """Whether every factor reads its elements place by place, and goes into elimination as it is."""
        return self._cuts is None and all(s is None for s in self._sums)

    @property
    def divisible(self) -> set[int]:
        """The plates that log Z is a sum over: every site lies in them, with one scale, and is read place by place."""
        if not self.is_in_place:
            return set()
        if any(isinstance(s.scale, Tensor) and s.scale.numel() > 1 for s in self.sites):
            return set()
        return set.intersection(*({p.dim for p in s.plates if p.size > 1} for s in self.sites))


def rows_first(tensor: Tensor, layouts: Sequence[Layout]) -> Tensor:
    """A factor ``[starts] + values + (rows,) + places`` of several layouts, or one, which has no rows, with the rows
    first.
    """
    if len(layouts) == 1:
        return tensor.unsqueeze(0)
    moved = tensor.movedim(1 + len(layouts[0].readings), 0)
    return moved.expand(len(layouts), *moved.shape[1:])


class TooLargeError(Exception):
    """The joint posterior of some elements is not affordable; the message says what is too large."""


def _is_at(name: tuple[Any, ...], place: tuple[int, ...]) -> bool:
    return all(a == "all" or a == b for a, b in zip(name, place, strict=True))


@dataclass(frozen=True, eq=False)
class _Sum:
    """A factor that reads one element at each place, as ``z[group]`` does, added up to a factor of the elements."""

    layout: Layout
    sizes: tuple[int, ...]
    elements: Tensor

    @staticmethod
    def of(layout: Layout, depth: int) -> _Sum | None:
        """The sum of a factor of one site that reads it otherwise than place by place; None for others."""
        if len(layout.readings) != 1 or layout.readings[0].is_aligned:
            return None
        (reading,) = layout.readings
        count, shape = len(layout.sizes), reading.site.batch_shape
        found = spread(*elements_of(reading.site, reading.axes), {i - count: i for i in range(count)})
        elements = found.expand(layout.sizes).reshape(-1)
        own = Layout((reading.own,), (*[1] * (depth - len(shape)), *shape))
        return _Sum(own, layout.sizes, elements)

    def added(self, tensor: Tensor) -> Tensor:
        """The factor of the elements, ``[starts, values] + plates``."""
        flat = tensor.expand(*tensor.shape[:2], *self.sizes).flatten(2)
        total = flat.new_zeros(*flat.shape[:2], torch.Size(self.layout.sizes).numel())
        return total.index_add(2, self.elements, flat).reshape(*flat.shape[:2], *self.layout.sizes)


class _Cut:
    """A factor, cut into one for each place along the dimensions that are not whole, in lists of which each reads its
    elements alike.
    """

    def __init__(self, layout: Layout, whole: frozenset[int]) -> None:
        depth, lead = len(layout.sizes), 1 + len(layout.readings)
        labels = [i - depth for i in range(depth)]
        self.whole = [label for label in labels if label in whole]
        self.sizes = layout.sizes
        used = frozenset().union(*(r.labels for r in layout.readings)) - whole
        self._cut = [label for label in labels if label in used]
        self._lead = lead
        self._nesting = max((-d for d in whole), default=0)
        alike: dict[tuple[int, ...], list[tuple[int, tuple[Any, ...]]]] = {}  # by which readings are of one element
        for i, index in enumerate(itertools.product(*(range(layout.sizes[label]) for label in self._cut))):
            place = dict(zip(self._cut, index, strict=True))
            found = [(r.site.name, *r.element(place)) for r in layout.readings]
            names = tuple(dict.fromkeys(found))
            alike.setdefault(tuple(names.index(n) for n in found), []).append((i, names))
        self.names = [[names for _, names in group] for group in alike.values()]
        self._alike = {equal: [i for i, _ in group] for equal, group in alike.items()}

    def buffers(self, tensor: Tensor) -> list[Tensor]:
        """The factor at the places of each list of ``names``: ``[places, starts] + variables + whole plates``."""
        shape = list(tensor.shape)
        for label in self._cut:
            shape[label] = self.sizes[label]
        tensor = tensor.expand(shape)
        order = [tensor.ndim + label for label in self._cut]
        rest = [i for i in range(tensor.ndim) if i not in order]
        plates = [1] * self._nesting
        for label in self.whole:
            plates[label] = tensor.shape[label]
        rows = tensor.permute([*order, *rest]).reshape(-1, *tensor.shape[: self._lead], *plates)
        if len(self._alike) == 1:
            return [_merged(rows, equal) for equal in self._alike]
        return [_merged(rows[places], equal) for equal, places in self._alike.items()]


def _merged(tensor: Tensor, equal: tuple[int, ...]) -> Tensor:
    """Factors ``[places, starts] + variables + plates`` that read one element twice, where both readings agree."""
    if len(set(equal)) == len(equal):
        return tensor
    letters = [0, 1, *(2 + e for e in equal)]
    tail = [100 + i for i in range(tensor.ndim - len(letters))]
    out = [0, 1, *(2 + e for e in dict.fromkeys(equal)), *tail]
    numbers = {x: i for i, x in enumerate(dict.fromkeys([*letters, *tail]))}
    return torch.einsum(tensor, [numbers[x] for x in (*letters, *tail)], [numbers[x] for x in out])


def _whole_plates(layouts: Sequence[Layout], sites: Sequence[DiscreteSite]) -> frozenset[int]:
    """The dimensions of the plates that every site lies in, and every factor reads place by place."""
    dims = frozenset.intersection(*(frozenset(p.dim for p in s.plates if p.size > 1) for s in sites))

    def stays(reading: Reading, dim: int) -> bool:
        return reading.axes[dim] == dim and not any(
            dim in axis_labels(a) for i, a in enumerate(reading.axes) if i - len(reading.axes) != dim
        )

    return frozenset(d for d in dims if all(stays(r, d) for x in layouts for r in x.readings))


def _check_scales(sites: Sequence[DiscreteSite], whole: frozenset[int]) -> None:
    """Elements that meet have one scale, and none of their plates is subsampled.

    Raises:
        ModelError: if not.
    """
    names = ", ".join(repr(s.name) for s in sites)
    part = next((p for s in sites for p in s.plates if p.is_subsample and p.dim not in whole), None)
    if part is not None:
        raise ModelError(
            f"Expected all elements of the discrete sites {names}, which meet in one density; got a subsample of plate "
            f"{part.name!r}. Give all of the plate."
        )
    scales = {_number(s.scale) for s in sites}
    if len(scales) > 1:
        raise ModelError(
            f"Expected one scale for the discrete sites {names}, whose elements meet in one density; got "
            f"{sorted(scales)}. Put poutine.scale around all of them."
        )


def _number(scale: Tensor | float) -> float:
    if isinstance(scale, Tensor) and scale.numel() > 1 and not bool((scale == scale.reshape(-1)[0]).all()):
        raise ModelError(
            "Expected one scale for discrete sites whose elements meet in one density; got one for each element. Scale "
            "all of them alike."
        )
    return float(scale.reshape(-1)[0]) if isinstance(scale, Tensor) else float(scale)


__all__ = ["Joint", "Layout", "Reading", "TooLargeError", "both_elements", "elements_of", "rows_first", "same_element"]
