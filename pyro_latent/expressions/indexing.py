"""Indices and reshapes as maps of axes: where in a tensor each element of a view is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import LatentValueError
from ..values import broadcast_shapes
from .axes import Axis, Gather, Label, as_axis
from .symbolic import Symbolic
from .terms import Choice, check_combinations

#: The dtypes of an index that are masks.
_MASKS = (torch.bool, torch.uint8)


def reshape_axes(old_shape: Sequence[int], new_shape: Sequence[int], device: torch.device) -> dict[Label, Axis]:
    """The axes of the old dimensions in terms of the new ones, run by run of equal numbers of elements."""
    old = [i for i, n in enumerate(old_shape) if n != 1]
    new = [j for j, n in enumerate(new_shape) if n != 1]
    mapping: dict[Label, Axis] = {}
    while old:
        a, b = [old.pop(0)], [new.pop(0)]
        while (size := math.prod(old_shape[i] for i in a)) != (other := math.prod(new_shape[j] for j in b)):
            if size < other:
                a.append(old.pop(0))
            else:
                b.append(new.pop(0))
        labels = tuple(j - len(new_shape) for j in b)
        if len(a) == len(b) == 1:
            mapping[a[0] - len(old_shape)] = labels[0]
            continue
        flat = torch.arange(size, device=device).reshape([new_shape[j] for j in b])
        stride = 1
        for i in reversed(a):
            mapping[i - len(old_shape)] = Gather((flat // stride) % old_shape[i], labels)
            stride *= old_shape[i]
    return mapping


@dataclass(frozen=True)
class Places:
    """An index: whole numbers of a ``shape``, for each combination of the values of ``choices``, whose dimensions come
    first in ``tensor``.
    """

    tensor: Tensor
    shape: torch.Size
    choices: tuple[Choice, ...] = ()
    last: int = -1  # the label of the last dimension
    axes: dict[int, Axis] = field(default_factory=dict)  # by the size of the dimension that they read

    @staticmethod
    def of(index: Symbolic | Tensor, device: torch.device) -> Places:
        if isinstance(index, Tensor):
            return Places(index.long().to(device), index.shape)
        if index.places is None:
            whole = index.unbound()
            check_combinations(whole.choices)
            index.places = Places(whole.table(whole.choices).long(), whole.shape, whole.choices)
        found: Places = index.places
        return found

    def moved(self, first: int) -> Places:
        """The places where their first dimension is the label ``first``."""
        if not self.shape:
            return self
        last = first + len(self.shape) - 1
        labels: dict[Label, Axis] = {i: i + last + 1 for i in range(-len(self.shape), 0)}
        choices = tuple(c.substitute(labels) for c in self.choices)
        return Places(self.tensor, self.shape, choices, last)

    def axis(self, size: int) -> Axis:
        """The axis that reads a dimension of ``size`` here.

        Raises:
            IndexError: if an index is out of range.
        """
        if size not in self.axes:
            self.axes[size] = self._axis(size)
        return self.axes[size]

    def _axis(self, size: int) -> Axis:
        lowest, highest = map(int, self.tensor.aminmax()) if self.tensor.numel() else (0, 0)
        if self.tensor.numel() and not -size <= lowest <= highest < size:
            names = f" of {', '.join(repr(c.site) for c in self.choices)}" if self.choices else ""
            raise IndexError(f"Expected an index{names} in a dimension of size {size}; got {lowest} to {highest}.")
        tensor = self.tensor if lowest >= 0 else torch.where(self.tensor < 0, self.tensor + size, self.tensor)
        labels = (*(c.label for c in self.choices), *range(self.last + 1 - len(self.shape), self.last + 1))
        wide = [i for i, n in enumerate(tensor.shape) if n != 1]
        return as_axis(tensor.reshape([tensor.shape[i] for i in wide]), tuple(labels[i] for i in wide), size)


def index_axes(
    index: object, shape: Sequence[int], device: torch.device
) -> tuple[dict[Label, Axis], list[int], tuple[Choice, ...]]:
    """The axes of the source dimensions under ``source[index]``, the shape of the result, and the choices read at."""
    items = _plain_items(index, shape, device)
    tensors = [k for k, item in enumerate(items) if isinstance(item, Places) and item.shape]
    block = list(broadcast_shapes(*(items[k].shape for k in tensors)))
    between = items[tensors[0] : tensors[-1] + 1] if tensors else []
    adjacent = all(isinstance(item, Places) for item in between)  # an integer between two index tensors selects first
    out: list[int] = list(block) if tensors and not adjacent else []
    block_at, source = 0, 0
    reads: list[tuple[int, Places | None, int]] = []  # source dimension, places (None: all), first result dimension
    for k, item in enumerate(items):
        if item is None:
            out.append(1)
            continue
        if isinstance(item, Places) and not item.shape:
            reads.append((source, item, len(out)))
        elif isinstance(item, Places):
            if adjacent and k == tensors[0]:
                block_at = len(out)
                out += block
            reads.append((source, item, -1))
        elif item == slice(None) and shape[source] != 1:
            reads.append((source, None, len(out)))
            out.append(shape[source])
        else:
            places = torch.arange(shape[source], device=device)[item]
            reads.append((source, Places(places, places.shape), len(out)))
            out.append(len(places))
        source += 1
    axes: dict[Label, Axis] = {}
    choices: tuple[Choice, ...] = ()
    for dim, read, at in reads:
        if read is None:
            axes[dim - len(shape)] = at - len(out)
            continue
        first = block_at + len(block) - len(read.shape) if at < 0 else at
        there = read.moved(first - len(out))
        axes[dim - len(shape)] = there.axis(shape[dim])
        choices += there.choices
    return axes, out, choices


def _plain_items(index: object, shape: Sequence[int], device: torch.device) -> list[Any]:
    """An index as one slice, None or places for each dimension; masks become the places where they hold."""
    items: list[Any] = []
    for item in index if isinstance(index, tuple) else (index,):
        if isinstance(item, Symbolic) and item.like.dtype == torch.bool:
            raise LatentValueError(
                f"Expected a result of a known shape; got an index by a mask of the latents {sorted(item.sites)}. "
                "Write torch.where(mask, x, 0.)."
            )
        if isinstance(item, Symbolic):
            items.append(Places.of(item, device))
        else:
            items += [Places.of(t, device) if isinstance(t, Tensor) else t for t in _items_of(item, device)]
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)
    position = next(k for k, item in enumerate(items) if item is Ellipsis)
    used = sum(item is not None for item in items) - 1
    items[position : position + 1] = [slice(None)] * (len(shape) - used)
    return items


def _items_of(item: object, device: torch.device) -> list[Any]:
    """One item of an index as slices, None, Ellipsis and integer tensors."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return [item]
    if isinstance(item, bool) or (isinstance(item, Tensor) and not item.ndim and item.dtype in _MASKS):
        if not item:
            raise NotImplementedError("a false mask without dimensions leaves nothing")
        return [None]
    if isinstance(item, Integral | list | range | np.ndarray):
        item = torch.as_tensor(item if isinstance(item, np.ndarray) else np.asarray(item), device=device)
    if not isinstance(item, Tensor):
        raise NotImplementedError(f"Expected integers, slices, None, Ellipsis or tensors as an index; got {item!r}")
    return list(item.nonzero(as_tuple=True)) if item.dtype in _MASKS else [item.long()]
