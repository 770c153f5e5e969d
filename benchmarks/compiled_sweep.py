"""One sweep of small models, one step of EM, or one on a minibatch with latents of its own, with Python between torch's
operations and compiled; and what compiling costs.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent import CAVI, EM, AutoConjugate, RobbinsMonro
from pyro_latent.models import gmm, normal_gamma, three_coins

from .mixtures import clusters
from .timing import Spread, interleaved, markdown

ROUNDS, REPEAT = 11, 20
#: Steps after which one is compiled, at most.
MOST = 10
#: The size of the data that minibatches are of.
SIZE = 100_000


def regression(x: Tensor, y: Tensor) -> None:
    """A linear regression of unknown precision."""
    precision = pyro.sample("precision", dist.Gamma(x.new_tensor(1.0), 1.0))
    weights = pyro.sample("weights", dist.Normal(torch.zeros_like(x[0]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weights, precision.rsqrt()), obs=y)


def chain(x: Tensor) -> None:
    """A hidden Markov chain of two states, as a loop."""
    rows = pyro.sample("rows", dist.Dirichlet(x.new_ones(2, 2)).to_event(1))
    with pyro.plate("states", 2):
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 5.0))
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(rows[z]), infer={"enumerate": "parallel"})
        pyro.sample(f"x_{t}", dist.Normal(mean[z], 1.0), obs=x[t])


def factors(x: Tensor, k: int) -> None:
    """A factor analysis of a minibatch of ``SIZE`` rows."""
    zero, one = x.new_zeros(k), x.new_ones(())
    with pyro.plate("columns", x.shape[1], dim=-1):
        loadings = pyro.sample("loadings", dist.Normal(zero, one).to_event(1))
        precision = pyro.sample("precision", dist.Gamma(one, one))
    with pyro.plate("rows", SIZE, subsample=torch.arange(len(x)), dim=-2):
        z = pyro.sample("z", dist.Normal(zero, one).to_event(1))
        with pyro.plate("entries", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal((loadings * z).sum(-1), precision.rsqrt()), obs=x)


def effects(y: Tensor) -> None:
    """Random effects of a minibatch of ``SIZE`` groups."""
    zero, one = y.new_zeros(()), y.new_ones(())
    mean = pyro.sample("mean", dist.Normal(zero, 10 * one))
    between = pyro.sample("between", dist.Gamma(one, one))
    within = pyro.sample("within", dist.Gamma(one, one))
    with pyro.plate("groups", SIZE, subsample=torch.arange(len(y)), dim=-2):
        effect = pyro.sample("effect", dist.Normal(zero, between.rsqrt()))
        with pyro.plate("members", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(mean + effect, within.rsqrt()), obs=y)


def sweeps(model: Callable[..., Any]) -> Callable[[bool], CAVI]:
    """Makes a driver of a model, compiled or not."""
    return lambda jit_compile: CAVI(model, AutoConjugate(model), jit_compile=jit_compile)


def steps_of_em(model: Callable[..., Any], init: Any = None) -> Callable[[bool], CAVI]:
    """Makes one of EM."""
    return lambda jit_compile: EM(model, init=init, jit_compile=jit_compile)


def steps_on_minibatches(model: Callable[..., Any]) -> Callable[[bool], CAVI]:
    """Makes one that takes stochastic steps."""
    size = RobbinsMonro(10, 0.7)
    return lambda jit_compile: CAVI(model, AutoConjugate(model), step_size=size, jit_compile=jit_compile)


def row(name: str, make: Callable[[bool], CAVI], *batches: tuple[Any, ...]) -> list[str]:
    """Milliseconds a step on the next of some batches, by way, and the seconds of that after which it is compiled."""
    drivers = {way: make(way == "compiled") for way in ("plain", "compiled")}
    calls = {way: (driver.step, itertools.cycle(batches)) for way, driver in drivers.items()}

    def step(way: str) -> None:
        call, arguments = calls[way]
        call(*next(arguments))

    step("plain")
    step("compiled")
    compiled, compiling = drivers["compiled"]._steps.compiled, 0.0  # type: ignore[attr-defined]
    for _ in range(MOST):
        start = time.process_time()
        step("compiled")
        compiling = time.process_time() - start
        if compiled.is_compiled:
            break
    seconds = interleaved(
        {way: functools.partial(step, way) for way in drivers}, ROUNDS, REPEAT, clock=time.process_time
    )
    ratio = [a / b for a, b in zip(seconds["plain"], seconds["compiled"], strict=True)]
    ways = [Spread.of(s).scaled(1e3) for s in seconds.values()]
    return [name, *ways, Spread.of(ratio).scaled(1.0), f"{compiling:.3f}"]


def rows() -> Iterator[list[str]]:
    """A row for each model."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1_000, 10, generator=generator)
    y = x.sum(-1) + torch.randn(1_000, generator=generator)
    three = x[:500, :2] + 5 * (torch.arange(500) % 3)[:, None]
    yield row("Normal-Gamma, N = 1,000", sweeps(normal_gamma.model), (x[:, 0],))
    yield row("regression, N = 1,000, D = 10", sweeps(regression), (x, y))
    yield row("mixture, N = 500, D = 2, K = 3", sweeps(gmm.model), (three, 3))
    yield row("hidden Markov chain, T = 200, K = 2", sweeps(chain), (y[:200],))
    yield row("mixture, N = 10,000, D = 2, K = 3", sweeps(gmm.model), (x.repeat(10, 1)[:, :2], 3))


def rows_of_em() -> Iterator[list[str]]:
    """A row for each model of which EM finds the parameters."""
    tosses = torch.tensor(three_coins.TOSSES, dtype=torch.float64)
    yield row("three coins", steps_of_em(three_coins.model), (tosses, three_coins.STARTS[0]))
    for count, components in ((500, 3), (10_000, 10)):
        data = clusters(count, 2, components, torch.Generator().manual_seed(0))
        make = steps_of_em(gmm.ml_model, gmm.ml_start(data, components))
        yield row(f"mixture, N = {count:,}, D = 2, K = {components}", make, (data, components))


def rows_of_minibatches() -> Iterator[list[str]]:
    """A row for each model with latents of the minibatch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2_000, 3, generator=generator) @ torch.randn(3, 8, generator=generator)
    x = x + 0.5 * torch.randn(2_000, 8, generator=generator)
    name, batches = "factor analysis, 100 rows, D = 8, three factors", [(b, 3) for b in x.split(100)]
    yield row(name, steps_on_minibatches(factors), *batches)
    y = torch.randn(2_000, 1, generator=generator) + torch.randn(2_000, 5, generator=generator)
    yield row("random effects, 100 groups of 5", steps_on_minibatches(effects), *((b,) for b in y.split(100)))


def run() -> str:
    """The report."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    head = ["with Python", "compiled", "ratio", "compiling, s"]
    tables = [markdown(["one sweep, ms", *head], list(rows()))]
    tables.append(markdown(["one step of EM, ms", *head], list(rows_of_em())))
    tables.append(markdown(["one step on a minibatch, ms", *head], list(rows_of_minibatches())))
    return "\n\n".join(["## Compiled sweeps", "CPU time of one thread.", *tables])


if __name__ == "__main__":
    print(run())
