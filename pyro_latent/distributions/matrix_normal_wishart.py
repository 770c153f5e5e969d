"""The joint Pyro distribution of a matrix, whose rows are normal, and of the Wishart precision that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from ..values import broadcast_shapes
from .joint_vectors import TiedNormalWishart

__all__ = ["MatrixNormalWishart", "RowsGivenPrecision"]


class MatrixNormalWishart(TiedNormalWishart):
    """precision ~ Wishart(df, covariance_matrix), and rows with cov(row_k, row_l) = (row_precision⁻¹)_kl precision⁻¹.

    Shapes: loc and the rows ``batch + (K, D)``, row_precision ``batch + (K, K)``, df ``batch``, covariance_matrix (the
    Wishart's scale matrix) and the precision ``batch + (D, D)``. ``precision_scaling`` is that of the marginals.

    Source: Minka (2000), Bayesian linear regression.
    """

    def __init__(
        self,
        loc: Tensor,
        row_precision: Tensor,
        df: Tensor,
        covariance_matrix: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        factor = torch.linalg.cholesky_ex(row_precision).L
        scaling = 1 / torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
        batch = broadcast_shapes(loc.shape[:-2], factor.shape[:-2], df.shape, covariance_matrix.shape[:-2])
        self.row_precision = row_precision.expand(batch + row_precision.shape[-2:])
        self._factor = factor.expand(self.row_precision.shape)
        super().__init__(loc, scaling, df, covariance_matrix, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        found = super().arg_constraints
        del found["precision_scaling"]
        return found | {"row_precision": constraints.positive_definite}

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> MatrixNormalWishart:
        batch = Size(batch_shape)
        matrices = (self.loc, self.row_precision, self.covariance_matrix)
        loc, rows, scale = (m.expand(batch + m.shape[-2:]) for m in matrices)
        return MatrixNormalWishart(loc, rows, self.df.expand(batch), scale, validate_args=self._validate_args)

    def mean_given(self, precision: Tensor) -> RowsGivenPrecision:
        """The rows, of batch shape ``batch + (K,)``, given a precision whose batch broadcasts with it."""
        return RowsGivenPrecision(self.loc, self._factor, precision)


class RowsGivenPrecision(TorchDistribution):
    """Normal rows with cov(row_k, row_l) = ((F Fᵀ)⁻¹)_kl precision⁻¹, in a plate of rows.

    The rows of Fᵀ (W − loc) are independent, and the k-th has no rows of W before the k-th: ``log_prob`` of a row is
    that given the rows after it, whose sum is that of all rows.

    Args:
        loc: ``batch + (K, D)``.
        factor: F, lower triangular, ``batch + (K, K)``.
        precision: ``(D, D)``, with a batch that broadcasts with ``batch + (K,)``.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, factor: Tensor, precision: Tensor) -> None:
        self.loc, self.factor = loc, factor
        self.rows = dist.MultivariateNormal(torch.zeros_like(loc), precision_matrix=precision)
        super().__init__(self.rows.batch_shape, loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> RowsGivenPrecision:
        batch = Size(batch_shape)
        loc = self.loc.expand(batch + self.event_shape)
        precision = self.rows.precision_matrix.expand(batch + 2 * self.event_shape)
        return RowsGivenPrecision(loc, self.factor, precision)

    @property
    def mean(self) -> Tensor:
        return self.loc.expand(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``sample_shape + batch + (D,)``."""
        noise = self.rows.rsample(Size(sample_shape))
        return self.loc + torch.linalg.solve_triangular(self.factor.mT, noise, upper=True)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log densities of the rows, each given those after it, ``[...] + batch``."""
        log_volume = self.event_shape[0] * self.factor.diagonal(dim1=-2, dim2=-1).log()
        found: Tensor = self.rows.log_prob(self.factor.mT @ (value - self.loc)) + log_volume
        return found
