"""What ``LDA`` has found: its topics, the words they are of, and new documents read with them.

Everything here is read off the state that a fit ended in; nothing needs the Pyro model. The names, and what a pipeline
asks an estimator, are scikit-learn's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal, Self

import numpy as np
from torch import Tensor

from pyro_latent.errors import ArgumentError, DataError, MissingPackageError, ModelError

from .corpus import Corpus
from .evaluation import coherence_npmi, top_words
from .fitting import FitState, bound, documents
from .kernel import DocumentStep
from .parameters import Parameters
from .reading import as_corpus, check_not_counts, column_names
from .strings import counts_of

__all__ = ["NotFittedError", "Results"]

Output = Literal["default", "pandas"]


class NotFittedError(ModelError, AttributeError):
    """An attribute of a fit was asked for before there was one; so that ``hasattr`` says no, as in scikit-learn."""


def _found(name: str, what: str) -> Any:
    """An attribute of a fit, which is one of its last state."""
    return property(lambda results: getattr(results._fitted, name), doc=what)


class Results(Parameters):
    """The attributes and methods of :class:`LDA` that need a fit."""

    _state: FitState
    #: The words, where they are known, and whether they came as the columns' names of a data frame.
    _vocabulary: tuple[str, ...] | None
    _framed: bool
    _corpus: Corpus
    _bound: float
    #: scikit-learn's name, so that its ``clone`` takes it along.
    _sklearn_output_config: dict[str, Output]

    @property
    def _fitted(self) -> FitState:
        if "_state" not in self.__dict__:
            raise NotFittedError("Expected a fitted LDA; got a new one. Call fit(counts) first.")
        return self._state

    # What was found.

    components_: Tensor = _found("topic_word", "λ, concentrations of the words in each topic, shape ``[K, V]``.")
    doc_topic_prior_: Tensor = _found("alpha", "α of the topics in a document, shape ``[K]``: as given, or learned.")
    topic_word_prior_: Tensor = _found("xi", "ξ of the words in a topic, shape ``[V]``: as given, or learned.")
    bounds_: list[tuple[int, float]] = _found("bounds", "(passes, ELBO in nats) wherever a batch fit evaluated it.")
    n_iter_: int = _found("passes", "Passes over the documents.")
    n_batch_iter_: int = _found("batches", "Minibatches seen.")
    converged_: bool = _found("converged", "Whether the fit stopped because ``tol`` was reached.")

    @property
    def doc_topic_(self) -> Tensor:
        """γ, concentrations of the topics in each document of :meth:`fit`, shape ``[D, K]``."""
        gamma = self._fitted.gamma
        if gamma is None:
            raise NotFittedError("Expected the documents of fit; got a stream by partial_fit. Call transform(counts).")
        return gamma

    @property
    def bound_(self) -> float:
        """The ELBO of the documents of :meth:`fit` and its topics, in nats."""
        _ = self.doc_topic_
        return self._bound

    # The words.

    @property
    def vocabulary_(self) -> tuple[str, ...] | None:
        """The V words in the order of the columns, or None where they are not known."""
        _ = self._fitted
        return self._vocabulary

    @property
    def n_features_in_(self) -> int:
        """V, the number of words."""
        return self.components_.shape[1]

    @property
    def feature_names_in_(self) -> np.ndarray[Any, Any]:
        """The V words as an array; there is none where they are not known, as in scikit-learn."""
        if self.vocabulary_ is None:
            raise AttributeError(
                "Expected documents whose words have names; got counts alone. Fit on a data frame, or write "
                "fit(counts, vocabulary=words)."
            )
        return np.array(self.vocabulary_, dtype=object)

    def top_words(self, vocabulary: Sequence[str] | None = None, n: int = 10) -> list[list[str]]:
        """The n most probable words of each topic, best first; their numbers, as strings, where no words are known."""
        known = self.vocabulary_ if vocabulary is None else vocabulary
        if known is not None and len(known) != self.n_features_in_:
            raise DataError(
                f"Expected a vocabulary of {self.n_features_in_} words; got {len(known)}. Give the words that were "
                "counted, in the order of the columns."
            )
        found = top_words(self.components_, n).tolist()
        return [[str(w if known is None else known[w]) for w in topic] for topic in found]

    def to_pyldavis(self) -> dict[str, Any]:
        """What ``pyLDAvis.prepare`` takes, for the documents of :meth:`fit`: ``pyLDAvis.prepare(**lda.to_pyldavis())``.

        Returns:
            ``topic_term_dists`` ``[K, V]`` and ``doc_topic_dists`` ``[D, K]``, whose rows sum to 1, ``doc_lengths``
            ``[D]``, ``vocab`` and ``term_frequency`` ``[V]``, as NumPy arrays and a list. Documents without words, and
            words in no document, are left out: pyLDAvis divides by their counts.
        """
        gamma, corpus = self.doc_topic_, self._corpus
        zeros = corpus.count.new_zeros
        frequency = zeros(corpus.num_words).index_add_(0, corpus.word, corpus.count)
        lengths = zeros(corpus.num_documents).index_add_(0, corpus.doc, corpus.count)
        known, full = frequency > 0, lengths > 0
        topics, documents = self.components_[:, known].double(), gamma[full].double()
        words = self.vocabulary_ or tuple(map(str, range(corpus.num_words)))
        return {
            "topic_term_dists": (topics / topics.sum(1, keepdim=True)).cpu().numpy(),
            "doc_topic_dists": (documents / documents.sum(1, keepdim=True)).cpu().numpy(),
            "doc_lengths": lengths[full].cpu().numpy(),
            "vocab": [words[i] for i in known.nonzero()[:, 0].tolist()],
            "term_frequency": frequency[known].cpu().numpy(),
        }

    # Documents under the topics.

    def transform(self, X: Any, *, normalize: bool = True) -> Any:
        """Topic proportions of documents under the fitted topics, shape ``[D, K]``: a tensor, or see `set_output`.

        Args:
            X: documents, as in :meth:`fit`, over the same vocabulary. A document without words gets the prior. Lists of
                V numbers each may be counts, and are an error: write an array, or ``as_corpus(X, num_words=V)``.
            normalize: False: the concentrations γ in place of the mean proportions.
        """
        gamma = self._infer(self._read(X)).gamma
        return self._as_set(gamma / gamma.sum(1, keepdim=True) if normalize else gamma, X)

    def score(self, X: Any, y: Any = None) -> float:
        """The ELBO of documents under the fitted topics, in nats: a lower bound on their log likelihood."""
        return bound(self._infer(self._read(X)), self._fitted)

    def perplexity(self, X: Any) -> float:
        """exp(−score / number of tokens), as in scikit-learn: lower is better. The topics' part counts."""
        corpus = self._read(X)
        corpus.check_tokens()
        return math.exp(-bound(self._infer(corpus), self._fitted) / corpus.num_tokens)

    def coherence(self, X: Any, n: int = 10) -> Tensor:
        """Coherence of each topic's n top words by NPMI in documents, shape ``[K]``; see ``coherence_npmi``."""
        return coherence_npmi(top_words(self.components_, n), self._read(X))

    def _infer(self, corpus: Corpus) -> DocumentStep:
        return documents(self, corpus, self._fitted, None, statistics=False)

    def _read(self, X: Any, vocabulary: Sequence[str] | None = None) -> Corpus:
        """Documents over the words of the fit, which may be named only now."""
        X, vocabulary = counts_of(getattr(self, "vectorizer_", self.vectorizer), X, vocabulary)
        topics, names = self.components_, column_names(X)
        given = X.vocabulary if isinstance(X, Corpus) else names
        given = tuple(vocabulary) if vocabulary is not None else given
        if given is not None and self._vocabulary not in (None, given):
            raise DataError(_other_words(self._vocabulary or (), given))
        if self._framed and names is None and len(getattr(X, "shape", ())) == 2:
            warnings.warn(
                "Expected columns with the names of those of fit; got counts without names, which are taken to be in "
                "the same order. Write a data frame here, or fit on frame.to_numpy().",
                UserWarning,
                stacklevel=3,
            )
        check_not_counts(X, topics.shape[1])
        known = self._vocabulary if given is None else given
        corpus = as_corpus(X, vocabulary=known, num_words=topics.shape[1])
        return corpus.to(topics.device, topics.dtype)

    # What scikit-learn asks an estimator.

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray[Any, Any]:
        """Names of what :meth:`transform` gives, "lda0", "lda1", …: an array of K strings.

        Args:
            input_features: those of the words, which must be as many as there are, and the same where they are known.
        """
        given = None if input_features is None else tuple(input_features)
        if given is not None and (len(given) != self.n_features_in_ or self.vocabulary_ not in (None, given)):
            raise DataError(
                f"Expected input_features to be the {self.n_features_in_} words of fit; got {len(given)} words, in "
                "another order or others. Leave them out."
            )
        prefix = type(self).__name__.lower()
        return np.array([f"{prefix}{k}" for k in range(len(self.components_))], dtype=object)

    def set_output(self, *, transform: Output | None = None) -> Self:
        """Choose what :meth:`transform` and :meth:`fit_transform` give.

        Args:
            transform: "default": a tensor; "pandas": a data frame, with the index of the input if that is one, and
                :meth:`get_feature_names_out` as columns; None: as before.
        """
        if transform not in (None, "default", "pandas"):
            raise ArgumentError(
                f'Expected transform to be "default" or "pandas"; got {transform!r}. For another kind of table convert '
                "what pandas gives."
            )
        if transform is not None:
            self._sklearn_output_config = {"transform": transform}
        return self

    def _as_set(self, rows: Tensor, X: Any) -> Any:
        """A result of one row for each document, in the form that `set_output` chose."""
        if getattr(self, "_sklearn_output_config", {}).get("transform") != "pandas":
            return rows
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise MissingPackageError(
                'Expected pandas for set_output(transform="pandas"); got none. Run: pip install pandas'
            ) from None
        index = X.index if hasattr(X, "iloc") else None  # of a pandas frame, or of a column of documents
        return pandas.DataFrame(rows.cpu().numpy(), index=index, columns=list(self.get_feature_names_out()))

    def __sklearn_is_fitted__(self) -> bool:
        return "_state" in self.__dict__

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn 1.6 and later must know: a transformer of sparse or dense counts that are not negative."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(),
            input_tags=InputTags(sparse=True, positive_only=True),
        )


def _other_words(known: Sequence[str], given: Sequence[str]) -> str:
    """The message for documents over other words, with the first few."""
    unseen, missing = (_some(set(b) - set(a)) for a, b in ((known, given), (given, known)))
    found = [f"unseen then: {unseen}"] * bool(unseen) + [f"missing: {missing}"] * bool(missing)
    return (
        f"Expected the vocabulary of the first documents; got another ({'; '.join(found) or 'in another order'}). "
        "Count the words in that order; of a data frame take X[list(lda.feature_names_in_)]."
    )


def _some(words: set[str]) -> str:
    return ", ".join(map(repr, sorted(words)[:5])) + (", …" if len(words) > 5 else "")
