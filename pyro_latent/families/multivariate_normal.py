"""The normal distribution of vectors."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .base import Family, Mean, Moment, Natural, Params
from .matrices import (
    expand_batch,
    inverse,
    is_positive_definite,
    is_well_conditioned,
    log_determinant,
    matvec,
    outer,
    solve,
    symmetrize,
)
from .quantiles import quantile


class MultivariateNormal(Family):
    """t(x) = (x, x xᵀ), η = (P loc, −P / 2), P the inverse of covariance_matrix. Bishop (2006), §2.3.

    Params: loc ``(..., D)``, covariance_matrix ``(..., D, D)``.
    """

    name = "Multivariate normal"
    event_dims = (1,)
    statistics = {"x": 1, "xx": 2}
    moments = {((0, "x"),): Moment("x", "i->i"), ((0, "x"), (0, "x")): Moment("xx", "i,j->ij")}
    location = ("loc", 0)
    read_classes = (dist.Normal,)
    hint = "a normal site is conjugate inside a location, where it enters linearly."
    param_names = ("loc", "covariance_matrix")

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        (x,) = values
        return Mean(x=x, xx=outer(x, x))

    def log_normalizer(self, natural: Natural) -> Tensor:
        precision = -2 * natural.xx
        square = (natural.x * solve(precision, natural.x)).sum(-1)
        return 0.5 * (square - log_determinant(precision) + natural.x.shape[-1] * math.log(2 * math.pi))

    def mean(self, natural: Natural) -> Mean:
        precision = -2 * natural.xx
        loc = solve(precision, natural.x)
        return Mean(x=loc, xx=outer(loc, loc) + inverse(precision))

    def from_mean(self, mean: Mean) -> Natural:
        return self.from_params({"loc": mean.x, "covariance_matrix": symmetrize(mean.xx) - outer(mean.x, mean.x)})

    def to_params(self, natural: Natural) -> Params:
        precision = -2 * natural.xx
        return {"loc": solve(precision, natural.x), "covariance_matrix": inverse(precision)}

    def from_params(self, params: Params) -> Natural:
        precision = inverse(params["covariance_matrix"])
        fields = {"x": matvec(precision, params["loc"]), "xx": -0.5 * precision}
        return Natural(**expand_batch(fields, self.statistics))

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        (event,) = events
        return {"loc": torch.zeros(batch + event), "covariance_matrix": torch.eye(event[-1]).expand(*batch, -1, -1)}

    def in_domain(self, natural: Natural) -> Tensor:
        precision = -2 * natural.xx
        return is_positive_definite(precision) & is_well_conditioned(precision) & natural.x.isfinite().all(-1)

    def distribution(self, params: Params) -> Any:
        return dist.MultivariateNormal(params["loc"], params["covariance_matrix"])

    def distribution_params(self, distribution: object) -> Params:
        if isinstance(distribution, dist.Normal):  # independent elements, of batch + event shape
            return {"loc": distribution.loc, "covariance_matrix": torch.diag_embed(distribution.scale**2)}
        return super().distribution_params(distribution)

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        scale = params["covariance_matrix"].diagonal(dim1=-2, dim2=-1).sqrt()
        return (quantile(dist.Normal(params["loc"], scale), probability),)
