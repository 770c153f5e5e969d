"""The expected log densities that depend on discrete sites.

Where the data and the parameters meet only in sums, as in mixtures, a factor is a matrix product of features and
parameters, and its sums under given responsibilities are one of responsibilities and features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..expressions.axes import (
    START,
    Labelled,
    Labels,
    axis_labels,
    contract,
    fresh_label,
    is_free,
    is_summed,
    read,
    spread,
    substitute,
)
from ..recording import DiscreteSite, Recording, ScoredSite
from .blocks import Block, Means
from .densities import DensityPart
from .elimination import relative_scale
from .expectation import BlockMoment, expect
from .joints import Layout, Reading, same_element
from .summands import Summand, labels_of, weights_of


class FactorTerm(NamedTuple):
    """A term of a discrete factor: its constants and moments, and the labels that link the two sides."""

    constants: list[Labelled]
    moments: tuple[BlockMoment, ...]
    links: Labels
    symmetric: bool


@dataclass(frozen=True, eq=False)
class DiscreteFactor:
    """The expected log density of a site, or a part of it, that depends on discrete latents.

    ``shape`` is that of the factor: a dimension for each of the values that ``layout`` reads, then its places;
    ``features`` holds, when the data and the parameters meet only in sums, one row for each link and one column for
    each element along ``rows``.
    """

    site: str
    layout: Layout
    shape: torch.Size
    pieces: tuple[FactorTerm, ...]
    rows: Labels
    features: Tensor | None

    def value(self, means: Means) -> Tensor:
        """The factor for each start, laid out in ``[starts] + shape``, with size 1 where it does not vary."""
        if self.features is None:
            parts = [place(*product_of(p, means), len(self.shape)) for p in self.pieces]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            return total
        parameters, labels = self._parameters(means)
        product = parameters.flatten(0, -2) @ self.features
        sizes = [self.shape[label] for label in self.rows]
        return place(product.reshape(*parameters.shape[:-1], *sizes), (*labels, *self.rows), len(self.shape))

    def _parameters(self, means: Means) -> Labelled:
        """The moments of every piece side by side: the last dimension runs along the rows of the features."""
        columns = tuple(sorted({x for p in self.pieces for x in labels_of(p.moments) if is_free(x)}))
        sizes = [self.shape[c] for c in columns]
        starts = next(iter(means.values())).__iter__()
        first = next(iter(means.values()))[next(starts)]
        parts = []
        for piece in self.pieces:
            out = (START, *(c for c in columns if c in labels_of(piece.moments)), *piece.links)
            part = (
                contract([(m.read(means), m.labels) for m in piece.moments], out)
                if piece.moments
                else first.new_ones(1)
            )
            shape = [part.shape[0]] + [n if c in out else 1 for c, n in zip(columns, sizes, strict=True)]
            tail = part.shape[len(out) - len(piece.links) :] if piece.moments else ()
            part = part.reshape(*shape, *tail)
            part = _upper(part) if piece.symmetric else part.flatten(len(shape)) if piece.links else part.unsqueeze(-1)
            parts.append(part.expand(first.shape[0], *sizes, part.shape[-1]))
        return torch.cat(parts, -1), (START, *columns)

    def summands(self, weights: Tensor) -> list[Summand]:
        """The factor's expectation under fixed weights, as sums over parameters only."""
        if self.features is None:
            return [self._summand(p, weights) for p in self.pieces if p.moments]
        columns = tuple(sorted({x for p in self.pieces for x in labels_of(p.moments) if is_free(x)}))
        labels = (START, *(i - len(self.shape) for i in range(len(self.shape))))
        squeezed, kept = _squeeze(weights, labels)
        order = (START, *(c for c in columns if c in kept), *(r for r in self.rows if r in kept))
        arranged = squeezed.permute([kept.index(x) for x in order])
        lead = 1 + sum(c in kept for c in columns)
        rows = arranged.flatten(lead) if self.rows else arranged.unsqueeze(-1)
        totals = rows @ self.features.transpose(0, 1)
        found = []
        at = 0
        for piece in self.pieces:
            count = self._width(piece)
            part = totals[..., at : at + count]
            at += count
            if piece.moments:
                found.append(self._columns(piece, part, tuple(c for c in columns if c in kept)))
        return found

    def _columns(self, piece: FactorTerm, part: Tensor, columns: Labels) -> Summand:
        if piece.symmetric:
            size = round(((8 * part.shape[-1] + 1) ** 0.5 - 1) / 2)
            part = _from_upper(part, size)
        else:
            part = part.reshape(*part.shape[:-1], *self._link_sizes(piece))
        own = set(labels_of(piece.moments))
        gone = [i + 1 for i, c in enumerate(columns) if c not in own]
        part = part.sum(gone) if gone else part
        return Summand(part, (START, *(c for c in columns if c in own), *piece.links), piece.moments)

    def _link_sizes(self, piece: FactorTerm) -> list[int]:
        sizes = {label: n for t, labels in piece.constants for label, n in zip(labels, t.shape, strict=True)}
        return [sizes[label] for label in piece.links]

    def _width(self, piece: FactorTerm) -> int:
        sizes = self._link_sizes(piece)
        if piece.symmetric:
            return sizes[0] * (sizes[0] + 1) // 2
        width = 1
        for n in sizes:
            width *= n
        return width

    def _summand(self, piece: FactorTerm, weights: Tensor) -> Summand:
        labels = (START, *(i - len(self.shape) for i in range(len(self.shape))))
        squeezed, kept = _squeeze(weights, labels)
        own = set(labels_of(piece.moments))
        found = dict.fromkeys(x for _, c in piece.constants for x in c if x in own)
        out = (START, *(x for x in kept if x in own and x != START and x not in found), *found)
        return Summand(contract([(squeezed, kept), *piece.constants], out), out, piece.moments)


def place(tensor: Tensor, labels: Labels, ndim: int) -> Tensor:
    """Lay a labelled tensor out in ``[starts] + ndim`` dimensions, of size 1 where it has no label."""
    return spread(tensor, labels, {START: START} | {i - ndim: 1 + i for i in range(ndim)})


def joint_probabilities(layout: Layout, probs: Mapping[str, Tensor]) -> Tensor:
    """The probabilities of what a factor reads, ``[starts] + the factor's shape``, of independent elements.

    Args:
        layout: the factor's.
        probs: by site, ``[starts, batch..., values]``.
    """
    depth = len(layout.sizes)
    ndim = depth + len(layout.readings)
    total: Tensor | None = None
    for i, reading in enumerate(layout.readings):
        found, labels = read(probs[reading.site.name], (*reading.axes, i - ndim), lead=1)
        tensor = place(found, (START, *labels), ndim)
        for j, other in enumerate(layout.readings[:i]):
            if other.site is reading.site:  # one element has one value
                same, places = same_element(reading.site, other.axes, reading.axes)
                same = place(same.unsqueeze(0), (START, *places), ndim)
                tensor = torch.where(same, _equal(j, i, reading, ndim, tensor), tensor)
        total = tensor if total is None else total * tensor
    assert total is not None
    return total


def _equal(i: int, j: int, reading: Reading, ndim: int, like: Tensor) -> Tensor:
    """One where two readings have the same value."""
    size = reading.site.cardinality
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return place(eye.unsqueeze(0), (START, i - ndim, j - ndim), ndim)


def over_places(site: DiscreteSite, probs: Tensor, nesting: int) -> Tensor:
    """Probabilities ``[starts, batch..., values]`` as a factor of the site: ``[starts, values] + plates``."""
    batch = site.batch_shape
    moved = probs.expand(*probs.shape[:1], *batch, site.cardinality).movedim(-1, 1)
    return moved.reshape(probs.shape[0], site.cardinality, *[1] * (nesting - len(batch)), *batch)


def _squeeze(tensor: Tensor, labels: Labels) -> Labelled:
    """Drop the dimensions of size 1, but for the first."""
    keep = [i for i in range(tensor.ndim) if i == 0 or tensor.shape[i] != 1]
    return tensor.reshape([tensor.shape[i] for i in keep]), tuple(labels[i] for i in keep)


def product_of(piece: FactorTerm, means: Means) -> Labelled:
    operands = [*piece.constants, *((m.read(means), m.labels) for m in piece.moments)]
    labels = dict.fromkeys(x for _, c in operands for x in c if not is_summed(x))
    out = (START, *(x for x in labels if x != START))
    if not piece.moments:
        out = out[1:]
        tensor = contract(operands, out)
        return tensor.unsqueeze(0), (START, *out)
    return contract(operands, out), out


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


def make_factor(
    scored: ScoredSite, part: DensityPart, owners: Mapping[str, tuple[Block, int]], recording: Recording
) -> DiscreteFactor:
    """The factor of terms that read the same discrete elements, summed over places that no reading runs along."""
    layout, ndim, like = part.layout, len(part.layout.readings) + len(part.layout.sizes), recording.like
    weights = weights_of(scored, relative_scale(scored.scale, layout.innermost(scored.name).scale), like)
    places = {i - len(scored.shape): n for i, n in enumerate(scored.shape)}
    summed = {label: n for label, n in places.items() if n > 1 and label not in part.places}
    pieces = []
    for term in part.terms:
        expected = expect(term, owners, scored.name)
        rename = {label: i - ndim for i, label in enumerate(part.choices)} | dict(part.places)
        constants = [(c.tensor.to(like), c.labels) for c in (*expected.constants, *weights)]
        present = {x for _, c in constants for x in c} | set(labels_of(expected.moments))
        coefficient = expected.coefficient
        for label, size in summed.items():
            coefficient *= 1 if label in present else size
            rename[label] = fresh_label()
        moments = tuple(replace(m, axes=tuple(substitute(a, rename) for a in m.axes)) for m in expected.moments)
        constants = [(t, tuple(rename.get(x, x) for x in c)) for t, c in constants]
        pieces.append(make_factor_term(like.new_tensor(coefficient), constants, moments))
    rows, features = features_of(pieces)
    shape = torch.Size((*(r.site.cardinality for r in layout.readings), *layout.sizes))
    return DiscreteFactor(scored.name, layout, shape, tuple(pieces), rows, features)


def make_factor_term(
    coefficient: Tensor, constants: Sequence[Labelled], moments: tuple[BlockMoment, ...]
) -> FactorTerm:
    """A term of these constants, the coefficient first among them, and moments."""
    constants = [(coefficient, ()), *constants]
    inner = dict.fromkeys(x for _, c in constants for x in c if is_summed(x))
    own = set(labels_of(moments))
    links = tuple(x for x in inner if x in own)
    return FactorTerm(constants, moments, links, _is_symmetric(constants, moments, links))


def _is_symmetric(constants: list[Labelled], moments: tuple[BlockMoment, ...], links: Labels) -> bool:
    """Whether both sides are symmetric in two links: x_i x_j with a matrix moment."""
    if len(links) != 2:
        return False
    matrices = [m for m in moments if set(links) & {x for a in m.axes for x in axis_labels(a)}]
    if len(matrices) != 1 or set(matrices[0].axes[-2:]) != set(links):
        return False
    first = [(t, c) for t, c in constants if links[0] in c]
    second = [(t, c) for t, c in constants if links[1] in c]
    if len(first) != 1 or len(second) != 1:
        return False
    (t1, c1), (t2, c2) = first[0], second[0]
    swapped = tuple(links[1] if x == links[0] else x for x in c1)
    return c2 == swapped and t1.shape == t2.shape and (t1 is t2 or t1.data_ptr() == t2.data_ptr())


def features_of(pieces: list[FactorTerm]) -> tuple[Labels, Tensor | None]:
    """The constants' side as a matrix [links, rows], where no dimension of the factor varies on both sides."""
    rows = tuple(sorted({x for p in pieces for _, c in p.constants for x in c if is_free(x)}))
    columns = {x for p in pieces for x in labels_of(p.moments) if is_free(x)}
    if columns & set(rows) or not columns:
        return rows, None
    sizes = {x: n for p in pieces for t, c in p.constants for x, n in zip(c, t.shape, strict=True)}
    blocks = []
    for piece in pieces:
        own = {x for _, c in piece.constants for x in c}
        held = tuple(r for r in rows if r in own)
        symmetric = piece.symmetric
        block = _symmetric_features(piece, held) if symmetric else contract(piece.constants, (*piece.links, *held))
        block = block.reshape(-1, *(sizes[r] if r in own else 1 for r in rows))
        blocks.append(block.expand(-1, *(sizes[r] for r in rows)).reshape(len(block), -1))
    return rows, torch.cat(blocks)


def _symmetric_features(piece: FactorTerm, held: Labels) -> Tensor:
    """x_i x_j for i ≤ j, doubled off the diagonal, for the moments that are read above it only."""
    first = next((t, c) for t, c in piece.constants if piece.links[0] in c)
    rest = [(t, c) for t, c in piece.constants if not set(c) & set(piece.links)]
    tensor = first[0].movedim(first[1].index(piece.links[0]), 0)
    labels = tuple(x for x in first[1] if x != piece.links[0])
    i, j = torch.triu_indices(len(tensor), len(tensor), device=tensor.device)
    twice = torch.where(i == j, 1.0, 2.0).to(tensor.dtype)
    link = piece.links[0]
    return contract([(twice, (link,)), (tensor[i] * tensor[j], (link, *labels)), *rest], (link, *held))
