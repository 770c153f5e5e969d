"""A function of scalars whose expectations are integrals."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Function(NamedTuple):
    """A function of the elements of a batch of scalars, of any ``shape``: ``evaluate`` takes values ``[L, *batch]`` and
    gives ``[L, *shape]``. ``element`` says which element of the batch, counted in order, each of its own is a function
    of; None: it has the batch's shape, element by element. ``is_smooth`` says that it is a product of powers,
    logarithms and exponentials, which has no kink.
    """

    shape: torch.Size
    evaluate: Callable[[Tensor], Tensor]
    element: Tensor | None = None
    is_smooth: bool = False

    def at(self, values: Tensor) -> Tensor:
        """The function at values ``[L, *batch]``; NaN where torch cannot compute it, as of a matrix without a Cholesky
        factor, or of an argument that has become 0.
        """
        try:
            return self.evaluate(values)
        except (torch.linalg.LinAlgError, ValueError):
            if len(values) == 1:
                return torch.full((1, *self.shape), torch.nan, dtype=torch.float64, device=values.device)
            return torch.cat([self.at(part) for part in values.split((len(values) + 1) // 2)])

    def read(self, tensor: Tensor) -> Tensor:
        """What a tensor ``[K, starts, *batch]`` has for each element of the function, ``[K, starts, *shape]``."""
        return tensor if self.element is None else tensor.reshape(*tensor.shape[:2], -1)[..., self.element]


__all__ = ["Function"]
