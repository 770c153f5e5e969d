"""Posteriors of coordinate ascent against references: long runs of NUTS, and quadrature where all but one dimension go.

The references, their densities and the script that makes them are in ``tests/references``. Where mean field is known to
be too narrow, the tests say so and check that it is: a factor's variance is the conditional one, which is never above
the marginal one for a Gaussian, and far below it where coordinates are correlated (Bishop 2006 §10.1.2).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from references import problems
from references.make_references import ALL, FOLDER, MAX_R_HAT, MIN_ESS
from shared_models import schools_with_gamma, weights_and_bias
from torch import Tensor

from examples.users_scripts import __main__ as users
from pyro_latent import CAVI, AutoConjugate
from pyro_latent.models import gmm, normal_gamma


class Moments(NamedTuple):
    """Means and standard deviations of one quantity, of equal shape."""

    mean: np.ndarray
    sd: np.ndarray


def load(name: str) -> dict[str, Moments]:
    """The reference's moments by quantity."""
    found = np.load(FOLDER / f"{name}.npz")
    quantities = [key.removesuffix("/mean") for key in found if key.endswith("/mean")]
    return {q: Moments(found[f"{q}/mean"], found[f"{q}/sd"]) for q in quantities}


def moments(posterior: Any) -> Moments:
    """Of a Pyro distribution."""
    return Moments(posterior.mean.double().numpy(), posterior.variance.double().sqrt().numpy())


def log_spread(precision: Any) -> Moments:
    """Of log tau = -log(precision) / 2 for a Gamma precision."""
    a, b = precision.concentration.double(), precision.rate.double()
    return Moments((-(torch.digamma(a) - b.log()) / 2).numpy(), (torch.polygamma(1, a).sqrt() / 2).numpy())


def fit(model: Callable[..., Any], *data: Any, **options: Any) -> AutoConjugate:
    guide = AutoConjugate(model, **options)
    result = CAVI(model, guide).run(*data, tol=1e-11, max_steps=5000)
    assert result.converged
    return guide


def errors(found: Mapping[str, Moments], reference: Mapping[str, Moments]) -> tuple[dict[str, float], dict[str, Any]]:
    """By quantity, the largest error of a mean in reference sds, and the ratios of the sds."""
    means = {n: float(np.max(np.abs(m.mean - reference[n].mean) / reference[n].sd)) for n, m in found.items()}
    return means, {n: m.sd / reference[n].sd for n, m in found.items()}


def told(row: str, compared: tuple[dict[str, float], dict[str, Any]], *bounds: float) -> None:
    """Print what a row of the second table of docs/users-scripts.md says, which ``pytest -s`` shows."""
    means, ratios = compared
    parts = [f"{n} {means[n]:.3f}, {np.min(r):.3f} to {np.max(r):.3f}" for n, r in ratios.items()]
    parts += ["ELBO {:.3f}, log evidence {:.3f}".format(*bounds)] if bounds else []
    print(f"\n{row}: {'; '.join(parts)}")


# -------------------------------------------------------------------------------------------- the references themselves


@pytest.mark.parametrize("name", ALL)
def test_the_chains_of_each_reference_agree(name: str) -> None:
    found = np.load(FOLDER / f"{name}.npz")
    settings = json.loads(str(found["settings"]))
    r_hats = [found[key] for key in found if key.endswith("/r_hat")]
    sizes = [found[key] for key in found if key.endswith("/ess")]
    assert max(float(np.max(r)) for r in r_hats) <= MAX_R_HAT
    assert min(float(np.min(s)) for s in sizes) >= MIN_ESS
    assert settings["divergences"] <= settings["chains"] * settings["draws"] / 1000
    assert (FOLDER / f"{name}.npz").stat().st_size < 300_000


class Grid(NamedTuple):
    """A posterior that is Gaussian given one coordinate: a grid of it, its posterior mass, and the evidence."""

    coordinate: np.ndarray
    mass: np.ndarray
    log_evidence: float


def on_grid(coordinate: np.ndarray, log_density: np.ndarray) -> Grid:
    """The trapezoid rule, exact to rounding for densities that vanish at both ends."""
    step = coordinate[1] - coordinate[0]
    top = log_density.max()
    total = np.exp(log_density - top).sum() * step
    return Grid(coordinate, np.exp(log_density - top) / np.exp(log_density - top).sum(), top + math.log(total))


def mixed(grid: Grid, mean: np.ndarray, variance: np.ndarray) -> Moments:
    """Moments of a mixture over the grid of conditional means and variances, ``[points] + shape``."""
    average = np.tensordot(grid.mass, mean, 1)
    second = np.tensordot(grid.mass, variance + (mean - average) ** 2, 1)
    return Moments(average, np.sqrt(second))


def schools_by_quadrature(log_prior: Callable[[Tensor], Tensor]) -> tuple[dict[str, Moments], float]:
    """Given tau the effects are N(mu, errors² + tau²) and mu, theta are Gaussian (Gelman et al. 2013, §5.4)."""
    effects, standard = (t.numpy() for t in problems.schools())
    log_tau = np.linspace(-14, 14, 8001)
    tau = np.exp(log_tau)[:, None]
    precision = 1 / (standard**2 + tau**2)
    mu_precision = 1 / problems.MU_SCALE**2 + precision.sum(1)
    mu_mean, mu_variance = (precision * effects).sum(1) / mu_precision, 1 / mu_precision
    # log p(effects | tau) = log p(effects | mu) + log p(mu) - log p(mu | effects) at any mu; here at its mean.
    log_likelihood = scipy.stats.norm.logpdf(effects, mu_mean[:, None], precision**-0.5).sum(1)
    log_likelihood += scipy.stats.norm.logpdf(mu_mean, 0, problems.MU_SCALE)
    log_likelihood -= scipy.stats.norm.logpdf(0, 0, np.sqrt(mu_variance))
    grid = on_grid(log_tau, log_likelihood + log_prior(torch.from_numpy(log_tau)).numpy())
    shrinkage = standard**2 * precision
    theta_mean = shrinkage * mu_mean[:, None] + (1 - shrinkage) * effects
    theta_variance = (1 - shrinkage) * standard**2 + shrinkage**2 * mu_variance[:, None]
    found = {
        "mu": mixed(grid, mu_mean, mu_variance),
        "log_tau": mixed(grid, log_tau, np.zeros_like(log_tau)),
        "theta": mixed(grid, theta_mean, theta_variance),
    }
    return found, grid.log_evidence


def regression_by_quadrature() -> tuple[dict[str, Moments], float]:
    """Given the precision the weights are Gaussian."""
    features, target = (t.numpy() for t in problems.diabetes())
    design = np.column_stack([features, np.ones(len(features))])
    values, vectors = np.linalg.eigh(design.T @ design)
    projected, squares = vectors.T @ design.T @ target, (target**2).sum()
    log_precision = np.linspace(-3, 4, 4001)
    precision = np.exp(log_precision)[:, None]
    shrunk = precision * projected / (1 + precision * values)
    log_likelihood = -len(target) / 2 * (math.log(2 * math.pi) - log_precision) - precision[:, 0] * squares / 2
    log_likelihood += (precision * projected * shrunk - np.log1p(precision * values)).sum(1) / 2
    grid = on_grid(log_precision, log_likelihood + log_precision - np.exp(log_precision))
    means = shrunk @ vectors.T
    variances = (1 / (1 + precision * values)) @ (vectors**2).T
    weights = mixed(grid, means, variances)
    found = {
        "weights": Moments(weights.mean[:-1], weights.sd[:-1]),
        "bias": Moments(weights.mean[-1], weights.sd[-1]),
        "precision": mixed(grid, np.exp(log_precision), np.zeros_like(log_precision)),
    }
    return found, grid.log_evidence


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("eight_schools_half_cauchy", lambda: schools_by_quadrature(problems.half_cauchy_spread)),
        ("eight_schools_gamma", lambda: schools_by_quadrature(problems.gamma_precision)),
        ("diabetes_regression", regression_by_quadrature),
    ],
)
def test_nuts_equals_quadrature_where_that_is_possible(name: str, exact: Callable[[], Any]) -> None:
    """Means within five standard errors of the chains, and standard deviations within 4 %."""
    found, file = exact()[0], np.load(FOLDER / f"{name}.npz")
    reference = load(name)
    for quantity, value in found.items():
        standard_error = reference[quantity].sd / np.sqrt(file[f"{quantity}/ess"])
        assert np.all(np.abs(value.mean - reference[quantity].mean) < 5 * standard_error), quantity
        np.testing.assert_allclose(value.sd, reference[quantity].sd, rtol=0.04)


# -------------------------------------------------------------------------------------------------------- eight schools


def half_cauchy_centred(errors: Tensor, effects: Tensor) -> None:
    """tau ~ HalfCauchy(25) by two Gammas, theta ~ N(mu, tau)."""
    mu = pyro.sample("mu", dist.Normal(0.0, problems.MU_SCALE))
    rate = pyro.sample("rate", dist.Gamma(0.5, 1 / problems.TAU_SCALE**2))
    tau = pyro.sample("precision", dist.Gamma(0.5, rate)).rsqrt()
    with pyro.plate("schools", len(errors)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effects", dist.Normal(theta, errors), obs=effects)


def half_cauchy_non_centred(errors: Tensor, effects: Tensor) -> None:
    """The same as a ratio: signed tau ~ N(0, 1) / sqrt(Gamma(1/2, 25² / 2)), theta = mu + tau eta."""
    mu = pyro.sample("mu", dist.Normal(0.0, problems.MU_SCALE))
    spread = pyro.sample("spread", dist.Gamma(0.5, problems.TAU_SCALE**2 / 2))
    tau = pyro.sample("tau", dist.Normal(0.0, spread.rsqrt()))
    with pyro.plate("schools", len(errors)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("effects", dist.Normal(mu + tau * eta, errors), obs=effects)


def schools_data() -> tuple[Tensor, Tensor]:
    effects, standard = problems.schools()
    return standard, effects


@pytest.mark.parametrize("tau", [0.1, 3.0, 25.0, 400.0])
def test_a_half_cauchy_scale_is_two_gammas_or_a_ratio(tau: float) -> None:
    """The two rewritings above have the density of HalfCauchy(25), with the second Gamma integrated out."""
    a, gamma = problems.TAU_SCALE, scipy.stats.gamma

    def two_gammas(rate: float) -> float:
        return float(gamma.pdf(rate, 0.5, scale=a**2) * gamma.pdf(tau**-2, 0.5, scale=1 / rate) * 2 * tau**-3)

    def ratio(spread: float) -> float:
        return float(gamma.pdf(spread, 0.5, scale=2 / a**2) * 2 * scipy.stats.norm.pdf(tau, 0, spread**-0.5))

    for density in (two_gammas, ratio):
        whole = scipy.integrate.quad(lambda t, f=density: f(math.exp(t)) * math.exp(t), -40, 20, limit=500)[0]
        assert whole == pytest.approx(scipy.stats.halfcauchy.pdf(tau, scale=a), rel=1e-7)


@pytest.mark.parametrize(
    ("model", "name", "log_prior", "of_theta", "of_log_tau"),
    [
        (half_cauchy_centred, "eight_schools_half_cauchy", problems.half_cauchy_spread, 0.35, 0.85),
        (schools_with_gamma, "eight_schools_gamma", problems.gamma_precision, 0.06, 0.30),
    ],
)
def test_eight_schools_centred(model: Any, name: str, log_prior: Any, of_theta: float, of_log_tau: float) -> None:
    """The spread, which theta is independent of in q, is too narrow and so is mu; the schools' means suffer less.

    Errors of means in reference sds: mu 0.03, theta ``of_theta``, log tau ``of_log_tau``. With the half-Cauchy prior
    the posterior of the spread reaches down to zero, where theta and mu are one; a factorised q stays away from there.
    """
    guide = fit(model, *schools_data())
    posterior = guide.posterior()
    found = {"mu": moments(posterior["mu"]), "theta": moments(posterior["theta"])}
    found["log_tau"] = log_spread(posterior["precision"])
    means, ratios = compared = errors(found, load(name))
    assert means["mu"] < 0.03 and means["theta"] < of_theta and means["log_tau"] < of_log_tau
    assert 0.4 < ratios["mu"] < 0.7 and 0.2 < ratios["log_tau"] < 0.6
    assert ratios["theta"].min() > 0.7 and ratios["theta"].max() < 1.15
    evidence = schools_by_quadrature(log_prior)[1]
    assert evidence - 2 < guide.elbo() < evidence
    prior = "tau ~ HalfCauchy(25)" if model is half_cauchy_centred else "tau^-2 ~ Gamma(1, 25)"
    told(f"eight schools, {prior}", compared, guide.elbo(), evidence)


def test_eight_schools_non_centred() -> None:
    """One half-Cauchy model in two parametrisations: the bound is tighter, and every school is shrunk to the mean.

    Signed tau and eta are symmetric about zero: E tau = E eta = 0 is the optimum, and so E theta = E mu for each.
    """
    guide = fit(half_cauchy_non_centred, *schools_data())
    mu, tau, eta = (moments(guide.posterior()[name]) for name in ("mu", "tau", "eta"))
    spread = (tau.sd**2 + tau.mean**2) * (eta.sd**2 + eta.mean**2) - (tau.mean * eta.mean) ** 2
    theta = Moments(mu.mean + tau.mean * eta.mean, np.sqrt(mu.sd**2 + spread))
    means, ratios = compared = errors({"mu": mu, "theta": theta}, load("eight_schools_half_cauchy"))
    assert means["mu"] < 0.05 and means["theta"] < 0.45
    assert ratios["mu"] < 0.9 and ratios["theta"].max() < 0.95
    assert np.ptp(theta.mean) < 0.01
    evidence = schools_by_quadrature(problems.half_cauchy_spread)[1]
    assert fit(half_cauchy_centred, *schools_data()).elbo() < guide.elbo() - 1 < guide.elbo() < evidence
    told("eight schools, theta = mu + tau eta", compared, guide.elbo(), evidence)


# ----------------------------------------------------------------------------------------------------------- regression


def separate_regression(features: Tensor, target: Tensor) -> None:
    """The regression with a site for each weight, as many users write it."""
    weights = [pyro.sample(f"weight_{j}", dist.Normal(0.0, 1.0)) for j in range(10)]
    mean: Any = sum(weights[j] * features[:, j] for j in range(10))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(features)):
        pyro.sample("obs", dist.Normal(mean + bias, precision.rsqrt()), obs=target)


def test_regression_with_one_factor_of_the_weights() -> None:
    """Only the weights' dependence on the noise is lost: the bound is 0.012 nats low, each sd at most 3 % too small."""
    guide = fit(weights_and_bias, *problems.diabetes())
    found = {name: moments(q) for name, q in guide.posterior().items()}
    means, ratios = compared = errors(found, load("diabetes_regression"))
    assert max(means.values()) < 0.03
    assert all(np.all((r > 0.97) & (r < 1.02)) for r in ratios.values())
    exact, evidence = regression_by_quadrature()
    assert all(np.all(r < 1) for r in errors(found, exact)[1].values())
    assert evidence - 0.02 < guide.elbo() < evidence
    told("regression, N = {}, D = {}".format(*problems.diabetes()[0].shape), compared, guide.elbo(), evidence)


@pytest.mark.slow
def test_regression_with_a_factor_for_each_weight() -> None:
    """The means are right, and each sd is the conditional one, 1 / sqrt(1 + N E precision): a seventh, at the worst."""
    features, target = problems.diabetes()
    guide = fit(separate_regression, features, target)
    posterior = {name: moments(q) for name, q in guide.posterior().items()}
    weights = [posterior[f"weight_{j}"] for j in range(10)]
    found = {"weights": Moments(np.stack([w.mean for w in weights]), np.stack([w.sd for w in weights]))}
    means, ratios = compared = errors(found, load("diabetes_regression"))
    assert means["weights"] < 0.03
    assert 0.13 < ratios["weights"].min() < 0.15 and ratios["weights"].max() < 0.9
    np.testing.assert_allclose(found["weights"].sd, (1 + len(target) * posterior["precision"].mean) ** -0.5, rtol=1e-6)
    evidence = regression_by_quadrature()[1]
    assert guide.elbo() < evidence - 3.5
    told("regression, a factor for each weight", compared, guide.elbo(), evidence)


# ------------------------------------------------------------------------------------------------------------- mixtures


def durations_mixture(data: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(data.new_ones(2)))
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("obs", dist.Normal(loc[assignment], precision[assignment].rsqrt()), obs=data)


def test_mixture_of_durations() -> None:
    """Mean field takes the assignments as independent of the components: no sd is larger than the reference's.

    (The bounds allow 1.5 % for the reference's own error; its effective sample size is above 13,000.)
    """
    guide = fit(durations_mixture, problems.durations())
    order = guide.posterior()["loc"].mean.argsort()
    found = {n: Moments(*(v[order] for v in moments(guide.posterior()[n]))) for n in ("weights", "loc", "precision")}
    means, ratios = compared = errors(found, load("durations_mixture"))
    assert means["weights"] < 0.05 and means["loc"] < 0.05 and means["precision"] < 0.12
    assert all(np.all((r > 0.8) & (r < 1.015)) for r in ratios.values())
    assert ratios["precision"].max() < 0.9  # a precision is known least where the assignments are not
    told(f"mixture, {len(problems.durations())} durations", compared)


@pytest.mark.parametrize("blocks", [None, [("mean", "precision")]])
def test_mixture_of_eruptions(blocks: Any) -> None:
    """Full covariances, mean and precision apart or together; the components hardly overlap, so little is lost."""
    data = problems.old_faithful()
    prior: dict[str, Any] = {
        "weight_concentration_prior": 1.0,
        "mean_precision_prior": 1.0,
        "mean_prior": torch.zeros(2, dtype=torch.float64),
        "degrees_of_freedom_prior": 2.0,
        "covariance_prior": torch.eye(2, dtype=torch.float64),
    }
    guide = AutoConjugate(gmm.model, blocks=blocks)
    assert CAVI(gmm.model, guide).run(data, 2, tol=1e-11, **prior).converged
    posterior = guide.posterior()
    order = posterior["mean"].mean[:, 0].argsort()
    found = {n: Moments(*(v[order] for v in moments(posterior[n]))) for n in ("weights", "mean", "precision")}
    means, ratios = compared = errors(found, load("old_faithful_mixture"))
    assert max(means.values()) < 0.04
    assert all(np.all((r > 0.94) & (r < 1.015)) for r in ratios.values())
    told(f"mixture, {len(data)} points, blocks {blocks}", compared)


# --------------------------------------------------------------------------------------------------------- Normal-Gamma


def test_normal_gamma_by_quadrature() -> None:
    """The joint block is the posterior; mean field has its means, and variances that are smaller by known factors."""
    data = problems.durations()
    log_precision = np.linspace(-2, 2, 1501)
    precision = np.exp(log_precision)
    # Given the precision the mean is Gaussian; the model's prior is N(0, 1 / precision) Gamma(1, 1).
    scaling, total = 1 + len(data), float(data.sum())
    squares = float((data**2).sum()) - total**2 / scaling
    log_density = (len(data) / 2 + 1) * log_precision - precision * (1 + squares / 2)
    grid = on_grid(log_precision, log_density)
    exact = {
        "mean": mixed(grid, np.full_like(precision, total / scaling), 1 / (scaling * precision)),
        "precision": mixed(grid, precision, np.zeros_like(precision)),
    }
    joint = fit(normal_gamma.model, data, blocks=[("mean", "precision")])
    means, ratios = compared = errors({name: moments(q) for name, q in joint.posterior().items()}, exact)
    assert max(means.values()) < 1e-9
    np.testing.assert_allclose(list(ratios.values()), 1, rtol=1e-8)
    told(f"Normal-Gamma, {len(data)} points, one block", compared)
    field = fit(normal_gamma.model, data)
    means, ratios = compared = errors({name: moments(q) for name, q in field.posterior().items()}, exact)
    assert max(means.values()) < 1e-6
    a = 1 + len(data) / 2  # the posterior's shape; q's is a half more, and a Student-t has the variance b / ((a - 1) k)
    np.testing.assert_allclose(ratios["precision"], math.sqrt(a / (a + 0.5)), rtol=1e-6)
    np.testing.assert_allclose(ratios["mean"], math.sqrt((a - 1) / a), rtol=1e-6)
    told(f"Normal-Gamma, {len(data)} points, mean field", compared)


# ------------------------------------------------------------------------------------------------------ users' scripts


@pytest.mark.parametrize(
    ("script", "of_means", "at_least"),
    [(users.SCRIPTS[0], 0.13, 0.80), (users.SCRIPTS[1], 0.08, 0.94), (users.SCRIPTS[2], 0.85, 0.20)],
    ids=lambda value: getattr(value, "name", None),
)
def test_users_scripts_reach_the_reference(script: users.Script, of_means: float, at_least: float) -> None:
    """By 4,000 draws of float32; the bounds are those of the tests above, plus three standard errors of such draws."""
    worst, ratios = users.errors(script, users.draws_of(script, users.fit_cavi(script)))
    assert worst < of_means
    assert at_least < ratios[0] <= ratios[1] < 1.16


def test_users_scripts_change_in_a_dozen_lines() -> None:
    """The driver, its imports, and the prior; docs/users-scripts.md quotes the numbers."""
    assert [users.lines_changed(script) for script in users.SCRIPTS] == [(11, 6), (9, 6), (9, 7)]


def test_users_scripts_have_every_line_that_the_page_shows_of_them() -> None:
    root = Path(__file__).parent.parent
    scripts = root / "examples" / "users_scripts"
    old, new = "", ""
    for script in users.SCRIPTS:
        old += (scripts / f"{script.name}.py").read_text(encoding="utf-8")
        new += (scripts / f"{script.name}_conjugate.py").read_text(encoding="utf-8")
    page = (root / "docs" / "users-scripts.md").read_text(encoding="utf-8")
    shown = [line for part in page.split("```diff\n")[1:] for line in part.split("```")[0].splitlines() if line]
    assert len(shown) > 15
    assert [x for x in shown if x[1:] not in {"-": old, "+": new}[x[0]].splitlines()] == []


def test_users_scripts_report_a_table() -> None:
    """A guide has a bound with its error, draws have none; and the reference's own draws agree with the reference."""
    script = users.SCRIPTS[2]
    cavi = users.result(script, "CAVI", *users.timed(lambda: users.fit_cavi(script)))
    assert cavi.bound is not None and cavi.error is not None and cavi.seconds > 0
    assert abs(cavi.bound - users.fit_cavi(script).elbo()) < 5 * cavi.error
    file = np.load(FOLDER / f"{script.reference}.npz")
    draws = {name: torch.from_numpy(file[f"{name}/draws"]) for name in ("mu", "theta")}
    draws["precision"] = torch.from_numpy(file["log_tau/draws"]).mul(-2).exp()
    nuts = users.result(script, "NUTS", 1.0, draws)
    assert nuts.bound is None and nuts.mean_error < 0.15
    table = users.markdown(script, [cavi, nuts])
    assert table.startswith("**eight_schools**: 9 lines go, 7 come") and table.count("\n| ") == 4
