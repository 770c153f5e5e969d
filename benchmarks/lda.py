"""Latent Dirichlet allocation beside scikit-learn, gensim and tomotopy: a pass, a race to a held-out score, memory.

The score is document completion: of each test document half of the tokens are shown, θ is inferred from them with the
topics fixed at their means, and the other half is scored, as mean log probability of a token in nats. One evaluator
scores all. It infers θ by mean field; to see whether that favours anybody, the last topics are also scored by CVB0.

``python -m benchmarks lda`` is by the wall clock. ``python -m benchmarks.lda cpu`` counts CPU seconds of the process,
and leaves out those that work on several cores: for a machine that others share. ``python -m benchmarks.lda memory``
streams ten million tokens through ``partial_fit`` and prints the peak memory.
"""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import median

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix

from pyro_latent.models.lda import LDA, as_corpus
from pyro_latent.models.lda.kernel import ExpectedTopics, document_step, expected_topics

from . import lda_peers as peers
from .lda_peers import Array, Entry, Task
from .timing import Spread, interleaved, markdown, ratios

THREADS = 2
#: Passes that are timed at a time, and rounds of them.
PASSES, ROUNDS = 5, {"Reuters": 9, "synthetic": 3}
MEMORY = {"num_words": 50_000, "num_topics": 100, "num_documents": 50_000, "length": 200, "chunk": 1_000}


# ------------------------------------------------------------------------------------------------------------ corpora


def reuters() -> csr_matrix:
    """395 news articles, 4,258 words, 84,010 tokens; they come with the package ``lda``."""
    import lda.datasets

    return csr_matrix(lda.datasets.load_reuters(), dtype=np.float64)


def synthetic(
    num_documents: int = 2_000, num_words: int = 5_000, num_topics: int = 50, length: int = 150
) -> csr_matrix:
    """2,000 documents of 150 words, of 50 topics over 5,000 words: θ ~ Dir(0.1), β ~ Dir(0.05)."""
    generator = np.random.default_rng(0)
    topics = generator.dirichlet(np.full(5_000, 0.05), 50)
    theta = generator.dirichlet(np.full(50, 0.1), 2_000)
    draws = [generator.multinomial(150, row / row.sum()) for row in theta @ topics]
    return csr_matrix(np.stack(draws), dtype=np.float64)


# ---------------------------------------------------------------------------------------------------------- the score


@dataclass(frozen=True)
class Completion:
    """Test documents in two halves, entry by entry: the words shown, and those to be predicted."""

    shown: coo_matrix
    hidden: coo_matrix

    @staticmethod
    def of(counts: csr_matrix) -> Completion:
        """Every token is shown with probability one half."""
        shown = counts.copy()
        shown.data = np.random.default_rng(1).binomial(counts.data.astype(int), 0.5).astype(float)
        hidden = counts - shown
        for half in (shown, hidden):
            half.eliminate_zeros()
        return Completion(shown.tocoo(), hidden.tocoo())

    def score(self, weights: Array, alpha: float, infer: Callable[..., Array] | None = None) -> float:
        """Mean log probability of a hidden token, in nats, at θ inferred from the shown ones."""
        topics = np.ascontiguousarray((weights / weights.sum(1, keepdims=True)).T)
        gamma = (infer or mean_field)(self.shown, topics, alpha)
        theta = gamma / gamma.sum(1, keepdims=True)
        probs = np.einsum("ek,ek->e", theta[self.hidden.row], topics[self.hidden.col])
        return float(self.hidden.data @ np.log(probs) / self.hidden.data.sum())


def mean_field(shown: coo_matrix, topics: Array, alpha: float) -> Array:
    """γ of documents by mean field, the topics known: ``topics`` is ``[words, topics]``; [4] (113), (117)."""
    given = ExpectedTopics(torch.from_numpy(topics), torch.zeros(len(topics), dtype=torch.float64))
    prior = torch.full((topics.shape[1],), alpha, dtype=torch.float64)
    step = document_step(as_corpus(shown), given, prior, tol=1e-5, max_steps=500, statistics=False, bound=False)
    return step.gamma.numpy()


def zero_order(shown: coo_matrix, topics: Array, alpha: float, steps: int = 100) -> Array:
    """γ of documents by CVB0, the topics known, all words of a document at once."""
    sums = csr_matrix((shown.data, (shown.row, np.arange(shown.nnz))), (shown.shape[0], shown.nnz))
    r = topics[shown.col] / topics[shown.col].sum(1, keepdims=True)
    for _ in range(steps):
        r = topics[shown.col] * ((sums @ r)[shown.row] - r + alpha)
        r /= r.sum(1, keepdims=True)
    return np.asarray(alpha + sums @ r)


# -------------------------------------------------------------------------------------------------------- the entrants

#: The library that a name begins with, by the module that must be there.
MODULES = {"ours": "pyro_latent", "scikit-learn": "sklearn", "gensim": "gensim", "tomotopy": "tomotopy"}
BATCH: dict[str, Entry] = {
    "ours: batch": peers.ours,
    "ours: batch, 2 threads": lambda task, seed: peers.ours(task, seed, num_threads=2),
    "scikit-learn batch": peers.sklearn_batch,
    "scikit-learn batch, n_jobs=2": lambda task, seed: peers.sklearn_batch(task, seed, jobs=2),
    "gensim LdaModel, batch": peers.gensim,
    "gensim LdaMulticore, batch, 2 workers": lambda task, seed: peers.gensim(task, seed, workers=2),
}
OTHERS: dict[str, Entry] = {
    "ours: CVB0": peers.collapsed,
    "ours: minibatches": lambda task, seed: peers.ours(task, seed, batch=False),
    "scikit-learn online": peers.sklearn_online,
    "gensim LdaModel": lambda task, seed: peers.gensim(task, seed, batch=False),
    "gensim LdaMulticore, 2 workers": lambda task, seed: peers.gensim(task, seed, workers=2, batch=False),
    "tomotopy": peers.tomotopy,
    "tomotopy, 2 workers": lambda task, seed: peers.tomotopy(task, seed, workers=2),
}


#: Those that work on several cores: CPU seconds of this process do not tell their time.
SEVERAL = ("2 threads", "n_jobs=2", "2 workers")


@dataclass(frozen=True)
class Clock:
    """What is counted, and for which entrants."""

    unit: str
    now: Callable[[], float]
    several: bool

    def entrants(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """Those whose library is installed, and whose time this clock tells."""
        there = tuple(name for name, module in MODULES.items() if find_spec(module) is not None)
        known = {name: entry for name, entry in entries.items() if name.startswith(there)}
        return {name: entry for name, entry in known.items() if self.several or not name.endswith(SEVERAL)}


WALL = Clock("seconds", time.perf_counter, several=True)
CPU = Clock("CPU seconds", time.process_time, several=False)


def left_out() -> str:
    """A note on those that are missing, if any."""
    missing = [name for name in BATCH | OTHERS if name not in WALL.entrants(BATCH | OTHERS)]
    return f"Left out, because their library is not installed: {', '.join(missing)}.\n\n" if missing else ""


# ------------------------------------------------------------------------------------------------------------- a pass


def one_pass(task: Task, clock: Clock) -> str:
    """The time of a batch pass: the first five from a random start, the start itself left out."""
    rounds, entrants = ROUNDS[task.name], clock.entrants(BATCH)
    runs = {name: Passes(entry, task, rounds) for name, entry in entrants.items()}
    seconds = interleaved(runs, rounds, clock=clock.now)
    mine = [name for name in entrants if name.startswith("ours")]
    rows = []
    for name, times in seconds.items():
        against = [ratios(times, seconds[one]).scaled(1) for one in mine]
        rows.append([name, Spread.of(times).scaled(1e3 / PASSES), *against])
    heading = [
        f"one batch pass, {task.name}",
        clock.unit.replace("seconds", "milliseconds"),
        *(f"by {one}" for one in mine),
    ]
    return markdown(heading, rows)


class Passes:
    """The first passes from a start that is made beforehand: each call takes the next start that waits."""

    def __init__(self, entry: Entry, task: Task, rounds: int) -> None:
        self.waiting = [entry(task, seed).passes for seed in range(rounds + 1)]

    def __call__(self) -> None:
        self.waiting.pop()(PASSES)


def arithmetic(task: Task, clock: Clock) -> str:
    """What one inner step must compute and read, and how fast it does."""
    entries, topics = task.train.nnz, task.num_topics
    step, peak = _inner_step(task, clock), _peak(clock)
    flops, transcendental = 4 * entries * topics, task.train.shape[0] * topics
    return (
        f"One inner step over the documents of {task.name} needs {flops / 1e6:.1f} MFLOP (two multiply-adds for each "
        f"of {entries:,} entries and {topics} topics: the normaliser of φ and the sum of γ), {transcendental:,} times "
        f"exp(ψ(γ)), and reads {16 * entries * topics / 1e6:.1f} MB from cache (the documents' rows of exp(E log β), "
        f"twice). It takes {step * 1e3:.2f} ms on one core: {flops / step / 1e9:.1f} GFLOP/s, "
        f"{100 * flops / step / peak:.0f} % of the {peak / 1e9:.0f} GFLOP/s of a matrix product on the same core, and "
        f"{16 * entries * topics / step / 1e9:.0f} GB/s."
    )


def _inner_step(task: Task, clock: Clock) -> float:
    """Seconds of one inner step of all documents: the difference of 26 steps and 1, by 25."""
    corpus = as_corpus(task.train)
    alpha = torch.full((task.num_topics,), task.alpha, dtype=torch.float64)
    topics = expected_topics(torch.from_numpy(peers.ours(task, 0).weights()))

    def steps(number: int) -> Callable[[], object]:
        return lambda: document_step(corpus, topics, alpha, tol=-1.0, max_steps=number, statistics=False, bound=False)

    with peers.threads(1):
        seconds = interleaved({"1": steps(1), "26": steps(26)}, ROUNDS[task.name], clock=clock.now)
    return median(b - a for a, b in zip(seconds["1"], seconds["26"], strict=True)) / 25


def _peak(clock: Clock) -> float:
    """FLOP/s of a float64 matrix product on one core."""
    matrix = torch.randn(1_000, 1_000, dtype=torch.float64)
    with peers.threads(1):
        return 2e9 / median(interleaved({"product": lambda: matrix @ matrix}, 9, clock=clock.now)["product"])


# ----------------------------------------------------------------------------------------------------------- the race


@dataclass
class Lap:
    """A racer on its way: after how many passes and seconds it had which score."""

    racer: peers.Racer
    passes: list[int] = field(default_factory=lambda: [0])
    seconds: list[float] = field(default_factory=lambda: [0.0])
    scores: list[float] = field(default_factory=lambda: [-math.inf])

    def advance(self, score: Callable[[Array], float], clock: Clock) -> None:
        """An eighth more passes, timed; and the score, not timed."""
        number = max(1, self.passes[-1] // 8)
        start = clock.now()
        self.racer.passes(number)
        self.seconds.append(self.seconds[-1] + clock.now() - start)
        self.passes.append(self.passes[-1] + number)
        self.scores.append(score(self.racer.weights()))

    def reached(self, target: float) -> float:
        """The first time with that score, in seconds; infinite if there is none."""
        return next((t for t, score in zip(self.seconds, self.scores, strict=True) if score >= target), math.inf)

    def at(self, seconds: float) -> float:
        """The last score by then."""
        return [score for t, score in zip(self.seconds, self.scores, strict=True) if t <= seconds][-1]


def race(task: Task, test: Completion, seed: int, limit: float, clock: Clock) -> dict[str, Lap]:
    """All racers for ``limit`` seconds each, always the one that is behind on the clock, so that all share the load."""
    laps = {name: Lap(entry(task, seed)) for name, entry in clock.entrants(BATCH | OTHERS).items()}
    while True:
        behind = min(laps.values(), key=lambda lap: lap.seconds[-1])
        if behind.seconds[-1] >= limit:
            return laps
        behind.advance(lambda weights: test.score(weights, task.alpha), clock)


def race_report(task: Task, test: Completion, seeds: Sequence[int], limit: float, clock: Clock) -> str:
    """Times to two targets, and the curves: medians over the seeds."""
    for entry in clock.entrants(BATCH | OTHERS).values():
        entry(task, 0).passes(1)  # compiles, and starts worker processes
    runs = [race(task, test, seed, limit, clock) for seed in seeds]
    laps = {name: [run[name] for run in runs] for name in runs[0]}
    last = {name: median(lap.scores[-1] for lap in each) for name, each in laps.items()}
    batch, best = last["scikit-learn batch"], max(last.values())
    targets, times = (1.005 * batch, 1.005 * best), [limit / 3**power for power in range(5, -1, -1)]
    results = [_result(name, each, targets, task.alpha, test) for name, each in laps.items()]
    curves = [[name, *(_number(median(lap.at(t) for lap in each)) for t in times)] for name, each in laps.items()]
    heading = [
        "",
        "passes",
        f"{clock.unit} for 1,000",
        *(f"to {target:.3f}" for target in targets),
        "score",
        "by CVB0's θ",
    ]
    return (
        f"Half a per cent below the score of scikit-learn's batch after {limit:g} ({batch:.3f}) is {targets[0]:.3f}; "
        f"half a per cent below the best ({best:.3f}) is {targets[1]:.3f}. All times in {clock.unit}, medians of "
        f"{len(seeds)} starts.\n\n"
        f"{markdown(heading, results)}\n\nThe score after so many {clock.unit}:\n\n"
        f"{markdown([task.name, *(f'{t:.3g}' for t in times)], curves)}"
    )


def _result(name: str, laps: Sequence[Lap], targets: Sequence[float], alpha: float, test: Completion) -> list[str]:
    """A row: passes, time of a pass, times to the targets, and the last score by two ways to infer θ."""
    passes = median(lap.passes[-1] for lap in laps)
    pass_time = median(lap.seconds[-1] / lap.passes[-1] for lap in laps)
    reached = [median(lap.reached(target) for lap in laps) for target in targets]
    other = median(test.score(lap.racer.weights(), alpha, zero_order) for lap in laps)
    score = median(lap.scores[-1] for lap in laps)
    return [name, f"{passes:g}", f"{pass_time * 1e3:.3g}", *map(_number, reached), f"{score:.3f}", f"{other:.3f}"]


def _number(value: float) -> str:
    """A number of three decimals, or a dash."""
    return f"{value:.3f}" if math.isfinite(value) else "—"


# ------------------------------------------------------------------------------------------------------------- memory


def chunks(settings: Mapping[str, int]) -> Iterator[csr_matrix]:
    """Documents by the chunk, drawn from known topics, so that the corpus is never whole in memory."""
    generator = np.random.default_rng(0)
    cumulative = generator.dirichlet(np.full(settings["num_words"], 0.05), settings["num_topics"]).cumsum(1)
    size, length, num_topics = settings["chunk"], settings["length"], settings["num_topics"]
    for _ in range(settings["num_documents"] // size):
        theta = generator.dirichlet(np.full(num_topics, 0.1), size)
        drawn = np.stack([generator.multinomial(length, row) for row in theta])
        words = [
            np.searchsorted(row[:-1], generator.random(n)) for row, n in zip(cumulative, drawn.sum(0), strict=True)
        ]
        documents = [np.repeat(np.arange(size), column) for column in drawn.T]
        entries = np.concatenate(documents), np.concatenate(words)
        yield csr_matrix((np.ones(len(entries[0])), entries), (size, settings["num_words"]))


def stream(settings: Mapping[str, int]) -> None:
    """Fit by ``partial_fit``, and print tokens, seconds and the peak of this process in GB."""
    fit = LDA(
        settings["num_topics"],
        doc_topic_prior=0.1,
        topic_word_prior=0.05,
        total_samples=settings["num_documents"],
        random_state=0,
    )
    start, tokens = time.perf_counter(), 0.0
    for chunk in chunks(settings):
        fit.partial_fit(chunk)
        tokens += chunk.sum()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(tokens, time.perf_counter() - start, peak)


def memory() -> str:
    """The stream in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.lda", "memory"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tokens, seconds, peak = map(float, printed.split())
    return (
        f"{tokens:,.0f} tokens in {MEMORY['num_documents']:,} documents, V = {MEMORY['num_words']:,}, K = "
        f"{MEMORY['num_topics']}, drawn and passed to `partial_fit` {MEMORY['chunk']:,} documents at a time: "
        f"{seconds:.0f} s with the drawing, peak memory of the process {peak:.2f} GB; the target is below 4."
    )


# ------------------------------------------------------------------------------------------------------------- report


def tasks() -> Iterator[tuple[Task, Completion, Sequence[int], float]]:
    """The two corpora, split four to one, with the starts and the seconds that each racer gets."""
    given = ("Reuters", reuters(), 20, 0.01, (0, 1, 2), 3.0), ("synthetic", synthetic(), 50, 0.05, (0,), 15.0)
    for name, counts, num_topics, xi, seeds, limit in given:
        order = np.random.default_rng(0).permutation(counts.shape[0])
        train, test = np.split(order, [4 * len(order) // 5])
        yield (
            Task(name, counts[np.sort(train)], num_topics, 0.1, xi),
            Completion.of(counts[np.sort(test)]),
            seeds,
            limit,
        )


def run(clock: Clock = WALL) -> str:
    """Time all, and report."""
    parts = [f"## LDA\n\n{left_out()}{PREAMBLE}"]
    for task, test, seeds, limit in tasks():
        documents, words = task.train.shape
        parts.append(
            f"### {task.name}: {documents:,} documents to train on, {words:,} words, {task.train.sum():,.0f} tokens, "
            f"K = {task.num_topics}, α = {task.alpha:g}, ξ = {task.xi:g}\n\n{one_pass(task, clock)}\n\n"
            f"{arithmetic(task, clock)}\n\n{race_report(task, test, seeds, limit, clock)}"
        )
    parts.append(f"### Memory\n\n{memory()}")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return "\n\n".join([*parts, f"Load of the machine over the last 1, 5 and 15 minutes: {load}."])


PREAMBLE = (
    "A document's inner loop ends in all of them when the mean absolute change of γ is below "
    f"{peers.INNER_TOLERANCE:g}, or after {peers.INNER_STEPS} steps; float64, but for tomotopy's own 32-bit counts. "
    "A pass is one over all training documents. The score is the mean log probability, in nats, of the hidden half of "
    "the tokens of test documents, by one evaluator for all. Racers run in turns, always the one that is behind on its "
    "own clock."
)

if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    if sys.argv[1:] == ["memory"]:
        stream(MEMORY)
    elif sys.argv[1:] == ["cpu"]:
        torch.set_num_threads(1)
        print(run(CPU))
    else:
        raise SystemExit("Expected `memory` or `cpu`; for all by the wall clock write python -m benchmarks lda.")
