"""Whether a method was fitted to the arguments that it is compared on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from pyro.infer import MCMC
from torch import Tensor

from ..errors import ModelError
from ..guide import AutoConjugate
from ..particles import ProgramCall, PyroProgram
from ..signatures import Args, Array

PLAIN = int | float | complex | str | bytes | bool | None


def check_same_data(here: ProgramCall, guide: PyroProgram | MCMC, name: str) -> None:
    """What a guide was fitted to has to be what it is compared on, where it remembers that.

    An ``AutoConjugate`` and an ``MCMC`` know the arguments of their fit; other guides keep nothing of their data.

    Args:
        here: the model with the arguments of the comparison.
        guide: what was fitted.
        name: how errors call it.

    Raises:
        ModelError: naming the argument that differs, and how.
    """
    if isinstance(guide, MCMC):
        if guide._args is not None:
            _check_arguments(here, guide._args, guide._kwargs or {}, name)
    elif isinstance(guide, AutoConjugate):
        call = guide.posterior_state.call
        if call is not None:
            _check_arguments(here, call.args, call.kwargs, name)


def _check_arguments(call: ProgramCall, args: Args, kwargs: Mapping[str, object], name: str) -> None:
    here, there = _named(call), _named(ProgramCall(call.program, args, kwargs))
    if here.keys() != there.keys():
        raise ModelError(
            f"Expected the arguments that {name} was fitted with, {list(there)}; got {list(here)}. Fit it to these."
        )
    for key, value in here.items():
        found = where_different(there[key], value)
        if found:
            raise ModelError(
                f"Expected the data that {name} was fitted to; got another argument {key!r}: {found}. Fit it to this "
                "data, or pass same_data=False where it saw minibatches."
            )


def _named(call: ProgramCall) -> dict[Any, Any]:
    """Arguments by the parameter that takes them, with defaults; or as they are given, if they do not fit."""
    try:
        found = call.bound()
    except (TypeError, ValueError):
        return dict(enumerate(call.args)) | dict(call.kwargs)
    found.apply_defaults()
    return dict(found.arguments)


def where_different(before: Any, now: Any) -> str:
    """The words for how two arguments differ, also inside lists, tuples, dicts and dataclasses; empty if they do not.

    Arrays are compared by their values, whatever holds them. What is no array, container or plain value is taken as
    equal.
    """
    if before is now:
        return ""
    if _is_array(before) and _is_array(now):
        return _of_arrays(as_array(before), as_array(now))
    if isinstance(before, PLAIN) and isinstance(now, PLAIN):
        same = before == now or (before != before and now != now)  # NaN is another NaN here
        return "" if same else f"{now!r} in place of {before!r}"
    there, here = _parts(before), _parts(now)
    if there is None or here is None or _kind(before) is not _kind(now):
        other = type(before) is not type(now) and (_is_known(before) or _is_known(now))
        return f"{type(now).__name__} in place of {type(before).__name__}" if other else ""
    if here.keys() != there.keys():
        if _kind(now) is list:
            return f"{len(here)} items in place of {len(there)}"
        return f"keys {list(now)} in place of {list(before)}"
    found = ((where, where_different(part, here[where])) for where, part in there.items())
    return next((f"{where}: {words}" for where, words in found if words), "")


def _parts(value: object) -> dict[str, Any] | None:
    """What a container holds, by what errors call its places; None of anything else."""
    if isinstance(value, list | tuple):
        return {f"item {i}": part for i, part in enumerate(value)}
    if isinstance(value, Mapping):
        return {repr(key): part for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return None


def _kind(value: object) -> type:
    return list if isinstance(value, tuple) else dict if isinstance(value, Mapping) else type(value)


def _is_known(value: object) -> bool:
    return _is_array(value) or isinstance(value, PLAIN) or _parts(value) is not None


def _is_array(value: object) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, type)  # tensors, NumPy's arrays, pandas' tables


def as_array(value: object) -> Array:
    """A tensor, dense or sparse, on any device, or anything that NumPy takes, as an array."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    plain = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
    plain = plain.float() if plain.dtype is torch.bfloat16 else plain  # NumPy has no bfloat16
    return plain.cpu().numpy()


def _of_arrays(before: Array, now: Array) -> str:
    if before.shape != now.shape:
        return f"shape {list(now.shape)} in place of {list(before.shape)}"
    differ = np.asarray((before != now) & ~((before != before) & (now != now)), dtype=bool)  # NaN is another NaN here
    return f"{int(differ.sum()):,} of {differ.size:,} elements differ" if differ.any() else ""
