"""Elliptical distributions: a direction that is uniform on the sphere, and a radius of any law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from ..errors import ArgumentError
from ..values import broadcast_shapes


class Elliptical(dist.TorchDistribution):
    """loc + scale_tril · R u: a radius R of any law, and a direction u that is uniform on the sphere.

    The contours of its density are ellipsoids. With R² ~ χ²(D) it is the multivariate normal, with R² / D ~ F(D, ν) the
    multivariate Student t of ν degrees of freedom.

    Args:
        loc: the center, ``batch + (D,)``.
        scale_tril: lower triangular with a positive diagonal, ``batch + (D, D)``.
        radius: the distribution of R, with positive support and an ``rsample``; of batch shape ``batch``, or one that
            broadcasts to it.

    Raises:
        ValueError: if the shapes do not fit, or ``radius`` is not reparameterised.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale_tril: Tensor, radius: Any, *, validate_args: bool | None = None) -> None:
        if loc.dim() < 1 or scale_tril.shape[-2:] != (loc.shape[-1], loc.shape[-1]):
            raise ArgumentError(
                f"Expected loc [..., D] and scale_tril [..., D, D]; got {list(loc.shape)} and "
                f"{list(scale_tril.shape)}. Give scale_tril the size of loc in both last dimensions."
            )
        if radius.event_shape or not radius.has_rsample:
            raise ArgumentError(
                f"Expected radius to be a reparameterised distribution of scalars; got {radius}. "
                "Use one with has_rsample and an empty event shape."
            )
        batch = broadcast_shapes(loc.shape[:-1], scale_tril.shape[:-2], radius.batch_shape)
        self.loc = loc.expand(batch + loc.shape[-1:])
        self.scale_tril = scale_tril.expand(batch + scale_tril.shape[-2:])
        self.radius = radius.expand(batch)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        loc = self.loc.expand(Size(batch_shape) + self.event_shape)
        scale_tril = self.scale_tril.expand(Size(batch_shape) + 2 * self.event_shape)
        return type(self)(loc, scale_tril, self.radius, validate_args=self._validate_args)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """``sample_shape + batch + (D,)``; differentiable in loc, scale_tril and the radius's parameters."""
        shape = self._extended_shape(Size(sample_shape))
        normal = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        direction = normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
        offset = self.radius.rsample(Size(sample_shape)).unsqueeze(-1) * direction
        return self.loc + (self.scale_tril @ offset.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The density of R at the distance, over the area of the sphere of that radius and the volume of scale_tril.

        At the center it is 0 / 0: there, and nearer than the fourth root of the smallest float (4e-77 in float64, 3e-10
        in float32), it is that at this distance, and has no derivative.
        """
        if self._validate_args:
            self._validate_sample(value)
        dim = self.event_shape[0]
        offset = torch.linalg.solve_triangular(self.scale_tril, (value - self.loc).unsqueeze(-1), upper=False)
        radius = torch.linalg.vector_norm(offset.squeeze(-1), dim=-1)
        radius = radius.clamp(min=torch.finfo(radius.dtype).tiny ** 0.25)
        log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2) + (dim - 1) * radius.log()
        log_volume = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.radius.log_prob(radius) - log_area - log_volume

    @property
    def mean(self) -> Tensor:
        """The center; where R has no mean, the median."""
        return self.loc

    @property
    def covariance_matrix(self) -> Tensor:
        """E R² / D · scale_tril scale_trilᵀ, ``batch + (D, D)``; the radius must know its mean and variance."""
        second_moment = self.radius.variance + self.radius.mean.square()
        return (second_moment / self.event_shape[0])[..., None, None] * (self.scale_tril @ self.scale_tril.mT)

    @property
    def variance(self) -> Tensor:
        return self.covariance_matrix.diagonal(dim1=-2, dim2=-1)
