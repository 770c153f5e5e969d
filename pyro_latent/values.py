"""What came for a tensor: whether it can be used as one, and what it is in words."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "all_finite",
    "as_tensor",
    "broadcast_shapes",
    "is_at_hand",
    "is_floating",
    "is_same",
    "kind_of",
    "leaving_random_state",
    "without_collecting",
]


@lru_cache(maxsize=4096)
def broadcast_shapes(*shapes: tuple[int, ...]) -> torch.Size:
    """The shape that these broadcast to; torch's own function works in Python, and imports a computer algebra system.

    Raises:
        RuntimeError: if they do not, as torch does.
    """
    try:
        return torch.Size(np.broadcast_shapes(*shapes))
    except ValueError as error:
        raise RuntimeError(str(error)) from None


def is_floating(value: Any) -> bool:
    """Whether a value is a tensor of float32 or float64 that lies in memory: not sparse, nested, or on ``meta``."""
    dense = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested and not value.is_meta
    return dense and value.dtype in (torch.float32, torch.float64)


def is_at_hand(tensor: Tensor) -> bool:
    """Whether a value of a tensor can be read at once; from an accelerator, Python would wait for it."""
    return tensor.device.type == "cpu"


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite.

    A finite sum says so at a fraction of the cost; a sum that is not may have overflowed, so each element is looked at.
    """
    total = tensor.sum() if tensor.ndim else tensor
    return bool(total * 0 == 0) or bool(tensor.isfinite().all())


def as_tensor(value: object, dtype: torch.dtype) -> Tensor | None:
    """Real numbers, also of lists and arrays, as a dense tensor of a floating dtype; None for anything else."""
    try:
        given = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    usable = given.layout is torch.strided and not (given.is_nested or given.is_meta or given.is_quantized)
    return torch.as_tensor(value, dtype=dtype) if usable and not given.is_complex() else None


def is_same(known: tuple[Tensor, int], tensor: Tensor) -> bool:
    """Whether a tensor holds what a known one held."""
    old, version = known
    same = old.data_ptr() == tensor.data_ptr() and old.shape == tensor.shape and old.stride() == tensor.stride()
    return same and old.dtype == tensor.dtype and old._version == version == tensor._version


def kind_of(value: object) -> str:
    """In words what a value is, of a tensor or an array its dtype and shape."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.is_nested or value.layout is not torch.strided:
        return f"a tensor that is not dense, of {value.dtype}"
    return f"{value.dtype} {list(value.shape)}" + (" on meta" if value.is_meta else "")


@contextmanager
def without_collecting() -> Iterator[None]:
    """Python does not look for garbage inside, where almost all that is made is kept, and each look at all of it, of a
    long loop, would take as long as the rest.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def leaving_random_state() -> Iterator[None]:
    """What fails inside draws no random number, as if it had not been run: torch's generators, on the CPU and on the
    current CUDA device, are put back to what they were.
    """
    before = torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    except Exception:
        torch.set_rng_state(before)
        if on_cuda is not None:
            torch.cuda.set_rng_state(on_cuda)
        raise
