"""Models of bnpy, on small data."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .bayespy import EACH, bnpy, line, plane
from .entry import CLOSED


def sticks(beta: Tensor) -> Tensor:
    """The weights of sticks broken at beta."""
    rest = torch.nn.functional.pad((1 - beta).cumprod(-1), (1, 0), value=1.0)
    return torch.nn.functional.pad(beta, (0, 1), value=1.0) * rest


def bnpy_mixture(nonparametric: bool, covariance: str) -> Any:
    def model(y: Tensor) -> None:
        if nonparametric:
            with pyro.plate("sticks", 3):
                weights = sticks(pyro.sample("beta", dist.Beta(1.0, 1.0)))
        else:
            weights = pyro.sample("weights", dist.Dirichlet(0.25 * torch.ones(4)))
        with pyro.plate("components", 4):
            if covariance == "full":
                precision = pyro.sample("precision", dist.Wishart(torch.tensor(3.0), torch.eye(2)))
                mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2), precision_matrix=0.1 * precision))
            else:
                tau = pyro.sample("tau", dist.Gamma(torch.ones(2), 1.0).to_event(1))
                mu = pyro.sample("mu", dist.Normal(torch.zeros(2), (0.1 * tau).rsqrt()).to_event(1))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(weights))
            if covariance == "full":
                pyro.sample("y", dist.MultivariateNormal(mu[z], precision_matrix=precision[z]), obs=y)
            else:
                pyro.sample("y", dist.Normal(mu[z], tau[z].rsqrt()).to_event(1), obs=y)

    return model


for nonparametric, prior in ((False, "finite mixture"), (True, "Dirichlet process mixture")):
    for covariance in ("full", "diagonal"):
        model = bnpy_mixture(nonparametric, covariance)
        bnpy.add(f"{prior} of Gaussians, {covariance}", model, plane, CLOSED)


@bnpy.model("zero-mean Gaussian mixture", plane)
def zero_mean_mixture(y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        precision = pyro.sample("precision", dist.Wishart(torch.tensor(3.0), torch.eye(2)))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision[z]), obs=y)


@bnpy.model("Bernoulli mixture of sticks", lambda: (torch.bernoulli(torch.full((30, 6), 0.5)),), CLOSED)
def bernoulli_sticks(y: Tensor) -> None:
    with pyro.plate("sticks", 3):
        weights = sticks(pyro.sample("beta", dist.Beta(1.0, 5.0)))
    with pyro.plate("components", 4):
        phi = pyro.sample("phi", dist.Beta(torch.ones(6), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Bernoulli(phi[z]).to_event(1), obs=y)


@bnpy.model("multinomial mixture", lambda: (torch.distributions.Multinomial(20, torch.ones(5) / 5).sample((20,)),))
def multinomial_mixture(y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        phi = pyro.sample("phi", dist.Dirichlet(0.1 * torch.ones(5)))
    with pyro.plate("documents", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Multinomial(20, phi[z]), obs=y)


@bnpy.model("mixture of regressions", line)
def mixture_of_regressions(x: Tensor, y: Tensor) -> None:
    features = torch.stack([torch.ones_like(x), x], -1)
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        tau = pyro.sample("tau", dist.Gamma(1.0, 1.0))
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal((features * w[z]).sum(-1), tau[z].rsqrt()), obs=y)


@bnpy.model("hidden Markov model of autoregressions", lambda: (torch.randn(12),))
def autoregressive_chain(y: Tensor) -> None:
    with pyro.plate("states", 2):
        step = pyro.sample("step", dist.Dirichlet(torch.ones(2)))
        tau = pyro.sample("tau", dist.Gamma(1.0, 1.0))
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    z: Any = torch.tensor(0)
    for t in pyro.markov(range(1, len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(step[z]), infer=EACH)
        pyro.sample(f"y_{t}", dist.Normal(a[z] * y[t - 1], tau[z].rsqrt()), obs=y[t])


@bnpy.model("stochastic block model", lambda: (torch.bernoulli(torch.full((8, 8), 0.4)),))
def block_model(edges: Tensor) -> None:
    share = pyro.sample("share", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("from_blocks", 2, dim=-2), pyro.plate("to_blocks", 2, dim=-1):
        density = pyro.sample("density", dist.Beta(1.0, 1.0))
    with pyro.plate("nodes", 8):
        z = pyro.sample("z", dist.Categorical(share))
    i, j = torch.triu_indices(8, 8, 1)
    with pyro.plate("pairs", len(i)):
        pyro.sample("edge", dist.Bernoulli(density[z[i], z[j]]), obs=edges[i, j])


@bnpy.model(
    "hierarchical Dirichlet process topics",
    lambda: (torch.arange(40) % 4, torch.randint(0, 6, (40,))),
    "the normalizer of a Dirichlet whose concentrations are broken sticks",
)
def hierarchical_topics(document: Tensor, word: Tensor) -> None:
    with pyro.plate("sticks", 2):
        share = sticks(pyro.sample("beta", dist.Beta(1.0, 1.0)))
    with pyro.plate("documents", 4):
        theta = pyro.sample("theta", dist.Dirichlet(5.0 * share))
    with pyro.plate("topics", 3):
        phi = pyro.sample("phi", dist.Dirichlet(torch.ones(6)))
    with pyro.plate("words", len(word)):
        z = pyro.sample("z", dist.Categorical(theta[document]))
        pyro.sample("word", dist.Categorical(phi[z]), obs=word)
