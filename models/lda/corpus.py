"""Bags of words: how often each word occurs in each document, in compressed form.

A :class:`Corpus` lists the pairs of a document and a word that occur, with their counts, so documents may have any
length. :func:`as_corpus` makes one of a count matrix (dense or sparse, NumPy, SciPy or torch) or of lists of tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_latent.errors import ArgumentError, DataError

from .frames import column_names, frame_counts

__all__ = ["Corpus", "as_corpus", "check_not_counts"]

#: What to write for documents of a corpus.
_PLACES = "Number documents from 0, or give a mask of all; for one document write [number]."


@dataclass(frozen=True, eq=False)
class Corpus:
    """A bag of words. Nothing in it changes once it is made; make one with :func:`as_corpus`.

    Attributes:
        doc: the document of each entry, ascending, int64, shape ``[entries]``.
        word: its word, ascending within a document, int64, shape ``[entries]``.
        count: how often the word occurs there, above 0, floating, shape ``[entries]``; its dtype and device are those
            of all work on the corpus.
        num_documents: D; documents without words count.
        num_words: V, the size of the vocabulary.
        index: the place of each document in the whole corpus, int64, shape ``[D]``.
        total_documents: the number of documents in the whole corpus: above D for a minibatch.
        vocabulary: the V words, where they are known.
    """

    doc: Tensor
    word: Tensor
    count: Tensor
    num_documents: int
    num_words: int
    index: Tensor
    total_documents: int
    vocabulary: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.num_documents

    def __repr__(self) -> str:
        whole = "" if self.total_documents == self.num_documents else f" of {self.total_documents}"
        return (
            f"Corpus({self.num_documents}{whole} documents, {self.num_words} words, {self.num_tokens:g} tokens in "
            f"{len(self.doc)} entries, {self.count.dtype} on {self.count.device})"
        )

    @cached_property
    def num_tokens(self) -> float:
        """The sum of all counts."""
        return float(self.count.sum(dtype=torch.float64))

    @cached_property
    def starts(self) -> Tensor:
        """Where each document's entries begin, and where the last one's end, int64, shape ``[D + 1]``."""
        edges = torch.arange(self.num_documents + 1, device=self.doc.device)
        return torch.searchsorted(self.doc, edges)

    @cached_property
    def by_word(self) -> Tensor:
        """The order of the entries by word, and by document within a word, int64, shape ``[entries]``."""
        return torch.sort(self.word, stable=True).indices

    @cached_property
    def word_starts(self) -> Tensor:
        """Where each word's entries begin in :attr:`by_word`, and where the last one's end, int64, ``[V + 1]``."""
        edges = torch.arange(self.num_words + 1, device=self.word.device)
        return torch.searchsorted(self.word[self.by_word], edges)

    @cached_property
    def lengths(self) -> Tensor:
        """The number of tokens of each document, shape ``[D]``."""
        return self.count.new_zeros(self.num_documents).index_add_(0, self.doc, self.count)

    @property
    def is_whole(self) -> bool:
        """Whether this is all of the data, and not a minibatch."""
        return self.total_documents == self.num_documents

    def select(self, index: Tensor | Sequence[int]) -> Corpus:
        """Some documents as a corpus of their own.

        Args:
            index: their places, integers, shape ``[B]``, B at least 1, in the order wanted, where a place that occurs
                twice makes two documents; or a mask, Booleans, shape ``[D]``.

        Raises:
            DataError: if it is neither, or there is no such document.
        """
        chosen = self._places(index)
        lengths = self.starts.diff()[chosen]
        doc = torch.repeat_interleave(lengths)
        first = lengths.cumsum(0) - lengths
        entries = self.starts[:-1][chosen][doc] + torch.arange(len(doc), device=doc.device) - first[doc]
        own = torch.arange(len(chosen), device=doc.device)
        return Corpus(
            doc, self.word[entries], self.count[entries], len(chosen), self.num_words, own, len(chosen), self.vocabulary
        )

    def _places(self, index: Tensor | Sequence[int]) -> Tensor:
        """The places of documents, int64, shape ``[B]``, of places or of a mask."""
        try:
            given = torch.as_tensor(index if isinstance(index, Tensor) else np.asarray(index), device=self.doc.device)
        except (TypeError, ValueError) as error:
            raise DataError(f"Expected places of documents, or a mask; got {index!r} ({error}). {_PLACES}") from None
        if given.dim() != 1 or len(given) == 0:
            shape = list(given.shape)
            raise DataError(f"Expected at least one document, in one dimension; got shape {shape}. {_PLACES}")
        if given.dtype == torch.bool:
            return self._places_of_mask(given)
        if given.is_floating_point() or given.is_complex():
            raise DataError(f"Expected places of documents, or a mask; got numbers of {given.dtype}. {_PLACES}")
        outside = (given < 0) | (given >= self.num_documents)
        if bool(outside.any()):
            raise DataError(
                f"Expected documents from 0 to {self.num_documents - 1}; got {int(given[outside][0])}. {_PLACES}"
            )
        return given.long()

    def _places_of_mask(self, mask: Tensor) -> Tensor:
        if len(mask) != self.num_documents or not bool(mask.any()):
            raise DataError(
                f"Expected a mask of {self.num_documents} documents, at least one of them True; got {len(mask)}, "
                f"{int(mask.sum())} of them True. {_PLACES}"
            )
        return mask.nonzero().squeeze(1)

    def minibatch(self, index: Tensor | Sequence[int]) -> Corpus:
        """Some documents as a part that stands for the whole: models scale it up.

        Args:
            index: places in this corpus, or a mask, as in :meth:`select`.

        Raises:
            DataError: as :meth:`select` does.
        """
        chosen = self._places(index)
        part = self.select(chosen)
        return replace(part, index=self.index[chosen], total_documents=self.total_documents)

    def check_whole(self) -> None:
        """That this is all of the data, for what does not scale a part up.

        Raises:
            DataError: if it is a minibatch.
        """
        if not self.is_whole:
            raise DataError(
                f"Expected a whole corpus; got a minibatch of {self.num_documents} of {self.total_documents} documents"
                ". Fit the whole, or take the documents as a corpus of their own with corpus.select(index)."
            )

    def minibatches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Corpus]:
        """All documents once, ``size`` at a time (the last part may be smaller), in an order drawn at random.

        Args:
            size: documents in a minibatch, at least 1.
            generator: of the order; default torch's global one.
        """
        device = torch.device("cpu") if generator is None else generator.device
        order = torch.randperm(self.num_documents, generator=generator, device=device)
        for part in order.split(size):
            yield self.minibatch(part)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Corpus:
        """The corpus on a device, with counts of a floating dtype."""
        dtype = self.count.dtype if dtype is None else dtype
        if not dtype.is_floating_point:
            raise TypeError(f"Expected a floating dtype for counts; got {dtype}. Write torch.float64.")
        device = self.count.device if device is None else torch.device(device)
        if dtype == self.count.dtype and device == self.count.device:
            return self
        count = self.count.to(device=device, dtype=dtype)
        return replace(
            self, doc=self.doc.to(device), word=self.word.to(device), count=count, index=self.index.to(device)
        )

    def to_dense(self) -> Tensor:
        """The count matrix, shape ``[D, V]``: for small corpora."""
        dense = self.count.new_zeros(self.num_documents, self.num_words)
        dense[self.doc, self.word] = self.count
        return dense

    def to_scipy(self) -> Any:
        """The count matrix as a ``scipy.sparse.csr_matrix``, shape ``[D, V]``."""
        import scipy.sparse

        parts = (self.count.cpu().numpy(), self.word.cpu().numpy(), self.starts.cpu().numpy())
        return scipy.sparse.csr_matrix(parts, shape=(self.num_documents, self.num_words))


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
        TypeError: if ``data`` is none of these, or the vocabulary has no order.
    """
    if unknown not in ("error", "ignore"):
        raise ArgumentError(
            f'Expected unknown to be "error" or "ignore"; got {unknown!r}. Write "ignore" to drop such tokens.'
        )
    words = _ordered(vocabulary)
    if isinstance(data, Corpus):
        return _checked_size(data, words, num_words).to(device, dtype)
    documents = _documents(data)
    if documents is not None:
        entries = _from_tokens(documents, words, num_words, unknown)
    else:
        entries = _from_matrix(frame_counts(data), _of_columns(words, column_names(data)), num_words)
    return _finished(*entries, fractional, dtype, device)


def _ordered(vocabulary: Any) -> tuple[str, ...] | None:
    """The words in the order of their numbers.

    Raises:
        TypeError: for a dictionary, such as scikit-learn's ``vocabulary_``, or a string.
    """
    if isinstance(vocabulary, Mapping | str | bytes | set | frozenset):
        raise TypeError(
            f"Expected a vocabulary as a list of words, in the order of the columns; got {type(vocabulary).__name__}. "
            "With scikit-learn's CountVectorizer write vectorizer.get_feature_names_out()."
        )
    return None if vocabulary is None else tuple(map(str, vocabulary))


def _of_columns(vocabulary: tuple[str, ...] | None, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The words of a matrix: those that are given, or the columns' names."""
    if vocabulary is None:
        return names
    if names is None or vocabulary == names or len(vocabulary) != len(names):
        return vocabulary
    word, name = next((w, n) for w, n in zip(vocabulary, names, strict=True) if w != n)
    raise DataError(
        f"Expected the vocabulary to be the names of the columns; got {word!r} for the column {name!r}. Leave it out, "
        "or write data.to_numpy() for columns without names."
    )


def _documents(data: Any) -> Sequence[Any] | None:
    """Documents as a list, also those of a column of a data frame; None for a matrix."""
    if isinstance(data, str | bytes):
        return None
    if isinstance(data, Sequence):
        return data
    of_counts = isinstance(data, Tensor) or hasattr(data, "tocoo") or getattr(data, "ndim", 0) != 1
    return None if of_counts or np.asarray(data).dtype.kind in "bifuc" else list(data)


Entries = tuple[Tensor, Tensor, Tensor, int, int, tuple[str, ...] | None]


def _from_matrix(data: Any, vocabulary: Sequence[str] | None, num_words: int | None) -> Entries:
    """The entries of a count matrix that are not zero."""
    if isinstance(data, Tensor):
        rows, columns, count = _tensor_entries(data)
    elif hasattr(data, "tocoo"):
        matrix = data.tocoo()
        rows, columns = (torch.from_numpy(i.astype(np.int64)) for i in (matrix.row, matrix.col))
        count = torch.from_numpy(_numeric(matrix.data))
    else:
        data = _numeric(_as_array(data))
        if data.ndim != 2:
            raise DataError(_shape_message(data.shape))
        rows, columns, count = _tensor_entries(torch.from_numpy(data))
    if len(data.shape) != 2:
        raise DataError(_shape_message(data.shape))
    num_documents, found_words = (int(n) for n in data.shape)
    _check_vocabulary(vocabulary, found_words, num_words)
    return rows, columns, count, num_documents, found_words, None if vocabulary is None else tuple(vocabulary)


def _as_array(data: Any) -> np.ndarray[Any, Any]:
    """A NumPy array, also of a data frame.

    Raises:
        TypeError: if it is none.
    """
    if not hasattr(data, "__array__"):
        raise TypeError(
            f"Expected a count matrix (SciPy sparse, NumPy, torch) or a list of documents, each a list of tokens; got "
            f"{type(data).__name__}. Write list(data), or a matrix of counts."
        )
    return np.asarray(data)


def _numeric(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Counts as float32 or float64.

    Raises:
        DataError: if they are not real numbers.
    """
    if array.dtype == np.float32:
        return np.require(array, requirements="W")  # torch takes no array that is read only
    if array.dtype.kind == "O" and all(isinstance(value, Real) for value in array.flat):
        return array.astype(np.float64)
    if array.dtype.kind not in "bifu":
        raise DataError(f"Expected counts that are real numbers; got dtype {array.dtype}. Write counts.astype(float).")
    return array.astype(np.float64)


def _tensor_entries(data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and count of what is stored in a tensor."""
    if data.dim() != 2:
        raise DataError(_shape_message(tuple(data.shape)))
    if data.is_complex():
        raise DataError(f"Expected counts that are real numbers; got dtype {data.dtype}. Write counts.real.")
    data = data.detach()
    data = data if data.dtype in (torch.float32, torch.float64) else data.double()
    if data.layout == torch.strided:
        rows, columns = data.nonzero(as_tuple=True)
        return rows, columns, data[rows, columns]
    entries = data.to_sparse_coo()
    rows, columns = entries._indices()  # also of entries that are not added up yet
    return rows, columns, entries._values()


def _from_tokens(
    documents: Sequence[Any], vocabulary: Sequence[str] | None, num_words: int | None, unknown: str
) -> Entries:
    """The entries of documents that are lists of tokens."""
    wrong = next((d for d in documents if isinstance(d, str | bytes) or not hasattr(d, "__iter__")), None)
    if wrong is not None:
        raise DataError(
            f"Expected each document to be a list of tokens; got {wrong!r}. Split it first: document.lower().split()."
        )
    tokens = [list(document) for document in documents]
    named = any(isinstance(token, str) for document in tokens for token in document)
    if named and vocabulary is None:
        vocabulary = sorted({_word(token) for document in tokens for token in document})
    if named:
        assert vocabulary is not None
        numbers = {word: number for number, word in enumerate(vocabulary)}
        numbered = [[_number(token, numbers, unknown) for token in document] for document in tokens]
        size = len(vocabulary)
    else:
        _check_integers(tokens)
        if num_words is None:
            check_not_counts(tokens, None if vocabulary is None else len(vocabulary))
        size, numbered = _whole_numbers(tokens, len(vocabulary) if vocabulary is not None else num_words, unknown)
    _check_vocabulary(vocabulary, size, num_words)
    known = [[n for n in document if n >= 0] for document in numbered]
    lengths = torch.tensor([len(document) for document in known], dtype=torch.int64)
    word = torch.tensor([n for document in known for n in document], dtype=torch.int64)
    ones = torch.ones(len(word), dtype=torch.float64)
    return (
        torch.repeat_interleave(lengths),
        word,
        ones,
        len(known),
        size,
        None if vocabulary is None else tuple(vocabulary),
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


def _word(token: Any) -> str:
    if not isinstance(token, str):
        raise DataError(
            f"Expected all tokens to be words, or all to be integers; got {token!r} among words. Write str(token)."
        )
    return token


def _number(token: Any, numbers: Mapping[str, int], unknown: str) -> int:
    """The number of a word, or −1 for one to ignore."""
    found = numbers.get(_word(token))
    if found is None and unknown == "error":
        raise DataError(
            f"Expected tokens of the vocabulary ({len(numbers)} words); got {token!r}. Drop it, or write "
            'as_corpus(data, vocabulary=..., unknown="ignore").'
        )
    return -1 if found is None else found


def _check_integers(tokens: Sequence[Sequence[Any]]) -> None:
    bad = next((t for d in tokens for t in d if isinstance(t, bool) or not hasattr(t, "__index__")), None)
    if bad is not None:
        raise DataError(
            f"Expected tokens that are words or integers; got {bad!r}. For counts of words write an array or a tensor."
        )


def _whole_numbers(tokens: Sequence[Sequence[Any]], num_words: int | None, unknown: str) -> tuple[int, list[list[int]]]:
    """The vocabulary's size, and tokens that are integers; −1 for one to ignore."""
    numbered = [[int(token) for token in document] for document in tokens]
    largest = max((max(document) for document in numbered if document), default=-1)
    size = largest + 1 if num_words is None else num_words
    for document in numbered:
        outside = next((n for n in document if not 0 <= n < size), None)
        if outside is not None and (unknown == "error" or outside < 0):
            raise DataError(
                f"Expected tokens from 0 to {size - 1}; got {outside}. Give the vocabulary that numbers them, or write "
                'unknown="ignore" to drop larger ones.'
            )
    return size, [[n if n < size else -1 for n in document] for document in numbered]


def _check_vocabulary(vocabulary: Sequence[str] | None, found: int, num_words: int | None) -> None:
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


def _checked_size(corpus: Corpus, vocabulary: Sequence[str] | None, num_words: int | None) -> Corpus:
    _check_vocabulary(vocabulary, corpus.num_words, num_words)
    return corpus if vocabulary is None else replace(corpus, vocabulary=tuple(vocabulary))


def _shape_message(shape: Sequence[int]) -> str:
    return f"Expected counts of shape [documents, words]; got shape {list(shape)}. Write counts[None] for one document."


def _finished(
    rows: Tensor,
    columns: Tensor,
    count: Tensor,
    num_documents: int,
    num_words: int,
    vocabulary: tuple[str, ...] | None,
    fractional: bool,
    dtype: torch.dtype | None,
    device: Any,
) -> Corpus:
    """Entries in order, equal ones added up, zeros dropped, and all of them checked."""
    if num_documents < 1:
        raise DataError("Expected at least one document; got none. Check what was read.")
    if num_words < 1:
        raise DataError("Expected a vocabulary of at least one word; got none. Give num_words for empty documents.")
    _check_counts(rows, columns, count, fractional)
    # Check before adding up, so that a negative count cannot hide behind a larger one.
    keys, places = torch.unique(rows * num_words + columns, return_inverse=True)
    summed = count.new_zeros(len(keys)).index_add_(0, places, count)
    keys, summed = keys[summed > 0], summed[summed > 0]
    index = torch.arange(num_documents, device=keys.device)
    corpus = Corpus(
        keys // num_words, keys % num_words, summed, num_documents, num_words, index, num_documents, vocabulary
    )
    return corpus.to(device, dtype)


def _check_counts(rows: Tensor, columns: Tensor, count: Tensor, fractional: bool) -> None:
    def fail(wrong: Tensor, expected: str, fix: str) -> None:
        place = int(wrong.nonzero()[0])
        raise DataError(
            f"Expected counts that are {expected}; got {count[place].item():g} for word {int(columns[place])} of "
            f"document {int(rows[place])}, and {int(wrong.sum())} such in all. {fix}"
        )

    for wrong, expected, fix in (
        (~count.isfinite(), "finite", "Clean the data first."),
        (count < 0, "not negative", "Clean the data first."),
        (count != count.round(), "whole numbers", "For weights, write as_corpus(data, fractional=True)."),
    ):
        if bool(wrong.any()) and not (fractional and expected == "whole numbers"):
            fail(wrong, expected, fix)
