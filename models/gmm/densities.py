"""Densities that the Bayesian mixtures share: those of their components, and of points given a component."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor

from pyro_latent.distributions import NormalGamma, NormalWishart

from .priors import Covariance, Priors


def sample_components(priors: Priors, covariance: Covariance) -> tuple[Tensor, Tensor]:
    """Sites ``precision`` and ``mean`` of the K components, in plate ``components``; the mean and the precision."""
    with pyro.plate("components", len(priors.weight_concentration)):
        precision = pyro.sample("precision", prior_of_precision(priors, covariance))
        mean = pyro.sample("mean", normal(priors.mean, priors.mean_precision * precision, covariance))
    return mean, precision


def prior_of_precision(priors: Priors, covariance: Covariance) -> dist.TorchDistribution:
    if covariance == "full":
        return dist.Wishart(priors.degrees_of_freedom, covariance_matrix=inverse(priors.covariance))
    return dist.Gamma(priors.degrees_of_freedom / 2, priors.covariance / 2).to_event(1)


def normal(loc: Tensor, precision: Tensor, covariance: Covariance) -> dist.TorchDistribution:
    """A normal of event shape ``[D]``, whose precision is ``[..., D, D]`` (full) or ``[..., D]``."""
    if covariance == "full":
        return dist.MultivariateNormal(loc, precision_matrix=precision)
    return dist.Normal(loc, precision.rsqrt()).to_event(1)


def _of_component(parameter: Tensor, component: Tensor, event_dim: int) -> Tensor:
    """Each point's ``parameter[component]``, also where particles of ``Trace_ELBO`` add dimensions on the left.

    ``parameter`` is ``[..., K] + event``. The new dimension stands for the plate of points.
    """
    batched = parameter.unsqueeze(-2 - event_dim)
    return Vindex(batched)[(..., component, *[slice(None)] * event_dim)]


def normal_of_component(
    mean: Tensor, precision: Tensor, component: Tensor, covariance: Covariance
) -> dist.TorchDistribution:
    """The normal of each point, given its component."""
    loc = _of_component(mean, component, 1)
    chosen = _of_component(precision, component, 2 if covariance == "full" else 1)
    return normal(loc, chosen, covariance)


def expected_log_density(data: Tensor, block: NormalWishart | NormalGamma) -> Tensor:
    """E log N(x_n | mean_k, precision_k⁻¹) under the posterior of each component, shape ``[N, K]``."""
    if isinstance(block, NormalWishart):
        return _expected_log_density_full(data, block)
    return _expected_log_density_diagonal(data, block)


def _expected_log_density_full(data: Tensor, block: NormalWishart) -> Tensor:
    """E log N(x_n | mean_k, precision_k⁻¹) under a Normal-Wishart, shape ``[N, K]``."""
    dim = data.shape[-1]
    tril = torch.linalg.cholesky(block.covariance_matrix)
    halves = (block.df.unsqueeze(-1) - torch.arange(dim, dtype=data.dtype, device=data.device)) / 2
    expected_log_det = (
        torch.digamma(halves).sum(-1) + dim * math.log(2) + 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    )
    squares = torch.stack(
        [((data - loc) @ factor).square().sum(-1) for loc, factor in zip(block.loc, tril, strict=True)], -1
    )
    expected_square = dim / block.precision_scaling + block.df * squares
    return (expected_log_det - dim * math.log(2 * math.pi) - expected_square) / 2


def _expected_log_density_diagonal(data: Tensor, block: NormalGamma) -> Tensor:
    """Σ_d E log N(x_nd | mean_kd, 1 / precision_kd) under Normal-Gammas, shape ``[N, K]``."""
    expected_log_precision = torch.digamma(block.concentration) - block.rate.log()
    expected_precision = block.concentration / block.rate
    squares = torch.stack(
        [
            ((data - loc).square() * precision).sum(-1)
            for loc, precision in zip(block.loc, expected_precision, strict=True)
        ],
        -1,
    )
    constant = (expected_log_precision - math.log(2 * math.pi) - 1 / block.precision_scaling).sum(-1)
    return (constant - squares) / 2


def inverse(matrix: Tensor) -> Tensor:
    """Inverse of positive definite matrices ``[..., D, D]``, symmetric to the last bit."""
    found = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    return (found + found.mT) / 2
