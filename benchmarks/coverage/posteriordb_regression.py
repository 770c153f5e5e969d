"""Regressions of posteriordb: normal, logistic, Poisson and binomial ones, on data of their kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .entry import AUXILIARY, QUADRATURE, Gallery

gallery = Gallery("posteriordb")


def design(num_columns: int, noise: float = 0.5) -> Callable[[], tuple[Tensor, Tensor]]:
    """A maker of covariates [60, C] with a column of ones, and responses [60]."""

    def make() -> tuple[Tensor, Tensor]:
        x = torch.cat([torch.ones(60, 1), torch.randn(60, num_columns - 1)], -1)
        return x, x @ torch.linspace(1.0, -1.0, num_columns) + noise * torch.randn(60)

    return make


def labels(num_columns: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """A maker of covariates [60, C] and answers [60] of 0 and 1."""

    def make() -> tuple[Tensor, Tensor]:
        x, y = design(num_columns)()
        return x, torch.bernoulli(torch.sigmoid(y))

    return make


def flat(name: str, size: int) -> Any:
    """Coefficients [size] without a prior, as Stan's are that have none."""
    return pyro.sample(name, dist.ImproperUniform(constraints.real_vector, (), (size,)))


def flat_positive(name: str) -> Any:
    """A scale without a prior."""
    return pyro.sample(name, dist.ImproperUniform(constraints.positive, (), ()))


# ----------------------------------------------------------------------------------------------- normal, flat priors


def without_priors(x: Tensor, y: Tensor) -> None:
    beta = flat("beta", x.shape[1])
    sigma = flat_positive("sigma")
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


for name, columns in {
    "earn_height": 2,
    "log10earn_height": 2,
    "logearn_height": 2,
    "logearn_height_male": 3,
    "logearn_interaction": 4,
    "logearn_interaction_z": 4,
    "logearn_logheight_male": 3,
    "kidscore_interaction_c": 4,
    "kidscore_interaction_c2": 4,
    "kidscore_interaction_z": 4,
    "kidscore_mom_work": 4,
    "logmesquite": 7,
    "logmesquite_logva": 4,
    "logmesquite_logvas": 7,
    "logmesquite_logvash": 6,
    "logmesquite_logvolume": 2,
    "mesquite": 7,
    "nes": 9,
    "sesame_one_pred_a": 2,
}.items():
    gallery.add(name, without_priors, design(columns), QUADRATURE)


# ------------------------------------------------------------------------------------------------ normal, with priors


def with_cauchy_scale(x: Tensor, y: Tensor) -> None:
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    beta = flat("beta", x.shape[1])
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


for name, columns in {
    "kidscore_interaction": 4,
    "kidscore_momhs": 2,
    "kidscore_momhsiq": 3,
    "kidscore_momiq": 2,
}.items():
    gallery.add(name, with_cauchy_scale, design(columns), QUADRATURE)


@gallery.model("blr", design(5), QUADRATURE)
def blr(x: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


@gallery.model("kilpisjarvi", design(2), QUADRATURE)
def kilpisjarvi(x: Tensor, y: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Normal(9.3, 100.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 0.33))
    sigma = flat_positive("sigma")
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(alpha + beta * x[:, 1], sigma), obs=y)


@gallery.model("diamonds", design(6), QUADRATURE)
def diamonds(x: Tensor, y: Tensor) -> None:
    centered = x[:, 1:] - x[:, 1:].mean(0)
    b = pyro.sample("b", dist.Normal(torch.zeros(centered.shape[1]), 1.0).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = pyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + centered @ b, sigma), obs=y)


@gallery.model("arK", lambda: (torch.randn(60).cumsum(0) * 0.3,), QUADRATURE)
def autoregression(y: Tensor) -> None:
    order = 5
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(order), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    lags = torch.stack([y[order - k - 1 : len(y) - k - 1] for k in range(order)], -1)
    with pyro.plate("time", len(y) - order):
        pyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y[order:])


# ----------------------------------------------------------------------------------------------------------- logistic


def logistic(x: Tensor, y: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.ImproperUniform(constraints.real, (), ()))
    beta = flat("beta", x.shape[1] - 1)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=alpha + x[:, 1:] @ beta), obs=y)


for name, columns in {
    "nes_logit_model": 2,
    "wells_daae_c_model": 6,
    "wells_dae_c_model": 5,
    "wells_dae_inter_model": 7,
    "wells_dae_model": 4,
    "wells_dist100_model": 2,
    "wells_dist100ars_model": 3,
    "wells_interaction_c_model": 4,
    "wells_interaction_model": 4,
}.items():
    gallery.add(name, logistic, labels(columns), AUXILIARY)


@gallery.model("wells_dist", labels(2), AUXILIARY)
def wells_dist(x: Tensor, y: Tensor) -> None:
    beta = flat("beta", 2)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=beta[0] + beta[1] * x[:, 1]), obs=y)


def counts() -> tuple[Tensor, Tensor]:
    """Years [40] about 0, and counts [40]."""
    year = torch.linspace(-1.0, 1.0, 40)
    return year, torch.poisson((3.0 + 0.5 * year - 0.4 * year**2).exp())


@gallery.model("GLM_Poisson_model", counts, QUADRATURE)
def poisson_trend(year: Tensor, count: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Uniform(-20.0, 20.0))
    beta1 = pyro.sample("beta1", dist.Uniform(-10.0, 10.0))
    beta2 = pyro.sample("beta2", dist.Uniform(-10.0, 10.0))
    beta3 = pyro.sample("beta3", dist.Uniform(-10.0, 10.0))
    with pyro.plate("data", len(year)):
        log_rate = alpha + beta1 * year + beta2 * year**2 + beta3 * year**3
        pyro.sample("C", dist.Poisson(log_rate.exp()), obs=count)


@gallery.model("GLMM_Poisson_model", counts, QUADRATURE)
def poisson_trend_with_noise(year: Tensor, count: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Uniform(-20.0, 20.0))
    beta1 = pyro.sample("beta1", dist.Uniform(-10.0, 10.0))
    beta2 = pyro.sample("beta2", dist.Uniform(-10.0, 20.0))
    beta3 = pyro.sample("beta3", dist.Uniform(-10.0, 10.0))
    sigma = pyro.sample("sigma", dist.Uniform(0.0, 5.0))
    with pyro.plate("data", len(year)):
        eps = pyro.sample("eps", dist.Normal(0.0, sigma))
        log_rate = alpha + beta1 * year + beta2 * year**2 + beta3 * year**3 + eps
        pyro.sample("C", dist.Poisson(log_rate.exp()), obs=count)


def sites() -> tuple[Tensor, Tensor]:
    """Sites [72] of nine years, and counts [72]."""
    site = torch.arange(8).repeat(9)
    return site, torch.poisson((2.0 + 0.5 * torch.randn(8))[site].exp())


@gallery.model("GLMM1_model", sites, QUADRATURE)
def poisson_sites(site: Tensor, count: Tensor) -> None:
    mu_alpha = pyro.sample("mu_alpha", dist.Normal(0.0, 10.0))
    sd_alpha = pyro.sample("sd_alpha", dist.Uniform(0.0, 5.0))
    with pyro.plate("sites", 8):
        alpha = pyro.sample("alpha", dist.Normal(mu_alpha, sd_alpha))
    with pyro.plate("data", len(site)):
        pyro.sample("obs", dist.Poisson(alpha[site].exp()), obs=count)


def successes() -> tuple[Tensor, Tensor, Tensor]:
    """Years [40], trials [40] and successes [40]."""
    year = torch.linspace(-1.0, 1.0, 40)
    trials = torch.randint(20, 60, (40,)).to(year.dtype)
    return year, trials, torch.binomial(trials, torch.sigmoid(0.3 + year - year**2))


@gallery.model("GLM_Binomial_model", successes, AUXILIARY)
def binomial_trend(year: Tensor, trials: Tensor, count: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Normal(0.0, 100.0))
    beta1 = pyro.sample("beta1", dist.Normal(0.0, 100.0))
    beta2 = pyro.sample("beta2", dist.Normal(0.0, 100.0))
    with pyro.plate("data", len(year)):
        pyro.sample("C", dist.Binomial(trials, logits=alpha + beta1 * year + beta2 * year**2), obs=count)


def plates() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two factors [21] of plates of seeds, seeds [21] and those that germinated [21]."""
    x1 = torch.arange(21) % 2
    x2 = torch.arange(21) // 11
    seeds = torch.randint(10, 60, (21,)).to(torch.get_default_dtype())
    return x1, x2, seeds, torch.binomial(seeds, torch.sigmoid(0.3 * torch.randn(21) + 0.5 * x1 - 0.3))


def seeds_of(b: Tensor, x1: Tensor, x2: Tensor, seeds: Tensor, count: Tensor, scale: float) -> None:
    """What the three models of seeds share, given the effects b [21] of the plates."""
    alpha0 = pyro.sample("alpha0", dist.Normal(0.0, scale))
    alpha1 = pyro.sample("alpha1", dist.Normal(0.0, scale))
    alpha2 = pyro.sample("alpha2", dist.Normal(0.0, scale))
    alpha12 = pyro.sample("alpha12", dist.Normal(0.0, scale))
    with pyro.plate("data", len(count)):
        logits = alpha0 + alpha1 * x1 + alpha2 * x2 + alpha12 * x1 * x2 + b
        pyro.sample("n", dist.Binomial(seeds, logits=logits), obs=count)


@gallery.model("seeds_model", plates, AUXILIARY)
def seeds_model(x1: Tensor, x2: Tensor, seeds: Tensor, count: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(1e-3, 1e-3))
    with pyro.plate("plates", len(count)):
        b = pyro.sample("b", dist.Normal(0.0, tau.rsqrt()))
    seeds_of(b, x1, x2, seeds, count, 1e3)


@gallery.model("seeds_stanified_model", plates, AUXILIARY)
def seeds_stanified(x1: Tensor, x2: Tensor, seeds: Tensor, count: Tensor) -> None:
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    with pyro.plate("plates", len(count)):
        b = pyro.sample("b", dist.Normal(0.0, sigma))
    seeds_of(b, x1, x2, seeds, count, 1.0)


@gallery.model("seeds_centered_model", plates, AUXILIARY)
def seeds_centered(x1: Tensor, x2: Tensor, seeds: Tensor, count: Tensor) -> None:
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    c = pyro.sample("c", dist.Normal(torch.zeros(len(count)), sigma).to_event(1))
    seeds_of(c - c.mean(), x1, x2, seeds, count, 1.0)


def hospitals() -> tuple[Tensor, Tensor]:
    """Operations [12] and deaths [12]."""
    operations = torch.tensor([47.0, 148.0, 119.0, 810.0, 211.0, 196.0, 148.0, 215.0, 207.0, 97.0, 256.0, 360.0])
    return operations, torch.binomial(operations, torch.sigmoid(-2.5 + 0.4 * torch.randn(12)))


@gallery.model("surgical_model", hospitals, QUADRATURE)
def surgical(operations: Tensor, deaths: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1000.0))
    variance = pyro.sample("sigmasq", dist.InverseGamma(1e-3, 1e-3))
    with pyro.plate("hospitals", len(deaths)):
        b = pyro.sample("b", dist.Normal(mu, variance.sqrt()))
        pyro.sample("r", dist.Binomial(operations, logits=b), obs=deaths)


@gallery.model("logistic_regression_rhs", labels(6), "a regularized horseshoe: one function of three scales")
def regularized_horseshoe(x: Tensor, y: Tensor) -> None:
    size = x.shape[1] - 1
    beta0 = pyro.sample("beta0", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.FoldedDistribution(dist.StudentT(1.0, 0.0, 0.02)))
    caux = pyro.sample("caux", dist.InverseGamma(2.0, 8.0))
    with pyro.plate("features", size):
        local = pyro.sample("lambda", dist.HalfCauchy(1.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(size), 1.0).to_event(1))
    shrunk = (caux * local**2 / (caux + tau**2 * local**2)).sqrt()
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=beta0 + x[:, 1:] @ (z * shrunk * tau)), obs=y)
