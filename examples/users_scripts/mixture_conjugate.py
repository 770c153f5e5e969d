"""A mixture of two normals on the durations of Old Faithful's eruptions, for coordinate ascent.

The log-normal prior of the scales has become a Gamma prior of the precisions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate

K = 2


def load() -> tuple[Tensor]:
    """Durations of 272 eruptions, in minutes, ``[272]``."""
    path = Path(__file__).parents[2] / "models" / "datasets" / "old_faithful.csv"
    return (torch.from_numpy(np.loadtxt(path, delimiter=",", skiprows=1)[:, 0]).float(),)


def model(data: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K)))
    with pyro.plate("components", K):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        scale = pyro.sample("precision", dist.Gamma(1.0, 1.0)).rsqrt()
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("obs", dist.Normal(loc[assignment], scale[assignment]), obs=data)


def fit(*data: Any) -> Any:
    """The fitted guide."""
    guide = AutoConjugate(model)
    cavi = CAVI(model, guide)
    cavi.run(*data)
    return guide


if __name__ == "__main__":
    pyro.set_rng_seed(0)
    print(fit(*load()).median())
