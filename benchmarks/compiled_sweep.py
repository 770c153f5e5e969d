"""One sweep of small models, with Python between torch's operations and compiled; and what compiling costs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.models import gmm, normal_gamma

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


def row(name: str, model: Callable[..., Any], args: tuple[Any, ...]) -> list[str]:
    """Milliseconds a sweep, by way, and the seconds of the sweep after which one is compiled."""
    drivers = {way: CAVI(model, AutoConjugate(model), jit_compile=way == "compiled") for way in ("plain", "compiled")}
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
    yield row("Normal-Gamma, N = 1,000", normal_gamma.model, (x[:, 0],))
    yield row("regression, N = 1,000, D = 10", regression, (x, y))
    yield row("mixture, N = 500, D = 2, K = 3", gmm.model, (x[:500, :2] + 5 * (torch.arange(500) % 3)[:, None], 3))
    yield row("hidden Markov chain, T = 200, K = 2", chain, (y[:200],))
    yield row("mixture, N = 10,000, D = 2, K = 3", gmm.model, (x.repeat(10, 1)[:, :2], 3))


def run() -> str:
    """The report."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    head = ["one sweep, ms", "with Python", "compiled", "ratio", "compiling, s"]
    return f"## Compiled sweeps\n\nCPU time of one thread.\n\n{markdown(head, list(rows()))}"


if __name__ == "__main__":
    print(run())
