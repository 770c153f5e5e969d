"""The Normal-Wishart distribution of several mean vectors that share a precision matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import distributions
from .base import Mean, Moment, Natural, Params, multivariate_digamma
from .matrices import expand_batch, inverse, is_positive_definite, log_determinant, matvec, outer, symmetrise
from .newton import inverse_log_minus_digamma
from .normal_wishart import NormalWishart


class TiedNormalWishart(NormalWishart):
    """K mean vectors μ_k (component 0, in a plate of the model) and their precision Λ (component 1, outside of it).

    Λ ~ Wishart(df, V), μ_k | Λ ~ Normal(loc_k, (precision_scaling_k Λ)⁻¹); params in the order loc ``(..., K, D)``,
    precision_scaling ``(..., K)``, df, covariance_matrix (V, ``(..., D, D)``). t = (μ_kᵀΛμ_k, Λμ_k, Λ, log|Λ|), and
    with λ = precision_scaling, η = (−λ_k / 2, λ_k loc_k, −(V⁻¹ + Σ_k λ_k loc_k loc_kᵀ) / 2, (df − D − 1 + K) / 2).
    With K = 1 it is :class:`.NormalWishart`, Bishop (2006), equation (2.157).
    """

    name = "Tied Normal-Wishart"
    event_dims = (2, 2)
    plate_dims = (1, 0)
    statistics = {"quadratic": 1, "precision_mean": 2, "precision": 2, "log_det": 0}
    moments = {
        ((1, "x"),): Moment("precision", "ij->ij"),
        ((0, "x"), (1, "x")): Moment("precision_mean", "kj,ij->ki"),
        ((0, "x"), (0, "x"), (1, "x")): Moment("quadratic", "ki,kj,ij->k"),
        ((1, "log_det"),): Moment("log_det", "->"),
    }
    symmetric: tuple[str, ...] = ("precision",)
    hint = (
        "give the means a prior whose precision is proportional to the latent precision, or leave the sites in "
        "separate blocks."
    )

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        mean, precision = values
        weighted = mean @ precision
        quadratic = (weighted * mean).sum(-1)
        return Mean(
            quadratic=quadratic, precision_mean=weighted, precision=precision, log_det=log_determinant(precision)
        )

    def log_normalizer(self, natural: Natural) -> Tensor:
        _, scaling, rate, half_df = self._split(natural)
        dim = rate.shape[-1]
        log_wishart = torch.mvlgamma(half_df, dim) - half_df * log_determinant(rate)
        return log_wishart - 0.5 * dim * (scaling.log() - math.log(2 * math.pi)).sum(-1)

    def mean(self, natural: Natural) -> Mean:
        loc, scaling, rate, half_df = self._split(natural)
        dim = rate.shape[-1]
        precision = half_df[..., None, None] * inverse(rate)
        weighted = loc @ precision
        return Mean(
            quadratic=dim / scaling + (weighted * loc).sum(-1),
            precision_mean=weighted,
            precision=precision,
            log_det=multivariate_digamma(half_df, dim) - log_determinant(rate),
        )

    def from_mean(self, mean: Mean) -> Natural:
        dim = mean.precision.shape[-1]
        loc = matvec(inverse(mean.precision).unsqueeze(-3), mean.precision_mean)
        scaling = dim / (mean.quadratic - (loc * mean.precision_mean).sum(-1))
        df = 2 * inverse_log_minus_digamma(log_determinant(mean.precision) - mean.log_det, dim)
        params = (loc, scaling, df, mean.precision / df[..., None, None])
        return self.from_params(dict(zip(self.param_names, params, strict=True)))

    def from_params(self, params: Params) -> Natural:
        loc, scaling, df, scale = (params[name] for name in self.param_names)
        weighted = scaling.unsqueeze(-1) * loc
        count, dim = loc.shape[-2:]
        fields = {
            "quadratic": -0.5 * scaling,
            "precision_mean": weighted,
            "precision": -0.5 * (inverse(scale) + outer(weighted, loc).sum(-3)),
            "log_det": (df - dim - 1 + count) / 2,
        }
        return Natural(**expand_batch(fields, self.statistics))

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        mean, precision = events
        scale = torch.eye(precision[-1]).expand(*batch, -1, -1)
        df = torch.full(batch, precision[-1] + 2.0)
        params = (torch.zeros(batch + mean), torch.ones(batch + mean[:1]), df, scale)
        return dict(zip(self.param_names, params, strict=True))

    def in_domain(self, natural: Natural) -> Tensor:
        loc, scaling, rate, half_df = self._split(natural)
        finite = loc.isfinite().all(-1).all(-1) & scaling.isfinite().all(-1) & half_df.isfinite()
        is_proper = half_df > (rate.shape[-1] - 1) / 2
        return finite & (scaling > 0).all(-1) & is_proper & is_positive_definite(rate)

    def distribution(self, params: Params) -> Any:
        return distributions.TiedNormalWishart(*(params[name] for name in self.param_names))

    def conditionals(self, params: Params) -> tuple[tuple[int, Callable[..., Any]], ...]:
        joint = self.distribution(params)
        plain = len(joint.batch_shape) + 2  # dimensions of a precision that has none for the plate of the means

        def given(precision: Tensor) -> Any:
            return joint.mean_given(precision.unsqueeze(-3) if precision.ndim == plain else precision)

        return ((1, joint.precision_marginal), (0, given))

    @staticmethod
    def _split(natural: Natural) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """loc, precision_scaling, V⁻¹ / 2 and df / 2."""
        scaling = -2 * natural.quadratic
        loc = natural.precision_mean / scaling.unsqueeze(-1)
        rate = symmetrise(-natural.precision) - 0.5 * (loc.mT @ natural.precision_mean)
        count, dim = loc.shape[-2:]
        return loc, scaling, symmetrise(rate), natural.log_det + (dim + 1 - count) / 2


__all__ = ["TiedNormalWishart"]
