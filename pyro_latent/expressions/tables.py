"""Operations on discrete latents: their results are tables, a number for each combination of the values.

An operation acts elementwise, or moves elements, or adds them up: then each element of its result depends on few
elements of the latents, whatever their number. Any other one (``max``, ``cumsum``, ``sort``, …) is evaluated at every
combination of the values of the elements that it mixes, where there are few enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import LatentValueError
from ..values import broadcast_shapes
from .axes import is_summed
from .expression import Expression
from .terms import check_combinations


def words(text: str) -> frozenset[str]:
    """The words of a text, as names of operations."""
    return frozenset(text.split())


#: Operations whose result at a place depends on their arguments at that place alone.
ELEMENTWISE = words(
    "abs absolute add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod pow "
    "float_power neg negative positive sign square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p "
    "sigmoid logit tanh sin cos tan asin acos atan sinh cosh erf erfc lgamma digamma gammaln floor ceil round trunc "
    "frac clamp clip clamp_min clamp_max minimum maximum fmin fmax where eq ne lt le gt ge equal_ logical_and "
    "logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_xor bitwise_not isnan isinf isfinite "
    "nan_to_num xlogy lerp addcmul heaviside relu softplus logsigmoid silu gelu leaky_relu elu one_hot masked_fill "
    "clone detach contiguous data to type type_as float double half long int short bool byte cpu cuda hypot atan2 "
    "logaddexp isclose not_equal greater greater_equal less less_equal requires_grad_ isin sgn deg2rad rad2deg "
    "mvlgamma polygamma sinc special_erf special_erfc special_expit special_ndtr special_log_ndtr "
    "__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __div__ "
    "__rdiv__ __floordiv__ __rfloordiv__ __mod__ __rmod__ __pow__ __rpow__ __neg__ __pos__ __abs__ __and__ __rand__ "
    "__or__ __ror__ __xor__ __rxor__ __invert__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__"
)
#: Those whose result is a sum of products, which needs no joint table of both arguments.
SPARSE = words(
    "add sub subtract rsub mul multiply neg negative __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __neg__ sum "
    "mean matmul __matmul__ __rmatmul__ mm mv bmm dot einsum linear"
)
CASTS = words("to type type_as float double half long int short clone detach contiguous data cpu cuda")
#: Views, indexing and joining, which have a rule for every expression.
VIEWS = words(
    "view reshape view_as reshape_as flatten unsqueeze squeeze permute movedim moveaxis transpose swapaxes "
    "swapdims mT T t adjoint expand expand_as broadcast_to __getitem__ select narrow index_select embedding take "
    "take_along_dim gather stack cat concat concatenate"
)
#: Operations along one dimension, the second argument.
ALONG = words(
    "softmax log_softmax logsumexp cumsum cumprod prod amax amin max min argmax argmin any all sort argsort std var "
    "norm median logcumsumexp cummax cummin diff"
)
#: At most so many combinations are evaluated one after the other.
_MOST_LOOPS = 1024


def of_tables(
    name: str, call: Callable[..., Any], sources: Sequence[Expression], rule: Callable[[], Any], result: Any, ndim: int
) -> Any:
    """What an operation makes of tables: an expression for each tensor of its result, or None where it has no meaning.

    Args:
        name: the operation's name.
        call: the operation as a function of the tensors that take the sources' places.
        sources: the tables among its arguments.
        rule: the operation's rule for any expression.
        result: its result at placeholders, for the shapes.
        ndim: the largest number of dimensions of its arguments.

    Raises:
        LatentValueError: if it mixes more elements of a discrete latent than have an affordable joint table.
    """
    if name in VIEWS:
        return rule()
    if name in SPARSE and (name not in ELEMENTWISE or len({_labels(s) for s in sources}) > 1 or _is_bound(sources)):
        found = rule() if result.dtype != torch.bool else None
        if found is not None:
            return found
    if name in CASTS and _holds(result.dtype, sources[0].like.dtype):
        return sources[0].as_dtype_of(result)
    if name in ELEMENTWISE:
        return _pointwise(call, sources, result, ndim)
    return _jointly(call, [_apart(s, range(-s.ndim, 0)) for s in sources], result)


def along(call: Callable[..., Any], source: Expression, result: Any, dim: int) -> Any:
    """An operation along the (negative) ``dim`` of a table: the other dimensions stay apart."""
    table = _apart(source, [dim])
    choices = table.choices
    check_combinations(choices)
    first = result[0] if isinstance(result, tuple | list) else result
    gone = table.ndim - first.ndim
    shifted = [c.substitute({i: i + gone for i in range(-table.ndim, dim)}) for c in choices] if gone else choices
    return _wrapped(call(table.table(choices, [dim])), shifted, result)


def over_batch(
    function: Callable[..., Tensor], tables: Sequence[Expression], events: Sequence[int], batch: Sequence[int]
) -> Expression:
    """A function of tables that acts on the last ``events`` dimensions of each, elementwise over their ``batch``."""
    found = []
    for table, event in zip(tables, events, strict=True):
        table = table.unbound()
        own = table.choices
        shifted = [c.substitute({i: i + event for i in range(-table.ndim, -event)}) for c in own]
        found.append((shifted, table.table(own, range(-event, 0)), table.ndim - event))
    choices = tuple({c.label: c for shifted, _, _ in found for c in shifted}.values())
    check_combinations(choices)
    laid = []
    for shifted, tensor, depth in found:
        names = [c.label for c in shifted]
        order = [names.index(c.label) for c in choices if c.label in names]
        sizes = [tensor.shape[names.index(c.label)] if c.label in names else 1 for c in choices]
        ordered = tensor.permute([*order, *range(len(names), tensor.ndim)])
        laid.append(ordered.reshape(*sizes, *[1] * (len(batch) - depth), *tensor.shape[len(names) :]))
    return Expression.from_table(function(*laid), choices, batch)


def _holds(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether a sum of numbers of another dtype is the same in this one."""
    return other != torch.bool and (dtype.is_floating_point or not other.is_floating_point)


def _labels(table: Expression) -> frozenset[int]:
    return frozenset(c.label for c in table.choices)


def _is_bound(tables: Sequence[Expression]) -> bool:
    return any(is_summed(label) for t in tables for c in t.choices for label in c.labels)


def _union(tables: Sequence[Expression]) -> tuple[Any, ...]:
    choices = tuple({c.label: c for t in tables for c in t.choices}.values())
    check_combinations(choices)
    return choices


def _pointwise(call: Callable[..., Any], sources: Sequence[Expression], result: Any, ndim: int) -> Any:
    tables = [s.unbound() for s in sources]
    choices = _union(tables)
    laid = [t.widened(ndim).table(choices) for t in tables]
    check_combinations(choices, broadcast_shapes(*(t.shape for t in laid)).numel())
    added = result.ndim - ndim  # one_hot has a new dimension on the right
    shifted = [c.substitute({i: i - added for i in range(-ndim, 0)}) for c in choices] if added else choices
    return _wrapped(call(laid), shifted, result)


def _apart(table: Expression, dims: Sequence[int]) -> Expression:
    """A table whose elements along some dimensions are choices of their own, so that none runs along them."""
    for dim in dims:
        table = table.unbound()
        if not any(dim in c.labels for c in table.choices):
            continue
        parts = [table.take((Ellipsis, slice(i, i + 1), *[slice(None)] * (-dim - 1))) for i in range(table.shape[dim])]
        choices = _union(parts)
        laid = [p.table(choices) for p in parts]
        shape = broadcast_shapes(*(t.shape for t in laid))
        check_combinations(choices, shape.numel() * len(parts))
        table = Expression.from_table(torch.cat([t.expand(shape) for t in laid], dim), choices, table.shape)
    return table


def _jointly(call: Callable[..., Any], tables: Sequence[Expression], result: object) -> Any:
    """Any operation, at each combination of the values."""
    choices = _union(tables)
    sizes = [c.size for c in choices]
    laid = [t.table(choices, range(-t.ndim, 0)) for t in tables]
    check_combinations(choices, sum(torch.Size((*sizes, *t.shape)).numel() for t in tables))
    if not choices:
        return _of_constants(call, laid, result)
    rows = [t.expand(*sizes, *t.shape[len(sizes) :]).flatten(0, len(sizes) - 1) for t in laid]
    try:
        found = torch.vmap(lambda *tensors: call(tensors))(*rows)
    except Exception:  # whatever vmap has no rule for
        found = _one_by_one(call, rows, tables)

    def shaped(tensor: Tensor) -> Tensor:
        return tensor.reshape([*sizes, *tensor.shape[1:]])

    found = [shaped(f) for f in found] if isinstance(found, tuple | list) else shaped(found)
    return _wrapped(found, choices, result)


def _of_constants(call: Callable[..., Any], tensors: Sequence[Tensor], result: object) -> Any:
    """An operation on numbers alone; None where it cannot take them, as a singular matrix that has no inverse."""
    try:
        return _wrapped(call(tensors), (), result)
    except Exception:
        return None


def _one_by_one(call: Callable[..., Any], rows: Sequence[Tensor], tables: Sequence[Expression]) -> Any:
    """An operation at one combination of values after the other, if its results have one shape."""
    if len(rows[0]) > _MOST_LOOPS:
        raise _too_many(tables)
    try:
        each = [call([r[i] for r in rows]) for i in range(len(rows[0]))]
        many = isinstance(each[0], tuple | list)
        return [torch.stack(parts) for parts in zip(*each, strict=True)] if many else torch.stack(each)
    except Exception:
        raise _too_many(tables) from None


def _too_many(tables: Sequence[Expression]) -> LatentValueError:
    names = ", ".join(repr(s) for s in sorted({c.site for t in tables for c in t.choices}))
    return LatentValueError(
        f"Expected an operation on the discrete latents {names} whose result has one shape whatever their values, or "
        "few elements of them; got another. Write it with sums, comparisons and torch.where."
    )


def _wrapped(found: Any, choices: Sequence[Any], result: Any) -> Any:
    if isinstance(found, tuple | list):
        return [_wrapped(f, choices, r) for f, r in zip(found, result, strict=True)]
    if found.ndim != len(choices) + result.ndim:
        return None
    return Expression.from_table(found, choices, result.shape).as_dtype_of(result)


__all__ = ["ALONG", "along", "of_tables", "over_batch", "words"]
