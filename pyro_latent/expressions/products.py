"""Logarithms of products that have no polynomial of a few terms, such as the weights of broken sticks.

``(1 - v).cumprod(-1)`` of K elements is a polynomial of 2^K terms, and its logarithm a sum of K. So the result of such
a product remembers its logarithm, also where it is opaque otherwise, and what is multiplied, moved or filled up does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..signatures import Args, Kwargs
from .expression import Expression
from .linear import PLACING
from .recorded import Recorded, mapped
from .tables import VIEWS, words

_PRODUCTS = words("mul __mul__ __rmul__ multiply")
#: Those that put zeros, or numbers, beside what they move have no logarithm of this kind.
_MOVES = (VIEWS | PLACING) - words("triu tril diagflat block_diag index_fill scatter")
#: Those whose tensors are all values; of others, whole numbers and masks are places.
_JOINS = words("stack cat concat concatenate hstack vstack dstack row_stack column_stack")


def logarithm_of(
    name: str,
    func: Callable[..., Any],
    args: Args,
    kwargs: Kwargs,
    sources: list[Recorded],
    random: Callable[[Tensor, Expression], Recorded],
) -> Expression | None:
    """The logarithm of what an operation makes, where the result may not say it itself; None where nobody knows it.

    Args:
        name, func, args, kwargs: the operation.
        sources: the random tensors among its arguments.
        random: makes a random tensor of a placeholder and an expression.
    """
    if name == "cumprod":
        x = args[0]
        logarithm = x.expression.log()
        if logarithm.opacity or x.expression.is_table:
            return None
        found: Any = random(x._placeholder, logarithm).cumsum(*args[1:], **kwargs)
        return found.expression
    if not any(t.expression.logarithm is not None for t in sources):
        return None

    def log(x: object) -> Any:
        if isinstance(x, Recorded):
            expression = x.expression.log()
            return None if expression.opacity else random(x._placeholder, expression)
        if not isinstance(x, Tensor | float | int) or bool(torch.as_tensor(x <= 0).any()):
            return None
        return x.log() if isinstance(x, Tensor) else math.log(x)

    if name in _PRODUCTS:
        a, b = (log(x) for x in args)
        return None if a is None or b is None else (a + b).expression
    if name not in _MOVES:
        return None
    is_pad = name == "pad"
    if is_pad and (kwargs.get("value") is None or kwargs.get("mode", "constant") != "constant" or len(args) > 2):
        return None
    kwargs = kwargs | {"value": log(kwargs["value"])} if is_pad else kwargs

    def moved(x: Tensor) -> Any:
        return log(x) if x.is_floating_point() or name in _JOINS else x

    plain = mapped((args, kwargs), moved, Tensor)
    result = None if _has_none(plain, (args, kwargs)) else func(*plain[0], **plain[1])
    return result.expression if isinstance(result, Recorded) else None


def _has_none(found: Any, given: Any) -> bool:
    """Whether something has become None on the way."""
    if isinstance(given, tuple | list):
        return any(_has_none(f, g) for f, g in zip(found, given, strict=True))
    if isinstance(given, dict):
        return any(_has_none(found[k], g) for k, g in given.items())
    return found is None and given is not None


__all__ = ["logarithm_of"]
