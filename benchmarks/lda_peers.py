"""Topic models under one face, for a race: this library's, scikit-learn's, gensim's and tomotopy's.

A :class:`Racer` does passes over the training documents when told to, and shows its topics whenever asked. All have the
same data, the same fixed symmetric priors, and where they are variational the same rule for the inner loop: a document
ends when the mean absolute change of its γ is below ``INNER_TOLERANCE``, or after ``INNER_STEPS`` steps. A library that
is not installed is left out.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.utils.parallel import Parallel
from torch import Tensor

from pyro_latent.models.lda import Corpus, as_corpus
from pyro_latent.models.lda.collapsed import collapsed_pass, collapsed_start
from pyro_latent.models.lda.kernel import document_step

Array = npt.NDArray[np.float64]

INNER_TOLERANCE = 1e-3
INNER_STEPS = 100
BATCH_SIZE = 128
LEARNING_OFFSET = 10.0
LEARNING_DECAY = 0.7


class Task(NamedTuple):
    """What every racer is given: counts ``[documents, words]``, K, and the priors of proportions and of topics."""

    name: str
    train: csr_matrix
    num_topics: int
    alpha: float
    xi: float


@dataclass(frozen=True)
class Racer:
    """A fit in progress.

    Attributes:
        passes: does so many passes over the training documents.
        weights: the topics up to normalisation, ``[topics, words]``.
    """

    passes: Callable[[int], object]
    weights: Callable[[], Array]


Entry = Callable[[Task, int], Racer]


# ------------------------------------------------------------------------------------------------------- scikit-learn


def _sklearn(task: Task, seed: int, jobs: int, **settings: Any) -> LatentDirichletAllocation:
    """A model whose λ is drawn, and which has seen nothing."""
    fit = LatentDirichletAllocation(
        task.num_topics,
        doc_topic_prior=task.alpha,
        topic_word_prior=task.xi,
        mean_change_tol=INNER_TOLERANCE,
        max_doc_update_iter=INNER_STEPS,
        learning_offset=LEARNING_OFFSET,
        learning_decay=LEARNING_DECAY,
        total_samples=task.train.shape[0],
        batch_size=BATCH_SIZE,
        n_jobs=jobs,
        random_state=seed,
        **settings,
    )
    fit._init_latent_vars(task.train.shape[1], dtype=task.train.dtype)
    return fit


def sklearn_batch(task: Task, seed: int, jobs: int = 1) -> Racer:
    """Its batch passes by the step that ``fit`` repeats, without the checks and the bound around it."""
    fit = _sklearn(task, seed, jobs)

    def passes(number: int) -> None:
        with Parallel(n_jobs=jobs) as parallel:
            for _ in range(number):
                fit._em_step(task.train, task.train.shape[0], batch_update=True, parallel=parallel)

    return Racer(passes, lambda: fit.components_)


def sklearn_online(task: Task, seed: int) -> Racer:
    """Its stochastic passes over minibatches."""
    fit = _sklearn(task, seed, 1)

    def passes(number: int) -> None:
        for _ in range(number):
            fit.partial_fit(task.train)

    return Racer(passes, lambda: fit.components_)


# ------------------------------------------------------------------------------------------------------------- gensim


def _gensim_documents(train: csr_matrix) -> list[list[tuple[int, float]]]:
    """Documents as gensim has them."""
    rows = np.split(np.arange(train.nnz), train.indptr[1:-1])
    return [list(zip(train.indices[row].tolist(), train.data[row].tolist(), strict=True)) for row in rows]


def gensim(task: Task, seed: int, workers: int = 0, batch: bool = True) -> Racer:
    """``LdaModel``, or ``LdaMulticore`` with so many workers; ``batch`` or with an update each minibatch."""
    from gensim.models import LdaModel, LdaMulticore

    logging.getLogger("gensim").setLevel(logging.ERROR)
    documents = _gensim_documents(task.train)
    chunk = -(-len(documents) // max(workers, 1)) if batch else BATCH_SIZE
    settings = {
        "id2word": {word: str(word) for word in range(task.train.shape[1])},
        "num_topics": task.num_topics,
        "alpha": np.full(task.num_topics, task.alpha),
        "eta": task.xi,
        "iterations": INNER_STEPS,
        "gamma_threshold": INNER_TOLERANCE,
        "chunksize": chunk,
        "offset": LEARNING_OFFSET,
        "decay": 0.0 if batch else LEARNING_DECAY,  # 0: a pass replaces λ
        "eval_every": None,
        "random_state": seed,
        "dtype": np.float64,
    }
    if workers:
        fit = LdaMulticore(workers=workers, batch=batch, **settings)
    else:
        fit = LdaModel(update_every=0 if batch else 1, **settings)

    def passes(number: int) -> None:
        fit.passes = number
        fit.state.numdocs = 0  # else a second call counts the documents twice, and scales its statistics by that
        fit.update(documents)

    return Racer(passes, fit.state.get_lambda)


# ----------------------------------------------------------------------------------------------------------- tomotopy


def tomotopy(task: Task, seed: int, workers: int = 1) -> Racer:
    """Collapsed Gibbs: the topics are those of the last draw."""
    from tomotopy import LDAModel

    fit = LDAModel(k=task.num_topics, alpha=task.alpha, eta=task.xi, seed=seed)
    fit.optim_interval = 0
    for document in _gensim_documents(task.train):
        fit.add_doc([str(word) for word, count in document for _ in range(int(count))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.train(0)
    seen = [int(word) for word in fit.used_vocabs]

    def passes(number: int) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The training result may differ")
            fit.train(number, workers=workers)

    def weights() -> Array:
        matrix = np.full((task.num_topics, task.train.shape[1]), task.xi)
        matrix[:, seen] = [fit.get_topic_word_dist(k, normalize=False) for k in range(task.num_topics)]
        return matrix

    return Racer(passes, weights)


# ------------------------------------------------------------------------------------------------------- this library


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Torch, and with it the compiled document step, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Variational:
    """The document step and the topics' update, as the front repeats them, without the checks and the bound around."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.corpus = task, as_corpus(task.train)
        self.generator = np.random.default_rng(seed)
        self.torch_generator = torch.Generator().manual_seed(seed)
        self.alpha = torch.full((task.num_topics,), task.alpha, dtype=torch.float64)
        self.topics = self._gamma(task.num_topics, self.corpus.num_words)
        self.updates = 0

    def _gamma(self, *size: int) -> Tensor:
        """Draws for a start, as scikit-learn and gensim draw them."""
        return torch.from_numpy(self.generator.gamma(100.0, 0.01, size))

    def _statistics(self, corpus: Corpus) -> Tensor:
        found = document_step(
            corpus,
            self.topics,
            self.alpha,
            start=self._gamma(corpus.num_documents, len(self.alpha)),
            tol=INNER_TOLERANCE,
            max_steps=INNER_STEPS,
            bound=False,
        )
        assert found.statistics is not None
        return found.statistics

    def batch(self) -> None:
        self.topics = self.task.xi + self._statistics(self.corpus)

    def online(self) -> None:
        for part in self.corpus.minibatches(BATCH_SIZE, self.torch_generator):
            rate = (LEARNING_OFFSET + self.updates) ** -LEARNING_DECAY
            whole = len(self.corpus) / len(part) * self._statistics(part)
            self.topics = torch.lerp(self.topics, self.task.xi + whole, rate)
            self.updates += 1


def ours(task: Task, seed: int, num_threads: int = 1, batch: bool = True) -> Racer:
    """Variational Bayes, in batch passes or with an update each minibatch."""
    fit = _Variational(task, seed)

    def passes(number: int) -> None:
        with threads(num_threads):
            for _ in range(number):
                fit.batch() if batch else fit.online()

    return Racer(passes, lambda: fit.topics.numpy())


def collapsed(task: Task, seed: int) -> Racer:
    """CVB0."""
    state = collapsed_start(task.train, task.num_topics, torch.Generator().manual_seed(seed))
    alpha = torch.full((task.num_topics,), task.alpha, dtype=torch.float64)
    xi = torch.full((task.train.shape[1],), task.xi, dtype=torch.float64)

    def passes(number: int) -> None:
        for _ in range(number):
            collapsed_pass(state, alpha, xi)

    return Racer(passes, lambda: (state.word_counts + xi[:, None]).mT.numpy())
