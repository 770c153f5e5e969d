"""Emissions that are counts or symbols: Poisson with Gamma rates, Categorical with Dirichlet probabilities."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_latent.errors import DataError, check_count
from pyro_latent.models.arguments import check_data
from pyro_latent.models.gmm.densities import of_component
from pyro_latent.models.gmm.priors import Prior
from pyro_latent.values import kind_of

from .chain import (
    check_lengths,
    concentrations,
    emit_along,
    guide_chain,
    positive,
    sample_chain,
    within_lengths,
)

__all__ = ["categorical_guide", "categorical_model", "check_counts", "check_symbols", "poisson_guide", "poisson_model"]


# Counts.


def poisson_model(
    sequences: Tensor,
    num_states: int,
    *,
    lengths: Tensor | None = None,
    startprob_prior: Prior = None,
    transmat_prior: Prior = None,
    lambdas_prior: Prior = None,
    lambdas_weight: Prior = None,
) -> None:
    """Sites ``initial``, ``transition``, ``rate``, and ``state_t`` and ``obs_t`` for each t.

    They are those of :func:`~pyro_latent.models.hidden_markov.model`, with ``rate``, of event shape ``[D]`` in plate
    ``components``, in place of a mean and a precision.

    Args:
        sequences: counts, shape ``[S, T, D]``, floating; its dtype and device are the model's.
        num_states: K, at least 1.
        lengths: how many vectors each sequence has, ``[S]``, integers from 1 to T; default all T.
        startprob_prior, transmat_prior: Dirichlet concentrations, scalar or ``[K]``; default 1 / K.
        lambdas_prior: concentration of the Gamma prior of every rate, scalar or ``[D]``; default 1.
        lambdas_weight: its rate, in vectors, scalar or ``[D]``; default 1 / the mean of the column, so that the prior
            mean is that of the data.

    Raises:
        DataError: if ``sequences`` is not a floating ``[S, T, D]`` tensor of counts, ``lengths`` not as said, or a
            column has no positive count and ``lambdas_weight`` is not given.
        ValueError: if K or a prior is not as above.

    Source: Bishop 2006 (13.7)-(13.10); the conjugate prior (2.146).
    """
    concentration, weight = rate_priors(sequences, num_states, lengths, lambdas_prior, lambdas_weight)
    initial, transition = sample_chain(num_states, startprob_prior, transmat_prior, sequences)
    with pyro.plate("components", num_states):
        rate = pyro.sample("rate", dist.Gamma(concentration, weight).to_event(1))
    emit_along(
        sequences, lengths, initial, transition, lambda state: dist.Poisson(of_component(rate, state, 1)).to_event(1)
    )


def poisson_guide(
    sequences: Tensor,
    num_states: int,
    *,
    lengths: Tensor | None = None,
    startprob_prior: Prior = None,
    transmat_prior: Prior = None,
    lambdas_prior: Prior = None,
    lambdas_weight: Prior = None,
) -> None:
    """Guide q(initial) q(transition) q(rate) for ``SVI`` with ``TraceEnum_ELBO``, which sums the states out.

    Parameters: those of :func:`~pyro_latent.models.hidden_markov.guide` for the chain, and ``rate_concentration`` and
    ``rate_rate`` ``[K, D]``, which start at an even share of the vectors, with the mean of the data times numbers from
    1/2 to 2, one for each state, in a random order.

    The arguments and errors are those of :func:`poisson_model`.
    """
    concentration, weight = rate_priors(sequences, num_states, lengths, lambdas_prior, lambdas_weight)
    guide_chain(sequences, num_states, startprob_prior, transmat_prior, sequences)
    vectors = within_lengths(sequences, lengths)

    def first_rates() -> Tensor:
        levels = torch.linspace(-1, 1, num_states).exp2().to(sequences)[torch.randperm(num_states)]
        return weight + len(vectors) / num_states / levels.unsqueeze(-1)

    total = concentration + vectors.sum(0) / num_states
    wide = total.expand(num_states, -1).clone()
    shape = pyro.param("rate_concentration", wide, constraint=constraints.positive)
    speed = pyro.param("rate_rate", first_rates, constraint=constraints.positive)
    with pyro.plate("components", num_states):
        pyro.sample("rate", dist.Gamma(shape, speed).to_event(1))


def rate_priors(
    sequences: Tensor, num_states: int, lengths: Tensor | None, lambdas_prior: Any, lambdas_weight: Any
) -> tuple[Tensor, Tensor]:
    """The concentration and the rate of the Gamma priors, ``[D]``, after a check of all that is given."""
    check_data("sequences", sequences, "[S, T, D]", "Write sequence.unsqueeze(0) for one sequence.")
    check_count("num_states", num_states)
    check_lengths(lengths, sequences)
    vectors = within_lengths(sequences, lengths)
    check_counts(vectors)
    width = sequences.shape[-1]
    concentration = positive("lambdas_prior", 1.0 if lambdas_prior is None else lambdas_prior, width, sequences)
    mean = vectors.mean(0)
    if lambdas_weight is None and not bool((mean > 0).all()):
        raise DataError(
            "Expected a positive count in every column, for a prior by its mean; got a column of zeros. Drop it, or "
            "give lambdas_weight."
        )
    weight = positive("lambdas_weight", 1 / mean if lambdas_weight is None else lambdas_weight, width, sequences)
    return concentration, weight


def check_counts(vectors: Tensor) -> None:
    """The data are counts.

    Raises:
        DataError: if some are negative, no integers or not finite.
    """
    fits = vectors.isfinite() & (vectors >= 0) & (vectors == vectors.floor())
    if not bool(fits.all()):
        raise DataError(
            f"Expected counts, which are integers of at least 0; got {vectors[~fits][0].item():g} among the data. "
            "Write what was counted, or take the Gaussian model."
        )


# Symbols.


def categorical_model(
    sequences: Tensor,
    num_states: int,
    num_symbols: int,
    *,
    lengths: Tensor | None = None,
    startprob_prior: Prior = None,
    transmat_prior: Prior = None,
    emissionprob_prior: Prior = None,
) -> None:
    """Sites ``initial``, ``transition``, ``emission``, and ``state_t`` and ``obs_t`` for each t.

    They are those of :func:`~pyro_latent.models.hidden_markov.model`, with ``emission``, of event shape ``[M]`` in
    plate ``components``, in place of a mean and a precision.

    Args:
        sequences: symbols, shape ``[S, T]``, integers from 0 to M - 1; the model's dtype is that of ``startprob_prior``
            where it is a tensor, else torch's default one.
        num_states: K, at least 1.
        num_symbols: M, at least 1.
        lengths: how many symbols each sequence has, ``[S]``, integers from 1 to T; default all T.
        startprob_prior, transmat_prior: Dirichlet concentrations, scalar or ``[K]``; default 1 / K.
        emissionprob_prior: the same of the symbols, scalar or ``[M]``; default 1 / M.

    Raises:
        DataError: if ``sequences`` is not such an ``[S, T]`` tensor, or ``lengths`` not as said.
        ValueError: if K, M or a prior is not as above.

    Source: Bishop 2006 (13.7)-(13.10); MacKay 1997, §4.
    """
    like = _like(sequences, num_states, num_symbols, lengths, startprob_prior)
    prior = concentrations("emissionprob_prior", emissionprob_prior, num_symbols, like)
    initial, transition = sample_chain(num_states, startprob_prior, transmat_prior, like)
    with pyro.plate("components", num_states):
        emission = pyro.sample("emission", dist.Dirichlet(prior))
    emit_along(
        sequences, lengths, initial, transition, lambda state: dist.Categorical(of_component(emission, state, 1))
    )


def categorical_guide(
    sequences: Tensor,
    num_states: int,
    num_symbols: int,
    *,
    lengths: Tensor | None = None,
    startprob_prior: Prior = None,
    transmat_prior: Prior = None,
    emissionprob_prior: Prior = None,
) -> None:
    """Guide q(initial) q(transition) q(emission) for ``SVI`` with ``TraceEnum_ELBO``, which sums the states out.

    Parameters: those of :func:`~pyro_latent.models.hidden_markov.guide` for the chain, and ``emission_concentration``
    ``[K, M]``, which starts at the prior and what random shares of each symbol add to it.

    The arguments and errors are those of :func:`categorical_model`.
    """
    like = _like(sequences, num_states, num_symbols, lengths, startprob_prior)
    prior = concentrations("emissionprob_prior", emissionprob_prior, num_symbols, like)
    guide_chain(sequences, num_states, startprob_prior, transmat_prior, like)
    counts = torch.bincount(within_lengths(sequences, lengths), minlength=num_symbols).to(like)

    def first() -> Tensor:
        shares = dist.Dirichlet(torch.ones(num_symbols, num_states)).sample().to(like)
        return prior + counts * shares.mT

    concentration = pyro.param("emission_concentration", first, constraint=constraints.positive)
    with pyro.plate("components", num_states):
        pyro.sample("emission", dist.Dirichlet(concentration))


def _like(sequences: Any, num_states: int, num_symbols: int, lengths: Tensor | None, startprob_prior: Any) -> Tensor:
    """A tensor of the model's dtype and device, after a check of the data."""
    check_count("num_states", num_states)
    check_count("num_symbols", num_symbols)
    is_integer = isinstance(sequences, Tensor) and not (sequences.is_floating_point() or sequences.is_complex())
    if not is_integer or sequences.ndim != 2 or min(sequences.shape) < 1:
        raise DataError(
            f"Expected sequences to be an integer tensor of shape [S, T], S, T >= 1; got {kind_of(sequences)}. Write "
            "sequence.long().unsqueeze(0) for one sequence."
        )
    check_lengths(lengths, sequences)
    check_symbols(within_lengths(sequences, lengths), num_symbols)
    dtype = startprob_prior.dtype if isinstance(startprob_prior, Tensor) else torch.get_default_dtype()
    return torch.zeros((), dtype=dtype, device=sequences.device)


def check_symbols(symbols: Tensor, num_symbols: int) -> None:
    """The data are symbols.

    Raises:
        DataError: if some are outside of 0 to M - 1.
    """
    fits = (symbols >= 0) & (symbols < num_symbols)
    if not bool(fits.all()):
        raise DataError(
            f"Expected symbols from 0 to {num_symbols - 1}; got {symbols[~fits][0].item()}. Number them so, or give "
            "the number of all that there may be."
        )
