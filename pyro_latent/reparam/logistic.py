"""Logistic likelihoods: given a Pólya-gamma weight they are quadratic in the logits."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import broadcast_all

from ..distributions import LogisticBound, PolyaGamma
from ..distributions.gamma_ratios import log_rising
from ..expressions import Expression, RandomTensor
from ..rules import raw_arguments
from .base import ConjugateReparam, Site
from .weighted import GivenWeight, inside

Number = TypeVar("Number", Tensor, Expression)


def log_factor(logits: Number, weight: Number, successes: Number, trials: Any) -> Number:
    """a ψ − b (log 2 + ψ / 2) − ½ ω ψ²: its exponential's mean over ω ~ PG(b, 0) is e^{a ψ} / (1 + e^ψ)^b.

    Polson et al. (2013), theorem 1.
    """
    return logits * (successes - trials * 0.5) - weight * logits**2 * 0.5 - trials * math.log(2)


class WeightedBernoulli(GivenWeight, dist.Bernoulli):
    """Bernoulli(logits=ψ) given ω ~ PG(1, 0)."""

    def __init__(self, logits: Tensor, weight: Tensor, validate_args: bool | None = None) -> None:
        self.weight, logits = broadcast_all(weight, logits)
        super().__init__(logits=logits, validate_args=validate_args)

    @staticmethod
    def log_factor(arguments: Any, value: Any) -> Any:
        return log_factor(arguments.logits, arguments.weight, value, 1.0)


class WeightedBinomial(GivenWeight, dist.Binomial):
    """Binomial(n, logits=ψ) given ω ~ PG(n, 0)."""

    def __init__(self, total_count: Any, logits: Tensor, weight: Tensor, validate_args: bool | None = None) -> None:
        self.weight, logits = broadcast_all(weight, logits)
        super().__init__(total_count, logits=logits, validate_args=validate_args)

    @staticmethod
    def log_factor(arguments: Any, value: Any) -> Any:
        count = arguments.total_count
        ways = (count + 1.0).lgamma() - (value + 1.0).lgamma() - (count - value + 1.0).lgamma()
        return log_factor(arguments.logits, arguments.weight, value, count) + ways


class WeightedNegativeBinomial(GivenWeight, dist.NegativeBinomial):
    """NegativeBinomial(r, logits=ψ) given ω ~ PG(x + r, 0)."""

    def __init__(self, total_count: Any, logits: Tensor, weight: Tensor, validate_args: bool | None = None) -> None:
        self.weight, logits = broadcast_all(weight, logits)
        super().__init__(total_count, logits=logits, validate_args=validate_args)

    @staticmethod
    def log_factor(arguments: Any, value: Any) -> Any:
        count = arguments.total_count
        return log_factor(arguments.logits, arguments.weight, value, value + count) + _log_ways(count, value)


class BoundedNegativeBinomial(GivenWeight, dist.NegativeBinomial):
    """NegativeBinomial(r, logits=ψ) of a latent r by a bound: that of log σ(−ψ) is taken x + r times.

    Args:
        total_count: r.
        logits: ψ.
        weight: E ω, of :class:`~pyro_latent.distributions.LogisticBound`.
        divergence: its other number.
    """

    is_bound = True

    def __init__(
        self, total_count: Any, logits: Tensor, weight: Tensor, divergence: Tensor, validate_args: bool | None = None
    ) -> None:
        self.weight, self.divergence, logits = broadcast_all(weight, divergence, logits)
        super().__init__(total_count, logits=logits, validate_args=validate_args)

    @staticmethod
    def log_factor(arguments: Any, value: Any) -> Any:
        logits, times = arguments.logits, value + arguments.total_count
        bounded = arguments.weight * logits**2 * 0.5 + arguments.divergence + math.log(2)
        return _log_ways(arguments.total_count, value) + logits * (value - times * 0.5) - times * bounded


def _log_ways(count: Any, value: Any) -> Any:
    """log Γ(x + r) − log Γ(r) − log x!, of numbers or of expressions."""
    rising = log_rising(count, value) if isinstance(count, Tensor) else count.log_rising(value)
    return rising - (value + 1.0).lgamma()


class PolyaGammaReparam(ConjugateReparam):
    """A Bernoulli, Binomial or NegativeBinomial by ``logits``, or whose ``probs`` are the sigmoid of latents, given a
    Pólya-gamma weight of their square.

    The ELBO at the weight's optimum is the bound of Jaakkola and Jordan (2000). A negative binomial without data is
    left as it is: the weight's count is x + r. Where r is latent, there is the bound at once.
    """

    densities = (dist.Bernoulli, dist.Binomial, dist.NegativeBinomial)
    suffixes = ("weight",)
    condition = " by `logits`, or by `probs` that are the sigmoid of latents; the last with data"
    form = "a normal factor of the logits, with a Pólya-gamma weight"
    source = "Polson, Scott and Windle (2013)"
    cost = (
        "exact; its optimum is the bound of Jaakkola and Jordan (2000), which stands for it where the count of a "
        "NegativeBinomial is latent"
    )

    def applies(self, site: Site) -> bool:
        if isinstance(site.fn, GivenWeight) or _logits(site.fn) is None:
            return False
        return not (site.is_latent and isinstance(site.fn, dist.NegativeBinomial))

    def augment(self, site: Site) -> Any:
        fn, logits = site.fn, _logits(site.fn)
        assert logits is not None
        if isinstance(fn, dist.Bernoulli):
            return WeightedBernoulli(logits, site.auxiliary("weight", PolyaGamma(torch.ones_like(logits))))
        count = torch.as_tensor(fn.total_count).to(logits).expand(fn.batch_shape)
        if isinstance(fn, dist.Binomial):
            return WeightedBinomial(count, logits, site.auxiliary("weight", PolyaGamma(count)))
        assert site.value is not None
        if isinstance(count, RandomTensor):
            place = site.auxiliary("weight", LogisticBound(torch.ones_like(logits)))
            return BoundedNegativeBinomial(count, logits, place[..., 0], place[..., 1])
        data = torch.nan_to_num(site.value).clamp(min=0)  # what is hidden may be anything
        weight = site.auxiliary("weight", PolyaGamma(count + data))
        return WeightedNegativeBinomial(count, logits, weight)


def _logits(fn: Any) -> Tensor | None:
    """The logits of a distribution, over its batch shape; None where it has probabilities."""
    found = fn.logits if "logits" in raw_arguments(fn) else inside(fn, torch.sigmoid)
    return None if found is None else found.expand(fn.batch_shape)
