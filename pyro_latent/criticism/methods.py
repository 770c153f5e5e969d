"""What comparisons and races ask of the methods that they are given, and the clock that times them."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from pyro.infer import MCMC, SVI

from ..ascent import CAVI
from ..errors import ArgumentError, ArgumentTypeError
from ..particles import PyroProgram


def check_methods(methods: object, example: str) -> None:
    """Methods are given by name, and there is one.

    Raises:
        TypeError: if they are no mapping; with the example to write.
        ValueError: if it is empty.
    """
    if not isinstance(methods, Mapping):
        raise ArgumentTypeError(f"Expected methods by name, in a dict; got {type(methods).__name__}. Write {example}.")
    if not methods:
        raise ArgumentError(f"Expected at least one method; got none. Write {example}.")


#: What is compared: a guide, fitted or not, what fits one, or an MCMC.
Method = PyroProgram | CAVI | SVI | MCMC


class Stopwatch:
    """Seconds since it was made, with the work that waits on any CUDA device done."""

    def __init__(self) -> None:
        self._start = self._now()

    def seconds(self) -> float:
        return self._now() - self._start

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()
