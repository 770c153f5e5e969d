"""What a user's own code raises, wherever it is called from, passes through, and leaves the guide and Pyro in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK
from shared_models import batch_mixture, gaussian
from torch import Tensor

from pyro_latent import CAVI, EM, AutoConjugate, RobbinsMonro, handlers
from pyro_latent.recording import ALONE


class OurTrouble(Exception):
    """An exception of the user's own."""


def trouble_at(count: int) -> Callable[..., None]:
    """A function that raises at its call number ``count``, from 1."""
    calls = iter(range(1, count + 1))

    def called(*args: Any, **kwargs: Any) -> None:
        if next(calls) == count:
            raise OurTrouble

    return called


class Loader:
    """Batches of which the second cannot be read."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Any]:
        yield self.x[:15], 30
        raise OurTrouble


updated = handlers.closed_form(gaussian, {"mu": trouble_at(1)})


def broken_on_few(x: Tensor) -> None:
    if len(x) < 30:
        pyro.param("offset", torch.tensor(1.0))
        raise OurTrouble
    gaussian(x)


def scaled(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def stochastic(guide: AutoConjugate) -> CAVI:
    return CAVI(batch_mixture, guide, step_size=RobbinsMonro())


def batches(x: Tensor) -> list[Any]:
    return [(x[:15], 30), (x[15:], 30)]


def rate(t: int) -> float:
    if t == 3:
        raise OurTrouble
    return 0.5


def is_free() -> bool:
    """Whether another thread could record."""
    found = ALONE.acquire(timeout=5)
    if found:
        ALONE.release()
    return found


#: By name a model, and what to do with a guide of it and data.
CASES: dict[str, tuple[Any, Callable[[AutoConjugate, Tensor], Any]]] = {
    "callback": (gaussian, lambda guide, x: CAVI(gaussian, guide).run(x, callback=trouble_at(2))),
    "callback of batches": (batch_mixture, lambda g, x: stochastic(g).run_batches(batches(x), callback=trouble_at(2))),
    "callback of pieces": (
        batch_mixture,
        lambda g, x: CAVI(batch_mixture, g, memoised=True).run_batches(batches(x), callback=trouble_at(2)),
    ),
    "loader": (batch_mixture, lambda guide, x: stochastic(guide).run_batches(Loader(x))),
    "step size": (
        batch_mixture,
        lambda guide, x: CAVI(batch_mixture, guide, step_size=rate).run_batches(batches(x), epochs=3),
    ),
    "callback of EM": (scaled, lambda guide, x: EM(scaled).run(x, callback=trouble_at(2))),
    "update": (updated, lambda guide, x: CAVI(updated, guide).run(x)),
    "start": (gaussian, lambda guide, x: CAVI(gaussian, AutoConjugate(gaussian, init=trouble_at(1))).run(x)),
    "model": (broken_on_few, lambda guide, x: guide.elbo(x[:3])),
    "model, in a run": (broken_on_few, lambda guide, x: CAVI(broken_on_few, guide).run(x[:3])),
    "model, explained": (broken_on_few, lambda guide, x: guide.explain(x[:3])),
}


@pytest.mark.parametrize("name", CASES)
def test_an_exception_of_the_users_passes_through_and_leaves_all_in_order(name: str, x: Tensor) -> None:
    model, call = CASES[name]
    guide = AutoConjugate(model)
    fresh = name in ("callback", "callback of batches", "callback of pieces", "loader", "step size", "update")
    if not fresh:
        CAVI(model, guide).run(x, max_steps=2)
    default, store = torch.get_default_dtype(), set(pyro.get_param_store())
    with pytest.raises(OurTrouble):
        call(guide, x)
    assert torch.get_default_dtype() == default
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not _PYRO_STACK
    assert set(pyro.get_param_store()) == store
    with ThreadPoolExecutor() as others:
        assert others.submit(is_free).result(), "the lock of recordings is held"
    if name != "update":  # which has none but the one that raises
        fitted = CAVI(model, guide).run(x, max_steps=20)
        assert bool((fitted.elbo.diff() > -1e-9).all())


def test_a_callback_that_raises_leaves_the_guide_at_the_last_whole_sweep(x: Tensor) -> None:
    guide, whole = AutoConjugate(gaussian), AutoConjugate(gaussian)
    with pytest.raises(OurTrouble):
        CAVI(gaussian, guide).run(x, callback=trouble_at(3))
    result = CAVI(gaussian, whole).run(x, max_steps=3, tol=0.0)
    assert guide.elbo() == result.elbo[-1].item()
