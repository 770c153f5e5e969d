"""One step on a minibatch: with the model recorded anew, without, compiled, and Pyro's own step on the same model."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, RobbinsMonro
from pyro_latent.guide.rebinding import Rebinding

from .timing import Spread, interleaved, markdown

SIZE = 100_000
ROUNDS, REPEAT = 11, 20


def mixture(x: Tensor, k: int) -> None:
    """Normals of their own locations and precisions, and weights; ``x`` is a minibatch of ``SIZE`` points."""
    weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(k)))
    with pyro.plate("components", k):
        precision = pyro.sample("precision", dist.Gamma(x.new_tensor(2.0), 2.0))
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
    with pyro.plate("data", SIZE, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mean[z], precision[z].rsqrt()), obs=x)


def regression(x: Tensor, y: Tensor) -> None:
    """A linear regression of unknown precision; ``x`` and ``y`` are a minibatch of ``SIZE`` rows."""
    precision = pyro.sample("precision", dist.Gamma(x.new_tensor(1.0), 1.0))
    weights = pyro.sample("weights", dist.Normal(torch.zeros_like(x[0]), 1.0).to_event(1))
    with pyro.plate("data", SIZE, subsample=torch.arange(len(x))):
        pyro.sample("y", dist.Normal(x @ weights, precision.rsqrt()), obs=y)


def _anew(self: Any, args: Any, kwargs: Any, settings: Any, compiled: Callable[[], Any], is_same: Any) -> Any:
    """In the place of ``Rebinding.program``: the model is recorded."""
    return compiled(), None


def row(name: str, model: Callable[..., Any], batches: list[tuple[Tensor, ...]]) -> list[str]:
    """Milliseconds a step, by way."""
    steps: dict[str, Callable[..., Any]] = {}
    for way, jit_compile in (("recorded at each step", False), ("recorded at few", False), ("compiled", True)):
        guide = AutoConjugate(model)
        steps[way] = CAVI(model, guide, step_size=RobbinsMonro(10, 0.7), jit_compile=jit_compile).step
    discrete = AutoNormal(poutine.block(model, hide=["z"]))
    pyro.clear_param_store()
    steps["SVI"] = SVI(model, discrete, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1)).step
    place = dict.fromkeys(steps, 0)

    def run(way: str) -> None:
        place[way] += 1
        with mock.patch.object(Rebinding, "program", _anew if way == "recorded at each step" else Rebinding.program):
            steps[way](*batches[place[way] % len(batches)])

    seconds = interleaved({way: functools.partial(run, way) for way in steps}, ROUNDS, REPEAT, clock=time.process_time)
    ratio = [a / b for a, b in zip(seconds["compiled"], seconds["SVI"], strict=True)]
    return [name, *(Spread.of(s).scaled(1e3) for s in seconds.values()), Spread.of(ratio).scaled(1.0)]


def rows() -> Iterator[list[str]]:
    """A row for each model and size of its minibatches."""
    generator = torch.Generator().manual_seed(0)
    for size, k in ((500, 3), (5_000, 10)):
        x = 5 * torch.randint(k, (20 * size,), generator=generator) + torch.randn(20 * size, generator=generator)
        yield row(f"mixture, {size:,} points, K = {k}", functools.partial(mixture, k=k), [(b,) for b in x.split(size)])
    x = torch.randn(10_000, 10, generator=generator)
    y = x.sum(-1) + torch.randn(10_000, generator=generator)
    yield row("regression, 500 rows, 10 features", regression, list(zip(x.split(500), y.split(500), strict=True)))


def run() -> str:
    """The report."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    head = ["one step on a minibatch, ms", "recorded at each step", "recorded at few", "compiled", "SVI.step", "ratio"]
    return f"## Steps on minibatches\n\nCPU time of one thread.\n\n{markdown(head, list(rows()))}"


if __name__ == "__main__":
    print(run())
