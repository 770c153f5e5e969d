"""Elementwise quantiles of distributions, by what each of them has: an inverse cdf, a cdf, or draws."""

from __future__ import annotations

from typing import Any

import scipy.special
import scipy.stats
import torch
from torch import Tensor

#: Draws behind what has no formula: quantiles without an inverse cdf or a cdf, and moments.
_DRAWS = 4000
#: Halvings of an interval; they reach the rounding of float64.
_HALVINGS = 100
_DOUBLINGS = 1000


def quantile(distribution: Any, probability: float) -> Tensor:
    """The elementwise quantile of a distribution, of the shape of a draw.

    It is by the distribution's ``icdf``, else by bisection of its ``cdf``, else by 4,000 draws with a fixed seed, which
    leave torch's random state as it was.
    """
    for method in (_by_icdf, _by_bisection):
        if not distribution.event_shape:
            try:
                return method(distribution, distribution.mean.new_tensor(probability))
            except NotImplementedError:
                continue
    return fixed_draws(distribution).quantile(probability, 0)


def fixed_draws(distribution: Any) -> Tensor:
    """4,000 draws of a distribution with a fixed seed, ``[4000] + shape``; torch's random states are as before, also
    those of its devices. (``torch.manual_seed`` would seed devices that are not looked at.)
    """
    on_cuda = torch.cuda.is_initialized()
    with torch.random.fork_rng(range(torch.cuda.device_count()) if on_cuda else []):
        torch.default_generator.manual_seed(0)
        if on_cuda:
            torch.cuda.manual_seed_all(0)
        draws: Tensor = distribution.sample((_DRAWS,))
    return draws


def _by_icdf(distribution: Any, level: Tensor) -> Tensor:
    found: Tensor = distribution.icdf(level)
    return found.expand(distribution.batch_shape)


def _by_bisection(distribution: Any, level: Tensor) -> Tensor:
    """The root of cdf(x) = level, between bounds inside the support that double until they hold it."""
    support = distribution.support
    if support.is_discrete:
        raise NotImplementedError
    like = level.new_zeros(distribution.batch_shape)
    low, high = _bounds(support, like)
    for _ in range(_DOUBLINGS):
        outside = distribution.cdf(high) < level
        if not bool(outside.any()):
            break
        high = torch.where(outside, 2 * high - low, high)
    for _ in range(_DOUBLINGS if getattr(support, "lower_bound", None) is None else 0):
        outside = distribution.cdf(low) > level
        if not bool(outside.any()):
            break
        low = torch.where(outside, 2 * low - high, low)
    for _ in range(_HALVINGS):
        middle = low + (high - low) / 2
        below = distribution.cdf(middle) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low + (high - low) / 2


def _bounds(support: object, like: Tensor) -> tuple[Tensor, Tensor]:
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    start = like - 1 if low is None else like + low
    return start, start + 2 if high is None else like + high


def gamma_quantile(concentration: Tensor, rate: Tensor, probability: float) -> Tensor:
    """The quantile of Gamma(concentration, rate), elementwise."""
    return _scipy(scipy.special.gammaincinv, concentration, probability) / rate


def beta_quantile(one: Tensor, zero: Tensor, probability: float) -> Tensor:
    """The quantile of Beta(one, zero), elementwise."""
    return _scipy(scipy.special.betaincinv, one, zero, probability)


def student_quantile(df: Tensor, loc: Tensor, scale: Tensor, probability: float) -> Tensor:
    """The quantile of StudentT(df, loc, scale), elementwise."""
    return loc + scale * _scipy(lambda d: scipy.stats.t.ppf(probability, d), df)


def _scipy(function: Any, *arguments: Tensor | float) -> Tensor:
    like = next(a for a in arguments if isinstance(a, Tensor))
    arrays = [a.detach().cpu().double().numpy() if isinstance(a, Tensor) else a for a in arguments]
    return torch.as_tensor(function(*arrays)).to(like)


__all__ = ["beta_quantile", "fixed_draws", "gamma_quantile", "quantile", "student_quantile"]
