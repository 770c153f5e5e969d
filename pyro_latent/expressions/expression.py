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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .terms import (
    Axis,
    Constant,
    Factor,
    Gather,
    Replay,
    Term,
    Variable,
    as_axis,
    axis_labels,
    broadcast_shapes,
    fresh_label,
)

#: The matrix functions, and the inverse of each.
_INVERSES = {"x": "inverse", "inverse": "x", "gram": "gram_inverse", "gram_inverse": "gram"}
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
        """A plain tensor."""
        labels = tuple(i - tensor.ndim for i in range(tensor.ndim) if tensor.shape[i] != 1)
        squeezed = tensor.reshape([n for n in tensor.shape if n != 1])
        return Expression(tensor.shape, tensor.new_empty(0), (Term(1.0, (Constant(squeezed, labels),)),))

    @staticmethod
    def latent(
        site: str,
        value: Tensor,
        simplex: bool = False,
        is_point: bool = False,
        lower_cholesky: bool = False,
        is_matrix: bool = False,
    ) -> Expression:
        """A latent site whose value has the shape, dtype and device of ``value``."""
        axes = tuple(None if n == 1 else i - value.ndim for i, n in enumerate(value.shape))
        factor = Factor(Variable(site, value.shape, simplex, is_point, lower_cholesky, is_matrix), axes)
        return Expression(value.shape, value.new_empty(0), (Term(1.0, (), (factor,)),))

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
        return Expression((), self.like, (Term(float(number)),))

    def _lift(self, other: Any) -> Expression:
        if isinstance(other, Expression):
            return other
        if isinstance(other, Tensor):
            return Expression.constant(other)
        return self._number(other)

    def _with(self, terms: Sequence[Term], shape: Sequence[int] | None = None) -> Expression:
        return Expression(self.shape if shape is None else shape, self.like, terms)

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
        return (zero if total is None else total).expand(self.shape)

    def polynomial(self) -> Expression:
        """Pieces written as an indicator-weighted sum; anything else as it is."""
        if not self.pieces:
            return self
        total = self._number(0.0)
        for mask, piece in self.pieces:
            total = total + Expression.constant(mask.to(self.like.dtype)) * piece
        return total.expand(self.shape)

    def __repr__(self) -> str:
        kind = "opaque" if self.opacity else "pieces" if self.pieces else f"{len(self.terms)} terms"
        return f"Expression(shape={tuple(self.shape)}, {kind}, of {sorted(self.sites)})"

    # Arithmetic.

    def __add__(self, other: Any) -> Expression:
        other = self._lift(other)
        shape = broadcast_shapes(self.shape, other.shape)
        if self.opacity or other.opacity:
            return self._opaque("add", other, shape=shape)
        if self.pieces and other.is_constant:
            return self._map_pieces(lambda piece: piece + other, shape)
        if other.pieces and self.is_constant:
            return other._map_pieces(lambda piece: piece + self, shape)
        terms = self.polynomial().terms + other.polynomial().terms
        return _collect(self._with(terms, shape))

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
        return _collect(self._with([a.times(b) for a in left for b in right], shape))

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
        if self._is_monomial and (self.terms[0].coefficient > 0 or float(exponent).is_integer()):
            (term,) = self.terms
            raised = term.elementwise(lambda f: replace(f, power=f.power * exponent), lambda c: c**exponent)
            return self._with([replace(raised, coefficient=term.coefficient**exponent)])
        if self.is_constant:
            return Expression.constant(self.value() ** exponent).expand(self.shape)
        if exponent == 2:
            pairs = [(a, b) for i, b in enumerate(self.terms) for a in self.terms[: i + 1]]
            return _collect(self._with([a.times(b).scaled(1.0 if a is b else 2.0) for a, b in pairs]))
        if exponent in range(1, _LARGEST_EXPANSION + 1):
            product = self
            for _ in range(int(exponent) - 1):
                product = product * self
            return product
        return self._opaque(f"pow({exponent:g})")

    @property
    def _is_monomial(self) -> bool:
        """One product, with no sum inside: powers and logarithms act on each factor."""
        return (
            len(self.terms) == 1 and not self.terms[0].summed and not any(c.identity for c in self.terms[0].constants)
        )

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
            return complement._as_logarithm("log1m")
        if not self._is_monomial or self.terms[0].coefficient <= 0:
            return self._opaque("log")
        return self._as_logarithm("log")

    def log1m(self) -> Expression:
        """The elementwise log(1 - x)."""
        return (1.0 - self).log()

    def _as_logarithm(self, function: str) -> Expression:
        (term,) = self.terms
        if any(f.function != "x" for f in term.factors):
            return self._opaque("log")
        terms = [Term(math.log(term.coefficient))] if term.coefficient != 1 else []
        terms += [Term(1.0, (Constant(c.tensor.log(), c.labels),)) for c in term.constants]
        terms += [Term(f.power, (), (replace(f, function=function, power=1.0),)) for f in term.factors]
        return _collect(self._with(terms))

    def _complement(self) -> Expression | None:
        """x, where the expression is 1 - x for a single latent x."""
        if len(self.terms) != 2:
            return None
        constant, rest = sorted(self.terms, key=lambda t: len(t.factors))
        plain = len(rest.factors) == 1 and rest.factors[0].power == 1 and rest.factors[0].function == "x"
        if constant.factors or not plain or rest.constants or rest.coefficient != -1 or rest.summed:
            return None
        ones, _ = constant.dense(self.like)
        return self._with([rest.scaled(-1.0)]) if bool((ones == 1).all()) else None

    def log_det(self) -> Expression:
        """The log determinant of the last two dimensions: of a scaled latent matrix, a constant, or a diagonal."""
        shape, dim = self.shape[:-2], self.shape[-1]
        if self.opacity:
            return Expression(shape, self.like, opacity=self.opacity)
        if self.pieces:
            return self._map_pieces(Expression.log_det, shape)
        if self.is_constant:
            return Expression.constant(torch.linalg.slogdet(self.value())[1])
        split = self._split_matrix()
        if split is None:
            return self._opaque("logdet", shape=shape)
        scalar, matrix = split
        if matrix is None:
            return scalar.log()._vector_view().sum(-1) if scalar._varies(-1) else scalar.log()._drop_matrix(shape) * dim
        logarithm = scalar.log()._drop_matrix(shape) * float(dim)
        if isinstance(matrix, Constant):
            return logarithm + self._matrix_constant(matrix).log_det()
        sign = -1.0 if matrix.function.endswith("inverse") else 1.0
        name = "gram_log_det" if matrix.function.startswith("gram") else "log_det"
        factor = replace(matrix, axes=tuple(_shift_axes(matrix.axes[:-2], 2)), function=name)
        return logarithm + self._with([Term(sign, (), (factor,))], shape)

    def inverse(self) -> Expression:
        """The matrix inverse over the last two dimensions, of what :meth:`log_det` takes."""
        if self.opacity:
            return self
        if self.pieces:
            return self._map_pieces(Expression.inverse)
        if self.is_constant:
            return Expression.constant(torch.linalg.inv(self.value()))
        split = self._split_matrix()
        if split is None:
            return self._opaque("inverse")
        scalar, matrix = split
        if matrix is None:
            return (scalar**-1.0)._times_identity(self.shape)
        if isinstance(matrix, Constant):
            return scalar**-1.0 * self._matrix_constant(matrix).inverse()
        flipped = replace(matrix, function=_INVERSES[matrix.function])
        return scalar**-1.0 * self._with([Term(1.0, (), (flipped,))])

    def cholesky(self) -> Expression:
        """The Cholesky factor; only :meth:`gram` can read it."""
        result = self._opaque("cholesky")
        result.cholesky_of = self
        return result

    def gram(self) -> Expression:
        """L Lᵀ over the last two dimensions."""
        if self.cholesky_of is not None:
            return self.cholesky_of
        split = None if self.opacity or self.pieces else self._split_matrix()
        if split is not None and isinstance(split[1], Factor) and split[1].variable.lower_cholesky:
            scalar, factor = split
            assert isinstance(factor, Factor)
            return scalar**2.0 * self._with([Term(1.0, (), (replace(factor, function="gram"),))])
        return self.matmul(self.transpose(-1, -2))

    def _split_matrix(self) -> tuple[Expression, Constant | Factor | None] | None:
        """A single term as (scalars, matrix): the matrix is None for a diagonal, whose entries the scalars are."""
        if len(self.terms) != 1 or self.terms[0].summed:
            return None
        (term,) = self.terms
        matrices: list[Constant | Factor] = []
        scalars = Term(term.coefficient)
        diagonal = False
        for c in term.constants:
            if c.identity and set(c.labels) == {-1, -2}:
                diagonal = True
            elif {-1, -2} & set(c.labels):
                matrices.append(c)
            else:
                scalars = scalars.times(Term(1.0, (c,)))
        for f in term.factors:
            if {-1, -2} & set(f.labels) or (self.shape[-1] == 1 and f.variable.is_matrix and f.function in _INVERSES):
                matrices.append(f)
            else:
                scalars = scalars.times(Term(1.0, (), (f,)))
        if self.shape[-1] == 1 and not matrices:
            return self._with([term]), None
        if diagonal:
            constants = tuple(c for c in term.constants if not c.identity)
            return self._with([Term(term.coefficient, constants, term.factors).substitute({-2: -1})]), None
        if len(matrices) != 1:
            return None
        (matrix,) = matrices
        if isinstance(matrix, Factor):
            ends = {x for a in matrix.axes[-2:] for x in axis_labels(a)}
            symmetric = len(matrix.axes) >= 2 and (ends == {-1, -2} or self.shape[-1] == 1)
            if not symmetric or matrix.power != 1 or matrix.function not in _INVERSES:
                return None
        elif not {-1, -2} <= set(matrix.labels):
            return None
        return self._with([scalars]), matrix

    def _matrix_constant(self, matrix: Constant) -> Expression:
        tensor = _place(matrix.tensor, matrix.labels, self.ndim)
        lead = [n for n in tensor.shape[:-2]]
        return Expression.constant(tensor.expand(*lead, *self.shape[-2:]))

    def _varies(self, label: int) -> bool:
        return any(label in t.labels for t in self.terms)

    def _vector_view(self) -> Expression:
        """A diagonal's entries, laid along the last of one dimension fewer."""
        shape = (*self.shape[:-2], self.shape[-1])
        return self._with([t.substitute(_shift(t.labels, 1, below=-2)) for t in self.terms], shape)

    def _drop_matrix(self, shape: Sequence[int]) -> Expression:
        return self._with([t.substitute(_shift(t.labels, 2)) for t in self.terms], shape)

    def _times_identity(self, shape: Sequence[int]) -> Expression:
        eye = torch.eye(shape[-1], dtype=self.like.dtype, device=self.like.device)
        identity = Constant(eye, (-2, -1), identity=True)
        return self._with([t.times(Term(1.0, (identity,))) for t in self.terms], shape)

    def diag_embed(self) -> Expression:
        """A diagonal matrix from the last dimension."""
        shape = (*self.shape, self.shape[-1])
        if self.opacity or self.pieces:
            return self._map_pieces(Expression.diag_embed, shape) if self.pieces else self._opaque("", shape=shape)
        moved = self._with([t.substitute(_shift(t.labels, -1, below=-2)) for t in self.terms], shape)
        return moved._times_identity(shape)

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
        return Expression(
            sizes, self.like, self.terms, pieces=self.pieces, opacity=self.opacity, cholesky_of=self.cholesky_of
        )

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
        """Swap two dimensions."""
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
        dims = range(self.ndim) if dim is None else [d % self.ndim for d in ([dim] if isinstance(dim, int) else dim)]
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
        """Whether the last dimension provably sums to one: it is a latent's simplex, seen whole."""
        if self.pieces:
            return all(piece.is_normalized for _, piece in self.pieces)
        if self.is_constant:
            total = self.value().sum(-1)
            return bool(torch.allclose(total, torch.ones_like(total), atol=1e-6, rtol=0.0))
        if len(self.terms) != 1 or self.terms[0].constants or self.terms[0].coefficient != 1:
            return False
        (factor, *others) = self.terms[0].factors
        plain = not others and factor.power == 1 and factor.function == "x" and factor.variable.simplex
        whole = factor.axes[-1] == -1 or self.shape[-1] == 1
        return plain and whole and not any(-1 in axis_labels(a) for a in factor.axes[:-1])

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
        plain = self.terms[0].factors[0] if self._is_monomial and len(self.terms[0].factors) == 1 else None
        if plain is None or not plain.variable.is_point or self.terms[0].constants or self.terms[0].coefficient != 1:
            return self._opaque("lgamma", shape=shape)
        if plain.power != 1 or plain.function != "x":
            return self._opaque("lgamma", shape=shape)
        axes = tuple(_shift_axes(plain.axes[: len(plain.axes) - event], event))
        return self._with([Term(1.0, (), (replace(plain, axes=axes, function=function),))], shape)

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
        blocked = a.opacity or b.opacity
        if blocked:
            return Expression(shape, a.like, opacity=blocked)
        pieces = []
        for mask, branch in ((condition, a), (~condition, b)):
            inner = branch.pieces or ((torch.ones((), dtype=torch.bool, device=mask.device), branch),)
            pieces += [(mask & m, p) for m, p in inner]
        return Expression(shape, a.like, pieces=tuple(pieces))


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
        if isinstance(item, list | int) and not isinstance(item, bool):
            item = torch.as_tensor(item, device=device)
        if isinstance(item, Tensor):
            items += item.nonzero(as_tuple=True) if item.dtype == torch.bool else [item.long()]
        elif item is None or item is Ellipsis or isinstance(item, slice):
            items.append(item)
        else:
            raise IndexError(f"expected integers, slices, None, Ellipsis or tensors as an index; got {item!r}")
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)
    position = next(k for k, item in enumerate(items) if item is Ellipsis)
    used = sum(item is not None for item in items) - 1
    items[position : position + 1] = [slice(None)] * (len(shape) - used)
    return items


__all__ = ["Expression", "Opacity"]
