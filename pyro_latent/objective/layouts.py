"""How densities read discrete sites, as elimination sees them: elements, readings, layouts, and places one by one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..expressions.axes import Axis, Gather, Label, Labeled, Labels, axis_labels, position_axes, read, spread
from ..recording import DiscreteSite


def element_numbers(site: DiscreteSite, axes: tuple[Axis, ...]) -> Labeled:
    """The number of the element of a site that is read at each place, over the labels that its axes run along."""
    numbers = torch.arange(site.batch_shape.numel(), device=site.support.device).reshape(site.batch_shape)
    return read(numbers, axes)


def both_elements(site: DiscreteSite, a: tuple[Axis, ...], b: tuple[Axis, ...]) -> tuple[Tensor, Tensor, Labels]:
    """The numbers of the elements that two readings of a site read, over the labels that they run along."""
    (first, left), (second, right) = element_numbers(site, a), element_numbers(site, b)
    labels = tuple(dict.fromkeys((*left, *right)))
    where = {label: i for i, label in enumerate(labels)}
    return spread(first, left, where), spread(second, right, where), labels


def same_element(site: DiscreteSite, a: tuple[Axis, ...], b: tuple[Axis, ...]) -> Labeled:
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


def rows_first(tensor: Tensor, layouts: Sequence[Layout]) -> Tensor:
    """A factor ``[starts] + values + (rows,) + places`` of several layouts, or one, which has no rows, with the rows
    first.
    """
    if len(layouts) == 1:
        return tensor.unsqueeze(0)
    moved = tensor.movedim(1 + len(layouts[0].readings), 0)
    return moved.expand(len(layouts), *moved.shape[1:])


@dataclass(frozen=True, eq=False)
class SumOfElements:
    """A factor that reads one element at each place, as ``z[group]`` does, added up to a factor of the elements."""

    layout: Layout
    sizes: tuple[int, ...]
    elements: Tensor

    @staticmethod
    def of(layout: Layout, depth: int) -> SumOfElements | None:
        """The sum of a factor of one site that reads it otherwise than place by place; None for others."""
        if len(layout.readings) != 1 or layout.readings[0].is_aligned:
            return None
        (reading,) = layout.readings
        count, shape = len(layout.sizes), reading.site.batch_shape
        found = spread(*element_numbers(reading.site, reading.axes), {i - count: i for i in range(count)})
        elements = found.expand(layout.sizes).reshape(-1)
        own = Layout((reading.own,), (*[1] * (depth - len(shape)), *shape))
        return SumOfElements(own, layout.sizes, elements)

    def added(self, tensor: Tensor) -> Tensor:
        """The factor of the elements, ``[starts, values] + plates``."""
        flat = tensor.expand(*tensor.shape[:2], *self.sizes).flatten(2)
        total = flat.new_zeros(*flat.shape[:2], torch.Size(self.layout.sizes).numel())
        return total.index_add(2, self.elements, flat).reshape(*flat.shape[:2], *self.layout.sizes)


class Cut:
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


__all__ = [
    "Cut",
    "Layout",
    "Reading",
    "SumOfElements",
    "both_elements",
    "element_numbers",
    "rows_first",
    "same_element",
]
