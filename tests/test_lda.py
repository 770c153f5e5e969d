"""LDA's parts by themselves: corpora, densities, updates, document kernels, hyperparameters, evaluation, guides."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.sparse
import scipy.special
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, check_updates, handlers
from pyro_latent.errors import DataError, ModelError
from pyro_latent.models import lda
from pyro_latent.models.lda import Corpus, as_corpus
from pyro_latent.models.lda.kernel import jit

DOUBLE = torch.float64
ALPHA = torch.tensor([0.3, 0.5, 0.2, 0.9], dtype=DOUBLE)
PRIORS: dict[str, Any] = {"doc_topic_prior": ALPHA, "topic_word_prior": 0.2}
STRONG = 10 * ALPHA
STRONG_PRIORS = PRIORS | {"doc_topic_prior": STRONG}  # under which documents settle in tens of rounds

needs_numba = pytest.mark.skipif(not lda.has_compiled_kernel(), reason="needs Numba")


def synthetic(num_documents: int, num_words: int, num_topics: int, length: float, seed: int = 0) -> Corpus:
    """Documents of Poisson lengths, some of them empty, drawn from LDA."""
    rng = np.random.default_rng(seed)
    topics = rng.dirichlet(np.full(num_words, 0.1), num_topics)
    theta = rng.dirichlet(np.full(num_topics, 0.2), num_documents)
    rows = [rng.multinomial(rng.poisson(length), row / row.sum()) for row in theta @ topics]
    return as_corpus(np.stack(rows))


@pytest.fixture
def corpus() -> Corpus:
    return synthetic(30, 25, 4, 20)


def random_state(corpus: Corpus, num_topics: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """λ ``[K, V]`` and γ ``[D, K]`` of moderate size."""
    rng = np.random.default_rng(seed)
    lambda_ = rng.gamma(2.0, 1.5, (num_topics, corpus.num_words)) + 0.05
    gamma = rng.gamma(2.0, 1.5, (corpus.num_documents, num_topics)) + 0.05
    return torch.from_numpy(lambda_), torch.from_numpy(gamma)


# ------------------------------------------------------------------------------------------------------------- corpora

COUNTS = np.array([[2, 0, 1, 0], [0, 0, 0, 0], [0, 3, 0, 1]])


@pytest.mark.parametrize(
    "data",
    [
        COUNTS,
        COUNTS.astype(np.float32),
        COUNTS.tolist() and scipy.sparse.csr_matrix(COUNTS),
        scipy.sparse.coo_array(COUNTS),
        torch.from_numpy(COUNTS),
        torch.from_numpy(COUNTS).to_sparse_coo(),
        torch.from_numpy(COUNTS).double().to_sparse_csr(),
    ],
    ids=["numpy", "float32", "csr", "coo", "torch", "torch coo", "torch csr"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_all_forms_of_a_count_matrix_make_one_corpus(data: Any) -> None:
    corpus = as_corpus(data)
    np.testing.assert_array_equal(corpus.to_dense().numpy(), COUNTS)
    np.testing.assert_array_equal(corpus.to_scipy().toarray(), COUNTS)
    assert corpus.doc.tolist() == [0, 0, 2, 2] and corpus.word.tolist() == [0, 2, 1, 3]
    assert corpus.starts.tolist() == [0, 2, 2, 4] and corpus.lengths.tolist() == [3, 0, 4]
    assert len(corpus) == 3 and corpus.num_words == 4 and corpus.num_tokens == 7
    assert corpus.count.dtype == (torch.float32 if getattr(data, "dtype", None) == np.float32 else DOUBLE)


def test_lists_of_words_and_of_numbers_make_the_same_corpus() -> None:
    words = [["b", "a", "b"], [], ["c"]]
    corpus = as_corpus(words)
    assert corpus.vocabulary == ("a", "b", "c")
    assert corpus.to_dense().tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]
    assert torch.equal(as_corpus([[1, 0, 1], [], [2]]).to_dense(), corpus.to_dense())
    assert as_corpus(words, vocabulary=["c", "b", "a"]).to_dense().tolist() == [[0, 2, 1], [0, 0, 0], [1, 0, 0]]
    assert as_corpus([["a", "x"]], vocabulary=["a", "b"], unknown="ignore").to_dense().tolist() == [[1, 0]]
    assert as_corpus([[], []], num_words=5).num_words == 5


def test_rows_of_numbers_are_tokens_where_that_is_said_or_they_can_be_no_counts() -> None:
    """Of one length they may be either; not if the vocabulary has another size, or the lengths differ."""
    tokens = [[0, 2], [1, 1]]
    expected = [[1, 0, 1], [0, 2, 0]]
    assert as_corpus(tokens, num_words=3).to_dense().tolist() == expected
    assert as_corpus(tokens, vocabulary=["a", "b", "c"]).to_dense().tolist() == expected
    assert as_corpus([*tokens, []]).to_dense().tolist() == [*expected, [0, 0, 0]]
    square = as_corpus([[0, 1], [1, 1]], vocabulary=["a", "b"], num_words=2)
    assert square.to_dense().tolist() == [[1, 1], [0, 2]]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (COUNTS - 1, {}, "Expected counts that are not negative; got -1 for word 1 of document 0"),
        (COUNTS + 0.5, {}, "Expected counts that are whole numbers; got 2.5 .* fractional=True"),
        (
            np.where(COUNTS == 3, np.nan, COUNTS),
            {},
            "Expected counts that are finite; got nan for word 1 of document 2",
        ),
        (COUNTS[0], {}, r"Expected counts of shape \[documents, words\]; got shape \[4\]"),
        (torch.zeros(2, 3, 4), {}, r"Expected counts of shape \[documents, words\]; got shape \[2, 3, 4\]"),
        (COUNTS[:0], {}, "Expected at least one document"),
        (COUNTS[:, :0], {}, "Expected a vocabulary of at least one word"),
        ([[], []], {}, "Expected a vocabulary of at least one word"),
        (COUNTS.astype(str), {}, "Expected counts that are real numbers"),
        (COUNTS, {"vocabulary": ["a"]}, "Expected a vocabulary of as many words as the counts have columns, 4; got 1"),
        (COUNTS, {"vocabulary": list("abca")}, "without repetitions; got 'a' twice"),
        (COUNTS, {"num_words": 7}, "Expected counts of 7 words; got 4 columns"),
        ([["a"], ["b"]], {"vocabulary": ["a"]}, r"Expected tokens of the vocabulary \(1 words\); got 'b'"),
        (COUNTS.tolist(), {}, "Expected lists of tokens; got rows of 4 numbers each, which may be counts"),
        (list(COUNTS), {"vocabulary": list("abcd")}, "Expected lists of tokens; got rows of 4 numbers each"),
        ([["a", 3]], {}, "Expected all tokens to be words"),
        ([[1.5]], {}, "Expected tokens that are words or integers; got 1.5"),
        ([[7]], {"num_words": 5}, "Expected tokens from 0 to 4; got 7"),
        (["some text"], {}, "Expected each document to be a list of tokens; got 'some text'"),
    ],
)
def test_bad_data_is_refused_in_words(data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_corpus(data, **options)


def test_what_is_no_corpus_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="Expected a count matrix"):
        as_corpus(7)
    with pytest.raises(TypeError, match="Expected a floating dtype"):
        as_corpus(COUNTS, dtype=torch.int64)
    with pytest.raises(ValueError, match="Expected unknown"):
        as_corpus(COUNTS, unknown="drop")


def test_weights_that_are_declared_are_kept() -> None:
    assert as_corpus(COUNTS / 2, fractional=True).to_dense().tolist() == (COUNTS / 2).tolist()


def test_entries_add_up_and_a_negative_one_cannot_hide_among_them() -> None:
    places = ([0, 0], [1, 1])
    assert as_corpus(scipy.sparse.coo_matrix(([2.0, 1.0], places), shape=(1, 2))).to_dense().tolist() == [[0, 3]]
    with pytest.raises(DataError, match="not negative"):
        as_corpus(scipy.sparse.coo_matrix(([2.0, -1.0], places), shape=(1, 2)))
    with pytest.raises(DataError, match="not negative"):
        as_corpus(torch.sparse_coo_tensor(torch.tensor(places), [2.0, -1.0], (1, 2), check_invariants=True))


def test_a_selection_is_the_rows_of_the_matrix(corpus: Corpus) -> None:
    rows = [5, 2, 2, 29]
    chosen = corpus.select(rows)
    torch.testing.assert_close(chosen.to_dense(), corpus.to_dense()[rows])
    assert chosen.is_whole and not corpus.minibatch(rows).is_whole
    assert corpus.minibatch(rows).index.tolist() == rows and corpus.minibatch(rows).total_documents == 30
    part = corpus.minibatch(rows).select([3, 0])
    assert part.is_whole and part.total_documents == 2
    torch.testing.assert_close(part.to_dense(), corpus.to_dense()[[29, 5]])


@pytest.mark.parametrize("kind", ["torch", "numpy", "list"])
def test_a_mask_selects_the_documents_where_it_is_true(corpus: Corpus, kind: str) -> None:
    mask = torch.arange(30) % 7 == 3
    given: Any = {"torch": mask, "numpy": mask.numpy(), "list": mask.tolist()}[kind]
    torch.testing.assert_close(corpus.select(given).to_dense(), corpus.to_dense()[mask])
    assert corpus.minibatch(given).index.tolist() == [3, 10, 17, 24]


@pytest.mark.parametrize("index", [range(2, 5), np.array([2, 3, 4], dtype=np.uint8), (np.int32(2), 3, torch.tensor(4))])
def test_places_are_integers_of_any_kind(corpus: Corpus, index: Any) -> None:
    assert corpus.minibatch(index).index.tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([3, 30], "Expected documents from 0 to 29; got 30"),
        ([-1], "Expected documents from 0 to 29; got -1"),
        ([0.0, 1.0], r"Expected places of documents, or a mask; got numbers of torch\.float64"),
        (["first"], r"Expected places of documents, or a mask; got \['first'\]"),
        ([[0], [1, 2]], "Expected places of documents, or a mask"),
        ([], r"Expected at least one document, in one dimension; got shape \[0\]"),
        (3, r"Expected at least one document, in one dimension; got shape \[\]"),
        (torch.ones(30, 1, dtype=torch.bool), r"in one dimension; got shape \[30, 1\]"),
        ([True, False], "Expected a mask of 30 documents, at least one of them True; got 2, 1 of them True"),
        (torch.zeros(30, dtype=torch.bool), "got 30, 0 of them True"),
    ],
)
def test_what_names_no_documents_is_refused(corpus: Corpus, index: Any, message: str) -> None:
    for method in (corpus.select, corpus.minibatch):
        with pytest.raises(DataError, match=message):
            method(index)


def test_minibatches_are_a_partition(corpus: Corpus) -> None:
    parts = list(corpus.minibatches(7, torch.Generator().manual_seed(0)))
    assert [len(p) for p in parts] == [7, 7, 7, 7, 2]
    assert sorted(torch.cat([p.index for p in parts]).tolist()) == list(range(30))
    assert sum(p.num_tokens for p in parts) == corpus.num_tokens


# ------------------------------------------------------------------------------------------------------------ densities


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def draw(corpus: Corpus, num_topics: int = 4) -> dict[str, Tensor]:
    return {
        "beta": dist.Dirichlet(torch.full((corpus.num_words,), 0.5, dtype=DOUBLE)).sample((num_topics,)),
        "theta": dist.Dirichlet(torch.full((num_topics,), 0.5, dtype=DOUBLE)).sample((corpus.num_documents,)),
    }


def site_log_probs(values: dict[str, Tensor], corpus: Corpus, **options: Any) -> dict[str, Tensor]:
    trace = poutine.trace(poutine.condition(lda.model, data=values)).get_trace(corpus, 4, **PRIORS, **options)
    trace.compute_log_prob()
    return {name: site["log_prob"].sum() for name, site in trace.nodes.items() if "log_prob" in site}


def test_the_marginal_model_sums_the_assignments_out(corpus: Corpus) -> None:
    """log Σ_z p(z | θ) p(w | z, β), written in NumPy, is its likelihood; so is the sum over z of the model with z."""
    values = draw(corpus)
    theta, beta = values["theta"].numpy(), values["beta"].numpy()
    expected = (corpus.to_dense().numpy() * np.log(theta @ beta)).sum()
    marginal = site_log_probs(values, corpus, marginal=True)
    assert marginal["word"].item() == pytest.approx(expected, rel=1e-12)
    plain = as_corpus((corpus.to_dense() > 0).double())  # every count 1: the scale of an entry is then none
    each = []
    for k in range(4):
        assignment = torch.full((len(plain.doc),), k)
        trace = poutine.trace(poutine.condition(lda.model, data={**values, "z": assignment})).get_trace(
            plain, 4, **PRIORS
        )
        trace.compute_log_prob()
        each.append(trace.nodes["z"]["log_prob"] + trace.nodes["word"]["log_prob"])
    summed = torch.logsumexp(torch.stack(each), 0).sum()
    assert site_log_probs(values, plain, marginal=True)["word"].item() == pytest.approx(summed.item(), rel=1e-12)


def test_priors_have_the_densities_of_their_definition(corpus: Corpus) -> None:
    values = draw(corpus)
    found = site_log_probs(values, corpus, marginal=True)
    for name, prior in (("theta", ALPHA.numpy()), ("beta", np.full(corpus.num_words, 0.2))):
        expected = sum(scipy.stats.dirichlet.logpdf(row, prior) for row in values[name].numpy())
        assert found[name].item() == pytest.approx(expected, rel=1e-10)


def test_a_minibatch_is_scaled_up_to_the_whole(corpus: Corpus) -> None:
    """Averaged over the minibatches of a partition, every site has the log density of all the data."""
    values = draw(corpus)
    whole = site_log_probs(values, corpus, marginal=True)
    parts = [corpus.minibatch(p) for p in torch.arange(30).split(10)]
    each = [site_log_probs(values | {"theta": values["theta"][p.index]}, p, marginal=True) for p in parts]
    for name in ("beta", "theta", "word"):
        assert sum(e[name].item() for e in each) / 3 == pytest.approx(whole[name].item(), rel=1e-12)


@pytest.mark.parametrize("marginal", [False, True])
def test_words_are_drawn_with_the_probabilities_of_the_model(marginal: bool) -> None:
    """Frequencies of 200,000 draws, within five standard errors."""
    count = 200_000
    topics = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.0, 0.9]], dtype=DOUBLE)
    if marginal:
        weights = torch.tensor([0.25, 0.75], dtype=DOUBLE).expand(count, 2)
        found, expected = lda.MixedWord(weights, topics).sample(), weights[0] @ topics
    else:
        found, expected = lda.TopicWord(topics, torch.ones(count, dtype=torch.int64)).sample(), topics[1]
    frequency = torch.bincount(found, minlength=3) / count
    assert ((frequency - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt() + 1e-12).all()


def test_the_word_distributions_are_categorical_with_particles_too(corpus: Corpus) -> None:
    topics = dist.Dirichlet(torch.ones(6, dtype=DOUBLE)).sample((3, 4))
    weights = dist.Dirichlet(torch.ones(4, dtype=DOUBLE)).sample((3, 5))
    assignment, value = torch.randint(4, (3, 5)), torch.randint(6, (5,))
    dense = torch.stack([topics[p, assignment[p]] for p in range(3)])
    expected = dist.Categorical(dense).log_prob(value.expand(3, 5))
    stacked = lda.TopicWord(topics.unsqueeze(-3), assignment)
    assert stacked.batch_shape == (3, 5)
    torch.testing.assert_close(stacked.log_prob(value), expected)
    assert stacked.sample().shape == (3, 5)
    mixed = lda.MixedWord(weights, topics.unsqueeze(-3))
    torch.testing.assert_close(mixed.log_prob(value), dist.Categorical(weights @ topics).log_prob(value.expand(3, 5)))
    assert mixed.sample().shape == (3, 5) and mixed.sample((2,)).shape == (2, 3, 5)


def test_the_model_runs_as_it_is_and_predicts(corpus: Corpus) -> None:
    trace = poutine.trace(lda.model).get_trace(corpus, 4, **PRIORS)
    assert set(trace.stochastic_nodes) >= {"beta", "theta", "z"} and math.isfinite(trace.log_prob_sum())
    draws = Predictive(poutine.uncondition(lda.model), num_samples=3, return_sites=["word", "z"])(corpus, 4, **PRIORS)
    assert draws["word"].shape == (3, len(corpus.doc)) and int(draws["word"].max()) < corpus.num_words


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((0,), {}, "Expected num_topics to be an integer of at least 1; got 0"),
        ((True,), {}, "Expected num_topics to be an integer"),
        ((4,), {"doc_topic_prior": -1.0}, "Expected doc_topic_prior to be positive and finite; got -1.0"),
        ((4,), {"doc_topic_prior": torch.ones(3)}, r"Expected doc_topic_prior to be a number or of shape \[4\]"),
        ((4,), {"topic_word_prior": math.nan}, "Expected topic_word_prior to be positive and finite"),
    ],
)
def test_bad_arguments_are_refused_in_words(corpus: Corpus, args: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lda.model(corpus, *args, **options)


def test_a_matrix_in_place_of_a_corpus_is_refused() -> None:
    with pytest.raises(DataError, match=r"Expected a Corpus; got Tensor. Write as_corpus\(data\)"):
        lda.model(torch.ones(2, 3), 4)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at least one token"):
        lda.model(as_corpus(np.zeros((2, 3))), 4)


# -------------------------------------------------------------------------------------------------------------- updates


def start_of(corpus: Corpus, seed: int = 0) -> dict[str, Any]:
    lambda_, gamma = random_state(corpus, seed=seed)
    return {"beta": dist.Dirichlet(lambda_), "theta": dist.Dirichlet(gamma)}


@pytest.mark.parametrize("order", [["z", "theta", "beta"], ["z", "beta", "theta"]])
def test_hand_written_updates_are_the_derived_ones(corpus: Corpus, order: list[str]) -> None:
    """λ, γ and the ELBO of the plain model, sweep by sweep from one start, to 1e-8."""
    written_model = handlers.closed_form(lda.model, lda.updates)
    derived, written = (AutoConjugate(m, init=start_of(corpus)) for m in (lda.model, written_model))
    by_engine, by_hand = CAVI(lda.model, derived, order=order), CAVI(written_model, written, order=order)
    for _ in range(10):
        expected = by_engine.step(corpus, 4, **PRIORS)
        assert by_hand.step(corpus, 4, **PRIORS) == pytest.approx(expected, rel=1e-10)
        for site in ("beta", "theta"):
            ours, theirs = written.posterior()[site].concentration, derived.posterior()[site].concentration
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_rounds_over_the_documents_first_give_the_same_by_hand(corpus: Corpus) -> None:
    """As the notes advise, q(z) and q(theta) go to convergence before q(beta) moves: the schedule of the kernel."""
    written_model = handlers.closed_form(lda.model, lda.updates)
    schedule: dict[str, Any] = {"order": ["z", "theta", "beta"], "local_steps": 1500, "local_tol": 1e-11}
    derived, written = (AutoConjugate(m, init=start_of(corpus)) for m in (lda.model, written_model))
    by_engine, by_hand = CAVI(lda.model, derived, **schedule), CAVI(written_model, written, **schedule)
    lambda_, gamma = random_state(corpus)
    for _ in range(2):
        expected = by_engine.step(corpus, 4, **STRONG_PRIORS)
        assert by_hand.step(corpus, 4, **STRONG_PRIORS) == pytest.approx(expected, rel=1e-10)
        step = lda.document_step(corpus, lambda_, STRONG, start=gamma, tol=1e-11, max_steps=3000)
        assert step.statistics is not None
        gamma, lambda_ = step.gamma, 0.2 + step.statistics
        for guide in (derived, written):
            torch.testing.assert_close(guide.posterior()["beta"].concentration, lambda_, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(guide.posterior()["theta"].concentration, gamma, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("minibatch", [False, True])
def test_check_updates_passes(corpus: Corpus, minibatch: bool) -> None:
    model = handlers.closed_form(lda.model, lda.updates)
    guide = AutoConjugate(model, init=start_of(corpus.select(range(12))))
    data = corpus.minibatch(range(12)) if minibatch else corpus.select(range(12))
    report = check_updates(model, guide, data, 4, **PRIORS)
    assert report.ok, str(report)


def test_the_kernel_and_the_engine_have_one_fixed_point(corpus: Corpus) -> None:
    """Where the kernel's passes end, a sweep of the engine's derived updates moves nothing, and gains nothing."""
    lambda_, gamma = random_state(corpus)
    for _ in range(3000):
        step = lda.document_step(corpus, lambda_, ALPHA, start=gamma, tol=1e-12, max_steps=50, bound=False)
        assert step.statistics is not None
        gamma, lambda_ = step.gamma, 0.2 + step.statistics
    guide = AutoConjugate(lda.model, init={"beta": dist.Dirichlet(lambda_), "theta": dist.Dirichlet(gamma)})
    before = guide.elbo(corpus, 4, **PRIORS)
    assert -CAVI(lda.model, guide).step(corpus, 4, **PRIORS) == pytest.approx(before, rel=1e-12)
    found = guide.posterior()
    torch.testing.assert_close(found["beta"].concentration, lambda_, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found["theta"].concentration, gamma, rtol=1e-7, atol=1e-7)


def test_a_stochastic_step_of_the_engine_is_the_kernels(corpus: Corpus) -> None:
    """λ ← (1 − ρ) λ + ρ (ξ + D / B Σ φ), with the minibatch's documents at their optimum first."""
    lambda_, _ = random_state(corpus)
    part = corpus.minibatch([1, 4, 9, 16, 25])
    ones = dist.Dirichlet(torch.ones(5, 4, dtype=DOUBLE))  # where the kernel starts: there are other local optima
    guide = AutoConjugate(lda.model, init={"beta": dist.Dirichlet(lambda_), "theta": ones})
    CAVI(lda.model, guide, step_size=0.3, local_steps=3000, local_tol=1e-13).step(part, 4, **STRONG_PRIORS)
    step = lda.document_step(part, lambda_, STRONG, tol=1e-13, max_steps=10_000)
    assert step.statistics is not None
    expected = 0.7 * lambda_ + 0.3 * (0.2 + 30 / 5 * step.statistics)
    torch.testing.assert_close(guide.posterior()["beta"].concentration, expected, rtol=1e-8, atol=1e-8)


def test_the_seven_terms_add_up_to_the_engines_elbo(corpus: Corpus) -> None:
    lambda_, gamma = random_state(corpus)
    guide = AutoConjugate(lda.model, init=start_of(corpus))
    exact = guide.elbo(corpus, 4, **PRIORS)
    xi = torch.full((corpus.num_words,), 0.2, dtype=DOUBLE)
    phi = guide.posterior()["z"].probs
    terms = lda.elbo_terms(corpus, lambda_, gamma, phi, ALPHA, xi)
    assert total(terms).item() == pytest.approx(exact, rel=1e-9)
    step = lda.document_step(corpus, lambda_, ALPHA, start=gamma, max_steps=1)
    parts = lda.dirichlet_bound(step.gamma, ALPHA) + lda.dirichlet_bound(lambda_, xi)
    assert step.word_bound is not None
    phi = lda.update_z({"theta": dist.Dirichlet(step.gamma), "beta": dist.Dirichlet(lambda_)}, corpus, 4).probs
    terms = lda.elbo_terms(corpus, lambda_, step.gamma, phi, ALPHA, xi)
    assert (step.word_bound + parts).item() == pytest.approx(total(terms).item(), rel=1e-11)


def test_each_of_the_seven_terms_is_the_engines(corpus: Corpus) -> None:
    lambda_, gamma = random_state(corpus)
    guide = AutoConjugate(lda.model, init=start_of(corpus))
    terms = guide.elbo_terms(corpus, 4, **PRIORS)
    xi = torch.full((corpus.num_words,), 0.2, dtype=DOUBLE)
    expected = lda.elbo_terms(corpus, lambda_, gamma, guide.posterior()["z"].probs, ALPHA, xi)
    found = {f"log p({site})": value for site, value in terms.log_densities.items()}
    found |= {f"-log q({block})": value for block, value in terms.entropies.items()}
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-9), name


# -------------------------------------------------------------------------------------------------------------- kernels


def reference_step(
    corpus: Corpus, lambda_: Tensor, alpha: Tensor, gamma: Tensor, tol: float, max_steps: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The document step in NumPy and SciPy, as the textbook has it: γ ``[D, K]`` and statistics ``[K, V]``."""
    log_beta = scipy.special.psi(lambda_.numpy()) - scipy.special.psi(lambda_.numpy().sum(1, keepdims=True))
    dense, gammas = corpus.to_dense().numpy(), gamma.numpy().copy()
    statistics = np.zeros_like(log_beta)

    def responsibilities(row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return scipy.special.softmax(scipy.special.psi(row)[:, None] + log_beta, axis=0)

    for d, counts in enumerate(dense):
        for _ in range(max_steps):
            proposal = alpha.numpy() + responsibilities(gammas[d]) @ counts
            change = np.abs(proposal - gammas[d]).mean()
            gammas[d] = proposal
            if change < tol:
                break
        statistics += responsibilities(gammas[d]) * counts
    return gammas, statistics


KERNELS = [pytest.param(True, marks=needs_numba, id="numba"), pytest.param(False, id="torch")]


@pytest.mark.parametrize("compiled", KERNELS)
@pytest.mark.parametrize("shape", [(30, 25, 4, 20.0), (7, 300, 1, 90.0), (12, 130, 33, 400.0), (1, 1, 3, 4.0)])
def test_the_document_step_is_the_textbooks(compiled: bool, shape: tuple[int, int, int, float]) -> None:
    documents, words, topics, length = shape
    corpus = synthetic(documents, words, topics, length)
    lambda_, gamma = random_state(corpus, topics)
    alpha = torch.linspace(0.1, 1.0, topics, dtype=DOUBLE)
    step = lda.document_step(corpus, lambda_, alpha, start=gamma, tol=1e-3, compiled=compiled)
    expected, statistics = reference_step(corpus, lambda_, alpha, gamma, 1e-3, 100)
    np.testing.assert_allclose(step.gamma.numpy(), expected, rtol=1e-10)
    assert step.statistics is not None
    np.testing.assert_allclose(step.statistics.numpy(), statistics, rtol=1e-9, atol=1e-12)


@needs_numba
@pytest.mark.parametrize("length", [5, 20, 150])
def test_compiled_and_torch_kernels_agree(length: int) -> None:
    """γ, statistics, bound and number of steps, to 1e-10, for documents of less and of more than a block."""
    corpus = synthetic(80, 400, 7, length)
    lambda_, gamma = random_state(corpus, 7)
    alpha = torch.full((7,), 0.1, dtype=DOUBLE)
    one, other = (lda.document_step(corpus, lambda_ / 20, alpha, start=gamma, compiled=c) for c in (True, False))
    torch.testing.assert_close(one.gamma, other.gamma, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.statistics, other.statistics, rtol=1e-10, atol=1e-10)
    assert one.word_bound is not None and other.word_bound is not None
    assert one.word_bound.item() == pytest.approx(other.word_bound.item(), rel=1e-12) and one.steps == other.steps


@needs_numba
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_latent.models.lda.kernel import compiled_step

    monkeypatch.setattr(compiled_step, "_LEAST_FOR_THREADS", 0)
    corpus = synthetic(80, 400, 7, 150)
    lambda_, gamma = random_state(corpus, 7)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        step = lda.document_step(corpus, lambda_, torch.full((7,), 0.1, dtype=DOUBLE), start=gamma)
        found.append(step)
    torch.set_num_threads(before)
    for step in found[1:]:
        assert torch.equal(step.gamma, found[0].gamma) and torch.equal(step.statistics, found[0].statistics)  # type: ignore[arg-type]


@pytest.mark.parametrize("compiled", KERNELS)
def test_expected_topics_are_exp_of_the_expected_logarithm(compiled: bool) -> None:
    """Also for concentrations so small that exp(E log β) is no number of float64."""
    lambda_ = torch.tensor([[1e-3, 0.01, 5.0, 1e6], [2e-3, 0.5, 1e-4, 3.0]], dtype=DOUBLE)
    scaled, log_scale = lda.expected_topics(lambda_, compiled)
    array = lambda_.numpy()
    expected = (scipy.special.psi(array) - scipy.special.psi(array.sum(1, keepdims=True))).T
    kept = (expected - expected.max(1, keepdims=True)) > -200
    ours = scaled.log().numpy() + log_scale.numpy()[:, None]
    np.testing.assert_allclose(ours[kept], expected[kept], rtol=1e-11, atol=1e-11)
    assert scaled.min() > 0


@pytest.mark.parametrize("compiled", KERNELS)
def test_a_word_that_no_topic_has_still_has_responsibilities(compiled: bool) -> None:
    """λ = 0.001 gives exp(E log β) = e^−1000: the ratio of the topics is kept, and nothing is NaN."""
    corpus = as_corpus(np.array([[3, 2], [0, 4]]))
    lambda_ = torch.tensor([[50.0, 0.001], [60.0, 0.002]], dtype=DOUBLE)
    alpha = torch.ones(2, dtype=DOUBLE)
    step = lda.document_step(corpus, lambda_, alpha, tol=1e-10, max_steps=1000, compiled=compiled)
    expected, _ = reference_step(corpus, lambda_, alpha, torch.ones(2, 2, dtype=DOUBLE), 1e-10, 1000)
    np.testing.assert_allclose(step.gamma.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("compiled", KERNELS)
def test_single_precision_is_close_to_double(compiled: bool) -> None:
    corpus = synthetic(40, 200, 5, 100)
    lambda_, gamma = random_state(corpus, 5)
    alpha = torch.full((5,), 0.01, dtype=DOUBLE)
    options: dict[str, Any] = {"tol": 1e-3, "compiled": compiled}
    exact = lda.document_step(corpus, lambda_, alpha, start=gamma, **options)
    single = lda.document_step(corpus.to(dtype=torch.float32), lambda_.float(), alpha, start=gamma.float(), **options)
    assert single.gamma.dtype == torch.float32
    torch.testing.assert_close(single.gamma.double(), exact.gamma, rtol=1e-3, atol=1e-2)
    assert single.word_bound is not None and exact.word_bound is not None
    assert single.word_bound.item() == pytest.approx(exact.word_bound.item(), rel=1e-5)


@pytest.mark.parametrize("compiled", KERNELS)
def test_an_empty_document_gets_the_prior(compiled: bool) -> None:
    corpus = as_corpus(np.array([[0, 0, 0], [2, 0, 1]]))
    lambda_, _ = random_state(corpus, 4)
    step = lda.document_step(corpus, lambda_, ALPHA, compiled=compiled)
    torch.testing.assert_close(step.gamma[0], ALPHA)
    everything_empty = lda.document_step(as_corpus(np.zeros((2, 3))), lambda_, ALPHA, compiled=compiled)
    torch.testing.assert_close(everything_empty.gamma, ALPHA.expand(2, 4))
    assert everything_empty.word_bound is not None and everything_empty.word_bound.item() == 0


@pytest.mark.gpu
def test_the_torch_kernel_on_a_gpu_agrees() -> None:
    corpus = synthetic(80, 400, 7, 150)
    lambda_, gamma = random_state(corpus, 7)
    alpha = torch.full((7,), 0.1, dtype=DOUBLE)
    exact = lda.document_step(corpus, lambda_, alpha, start=gamma)
    found = lda.document_step(corpus.to("cuda"), lambda_.cuda(), alpha.cuda(), start=gamma.cuda())
    torch.testing.assert_close(found.gamma.cpu(), exact.gamma, rtol=1e-9, atol=1e-9)
    assert found.statistics is not None
    torch.testing.assert_close(found.statistics.cpu(), exact.statistics, rtol=1e-9, atol=1e-9)


def test_a_compiled_kernel_that_cannot_be_is_an_error(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    monkeypatch.setattr(jit, "njit", None)
    lambda_, _ = random_state(corpus)
    with pytest.raises(ValueError, match="Expected Numba and data on the CPU"):
        lda.document_step(corpus, lambda_, ALPHA, compiled=True)


# ------------------------------------------------------------------------------------------------------ hyperparameters


@pytest.mark.parametrize("alpha", [[0.05, 0.2, 1.0, 3.0], [0.01] * 6, [40.0, 60.0], [5.0, 0.02, 0.3]])
def test_newton_finds_the_maximum(alpha: list[float]) -> None:
    """Given the exact E log θ = ψ(α_k) − ψ(Σα), the likeliest concentration is α itself."""
    exact = torch.tensor(alpha, dtype=DOUBLE)
    mean_log = lda.expected_log(exact)
    found = lda.dirichlet_concentration(mean_log)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)
    assert lda.dirichlet_gradient(mean_log, found).abs().max() < 1e-9


def test_newton_recovers_concentrations_from_known_proportions() -> None:
    """20,000 draws: within five standard errors, from the Fisher information N (diag ψ'(α) − ψ'(Σα))."""
    alpha = torch.tensor([0.1, 0.6, 0.3, 1.5], dtype=DOUBLE)
    theta = dist.Dirichlet(alpha).sample((20_000,))
    found = lda.dirichlet_concentration(theta.log().mean(0))
    information = 20_000 * (torch.diag(torch.polygamma(1, alpha)) - torch.polygamma(1, alpha.sum()))
    assert ((found - alpha).abs() < 5 * torch.linalg.inv(information).diagonal().sqrt()).all()


def test_one_concentration_for_all_words_is_scipys_optimum() -> None:
    mean_log = dist.Dirichlet(torch.full((50,), 0.2, dtype=DOUBLE)).sample((30,)).log().mean(0)
    found = float(lda.symmetric_concentration(mean_log))

    def loss(log_xi: float) -> float:
        xi = math.exp(log_xi)
        return -(math.lgamma(50 * xi) - 50 * math.lgamma(xi) + (xi - 1) * float(mean_log.sum()))

    expected = math.exp(scipy.optimize.minimize_scalar(loss, bounds=(-8, 3), method="bounded").x)
    assert found == pytest.approx(expected, rel=1e-4)


def test_plain_newton_would_leave_the_positive_numbers_where_ours_does_not() -> None:
    """The notes' (142) without a safeguard, from α = 5 each, gives negative concentrations at once."""
    mean_log = lda.expected_log(torch.tensor([0.05, 0.1, 0.1], dtype=DOUBLE))
    start = torch.full((3,), 5.0, dtype=DOUBLE)
    hessian = torch.polygamma(1, start.sum()) - torch.diag(torch.polygamma(1, start))
    plain = start - torch.linalg.solve(hessian, lda.dirichlet_gradient(mean_log, start))
    assert plain.min() < 0
    assert lda.dirichlet_concentration(mean_log).min() > 0


@pytest.mark.parametrize(
    "mean_log", [torch.tensor([0.5, 0.5]).log(), torch.tensor([-math.inf, -1.0]), torch.tensor([-0.2, -0.3])]
)
@pytest.mark.parametrize("concentration", [lda.dirichlet_concentration, lda.symmetric_concentration])
def test_concentrations_that_do_not_exist_are_refused(mean_log: Tensor, concentration: Callable[..., Tensor]) -> None:
    with pytest.raises(DataError, match="Expected the mean logarithm of probability vectors"):
        concentration(mean_log)


# --------------------------------------------------------------------------------------------------------------- starts


def test_merging_adds_up_the_most_similar_topics() -> None:
    """Three copies of each of four topics, in any order and of any size, become the four again."""
    topics = dist.Dirichlet(torch.full((30,), 0.1, dtype=DOUBLE)).sample((4,))
    order = torch.randperm(12)
    sizes = torch.rand(12, dtype=DOUBLE) + 0.1
    found = lda.merge_topics((topics.repeat(3, 1) * sizes.unsqueeze(1))[order], 4)
    expected = topics * sizes.reshape(3, 4).sum(0).unsqueeze(1)
    places = [int((found - row).abs().sum(1).argmin()) for row in expected]
    assert sorted(places) == [0, 1, 2, 3]
    torch.testing.assert_close(found[places], expected)
    with pytest.raises(ValueError, match="Expected to keep from 1 to 12 topics; got 13"):
        lda.merge_topics(topics.repeat(3, 1), 13)


def test_a_collapsed_start_has_the_counts_of_the_corpus(corpus: Corpus) -> None:
    xi = torch.full((corpus.num_words,), 0.2, dtype=DOUBLE)
    found = lda.collapsed_topics(corpus, ALPHA, xi, torch.Generator().manual_seed(0))
    assert found.shape == (4, corpus.num_words) and (found >= xi).all()
    torch.testing.assert_close((found - xi).sum(0), corpus.to_dense().sum(0))


# ----------------------------------------------------------------------------------------------------------- evaluation


def test_tokens_are_split_within_their_documents() -> None:
    corpus = as_corpus(np.random.default_rng(0).poisson(2.0, (20, 15)))
    observed, rest = lda.split_tokens(corpus, 0.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(observed.to_dense() + rest.to_dense(), corpus.to_dense())
    torch.testing.assert_close(observed.lengths, (corpus.lengths / 2).floor())
    with pytest.raises(DataError, match="whole counts"):
        lda.split_tokens(as_corpus(np.full((2, 2), 0.5), fractional=True))
    with pytest.raises(DataError, match="on both sides"):
        lda.split_tokens(as_corpus([[0], [1]], num_words=2))


def test_a_split_takes_every_token_with_one_probability() -> None:
    """Of three tokens of word 0 and one of word 1, half are observed: word 1 is among them half of the time."""
    corpus = as_corpus(np.tile([3, 1], (4000, 1)))
    observed, _ = lda.split_tokens(corpus, 0.5, torch.Generator().manual_seed(0))
    share = observed.to_dense()[:, 1].mean().item()
    assert abs(share - 0.5) < 5 * math.sqrt(0.25 / 4000)


def test_document_completion_is_the_held_out_log_probability(corpus: Corpus) -> None:
    topics = dist.Dirichlet(torch.ones(corpus.num_words, dtype=DOUBLE)).sample((4,))
    found = lda.document_completion(corpus, topics, ALPHA, generator=torch.Generator().manual_seed(3), tol=1e-9)
    observed, rest = lda.split_tokens(corpus, 0.5, torch.Generator().manual_seed(3))
    gamma = np.ones((corpus.num_documents, 4))
    for _ in range(3000):  # mean field under topics that are known: exp(E log β) is β
        t = np.exp(scipy.special.psi(gamma))
        weights = observed.to_dense().numpy() / (t @ topics.numpy())
        gamma = ALPHA.numpy() + t * (weights @ topics.numpy().T)
    theta = gamma / gamma.sum(1, keepdims=True)
    held_out = rest.to_dense().numpy()
    expected = (held_out * np.log(theta @ topics.numpy())).sum() / held_out.sum()
    assert found.per_word == pytest.approx(expected, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(-found.per_word)) and found.num_tokens == held_out.sum()


@pytest.mark.parametrize(
    ("topics", "message"),
    [
        (torch.ones(2, 3), "Expected topics of shape"),
        (torch.ones(2, 25), "Expected topics whose rows are probabilities"),
        (torch.eye(25)[:2], "Expected a topic that has each word"),
    ],
)
def test_topics_that_cannot_predict_are_refused(corpus: Corpus, topics: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lda.document_completion(corpus, topics, ALPHA[:2])


def test_document_completion_takes_the_priors_of_the_model(corpus: Corpus) -> None:
    """A number stands for all topics, none for 1 / K."""
    topics = dist.Dirichlet(torch.ones(corpus.num_words, dtype=DOUBLE)).sample((4,))

    def found(*prior: Any) -> float:
        return lda.document_completion(corpus, topics, *prior, generator=torch.Generator().manual_seed(3)).per_word

    assert found(0.3) == found([0.3] * 4) == found(torch.full((4,), 0.3, dtype=DOUBLE)) != found(0.25)
    assert found() == found(0.25)
    with pytest.raises(ValueError, match=r"Expected doc_topic_prior to be a number or of shape \[4\]; got shape \[3\]"):
        found(torch.ones(3))
    with pytest.raises(ValueError, match=r"Expected doc_topic_prior to be positive and finite; got -1\.0"):
        found(-1.0)


def test_coherence_is_the_mean_npmi_of_pairs() -> None:
    """Against a direct count over a tiny corpus; and its three landmarks."""
    rng = np.random.default_rng(0)
    dense = rng.integers(0, 2, (40, 8))
    top = np.array([[0, 3, 5], [7, 1, 2]])
    found = lda.coherence_npmi(torch.from_numpy(top), as_corpus(dense))
    for row, value in zip(top, found.tolist(), strict=True):
        each = []
        for a, b in [(0, 1), (0, 2), (1, 2)]:
            p_a, p_b = dense[:, row[a]].mean(), dense[:, row[b]].mean()
            p_ab = (dense[:, row[a]] * dense[:, row[b]]).mean()
            each.append(math.log(p_ab / (p_a * p_b)) / -math.log(p_ab))
        assert value == pytest.approx(np.mean(each), rel=1e-12)
    marks = as_corpus(np.array([[1, 1, 0, 1, 0], [1, 1, 0, 0, 1], [0, 0, 1, 1, 0], [0, 0, 1, 0, 1]]))
    together, independent, never = lda.coherence_npmi(torch.tensor([[0, 1], [0, 3], [0, 2]]), marks).tolist()
    assert together == pytest.approx(1) and independent == pytest.approx(0, abs=1e-12) and never == -1


# --------------------------------------------------------------------------------------------------------------- guides

Guide = Callable[..., Any]


@pytest.mark.parametrize("kind", [pytest.param("own parameters", marks=pytest.mark.slow), "amortised"])
def test_guides_train_by_gradient_to_near_the_coordinate_optimum(kind: str) -> None:
    """Under Trace_ELBO on the marginal model: at least nine tenths of the way from the start to coordinate ascent.

    The two bounds differ: with z summed out for each draw, SVI's is the tighter one for the same q. It may end above.
    """
    data = synthetic(60, 40, 3, 60)
    guide: Guide = lda.guide if kind == "own parameters" else lda.AmortizedGuide(data, 3, 32)
    exact = max(CAVI(lda.model, AutoConjugate(lda.model, init=i)).run(data, 3).elbo[-1] for i in range(3))
    loss = Trace_ELBO(num_particles=4, vectorize_particles=True)
    scorer = Trace_ELBO(num_particles=200, vectorize_particles=True)

    def score() -> float:
        with torch.no_grad():
            return -scorer.loss(lda.model, guide, data, 3, marginal=True)

    svi = SVI(lda.model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.05 ** (1 / 400)}), loss)
    svi.step(data, 3, marginal=True)
    before = score()
    for _ in range(400):
        svi.step(data, 3, marginal=True)
    after = score()
    assert after > before + 0.9 * (exact - before), (before, after, exact)


@pytest.mark.parametrize("kind", ["own parameters", "amortised"])
def test_guides_take_minibatches_and_leave_other_documents_alone(kind: str, corpus: Corpus) -> None:
    guide: Guide = lda.guide if kind == "own parameters" else lda.AmortizedGuide(corpus, 4, 8)
    svi = SVI(lda.model, guide, pyro.optim.SGD({"lr": 1e-4}), Trace_ELBO())
    svi.step(corpus, 4, marginal=True)
    before = pyro.param("doc_topic").detach().clone() if kind == "own parameters" else None
    part = corpus.minibatch([3, 8, 11])
    assert math.isfinite(svi.step(part, 4, marginal=True))
    if before is not None:
        moved = (pyro.param("doc_topic") != before).any(1).nonzero().squeeze(1).tolist()
        assert set(moved) <= {3, 8, 11} and moved


def test_the_amortised_guide_reads_documents_it_has_not_seen(corpus: Corpus) -> None:
    guide = lda.AmortizedGuide(corpus, 4, 8, doc_topic_prior=0.3)
    gamma = guide.concentration(as_corpus(np.eye(25) * 7))
    assert gamma.shape == (25, 4) and gamma.min() > 0.3
    with pytest.raises(ValueError, match="Expected 4 topics, as the guide was made for; got 5"):
        guide(corpus, 5)


def test_the_amortised_guide_keeps_to_its_words(corpus: Corpus) -> None:
    guide = lda.AmortizedGuide(corpus, 4, 8)
    for words in (24, 26):
        with pytest.raises(DataError, match=f"Expected documents over the 25 words .*; got {words} words"):
            guide(as_corpus(np.ones((3, words))), 4)
    names = [f"w{i}" for i in range(25)]
    guide(as_corpus(corpus, vocabulary=names), 4)  # where one has no names, their number is all that is known
    named = lda.AmortizedGuide(as_corpus(corpus, vocabulary=names), 4, 8)
    named(corpus, 4)
    with pytest.raises(DataError, match=r"Expected documents over the 25 words .*; got 25 others"):
        named(as_corpus(corpus, vocabulary=names[::-1]), 4)


# ------------------------------------------------------------------------------------------- batches of empty documents


def with_empty_documents(corpus: Corpus, num_documents: int) -> Corpus:
    """So many documents that have words, and three that have none, at the end."""
    dense = corpus.to_dense()[corpus.lengths > 0][:num_documents]
    return as_corpus(torch.cat([dense, dense.new_zeros(3, corpus.num_words)]))


@pytest.mark.parametrize("fast", [False, True])
def test_pieces_of_empty_documents_change_nothing_but_their_own_proportions(corpus: Corpus, fast: bool) -> None:
    """Memoised: the three in pieces of their own, and in one with the last document: λ and the ELBO of every pass."""
    data = with_empty_documents(corpus, 10)
    model = handlers.closed_form(lda.model, lda.fast_updates) if fast else lda.model
    found = []
    for pieces in ([range(5), range(5, 10), [10], [11], [12]], [range(5), range(5, 13)]):
        guide = AutoConjugate(model, init={"beta": dist.Dirichlet(random_state(corpus)[0])})
        driver = CAVI(model, guide, memoised=True, local_steps=200, local_tol=1e-10)
        batches = [(data.minibatch(piece), 4) for piece in pieces]
        elbo = driver.run_batches(batches, epochs=4, tol=0.0, **STRONG_PRIORS).elbo
        found.append((guide.posterior()["beta"].concentration, elbo[len(pieces) - 1 :: len(pieces)]))
    (topics, elbo), (other_topics, other_elbo) = found
    torch.testing.assert_close(topics, other_topics, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(elbo, other_elbo, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("options", [{"memoised": True}, {"step_size": 0.5}])
def test_a_start_is_not_spent_on_documents_without_words(corpus: Corpus, options: dict[str, Any]) -> None:
    data = with_empty_documents(corpus, 10)
    guide = AutoConjugate(lda.model, init=0)
    driver = CAVI(lda.model, guide, **options)
    with pytest.raises(DataError, match="data in the first batch, which the start of 'z' is made for"):
        driver.run_batches([(data.minibatch([11]), 4), (data.minibatch(range(10)), 4)])
    assert guide.posterior_state.program is None
    driver.run_batches([(data.minibatch(range(10)), 4), (data.minibatch([11]), 4)], epochs=3)
    topics = guide.posterior()["beta"].concentration
    assert float((topics[0] - topics[1]).abs().max()) > 1


@pytest.mark.parametrize("updates", [{}, lda.updates, lda.fast_updates], ids=["derived", "written", "fast"])
def test_steps_of_one_document_average_to_the_step_of_all_with_empty_documents_among_them(
    corpus: Corpus, updates: Any
) -> None:
    """λ and the estimate of the ELBO, mean over all documents; of an empty one λ is (1 − ρ) λ + ρ ξ, and γ is α."""
    data = with_empty_documents(corpus, 5)
    model = handlers.closed_form(lda.model, updates) if updates else lda.model
    lambda_, _ = random_state(corpus)

    def step(part: Corpus) -> tuple[Tensor, Tensor, float]:
        start = {"beta": dist.Dirichlet(lambda_), "theta": dist.Dirichlet(torch.ones(len(part), 4, dtype=DOUBLE))}
        guide = AutoConjugate(model, init=start)
        driver = CAVI(model, guide, step_size=0.3, local_steps=1000, local_tol=1e-10, order=["z", "theta", "beta"])
        elbo = -driver.step(part, 4, **STRONG_PRIORS)
        return guide.posterior()["beta"].concentration, guide.posterior()["theta"].concentration, elbo

    each = [step(data.minibatch([place])) for place in range(len(data))]
    topics, _, elbo = step(data)
    torch.testing.assert_close(torch.stack([t for t, _, _ in each]).mean(0), topics, rtol=1e-6, atol=1e-6)
    assert np.mean([e for _, _, e in each]) == pytest.approx(elbo, rel=1e-7)
    for found, proportions, _ in each[-3:]:
        torch.testing.assert_close(found, 0.7 * lambda_ + 0.3 * 0.2)
        torch.testing.assert_close(proportions, STRONG.expand(1, 4))


@pytest.mark.parametrize("kind", ["own parameters", "amortised"])
def test_gradients_of_an_empty_minibatch_are_those_of_the_priors(kind: str, corpus: Corpus) -> None:
    """Its marginal likelihood is 1: the loss is that of beta and theta alone."""
    data = with_empty_documents(corpus, 5)
    guide: Guide = lda.guide if kind == "own parameters" else lda.AmortizedGuide(data, 4, 8)
    guide(data, 4, **PRIORS)
    part = data.minibatch([len(data) - 1])
    trace = poutine.trace(guide).get_trace(part, 4, **PRIORS)
    model = poutine.trace(poutine.replay(lda.model, trace)).get_trace(part, 4, marginal=True, **PRIORS)
    model.compute_log_prob()
    assert model.nodes["word"]["log_prob_sum"].item() == 0.0
    assert math.isfinite(SVI(lda.model, guide, pyro.optim.SGD({"lr": 1e-6}), Trace_ELBO()).step(part, 4, marginal=True))


def test_the_fast_document_step_refuses_topics_that_are_alike(corpus: Corpus) -> None:
    """From the prior, where a guide starts, they would stay so; one topic is no such case."""
    fast = handlers.closed_form(lda.model, lda.fast_updates)
    with pytest.raises(ModelError, match="Expected topics that differ; got 4 equal ones, which would stay equal"):
        CAVI(fast, AutoConjugate(fast)).step(corpus, 4)
    with pytest.raises(ModelError, match="Expected topics that differ"):
        CAVI(fast, AutoConjugate(fast), step_size=0.5).step(corpus.minibatch([1, 2]), 4)
    assert math.isfinite(CAVI(fast, AutoConjugate(fast)).step(corpus, 1))


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_numba), False])
def test_the_fast_document_step_is_rounds_of_the_derived_updates(
    corpus: Corpus, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel as a handler: after each sweep λ, γ and the ELBO of derived rounds to convergence."""
    step = functools.partial(lda.document_step, compiled=compiled)
    module = sys.modules["pyro_latent.models.lda.updates"]  # the package's name `updates` is the dict
    monkeypatch.setattr(module, "document_step", step)
    monkeypatch.setattr(module, "_TOLERANCE", 1e-13)
    monkeypatch.setattr(module, "_MOST_STEPS", 10_000)
    lambda_, gamma = random_state(corpus)
    start = {"beta": dist.Dirichlet(lambda_), "theta": dist.Dirichlet(gamma)}
    fast = handlers.closed_form(lda.model, lda.fast_updates)
    kernel, derived = AutoConjugate(fast, init=start), AutoConjugate(lda.model, init=start)
    one = CAVI(fast, kernel, local_steps=2)
    other = CAVI(lda.model, derived, local_steps=3000, local_tol=1e-13)
    for _ in range(3):
        loss = one.step(corpus, 4, **STRONG_PRIORS)
        assert loss == pytest.approx(other.step(corpus, 4, **STRONG_PRIORS), rel=1e-10)
    for name in ("beta", "theta"):
        found, expected = (g.posterior()[name].concentration for g in (kernel, derived))
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_pieces_of_a_corpus_end_at_an_exact_bound_that_never_falls(corpus: Corpus) -> None:
    """Memoised LDA: the ELBO of the pieces is the guide's on the whole corpus."""
    lambda_, _ = random_state(corpus)
    guide = AutoConjugate(lda.model, init={"beta": dist.Dirichlet(lambda_)})
    pieces = [(corpus.minibatch(part), 4) for part in torch.arange(corpus.num_documents).split(10)]
    driver = CAVI(lda.model, guide, memoised=True, local_steps=100, local_tol=1e-8)
    result = driver.run_batches(pieces, epochs=300, tol=1e-10, **STRONG_PRIORS)
    assert result.converged
    assert float(result.elbo[len(pieces) :].diff().min()) >= -1e-9 * abs(float(result.elbo[-1]))
    assert guide.elbo(corpus, 4, **STRONG_PRIORS) == pytest.approx(float(result.elbo[-1]), rel=1e-6)


def test_a_fitted_guide_reads_other_documents(corpus: Corpus) -> None:
    """Their proportions are at the optimum given the topics, and the guide stays as it is."""
    lambda_, _ = random_state(corpus)
    guide = AutoConjugate(lda.model, init={"beta": dist.Dirichlet(lambda_)})
    CAVI(lda.model, guide, local_steps=50).run(corpus, 4, max_steps=20, **PRIORS)
    new = corpus.select([3, 1, 7])
    topics = guide.posterior()["beta"].concentration
    found = guide.posterior(new, 4, **PRIORS)["theta"].concentration
    expected = lda.document_step(new, topics, ALPHA, tol=1e-12, max_steps=10_000).gamma
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(guide.posterior()["beta"].concentration, topics)
