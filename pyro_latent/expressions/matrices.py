"""Matrix algebra of expressions, over their last two dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from ..values import broadcast_shapes
from .axes import shift
from .elementwise import Elementwise
from .terms import Factor, Term

#: The matrix functions, and the inverse of each.
_INVERSES = {"x": "inverse", "inverse": "x", "gram": "gram_inverse", "gram_inverse": "gram"}


class Matrices(Elementwise):
    """Expressions with determinants, inverses, Cholesky factors and quadratic forms."""

    __slots__ = ()

    def log_det(self) -> Self:
        """The log determinant of a positive definite matrix: of a scaled latent matrix, a constant, or a diagonal."""
        shape, dim = self.shape[:-2], self.shape[-1]
        if self.opacity:
            return type(self)(shape, self.like, opacity=self.opacity)
        if self.is_table:
            return self.apply(lambda t: torch.linalg.slogdet(t)[1], self, shape=shape, dims=(-2, -1), gone=2)
        split = self._split_matrix()
        if split is not None:
            scalar, matrix = split
            logarithm = (scalar ** float(dim)).log()
            if not isinstance(matrix, Factor):
                return logarithm + matrix.log_det()
            sign = -1.0 if matrix.function.endswith("inverse") else 1.0
            name = "gram_log_det" if matrix.function.startswith("gram") else "log_det"
            factor = replace(matrix, axes=matrix.axes[:-2], function=name)
            return logarithm + self._with([Term(sign, (), (factor,), self.choices)])._without_matrix()
        entries = self._diagonal()
        if entries is not None:
            return entries.log().sum(-1)
        cases = self._map_matrices(lambda e: e.log_det()) or self._by_cases(lambda e: e.log_det())
        return cases or self._opaque("logdet", shape=shape)

    def inverse(self) -> Self:
        """The matrix inverse, of what :meth:`log_det` takes."""
        if self.opacity:
            return self
        if self.is_table:
            return self.apply(_inverse, self, dims=(-2, -1))
        split = self._split_matrix()
        if split is not None:
            scalar, matrix = split
            reciprocal = (scalar**-1.0).reshape([*scalar.shape, 1, 1])
            if not isinstance(matrix, Factor):
                return reciprocal * matrix.inverse()
            flipped = replace(matrix, function=_INVERSES[matrix.function])
            return reciprocal * self._with([Term(1.0, (), (flipped,), self.choices)])
        entries = self._diagonal()
        if entries is not None:
            return (entries**-1.0).diag_embed()
        cases = self._map_matrices(lambda e: e.inverse()) or self._by_cases(lambda e: e.inverse())
        return cases or self._opaque("inverse")

    def cholesky(self) -> Self:
        """The Cholesky factor; only :meth:`gram` can read it."""
        result = self._opaque("cholesky")
        result.cholesky_of = self
        return result

    def gram(self) -> Self:
        """L Lᵀ."""
        if self.cholesky_of is not None:
            return self.cholesky_of
        split = None if self.opacity else self._split_matrix()
        factor = split[1] if split is not None and isinstance(split[1], Factor) else None
        constant = split[1] if split is not None and not isinstance(split[1], Factor) else None
        lower = factor is not None and factor.variable.lower_cholesky and factor.function == "x"
        if split is not None and factor is not None and lower and factor.reads_whole(self.shape[-2:]):
            scalar, _ = split
            squared = (scalar**2.0).reshape([*scalar.shape, 1, 1])
            return squared * self._with([Term(1.0, (), (replace(factor, function="gram"),), self.choices)])
        if split is not None and constant is not None and not self.is_table:
            squared = (split[0] ** 2.0).reshape([*split[0].shape, 1, 1])
            return squared * constant.matmul(constant.transpose(-1, -2))
        entries = None if self.opacity or self.is_table else self._diagonal()
        if entries is not None:
            return (entries**2.0).diag_embed()
        return self._map_matrices(lambda e: e.gram()) or self.matmul(self.transpose(-1, -2))

    def quadratic_form(self, matrix: Self) -> Self:
        """xᵀ M x over the last dimension, for a symmetric M."""
        source, middle = self.polynomial(), matrix.polynomial()
        shape = broadcast_shapes(self.shape[:-1], matrix.shape[:-2])
        if source.opacity or middle.opacity:
            return source._opaque("quadratic form", middle, shape=shape)
        parts, entries = [source._with([t]) for t in source.terms], middle._diagonal()
        total = self._number(0.0).expand(shape)
        for i, right in enumerate(parts):
            image = (middle * right.unsqueeze(-2)).sum(-1) if entries is None else entries * right
            for left in parts[: i + 1]:
                total = total + (left * image).sum(-1) * (1.0 if left is right else 2.0)
        return total

    def diag_embed(self) -> Self:
        """A diagonal matrix from the last dimension."""
        dim = self.shape[-1]
        if dim == 1:
            return self.unsqueeze(-1)
        rows = self.unsqueeze(-1).expand((*self.shape, dim))
        return self.constant(torch.eye(dim, dtype=torch.bool, device=self.like.device)).weigh(rows)

    def _split_matrix(self) -> tuple[Self, Factor | Self] | None:
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
        scalar = self._with([rest.substitute(shift(rest.labels, 2))], shape)
        if matrices:
            return scalar, matrices[0]
        return scalar, self._with([Term(1.0, (constants[0],), (), term.choices)])

    def _diagonal(self) -> Self | None:
        """The entries of a matrix that is provably diagonal, along the last dimension; None for any other."""
        dim, shape = self.shape[-1], self.shape[:-1]
        if dim == 1:
            return self.squeeze(-1)
        if self.pieces:
            entries = [(mask.expand(self.shape), piece.expand(self.shape)._diagonal()) for mask, piece in self.pieces]
            if any(entry is None for _, entry in entries):
                return None
            pieces = tuple((m._along_diagonal(), entry) for m, entry in entries if entry is not None)
            return type(self)(shape, self.like, pieces=pieces)
        if not all(any(c.is_diagonal(-2, -1) for c in term.constants) for term in self.terms):
            return None
        return self._along_diagonal()

    def _along_diagonal(self) -> Self:
        """The entries on the diagonal, along the last dimension."""
        merged = [t.substitute({-2: -1}) for t in self.terms]
        merged = [replace(t, constants=tuple(c.without(-1) for c in t.constants)) for t in merged]
        return self._with([t.substitute(shift(t.labels, 1, below=-3)) for t in merged], self.shape[:-1])

    def _map_matrices(self, function: Callable[[Self], Self]) -> Self | None:
        """Map pieces whose masks choose whole matrices; None where they do not, or there are no pieces."""
        if not self.pieces:
            return None
        masks = [mask.expand(self.shape)._apart_from(2) for mask, _ in self.pieces]
        if any(mask is None for mask in masks):
            return None
        mapped = [function(piece.expand(self.shape)) for _, piece in self.pieces]
        shape = mapped[0].shape
        if any(piece.opacity for piece in mapped):
            return self.opaque(shape, self.like, "where", [*mapped, self])
        kept = mapped[0].ndim == self.ndim
        whole = [mask if kept else mask.reshape(mask.shape[:-2]) for mask in masks if mask is not None]
        return type(self)(shape, self.like, pieces=tuple(zip(whole, mapped, strict=True)))


def _inverse(matrix: Tensor) -> Tensor:
    """The inverse, and not a number where there is none: of what a mask never chooses, perhaps."""
    inverse, singular = torch.linalg.inv_ex(matrix)
    return inverse.masked_fill((singular != 0)[..., None, None], torch.nan)
