"""An accelerator that is played on the CPU: what would lie on it, what it would refuse, and where Python would wait.

A storage is on it if it was put there (:meth:`Accelerator.put`), if an operation made it of one that is, or if a
``device`` was named when it was made. As PyTorch does, it refuses operations on tensors of two devices that are not
scalars. It counts the reads of a value by Python, and the copies of numbers of Python's to it, by the lines of the
library that asked for them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_latent.distributions.quadrature import kept_on
from pyro_latent.families import exponent
from pyro_latent.objective import summands
from pyro_latent.recording import snapshot

ROOT = Path(__file__).resolve().parents[1]
#: Operations that need values, or the number of them, on the host.
READS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
READS |= {"bincount", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq"}
#: Methods that copy values to the host, which the dispatcher does not see where they lie there already.
COPIES = {"tolist", "numpy", "cpu", "__array__"}
#: Functions that copy Python's numbers to where a tensor is to be.
UPLOADS = {"tensor", "as_tensor", "from_numpy", "new_tensor"}
#: Operations whose arguments may lie on two devices.
MIXING = {"_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_", "set_"}
#: So many lines of the library are named with a read.
_LINES = 3


def _lines() -> str:
    """The innermost lines of the library that are being run."""
    found: list[str] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and len(found) < _LINES:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "pyro_latent") or path.is_relative_to(ROOT / "models"):
            found.append(f"{path.relative_to(ROOT)}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(found)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments and results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


class Accelerator:
    """What would happen on an accelerator while it is entered.

    Attributes:
        reads: how often each line waits for values.
        uploads: how often each line copies numbers of Python's.
    """

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self._storages: dict[int, Any] = {}  # kept alive, so that no other takes its place
        self.makes = False  # whether what a call makes by itself is there

    def put(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor that lies on the accelerator."""
        copy = tensor.clone()
        self._mark(copy)
        return copy

    def fetch(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor that does not."""
        copy = tensor.clone()
        self._storages.pop(copy.untyped_storage()._cdata, None)
        return copy

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies there."""
        return tensor.layout is torch.strided and tensor.untyped_storage()._cdata in self._storages

    def _mark(self, tensor: Tensor) -> None:
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = storage

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Play the accelerator for what is run inside."""
        with pytest.MonkeyPatch.context() as patch, _Calls(self), _Operations(self):
            for module in (exponent, snapshot, summands):
                patch.setattr(module, "is_at_hand", lambda tensor: not self.holds(tensor))
            kept_on.cache_clear()  # what is there for the CPU is not there
            try:
                yield
            finally:
                kept_on.cache_clear()


class _Calls(TorchFunctionMode):
    """The calls of PyTorch's functions from Python."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self.accelerator = accelerator

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own, kwargs, name = self.accelerator, kwargs or {}, getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if name in COPIES and first is not None and own.holds(first):
            own.reads[f"{name}: {_lines()}"] += 1
        found = self._called(func, types, args, kwargs)
        if name == "cpu" and own.holds(found):
            return own.fetch(found)
        return self._placed(name, args, kwargs, found) if isinstance(found, Tensor) else found

    def _called(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call, by a subclass of tensors where there is one: what that calls is watched too."""
        for kind in types:
            if kind.__torch_function__ not in (Tensor.__torch_function__, torch._C._disabled_torch_function_impl):
                with self:
                    return kind.__torch_function__(func, types, args, kwargs)
        own, given = self.accelerator, _tensors((args, kwargs))
        own.makes = kwargs.get("device") is not None or any(own.holds(t) for t in given)
        try:
            return func(*args, **kwargs)
        finally:
            own.makes = False

    def _placed(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], found: Tensor) -> Tensor:
        """What a call has made, on the accelerator if the call says so."""
        own, first = self.accelerator, args[0] if args else None
        if name in ("to", "type_as", "new_tensor"):
            like = [*args[1:], *kwargs.values()] if name != "new_tensor" else [first]
            goes = any(own.holds(a) if isinstance(a, Tensor) else isinstance(a, torch.device) for a in like)
        else:
            goes = kwargs.get("device") is not None
        if not goes or own.holds(found):
            return found
        if name in UPLOADS and not isinstance(first if name != "new_tensor" else args[1], Tensor):
            own.uploads[f"{name}: {_lines()}"] += 1
        return own.put(found) if name in ("to", "type_as", "as_tensor", "from_numpy") else self._marked(found)

    def _marked(self, tensor: Tensor) -> Tensor:
        self.accelerator._mark(tensor)
        return tensor


class _Operations(TorchDispatchMode):
    """The operations that PyTorch runs."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self.accelerator = accelerator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own, name, kwargs = self.accelerator, func.overloadpacket.__name__, kwargs or {}
        given = list(_tensors((args, kwargs)))
        there = [own.holds(t) for t in given]
        if any(there):
            if _waits(name, args, kwargs):
                own.reads[f"{name}: {_lines()}"] += 1
            if name not in MIXING and any(t.ndim and not on for t, on in zip(given, there, strict=True)):
                shapes = [(tuple(t.shape), on) for t, on in zip(given, there, strict=True)]
                raise RuntimeError(f"Expected all tensors to be on the same device; got {shapes} in {name}.")
        found = func(*args, **kwargs)
        if any(there[:1] if name == "copy_" else there) or (own.makes and not given):
            for tensor in _tensors(found):
                own._mark(tensor)
        return found


def _waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation waits for values: to read them, or to know the shape of what it makes."""
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    return name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None)
