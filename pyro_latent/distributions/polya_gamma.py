"""The Pólya-gamma distribution, whose mixtures of normals are logistic functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions.utils import broadcast_all

from ..errors import MissingFormulaError
from .weights import Weight

#: A draw has so many terms of its series drawn; the others are at their mean.
_TERMS = 200


class PolyaGamma(Weight):
    r"""PG(b, c), the law of Σ_k g_k / (2π² (k − 1/2)² + c² / 2) with independent g_k ~ Gamma(b, 1), k = 1, 2, ….

    Its use is :math:`e^{aψ} / (1 + e^ψ)^b = 2^{-b} e^{(a - b/2) ψ} E[e^{-ω ψ² / 2}]` with ω ~ PG(b, 0).

    Its density is an alternating series, and is not given.

    Args:
        count: b ≥ 0; at 0 the value is 0.
        tilt: c, of any sign.

    Source: Polson, Scott and Windle (2013), §2; the series is its equation (1).
    """

    arg_constraints = {"count": constraints.nonnegative, "tilt": constraints.real}
    support = constraints.nonnegative

    def __init__(self, count: Tensor | float, tilt: Tensor | float = 0.0, validate_args: bool | None = None) -> None:
        self.count, tilt = broadcast_all(count, tilt)
        super().__init__(tilt, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> PolyaGamma:
        return PolyaGamma(self.count.expand(batch_shape), self.tilt.expand(batch_shape), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The first 200 terms are drawn, the others at their mean: their share of the variance is below 1e-7."""
        with torch.no_grad():
            count = self.count.expand(torch.Size(sample_shape) + self.batch_shape).unsqueeze(-1)
            places = torch.arange(_TERMS, dtype=count.dtype, device=count.device) + 0.5
            weights = 1 / (2 * math.pi**2 * places**2 + self.tilt.unsqueeze(-1) ** 2 / 2)
            gammas = torch._standard_gamma(count.expand(*count.shape[:-1], _TERMS).contiguous())
            rest = self.mean - self.count * weights.sum(-1)
            return (weights * gammas).sum(-1) + rest.clamp(min=0)

    @property
    def log_normalizer(self) -> Tensor:
        """−b log cosh(c / 2)."""
        return -self.count * log_cosh(self.tilt / 2)

    @property
    def mean(self) -> Tensor:
        """E ω = b tanh(c / 2) / (2 c)."""
        return self.count * mean_of_one(self.tilt)

    @property
    def variance(self) -> Tensor:
        """b (sinh c − c) / (4 c³ cosh²(c / 2)); at c = 0 it is b / 24."""
        tilt = self.tilt.abs()
        small = tilt < 0.1
        safe = torch.where(small, torch.ones_like(tilt), tilt)
        ratio = (torch.tanh(safe / 2) * 2 - safe * (1 - torch.tanh(safe / 2) ** 2)) / (4 * safe**3)
        series = 1 / 24 - tilt**2 / 120 + 17 * tilt**4 / 13440 - 31 * tilt**6 / 362880
        return self.count * torch.where(small, series, ratio)


class LogisticBound(TorchDistribution):
    r"""The point (E ω, KL(PG(b, c) ‖ PG(b, 0))) of a Pólya-gamma weight ω ~ PG(b, c), of shape ``batch + [2]``.

    It is what the bound of Jaakkola and Jordan (2000) needs of the weight,
    :math:`-b \log(2 \cosh(ψ / 2)) \geq -\tfrac12 ψ^2 E ω - KL - b \log 2`, which touches at ψ = ± c; so that the bound
    may be taken a fraction of the time, as behind a gate.

    Args:
        count: b ≥ 0.
        tilt: c, of any sign.
    """

    arg_constraints = {"count": constraints.nonnegative, "tilt": constraints.real}
    support = constraints.independent(constraints.nonnegative, 1)

    def __init__(self, count: Tensor | float, tilt: Tensor | float = 0.0, validate_args: bool | None = None) -> None:
        self.count, self.tilt = broadcast_all(count, tilt)
        super().__init__(self.tilt.shape, torch.Size([2]), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> LogisticBound:
        return LogisticBound(self.count.expand(batch_shape), self.tilt.expand(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        law = PolyaGamma(self.count, self.tilt, validate_args=False)
        return torch.stack([law.mean, self.count * divergence_of_one(self.tilt)], -1)

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.mean)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.mean.expand(torch.Size(sample_shape) + self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        raise MissingFormulaError(
            "Expected a distribution with a density; got LogisticBound, the place of a bound. To score the model, "
            "write it without its weights, as AutoConjugate(model, reparam=True) takes it."
        )


def divergence_of_one(tilt: Tensor) -> Tensor:
    """KL(PG(1, c) ‖ PG(1, 0)) = log cosh(c / 2) − c tanh(c / 2) / 4, elementwise."""
    small = tilt.abs() < 0.05
    near = tilt**4 / 192 - tilt**6 / 1440 + 17 * tilt**8 / 215040
    return torch.where(small, near, log_cosh(tilt / 2) - tilt**2 / 2 * mean_of_one(tilt))


def mean_of_one(tilt: Tensor) -> Tensor:
    """tanh(c / 2) / (2 c), which is 1/4 at 0, elementwise."""
    small = tilt.abs() < 0.02
    safe = torch.where(small, torch.ones_like(tilt), tilt)
    return torch.where(small, 1 / 4 - tilt**2 / 48 + tilt**4 / 480, torch.tanh(safe / 2) / (2 * safe))


def log_cosh(x: Tensor) -> Tensor:
    """log cosh x, elementwise, without overflow."""
    size = x.abs()
    return size + torch.nn.functional.softplus(-2 * size) - math.log(2)


__all__ = ["LogisticBound", "PolyaGamma", "log_cosh", "mean_of_one"]
