"""Discrete factors at some places of a plate, row by row, and with more log factors on what they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .factors import DiscreteFactor
from .layouts import rows_first


class Part(NamedTuple):
    """The factors of a joint at so many places of a plate, from ``start`` on; of size 0: at all places."""

    factors: Sequence[DiscreteFactor]
    dim: int = 0
    start: int = 0
    size: int = 0

    @property
    def sizes(self) -> dict[int, int]:
        """The size of the plate, where that is not the whole."""
        return {self.dim: self.size} if self.size else {}

    def of(self, tensor: Tensor) -> Tensor:
        """The part of probabilities ``[..., plates..., values]``, or of labels or a mask, which end in the plates."""
        tail = 1 if tensor.is_floating_point() else 0
        return tensor.narrow(self.dim - tail, self.start, self.size) if self.size else tensor

    def laid(self, factor: Tensor) -> Tensor:
        """The part of a factor ``[starts, values] + plates``."""
        varies = self.size and factor.shape[self.dim] > 1
        return factor.narrow(self.dim, self.start, self.size) if varies else factor

    def joined(self, whole: Tensor | None, own: Tensor, full: int) -> Tensor:
        """The weights of a factor with those of this part, where the factor varies along the plate, of ``full`` places;
        0: it does not, and they add up.
        """
        if not self.size:
            return own
        if not full:
            return own if whole is None else whole + own
        if whole is None:
            shape = list(own.shape)
            shape[self.dim] = full
            whole = own.new_empty(shape)
        whole.narrow(self.dim, self.start, self.size).copy_(own)
        return whole


def rows_of(factor: DiscreteFactor, tensor: Tensor) -> Sequence[Tensor]:
    """A factor's values or weights, row by row."""
    found: Sequence[Tensor] = rows_first(tensor, factor.layouts).unbind(0)
    return found


def first_readers(factors: Sequence[DiscreteFactor]) -> dict[tuple[int, int], dict[str, int]]:
    """By factor and place among what it reads, the sites that are read there first, in their own density if it reads
    them, and the rows that do.
    """
    places = [
        (row.site != name, i, place, name, number)
        for i, factor in enumerate(factors)
        for number, row in enumerate(factor.rows)
        for place, name in enumerate(row.layout.names)
    ]
    found: dict[tuple[int, int], dict[str, int]] = {}
    seen: set[str] = set()
    for _, i, place, name, number in sorted(places, key=lambda p: p[0]):
        if name not in seen:
            seen.add(name)
            found.setdefault((i, place), {})[name] = number
    return found


def with_more(value: Tensor, factor: DiscreteFactor, place: int, more: Tensor) -> Tensor:
    """The value of a factor with more log factors ``[starts, values, (rows)] + plates`` on what it reads at a place."""
    readings, rows = len(factor.layout.readings), int(len(factor.rows) > 1)
    values = [more.shape[1] if i == place else 1 for i in range(readings)]
    pad = (1,) * (value.ndim - (more.ndim + readings - 1))
    return value + more.reshape(len(more), *values, *more.shape[2 : 2 + rows], *pad, *more.shape[2 + rows :])


__all__ = ["Part", "first_readers", "rows_of", "with_more"]
