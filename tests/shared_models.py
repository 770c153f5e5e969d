"""The small models and helpers that several test files use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from references import problems
from torch import Tensor

from pyro_latent.families import FAMILIES, JOINT_FAMILIES
from pyro_latent.rules import RULES


@contextlib.contextmanager
def registries_kept() -> Iterator[None]:
    """What is registered inside is forgotten at the end."""
    registries: tuple[dict[Any, Any], ...] = (RULES, FAMILIES, JOINT_FAMILIES)
    kept = [(registry, dict(registry)) for registry in registries]
    try:
        yield
    finally:
        for registry, before in kept:
            registry.clear()
            registry.update(before)


def gaussian(x: Tensor) -> None:
    """A normal of unknown mean ``mu`` and precision ``tau``, independent a priori."""
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=x)


def mixture(x: Tensor, k: int = 3, *, width: float = 5.0, marked: bool = True) -> None:
    """``k`` normals of unit scale; ``marked``: whether the site of the components is marked for enumeration."""
    theta = pyro.sample("theta", dist.Dirichlet(torch.ones(k).to(x)))
    with pyro.plate("components", k):
        mu = pyro.sample("mu", dist.Normal(0.0, torch.tensor(width).to(x)))
    with pyro.plate("data", len(x)):
        infer: Any = {"enumerate": "parallel"} if marked else {}
        z = pyro.sample("z", dist.Categorical(theta), infer=infer)
        pyro.sample("x", dist.Normal(mu[z], torch.tensor(1.0).to(x)), obs=x)


def batch_mixture(x: Tensor, size: int | None = None, *, k: int = 3, width: float = 10.0) -> None:
    """``k`` normals of unit scale, of ``size`` points of which ``x`` is a minibatch, by default all."""
    size = len(x) if size is None else size
    weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(k)))
    with pyro.plate("components", k):
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), width))
    with pyro.plate("data", size, subsample_size=len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x)


def regression(features: Tensor, targets: Tensor | None = None, *, width: float = 1.0) -> None:
    """A linear regression of unknown precision, its weights one normal site of scale ``width``."""
    precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    weights = pyro.sample("weights", dist.Normal(torch.zeros_like(features[0]), width).to_event(1))
    with pyro.plate("data", len(features)):
        pyro.sample("targets", dist.Normal(features @ weights, precision.rsqrt()), obs=targets)


class Killed(BaseException):
    """Stands for the end of the process."""


def weights_and_bias(features: Tensor, target: Tensor) -> None:
    """A regression on ten features, the weights one vector."""
    weights = pyro.sample("weights", dist.Normal(features.new_zeros(10), 1.0).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(features)):
        pyro.sample("obs", dist.Normal(features @ weights + bias, precision.rsqrt()), obs=target)


def schools_with_gamma(errors: Tensor, effects: Tensor) -> None:
    """tau⁻² ~ Gamma(1, 25)."""
    mu = pyro.sample("mu", dist.Normal(0.0, problems.MU_SCALE))
    tau = pyro.sample("precision", dist.Gamma(*problems.PRECISION_PRIOR)).rsqrt()
    with pyro.plate("schools", len(errors)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effects", dist.Normal(theta, errors), obs=effects)
