"""Products of probabilities, with a gate for each of them; and products with discrete sites, which need none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, NotConjugateError
from pyro_latent.recording import record
from pyro_latent.reparam import GateReparam

Model = Callable[..., Any]


def tensor(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


X = tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
COUNT = tensor([0.0, 0.0, 3.0, 1.0, 0.0, 7.0, 2.0, 0.0])
Y = tensor([0.1, 2.2, -0.2, 1.9, 2.4, 0.3, 0.0, 2.0])


def fit(model: Model, *args: Any, reparam: bool = True) -> AutoConjugate:
    """A fit whose ELBO never fell."""
    guide = AutoConjugate(model, reparam=reparam)
    elbo = CAVI(model, guide).run(*args, max_steps=1000, tol=1e-11).elbo
    assert bool((elbo.diff() > -1e-8).all())
    return guide


def beta(name: str, a: float, b: float) -> Tensor:
    found: Tensor = pyro.sample(name, dist.Beta(tensor(a), b))
    return found


def both(x: Tensor = X) -> None:
    p, q = beta("p", 2.0, 1.0), beta("q", 3.0, 1.5)
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Bernoulli(0.9 * p * q), obs=x)


def both_by_hand(x: Tensor = X) -> None:
    p, q = beta("p", 2.0, 1.0), beta("q", 3.0, 1.5)
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.9 * p))
        pyro.sample("x", dist.Bernoulli(z * q), obs=x)


def noisy_or(x: Tensor = X) -> None:
    """Each of two causes fails with a probability of its own."""
    p, q = beta("p", 2.0, 1.0), beta("q", 3.0, 1.5)
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Bernoulli(1 - p * q), obs=x)


def noisy_or_by_hand(x: Tensor = X) -> None:
    p, q = beta("p", 2.0, 1.0), beta("q", 3.0, 1.5)
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("x", dist.Bernoulli(z * q), obs=1 - x)


TIMES = tensor([1.0, 0.0, 2.0, 1.0, 3.0, 0.0, 2.0, 1.0]), tensor([1.0, 1.0, 0.0, 2.0, 0.0, 2.0, 1.0, 0.0])


def powers(x: Tensor = X) -> None:
    """All of so many trials of each kind have to succeed; some are of one kind alone."""
    p, q = beta("p", 2.0, 1.0), beta("q", 3.0, 1.5)
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Bernoulli(p ** TIMES[0] * q ** TIMES[1]), obs=x)


def powers_by_hand(x: Tensor = X) -> None:
    p, q = beta("p", 2.0, 1.0), beta("q", 3.0, 1.5)
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Bernoulli(p ** TIMES[0]))
        pyro.sample("x", dist.Bernoulli(z * q ** TIMES[1]), obs=x)


def squares(x: Tensor = X) -> None:
    """Powers by a number."""
    p, q = beta("p", 2.0, 1.0), beta("q", 3.0, 1.5)
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Bernoulli(p**2 * q.sqrt()), obs=x)


def squares_by_hand(x: Tensor = X) -> None:
    p, q = beta("p", 2.0, 1.0), beta("q", 3.0, 1.5)
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Bernoulli(p**2))
        pyro.sample("x", dist.Bernoulli(z * q.sqrt()), obs=x)


@pytest.mark.parametrize(
    ("model", "by_hand"),
    [(both, both_by_hand), (noisy_or, noisy_or_by_hand), (powers, powers_by_hand), (squares, squares_by_hand)],
)
def test_the_elbo_is_that_of_the_model_with_a_gate_by_hand(model: Model, by_hand: Model) -> None:
    guide, hand = fit(model), fit(by_hand, reparam=False)
    assert guide.elbo() == pytest.approx(hand.elbo(), abs=1e-8)
    for name in ("p", "q"):
        torch.testing.assert_close(guide.posterior()[name].mean, hand.posterior()[name].mean, atol=1e-4, rtol=0.0)


def grid(low: float, high: float, count: int = 801) -> np.ndarray:
    return np.linspace(low, high, count)


def evidence_of_two(success: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    """By the midpoint rule over both probabilities."""
    mesh = (np.arange(1000) + 0.5) / 1000
    prior = scipy.stats.beta(2.0, 1.0).logpdf(mesh)[:, None] + scipy.stats.beta(3.0, 1.5).logpdf(mesh)
    chance, ones = success(mesh[:, None], mesh), float(X.sum())
    total = prior + ones * np.log(chance) + (len(X) - ones) * np.log1p(-chance)
    return float(scipy.special.logsumexp(total)) - 2 * math.log(1000)


def test_the_elbo_is_below_the_evidence() -> None:
    assert 0 < evidence_of_two(lambda p, q: 0.9 * p * q) - fit(both).elbo() < 0.5
    assert 0 < evidence_of_two(lambda p, q: 1 - p * q) - fit(noisy_or).elbo() < 1.0


def test_the_elbo_of_powers_is_below_the_evidence() -> None:
    mesh = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    prior = dist.Beta(tensor(2.0), 1.0).log_prob(mesh)[:, None] + dist.Beta(tensor(3.0), 1.5).log_prob(mesh)
    rows = zip(X, *TIMES, strict=True)
    data = (dist.Bernoulli(mesh[:, None] ** n * mesh**m, validate_args=False).log_prob(x) for x, n, m in rows)
    evidence = float((prior + sum(data)).flatten().logsumexp(0)) - 2 * math.log(1000)
    assert 0 < evidence - fit(powers).elbo() < 1.0


@pytest.mark.parametrize("model", [both, noisy_or])
def test_the_sum_over_the_gate_is_the_density(model: Model) -> None:
    changed: Any = poutine.reparam(model, config={"x": GateReparam()})
    recording = record(changed, X)
    own, gate = (recording.scored[name].density for name in ("x", "x_gate"))
    assert own is not None
    assert gate is not None
    values = {"p": tensor(0.3), "q": tensor(0.8)}
    each = [values | {"x_gate": torch.full((8,), z)} for z in (0, 1)]
    total = torch.stack([own.evaluate(v) + gate.evaluate(v) for v in each]).logsumexp(0)
    trace: Any = poutine.trace(poutine.condition(model, values)).get_trace(X)
    torch.testing.assert_close(total, trace.nodes["x"]["fn"].log_prob(X).double(), atol=1e-8, rtol=0.0)


def test_gates_are_auxiliary_and_explained() -> None:
    guide = AutoConjugate(both, reparam=True)
    result = CAVI(both, guide).run(X)
    assert result.augmented == ("x_gate",)
    assert set(guide.posterior()) == {"p", "q"}
    assert set(guide.posterior(auxiliary=True)) == {"p", "q", "x_gate"}
    gate = guide.posterior(auxiliary=True)["x_gate"].probs
    assert bool((gate[X == 1] > 1 - 1e-9).all())  # a success is let through
    assert "closed form" in next(line for line in guide.explain().splitlines() if line.startswith("q"))


def test_three_factors_have_a_gate_behind_a_gate() -> None:
    def model() -> None:
        p, q, r = beta("p", 2.0, 1.0), beta("q", 3.0, 1.5), beta("r", 1.0, 1.0)
        with pyro.plate("n", 8):
            pyro.sample("x", dist.Bernoulli(p * q * r), obs=X)

    guide = AutoConjugate(model, reparam=True)
    result = CAVI(model, guide).run()
    assert result.augmented == ("x_gate", "x_gate_gate")
    assert bool((result.elbo.diff() > -1e-8).all())


def test_masks_plates_and_float32_are_kept() -> None:
    seen = torch.tensor([True] * 6 + [False] * 2)

    def model(x: Tensor, mask: Any) -> None:
        p = pyro.sample("p", dist.Beta(x.new_tensor(2.0), 1.0))
        with pyro.plate("n", len(x), dim=-2), poutine.mask(mask=mask):
            q = pyro.sample("q", dist.Beta(x.new_tensor(3.0), 1.5))
            with pyro.plate("two", 2, dim=-1):
                pyro.sample("x", dist.Bernoulli(p * q), obs=x)

    data = torch.stack([X, 1 - X.flip(0)], -1)
    whole = fit(model, data[:6], True).elbo()
    hidden = torch.where(seen[:, None], data, torch.nan)
    assert fit(model, hidden, seen[:, None]).elbo() == pytest.approx(whole, abs=1e-6)
    single = AutoConjugate(model, reparam=True)
    CAVI(model, single).run(data[:6].float(), True)
    assert single.elbo() == pytest.approx(whole, rel=1e-4)


def test_without_gates_the_error_says_that_they_would_help() -> None:
    with pytest.raises(NotConjugateError, match=r"Site 'x'.*'p', 'q'.*AutoConjugate\(model, reparam=True\)"):
        fit(both, reparam=False)


def test_a_constant_times_a_probability_is_exact_by_quadrature() -> None:
    """No gate is added: mean field with one latent loses nothing."""

    def model() -> None:
        p = beta("p", 2.0, 1.0)
        with pyro.plate("n", 8):
            pyro.sample("x", dist.Bernoulli(0.5 * p), obs=X)

    def density(p: float) -> float:
        return float(2 * p * (0.5 * p) ** 4 * (1 - 0.5 * p) ** 4)

    exact = math.log(scipy.integrate.quad(density, 0, 1, epsabs=0)[0])
    assert fit(model).elbo() == pytest.approx(exact, abs=1e-8)


# Discrete sites that multiply a latent need no gate.


def on_off(likelihood: Callable[[Tensor, Tensor], Any], prior: Any, data: Tensor) -> Model:
    def model() -> None:
        w = pyro.sample("w", prior)
        with pyro.plate("n", 8):
            z = pyro.sample("z", dist.Bernoulli(tensor(0.7)))
            pyro.sample("x", likelihood(z, w), obs=data)

    return model


#: The model, and the logarithm of prior times likelihood without and with the latent, over a grid of it.
ON_OFF: dict[str, tuple[Model, np.ndarray, Any, Any]] = {
    "Bernoulli": (
        on_off(lambda z, w: dist.Bernoulli(z * w), dist.Beta(tensor(2.0), 1.0), X),
        (np.arange(4000) + 0.5) / 4000,
        scipy.stats.beta(2.0, 1.0).logpdf,
        lambda w, z: np.log(np.where(X.numpy() == 1, z * w, 1 - z * w) + 1e-300),
    ),
    "Poisson": (
        on_off(lambda z, w: dist.Poisson(z * w), dist.Gamma(tensor(2.0), 1.0), COUNT),
        grid(1e-4, 25, 20001),
        scipy.stats.gamma(2.0).logpdf,
        lambda w, z: scipy.stats.poisson(z * w + 0 * w).logpmf(COUNT.numpy()),
    ),
    "spike and slab": (
        on_off(lambda z, w: dist.Normal(z * w, 0.5), dist.Normal(tensor(0.0), 2.0), Y),
        grid(-12, 12, 4001),
        scipy.stats.norm(0.0, 2.0).logpdf,
        lambda w, z: scipy.stats.norm(z * w, 0.5).logpdf(Y.numpy()),
    ),
}


@pytest.mark.parametrize("name", ON_OFF)
def test_a_latent_that_a_site_switches_on_is_conjugate(name: str) -> None:
    model, mesh, prior, log_likelihood = ON_OFF[name]
    w = mesh[:, None]
    both_ways = np.logaddexp(math.log(0.3) + log_likelihood(w, 0), math.log(0.7) + log_likelihood(w, 1)).sum(-1)
    exact = float(scipy.special.logsumexp(prior(mesh) + both_ways)) + math.log(mesh[1] - mesh[0])
    guide = fit(model, reparam=False)
    assert 0 < exact - guide.elbo() < 1.0
    assert fit(model).elbo() == pytest.approx(guide.elbo(), abs=1e-8)


def test_all_coefficients_may_have_a_spike() -> None:
    """Coefficients as one event, beside a sum over all 2³ subsets by hand."""
    design = tensor(np.random.default_rng(0).normal(size=(8, 3)))

    def model() -> None:
        with pyro.plate("k", 3):
            z = pyro.sample("z", dist.Bernoulli(tensor(0.4)))
        w = pyro.sample("w", dist.Normal(torch.zeros(3).double(), 2.0).to_event(1))
        with pyro.plate("n", 8):
            pyro.sample("x", dist.Normal(design @ (z * w), 1.0), obs=Y)

    logs = []
    for subset in np.ndindex(2, 2, 2):
        chosen = design * tensor(subset)
        law = scipy.stats.multivariate_normal(np.zeros(8), (torch.eye(8) + 4 * chosen @ chosen.mT).numpy())
        logs.append(law.logpdf(Y.numpy()) + scipy.stats.binom(1, 0.4).logpmf(subset).sum())
    assert 0 < scipy.special.logsumexp(logs) - fit(model, reparam=False).elbo() < 1.0
