"""Series, curves, processes and networks of posteriordb, on data of their kind."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .entry import AUXILIARY, QUADRATURE, Gallery

gallery = Gallery("posteriordb")


# --------------------------------------------------------------------------------------------------------------- series


def series(length: int = 40) -> Callable[[], tuple[Tensor]]:
    return lambda: (0.3 * torch.randn(length).cumsum(0) + 0.2 * torch.randn(length),)


@gallery.model("arma11", series(), QUADRATURE)
def arma11(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    error = y[0] - (mu + phi * mu)
    pyro.sample("err_0", dist.Normal(error, sigma), obs=torch.tensor(0.0))
    for t in range(1, 10):
        error = y[t] - (mu + phi * y[t - 1] + theta * error)
        pyro.sample(f"err_{t}", dist.Normal(error, sigma), obs=torch.tensor(0.0))


@gallery.model("garch11", series(), "a variance that is a sum over three scalars")
def garch11(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    alpha0 = pyro.sample("alpha0", dist.ImproperUniform(constraints.positive, (), ()))
    alpha1 = pyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    beta1 = pyro.sample("beta1", dist.Uniform(0.0, 1 - alpha1))
    variance = torch.tensor(0.25)
    for t in range(1, len(y)):
        variance = alpha0 + alpha1 * (y[t - 1] - mu) ** 2 + beta1 * variance
        pyro.sample(f"y_{t}", dist.Normal(mu, variance.sqrt()), obs=y[t])


def drivers() -> tuple[Tensor, Tensor, Tensor]:
    """A monthly series [30], a covariate [30] and a step [30]."""
    month = torch.arange(30)
    y = 7.0 + 0.1 * torch.sin(math.pi * month / 6) + 0.05 * torch.randn(30)
    return y, torch.randn(30), (month > 20).to(y.dtype)


NAME = "state_space_stochastic_level_stochastic_seasonal"


@gallery.model(NAME, drivers, "three scales in order are one vector, without a family")
def state_space(y: Tensor, x: Tensor, w: Tensor) -> None:
    in_order = dist.TransformedDistribution(
        dist.StudentT(4.0 * torch.ones(3), 0.0, 1.0).to_event(1),
        [dist.transforms.OrderedTransform(), dist.transforms.ExpTransform()],
    )
    sigma = pyro.sample("sigma", in_order)
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real, (), ()))
    lam = pyro.sample("lambda", dist.ImproperUniform(constraints.real, (), ()))
    steps = pyro.sample("steps", dist.Normal(torch.zeros(len(y)), sigma[1]).to_event(1))
    season = [pyro.sample(f"seasonal_{t}", dist.Normal(0.0, 1.0)) for t in range(11)]
    for t in range(11, len(y)):
        season.append(pyro.sample(f"seasonal_{t}", dist.Normal(-sum(season[-11:]), sigma[0])))
    mean = 7.0 + steps.cumsum(0) + beta * x + lam * w + torch.stack(season)
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma[2]), obs=y)


def downloads() -> tuple[Tensor, Tensor, Tensor]:
    """Time [40] in (0, 1), seasonal features [40, 4], and a series [40]."""
    t = torch.linspace(0.0, 1.0, 40)
    features = torch.cat([f(2 * math.pi * t[:, None] * torch.tensor([2.0, 4.0])) for f in (torch.sin, torch.cos)], -1)
    return t, features, t + 0.1 * features[:, 0] + 0.05 * torch.randn(40)


@gallery.model("prophet", downloads, AUXILIARY)
def prophet(t: Tensor, features: Tensor, y: Tensor) -> None:
    """With a linear trend and additive seasons."""
    change = torch.linspace(0.1, 0.8, 5)
    after = (t[:, None] >= change).to(t.dtype)
    k = pyro.sample("k", dist.Normal(0.0, 5.0))
    m = pyro.sample("m", dist.Normal(0.0, 5.0))
    delta = pyro.sample("delta", dist.Laplace(torch.zeros(5), 0.05).to_event(1))
    sigma = pyro.sample("sigma_obs", dist.HalfNormal(0.5))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(4), 10.0).to_event(1))
    trend = (k + after @ delta) * t + m + after @ (-change * delta)
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(trend + features @ beta, sigma), obs=y)


# ------------------------------------------------------------------------------------------------------ other functions


def growth() -> tuple[Tensor, Tensor]:
    """The age [27] and the length [27] of sea cows."""
    age = torch.linspace(1.0, 30.0, 27)
    return age, 2.65 - 0.97 * 0.87**age + 0.1 * torch.randn(27)


@gallery.model("dugongs_model", growth, QUADRATURE)
def dugongs(age: Tensor, length: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Normal(0.0, 1000.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 1000.0))
    lam = pyro.sample("lambda", dist.Uniform(0.5, 1.0))
    tau = pyro.sample("tau", dist.Gamma(1e-4, 1e-4))
    with pyro.plate("data", len(age)):
        pyro.sample("Y", dist.Normal(alpha - beta * lam**age, tau.rsqrt()), obs=length)


def graded() -> tuple[Tensor, Tensor, Tensor]:
    """Thresholds [8, 4] and slopes [8] of indicators, and the grades [6, 8] of children."""
    gamma = torch.randn(8, 1) + torch.linspace(-1.5, 1.5, 4)
    return gamma, torch.ones(8) * 1.5, torch.randint(0, 5, (6, 8))


@gallery.model("bones_model", graded, QUADRATURE)
def bones(gamma: Tensor, delta: Tensor, grade: Tensor) -> None:
    with pyro.plate("children", len(grade), dim=-2):
        theta = pyro.sample("theta", dist.Normal(0.0, 36.0))
        with pyro.plate("indicators", len(delta), dim=-1):
            predictor = delta * theta
            cuts = delta[:, None] * gamma
            pyro.sample("grade", dist.OrderedLogistic(predictor, cuts), obs=grade)


def losses() -> tuple[Tensor, Tensor, Tensor]:
    """The cohort [30] and the time [30] of losses [30]."""
    cohort, time = torch.arange(30) % 5, 1.0 + torch.arange(30) // 5
    return cohort, time, 0.7 * (1 - torch.exp(-((time / 2) ** 1.2))) + 0.02 * torch.randn(30)


@gallery.model("losscurve_sislob", losses, "a growth curve in two scalars")
def losscurve(cohort: Tensor, time: Tensor, loss: Tensor) -> None:
    omega = pyro.sample("omega", dist.LogNormal(0.0, 0.5))
    theta = pyro.sample("theta", dist.LogNormal(0.0, 0.5))
    mu = pyro.sample("mu_LR", dist.Normal(0.0, 0.5))
    sd = pyro.sample("sd_LR", dist.LogNormal(0.0, 0.5))
    noise = pyro.sample("loss_sd", dist.LogNormal(0.0, 0.7))
    with pyro.plate("cohorts", 5):
        ratio = pyro.sample("LR", dist.LogNormal(mu, sd))
    curve = 1 - torch.exp(-((time / theta) ** omega))
    with pyro.plate("data", len(loss)):
        pyro.sample("loss", dist.Normal(ratio[cohort] * curve, noise), obs=loss)


def line() -> tuple[Tensor, Tensor, Tensor]:
    """Places [11], numbers [11] and counts [11]."""
    x = torch.linspace(-2.0, 2.0, 11)
    return x, x.sin() + 0.1 * torch.randn(11), torch.poisson((1.0 + x.sin()).exp())


def squared_exponential(x: Tensor, alpha: Tensor, rho: Tensor) -> Tensor:
    return alpha**2 * torch.exp(-0.5 * (x[:, None] - x) ** 2 / rho**2)


WHY_PROCESS = "the Cholesky factor of a Gaussian process's covariance"


@gallery.model("gp_regr", line, WHY_PROCESS)
def gp_regression(x: Tensor, y: Tensor, count: Tensor) -> None:
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    covariance = squared_exponential(x, alpha, rho) + sigma * torch.eye(len(x))
    factor = torch.linalg.cholesky(covariance)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), scale_tril=factor), obs=y)


@gallery.model("gp_pois_regr", line, WHY_PROCESS)
def gp_poisson(x: Tensor, y: Tensor, count: Tensor) -> None:
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    z = pyro.sample("f_tilde", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    factor = torch.linalg.cholesky(squared_exponential(x, alpha, rho) + 1e-10 * torch.eye(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Poisson((factor @ z).exp()), obs=count)


@gallery.model("accel_splines", line, "the logarithm of the scale is a vector's product with a matrix")
def accel_splines(x: Tensor, y: Tensor, count: Tensor) -> None:
    basis = torch.stack([x**k for k in range(1, 4)], -1)
    mean, log_scale = (
        pyro.sample(f"Intercept_{n}", dist.StudentT(3.0, a, b))
        for n, a, b in (("mu", -13.0, 36.0), ("sigma", 0.0, 10.0))
    )
    for n in ("mu", "sigma"):
        sd = pyro.sample(f"sds_{n}", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 36.0)))
        z = pyro.sample(f"zs_{n}", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        if n == "mu":
            mean = mean + basis @ (sd * z)
        else:
            log_scale = log_scale + basis @ (sd * z)
    with pyro.plate("data", len(x)):
        pyro.sample("Y", dist.Normal(mean, log_scale.exp()), obs=y)


@gallery.model("accel_gp", line, "the logarithm of the scale is a vector's product with a matrix")
def accel_gp(x: Tensor, y: Tensor, count: Tensor) -> None:
    """A Gaussian process by a few of its eigenfunctions, for the mean and for the logarithm of the scale."""
    roots = torch.arange(1.0, 5.0) * math.pi / 6
    basis = torch.sin(roots * (x[:, None] + 3.0)) / 3**0.5
    predictors = []
    for n, a, b in (("mu", -13.0, 36.0), ("sigma", 0.0, 10.0)):
        intercept = pyro.sample(f"Intercept_{n}", dist.StudentT(3.0, a, b))
        sd = pyro.sample(f"sdgp_{n}", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 36.0)))
        length = pyro.sample(f"lscale_{n}", dist.InverseGamma(1.124909, 0.0177))
        z = pyro.sample(f"zgp_{n}", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        spectrum = sd * (2 * math.pi) ** 0.25 * length.sqrt() * torch.exp(-0.25 * length**2 * roots**2)
        predictors.append(intercept + basis @ (spectrum * z))
    with pyro.plate("data", len(x)):
        pyro.sample("Y", dist.Normal(predictors[0], predictors[1].exp()), obs=y)


@gallery.model("bym2_offset_only", lambda: (torch.poisson(2.0 * torch.ones(12)),), "exp of a sum of products in a rate")
def bym2(y: Tensor) -> None:
    """Neighbors on a line."""
    beta0 = pyro.sample("beta0", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    rho = pyro.sample("rho", dist.Beta(0.5, 0.5))
    theta = pyro.sample("theta", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
    phi = pyro.sample("phi", dist.ImproperUniform(constraints.real_vector, (), (len(y),)))
    pyro.sample("differences", dist.Normal(phi[1:] - phi[:-1], 1.0).to_event(1), obs=torch.zeros(len(y) - 1))
    pyro.sample("sum", dist.Normal(phi.sum(), 0.001 * len(y)), obs=torch.tensor(0.0))
    effect = (1 - rho).sqrt() * theta + (rho / 0.5).sqrt() * phi
    with pyro.plate("areas", len(y)):
        pyro.sample("y", dist.Poisson((math.log(2.0) + beta0 + effect * sigma).exp()), obs=y)


def network(units: int) -> Callable[[Tensor, Tensor], None]:
    def model(x: Tensor, y: Tensor) -> None:
        variances = [pyro.sample(f"sigma2_{n}", dist.InverseGamma(0.25, 0.005)) for n in ("alpha", "beta")]
        alpha1 = pyro.sample("alpha1", dist.Normal(torch.zeros(units), 1.0).to_event(1))
        beta1 = pyro.sample("beta1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        alpha = pyro.sample("alpha", dist.Normal(torch.zeros(x.shape[1], units), variances[0].sqrt()).to_event(2))
        beta = pyro.sample("beta", dist.Normal(torch.zeros(units, 2), variances[1].sqrt()).to_event(2))
        hidden = torch.tanh(alpha1 + x @ alpha)
        logits = torch.cat([torch.ones(len(x), 1), beta1 + hidden @ beta], -1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model


for units in (10, 100):
    data = lambda: (torch.randn(20, 3), torch.randint(0, 3, (20,)))  # noqa: E731
    gallery.add(f"nn_rbm1bJ{units}", network(units), data, "tanh of a product: a network")
