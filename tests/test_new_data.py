"""Which latents new data has of its own, and what its density is then, against integrals written out."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, ModelError

DOUBLE = torch.float64


def fit(model: Any, *args: Any) -> AutoConjugate:
    guide = AutoConjugate(model)
    CAVI(model, guide).run(*args, max_steps=300, tol=1e-10)
    return guide


def repeated(x: Tensor | None, n: int = 0) -> None:
    """Two measurements of each subject."""
    precision = pyro.sample("precision", dist.Gamma(torch.tensor(2.0, dtype=DOUBLE), 1.0))
    with pyro.plate("subject", n if x is None else len(x), dim=-2):
        effect = pyro.sample("effect", dist.Normal(0.0, 3.0))
        with pyro.plate("twice", 2, dim=-1):
            pyro.sample("x", dist.Normal(effect, precision.rsqrt()), obs=x)


def test_fewer_subjects_are_others() -> None:
    """Their effects are integrated out, and not read off the data whose density is asked for."""
    torch.manual_seed(0)
    guide = fit(repeated, 3 * torch.randn(6, 1, dtype=DOUBLE) + torch.randn(6, 2, dtype=DOUBLE))
    new = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=DOUBLE)
    precision = guide.posterior()["precision"].sample((20_000, 1, 1, 1))
    covariance = 9 + torch.eye(2, dtype=DOUBLE) / precision
    each = dist.MultivariateNormal(torch.zeros(2, dtype=DOUBLE), covariance).log_prob(new)
    found = guide.log_predictive(new, pointwise=True, num_samples=3000)
    assert found.value.shape == (2,)  # the elements of the inner plate share an effect
    expected = each.logsumexp(0) - math.log(20_000)
    assert bool(((found.value - expected).abs() < 5 * found.error + 0.02).all())
    with pytest.raises(ModelError, match="Expected to know whether 'effect'"):
        guide.log_predictive(torch.zeros(6, 2, dtype=DOUBLE))
