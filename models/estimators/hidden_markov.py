"""``HiddenMarkovModel``: states along sequences, with the names of hmmlearn's ``VariationalGaussianHMM``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyro.distributions as dist
import torch
from sklearn.base import DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_latent.errors import (
    ArgumentError,
    DataError,
    ElboDecreaseError,
    check_choice,
    check_count,
    is_count,
)
from pyro_latent.guide import AutoConjugate
from pyro_latent.models import gmm, hidden_markov
from pyro_latent.models.gmm.moments import matrices_of, moments_of
from pyro_latent.models.gmm.predictive import prior_block
from pyro_latent.models.gmm.priors import Priors, complete_priors

from .base import COVARIANCES, Array, Estimator, generator_of, tensors_of
from .chain_factors import ChainFactors

__all__ = ["HiddenMarkovModel"]

#: What the mixture calls the priors of the emissions, and what they are called here.
_PRIORS = {
    "mean_prior": "means_prior",
    "mean_precision_prior": "beta_prior",
    "degrees_of_freedom_prior": "dof_prior",
    "covariance_prior": "scale_prior",
}


class HiddenMarkovModel(DensityMixin, Estimator):
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

    startprob_: Array
    transmat_: Array
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

    # Fitting.

    def fit(self, X: Any, y: Any = None, lengths: Any = None) -> Self:
        """Fit the states to sequences.

        Args:
            X: the vectors of all sequences one after another, ``[N, D]`` with N >= 2, all finite.
            y: ignored.
            lengths: how many vectors each sequence has; default one sequence. Write its name: ``fit(X, lengths=...)``.

        Raises:
            ValueError: if a parameter or the data is not as said; NaN among it, and a column without spread.
        """
        self._check()
        data = self._read(X, reset=True, ensure_min_samples=2).double()
        spans = _spans(lengths, data, y)
        priors, prior = self._priors(data)
        generator, found = generator_of(self.random_state), []
        for _ in range(self.n_init):
            start = gmm.initial_responsibilities(data, self.n_components, generator=generator).numpy()
            found.append(self._climb(data, spans, priors, prior, start))
        self._factors, self.lower_bounds_, self.converged_ = max(found, key=lambda run: run[1][-1])
        self.lower_bound_, self.n_iter_ = self.lower_bounds_[-1], len(self.lower_bounds_)
        self._keep_arguments(data, spans, priors, prior)
        self._set_attributes()
        self._warn_if_cut_short()
        return self

    def _check(self) -> None:
        self._check_fit()
        check_count("n_components", self.n_components)
        check_count("n_init", self.n_init)
        check_choice("covariance_type", self.covariance_type, list(COVARIANCES))

    def _priors(self, data: Tensor) -> tuple[Priors, ChainFactors]:
        """The priors' parameters, and as distributions."""
        covariance, count = COVARIANCES[self.covariance_type], self.n_components
        given = tensors_of({theirs: getattr(self, ours) for theirs, ours in _PRIORS.items()}, data.dtype)
        try:
            priors = complete_priors(data, count, covariance, **given)
        except (ArgumentError, DataError) as error:
            raise type(error)(_in_own_words(str(error))) from None
        start, move = (self._concentration(name) for name in ("startprob_prior", "transmat_prior"))
        return priors, ChainFactors(
            dist.Dirichlet(start), dist.Dirichlet(move.expand(count, count)), prior_block(priors, covariance)
        )

    def _concentration(self, name: str) -> Tensor:
        """A prior of probabilities, ``[K]``."""
        given, count = getattr(self, name), self.n_components
        value = np.asarray(1 / count if given is None else given, dtype=float)
        if value.shape not in ((), (count,)) or not (np.isfinite(value) & (value > 0)).all():
            raise ArgumentError(
                f"Expected {name} to be a positive number, or {count} of them; got {given!r}. Leave it out for 1 / K."
            )
        return torch.from_numpy(np.broadcast_to(value, count).copy())

    def _climb(
        self, data: Tensor, spans: list[slice], priors: Priors, prior: ChainFactors, states: Array
    ) -> tuple[ChainFactors, list[float], bool]:
        """Coordinate ascent from states: the factors of q, the ELBO after each sweep, and whether it has settled."""
        pairs = sum(states[span][:-1].T @ states[span][1:] for span in spans)
        elbos: list[float] = []
        for _ in range(self.max_iter):
            q = self._updated(data, spans, priors, prior, states, pairs)
            smoothed = _smooth_all(spans, q.log_factors(data))
            elbo = sum(s.log_normalizer for s in smoothed) - q.divergence_from(prior)
            elbos.append(elbo)
            rise, scale = elbo - elbos[-2] if len(elbos) > 1 else np.inf, max(1.0, abs(elbo))
            if rise < -1e-9 * scale:
                raise ElboDecreaseError(
                    f"Expected the ELBO not to fall; got {elbo} after {elbos[-2]}. Divide the data by their scale."
                )
            if rise <= self.tol * scale:
                return q, elbos, True
            states, pairs = np.concatenate([s.states for s in smoothed]), sum(s.pairs for s in smoothed)
        return q, elbos, False

    def _updated(
        self, data: Tensor, spans: list[slice], priors: Priors, prior: ChainFactors, states: Array, pairs: Any
    ) -> ChainFactors:
        """The updates of the factors of q that are not of the states."""
        first = states[[span.start for span in spans]].sum(0)
        emission = gmm.update_mean_precision(
            {"component": dist.Categorical(probs=torch.from_numpy(states))},
            data,
            self.n_components,
            covariance=COVARIANCES[self.covariance_type],
            **priors.arguments(),
        )
        return ChainFactors(
            dist.Dirichlet(prior.initial.concentration + torch.from_numpy(first)),
            dist.Dirichlet(prior.transition.concentration + torch.as_tensor(pairs)),
            emission,
        )

    def _keep_arguments(self, data: Tensor, spans: list[slice], priors: Priors, prior: ChainFactors) -> None:
        """The arguments of the Pyro model; the guide of an earlier fit is forgotten."""
        self.__dict__.pop("guide_", None)
        sizes = [span.stop - span.start for span in spans]
        sequences = data.new_zeros(len(spans), max(sizes), data.shape[1])
        for number, span in enumerate(spans):
            sequences[number, : sizes[number]] = data[span]
        values = priors.arguments()
        del values["weight_concentration_prior"]
        self.model_args_ = sequences, self.n_components
        self.model_kwargs_ = values | {
            "covariance": COVARIANCES[self.covariance_type],
            "lengths": torch.tensor(sizes) if min(sizes) < max(sizes) else None,
            "startprob_prior": prior.initial.concentration,
            "transmat_prior": prior.transition.concentration[0],
        }

    def _set_attributes(self) -> None:
        initial, transition, block = self._factors
        self.startprob_, self.transmat_ = initial.mean.numpy(), transition.mean.numpy()
        self.startprob_posterior_ = initial.concentration.numpy()
        self.transmat_posterior_ = transition.concentration.numpy()
        self.means_ = self.means_posterior_ = block.loc.numpy()
        found = moments_of(block)
        self.beta_posterior_, self.dof_posterior_ = found.mean_precision.numpy(), found.degrees_of_freedom.numpy()
        dof = found.degrees_of_freedom.reshape(-1, *[1] * (found.covariance.ndim - 1))
        self.scale_posterior_ = (dof * found.covariance).reshape(found.covariance.shape).numpy()
        self.covars_ = matrices_of(block, found).numpy()

    def _dtype(self) -> torch.dtype:
        return torch.float64

    @cached_property
    def guide_(self) -> AutoConjugate:  # type: ignore[override]
        """An AutoConjugate guide of ``hidden_markov.model`` whose factors are these; the model's loop is recorded.

        Raises:
            ModelError: if this estimator was unpickled, for the data of the fit is no part of a pickle.
        """
        self._check_has_data("Call fit.")
        initial, transition, emission = self._factors
        start = {"initial": initial, "transition": transition, ("mean", "precision"): emission}
        guide = AutoConjugate(hidden_markov.model, blocks=[("mean", "precision")], init=start)
        guide.posterior_state.commit(guide.prepare(self.model_args_, self.model_kwargs_))
        return guide

    # What was found.

    def predict_proba(self, X: Any, lengths: Any = None) -> Array:
        """The probabilities of the states at each vector given all of its sequence, ``[N, K]``, under q."""
        data = self._read(X)
        smoothed = _smooth_all(_spans(lengths, data), self._factors.log_factors(data))
        return np.concatenate([s.states for s in smoothed])

    def decode(self, X: Any, lengths: Any = None, algorithm: str = "viterbi") -> tuple[float, Array]:
        """The states of sequences.

        Args:
            X: the vectors of all sequences one after another, ``[N, D]``.
            lengths: how many vectors each sequence has; default one sequence.
            algorithm: ``"viterbi"``: the most probable paths under q; ``"map"``: the most probable states one by one.

        Returns:
            The expected log density of the vectors along these states, in nats, and the states, ``[N]``.
        """
        check_choice("algorithm", algorithm, ["viterbi", "map"])
        data = self._read(X)
        spans, factors = _spans(lengths, data), self._factors.log_factors(data)
        if algorithm == "map":
            paths = [s.states.argmax(1) for s in _smooth_all(spans, factors)]
        else:
            paths = [hidden_markov.best_path(*factors[:2], factors[2][span])[1] for span in spans]
        value = sum(_along(path, *factors[:2], factors[2][span]) for path, span in zip(paths, spans, strict=True))
        return float(value), np.concatenate(paths)

    def predict(self, X: Any, lengths: Any = None) -> Array:
        """The most probable paths of states, ``[N]``: those of :meth:`decode`."""
        return self.decode(X, lengths)[1]

    def score(self, X: Any, y: Any = None, lengths: Any = None) -> float:
        """The log density of sequences in nats, all of them together, at the posterior means of the parameters.

        Args:
            X: the vectors of all sequences one after another, ``[N, D]``.
            y: ignored.
            lengths: how many vectors each sequence has; default one sequence. Write its name, ``lengths=...``.
        """
        data = self._read(X)
        spans = _spans(lengths, data, y)
        means, covariances = torch.from_numpy(self.means_), torch.from_numpy(self.covars_)
        density = dist.MultivariateNormal(means, covariances).log_prob(data.unsqueeze(1)).numpy()
        with np.errstate(divide="ignore"):
            factors = np.log(self.startprob_), np.log(self.transmat_), density
        return sum(s.log_normalizer for s in _smooth_all(spans, factors))

    def sample(self, n_samples: int = 1) -> tuple[Array, Array]:
        """Draw one sequence at the posterior means of the parameters: vectors ``[n_samples, D]`` and their states."""
        check_is_fitted(self)
        count, rng = check_count("n_samples", n_samples), check_random_state(self.random_state)
        states = np.empty(count, dtype=np.int64)
        for t in range(count):
            states[t] = rng.choice(len(self.startprob_), p=self.transmat_[states[t - 1]] if t else self.startprob_)
        noise = rng.standard_normal((count, self.means_.shape[1], 1))
        roots = np.linalg.cholesky(self.covars_)
        return self.means_[states] + (roots[states] @ noise)[..., 0], states


def _in_own_words(message: str) -> str:
    """A message of the mixture about its priors, with the names that they have here."""
    for theirs, ours in _PRIORS.items():
        message = message.replace(theirs, ours)
    return message


def _smooth_all(spans: Iterable[slice], factors: tuple[Array, Array, Array]) -> list[hidden_markov.Smoothed]:
    """Each sequence smoothed."""
    initial, transition, emission = factors
    return [hidden_markov.smooth(initial, transition, emission[span]) for span in spans]


def _along(path: Array, initial: Array, transition: Array, emission: Array) -> float:
    """The log density of a sequence along a path of states."""
    moves = transition[path[:-1], path[1:]].sum()
    return float(initial[path[0]] + moves + emission[np.arange(len(path)), path].sum())


def _spans(lengths: Any, data: Tensor, y: Any = None) -> list[slice]:
    """Where each sequence is among the rows."""
    if y is not None and np.shape(y) != () and len(y) != len(data):
        raise ArgumentError(
            f"Expected y to be ignored, with {len(data)} values; got {len(y)}. For lengths write their name: "
            "fit(X, lengths=...)."
        )
    if lengths is None:
        return [slice(0, len(data))]
    sizes = np.atleast_1d(np.asarray(lengths)).tolist()
    if not all(map(is_count, sizes)) or sum(sizes) != len(data):
        raise DataError(
            f"Expected lengths to be positive integers that add up to the {len(data)} rows; got {lengths!r}. Give one "
            "for each sequence."
        )
    return list(_consecutive(sizes))


def _consecutive(sizes: Iterable[int]) -> Iterator[slice]:
    start = 0
    for size in sizes:
        yield slice(start, start + size)
        start += size
