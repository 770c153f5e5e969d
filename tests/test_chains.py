"""Long loops over discrete sites: what repeats is one factor, and sites that do not meet are eliminated together.

The chains are compared with hmmlearn's forward-backward, and all of them with elimination one site after another, of a
factor for each density, which is what the shortcuts stand for.
"""

from __future__ import annotations

import cProfile
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hmmlearn.hmm import CategoricalHMM, GaussianHMM, PoissonHMM
from pyro import poutine
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.objective.elimination import Plan
from pyro_latent.objective.order import DiscreteVariable, Order, Scope
from pyro_latent.objective.stacks import Stack, stacks_of
from pyro_latent.recording import record
from pyro_latent.recording.identity import identity_of
from pyro_latent.recording.messengers import StructureMessenger


def numbers(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


FIRST, MOVE = numbers(0.5, 0.2, 0.3), numbers([0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.05, 0.15, 0.8])
LEVELS, RATES = numbers(-1.0, 0.5, 3.0), numbers(0.7, 2.0, 9.0)
SYMBOLS = numbers([0.7, 0.1, 0.1, 0.1], [0.1, 0.4, 0.4, 0.1], [0.25, 0.25, 0.25, 0.25])


pytestmark = pytest.mark.usefixtures("float64")


EMISSIONS: dict[str, Callable[[Tensor], Any]] = {
    "gaussian": lambda z: dist.Normal(LEVELS[z], 0.7),
    "poisson": lambda z: dist.Poisson(RATES[z]),
    "categorical": lambda z: dist.Categorical(SYMBOLS[z]),
}


def loop(x: Tensor, emission: str) -> None:
    z = None
    for t in pyro.markov(range(len(x))):
        probs = FIRST if z is None else MOVE[z]
        z = pyro.sample(f"z_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
        pyro.sample(f"x_{t}", EMISSIONS[emission](z), obs=x[t])


def hmmlearn_of(emission: str) -> Any:
    if emission == "gaussian":
        found: Any = GaussianHMM(3, covariance_type="spherical")
        found.means_, found.covars_ = LEVELS.numpy()[:, None], np.full(3, 0.49)
    elif emission == "poisson":
        found = PoissonHMM(3)
        found.lambdas_ = RATES.numpy()[:, None]
    else:
        found = CategoricalHMM(3, n_features=4)
        found.emissionprob_ = SYMBOLS.numpy()
    found.startprob_, found.transmat_ = FIRST.numpy(), MOVE.numpy()
    return found


def drawn(emission: str, length: int) -> Tensor:
    draws = poutine.trace(loop).get_trace(torch.zeros(length), emission)
    rng = np.random.default_rng(3)
    states = [int(draws.nodes[f"z_{t}"]["value"]) for t in range(length)]  # type: ignore[arg-type]
    if emission == "gaussian":
        return torch.tensor([rng.normal(float(LEVELS[z]), 0.7) for z in states])
    if emission == "poisson":
        return torch.tensor([float(rng.poisson(float(RATES[z]))) for z in states])
    return torch.tensor([int(rng.choice(4, p=SYMBOLS[z].numpy())) for z in states])


def check_against_hmmlearn(emission: str, length: int) -> None:
    x = drawn(emission, length)
    guide = AutoConjugate(loop)
    elbo = -CAVI(loop, guide).step(x, emission)
    data = x.numpy()[:, None].astype(float if emission == "gaussian" else int)
    score, posteriors = hmmlearn_of(emission).score_samples(data)
    assert elbo == pytest.approx(score, rel=1e-10)
    found = guide.posterior(x, emission)
    probs = torch.stack([found[f"z_{t}"].probs.reshape(-1) for t in range(length)])
    np.testing.assert_allclose(probs.numpy(), posteriors, atol=1e-8)


@pytest.mark.parametrize("emission", EMISSIONS)
def test_a_loop_is_forward_backward(emission: str) -> None:
    check_against_hmmlearn(emission, 300)


@pytest.mark.slow
@pytest.mark.parametrize("emission", EMISSIONS)
def test_a_loop_of_ten_thousand_steps_is_forward_backward(emission: str) -> None:
    check_against_hmmlearn(emission, 10_000)


# Shortcuts against what they stand for.


def parameters() -> tuple[Tensor, Tensor]:
    with pyro.plate("states", 3):
        moves = pyro.sample("moves", dist.Dirichlet(torch.ones(3)))
        levels = pyro.sample("levels", dist.Normal(torch.zeros(()), 3.0))
    return moves, levels


X = torch.tensor([math.sin(0.7 * t) * 2 + 0.3 * (t % 5) for t in range(80)], dtype=torch.float64)


def missing_steps() -> None:
    moves, levels = parameters()
    z: Any = 0
    for t in range(80):
        z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]))
        with poutine.mask(mask=t % 7 not in (2, 3)):
            pyro.sample(f"x_{t}", dist.Normal(levels[z], 1.0), obs=X[t])


def unread_steps() -> None:
    moves, levels = parameters()
    z: Any = 0
    for t in range(80):
        z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]))
        if t % 3:
            pyro.sample(f"x_{t}", dist.Normal(levels[z], 1.0 + t % 2), obs=X[t])


def second_order() -> None:
    with pyro.plate("a", 2, dim=-2), pyro.plate("b", 2, dim=-1):
        moves = pyro.sample("moves", dist.Dirichlet(torch.ones(2)))
    before: Any = 0
    z: Any = 1
    for t in range(60):
        before, z = z, pyro.sample(f"z_{t}", dist.Categorical(moves[before, z]))
        pyro.sample(f"x_{t}", dist.Normal(2.0 * z, 1.0), obs=X[t])


def factorial() -> None:
    moves, levels = parameters()
    a: Any = 0
    b: Any = 0
    for t in range(50):
        a = pyro.sample(f"a_{t}", dist.Categorical(moves[a]))
        b = pyro.sample(f"b_{t}", dist.Bernoulli(0.2 + 0.5 * b))
        pyro.sample(f"x_{t}", dist.Normal(levels[a] + 2.0 * b, 1.0), obs=X[t])


def in_a_plate() -> None:
    moves, levels = parameters()
    z: Any = torch.zeros(5, dtype=torch.long)
    for t in range(40):
        with pyro.plate("sequences", 5):
            z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]))
            pyro.sample(f"x_{t}", dist.Normal(levels[z], 1.0), obs=X[t : t + 5])


def of_several_lengths() -> None:
    moves, levels = parameters()
    for i, length in enumerate((40, 3, 55, 1)):
        z: Any = 0
        for t in range(length):
            z = pyro.sample(f"z_{i}_{t}", dist.Categorical(moves[z]))
            pyro.sample(f"x_{i}_{t}", dist.Normal(levels[z], 1.0), obs=X[t])


def star() -> None:
    moves, levels = parameters()
    k = pyro.sample("k", dist.Categorical(torch.ones(3)))
    for t in range(80):
        z = pyro.sample(f"z_{t}", dist.Categorical(moves[k]))
        pyro.sample(f"x_{t}", dist.Normal(levels[z], 1.0), obs=X[t])


def apart() -> None:
    moves, levels = parameters()
    for t in range(80):
        z = pyro.sample(f"z_{t}", dist.Categorical(moves[1]))
        pyro.sample(f"x_{t}", dist.Normal(levels[z], 1.0), obs=X[t])


def tree() -> None:
    moves, levels = parameters()
    z: dict[int, Any] = {0: pyro.sample("z_0", dist.Categorical(torch.ones(3)))}
    for t in range(1, 63):
        z[t] = pyro.sample(f"z_{t}", dist.Categorical(moves[z[(t - 1) // 2]]))
        pyro.sample(f"x_{t}", dist.Normal(levels[z[t]], 1.0), obs=X[t])


def shifted() -> None:
    moves, levels = parameters()
    with pyro.plate("steps", 70):
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(levels[z], 1.0), obs=X[:70])
    with pyro.plate("pairs", 69):
        pyro.sample("y", dist.Categorical(moves[z[1:], :]), obs=torch.zeros(69))
        pyro.sample("w", dist.Normal(1.0 * z[1:] - z[:-1], 1.0), obs=X[:69])


def scaled() -> None:
    moves, levels = parameters()
    z: Any = 0
    with poutine.scale(scale=0.5):
        for t in range(70):
            z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]))
            pyro.sample(f"x_{t}", dist.Normal(levels[z], 1.0), obs=X[t])


def switching() -> None:
    """States of two dimensions and of one, whose moves are those of a discrete chain: they are joint normal factors."""
    moves, _ = parameters()
    rates = torch.tensor([[[1.0, 0.5], [0.0, 0.9]], [[0.3, -0.2], [0.4, 0.5]], [[0.9, 0.0], [0.0, 0.1]]])
    noise = pyro.sample("noise", dist.Gamma(2.0, 1.0))
    z: Any = 0
    state, other = torch.zeros(2), torch.tensor(0.0)
    for t in range(14):
        z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]))
        loc = (rates[z] @ state.unsqueeze(-1)).squeeze(-1)
        state = pyro.sample(f"u_{t}", dist.MultivariateNormal(loc, 0.5 * torch.eye(2)))
        other = pyro.sample(f"v_{t}", dist.Normal(rates[z][..., 0, 0] * other, 1.0))
        pyro.sample(f"x_{t}", dist.Normal(state[..., 0] + other, noise.rsqrt()), obs=X[t])


MODELS = [
    switching,
    missing_steps,
    unread_steps,
    second_order,
    factorial,
    in_a_plate,
    of_several_lengths,
    star,
    apart,
    tree,
    shifted,
    scaled,
]


def results(model: Callable[[], None]) -> tuple[Tensor, dict[str, Tensor], dict[str, float]]:
    """The bounds of three sweeps, the probabilities of the discrete sites and means of normal ones, and what each site
    gives to the bound.
    """
    guide = AutoConjugate(model, init=0, blocks=["u_*", "v_*"] if model is switching else None)
    elbo = CAVI(model, guide).run(max_steps=3, tol=0).elbo
    found = guide.posterior()
    probs = {n: d.probs for n, d in found.items() if hasattr(d, "probs") and n not in ("moves", "levels")}
    probs |= {n: d.mean for n, d in found.items() if n.startswith(("u_", "v_"))}
    return elbo, probs, guide.elbo_terms().log_densities


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_shortcuts_change_nothing(model: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    elbo, probs, shares = results(model)
    monkeypatch.setattr("pyro_latent.objective.elimination._FEW_ROUNDS", math.inf)
    monkeypatch.setattr("pyro_latent.objective.compilation.stacks_of", lambda repeats: [Stack([r]) for r in repeats])
    plain, plain_probs, plain_shares = results(model)
    torch.testing.assert_close(elbo, plain, rtol=1e-11, atol=1e-10)
    assert probs.keys() == plain_probs.keys() and shares.keys() == plain_shares.keys()
    for name, own in probs.items():
        torch.testing.assert_close(own, plain_probs[name], rtol=1e-9, atol=1e-11)
    assert shares == {name: pytest.approx(share, rel=1e-9, abs=1e-10) for name, share in plain_shares.items()}


def test_draws_of_a_long_loop_are_joint() -> None:
    """Where all sites are discrete the posterior is exact, so log p − log q is the evidence whatever is drawn."""
    x = drawn("gaussian", 100)
    guide = AutoConjugate(loop)
    CAVI(loop, guide).step(x, "gaussian")
    for _ in range(3):
        draws = poutine.trace(guide).get_trace(x, "gaussian")
        scored = poutine.trace(poutine.replay(loop, draws)).get_trace(x, "gaussian")
        evidence = scored.log_prob_sum() - draws.log_prob_sum()
        assert float(evidence) == pytest.approx(float(guide.elbo(x, "gaussian")), abs=1e-9)


def test_a_sweep_of_a_long_loop_is_few_operations() -> None:
    """A chain goes in rounds of every other site: about log T of them, and as many buffers as densities differ."""
    variables: dict[Any, DiscreteVariable] = {t: DiscreteVariable(t, 3, {}, 1.0) for t in range(1000)}
    pairs = [Scope((t, t + 1), frozenset()) for t in range(999)]
    wide = Order([pairs], variables, is_wide=True).rounds
    narrow = Order([pairs], variables, is_wide=False).rounds
    assert len(wide) <= 12 and len(narrow) >= 400
    assert sum(len(groups) for groups in wide) <= 40
    assert {step.variable.name for groups in wide for steps in groups for step in steps} == set(range(1000))


class Numbers(TorchDispatchMode):
    """Counts the numbers that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.count += found.numel() if isinstance(found, Tensor) and not found._is_view() else 0
        return found


@pytest.mark.parametrize("is_wide", [True, False])
def test_the_work_of_a_chain_grows_with_its_length(is_wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_latent.objective.elimination._FEW_ROUNDS", 1 if is_wide else math.inf)

    def work(length: int) -> int:
        variables = [DiscreteVariable(t, 3, {}, 1.0) for t in range(length)]
        scopes = [
            [Scope((t, t + 1), frozenset()) for t in range(length - 1)],
            [Scope((t,), frozenset()) for t in range(length)],
        ]
        plan = Plan(scopes, variables, torch.device("cpu"))
        factors = [torch.randn(length - 1, 1, 3, 3).requires_grad_(), torch.randn(length, 1, 3).requires_grad_()]
        with Numbers() as counted:
            torch.autograd.grad(plan.run(factors)[0].sum(), factors)
        return counted.count

    assert work(400) < 5 * work(100)


def test_densities_are_together_only_where_they_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[int] = []

    def counted(repeats: Any) -> list[Stack]:
        found = stacks_of(list(repeats))
        stacks.extend(len(s.repeats) for s in found)
        return found

    monkeypatch.setattr("pyro_latent.objective.compilation.stacks_of", counted)
    CAVI(unread_steps, AutoConjugate(unread_steps)).step()
    assert sorted(stacks) == [1, 53, 79]  # the first step, what is observed, and all other moves


def no_location(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


def location(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def masked_out(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)
    with pyro.poutine.mask(mask=False):
        pyro.sample("y", dist.Exponential(rate), obs=x.sum())


def wide_prior(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(numbers(2.0).squeeze(), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Exponential(rate), obs=x)


def wide_data(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Exponential(rate), obs=x.double())


@pytest.mark.parametrize(
    ("model", "x", "expected"),
    [
        (lambda x: loop(x, "poisson"), numbers(1.0, 0.0, 3.0), 1),
        (no_location, numbers(1.0, 0.0, 3.0), 1),
        (masked_out, numbers(1.0, 0.0, 3.0), 1),
        (location, numbers(101.0, 99.0, 103.0), 2),
        (wide_prior, torch.tensor([1.0, 2.0], dtype=torch.float32), 2),
        (wide_data, torch.tensor([1.0, 2.0], dtype=torch.float32), 2),
    ],
)
def test_a_model_runs_again_only_where_the_first_run_changes_what_it_writes(
    model: Callable[[Tensor], None], x: Tensor, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first run is the recording, a second one would be the same."""
    runs = []

    def counted(x: Tensor) -> None:
        runs.append(1)
        model(x)

    once = record(counted, x)
    assert len(runs) == expected
    monkeypatch.setattr(StructureMessenger, "is_final", property(lambda self: False, lambda self, value: None), False)
    twice = record(counted, x)
    assert len(runs) == expected + 2
    assert identity_of(once) == identity_of(twice)
    assert (once.dtype, once.max_plate_nesting) == (twice.dtype, twice.max_plate_nesting)
    assert list(once.latents) == list(twice.latents) and list(once.discrete) == list(twice.discrete)
    assert list(once.observations) == list(twice.observations)


def test_the_work_of_a_first_step_grows_with_the_length_of_its_loop() -> None:
    """Calls of Python's functions: what is looked at for each site is looked up, and not searched for."""

    def calls(length: int) -> int:
        guide, profile = AutoConjugate(loop), cProfile.Profile()
        profile.runcall(CAVI(loop, guide).step, torch.zeros(length), "gaussian")
        return sum(entry.callcount for entry in profile.getstats())

    calls(5)  # what is done once
    first, second, third = map(calls, (50, 100, 150))
    assert abs((third - second) - (second - first)) < 0.03 * (second - first)
