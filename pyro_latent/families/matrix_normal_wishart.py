"""The matrix normal distribution of the rows of a matrix, with the Wishart precision that they share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import distributions
from .base import Moment, Natural, Params
from .matrices import inverse, is_positive_definite, log_determinant, symmetrize
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

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        found = super().example(batch, *events)
        return found | {"row_precision": found["row_precision"].diag_embed()}

    def distribution(self, params: Params) -> Any:
        return distributions.MatrixNormalWishart(*(params[name] for name in self.param_names))

    def _split(self, natural: Natural) -> tuple[Tensor, Tensor, Natural]:
        loc, rows, precision = super()._split(natural)
        return loc, symmetrize(rows), precision

    def _quadratic(self, loc: Tensor, weighted: Tensor) -> Tensor:
        return weighted @ loc.mT

    def _scaled(self, loc: Tensor, scaling: Tensor) -> Tensor:
        return scaling @ loc

    def _reciprocal(self, scaling: Tensor) -> Tensor:
        return inverse(scaling)

    def _log_scaling(self, scaling: Tensor) -> Tensor:
        return log_determinant(scaling) - scaling.shape[-1] * math.log(2 * math.pi)

    def _is_positive(self, scaling: Tensor) -> Tensor:
        return is_positive_definite(scaling)


__all__ = ["MatrixNormalWishart"]
