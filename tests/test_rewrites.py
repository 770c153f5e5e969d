"""What errors advise to write for a density without a rule: the same density, in a model that fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import Bernoulli, Beta, Binomial, Categorical, Dirichlet, Gamma, Multinomial, Normal, Poisson
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, MissingRuleError
from pyro_latent.rules.rewrites import REWRITES

DOUBLE = torch.float64
LOC, SCALE = torch.tensor(0.3, dtype=DOUBLE), torch.tensor(1.7, dtype=DOUBLE)
PROBS = torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE)
DRAWS = (400_000,)

#: By class: one of it, its rewrite as a function that gives the likelihood at draws of the sites, and a datum.
MARGINS: dict[str, tuple[Any, Callable[[], Any], Tensor]] = {
    "StudentT": (
        dist.StudentT(4.0, LOC, SCALE),
        lambda: Normal(LOC, SCALE * Gamma(torch.tensor(2.0).double(), 2.0).sample(DRAWS).rsqrt()),
        torch.tensor(2.0, dtype=DOUBLE),
    ),
    "Cauchy": (
        dist.Cauchy(LOC, SCALE),
        lambda: Normal(LOC, SCALE * Gamma(torch.tensor(0.5).double(), 0.5).sample(DRAWS).rsqrt()),
        torch.tensor(2.0, dtype=DOUBLE),
    ),
    "GammaPoisson": (
        dist.GammaPoisson(SCALE, 0.5),
        lambda: Poisson(Gamma(SCALE, 0.5).sample(DRAWS)),
        torch.tensor(2.0, dtype=DOUBLE),
    ),
    "BetaBinomial": (
        dist.BetaBinomial(SCALE, 2.0, 5),
        lambda: Binomial(5, Beta(SCALE, 2.0).sample(DRAWS)),
        torch.tensor(2.0, dtype=DOUBLE),
    ),
    "DirichletMultinomial": (
        dist.DirichletMultinomial(5 * PROBS, 4),
        lambda: Multinomial(4, Dirichlet(5 * PROBS).sample(DRAWS)),
        torch.tensor([1.0, 2.0, 1.0], dtype=DOUBLE),
    ),
    "MixtureSameFamily": (
        dist.MixtureSameFamily(Categorical(PROBS), Normal(torch.arange(3.0).double(), SCALE)),
        lambda: Normal(torch.arange(3.0).double()[Categorical(PROBS).sample(DRAWS)], SCALE),
        torch.tensor(1.5, dtype=DOUBLE),
    ),
}


@pytest.mark.parametrize("name", MARGINS)
def test_a_rewrite_has_the_density_as_its_margin(name: str) -> None:
    torch.manual_seed(0)
    whole, rewritten, value = MARGINS[name]
    each = rewritten().log_prob(value).exp()
    assert abs(float(each.mean() - whole.log_prob(value).exp())) < 5 * float(each.std()) / math.sqrt(len(each))


def test_two_gammas_are_a_half_cauchy() -> None:
    torch.manual_seed(0)
    rate = Gamma(torch.tensor(0.5, dtype=DOUBLE), 1 / SCALE**2).sample(DRAWS)
    scale = Gamma(torch.tensor(0.5, dtype=DOUBLE), rate).sample().rsqrt()
    for level in (0.2, 0.5, 0.8):
        share = float((scale < SCALE * math.tan(math.pi * level / 2)).double().mean())
        assert share == pytest.approx(level, abs=5 * math.sqrt(level * (1 - level) / len(scale)))


def heavy(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
    tau = pyro.sample("tau", dist.Gamma(SCALE, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.StudentT(4.0, loc.sum(), tau.rsqrt()), obs=x)


def rewritten(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
    tau = pyro.sample("tau", dist.Gamma(SCALE, 1.0))
    with pyro.plate("data", len(x)):
        trust = pyro.sample("trust", dist.Gamma(torch.tensor(2.0, dtype=DOUBLE), 2.0))
        pyro.sample("x", dist.Normal(loc.sum(), tau.rsqrt() * trust.rsqrt()), obs=x)


def test_the_error_has_the_rewrite_which_fits_and_explain_says_that_reparam_does_it() -> None:
    x = torch.randn(10, dtype=DOUBLE)
    with pytest.raises(MissingRuleError) as caught:
        CAVI(heavy, AutoConjugate(heavy)).run(x)
    assert f"Write {REWRITES['StudentT']}, which is the same model" in str(caught.value)
    told = AutoConjugate(heavy).explain(x)
    assert REWRITES["StudentT"] in told
    assert told.splitlines()[-1].startswith("With AutoConjugate(model, reparam=True), which adds sites, all sites have")
    guide, itself = AutoConjugate(rewritten), AutoConjugate(heavy, reparam=True)
    CAVI(rewritten, guide).run(x, tol=1e-12)
    CAVI(heavy, itself).run(x, tol=1e-12)
    assert itself.elbo() == pytest.approx(guide.elbo(), rel=1e-8)
    assert "reparam=True" not in itself.explain(x)


def test_explain_promises_no_rewrite_that_there_is_not() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w.sum().exp() * w[0], 1.0), obs=x)
            pyro.sample("y", dist.VonMises(w.sum(), 2.0), obs=x)
            pyro.sample("z", Bernoulli(torch.tensor(0.5, dtype=DOUBLE)), obs=(x > 0).double())

    told = AutoConjugate(model).explain(torch.randn(5, dtype=DOUBLE))
    assert "VonMises" in told and "which is the same model" not in told and "reparam=True" not in told
