"""Proportions, regressions and mixtures of Pyro's tutorials and examples, on small data."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroSample
from pyro.ops.indexing import Vindex
from torch import Tensor

from .entry import AUXILIARY, BOTH, BY_EM, CLOSED, QUADRATURE, Gallery

gallery = Gallery("Pyro")


# ---------------------------------------------------------------------------------------------------------- proportions


def coins() -> tuple[Tensor]:
    """Six heads of ten."""
    return (torch.cat([torch.ones(6), torch.zeros(4)]),)


@gallery.model("svi_part_i: a coin", coins)
def coin(data: Tensor) -> None:
    fairness = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
    for i in range(len(data)):
        pyro.sample(f"obs_{i}", dist.Bernoulli(fairness), obs=data[i])


@gallery.model("mle_map: a uniform prior", coins)
def uniform_coin(data: Tensor) -> None:
    fairness = pyro.sample("latent_fairness", dist.Uniform(0.0, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Bernoulli(fairness), obs=data)


@gallery.model("mle_map: a masked prior", coins)
def masked_coin(data: Tensor) -> None:
    fairness = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0).mask(False))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Bernoulli(fairness), obs=data)


@gallery.model("mle_map: a parameter", coins, BY_EM)
def parameter_coin(data: Tensor) -> None:
    fairness = pyro.param("latent_fairness", torch.tensor(0.5), constraint=constraints.unit_interval)
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Bernoulli(fairness), obs=data)


def batting() -> tuple[Tensor, Tensor]:
    """At bats [18] and hits [18] of players."""
    at_bats = torch.full((18,), 45.0)
    return at_bats, torch.binomial(at_bats, torch.full((18,), 0.27))


@gallery.model("baseball: fully pooled", batting)
def fully_pooled(at_bats: Tensor, hits: Tensor) -> None:
    phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
    with pyro.plate("players", len(hits)):
        pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


@gallery.model("baseball: not pooled", batting)
def not_pooled(at_bats: Tensor, hits: Tensor) -> None:
    with pyro.plate("players", len(hits)):
        phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
        pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


@gallery.model("baseball: partially pooled", batting, "log B(m k, (1 - m) k): one function of two scalars")
def partially_pooled(at_bats: Tensor, hits: Tensor) -> None:
    m = pyro.sample("m", dist.Uniform(0.0, 1.0))
    kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
    with pyro.plate("players", len(hits)):
        phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


@gallery.model("baseball: partially pooled, logits", batting, QUADRATURE)
def partially_pooled_logits(at_bats: Tensor, hits: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(-1.0, 1.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("players", len(hits)):
        alpha = pyro.sample("alpha", dist.Normal(loc, scale))
        pyro.sample("obs", dist.Binomial(at_bats, logits=alpha), obs=hits)


@gallery.model("prodlda: a die", lambda: (torch.tensor([2.0, 1.0, 10.0, 2.0, 12.0, 3.0]),))
def die(counts: Tensor) -> None:
    theta = pyro.sample("theta", dist.Dirichlet(torch.ones(6)))
    pyro.sample("counts", dist.Multinomial(int(counts.sum()), theta), obs=counts)


@gallery.model("toy_mixture_model_discrete_enumeration", lambda: (torch.bernoulli(torch.full((2, 30), 0.4)),))
def three_coins(observed: Tensor) -> None:
    p_a = pyro.sample("p_A", dist.Beta(1.0, 1.0))
    p_b = pyro.sample("p_B", dist.Beta(torch.ones(2), torch.ones(2)).to_event(1))
    p_c = pyro.sample("p_C", dist.Beta(torch.ones(2), torch.ones(2)).to_event(1))
    with pyro.plate("data", observed.shape[1]):
        a = pyro.sample("A", dist.Bernoulli(p_a.expand(observed.shape[1])), obs=observed[0])
        b = pyro.sample("B", dist.Bernoulli(Vindex(p_b)[a.long()]), infer={"enumerate": "parallel"})
        pyro.sample("C", dist.Bernoulli(Vindex(p_c)[b.long()]), obs=observed[1])


# ---------------------------------------------------------------------------------------------------------- regressions


def nations() -> tuple[Tensor, Tensor, Tensor]:
    """Whether 50 nations are in Africa, how rugged they are, and the logarithm of their product."""
    africa = torch.bernoulli(torch.full((50,), 0.3))
    rugged = 3 * torch.rand(50)
    return africa, rugged, 9.2 - 1.9 * africa - 0.2 * rugged + 0.4 * africa * rugged + 0.9 * torch.randn(50)


LINEAR: Any = PyroModule[torch.nn.Linear]


class Regression(PyroModule):
    """A linear layer with priors over its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear: Any = LINEAR(3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, africa: Tensor, rugged: Tensor, product: Tensor) -> None:
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(torch.stack([africa, rugged, africa * rugged], -1)).squeeze(-1)
        with pyro.plate("data", len(rugged)):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=product)


def regression(africa: Tensor, rugged: Tensor, product: Tensor) -> None:
    Regression()(africa, rugged, product)


gallery.add("bayesian_regression: a PyroModule", regression, nations, QUADRATURE)


@gallery.model("bayesian_regression_ii, intro_long", nations, QUADRATURE)
def rugged_nations(africa: Tensor, rugged: Tensor, product: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b_a, b_r, b_ar = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("bA", "bR", "bAR"))
    sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
    with pyro.plate("data", len(rugged)):
        mean = a + b_a * africa + b_r * rugged + b_ar * africa * rugged
        pyro.sample("obs", dist.Normal(mean, sigma), obs=product)


@gallery.model("intro_long: parameters", nations, BY_EM)
def rugged_parameters(africa: Tensor, rugged: Tensor, product: Tensor) -> None:
    a, b_a, b_r, b_ar = (pyro.param(name, torch.tensor(0.1)) for name in ("a", "bA", "bR", "bAR"))
    sigma = pyro.param("sigma", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(rugged)):
        mean = a + b_a * africa + b_r * rugged + b_ar * africa * rugged
        pyro.sample("obs", dist.Normal(mean, sigma), obs=product)


@gallery.model("modules: a Bayesian layer", nations, QUADRATURE)
def layer(africa: Tensor, rugged: Tensor, product: Tensor) -> None:
    weight = pyro.sample("linear.weight", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
    bias = pyro.sample("linear.bias", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    scale = pyro.sample("obs_scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("instances", len(rugged)):
        mean = torch.stack([africa, rugged], -1) @ weight.T + bias
        pyro.sample("obs", dist.Normal(mean, scale).to_event(1), obs=torch.stack([product, -product], -1))


@gallery.model("predictive_deterministic", nations, "softplus of a vector's product with a matrix in a rate")
def gamma_poisson(africa: Tensor, rugged: Tensor, product: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    coefficients = pyro.sample("coef", dist.Normal(0.0, scale).expand([2]).to_event(1))
    rate = torch.nn.functional.softplus(torch.stack([africa, rugged], -1) @ coefficients)
    concentration = pyro.sample("concentration", dist.LogNormal(0.0, 1.0))
    with pyro.plate("bins", len(rugged)):
        pyro.sample("counts", dist.GammaPoisson(concentration, rate), obs=product.round())


@gallery.model("sparse_regression", nations, "the inverse of a kernel matrix of latents")
def sparse_regression(africa: Tensor, rugged: Tensor, product: Tensor) -> None:
    """Pairwise interactions integrated out: a normal with a kernel for its covariance."""
    x = torch.stack([africa, rugged], -1)[:10]
    noise = pyro.sample("obs_scale", dist.HalfNormal(2.0))
    eta = pyro.sample("eta_1", dist.HalfNormal(2.0))
    with pyro.plate("features", 2):
        local = pyro.sample("lambda", dist.HalfCauchy(1.0))
    scaled = x * local
    kernel = eta**2 * (1 + scaled @ scaled.T) ** 2 + noise**2 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), kernel), obs=product[:10])


@gallery.model("working_memory", lambda: (torch.arange(1.0, 13.0), (torch.arange(1, 13) < 7).double()), QUADRATURE)
def working_memory(length: Tensor, recalled: Tensor) -> None:
    theta = pyro.sample("theta", dist.Normal(7.0, 2.0))
    with pyro.plate("trials", len(length)):
        pyro.sample("y", dist.Bernoulli(logits=10.0 * (theta - length)), obs=recalled)


@gallery.model("elections", lambda: (torch.tensor([50.0, 80.0, 30.0]), torch.tensor([30.0, 35.0, 20.0])), AUXILIARY)
def elections(polled: Tensor, votes: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.MultivariateNormal(torch.zeros(3), 0.2 * torch.eye(3) + 0.1))
    pyro.sample("y", dist.Binomial(polled, logits=alpha).to_event(1), obs=votes)


def lineages() -> tuple[Tensor]:
    """Counts [4 times, 3 regions, 3 lineages]."""
    return (torch.distributions.Multinomial(50, torch.ones(4, 3, 3) / 3).sample(),)


@gallery.model("logistic-growth: basic", lambda: (lineages()[0][:, 0],), BOTH)
def basic_growth(counts: Tensor) -> None:
    with pyro.plate("lineages", 3, dim=-1):
        rate = pyro.sample("rate", dist.Normal(0.0, 1.0))
        init = pyro.sample("init", dist.Normal(0.0, 1.0))
    probs = torch.softmax(init + rate * torch.arange(4.0)[:, None], dim=-1)
    with pyro.plate("time", 4, dim=-2):
        pyro.sample("obs", dist.Multinomial(probs=probs[:, None], validate_args=False), obs=counts[:, None])


@gallery.model("logistic-growth: regional", lineages, BOTH)
def regional_growth(counts: Tensor) -> None:
    lineage, region = pyro.plate("lineages", 3, dim=-1), pyro.plate("region", 3, dim=-2)
    with lineage:
        rate = pyro.sample("rate", dist.Normal(0.0, 1.0))
    scale = pyro.sample("init_scale", dist.LogNormal(0.0, 2.0))
    with region, lineage:
        init = pyro.sample("init", dist.Normal(0.0, scale))
    logits = init + rate * torch.arange(4.0)[:, None, None]
    with pyro.plate("time", 4, dim=-3), region:
        pyro.sample("obs", dist.Multinomial(logits=logits[..., None, :], validate_args=False), obs=counts[..., None, :])


@gallery.model("lkj", lambda: (torch.randn(30, 3),), "an LKJ prior of a Cholesky factor")
def lkj(y: Tensor) -> None:
    with pyro.plate("dimensions", 3):
        theta = pyro.sample("theta", dist.HalfCauchy(1.0))
    factor = pyro.sample("L_omega", dist.LKJCholesky(3, 1.0))
    with pyro.plate("observations", len(y)):
        tril = torch.diag(theta.sqrt()) @ factor
        pyro.sample("obs", dist.MultivariateNormal(torch.zeros(3), scale_tril=tril), obs=y)


# ------------------------------------------------------------------------------------------------------------- mixtures


def clusters() -> tuple[Tensor]:
    """Numbers [40] in two clusters."""
    return (torch.cat([torch.randn(20) - 3.0, torch.randn(20) + 3.0]),)


@gallery.model("gmm, enumeration", clusters, QUADRATURE)
def gmm(data: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


def sticks(beta: Tensor) -> Tensor:
    """The weights of sticks broken at beta."""
    rest = (1 - beta).cumprod(-1)
    return torch.nn.functional.pad(beta, (0, 1), value=1.0) * torch.nn.functional.pad(rest, (1, 0), value=1.0)


@gallery.model("dirichlet_process_mixture", lambda: (torch.stack([*clusters(), *clusters()], -1),), CLOSED)
def dirichlet_process(data: Tensor) -> None:
    with pyro.plate("beta_plate", 5):
        beta = pyro.sample("beta", dist.Beta(1.0, 0.1))
    with pyro.plate("mu_plate", 6):
        mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2), 5 * torch.eye(2)))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Categorical(sticks(beta)))
        pyro.sample("obs", dist.MultivariateNormal(mu[z], torch.eye(2)), obs=data)


@gallery.model("dirichlet_process_mixture: sunspots", lambda: (torch.poisson(60 * torch.rand(40)),), CLOSED)
def poisson_process(data: Tensor) -> None:
    with pyro.plate("beta_plate", 5):
        beta = pyro.sample("beta", dist.Beta(1.0, 1.1))
    with pyro.plate("lambda_plate", 6):
        rate = pyro.sample("lambda", dist.Gamma(3.0, 0.05))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Categorical(sticks(beta)))
        pyro.sample("obs", dist.Poisson(rate[z]), obs=data)


@gallery.model("enumeration: plates that cross", lambda: (torch.randint(0, 3, (5, 30)),))
def crossing(data: Tensor) -> None:
    feature, component = pyro.plate("features", 5, dim=-2), pyro.plate("components", 4, dim=-1)
    with feature, component:
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", 30, dim=-1):
        c = pyro.sample("c", dist.Categorical(torch.ones(4)))
        with feature as index:
            place: Any = index
            pyro.sample("x", dist.Categorical(Vindex(p)[place[..., None], c, :]), obs=data)


def words() -> tuple[Tensor]:
    """Eight documents of twelve words each [12, 8], of ten kinds."""
    return (torch.where(torch.arange(8) < 4, torch.randint(0, 5, (12, 8)), torch.randint(5, 10, (12, 8))),)


@gallery.model("lda", words, "the normalizer of a Dirichlet whose concentrations are Gammas")
def lda(data: Tensor) -> None:
    with pyro.plate("topics", 3):
        topic_weights = pyro.sample("topic_weights", dist.Gamma(1.0 / 3, 1.0))
        topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(10) / 10))
    with pyro.plate("documents", data.shape[1]):
        doc_topics = pyro.sample("doc_topics", dist.Dirichlet(topic_weights))
        with pyro.plate("words", data.shape[0]):
            topic = pyro.sample("word_topics", dist.Categorical(doc_topics))
            pyro.sample("doc_words", dist.Categorical(topic_words[topic]), obs=data)


@gallery.model("boosting_bbvi: two modes", lambda: (4.0 + 0.1 * torch.randn(20),), QUADRATURE)
def two_modes(data: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(1), 5.0))
    with pyro.plate("data", len(data)):
        pyro.sample("x", dist.Normal(z * z, 0.1), obs=data)


@gallery.model("sparse_gamma_def", lambda: (torch.poisson(2 * torch.ones(6, 4)),), "a rate that is a sum of products")
def sparse_gamma(x: Tensor) -> None:
    def weights(name: str, rows: int, columns: int) -> Tensor:
        with pyro.plate(f"{name}_plate", rows * columns):
            return pyro.sample(name, dist.Gamma(0.1, 0.3)).reshape(rows, columns)

    top, middle, bottom = weights("w_top", 2, 2), weights("w_mid", 2, 2), weights("w_bottom", 2, 4)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z_top", dist.Gamma(0.1, 0.1).expand([2]).to_event(1))
        z = pyro.sample("z_mid", dist.Gamma(0.1, 0.1 / (z @ top)).to_event(1))
        z = pyro.sample("z_bottom", dist.Gamma(0.1, 0.1 / (z @ middle)).to_event(1))
        pyro.sample("obs", dist.Poisson(z @ bottom).to_event(1), obs=x)
