"""The expected log densities that depend on discrete sites.

Where the data and the parameters meet only in sums, as in mixtures, a factor is a matrix product of features and
parameters, and its sums under given responsibilities are one of responsibilities and features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..expressions.axes import (
    START,
    Label,
    Labeled,
    Labels,
    contract,
    fresh_label,
    is_free,
    laid,
    read,
    substitute,
)
from ..families import Mean
from ..recording import Recording
from ..values import all_finite
from .blocks import Block, BlockKey, Means, starts_of
from .expectation import expect_together
from .features import FactorTerm, Features
from .layouts import Layout, Reading, same_element
from .stacks import Row, Stack
from .summands import Summand, labels_of, sum_of

#: In place of an infinite moment, to see the sign of what multiplies it.
_LARGE = 1e15


@dataclass(frozen=True, eq=False)
class DiscreteFactor:
    """The expected log density of a site, or a part of it, that depends on discrete latents; or of several sites.

    ``rows`` are the site and what is read of each, all by layouts of one kind. ``shape`` is that of the factor: a
    dimension for each of the values that the layout reads, one for the rows where they are several, then its places;
    ``features`` are those of the constants, where the data and the parameters meet only in sums.
    """

    rows: tuple[Row, ...]
    shape: torch.Size
    pieces: tuple[FactorTerm, ...]
    features: Features | None

    @property
    def layout(self) -> Layout:
        """What the first row reads: that of the others differs in the sites."""
        return self.rows[0].layout

    @property
    def layouts(self) -> list[Layout]:
        """What each row reads."""
        return [row.layout for row in self.rows]

    @cached_property
    def names(self) -> frozenset[str]:
        """The discrete sites that any row reads."""
        return frozenset(name for row in self.rows for name in row.layout.names)

    def by_row(self, value: Tensor) -> Tensor:
        """A value with as many rows as there are, whether it varies with them or not."""
        if len(self.rows) == 1:
            return value
        at = 1 + len(self.layout.readings)
        return value.expand(*value.shape[:at], len(self.rows), *value.shape[at + 1 :])

    def row(self, number: int) -> DiscreteFactor:
        """The factor of one row alone."""
        if len(self.rows) == 1:
            return self
        label, at = -1 - len(self.layout.sizes), len(self.layout.readings)
        shape = self.shape[:at] + self.shape[at + 1 :]
        pieces = tuple(p.at(label, number) for p in self.pieces)
        return DiscreteFactor((self.rows[number],), shape, pieces, Features.of(pieces))

    def value(self, means: Means) -> Tensor:
        """The factor for each start, laid out in ``[starts] + shape``, with size 1 where it does not vary. It is
        infinite where a moment is, as E σ⁻² of a scale that no datum keeps from 0.
        """
        found = self._value(means)
        return found if not self._scalars or all_finite(found) else self._with_infinite(means)

    @cached_property
    def _scalars(self) -> dict[tuple[BlockKey, str], None]:
        """The moments by quadrature, each by its block and statistic."""
        return {(m.block.key, m.statistic): None for p in self.pieces for m in p.moments if m.block.is_scalar}

    def _with_infinite(self, means: Means) -> Tensor:
        """The value where moments are infinite: that without them, and for each an infinity of the sign of what
        multiplies it, where that is not 0.
        """
        infinite = [(k, n) for k, n in self._scalars if bool(means[k][n].isinf().any())]
        total = self._value(_with_sizes(means, dict.fromkeys(infinite, 0.0)))
        for one in infinite:
            sizes = dict.fromkeys(infinite, 1.0)
            without, large = (self._value(_with_sizes(means, sizes | {one: size})) for size in (0.0, _LARGE))
            slope = torch.where(large == without, 0.0, large - without)  # both are −∞ where a constant is
            total = total + torch.where(slope == 0, 0.0, slope * torch.inf)
        return total

    def _value(self, means: Means) -> Tensor:
        if self.features is None:
            return sum_of(laid(*p.value(means), (START,), len(self.shape)) for p in self.pieces)
        labels = (START, *self.columns, *self.features.rows)
        return laid(self.features.times(self._parameters(means)), labels, (START,), len(self.shape))

    def is_divisible(self, label: Label) -> bool:
        """Whether no moment runs along a plate, so that each of its places stands alone."""
        return not any(label in p.read for p in self.pieces)

    def varies_along(self, label: Label) -> bool:
        """Whether a constant runs along a plate."""
        return any(label in p.sizes for p in self.pieces)

    @property
    def numbers(self) -> int:
        """How many numbers its value holds, for one start."""
        labels = {x for p in self.pieces for x in (*p.sizes, *p.read)}
        return math.prod(n for i, n in enumerate(self.shape) if i - len(self.shape) in labels)

    def part(self, label: Label, start: int, size: int) -> DiscreteFactor:
        """The factor at some of the places along a plate, which no moment runs along."""
        pieces = tuple(p.part(label, start, size) for p in self.pieces)
        shape = torch.Size(size if i - len(self.shape) == label and n > 1 else n for i, n in enumerate(self.shape))
        features = None if self.features is None else self.features.part(label, start, size)
        return replace(self, shape=shape, pieces=pieces, features=features)

    @cached_property
    def columns(self) -> Labels:
        """The labels that moments run along and features do not."""
        return tuple(sorted({x for p in self.pieces for x in p.read if is_free(x)}))

    def _parameters(self, means: Means) -> Tensor:
        """The moments of every piece side by side, ``[starts] + columns``, then along the rows of the features."""
        sizes = [starts_of(means), *(self.shape[c] for c in self.columns)]
        parts = []
        for piece in self.pieces:
            own = (START, *(c for c in self.columns if c in piece.read))
            if piece.moments:
                part = contract(piece.moments_at(means), (*own, *piece.links))
            else:
                part = piece.constants[0][0].new_ones(1)
            shape = [part.shape[0], *(n if c in own else 1 for c, n in zip(self.columns, sizes[1:], strict=True))]
            part = part.reshape(*shape, *part.shape[len(own) :])
            part = _upper(part) if piece.symmetric else part.flatten(len(shape)) if piece.links else part.unsqueeze(-1)
            parts.append(part.expand(*sizes, part.shape[-1]))
        return torch.cat(parts, -1)

    def summands(self, weights: Tensor) -> list[Summand]:
        """The factor's expectation under fixed weights, as sums over parameters only."""
        squeezed, kept = _squeezed(weights)
        if self.features is None:
            return [_summand(p, squeezed, kept) for p in self.pieces if p.moments]
        columns = tuple(c for c in self.columns if c in kept)
        rows = self.features.rows
        arranged = squeezed.permute([kept.index(x) for x in (START, *columns, *(r for r in rows if r in kept))])
        arranged = arranged.flatten(1 + len(columns)) if rows else arranged.unsqueeze(-1)
        totals = self.features.summed(arranged).split([p.width for p in self.pieces], -1)
        return [_linked(p, t, columns) for p, t in zip(self.pieces, totals, strict=True) if p.moments]


def _with_sizes(means: Means, sizes: Mapping[tuple[BlockKey, str], float]) -> Means:
    """Mean parameters with a size in place of infinity, of either sign, in some statistics."""
    found = dict(means)
    for (key, name), size in sizes.items():
        moment = found[key][name]
        finite = torch.where(moment.isinf(), moment.sign() * size, moment)
        found[key] = Mean(**{**found[key], name: finite})
    return found


def _linked(piece: FactorTerm, total: Tensor, columns: Labels) -> Summand:
    """The sum of a piece whose constants, weighted and summed over rows, are the columns and its width."""
    sizes = [piece.sizes[label] for label in piece.links]
    part = _from_upper(total, sizes[0]) if piece.symmetric else total.reshape(*total.shape[:-1], *sizes)
    gone = [i + 1 for i, c in enumerate(columns) if c not in piece.read]
    part = part.sum(gone) if gone else part
    return Summand(part, (START, *(c for c in columns if c in piece.read), *piece.links), piece.moments)


def _summand(piece: FactorTerm, weights: Tensor, labels: Labels) -> Summand:
    """The sum of a piece over all that its moments do not run along, under weights of these labels."""
    found = dict.fromkeys(x for x in piece.sizes if x in piece.read)
    out = (START, *(x for x in labels if x in piece.read and x not in found), *found)
    return Summand(contract([(weights, labels), *piece.constants], out), out, piece.moments)


def joint_probabilities(factor: DiscreteFactor, probs: Mapping[str, Tensor]) -> Tensor:
    """The probabilities of what a factor reads, ``[starts] + the factor's shape``, of independent elements.

    Args:
        factor: the factor.
        probs: by site, ``[starts, batch..., values]``.
    """
    if len(factor.rows) == 1:
        return _joint_probabilities(factor.layout, [probs[name] for name in factor.layout.names])
    columns = zip(*(x.names for x in factor.layouts), strict=True)
    each = [torch.stack([probs[name] for name in names]) for names in columns]
    found = _joint_probabilities(factor.layout, [t.flatten(0, 1) for t in each])
    return found.unflatten(0, each[0].shape[:2]).movedim(0, 1 + len(each))


def _joint_probabilities(layout: Layout, probs: Sequence[Tensor]) -> Tensor:
    depth = len(layout.sizes)
    ndim = depth + len(layout.readings)
    total: Tensor | None = None
    for i, (reading, own) in enumerate(zip(layout.readings, probs, strict=True)):
        found, labels = read(own, (*reading.axes, i - ndim), lead=1)
        tensor = laid(found, (START, *labels), (START,), ndim)
        for j, other in enumerate(layout.readings[:i]):
            if other.site is reading.site:  # one element has one value
                same, places = same_element(reading.site, other.axes, reading.axes)
                same = laid(same.unsqueeze(0), (START, *places), (START,), ndim)
                tensor = torch.where(same, _equal(j, i, reading, ndim, tensor), tensor)
        total = tensor if total is None else total * tensor
    assert total is not None
    return total


def _equal(i: int, j: int, reading: Reading, ndim: int, like: Tensor) -> Tensor:
    """One where two readings have the same value."""
    size = reading.site.cardinality
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return laid(eye.unsqueeze(0), (START, i - ndim, j - ndim), (START,), ndim)


def _squeezed(weights: Tensor) -> Labeled:
    """Weights ``[starts] + shape`` without dimensions of size 1, but for the first, and the labels of the others."""
    labels = (START, *range(1 - weights.ndim, 0))
    keep = [i for i in range(weights.ndim) if i == 0 or weights.shape[i] != 1]
    return weights.reshape([weights.shape[i] for i in keep]), tuple(labels[i] for i in keep)


def _upper(matrix: Tensor) -> Tensor:
    """The upper triangle of the last two dimensions, row by row."""
    i, j = torch.triu_indices(matrix.shape[-1], matrix.shape[-1], device=matrix.device)
    return matrix[..., i, j]


def _from_upper(entries: Tensor, size: int) -> Tensor:
    """The upper triangular matrix with the given entries, row by row."""
    i, j = torch.triu_indices(size, size, device=entries.device)
    matrix = entries.new_zeros(*entries.shape[:-1], size, size)
    matrix[..., i, j] = entries
    return matrix


def make_factor(stack: Stack, owners: Mapping[str, tuple[Block, int]], recording: Recording) -> DiscreteFactor:
    """The factor of terms that read the same discrete elements, summed over places that no reading runs along."""
    first, layout, like = stack.repeats[0], stack.layout, recording.like
    scored, part = first.scored, first.part
    lead = (len(stack.repeats),) if len(stack.repeats) > 1 else ()
    ndim = len(layout.readings) + len(lead) + len(layout.sizes)
    places = {i - len(scored.shape): n for i, n in enumerate(scored.shape)}
    summed = {label: n for label, n in places.items() if n > 1 and label not in part.places}
    terms, weights = stack.together()
    pieces = []
    for place, term in enumerate(terms):
        alike = [term, *(repeat.part.terms[place] for repeat in stack.repeats[1:])]
        expected = expect_together(alike, owners, scored.name, stack.label)
        rename = {label: i - ndim for i, label in enumerate(part.choices)} | dict(part.places)
        constants = [(c.tensor.to(like), c.labels) for c in (*expected.constants, *weights)]
        present = {x for _, c in constants for x in c} | set(labels_of(expected.moments))
        coefficient = expected.coefficient
        for label, size in summed.items():
            coefficient *= 1 if label in present else size
            rename[label] = fresh_label()
        moments = tuple(replace(m, axes=tuple(substitute(a, rename) for a in m.axes)) for m in expected.moments)
        constants = [(t, tuple(rename.get(x, x) for x in c)) for t, c in constants]
        pieces.append(FactorTerm([(like.new_tensor(coefficient), ()), *constants], moments))
    shape = torch.Size((*(r.site.cardinality for r in layout.readings), *lead, *layout.sizes))
    return DiscreteFactor(tuple(stack.rows), shape, tuple(pieces), Features.of(pieces))
