"""Several processes that fit models together: ``python distributed_worker.py SIZE FOLDER [SCENARIO]``.

Each process runs every case of ``CASES`` on its shard, in groups of one, two and four processes, and then what must be
an error in all of them. What it found is written to ``FOLDER/RANK.pt``. On Linux the processes are forks of one that
has imported torch, which takes longer than a case.
"""

from __future__ import annotations

import copy
import datetime
import functools
import multiprocessing
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
import torch.distributed as td
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from pyro_latent import CAVI, EM, AutoConjugate, RobbinsMonro
from pyro_latent.errors import PyroLatentError
from pyro_latent.models.lda import LDA

TIMEOUT = 120.0
SHORT = 10.0  # where a process is gone
Work = Callable[[], Any]


def number(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Models of data x that is a shard of ``size``.


def mixture(x: Tensor, size: int, prior: float = 5.0, components: int = 3) -> None:
    with pyro.plate("components", components):
        mean = pyro.sample("mean", dist.Normal(number(0.0).to(x), prior))
        precision = pyro.sample("precision", dist.Gamma(number(2.0).to(x), 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(components).to(x)))
    with pyro.plate("data", size, subsample_size=len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mean[z], precision[z].rsqrt()), obs=x)


def regression(x: Tensor, size: int) -> None:
    slopes = pyro.sample("slopes", dist.Normal(number([0.0, 0.0]), 3.0).to_event(1))
    intercept = pyro.sample("intercept", dist.Normal(number(0.0), 3.0))
    precision = pyro.sample("precision", dist.Gamma(number(2.0), 1.0))
    with pyro.plate("data", size, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(x[:, :2] @ slopes + intercept, precision.rsqrt()), obs=x[:, 2])


def components(x: Tensor, size: int) -> None:
    """Probabilistic principal components: a local latent for each datum."""
    precision = pyro.sample("precision", dist.Gamma(number(2.0), 1.0))
    with pyro.plate("features", 3, dim=-1):
        loadings = pyro.sample("loadings", dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()))
    with pyro.plate("data", size, subsample_size=len(x), dim=-2):
        scores = pyro.sample("scores", dist.Normal(torch.zeros(1, 2).double(), 1.0).to_event(1))
        with pyro.plate("features", 3, dim=-1):
            pyro.sample("x", dist.Normal((scores * loadings).sum(-1), precision.rsqrt()), obs=x)


def chains(x: Tensor, size: int) -> None:
    """A hidden Markov chain for each sequence."""
    with pyro.plate("states", 2):
        rows = pyro.sample("rows", dist.Dirichlet(number([2.0, 1.0])))
        mean = pyro.sample("mean", dist.Normal(number([-1.0, 1.0]), 1.0))
    z: Any = None
    with pyro.plate("data", size, subsample_size=len(x)):
        for t in range(x.shape[1]):
            z = pyro.sample(f"z_{t}", dist.Categorical(number([0.5, 0.5]) if z is None else rows[z]))
            pyro.sample(f"x_{t}", dist.Normal(mean[z], 1.0), obs=x[:, t])


def effects(x: Tensor, size: int) -> None:
    """Groups that several shards have data of."""
    mean = pyro.sample("mean", dist.Normal(number(0.0), 2.0))
    with pyro.plate("groups", 5):
        own = pyro.sample("own", dist.Normal(mean, 1.0))
    with pyro.plate("data", size, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(own[x[:, 0].long()], 0.5), obs=x[:, 1])


def maximum(x: Tensor, size: int) -> None:
    """A mixture whose parameters are by maximum likelihood."""
    mean = pyro.param("mean", number([-1.0, 0.5, 2.0]))
    weights = pyro.param("weights", torch.full((3,), 1 / 3).double(), constraint=dist.constraints.simplex)
    with pyro.plate("data", size, subsample_size=len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x)


def topics(x: Tensor, size: int) -> None:
    """Words of documents, as counts of a vocabulary."""
    with pyro.plate("topics", 2):
        words = pyro.sample("words", dist.Dirichlet(torch.full((6,), 0.5).double()))
    with pyro.plate("data", size, subsample_size=len(x), dim=-2):
        shares = pyro.sample("shares", dist.Dirichlet(torch.full((1, 2), 0.7).double()))
        with pyro.plate("places", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Categorical(shares))
            pyro.sample("x", dist.Categorical(words[z]), obs=x.long())


class Case(NamedTuple):
    """A model, all of its data, where its guide starts, its blocks, and a number of sweeps: many where the local
    latents of a shard start anew.
    """

    model: Callable[..., None]
    data: Tensor
    init: Callable[[Any], Any] | dict[Any, Any] | None = None
    blocks: Any = None
    sweeps: int = 4
    point: tuple[str, ...] = ()


def design() -> Tensor:
    x = some(90, 2)
    return torch.cat([x, (x @ number([1.0, -2.0]) + 0.5 + 0.3 * some(90, seed=1)).unsqueeze(-1)], -1)


def grouped() -> Tensor:
    groups = (torch.arange(90) // 20).double()
    return torch.stack([groups, groups - 2 + 0.5 * some(90)], -1)


def documents() -> Tensor:
    """Words of two topics, one or the other in almost all places of each document."""
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(40, 1, generator=generator).round() * 0.96 + 0.02
    second = torch.rand(40, 12, generator=generator) < shares
    return torch.randint(0, 3, (40, 12), generator=generator).double() + 3 * second


CLUSTERS = torch.cat([some(30, seed=3) - 4, some(35, seed=4), some(25, seed=5) + 4])[torch.arange(90) * 7 % 90]
APART = CLUSTERS + 8 * (CLUSTERS / 4).round()
CASES = {
    "mixture": Case(mixture, CLUSTERS, {"mean": number([-2.0, 0.1, 2.0])}),
    "regression": Case(regression, design()),
    "regression in one block": Case(regression, design(), None, [("slopes", "intercept")]),
    "principal components": Case(components, some(60, 2, seed=6) @ some(2, 3, seed=7) + 0.1 * some(60, 3)),
    "hidden Markov": Case(chains, some(30, 4, seed=8).sign() + 0.7 * some(30, 4, seed=9)),
    "effects": Case(effects, grouped()),
    "effects in one block": Case(effects, grouped(), None, [("mean", "own")]),
    "maximum likelihood": Case(maximum, CLUSTERS),
    "topics": Case(
        topics,
        documents(),
        {"words": dist.Dirichlet(number([[9.0] * 3 + [1.0] * 3, [1.0] * 3 + [9.0] * 3]))},
        None,
        36,
    ),
}
#: Of minibatches and pieces; the step size of minibatches.
BATCHED = {
    "mixture": CASES["mixture"],
    "regression": CASES["regression"],
    "principal components": CASES["principal components"],
    "maximum likelihood": CASES["maximum likelihood"],
    "mode": CASES["mixture"]._replace(point=("weights", "mean")),
}
WAYS: dict[str, dict[str, Any]] = {
    "minibatches": {"step_size": RobbinsMonro(delay=1.0, forgetting=0.7)},
    "pieces": {"memoised": True},
}
#: Which process has no data, of how many.
WITHOUT: dict[tuple[str, int], int] = {
    **{(name, 4): 1 for name in CASES},
    ("hidden Markov", 2): 0,
    ("principal components", 2): 1,
    ("EM", 4): 0,
    ("LDA", 4): 0,
    ("minibatches", 4): 0,
    ("pieces", 4): 2,
}
#: What is fitted by how many processes in which way.
BATCHES = [
    ("mixture", 1, "minibatches"),
    *(("mixture", n, way) for n in (2, 4) for way in WAYS),
    *((name, 4, "minibatches") for name in ("regression", "principal components", "mode")),
    ("maximum likelihood", 2, "minibatches"),
    *((name, 2, "pieces") for name in ("principal components", "maximum likelihood")),
]


def shard(data: Tensor, rank: int, size: int, without: int | None = None) -> Tensor:
    """Shards of different sizes, which together are the data; one process may be without any."""
    parts = size if without is None else size - 1
    cuts = [int(len(data) * (i / parts) ** 1.4) for i in range(parts + 1)]
    place = rank if without is None else rank - (rank > without)
    return data[:0] if rank == without else data[cuts[place] : cuts[place + 1]]


def listed(rows: list[Tensor], size: int, count: int) -> None:
    """A mean of data in a list, with their number."""
    mean = pyro.sample("mean", dist.Normal(number(0.0), 3.0))
    with pyro.plate("data", size, subsample_size=count):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.stack(rows) if rows else number([]))


def content(guide: AutoConjugate) -> dict[str, Tensor]:
    """The natural parameters of the globals."""
    state, posterior = guide.state, guide.posterior_state
    return {f"{k} {n}": t for k, v in state.items() if not posterior.is_local(k) for n, t in v.items()}


def params() -> dict[str, Tensor]:
    """The parameters in Pyro's store."""
    return {name: value.detach() for name, value in pyro.get_param_store().items()}


def fit(case: Case, data: Tensor, group: Any = None, **options: Any) -> tuple[AutoConjugate, Any]:
    pyro.clear_param_store()
    guide = AutoConjugate(case.model, init=case.init, blocks=case.blocks)
    driver = CAVI(case.model, guide, process_group=group)
    return guide, driver.run(data, len(case.data), max_steps=300, tol=1e-13, **options)


def started(case: Case) -> AutoConjugate:
    """A guide after one sweep over all of the data."""
    pyro.clear_param_store()
    guide = AutoConjugate(case.model, init=case.init, blocks=case.blocks, point=case.point)
    CAVI(case.model, guide).step(case.data, len(case.data))
    return guide


@functools.cache
def kept_start(name: str) -> AutoConjugate:
    """A guide of :func:`started`, made before the processes are where these are forks."""
    return started(BATCHED[name] if name in BATCHED else CASES[name])


def start_of(name: str) -> AutoConjugate:
    """A copy of it."""
    return copy.deepcopy(kept_start(name))


def sweeps(case: Case, guide: AutoConjugate, data: Tensor, group: Any = None) -> dict[str, Any]:
    """What some sweeps lead to from there."""
    pyro.clear_param_store()
    driver = CAVI(case.model, guide, local_steps=1, process_group=group)
    last = driver.run(data, len(case.data), max_steps=case.sweeps, tol=0).elbo[-1]
    loss = driver.evaluate_loss(data, len(case.data))
    return {"loss": loss, "last": float(last), "state": content(guide)}


def batches(
    case: Case,
    guide: AutoConjugate,
    way: str,
    rank: int = 0,
    size: int = 1,
    group: Any = None,
    without: int | None = None,
    summaries: Path | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What two passes over halves of the data lead to from there, of which each process has its part; one without data
    has empty pieces, or no minibatches. ``summaries``: where those of pieces are kept.
    """
    pyro.clear_param_store()
    settings = {"local_steps": 2, "local_tol": 0.0, "process_group": group} | WAYS[way]
    settings |= {"memoised": summaries} if way == "pieces" and summaries else {}
    own = [(shard(half, rank, size, without),) for half in case.data.split(len(case.data) // 2)]
    own = [] if rank == without and way == "minibatches" else own
    driver = CAVI(case.model, guide, **settings)
    result = driver.run_batches(own, epochs=2, tol=0, size=len(case.data), **more)
    return {"elbo": result.elbo, "state": content(guide)}


def message_of(work: Callable[[], Any]) -> tuple[str, str]:
    try:
        work()
    except PyroLatentError as error:
        return type(error).__name__, str(error)
    return "", ""


def failures(
    rank: int, size: int, folder: Path, guides: list[AutoConjugate]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What one process does otherwise, which all must say; the guides that it is done with."""
    case = CASES["mixture"]
    own, last = shard(case.data, rank, size), rank == size - 1
    group = td.group.WORLD

    def run(data: Tensor, **more: Any) -> Any:
        guides.append(AutoConjugate(mixture))
        return CAVI(mixture, guides[-1], process_group=group).run(data, len(case.data), max_steps=5, **more)

    holed = own.clone()
    holed[0] = torch.nan
    yield "data", lambda: run(holed if last else own)
    yield "prior", lambda: run(own, prior=4.0 if last else 5.0)
    yield "components", lambda: run(own, components=4 if last else 3)
    yield "dtype", lambda: run(own.float() if last else own)
    yield "size", lambda: run(own[1:] if last else own)
    yield "data and a file", lambda: run(holed if rank == 0 else own, checkpoint=folder / "none.pt")
    yield "no data", lambda: run(own[:0])
    yield "prior without data", lambda: run(own[:0] if last else own, prior=4.0 if last else 5.0)
    yield "data beside none", lambda: run(own[:0] if rank == 0 else holed if last else own)
    order = ["mean", "precision", "weights", "z"][:: -1 if last else 1]
    guides.append(AutoConjugate(mixture))
    driver = CAVI(mixture, guides[-1], process_group=group, order=order)
    yield "settings", lambda: driver.run(own, len(case.data))


def main(rank: int, size: int, folder: Path, scenario: str) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=TIMEOUT)
    td.init_process_group("gloo", f"file://{folder}/store-{scenario}", timeout, size, rank)
    if scenario != "all":
        vanish(rank, size, folder, scenario)
        return
    groups = {n: [td.new_group(list(range(i, i + n))) for i in range(0, size, n)][rank // n] for n in (1, 2, size)}
    found: dict[str, Any] = {}
    mine = {n: group for n, group in groups.items() if rank < n}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for name, case in CASES.items():
            for n, group in mine.items():
                if name == "mixture" or n > 1:
                    data = shard(case.data, rank, n, WITHOUT.get((name, n)))
                    found[f"{name}, {n}"] = sweeps(case, start_of(name), data, group)
    found["told"] = {str(one.message) for one in told if "Expected data" in str(one.message)}
    warnings.simplefilter("ignore")
    for n, group in mine.items():
        pyro.clear_param_store()
        data = shard(APART, rank, n, WITHOUT.get(("EM", n)))
        driver = EM(maximum, process_group=group)
        result = driver.run(data, len(APART), max_steps=15, tol=0)
        found[f"EM, {n}"] = {"loss": -float(result.elbo[-1]), "state": params()}
    guides: list[AutoConjugate] = []
    found["errors"] = {name: message_of(work) for name, work in failures(rank, size, folder, guides)}
    found["changed"] = [guide.state_dict() for guide in guides if guide.posterior_state.layout]
    found |= resumed(rank, size, folder, groups)
    for name, n, way in BATCHES:
        if n in mine:
            without = WITHOUT.get((way, n))
            kept = folder if n == 2 else None
            found[f"{name}, {n}, {way}"] = batches(BATCHED[name], start_of(name), way, rank, n, mine[n], without, kept)
    found["batch errors"] = {name: message_of(work) for name, work in batch_failures(rank, size, folder)}
    found |= resumed_batches(rank, size, folder)
    rows, lists = list(shard(CLUSTERS, rank, size, 1)), AutoConjugate(listed)
    result = CAVI(listed, lists, process_group=td.group.WORLD).run(rows, len(CLUSTERS), len(rows))
    found["listed"] = result.elbo[-1].item()
    found["late"] = late(rank, size)
    found["late batches"] = {way: late(rank, size, **options) for way, options in WAYS.items()}
    found["moved"] = dict(moved(rank, size))
    for n in mine.keys() - {1}:
        found[f"LDA, {n}"] = lda_of(shard(counts(), rank, n, WITHOUT.get(("LDA", n))), mine[n])
    lda_of(shard(counts(), rank, size), groups[size], folder / "topics.pt", max_iter=7)
    if rank < 2:
        found["LDA resumed"] = lda_of(shard(counts(), rank, 2), groups[2], folder / "topics.pt")
    found["LDA errors"] = lda_failures(rank, size, folder)
    torch.save(found, folder / f"{rank}.pt")


class Weighted:
    """A mean of data that count so many times as somebody says."""

    weight = 1.0

    def __call__(self, x: Tensor, size: int) -> None:
        mean = pyro.sample("mean", dist.Normal(number(0.0), 3.0))
        with pyro.plate("data", size, subsample_size=len(x)), pyro.poutine.scale(scale=self.weight):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def other_prior(own: Tensor, is_other: bool, group: Any, **options: Any) -> tuple[Any, ...]:
    """What a step says whose prior is another one in one process, whether it has changed anything, and the loss of one
    after that, with a prior that is another one in all processes.
    """
    guide = start_of("mixture")
    driver = CAVI(mixture, guide, process_group=group, **options)
    step = functools.partial(driver.step_piece, "own") if "memoised" in options else driver.step
    for _ in range(3):
        step(own, len(CLUSTERS), 5.0)
    before = content(guide)
    error = message_of(lambda: step(own, len(CLUSTERS), 4.0 if is_other else 5.0))
    same = all(torch.equal(tensor, before[name]) for name, tensor in content(guide).items())
    return error, same, step(own, len(CLUSTERS), 5.0 if "memoised" in options else 4.0)


def moved(rank: int, size: int, group: Any = None) -> Iterator[tuple[str, Any]]:
    """What steps come to after somebody has changed the model, or a parameter: in one process, and in all."""
    own, group = shard(CLUSTERS, rank, size), group or td.group.WORLD
    pieces = Weighted()
    driver = CAVI(pieces, AutoConjugate(pieces), memoised=True, process_group=group)
    driver.step_piece("own", own, len(CLUSTERS))
    pieces.weight = 2.0 if rank == size - 1 else 1.0
    yield "a piece's scale", message_of(lambda: driver.step_piece("own", own, len(CLUSTERS)))
    for way, options in {"sweep": {}, **WAYS}.items():
        yield f"a prior, {way}", other_prior(own, rank == size - 1, group, **options)
    annealed = Weighted()
    driver = CAVI(annealed, AutoConjugate(annealed), process_group=group)
    result = driver.run(own, len(CLUSTERS), callback=lambda step, _: setattr(annealed, "weight", min(step, 3) + 1.0))
    annealed.weight = 1.0
    yield "a scale", (len(result.elbo), driver.run(own, len(CLUSTERS)).elbo[-1].item())
    pyro.clear_param_store()
    driver = EM(maximum, process_group=group)
    driver.step(own, len(CLUSTERS))
    driver.guide.write_params()
    store: Any = pyro.get_param_store()
    store["mean"] = number([3.0, 0.0, 1.0]) if rank == size - 1 else store["mean"]
    yield "a parameter", message_of(lambda: driver.step(own, len(CLUSTERS)))
    store["mean"], store["weights"] = number([3.0, 0.0, 1.0]), number([0.5, 0.3, 0.2])
    driver.step(own, len(CLUSTERS))
    yield "parameters", driver.guide.params()

    def away(step: int, _: float) -> None:
        if step == 4:
            driver.guide.write_params()
            store["mean"] = store["mean"].detach() / 2

    result = driver.run(own, len(CLUSTERS), callback=away)
    yield "a parameter in a run", (result.converged, result.elbo[-1].item())


def counts() -> Tensor:
    """How often each word is in each of the documents."""
    return torch.nn.functional.one_hot(documents().long(), 6).sum(1).double()


def lda_of(data: Tensor, group: Any = None, checkpoint: Path | None = None, **options: Any) -> dict[str, Any]:
    """A fit of topics, without numba, which each process would have to load."""
    settings: dict[str, Any] = {
        "random_state": 0,
        "topic_start": "random",
        "max_iter": 12,
        "learn_priors": True,
        "evaluate_every": 5,
    }
    with mock.patch("pyro_latent.models.lda.kernel.step.use_compiled", lambda *_: False):
        model = LDA(2, **(settings | options)).fit(data, process_group=group, checkpoint=checkpoint)
    priors = model.doc_topic_prior_, model.topic_word_prior_
    return {"topics": model.components_, "bound": model.bound_, "gamma": model.doc_topic_, "priors": priors}


def lda_failures(rank: int, size: int, folder: Path) -> dict[str, tuple[str, str]]:
    """What one process does otherwise with its documents."""
    own, last, group = shard(counts(), rank, size), rank == size - 1, td.group.WORLD
    other: dict[str, Work] = {
        "empty": lambda: lda_of(own * 0 if last else own[:0], group),
        "words": lambda: lda_of(own[:, :5] if last else own, group),
        "settings": lambda: lda_of(own, group, max_iter=3, mean_change_tol=1e-4 if last else 1e-3),
        "file": lambda: lda_of(own + (last and 1), group, folder / "topics.pt"),
        "online": lambda: lda_of(own, group, learning_method="online", learn_priors=False),
    }
    return {name: message_of(work) for name, work in other.items()}


class Loader:
    """Batches of one process that end early, or in an error."""

    def __init__(self, own: list[Any], length: int | None, end: Exception | None = None) -> None:
        self.own, self.length, self.end = own, length, end

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError
        return self.length

    def __iter__(self) -> Iterator[Any]:
        yield from self.own
        if self.end is not None:
            raise self.end


def batch_failures(rank: int, size: int, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What one process does otherwise with its batches, which all must say."""
    case, last = CASES["mixture"], rank == size - 1
    own = [(shard(part, rank, size),) for part in case.data.split(45)]

    def driver(**options: Any) -> CAVI:
        return CAVI(mixture, AutoConjugate(mixture, init=case.init), process_group=td.group.WORLD, **options)

    drivers = {way: driver(**options) for way, options in WAYS.items()}

    def run(own: Any, way: str = "minibatches", **more: Any) -> Any:
        return drivers[way].run_batches(own, size=len(case.data), **more)

    holed = [own[0], (own[1][0] * torch.nan,)]
    sized = [{"x": x, "size": 90 + (last and i)} for i, (x,) in enumerate(own)]
    yield "data", lambda: run(holed if last else own)
    yield "lengths", lambda: run(own[:1] if last else own)
    yield "passes", lambda: run(own, epochs=2 if last else 3)
    yield "no length", lambda: run(Loader(own, None) if last else own)
    yield "short", lambda: run(Loader(own[:1], 2) if last else own)
    yield "long", lambda: run(Loader(own * 2, 2) if last else own)
    yield "loader", lambda: run(Loader(own[:1], 2, OSError("no such disk")) if last else own)
    yield "arguments", lambda: run([own[0], (1, 2, 3, 4, 5)] if last else own)
    yield "size", lambda: driver(step_size=0.5).run_batches(sized)
    yield "pieces", lambda: run(own * 2 if last else [*own, (own[0][0][:1],), (own[0][0][:1],)], "pieces")
    yield "file", lambda: run(own, "pieces", checkpoint=folder / "pieces.pt")
    yield "whole", lambda: run([(case.data,)])


def resumed_batches(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Minibatches of a new guide: a run that is cut and goes on, one that is not, and one over what a sampler deals."""
    case = CASES["mixture"]

    def run(**more: Any) -> Any:
        guide = AutoConjugate(mixture, init=case.init)
        return batches(case, guide, "minibatches", rank, size, td.group.WORLD, **more)

    def cut(step: int, elbo: float) -> bool:
        return step == 3

    found = {"minibatches": run(), "cut": run(checkpoint=folder / "batches.pt", callback=cut)}
    found["resumed minibatches"] = run(checkpoint=folder / "batches.pt")
    data = TensorDataset(case.data)
    sampler: Any = DistributedSampler(data, size, rank)
    guide = AutoConjugate(mixture, init=case.init)
    driver = CAVI(mixture, guide, step_size=0.5, process_group=td.group.WORLD)
    dealt = driver.run_batches(DataLoader(data, 10, sampler=sampler), size=len(data))
    found["dealt"] = {"elbo": dealt.elbo, "state": content(guide)}
    found["loss"], alone = driver.evaluate_loss(shard(case.data, rank, size), 90), guide.elbo(case.data, 90)
    return {"of minibatches": found | {"alone": -alone}}


def late(rank: int, size: int, **options: Any) -> dict[str, Any]:
    """Steps that go well, with what they exchange, one for which one process has data that is no number, and another
    for which it has its own again.
    """
    case = CASES["mixture"]
    own, count = shard(case.data, rank, size).clone(), 0
    reduce = td.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return reduce(*args, **kwargs)

    driver = CAVI(mixture, AutoConjugate(mixture, init=case.init), process_group=td.group.WORLD, **options)

    def step() -> float:
        if "memoised" in options:
            return driver.step_piece("own", own, len(case.data))
        return driver.step(own, len(case.data))

    for _ in range(2):
        step()
    td.all_reduce = counted
    losses = [step() for _ in range(3)]
    td.all_reduce = reduce
    kept, state = own[0].clone(), content(driver.guide)
    own[0] = torch.nan if rank == size - 1 else own[0]
    error = message_of(step)
    same = all(torch.equal(t, state[n]) for n, t in content(driver.guide).items())
    own[0] = kept
    losses.append(step())
    return {"count": count, "losses": losses, "error": error, "same": same}


def resumed(rank: int, size: int, folder: Path, groups: dict[int, Any]) -> dict[str, Any]:
    """A run that is cut, and goes on with all processes, and with fewer."""
    case, path = CASES["mixture"], folder / "run.pt"
    found: dict[str, Any] = {}
    end = 3

    def cut(step: int, elbo: float) -> bool:
        return step == end and rank == 0  # one process ends the run of all

    _, result = fit(case, shard(APART, rank, size), groups[size], checkpoint=path, callback=cut)
    found["cut"] = result.elbo
    if rank == 0:
        shutil.copy(path, folder / "alone.pt")
    guide, result = fit(case, shard(APART, rank, size), groups[size], checkpoint=path)
    found["resumed"] = {"elbo": result.elbo, "state": content(guide)}
    td.barrier()
    if rank < 2:
        guide, result = fit(case, shard(APART, rank, 2), groups[2], checkpoint=path)
        found["resumed by two"] = {"elbo": result.elbo, "state": content(guide)}
    guide, _ = fit(case, shard(APART, rank, size), groups[size])
    found["loss"] = CAVI(mixture, guide, process_group=groups[size]).evaluate_loss(shard(APART, rank, size), len(APART))
    return found


def vanish(rank: int, size: int, folder: Path, how: str) -> None:
    """The last process is gone, or hangs, at its third step."""
    group = td.new_group(timeout=datetime.timedelta(seconds=SHORT))
    case = CASES["mixture"]

    def go(step: int, elbo: float) -> None:
        if step == 3 and rank == size - 1:
            if how == "dies":
                os._exit(0)
            time.sleep(100)

    began = time.monotonic()
    path = folder / f"{how}.pt"
    options = {"callback": go, "checkpoint": path, "checkpoint_every": 1}
    found = message_of(lambda: fit(case, shard(case.data, rank, size), group, **options))
    torch.save({"error": found, "seconds": time.monotonic() - began}, folder / f"{rank}.pt")
    os._exit(0)


def launch(size: int, folder: Path, scenario: str = "all") -> None:
    """Run the processes to their end, but for the last of a scenario in which it vanishes, and may hang."""
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    if scenario == "all" and sys.platform == "linux":
        torch.set_num_threads(1)
        for name in CASES | BATCHED:
            kept_start(name)
    processes = [context.Process(target=main, args=(rank, size, folder, scenario)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes if scenario == "all" else processes[:-1]:
        process.join(300)
    for process in processes:
        process.kill()


if __name__ == "__main__":
    launch(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
