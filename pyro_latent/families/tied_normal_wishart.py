"""The Normal-Wishart distribution of several mean vectors that share a precision matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import distributions
from .base import Moment, Params
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

    def distribution(self, params: Params) -> Any:
        return distributions.TiedNormalWishart(*(params[name] for name in self.param_names))

    def conditionals(self, params: Params) -> tuple[tuple[int, Callable[..., Any]], ...]:
        joint = self.distribution(params)
        plain = len(joint.batch_shape) + 2  # dimensions of a precision that has none for the plate of the means

        def given(precision: Tensor) -> Any:
            return joint.mean_given(precision.unsqueeze(-3) if precision.ndim == plain else precision)

        return ((1, joint.precision_marginal), (0, given))

    def _count(self, loc: Tensor) -> int:
        return loc.shape[-2]

    def _weighted(self, loc: Tensor, precision: Tensor) -> Tensor:
        return loc @ precision

    def _square(self, loc: Tensor, weighted: Tensor) -> Tensor:
        return loc.mT @ weighted

    def _log_scaling(self, scaling: Tensor) -> Tensor:
        return super()._log_scaling(scaling).sum(-1)

    def _is_positive(self, scaling: Tensor) -> Tensor:
        return super()._is_positive(scaling).all(-1)


__all__ = ["TiedNormalWishart"]
