"""The Normal-Gamma distribution of a normal's mean and precision."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import distributions
from .base import Mean, Moment, Natural, Params
from .mean_precision import MeanPrecisionFamily
from .newton import inverse_log_minus_digamma
from .quantiles import gamma_quantile, student_quantile


class NormalGamma(MeanPrecisionFamily):
    """A normal's mean μ (component 0) and precision τ (component 1). Bishop (2006), equation (2.154).

    τ ~ Gamma(concentration, rate), μ | τ ~ Normal(loc, 1 / sqrt(precision_scaling τ)); params in the order loc,
    precision_scaling, concentration, rate. t = (τμ², τμ, τ, log τ), and with λ = precision_scaling
    η = (−λ / 2, λ loc, −rate − λ loc² / 2, concentration − 1/2).
    """

    name = "Normal-Gamma"
    is_relative = True
    event_dims = (0, 0)
    statistics = {"precision_mean_squared": 0, "precision_mean": 0, "precision": 0, "log_precision": 0}
    moments = {
        ((1, "x"),): Moment("precision", "->"),
        ((0, "x"), (1, "x")): Moment("precision_mean", ",->"),
        ((0, "x"), (0, "x"), (1, "x")): Moment("precision_mean_squared", ",,->"),
        ((1, "log"),): Moment("log_precision", "->"),
    }
    hint = (
        "give the mean a prior whose precision is proportional to the latent precision, or leave the sites in separate "
        "blocks."
    )
    param_names = ("loc", "precision_scaling", "concentration", "rate")

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        mean, precision = values
        weighted = precision * mean
        return Mean(
            precision_mean_squared=weighted * mean,
            precision_mean=weighted,
            precision=precision,
            log_precision=precision.log(),
        )

    def log_normalizer(self, natural: Natural) -> Tensor:
        _, scaling, concentration, rate = self.to_params(natural).values()
        log_gamma = torch.lgamma(concentration) - concentration * rate.log()
        return log_gamma - 0.5 * (scaling.log() - math.log(2 * math.pi))

    def mean(self, natural: Natural) -> Mean:
        loc, scaling, concentration, rate = self.to_params(natural).values()
        precision = concentration / rate
        return Mean(
            precision_mean_squared=1 / scaling + precision * loc**2,
            precision_mean=precision * loc,
            precision=precision,
            log_precision=torch.digamma(concentration) - rate.log(),
        )

    def from_mean(self, mean: Mean) -> Natural:
        loc = mean.precision_mean / mean.precision
        concentration = inverse_log_minus_digamma(mean.precision.log() - mean.log_precision)
        params = (
            loc,
            1 / (mean.precision_mean_squared - loc * mean.precision_mean),
            concentration,
            concentration / mean.precision,
        )
        return self.from_params(dict(zip(self.param_names, params, strict=True)))

    def to_params(self, natural: Natural) -> Params:
        scaling = -2 * natural.precision_mean_squared
        loc = natural.precision_mean / scaling
        rate = -natural.precision - 0.5 * loc * natural.precision_mean
        params = (loc, scaling, natural.log_precision + 0.5, rate)
        return dict(zip(self.param_names, params, strict=True))

    def from_params(self, params: Params) -> Natural:
        loc, scaling, concentration, rate = torch.broadcast_tensors(*(params[name] for name in self.param_names))
        return Natural(
            precision_mean_squared=-0.5 * scaling,
            precision_mean=scaling * loc,
            precision=-rate - 0.5 * scaling * loc**2,
            log_precision=concentration - 0.5,
        )

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        params = (torch.zeros(batch), torch.ones(batch), torch.full(batch, 2.0), torch.ones(batch))
        return dict(zip(self.param_names, params, strict=True))

    def in_domain(self, natural: Natural) -> Tensor:
        loc, scaling, concentration, rate = self.to_params(natural).values()
        finite = loc.isfinite() & scaling.isfinite() & concentration.isfinite() & rate.isfinite()
        return finite & (scaling > 0) & (concentration > 0) & (rate > 0)

    def distribution(self, params: Params) -> Any:
        return distributions.NormalGamma(*(params[name] for name in self.param_names))

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        mean, precision = self.marginals(params)
        return (
            student_quantile(mean.df, mean.loc, mean.scale, probability),
            gamma_quantile(precision.concentration, precision.rate, probability),
        )
