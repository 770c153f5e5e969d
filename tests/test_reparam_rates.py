"""Poisson counts of a sum of rates, each summand with counts at their optimum: the ELBO and the updates are those of
the model with counts of its own, written by hand in NumPy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from sklearn.decomposition import NMF
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_latent import (
    CAVI,
    EM,
    AutoConjugate,
    Gibbs,
    ModelError,
    NotConjugateError,
    RobbinsMonro,
)
from pyro_latent.handlers import expected_log_factors
from pyro_latent.recording import record
from pyro_latent.reparam import Conjugate, SumOfRatesReparam


def tensor(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def drawn_counts(rows: int = 15, columns: int = 9, parts: int = 3) -> Tensor:
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.5, 1.0, (rows, parts)) @ rng.gamma(0.5, 4.0, (parts, columns))
    return tensor(rng.poisson(rates).astype(float))


X = drawn_counts()


def factorization(x: Tensor, parts: int = 3, shape: float = 0.5) -> None:
    """Gopalan, Hofman and Blei (2015), without the priors of rates."""
    rows, columns = x.shape
    with pyro.plate("parts", parts, dim=-1), pyro.plate("rows", rows, dim=-2):
        theta = pyro.sample("theta", dist.Gamma(x.new_tensor(shape), 1.0))
    with pyro.plate("parts_too", parts, dim=-2), pyro.plate("columns", columns, dim=-1):
        beta = pyro.sample("beta", dist.Gamma(x.new_tensor(0.3), 0.2))
    with pyro.plate("rows_too", rows, dim=-2), pyro.plate("columns_too", columns, dim=-1):
        pyro.sample("x", dist.Poisson(theta @ beta), obs=x)


def topics(x: Tensor, size: int | None = None, seen: Any = True) -> None:
    """The columns of each part are probabilities; a row is an event."""
    with pyro.plate("parts", 3):
        beta = pyro.sample("beta", dist.Dirichlet(x.new_full((x.shape[1],), 0.7)))
    with pyro.plate("rows", size or len(x), subsample_size=len(x)):
        theta = pyro.sample("theta", dist.Gamma(x.new_full((3,), 0.5), 0.1).to_event(1))
        with poutine.mask(mask=seen):
            pyro.sample("x", dist.Poisson(theta @ beta).to_event(1), obs=x)


def fit(model: Any, *args: Any, **options: Any) -> tuple[AutoConjugate, Tensor]:
    """A fit whose ELBO never fell, and its ELBO."""
    guide = AutoConjugate(model, reparam=True, **options)
    elbo = CAVI(model, guide).run(*args, max_steps=2000, tol=1e-12).elbo
    assert bool((elbo.diff() > -1e-8).all())
    return guide, elbo


def augmented(model: Any) -> Any:
    strategy: Any = Conjugate()
    return poutine.reparam(model, config=strategy)


def kl_of_gammas(a: Any, b: Any, a0: float, b0: float) -> float:
    log_ratio = a * np.log(b) - a0 * np.log(b0) - scipy.special.gammaln(a) + scipy.special.gammaln(a0)
    return float((log_ratio + (a - a0) * (scipy.special.digamma(a) - np.log(b)) - (b - b0) * a / b).sum())


class ByHand:
    """Coordinate ascent of Poisson factorization, with the counts of every summand laid out."""

    def __init__(self, x: Tensor, theta: np.ndarray, beta: np.ndarray) -> None:
        self.x = x.numpy()
        self.theta, self.beta = (theta, np.ones_like(theta)), (beta, np.ones_like(beta))

    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """π of each part of each count, and E log r."""
        logs = [scipy.special.digamma(a) - np.log(b) for a, b in (self.theta, self.beta)]
        log_rate = logs[0][:, :, None] + logs[1][None]
        return scipy.special.softmax(log_rate, 1), log_rate

    def sweep(self) -> None:
        counts = self.x[:, None] * self.shares()[0]
        rate = (self.beta[0] / self.beta[1]).sum(1)
        self.theta = 0.5 + counts.sum(2), np.broadcast_to(1.0 + rate, self.theta[0].shape)
        counts = self.x[:, None] * self.shares()[0]
        rate = (self.theta[0] / self.theta[1]).sum(0)[:, None]
        self.beta = 0.3 + counts.sum(0), np.broadcast_to(0.2 + rate, self.beta[0].shape)

    def elbo(self) -> float:
        """E log p(x, z, θ, β) + H(q) with z multinomial: the sum of counts has probability one given them."""
        shares, log_rate = self.shares()
        counts = self.x[:, None] * shares
        rate = (self.theta[0] / self.theta[1]) @ (self.beta[0] / self.beta[1])
        found = (counts * (log_rate - np.log(shares))).sum() - rate.sum() - scipy.special.gammaln(self.x + 1).sum()
        return float(found - kl_of_gammas(*self.theta, 0.5, 1.0) - kl_of_gammas(*self.beta, 0.3, 0.2))


def test_sweeps_are_those_of_poisson_factorization_by_hand() -> None:
    rng = np.random.default_rng(1)
    hand = ByHand(X, rng.gamma(2.0, 1.0, (15, 3)), rng.gamma(2.0, 1.0, (3, 9)))
    init = {n: dist.Gamma(tensor(a), tensor(b)) for n, (a, b) in {"theta": hand.theta, "beta": hand.beta}.items()}
    guide = AutoConjugate(factorization, reparam=True, init=init)
    cavi = CAVI(factorization, guide)
    for _ in range(30):
        loss = cavi.step(X)
        hand.sweep()
        assert -loss == pytest.approx(hand.elbo(), abs=1e-8)
    for name in ("theta", "beta"):
        found, (shape, rate) = guide.posterior()[name], getattr(hand, name)
        np.testing.assert_allclose(found.concentration, shape, rtol=1e-8)
        np.testing.assert_allclose(found.rate, rate, rtol=1e-8)


def test_the_counts_are_the_only_auxiliary_site_and_are_not_shown() -> None:
    guide = AutoConjugate(factorization, reparam=True)
    result = CAVI(factorization, guide).run(X, max_steps=20)
    assert result.augmented == ("x_counts",)
    assert set(guide.posterior()) == set(guide.posterior(auxiliary=True)) == {"theta", "beta"}
    row = next(line for line in guide.explain().splitlines() if line.startswith("theta"))
    assert "closed form, by the densities of theta, x" in row
    alone = AutoConjugate(poutine.reparam(factorization, config={"x": SumOfRatesReparam()}))
    assert CAVI(alone.model, alone).run(X, max_steps=20).elbo[-1] == pytest.approx(float(result.elbo[-1]), abs=1e-9)


@pytest.mark.slow
def test_reconstructions_are_as_near_as_those_of_nmf() -> None:
    """NMF by Kullback-Leibler is the maximum likelihood of the same rates: posterior means have most of what it gains
    over the rates of independent margins.
    """

    def loss(rate: np.ndarray) -> float:
        return -float(scipy.stats.poisson(rate).logpmf(x.numpy()).mean())

    x = drawn_counts(60, 30, 3)
    nmf = NMF(3, beta_loss="kullback-leibler", solver="mu", init="nndsvda", max_iter=2000, tol=1e-8)
    best = loss(nmf.fit_transform(x.numpy()) @ nmf.components_ + 1e-12)
    q = fit(factorization, x)[0].posterior()
    found = loss((q["theta"].mean @ q["beta"].mean).numpy())
    margins = loss(np.outer(x.sum(1), x.sum(0)) / float(x.sum()))
    assert best < found < best + 0.2 * (margins - best)


@pytest.mark.parametrize("model", [factorization, topics])
def test_the_recorded_density_is_that_of_the_sum(model: Any) -> None:
    """The counts summed out leave the Poisson density of the sum of the rates."""
    changed = augmented(model)
    density = record(changed, X).scored["x"].density
    trace = poutine.trace(model).get_trace(X)
    values = {n: trace.nodes[n]["value"].double() for n in ("theta", "beta")}
    rate = values["theta"] @ values["beta"]
    exact = dist.Poisson(rate).log_prob(X)
    assert density is not None
    torch.testing.assert_close(density.evaluate(values), exact if model is factorization else exact.sum(-1))


# Small models, beside integrals and enumeration.

COUNTS = np.array([0.0, 3.0, 1.0, 7.0, 2.0])


def background(x: Tensor) -> None:
    a, b = pyro.sample("a", dist.Gamma(2.0, 1.0)), pyro.sample("b", dist.Gamma(x.new_tensor(0.5), 0.3))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Poisson(a + b + 0.25), obs=x)


WEIGHTS = np.array([[1.0, 0.0], [0.5, 2.0], [0.0, 1.0], [3.0, 1.0], [1.0, 1.0]])


def weighted(x: Tensor) -> None:
    """A rate of zero is no summand."""
    with pyro.plate("k", 2):
        r = pyro.sample("r", dist.Gamma(x.new_tensor([2.0, 0.5]), x.new_tensor([1.0, 0.3])))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Poisson((x.new_tensor(WEIGHTS) * r).sum(-1)), obs=x)


def evidence(weights: np.ndarray, constant: float) -> float:
    logs = np.linspace(-25, 4, 1201)
    rates = np.exp(logs)
    prior = [scipy.stats.gamma(a, scale=1 / b).logpdf(rates) + logs for a, b in ((2.0, 1.0), (0.5, 0.3))]
    total = prior[0][:, None] + prior[1]
    for x, (one, two) in zip(COUNTS, weights, strict=True):
        total = total + scipy.stats.poisson(one * rates[:, None] + two * rates + constant).logpmf(x)
    return float(scipy.special.logsumexp(total)) + 2 * math.log(logs[1] - logs[0])


SMALL: dict[Any, tuple[np.ndarray, float]] = {background: (np.ones((5, 2)), 0.25), weighted: (WEIGHTS, 0.0)}
each_small = pytest.mark.parametrize("model", SMALL, ids=lambda m: m.__name__)


@each_small
def test_the_elbo_is_below_the_evidence(model: Any) -> None:
    _, elbo = fit(model, tensor(COUNTS))
    assert 0 < evidence(*SMALL[model]) - elbo[-1] < 1.5


@each_small
def test_the_bound_is_that_of_explicit_counts(model: Any) -> None:
    """E log p(x, z | rates) − E log q(z) with z enumerated: all that the rates' factors do not say."""
    weights, constant = SMALL[model]
    guide, elbo = fit(model, tensor(COUNTS))
    q = guide.posterior()
    parts = (
        [q["a"], q["b"]]
        if model is background
        else [dist.Gamma(q["r"].concentration[i], q["r"].rate[i]) for i in (0, 1)]
    )
    mean = np.array([float(p.mean) for p in parts])
    log = np.array([float(p.concentration.digamma() - p.rate.log()) for p in parts])
    total = 0.0
    for x, own in zip(COUNTS, weights, strict=True):
        rates = np.append(own * np.exp(log), constant)
        cells = [z for z in np.ndindex(*[int(x) + 1] * 3) if sum(z) == x]
        for z in cells:
            law = scipy.stats.multinomial(int(x), rates / rates.sum())
            if law.pmf(z) > 0:
                log_p = sum(n * math.log(r) if n else 0.0 for n, r in zip(z, rates, strict=True))
                log_p -= scipy.special.gammaln(np.array(z) + 1).sum()
                total += law.pmf(z) * (log_p - law.logpmf(z))
        total -= (own * mean).sum() + constant
    priors = ((2.0, 1.0), (0.5, 0.3))
    for p, (a, b) in zip(parts, priors, strict=True):
        total -= kl_of_gammas(np.array(float(p.concentration)), np.array(float(p.rate)), a, b)
    assert elbo[-1] == pytest.approx(total, abs=1e-8)


def test_rates_too_small_for_their_exponentials_are_taken_by_logarithms() -> None:
    """E log of a Gamma of shape 1e-3 is about −1000; one part has all counts of a row."""
    rng = np.random.default_rng(2)
    x = tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    init = {
        "theta": dist.Gamma(tensor(np.where(rng.random((3, 3)) < 0.5, 1e-3, 1.0)), torch.ones(3, 3).double()),
        "beta": dist.Gamma(torch.full((3, 2), 1e-3).double(), torch.ones(3, 2).double()),
    }
    hand = ByHand(x, init["theta"].concentration.numpy(), init["beta"].concentration.numpy())
    guide = AutoConjugate(factorization, reparam=True, init=init)
    cavi = CAVI(factorization, guide)
    for _ in range(3):
        loss = cavi.step(x)
        hand.sweep()
        assert -loss == pytest.approx(hand.elbo(), rel=1e-10)
    np.testing.assert_allclose(guide.posterior()["theta"].concentration, hand.theta[0], rtol=1e-8)


def test_logs_of_scalars_by_quadrature_are_summands() -> None:
    """A LogNormal rate beside a Gamma one."""

    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.LogNormal(x.new_tensor(0.0), 0.5))
        b = pyro.sample("b", dist.Gamma(x.new_tensor(2.0), 1.0))
        with pyro.plate("n", len(x)):
            pyro.sample("x", dist.Poisson(a + b), obs=x)

    _, elbo = fit(model, tensor(COUNTS))
    logs = np.linspace(-12, 4, 1501)
    rates = np.exp(logs)
    prior = scipy.stats.norm(0, 0.5).logpdf(logs)[:, None] + scipy.stats.gamma(2.0).logpdf(rates) + logs
    total = prior + scipy.stats.poisson(rates[:, None, None] + rates[:, None]).logpmf(COUNTS).sum(-1)
    exact = float(scipy.special.logsumexp(total)) + 2 * math.log(logs[1] - logs[0])
    assert 0 < exact - elbo[-1] < 1.5


def test_a_sum_in_no_plate_is_that_of_one_datum() -> None:
    def model(x: Tensor, plate: bool) -> None:
        a, b = pyro.sample("a", dist.Gamma(3.0, 2.0)), pyro.sample("b", dist.Gamma(2.0, 1.0))
        if plate:
            with pyro.plate("n", 1):
                pyro.sample("x", dist.Poisson(a + b), obs=x.reshape(1))
        else:
            pyro.sample("x", dist.Poisson(a + b), obs=x)

    found = [fit(model, tensor(2.0), plate)[1][-1] for plate in (True, False)]
    assert found[1] == pytest.approx(float(found[0]), abs=1e-10)


# Masks, precisions, pieces of the data, and size.


def test_what_a_mask_hides_counts_for_nothing() -> None:
    hidden = X.clone()
    hidden[-2:] = torch.nan
    seen = torch.arange(15) < 13
    found = []
    for data, mask in ((X[:13], True), (hidden, seen)):
        guide = AutoConjugate(topics, reparam=True)
        CAVI(topics, guide).run(data, None, mask, max_steps=20, tol=0.0)
        found.append(guide.elbo())
    assert found[1] == pytest.approx(found[0], abs=1e-9)


def test_float32_is_near_float64() -> None:
    rng = np.random.default_rng(3)
    start = {"theta": rng.gamma(2.0, 1.0, (15, 3)), "beta": rng.gamma(2.0, 1.0, (3, 9))}
    found = {}
    for dtype in (torch.float32, torch.float64):
        init = {n: dist.Gamma(torch.tensor(v, dtype=dtype), torch.ones(v.shape, dtype=dtype)) for n, v in start.items()}
        guide = AutoConjugate(factorization, reparam=True, init=init)
        CAVI(factorization, guide).run(X.to(dtype), max_steps=50, tol=0.0)
        found[dtype] = guide
        assert guide.posterior()["theta"].mean.dtype == dtype
    assert found[torch.float32].elbo() == pytest.approx(found[torch.float64].elbo(), rel=1e-5)


def test_pieces_of_the_data_say_what_all_of_it_says() -> None:
    whole = AutoConjugate(topics, reparam=True)
    level = CAVI(topics, whole).run(X, max_steps=300, tol=1e-9).elbo[-1]
    init = {"beta": whole.posterior()["beta"]}
    batches = [(X[:5],), (X[5:10],), (X[10:],)]
    pieces = AutoConjugate(topics, reparam=True, init=init)
    elbo = CAVI(topics, pieces, memoised=True).run_batches(batches, epochs=8, size=15).elbo
    assert bool((elbo[3:].diff() > -1e-8).all())
    assert elbo[-1] == pytest.approx(float(level), abs=0.01)
    found = pieces.posterior(X[:5], size=15)["beta"].concentration
    torch.testing.assert_close(found, whole.posterior()["beta"].concentration, atol=0.0, rtol=0.05)
    streamed = AutoConjugate(topics, reparam=True, init=init)
    cavi = CAVI(topics, streamed, step_size=RobbinsMonro(delay=5, forgetting=0.7))
    for _ in range(12):
        for (batch,) in batches:
            cavi.step(batch, size=15)
    found = streamed.posterior(X[:5], size=15)["beta"].mean
    torch.testing.assert_close(found, whole.posterior()["beta"].mean, atol=0.03, rtol=0.1)


def test_expected_log_densities_have_the_bound_element_by_element() -> None:
    guide = AutoConjugate(factorization, reparam=True)
    CAVI(factorization, guide).run(X, max_steps=20)
    changed = augmented(factorization)
    each = expected_log_factors(changed, guide.posterior(), X)["x"]
    assert each.shape == X.shape
    assert float(each.sum()) == pytest.approx(guide.elbo_terms().log_densities["x"], abs=1e-8)


class _Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.count = max(self.count, found.untyped_storage().nbytes() // 8)
        return found


def test_no_tensor_has_an_element_for_each_part_of_each_count() -> None:
    x = drawn_counts(40, 30, 3)
    guide = AutoConjugate(factorization, reparam=True)
    cavi = CAVI(factorization, guide)
    cavi.step(x, parts=50)
    with _Largest() as seen:
        cavi.step(x, parts=50)
    assert 1200 <= seen.count <= 2000  # those of x, of theta: not 60,000


def test_parts_start_unequal() -> None:
    """From equal parts they would stay equal."""
    guide = AutoConjugate(factorization, reparam=True)
    CAVI(factorization, guide).run(X, max_steps=50)
    theta = guide.posterior()["theta"].mean
    assert float(theta.std(-1).max()) > 0.1


# What does not fit.


def test_a_model_as_it_is_says_that_counts_would_help() -> None:
    with pytest.raises(
        NotConjugateError, match=r"Site 'x'.*log of 'beta', 'theta'.*AutoConjugate\(model, reparam=True\)"
    ):
        CAVI(factorization, AutoConjugate(factorization)).run(X)


def test_a_parameter_among_the_rates_is_named() -> None:
    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Gamma(x.new_tensor(2.0), 1.0))
        b = pyro.param("b", x.new_tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("n", len(x)):
            pyro.sample("x", dist.Poisson(a + b), obs=x)

    guide = AutoConjugate(model, reparam=True)
    with pytest.raises(
        NotConjugateError, match=r"a prior in the sum of rates of site 'x'; got the point 'b'. Write a Gamma"
    ):
        EM(model, guide).run(tensor(COUNTS))


def test_gibbs_says_that_the_counts_are_not_drawn() -> None:
    with pytest.raises(ModelError, match=r"got a sum of rates.*Write a Poisson site of counts for each"):
        Gibbs(augmented(factorization), 10).run(X)
