"""``LDA`` by several processes, each with a shard of the documents.

A pass brings the documents of each shard to convergence where they are, and one all-reduce adds up what they say about
the topics, which move in all processes alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_latent.ascent.ranks import Ranks
from pyro_latent.errors import ArgumentError, DataError

from .corpus import Corpus
from .fitting import FitState, Whole, near_one
from .parameters import Parameters

__all__ = ["Shards"]

T = TypeVar("T")
#: So many numbers of the starts of other shards are drawn at once.
_DRAWN_AT_ONCE = 2**20


class Shards(Whole):
    """The documents of the processes of a group, of which some may have none.

    Args:
        group: the group, such as ``torch.distributed.group.WORLD`` after ``init_process_group``.
    """

    def __init__(self, group: Any) -> None:
        self._ranks = Ranks(group)
        self.is_first = self._ranks.is_first
        self._sizes: list[int] = []
        self._source = 0

    def begin(self, parameters: Parameters, corpus: Corpus) -> None:
        """Check that all processes fit the same topics, and learn how many documents each has.

        Raises:
            ArgumentError: in all processes, if one is asked for what one process alone can do, or for another fit.
            DataError: in all processes, if the words or the dtype are others in one of them, or none of them has words.
        """
        self.agreed(lambda: _check_possible(parameters))
        settings = parameters._kept_on_resuming()
        data = {"words": corpus.num_words, "dtype": corpus.count.dtype, "vocabulary": corpus.vocabulary}
        found = self._ranks.gathered((settings, data, corpus.num_documents, len(corpus.doc)))
        first_settings, first_data, _, _ = found[0]
        for rank, (own_settings, own_data, _, _) in enumerate(found):
            for name in settings:
                if own_settings[name] != first_settings[name]:
                    raise ArgumentError(
                        f"Expected the same {name} in all processes; got {first_settings[name]} in process 0 and "
                        f"{own_settings[name]} in process {rank}. Only the documents may differ."
                    )
            different = [name for name in data if own_data[name] != first_data[name]]
            if different:
                raise DataError(
                    f"Expected the same {different[0]} in all processes; got others in process {rank} than in process "
                    "0. Count the words of all shards with one vocabulary."
                )
        self._sizes = [size for _, _, size, _ in found]
        self._source = max(range(self._ranks.size), key=lambda rank: found[rank][3] > 0)  # the first that has words
        if found[self._source][3] == 0:
            self.agreed(corpus.check_tokens)

    def agreed(self, work: Callable[[], T]) -> T:
        return self._ranks.agreed(work)

    def first(self, work: Callable[[], T]) -> T:
        found = self.agreed(lambda: work() if self._ranks.rank == self._source else None)
        return self._ranks.shared(found, self._source)  # type: ignore[return-value]

    def shared(self, item: T) -> T:
        return self._ranks.shared(item)

    def data_of(self, corpus: Corpus) -> list[Any]:
        """The same for all ways to deal the documents out: how many there are, and how often each word is in them."""
        counts = corpus.count.new_zeros(corpus.num_words, dtype=torch.float64)
        words = self.total(counts.index_add_(0, corpus.word, corpus.count.double()))
        return [sum(self._sizes), corpus.num_words, words]

    def kept(self, state: FitState) -> FitState:
        """The state without the documents, which another process may be given."""
        return replace(state, gamma=None)

    def starts(self, corpus: Corpus, num_topics: int, generator: torch.Generator) -> Tensor:
        """Those that one process would draw for these documents: what the others' would be is drawn, and let go."""
        own, rows = None, max(1, _DRAWN_AT_ONCE // num_topics)
        for rank, size in enumerate(self._sizes):
            if rank == self._ranks.rank:
                own = near_one((size, num_topics), corpus.count, generator)
                continue
            for i in range(0, size, rows):
                near_one((min(rows, size - i), num_topics), corpus.count, generator)
        assert own is not None
        return own

    def total(self, part: Tensor) -> Tensor:
        flat = part.double().reshape(-1).clone()
        return self._ranks.total(flat).reshape(part.shape).to(part.dtype)

    def mean(self, rows: Tensor) -> Tensor:
        return self.total(rows.sum(0)) / sum(self._sizes)


def _check_possible(parameters: Parameters) -> None:
    if parameters.learning_method != "batch":
        raise ArgumentError(
            f'Expected learning_method="batch" with a process_group; got "{parameters.learning_method}". Choose batch, '
            "or fit in one process."
        )
