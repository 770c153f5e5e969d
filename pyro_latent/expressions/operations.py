"""The operations of torch: which have a rule in the algebra, and which read no value.

``OPERATIONS`` gives the rule of a torch function by its name: a function of the same arguments, with expressions in
place of tensors. It returns an expression, or None where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .expression import Expression
from .tables import words

#: Functions whose results that are not tensors depend on the shape alone.
SHAPE_QUERIES = words(
    "size stride dim ndimension numel nelement __len__ is_floating_point is_complex is_contiguous storage_offset "
    "element_size get_device is_same_size __hash__ __repr__ __str__ type is_signed is_tensor has_names is_inference "
    "is_conj is_neg"
)
#: Functions that read nothing of their tensor but its shape, dtype and device.
SHAPE_ONLY = words("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_tensor")
#: Functions that read nothing of their second tensor but its shape, dtype and device.
LIKE_ANOTHER = words("expand_as view_as reshape_as type_as to")
#: NumPy's arithmetic on a latent and an array, as torch's.
NUMPY_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.div,
    "power": torch.pow,
    "matmul": torch.matmul,
}
IN_PLACE = frozenset(f"__i{name}__" for name in words("add sub mul div truediv floordiv mod pow and or xor matmul"))


#: A tensor of so many numbers is kept as it is when it is used, for the model may write into it later.
_FEW = 1000


def _lift(x: object) -> Any:
    if not isinstance(x, Tensor):
        return x
    return Expression.constant(x.clone() if x.numel() <= _FEW else x)


def _binary(function: Callable[[Any, Any], Expression], reverse: bool = False) -> Callable[..., Expression | None]:
    def rule(a: object, b: object, **kwargs: Any) -> Expression | None:
        if kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode") is not None:
            return None
        a, b = _lift(a), _lift(b)
        return function(b, a) if reverse else function(a, b)

    return rule


def _sizes(items: tuple[Any, ...]) -> list[int]:
    flat = items[0] if len(items) == 1 and isinstance(items[0], tuple | list | torch.Size) else items
    return [int(i) for i in flat]


def _reduce(mean: bool) -> Callable[..., Expression | None]:
    def rule(x: Expression, dim: Any = None, keepdim: bool = False, dtype: Any = None, axis: Any = None) -> Any:
        dim = axis if dim is None else dim
        dims = list(range(x.ndim)) if dim is None or dim == () else [dim] if isinstance(dim, int) else list(dim)
        count = math.prod(x.shape[d] for d in dims) if x.ndim else 1
        total = x.sum(dims, keepdim) if x.ndim else x
        if mean and not count:
            return None
        return total * (1.0 / count) if mean else total

    return rule


def _where(condition: object, a: object, b: object) -> Expression | None:
    condition = _lift(condition)
    if not isinstance(condition, Expression) or not condition.is_table:
        return None
    device = condition.like.device
    a, b = (
        _lift(v) if isinstance(v, Expression | Tensor) else Expression.constant(torch.tensor(v, device=device))
        for v in (a, b)
    )
    return Expression.where(condition.as_dtype_of(condition.like.bool()), a, b)


def _stack(items: Sequence[object], dim: int = 0) -> Expression:
    parts = [_lift(i) for i in items]
    dim = dim % (parts[0].ndim + 1)
    return _cat([p.unsqueeze(dim) for p in parts], dim)


def _cat(items: Sequence[object], dim: int = 0, axis: int | None = None) -> Expression:
    """Each part holds where its places are: the pieces of a ``where``."""
    parts = [_lift(i) for i in items]
    parts = [p for p in parts if p.shape.numel()]
    ndim = parts[0].ndim
    dim = (dim if axis is None else axis) % ndim
    total = sum(p.shape[dim] for p in parts)
    device = next(p.like.device for p in parts)
    shape = [*parts[0].shape[:dim], total, *parts[0].shape[dim + 1 :]]
    place = torch.arange(total, device=device).reshape([total if i == dim else 1 for i in range(ndim)])
    result: Expression | None = None
    start = 0
    for part in parts:
        size = part.shape[dim]
        local = (place.reshape(-1) - start).clamp(0, size - 1)
        spread = part.take((*[slice(None)] * dim, local)).expand(shape)
        inside = (place >= start) & (place < start + size)
        result = spread if result is None else Expression.where(inside, spread, result)
        start += size
    assert result is not None
    return result.expand(shape)


def _einsum(equation: object, *operands: Any) -> Expression | None:
    if not isinstance(equation, str):
        return None
    items = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    left, arrow, out = equation.replace(" ", "").partition("->")
    groups = left.split(",")
    if not arrow:
        out = "..." * ("..." in left) + "".join(sorted(c for c in set(left) - {*",."} if left.count(c) == 1))
    dots = [item.ndim - len(group) + 3 if "..." in group else 0 for group, item in zip(groups, items, strict=True)]
    spare = [chr(ord("α") + i) for i in range(max(dots))]  # no letter of an equation
    groups = [g.replace("...", "".join(spare[len(spare) - n :])) for g, n in zip(groups, dots, strict=True)]
    left, out = ",".join(groups), out.replace("...", "".join(spare))
    letters = [*out, *sorted(set(left) - {","} - set(out))]
    sizes: dict[str, int] = {}
    parts = []
    for group, item in zip(groups, items, strict=True):
        part = _lift(item).polynomial()
        sizes |= {c: n for c, n in zip(group, part.shape, strict=True) if n != 1 or c not in sizes}
        parts.append((group, part))
    shape = [sizes[c] for c in letters]
    product: Expression | None = None
    for group, part in parts:
        mapping: dict[int, Any] = {i - part.ndim: letters.index(c) - len(letters) for i, c in enumerate(group)}
        placed = part._relabeled(mapping, shape)
        product = placed if product is None else product * placed
    assert product is not None
    summed = range(len(out), len(letters))
    return product.sum(list(summed)) if summed else product


def _linear(x: Any, weight: Any, bias: Any = None) -> Expression:
    weight = _lift(weight)
    product = _lift(x).matmul(weight if weight.ndim == 1 else weight.transpose(-1, -2))
    return product if bias is None else product + _lift(bias)


def _expand(x: Expression, *sizes: Any, **kwargs: Any) -> Expression:
    return x.expand(_sizes(sizes))


def _gather(x: Any, dim: int, index: Any) -> Expression | None:
    """Gather as torch.gather does, whose index may be smaller than the source in the other dimensions."""
    x = _lift(x)
    if isinstance(index, Expression):
        last = index.is_table and x.ndim and dim % x.ndim == x.ndim - 1 and x.shape[:-1] == index.shape[:-1]
        return x.unsqueeze(-2).take_last(index) if last else None
    if not x.ndim:
        return None
    read = tuple(slice(None) if d == dim % x.ndim else slice(index.shape[d]) for d in range(x.ndim))
    return _take_along(x.take(read), index, dim)


def _take_along(x: Any, index: Any, dim: Any = None) -> Expression | None:
    """Take as torch.take_along_dim does, whose index broadcasts with the source in the other dimensions."""
    if isinstance(index, Expression) or dim is None or not x.ndim:
        return None
    turned = x.transpose(dim, -1).unsqueeze(-2).take_last(index.transpose(dim, -1))
    return turned.transpose(dim, -1)


def _logdet(x: Expression) -> Expression | None:
    """The log determinant, where no two negative numbers may cancel in it."""
    found = x.log_det()
    terms = [*found.terms, *(t for _, piece in found.pieces for t in piece.terms)]
    logarithms = [f for t in terms for f in t.factors if f.function in ("log", "log1m")]
    known = all(f.function == "log" and f.variable.nonnegative for f in logarithms)
    return found if known and found.is_finite else None


def _index(x: object, index: object) -> Expression | None:
    items = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, Expression) and not i.is_table for i in items):
        return None
    return _lift(x).take(index)


def _index_select(x: Any, dim: int, index: Any) -> Expression | None:
    x = _lift(x)
    return _index(x, (*[slice(None)] * (dim % x.ndim), index)) if x.ndim else None


def _movedim(x: Expression, source: Any, destination: Any) -> Expression:
    sources, places = ([d] if isinstance(d, int) else list(d) for d in (source, destination))
    order = [d for d in range(x.ndim) if d not in [s % x.ndim for s in sources]]
    for place, moved_dim in sorted((p % x.ndim, s % x.ndim) for p, s in zip(places, sources, strict=True)):
        order.insert(place, moved_dim)
    return x.permute(order)


def _embedding(index: object, weight: object, **kwargs: Any) -> Expression | None:
    return _index(weight, index)


def _logsumexp(x: Expression, dim: Any = None, keepdim: bool = False) -> Expression | None:
    """log Σ exp over some dimensions of functions of one scalar latent, an integral of it."""
    dims = {d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)} if x.ndim else set()
    if not dims:
        return None
    kept = [d for d in range(x.ndim) if d not in dims]
    shape, count = [x.shape[d] for d in kept], len(dims)
    moved = x.permute([*kept, *sorted(dims)])
    found = Expression.of_scalar_batch(
        "logsumexp", lambda values: values.logsumexp(list(range(-count, 0))), [moved], [count], shape
    )
    if found is None or not keepdim:
        return found
    return found.reshape([1 if d in dims else n for d, n in enumerate(x.shape)])


def _log_softmax(x: Expression, dim: object = None, _stacklevel: int = 3, dtype: object = None) -> Expression | None:
    """x − log Σ exp x of functions of one scalar latent."""
    total = _logsumexp(x, dim, keepdim=True) if isinstance(dim, int) and dtype is None else None
    return None if total is None else x - total


def _softmax(x: Expression, dim: object = None, _stacklevel: int = 3, dtype: object = None) -> Expression | None:
    shares = _log_softmax(x, dim, _stacklevel, dtype)
    return None if shares is None else shares.exp()


OPERATIONS: dict[str, Callable[..., Expression | None]] = {
    **dict.fromkeys(words("add __add__ __radd__"), _binary(lambda a, b: a + b)),
    **dict.fromkeys(words("sub __sub__ subtract"), _binary(lambda a, b: a - b)),
    **dict.fromkeys(words("rsub __rsub__"), _binary(lambda a, b: a - b, reverse=True)),
    **dict.fromkeys(words("mul __mul__ __rmul__ multiply"), _binary(lambda a, b: a * b)),
    **dict.fromkeys(words("div __truediv__ divide true_divide"), _binary(lambda a, b: a / b)),
    **dict.fromkeys(words("__rtruediv__ __rdiv__"), _binary(lambda a, b: a / b, reverse=True)),
    **dict.fromkeys(words("pow __pow__"), lambda a, b: a**b if isinstance(a, Expression) else None),
    **dict.fromkeys(words("neg negative __neg__"), lambda x: -x),
    "square": lambda x: x**2,
    "sqrt": lambda x: x**0.5,
    "rsqrt": lambda x: x**-0.5,
    "reciprocal": lambda x: x**-1.0,
    "log": lambda x: x.log(),
    "exp": lambda x: x.exp(),
    "sum": _reduce(mean=False),
    "mean": _reduce(mean=True),
    **dict.fromkeys(words("matmul __matmul__ mm mv bmm dot"), lambda a, b: _lift(a).matmul(_lift(b))),
    "__rmatmul__": lambda a, b: _lift(b).matmul(_lift(a)),
    "einsum": _einsum,
    "logsumexp": _logsumexp,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "linear": _linear,
    **dict.fromkeys(words("view reshape"), lambda x, *shape, **kw: x.reshape(_sizes(shape or (kw["shape"],)))),
    **dict.fromkeys(words("view_as reshape_as"), lambda x, y: x.reshape(y.shape)),
    "flatten": lambda x, start_dim=0, end_dim=-1: x.reshape(
        [*x.shape[:start_dim], -1, *x.shape[end_dim % x.ndim + 1 :]] if x.ndim else [1]
    ),
    "unsqueeze": lambda x, dim: x.unsqueeze(dim),
    "squeeze": lambda x, dim=None: x.squeeze(dim),
    "permute": lambda x, *dims, **kw: x.permute(_sizes(dims or (kw["dims"],))),
    **dict.fromkeys(words("transpose swapaxes swapdims"), lambda x, a, b: x.transpose(a, b)),
    **dict.fromkeys(words("mT mH adjoint"), lambda x: x.transpose(-1, -2)),
    **dict.fromkeys(words("T H t"), lambda x: x.permute(range(x.ndim)[::-1])),
    "expand": _expand,
    "expand_as": lambda x, y: x.expand(y.shape),
    "broadcast_to": lambda x, shape: x.expand(shape),
    "__getitem__": _index,
    "select": lambda x, dim, index: x.take((*[slice(None)] * (dim % x.ndim), index)),
    "narrow": lambda x, dim, start, length: x.take((*[slice(None)] * (dim % x.ndim), slice(start, start + length))),
    "index_select": _index_select,
    "embedding": _embedding,
    **dict.fromkeys(words("movedim moveaxis"), _movedim),
    "take": lambda x, index: _index(_lift(x).reshape([-1]), index),
    "gather": _gather,
    "take_along_dim": _take_along,
    "where": _where,
    **dict.fromkeys(words("stack"), _stack),
    **dict.fromkeys(words("cat concat concatenate"), _cat),
    "diag_embed": lambda x: x.diag_embed(),
    "diag": lambda x: x.diag_embed() if x.ndim == 1 else None,
    "logdet": _logdet,
    **dict.fromkeys(words("inverse linalg_inv"), lambda x: x.inverse()),
    **dict.fromkeys(words("cholesky linalg_cholesky"), lambda x: x.cholesky()),
    **dict.fromkeys(
        words("positive __pos__ type clone contiguous detach data to float double type_as cpu cuda requires_grad_"),
        lambda x, *args, **kwargs: x,
    ),
}
#: The rules of methods whose arguments stand in another order than those of the function of the same name.
METHODS: dict[Callable[..., Any], Callable[..., Expression | None]] = {
    Tensor.where: lambda x, condition, other: _where(condition, x, other)
}
