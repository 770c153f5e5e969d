"""Logistic functions between two levels: what guesses, lapses and is not seen decides without the logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..expressions import RandomTensor
from ..rules import raw_arguments
from .base import ConjugateReparam, Site
from .by_values import function_of_probs, values_of
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

    def augment(self, site: Site) -> Any:
        found = _levels(site.fn)
        assert found is not None
        chance, shape = torch.sigmoid(found.logit), site.fn.batch_shape
        if found.low is None:
            assert found.high is not None
            return dist.Bernoulli(site.auxiliary("gate", dist.Bernoulli(found.high).expand(shape)) * chance)
        if found.high is None:
            gate = site.auxiliary("gate", dist.Bernoulli(found.low).expand(shape))
            return dist.Bernoulli(gate + (1.0 - gate) * chance)
        shares = torch.stack([1 - found.high, found.high - found.low, found.low], -1)
        gate = site.auxiliary("gate", dist.Categorical(shares).expand(shape))
        return dist.Bernoulli((gate == 2) + (gate == 1) * chance)


class _Levels(NamedTuple):
    """A probability a + (b − a) σ(ψ): ψ, and the levels a and b; None is 0 of a, and 1 of b."""

    logit: Tensor
    low: Tensor | None
    high: Tensor | None


def _levels(fn: Any) -> _Levels | None:
    """The levels that the recorded ``probs`` are between, known by their values; None where they are something else."""
    of = function_of_probs(fn)
    if of is None:
        return None
    ends = []
    for at_places in values_of(of, raw_arguments(fn)["probs"].shape):
        if at_places is None or not _is_between(*at_places):
            return None
        ends.append(at_places[1][[0, -1]])
    numbers = torch.stack(ends, 1)
    places = [torch.full(of.argument.shape, end).to(of.argument._placeholder) for end in (-torch.inf, torch.inf)]
    levels = [of.function(place, *of.beside) for place in places]
    if any(isinstance(v, RandomTensor) and v.expression.opacity and v.function_of is None for v in levels):
        return None
    known = all(t.expression.is_table for t in of.beside)
    for sign, low, high in ((1.0, 0, 1), (-1.0, 1, 0)):
        if not bool((numbers[low] <= numbers[high]).all()):
            continue
        is_zero, is_one = bool((numbers[low] == 0).all()), bool((numbers[high] >= 1 - _ROUNDING).all())
        if known or is_zero or is_one:
            return _Levels(
                of.argument * sign, None if is_zero else levels[low], None if is_one and not is_zero else levels[high]
            )
    return None


def _is_between(logits: Tensor, values: Tensor) -> bool:
    """Whether values at some logits, both ``[places] + shape``, are σ between their first and their last."""
    low, high = values[0], values[-1]
    error = 8 * torch.finfo(values.dtype).eps
    inside = (torch.minimum(low, high) >= 0) & (torch.maximum(low, high) <= 1 + _ROUNDING)
    return bool(inside.all() and ((values - low - (high - low) * torch.sigmoid(logits)).abs() <= error).all())


__all__ = ["LevelsReparam"]
