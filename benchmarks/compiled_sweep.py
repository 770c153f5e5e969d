"""One sweep of small models, or one step of EM, with Python between torch's operations and compiled; and what compiling
costs.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent import CAVI, EM, AutoConjugate
from pyro_latent.models import gmm, normal_gamma, three_coins

from .mixtures import clusters
from .timing import Spread, interleaved, markdown

ROUNDS, REPEAT = 11, 20


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


def sweeps(model: Callable[..., Any]) -> Callable[[bool], CAVI]:
    """Makes a driver of a model, compiled or not."""
    return lambda jit_compile: CAVI(model, AutoConjugate(model), jit_compile=jit_compile)


def steps_of_em(model: Callable[..., Any], init: Any = None) -> Callable[[bool], CAVI]:
    """Makes one of EM."""
    return lambda jit_compile: EM(model, init=init, jit_compile=jit_compile)


def row(name: str, make: Callable[[bool], CAVI], args: tuple[Any, ...]) -> list[str]:
    """Milliseconds a sweep, by way, and the seconds of the sweep after which one is compiled."""
    drivers = {way: make(way == "compiled") for way in ("plain", "compiled")}
    for driver in drivers.values():
        driver.step(*args)
    start = time.process_time()
    drivers["compiled"].step(*args)  # after which it is compiled
    compiling = time.process_time() - start
    seconds = interleaved(
        {way: functools.partial(d.step, *args) for way, d in drivers.items()}, ROUNDS, REPEAT, clock=time.process_time
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


def run() -> str:
    """The report."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    head = ["with Python", "compiled", "ratio", "compiling, s"]
    tables = [markdown(["one sweep, ms", *head], list(rows()))]
    tables.append(markdown(["one step of EM, ms", *head], list(rows_of_em())))
    return "\n\n".join(["## Compiled sweeps", "CPU time of one thread.", *tables])


if __name__ == "__main__":
    print(run())
