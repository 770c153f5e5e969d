"""A guide of LDA with every factor of coordinate ascent, q(beta) q(theta) q(z), for ``SVI`` on the model with ``z``."""

from __future__ import annotations

import functools
from typing import Any

import pyro
import pyro.distributions as dist
from torch.distributions import constraints

from pyro_latent.errors import DataError

from .collapsed import collapsed_topics
from .corpus import Corpus
from .model import Prior, complete_priors, counted, guide, tokens
from .updates import update_beta, update_theta_to_convergence, update_z

__all__ = ["full_guide"]

#: No probability starts nearer to zero, where the simplex has no coordinates.
_LEAST = 1e-6
_SWEEPS = 10


def full_guide(
    corpus: Corpus, num_topics: int, *, doc_topic_prior: Prior = None, topic_word_prior: Prior = None
) -> None:
    """Mean-field guide q(beta) q(theta) q(z), for ``SVI`` on the model with ``z``.

    It is :func:`~pyro_latent.models.lda.guide` with one more parameter, ``topic_probs`` φ, shape ``[entries, K]``.
    ``TraceEnum_ELBO`` enumerates the topics of entries; ``Trace_ELBO`` and ``TraceGraph_ELBO`` draw them, and take
    their gradient by the score function, too noisy to find topics from scratch. So they start at ten
    sweeps of the closed-form updates from the topics of CVB0, which are drawn from torch's random state.

    Args:
        corpus: the documents, all of them.
        num_topics: K.
        doc_topic_prior, topic_word_prior: the model's.

    Raises:
        DataError: if ``corpus`` is a minibatch, whose entries have no rows of their own in φ.

    Source: [4] (109), (113), (117).
    """
    priors = {"doc_topic_prior": doc_topic_prior, "topic_word_prior": topic_word_prior}
    alpha, xi = complete_priors(corpus, num_topics, **priors)
    if not corpus.is_whole:
        raise DataError(
            "Expected the whole corpus, of which each entry has its q(z); got a minibatch. Write lda.guide, with "
            "marginal=True for the model."
        )

    @functools.cache
    def start() -> dict[str, Any]:
        beta = dist.Dirichlet(collapsed_topics(corpus, alpha, xi))
        q: dict[str, Any] = {"beta": beta, "theta": dist.Dirichlet(alpha.expand(corpus.num_documents, -1) + 1)}
        for _ in range(_SWEEPS):
            for site, update in {"theta": update_theta_to_convergence, "z": update_z, "beta": update_beta}.items():
                q[site] = update(q, corpus, num_topics, **priors)
        return q

    pyro.param("topic_word", lambda: start()["beta"].concentration, constraint=constraints.positive)
    pyro.param("doc_topic", lambda: start()["theta"].concentration, constraint=constraints.positive)
    probs = pyro.param(
        "topic_probs",
        lambda: start()["z"].probs.clamp(min=_LEAST),
        constraint=constraints.simplex,
    )
    guide(corpus, num_topics, **priors)
    with tokens(corpus), counted(corpus):
        pyro.sample("z", dist.Categorical(probs), infer={"enumerate": "parallel"})
