"""The compiled document step of LDA: its vectors, its exp(ψ), and documents and topics that do not fill whole vectors.

What both kernels have in common, and that they are the textbook's, is in ``test_lda.py``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from pyro_latent.models import lda
from pyro_latent.models.lda import Corpus, as_corpus

numba = pytest.importorskip("numba", reason="needs Numba")

from pyro_latent.models.lda.kernel import compiled_step, jit, simd  # noqa: E402

DOUBLE = torch.float64
DTYPES = [np.float64, np.float32]


def documents(lengths: list[int], num_words: int, seed: int = 0) -> Corpus:
    """One document for each number of different words, each of them one to four times."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((len(lengths), num_words))
    for row, length in zip(counts, lengths, strict=True):
        row[rng.choice(num_words, length, replace=False)] = rng.integers(1, 5, length)
    return as_corpus(counts)


def topics_and_start(corpus: Corpus, num_topics: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """λ ``[K, V]`` and γ ``[D, K]``."""
    rng = np.random.default_rng(seed)
    lambda_ = rng.gamma(0.5, 2.0, (num_topics, corpus.num_words)) + 0.02
    return torch.from_numpy(lambda_), torch.from_numpy(rng.gamma(2.0, 1.5, (corpus.num_documents, num_topics)) + 0.05)


def steps(corpus: Corpus, lambda_: Tensor, alpha: Tensor, gamma: Tensor, number: int) -> np.ndarray[Any, Any]:
    """So many updates of γ in NumPy and SciPy, for all documents."""
    beta = np.exp(scipy.special.psi(lambda_.numpy()) - scipy.special.psi(lambda_.numpy().sum(1, keepdims=True)))
    counts, found = corpus.to_dense().numpy(), gamma.numpy()
    for _ in range(number):
        theta = np.exp(scipy.special.psi(found))
        found = alpha.numpy() + theta * ((counts / (theta @ beta)) @ beta.T)
    return found


# ------------------------------------------------------------------------------------------------------------- vectors


@numba.njit
def use_vectors(a: Any, b: Any, out: Any) -> None:
    """Every function of ``simd`` that returns a vector, one result behind the other."""
    size = simd.lanes(a)
    x, y = simd.load(a, 3), simd.load(b, 1)
    simd.store(out, 0, (x + y) * x + y / x)
    simd.store(out, size, simd.zeros(a) + y)
    simd.store(out, 2 * size, simd.splat(b, 2))
    simd.store(out, 3 * size, simd.row_sums(a, 5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_compute_what_numpy_does(dtype: Any) -> None:
    rng, size = np.random.default_rng(0), 64 // np.dtype(dtype).itemsize
    a, b = (rng.normal(size=400).astype(dtype) for _ in range(2))
    out = np.zeros((4, size), dtype)
    use_vectors(a, b, out.reshape(-1))
    x, y = a[3 : 3 + size], b[1 : 1 + size]
    rows = a[5 : 5 + size * size].reshape(size, size)
    expected = [(x + y) * x + y / x, y, np.full(size, b[2]), rows.sum(1)]
    np.testing.assert_allclose(out, np.stack(expected), rtol=20 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)


@numba.njit
def turn(source: Any, starts: Any, target: Any, stride: int) -> None:
    simd.store_transposed(source, starts, 1, 4, target, 3, stride)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_square_of_scattered_rows_is_turned_around(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    source, size = rng.normal(size=500).astype(dtype), 64 // np.dtype(dtype).itemsize
    starts, target = rng.integers(0, 400, size + 1), np.zeros(3 + 20 * size, dtype)
    turn(source, starts, target, 20)
    rows = np.stack([source[start + 4 :][:size] for start in starts[1:]])
    np.testing.assert_array_equal(target[3:].reshape(size, 20)[:, :size], rows.T)
    assert not target[:3].any() and not target[3:].reshape(size, 20)[:, size:].any()


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        (np.zeros((8, 8)), 1.0, "Expected a contiguous array of one dimension"),
        (np.zeros(32)[::2], 1.0, "Expected a contiguous array of one dimension"),
        (np.zeros(32, int), 1.0, "Expected an array of floating numbers"),
        (np.zeros(32, np.float32), np.zeros(8), "Expected numbers of one type; got float32 and float64"),
    ],
)
def test_arrays_that_vectors_would_misread_are_refused(array: Any, value: Any, message: str) -> None:
    def copy(source: Any, target: Any) -> None:
        simd.store(target, 0, simd.load(source, 0))

    with pytest.raises(numba.TypingError, match=message):
        numba.njit(copy)(array if np.isscalar(value) else value, array)


def test_exp_of_digamma_is_scipys_and_is_held_up() -> None:
    """To 10⁻¹³ of the value, and where that is large in ψ, of ψ; below the limit exp(−limit) times exp ψ(x + 8)."""
    x = np.concatenate([np.geomspace(5e-3, 1e12, 2000), np.linspace(0.01, 20, 2000)])
    found, small = np.empty_like(x), np.array([1e-3, 1e-5, 1e-30, 1e-200] * 2)
    compiled_step._exp_digamma(x, 230.0, found)
    digamma = scipy.special.psi(x)
    assert (abs(np.log(found) - digamma) <= 1e-13 * np.maximum(1.0, abs(digamma))).all()
    held = np.empty(8)
    compiled_step._exp_digamma(small, 230.0, held)
    np.testing.assert_allclose(held, np.exp(scipy.special.psi(small + 8) - 230), rtol=1e-12)


# ----------------------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize("num_topics", [1, 2, 7, 8, 9, 15, 16, 17, 33])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_documents_and_topics_need_not_fill_vectors(num_topics: int, dtype: torch.dtype) -> None:
    """Lengths and numbers of topics on both sides of one, two and three vectors, after every number of steps."""
    corpus = documents([1, 7, 8, 9, 0, 15, 16, 17, 31, 32, 33, 49, 64, 65], 90)
    lambda_, gamma = topics_and_start(corpus, num_topics)
    alpha = torch.linspace(0.1, 1.0, num_topics, dtype=DOUBLE)
    rtol = 1e-11 if dtype == DOUBLE else 2e-4
    work = (corpus.to(dtype=dtype), lambda_.to(dtype), alpha.to(dtype))
    for number in (1, 2, 3, 8):
        step = lda.document_step(*work, start=gamma.to(dtype), tol=-1.0, max_steps=number, compiled=True)
        expected = steps(corpus, lambda_, alpha, gamma, number)
        np.testing.assert_allclose(step.gamma.numpy(), expected, rtol=rtol)
        assert step.statistics is not None and step.statistics.dtype == dtype
        np.testing.assert_allclose(step.statistics.sum(0).numpy(), corpus.to_dense().sum(0).numpy(), rtol=rtol)
        assert step.steps == number * len(corpus)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_work_is_in_the_dtype_of_the_counts(compiled: bool) -> None:
    corpus = documents([5, 20, 40], 90).to(dtype=torch.float32)
    lambda_, gamma = topics_and_start(corpus, 20)
    alpha = torch.full((20,), 0.3, dtype=DOUBLE)
    found = lda.document_step(corpus, lambda_, alpha, start=gamma, compiled=compiled)
    expected = lda.document_step(corpus, lambda_.float(), alpha.float(), start=gamma.float(), compiled=compiled)
    assert found.gamma.dtype == torch.float32 and torch.equal(found.gamma, expected.gamma)
    mixed = lda.document_step(corpus, lda.expected_topics(lambda_), alpha, start=gamma, compiled=compiled)
    torch.testing.assert_close(mixed.gamma, expected.gamma, rtol=1e-4, atol=1e-4)
    assert mixed.statistics is not None and mixed.statistics.dtype == torch.float32


def test_a_document_is_the_same_to_the_last_bit_beside_any_others() -> None:
    """Nothing is left over of the document before: of a longer one, or of one with a word that others lack."""
    corpus = documents([50, 3, 0, 33, 16, 1, 90, 17], 90)
    lambda_, gamma = topics_and_start(corpus, 5)
    alpha = torch.full((5,), 0.2, dtype=DOUBLE)
    together = lda.document_step(corpus, lambda_, alpha, start=gamma, compiled=True)
    for d in range(len(corpus)):
        alone = lda.document_step(corpus.select([d]), lambda_, alpha, start=gamma[[d]], compiled=True)
        assert torch.equal(alone.gamma[0], together.gamma[d])
    backwards = list(range(len(corpus)))[::-1]
    turned = lda.document_step(corpus.select(backwards), lambda_, alpha, start=gamma[backwards], compiled=True)
    assert torch.equal(turned.gamma, together.gamma[backwards])


def test_documents_are_shared_out_by_their_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts cover all documents once, in order, and no part has more than its share and one document."""
    corpus = documents([60, 0, 1, 2, 50, 0, 0, 90, 3, 4], 90)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(compiled_step, "_LEAST_FOR_THREADS", 1000)
    starts = corpus.starts.numpy()
    assert compiled_step._parts(starts, 7) == [(0, 10)]
    monkeypatch.setattr(compiled_step, "_PARTS_PER_THREAD", 2)
    monkeypatch.setattr(compiled_step, "torch", SimpleNamespace(get_num_threads=lambda: 2))
    assert compiled_step._parts(starts, 1) == [(0, 10)]
    parts = compiled_step._parts(starts, 7)
    assert [a for a, _ in parts] == [0, *(b for _, b in parts[:-1])] and parts[-1][1] == 10
    sizes = [int(corpus.starts[b] - corpus.starts[a]) for a, b in parts]
    assert max(sizes) <= 210 / 4 + 90


def test_a_wait_for_the_compiler_is_announced_once_and_only_ours(caplog: pytest.LogCaptureFixture) -> None:
    one, other, foreign = (numba.njit(lambda x: x + 1) for _ in range(3))
    announcement = jit.Announcement()
    announcement.functions += [one, other]
    with numba.core.event.install_listener("numba:compile", announcement):
        foreign(1)
        assert not caplog.records
        for function in (one, one, other):
            function(1)
    (record,) = caplog.records
    assert record.name == "pyro_latent" and "first fit" in record.getMessage()
