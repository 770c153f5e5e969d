"""Entries with weights, each beside integrals of the model as it was written."""

from __future__ import annotations

import functools
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

from pyro_latent import CAVI, AutoConjugate, NotConjugateError
from pyro_latent.distributions import InverseGaussian, PositiveNormal, Weight
from pyro_latent.families import family_with_constants
from pyro_latent.reparam import Conjugate
from pyro_latent.reparam.probit import WeightedProbit

Model = Callable[..., Any]
X = torch.tensor([0.5, 1.2, -0.3, 2.0, 4.0, -1.5, 0.1, 9.0], dtype=torch.float64)
INPUTS = torch.stack([torch.ones(8).double(), torch.tensor([0.3, 1.5, 0.7, -0.4, 2.0, 1.0, -0.2, -2.0]).double()], -1)
SEEN = torch.tensor([True] * 6 + [False] * 2)


def fit(model: Model, *args: Any) -> tuple[AutoConjugate, Any]:
    """A fit with auxiliary sites, whose ELBO never fell."""
    guide = AutoConjugate(model, reparam=True)
    found = CAVI(model, guide).run(*args, max_steps=2000, tol=1e-12)
    assert bool((found.elbo.diff() > -1e-8).all())
    return guide, found


def augmented(model: Model) -> Model:
    strategy: Any = Conjugate()
    found: Model = poutine.reparam(model, config=strategy)
    return found


def marginal(fn: Any, value: float, base: Any) -> float:
    """The density of an observed value, with its one weight integrated out, whose prior has the law ``base``."""

    def model() -> None:
        pyro.sample("y", fn, obs=torch.tensor(value).double())

    def joint(log_place: float) -> float:
        place = torch.tensor(math.exp(log_place)).double()
        trace: Any = poutine.trace(poutine.condition(augmented(model), {"y_weight": place})).get_trace()
        prior = base.logpdf(float(place)) + float(trace.nodes["y_weight"]["fn"].log_ratio(place))
        return math.exp(prior + float(trace.nodes["y"]["fn"].log_prob(torch.tensor(value).double())) + log_place)

    return float(scipy.integrate.quad(joint, -20, 10, points=(-8, -2, 0, 2), epsabs=1e-13, limit=200)[0])


def posterior_of_two(log_joint: Callable[[np.ndarray, np.ndarray], np.ndarray], wide: float = 10.0) -> Any:
    """The log evidence of two coefficients, and their posterior means and standard deviations, on a grid."""
    axis = np.linspace(-wide, wide, 401)
    first, second = np.meshgrid(axis, axis, indexing="ij")
    density = log_joint(first, second)
    total = scipy.special.logsumexp(density)
    weights = np.exp(density - total)
    mean = np.array([(weights * first).sum(), (weights * second).sum()])
    square = np.array([(weights * first**2).sum(), (weights * second**2).sum()])
    return total + 2 * math.log(axis[1] - axis[0]), mean, (square - mean**2) ** 0.5


def predictor(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first[..., None] * INPUTS[:, 0].numpy() + second[..., None] * INPUTS[:, 1].numpy()


# The laws of the weights.


@pytest.mark.parametrize("tilt", [0.05, 1.0, 30.0])
def test_inverse_gaussian_weights_have_the_moments_and_draws_of_scipys(tilt: float) -> None:
    check_law(InverseGaussian(torch.tensor(tilt).double()), scipy.stats.invgauss(1 / tilt), scipy.stats.levy())


@pytest.mark.parametrize("tilt", [-2000.0, -35.0, -29.0, -6.0, -3.0, 0.0, 2.0, 40.0])
def test_positive_normal_weights_have_the_moments_and_draws_of_scipys(tilt: float) -> None:
    law = scipy.stats.truncnorm(-tilt, np.inf, loc=tilt) if tilt > -100 else scipy.stats.expon(scale=-1 / tilt)
    check_law(PositiveNormal(torch.tensor(tilt).double()), law, scipy.stats.halfnorm() if tilt > -100 else None)


def check_law(ours: Weight, law: Any, base: Any) -> None:
    """Beside scipy's: moments, draws, and the density relative to the law without a tilt, if it is given."""
    assert float(ours.mean) == pytest.approx(law.mean(), rel=1e-6)
    assert float(ours.variance) == pytest.approx(law.var(), rel=1e-3)
    pyro.set_rng_seed(0)
    assert scipy.stats.kstest(ours.expand((4000,)).sample().numpy(), law.cdf).pvalue > 1e-3
    if base is not None:
        place = law.ppf([0.1, 0.7])
        ratio = ours.log_ratio(torch.from_numpy(place)).numpy()
        np.testing.assert_allclose(ratio, law.logpdf(place) - base.logpdf(place), rtol=1e-9, atol=1e-9)
    family = family_with_constants(ours)
    assert family is not None
    natural = family.from_params({"tilt": ours.tilt}).map(lambda t: t.requires_grad_())
    (slope,) = torch.autograd.grad(family.log_normalizer(natural), natural.x)
    assert slope.item() == pytest.approx(float(ours.mean), rel=1e-6)
    torch.testing.assert_close(family.to_params(natural.map(torch.detach))["tilt"], ours.tilt)
    assert bool(family.in_domain(natural.map(torch.detach)))
    assert not bool(family.in_domain(natural.map(lambda t: t.detach() * torch.nan)))
    assert float(type(ours)(ours.tilt.float()).mean) == pytest.approx(float(ours.mean), rel=1e-6)


# Laplace.


def laplace(y: Tensor, inputs: Tensor, size: int = 8, mask: Any = True) -> None:
    """Robust regression."""
    w = pyro.sample("w", dist.Normal(inputs.new_zeros(2), 2.0).to_event(1))
    with pyro.plate("n", size, subsample_size=len(y)), poutine.mask(mask=mask):
        pyro.sample("y", dist.Laplace(inputs @ w, 1.5), obs=y)


def lasso(y: Tensor, inputs: Tensor) -> None:
    """Park and Casella (2008), of a known noise and width."""
    w = pyro.sample("w", dist.Laplace(inputs.new_zeros(2), 0.7).to_event(1))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(inputs @ w, 2.0), obs=y)


@pytest.mark.parametrize("value", [0.3, -4.0, 60.0])
def test_the_mean_over_the_weight_is_laplaces_density(value: float) -> None:
    fn = dist.Laplace(torch.tensor(0.5).double(), torch.tensor(1.5).double())
    expected = float(fn.log_prob(torch.tensor(value)).exp())
    assert marginal(fn, value, scipy.stats.levy()) == pytest.approx(expected, rel=1e-8)


def of_laplace(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    likelihood = scipy.stats.laplace(predictor(first, second), 1.5).logpdf(X.numpy()).sum(-1)
    prior = scipy.stats.norm(0, 2)
    return prior.logpdf(first) + prior.logpdf(second) + likelihood


def of_lasso(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    likelihood = scipy.stats.norm(predictor(first, second), 2.0).logpdf(X.numpy()).sum(-1)
    prior = scipy.stats.laplace(0, 0.7)
    return prior.logpdf(first) + prior.logpdf(second) + likelihood


@pytest.mark.parametrize(
    ("model", "log_joint", "auxiliary", "gap", "error"),
    [(laplace, of_laplace, "y_weight", 1.2, 0.3), (lasso, of_lasso, "w_weight", 0.5, 0.2)],
    ids=["data", "prior"],
)
def test_a_regression_with_laplace_is_near_its_exact_posterior(
    model: Model, log_joint: Any, auxiliary: str, gap: float, error: float
) -> None:
    """Means to a share of a standard deviation; the bound is below the evidence of the model as written."""
    guide, found = fit(model, X, INPUTS)
    evidence, mean, spread = posterior_of_two(log_joint)
    assert 0 < evidence - guide.elbo() < gap
    assert (np.abs(guide.posterior()["w"].mean.numpy() - mean) / spread).max() < error
    assert found.augmented == (auxiliary,)
    assert set(guide.posterior()) == {"w"}
    assert "InverseGaussian" in guide.explain(X, INPUTS)


def test_the_bound_of_laplace_has_the_root_of_the_expected_square() -> None:
    """At the optimum of the weight, E log p is −√(E (x − m)²) / s − log 2 s: what is left of E |x − m| by Jensen."""
    guide, _ = fit(laplace, X, INPUTS)
    q = guide.posterior()["w"]
    offset = X - INPUTS @ q.mean
    square = offset**2 + ((INPUTS @ q.covariance_matrix) * INPUTS).sum(-1)
    likelihood = (-square.sqrt() / 1.5 - math.log(3.0)).sum()
    prior = torch.distributions.MultivariateNormal(torch.zeros(2).double(), 4.0 * torch.eye(2).double())
    divergence = torch.distributions.kl_divergence(q, prior)
    assert guide.elbo() == pytest.approx(float(likelihood - divergence), abs=1e-7)


def test_laplace_takes_hidden_and_float32_data_and_minibatches() -> None:
    hidden, _ = fit(laplace, torch.where(SEEN, X, torch.nan), INPUTS, 8, SEEN)
    whole, _ = fit(laplace, X[SEEN], INPUTS[SEEN], 6)
    assert hidden.elbo() == pytest.approx(whole.elbo(), abs=1e-8)
    single = AutoConjugate(laplace, reparam=True)
    CAVI(laplace, single).run(X.float(), INPUTS.float())
    full, _ = fit(laplace, X, INPUTS)
    assert single.elbo() == pytest.approx(full.elbo(), rel=1e-5)
    batches = [(X[i : i + 2], INPUTS[i : i + 2]) for i in range(0, 8, 2)]
    guide = AutoConjugate(laplace, reparam=True)
    CAVI(laplace, guide, memoised=True).run_batches(batches, epochs=30, size=8)
    found = guide.posterior(*batches[0], size=8)["w"].mean
    torch.testing.assert_close(found, full.posterior()["w"].mean, atol=1e-3, rtol=0.0)


def test_data_at_a_known_location_are_left_as_they_are() -> None:
    """Their weight would be infinite, and the density is conjugate in a rate as it is written."""

    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        with pyro.plate("n", 2):
            pyro.sample("y", dist.Laplace(0.0, 1 / rate), obs=torch.tensor([0.0, 1.0]).double())

    guide, found = fit(model)
    assert found.augmented == ()
    assert float(guide.posterior()["rate"].concentration) == pytest.approx(3.0)


# A horseshoe, by the entry of HalfCauchy.


def horseshoe_of_events(y: Tensor, inputs: Tensor) -> None:
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    lam = pyro.sample("lam", dist.HalfCauchy(torch.ones(2)).to_event(1))
    w = pyro.sample("w", dist.Normal(0.0, tau * lam).to_event(1))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(inputs @ w, 1.0), obs=y)


def horseshoe_in_a_plate(y: Tensor, inputs: Tensor) -> None:
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(1.0).double()))
    with pyro.plate("features", 2):
        lam = pyro.sample("lam", dist.HalfCauchy(1.0))
    w = pyro.sample("w", dist.Normal(torch.zeros(2), lam * tau).to_event(1))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(inputs @ w, 1.0), obs=y)


def horseshoe_by_hand(y: Tensor, inputs: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(0.5, pyro.sample("tau_rate", dist.Gamma(0.5, 1.0))))
    with pyro.plate("features", 2):
        lam = pyro.sample("lam", dist.Gamma(0.5, pyro.sample("lam_rate", dist.Gamma(0.5, 1.0))))
    w = pyro.sample("w", dist.Normal(torch.zeros(2), (lam * tau).rsqrt()).to_event(1))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(inputs @ w, 1.0), obs=y)


@pytest.mark.parametrize("model", [horseshoe_of_events, horseshoe_in_a_plate], ids=lambda m: m.__name__)
def test_a_horseshoe_of_a_regression_is_that_of_gammas_by_hand(model: Model) -> None:
    guide, found = fit(model, X, INPUTS)
    by_hand = AutoConjugate(horseshoe_by_hand)
    CAVI(horseshoe_by_hand, by_hand).run(X, INPUTS, max_steps=2000, tol=1e-12)
    assert guide.elbo() == pytest.approx(by_hand.elbo(), abs=1e-7)
    assert set(found.augmented) == {"tau_rate", "tau_precision", "lam_rate", "lam_precision"}
    assert set(guide.posterior()) == {"tau", "lam", "w"}


# Probit, and a sigmoid of latents as a probability.


def from_cdf(logits: Tensor) -> Tensor:
    return dist.Normal(0.0, 1.0).cdf(logits)


def from_erf(logits: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(logits / math.sqrt(2)))


def from_ndtr(logits: Tensor) -> Tensor:
    return torch.special.ndtr(logits)


def from_other_outcome(logits: Tensor) -> Tensor:
    return 1 - torch.special.ndtr(-logits)


LABEL = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
LINKS = [from_cdf, from_erf, from_ndtr, from_other_outcome]


def classifier(link: Callable[[Tensor], Tensor]) -> Model:
    def model(y: Tensor, inputs: Tensor, size: int = 8, mask: Any = True) -> None:
        w = pyro.sample("w", dist.Normal(inputs.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("n", size, subsample_size=len(y)), poutine.mask(mask=mask):
            pyro.sample("y", dist.Bernoulli(link(inputs @ w)), obs=y)

    return model


@functools.cache
def probit_bound() -> tuple[float, Tensor]:
    """The fixed point of Albert and Chib's variational form, by hand: w is normal, and z normal on the side of y."""
    sign, covariance = 2 * LABEL - 1, torch.linalg.inv(torch.eye(2).double() + INPUTS.mT @ INPUTS)
    log_ndtr, mean = torch.special.log_ndtr, torch.zeros(2).double()
    for _ in range(500):
        f = INPUTS @ mean
        z = f + sign * (-(f**2) / 2 - 0.5 * math.log(2 * math.pi) - log_ndtr(sign * f)).exp()
        mean = covariance @ (INPUTS.mT @ z)
    spread = ((INPUTS @ covariance) * INPUTS).sum()
    divergence = 0.5 * (covariance.trace() + mean @ mean - 2 - torch.logdet(covariance))
    return float(log_ndtr(sign * (INPUTS @ mean)).sum() - spread / 2 - divergence), mean


@pytest.mark.parametrize("link", LINKS, ids=lambda f: f.__name__)
def test_a_probit_regression_is_that_by_hand_however_the_cdf_is_written(link: Any) -> None:
    guide, found = fit(classifier(link), LABEL, INPUTS)
    bound, mean = probit_bound()
    assert guide.elbo() == pytest.approx(bound, abs=1e-7)
    torch.testing.assert_close(guide.posterior()["w"].mean, mean, atol=1e-4, rtol=0.0)
    assert found.augmented == ("y_weight",)
    assert set(guide.posterior()) == {"w"}


def test_a_probit_regression_is_near_its_exact_posterior() -> None:
    def log_joint(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        sign = 2 * LABEL.numpy() - 1
        prior = scipy.stats.norm(0, 1)
        likelihood = scipy.special.log_ndtr(sign * predictor(first, second)).sum(-1)
        return prior.logpdf(first) + prior.logpdf(second) + likelihood

    guide, _ = fit(classifier(from_cdf), LABEL, INPUTS)
    evidence, mean, spread = posterior_of_two(log_joint, 7.0)
    assert 0 < evidence - guide.elbo() < 1.2
    assert (np.abs(guide.posterior()["w"].mean.numpy() - mean) / spread).max() < 0.4  # mean field draws it to zero
    assert "WeightedProbit" in guide.explain(LABEL, INPUTS)


@pytest.mark.parametrize("place", [-20.0, -1.5, 0.3, 12.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_the_mean_over_the_weight_is_the_normal_cdf(place: float, label: float) -> None:
    """Also where it is 1e-89."""
    expected = float(scipy.special.log_ndtr((2 * label - 1) * place))

    def joint(weight: float) -> float:
        factor = WeightedProbit.log_factor(SimpleNamespace(predictor=place, weight=weight), label)
        return math.exp(factor + 0.5 * math.log(2 / math.pi) - weight**2 / 2 - expected)

    mode = max(0.0, (2 * label - 1) * place)
    edges = np.arange(max(0.0, mode - 12), mode + 12)
    pieces = [scipy.integrate.quad(joint, a, a + 1, epsabs=1e-12)[0] for a in edges]
    assert sum(pieces) == pytest.approx(1, rel=1e-8)


def test_probit_takes_hidden_and_float32_data_and_minibatches() -> None:
    model = classifier(from_erf)
    hidden, _ = fit(model, torch.where(SEEN, LABEL, torch.nan), INPUTS, 8, SEEN)
    whole, _ = fit(model, LABEL[SEEN], INPUTS[SEEN], 6)
    assert hidden.elbo() == pytest.approx(whole.elbo(), abs=1e-8)
    single = AutoConjugate(model, reparam=True)
    CAVI(model, single).run(LABEL.float(), INPUTS.float())
    bound, mean = probit_bound()
    assert single.elbo() == pytest.approx(bound, rel=1e-4)
    batches = [(LABEL[i : i + 4], INPUTS[i : i + 4]) for i in range(0, 8, 4)]
    guide = AutoConjugate(model, reparam=True)
    CAVI(model, guide, memoised=True).run_batches(batches, epochs=30, size=8)
    torch.testing.assert_close(guide.posterior(*batches[0], size=8)["w"].mean, mean, atol=2e-3, rtol=0.0)


def test_two_scalars_in_a_probit_are_affine_too() -> None:
    """Also one alone, whose function a quadrature would take if it were not infinite in a tail."""

    def model(y: Tensor, inputs: Tensor) -> None:
        a, b = pyro.sample("a", dist.Normal(0.0, 1.0)), pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Bernoulli(probs=from_cdf(a + b * inputs[:, 1])), obs=y)
            pyro.sample("z", dist.Bernoulli(probs=from_ndtr(a * inputs[:, 1])), obs=1 - y)

    guide, found = fit(model, LABEL, INPUTS)
    assert set(found.augmented) == {"y_weight", "z_weight"}
    assert set(guide.posterior()) == {"a", "b"}


def test_a_sigmoid_of_latents_is_logits() -> None:
    def by_logits(y: Tensor, inputs: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(inputs.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=inputs @ w), obs=y)

    guide, found = fit(classifier(torch.sigmoid), LABEL, INPUTS)
    other, _ = fit(by_logits, LABEL, INPUTS)
    assert found.augmented == ("y_weight",)
    assert guide.elbo() == pytest.approx(other.elbo(), abs=1e-10)


def test_another_function_of_latents_is_no_link() -> None:
    """A cdf that is cut off is another function; the error names the site."""
    for link in (lambda f: torch.special.ndtr(f).clamp(1e-6, 1 - 1e-6), lambda f: 0.5 + torch.atan(f) / math.pi):
        with pytest.raises(NotConjugateError, match="Site 'y'"):
            fit(classifier(link), LABEL, INPUTS)


def test_the_error_of_a_probit_says_that_reparam_would_do() -> None:
    model = classifier(from_cdf)
    with pytest.raises(NotConjugateError, match=r"Or write AutoConjugate\(model, reparam=True\)"):
        CAVI(model, AutoConjugate(model)).run(LABEL, INPUTS)
