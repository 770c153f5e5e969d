"""Sums, products and powers of expressions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..values import broadcast_shapes
from .axes import is_position, is_summed, laid
from .constants import Constant
from .scalars import of_scalar
from .symbolic import Symbolic, count_combinations
from .terms import Term

#: Integer powers up to this are expanded into products.
_LARGEST_EXPANSION = 4
#: A function that a table of values takes apart into cases has at most so many of them.
MOST_CASES = 64
#: A product of sums multiplies at most so many pairs of terms: in a recurrence of products they square at each step.
_MOST_PAIRS = 2**12

#: Functions that are nowhere negative.
NONNEGATIVE = frozenset(
    ("exp", "exp2", "sigmoid", "softplus", "abs", "absolute", "__abs__", "relu", "square", "sqrt", "cosh", "erfc")
)

S = TypeVar("S", bound=Symbolic)


class Arithmetic(Symbolic):
    """Expressions with the operators of Python: what they make is a polynomial where its parts are."""

    __slots__ = ()

    def polynomial(self) -> Self:
        """Pieces written as an indicator-weighted sum; anything else as it is."""
        if not self.pieces:
            return self
        terms: list[Term] = []
        for mask, piece in self.pieces:
            indicator = _only_constant(mask)
            terms += [term.masked(indicator, mask.choices) for term in piece.polynomial().terms]
        return collect(self._with(terms))

    def value(self) -> Tensor:
        """The tensor of a constant expression, of its full shape."""
        if not self.is_constant:
            raise ArgumentError(f"Expected a constant; got an expression of {sorted(self.sites)}.")
        return self.polynomial().table(()).expand(self.shape)

    def __add__(self, other: object) -> Self:
        other = self._lift(other)
        shape = broadcast_shapes(self.shape, other.shape)
        like = common_like(self, other)
        if self.opacity or other.opacity:
            return self._opaque("add", other, shape=shape)
        if self.pieces and other.is_table:
            return self._map_pieces(lambda piece: piece + other, shape)
        if other.pieces and self.is_table:
            return other._map_pieces(lambda piece: piece + self, shape)
        terms = self.polynomial().terms + other.polynomial().terms
        return collect(self._with(terms, shape, like))

    __radd__ = __add__

    def __neg__(self) -> Self:
        return self * -1.0

    def __sub__(self, other: object) -> Self:
        return self + -self._lift(other)

    def __rsub__(self, other: object) -> Self:
        return self._lift(other) + -self

    def __mul__(self, other: object) -> Self:
        other = self._lift(other)
        shape = broadcast_shapes(self.shape, other.shape)
        if self.opacity or other.opacity:
            return self._opaque("mul", other, shape=shape)
        if self.pieces or other.pieces:
            if not other.pieces:
                return self._map_pieces(lambda piece: piece * other, shape)
            if not self.pieces:
                return other._map_pieces(lambda piece: self * piece, shape)
            if len(self.pieces) * len(other.pieces) <= MOST_CASES // 4:
                return self._pairs(other, shape)
        left, right = self.polynomial().terms, other.polynomial().terms
        if len(left) * len(right) > _MOST_PAIRS:
            return self._opaque("a product of too many sums", other, shape=shape)
        terms = [a.times(b) for a in left for b in right]
        return collect(self._with(terms, shape, common_like(self, other)))

    __rmul__ = __mul__

    def __truediv__(self, other: object) -> Self:
        return self * self._lift(other) ** -1.0

    def __rtruediv__(self, other: object) -> Self:
        return self._lift(other) * self**-1.0

    def __pow__(self, exponent: Any) -> Self:
        if isinstance(exponent, Symbolic | Tensor):
            exponent = self._lift(exponent)
            if self.is_table and exponent.is_table:
                return self.apply(torch.pow, self, exponent)
            if not exponent.is_constant or exponent.shape.numel() != 1:
                found = self.of_scalar("pow", torch.pow, exponent, nonnegative=self.is_nonnegative)
                return found or self._opaque("pow", exponent, shape=broadcast_shapes(self.shape, exponent.shape))
            exponent = float(exponent.value())
        if self.opacity or not math.isfinite(exponent):
            found = self._unknown() if self.opacity else self._opaque("pow")
            found.logarithm = None if self.logarithm is None else self.logarithm * exponent  # it is positive
            return found
        if self.pieces:
            return self._map_pieces(lambda piece: piece**exponent)
        expands = exponent in range(1, _LARGEST_EXPANSION + 1)
        if self.is_table and self.choices and not (expands and count_combinations((self,)) > MOST_CASES):
            return self.apply(lambda t: t**exponent, self)
        raised = self.terms[0].raised(exponent, self.like) if self._is_monomial else None
        if raised is not None:
            return self._with([raised])
        if self.is_constant:
            return self.constant(self.value() ** exponent).expand(self.shape)
        if exponent == 2 and len(self.terms) ** 2 > 16 * _MOST_PAIRS:
            return self._opaque("a square of too long a sum")
        if exponent == 2:
            pairs = [(i, j) for j in range(len(self.terms)) for i in range(j + 1)]
            terms = self.terms
            return collect(self._with([terms[i].times(terms[j]).scaled(1.0 if i == j else 2.0) for i, j in pairs]))
        if expands:
            product = self
            for _ in range(int(exponent) - 1):
                product = product * self
            return product
        return self._without_rule("pow", lambda x: x**exponent, lambda e: e**exponent) or self._opaque(
            f"pow({exponent:g})"
        )

    @property
    def is_nonnegative(self) -> bool:
        """Whether it is provably nowhere negative: one product of powers of latents that are not."""
        if not self._is_monomial or self.opacity or self.terms[0].coefficient < 0:
            return False
        (term,) = self.terms
        known = all(f.function == "x" and f.variable.nonnegative for f in term.factors)
        return known and all(bool((c.tensor >= 0).all()) for c in term.constants)

    def of_scalar(
        self,
        name: str,
        function: Callable[..., Tensor],
        *others: Self,
        only_plain: bool = False,
        nonnegative: bool = False,
    ) -> Self | None:
        """An elementwise function of expressions in one scalar latent; None where they are in something else."""
        nonnegative = nonnegative or name in NONNEGATIVE
        term = of_scalar(name, function, (self, *others), self.like, nonnegative=nonnegative, only_plain=only_plain)
        shape = broadcast_shapes(self.shape, *(o.shape for o in others))
        return None if term is None else self._with([term], shape)

    @classmethod
    def of_scalar_batch(
        cls,
        name: str,
        function: Callable[..., Tensor],
        arguments: Sequence[Self],
        events: Sequence[int],
        batch_shape: Sequence[int],
    ) -> Self | None:
        """A function that takes the last ``events`` dimensions of each argument away, of expressions in one scalar
        latent; None where they are in something else.
        """
        like = next((a.like for a in arguments if a.sites), None)
        if like is None:
            return None
        term = of_scalar(name, function, arguments, like, events, batch_shape)
        return None if term is None else cls(batch_shape, like, [term])

    def _without_rule(self, name: str, function: Callable[..., Tensor], of_case: Callable[[Self], Self]) -> Self | None:
        """A function without a rule: of each of the sums that masks choose, by an integral, or at each value of
        discrete latents; None where it has none of these.
        """
        apart = self._apart()
        found = None if apart is None else of_case(apart)
        if found is not None and not found.opacity:
            return found
        plain = self.of_scalar(name, function, only_plain=True)
        return plain or self._by_cases(of_case) or self.of_scalar(name, function)

    def _apart(self) -> Self | None:
        """The sum as pieces, where constants such as masks of 0 and 1 leave other terms in other elements; None where
        they do not, or there are too many cases.
        """
        if not 0 < len(self.terms) < MOST_CASES:
            return None
        masks = [[c for c in t.constants if all(map(is_position, c.labels))] for t in self.terms]
        known = [Term(t.coefficient, tuple(m)) for t, m in zip(self.terms, masks, strict=True)]
        weights = [laid(*k.dense(self.like), (), self.ndim).expand(self.shape) for k in known]
        live = torch.stack(weights).reshape(len(weights), -1) != 0
        cases, index = torch.unique(live, dim=1, return_inverse=True)
        if bool(cases.all()) or cases.shape[1] > MOST_CASES:
            return None
        pieces = []
        for number, case in enumerate(cases.T.tolist()):
            here = (index == number).reshape(self.shape)
            terms = [Term(0.0)]
            for term, mask, weight in itertools.compress(zip(self.terms, masks, weights, strict=True), case):
                (scale,) = self.constant(torch.where(here, weight, term.coefficient)).terms
                rest = tuple(c for c in term.constants if c not in mask)
                terms.append(replace(term, coefficient=scale.coefficient, constants=(*scale.constants, *rest)))
            pieces.append((self.constant(here), self._with(terms[1:] or terms)._simplified()))
        return type(self)(self.shape, self.like, pieces=tuple(pieces))

    def _pairs(self, other: Self, shape: Sequence[int]) -> Self:
        """The product of pieces with pieces, where both masks hold."""
        pieces = []
        for (mask, piece), (mask2, piece2) in itertools.product(self.pieces, other.pieces):
            both = self.apply(torch.logical_and, mask, mask2)
            if bool(both.table(both.choices).any()):
                pieces.append((both, piece * piece2))
        return type(self)(shape, self.like, pieces=tuple(pieces))

    def _by_cases(self, function: Callable[[Self], Self]) -> Self | None:
        """The function of an expression, at each value of its discrete latents; None where one has no rule, or there
        are too many.
        """
        choices = self.choices
        sizes = [c.size for c in choices]
        bound = any(is_summed(label) for c in choices for label in c.labels)
        if not choices or bound or self.pieces or math.prod(sizes) > MOST_CASES:
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
            mask = self.from_table(chosen.reshape(*sizes, *[1] * self.ndim), choices, self.shape)
            pieces.append((mask if result.ndim == self.ndim else mask._without_matrix(), result))
        return type(self)(pieces[0][1].shape, self.like, pieces=tuple(pieces))

    def _simplified(self) -> Self:
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
        return collect(self._with(terms or [Term(0.0)]))


def common_like(a: Symbolic, b: Symbolic) -> Tensor:
    """An empty tensor of the dtype that torch promotes the two to."""
    if a.like.dtype == b.like.dtype:
        return a.like
    stand_ins = [e.like if e.shape else e.like.new_zeros(()) for e in (a, b)]
    return a.like.new_empty(0, dtype=torch.result_type(*stand_ins))


def _only_constant(mask: Symbolic) -> Constant:
    """The one constant of a mask."""
    ((constant,),) = (term.constants for term in mask.apply(lambda m: m, mask).terms)
    return constant


def collect(expression: S) -> S:
    """Add the tables of the same discrete latents up, so that differences of large constants are taken exactly."""
    groups: dict[frozenset[int], list[Term]] = {}
    rest = []
    for term in expression.terms:
        if term.factors or any(is_summed(label) for c in term.choices for label in c.labels):
            rest.append(term)
        else:
            groups.setdefault(frozenset(c.label for c in term.choices), []).append(term)
    if not any(len(g) > 1 or g[0].summed or len(g[0].constants) > 1 for g in groups.values()):
        return expression
    kept: list[Term] = []
    for group in groups.values():
        tables = expression._with(group)
        choices = tables.choices
        table = tables.table(choices)
        if not rest or bool(table.any()):
            kept += tables.from_table(table, choices, tables.shape).terms
    return expression._with([*rest, *kept])
