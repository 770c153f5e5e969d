"""The Normal-Wishart distribution of a multivariate normal's mean and precision matrix."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import distributions
from .base import Mean, Moment, Natural, Params
from .matrices import expand_batch, inverse, log_determinant, matvec, outer, symmetrize
from .mean_precision import MeanPrecisionFamily
from .quantiles import quantile, student_quantile
from .wishart import Wishart

_WISHART = Wishart()


class NormalWishart(MeanPrecisionFamily):
    """A multivariate normal's mean μ (component 0) and precision Λ (component 1). Bishop (2006), equation (2.157).

    Λ ~ Wishart(df, V), μ | Λ ~ Normal(loc, (precision_scaling Λ)⁻¹); params in the order loc ``(..., D)``,
    precision_scaling, df, covariance_matrix (V, ``(..., D, D)``). t = (μᵀΛμ, Λμ, Λ, log|Λ|), and with
    λ = precision_scaling, η = (−λ / 2, λ loc, −(V⁻¹ + λ loc locᵀ) / 2, (df − D) / 2).

    Its subclasses, of several means in rows, say how locations and what scales their precisions enter; what Λ has from
    its Wishart distribution is the same in all.
    """

    name = "Normal-Wishart"
    event_dims = (1, 2)
    statistics = {"quadratic": 0, "precision_mean": 1, "precision": 2, "log_det": 0}
    moments = {
        ((1, "x"),): Moment("precision", "ij->ij"),
        ((0, "x"), (1, "x")): Moment("precision_mean", "j,ij->i"),
        ((0, "x"), (0, "x"), (1, "x")): Moment("quadratic", "i,j,ij->"),
        ((1, "log_det"),): Moment("log_det", "->"),
    }
    hint = (
        "give the mean a prior whose precision is proportional to the latent precision, or leave the sites in separate "
        "blocks."
    )
    param_names = ("loc", "precision_scaling", "df", "covariance_matrix")

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        mean, precision = values
        weighted = self._weighted(mean, precision)
        return self._mean(self._quadratic(mean, weighted), weighted, precision, log_determinant(precision))

    def log_normalizer(self, natural: Natural) -> Tensor:
        _, scaling, precision = self._split(natural)
        dim = natural.precision.shape[-1]
        return _WISHART.log_normalizer(precision) - 0.5 * dim * self._log_scaling(scaling)

    def mean(self, natural: Natural) -> Mean:
        loc, scaling, precision = self._split(natural)
        expected = _WISHART.mean(precision)
        weighted = self._weighted(loc, expected.x)
        quadratic = loc.shape[-1] * self._reciprocal(scaling) + self._quadratic(loc, weighted)
        return self._mean(quadratic, weighted, expected.x, expected.log_det)

    def from_mean(self, mean: Mean) -> Natural:
        wishart = _WISHART.to_params(_WISHART.from_mean(Mean(x=mean.precision, log_det=mean.log_det)))
        loc = self._weighted(mean.precision_mean, inverse(mean.precision))
        dim = loc.shape[-1]
        scaling = self._reciprocal((mean.quadratic - self._quadratic(loc, mean.precision_mean)) / dim)
        return self.from_params(dict(zip(self.param_names, (loc, scaling, *wishart.values()), strict=True)))

    def to_params(self, natural: Natural) -> Params:
        loc, scaling, precision = self._split(natural)
        return dict(zip(self.param_names, (loc, scaling, *_WISHART.to_params(precision).values()), strict=True))

    def from_params(self, params: Params) -> Natural:
        loc, scaling, df, scale = (params[name] for name in self.param_names)
        weighted = self._scaled(loc, scaling)
        fields = {
            "quadratic": -0.5 * scaling,
            "precision_mean": weighted,
            "precision": -0.5 * (inverse(scale) + self._square(loc, weighted)),
            "log_det": (df - loc.shape[-1] - 1 + self._count(loc)) / 2,
        }
        return Natural(**expand_batch(fields, self.statistics))

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        mean, precision = events
        scale = torch.eye(precision[-1]).expand(*batch, -1, -1)
        df = torch.full(batch, precision[-1] + 2.0)
        params = (torch.zeros(batch + mean), torch.ones(batch + mean[:-1]), df, scale)
        return dict(zip(self.param_names, params, strict=True))

    def in_domain(self, natural: Natural) -> Tensor:
        loc, scaling, precision = self._split(natural)
        finite = loc.isfinite().flatten(precision.log_det.ndim).all(-1)
        return finite & self._is_positive(scaling) & _WISHART.in_domain(precision)

    def distribution(self, params: Params) -> Any:
        return distributions.NormalWishart(*(params[name] for name in self.param_names))

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        mean, precision = self.marginals(params)
        scale = self.location_scale(params)
        return (
            student_quantile(mean.df.unsqueeze(-1), mean.loc, scale, probability),
            quantile(precision, probability),
        )

    def _split(self, natural: Natural) -> tuple[Tensor, Tensor, Natural]:
        """The location, what scales the precision, and the natural parameters of the precision's Wishart."""
        scaling = -2 * natural.quadratic
        loc = self._scaled(natural.precision_mean, self._reciprocal(scaling))
        rate = symmetrize(-natural.precision - 0.5 * self._square(loc, natural.precision_mean))
        return loc, scaling, Natural(log_det=natural.log_det - self._count(loc) / 2, x=-rate)

    @staticmethod
    def _mean(quadratic: Tensor, weighted: Tensor, precision: Tensor, log_det: Tensor) -> Mean:
        return Mean(quadratic=quadratic, precision_mean=weighted, precision=precision, log_det=log_det)

    # How a location enters, and what scales its precision.

    def _count(self, loc: Tensor) -> int:
        """How many means there are."""
        return 1

    def _weighted(self, loc: Tensor, precision: Tensor) -> Tensor:
        """Λ loc."""
        return matvec(precision, loc)

    def _quadratic(self, loc: Tensor, weighted: Tensor) -> Tensor:
        """locᵀ Λ loc, of loc and Λ loc."""
        return (weighted * loc).sum(-1)

    def _square(self, loc: Tensor, weighted: Tensor) -> Tensor:
        """λ loc locᵀ, of loc and λ loc."""
        return outer(loc, weighted)

    def _scaled(self, loc: Tensor, scaling: Tensor) -> Tensor:
        """λ loc."""
        return scaling.unsqueeze(-1) * loc

    def _reciprocal(self, scaling: Tensor) -> Tensor:
        """λ⁻¹."""
        return scaling.reciprocal()

    def _log_scaling(self, scaling: Tensor) -> Tensor:
        """log (λ / 2π)."""
        return scaling.log() - math.log(2 * math.pi)

    def _is_positive(self, scaling: Tensor) -> Tensor:
        return scaling.isfinite() & (scaling > 0)
