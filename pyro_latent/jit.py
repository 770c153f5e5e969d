"""How this package compiles a loop over numbers, by Numba where that is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

njit: Any
try:
    from numba import njit
except ImportError:
    njit = None


def compile_function(function: Callable[..., Any], *, fastmath: bool | set[str] = True) -> Callable[..., Any]:
    """The function compiled by Numba, where it is installed: without Python's lock; kept on disk where that can be.

    It is compiled when it is first called and no file has it.
    """
    if njit is None:
        return function
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    try:
        compiled: Callable[..., Any] = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that can be written to
        compiled = njit(**options)(function)
    return compiled


__all__ = ["compile_function", "njit"]
