"""Examples of BayesPy, on small data, and the galleries of its peers, some of whose examples are the same."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .entry import CLOSED, Gallery

bayespy, rxinfer, infernet, bnpy = map(Gallery, ("BayesPy", "RxInfer", "Infer.NET", "bnpy"))
EACH: Any = {"enumerate": "parallel"}


def numbers(count: int = 30) -> tuple[Tensor]:
    return (5.0 + 2 * torch.randn(count),)


def plane(count: int = 40) -> tuple[Tensor]:
    """Points [N, 2] about two centers."""
    return (torch.randn(count, 2) + 4.0 * (torch.arange(count) < count // 2)[:, None],)


def line() -> tuple[Tensor, Tensor]:
    """Places [20] and numbers [20]."""
    x = torch.linspace(-1.0, 1.0, 20)
    return x, 1.0 + 3 * x + 0.5 * torch.randn(20)


@bayespy.model("quick start: a normal", numbers)
@infernet.model("learning a Gaussian", numbers)
@rxinfer.model("iid normals, mean and precision", numbers)
def normal(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1000.0))
    tau = pyro.sample("tau", dist.Gamma(1e-3, 1e-3))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, tau.rsqrt()), obs=y)


@bayespy.model("linear regression", line)
def bayespy_regression(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("B", dist.Normal(torch.zeros(2), 1e3).to_event(1))
    tau = pyro.sample("tau", dist.Gamma(1e-3, 1e-3))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.stack([x, torch.ones_like(x)], -1) @ b, tau.rsqrt()), obs=y)


@bayespy.model("multivariate regression", lambda: (torch.randn(20, 3), torch.randn(20, 2)))
def multivariate_regression(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("B", dist.Normal(torch.zeros(2, 3), 1e3).to_event(2))
    precision = pyro.sample("Lambda", dist.Wishart(torch.tensor(3.0), torch.eye(2)))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.MultivariateNormal(x @ b.T, precision_matrix=precision), obs=y)


@bayespy.model("Gaussian mixture", plane)
@infernet.model("mixture of Gaussians", plane)
@rxinfer.model("Gaussian mixture, multivariate", plane)
def gaussian_mixture(y: Tensor) -> None:
    weights = pyro.sample("alpha", dist.Dirichlet(0.1 * torch.ones(3)))
    with pyro.plate("components", 3):
        mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2), 100 * torch.eye(2)))
        precision = pyro.sample("Lambda", dist.Wishart(torch.tensor(2.0), torch.eye(2)))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.MultivariateNormal(mu[z], precision_matrix=precision[z]), obs=y)


@bayespy.model("Bernoulli mixture", lambda: (torch.bernoulli(torch.full((30, 5), 0.5)),))
def bernoulli_mixture(x: Tensor) -> None:
    weights = pyro.sample("R", dist.Dirichlet(1e-1 * torch.ones(3)))
    with pyro.plate("components", 3):
        p = pyro.sample("P", dist.Beta(0.5 * torch.ones(5), 0.5).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("Z", dist.Categorical(weights))
        pyro.sample("X", dist.Bernoulli(p[z]).to_event(1), obs=x)


def weather() -> tuple[Tensor]:
    return (torch.randint(0, 3, (15,)),)


@bayespy.model("hidden Markov model: known parameters", weather)
def known_chain(y: Tensor) -> None:
    step = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    emission = torch.tensor([[0.1, 0.4, 0.5], [0.6, 0.3, 0.1]])
    z: Any = None
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(torch.tensor([0.6, 0.4]) if z is None else step[z]), infer=EACH)
        pyro.sample(f"y_{t}", dist.Categorical(emission[z]), obs=y[t])


def mixture_chain(y: Tensor) -> None:
    """A hidden Markov model with normal emissions [T, 2]."""
    first = pyro.sample("a0", dist.Dirichlet(0.1 * torch.ones(2)))
    with pyro.plate("states", 2):
        step = pyro.sample("A", dist.Dirichlet(0.1 * torch.ones(2)))
        mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2), 100 * torch.eye(2)))
        precision = pyro.sample("Lambda", dist.Wishart(torch.tensor(2.0), torch.eye(2)))
    z: Any = None
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(first if z is None else step[z]), infer=EACH)
        pyro.sample(f"y_{t}", dist.MultivariateNormal(mu[z], precision_matrix=precision[z]), obs=y[t])


bayespy.add("hidden Markov model: Gaussian emissions", mixture_chain, lambda: plane(16), CLOSED)
bnpy.add("hidden Markov model, full Gaussians", mixture_chain, lambda: plane(16), CLOSED)


def grid() -> tuple[Tensor]:
    """A matrix [6, 15] of rank two and noise."""
    return (torch.randn(6, 2) @ torch.randn(2, 15) + 0.1 * torch.randn(6, 15),)


@bayespy.model("principal component analysis", grid)
def principal_components(y: Tensor) -> None:
    rows, columns = pyro.plate("rows", 6, dim=-2), pyro.plate("columns", 15, dim=-1)
    alpha = pyro.sample("alpha", dist.Gamma(1e-3 * torch.ones(3), 1e-3).to_event(1))
    tau = pyro.sample("tau", dist.Gamma(1e-3, 1e-3))
    with columns:
        x = pyro.sample("X", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with rows:
        c = pyro.sample("C", dist.Normal(torch.zeros(3), alpha.rsqrt()).to_event(1))
    with rows, columns:
        pyro.sample("Y", dist.Normal((c * x).sum(-1), tau.rsqrt()), obs=y)


@bayespy.model("linear state-space model", lambda: (torch.randn(10, 3),))
def state_space(y: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Gamma(1e-2 * torch.ones(2), 1e-2).to_event(1))
    with pyro.plate("states", 2):
        a = pyro.sample("A", dist.Normal(torch.zeros(2), alpha.rsqrt()).to_event(1))
    gamma = pyro.sample("gamma", dist.Gamma(1e-2 * torch.ones(2), 1e-2).to_event(1))
    with pyro.plate("dimensions", 3):
        c = pyro.sample("C", dist.Normal(torch.zeros(2), gamma.rsqrt()).to_event(1))
    tau = pyro.sample("tau", dist.Gamma(1e-2, 1e-2))
    x = pyro.sample("x_0", dist.Normal(torch.zeros(2), 30.0).to_event(1))
    for t in range(len(y)):
        x = pyro.sample(f"x_{t + 1}", dist.Normal(a @ x, 1.0).to_event(1))
        pyro.sample(f"y_{t}", dist.Normal(c @ x, tau.rsqrt()).to_event(1), obs=y[t])


@bayespy.model("switching linear dynamics", lambda: (torch.randn(10),))
def switching_dynamics(y: Tensor) -> None:
    with pyro.plate("regimes", 2):
        a = pyro.sample("A", dist.Normal(torch.tensor([0.9, -0.9]), 0.5))
        step = pyro.sample("rho", dist.Dirichlet(torch.ones(2)))
    tau = pyro.sample("tau", dist.Gamma(1e-1, 1e-1))
    x: Any = torch.tensor(0.0)
    z: Any = torch.tensor(0)
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(step[z]), infer=EACH)
        x = pyro.sample(f"x_{t}", dist.Normal(a[z] * x, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(x, tau.rsqrt()), obs=y[t])


@bayespy.model("latent Dirichlet allocation", lambda: (torch.arange(60) % 6, torch.randint(0, 8, (60,))))
@infernet.model("latent Dirichlet allocation", lambda: (torch.arange(60) % 6, torch.randint(0, 8, (60,))))
@bnpy.model("topics: a finite topic model", lambda: (torch.arange(60) % 6, torch.randint(0, 8, (60,))))
def topics(document: Tensor, word: Tensor) -> None:
    with pyro.plate("documents", 6):
        p_topic = pyro.sample("p_topic", dist.Dirichlet(0.5 * torch.ones(3)))
    with pyro.plate("topics", 3):
        p_word = pyro.sample("p_word", dist.Dirichlet(0.5 * torch.ones(8)))
    with pyro.plate("words", len(word)):
        topic = pyro.sample("topic", dist.Categorical(p_topic[document]))
        pyro.sample("word", dist.Categorical(p_word[topic]), obs=word)


@bayespy.model("black-box: a beta-binomial with a Poisson count", tuple)
def two_families() -> None:
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", 4):
        pyro.sample("k", dist.Binomial(10, p), obs=torch.tensor([3.0, 4.0, 6.0, 2.0]))
        pyro.sample("n", dist.Poisson(rate), obs=torch.tensor([1.0, 0.0, 2.0, 3.0]))
