"""Ordinary Pyro models by the engine, against exact evidence, scikit-learn, BayesPy and sums over every configuration."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import bayespy_reference as bayespy
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.infer.cavi import CAVIResult
from pyro_latent.models import gmm, normal_gamma

BLOCK = ("mean", "precision")
JOINT = [BLOCK]
PRIOR = {"prior_loc": 0.5, "prior_precision_scaling": 0.3, "prior_concentration": 1.5, "prior_rate": 2.0}
DOUBLE = torch.float64


@dataclass(frozen=True)
class Fit:
    """A fitted guide, and what the run returned."""

    guide: AutoConjugate
    result: CAVIResult

    def posterior(self, key: Any) -> Any:
        return self.guide.posterior(joint=isinstance(key, tuple))[key]


def fit(
    model: Callable[..., Any],
    *args: Any,
    blocks: Sequence[Sequence[str]] | None = None,
    init: Any = None,
    order: Sequence[str] | None = None,
    max_steps: int = 2000,
    tol: float = 1e-14,
    **kwargs: Any,
) -> Fit:
    guide = AutoConjugate(model, blocks=blocks, init=init)
    result = CAVI(model, guide, order=order).run(*args, max_steps=max_steps, tol=tol, **kwargs)
    return Fit(guide, result)


def rounded(x: Tensor) -> Tensor:
    """Numbers that an offset of 10⁶ leaves exact."""
    return (x * 1024).round() / 1024


def rows(count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, dtype=DOUBLE)


def start(count: int, size: int) -> Tensor:
    """Responsibilities that are neither one-hot nor uniform."""
    return torch.rand(count, size, dtype=DOUBLE).mul(3).softmax(-1)


def moments(distribution: Any) -> list[Tensor]:
    """The moments that BayesPy keeps of a distribution."""
    while isinstance(distribution, dist.Independent | torch.distributions.Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, dist.MultivariateNormal):
        loc = distribution.loc
        return [loc, distribution.covariance_matrix + loc.unsqueeze(-1) * loc.unsqueeze(-2)]
    if isinstance(distribution, dist.Normal):
        return [distribution.loc, distribution.scale**2 + distribution.loc**2]
    if isinstance(distribution, dist.Gamma):
        return [distribution.mean, torch.digamma(distribution.concentration) - distribution.rate.log()]
    if isinstance(distribution, dist.Dirichlet):
        concentration = distribution.concentration
        return [torch.digamma(concentration) - torch.digamma(concentration.sum(-1, keepdim=True))]
    if isinstance(distribution, dist.Beta):
        pair = torch.stack([distribution.concentration1, distribution.concentration0], -1)
        return [torch.digamma(pair) - torch.digamma(pair.sum(-1, keepdim=True))]
    if isinstance(distribution, dist.Wishart):
        matrix, df = distribution.covariance_matrix, distribution.df
        halves = (df.unsqueeze(-1) - torch.arange(matrix.shape[-1])) / 2
        log_det = torch.digamma(halves).sum(-1) + matrix.shape[-1] * math.log(2) + matrix.logdet()
        return [df[..., None, None] * matrix, log_det]
    return [distribution.probs]


def assert_equals_bayespy(found: Fit, expected: bayespy.Reference, rtol: float = 1e-8) -> None:
    """The ELBO of every sweep and the moments after the last."""
    np.testing.assert_allclose(found.result.elbo.numpy(), expected.elbo, rtol=rtol)
    posterior = found.guide.posterior()
    assert set(posterior) == set(expected.moments)
    for name, theirs in expected.moments.items():
        for ours, value in zip(moments(posterior[name]), theirs, strict=True):
            np.testing.assert_allclose(ours.reshape(value.shape), value, rtol=rtol, atol=1e-9, err_msg=name)


def assert_same(found: Any, expected: Any, rtol: float) -> None:
    """Two distributions of one class, parameter by parameter."""
    assert type(found) is type(expected)
    names = ("loc", "scale", "covariance_matrix", "precision_scaling", "df", "concentration", "rate", "concentration1")
    compared = 0
    for name in (*names, "concentration0"):
        if isinstance(getattr(expected, name, None), Tensor):
            compared += 1
            size = getattr(expected, name).abs().max().item()
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=rtol, atol=rtol * size)
    assert compared > 1


# ------------------------------------------------------------------------------------------------------ Normal-Gamma


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("count", [1, 10, 1000, 10**6])
def test_joint_block_is_the_exact_posterior_and_the_elbo_the_evidence(count: int, offset: float) -> None:
    x = rounded(1.7 * torch.randn(count, dtype=DOUBLE) + 0.25) + offset
    prior = PRIOR | {"prior_loc": 0.5 + offset}
    found = fit(normal_gamma.model, x, blocks=JOINT, **prior)
    assert_same(found.posterior(BLOCK), normal_gamma.posterior(x, **prior), rtol=1e-10)
    assert found.guide.elbo() == pytest.approx(normal_gamma.log_evidence(x, **prior).item(), rel=1e-10)
    assert found.result.num_steps == 2
    near = normal_gamma.posterior(x - offset, **PRIOR)
    torch.testing.assert_close(found.posterior("precision").rate, near.rate, rtol=1e-10, atol=0)
    assert found.guide.elbo() == pytest.approx(normal_gamma.log_evidence(x - offset, **PRIOR).item(), rel=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("count", [1, 10, 1000, 10**6])
def test_mean_field_solves_the_corrected_equations(count: int, offset: float) -> None:
    centered = rounded(1.7 * torch.randn(count, dtype=DOUBLE) + 0.25)
    prior = PRIOR | {"prior_loc": 0.5 + offset}
    found = fit(normal_gamma.model, centered + offset, tol=0, max_steps=60, **prior)
    # (84)-(87) with the shape's half restored, at E[mean²] = loc² + 1 / (scaling E[precision]), solved for the rate
    scaling, shape = 0.3 + count, 1.5 + (count + 1) / 2
    loc = 0.5 + (centered - 0.5).sum() / scaling
    constant = 2.0 + (((centered - loc) ** 2).sum() + 0.3 * (0.5 - loc) ** 2) / 2
    rate = constant / (1 - 1 / (2 * shape))
    mean, precision = found.posterior("mean"), found.posterior("precision")
    assert precision.concentration.item() == pytest.approx(shape, rel=1e-12)
    assert precision.rate.item() == pytest.approx(rate.item(), rel=1e-10)
    assert (mean.loc - offset).item() == pytest.approx(loc.item(), rel=1e-10, abs=1e-15 * offset)
    assert mean.scale.item() == pytest.approx((rate / (scaling * shape)).sqrt().item(), rel=1e-10)


@pytest.mark.parametrize("blocks", [None, JOINT])
def test_single_precision_far_from_the_origin_agrees_with_double(blocks: Any) -> None:
    x = (1000 + torch.randn(100_000)).float()
    priors = {"prior_loc": 1000.0, "prior_precision_scaling": 1e-3}
    single = fit(normal_gamma.model, x, blocks=blocks, tol=1e-7, **priors)
    double = fit(normal_gamma.model, x.double(), blocks=blocks, **priors)
    assert single.posterior("precision").mean.item() == pytest.approx(double.posterior("precision").mean.item(), rel=1e-5)
    assert single.posterior("mean").mean.item() == pytest.approx(double.posterior("mean").mean.item(), rel=1e-6)
    assert single.guide.elbo() == pytest.approx(double.guide.elbo(), rel=1e-6)
    assert all(value.dtype == torch.float32 for name, value in single.guide.named_buffers() if "natural" in name)


# -------------------------------------------------------------------------------------------------- Gaussian mixture


class StartedMixture(BayesianGaussianMixture):
    """scikit-learn's mixture from given responsibilities."""

    responsibilities: np.ndarray

    def _initialize_parameters(self, X: np.ndarray, random_state: Any, xp: Any = None) -> None:
        self._initialize(X, self.responsibilities)


def fit_scikit_learn(data: Tensor, responsibilities: Tensor, max_iter: int, tol: float, **priors: Any) -> StartedMixture:
    fitted = StartedMixture(
        n_components=responsibilities.shape[-1],
        covariance_type="full",
        weight_concentration_prior_type="dirichlet_distribution",
        reg_covar=0.0,
        tol=tol,
        max_iter=max_iter,
        **priors,
    )
    fitted.responsibilities = responsibilities.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fitted.fit(data.numpy())


def assert_equals_scikit_learn(found: Fit, fitted: StartedMixture, rtol: float) -> None:
    block, df = found.posterior(BLOCK), fitted.degrees_of_freedom_
    inverse_scale = fitted.covariances_ * df[:, None, None]
    np.testing.assert_allclose(found.posterior("weights").concentration, fitted.weight_concentration_, rtol=rtol)
    np.testing.assert_allclose(block.loc, fitted.means_, rtol=rtol)
    np.testing.assert_allclose(block.precision_scaling, fitted.mean_precision_, rtol=rtol)
    np.testing.assert_allclose(block.df, df, rtol=rtol)
    np.testing.assert_allclose(np.linalg.inv(block.covariance_matrix), inverse_scale, rtol=rtol)


MIXTURE_PRIORS: dict[str, Any] = {
    "weight_concentration_prior": 0.8,
    "mean_precision_prior": 0.05,
    "degrees_of_freedom_prior": 3.5,
}


@pytest.mark.parametrize("priors", [{}, MIXTURE_PRIORS])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_converged_mixture_equals_scikit_learn(old_faithful: Tensor, size: int, priors: dict[str, Any]) -> None:
    responsibilities = start(len(old_faithful), size)
    fitted = fit_scikit_learn(old_faithful, responsibilities, 1000, 0.0, **priors)
    init = {"component": responsibilities}
    found = fit(gmm.model, old_faithful, size, blocks=JOINT, init=init, tol=0, max_steps=1001, **priors)
    assert found.result.elbo[-1] - found.result.elbo[-2] < 1e-9
    assert_equals_scikit_learn(found, fitted, rtol=1e-6)
    theirs = fitted.predict_proba(old_faithful.numpy())
    np.testing.assert_allclose(found.posterior("component").probs, theirs, rtol=1e-6, atol=1e-9)


def test_every_sweep_of_a_mixture_equals_an_iteration_of_scikit_learn(old_faithful: Tensor) -> None:
    responsibilities = start(len(old_faithful), 3)
    guide = AutoConjugate(gmm.model, blocks=JOINT, init={"component": responsibilities})
    cavi = CAVI(gmm.model, guide)
    cavi.step(old_faithful, 3)  # their first estimate, from the start
    for iterations in range(1, 21):
        cavi.step(old_faithful, 3)
        fitted = fit_scikit_learn(old_faithful, responsibilities, iterations, 0.0)
        found = Fit(guide, CAVIResult(torch.empty(0), False, 0, torch.empty(0)))
        assert_equals_scikit_learn(found, fitted, rtol=1e-8)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_every_sweep_of_a_mixture_equals_the_textbook_updates(old_faithful: Tensor, covariance: gmm.Covariance) -> None:
    responsibilities = start(len(old_faithful), 3)
    guide = AutoConjugate(gmm.model, blocks=JOINT, init={"component": responsibilities})
    cavi = CAVI(gmm.model, guide)
    q: dict[Any, Any] = {"component": dist.Categorical(probs=responsibilities)}
    for _ in range(20):
        cavi.step(old_faithful, 3, covariance=covariance)
        for key in ("weights", BLOCK, "component"):
            q[key] = gmm.updates[key](q, old_faithful, 3, covariance=covariance)
        posterior = guide.posterior(joint=True)
        for key in ("weights", BLOCK):
            if key == "weights":
                torch.testing.assert_close(posterior[key].concentration, q[key].concentration, rtol=1e-9, atol=0)
            else:
                assert_same(posterior[key], q[key], rtol=1e-9)
        torch.testing.assert_close(posterior["component"].probs, q["component"].probs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_small_concentration_leaves_two_of_six_components_on_old_faithful(old_faithful: Tensor, seed: int) -> None:
    data = (old_faithful - old_faithful.mean(0)) / old_faithful.std(0)
    found = fit(gmm.model, data, 6, blocks=JOINT, init=seed, tol=1e-10, weight_concentration_prior=1e-3)
    counts = found.posterior("weights").concentration - 1e-3
    assert sorted((counts > 1).tolist()) == [False] * 4 + [True] * 2
    assert counts.sort().values[:4].sum() < 1e-3
    assert counts.max() / counts.sum() == pytest.approx(0.64, abs=0.02)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_shifted_and_scaled_data_shift_and_scale_the_mixture(old_faithful: Tensor, covariance: gmm.Covariance) -> None:
    data = rounded(old_faithful)
    options: dict[str, Any] = {"blocks": JOINT, "init": {"component": start(len(data), 3)}, "tol": 0, "max_steps": 60}
    plain = fit(gmm.model, data, 3, covariance=covariance, **options)
    shifted = fit(gmm.model, data + 1e6, 3, covariance=covariance, **options)
    scaled = fit(gmm.model, data * 1024, 3, covariance=covariance, **options)
    for moved, offset, factor in [(shifted, 1e6, 1.0), (scaled, 0.0, 1024.0)]:
        ours, theirs = moved.posterior("component").probs, plain.posterior("component").probs
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
        weights = plain.posterior("weights").concentration
        torch.testing.assert_close(moved.posterior("weights").concentration, weights, rtol=1e-7, atol=0)
        loc = plain.posterior(BLOCK).loc
        torch.testing.assert_close((moved.posterior(BLOCK).loc - offset) / factor, loc, rtol=1e-7, atol=0)
        expected = plain.result.elbo - data.numel() * math.log(factor)
        torch.testing.assert_close(moved.result.elbo, expected, rtol=1e-8, atol=0)


def independent_mixture(data: Tensor, size: int) -> None:
    """Means and precisions with priors of their own."""
    dim = data.shape[-1]
    eye = torch.eye(dim, dtype=data.dtype)
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((size,), 0.5, dtype=data.dtype)))
    with pyro.plate("components", size):
        mean = pyro.sample("mean", dist.MultivariateNormal(data.new_zeros(dim), precision_matrix=0.1 * eye))
        precision = pyro.sample("precision", dist.Wishart(data.new_tensor(dim + 1.5), covariance_matrix=eye / 2))
    with pyro.plate("data", len(data)):
        component = pyro.sample("component", dist.Categorical(weights))
        likelihood = dist.MultivariateNormal(mean[component], precision_matrix=precision[component])
        pyro.sample("obs", likelihood, obs=data)


@pytest.mark.parametrize("count", [1, 5, 200])
def test_mixture_with_independent_priors_equals_bayespy(old_faithful: Tensor, count: int) -> None:
    data = (old_faithful - old_faithful.mean(0)) / old_faithful.std(0)
    responsibilities, eye = start(len(data), 3), torch.eye(2, dtype=DOUBLE)
    init = {"component": responsibilities, "mean": dist.MultivariateNormal(torch.zeros(3, 2, dtype=DOUBLE), eye)}
    order = ["mean", "precision", "weights"]
    found = fit(independent_mixture, data, 3, init=init, order=order, tol=0, max_steps=count)
    prior = {"concentration": 0.5, "loc": np.zeros(2), "precision": 0.1 * np.eye(2), "df": 3.5, "inverse_scale": 2 * np.eye(2)}
    expected = bayespy.gaussian_mixture(data.numpy(), responsibilities.numpy(), prior, count)
    assert_equals_bayespy(found, expected)


# -------------------------------------------------------------------------------------------------------- regression


def by_matmul(features: Tensor, weights: Tensor) -> Tensor:
    return features @ weights


def by_product(features: Tensor, weights: Tensor) -> Tensor:
    return (features * weights).sum(-1)


def by_einsum(features: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("nd,d->n", features, weights)


def by_linear(features: Tensor, weights: Tensor) -> Tensor:
    return torch.nn.functional.linear(features, weights.unsqueeze(0)).squeeze(-1)


def by_mv(features: Tensor, weights: Tensor) -> Tensor:
    return torch.mv(features, weights)


PREDICTORS = [by_matmul, by_product, by_einsum, by_linear, by_mv]
Predictor = Callable[[Tensor, Tensor], Tensor]


def known_noise(features: Tensor, target: Tensor, predictor: Predictor) -> None:
    weights = pyro.sample("weights", dist.Normal(0.0, 2.0).expand([features.shape[1]]).to_event(1))
    with pyro.plate("data", len(target)):
        pyro.sample("obs", dist.Normal(predictor(features, weights), 0.7), obs=target)


def regression(features: Tensor, target: Tensor, predictor: Predictor = by_matmul) -> None:
    weights = pyro.sample("weights", dist.Normal(0.0, 0.1**-0.5).expand([features.shape[1]]).to_event(1))
    precision = pyro.sample("precision", dist.Gamma(2.0, 3.0))
    with pyro.plate("data", len(target)):
        pyro.sample("obs", dist.Normal(predictor(features, weights), precision.rsqrt()), obs=target)


def relevance_regression(features: Tensor, target: Tensor, predictor: Predictor = by_matmul) -> None:
    relevance = pyro.sample("relevance", dist.Gamma(1.5, 0.7).expand([features.shape[1]]).to_event(1))
    weights = pyro.sample("weights", dist.Normal(0.0, relevance.rsqrt()).to_event(1))
    precision = pyro.sample("precision", dist.Gamma(2.0, 3.0))
    with pyro.plate("data", len(target)):
        pyro.sample("obs", dist.Normal(predictor(features, weights), precision.rsqrt()), obs=target)


def intercept_regression(features: Tensor, target: Tensor, predictor: Predictor = by_matmul) -> None:
    intercept = pyro.sample("intercept", dist.Normal(1.0, 3.0))
    weights = pyro.sample("weights", dist.Normal(0.0, 2.0).expand([features.shape[1]]).to_event(1))
    with pyro.plate("data", len(target)):
        pyro.sample("obs", dist.Normal(intercept + predictor(features, weights), 0.7), obs=target)


def diabetes(offset: float = 0.0) -> tuple[Tensor, Tensor]:
    features, target = (torch.from_numpy(x) for x in load_diabetes(return_X_y=True))
    return features * 20, (target - target.mean()) / target.std() + offset


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_regression_with_known_noise_has_the_evidence_of_its_covariance(predictor: Predictor) -> None:
    features, target = diabetes()
    found = fit(known_noise, features, target, predictor)
    covariance = 4 * features @ features.T + 0.49 * torch.eye(len(target), dtype=DOUBLE)
    exact = scipy.stats.multivariate_normal.logpdf(target, np.zeros(len(target)), covariance)
    assert found.guide.elbo() == pytest.approx(exact, rel=1e-9)
    precision = torch.eye(10, dtype=DOUBLE) / 4 + features.T @ features / 0.49
    posterior = found.posterior("weights")
    torch.testing.assert_close(posterior.covariance_matrix, precision.inverse(), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(posterior.mean, precision.inverse() @ features.T @ target / 0.49, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize(("model", "relevance"), [(regression, False), (relevance_regression, True)])
def test_regression_with_unknown_noise_equals_bayespy(model: Any, relevance: bool, predictor: Predictor) -> None:
    features, target = diabetes()
    order = ["weights", "relevance", "precision"] if relevance else ["weights", "precision"]
    found = fit(model, features, target, predictor, order=order, tol=0, max_steps=15)
    expected = bayespy.regression(features.numpy(), target.numpy(), 15, relevance=relevance)
    assert_equals_bayespy(found, expected)


def gaussian_mean_field(precision: Tensor, linear: Tensor, blocks: Sequence[Sequence[int]]) -> tuple[Tensor, float]:
    """Means, and KL(q ‖ p), of the best q with independent blocks of a Gaussian with this precision matrix."""
    parts = sum(precision[list(b)][:, list(b)].logdet().item() for b in blocks)
    return torch.linalg.solve(precision, linear), (parts - precision.logdet().item()) / 2


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_intercept_and_weights_reach_the_mean_field_of_a_gaussian(predictor: Predictor, offset: float) -> None:
    features, target = diabetes()
    features = features + 0.05  # so that the intercept and the weights are correlated
    target = rounded(target)
    pyro_model = poutine.condition(intercept_regression, {})
    if offset:

        def pyro_model(features: Tensor, target: Tensor, predictor: Predictor) -> None:
            intercept = pyro.sample("intercept", dist.Normal(1.0 + offset, 3.0))
            weights = pyro.sample("weights", dist.Normal(0.0, 2.0).expand([features.shape[1]]).to_event(1))
            with pyro.plate("data", len(target)):
                pyro.sample("obs", dist.Normal(predictor(features, weights) + intercept, 0.7), obs=target)

    found = fit(pyro_model, features, target + offset, predictor, tol=0, max_steps=400)
    design = torch.cat([torch.ones(len(target), 1, dtype=DOUBLE), features], 1)
    prior = torch.tensor([1 / 9] + [1 / 4] * 10, dtype=DOUBLE)
    precision = prior.diag() + design.T @ design / 0.49
    linear = design.T @ target / 0.49 + prior * torch.eye(11, dtype=DOUBLE)[0]
    mean, divergence = gaussian_mean_field(precision, linear, [[0], list(range(1, 11))])
    assert (found.posterior("intercept").mean - offset).item() == pytest.approx(mean[0].item(), rel=1e-8, abs=1e-9)
    torch.testing.assert_close(found.posterior("weights").mean, mean[1:], rtol=1e-7, atol=1e-9)
    covariance = (design / prior) @ design.T + 0.49 * torch.eye(len(target), dtype=DOUBLE)
    evidence = scipy.stats.multivariate_normal.logpdf(target, np.ones(len(target)), covariance)
    assert found.guide.elbo() == pytest.approx(evidence - divergence, rel=1e-9)


# ---------------------------------------------------------------------------------------------- principal components


def components_by_matmul(data: Tensor, dim: int, mask: Tensor | None = None) -> None:
    """Probabilistic principal components, the columns an event."""
    relevance = pyro.sample("relevance", dist.Gamma(1.5, 0.7).expand([dim]).to_event(1))
    precision = pyro.sample("precision", dist.Gamma(2.0, 3.0))
    with pyro.plate("columns", data.shape[1]):
        loadings = pyro.sample("loadings", dist.Normal(0.0, relevance.rsqrt()).to_event(1))
    with pyro.plate("rows", len(data)):
        scores = pyro.sample("scores", dist.Normal(0.0, 1.0).expand([dim]).to_event(1))
        pyro.sample("obs", dist.Normal(scores @ loadings.T, precision.rsqrt()).to_event(1), obs=data)


def components_by_plates(data: Tensor, dim: int, mask: Tensor | None = None) -> None:
    """The same with rows and columns as plates, and cells that may be hidden."""
    relevance = pyro.sample("relevance", dist.Gamma(1.5, 0.7).expand([dim]).to_event(1))
    precision = pyro.sample("precision", dist.Gamma(2.0, 3.0))
    rows, columns = pyro.plate("rows", len(data), dim=-2), pyro.plate("columns", data.shape[1], dim=-1)
    with columns:
        loadings = pyro.sample("loadings", dist.Normal(0.0, relevance.rsqrt()).to_event(1))
    with rows:
        scores = pyro.sample("scores", dist.Normal(0.0, 1.0).expand([dim]).to_event(1))
    with rows, columns:
        likelihood = dist.Normal((scores * loadings).sum(-1), precision.rsqrt())
        pyro.sample("obs", likelihood if mask is None else likelihood.mask(mask), obs=data)


@pytest.mark.parametrize("model", [components_by_matmul, components_by_plates])
@pytest.mark.parametrize("dim", [1, 3])
def test_principal_components_equal_bayespy(model: Any, dim: int) -> None:
    data = torch.from_numpy(load_iris().data)
    data = data - data.mean(0)
    loadings = rows(4, dim)
    init = {"loadings": dist.Normal(loadings, 0.1).to_event(1)}
    order = ["scores", "loadings", "relevance", "precision"]
    found = fit(model, data, dim, init=init, order=order, tol=0, max_steps=40)
    assert_equals_bayespy(found, bayespy.principal_components(data.numpy(), loadings.numpy(), 40))


@pytest.mark.parametrize("hide", ["mask", "nan"])
def test_principal_components_with_missing_cells_equal_bayespy(hide: str) -> None:
    data = torch.from_numpy(load_iris().data)
    data = data - data.mean(0)
    loadings, mask = rows(4, 2), torch.rand(data.shape) < 0.8
    seen = data if hide == "mask" else torch.where(mask, data, torch.nan)
    init = {"loadings": dist.Normal(loadings, 0.1).to_event(1)}
    order = ["scores", "loadings", "relevance", "precision"]
    found = fit(components_by_plates, seen, 2, mask, init=init, order=order, tol=0, max_steps=20)
    assert_equals_bayespy(found, bayespy.principal_components(data.numpy(), loadings.numpy(), 20, mask.numpy()))


# ------------------------------------------------------------------------------------------- counts and proportions


def bernoulli_mixture(data: Tensor, size: int) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((size,), 0.5, dtype=DOUBLE)))
    with pyro.plate("components", size):
        probs = pyro.sample("probs", dist.Beta(1.0, 1.0).expand([data.shape[1]]).to_event(1))
    with pyro.plate("data", len(data)):
        component = pyro.sample("component", dist.Categorical(weights))
        pyro.sample("obs", dist.Bernoulli(probs[component]).to_event(1), obs=data)


def poisson_mixture(data: Tensor, size: int) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(size, dtype=DOUBLE)))
    with pyro.plate("components", size):
        rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("data", len(data)):
        component = pyro.sample("component", dist.Categorical(weights))
        pyro.sample("obs", dist.Poisson(rate[component]), obs=data)


def digits(count: int) -> Tensor:
    return torch.from_numpy((load_digits().data[:count] > 7).astype(float))


def test_bernoulli_mixture_of_digits_equals_bayespy() -> None:
    data, responsibilities = digits(200), start(200, 4)
    found = fit(bernoulli_mixture, data, 4, init={"component": responsibilities}, tol=0, max_steps=20)
    expected = bayespy.bernoulli_mixture(data.numpy().astype(int), responsibilities.numpy(), 0.5, 20)
    expected.moments["component"][0] = expected.moments["component"][0].squeeze(1)
    expected.moments["probs"][0] = expected.moments["probs"][0].swapaxes(0, 1)
    assert_equals_bayespy(found, expected)


def test_poisson_mixture_equals_bayespy() -> None:
    data = torch.poisson(torch.tensor([1.0, 9.0], dtype=DOUBLE).repeat(40))
    responsibilities = start(80, 2)
    found = fit(poisson_mixture, data, 2, init={"component": responsibilities}, tol=0, max_steps=20)
    assert_equals_bayespy(found, bayespy.poisson_mixture(data.numpy().astype(int), responsibilities.numpy(), 20))


def poisson_groups(counts: Tensor, exposure: Tensor) -> None:
    """One rate for each group, one count for each rate."""
    with pyro.plate("groups", len(counts)):
        rate = pyro.sample("rate", dist.Gamma(2.5, 1.5))
        pyro.sample("obs", dist.Poisson(rate * exposure), obs=counts)


def poisson_sample(counts: Tensor, exposure: Tensor) -> None:
    """One rate for all counts."""
    rate = pyro.sample("rate", dist.Gamma(2.5, 1.5))
    with pyro.plate("data", len(counts)):
        pyro.sample("obs", dist.Poisson(exposure * rate), obs=counts)


def beta_bernoulli(data: Tensor) -> None:
    probs = pyro.sample("probs", dist.Beta(2.0, 0.7))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Bernoulli(probs), obs=data)


def dirichlet_categorical(data: Tensor) -> None:
    probs = pyro.sample("probs", dist.Dirichlet(torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE)))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Categorical(probs), obs=data)


def dirichlet_multinomial(counts: Tensor) -> None:
    with pyro.plate("groups", len(counts)):
        probs = pyro.sample("probs", dist.Dirichlet(torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE)))
        pyro.sample("obs", dist.Multinomial(5, probs), obs=counts)


def gamma_rate(data: Tensor) -> None:
    """A Gamma sample with a random rate, halved on its way."""
    rate = pyro.sample("rate", dist.Gamma(2.5, 1.5))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Gamma(3.0, rate / 2), obs=data)


def known_precision(data: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.5, 2.0))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Normal(mean - 1.0, 0.8), obs=data)


def known_mean(data: Tensor) -> None:
    precision = pyro.sample("precision", dist.Gamma(2.5, 1.5))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Normal(0.3, (3 * precision) ** -0.5), obs=data)


def wishart_precision(data: Tensor) -> None:
    eye = torch.eye(2, dtype=DOUBLE)
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(3.5, dtype=DOUBLE), covariance_matrix=0.5 * eye))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.MultivariateNormal(torch.ones(2, dtype=DOUBLE), precision_matrix=precision), obs=data)


COUNTS = torch.tensor([0.0, 3.0, 1.0, 7.0, 2.0], dtype=DOUBLE)
EXPOSURE = torch.tensor([0.5, 1.0, 2.0, 3.5, 1.0], dtype=DOUBLE)
BITS = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 0.0], dtype=DOUBLE)
LABELS = torch.tensor([0, 2, 2, 1, 2, 0, 2])
TABLE = torch.tensor([[3.0, 0.0, 2.0], [1.0, 2.0, 2.0], [0.0, 0.0, 5.0]], dtype=DOUBLE)
POSITIVE = torch.tensor([0.5, 2.0, 1.3], dtype=DOUBLE)
REAL = torch.tensor([0.5, -2.0, 1.3, 0.1], dtype=DOUBLE)
PAIRS = torch.tensor([[0.5, -2.0], [1.3, 0.1], [0.2, 2.0]], dtype=DOUBLE)


def log_gamma_ratio(concentration: float, rate: float, more: float, added: float) -> float:
    """log of the ratio of the normalizers of Gamma(concentration + more, rate + added) and of the prior."""
    after = math.lgamma(concentration + more) - (concentration + more) * math.log(rate + added)
    return after - math.lgamma(concentration) + concentration * math.log(rate)


def poisson_evidence() -> float:
    constant = (COUNTS * EXPOSURE.log() - torch.lgamma(COUNTS + 1)).sum().item()
    return constant + log_gamma_ratio(2.5, 1.5, COUNTS.sum().item(), EXPOSURE.sum().item())


def beta_bernoulli_evidence() -> float:
    ones, size = BITS.sum(), len(BITS)
    ways = math.log(math.comb(size, int(ones)))
    a, b = torch.tensor(2.0, dtype=DOUBLE), torch.tensor(0.7, dtype=DOUBLE)
    return dist.BetaBinomial(a, b, size).log_prob(ones).item() - ways


def categorical_evidence() -> float:
    counts = torch.bincount(LABELS, minlength=3).to(DOUBLE)
    ways = math.lgamma(len(LABELS) + 1) - torch.lgamma(counts + 1).sum().item()
    concentration = torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE)
    return dist.DirichletMultinomial(concentration, total_count=len(LABELS)).log_prob(counts).item() - ways


def multinomial_evidence() -> float:
    concentration = torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE).expand(3, 3)
    return dist.DirichletMultinomial(concentration, total_count=TABLE.sum(-1)).log_prob(TABLE).sum().item()


def gamma_evidence() -> float:
    constant = (2 * POSITIVE.log() + 3 * math.log(0.5) - math.lgamma(3.0)).sum().item()
    return constant + log_gamma_ratio(2.5, 1.5, 9.0, POSITIVE.sum().item() / 2)


def known_precision_evidence() -> float:
    covariance = 4 * np.ones((4, 4)) + 0.64 * np.eye(4)
    return scipy.stats.multivariate_normal.logpdf(REAL, np.full(4, -0.5), covariance)


def known_mean_evidence() -> float:
    # a multivariate t of 2 · 2.5 degrees of freedom: the rate over 3 · concentration is its shape
    return scipy.stats.multivariate_t.logpdf(REAL, np.full(4, 0.3), np.eye(4) * 1.5 / (2.5 * 3), df=5.0)


def wishart_evidence() -> float:
    scatter = (PAIRS - 1).T @ (PAIRS - 1)
    after = 2 * torch.eye(2, dtype=DOUBLE) + scatter
    total = -3 * math.log(math.pi) + scipy.special.multigammaln(3.25, 2) - scipy.special.multigammaln(1.75, 2)
    return total + 1.75 * math.log(4.0) - 3.25 * after.logdet().item()


EXACT: dict[str, tuple[Callable[..., None], tuple[Tensor, ...], Callable[[], float]]] = {
    "Poisson groups": (
        poisson_groups,
        (COUNTS, EXPOSURE),
        lambda: dist.GammaPoisson(torch.tensor(2.5, dtype=DOUBLE), 1.5 / EXPOSURE).log_prob(COUNTS).sum().item(),
    ),
    "Poisson sample": (poisson_sample, (COUNTS, EXPOSURE), poisson_evidence),
    "Beta-Bernoulli": (beta_bernoulli, (BITS,), beta_bernoulli_evidence),
    "Dirichlet-Categorical": (dirichlet_categorical, (LABELS,), categorical_evidence),
    "Dirichlet-Multinomial": (dirichlet_multinomial, (TABLE,), multinomial_evidence),
    "Gamma rate": (gamma_rate, (POSITIVE,), gamma_evidence),
    "Normal mean": (known_precision, (REAL,), known_precision_evidence),
    "Normal precision": (known_mean, (REAL,), known_mean_evidence),
    "Wishart precision": (wishart_precision, (PAIRS,), wishart_evidence),
}


@pytest.mark.parametrize("name", EXACT)
def test_one_conjugate_block_has_the_exact_evidence_after_one_sweep(name: str) -> None:
    model, args, evidence = EXACT[name]
    found = fit(model, *args, max_steps=1)
    assert found.result.elbo[0].item() == pytest.approx(evidence(), rel=1e-10)


# ------------------------------------------------------------------------------------------------- groups and effects


def group_means(target: Tensor, group: Tensor, num_groups: int) -> None:
    common = pyro.sample("common", dist.Normal(0.0, 10.0))
    between = pyro.sample("between", dist.Gamma(2.0, 1.0))
    within = pyro.sample("within", dist.Gamma(2.0, 3.0))
    with pyro.plate("groups", num_groups):
        means = pyro.sample("means", dist.Normal(common, between.rsqrt()))
    with pyro.plate("data", len(target)):
        pyro.sample("obs", dist.Normal(means[group], within.rsqrt()), obs=target)


def schools(effects: Tensor, errors: Tensor) -> None:
    common = pyro.sample("common", dist.Normal(0.0, 10.0))
    between = pyro.sample("between", dist.Gamma(1.0, 10.0))
    with pyro.plate("schools", len(effects)):
        means = pyro.sample("means", dist.Normal(common, between.rsqrt()))
        pyro.sample("obs", dist.Normal(means, errors), obs=effects)


SCHOOLS = (
    torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=DOUBLE),
    torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=DOUBLE),
)


def grouped() -> tuple[Tensor, Tensor]:
    group = torch.arange(23) % 4
    return torch.tensor([0.0, 2.0, -1.0, 5.0], dtype=DOUBLE)[group] + torch.randn(23, dtype=DOUBLE), group


def common_start(order: list[str]) -> dict[str, Any]:
    zero = torch.zeros((), dtype=DOUBLE)
    return {"init": {"common": dist.Normal(zero, zero + 10.0)}, "order": order, "tol": 0, "max_steps": 25}


def test_group_means_equal_bayespy() -> None:
    target, group = grouped()
    found = fit(group_means, target, group, 4, **common_start(["means", "common", "between", "within"]))
    assert_equals_bayespy(found, bayespy.group_means(target.numpy(), group.numpy(), 4, 25))


def test_eight_schools_equal_bayespy() -> None:
    found = fit(schools, *SCHOOLS, **common_start(["means", "common", "between"]))
    assert_equals_bayespy(found, bayespy.schools(SCHOOLS[0].numpy(), SCHOOLS[1].numpy(), 25))


def effects_by_index(target: Tensor, group: Tensor, other: Tensor) -> None:
    """Two crossed effects of known spread and an intercept."""
    intercept = pyro.sample("intercept", dist.Normal(1.0, 3.0))
    with pyro.plate("groups", 4):
        effect = pyro.sample("effect", dist.Normal(0.0, 2.0))
    with pyro.plate("others", 3):
        slope = pyro.sample("slope", dist.Normal(0.5, 1.5))
    with pyro.plate("data", len(target)):
        pyro.sample("obs", dist.Normal(effect[group] + intercept - 2 * slope[other], 0.7), obs=target)


def effects_by_matrix(target: Tensor, group: Tensor, other: Tensor) -> None:
    """The same with matrices of indicators and vectors of effects."""
    intercept = pyro.sample("intercept", dist.Normal(1.0, 3.0))
    effect = pyro.sample("effect", dist.Normal(0.0, 2.0).expand([4]).to_event(1))
    slope = pyro.sample("slope", dist.Normal(0.5, 1.5).expand([3]).to_event(1))
    groups = torch.nn.functional.one_hot(group, 4).to(target)
    others = torch.nn.functional.one_hot(other, 3).to(target)
    with pyro.plate("data", len(target)):
        pyro.sample("obs", dist.Normal(intercept + groups @ effect - 2 * others @ slope, 0.7), obs=target)


@pytest.mark.parametrize("model", [effects_by_index, effects_by_matrix])
def test_crossed_effects_reach_the_mean_field_of_a_gaussian(model: Any) -> None:
    target, group = grouped()
    other = torch.arange(23) % 3
    found = fit(model, target, group, other, tol=0, max_steps=4000)
    groups, others = torch.nn.functional.one_hot(group, 4), torch.nn.functional.one_hot(other, 3)
    design = torch.cat([torch.ones(23, 1), groups, -2 * others], 1).to(DOUBLE)
    prior = torch.tensor([1 / 9] + [1 / 4] * 4 + [1 / 2.25] * 3, dtype=DOUBLE)
    loc = torch.tensor([1.0] + [0.0] * 4 + [0.5] * 3, dtype=DOUBLE)
    precision = prior.diag() + design.T @ design / 0.49
    mean, divergence = gaussian_mean_field(precision, design.T @ target / 0.49 + prior * loc, [[0], range(1, 5), range(5, 8)])
    sites = [found.posterior(name).mean.reshape(-1) for name in ("intercept", "effect", "slope")]
    torch.testing.assert_close(torch.cat(sites), mean, rtol=1e-8, atol=1e-9)
    covariance = (design / prior) @ design.T + 0.49 * torch.eye(23, dtype=DOUBLE)
    evidence = scipy.stats.multivariate_normal.logpdf(target, design @ loc, covariance)
    assert found.guide.elbo() == pytest.approx(evidence - divergence, rel=1e-9)
