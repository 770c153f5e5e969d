"""The chain of states that the hidden Markov models share, and its factors in their guides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyro_latent.errors import ArgumentError, DataError, check_count
from pyro_latent.models.arguments import Guided
from pyro_latent.models.gmm.priors import Prior
from pyro_latent.values import as_tensor, kind_of

__all__ = ["check_lengths", "concentrations", "emit_along", "guide_chain", "positive", "sample_chain", "within_lengths"]


def sample_chain(num_states: int, startprob_prior: Prior, transmat_prior: Prior, like: Tensor) -> tuple[Tensor, Tensor]:
    """Sites ``initial`` and ``transition`` of a model, of the dtype and device of ``like``."""
    start, move = _chain_priors(num_states, startprob_prior, transmat_prior, like)
    initial = pyro.sample("initial", dist.Dirichlet(start))
    with pyro.plate("states", num_states):
        transition = pyro.sample("transition", dist.Dirichlet(move))
    return initial, transition


def emit_along(
    sequences: Tensor,
    lengths: Tensor | None,
    initial: Tensor,
    transition: Tensor,
    emission: Callable[[Tensor], dist.TorchDistribution],
) -> None:
    """Sites ``state_t`` and ``obs_t`` for each t; ``emission`` is the distribution of what given states emit."""
    state: Any = None
    ends: Any = lengths
    with pyro.plate("sequences", len(sequences)):
        for t in pyro.markov(range(sequences.shape[1])):
            probs = initial if t == 0 else transition[state]
            with poutine.mask(mask=True if lengths is None else ends > t):
                with Guided("Write TraceEnum_ELBO."):
                    state = pyro.sample(f"state_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
                pyro.sample(f"obs_{t}", emission(state), obs=sequences[:, t])


def guide_chain(
    sequences: Tensor, num_states: int, startprob_prior: Prior, transmat_prior: Prior, like: Tensor
) -> None:
    """The factors q(initial) q(transition) of a guide, which start at the prior and the states shared out evenly."""
    start, move = _chain_priors(num_states, startprob_prior, transmat_prior, like)
    count, steps = sequences.shape[:2]
    rows = (move + count * (steps - 1) / num_states**2).expand(num_states, -1).clone()
    first = pyro.param("initial_concentration", start + count / num_states, constraint=constraints.positive)
    moves = pyro.param("transition_concentration", rows, constraint=constraints.positive)
    pyro.sample("initial", dist.Dirichlet(first))
    with pyro.plate("states", num_states):
        pyro.sample("transition", dist.Dirichlet(moves))


def _chain_priors(
    num_states: int, startprob_prior: Prior, transmat_prior: Prior, like: Tensor
) -> tuple[Tensor, Tensor]:
    """The Dirichlet concentrations of the first state, and of the state after each, ``[K]``."""
    check_count("num_states", num_states)
    start = concentrations("startprob_prior", startprob_prior, num_states, like)
    return start, concentrations("transmat_prior", transmat_prior, num_states, like)


def concentrations(name: str, prior: Prior, size: int, like: Tensor) -> Tensor:
    """Those of a Dirichlet, ``[size]``; default 1 / size.

    Raises:
        ArgumentError: as :func:`positive` does.
    """
    return positive(name, 1 / size if prior is None else prior, size, like)


def positive(name: str, value: Any, size: int, like: Tensor) -> Tensor:
    """A prior of ``size`` positive numbers, ``[size]``, of the dtype and device of ``like``.

    Raises:
        ArgumentError: if it is neither one positive number nor such numbers.
    """
    tensor = as_tensor(value, like.dtype)
    if tensor is None or tensor.shape not in ((), (size,)) or not bool((tensor.isfinite() & (tensor > 0)).all()):
        got = kind_of(value) if tensor is None else tensor.tolist()
        raise ArgumentError(
            f"Expected {name} to be a positive number, or {size} of them; got {got}. Leave it out, say."
        )
    return tensor.to(like.device).expand(size)


def within_lengths(sequences: Tensor, lengths: Tensor | None) -> Tensor:
    """What counts of all sequences, ``[N, ...]``."""
    if lengths is None:
        return sequences.flatten(0, 1)
    return sequences[torch.arange(sequences.shape[1], device=sequences.device) < lengths.unsqueeze(-1)]


def check_lengths(lengths: Tensor | None, sequences: Tensor) -> None:
    """Lengths are integers, one for each sequence, and no longer than it.

    Raises:
        DataError: if they are not.
    """
    if lengths is None:
        return
    count, steps = sequences.shape[:2]
    fits = isinstance(lengths, Tensor) and not lengths.is_floating_point() and lengths.shape == (count,)
    if not fits or not bool(((lengths >= 1) & (lengths <= steps)).all()):
        raise DataError(
            f"Expected lengths to be {count} integers from 1 to {steps}; got {kind_of(lengths)}. Write how many "
            "steps of each sequence count."
        )
