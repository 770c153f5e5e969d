"""Zero-inflated counts and mixtures by a mask, beside their components alone and integrals of the model as written."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from pyro_latent.reparam import ZeroInflatedReparam

Model = Callable[..., Any]
X = torch.tensor([0.5, 1.2, -0.3, 2.0, 4.0, -1.5, 0.1, 9.0], dtype=torch.float64)
COUNT = torch.tensor([0.0, 0.0, 3.0, 1.0, 0.0, 7.0, 2.0, 0.0], dtype=torch.float64)
INPUT = torch.tensor([0.3, 1.5, 0.7, -0.4, 2.0, 1.0, -0.2, -2.0], dtype=torch.float64)
THREE = torch.tensor(3.0).double()


def fit(model: Model, *args: Any) -> tuple[AutoConjugate, Any]:
    """A fit with auxiliary sites, whose ELBO never fell."""
    guide = AutoConjugate(model, reparam=True)
    found = CAVI(model, guide).run(*args, max_steps=3000, tol=1e-12)
    assert bool((found.elbo.diff() > -1e-8).all())
    return guide, found


def unit(name: str) -> Tensor:
    found: Tensor = pyro.sample(name, dist.Beta(torch.tensor(1.0).double(), 2.0))
    return found


def by_probs(y: Tensor) -> None:
    p, gate = unit("p"), unit("gate")
    with pyro.plate("n", 8):
        pyro.sample("y", dist.ZeroInflatedNegativeBinomial(THREE, probs=p, gate=gate), obs=y)


def by_logits(y: Tensor, gate: Any = None, size: int = 8, mask: Any = True) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.tensor(0.0).double(), 1.0))
    gate = unit("gate") if gate is None else gate
    logits = slope * INPUT[:size] - 0.3
    with pyro.plate("n", size), poutine.mask(mask=mask):
        pyro.sample("y", dist.ZeroInflatedNegativeBinomial(THREE, logits=logits, gate=gate), obs=y)


def of_gamma_poisson(y: Tensor) -> None:
    rate, gate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0).double(), 2.0)), unit("gate")
    with pyro.plate("n", 8):
        pyro.sample("y", dist.ZeroInflatedDistribution(dist.GammaPoisson(THREE, rate), gate=gate), obs=y)


def evidence(counts: Callable[[np.ndarray], np.ndarray], prior: Any, axis: np.ndarray) -> float:
    """The log evidence, by a grid over the gate and over what the log probabilities of counts, [axis, data], are of."""
    gate = np.linspace(0.0005, 0.9995, 1000)
    pmf = np.exp(counts(axis))
    zero = (COUNT.numpy() == 0) * gate[:, None, None]
    likelihood = np.log(zero + (1 - gate[:, None, None]) * pmf + 1e-300).sum(-1)
    joint = likelihood + scipy.stats.beta(1, 2).logpdf(gate)[:, None] + prior.logpdf(axis)
    return float(scipy.special.logsumexp(joint)) + math.log(gate[1] - gate[0]) + math.log(axis[1] - axis[0])


def negative_binomial(probs: np.ndarray) -> np.ndarray:
    return scipy.stats.nbinom(3.0, 1 - probs).logpmf(COUNT.numpy())


CASES: list[tuple[Model, Any, Any, np.ndarray, tuple[str, ...]]] = [
    (by_probs, lambda p: negative_binomial(p[:, None]), scipy.stats.beta(1, 2), np.linspace(5e-4, 0.9995, 800), ()),
    (
        by_logits,
        lambda s: negative_binomial(scipy.special.expit(s[:, None] * INPUT.numpy() - 0.3)),
        scipy.stats.norm(0, 1),
        np.linspace(-6, 6, 801),
        ("y_component0_weight",),
    ),
    (
        of_gamma_poisson,
        lambda r: negative_binomial(1 / (1 + r[:, None])),
        scipy.stats.gamma(2.0, scale=0.5),
        np.linspace(1e-3, 8, 1200),
        ("y_component0_rate",),
    ),
]


@pytest.mark.parametrize(("model", "counts", "prior", "axis", "auxiliary"), CASES, ids=[c[0].__name__ for c in CASES])
def test_the_elbo_is_below_the_evidence_of_the_model_as_written(
    model: Model, counts: Any, prior: Any, axis: np.ndarray, auxiliary: tuple[str, ...]
) -> None:
    guide, found = fit(model, COUNT)
    assert 0 < evidence(counts, prior, axis) - guide.elbo() < 1.5
    assert found.augmented == ("y_gate", *auxiliary)
    gates = guide.posterior(auxiliary=True)["y_gate"].probs
    assert bool((gates[COUNT > 0] == 0).all())
    assert bool((gates[COUNT == 0] > 0.05).all())


def test_what_is_hardly_inflated_is_a_negative_binomial() -> None:
    def plain(y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.tensor(0.0).double(), 1.0))
        with pyro.plate("n", 8):
            pyro.sample("y", dist.NegativeBinomial(THREE, logits=slope * INPUT - 0.3), obs=y)

    inflated, _ = fit(by_logits, COUNT, torch.tensor(1e-13).double())
    assert inflated.elbo() == pytest.approx(fit(plain, COUNT)[0].elbo(), abs=1e-8)


def test_hidden_counts() -> None:
    seen = torch.arange(8) < 6
    hidden, _ = fit(by_logits, torch.where(seen, COUNT, torch.nan), None, 8, seen)
    whole, _ = fit(by_logits, COUNT[:6], None, 6)
    assert hidden.elbo() == pytest.approx(whole.elbo(), abs=1e-8)


def test_the_entry_alone_leaves_what_is_no_count() -> None:
    alone = poutine.reparam(by_probs, config={"y": ZeroInflatedReparam()})
    guide = AutoConjugate(alone)
    CAVI(alone, guide).run(COUNT, max_steps=500)
    assert "y_gate" in guide.posterior()

    def hurdle(y: Tensor) -> None:
        pyro.sample("v", dist.Normal(0.0, 1.0))
        inflated = dist.ZeroInflatedDistribution(dist.Laplace(torch.tensor(0.0).double(), 1.0), gate=torch.tensor(0.2))
        with pyro.plate("n", 8):
            pyro.sample("y", inflated, obs=y)

    guide, found = fit(hurdle, X)
    assert found.augmented == ()
    density = 0.8 * torch.distributions.Laplace(0.0, 1.0).log_prob(X).exp()
    assert guide.elbo() == pytest.approx(float(density.log().sum()), abs=1e-5)


# By a known mask, and by a change point.

MASK = torch.tensor([True, False, False, True, True, False, True, False])


def masked(x: Tensor) -> None:
    m, s = pyro.sample("m", dist.Normal(0.0 * x[0], 3.0)), pyro.sample("s", dist.Normal(0.0 * x[0], 3.0))
    with pyro.plate("n", 8):
        pyro.sample("y", dist.MaskedMixture(MASK, dist.StudentT(4.0, m, 1.5), dist.Laplace(s, 1.0)), obs=x)


def apart(x: Tensor) -> None:
    m, s = pyro.sample("m", dist.Normal(0.0 * x[0], 3.0)), pyro.sample("s", dist.Normal(0.0 * x[0], 3.0))
    with pyro.plate("first", 4):
        pyro.sample("a", dist.StudentT(4.0, m, 1.5), obs=x[~MASK])
    with pyro.plate("second", 4):
        pyro.sample("b", dist.Laplace(s, 1.0), obs=x[MASK])


def test_components_of_a_known_mask_are_sites_of_their_own() -> None:
    guide, found = fit(masked, X)
    assert guide.elbo() == pytest.approx(fit(apart, X)[0].elbo(), abs=1e-7)
    assert set(found.augmented) == {"y_component0_gamma", "y_component1_weight"}


def test_a_change_point_between_outliers_is_below_its_evidence() -> None:
    data = torch.tensor([0.1, -0.4, 0.3, 4.2, 2.7, 3.1], dtype=torch.float64)

    def change(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(x.new_tensor(2.0), 2.0))
        at = pyro.sample("at", dist.Categorical(x.new_ones(6)))
        with pyro.plate("n", 6):
            mixed = dist.MaskedMixture(
                torch.arange(6) >= at, dist.StudentT(3.0, 0.0 * m, 0.5), dist.StudentT(3.0, m, 0.5)
            )
            pyro.sample("y", mixed, obs=x)

    guide, _ = fit(change, data)
    axis = np.linspace(-12, 16, 4001)
    before = scipy.stats.t(3.0, 0, 0.5).logpdf(data.numpy())
    after = scipy.stats.t(3.0, axis[:, None], 0.5).logpdf(data.numpy())
    places = np.stack([before[:k].sum() + after[:, k:].sum(1) for k in range(6)])
    joint = places - math.log(6) + scipy.stats.norm(2, 2).logpdf(axis)
    exact = float(scipy.special.logsumexp(joint)) + math.log(axis[1] - axis[0])
    assert 0 < exact - guide.elbo() < 1.0
    shares = scipy.special.softmax(scipy.special.logsumexp(joint, 1))
    assert int(guide.posterior()["at"].probs.argmax()) == int(shares.argmax()) == 3
