"""A hidden Markov model with normal or categorical emissions, by maximum likelihood.

    state_1 ~ Categorical(initial),  state_t | state_{t-1} ~ Categorical(transition[state_{t-1}])
    x_t ~ N(loc_k, scale_k²)  or  x_t ~ Categorical(emission_k),  k = state_t

EM on it is Baum-Welch: the forward-backward pass is the E-step, expected counts the M-step.

Source: Rabiner 1989, §III; Bishop 2006 §13.2, (13.18)-(13.23), (13.62)-(13.66). The notes stop at independent data.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_latent.errors import DataError, check_count, checked_call

from .arguments import Guided

__all__ = ["guide", "log_likelihood", "model", "start"]


def model(sequences: Tensor, num_states: int, *, num_symbols: int | None = None, stickiness: float = 0.5) -> None:
    """Parameters ``initial``, ``transition`` and ``loc``, ``scale`` (or ``emission``); sites ``state_t`` and ``obs_t``.

    The sites are in plate ``sequences``; the states are enumerated in parallel along ``pyro.markov``. The starting
    values are those of :func:`start`.

    Args:
        sequences: ``[S, T]``: real values, or symbols 0 … V - 1 as integers where ``num_symbols`` is given.
        num_states: K, at least 1.
        num_symbols: V, for categorical emissions; None: normal ones.
        stickiness: the probability, at the start, to stay beyond what chance gives.

    Raises:
        DataError: if ``sequences`` is not ``[S, T]`` with S, T >= 1, or of the wrong kind of number.
        ValueError: if K is not a positive integer.

    Source: Bishop 2006 (13.7)-(13.10).
    """
    values = start(sequences, num_states, num_symbols=num_symbols, stickiness=stickiness)
    initial = pyro.param("initial", values["initial"], constraint=constraints.simplex)
    transition = pyro.param("transition", values["transition"], constraint=constraints.simplex)
    if num_symbols is None:
        loc = pyro.param("loc", values["loc"])
        scale = pyro.param("scale", values["scale"], constraint=constraints.positive)
    else:
        emission = pyro.param("emission", values["emission"], constraint=constraints.simplex)
    state: Any = None
    with pyro.plate("sequences", len(sequences)):
        for t in pyro.markov(range(sequences.shape[1])):
            probs = initial if t == 0 else transition[state]
            with Guided("Write TraceEnum_ELBO."):
                state = pyro.sample(f"state_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
            emitted = (
                dist.Normal(loc[state], scale[state]) if num_symbols is None else dist.Categorical(emission[state])
            )
            pyro.sample(f"obs_{t}", emitted, obs=sequences[:, t])


def guide(sequences: Tensor, num_states: int, *, num_symbols: int | None = None, stickiness: float = 0.5) -> None:
    """A guide without a site, for ``SVI`` with ``TraceEnum_ELBO``, which sums the states out: the bound is exact."""


@checked_call
def start(
    sequences: Tensor, num_states: int, *, num_symbols: int | None = None, stickiness: float = 0.5
) -> dict[str, Tensor]:
    """Where the parameters start: locations at quantiles of the data, emissions slightly apart; by the model's names.

    Returns:
        ``initial`` ``[K]``, ``transition`` ``[K, K]`` and ``loc``, ``scale`` ``[K]``, or ``emission`` ``[K, V]``.
    """
    _check(sequences, num_states, num_symbols)
    dtype = sequences.dtype if num_symbols is None else torch.float64
    uniform = torch.full((num_states, num_states), 1 / num_states, dtype=dtype, device=sequences.device)
    stay = torch.eye(num_states, dtype=dtype, device=sequences.device)
    found = {"initial": uniform[0], "transition": (1 - stickiness) * uniform + stickiness * stay}
    if num_symbols is None:
        levels = (torch.arange(num_states, dtype=dtype, device=sequences.device) + 0.5) / num_states
        return found | {
            "loc": sequences.flatten().quantile(levels),
            "scale": sequences.std().expand(num_states).clone(),
        }
    symbols = torch.arange(num_symbols, device=sequences.device)
    states = torch.arange(num_states, device=sequences.device)
    lifted = 1.0 + (symbols % num_states == states.unsqueeze(-1)).to(dtype)
    return found | {"emission": lifted / lifted.sum(-1, keepdim=True)}


@checked_call
def log_likelihood(sequences: Tensor, theta: dict[str, Tensor]) -> Tensor:
    """log p(sequences | θ), a scalar in nats, by the forward recursion; Bishop 2006 (13.34)-(13.36).

    Args:
        sequences: ``[S, T]``.
        theta: the parameters by the model's names.
    """
    if "loc" in theta:
        emitted = dist.Normal(theta["loc"], theta["scale"]).log_prob(sequences.unsqueeze(-1))
    else:
        emitted = theta["emission"].log()[:, sequences].movedim(0, -1)
    forward = theta["initial"].log() + emitted[:, 0]
    for t in range(1, sequences.shape[1]):
        forward = (forward.unsqueeze(-1) + theta["transition"].log()).logsumexp(-2) + emitted[:, t]
    return forward.logsumexp(-1).sum()


def _check(sequences: Tensor, num_states: int, num_symbols: int | None) -> None:
    if not isinstance(sequences, Tensor) or sequences.dim() != 2 or sequences.numel() == 0:
        found = list(sequences.shape) if isinstance(sequences, Tensor) else type(sequences).__name__
        raise DataError(
            f"Expected sequences of shape [S, T] with S, T >= 1; got {found}. Write sequence[None] for one."
        )
    if sequences.is_floating_point() != (num_symbols is None):
        raise DataError(
            "Expected real values for normal emissions, and integers with num_symbols for categorical ones; "
            f"got {sequences.dtype} with num_symbols={num_symbols}."
        )
    check_count("num_states", num_states)
