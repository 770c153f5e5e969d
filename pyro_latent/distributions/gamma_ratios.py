"""log Γ(x + n) − log Γ(x), to the rounding of the difference: for large x both are far larger than it; and log
densities with such differences, which tend to those of a normal, a Poisson or a binomial distribution.

Source: Abramowitz and Stegun (6.1.40), Stirling's series, whose leading terms are subtracted by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

#: From here on the series is right to 1e-14; its coefficients are those of 1 / x, 1 / x³, …
_FAR = 12.0
_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)


def log_rising(x: Tensor, n: Tensor) -> Tensor:
    """log Γ(x + n) − log Γ(x), the logarithm of x (x + 1) … (x + n − 1) for a whole number n.

    Args:
        x: positive numbers.
        n: numbers above −x, which broadcast with x.
    """
    x, n = torch.broadcast_tensors(x, n)
    near = torch.lgamma(x + n) - torch.lgamma(x)
    low, high = x.clamp(min=_FAR), (x + n).clamp(min=_FAR)
    ratio = n / low
    far = (low - 0.5) * torch.log1p(ratio.clamp(min=-0.999)) + n * high.log() - n + _series(high) - _series(low)
    return torch.where((x >= _FAR) & (x + n >= _FAR), far, near)


def _series(x: Tensor) -> Tensor:
    """The terms of log Γ that fall as x grows."""
    square, total = x.reciprocal().square(), torch.zeros_like(x)
    for coefficient in reversed(_SERIES):
        total = total * square + coefficient
    return total / x


def _student(d: dist.StudentT, value: Tensor) -> Tensor:
    square = ((value - d.loc) / d.scale).square()
    ratio = log_rising(0.5 * d.df, d.df.new_tensor(0.5))
    return ratio - 0.5 * (d.df + 1) * (square / d.df).log1p() - 0.5 * (d.df.log() + math.log(math.pi)) - d.scale.log()


def _negative_binomial(d: dist.NegativeBinomial, value: Tensor) -> Tensor:
    odds = d.total_count * logsigmoid(-d.logits) + value * logsigmoid(d.logits)
    ways = log_rising(d.total_count, value) - torch.lgamma(value + 1)
    return odds + ways.masked_fill(d.total_count + value == 0, 0.0)


def _gamma_poisson(d: dist.GammaPoisson, value: Tensor) -> Tensor:
    odds = d.concentration * d.rate.reciprocal().log1p() + value * d.rate.log1p()
    return log_rising(d.concentration, value) - torch.lgamma(value + 1) - odds


def _beta_binomial(d: dist.BetaBinomial, value: Tensor) -> Tensor:
    a, b, count = d.concentration1, d.concentration0, d.total_count
    ways = torch.lgamma(count + 1) - torch.lgamma(value + 1) - torch.lgamma(count - value + 1)
    return ways + log_rising(a, value) + log_rising(b, count - value) - log_rising(a + b, count)


#: Log densities of distributions at values, by class: those of PyTorch and Pyro round where a parameter is very large.
LOG_DENSITIES: Mapping[type, Callable[[Any, Tensor], Tensor]] = {
    dist.StudentT: _student,
    dist.NegativeBinomial: _negative_binomial,
    dist.GammaPoisson: _gamma_poisson,
    dist.BetaBinomial: _beta_binomial,
}

__all__ = ["LOG_DENSITIES", "log_rising"]
