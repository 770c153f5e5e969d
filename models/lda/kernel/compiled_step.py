"""The document step of LDA as Numba compiles it; it can be imported only where Numba is installed.

Documents are walked one at a time. The rows of B that a document's words pick are copied into blocks ``[K, words]`` of
as many words as two vectors hold. Within a block the normalisers p_w of its words stay in registers over the loop over
topics, and so do then their ratios n_w / p_w: each number of B is read twice, the second time from the first-level
cache, and costs two multiply-adds. Every other sweep takes the blocks from the last to the first, and so begins with
those that the sweep before has left in the cache.

Topics are filled up to fours, with γ = 1 and B = 0, so that plain loops leave no rest; words with copies of a
document's last one, which count nothing.

The walk over a document is written in the vectors of :mod:`.simd`; what goes over the topics alone is plain loops, of
which Numba's compiler makes vector instructions, since nothing in them calls a function of the C library.

exp(ψ(x)) is taken without a logarithm, from ψ(x) = ψ(x + 8) − Σ_{i<8} 1/(x + i) and the asymptotic series of
exp(ψ(x + 8)): Abramowitz and Stegun (6.3.18), exponentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ..corpus import Corpus
from .jit import compile_function
from .simd import VECTOR_BYTES, lanes, load, row_sums, splat, store, store_transposed, zeros

__all__ = ["converge", "expect", "sum_up"]

#: Documents and words are divided into so many parts for each thread.
_PARTS_PER_THREAD = 8
#: Below so many numbers, threads cost more than they save: one reads that many in less than a millisecond.
_LEAST_FOR_THREADS = 2**18


# ------------------------------------------------------------------------------------------------------------ for torch


def expect(by_word: Tensor, totals: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """exp(E log β), scaled for each word, and the logarithms of the scales.

    Args:
        by_word: λ, shape ``[V, K]``, contiguous.
        totals: Σ_w λ_kw, float64, shape ``[K]``.
        limit: exp(−x) is held up at this x.
    """
    scaled, log_scale = torch.empty_like(by_word), by_word.new_empty(len(by_word))
    arrays = [t.numpy() for t in (by_word, scaled, log_scale, totals)]
    _in_threads(
        lambda first, last: _expected_topics(first, last, limit, *arrays),
        torch.arange(len(by_word) + 1),
        by_word.shape[1],
    )
    return scaled, log_scale


def converge(
    corpus: Corpus, topics: Tensor, prior: Tensor, gamma: Tensor, tol: float, max_steps: int, limit: float
) -> tuple[Tensor, Tensor, int]:
    """Document by document; ``gamma`` is updated in place. All are of one dtype.

    Returns:
        exp ψ(γ), n / p by entry, and the steps.
    """
    width = VECTOR_BYTES // gamma.element_size()
    theta = gamma.new_empty(len(gamma), -(-gamma.shape[1] // width) * width)
    ratio = torch.empty_like(corpus.count)
    inputs = tuple(t.contiguous().numpy() for t in (corpus.starts, corpus.word, corpus.count, topics, prior))
    work = (tol, max_steps, limit), inputs, tuple(t.numpy() for t in (gamma, theta, ratio))
    steps = _in_threads(lambda first, last: _documents(first, last, *work), corpus.starts, gamma.shape[1])
    return theta, ratio, int(sum(steps))


def sum_up(corpus: Corpus, topics: Tensor, theta: Tensor, ratio: Tensor) -> Tensor:
    """Σ_d n_dw φ_dwk, shape ``[V, K]``, from what :func:`converge` returns."""
    out = torch.empty_like(topics)
    arrays = [t.numpy() for t in (corpus.by_word, corpus.word_starts, corpus.doc, ratio, theta, topics, out)]
    _in_threads(lambda first, last: _accumulate(first, last, *arrays), corpus.word_starts, out.shape[1])
    return out


def _in_threads(work: Callable[[int, int], Any], starts: Tensor, width: int) -> list[Any]:
    """``work(first, last)`` of each part, on as many threads as torch has; compiled code lets them run side by side."""
    parts, threads = _parts(starts.numpy(), width), torch.get_num_threads()
    if len(parts) == 1:
        return [work(*parts[0])]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda part: work(*part), parts))


def _parts(starts: Any, width: int) -> list[tuple[int, int]]:
    """Ranges of rows with about as many entries in each.

    Args:
        starts: where each row's entries begin, and where the last one's end, int64, shape ``[rows + 1]``.
        width: numbers that an entry stands for.
    """
    rows, entries, threads = len(starts) - 1, int(starts[-1]), torch.get_num_threads()
    number = 1 if threads == 1 or entries * width < _LEAST_FOR_THREADS else _PARTS_PER_THREAD * threads
    inner = np.searchsorted(starts, np.linspace(0, entries, number + 1)[1:-1]).tolist()
    return [(a, b) for a, b in pairwise([0, *(min(edge, rows) for edge in inner), rows]) if a < b]


# ------------------------------------------------------------------------------------------------- compiled: exp ψ

#: Pieces of compiled functions, in which a product and a sum may become one multiply-add.
_piece = njit(error_model="numpy", fastmath={"contract"})


@_piece
def _shift_and_series(x: float) -> tuple[float, float]:
    """s = Σ_{i<8} 1/(x + i), and exp(ψ(x + 8)); so that exp(ψ(x)) is the second times exp(−s).

    The terms of the sum are paired from both ends, which makes it one fraction in u = x (x + 7). The series is that of
    exp(ψ(y + 1/2)) / y in 1 / y²; from y = 7.5 on its error is below 10⁻¹³. One division serves both.
    """
    u = x * (x + 7.0)
    numerator = (2.0 * x + 7.0) * (((4.0 * u + 84.0) * u + 504.0) * u + 720.0)
    denominator = u * (u + 6.0) * (u + 10.0) * (u + 12.0)
    y = x + 7.5
    square = y * y
    inverse = 1.0 / (denominator * square)
    v = denominator * inverse
    series = 2709398569 / 367873228800 + v * (-499769010050743 / 24103053950976000)
    series = 10313 / 2903040 + v * (-5509121 / 1393459200 + v * series)
    return numerator * (square * inverse), y * (1.0 + v * (1 / 24 + v * (-37 / 5760 + v * series)))


@_piece
def _exp_negative(exponent: float, limit: float) -> float:
    """exp(−min(exponent, limit)), for an exponent ≥ 0 and limit < 708, without a call that would end a vector loop.

    exp(−s) = 2ⁿ exp(r) with |r| ≤ ½ log 2 and a Taylor polynomial. Adding 1.5 · 2⁵² rounds to an integer, which then
    stands in the low bits of the sum, and moves to where an exponent stands.
    """
    s = -min(exponent, limit)
    shifted = s * 1.4426950408889634 + 6755399441055744.0
    n = shifted - 6755399441055744.0
    r = (s - n * 0.6931471803691238) - n * 1.9082149292705877e-10
    high = 1 / 5040 + r * (1 / 40320 + r * (1 / 362880 + r * (1 / 3628800 + r * (1 / 39916800))))
    middle = 1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * high)))
    power = np.int64((np.float64(shifted).view(np.int64) + 1023) << 52).view(np.float64)
    return (1.0 + r * (1.0 + r * (0.5 + r * middle))) * power


@_piece
def _exp_digamma(x: Any, limit: float, out: Any) -> None:
    """exp(ψ(x)) of each number of an array, in float64."""
    for k in range(len(x)):
        shift, series = _shift_and_series(np.float64(x[k]))
        out[k] = series * _exp_negative(shift, limit)


@_piece
def _empty(size: int, like: Any) -> Any:
    """An array of another's dtype, with its vectors each in one line of the cache."""
    numbers = np.empty(size + lanes(like), like.dtype)
    first = (-numbers.ctypes.data % VECTOR_BYTES) // numbers.itemsize
    return numbers[first : first + size]


# ------------------------------------------------------------------------------------------------ compiled: documents


@_piece
def _normalize(rows: Any, place: int, num_topics: int, theta: Any, count: Any, word: int, ratio: Any) -> None:
    """For a block of two vectors of words: ratio_w = n_w / Σ_k t_k B_kw.

    Topics are taken by two, since a sum waits for its last term; ``rows`` has an even number of them.
    """
    width = lanes(rows)
    a, b, c, d = zeros(rows), zeros(rows), zeros(rows), zeros(rows)
    for k in range(0, num_topics, 2):
        s, t = splat(theta, k), splat(theta, k + 1)
        a = a + s * load(rows, place)
        b = b + s * load(rows, place + width)
        c = c + t * load(rows, place + 2 * width)
        d = d + t * load(rows, place + 3 * width)
        place += 4 * width
    store(ratio, word, load(count, word) / (a + c))
    store(ratio, word + width, load(count, word + width) / (b + d))


@_piece
def _weigh(rows: Any, place: int, num_topics: int, ratio: Any, word: int, sums: Any) -> None:
    """For a block of two vectors of words: sums_k += Σ_w B_kw ratio_w, each still as a vector of partial sums."""
    width = lanes(rows)
    a, b = load(ratio, word), load(ratio, word + width)
    for k in range(num_topics):
        partial = load(sums, k * width) + a * load(rows, place)
        store(sums, k * width, partial + b * load(rows, place + width))
        place += 2 * width


@njit(error_model="numpy", fastmath={"contract", "reassoc"})
def _move(prior: Any, sums: Any, own: Any, theta: Any) -> float:
    """γ_k = α_k + t_k Σ_w B_kw ratio_w; returns Σ_k |change of γ_k|."""
    width = lanes(sums)
    for k in range(0, len(sums) // width, width):
        store(sums, k, row_sums(sums, k * width))
    change = 0.0
    for k in range(len(own)):
        proposal = prior[k] + theta[k] * sums[k]
        change += abs(proposal - own[k])
        own[k] = proposal
    return change


@_piece
def _gather(words: Any, topics: Any, starts: Any, rows: Any) -> None:
    """Copy the rows of B of a document's words into blocks ``[K, two vectors]``, one behind the other.

    The last block is filled up with the last word; an odd number of topics, with zeros.
    """
    num_topics, width = topics.shape[1], lanes(rows)
    stride, height = 2 * width, num_topics + num_topics % 2
    flat = topics.reshape(topics.size)
    filled = -(-len(words) // stride) * stride
    for i in range(filled):
        starts[i] = words[min(i, len(words) - 1)] * num_topics
    for first in range(0, filled, width):
        place = first // stride * stride * height + first % stride
        if num_topics >= width:
            for k in range(0, num_topics, width):
                column = min(k, num_topics - width)
                store_transposed(flat, starts, first, column, rows, place + column * stride, stride)
        else:
            for i in range(width):
                for k in range(num_topics):
                    rows[place + k * stride + i] = flat[starts[first + i] + k]
        if num_topics < height:
            store(rows, place + num_topics * stride, zeros(rows))


@_piece
def _sweep(rows: Any, num_topics: int, theta: Any, count: Any, ratio: Any, sums: Any, backward: bool) -> None:
    """All of a document's ratios and sums; ``len(ratio)`` words fill its blocks."""
    width, height = 2 * lanes(rows), num_topics + num_topics % 2
    sums[:] = 0.0
    for word in range(0, len(ratio), width):
        at = len(ratio) - width - word if backward else word
        _normalize(rows, at * height, num_topics, theta, count, at, ratio)
        _weigh(rows, at * height, num_topics, ratio, at, sums)


@_piece
def _settle(
    rows: Any, num_topics: int, count: Any, prior: Any, settings: Any, own: Any, theta: Any, ratio: Any, sums: Any
) -> int:
    """Steps until one document's γ, ``own``, stays; ``theta`` and ``ratio`` then belong to it. Returns their number."""
    tol, most, limit = settings
    _exp_digamma(own, limit, theta)
    change, taken = math.inf, 0
    while taken < most and change >= tol * num_topics:
        _sweep(rows, num_topics, theta, count, ratio, sums, taken % 2 == 1)
        change = _move(prior, sums, own, theta)
        _exp_digamma(own, limit, theta)
        taken += 1
    height = num_topics + num_topics % 2
    for word in range(0, len(ratio), 2 * lanes(ratio)):
        _normalize(rows, word * height, num_topics, theta, count, word, ratio)
    return taken


def _documents(first: int, last: int, settings: Any, inputs: Any, outputs: Any) -> int:
    """Documents ``first`` to ``last``: updates ``gamma``, and writes exp ψ(γ) and n / p. Returns the steps taken.

    ``settings`` are the tolerance, the most steps of a document, and where exp(−x) is held up.
    """
    (starts, word, count, topics, prior), (gamma, theta, ratio) = inputs, outputs
    num_topics, padded, width = topics.shape[1], theta.shape[1], 2 * lanes(ratio)
    longest = -(-np.diff(starts[first : last + 1]).max() // width) * width
    rows, places = _empty(longest * (num_topics + 1), ratio), np.empty(longest, np.int64)
    weights, ratios, sums = _empty(longest, ratio), _empty(longest, ratio), _empty(padded * lanes(ratio), ratio)
    size, row = -(-num_topics // 4) * 4, np.zeros(padded, ratio.dtype)
    own, alpha, t = np.ones(size, ratio.dtype), np.ones(size, ratio.dtype), row[:size]
    alpha[:num_topics] = prior
    steps = 0
    for d in range(first, last):
        begin, end = starts[d], starts[d + 1]
        _gather(word[begin:end], topics, places, rows)
        filled = ratios[: -(-(end - begin) // width) * width]
        weights[: end - begin], weights[end - begin : len(filled)] = count[begin:end], 0.0
        own[:num_topics] = gamma[d]
        steps += _settle(rows, num_topics, weights, alpha, settings, own, t, filled, sums)
        gamma[d], theta[d], ratio[begin:end] = own[:num_topics], row, filled[: end - begin]
    return steps


# --------------------------------------------------------------------------------------------------- compiled: topics


@njit(error_model="numpy", fastmath={"nnan", "nsz"})
def _lowest(numbers: Any) -> float:
    """The smallest number of an array that has no NaN, found by vectors."""
    least = numbers[0]
    for k in range(len(numbers)):
        least = min(least, numbers[k])
    return least


def _accumulate(
    first: int, last: int, by_word: Any, starts: Any, doc: Any, ratio: Any, theta: Any, topics: Any, out: Any
) -> None:
    """Words ``first`` to ``last``: out_wk = B_wk Σ_d t_dk ratio_dw."""
    num_topics, padded, flat = topics.shape[1], theta.shape[1], theta.reshape(theta.size)
    row = _empty(padded, flat)
    for w in range(first, last):
        for k in range(0, padded, lanes(flat)):
            sums = zeros(flat)
            for j in range(starts[w], starts[w + 1]):
                sums = sums + splat(ratio, by_word[j]) * load(flat, doc[by_word[j]] * padded + k)
            store(row, k, sums)
        for k in range(num_topics):
            out[w, k] = row[k] * topics[w, k]


def _expected_topics(
    first: int, last: int, limit: float, by_word: Any, scaled: Any, log_scale: Any, totals: Any
) -> None:
    """Words ``first`` to ``last``: exp(E log β − log_scale), with log_scale the largest −s of a word's topics."""
    shift, series, inverse = np.empty_like(totals), np.empty_like(totals), np.empty_like(totals)
    for k in range(len(totals)):
        s, value = _shift_and_series(totals[k])
        inverse[k] = math.exp(s) / value
    for w in range(first, last):
        for k in range(len(totals)):
            shift[k], series[k] = _shift_and_series(np.float64(by_word[w, k]))
        least = _lowest(shift)
        for k in range(len(totals)):
            scaled[w, k] = series[k] * inverse[k] * _exp_negative(shift[k] - least, limit)
        log_scale[w] = -least


_documents, _accumulate, _expected_topics = (
    compile_function(f, fastmath={"contract"}) for f in (_documents, _accumulate, _expected_topics)
)
