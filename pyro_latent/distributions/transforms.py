"""What torch's and Pyro's transforms remember of a draw, and how to make them forget it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def _parts(flow: object) -> Iterator[Any]:
    """A transform, or a module that has some, and all that it is made of."""
    yield flow
    inner = [*getattr(flow, "parts", ()), *getattr(flow, "transforms", ())]
    for part in [*inner, *(flow.children() if isinstance(flow, torch.nn.Module) else ())]:
        yield from _parts(part)


def forget_last_draw(flow: object) -> None:
    """Drop what transforms remember of their last draw: it belongs to a graph, which cannot be copied."""
    for part in _parts(flow):
        if "_cached_x_y" in vars(part):
            part._cached_x_y = None, None
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(part)[name] = None
