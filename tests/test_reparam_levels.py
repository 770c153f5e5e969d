"""Logistic functions between two levels, as guesses and lapses leave them: a gate decides when the logits count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import torch
from pyro import poutine
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, NotConjugateError
from pyro_latent.recording import record
from pyro_latent.reparam import LevelsReparam

Form = Callable[[Tensor, Tensor, Tensor], Any]


def tensor(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


PLACES = tensor(np.random.default_rng(1).normal(size=12))
KNOWN = tensor([1, 0, 1] * 4)
X = tensor([1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 0])
sigmoid = torch.sigmoid


def between(form: Form) -> Callable[[], None]:
    """Data whose probabilities are a form of a probability c and of two logits of two latents."""

    def model() -> None:
        c = pyro.sample("c", dist.Beta(tensor(2.0), 1.0))
        a, b = pyro.sample("a", dist.Normal(tensor(0.0), 2.0)), pyro.sample("b", dist.Normal(tensor(0.0), 2.0))
        with pyro.plate("n", 12):
            pyro.sample("x", dist.Bernoulli(form(c, a + b * PLACES, 1 + b + a * PLACES)), obs=X)

    return model


def fit(model: Callable[[], None]) -> AutoConjugate:
    """A fit whose ELBO never fell."""
    guide = AutoConjugate(model, reparam=True)
    elbo = CAVI(model, guide).run(max_steps=2000, tol=1e-11).elbo
    assert bool((elbo.diff() > -1e-8).all())
    return guide


#: Of E log c, E log(1 − c), and the bounds of E log σ and E log(1 − σ) of both logits, the log density of each datum.
BY_HAND: dict[str, tuple[Form, Callable[..., Any]]] = {
    "lapse": (
        lambda c, f, g: 0.05 + 0.85 * sigmoid(f),
        lambda c, f, g: np.logaddexp(np.log(np.where(X == 1, 0.05, 0.1)), np.log(0.85) + np.where(X == 1, *f)),
    ),
    "not seen": (
        lambda c, f, g: c * sigmoid(f),
        lambda c, f, g: np.where(X == 1, c[0] + f[0], np.logaddexp(c[1], c[0] + f[1])),
    ),
    "guess": (
        lambda c, f, g: c + (1 - c) * sigmoid(f),
        lambda c, f, g: np.where(X == 1, np.logaddexp(c[0], c[1] + f[0]), c[1] + f[1]),
    ),
    "failure": (
        lambda c, f, g: 1 - c * sigmoid(-f),
        lambda c, f, g: np.where(X == 1, np.logaddexp(c[1], c[0] + f[0]), c[0] + f[1]),
    ),
    "two": (
        lambda c, f, g: sigmoid(f) * sigmoid(g),
        lambda c, f, g: np.where(X == 1, f[0] + g[0], np.logaddexp(g[1], g[0] + f[1])),
    ),
}


def bound_by_hand(density: Callable[..., Any]) -> float:
    """The largest bound over Normal factors of a and b and a Beta factor of c, by SciPy."""
    place = PLACES.numpy()

    def logs(first: Any, second: Any) -> tuple[Any, Any]:
        """Of E f and E f², the bound of E log σ(f) and of E log σ(−f)."""
        scale = np.log(2 * np.cosh(np.sqrt(second) / 2))
        return first / 2 - scale, -first / 2 - scale

    def loss(t: np.ndarray) -> float:
        m, v, (p, q) = t[:2], np.exp(t[2:4]), np.exp(t[4:])
        f, g = m[0] + m[1] * place, 1 + m[1] + m[0] * place
        both = logs(f, f**2 + v[0] + v[1] * place**2), logs(g, g**2 + v[1] + v[0] * place**2)
        c = scipy.special.digamma([p, q]) - scipy.special.digamma(p + q)
        beta = scipy.special.betaln(2, 1) - scipy.special.betaln(p, q) + (p - 2) * c[0] + (q - 1) * c[1]
        normal = 0.5 * (v / 4 + m**2 / 4 - 1 - np.log(v / 4)).sum()
        return float(normal + beta - density(c, *both).sum())

    return float(-scipy.optimize.minimize(loss, np.zeros(6), options={"gtol": 1e-8}).fun)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_elbo_is_the_largest_bound_with_the_gate_summed_by_hand(name: str) -> None:
    form, density = BY_HAND[name]
    assert fit(between(form)).elbo() == pytest.approx(bound_by_hand(density), abs=1e-7)


LEVELS: dict[str, Form] = {
    "numbers of each": lambda c, f, g: torch.linspace(0.01, 0.1, 12).double() + 0.8 * sigmoid(f),
    "falling": lambda c, f, g: 0.9 - 0.7 * sigmoid(f),
    "a power": lambda c, f, g: c**2 * sigmoid(f),
    "one for some": lambda c, f, g: (c * KNOWN + (1 - c)) * sigmoid(f),
    "the other": lambda c, f, g: 1 - (1 - c) * (1 - sigmoid(f)),
}


@pytest.mark.parametrize("name", LEVELS)
def test_the_sum_over_the_gate_is_the_density(name: str) -> None:
    model = between(LEVELS[name])
    recording = record(poutine.reparam(model, config={"x": LevelsReparam()}))
    gate, own = recording.scored["x_gate"].density, recording.scored["x"].distribution
    assert gate is not None and own == "Bernoulli"
    values = {"c": tensor(0.3), "a": tensor(0.4), "b": tensor(-1.2)}
    size = recording.discrete["x_gate"].cardinality
    each = torch.stack([gate.evaluate(values | {"x_gate": torch.full((12,), z)}) for z in range(size)]).exp()
    trace: Any = poutine.trace(poutine.condition(model, values)).get_trace()
    probs, chance = trace.nodes["x"]["fn"].probs, sigmoid(values["a"] + values["b"] * PLACES)
    torch.testing.assert_close(each.sum(0), torch.ones(12).double())
    if name == "the other":
        found = each[1] + each[0] * chance
    elif name in ("a power", "one for some"):
        found = each[1] * chance
    else:
        found = each[2] + each[1] * (1 - chance if name == "falling" else chance)
    torch.testing.assert_close(found, probs, atol=1e-6, rtol=0.0)


NO_LEVELS: dict[str, Form] = {
    "over one": lambda c, f, g: 2 * c * sigmoid(f),
    "one by chance": lambda c, f, g: (1 - c) + 0.5 * c * sigmoid(f),
    "both of latents": lambda c, f, g: 0.1 + 0.5 * c * sigmoid(f),
    "moved": lambda c, f, g: c * sigmoid(f).flip(0),
    "cut": lambda c, f, g: c * sigmoid(f).clamp(min=1e-6),
    "cut alone": lambda c, f, g: sigmoid(f).clamp(1e-9, 1 - 1e-9) + 0 * c,
    "a mixture": lambda c, f, g: c * sigmoid(f) + (1 - c) * sigmoid(g),
    "a square": lambda c, f, g: c * sigmoid(f) ** 2,
    "moved, below the largest": lambda c, f, g: torch.maximum(0.9 * sigmoid(f).roll(1), sigmoid(f)) + 0 * c,
}


@pytest.mark.parametrize("name", NO_LEVELS)
def test_what_is_not_between_two_levels_is_refused(name: str) -> None:
    with pytest.raises(NotConjugateError, match="sigmoid of 'a', 'b'"):
        fit(between(NO_LEVELS[name]))


def test_levels_that_are_zero_and_one_are_the_logistic_function_itself() -> None:
    plain = fit(between(lambda c, f, g: sigmoid(f)))
    guide = fit(between(lambda c, f, g: c * sigmoid(f) + (1 - c) * sigmoid(f)))
    assert guide.elbo() == pytest.approx(plain.elbo(), abs=1e-9)
    assert set(guide.posterior(auxiliary=True)) == {"a", "b", "c", "x_weight"}


def test_several_trials_have_no_one_gate() -> None:
    def model() -> None:
        a, b = pyro.sample("a", dist.Normal(tensor(0.0), 2.0)), pyro.sample("b", dist.Normal(tensor(0.0), 2.0))
        with pyro.plate("n", 12):
            pyro.sample("x", dist.Binomial(3, 0.5 * sigmoid(a + b * PLACES)), obs=X)

    with pytest.raises(NotConjugateError, match="sigmoid of 'a', 'b'"):
        fit(model)
