"""Tensors with the expression that they stand for, and how they are computed again from the values of points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..signatures import Args, Kwargs
from .expression import Expression
from .numbering import fresh_number
from .tables import ELEMENTWISE
from .terms import Choice, check_combinations
from .variables import Replay

#: Operations whose result has at each place what its arguments have there.
_KEEPING_PLACES = ELEMENTWISE | {"expand", "expand_as", "broadcast_to"}


@dataclass(frozen=True)
class Alias:
    """What a tensor may share its elements with, and the view of it that it is; None where it may be a copy."""

    source: Recorded
    view: Callable[[Tensor], Tensor] | None


@dataclass(frozen=True, eq=False)
class FunctionOf:
    """What a tensor is of another one, ``argument``: a function of its values, and of those of the tensors ``beside``
    it, in order, such as discrete latents.
    """

    argument: Recorded
    function: Callable[..., Tensor]
    beside: tuple[Recorded, ...] = ()


@dataclass(frozen=True)
class _Recalled:
    """How a tensor is computed again as it was when it was read."""

    replay: Replay | None


class Recorded(Tensor):
    """A placeholder of the right shape, the ``expression`` in the latents that it stands for, and its ``replay``.

    ``is_own``: the model computed it, so that it may write into it. ``alias``: what it shares its elements with;
    ``views``: by number, the tensors in use that share its own. ``function_of``: of a result of operations without a
    rule, what it is of the last tensor before them. ``pattern``: how it was made, of which latents, where that is
    known.
    """

    expression: Expression
    _placeholder: Tensor
    replay: Replay | None
    is_own: bool
    alias: Alias | None
    views: WeakValueDictionary[int, Recorded] | None
    function_of: FunctionOf | None
    pattern: Any

    @staticmethod
    def __new__(cls, placeholder: Tensor, expression: Expression, replay: Replay | None = None) -> Self:
        wrapper: Self = torch.Tensor._make_wrapper_subclass(
            cls, placeholder.shape, dtype=placeholder.dtype, device=placeholder.device
        )
        wrapper.expression = expression
        wrapper._placeholder = placeholder
        wrapper.replay = replay
        wrapper.is_own, wrapper.alias, wrapper.views = False, None, None
        wrapper.function_of, wrapper.pattern = None, None
        return wrapper

    def __init__(self, placeholder: Tensor, expression: Expression, replay: Replay | None = None) -> None:
        pass

    def as_it_is(self) -> Self:
        """The tensor, one that no later write changes."""
        return type(self)(self._placeholder, self.expression, self.replay)

    @property
    def points(self) -> frozenset[str]:
        """The point estimates that the tensor is computed from."""
        terms = [t for e in (self.expression, *(p for _, p in self.expression.pieces)) for t in e.terms]
        variables = [f.variable for t in terms for f in t.factors]
        found = frozenset(p for v in variables for p in (v.parents or {v.site}))
        return found | (self.expression.opacity.reads if self.expression.opacity else frozenset())


def placeholders(item: object) -> Any:
    """Replace random tensors by their placeholders, inside tuples, lists and dicts too."""
    return mapped(item, lambda tensor: tensor._placeholder)


def mapped(item: object, function: Callable[[Any], Any], kind: type = Recorded) -> Any:
    """Replace tensors of a kind by what a function makes of them, inside tuples, lists and dicts too."""
    if isinstance(item, kind):
        return function(item)
    if isinstance(item, torch.Size):
        return item
    if isinstance(item, tuple | list):
        found = [mapped(i, function, kind) for i in item]
        return type(item)(*found) if hasattr(item, "_fields") else type(item)(found)
    if isinstance(item, dict):
        return {k: mapped(v, function, kind) for k, v in item.items()}
    return item


def expressions(item: object) -> Any:
    """Replace random tensors by their expressions, inside tuples, lists and dicts too."""
    return mapped(item, lambda tensor: tensor.expression)


def tensors_in(*containers: Any) -> list[Tensor]:
    """The tensors inside tuples, lists and dicts."""
    found: list[Tensor] = []
    for item in containers:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, tuple | list):
            found += tensors_in(*item)
        elif isinstance(item, dict):
            found += tensors_in(*item.values())
    return found


def recorded_in(*containers: Any) -> list[Recorded]:
    """The random tensors inside tuples, lists and dicts."""
    return [t for t in tensors_in(*containers) if isinstance(t, Recorded)]


def parents_in(*containers: Any) -> list[Expression]:
    """The expressions of the random tensors inside tuples, lists and dicts."""
    return [t.expression for t in recorded_in(*containers)]


def called(func: Callable[..., Any], args: Args, kwargs: Kwargs, tensors: Sequence[Tensor]) -> Any:
    """The operation with these tensors in place of the random ones, in order."""
    rest = iter(tensors)
    plain = mapped((args, kwargs), lambda tensor: next(rest))
    return func(*plain[0], **plain[1])


def function_of_call(name: str, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> FunctionOf | None:
    """What the result of an operation is a function of: of the first tensor that one of its arguments is a function of,
    or, where none is, of the one that is no table; the others are beside it. None where there are several of the
    latter, or the operation moves elements of what is beside.
    """
    sources = recorded_in(args, kwargs)
    first = next((s.function_of.argument for s in sources if s.function_of is not None), None)
    plain = [s for s in sources if not s.expression.is_table] or sources
    argument = plain[0].as_it_is() if first is None else first
    inner = [_function(s, argument, allowed=first is not None or s.expression.is_table) for s in sources]
    functions = [f for f in inner if f is not None]
    beside = tuple(t for f in functions for t in f.beside)
    if len(functions) < len(inner) or (beside and name not in _KEEPING_PLACES):
        return None
    kept, named = mapped((args, kwargs), lambda t: t if isinstance(t, Recorded) else t.clone(), Tensor)

    def function(value: Tensor, *others: Tensor) -> Tensor:
        rest = iter(others)
        found = [f.function(value, *(next(rest) for _ in f.beside)) for f in functions]
        result: Tensor = called(func, kept, named, found)
        return result

    return FunctionOf(argument, function, beside)


def _function(source: Recorded, argument: Recorded, allowed: bool) -> FunctionOf | None:
    """A tensor as a function of another one; of what is no function of it, beside it where that is allowed."""
    known = source.function_of
    if known is not None and known.argument.expression is argument.expression:
        return known
    if known is None and source.expression is argument.expression:
        return FunctionOf(argument, lambda value: value)
    if not allowed or (source if known is None else known.argument).expression.opacity:
        return None
    own = source.as_it_is()
    own.function_of = known
    return FunctionOf(argument, lambda value, other: other, (own,))


def replay_of_call(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Replay | None:
    """The same operation on the values of points; None where a latent with a distribution is involved."""
    sources = recorded_in(args, kwargs)
    if any(_replay_of(t) is None for t in sources):
        return None
    sites = sorted({c.site for t in sources for c in t.expression.choices})
    recalled = mapped((args, kwargs), lambda tensor: _Recalled(_replay_of(tensor)))

    def replay(values: Mapping[Any, object], known: dict[Any, Tensor]) -> Tensor:
        key = (id(replay), *(values[site] for site in sites))
        if key not in known:
            plain = mapped(recalled, lambda r: r.replay(values, known), _Recalled)
            known[key] = func(*plain[0], **plain[1])
        return known[key]

    return replay


def element(replay: Replay | None, place: int) -> Replay | None:
    """One result of an operation that has several."""
    return None if replay is None else lambda values, known: replay(values, known)[place]


def _replay_of(tensor: Recorded) -> Replay | None:
    """What computes a tensor from the values of points: of a table, its numbers at the chosen values."""
    expression = tensor.expression
    if tensor.replay is not None or not expression.is_table:
        return tensor.replay

    def read(values: Mapping[Any, Any], known: dict[Any, Tensor]) -> Tensor:
        choices = expression.choices
        return expression.table(choices)[tuple(values[c.site] for c in choices)].expand(expression.shape)

    return read


def _over_choices(replay: Replay, choices: Sequence[Choice]) -> Replay:
    """A replay at every combination of the values of discrete latents, which come first."""
    if not choices:
        return replay
    sizes = [c.size for c in choices]

    def stacked(values: Mapping[Any, object], known: dict[Any, Tensor]) -> Tensor:
        rows = []
        for place in itertools.product(*map(range, sizes)):
            chosen = dict(zip((c.site for c in choices), place, strict=True))
            rows.append(replay({**values, **chosen}, known))
        return torch.stack(rows).reshape(*sizes, *rows[0].shape)

    return stacked


def each_site_once(parents: Sequence[Expression]) -> bool:
    """Whether no two elements of one discrete site are read: a replay has one value for each site."""
    read = {c.label: c.site for p in parents for c in p.choices}
    return len(set(read.values())) == len(read)


def derived(name: str, value: Tensor, replay: Replay, sources: list[Recorded]) -> Expression:
    """What an operation without a rule makes of points, and of discrete latents beside them."""
    points = frozenset().union(*(tensor.points for tensor in sources))
    choices = tuple({c.label: c for t in sources for c in t.expression.choices}.values())
    check_combinations(choices, math.prod(c.size for c in choices) * value.numel())
    return Expression.derived(f"{name} {fresh_number()}", value, _over_choices(replay, choices), points, choices)


def derived_from_points(name: str, func: Callable[..., Tensor], args: Args, like: Tensor) -> Expression | None:
    """``func(*args)`` as a function of point estimates; None where a latent with a distribution is among the
    arguments.
    """
    replay = replay_of_call(func, args, {})
    if replay is None or not each_site_once(parents_in(args)):
        return None
    return derived(name, func(*placeholders(args)).to(like), replay, recorded_in(args))
