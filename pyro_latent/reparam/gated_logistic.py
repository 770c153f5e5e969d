"""Logistic likelihoods behind a gate: a discrete latent that lets a success through, or decides by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import broadcast_all

from ..distributions import LogisticBound
from ..expressions import Expression
from ..rules import raw_arguments
from .base import ConjugateReparam, Site
from .by_values import function_of_probs, over_choices, values_of
from .weighted import GivenWeight


def log_factor(arguments: Any, value: Any, trials: Any) -> Any:
    """x log σ(s ψ) + (n − x) log σ(−s ψ) by its bound where the sign s is not 0, and with the level as the probability
    where it is.
    """
    sign, logits = arguments.sign, arguments.logit
    is_open = sign * sign
    bounded = arguments.weight * logits**2 * 0.5 + arguments.divergence + trials * math.log(2)
    return logits * (sign * (value - trials * 0.5)) - bounded * is_open + _decided(sign, arguments.level, value, trials)


def _decided(sign: Any, level: Any, value: Any, trials: Any) -> Any:
    """The log density where the level is the probability, and 0 elsewhere."""

    def decided(sign: Tensor, level: Tensor, value: Tensor, trials: Any = trials) -> Tensor:
        found = torch.special.xlogy(value, level) + torch.special.xlog1py(trials - value, -level)
        return torch.where(sign == 0, found, torch.zeros_like(found))

    if not isinstance(value, Expression):
        return decided(sign, level, value)
    return Expression.apply(decided, sign, level, value, *((trials,) if isinstance(trials, Expression) else ()))


class GatedBernoulli(GivenWeight, dist.Bernoulli):
    """Bernoulli(σ(s ψ)) by its bound where s is not 0, and Bernoulli of the level where it is.

    Args:
        logit: ψ.
        sign: s, one of −1, 0 and 1.
        level: a probability.
        weight: E ω, of :class:`~pyro_latent.distributions.LogisticBound`.
        divergence: its other number.
    """

    is_bound = True

    def __init__(
        self,
        logit: Tensor,
        sign: Tensor,
        level: Tensor,
        weight: Tensor,
        divergence: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        probs = _keep(self, logit, sign, level, weight, divergence)
        super().__init__(probs=probs, validate_args=validate_args)

    @staticmethod
    def log_factor(arguments: object, value: object) -> Any:
        return log_factor(arguments, value, 1.0)


class GatedBinomial(GivenWeight, dist.Binomial):
    """The same of several trials, which one gate lets through."""

    is_bound = True

    def __init__(
        self,
        total_count: Any,
        logit: Tensor,
        sign: Tensor,
        level: Tensor,
        weight: Tensor,
        divergence: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        probs = _keep(self, logit, sign, level, weight, divergence)
        super().__init__(total_count, probs=probs, validate_args=validate_args)

    @staticmethod
    def log_factor(arguments: Any, value: Any) -> Any:
        count = arguments.total_count
        ways = (count + 1.0).lgamma() - (value + 1.0).lgamma() - (count - value + 1.0).lgamma()
        return log_factor(arguments, value, count) + ways


def _keep(given: Any, *tensors: Tensor) -> Tensor:
    """Keep the logit, the sign, the level and the bound's two numbers, broadcast, and give the probabilities."""
    logit, sign, level, given.weight, given.divergence = broadcast_all(*tensors)
    given.logit, given.sign, given.level = logit, sign, level
    return torch.where(sign == 0, level, torch.sigmoid(sign * logit))


class GatedLogisticReparam(ConjugateReparam):
    """A Bernoulli or Binomial whose ``probs`` are the sigmoid of latents where a discrete latent says so, and known
    where it does not: ``z * sigmoid(f)``, ``torch.where(z > 0, sigmoid(f), 0.1)`` or ``1 - z * sigmoid(f)``.

    Where z is open it has the bound of Jaakkola and Jordan (2000) at c² = E[z f²] / E z, which is weighted by E z: it
    is that of the sites whose gate is known to be open, and nothing of those that are known to be closed.
    """

    densities = (dist.Bernoulli, dist.Binomial)
    suffixes = ("bound",)
    condition = (
        " by `probs` that are the sigmoid of latents where a discrete latent says so, and known elsewhere, as "
        "`z * sigmoid(f)`"
    )
    form = "a normal factor of the logits where the gate is open"
    source = "Jaakkola and Jordan (2000)"
    cost = "a bound, exact where the gate is closed"

    def applies(self, site: Site) -> bool:
        return not isinstance(site.fn, GivenWeight) and _cases(site.fn) is not None

    def augment(self, site: Site) -> Any:
        fn, found = site.fn, _cases(site.fn)
        assert found is not None
        logit, sign, level = (t.expand(fn.batch_shape) for t in (found.logit, found.sign, found.level))
        one = torch.ones_like(logit)
        if isinstance(fn, dist.Bernoulli):
            return GatedBernoulli(logit, sign, level, *_bound(site, one))
        count = torch.as_tensor(fn.total_count).to(one).expand(fn.batch_shape)
        return GatedBinomial(count, logit, sign, level, *_bound(site, count))


def _bound(site: Site, count: Tensor) -> tuple[Tensor, Tensor]:
    place = site.auxiliary("bound", LogisticBound(count))
    return place[..., 0], place[..., 1]


@dataclass(frozen=True)
class _Cases:
    """By value of the discrete latents, whether a probability is σ of the logit, of its negative, or a level."""

    logit: Tensor
    sign: Tensor
    level: Tensor


def _cases(fn: object) -> _Cases | None:
    """What the recorded ``probs`` are for each value of discrete latents, known by their values; None where they are
    something else for one of them.
    """
    of = function_of_probs(fn)
    if of is None or not all(t.expression.is_table for t in of.beside):
        return None
    shape = raw_arguments(fn)["probs"].shape
    found = []
    for at_places in values_of(of, shape):
        case = None if at_places is None else _case(*at_places)
        if case is None:
            return None
        found.append(case)
    signs, levels = (torch.stack(each).to(of.argument.dtype) for each in zip(*found, strict=True))
    if not bool(signs.any()):
        return None
    return _Cases(of.argument, *(over_choices(t, of, shape) for t in (signs, levels)))


def _case(logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor] | None:
    """The sign and the level of each element, by its values at some logits, both ``[places] + shape``; None where one
    is neither.
    """
    error = 4 * torch.finfo(values.dtype).eps
    up, down = (((values - torch.sigmoid(s * logits)).abs() <= error).all(0) for s in (1, -1))
    level = values[0]
    is_level = (values == level).all(0) & (level >= 0) & (level <= 1)
    if not bool((up | down | is_level).all()):
        return None
    return up.double() - down.double(), torch.where(is_level, level.double(), 0.0)


__all__ = ["GatedBernoulli", "GatedBinomial", "GatedLogisticReparam"]
