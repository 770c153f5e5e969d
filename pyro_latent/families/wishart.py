"""The Wishart distribution of positive definite matrices."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .. import distributions
from .base import Family, Mean, Moment, Natural, Params, multivariate_digamma
from .matrices import expand_batch, inverse, is_positive_definite, log_determinant, symmetrize
from .newton import inverse_log_minus_digamma


class Wishart(Family):
    """t(X) = (log|X|, X), η = ((df − D − 1) / 2, −V⁻¹ / 2) with V = covariance_matrix. Bishop (2006), appendix B.

    Params: df ``(...)``, covariance_matrix ``(..., D, D)``; the mean is df V.
    """

    name = "Wishart"
    event_dims = (2,)
    statistics = {"log_det": 0, "x": 2}
    moments = {((0, "log_det"),): Moment("log_det", "->"), ((0, "x"),): Moment("x", "ij->ij")}
    read_classes = (dist.Wishart,)
    hint = "a Wishart site is conjugate as a precision: write MultivariateNormal(loc, precision_matrix=...)."
    param_names = ("df", "covariance_matrix")

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        (x,) = values
        return Mean(log_det=log_determinant(x), x=x)

    def log_normalizer(self, natural: Natural) -> Tensor:
        dim, half_df = self._sizes(natural)
        return torch.mvlgamma(half_df, dim) - half_df * log_determinant(-natural.x)

    def mean(self, natural: Natural) -> Mean:
        dim, half_df = self._sizes(natural)
        log_det = multivariate_digamma(half_df, dim) - log_determinant(-natural.x)
        return Mean(log_det=log_det, x=half_df[..., None, None] * inverse(-natural.x))

    def from_mean(self, mean: Mean) -> Natural:
        dim = mean.x.shape[-1]
        df = 2 * inverse_log_minus_digamma(log_determinant(mean.x) - mean.log_det, dim)
        return self.from_params({"df": df, "covariance_matrix": mean.x / df[..., None, None]})

    def to_params(self, natural: Natural) -> Params:
        _, half_df = self._sizes(natural)
        return {"df": 2 * half_df, "covariance_matrix": inverse(-2 * natural.x)}

    def from_params(self, params: Params) -> Natural:
        scale = symmetrize(params["covariance_matrix"])
        fields = {"log_det": (params["df"] - scale.shape[-1] - 1) / 2, "x": -0.5 * inverse(scale)}
        return Natural(**expand_batch(fields, self.statistics))

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        (event,) = events
        scale = torch.eye(event[-1]).expand(*batch, -1, -1)
        return {"df": torch.full(batch, event[-1] + 2.0), "covariance_matrix": scale}

    def in_domain(self, natural: Natural) -> Tensor:
        return (natural.log_det > -1) & natural.log_det.isfinite() & is_positive_definite(-natural.x)

    def distribution(self, params: Params) -> Any:
        return distributions.Wishart(params["df"], params["covariance_matrix"])

    @staticmethod
    def _sizes(natural: Natural) -> tuple[int, Tensor]:
        dim = natural.x.shape[-1]
        return dim, natural.log_det + (dim + 1) / 2
