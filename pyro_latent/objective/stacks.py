"""Densities that repeat, as those of the steps of a loop do: one factor with a dimension for all of them.

Parts of densities that read discrete sites alike, of the same parameters by the same functions, differ in their
constants and in the names of what they read. Their constants are put side by side along a label of their own, and the
rest of the engine sees one more place.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..expressions.axes import Axis, Gather, Label, Labels, axis_key, is_position
from ..expressions.constants import Constant
from ..expressions.terms import LogOfSum, Term
from ..recording import Recording, ScoredSite
from ..settings import settings
from .blocks import Block
from .densities import DensityPart
from .elements import elements_of
from .layouts import Layout
from .order import relative_scale
from .summands import weights_of

#: Constants that repeat are put side by side where all of them take up to this share of the limit of memory.
_SHARE = 8
#: Scales of so many numbers are compared.
_FEW = 1000


class Row(NamedTuple):
    """A site whose log density is a factor, and what it reads."""

    site: str
    layout: Layout


@dataclass(frozen=True, eq=False)
class Repeat:
    """A part of the density of a site, its scale relative to that of what it reads, and its mask."""

    scored: ScoredSite
    part: DensityPart
    weights: tuple[Constant, ...]
    owners: Mapping[str, tuple[Block, int]]

    @staticmethod
    def of(
        scored: ScoredSite, part: DensityPart, owners: Mapping[str, tuple[Block, int]], recording: Recording
    ) -> Repeat:
        scale = relative_scale(scored.scale, part.layout.innermost(scored.name).scale)
        return Repeat(scored, part, tuple(weights_of(scored, scale, recording.like)), owners)

    @property
    def constants(self) -> list[Constant]:
        """Those of the terms, then the weights."""
        return [*(c for t in self.part.terms for c in t.constants), *self.weights]

    @cached_property
    def kind(self) -> Hashable | None:
        """What it has in common with those that it is one factor with; None: it is one of its own."""
        layout = self.part.layout
        plain = layout.is_aligned and layout.is_of_different_sites
        if not plain or any(isinstance(f, LogOfSum) for t in self.part.terms for f in t.factors):
            return None
        numbers = {label: -i for i, label in enumerate(self.part.choices)}
        read = tuple(
            (s.cardinality, s.batch_shape, tuple(p.dim for p in s.plates), _identity(s.scale), s.name == self.part.site)
            for s in (r.site for r in layout.readings)
        )
        terms = tuple(_kind(term, numbers, self.owners) for term in self.part.terms)
        weights = tuple((c.tensor.shape, c.labels) for c in self.weights)
        return layout.sizes, read, tuple(self.scored.shape), weights, terms


class Stack:
    """Parts that are one factor: of one density, or of several that are alike."""

    def __init__(self, repeats: Sequence[Repeat]) -> None:
        self.repeats = repeats
        self.layout: Layout = repeats[0].part.layout

    @property
    def rows(self) -> list[Row]:
        """Those of all parts."""
        return [Row(r.part.site, r.part.layout) for r in self.repeats]

    @property
    def label(self) -> Label:
        """The place that the parts are along, to the left of those of the layout."""
        return -1 - len(self.layout.sizes)

    def together(self) -> tuple[list[Term], list[Constant]]:
        """The terms and weights of all parts, the constants along their place."""
        first = self.repeats[0]
        terms, weights = list(first.part.terms), list(first.weights)
        if len(self.repeats) == 1:
            return terms, weights
        label = self.label
        each = zip(*(r.constants for r in self.repeats), strict=True)
        constants = iter([Constant(torch.stack([c.tensor for c in own]), (label, *own[0].labels)) for own in each])
        found = []
        for i, term in enumerate(terms):
            own = tuple(next(constants) for _ in term.constants)
            numbers = [r.part.terms[i].coefficient for r in self.repeats]
            if len(set(numbers)) > 1:
                own = (*own, Constant(torch.tensor(numbers, dtype=torch.float64), (label,)))
                term = replace(term, coefficient=1.0)
            found.append(replace(term, constants=own))
        return found, list(constants)


def stacks_of(repeats: Iterable[Repeat]) -> list[Stack]:
    """Parts of densities together with those that are alike, in the order of the first of each."""
    found: dict[Hashable, list[Repeat]] = {}
    for repeat in repeats:
        found.setdefault((id(repeat),) if repeat.kind is None else repeat.kind, []).append(repeat)
    stacks: list[Stack] = []
    for alike in found.values():
        size = sum(c.tensor.numel() * c.tensor.element_size() for c in alike[0].constants)
        most = max(1, settings.memory_limit // (_SHARE * max(1, size)))
        stacks += [Stack(alike[i : i + most]) for i in range(0, len(alike), most)]
    return stacks


def _identity(scale: Tensor | float) -> Hashable:
    """What equal scales have in common; large ones are equal where they are one tensor."""
    if not isinstance(scale, Tensor):
        return scale
    return (scale.shape, tuple(scale.flatten().tolist())) if scale.numel() <= _FEW else id(scale)


def _kind(term: Term, numbers: dict[Label, int], owners: Mapping[str, tuple[Block, int]]) -> Hashable:
    """What terms of parts have in common, up to their constants, the names of their labels, and the elements of joint
    normal blocks that they read.
    """
    known = dict(numbers)

    def named(labels: Labels) -> Hashable:
        return tuple(x if is_position(x) else ("own", known.setdefault(x, len(known))) for x in labels)

    def plain(axis: Axis) -> Hashable:
        if isinstance(axis, Gather):
            return named(axis.labels), axis_key(Gather(axis.index, ()))
        return axis if axis is None else named((axis,))

    constants = tuple((c.tensor.shape, c.tensor.dtype, named(c.labels)) for c in term.constants)
    factors = []
    for factor in term.factors:
        variable = factor.variable
        of: Hashable = variable.site if variable.replay is None and variable.scalar is None else id(variable)
        of = elements_of(factor, owners) or of if variable.scalar is None else of
        factors.append((of, factor.function, factor.power, tuple(map(plain, factor.axes))))
    return constants, tuple(factors), tuple(named((c.label,)) for c in term.choices)


__all__ = ["Repeat", "Row", "Stack", "stacks_of"]
