r"""The document step of LDA: each document's q(θ) to convergence under given topics, and what the topics need of it.

For document d the two updates

    φ_dwk ∝ exp(E log θ_dk + E log β_kw),        γ_dk = α_k + Σ_w n_dw φ_dwk

are one map from γ to γ. With B_wk = exp(E log β_kw) and t_k = exp(ψ(γ_dk)) it is γ_dk = α_k + t_k Σ_w B_wk n_dw / p_w,
where p_w = Σ_k t_k B_wk: two products of a vector with the rows of B that the document's words pick. No φ is stored. A
document stops once the mean of |change of γ_dk| over k is below ``tol``, as in scikit-learn.

B is scaled by a constant for each word, which leaves φ as it is, so that a word that is improbable in all topics does
not vanish to 0 / 0.

With Numba, on the CPU, documents are walked one at a time with their rows of B in cache, on as
many threads as torch has; results do not depend on their number: see :mod:`.compiled_step`. Without it, or on another
device, torch does the same for blocks of documents, and drops those that have converged. Neither makes an array of
documents × words, or of all entries × topics.

Source: [4] (113), (117), (118); Hoffman, Blei and Bach 2010, algorithm 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_latent.errors import checked_call

from ..corpus import Corpus
from .jit import has_compiled_kernel, use_compiled

if has_compiled_kernel():
    from . import compiled_step

__all__ = ["DocumentStep", "ExpectedTopics", "document_step", "expected_topics"]

#: The torch kernel asks whether documents have converged once in so many steps: each answer waits for the device.
_STEPS_BETWEEN_CHECKS = 10
#: Gathered rows of topics that the torch kernel holds at once, in elements: on a GPU, and on the CPU, where they should
#: stay in cache.
_ELEMENTS_AT_ONCE = (2**26, 2**19)
#: exp(−x) is held up at this x, so that a product of two such numbers is still normal.
_LARGEST_EXPONENT = {torch.float32: 40.0, torch.float64: 230.0}


class DocumentStep(NamedTuple):
    """What :func:`document_step` found.

    Attributes:
        gamma: concentrations of q(θ), shape ``[D, K]``.
        statistics: Σ_d n_dw φ_dwk, shape ``[K, V]``; None if not asked for.
        word_bound: Σ_dw n_dw log Σ_k exp(E log θ_dk + E log β_kw) in nats, float64, shape ``[]``: the ELBO's part of
            the words and their topics; None if not asked for.
        steps: updates of a γ_d, summed over documents.
    """

    gamma: Tensor
    statistics: Tensor | None
    word_bound: Tensor | None
    steps: int


class ExpectedTopics(NamedTuple):
    """exp(E log β) under Dirichlets, scaled for each word.

    Attributes:
        scaled: exp(E log β_kw − log_scale_w), shape ``[V, K]``.
        log_scale: shape ``[V]``.
    """

    scaled: Tensor
    log_scale: Tensor


@checked_call
def expected_topics(topic_word: Tensor, compiled: bool | None = None) -> ExpectedTopics:
    """exp(E log β), which every document step under the same topics shares.

    Args:
        topic_word: λ, concentrations of the topics over words, shape ``[K, V]``.
        compiled: whether to use Numba; default on the CPU where it is installed.
    """
    by_word = topic_word.mT.contiguous()
    if use_compiled(topic_word, compiled):
        totals = topic_word.sum(1, dtype=torch.float64)
        return ExpectedTopics(*compiled_step.expect(by_word, totals, _LARGEST_EXPONENT[topic_word.dtype]))
    expectation = torch.digamma(by_word) - torch.digamma(by_word.sum(0))
    return scaled_topics(expectation)


def scaled_topics(expectation: Tensor) -> ExpectedTopics:
    """E log β_kw, shape ``[V, K]``, in the form that document steps take."""
    log_scale = expectation.amax(1)
    return ExpectedTopics(_floored_exp(expectation - log_scale.unsqueeze(1)), log_scale)


@checked_call
def document_step(
    corpus: Corpus,
    topics: Tensor | ExpectedTopics,
    doc_topic_prior: Tensor,
    *,
    start: Tensor | None = None,
    tol: float = 1e-3,
    max_steps: int = 100,
    statistics: bool = True,
    bound: bool = True,
    compiled: bool | None = None,
) -> DocumentStep:
    """Update q(θ) and q(z) of each document, in turn, until q(θ) stays.

    Args:
        corpus: the documents; the dtype and device of its counts are those of the work.
        topics: λ, concentrations of the topics over words, shape ``[K, V]``, or their :func:`expected_topics`.
        doc_topic_prior: α, shape ``[K]``.
        start: γ to start at, shape ``[D, K]``; default all ones. It is left as it is.
        tol: a document stops when the mean of \\|change of γ_dk\\| over k is below this.
        max_steps: a document stops after so many steps, at least 1.
        statistics: whether to sum up what the topics' update needs.
        bound: whether to work out the words' part of the ELBO.
        compiled: whether to use Numba; default on the CPU where it is installed.

    Returns:
        γ, the statistics, and the words' part of the ELBO at this γ.
    """
    expected = topics if isinstance(topics, ExpectedTopics) else expected_topics(topics.to(corpus.count), compiled)
    scaled = expected.scaled.to(corpus.count)
    size = (corpus.num_documents, len(doc_topic_prior))
    gamma = corpus.count.new_ones(size) if start is None else start.to(corpus.count).clone().contiguous()
    fast = use_compiled(corpus.count, compiled)
    prior = doc_topic_prior.to(corpus.count)
    work = (corpus, scaled, prior, gamma, tol, max_steps)
    theta, ratio, steps = compiled_step.converge(*work, _LARGEST_EXPONENT[gamma.dtype]) if fast else _converge(*work)
    sum_up = compiled_step.sum_up if fast else _sum_up
    sums = sum_up(corpus, scaled, theta, ratio).mT if statistics else None
    words = _word_bound(corpus, expected.log_scale, gamma, ratio) if bound else None
    return DocumentStep(gamma, sums, words, steps)


def _word_bound(corpus: Corpus, log_scale: Tensor, gamma: Tensor, ratio: Tensor) -> Tensor:
    """Σ n_dw (log p_w, which is log n_dw − log ratio, with the scale of the word and the normaliser of E log θ)."""
    count = corpus.count.double()
    words = count @ (count.log() - ratio.double().log() + log_scale.double()[corpus.word])
    return words - corpus.lengths.double() @ torch.digamma(gamma.sum(1, dtype=torch.float64))


def _floored_exp(exponent: Tensor) -> Tensor:
    return exponent.clamp(min=-_LARGEST_EXPONENT[exponent.dtype]).exp()


# ------------------------------------------------------------------------------------------------------------- in torch


def _converge(
    corpus: Corpus, topics: Tensor, prior: Tensor, gamma: Tensor, tol: float, max_steps: int
) -> tuple[Tensor, Tensor, int]:
    """A block of documents at a time; updates ``gamma`` in place. Returns exp ψ(γ), n / p by entry, and the steps."""
    theta, ratio = torch.empty_like(gamma), torch.empty_like(corpus.count)
    steps = torch.zeros((), dtype=torch.int64, device=gamma.device)
    for documents in _blocks(corpus, len(prior)):
        entries, inside = _padded_entries(corpus, documents)
        rows = topics[corpus.word[entries]]
        count = torch.where(inside, corpus.count[entries], 0.0)
        gamma[documents], taken = _converged(rows, count, prior, gamma[documents], tol, max_steps)
        theta[documents] = _floored_exp(torch.digamma(gamma[documents]))
        ratio[entries[inside]] = _ratio(rows, count, theta[documents])[inside]
        steps += taken
    return theta, ratio, int(steps)


def _blocks(corpus: Corpus, num_topics: int) -> Iterator[Tensor]:
    """Documents of about equal length, as many as fit at once."""
    lengths, order = corpus.starts.diff().sort(descending=True, stable=True)
    sizes, first = lengths.tolist(), 0
    while first < len(sizes):
        size = max(1, _ELEMENTS_AT_ONCE[corpus.count.device.type == "cpu"] // (max(1, sizes[first]) * num_topics))
        yield order[first : first + size]
        first += size


def _padded_entries(corpus: Corpus, documents: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of documents, filled up to one length, and which of them are the documents' own: ``[B, longest]``."""
    lengths = corpus.starts.diff()[documents].unsqueeze(1)
    places = torch.arange(int(lengths.max()), device=documents.device)
    inside = places < lengths
    return torch.where(inside, corpus.starts[documents].unsqueeze(1) + places, 0), inside


def _ratio(rows: Tensor, count: Tensor, theta: Tensor) -> Tensor:
    """n / p, shape ``[B, longest]``, for ``rows`` of topics ``[B, longest, K]``."""
    return count / (rows @ theta.unsqueeze(2)).squeeze(2)


def _converged(
    rows: Tensor, count: Tensor, prior: Tensor, gamma: Tensor, tol: float, max_steps: int
) -> tuple[Tensor, Tensor]:
    """γ of a block of documents, each stopped by itself, and the number of steps taken."""
    found, current, places = gamma.clone(), gamma, torch.arange(len(gamma), device=gamma.device)
    moving, steps = torch.ones_like(places, dtype=torch.bool), torch.zeros_like(places).sum()
    for step in range(1, max_steps + 1):
        theta = _floored_exp(torch.digamma(current))
        proposal = prior + theta * (_ratio(rows, count, theta).unsqueeze(1) @ rows).squeeze(1)
        change = (proposal - current).abs().mean(1)
        current = torch.where(moving.unsqueeze(1), proposal, current)
        steps = steps + moving.sum()
        moving = moving & (change >= tol)
        if step % _STEPS_BETWEEN_CHECKS == 0 or step == max_steps:
            found[places] = current
            left = moving.nonzero().squeeze(1)
            if len(left) == 0:
                break
            if 2 * len(left) < len(places):
                rows, count, places, current, moving = (t[left] for t in (rows, count, places, current, moving))
    return found, steps


def _sum_up(corpus: Corpus, topics: Tensor, theta: Tensor, ratio: Tensor) -> Tensor:
    """Σ_d n_dw φ_dwk, shape ``[V, K]``: a sparse matrix by words times exp ψ(γ)."""
    order, size = corpus.by_word, (corpus.num_words, corpus.num_documents)
    parts = (corpus.word_starts, corpus.doc[order], ratio[order], size)
    with warnings.catch_warnings():  # torch says once that its sparse rows are in beta state
        warnings.filterwarnings("ignore", "Sparse CSR tensor support")
        weights = torch.sparse_csr_tensor(*parts, check_invariants=False)
        return (weights @ theta) * topics
