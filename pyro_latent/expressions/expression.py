r"""What a model computes from its latents, kept symbolically.

An :class:`Expression` is one of three things:

- a *polynomial*: a sum of :class:`~.terms.Term`, for which expectations are products of moments;
- *pieces*: polynomials chosen by masks, as ``torch.where`` makes them, so that powers and logarithms act on each;
- *opaque*: the result of an operation without a rule. It remembers the operation and the latents behind it, so that an
  error can name them.

A polynomial without continuous latents is a *table*: a number for each value of the discrete latents that it depends
on. Any elementwise function of tables is one.

Rules write log densities in this algebra with ordinary operators, and the methods ``log``, ``sum``, ``log_det`` and so
on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import LatentValueError
from .evaluation import Values, evaluate_term
from .terms import (
    Axis,
    Choice,
    Constant,
    Factor,
    Gather,
    Replay,
    Term,
    Variable,
    as_axis,
    broadcast_shapes,
    fresh_label,
    is_choice,
    is_position,
)

#: The matrix functions, and the inverse of each.
_INVERSES = {"x": "inverse", "inverse": "x", "gram": "gram_inverse", "gram_inverse": "gram"}
#: The dtypes of an index that are masks.
_MASKS = (torch.bool, torch.uint8)
#: Integer powers up to this are expanded into products.
_LARGEST_EXPANSION = 4
#: A table has at most so many combinations of values, and so many numbers.
_MOST_COMBINATIONS, _LARGEST_TABLE = 2**20, 2**27
#: A function that a table of values takes apart into cases has at most so many of them.
_MOST_CASES = 64


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
        pieces: tuple[tuple[Expression, Expression], ...] = (),
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
    def discrete(site: str, support: Tensor, batch_shape: torch.Size) -> Expression:
        """A discrete latent of this batch shape, whose values are the rows of ``support``."""
        event = support.shape[1:]
        axes = tuple(None if n == 1 else i - len(batch_shape) for i, n in enumerate(batch_shape))
        axes = tuple(a if a is None else a - len(event) for a in axes)
        choice = Choice.of(site, axes, support.shape[0])
        table = support.reshape(support.shape[0], *[1] * len(batch_shape), *event)
        return Expression.from_table(table, (choice,), batch_shape + event)

    @staticmethod
    def from_table(table: Tensor, choices: Sequence[Choice], shape: Sequence[int]) -> Expression:
        """A number for each combination of values: ``table`` has a dimension for each choice, then those of ``shape``,
        of size 1 where it does not vary.
        """
        names = (*(c.label for c in choices), *range(-len(shape), 0))
        like = table.new_empty(0)
        if not table.is_floating_point():  # kept exactly
            table = table.to(torch.get_default_dtype() if table.dtype == torch.bool else torch.float64)
        kept = [i for i, n in enumerate(table.shape) if n != 1]
        constant = Constant(table.reshape([table.shape[i] for i in kept]), tuple(names[i] for i in kept))
        return Expression(shape, like, (Term(1.0, (constant,), (), tuple(choices)),))

    @staticmethod
    def derived(
        name: str, value: Tensor, replay: Replay, parents: frozenset[str], choices: Sequence[Choice] = ()
    ) -> Expression:
        """What the model computed from points by an operation without a rule: a point itself, for each combination of
        the values of discrete latents.
        """
        axes = tuple(None if n == 1 else i - value.ndim for i, n in enumerate(value.shape))
        shape = torch.Size((*(c.size for c in choices), *value.shape))
        variable = Variable(name, shape, is_point=True, replay=replay, parents=parents)
        factor = Factor(variable, (*(c.label for c in choices), *axes))
        return Expression(value.shape, value.new_empty(0), (Term(1.0, (), (factor,), tuple(choices)),))

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

    def of_terms(self, terms: Sequence[Term]) -> Expression:
        """Some of the terms of a polynomial."""
        return self._with(terms)

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
        found.update(c.site for t in self.terms for c in t.choices)
        return frozenset(found).union(*(e.sites for pair in self.pieces for e in pair))

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The discrete latents that the expression depends on, in the elements that it reads."""
        found = {c.label: c for t in self.terms for c in t.choices}
        for pair in self.pieces:
            for expression in pair:
                found |= {c.label: c for c in expression.choices}
        return tuple(found.values())

    @property
    def is_constant(self) -> bool:
        return not self.opacity and not self.sites

    @property
    def is_table(self) -> bool:
        """Whether it is known once the discrete latents are: a constant is a table, too."""
        return not self.opacity and not self.pieces and not any(t.factors for t in self.terms)

    def value(self) -> Tensor:
        """The tensor of a constant expression, of its full shape."""
        if not self.is_constant:
            raise ValueError(f"Expected a constant; got an expression of {sorted(self.sites)}.")
        return self.polynomial().table(()).expand(self.shape)

    def table(self, choices: Sequence[Choice], dims: Sequence[int] = ()) -> Tensor:
        """The numbers of a table: a dimension for each of these choices, then those of the shape, of size 1 where it
        does not vary, but for the (negative) ``dims``.
        """
        order = [c.label for c in choices]
        parts = [_laid(*term.dense(self.like), order, self.ndim) for term in self.unbound().terms]
        total = parts[0] if parts else self.like.new_zeros([1] * (len(order) + self.ndim))
        for part in parts[1:]:
            total = total + part
        total = total.to(self.like.dtype)
        full = [self.shape[i] if i - self.ndim in dims else -1 for i in range(self.ndim)]
        return total.expand(*[-1] * len(order), *full) if dims else total

    def unbound(self) -> Expression:
        """A table whose sums over the elements of a discrete latent are written out, one term for each element."""
        if not any(label > 0 for t in self.terms for c in t.choices for label in c.labels):
            return self
        terms: list[Term] = []
        for term in self.terms:
            bound = {label for c in term.choices for label in c.labels if label > 0}
            sizes = _sizes_of(term)
            places = itertools.product(*(range(sizes[label]) for label in bound))
            for place in places if bound else [()]:
                index = {
                    label: Gather(torch.tensor(i, device=self.like.device), ())
                    for label, i in zip(bound, place, strict=False)
                }
                terms.append(term.substitute(index) if bound else term)
        return self._with(terms)

    @staticmethod
    def apply(
        function: Callable[..., Tensor],
        *tables: Expression,
        shape: Sequence[int] | None = None,
        dims: Sequence[int] = (),
        gone: int = 0,
    ) -> Expression:
        """An elementwise function of tables, as a table; or one over their last ``dims``, with the ``shape`` of its
        result, which lacks so many of them.

        Raises:
            LatentValueError: if the discrete latents have too many combinations of values.
        """
        shape = broadcast_shapes(*(t.shape for t in tables)) if shape is None else shape
        tables = tuple(t.unbound() for t in tables)
        choices = tuple({c.label: c for t in tables for c in t.choices}.values())
        ndim = max(t.ndim for t in tables)
        check_combinations(choices)
        laid = [t.widened(ndim).table(choices, dims) for t in tables]
        check_combinations(choices, broadcast_shapes(*(t.shape for t in laid)).numel())
        moved = tuple(c.substitute({x: x + gone for x in range(-ndim, -gone)}) for c in choices) if gone else choices
        return Expression.from_table(function(*laid), moved, shape)

    def widened(self, ndim: int) -> Expression:
        """With dimensions of size 1 on the left, up to ``ndim``."""
        return self._with(self.terms, [1] * (ndim - self.ndim) + list(self.shape))

    def polynomial(self) -> Expression:
        """Pieces written as an indicator-weighted sum; anything else as it is."""
        if not self.pieces:
            return self
        terms: list[Term] = []
        for mask, piece in self.pieces:
            indicator = _only_constant(mask)
            terms += [term.masked(indicator, mask.choices) for term in piece.polynomial().terms]
        return _collect(self._with(terms))

    def evaluate(self, values: Mapping[str, Tensor]) -> Tensor:
        """The value in float64 at given values of the latents.

        Args:
            values: a tensor of its own shape for each of the ``sites``; a latent that is measured from an origin is
                given as its distance from it, and a discrete latent as the numbers of its values.

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
            total = torch.where(mask._evaluate(values) != 0, piece._evaluate(values), total)
        for term in self.terms:
            total = total + _laid(*evaluate_term(term, values), (), self.ndim)
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
        if self.pieces and other.is_table:
            return self._map_pieces(lambda piece: piece + other, shape)
        if other.pieces and self.is_table:
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
            if len(self.pieces) * len(other.pieces) <= _MOST_CASES // 4:
                return self._pairs(other, shape)
        left, right = self.polynomial().terms, other.polynomial().terms
        terms = [a.times(b) for a in left for b in right]
        return _collect(self._with(terms, shape, _common_like(self, other)))

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
            if self.is_table and exponent.is_table:
                return Expression.apply(torch.pow, self, exponent)
            if not exponent.is_constant or exponent.shape.numel() != 1:
                return self._opaque("pow", exponent, shape=broadcast_shapes(self.shape, exponent.shape))
            exponent = float(exponent.value())
        if self.opacity:
            return self
        if self.pieces:
            return self._map_pieces(lambda piece: piece**exponent)
        expands = exponent in range(1, _LARGEST_EXPANSION + 1)
        if self.is_table and self.choices and not (expands and _combinations((self,)) > _MOST_CASES):
            return Expression.apply(lambda t: t**exponent, self)
        raised = self.terms[0].raised(exponent, self.like) if self._is_monomial else None
        if raised is not None:
            return self._with([raised])
        if self.is_constant:
            return Expression.constant(self.value() ** exponent).expand(self.shape)
        if exponent == 2:
            pairs = [(i, j) for j in range(len(self.terms)) for i in range(j + 1)]
            terms = self.terms
            return _collect(self._with([terms[i].times(terms[j]).scaled(1.0 if i == j else 2.0) for i, j in pairs]))
        if expands:
            product = self
            for _ in range(int(exponent) - 1):
                product = product * self
            return product
        return self._by_cases(lambda e: e**exponent) or self._opaque(f"pow({exponent:g})")

    @property
    def _is_monomial(self) -> bool:
        """One product, with no sum inside: powers and logarithms act on each factor."""
        return len(self.terms) == 1 and not self.terms[0].summed

    def _map_pieces(
        self, function: Callable[[Expression], Expression], shape: Sequence[int] | None = None
    ) -> Expression:
        pieces: tuple[tuple[Expression, Expression], ...] = tuple(
            (mask, function(piece)) for mask, piece in self.pieces
        )
        blocked = next((p for _, p in pieces if p.opacity), None)
        shape = pieces[0][1].shape if shape is None else shape
        if blocked is not None:
            return Expression(shape, self.like, opacity=blocked.opacity)
        shape = broadcast_shapes(shape, *(mask.shape for mask, _ in pieces), *(p.shape for _, p in pieces))
        return Expression(shape, self.like, pieces=pieces)

    def _pairs(self, other: Expression, shape: Sequence[int]) -> Expression:
        """The product of pieces with pieces, where both masks hold."""
        pieces = []
        for (mask, piece), (mask2, piece2) in itertools.product(self.pieces, other.pieces):
            both = Expression.apply(torch.logical_and, mask, mask2)
            if bool(both.table(both.choices).any()):
                pieces.append((both, piece * piece2))
        return Expression(shape, self.like, pieces=tuple(pieces))

    def _by_cases(self, function: Callable[[Expression], Expression]) -> Expression | None:
        """The function of an expression, at each value of its discrete latents; None where one has no rule, or there
        are too many.
        """
        choices = self.choices
        sizes = [c.size for c in choices]
        bound = any(label > 0 for c in choices for label in c.labels)
        if not choices or bound or self.pieces or math.prod(sizes) > _MOST_CASES:
            return None
        pieces = []
        for values in itertools.product(*map(range, sizes)):
            case = self
            for choice, value in zip(choices, values, strict=True):
                case = case._with([t.at(choice, value, self.like.device) for t in case.terms])
            result = function(case._simplified())
            if result.opacity:
                return None
            chosen = torch.zeros(sizes, dtype=torch.bool, device=self.like.device)
            chosen[values] = True
            mask = Expression.from_table(chosen.reshape(*sizes, *[1] * self.ndim), choices, self.shape)
            pieces.append((mask if result.ndim == self.ndim else mask._without_matrix(), result))
        return Expression(pieces[0][1].shape, self.like, pieces=tuple(pieces))

    def _simplified(self) -> Expression:
        """Without terms that are zero, and with constants that are one number in the coefficient."""
        terms = []
        for term in self.terms:
            same = [c for c in term.constants if bool((c.tensor == c.tensor.reshape(-1)[0]).all())]
            summed = {label for c in same for label in c.labels} & term.summed
            if summed:
                terms.append(term)
                continue
            number = term.coefficient * math.prod(float(c.tensor.reshape(-1)[0]) for c in same)
            if number:
                rest = tuple(c for c in term.constants if c not in same)
                terms.append(replace(term, coefficient=number, constants=rest))
        return _collect(self._with(terms or [Term(0.0)]))

    # Functions.

    def log(self) -> Expression:
        """The elementwise logarithm, of products of powers, of 1 - x, and of constants."""
        if self.opacity:
            return self
        if self.pieces:
            return self._map_pieces(Expression.log)
        if self.is_table and (self.choices or not (self._is_monomial and self.terms[0].coefficient > 0)):
            return Expression.apply(torch.log, self)
        complement = self._complement()
        if complement is not None:
            return self._with([complement])
        terms = self.terms[0].log(self.like) if self._is_monomial else None
        if terms is None:
            return self._by_cases(Expression.log) or self._opaque("log")
        return _collect(self._with(terms))

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
        return Term(1.0, rest.constants, (factor,), rest.choices) if bool((ones == 1).all()) else None

    # Matrices, over the last two dimensions.

    def log_det(self) -> Expression:
        """The log determinant of a positive definite matrix: of a scaled latent matrix, a constant, or a diagonal."""
        shape, dim = self.shape[:-2], self.shape[-1]
        if self.opacity:
            return Expression(shape, self.like, opacity=self.opacity)
        if self.is_table:
            return Expression.apply(lambda t: torch.linalg.slogdet(t)[1], self, shape=shape, dims=(-2, -1), gone=2)
        split = self._split_matrix()
        if split is not None:
            scalar, matrix = split
            logarithm = (scalar ** float(dim)).log()
            if isinstance(matrix, Expression):
                return logarithm + matrix.log_det()
            sign = -1.0 if matrix.function.endswith("inverse") else 1.0
            name = "gram_log_det" if matrix.function.startswith("gram") else "log_det"
            factor = replace(matrix, axes=matrix.axes[:-2], function=name)
            return logarithm + self._with([Term(sign, (), (factor,), self.choices)])._without_matrix()
        entries = self._diagonal()
        if entries is not None:
            return entries.log().sum(-1)
        cases = self._map_matrices(Expression.log_det) or self._by_cases(Expression.log_det)
        return cases or self._opaque("logdet", shape=shape)

    def inverse(self) -> Expression:
        """The matrix inverse, of what :meth:`log_det` takes."""
        if self.opacity:
            return self
        if self.is_table:
            return Expression.apply(_inverse, self, dims=(-2, -1))
        split = self._split_matrix()
        if split is not None:
            scalar, matrix = split
            reciprocal = (scalar**-1.0).reshape([*scalar.shape, 1, 1])
            if isinstance(matrix, Expression):
                return reciprocal * matrix.inverse()
            flipped = replace(matrix, function=_INVERSES[matrix.function])
            return reciprocal * self._with([Term(1.0, (), (flipped,), self.choices)])
        entries = self._diagonal()
        if entries is not None:
            return (entries**-1.0).diag_embed()
        cases = self._map_matrices(Expression.inverse) or self._by_cases(Expression.inverse)
        return cases or self._opaque("inverse")

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
            return squared * self._with([Term(1.0, (), (replace(factor, function="gram"),), self.choices)])
        entries = None if self.opacity or self.is_table else self._diagonal()
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
            term.choices,
        )
        if {-1, -2} & rest.labels:
            return None
        scalar = self._with([rest.substitute(_shift(rest.labels, 2))], shape)
        if matrices:
            return scalar, matrices[0]
        return scalar, self._with([Term(1.0, (constants[0],), (), term.choices)])

    def _without_matrix(self) -> Expression:
        """The view without the last two dimensions, along which it does not vary."""
        return self._with([t.substitute(_shift(t.labels, 2)) for t in self.terms], self.shape[:-2])

    def _diagonal(self) -> Expression | None:
        """The entries of a matrix that is provably diagonal, along the last dimension; None for any other."""
        dim, shape = self.shape[-1], self.shape[:-1]
        if dim == 1:
            return self.squeeze(-1)
        if self.pieces:
            entries = [(mask.expand(self.shape), piece.expand(self.shape)._diagonal()) for mask, piece in self.pieces]
            if any(entry is None for _, entry in entries):
                return None
            pieces = tuple((m._along_diagonal(), entry) for m, entry in entries if entry is not None)
            return Expression(shape, self.like, pieces=pieces)
        if not all(any(c.is_diagonal(-2, -1) for c in term.constants) for term in self.terms):
            return None
        return self._along_diagonal()

    def _along_diagonal(self) -> Expression:
        """The entries on the diagonal, along the last dimension."""
        merged = [t.substitute({-2: -1}) for t in self.terms]
        return self._with([t.substitute(_shift(t.labels, 1, below=-3)) for t in merged], self.shape[:-1])

    def _apart_from(self, count: int) -> Expression | None:
        """A mask that does not vary along its last dimensions, with size 1 there; None where it does."""
        choices = self.choices
        if any(-count <= x < 0 for c in choices for x in c.labels):
            return None
        table = self.table(choices)
        first = table
        for dim in range(-count, 0):
            first = first.narrow(dim, 0, 1)
        shape = (*self.shape[: self.ndim - count], *[1] * count)
        return Expression.from_table(first, choices, shape) if torch.equal(table, first.expand_as(table)) else None

    def _map_matrices(self, function: Callable[[Expression], Expression]) -> Expression | None:
        """Map pieces whose masks choose whole matrices; None where they do not, or there are no pieces."""
        if not self.pieces:
            return None
        masks = [mask.expand(self.shape)._apart_from(2) for mask, _ in self.pieces]
        if any(mask is None for mask in masks):
            return None
        mapped = [function(piece.expand(self.shape)) for _, piece in self.pieces]
        blocked = next((piece.opacity for piece in mapped if piece.opacity), None)
        shape = mapped[0].shape
        if blocked is not None:
            return Expression(shape, self.like, opacity=blocked)
        kept = mapped[0].ndim == self.ndim
        whole = [mask if kept else mask.reshape(mask.shape[:-2]) for mask in masks if mask is not None]
        return Expression(shape, self.like, pieces=tuple(zip(whole, mapped, strict=True)))

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
                    term = _sized(term, label, self.shape[d], self.like).substitute({label: fresh_label()})
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

    def _relabelled(self, mapping: dict[int, Axis], shape: Sequence[int], choices: Sequence[Choice] = ()) -> Expression:
        """The view through other axes, which may read at the values of ``choices``."""
        if self.opacity:
            return Expression(shape, self.like, opacity=self.opacity)
        terms = [t.substitute(mapping) for t in self.terms]
        if not choices:
            return self._with(terms, shape)
        read = next((c for t in terms for c in t.choices if any(map(is_choice, c.labels))), None)
        if read is not None:
            raise LatentValueError(
                f"Expected constants as the index of the discrete latent {read.site!r}; got the value of a discrete "
                "latent, which says at random which element is read. Write torch.where(index == 0, z[0], z[1])."
            )
        return self._with([replace(t, choices=(*t.choices, *choices)) for t in terms], shape)

    def _view(self, function: Callable[[Expression], Expression]) -> Expression:
        """Apply a view to every piece and to the masks that choose them."""
        pieces = tuple(
            (function(mask.expand(self.shape)), function(piece.expand(self.shape))) for mask, piece in self.pieces
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
            return self._view(lambda e: e.permute(order))
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
            return self._view(lambda e: e.reshape(shape))
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
        """``self[index]``, with torch's indexing by integers, slices, None, Ellipsis, constant tensors and tables."""
        if self.pieces:
            return self._view(lambda e: e.take(index))
        return self._relabelled(*_index_axes(index, self.shape, self.like.device))

    def take_last(self, index: Expression | Tensor) -> Expression:
        """Read the last dimension at ``index``, whose shape broadcasts with the other dimensions."""
        places = _Places.of(index, self.like.device)
        mapping: dict[int, Axis] = {d: d + 1 for d in range(-self.ndim, -1)}
        mapping[-1] = places.axis(self.shape[-1])
        shape = broadcast_shapes(self.shape[:-1], places.shape)
        return self.polynomial()._relabelled(mapping, shape, places.choices)

    @property
    def is_normalized(self) -> bool:
        """Whether the last dimension provably sums to one: a latent's simplex, seen whole, or terms that add up to
        one, as those of the stacked 1 - p and p do.
        """
        if self.opacity:
            return False
        if self.is_table:
            total = self.table(self.choices, (-1,)).sum(-1)
            return bool(torch.allclose(total, torch.ones_like(total), atol=1e-6, rtol=0.0))
        if self._is_monomial and len(self.terms[0].factors) == 1 and not self.terms[0].constants:
            return self.terms[0].coefficient == 1 and self._is_simplex(self.terms[0].factors[0])
        return self._chooses_simplexes or _is_one(self.sum(-1))

    @property
    def _chooses_simplexes(self) -> bool:
        """Whether the masks of the pieces do not vary along the last dimension, and every piece is normalized."""
        whole = all(mask.expand(self.shape)._apart_from(1) is not None for mask, _ in self.pieces)
        return bool(self.pieces) and whole and all(p.expand(self.shape).is_normalized for _, p in self.pieces)

    def _is_simplex(self, factor: Factor) -> bool:
        plain = factor.power == 1 and factor.function == "x" and factor.variable.simplex
        return plain and factor.reads_whole(self.shape[-1:])

    def lgamma(self) -> Expression:
        """log Γ, of constants and of point estimates."""
        return Expression.apply(torch.lgamma, self) if self.is_table else self._of_point("lgamma", 0)

    def weigh(self, logarithm: Expression) -> Expression:
        """The product, which is 0 where ``self``, a table, is 0, even if the logarithm is infinite: 0 log 0 = 0."""
        if logarithm.pieces:
            return logarithm._map_pieces(self.weigh)
        if not self.is_table or logarithm.opacity or logarithm.is_finite:
            return self * logarithm
        tables = logarithm._with([t for t in logarithm.terms if not t.factors])
        rest = logarithm._with([t for t in logarithm.terms if t.factors])
        product = self * rest if rest.terms else self._number(0.0)
        if not rest.is_finite:
            nonzero = Expression.apply(lambda x: x != 0, self)
            product = Expression.where(nonzero, product, self._number(0.0)).polynomial()
        if tables.terms:
            product = product + Expression.apply(
                lambda x, t: torch.where(x == 0, torch.zeros_like(t), x * t), self, tables
            )
        return product.expand(broadcast_shapes(self.shape, logarithm.shape))

    def log_beta(self) -> Expression:
        """Σ log Γ(x_k) − log Γ(Σ x_k) over the last dimension, of constants and of point estimates."""
        if self.is_table:
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
        term = Term(
            1.0, (), (replace(factor, axes=factor.axes[: len(factor.axes) - event], function=function),), self.choices
        )
        return self._with([term.substitute(_shift(term.labels, event))], shape)

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
    def where(condition: Expression | Tensor, a: Expression, b: Expression) -> Expression:
        """``a`` where the condition, a table, holds, ``b`` elsewhere."""
        condition = condition if isinstance(condition, Expression) else Expression.constant(condition)
        shape = broadcast_shapes(condition.shape, a.shape, b.shape)
        like = _common_like(a, b)
        blocked = a.opacity or b.opacity
        if blocked:
            return Expression(shape, like, opacity=blocked)
        if a.is_table and b.is_table and _combinations((condition, a, b)) <= _MOST_CASES**2:
            return Expression.apply(torch.where, condition, a, b).as_dtype_of(like)
        pieces: list[tuple[Expression, Expression]] = []
        for mask, branch in ((condition, a), (Expression.apply(torch.logical_not, condition), b)):
            inner = branch.pieces or ((None, branch),)
            pieces += [
                (mask if m is None else Expression.apply(torch.logical_and, mask, m), p.as_dtype_of(like))
                for m, p in inner
            ]
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
    order = [c.label for c in expression.choices]
    for term in expression.terms:
        read = (*(f.labels for f in term.factors), *(c.labels for c in term.choices))
        if term.summed & {label for labels in read for label in labels}:
            return False
        weight = _laid(*Term(term.coefficient, term.constants).dense(expression.like), order, expression.ndim)
        for i, (known, total) in enumerate(groups):
            if known.same_factors(term):
                groups[i] = (known, total + weight)
                break
        else:
            groups.append((term, weight))
    return all(bool((w - float(not t.factors)).abs().max() <= 1e-6) for t, w in groups) and any(
        not t.factors for t, _ in groups
    )


def _only_constant(mask: Expression) -> Constant:
    """The one constant of a mask."""
    ((constant,),) = (term.constants for term in Expression.apply(lambda m: m, mask).terms)
    return constant


def _inverse(matrix: Tensor) -> Tensor:
    """The inverse, and not a number where there is none: of what a mask never chooses, perhaps."""
    inverse, singular = torch.linalg.inv_ex(matrix)
    return inverse.masked_fill((singular != 0)[..., None, None], torch.nan)


def _combinations(tables: Sequence[Expression]) -> int:
    return math.prod({c.label: c.size for t in tables for c in t.unbound().choices}.values())


def check_combinations(choices: Sequence[Choice], numbers: int = 0) -> None:
    """A table of all combinations of some discrete latents, of so many numbers, is affordable.

    Raises:
        LatentValueError: if it is not.
    """
    count = math.prod(c.size for c in choices)
    if count <= _MOST_COMBINATIONS and numbers <= _LARGEST_TABLE:
        return
    names = ", ".join(repr(s) for s in sorted({c.site for c in choices}))
    raise LatentValueError(
        f"Expected an operation on few discrete latents at once; got one on {len(choices)} elements of {names}, which "
        f"have {count} combinations of values. Sums of them, and sums of functions of one element each, need no joint "
        "table: write those, or give the elements a site of fewer values."
    )


def _sized(term: Term, label: int, size: int, like: Tensor) -> Term:
    """The term with an operand along a label that its choices alone run along, so that its size is known."""
    if any(label in c.labels for c in term.constants) or any(label in f.labels for f in term.factors):
        return term
    ones = torch.ones(size, dtype=like.dtype, device=like.device)
    return replace(term, constants=(*term.constants, Constant(ones, (label,))))


def _sizes_of(term: Term) -> dict[int, int]:
    """The sizes of the labels that the elements of a term's choices run along, from what reads them."""
    sizes = {label: n for c in term.constants for label, n in zip(c.labels, c.tensor.shape, strict=True)}
    for choice in term.choices:
        for axis in choice.axes:
            if isinstance(axis, Gather):
                sizes |= dict(zip(axis.labels, axis.index.shape, strict=True))
    return sizes


def _laid(tensor: Tensor, labels: tuple[int, ...], order: Sequence[int], ndim: int) -> Tensor:
    """Lay a labelled tensor out: a dimension for each choice of ``order``, then ``ndim``, of size 1 elsewhere."""
    names = {label: i for i, label in enumerate(order)}
    places = [names[label] if is_choice(label) else len(order) + ndim + label for label in labels]
    shape = [1] * (len(order) + ndim)
    for place, size in zip(places, tensor.shape, strict=True):
        shape[place] = size
    return tensor.permute(sorted(range(len(places)), key=places.__getitem__)).reshape(shape)


def _collect(expression: Expression) -> Expression:
    """Add the tables of the same discrete latents up, so that differences of large constants are taken exactly."""
    groups: dict[frozenset[int], list[Term]] = {}
    rest = []
    for term in expression.terms:
        if term.factors or any(label > 0 for c in term.choices for label in c.labels):
            rest.append(term)
        else:
            groups.setdefault(frozenset(c.label for c in term.choices), []).append(term)
    if not any(len(g) > 1 or g[0].summed or len(g[0].constants) > 1 for g in groups.values()):
        return expression
    tables = [_added(expression._with(group)) for group in groups.values()]
    found = [t for t in tables if rest and not bool(t.table(t.choices).any())]
    kept = [term for table in tables if table not in found for term in table.terms]
    return expression._with([*rest, *kept])


def _added(tables: Expression) -> Expression:
    choices = tables.choices
    return Expression.from_table(tables.table(choices), choices, tables.shape)


def _shift(labels: frozenset[int], by: int, below: int = 0) -> dict[int, Axis]:
    """Move the negative labels that are at most ``below`` by ``by``."""
    return {label: label + by for label in labels if is_position(label) and label <= below}


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


@dataclass(frozen=True)
class _Places:
    """An index: whole numbers of a ``shape``, for each combination of the values of ``choices``, whose dimensions come
    first in ``tensor``.
    """

    tensor: Tensor
    shape: torch.Size
    choices: tuple[Choice, ...] = ()
    last: int = -1  # the label of the last dimension

    @staticmethod
    def of(index: Expression | Tensor, device: torch.device) -> _Places:
        if isinstance(index, Tensor):
            return _Places(index.long().to(device), index.shape)
        index = index.unbound()
        check_combinations(index.choices)
        return _Places(index.table(index.choices).long(), index.shape, index.choices)

    def moved(self, first: int) -> _Places:
        """The places where their first dimension is the label ``first``."""
        last = first + len(self.shape) - 1
        labels: dict[int, Axis] = {i: i + last + 1 for i in range(-len(self.shape), 0)}
        return replace(self, choices=tuple(c.substitute(labels) for c in self.choices), last=last)

    def axis(self, size: int) -> Axis:
        """The axis that reads a dimension of ``size`` here.

        Raises:
            IndexError: if an index is out of range.
        """
        if self.tensor.numel() and not bool(((self.tensor >= -size) & (self.tensor < size)).all()):
            names = f" of {', '.join(repr(c.site) for c in self.choices)}" if self.choices else ""
            raise IndexError(
                f"Expected an index{names} in a dimension of size {size}; got {int(self.tensor.min())} to "
                f"{int(self.tensor.max())}."
            )
        tensor = torch.where(self.tensor < 0, self.tensor + size, self.tensor)
        labels = (*(c.label for c in self.choices), *range(self.last + 1 - len(self.shape), self.last + 1))
        wide = [i for i, n in enumerate(tensor.shape) if n != 1]
        return as_axis(tensor.reshape([tensor.shape[i] for i in wide]), tuple(labels[i] for i in wide), size)


def _index_axes(
    index: Any, shape: Sequence[int], device: torch.device
) -> tuple[dict[int, Axis], list[int], tuple[Choice, ...]]:
    """The axes of the source dimensions under ``source[index]``, the shape of the result, and the choices read at."""
    items = _plain_items(index, shape, device)
    tensors = [k for k, item in enumerate(items) if isinstance(item, _Places) and item.shape]
    block = list(broadcast_shapes(*(items[k].shape for k in tensors)))
    between = items[tensors[0] : tensors[-1] + 1] if tensors else []
    adjacent = all(isinstance(item, _Places) for item in between)  # an integer between two index tensors selects first
    out: list[int] = list(block) if tensors and not adjacent else []
    block_at, source = 0, 0
    reads: list[tuple[int, _Places, int]] = []  # source dimension, places, first result dimension (-1: the block's)
    for k, item in enumerate(items):
        if item is None:
            out.append(1)
            continue
        if isinstance(item, _Places) and not item.shape:
            reads.append((source, item, len(out)))
        elif isinstance(item, _Places):
            if adjacent and k == tensors[0]:
                block_at = len(out)
                out += block
            reads.append((source, item, -1))
        else:
            places = torch.arange(shape[source], device=device)[item]
            reads.append((source, _Places(places, places.shape), len(out)))
            out.append(len(places))
        source += 1
    axes: dict[int, Axis] = {}
    choices: tuple[Choice, ...] = ()
    for dim, read, at in reads:
        first = block_at + len(block) - len(read.shape) if at < 0 else at
        there = read.moved(first - len(out))
        axes[dim - len(shape)] = there.axis(shape[dim])
        choices += there.choices
    return axes, out, choices


def _plain_items(index: Any, shape: Sequence[int], device: torch.device) -> list[Any]:
    """An index as one slice, None or places for each dimension; masks become the places where they hold."""
    items: list[Any] = []
    for item in index if isinstance(index, tuple) else (index,):
        if isinstance(item, Expression) and item.like.dtype == torch.bool:
            raise LatentValueError(
                f"Expected a result of a known shape; got an index by a mask of the latents {sorted(item.sites)}. "
                "Write torch.where(mask, x, 0.)."
            )
        if isinstance(item, Expression):
            items.append(_Places.of(item, device))
        else:
            items += [_Places.of(t, device) if isinstance(t, Tensor) else t for t in _items_of(item, device)]
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


__all__ = ["Expression", "Opacity", "check_combinations"]
