"""Ordinary Pyro models by the engine, against exact evidence, scikit-learn, BayesPy and brute-force sums."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import bayespy_reference as bayespy
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from started_mixture import StartedMixture
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_latent import CAVI, AutoConjugate, NotConjugateError
from pyro_latent.ascent.cavi import CAVIResult
from pyro_latent.models import gmm, normal_gamma

BLOCK = ("mean", "precision")
JOINT = [BLOCK]
PRIOR: dict[str, Any] = {
    "prior_loc": 0.5,
    "prior_precision_scaling": 0.3,
    "prior_concentration": 1.5,
    "prior_rate": 2.0,
}
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


def normal_wishart(data: Tensor) -> None:
    eye = torch.eye(data.shape[1], dtype=data.dtype)
    precision = pyro.sample("precision", dist.Wishart(data.new_tensor(5.0), covariance_matrix=eye))
    mean = pyro.sample("mean", dist.MultivariateNormal(torch.ones_like(data[0]), precision_matrix=0.3 * precision))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.MultivariateNormal(mean, precision_matrix=precision), obs=data)


@pytest.mark.parametrize("count", [1, 30])
def test_joint_normal_wishart_is_the_exact_posterior_and_the_elbo_the_evidence(count: int) -> None:
    data = rows(count, 3) + 2
    found = fit(normal_wishart, data, blocks=JOINT)
    # Murphy (2007), (251)-(255) and (266)
    mean, scaling, df = data.mean(0), 0.3 + count, 5.0 + count
    scatter = (data - mean).T @ (data - mean) + 0.3 * count / scaling * torch.outer(mean - 1, mean - 1)
    inverse_scale = torch.eye(3, dtype=DOUBLE) + scatter
    block = found.posterior(BLOCK)
    torch.testing.assert_close(block.loc, (0.3 + count * mean) / scaling, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(block.covariance_matrix.inverse(), inverse_scale, rtol=1e-10, atol=1e-10)
    assert (block.df.item(), block.precision_scaling.item()) == pytest.approx((df, scaling), rel=1e-12)
    evidence = scipy.special.multigammaln(df / 2, 3) - scipy.special.multigammaln(2.5, 3)
    evidence += 1.5 * math.log(0.3 / scaling) - 1.5 * count * math.log(math.pi) - df / 2 * inverse_scale.logdet().item()
    assert found.guide.elbo() == pytest.approx(evidence, rel=1e-10)


def groups(x: Tensor, label: Tensor) -> None:
    """Means of groups, in a plate, with the precision matrix that all share."""
    precision = pyro.sample("precision", dist.Wishart(x.new_tensor(3.5), covariance_matrix=torch.eye(2).to(x)))
    with pyro.plate("groups", 3):
        mean = pyro.sample("mean", dist.MultivariateNormal(x.new_ones(2), precision_matrix=0.4 * precision))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(mean[label], precision_matrix=precision), obs=x)


def test_means_that_share_a_precision_have_the_exact_posterior_and_evidence() -> None:
    """By the Normal-Wishart of each group in turn, whose posterior of the precision is the prior of the next one."""
    label = torch.tensor([0, 1, 1, 2, 2, 2, 0, 2])
    x = torch.randn(8, 2, dtype=DOUBLE) + 3 * label[:, None]
    found = fit(groups, x, label, blocks=JOINT, tol=1e-12)
    df, rate = 3.5, np.eye(2)
    evidence = -x.numel() / 2 * math.log(2 * math.pi)
    for group in range(3):
        own = x[label == group].numpy()
        count, off = len(own), own.mean(0) - 1
        after = rate + (own - own.mean(0)).T @ (own - own.mean(0)) + 0.4 * count / (0.4 + count) * np.outer(off, off)
        for sign, degrees, matrix in ((-1, df, rate), (1, df + count, after)):
            log_normalizer = scipy.special.multigammaln(degrees / 2, 2) + degrees * math.log(2)
            evidence += sign * (log_normalizer - degrees / 2 * np.linalg.slogdet(matrix)[1])
        evidence += math.log(0.4 / (0.4 + count))
        df, rate = df + count, after
        expected = (0.4 + own.sum(0)) / (0.4 + count)
        np.testing.assert_allclose(found.posterior(BLOCK).loc[group], expected, rtol=1e-10)
    assert found.result.elbo[-1].item() == pytest.approx(evidence, rel=1e-12)
    assert found.posterior(BLOCK).df.item() == df
    np.testing.assert_allclose(found.posterior(BLOCK).covariance_matrix.inverse(), rate, rtol=1e-9)
    posterior = found.guide.posterior()
    assert posterior["mean"].batch_shape == (3,) and posterior["precision"].batch_shape == ()


def several_outputs(x: Tensor, y: Tensor, in_plate: bool = True) -> None:
    precision = pyro.sample("precision", dist.Wishart(y.new_tensor(3.5), covariance_matrix=torch.eye(2).to(y)))
    row = dist.MultivariateNormal(y.new_zeros(2), precision_matrix=0.4 * precision)
    with pyro.plate("inputs", x.shape[1]) if in_plate else nullcontext():
        mean = pyro.sample("mean", row if in_plate else row.expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.MultivariateNormal(x @ mean, precision_matrix=precision), obs=y)


def test_a_regression_of_several_outputs_has_the_exact_posterior_and_evidence() -> None:
    """By the matrix normal-Wishart in closed form; each draw of Trace_ELBO is the evidence, too."""
    x, y = torch.randn(9, 3, dtype=DOUBLE), torch.randn(9, 2, dtype=DOUBLE)
    found = fit(several_outputs, x, y, blocks=JOINT, tol=1e-12)
    rows = 0.4 * np.eye(3) + (x.T @ x).numpy()
    loc = np.linalg.solve(rows, (x.T @ y).numpy())
    rate = np.eye(2) + (y.T @ y).numpy() - loc.T @ rows @ loc
    evidence = -9 * math.log(2 * math.pi) + 3 * math.log(0.4) - np.linalg.slogdet(rows)[1]
    for sign, df, matrix in ((-1, 3.5, np.eye(2)), (1, 12.5, rate)):
        log_normalizer = scipy.special.multigammaln(df / 2, 2) + df * math.log(2)
        evidence += sign * (log_normalizer - df / 2 * np.linalg.slogdet(matrix)[1])
    assert found.result.elbo[-1].item() == pytest.approx(evidence, rel=1e-12)
    joint = found.posterior(BLOCK)
    np.testing.assert_allclose(joint.loc, loc, rtol=1e-9)
    np.testing.assert_allclose(joint.row_precision, rows, rtol=1e-9)
    np.testing.assert_allclose(joint.covariance_matrix.inverse(), rate, rtol=1e-9)
    assert joint.df.item() == 12.5
    assert -Trace_ELBO().loss(several_outputs, found.guide, x, y) == pytest.approx(evidence, rel=1e-9)


def test_rows_of_an_event_with_their_precision_are_an_error_that_names_plates() -> None:
    with pytest.raises(NotConjugateError, match=r"one batch shape; got 'mean' \(3,\), 'precision' \(\).*same plates"):
        fit(several_outputs, torch.ones(4, 3, dtype=DOUBLE), torch.ones(4, 2, dtype=DOUBLE), False, blocks=JOINT)


def own_precisions(x: Tensor, label: Tensor) -> None:
    """A Normal-Wishart for each group, of which the first datum is of a mixture of two."""
    with pyro.plate("groups", 3):
        precision = pyro.sample("precision", dist.Wishart(x.new_tensor(3.5), covariance_matrix=torch.eye(2).to(x)))
        mean = pyro.sample("mean", dist.MultivariateNormal(x.new_ones(2), precision_matrix=0.4 * precision))
    z = pyro.sample("z", dist.Categorical(x.new_tensor([0.3, 0.7])))
    pyro.sample("first", dist.MultivariateNormal(mean[z], precision_matrix=precision[z]), obs=x[0])
    with pyro.plate("data", len(x) - 1):
        pyro.sample("x", dist.MultivariateNormal(mean[label], precision_matrix=precision[label]), obs=x[1:])


def turned(x: Tensor, label: Tensor) -> None:
    """Of means that are turned first, no family has the moments."""
    precision = pyro.sample("precision", dist.Wishart(x.new_tensor(3.5), covariance_matrix=torch.eye(2).to(x)))
    mean = pyro.sample("mean", dist.MultivariateNormal(x.new_ones(2), precision_matrix=0.4 * precision))
    with pyro.plate("data", len(x)):
        loc = mean @ x.new_tensor([[0.0, 1.0], [-1.0, 0.5]])
        pyro.sample("x", dist.MultivariateNormal(loc, precision_matrix=precision), obs=x)


def independent(x: Tensor, label: Tensor) -> None:
    precision = pyro.sample("precision", dist.Wishart(x.new_tensor(3.5), covariance_matrix=torch.eye(2).to(x)))
    mean = pyro.sample("mean", dist.MultivariateNormal(x.new_ones(2), torch.eye(2).to(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(mean, precision_matrix=precision), obs=x)


@pytest.mark.parametrize(
    ("model", "same"),
    [(groups, JOINT), (several_outputs, JOINT), (own_precisions, JOINT), (turned, [("mean",)]), (independent, None)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_auto_joins_a_wishart_where_it_is_conjugate_and_not_elsewhere(model: Any, same: Any) -> None:
    x, label = torch.randn(9, 2, dtype=DOUBLE), torch.tensor([0, 1, 1, 2, 2, 2, 0, 2, 1])
    args = (
        (torch.randn(9, 3, dtype=DOUBLE), x)
        if model is several_outputs
        else (x, label[1:] if model is own_precisions else label)
    )
    found = fit(model, *args, blocks="auto", tol=1e-10)
    assert (BLOCK in found.guide.posterior(joint=True)) == (same is JOINT)
    assert found.result.elbo[-1].item() == pytest.approx(
        fit(model, *args, blocks=same, tol=1e-10).result.elbo[-1].item()
    )


def test_a_precision_in_a_plate_that_the_means_are_not_in_is_an_error() -> None:
    def crossed(x: Tensor) -> None:
        with pyro.plate("kinds", 2):
            precision = pyro.sample("precision", dist.Wishart(x.new_tensor(3.0), covariance_matrix=torch.eye(2).to(x)))
        with pyro.plate("groups", 2, dim=-2):
            mean = pyro.sample("mean", dist.MultivariateNormal(x.new_zeros(2), precision_matrix=precision[0]))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(mean[0, 0], precision_matrix=precision[0]), obs=x)

    with pytest.raises(NotConjugateError, match="to have one batch shape"):
        fit(crossed, torch.randn(4, 2, dtype=DOUBLE), blocks=JOINT)


@pytest.mark.parametrize("blocks", [None, JOINT])
def test_single_precision_far_from_the_origin_agrees_with_double(blocks: Any) -> None:
    x = (1000 + torch.randn(100_000)).float()
    priors: dict[str, Any] = {"prior_loc": 1000.0, "prior_precision_scaling": 1e-3}
    single = fit(normal_gamma.model, x, blocks=blocks, tol=1e-7, **priors)
    double = fit(normal_gamma.model, x.double(), blocks=blocks, **priors)
    assert single.posterior("precision").mean.item() == pytest.approx(
        double.posterior("precision").mean.item(), rel=1e-5
    )
    assert single.posterior("mean").mean.item() == pytest.approx(double.posterior("mean").mean.item(), rel=1e-6)
    assert single.guide.elbo() == pytest.approx(double.guide.elbo(), rel=1e-6)
    assert all(value.dtype == torch.float32 for name, value in single.guide.named_buffers() if "natural" in name)


# -------------------------------------------------------------------------------------------------- Gaussian mixture


def fit_scikit_learn(
    data: Tensor, responsibilities: Tensor, max_iter: int, tol: float, **priors: Any
) -> StartedMixture:
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
        fitted.fit(data.numpy())
    return fitted


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


@pytest.mark.parametrize(("size", "steps", "priors"), [(1, 5, {}), (3, 120, MIXTURE_PRIORS), (6, 160, {})])
def test_converged_mixture_equals_scikit_learn(
    old_faithful: Tensor, size: int, steps: int, priors: dict[str, Any]
) -> None:
    responsibilities = start(len(old_faithful), size)
    fitted = fit_scikit_learn(old_faithful, responsibilities, steps, 0.0, **priors)
    init = {"component": responsibilities}
    found = fit(gmm.model, old_faithful, size, blocks=JOINT, init=init, tol=0, max_steps=steps + 1, **priors)
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
    options: dict[str, Any] = {"blocks": JOINT, "init": {"component": start(len(data), 3)}, "tol": 0, "max_steps": 15}
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


@pytest.mark.parametrize("count", [1, 5, 30])
def test_mixture_with_independent_priors_equals_bayespy(old_faithful: Tensor, count: int) -> None:
    data = (old_faithful - old_faithful.mean(0)) / old_faithful.std(0)
    responsibilities, eye = start(len(data), 3), torch.eye(2, dtype=DOUBLE)
    init = {"component": responsibilities, "mean": dist.MultivariateNormal(torch.zeros(3, 2, dtype=DOUBLE), eye)}
    order = ["mean", "precision", "weights"]
    found = fit(independent_mixture, data, 3, init=init, order=order, tol=0, max_steps=count)
    prior = {
        "concentration": 0.5,
        "loc": np.zeros(2),
        "precision": 0.1 * np.eye(2),
        "df": 3.5,
        "inverse_scale": 2 * np.eye(2),
    }
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


def intercept_regression(
    features: Tensor, target: Tensor, predictor: Predictor = by_matmul, level: float = 1.0
) -> None:
    intercept = pyro.sample("intercept", dist.Normal(level, 3.0))
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


def correlated(offset: float) -> tuple[Tensor, Tensor]:
    """The data of a regression in which the intercept and the weights are correlated."""
    features, target = diabetes()
    return features + 0.05, rounded(target) + offset


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_intercept_and_weights_reach_the_mean_field_of_a_gaussian(offset: float) -> None:
    features, target = correlated(offset)
    found = fit(intercept_regression, features, target, by_matmul, 1.0 + offset, tol=0, max_steps=40)
    target = target - offset
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


@pytest.mark.parametrize("predictor", PREDICTORS[1:])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_intercept_and_weights_take_the_same_sweeps_by_every_product(predictor: Predictor, offset: float) -> None:
    features, target = correlated(offset)
    found, expected = (
        fit(intercept_regression, features, target, product, 1.0 + offset, tol=0, max_steps=3)
        for product in (predictor, by_matmul)
    )
    torch.testing.assert_close(found.result.elbo, expected.result.elbo, rtol=1e-9, atol=0)
    assert expected.result.elbo.diff().min() > 1e-4  # three sweeps are not the end
    theirs = [expected.posterior(name) for name in ("intercept", "weights")]
    for name, one in zip(("intercept", "weights"), theirs, strict=True):
        shift = offset if name == "intercept" else 0.0
        torch.testing.assert_close(found.posterior(name).mean - shift, one.mean - shift, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(found.posterior(name).variance, one.variance, rtol=1e-8, atol=0)


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


def test_counts_of_unequal_totals_have_the_exact_evidence() -> None:
    """Pyro's idiom for rows of unequal totals: one total, and no validation."""
    table = torch.tensor([[3.0, 0.0, 4.0], [1.0, 0.0, 2.0]], dtype=DOUBLE)

    def model() -> None:
        with pyro.plate("groups", 2):
            probs = pyro.sample("probs", dist.Dirichlet(torch.ones(3, dtype=DOUBLE)))
            pyro.sample("obs", dist.Multinomial(7, probs, validate_args=False), obs=table)

    exact = dist.DirichletMultinomial(torch.ones(2, 3, dtype=DOUBLE), total_count=table.sum(-1)).log_prob(table)
    assert fit(model).guide.elbo() == pytest.approx(exact.sum().item(), rel=1e-10)


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
    intercept = pyro.sample("intercept", dist.Normal(1.0, 0.5))
    with pyro.plate("groups", 4):
        effect = pyro.sample("effect", dist.Normal(0.0, 0.5))
    with pyro.plate("others", 3):
        slope = pyro.sample("slope", dist.Normal(0.5, 0.5))
    with pyro.plate("data", len(target)):
        pyro.sample("obs", dist.Normal(effect[group] + intercept - 2 * slope[other], 0.7), obs=target)


def effects_by_matrix(target: Tensor, group: Tensor, other: Tensor) -> None:
    """The same with matrices of indicators and vectors of effects."""
    intercept = pyro.sample("intercept", dist.Normal(1.0, 0.5))
    effect = pyro.sample("effect", dist.Normal(0.0, 0.5).expand([4]).to_event(1))
    slope = pyro.sample("slope", dist.Normal(0.5, 0.5).expand([3]).to_event(1))
    groups = torch.nn.functional.one_hot(group, 4).to(target)
    others = torch.nn.functional.one_hot(other, 3).to(target)
    with pyro.plate("data", len(target)):
        pyro.sample("obs", dist.Normal(intercept + groups @ effect - 2 * others @ slope, 0.7), obs=target)


def test_crossed_effects_reach_the_mean_field_of_a_gaussian() -> None:
    target, group = grouped()
    other = torch.arange(23) % 3
    found = fit(effects_by_index, target, group, other, tol=0, max_steps=300)
    groups, others = torch.nn.functional.one_hot(group, 4), torch.nn.functional.one_hot(other, 3)
    design = torch.cat([torch.ones(23, 1), groups, -2 * others], 1).to(DOUBLE)
    prior = torch.full((8,), 4.0, dtype=DOUBLE)
    loc = torch.tensor([1.0] + [0.0] * 4 + [0.5] * 3, dtype=DOUBLE)
    precision = prior.diag() + design.T @ design / 0.49
    mean, divergence = gaussian_mean_field(
        precision, design.T @ target / 0.49 + prior * loc, [[0], range(1, 5), range(5, 8)]
    )
    sites = [found.posterior(name).mean.reshape(-1) for name in ("intercept", "effect", "slope")]
    torch.testing.assert_close(torch.cat(sites), mean, rtol=1e-8, atol=1e-9)
    covariance = (design / prior) @ design.T + 0.49 * torch.eye(23, dtype=DOUBLE)
    evidence = scipy.stats.multivariate_normal.logpdf(target, design @ loc, covariance)
    assert found.guide.elbo() == pytest.approx(evidence - divergence, rel=1e-9)
    by_index, by_matrix = (
        fit(model, target, group, other, tol=0, max_steps=5) for model in (effects_by_index, effects_by_matrix)
    )
    torch.testing.assert_close(by_matrix.result.elbo, by_index.result.elbo, rtol=1e-9, atol=0)
    for name in ("intercept", "effect", "slope"):
        ours, theirs = by_matrix.posterior(name), by_index.posterior(name)
        torch.testing.assert_close(ours.mean.reshape(-1), theirs.mean.reshape(-1), rtol=1e-8, atol=1e-9)


# ------------------------------------------------------------------------------------------------- discrete latents


@dataclass(frozen=True)
class Discrete:
    """A small model of discrete sites, and its expected log joint density at given values of them, written out.

    ``sites`` gives the shape and the number of values of each. ``locations`` are Normal(0, 2) latents, ``simplices``
    Dirichlet(1.5, …) latents; ``log_joint(z, loc, var, log)`` gets means, variances and expected logs of these.
    """

    model: Callable[..., None]
    sites: dict[str, tuple[tuple[int, ...], int]]
    log_joint: Callable[..., Tensor]
    locations: tuple[str, ...] = ()
    simplices: tuple[str, ...] = ()


def log_normal(x: Tensor, loc: Tensor, variance: Tensor) -> Tensor:
    """E log N(x | mean, 1) over a mean with this expectation and variance."""
    return -0.5 * math.log(2 * math.pi) - 0.5 * ((x - loc) ** 2 + variance)


def every_configuration(case: Discrete, guide: AutoConjugate) -> tuple[float, dict[str, Tensor]]:
    """The ELBO and the marginals of every discrete site, by a sum over all configurations."""
    q = guide.posterior()
    loc = {name: q[name].mean for name in case.locations}
    var = {name: q[name].variance for name in case.locations}
    log = {name: moments(q[name])[0] for name in case.simplices}
    names = list(case.sites)
    spaces = [itertools.product(range(k), repeat=math.prod(shape)) for shape, k in case.sites.values()]
    assignments, values = [], []
    for configuration in itertools.product(*spaces):
        shapes = [shape for shape, _ in case.sites.values()]
        z = {n: torch.tensor(c).reshape(s) for n, c, s in zip(names, configuration, shapes, strict=True)}
        assignments.append(z)
        values.append(case.log_joint(z, loc, var, log))
    log_joint = torch.stack(values)
    total = log_joint.logsumexp(0).item()
    weights = (log_joint - total).exp()
    marginals = {}
    for name, (_, k) in case.sites.items():
        hot = torch.stack([torch.nn.functional.one_hot(z[name], k) for z in assignments]).to(DOUBLE)
        marginals[name] = torch.tensordot(weights, hot, 1)
    prior = dist.Normal(torch.zeros((), dtype=DOUBLE), torch.tensor(2.0, dtype=DOUBLE))
    for name in case.locations:
        total -= kl_divergence(q[name], prior).sum().item()
    for name in case.simplices:
        base = torch.full_like(q[name].concentration, 1.5)
        total -= kl_divergence(dist.Dirichlet(q[name].concentration), dist.Dirichlet(base)).sum().item()
    return total, marginals


X2 = torch.tensor([-1.5, 0.3], dtype=DOUBLE)
X3 = torch.tensor([-1.5, 0.3, 2.5], dtype=DOUBLE)
X32 = torch.tensor([[-1.5, 0.3], [2.0, 2.5], [-0.2, 3.1]], dtype=DOUBLE)
FIXED = torch.tensor([0.2, 0.8], dtype=DOUBLE)
TRANSITION = torch.tensor([[0.7, 0.3], [0.1, 0.9]], dtype=DOUBLE)


def location(name: str, size: int) -> Tensor:
    with pyro.plate(f"{name}_plate", size):
        return pyro.sample(name, dist.Normal(0.0, 2.0))


def simplex(name: str, size: int) -> Tensor:
    return pyro.sample(name, dist.Dirichlet(torch.full((size,), 1.5, dtype=DOUBLE)))


def transitions(size: int, to: int) -> Tensor:
    with pyro.plate("transition_plate", size):
        return pyro.sample("transition", dist.Dirichlet(torch.full((to,), 1.5, dtype=DOUBLE)))


def choice(name: str, probs: Tensor) -> Tensor:
    return pyro.sample(name, dist.Categorical(probs))


def shared_child() -> None:
    mu, nu, pi, rho = location("mu", 2), location("nu", 3), simplex("pi", 2), simplex("rho", 3)
    with pyro.plate("data", 2):
        first, second = choice("first", pi), choice("second", rho)
        pyro.sample("x", dist.Normal(mu[first] + nu[second], 1.0), obs=X2)


def shared_child_joint(z: Any, loc: Any, var: Any, log: Any) -> Tensor:
    first, second = z["first"], z["second"]
    mean, variance = loc["mu"][first] + loc["nu"][second], var["mu"][first] + var["nu"][second]
    return (log["pi"][first] + log["rho"][second] + log_normal(X2, mean, variance)).sum()


def chained() -> None:
    mu, nu, pi, transition = location("mu", 2), location("nu", 2), simplex("pi", 2), transitions(2, 2)
    with pyro.plate("data", 3):
        first = choice("first", pi)
        second = choice("second", transition[first])
        pyro.sample("x", dist.Normal(mu[second], 1.0), obs=X3)
        pyro.sample("y", dist.Normal(nu[first] - mu[second], 1.0), obs=X3 + 1)


def chained_joint(z: Any, loc: Any, var: Any, log: Any) -> Tensor:
    first, second = z["first"], z["second"]
    total = log["pi"][first] + log["transition"][first, second]
    total = total + log_normal(X3, loc["mu"][second], var["mu"][second])
    mean, variance = loc["nu"][first] - loc["mu"][second], var["nu"][first] + var["mu"][second]
    return (total + log_normal(X3 + 1, mean, variance)).sum()


def groups_of_points() -> None:
    mu, pi = location("mu", 2), simplex("pi", 2)
    groups, points = pyro.plate("groups", 2, dim=-1), pyro.plate("points", 3, dim=-2)
    with groups:
        kind = choice("kind", pi)
        with points:
            pyro.sample("x", dist.Normal(mu[kind], 1.0), obs=X32)


def groups_of_points_joint(z: Any, loc: Any, var: Any, log: Any) -> Tensor:
    kind = z["kind"]
    return log["pi"][kind].sum() + log_normal(X32, loc["mu"][kind], var["mu"][kind]).sum()


def mixture_in_groups() -> None:
    mu, pi, transition = location("mu", 2), simplex("pi", 2), transitions(2, 2)
    with pyro.plate("groups", 2, dim=-1):
        kind = choice("kind", pi)
        with pyro.plate("points", 3, dim=-2):
            component = choice("component", transition[kind])
            pyro.sample("x", dist.Normal(mu[component], 1.0), obs=X32)


def mixture_in_groups_joint(z: Any, loc: Any, var: Any, log: Any) -> Tensor:
    kind, component = z["kind"], z["component"]
    total = log["pi"][kind].sum() + log["transition"][kind.expand(3, 2), component].sum()
    return total + log_normal(X32, loc["mu"][component], var["mu"][component]).sum()


def parent_and_child_at_the_data() -> None:
    mu, nu, pi, rho = location("mu", 2), location("nu", 2), simplex("pi", 2), simplex("rho", 2)
    with pyro.plate("groups", 2, dim=-1):
        kind = choice("kind", pi)
        with pyro.plate("points", 3, dim=-2):
            component = choice("component", rho)
            pyro.sample("x", dist.Normal(mu[component] + nu[kind], 1.0), obs=X32)


def parent_and_child_at_the_data_joint(z: Any, loc: Any, var: Any, log: Any) -> Tensor:
    kind, component = z["kind"], z["component"]
    mean, variance = loc["mu"][component] + loc["nu"][kind], var["mu"][component] + var["nu"][kind]
    return log["pi"][kind].sum() + log["rho"][component].sum() + log_normal(X32, mean, variance).sum()


def one_switch_for_all() -> None:
    mu, nu, pi = location("mu", 2), location("nu", 2), simplex("pi", 2)
    kind = choice("kind", pi)
    with pyro.plate("data", 3):
        component = choice("component", FIXED)
        pyro.sample("x", dist.Normal(mu[kind] + nu[component], 1.0), obs=X3)


def one_switch_for_all_joint(z: Any, loc: Any, var: Any, log: Any) -> Tensor:
    kind, component = z["kind"], z["component"]
    mean, variance = loc["mu"][kind] + loc["nu"][component], var["mu"][kind] + var["nu"][component]
    return log["pi"][kind] + FIXED.log()[component].sum() + log_normal(X3, mean, variance).sum()


def two_global_switches() -> None:
    mu, pi, transition = location("mu", 2), simplex("pi", 2), transitions(2, 2)
    first = choice("first", pi)
    second = choice("second", transition[first])
    with pyro.plate("data", 3):
        pyro.sample("x", dist.Normal(mu[second], 1.0), obs=X3)


def two_global_switches_joint(z: Any, loc: Any, var: Any, log: Any) -> Tensor:
    first, second = z["first"], z["second"]
    total = log["pi"][first] + log["transition"][first, second]
    return total + log_normal(X3, loc["mu"][second], var["mu"][second]).sum()


def table_of_locations() -> None:
    with pyro.plate("columns", 3, dim=-1), pyro.plate("table", 2, dim=-2):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 3):
        first, second = choice("first", FIXED), choice("second", torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE))
        pyro.sample("x", dist.Normal(mu[first, second], 1.0), obs=X3)


def table_of_locations_joint(z: Any, loc: Any, var: Any, log: Any) -> Tensor:
    first, second = z["first"], z["second"]
    total = FIXED.log()[first] + torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE).log()[second]
    return (total + log_normal(X3, loc["mu"][first, second], var["mu"][first, second])).sum()


def binary_switch() -> None:
    mu, nu = location("mu", 1), location("nu", 2)
    with pyro.plate("data", 3):
        on = pyro.sample("on", dist.Bernoulli(torch.tensor(0.3, dtype=DOUBLE)))
        pyro.sample("x", dist.Normal(nu[on.long()], 1.0), obs=X3)
        pyro.sample("y", dist.Normal(torch.where(on > 0, mu[0], nu[0]), 1.0), obs=X3 - 1)
        pyro.sample("w", dist.Normal(on * mu[0], 1.0), obs=X3 + 1)


def binary_switch_joint(z: Any, loc: Any, var: Any, log: Any) -> Tensor:
    on = z["on"]
    total = torch.tensor([0.7, 0.3], dtype=DOUBLE).log()[on] + log_normal(X3, loc["nu"][on], var["nu"][on])
    mean, variance = (torch.where(on > 0, m["mu"][0], m["nu"][0]) for m in (loc, var))
    return (total + log_normal(X3 - 1, mean, variance) + log_normal(X3 + 1, on * loc["mu"][0], on * var["mu"][0])).sum()


def no_continuous_site() -> None:
    levels = torch.tensor([-1.0, 2.0], dtype=DOUBLE)
    kind = choice("kind", FIXED)
    with pyro.plate("data", 3):
        component = choice("component", TRANSITION[kind])
        pyro.sample("x", dist.Normal(levels[component], 1.0), obs=X3)


def no_continuous_site_joint(z: Any, loc: Any, var: Any, log: Any) -> Tensor:
    levels = torch.tensor([-1.0, 2.0], dtype=DOUBLE)[z["component"]]
    total = FIXED.log()[z["kind"]] + TRANSITION.log()[z["kind"], z["component"]].sum()
    return total + log_normal(X3, levels, torch.zeros(())).sum()


DISCRETE: dict[str, Discrete] = {
    "two sites with one child": Discrete(
        shared_child, {"first": ((2,), 2), "second": ((2,), 3)}, shared_child_joint, ("mu", "nu"), ("pi", "rho")
    ),
    "two sites in a chain": Discrete(
        chained, {"first": ((3,), 2), "second": ((3,), 2)}, chained_joint, ("mu", "nu"), ("pi", "transition")
    ),
    "a site outside the points": Discrete(
        groups_of_points, {"kind": ((2,), 2)}, groups_of_points_joint, ("mu",), ("pi",)
    ),
    "a mixture in each group": Discrete(
        mixture_in_groups,
        {"kind": ((2,), 2), "component": ((3, 2), 2)},
        mixture_in_groups_joint,
        ("mu",),
        ("pi", "transition"),
    ),
    "sites of two depths at the data": Discrete(
        parent_and_child_at_the_data,
        {"kind": ((2,), 2), "component": ((3, 2), 2)},
        parent_and_child_at_the_data_joint,
        ("mu", "nu"),
        ("pi", "rho"),
    ),
    "a global site and a local one": Discrete(
        one_switch_for_all, {"kind": ((), 2), "component": ((3,), 2)}, one_switch_for_all_joint, ("mu", "nu"), ("pi",)
    ),
    "two global sites": Discrete(
        two_global_switches,
        {"first": ((), 2), "second": ((), 2)},
        two_global_switches_joint,
        ("mu",),
        ("pi", "transition"),
    ),
    "a table of locations": Discrete(
        table_of_locations, {"first": ((3,), 2), "second": ((3,), 3)}, table_of_locations_joint, ("mu",)
    ),
    "a binary switch": Discrete(binary_switch, {"on": ((3,), 2)}, binary_switch_joint, ("mu", "nu")),
    "discrete sites alone": Discrete(
        no_continuous_site, {"kind": ((), 2), "component": ((3,), 2)}, no_continuous_site_joint
    ),
}


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_sites_are_summed_out_exactly(name: str, steps: int) -> None:
    case = DISCRETE[name]
    found = fit(case.model, tol=0, max_steps=steps)
    elbo, marginals = every_configuration(case, found.guide)
    assert found.guide.elbo() == pytest.approx(elbo, rel=1e-10)
    assert found.result.elbo[-1].item() == pytest.approx(elbo, rel=1e-10)
    for site, expected in marginals.items():
        probs = found.posterior(site).probs
        probs = probs if isinstance(found.posterior(site), dist.Categorical) else torch.stack([1 - probs, probs], -1)
        torch.testing.assert_close(probs, expected, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------- scales and masks


def mean_and_precision(x: Tensor, scale: Any = 1.0, mask: Any = None, how: str = "poutine") -> None:
    mean = pyro.sample("mean", dist.Normal(0.5, 3.0))
    precision = pyro.sample("precision", dist.Gamma(1.5, 2.0))
    weigh = poutine.scale(scale=scale)
    with pyro.plate("data", len(x)), weigh:
        observe(dist.Normal(mean, precision.rsqrt()), x, mask, how)


def observe(likelihood: Any, x: Tensor, mask: Any, how: str) -> None:
    """Observe ``x`` where ``mask`` is true, in one of Pyro's three ways."""
    if mask is None:
        pyro.sample("obs", likelihood, obs=x)
    elif how == "poutine":
        with poutine.mask(mask=mask):
            pyro.sample("obs", likelihood, obs=x)
    elif how == "method":
        pyro.sample("obs", likelihood.mask(mask), obs=x)
    else:
        pyro.sample("obs", likelihood, obs=x, obs_mask=mask)


def weighted_regression(x: Tensor, scale: Any = 1.0, mask: Any = None, how: str = "poutine") -> None:
    known = torch.nan_to_num(x, 0.0, 0.0, 0.0)  # what is hidden is the target, not the features
    features = torch.stack([torch.ones_like(x), known, known**2], -1)
    weights = pyro.sample("weights", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    precision = pyro.sample("precision", dist.Gamma(1.5, 2.0))
    with pyro.plate("data", len(x)), poutine.scale(scale=scale):
        observe(dist.Normal(features @ weights, precision.rsqrt()), x.sin(), mask, how)


def weighted_mixture(x: Tensor, scale: Any = 1.0, mask: Any = None, how: str = "poutine") -> None:
    """Scale and mask lie over the choice of a component too."""
    mu, pi = location("mu", 2), simplex("pi", 2)
    hidden: Any = torch.tensor(True) if mask is None else mask
    with pyro.plate("data", len(x)), poutine.scale(scale=scale), poutine.mask(mask=hidden):
        component = choice("component", pi)
        pyro.sample("obs", dist.Normal(mu[component], 1.0), obs=x)


WEIGHTED = [mean_and_precision, weighted_regression, weighted_mixture]
GLOBALS = ("mean", "precision", "weights", "mu", "pi")


def points(count: int = 12) -> Tensor:
    return torch.cat([torch.randn(count // 2, dtype=DOUBLE) - 3, torch.randn(count - count // 2, dtype=DOUBLE) + 2])


def assert_same_globals(found: Fit, expected: Fit, rtol: float = 1e-8) -> None:
    assert found.guide.elbo() == pytest.approx(expected.guide.elbo(), rel=1e-10)
    shared = [name for name in GLOBALS if name in expected.guide.posterior()]
    assert shared
    for name in shared:
        for a, b in zip(moments(found.posterior(name)), moments(expected.posterior(name)), strict=True):
            torch.testing.assert_close(a, b, rtol=rtol, atol=1e-9)


def started(model: Any) -> dict[str, Any]:
    """A start that breaks the symmetry of the mixture alike in models of other sizes."""
    options: dict[str, Any] = {"tol": 0, "max_steps": 10}
    if model is not weighted_mixture:
        return options
    loc = torch.tensor([-1.0, 1.0], dtype=DOUBLE)
    concentration = torch.tensor([2.0, 2.0], dtype=DOUBLE)
    return options | {"init": {"mu": dist.Normal(loc, 1.0), "pi": dist.Dirichlet(concentration)}}


@pytest.mark.parametrize("model", WEIGHTED)
def test_a_scale_on_the_data_repeats_it(model: Any) -> None:
    x = points()
    assert_same_globals(fit(model, x, 3.0, **started(model)), fit(model, x.repeat(3), **started(model)))


@pytest.mark.parametrize("model", WEIGHTED)
def test_a_scale_for_each_point_repeats_that_point(model: Any) -> None:
    x, scale = points(), torch.arange(12) % 3 + 1
    repeated = x.repeat_interleave(scale)
    assert_same_globals(fit(model, x, scale.to(DOUBLE), **started(model)), fit(model, repeated, **started(model)))


@pytest.mark.parametrize("model", WEIGHTED)
def test_a_scale_on_the_whole_model_scales_the_elbo_alone(model: Any) -> None:
    x = points()
    scaled = fit(poutine.scale(model, scale=2.5), x, **started(model))
    plain = fit(model, x, **started(model))
    torch.testing.assert_close(scaled.result.elbo, 2.5 * plain.result.elbo, rtol=1e-10, atol=0)
    for name in [name for name in GLOBALS if name in plain.guide.posterior()]:
        for a, b in zip(moments(scaled.posterior(name)), moments(plain.posterior(name)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["poutine", "method"])
@pytest.mark.parametrize("hidden", [0.0, 1e3, math.nan, math.inf])
@pytest.mark.parametrize("model", WEIGHTED)
def test_masked_points_count_for_nothing(model: Any, hidden: float, how: str) -> None:
    x = points()
    mask = torch.arange(12) % 4 != 1
    seen = torch.where(mask, x, hidden)
    found, expected = fit(model, seen, 1.0, mask, how, **started(model)), fit(model, x[mask], **started(model))
    torch.testing.assert_close(found.result.elbo, expected.result.elbo, rtol=1e-10, atol=0)
    assert_same_globals(found, expected)


@pytest.mark.parametrize("hidden", [0.0, math.nan])
@pytest.mark.parametrize("model", [mean_and_precision, weighted_regression])
def test_points_hidden_by_obs_mask_count_for_nothing(model: Any, hidden: float) -> None:
    x = points()
    mask = torch.arange(12) % 4 != 1
    seen = torch.where(mask, x, hidden)
    assert_same_globals(
        fit(model, seen, 1.0, mask, "obs_mask", **started(model)), fit(model, x[mask], **started(model))
    )


def cells(data: Tensor, mask: Tensor, inside: bool) -> None:
    """A diagonal mixture in which single cells are hidden, under an event or in plates."""
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        precision = pyro.sample("precision", dist.Gamma(2.0, 1.0).expand([3]).to_event(1))
    if inside:
        with pyro.plate("data", len(data)):
            component = choice("component", FIXED)
            likelihood = dist.Normal(mean[component], precision[component].rsqrt())
            pyro.sample("obs", likelihood.mask(mask).to_event(1), obs=data)
        return
    with pyro.plate("data", len(data), dim=-2):
        component = choice("component", FIXED)
        with pyro.plate("columns", 3, dim=-1):
            columns = torch.arange(3)
            likelihood = dist.Normal(mean[component, columns], precision[component, columns].rsqrt())
            pyro.sample("obs", likelihood.mask(mask), obs=data)


def test_a_mask_inside_an_event_is_a_mask_over_plates() -> None:
    data, mask = rows(15, 3), torch.rand(15, 3) < 0.7
    init = {"component": start(15, 2)}
    inside = fit(cells, data, mask, True, init=init, tol=0, max_steps=30)
    init = {"component": init["component"].unsqueeze(1)}
    over = fit(cells, data, mask, False, init=init, tol=0, max_steps=30)
    torch.testing.assert_close(inside.result.elbo, over.result.elbo, rtol=1e-10, atol=0)
    mean, other = inside.posterior("mean"), over.posterior("mean")
    torch.testing.assert_close(mean.mean.reshape(-1), other.mean.reshape(-1), rtol=1e-8, atol=0)
    torch.testing.assert_close(mean.variance.reshape(-1), other.variance.reshape(-1), rtol=1e-8, atol=0)


# ------------------------------------------------------------------------------------------------ laws for every model


@dataclass(frozen=True)
class Case:
    """A model, its arguments, and how its guide is made."""

    model: Callable[..., None]
    args: Callable[[], tuple[Any, ...]]
    options: dict[str, Any] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)


def faithful() -> Tensor:
    return rows(60, 2) + 4 * (torch.arange(60) % 2).to(DOUBLE).unsqueeze(-1)


def constantly(args: tuple[Any, ...]) -> Callable[[], tuple[Any, ...]]:
    return lambda: args


def table(count: int = 40) -> Tensor:
    return torch.from_numpy(load_iris().data)[:: 150 // count] - 3


CASES: dict[str, Case] = {
    "Normal-Gamma, joint": Case(normal_gamma.model, lambda: (points(),), {"blocks": JOINT}),
    "Normal-Gamma, mean field": Case(normal_gamma.model, lambda: (points(),)),
    "Normal-Wishart, mean field": Case(normal_wishart, lambda: (faithful(),)),
    "mixture, joint": Case(gmm.model, lambda: (faithful(), 3), {"blocks": JOINT}),
    "mixture with priors": Case(gmm.model, lambda: (faithful(), 3), {"blocks": JOINT}, MIXTURE_PRIORS),
    "mixture, mean field": Case(gmm.model, lambda: (faithful(), 2)),
    "diagonal mixture, joint": Case(gmm.model, lambda: (faithful(), 3), {"blocks": JOINT}, {"covariance": "diagonal"}),
    "diagonal mixture, mean field": Case(gmm.model, lambda: (faithful(), 2), {}, {"covariance": "diagonal"}),
    "mixture, independent priors": Case(independent_mixture, lambda: (faithful(), 2)),
    "regression": Case(regression, diabetes),
    "regression with relevances": Case(relevance_regression, diabetes),
    "regression with an intercept": Case(intercept_regression, lambda: diabetes(3.0)),
    "principal components": Case(components_by_matmul, lambda: (table(), 1)),
    "principal components, missing cells": Case(
        components_by_plates, lambda: (table(), 1, torch.rand(table().shape) < 0.8)
    ),
    "Bernoulli mixture": Case(bernoulli_mixture, lambda: (digits(60), 3)),
    "Poisson mixture": Case(poisson_mixture, lambda: (COUNTS.repeat(4), 2)),
    "group means": Case(group_means, lambda: (*grouped(), 4)),
    "eight schools": Case(schools, lambda: SCHOOLS),
    "crossed effects": Case(effects_by_index, lambda: (*grouped(), torch.arange(23) % 3)),
    "scaled mixture": Case(weighted_mixture, lambda: (points(), 2.5)),
    "masked mixture": Case(weighted_mixture, lambda: (points(), 1.0, torch.arange(12) % 4 != 1)),
    **{name: Case(model, constantly(args)) for name, (model, args, _) in EXACT.items()},
    **{name: Case(case.model, tuple) for name, case in DISCRETE.items()},
}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_the_elbo_never_falls_and_is_a_maximum_over_every_block_at_the_end(name: str, seed: int) -> None:
    case = CASES[name]
    args = case.args()
    found = fit(case.model, *args, init=seed, max_steps=3000, tol=1e-13, **case.options, **case.kwargs)
    elbo = found.result.elbo
    size = elbo.abs().max().item()
    assert found.result.converged
    assert elbo.diff().min() >= -1e-9 * size
    state = found.guide.state
    program = found.guide.posterior_state.commit(found.guide.prepare(args, case.kwargs))
    best = program.bound(state, program.means(state)).elbo.item()
    fallen = 0
    for key, natural in state.items():
        family = program.blocks[key].family
        for exponent in (-1, -2, -3, -4):
            for _ in range(6):
                moved = natural.map(functools.partial(disturbed, size=10.0**exponent))
                if not bool(family.in_domain(moved).all()):
                    continue
                other = state | {key: moved}
                elsewhere = program.bound(other, program.means(other)).elbo.item()
                assert elsewhere <= best + 1e-10 * max(1.0, size)
                fallen += elsewhere < best - 1e-7
    assert fallen >= len(state)


def disturbed(natural: Tensor, size: float) -> Tensor:
    """A random step of a relative size; of a symmetric matrix to a symmetric one."""
    noise = size * natural.abs().max() * torch.randn_like(natural)
    square = natural.ndim > 2 and natural.shape[-1] == natural.shape[-2]
    return natural + ((noise + noise.mT) / 2 if square else noise)


@pytest.mark.parametrize("name", CASES)
def test_the_elbo_is_what_trace_elbo_estimates(name: str) -> None:
    """log p - log q by Pyro's own densities, over draws of the guide: its mean within five standard errors."""
    case = CASES[name]
    args = case.args()
    found = fit(case.model, *args, max_steps=3, tol=0, **case.options, **case.kwargs)
    try:
        torch.set_default_dtype(DOUBLE)  # or Pyro computes with the priors' constants in single precision
        draws = [-Trace_ELBO().loss(case.model, found.guide, *args, **case.kwargs) for _ in range(60)]
    finally:
        torch.set_default_dtype(torch.float32)
    elbo = found.guide.elbo()
    error = np.std(draws) / math.sqrt(len(draws))
    assert abs(np.mean(draws) - elbo) < 5 * error + 1e-9 * abs(elbo)


def test_logits_of_broken_sticks_are_normalized_and_conjugate() -> None:
    """The posterior of each stick counts those that broke it and those that went on (Blei and Jordan 2006, §3)."""
    label = torch.tensor([0, 0, 1, 3, 3, 2, 0, 3])

    def model() -> None:
        with pyro.plate("sticks", 3):
            beta = pyro.sample("beta", dist.Beta(torch.ones(3).double(), 2.0))
        on = torch.nn.functional.pad((1 - beta).log().cumsum(-1), (1, 0))
        with pyro.plate("data", len(label)):
            pyro.sample("z", dist.Categorical(logits=torch.nn.functional.pad(beta.log(), (0, 1)) + on), obs=label)

    guide = AutoConjugate(model)
    result = CAVI(model, guide).run()
    q = guide.posterior()["beta"]
    broke, went = torch.tensor([3.0, 1.0, 1.0]).double(), torch.tensor([5.0, 4.0, 3.0]).double()
    torch.testing.assert_close(q.concentration1.double(), 1 + broke)
    torch.testing.assert_close(q.concentration0.double(), 2 + went)
    ratios = torch.lgamma(1 + broke) + torch.lgamma(2 + went) - torch.lgamma(3 + broke + went)
    assert float(result.elbo[-1]) == pytest.approx(float((ratios + math.log(2.0)).sum()))  # B(1, 2) = 1/2


def test_logits_that_are_nearly_normalized_are_not_conjugate() -> None:
    def model() -> None:
        with pyro.plate("sticks", 2):
            beta = pyro.sample("beta", dist.Beta(torch.ones(2).double(), 2.0))
        on = torch.nn.functional.pad((1 - 0.999 * beta).log().cumsum(-1), (1, 0))
        pyro.sample("z", dist.Categorical(logits=torch.nn.functional.pad(beta.log(), (0, 1)) + on), obs=torch.tensor(1))

    with pytest.raises(NotConjugateError, match="softmax"):
        CAVI(model, AutoConjugate(model)).run()
