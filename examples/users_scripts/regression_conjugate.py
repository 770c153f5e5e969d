"""Bayesian linear regression on scikit-learn's diabetes data, for coordinate ascent.

The uniform prior of the noise's scale has become a Gamma prior of its precision.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from pyro_latent import CAVI, AutoConjugate


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
        sigma = pyro.sample("precision", dist.Gamma(1.0, 1.0)).rsqrt()
        mean = self.linear(features).squeeze(-1)
        with pyro.plate("data", len(features)):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=target)
        return mean


model = Regression(10)


def fit(*data: Any) -> Any:
    """The fitted guide."""
    guide = AutoConjugate(model)
    cavi = CAVI(model, guide)
    cavi.run(*data)
    return guide


if __name__ == "__main__":
    pyro.set_rng_seed(0)
    print(fit(*load()).median())
