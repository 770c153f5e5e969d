"""How documents become a :class:`Corpus`: count matrices of any library, data frames, or lists of tokens.

All of them become a ``scipy.sparse`` matrix, documents by words, first; it adds up equal entries and drops zeros.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from torch import Tensor

from pyro_latent.errors import ArgumentError, ArgumentTypeError, DataError, check_count
from pyro_latent.values import kind_of

from .corpus import Corpus

__all__ = ["as_corpus", "check_not_counts", "column_names", "corpus_of"]

Words = tuple[str, ...] | None


def as_corpus(
    data: Any,
    *,
    vocabulary: Sequence[str] | None = None,
    num_words: int | None = None,
    fractional: bool = False,
    unknown: str = "error",
    dtype: torch.dtype | None = None,
    device: Any = None,
) -> Corpus:
    """A corpus of a count matrix, or of documents as lists of tokens.

    Args:
        data: counts of shape ``[D, V]``: a SciPy sparse matrix or array, a NumPy array, a torch tensor (dense, COO or
            CSR), a data frame such as pandas', also of sparse columns, whose columns are named by their words or not
            named at all; or a sequence of documents, each a sequence of tokens, which are strings or integers from 0. A
            ``Corpus`` is returned as it is, but for dtype and device. Rows of numbers that may be either, tokens or
            counts, are an error without ``num_words``: lists of equal length, that of the vocabulary if there is one.
        vocabulary: the words, in the order of their numbers; default the columns' names. Tokens that are strings need
            it, or get one: all their words, sorted.
        num_words: V for tokens that are integers; default one more than the largest. It says that they are tokens.
        fractional: whether counts may be other than whole numbers: weights, such as expected counts.
        unknown: for a token outside the vocabulary, ``"error"`` or ``"ignore"``.
        dtype: of the counts; default that of floating data of 32 or 64 bits, else float64.
        device: default the data's, or the CPU.

    Raises:
        DataError: if there is no document or no word; if a count is negative, not finite, or not whole; if a token is
            unknown; if rows of numbers may be counts as well as tokens; or if the vocabulary has another size than the
            data, a word twice, or is not the columns' names.
        ArgumentTypeError: if ``data`` is none of these, or the vocabulary has no order.
    """
    found = corpus_of(data, vocabulary, num_words, fractional, unknown, dtype, device)
    found.check_documents()
    return found


def corpus_of(
    data: Any,
    vocabulary: Sequence[str] | None = None,
    num_words: int | None = None,
    fractional: bool = False,
    unknown: str = "error",
    dtype: torch.dtype | None = None,
    device: Any = None,
) -> Corpus:
    """What :func:`as_corpus` makes, which may be of no documents: those of one process of several."""
    if not isinstance(unknown, str) or unknown not in ("error", "ignore"):
        raise ArgumentError(
            f'Expected unknown to be "error" or "ignore"; got {unknown!r}. Write "ignore" to drop such tokens.'
        )
    num_words = None if num_words is None else check_count("num_words", num_words)
    words = _ordered(vocabulary)
    if isinstance(data, Corpus):
        _check_vocabulary(words, data.num_words, num_words)
        return replace(data, vocabulary=words or data.vocabulary).to(device, dtype)
    documents = _documents(data)
    if documents is None:
        words = _of_columns(words, column_names(data))
        counts = _counts(data)
    else:
        counts, words = _of_tokens(documents, words, num_words, unknown == "ignore")
    _check_vocabulary(words, counts.shape[1], num_words)
    found = _corpus(counts, words, fractional)
    return found.to(data.device if device is None and isinstance(data, Tensor) else device, dtype)


def _corpus(counts: Any, vocabulary: Words, fractional: bool) -> Corpus:
    """The corpus of a matrix ``[D, V]``, whose entries are checked before equal ones are added up."""
    num_documents, num_words = counts.shape
    if num_words < 1 <= num_documents:
        raise DataError("Expected a vocabulary of at least one word; got none. Give num_words for empty documents.")
    _check_counts(counts, fractional)
    rows = counts.tocsr()  # adds up, and sorts by document
    rows.eliminate_zeros()
    rows.sort_indices()
    index, lengths = torch.arange(num_documents), torch.from_numpy(np.diff(rows.indptr).astype(np.int64))
    word, count = torch.from_numpy(rows.indices.astype(np.int64)), torch.from_numpy(rows.data)
    doc = torch.repeat_interleave(lengths)
    return Corpus(doc, word, count, num_documents, num_words, index, num_documents, vocabulary)


def _check_counts(counts: Any, fractional: bool) -> None:
    values = counts.data
    wrong = {
        "finite": ~np.isfinite(values),
        "not negative": values < 0,
        "whole numbers": (values != np.round(values)) & (not fractional),
    }
    for expected, places in wrong.items():
        if places.any():
            first = int(places.argmax())
            raise DataError(
                f"Expected counts that are {expected}; got {values[first]:g} for word {counts.col[first]} of document "
                f"{counts.row[first]}, and {int(places.sum())} such in all. Clean the data first; "
                "for weights that are no whole numbers write as_corpus(data, fractional=True)."
            )


# ------------------------------------------------------------------------------------------------------------ matrices


def _counts(data: Any) -> Any:
    """What is stored in a count matrix, as a SciPy matrix of coordinates in float32 or float64."""
    if isinstance(data, Tensor) and not (data.is_meta or data.is_nested):
        data = _without_torch(data.detach().cpu())
    elif hasattr(data, "columns") and hasattr(data, "dtypes"):
        data = _frame_counts(data)
    if isinstance(data, Tensor) or not (hasattr(data, "tocoo") or hasattr(data, "__array__")):
        raise ArgumentTypeError(
            "Expected a count matrix (SciPy sparse, NumPy, torch) or a list of documents, each a list of tokens; "
            f"got {kind_of(data)}. Write list(data), or a matrix of counts."
        )
    matrix = data if hasattr(data, "tocoo") else _numeric(np.asarray(data))
    if len(matrix.shape) != 2:
        raise DataError(
            f"Expected counts of shape [documents, words]; got shape {list(matrix.shape)}. Write counts[None] for one "
            "document."
        )
    found = coo_array(matrix)
    return coo_array((_numeric(found.data), found.coords), shape=found.shape)


def _without_torch(data: Tensor) -> Any:
    """A tensor as a NumPy array, or as a SciPy matrix if it is sparse; with entries that are not added up yet."""
    data = data.dequantize() if data.is_quantized else data.float() if data.dtype == torch.bfloat16 else data
    if data.layout == torch.strided:
        return data.numpy()
    entries = data.to_sparse_coo()
    return coo_array((entries._values().numpy(), tuple(entries._indices().numpy())), shape=tuple(data.shape))


def _frame_counts(data: Any) -> Any:
    """The counts of a pandas frame: a SciPy matrix if its columns are sparse, else an array. Other frames stay.

    pandas need not be there: a frame is known by what it has.
    """
    dtypes = list(data.dtypes)
    if not all(hasattr(dtype, "kind") for dtype in dtypes):
        return data
    others = [column for column, dtype in enumerate(dtypes) if dtype.kind not in "bifu"]
    wrong = [data.columns[i] for i in others if not all(isinstance(value, Real) for value in data.iloc[:, i])]
    if wrong:
        raise DataError(
            f"Expected columns of counts; got {wrong[0]!r}, which holds no real numbers, and {len(wrong)} such in all. "
            "Drop them, or count their words first."
        )
    sparse: Any = getattr(data, "sparse", None)  # an attribute only where all columns are sparse
    if sparse is not None and all(dtype.fill_value == 0 for dtype in dtypes):
        return sparse.to_coo()
    array = np.asarray(data)
    # Where numbers may be missing they are objects to NumPy; those that are missing are found later, as not finite.
    return data.to_numpy(dtype=np.float64, na_value=np.nan) if array.dtype.kind == "O" else array


def _numeric(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Counts as float32 or float64.

    Raises:
        DataError: if they are not real numbers.
    """
    real = array.dtype.kind in "bifu" or (array.dtype.kind == "O" and all(isinstance(v, Real) for v in array.flat))
    if not real:
        raise DataError(f"Expected counts that are real numbers; got dtype {array.dtype}. Write counts.astype(float).")
    return array if array.dtype == np.float32 else array.astype(np.float64)


# -------------------------------------------------------------------------------------------------------------- tokens


def _documents(data: Any) -> Sequence[Any] | None:
    """Documents as a list, also those of a column of a data frame; None for a matrix."""
    if isinstance(data, str | bytes):
        return None
    if isinstance(data, Sequence):
        return data
    of_counts = isinstance(data, Tensor) or hasattr(data, "tocoo") or getattr(data, "ndim", 0) != 1
    return None if of_counts or np.asarray(data).dtype.kind in "bifuc" else list(data)


def _of_tokens(documents: Sequence[Any], words: Words, num_words: int | None, ignore: bool) -> tuple[Any, Words]:
    """The counts of documents that are lists of tokens, and the words."""
    wrong = next((d for d in documents if isinstance(d, str | bytes) or not hasattr(d, "__iter__")), None)
    if wrong is not None:
        raise DataError(
            f"Expected each document to be a list of tokens; got {wrong!r}. Split it first: document.lower().split(), "
            "or give LDA(vectorizer=CountVectorizer())."
        )
    documents = [list(document) for document in documents]
    tokens = list(chain.from_iterable(documents))
    named = any(isinstance(token, str) for token in tokens)
    _check_alike(tokens, named)
    if named:
        words = tuple(sorted(set(tokens))) if words is None else words
        numbers = {word: number for number, word in enumerate(words)}
        word = np.array([numbers.get(token, -1) for token in tokens], dtype=np.int64)
        size = len(words)
    else:
        if num_words is None:
            check_not_counts(documents, None if words is None else len(words))
        word = np.array([int(token) for token in tokens], dtype=np.int64)
        size = len(words) if words is not None else int(word.max(initial=-1)) + 1 if num_words is None else num_words
    doc = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    known = (word >= 0) & (word < size)
    wrong = ~known if not ignore else (word < 0) & (not named)
    if wrong.any():
        expected = f"of the vocabulary ({size} words)" if named else f"from 0 to {size - 1}"
        raise DataError(
            f"Expected tokens {expected}; got {tokens[int(wrong.argmax())]!r}. Give the vocabulary that has it, or "
            'write as_corpus(data, vocabulary=..., unknown="ignore") to drop it.'
        )
    return coo_array((np.ones(known.sum()), (doc[known], word[known])), shape=(len(documents), size)), words


def _check_alike(tokens: Sequence[Any], named: bool) -> None:
    """That all tokens are words, or all of them integers."""
    for token in tokens:
        if named and not isinstance(token, str):
            raise DataError(
                f"Expected all tokens to be words, or all to be integers; got {token!r} among words. Write str(token)."
            )
        if not named and (isinstance(token, bool) or not hasattr(token, "__index__")):
            raise DataError(
                f"Expected tokens that are words or integers; got {token!r}. For counts of words write an array or a "
                "tensor."
            )


def check_not_counts(data: Any, num_words: int | None) -> None:
    """That documents as lists of numbers cannot be meant as rows of a count matrix, such as ``counts.tolist()``.

    Args:
        data: what :func:`as_corpus` takes; all but lists of numbers pass.
        num_words: V, where it is known: rows of counts have this length.

    Raises:
        DataError: if all lists are of this length, or of one length where V is not known.
    """
    rows = _documents(data) or []
    lengths = {len(row) if isinstance(row, Sequence | np.ndarray | Tensor) else 0 for row in rows}
    alike = len(lengths) == 1 and lengths != {0} and num_words in (None, *lengths)
    if alike and not any(isinstance(token, str) for row in rows for token in row):
        raise DataError(
            f"Expected lists of tokens; got rows of {lengths.pop()} numbers each, which may be counts of words. Write "
            "numpy.asarray(data) for counts, or as_corpus(data, num_words=V) for tokens from 0 to V - 1."
        )


# --------------------------------------------------------------------------------------------------------------- words


def column_names(data: Any) -> tuple[str, ...] | None:
    """The names of a frame's columns if they are strings; None for other data, or columns that are only numbered.

    Raises:
        TypeError: if some names are strings, and others are not.
    """
    columns = getattr(data, "columns", None)
    names = list(columns) if isinstance(columns, Iterable) else []
    others = [name for name in names if not isinstance(name, str)]
    if others and len(others) < len(names):
        raise ArgumentTypeError(
            f"Expected columns that all have strings as names, or none; got {others[0]!r} among strings. Write "
            "data.columns = data.columns.astype(str)."
        )
    return tuple(str(name) for name in names) if names and not others else None


def _is_ordered(vocabulary: Any) -> bool:
    unordered = isinstance(vocabulary, Mapping | str | bytes | set | frozenset)
    return not unordered and isinstance(vocabulary, Iterable) and getattr(vocabulary, "ndim", 1) == 1


def _ordered(vocabulary: Any) -> Words:
    """The words in the order of their numbers.

    Raises:
        ArgumentTypeError: for a dictionary, such as scikit-learn's ``vocabulary_``, or a string.
    """
    if vocabulary is not None and not _is_ordered(vocabulary):
        raise ArgumentTypeError(
            f"Expected a vocabulary as a list of words, in the order of the columns; got {type(vocabulary).__name__}. "
            "With scikit-learn's CountVectorizer write vectorizer.get_feature_names_out()."
        )
    return None if vocabulary is None else tuple(map(str, vocabulary))


def _of_columns(vocabulary: Words, names: Words) -> Words:
    """The words of a matrix: those that are given, or the columns' names."""
    if vocabulary is None:
        return names
    word, name = next(((w, n) for w, n in zip(vocabulary, names or (), strict=False) if w != n), ("", ""))
    if names is not None and len(names) == len(vocabulary) and word != name:
        raise DataError(
            f"Expected the vocabulary to be the names of the columns; got {word!r} for the column {name!r}. Leave it "
            "out, or write data.to_numpy() for columns without names."
        )
    return vocabulary


def _check_vocabulary(vocabulary: Words, found: int, num_words: int | None) -> None:
    if num_words is not None and num_words != found:
        raise DataError(
            f"Expected counts of {num_words} words; got {found} columns. Count the words of the same vocabulary, in "
            "the same order."
        )
    if vocabulary is not None and len(vocabulary) != found:
        raise DataError(
            f"Expected a vocabulary of as many words as the counts have columns, {found}; got {len(vocabulary)} words. "
            "Give the words that were counted, in the order of the columns."
        )
    if vocabulary is not None and len(set(vocabulary)) != found:
        twice = Counter(vocabulary).most_common(1)[0][0]
        raise DataError(
            f"Expected a vocabulary without repetitions; got {twice!r} twice. Add the columns of equal words up."
        )
