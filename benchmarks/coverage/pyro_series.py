"""Models of few sites and series of Pyro's tutorials and examples, on small data."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .entry import BOTH, JOINT, QUADRATURE, Gallery

gallery = Gallery("Pyro")
#: Why models are refused whose latents meet in one term as elements of a plate: they are updated all at once.
TIED = "the elements of a vector of scales that one term ties"


# ---------------------------------------------------------------------------------------------------------- a few sites


@gallery.model("csis, intro", lambda: (torch.tensor(1.0),))
def two_measurements(prior_mean: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(prior_mean, 5**0.5))
    pyro.sample("x1", dist.Normal(z, 2**0.5), obs=torch.tensor(8.0))
    pyro.sample("x2", dist.Normal(z, 2**0.5), obs=torch.tensor(9.0))


@gallery.model("jit, minipyro", lambda: (0.5 + 2 * torch.randn(40),), QUADRATURE)
def location_and_scale(data: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 3.0))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Normal(loc, scale), obs=data)


@gallery.model("model_rendering: a scale about a location", lambda: (torch.randn(20),), QUADRATURE)
def scale_about_location(data: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    sd = pyro.sample("sd", dist.LogNormal(m, 1.0))
    with pyro.plate("N", len(data)):
        pyro.sample("obs", dist.Normal(m, sd), obs=data)


@gallery.model("model_rendering: a sum over a plate", tuple, JOINT)
def sum_over_plate() -> None:
    first, second = pyro.plate("plate1", 2, dim=-2), pyro.plate("plate2", 3, dim=-1)
    with first:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with first, second:
        y = pyro.sample("y", dist.Normal(x, 1.0))
    with second:
        pyro.sample("z", dist.Normal(y.sum(-2, True), 1.0), obs=torch.zeros(3))


@gallery.model("modules: a local location", lambda: (torch.randn(10),))
def local_location(data: Tensor) -> None:
    with pyro.plate("data", len(data)):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(loc, 1.0), obs=data)


def schools() -> tuple[Tensor, Tensor]:
    """Effects of coaching [8] in eight schools, and their standard errors [8] (Rubin 1981)."""
    return (
        torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
        torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    )


@gallery.model("eight_schools", schools, QUADRATURE)
def eight_schools(y: Tensor, sigma: Tensor) -> None:
    eta = pyro.sample("eta", dist.Normal(torch.zeros(8), 1.0))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(25 * torch.ones(1)))
    pyro.sample("obs", dist.Normal(mu + tau * eta, sigma), obs=y)


@gallery.model("neutra: a funnel", tuple, QUADRATURE)
def funnel() -> None:
    y = pyro.sample("y", dist.Normal(0.0, 3.0))
    with pyro.plate("dimensions", 4):
        x = pyro.sample("x", dist.Normal(0.0, (y / 2).exp()))
        pyro.sample("obs", dist.Normal(x, 1.0), obs=torch.linspace(-1.0, 1.0, 4))


@gallery.model("inclined_plane", lambda: (0.8 + 0.02 * torch.randn(10),), QUADRATURE)
def inclined_plane(times: Tensor) -> None:
    """The time of a slide in closed form, in place of a simulation by steps."""
    mu = pyro.sample("mu", dist.Uniform(0.0, 0.55))
    acceleration = 9.8 * (math.sin(math.pi / 6) - math.cos(math.pi / 6) * mu)
    for i in range(len(times)):
        pyro.sample(f"obs_{i}", dist.Normal((2 * 2.0 / acceleration).sqrt(), 0.02), obs=times[i])


@gallery.model("gp", lambda: (torch.linspace(-1.0, 1.0, 8),), "the inverse of a kernel matrix of latents")
def gaussian_process(x: Tensor) -> None:
    variance = pyro.sample("kernel.variance", dist.LogNormal(0.0, 1.0))
    length = pyro.sample("kernel.lengthscale", dist.LogNormal(0.0, 1.0))
    kernel = variance * torch.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + 0.01 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), kernel), obs=x.sin())


@gallery.model("svi_flow_guide", lambda: (torch.randn(5, 3, 2),), "a correlation inside of a covariance matrix")
def correlation(x: Tensor) -> None:
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        rho = z[..., 2].tanh() * 0.99
        ones = torch.ones_like(rho)
        covariance = 1e-2 * torch.stack([ones, rho, rho, ones], -1).unflatten(-1, (2, 2))
        with pyro.plate("obs", 5):
            pyro.sample("x", dist.MultivariateNormal(z[..., :2], covariance), obs=x)


@gallery.model("stable", lambda: (0.1 * torch.randn(20),), "a stable distribution has no density in closed form")
def stable(data: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(-2.0, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("r", dist.Stable(1.9, 0.0, scale, loc), obs=data)


# --------------------------------------------------------------------------------------------------------------- series


def walk(length: int = 25) -> tuple[Tensor]:
    return (0.3 * torch.randn(length).cumsum(0) + 0.2 * torch.randn(length),)


@gallery.model("forecasting_i: a local level", walk, JOINT)
def local_level(data: Tensor) -> None:
    bias = pyro.sample("bias", dist.Normal(0.0, 10.0))
    trend = pyro.sample("weight", dist.Normal(0.0, 0.1))
    drift_scale = pyro.sample("drift_scale", dist.LogNormal(-20.0, 5.0))
    noise_scale = pyro.sample("noise_scale", dist.LogNormal(-5.0, 5.0))
    with pyro.plate("time", len(data)):
        drift = pyro.sample("drift", dist.Normal(0.0, 1.0)) * drift_scale
    prediction = drift.cumsum(-1) + bias + trend * torch.arange(len(data))
    with pyro.plate("observed", len(data)):
        pyro.sample("residual", dist.Normal(prediction, noise_scale), obs=data)


@gallery.model("forecasting_dlm", walk, TIED)
def dynamic_regression(data: Tensor) -> None:
    features = torch.stack([torch.ones(len(data)), torch.linspace(-1.0, 1.0, len(data)).sin()], -1)
    drift_scale = pyro.sample("drift_scale", dist.LogNormal(-10.0, 10.0).expand([2]).to_event(1))
    drift = pyro.sample("drift", dist.Normal(torch.zeros(len(data), 2), 1.0).to_event(2)) * drift_scale
    noise = pyro.sample("noise_scale", dist.LogNormal(-5.0, 10.0))
    with pyro.plate("time", len(data)):
        pyro.sample("y", dist.Normal((drift.cumsum(-2) * features).sum(-1), noise), obs=data)


@gallery.model("forecasting_ii: a Gaussian chain", walk, QUADRATURE)
def gaussian_chain(data: Tensor) -> None:
    """The chain that a GaussianHMM sums out, with its states as sites."""
    timescale = pyro.sample("timescale", dist.LogNormal(math.log(24.0), 1.0))
    trans_scale = pyro.sample("trans_scale", dist.LogNormal(-0.5 * math.log(24.0), 1.0))
    obs_scale = pyro.sample("obs_scale", dist.LogNormal(-2.0, 1.0))
    state = pyro.sample("state_0", dist.Normal(0.0, 10.0))
    for t in range(8):
        state = pyro.sample(f"state_{t + 1}", dist.Normal(torch.exp(-1 / timescale) * state, trans_scale))
        pyro.sample(f"y_{t}", dist.Normal(state, obs_scale), obs=data[t])


@gallery.model("prior_predictive: a heavy-tailed walk", walk, BOTH)
def heavy_walk(data: Tensor) -> None:
    df = pyro.sample("df", dist.LogNormal(0.0, 1.0))
    p_scale = pyro.sample("p_scale", dist.LogNormal(0.0, 1.0))
    m_scale = pyro.sample("m_scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("dt", len(data)):
        noise = pyro.sample("process_noise", dist.StudentT(df, 0.0, p_scale))
    with pyro.plate("t", len(data)):
        pyro.sample("obs", dist.Normal(noise.cumsum(-1), m_scale), obs=data)


@gallery.model("easyguide: drifting answers", lambda: (torch.bernoulli(torch.full((6, 10), 0.6)),), QUADRATURE)
def drifting_answers(data: Tensor) -> None:
    drift = pyro.sample("drift", dist.LogNormal(-1.0, 0.5))
    with pyro.plate("data", data.shape[1]):
        z: Any = 0.0
        for t in range(len(data)):
            z = pyro.sample(f"state_{t}", dist.Normal(z, drift))
            pyro.sample(f"obs_{t}", dist.Bernoulli(logits=z), obs=data[t])


@gallery.model("smcfilter: a harmonic oscillator", walk)
def oscillator(data: Tensor) -> None:
    step = torch.tensor([[0.8, -0.1], [0.2, 0.9]])
    z = pyro.sample("z_init", dist.Delta(torch.tensor([1.0, 0.0]), event_dim=1))
    for t in range(8):
        z = pyro.sample(f"z_{t + 1}", dist.Normal(z @ step, 0.5 * torch.ones(2)).to_event(1))
        pyro.sample(f"y_{t + 1}", dist.Normal(z[..., 0], 0.3), obs=data[t])


@gallery.model("ekf: a track", lambda: (torch.arange(8.0)[:, None] + 0.1 * torch.randn(8, 2),), QUADRATURE)
def track(data: Tensor) -> None:
    """Constant velocity, with the states as sites, in place of a filter's likelihood."""
    process = pyro.sample("pv_cov", dist.HalfCauchy(1.0))
    measured = pyro.sample("measurement_cov", dist.HalfCauchy(1.0))
    step = torch.eye(4) + torch.diag(torch.ones(2), 2)
    z = pyro.sample("z_0", dist.Normal(torch.zeros(4), 10.0).to_event(1))
    for t in range(len(data)):
        z = pyro.sample(f"z_{t + 1}", dist.Normal(step @ z, process.sqrt() * torch.ones(4)).to_event(1))
        pyro.sample(f"y_{t}", dist.Normal(z[:2], measured.sqrt()).to_event(1), obs=data[t])


@gallery.model("epi_intro, sir_hmc", lambda: (torch.poisson(torch.arange(1.0, 7.0)),), "products of latent populations")
def epidemic(data: Tensor) -> None:
    """Binomial infections and recoveries, as in pyro.contrib.epidemiology."""
    r0 = pyro.sample("R0", dist.LogNormal(0.0, 1.0))
    rho = pyro.sample("rho", dist.Beta(100.0, 100.0))
    susceptible: Any = torch.tensor(100.0)
    infected: Any = torch.tensor(1.0)
    for t in range(len(data)):
        new = pyro.sample(f"S2I_{t}", dist.Poisson(r0 / 7.0 * infected * susceptible / 101.0))
        gone = pyro.sample(f"I2R_{t}", dist.Poisson(infected / 7.0))
        susceptible, infected = susceptible - new, infected + new - gone
        pyro.sample(f"obs_{t}", dist.Poisson(rho * new), obs=data[t])
