"""Gaussian emissions: those of :mod:`~pyro_latent.models.gmm`, with its priors."""

from __future__ import annotations

from torch import Tensor

from pyro_latent.models.arguments import check_data
from pyro_latent.models.gmm.bayesian import guide_components
from pyro_latent.models.gmm.densities import normal_of_component, sample_components
from pyro_latent.models.gmm.priors import Covariance, Prior, complete_priors

from .chain import check_lengths, emit_along, guide_chain, sample_chain, within_lengths

__all__ = ["guide", "model"]


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
        covariance: ``"full"``, ``"tied"``, ``"diagonal"`` or ``"spherical"``.
        startprob_prior, transmat_prior: Dirichlet concentrations, scalar or ``[K]``; default 1 / K.
        mean_precision_prior, mean_prior, degrees_of_freedom_prior, covariance_prior: as in
            :func:`~pyro_latent.models.gmm.model`, by all vectors together.

    Raises:
        DataError: if ``sequences`` is not a floating ``[S, T, D]`` tensor, or ``lengths`` not as said.
        ValueError: if K, ``covariance`` or a prior is not as above.

    Source: Bishop 2006 (13.7)-(13.10).
    """
    check_data("sequences", sequences, "[S, T, D]", "Write sequence.unsqueeze(0) for one sequence.")
    check_lengths(lengths, sequences)
    priors = complete_priors(
        within_lengths(sequences, lengths),
        num_states,
        covariance,
        mean_precision_prior=mean_precision_prior,
        mean_prior=mean_prior,
        degrees_of_freedom_prior=degrees_of_freedom_prior,
        covariance_prior=covariance_prior,
    )
    initial, transition = sample_chain(num_states, startprob_prior, transmat_prior, sequences)
    mean, precision = sample_components(priors, covariance)
    emit_along(
        sequences, lengths, initial, transition, lambda state: normal_of_component(mean, precision, state, covariance)
    )


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
    check_lengths(lengths, sequences)
    guide_chain(sequences, num_states, startprob_prior, transmat_prior, sequences)
    guide_components(within_lengths(sequences, lengths), num_states, covariance=covariance, **priors)
