"""Examples of RxInfer, on small data."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .bayespy import EACH, line, rxinfer, weather
from .entry import AUXILIARY, CLOSED, QUADRATURE


@rxinfer.model("coin toss", lambda: (torch.bernoulli(torch.full((30,), 0.7)),))
def coin(y: Tensor) -> None:
    theta = pyro.sample("theta", dist.Beta(4.0, 8.0))
    with pyro.plate("tosses", len(y)):
        pyro.sample("y", dist.Bernoulli(theta), obs=y)


@rxinfer.model("Bayesian linear regression", line)
def rxinfer_regression(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    variance = pyro.sample("s", dist.InverseGamma(1.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a * x + b, variance.sqrt()), obs=y)


@rxinfer.model(
    "hierarchical linear regression",
    lambda: (torch.arange(24) % 4, *[t[:24] for t in (torch.randn(24), torch.randn(24))]),
)
def hierarchical_regression(group: Tensor, x: Tensor, y: Tensor) -> None:
    mu = [pyro.sample(f"mu_{n}", dist.Normal(0.0, 10.0)) for n in "ab"]
    tau = [pyro.sample(f"tau_{n}", dist.Gamma(1.0, 1.0)) for n in "aby"]
    with pyro.plate("groups", 4):
        a = pyro.sample("a", dist.Normal(mu[0], tau[0].rsqrt()))
        b = pyro.sample("b", dist.Normal(mu[1], tau[1].rsqrt()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a[group] + b[group] * x, tau[2].rsqrt()), obs=y)


@rxinfer.model("Gaussian mixture, univariate", lambda: (torch.cat([torch.randn(20) - 5, torch.randn(20) + 5]),))
def univariate_mixture(y: Tensor) -> None:
    s = pyro.sample("s", dist.Beta(1.0, 1.0))
    m = [pyro.sample(f"m{i}", dist.Normal(loc, 10.0)) for i, loc in enumerate((-2.0, 2.0))]
    w = [pyro.sample(f"w{i}", dist.Gamma(1.0, 1.0)) for i in range(2)]
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(s))
        mean, precision = torch.where(z > 0, m[0], m[1]), torch.where(z > 0, w[0], w[1])
        pyro.sample("y", dist.Normal(mean, precision.rsqrt()), obs=y)


@rxinfer.model("hidden Markov model", weather)
def hidden_chain(y: Tensor) -> None:
    first = pyro.sample("s_0", dist.Categorical(torch.ones(3) / 3))
    with pyro.plate("states", 3):
        a = pyro.sample("A", dist.Dirichlet(1.0 + torch.eye(3)))
        b = pyro.sample("B", dist.Dirichlet(1.0 + 9 * torch.eye(3)))
    z: Any = first
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"s_{t + 1}", dist.Categorical(a[z]), infer=EACH)
        pyro.sample(f"x_{t}", dist.Categorical(b[z]), obs=y[t])


def rotation(y: Tensor, of_noise: bool) -> None:
    """A rotating state with known dynamics."""
    turn = torch.tensor([[0.98, -0.2], [0.2, 0.98]])
    precision = pyro.sample("tau", dist.Gamma(1.0, 1.0)) if of_noise else torch.tensor(10.0)
    x = pyro.sample("x_0", dist.MultivariateNormal(torch.zeros(2), 100 * torch.eye(2)))
    for t in range(len(y)):
        x = pyro.sample(f"x_{t + 1}", dist.MultivariateNormal(turn @ x, torch.eye(2)))
        pyro.sample(f"y_{t}", dist.Normal(x, precision.rsqrt()).to_event(1), obs=y[t])


rxinfer.add("Kalman filtering and smoothing", lambda y: rotation(y, False), lambda: (torch.randn(8, 2),), CLOSED)
rxinfer.add("linear dynamics with unknown noise", lambda y: rotation(y, True), lambda: (torch.randn(8, 2),), CLOSED)


@rxinfer.model("autoregressive model", lambda: (torch.randn(12).cumsum(0) * 0.3,))
def autoregressive(y: Tensor) -> None:
    gamma = pyro.sample("gamma", dist.Gamma(1.0, 1.0))
    theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    x = [pyro.sample(f"x_{t}", dist.Normal(0.0, 10.0)) for t in range(2)]
    for t in range(2, len(y)):
        x.append(pyro.sample(f"x_{t}", dist.Normal(theta[0] * x[t - 1] + theta[1] * x[t - 2], gamma.rsqrt())))
    for t in range(len(y)):
        pyro.sample(f"y_{t}", dist.Normal(x[t], 0.5), obs=y[t])


@rxinfer.model("Gaussian random walk with missing data", lambda: (torch.randn(12), torch.arange(12) % 3 > 0))
def missing_walk(y: Tensor, seen: Tensor) -> None:
    variance = pyro.sample("v", dist.InverseGamma(2.0, 1.0))
    x: Any = torch.tensor(0.0)
    for t in range(len(y)):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
        if seen[t]:
            pyro.sample(f"y_{t}", dist.Normal(x, variance.sqrt()), obs=y[t])


@rxinfer.model("hierarchical Gaussian filter", lambda: (torch.randn(8),), QUADRATURE)
def gaussian_filter(y: Tensor) -> None:
    """The variance of a walk is exp of another walk."""
    z: Any = torch.tensor(0.0)
    x: Any = torch.tensor(0.0)
    for t in range(len(y)):
        z = pyro.sample(f"z_{t}", dist.Normal(z, 0.5))
        x = pyro.sample(f"x_{t}", dist.Normal(x, (0.5 * z).exp()))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.3), obs=y[t])


@rxinfer.model(
    "probit model",
    lambda: (torch.linspace(-1.0, 1.0, 20), (torch.arange(20) > 9).double()),
    QUADRATURE,
)
def probit(x: Tensor, y: Tensor) -> None:
    level = pyro.sample("x", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        probability = torch.special.ndtr(level + x)
        pyro.sample("y", dist.Bernoulli(probability), obs=y)


@rxinfer.model(
    "binomial regression", lambda: (torch.randn(20, 2), torch.full((20,), 5.0), torch.arange(20.0) % 6), AUXILIARY
)
def binomial_regression(x: Tensor, total: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", dist.MultivariateNormal(torch.zeros(2), 10 * torch.eye(2)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Binomial(total, logits=x @ beta), obs=y)


@rxinfer.model("gamma mixture", lambda: (torch.cat([torch.rand(20) + 0.1, 5 * torch.rand(20) + 3]),), QUADRATURE)
def gamma_mixture(y: Tensor) -> None:
    s = pyro.sample("s", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        a = pyro.sample("a", dist.Gamma(1.0, 0.1))
        b = pyro.sample("b", dist.Gamma(10.0, 10.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(s))
        pyro.sample("y", dist.Gamma(a[z], b[z]), obs=y)


@rxinfer.model("nonlinear sensor fusion", lambda: (torch.rand(6) + 1.0,), "a norm of two latents in a location")
def sensors(y: Tensor) -> None:
    place = pyro.sample("place", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    beacons = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    with pyro.plate("sensors", 6):
        pyro.sample("y", dist.Normal(((place - beacons) ** 2).sum(-1).sqrt(), 0.1), obs=y)


@rxinfer.model("pendulum", lambda: (torch.sin(torch.arange(6.0)),), "the sine of a state in a location")
def pendulum(y: Tensor) -> None:
    state = pyro.sample("s_0", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for t in range(len(y)):
        turned = torch.stack([state[0] + 0.1 * state[1], state[1] - 0.98 * torch.sin(state[0])])
        state = pyro.sample(f"s_{t + 1}", dist.Normal(turned, 0.1).to_event(1))
        pyro.sample(f"y_{t}", dist.Normal(state[0], 0.3), obs=y[t])
