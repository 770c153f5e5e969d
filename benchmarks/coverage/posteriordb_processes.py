"""Models of posteriordb that solve equations or score in functions of many latents: differential equations by Euler's
method, epidemics, processes and graded answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .entry import AUXILIARY, Gallery

gallery = Gallery("posteriordb")

WHY_EQUATION = "the solution of a differential equation"


def solve(slope: Callable[[Any], Any], start: Any, steps: int, size: float) -> list[Any]:
    """Euler's method: the states after each step."""
    states = [start]
    for _ in range(steps):
        states.append(states[-1] + size * slope(states[-1]))
    return states[1:]


@gallery.model("lotka_volterra", lambda: (10 * torch.rand(5, 2) + 5,), WHY_EQUATION)
def lotka_volterra(y: Tensor) -> None:
    theta = [pyro.sample(f"theta_{i}", dist.LogNormal((0.0, -3.0)[i % 2], 0.5)) for i in range(4)]
    start = [pyro.sample(f"z_init_{i}", dist.LogNormal(2.3, 1.0)) for i in range(2)]
    sigma = [pyro.sample(f"sigma_{i}", dist.LogNormal(-1.0, 1.0)) for i in range(2)]

    def slope(z: Tensor) -> Tensor:
        prey = (theta[0] - theta[1] * z[1]) * z[0]
        return torch.stack([prey, (-theta[2] + theta[3] * z[0]) * z[1]])

    for t, z in enumerate(solve(slope, torch.stack(start), len(y), 0.1)):
        for i in range(2):
            pyro.sample(f"y_{t}_{i}", dist.LogNormal(z[i].log(), sigma[i]), obs=y[t, i])


@gallery.model("one_comp_mm_elim_abs", lambda: (torch.rand(8) + 1.0,), WHY_EQUATION)
def one_compartment(y: Tensor) -> None:
    k_a, k_m, v_m, sigma = (pyro.sample(n, dist.HalfCauchy(1.0)) for n in ("k_a", "K_m", "V_m", "sigma"))
    concentration = torch.tensor(0.5)
    for t in range(len(y)):
        dose = k_a * torch.exp(-k_a * t)
        concentration = concentration + 0.1 * (dose - v_m * concentration / (k_m + concentration))
        pyro.sample(f"C_{t}", dist.LogNormal(concentration.log(), sigma), obs=y[t])


@gallery.model("soil_incubation", lambda: (torch.linspace(0.1, 1.0, 8),), WHY_EQUATION)
def soil(y: Tensor) -> None:
    k1, k2, alpha21, alpha12 = (pyro.sample(n, dist.HalfNormal(1.0)) for n in ("k1", "k2", "alpha21", "alpha12"))
    gamma = pyro.sample("gamma", dist.Beta(10.0, 1.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))

    flow = torch.stack([torch.stack([-k1, alpha12 * k2]), torch.stack([alpha21 * k1, -k2])])
    start = torch.stack([gamma, 1 - gamma])
    for t in range(len(y)):
        carbon = torch.matrix_exp(0.2 * (t + 1) * flow) @ start
        pyro.sample(f"eCO2_{t}", dist.Normal(1 - carbon.sum(), sigma), obs=y[t])


@gallery.model("sir", lambda: (torch.poisson(5.0 * torch.ones(6)),), WHY_EQUATION)
def sir(counts: Tensor) -> None:
    beta, gamma, xi, delta = (
        pyro.sample(n, dist.HalfCauchy(s)) for n, s in (("beta", 2.5), ("gamma", 1.0), ("xi", 25.0), ("delta", 1.0))
    )

    def slope(y: Tensor) -> Tensor:
        infected = beta * y[3] / (1e3 + y[3]) * y[0]
        return torch.stack([-infected, infected - gamma * y[1], gamma * y[1], xi * y[1] - delta * y[3]])

    before = torch.tensor([100.0, 1.0, 0.0, 1.0])
    for t, y in enumerate(solve(slope, before, len(counts), 0.1)):
        pyro.sample(f"stoi_{t}", dist.Poisson(before[0] - y[0]), obs=counts[t])
        before = y


def epidemic(y: Tensor) -> None:
    """Deaths in two countries: infections by a renewal equation, under measures of two kinds."""
    tau = pyro.sample("tau", dist.Exponential(0.03))
    phi = pyro.sample("phi", dist.HalfNormal(5.0))
    kappa = pyro.sample("kappa", dist.HalfNormal(0.5))
    with pyro.plate("measures", 2):
        alpha = pyro.sample("alpha_hier", dist.Gamma(0.1667, 1.0))
    with pyro.plate("countries", 2):
        mu = pyro.sample("mu", dist.FoldedDistribution(dist.Normal(3.28, kappa)))
        seed = pyro.sample("y", dist.Exponential(1 / tau))
        noise = pyro.sample("ifr_noise", dist.Normal(1.0, 0.1))
    infections = [seed]
    for t in range(1, len(y)):
        reproduction = mu * torch.exp(-alpha[0] * (t > 4) - alpha[1] * (t > 6))
        infections.append(reproduction * sum(infections) / t)
        deaths = noise * 0.01 * sum(infections)
        with pyro.plate(f"deaths_{t}", 2):
            pyro.sample(f"d_{t}", dist.NegativeBinomial(phi, logits=deaths.log() - phi.log()), obs=y[t])


for version in ("v2", "v3"):
    gallery.add(
        f"covid19imperial_{version}", epidemic, lambda: (torch.poisson(3 * torch.ones(8, 2)),), "a renewal equation"
    )


@gallery.model(
    "hierarchical_gp", lambda: (torch.randn(4, 6),), "the Cholesky factor of a Gaussian process's covariance"
)
def hierarchical_process(y: Tensor) -> None:
    """Vote shares [states, years] with a process over the years for each state."""
    total = pyro.sample("tot_var", dist.Gamma(3.0, 3.0))
    share = pyro.sample("prop_var", dist.Dirichlet(2.0 * torch.ones(3)))
    length = pyro.sample("length_GP_state_long", dist.Weibull(8.0, 30.0))
    mu = pyro.sample("mu", dist.Normal(0.5, 0.5))
    scales = (3 * share * total).sqrt()
    year = torch.arange(y.shape[1]).to(y.dtype)
    kernel = scales[0] ** 2 * torch.exp(-0.5 * (year[:, None] - year) ** 2 / length**2)
    factor = torch.linalg.cholesky(kernel + 1e-6 * torch.eye(len(year)))
    with pyro.plate("states", len(y)):
        raw = pyro.sample("GP_state_std", dist.Normal(torch.zeros(len(year)), 1.0).to_event(1))
        effect = pyro.sample("state_std", dist.Normal(0.0, 1.0))
        mean = mu + (scales[1] * effect)[:, None] + raw @ factor.mT
        pyro.sample("y", dist.Normal(mean, scales[2]).to_event(1), obs=y)


@gallery.model("kronecker_gp", lambda: (torch.randn(4, 3),), "eigenvalues of a Gaussian process's covariance")
def kronecker_process(y: Tensor) -> None:
    variance = pyro.sample("var1", dist.LogNormal(0.0, 1.0))
    width = pyro.sample("bw1", dist.HalfCauchy(2.5))
    noise = pyro.sample("sigma1", dist.LogNormal(0.0, 1.0))
    factor = pyro.sample("L", dist.LKJCholesky(3, 2.0))
    place = torch.arange(4.0)
    kernel = variance * torch.exp(-((place[:, None] - place) ** 2) * width) + 1e-5 * torch.eye(4)
    covariance = torch.kron(kernel, factor @ factor.mT) + noise * torch.eye(12)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(12), covariance), obs=y.reshape(-1))


def graded_answers() -> tuple[Tensor]:
    """Grades [4 items, 15 people] from 0 to 2."""
    return (torch.randint(0, 3, (4, 15)),)


def graded(steps_of: str) -> Callable[[Tensor], None]:
    """The generalized partial credit and the graded rating scale model."""

    def model(y: Tensor) -> None:
        people, items = pyro.plate("people", y.shape[1], dim=-1), pyro.plate("items", y.shape[0], dim=-2)
        with items:
            alpha = pyro.sample("alpha", dist.LogNormal(1.0, 1.0))
            steps = pyro.sample("beta", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        if steps_of == "all":
            steps = steps[..., :1] + pyro.sample("kappa", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with people:
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with people, items:
            gains = (alpha * theta)[..., None] - steps
            logits = torch.cat([torch.zeros(4, 15, 1), gains.cumsum(-1)], -1)
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model


gallery.add("gpcm_latent_reg_irt", graded("item"), graded_answers, AUXILIARY)
gallery.add("grsm_latent_reg_irt", graded("all"), graded_answers, AUXILIARY)


@gallery.model("multi_occupancy", lambda: (torch.randint(0, 6, (12, 8)),), AUXILIARY)
def multi_occupancy(x: Tensor) -> None:
    """How often species [12] were seen at sites [8] in five visits."""
    alpha = pyro.sample("alpha", dist.Cauchy(0.0, 2.5))
    beta = pyro.sample("beta", dist.Cauchy(0.0, 2.5))
    sigma = [pyro.sample(f"sigma_uv_{i}", dist.HalfCauchy(2.5)) for i in range(2)]
    rho = 2 * pyro.sample("rho", dist.Beta(2.0, 2.0)) - 1
    omega = pyro.sample("Omega", dist.Beta(2.0, 2.0))
    with pyro.plate("species", len(x), dim=-2):
        u = pyro.sample("u", dist.Normal(0.0, sigma[0]))
        v = pyro.sample("v", dist.Normal(rho * sigma[1] / sigma[0] * u, sigma[1] * (1 - rho**2).sqrt()))
        there = pyro.sample("there", dist.Bernoulli(omega))
        with pyro.plate("sites", x.shape[1], dim=-1):
            present = pyro.sample("present", dist.Bernoulli(there * torch.sigmoid(u + alpha)))
            pyro.sample("x", dist.Binomial(5, present * torch.sigmoid(v + beta)), obs=x.to(u.dtype))
