"""Tensors that remember how they were computed from the latents.

A :class:`RandomTensor` stands for a latent, or for what the model computed from latents. Shapes, plates and indexing
see an ordinary tensor; every operation goes through ``__torch_function__``, which computes a placeholder value and the
:class:`~.expression.Expression`. An operation without a rule gives an opaque expression. The placeholder never escapes:
whatever would turn it into a number raises :class:`~pyro_latent.errors.LatentValueError`, and what bypasses
``__torch_function__`` ends in ``__torch_dispatch__``, which raises too.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pyro.poutine.reparam_messenger import ReparamMessenger
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor
from torch.distributions import Distribution, constraints

from ..errors import LatentValueError
from ..signatures import Args, Kwargs
from .derivations import Question, question
from .expression import Expression
from .linear import COMPOSED, LINEAR, PLACING, placed, weighted
from .operations import IN_PLACE, LIKE_ANOTHER, METHODS, NUMPY_OPERATIONS, OPERATIONS, SHAPE_ONLY, SHAPE_QUERIES
from .products import logarithm_of
from .recorded import (
    Recorded,
    called,
    derived,
    each_site_once,
    element,
    expressions,
    function_of_call,
    mapped,
    parents_in,
    placeholders,
    recorded_in,
    replay_of_call,
    tensors_in,
)
from .tables import ALONG, ELEMENTWISE, along, of_tables
from .variables import Replay
from .writes import track, write

#: Products of more elements than this, whose logarithm is known, are not written out as polynomials.
_LONGEST_PRODUCT = 6
#: Functions of one tensor that read its shape, dtype and device alone, which the engine asks for at each step.
_OF_SHAPE: frozenset[Any] = frozenset(
    [getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad")]
    + [Tensor.dim, Tensor.size, Tensor.numel, Tensor.is_floating_point, Tensor.__len__]
)
#: Operations without a rule that mix elements, and are known as functions of the whole tensor.
_SOFTMAXES = frozenset(("softmax", "log_softmax"))


class RandomTensor(Recorded):
    """A tensor whose value is random: its ``expression`` in the latents, and a placeholder of the right shape."""

    def __format__(self, spec: str) -> str:
        if spec:
            raise _number_error("a format with a precision", [self.expression])
        return repr(self)

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"RandomTensor(shape={tuple(self._placeholder.shape)}, of {sorted(self.expression.sites)})"

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Arithmetic with NumPy's numbers on either side, and its arrays on the right, as torch takes them."""
        operation = NUMPY_OPERATIONS.get(ufunc.__name__)
        if operation is None or method != "__call__" or kwargs:
            raise _number_error(f"NumPy's {ufunc.__name__}", parents_in(inputs))
        if isinstance(inputs[0], np.ndarray):
            raise LatentValueError(
                f"Expected tensors beside {_of(parents_in(inputs))}; got a NumPy array to its left, which torch "
                "refuses. Write torch.as_tensor(array) for array."
            )
        return operation(*(i if isinstance(i, Tensor) else torch.as_tensor(i, device=self.device) for i in inputs))

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        if func in _OF_SHAPE:
            return func(args[0]._placeholder, *args[1:])
        kwargs = kwargs or {}
        name = _name(func)
        if name in ("to", "type_as") and len(args) > 1 and isinstance(args[1], Tensor):
            like = args[1]
            return args[0].to(like.device, like.dtype, *args[2:], **kwargs)
        if writes_in_place(name, kwargs):
            if write(name, args, kwargs):
                return args[0]
            raise _in_place_error(name, parents_in(args, kwargs))
        if name == "__bool__" and _is_known_to_hold():
            return True
        if name == "__index__":
            raise _number_error(name, parents_in(args))
        asked = question(func, args, kwargs)
        known = None if asked is None else asked.answer()
        is_read = name == "__getitem__" and not kwargs and bool(recorded_in(args[1]))
        if is_read:
            expression = known or _by_rule(name, func, args, {})
            if expression is not None and not expression.opacity:
                return _read_at(args[0], args[1], func, expression, asked)
        result = func(*placeholders(args), **placeholders(kwargs))
        if asked is not None and known is not None:
            return _known(name, result, known, asked, func, args, kwargs)
        if isinstance(result, Tensor) and _reads_shapes_only(name, args, kwargs):
            return result
        if isinstance(result, Tensor):
            return _kept(asked, _wrap(name, result, args, kwargs, func))
        if isinstance(result, tuple | list) and result and all(isinstance(r, Tensor) for r in result):
            return _wrap_all(name, result, args, kwargs, func)
        if name in SHAPE_QUERIES or getattr(func, "__name__", "") == "__get__" or result is None:
            return result
        if name == "__iter__":
            return iter(args[0].unbind(0))
        raise _number_error(name, parents_in(args, kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: object, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        raise _number_error(str(func), parents_in(args, kwargs or {}))


def _is_known_to_hold() -> bool:
    """Whether what a condition is asked for holds, by who asks: whether a scale is positive, which the recording of its
    sites checks; and whether a value is real, or is in the support of a site that a reparameterizer makes it for.
    """
    frame = sys._getframe(2)
    while frame.f_code.co_name == "__torch_function__" and frame.f_back is not None:  # a mode of torch functions
        frame = frame.f_back
    if frame.f_code is not Distribution._validate_sample.__code__:
        return frame.f_code is ScaleMessenger.__init__.__code__
    support = frame.f_locals["support"]
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    asks = frame.f_back.f_code if frame.f_back is not None else None
    return support is constraints.real or asks is ReparamMessenger._pyro_sample.__code__


def _name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", str(func))
    return getattr(func.__self__, "__name__", name) if name == "__get__" else name  # type: ignore[attr-defined]


def _reads_shapes_only(name: str, args: Args, kwargs: Kwargs) -> bool:
    if name in SHAPE_ONLY:
        return not recorded_in(args[1:], kwargs)
    return name in LIKE_ANOTHER and not isinstance(args[0], RandomTensor)


def writes_in_place(name: str, kwargs: Kwargs) -> bool:
    """Whether an operation writes into one of its arguments."""
    written = (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE or name in ("__setitem__", "__set__")
    return written or kwargs.get("out") is not None


def _read_at(
    source: object, index: object, func: Callable[..., Any], expression: Expression, asked: Question | None
) -> RandomTensor:
    """``source[index]`` by discrete latents, whose placeholder is one element, expanded, for a matrix for each datum
    would take much memory to say nothing.
    """
    small = mapped(index, lambda t: _collapsed(t._placeholder))
    value = func(placeholders(source), small).expand(expression.shape)
    replay = replay_of_call(func, (source, index), {})
    return _kept(asked, RandomTensor(value, expression.as_dtype_of(value), replay))


def _kept(asked: Question | None, found: RandomTensor) -> RandomTensor:
    """A result, known the next time that the same is asked for of other latents."""
    is_known_by_values = found.replay is None or found.expression.is_table  # what replays a table is made of it
    if asked is not None and is_known_by_values and found.function_of is None:
        found.pattern = asked.kept(found.expression)
    return found


def _known(
    name: str, value: Tensor, expression: Expression, asked: Question, func: Any, args: Any, kwargs: Any
) -> RandomTensor:
    """A result whose expression is known."""
    replay = replay_of_call(func, args, kwargs) if expression.is_table else None
    found = RandomTensor(value, expression.as_dtype_of(value), replay)
    found.pattern = asked.kept(found.expression)
    track(name, func, args, kwargs, found)
    return found


def _collapsed(tensor: Tensor) -> Tensor:
    """A tensor with size 1 along the dimensions that it is expanded over."""
    for dim in range(tensor.ndim):
        if tensor.stride(dim) == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _wrap(name: str, result: Tensor, args: Args, kwargs: Kwargs, func: Callable[..., Any]) -> RandomTensor:
    sources = recorded_in(args, kwargs)
    logarithm = logarithm_of(name, func, args, kwargs, sources, RandomTensor)
    is_long = name == "cumprod" and logarithm is not None and max(result.shape, default=0) > _LONGEST_PRODUCT
    expression = None if is_long else _apply(name, func, result, args, kwargs)
    is_unary = (expression is None or bool(expression.opacity)) and name in ELEMENTWISE and name != "one_hot"
    if is_unary and result.numel():
        expression = _of_scalar(name, func, result, args, kwargs) or expression
    found = _finished(name, result, expression, replay_of_call(func, args, kwargs), sources)
    if logarithm is not None and found.expression.log().opacity:
        found.expression = found.expression.with_logarithm(logarithm)
    if is_unary or (found.expression.opacity and (name in _SOFTMAXES or all(s.function_of for s in sources))):
        found.function_of = function_of_call(name, func, args, kwargs)
    track(name, func, args, kwargs, found)
    return found


def _finished(
    name: str, result: Tensor, expression: Expression | None, replay: Replay | None, sources: list[Recorded]
) -> RandomTensor:
    """The result of an operation with its expression, or, where it has none, with what stands in its place."""
    unknown = expression is None or expression.shape != result.shape
    hidden = expression is not None and expression.opacity is not None and expression.cholesky_of is None
    grows = expression is not None and replay is not None and bool(expression.sums_derived)
    if unknown or (hidden and replay is not None) or grows:
        parents = [t.expression for t in sources]
        if replay is not None and result.is_floating_point() and each_site_once(parents):
            expression = derived(name, result, replay, sources)
        elif not grows:
            expression = Expression.opaque(result.shape, result.new_empty(0), name, parents)
    assert expression is not None
    return RandomTensor(result, expression.as_dtype_of(result), replay)


def _apply(name: str, func: Callable[..., Any], result: Any, args: Args, kwargs: Kwargs) -> Expression | None:
    """The expression of an operation's result; None where it has no rule."""
    sources = recorded_in(args, kwargs)
    if not result.numel() and not any(t.expression.choices for t in sources):
        return Expression.constant(result)
    found = _placed(name, func, args, kwargs)
    if found is not None:
        return found
    if all(t.expression.is_table for t in sources):
        return _of_tables(name, func, result, args, kwargs)
    if not result.is_floating_point():
        return None
    return _by_rule(name, func, args, kwargs) or _composed(name, args, kwargs) or _weighted(name, func, args, kwargs)


def _placed(name: str, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """What an operation makes that moves elements, where its random arguments are the elements."""
    sources = recorded_in(args, kwargs)
    is_moved = all(t.is_floating_point() for t in sources) or (len(sources) == 1 and sources[0] is args[0])
    if name not in PLACING or not is_moved or any(t.expression.opacity for t in sources):
        return None
    return placed(parents_in(args, kwargs), lambda tensors: called(func, args, kwargs, tensors))


def _composed(name: str, args: Args, kwargs: Kwargs) -> Expression | None:
    """What an operation makes that is written in terms of others."""
    try:
        found = COMPOSED[name](*args, **kwargs) if name in COMPOSED else None
    except (IndexError, RuntimeError, TypeError):  # other arguments than it knows
        return None
    return found.expression if isinstance(found, RandomTensor) else None


def _weighted(name: str, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Expression | None:
    parents = parents_in(args, kwargs)
    if name not in LINEAR or any(p.opacity for p in parents):
        return None
    try:
        return weighted(name, parents, lambda tensors: called(func, args, kwargs, tensors))
    except (NotImplementedError, RuntimeError):  # without a derivative
        return None


def _of_scalar(name: str, func: Callable[..., Any], result: Tensor, args: Args, kwargs: Kwargs) -> Expression | None:
    """An elementwise operation on functions of one scalar latent; None where it is on something else."""
    symbols = [
        t.expression if isinstance(t, RandomTensor) else Expression.constant(t) for t in tensors_in(args, kwargs)
    ]

    def function(*values: Tensor) -> Tensor:
        rest = iter(values)
        plain = mapped((args, kwargs), lambda tensor: next(rest), Tensor)
        result: Tensor = func(*plain[0], **plain[1])
        return result

    first, *others = symbols
    found = first.of_scalar(name.strip("_"), function, *others)
    return None if found is None else found.expand(result.shape).as_dtype_of(result)


def _by_rule(name: str, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Expression | None:
    rule = METHODS.get(func) or OPERATIONS.get(name)
    try:
        return None if rule is None else rule(*expressions(args), **expressions(kwargs))
    except (TypeError, NotImplementedError):
        return None


def _of_tables(name: str, func: Callable[..., Any], result: object, args: Args, kwargs: Kwargs) -> Any:
    """What an operation makes of discrete latents: an expression for each tensor in its result."""
    sources = [t.expression for t in recorded_in(args, kwargs)]
    ndim = max(t.ndim for t in tensors_in(args, kwargs))
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if name in ALONG and len(sources) == 1 and isinstance(dim, int) and not isinstance(dim, bool):
        at = dim % ndim - ndim
        args, kwargs = (args, kwargs | {"dim": at}) if "dim" in kwargs else ((args[0], at, *args[2:]), kwargs)
        return along(lambda table: called(func, args, kwargs, [table]), sources[0], result, at)
    return of_tables(
        name,
        lambda tensors: called(func, args, kwargs, tensors),
        sources,
        lambda: _by_rule(name, func, args, kwargs),
        result,
        ndim,
    )


def _wrap_all(name: str, results: Sequence[Tensor], args: Args, kwargs: Kwargs, func: Callable[..., Any]) -> Any:
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
    replay, sources = replay_of_call(func, args, kwargs), recorded_in(args, kwargs)
    found = _placed(name, func, args, kwargs)
    if found is None and all(t.expression.is_table for t in sources):
        found = _of_tables(name, func, results, args, kwargs)
    expressions = found or [None] * len(results)
    wrapped = [_finished(name, r, expressions[i], element(replay, i), sources) for i, r in enumerate(results)]
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
