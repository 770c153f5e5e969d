"""Terms that differ in numbers and in the names of their latents alone, as those of the steps of a loop do.

What an operation makes of one of them it makes of all: their constants, and the values of their latents, are put side
by side along a label of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..values import all_finite
from .axes import (
    Axis,
    Gather,
    Label,
    Labeled,
    Labels,
    contract,
    fresh_label,
    is_free,
    is_position,
    laid,
    read,
    substitute,
)
from .constants import Constant
from .evaluation import LatentValues
from .expression import Expression
from .terms import Choice, Factor, Term

#: Terms whose constants hold more numbers are each on their own.
_FEW = 1000
#: So many numbers are put side by side.
_MOST = 2**18


def likeness_of(term: Term, of: Callable[[Factor], Hashable | None]) -> Hashable | None:
    """What a term has in common with those that differ from it in numbers, and in what ``of`` leaves out of factors.

    Args:
        term: the term.
        of: what is asked of a factor beside its function, its power, and how it is read; None where nothing is like it.

    Returns:
        The key; None where nothing is like the term.
    """
    if any([c.tensor.numel() > _FEW for c in term.constants]):
        return None
    numbers: dict[Label, Label] = {}
    factors = likeness_of_factors(term.factors, of, numbers)
    if factors is None:
        return None
    constants = [(c.tensor.shape, c.tensor.dtype, named(c.labels, numbers)) for c in term.constants]
    choices = [(named((c.label,), numbers), c.size, *[_read_as(a, numbers) for a in c.axes]) for c in term.choices]
    return factors, tuple(constants), tuple(choices)


def likeness_of_factors(
    factors: Iterable[Factor], of: Callable[[Factor], Hashable | None], numbers: dict[Label, Label]
) -> Hashable | None:
    """What the factors of a term have in common with those of others, as in :func:`likeness_of`.

    ``numbers`` are those of labels, by first use, which this adds to.
    """
    found = []
    for factor in factors:
        own = of(factor) if type(factor) is Factor and factor.variable.scalar is None else None
        if own is None:
            return None
        axes = tuple([_read_as(axis, numbers) for axis in factor.axes])
        found.append((own, factor.function, factor.power, axes))
    return tuple(found)


def named(labels: Labels, numbers: dict[Label, Label]) -> Labels:
    """Labels, with numbers by first use for those that are no positions."""
    return tuple([x if is_position(x) else numbers.setdefault(x, len(numbers)) for x in labels])


def _read_as(axis: Axis, numbers: dict[Label, Label]) -> Hashable:
    if isinstance(axis, Gather):
        return id(axis.index), named(axis.labels, numbers)
    return axis if axis is None else named((axis,), numbers)


def groups_of(kinds: Iterable[Hashable | None], numbers: Callable[[int], int]) -> list[list[int]]:
    """The places of what is of one kind, by the first of each; None is alone.

    ``numbers`` of a place says how many numbers it adds to those of its group, which are not too many.
    """
    found: dict[Hashable, list[list[int]]] = {}
    for place, kind in enumerate(kinds):
        lists = found.setdefault(("alone", place) if kind is None else kind, [[]])
        if len(lists[-1]) * max(1, numbers(place)) >= _MOST:
            lists.append([])
        lists[-1].append(place)
    return [own for lists in found.values() for own in lists]


def side_by_side(constants: Sequence[Constant], label: Label) -> Constant:
    """Constants of terms that are alike as one, along a label of their own where they are not one tensor."""
    first = constants[0]
    if all([c.tensor is first.tensor for c in constants]):
        return first
    return Constant(torch.stack([c.tensor for c in constants]), (label, *first.labels))


def coefficients_of(terms: Sequence[Term], device: torch.device) -> Tensor:
    """The coefficients of terms, float64 ``[n]``; a number where all are the same."""
    numbers = [term.coefficient for term in terms]
    alike = all([x == numbers[0] for x in numbers])
    return torch.tensor(numbers[0] if alike else numbers, dtype=torch.float64, device=device)


def evaluated(expressions: Sequence[Expression], values: LatentValues) -> list[tuple[Tensor, Tensor]]:
    """The value of each expression, and the sum of the absolute values of its terms, both in float64, with size 1 where
    they do not vary; those that are alike are evaluated at once.
    """
    kinds = [_expression_kind(expression) for expression in expressions]
    found: list[tuple[Tensor, Tensor]] = [()] * len(expressions)  # type: ignore[list-item]
    for places in groups_of(kinds, lambda i: expressions[i].shape.numel()):
        own = [expressions[i] for i in places]
        rows = _evaluated_together(own, values) if len(own) > 1 else None
        for place, row in zip(places, rows or [_evaluated(e, values) for e in own], strict=True):
            found[place] = row
    return found


def _expression_kind(expression: Expression) -> Hashable | None:
    if expression.pieces or expression.opacity:
        return None
    terms = [likeness_of(term, _shape_of) for term in expression.terms]
    return None if None in terms else (expression.shape, tuple(terms))


def _shape_of(factor: Factor) -> Hashable | None:
    return factor.variable.shape if factor.variable.replay is None else None


def _evaluated(expression: Expression, values: LatentValues) -> tuple[Tensor, Tensor]:
    zero = torch.zeros((), dtype=torch.float64, device=expression.like.device)
    terms = [term.to(zero.device) for term in expression.summands(values)]
    value = expression.evaluate(values).to(zero.device) if expression.pieces else sum(terms, zero)
    return value, sum((t.abs() for t in terms), zero)


def _evaluated_together(expressions: Sequence[Expression], values: LatentValues) -> list[tuple[Tensor, Tensor]] | None:
    """Values of expressions that are alike; None where some of them are not finite, which may be due to a mask."""
    first, label = expressions[0], fresh_label()
    zero = torch.zeros((), dtype=torch.float64, device=first.like.device)
    terms = []
    for own in zip(*[e.terms for e in expressions], strict=True):
        total, labels = _product(own, values, label)
        if not all_finite(total):
            return None
        terms.append(laid(total, labels, (label,), first.ndim).to(zero.device))
    value, size = sum(terms, zero), sum((t.abs() for t in terms), zero)
    if not value.ndim:
        return [(value, size)] * len(expressions)
    shape = (len(expressions), *value.shape[1:])
    return list(zip(value.expand(shape).unbind(), size.expand(shape).unbind(), strict=True))


def _product(terms: Sequence[Term], values: LatentValues, label: Label) -> Labeled:
    """The values of terms that are alike, in float64, along a label of their own where they differ."""
    chosen = dict([_chosen(own, values, label) for own in zip(*[t.choices for t in terms], strict=True)])
    constants = [side_by_side(own, label) for own in zip(*[t.constants for t in terms], strict=True)]
    operands = [(c.tensor.double(), c.labels) for c in [c.substitute(chosen) for c in constants]]
    operands += [_values_of(own, values, label, chosen) for own in zip(*[t.factors for t in terms], strict=True)]
    coefficient = coefficients_of(terms, values.device)
    if coefficient.ndim:
        operands.append((coefficient, (label,)))
    free = sorted({x for _, own in operands for x in own if is_free(x)})
    labels = (label, *free) if any(label in own for _, own in operands) else tuple(free)
    total = contract(operands or [(torch.ones_like(coefficient), ())], labels)
    return total if coefficient.ndim else total * coefficient, labels


def _chosen(choices: Sequence[Choice], values: LatentValues, label: Label) -> tuple[Label, Axis]:
    """The label of the first of some choices that are alike, and the values that they take."""
    first = choices[0]
    if all([c.site == first.site for c in choices]):
        return first.label, Gather(*read(values.numbers(first.site), first.axes))
    numbers = torch.stack([values.numbers(c.site) for c in choices])
    return first.label, Gather(*read(numbers, (label, *first.axes)))


def _values_of(factors: Sequence[Factor], values: LatentValues, label: Label, chosen: Mapping[Label, Axis]) -> Labeled:
    first = factors[0]
    axes = tuple([substitute(axis, chosen) for axis in first.axes])
    if all([f.variable is first.variable for f in factors]):
        return read(values[first], axes)
    return read(torch.stack([values[f] for f in factors]), (label, *axes))


__all__ = [
    "coefficients_of",
    "evaluated",
    "groups_of",
    "likeness_of",
    "likeness_of_factors",
    "named",
    "side_by_side",
]
