"""Sums of constants times moments: what the ELBO is made of once the plates are summed over."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..expressions.axes import (
    START,
    Axis,
    Gather,
    Label,
    Labeled,
    Labels,
    axis_labels,
    contract,
    fresh_label,
    spread,
    substitute,
    unique_labels,
)
from ..expressions.constants import Constant
from ..recording import Recording, ScoredSite
from ..values import is_at_hand
from .blocks import Block, BlockKey, Means
from .expectation import BlockMoment, ExpectedTerm


@dataclass(frozen=True, eq=False)
class Summand:
    """A constant times moments, summed to one number for each start: ``constant`` has ``labels``."""

    constant: Tensor
    labels: Labels
    moments: tuple[BlockMoment, ...]

    @cached_property
    def blocks(self) -> frozenset[BlockKey]:
        return frozenset(m.block.key for m in self.moments)

    def value(self, means: Means, dtype: torch.dtype | None = None) -> Tensor:
        """The sum for each start, computed in ``dtype``, by default that of the mean parameters."""
        if not self.moments:
            return self.constant
        read = [(m.read(means), m.labels) for m in self.moments]
        dtype = dtype or read[0][0].dtype
        return self._contract([(t.to(dtype), labels) for t, labels in ((self.constant, self.labels), *read)], (START,))

    @cached_property
    def _contract(self) -> Callable[[list[Labeled], Labels], Tensor]:
        """How the constant, which comes first, and moments are multiplied."""
        return _contract_finite if any(m.block.is_scalar for m in self.moments) else contract

    def given(self, means: Means, keys: Collection[BlockKey]) -> Summand:
        """The sum with the moments of other blocks than these made constants."""
        own = tuple(m for m in self.moments if m.block.key in keys)
        others = [(m.read(means), m.labels) for m in self.moments if m.block.key not in keys]
        if not others:
            return self
        operands = [(self.constant.to(others[0][0]), self.labels), *others]
        known = {label for _, labels in operands for label in labels}
        labels = tuple(x for x in (START, *labels_of(own)) if x in known)
        return Summand(self._contract(operands, labels), labels, own)

    def with_constant(self, constant: Tensor) -> Summand:
        """The same moments times another constant."""
        return Summand(constant, self.labels, self.moments)

    def linear(self, means: Means) -> list[Summand]:
        """Sums that are linear in the moments, of the same value and slopes at these mean parameters: itself."""
        return [self]

    @property
    def key(self) -> Hashable:
        """What like terms have in common: they are added up."""

        def plain(axis: Axis) -> object:
            return (id(axis.index), axis.labels) if isinstance(axis, Gather) else axis

        return tuple((m.block.label, m.statistic, tuple(plain(a) for a in m.axes)) for m in self.moments), self.labels

    def slope(self, place: int, means: Means) -> Tensor:
        """The gradient in the moment at a place, which is what multiplies it, in the shape of the statistic."""
        moment = self.moments[place]
        others = [(m.read(means), m.labels) for i, m in enumerate(self.moments) if i != place]
        dtype = next(iter(means[moment.block.key].values())).dtype
        operands = [(t.to(dtype), labels) for t, labels in ((self.constant, self.labels), *others)]
        known = {label for _, labels in operands for label in labels}
        labels = tuple(label for label in moment.labels if label in known)
        return moment.unread(self._contract(operands, labels), labels, means)


def _contract_finite(operands: list[Labeled], out: Labels) -> Tensor:
    """The product of a constant, which comes first, and moments. Where the constant is 0 so is the product, also of the
    infinite moments that logarithms of functions of a scalar may have.
    """
    found = contract(operands, out)
    if is_at_hand(found) and bool(found.isfinite().all()):
        return found
    (constant, labels), *moments = operands
    lowered = contract([operands[0], *((torch.where(t.isfinite(), t, 0.0), own) for t, own in moments)], out)
    counted = ((constant != 0).to(constant), labels)
    all_of_them = contract([counted, *((torch.ones_like(t), own) for t, own in moments)], out)
    finite = contract([counted, *((t.isfinite().to(t), own) for t, own in moments)], out)
    return torch.where((finite < all_of_them) | found.isfinite().all(), found, lowered)


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of tensors, of which there is one at least."""
    first, *others = tensors
    return sum(others, first)


def gradients(block: Block, means: Means, summands: Sequence[Summand]) -> dict[str, Tensor]:
    """By statistic, the gradient of a sum of summands in a block's mean parameters; that in a matrix is symmetric."""
    fields = {name: torch.zeros_like(t) for name, t in means[block.key].items()}
    fields |= {name: sum(rest, first) for name, (first, *rest) in slopes(block, means, summands).items()}
    matrices = {name: fields[name] for name in block.symmetric}
    return fields | {name: (matrix + matrix.mT) / 2 for name, matrix in matrices.items()}


@torch.no_grad()
def slopes(block: Block, means: Means, summands: Iterable[Summand]) -> dict[str, list[Tensor]]:
    """By statistic of a block that summands read, the gradient in it of each reading."""
    found: dict[str, list[Tensor]] = {}
    for summand in summands:
        for place, moment in enumerate(summand.moments):
            if moment.block.key == block.key:
                found.setdefault(moment.statistic, []).append(summand.slope(place, means))
    return found


# Compilation.


def weights_of(scored: ScoredSite, scale: Tensor | float, like: Tensor) -> list[Constant]:
    """A scale and the mask of a density, as constants."""
    found = []
    for weight in (scale, scored.mask):
        if weight is None or (not isinstance(weight, Tensor) and weight == 1):
            continue
        tensor = torch.as_tensor(weight, dtype=like.dtype, device=like.device)
        labels = tuple(i - tensor.ndim for i, n in enumerate(tensor.shape) if n != 1)
        found.append(Constant(tensor.reshape([n for n in tensor.shape if n != 1]), labels))
    return found


def summand_of(scored: ScoredSite, term: ExpectedTerm, recording: Recording) -> Summand:
    """A term of a density, summed over the plates; the constants are contracted once, in float64."""
    like = recording.like
    constants = (*term.constants, *weights_of(scored, scored.scale, like))
    constant_labels, moment_labels = {x for c in constants for x in c.labels}, labels_of(term.moments)
    repeats = repeats_of(scored, constant_labels, moment_labels)
    out = tuple(x for x in moment_labels if x in constant_labels)
    coefficient = torch.tensor(term.coefficient * repeats, dtype=torch.float64, device=like.device)
    if not constants:
        return canonical(Summand(coefficient, (), term.moments))
    operands = [(c.tensor.to(coefficient), c.labels) for c in constants]
    return canonical(Summand(contract([(coefficient, ()), *operands], out), out, term.moments))


def repeats_of(scored: ScoredSite, *varying: Collection[Label]) -> float:
    """How many elements of a density are the same, for they are along none of some labels."""
    own = {i - len(scored.shape): n for i, n in enumerate(scored.shape)}
    return math.prod((n for label, n in own.items() if not any(label in labels for labels in varying)), start=1.0)


def labels_of(moments: Sequence[BlockMoment]) -> Labels:
    return unique_labels(axis for m in moments for axis in m.axes)


def canonical(summand: Summand) -> Summand:
    """Moments in a fixed order and labels numbered by first use, so that like terms meet."""
    moments, numbers = _numbered(summand.moments)
    labels = tuple(numbers[x] for x in summand.labels)
    target = tuple(sorted(labels))
    ordered = labels == target
    constant = summand.constant if ordered else summand.constant.permute([labels.index(x) for x in target])
    return Summand(constant, target, moments)


def _numbered(moments: Sequence[BlockMoment]) -> tuple[tuple[BlockMoment, ...], dict[Label, Label]]:
    """Moments in a fixed order with numbered labels, and the numbers."""
    order = list(moments)
    if len(order) > 1:
        order.sort(key=lambda m: (m.block.label, m.statistic, len(m.axes)))
    numbers = {START: START}
    for moment in order:
        for axis in moment.axes:
            for label in axis_labels(axis):
                numbers.setdefault(label, len(numbers))
    if len(numbers) == 1:
        return tuple(order), numbers
    moved = [BlockMoment(m.block, m.statistic, tuple([substitute(a, numbers) for a in m.axes])) for m in order]
    return tuple(moved), numbers


def merged(summands: Iterable[Summand]) -> list[Summand]:
    """Add like terms, in float64."""
    groups: dict[Hashable, Summand] = {}
    for summand in _gathered(summands):
        key = summand.key
        found = groups.get(key)
        groups[key] = summand if found is None else found.with_constant(found.constant + summand.constant)
    return list(groups.values())


def _gathered(summands: Iterable[Summand]) -> list[Summand]:
    """Terms that read a joint normal block here and there, as one sum over all that they read of it."""
    found: list[Summand] = []
    groups: dict[tuple[object, ...], tuple[Summand, list[Tensor], list[Tensor]]] = {}
    for summand in summands:
        joint = [m for m in summand.moments if m.block.joint_normal]
        others = tuple(m for m in summand.moments if not m.block.joint_normal)
        axis = joint[0].axes[0] if len(joint) == 1 and joint[0].axes else None
        if not isinstance(axis, Gather) or set(axis.labels) & set(labels_of(others)):
            found.append(summand)
            continue
        others, numbers = _numbered(others)
        rest = sorted((x for x in summand.labels if x not in axis.labels), key=numbers.__getitem__)
        sizes = dict(zip(summand.labels, summand.constant.shape, strict=True))
        shape = torch.Size(sizes[x] for x in rest)
        where = {label: i for i, label in enumerate((*axis.labels, *rest))}
        constant = spread(summand.constant, summand.labels, where).expand(axis.index.shape + shape)
        labels = tuple(numbers[x] for x in rest)
        key = (joint[0].block.label, joint[0].statistic, Summand(constant, labels, others).key)
        _, places, values = groups.setdefault(key, (Summand(constant, labels, (*joint, *others)), [], []))
        places.append(axis.index.reshape(-1))
        values.append(constant.reshape(-1, *shape))
    for like, places, values in groups.values():
        index, place = torch.cat(places).unique(return_inverse=True)
        each = torch.cat(values)
        total = each.new_zeros(len(index), *each.shape[1:]).index_add_(0, place, each)
        label = fresh_label()
        read = replace(like.moments[0], axes=(Gather(index, (label,)),))
        found.append(canonical(Summand(total, (label, *like.labels), (read, *like.moments[1:]))))
    return found


def cast(summands: Sequence[Summand], dtype: torch.dtype) -> list[Summand]:
    """The summands in another dtype, but for the constant ones."""
    return [replace(s, constant=s.constant.to(dtype)) if s.moments else s for s in summands]
