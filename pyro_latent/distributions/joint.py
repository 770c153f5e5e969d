"""Joint Pyro distributions of a normal's mean and precision, whose values are pairs (mean, precision); and a Wishart.

A pair has no single event shape: ``event_shape`` is empty, and ``log_prob`` and ``batch_shape`` count batch dimensions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from ..values import broadcast_shapes

Pair = tuple[Tensor, Tensor]


class Wishart(dist.Wishart):
    """Pyro's Wishart, with samples that carry gradients.

    The one in torch 2.13 takes every regular sample for a singular one: it warns, and draws again in place, where
    ``backward`` fails.
    """

    def rsample(self, sample_shape: Sequence[int] = (), max_try_correction: int | None = None) -> Tensor:
        """``sample_shape + batch_shape + (D, D)``, by Bartlett's decomposition; ``max_try_correction`` is ignored."""
        dim = self.event_shape[-1]
        offsets = torch.arange(dim, dtype=self.df.dtype, device=self.df.device)
        diagonal = dist.Chi2(self.df.unsqueeze(-1) - offsets).rsample(Size(sample_shape)).sqrt().diag_embed()
        factor: Tensor = self.scale_tril @ (diagonal + torch.randn_like(diagonal).tril(-1))
        return factor @ factor.mT


class MeanPrecision(dist.TorchDistribution):
    """A distribution of (mean, precision), the precision drawn first. Subclasses give its two factors."""

    has_rsample = True

    @abstractmethod
    def mean_marginal(self) -> Any:
        """The distribution of the mean, a Student t."""

    @abstractmethod
    def precision_marginal(self) -> Any:
        """The distribution of the precision."""

    @abstractmethod
    def mean_given(self, precision: Tensor) -> Any:
        """The distribution of the mean, given the precision."""

    def rsample(self, sample_shape: Sequence[int] = ()) -> Pair:  # type: ignore[override]
        """A pair, each shaped ``sample_shape + batch_shape`` and its own event; differentiable in the parameters."""
        precision = self.precision_marginal().rsample(Size(sample_shape))
        return self.mean_given(precision).rsample(), precision

    def log_prob(self, value: Pair) -> Tensor:  # type: ignore[override]
        """The log density of a pair, of batch shape."""
        mean, precision = value
        return self.precision_marginal().log_prob(precision) + self.mean_given(precision).log_prob(mean)


class NormalGamma(MeanPrecision):
    """precision ~ Gamma(concentration, rate), mean | precision ~ Normal(loc, 1 / sqrt(precision_scaling · precision)).

    All arguments and both values are of batch shape. Bishop (2006), equation (2.154).
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
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
        self.loc, self.precision_scaling, self.concentration, self.rate = torch.broadcast_tensors(
            loc, precision_scaling, concentration, rate
        )
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> NormalGamma:
        params = (self.loc, self.precision_scaling, self.concentration, self.rate)
        return NormalGamma(*(p.expand(Size(batch_shape)) for p in params), validate_args=self._validate_args)

    def mean_marginal(self) -> dist.StudentT:
        scale = (self.rate / (self.concentration * self.precision_scaling)).sqrt()
        return dist.StudentT(2 * self.concentration, self.loc, scale)

    def precision_marginal(self) -> dist.Gamma:
        return dist.Gamma(self.concentration, self.rate)

    def mean_given(self, precision: Tensor) -> dist.Normal:
        return dist.Normal(self.loc, (self.precision_scaling * precision).rsqrt())


class NormalWishart(MeanPrecision):
    """precision ~ Wishart(df, covariance_matrix), mean | precision ~ Normal(loc, (precision_scaling · precision)⁻¹).

    Shapes: loc and the mean ``batch + (D,)``, precision_scaling and df ``batch``, covariance_matrix (the Wishart's
    scale matrix) and the precision ``batch + (D, D)``. Bishop (2006), equation (2.157).
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
        batch = broadcast_shapes(loc.shape[:-1], precision_scaling.shape, df.shape, covariance_matrix.shape[:-2])
        self.loc = loc.expand(batch + loc.shape[-1:])
        self.precision_scaling = precision_scaling.expand(batch)
        self.df = df.expand(batch)
        self.covariance_matrix = covariance_matrix.expand(batch + covariance_matrix.shape[-2:])
        super().__init__(batch, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        return {
            "loc": constraints.real_vector,
            "precision_scaling": constraints.positive,
            "df": constraints.greater_than(self.loc.shape[-1] - 1),
            "covariance_matrix": constraints.positive_definite,
        }

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> NormalWishart:
        batch = Size(batch_shape)
        return NormalWishart(
            self.loc.expand(batch + self.loc.shape[-1:]),
            self.precision_scaling.expand(batch),
            self.df.expand(batch),
            self.covariance_matrix.expand(batch + self.covariance_matrix.shape[-2:]),
            validate_args=self._validate_args,
        )

    def mean_marginal(self) -> dist.MultivariateStudentT:
        """The Student-t of the mean, whose df is df − D + 1.

        Source: Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, §8.3.
        """
        df = self.df - self.loc.shape[-1] + 1
        precision = (self.precision_scaling * df)[..., None, None] * self.covariance_matrix
        scale_tril = dist.MultivariateNormal(self.loc, precision_matrix=precision).scale_tril
        return dist.MultivariateStudentT(df, self.loc, scale_tril)

    def precision_marginal(self) -> Wishart:
        return Wishart(self.df, self.covariance_matrix)

    def mean_given(self, precision: Tensor) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(self.loc, precision_matrix=self.precision_scaling[..., None, None] * precision)
