"""A Bayesian hidden Markov model with Gaussian emissions: sequences of vectors, of one length or of several.

    initial ~ Dirichlet(startprob_prior),  transition_k ~ Dirichlet(transmat_prior)
    precision_k ~ Wishart(v_0, W_0),  mean_k | precision_k ~ N(m_0, (k_0 precision_k)⁻¹)
    state_1 ~ Categorical(initial),  state_t | state_{t-1} ~ Categorical(transition[state_{t-1}])
    obs_t ~ N(mean_k, precision_k⁻¹) for k = state_t

The emissions are those of :mod:`~pyro_latent.models.gmm`, with its priors. (:mod:`~pyro_latent.models.hmm` is a chain
with parameters, for maximum likelihood.) The states of a sequence are one factor of q, and :func:`smooth` finds it by
the forward-backward recursions, in time that is linear in its length.

Source: MacKay 1997, "Ensemble learning for hidden Markov models"; Bishop 2006 §13.2, (13.34)-(13.43).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyro_latent.errors import DataError
from pyro_latent.models.arguments import Guided, check_data
from pyro_latent.models.gmm.bayesian import guide_components
from pyro_latent.models.gmm.densities import normal_of_component, sample_components
from pyro_latent.models.gmm.priors import Covariance, Prior, complete_priors
from pyro_latent.values import kind_of

__all__ = ["Smoothed", "best_path", "guide", "model", "smooth"]

Array = npt.NDArray[np.float64]


def model(
    sequences: Tensor,
    num_states: int,
    *,
    lengths: Tensor | None = None,
    covariance: Covariance = "full",
    startprob_prior: Prior = None,
    transmat_prior: Prior = None,
    mean_precision_prior: Prior = None,
    mean_prior: Tensor | None = None,
    degrees_of_freedom_prior: Prior = None,
    covariance_prior: Tensor | None = None,
) -> None:
    """Sites ``initial``, ``transition``, ``precision``, ``mean``, and ``state_t`` and ``obs_t`` for each t.

    ``initial`` has event shape ``[K]``; ``transition``, of event shape ``[K]``, is in plate ``states`` of size K; those
    of the emissions are in plate ``components``, as in :func:`~pyro_latent.models.gmm.model`; the others are in plate
    ``sequences`` of size S, masked after the end of a sequence.

    Args:
        sequences: shape ``[S, T, D]``, floating; its dtype and device are the model's.
        num_states: K, at least 1.
        lengths: how many vectors each sequence has, ``[S]``, integers from 1 to T; default all T. What lies beyond
            counts for nothing.
        covariance: ``"full"`` or ``"diagonal"``.
        startprob_prior, transmat_prior: Dirichlet concentrations, scalar or ``[K]``; default 1 / K.
        mean_precision_prior, mean_prior, degrees_of_freedom_prior, covariance_prior: as in
            :func:`~pyro_latent.models.gmm.model`, by all vectors together.

    Raises:
        DataError: if ``sequences`` is not a floating ``[S, T, D]`` tensor, or ``lengths`` not as said.
        ValueError: if K, ``covariance`` or a prior is not as above.

    Source: Bishop 2006 (13.7)-(13.10).
    """
    check_data("sequences", sequences, "[S, T, D]", "Write sequence.unsqueeze(0) for one sequence.")
    _check_lengths(lengths, sequences)
    count, steps, _ = sequences.shape
    priors = complete_priors(
        _vectors(sequences, lengths),
        num_states,
        covariance,
        mean_precision_prior=mean_precision_prior,
        mean_prior=mean_prior,
        degrees_of_freedom_prior=degrees_of_freedom_prior,
        covariance_prior=covariance_prior,
    )
    start, move = (_concentrations(prior, num_states, sequences) for prior in (startprob_prior, transmat_prior))
    initial = pyro.sample("initial", dist.Dirichlet(start))
    with pyro.plate("states", num_states):
        transition = pyro.sample("transition", dist.Dirichlet(move))
    mean, precision = sample_components(priors, covariance)
    state: Any = None
    ends: Any = lengths
    with pyro.plate("sequences", count):
        for t in pyro.markov(range(steps)):
            probs = initial if t == 0 else transition[state]
            with poutine.mask(mask=True if lengths is None else ends > t):
                with Guided("Write TraceEnum_ELBO."):
                    state = pyro.sample(f"state_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
                emitted = normal_of_component(mean, precision, state, covariance)
                pyro.sample(f"obs_{t}", emitted, obs=sequences[:, t])


def guide(
    sequences: Tensor,
    num_states: int,
    *,
    lengths: Tensor | None = None,
    covariance: Covariance = "full",
    startprob_prior: Prior = None,
    transmat_prior: Prior = None,
    **priors: Prior,
) -> None:
    """Guide q(initial) q(transition) q(mean, precision) for ``SVI`` with ``TraceEnum_ELBO``, which sums the states out.

    Parameters: ``initial_concentration`` ``[K]``, ``transition_concentration`` ``[K, K]``, which start at the prior and
    the vectors shared out evenly, and those of the emissions in :func:`~pyro_latent.models.gmm.guide`.

    Args:
        sequences, num_states, lengths, covariance: as in :func:`model`.
        startprob_prior, transmat_prior: the model's priors of the chain.
        **priors: those of the emissions.

    Raises:
        DataError, ValueError: as :func:`model` does.

    Source: MacKay 1997, §4.
    """
    check_data("sequences", sequences, "[S, T, D]", "Write sequence.unsqueeze(0) for one sequence.")
    _check_lengths(lengths, sequences)
    start, move = (_concentrations(prior, num_states, sequences) for prior in (startprob_prior, transmat_prior))
    count, steps, _ = sequences.shape
    rows = (move + count * (steps - 1) / num_states**2).expand(num_states, -1).clone()
    first = pyro.param("initial_concentration", start + count / num_states, constraint=constraints.positive)
    moves = pyro.param("transition_concentration", rows, constraint=constraints.positive)
    pyro.sample("initial", dist.Dirichlet(first))
    with pyro.plate("states", num_states):
        pyro.sample("transition", dist.Dirichlet(moves))
    guide_components(_vectors(sequences, lengths), num_states, covariance=covariance, **priors)


def _concentrations(prior: Prior, num_states: int, like: Tensor) -> Tensor:
    """Those of a Dirichlet over the states, ``[K]``."""
    return torch.as_tensor(1 / num_states if prior is None else prior).to(like).expand(num_states)


def _vectors(sequences: Tensor, lengths: Tensor | None) -> Tensor:
    """The vectors of all sequences that count, ``[N, D]``."""
    if lengths is None:
        return sequences.flatten(0, 1)
    return sequences[torch.arange(sequences.shape[1], device=sequences.device) < lengths.unsqueeze(-1)]


def _check_lengths(lengths: Tensor | None, sequences: Tensor) -> None:
    if lengths is None:
        return
    count, steps, _ = sequences.shape
    fits = isinstance(lengths, Tensor) and not lengths.is_floating_point() and lengths.shape == (count,)
    if not fits or not bool(((lengths >= 1) & (lengths <= steps)).all()):
        raise DataError(
            f"Expected lengths to be {count} integers from 1 to {steps}; got {kind_of(lengths)}. Write how many "
            "vectors of each sequence count."
        )


class Smoothed(NamedTuple):
    """What is known of the states of one sequence of T vectors.

    Attributes:
        log_normalizer: log Z, the log density of the sequence where the factors are its log probabilities.
        states: the probabilities of the states, ``[T, K]``.
        pairs: how often each state is expected to follow each, ``[K, K]``, from row to column.
    """

    log_normalizer: float
    states: Array
    pairs: Array


def smooth(log_initial: Array, log_transition: Array, log_emission: Array) -> Smoothed:
    """The forward-backward recursions for one sequence, in logarithms, which need not be normalized.

    Args:
        log_initial: ``[K]``.
        log_transition: ``[K, K]``, from row to column.
        log_emission: of each vector in each state, ``[T, K]``.

    Raises:
        DataError: if no path of states has a positive density.

    Source: Bishop 2006 (13.34)-(13.43), in logarithms.
    """
    transition, steps = np.exp(log_transition), len(log_emission)
    forward, backward = np.empty_like(log_emission), np.zeros_like(log_emission)
    with np.errstate(divide="ignore", invalid="ignore"):
        forward[0] = log_initial + log_emission[0]
        for t in range(1, steps):
            top = forward[t - 1].max()
            forward[t] = np.log(np.exp(forward[t - 1] - top) @ transition) + top + log_emission[t]
        for t in range(steps - 2, -1, -1):
            ahead = log_emission[t + 1] + backward[t + 1]
            top = ahead.max()
            backward[t] = np.log(transition @ np.exp(ahead - top)) + top
    top = forward[-1].max()
    with np.errstate(all="ignore"):
        log_normalizer = float(np.log(np.exp(forward[-1] - top).sum()) + top)
        states = np.exp(forward + backward - log_normalizer)
        ahead = log_emission[1:] + backward[1:]
        tops = ahead.max(1, keepdims=True)
        pairs = transition * (np.exp(forward[:-1] + tops - log_normalizer).T @ np.exp(ahead - tops))
    if not (np.isfinite(log_normalizer) and np.isfinite(pairs).all()):
        raise DataError(
            "Expected a sequence of positive density in the numbers of a float; got one whose log density is "
            f"{log_normalizer}. Divide the data by their scale, or give wider priors."
        )
    return Smoothed(log_normalizer, states, pairs)


def best_path(log_initial: Array, log_transition: Array, log_emission: Array) -> tuple[float, npt.NDArray[np.int64]]:
    """The path of states with the highest log density, and that density, by Viterbi's recursion.

    The arguments are those of :func:`smooth`.

    Source: Bishop 2006 (13.68).
    """
    steps, count = log_emission.shape
    best, came = log_initial + log_emission[0], np.zeros((steps, count), dtype=np.int64)
    for t in range(1, steps):
        reached = best[:, None] + log_transition
        came[t] = reached.argmax(0)
        best = reached[came[t], np.arange(count)] + log_emission[t]
    path = np.empty(steps, dtype=np.int64)
    path[-1] = best.argmax()
    for t in range(steps - 1, 0, -1):
        path[t - 1] = came[t, path[t]]
    return float(best.max()), path
