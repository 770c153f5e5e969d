"""How good topics are: the ELBO and its seven terms, held-out prediction by document completion, and coherence.

Source: [4] (122)-(130) for the ELBO; Wallach et al. 2009, "Evaluation methods for topic models", for document
completion; Bouma 2009 and Lau, Newman and Baldwin 2014 for coherence by normalised pointwise mutual information.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from pyro_latent.errors import ArgumentError, DataError, checked_call

from .corpus import Corpus
from .kernel import ExpectedTopics, document_step
from .model import Prior, complete_priors
from .updates import expected_log

__all__ = [
    "Completion",
    "coherence_npmi",
    "dirichlet_bound",
    "document_completion",
    "elbo_terms",
    "split_tokens",
    "top_words",
]


@checked_call
def dirichlet_bound(concentration: Tensor, prior: Tensor) -> Tensor:
    """Σ over rows of E log p(x) − E log q(x), for q = Dirichlet(concentration) and p = Dirichlet(prior); in nats.

    It is minus the KL divergence: the part of the ELBO that belongs to the documents' proportions, or to the topics.

    Args:
        concentration: of q, shape ``[rows, columns]``.
        prior: of p, shape ``[columns]``.

    Returns:
        A float64 tensor of shape ``[]``.

    Source: [4] (123) + (128), (124) + (127).
    """
    q, p = (Dirichlet(each.double(), validate_args=False) for each in (concentration, prior))
    return -kl_divergence(q, p.expand(q.batch_shape)).sum()


def elbo_terms(
    corpus: Corpus,
    topic_word: Tensor,
    doc_topic: Tensor,
    assignments: Tensor,
    doc_topic_prior: Tensor,
    topic_word_prior: Tensor,
) -> dict[str, Tensor]:
    """The seven terms of the ELBO, each written out as the notes do; their sum is the ELBO, in nats.

    It is here to check faster ways with, and takes memory for entries × topics.

    Args:
        corpus: the documents.
        topic_word: λ (μ in the notes' second derivation), shape ``[K, V]``.
        doc_topic: γ, shape ``[D, K]``.
        assignments: φ (η there), shape ``[entries, K]``.
        doc_topic_prior: α, shape ``[K]``.
        topic_word_prior: ξ (β there), shape ``[V]``.

    Source: [4] (123)-(129); (130) is their sum.
    """
    count = corpus.count.unsqueeze(1)
    log_theta, log_beta = expected_log(doc_topic), expected_log(topic_word)
    return {
        "log p(theta)": _expected_log_density(log_theta, doc_topic_prior),
        "log p(beta)": _expected_log_density(log_beta, topic_word_prior),
        "log p(z)": (count * assignments * log_theta[corpus.doc]).sum(),
        "log p(word)": (count * assignments * log_beta.mT[corpus.word]).sum(),
        "-log q(beta)": -_expected_log_density(log_beta, topic_word),
        "-log q(theta)": -_expected_log_density(log_theta, doc_topic),
        "-log q(z)": -(count * torch.xlogy(assignments, assignments)).sum(),
    }


def _expected_log_density(expected_log: Tensor, concentration: Tensor) -> Tensor:
    """Σ over rows of E log Dirichlet(x | concentration), given E log x ``[rows, columns]``."""
    normalizer = torch.lgamma(concentration).sum(-1) - torch.lgamma(concentration.sum(-1))
    return (((concentration - 1) * expected_log).sum(-1) - normalizer).sum()


class Completion(NamedTuple):
    """The result of :func:`document_completion`.

    Attributes:
        per_word: mean log predictive probability of a held-out token, in nats.
        perplexity: exp(−per_word).
        num_tokens: how many tokens were held out.
    """

    per_word: float
    perplexity: float
    num_tokens: int


@checked_call
def document_completion(
    corpus: Corpus,
    topics: Tensor,
    doc_topic_prior: Prior = None,
    *,
    fraction: float = 0.5,
    generator: torch.Generator | None = None,
    tol: float = 1e-6,
    max_steps: int = 1000,
) -> Completion:
    """How well topics predict one part of each document from the other.

    The tokens of each document are split at random. Its proportions are inferred from the observed part, by mean field
    under the topics as they are given, and their mean scores the held-out part: log Σ_k E[θ_dk] β_kw, mean over its
    tokens. Topics of any method can be compared so: only point estimates are asked for.

    Args:
        corpus: documents that the topics were not fitted to, with whole counts.
        topics: β, word probabilities of each topic, shape ``[K, V]``, rows summing to 1: a fitted λ divided by its
            sums.
        doc_topic_prior: α, a number or shape ``[K]``; default 1 / K.
        fraction: of a document's tokens, how many are observed, in (0, 1).
        generator: of the split, on the corpus's device; default torch's global one.
        tol, max_steps: of the inference, as in ``document_step``.

    Raises:
        DataError: if counts are not whole, or no token is held out.
        ArgumentError: if ``topics`` are no probabilities of the corpus's words, or one of its words has none; or if α
            is not positive or has another shape.
    """
    _check_topics(topics, corpus)
    alpha, _xi = complete_priors(corpus, len(topics), doc_topic_prior)
    observed, held_out = split_tokens(corpus, fraction, generator)
    by_word = topics.to(corpus.count).mT.contiguous()
    step = document_step(
        observed,
        ExpectedTopics(by_word, corpus.count.new_zeros(corpus.num_words)),
        alpha,
        tol=tol,
        max_steps=max_steps,
        statistics=False,
        bound=False,
    )
    theta = step.gamma / step.gamma.sum(1, keepdim=True)
    chosen = torch.linalg.vecdot(theta[held_out.doc], by_word[held_out.word]).double().log()
    per_word = float(held_out.count.double() @ chosen) / held_out.num_tokens
    return Completion(per_word, float(torch.exp(torch.tensor(-per_word))), int(held_out.num_tokens))


def _check_topics(topics: Tensor, corpus: Corpus) -> None:
    if topics.dim() != 2 or topics.shape[1] != corpus.num_words:
        raise ArgumentError(
            f"Expected topics of shape [topics, {corpus.num_words}], as the corpus has words; got "
            f"{list(topics.shape)}. Count the documents in the words of the topics, in the same order."
        )
    if not bool((topics >= 0).all()) or float((topics.sum(1) - 1).abs().max()) > 1e-3:
        raise ArgumentError("Expected topics whose rows are probabilities; got others. Divide them by their sums.")
    if bool((topics.amax(0)[corpus.word] == 0).any()):
        word = int(corpus.word[topics.amax(0)[corpus.word] == 0][0])
        raise ArgumentError(f"Expected a topic that has each word; got none for word {word}. Smooth the topics first.")


@checked_call
def split_tokens(
    corpus: Corpus, fraction: float = 0.5, generator: torch.Generator | None = None
) -> tuple[Corpus, Corpus]:
    """Split the tokens of every document at random: ``fraction`` of them (rounded down, in each), and the rest.

    Args:
        corpus: the documents, with whole counts.
        fraction: in (0, 1).
        generator: on the corpus's device; default torch's global one.

    Raises:
        DataError: if counts are not whole, or no document has a token on each side.
    """
    if not 0 < fraction < 1:
        raise ArgumentError(f"Expected a fraction in (0, 1); got {fraction}. Write 0.5 for one half.")
    if not torch.equal(corpus.count, corpus.count.round()):
        raise DataError(
            "Expected whole counts, which are tokens that can be split; got fractional ones. Take the counts that the "
            "weights were made of."
        )
    entry = torch.repeat_interleave(corpus.count.long())
    doc = corpus.doc[entry]
    draws = torch.rand(len(entry), generator=generator, dtype=torch.float64, device=entry.device)
    order = torch.argsort(doc + draws)
    lengths = corpus.lengths.long()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - (lengths.cumsum(0) - lengths)[doc]
    observed = place < (lengths.double() * fraction).long()[doc]
    kept = torch.bincount(entry[observed], minlength=len(corpus.doc)).to(corpus.count)
    parts = _with_counts(corpus, kept), _with_counts(corpus, corpus.count - kept)
    if min(part.num_tokens for part in parts) == 0:
        raise DataError(
            f"Expected documents with tokens on both sides of the split at {fraction}; got none. Take longer "
            "documents, or fraction=0.5."
        )
    return parts


def _with_counts(corpus: Corpus, count: Tensor) -> Corpus:
    """The corpus with other counts; entries of none are left out."""
    kept = count > 0
    return replace(corpus, doc=corpus.doc[kept], word=corpus.word[kept], count=count[kept])


@checked_call
def top_words(topics: Tensor, num: int = 10) -> Tensor:
    """The most probable words of each topic, best first, int64, shape ``[K, num]``; ``topics`` is ``[K, V]``."""
    if not 1 <= num <= topics.shape[1]:
        raise ArgumentError(
            f"Expected a number of words from 1 to {topics.shape[1]}; got {num}. Write one of these: there are "
            f"{topics.shape[1]} words in all."
        )
    return topics.topk(num, dim=1).indices


@checked_call
def coherence_npmi(top: Tensor, corpus: Corpus) -> Tensor:
    """Coherence of topics by the normalised pointwise mutual information of their top words, shape ``[K]``, in [−1, 1].

    For two words with p(a, b) the share of documents that hold both, it is log(p(a, b) / (p(a) p(b))) / −log p(a, b): 1
    for words that only occur together, 0 for independent ones, −1 for words that never meet. A topic's coherence is
    the mean over pairs of its words.

    Args:
        top: the words of each topic, integers, shape ``[K, num]``, num at least 2: as of :func:`top_words`.
        corpus: documents to count in. A pair with a word that is in none counts −1.

    Source: Bouma 2009; Lau, Newman and Baldwin 2014, §3.
    """
    if top.dim() != 2 or top.shape[1] < 2:
        raise ArgumentError(
            f"Expected at least 2 words of each topic, shape [K, num]; got shape {list(top.shape)}. Write "
            "top_words(topics, 10)."
        )
    words, places = torch.unique(top.cpu(), return_inverse=True)
    if int(words[-1]) >= corpus.num_words or int(words[0]) < 0:
        raise ArgumentError(
            f"Expected words from 0 to {corpus.num_words - 1}; got {int(words[0])} to {int(words[-1])}. Count the "
            "documents in the words of the topics, in the same order."
        )
    occurs = (corpus.to_scipy()[:, words.numpy()] > 0).astype(np.float64)
    joint = torch.from_numpy((occurs.T @ occurs).toarray()) / corpus.num_documents
    i, j = torch.triu_indices(top.shape[1], top.shape[1], offset=1)
    return _npmi(joint)[places[:, i], places[:, j]].mean(1).to(corpus.count.device)


def _npmi(joint: Tensor) -> Tensor:
    """The normalized pointwise mutual information of words, from the shares of documents with both of two of them,
    ``[words, words]``, those with each on the diagonal.
    """
    single = joint.diagonal()
    expected = single.unsqueeze(0) * single.unsqueeze(1)
    together = joint.clamp(min=torch.finfo(joint.dtype).tiny)
    value = (together / expected).log() / -together.log()
    value = torch.where(joint >= 1, torch.ones_like(joint), value)  # in every document, always together
    return torch.where(joint > 0, value, -torch.ones_like(joint))
