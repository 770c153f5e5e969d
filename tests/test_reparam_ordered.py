"""Ordered probit by truncated normals: the law of its weights, and regressions beside those by hand and integrals."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, DataError, Gibbs, NotConjugateError
from pyro_latent.distributions import TruncatedNormal
from pyro_latent.families import family_with_constants
from pyro_latent.reparam import Conjugate, OrderedProbitReparam
from pyro_latent.reparam.ordered_probit import WeightedOrderedProbit

Model = Callable[..., Any]
INF = math.inf
CUTS = torch.tensor([-1.0, 0.5, 1.2]).double()
INPUTS = torch.tensor([0.3, 1.5, 0.7, -0.4, 2.0, 1.0, -0.2, -2.0, 0.6, -1.1]).double()
DESIGN = torch.stack([torch.ones(10).double(), INPUTS], -1)
LABELS = torch.tensor([0, 1, 3, 2, 3, 0, 2, 0, 1, 1])
SEEN = torch.arange(10) < 7


def fit(model: Model, *args: Any) -> tuple[AutoConjugate, Any]:
    """A fit with auxiliary sites, whose ELBO never fell."""
    guide = AutoConjugate(model, reparam=True)
    found = CAVI(model, guide).run(*args, max_steps=2000, tol=1e-12)
    assert bool((found.elbo.diff() > -1e-8).all())
    return guide, found


# The law of the weights.

ENDS = [(-1.0, 0.5, 0.0), (-1.0, 0.5, 3.0), (0.0, INF, -20.0), (-INF, 2.0, 40.0), (30.0, 31.0, 0.0), (-INF, INF, 1.0)]


@pytest.mark.parametrize(("low", "high", "tilt"), [*ENDS, (5.0, 5.01, -30.0), (-40.0, -39.0, 10.0)])
def test_truncated_normals_have_the_moments_and_draws_of_scipys(low: float, high: float, tilt: float) -> None:
    first, second, third = (torch.tensor(v, dtype=torch.float64) for v in (low, high, tilt))
    ours = TruncatedNormal(first, second, third)
    law = scipy.stats.truncnorm(low - tilt, high - tilt, loc=tilt)
    assert float(ours.mean) == pytest.approx(law.mean(), rel=1e-6)
    assert float(ours.variance) == pytest.approx(law.var(), rel=1e-3)
    pyro.set_rng_seed(0)
    assert scipy.stats.kstest(ours.expand((4000,)).sample().numpy(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize(("low", "high", "tilt"), ENDS)
def test_the_family_of_truncated_normals_is_that_of_the_law(low: float, high: float, tilt: float) -> None:
    """The mean is the slope of the log normalizer, and densities differ by it."""
    ends = torch.tensor(low).double(), torch.tensor(high).double()
    ours = TruncatedNormal(*ends, torch.tensor(tilt).double())
    family = family_with_constants(TruncatedNormal(*ends))
    assert family is not None
    natural = family.from_params({"tilt": ours.tilt}).map(lambda t: t.requires_grad_())
    (slope,) = torch.autograd.grad(family.log_normalizer(natural), natural.x)
    assert float(slope) == pytest.approx(float(ours.mean), rel=1e-6)
    torch.testing.assert_close(family.to_params(natural.map(torch.detach))["tilt"], ours.tilt)
    law = scipy.stats.truncnorm(low - tilt, high - tilt, loc=tilt)
    place = float(law.ppf(0.3))
    ratio = float(ours.log_ratio(torch.tensor(place, dtype=torch.float64)))
    assert ratio == pytest.approx(law.logpdf(place) - scipy.stats.norm.logpdf(place), abs=1e-8)


@pytest.mark.parametrize("place", [-3.0, 0.2, 9.0])
@pytest.mark.parametrize(("low", "high"), [(-INF, -1.0), (-1.0, 0.5), (1.2, INF)])
def test_the_mean_over_the_weight_is_the_probability(place: float, low: float, high: float) -> None:
    law = TruncatedNormal(torch.tensor(low).double(), torch.tensor(high).double())

    def joint(weight: float) -> float:
        arguments = SimpleNamespace(predictor=place, weight=weight, log_mass=float(law.log_normalizer))
        ratio = float(law.log_ratio(torch.tensor(weight, dtype=torch.float64)))
        return math.exp(WeightedOrderedProbit.log_factor(arguments, None) + ratio + scipy.stats.norm.logpdf(weight))

    expected = scipy.stats.norm.cdf(high - place) - scipy.stats.norm.cdf(low - place)
    found = scipy.integrate.quad(
        joint, max(low, -12.0), min(high, 22.0), points=(min(max(place, low), high),), limit=200
    )
    assert found[0] == pytest.approx(expected, rel=1e-7)


# Regressions, however the probabilities are written.


def joined(levels: Tensor) -> Tensor:
    zero, one = torch.zeros(len(levels), 1).to(levels.dtype), torch.ones(len(levels), 1).to(levels.dtype)
    return torch.cat([levels, one], -1) - torch.cat([zero, levels], -1)


def padded(levels: Tensor) -> Tensor:
    low = torch.nn.functional.pad(levels, (1, 0))
    return torch.nn.functional.pad(low, (0, 1), value=1.0).diff(dim=-1)


def sliced(levels: Tensor) -> Tensor:
    zero, one = torch.zeros(len(levels), 1).to(levels.dtype), torch.ones(len(levels), 1).to(levels.dtype)
    ends = torch.cat([zero, levels, one], -1)
    return ends[..., 1:] - ends[..., :-1]


DIFFERENCES = {f.__name__: f for f in (joined, padded, sliced)}
LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "cdf": lambda t: dist.Normal(0.0, 1.0).cdf(t),
    "ndtr": torch.special.ndtr,
    "erf": lambda t: 0.5 * (1 + torch.erf(t / math.sqrt(2))),
    "other outcome": lambda t: 1 - torch.special.ndtr(-t),
}


def ordered(differences: str = "joined", link: str = "cdf") -> Model:
    def model(y: Tensor, design: Tensor, size: int = 10, mask: Any = True) -> None:
        w = pyro.sample("w", dist.Normal(design.new_zeros(2), 1.0).to_event(1))
        levels = LINKS[link](CUTS.to(design) - (design @ w).unsqueeze(-1))
        with pyro.plate("n", size, subsample_size=len(y)), poutine.mask(mask=mask):
            pyro.sample("y", dist.Categorical(DIFFERENCES[differences](levels)), obs=y)

    return model


def by_hand() -> tuple[float, Tensor]:
    """The fixed point of Albert and Chib's variational form: w is normal, and z normal between the cutpoints of y."""
    ends = torch.cat([torch.tensor([-INF]), CUTS, torch.tensor([INF])]).double()
    low, high = ends[LABELS], ends[LABELS + 1]
    covariance, mean = torch.linalg.inv(torch.eye(2).double() + DESIGN.mT @ DESIGN), torch.zeros(2).double()
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), 1.0)
    for _ in range(500):
        f = DESIGN @ mean
        mass = normal.cdf(high - f) - normal.cdf(low - f)
        density = [torch.where(e.isfinite(), normal.log_prob(e.nan_to_num() - f).exp(), 0.0) for e in (low, high)]
        mean = covariance @ (DESIGN.mT @ (f + (density[0] - density[1]) / mass))
    spread = ((DESIGN @ covariance) * DESIGN).sum()
    divergence = 0.5 * (covariance.trace() + mean @ mean - 2 - torch.logdet(covariance))
    return float(mass.log().sum() - spread / 2 - divergence), mean


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("differences", DIFFERENCES)
def test_an_ordered_probit_regression_is_that_by_hand(differences: str, link: str) -> None:
    guide, found = fit(ordered(differences, link), LABELS, DESIGN)
    bound, mean = by_hand()
    assert guide.elbo() == pytest.approx(bound, abs=1e-7)
    torch.testing.assert_close(guide.posterior()["w"].mean, mean, atol=1e-5, rtol=0.0)
    assert found.augmented == ("y_weight",)


def exact() -> tuple[float, np.ndarray, np.ndarray]:
    """The log evidence, and the posterior means and standard deviations, on a grid."""
    axis = np.linspace(-5, 5, 401)
    first, second = np.meshgrid(axis, axis, indexing="ij")
    ends = np.array([-INF, *CUTS.tolist(), INF])
    f = first[..., None] + second[..., None] * INPUTS.numpy()
    mass = scipy.special.ndtr(ends[LABELS.numpy() + 1] - f) - scipy.special.ndtr(ends[LABELS.numpy()] - f)
    joint = np.log(mass + 1e-300).sum(-1) + scipy.stats.norm.logpdf(first) + scipy.stats.norm.logpdf(second)
    total = scipy.special.logsumexp(joint)
    weights = np.exp(joint - total)
    mean = np.array([(weights * v).sum() for v in (first, second)])
    square = np.array([(weights * v**2).sum() for v in (first, second)])
    return total + 2 * math.log(axis[1] - axis[0]), mean, np.sqrt(square - mean**2)


def test_an_ordered_probit_regression_is_near_its_exact_posterior() -> None:
    guide, _ = fit(ordered(), LABELS, DESIGN)
    evidence, mean, spread = exact()
    assert 0 < evidence - guide.elbo() < 1.0
    assert (np.abs(guide.posterior()["w"].mean.numpy() - mean) / spread).max() < 0.1


@pytest.mark.slow
def test_gibbs_with_truncated_normals_draws_from_the_exact_posterior() -> None:
    """Albert and Chib (1993), §4, with known cutpoints."""
    pyro.set_rng_seed(0)
    strategy: Any = Conjugate()
    mcmc = Gibbs(poutine.reparam(ordered(), config=strategy), 1500, num_chains=4, disable_progbar=True)
    mcmc.run(LABELS, DESIGN)
    _, mean, spread = exact()
    drawn = mcmc.get_samples()["w"]
    np.testing.assert_allclose(drawn.mean(0).numpy(), mean, atol=0.05)
    np.testing.assert_allclose(drawn.std(0).numpy(), spread, rtol=0.08)


def test_hidden_and_float32_data_and_minibatches() -> None:
    model = ordered()
    hidden, _ = fit(model, torch.where(SEEN, LABELS, 99), DESIGN, 10, SEEN)
    whole, _ = fit(model, LABELS[:7], DESIGN[:7], 7)
    assert hidden.elbo() == pytest.approx(whole.elbo(), abs=1e-8)
    single = AutoConjugate(model, reparam=True)
    CAVI(model, single).run(LABELS, DESIGN.float())
    assert single.elbo() == pytest.approx(by_hand()[0], rel=1e-5)
    batches = [(LABELS[i : i + 5], DESIGN[i : i + 5]) for i in (0, 5)]
    guide = AutoConjugate(model, reparam=True)
    CAVI(model, guide, memoised=True).run_batches(batches, epochs=40, size=10)
    found = guide.posterior(*batches[0], size=10)["w"].mean
    torch.testing.assert_close(found, by_hand()[1], atol=2e-3, rtol=0.0)


def test_the_entry_alone_and_wrong_data() -> None:
    alone = poutine.reparam(ordered(), config={"y": OrderedProbitReparam()})
    guide = AutoConjugate(alone)
    CAVI(alone, guide).run(LABELS, DESIGN, max_steps=500, tol=1e-12)
    assert guide.elbo() == pytest.approx(by_hand()[0], abs=1e-6)
    assert "y_weight" in guide.posterior()
    with pytest.raises(DataError, match=r"'y' in IntegerInterval.*got 1 of 10 values outside"):
        fit(ordered(), LABELS.index_fill(0, torch.tensor([3]), 4), DESIGN)


def of_latent_cutpoints(f: Tensor, w: Tensor) -> Tensor:
    return joined(torch.special.ndtr(CUTS + torch.stack([0 * w[0], w[1], w[1]]) - f.unsqueeze(-1)))


def of_logistic(f: Tensor, w: Tensor) -> Tensor:
    return joined(torch.sigmoid(CUTS - f.unsqueeze(-1)))


def smoothed(f: Tensor, w: Tensor) -> Tensor:
    return 0.97 * joined(torch.special.ndtr(CUTS - f.unsqueeze(-1))) + 0.01


def turned(f: Tensor, w: Tensor) -> Tensor:
    return joined(torch.special.ndtr(CUTS - f.unsqueeze(-1))).flip(-1)


def written(f: Tensor, w: Tensor) -> Tensor:
    probs = joined(torch.special.ndtr(CUTS - f.unsqueeze(-1)))
    probs[0] = 0.25
    return probs


@pytest.mark.parametrize(
    "change", [of_latent_cutpoints, of_logistic, smoothed, turned, written], ids=lambda f: f.__name__
)
def test_other_probabilities_are_refused(change: Any) -> None:
    """Their likelihood is another, and the error names the site."""

    def model(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        with pyro.plate("n", 10):
            pyro.sample("y", dist.Categorical(change(DESIGN @ w, w)), obs=y)

    with pytest.raises(NotConjugateError, match="Site 'y'"):
        fit(model, LABELS)


@pytest.mark.parametrize("late", [False, True], ids=["into the probabilities", "into the predictor"])
def test_a_write_after_a_link_is_seen(late: bool) -> None:
    """Into the probabilities, the model is another, and refused; into the predictor, they were computed before."""

    def model(y: Tensor, writes: bool) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        f = DESIGN @ w
        probs = torch.sigmoid(f)
        if writes:
            (f if late else probs)[0] = 0.5
        with pyro.plate("n", 10):
            pyro.sample("y", dist.Bernoulli(probs), obs=y)

    label = (LABELS > 1).double()
    if late:
        assert fit(model, label, True)[0].elbo() == pytest.approx(fit(model, label, False)[0].elbo(), abs=1e-9)
    else:
        with pytest.raises(NotConjugateError, match="Site 'y'"):
            fit(model, label, True)
