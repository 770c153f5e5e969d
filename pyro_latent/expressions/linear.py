"""Operations that move elements, add them up with constant weights, or are made of other operations.

None of them has a rule of its own. Where the elements go, an operation says at their numbers; what it adds up, it says
by its derivative; and the rest is written in terms of operations that have rules. Which operations do so is a table:
no operation is taken for linear by what it gives.
"""

from __future__ import annotations

import itertools
import math
import operator
import warnings
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..settings import check_memory
from .axes import Axis, as_axis
from .expression import Expression
from .tables import words

#: Operations each element of whose results is an element of one of the arguments, or a number.
PLACING = words(
    "roll flip fliplr flipud rot90 repeat tile repeat_interleave diagonal linalg_diagonal unfold ravel unflatten "
    "masked_select masked_scatter scatter index_copy index_fill index_put select_scatter slice_scatter "
    "diagonal_scatter pad triu tril diagflat block_diag hstack vstack dstack row_stack column_stack atleast_1d "
    "atleast_2d atleast_3d meshgrid cartesian_prod combinations channel_shuffle pixel_shuffle pixel_unshuffle real "
    "resolve_conj resolve_neg"
)
_CONVOLUTIONS = [(getattr(F, f"conv{kind}{dims}d"), dims) for kind in ("", "_transpose") for dims in (1, 2, 3)]
#: Operations that are affine in each floating argument where the others are constant; in all of them at once, if True.
LINEAR = {
    **dict.fromkeys(words("scatter_add index_add index_put sum_to_size fold"), True),
    **dict.fromkeys(
        words("avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d interpolate"), True
    ),
    **dict.fromkeys((f.__name__ for f, _ in _CONVOLUTIONS), False),
    **dict.fromkeys(words("bilinear cross linalg_cross trapezoid trapz cumulative_trapezoid"), False),
}

#: Calls an operation with tensors in place of its random arguments.
Call = Callable[[Sequence[Tensor]], Any]


def placed(sources: Sequence[Expression], call: Call) -> Any:
    """What an operation makes that moves elements, or a list of them where it has several results; None where it does
    something else with these arguments, such as to add those up that come to one place.
    """
    count = sum(s.shape.numel() for s in sources)
    numbers, ends = [], [0, *itertools.accumulate(s.shape.numel() for s in sources)]
    for source, start in zip(sources, ends, strict=False):
        dtype = source.like.dtype if source.like.is_floating_point() else torch.int64
        own = torch.arange(start + 1, start + source.shape.numel() + 1, dtype=dtype, device=source.like.device)
        numbers.append(own.reshape(source.shape))
    if int(numbers[-1].max()) != count:  # more than the floating numbers tell apart
        return None
    forward, backward = call(numbers), call([count + 1 - n for n in numbers])
    rest = call([torch.zeros_like(n) for n in numbers])
    many = not isinstance(forward, Tensor)
    triples = zip(forward, backward, rest, strict=True) if many else [(forward, backward, rest)]
    found = [_read(sources, ends, *triple) for triple in triples]
    if any(f is None for f in found):
        return None
    return found if many else found[0]


def _read(
    sources: Sequence[Expression], ends: Sequence[int], forward: Tensor, backward: Tensor, rest: Tensor
) -> Expression | None:
    """The elements whose numbers an operation gave, counted from 1 in either direction, and a number elsewhere."""
    read = forward != rest
    if not torch.equal(torch.where(read, ends[-1] + 1 - forward, rest), backward):
        return None
    places = torch.where(read, forward, 1).long() - 1
    result = None if bool(read.all()) else Expression.constant(rest)
    for source, start, end in zip(sources, ends, ends[1:], strict=False):
        here = read & (places >= start) & (places < end)
        if end == start or not bool(here.any()):
            continue
        taken = _taken(source, (places - start).clamp(0, end - start - 1))
        result = taken if result is None else Expression.where(here, taken, result)
    return result


def _taken(source: Expression, places: Tensor) -> Expression:
    """The elements of these numbers; each dimension is read along those of the result that it varies with."""
    if source.pieces:
        return source._view(lambda e: _taken(e, places))
    axes: dict[int, Axis] = {}
    shape = places.shape
    for dim in range(-1, -source.ndim - 1, -1):
        at, places = places % source.shape[dim], places // source.shape[dim]
        labels: list[int] = []
        for i in reversed(range(at.ndim)):
            first = at.narrow(i, 0, 1)
            if torch.equal(at, first.expand_as(at)):
                at = first.squeeze(i)
            else:
                labels.insert(0, i - len(shape))
        axes[dim] = as_axis(at, tuple(labels), source.shape[dim])
    return source._relabeled(axes, shape)


def weighted(name: str, sources: Sequence[Expression], call: Call) -> Expression | None:
    """What an operation makes that adds elements up with constant weights, as a product with the matrix of them."""
    if not LINEAR[name] and len(sources) > 1:
        return None
    zeros = [torch.zeros(s.shape, dtype=s.like.dtype, device=s.like.device) for s in sources]
    constant = call(zeros)
    total = Expression.constant(constant)
    for place, source in enumerate(sources):
        count = source.shape.numel()
        what = f"the matrix of {name} of {', '.join(map(repr, sorted(source.sites)))}"
        check_memory(what, count * constant.numel(), "Write it with sums of products.")
        before, after = zeros[:place], zeros[place + 1 :]
        weights = _derivative(lambda tensor, a=before, b=after: call([*a, tensor, *b]), zeros[place])  # type: ignore[misc]
        product = Expression.constant(weights.reshape(constant.numel(), count)).matmul(source.reshape([-1]))
        total = total + product.reshape(constant.shape)
    return total


def _derivative(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The derivative in each element of the argument, along the last dimension: of a linear function, its weights."""
    units = torch.eye(at.numel(), dtype=at.dtype, device=at.device).reshape(-1, *at.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how fast torch does it
        found: Tensor = torch.func.vmap(lambda unit: torch.func.jvp(function, (at,), (unit,))[1], out_dims=-1)(units)
    return found


def _scaled_sum(product: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda x, a, b, beta=1, alpha=1: beta * x + alpha * product(a, b)


def _tensordot(a: Any, b: Any, dims: Any = 2, out: None = None) -> Any:
    if isinstance(dims, int):
        dims = range(a.ndim - dims, a.ndim), range(dims)
    left, right = ([d % t.ndim for d in given] for t, given in zip((a, b), dims, strict=True))
    first = "abcdefghijklm"[: a.ndim]
    second = ["nopqrstuvwxyz"[d] for d in range(b.ndim)]
    for i, j in zip(left, right, strict=True):
        second[j] = first[i]
    kept = [c for d, c in enumerate(first) if d not in left] + [c for d, c in enumerate(second) if d not in right]
    return torch.einsum(f"{first},{''.join(second)}->{''.join(kept)}", a, b)


def _kron(a: Any, b: Any) -> Any:
    ndim = max(a.ndim, b.ndim)
    rows, columns = ([1] * (ndim - t.ndim) + list(t.shape) for t in (a, b))
    outer = a.reshape([n for size in rows for n in (size, 1)]) * b.reshape([n for size in columns for n in (1, size)])
    return outer.reshape([n * m for n, m in zip(rows, columns, strict=True)])


def _cumsum(x: Any, dim: int) -> Any:
    if not x.ndim:
        return x
    if not getattr(x, "expression", x).is_finite:  # 0 · ∞ is no number
        return torch.stack(list(itertools.accumulate(x.unbind(dim))), dim)
    n = x.shape[dim]
    until = torch.ones(n, n, dtype=x.dtype, device=x.device).triu()
    return (x.movedim(dim, -1) @ until).movedim(-1, dim)


def _cumprod(x: Any, dim: int) -> Any:
    return torch.stack(list(itertools.accumulate(x.unbind(dim), operator.mul)), dim) if x.ndim else x


def _prod(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    product = reduce(operator.mul, (x if x.ndim and dim is not None else x.reshape(-1)).unbind(dim or 0))
    return product.unsqueeze(dim) if keepdim else product


def _diff(x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    if prepend is not None or append is not None:
        x = torch.cat([t for t in (prepend, x, append) if t is not None], dim)
    for _ in range(n):
        x = x.narrow(dim, 1, x.shape[dim] - 1) - x.narrow(dim, 0, x.shape[dim] - 1)
    return x


def _diag(x: Any, diagonal: int = 0) -> Any:
    return x.diagonal(diagonal) if x.ndim > 1 else None


def _convolved(function: Callable[..., Any], dims: int) -> Callable[..., Any]:
    def convolved(x: Any, weight: Any, bias: Any = None, *how: Any, **named: Any) -> Any:
        return None if bias is None else function(x, weight, None, *how, **named) + bias.reshape(-1, *[1] * dims)

    return convolved


def _dropout(x: object, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return None if training and p else x


#: Operations in terms of others, as functions of the tensors themselves; None where that is another operation.
COMPOSED: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(words("add"), lambda a, b, alpha: a + alpha * b),
    **dict.fromkeys(words("sub subtract"), lambda a, b, alpha: a - alpha * b),
    "rsub": lambda a, b, alpha: b - alpha * a,
    "addcmul": lambda x, a, b, value=1: x + value * (a * b),
    "addcdiv": lambda x, a, b, value=1: x + value * (a / b),
    "lerp": lambda a, b, weight: a + weight * (b - a),
    "float_power": lambda x, exponent: x**exponent,
    **dict.fromkeys(words("addmm addmv baddbmm"), _scaled_sum(torch.matmul)),
    "addbmm": _scaled_sum(lambda a, b: torch.matmul(a, b).sum(0)),
    "addr": _scaled_sum(torch.outer),
    "linalg_matmul": torch.matmul,
    **dict.fromkeys(words("linalg_multi_dot chain_matmul"), lambda *parts: reduce(torch.matmul, _listed(parts))),
    **dict.fromkeys(words("outer ger"), lambda a, b: a.unsqueeze(-1) * b),
    "inner": lambda a, b: _tensordot(a, b, ([-1], [-1])) if a.ndim and b.ndim else a * b,
    **dict.fromkeys(words("vdot linalg_vecdot"), lambda a, b, dim=-1: (a * b).sum(dim)),
    "tensordot": _tensordot,
    "kron": _kron,
    "linalg_solve": lambda a, b: torch.linalg.inv(a) @ b if b.ndim in (1, a.ndim) else None,
    "cumsum": _cumsum,
    "cumprod": _cumprod,
    "prod": _prod,
    "diff": _diff,
    "diag": _diag,
    "trace": lambda x: x.diagonal().sum(),
    "masked_fill": lambda x, mask, value: torch.where(mask, value, x),
    "log1p": lambda x: (x + 1.0).log(),
    "logit": lambda x: x.log() - (1.0 - x).log(),
    "log2": lambda x: x.log() / math.log(2.0),
    "log10": lambda x: x.log() / math.log(10.0),
    "dropout": _dropout,
    **{f.__name__: _convolved(f, dims) for f, dims in _CONVOLUTIONS},
}


def _listed(parts: tuple[Any, ...]) -> Sequence[Any]:
    return parts[0] if len(parts) == 1 else parts


__all__ = ["COMPOSED", "LINEAR", "PLACING", "placed", "weighted"]
