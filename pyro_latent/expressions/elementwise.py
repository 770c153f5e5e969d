"""Elementwise functions of expressions, choices between them, and what is known of their values."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from ..distributions.gamma_ratios import log_rising
from ..values import broadcast_shapes
from .arithmetic import MOST_CASES, collect, common_like
from .axes import Gather, in_last, laid, position_axes, shift
from .dimensions import Dimensions
from .numbering import fresh_number
from .symbolic import Symbolic, count_combinations
from .terms import Factor, LogOfSum, Term
from .variables import Variable


class Elementwise(Dimensions):
    """Expressions with logarithms, log-gamma functions, weights and ``where``."""

    __slots__ = ()

    def log(self) -> Self:
        """The elementwise logarithm, of products of powers, of 1 - x, of constants, and of what remembers its own."""
        if self.logarithm is not None:
            return self.logarithm
        if self.opacity:
            return self._unknown()
        if self.pieces:
            return self._map_pieces(lambda e: e.log())
        if self.is_table and (self.choices or not (self._is_monomial and self.terms[0].coefficient > 0)):
            return self.apply(torch.log, self)
        complement = self._complement()
        if complement is not None:
            return self._with([complement])
        terms = self.terms[0].log(self.like) if self._is_monomial else None
        if terms is None:
            return self._without_rule("log", torch.log, lambda e: e.log()) or self._opaque("log")
        return collect(self._with(terms))

    @property
    def sums_products(self) -> bool:
        """Whether it is a sum of several products of nonnegative latents, without discrete ones."""
        if self.opacity or self.pieces or self.choices or self.is_table:
            return False
        several = len(self.terms) > 1 or bool(self.terms[0].summed)
        known = all(f.function == "x" and f.variable.nonnegative for t in self.terms for f in t.factors)
        constants = [c.tensor for t in self.terms for c in t.constants]
        nowhere = all(bool((c >= 0).all()) for c in constants) and all(t.coefficient >= 0 for t in self.terms)
        return several and known and nowhere

    def log_of_sum(self) -> Self:
        """The logarithm of a sum of products, kept as one: what is known of its expectation is a bound."""
        axes = position_axes(self.shape)
        factor = LogOfSum(Variable(f"sum {fresh_number()}", self.shape), axes, "log", summands=self.terms)
        return self._with([Term(1.0, (), (factor,))])

    def exp(self) -> Self:
        """The elementwise exponential: of constants, of multiples of logarithms, which are powers, and of functions of
        one scalar latent each, as a product.
        """
        if self.opacity:
            return self._unknown()
        if self.pieces:
            return self._map_pieces(lambda e: e.exp())
        product = self._number(1.0).expand(self.shape)
        groups: list[list[Term]] = []
        for term in self.terms:
            part = self._with([term])
            logarithm = len(term.factors) == 1 and term.factors[0].function == "log" and term.factors[0].power == 1
            if part.is_table:
                product = product * self.apply(torch.exp, part)
            elif logarithm and not term.constants and not term.summed:
                power = replace(term.factors[0], function="x", power=term.coefficient)
                product = product * self._with([Term(1.0, (), (power,), term.choices)])
            else:
                same = (g for g in groups if self._with([*g, term]).of_scalar("exp", torch.exp))
                group = next(same, None)
                if group is None:
                    groups.append(group := [])
                group.append(term)
        for group in groups:
            found = self._with(group).of_scalar("exp", torch.exp)
            if found is None:
                found = self._opaque("exp")
                found.logarithm = self
                return found
            product = product * found
        if groups:  # what is known of a power says its logarithm itself
            product.logarithm = self
        return product

    def log1m(self) -> Self:
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
        factor = _log_complement(rest.factors[0], self.like.device)
        return Term(1.0, rest.constants, (factor,), rest.choices) if bool((ones == 1).all()) else None

    def lgamma(self) -> Self:
        """log Γ, of constants, of point estimates, and of functions of one scalar latent."""
        if self.is_table:
            return self.apply(torch.lgamma, self)
        if self.pieces and not self.opacity:
            return self._map_pieces(lambda e: e.lgamma())
        return self.of_scalar("lgamma", torch.lgamma) or self._of_point("lgamma", 0)

    def log_rising(self, count: Self) -> Self:
        """log Γ(x + n) − log Γ(x): of a function of one scalar latent as one, which does not round as their difference
        does.
        """
        found = None if self.is_table or self.pieces else self.of_scalar("log_rising", log_rising, count)
        return (self + count).lgamma() - self.lgamma() if found is None else found

    def log_beta(self) -> Self:
        """Σ log Γ(x_k) − log Γ(Σ x_k) over the last dimension, of constants, of point estimates, and of functions of
        one scalar latent.
        """
        if self.is_table or any(f.variable.root.is_scalar for t in self.terms for f in t.factors):
            return self.lgamma().sum(-1) - self.sum(-1).lgamma()
        return self._of_point("log_beta", 1)

    def _of_point(self, function: str, event: int) -> Self:
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
        return self._with([term.substitute(shift(term.labels, event))], shape)

    def weigh(self, logarithm: Self) -> Self:
        """The product, which is 0 where ``self``, a table, is 0, even if the logarithm is infinite: 0 log 0 = 0."""
        if logarithm.pieces:
            return logarithm._map_pieces(self.weigh)
        if not self.is_table or logarithm.opacity or logarithm.is_finite:
            return self * logarithm
        tables = logarithm._with([t for t in logarithm.terms if not t.factors])
        rest = logarithm._with([t for t in logarithm.terms if t.factors])
        product = self * rest if rest.terms else self._number(0.0)
        if not rest.is_finite:
            nonzero = self.apply(lambda x: x != 0, self)
            product = self.where(nonzero, product, self._number(0.0)).polynomial()
        if tables.terms:
            product = product + self.apply(lambda x, t: torch.where(x == 0, torch.zeros_like(t), x * t), self, tables)
        return product.expand(broadcast_shapes(self.shape, logarithm.shape))

    @classmethod
    def where(cls, condition: Self | Tensor, a: Self, b: Self) -> Self:
        """``a`` where the condition, a table, holds, ``b`` elsewhere."""
        condition = condition if isinstance(condition, Symbolic) else cls.constant(condition)
        shape = broadcast_shapes(condition.shape, a.shape, b.shape)
        like = common_like(a, b)
        if a.opacity or b.opacity:
            return cls.opaque(shape, like, "where", (condition, a, b))
        if a.is_table and b.is_table and count_combinations((condition, a, b)) <= MOST_CASES**2:
            return cls.apply(torch.where, condition, a, b).as_dtype_of(like)
        pieces: list[tuple[Self, Self]] = []
        for mask, branch in ((condition, a), (cls.apply(torch.logical_not, condition), b)):
            inner = branch.pieces or ((None, branch),)
            pieces += [
                (mask if m is None else cls.apply(torch.logical_and, mask, m), p.as_dtype_of(like)) for m, p in inner
            ]
        return cls(shape, like, pieces=tuple(pieces))

    def _apart_from(self, count: int) -> Self | None:
        """A mask that does not vary along its last dimensions, with size 1 there; None where it does."""
        choices = self.choices
        if any(in_last(x, count) for c in choices for x in c.labels):
            return None
        table = self.table(choices)
        first = table
        for dim in range(-count, 0):
            first = first.narrow(dim, 0, 1)
        shape = (*self.shape[: self.ndim - count], *[1] * count)
        return self.from_table(first, choices, shape) if torch.equal(table, first.expand_as(table)) else None

    @property
    def is_normalized(self) -> bool:
        """Whether the last dimension provably sums to one: a latent's simplex, seen whole, or terms that add up to
        one, as those of the stacked 1 - p and p do.
        """
        if self.logarithm is not None:
            return self._adds_up_to_one
        if self.opacity:
            return False
        if self.is_table:
            total = self.table(self.choices, (-1,)).sum(-1)
            return bool(torch.allclose(total, torch.ones_like(total), atol=1e-6, rtol=0.0))
        if self._is_monomial and len(self.terms[0].factors) == 1 and not self.terms[0].constants:
            return self.terms[0].coefficient == 1 and self._is_simplex(self.terms[0].factors[0])
        return self._chooses_simplexes or self.sum(-1).is_one

    @property
    def _adds_up_to_one(self) -> bool:
        """Whether what remembers its logarithm sums to one at some numbers, which an analytic function of them does at
        all or almost nowhere.
        """
        assert self.logarithm is not None
        terms = [t for e in (self.logarithm, *(p for _, p in self.logarithm.pieces)) for t in e.terms]
        variables = {f.variable.root.site: f.variable.root for t in terms for f in t.factors}.values()
        if self.logarithm.opacity or self.logarithm.choices or any(v.replay is not None for v in variables):
            return False
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            values = {}
            for v in variables:
                drawn = 0.1 + 0.8 * torch.rand(v.shape, generator=generator).double().to(self.like.device)
                values[v.site] = drawn / drawn.sum(-1, keepdim=True) if v.simplex else drawn
            found = self.logarithm.evaluate(values).exp().sum(-1)
            if not torch.allclose(found, torch.ones_like(found), rtol=0, atol=1e-9):
                return False
        return True

    @property
    def _chooses_simplexes(self) -> bool:
        """Whether the masks of the pieces do not vary along the last dimension, and every piece is normalized."""
        whole = all(mask.expand(self.shape)._apart_from(1) is not None for mask, _ in self.pieces)
        return bool(self.pieces) and whole and all(p.expand(self.shape).is_normalized for _, p in self.pieces)

    def _is_simplex(self, factor: Factor) -> bool:
        plain = factor.power == 1 and factor.function == "x" and factor.variable.simplex
        return plain and factor.reads_whole(self.shape[-1:])

    @property
    def is_one(self) -> bool:
        """Whether the terms provably add up to one."""
        groups: list[tuple[Term, Tensor]] = []
        order = [c.label for c in self.choices]
        for term in self.terms:
            read = (*(f.labels for f in term.factors), *(c.labels for c in term.choices))
            if term.summed & {label for labels in read for label in labels}:
                return False
            weight = laid(*Term(term.coefficient, term.constants).dense(self.like), order, self.ndim)
            for i, (known, total) in enumerate(groups):
                if known.same_factors(term):
                    groups[i] = (known, total + weight)
                    break
            else:
                groups.append((term, weight))
        constant = any(not t.factors for t, _ in groups)
        return constant and all(bool((w - float(not t.factors)).abs().max() <= 1e-6) for t, w in groups)


def _log_complement(factor: Factor, device: torch.device) -> Factor:
    """log(1 − x), of x to the first power: of one of two shares, the logarithm of the other."""
    shape, axis = factor.variable.shape, factor.axes[-1] if factor.axes else None
    if not factor.variable.simplex or shape[-1] != 2:
        return replace(factor, function="log1m")
    index = axis.index if isinstance(axis, Gather) else torch.arange(2, device=device)
    other = Gather(1 - index, axis.labels if isinstance(axis, Gather) else (axis,))  # type: ignore[arg-type]
    return replace(factor, axes=(*factor.axes[:-1], other), function="log")
