"""The Gamma distribution of positive numbers."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .base import Family, Mean, Moment, Natural, Params
from .newton import inverse_log_minus_digamma
from .quantiles import gamma_quantile


class Gamma(Family):
    """t(x) = (log x, x), η = (concentration − 1, −rate). Params: concentration, rate. Bishop (2006), appendix B."""

    name = "Gamma"
    statistics = {"log_x": 0, "x": 0}
    moments = {((0, "log"),): Moment("log_x", "->"), ((0, "x"),): Moment("x", "->")}
    hint = "a Gamma site is conjugate as a precision or a rate, to the first power."
    reciprocal_hint = "a Gamma site is conjugate as the precision of a normal: write scale=tau.rsqrt(), not scale=tau."
    param_names = ("concentration", "rate")

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        (x,) = values
        return Mean(log_x=x.log(), x=x)

    def log_normalizer(self, natural: Natural) -> Tensor:
        concentration = natural.log_x + 1
        return torch.lgamma(concentration) - concentration * (-natural.x).log()

    def mean(self, natural: Natural) -> Mean:
        concentration, rate = natural.log_x + 1, -natural.x
        return Mean(log_x=torch.digamma(concentration) - rate.log(), x=concentration / rate)

    def from_mean(self, mean: Mean) -> Natural:
        concentration = inverse_log_minus_digamma(mean.x.log() - mean.log_x)
        return Natural(log_x=concentration - 1, x=-concentration / mean.x)

    def to_params(self, natural: Natural) -> Params:
        return {"concentration": natural.log_x + 1, "rate": -natural.x}

    def from_params(self, params: Params) -> Natural:
        concentration, rate = torch.broadcast_tensors(params["concentration"], params["rate"])
        return Natural(log_x=concentration - 1, x=-rate)

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        return {"concentration": torch.full(batch, 2.0), "rate": torch.ones(batch)}

    def in_domain(self, natural: Natural) -> Tensor:
        return (natural.log_x > -1) & (natural.x < 0) & natural.log_x.isfinite() & natural.x.isfinite()

    def distribution(self, params: Params) -> Any:
        return dist.Gamma(params["concentration"], params["rate"])

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        return (gamma_quantile(params["concentration"], params["rate"], probability),)
