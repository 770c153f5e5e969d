"""Expectations of scalars that are infinite, or of functions that round: against scipy, and what is exact."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import truncnorm

from pyro_latent import CAVI, AutoConjugate

DATA = torch.tensor([1.3, -0.4, 2.1, 0.7, -1.6, 0.2, 3.0, -0.9], dtype=torch.float64)


@pytest.fixture(autouse=True)
def double(float64):
    """All numbers in double precision."""


def test_empty_component_of_a_flat_scale_has_no_data_and_keeps_its_prior():
    """E σ⁻² of its prior is infinite, so the share of its data is 0, and the bound is that of the other one alone."""

    def components(y, locs):
        with pyro.plate("components", len(locs)):
            mu = pyro.sample("mu", dist.Normal(locs, 1.0))
            sigma = pyro.sample("sigma", dist.Uniform(0.0, 100.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.full((len(locs),), 0.5)), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(mu[z], sigma[z]), obs=y)

    def alone(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 100.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, sigma), obs=y)

    guide = AutoConjugate(components)
    both = CAVI(components, guide).run(DATA, torch.tensor([0.0, 1e3]), max_steps=200, tol=1e-14)
    one = CAVI(alone, AutoConjugate(alone)).run(DATA, max_steps=200, tol=1e-14)
    assert both.elbo[-1].item() == pytest.approx(one.elbo[-1].item() + len(DATA) * math.log(0.5), abs=1e-9)
    found = guide.posterior()
    assert float(found["mu"].mean[1]) == pytest.approx(1e3, rel=1e-12)
    assert float(found["sigma"].mean[1]) == pytest.approx(50.0, rel=1e-9)
    assert torch.equal(found["z"].probs[:, 1], torch.zeros(len(DATA)))


@pytest.mark.parametrize("cdf", [torch.sigmoid, torch.special.expit, torch.special.ndtr])
def test_probability_that_rounds_to_one_keeps_its_complement(cdf):
    """log(1 − σ(x)) of a x beyond 37 and log(1 − Φ(x)) beyond 8 are not those of 0: q and its entropy are scipy's."""
    place, width, datum = (12.0, 0.1, -75.0) if cdf is torch.special.ndtr else (40.0, 0.5, -39.0)

    def model(y):
        x = pyro.sample("x", dist.Normal(place, width))
        with pyro.plate("one", 1):
            z = pyro.sample("z", dist.Bernoulli(cdf(x)), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def logs(x):
        x = torch.as_tensor(x)
        log_cdf = torch.special.log_ndtr if cdf is torch.special.ndtr else torch.nn.functional.logsigmoid
        return float(log_cdf(x)), float(log_cdf(-x))

    guide = AutoConjugate(model)
    CAVI(model, guide).run(torch.tensor([datum]), max_steps=200, tol=1e-13)
    q, share = guide.posterior()["x"], float(guide.posterior()["z"].probs)
    assert 0.01 < share < 0.99
    low, high = float(q.mean - 9 * q.stddev), float(q.mean + 9 * q.stddev)

    def expected(function):
        return quad(lambda x: function(x) * weight(x), low, high, limit=400, epsabs=0, epsrel=1e-11)[0]

    def weight(x):
        one, zero = logs(x)
        return math.exp(-0.5 * ((x - place) / width) ** 2 + share * one + (1 - share) * zero + shift)

    one, zero = logs(float(q.mean))
    shift = 0.5 * ((float(q.mean) - place) / width) ** 2 - share * one - (1 - share) * zero
    total = expected(lambda x: 1.0)
    assert float(q.mean) == pytest.approx(expected(lambda x: x) / total, rel=1e-7)
    odds = expected(lambda x: logs(x)[0] - logs(x)[1]) / total - 0.5 * (datum - 1) ** 2 + 0.5 * datum**2
    assert share == pytest.approx(1 / (1 + math.exp(-odds)), rel=1e-5)


def test_densities_that_comparisons_cut_have_their_means_and_the_evidence():
    """Truncated normals, whose tables end where they are highest: scipy has their means, and log Φ is the evidence."""
    loc = torch.tensor([0.0, 1.0, 3.0])

    def model():
        with pyro.plate("games", 3):
            gap = pyro.sample("gap", dist.Normal(loc, 5.0))
            pyro.sample("won", dist.Bernoulli((gap > 0).double()), obs=torch.ones(3))

    guide = AutoConjugate(model)
    result = CAVI(model, guide).run(max_steps=3)
    assert result.elbo[-1].item() == pytest.approx(torch.special.log_ndtr(loc / 5).sum().item(), abs=3e-9)
    expected = truncnorm.mean((-loc / 5).numpy(), float("inf"), loc.numpy(), 5.0)
    torch.testing.assert_close(guide.posterior()["gap"].mean, torch.as_tensor(expected), rtol=1e-8, atol=0.0)
