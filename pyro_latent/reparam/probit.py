"""Probit likelihoods: given the weight of a positive normal they are quadratic in the predictor."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import broadcast_all

from ..distributions import PositiveNormal
from .base import ConjugateReparam, Site
from .weighted import GivenWeight, inside


class WeightedProbit(GivenWeight, dist.Bernoulli):
    """Bernoulli(Φ(f)) given u ~ PositiveNormal(0), which is |z| of Albert and Chib's z ~ Normal(f, 1)."""

    def __init__(self, predictor: Tensor, weight: Tensor, validate_args: bool | None = None) -> None:
        self.weight, self.predictor = broadcast_all(weight, predictor)
        super().__init__(probs=torch.special.ndtr(self.predictor), validate_args=validate_args)

    @staticmethod
    def log_factor(arguments: Any, value: Any) -> Any:
        """± f u − ½ f² − log 2."""
        predictor = arguments.predictor
        return (2.0 * value - 1.0) * predictor * arguments.weight - predictor**2 * 0.5 - math.log(2)


class ProbitReparam(ConjugateReparam):
    """A Bernoulli whose ``probs`` are Φ of a predictor, given a weight of the predictor, which is positive normal.

    Φ is known by its values, however it is written: Normal(0, 1).cdf(f), (1 + erf(f / √2)) / 2 or special.ndtr(f).
    """

    densities = (dist.Bernoulli,)
    suffixes = ("weight",)
    condition = " by `probs` that are Φ, the normal cdf, of latents; with data"
    form = "a normal factor of the predictor, with a truncated normal weight"
    source = "Albert and Chib (1993), §3.1"

    def applies(self, site: Site) -> bool:
        return not site.is_latent and inside(site.fn, torch.special.ndtr) is not None

    def augment(self, site: Site) -> Any:
        predictor = inside(site.fn, torch.special.ndtr)
        assert predictor is not None
        weight = site.auxiliary("weight", PositiveNormal(torch.zeros(site.fn.batch_shape).to(predictor)))
        return WeightedProbit(predictor, weight)
