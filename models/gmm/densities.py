"""Densities that the Bayesian mixtures share: those of their components, and of points given a component."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor

from pyro_latent.distributions import IsotropicNormalGamma, NormalGamma, NormalWishart, TiedNormalWishart

from .priors import Covariance, Priors, has_matrices

#: The posterior of the means and precisions of K components; what is tied is one distribution of them all.
Components: TypeAlias = NormalWishart | TiedNormalWishart | NormalGamma | IsotropicNormalGamma


def sample_components(priors: Priors, covariance: Covariance) -> tuple[Tensor, Tensor]:
    """Sites ``precision`` and ``mean`` of the K components, in plate ``components``; the mean and the precision.

    A tied precision is outside of the plate.
    """
    plate = pyro.plate("components", len(priors.weight_concentration))
    with nullcontext() if covariance == "tied" else plate:
        precision = pyro.sample("precision", prior_of_precision(priors, covariance))
    with plate:
        mean = pyro.sample("mean", normal(priors.mean, priors.mean_precision * precision, covariance))
    return mean, precision


def prior_of_precision(priors: Priors, covariance: Covariance) -> dist.TorchDistribution:
    if has_matrices(covariance):
        return dist.Wishart(priors.degrees_of_freedom, covariance_matrix=inverse(priors.covariance))
    half = priors.degrees_of_freedom / 2, priors.covariance / 2
    if covariance == "diagonal":
        return dist.Gamma(*half).to_event(1)
    dim = len(priors.mean)
    return dist.Gamma(dim * half[0], dim * half[1])


def normal(loc: Tensor, precision: Tensor, covariance: Covariance) -> dist.TorchDistribution:
    """A normal of event shape ``[D]``; its precision is ``[..., D, D]`` (full, tied), ``[..., D]`` or ``[...]``."""
    if has_matrices(covariance):
        return dist.MultivariateNormal(loc, precision_matrix=precision)
    scale = precision.rsqrt()
    return dist.Normal(loc, scale.unsqueeze(-1) if covariance == "spherical" else scale).to_event(1)


def of_component(parameter: Tensor, component: Tensor, event_dim: int) -> Tensor:
    """Each point's ``parameter[component]``, also where particles of ``Trace_ELBO`` add dimensions on the left.

    ``parameter`` is ``[..., K] + event``. The new dimension stands for the plate of points.
    """
    batched = parameter.unsqueeze(-2 - event_dim)
    return Vindex(batched)[(..., component, *[slice(None)] * event_dim)]


def normal_of_component(
    mean: Tensor, precision: Tensor, component: Tensor, covariance: Covariance
) -> dist.TorchDistribution:
    """The normal of each point, given its component."""
    loc = of_component(mean, component, 1)
    if covariance == "tied":
        return normal(loc, precision, covariance)
    event_dim = {"full": 2, "diagonal": 1, "spherical": 0}[covariance]
    return normal(loc, of_component(precision, component, event_dim), covariance)


def of_each(block: TiedNormalWishart) -> NormalWishart:
    """The distribution of each mean and the precision that all share, of batch shape ``[K]``."""
    return NormalWishart(block.loc, block.precision_scaling, block.df, block.covariance_matrix)


def expected_log_density(data: Tensor, block: Components) -> Tensor:
    """E log N(x_n | mean_k, precision_k⁻¹) under the posterior of each component, shape ``[N, K]``."""
    if isinstance(block, NormalWishart | TiedNormalWishart):
        return _expected_log_density_full(data, block if isinstance(block, NormalWishart) else of_each(block))
    if isinstance(block, IsotropicNormalGamma):  # a sum over dimensions: what they share makes no difference
        numbers = (p.unsqueeze(-1) for p in (block.precision_scaling, block.concentration, block.rate))
        block = NormalGamma(block.loc, *numbers)
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
