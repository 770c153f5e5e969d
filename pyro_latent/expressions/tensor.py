"""Tensors that remember how they were computed from the latents.

A :class:`RandomTensor` stands for a latent, or for what the model computed from latents. Shapes, plates and indexing
see an ordinary tensor; every operation goes through ``__torch_function__``, which computes a placeholder value and the
:class:`~.expression.Expression`. An operation without a rule gives an opaque expression. The placeholder never escapes:
whatever would turn it into a number raises :class:`~pyro_latent.errors.LatentValueError`, and what bypasses
``__torch_function__`` ends in ``__torch_dispatch__``, which raises too.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor
from torch.distributions import Distribution

from ..errors import LatentValueError
from .expression import Expression
from .operations import IN_PLACE, LIKE_ANOTHER, METHODS, NUMPY_OPERATIONS, OPERATIONS, SHAPE_ONLY, SHAPE_QUERIES
from .tables import ALONG, MOVES, along, moved, of_tables
from .terms import Choice, Replay, check_combinations


class RandomTensor(Tensor):
    """A tensor whose value is random: its ``expression`` in the latents, and a placeholder of the right shape."""

    expression: Expression
    _placeholder: Tensor
    replay: Replay | None

    @staticmethod
    def __new__(cls, placeholder: Tensor, expression: Expression, replay: Replay | None = None) -> RandomTensor:
        wrapper: RandomTensor = torch.Tensor._make_wrapper_subclass(
            cls, placeholder.shape, dtype=placeholder.dtype, device=placeholder.device
        )
        wrapper.expression = expression
        wrapper._placeholder = placeholder
        wrapper.replay = replay
        return wrapper

    def __init__(self, placeholder: Tensor, expression: Expression, replay: Replay | None = None) -> None:
        pass

    @property
    def points(self) -> frozenset[str]:
        """The point estimates that the tensor is computed from."""
        terms = [t for e in (self.expression, *(p for _, p in self.expression.pieces)) for t in e.terms]
        variables = [f.variable for t in terms for f in t.factors]
        found = frozenset(p for v in variables for p in (v.parents or {v.site}))
        return found | (self.expression.opacity.sites if self.expression.opacity else frozenset())

    def __format__(self, spec: str) -> str:
        if spec:
            raise _number_error("a format with a precision", [self.expression])
        return repr(self)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"RandomTensor(shape={tuple(self._placeholder.shape)}, of {sorted(self.expression.sites)})"

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Arithmetic with NumPy's numbers on either side, and its arrays on the right, as torch takes them."""
        operation = NUMPY_OPERATIONS.get(ufunc.__name__)
        if operation is None or method != "__call__" or kwargs:
            raise _number_error(f"NumPy's {ufunc.__name__}", _parents(inputs))
        if isinstance(inputs[0], np.ndarray):
            raise LatentValueError(
                f"Expected tensors beside {_of(_parents(inputs))}; got a NumPy array to its left, which torch refuses. "
                "Write torch.as_tensor(array) for array."
            )
        return operation(*(i if isinstance(i, Tensor) else torch.as_tensor(i, device=self.device) for i in inputs))

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if _writes_in_place(name, kwargs):
            raise _in_place_error(name, _parents(args, kwargs))
        if name == "__bool__" and _is_asked_by(ScaleMessenger.__init__, Distribution._validate_sample):
            return True  # whether a scale is positive, a latent in its support: what it is, the recording checks
        if name == "__index__":
            raise _number_error(name, _parents(args))
        if name == "__getitem__" and not kwargs and _random(args[1]):
            found = _read_at(args[0], args[1], func)
            if found is not None:
                return found
        result = func(*placeholders(args), **placeholders(kwargs))
        if isinstance(result, Tensor) and _reads_shapes_only(name, args, kwargs):
            return result
        if isinstance(result, Tensor):
            return _wrap(name, result, args, kwargs, func)
        if isinstance(result, tuple | list) and result and all(isinstance(r, Tensor) for r in result):
            return _wrap_all(name, result, args, kwargs, func)
        if name in SHAPE_QUERIES or getattr(func, "__name__", "") == "__get__" or result is None:
            return result
        if name == "__iter__":
            return iter(args[0].unbind(0))
        raise _number_error(name, _parents(args, kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        raise _number_error(str(func), _parents(args, kwargs or {}))


def _is_asked_by(*functions: Any) -> bool:
    """Whether an operation was called by a function, or by a torch function mode that it was called under."""
    frame = sys._getframe(2)
    while frame.f_code.co_name == "__torch_function__" and frame.f_back is not None:
        frame = frame.f_back
    return any(frame.f_code is function.__code__ for function in functions)


def _name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", str(func))
    return getattr(func.__self__, "__name__", name) if name == "__get__" else name  # type: ignore[attr-defined]


def _reads_shapes_only(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name in SHAPE_ONLY:
        return not _random(args[1:], kwargs)
    return name in LIKE_ANOTHER and not isinstance(args[0], RandomTensor)


def _writes_in_place(name: str, kwargs: dict[str, Any]) -> bool:
    written = (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE or name in ("__setitem__", "__set__")
    return written or kwargs.get("out") is not None


def _parents(*containers: Any) -> list[Expression]:
    return [t.expression for t in _random(*containers)]


def placeholders(item: Any) -> Any:
    """Replace random tensors by their placeholders, inside tuples, lists and dicts too."""
    return mapped(item, lambda tensor: tensor._placeholder)


def mapped(item: Any, function: Callable[[Any], Any], kind: type[Tensor] = RandomTensor) -> Any:
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


def _expressions(item: Any) -> Any:
    return mapped(item, lambda tensor: tensor.expression)


def _read_at(source: Any, index: Any, func: Callable[..., Any]) -> RandomTensor | None:
    """``source[index]`` by discrete latents, whose placeholder is one element, expanded, for a matrix for each datum
    would take much memory to say nothing; None where it is no such reading.
    """
    expression = _by_rule("__getitem__", func, (source, index), {})
    if expression is None or expression.opacity:
        return None
    small = mapped(index, lambda t: _collapsed(t._placeholder))
    value = func(placeholders(source), small).expand(expression.shape)
    return RandomTensor(value, expression.as_dtype_of(value), _replay(func, (source, index), {}))


def _collapsed(tensor: Tensor) -> Tensor:
    """A tensor with size 1 along the dimensions that it is expanded over."""
    for dim in range(tensor.ndim):
        if tensor.stride(dim) == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _wrap(
    name: str, result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], func: Callable[..., Any]
) -> RandomTensor:
    expression = _apply(name, func, result, args, kwargs)
    return _finished(name, result, expression, _replay(func, args, kwargs), _random(args, kwargs))


def _finished(
    name: str, result: Tensor, expression: Expression | None, replay: Replay | None, sources: list[RandomTensor]
) -> RandomTensor:
    """The result of an operation with its expression, or, where it has none, with what stands in its place."""
    unknown = expression is None or expression.shape != result.shape
    hidden = expression is not None and expression.opacity is not None and expression.cholesky_of is None
    grows = expression is not None and replay is not None and bool(expression.sums_derived)
    if unknown or (hidden and replay is not None) or grows:
        parents = [t.expression for t in sources]
        if replay is not None and result.is_floating_point() and _each_site_once(parents):
            expression = _derived(name, result, replay, sources)
        elif not grows:
            expression = Expression.opaque(result.shape, result.new_empty(0), name, parents)
    assert expression is not None
    return RandomTensor(result, expression.as_dtype_of(result), replay)


_numbers = itertools.count(1)


def _each_site_once(parents: Sequence[Expression]) -> bool:
    """Whether no two elements of one discrete site are read: a replay has one value for each site."""
    read = {c.label: c.site for p in parents for c in p.choices}
    return len(set(read.values())) == len(read)


def _derived(name: str, value: Tensor, replay: Replay, sources: list[RandomTensor]) -> Expression:
    points = frozenset().union(*(tensor.points for tensor in sources))
    choices = tuple({c.label: c for t in sources for c in t.expression.choices}.values())
    check_combinations(choices, math.prod(c.size for c in choices) * value.numel())
    return Expression.derived(f"{name} {next(_numbers)}", value, _over_choices(replay, choices), points, choices)


def _random(*containers: Any) -> list[RandomTensor]:
    """The random tensors inside tuples, lists and dicts."""
    return [t for t in tensors_in(*containers) if isinstance(t, RandomTensor)]


def _replay(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Replay | None:
    """The same operation on the values of points; None where a latent with a distribution is involved."""
    sources = _random(args, kwargs)
    if any(_replay_of(t) is None for t in sources):
        return None
    sites = sorted({c.site for t in sources for c in t.expression.choices})

    def replay(values: Mapping[Any, Any], known: dict[Any, Tensor]) -> Tensor:
        key = (id(replay), *(values[site] for site in sites))
        if key not in known:
            plain = mapped((args, kwargs), lambda tensor: _replay_of(tensor)(values, known))  # type: ignore[misc]
            known[key] = func(*plain[0], **plain[1])
        return known[key]

    return replay


def _element(replay: Replay | None, place: int) -> Replay | None:
    """One result of an operation that has several."""
    return None if replay is None else lambda values, known: replay(values, known)[place]


def _replay_of(tensor: RandomTensor) -> Replay | None:
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

    def stacked(values: Mapping[Any, Any], known: dict[Any, Tensor]) -> Tensor:
        rows = []
        for place in itertools.product(*map(range, sizes)):
            chosen = dict(zip((c.site for c in choices), place, strict=True))
            rows.append(replay({**values, **chosen}, known))
        return torch.stack(rows).reshape(*sizes, *rows[0].shape)

    return stacked


def derived_from_points(
    name: str, func: Callable[..., Tensor], args: tuple[Any, ...], like: Tensor
) -> Expression | None:
    """``func(*args)`` as a function of point estimates; None where a latent with a distribution is among the
    arguments.
    """
    replay = _replay(func, args, {})
    if replay is None or not _each_site_once(_parents(args)):
        return None
    return _derived(name, func(*placeholders(args)).to(like), replay, _random(args))


def _apply(
    name: str, func: Callable[..., Any], result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Expression | None:
    """The expression of an operation's result; None where it has no rule."""
    sources = _random(args, kwargs)
    if not result.numel() and not any(t.expression.choices for t in sources):
        return Expression.constant(result)
    if name in MOVES and len(sources) == 1 and sources[0] is args[0] and not sources[0].expression.opacity:
        return moved(sources[0].expression, lambda places: _called(func, args, kwargs, [places]))
    if all(t.expression.is_table for t in sources):
        return _of_tables(name, func, result, args, kwargs)
    return _by_rule(name, func, args, kwargs) if result.is_floating_point() else None


def _by_rule(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Expression | None:
    rule = METHODS.get(func) or OPERATIONS.get(name)
    try:
        return None if rule is None else rule(*_expressions(args), **_expressions(kwargs))
    except (TypeError, NotImplementedError):
        return None


def _called(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]) -> Any:
    """The operation with these tensors in place of the random ones, in order."""
    rest = iter(tensors)
    plain = mapped((args, kwargs), lambda tensor: next(rest))
    return func(*plain[0], **plain[1])


def _of_tables(name: str, func: Callable[..., Any], result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation makes of discrete latents: an expression for each tensor in its result."""
    sources = [t.expression for t in _random(args, kwargs)]
    ndim = max(t.ndim for t in tensors_in(args, kwargs))
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if name in ALONG and len(sources) == 1 and isinstance(dim, int) and not isinstance(dim, bool):
        at = dim % ndim - ndim
        args, kwargs = (args, kwargs | {"dim": at}) if "dim" in kwargs else ((args[0], at, *args[2:]), kwargs)
        return along(lambda table: _called(func, args, kwargs, [table]), sources[0], result, at)
    return of_tables(
        name,
        lambda tensors: _called(func, args, kwargs, tensors),
        sources,
        lambda: _by_rule(name, func, args, kwargs),
        result,
        ndim,
    )


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


def _wrap_all(
    name: str, results: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], func: Callable[..., Any]
) -> Any:
    if name == "unbind":
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        return tuple(args[0].select(dim, i) for i in range(len(results)))
    if name in ("split", "chunk", "split_with_sizes", "tensor_split"):
        dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
        starts = [0]
        for piece in results:
            starts.append(starts[-1] + piece.shape[dim])
        return tuple(args[0].narrow(dim, a, b - a) for a, b in itertools.pairwise(starts))
    if name == "broadcast_tensors":
        tensors = args[0] if isinstance(args[0], tuple | list) else args
        return tuple(
            t.expand(r.shape) if isinstance(t, RandomTensor) else r for t, r in zip(tensors, results, strict=True)
        )
    parents = _parents(args, kwargs)
    if all(p.is_table for p in parents):
        found = _of_tables(name, func, results, args, kwargs)
        if found is not None:
            pairs = [RandomTensor(r, e) for r, e in zip(results, found, strict=True)]
            return tuple(pairs) if type(results) in (tuple, list) else type(results)(pairs)  # type: ignore[call-arg]
    replay, sources = _replay(func, args, kwargs), _random(args, kwargs)
    wrapped = [_finished(name, r, None, _element(replay, i), sources) for i, r in enumerate(results)]
    return tuple(wrapped) if type(results) in (tuple, list) else type(results)(wrapped)  # type: ignore[call-arg]


def _of(parents: list[Expression]) -> str:
    sites = sorted(frozenset().union(*(p.sites for p in parents)))
    return "latent " + ", ".join(repr(s) for s in sites) if sites else "a latent"


def _number_error(operation: str, parents: list[Expression]) -> LatentValueError:
    return LatentValueError(
        f"Expected tensor operations on {_of(parents)}; got {operation}, which needs its value as a number. Coordinate "
        "ascent knows the distribution of a latent, not a value. Keep it a tensor: instead of branching on it, use "
        "torch.where(z > 0, a, b) with a discrete site z."
    )


def _in_place_error(operation: str, parents: list[Expression]) -> LatentValueError:
    return LatentValueError(
        f"Expected operations that make new tensors; got the in-place {operation} with {_of(parents)}. "
        "Write x = x + y for x += y, and torch.stack, torch.cat or torch.where for writing into a tensor's elements."
    )
