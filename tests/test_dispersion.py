"""Negative binomial regression whose dispersion is latent, by the bound of its logistic function."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import gammaln, logsumexp, xlogy
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate

Array = np.ndarray


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, generator=generator).double()
    rate = torch.distributions.Gamma(3.0, torch.exp(-0.5 * x)).mean
    return x, torch.poisson(rate, generator=generator)


def by_odds(x: Tensor, y: Tensor, spread: float = 1.0) -> None:
    b = pyro.sample("b", dist.Normal(torch.tensor(0.0).double(), 1.0))
    r = pyro.sample("r", dist.LogNormal(torch.tensor(math.log(3.0)).double(), spread))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.NegativeBinomial(r, logits=b * x), obs=y)


def by_mean(x: Tensor, y: Tensor, spread: float = 1.0) -> None:
    b = pyro.sample("b", dist.Normal(torch.tensor(0.0).double(), 1.0))
    r = pyro.sample("r", dist.LogNormal(torch.tensor(math.log(3.0)).double(), spread))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.NegativeBinomial(r, logits=1.0 + b * x - r.log()), obs=y)


def known(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(torch.tensor(0.0).double(), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.NegativeBinomial(3.0, logits=b * x), obs=y)


#: Places of b, and of log r, with their steps.
B, LOG_R = np.linspace(-5, 5, 801), np.linspace(-4, 6, 801)
STEPS = B[1] - B[0], LOG_R[1] - LOG_R[0]


def priors() -> tuple[Array, Array]:
    """The log densities of b, and of log r."""
    of_b, of_r = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi) for z in (B, LOG_R - math.log(3.0)))
    return of_b, of_r


def ways(y: Array) -> Array:
    """log Γ(x + r) − log Γ(r) − log x!, the sum over data, at each place of r."""
    r = np.exp(LOG_R)
    return np.sum([gammaln(n + r) - gammaln(r) - gammaln(n + 1) for n in y], axis=0)


def fitted(model: object, *args: object) -> tuple[AutoConjugate, float]:
    guide = AutoConjugate(model, reparam=True)  # type: ignore[arg-type]
    result = CAVI(model, guide).run(*args, max_steps=500, tol=1e-13)  # type: ignore[arg-type]
    assert all(b >= a - 1e-9 for a, b in zip(result.elbo, result.elbo[1:], strict=False))
    return guide, float(result.elbo[-1])


def test_it_is_the_optimum_of_mean_field_and_bound(data: tuple[Tensor, Tensor]) -> None:
    """Each factor, and each place of the bound, from the others on grids, until they stay."""
    guide, elbo = fitted(by_odds, *data)
    x, y = (t.numpy() for t in data)
    logits, r = B[:, None] * x, np.exp(LOG_R)
    prior_b, prior_r = priors()
    q_b, mean_r = np.exp(prior_b) / np.exp(prior_b).sum(), 3.0
    for _ in range(400):
        c = np.sqrt(q_b @ logits**2)
        softplus = np.logaddexp(0, -c) + (c + logits) / 2 + np.tanh(c / 2) / (4 * c) * (logits**2 - c**2)
        log_q_r = prior_r + ways(y) - r * (q_b @ softplus).sum()
        q_r = np.exp(log_q_r - logsumexp(log_q_r))
        mean_r = q_r @ r
        log_q_b = prior_b + logits @ y - softplus @ (y + mean_r)
        q_b = np.exp(log_q_b - logsumexp(log_q_b))
    energy = q_b @ (prior_b + logits @ y) + q_r @ (prior_r + ways(y)) - (q_b @ softplus) @ (y + mean_r)
    bound = energy - xlogy(q_b, q_b / STEPS[0]).sum() - xlogy(q_r, q_r / STEPS[1]).sum()
    assert elbo == pytest.approx(bound, abs=1e-7)
    posterior = guide.posterior(*data)
    assert float(posterior["b"].mean) == pytest.approx(q_b @ B, abs=1e-6)
    assert float(posterior["r"].mean) == pytest.approx(mean_r, rel=1e-6)


@pytest.mark.parametrize("model", [by_odds, by_mean])
def test_it_is_below_the_evidence_and_near(model: object, data: tuple[Tensor, Tensor]) -> None:
    guide, elbo = fitted(model, *data)
    x, y = (t.numpy() for t in data)
    prior_b, prior_r = priors()
    shift = (1.0 - LOG_R) if model is by_mean else np.zeros_like(LOG_R)
    log_joint = prior_b[:, None] + prior_r + ways(y)
    for at, count in zip(x, y, strict=True):
        logits = B[:, None] * at + shift
        log_joint += count * logits - (count + np.exp(LOG_R)) * np.logaddexp(0, logits)
    log_evidence = logsumexp(log_joint) + np.log(STEPS[0] * STEPS[1])
    assert log_evidence - 0.6 < elbo < log_evidence
    weights = np.exp(log_joint - logsumexp(log_joint)).sum(1)
    mean, sd = weights @ B, math.sqrt(weights @ B**2 - (weights @ B) ** 2)
    assert float(guide.posterior(*data)["b"].mean) == pytest.approx(mean, abs=0.2 * sd)


def test_a_dispersion_that_is_nearly_known_is_one_that_is(data: tuple[Tensor, Tensor]) -> None:
    guide, elbo = fitted(by_odds, *data, 1e-3)
    other, expected = fitted(known, *data)
    assert elbo == pytest.approx(expected, abs=1e-4)
    found = float(guide.posterior(*data, 1e-3)["b"].mean)
    assert found == pytest.approx(float(other.posterior(*data)["b"].mean), abs=1e-5)
