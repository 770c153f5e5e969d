"""The recursions along a chain: forward and backward for probabilities of states, Viterbi's for the best path.

Source: Bishop 2006 §13.2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_latent.errors import DataError

__all__ = ["Smoothed", "best_path", "smooth"]

Array = npt.NDArray[np.float64]


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
