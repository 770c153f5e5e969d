"""What hidden Markov models share: sequences become spans of rows; a chain is fitted by MacKay's updates, and read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import pyro.distributions as dist
import torch
from sklearn.base import DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_latent.errors import ArgumentError, DataError, ElboDecreaseError, check_choice, check_count, is_count
from pyro_latent.guide import AutoConjugate
from pyro_latent.models import hidden_markov
from pyro_latent.models.hidden_markov.chain import concentrations

from .base import Array, Estimator, generator_of
from .chain_factors import ChainFactors

__all__ = ["Chain"]


class Chain(DensityMixin, Estimator):
    """A hidden Markov model with scikit-learn's face; its factors are found by hand-written updates.

    One of these names its ``_model`` and ``_blocks``, reads data by ``_rows``, and says which prior it has, where a
    start is, and what states emit at the posterior means.
    """

    _model: ClassVar[Callable[..., None]]
    _blocks: ClassVar[Sequence[Sequence[str]]] = ()

    startprob_: Array
    transmat_: Array

    n_components: int
    startprob_prior: Any
    transmat_prior: Any
    n_init: int
    random_state: Any

    @abstractmethod
    def _rows(self, X: Any, reset: bool = False) -> Tensor:
        """The data as a tensor ``[N, ...]``."""

    @abstractmethod
    def _prior(self, data: Tensor) -> tuple[ChainFactors, dict[str, Any]]:
        """The priors as distributions, and those of the emissions as arguments of the model."""

    @abstractmethod
    def _first_states(self, data: Tensor, generator: torch.Generator) -> Array:
        """Responsibilities ``[N, K]`` to start from."""

    @abstractmethod
    def _set_emission(self, emission: Any) -> None:
        """Read what the states emit."""

    @abstractmethod
    def _start_of(self, emission: Any) -> dict[Any, Any]:
        """The factors of the emissions, by the model's sites."""

    @abstractmethod
    def _log_density(self, data: Tensor) -> Array:
        """The log density of data in each state at the posterior means, ``[N, K]``."""

    @abstractmethod
    def _emitted(self, states: Array, rng: np.random.RandomState) -> Array:
        """Draw what states emit at the posterior means."""

    def _model_args(self, sequences: Tensor) -> tuple[Any, ...]:
        return sequences, self.n_components

    # Fitting.

    def fit(self, X: Any, y: Any = None, lengths: Any = None) -> Self:
        """Fit the states to sequences.

        Args:
            X: the rows of all sequences one after another, ``[N, D]`` with N >= 2, all finite.
            y: ignored.
            lengths: how many rows each sequence has; default one sequence. Write its name: ``fit(X, lengths=...)``.

        Raises:
            ValueError: if a parameter or the data is not as said; NaN among it.
        """
        self._check()
        data = self._rows(X, reset=True)
        spans = _spans(lengths, data, y)
        prior, arguments = self._prior(data)
        generator = generator_of(self.random_state)
        starts = (self._first_states(data, generator) for _ in range(self.n_init))
        found = [self._climb(data, spans, prior, start) for start in starts]
        self._factors, self.lower_bounds_, self.converged_ = max(found, key=lambda run: run[1][-1])
        self.lower_bound_, self.n_iter_ = self.lower_bounds_[-1], len(self.lower_bounds_)
        self._keep_arguments(data, spans, prior, arguments)
        self._set_attributes()
        self._warn_if_cut_short()
        return self

    def _check(self) -> None:
        self._check_fit()
        check_count("n_components", self.n_components)
        check_count("n_init", self.n_init)

    def _chain_prior(self, emission: Any) -> ChainFactors:
        """The priors, those of the chain and one of the emissions."""
        start, move = (self._concentration(name, self.n_components) for name in ("startprob_prior", "transmat_prior"))
        count = self.n_components
        return ChainFactors(dist.Dirichlet(start), dist.Dirichlet(move.expand(count, count)), emission)

    def _concentration(self, name: str, count: int) -> Tensor:
        """A prior of probabilities, ``[count]``."""
        return concentrations(name, getattr(self, name), count, torch.zeros((), dtype=self._dtype()))

    def _climb(
        self, data: Tensor, spans: list[slice], prior: ChainFactors, states: Array
    ) -> tuple[ChainFactors, list[float], bool]:
        """Coordinate ascent from states: the factors of q, the ELBO after each sweep, and whether it has settled."""
        pairs = sum(states[span][:-1].T @ states[span][1:] for span in spans)
        elbos: list[float] = []
        for _ in range(self.max_iter):
            q = prior.after(data, spans, states, pairs)
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

    def _keep_arguments(self, data: Tensor, spans: list[slice], prior: ChainFactors, arguments: dict[str, Any]) -> None:
        """The arguments of the Pyro model; the guide of an earlier fit is forgotten."""
        self.__dict__.pop("guide_", None)
        sizes = [span.stop - span.start for span in spans]
        sequences = data.new_zeros(len(spans), max(sizes), *data.shape[1:])
        for number, span in enumerate(spans):
            sequences[number, : sizes[number]] = data[span]
        self.model_args_ = self._model_args(sequences)
        self.model_kwargs_ = arguments | {
            "lengths": torch.tensor(sizes) if min(sizes) < max(sizes) else None,
            "startprob_prior": prior.initial.concentration,
            "transmat_prior": prior.transition.concentration[0],
        }

    def _set_attributes(self) -> None:
        initial, transition, emission = self._factors
        self.startprob_, self.transmat_ = initial.mean.numpy(), transition.mean.numpy()
        self.startprob_posterior_ = initial.concentration.numpy()
        self.transmat_posterior_ = transition.concentration.numpy()
        self._set_emission(emission)

    def _dtype(self) -> torch.dtype:
        return torch.float64

    @cached_property
    def guide_(self) -> AutoConjugate:  # type: ignore[override]
        """An AutoConjugate guide of the Pyro model whose factors are these; the model's loop is recorded.

        Raises:
            ModelError: if this estimator was unpickled, for the data of the fit is no part of a pickle.
        """
        self._check_has_data("Call fit.")
        initial, transition, emission = self._factors
        start = {"initial": initial, "transition": transition, **self._start_of(emission)}
        guide = AutoConjugate(type(self)._model, blocks=self._blocks or None, init=start)
        guide.posterior_state.commit(guide.prepare(self.model_args_, self.model_kwargs_))
        return guide

    # What was found.

    def predict_proba(self, X: Any, lengths: Any = None) -> Array:
        """The probabilities of the states at each row given all of its sequence, ``[N, K]``, under q."""
        data = self._rows(X)
        smoothed = _smooth_all(_spans(lengths, data), self._factors.log_factors(data))
        return np.concatenate([s.states for s in smoothed])

    def decode(self, X: Any, lengths: Any = None, algorithm: str = "viterbi") -> tuple[float, Array]:
        """The states of sequences.

        Args:
            X: the rows of all sequences one after another, ``[N, D]``.
            lengths: how many rows each sequence has; default one sequence.
            algorithm: ``"viterbi"``: the most probable paths under q; ``"map"``: the most probable states one by one.

        Returns:
            The expected log density of the rows along these states, in nats, and the states, ``[N]``.
        """
        check_choice("algorithm", algorithm, ["viterbi", "map"])
        data = self._rows(X)
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
            X: the rows of all sequences one after another, ``[N, D]``.
            y: ignored.
            lengths: how many rows each sequence has; default one sequence. Write its name, ``lengths=...``.
        """
        data = self._rows(X)
        spans = _spans(lengths, data, y)
        with np.errstate(divide="ignore"):
            factors = np.log(self.startprob_), np.log(self.transmat_), self._log_density(data)
        return sum(s.log_normalizer for s in _smooth_all(spans, factors))

    def sample(self, n_samples: int = 1) -> tuple[Array, Array]:
        """Draw one sequence at the posterior means of the parameters: rows ``[n_samples, D]`` and their states."""
        check_is_fitted(self)
        count, rng = check_count("n_samples", n_samples), check_random_state(self.random_state)
        states = np.empty(count, dtype=np.int64)
        for t in range(count):
            states[t] = rng.choice(len(self.startprob_), p=self.transmat_[states[t - 1]] if t else self.startprob_)
        return self._emitted(states, rng), states


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
