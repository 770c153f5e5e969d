r"""What a model computes from its latents, kept symbolically.

An :class:`Expression` is one of three things:

- a *polynomial*: a sum of :class:`~.terms.Term`, for which expectations are products of moments;
- *pieces*: polynomials chosen by constant masks, as ``torch.where`` makes them, so that powers and logarithms act on
  each;
- *opaque*: the result of an operation without a rule. It remembers the operation and the latents behind it, so that an
  error can name them.

Rules write log densities in this algebra with ordinary operators, and the methods ``log``, ``sum``, ``log_det`` and so
on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .evaluation import Values, evaluate_term
from .terms import (
    Axis,
    Constant,
    Factor,
    Gather,
    Replay,
    Term,
    Variable,
    as_axis,
    broadcast_shapes,
    fresh_label,
    widened,
)

#: The matrix functions, and the inverse of each.
_INVERSES = {"x": "inverse", "inverse": "x", "gram": "gram_inverse", "gram_inverse": "gram"}
#: The dtypes of an index that are masks.
_MASKS = (torch.bool, torch.uint8)
#: Integer powers up to this are expanded into products.
_LARGEST_EXPANSION = 4


@dataclass(frozen=True)
class Opacity:
    """Why an expression has no expectation: the operation, the latents behind it, and what to write instead."""

    operation: str
    sites: frozenset[str]
    hint: str = ""


class Expression:
    """A tensor-valued function of the latents, with the ``shape``, ``dtype`` and ``device`` of its value."""

    __slots__ = ("cholesky_of", "like", "opacity", "pieces", "shape", "terms")

    def __init__(
        self,
        shape: Sequence[int],
        like: Tensor,
        terms: Sequence[Term] = (),
        *,
        pieces: tuple[tuple[Tensor, Expression], ...] = (),
        opacity: Opacity | None = None,
        cholesky_of: Expression | None = None,
    ) -> None:
        self.shape = torch.Size(shape)
        self.like = like
        self.terms = tuple(terms)
        self.pieces = pieces
        self.opacity = opacity
        self.cholesky_of = cholesky_of

    # Construction.

    @staticmethod
    def constant(tensor: Tensor) -> Expression:
        """A plain tensor; integers and booleans are kept exactly, as floating numbers."""
        labels = tuple(i - tensor.ndim for i in range(tensor.ndim) if tensor.shape[i] != 1)
        squeezed = tensor.reshape([n for n in tensor.shape if n != 1])
        if not tensor.is_floating_point():
            squeezed = squeezed.to(torch.get_default_dtype() if tensor.dtype == torch.bool else torch.float64)
        return Expression(tensor.shape, tensor.new_empty(0), (Term(1.0, (Constant(squeezed, labels),)),))

    @staticmethod
    def latent(
        site: str,
        value: Tensor,
        simplex: bool = False,
        is_point: bool = False,
        lower_cholesky: bool = False,
        is_matrix: bool = False,
        nonnegative: bool = False,
    ) -> Expression:
        """A latent site whose value has the shape, dtype and device of ``value``; what is known of it is as in
        :class:`~.terms.Variable`.
        """
        axes = tuple(None if n == 1 else i - value.ndim for i, n in enumerate(value.shape))
        variable = Variable(
            site, value.shape, simplex, is_point, lower_cholesky, is_matrix, nonnegative=nonnegative or simplex
        )
        return Expression(value.shape, value.new_empty(0), (Term(1.0, (), (Factor(variable, axes),)),))

    @staticmethod
    def derived(name: str, value: Tensor, replay: Replay, parents: frozenset[str]) -> Expression:
        """What the model computed from points by an operation without a rule: a point itself."""
        axes = tuple(None if n == 1 else i - value.ndim for i, n in enumerate(value.shape))
        variable = Variable(name, value.shape, is_point=True, replay=replay, parents=parents)
        return Expression(value.shape, value.new_empty(0), (Term(1.0, (), (Factor(variable, axes),)),))

    @staticmethod
    def opaque(
        shape: Sequence[int], like: Tensor, operation: str, parents: Sequence[Expression], hint: str = ""
    ) -> Expression:
        """The result of an operation that has no rule."""
        first = next((p.opacity for p in parents if p.opacity), None)
        sites = frozenset().union(*(p.sites for p in parents))
        return Expression(shape, like, opacity=first or Opacity(operation, sites, hint))

    def _opaque(self, operation: str, *others: Expression, shape: Sequence[int] | None = None) -> Expression:
        return Expression.opaque(self.shape if shape is None else shape, self.like, operation, (self, *others))

    def _number(self, number: float) -> Expression:
        whole = self.like.is_floating_point() or isinstance(number, bool | int)
        return Expression((), self.like if whole else torch.empty(0, device=self.like.device), (Term(float(number)),))

    def as_dtype_of(self, like: Tensor) -> Expression:
        """The expression with the dtype and device of another tensor."""
        return Expression(
            self.shape,
            like.new_empty(0),
            self.terms,
            pieces=self.pieces,
            opacity=self.opacity,
            cholesky_of=self.cholesky_of,
        )

    def _lift(self, other: Any) -> Expression:
        if isinstance(other, Expression):
            return other
        if isinstance(other, Tensor):
            return Expression.constant(other)
        return self._number(other)

    def _with(
        self, terms: Sequence[Term], shape: Sequence[int] | None = None, like: Tensor | None = None
    ) -> Expression:
        return Expression(self.shape if shape is None else shape, self.like if like is None else like, terms)

    # Facts.

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def sites(self) -> frozenset[str]:
        """The latents that the expression depends on."""
        if self.opacity:
            return self.opacity.sites
        found = {f.variable.site for t in self.terms for f in t.factors}
        return frozenset(found).union(*(p.sites for _, p in self.pieces))

    @property
    def is_constant(self) -> bool:
        return not self.opacity and not self.sites

    def value(self) -> Tensor:
        """The tensor of a constant expression, of its full shape."""
        if not self.is_constant:
            raise ValueError(f"expected a constant; got an expression of {sorted(self.sites)}")
        total: Tensor | None = None
        for term in self.polynomial().terms:
            tensor, labels = term.dense(self.like)
            tensor = _place(tensor, labels, self.ndim)
            total = tensor if total is None else total + tensor
        zero = torch.zeros((), dtype=self.like.dtype, device=self.like.device)
        return widened(zero if total is None else total, self.like).expand(self.shape)

    def polynomial(self) -> Expression:
        """Pieces written as an indicator-weighted sum; anything else as it is."""
        if not self.pieces:
            return self
        terms: list[Term] = []
        for mask, piece in self.pieces:
            ((indicator,),) = (term.constants for term in Expression.constant(mask).terms)
            terms += [term.masked(indicator) for term in piece.polynomial().terms]
        return _collect(self._with(terms))

    def evaluate(self, values: Mapping[str, Tensor]) -> Tensor:
        """The value in float64 at given values of the latents.

        Args:
            values: a tensor of its own shape for each of the ``sites``; a latent that is measured from an origin is
                given as its distance from it.

        Raises:
            ValueError: if the expression is opaque.
        """
        return self._evaluate(Values(values))

    def _evaluate(self, values: Values) -> Tensor:
        if self.opacity:
            raise ValueError(
                f"Expected an expression with a value; got the opaque result of {self.opacity.operation} on "
                f"{sorted(self.sites)}. Write it with operations that have a rule."
            )
        total = torch.zeros(self.shape, dtype=torch.float64, device=self.like.device)
        for mask, piece in self.pieces:
            total = torch.where(mask, piece._evaluate(values), total)
        for term in self.terms:
            total = total + _place(*evaluate_term(term, values), self.ndim)
        return total

    def __repr__(self) -> str:
        kind = "opaque" if self.opacity else "pieces" if self.pieces else f"{len(self.terms)} terms"
        return f"Expression(shape={tuple(self.shape)}, {kind}, of {sorted(self.sites)})"

    # Arithmetic.

    def __add__(self, other: Any) -> Expression:
        other = self._lift(other)
        shape = broadcast_shapes(self.shape, other.shape)
        like = _common_like(self, other)
        if self.opacity or other.opacity:
            return self._opaque("add", other, shape=shape)
        if self.pieces and other.is_constant:
            return self._map_pieces(lambda piece: piece + other, shape)
        if other.pieces and self.is_constant:
            return other._map_pieces(lambda piece: piece + self, shape)
        terms = self.polynomial().terms + other.polynomial().terms
        return _collect(self._with(terms, shape, like))

    __radd__ = __add__

    def __neg__(self) -> Expression:
        return self * -1.0

    def __sub__(self, other: Any) -> Expression:
        return self + -self._lift(other)

    def __rsub__(self, other: Any) -> Expression:
        return self._lift(other) + -self

    def __mul__(self, other: Any) -> Expression:
        other = self._lift(other)
        shape = broadcast_shapes(self.shape, other.shape)
        if self.opacity or other.opacity:
            return self._opaque("mul", other, shape=shape)
        if self.pieces or other.pieces:
            if not other.pieces:
                return self._map_pieces(lambda piece: piece * other, shape)
            if not self.pieces:
                return other._map_pieces(lambda piece: self * piece, shape)
        left, right = self.polynomial().terms, other.polynomial().terms
        terms = [a.times(b) for a in left for b in right]
        return _collect(self._with(terms, shape, _common_like(self, other)))

    def weigh(self, other: Expression) -> Expression:
        """The product, which is 0 where the constant self is 0 even if ``other`` is infinite there: 0 log 0 = 0."""
        product = self * other
        if other.is_finite or not self.is_constant:
            return product
        zero = self._number(0.0).expand(product.shape)
        return Expression.where(self.value() != 0, product, zero).polynomial()

    @property
    def is_finite(self) -> bool:
        """Whether every constant in the expression is finite."""
        return all(t.is_finite for t in self.terms) and all(p.is_finite for _, p in self.pieces)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Expression:
        return self * self._lift(other) ** -1.0

    def __rtruediv__(self, other: Any) -> Expression:
        return self._lift(other) * self**-1.0

    def __pow__(self, exponent: Any) -> Expression:
        if isinstance(exponent, Expression | Tensor):
            exponent = self._lift(exponent)
            if not exponent.is_constant or exponent.shape.numel() != 1:
                return self._opaque("pow", exponent, shape=broadcast_shapes(self.shape, exponent.shape))
            exponent = float(exponent.value())
        if self.opacity:
            return self
        if self.pieces:
            return self._map_pieces(lambda piece: piece**exponent)
        raised = self.terms[0].raised(exponent, self.like) if self._is_monomial else None
        if raised is not None:
            return self._with([raised])
        if self.is_constant:
            return Expression.constant(self.value() ** exponent).expand(self.shape)
        if exponent == 2:
            pairs = [(i, j) for j in range(len(self.terms)) for i in range(j + 1)]
            terms = self.terms
            return _collect(self._with([terms[i].times(terms[j]).scaled(1.0 if i == j else 2.0) for i, j in pairs]))
        if exponent in range(1, _LARGEST_EXPANSION + 1):
            product = self
            for _ in range(int(exponent) - 1):
                product = product * self
            return product
        return self._opaque(f"pow({exponent:g})")

    @property
    def _is_monomial(self) -> bool:
        """One product, with no sum inside: powers and logarithms act on each factor."""
        return len(self.terms) == 1 and not self.terms[0].summed

    def _map_pieces(
        self, function: Callable[[Expression], Expression], shape: Sequence[int] | None = None
    ) -> Expression:
        pieces = tuple((mask, function(piece)) for mask, piece in self.pieces)
        blocked = next((p for _, p in pieces if p.opacity), None)
        shape = pieces[0][1].shape if shape is None else shape
        if blocked is not None:
            return Expression(shape, self.like, opacity=blocked.opacity)
        shape = broadcast_shapes(shape, *(mask.shape for mask, _ in pieces), *(p.shape for _, p in pieces))
        return Expression(shape, self.like, pieces=pieces)

    # Functions.

    def log(self) -> Expression:
        """The elementwise logarithm, of products of powers, of 1 - x, and of constants."""
        if self.opacity:
            return self
        if self.pieces:
            return self._map_pieces(Expression.log)
        if self.is_constant and not (self._is_monomial and self.terms[0].coefficient > 0):
            return Expression.constant(self.value().log()).expand(self.shape)
        complement = self._complement()
        if complement is not None:
            return self._with([complement])
        terms = self.terms[0].log(self.like) if self._is_monomial else None
        return self._opaque("log") if terms is None else _collect(self._with(terms))

    def log1m(self) -> Expression:
        """The elementwise log(1 - x)."""
        return (1.0 - self).log()

    def _complement(self) -> Term | None:
        """c log(1 - x), where the expression is 1 - c x for a single latent x and constants c of zeros and ones."""
        if len(self.terms) != 2:
            return None
        constant, rest = sorted(self.terms, key=lambda t: len(t.factors))
        plain = len(rest.factors) == 1 and rest.factors[0].power == 1 and rest.factors[0].function == "x"
        gates = all(bool(((c.tensor == 0) | (c.tensor == 1)).all()) for c in rest.constants)
        if constant.factors or not plain or not gates or rest.coefficient != -1 or rest.summed:
            return None
        ones, _ = constant.dense(self.like)
        factor = replace(rest.factors[0], function="log1m")
        return Term(1.0, rest.constants, (factor,)) if bool((ones == 1).all()) else None

    # Matrices, over the last two dimensions.

    def log_det(self) -> Expression:
        """The log determinant of a positive definite matrix: of a scaled latent matrix, a constant, or a diagonal."""
        shape, dim = self.shape[:-2], self.shape[-1]
        if self.opacity:
            return Expression(shape, self.like, opacity=self.opacity)
        if self.is_constant:
            return Expression.constant(torch.linalg.slogdet(self.value())[1])
        split = self._split_matrix()
        if split is not None:
            scalar, matrix = split
            logarithm = (scalar ** float(dim)).log()
            if isinstance(matrix, Expression):
                return logarithm + matrix.log_det()
            sign = -1.0 if matrix.function.endswith("inverse") else 1.0
            name = "gram_log_det" if matrix.function.startswith("gram") else "log_det"
            factor = replace(matrix, axes=tuple(_shift_axes(matrix.axes[:-2], 2)), function=name)
            return logarithm + self._with([Term(sign, (), (factor,))], shape)
        entries = self._diagonal()
        if entries is not None:
            return entries.log().sum(-1)
        return self._map_matrices(Expression.log_det) or self._opaque("logdet", shape=shape)

    def inverse(self) -> Expression:
        """The matrix inverse, of what :meth:`log_det` takes."""
        if self.opacity:
            return self
        if self.is_constant:
            inverse, singular = torch.linalg.inv_ex(self.value())  # of what a mask never chooses, perhaps
            return Expression.constant(inverse.masked_fill((singular != 0)[..., None, None], torch.nan))
        split = self._split_matrix()
        if split is not None:
            scalar, matrix = split
            reciprocal = (scalar**-1.0).reshape([*scalar.shape, 1, 1])
            if isinstance(matrix, Expression):
                return reciprocal * matrix.inverse()
            flipped = replace(matrix, function=_INVERSES[matrix.function])
            return reciprocal * self._with([Term(1.0, (), (flipped,))])
        entries = self._diagonal()
        if entries is not None:
            return (entries**-1.0).diag_embed()
        return self._map_matrices(Expression.inverse) or self._opaque("inverse")

    def cholesky(self) -> Expression:
        """The Cholesky factor; only :meth:`gram` can read it."""
        result = self._opaque("cholesky")
        result.cholesky_of = self
        return result

    def gram(self) -> Expression:
        """L Lᵀ."""
        if self.cholesky_of is not None:
            return self.cholesky_of
        split = None if self.opacity else self._split_matrix()
        factor = split[1] if split is not None and isinstance(split[1], Factor) else None
        lower = factor is not None and factor.variable.lower_cholesky and factor.function == "x"
        if split is not None and factor is not None and lower and factor.reads_whole(self.shape[-2:]):
            scalar, _ = split
            squared = (scalar**2.0).reshape([*scalar.shape, 1, 1])
            return squared * self._with([Term(1.0, (), (replace(factor, function="gram"),))])
        entries = None if self.opacity or self.is_constant else self._diagonal()
        if entries is not None:
            return (entries**2.0).diag_embed()
        return self._map_matrices(Expression.gram) or self.matmul(self.transpose(-1, -2))

    def diag_embed(self) -> Expression:
        """A diagonal matrix from the last dimension."""
        dim = self.shape[-1]
        if dim == 1:
            return self.unsqueeze(-1)
        rows = self.unsqueeze(-1).expand((*self.shape, dim))
        return Expression.constant(torch.eye(dim, dtype=torch.bool, device=self.like.device)).weigh(rows)

    def _split_matrix(self) -> tuple[Expression, Factor | Expression] | None:
        """A single term as (scalar, matrix): a scalar of the batch shape, and the one factor that is a whole matrix of
        a latent, or a constant matrix.
        """
        if self.pieces or not self._is_monomial:
            return None
        (term,) = self.terms
        dim, shape = self.shape[-1], self.shape[:-2]
        matrices = [f for f in term.factors if f.function in _INVERSES and f.power == 1 and f.is_whole_matrix(dim)]
        constants = [c for c in term.constants if {-1, -2} <= set(c.labels)]
        if len(matrices) + len(constants) != 1:
            return None
        rest = Term(
            term.coefficient,
            tuple(c for c in term.constants if c not in constants),
            tuple(f for f in term.factors if f not in matrices),
        )
        if {-1, -2} & rest.labels:
            return None
        scalar = self._with([rest.substitute(_shift(rest.labels, 2))], shape)
        if matrices:
            return scalar, matrices[0]
        tensor = _place(constants[0].tensor, constants[0].labels, self.ndim)
        return scalar, Expression.constant(tensor)

    def _diagonal(self) -> Expression | None:
        """The entries of a matrix that is provably diagonal, along the last dimension; None for any other."""
        dim, shape = self.shape[-1], self.shape[:-1]
        if dim == 1:
            return self.squeeze(-1)
        if self.pieces:
            entries = [(mask.expand(self.shape), piece.expand(self.shape)._diagonal()) for mask, piece in self.pieces]
            if any(entry is None for _, entry in entries):
                return None
            pieces = tuple((m.diagonal(dim1=-2, dim2=-1), entry) for m, entry in entries if entry is not None)
            return Expression(shape, self.like, pieces=pieces)
        if not all(any(c.is_diagonal(-2, -1) for c in term.constants) for term in self.terms):
            return None
        merged = [t.substitute({-2: -1}) for t in self.terms]
        return self._with([t.substitute(_shift(t.labels, 1, below=-3)) for t in merged], shape)

    def _map_matrices(self, function: Callable[[Expression], Expression]) -> Expression | None:
        """Map pieces whose masks choose whole matrices; None where they do not, or there are no pieces."""
        if not self.pieces:
            return None
        full = [(mask.expand(self.shape), piece.expand(self.shape)) for mask, piece in self.pieces]
        if not all(torch.equal(mask, mask[..., :1, :1].expand(self.shape)) for mask, _ in full):
            return None
        mapped = [(mask, function(piece)) for mask, piece in full]
        blocked = next((piece.opacity for _, piece in mapped if piece.opacity), None)
        shape = mapped[0][1].shape
        if blocked is not None:
            return Expression(shape, self.like, opacity=blocked)
        kept = mapped[0][1].ndim == self.ndim
        pieces = tuple((mask[..., :1, :1] if kept else mask[..., 0, 0], piece) for mask, piece in mapped)
        return Expression(shape, self.like, pieces=pieces)

    # Sums and products over dimensions.

    def sum(self, dim: int | Sequence[int], keepdim: bool = False) -> Expression:
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
                    term = term.substitute({label: fresh_label()})
                else:
                    term = term.scaled(float(self.shape[d]))
            terms.append(term)
        result = self._with(terms)
        if not keepdim:
            result = result._permuted([i for i in range(self.ndim) if i not in dims])
        return _collect(self._with(result.terms, kept))

    def matmul(self, other: Any) -> Expression:
        """The matrix product, with torch's rules for vectors and batches."""
        left, right = self, self._lift(other)
        if left.ndim == 1 and right.ndim == 1:
            return (left * right).sum(-1)
        if left.ndim == 1:
            return left.unsqueeze(0).matmul(right).squeeze(-2)
        if right.ndim == 1:
            return (left * right).sum(-1)
        return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)

    # Views.

    def _relabelled(self, mapping: dict[int, Axis], shape: Sequence[int]) -> Expression:
        if self.opacity:
            return Expression(shape, self.like, opacity=self.opacity)
        return self._with([t.substitute(mapping) for t in self.terms], shape)

    def _view(
        self, function: Callable[[Expression], Expression], tensor_view: Callable[[Tensor], Tensor]
    ) -> Expression:
        """Apply a view to every piece and to the masks that choose them."""
        pieces = tuple(
            (tensor_view(mask.expand(self.shape)), function(piece.expand(self.shape))) for mask, piece in self.pieces
        )
        return Expression(pieces[0][1].shape, self.like, pieces=pieces)

    def expand(self, shape: Sequence[int]) -> Expression:
        """Broadcast to a larger shape; -1 keeps a size."""
        lead = len(shape) - self.ndim
        sizes = [self.shape[i - lead] if n == -1 else n for i, n in enumerate(shape)]
        kept = self.cholesky_of if torch.Size(sizes[-2:]) == self.shape[-2:] else None
        return Expression(sizes, self.like, self.terms, pieces=self.pieces, opacity=self.opacity, cholesky_of=kept)

    def _permuted(self, order: Sequence[int]) -> Expression:
        """Keep the dimensions of ``order``, in that order."""
        n, m = self.ndim, len(order)
        mapping: dict[int, Axis] = {old - n: new - m for new, old in enumerate(order)}
        return self._relabelled(mapping, [self.shape[i] for i in order])

    def permute(self, order: Sequence[int]) -> Expression:
        """Reorder the dimensions."""
        order = [d % self.ndim for d in order]
        if self.pieces:
            return self._view(lambda e: e.permute(order), lambda t: t.permute(order))
        return self._permuted(order)

    def transpose(self, dim0: int, dim1: int) -> Expression:
        """Swap two dimensions; a number has none to swap."""
        if not self.ndim:
            return self
        order = list(range(self.ndim))
        order[dim0], order[dim1] = order[dim1], order[dim0]
        return self.permute(order)

    def reshape(self, shape: Sequence[int]) -> Expression:
        """Read the elements in order into another shape."""
        shape = list(shape)
        if -1 in shape:
            known = math.prod(n for n in shape if n != -1)
            shape[shape.index(-1)] = self.shape.numel() // max(known, 1)
        if self.pieces:
            return self._view(lambda e: e.reshape(shape), lambda t: t.reshape(shape))
        return self._relabelled(_reshape_axes(self.shape, shape, self.like.device), shape)

    def unsqueeze(self, dim: int) -> Expression:
        """Insert a dimension of size 1."""
        dim = dim % (self.ndim + 1)
        return self.reshape([*self.shape[:dim], 1, *self.shape[dim:]])

    def squeeze(self, dim: int | Sequence[int] | None = None) -> Expression:
        """Drop dimensions of size 1."""
        n = max(self.ndim, 1)
        dims = range(n) if dim is None else [d % n for d in ([dim] if isinstance(dim, int) else dim)]
        return self.reshape([n for i, n in enumerate(self.shape) if not (i in dims and n == 1)])

    def take(self, index: Any) -> Expression:
        """``self[index]``, with torch's indexing by integers, slices, None, Ellipsis and constant tensors."""
        if self.pieces:
            return self._view(lambda e: e.take(index), lambda t: t[index])
        return self._relabelled(*_index_axes(index, self.shape, self.like.device))

    def take_last(self, index: Tensor) -> Expression:
        """Read the last dimension at ``index``, whose shape broadcasts with the other dimensions."""
        index = index.long()
        labels = tuple(i - index.ndim for i, n in enumerate(index.shape) if n != 1)
        flat = index.reshape([n for n in index.shape if n != 1])
        mapping: dict[int, Axis] = {d: d + 1 for d in range(-self.ndim, -1)}
        mapping[-1] = as_axis(flat, labels, self.shape[-1])
        return self.polynomial()._relabelled(mapping, broadcast_shapes(self.shape[:-1], index.shape))

    @property
    def is_normalized(self) -> bool:
        """Whether the last dimension provably sums to one: a latent's simplex, seen whole, or terms that add up to
        one, as those of the stacked 1 - p and p do.
        """
        if self.opacity:
            return False
        if self.is_constant:
            total = self.value().sum(-1)
            return bool(torch.allclose(total, torch.ones_like(total), atol=1e-6, rtol=0.0))
        if self._is_monomial and len(self.terms[0].factors) == 1 and not self.terms[0].constants:
            return self.terms[0].coefficient == 1 and self._is_simplex(self.terms[0].factors[0])
        return self._chooses_simplexes or _is_one(self.sum(-1))

    @property
    def _chooses_simplexes(self) -> bool:
        """Whether the masks of the pieces do not vary along the last dimension, and every piece is normalized."""
        full = [(mask.expand(self.shape), piece.expand(self.shape)) for mask, piece in self.pieces]
        whole = all(torch.equal(mask, mask[..., :1].expand(self.shape)) for mask, _ in full)
        return bool(full) and whole and all(piece.is_normalized for _, piece in full)

    def _is_simplex(self, factor: Factor) -> bool:
        plain = factor.power == 1 and factor.function == "x" and factor.variable.simplex
        return plain and factor.reads_whole(self.shape[-1:])

    def lgamma(self) -> Expression:
        """log Γ, of constants and of point estimates."""
        if not self.is_constant:
            return self._of_point("lgamma", 0)
        return Expression.constant(self.value().lgamma()).expand(self.shape)

    def log_beta(self) -> Expression:
        """Σ log Γ(x_k) − log Γ(Σ x_k) over the last dimension, of constants and of point estimates."""
        if self.is_constant:
            return self.lgamma().sum(-1) - self.sum(-1).lgamma()
        return self._of_point("log_beta", 1)

    def _of_point(self, function: str, event: int) -> Expression:
        """A function of a parameter as it is, that takes away its last ``event`` dimensions."""
        shape = self.shape[: self.ndim - event]
        factors = self.terms[0].factors if self._is_monomial and not self.terms[0].constants else ()
        if len(factors) != 1 or self.terms[0].coefficient != 1:
            return self._opaque("lgamma", shape=shape)
        (factor,) = factors
        whole = not event or factor.reads_whole(self.shape[-event:])
        if not factor.variable.is_point or factor.power != 1 or factor.function != "x" or not whole:
            return self._opaque("lgamma", shape=shape)
        axes = tuple(_shift_axes(factor.axes[: len(factor.axes) - event], event))
        return self._with([Term(1.0, (), (replace(factor, axes=axes, function=function),))], shape)

    def quadratic_form(self, matrix: Expression) -> Expression:
        """xᵀ M x over the last dimension, for a symmetric M."""
        source, middle = self.polynomial(), matrix.polynomial()
        shape = broadcast_shapes(self.shape[:-1], matrix.shape[:-2])
        if source.opacity or middle.opacity:
            return source._opaque("quadratic form", middle, shape=shape)
        parts = [source._with([t]) for t in source.terms]
        total = self._number(0.0).expand(shape)
        for i, right in enumerate(parts):
            image = (middle * right.unsqueeze(-2)).sum(-1)
            for left in parts[: i + 1]:
                total = total + (left * image).sum(-1) * (1.0 if left is right else 2.0)
        return total

    @staticmethod
    def where(condition: Tensor, a: Expression, b: Expression) -> Expression:
        """``a`` where the constant condition holds, ``b`` elsewhere."""
        shape = broadcast_shapes(condition.shape, a.shape, b.shape)
        like = _common_like(a, b)
        blocked = a.opacity or b.opacity
        if blocked:
            return Expression(shape, like, opacity=blocked)
        pieces = []
        for mask, branch in ((condition, a), (~condition, b)):
            inner = branch.pieces or ((torch.ones((), dtype=torch.bool, device=mask.device), branch),)
            pieces += [(mask & m, p.as_dtype_of(like)) for m, p in inner]
        return Expression(shape, like, pieces=tuple(pieces))


def _common_like(a: Expression, b: Expression) -> Tensor:
    """An empty tensor of the dtype that torch promotes the two to."""
    if a.like.dtype == b.like.dtype:
        return a.like
    stand_ins = [e.like if e.shape else e.like.new_zeros(()) for e in (a, b)]
    return a.like.new_empty(0, dtype=torch.result_type(*stand_ins))


def _is_one(expression: Expression) -> bool:
    """Whether the terms of an expression provably add up to one."""
    groups: list[tuple[Term, Tensor]] = []
    for term in expression.terms:
        if term.summed & {label for f in term.factors for label in f.labels}:
            return False
        weight = _place(*Term(term.coefficient, term.constants).dense(expression.like), expression.ndim)
        for i, (known, total) in enumerate(groups):
            if known.same_factors(term):
                groups[i] = (known, total + weight)
                break
        else:
            groups.append((term, weight))
    return all(bool((w - float(not t.factors)).abs().max() <= 1e-6) for t, w in groups) and any(
        not t.factors for t, _ in groups
    )


def _place(tensor: Tensor, labels: tuple[int, ...], ndim: int) -> Tensor:
    """Lay a tensor with ascending negative labels out in ``ndim`` dimensions, of size 1 elsewhere."""
    shape = [1] * ndim
    order = sorted(range(len(labels)), key=lambda i: labels[i])
    for i in order:
        shape[labels[i]] = tensor.shape[i]
    return tensor.permute(order).reshape(shape)


def _collect(expression: Expression) -> Expression:
    """Add the terms without factors into one, so that differences of large constants are taken exactly."""
    constants = [t for t in expression.terms if not t.factors]
    if len(constants) < 2 and not any(t.summed or len(t.constants) > 1 for t in constants):
        return expression
    rest = [t for t in expression.terms if t.factors]
    total: Tensor | None = None
    for term in constants:
        tensor = _place(*term.dense(expression.like), expression.ndim)
        total = tensor if total is None else total + tensor
    assert total is not None
    if rest and not bool(total.any()):
        return expression._with(rest)
    return expression._with([*rest, *Expression.constant(total).terms])


def _shift(labels: frozenset[int], by: int, below: int = 0) -> dict[int, Axis]:
    """Move the negative labels that are at most ``below`` by ``by``."""
    return {label: label + by for label in labels if label < 0 and label <= below}


def _shift_axes(axes: tuple[Axis, ...], by: int) -> list[Axis]:
    return [
        None
        if a is None
        else Gather(a.index, tuple(x + by if x < 0 else x for x in a.labels))
        if isinstance(a, Gather)
        else a + by
        if a < 0
        else a
        for a in axes
    ]


def _reshape_axes(old_shape: Sequence[int], new_shape: Sequence[int], device: torch.device) -> dict[int, Axis]:
    """The axes of the old dimensions in terms of the new ones, run by run of equal numbers of elements."""
    old = [i for i, n in enumerate(old_shape) if n != 1]
    new = [j for j, n in enumerate(new_shape) if n != 1]
    mapping: dict[int, Axis] = {}
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


def _index_axes(index: Any, shape: Sequence[int], device: torch.device) -> tuple[dict[int, Axis], list[int]]:
    """The axes of the source dimensions under ``source[index]``, and the shape of the result."""
    items = _plain_items(index, shape, device)
    tensors = [k for k, item in enumerate(items) if isinstance(item, Tensor) and item.ndim]
    block = list(broadcast_shapes(*(items[k].shape for k in tensors)))
    between = items[tensors[0] : tensors[-1] + 1] if tensors else []
    adjacent = all(isinstance(item, Tensor) for item in between)  # an integer between two index tensors selects first
    out: list[int] = list(block) if tensors and not adjacent else []
    block_at, source = 0, 0
    reads: list[tuple[int, Tensor, int]] = []  # source dimension, places, first result dimension (-1: the block's)
    for k, item in enumerate(items):
        if item is None:
            out.append(1)
            continue
        if isinstance(item, Tensor) and item.ndim == 0:
            reads.append((source, torch.where(item < 0, item + shape[source], item), len(out)))
        elif isinstance(item, Tensor):
            if adjacent and k == tensors[0]:
                block_at = len(out)
                out += block
            reads.append((source, torch.where(item < 0, item + shape[source], item), -1))
        else:
            places = torch.arange(shape[source], device=device)[item]
            reads.append((source, places, len(out)))
            out.append(len(places))
        source += 1
    axes: dict[int, Axis] = {}
    for dim, places, at in reads:
        first = block_at + len(block) - places.ndim if at < 0 else at
        wide = [i for i, n in enumerate(places.shape) if n != 1]
        labels = tuple(first + i - len(out) for i in wide)
        axes[dim - len(shape)] = as_axis(places.reshape([places.shape[i] for i in wide]), labels, shape[dim])
    return axes, out


def _plain_items(index: Any, shape: Sequence[int], device: torch.device) -> list[Any]:
    """An index as one slice, None or integer tensor for each dimension; masks become the places where they hold."""
    items: list[Any] = []
    for item in index if isinstance(index, tuple) else (index,):
        items += _items_of(item, device)
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)
    position = next(k for k, item in enumerate(items) if item is Ellipsis)
    used = sum(item is not None for item in items) - 1
    items[position : position + 1] = [slice(None)] * (len(shape) - used)
    return items


def _items_of(item: Any, device: torch.device) -> list[Any]:
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
        raise NotImplementedError(f"expected integers, slices, None, Ellipsis or tensors as an index; got {item!r}")
    return list(item.nonzero(as_tuple=True)) if item.dtype in _MASKS else [item.long()]


__all__ = ["Expression", "Opacity"]
