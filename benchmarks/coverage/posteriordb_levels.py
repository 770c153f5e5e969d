"""Models with levels of posteriordb: groups, schools, rats, pilots, dogs and items, on data of their kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .entry import AUXILIARY, QUADRATURE, Gallery

gallery = Gallery("posteriordb")


def counties() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The county, the floor and the county's uranium of 60 houses, and their log radon [60]."""
    county = torch.arange(60) % 8
    floor = (torch.rand(60) < 0.2).to(torch.get_default_dtype())
    uranium = torch.randn(8)[county]
    return county, floor, uranium, 1.3 + 0.3 * torch.randn(8)[county] - 0.6 * floor + 0.5 * torch.randn(60)


def houses(mean: Tensor, radon: Tensor, scale: Any) -> None:
    with pyro.plate("houses", len(radon)):
        pyro.sample("log_radon", dist.Normal(mean, scale), obs=radon)


@gallery.model("radon_pooled", counties, QUADRATURE)
def radon_pooled(county: Tensor, floor: Tensor, uranium: Tensor, radon: Tensor) -> None:
    sigma = pyro.sample("sigma_y", dist.HalfNormal(1.0))
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    houses(alpha + beta * floor, radon, sigma)


@gallery.model("radon_county_intercept", counties, QUADRATURE)
def radon_county_intercept(county: Tensor, floor: Tensor, uranium: Tensor, radon: Tensor) -> None:
    sigma = pyro.sample("sigma_y", dist.HalfNormal(1.0))
    with pyro.plate("counties", 8):
        alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    houses(alpha[county] + beta * floor, radon, sigma)


@gallery.model("radon_county", counties, QUADRATURE)
def radon_county(county: Tensor, floor: Tensor, uranium: Tensor, radon: Tensor) -> None:
    mu = pyro.sample("mu_a", dist.Normal(0.0, 1.0))
    sigma_a = pyro.sample("sigma_a", dist.Uniform(0.0, 100.0))
    sigma_y = pyro.sample("sigma_y", dist.Uniform(0.0, 100.0))
    with pyro.plate("counties", 8):
        a = pyro.sample("a", dist.Normal(mu, sigma_a))
    houses(a[county], radon, sigma_y)


def effects(name: str, centered: bool, mean: Any = None) -> Tensor:
    """Effects of the counties [8] about a mean of their own, with a scale of their own."""
    scale = pyro.sample(f"sigma_{name}", dist.HalfNormal(1.0))
    mu = pyro.sample(f"mu_{name}", dist.Normal(0.0, 10.0)) if mean is None else mean
    with pyro.plate(f"counties_{name}", 8):
        if centered:
            return pyro.sample(name, dist.Normal(mu, scale))
        return mu + scale * pyro.sample(f"{name}_raw", dist.Normal(0.0, 1.0))


def radon(kind: str, centered: bool) -> Callable[..., None]:
    """The models of radon with levels, centered or not."""

    def model(county: Tensor, floor: Tensor, uranium: Tensor, radon: Tensor) -> None:
        sigma = pyro.sample("sigma_y", dist.HalfNormal(1.0))
        if kind == "partially_pooled":
            mean = effects("alpha", centered)[county]
        elif kind == "variable_intercept":
            mean = effects("alpha", centered)[county] + pyro.sample("beta", dist.Normal(0.0, 10.0)) * floor
        elif kind == "variable_slope":
            mean = pyro.sample("alpha", dist.Normal(0.0, 10.0)) + floor * effects("beta", centered)[county]
        elif kind == "variable_intercept_slope":
            mean = effects("alpha", centered)[county] + floor * effects("beta", centered)[county]
        else:  # hierarchical_intercept
            beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 10.0).to_event(1))
            mean = effects("alpha", centered)[county] + uranium * beta[0] + floor * beta[1]
        houses(mean, radon, sigma)

    return model


for kind in (
    "partially_pooled",
    "variable_intercept",
    "variable_slope",
    "variable_intercept_slope",
    "hierarchical_intercept",
):
    for centered in (True, False):
        name = f"radon_{kind}_{'centered' if centered else 'noncentered'}"
        gallery.add(name, radon(kind, centered), counties, QUADRATURE)


def schools() -> tuple[Tensor, Tensor]:
    """Effects of coaching [8] in eight schools, and their standard errors [8] (Rubin 1981)."""
    return (
        torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
        torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    )


@gallery.model("eight_schools_centered", schools, QUADRATURE)
def eight_schools_centered(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@gallery.model("eight_schools_noncentered", schools, QUADRATURE)
def eight_schools_noncentered(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(theta * tau + mu, sigma), obs=y)


def rats_data() -> tuple[Tensor, Tensor, Tensor]:
    """The rat and the day of 50 weighings, and the weights [50]."""
    rat = torch.arange(10).repeat_interleave(5)
    day = torch.tensor([8.0, 15.0, 22.0, 29.0, 36.0]).repeat(10)
    weight = 240.0 + 10 * torch.randn(10)[rat] + (6.0 + 0.5 * torch.randn(10))[rat] * (day - 22) + 5 * torch.randn(50)
    return rat, day, weight


@gallery.model("rats_model", rats_data, QUADRATURE)
def rats(rat: Tensor, day: Tensor, weight: Tensor) -> None:
    mu_alpha = pyro.sample("mu_alpha", dist.Normal(0.0, 100.0))
    mu_beta = pyro.sample("mu_beta", dist.Normal(0.0, 100.0))
    positive = dist.ImproperUniform(dist.constraints.positive, (), ())
    sigma_y = pyro.sample("sigma_y", positive)
    sigma_alpha = pyro.sample("sigma_alpha", positive)
    sigma_beta = pyro.sample("sigma_beta", positive)
    with pyro.plate("rats", 10):
        alpha = pyro.sample("alpha", dist.Normal(mu_alpha, sigma_alpha))
        beta = pyro.sample("beta", dist.Normal(mu_beta, sigma_beta))
    with pyro.plate("data", len(rat)):
        pyro.sample("y", dist.Normal(alpha[rat] + beta[rat] * (day - 22.0), sigma_y), obs=weight)


def flights() -> tuple[Tensor, Tensor, Tensor]:
    """The group and the scenario of 40 flights, and the success [40]."""
    group, scenario = torch.arange(40) % 5, torch.arange(40) // 5
    return group, scenario, 0.5 + 0.2 * torch.randn(5)[group] + 0.3 * torch.randn(8)[scenario] + 0.1 * torch.randn(40)


@gallery.model("pilots", flights, QUADRATURE)
def pilots(group: Tensor, scenario: Tensor, y: Tensor) -> None:
    mu_a = pyro.sample("mu_a", dist.Normal(0.0, 1.0))
    mu_b = pyro.sample("mu_b", dist.Normal(0.0, 1.0))
    scales = [pyro.sample(f"sigma_{n}", dist.Uniform(0.0, 100.0)) for n in "aby"]
    with pyro.plate("groups", 5):
        a = pyro.sample("a", dist.Normal(10 * mu_a, scales[0]))
    with pyro.plate("scenarios", 8):
        b = pyro.sample("b", dist.Normal(10 * mu_b, scales[1]))
    with pyro.plate("flights", len(y)):
        pyro.sample("y", dist.Normal(a[group] + b[scenario], scales[2]), obs=y)


def voters() -> tuple[Tensor, Tensor, Tensor]:
    """Covariates [100, 5] of voters, their cells [5, 100], and their votes [100]."""
    x = torch.cat([torch.ones(100, 1), torch.bernoulli(torch.full((100, 4), 0.5))], -1)
    cells = torch.stack([torch.randint(n, (100,)) for n in (4, 4, 6, 8, 5)])
    return x, cells, torch.bernoulli(torch.sigmoid(x @ torch.tensor([0.2, -1.0, 0.3, 0.5, 0.1])))


@gallery.model("election88_full", voters, AUXILIARY)
def election(x: Tensor, cells: Tensor, vote: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(5), 100.0).to_event(1))
    logits = x @ beta
    for name, size, cell in zip("abcde", (4, 4, 6, 8, 5), cells, strict=True):
        scale = pyro.sample(f"sigma_{name}", dist.Uniform(0.0, 100.0))
        with pyro.plate(f"plate_{name}", size):
            effect = pyro.sample(name, dist.Normal(0.0, scale))
        logits = logits + effect[cell]
    with pyro.plate("voters", len(vote)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=vote)


# -------------------------------------------------------------------------------------------------------------- dogs


def dogs() -> tuple[Tensor, Tensor, Tensor]:
    """How often 10 dogs avoided and how often they were shocked before each of 15 trials, and whether they are shocked
    in it, all [10, 15].
    """
    avoided, shocked, answers = [torch.zeros(10)], [torch.zeros(10)], []
    for _ in range(15):
        answers.append(torch.bernoulli(0.9 ** avoided[-1] * 0.95 ** shocked[-1]))
        avoided.append(avoided[-1] + 1 - answers[-1])
        shocked.append(shocked[-1] + answers[-1])
    return torch.stack(avoided[:-1], -1), torch.stack(shocked[:-1], -1), torch.stack(answers, -1)


@gallery.model("dogs", dogs, AUXILIARY)
def dogs_logistic(avoided: Tensor, shocked: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 100.0).to_event(1))
    with pyro.plate("dogs", 10, dim=-2), pyro.plate("trials", 15, dim=-1):
        pyro.sample("y", dist.Bernoulli(logits=beta[0] + beta[1] * avoided + beta[2] * shocked), obs=y)


@gallery.model("dogs_log", dogs, AUXILIARY)
def dogs_log(avoided: Tensor, shocked: Tensor, y: Tensor) -> None:
    beta1 = pyro.sample("beta1", dist.Uniform(-100.0, 0.0))
    beta2 = pyro.sample("beta2", dist.Uniform(0.0, 100.0))
    with pyro.plate("dogs", 10, dim=-2), pyro.plate("trials", 15, dim=-1):
        pyro.sample("y", dist.Bernoulli(torch.sigmoid(beta1 * avoided + beta2 * shocked)), obs=y)


@gallery.model("dogs_hierarchical", dogs, AUXILIARY)
def dogs_hierarchical(avoided: Tensor, shocked: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(0.0, 1.0))
    with pyro.plate("dogs", 10, dim=-2), pyro.plate("trials", 15, dim=-1):
        pyro.sample("y", dist.Bernoulli(a**shocked * b**avoided), obs=y)


@gallery.model("dogs_nonhierarchical", dogs, "log(1 - a^n b^m) of logits under an LKJ prior")
def dogs_nonhierarchical(avoided: Tensor, shocked: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu_logit_ab", dist.Logistic(torch.zeros(2), 1.0).to_event(1))
    sigma = pyro.sample("sigma_logit_ab", dist.HalfNormal(torch.ones(2)).to_event(1))
    factor = pyro.sample("L_logit_ab", dist.LKJCholesky(2, 2.0))
    with pyro.plate("dogs", 10, dim=-2):
        with pyro.plate("one", 1, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        p = torch.sigmoid(mu + z @ (sigma[:, None] * factor))
        with pyro.plate("trials", 15, dim=-1):
            pyro.sample("y", dist.Bernoulli(p[..., 0] ** shocked * p[..., 1] ** avoided), obs=y)


# ------------------------------------------------------------------------------------------------------------- items


def answers() -> tuple[Tensor]:
    """Answers [5 items, 20 people]."""
    ability, difficulty = torch.randn(20), torch.randn(5, 1)
    return (torch.bernoulli(torch.sigmoid(ability - difficulty)),)


@gallery.model("irt_2pl", answers, AUXILIARY)
def irt_2pl(y: Tensor) -> None:
    sigma_theta = pyro.sample("sigma_theta", dist.HalfCauchy(2.0))
    sigma_a = pyro.sample("sigma_a", dist.HalfCauchy(2.0))
    mu_b = pyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sigma_b = pyro.sample("sigma_b", dist.HalfCauchy(2.0))
    people, items = pyro.plate("people", y.shape[1], dim=-1), pyro.plate("items", y.shape[0], dim=-2)
    with people:
        theta = pyro.sample("theta", dist.Normal(0.0, sigma_theta))
    with items:
        a = pyro.sample("a", dist.LogNormal(0.0, sigma_a))
        b = pyro.sample("b", dist.Normal(mu_b, sigma_b))
    with people, items:
        pyro.sample("y", dist.Bernoulli(logits=a * (theta - b)), obs=y)


@gallery.model("lsat_model", answers, AUXILIARY)
def lsat(y: Tensor) -> None:
    beta = pyro.sample("beta", dist.HalfNormal(100.0))
    people, items = pyro.plate("people", y.shape[1], dim=-1), pyro.plate("items", y.shape[0], dim=-2)
    with items:
        alpha = pyro.sample("alpha", dist.Normal(0.0, 100.0))
    with people:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with people, items:
        pyro.sample("r", dist.Bernoulli(logits=beta * theta - alpha), obs=y)


def answers_and_background() -> tuple[Tensor, Tensor]:
    """Answers [5 items, 20 people], and covariates of the people [20, 3]."""
    return *answers(), torch.cat([torch.ones(20, 1), torch.randn(20, 2)], -1)


@gallery.model("2pl_latent_reg_irt", answers_and_background, AUXILIARY)
def latent_regression(y: Tensor, covariates: Tensor) -> None:
    """The last difficulty is minus the sum of the others, and all have the same prior."""
    coefficient = pyro.sample("lambda_adj", dist.StudentT(3.0 * torch.ones(3), 0.0, 1.0).to_event(1))
    free = pyro.sample("beta_free", dist.Normal(torch.zeros(y.shape[0] - 1), 3.0).to_event(1))
    last = -free.sum()
    pyro.sample("last", dist.Normal(last, 3.0), obs=torch.tensor(0.0))
    beta = torch.cat([free, last[None]])
    people, items = pyro.plate("people", y.shape[1], dim=-1), pyro.plate("items", y.shape[0], dim=-2)
    with items:
        alpha = pyro.sample("alpha", dist.LogNormal(1.0, 1.0))
    with people:
        theta = pyro.sample("theta", dist.Normal(covariates @ coefficient, 1.0))
    with people, items:
        pyro.sample("y", dist.Bernoulli(logits=alpha * theta - beta[:, None]), obs=y)


@gallery.model("hier_2pl", answers, "an LKJ prior of a Cholesky factor")
def hier_2pl(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), torch.tensor([1.0, 5.0])).to_event(1))
    tau = pyro.sample("tau", dist.Exponential(0.1 * torch.ones(2)).to_event(1))
    factor = pyro.sample("L_Omega", dist.LKJCholesky(2, 4.0))
    people, items = pyro.plate("people", y.shape[1], dim=-1), pyro.plate("items", y.shape[0], dim=-2)
    with people:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with items:
        xi = pyro.sample("xi", dist.MultivariateNormal(mu, scale_tril=tau[:, None] * factor))
    with people, items:
        pyro.sample("y", dist.Bernoulli(logits=xi[..., 0].exp() * (theta - xi[..., 1])), obs=y)
