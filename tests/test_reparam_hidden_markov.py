"""DiscreteHMM as one site: beside the same model as a loop, and below the evidence by Pyro's own density."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, NotConjugateError
from pyro_latent.reparam import DiscreteHMMReparam

Model = Callable[..., Any]


def real(*shape: int) -> Tensor:
    return (7.0 * torch.arange(math.prod(shape)).double()).sin().reshape(shape)


X = 2 * real(6)
ROWS = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double()


def fit(model: Model, *args: Any, **options: Any) -> tuple[AutoConjugate, Any]:
    """A fit whose ELBO never fell."""
    guide = AutoConjugate(model, init=3, **options)
    found = CAVI(model, guide).run(*args, max_steps=3000, tol=1e-12)
    assert bool((found.elbo.diff() > -1e-8).all())
    return guide, found


def parameters() -> tuple[Tensor, Tensor, Tensor]:
    start = pyro.sample("start", dist.Dirichlet(torch.tensor([1.0, 2.0]).double()))
    with pyro.plate("states", 2):
        rows = pyro.sample("rows", dist.Dirichlet(torch.tensor([2.0, 1.0]).double()))
        place = pyro.sample("place", dist.Normal(torch.tensor(0.5).double(), 2.0))
    return start, rows, place


def chain(x: Tensor, start: Tensor, rows: Any, emitted: Callable[[int, Tensor], Any]) -> None:
    """The loop that the distribution stands for: one transition comes before the first datum."""
    z = pyro.sample("z", dist.Categorical(start))
    for t in range(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(rows(t)[z]))
        pyro.sample(f"x_{t}", emitted(t, z), obs=x[t])


def normal(x: Tensor, loop: bool) -> None:
    start, rows, place = parameters()
    if loop:
        chain(x, start, lambda t: rows, lambda t, z: dist.Normal(place[z], 1.0))
    else:
        pyro.sample("x", dist.DiscreteHMM(start.log(), rows.log(), dist.Normal(place, 1.0), duration=len(x)), obs=x)


def of_scales(x: Tensor, loop: bool) -> None:
    """Emissions of several latents, of which one is shared."""
    start, rows, place = parameters()
    precision = pyro.sample("precision", dist.Gamma(torch.tensor(2.0).double(), 1.0))
    if loop:
        chain(x, start, lambda t: rows, lambda t, z: dist.Normal(place[z], precision.rsqrt()))
    else:
        emitted = dist.Normal(place, precision.rsqrt())
        pyro.sample("x", dist.DiscreteHMM(start.log(), rows.log(), emitted, duration=len(x)), obs=x)


def over_time(x: Tensor, loop: bool) -> None:
    """Known transitions of each step, and a shift of the data of each step."""
    _, _, place = parameters()
    tables = torch.stack([ROWS, ROWS.flip(0)] * 3)
    shift = real(6, 1)
    start = torch.tensor([0.5, 0.5]).double()
    if loop:
        chain(x, start, lambda t: tables[t], lambda t, z: dist.Normal((place + shift[t])[z], 1.0))
    else:
        emitted = dist.Normal(place + shift, 1.0)
        pyro.sample("x", dist.DiscreteHMM(start.log(), tables.log(), emitted), obs=x)


def of_labels(x: Tensor, loop: bool) -> None:
    start, rows, _ = parameters()
    with pyro.plate("emitting", 2):
        shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([1.0, 2.0, 1.5]).double()))
    labels = (x > 0).long() + (x > 1).long()
    if loop:
        chain(labels, start, lambda t: rows, lambda t, z: dist.Categorical(shares[z]))
    else:
        emitted = dist.Categorical(shares)
        pyro.sample("x", dist.DiscreteHMM(start.log(), rows.log(), emitted, duration=len(x)), obs=labels)


def of_vectors(x: Tensor, loop: bool) -> None:
    start, rows, _ = parameters()
    with pyro.plate("emitting", 2):
        center = pyro.sample("center", dist.Normal(torch.zeros(2).double(), 2.0).to_event(1))
    pairs = torch.stack([x, x.roll(1)], -1)
    if loop:
        chain(pairs, start, lambda t: rows, lambda t, z: dist.Normal(center[z], 1.0).to_event(1))
    else:
        emitted = dist.Normal(center, 1.0).to_event(1)
        pyro.sample("x", dist.DiscreteHMM(start.log(), rows.log(), emitted, duration=len(x)), obs=pairs)


def of_sequences(x: Tensor, loop: bool) -> None:
    """Three sequences in a plate, of which a mask hides one."""
    start, rows, place = parameters()
    series = torch.stack([x, x.roll(1), x.roll(2)])
    seen: Any = torch.tensor([True, False, True])
    with pyro.plate("series", 3), poutine.mask(mask=seen):
        if loop:
            z = pyro.sample("z", dist.Categorical(start))
            for t in range(len(x)):
                z = pyro.sample(f"z_{t}", dist.Categorical(Vindex(rows)[z]))
                pyro.sample(f"x_{t}", dist.Normal(place[z], 1.0), obs=series[:, t])
        else:
            emitted = dist.Normal(place, 1.0)
            pyro.sample("x", dist.DiscreteHMM(start.log(), rows.log(), emitted, duration=len(x)), obs=series)


MODELS = [normal, of_scales, over_time, of_labels, of_vectors, of_sequences]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_the_elbo_is_that_of_the_loop(model: Model) -> None:
    """And the posteriors of the parameters; those of the states are left out."""
    ours, found = fit(model, X, False, reparam=True)
    loop, _ = fit(model, X, True)
    assert ours.elbo() == pytest.approx(loop.elbo(), abs=1e-7)
    assert set(found.augmented) == {f"x_state_{t}" for t in ("before", *range(6))}
    theirs = loop.posterior()
    for name, q in ours.posterior().items():
        torch.testing.assert_close(q.mean, theirs[name].mean, atol=1e-4, rtol=1e-4)
    states = ours.posterior(auxiliary=True)
    torch.testing.assert_close(states["x_state_3"].probs, theirs["z_3"].probs, atol=1e-4, rtol=1e-4)


def test_the_bound_is_below_the_evidence_by_pyros_density() -> None:
    """Of one latent, by an integral over it; the states are summed out by DiscreteHMM itself."""

    def site(v: Tensor) -> Any:
        place = torch.stack([v, v - 3.0], -1).unsqueeze(-2)
        return dist.DiscreteHMM(torch.zeros(2).double(), ROWS.log(), dist.Normal(place, 1.0), duration=6)

    def model(x: Tensor) -> None:
        v = pyro.sample("v", dist.Normal(torch.tensor(1.0).double(), 1.0))
        pyro.sample("x", site(v), obs=x)

    guide, _ = fit(model, X, reparam=True)
    axis = torch.linspace(-7, 9, 2001, dtype=torch.float64)
    joint = site(axis).log_prob(X) + dist.Normal(1.0, 1.0).log_prob(axis)
    evidence = float(joint.logsumexp(0)) + math.log(float(axis[1] - axis[0]))
    assert 0 < evidence - guide.elbo() < 0.5
    mean = float((joint.softmax(0) * axis).sum())
    assert float(guide.posterior()["v"].mean) == pytest.approx(mean, abs=0.15)


def test_the_entry_alone_and_a_chain_of_constants() -> None:
    alone = poutine.reparam(normal, config={"x": DiscreteHMMReparam()})
    guide, _ = fit(alone, X, False)
    assert "x_state_0" in guide.posterior()
    constant = dist.DiscreteHMM(
        torch.zeros(2).double(), ROWS.log(), dist.Normal(torch.zeros(2).double(), 1.0), duration=6
    )

    def model(x: Tensor) -> None:
        pyro.sample("v", dist.Normal(torch.tensor(1.0).double(), 1.0))
        pyro.sample("x", constant, obs=x)

    guide, found = fit(model, X, reparam=True)
    assert found.augmented == ()
    assert guide.elbo() == pytest.approx(float(constant.log_prob(X)), abs=1e-9)


def test_without_its_states_the_error_says_what_to_write() -> None:
    with pytest.raises(
        NotConjugateError, match=r"got DiscreteHMM of latent .*loop.*AutoConjugate\(model, reparam=True\)"
    ):
        fit(normal, X, False)


def test_the_loop_that_the_error_says_is_the_chain() -> None:
    """Of known parameters, whose evidence is GaussianHMM's density."""
    one, noise = torch.eye(1).double(), dist.Normal(torch.zeros(1).double(), 1.0).to_event(1)
    whole = dist.GaussianHMM(noise, 0.8 * one, noise, one, noise, duration=6)

    def model(x: Tensor) -> None:
        state = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
        for t in range(len(x)):
            state = pyro.sample(f"z_{t}", dist.Normal(0.8 * state, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(state, 1.0), obs=x[t])

    guide, _ = fit(model, X, blocks="auto")
    assert guide.elbo() == pytest.approx(float(whole.log_prob(X[:, None])), abs=1e-9)
