"""The two-dimensional models, and Gaussian guides by Laplace and by KL(p ‖ q), against closed forms and quadrature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch
from pyro.infer import MCMC, NUTS, Predictive, Trace_ELBO
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor
from torch.distributions import kl_divergence

from examples import kl_directions
from pyro_latent import CAVI, AutoConjugate, check_updates, handlers
from pyro_latent.criticism import importance_sampling, naive_monte_carlo
from pyro_latent.errors import DataError, ModelError
from pyro_latent.gradient.approximations import GaussianGuide, laplace, moment_matching
from pyro_latent.models import bivariate_gaussian, normal_gamma, two_modes
from pyro_latent.particles import Particles

LOC = torch.tensor([1.0, -2.0], dtype=torch.float64)
PRECISIONS = {
    "negative": [[2.0, -1.2], [-1.2, 1.0]],
    "positive": [[1.0, 1.8], [1.8, 4.0]],
    "independent": [[3.0, 0.0], [0.0, 0.5]],
}


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> Tensor:
    return torch.tensor(PRECISIONS[request.param], dtype=torch.float64)


def start(second: float) -> dict[str, Any]:
    return {"second": dist.Normal(torch.tensor(second).double(), torch.tensor(1.0).double())}


# --------------------------------------------------------------------------------------------------- bivariate Gaussian


def test_the_posterior_of_the_bivariate_model_is_the_given_gaussian(precision: Tensor) -> None:
    values = {"first": torch.tensor([0.0, 1.0, 3.0]).double(), "second": torch.tensor([2.0, -2.0, -4.0]).double()}
    log_joint = Particles(bivariate_gaussian.model, None, (LOC, precision), {}).log_joint(values)
    points = torch.stack([values["first"], values["second"]], -1)
    expected = scipy.stats.multivariate_normal.logpdf(points, LOC, np.linalg.inv(precision.numpy()))
    evidence = bivariate_gaussian.log_evidence(LOC, precision)
    np.testing.assert_allclose((log_joint - evidence).numpy(), expected, rtol=1e-12)


def test_coordinate_ascent_contracts_at_the_rate_that_the_correlation_predicts(precision: Tensor) -> None:
    guide = AutoConjugate(bivariate_gaussian.model, init=start(5.0))
    cavi = CAVI(bivariate_gaussian.model, guide, order=["first", "second"])
    distances = []
    for _ in range(6):
        cavi.step(LOC, precision)
        distances.append(guide.posterior()["second"].mean.item() - LOC[1].item())
    predicted = (precision[0, 1] ** 2 / (precision[0, 0] * precision[1, 1])).item()
    assert bivariate_gaussian.contraction_rate(precision).item() == pytest.approx(predicted, rel=1e-14)
    for before, after in itertools.pairwise(distances):
        assert after == pytest.approx(predicted * before, rel=1e-6, abs=1e-12)


def test_coordinate_ascent_ends_at_the_mean_with_conditional_variances(precision: Tensor) -> None:
    guide = AutoConjugate(bivariate_gaussian.model, init=start(5.0))
    bound = CAVI(bivariate_gaussian.model, guide).run(LOC, precision, max_steps=500, tol=1e-15).elbo[-1]
    posterior = guide.posterior()
    for i, name in enumerate(("first", "second")):
        assert posterior[name].mean.item() == pytest.approx(LOC[i].item(), abs=1e-6)
        assert posterior[name].variance.item() == pytest.approx(1 / precision[i, i].item(), rel=1e-12)  # the erratum
        assert bivariate_gaussian.mean_field(LOC, precision)[name].scale == pytest.approx(posterior[name].scale.item())
    gap = bivariate_gaussian.log_evidence(LOC, precision) - bound
    assert gap.item() == pytest.approx(bivariate_gaussian.factor_divergence(precision).item(), abs=1e-10)


def test_the_written_updates_of_the_bivariate_model_are_the_derived_ones(precision: Tensor) -> None:
    written = handlers.closed_form(bivariate_gaussian.model, bivariate_gaussian.updates)
    guide = AutoConjugate(written, init=start(3.0))
    report = check_updates(written, guide, LOC, precision)
    assert report.ok, str(report)


def factorised(loc: Tensor, variance: Tensor) -> dist.MultivariateNormal:
    return dist.MultivariateNormal(loc, torch.diag(variance))


def test_each_divergence_is_least_at_its_own_factors(precision: Tensor) -> None:
    p = bivariate_gaussian.posterior(LOC, precision)
    best = bivariate_gaussian.factor_divergence(precision).item()
    cases: list[tuple[Any, Callable[[Any], Tensor]]] = [
        (bivariate_gaussian.mean_field, lambda q: kl_divergence(q, p)),
        (bivariate_gaussian.marginals, lambda q: kl_divergence(p, q)),
    ]
    for factors, divergence in cases:
        found = factors(LOC, precision)
        variance = torch.stack([found[n].variance for n in ("first", "second")])
        assert divergence(factorised(LOC, variance)).item() == pytest.approx(best, abs=1e-12)
        for _ in range(50):
            moved = factorised(LOC + 0.1 * torch.randn(2).double(), variance * (0.1 * torch.randn(2).double()).exp())
            assert divergence(moved).item() > best


def test_the_marginals_are_those_of_the_inverse(precision: Tensor) -> None:
    covariance = np.linalg.inv(precision.numpy())
    for i, factor in enumerate(bivariate_gaussian.marginals(LOC, precision).values()):
        assert factor.variance.item() == pytest.approx(covariance[i, i], rel=1e-12)


@pytest.mark.parametrize(
    ("loc", "matrix", "words"),
    [
        (
            torch.zeros(3),
            torch.eye(3),
            r"Expected loc of shape \[2\] and precision of shape \[2, 2\].*got shapes \[3\]",
        ),
        (torch.zeros(2), torch.eye(2).double(), "floating tensors of one dtype.*float32 and torch.float64"),
        (torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "Expected precision to be symmetric and positive def"),
        (torch.zeros(2), torch.tensor([[1.0, 0.2], [0.1, 1.0]]), "Expected precision to be symmetric and positive def"),
    ],
)
def test_what_is_no_gaussian_is_named(loc: Tensor, matrix: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        bivariate_gaussian.model(loc, matrix)


# ------------------------------------------------------------------------------------------------ two modes, and banana

DATA = {"one": [4.0], "three": [4.0, 3.0, 2.5], "negative": [-3.0, -2.0]}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(
    ("model", "evidence", "prior_scale"),
    [(two_modes.model, two_modes.log_evidence, 1.5), (two_modes.banana_model, two_modes.banana_log_evidence, 2.0)],
)
def test_evidence_equals_quadrature_over_the_plane(name: str, model: Any, evidence: Any, prior_scale: float) -> None:
    x = torch.tensor(DATA[name], dtype=torch.float64)
    axis = torch.linspace(-8 * prior_scale, 8 * prior_scale, 801, dtype=torch.float64)
    first, second = (t.flatten() for t in torch.meshgrid(axis, axis, indexing="ij"))
    log_joint = Particles(model, None, (x,), {}).log_joint({"first": first, "second": second})
    total = torch.logsumexp(log_joint, 0) + 2 * math.log(16 * prior_scale / 800)  # the trapezoid rule, ends negligible
    assert total.item() == pytest.approx(evidence(x).item(), abs=1e-7)


@pytest.mark.parametrize(("noise_scale", "center"), [(1e-1, 0.0), (1e-3, 0.0), (1e-4, 0.0), (1e-4, 2.0), (1e-6, -0.3)])
def test_evidence_equals_adaptive_quadrature_for_sharp_likelihoods(noise_scale: float, center: float) -> None:
    """The mean of x is the product of two normals plus noise; given the first it is normal."""
    x = torch.tensor([center], dtype=torch.float64)

    def integrand(log_first: float) -> float:
        first = math.exp(log_first)
        density = scipy.stats.norm.pdf(center, 0.0, math.hypot(first * 1.5, noise_scale))
        return 2 * first * float(scipy.stats.norm.pdf(first, 0.0, 1.5) * density)

    total, _ = scipy.integrate.quad(integrand, math.log(1e-14), math.log(20.0), epsabs=0, epsrel=1e-12, limit=500)
    assert two_modes.log_evidence(x, noise_scale=noise_scale).item() == pytest.approx(math.log(total), abs=1e-9)


@pytest.mark.parametrize("curvature", [0.0, -2.0, 1e4])
def test_the_bananas_evidence_equals_adaptive_quadrature(curvature: float) -> None:
    def integrand(first: float) -> float:
        spread = math.hypot(2.0, 0.5)
        return float(scipy.stats.norm.pdf(first, 0, 2) * scipy.stats.norm.pdf(1.0, curvature * first**2, spread))

    total, _ = scipy.integrate.quad(integrand, 0, 30, points=[0.005, 0.02, 0.1, 1.0], epsabs=0, epsrel=1e-12, limit=500)
    found = two_modes.banana_log_evidence(torch.ones(1, dtype=torch.float64), curvature=curvature)
    assert found.item() == pytest.approx(math.log(2 * total), abs=1e-9)


@pytest.mark.parametrize("name", DATA)
def test_the_modes_are_those_that_an_optimizer_finds(name: str) -> None:
    x = torch.tensor(DATA[name], dtype=torch.float64)

    def loss(z: np.ndarray) -> float:
        return float(0.5 * ((x.numpy() - z[0] * z[1]) ** 2).sum() + 0.5 * (z**2).sum() / 1.5**2)

    for mode in two_modes.modes(x).numpy():
        found = scipy.optimize.minimize(loss, mode + 0.3, tol=1e-12)
        np.testing.assert_allclose(found.x, mode, atol=1e-5)


def test_weak_data_leave_one_mode_at_the_origin() -> None:
    assert two_modes.modes(torch.tensor([0.1], dtype=torch.float64)).tolist() == [[0.0, 0.0]]


def test_the_written_updates_of_the_product_are_the_derived_ones() -> None:
    x = torch.tensor([4.0, 3.0, 2.5], dtype=torch.float64)
    written = handlers.closed_form(two_modes.model, two_modes.updates)
    guide = AutoConjugate(written, init=1)
    report = check_updates(written, guide, x, prior_scale=2.0, noise_scale=0.7)
    assert report.ok, str(report)


def test_mean_field_settles_in_one_mode_and_loses_at_least_the_other() -> None:
    """A q inside one of two equal modes is at least log 2 below the evidence."""
    x = torch.tensor([4.0, 3.0, 2.5], dtype=torch.float64)
    guide = AutoConjugate(two_modes.model)
    bound = CAVI(two_modes.model, guide).run(x).elbo[-1].item()
    means = torch.stack([q.mean for q in guide.posterior().values()])
    gaps = (means - two_modes.modes(x)).abs().max(-1).values
    assert gaps.min() < 0.15 < 3 < gaps.max()
    assert bound < two_modes.log_evidence(x).item() - 0.9 * math.log(2)


def test_data_that_do_not_fit_the_plane_models_are_named() -> None:
    with pytest.raises(DataError, match=r"Expected x to be a floating tensor of shape \[n\], n >= 1; got torch.int64"):
        two_modes.model(torch.tensor([1]))
    with pytest.raises(DataError, match="Expected x to be finite"):
        two_modes.banana_model(torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="Expected noise_scale to be a positive number; got 0"):
        two_modes.log_evidence(torch.ones(1), noise_scale=0)


# -------------------------------------------------------------------------------------------------------------- Laplace


def test_laplace_is_exact_for_a_gaussian_posterior(precision: Tensor) -> None:
    guide = laplace(bivariate_gaussian.model, LOC, precision)
    torch.testing.assert_close(guide.loc, LOC, rtol=0, atol=1e-6)
    torch.testing.assert_close(guide.covariance_matrix, torch.linalg.inv(precision), rtol=1e-8, atol=1e-10)
    evidence = bivariate_gaussian.log_evidence(LOC, precision).item()
    assert guide.log_evidence == pytest.approx(evidence, abs=1e-8)
    found = importance_sampling(bivariate_gaussian.model, guide, LOC, precision, num_samples=50)
    assert found.log_evidence == pytest.approx(evidence, abs=1e-6)
    assert found.log_weights.std() < 1e-5


def test_laplace_takes_mode_and_curvature_in_unconstrained_space() -> None:
    x = torch.tensor([1.3, -0.2, 2.5, 0.8, 1.1], dtype=torch.float64)
    guide = laplace(normal_gamma.model, x)

    def loss(z: np.ndarray) -> float:  # z = (log precision, mean): the model's order; the Jacobian adds log precision
        tau = math.exp(z[0])
        value = scipy.stats.gamma.logpdf(tau, 1.0, scale=1.0) + z[0] + scipy.stats.norm.logpdf(z[1], 0, tau**-0.5)
        return -float(value + scipy.stats.norm.logpdf(x.numpy(), z[1], tau**-0.5).sum())

    best = scipy.optimize.minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    np.testing.assert_allclose(guide.loc.numpy(), best.x, atol=1e-6)
    step = 1e-3
    shift = step * np.eye(2)
    curvature = [
        [
            sum(s * t * loss(guide.loc.numpy() + s * shift[i] + t * shift[j]) for s in (1, -1) for t in (1, -1))
            / (4 * step**2)
            for j in (0, 1)
        ]
        for i in (0, 1)
    ]
    np.testing.assert_allclose(np.linalg.inv(guide.covariance_matrix.numpy()), curvature, rtol=1e-5, atol=1e-5)
    assert guide.log_evidence == pytest.approx(
        -loss(guide.loc.numpy()) + math.log(2 * math.pi) - np.log(np.linalg.det(curvature)) / 2, abs=1e-5
    )


def test_laplace_sees_one_mode_and_its_importance_sample_does_not_notice() -> None:
    """The estimate of the evidence is short of the other mode by log 2, far outside its own error."""
    x = torch.tensor([4.0, 3.0, 2.5], dtype=torch.float64)
    guide = laplace(two_modes.model, x)
    assert (guide.loc - two_modes.modes(x)).abs().max(-1).values.min() < 1e-6
    found = importance_sampling(two_modes.model, guide, x, num_samples=4000)
    short = two_modes.log_evidence(x).item() - found.log_evidence
    assert short == pytest.approx(math.log(2), abs=0.1)
    assert short > 5 * found.standard_error


def test_laplace_refuses_a_saddle_and_a_climb_that_is_too_short() -> None:
    x = torch.tensor([4.0], dtype=torch.float64)
    at_zero = init_to_value(values={"first": x.new_zeros(()), "second": x.new_zeros(())})
    with pytest.raises(ModelError, match="Expected a mode, where minus the Hessian has positive eigenvalues"):
        laplace(two_modes.model, x, init_loc_fn=at_zero)

    with pytest.raises(ModelError, match="Expected to reach a mode; got a point from which one more Newton step"):
        laplace(normal_gamma.model, 100 * x, max_steps=1)


@pytest.mark.parametrize("seed", range(5))
def test_laplace_refuses_a_part_of_the_data(seed: int) -> None:
    """Whether the plate draws the part or is given one."""
    x = torch.randn(20, dtype=torch.float64)

    def drawing(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[rows])

    def given(x: Tensor, size: int) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", size, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    pyro.set_rng_seed(seed)
    with pytest.raises(ModelError, match=r"got plate 'data' with 5 of 20\. Pass the whole data"):
        laplace(drawing, x)
    with pytest.raises(ModelError, match=r"got plate 'data' with 20 of 40\. Pass the whole data"):
        laplace(given, x, 40)
    exact = scipy.stats.multivariate_normal.logpdf(x.numpy(), np.zeros(20), np.eye(20) + 1)
    assert laplace(given, x, 20).log_evidence == pytest.approx(exact, rel=1e-9)


def test_laplace_leaves_the_parameter_store_alone() -> None:
    pyro.param("other", torch.ones(2))
    x = torch.tensor([4.0], dtype=torch.float64)
    first, second = laplace(two_modes.model, x), laplace(two_modes.banana_model, x)
    assert not torch.equal(first.loc, second.loc)
    assert list(pyro.get_param_store()) == ["other"]


# ---------------------------------------------------------------------------------------------------- KL(p ‖ q), guides


def test_moments_of_a_weighted_sample_are_those_by_numpy() -> None:
    x = torch.tensor([4.0, 3.0, 2.5], dtype=torch.float64)
    sample = naive_monte_carlo(two_modes.model, x, num_samples=20_000, keep_samples=True)
    guide = moment_matching(two_modes.model, sample, x)
    points = np.stack([sample.samples[n].numpy() for n in ("first", "second")])
    expected = np.cov(points, aweights=sample.weights.numpy(), ddof=0)
    np.testing.assert_allclose(guide.covariance_matrix.numpy(), expected, rtol=1e-8)
    np.testing.assert_allclose(guide.loc.numpy(), np.average(points, axis=1, weights=sample.weights), atol=1e-12)
    diagonal = moment_matching(two_modes.model, sample, x, covariance="diagonal")
    np.testing.assert_allclose(diagonal.covariance_matrix.numpy(), np.diag(np.diag(expected)), rtol=1e-8)


def test_draws_may_be_arrays() -> None:
    x, draws = torch.tensor([4.0], dtype=torch.float64), np.random.default_rng(0).normal(size=(2, 100))
    guide = moment_matching(two_modes.model, {"first": draws[0], "second": draws[1]}, x)
    np.testing.assert_allclose(guide.covariance_matrix.numpy(), np.cov(draws, bias=True), rtol=1e-10)


def test_matched_moments_cover_both_modes_and_recover_the_evidence() -> None:
    x = torch.tensor([4.0, 3.0, 2.5], dtype=torch.float64)
    sample = naive_monte_carlo(two_modes.model, x, num_samples=50_000, keep_samples=True)
    guide = moment_matching(two_modes.model, sample, x)
    assert guide.loc.abs().max() < 0.3
    assert bool((guide.covariance_matrix.diagonal() > 2).all())
    found = importance_sampling(two_modes.model, guide, x, num_samples=20_000)
    assert abs(found.log_evidence - two_modes.log_evidence(x).item()) < 4 * found.standard_error < 0.2


def cross_entropy(loc: Tensor, covariance: Tensor, x: Tensor) -> float:
    """-E_p log q on a grid, with p the posterior of the banana: KL(p ‖ q) up to a constant."""
    axis = torch.linspace(-10, 10, 401, dtype=torch.float64)
    first, second = (t.flatten() for t in torch.meshgrid(axis, axis, indexing="ij"))
    log_joint = Particles(two_modes.banana_model, None, (x,), {}).log_joint({"first": first, "second": second})
    q = dist.MultivariateNormal(loc, covariance)
    return -(log_joint.softmax(0) @ q.log_prob(torch.stack([first, second], -1))).item()


def test_the_matched_gaussian_is_the_least_of_its_divergence_by_quadrature() -> None:
    x = torch.tensor([3.0], dtype=torch.float64)
    axis = torch.linspace(-10, 10, 401, dtype=torch.float64)
    first, second = (t.flatten() for t in torch.meshgrid(axis, axis, indexing="ij"))
    log_joint = Particles(two_modes.banana_model, None, (x,), {}).log_joint({"first": first, "second": second})
    draws = torch.multinomial(log_joint.softmax(0), 200_000, replacement=True)
    guide = moment_matching(two_modes.banana_model, {"first": first[draws], "second": second[draws]}, x)
    best = cross_entropy(guide.loc, guide.covariance_matrix, x)
    for scale in (0.7, 0.9, 1.1, 1.4):
        assert cross_entropy(guide.loc, scale * guide.covariance_matrix, x) > best
        assert cross_entropy(guide.loc + (scale - 1), guide.covariance_matrix, x) > best
    assert cross_entropy(*(lambda g: (g.loc, g.covariance_matrix))(laplace(two_modes.banana_model, x)), x) > best + 1


def test_moments_come_from_mcmc_in_unconstrained_space() -> None:
    x = torch.tensor([1.3, -0.2, 2.5, 0.8, 1.1], dtype=torch.float64)
    mcmc = MCMC(NUTS(normal_gamma.model), num_samples=60, warmup_steps=30, disable_progbar=True)
    mcmc.run(x)
    guide = moment_matching(normal_gamma.model, mcmc, x)
    draws = mcmc.get_samples()
    expected = np.stack([draws["precision"].log().numpy(), draws["mean"].numpy()])
    np.testing.assert_allclose(guide.loc.numpy(), expected.mean(1), rtol=1e-12)
    np.testing.assert_allclose(guide.covariance_matrix.numpy(), np.cov(expected, ddof=0), rtol=1e-9)


def test_a_gaussian_guide_scores_and_samples_as_any_guide() -> None:
    precision = torch.tensor(PRECISIONS["negative"], dtype=torch.float64)
    guide = GaussianGuide(bivariate_gaussian.model, LOC, torch.linalg.inv(precision))
    loss = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=0).loss(
        bivariate_gaussian.model, guide, LOC, precision
    )
    assert -loss == pytest.approx(bivariate_gaussian.log_evidence(LOC, precision).item(), abs=1e-9)
    draws = Predictive(bivariate_gaussian.model, guide=guide, num_samples=4000, parallel=True)(LOC, precision)
    error = guide.covariance_matrix.diagonal().sqrt() / math.sqrt(4000)
    assert abs(draws["first"].mean() - LOC[0]) < 4 * error[0]
    assert {name for name, _ in guide.named_buffers()} >= {"loc", "scale", "scale_tril"}
    assert not list(guide.parameters())


def test_what_gives_no_moments_is_named() -> None:
    x = torch.tensor([4.0], dtype=torch.float64)
    draws = {"first": torch.randn(50).double(), "second": torch.randn(50).double()}
    with pytest.raises(DataError, match="keep_samples=True where it is made, in naive_monte_carlo or importance"):
        moment_matching(two_modes.model, naive_monte_carlo(two_modes.model, x, num_samples=10), x)
    with pytest.raises(DataError, match="Expected draws of the latent sites"):
        moment_matching(two_modes.model, {"first": draws["first"]}, x)
    with pytest.raises(DataError, match=r"Expected an effective sample size above 2 for the covariance; got 2\.0"):
        moment_matching(two_modes.model, {n: d[:2] for n, d in draws.items()}, x)
    with pytest.warns(UserWarning, match=r"rest on an effective sample size of 5\.0"):
        moment_matching(two_modes.model, {n: d[:5] for n, d in draws.items()}, x)
    with pytest.raises(DataError, match="Expected finite draws inside the support"):
        moment_matching(two_modes.model, {n: d / 0 for n, d in draws.items()}, x)
    with pytest.raises(ValueError, match="Expected covariance to be 'full' or 'diagonal'; got 'none'"):
        moment_matching(two_modes.model, draws, x, covariance="none")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"Expected draws of the latent sites, .* with \[0\] draws"):
        moment_matching(two_modes.model, {n: d[:0] for n, d in draws.items()}, x)
    with pytest.raises(TypeError, match="Expected an MCMC, Weights or draws by site; got list"):
        moment_matching(two_modes.model, [draws], x)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"Expected covariance_matrix to be symmetric; got entries that differ by 0\.5"
    ):
        GaussianGuide(two_modes.model, LOC, torch.tensor([[1.0, 0.5], [0.0, 1.0]]).double())
    with pytest.raises(ValueError, match="Expected covariance_matrix to be positive definite"):
        GaussianGuide(two_modes.model, LOC, -torch.eye(2).double())
    with pytest.raises(ModelError, match="Expected moments of the model's 2 unconstrained latent dimensions; got 1"):
        GaussianGuide(two_modes.model, torch.zeros(1), torch.eye(1))(x)


def _divergence_from_two_modes(full: bool) -> float:
    """KL(q ‖ p) of the Gaussian q with the moments of p, in closed form: E_q log p(x, z) is a polynomial's mean.

    The moments of p are by quadrature over second, given which first is normal.
    """
    x = torch.tensor([4.0, 3.0, 2.5], dtype=torch.float64)
    scale, second = 1.5, torch.linspace(-30.0, 30.0, 60_001, dtype=torch.float64)
    precision = 1 / scale**2 + len(x) * second**2
    loc = x.sum() * second / precision
    weight = (precision * loc**2 / 2 - precision.log() / 2 - second**2 / (2 * scale**2)).softmax(0)
    variance, between = float(weight @ second**2), full * float(weight @ (second * loc))
    square = variance**2 + 2 * between**2  # of first · second, whose mean is the covariance
    misfit = float((x**2).sum()) - 2 * float(x.sum()) * between + len(x) * square
    log_joint = -(variance / scale**2) - misfit / 2 - 2 * math.log(scale) - (2 + len(x)) / 2 * math.log(2 * math.pi)
    entropy = 1 + math.log(2 * math.pi) + math.log(variance**2 - between**2) / 2
    return float(two_modes.log_evidence(x)) - log_joint - entropy


def test_the_picture_of_the_directions_has_the_numbers_of_the_closed_forms(tmp_path: Path) -> None:
    found = kl_directions.main(["--out", str(tmp_path)])
    gaussian, two = found["a Gaussian, ρ² = 0.8"], found["two modes"]
    best = -0.5 * math.log(1 - 0.8)
    assert gaussian["KL(q ‖ p)"][0] == pytest.approx(best, abs=1e-5)
    assert gaussian["KL(p ‖ q)"][1] == pytest.approx(best, abs=1e-5)
    assert max(map(abs, gaussian["Laplace"])) < 1e-5
    assert min(two, key=lambda name: two[name][0]) == "KL(q ‖ p)" and two["KL(q ‖ p)"][0] > math.log(2)
    assert min(two, key=lambda name: two[name][1]) == "KL(p ‖ q), full"
    for name in ("KL(p ‖ q)", "KL(p ‖ q), full"):
        assert two[name][0] == pytest.approx(_divergence_from_two_modes(full=name.endswith("full")), rel=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {"misleads.png", "coordinate_path.svg"}
