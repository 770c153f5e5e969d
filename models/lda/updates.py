"""The closed-form coordinate updates of LDA, as plain functions; they use nothing of the engine, and can judge it.

``updates`` goes to ``handlers.closed_form(lda.model, lda.updates)``. Each takes the current posteriors by site, ``q``,
and the model's own arguments (the documents, K, and the priors by their names), and returns its site's new posterior.
In the notes' words φ is q(z), γ is q(theta), λ is q(beta).

Source: [4] (110)-(118), or (131)-(139) by writing out the ELBO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent.errors import ModelError, checked_call
from pyro_latent.models.arguments import expected_log as expected_log_of
from pyro_latent.models.arguments import probabilities

from .corpus import Corpus
from .kernel import document_step
from .kernel.step import scaled_topics
from .model import Prior, complete_priors, with_an_entry

__all__ = [
    "expected_log",
    "fast_updates",
    "update_beta",
    "update_theta",
    "update_theta_to_convergence",
    "update_z",
    "updates",
]

#: A document has converged when its concentrations move by less than this on average, or after so many steps.
_TOLERANCE, _MOST_STEPS = 1e-4, 500


def update_z(q: Mapping[Any, Any], corpus: Corpus, num_topics: int, **priors: Any) -> dist.Categorical:
    """φ_nk ∝ exp(E log θ_dk + E log β_kw), for each entry n, of word w in document d; from q(theta) and q(beta).

    Returns:
        A Categorical of batch shape ``[entries]``, or ``[1]`` for a minibatch of empty documents, which counts nothing.

    Source: [4] (113), (139).
    """
    corpus = with_an_entry(corpus)
    theta, beta = expected_log_of(q["theta"]), expected_log_of(q["beta"])
    return dist.Categorical(probs=torch.softmax(theta[corpus.doc] + beta.mT[corpus.word], -1))


def update_theta(q: Mapping[Any, Any], corpus: Corpus, num_topics: int, **priors: Prior) -> dist.Dirichlet:
    """γ_dk = α_k + Σ_n φ_dnk, over the tokens of a document; from q(z).

    Returns:
        A Dirichlet of batch shape ``[D]`` and event shape ``[K]``.

    Source: [4] (117), (136).
    """
    alpha, _xi = complete_priors(corpus, num_topics, **priors)
    corpus = with_an_entry(corpus)
    share = corpus.count.unsqueeze(1) * probabilities(q["z"], num_topics, corpus.count)
    return dist.Dirichlet(alpha + share.new_zeros(corpus.num_documents, num_topics).index_add_(0, corpus.doc, share))


def update_beta(q: Mapping[Any, Any], corpus: Corpus, num_topics: int, **priors: Prior) -> dist.Dirichlet:
    """λ_kv = ξ_v + Σ_dn φ_dnk 1[w_dn = v], over all tokens, from q(z); those of a minibatch stand for the whole corpus.

    Returns:
        A Dirichlet of batch shape ``[K]`` and event shape ``[V]``.

    Source: [4] (118), (133).
    """
    _alpha, xi = complete_priors(corpus, num_topics, **priors)
    corpus = with_an_entry(corpus)
    share = corpus.count.unsqueeze(1) * probabilities(q["z"], num_topics, corpus.count) * corpus.upscaling
    return dist.Dirichlet(xi + share.new_zeros(corpus.num_words, num_topics).index_add_(0, corpus.word, share).mT)


@checked_call
def expected_log(concentration: Tensor) -> Tensor:
    """E log x of Dirichlets, ψ(a_k) − ψ(Σ a), over the last dimension; of the concentration's shape."""
    return torch.digamma(concentration) - torch.digamma(concentration.sum(-1, keepdim=True))


def update_theta_to_convergence(
    q: Mapping[Any, Any], corpus: Corpus, num_topics: int, **priors: Prior
) -> dist.Dirichlet:
    """γ and φ of each document in turn, (113) and (117), until γ stays: the whole document step by the fast kernel.

    It is as good as rounds of the two updates without end, and takes the place of up to a hundred of them:
    ``CAVI(model, guide, local_steps=2)`` then sweeps over documents at their optimum, with ``z`` derived. It reads
    q(beta), and q(theta), where it starts.

    Returns:
        A Dirichlet of batch shape ``[D]`` and event shape ``[K]``.

    Raises:
        ModelError: if all topics are equal, as they are at the prior, where a guide starts them. The updates of ``z``
            and ``theta`` by themselves start at random responsibilities, which this step does not read.

    Source: [4] (113), (117).
    """
    alpha, _xi = complete_priors(corpus, num_topics, **priors)
    start, beta = q["theta"].concentration, q["beta"]
    is_known = isinstance(beta, dist.Delta)
    topics = beta.v if is_known else beta.concentration
    if num_topics > 1 and len(corpus.doc) > 0 and bool((topics == topics[0]).all()):
        raise ModelError(
            f"Expected topics that differ; got {num_topics} equal ones, which would stay equal. Start them apart, "
            'with documents that have words: AutoConjugate(model, init={"beta": Dirichlet(topic_word)}), where '
            "topic_word [K, V] is drawn, or that of lda.collapsed_topics."
        )
    known = scaled_topics(topics.mT.log()) if is_known else topics
    step = document_step(
        corpus, known, alpha, start=start, tol=_TOLERANCE, max_steps=_MOST_STEPS, statistics=False, bound=False
    )
    return dist.Dirichlet(step.gamma)


updates: dict[str, Callable[..., Any]] = {"z": update_z, "theta": update_theta, "beta": update_beta}
"""The closed-form updates by site."""

fast_updates: dict[str, Callable[..., Any]] = {"theta": update_theta_to_convergence}
"""The document step by its kernel; the other sites by the engine."""
