"""The matrix normal distribution of the rows of a matrix, with the Wishart precision that they share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import distributions
from .base import Mean, Moment, Natural, Params, multivariate_digamma
from .matrices import expand_batch, inverse, is_positive_definite, log_determinant, symmetrise
from .newton import inverse_log_minus_digamma
from .tied_normal_wishart import TiedNormalWishart


class MatrixNormalWishart(TiedNormalWishart):
    """K rows w_k of a matrix W (component 0, in a plate of the model) and their precision Λ (component 1, outside it).

    Λ ~ Wishart(df, V), and given Λ the rows are normal about those of loc, with cov(w_k, w_l) = (R⁻¹)_kl Λ⁻¹; params
    in the order loc ``(..., K, D)``, row_precision (R, ``(..., K, K)``), df, covariance_matrix (V, ``(..., D, D)``).
    t = (W Λ Wᵀ, WΛ, Λ, log|Λ|), and η = (−R / 2, R loc, −(V⁻¹ + locᵀ R loc) / 2, (df − D − 1 + K) / 2). With a
    diagonal R it is :class:`.TiedNormalWishart`.

    Source: Minka (2000), Bayesian linear regression, for the regression of several outputs.
    """

    name = "Matrix Normal-Wishart"
    statistics = {"quadratic": 2, "precision_mean": 2, "precision": 2, "log_det": 0}
    moments = TiedNormalWishart.moments | {
        ((0, "x"), (0, "x"), (1, "x")): Moment("quadratic", "ki,lj,ij->kl"),
    }
    symmetric = ("quadratic", "precision")
    param_names = ("loc", "row_precision", "df", "covariance_matrix")

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        mean, precision = values
        weighted = mean @ precision
        quadratic = weighted @ mean.mT
        return Mean(
            quadratic=quadratic, precision_mean=weighted, precision=precision, log_det=log_determinant(precision)
        )

    def log_normalizer(self, natural: Natural) -> Tensor:
        _, rows, rate, half_df = self._split(natural)
        count, dim = natural.precision_mean.shape[-2:]
        log_wishart = torch.mvlgamma(half_df, dim) - half_df * log_determinant(rate)
        return log_wishart - 0.5 * dim * (log_determinant(rows) - count * math.log(2 * math.pi))

    def mean(self, natural: Natural) -> Mean:
        loc, rows, rate, half_df = self._split(natural)
        dim = rate.shape[-1]
        precision = half_df[..., None, None] * inverse(rate)
        weighted = loc @ precision
        return Mean(
            quadratic=dim * inverse(rows) + weighted @ loc.mT,
            precision_mean=weighted,
            precision=precision,
            log_det=multivariate_digamma(half_df, dim) - log_determinant(rate),
        )

    def from_mean(self, mean: Mean) -> Natural:
        dim = mean.precision.shape[-1]
        loc = mean.precision_mean @ inverse(mean.precision)
        rows = dim * inverse(mean.quadratic - loc @ mean.precision_mean.mT)
        df = 2 * inverse_log_minus_digamma(log_determinant(mean.precision) - mean.log_det, dim)
        params = (loc, rows, df, mean.precision / df[..., None, None])
        return self.from_params(dict(zip(self.param_names, params, strict=True)))

    def from_params(self, params: Params) -> Natural:
        loc, rows, df, scale = (params[name] for name in self.param_names)
        weighted = rows @ loc
        count, dim = loc.shape[-2:]
        fields = {
            "quadratic": -0.5 * rows,
            "precision_mean": weighted,
            "precision": -0.5 * (inverse(scale) + loc.mT @ weighted),
            "log_det": (df - dim - 1 + count) / 2,
        }
        return Natural(**expand_batch(fields, self.statistics))

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        found = super().example(batch, *events)
        return found | {"row_precision": found["row_precision"].diag_embed()}

    def in_domain(self, natural: Natural) -> Tensor:
        loc, rows, rate, half_df = self._split(natural)
        finite = loc.isfinite().all(-1).all(-1) & half_df.isfinite()
        is_proper = half_df > (rate.shape[-1] - 1) / 2
        return finite & is_positive_definite(rows) & is_proper & is_positive_definite(rate)

    def distribution(self, params: Params) -> Any:
        return distributions.MatrixNormalWishart(*(params[name] for name in self.param_names))

    @staticmethod
    def _split(natural: Natural) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """loc, row_precision, V⁻¹ / 2 and df / 2."""
        rows = symmetrise(-2 * natural.quadratic)
        loc = inverse(rows) @ natural.precision_mean
        rate = symmetrise(-natural.precision - 0.5 * (loc.mT @ natural.precision_mean))
        count, dim = loc.shape[-2:]
        return loc, rows, rate, natural.log_det + (dim + 1 - count) / 2


__all__ = ["MatrixNormalWishart"]
