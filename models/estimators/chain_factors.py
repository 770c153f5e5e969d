"""The factors of a hidden Markov model's q that are not of its states, and how far they are from their prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_latent.distributions import IsotropicNormalGamma, NormalWishart, TiedNormalWishart
from pyro_latent.models import gmm
from pyro_latent.models.arguments import expected_log
from pyro_latent.models.gmm.densities import Components, expected_log_density
from pyro_latent.models.gmm.priors import Covariance, Priors

from .base import Array

__all__ = ["CategoricalEmission", "ChainFactors", "Emission", "GaussianEmission", "PoissonEmission"]


class Emission(Protocol):
    """The distribution of the parameters of what K states emit: a prior, or a factor of q."""

    def after(self, data: Tensor, states: Tensor) -> Self:
        """The posterior of this prior, given data ``[N, ...]`` and the probabilities of their states ``[N, K]``."""

    def log_density(self, data: Tensor) -> Tensor:
        """E log density of data in each state, ``[N, K]``."""

    def divergence_from(self, prior: Self) -> Tensor:
        """KL(self ‖ prior), in nats."""


@dataclass(frozen=True)
class GaussianEmission:
    """Means and precisions, with the parameters of their prior."""

    block: Components
    priors: Priors
    covariance: Covariance

    def after(self, data: Tensor, states: Tensor) -> GaussianEmission:
        q = {"component": dist.Categorical(probs=states)}
        options: dict[str, Any] = {"covariance": self.covariance, **self.priors.arguments()}
        return replace(self, block=gmm.update_mean_precision(q, data, states.shape[1], **options))

    def log_density(self, data: Tensor) -> Tensor:
        return expected_log_density(data, self.block)

    def divergence_from(self, prior: GaussianEmission) -> Tensor:
        return _divergence(self.block, prior.block)


@dataclass(frozen=True)
class PoissonEmission:
    """Rates of counts: independent Gammas, ``[K, D]``."""

    concentration: Tensor
    rate: Tensor

    @property
    def gamma(self) -> dist.Gamma:
        return dist.Gamma(self.concentration, self.rate)

    def after(self, data: Tensor, states: Tensor) -> PoissonEmission:
        return PoissonEmission(self.concentration + states.mT @ data, self.rate + states.sum(0).unsqueeze(-1))

    def log_density(self, data: Tensor) -> Tensor:
        log_rate = torch.digamma(self.concentration) - self.rate.log()
        constant = torch.lgamma(data + 1).sum(-1, keepdim=True)
        return data @ log_rate.mT - self.gamma.mean.sum(-1) - constant

    def divergence_from(self, prior: PoissonEmission) -> Tensor:
        return kl_divergence(self.gamma, prior.gamma).sum()


@dataclass(frozen=True)
class CategoricalEmission:
    """Probabilities of symbols: Dirichlets, ``[K, M]``."""

    concentration: Tensor

    @property
    def dirichlet(self) -> dist.Dirichlet:
        return dist.Dirichlet(self.concentration)

    def after(self, data: Tensor, states: Tensor) -> CategoricalEmission:
        return CategoricalEmission(self.concentration.mT.index_add(0, data, states).mT)

    def log_density(self, data: Tensor) -> Tensor:
        return expected_log(self.dirichlet).mT[data]

    def divergence_from(self, prior: CategoricalEmission) -> Tensor:
        return kl_divergence(self.dirichlet, prior.dirichlet).sum()


class ChainFactors(NamedTuple):
    """The factors of q that are not of the states."""

    initial: dist.Dirichlet
    transition: dist.Dirichlet
    emission: Emission

    def after(self, data: Tensor, spans: Sequence[slice], states: Array, pairs: Any) -> ChainFactors:
        """The posteriors of these priors, given the probabilities of the states, and of pairs ``[K, K]``."""
        first = torch.from_numpy(states[[span.start for span in spans]].sum(0))
        return ChainFactors(
            dist.Dirichlet(self.initial.concentration + first),
            dist.Dirichlet(self.transition.concentration + torch.as_tensor(pairs)),
            self.emission.after(data, torch.from_numpy(states)),
        )

    def log_factors(self, data: Tensor) -> tuple[Array, Array, Array]:
        """E log of the probabilities, ``[K]`` and ``[K, K]``, and of the density of each row, ``[N, K]``."""
        density = self.emission.log_density(data)
        return expected_log(self.initial).numpy(), expected_log(self.transition).numpy(), density.numpy()

    def divergence_from(self, prior: ChainFactors) -> float:
        """KL(q ‖ prior), in nats."""
        found = kl_divergence(self.initial, prior.initial) + kl_divergence(self.transition, prior.transition).sum()
        return float(found + self.emission.divergence_from(prior.emission))


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
