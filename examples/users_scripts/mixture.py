"""A mixture of two normals on the durations of Old Faithful's eruptions, as a user of Pyro writes it, for SVI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from pyro.optim import Adam
from torch import Tensor

K = 2


def load() -> tuple[Tensor]:
    """Durations of 272 eruptions, in minutes, ``[272]``."""
    path = Path(__file__).parents[2] / "models" / "datasets" / "old_faithful.csv"
    return (torch.from_numpy(np.loadtxt(path, delimiter=",", skiprows=1)[:, 0]).float(),)


def model(data: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K)))
    with pyro.plate("components", K):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("obs", dist.Normal(loc[assignment], scale[assignment]), obs=data)


def fit(*data: Any, num_steps: int = 2000, lr: float = 0.02) -> Any:
    """The fitted guide."""
    start = {"loc": torch.quantile(data[0], torch.tensor([0.25, 0.75]))}
    guide = AutoNormal(poutine.block(model, hide=["assignment"]), init_loc_fn=init_to_value(values=start))
    svi = SVI(model, guide, Adam({"lr": lr}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(num_steps):
        svi.step(*data)
    return guide


if __name__ == "__main__":
    pyro.set_rng_seed(0)
    print(fit(*load()).median())
