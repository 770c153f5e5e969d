"""The guide: what Pyro's own machinery sees of the posterior, how it is saved, started, and carried to new data."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import SVI, Importance, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.importance import psis_diagnostic, vectorized_importance_weights
from pyro.optim import Adam
from shared_models import gaussian, mixture
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, ElboDecreaseError, ModelError, handlers
from pyro_latent.distributions import NormalGamma, NormalWishart
from pyro_latent.models import gmm, normal_gamma

BLOCK = [("mean", "precision")]
#: Of Pyro's estimates one after the other; so many more by the slow tests.
PARTICLES = pytest.mark.parametrize("particles", [10, pytest.param(50, marks=pytest.mark.slow)])


@pytest.fixture
def x() -> Tensor:
    return torch.randn(20, dtype=torch.float64) + 3


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def unmarked(x: Tensor) -> None:
    mixture(x, marked=False)


def clusters(n: int = 30) -> Tensor:
    return torch.randn(n, dtype=torch.float64) + torch.tensor([-4.0, 0.0, 4.0]).double()[torch.arange(n) % 3]


def local(x: Tensor) -> None:
    """Group means with a common location: latents in the plate of the data, and outside it."""
    top = pyro.sample("top", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        mu = pyro.sample("mu", dist.Normal(top, tau.rsqrt()))
        pyro.sample("x", dist.Normal(mu, 0.5), obs=x)


def fit(model: Callable[..., Any], *args: Any, steps: int = 50, **options: Any) -> AutoConjugate:
    guide = AutoConjugate(model, **options)
    CAVI(model, guide).run(*args, max_steps=steps, tol=1e-12)
    return guide


def assert_estimates(losses: list[float], elbo: float) -> None:
    """Independent estimates of −ELBO agree with it within five standard errors."""
    values = torch.tensor(losses, dtype=torch.float64)
    error = values.std() / len(values) ** 0.5
    assert abs(float(values.mean()) + elbo) <= 5 * float(error) + 1e-6 * abs(elbo), (values.mean(), -elbo, error)


def same_state(a: AutoConjugate, b: AutoConjugate) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name]


# In Pyro's own inference.


@pytest.mark.parametrize(
    ("vectorized", "particles"), [(False, 10), pytest.param(False, 50, marks=pytest.mark.slow), (True, 50)]
)
@pytest.mark.parametrize("model", [gaussian, local], ids=lambda m: m.__name__)
def test_trace_elbo_estimates_the_elbo(model: Callable[..., Any], vectorized: bool, particles: int, x: Tensor) -> None:
    guide = fit(model, x)
    loss = Trace_ELBO(particles, vectorize_particles=vectorized, max_plate_nesting=1)
    svi = SVI(model, guide, Adam({"lr": 0.01}), loss)
    before = {n: v.clone() for n, v in guide.state_dict().items() if isinstance(v, Tensor)}
    assert_estimates([svi.evaluate_loss(x) for _ in range(30)], guide.elbo(x))
    assert all(torch.equal(guide.state_dict()[n], v) for n, v in before.items())


@PARTICLES
def test_trace_elbo_scores_discrete_sites_from_their_exact_posterior(particles: int) -> None:
    x = clusters()
    guide = fit(unmarked, x)
    assert_estimates([Trace_ELBO(particles).loss(unmarked, guide, x) for _ in range(20)], guide.elbo(x))


@pytest.mark.parametrize("discrete", ["global", "local", "both"])
def test_vectorised_particles_score_discrete_sites_too(discrete: str) -> None:
    x = torch.tensor([0.4, -0.8, 2.0], dtype=torch.float64)

    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 2.0))
        loc = pyro.sample("top", dist.Bernoulli(0.3)) if discrete != "local" else 0.0
        with pyro.plate("data", len(x)):
            if discrete != "global":
                loc = loc - 2.0 * pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(a + loc, 1.0), obs=x)

    guide = fit(model, x)
    loss = Trace_ELBO(100, vectorize_particles=True, max_plate_nesting=1)
    assert_estimates([loss.loss(model, guide, x) for _ in range(30)], guide.elbo(x))


def test_a_step_of_svi_moves_no_natural_parameter(x: Tensor) -> None:
    guide = fit(gaussian, x)
    before = {n: v.clone() for n, v in guide.state_dict().items() if isinstance(v, Tensor)}
    svi = SVI(gaussian, guide, Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(3):
        svi.step(x)
    assert all(torch.equal(guide.state_dict()[n], v) for n, v in before.items())
    assert not list(guide.parameters())
    assert not dict(pyro.get_param_store())


@PARTICLES
def test_trace_enum_elbo_omits_the_marked_sites(particles: int) -> None:
    """Its bound sums the marked sites out for each draw of the others, and so lies above the ELBO of the product."""
    x = clusters()
    guide = fit(mixture, x)
    with poutine.enum(first_available_dim=-2):
        enumerated = poutine.trace(guide).get_trace(x)
    assert {"theta", "mu"} <= set(enumerated.nodes)
    assert "z" not in enumerated.nodes
    assert "z" in poutine.trace(guide).get_trace(x).nodes
    q = guide.posterior()
    theta, mu = q["theta"].sample((50_000,)), q["mu"].sample((50_000,))
    likelihood = dist.Normal(mu.unsqueeze(1), number(1.0)).log_prob(x.unsqueeze(1)) + theta.log().unsqueeze(1)
    prior = dist.Dirichlet(torch.ones(3).double()).log_prob(theta) + dist.Normal(0.0, number(5.0)).log_prob(mu).sum(1)
    entropy = -q["theta"].log_prob(theta) - q["mu"].log_prob(mu).sum(1)
    bound = float((likelihood.logsumexp(2).sum(1) + prior + entropy).mean())
    loss = TraceEnum_ELBO(particles, max_plate_nesting=1)
    assert_estimates([loss.loss(mixture, guide, x) for _ in range(20)], bound)
    assert bound > guide.elbo(x)


def test_mixtures_of_vectors_of_one_element() -> None:
    x = clusters()
    guide = fit(gmm.model, x.unsqueeze(1), 3, blocks=BLOCK, steps=20)
    diagonal = AutoConjugate(gmm.model, blocks=BLOCK)
    result = CAVI(gmm.model, diagonal).run(x.unsqueeze(1), 3, covariance="diagonal", max_steps=20, tol=1e-12)
    assert guide.elbo() == pytest.approx(float(result.elbo[-1]), rel=1e-10)


@PARTICLES
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites configured")
def test_trace_enum_elbo_samples_the_sites_that_are_not_marked(particles: int) -> None:
    x = clusters()
    guide = fit(unmarked, x)
    loss = TraceEnum_ELBO(particles, max_plate_nesting=1)
    assert_estimates([loss.loss(unmarked, guide, x) for _ in range(20)], guide.elbo(x))


@PARTICLES
@pytest.mark.parametrize("model", [gaussian, local], ids=lambda m: m.__name__)
def test_trace_mean_field_elbo_estimates_the_elbo(model: Callable[..., Any], particles: int, x: Tensor) -> None:
    guide = fit(model, x)
    assert_estimates([TraceMeanField_ELBO(particles).loss(model, guide, x) for _ in range(30)], guide.elbo(x))


def test_trace_mean_field_elbo_with_discrete_sites_names_trace_enum_elbo() -> None:
    x = clusters()
    guide = fit(mixture, x)
    with pytest.raises(
        ModelError, match=r"without discrete sites in TraceMeanField_ELBO; got \['z'\]. Use TraceEnum_ELBO"
    ):
        TraceMeanField_ELBO().loss(mixture, guide, x)


@PARTICLES
def test_masked_and_scaled_sites_score_the_same(particles: int) -> None:
    """The guide is inside the same scale as the model, latents included."""
    x = torch.randn(12, dtype=torch.float64) + 1
    mask: Any = torch.arange(12) % 3 > 0

    @poutine.scale(scale=torch.tensor(2.5, dtype=torch.float64))
    def model(x: Tensor) -> None:
        top = pyro.sample("top", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=mask):
            mu = pyro.sample("mu", dist.Normal(top, 1.0))
            pyro.sample("x", dist.Normal(mu, 0.5), obs=x)

    guide = fit(model, x)
    assert_estimates([Trace_ELBO(particles).loss(model, guide, x) for _ in range(30)], guide.elbo(x))


@pytest.mark.parametrize("scale", [0.3, 4.0])
def test_a_scale_around_the_model_scales_the_elbo_and_keeps_the_posterior(scale: float, x: Tensor) -> None:
    scaled = poutine.scale(gaussian, scale=scale)
    guide, plain = fit(scaled, x, steps=200), fit(gaussian, x, steps=200)
    assert guide.elbo(x) == pytest.approx(scale * plain.elbo(x), rel=1e-10)
    torch.testing.assert_close(guide.posterior()["tau"].rate, plain.posterior()["tau"].rate, rtol=1e-6, atol=0)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("model", [gaussian, local], ids=lambda m: m.__name__)
def test_predictive_draws_from_the_posterior(model: Callable[..., Any], parallel: bool, x: Tensor) -> None:
    guide = fit(model, x)
    draws = Predictive(model, guide=guide, num_samples=3000 if parallel else 300, parallel=parallel)(x)
    posterior = guide.posterior()
    for name, distribution in posterior.items():
        found = draws[name]
        sites = found.reshape(len(found), -1)
        assert sites.shape[1] == distribution.batch_shape.numel()
        error = (distribution.variance.reshape(-1) / len(found)).sqrt()
        assert bool(((sites.mean(0) - distribution.mean.reshape(-1)).abs() <= 5 * error).all()), name


def test_predictive_draws_new_data_with_discrete_sites() -> None:
    x = clusters(12)
    guide = fit(mixture, x)
    draws = Predictive(mixture, guide=guide, num_samples=200, return_sites=("z", "mu", "theta"))(x)
    assert draws["z"].shape == (200, 12)
    assert draws["theta"].reshape(200, -1).shape == (200, 3)
    assert draws["mu"].reshape(200, -1).shape == (200, 3)


def test_predictive_with_the_joint_block(x: Tensor) -> None:
    guide = fit(normal_gamma.model, x, blocks=BLOCK)
    draws = Predictive(normal_gamma.model, guide=guide, num_samples=4000, parallel=True)(x)
    exact = normal_gamma.posterior(x)
    mean, precision = draws["mean"].reshape(-1), draws["precision"].reshape(-1)
    assert scipy.stats.kstest(mean.numpy(), _student(exact).cdf).pvalue > 1e-4
    assert scipy.stats.kstest(precision.numpy(), _gamma(exact.precision_marginal()).cdf).pvalue > 1e-4
    # The mean's spread depends on the precision: standardised, it does not.
    standard = (mean - exact.loc) * (exact.precision_scaling * precision).sqrt()
    assert scipy.stats.kstest(standard.numpy(), "norm").pvalue > 1e-4


def _student(exact: NormalGamma) -> Any:
    marginal = exact.mean_marginal()
    return scipy.stats.t(float(marginal.df), float(marginal.loc), float(marginal.scale))


def _gamma(gamma: Any) -> Any:
    return scipy.stats.gamma(float(gamma.concentration), scale=1 / float(gamma.rate))


def test_importance_weights_of_an_exact_posterior_are_constant(x: Tensor) -> None:
    guide = fit(normal_gamma.model, x, blocks=BLOCK)
    evidence = normal_gamma.log_evidence(x)
    assert guide.elbo(x) == pytest.approx(float(evidence), rel=1e-12)
    weights, _, _ = vectorized_importance_weights(
        normal_gamma.model, guide, x, num_samples=50, max_plate_nesting=1, normalized=False
    )
    torch.testing.assert_close(weights, evidence.expand_as(weights), rtol=1e-10, atol=1e-9)
    marginal = Importance(normal_gamma.model, guide, num_samples=20).run(x)
    log_weights = torch.stack([torch.as_tensor(w) for w in marginal.log_weights])
    torch.testing.assert_close(log_weights, evidence.expand_as(log_weights), rtol=1e-10, atol=1e-9)


def test_importance_weights_of_discrete_sites_alone_are_constant() -> None:
    """All that is latent is discrete: the joint posterior is exact."""
    x = torch.tensor([0.3, 2.0, -1.0], dtype=torch.float64)
    probs = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    locs = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)

    def model(x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Bernoulli(number(0.3)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(probs))
            pyro.sample("x", dist.Normal(locs[z] + shift, number(0.7)), obs=x)

    guide = AutoConjugate(model)
    evidence = torch.stack(
        [
            dist.Bernoulli(number(0.3)).log_prob(number(float(s)))
            + (probs.log() + dist.Normal(locs + s, number(0.7)).log_prob(x.unsqueeze(1))).logsumexp(1).sum()
            for s in (0, 1)
        ]
    ).logsumexp(0)
    assert guide.elbo(x) == pytest.approx(float(evidence), rel=1e-10)
    for _ in range(20):
        guided = poutine.trace(guide).get_trace(x)
        joint = poutine.trace(poutine.replay(model, trace=guided)).get_trace(x)
        weight = joint.log_prob_sum() - guided.log_prob_sum()
        torch.testing.assert_close(weight, evidence, rtol=1e-10, atol=1e-10)


def test_psis_diagnostic_finds_the_mean_field_good_enough(x: Tensor) -> None:
    guide = fit(gaussian, x)
    assert psis_diagnostic(gaussian, guide, x, num_particles=1000, max_plate_nesting=1) < 0.7


# Joint draws of coupled discrete sites.


def coupled(x: Tensor) -> None:
    """Two causes of one observation, as explaining away needs."""
    first = pyro.sample("first", dist.Categorical(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)))
    with pyro.plate("data", len(x)):
        second = pyro.sample("second", dist.Categorical(torch.tensor([0.6, 0.4], dtype=torch.float64)))
        third = pyro.sample("third", dist.Bernoulli(number(0.4)))
        loc = first.to(x) * 0.7 + second.to(x) - 1.5 * third
        pyro.sample("x", dist.Normal(loc, number(0.6)), obs=x)


def brute_force(x: Tensor) -> tuple[dict[tuple[int, ...], float], float]:
    """log p(z, x) for each joint value (first, second_1, third_1, …), and log p(x)."""
    joint: dict[tuple[int, ...], float] = {}
    codes = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for first in range(3):
        for a in codes:
            for b in codes:
                values = {
                    "first": torch.tensor(first),
                    "second": torch.tensor([a[0], b[0]]),
                    "third": torch.tensor([a[1], b[1]]).to(x),
                }
                trace = poutine.trace(poutine.condition(coupled, values)).get_trace(x)
                joint[(first, *a, *b)] = float(trace.log_prob_sum())
    return joint, float(torch.tensor(list(joint.values()), dtype=torch.float64).logsumexp(0))


def test_joint_draws_have_the_brute_force_posterior_by_log_prob_and_by_frequency() -> None:
    x = torch.tensor([0.4, -0.8], dtype=torch.float64)
    joint, evidence = brute_force(x)
    guide = AutoConjugate(coupled)
    assert guide.elbo(x) == pytest.approx(evidence, rel=1e-10)
    count = 400
    seen: dict[tuple[int, ...], int] = dict.fromkeys(joint, 0)
    for _ in range(count):
        trace = poutine.trace(guide).get_trace(x)
        values: dict[str, Any] = {n: trace.nodes[n]["value"] for n in ("first", "second", "third")}
        first, second, third = values.values()
        code = (int(first), int(second[0]), int(third[0]), int(second[1]), int(third[1]))
        seen[code] += 1
        assert float(trace.log_prob_sum()) == pytest.approx(joint[code] - evidence, abs=1e-9)
    expected = {code: count * torch.tensor(value - evidence).exp().item() for code, value in joint.items()}
    often = [code for code, n in expected.items() if n >= 5]
    statistic = sum((seen[c] - expected[c]) ** 2 / expected[c] for c in often)
    rest = count - sum(expected[c] for c in often)
    statistic += (count - sum(seen[c] for c in often) - rest) ** 2 / max(rest, 1.0)
    assert statistic < scipy.stats.chi2(len(often)).ppf(1 - 1e-5)


def test_marginals_of_coupled_discrete_sites_are_the_brute_force_ones() -> None:
    x = torch.tensor([0.4, -0.8], dtype=torch.float64)
    joint, evidence = brute_force(x)
    posterior = AutoConjugate(coupled).posterior(x)
    for site, place, values in (("first", (0,), 3), ("second", (1, 3), 2), ("third", (2, 4), 2)):
        for i, where in enumerate(place):
            expected = torch.stack(
                [
                    torch.tensor([v - evidence for c, v in joint.items() if c[where] == k], dtype=torch.float64)
                    .exp()
                    .sum()
                    for k in range(values)
                ]
            )
            probs = posterior[site].probs
            found = torch.stack([1 - probs[i], probs[i]]) if site == "third" else probs if site == "first" else probs[i]
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_draws_under_vectorised_particles_are_joint_too() -> None:
    x = torch.tensor([0.4, -0.8], dtype=torch.float64)
    joint, evidence = brute_force(x)
    guide = AutoConjugate(coupled)
    guide(x)
    with pyro.plate("particles", 600, dim=-2):
        trace = poutine.trace(guide).get_trace(x)
    values: dict[str, Any] = {n: trace.nodes[n]["value"] for n in ("first", "second", "third")}
    third = values["third"].expand(600, 2)
    second = values["second"].expand(600, 2)
    first = values["first"].reshape(-1, 1).expand(600, 1)
    code = first[:, 0] * 16 + (second[:, 0] * 2 + third[:, 0]) * 4 + second[:, 1] * 2 + third[:, 1]
    found = torch.bincount(code.long(), minlength=48).double() / 600
    expected = torch.tensor([joint[(c // 16, c // 8 % 2, c // 4 % 2, c // 2 % 2, c % 2)] for c in range(48)]).double()
    expected = (expected - evidence).exp()
    error = (expected * (1 - expected) / 600).sqrt()
    assert bool(((found - expected).abs() <= 5 * error + 1e-3).all())


# The posterior as distributions.


def test_marginals_have_the_sites_shapes_and_families() -> None:
    x = clusters()
    data = torch.stack([x, x.cos()], 1)
    posterior = fit(gmm.model, data, 3, steps=5).posterior()
    assert list(posterior) == ["weights", "precision", "mean", "component"]
    assert isinstance(posterior["weights"], dist.Dirichlet)
    assert isinstance(posterior["precision"], dist.Wishart)
    assert isinstance(posterior["mean"], dist.MultivariateNormal)
    assert isinstance(posterior["component"], dist.Categorical)
    shapes = {n: (tuple(d.batch_shape), tuple(d.event_shape)) for n, d in posterior.items()}
    assert shapes == {
        "weights": ((), (3,)),
        "precision": ((3,), (2, 2)),
        "mean": ((3,), (2,)),
        "component": ((30,), ()),
    }


def test_joint_blocks_and_their_student_marginals(x: Tensor) -> None:
    guide = fit(normal_gamma.model, x, blocks=BLOCK)
    exact = normal_gamma.posterior(x)
    joint = guide.posterior(joint=True)
    assert list(joint) == [("mean", "precision")]
    assert isinstance(joint["mean", "precision"], NormalGamma)
    for name in ("loc", "precision_scaling", "concentration", "rate"):
        torch.testing.assert_close(getattr(joint["mean", "precision"], name), getattr(exact, name), rtol=1e-10, atol=0)
    marginal = guide.posterior()["mean"]
    assert isinstance(marginal, dist.StudentT)
    torch.testing.assert_close(marginal.log_prob(x[0]), exact.mean_marginal().log_prob(x[0]))


def test_joint_blocks_of_matrices() -> None:
    x = clusters()
    data = torch.stack([x, x**2 / 5 + torch.randn(30).double()], 1)
    guide = fit(gmm.model, data, 3, blocks=BLOCK, steps=20)
    joint = guide.posterior(joint=True)
    assert set(joint) == {"weights", ("mean", "precision"), "component"}
    assert isinstance(joint["mean", "precision"], NormalWishart)
    marginal = guide.posterior()["mean"]
    assert isinstance(marginal, dist.MultivariateStudentT)
    torch.testing.assert_close(marginal.loc, joint["mean", "precision"].loc)


def test_events_made_by_to_event_keep_their_shape() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2, 3).to(x), 1.0).to_event(2))
        tau = pyro.sample("tau", dist.Gamma(torch.ones(3).to(x), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc[0] + loc[1], tau.rsqrt()).to_event(1), obs=x)

    x = torch.randn(15, 3, dtype=torch.float64)
    guide = fit(model, x)
    posterior = guide.posterior()
    assert (posterior["loc"].batch_shape, posterior["loc"].event_shape) == ((), (2, 3))
    assert (posterior["tau"].batch_shape, posterior["tau"].event_shape) == ((), (3,))
    assert guide.median()["loc"].shape == (2, 3)
    assert guide(x)["loc"].shape == (2, 3)
    assert_estimates([Trace_ELBO(20).loss(model, guide, x) for _ in range(20)], guide.elbo(x))


QUANTILES = [0.025, 0.3, 0.5, 0.9]


def test_quantiles_are_those_of_scipy() -> None:
    x = clusters()
    guide = fit(mixture, x)
    posterior, found = guide.posterior(), guide.quantiles(QUANTILES)
    mu, theta = posterior["mu"], posterior["theta"].concentration
    for i, q in enumerate(QUANTILES):
        expected = scipy.stats.norm.ppf(q, mu.loc.numpy(), mu.scale.numpy())
        torch.testing.assert_close(found["mu"][i], torch.as_tensor(expected), rtol=1e-10, atol=1e-12)
        expected = scipy.stats.beta.ppf(q, theta.numpy(), (theta.sum() - theta).numpy())
        torch.testing.assert_close(found["theta"][i], torch.as_tensor(expected), rtol=1e-8, atol=0)
    assert found["z"].shape == (4, 30)
    assert set(found["z"].unique().tolist()) <= {0, 1, 2}
    for name, median in guide.median().items():
        assert torch.equal(median, found[name][2])


def test_quantiles_of_gammas_students_and_betas_are_those_of_scipy(x: Tensor) -> None:
    guide = fit(normal_gamma.model, x, blocks=BLOCK)
    exact = normal_gamma.posterior(x)
    found = guide.quantiles(QUANTILES)
    torch.testing.assert_close(found["mean"], torch.as_tensor(_student(exact).ppf(QUANTILES)), rtol=1e-9, atol=0)
    gamma = _gamma(exact.precision_marginal())
    torch.testing.assert_close(found["precision"], torch.as_tensor(gamma.ppf(QUANTILES)), rtol=1e-9, atol=0)

    def model(bits: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(torch.tensor(2.0).to(x), torch.tensor(3.0).to(x)))
        with pyro.plate("data", len(bits)):
            pyro.sample("bits", dist.Bernoulli(p), obs=bits)

    bits = (x > 3).double()
    guide = fit(model, bits)
    a, b = 2 + float(bits.sum()), 3 + float((1 - bits).sum())
    expected = torch.as_tensor(scipy.stats.beta(a, b).ppf(QUANTILES))
    torch.testing.assert_close(guide.quantiles(QUANTILES)["p"], expected, rtol=1e-9, atol=0)


def test_quantiles_of_matrices_are_those_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the draws leave the random states as they were, also of devices that hold nothing of the guide."""
    x = clusters()
    guide = fit(gmm.model, torch.stack([x, -x.cos()], 1), 2, steps=5)
    wishart = guide.posterior()["precision"]
    expected = wishart.sample((20_000,)).quantile(0.5, 0)
    spread = wishart.variance.sqrt()
    state, devices = torch.get_rng_state(), list[int]()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", devices.append)
    found = guide.median()["precision"]
    assert torch.equal(torch.get_rng_state(), state)
    assert not devices or torch.cuda.is_initialized()
    assert bool(((found - expected).abs() < 0.1 * spread).all())


def test_evaluate_loss_is_minus_elbo(x: Tensor) -> None:
    guide = AutoConjugate(gaussian)
    cavi = CAVI(gaussian, guide)
    loss = cavi.step(x)
    assert isinstance(loss, float)
    assert cavi.evaluate_loss(x) == -guide.elbo(x) == -guide.elbo()
    assert loss == pytest.approx(cavi.evaluate_loss(x), rel=1e-13)


def test_explain_has_a_row_for_each_site() -> None:
    x = clusters()
    rows = AutoConjugate(mixture).explain(x).splitlines()
    assert rows[0].split() == ["site", "distribution", "block", "posterior", "update"]
    by_site = {row.split()[0]: row for row in rows[1:]}
    assert list(by_site) == ["theta", "mu", "z", "x"]
    assert "by the densities of theta, z" in by_site["theta"]
    assert "by the densities of mu, x" in by_site["mu"]
    assert "enumerated and eliminated" in by_site["z"]
    assert "observed" in by_site["x"]


def test_explain_shows_blocks_hand_written_updates_and_obstacles(x: Tensor) -> None:
    joint = AutoConjugate(normal_gamma.model, blocks=BLOCK).explain(x)
    assert "mean, precision" in joint
    assert "Normal-Gamma" in joint
    written = handlers.closed_form(normal_gamma.model, {"mean": normal_gamma.updates["mean"]})
    by_site = {row.split()[0]: row for row in AutoConjugate(written).explain(x).splitlines()}
    assert "hand-written" in by_site["mean"]
    assert "closed form" in by_site["precision"]

    def stuck(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        nu = pyro.sample("nu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal((mu * nu).exp(), 1.0), obs=x)

    assert "none: " in AutoConjugate(stuck).explain(x)
    assert "exp of 'mu', 'nu'" in AutoConjugate(stuck).explain(x)


def test_render_model_still_shows_the_model_and_the_guide(x: Tensor) -> None:
    graphviz = pytest.importorskip("graphviz")
    guide = fit(gaussian, x)
    for function in (gaussian, guide):
        graph = pyro.render_model(function, model_args=(x,), render_distributions=True)
        assert isinstance(graph, graphviz.Digraph)
        assert "mu" in graph.source
        assert "tau" in graph.source


def test_the_relations_of_the_model_are_those_without_the_engine(x: Tensor) -> None:
    from pyro.infer.inspect import get_model_relations

    before = get_model_relations(gaussian, (x,))
    fit(gaussian, x)
    assert get_model_relations(gaussian, (x,)) == before
    assert set(before["sample_sample"]["x"]) == {"mu", "tau"}


# Saving and moving.


def saved(guide: AutoConjugate) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(guide.state_dict(), buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@pytest.mark.parametrize(
    ("model", "blocks"), [(gaussian, None), (local, None), (mixture, None), (normal_gamma.model, BLOCK)]
)
def test_a_saved_state_loads_into_a_fresh_guide(model: Any, blocks: Any, x: Tensor) -> None:
    guide = fit(model, x, blocks=blocks, steps=5)
    fresh = AutoConjugate(model, blocks=blocks)
    fresh.load_state_dict(saved(guide))
    same_state(guide, fresh)
    assert fresh.elbo(x) == guide.elbo(x)
    for name, value in guide.median().items():
        assert torch.equal(fresh.median()[name], value)
    assert CAVI(model, fresh).step(x) == pytest.approx(CAVI(model, guide).step(x), rel=1e-13)


def test_a_loaded_guide_says_that_it_wants_its_data(x: Tensor) -> None:
    fresh = AutoConjugate(gaussian)
    fresh.load_state_dict(saved(fit(gaussian, x)))
    with pytest.raises(ModelError, match=r"Expected the model's arguments; got none.*Call guide\(data\) once"):
        fresh.elbo()


def test_the_state_of_another_model_does_not_load(x: Tensor) -> None:
    guide = fit(gaussian, x)
    other = fit(local, x)
    with pytest.raises(ModelError, match=r"Expected a state of the blocks .*'top'.*; got one of .*'mu'"):
        other.load_state_dict(guide.state_dict())


def test_a_loaded_state_is_a_copy(x: Tensor) -> None:
    guide = fit(gaussian, x, steps=2)
    state = guide.state_dict()
    fresh = AutoConjugate(gaussian)
    fresh.load_state_dict(state)
    kept = {n: v.clone() for n, v in state.items() if isinstance(v, Tensor)}
    CAVI(gaussian, fresh).run(x + 1, max_steps=3)
    assert all(torch.equal(guide.state_dict()[n], v) for n, v in kept.items())


def test_a_guide_inside_a_module_saves_with_it(x: Tensor) -> None:
    guide = fit(gaussian, x)
    holder = torch.nn.ModuleDict({"guide": guide})
    state = holder.state_dict()
    inner = AutoConjugate(gaussian)
    torch.nn.ModuleDict({"guide": inner}).load_state_dict(state)
    same_state(guide, inner)


def test_double_and_float_convert_the_posterior(x: Tensor) -> None:
    guide = fit(gaussian, x)
    rate = guide.posterior()["tau"].rate
    guide.float()
    assert all(v.dtype == torch.float32 for v in guide.state_dict().values() if isinstance(v, Tensor))
    single = guide.posterior(x.float())["tau"].rate
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), rate, rtol=1e-5, atol=0)
    CAVI(gaussian, guide).step(x.float())
    guide.to(torch.float64)
    CAVI(gaussian, guide).run(x, tol=1e-13)
    torch.testing.assert_close(guide.posterior()["tau"].rate, rate, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_posterior_has_the_dtype_of_the_data(dtype: torch.dtype, x: Tensor) -> None:
    for guide in (fit(gaussian, x.to(dtype)), fit(mixture, x.to(dtype))):
        for value in guide.state_dict().values():
            assert not isinstance(value, Tensor) or value.dtype == dtype
        for value in guide(x.to(dtype)).values():
            assert value.dtype in (dtype, torch.int64)


# Starts.


def test_no_start_and_a_seed_are_reproducible() -> None:
    x = clusters()

    def start(init: Any, seed: int) -> float:
        pyro.set_rng_seed(seed)
        return CAVI(mixture, AutoConjugate(mixture, init=init)).step(x)

    assert start(None, 1) == start(None, 2) == start(0, 3)
    assert start(7, 1) == start(7, 2)


def test_different_seeds_start_differently() -> None:
    def model(x: Tensor) -> None:
        """Two factors with one product: at zero neither moves."""
        a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a * b, 1.0), obs=x)

    x = torch.ones(5, dtype=torch.float64)
    means = [AutoConjugate(model, init=seed).posterior(x)["a"].mean for seed in range(3)]
    assert len({float(m) for m in means}) == 3
    assert all(abs(float(m)) > 1e-3 for m in means)


def test_a_start_by_distributions_is_where_the_guide_is(x: Tensor) -> None:
    init = {"mu": dist.Normal(1.5, 0.25), "tau": dist.Gamma(3.0, 2.0)}
    guide = AutoConjugate(gaussian, init=init)
    posterior = guide.posterior(x)
    torch.testing.assert_close(posterior["mu"].loc, torch.tensor(1.5).double())
    torch.testing.assert_close(posterior["mu"].scale, torch.tensor(0.25).double())
    torch.testing.assert_close(posterior["tau"].rate, torch.tensor(2.0).double())
    torch.testing.assert_close(posterior["tau"].concentration, torch.tensor(3.0).double())


def test_a_start_by_location_moves_the_location_only(x: Tensor) -> None:
    plain = AutoConjugate(gaussian).posterior(x)["mu"]
    moved = AutoConjugate(gaussian, init={"mu": torch.tensor(1.5)}).posterior(x)["mu"]
    torch.testing.assert_close(moved.loc, torch.tensor(1.5).double())
    torch.testing.assert_close(moved.scale, plain.scale)


def test_a_start_by_responsibilities_is_their_m_step() -> None:
    x = clusters(9)
    probs = torch.rand(9, 3, dtype=torch.float64)
    probs = probs / probs.sum(1, keepdim=True)
    for init in ({"z": probs}, {"z": dist.Categorical(probs)}, {"z": probs * 5}):
        guide = AutoConjugate(mixture, init=init)
        CAVI(mixture, guide, order=["theta", "mu"]).step(x)
        torch.testing.assert_close(guide.posterior()["theta"].concentration, 1 + probs.sum(0))
        precision = 1 / 25 + probs.sum(0)
        torch.testing.assert_close(guide.posterior()["mu"].loc, probs.T @ x / precision)


def test_a_start_by_function_asks_for_each_site() -> None:
    x = clusters(9)
    asked = []

    def init(site: Any) -> Any:
        asked.append(site.name)
        return torch.tensor([-4.0, 0.0, 4.0]) if site.name == "mu" else None

    guide = AutoConjugate(mixture, init=init)
    torch.testing.assert_close(guide.posterior(x)["mu"].loc, torch.tensor([-4.0, 0.0, 4.0]).double())
    assert sorted(asked) == ["mu", "theta", "z"]


def test_a_start_of_every_continuous_block_decides_the_discrete_one() -> None:
    x = clusters(9)
    init = {"mu": dist.Normal(torch.tensor([4.0, 0.0, -4.0]), 0.01), "theta": dist.Dirichlet(torch.ones(3) * 50)}
    guide = AutoConjugate(mixture, init=init)
    CAVI(mixture, guide).step(x)
    assert guide.posterior()["mu"].loc[0] > 2
    assert guide.posterior()["mu"].loc[2] < -2


def test_a_joint_block_starts_at_a_joint_distribution(x: Tensor) -> None:
    one = torch.ones((), dtype=torch.float64)
    start = NormalGamma(one * 2, one * 3, one * 4, one * 5)
    guide = AutoConjugate(normal_gamma.model, blocks=BLOCK, init={("mean", "precision"): start})
    found = guide.posterior(x, joint=True)["mean", "precision"]
    for name in ("loc", "precision_scaling", "concentration", "rate"):
        torch.testing.assert_close(getattr(found, name), getattr(start, name))


def test_restarts_keep_the_best_and_report_the_others() -> None:
    x = clusters(60)
    guide = AutoConjugate(mixture, init=3, restarts=6)
    result = CAVI(mixture, guide).run(x, max_steps=40, tol=0)
    assert result.restarts.shape == (6,)
    assert result.elbo[-1] == result.restarts.max()
    assert guide.elbo(x) == pytest.approx(float(result.restarts.max()), rel=1e-12)
    assert bool((result.elbo.diff() >= -1e-9 * result.elbo.abs().max()).all())
    assert all(len(v) == 1 for n in guide.state.values() for v in n.values())
    single = AutoConjugate(mixture)
    assert CAVI(mixture, single).run(x, max_steps=1).restarts.shape == (1,)


def one_start(i: int, natural: Tensor) -> Tensor:
    return natural[i : i + 1].clone()


def test_each_of_the_restarts_is_the_run_of_its_start_alone() -> None:
    x = clusters(40)
    guide = AutoConjugate(mixture, init=5, restarts=4)
    guide(x)
    starts = torch.nn.functional.one_hot(guide.posterior_state.starts["z"], 3).to(x)  # labels of clusters
    states = [{k: n.map(functools.partial(one_start, i)) for k, n in guide.state.items()} for i in range(4)]
    together = CAVI(mixture, guide).run(x, max_steps=15, tol=0).restarts
    for i in range(4):
        alone = AutoConjugate(mixture, init={"z": starts[i]})
        alone(x)
        pending = dict(alone.posterior_state.starts)
        alone.posterior_state.store(states[i])
        alone.posterior_state.starts = pending
        result = CAVI(mixture, alone).run(x, max_steps=15, tol=0)
        assert float(result.elbo[-1]) == pytest.approx(float(together[i]), rel=1e-10)


def test_restarts_settle_when_every_start_has() -> None:
    x = clusters(40)
    result = CAVI(mixture, AutoConjugate(mixture, init=1, restarts=5)).run(x, tol=1e-9)
    assert result.converged
    assert bool((result.restarts <= result.elbo[-1]).all())


# New data.


def test_a_new_number_of_rows_keeps_the_globals_and_starts_the_locals(x: Tensor) -> None:
    guide = fit(local, x, steps=5)
    top, tau = guide.posterior()["top"], guide.posterior()["tau"]
    longer = torch.randn(33, dtype=torch.float64)
    posterior = guide.posterior(longer)
    assert posterior["mu"].batch_shape == (33,)
    torch.testing.assert_close(posterior["top"].loc, top.loc)
    torch.testing.assert_close(posterior["top"].scale, top.scale)
    torch.testing.assert_close(posterior["tau"].rate, tau.rate)
    CAVI(local, guide).run(longer, tol=1e-13, max_steps=5000)
    reference = fit(local, longer, steps=5000)
    assert guide.elbo(longer) == pytest.approx(reference.elbo(longer), rel=1e-7)


def test_a_new_number_of_rows_of_a_mixture_keeps_the_components() -> None:
    guide = fit(mixture, clusters(30))
    before = guide.posterior()
    new = clusters(12)
    after = guide.posterior(new)
    torch.testing.assert_close(after["mu"].loc, before["mu"].loc)
    torch.testing.assert_close(after["theta"].concentration, before["theta"].concentration)
    assert after["z"].probs.shape == (12, 3)
    logits = torch.digamma(before["theta"].concentration) - 0.5 * (
        (new.unsqueeze(1) - before["mu"].loc) ** 2 + before["mu"].variance
    )
    torch.testing.assert_close(after["z"].probs, logits.softmax(-1), rtol=1e-8, atol=1e-12)


def test_new_data_of_the_same_size_is_new_data(x: Tensor) -> None:
    guide = fit(gaussian, x)
    other = x + 5
    CAVI(gaussian, guide).run(other, tol=1e-13)
    torch.testing.assert_close(
        guide.posterior()["mu"].loc, fit(gaussian, other, steps=500).posterior()["mu"].loc, rtol=1e-6, atol=0
    )


def test_a_change_in_place_is_noticed(x: Tensor) -> None:
    guide = AutoConjugate(gaussian)
    cavi = CAVI(gaussian, guide)
    cavi.run(x, tol=1e-13)
    x += 5
    cavi.run(x, tol=1e-13)
    expected = fit(gaussian, x.clone(), steps=500).posterior()["mu"].loc
    torch.testing.assert_close(guide.posterior()["mu"].loc, expected, rtol=1e-6, atol=0)


def test_keyword_arguments_are_arguments(x: Tensor) -> None:
    guide = AutoConjugate(normal_gamma.model, blocks=BLOCK)
    cavi = CAVI(normal_gamma.model, guide)
    for rate in (1.0, 2.5, torch.tensor(4.0, dtype=torch.float64)):
        cavi.step(x, prior_rate=rate)
        found = guide.posterior()["precision"].rate
        torch.testing.assert_close(found, normal_gamma.posterior(x, prior_rate=rate).rate, rtol=1e-10, atol=0)


def test_a_parameter_that_changed_in_the_store_is_read_anew(x: Tensor) -> None:
    """Parameters are point estimates of the guide, and what SVI or the user does to them between two calls counts."""

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0, dtype=torch.float64), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, scale), obs=x)

    guide = fit(model, x)
    assert guide.params()["scale"] == pytest.approx(float(pyro.param("scale")), rel=1e-12)
    fitted = guide.elbo(x)
    assert guide.elbo(x) == fitted
    with torch.no_grad():
        pyro.param("scale").unconstrained().add_(0.5)  # type: ignore[attr-defined]
    assert guide.elbo(x) < fitted - 1.0
    assert guide.params()["scale"] == pytest.approx(float(pyro.param("scale")), rel=1e-12)
    CAVI(model, guide).run(x, tol=1e-13)
    assert guide.elbo(x) == pytest.approx(fitted, rel=1e-10)


# Running.


def test_control_c_returns_what_was_reached(x: Tensor) -> None:
    guide = AutoConjugate(gaussian)
    cavi = CAVI(gaussian, guide)

    def interrupt(step: int, elbo: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    result = cavi.run(x, max_steps=50, tol=0, callback=interrupt)
    assert result.num_steps == 3
    assert result.elbo.shape == (3,)
    assert not result.converged
    assert guide.elbo(x) == pytest.approx(float(result.elbo[-1]), rel=1e-13)
    assert cavi.step(x) <= -float(result.elbo[-1]) + 1e-9


def test_control_c_inside_a_sweep_keeps_the_last_whole_sweep(x: Tensor) -> None:
    calls = []

    def update(q: Any, x: Tensor) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return normal_gamma.update_precision(q, x)

    model = handlers.closed_form(normal_gamma.model, {"precision": update})
    guide = AutoConjugate(model)
    result = CAVI(model, guide).run(x, max_steps=50, tol=0)
    assert result.num_steps == 3
    assert guide.elbo(x) == pytest.approx(float(result.elbo[-1]), rel=1e-13)


def test_control_c_with_restarts_keeps_the_best_so_far() -> None:
    x = clusters(40)
    guide = AutoConjugate(mixture, restarts=4)

    def interrupt(step: int, elbo: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    result = CAVI(mixture, guide).run(x, callback=interrupt)
    assert guide.elbo(x) == pytest.approx(float(result.restarts.max()), rel=1e-12)


def test_control_c_before_the_first_sweep_returns_nothing(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        raise KeyboardInterrupt

    result = CAVI(model, AutoConjugate(model)).run(x)
    assert (result.num_steps, result.converged, result.elbo.shape) == (0, False, (0,))


def test_a_callback_that_returns_true_ends_the_run(x: Tensor) -> None:
    guide = AutoConjugate(mixture)
    result = CAVI(mixture, guide).run(x, max_steps=50, tol=0, callback=lambda step, elbo: step == 3)
    again = AutoConjugate(mixture)
    expected = CAVI(mixture, again).run(x, max_steps=3, tol=0)
    assert result.num_steps == 3 and not result.converged
    assert torch.equal(result.elbo, expected.elbo)


def test_the_callback_sees_every_sweep(x: Tensor) -> None:
    seen: list[tuple[int, float]] = []
    result = CAVI(gaussian, AutoConjugate(gaussian)).run(
        x, max_steps=6, tol=0, callback=lambda i, e: seen.append((i, e))
    )
    assert [i for i, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(torch.tensor([e for _, e in seen], dtype=torch.float64), result.elbo)


def test_the_progress_bar_shows_the_elbo(x: Tensor, capfd: pytest.CaptureFixture[str]) -> None:
    CAVI(gaussian, AutoConjugate(gaussian)).run(x, max_steps=3, tol=0)
    assert capfd.readouterr().err == ""
    result = CAVI(gaussian, AutoConjugate(gaussian)).run(x, max_steps=3, tol=0, progress=True)
    shown = capfd.readouterr().err
    assert "3/3" in shown
    assert f"ELBO {float(result.elbo[-1]):.6f}" in shown


def test_no_tolerance_never_stops_early(x: Tensor) -> None:
    result = CAVI(gaussian, AutoConjugate(gaussian)).run(x, max_steps=120, tol=0)
    assert result.num_steps == 120
    assert not result.converged


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-10])
def test_it_stops_at_the_first_small_rise(tol: float, x: Tensor) -> None:
    result = CAVI(gaussian, AutoConjugate(gaussian)).run(x, tol=tol)
    rises, bounds = result.elbo.diff(), tol * result.elbo[1:].abs().clamp(min=1)
    assert result.converged
    assert rises[-1] <= bounds[-1]
    assert bool((rises[:-1] > bounds[:-1]).all())
    assert result.elbo.dtype == torch.float64
    assert result.num_steps == len(result.elbo)


def test_a_second_run_goes_on_from_the_first(x: Tensor) -> None:
    guide, whole = AutoConjugate(gaussian), AutoConjugate(gaussian)
    cavi = CAVI(gaussian, guide)
    parts = torch.cat([cavi.run(x, max_steps=3, tol=0).elbo, cavi.run(x, max_steps=4, tol=0).elbo])
    torch.testing.assert_close(parts, CAVI(gaussian, whole).run(x, max_steps=7, tol=0).elbo, rtol=1e-13, atol=0)


def test_the_order_is_the_order_of_the_updates(x: Tensor) -> None:
    """With mu last, mu is at its optimum given tau; with tau last, tau given mu."""
    first, last = AutoConjugate(gaussian), AutoConjugate(gaussian)
    CAVI(gaussian, first, order=["tau", "mu"]).step(x)
    CAVI(gaussian, last, order=["mu", "tau"]).step(x)
    q = first.posterior()
    precision = 0.01 + len(x) * q["tau"].mean
    torch.testing.assert_close(q["mu"].loc, q["tau"].mean * x.sum() / precision)
    q = last.posterior()
    torch.testing.assert_close(q["tau"].rate, 1 + ((x - q["mu"].loc) ** 2 + q["mu"].variance).sum() / 2)


def test_the_order_may_place_the_discrete_sites() -> None:
    x = clusters(20)
    results = {}
    for order in (["z", "theta", "mu"], ["mu", "z", "theta"], ["mu", "theta"]):
        guide = AutoConjugate(mixture)
        result = CAVI(mixture, guide, order=order).run(x, tol=1e-13, max_steps=3000)
        assert bool((result.elbo.diff() >= -1e-9 * result.elbo.abs().max()).all())
        results[tuple(order)] = float(result.elbo[-1])
    values = list(results.values())
    assert values[0] == pytest.approx(values[1], rel=1e-7)
    assert values[0] == pytest.approx(values[2], rel=1e-7)


def test_more_local_steps_reach_as_far_in_fewer_sweeps() -> None:
    x = torch.randn(25, dtype=torch.float64)
    one = CAVI(local, AutoConjugate(local)).run(x, tol=1e-12, max_steps=5000)
    five = CAVI(local, AutoConjugate(local), local_steps=5).run(x, tol=1e-12, max_steps=5000)
    assert float(five.elbo[-1]) == pytest.approx(float(one.elbo[-1]), rel=1e-8)
    assert five.num_steps <= one.num_steps
    assert five.elbo[0] >= one.elbo[0] - 1e-9


def test_a_local_tolerance_ends_the_local_steps_early() -> None:
    x = torch.randn(25, dtype=torch.float64)
    calls = []

    def update(q: Any, x: Tensor) -> Any:
        calls.append(1)
        precision = q["tau"].mean + 4
        return dist.Normal((q["tau"].mean * q["top"].mean + 4 * x) / precision, precision.rsqrt())

    model = handlers.closed_form(local, {"mu": update})
    CAVI(model, AutoConjugate(model), local_steps=50, local_tol=1e-9).step(x)
    assert len(calls) <= 4  # given the globals, one local step is the optimum


def test_the_elbo_never_falls() -> None:
    x = clusters(40)
    for model in (gaussian, local, mixture):
        result = CAVI(model, AutoConjugate(model, init=2)).run(x, max_steps=60, tol=0)
        slack = 1e-9 * result.elbo.abs().max()
        assert bool((result.elbo.diff() >= -slack).all())


def test_moving_the_state_by_hand_is_no_fall_of_the_elbo(x: Tensor) -> None:
    """Only a sweep's own fall is an error: the state may be set from outside between two of them."""
    guide = fit(gaussian, x)
    cavi = CAVI(gaussian, guide)
    cavi.step(x)
    other = AutoConjugate(gaussian, init={"mu": dist.Normal(100.0, 1.0)})
    other(x)
    guide.load_state_dict(other.state_dict())
    try:
        cavi.step(x)
    except ElboDecreaseError as error:  # pragma: no cover
        pytest.fail(str(error))


def test_the_terms_of_the_elbo_add_up_and_are_what_they_say() -> None:
    """Entropies are Pyro's; expected log densities are averages over draws; their sum is the ELBO."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(40, generator=generator, dtype=torch.float64) * 2 + 1

    def model(data: Tensor) -> None:
        precision = pyro.sample("precision", dist.Gamma(data.new_tensor(2.0), 1.0))
        mean = pyro.sample("mean", dist.Normal(data.new_tensor(0.0), (0.1 * precision).rsqrt()))
        with poutine.scale(scale=0.5), pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=data)

    guide = AutoConjugate(model)
    CAVI(model, guide).run(data)
    terms, q = guide.elbo_terms(data), guide.posterior()
    assert terms.total == pytest.approx(guide.elbo(data), rel=1e-12)
    for name in ("precision", "mean"):
        assert terms.entropies[name] == pytest.approx(q[name].entropy().item(), rel=1e-10)
    torch.manual_seed(0)
    draws = {name: q[name].sample((100_000,)) for name in q}
    values = {
        "precision": dist.Gamma(2.0, 1.0).log_prob(draws["precision"]),
        "mean": dist.Normal(0.0, (0.1 * draws["precision"]).rsqrt()).log_prob(draws["mean"]),
        "x": 0.5 * dist.Normal(draws["mean"][:, None], draws["precision"][:, None].rsqrt()).log_prob(data).sum(-1),
    }
    for name, value in values.items():
        error = value.std().item() / len(value) ** 0.5
        assert terms.log_densities[name] == pytest.approx(value.mean().item(), abs=5 * error)
