"""The covariance priors of Huang and Wand (2013): a Wishart precision whose scale has Gamma sites on its diagonal."""

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
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate

WIDTH = torch.tensor([2.5, 0.7], dtype=torch.float64)


def precision(df: float, width: Tensor = WIDTH) -> Tensor:
    """A precision matrix whose standard deviations are half-t of ``df`` degrees of freedom and these scales."""
    size = len(width)
    with pyro.plate("variables", size):
        weight = pyro.sample("weight", dist.Gamma(torch.full_like(width, 0.5), width**-2))
    scale = (2 * df * weight).diag_embed()
    found: Tensor = pyro.sample("precision", dist.Wishart(width.new_tensor(df + size - 1), precision_matrix=scale))
    return found


def model(df: float, x: Tensor) -> None:
    matrix = precision(df)
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.MultivariateNormal(x.new_zeros(2), precision_matrix=matrix), obs=x)


@pytest.mark.parametrize("df", [1.0, 2.0, 5.0])
def test_standard_deviations_are_half_t(df: float) -> None:
    """Huang and Wand (2013), property 2; one degree of freedom is the half-Cauchy."""
    pyro.set_rng_seed(0)
    draws: Any = [torch.linalg.inv(poutine.block(precision)(df)).diagonal().sqrt() for _ in range(2000)]
    for found, width in zip(torch.stack(draws).T, WIDTH, strict=True):

        def cdf(value: np.ndarray, width: float = float(width)) -> np.ndarray:
            return np.asarray(2 * scipy.stats.t(df).cdf(value / width) - 1)

        assert scipy.stats.kstest(found.numpy(), cdf).pvalue > 1e-3


@pytest.mark.slow
def test_correlations_are_uniform_at_two_degrees_of_freedom() -> None:
    """Huang and Wand (2013), property 3."""
    pyro.set_rng_seed(1)
    draws = torch.stack([torch.linalg.inv(poutine.block(precision)(2.0)) for _ in range(2000)])
    correlation = draws[:, 0, 1] / (draws[:, 0, 0] * draws[:, 1, 1]).sqrt()
    assert scipy.stats.kstest(correlation.numpy(), scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_the_elbo_is_near_the_evidence() -> None:
    """Given the weights the precision integrates out, and they are integrated by a grid."""
    x = torch.tensor(np.random.default_rng(0).normal(size=(12, 2)) @ [[1.0, 0.6], [0.0, 0.5]])
    guide = AutoConjugate(model)
    result = CAVI(model, guide).run(2.0, x, max_steps=500, tol=1e-12)
    assert bool((result.elbo.diff() > -1e-9).all())
    logs = np.linspace(-14, 6, 401)
    prior = [scipy.stats.gamma(0.5, scale=float(w) ** 2).logpdf(np.exp(logs)) + logs for w in WIDTH]
    first, second = np.exp(logs)[:, None], np.exp(logs)
    scatter, df, count = (x.mT @ x).numpy(), 3.0, len(x)
    before = np.log(4 * first) + np.log(4 * second)
    after = np.log((4 * first + scatter[0, 0]) * (4 * second + scatter[1, 1]) - scatter[0, 1] ** 2)
    given = 0.5 * df * before - 0.5 * (df + count) * after - count * math.log(math.pi)
    given += scipy.special.multigammaln((df + count) / 2, 2) - scipy.special.multigammaln(df / 2, 2)
    total = prior[0][:, None] + prior[1] + given
    evidence = float(scipy.special.logsumexp(total)) + 2 * math.log(logs[1] - logs[0])
    assert 0 < evidence - result.elbo[-1] < 0.5
