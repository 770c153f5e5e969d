"""A mask on a latent leaves its prior out of the joint density, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from pyro_latent import CAVI, AutoConjugate, NaturalDomainError

_MASK: Any = torch.tensor([True, False])


def _normal(x):
    with pyro.plate("d", 2):
        with poutine.mask(mask=_MASK):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _mixture(x):
    with pyro.plate("k", 2), poutine.mask(mask=_MASK):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def _normal_gamma(x):
    with pyro.plate("d", 2):
        precision = pyro.sample("precision", dist.Gamma(2.0, 2.0))
        with poutine.mask(mask=_MASK):
            mean = pyro.sample("mean", dist.Normal(0.0, (0.1 * precision).rsqrt()))
        with pyro.plate("n", 4, dim=-2):
            pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x)


def test_likelihood_alone_is_the_posterior_where_the_prior_is_masked():
    """The evidence of the first element is N(3; 0, 2), that of the second ∫ N(3; z, 1) dz = 1."""
    guide = AutoConjugate(_normal)
    result = CAVI(_normal, guide).run(torch.full((2,), 3.0, dtype=torch.float64))
    posterior = guide.posterior()["z"]
    torch.testing.assert_close(posterior.loc, torch.tensor([1.5, 3.0], dtype=torch.float64))
    torch.testing.assert_close(posterior.scale, torch.tensor([math.sqrt(0.5), 1.0], dtype=torch.float64))
    evidence = dist.Normal(0.0, math.sqrt(2.0)).log_prob(torch.tensor(3.0))
    assert float(result.elbo[-1]) == pytest.approx(float(evidence), abs=1e-6)


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        (_normal, None),
        (_mixture, None),
        pytest.param(_normal_gamma, None, marks=pytest.mark.slow),
        (_normal_gamma, [("mean", "precision")]),
    ],
)
def test_elbo_under_a_masked_prior_is_that_of_the_guides_draws(model, blocks):
    """Pyro scores the model and the guide under their own masks; both must count the same elements."""
    x = torch.tensor([[3.0, 2.5], [-1.0, -2.0], [-1.5, 0.2], [0.3, 1.0]], dtype=torch.float64)
    x = x if model is _normal_gamma else x.flatten()[: 2 if model is _normal else None]
    guide = AutoConjugate(model, blocks=blocks)
    elbo = float(CAVI(model, guide).run(x).elbo[-1])
    torch.manual_seed(0)
    draws = torch.tensor([-Trace_ELBO().loss(model, guide, x) for _ in range(400)], dtype=torch.float64)
    assert abs(float(draws.mean()) - elbo) < 5 * float(draws.std()) / math.sqrt(len(draws)) + 1e-5


def test_elements_that_no_density_reads_weigh_nothing():
    def model(x):
        with pyro.plate("d", 2), poutine.mask(mask=_MASK):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def first(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = torch.ones(2, 3, dtype=torch.float64)
    found = CAVI(model, AutoConjugate(model)).run(x).elbo[-1]
    torch.testing.assert_close(found, CAVI(first, AutoConjugate(first)).run(x[0]).elbo[-1])


def test_improper_likelihood_under_a_masked_prior_is_an_error():
    """One column of the design is zero, so the likelihood does not say where that weight is."""

    def model(x, y):
        mask: Any = torch.tensor(False)
        with poutine.mask(mask=mask):
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    x = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    with pytest.raises(NaturalDomainError, match="'w'"):
        CAVI(model, AutoConjugate(model)).run(x, x.sum(1))


@pytest.mark.parametrize("order", [[1, 0, 1], [1, 0]], ids=["all alike", "fewer"])
def test_masked_scalars_that_no_index_reads_weigh_nothing(order):
    """Element 2 is masked, and no datum is of it: the degrees of freedom of each are of an element by its index."""
    data = torch.tensor([2.0, -3.0, 1.0], dtype=torch.float64)[: len(order)]

    def model(x):
        with pyro.plate("k", 3):
            mask = torch.tensor([True, True, False])
            shape = pyro.sample("shape", dist.LogNormal(torch.zeros(3, dtype=torch.float64), 0.5).mask(mask))
        with pyro.plate("n", len(order)):
            pyro.sample("x", dist.StudentT(2.0 + shape[torch.tensor(order)], 0.0, 1.0), obs=x)

    found = CAVI(model, AutoConjugate(model)).run(data, max_steps=100).elbo[-1].item()
    exact = 0.0
    for element in (0, 1):
        own = [float(x) for x, place in zip(data, order, strict=True) if place == element]

        def joint(log_shape, own=own):
            likelihood = scipy.stats.t.logpdf(own, 2.0 + math.exp(log_shape)).sum()
            return math.exp(scipy.stats.norm.logpdf(log_shape, 0, 0.5) + likelihood)

        exact += math.log(scipy.integrate.quad(joint, -5, 5, epsabs=1e-13)[0])
    assert found == pytest.approx(exact, abs=1e-8)
