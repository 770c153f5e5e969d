"""An E-step that cannot hold the posterior: EM with a factorised q, and with the exact one, on one model.

    signal_n ~ N(0, I),  x_n ~ N(loc + signal_n1 + signal_n2, scale²)

Given x the two signals are dependent: only their sum is seen. Over q(signal_1) q(signal_2) the divergence to the
posterior stays above zero, the bound below the likelihood, and EM climbs to the maximum of the bound, which is not that
of the likelihood. A bivariate q holds the posterior, and EM is exact. With S the variance of the data, exact EM ends at
scale² = S - 2; the factorised one at the root of 1 = S v / (v + 2)² + 2 / (1 + v) in v = scale², where its own M-step
stands still.

Source: [0] (1)-(4) EM over a restricted family, (5)-(12) its factorised form; Neal and Hinton 1998.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_latent.errors import checked_call

from .arguments import check_data, normal_factor

__all__ = ["fixed_point", "gap", "guide", "log_likelihood", "model"]


def model(x: Tensor, factorised: bool = True) -> None:
    """Parameters ``loc`` and ``scale``; sites ``first`` and ``second`` (or ``signal``, of event shape [2]) and ``obs``.

    Args:
        x: the data, shape ``[N]``, floating.
        factorised: whether the signals are two sites, so that q factorises over them, or one bivariate site.

    Raises:
        DataError: if ``x`` is not a floating tensor of shape [N] with N >= 2.

    Source: [0] (5).
    """
    check_data("x", x, "[N]", "Write torch.tensor([...], dtype=torch.float64).", least=2)
    loc = pyro.param("loc", x.new_zeros(()))
    scale = pyro.param("scale", x.new_ones(()), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        if factorised:
            first = pyro.sample("first", dist.Normal(x.new_zeros(()), x.new_ones(())))
            second = pyro.sample("second", dist.Normal(x.new_zeros(()), x.new_ones(())))
            total = first + second
        else:
            total = pyro.sample("signal", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1)).sum(-1)
        pyro.sample("obs", dist.Normal(loc + total, scale), obs=x)


def guide(x: Tensor, factorised: bool = True) -> None:
    """Guide q(first) q(second), normal for each point, or q(signal), bivariate, for ``SVI`` with ``Trace_ELBO``.

    The parameters ``first_loc``, ``first_scale``, ``second_loc`` and ``second_scale``, shape ``[N]``, or ``signal_loc``
    ``[N, 2]`` and ``signal_scale_tril`` ``[N, 2, 2]``, start at the prior.
    """
    check_data("x", x, "[N]", "Write torch.tensor([...], dtype=torch.float64).", least=2)
    with pyro.plate("data", len(x)):
        if factorised:
            for name in ("first", "second"):
                normal_factor(name, torch.zeros_like(x), torch.ones_like(x))
        else:
            loc = pyro.param("signal_loc", x.new_zeros(len(x), 2))
            start = torch.eye(2).to(x).repeat(len(x), 1, 1)
            tril = pyro.param("signal_scale_tril", start, constraint=constraints.lower_cholesky)
            pyro.sample("signal", dist.MultivariateNormal(loc, scale_tril=tril))


@checked_call
def log_likelihood(x: Tensor, loc: float | Tensor, scale: float | Tensor) -> Tensor:
    """log p(x | loc, scale), a scalar in nats: each x is N(loc, 2 + scale²)."""
    spread = (2 + torch.as_tensor(scale, dtype=x.dtype) ** 2).sqrt()
    return dist.Normal(torch.as_tensor(loc, dtype=x.dtype), spread).log_prob(x).sum()


@checked_call
def gap(num_points: int, scale: float) -> float:
    """The divergence of the best factorised q from the posterior, in nats.

    Both have the same means; the posterior's precision is [[1 + 1/v, 1/v], [1/v, 1 + 1/v]], and the divergence of the
    product of normals with its diagonal is half the logarithm of the product of that diagonal over the determinant.
    """
    v = scale**2
    return num_points / 2 * math.log((1 + 1 / v) ** 2 / (1 + 2 / v))


@checked_call
def fixed_point(x: Tensor, factorised: bool = True) -> float:
    """The scale where EM ends: by bisection if factorised; else exact, and 0 where the variance of x is below 2.

    Source: the M-step scale² = mean E_q (x - loc - first - second)² at the q of its own E-step.
    """
    variance = float((x - x.mean()).square().mean())
    if not factorised:
        return math.sqrt(max(variance - 2, 0.0))

    def excess(v: float) -> float:
        return variance * v / (v + 2) ** 2 + 2 / (1 + v) - 1

    low, high = 1e-12, 10 * (variance + 2)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return math.sqrt((low + high) / 2)
