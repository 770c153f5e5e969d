"""Numba, where it is installed, when it is used, and how this package compiles with it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_latent import jit
from pyro_latent.errors import ArgumentError

Listener: Any
try:
    from numba.core.event import Listener, register
except ImportError:
    Listener = object
njit = jit.njit

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
            "Install numba, or leave compiled out."
        )
    return able if compiled is None else compiled


def compile_function(function: Callable[..., Any], *, fastmath: bool | set[str] = True) -> Callable[..., Any]:
    """The function compiled by Numba, where it is installed, as :func:`pyro_latent.jit.compile_function` does;
    :class:`Announcement` says when it is.
    """
    compiled = jit.compile_function(function, fastmath=fastmath)
    _announcement.functions.append(compiled)
    return compiled


class Announcement(Listener):
    """The first of some functions that Numba compiles in this process is announced, since it makes a call wait.

    Attributes:
        functions: of which one is waited for.
        made: whether that was said.
    """

    def __init__(self) -> None:
        self.functions: list[Callable[..., Any]] = []
        self.made = False

    def on_start(self, event: Any) -> None:
        """Numba starts to compile; what it reads from a file is no such event."""
        if not self.made and any(event.data["dispatcher"] is function for function in self.functions):
            self.made = True
            logging.getLogger("pyro_latent").warning(
                "Compiling the kernels of LDA with Numba: a first fit takes some ten seconds more. "
                "Later ones read them from Numba's cache on disk."
            )

    def on_end(self, event: Any) -> None:
        """Nothing is said."""


_announcement = Announcement()
if njit is not None:
    register("numba:compile", _announcement)
