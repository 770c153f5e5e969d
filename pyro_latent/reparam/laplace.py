"""Laplace: given an inverse Gaussian weight it is quadratic in the offset."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import broadcast_all

from ..distributions import InverseGaussian
from ..families import FAMILIES, register_family
from .base import ConjugateReparam, Site
from .weighted import GivenWeight


class WeightedLaplace(GivenWeight, dist.Laplace):
    """Laplace(m, s) given λ ~ InverseGaussian(1), whose mean is 1."""

    def __init__(self, loc: Tensor, scale: Tensor, weight: Tensor, validate_args: bool | None = None) -> None:
        self.weight, loc, scale = broadcast_all(weight, loc, scale)
        super().__init__(loc, scale, validate_args=validate_args)

    @staticmethod
    def log_factor(arguments: Any, value: Any) -> Any:
        """−log 2 s − ½ λ ((x − m)² / s² − 1) − 1; the tilt of the prior is undone by the last two."""
        square = (value - arguments.loc) ** 2 * arguments.scale**-2.0
        return arguments.weight * (1.0 - square) * 0.5 - (2.0 * arguments.scale).log() - 1.0


register_family(WeightedLaplace, FAMILIES[dist.Normal])


class LaplaceReparam(ConjugateReparam):
    """A Laplace given an inverse Gaussian weight of its squared offset, which is a normal's.

    At the optimum of the weight E|x − m| has become √E(x − m)². Data at a location that is known are left as they are:
    there the weight is infinite.
    """

    densities = (dist.Laplace,)
    suffixes = ("weight",)
    form = "a normal factor, with an inverse Gaussian weight of its precision"
    source = "Park and Casella (2008), §2"

    def applies(self, site: Site) -> bool:
        known = site.value is not None and type(site.fn.loc) is Tensor
        at = known and bool((site.value == site.fn.loc).any())
        return not (at or isinstance(site.fn, GivenWeight))

    def augment(self, site: Site) -> Any:
        weight = site.auxiliary("weight", InverseGaussian(torch.ones_like(site.fn.scale)))
        return WeightedLaplace(site.fn.loc, site.fn.scale, weight)
