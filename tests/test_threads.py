"""Guides that are fitted in threads, and in forked workers: each has the answer that it has alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from shared_models import batch_mixture as mixture
from test_checkpoint import clusters, likelihood
from torch import Tensor

from pyro_latent import CAVI, EM, AutoConjugate


def line(x: Tensor) -> None:
    """Regression through the origin, in the dtype of the data."""
    noise = pyro.sample("noise", dist.Gamma(x.new_tensor(1.0), 1.0))
    slope = pyro.sample("slope", dist.Normal(x.new_tensor(0.0), 5.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * 0.5, noise.rsqrt()), obs=x)


def fit_line(dtype: torch.dtype) -> list[float]:
    x = torch.linspace(-1.0, 3.0, 50, dtype=dtype)
    result = CAVI(line, AutoConjugate(line)).run(x, max_steps=8, tol=0)
    return result.elbo.tolist()


def fit_mixture() -> list[float]:
    return CAVI(mixture, AutoConjugate(mixture, init=0)).run(clusters(60), 60, max_steps=8, tol=0).elbo.tolist()


TASKS: dict[str, Callable[[], Any]] = {
    "float32": lambda: fit_line(torch.float32),
    "float64": lambda: fit_line(torch.float64),
    "mixture": fit_mixture,
}


def test_guides_in_threads_have_the_answers_that_they_have_alone() -> None:
    names = [name for _ in range(10) for name in TASKS]
    alone = {name: task() for name, task in TASKS.items()}
    default = torch.get_default_dtype()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: TASKS[name](), names))
    for name, values in zip(names, found, strict=True):
        assert values == pytest.approx(alone[name], rel=1e-12 if name != "float32" else 1e-6)
    assert torch.get_default_dtype() == default


def test_what_another_thread_samples_is_not_recorded() -> None:
    """Pyro's handlers are shared: a model is held while it is recorded, and a site of its names is drawn beside it."""
    held, go_on = threading.Event(), threading.Event()

    def waits(x: Tensor) -> None:
        noise = pyro.sample("noise", dist.Gamma(x.new_tensor(1.0), 1.0))
        held.set()
        assert go_on.wait(60)
        slope = pyro.sample("slope", dist.Normal(x.new_tensor(0.0), 5.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(slope * 0.5, noise.rsqrt()), obs=x)

    x = torch.linspace(-1.0, 3.0, 50, dtype=torch.float64)
    pyro.clear_param_store()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(lambda: CAVI(waits, AutoConjugate(waits)).run(x, max_steps=8, tol=0))
        try:
            assert held.wait(60)
            with pyro.poutine.trace() as tracer:
                value = pyro.sample("noise", dist.Normal(0.0, 1.0))
                scale = pyro.param("slope", torch.tensor(2.0))
        finally:
            go_on.set()
        result = run.result()
    assert type(value) is Tensor and type(scale) is Tensor and set(tracer.trace.nodes) == {"noise", "slope"}
    assert result.elbo.tolist() == fit_line(torch.float64)
    pyro.clear_param_store()


def test_em_in_a_thread_keeps_the_parameters_that_another_records() -> None:
    """A recording takes its new parameters out of Pyro's store, and never those that somebody else put there."""
    x = clusters(60)
    pyro.clear_param_store()
    stop = threading.Event()

    def record_for_ever() -> None:
        while not stop.is_set():
            fit_mixture()

    thread = threading.Thread(target=record_for_ever)
    thread.start()
    try:
        for _ in range(5):
            pyro.clear_param_store()
            em = EM(likelihood)
            em.run(x, max_steps=4)
            torch.testing.assert_close(pyro.param("mean").detach(), em.guide.params()["mean"])
    finally:
        stop.set()
        thread.join()
        pyro.clear_param_store()
