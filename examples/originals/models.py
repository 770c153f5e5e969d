"""Nine models as their authors write them; nothing in them is there for coordinate ascent."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .data import DISPERSION, PARTS, STUDENT_DF


def eight_schools(effects: Tensor, errors: Tensor) -> None:
    """Effects of coaching in eight schools (Rubin 1981), with the priors of posteriordb, theta = mu + tau eta."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effects)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("effects", dist.Normal(mu + tau * eta, errors), obs=effects)


def kidiq(x: Tensor, y: Tensor) -> None:
    """A regression with flat weights (Gelman and Hill 2007, §3.2)."""
    weights = pyro.sample("weights", dist.ImproperUniform(constraints.real_vector, (), (x.shape[1],)))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("children", len(y)):
        pyro.sample("score", dist.Normal(x @ weights, sigma), obs=y)


def radon(county: Tensor, floor: Tensor, y: Tensor) -> None:
    """Houses in counties, with an intercept for each (Gelman and Hill 2007, §12.3)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("counties", 85):
        alpha = pyro.sample("alpha", dist.Normal(mu, spread))
    with pyro.plate("houses", len(y)):
        pyro.sample("log_radon", dist.Normal(alpha[county] + beta * floor, sigma), obs=y)


def student_regression(x: Tensor, y: Tensor) -> None:
    """A regression that outliers do not pull."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    with pyro.plate("patients", len(y)):
        pyro.sample("target", dist.StudentT(STUDENT_DF, x @ weights, sigma), obs=y)


def horseshoe(x: Tensor, y: Tensor) -> None:
    """A regression of which few covariates matter (Carvalho, Polson and Scott 2010)."""
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    with pyro.plate("covariates", x.shape[1]):
        local = pyro.sample("local", dist.HalfCauchy(1.0))
        beta: Any = pyro.sample("beta", dist.Normal(0.0, tau * local))
    with pyro.plate("patients", len(y)):
        pyro.sample("target", dist.Normal(x @ beta, sigma), obs=y)


def logistic(x: Tensor, label: Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(x.shape[1]), 2.5).to_event(1))
    with pyro.plate("tumours", len(label)):
        pyro.sample("benign", dist.Bernoulli(logits=x @ weights), obs=label)


def probit(x: Tensor, label: Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(x.shape[1]), 2.5).to_event(1))
    with pyro.plate("patients", len(label)):
        pyro.sample("progressed", dist.Bernoulli(torch.special.ndtr(x @ weights)), obs=label)


def negative_binomial(x: Tensor, y: Tensor) -> None:
    """Counts with more variance than a Poisson's, of known dispersion."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(x.shape[1]), 2.5).to_event(1))
    with pyro.plate("people", len(y)):
        pyro.sample("situps", dist.NegativeBinomial(DISPERSION, logits=x @ weights), obs=y)


def poisson_factorisation(x: Tensor) -> None:
    """Counts whose rates are a product of two nonnegative matrices (Gopalan, Hofman and Blei 2015)."""
    rows, columns = x.shape
    with pyro.plate("parts_of_rows", PARTS, dim=-1), pyro.plate("rows", rows, dim=-2):
        theta: Any = pyro.sample("theta", dist.Gamma(1.0, 0.5))
    with pyro.plate("columns", columns, dim=-1), pyro.plate("parts", PARTS, dim=-2):
        beta: Any = pyro.sample("beta", dist.Gamma(1.0, 0.5))
    with pyro.plate("x_columns", columns, dim=-1), pyro.plate("x_rows", rows, dim=-2):
        pyro.sample("x", dist.Poisson(theta @ beta), obs=x)
