"""The Normal-Gamma distribution of a mean vector and the one precision of all its elements."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import distributions
from .base import Mean, Moment, Natural, Params
from .matrices import expand_batch
from .mean_precision import MeanPrecisionFamily
from .newton import inverse_log_minus_digamma
from .quantiles import gamma_quantile, student_quantile


class IsotropicNormalGamma(MeanPrecisionFamily):
    """A mean vector μ (component 0) and the precision τ (component 1) of each of its D elements.

    τ ~ Gamma(concentration, rate), μ | τ ~ Normal(loc, I / (precision_scaling τ)); params in the order loc
    ``(..., D)``, precision_scaling, concentration, rate. t = (τμᵀμ, τμ, τ, log τ), and with λ = precision_scaling
    η = (−λ / 2, λ loc, −rate − λ locᵀloc / 2, concentration − 1 + D/2). Bernardo and Smith (1994), §5.2.
    """

    name = "Isotropic Normal-Gamma"
    is_relative = True
    event_dims = (1, 0)
    statistics = {"quadratic": 0, "precision_mean": 1, "precision": 0, "log_precision": 0}
    moments = {
        ((1, "x"),): Moment("precision", "->"),
        ((0, "x"), (1, "x")): Moment("precision_mean", "i,->i"),
        ((0, "x"), (0, "x"), (1, "x")): Moment("quadratic", "i,i,->"),
        ((1, "log"),): Moment("log_precision", "->"),
    }
    hint = (
        "give the mean a prior whose precision is proportional to the latent precision, the same for all elements, or "
        "leave the sites in separate blocks."
    )
    param_names = ("loc", "precision_scaling", "concentration", "rate")

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        mean, precision = values
        weighted = precision.unsqueeze(-1) * mean
        quadratic = (weighted * mean).sum(-1)
        return Mean(quadratic=quadratic, precision_mean=weighted, precision=precision, log_precision=precision.log())

    def log_normalizer(self, natural: Natural) -> Tensor:
        loc, scaling, concentration, rate = self.to_params(natural).values()
        log_gamma = torch.lgamma(concentration) - concentration * rate.log()
        return log_gamma - 0.5 * loc.shape[-1] * (scaling.log() - math.log(2 * math.pi))

    def mean(self, natural: Natural) -> Mean:
        loc, scaling, concentration, rate = self.to_params(natural).values()
        precision = concentration / rate
        return Mean(
            quadratic=loc.shape[-1] / scaling + precision * loc.square().sum(-1),
            precision_mean=precision.unsqueeze(-1) * loc,
            precision=precision,
            log_precision=torch.digamma(concentration) - rate.log(),
        )

    def from_mean(self, mean: Mean) -> Natural:
        loc = mean.precision_mean / mean.precision.unsqueeze(-1)
        scaling = loc.shape[-1] / (mean.quadratic - (loc * mean.precision_mean).sum(-1))
        concentration = inverse_log_minus_digamma(mean.precision.log() - mean.log_precision)
        params = (loc, scaling, concentration, concentration / mean.precision)
        return self.from_params(dict(zip(self.param_names, params, strict=True)))

    def to_params(self, natural: Natural) -> Params:
        scaling = -2 * natural.quadratic
        loc = natural.precision_mean / scaling.unsqueeze(-1)
        concentration = natural.log_precision + 1 - loc.shape[-1] / 2
        rate = -natural.precision - 0.5 * (loc * natural.precision_mean).sum(-1)
        return dict(zip(self.param_names, (loc, scaling, concentration, rate), strict=True))

    def from_params(self, params: Params) -> Natural:
        loc, scaling, concentration, rate = (params[name] for name in self.param_names)
        fields = {
            "quadratic": -0.5 * scaling,
            "precision_mean": scaling.unsqueeze(-1) * loc,
            "precision": -rate - 0.5 * scaling * loc.square().sum(-1),
            "log_precision": concentration - 1 + loc.shape[-1] / 2,
        }
        return Natural(**expand_batch(fields, self.statistics))

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        params = (torch.zeros(batch + events[0]), torch.ones(batch), torch.full(batch, 2.0), torch.ones(batch))
        return dict(zip(self.param_names, params, strict=True))

    def in_domain(self, natural: Natural) -> Tensor:
        loc, scaling, concentration, rate = self.to_params(natural).values()
        finite = loc.isfinite().all(-1) & scaling.isfinite() & concentration.isfinite() & rate.isfinite()
        return finite & (scaling > 0) & (concentration > 0) & (rate > 0)

    def distribution(self, params: Params) -> Any:
        return distributions.IsotropicNormalGamma(*(params[name] for name in self.param_names))

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        mean, precision = self.marginals(params)
        scale = self.location_scale(params)
        return (
            student_quantile(mean.df.unsqueeze(-1), mean.loc, scale, probability),
            gamma_quantile(precision.concentration, precision.rate, probability),
        )


__all__ = ["IsotropicNormalGamma"]
