"""``HiddenMarkovModel``: states along sequences, with the names of hmmlearn's ``VariationalGaussianHMM``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent.errors import ArgumentError, DataError, check_choice
from pyro_latent.models import gmm, hidden_markov
from pyro_latent.models.gmm.moments import matrices_of, moments_of
from pyro_latent.models.gmm.predictive import prior_block
from pyro_latent.models.gmm.priors import complete_priors

from .base import COVARIANCES, Array, tensors_of
from .chain_factors import ChainFactors, GaussianEmission
from .chains import Chain

__all__ = ["HiddenMarkovModel"]

#: What the mixture calls the priors of the emissions, and what they are called here.
_PRIORS = {
    "mean_prior": "means_prior",
    "mean_precision_prior": "beta_prior",
    "degrees_of_freedom_prior": "dof_prior",
    "covariance_prior": "scale_prior",
}


class HiddenMarkovModel(Chain):
    """States along sequences, by a Bayesian hidden Markov model with Gaussian emissions.

    The model is :func:`pyro_latent.models.hidden_markov.model`; q is q(states) q(initial) q(transition)
    Π_k q(mean_k, precision_k), where the states of a sequence are one factor. This fits it by the updates of MacKay and
    the forward-backward recursions, in float64, without recording the model's loop, which takes long for many vectors.
    The posterior is that of coordinate ascent on the model, and ``guide_`` is its guide, made when first asked for.

    Args:
        n_components: K, the number of states.
        covariance_type: ``"full"``, ``"tied"`` (one covariance for all), ``"diag"`` or ``"spherical"``.
        startprob_prior, transmat_prior: Dirichlet concentrations of the first state, and of the state after each; a
            number or ``[K]``; default 1 / K.
        means_prior: prior mean of the means, ``[D]``; default the data's mean.
        beta_prior: how many vectors the prior of a mean is worth; default 1.
        dof_prior: degrees of freedom of the precisions, above D - 1 (full, tied) or 0 (diag, spherical); default D.
        scale_prior: their inverse scale, ``[D, D]`` (full, tied), ``[D]`` (diag) or a number (spherical); default the
            data's covariance.
        tol: the fit has converged once a sweep raises the ELBO by no more than this share of it.
        max_iter: the largest number of sweeps of each start.
        n_init: the number of starts, at clusters of k-means; the one with the highest ELBO is kept.
        random_state: a seed, a NumPy state, or None for NumPy's global one: for the starts, and for :meth:`sample`.

    Attributes (after a fit):
        startprob_, transmat_, means_: posterior means, ``[K]``, ``[K, K]`` (from row to column) and ``[K, D]``.
        covars_: (E precision_k)⁻¹, ``[K, D, D]``, whatever their type.
        startprob_posterior_, transmat_posterior_: Dirichlet concentrations of q, ``[K]`` and ``[K, K]``.
        means_posterior_, beta_posterior_, dof_posterior_, scale_posterior_: parameters of q(mean_k, precision_k), in
            the shapes of the priors with K in front; the last two of a tied precision without.
        lower_bound_, lower_bounds_, n_iter_, converged_: the exact ELBO in nats, that after each sweep, the number of
            sweeps, whether ``tol`` was met.
        guide_: an :class:`~pyro_latent.AutoConjugate` guide of the model with this posterior; model_args_,
            model_kwargs_: its model's arguments.
        n_features_in_, feature_names_in_: D, and the names of a data frame's columns.

    Example::

        chain = HiddenMarkovModel(3, random_state=0).fit(X, lengths=[100, 80])
        states = chain.predict(X_new)

    Source: MacKay 1997, "Ensemble learning for hidden Markov models"; Rabiner 1989.
    """

    _model = hidden_markov.model
    _blocks = (("mean", "precision"),)

    means_: Array
    covars_: Array

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        startprob_prior: Any = None,
        transmat_prior: Any = None,
        means_prior: Any = None,
        beta_prior: float | None = None,
        dof_prior: float | None = None,
        scale_prior: Any = None,
        tol: float = 1e-8,
        max_iter: int = 1000,
        n_init: int = 1,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.startprob_prior = startprob_prior
        self.transmat_prior = transmat_prior
        self.means_prior = means_prior
        self.beta_prior = beta_prior
        self.dof_prior = dof_prior
        self.scale_prior = scale_prior
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.random_state = random_state

    def _check(self) -> None:
        super()._check()
        check_choice("covariance_type", self.covariance_type, list(COVARIANCES))

    def _rows(self, X: Any, reset: bool = False) -> Tensor:
        return self._read(X, reset=reset, ensure_min_samples=2 if reset else 1).double()

    def _prior(self, data: Tensor) -> tuple[ChainFactors, dict[str, Any]]:
        covariance = COVARIANCES[self.covariance_type]
        try:
            given = tensors_of({theirs: getattr(self, ours) for theirs, ours in _PRIORS.items()}, data.dtype)
            priors = complete_priors(data, self.n_components, covariance, **given)
        except (ArgumentError, DataError) as error:
            raise type(error)(_in_own_words(str(error))) from None
        arguments: dict[str, Any] = {"covariance": covariance, **priors.arguments()}
        del arguments["weight_concentration_prior"]
        emission = GaussianEmission(prior_block(priors, covariance), priors, covariance)
        return self._chain_prior(emission), arguments

    def _first_states(self, data: Tensor, generator: torch.Generator) -> Array:
        found: Array = gmm.initial_responsibilities(data, self.n_components, generator=generator).numpy()
        return found

    def _set_emission(self, emission: GaussianEmission) -> None:
        block = emission.block
        self.means_ = self.means_posterior_ = block.loc.numpy()
        found = moments_of(block)
        self.beta_posterior_, self.dof_posterior_ = found.mean_precision.numpy(), found.degrees_of_freedom.numpy()
        dof = found.degrees_of_freedom.reshape(-1, *[1] * (found.covariance.ndim - 1))
        self.scale_posterior_ = (dof * found.covariance).reshape(found.covariance.shape).numpy()
        self.covars_ = matrices_of(block, found).numpy()

    def _start_of(self, emission: GaussianEmission) -> dict[Any, Any]:
        return {("mean", "precision"): emission.block}

    def _log_density(self, data: Tensor) -> Array:
        means, covariances = torch.from_numpy(self.means_), torch.from_numpy(self.covars_)
        found: Array = dist.MultivariateNormal(means, covariances).log_prob(data.unsqueeze(1)).numpy()
        return found

    def _emitted(self, states: Array, rng: np.random.RandomState) -> Array:
        noise = rng.standard_normal((len(states), self.means_.shape[1], 1))
        roots = np.linalg.cholesky(self.covars_)
        found: Array = self.means_[states] + (roots[states] @ noise)[..., 0]
        return found


def _in_own_words(message: str) -> str:
    """A message of the mixture about its priors, with the names that they have here."""
    for theirs, ours in _PRIORS.items():
        message = message.replace(theirs, ours)
    return message
