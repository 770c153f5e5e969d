"""Random distributions whose arguments are computed from latents, and values to score, as code."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from algebra_programs import Leaf
from torch import Tensor

#: Arguments, by their constraint: code over the leaves below, where N, D and K are sizes.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "real": (
        "m",
        "m + 0.5",
        "m[idx]",
        "s",
        "count + m + 0.5",
        "2.0",
        "m - c",
        "torch.where(mask, m, s)",
        "m * s",
        "X @ m",
    ),
    "positive": (
        "tau",
        "2 * tau",
        "tau.rsqrt()",
        "tau[idx]",
        "rho",
        "tau * rho",
        "1.5",
        "c.exp()",
        "(tau * 0.5).rsqrt()",
        "torch.where(mask, tau, 2.0)",
        "torch.where(mask, tau, rho)",
        "(count + 1) * tau",
        "tau ** -2",
        "rho.expand(N)",
        "torch.stack([rho, rho, tau[0]])",
        "torch.cat([tau[:1], tau[1:]])",
        "(m ** 2).sqrt()",
    ),
    "fixed": ("1.5", "c.exp()", "1.0", "alpha", "2 * alpha", "alpha[:1]", "alpha.expand(N, N)", "2"),
    "rate": (
        "tau",
        "2 * tau",
        "rho",
        "torch.where(mask, tau, 0.0)",
        "0.0",
        "count.abs()",
        "count.abs() * tau",
        "mask * rho",
    ),
    "probability": (
        "p",
        "1 - p",
        "p[idx]",
        "q",
        "0.0",
        "1.0",
        "0.3",
        "edge",
        "1 - edge",
        "torch.where(mask, p, 0.5)",
        "q * p",
        "torch.where(mask, p, 0.0)",
        "torch.where(mask, 1.0, p)",
        "mask * p",
        "1 - mask * p",
        "1 - 0.5 * p",
    ),
    "simplex": (
        "theta",
        "theta[idx]",
        "theta[0]",
        "theta[:, :1]",
        "theta.unsqueeze(-1)",
        "2 * theta",
        "weights",
        "theta[..., [1, 0, 2]]",
        "torch.stack([1 - p, p], -1)",
        "torch.stack([q, 1 - q])",
        "torch.where(mask[:, None], theta, weights)",
        "torch.where(torch.arange(3) > 0, theta, theta[idx])",
        "theta.expand(2, N, K)",
        "theta[:, None]",
    ),
    "vector": (
        "mu",
        "mus",
        "mus[idx]",
        "mu + 1",
        "X[:D, :D] @ mu",
        "torch.zeros(D)",
        "torch.where(mask[:, None], mus, mu)",
    ),
    "matrix": (
        "L",
        "2 * L",
        "L.mT",
        "Ls",
        "Ls[idx]",
        "rho * L",
        "L.inverse()",
        "fixed",
        "rho * fixed",
        "rho * torch.eye(D)",
        "L[:2, :2]",
        "L[:1, :1]",
        "torch.diag_embed(pair)",
        "torch.diag(pair)",
        "torch.diag(torch.stack([rho, pair[0]]))",
        "torch.where(mask[:, None, None], L, Ls)",
        "torch.diag(torch.where(torch.arange(D) > 0, pair, 1.0))",
        "pair * torch.eye(D)",
        "tau[:, None, None] * L",
        "torch.inverse(L)[:D, :D]",
        "L + torch.eye(D)",
        "torch.diag(2 * pair[:1])",
        "0.5 * Ls + 0 * L",
        "lower @ lower.mT",
        "torch.stack([L, 2 * L, fixed])",
    ),
    "lower": (
        "lower",
        "2 * lower",
        "rho * lower",
        "torch.diag_embed(pair)",
        "torch.linalg.cholesky(L)",
        "torch.linalg.cholesky(2 * Ls)",
        "lower[:1, :1]",
    ),
}
#: Distributions with a rule, and how often each value is impossible or on the edge: by ``spare`` values.
DISTRIBUTIONS = (
    *("dist.Normal({real}, {positive})",) * 3,
    "dist.Gamma({fixed}, {positive})",
    "dist.Beta({fixed}, {fixed})",
    "dist.Exponential({positive})",
    "dist.Dirichlet({fixed} * torch.ones(K))",
    "dist.Dirichlet(alpha)",
    "dist.Dirichlet(alpha[:2])",
    "dist.Dirichlet(2 * alpha)",
    "dist.Unit({real})",
    "dist.Bernoulli({probability})",
    "dist.Bernoulli({probability})",
    "dist.Bernoulli(logits=c)",
    "dist.Binomial(3, {probability})",
    "dist.Binomial(count.abs(), {probability})",
    "dist.Poisson({rate})",
    "dist.Poisson({rate})",
    *("dist.Categorical({simplex})",) * 2,
    "dist.OneHotCategorical({simplex})",
    "dist.Multinomial(3, {simplex})",
    "dist.Categorical(logits=c)",
    *("dist.MultivariateNormal({vector}, precision_matrix={matrix})",) * 3,
    "dist.MultivariateNormal({vector}, covariance_matrix={matrix})",
    "dist.MultivariateNormal({vector}, scale_tril={lower})",
    "dist.Wishart(torch.tensor(4.0), precision_matrix={matrix})",
    "dist.Wishart(torch.tensor(4.0), covariance_matrix={matrix})",
    "dist.Wishart(torch.tensor(4.0), scale_tril={lower})",
)
#: Families whose values may be latents too.
CONTINUOUS = (
    dist.Normal,
    dist.Gamma,
    dist.Beta,
    dist.Dirichlet,
    dist.MultivariateNormal,
    dist.Wishart,
    dist.Exponential,
)
SIZES = {"N": 3, "D": 2, "K": 3}


@dataclass
class Density:
    """A distribution as code, a value, and what torch says of its log density."""

    leaves: list[Leaf]
    code: str
    value: Leaf
    log_prob: Tensor

    def __str__(self) -> str:
        return "\n".join([*map(str, self.leaves), str(self.value), f"{self.code}.log_prob({self.value.name})"])


def run(code: str, names: dict[str, Any]) -> Any:
    """The value of one line."""
    return eval(code, {"torch": torch, "dist": dist, **SIZES}, names)


def _leaves(generator: torch.Generator) -> list[Leaf]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def definite(*shape: int) -> Tensor:
        return (root := normal(*shape)) @ root.mT + torch.eye(shape[-1], dtype=torch.float64)

    draws: dict[str, tuple[str, Callable[..., Tensor]]] = {
        **{name: ("real", lambda shape=shape: normal(*shape)) for name, shape in
           {"m": (3,), "s": (), "mu": (2,), "mus": (3, 2)}.items()},
        **{name: ("positive", lambda shape=shape: normal(*shape).abs() + 0.3) for name, shape in
           {"tau": (3,), "rho": (), "pair": (2,), "alpha": (3,)}.items()},
        **{name: ("unit", lambda shape=shape: normal(*shape).sigmoid()) for name, shape in
           {"p": (3,), "q": ()}.items()},
        "theta": ("simplex", lambda: normal(3, 3).softmax(-1)),
        "L": ("definite", lambda: definite(2, 2)),
        "Ls": ("definite", lambda: definite(3, 2, 2)),
        "lower": ("cholesky", lambda: torch.linalg.cholesky(definite(2, 2))),
    }  # fmt: skip
    latents = [Leaf(n, kind, torch.float64, draw(), draw(), n == "alpha") for n, (kind, draw) in draws.items()]
    constants = {
        "c": normal(3),
        "X": normal(3, 3),
        "count": torch.randint(-2, 4, (3,), generator=generator),
        "mask": torch.rand(3, generator=generator) < 0.5,
        "idx": torch.randint(0, 3, (3,), generator=generator),
        "edge": torch.tensor([0.0, 1.0, 0.4], dtype=torch.float64),
        "weights": torch.tensor([0.25, 0.0, 0.75], dtype=torch.float64),
        "fixed": definite(2, 2),
    }
    return latents + [Leaf(name, "constant", value.dtype, value) for name, value in constants.items()]


def write(seed: int) -> Density:
    """The density of a seed."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    leaves = _leaves(generator)
    names = {leaf.name: leaf.value for leaf in leaves}
    while True:
        code = choose.choice(DISTRIBUTIONS)
        for constraint, options in ARGUMENTS.items():
            while "{" + constraint + "}" in code:
                code = code.replace("{" + constraint + "}", choose.choice(options), 1)
        code += choose.choice(("", "", "", ".to_event(1)", ".expand([2, N])"))
        try:
            distribution = run(code, names)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                value = distribution.sample() if choose.random() < 0.7 else _spare(distribution)
            log_prob = distribution.log_prob(value)
        except Exception:  # torch refuses: the arguments do not fit
            continue
        used = [leaf for leaf in leaves if leaf.name in code.replace("(", " ")]
        return Density(used, code, _value_leaf(distribution, value, choose), log_prob)


def _spare(distribution: Any) -> Tensor:
    """A value of the support that the distribution may find impossible."""
    value = distribution.sample()
    if distribution.has_enumerate_support and not distribution.event_shape:
        support = distribution.enumerate_support(expand=False).reshape(-1)
        return support[torch.randint(len(support), value.shape)]
    return value.flip(-1) if value.ndim else value


def _value_leaf(distribution: Any, value: Tensor, choose: random.Random) -> Leaf:
    base = distribution
    while hasattr(base, "base_dist"):
        base = base.base_dist
    kind = {dist.Normal: "real", dist.MultivariateNormal: "real", dist.Wishart: "definite", dist.Dirichlet: "simplex"}
    random_value = isinstance(base, CONTINUOUS) and choose.random() < 0.3
    decoy = value + 0.01 if random_value else None
    return Leaf("value", kind.get(type(base), "positive"), value.dtype, value, decoy)
