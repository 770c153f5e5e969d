"""Data with NaN under Pyro's NaN-masked normals: the posterior and the evidence are those of the numbers alone."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, NotConjugateError

pytestmark = pytest.mark.usefixtures("float64")

_X = [1.0, math.nan, 2.5, 3.0, math.nan, 1.5]
_ROWS = [[101.0, 99.0], [math.nan, 98.0], [math.nan, math.nan], [100.0, math.nan], [102.0, 101.0]]
_COVARIANCE = [[1.0, 0.5], [0.5, 2.0]]


def fitted(model: Any, x: Tensor, **options: Any) -> tuple[float, AutoConjugate]:
    guide = AutoConjugate(model, **options)
    return float(CAVI(model, guide).run(x).elbo[-1]), guide


def numbers(x: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    mu = pyro.sample("mu", dist.Normal(0.0, tau.rsqrt()))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.NanMaskedNormal(mu, tau.rsqrt()), obs=x)


def vectors(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.NanMaskedMultivariateNormal(mu, torch.tensor(_COVARIANCE)), obs=x)


def test_nan_counts_for_nothing() -> None:
    x = torch.tensor(_X)
    elbo, guide = fitted(numbers, x, blocks=[("mu", "tau")])
    expected, complete = fitted(numbers, x[x.isfinite()], blocks=[("mu", "tau")])
    assert elbo == pytest.approx(expected, abs=1e-10)
    assert float(guide.posterior()["tau"].rate) == pytest.approx(float(complete.posterior()["tau"].rate), rel=1e-12)
    alone = guide.log_predictive(x, pointwise=True).value
    assert torch.equal(alone == 0, x.isnan())


def test_vectors_with_some_elements_have_the_margin_of_these() -> None:
    """The evidence is that of the elements that are seen, under their joint normal."""
    x = torch.tensor(_ROWS)
    joint = torch.block_diag(*[torch.tensor(_COVARIANCE)] * len(x)) + 4 * torch.eye(2).repeat(len(x), len(x))
    seen = x.isfinite().flatten()
    evidence = dist.MultivariateNormal(torch.zeros(int(seen.sum())), joint[seen][:, seen]).log_prob(x.flatten()[seen])
    assert fitted(vectors, x)[0] == pytest.approx(float(evidence), rel=1e-12)


def test_elements_of_an_event_are_apart() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.NanMaskedNormal(mu, 1.0).to_event(1), obs=x)

    x = torch.tensor(_ROWS)
    mean = fitted(model, x)[1].posterior()["mu"].mean
    torch.testing.assert_close(mean, x.nansum(0) / (0.25 + x.isfinite().sum(0)))


def test_a_latent_covariance_takes_whole_vectors_alone() -> None:
    def model(x: Tensor) -> None:
        precision = pyro.sample("precision", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.NanMaskedMultivariateNormal(torch.zeros(2), precision_matrix=precision), obs=x)

    x = torch.tensor(_ROWS)
    assert fitted(model, x[[0, 2, 4]])[0] == pytest.approx(fitted(model, x[[0, 4]])[0], rel=1e-12)
    with pytest.raises(NotConjugateError, match="Expected vectors that are NaN as a whole, or not at all"):
        fitted(model, x)
