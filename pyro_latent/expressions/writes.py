"""Writes into tensors that hold latents, as ``loc[i] = mu``: what is written, and which other tensors see it.

A view shares the elements of its base. A write goes to the base, and from there to every view that is still in use. A
tensor that may be a view or a copy, as ``reshape`` makes, is not written to, nor what it may be a view of; and neither
is the value of a site, which Pyro would score as it was written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..signatures import Args, Kwargs
from .recorded import Alias, Recorded, recorded_in
from .tables import words

#: Operations whose result shares the elements of their first argument.
_VIEWS = words(
    "view view_as unsqueeze squeeze permute movedim moveaxis transpose swapaxes swapdims mT mH T H t adjoint expand "
    "expand_as broadcast_to select narrow diagonal unflatten detach data"
)
#: Operations whose result may be their first argument, a view of it, or a copy.
_PERHAPS = words(
    "reshape reshape_as flatten ravel contiguous to type type_as float double cpu cuda positive __pos__ atleast_1d "
    "atleast_2d atleast_3d unfold real sum_to_size resolve_conj resolve_neg dropout requires_grad_ linalg_diagonal"
)
#: Operations that write what the operation of the same name without the last letter gives.
_IN_PLACE = words(
    "add_ sub_ subtract_ mul_ multiply_ div_ divide_ true_divide_ pow_ neg_ sqrt_ rsqrt_ exp_ log_ square_ reciprocal_ "
    "masked_fill_ index_add_ index_copy_ index_fill_ scatter_ scatter_add_ addcmul_ addcdiv_ addmm_ addmv_ lerp_ "
    "cumsum_ triu_ tril_"
)


def track(name: str, func: Callable[..., Any], args: Args, kwargs: Kwargs, result: Recorded) -> None:
    """Remember what a result shares its elements with."""
    result.is_own = True
    source = args[0] if args else None
    if not isinstance(source, Recorded):
        return
    known = name in _VIEWS or (name == "__getitem__" and _is_basic(args[1]))
    if known or name in _PERHAPS:
        result.alias = Alias(source, (lambda t: func(t, *args[1:], **kwargs)) if known else None)
        base = _base(result)
        base.views = WeakValueDictionary() if base.views is None else base.views
        base.views[id(result)] = result


def write(name: str, args: Args, kwargs: Kwargs) -> bool:
    """Write to the first argument as an operation does; False where it is none that may be written to so."""
    target = args[0]
    if not isinstance(target, Recorded) or not _base(target).is_own or kwargs.get("out") is not None:
        return False
    places = _places(target)
    if places is None:
        return False
    if name == "__setitem__":
        if recorded_in(args[1]):
            return False
        places, value = places[args[1]], args[2]
    elif name in ("copy_", "fill_", "zero_"):
        value = args[1] if len(args) > 1 else 0.0
    elif name in _IN_PLACE or name in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"):
        plain = f"__{name[3:]}" if name.startswith("__i") else name[:-1]
        value = getattr(torch.Tensor, plain)(target, *args[1:], **kwargs)
    else:
        return False
    return _put(_base(target), places, value)


def _put(base: Recorded, places: Tensor, value: Any) -> bool:
    """Write a value to the elements of these numbers, for every view to see."""
    views = list(base.views.values()) if base.views is not None else []
    seen = [_places(v) for v in views]
    flat = places.reshape(-1)
    if any(s is None for s in seen) or len(flat.unique()) != len(flat):
        return False
    value = value if isinstance(value, Tensor) else torch.tensor(value)
    value = value.to(dtype=base.dtype, device=base.device).expand(places.shape).reshape(-1)
    order = torch.full((base.numel(),), -1, device=flat.device)
    order[flat] = torch.arange(len(flat), device=flat.device)
    before = type(base)(base._placeholder, base.expression, base.replay)  # which what came before still refers to
    written = order >= 0
    after = value[order.clamp(min=0)]
    if not bool(written.all()):
        after = torch.where(written, after, before.reshape(-1))
    for tensor, numbers in ((base, _numbers(base)), *zip(views, seen, strict=True)):
        found = after[numbers]
        tensor.expression, tensor.replay, tensor.function_of = found.expression, found.replay, found.function_of
        tensor.pattern = found.pattern
    return True


def _base(tensor: Recorded) -> Recorded:
    while tensor.alias is not None:
        tensor = tensor.alias.source
    return tensor


def _numbers(tensor: Tensor) -> Tensor:
    return torch.arange(tensor.numel(), device=tensor.device).reshape(tensor.shape)


def _places(tensor: Recorded) -> Tensor | None:
    """The numbers of a tensor's elements in its base; None where it may be a copy."""
    if tensor.alias is None:
        return _numbers(tensor)
    there = _places(tensor.alias.source)
    if there is None or tensor.alias.view is None:
        return None
    return tensor.alias.view(there)


def _is_basic(index: object) -> bool:
    """Whether an index makes a view: integers, slices, None and Ellipsis."""
    items = index if isinstance(index, tuple) else (index,)
    return all(i is None or i is Ellipsis or (isinstance(i, slice | int) and not isinstance(i, bool)) for i in items)


__all__ = ["track", "write"]
