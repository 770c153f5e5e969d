"""Sums of constants times moments: what the ELBO is made of once the plates are summed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..expressions.axes import Axis, Gather, axis_labels, contract, read, unique_labels
from ..families import Mean, Natural
from .blocks import BlockKey
from .expectation import BlockMoment

#: The label of the leading dimension: the starts that are optimised at once.
START = 0


State = dict[BlockKey, Natural]


Means = dict[BlockKey, Mean]


@dataclass(frozen=True, eq=False)
class Summand:
    """A constant times moments, summed to one number for each start: ``constant`` has ``labels``."""

    constant: Tensor
    labels: tuple[int, ...]
    moments: tuple[BlockMoment, ...]

    @property
    def blocks(self) -> frozenset[BlockKey]:
        return frozenset(m.block.key for m in self.moments)

    def value(self, means: Means, dtype: torch.dtype | None = None) -> Tensor:
        """The sum for each start, computed in ``dtype``, by default that of the mean parameters."""
        if not self.moments:
            return self.constant
        read = [read_moment(m, means) for m in self.moments]
        dtype = dtype or read[0][0].dtype
        return contract([(t.to(dtype), labels) for t, labels in ((self.constant, self.labels), *read)], (START,))


def read_moment(moment: BlockMoment, means: Means) -> tuple[Tensor, tuple[int, ...]]:
    tensor, labels = read(means[moment.block.key][moment.statistic], moment.axes, lead=1)
    return tensor, (START, *labels)


def labels_of(moments: Sequence[BlockMoment]) -> tuple[int, ...]:
    return unique_labels(axis for m in moments for axis in m.axes)


def renamed(axis: Axis, mapping: Mapping[int, int]) -> Axis:
    if isinstance(axis, Gather):
        return Gather(axis.index, tuple(mapping.get(x, x) for x in axis.labels))
    return axis if axis is None else mapping.get(axis, axis)


def canonical(summand: Summand) -> Summand:
    """Moments in a fixed order and labels numbered by first use, so that like terms meet."""
    order = sorted(summand.moments, key=lambda m: (str(m.block.key), m.statistic, len(m.axes)))
    numbers = {START: START}
    for moment in order:
        for axis in moment.axes:
            for label in axis_labels(axis):
                numbers.setdefault(label, len(numbers))
    moments = tuple(replace(m, axes=tuple(renamed(a, numbers) for a in m.axes)) for m in order)
    labels = tuple(numbers[x] for x in summand.labels)
    target = tuple(sorted(labels))
    constant = summand.constant.permute([labels.index(x) for x in target]) if labels else summand.constant
    return Summand(constant, target, moments)


def _key(summand: Summand) -> tuple[object, ...]:
    def plain(axis: Axis) -> object:
        return (id(axis.index), axis.labels) if isinstance(axis, Gather) else axis

    moments = tuple((m.block.key, m.statistic, tuple(plain(a) for a in m.axes)) for m in summand.moments)
    return (moments, summand.labels)


def merged(summands: list[Summand]) -> list[Summand]:
    """Add like terms, in float64."""
    groups: dict[tuple[object, ...], Summand] = {}
    for summand in summands:
        key = _key(summand)
        found = groups.get(key)
        groups[key] = summand if found is None else replace(found, constant=found.constant + summand.constant)
    return list(groups.values())


def cast(summands: Sequence[Summand], dtype: torch.dtype) -> list[Summand]:
    """The summands in another dtype, but for the constant ones."""
    return [replace(s, constant=s.constant.to(dtype)) if s.moments else s for s in summands]


def total_of(summands: Sequence[Summand], means: Means) -> Tensor:
    """The sum of summands, for each start."""
    total = summands[0].value(means)
    for summand in summands[1:]:
        total = total + summand.value(means)
    return total
