"""The Pólya-gamma distributions of one count, which differ by their tilt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..distributions.polya_gamma import PolyaGamma as Distribution
from ..distributions.polya_gamma import log_cosh, mean_of_one
from .base import Family, Mean, Moment, Natural, Params


class PolyaGamma(Family):
    r"""t(x) = x, η = −c² / 2, A(η) = −b log cosh(c / 2), relative to PG(b, 0). Params: tilt, c ≥ 0.

    The optimum of x, where x weighs the square of logits ψ, is c² = E ψ²: the bound is then that of Jaakkola and Jordan
    (2000). Polson, Scott and Windle (2013), §2.

    Args:
        count: b, which is the prior's; of a shape that broadcasts to the batch shape.
    """

    name = "Polya-Gamma"
    statistics = {"x": 0}
    moments = {((0, "x"),): Moment("x", "->")}
    hint = "a Pólya-gamma site is conjugate as a weight of squared logits."
    param_names = ("tilt",)

    def __init__(self, count: Tensor) -> None:
        self.count = count

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        return Mean(x=values[0])

    def log_normalizer(self, natural: Natural) -> Tensor:
        return -self._count(natural.x) * log_cosh(_tilt(natural) / 2)

    def mean(self, natural: Natural) -> Mean:
        return Mean(x=self._count(natural.x) * mean_of_one(_tilt(natural)))

    def to_params(self, natural: Natural) -> Params:
        return {"tilt": _tilt(natural)}

    def from_params(self, params: Params) -> Natural:
        return Natural(x=-(params["tilt"] ** 2) / 2)

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        return {"tilt": torch.zeros(batch)}

    def in_domain(self, natural: Natural) -> Tensor:
        return (natural.x <= 0) & natural.x.isfinite()

    def distribution(self, params: Params) -> Any:
        return Distribution(self._count(params["tilt"]), params["tilt"])

    def _count(self, like: Tensor) -> Tensor:
        return self.count.to(like)


def _tilt(natural: Natural) -> Tensor:
    return (-2 * natural.x).sqrt()


__all__ = ["PolyaGamma"]
