"""The inverse Gamma distribution, of variances: that of the reciprocal of a Gamma."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .base import Family, Mean, Moment, Natural, Params
from .newton import inverse_log_minus_digamma
from .quantiles import gamma_quantile


class InverseGamma(Family):
    """t(x) = (log x, 1 / x), η = (−concentration − 1, −rate). Params: concentration, rate. Murphy (2012), §2.4.5."""

    name = "Inverse Gamma"
    statistics = {"log_x": 0, "reciprocal": 0}
    moments = {((0, "log"),): Moment("log_x", "->"), ((0, "reciprocal"),): Moment("reciprocal", "->")}
    hint = "an inverse Gamma site is conjugate as the variance of a normal: write scale=v.sqrt()."
    param_names = ("concentration", "rate")

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        (x,) = values
        return Mean(log_x=x.log(), reciprocal=1 / x)

    def log_normalizer(self, natural: Natural) -> Tensor:
        concentration = -natural.log_x - 1
        return torch.lgamma(concentration) - concentration * (-natural.reciprocal).log()

    def mean(self, natural: Natural) -> Mean:
        concentration, rate = -natural.log_x - 1, -natural.reciprocal
        return Mean(log_x=rate.log() - torch.digamma(concentration), reciprocal=concentration / rate)

    def from_mean(self, mean: Mean) -> Natural:
        concentration = inverse_log_minus_digamma(mean.reciprocal.log() + mean.log_x)
        return Natural(log_x=-concentration - 1, reciprocal=-concentration / mean.reciprocal)

    def to_params(self, natural: Natural) -> Params:
        return {"concentration": -natural.log_x - 1, "rate": -natural.reciprocal}

    def from_params(self, params: Params) -> Natural:
        concentration, rate = torch.broadcast_tensors(params["concentration"], params["rate"])
        return Natural(log_x=-concentration - 1, reciprocal=-rate)

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        return {"concentration": torch.full(batch, 2.0), "rate": torch.ones(batch)}

    def in_domain(self, natural: Natural) -> Tensor:
        finite = natural.log_x.isfinite() & natural.reciprocal.isfinite()
        return (natural.log_x < -1) & (natural.reciprocal < 0) & finite

    def distribution(self, params: Params) -> Any:
        return dist.InverseGamma(params["concentration"], params["rate"])

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        return (1 / gamma_quantile(params["concentration"], params["rate"], 1 - probability),)
