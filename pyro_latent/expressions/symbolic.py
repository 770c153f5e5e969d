"""What an expression is: terms, pieces or an operation without a rule; and the numbers of a table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..values import broadcast_shapes
from .axes import Gather, is_summed, laid, position_axes, shift
from .constants import Constant
from .evaluation import LatentValues, evaluate_term
from .terms import Choice, Factor, Term, check_combinations
from .variables import Replay, Variable


@dataclass(frozen=True)
class Opacity:
    """Why an expression has no expectation: the operation, the latents behind it, and what to write instead.

    ``reads``: all latents that the expression depends on, those of later operations too.
    """

    operation: str
    sites: frozenset[str]
    hint: str = ""
    reads: frozenset[str] = frozenset()


class Symbolic:
    """A tensor-valued function of the latents, with the ``shape``, ``dtype`` and ``device`` of its value."""

    __slots__ = ("cholesky_of", "like", "logarithm", "opacity", "pieces", "places", "shape", "terms")

    def __init__(
        self,
        shape: Sequence[int],
        like: Tensor,
        terms: Sequence[Term] = (),
        *,
        pieces: tuple[tuple[Self, Self], ...] = (),
        opacity: Opacity | None = None,
        cholesky_of: Self | None = None,
        logarithm: Self | None = None,
    ) -> None:
        self.shape = torch.Size(shape)
        self.like = like
        self.terms = tuple(terms)
        self.pieces = pieces
        self.opacity = opacity
        self.cholesky_of = cholesky_of
        self.logarithm = logarithm
        self.places: Any = None  # what it is as an index, once it was one

    @classmethod
    def constant(cls, tensor: Tensor) -> Self:
        """A plain tensor; integers and booleans are kept exactly, as floating numbers."""
        labels = tuple(i - tensor.ndim for i in range(tensor.ndim) if tensor.shape[i] != 1)
        tensor = tensor.clone() if tensor.is_inference() else tensor  # which autograd refuses
        squeezed = tensor.reshape([n for n in tensor.shape if n != 1])
        if not tensor.is_floating_point():
            squeezed = squeezed.to(torch.get_default_dtype() if tensor.dtype == torch.bool else torch.float64)
        return cls(tensor.shape, tensor.new_empty(0), (Term(1.0, (Constant(squeezed, labels),)),))

    @classmethod
    def latent(
        cls,
        site: str,
        value: Tensor,
        simplex: bool = False,
        is_point: bool = False,
        lower_cholesky: bool = False,
        is_matrix: bool = False,
        nonnegative: bool = False,
        is_scalar: bool = False,
    ) -> Self:
        """A latent site whose value has the shape, dtype and device of ``value``; what is known of it is as in
        :class:`~.terms.Variable`.
        """
        variable = Variable(
            site,
            value.shape,
            simplex,
            is_point,
            lower_cholesky,
            is_matrix,
            nonnegative=nonnegative or simplex,
            is_scalar=is_scalar,
        )
        return cls(value.shape, value.new_empty(0), (Term(1.0, (), (Factor(variable, position_axes(value.shape)),)),))

    @classmethod
    def discrete(cls, site: str, support: Tensor, batch_shape: torch.Size) -> Self:
        """A discrete latent of this batch shape, whose values are the rows of ``support``."""
        event = support.shape[1:]
        axes = position_axes((*batch_shape, *event))[: len(batch_shape)]
        choice = Choice.of(site, axes, support.shape[0])
        table = support.reshape(support.shape[0], *[1] * len(batch_shape), *event)
        return cls.from_table(table, (choice,), batch_shape + event)

    @classmethod
    def from_table(cls, table: Tensor, choices: Sequence[Choice], shape: Sequence[int]) -> Self:
        """A number for each combination of values: ``table`` has a dimension for each choice, then those of ``shape``,
        of size 1 where it does not vary.
        """
        names = (*(c.label for c in choices), *range(-len(shape), 0))
        like = table.new_empty(0)
        if not table.is_floating_point():  # kept exactly
            table = table.to(torch.get_default_dtype() if table.dtype == torch.bool else torch.float64)
        kept = [i for i, n in enumerate(table.shape) if n != 1]
        constant = Constant(table.reshape([table.shape[i] for i in kept]), tuple(names[i] for i in kept))
        return cls(shape, like, (Term(1.0, (constant,), (), tuple(choices)),))

    @classmethod
    def derived(
        cls, name: str, value: Tensor, replay: Replay, parents: frozenset[str], choices: Sequence[Choice] = ()
    ) -> Self:
        """What the model computed from points by an operation without a rule: a point itself, for each combination of
        the values of discrete latents.
        """
        shape = torch.Size((*(c.size for c in choices), *value.shape))
        variable = Variable(name, shape, is_point=True, replay=replay, parents=parents)
        factor = Factor(variable, (*(c.label for c in choices), *position_axes(value.shape)))
        return cls(value.shape, value.new_empty(0), (Term(1.0, (), (factor,), tuple(choices)),))

    @classmethod
    def opaque(
        cls, shape: Sequence[int], like: Tensor, operation: str, parents: Sequence[Self], hint: str = ""
    ) -> Self:
        """The result of an operation that has no rule."""
        first = next((p.opacity for p in parents if p.opacity), None)
        sites = frozenset().union(*(p.sites for p in parents))
        found = replace(first, reads=sites) if first else Opacity(operation, sites, hint, sites)
        return cls(shape, like, opacity=found)

    def _opaque(self, operation: str, *others: Self, shape: Sequence[int] | None = None) -> Self:
        return self.opaque(self.shape if shape is None else shape, self.like, operation, (self, *others))

    def _unknown(self) -> Self:
        """What an operation makes of an opaque expression: as opaque, and nothing is known of it."""
        return type(self)(self.shape, self.like, opacity=self.opacity)

    def _number(self, number: float) -> Self:
        whole = self.like.is_floating_point() or isinstance(number, bool | int)
        return type(self)((), self.like if whole else torch.empty(0, device=self.like.device), (Term(float(number)),))

    def as_dtype_of(self, like: Tensor) -> Self:
        """The expression with the dtype and device of another tensor."""
        if like.dtype == self.like.dtype and like.device == self.like.device:
            return self
        found = type(self)(
            self.shape,
            like.new_empty(0),
            self.terms,
            pieces=self.pieces,
            opacity=self.opacity,
            cholesky_of=self.cholesky_of,
            logarithm=self.logarithm,
        )
        if like.is_floating_point() and not self.like.is_floating_point() and like.device == self.like.device:
            found.places = self.places  # whole numbers stay as they are
        return found

    def _lift(self, other: Any) -> Self:
        if isinstance(other, type(self)):
            return other
        if isinstance(other, Tensor):
            return self.constant(other)
        return self._number(other)

    def _with(self, terms: Sequence[Term], shape: Sequence[int] | None = None, like: Tensor | None = None) -> Self:
        return type(self)(self.shape if shape is None else shape, self.like if like is None else like, terms)

    def of_terms(self, terms: Sequence[Term]) -> Self:
        """Some of the terms of a polynomial."""
        return self._with(terms)

    def become(self, other: Self) -> None:
        """Take all that another expression of the shape is; who has this one has that."""
        for name in Symbolic.__slots__:
            setattr(self, name, getattr(other, name))

    def with_logarithm(self, logarithm: Self) -> Self:
        """The expression, with what is known of its logarithm where it does not say it itself."""
        return type(self)(
            self.shape,
            self.like,
            self.terms,
            pieces=self.pieces,
            opacity=self.opacity,
            cholesky_of=self.cholesky_of,
            logarithm=logarithm,
        )

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def sites(self) -> frozenset[str]:
        """The latents that the expression depends on."""
        if self.opacity:
            return self.opacity.reads
        found = {c.site for t in self.terms for c in t.choices}
        factors = (f.sites for t in self.terms for f in t.factors)
        return frozenset(found).union(*factors, *(e.sites for pair in self.pieces for e in pair))

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

    @property
    def sums_derived(self) -> str:
        """The operation on points whose results it sums, as a layer of a network does; "" where there is none. Computed
        as one again, its square has no product for each pair of terms, which cancel. Joint choices of discrete latents
        are not made for that.
        """
        derived = [f.variable.site for t in self.terms for f in t.factors if f.variable.replay is not None]
        apart = len(self.choices) > max((len(t.choices) for t in self.terms), default=0)
        adds = not apart and (len(self.terms) > 1 or any(t.summed for t in self.terms))
        return derived[0].split()[0] if derived and adds else ""

    @property
    def is_finite(self) -> bool:
        """Whether every constant in the expression is finite."""
        return all(t.is_finite for t in self.terms) and all(p.is_finite for _, p in self.pieces)

    def table(self, choices: Sequence[Choice], dims: Sequence[int] = ()) -> Tensor:
        """The numbers of a table: a dimension for each of these choices, then those of the shape, of size 1 where it
        does not vary, but for the (negative) ``dims``.
        """
        order = [c.label for c in choices]
        parts = [laid(*term.dense(self.like), order, self.ndim) for term in self.unbound().terms]
        total = parts[0] if parts else self.like.new_zeros([1] * (len(order) + self.ndim))
        for part in parts[1:]:
            total = total + part
        total = total.to(self.like.dtype)
        full = [self.shape[i] if i - self.ndim in dims else -1 for i in range(self.ndim)]
        return total.expand(*[-1] * len(order), *full) if dims else total

    def unbound(self) -> Self:
        """A table whose sums over the elements of a discrete latent are written out, one term for each element."""
        if not any(is_summed(label) for t in self.terms for c in t.choices for label in c.labels):
            return self
        terms: list[Term] = []
        for term in self.terms:
            bound = {label for c in term.choices for label in c.labels if is_summed(label)}
            places = itertools.product(*(range(term.sizes[label]) for label in bound))
            for place in places if bound else [()]:
                index = {
                    label: Gather(torch.tensor(i, device=self.like.device), ())
                    for label, i in zip(bound, place, strict=False)
                }
                terms.append(term.substitute(index) if bound else term)
        return self._with(terms)

    @classmethod
    def apply(
        cls,
        function: Callable[..., Tensor],
        *tables: Self,
        shape: Sequence[int] | None = None,
        dims: Sequence[int] = (),
        gone: int = 0,
    ) -> Self:
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
        return cls.from_table(function(*laid), moved, shape)

    def widened(self, ndim: int) -> Self:
        """Add dimensions of size 1 on the left, up to ``ndim``."""
        return self._with(self.terms, [1] * (ndim - self.ndim) + list(self.shape))

    def evaluate(self, values: Mapping[str, Tensor] | LatentValues) -> Tensor:
        """The value in float64 at given values of the latents.

        Args:
            values: a tensor of its own shape for each of the ``sites``; a latent that is measured from an origin is
                given as its distance from it, and a discrete latent as the numbers of its values. ``LatentValues`` of
                them remember what was computed of them.

        Raises:
            ValueError: if the expression is opaque.
        """
        return self._evaluate(values if isinstance(values, LatentValues) else LatentValues(values))

    def _evaluate(self, values: LatentValues) -> Tensor:
        if self.opacity:
            raise ArgumentError(
                f"Expected an expression with a value; got the opaque result of {self.opacity.operation} on "
                f"{sorted(self.sites)}. Write it with operations that have a rule."
            )
        total = torch.zeros(self.shape, dtype=torch.float64, device=self.like.device)
        for mask, piece in self.pieces:
            total = torch.where(mask._evaluate(values) != 0, piece._evaluate(values), total)
        return sum(self.summands(values), total)

    def summands(self, values: LatentValues) -> list[Tensor]:
        """The value of each term, with size 1 where it does not vary, at values as :meth:`evaluate` takes them."""
        return [laid(*evaluate_term(term, values), (), self.ndim) for term in self.terms]

    def _without_matrix(self) -> Self:
        """The view without the last two dimensions, along which it does not vary."""
        return self._with([t.substitute(shift(t.labels, 2)) for t in self.terms], self.shape[:-2])

    def expand(self, shape: Sequence[int]) -> Self:
        """Broadcast to a larger shape; -1 keeps a size."""
        lead = len(shape) - self.ndim
        sizes = [self.shape[i - lead] if n == -1 else n for i, n in enumerate(shape)]
        kept = self.cholesky_of if torch.Size(sizes[-2:]) == self.shape[-2:] else None
        logarithm = None if self.logarithm is None else self.logarithm.expand(sizes)
        found = type(self)(sizes, self.like, self.terms, pieces=self.pieces, opacity=self.opacity, cholesky_of=kept)
        found.logarithm = logarithm
        return found

    @property
    def _is_monomial(self) -> bool:
        """One product, with no sum inside: powers and logarithms act on each factor."""
        return len(self.terms) == 1 and not self.terms[0].summed

    def _map_pieces(self, function: Callable[[Self], Self], shape: Sequence[int] | None = None) -> Self:
        pieces: tuple[tuple[Self, Self], ...] = tuple((mask, function(piece)) for mask, piece in self.pieces)
        shape = pieces[0][1].shape if shape is None else shape
        if any(piece.opacity for _, piece in pieces):
            return self.opaque(shape, self.like, "where", [*(piece for _, piece in pieces), self])
        shape = broadcast_shapes(shape, *(mask.shape for mask, _ in pieces), *(p.shape for _, p in pieces))
        return type(self)(shape, self.like, pieces=pieces)

    def __repr__(self) -> str:
        kind = "opaque" if self.opacity else "pieces" if self.pieces else f"{len(self.terms)} terms"
        return f"Expression(shape={tuple(self.shape)}, {kind}, of {sorted(self.sites)})"


def count_combinations(tables: Sequence[Symbolic]) -> int:
    return math.prod({c.label: c.size for t in tables for c in t.unbound().choices}.values())
