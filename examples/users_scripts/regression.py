"""Bayesian linear regression on scikit-learn's diabetes data, as a user of Pyro writes it, for SVI."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.optim import Adam
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn


def load() -> tuple[Tensor, Tensor]:
    """Ten covariates ``[442, 10]`` and the target ``[442]``, standardised."""
    features, target = load_diabetes(return_X_y=True, scaled=False)
    x = StandardScaler().fit_transform(features)
    y = StandardScaler().fit_transform(target[:, None])
    return torch.from_numpy(x).float(), torch.from_numpy(y[:, 0]).float()


Linear: Any = PyroModule[nn.Linear]


class Regression(PyroModule):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.linear = Linear(num_features, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, num_features]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, features: Tensor, target: Tensor | None = None) -> Tensor:
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(features).squeeze(-1)
        with pyro.plate("data", len(features)):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=target)
        return mean


model = Regression(10)


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
