"""Views, indexing, and sums along the dimensions of expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from ..errors import LatentValueError
from ..values import broadcast_shapes
from .arithmetic import Arithmetic, collect
from .axes import Axis, Label, fresh_label, is_choice
from .constants import Constant
from .indexing import Places, index_axes, reshape_axes
from .terms import Choice, Term


class Dimensions(Arithmetic):
    """Expressions whose dimensions are moved, read at places, joined and summed over, as torch does."""

    __slots__ = ()

    def _relabeled(self, mapping: dict[Label, Axis], shape: Sequence[int], choices: Sequence[Choice] = ()) -> Self:
        """The view through other axes, which may read at the values of ``choices``."""
        if self.opacity:
            return type(self)(shape, self.like, opacity=self.opacity)
        terms = [t.substitute(mapping) for t in self.terms]
        if not choices:
            return self._with(terms, shape)
        read = next((c for t in terms for c in t.choices if any(map(is_choice, c.labels))), None)
        if read is not None:
            raise LatentValueError(
                f"Expected constants as the index of the discrete latent {read.site!r}; got the value of a discrete "
                "latent, which says at random which element is read. Write torch.where(index == 0, z[0], z[1])."
            )
        return self._with([Term(t.coefficient, t.constants, t.factors, (*t.choices, *choices)) for t in terms], shape)

    def _view(self, function: Callable[[Self], Self]) -> Self:
        """Apply a view to every piece and to the masks that choose them."""
        pieces = tuple(
            (function(mask.expand(self.shape)), function(piece.expand(self.shape))) for mask, piece in self.pieces
        )
        return type(self)(pieces[0][1].shape, self.like, pieces=pieces)

    def _permuted(self, order: Sequence[int]) -> Self:
        """Keep the dimensions of ``order``, in that order."""
        n, m = self.ndim, len(order)
        mapping: dict[Label, Axis] = {old - n: new - m for new, old in enumerate(order)}
        return self._relabeled(mapping, [self.shape[i] for i in order])

    def permute(self, order: Sequence[int]) -> Self:
        """Reorder the dimensions."""
        order = [d % self.ndim for d in order]
        if self.pieces:
            return self._view(lambda e: e.permute(order))
        return self._permuted(order)

    def transpose(self, dim0: int, dim1: int) -> Self:
        """Swap two dimensions; a number has none to swap."""
        if not self.ndim:
            return self
        order = list(range(self.ndim))
        order[dim0], order[dim1] = order[dim1], order[dim0]
        return self.permute(order)

    def reshape(self, shape: Sequence[int]) -> Self:
        """Read the elements in order into another shape."""
        shape = list(shape)
        if -1 in shape:
            known = math.prod(n for n in shape if n != -1)
            shape[shape.index(-1)] = self.shape.numel() // max(known, 1)
        if self.pieces:
            return self._view(lambda e: e.reshape(shape))
        return self._relabeled(reshape_axes(self.shape, shape, self.like.device), shape)

    def unsqueeze(self, dim: int) -> Self:
        """Insert a dimension of size 1."""
        dim = dim % (self.ndim + 1)
        return self.reshape([*self.shape[:dim], 1, *self.shape[dim:]])

    def squeeze(self, dim: int | Sequence[int] | None = None) -> Self:
        """Drop dimensions of size 1."""
        n = max(self.ndim, 1)
        dims = range(n) if dim is None else [d % n for d in ([dim] if isinstance(dim, int) else dim)]
        return self.reshape([n for i, n in enumerate(self.shape) if not (i in dims and n == 1)])

    def take(self, index: object) -> Self:
        """``self[index]``, with torch's indexing by integers, slices, None, Ellipsis, constant tensors and tables."""
        if self.pieces:
            return self._view(lambda e: e.take(index))
        return self._relabeled(*index_axes(index, self.shape, self.like.device))

    def take_last(self, index: Self | Tensor) -> Self:
        """Read the last dimension at ``index``, whose shape broadcasts with the other dimensions."""
        places = Places.of(index, self.like.device)
        mapping: dict[Label, Axis] = {d: d + 1 for d in range(-self.ndim, -1)}
        mapping[-1] = places.axis(self.shape[-1])
        shape = broadcast_shapes(self.shape[:-1], places.shape)
        return self.polynomial()._relabeled(mapping, shape, places.choices)

    def sum(self, dim: int | Sequence[int], keepdim: bool = False) -> Self:
        """The sum over dimensions."""
        dims = sorted({d % self.ndim for d in ([dim] if isinstance(dim, int) else dim)}, reverse=True)
        kept = [1 if keepdim and i in dims else n for i, n in enumerate(self.shape) if keepdim or i not in dims]
        source = self.polynomial()
        if source.opacity:
            return source._opaque("sum", shape=kept)
        terms = []
        for term in source.terms:
            for d in dims:
                label = d - self.ndim
                if label in term.labels:
                    term = _sized(term, label, self.shape[d], self.like).substitute({label: fresh_label()})
                else:
                    term = term.scaled(float(self.shape[d]))
            terms.append(term)
        result = self._with(terms)
        if not keepdim:
            result = result._permuted([i for i in range(self.ndim) if i not in dims])
        return collect(self._with(result.terms, kept))

    def matmul(self, other: object) -> Self:
        """The matrix product, with torch's rules for vectors and batches."""
        left, right = self, self._lift(other)
        if left.ndim == 1 and right.ndim == 1:
            return (left * right).sum(-1)
        if left.ndim == 1:
            return left.unsqueeze(0).matmul(right).squeeze(-2)
        if right.ndim == 1:
            return (left * right).sum(-1)
        return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)


def _sized(term: Term, label: Label, size: int, like: Tensor) -> Term:
    """The term with an operand along a label that its choices alone run along, so that its size is known."""
    if any(label in c.labels for c in term.constants) or any(label in f.labels for f in term.factors):
        return term
    ones = torch.ones(size, dtype=like.dtype, device=like.device)
    return replace(term, constants=(*term.constants, Constant(ones, (label,))))
