"""The estimators of the ELBO's gradient: one mean, the variances that theory gives, and errors that say what fits.

On the linear-Gaussian autoencoder the ELBO, its gradient, the posterior and several variances are closed forms.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions import constraints

from pyro_latent.errors import ModelError
from pyro_latent.gradient.estimators import (
    AnalyticKLELBO,
    EstimatorReport,
    EstimatorStatistics,
    PathwiseELBO,
    ScoreFunctionELBO,
    StickingTheLandingELBO,
    estimator_variance,
)

N, D, K = 6, 4, 2
NOISE = 0.5
NAMES = ("loadings", "encoder", "log_scale")


def tensor(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


# ------------------------------------------------------------------------------------- the linear-Gaussian autoencoder


def points() -> Tensor:
    return torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def data() -> Tensor:
    return points()


def start(exact: bool = False) -> dict[str, Tensor]:
    """Loadings ``[K, D]``, encoder ``[D, K]``, log_scale ``[K]``; ``exact``: q is the posterior.

    Orthogonal loadings make the posterior's covariance diagonal: 1 / (1 + |w_k|² / NOISE²).
    """
    loadings = tensor([[1.0, 0.5, 0.0, -0.5], [0.5, -1.0, 1.0, 0.0]])
    variance = 1 / (1 + loadings.square().sum(-1) / NOISE**2)
    if exact:
        return {
            "loadings": loadings,
            "encoder": (loadings.mT / NOISE**2) * variance,
            "log_scale": variance.log() / 2,
        }
    return {"loadings": loadings, "encoder": 0.3 * loadings.mT + 0.1, "log_scale": tensor([-0.5, 0.2])}


def model(x: Tensor, num_data: int | None = None, noise: Tensor | None = None) -> None:
    """p(z) = N(0, I), p(x | z) = N(z W, NOISE² I); ``x`` is a minibatch of ``num_data`` points."""
    loadings = pyro.param("loadings", lambda: start()["loadings"])
    with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(x.new_zeros(K), x.new_ones(K)).to_event(1))
        pyro.sample("x", dist.Normal(z @ loadings, x.new_tensor(NOISE)).to_event(1), obs=x)


class FixedNoise(dist.Normal):
    """A normal drawn at given noise."""

    noise: Tensor

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * self.noise

    def expand(self, batch_shape: Any, _instance: Any = None) -> FixedNoise:
        return self


def guide(x: Tensor, num_data: int | None = None, noise: Tensor | None = None) -> None:
    encoder = pyro.param("encoder", lambda: start()["encoder"])
    scale = pyro.param("log_scale", lambda: start()["log_scale"]).exp()
    loc = x @ encoder
    fn = dist.Normal(loc, scale.expand_as(loc))
    if noise is not None:
        fn = FixedNoise(loc, scale.expand_as(loc))
        fn.noise = noise
    with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
        pyro.sample("z", fn.to_event(1))


def set_params(values: dict[str, Tensor]) -> None:
    pyro.clear_param_store()
    for name, value in values.items():
        pyro.param(name, value.clone())


def grad(name: str) -> Tensor:
    found = pyro.param(name).grad
    assert found is not None
    return found


def exact_elbo(x: Tensor, loadings: Tensor, encoder: Tensor, log_scale: Tensor) -> Tensor:
    """The ELBO with every expectation in closed form, in nats."""
    loc, variance = x @ encoder, (2 * log_scale).exp()
    error = (x - loc @ loadings).square().sum() + len(x) * (loadings.square().sum(-1) * variance).sum()
    log_likelihood = -error / (2 * NOISE**2) - len(x) * D / 2 * math.log(2 * math.pi * NOISE**2)
    kl = (loc.square().sum() + len(x) * (variance - 1 - 2 * log_scale).sum()) / 2
    return log_likelihood - kl


def exact_gradient(x: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = [values[name].clone().requires_grad_() for name in NAMES]
    gradients = torch.autograd.grad(-exact_elbo(x, *leaves), leaves)
    return dict(zip(NAMES, gradients, strict=True))


def log_evidence(x: Tensor, loadings: Tensor) -> Tensor:
    covariance = loadings.mT @ loadings + NOISE**2 * torch.eye(D, dtype=x.dtype)
    return dist.MultivariateNormal(x.new_zeros(D), covariance).log_prob(x).sum()


def assert_mean(found: EstimatorStatistics, exact: dict[str, Tensor]) -> None:
    """Each element within 4.5 standard errors; with some 20 elements a false alarm has odds of 1 in 7,000."""
    for name, gradient in exact.items():
        error = (found.gradient_variance[name] / found.num_samples).sqrt()
        assert ((found.gradient_mean[name] - gradient).abs() < 4.5 * error + 1e-9).all(), name


ESTIMATORS: dict[str, Callable[[], Any]] = {
    "A": PathwiseELBO,
    "A, four draws": lambda: PathwiseELBO(num_particles=4, vectorize_particles=True),
    "B": AnalyticKLELBO,
    "B, eight draws": lambda: AnalyticKLELBO(num_particles=8, vectorize_particles=True),
    "sticking the landing": StickingTheLandingELBO,
    "score function": ScoreFunctionELBO,
    "score function, four draws": lambda: ScoreFunctionELBO(num_particles=4, vectorize_particles=True),
    "score function, leave one out": lambda: ScoreFunctionELBO(num_particles=3, leave_one_out=True),
    "score function, leave one out, vectorised": lambda: ScoreFunctionELBO(
        num_particles=4, leave_one_out=True, vectorize_particles=True
    ),
}


@functools.cache
def statistics(name: str) -> EstimatorStatistics:
    """Of one estimator, at the start of the parameters."""
    pyro.set_rng_seed(0)
    set_params(start())
    return estimator_variance(model, guide, points(), estimators={name: ESTIMATORS[name]()}, num_samples=400)[name]


@functools.cache
def at_the_posterior() -> EstimatorReport:
    """Of the estimators of one draw, where q is the posterior."""
    pyro.set_rng_seed(0)
    set_params(start(exact=True))
    estimators = {"A": PathwiseELBO(), "B": AnalyticKLELBO(), "landing": StickingTheLandingELBO()}
    return estimator_variance(model, guide, points(), estimators=estimators, num_samples=800)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_every_estimator_has_the_exact_gradient_as_its_mean(name: str, data: Tensor) -> None:
    values, found = start(), statistics(name)
    assert_mean(found, exact_gradient(data, values))
    error = math.sqrt(found.loss_variance / found.num_samples)
    assert abs(found.loss_mean + exact_elbo(data, *values.values()).item()) < 4.5 * error


@pytest.mark.slow
def test_where_q_is_the_posterior_the_loss_of_a_does_not_vary_and_that_of_b_does(data: Tensor) -> None:
    """Var B = Σ_n Var log p(x_n | z), the variance of a quadratic form: with r = x - E z W,

    log p = -|r - δ W|² / (2 s²) + const, δ_k ~ N(0, v_k), so Σ_k (r·w_k)² v_k / s⁴ + (|w_k|² v_k / s²)² / 2.
    """
    values, report = start(exact=True), at_the_posterior()
    assert report["A"].loss_mean == pytest.approx(-log_evidence(data, values["loadings"]).item(), rel=1e-12)
    assert report["A"].loss_variance < 1e-24
    variance = (2 * values["log_scale"]).exp()
    residual = data - data @ values["encoder"] @ values["loadings"]
    linear = ((residual @ values["loadings"].mT).square() * variance).sum() / NOISE**4
    square = N * ((values["loadings"].square().sum(-1) * variance / NOISE**2).square() / 2).sum()
    assert report["B"].loss_variance == pytest.approx((linear + square).item(), rel=0.2)


def test_where_q_is_the_posterior_only_sticking_the_landing_has_a_gradient_that_does_not_vary(data: Tensor) -> None:
    """By z: A has -ε/σ, B has -ε (1/σ - σ), and sticking the landing has 0; times x, the derivative of the mean."""
    report = at_the_posterior()
    scale = start(exact=True)["log_scale"].exp()
    squares = data.square().sum(0).unsqueeze(-1)
    expected_a, expected_b = squares / scale**2, squares * (1 / scale - scale) ** 2
    torch.testing.assert_close(report["A"].gradient_variance["encoder"], expected_a, rtol=0.25, atol=0)
    torch.testing.assert_close(report["B"].gradient_variance["encoder"], expected_b, rtol=0.25, atol=0)
    for name in ("encoder", "log_scale"):
        assert report["landing"].gradient_variance[name].max() < 1e-22
    assert report["landing"].gradient_variance["loadings"].min() > 0.01  # θ is not where the landing sticks


def test_b_equals_equation_153_at_the_same_draw(data: Tensor) -> None:
    """-KL in closed form plus log p(x | z) at z = μ + σ ε, and its gradient, to rounding."""
    set_params(values := start())
    noise = torch.randn(N, K, dtype=torch.float64)
    leaves = {name: values[name].clone().requires_grad_() for name in NAMES}
    loc, scale = data @ leaves["encoder"], leaves["log_scale"].exp()
    log_likelihood = dist.Normal((loc + scale * noise) @ leaves["loadings"], NOISE).log_prob(data).sum()
    kl = (loc.square() + scale**2 - 1 - 2 * leaves["log_scale"]).sum() / 2
    expected = torch.autograd.grad(kl - log_likelihood, list(leaves.values()))
    for elbo in (AnalyticKLELBO(), TraceMeanField_ELBO()):
        set_params(values)
        assert elbo.loss_and_grads(model, guide, data, noise=noise) == pytest.approx((kl - log_likelihood).item())
        for name, gradient in zip(leaves, expected, strict=True):
            torch.testing.assert_close(pyro.param(name).grad, gradient, rtol=1e-12, atol=1e-12)


def test_a_equals_equation_152_at_the_same_draw_and_pyros_trace_elbo(data: Tensor) -> None:
    set_params(values := start())
    noise = torch.randn(N, K, dtype=torch.float64)
    leaves = {name: values[name].clone().requires_grad_() for name in NAMES}
    loc, scale = data @ leaves["encoder"], leaves["log_scale"].exp()
    z = loc + scale * noise
    log_joint = (
        dist.Normal(z @ leaves["loadings"], NOISE).log_prob(data).sum() + dist.Normal(0.0, 1.0).log_prob(z).sum()
    )
    expected = torch.autograd.grad(dist.Normal(loc, scale).log_prob(z).sum() - log_joint, list(leaves.values()))
    for elbo in (PathwiseELBO(), Trace_ELBO()):
        set_params(values)
        elbo.loss_and_grads(model, guide, data, noise=noise)
        for name, gradient in zip(leaves, expected, strict=True):
            torch.testing.assert_close(pyro.param(name).grad, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", [PathwiseELBO, AnalyticKLELBO, StickingTheLandingELBO, ScoreFunctionELBO])
def test_the_mean_over_minibatches_is_the_full_data_value(estimator: Any, data: Tensor) -> None:
    """Equation (154): with each point's noise fixed, N/M times the minibatch, over all minibatches of M = 2."""
    values, noise = start(), torch.randn(N, K, dtype=torch.float64)

    def loss_and_gradient(rows: tuple[int, ...]) -> tuple[float, dict[str, Tensor]]:
        set_params(values)
        loss = estimator().loss_and_grads(model, guide, data[[*rows]], num_data=N, noise=noise[[*rows]])
        return loss, {name: grad(name) for name in NAMES}

    full_loss, full = loss_and_gradient(tuple(range(N)))
    parts = [loss_and_gradient(rows) for rows in itertools.combinations(range(N), 2)]
    assert sum(loss for loss, _ in parts) / len(parts) == pytest.approx(full_loss, rel=1e-12)
    for name, gradient in full.items():
        mean = sum(part[name] for _, part in parts) / len(parts)
        torch.testing.assert_close(mean, gradient, rtol=1e-10, atol=1e-10)


def test_more_draws_divide_the_variance() -> None:
    one, eight = statistics("B"), statistics("B, eight draws")
    assert one.total_variance / eight.total_variance == pytest.approx(8, rel=0.3)


def test_the_score_function_varies_most_and_leave_one_out_mends_much_of_it() -> None:
    names = ("score function, four draws", "score function, leave one out, vectorised", "A, four draws")
    plain, left_out, pathwise = (float(statistics(name).gradient_variance["encoder"].sum()) for name in names)
    assert plain > 2 * left_out > 4 * pathwise


# ---------------------------------------------------------------------------------------------- other models, guides


def coin_model(x: Tensor) -> None:
    """A discrete latent, globally and by point."""
    side = pyro.sample("side", dist.Bernoulli(tensor(0.3)))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(tensor([0.2, 0.3, 0.5])))
        pyro.sample("x", dist.Normal(z.double() + side, tensor(1.0)), obs=x)


def coin_guide(x: Tensor) -> None:
    side = pyro.param("side_logit", tensor(0.4))
    logits = pyro.param("logits", tensor([[0.1, 0.2, -0.3], [0.5, -0.2, 0.0]]))
    pyro.sample("side", dist.Bernoulli(logits=side))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(logits=logits))


def coin_elbo(x: Tensor, side: Tensor, logits: Tensor) -> Tensor:
    """By summing over all values."""
    heads = side.sigmoid()
    q_side, p_side = torch.stack([1 - heads, heads]), tensor([0.7, 0.3])
    q, p = logits.softmax(-1), tensor([0.2, 0.3, 0.5])
    total = (q_side * (p_side / q_side).log()).sum() + (q * (p / q).log()).sum()
    for value, weight in zip((0.0, 1.0), q_side, strict=True):
        means = torch.arange(3, dtype=torch.float64) + value
        total = total + weight * (q * dist.Normal(means, 1.0).log_prob(x[:, None])).sum()
    return total


@pytest.mark.parametrize(
    "elbo",
    [
        pytest.param(ScoreFunctionELBO(), id="plain", marks=pytest.mark.slow),
        pytest.param(ScoreFunctionELBO(5, leave_one_out=True, vectorize_particles=True), id="leave one out"),
    ],
)
def test_the_score_function_is_unbiased_for_discrete_latents_global_and_local(elbo: Any) -> None:
    x = tensor([0.3, 2.1])
    leaves = {"side_logit": tensor(0.4).requires_grad_(), "logits": tensor([[0.1, 0.2, -0.3], [0.5, -0.2, 0.0]])}
    leaves["logits"].requires_grad_()
    gradients = torch.autograd.grad(-coin_elbo(x, *leaves.values()), list(leaves.values()))
    found = estimator_variance(coin_model, coin_guide, x, estimators={"score": elbo}, num_samples=1000)["score"]
    assert_mean(found, dict(zip(leaves, gradients, strict=True)))


def gamma_model(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(tensor(2.0), tensor(1.0)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Exponential(rate), obs=x)


@pytest.mark.slow
def test_an_autoguide_with_auxiliary_sites_is_scored_whole() -> None:
    """AutoNormal's latent is exp of a normal u: E of the log joint and of log q by quadrature, and its gradient."""
    x = tensor([0.5, 1.5, 1.0])
    auto = AutoNormal(gamma_model, init_loc_fn=lambda site: tensor(0.7), init_scale=0.6)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(80))
    auto(x)
    loc, scale = (p.clone().detach().requires_grad_() for p in (auto.locs.rate, auto.scales.rate))
    u = loc + scale * nodes
    log_joint = dist.Gamma(2.0, 1.0).log_prob(u.exp()) + u + dist.Exponential(u.exp()[:, None]).log_prob(x).sum(-1)
    elbo = (weights / weights.sum() * log_joint).sum() + scale.log() + (1 + math.log(2 * math.pi)) / 2
    by_loc, by_scale = torch.autograd.grad(-elbo, [loc, scale])
    by_free = by_scale * -torch.expm1(-scale.detach())  # through softplus, whose derivative is 1 - exp(-scale)
    exact = {"AutoNormal.locs.rate": by_loc, "AutoNormal.scales.rate": by_free}
    estimators = {"A": PathwiseELBO(), "landing": StickingTheLandingELBO(), "score": ScoreFunctionELBO()}
    report = estimator_variance(gamma_model, auto, x, estimators=estimators, num_samples=200)
    for found in report.estimators:
        assert_mean(found, exact)
        assert abs(found.loss_mean + elbo.item()) < 4.5 * math.sqrt(found.loss_variance / found.num_samples)


@pytest.mark.parametrize("estimator", [PathwiseELBO, AnalyticKLELBO, StickingTheLandingELBO, ScoreFunctionELBO])
def test_a_factor_of_the_guide_counts_with_its_gradient(estimator: Any, data: Tensor) -> None:
    """The loss and the gradient rise by the factor's, here a function of the parameters alone."""

    def with_factor(x: Tensor) -> None:
        guide(x)
        pyro.factor("penalty", 3 * pyro.param("log_scale").square().sum(), has_rsample=True)

    results = []
    for program in (guide, with_factor):
        set_params(values := start())
        pyro.set_rng_seed(1)
        results.append((estimator().loss_and_grads(model, program, data), grad("log_scale")))
    rise = 3 * values["log_scale"].square().sum().item()
    assert results[1][0] - results[0][0] == pytest.approx(rise)
    if estimator is not ScoreFunctionELBO:  # there a factor is part of the weights, and shows in the mean
        torch.testing.assert_close(results[1][1] - results[0][1], 6 * values["log_scale"])
        return
    set_params(values)
    elbo = ScoreFunctionELBO(4, leave_one_out=True, vectorize_particles=True)
    found = estimator_variance(model, with_factor, data, estimators={"e": elbo}, num_samples=300)["e"]
    expected = exact_gradient(data, values)
    assert_mean(found, {**expected, "log_scale": expected["log_scale"] + 6 * values["log_scale"]})


def test_a_delta_stays_pathwise_for_every_estimator() -> None:
    """A MAP estimate: the loss is the log joint at the point, and so is its gradient, without noise."""
    x = tensor([0.5, 1.5, 1.0])

    def point(x: Tensor) -> None:
        pyro.sample("rate", dist.Delta(pyro.param("point", tensor(1.3), constraint=constraints.positive)))

    expected = -(dist.Gamma(2.0, 1.0).log_prob(tensor(1.3)) + dist.Exponential(tensor(1.3)).log_prob(x).sum())
    slope = -1.3 * (1 / 1.3 - 1 + 3 / 1.3 - 3.0)  # in log rate
    for elbo in (PathwiseELBO(), AnalyticKLELBO(), StickingTheLandingELBO(), ScoreFunctionELBO()):
        found = estimator_variance(gamma_model, point, x, estimators={"e": elbo}, num_samples=3)["e"]
        assert found.loss_mean == pytest.approx(expected.item())
        assert found.gradient_mean["point"].item() == pytest.approx(slope)
        assert found.total_variance < 1e-20


@pytest.mark.parametrize("estimator", [PathwiseELBO, AnalyticKLELBO, StickingTheLandingELBO, ScoreFunctionELBO])
def test_svi_reaches_the_maximum_with_each(estimator: Any) -> None:
    """Normal data with a normal mean: the posterior is N(n x̄ / (n + 1), 1 / (n + 1))."""
    x = tensor([1.0, 2.0, 3.0])

    def normal_model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(tensor(0.0), tensor(1.0)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, tensor(1.0)), obs=x)

    def normal_guide(x: Tensor) -> None:
        loc = pyro.param("loc", tensor(0.0))
        scale = pyro.param("scale", tensor(1.0), constraint=constraints.positive)
        pyro.sample("mean", dist.Normal(loc, scale))

    options = {"leave_one_out": True} if estimator is ScoreFunctionELBO else {}
    elbo = estimator(num_particles=10, vectorize_particles=True, **options)
    optimizer = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.985})
    svi = SVI(normal_model, normal_guide, optimizer, elbo)
    for _ in range(250):
        svi.step(x)
        optimizer.step()
    assert pyro.param("loc").item() == pytest.approx(1.5, abs=0.05)
    assert pyro.param("scale").item() == pytest.approx(0.5, abs=0.05)


# ------------------------------------------------------------------------------------------------- report and errors


def test_the_report_leaves_parameters_and_gradients_as_they_were(data: Tensor) -> None:
    set_params(values := start())
    pyro.param("encoder").grad = torch.ones(D, K, dtype=torch.float64)
    estimator_variance(model, guide, data, num_samples=3)
    for name, value in values.items():
        assert torch.equal(pyro.param(name).detach(), value)
    assert torch.equal(grad("encoder"), torch.ones(D, K, dtype=torch.float64))
    assert pyro.param("loadings").grad is None


def test_mean_and_variance_are_those_of_the_gradients_that_svi_would_take(data: Tensor) -> None:
    set_params(values := start())
    pyro.set_rng_seed(5)
    found = estimator_variance(model, guide, data, estimators={"B": AnalyticKLELBO()}, num_samples=20)["B"]
    pyro.set_rng_seed(5)
    losses, gradients = [], []
    for _ in range(20):
        set_params(values)
        losses.append(AnalyticKLELBO().loss_and_grads(model, guide, data))
        gradients.append(grad("encoder"))
    stacked = torch.stack(gradients)
    torch.testing.assert_close(found.gradient_mean["encoder"], stacked.mean(0))
    torch.testing.assert_close(found.gradient_variance["encoder"], stacked.var(0))
    assert found.loss_variance == pytest.approx(tensor(losses).var().item())


def test_the_report_prints_a_row_for_each_parameter_and_names_what_it_has(data: Tensor) -> None:
    set_params(start())
    report = estimator_variance(model, guide, data, num_samples=5)
    lines = str(report).splitlines()
    assert lines[0].split("  ")[0] == "variance of"
    assert set(lines[1]) == {"-"}
    assert [line.split("  ")[0] for line in lines[2:7]] == [
        "loss",
        "gradient, encoder",
        "gradient, log_scale",
        "gradient, loadings",
        "gradient, all",
    ]
    assert f"{report['pathwise (A)'].total_variance:.4g}" in lines[6]
    assert len({len(line) for line in lines[1:7]}) == 1  # columns end at one place
    with pytest.raises(KeyError, match=r"Expected one of .*; got 'C'. Name one of these."):
        report["C"]


def laplace_guide(x: Tensor) -> None:
    loc = pyro.param("loc", x.new_zeros(len(x), K))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.SoftLaplace(loc, torch.ones_like(loc)).to_event(1))


def scaled_guide(x: Tensor) -> None:
    with pyro.poutine.scale(scale=0.5):
        guide(x)


@pytest.mark.parametrize(
    ("elbo", "model", "guide", "words"),
    [
        (
            PathwiseELBO(),
            coin_model,
            coin_guide,
            "reparameterised draw at every site of the guide for PathwiseELBO; got",
        ),
        (
            AnalyticKLELBO(),
            coin_model,
            coin_guide,
            "for AnalyticKLELBO; got Bernoulli at site 'side'. Use ScoreFunction",
        ),
        (AnalyticKLELBO(), model, laplace_guide, "got none from SoftLaplace to Normal at site 'z'. Register one"),
        (AnalyticKLELBO(), gamma_model, AutoNormal(gamma_model), "got 'rate_unconstrained', which is auxiliary"),
        (AnalyticKLELBO(), model, scaled_guide, "Expected one scale of site 'z' in model and guide; got 1.0 and 0.5"),
        (PathwiseELBO(), lambda x: None, lambda x: None, "Expected a loss that depends on a parameter; got none"),
    ],
    ids=["A discrete", "B discrete", "no closed form", "auxiliary", "scale", "no parameter"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_does_not_fit_is_named(elbo: Any, model: Any, guide: Any, words: str, data: Tensor) -> None:
    x = data if guide in (laplace_guide, scaled_guide) else data[:2, 0].abs()
    with pytest.raises(ModelError, match=words):
        estimator_variance(model, guide, x, estimators={"e": elbo}, num_samples=2)


def test_plain_arguments_are_checked(data: Tensor) -> None:
    with pytest.raises(ValueError, match="Expected num_particles >= 2 with leave_one_out=True; got 1"):
        ScoreFunctionELBO(leave_one_out=True)
    with pytest.raises(ValueError, match=r"Expected num_samples to be an integer of at least 2; got 1\. Write num"):
        estimator_variance(model, guide, data, num_samples=1)
    with pytest.raises(ValueError, match=r"Expected at least one estimator; got none. Write {'A': PathwiseELBO\(\)}"):
        estimator_variance(model, guide, data, estimators={})
    with pytest.raises(TypeError, match=r"with a differentiable_loss; got .* as 'graph'. Write PathwiseELBO\(\)"):
        estimator_variance(model, guide, data, estimators={"graph": TraceGraph_ELBO()})
    with pytest.raises(TypeError, match=r"Expected estimators by name, in a dict; got list. Write {'A': PathwiseELBO"):
        estimator_variance(model, guide, data, estimators=[PathwiseELBO()])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Expected a Pyro ELBO as 'A'; got a class. Write PathwiseELBO\(\)\."):
        estimator_variance(model, guide, data, estimators={"A": PathwiseELBO})


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_default_estimators_that_do_not_fit_are_left_out_and_named(data: Tensor) -> None:
    x = data[:2, 0].abs()
    report = estimator_variance(gamma_model, AutoNormal(gamma_model), x, num_samples=5)
    assert [s.name for s in report.estimators] == ["pathwise (A)", "score function"]
    last = str(report).splitlines()[-1]
    assert last.startswith("closed-form KL (B) is left out: Expected only the model's sites in the guide")
    with pytest.raises(KeyError, match=r"got 'closed-form KL \(B\)'\. It is left out: Expected only the model's"):
        report["closed-form KL (B)"]
    with pytest.raises(ModelError, match="Expected a loss that depends on a parameter; got none"):
        estimator_variance(lambda x: None, lambda x: None, x)


# -------------------------------------------------------------------------------------------------------------- example


@pytest.mark.slow
def test_the_example_finds_the_loss_of_a_vanish_where_q_becomes_the_posterior(tmp_path: Path) -> None:
    """On the linear-Gaussian model: A's loss and sticking the landing's gradient fall by far, B's loss does not."""
    demo = pytest.importorskip("examples.gradient_variance")
    arguments = ["--steps", "3", "--linear-steps", "300", "--samples", "8", "--out", str(tmp_path)]
    digits, linear = demo.main(arguments)
    assert (tmp_path / "gradient_variance.png").stat().st_size > 10_000
    assert list(digits.steps) == [0, 1, 2, 3]
    loss_a, loss_b = (linear.loss_variance(name) for name in ("A, pathwise", "B, closed-form KL"))
    assert loss_a[-1] < 1e-3 * loss_a[0]
    assert loss_b[-1] > 100 * loss_a[-1]
    landing = linear.guide_variance("sticking the landing")
    assert landing[-1] < 1e-3 * linear.guide_variance("B, closed-form KL")[-1]
    score, pathwise = (digits.guide_variance(name)[0] for name in ("score function", "A, pathwise"))
    assert score > 100 * pathwise


@pytest.mark.parametrize(("what", "value"), [("scale", torch.tensor(2.0)), ("mask", torch.tensor(False))])
def test_a_scale_or_mask_of_one_side_only_is_an_error_for_the_closed_form(what: str, value: Any) -> None:
    def model(x: Tensor) -> None:
        with pyro.poutine.scale(scale=value) if what == "scale" else pyro.poutine.mask(mask=value):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("where", torch.tensor(0.3)), 1.0))

    with pytest.raises(ModelError, match=f"Expected one {what} of site 'z' in model and guide"):
        AnalyticKLELBO().loss(model, guide, torch.tensor(1.0))
    pyro.clear_param_store()
