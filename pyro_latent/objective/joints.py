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
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..expressions.axes import axis_labels
from ..recording import DiscreteSite
from .elimination import Plan, Table
from .groups import connected
from .layouts import Cut, Layout, Reading, SumOfElements, rows_first
from .order import DiscreteVariable, NotNestedError, Scope

#: The joint posterior of elements is exact where no table and no pass of elimination has more numbers than these, and
#: the elements meet in at most so many places.
_LARGEST_TABLE, _MOST_WORK, _MOST_PLACES = 2**16, 2**21, 20_000

#: The elements of a site that are drawn one by one, each by an elimination of its own.
_MOST_TURNS = 100


def is_nested(layouts: Sequence[Layout]) -> bool:
    """Whether every element is read place by place in plates of which each lies in the next: then elimination goes from
    the innermost ones on, and no element is a variable of its own.
    """
    if not all(x.is_aligned and x.is_of_different_sites for x in layouts):
        return False
    plates = {frozenset(p.dim for p in r.site.plates if p.size > 1) for x in layouts for r in x.readings}
    order = sorted(plates, key=len)
    return all(a < b for a, b in itertools.pairwise(order))


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
        self._cuts: list[list[Cut]] | None = None
        depth = max(len(s.batch_shape) for s in sites)
        depth = max([depth, *(len(x.sizes) for rows in layouts for x in rows if x.is_aligned)])
        self._sums = [SumOfElements.of(rows[0], depth) if len(rows) == 1 else None for rows in layouts]
        self._layouts = [rows if s is None else [s.layout] for rows, s in zip(layouts, self._sums, strict=True)]
        self._device = sites[0].support.device
        own = {s.name: frozenset(p.dim for p in s.plates if p.size > 1) for s in sites}
        if all(x.is_aligned and x.is_of_different_sites for rows in self._layouts for x in rows):
            scopes = [[Scope(x.names, frozenset().union(*(own[n] for n in x.names))) for x in r] for r in self._layouts]
            variables = [
                DiscreteVariable(s.name, s.cardinality, {p.dim: p.size for p in s.plates if p.size > 1}, s.scale)
                for s in sites
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
        self._cuts = [[Cut(x, whole) for x in rows] for rows in self._layouts]
        cardinality = {s.name: s.cardinality for s in self.sites}
        scopes = [group for rows in self._cuts for cut in rows for group in cut.names]
        names = dict.fromkeys(name for group in scopes for own in group for name in own)
        kept = {p.dim: p.size for s in self.sites for p in s.plates if p.dim in whole}
        variables = [DiscreteVariable(name, cardinality[name[0]], kept, _number(self.sites[0].scale)) for name in names]
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
        names = dict.fromkeys(name for own in scopes for name in own)
        group_of = {name: i for i, group in enumerate(connected(names, scopes)) for name in group}
        order: dict[int, dict[Any, int]] = {}  # by group, the turn of each of its variables
        found: list[Tensor] = []
        for place in itertools.product(*map(range, site.batch_shape)):
            name = next(n for n in names if n[0] == site.name and _is_at(n[1:], place))
            before = order.setdefault(group_of[name], {})
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


class TooLargeError(Exception):
    """The joint posterior of some elements is not affordable; the message says what is too large."""


def _is_at(name: tuple[Any, ...], place: tuple[int, ...]) -> bool:
    return all(a == "all" or a == b for a, b in zip(name, place, strict=True))


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


__all__ = ["Joint", "TooLargeError", "is_nested"]
