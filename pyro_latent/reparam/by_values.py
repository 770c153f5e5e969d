"""What the recorded probabilities of a distribution are a function of, known by its values at some places."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..expressions import Expression, FunctionOf, RandomTensor
from ..expressions.axes import is_summed
from ..rules import raw_arguments
from .weighted import places_of

#: What is beside an argument may have so many combinations of values of discrete latents.
_MOST_CASES = 64
#: Other latents beside it have so many values each, one after another.
_DRAWS = 4


def function_of_probs(fn: object) -> FunctionOf | None:
    """What the recorded ``probs`` of a distribution are a function of; None where that is not known, is computed from
    points alone, or does not broadcast to them.
    """
    probs: Any = raw_arguments(fn).get("probs")
    of: FunctionOf | None = getattr(probs, "function_of", None)
    if of is None or of.argument.replay is not None or of.argument.expression.opacity:
        return None
    return of if _spreads(of.argument.shape, probs.shape) else None


def choices_of(of: FunctionOf) -> tuple[Any, ...]:
    """The choices of discrete latents beside the argument."""
    found = {c.label: c for e in _beside(of) for c in _unbound(e).choices}
    return tuple(found.values())


def values_of(of: FunctionOf, shape: torch.Size) -> Iterator[tuple[Tensor, Tensor] | None]:
    """For each combination of values of ``choices_of`` the places of the argument and the function's values there, both
    ``[places] + shape``; the first and the last place are −∞ and ∞. Where there are other latents beside it, this is
    done for several values of them.

    None once where there are too many combinations, and in place of values of another shape.
    """
    choices, like = choices_of(of), of.argument
    sizes = [c.size for c in choices]
    bound = any(is_summed(label) for c in choices for label in c.labels)
    variables = {f.variable.root.site: f.variable for e in _beside(of) for t in e.terms for f in t.factors}
    if math.prod(sizes) > _MOST_CASES or bound or any(v.replay is not None for v in variables.values()):
        yield None
        return
    inside = places_of(like)
    places = [torch.full_like(inside[0], -torch.inf), *inside, torch.full_like(inside[0], torch.inf)]
    for *numbers, draw in itertools.product(*map(range, sizes), range(_DRAWS if variables else 1)):
        at = dict(zip((c.label for c in choices), numbers, strict=True))
        drawn = {n: _drawn(v.root, i + draw, like.device) for i, (n, v) in enumerate(variables.items())}
        beside = [_number(other, at, drawn) for other in of.beside]
        values = [of.function(place, *beside) for place in places]
        same = all(v.shape == shape for v in values)
        yield (torch.stack([p.expand(shape) for p in places]), torch.stack(values)) if same else None


def over_choices(table: Tensor, of: FunctionOf, shape: torch.Size) -> Tensor:
    """A number for each combination of values of ``choices_of``, ``[combinations] + shape``, as a function of them."""
    choices = choices_of(of)
    for dim in range(1, table.ndim):
        first = table.narrow(dim, 0, 1)
        table = first if torch.equal(table, first.expand_as(table)) else table
    if not choices:
        return table[0].expand(shape)
    sizes = [c.size for c in choices]
    found = Expression.from_table(table.reshape(*sizes, *table.shape[1:]), choices, shape)
    return RandomTensor(table[0].expand(shape), found)


def _beside(of: FunctionOf) -> list[Any]:
    """The expressions beside an argument, those behind a function beside it too."""
    found = []
    for other in of.beside:
        inner = other.function_of
        base = other if inner is None else inner.argument
        found += [base.expression.polynomial(), *([] if inner is None else _beside(inner))]
    return found


def _unbound(expression: Any) -> Any:
    """A table without sums over the elements of a discrete latent; others as they are."""
    return expression.unbound() if expression.is_table else expression


def _drawn(variable: Any, number: int, device: torch.device) -> Tensor:
    """Some value of a latent, of its shape: between 0 and 1 where it is nowhere negative."""
    each = torch.arange(variable.shape.numel(), dtype=torch.float64, device=device).reshape(variable.shape)
    wave = (1.7 * each + 2.3 * number + 0.4).sin()
    if not variable.nonnegative:
        return 1.5 * wave
    share = 0.5 + 0.49 * wave
    return share / share.sum(-1, keepdim=True) if variable.simplex else share


def _number(other: Any, at: Mapping[Any, int], drawn: Mapping[str, Tensor]) -> Tensor:
    """The value of what is beside an argument, where the choices and the latents have these."""
    inner = other.function_of
    if inner is not None:
        argument = _of_expression(inner.argument.expression.polynomial(), at, drawn)
        found: Tensor = inner.function(argument, *(_number(t, at, drawn) for t in inner.beside))
        return found
    return _of_expression(other.expression, at, drawn)


def _of_expression(expression: Any, at: Mapping[Any, int], drawn: Mapping[str, Tensor]) -> Tensor:
    """The value of an expression; that of a table is of its dtype."""
    found: Tensor
    if expression.is_table:
        table = expression.unbound()
        found = table.table(table.choices)[tuple(at[c.label] for c in table.choices)].expand(table.shape)
        return found
    expression = expression.polynomial()
    for choice in expression.choices:
        terms = [t.at(choice, at[choice.label], expression.like.device) for t in expression.terms]
        expression = expression.of_terms(terms)
    found = expression.evaluate(drawn)
    return found


def _spreads(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether a tensor of a shape can be expanded to another one."""
    ends = zip(reversed(shape), reversed(whole), strict=False)
    return len(shape) <= len(whole) and all(n in (1, size) for n, size in ends)


__all__ = ["choices_of", "function_of_probs", "over_choices", "values_of"]
