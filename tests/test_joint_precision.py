"""Normal sites with their common precision in one factor: posterior, evidence and draws against dense algebra."""

from __future__ import annotations

import functools
import itertools
import math
import re
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro import poutine
from test_joint_normal import GROUP, ITEM, SERIES, Model, X, Y, fitted, whole_and_by_pieces
from torch import Tensor

from pyro_latent import CAVI, EM, AutoConjugate, Gibbs, check_updates
from pyro_latent.distributions.joint_normal import SiteSlice
from pyro_latent.errors import ModelError, NaturalDomainError, NotConjugateError
from pyro_latent.families import Natural
from pyro_latent.families.joint_normal_gamma import GaussianGamma
from pyro_latent.handlers import closed_form

COVARIANCE = torch.tensor([[1.0, 0.3, 0.0], [0.3, 2.0, 0.1], [0.0, 0.1, 0.5]], dtype=torch.float64)
A, B = 2.5, 1.5


def precision_of(y: Tensor) -> Tensor:
    return pyro.sample("tau", dist.Gamma(y.new_tensor(A), B))


def regression(x: Tensor, y: Tensor) -> None:
    tau = precision_of(y)
    w = pyro.sample("w", dist.Normal(y.new_zeros(3), 2 * tau.rsqrt()).to_event(1))
    b = pyro.sample("b", dist.Normal(y.new_tensor(1.0), (0.1 * tau) ** -0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ w + b, tau.rsqrt()), obs=y)


def by_precision_matrix(x: Tensor, y: Tensor) -> None:
    tau = precision_of(y)
    w = pyro.sample("w", dist.MultivariateNormal(y.new_ones(3), precision_matrix=tau * COVARIANCE.inverse().to(y)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ w, (4 * tau) ** -0.5), obs=y)


def by_covariance_matrix(x: Tensor, y: Tensor) -> None:
    tau = precision_of(y)
    w = pyro.sample("w", dist.MultivariateNormal(y.new_ones(3), COVARIANCE.to(y) / tau))
    b = pyro.sample("b", dist.Normal(w[0], tau.rsqrt()))
    pyro.sample("y", dist.MultivariateNormal(x @ w + b, torch.eye(len(y)).to(y) / tau), obs=y)


def random_effects(y: Tensor) -> None:
    tau = precision_of(y)
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 3 / tau.sqrt()))
    with pyro.plate("groups", 6):
        b = pyro.sample("b", dist.Normal(mu, 1.5 / tau.sqrt()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b[GROUP], 0.7 / tau.sqrt()), obs=y)


def crossed_effects(y: Tensor) -> None:
    scale = precision_of(y).rsqrt()
    with pyro.plate("groups", 6):
        a = pyro.sample("a", dist.Normal(y.new_tensor(0.0), 1.5 * scale))
    with pyro.plate("items", 9, dim=-2):
        b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), 0.5 * scale))
    with pyro.plate("data", len(y)):
        likelihood = dist.Normal(a[GROUP] - 2 * b[ITEM, 0], 0.7 * scale)
        pyro.sample("y", likelihood.mask(torch.arange(40) % 8 > 0), obs=y)


def walk(y: Tensor) -> None:
    tau = precision_of(y)
    x = pyro.sample("x_0", dist.Normal(y.new_tensor(0.0), 3.0 * tau.rsqrt()))
    for t in pyro.markov(range(len(y))):
        if t:
            x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x + 0.1, 0.5 * tau.rsqrt()))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.7 * tau.rsqrt()), obs=y[t])


def state_space(y: Tensor) -> None:
    tau = precision_of(y)
    step, noise = y.new_tensor([[1.0, 0.2], [0.0, 0.8]]), y.new_tensor([[0.3, 0.1], [0.1, 0.2]])
    x = pyro.sample("x_0", dist.MultivariateNormal(y.new_zeros(2), 2 * torch.eye(2).to(y) / tau))
    for t in range(12):
        if t:
            x = pyro.sample(f"x_{t}", dist.MultivariateNormal(step @ x, noise / tau))
        pyro.sample(f"y_{t}", dist.Normal(x[0], (2 * tau) ** -0.5), obs=y[t])


class Case(NamedTuple):
    """A program, its arguments and blocks, the order that its block has, and how many numbers are observed."""

    model: Model
    args: tuple[Tensor, ...]
    blocks: Any
    sites: tuple[str, ...]
    observed: int


WALK = tuple(f"x_{t}" for t in range(40))
CASES = {
    "regression": Case(regression, (X, Y), [("w", "b", "tau")], ("w", "b", "tau"), 30),
    "precision matrix": Case(by_precision_matrix, (X, Y), [("w", "tau")], ("w", "tau"), 30),
    "covariance matrix": Case(by_covariance_matrix, (X, Y), "auto", ("w", "b", "tau"), 30),
    "random effects": Case(random_effects, (SERIES,), [("tau", "mu", "b")], ("mu", "b", "tau"), 40),
    "crossed effects": Case(crossed_effects, (SERIES,), "auto", ("a", "b", "tau"), 35),
    "walk": Case(walk, (SERIES,), [("x_*", "tau")], (*WALK, "tau"), 40),
    "state space": Case(state_space, (SERIES,), "auto", (*WALK[:12], "tau"), 12),
}


class Exact:
    """The posterior of a program by the derivatives of its log joint at τ = 1 and 2, which Pyro's own trace gives.

    Given τ the posterior is N(mean, shape / τ), and log p(data | τ) = level + (N / 2) log τ − τ residual.
    """

    def __init__(self, case: Case) -> None:
        trace = poutine.trace(poutine.block(case.model, hide=["tau"])).get_trace(*case.args)
        latent: dict[str, Any] = {n: trace.nodes[n]["value"] for n in trace.stochastic_nodes}
        self.shapes = {n: v.shape for n, v in latent.items() if v.is_floating_point()}
        self.sizes = [s.numel() for s in self.shapes.values()]
        self.case = case
        zero = torch.zeros(sum(self.sizes), dtype=torch.float64)
        precision = -torch.autograd.functional.hessian(lambda x: self.log_joint(x, 1.0), zero)
        self.mean = torch.linalg.solve(precision, torch.autograd.functional.jacobian(self.log_joint_at_one, zero))
        self.shape = torch.linalg.inv(precision)
        one, two = (self.log_evidence_given(tau) for tau in (1.0, 2.0))
        residual = one - two + 0.5 * case.observed * math.log(2)
        self.concentration, self.rate = A + 0.5 * case.observed, B + residual
        constant = one + residual + A * math.log(B) - math.lgamma(A)
        self.evidence = constant + math.lgamma(self.concentration) - self.concentration * math.log(self.rate)

    def log_joint(self, x: Tensor, tau: float) -> Tensor:
        """log p(x, data | τ)."""
        values = {n: p.reshape(s) for (n, s), p in zip(self.shapes.items(), x.split(self.sizes), strict=True)}
        given = poutine.condition(self.case.model, values | {"tau": x.new_tensor(tau)})
        trace = poutine.trace(poutine.block(given, hide=["tau"])).get_trace(*self.case.args)
        return torch.as_tensor(trace.log_prob_sum())

    def log_joint_at_one(self, x: Tensor) -> Tensor:
        return self.log_joint(x, 1.0)

    def log_evidence_given(self, tau: float) -> float:
        """log p(data | τ), by the density at the mean."""
        half_log_det = 0.5 * float(torch.logdet(self.shape / tau))
        return float(self.log_joint(self.mean, tau)) + 0.5 * len(self.mean) * math.log(2 * math.pi) + half_log_det

    def flat(self, values: dict[str, Tensor], lead: int = 0) -> Tensor:
        return torch.cat([values[n].reshape(*values[n].shape[:lead], -1) for n in self.shapes], -1)

    def log_prob(self, x: Tensor, tau: Tensor) -> Tensor:
        normal = dist.MultivariateNormal(self.mean, self.shape / tau[..., None, None])
        return dist.Gamma(tau.new_tensor(self.concentration), self.rate).log_prob(tau) + normal.log_prob(x)


@functools.cache
def exact_of(name: str) -> Exact:
    """What is exact for a case, once for all tests."""
    return Exact(CASES[name])


@functools.cache
def fit_of(name: str) -> tuple[AutoConjugate, list[float]]:
    case = CASES[name]
    return fitted(case.model, case.args, case.blocks)


@pytest.mark.parametrize("name", CASES)
def test_one_step_is_exact(name: str) -> None:
    exact, (guide, elbo) = exact_of(name), fit_of(name)
    assert elbo[0] == pytest.approx(exact.evidence, abs=1e-9)
    ((key, joint),) = guide.posterior(joint=True).items()
    assert key == joint.sites == CASES[name].sites
    posterior = guide.posterior()
    assert float(posterior["tau"].concentration) == pytest.approx(exact.concentration, abs=1e-9)
    assert float(posterior["tau"].rate) == pytest.approx(exact.rate, abs=1e-9)
    means = exact.flat({n: posterior[n].mean for n in exact.shapes})
    torch.testing.assert_close(means, exact.mean, rtol=1e-9, atol=1e-9)
    variances = exact.flat({n: posterior[n].variance for n in exact.shapes})
    covariance = exact.rate / (exact.concentration - 1) * exact.shape
    torch.testing.assert_close(variances, covariance.diagonal(), rtol=1e-9, atol=1e-9)
    places = dict(zip(exact.shapes, torch.arange(len(exact.mean)).split(exact.sizes), strict=True))
    for site in list(places)[:2]:
        for other in list(places)[-2:]:
            found = joint.covariance(site, other).reshape(len(places[site]), len(places[other]))
            torch.testing.assert_close(found, covariance[places[site]][:, places[other]], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_marginals_are_student_t(name: str) -> None:
    exact, (guide, _) = exact_of(name), fit_of(name)
    scale = (exact.shape.diagonal() * exact.rate / exact.concentration).sqrt()
    wanted = scipy.stats.t(2 * exact.concentration, exact.mean.numpy(), scale.numpy())
    found = guide.quantiles([0.1, 0.8])
    for i, level in enumerate((0.1, 0.8)):
        own = exact.flat({n: found[n][i] for n in exact.shapes})
        torch.testing.assert_close(own, torch.from_numpy(wanted.ppf(level)), rtol=1e-8, atol=1e-8)
    for n, q in guide.posterior().items():
        assert q.log_prob(q.sample()).isfinite().all(), n


@pytest.mark.parametrize("name", CASES)
def test_draws_and_their_densities(name: str) -> None:
    pyro.set_rng_seed(0)
    exact, (guide, _), args = exact_of(name), fit_of(name), CASES[name].args

    def particles() -> None:
        with pyro.plate("particles", 4_000, dim=-4):
            guide(*args)

    trace = poutine.trace(particles).get_trace()
    trace.compute_log_prob()
    nodes: dict[str, Any] = trace.nodes
    drawn = exact.flat({n: nodes[n]["value"].reshape(4_000, *s) for n, s in exact.shapes.items()}, 1)
    tau = nodes["tau"]["value"].reshape(4_000)
    density = sum(nodes[n]["log_prob"].reshape(4_000, -1).sum(1) for n in ("tau", *exact.shapes))
    torch.testing.assert_close(density, exact.log_prob(drawn, tau), rtol=0, atol=1e-8)
    (joint,) = guide.posterior(joint=True).values()
    pair = joint.sample((4_000,))
    by_site = joint.split(pair)
    order = exact.flat({n: by_site[n] for n in exact.shapes}, 1)
    torch.testing.assert_close(joint.log_prob(pair), exact.log_prob(order, pair[1]), rtol=0, atol=1e-8)
    scale = (exact.shape.diagonal() * exact.rate / (exact.concentration - 1)).sqrt()
    covariance = exact.rate / (exact.concentration - 1) * exact.shape
    for found, precision in ((drawn, tau), (order, pair[1])):
        assert float(((found.mean(0) - exact.mean) / scale).abs().max()) < 5 / math.sqrt(4_000)
        errors = (torch.cov(found.T) - covariance) / (scale[:, None] * scale)
        assert float(errors.abs().max()) < 8 / math.sqrt(4_000)
        spread = math.sqrt(exact.concentration) / exact.rate
        assert abs(float(precision.mean()) - exact.concentration / exact.rate) < 5 * spread / math.sqrt(4_000)
        standard = (found - exact.mean) * precision.sqrt().unsqueeze(-1)
        root = exact.shape.diagonal().sqrt()
        errors = (torch.cov(standard.T) - exact.shape) / root.outer(root)
        assert float(errors.abs().max()) < 6 / math.sqrt(4_000)
    one = poutine.trace(guide).get_trace(*args)
    again = poutine.trace(poutine.replay(guide, one)).get_trace(*args)
    assert float(again.log_prob_sum()) == pytest.approx(float(one.log_prob_sum()), abs=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_entropy_is_the_mean_log_density(name: str) -> None:
    pyro.set_rng_seed(0)
    (joint,) = fit_of(name)[0].posterior(joint=True).values()
    density = -joint.log_prob(joint.sample((4_000,)))
    assert float(joint.entropy()) == pytest.approx(
        float(density.mean()), abs=5 * float(density.std()) / math.sqrt(4_000)
    )


@pytest.mark.parametrize("name", CASES)
def test_float32_and_restarts_and_a_file(name: str, tmp_path: Any) -> None:
    case, exact = CASES[name], exact_of(name)
    args = tuple(a.float() for a in case.args)
    guide, elbo = fitted(case.model, args, case.blocks, restarts=2)
    assert elbo[-1] == pytest.approx(exact.evidence, rel=1e-4, abs=1e-3)
    torch.save(guide.state_dict(), tmp_path / "guide.pt")
    loaded = AutoConjugate(case.model, blocks=case.blocks)
    loaded.load_state_dict(torch.load(tmp_path / "guide.pt", weights_only=True))
    for n, q in loaded.posterior(*args).items():
        torch.testing.assert_close(q.mean, guide.posterior()[n].mean)


def test_the_evidence_of_a_regression_is_that_of_a_multivariate_t() -> None:
    design = torch.cat([X, torch.ones(30, 1, dtype=torch.float64)], 1)
    loc = design @ torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    shape = torch.eye(30) + design @ torch.tensor([4.0, 4.0, 4.0, 10.0], dtype=torch.float64).diag() @ design.T
    wanted = scipy.stats.multivariate_t(loc.numpy(), (B / A * shape).numpy(), df=2 * A).logpdf(Y.numpy())
    assert fit_of("regression")[1] == pytest.approx([wanted] * 2, abs=1e-9)


def test_the_evidence_of_a_walk_is_an_integral_over_the_precision_of_that_of_kalman() -> None:
    structural = pytest.importorskip("statsmodels.tsa.statespace.structural")
    series = SERIES.numpy()

    def level(y: Tensor) -> None:
        tau = precision_of(y)
        x = pyro.sample("x_0", dist.Normal(y.new_tensor(0.0), 3.0 * tau.rsqrt()))
        for t in range(len(y)):
            x = pyro.sample(f"x_{t}", dist.Normal(x, 0.5 * tau.rsqrt())) if t else x
            pyro.sample(f"y_{t}", dist.Normal(x, 0.7 * tau.rsqrt()), obs=y[t])

    _, elbo = fitted(level, (SERIES,), "auto")
    other = structural.UnobservedComponents(series, "local level")
    other.loglikelihood_burn = 0

    def density(tau: float) -> float:
        other.ssm.initialize_known([0.0], [[9.0 / tau]])
        log = other.loglike([0.49 / tau, 0.25 / tau])
        return math.exp(log - elbo[0]) * float(scipy.stats.gamma.pdf(tau, A, scale=1 / B))

    found = scipy.integrate.quad(density, 0.01, 30, epsabs=1e-11, epsrel=1e-11, limit=200)[0]
    assert found == pytest.approx(1.0, abs=1e-8)


def test_moments_are_the_gradient_of_the_log_normalizer() -> None:
    family = GaussianGamma([SiteSlice("x", 0, torch.Size([5]), torch.Size())], torch.device("cpu"), (), "tau")
    family.places(torch.tensor([1, 2, 3, 4, 4]), torch.tensor([0, 1, 2, 3, 0]))
    fields = {
        "x": torch.linspace(-1, 1, 5).double()[None],
        "xx": torch.cat([-torch.ones(5), 0.3 * torch.ones(5)]).double()[None],
        "precision": torch.tensor([-4.0]).double(),
        "log_precision": torch.tensor([3.7]).double(),
    }
    natural = Natural(**fields)
    leaves = natural.map(lambda t: t.clone().requires_grad_())
    found = torch.autograd.grad(family.log_normalizer(leaves).sum(), list(leaves.values()))
    torch.testing.assert_close(list(found), list(family.mean(natural).values()))
    again = family.from_params(family.to_params(natural))
    torch.testing.assert_close(dict(again), fields)
    value = (torch.linspace(0, 2, 5).double()[None], torch.tensor([1.7]).double())
    joint = family.distribution(family.to_params(natural))
    torch.testing.assert_close(joint.log_prob(value), family.log_prob(natural, *value))
    torch.testing.assert_close(joint.entropy(), family.entropy(natural))
    torch.testing.assert_close(family.distribution_params(joint), family.to_params(natural))
    other = Natural(**fields | {"log_precision": torch.tensor([5.0]).double()})
    assert float(family.kl_divergence(natural, other)) > 0
    improper = [{"log_precision": 1.5 - torch.ones(1).double()}, {"precision": torch.zeros(1).double()}]
    for change in improper:
        assert not bool(family.in_domain(Natural(**fields | change)))
    assert bool(family.in_domain(natural))


def test_a_density_at_a_high_temperature_is_proper() -> None:
    guide = AutoConjugate(walk, blocks="auto")
    elbo = CAVI(walk, guide, annealing=[0.01, 0.1, 0.5]).run(SERIES).elbo
    assert float(elbo[-1]) == pytest.approx(exact_of("walk").evidence, abs=1e-9)


# In a larger model.


def effects_of_unknown_size(y: Tensor) -> None:
    tau = precision_of(y)
    ratio = pyro.sample("ratio", dist.Gamma(y.new_tensor(3.0), 1.0))
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 3 * tau.rsqrt()))
    with pyro.plate("groups", 6):
        b = pyro.sample("b", dist.Normal(mu, (ratio * tau) ** -0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b[GROUP], 0.7 * tau.rsqrt()), obs=y)


def test_given_other_blocks_the_factor_is_exact() -> None:
    """The bound is E_q of the log joint less log q, by draws, and lies above that of three factors."""
    pyro.set_rng_seed(0)
    guide, elbo = fitted(effects_of_unknown_size, (SERIES,), "auto")
    assert [*guide.posterior(joint=True)] == [("mu", "b", "tau"), "ratio"]
    _, apart = fitted(effects_of_unknown_size, (SERIES,), [("mu", "b")])
    assert elbo[-1] > apart[-1] + 0.05
    assert all(later > earlier - 1e-9 for earlier, later in itertools.pairwise(elbo))
    given = poutine.condition(effects_of_unknown_size, {"ratio": torch.tensor(3.0).double()})
    values = []
    for _ in range(300):
        trace = poutine.trace(guide).get_trace(SERIES)
        model = poutine.trace(poutine.replay(effects_of_unknown_size, trace)).get_trace(SERIES)
        values.append(float(model.log_prob_sum() - trace.log_prob_sum()))
    found = torch.tensor(values)
    assert elbo[-1] == pytest.approx(float(found.mean()), abs=5 * float(found.std()) / math.sqrt(300))
    alone, evidence = fitted(given, (SERIES,), "auto")
    assert [*alone.posterior(joint=True)] == [("mu", "b", "tau")]
    assert evidence[0] == pytest.approx(evidence[-1], abs=1e-12)


def test_gibbs_draws_the_precision_first() -> None:
    pyro.set_rng_seed(0)
    exact = exact_of("random effects")
    gibbs = Gibbs(random_effects, num_samples=500, warmup_steps=1, blocks="auto")
    gibbs.run(SERIES)
    samples = gibbs.get_samples()
    spread = math.sqrt(exact.concentration) / exact.rate
    error = float(samples["tau"].mean()) - exact.concentration / exact.rate
    assert abs(error) < 5 * spread / math.sqrt(2_000)
    standard = (exact.flat(samples, 1) - exact.mean) * samples["tau"].sqrt().unsqueeze(-1)
    root = exact.shape.diagonal().sqrt()
    errors = (torch.cov(standard.T) - exact.shape) / root.outer(root)
    assert float(errors.abs().max()) < 6 / math.sqrt(2_000)


def parts(y: Tensor, group: Tensor, item: Tensor, places: Tensor) -> None:
    tau = precision_of(y)
    with pyro.plate("groups", 6):
        a = pyro.sample("a", dist.Normal(y.new_tensor(0.0), 1.5 * tau.rsqrt()))
    with pyro.plate("items", 9):
        b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), 0.5 * tau.rsqrt()))
    with pyro.plate("data", 40, subsample=places):
        pyro.sample("y", dist.Normal(a[group[places]] + b[item[places]], 0.7 * tau.rsqrt()), obs=y[places])


def test_pieces_say_what_all_of_the_data_says() -> None:
    guide, pieces = whole_and_by_pieces(parts)
    torch.testing.assert_close(pieces.posterior()["b"].mean, guide.posterior()["b"].mean)
    torch.testing.assert_close(pieces.posterior()["tau"].rate, guide.posterior()["tau"].rate)


def test_minibatches_blend_towards_the_posterior() -> None:
    """The average of natural parameters of minibatches that are each drawn once is that of all of the data."""
    guide, _ = fitted(parts, (SERIES, GROUP, ITEM, torch.arange(40)), "auto")
    blended = AutoConjugate(parts, blocks="auto")
    cavi = CAVI(parts, blended, step_size=lambda t: 1 / (t + 1))
    for k in range(4):
        cavi.step(SERIES, GROUP, ITEM, torch.arange(10 * k, 10 * k + 10))
    found, exact = blended.posterior(), guide.posterior()
    torch.testing.assert_close(found["tau"].rate, exact["tau"].rate)
    torch.testing.assert_close(found["tau"].concentration, exact["tau"].concentration)
    torch.testing.assert_close(found["a"].mean, exact["a"].mean)
    torch.testing.assert_close(found["b"].scale, exact["b"].scale)


def test_a_posterior_is_placed_by_its_pairs_as_a_start() -> None:
    data = (SERIES, GROUP, ITEM, torch.arange(40))
    turned = (SERIES.flip(0), GROUP.flip(0), ITEM.flip(0), torch.arange(40))
    key = ("a", "b", "tau")
    _, elbo = fitted(parts, data, [key])
    other, _ = fitted(parts, turned, [key])
    again = AutoConjugate(parts, blocks=[key], init={key: other.posterior(joint=True)[key]})
    assert again.elbo(*data) == pytest.approx(elbo[-1], abs=1e-8)


def test_em_climbs_the_evidence_itself() -> None:
    """Where q is exact given the parameters, EM maximizes log p(data) in them."""

    def model(y: Tensor, slope: Tensor | None = None) -> None:
        if slope is None:
            slope = pyro.param("slope", lambda: y.new_tensor(0.5))
        tau = precision_of(y)
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 3 * tau.rsqrt()))
        b = pyro.sample("b", dist.Normal(mu, tau.rsqrt()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(b + slope * torch.arange(40) / 40, 0.5 * tau.rsqrt()), obs=y)

    pyro.clear_param_store()
    guide = AutoConjugate(model, blocks="auto")
    elbo = EM(model, guide).run(SERIES, tol=1e-12).elbo
    assert [*guide.posterior(joint=True)] == [("mu", "b", "tau")]
    best = pyro.param("slope").detach()
    low, at, high = (fitted(model, (SERIES, best + step), "auto")[1][-1] for step in (-0.01, 0.0, 0.01))
    assert float(elbo[-1]) == pytest.approx(at, abs=1e-9)
    assert at > low and at > high


def test_a_hand_written_update_of_the_block_is_checked() -> None:
    key = ("mu", "b", "tau")
    exact = fit_of("random effects")[0].posterior(joint=True)[key]
    written = closed_form(random_effects, {key: lambda q, y: exact})
    guide, elbo = fitted(written, (SERIES,), [key])
    assert elbo[0] == pytest.approx(exact_of("random effects").evidence, abs=1e-9)
    assert check_updates(written, guide, SERIES).ok
    with pytest.raises(NotConjugateError, match="hand-written"):
        fitted(closed_form(random_effects, {"tau": lambda q, y: q["tau"]}), (SERIES,), [key])


def test_structured_inference_refuses_joined_globals() -> None:
    guide = AutoConjugate(random_effects, blocks="auto")
    with pytest.raises(ModelError, match="joint normal blocks"):
        CAVI(random_effects, guide, structured=4, step_size=0.5).step(SERIES)
    with pytest.raises(ModelError, match="joint normal blocks"):
        CAVI(random_effects, guide).structured_elbo(SERIES, draws=4)


# What is joined, and what is not.


def other_prior(y: Tensor) -> None:
    tau = precision_of(y)
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 3.0))
    with pyro.plate("groups", 6):
        b = pyro.sample("b", dist.Normal(mu, 1.5 * tau.rsqrt()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b[GROUP], tau.rsqrt()), obs=y)


def two_precisions(y: Tensor) -> None:
    tau = precision_of(y)
    noise = pyro.sample("noise", dist.Gamma(y.new_tensor(2.0), 1.0))
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 3.0 * tau.rsqrt()))
    with pyro.plate("groups", 6):
        b = pyro.sample("b", dist.Normal(mu, 1.5 * tau.rsqrt()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b[GROUP], noise.rsqrt()), obs=y)


def one_mean(y: Tensor) -> None:
    tau = precision_of(y)
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 3.0 * tau.rsqrt()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, tau.rsqrt()), obs=y)


def precision_by_group(y: Tensor) -> None:
    with pyro.plate("groups", 6):
        tau = precision_of(y)
        b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), 1.5 * tau.rsqrt()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b[GROUP], tau[GROUP].rsqrt()), obs=y)


def exponential(y: Tensor) -> None:
    tau = pyro.sample("tau", dist.Exponential(y.new_tensor(2.0)))
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 3.0 * tau.rsqrt()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, tau.rsqrt()), obs=y)


def two_sets(y: Tensor) -> None:
    """Two regressions with one precision, of which nothing else meets."""
    tau = precision_of(y)
    for i in range(2):
        m = pyro.sample(f"m_{i}", dist.Normal(y.new_tensor(0.0), 3.0 * tau.rsqrt()))
        with pyro.plate(f"data_{i}", 20):
            pyro.sample(f"y_{i}", dist.Normal(m, tau.rsqrt()), obs=y[20 * i : 20 * i + 20])


def one_set_of_two(y: Tensor) -> None:
    """Of two sets of normal sites one has a prior of its own."""
    tau = precision_of(y)
    for i in range(2):
        m = pyro.sample(f"m_{i}", dist.Normal(y.new_tensor(0.0), 3.0 * tau.rsqrt() if i else 3.0))
        with pyro.plate(f"data_{i}", 20):
            pyro.sample(f"y_{i}", dist.Normal(m, tau.rsqrt()), obs=y[20 * i : 20 * i + 20])


@pytest.mark.parametrize(
    "model, blocks, words",
    [
        (other_prior, [("mu", "b"), "tau"], "on its own, for the density of mu reads mu, b in a term that is not prop"),
        (two_precisions, [("mu", "b"), "tau", "noise"], "the density of y reads mu, b in a term that is not prop"),
        (one_mean, [("mu", "tau")], "jointly with mu, whose terms are all proportional to tau"),
        (precision_by_group, [("b", "tau")], "Normal-Gamma"),
        (exponential, [("mu", "tau")], "Normal-Gamma"),
        (two_sets, [("m_0", "m_1", "tau")], "jointly with m_0, m_1, whose terms are all proportional to tau"),
        (one_set_of_two, [("m_1", "tau"), "m_0"], "Normal-Gamma"),
    ],
)
def test_auto_joins_a_precision_that_every_term_is_proportional_to(model: Model, blocks: Any, words: str) -> None:
    guide, elbo = fitted(model, (SERIES,), "auto")
    assert {*guide.posterior(joint=True)} == {*blocks}
    assert words in guide.explain(SERIES)
    _, again = fitted(model, (SERIES,), [b if isinstance(b, tuple) else (b,) for b in blocks])
    assert elbo[-1] == pytest.approx(again[-1], abs=1e-9)


FORMS = {
    "normals": lambda p: {},
    "precision": lambda p: {"precision_matrix": p * torch.eye(3)},
    "covariance": lambda p: {"covariance_matrix": torch.eye(3) / p},
    "factor": lambda p: {"scale_tril": p.rsqrt() * torch.eye(3)},
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", FORMS)
def test_auto_joins_vectors_with_a_gamma_each(form: str) -> None:
    """The evidence is that of a multivariate t for each group: y = w + noise, of covariances I / tau."""

    def vector(loc: Tensor, precision: Tensor) -> Any:
        arguments = FORMS[form](precision.unsqueeze(-1).unsqueeze(-1))
        normal = dist.Normal(loc, precision.unsqueeze(-1).rsqrt()).to_event(1)
        return dist.MultivariateNormal(loc, **arguments) if arguments else normal

    def model(y: Tensor) -> None:
        with pyro.plate("groups", 2, dim=-2):
            tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
            w = pyro.sample("w", vector(torch.zeros(3), tau))
            with pyro.plate("data", 4, dim=-1):
                pyro.sample("y", vector(w, tau), obs=y)

    y = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    guide, elbo = fitted(model, (y,), "auto")
    shape = torch.block_diag(*[torch.eye(4) + 1] * 3) / 2
    evidence = [scipy.stats.multivariate_t(None, shape, df=4).logpdf(rows.T.flatten()) for rows in y]
    words = guide.explain(y)
    assert {*guide.posterior(joint=True)} == {("w", "tau")}
    assert "Isotropic Normal-Gamma" in words and "on its own" not in words
    assert elbo[-1] == pytest.approx(sum(evidence), rel=1e-12)


@pytest.mark.parametrize(
    "model, blocks, words",
    [
        (other_prior, ("mu", "b", "tau"), ["Site 'mu'", r"E\[mu\^2\]", "proportional to 'tau'", "leave 'tau' out"]),
        (two_precisions, ("mu", "b", "tau"), ["Site 'y'", r"E\[b", "leave 'tau' out of the block"]),
        (two_precisions, ("mu", "b", "tau", "noise"), ["Gamma with Gamma", "one Gamma of a single number"]),
        (precision_by_group, ("b", "tau", "b"), ["names one twice"]),
    ],
)
def test_what_is_not_proportional_is_an_error_that_names_the_term(
    model: Model, blocks: tuple[str, ...], words: list[str]
) -> None:
    with pytest.raises(NotConjugateError) as error:
        CAVI(model, AutoConjugate(model, blocks=[blocks])).step(SERIES)
    for word in words:
        assert re.search(word, str(error.value)), (word, str(error.value))


def test_what_rounding_decides_is_refused() -> None:
    """Sums of squares that cancel leave no digit of the rate."""

    def model(x: Tensor, y: Tensor) -> None:
        tau = precision_of(y)
        w = pyro.sample("w", dist.Normal(y.new_zeros(1), 1e9 * tau.rsqrt()).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ w, tau.rsqrt()), obs=y)

    x = 1 + X[:, :1] / 4
    guide, _ = fitted(model, (x, 10 * x[:, 0] + Y), [("w", "tau")])
    assert guide.posterior()["tau"].rate > 0
    with pytest.raises(NaturalDomainError, match="proper Joint Normal-Gamma"):
        fitted(model, (x, 1e9 * x[:, 0] + Y), [("w", "tau")])


def test_auto_leaves_a_precision_apart_that_a_density_has_a_function_of() -> None:
    """q reads tau itself as a location: E[tau²] is no moment of the joint factor, and none of a Gamma."""

    def model() -> None:
        tau = pyro.sample("tau", dist.Gamma(torch.tensor(2.0), 2.0))
        w = pyro.sample("w", dist.Normal(0.0, tau.rsqrt()))
        b = pyro.sample("b", dist.Normal(w, tau.rsqrt()))
        pyro.sample("y", dist.Normal(w + b, tau.rsqrt()), obs=torch.tensor(0.7))
        pyro.sample("q", dist.Normal(tau, 1.0), obs=torch.tensor(0.7))

    guide = AutoConjugate(model, blocks="auto")
    elbo = CAVI(model, guide).run(max_steps=50).elbo
    assert bool((elbo.diff() > -1e-9).all())
    assert ("w", "b") in guide.posterior(joint=True)
    assert "another function of tau" in str(guide.explain())
