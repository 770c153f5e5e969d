"""Joint Pyro distributions of mean vectors and a precision: one number of all elements, or one matrix of all means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
from torch import Size, Tensor
from torch.distributions import constraints

from ..values import broadcast_shapes
from .joint import MeanPrecision, Pair, Wishart

__all__ = ["IsotropicNormalGamma", "TiedNormalWishart"]


class IsotropicNormalGamma(MeanPrecision):
    """precision ~ Gamma(concentration, rate), mean | precision ~ Normal(loc, I / (precision_scaling · precision)).

    Shapes: loc and the mean ``batch + (D,)``, all else and the precision ``batch``.

    Source: Bernardo and Smith 1994, Bayesian Theory, §5.2 and appendix A, for the multivariate normal-gamma.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "precision_scaling": constraints.positive,
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }

    def __init__(
        self,
        loc: Tensor,
        precision_scaling: Tensor,
        concentration: Tensor,
        rate: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        batch = broadcast_shapes(loc.shape[:-1], precision_scaling.shape, concentration.shape, rate.shape)
        self.loc = loc.expand(batch + loc.shape[-1:])
        self.precision_scaling = precision_scaling.expand(batch)
        self.concentration, self.rate = concentration.expand(batch), rate.expand(batch)
        super().__init__(batch, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> IsotropicNormalGamma:
        batch = Size(batch_shape)
        numbers = (p.expand(batch) for p in (self.precision_scaling, self.concentration, self.rate))
        loc = self.loc.expand(batch + self.loc.shape[-1:])
        return IsotropicNormalGamma(loc, *numbers, validate_args=self._validate_args)

    def mean_marginal(self) -> dist.MultivariateStudentT:
        scale = (self.rate / (self.concentration * self.precision_scaling)).sqrt().unsqueeze(-1)
        return dist.MultivariateStudentT(2 * self.concentration, self.loc, scale.expand(self.loc.shape).diag_embed())

    def precision_marginal(self) -> dist.Gamma:
        return dist.Gamma(self.concentration, self.rate)

    def mean_given(self, precision: Tensor) -> Any:
        return dist.Normal(self.loc, (self.precision_scaling * precision).rsqrt().unsqueeze(-1)).to_event(1)


class TiedNormalWishart(MeanPrecision):
    """precision ~ Wishart(df, covariance_matrix), mean_k | precision ~ Normal(loc_k, (scaling_k · precision)⁻¹).

    The scaling is ``precision_scaling``. K means share one precision, given which they are independent. Shapes: loc and
    the means ``batch + (K, D)``, precision_scaling ``batch + (K,)``, df ``batch``, covariance_matrix (the Wishart's
    scale matrix) and the precision ``batch + (D, D)``.

    Source: Bishop 2006 (2.157) for each mean; its product over the means.
    """

    def __init__(
        self,
        loc: Tensor,
        precision_scaling: Tensor,
        df: Tensor,
        covariance_matrix: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        rows = broadcast_shapes(loc.shape[:-1], precision_scaling.shape)
        batch = broadcast_shapes(rows[:-1], df.shape, covariance_matrix.shape[:-2])
        self.loc = loc.expand(batch + rows[-1:] + loc.shape[-1:])
        self.precision_scaling = precision_scaling.expand(batch + rows[-1:])
        self.df = df.expand(batch)
        self.covariance_matrix = covariance_matrix.expand(batch + covariance_matrix.shape[-2:])
        super().__init__(batch, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        return {
            "loc": constraints.independent(constraints.real, 2),
            "precision_scaling": constraints.independent(constraints.positive, 1),
            "df": constraints.greater_than(self.loc.shape[-1] - 1),
            "covariance_matrix": constraints.positive_definite,
        }

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> TiedNormalWishart:
        batch = Size(batch_shape)
        return TiedNormalWishart(
            self.loc.expand(batch + self.loc.shape[-2:]),
            self.precision_scaling.expand(batch + self.precision_scaling.shape[-1:]),
            self.df.expand(batch),
            self.covariance_matrix.expand(batch + self.covariance_matrix.shape[-2:]),
            validate_args=self._validate_args,
        )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Pair:  # type: ignore[override]
        """The means and the precision, each shaped ``sample_shape + batch_shape`` and its own event."""
        precision = self.precision_marginal().rsample(Size(sample_shape))
        return self.mean_given(precision.unsqueeze(-3)).rsample(), precision

    def log_prob(self, value: Pair) -> Tensor:  # type: ignore[override]
        """The log density of the means and the precision, of batch shape."""
        mean, precision = value
        of_means = self.mean_given(precision.unsqueeze(-3)).log_prob(mean).sum(-1)
        return self.precision_marginal().log_prob(precision) + of_means

    def mean_marginal(self) -> dist.MultivariateStudentT:
        """The Student-t of each mean, of batch shape ``batch + (K,)``; they are not independent of each other.

        Source: Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, §8.3.
        """
        df = (self.df - self.loc.shape[-1] + 1).unsqueeze(-1)
        precision = (self.precision_scaling * df)[..., None, None] * self.covariance_matrix.unsqueeze(-3)
        scale_tril = dist.MultivariateNormal(self.loc, precision_matrix=precision).scale_tril
        return dist.MultivariateStudentT(df.expand(self.loc.shape[:-1]), self.loc, scale_tril)

    def precision_marginal(self) -> Wishart:
        return Wishart(self.df, self.covariance_matrix)

    def mean_given(self, precision: Tensor) -> dist.MultivariateNormal:
        """The means, of batch shape ``batch + (K,)``, given a precision whose batch broadcasts with it."""
        return dist.MultivariateNormal(self.loc, precision_matrix=self.precision_scaling[..., None, None] * precision)
