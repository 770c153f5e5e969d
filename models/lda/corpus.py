"""Bags of words: how often each word occurs in each document, in compressed form.

A :class:`Corpus` lists the pairs of a document and a word that occur, with their counts, so documents may have any
length. ``as_corpus``, in ``reading``, makes one of a count matrix or of lists of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_latent.errors import ArgumentTypeError, DataError

__all__ = ["Corpus"]

#: What to write for documents of a corpus.
_PLACES = "Number documents from 0, or give a mask of all; for one document write [number]."


@dataclass(frozen=True, eq=False)
class Corpus:
    """A bag of words. Nothing in it changes once it is made; make one with ``as_corpus``.

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
        whole = "" if self.is_whole else f" of {self.total_documents}"
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

    @property
    def upscaling(self) -> float:
        """How many documents of the whole each of these stands for."""
        return self.total_documents / self.num_documents

    def select(self, index: Tensor | Sequence[int]) -> Corpus:
        """Some documents as a corpus of their own.

        Args:
            index: their places, integers, shape ``[B]``, B at least 1, in the order wanted, where a place that occurs
                twice makes two documents; or a mask, Booleans, shape ``[D]``.

        Raises:
            DataError: if it is neither, or there is no such document.
        """
        part = self.minibatch(index)
        return replace(part, index=torch.arange(len(part), device=part.doc.device), total_documents=len(part))

    def _places(self, index: Tensor | Sequence[int]) -> Tensor:
        """The places of documents, int64, shape ``[B]``, of places or of a mask."""
        try:
            given = torch.as_tensor(index if isinstance(index, Tensor) else np.asarray(index), device=self.doc.device)
        except (TypeError, ValueError) as error:
            raise DataError(f"Expected places of documents, or a mask; got {index!r} ({error}). {_PLACES}") from None
        if given.dim() != 1 or len(given) == 0:
            shape = list(given.shape)
            raise DataError(f"Expected at least one document, in one dimension; got shape {shape}. {_PLACES}")
        if given.is_floating_point() or given.is_complex():
            raise DataError(f"Expected places of documents, or a mask; got numbers of {given.dtype}. {_PLACES}")
        if given.dtype == torch.bool:
            if len(given) != self.num_documents or not bool(given.any()):
                raise DataError(
                    f"Expected a mask of {self.num_documents} documents, at least one of them True; got {len(given)}, "
                    f"{int(given.sum())} of them True. {_PLACES}"
                )
            return given.nonzero().squeeze(1)
        outside = (given < 0) | (given >= self.num_documents)
        if bool(outside.any()):
            raise DataError(
                f"Expected documents from 0 to {self.num_documents - 1}; got {int(given[outside][0])}. {_PLACES}"
            )
        return given.long()

    def minibatch(self, index: Tensor | Sequence[int]) -> Corpus:
        """Some documents as a part that stands for the whole: models scale it up.

        Args:
            index: places in this corpus, or a mask, as in :meth:`select`.

        Raises:
            DataError: as :meth:`select` does.
        """
        chosen = self._places(index)
        lengths = self.starts.diff()[chosen]
        doc = torch.repeat_interleave(lengths)
        before = lengths.cumsum(0) - lengths
        entries = (self.starts[chosen] - before)[doc] + torch.arange(len(doc), device=doc.device)
        return replace(
            self,
            doc=doc,
            word=self.word[entries],
            count=self.count[entries],
            num_documents=len(chosen),
            index=self.index[chosen],
        )

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

    def check_documents(self) -> None:
        """That there are documents.

        Raises:
            DataError: if there are none.
        """
        if self.num_documents < 1:
            raise DataError("Expected at least one document; got none. Check what was read.")

    def check_tokens(self) -> None:
        """That the documents are not all empty.

        Raises:
            DataError: if they are.
        """
        if len(self.doc) == 0:
            raise DataError(
                "Expected a corpus with at least one token; got empty documents only. Check how the words were counted."
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
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ArgumentTypeError(f"Expected a floating dtype for counts; got {dtype}. Write torch.float64.")
        try:
            device = self.count.device if device is None else torch.device(device)
        except (TypeError, RuntimeError):
            raise ArgumentTypeError(f"Expected a device such as 'cpu' or 'cuda'; got {device!r}.") from None
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
