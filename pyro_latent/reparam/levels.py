"""Logistic functions between two levels: what guesses, lapses and is not seen decides without the logits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..expressions import FunctionOf, RandomTensor
from ..rules import raw_arguments
from .base import ConjugateReparam, Site
from .by_values import choices_of, function_of_probs, over_choices, values_of
from .weighted import GivenWeight

#: How far c + (1 − c) may be from 1.
_ROUNDING = 4 * torch.finfo(torch.float64).eps


class LevelsReparam(ConjugateReparam):
    """x ~ Bernoulli(a + (b − a) σ(f)) is Bernoulli(σ(f)) but where a gate says success, with probability a, or failure,
    with probability 1 − b.

    Both levels are known, or given discrete latents; or one of them is 0 or 1, and the other one is any probability of
    latents, as in ``p * sigmoid(f)`` and ``c + (1 - c) * sigmoid(f)``, or another logistic function.
    """

    densities = (dist.Bernoulli,)
    suffixes = ("gate",)
    condition = (
        " by `probs` that are the sigmoid of latents between two levels, as `0.05 + 0.9 * sigmoid(f)`, "
        "`p * sigmoid(f)`, `c + (1 - c) * sigmoid(f)` or `sigmoid(f) * sigmoid(g)`"
    )
    form = "Bernoulli by the sigmoid, or success or failure where a discrete site says so"
    source = "Béguin and Glas (2001)"

    def applies(self, site: Site) -> bool:
        return not isinstance(site.fn, GivenWeight) and _levels(site.fn) is not None

    def names(self, site: Site) -> list[str]:
        found = _levels(site.fn)
        return [] if found is None or (found.low is None and found.high is None) else super().names(site)

    def augment(self, site: Site) -> Any:
        found = _levels(site.fn)
        assert found is not None
        chance, shape = torch.sigmoid(found.logit), site.fn.batch_shape
        if found.low is None and found.high is None:
            return dist.Bernoulli(chance)
        if found.low is None:
            return dist.Bernoulli(site.auxiliary("gate", dist.Bernoulli(found.high).expand(shape)) * chance)
        if found.high is None:
            gate = site.auxiliary("gate", dist.Bernoulli(found.low).expand(shape))
            return dist.Bernoulli(gate + (1.0 - gate) * chance)
        shares = torch.stack([1 - found.high, found.high - found.low, found.low], -1).clamp(min=0)
        gate = site.auxiliary("gate", dist.Categorical(shares).expand(shape))
        return dist.Bernoulli((gate == 2) + (gate == 1) * chance)


class _Levels(NamedTuple):
    """A probability a + (b − a) σ(ψ): ψ, and the levels a and b; None is 0 of a, and 1 of b."""

    logit: Tensor
    low: Tensor | None
    high: Tensor | None


def _levels(fn: object) -> _Levels | None:
    """The levels that the recorded ``probs`` are between, known by their values; None where they are something else."""
    of = function_of_probs(fn)
    if of is None:
        return None
    ends, shape = [], raw_arguments(fn)["probs"].shape
    for at_places in values_of(of, shape):
        if at_places is None or not _is_between(*at_places):
            return None
        ends.append(at_places[1][[0, -1]])
    numbers = torch.stack(ends, 1)  # [2, combinations × draws] + shape
    places = [torch.full(of.argument.shape, end).to(of.argument._placeholder) for end in (-torch.inf, torch.inf)]
    levels = [of.function(place, *of.beside) for place in places]
    if any(isinstance(v, RandomTensor) and v.expression.opacity and v.function_of is None for v in levels):
        return None
    known = all(t.expression.is_table for t in of.beside)
    for sign, low, high in ((1.0, 0, 1), (-1.0, 1, 0)):
        if not bool((numbers[low] <= numbers[high]).all() and (numbers[low] < numbers[high]).any()):
            continue
        is_zero, is_one = numbers[low] == 0, numbers[high] >= 1 - _ROUNDING
        if known or bool(is_zero.all()) or bool(is_one.all()):
            above = None if bool(is_one.all()) else _at_most_one(levels[high], numbers[high], of)
            below = None if bool(is_zero.all()) else _at_most_one(levels[low], numbers[low], of)
            return _Levels(of.argument * sign, below, above)
    return None


def _at_most_one(level: Tensor, numbers: Tensor, of: FunctionOf) -> Tensor:
    """A level, and 1 where it is that up to rounding, as c + (1 − c); ``numbers`` are its values by combination and
    draw.
    """
    combinations = math.prod(c.size for c in choices_of(of))
    always = (numbers >= 1 - _ROUNDING).reshape(combinations, -1, *numbers.shape[1:]).all(1)
    return torch.where(over_choices(always, of, numbers.shape[1:]), 1.0, level) if bool(always.any()) else level


def _is_between(logits: Tensor, values: Tensor) -> bool:
    """Whether values at some logits, both ``[places] + shape``, are σ between their first and their last."""
    low, high = values[0], values[-1]
    error = 8 * torch.finfo(values.dtype).eps
    inside = (torch.minimum(low, high) >= 0) & (torch.maximum(low, high) <= 1 + _ROUNDING)
    return bool(inside.all() and ((values - low - (high - low) * torch.sigmoid(logits)).abs() <= error).all())


__all__ = ["LevelsReparam"]
