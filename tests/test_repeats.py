"""What the steps of a loop share is what each of them would be, derived alone: every density, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.errors import RecordingError
from pyro_latent.expressions import Expression, alike, taken_apart, tensor
from pyro_latent.expressions.evaluation import LatentValues
from pyro_latent.objective import repeated_sums
from pyro_latent.recording import record
from pyro_latent.rules import random_distribution, repeats
from pyro_latent.rules.base import rule_of

STEPS = 12


pytestmark = pytest.mark.usefixtures("float64")


def series() -> Tensor:
    return torch.randn(STEPS, 2, generator=torch.Generator().manual_seed(0))


def chain(x: Tensor) -> None:
    """Emissions of several kinds, and a step that the others do not have."""
    with pyro.plate("states", 3):
        moves = pyro.sample("moves", dist.Dirichlet(torch.ones(3)))
        level = pyro.sample("level", dist.Normal(0.0, 10.0))
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        symbols = pyro.sample("symbols", dist.Dirichlet(torch.ones(4)))
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(moves[..., z, :]), infer={"enumerate": "parallel"})
        pyro.sample(f"x_{t}", dist.Normal(level[..., z], rate[..., z].rsqrt()), obs=x[t, 0])
        pyro.sample(f"n_{t}", dist.Poisson(rate[..., z]), obs=x[t, 1].abs().round())
        if t == 7:
            pyro.sample("mean", dist.Normal(level[..., z] + level[..., 0], 1.0), obs=x[t, 1])
        pyro.sample(f"s_{t}", dist.Categorical(symbols[..., z, :]), obs=torch.tensor(t % 4))


def second_order(x: Tensor) -> None:
    """A step reads two before it, once in the other order, and once one of them twice; numbers differ at one."""
    move = pyro.sample("move", dist.Gamma(2.0, 1.0))
    noise = pyro.sample("noise", dist.Gamma(2.0, 1.0))
    states = [pyro.sample(f"a_{i}", dist.Normal(0.0, 10.0)) for i in range(2)]
    for t, y in enumerate(x[:, 0]):
        first, second = states[-2:] if t != 5 else states[-2:][::-1]
        second = first if t == 8 else second
        mean = 2.0 * second - (1.0 if t != 6 else 0.5) * first
        states.append(pyro.sample(f"a_{t + 2}", dist.Normal(mean, move.rsqrt())))
        scale = (move if t == 9 else noise).rsqrt()
        pyro.sample(f"y_{t}", dist.Normal(states[-1], scale), obs=y)


def vectors(x: Tensor) -> None:
    """Matrices that are written into on the way, data in a buffer, and events that are joined."""
    noise = pyro.sample("noise", dist.Gamma(2.0, 1.0))
    step, seen = torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.zeros(2)
    cov = torch.eye(2)
    state = pyro.sample("u_0", dist.MultivariateNormal(torch.zeros(2), cov))
    for t, y in enumerate(x, 1):
        state = pyro.sample(f"u_{t}", dist.MultivariateNormal(step @ state, cov))
        seen = seen + y
        pyro.sample(f"w_{t}", dist.Normal(state[0] * y[1], noise.rsqrt()), obs=y[0])
        pyro.sample(f"v_{t}", dist.Normal(state, noise.rsqrt()).to_event(1), obs=seen)
        if t == 4:
            step.mul_(0.5)


def plates(x: Tensor) -> None:
    """Steps over a plate, some of them masked."""
    with pyro.plate("series", 2):
        noise = pyro.sample("noise", dist.Gamma(2.0, 1.0))
        level = pyro.sample("b_0", dist.Normal(0.0, 1.0))
        for t, y in enumerate(x, 1):
            level = pyro.sample(f"b_{t}", dist.Normal(level, noise.rsqrt()))
            with pyro.poutine.mask(mask=y > (-1.0 if t % 3 else 0.0)):
                pyro.sample(f"y_{t}", dist.Normal(level, 0.5), obs=y)


def numbers_in_plates(x: Tensor) -> None:
    """A number observed at each place of a plate, of two, and of none."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("wide", 3):
        pyro.sample("first", dist.Normal(level, 1.0), obs=x[0, 0])
        with pyro.plate("high", 2):
            pyro.sample("second", dist.Normal(level, 1.0), obs=x[1, 0])
    with pyro.plate("narrow", 2):
        pyro.sample("third", dist.Normal(level, 1.0), obs=x[2, 0])
    pyro.sample("last", dist.Normal(level, 1.0), obs=x[3, 0])


def values_of(recording: Any) -> dict[str, Tensor]:
    """Numbers for every latent."""
    generator = torch.Generator().manual_seed(1)
    found = {n: torch.rand(s.shape, generator=generator) for n, s in recording.latents.items()}
    sizes = {n: (s.cardinality, s.batch_shape) for n, s in recording.discrete.items()}
    return found | {n: torch.randint(k, tuple(shape), generator=generator) for n, (k, shape) in sizes.items()}


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step of a loop knows of another."""
    for module in (tensor, random_distribution, repeats):
        monkeypatch.setattr(module, "question", lambda *items: None)


@pytest.mark.parametrize("model", [chain, second_order, vectors, plates, numbers_in_plates])
def test_densities_of_a_loop_are_those_of_its_steps(
    model: Callable[[Tensor], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = record(model, series())
    alone(monkeypatch)
    expected = record(model, series())
    values = values_of(expected)
    assert found.scored.keys() == expected.scored.keys()
    for name, site in expected.scored.items():
        density = found.scored[name].density
        assert density is not None and site.density is not None and density.shape == site.density.shape, name
        assert density.sites == site.density.sites, name
        assert len(density.terms) == len(site.density.terms), name
        assert torch.equal(density.evaluate(values), site.density.evaluate(values)), name


def test_most_steps_are_derived_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[type] = []

    def counted(family: type) -> Any:
        def rule(*arguments: Any) -> Expression:
            calls.append(family)
            return rule_of(family)(*arguments)

        return rule

    monkeypatch.setattr(random_distribution, "rule_of", counted)
    record(chain, series())
    assert len(calls) < 3 * STEPS


def test_data_is_what_it_was_when_it_was_observed() -> None:
    """A buffer that the model writes the next datum into: each site has its own, though all wait for the end."""

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale, seen = torch.tensor(1.0), torch.zeros(())
        for t, y in enumerate(x):
            seen.copy_(y)
            pyro.sample(f"x_{t}", dist.Normal(mu, scale), obs=seen)
            if t == 3:
                scale.mul_(2.0)

    x = series()[:, 0]
    recording = record(model, x)
    mu = torch.tensor(0.3)
    for t, y in enumerate(x):
        density = recording.scored[f"x_{t}"].density
        assert isinstance(density, Expression)
        expected = dist.Normal(mu, 1.0 if t <= 3 else 2.0).log_prob(y)
        torch.testing.assert_close(density.evaluate({"mu": mu}), expected, rtol=1e-12, atol=1e-12)


def test_another_density_at_one_step_is_found_by_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is of every site, and not of one of those that are alike."""

    def wrong(*args: Any) -> Any:
        found = taken_apart(*args)
        assert found is not None
        found[5] = found[5] + 0.1
        return found

    monkeypatch.setattr(repeats, "taken_apart", wrong)
    with pytest.raises(RecordingError, match="x_6"):
        CAVI(chain, AutoConjugate(chain)).step(series())


@pytest.mark.parametrize("model", [chain, second_order, vectors, plates, numbers_in_plates])
def test_densities_evaluated_at_once_are_those_evaluated_alone(model: Callable[[Tensor], None]) -> None:
    recording = record(model, series())
    values = values_of(recording)
    densities = [s.density for s in recording.scored.values() if s.density is not None]
    for density, (value, size) in zip(densities, alike.evaluated(densities, LatentValues(values)), strict=True):
        terms = density.summands(LatentValues(values))
        torch.testing.assert_close(value.expand(density.shape), density.evaluate(values), rtol=1e-13, atol=1e-13)
        expected = sum((t.abs() for t in terms), torch.zeros(())).expand(density.shape)
        torch.testing.assert_close(size.expand(density.shape), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("model", "blocks"),
    [(second_order, ["a_*"]), (second_order, None), (vectors, ["u_*"]), (plates, ["b_*"])],
)
def test_sums_that_are_taken_together_are_those_of_each_site(
    model: Callable[[Tensor], None], blocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared() -> tuple[list[float], dict[str, list[float]], Any]:
        guide = AutoConjugate(model, blocks=blocks, init=0)
        elbo = CAVI(model, guide).run(series(), max_steps=3).elbo
        program = guide.prepare((series(),), {}).program
        means = program.means(guide.state)
        by_site = {n: [float(sum(s.value(means) for s in own))] for n, own in program.site_summands.items() if own}
        return [float(e) for e in elbo], by_site, program

    elbo, by_site, program = prepared()
    assert any(len(group.sites) > STEPS // 2 for group in program.site_summands.groups)
    monkeypatch.setattr(repeated_sums, "_likeness", lambda *args: None)
    expected, each, alone = prepared()
    assert all(len(group.sites) == 1 for group in alone.site_summands.groups)
    assert elbo == pytest.approx(expected, rel=1e-12)
    assert by_site.keys() == each.keys()
    for name, numbers in each.items():
        assert by_site[name] == pytest.approx(numbers, rel=1e-10, abs=1e-10), name


def test_a_matrix_that_the_loop_writes_into_is_what_it_was_at_each_step() -> None:
    y = series()[:, 0]

    def model(is_new: bool) -> None:
        step = torch.eye(2)
        state = pyro.sample("u_0", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        for t in range(1, STEPS):
            step = step.clone() if is_new else step
            step[0, 1] = 0.1 * t
            state = pyro.sample(f"u_{t}", dist.MultivariateNormal(step @ state, 0.1 * torch.eye(2)))
            pyro.sample(f"y_{t}", dist.Normal(state[0], 0.5), obs=y[t])

    found, expected = (
        CAVI(model, AutoConjugate(model, blocks=["u_*"])).run(is_new, max_steps=1).elbo[0] for is_new in (False, True)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
