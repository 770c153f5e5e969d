"""The constants' side of a discrete factor, where it meets the parameters' side in sums only: a matrix of features.

Its rows are the products of constants that parameters are multiplied with (in a Gaussian mixture x_i x_j, x_i and 1),
its columns the places of the factor. A large matrix is never held: it is made anew for each product, by chunks of
columns that stay in the processor's cache.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..expressions.axes import START, Axis, Gather, Label, Labeled, Labels, contract, is_free, is_summed, substitute
from ..expressions.constants import Constant
from ..settings import settings
from .blocks import Means
from .expectation import BlockMoment
from .summands import labels_of

#: The bytes of a chunk.
_CHUNK = 2**23
#: Features that would take more than this share of the limit of memory are made anew for each product.
_SHARE = 8


@dataclass(frozen=True, eq=False)
class FactorTerm:
    """A term of a discrete factor: a product of constants and of moments."""

    constants: list[Labeled]
    moments: tuple[BlockMoment, ...]

    @cached_property
    def sizes(self) -> dict[Label, int]:
        """The sizes of the labels of the constants."""
        return {label: n for t, labels in self.constants for label, n in zip(labels, t.shape, strict=True)}

    @cached_property
    def read(self) -> Labels:
        """The labels of the moments."""
        return labels_of(self.moments)

    @cached_property
    def links(self) -> Labels:
        """The labels that constants and moments are summed over together."""
        return tuple(x for x in self.sizes if is_summed(x) and x in self.read)

    @cached_property
    def symmetric(self) -> bool:
        """Whether both sides are symmetric in two links: x_i x_j with a matrix moment."""
        if len(self.links) != 2 or any(is_summed(x) and x not in self.links for x in self.sizes):  # Σ_n x_ni x_nj
            return False
        i, j = self.links
        matrices = [m for m in self.moments if {i, j} & set(m.labels)]
        first, second = ([(t, c) for t, c in self.constants if x in c] for x in (i, j))
        if len(matrices) != 1 or set(matrices[0].axes[-2:]) != {i, j} or len(first) != 1 or len(second) != 1:
            return False
        (t1, c1), (t2, c2) = first[0], second[0]
        swapped = tuple(j if x == i else x for x in c1)
        return c2 == swapped and t1.shape == t2.shape and (t1 is t2 or t1.data_ptr() == t2.data_ptr())

    @cached_property
    def width(self) -> int:
        """The number of features: of combinations of the links, unordered where they are symmetric."""
        sizes = [self.sizes[label] for label in self.links]
        return sizes[0] * (sizes[0] + 1) // 2 if self.symmetric else math.prod(sizes)

    def moments_at(self, means: Means) -> list[Labeled]:
        """The moments at these mean parameters, with their labels."""
        return [(m.read(means), m.labels) for m in self.moments]

    def value(self, means: Means) -> Labeled:
        """The product, summed over all that is summed over, for each start."""
        operands = [*self.constants, *self.moments_at(means)]
        free = tuple(dict.fromkeys(x for _, labels in operands for x in labels if is_free(x)))
        if not self.moments:
            return contract(operands, free).unsqueeze(0), (START, *free)
        return contract(operands, (START, *free)), (START, *free)

    def at(self, label: Label, number: int) -> FactorTerm:
        """The term at one place along a free label, which is gone: those on its left move up."""
        moved: dict[Label, Axis] = {x: x + 1 for x in (*self.sizes, *self.read) if is_free(x) and x < label}
        mapping = moved | {label: Gather(torch.tensor(number, device=self.constants[0][0].device), ())}
        there = [Constant(*own).substitute(mapping) for own in self.constants]
        moments = tuple(replace(m, axes=tuple(substitute(a, mapping) for a in m.axes)) for m in self.moments)
        return FactorTerm([(c.tensor, c.labels) for c in there], moments)

    def part(self, label: Label, start: int, size: int) -> FactorTerm:
        """The term at some of the places along a label."""
        constants = [
            (t.narrow(labels.index(label), start, size) if label in labels else t, labels)
            for t, labels in self.constants
        ]
        return replace(self, constants=constants)


class Features:
    """The features of a factor, ``[width, places]``.

    Args:
        terms: the terms of the factor; the width is the sum of theirs.
        rows: the labels of the places.
    """

    def __init__(self, terms: Sequence[FactorTerm], rows: Labels) -> None:
        self.terms, self.rows = list(terms), rows
        known = {label: n for term in terms for label, n in term.sizes.items()}
        self.sizes = [known[label] for label in rows]
        self._width, self._like = sum(term.width for term in terms), terms[0].constants[0][0]
        column, places = self._width * self._like.element_size(), math.prod(self.sizes)
        self._axis = max(range(len(rows)), key=self.sizes.__getitem__, default=0)
        longest = self.sizes[self._axis] if rows else 1
        self._step = max(1, _CHUNK * longest // max(1, column * places))
        self._is_large = column * places > settings.memory_limit // _SHARE and self._step < longest

    @cached_property
    def _whole(self) -> Tensor | None:
        """The features at all places, ``[width] + sizes``, where they are held."""
        return None if self._is_large else self._held()

    @staticmethod
    def of(terms: Sequence[FactorTerm]) -> Features | None:
        """The features of these terms; None where a dimension of the factor varies on both sides."""
        rows = tuple(sorted({x for t in terms for x in t.sizes if is_free(x)}))
        columns = {x for t in terms for x in t.read if is_free(x)}
        return None if columns & set(rows) or not columns else Features(terms, rows)

    def part(self, label: Label, start: int, size: int) -> Features:
        """The features at some of the places along a label."""
        if label not in self.rows:
            return self
        found, at = copy.copy(self), self.rows.index(label)
        found.terms = [term.part(label, start, size) for term in self.terms]
        found.sizes = [size if i == at else n for i, n in enumerate(self.sizes)]
        if self._whole is not None:
            found._whole = self._whole.narrow(1 + at, start, size)  # a view: it is flattened at each product
        return found

    def times(self, parameters: Tensor) -> Tensor:
        """Parameters ``[..., width]`` times the features: ``[...] + sizes``."""
        flat = parameters.flatten(0, -2)
        if self._whole is not None:
            return (flat @ self._whole.reshape(self._width, -1)).reshape(*parameters.shape[:-1], *self.sizes)
        found = flat.new_empty(len(flat), *self.sizes)
        for start, size, block in self._blocks():
            part = found.narrow(1 + self._axis, start, size)
            part.copy_((flat @ block).reshape(part.shape))
        return found.reshape(*parameters.shape[:-1], *self.sizes)

    def summed(self, weights: Tensor) -> Tensor:
        """The features summed over the places with weights ``[..., places]``: ``[..., width]``."""
        if self._whole is not None:
            return weights @ self._whole.reshape(self._width, -1).mT
        spread = weights.reshape(-1, *self.sizes)
        parts = (spread.narrow(1 + self._axis, s, n).flatten(1) @ block.mT for s, n, block in self._blocks())
        total = next(parts)
        for part in parts:
            total += part
        return total.reshape(*weights.shape[:-1], -1)

    def _blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """Where each chunk starts along the longest dimension of the places, how long it is, and its columns."""
        for start, size, terms in self._chunks():
            shape = [size if i == self._axis else n for i, n in enumerate(self.sizes)]
            found = self._like.new_empty(self._width, *shape)
            self._write(terms, found)
            yield start, size, found.flatten(1)

    def _chunks(self) -> Iterator[tuple[int, int, list[FactorTerm]]]:
        """Where each chunk starts, how long it is, and its terms."""
        label, longest = self.rows[self._axis], self.sizes[self._axis]
        for start in range(0, longest, self._step):
            size = min(self._step, longest - start)
            yield start, size, [term.part(label, start, size) for term in self.terms]

    def _held(self) -> Tensor:
        """The features at all places, written by chunks too: what is computed on the way is as small as these."""
        found = self._like.new_empty(self._width, *self.sizes)
        if self.rows and self._step < self.sizes[self._axis]:
            for start, size, terms in self._chunks():
                self._write(terms, found.narrow(1 + self._axis, start, size))
        else:
            self._write(self.terms, found)
        return found

    def _write(self, terms: Sequence[FactorTerm], out: Tensor) -> None:
        """Write the features of terms at their places, ``[width, places...]``."""
        at = 0
        for term in terms:
            held = tuple(r for r in self.rows if r in term.sizes)
            wide = [term.sizes.get(r, 1) for r in self.rows]
            block = out.narrow(0, at, term.width)
            at += term.width
            if term.symmetric:
                _write_symmetric(term, self.rows, held, wide, block)
            else:
                block.copy_(contract(term.constants, (*term.links, *held)).reshape(-1, *wide))


def _write_symmetric(term: FactorTerm, rows: Labels, held: Labels, wide: list[int], out: Tensor) -> None:
    """Write x_i x_j for i ≤ j, doubled off the diagonal, for the moments that are read above it only.

    Args:
        term: the term, whose links are i and j.
        rows: the labels of the places.
        held, wide: those that it varies along, and the sizes of all, 1 where it does not vary.
        out: where to, ``[width, places...]``.
    """
    link = term.links[0]
    tensor, labels = next((t, c) for t, c in term.constants if link in c)
    rest = [(t, c) for t, c in term.constants if not set(c) & set(term.links)]
    left = contract([(tensor, labels), *rest], (link, *held)).reshape(-1, *wide).contiguous()
    left = left.expand(-1, *out.shape[1:])
    order = sorted(range(len(labels)), key=lambda i: (labels[i] != link, labels[i]))
    sizes = dict(zip(labels, tensor.shape, strict=True))
    right = tensor.permute(order).reshape(-1, *(sizes.get(r, 1) for r in rows)).contiguous()
    twice = 2 * right
    at = 0
    for i, row in enumerate(left):
        torch.mul(row, right[i], out=out[at])
        torch.mul(row, twice[i + 1 :], out=out[at + 1 : at + len(left) - i])
        at += len(left) - i


__all__ = ["FactorTerm", "Features"]
