"""The factors of a hidden Markov model's q that are not of its states, and how far they are from their prior."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_latent.distributions import IsotropicNormalGamma, NormalWishart, TiedNormalWishart
from pyro_latent.models.arguments import expected_log
from pyro_latent.models.gmm.densities import Components, expected_log_density

from .base import Array

__all__ = ["ChainFactors"]


class ChainFactors(NamedTuple):
    """The factors of q that are not of the states."""

    initial: dist.Dirichlet
    transition: dist.Dirichlet
    emission: Components

    def log_factors(self, data: Tensor) -> tuple[Array, Array, Array]:
        """E log of the probabilities, ``[K]`` and ``[K, K]``, and of the density of each vector, ``[N, K]``."""
        density = expected_log_density(data, self.emission)
        return expected_log(self.initial).numpy(), expected_log(self.transition).numpy(), density.numpy()

    def divergence_from(self, prior: ChainFactors) -> float:
        """KL(q ‖ prior), in nats."""
        found = kl_divergence(self.initial, prior.initial) + kl_divergence(self.transition, prior.transition).sum()
        return float(found + _divergence(self.emission, prior.emission))


def _divergence(q: Any, p: Any) -> Tensor:
    """KL of the factors of means and precisions: of the precisions, and of the means given them, averaged."""
    ratio = p.precision_scaling / q.precision_scaling
    off = q.loc - p.loc
    if isinstance(q, NormalWishart | TiedNormalWishart):
        dim = off.shape[-1]
        squares = q.df * ((off.unsqueeze(-2) @ q.covariance_matrix).squeeze(-2) * off).sum(-1)
        precision = _divergence_of_wisharts(q, p)
    else:
        is_isotropic = isinstance(q, IsotropicNormalGamma)
        dim = off.shape[-1] if is_isotropic else 1
        squares = q.concentration / q.rate * (off.square().sum(-1) if is_isotropic else off.square())
        precision = kl_divergence(dist.Gamma(q.concentration, q.rate), dist.Gamma(p.concentration, p.rate))
    return precision.sum() + (dim * (ratio - 1 - ratio.log()) + p.precision_scaling * squares).sum() / 2


def _divergence_of_wisharts(q: Any, p: Any) -> Tensor:
    """KL of the precisions of two Normal-Wisharts, ``[K]``, or of two tied ones, ``[]``."""
    dim = q.loc.shape[-1]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(p.covariance_matrix))
    trace = (inverse * q.covariance_matrix).sum((-2, -1))
    log_det = torch.linalg.slogdet(q.covariance_matrix)[1] - torch.linalg.slogdet(p.covariance_matrix)[1]
    halves = (torch.stack(torch.broadcast_tensors(q.df, p.df))[..., None] - torch.arange(dim)) / 2
    log_gamma = torch.lgamma(halves).sum(-1)
    digamma = torch.digamma(halves[0]).sum(-1)
    return (q.df * (trace - dim) - p.df * log_det + (q.df - p.df) * digamma) / 2 + log_gamma[1] - log_gamma[0]
