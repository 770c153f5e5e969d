"""Latent Dirichlet allocation by collapsed variational Bayes of order zero (CVB0).

The proportions θ and the topics β are integrated out, and q factorises over the topics z of the tokens alone. With
r_dwk = q(z = k) for a token of word w in document d, and with counts N_dk, N_wk and N_k that are sums of r over a
document, over a word, and over all tokens, each without the token itself,

    r_dwk ∝ (N_dk + α_k) (N_wk + ξ_w) / (N_k + Σ_v ξ_v)

It is Gibbs sampling with the draw replaced by its probabilities, or variational Bayes with exp(ψ(γ)) and exp(ψ(λ))
replaced by counts: no digamma, and no inner loop. There is no bound that it provably climbs; passes stop when the
responsibilities do. Copies of a word in a document share their r, so memory is (entries of the bag of words) × topics.

A pass goes over the documents in blocks. Documents of a block do not see each other's new responsibilities, only those
of the blocks before; words within a document are updated in turn. One document to a block is the published algorithm,
except that N_k waits for the document's end; the fixed points are the same for all. With Numba a pass runs on one core,
compiled; without it, or on a GPU, torch updates the j-th words of a block's documents together, which gives the same
numbers.

Source: Asuncion, Welling, Smyth and Teh 2009, "On smoothing and inference for topic models", where it is named CVB0.
The model is [4] (106)-(112).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_latent.errors import ArgumentError, check_count, checked_call
from pyro_latent.settings import settings

from .corpus import Corpus
from .kernel import compile_function, use_compiled
from .model import Prior, complete_priors
from .reading import as_corpus

__all__ = [
    "CollapsedFit",
    "CollapsedState",
    "collapsed_fit",
    "collapsed_pass",
    "collapsed_start",
    "collapsed_topics",
    "merge_topics",
]


class CollapsedFit(NamedTuple):
    """What :func:`collapsed_fit` reached.

    Attributes:
        gamma: α + N_dk, concentrations of the documents' proportions, shape ``[documents, topics]``.
        lambda_: ξ + N_kw, concentrations of the topics over words, shape ``[topics, words]``.
        change: of each pass, Σ_k abs(change of r_k), mean over the tokens; 1-D, float64, at most 2.
        converged: whether the last change was at most the tolerance.
        state: what :func:`collapsed_pass` goes on from.
    """

    gamma: Tensor
    lambda_: Tensor
    change: Tensor
    converged: bool
    state: CollapsedState


@dataclass(frozen=True)
class CollapsedState:
    """q of the tokens' topics, and the counts under it; :func:`collapsed_pass` changes the last three in place.

    Attributes:
        corpus: the bag of words.
        responsibilities: r, shape ``[entries, topics]``.
        document_counts: N_dk over all tokens, shape ``[documents, topics]``.
        word_counts: N_wk over all tokens, shape ``[words, topics]``.
    """

    corpus: Corpus
    responsibilities: Tensor
    document_counts: Tensor
    word_counts: Tensor

    @property
    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three that a pass changes."""
        return self.responsibilities, self.document_counts, self.word_counts


@checked_call
def collapsed_fit(
    data: Any,
    num_topics: int,
    *,
    doc_topic_prior: Prior = None,
    topic_word_prior: Prior = None,
    max_iter: int = 100,
    tol: float = 5e-3,
    block_size: int = 32,
    generator: torch.Generator | None = None,
    state: CollapsedState | None = None,
) -> CollapsedFit:
    """Fit LDA by CVB0 from a random start.

    Args:
        data: what :func:`as_corpus` takes, a whole corpus; the dtype and device of its counts are those of the work.
        num_topics: K, at least 1.
        doc_topic_prior: α, a number or shape ``[topics]``; default 1 / K.
        topic_word_prior: ξ, a number or shape ``[words]``; default 1 / K. Under the same priors
            variational Bayes acts as if both were smaller by up to a half: exp(ψ(x)) is near x − ½.
        max_iter: passes at most.
        tol: passes end when a token's responsibilities change by no more, summed over topics, mean over tokens.
        block_size: documents that are updated side by side. Larger is faster in torch, above all on a GPU; smaller
            spreads news earlier, which matters in the first few passes only.
        generator: of the start, on the corpus's device; default torch's global one.
        state: where to go on from, instead of a random start: the ``state`` of an earlier fit, whose corpus is taken.

    Raises:
        DataError: as :func:`as_corpus` does, and for a minibatch.
        ArgumentError: if a number is out of its range, or a prior has another shape.

    Source: Asuncion et al. 2009, CVB0.
    """
    check_count("max_iter", max_iter)
    check_count("block_size", block_size)
    if not 0 <= tol < math.inf:
        raise ArgumentError(
            f"Expected tol to be non-negative and finite; got {tol}. Write tol=0.0 for passes up to max_iter."
        )
    corpus = as_corpus(data) if state is None else state.corpus
    alpha, xi = complete_priors(corpus, num_topics, doc_topic_prior, topic_word_prior)
    state = collapsed_start(corpus, num_topics, generator) if state is None else state
    changes: list[float] = []
    while len(changes) < max_iter:
        changes.append(collapsed_pass(state, alpha, xi, block_size))
        if changes[-1] <= tol:
            break
    return CollapsedFit(
        gamma=alpha + state.document_counts,
        lambda_=(xi[:, None] + state.word_counts).mT.contiguous(),
        change=torch.tensor(changes, dtype=torch.float64),
        converged=changes[-1] <= tol,
        state=state,
    )


def collapsed_start(data: Any, num_topics: int, generator: torch.Generator | None = None) -> CollapsedState:
    """Responsibilities drawn uniformly from the simplex, for each entry of the bag of words, and their counts.

    Args:
        data: what :func:`as_corpus` takes.
        num_topics: K.
        generator: on the corpus's device; default torch's global one.

    Raises:
        DataError: as :func:`as_corpus` does, and for a minibatch.
    """
    corpus = as_corpus(data)
    corpus.check_whole()
    count = corpus.count
    responsibilities = count.new_empty(len(count), num_topics).exponential_(generator=generator)
    responsibilities /= responsibilities.sum(-1, keepdim=True)
    weighted = count[:, None] * responsibilities
    documents = count.new_zeros(corpus.num_documents, num_topics).index_add_(0, corpus.doc, weighted)
    words = count.new_zeros(corpus.num_words, num_topics).index_add_(0, corpus.word, weighted)
    return CollapsedState(corpus, responsibilities, documents, words)


def collapsed_pass(state: CollapsedState, alpha: Tensor, xi: Tensor, block_size: int = 32) -> float:
    """Update every responsibility once, in place.

    Args:
        state: of :func:`collapsed_start`, or of a pass before.
        alpha: prior of the documents' proportions, shape ``[topics]``.
        xi: prior of the topics, shape ``[words]``.
        block_size: documents that are updated side by side.

    Returns:
        Σ_k abs(change of r_k), mean over the tokens; 0 without tokens.

    Source: Asuncion et al. 2009, CVB0.
    """
    compiled = use_compiled(state.responsibilities)
    total = (_numba_pass if compiled else _torch_pass)(state, alpha, xi, block_size)
    return total / state.corpus.num_tokens if total else 0.0


# ----------------------------------------------------------------------------------------------- topics to start from

#: Passes that topics to start from are worth.
_PASSES_OF_START = 50


def collapsed_topics(
    corpus: Corpus, doc_topic_prior: Tensor, topic_word_prior: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """λ to start at: the prior, plus the counts of CVB0's topics, merged to K.

    The ELBO of LDA has many local maxima, and from even topics coordinate ascent ends in poor ones: some topics are
    blends of two, and others share one. With half as many topics again each is found by one or more of them, and topics
    that share one are alike; merging the most similar pair, again and again, leaves one of each.

    Args:
        corpus: the documents.
        doc_topic_prior: α, shape ``[K]``.
        topic_word_prior: ξ, shape ``[V]``.
        generator: of CVB0's start, on the corpus's device; default torch's global one.

    Returns:
        Concentrations, shape ``[K, V]``.

    Where responsibilities of all documents would take more than an eighth of ``pyro_latent.settings.memory_limit``, the
    topics are those of documents drawn at random that stay within it, with their counts scaled up.
    """
    wanted = len(doc_topic_prior)
    num_topics = wanted + (wanted + 1) // 2
    part = _within_memory(corpus, num_topics, generator)
    found = collapsed_fit(
        part,
        num_topics,
        doc_topic_prior=float(doc_topic_prior.sum()) / num_topics,
        topic_word_prior=topic_word_prior,
        max_iter=_PASSES_OF_START,
        generator=generator,
    )
    scale = corpus.num_tokens / part.num_tokens if part is not corpus else 1.0
    return topic_word_prior + scale * merge_topics(found.lambda_ - topic_word_prior, wanted)


def _within_memory(corpus: Corpus, num_topics: int, generator: torch.Generator | None) -> Corpus:
    """All documents, or so many that have words, drawn at random, as there is room for their responsibilities."""
    room = settings.memory_limit // 8 // (corpus.count.element_size() * num_topics)
    if len(corpus.count) <= room:
        return corpus
    lengths = corpus.starts.diff()
    places = lengths.nonzero()[:, 0]
    device = places.device if generator is None else generator.device
    places = places[torch.randperm(len(places), generator=generator, device=device).to(places.device)]
    fitting = int((lengths[places].cumsum(0) <= room).sum())
    return corpus.select(places[: max(fitting, 1)].sort().values)


@checked_call
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


# ----------------------------------------------------------------------------------------------------------- in torch


def _torch_pass(state: CollapsedState, alpha: Tensor, xi: Tensor, block_size: int) -> float:
    """A pass whose innermost step is over the documents of a block: their first words together, then the second."""
    count, word, r = state.corpus.count, state.corpus.word, state.responsibilities
    total = count.new_zeros(())
    for steps in _visits(state.corpus, block_size):
        entries = torch.cat(steps)
        before = r[entries]
        totals = state.word_counts.sum(0) + xi.sum()
        for step in steps:
            _update_entries(state, step, alpha, xi, totals)
        change = count[entries, None] * (r[entries] - before)
        state.word_counts.index_add_(0, word[entries], change)
        total += change.abs().sum()
    return float(total)


def _update_entries(state: CollapsedState, entries: Tensor, alpha: Tensor, xi: Tensor, totals: Tensor) -> None:
    """Update entries of different documents, at the words' counts of the block's start."""
    doc, word = state.corpus.doc[entries], state.corpus.word[entries]
    count, old = state.corpus.count[entries, None], state.responsibilities[entries]
    own = count.clamp(max=1) * old
    in_document = (state.document_counts[doc] - own).clamp_(min=0) + alpha
    in_topic = (state.word_counts[word] - own).clamp_(min=0) + xi[word, None]
    new = in_document * in_topic / (totals - own)
    new /= new.sum(-1, keepdim=True)
    state.responsibilities[entries] = new
    state.document_counts[doc] += count * (new - old)


def _visits(corpus: Corpus, block_size: int) -> list[list[Tensor]]:
    """For each block of documents, the entries to visit together: the documents' first, their second, …"""
    position = torch.arange(len(corpus.doc), device=corpus.doc.device) - corpus.starts[corpus.doc]
    longest = int(position.max()) + 1 if len(position) else 1
    keys, order = torch.sort(corpus.doc // block_size * longest + position, stable=True)
    keys, sizes = torch.unique_consecutive(keys, return_counts=True)
    blocks: dict[int, list[Tensor]] = {}
    for key, step in zip(keys.tolist(), order.split(sizes.tolist()), strict=True):
        blocks.setdefault(key // longest, []).append(step)
    return list(blocks.values())


# ----------------------------------------------------------------------------------------------------------- in Numba


def _numba_pass(state: CollapsedState, alpha: Tensor, xi: Tensor, block_size: int) -> float:
    """A pass document by document, compiled."""
    totals = state.word_counts.sum(0) + xi.sum()
    tensors = (state.corpus.starts, state.corpus.word, state.corpus.count, *state.counts, totals, alpha, xi)
    arrays = [tensor.numpy() for tensor in tensors]
    return float(_sweep(*arrays, block_size))


@compile_function
def _sweep(starts, word, count, responsibilities, document_counts, word_counts, totals, alpha, xi, block_size):  # type: ignore[no-untyped-def]
    """Block by block: first its documents' responsibilities, then the words' counts. Returns Σ count abs(change)."""
    num_documents, num_topics, total = len(starts) - 1, len(alpha), 0.0
    edges = starts[np.minimum(np.arange(0, num_documents + block_size, block_size), num_documents)]
    change, scratch = np.empty((np.diff(edges).max(), num_topics), alpha.dtype), np.empty_like(alpha)
    for begin in range(0, num_documents, block_size):
        first, last = starts[begin], starts[min(begin + block_size, num_documents)]
        for d in range(begin, min(begin + block_size, num_documents)):
            mine = slice(starts[d], starts[d + 1])
            parts = word[mine], count[mine], responsibilities[mine], change[starts[d] - first :], document_counts[d]
            total += _update_document(*parts, word_counts, totals, alpha, xi, scratch)
        for i in range(first, last):
            for k in range(num_topics):
                word_counts[word[i], k] += change[i - first, k]
                totals[k] += change[i - first, k]
    return total


@compile_function
def _update_document(word, count, responsibilities, change, in_document, word_counts, totals, alpha, xi, new):  # type: ignore[no-untyped-def]
    """One document's words in turn; ``change`` is set to count × change of r, for the words' counts."""
    zero, one, total = alpha.dtype.type(0), alpha.dtype.type(1), 0.0
    for i in range(len(word)):
        old, in_topic, moved = responsibilities[i], word_counts[word[i]], change[i]
        prior, own, normalizer = xi[word[i]], min(count[i], one), zero
        for k in range(len(alpha)):
            # Rounding must not make a count negative.
            others = max(in_document[k] - own * old[k], zero) + alpha[k]
            new[k] = others * (max(in_topic[k] - own * old[k], zero) + prior) / (totals[k] - own * old[k])
            normalizer += new[k]
        scale = one / normalizer
        for k in range(len(alpha)):
            r = new[k] * scale
            moved[k] = count[i] * (r - old[k])
            in_document[k] += moved[k]
            total += abs(moved[k])
            old[k] = r
    return total
