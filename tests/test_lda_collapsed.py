"""CVB0: its formula, its counts, its two implementations, and how well it predicts."""

from __future__ import annotations

import lda.datasets
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import psi
from sklearn.decomposition import LatentDirichletAllocation
from torch import Tensor

from pyro_latent.errors import DataError
from pyro_latent.models.lda import LDA, Corpus, as_corpus, collapsed, has_compiled_kernel
from pyro_latent.models.lda.collapsed import CollapsedState, collapsed_fit, collapsed_pass, collapsed_start

Array = npt.NDArray[np.float64]


def small_counts(num_documents: int = 23, num_words: int = 17, seed: int = 0) -> npt.NDArray[np.int64]:
    """Poisson counts; the documents differ in length, and one is empty."""
    generator = np.random.default_rng(seed)
    counts = generator.poisson(generator.uniform(0.1, 2.0, (num_documents, 1)), (num_documents, num_words))
    counts[4] = 0
    return counts


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recounted(state: CollapsedState) -> tuple[Tensor, Tensor]:
    """The counts of documents and of words by topics, from the responsibilities anew."""
    corpus = state.corpus
    weighted = corpus.count[:, None] * state.responsibilities
    documents = torch.zeros_like(state.document_counts).index_add(0, corpus.doc, weighted)
    return documents, torch.zeros_like(state.word_counts).index_add(0, corpus.word, weighted)


def published_formula(tokens: Array, doc: Array, word: Array, alpha: Array, xi: Array) -> Array:
    """CVB0 of Asuncion et al. 2009, for every token at once, from dense one-hot matrices; ``tokens`` is r, [N, K]."""
    same_document = (doc[:, None] == doc).astype(float) - np.eye(len(doc))
    same_word = (word[:, None] == word).astype(float) - np.eye(len(word))
    others = 1.0 - np.eye(len(word))
    new = (same_document @ tokens + alpha) * (same_word @ tokens + xi[word][:, None]) / (others @ tokens + xi.sum())
    return np.asarray(new / new.sum(-1, keepdims=True))


# -------------------------------------------------------------------------------------------------------- the formula


@pytest.mark.parametrize("block_size", [1, 5, 100])
def test_a_pass_is_the_formula_of_cvb0_in_turn(block_size: int) -> None:
    """The reference goes entry by entry over dense counts; counts of words and topics move at the end of a block."""
    counts, num_topics = small_counts(), 4
    alpha, xi = np.array([0.1, 0.5, 1.0, 2.0]), np.linspace(0.01, 0.3, counts.shape[1])
    state = collapsed_start(as_corpus(counts), num_topics, seeded())
    r = {
        key: row
        for key, row in zip(zip(*counts.nonzero(), strict=True), state.responsibilities.numpy().copy(), strict=True)
    }
    for begin in range(0, len(counts), block_size):
        block_start = dict(r)
        for d in range(begin, min(begin + block_size, len(counts))):
            for w in counts[d].nonzero()[0]:
                own = r[d, w]
                of_document = sum(counts[d, v] * r[d, v] for v in counts[d].nonzero()[0]) - own
                of_word = sum(counts[e, w] * block_start[e, w] for e in counts[:, w].nonzero()[0]) - own
                of_all = sum(counts[key] * row for key, row in block_start.items()) - own
                new = (of_document + alpha) * (of_word + xi[w]) / (of_all + xi.sum())
                r[d, w] = new / new.sum()
    collapsed_pass(state, torch.tensor(alpha), torch.tensor(xi), block_size)
    np.testing.assert_allclose(state.responsibilities, np.stack(list(r.values())), rtol=1e-11)


@pytest.mark.parametrize("block_size", [1, 64])
def test_where_passes_end_every_token_satisfies_the_published_formula(block_size: int) -> None:
    """Also with the copies of a word as tokens of their own, as the paper has them."""
    counts, num_topics = small_counts(8, 6), 3
    fit = collapsed_fit(
        as_corpus(counts), num_topics, max_iter=20_000, tol=1e-13, block_size=block_size, generator=seeded(1)
    )
    assert fit.converged
    doc, word = counts.nonzero()
    copies = counts[doc, word]
    tokens = np.repeat(fit.state.responsibilities.numpy(), copies, axis=0)
    prior = np.full(num_topics, 1 / num_topics), np.full(counts.shape[1], 1 / num_topics)
    new = published_formula(tokens, np.repeat(doc, copies), np.repeat(word, copies), *prior)
    np.testing.assert_allclose(tokens, new, atol=1e-10)


def test_fractional_counts_leave_out_no_more_than_there_is() -> None:
    """A single entry with a count below 1 leaves nothing behind, so its update sees the priors alone."""
    state = collapsed_start(as_corpus(np.array([[0.0, 0.25]]), fractional=True), 2, seeded())
    alpha = torch.tensor([1.0, 3.0]).double()
    collapsed_pass(state, alpha, torch.tensor([0.5, 0.5]).double())
    torch.testing.assert_close(state.responsibilities[0], alpha / 4)


# --------------------------------------------------------------------------------------------------------- the counts


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-3)])
def test_counts_are_conserved_over_many_passes(dtype: torch.dtype, tolerance: float) -> None:
    counts = small_counts(60, 40)
    fit = collapsed_fit(as_corpus(counts, dtype=dtype), 5, max_iter=300, tol=0.0, block_size=16, generator=seeded())
    documents, words = recounted(fit.state)
    torch.testing.assert_close(fit.state.document_counts, documents, atol=tolerance, rtol=0)
    torch.testing.assert_close(fit.state.word_counts, words, atol=tolerance, rtol=0)
    np.testing.assert_allclose(fit.state.document_counts.sum(-1), counts.sum(1), atol=tolerance)
    np.testing.assert_allclose(fit.state.word_counts.sum(-1), counts.sum(0), atol=tolerance)
    assert fit.state.responsibilities.dtype == dtype and bool((fit.state.responsibilities >= 0).all())


def test_gamma_and_lambda_are_priors_plus_counts_and_empty_documents_have_the_prior() -> None:
    counts = small_counts()
    alpha, xi = torch.tensor([0.2, 0.7]).double(), 0.05
    fit = collapsed_fit(as_corpus(counts), 2, doc_topic_prior=alpha, topic_word_prior=xi, generator=seeded())
    documents, words = recounted(fit.state)
    torch.testing.assert_close(fit.gamma, alpha + documents)
    torch.testing.assert_close(fit.lambda_, (words + xi).mT)
    torch.testing.assert_close(fit.gamma[4], alpha)
    assert fit.lambda_.is_contiguous()


def test_one_topic_takes_all() -> None:
    counts = small_counts()
    fit = collapsed_fit(as_corpus(counts), 1, topic_word_prior=0.1)
    np.testing.assert_allclose(fit.lambda_[0], counts.sum(0) + 0.1)
    assert fit.converged


def test_a_corpus_without_tokens_has_the_priors() -> None:
    fit = collapsed_fit(as_corpus(np.zeros((3, 5))), 2, doc_topic_prior=0.3, topic_word_prior=0.2)
    assert fit.converged and bool((fit.gamma == 0.3).all()) and bool((fit.lambda_ == 0.2).all())


# ------------------------------------------------------------------------------------------------ the implementations


@pytest.fixture
def reuters() -> Corpus:
    return as_corpus(lda.datasets.load_reuters())


@pytest.mark.skipif(not has_compiled_kernel(), reason="needs numba")
@pytest.mark.parametrize("block_size", [7, 64, 1000])
def test_torch_and_numba_give_the_same_numbers(reuters: Corpus, block_size: int) -> None:
    alpha, xi = torch.full((6,), 0.1).double(), torch.full((reuters.num_words,), 0.01).double()
    compiled, plain = (collapsed_start(reuters, 6, seeded()) for _ in range(2))
    for _ in range(3):
        total = collapsed._numba_pass(compiled, alpha, xi, block_size)
        assert total == pytest.approx(collapsed._torch_pass(plain, alpha, xi, block_size), rel=1e-10)
    for name in ("responsibilities", "document_counts", "word_counts"):
        torch.testing.assert_close(getattr(compiled, name), getattr(plain, name), rtol=1e-9, atol=1e-10)


def test_a_fit_goes_on_from_a_state_and_repeats_with_a_seed() -> None:
    corpus = as_corpus(small_counts(60, 40))
    whole = collapsed_fit(corpus, 3, max_iter=20, tol=0.0, generator=seeded())
    half = collapsed_fit(corpus, 3, max_iter=10, tol=0.0, generator=seeded())
    rest = collapsed_fit(corpus, 3, max_iter=10, tol=0.0, state=half.state)
    assert torch.equal(whole.lambda_, rest.lambda_)
    assert torch.equal(whole.change[10:], rest.change)


# ----------------------------------------------------------------------------------------------------- how it predicts


def held_out_score(observed: Array, rest: Array, topics: Array, alpha: float) -> float:
    """Mean log probability of the rest's tokens, θ by mean field from the observed ones, with the topics known."""
    gamma = np.ones((len(observed), len(topics)))
    for _ in range(100):
        weights = np.exp(psi(gamma) - psi(gamma.sum(-1, keepdims=True)))
        gamma = alpha + weights * ((observed / (weights @ topics)) @ topics.T)
    theta = gamma / gamma.sum(-1, keepdims=True)
    return float((rest * np.log(theta @ topics)).sum() / rest.sum())


@pytest.mark.slow
def test_it_predicts_held_out_words_of_reuters_at_least_as_well_as_batch_variational_bayes() -> None:
    """Under the same priors, as Asuncion et al. 2009 report; against scikit-learn's batch LDA after 60 passes."""
    counts = np.asarray(lda.datasets.load_reuters(), dtype=float)
    generator = np.random.default_rng(0)
    train, test = np.split(counts[generator.permutation(len(counts))], [316])
    observed = generator.binomial(test.astype(int), 0.5).astype(float)
    fit = collapsed_fit(as_corpus(train), 20, doc_topic_prior=0.1, topic_word_prior=0.01, generator=seeded())
    batch = LatentDirichletAllocation(
        20, doc_topic_prior=0.1, topic_word_prior=0.01, max_iter=60, random_state=0, evaluate_every=-1
    ).fit(train)
    topics = [matrix / matrix.sum(-1, keepdims=True) for matrix in (fit.lambda_.numpy(), batch.components_)]
    ours, theirs = (held_out_score(observed, test - observed, each, 0.1) for each in topics)
    assert ours > theirs


def test_the_front_takes_its_topics() -> None:
    """``LDA(learning_method="cvb0")`` ends at the topics of the function, from the same seed."""
    counts = small_counts(60, 40)
    fit = collapsed_fit(counts, 3, doc_topic_prior=0.1, topic_word_prior=0.2, generator=seeded(7))
    front = LDA(3, doc_topic_prior=0.1, topic_word_prior=0.2, learning_method="cvb0", random_state=7).fit(counts)
    torch.testing.assert_close(front.components_, fit.lambda_)
    assert front.n_iter_ == len(fit.change)


def test_known_topics_are_recovered() -> None:
    """Ten topics over 300 words, 500 documents of 80 words: each has a match with a cosine above 0.95 on average."""
    generator = np.random.default_rng(0)
    topics = generator.dirichlet(np.full(300, 0.05), 10)
    theta = generator.dirichlet(np.full(10, 0.1), 500)
    counts = np.stack([generator.multinomial(80, row @ topics) for row in theta])
    fit = collapsed_fit(as_corpus(counts), 10, doc_topic_prior=0.1, topic_word_prior=0.05, generator=seeded())
    found = fit.lambda_.numpy()
    cosine = (found @ topics.T) / np.linalg.norm(found, axis=1)[:, None] / np.linalg.norm(topics, axis=1)
    assert cosine[linear_sum_assignment(-cosine)].mean() > 0.95


# ---------------------------------------------------------------------------------------------------------- the errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_topics": 0}, r"Expected num_topics to be an integer of at least 1; got 0\. Write num_topics=1"),
        ({"max_iter": 0}, r"Expected max_iter to be an integer of at least 1; got 0\. Write max_iter=1"),
        ({"block_size": 0}, "Expected block_size to be an integer of at least 1; got 0"),
        ({"tol": float("nan")}, "Expected tol to be non-negative and finite; got nan"),
        ({"doc_topic_prior": 0.0}, "Expected doc_topic_prior to be positive and finite; got 0"),
        (
            {"doc_topic_prior": torch.ones(3)},
            r"Expected doc_topic_prior to be a number or of shape \[2\]; got shape \[3\]",
        ),
        ({"topic_word_prior": float("inf")}, "Expected topic_word_prior to be positive and finite; got inf"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collapsed_fit(as_corpus(small_counts()), **({"num_topics": 2} | arguments))  # type: ignore[arg-type]


def test_a_minibatch_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"Expected a whole corpus; got a minibatch of 2 of 23 documents\. Fit the whole"
    ):
        collapsed_fit(as_corpus(small_counts()).minibatch([0, 3]), 2)


def test_data_is_checked_as_a_corpus_is() -> None:
    with pytest.raises(DataError, match="Expected"):
        collapsed_fit(np.array([[1.0, -1.0]]), 2)
