"""Logistic functions behind a gate, as in z σ(f): the bound of those whose gate is open, weighted by how open it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, ModelError, NotConjugateError
from pyro_latent.distributions import LogisticBound, PolyaGamma
from pyro_latent.families import LogisticBound as LogisticBoundFamily
from pyro_latent.recording import record
from pyro_latent.reparam import Conjugate

Model = Callable[..., Any]
Form = Callable[[Tensor, Tensor], Tensor]


def tensor(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


PLACES = tensor(np.random.default_rng(1).normal(size=12))
SEEN = tensor([1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 0])
COUNT = tensor([3, 0, 0, 1, 4, 0, 0, 2, 1, 0, 5, 0])
sigmoid = torch.sigmoid


def behind(form: Form, trials: int = 1, data: Tensor = SEEN, gate: Any = None) -> Model:
    """Data whose probabilities are a form of a gate and of logits of two latents."""

    def model() -> None:
        omega = pyro.sample("omega", dist.Beta(tensor(2.0), 1.0))
        a, b = pyro.sample("a", dist.Normal(tensor(0.0), 2.0)), pyro.sample("b", dist.Normal(tensor(0.0), 2.0))
        with pyro.plate("n", len(data)):
            z = pyro.sample("z", dist.Bernoulli(omega)) if gate is None else gate
            probs = form(z, a + b * PLACES[: len(data)])
            own = dist.Bernoulli(probs) if trials == 1 else dist.Binomial(trials, probs)
            pyro.sample("y", own, obs=data)

    return model


def fit(model: Model, *args: Any, **options: Any) -> AutoConjugate:
    """A fit whose ELBO never fell."""
    guide = AutoConjugate(model, reparam=True, **options)
    elbo = CAVI(model, guide).run(*args, max_steps=2000, tol=1e-11).elbo
    assert bool((elbo.diff() > -1e-8).all())
    return guide


def gated(z: Tensor, f: Tensor) -> Tensor:
    return z * sigmoid(f)


# The bound.


def of_normals(m: np.ndarray, v: np.ndarray) -> float:
    """Σ KL(N(m, v) ‖ N(0, 2²))."""
    return float(0.5 * (v / 4 + m**2 / 4 - 1 - np.log(v / 4)).sum())


def jaakkola(first: Any, second: Any, x: Any, n: int) -> Any:
    """The bound of E log σ(f)^x σ(−f)^(n − x) by E f and E f²."""
    return (x - n / 2) * first - n * np.log(2 * np.cosh(np.sqrt(second) / 2))


def bound_by_hand(n: int, data: Tensor) -> float:
    """The largest bound over Normal factors of a and b and a Beta factor of ω, by SciPy; z is summed by hand."""
    place, x = PLACES.numpy(), data.numpy()
    ways = np.log(scipy.special.comb(n, x))

    def loss(t: np.ndarray) -> float:
        m, v, (p, q) = t[:2], np.exp(t[2:4]), np.exp(t[4:])
        first = m[0] + m[1] * place
        open_ = ways + jaakkola(first, first**2 + v[0] + v[1] * place**2, x, n)
        log_on, log_off = scipy.special.digamma([p, q]) - scipy.special.digamma(p + q)
        each = np.logaddexp(log_on + open_, np.where(x == 0, log_off, -np.inf))
        beta = scipy.stats.beta(p, q)
        divergence = -beta.entropy() - log_on + scipy.special.betaln(2, 1)
        return float(-(each.sum() - of_normals(m, v) - divergence))

    starts = np.random.default_rng(0).normal(size=(2, 6)) * 0.5
    return float(max(-scipy.optimize.minimize(loss, s, options={"gtol": 1e-8}).fun for s in starts))


@pytest.mark.parametrize(("n", "data"), [(1, SEEN), (5, COUNT)], ids=["Bernoulli", "Binomial"])
def test_the_elbo_is_the_largest_bound_and_below_the_evidence(n: int, data: Tensor) -> None:
    found = fit(behind(gated, n, data)).elbo()
    assert found == pytest.approx(bound_by_hand(n, data), abs=1e-7)
    mesh, omega = np.linspace(-13, 13, 101), (np.arange(60) + 0.5) / 60
    a, b = np.meshgrid(mesh, mesh, indexing="ij")
    logits = a.ravel()[:, None] + b.ravel()[:, None] * PLACES.numpy()
    x = data.numpy()
    opened = np.exp(scipy.stats.binom(n, scipy.special.expit(logits)).logpmf(x))
    prior = scipy.stats.norm(0, 2).logpdf([a.ravel(), b.ravel()]).sum(0)
    each = [np.log(w * opened + (1 - w) * (x == 0)).sum(-1) + math.log(2 * w / 60) for w in omega]
    evidence = scipy.special.logsumexp(prior + np.array(each)) + 2 * math.log(mesh[1] - mesh[0])
    assert 0 < evidence - found < 1.5


def test_gates_that_are_known_are_the_logistic_regression_of_the_open_ones() -> None:
    opened = tensor([1.0, 1.0, 0.0] * 4)
    data = SEEN * opened
    guide = fit(behind(gated, data=data, gate=opened))
    where = opened == 1

    def regression() -> None:
        pyro.sample("omega", dist.Beta(tensor(2.0), 1.0))
        a, b = pyro.sample("a", dist.Normal(tensor(0.0), 2.0)), pyro.sample("b", dist.Normal(tensor(0.0), 2.0))
        with pyro.plate("n", 8):
            pyro.sample("y", dist.Bernoulli(logits=a + b * PLACES[where]), obs=data[where])

    plain = fit(regression)
    assert guide.elbo() == pytest.approx(plain.elbo(), abs=1e-8)
    for name in ("a", "b"):
        torch.testing.assert_close(guide.posterior()[name].mean, plain.posterior()[name].mean, atol=1e-5, rtol=0.0)


def test_gates_that_are_surely_closed_leave_the_prior() -> None:
    def model() -> None:
        a, b = pyro.sample("a", dist.Normal(tensor(0.5), 2.0)), pyro.sample("b", dist.Normal(tensor(0.0), 2.0))
        with pyro.plate("n", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.zeros(3).double()))
            pyro.sample("y", dist.Bernoulli(z * sigmoid(a + b)), obs=torch.zeros(3).double())

    guide = fit(model)
    assert guide.elbo() == 0
    assert (guide.posterior()["a"].loc, guide.posterior()["a"].scale) == (0.5, 2.0)


LIVES = tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])


def survival() -> None:
    """Each animal lives on while it lives, and is seen in the years that it lives in."""
    a, b = pyro.sample("a", dist.Normal(tensor(0.0), 2.0)), pyro.sample("b", dist.Normal(tensor(0.0), 2.0))
    with pyro.plate("animals", len(LIVES)):
        z: Any = torch.ones(len(LIVES)).double()
        for t in pyro.markov(range(4)):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(z * sigmoid(a + t * b)), infer={"enumerate": "parallel"})
            pyro.sample(f"y_{t}", dist.Bernoulli(0.6 * z), obs=LIVES[:, t])


def test_a_chain_of_gates_is_summed_exactly() -> None:
    """A latent site behind a gate, which is the gate of the next one."""
    histories = [h for h in np.ndindex(2, 2, 2, 2) if list(h) == sorted(h, reverse=True)]
    years, seen = np.arange(4), LIVES.numpy()

    def loss(t: np.ndarray) -> float:
        m, v = t[:2], np.exp(t[2:])
        first = m[0] + m[1] * years
        second = first**2 + v[0] + v[1] * years**2
        logs = []
        for z in map(np.array, histories):
            at_risk = np.concatenate([[1], z[:-1]])
            prior = (at_risk * jaakkola(first, second, z, 1)).sum()
            with np.errstate(divide="ignore"):
                logs.append(prior + scipy.stats.bernoulli(0.6 * z).logpmf(seen).sum(-1))
        return float(of_normals(m, v) - scipy.special.logsumexp(logs, axis=0).sum())

    expected = -scipy.optimize.minimize(loss, np.zeros(4), options={"gtol": 1e-8}).fun
    guide = fit(survival)
    assert guide.elbo() == pytest.approx(expected, abs=1e-7)
    assert set(guide.posterior()) == {"a", "b", *(f"z_{t}" for t in range(4))}


def test_a_function_of_a_scalar_and_a_product_of_latents_are_logits() -> None:
    """The logit of a probability and a scaled effect: E f and E f² are products of expectations of each."""

    def model() -> None:
        mean = pyro.sample("mean", dist.Uniform(tensor(0.0), 1.0))
        sigma = pyro.sample("sigma", dist.Uniform(tensor(0.0), 5.0))
        with pyro.plate("n", 12):
            effect = pyro.sample("effect", dist.Normal(tensor(0.0), 1.0))
            z = pyro.sample("z", dist.Bernoulli(tensor(0.7)))
            pyro.sample("y", dist.Binomial(5, z * sigmoid(torch.logit(mean) + sigma * effect)), obs=COUNT)

    guide = AutoConjugate(model, reparam=True)
    assert bool((CAVI(model, guide).run(max_steps=150, tol=1e-9).elbo.diff() > -1e-8).all())
    q = guide.posterior(auxiliary=True)
    draws = {n: q[n].sample((40_000,)) for n in ("mean", "sigma", "effect")}
    square = (torch.logit(draws["mean"])[:, None] + draws["sigma"][:, None] * draws["effect"]) ** 2
    error = 5 * square.std(0) / 200
    assert bool(((square.mean(0) - q["y_bound"].tilt ** 2).abs() < error).all())


# What is a gate, however it is written.


def as_given(f: Tensor) -> list[Form]:
    closed = torch.zeros(()).double()
    return [
        gated,
        lambda z, f: torch.where(z > 0, sigmoid(f), closed),
        lambda z, f: torch.where(z.bool(), sigmoid(f), 0.0),
        lambda z, f: 1 - (1 - z * sigmoid(f)),
        lambda z, f: z * (1 - torch.special.expit(-f)),
        lambda z, f: sigmoid(f).masked_fill(z == 0, 0.0),
        lambda z, f: (z**2).expand(12) * (z * sigmoid(f)).clone(),
        lambda z, f: z * sigmoid(z * f),
    ]


FORMS = {str(i): form for i, form in enumerate(as_given(SEEN))}
NO_FORMS: dict[str, Form] = {
    "twice": lambda z, f: 2 * z * sigmoid(f),
    "moved elements": lambda z, f: (z * sigmoid(f)).flip(0),
    "moved logits": lambda z, f: z * sigmoid(f).roll(1),
    "mixed elements": lambda z, f: (z * sigmoid(f)).cumprod(-1),
    "a square": lambda z, f: z * sigmoid(f) ** 2,
    "a part": lambda z, f: torch.minimum(z * sigmoid(f), tensor(0.7)),
    "cut far out": lambda z, f: z * sigmoid(f).clamp(1e-6, 1 - 1e-6),
    "two logits": lambda z, f: z * sigmoid(f) + (1 - z) * sigmoid(f + 1),
}


def density_at(form: Form, z: Tensor) -> tuple[Tensor, Tensor]:
    """The density of data where the bound touches, and that of Pyro."""
    values = {"omega": tensor(0.5), "a": tensor(0.3), "b": tensor(-1.2), "z": z}
    strategy: Any = Conjugate()
    recording = record(poutine.reparam(behind(form), config=strategy))
    logits = values["a"] + values["b"] * PLACES
    found = recording.scored["y"].density
    assert found is not None
    weight = LogisticBound(torch.ones(12).double(), logits).mean
    trace: Any = poutine.trace(poutine.condition(behind(form), values)).get_trace()
    return found.evaluate(values | {"y_bound": weight}), trace.nodes["y"]["fn"].log_prob(SEEN)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_bound_touches_the_density_of_every_form(form: Form) -> None:
    opened = torch.maximum(SEEN, tensor([0.0, 1.0] * 6))
    found, expected = density_at(form, opened)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0.0)


@pytest.mark.parametrize("form", NO_FORMS.values(), ids=NO_FORMS)
def test_what_is_no_gate_is_refused(form: Form) -> None:
    with pytest.raises(NotConjugateError, match="sigmoid of 'a', 'b'"):
        fit(behind(form))


def test_levels_and_signs_by_a_label_are_known_by_its_values() -> None:
    """Where a label is 0 a level, where it is 1 success by the logits, where it is 2 failure by them."""
    levels = tensor([0.2, 0.5, 0.9])

    def model() -> None:
        a, b = pyro.sample("a", dist.Normal(tensor(0.0), 2.0)), pyro.sample("b", dist.Normal(tensor(0.0), 2.0))
        with pyro.plate("n", 12):
            z = pyro.sample("z", dist.Categorical(levels))
            chance = sigmoid(a + b * PLACES)
            probs = torch.where(z == 0, tensor(0.2), torch.where(z == 1, chance, 1 - chance))
            pyro.sample("y", dist.Bernoulli(probs), obs=SEEN)

    strategy: Any = Conjugate()
    density = record(poutine.reparam(model, config=strategy)).scored["y"].density
    assert density is not None
    values = {"a": tensor(0.3), "b": tensor(-1.2), "z": tensor([0.0, 1.0, 2.0] * 4)}
    weight = LogisticBound(torch.ones(12).double(), values["a"] + values["b"] * PLACES).mean
    trace: Any = poutine.trace(poutine.condition(model, values)).get_trace()
    expected = trace.nodes["y"]["fn"].log_prob(SEEN)
    torch.testing.assert_close(density.evaluate(values | {"y_bound": weight}), expected, atol=1e-7, rtol=0.0)


def test_two_gates_are_one_that_is_open_where_both_are() -> None:
    def both(joined: bool) -> Model:
        def model() -> None:
            a, b = pyro.sample("a", dist.Normal(tensor(0.0), 2.0)), pyro.sample("b", dist.Normal(tensor(0.0), 2.0))
            with pyro.plate("n", 12):
                chance = tensor(0.42 if joined else 0.7)
                z = pyro.sample("z", dist.Bernoulli(chance))
                u = 1.0 if joined else pyro.sample("u", dist.Bernoulli(tensor(0.6)))
                pyro.sample("y", dist.Bernoulli(z * sigmoid(a + b * PLACES) * u), obs=SEEN)

        return model

    assert fit(both(False)).elbo() == pytest.approx(fit(both(True)).elbo(), abs=1e-8)


def test_what_the_model_writes_into_later_is_read_as_it_was() -> None:
    def form(z: Tensor, f: Tensor) -> Tensor:
        weight, gate, logits = torch.ones(12).double(), 1 * z, 1 * f
        probs = gate * (weight * sigmoid(logits))
        weight[0], gate[1], logits[2] = 0.0, 1.0, 0.0
        return probs

    def written(z: Tensor, f: Tensor) -> Tensor:
        probs = z * sigmoid(f)
        probs[0] = 0.5
        return probs

    found, expected = density_at(form, torch.ones(12).double())
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0.0)
    with pytest.raises(NotConjugateError, match="sigmoid of 'a', 'b'"):
        fit(behind(written))


# Masks, pieces, precision.


def in_pieces(x: Tensor, y: Tensor, known: Tensor, mask: Any = True, size: int = 12) -> None:
    """``known`` closes the gate where it is 0."""
    omega = pyro.sample("omega", dist.Beta(x.new_tensor(2.0), 1.0))
    a, b = pyro.sample("a", dist.Normal(x.new_tensor(0.0), 2.0)), pyro.sample("b", dist.Normal(x.new_tensor(0.0), 2.0))
    with pyro.plate("n", size, subsample_size=len(x)), poutine.mask(mask=mask):
        z = pyro.sample("z", dist.Bernoulli(omega))
        pyro.sample("y", dist.Bernoulli(known * (z * sigmoid(a + b * x))), obs=y)


KNOWN = torch.maximum(SEEN, tensor([1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1]))


def test_masks_pieces_and_float32_are_kept() -> None:
    data = PLACES, SEEN, KNOWN
    whole = fit(in_pieces, *data).elbo()
    guide = AutoConjugate(in_pieces, reparam=True)
    pieces = [tuple(t[i : i + 6] for t in data) for i in (0, 6)]
    found = CAVI(in_pieces, guide, memoised=True).run_batches(pieces, epochs=24, tol=0.0, size=12)
    assert float(found.elbo[-1]) == pytest.approx(whole, abs=2e-3)
    single = AutoConjugate(in_pieces, reparam=True)
    CAVI(in_pieces, single).run(*(t.float() for t in data))
    assert single.elbo() == pytest.approx(whole, abs=1e-3)
    hidden = torch.tensor([False, True] * 6)
    part = fit(in_pieces, *(t[~hidden] for t in data), True, 6).elbo()
    masked = fit(in_pieces, PLACES, torch.where(hidden, torch.nan, SEEN), KNOWN, ~hidden).elbo()
    assert masked == pytest.approx(part, abs=1e-7)


def test_draws_that_need_full_conditionals_are_refused() -> None:
    from pyro_latent import Gibbs

    strategy: Any = Conjugate()
    with pytest.raises(ModelError, match=r"got those of \['y'\], which are bounds of logistic functions"):
        Gibbs(poutine.reparam(behind(gated), config=strategy), 10).run()


# The family of the point that the bound is taken at.


def test_the_log_normalizer_is_the_support_function_of_its_points() -> None:
    """A(η) = max over c of ⟨η, x(c)⟩, its gradient is the point, and there is no entropy."""
    count, grid = tensor([1.0, 2.5, 7.0]), torch.linspace(0, 8, 2001).double()
    family = LogisticBoundFamily(count)
    params = {"tilt": tensor([0.03, 1.2, 3.0]), "weight": tensor([0.2, 1.0, 3.0])}
    natural = family.from_params(params).map(lambda t: t.requires_grad_())
    (point,) = torch.autograd.grad(family.log_normalizer(natural).sum(), natural.x)
    natural = natural.map(Tensor.detach)
    torch.testing.assert_close(point, family.mean(natural).x, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(family.to_params(natural), params)
    torch.testing.assert_close(family.entropy(natural), torch.zeros(3).double(), atol=1e-12, rtol=0.0)
    points = LogisticBound(count, grid[:, None]).mean
    best = (points * natural.x).sum(-1).amax(0)
    torch.testing.assert_close(best, family.log_normalizer(natural), atol=1e-5, rtol=0.0)
    assert bool(family.in_domain(natural).all()) and not bool(family.in_domain(natural.map(torch.neg)).any())


@pytest.mark.parametrize("tilt", [0.0499, 0.0501, 2.0, 30.0])
def test_the_point_is_the_weights_mean_and_divergence(tilt: float) -> None:
    law, point = PolyaGamma(tensor(2.5), tensor(tilt)), LogisticBound(tensor(2.5), tensor(tilt)).mean
    assert float(point[0]) == float(law.mean)
    slope = scipy.integrate.quad(lambda t: math.tanh(t / 2) - t / 2 / math.cosh(t / 2) ** 2, 0, tilt, epsabs=0)[0]
    assert float(point[1]) == pytest.approx(2.5 * slope / 4, rel=1e-8)


def test_a_gate_that_is_never_open_has_the_bound_at_zero() -> None:
    family = LogisticBoundFamily(tensor(2.0))
    natural = family.from_params({"tilt": tensor(3.0), "weight": tensor(0.0)})
    torch.testing.assert_close(family.mean(natural).x, tensor([0.5, 0.0]))
    assert float(family.log_normalizer(natural)) == 0
