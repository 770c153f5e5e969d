"""Softmax likelihoods: below them is a product of logistic functions, each quadratic in the logits given its weight."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..distributions import PolyaGamma
from ..expressions import RandomTensor
from ..rules import expected_log_density, is_checked, raw_arguments
from .base import ConjugateReparam, Site
from .weighted import GivenWeight

#: How large the logits are at which a function is compared with a softmax: at the last one, a clamp of it is another.
_SIZES = (1.0, 7.0, 60.0)


class BoundedCategorical(GivenWeight, dist.Categorical):
    """Σ_{j≠y} log σ(d_j) ≤ log softmax(ψ)_y with ``differences`` d_j = ψ_y − ψ_j, given ω_j ~ PG(1, 0).

    The shape of ``logits`` is ``batch + [K]``, that of ``differences`` and ``weight`` is ``batch + [K − 1]``.
    """

    is_bound = True
    arg_constraints = dict.fromkeys(("logits", "differences", "weight"), constraints.real_vector)

    def __init__(self, logits: Tensor, differences: Tensor, weight: Tensor, validate_args: bool | None = None) -> None:
        self.differences, self.weight = differences, weight
        super().__init__(logits=logits, validate_args=validate_args)

    @staticmethod
    def log_factor(arguments: Any, value: Any) -> Any:
        differences = arguments.differences
        factors = (differences - arguments.weight * differences**2).sum(-1) * 0.5
        return factors - differences.shape[-1] * math.log(2)


class BoundedLabel(BoundedCategorical):
    """Σ_{j≠k} log σ(ψ_k − ψ_j) of a latent label k, given ω_p ~ PG(1, 0) for each pair p of ``differences`` of logits,
    which are, as ``weight``, of shape ``batch + [pairs]``; the pairs without k do not count.
    """

    @staticmethod
    def log_factor(arguments: Any, value: Any) -> Any:
        logits, size = arguments.logits, arguments.logits.shape[-1]
        linear = logits * size - logits.sum(-1).unsqueeze(-1)
        squares = arguments.weight * arguments.differences**2
        device = getattr(logits, "like", logits).device
        first, second = torch.triu_indices(size, size, 1, device=device)
        label = torch.arange(size, device=device).unsqueeze(-1)
        squares = (squares.unsqueeze(-2) * (1.0 * ((first == label) | (second == label)))).sum(-1)
        factors = (linear - squares) * 0.5 - (size - 1) * math.log(2)
        if isinstance(factors, Tensor):
            return factors.gather(-1, value.long().unsqueeze(-1)).squeeze(-1)
        return factors.take_last(value)


class BoundedMultinomial(GivenWeight, dist.Multinomial):
    """Σ_i n_i Σ_{j≠i} log σ(ψ_i − ψ_j), and the number of ways, given ω_p ~ PG(n_i + n_j, 0) for each pair p of
    ``differences``, which are, as ``weight``, of shape ``batch + [pairs]``.
    """

    is_bound = True
    arg_constraints = dict.fromkeys(("logits", "differences", "weight"), constraints.real_vector)

    def __init__(
        self,
        total_count: int,
        logits: Tensor,
        differences: Tensor,
        weight: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.differences, self.weight = differences, weight
        super().__init__(total_count, logits=logits, validate_args=validate_args)

    @staticmethod
    def log_factor(arguments: Any, value: Any) -> Any:
        size = arguments.logits.shape[-1]
        total = value.sum(-1)
        ways = (total + 1.0).lgamma() - (value + 1.0).lgamma().sum(-1)
        linear = ((value * size - total.unsqueeze(-1)) * arguments.logits).sum(-1)
        squares = (arguments.weight * arguments.differences**2).sum(-1)
        return ways + (linear - squares) * 0.5 - total * ((size - 1) * math.log(2))


class OneVersusEachReparam(ConjugateReparam):
    """A Categorical, or a Multinomial of data, by ``logits``, or by ``probs`` that are their softmax, in place of which
    is its one-versus-each bound, with a Pólya-gamma weight for each difference of two logits.

    The bound needs no point to be expanded at, is exact for two values, and does not change when a number is added to
    all logits. Titsias (2016), §2; each of its logistic functions has the bound of Jaakkola and Jordan (2000).
    A density that has a rule, as of logits that are constants, points, or functions of one scalar, stays as it is.
    """

    densities = (dist.Categorical, dist.Multinomial)
    suffixes = ("weight",)
    condition = " by `logits`, or by `probs` that are their softmax; the last with data"
    form = "normal factors of the differences of logits, each with a Pólya-gamma weight"
    source = "Titsias (2016), one-versus-each; Polson, Scott and Windle (2013)"
    cost = "a bound, exact for two values; its optimum is that of Jaakkola and Jordan (2000)"

    def applies(self, site: Site) -> bool:
        is_count = site.is_latent and isinstance(site.fn, dist.Multinomial)
        if is_count or isinstance(site.value, RandomTensor) or isinstance(site.fn, GivenWeight):
            return False
        logits = _logits(site.fn)
        if logits is None or logits.expression.opacity is not None:
            return False
        value = _inside(site, logits.shape[-1])
        return expected_log_density(site.fn, value, logits.expression.like).opacity is not None

    def augment(self, site: Site) -> Any:
        logits = _logits(site.fn)
        value = _inside(site, logits.shape[-1])
        logits = logits.expand(*site.fn.batch_shape, logits.shape[-1])
        size, one = logits.shape[-1], torch.ones((), dtype=logits.dtype, device=logits.device)
        first, second = torch.triu_indices(size, size, 1, device=logits.device)
        if site.is_latent:
            weight = site.auxiliary("weight", PolyaGamma(one.expand(*site.fn.batch_shape, len(first))).to_event(1))
            return BoundedLabel(logits, logits[..., first] - logits[..., second], weight)
        if isinstance(site.fn, dist.Categorical):
            label = value.long().unsqueeze(-1).expand(*site.fn.batch_shape, 1)
            others = torch.arange(size - 1, device=logits.device)
            others = others + (others >= label)
            differences = logits.gather(-1, label) - logits.gather(-1, others)
            weight = site.auxiliary("weight", PolyaGamma(one.expand(others.shape)).to_event(1))
            return BoundedCategorical(logits, differences, weight)
        count = value.to(one)
        both = (count[..., first] + count[..., second]).expand(*site.fn.batch_shape, len(first))
        weight = site.auxiliary("weight", PolyaGamma(both).to_event(1))
        differences = logits[..., first] - logits[..., second]
        total = raw_arguments(site.fn)["total_count"]
        return BoundedMultinomial(total, logits, differences, weight, validate_args=is_checked(site.fn))


def _logits(fn: object) -> Any:
    """The recorded logits of a distribution; None where they are known, or its probabilities are no softmax."""
    given = raw_arguments(fn)
    for name, function in (("logits", torch.log_softmax), ("probs", torch.softmax)):
        found = given.get(name)
        if not isinstance(found, RandomTensor):
            continue
        of = found.function_of
        if of is not None and not of.beside and _is_softmax(of.argument, of.function, function, found.shape):
            return of.argument.reshape(found.shape)
        return found if name == "logits" else None
    return None


def _is_softmax(like: Tensor, function: Any, softmax: Any, shape: torch.Size) -> bool:
    """Whether a function of a tensor is its softmax, or the logarithm of that, of a shape, known by its values."""
    if shape.numel() != like.numel() or shape[-1:] != like.shape[-1:]:
        return False
    count = torch.arange(like.numel(), dtype=torch.float64, device=like.device)
    for size in _SIZES:
        places = size * (1.7 * count + size).sin().reshape(like.shape)
        value, expected = function(places), softmax(places, -1).reshape(shape)
        if not torch.allclose(value.double(), expected, rtol=1e-9, atol=0.0):
            return False
    return True


def _inside(site: Site, size: int) -> Tensor:
    """The data of a site, with labels below ``size`` and counts from 0, whatever is hidden: another check names it. Of
    a latent site they are labels of 0.
    """
    if site.value is None:
        return torch.zeros(site.fn.batch_shape, dtype=torch.long)
    value = torch.nan_to_num(site.value).clamp(min=0)
    return value.clamp(max=size - 1) if isinstance(site.fn, dist.Categorical) else value
