"""``lda.LDA`` where scikit-learn's users meet it: data frames, their columns' names, pipelines, and what those ask."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

from pyro_latent.errors import DataError, ModelError
from pyro_latent.models.lda import LDA, as_corpus, reading

pd = pytest.importorskip("pandas")

TEXTS = ["cat dog cat dog", "tax law tax", "law tax law", "dog cat cat"] * 10
ANIMALS = [1, 0, 0, 1] * 10
WORDS = ["cat", "dog", "law", "tax"]
SETTINGS: dict[str, Any] = {"random_state": 0, "max_iter": 10, "doc_topic_prior": 0.1, "topic_word_prior": 0.01}


@pytest.fixture
def counts() -> Any:
    """How often each of the four words is in each text: a sparse matrix."""
    return CountVectorizer().fit_transform(TEXTS)


@pytest.fixture
def frame(counts: Any) -> Any:
    return pd.DataFrame(counts.toarray(), columns=WORDS, index=[f"text {i}" for i in range(len(TEXTS))])


def pipeline() -> Pipeline:
    return Pipeline([("counts", CountVectorizer()), ("topics", LDA(2, **SETTINGS))])


@pytest.fixture(autouse=True)
def no_warning_is_given() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


# -------------------------------------------------------------------------------------------------------------- frames


def test_a_frame_is_its_counts_with_the_columns_as_words(frame: Any, counts: Any) -> None:
    fitted, plain = LDA(2, **SETTINGS).fit(frame), LDA(2, **SETTINGS).fit(counts)
    assert torch.equal(fitted.components_, plain.components_)
    assert fitted.vocabulary_ == tuple(WORDS) and fitted.n_features_in_ == plain.n_features_in_ == 4
    assert fitted.feature_names_in_.tolist() == WORDS and fitted.feature_names_in_.dtype == object
    assert {frozenset(topic) for topic in fitted.top_words(n=2)} == {frozenset(WORDS[:2]), frozenset(WORDS[2:])}
    assert torch.equal(fitted.transform(frame), plain.transform(counts))
    assert not hasattr(plain, "feature_names_in_") and not hasattr(LDA(), "n_features_in_")


def test_sparse_columns_are_read_without_making_them_dense(counts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame.sparse.from_spmatrix(counts, columns=WORDS)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("made dense")

    monkeypatch.setattr(pd.DataFrame, "__array__", refuse)
    found = as_corpus(frame)
    assert found.vocabulary == tuple(WORDS) and (found.to_scipy() != counts).nnz == 0


@pytest.mark.parametrize("dtype", ["Int64", "float32", "uint8", "Float64", pd.SparseDtype(int, 1), object])
def test_columns_of_any_numbers_are_counts(frame: Any, counts: Any, dtype: Any) -> None:
    found = as_corpus(frame.astype(dtype))
    assert (found.to_scipy() != counts).nnz == 0
    assert found.count.dtype == (torch.float32 if dtype == "float32" else torch.float64)


def test_columns_that_are_numbered_have_no_names(frame: Any) -> None:
    numbered = frame.set_axis(range(4), axis=1)
    fitted = LDA(2, **SETTINGS).fit(numbered)
    assert fitted.vocabulary_ is None and not hasattr(fitted, "feature_names_in_")
    assert LDA(2, **SETTINGS).fit(numbered, vocabulary=WORDS).vocabulary_ == tuple(WORDS)


class Table:
    """The least that another library's frame has: an array, and names."""

    columns = WORDS

    def __init__(self, counts: np.ndarray[Any, Any]) -> None:
        self.counts = counts

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return self.counts


def test_a_frame_of_another_library_is_known_by_its_columns(counts: Any) -> None:
    fitted = LDA(2, **SETTINGS).fit(Table(counts.toarray()))
    assert fitted.vocabulary_ == tuple(WORDS)
    assert torch.equal(fitted.components_, LDA(2, **SETTINGS).fit(counts).components_)


def test_a_column_of_token_lists_is_documents(counts: Any) -> None:
    tokens = pd.Series([text.split() for text in TEXTS])
    assert torch.equal(LDA(2, **SETTINGS).fit(tokens).components_, LDA(2, **SETTINGS).fit(counts).components_)
    with pytest.raises(DataError, match="Expected each document to be a list of tokens; got 'cat dog cat dog'"):
        as_corpus(pd.Series(TEXTS))


def test_columns_that_are_no_counts_are_named(frame: Any) -> None:
    with pytest.raises(DataError, match=r"got 'text', which holds no real numbers, and 1 such in all\. Drop"):
        as_corpus(frame.assign(text=TEXTS))
    gaps = frame.astype("Int64")
    gaps.iloc[3, 1] = pd.NA
    with pytest.raises(DataError, match="finite; got nan for word 1 of document 3"):
        as_corpus(gaps)
    with pytest.raises(TypeError, match="Expected columns that all have strings as names, or none; got 3 among"):
        as_corpus(frame.rename(columns={"tax": 3}))
    with pytest.raises(DataError, match="Expected a vocabulary without repetitions; got 'cat' twice"):
        as_corpus(frame.rename(columns={"tax": "cat"}))
    with pytest.raises(DataError, match=r"to be the names of the columns; got 'tax' for the column 'cat'\. Leave"):
        as_corpus(frame, vocabulary=WORDS[::-1])


def test_documents_over_other_columns_are_refused(frame: Any) -> None:
    """As scikit-learn does: by names, and by their order; an array, which has none, with a warning."""
    fitted = LDA(2, **SETTINGS).fit(frame)
    with pytest.raises(DataError, match=r"got another \(in another order\)\. .* X\[list\(lda\.feature_names_in_\)\]"):
        fitted.transform(frame[WORDS[::-1]])
    assert torch.equal(fitted.transform(frame[WORDS[::-1]][list(fitted.feature_names_in_)]), fitted.transform(frame))
    with pytest.raises(DataError, match=r"\(unseen then: 'bird'; missing: 'tax'\)"):
        fitted.score(frame.rename(columns={"tax": "bird"}))
    with pytest.raises(DataError, match=r"\(missing: 'cat'\)"):
        fitted.perplexity(frame[WORDS[1:]])
    with pytest.raises(DataError, match="Expected the vocabulary of the first documents; got another"):
        fitted.partial_fit(frame[WORDS[::-1]])
    for names in (WORDS[1:], WORDS[::-1]):
        with pytest.raises(DataError, match="Expected input_features to be the 4 words of fit; got"):
            fitted.get_feature_names_out(names)
    with pytest.warns(UserWarning, match="got counts without names, which are taken to be in the same order"):
        fitted.transform(frame.to_numpy())
    assert fitted.transform([["cat", "dog"]]).shape == (1, 2)
    assert LDA(2, **SETTINGS).fit(frame.to_numpy(), vocabulary=WORDS).transform(frame.to_numpy()).shape == (40, 2)


def test_a_stream_of_frames_keeps_their_words(frame: Any, counts: Any) -> None:
    stream = LDA(2, **SETTINGS).partial_fit(frame[:20]).partial_fit(frame[20:])
    plain = LDA(2, **SETTINGS).partial_fit(counts[:20]).partial_fit(counts[20:])
    assert torch.equal(stream.components_, plain.components_) and stream.vocabulary_ == tuple(WORDS)


@pytest.mark.parametrize("vocabulary", [{"tax": 3, "cat": 0, "law": 2, "dog": 1}, "abcd", set(WORDS)])
def test_words_without_an_order_are_refused(counts: Any, vocabulary: Any) -> None:
    """scikit-learn's own ``vocabulary_`` is a dictionary, in the order of first meeting."""
    with pytest.raises(TypeError, match=r"in the order of the columns; got .*vectorizer\.get_feature_names_out\(\)"):
        LDA(2, **SETTINGS).fit(counts, vocabulary=vocabulary)


# ----------------------------------------------------------------------------------------------------------- pipelines


def test_a_pipeline_gives_what_its_steps_give(counts: Any) -> None:
    whole, alone = pipeline().fit(TEXTS), LDA(2, **SETTINGS).fit(counts)
    assert torch.equal(whole.transform(TEXTS), alone.transform(counts))
    assert whole.score(TEXTS) == alone.score(counts)
    assert whole.get_feature_names_out().tolist() == whole.get_feature_names_out(TEXTS).tolist() == ["lda0", "lda1"]
    words = whole["counts"].get_feature_names_out()
    found = whole["topics"].top_words(words, n=2)
    assert {frozenset(topic) for topic in found} == {frozenset(WORDS[:2]), frozenset(WORDS[2:])}
    assert all(type(word) is str for topic in found for word in topic)
    assert pipeline().fit(TEXTS, topics__vocabulary=words)["topics"].top_words(n=2) == found


def test_topics_are_features_of_a_classifier() -> None:
    model = Pipeline([*pipeline().steps, ("classifier", LogisticRegression())])
    assert cross_val_score(model, TEXTS, ANIMALS, cv=2).tolist() == [1.0, 1.0]


def test_a_grid_search_takes_the_better_bound() -> None:
    """The score is the ELBO of the left-out documents; sizes may be NumPy's."""
    search = GridSearchCV(pipeline(), {"topics__num_topics": np.array([1, 2])}, cv=2, refit=True).fit(TEXTS)
    scores = search.cv_results_["mean_test_score"]
    folds = [(TEXTS[20:], TEXTS[:20]), (TEXTS[:20], TEXTS[20:])]
    sizes = [pipeline().set_params(topics__num_topics=k) for k in (1, 2)]
    expected = [np.mean([size.fit(a).score(b) for a, b in folds]) for size in sizes]
    np.testing.assert_allclose(scores, expected)
    assert search.best_params_["topics__num_topics"] == 1 + int(np.argmax(expected))


def test_it_says_whether_it_is_fitted(counts: Any) -> None:
    with pytest.raises(NotFittedError, match="This LDA instance is not fitted yet"):
        check_is_fitted(LDA(2))
    check_is_fitted(LDA(2, **SETTINGS).fit(counts))
    check_is_fitted(LDA(2, **SETTINGS).partial_fit(counts))
    with pytest.raises(ModelError, match=r"Expected a fitted LDA; got a new one\. Call fit\(counts\) first"):
        LDA(2).transform(counts)
    with pytest.raises(AttributeError, match="Expected documents whose words have names; got counts alone"):
        _ = LDA(2, **SETTINGS).fit(counts).feature_names_in_


def test_results_are_frames_where_that_is_chosen(frame: Any) -> None:
    framed = LDA(2, **SETTINGS).set_output(transform="pandas")
    plain = LDA(2, **SETTINGS).fit(frame)
    fitted = framed.fit_transform(frame)
    assert fitted.columns.tolist() == ["lda0", "lda1"] and fitted.index.equals(frame.index)
    np.testing.assert_array_equal(fitted, plain.fit_transform(frame))
    np.testing.assert_array_equal(clone(framed).fit(frame).transform(frame[:3]), plain.transform(frame[:3]))
    assert isinstance(clone(framed).fit(frame).transform(frame), pd.DataFrame)
    assert framed.transform(as_corpus(frame)).index.equals(pd.RangeIndex(40))
    assert isinstance(framed.set_output(transform=None).transform(frame), pd.DataFrame)
    assert isinstance(framed.set_output(transform="default").transform(frame), torch.Tensor)
    with pytest.raises(ValueError, match='Expected transform to be "default" or "pandas"; got \'arrow\''):
        framed.set_output(transform="arrow")  # type: ignore[arg-type]


def test_other_transformers_stand_beside_it(frame: Any) -> None:
    beside = ColumnTransformer([("topics", LDA(2, **SETTINGS), WORDS), ("same", "passthrough", ["cat"])])
    found = beside.set_output(transform="pandas").fit_transform(frame)
    assert found.columns.tolist() == ["topics__lda0", "topics__lda1", "same__cat"] and found.index.equals(frame.index)
    both = FeatureUnion([("two", LDA(2, **SETTINGS)), ("three", LDA(3, **SETTINGS))]).fit(frame)
    assert both.transform(frame).shape == (40, 5)
    assert both.get_feature_names_out().tolist()[2:] == ["three__lda0", "three__lda1", "three__lda2"]


def test_pandas_is_asked_for_only_where_it_is_needed(frame: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = LDA(2, **SETTINGS).fit(frame).set_output(transform="pandas")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"Expected pandas for set_output\(transform=\"pandas\"\); got none"):
        fitted.transform(frame)
    assert fitted.set_output(transform="default").transform(frame).shape == (40, 2)


def test_its_tags_are_those_of_scikit_learns() -> None:
    """But for the dtypes that it keeps, which are torch's."""
    ours, theirs = LDA().__sklearn_tags__(), LatentDirichletAllocation().__sklearn_tags__()
    ours.transformer_tags.preserves_dtype = theirs.transformer_tags.preserves_dtype
    assert ours == theirs


CHECKS = [
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_dict_unchanged",
    "check_estimators_overwrite_params",
    "check_estimators_fit_returns_self",
    "check_estimators_unfitted",
    "check_estimators_pickle",
    "check_pipeline_consistency",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_readonly_memmap_input",
    "check_estimator_sparse_matrix",
    "check_estimator_sparse_array",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_n_features_in",
]


@pytest.mark.parametrize("name", CHECKS)
def test_it_passes_scikit_learns_own_checks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that ask for no words of theirs in an error; of their data, which are no counts, any weights are taken."""
    check = getattr(estimator_checks, name, None)
    if check is None:
        pytest.skip(f"this scikit-learn has no {name}")
    original = reading._check_counts
    monkeypatch.setattr(reading, "_check_counts", lambda counts, _: original(counts, True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        check("LDA", LDA(3, random_state=0, max_iter=5))


# --------------------------------------------------------------------------------------------------------- raw strings


def test_raw_strings_are_the_counts_of_the_vectorizer(counts: Any) -> None:
    vectorizer = CountVectorizer()
    fitted = LDA(2, vectorizer=vectorizer, **SETTINGS).fit(TEXTS)
    plain = LDA(2, **SETTINGS).fit(counts, vocabulary=WORDS)
    assert torch.equal(fitted.components_, plain.components_) and fitted.vocabulary_ == plain.vocabulary_
    assert not hasattr(vectorizer, "vocabulary_") and list(fitted.vectorizer_.get_feature_names_out()) == WORDS
    new = pd.Series(["a tax on cats", "cat"], index=["x", "y"])
    assert torch.equal(fitted.transform(new), plain.transform(CountVectorizer(vocabulary=WORDS).transform(new)))
    assert fitted.score(TEXTS) == plain.score(counts) and fitted.perplexity(TEXTS) == plain.perplexity(counts)
    assert list(fitted.set_output(transform="pandas").transform(new).index) == ["x", "y"]
    assert clone(fitted).fit(TEXTS).bound_ == fitted.bound_
    assert not hasattr(fitted.fit(counts), "vectorizer_")


def test_a_stream_of_raw_strings_has_its_words_before(counts: Any) -> None:
    known = LDA(2, vectorizer=CountVectorizer(vocabulary=WORDS), **SETTINGS)
    for part in (TEXTS[:20], TEXTS[20:]):
        known.partial_fit(part)
    plain = LDA(2, **SETTINGS).partial_fit(counts[:20], vocabulary=WORDS).partial_fit(counts[20:])
    assert torch.equal(known.components_, plain.components_)
    with pytest.raises(ModelError, match=r"Expected a vectorizer that knows its words.*Write CountVectorizer\(vocab"):
        LDA(2, vectorizer=CountVectorizer(), **SETTINGS).partial_fit(TEXTS)


def test_what_counts_no_words_is_named() -> None:
    with pytest.raises(TypeError, match=r"vectorizer to be .* got <class .*Write vectorizer=CountVectorizer\(\)\."):
        LDA(2, vectorizer=CountVectorizer).fit(TEXTS)
    with pytest.raises(TypeError, match=r"Expected vectorizer to be a vectorizer of scikit-learn.*got 'words'"):
        LDA(2, vectorizer="words").fit(TEXTS)
    with pytest.raises(ValueError, match="Expected no vocabulary beside a vectorizer"):
        LDA(2, vectorizer=CountVectorizer()).fit(TEXTS, vocabulary=WORDS)
    with pytest.raises(DataError, match=r"of tokens; got 'cat dog cat dog'.*LDA\(vectorizer=CountVectorizer\(\)\)"):
        LDA(2).fit(TEXTS)


def test_the_input_of_pyldavis_is_of_the_words_and_documents_that_there_are(counts: Any) -> None:
    with_gaps = np.pad(counts.toarray(), ((0, 1), (0, 1)))
    fitted = LDA(2, **SETTINGS).fit(with_gaps, vocabulary=[*WORDS, "never"])
    found = fitted.to_pyldavis()
    assert found["vocab"] == WORDS
    np.testing.assert_array_equal(found["term_frequency"], counts.toarray().sum(0))
    np.testing.assert_array_equal(found["doc_lengths"], counts.toarray().sum(1))
    weights = fitted.components_[:, :4].numpy()
    np.testing.assert_allclose(found["topic_term_dists"], weights / weights.sum(1, keepdims=True), rtol=1e-12)
    proportions = (fitted.doc_topic_ / fitted.doc_topic_.sum(1, keepdim=True))[:-1]
    np.testing.assert_allclose(found["doc_topic_dists"], proportions, rtol=1e-12)
