r"""The document step of LDA: each document's q(θ) to convergence under given topics, and what the topics need of it.

For document d the two updates

    φ_dwk ∝ exp(E log θ_dk + E log β_kw),        γ_dk = α_k + Σ_w n_dw φ_dwk

are one map from γ to γ. With B_wk = exp(E log β_kw) and t_k = exp(ψ(γ_dk)) it is γ_dk = α_k + t_k Σ_w B_wk n_dw / p_w,
where p_w = Σ_k t_k B_wk: two products of a vector with the rows of B that the document's words pick. No φ is stored. A
document stops once the mean of |change of γ_dk| over k is below ``tol``, as in scikit-learn.

B is scaled by a constant for each word, which leaves φ as it is, so that a word that is improbable in all topics does
not vanish to 0 / 0. exp(ψ(x)) is taken without a logarithm, from ψ(x) = ψ(x + 8) − Σ_{i<8} 1/(x + i) and the
asymptotic series of exp(ψ(x + 8)).

With Numba (the extra ``fast``), on the CPU, documents are walked one at a time with their rows of B in cache, on as
many threads as torch has; results do not depend on their number. Without it, or on another device, torch does the same
for blocks of documents, and drops those that have converged. Neither makes an array of documents × words, or of all
entries × topics.

Source: [4] (113), (117), (118); Hoffman, Blei and Bach 2010, algorithm 1. The series: Abramowitz and Stegun (6.3.18),
exponentiated.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from .corpus import Corpus

njit: Any
try:
    from numba import njit
except ImportError:
    njit = None

__all__ = ["DocumentStep", "document_step", "expected_topics", "has_compiled_kernel"]

#: Documents are divided into so many parts for each thread.
_PARTS_PER_THREAD = 8
#: The torch kernel asks whether documents have converged once in so many steps: each answer waits for the device.
_STEPS_BETWEEN_CHECKS = 10
#: Gathered rows of topics that the torch kernel holds at once, in elements: on a GPU, and on the CPU, where they should
#: stay in cache.
_ELEMENTS_AT_ONCE = (2**26, 2**19)
#: Bytes of a tile of gathered topics, which is read twice in each step: it stays in a second-level cache.
_TILE_BYTES = 2**18
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


def has_compiled_kernel() -> bool:
    """Whether Numba is installed."""
    return njit is not None


def expected_topics(topic_word: Tensor, compiled: bool | None = None) -> ExpectedTopics:
    """exp(E log β), which every document step under the same topics shares.

    Args:
        topic_word: λ, concentrations of the topics over words, shape ``[K, V]``.
        compiled: whether to use Numba; default on the CPU where it is installed.
    """
    by_word = topic_word.mT.contiguous()
    if _use_numba(topic_word, compiled):
        scaled, log_scale = torch.empty_like(by_word), topic_word.new_empty(topic_word.shape[1])
        totals = topic_word.sum(1, dtype=torch.float64).numpy()
        arrays = (by_word.numpy(), scaled.numpy(), log_scale.numpy())
        limit = _LARGEST_EXPONENT[topic_word.dtype]
        _in_threads(
            lambda first, last: _expected_topics(first, last, *arrays, totals, limit), _equal_parts(len(by_word))
        )
        return ExpectedTopics(scaled, log_scale)
    expectation = torch.digamma(by_word) - torch.digamma(by_word.sum(0))
    log_scale = expectation.amax(1)
    return ExpectedTopics(_floored_exp(expectation - log_scale.unsqueeze(1)), log_scale)


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
    expected = topics if isinstance(topics, ExpectedTopics) else expected_topics(topics, compiled)
    size = (corpus.num_documents, len(doc_topic_prior))
    gamma = corpus.count.new_ones(size) if start is None else start.to(corpus.count).clone().contiguous()
    fast = _use_numba(corpus.count, compiled)
    prior = doc_topic_prior.to(corpus.count)
    theta, ratio, steps = (_numba_step if fast else _torch_step)(corpus, expected.scaled, prior, gamma, tol, max_steps)
    sums = (
        (_numba_statistics if fast else _torch_statistics)(corpus, expected.scaled, theta, ratio).mT
        if statistics
        else None
    )
    words = _word_bound(corpus, expected.log_scale, gamma, ratio) if bound else None
    return DocumentStep(gamma, sums, words, steps)


def _word_bound(corpus: Corpus, log_scale: Tensor, gamma: Tensor, ratio: Tensor) -> Tensor:
    """Σ n_dw (log p_w, which is log n_dw − log ratio, with the scale of the word and the normaliser of E log θ)."""
    count = corpus.count.double()
    words = count @ (count.log() - ratio.double().log() + log_scale.double()[corpus.word])
    return words - corpus.lengths.double() @ torch.digamma(gamma.sum(1, dtype=torch.float64))


def _use_numba(like: Tensor, compiled: bool | None) -> bool:
    """Whether the compiled kernel is to be used.

    Raises:
        ValueError: if it is asked for and cannot be.
    """
    able = njit is not None and like.device.type == "cpu" and like.dtype in _LARGEST_EXPONENT
    if compiled and not able:
        raise ValueError(
            f"Expected Numba and data on the CPU for compiled=True; got {'no Numba' if njit is None else like.device}. "
            "Install the extra `fast`, or leave compiled out."
        )
    return able if compiled is None else compiled


def _floored_exp(exponent: Tensor) -> Tensor:
    return exponent.clamp(min=-_LARGEST_EXPONENT[exponent.dtype]).exp()


# ------------------------------------------------------------------------------------------------------------- in torch


def _torch_step(
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


def _torch_statistics(corpus: Corpus, topics: Tensor, theta: Tensor, ratio: Tensor) -> Tensor:
    """Σ_d n_dw φ_dwk, shape ``[V, K]``: a sparse matrix by words times exp ψ(γ)."""
    order, size = corpus.by_word, (corpus.num_words, corpus.num_documents)
    parts = (corpus.word_starts, corpus.doc[order], ratio[order], size)
    with warnings.catch_warnings():  # torch says once that its sparse rows are in beta state
        warnings.filterwarnings("ignore", "Sparse CSR tensor support")
        weights = torch.sparse_csr_tensor(*parts, check_invariants=False)
        return (weights @ theta) * topics


# ------------------------------------------------------------------------------------------------------------- in Numba


def _numba_step(
    corpus: Corpus, topics: Tensor, prior: Tensor, gamma: Tensor, tol: float, max_steps: int
) -> tuple[Tensor, Tensor, int]:
    """Document by document; ``gamma`` is updated in place. Returns exp ψ(γ), n / p by entry, and the steps."""
    theta, ratio = torch.empty_like(gamma), torch.empty_like(corpus.count)
    inputs = [t.contiguous().numpy() for t in (corpus.starts, corpus.word, corpus.count, topics, prior)]
    outputs = [t.numpy() for t in (gamma, theta, ratio)]
    limit, tile = _LARGEST_EXPONENT[gamma.dtype], _tile_width(gamma)

    def walk(first: int, last: int) -> int:
        return int(_documents(first, last, tol, max_steps, limit, tile, *inputs, *outputs))

    return theta, ratio, sum(_in_threads(walk, _equal_work(corpus)))


def _tile_width(gamma: Tensor) -> int:
    """How many words' rows of topics fill half of the cache: a multiple of the width of vector instructions."""
    lanes = 64 // gamma.element_size()
    return max(2 * lanes, _TILE_BYTES // (gamma.element_size() * _padded(gamma.shape[1])) // lanes * lanes)


def _padded(size: int) -> int:
    """The next multiple of the number of topics that one loop takes."""
    return (size + 3) // 4 * 4


def _numba_statistics(corpus: Corpus, topics: Tensor, theta: Tensor, ratio: Tensor) -> Tensor:
    """Σ_d n_dw φ_dwk, shape ``[V, K]``."""
    out = torch.empty_like(topics)
    arrays = [t.numpy() for t in (corpus.by_word, corpus.word_starts, corpus.doc, ratio, theta, topics, out)]
    _in_threads(lambda first, last: _accumulate(first, last, *arrays), _equal_parts(corpus.num_words))
    return out


def _in_threads(work: Callable[[int, int], Any], parts: list[tuple[int, int]]) -> list[Any]:
    """``work(first, last)`` of each part, on as many threads as torch has; compiled code lets them run side by side."""
    if torch.get_num_threads() == 1 or len(parts) == 1:
        return [work(first, last) for first, last in parts]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(lambda part: work(*part), parts))


def _num_parts() -> int:
    threads = torch.get_num_threads()
    return 1 if threads == 1 else _PARTS_PER_THREAD * threads


def _equal_parts(size: int) -> list[tuple[int, int]]:
    edges = np.linspace(0, size, _num_parts() + 1).astype(int).tolist()
    return [(a, b) for a, b in pairwise(edges) if a < b]


def _equal_work(corpus: Corpus) -> list[tuple[int, int]]:
    """Ranges of documents with about as many entries in each."""
    wanted = np.linspace(0, len(corpus.doc), _num_parts() + 1)[1:-1]
    inner = np.searchsorted(corpus.starts.numpy(), wanted).tolist()
    edges = [0, *(min(e, corpus.num_documents) for e in inner), corpus.num_documents]
    return [(a, b) for a, b in pairwise(edges) if a < b]


def _compiled(function: Callable[..., Any], *, fastmath: bool = True, inline: bool = False) -> Callable[..., Any]:
    """The function compiled by Numba, where it is installed: without Python's lock; kept on disk where that can be."""
    if njit is None:
        return function
    options: dict[str, Any] = {"fastmath": fastmath, "error_model": "numpy"}
    if inline:
        return cast(Callable[..., Any], njit(inline="always", **options)(function))
    try:
        return cast(Callable[..., Any], njit(nogil=True, cache=True, **options)(function))
    except RuntimeError:  # no folder that can be written to
        return cast(Callable[..., Any], njit(nogil=True, **options)(function))


def _shift_and_series(x: float) -> tuple[float, float]:
    """s = Σ_{i<8} 1/(x + i), and exp(ψ(x + 8)); so that exp(ψ(x)) is the second times exp(−s).

    The terms of the sum are paired from both ends, which makes it one division in u = x (x + 7). The series is that of
    exp(ψ(y + 1/2)) / y in 1 / y²; from y = 7.5 on its error is below 10⁻¹³.
    """
    u = x * (x + 7.0)
    numerator = (2.0 * x + 7.0) * (((4.0 * u + 84.0) * u + 504.0) * u + 720.0)
    denominator = u * (u + 6.0) * (u + 10.0) * (u + 12.0)
    y = x + 7.5
    v = 1.0 / (y * y)
    series = 2709398569 / 367873228800 + v * (-499769010050743 / 24103053950976000)
    series = 10313 / 2903040 + v * (-5509121 / 1393459200 + v * series)
    return numerator / denominator, y * (1.0 + v * (1 / 24 + v * (-37 / 5760 + v * series)))


def _exp_negative(exponents: Any, limit: float, weights: Any, scratch: Any, bits: Any, out: Any) -> None:
    """out = weights · exp(−min(exponents, limit)), for exponents ≥ 0 and limit < 708, in vector instructions.

    exp(−s) = 2ⁿ exp(r) with |r| ≤ ½ log 2 and a Taylor polynomial. Adding 1.5 · 2⁵² rounds to an integer and leaves it
    in the low bits, from where it is moved to the exponent of 2ⁿ; so this may not be compiled with ``fastmath``.
    """
    magic = 6755399441055744.0
    integers, powers = scratch.view(np.int64), bits.view(np.float64)
    for k in range(len(exponents)):
        s = -min(exponents[k], limit)
        shifted = s * 1.4426950408889634 + magic
        scratch[k] = shifted
        n = shifted - magic
        r = (s - n * 0.6931471803691238) - n * 1.9082149292705877e-10
        high = 1 / 5040 + r * (1 / 40320 + r * (1 / 362880 + r * (1 / 3628800 + r * (1 / 39916800))))
        middle = 1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * high)))
        out[k] = weights[k] * (1.0 + r * (1.0 + r * (0.5 + r * middle)))
    for k in range(len(exponents)):
        bits[k] = (integers[k] + 1023) << 52
    for k in range(len(exponents)):
        out[k] *= powers[k]


def _add_tile(rows: Any, theta: Any, count: Any, ratio: Any, sums: Any) -> None:
    """For one tile of words: ratio_w = n_w / Σ_k t_k B_kw, and sums_k += Σ_w B_kw ratio_w.

    ``rows`` is B, ``[K, width]``. Four topics are taken at a time, so that what a loop over the words loads and stores
    is used four times.
    """
    topics, width = rows.shape
    ratio[:width] = 0.0
    for k in range(0, topics, 4):
        a, b, c, d = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        s, t, u, v = theta[k], theta[k + 1], theta[k + 2], theta[k + 3]
        for i in range(width):
            ratio[i] += s * a[i] + t * b[i] + u * c[i] + v * d[i]
    for i in range(width):
        ratio[i] = count[i] / ratio[i]
    for k in range(0, topics, 4):
        a, b, c, d = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        s = t = u = v = ratio[0] * 0
        for i in range(width):
            s += a[i] * ratio[i]
            t += b[i] * ratio[i]
            u += c[i] * ratio[i]
            v += d[i] * ratio[i]
        sums[k] += s
        sums[k + 1] += t
        sums[k + 2] += u
        sums[k + 3] += v


def _gather(words: Any, topics: Any, tile: int, padded: int, rows: Any) -> None:
    """Copy the rows of B of a document's words into tiles ``[K, width]``, one behind the other.

    A width is a multiple of eight; topics and words that fill it up have B = 0 and 1, and the words count nothing.
    """
    num_topics, place = topics.shape[1], 0
    for first in range(0, len(words), tile):
        size = min(tile, len(words) - first)
        width = (size + 7) // 8 * 8
        block = rows[place : place + padded * width].reshape(padded, width)
        for i in range(size):
            row = topics[words[first + i]]
            for k in range(num_topics):
                block[k, i] = row[k]
        block[:num_topics, size:] = 1.0
        block[num_topics:] = 0.0
        block[num_topics:, size:] = 1.0
        place += padded * width


def _refresh(gamma: Any, limit: float, shift: Any, series: Any, scratch: Any, bits: Any, theta: Any) -> None:
    """theta = exp(ψ(gamma)), for one document."""
    for k in range(len(gamma)):
        shift[k], series[k] = _shift_and_series(float(gamma[k]))
    _exp_negative(shift, limit, series, scratch, bits, theta[: len(gamma)])


def _documents(
    first: int,
    last: int,
    tol: float,
    max_steps: int,
    limit: float,
    tile: int,
    starts: Any,
    word: Any,
    count: Any,
    topics: Any,
    prior: Any,
    gamma: Any,
    theta: Any,
    ratio: Any,
) -> int:
    """Documents ``first`` to ``last``: updates ``gamma``, and writes exp ψ(γ) and n / p. Returns the steps taken."""
    num_topics = topics.shape[1]
    padded = (num_topics + 3) // 4 * 4
    longest = 8
    for d in range(first, last):
        longest = max(longest, starts[d + 1] - starts[d])
    longest = (longest + 7) // 8 * 8
    rows = np.empty(padded * longest + 16, gamma.dtype)
    rows = rows[(-rows.ctypes.data % 64) // rows.itemsize :]  # whole cache lines
    weights = np.zeros(longest, gamma.dtype)
    ratios, sums, t = np.empty(longest, gamma.dtype), np.empty(padded, gamma.dtype), np.zeros(padded, gamma.dtype)
    shift, series, scratch = np.empty(num_topics), np.empty(num_topics), np.empty(num_topics)
    bits = np.empty(num_topics, np.int64)
    steps = 0
    for d in range(first, last):
        own = gamma[d]
        size = starts[d + 1] - starts[d]
        _gather(word[starts[d] : starts[d + 1]], topics, tile, padded, rows)
        weights[:size] = count[starts[d] : starts[d + 1]]
        weights[size:] = 0.0
        _refresh(own, limit, shift, series, scratch, bits, t)
        change, left = tol * num_topics, max_steps
        while left > 0 and change >= tol * num_topics:
            left -= 1
            _sweep(rows, size, tile, padded, t, weights, ratios, sums)
            change = 0.0
            for k in range(num_topics):
                proposal = prior[k] + t[k] * sums[k]
                change += abs(proposal - own[k])
                own[k] = proposal
            _refresh(own, limit, shift, series, scratch, bits, t)
        steps += max_steps - left
        _sweep(rows, size, tile, padded, t, weights, ratios, sums)
        ratio[starts[d] : starts[d + 1]] = ratios[:size]
        theta[d] = t[:num_topics]
    return steps


def _sweep(rows: Any, size: int, tile: int, padded: int, theta: Any, count: Any, ratio: Any, sums: Any) -> None:
    """One pass over a document's tiles: all of its ratios and sums."""
    sums[:] = 0.0
    place = 0
    for first in range(0, size, tile):
        width = (min(tile, size - first) + 7) // 8 * 8
        block = rows[place : place + padded * width].reshape(padded, width)
        _add_tile(block, theta, count[first:], ratio[first:], sums)
        place += padded * width


def _accumulate(
    first: int, last: int, by_word: Any, starts: Any, doc: Any, ratio: Any, theta: Any, topics: Any, out: Any
) -> None:
    """Words ``first`` to ``last``: out_wk = B_wk Σ_d t_dk ratio_dw."""
    for w in range(first, last):
        row = out[w]
        row[:] = 0.0
        for j in range(starts[w], starts[w + 1]):
            entry = by_word[j]
            weight, other = ratio[entry], theta[doc[entry]]
            for k in range(len(row)):
                row[k] += weight * other[k]
        for k in range(len(row)):
            row[k] *= topics[w, k]


def _expected_topics(
    first: int, last: int, by_word: Any, scaled: Any, log_scale: Any, totals: Any, limit: float
) -> None:
    """Words ``first`` to ``last``: exp(E log β − log_scale), with log_scale the largest −s of a word's topics."""
    num_topics = by_word.shape[1]
    inverse, shift, series = np.empty(num_topics), np.empty(num_topics), np.empty(num_topics)
    scratch, bits = np.empty(num_topics), np.empty(num_topics, np.int64)
    for k in range(num_topics):
        s, value = _shift_and_series(totals[k])
        inverse[k] = math.exp(s) / value
    for w in range(first, last):
        least = math.inf
        for k in range(num_topics):
            shift[k], value = _shift_and_series(float(by_word[w, k]))
            series[k] = value * inverse[k]
        for k in range(num_topics):
            least = min(least, shift[k])
        for k in range(num_topics):
            shift[k] -= least
        _exp_negative(shift, limit, series, scratch, bits, scaled[w])
        log_scale[w] = -least


_shift_and_series = _compiled(_shift_and_series, inline=True)
_exp_negative = _compiled(_exp_negative, fastmath=False)
_add_tile, _gather, _refresh, _sweep = (_compiled(f) for f in (_add_tile, _gather, _refresh, _sweep))
_documents, _accumulate, _expected_topics = (_compiled(f) for f in (_documents, _accumulate, _expected_topics))
