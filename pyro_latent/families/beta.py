"""The Beta distribution of probabilities."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .base import Family, Mean, Moment, Natural, Params
from .newton import inverse_dirichlet_mean
from .quantiles import beta_quantile


class Beta(Family):
    """t(x) = (log x, log(1 − x)), η = (concentration1 − 1, concentration0 − 1). Bishop (2006), §2.1.1.

    Params: concentration1, concentration0.
    """

    name = "Beta"
    statistics = {"log_x": 0, "log1m_x": 0}
    moments = {((0, "log"),): Moment("log_x", "->"), ((0, "log1m"),): Moment("log1m_x", "->")}
    counts = ("concentration1", "concentration0")
    hint = "a Beta site is conjugate as the probabilities of a discrete distribution, not inside a sum."
    param_names = ("concentration1", "concentration0")

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        (x,) = values
        return Mean(log_x=x.log(), log1m_x=torch.log1p(-x))

    def log_normalizer(self, natural: Natural) -> Tensor:
        one, zero = natural.log_x + 1, natural.log1m_x + 1
        return torch.lgamma(one) + torch.lgamma(zero) - torch.lgamma(one + zero)

    def mean(self, natural: Natural) -> Mean:
        one, zero = natural.log_x + 1, natural.log1m_x + 1
        total = torch.digamma(one + zero)
        return Mean(log_x=torch.digamma(one) - total, log1m_x=torch.digamma(zero) - total)

    def from_mean(self, mean: Mean) -> Natural:
        one, zero = inverse_dirichlet_mean(torch.stack((mean.log_x, mean.log1m_x), -1)).unbind(-1)
        return Natural(log_x=one - 1, log1m_x=zero - 1)

    def to_params(self, natural: Natural) -> Params:
        return {"concentration1": natural.log_x + 1, "concentration0": natural.log1m_x + 1}

    def from_params(self, params: Params) -> Natural:
        one, zero = torch.broadcast_tensors(params["concentration1"], params["concentration0"])
        return Natural(log_x=one - 1, log1m_x=zero - 1)

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        return {name: torch.full(batch, 2.0) for name in self.param_names}

    def in_domain(self, natural: Natural) -> Tensor:
        inside = (natural.log_x > -1) & (natural.log1m_x > -1)
        return inside & natural.log_x.isfinite() & natural.log1m_x.isfinite()

    def distribution(self, params: Params) -> Any:
        return dist.Beta(params["concentration1"], params["concentration0"])

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        return (beta_quantile(params["concentration1"], params["concentration0"], probability),)
