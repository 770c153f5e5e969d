"""Eight schools with known standard errors (Rubin 1981), as a user of Pyro writes it, for SVI."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch import Tensor


def load() -> tuple[Tensor, Tensor]:
    """Standard errors and effects of coaching in eight schools, in points of the test, ``[8]`` each."""
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return errors, effects


def model(errors: Tensor, effects: Tensor | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(25.0))
    with pyro.plate("schools", len(errors)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effects", dist.Normal(theta, errors), obs=effects)


def fit(*data: Any, num_steps: int = 2000, lr: float = 0.02) -> Any:
    """The fitted guide."""
    guide = AutoNormal(model)
    svi = SVI(model, guide, Adam({"lr": lr}), Trace_ELBO())
    for _ in range(num_steps):
        svi.step(*data)
    return guide


if __name__ == "__main__":
    pyro.set_rng_seed(0)
    print(fit(*load()).median())
