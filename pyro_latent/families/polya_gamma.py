"""The Pólya-gamma distributions of one count, which differ by their tilt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..distributions.polya_gamma import PolyaGamma as Distribution
from .base import Params
from .weight import Weight


class PolyaGamma(Weight):
    r"""t(x) = x, η = −c² / 2, A(η) = −b log cosh(c / 2), relative to PG(b, 0). Params: tilt, c ≥ 0.

    The optimum of x, where x weighs the square of logits ψ, is c² = E ψ²: the bound is then that of Jaakkola and Jordan
    (2000). Polson, Scott and Windle (2013), §2.

    Args:
        count: b, which is the prior's; of a shape that broadcasts to the batch shape.
    """

    name = "Polya-Gamma"
    hint = "a Pólya-gamma site is conjugate as a weight of squared logits."

    def __init__(self, count: Tensor) -> None:
        super().__init__(Distribution(count))
        self.count = count

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        return {"tilt": torch.zeros(batch)}

    def distribution(self, params: Params) -> Any:
        return Distribution(self.count.to(params["tilt"]), params["tilt"], validate_args=False)


__all__ = ["PolyaGamma"]
