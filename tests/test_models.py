"""The textbook models by themselves: densities, closed forms and hand-written guides, without the engine."""

from __future__ import annotations

import math
import warnings
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
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from started_mixture import StartedMixture
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.distributions import NormalGamma
from pyro_latent.errors import ArgumentTypeError, DataError
from pyro_latent.models import gmm, normal_gamma
from pyro_latent.models.gmm.moments import moments_of

NORMAL_GAMMA = ("loc", "precision_scaling", "concentration", "rate")
PRIOR = {"prior_loc": 0.5, "prior_precision_scaling": 0.3, "prior_concentration": 1.5, "prior_rate": 2.0}


class Posteriors(dict[Any, Any]):
    """What an update is given: posteriors by site or block, and the scales of the sites' plates."""

    def __init__(self, *args: Any, scales: dict[str, Any] | None = None) -> None:
        super().__init__(*args)
        self.scales = {} if scales is None else scales


@pytest.fixture
def sample() -> Tensor:
    return torch.distributions.Normal(2.0, 1.7).sample((9,)).double()


def log_joint(model: Callable[..., None], values: dict[str, Tensor], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """The log density of each site of the model at given values."""
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return {name: site["log_prob"] for name, site in trace.nodes.items() if "log_prob" in site}


# ---------------------------------------------------------------------------------------------------- Normal-Gamma


def test_normal_gamma_model_has_the_densities_of_its_definition(sample: Tensor) -> None:
    mean, precision = 1.2, 0.7
    values = {
        "mean": torch.tensor(mean, dtype=torch.float64),
        "precision": torch.tensor(precision, dtype=torch.float64),
    }
    found = log_joint(normal_gamma.model, values, sample, **PRIOR)
    expected_precision = scipy.stats.gamma.logpdf(precision, 1.5, scale=1 / 2.0)
    expected_mean = scipy.stats.norm.logpdf(mean, 0.5, 1 / math.sqrt(0.3 * precision))
    expected_obs = scipy.stats.norm.logpdf(sample.numpy(), mean, 1 / math.sqrt(precision))
    assert found["precision"].item() == pytest.approx(expected_precision, rel=1e-12)
    assert found["mean"].item() == pytest.approx(expected_mean, rel=1e-12)
    np.testing.assert_allclose(found["obs"].numpy(), expected_obs, rtol=1e-12)


def test_evidence_is_joint_over_posterior_at_every_point(sample: Tensor) -> None:
    evidence = normal_gamma.log_evidence(sample, **PRIOR)
    exact = normal_gamma.posterior(sample, **PRIOR)
    for mean, precision in [(2.0, 0.4), (-3.0, 5.0), (0.1, 0.01)]:
        values = {
            "mean": torch.tensor(mean, dtype=torch.float64),
            "precision": torch.tensor(precision, dtype=torch.float64),
        }
        joint = sum(density.sum() for density in log_joint(normal_gamma.model, values, sample, **PRIOR).values())
        conditional = dist.Normal(exact.loc, (exact.precision_scaling * values["precision"]).rsqrt())
        log_posterior = dist.Gamma(exact.concentration, exact.rate).log_prob(values["precision"])
        log_posterior = log_posterior + conditional.log_prob(values["mean"])
        torch.testing.assert_close(joint - log_posterior, evidence, rtol=1e-12, atol=0)


def quadrature(sample: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, precisions and joint density times cell on a grid; the trapezoid rule is exact to rounding here."""
    log_precision = np.linspace(-14, 7, 801)
    mean = np.linspace(-80, 80, 4001)[:, None]
    precision = np.exp(log_precision)
    log_density = scipy.stats.gamma.logpdf(precision, 1.5, scale=0.5) + log_precision
    log_density = log_density + scipy.stats.norm.logpdf(mean, 0.5, 1 / np.sqrt(0.3 * precision))
    for x in sample.tolist():
        log_density += scipy.stats.norm.logpdf(x, mean, 1 / np.sqrt(precision))
    cell = (log_precision[1] - log_precision[0]) * 0.04
    return mean, precision, np.exp(log_density) * cell


def test_evidence_posterior_and_predictive_equal_quadrature(sample: Tensor) -> None:
    few = sample[:4]
    mean, precision, mass = quadrature(few)
    assert normal_gamma.log_evidence(few, **PRIOR).item() == pytest.approx(math.log(mass.sum()), abs=1e-8)
    exact = normal_gamma.posterior(few, **PRIOR)
    probability = mass / mass.sum()
    assert exact.loc.item() == pytest.approx((probability * mean).sum(), rel=1e-7)
    assert (exact.concentration / exact.rate).item() == pytest.approx((probability * precision).sum(), rel=1e-7)
    variance = exact.rate / ((exact.concentration - 1) * exact.precision_scaling)
    assert variance.item() == pytest.approx((probability * (mean - exact.loc.item()) ** 2).sum(), rel=1e-5)
    predictive = normal_gamma.posterior_predictive(exact)
    for x in (-4.0, 1.0, 6.0):
        density = (probability * scipy.stats.norm.pdf(x, mean, 1 / np.sqrt(precision))).sum()
        assert predictive.log_prob(torch.tensor(x, dtype=torch.float64)).exp().item() == pytest.approx(
            density, rel=1e-7
        )


def test_evidence_chains_over_predictives_and_posterior_over_batches(sample: Tensor) -> None:
    running = NormalGamma(*(torch.tensor(value, dtype=torch.float64) for value in PRIOR.values()))
    total = torch.zeros((), dtype=torch.float64)
    for x in sample:
        total = total + normal_gamma.posterior_predictive(running).log_prob(x)
        prior = {f"prior_{name}": getattr(running, name) for name in NORMAL_GAMMA}
        running = normal_gamma.posterior(x[None], **prior)
    torch.testing.assert_close(total, normal_gamma.log_evidence(sample, **PRIOR), rtol=1e-12, atol=0)
    exact = normal_gamma.posterior(sample, **PRIOR)
    for name in NORMAL_GAMMA:
        torch.testing.assert_close(getattr(running, name), getattr(exact, name), rtol=1e-12, atol=0)


@pytest.mark.parametrize("count", [1, 1000, 1_000_000])
def test_an_offset_of_a_million_moves_the_location_only(count: int) -> None:
    centered = (torch.randn(count, dtype=torch.float64) * 1024).round() / 1024  # the shift is exact on these numbers
    near = normal_gamma.posterior(centered, prior_loc=0.0)
    far = normal_gamma.posterior(centered + 1e6, prior_loc=1e6)
    torch.testing.assert_close(far.rate, near.rate, rtol=1e-12, atol=0)
    torch.testing.assert_close(far.loc, near.loc + 1e6, rtol=1e-15, atol=0)
    q_near = Posteriors({"mean": dist.Normal(near.loc, near.loc.new_tensor(0.01))})
    q_far = Posteriors({"mean": dist.Normal(far.loc, far.loc.new_tensor(0.01))})
    rate_near = normal_gamma.update_precision(q_near, centered, prior_loc=0.0).rate
    rate_far = normal_gamma.update_precision(q_far, centered + 1e6, prior_loc=1e6).rate
    torch.testing.assert_close(rate_far, rate_near, rtol=1e-9, atol=0)


def mean_field_elbo(q: Tensor, sample: Tensor) -> Tensor:
    """ELBO of q(mean) q(precision), each expectation written out; q holds loc, scale, concentration, rate."""
    loc, scale, concentration, rate = q
    expected_precision = concentration / rate
    expected_log = torch.digamma(concentration) - rate.log()
    log_likelihood = (expected_log - math.log(2 * math.pi)) / 2 * len(sample)
    log_likelihood = log_likelihood - expected_precision / 2 * ((sample - loc) ** 2 + scale**2).sum()
    log_prior_mean = (expected_log + math.log(0.3 / (2 * math.pi))) / 2
    log_prior_mean = log_prior_mean - 0.3 * expected_precision / 2 * ((loc - 0.5) ** 2 + scale**2)
    log_prior_precision = 1.5 * math.log(2.0) - math.lgamma(1.5) + 0.5 * expected_log - 2.0 * expected_precision
    entropy = dist.Normal(loc, scale).entropy() + dist.Gamma(concentration, rate).entropy()
    return log_likelihood + log_prior_mean + log_prior_precision + entropy


def mean_field_fixed_point(sample: Tensor) -> Posteriors:
    one = torch.ones((), dtype=torch.float64)
    q = Posteriors({"mean": dist.Normal(one, one), "precision": dist.Gamma(one, one)})
    for _ in range(100):
        for site, update in normal_gamma.updates.items():
            q[site] = update(q, sample, **PRIOR)
    return q


def test_mean_field_fixed_point_solves_the_corrected_equations(sample: Tensor) -> None:
    q = mean_field_fixed_point(sample)
    n, scaling = len(sample), 0.3 + len(sample)
    loc = (0.3 * 0.5 + sample.sum()) / scaling
    # (87) with its half on every term, at E[mean²] = loc² + 1 / (scaling E[precision]), solved for the rate
    shape = 1.5 + (n + 1) / 2
    constant = 2.0 + ((sample**2).sum() + 0.3 * 0.5**2 - scaling * loc**2) / 2
    rate = constant / (1 - 1 / (2 * shape))
    options: dict[str, Any] = {"rtol": 1e-12, "atol": 0.0}
    torch.testing.assert_close(q["mean"].loc, loc, **options)
    assert q["precision"].concentration.item() == shape
    torch.testing.assert_close(q["precision"].rate, rate, **options)
    torch.testing.assert_close(q["mean"].scale ** -2, scaling * shape / rate, **options)


def test_mean_field_fixed_point_maximises_the_elbo_and_the_uncorrected_shape_does_not(sample: Tensor) -> None:
    q = mean_field_fixed_point(sample)
    best = torch.stack([q["mean"].loc, q["mean"].scale, q["precision"].concentration, q["precision"].rate])
    top = mean_field_elbo(best, sample)
    assert top < normal_gamma.log_evidence(sample, **PRIOR)
    for _ in range(200):
        size = 10 ** torch.empty(()).uniform_(-3, -0.5).double()
        assert mean_field_elbo((best * (1 + size * torch.randn(4).double())).abs(), sample) < top
    uncorrected, nudged = best.clone(), best.clone()
    uncorrected[2] = 1.5 + len(sample) / 2  # (86) as printed
    nudged[2] = uncorrected[2] + 0.01
    assert mean_field_elbo(uncorrected, sample) < mean_field_elbo(nudged, sample) < top


def test_joint_update_is_the_posterior_and_a_scale_repeats_the_sample(sample: Tensor) -> None:
    repeated = sample.repeat(3)
    thrice = Posteriors(mean_field_fixed_point(sample), scales={"obs": 3.0})
    exact = normal_gamma.posterior(repeated, **PRIOR)
    found = normal_gamma.joint_updates["mean", "precision"](thrice, sample, **PRIOR)
    for name in NORMAL_GAMMA:
        torch.testing.assert_close(getattr(found, name), getattr(exact, name), rtol=1e-12, atol=0)
    once = Posteriors(thrice)
    for site, names in {"mean": ("loc", "scale"), "precision": ("concentration", "rate")}.items():
        scaled = normal_gamma.updates[site](thrice, sample, **PRIOR)
        expected = normal_gamma.updates[site](once, repeated, **PRIOR)
        for name in names:
            torch.testing.assert_close(getattr(scaled, name), getattr(expected, name), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("x", "prior", "error", "message"),
    [
        (
            torch.zeros(2, 2),
            {},
            DataError,
            r"x to be a floating tensor of shape \[n\], n >= 1; got torch.float32 \[2, 2\]",
        ),
        (torch.zeros(0), {}, DataError, r"got torch.float32 \[0\]"),
        (torch.arange(3), {}, DataError, "x to be a floating tensor .*; got torch.int64"),
        ([1.0], {}, DataError, "floating tensor .*; got list"),
        (torch.ones(3), {"prior_rate": 0.0}, ValueError, "prior_rate to be positive; got 0.0"),
        (torch.ones(3), {"prior_precision_scaling": -1.0}, ValueError, "prior_precision_scaling to be positive"),
        (torch.ones(3), {"prior_concentration": math.nan}, ValueError, "prior_concentration to be positive; got nan"),
        (torch.ones(3), {"prior_loc": torch.ones(2)}, ValueError, "prior_loc to be a finite scalar"),
    ],
)
@pytest.mark.parametrize("entry", [normal_gamma.model, normal_gamma.guide, normal_gamma.posterior])
def test_normal_gamma_errors_name_what_was_expected(
    entry: Callable[..., Any], x: Any, prior: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        entry(x, **prior)


def test_normal_gamma_refuses_data_that_is_not_finite() -> None:
    with pytest.raises(DataError, match="x to be finite; got NaN or infinity"):
        normal_gamma.posterior(torch.tensor([1.0, math.nan]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("guide", [normal_gamma.guide, normal_gamma.joint_guide])
def test_gradient_steps_raise_the_normal_gamma_elbo(guide: Callable[..., None], dtype: torch.dtype) -> None:
    x = (5 + 2 * torch.randn(40)).to(dtype)
    exact = normal_gamma.log_evidence(x, **PRIOR).item()
    guide(x, **PRIOR)
    store = pyro.get_param_store()
    store["precision_concentration"], store["precision_rate"] = torch.ones_like(x[0]), x.var(correction=0)  # far off
    estimate = Trace_ELBO(num_particles=200, vectorize_particles=True)
    svi = SVI(normal_gamma.model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    before = -estimate.loss(normal_gamma.model, guide, x, **PRIOR)
    for _ in range(150):
        svi.step(x, **PRIOR)
    after = -estimate.loss(normal_gamma.model, guide, x, **PRIOR)
    assert before < after < exact + 0.5
    assert all(value.dtype == dtype for value in pyro.get_param_store().values())


@pytest.mark.slow
def test_gradient_inference_with_the_joint_guide_reaches_the_exact_posterior() -> None:
    x = 5 + 2 * torch.randn(30, dtype=torch.float64)
    steps = 4000
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.002 ** (1 / steps)})
    svi = SVI(
        normal_gamma.model,
        normal_gamma.joint_guide,
        optimizer,
        Trace_ELBO(num_particles=10, vectorize_particles=True),
    )
    for _ in range(steps):
        svi.step(x, **PRIOR)
    exact, store = normal_gamma.posterior(x, **PRIOR), pyro.get_param_store()
    loc, scaling, concentration, rate = (
        store[name].detach()
        for name in ("mean_loc", "mean_precision_scaling", "precision_concentration", "precision_rate")
    )
    gamma = torch.distributions.Gamma(concentration, rate)
    ratio = exact.precision_scaling / scaling
    square = exact.precision_scaling * gamma.mean * (loc - exact.loc) ** 2
    divergence = kl_divergence(gamma, torch.distributions.Gamma(exact.concentration, exact.rate))
    divergence = divergence + (ratio - 1 - ratio.log() + square) / 2
    assert 0 <= divergence < 1e-3  # nats
    torch.testing.assert_close(gamma.mean, exact.concentration / exact.rate, rtol=1e-2, atol=0)


# ------------------------------------------------------------------------------------------------ Gaussian mixture

COVARIANCES: tuple[gmm.Covariance, ...] = ("full", "tied", "diagonal", "spherical")
BLOCK = ("mean", "precision")


def start(data: Tensor, num_components: int) -> Tensor:
    """Responsibilities that are neither one-hot nor uniform."""
    return torch.rand(len(data), num_components, dtype=data.dtype).softmax(-1)


def sweep(q: Posteriors, data: Tensor, num_components: int, **options: Any) -> None:
    for site in ("weights", BLOCK):
        q[site] = gmm.updates[site](q, data, num_components, **options)
    q["component"] = gmm.updates["component"](q, data, num_components, **options)


def test_mixture_model_has_the_densities_of_its_definition(old_faithful: Tensor) -> None:
    data = old_faithful[:7]
    weights, component = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), torch.tensor([0, 1, 1, 2, 0, 2, 1])
    mean = data[:3] + 0.5
    roots = torch.randn(3, 2, 2, dtype=torch.float64)
    scale_inverse = torch.tensor([[2.0, 0.5], [0.5, 3.0]]).double()
    options: dict[str, Any] = {"mean_precision_prior": 0.25, "degrees_of_freedom_prior": 4.5}
    options |= {"weight_concentration_prior": 0.75, "mean_prior": torch.tensor([3.0, 70.0], dtype=torch.float64)}

    precision = roots @ roots.mT + torch.eye(2).double()
    values = {"weights": weights, "component": component, "mean": mean, "precision": precision}
    found = log_joint(gmm.model, values, data, 3, covariance_prior=scale_inverse, **options)
    scale = np.linalg.inv(scale_inverse.numpy())
    np.testing.assert_allclose(found["weights"], scipy.stats.dirichlet.logpdf(weights, [0.75] * 3), rtol=1e-10)
    for k in range(3):
        matrix = precision[k].numpy()
        assert found["precision"][k].item() == pytest.approx(scipy.stats.wishart.logpdf(matrix, 4.5, scale), rel=1e-10)
        expected = scipy.stats.multivariate_normal.logpdf(mean[k], [3.0, 70.0], np.linalg.inv(0.25 * matrix))
        assert found["mean"][k].item() == pytest.approx(expected, rel=1e-10)
    for n, k in enumerate(component.tolist()):
        covariance = np.linalg.inv(precision[k].numpy())
        expected = scipy.stats.multivariate_normal.logpdf(data[n], mean[k], covariance)
        assert found["obs"][n].item() == pytest.approx(expected, rel=1e-10)
        assert found["component"][n].item() == pytest.approx(math.log(weights[k]), rel=1e-10)

    values["precision"] = diagonal = precision.diagonal(dim1=-2, dim2=-1)
    rates = torch.tensor([2.0, 3.0], dtype=torch.float64)
    found = log_joint(gmm.model, values, data, 3, covariance="diagonal", covariance_prior=rates, **options)
    expected = scipy.stats.gamma.logpdf(diagonal, 4.5 / 2, scale=2 / rates.numpy()).sum(-1)
    np.testing.assert_allclose(found["precision"], expected, rtol=1e-10)
    # the Wishart of one dimension, which is what the degrees of freedom and the inverse scale refer to
    wishart = [[scipy.stats.wishart.logpdf(diagonal[k, d], 4.5, 1 / rates[d]) for d in range(2)] for k in range(3)]
    np.testing.assert_allclose(found["precision"], np.sum(wishart, -1), rtol=1e-10)
    expected = scipy.stats.norm.logpdf(mean, [3.0, 70.0], (0.25 * diagonal.numpy()) ** -0.5).sum(-1)
    np.testing.assert_allclose(found["mean"], expected, rtol=1e-10)
    expected = scipy.stats.norm.logpdf(data, mean[component], diagonal[component].numpy() ** -0.5).sum(-1)
    np.testing.assert_allclose(found["obs"], expected, rtol=1e-10)

    values["precision"] = tied = precision[0]
    found = log_joint(gmm.model, values, data, 3, covariance="tied", covariance_prior=scale_inverse, **options)
    assert found["precision"].item() == pytest.approx(scipy.stats.wishart.logpdf(tied.numpy(), 4.5, scale), rel=1e-10)
    spread = np.linalg.inv(0.25 * tied.numpy())
    expected = scipy.stats.multivariate_normal.logpdf(mean, [3.0, 70.0], spread)
    np.testing.assert_allclose(found["mean"], expected, rtol=1e-10)
    expected = [
        scipy.stats.multivariate_normal.logpdf(x, mean[k], 0.25 * spread) for x, k in zip(data, component, strict=True)
    ]
    np.testing.assert_allclose(found["obs"], expected, rtol=1e-10)

    values["precision"] = tau = diagonal[:, 0]
    found = log_joint(
        gmm.model, values, data, 3, covariance="spherical", covariance_prior=torch.tensor(3.0).double(), **options
    )
    np.testing.assert_allclose(found["precision"], scipy.stats.gamma.logpdf(tau, 2 * 4.5 / 2, scale=1 / 3), rtol=1e-10)
    expected = scipy.stats.norm.logpdf(mean, [3.0, 70.0], (0.25 * tau[:, None].numpy()) ** -0.5).sum(-1)
    np.testing.assert_allclose(found["mean"], expected, rtol=1e-10)
    expected = scipy.stats.norm.logpdf(data, mean[component], tau[component, None].numpy() ** -0.5).sum(-1)
    np.testing.assert_allclose(found["obs"], expected, rtol=1e-10)


class IndependentGammaMixture(StartedMixture):
    """The mixture with E[log precision] of D Gammas, Dψ(v/2), or of one, D(ψ(Dv/2) - log D), if it is spherical.

    There scikit-learn takes Σ_d ψ((v - d)/2).
    """

    def _estimate_log_prob(self, X: np.ndarray, xp: Any = None) -> np.ndarray:
        halves = 0.5 * (self.degrees_of_freedom_ - np.arange(X.shape[1])[:, None])
        theirs = scipy.special.digamma(halves).sum(0)
        shared = X.shape[1] if self.covariance_type == "spherical" else 1
        exact = X.shape[1] * (scipy.special.digamma(0.5 * shared * self.degrees_of_freedom_) - np.log(shared))
        return super()._estimate_log_prob(X) + 0.5 * (exact - theirs)


def fit_scikit_learn(
    mixture: type[StartedMixture], data: Tensor, responsibilities: Tensor, covariance: gmm.Covariance, **priors: Any
) -> StartedMixture:
    fitted = mixture(
        n_components=responsibilities.shape[-1],
        covariance_type="diag" if covariance == "diagonal" else covariance,
        weight_concentration_prior_type="dirichlet_distribution",
        reg_covar=0.0,
        tol=1e-12,
        max_iter=2000,
        **priors,
    )
    fitted.responsibilities = responsibilities.numpy()
    return fitted.fit(data.numpy())


def assert_equals_scikit_learn(q: Posteriors, fitted: StartedMixture, covariance: gmm.Covariance) -> None:
    block = q[BLOCK]
    options: dict[str, Any] = {"rtol": 1e-6}
    np.testing.assert_allclose(q["weights"].concentration, fitted.weight_concentration_, **options)
    np.testing.assert_allclose(block.loc, fitted.means_, **options)
    df = fitted.degrees_of_freedom_
    found = moments_of(block)
    np.testing.assert_allclose(found.mean_precision, fitted.mean_precision_, **options)
    shared = len(block.loc) if covariance == "tied" else 1  # scikit-learn counts each point as 1 / K of one
    np.testing.assert_allclose(found.degrees_of_freedom, shared * df, **options)
    np.testing.assert_allclose(found.covariance, fitted.covariances_, **options)
    np.testing.assert_allclose(found.precision, fitted.precisions_, **options)


@pytest.mark.parametrize(
    ("covariance", "mixture", "columns", "given_priors"),
    [
        ("full", StartedMixture, [0, 1], True),
        ("full", StartedMixture, [0, 1], False),
        ("full", StartedMixture, [1], True),
        ("diagonal", StartedMixture, [1], False),
        ("diagonal", IndependentGammaMixture, [0, 1], True),
        ("diagonal", IndependentGammaMixture, [0, 1], False),
        ("tied", StartedMixture, [0, 1], True),
        ("spherical", StartedMixture, [1], False),
        ("spherical", IndependentGammaMixture, [0, 1], True),
    ],
)
def test_closed_form_updates_equal_scikit_learn(
    old_faithful: Tensor,
    covariance: gmm.Covariance,
    mixture: type[StartedMixture],
    columns: list[int],
    given_priors: bool,
) -> None:
    data = old_faithful[:, columns]
    priors: dict[str, Any] = {}
    if given_priors:
        matrix = data.mT.cov().reshape(len(columns), -1) / 7
        variances = matrix.diagonal()
        spread = {"full": matrix, "tied": matrix, "diagonal": variances, "spherical": variances.mean()}
        priors = {
            "weight_concentration_prior": 0.8,
            "mean_precision_prior": 0.05,
            "mean_prior": data[0],
            "degrees_of_freedom_prior": 3.5,
            "covariance_prior": spread[covariance],
        }
    responsibilities = start(data, 3)
    as_numpy = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in priors.items()}
    fitted = fit_scikit_learn(mixture, data, responsibilities, covariance, **as_numpy)
    assert fitted.converged_
    if covariance == "tied":
        names = ("degrees_of_freedom_prior", "covariance_prior")
        priors |= {name: 3 * torch.as_tensor(getattr(fitted, f"{name}_")).double() for name in names}
    q = Posteriors({"component": dist.Categorical(probs=responsibilities)})
    for _ in range(fitted.n_iter_):
        sweep(q, data, 3, covariance=covariance, **priors)
    for site in ("weights", BLOCK):
        q[site] = gmm.updates[site](q, data, 3, covariance=covariance, **priors)
    assert_equals_scikit_learn(q, fitted, covariance)
    q["component"] = gmm.updates["component"](q, data, 3, covariance=covariance, **priors)
    np.testing.assert_allclose(q["component"].probs, fitted.predict_proba(data.numpy()), atol=1e-6)


def log_normalizer(df: Tensor, log_det_scale: Tensor, dim: int) -> Tensor:
    """The log-normalizer of a Wishart."""
    return df * dim / 2 * math.log(2) + df / 2 * log_det_scale + torch.mvlgamma(df / 2, dim)


def mixture_elbo(q: Posteriors, data: Tensor, priors: dict[str, Tensor], covariance: gmm.Covariance) -> Tensor:
    """The ELBO of q(component) q(weights) q(mean, precision), each expectation written out."""
    block, probs, weights = q[BLOCK], q["component"].probs, q["weights"]
    dim = data.shape[-1]
    df0, inverse0 = priors["degrees_of_freedom_prior"], priors["covariance_prior"]
    if covariance in ("full", "tied"):
        spread, scaling = block.df[..., None, None] * block.covariance_matrix, block.precision_scaling
        expected_log_det = dim * math.log(2) + block.covariance_matrix.logdet()
        for d in range(dim):
            expected_log_det = expected_log_det + torch.digamma((block.df - d) / 2)
        # torch's divergence of Wisharts adds up over the batch, wrongly: the definition instead
        trace = (spread * inverse0).sum((-2, -1)) - dim * block.df
        divergence = ((block.df - df0) * expected_log_det + trace) / 2
        divergence = divergence - log_normalizer(block.df, block.covariance_matrix.logdet(), dim)
        divergence = (divergence + log_normalizer(df0, -inverse0.logdet(), dim)).sum()
        spread = spread.expand(len(scaling), dim, dim)
    elif covariance == "spherical":
        gamma, scaling = torch.distributions.Gamma(block.concentration, block.rate), block.precision_scaling
        spread = gamma.mean[:, None, None] * torch.eye(dim).to(data)
        first, second = ((dim * p / 2).expand_as(gamma.rate) for p in (df0, inverse0))
        prior = torch.distributions.Gamma(first, second)
        divergence = kl_divergence(gamma, prior).sum()
        expected_log_det = dim * (torch.digamma(block.concentration) - block.rate.log())
    else:
        spread, scaling = torch.diag_embed(block.concentration / block.rate), block.precision_scaling[:, 0]
        gamma = torch.distributions.Gamma(block.concentration, block.rate)
        prior = torch.distributions.Gamma((df0 / 2).expand_as(block.rate), (inverse0 / 2).expand_as(block.rate))
        divergence = kl_divergence(gamma, prior).sum()
        expected_log_det = (torch.digamma(block.concentration) - block.rate.log()).sum(-1)
    scaling0, from_prior = priors["mean_precision_prior"], block.loc - priors["mean_prior"]
    ratio = scaling0 / scaling
    square = scaling0 * torch.einsum("kd,kde,ke->k", from_prior, spread, from_prior)
    divergence = divergence + (dim * (ratio - 1 - ratio.log()) + square).sum() / 2
    dirichlet0 = torch.distributions.Dirichlet(priors["weight_concentration_prior"])
    divergence = divergence + kl_divergence(torch.distributions.Dirichlet(weights.concentration), dirichlet0)
    difference = data[:, None] - block.loc
    square = torch.einsum("nkd,kde,nke->nk", difference, spread, difference) + dim / scaling
    log_factors = (expected_log_det - dim * math.log(2 * math.pi) - square) / 2
    concentration = weights.concentration
    log_factors = log_factors + torch.digamma(concentration) - torch.digamma(concentration.sum())
    return (probs * log_factors).sum() - torch.xlogy(probs, probs).sum() - divergence


def parameters(posterior: Any) -> list[str]:
    names = ("loc", "precision_scaling", "df", "covariance_matrix", "concentration", "rate")
    return [name for name in names if isinstance(getattr(posterior, name, None), Tensor)]


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_every_mixture_update_maximises_the_elbo_over_its_block(
    old_faithful: Tensor, covariance: gmm.Covariance
) -> None:
    data, options = old_faithful[::4], {"covariance": covariance}
    priors = gmm.default_priors(data, 3, covariance)
    q = Posteriors({"component": dist.Categorical(probs=start(data, 3))})
    for site in ("weights", BLOCK):
        q[site] = gmm.updates[site](q, data, 3, **options)
    previous = mixture_elbo(q, data, priors, covariance)
    for _ in range(4):
        for site, update in gmm.updates.items():
            q[site] = update(q, data, 3, **options)
            elbo = mixture_elbo(q, data, priors, covariance)
            assert elbo >= previous - 1e-9
            previous = elbo
            if site == "component":
                logits = q[site].probs.log().requires_grad_()
                moved = Posteriors({**q, site: dist.Categorical(probs=logits.softmax(-1))})
                leaves = [logits]
            else:
                names = parameters(q[site])
                leaves = [getattr(q[site], name).detach().clone().requires_grad_() for name in names]
                moved = Posteriors({**q, site: type(q[site])(**dict(zip(names, leaves, strict=True)))})
            gradients = torch.autograd.grad(mixture_elbo(moved, data, priors, covariance), leaves)
            for leaf, gradient in zip(leaves, gradients, strict=True):
                assert (leaf * gradient).abs().max() < 1e-7


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_scale_on_the_points_repeats_them(old_faithful: Tensor, covariance: gmm.Covariance) -> None:
    data = old_faithful[:20]
    priors = gmm.default_priors(data, 2, covariance)
    probs = start(data, 2)
    scaled = Posteriors({"component": dist.Categorical(probs=probs)}, scales={"component": 3.0})
    weighted = Posteriors({"component": dist.Categorical(probs=probs)})
    repeated = Posteriors({"component": dist.Categorical(probs=probs.repeat(3, 1))})
    for site in ("weights", BLOCK):
        found = gmm.updates[site](scaled, data, 2, covariance=covariance, **priors)
        weights = torch.full((20,), 3.0).double()
        given = gmm.updates[site](weighted, data, 2, covariance=covariance, **priors, sample_weight=weights)
        for name in parameters(found):
            torch.testing.assert_close(getattr(found, name), getattr(given, name), rtol=1e-12, atol=0)
        expected = gmm.updates[site](repeated, data.repeat(3, 1), 2, covariance=covariance, **priors)
        for name in parameters(expected):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=0)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_component_without_points_returns_to_its_prior(old_faithful: Tensor, covariance: gmm.Covariance) -> None:
    probs = torch.tensor([1.0, 0.0]).double().expand(len(old_faithful), 2)
    q = Posteriors({"component": dist.Categorical(probs=probs)})
    priors = gmm.default_priors(old_faithful, 2, covariance)
    block = gmm.update_mean_precision(q, old_faithful, 2, covariance=covariance)
    torch.testing.assert_close(block.loc[1], priors["mean_prior"], rtol=1e-12, atol=0)
    if covariance == "tied":  # whose precision has all points
        return
    found = block.covariance_matrix[1].inverse() if covariance == "full" else 2 * block.rate[1]
    found = found / 2 if covariance == "spherical" else found  # of two dimensions
    torch.testing.assert_close(found, priors["covariance_prior"], rtol=1e-10, atol=0)


def test_default_priors_are_those_of_scikit_learn(old_faithful: Tensor) -> None:
    for covariance in COVARIANCES:
        theirs = fit_scikit_learn(StartedMixture, old_faithful, start(old_faithful, 2), covariance)
        for name, value in gmm.default_priors(old_faithful, 2, covariance).items():
            expected = np.broadcast_to(getattr(theirs, f"{name}_"), value.shape)
            np.testing.assert_allclose(value, expected, rtol=1e-12)


DATA = torch.tensor([[1.0, 2.0], [2.0, 1.0], [4.0, 3.0]])


@pytest.mark.parametrize(
    ("data", "num_components", "options", "error", "message"),
    [
        (DATA[:, 0], 2, {}, DataError, r"data to be .* of shape \[N, D\], N, D >= 1; got torch.float32 \[3\]"),
        (DATA[:0], 2, {}, DataError, r"got torch.float32 \[0, 2\]"),
        (DATA.long(), 2, {}, DataError, "data to be a floating tensor .*; got torch.int64"),
        (DATA[:1], 2, {}, DataError, "at least 2 points for an empirical covariance; got 1. Give covariance_prior"),
        (DATA * torch.tensor([1.0, 0.0]), 2, {}, DataError, "a column that is constant, depends on the others"),
        (DATA, 0, {}, ValueError, "num_components to be an integer of at least 1; got 0"),
        (DATA, 2.0, {}, ValueError, "num_components to be an integer of at least 1; got 2.0"),
        (DATA, 2, {"covariance": "diag"}, ValueError, "covariance to be 'full' or 'tied' or .*; got 'diag'"),
        (DATA, 2, {"degrees_of_freedom_prior": 1.0}, ValueError, "degrees_of_freedom_prior > 1 for full .*; got 1.0"),
        (DATA, 2, {"mean_precision_prior": 0.0}, ValueError, "mean_precision_prior to be positive and finite; got 0.0"),
        (DATA, 2, {"weight_concentration_prior": -1.0}, ValueError, "weight_concentration_prior to be positive"),
        (DATA, 2, {"weight_concentration_prior": torch.ones(3)}, ValueError, r"of shape \[2\]; got shape \[3\]"),
        (DATA, 2, {"mean_prior": torch.ones(3)}, ValueError, r"mean_prior of shape \[2\]; got shape \[3\]"),
        (DATA, 2, {"covariance_prior": torch.ones(2)}, ValueError, r"of shape \[2, 2\] for full .*; got shape \[2\]"),
        (DATA, 2, {"covariance_prior": torch.ones(2, 2)}, ValueError, "covariance_prior to be symmetric and positive"),
        (
            DATA,
            2,
            {"covariance": "diagonal", "covariance_prior": torch.tensor([1.0, -1.0])},
            ValueError,
            "covariance_prior to be symmetric and positive definite",
        ),
    ],
)
@pytest.mark.parametrize("entry", [gmm.model, gmm.guide])
def test_mixture_errors_name_what_was_expected(
    entry: Callable[..., None],
    data: Tensor,
    num_components: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        entry(data, num_components, **options)


def test_initial_responsibilities_find_separate_clusters_and_follow_the_generator() -> None:
    labels = torch.arange(60) % 3
    data = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 1.0]])[labels] + 0.02 * torch.randn(60, 2)
    first = gmm.initial_responsibilities(data, 3, generator=torch.Generator().manual_seed(1))
    again = gmm.initial_responsibilities(data, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    together = first @ first.mT
    assert torch.equal(together, (labels[:, None] == labels).to(together.dtype))
    crowded = gmm.initial_responsibilities(torch.ones(4, 1), 3)
    assert torch.equal(crowded.sum(-1), torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_mixture_guide_starts_at_the_update_and_bounds_the_mean_field_elbo(
    old_faithful: Tensor, covariance: gmm.Covariance, dtype: torch.dtype
) -> None:
    data = old_faithful.to(dtype)
    torch.manual_seed(3)
    responsibilities = gmm.initial_responsibilities(data, 2)
    q = Posteriors({"component": dist.Categorical(probs=responsibilities)})
    sweep(q, data, 2, covariance=covariance)
    mean_field = mixture_elbo(q, data, gmm.default_priors(data, 2, covariance), covariance).item()

    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Singular sample detected")
        losses = [
            TraceEnum_ELBO(max_plate_nesting=1).loss(gmm.model, gmm.guide, data, 2, covariance=covariance)
            for _ in range(30)
        ]
        store = pyro.get_param_store()
        torch.testing.assert_close(store["mean_loc"].detach(), q[BLOCK].loc, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(store["weight_concentration"].detach(), q["weights"].concentration)
        # given the globals the enumeration is exact, so this bound is the tighter; four standard errors are allowed
        error = np.std(losses) / math.sqrt(len(losses))
        assert -np.mean(losses) > mean_field - 4 * error
        before = {name: value.detach().clone() for name, value in store.items()}
        svi = SVI(gmm.model, gmm.guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))
        for _ in range(5):
            assert math.isfinite(svi.step(data, 2, covariance=covariance))
    assert all(value.dtype == dtype for value in store.values())
    assert all(not torch.equal(before[name], value) for name, value in store.items())


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_predictive_density_of_a_mixture_is_the_average_over_its_posterior(covariance: gmm.Covariance) -> None:
    """By 20,000 draws of the parameters, at points in the middle and far out."""
    data = torch.cat([torch.randn(15, 2, dtype=torch.float64) - 2, 0.5 * torch.randn(10, 2, dtype=torch.float64) + 2])
    guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")], init=0)
    CAVI(gmm.model, guide).run(data, 2, covariance=covariance)
    q = guide.posterior(joint=True)
    points = torch.tensor([[-2.0, -2.0], [2.0, 2.2], [0.0, 0.0], [6.0, -1.0]], dtype=torch.float64)
    weights = q["weights"].sample((20_000,))
    mean, precision = q["mean", "precision"].sample((20_000,))
    deviation = points[:, None, None] - mean
    if covariance == "tied":
        precision = precision.unsqueeze(-3)
    if covariance == "spherical":
        precision = precision.unsqueeze(-1).expand_as(mean)
    if covariance in ("full", "tied"):
        square = torch.einsum("...i,...ij,...j->...", deviation, precision, deviation)
        log_density = 0.5 * precision.logdet() - 0.5 * square
    else:
        log_density = (0.5 * precision.log() - 0.5 * precision * deviation.square()).sum(-1)
    each = (log_density + weights.log()).exp().sum(-1) / (2 * math.pi)
    found = gmm.predictive(q).log_prob(points).exp()
    error = each.std(-1) / math.sqrt(20_000)
    assert bool(((each.mean(-1) - found).abs() < 4 * error).all())
    with pytest.raises(ArgumentTypeError, match="mean and precision in one block"):
        gmm.predictive(guide.posterior())
