"""Eight schools with known standard errors (Rubin 1981), for coordinate ascent.

The half-Cauchy prior of the spread is the same as before, written by two Gammas: if rate ~ Gamma(1/2, 1/A²) and
precision ~ Gamma(1/2, rate), then precision⁻¹ᐟ² ~ HalfCauchy(A) (Wand et al. 2011, result 5).
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate


def load() -> tuple[Tensor, Tensor]:
    """Standard errors and effects of coaching in eight schools, in points of the test, ``[8]`` each."""
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return errors, effects


def model(errors: Tensor, effects: Tensor | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    rate = pyro.sample("rate", dist.Gamma(0.5, 1 / 25.0**2))
    tau = pyro.sample("precision", dist.Gamma(0.5, rate)).rsqrt()
    with pyro.plate("schools", len(errors)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effects", dist.Normal(theta, errors), obs=effects)


def fit(*data: Any) -> Any:
    """The fitted guide."""
    guide = AutoConjugate(model)
    cavi = CAVI(model, guide)
    cavi.run(*data)
    return guide


if __name__ == "__main__":
    pyro.set_rng_seed(0)
    print(fit(*load()).median())
