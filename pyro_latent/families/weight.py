"""The laws of a weight, which differ by their tilt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..distributions.weights import Weight as Law
from .base import Family, Mean, Moment, Natural, Params


class Weight(Family):
    """t(x) = x, relative to the law without a tilt, and A as the law has it. Params: tilt.

    Args:
        law: one of the laws; it has the constants that are the prior's.
    """

    name = "weight"
    statistics = {"x": 0}
    moments = {((0, "x"),): Moment("x", "->")}
    hint = "a weight is conjugate in the density that it was made for."
    param_names = ("tilt",)

    def __init__(self, law: Law) -> None:
        self.law = law

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        return Mean(x=values[0])

    def log_normalizer(self, natural: Natural) -> Tensor:
        return self._at(natural).log_normalizer

    def mean(self, natural: Natural) -> Mean:
        return Mean(x=self._at(natural).mean)

    def to_params(self, natural: Natural) -> Params:
        return {"tilt": self.law.tilt_of(natural.x)}

    def from_params(self, params: Params) -> Natural:
        return Natural(x=self.law.natural_of(params["tilt"]))

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        return {"tilt": torch.ones(batch)}

    def in_domain(self, natural: Natural) -> Tensor:
        return self._at(natural).mean.isfinite() & natural.x.isfinite()

    def distribution(self, params: Params) -> Any:
        return self.law.tilted(params["tilt"])

    def _at(self, natural: Natural) -> Law:
        law: Law = self.distribution(self.to_params(natural))
        return law


__all__ = ["Weight"]
