"""Where topics start: drawn near even, or found by collapsed inference with more topics than wanted, and merged.

The ELBO of LDA has many local maxima, and from even topics coordinate ascent ends in poor ones: some topics are blends
of two, and others share one. With half as many topics again each is found by one or more of them, and topics that share
one are alike; merging the most similar pair, again and again, leaves one of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_latent.errors import ArgumentError

from .collapsed import collapsed_fit
from .corpus import Corpus

__all__ = ["collapsed_topics", "merge_topics", "near_one"]

_MAX_PASSES = 50


def near_one(shape: tuple[int, int], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws from Gamma(100, rate 100): mean 1, standard deviation 0.1; of the dtype and device of ``like``."""
    return torch._standard_gamma(like.new_full(shape, 100.0), generator=generator) / 100


def collapsed_topics(
    corpus: Corpus, doc_topic_prior: Tensor, topic_word_prior: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """λ to start at: the prior, plus the counts of CVB0's topics, merged to K.

    Args:
        corpus: the documents.
        doc_topic_prior: α, shape ``[K]``.
        topic_word_prior: ξ, shape ``[V]``.
        generator: of CVB0's start, on the corpus's device; default torch's global one.

    Returns:
        Concentrations, shape ``[K, V]``.
    """
    wanted = len(doc_topic_prior)
    num_topics = wanted + (wanted + 1) // 2
    found = collapsed_fit(
        corpus,
        num_topics,
        doc_topic_prior=float(doc_topic_prior.sum()) / num_topics,
        topic_word_prior=topic_word_prior,
        max_iter=_MAX_PASSES,
        generator=generator,
    )
    return topic_word_prior + merge_topics(found.lambda_ - topic_word_prior, wanted)


def merge_topics(counts: Tensor, num_topics: int) -> Tensor:
    """Merge the two topics of the largest cosine, by adding their counts, until so many are left.

    Args:
        counts: expected counts of the words in each topic, shape ``[more, V]``.
        num_topics: how many to keep, from 1 to the number there is.

    Returns:
        Counts of the same sum, shape ``[num_topics, V]``.
    """
    if not 1 <= num_topics <= len(counts):
        raise ArgumentError(
            f"Expected to keep from 1 to {len(counts)} topics; got {num_topics}. Topics can only be "
            "merged: start with more."
        )
    products = counts @ counts.mT  # of a merged topic, the sums of its parts' products
    members = torch.eye(len(counts), dtype=counts.dtype, device=counts.device)
    for _ in range(len(counts) - num_topics):
        inner = members @ products @ members.mT
        lengths = inner.diagonal().clamp(min=torch.finfo(counts.dtype).tiny).sqrt()
        cosines = (inner / lengths / lengths.unsqueeze(1)).fill_diagonal_(-1.0)
        first, second = sorted(divmod(int(cosines.argmax()), len(members)))
        members[first] += members[second]
        members = torch.cat([members[:second], members[second + 1 :]])
    return members @ counts
