"""The order in which discrete variables are eliminated: in rounds, of variables that do not meet.

Always those whose elimination makes the smallest tables (Obermeyer et al. 2019, "Tensor variable elimination for plated
factor graphs", for what plates ask of an order).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ModelError


@dataclass(frozen=True, eq=False)
class DiscreteVariable:
    """A discrete variable: its number of values, the sizes of its plates by their (negative) dimensions, its scale."""

    name: Hashable
    size: int
    plates: Mapping[int, int]
    scale: Tensor | float


class Scope(NamedTuple):
    """The variables of a factor, in the order of its dimensions, and the dimensions of the plates that it lies in."""

    names: tuple[Hashable, ...]
    plates: frozenset[int]


class SumStep(NamedTuple):
    """Multiply some factors, given by their buffers and rows, and sum a variable out; then, where it leaves plates,
    weight and multiply over them.
    """

    factors: tuple[tuple[int, int], ...]
    scopes: tuple[tuple[Hashable, ...], ...]
    names: tuple[Hashable, ...]
    sizes: tuple[int, ...]
    variable: DiscreteVariable
    kept: frozenset[int]
    outer: Tensor | float

    @property
    def gone(self) -> tuple[int, ...]:
        """The plates that are multiplied over."""
        return tuple(sorted(set(self.variable.plates) - self.kept))

    @property
    def weight(self) -> Tensor | float:
        """The scale of the variable, relative to that of what the result goes to."""
        return relative_scale(self.variable.scale, self.outer)


class NotNestedError(Exception):
    """The plates of the variables that meet in a factor are not nested, so that no order of elimination is exact."""


class Order:
    """Variables in rounds: those of one round do not meet, and nothing is changed for one by another.

    ``is_wide``: a round takes all that make tables not larger than the smallest one times its variable's size, and not
    those of the smallest alone: a chain goes in log T rounds in place of T / 2.
    """

    def __init__(
        self, buffers: Sequence[Sequence[Scope]], variables: Mapping[Hashable, DiscreteVariable], is_wide: bool
    ):
        self._variables, self._is_wide = variables, is_wide
        self._place = {name: i for i, name in enumerate(variables)}
        self._pool = {(i, row): scope for i, rows in enumerate(buffers) for row, scope in enumerate(rows)}
        self._of: dict[Hashable, dict[tuple[int, int], None]] = {name: {} for name in variables}
        for key, scope in self._pool.items():
            for name in scope.names:
                self._of[name][key] = None
        self._costs = {name: self._cost(name) for name in variables}
        self._heap = [(cost, -self._place[name], name) for name, cost in self._costs.items()]
        heapq.heapify(self._heap)
        self.rounds: list[list[list[SumStep]]] = []  # by round, the steps that are alike together
        self._count = len(buffers)
        while self._costs:
            self.rounds.append(self._round())

    def _round(self) -> list[list[SumStep]]:
        taken: list[Hashable] = []
        beside: set[Hashable] = set()
        left: list[Any] = []
        limit = math.inf
        while self._heap and self._heap[0][0] <= limit:
            entry = heapq.heappop(self._heap)
            cost, _, name = entry
            if self._costs.get(name) != cost:
                continue
            if not taken:
                if cost == math.inf:
                    raise NotNestedError
                limit = cost * self._variables[name].size if self._is_wide else cost
            if name in beside or cost == math.inf:
                left.append(entry)
                continue
            taken.append(name)
            beside.update(self._names(name))
        for entry in left:
            heapq.heappush(self._heap, entry)
        groups: dict[Hashable, list[SumStep]] = {}
        for name in taken:
            del self._costs[name]
            step = self._step(name)
            groups.setdefault(_kind_of(step), []).append(step)
        self._put_back([step for group in groups.values() for step in group])
        return list(groups.values())

    def _step(self, name: Hashable) -> SumStep:
        """Take a variable and its factors out."""
        variable, names, factors = self._variables[name], self._names(name), tuple(sorted(self._of[name]))
        rest = tuple(n for n in names if n != name)
        kept = frozenset().union(*(self._variables[n].plates for n in rest)) if rest else frozenset()
        outer = self._outer(variable, rest, set(variable.plates) - kept)
        scopes = tuple(self._pool.pop(key).names for key in factors)
        for key, own in zip(factors, scopes, strict=True):
            for n in own:
                del self._of[n][key]
        sizes = tuple(self._variables[n].size for n in names)
        return SumStep(factors, scopes, names, sizes, variable, kept, outer)

    def _put_back(self, steps: Sequence[SumStep]) -> None:
        """Add the results of a round, of one shape in one buffer, and what they cost their variables."""
        changed: dict[Hashable, None] = {}
        counts: dict[Hashable, list[int]] = {}  # by shape of a result its buffer, and its rows so far
        for step in steps:
            rest = tuple(n for n in step.names if n != step.variable.name)
            if not rest:
                continue
            buffer = counts.setdefault(result_of(step), [self._count + len(counts), 0])
            key, buffer[1] = (buffer[0], buffer[1]), buffer[1] + 1
            self._pool[key] = Scope(rest, step.kept)
            for n in rest:
                self._of[n][key] = None
                changed[n] = None
        self._count += len(counts)
        for name in changed:
            self._costs[name] = self._cost(name)
            heapq.heappush(self._heap, (self._costs[name], -self._place[name], name))

    def _cost(self, name: Hashable) -> float:
        """The size of the table that eliminating a variable makes; infinite while a factor lies in deeper plates."""
        inside = frozenset(self._variables[name].plates)
        if any(not self._pool[key].plates <= inside for key in self._of[name]):
            return math.inf
        return math.prod(self._variables[n].size for n in self._names(name))

    def _names(self, name: Hashable) -> tuple[Hashable, ...]:
        return tuple(dict.fromkeys(n for key in sorted(self._of[name]) for n in self._pool[key].names))

    def _outer(self, variable: DiscreteVariable, rest: Sequence[Hashable], gone: Collection[int]) -> Tensor | float:
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


def result_of(step: SumStep) -> Hashable:
    """The sizes of the variables of what is left of a step, and the plates that it lies in."""
    return tuple(
        size for name, size in zip(step.names, step.sizes, strict=True) if name != step.variable.name
    ), step.kept


def _kind_of(step: SumStep) -> Hashable:
    """What steps have in common that are done at once."""
    scales = (step.variable.scale, step.outer)
    return (
        tuple(
            (buffer, *map(step.names.index, own)) for (buffer, _), own in zip(step.factors, step.scopes, strict=True)
        ),
        step.sizes,
        step.names.index(step.variable.name),
        tuple(sorted(step.variable.plates.items())),
        step.kept,
        tuple(id(s) if isinstance(s, Tensor) else s for s in scales),
    )


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


__all__ = [
    "DiscreteVariable",
    "NotNestedError",
    "Order",
    "Scope",
    "SumStep",
    "relative_scale",
    "result_of",
    "same_scale",
]
