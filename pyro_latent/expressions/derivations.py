"""What operations make of latents, derived once for all steps of a loop, whose results differ in names alone.

Every latent starts a :class:`Pattern`: how an expression was made, as a number, and of which latents. An operation on
expressions of the same patterns with the same other arguments makes the same result, up to the latents' names; so it is
kept, and the next time renamed. What nobody knows this of has no pattern, and is derived as ever.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import BuiltinFunctionType, EllipsisType, FunctionType, MethodDescriptorType, NoneType, WrapperDescriptorType
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from .axes import Axis, Gather, Label, fresh_label, is_summed
from .constants import Constant
from .expression import Expression
from .recorded import Recorded
from .terms import Choice, Factor, Term
from .variables import Variable

#: So many results are kept at once: those of one step of a loop.
_MOST = 1000
#: What is compared as it is: the function that is called, and some of its arguments.
_PLAIN = frozenset((int, bool, str, NoneType, EllipsisType, torch.dtype, torch.device))
_PLAIN |= {FunctionType, BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType}

#: A latent of the model: the variable of a continuous one, the choice of a discrete one in its own elements.
Leaf = Variable | Choice


class Pattern(NamedTuple):
    """How a random tensor was made, of which latents; ``known`` has what else was made in the same run, as long as that
    lasts.
    """

    known: ReferenceType[Derivations]
    kind: int
    leaves: tuple[Leaf, ...]


class _Derived(NamedTuple):
    """A result, what it was made of, and the tensors that its key names by identity, which must stay."""

    expression: Expression
    kind: int
    leaves: tuple[Leaf, ...]
    tensors: list[Tensor]


class Question(NamedTuple):
    """What is to be derived: a key, the same for all that differ in names alone, and the latents."""

    known: Derivations
    key: Hashable
    leaves: tuple[Leaf, ...]
    tensors: list[Tensor]

    def answer(self) -> Expression | None:
        """The result, if one of this key is known."""
        found = self.known.results.get(self.key)
        return None if found is None else renamed(found.expression, found.leaves, self.leaves)

    def kept(self, result: Expression) -> Pattern | None:
        """Keep the result for the next one of this key, if other names can be put in the place of its own.

        Returns:
            The pattern of a tensor of the result; None where it cannot be kept.
        """
        found = self.known.results.get(self.key)
        if found is None and self.is_renamable(result):
            found = self.known.add(self.key, result, self.leaves, self.tensors)
        return None if found is None else Pattern(ref(self.known), found.kind, self.leaves)

    def is_renamable(self, result: Expression) -> bool:
        """Whether a result is a polynomial in the latents themselves, so that others can take their places."""
        if result.opacity or result.pieces or result.cholesky_of or result.logarithm:
            return False
        sites = {leaf.site for leaf in self.leaves}
        factors = [f for t in result.terms for f in t.factors]
        own = all(type(f) is Factor and f.variable in self.leaves for f in factors)
        return own and all(c.site in sites for t in result.terms for c in t.choices)


class Derivations:
    """The results of one run of a model, by what they were made of."""

    def __init__(self) -> None:
        self.results: dict[Hashable, _Derived] = {}
        self._count = 0

    def start(self, latent: Expression) -> Pattern | None:
        """The pattern of a latent site; None of a discrete one with many values, or with one, which is a number."""
        (term,) = latent.terms
        if not term.choices and not term.factors:
            return None
        leaf: Leaf
        about: Hashable
        if term.choices:
            (leaf,), (table,) = term.choices, term.constants
            if table.tensor.numel() > _MOST:
                return None
            about = (table.tensor.shape, table.tensor.numpy(force=True).tobytes())
        else:
            leaf = term.factors[0].variable
            about = tuple([value for name, value in vars(leaf).items() if name != "site"])
        key = latent.shape, latent.like.dtype, latent.like.device, about
        found = self.results.get(key) or self.add(key, latent, (leaf,), [])
        return Pattern(ref(self), found.kind, (leaf,))

    def add(self, key: Hashable, result: Expression, leaves: tuple[Leaf, ...], tensors: list[Tensor]) -> _Derived:
        """Keep a result; all others are left out once they are many, for a key may come once."""
        if len(self.results) >= _MOST:
            self.results.clear()
        self._count += 1
        found = self.results[key] = _Derived(result, self._count, leaves, tensors)
        return found


def question(*items: Any) -> Question | None:
    """What an operation on these arguments asks for; None where one of them has no pattern."""
    leaves: dict[Leaf, int] = {}
    tensors: list[Tensor] = []
    known: list[Derivations] = []
    try:
        key = _key(items, leaves, tensors, known)
    except _UnknownError:
        return None
    return Question(known[0], key, tuple(leaves), tensors) if known else None


class _UnknownError(Exception):
    """An argument without a pattern."""


def _key(item: Any, leaves: dict[Leaf, int], tensors: list[Tensor], known: list[Derivations]) -> Hashable:
    kind = type(item)
    if kind in _PLAIN:
        return kind, item
    if isinstance(item, Recorded):
        pattern = item.pattern
        run = None if pattern is None else pattern.known()
        if run is None:
            raise _UnknownError
        known.append(run)
        return pattern.kind, tuple([leaves.setdefault(leaf, len(leaves)) for leaf in pattern.leaves])
    if isinstance(item, Tensor):
        if item.is_inference():
            raise _UnknownError
        tensors.append(item)
        return id(item), item._version
    if kind is tuple or kind is list or kind is torch.Size:
        return kind, tuple([_key(i, leaves, tensors, known) for i in item])
    if kind is dict:
        return kind, tuple(item), tuple([_key(i, leaves, tensors, known) for i in item.values()])
    if kind is float:
        return kind, item.hex()
    if kind is slice:
        return kind, _key((item.start, item.stop, item.step), leaves, tensors, known)
    raise _UnknownError


def renamed(expression: Expression, old: Sequence[Leaf], new: Sequence[Leaf]) -> Expression:
    """An expression with other latents in the place of its own; labels that it sums over are its own, too."""
    names = _Names(old, new)
    return expression.of_terms([names.put_into(term) for term in expression.terms])


def taken_apart(expression: Expression, old: Sequence[Leaf], new: Sequence[Sequence[Leaf]]) -> list[Expression] | None:
    """An expression at each place of its first dimension, with other latents in the place of its own at each.

    None where a latent runs along that dimension.
    """
    lead, shape = -expression.ndim, expression.shape[1:]
    if any(lead in f.axes for term in expression.terms for f in term.factors):
        return None  # one that happens to read all elements of a latent, in order
    names = [_Names(old, leaves) for leaves in new]
    rows = []
    for term in expression.terms:
        each = zip(names, _taken_apart(term, lead, len(new)), strict=True)
        rows.append([own.put_into(row) for own, row in each])
    return [Expression(shape, expression.like, terms) for terms in zip(*rows, strict=True)]


def _taken_apart(term: Term, lead: Label, count: int) -> list[Term]:
    """A term at each place along a label."""
    if lead not in term.labels:
        return [term] * count
    constants = [_rows(c, lead, count) for c in term.constants]
    factors = [_readings(f, lead, count) for f in term.factors]
    return [
        Term(term.coefficient, tuple([c[i] for c in constants]), tuple([f[i] for f in factors]), term.choices)
        for i in range(count)
    ]


def _rows(constant: Constant, lead: Label, count: int) -> list[Constant]:
    if lead not in constant.labels:
        return [constant] * count
    labels = tuple([x for x in constant.labels if x != lead])
    return [Constant(row, labels) for row in constant.tensor.unbind(constant.labels.index(lead))]


def _readings(factor: Factor, lead: Label, count: int) -> list[Factor]:
    if lead not in factor.labels:
        return [factor] * count
    return [factor.at(tuple([_at(axis, lead, i) for axis in factor.axes])) for i in range(count)]


def _at(axis: Axis, lead: Label, place: int) -> Axis:
    """An axis at a place along a label."""
    if not isinstance(axis, Gather) or lead not in axis.labels:
        return axis
    return Gather(axis.index.select(axis.labels.index(lead), place), tuple([x for x in axis.labels if x != lead]))


class _Names:
    """Latents in the place of others."""

    def __init__(self, old: Sequence[Leaf], new: Sequence[Leaf]) -> None:
        self._leaves = dict(zip(old, new, strict=True))
        self._sites = {leaf.site: other.site for leaf, other in zip(old, new, strict=True) if leaf is not other}

    def put_into(self, term: Term) -> Term:
        labels: dict[Label, Label] = {x: fresh_label() for x in term.labels if is_summed(x)}
        changed = [f for f in term.factors if f.variable.site in self._sites]
        if not labels and not term.choices and not changed:
            return term
        choices = [self._choice(choice, labels) for choice in term.choices]
        labels |= {old.label: c.label for old, c in zip(term.choices, choices, strict=True) if c is not old}
        constants = [c if labels.keys().isdisjoint(c.labels) else _constant(c, labels) for c in term.constants]
        factors = [self._factor(f, labels) for f in term.factors]
        return Term(term.coefficient, tuple(constants), tuple(factors), tuple(choices))

    def _choice(self, choice: Choice, labels: Mapping[Label, Label]) -> Choice:
        site, axes = self._sites.get(choice.site, choice.site), _axes(choice.axes, labels)
        return choice if site == choice.site and axes is choice.axes else Choice.of(site, axes, choice.size)

    def _factor(self, factor: Factor, labels: Mapping[Label, Label]) -> Factor:
        variable = self._leaves[factor.variable]
        assert isinstance(variable, Variable)
        return Factor(variable, _axes(factor.axes, labels), factor.function, factor.power)


def _constant(constant: Constant, labels: Mapping[Label, Label]) -> Constant:
    return Constant(constant.tensor, tuple([labels.get(x, x) for x in constant.labels]))


def _axes(axes: tuple[Axis, ...], labels: Mapping[Label, Label]) -> tuple[Axis, ...]:
    """The axes along other labels, the same where none of theirs is among these."""
    if not labels:
        return axes
    return tuple([_axis(axis, labels) for axis in axes])


def _axis(axis: Axis, labels: Mapping[Label, Label]) -> Axis:
    if isinstance(axis, Gather):
        moved = tuple([labels.get(x, x) for x in axis.labels])
        return axis if moved == axis.labels else Gather(axis.index, moved)
    return axis if axis is None else labels.get(axis, axis)


__all__ = ["Derivations", "Question", "question", "renamed", "taken_apart"]
