"""Proportions, captures, mixtures, topics and chains of posteriordb, on data of their kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .entry import AUXILIARY, BOTH, CLOSED, QUADRATURE, Gallery

gallery = Gallery("posteriordb")


# ---------------------------------------------------------------------------------------------------------- proportions


def rate(count: int, total: int, name: str, theta: Any) -> None:
    pyro.sample(name, dist.Binomial(total, theta), obs=torch.tensor(float(count)))


@gallery.model("Rate_1_model", tuple)
def rate_1() -> None:
    theta = pyro.sample("theta", dist.Beta(1.0, 1.0))
    rate(5, 10, "k", theta)


@gallery.model("Rate_2_model", tuple)
def rate_2() -> None:
    theta1 = pyro.sample("theta1", dist.Beta(1.0, 1.0))
    theta2 = pyro.sample("theta2", dist.Beta(1.0, 1.0))
    rate(5, 10, "k1", theta1)
    rate(7, 10, "k2", theta2)


@gallery.model("Rate_3_model", tuple)
def rate_3() -> None:
    theta = pyro.sample("theta", dist.Beta(1.0, 1.0))
    rate(5, 10, "k1", theta)
    rate(7, 10, "k2", theta)


@gallery.model("Rate_4_model", tuple)
def rate_4() -> None:
    theta = pyro.sample("theta", dist.Beta(1.0, 1.0))
    pyro.sample("thetaprior", dist.Beta(1.0, 1.0))
    rate(1, 15, "k", theta)


gallery.add("Rate_5_model", rate_3, tuple, CLOSED)


@gallery.model("Survey_model", tuple)
def survey() -> None:
    """The number of questionnaires sent is unknown, up to 500."""
    theta = pyro.sample("theta", dist.Beta(1.0, 1.0))
    most, returned = 500, torch.tensor([16.0, 18.0, 22.0, 25.0, 27.0])
    sent = pyro.sample("n", dist.Categorical(torch.ones(most) / most)) + 1
    with pyro.plate("helpers", len(returned)):
        pyro.sample("k", dist.Binomial(sent, theta, validate_args=False), obs=returned)


# ---------------------------------------------------------------------------------------------------- capture-recapture


def captures() -> tuple[Tensor]:
    """Whether 40 animals, of which some do not exist, were seen in each of five nights [40, 5]."""
    exists = (torch.arange(40) < 24).to(torch.get_default_dtype())
    return (torch.bernoulli(0.4 * exists[:, None].expand(40, 5)),)


@gallery.model("M0_model", captures)
def m0(y: Tensor) -> None:
    omega = pyro.sample("omega", dist.Uniform(0.0, 1.0))
    p = pyro.sample("p", dist.Uniform(0.0, 1.0))
    with pyro.plate("animals", len(y)):
        z = pyro.sample("z", dist.Bernoulli(omega))
        pyro.sample("s", dist.Binomial(y.shape[1], z * p), obs=y.sum(-1))


@gallery.model("Mt_model", captures)
def mt(y: Tensor) -> None:
    omega = pyro.sample("omega", dist.Uniform(0.0, 1.0))
    nights, animals = pyro.plate("nights", y.shape[1], dim=-1), pyro.plate("animals", len(y), dim=-2)
    with nights:
        p = pyro.sample("p", dist.Uniform(0.0, 1.0))
    with animals:
        z = pyro.sample("z", dist.Bernoulli(omega))
        with nights:
            pyro.sample("y", dist.Bernoulli(z * p), obs=y)


@gallery.model("Mb_model", captures)
def mb(y: Tensor) -> None:
    """An animal that was caught the night before is caught with a chance of its own."""
    omega = pyro.sample("omega", dist.Uniform(0.0, 1.0))
    p = pyro.sample("p", dist.Uniform(0.0, 1.0))
    c = pyro.sample("c", dist.Uniform(0.0, 1.0))
    before = torch.cat([torch.zeros(len(y), 1), y[:, :-1]], -1)
    with pyro.plate("animals", len(y), dim=-2):
        z = pyro.sample("z", dist.Bernoulli(omega))
        with pyro.plate("nights", y.shape[1], dim=-1):
            pyro.sample("y", dist.Bernoulli(z * ((1 - before) * p + before * c)), obs=y)


def with_heterogeneity(kind: str) -> Callable[[Tensor], None]:
    """Mh, Mth and Mtbh: a logit with an effect of each animal."""

    def model(y: Tensor) -> None:
        omega = pyro.sample("omega", dist.Uniform(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 5.0))
        nights, animals = pyro.plate("nights", y.shape[1], dim=-1), pyro.plate("animals", len(y), dim=-2)
        if kind == "h":
            mean_p = pyro.sample("mean_p", dist.Uniform(0.0, 1.0))
        else:
            with nights:
                mean_p = pyro.sample("mean_p", dist.Uniform(0.0, 1.0))
        with animals:
            eps = pyro.sample("eps_raw", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Bernoulli(omega))
            logits = torch.logit(mean_p) + sigma * eps
            if kind == "tbh":
                before = torch.cat([torch.zeros(len(y), 1), y[:, :-1]], -1)
                logits = logits + pyro.sample("gamma", dist.Normal(0.0, 10.0)) * before
            with nights:
                pyro.sample("y", dist.Bernoulli(z * torch.sigmoid(logits)), obs=y)

    return model


for kind in ("h", "th", "tbh"):
    gallery.add(f"M{kind}_model", with_heterogeneity(kind), captures, AUXILIARY)


# ------------------------------------------------------------------------------------------------------------- mixtures


def two_groups() -> tuple[Tensor]:
    """Numbers [60] of two groups."""
    return (torch.cat([torch.randn(36) - 2.5, 0.7 * torch.randn(24) + 2.5]),)


@gallery.model("low_dim_gauss_mix_collapse", two_groups, QUADRATURE)
def low_dim_gauss_mix_collapse(y: Tensor) -> None:
    with pyro.plate("components", 2):
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(1 - theta)).long()
        pyro.sample("y", dist.Normal(mu[z], sigma[z]), obs=y)


@gallery.model("low_dim_gauss_mix", two_groups, "means in order are one vector, without a family")
def low_dim_gauss_mix(y: Tensor) -> None:
    with pyro.plate("components", 2):
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    in_order = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 2.0).to_event(1), [dist.transforms.OrderedTransform()]
    )
    mu = pyro.sample("mu", in_order)
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(1 - theta)).long()
        pyro.sample("y", dist.Normal(mu[z], sigma[z]), obs=y)


@gallery.model("normal_mixture", two_groups)
def normal_mixture(y: Tensor) -> None:
    theta = pyro.sample("theta", dist.Uniform(0.0, 1.0))
    with pyro.plate("components", 2):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(1 - theta)).long()
        pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@gallery.model("normal_mixture_k", two_groups, QUADRATURE)
def normal_mixture_k(y: Tensor) -> None:
    theta = pyro.sample("theta", dist.Dirichlet(torch.ones(5)))
    with pyro.plate("components", 5):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(theta))
        pyro.sample("y", dist.Normal(mu[z], sigma[z]), obs=y)


def corpus() -> tuple[Tensor, Tensor]:
    """The document and the word of 100 tokens: ten documents, eight words."""
    document = torch.arange(100) % 10
    return document, torch.where(document < 5, torch.randint(0, 4, (100,)), torch.randint(4, 8, (100,)))


def topics(count: int) -> Callable[[Tensor, Tensor], None]:
    def model(document: Tensor, word: Tensor) -> None:
        with pyro.plate("documents", 10):
            theta = pyro.sample("theta", dist.Dirichlet(torch.ones(count)))
        with pyro.plate("topics", count):
            phi = pyro.sample("phi", dist.Dirichlet(torch.ones(8)))
        with pyro.plate("tokens", len(word)):
            z = pyro.sample("z", dist.Categorical(theta[document]))
            pyro.sample("w", dist.Categorical(phi[z]), obs=word)

    return model


gallery.add("ldaK2", topics(2), corpus, CLOSED)
gallery.add("ldaK5", topics(5), corpus, CLOSED)


# --------------------------------------------------------------------------------------------------------------- chains


def switching() -> tuple[Tensor]:
    """A series [30] whose level switches twice."""
    level = torch.tensor([3.0, 10.0])[(torch.arange(30) // 10) % 2]
    return (level + torch.randn(30),)


def chain(count: int, transition: Tensor, first: Any, y: Tensor, emit: Callable[[int, Tensor], Any]) -> None:
    state = None
    for t in pyro.markov(range(len(y))):
        probs = first if state is None else transition[state]
        state = pyro.sample(f"state_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", emit(t, state), obs=y[t])


@gallery.model("hmm_example", switching)
def hmm_example(y: Tensor) -> None:
    """Stan's order of the means is left out: it only names the states."""
    with pyro.plate("states", 2):
        theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2)))
        mu = pyro.sample("mu", dist.Normal(torch.tensor([3.0, 10.0]), 1.0))
    chain(2, theta, torch.ones(2) / 2, y, lambda t, z: dist.Normal(mu[z], 1.0))


@gallery.model("hmm_gaussian", switching, QUADRATURE)
def hmm_gaussian(y: Tensor) -> None:
    """Flat priors over the means and the scales make its posterior improper; these are wide ones."""
    first = pyro.sample("pi1", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("states", 3):
        transition = pyro.sample("A", dist.Dirichlet(torch.ones(3)))
        mu = pyro.sample("mu", dist.Normal(0.0, 100.0))
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 100.0))
    chain(3, transition, first, y, lambda t, z: dist.Normal(mu[z], sigma[z]))


def drives() -> tuple[Tensor]:
    """Two positive numbers of each of 30 possessions [30, 2]."""
    return (torch.distributions.Exponential(torch.tensor([1.0, 3.0])[(torch.arange(30) // 10) % 2]).sample((2,)).T,)


@gallery.model("hmm_drive_0", drives, QUADRATURE)
def hmm_drive_0(uv: Tensor) -> None:
    positive = dist.FoldedDistribution(dist.Normal(torch.tensor([0.0, 3.0]), 1.0))
    with pyro.plate("states", 2):
        theta = pyro.sample("theta", dist.Dirichlet(torch.tensor([[4.0, 2.0], [2.0, 4.0]])))
        phi = pyro.sample("phi", positive)
        lam = pyro.sample("lambda", positive)
    rates = torch.stack([phi, lam], -1)
    chain(2, theta, torch.ones(2) / 2, uv, lambda t, z: dist.Exponential(rates[z]).to_event(1))


@gallery.model("hmm_drive_1", drives)
def hmm_drive_1(uv: Tensor) -> None:
    with pyro.plate("states", 2):
        theta = pyro.sample("theta", dist.Dirichlet(torch.tensor([[4.0, 2.0], [2.0, 4.0]])))
        phi = pyro.sample("phi", dist.Normal(torch.tensor([0.0, 3.0]), 1.0))
        lam = pyro.sample("lambda", dist.Normal(torch.tensor([0.0, 3.0]), 1.0))
    means = torch.stack([phi, lam], -1)
    chain(2, theta, torch.ones(2) / 2, uv.log(), lambda t, z: dist.Normal(means[z], 0.5).to_event(1))


@gallery.model("iohmm_reg", lambda: (*switching(), torch.randn(30, 2)), BOTH)
def iohmm(y: Tensor, u: Tensor) -> None:
    first = pyro.sample("pi1", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("states", 2):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(3.0))
    for t in range(len(y)):  # a state does not depend on the one before, but on the input
        z = pyro.sample(f"z_{t}", dist.Categorical(first) if t == 0 else dist.Categorical(logits=w @ u[t]))
        pyro.sample(f"y_{t}", dist.Normal((b @ u[t])[z], sigma[z]), obs=y[t])
