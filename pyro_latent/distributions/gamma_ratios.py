"""log Γ(x + n) − log Γ(x), to the rounding of the difference: for large x both are far larger than it; and a log
density with such a difference.

Source: Abramowitz and Stegun (6.1.40), Stirling's series, whose leading terms are subtracted by hand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import StudentT

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


def student_log_prob(distribution: StudentT, value: Tensor) -> Tensor:
    """The log density of Student's t distribution, which tends to the normal one's as its degrees of freedom grow."""
    df, scale = distribution.df, distribution.scale
    square = ((value - distribution.loc) / scale).square()
    ratio = log_rising(0.5 * df, df.new_tensor(0.5))
    return ratio - 0.5 * (df + 1) * (square / df).log1p() - 0.5 * (df.log() + math.log(math.pi)) - scale.log()


__all__ = ["log_rising", "student_log_prob"]
