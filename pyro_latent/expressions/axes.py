"""Which dimension of a result an operand's dimensions run along: labels, gathers, and what reads through them.

A label is a number, of one of four kinds:

- a *position* (:func:`is_position`): a dimension of the result, counted from the right as in broadcasting, so negative;
- a *summed* label (:func:`is_summed`): a dimension that is summed over, positive, from :func:`fresh_label`;
- a *choice* (:func:`is_choice`): the values of a discrete latent, at most ``HIGHEST_CHOICE``, from
  :func:`fresh_choice`; such labels come before all positions in ascending order;
- ``START``: the leading dimension of moments, which no label of a density has.

Positions and choices are *free* (:func:`is_free`): what a term varies along.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import torch
from opt_einsum import contract_path, get_symbol
from torch import Tensor

from .numbering import fresh_number

#: The label of the leading dimension of moments: the starts that are optimised at once.
START = 0
#: The highest label of a choice, far below all positions.
HIGHEST_CHOICE = -(10**6)

#: A label; which of the kinds it is, the functions below say.
Label = int
#: The labels of the dimensions of a tensor, in order.
Labels = tuple[Label, ...]
#: A tensor and the labels of its dimensions.
Labeled = tuple[Tensor, Labels]


def fresh_label() -> Label:
    """A label for a summed dimension that no other term uses."""
    return fresh_number()


def fresh_choice() -> Label:
    """A label for the values of a discrete latent that no other choice uses."""
    return HIGHEST_CHOICE - fresh_number()


def is_summed(label: Label) -> bool:
    """Whether a label is of a dimension that is summed over."""
    return label > 0


def is_choice(label: Label) -> bool:
    """Whether a label runs along the values of a discrete latent."""
    return label <= HIGHEST_CHOICE


def is_position(label: Label) -> bool:
    """Whether a label is a dimension of the result, counted from the right."""
    return HIGHEST_CHOICE < label < 0


def is_free(label: Label) -> bool:
    """Whether a label is of a dimension that the result has: a position, or a choice."""
    return label < 0


def in_last(label: Label, count: int) -> bool:
    """Whether a label is one of the last ``count`` positions."""
    return -count <= label < 0


def shift(labels: Iterable[Label], by: int, below: int = 0) -> dict[Label, Axis]:
    """The map that moves the positions that are at most ``below`` by ``by``."""
    return {label: label + by for label in labels if is_position(label) and label <= below}


def position_axes(shape: Iterable[int]) -> tuple[Axis, ...]:
    """The axes of an operand of this shape along the last dimensions of the result."""
    sizes = tuple(shape)
    return tuple(None if n == 1 else i - len(sizes) for i, n in enumerate(sizes))


@dataclass(frozen=True, eq=False)
class Gather:
    """An axis read at ``index``, whose dimensions run along ``labels``."""

    index: Tensor
    labels: Labels


#: One dimension of an operand: a label, a gather, or None for a dimension of size 1.
Axis = int | Gather | None


def axis_labels(axis: Axis) -> Labels:
    """The labels that an axis runs along."""
    if axis is None:
        return ()
    return axis.labels if isinstance(axis, Gather) else (axis,)


def same_axis(a: Axis, b: Axis) -> bool:
    """Whether two axes read the same places."""
    if isinstance(a, Gather) and isinstance(b, Gather):
        return a.labels == b.labels and (a.index is b.index or torch.equal(a.index, b.index))
    return a == b if not isinstance(a, Gather) and not isinstance(b, Gather) else False


def same_axes(a: Iterable[Axis], b: Iterable[Axis]) -> bool:
    """Whether two tuples of axes, of one length, read the same places."""
    return all(same_axis(x, y) for x, y in zip(a, b, strict=True))


def unique_labels(axes: Iterable[Axis]) -> Labels:
    """The labels of the axes, in order of first appearance."""
    found: dict[int, None] = {}
    for axis in axes:
        if type(axis) is int:
            found[axis] = None
        else:
            found.update(dict.fromkeys(axis_labels(axis)))
    return tuple(found)


def read(tensor: Tensor, axes: tuple[Axis, ...], lead: int = 0) -> Labeled:
    """Read ``tensor`` through ``axes``: a tensor with one dimension for each label, and those labels.

    The first ``lead`` dimensions of the tensor have no axis and stay in front.
    """
    if not axes:
        return tensor, ()
    if None in axes:
        for i in reversed(range(len(axes))):
            if axes[i] is None:
                tensor = tensor.select(lead + i, 0)
        axes = tuple(axis for axis in axes if axis is not None)
    labels = unique_labels(axes)
    gathers = [i for i, axis in enumerate(axes) if isinstance(axis, Gather)]
    count = sum(len(axis_labels(axis)) for axis in axes)
    if not gathers and len(labels) == len(axes):
        return tensor, labels
    if len(gathers) == 1 and count == len(labels):
        (i,) = gathers
        axis = axes[i]
        assert isinstance(axis, Gather)
        picked = tensor.index_select(lead + i, axis.index.reshape(-1))
        shape = (*tensor.shape[: lead + i], *axis.index.shape, *tensor.shape[lead + i + 1 :])
        return picked.reshape(shape), labels
    where = {label: place for place, label in enumerate(labels)}
    index = []
    for i, axis in enumerate(axes):
        if isinstance(axis, Gather):
            index.append(spread(axis.index, axis.labels, where))
        else:
            assert axis is not None
            size = tensor.shape[lead + i]
            index.append(spread(torch.arange(size, device=tensor.device), (axis,), where))
    index = list(torch.broadcast_tensors(*index))
    return tensor[(slice(None),) * lead + tuple(index)], labels


def spread(tensor: Tensor, labels: Labels, where: Mapping[int, int]) -> Tensor:
    """Lay the dimensions of ``tensor`` at their labels' places, with size 1 elsewhere."""
    order = sorted(range(len(labels)), key=lambda i: where[labels[i]])
    shape = [1] * len(where)
    for i in order:
        shape[where[labels[i]]] = tensor.shape[i]
    return tensor.permute(order).reshape(shape)


def laid(tensor: Tensor, labels: Labels, order: Sequence[Label], ndim: int) -> Tensor:
    """Lay a labelled tensor out: a dimension for each label of ``order``, then ``ndim`` positions, of size 1 where the
    tensor has none.
    """
    return spread(tensor, labels, {label: i for i, label in enumerate((*order, *range(-ndim, 0)))})


def substitute(axis: Axis, mapping: Mapping[Label, Axis]) -> Axis:
    """Replace the labels of an axis by other axes."""
    if axis is None:
        return None
    if isinstance(axis, int):
        return mapping.get(axis, axis)
    index, labels = read(axis.index, tuple(mapping.get(label, label) for label in axis.labels))
    return as_axis(index, labels, None)


def as_axis(index: Tensor, labels: Labels, size: int | None) -> Axis:
    """The axis that reads a dimension of ``size`` at ``index``; a plain label where that is the whole range in
    order.
    """
    if index.ndim == 1 and index.shape[0] == size and torch.equal(index, torch.arange(size, device=index.device)):
        return labels[0]
    return Gather(index, labels)


def axis_key(axis: Axis) -> Any:
    """What tells two axes apart that read different places."""
    if not isinstance(axis, Gather):
        return axis
    return axis.labels, tuple(axis.index.shape), axis.index.cpu().numpy().tobytes()


def widened(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor in the wider of its own dtype and that of another, in which torch computes functions of it."""
    return tensor.to(torch.promote_types(tensor.dtype, like.dtype))


def contract(operands: list[Labeled], out: Labels) -> Tensor:
    """Multiply labelled tensors and sum over every label that is not in ``out``, in the widest of their dtypes."""
    if len(operands) == 1 and operands[0][1] == out:
        return operands[0][0]
    if len({tensor.dtype for tensor, _ in operands}) > 1:
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor, _ in operands))
        operands = [(tensor.to(dtype), labels) for tensor, labels in operands]
    if any(labels == out for _, labels in operands) and all(labels in ((), out) for _, labels in operands):
        return math.prod((tensor for tensor, _ in operands[1:]), start=operands[0][0])  # no sum: einsum would cost more
    numbers: dict[Label, Label] = {}  # fresh labels are other ones at each step of a loop; the order is known by these
    waiting = [(tensor, tuple([numbers.setdefault(x, len(numbers)) for x in labels])) for tensor, labels in operands]
    out = tuple([numbers.setdefault(x, len(numbers)) for x in out])
    for places in _order(tuple([(labels, tensor.shape) for tensor, labels in waiting]), out)[:-1]:
        taken = [waiting.pop(i) for i in sorted(places, reverse=True)]
        needed = {*out, *(label for _, labels in waiting for label in labels)}
        kept = tuple(dict.fromkeys(label for _, labels in taken for label in labels if label in needed))
        waiting.append((_einsum(taken, kept), kept))
    return _einsum(waiting, out)


@lru_cache(maxsize=4096)
def _order(operands: tuple[tuple[Labels, torch.Size], ...], out: Labels) -> Sequence[tuple[int, ...]]:
    """Which operands to contract first, as places among those that are left; torch would search for it at each call."""
    if len(operands) <= 2:
        return ()
    equation = _equation(tuple(labels for labels, _ in operands), out)
    path, _ = contract_path(equation, *(shape for _, shape in operands), shapes=True)
    return path


@lru_cache(maxsize=4096)
def _equation(inputs: tuple[Labels, ...], out: Labels) -> str:
    """The equation of a contraction, in letters."""
    letters = {label: get_symbol(i) for i, label in enumerate(dict.fromkeys(x for labels in inputs for x in labels))}
    *given, wanted = ("".join(letters[label] for label in labels) for labels in (*inputs, out))
    return f"{','.join(given)}->{wanted}"


def _einsum(operands: Sequence[Labeled], out: Labels) -> Tensor:
    """Contract all operands in one call of torch."""
    return torch.einsum(_equation(tuple([labels for _, labels in operands]), out), *[tensor for tensor, _ in operands])
