"""The Dirichlet distribution of vectors of probabilities."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .base import Family, Mean, Moment, Natural, Params
from .newton import inverse_dirichlet_mean
from .quantiles import beta_quantile


class Dirichlet(Family):
    """t(x) = log x, η = concentration − 1. Params: concentration ``(..., K)``. Bishop (2006), §2.2.1."""

    name = "Dirichlet"
    event_dims = (1,)
    statistics = {"log_x": 1}
    moments = {((0, "log"),): Moment("log_x", "i->i")}
    counts = ("concentration",)
    hint = "a Dirichlet site is conjugate as the probabilities of a discrete distribution, not inside a sum."
    param_names = ("concentration",)

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        (x,) = values
        return Mean(log_x=x.log())

    def log_normalizer(self, natural: Natural) -> Tensor:
        concentration = natural.log_x + 1
        return torch.lgamma(concentration).sum(-1) - torch.lgamma(concentration.sum(-1))

    def mean(self, natural: Natural) -> Mean:
        concentration = natural.log_x + 1
        return Mean(log_x=torch.digamma(concentration) - torch.digamma(concentration.sum(-1, keepdim=True)))

    def from_mean(self, mean: Mean) -> Natural:
        return Natural(log_x=inverse_dirichlet_mean(mean.log_x) - 1)

    def to_params(self, natural: Natural) -> Params:
        return {"concentration": natural.log_x + 1}

    def from_params(self, params: Params) -> Natural:
        return Natural(log_x=params["concentration"] - 1)

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        (event,) = events
        return {"concentration": torch.full(batch + event, 2.0)}

    def in_domain(self, natural: Natural) -> Tensor:
        return ((natural.log_x > -1) & natural.log_x.isfinite()).all(-1)

    def distribution(self, params: Params) -> Any:
        return dist.Dirichlet(params["concentration"])

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        concentration = params["concentration"]
        return (beta_quantile(concentration, concentration.sum(-1, keepdim=True) - concentration, probability),)

    def covariance(self, params: Params) -> Tensor | None:
        concentration = params["concentration"]
        total = concentration.sum(-1, keepdim=True)
        share = concentration / total
        products = torch.diag_embed(share) - share.unsqueeze(-1) * share.unsqueeze(-2)
        return products / (total + 1).unsqueeze(-1)
