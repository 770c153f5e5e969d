r"""Exact elimination of discrete variables from log factors.

.. math:: \log Z = \log \sum_z \prod_f \exp f(z)

with the plates as products: a variable inside a plate is summed out there, the result is weighted by the plate's scale,
and multiplied over the plate (Obermeyer et al. 2019, "Tensor variable elimination for plated factor graphs"). The
gradient of log Z in a factor is its posterior probabilities, so responsibilities need no code of their own.

A factor's tensor is laid out as ``[starts] + its variables + plates``; a dimension that it lacks has size 1. A
:class:`Plan` is the order of the work, found once: always the variable whose elimination makes the smallest table.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ModelError


@dataclass(frozen=True, eq=False)
class Variable:
    """A discrete variable: its number of values, the sizes of its plates by their (negative) dimensions, its scale."""

    name: Hashable
    size: int
    plates: Mapping[int, int]
    scale: Tensor | float


class Scope(NamedTuple):
    """The variables of a factor, in the order of its dimensions, and the dimensions of the plates that it lies in."""

    names: tuple[Hashable, ...]
    plates: frozenset[int]


class Table(NamedTuple):
    """What a variable is summed out of: log p(variable | the others of ``names``), up to a constant, given the data;
    ``[starts] + names + plates``.
    """

    variable: Hashable
    names: tuple[Hashable, ...]
    log_weights: Tensor


class _Step(NamedTuple):
    """Multiply some factors and sum a variable out; then, where it leaves plates, weight and multiply over them."""

    factors: tuple[int, ...]
    names: tuple[Hashable, ...]
    at: int
    variable: Variable
    gone: tuple[int, ...]
    outer: Tensor | float


class NotNestedError(Exception):
    """The plates of the variables that meet in a factor are not nested, so that no order of elimination is exact."""


class Plan:
    """The order in which variables are eliminated.

    Attributes:
        largest: the number of elements of the largest table, without starts and plates.
        work: the number of elements of the tables of all steps, without starts and plates.
        numbers: the number of elements of the largest table with its plates, without starts.
        total: the number of elements of all tables with their plates, without starts.

    Raises:
        NotNestedError: if variables meet in a factor whose plates cross.
        ModelError: if variables of the same plates that meet have different scales.
    """

    def __init__(self, scopes: Sequence[Scope], variables: Sequence[Variable]) -> None:
        self.scopes = [s.names for s in scopes]
        self.steps: list[_Step] = []
        self.largest, self.work, self.numbers, self.total = 1, 0, 1, 0
        self._variables = {v.name: v for v in variables}
        self._pool = dict(enumerate(scopes))
        self._of: dict[Hashable, set[int]] = {v.name: set() for v in variables}
        for i, scope in self._pool.items():
            for name in scope.names:
                self._of[name].add(i)
        self._build()

    def _build(self) -> None:
        """Eliminate the cheapest variable first; the costs of its neighbors change with each."""
        place = {name: i for i, name in enumerate(self._variables)}
        heap = [(self._cost(name), -i, name) for name, i in place.items()]
        heapq.heapify(heap)
        current = {name: cost for cost, _, name in heap}
        while heap:
            cost, _, name = heapq.heappop(heap)
            if current.get(name) != cost:
                continue
            if cost == math.inf:
                raise NotNestedError
            del current[name]
            for other in self._eliminate(name):
                current[other] = self._cost(other)
                heapq.heappush(heap, (current[other], -place[other], other))

    def _cost(self, name: Hashable) -> float:
        """The size of the table that eliminating a variable makes; infinite while a factor lies in deeper plates."""
        inside = frozenset(self._variables[name].plates)
        if any(not self._pool[i].plates <= inside for i in self._of[name]):
            return math.inf
        return math.prod(self._variables[n].size for n in self._names(name))

    def _names(self, name: Hashable) -> tuple[Hashable, ...]:
        return tuple(dict.fromkeys(n for i in sorted(self._of[name]) for n in self._pool[i].names))

    def _eliminate(self, name: Hashable) -> tuple[Hashable, ...]:
        variable, names, factors = self._variables[name], self._names(name), tuple(sorted(self._of[name]))
        rest = tuple(n for n in names if n != name)
        kept = frozenset().union(*(self._variables[n].plates for n in rest)) if rest else frozenset()
        gone = tuple(sorted(set(variable.plates) - kept))
        outer = self._outer(variable, rest, gone)
        self.steps.append(_Step(factors, names, names.index(name) if names else 0, variable, gone, outer))
        size = math.prod(self._variables[n].size for n in names)
        self.largest, self.work = max(self.largest, size), self.work + size
        numbers = size * math.prod(variable.plates.values())
        self.numbers, self.total = max(self.numbers, numbers), self.total + numbers
        for i in factors:
            for n in self._pool.pop(i).names:
                self._of[n].discard(i)
        if rest:
            index = len(self.scopes) + len(self.steps) - 1
            self._pool[index] = Scope(rest, kept)
            for n in rest:
                self._of[n].add(index)
        return rest

    def _outer(self, variable: Variable, rest: Sequence[Hashable], gone: Sequence[int]) -> Tensor | float:
        """The scale of what the result goes to, which the weight is relative to."""
        if not rest:
            return 1.0
        scales = [self._variables[n].scale for n in rest] + ([] if gone else [variable.scale])
        for scale in scales[1:]:
            if not same_scale(scale, scales[0]):
                raise ModelError(
                    f"Expected one scale for the discrete sites that meet in a density; got {scales[0]} and {scale} at "
                    f"{', '.join(map(repr, (variable.name, *rest)))}. Put poutine.scale around all of them."
                )
        return scales[0]

    def run(
        self,
        tensors: Sequence[Tensor],
        sizes: Mapping[int, int] = MappingProxyType({}),
        tables: list[Table] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """log Z for each start, float64, and the sum of the absolute values of what was added up to it.

        Args:
            tensors: the factors, each weighted by its scale relative to that of its innermost variable.
            sizes: those of the plates of which the factors are a part only.
            tables: a list that the table of each step is added to, in the order of elimination.
        """
        pool = dict(enumerate(tensors))
        scopes = dict(enumerate(self.scopes))
        totals: list[Tensor] = []
        for index, step in enumerate(self.steps, len(self.scopes)):
            joint = _product([(pool.pop(i), scopes[i]) for i in step.factors], step.names)
            if tables is not None:
                tables.append(Table(step.variable.name, step.names, joint))
            reduced = _LogSumExp.apply(joint, 1 + step.at)
            variable = step.variable
            rest = tuple(n for n in step.names if n != variable.name)
            if step.gone or not rest:
                reduced = _over(reduced, {**variable.plates, **sizes}) * relative_scale(variable.scale, step.outer)
            if not rest:
                totals.append(reduced.reshape(len(reduced), -1))
                continue
            scopes[index] = rest
            pool[index] = reduced.sum(step.gone, keepdim=True) if step.gone else reduced
        parts = [t.sum(1, dtype=torch.float64) for t in totals]
        magnitudes = [t.detach().abs().sum(1, dtype=torch.float64) for t in totals]
        total, magnitude = (torch.stack(torch.broadcast_tensors(*each)).sum(0) for each in (parts, magnitudes))
        return total, magnitude


def same_scale(a: Tensor | float, b: Tensor | float) -> bool:
    """Whether two scales are equal."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        tensor, number = (a, b) if isinstance(a, Tensor) else (b, a)
        return bool((tensor == number).all())  # type: ignore[union-attr]
    return a == b


def relative_scale(inner: Tensor | float, outer: Tensor | float) -> Tensor | float:
    """``inner / outer``, and 1 where they are the same object or number."""
    if inner is outer:
        return 1.0
    return inner / outer


def _product(factors: Sequence[tuple[Tensor, tuple[Hashable, ...]]], names: Sequence[Hashable]) -> Tensor:
    """The sum of log factors over the union of their variables."""
    total: Tensor | None = None
    for tensor, own in factors:
        part = laid(tensor, own, names)
        total = part if total is None else total + part
    assert total is not None
    return total


def laid(tensor: Tensor, own: Sequence[Hashable], names: Sequence[Hashable]) -> Tensor:
    """A factor with a dimension for each of ``names``, in that order."""
    if tuple(own) == tuple(names):
        return tensor
    order = [own.index(n) + 1 for n in names if n in own]
    ordered = tensor.permute([0, *order, *range(1 + len(own), tensor.ndim)])
    sizes = [tensor.shape[own.index(n) + 1] if n in own else 1 for n in names]
    return ordered.reshape(tensor.shape[0], *sizes, *tensor.shape[1 + len(own) :])


class _LogSumExp(torch.autograd.Function):
    """log Σ exp over a dimension; −∞, with gradient zero, where every term is −∞."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int) -> Tensor:
        result = tensor.logsumexp(dim)
        ctx.save_for_backward(tensor, result)
        ctx.dim = dim
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        tensor, result = ctx.saved_tensors
        (gradient,) = gradients
        finite = torch.where(result.isfinite(), result, torch.zeros_like(result))
        return (tensor - finite.unsqueeze(ctx.dim)).exp_().mul_(gradient.unsqueeze(ctx.dim)), None


def _over(tensor: Tensor, plates: Mapping[int, int]) -> Tensor:
    """Repeat a result that does not vary along a plate, for it is multiplied over the plate."""
    shape = list(tensor.shape)
    for dim, size in plates.items():
        shape[dim] = size
    return tensor.expand(shape)


__all__ = ["NotNestedError", "Plan", "Scope", "Table", "Variable", "laid", "relative_scale", "same_scale"]
