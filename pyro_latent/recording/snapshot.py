"""What a call of a model depends on, as far as Python can see it, to tell whether it is the same again.

A model reads its arguments, and what it closes over: the variables and globals that its code names, the attributes of
the object that it is a method of, what its handlers hold. :class:`Snapshot` walks over all of these. A tensor is the
same if it is the same object and its bytes are; an array too, for ``t.data`` and NumPy change bytes behind torch's
version counter. What a model reads from elsewhere (a file, a call of a compiled function) leaves no trace here, and of
what is another one each time that it is read (an iterator, a generator of random numbers) there is no state to compare.
"""

from __future__ import annotations

import os
import random
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from copy import copy
from functools import lru_cache, partial
from itertools import zip_longest
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ..signatures import Args, Model
from ..values import is_at_hand

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, np.generic)
#: Code that a model calls and that does not change: it is not looked into.
_LIBRARIES = {*sys.stdlib_module_names, "_pytest", "numpy", "pandas", "pyro", "pyro_latent", "scipy", "torch"}
#: What moves while a model is fitted, and that a model does not read.
_DRIVERS = (
    "pyro.infer",
    "pyro.optim",
    "pyro_latent.gradient",
    "pyro_latent.guide",
    "pyro_latent.ascent",
    "torch.optim",
)
#: A function that keeps what it has found.
CACHED = type(lru_cache(lambda: None))
#: What may say something else each time that it is asked, and shows nothing of it.
_MOVING = (
    Iterator,
    Executor,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
    torch.Generator,
    CACHED,  # of a tensor it knows whether it is the same object
)
#: The elements of a tensor on an accelerator that are summed at once.
_CHUNK = 2**24

#: The mark of what may say something else each time.
_MOVES = object()
#: An object that must be the same, or None, and what it holds.
_Mark = tuple[Any, Any]


class AskedAgain(dict[str, Any]):
    """The keyword arguments of the last sweep of a run, of which it asks whether the model still sees the same. It does
    not wait for an accelerator: tensors there are known by their versions, which a write by ``t.data`` leaves.
    """


class Snapshot:
    """The state of a model and its arguments at one moment.

    Args:
        model: a Pyro model.
        args, kwargs: the arguments of a call.
    """

    def __init__(self, model: Model, args: Args, kwargs: Mapping[str, object]) -> None:
        self._model = model
        self._of_model = list(_walk(model, {}, model))
        self._of_call = list(_walk((args, dict(kwargs)), {}))

    def matches(self, args: Args, kwargs: Mapping[str, object]) -> bool:
        """Whether a call of the model now would see the same."""
        waits = not isinstance(kwargs, AskedAgain)
        return _alike(_walk((args, dict(kwargs)), {}, None, waits), self._of_call) and self.is_of_same_model(waits)

    def is_of_same_model(self, waits: bool = True) -> bool:
        """Whether a call of the model now would see the same beside its arguments."""
        return _alike(_walk(self._model, {}, self._model, waits), self._of_model)

    @property
    def is_of_moving(self) -> bool:
        """Whether the model holds what may be another one without a trace here: it cannot be told to be the same."""
        return any(mark is _MOVES for _, mark in self._of_model)

    def of(self, args: Args, kwargs: Mapping[str, object]) -> Snapshot:
        """The state of the same model and of other arguments."""
        other = copy(self)
        other._of_call = list(_walk((args, dict(kwargs)), {}))
        return other


def literals(model: Model) -> frozenset[str] | None:
    """The strings that are written in the code of a function and of those that it names, and those that it closes over;
    None of an object whose code is not looked at.
    """
    inner = model
    while isinstance(inner, partial):
        inner = inner.func
    if not isinstance(inner, FunctionType | MethodType):
        return None
    found, waiting, seen = set[str](), [model], dict[int, Any]()
    while waiting:
        held = waiting.pop()
        if id(held) in seen or isinstance(held, Tensor) or hasattr(type(held), "__array__"):
            continue  # data is not read
        seen[id(held)] = held
        found |= _strings_in(held) if isinstance(held, str | CodeType) else set()
        waiting += [] if isinstance(held, _PLAIN) else _parts(held) or []
    return frozenset(found) or None


def _strings_in(constant: object) -> set[str]:
    """The strings among the constants of a code object, and of the functions that it defines."""
    if isinstance(constant, str):
        return {constant}
    parts = constant.co_consts if isinstance(constant, CodeType) else constant if isinstance(constant, tuple) else ()
    return set[str]().union(*map(_strings_in, parts))


def _alike(now: Iterable[_Mark], then: Iterable[_Mark]) -> bool:
    return all(_same(a, b) for a, b in zip_longest(now, then))


def _same(a: _Mark | None, b: _Mark | None) -> bool:
    return a is not None and b is not None and a[0] is b[0] and type(a[1]) is type(b[1]) and bool(a[1] == b[1])


def _walk(value: object, seen: dict[int, Any], model: object = None, waits: bool = True) -> Iterator[_Mark]:
    """A mark for everything that can be reached from a value; what is ``seen`` stays alive, so that no other object
    takes its number. Guides of another model than this one move. The bytes of a tensor on an accelerator are read if
    one ``waits`` for it.
    """
    if isinstance(value, _PLAIN):
        yield None, value
        return
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, Tensor):
        yield value, _tensor_mark(value, waits or is_at_hand(value))
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield value, (value.shape, value.dtype, zlib.crc32(np.ascontiguousarray(value).data))
    elif isinstance(value, list | tuple) and all(type(v) in _PLAIN for v in value):
        yield None, tuple(value)
    elif isinstance(value, _MOVING) or value is id or (isinstance(value, AutoGuide) and value.model != model):
        yield value, _MOVES
    else:
        parts = _parts(value)
        yield (value, None) if parts is None else (None, (type(value), len(parts)))
        for part in parts or ():
            yield from _walk(part, seen, model, waits)


def _parts(value: object) -> list[Any] | None:
    """What an object holds; None of one that is known by its identity alone."""
    if isinstance(value, list | tuple | set | frozenset | deque):
        return list(value)
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, FunctionType):
        return None if _is_library(value.__module__) else _function_parts(value)
    if isinstance(value, ModuleType | AutoGuide) or type(value).__module__.startswith(_DRIVERS):
        return None
    if isinstance(value, type):
        return None if _is_library(value.__module__) else [*vars(value).values(), *value.__bases__]
    if isinstance(value, property):
        return [value.fget, value.fset]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if hasattr(type(value), "__array__"):  # an object may say that it has every attribute
        return [np.asarray(value).tolist()]
    return _object_parts(value)


def _object_parts(value: object) -> list[Any] | None:
    """The attributes of an object, and its class if that is not a library's."""
    own = [] if _is_library(type(value).__module__) else [type(value)]
    names = slots_of(value)
    if not own and not names and not hasattr(value, "__dict__"):
        return None
    slots = [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    return [*getattr(value, "__dict__", {}).items(), *slots, *own]


def slots_of(value: object) -> list[str]:
    """The attributes that the classes of an object have in the place of its dict."""
    found = [vars(c).get("__slots__", ()) for c in type(value).__mro__ if c.__module__ != "builtins"]
    names = [n for slots in found for n in ((slots,) if isinstance(slots, str) else slots)]
    return [n for n in names if n not in ("__dict__", "__weakref__")]


def _is_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _LIBRARIES


def _function_parts(function: FunctionType) -> list[Any]:
    """The code of a function, its defaults and attributes, and the variables and globals that it names."""
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            cells.append(None)
    names = _names_in(function.__code__)
    used = [function.__globals__[n] for n in sorted(names) if n in function.__globals__]
    used += _imported_inside(function, names)
    used += [dict(os.environ)] if names & {"environ", "getenv"} else []
    modules: list[ModuleType] = []
    for item in used:  # which grows: a module may be in another one
        if isinstance(item, ModuleType) and not _is_library(item.__name__) and item not in modules:
            modules.append(item)
            used += [vars(item)[n] for n in sorted(names) if n in vars(item)]
    used += [id] if "id" in names and "id" not in function.__globals__ else []  # by which a dict may know a tensor
    return [function.__code__, function.__defaults__, function.__kwdefaults__, vars(function), *cells, *used]


def _imported_inside(function: FunctionType, names: set[str]) -> list[Any]:
    """The modules that a function imports when it is called, which its globals do not name."""
    package = function.__globals__.get("__package__")
    places = [n for name in sorted(names - function.__globals__.keys()) for n in (name, f"{package}.{name}")]
    return [sys.modules[n] for n in places if n in sys.modules]


def _names_in(code: CodeType) -> set[str]:
    """The global names and attributes in a code object, and in the functions that it defines."""
    inner = [_names_in(c) for c in code.co_consts if isinstance(c, CodeType)]
    return set(code.co_names).union(*inner)


class _TensorMark(NamedTuple):
    """What a tensor is known by; its bytes by a sum of them, where they were read."""

    version: int
    about: tuple[Any, ...]
    checksum: int | None

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, _TensorMark)
        is_same = self[:2] == other[:2]
        return is_same and (self.checksum == other.checksum or self.checksum is None or other.checksum is None)


def _tensor_mark(tensor: Tensor, reads_bytes: bool) -> _TensorMark:
    is_dense = not (tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta)
    about = (tensor.shape, tensor.dtype, tensor.device) if is_dense else ()
    return _TensorMark(version_of(tensor), about, checksum(tensor) if is_dense and reads_bytes else None)


def version_of(tensor: Tensor) -> int:
    """A number that changes when torch writes into a tensor; 0 for one of inference mode, which has none."""
    return 0 if tensor.is_inference() else tensor._version


def checksum(tensor: Tensor) -> int:
    """A number that changes with a dense tensor's bytes and with their order; off the CPU one scalar is transferred."""
    dense = tensor.detach().contiguous()  # of one element it may have any strides
    flat = dense.as_strided((dense.numel(),), (1,), dense.storage_offset()).view(torch.uint8)
    if flat.device.type == "cpu":
        return zlib.crc32(flat.numpy().data)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK].long()
        place = torch.arange(start, start + len(part), device=flat.device)
        total = total + (part * (2 * place + 1) * (place + 97)).sum()
    return int(total)


__all__ = ["CACHED", "AskedAgain", "Snapshot", "checksum", "literals", "slots_of", "version_of"]
