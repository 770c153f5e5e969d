"""Raw strings as counts, by a vectorizer of scikit-learn's kind."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyro_latent.errors import ArgumentError, ModelError

__all__ = ["counts_of", "fitted_counts"]

Words = Sequence[str] | None


def are_strings(documents: Any) -> bool:
    """Whether documents are raw strings: of a list, an array, or a column of a data frame."""
    is_column = isinstance(documents, list | tuple) or (
        getattr(documents, "ndim", 0) == 1 and np.asarray(documents).dtype.kind in "OUT"
    )
    return is_column and len(documents) > 0 and all(isinstance(document, str) for document in documents)


def fitted_counts(vectorizer: Any, documents: Any, vocabulary: Words) -> tuple[Any, Any, Words]:
    """A copy of the vectorizer, fitted to raw strings, their counts ``[D, V]``, and the words.

    Other documents stay as they are, without a vectorizer.

    Raises:
        ArgumentError: if a vocabulary is given besides.
    """
    if vectorizer is None or not are_strings(documents):
        return None, documents, vocabulary
    fitted = copy.deepcopy(vectorizer).fit(documents)
    return fitted, *counts_of(fitted, documents, vocabulary)


def counts_of(vectorizer: Any, documents: Any, vocabulary: Words) -> tuple[Any, Words]:
    """The counts ``[D, V]`` of raw strings by a vectorizer that knows its words, and these; others stay as they are.

    Raises:
        ArgumentError: if a vocabulary is given besides.
        ModelError: if the vectorizer does not know its words.
    """
    if vectorizer is None or not are_strings(documents):
        return documents, vocabulary
    if vocabulary is not None:
        raise ArgumentError(
            "Expected no vocabulary beside a vectorizer, which has its own; got both. Write "
            "vectorizer=CountVectorizer(vocabulary=words)."
        )
    if not (hasattr(vectorizer, "vocabulary_") or getattr(vectorizer, "vocabulary", None) is not None):
        raise ModelError(
            "Expected a vectorizer that knows its words, since later documents may have others; got a new one. Write "
            "CountVectorizer(vocabulary=words), or fit it first."
        )
    counts = vectorizer.transform(documents)
    return counts, tuple(map(str, vectorizer.get_feature_names_out()))
