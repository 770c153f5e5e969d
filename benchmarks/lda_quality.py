"""How good the topics of LDA are, and what its parts take: the figures of docs/lda.md.

Bounds on the Reuters news beside scikit-learn's; what ``examples/topics.py`` prints; how well the concentration of the
documents is recovered where it is known; and CPU seconds of a sweep of the engine, and of the document step, by the
compiled kernel and without it.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from sklearn.decomposition import LatentDirichletAllocation
from torch import Tensor

from examples import topics
from pyro_latent import CAVI, AutoConjugate, handlers
from pyro_latent.models import lda
from pyro_latent.models.lda import fitting

from . import lda_peers as peers
from .lda import reuters, synthetic
from .timing import Spread, interleaved, markdown, ratios

PRIORS: dict[str, Any] = {"doc_topic_prior": 0.1, "topic_word_prior": 0.01}
LEARNED: dict[str, Any] = {"learn_priors": True, "topic_start": "collapsed", "tol": 0.0}
SEEDS = (0, 1, 2)
#: Passes of every fit on the Reuters news.
PASSES = 100
#: What ``synthetic`` draws with, and passes of each fit to it.
TRUE_ALPHA, TRUE_XI, SHORT_PASSES = 0.1, 0.05, 80
#: Rounds of the document step, which is fast; a sweep by derived rounds is not.
ROUNDS, SWEEPS = 9, 2
#: As in ``lda.fast_updates``: where a document is done.
TOLERANCE, MOST_STEPS = 1e-4, 500


# ------------------------------------------------------------------------------------------------------------- bounds


def bounds() -> str:
    """The ELBO after so many passes, of some seeds, by three starts and searches."""
    counts = reuters()
    fits: dict[str, Callable[[int], float]] = {
        "scikit-learn batch": lambda seed: _sklearn_bound(counts, seed),
        'ours, topic_start="random"': lambda seed: _fit(counts, seed, "random").bound_,
        'ours, topic_start="collapsed"': lambda seed: _fit(counts, seed, "collapsed").bound_,
    }
    rows = [[name, *(f"{fit(seed):,.1f}" for seed in SEEDS)] for name, fit in fits.items()]
    return (
        f"### The bound\n\nReuters, K = 20, α = 0.1, ξ = 0.01: the ELBO in nats after {PASSES} passes, scikit-learn's "
        "by its `score` of the documents, ours by `bound_`.\n\n"
        + markdown(["", *(f"seed {seed}" for seed in SEEDS)], rows)
    )


def _fit(counts: csr_matrix, seed: int, start: Any) -> lda.LDA:
    return lda.LDA(20, random_state=seed, topic_start=start, max_iter=PASSES, tol=0.0, **PRIORS).fit(counts)


def _sklearn_bound(counts: csr_matrix, seed: int) -> float:
    estimator = LatentDirichletAllocation(20, max_iter=PASSES, random_state=seed, evaluate_every=-1, **PRIORS)
    return float(estimator.fit(counts).score(counts))


def example() -> str:
    """What the example prints, but for its progress and the names of its files."""
    printed, progress = io.StringIO(), contextlib.redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed), progress:
        topics.main(["--out", folder])
    lines = [line for line in printed.getvalue().strip().splitlines() if not line.startswith("Wrote")]
    return "### The example\n\n`python examples/topics.py` prints\n\n```text\n" + "\n".join(lines) + "\n```"


# ------------------------------------------------------------------------------------------------------ concentrations


def concentrations() -> str:
    """α learned from documents that were drawn with a known one: many short documents, and long ones."""
    short = _short_documents()
    return f"### The concentration of the documents\n\n{short}\n\n{_long_documents()}"


def _short_documents() -> str:
    """Fits from starts of their own, and from what made the data: whether a better search would find its α."""
    corpus = lda.as_corpus(synthetic())
    priors: dict[str, Any] = {"doc_topic_prior": TRUE_ALPHA, "topic_word_prior": TRUE_XI}
    fits = [lda.LDA(50, random_state=n, max_iter=SHORT_PASSES, **LEARNED, **priors).fit(corpus) for n in range(4)]
    rows = [_ended(f"CVB0's topics, merged, seed {n}", fit.bound_, fit.doc_topic_prior_) for n, fit in enumerate(fits)]
    found = lda.collapsed_fit(corpus, 50, max_iter=200, generator=torch.Generator().manual_seed(0), **priors).lambda_
    true = torch.from_numpy(np.random.default_rng(0).dirichlet(np.full(5_000, TRUE_XI), 50))  # its first draw
    counts = TRUE_XI + true * corpus.num_tokens / 50
    rows.append(_ended("CVB0's topics after 200 passes", *_fit_from(corpus, found)))
    rows.append(_ended("the true topics and priors", *_fit_from(corpus, counts)))
    rows.append(_ended("the same, with the priors held", *_fit_from(corpus, counts, learn_priors=False)))
    return (
        "2,000 documents of 150 words, 50 topics over 5,000 words, drawn with α = 0.1 and ξ = 0.05. Batch with learned "
        f"priors after {SHORT_PASSES} passes:\n\n{markdown(['from', 'ELBO in nats', 'mean α', 'its range'], rows)}"
    )


def _ended(name: str, bound: float, alpha: Tensor) -> list[str]:
    return [name, f"{bound:,.0f}", f"{alpha.mean():.3f}", f"{alpha.min():.3f} to {alpha.max():.3f}"]


def _fit_from(corpus: lda.Corpus, topic_word: Tensor, learn_priors: bool = True) -> tuple[float, Tensor]:
    """The ELBO and α where a fit ends that starts at these topics, and at the priors of ``synthetic``."""
    options: dict[str, Any] = {"document_start": "previous", "evaluate_every": 0, "max_iter": SHORT_PASSES}
    settings = lda.LDA(len(topic_word), learn_priors=learn_priors, **options)
    state = fitting.FitState(topic_word, *lda.complete_priors(corpus, len(topic_word), TRUE_ALPHA, TRUE_XI))
    for after in fitting.passes(settings, corpus, state, torch.Generator().manual_seed(0)):
        state = after
    state, bound = fitting.finished(settings, corpus, state)
    return bound, state.alpha


def _long_documents() -> str:
    generator = np.random.default_rng(0)
    exact = np.array([0.1, 0.2, 0.3, 0.5, 0.8])
    truth, theta = generator.dirichlet(np.full(1_000, 0.05), 5), generator.dirichlet(exact, 500)
    counts = csr_matrix(np.stack([generator.multinomial(2_000, row / row.sum()) for row in theta @ truth]))
    fit = lda.LDA(5, random_state=0, **LEARNED, max_iter=100).fit(counts)
    found = fit.doc_topic_prior_.numpy()[_matched(fit.components_, truth)]
    rows = [[f"{a:g}", f"{b:.3f}", f"{b / a - 1:+.0%}"] for a, b in zip(exact, found, strict=True)]
    return "500 documents of 2,000 words, five topics over 1,000 words, seed 0:\n\n" + markdown(
        ["α", "learned", ""], rows
    )


def _matched(components: Tensor, truth: peers.Array) -> peers.Array:
    """The topic that was found for each true one, matched by cosine."""
    found = components.numpy() / np.linalg.norm(components.numpy(), axis=1, keepdims=True)
    cosine = truth / np.linalg.norm(truth, axis=1, keepdims=True) @ found.T
    return np.asarray(linear_sum_assignment(-cosine)[1])


# --------------------------------------------------------------------------------------------------------------- times


def sweep() -> str:
    """A sweep of the engine, from topics that have settled a little: documents by the kernel, and by derived rounds."""
    corpus = lda.as_corpus(reuters())
    fit = lda.LDA(20, random_state=0, max_iter=5, topic_start="random", **PRIORS).fit(corpus)
    fast = handlers.closed_form(lda.model, lda.fast_updates)
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "`lda.fast_updates`": (fast, {"local_steps": 2}),
        "derived rounds": (lda.model, {"local_steps": MOST_STEPS, "local_tol": TOLERANCE}),
    }
    sweeps = {name: _Sweep(fit, corpus, *way) for name, way in ways.items()}
    seconds = interleaved(sweeps, SWEEPS, clock=time.process_time)
    rows = [[name, Spread.of(seconds[name]).scaled(1), f"{sweeps[name].elbo:,.2f}"] for name in ways]
    return (
        "### A sweep of the engine\n\nReuters, K = 20, from the topics of five passes and documents as they start. "
        f"Derived rounds end when no expectation of a document moves by more than {TOLERANCE:g}, or after "
        f"{MOST_STEPS}; the kernel at a mean change of γ below {TOLERANCE:g}.\n\n"
        f"{markdown(['documents by', 'CPU seconds', 'ELBO after the sweep'], rows)}"
    )


class _Sweep:
    """One sweep from the same start, each time it is called."""

    def __init__(self, fit: lda.LDA, corpus: lda.Corpus, model: Any, options: dict[str, Any]) -> None:
        self.fit, self.corpus, self.model, self.options = fit, corpus, model, options
        self.elbo = float("nan")

    def __call__(self) -> None:
        theta = torch.ones_like(self.fit.doc_topic_)
        start = {"beta": dist.Dirichlet(self.fit.components_), "theta": dist.Dirichlet(theta)}
        driver = CAVI(self.model, AutoConjugate(self.model, init=start), **self.options)
        self.elbo = -driver.step(self.corpus, 20, **PRIORS)


def kernels() -> str:
    """The document step of both corpora, compiled and in torch."""
    rows = []
    for name, counts, num_topics, xi in (("Reuters", reuters(), 20, 0.01), ("synthetic", synthetic(), 50, 0.05)):
        corpus = lda.as_corpus(counts)
        settings: Any = {"doc_topic_prior": 0.1, "topic_word_prior": xi, "topic_start": "random"}
        fit = lda.LDA(num_topics, random_state=0, max_iter=5, **settings).fit(corpus)
        expected = lda.expected_topics(fit.components_)
        runs = {way: _step(corpus, expected, fit.doc_topic_prior_, way == "Numba") for way in ("Numba", "torch")}
        seconds = interleaved(runs, ROUNDS, clock=time.process_time)
        times = [Spread.of(seconds[way]).scaled(1e3) for way in runs]
        rows.append([f"{name}, K = {num_topics}", *times, ratios(seconds["torch"], seconds["Numba"]).scaled(1)])
    return (
        "### The document step\n\nAll documents to convergence, under the topics of five passes, on one thread.\n\n"
        + markdown(["", "Numba, CPU milliseconds", "torch, CPU milliseconds", "times as long"], rows)
    )


def _step(corpus: lda.Corpus, expected: lda.ExpectedTopics, alpha: Tensor, compiled: bool) -> Callable[[], object]:
    return lambda: lda.document_step(corpus, expected, alpha, compiled=compiled)


def run() -> str:
    """All of it, as a report, on one thread."""
    with peers.threads(1):
        parts = [part() for part in (bounds, example, concentrations, sweep, kernels)]
    return "\n\n".join(["## LDA: its topics, and its parts\n\nOne thread throughout.", *parts])


if __name__ == "__main__":
    print(run())
