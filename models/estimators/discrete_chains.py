"""``PoissonHMM`` and ``CategoricalHMM``: states along sequences of counts or symbols, with hmmlearn's names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pyro_latent.errors import DataError, check_count
from pyro_latent.models import gmm, hidden_markov
from pyro_latent.models.hidden_markov.discrete import check_counts, check_symbols, rate_priors

from .base import Array, tensors_of
from .chain_factors import CategoricalEmission, ChainFactors, PoissonEmission
from .chains import Chain

__all__ = ["CategoricalHMM", "PoissonHMM"]


class PoissonHMM(Chain):
    """States along sequences of counts, by a Bayesian hidden Markov model with Poisson emissions.

    The model is :func:`pyro_latent.models.hidden_markov.poisson_model`; q is q(states) q(initial) q(transition)
    Π_kd q(rate_kd), where the states of a sequence are one factor. It is fitted as :class:`.HiddenMarkovModel` is.

    Args:
        n_components: K, the number of states.
        startprob_prior, transmat_prior: Dirichlet concentrations of the first state, and of the state after each; a
            number or ``[K]``; default 1 / K.
        lambdas_prior, lambdas_weight: concentration and rate of the Gamma prior of each rate, a number or ``[D]``;
            default 1, and 1 / the mean of the column.
        tol: the fit has converged once a sweep raises the ELBO by no more than this share of it.
        max_iter: the largest number of sweeps of each start.
        n_init: the number of starts, at clusters of the square roots by k-means; that with the highest ELBO is kept.
        random_state: a seed, a NumPy state, or None for NumPy's global one: for the starts, and for :meth:`sample`.

    Attributes (after a fit):
        startprob_, transmat_, lambdas_: posterior means, ``[K]``, ``[K, K]`` (from row to column) and ``[K, D]``.
        startprob_posterior_, transmat_posterior_: Dirichlet concentrations of q, ``[K]`` and ``[K, K]``.
        lambdas_posterior_, lambdas_weight_posterior_: concentrations and rates of the Gammas of q, ``[K, D]``.
        lower_bound_, lower_bounds_, n_iter_, converged_, guide_, model_args_, model_kwargs_, n_features_in_,
            feature_names_in_: as of :class:`.HiddenMarkovModel`.

    Source: MacKay 1997, "Ensemble learning for hidden Markov models"; Rabiner 1989.
    """

    _model = hidden_markov.poisson_model

    lambdas_: Array

    def __init__(
        self,
        n_components: int = 1,
        *,
        startprob_prior: Any = None,
        transmat_prior: Any = None,
        lambdas_prior: Any = None,
        lambdas_weight: Any = None,
        tol: float = 1e-8,
        max_iter: int = 1000,
        n_init: int = 1,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.startprob_prior = startprob_prior
        self.transmat_prior = transmat_prior
        self.lambdas_prior = lambdas_prior
        self.lambdas_weight = lambdas_weight
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.random_state = random_state

    def _rows(self, X: Any, reset: bool = False) -> Tensor:
        data = self._read(X, reset=reset, ensure_min_samples=2 if reset else 1).double()
        check_counts(data)
        return data

    def _prior(self, data: Tensor) -> tuple[ChainFactors, dict[str, Any]]:
        names = ("lambdas_prior", "lambdas_weight")
        given = tensors_of({name: getattr(self, name) for name in names}, data.dtype)
        concentration, weight = rate_priors(data[None], self.n_components, None, **given)
        size = self.n_components, data.shape[1]
        emission = PoissonEmission(concentration.expand(size), weight.expand(size))
        return self._chain_prior(emission), dict(zip(names, (concentration, weight), strict=True))

    def _first_states(self, data: Tensor, generator: torch.Generator) -> Array:
        found: Array = gmm.initial_responsibilities(data.sqrt(), self.n_components, generator=generator).numpy()
        return found

    def _set_emission(self, emission: PoissonEmission) -> None:
        self.lambdas_ = emission.gamma.mean.numpy()
        self.lambdas_posterior_, self.lambdas_weight_posterior_ = emission.concentration.numpy(), emission.rate.numpy()

    def _start_of(self, emission: PoissonEmission) -> dict[Any, Any]:
        return {"rate": emission.gamma.to_event(1)}

    def _log_density(self, data: Tensor) -> Array:
        rates = torch.from_numpy(self.lambdas_)
        found: Array = dist.Poisson(rates).log_prob(data.unsqueeze(1)).sum(-1).numpy()
        return found

    def _emitted(self, states: Array, rng: np.random.RandomState) -> Array:
        return rng.poisson(self.lambdas_[states])


class CategoricalHMM(Chain):
    """States along sequences of symbols, by a Bayesian hidden Markov model with Categorical emissions.

    The model is :func:`pyro_latent.models.hidden_markov.categorical_model`; q is q(states) q(initial) q(transition)
    Π_k q(emission_k), where the states of a sequence are one factor. It is fitted as :class:`.HiddenMarkovModel` is.
    The posterior is that of hmmlearn's ``VariationalCategoricalHMM``.

    Args:
        n_components: K, the number of states.
        startprob_prior, transmat_prior: Dirichlet concentrations of the first state, and of the state after each; a
            number or ``[K]``; default 1 / K.
        emissionprob_prior: Dirichlet concentration of the symbols, a number or ``[M]``; default 1 / M.
        n_features: M, the number of symbols that there are; default one more than the largest of the fit.
        tol: the fit has converged once a sweep raises the ELBO by no more than this share of it.
        max_iter: the largest number of sweeps of each start.
        n_init: the number of starts, of random probabilities of symbols; the one with the highest ELBO is kept. They
            end in different places, so that several are worth their time.
        random_state: a seed, a NumPy state, or None for NumPy's global one: for the starts, and for :meth:`sample`.

    Attributes (after a fit):
        startprob_, transmat_, emissionprob_: posterior means, ``[K]``, ``[K, K]`` (from row to column), ``[K, M]``.
        startprob_posterior_, transmat_posterior_, emissionprob_posterior_: Dirichlet concentrations of q, of the same
            shapes.
        lower_bound_, lower_bounds_, n_iter_, converged_, guide_, model_args_, model_kwargs_, n_features_in_,
            feature_names_in_: as of :class:`.HiddenMarkovModel`.

    The data are one column of integers from 0 to M - 1, ``[N, 1]``.

    Source: MacKay 1997, "Ensemble learning for hidden Markov models", §4; Rabiner 1989.
    """

    _model = hidden_markov.categorical_model

    emissionprob_: Array

    def __init__(
        self,
        n_components: int = 1,
        *,
        startprob_prior: Any = None,
        transmat_prior: Any = None,
        emissionprob_prior: Any = None,
        n_features: int | None = None,
        tol: float = 1e-8,
        max_iter: int = 1000,
        n_init: int = 1,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.startprob_prior = startprob_prior
        self.transmat_prior = transmat_prior
        self.emissionprob_prior = emissionprob_prior
        self.n_features = n_features
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.random_state = random_state

    def _check(self) -> None:
        super()._check()
        if self.n_features is not None:
            check_count("n_features", self.n_features)

    def _rows(self, X: Any, reset: bool = False) -> Tensor:
        if not reset:
            check_is_fitted(self)
        rows = validate_data(self, X, reset=reset, ensure_min_samples=2 if reset else 1)
        if rows.shape[1] != 1 or not (rows == np.floor(rows)).all():
            raise DataError(
                f"Expected symbols, one column of integers; got {rows.shape[1]} columns of {rows.dtype}. Number them "
                "from 0, and write symbols.reshape(-1, 1)."
            )
        symbols = torch.from_numpy(rows[:, 0].astype(np.int64))
        size = self.n_features if reset else self.emissionprob_.shape[1]
        check_symbols(symbols, int(symbols.max()) + 1 if size is None else size)
        return symbols

    def _size(self, data: Tensor) -> int:
        """M."""
        return int(data.max()) + 1 if self.n_features is None else self.n_features

    def _prior(self, data: Tensor) -> tuple[ChainFactors, dict[str, Any]]:
        prior = self._concentration("emissionprob_prior", self._size(data))
        emission = CategoricalEmission(prior.expand(self.n_components, -1))
        return self._chain_prior(emission), {"emissionprob_prior": prior}

    def _model_args(self, sequences: Tensor) -> tuple[Any, ...]:
        return sequences, self.n_components, self._size(sequences)

    def _first_states(self, data: Tensor, generator: torch.Generator) -> Array:
        draws = torch.rand(self._size(data), self.n_components, generator=generator, dtype=torch.float64)
        weights = -draws.log()  # the rows of a flat Dirichlet, up to their sums
        found: Array = (weights / weights.sum(-1, keepdim=True))[data].numpy()
        return found

    def _set_emission(self, emission: CategoricalEmission) -> None:
        self.emissionprob_ = emission.dirichlet.mean.numpy()
        self.emissionprob_posterior_ = emission.concentration.numpy()

    def _start_of(self, emission: CategoricalEmission) -> dict[Any, Any]:
        return {"emission": emission.dirichlet}

    def _log_density(self, data: Tensor) -> Array:
        found: Array = np.log(self.emissionprob_).T[data.numpy()]
        return found

    def _emitted(self, states: Array, rng: np.random.RandomState) -> Array:
        cumulative = self.emissionprob_.cumsum(1)[states]
        found: Array = (rng.random_sample((len(states), 1)) * cumulative[:, -1:] > cumulative).sum(1, keepdims=True)
        return found
