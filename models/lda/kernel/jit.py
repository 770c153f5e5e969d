"""Numba, where it is installed, when it is used, and how this package compiles with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_latent.errors import ArgumentError

njit: Any
try:
    from numba import njit
except ImportError:
    njit = None

__all__ = ["compile_function", "has_compiled_kernel", "njit", "use_compiled"]


def has_compiled_kernel() -> bool:
    """Whether Numba is installed."""
    return njit is not None


def use_compiled(like: Tensor, compiled: bool | None = None) -> bool:
    """Whether the compiled kernel is to be used for work of this dtype and on this device.

    Args:
        like: any tensor of the work.
        compiled: what the user asked for; None: whatever is faster.

    Raises:
        ArgumentError: if it is asked for and cannot be.
    """
    able = njit is not None and like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64)
    if compiled and not able:
        raise ArgumentError(
            f"Expected Numba and data on the CPU for compiled=True; got {'no Numba' if njit is None else like.device}. "
            "Install the extra `fast`, or leave compiled out."
        )
    return able if compiled is None else compiled


def compile_function(function: Callable[..., Any], *, fastmath: bool | set[str] = True) -> Callable[..., Any]:
    """The function compiled by Numba, where it is installed: without Python's lock; kept on disk where that can be."""
    if njit is None:
        return function
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    try:
        compiled: Callable[..., Any] = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that can be written to
        compiled = njit(**options)(function)
    return compiled
