"""Poisson counts of a sum of rates: each summand has counts of its own."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist

from ..expressions import Expression, RandomTensor
from ..rules import Arguments, family_class, raw_arguments, register_rule
from .base import ConjugateReparam, Site


class PoissonOfSum(dist.Poisson):
    """Poisson(Σ_k r_k), whose counts of each summand are at their optimum."""


@register_rule(PoissonOfSum)
def poisson_of_sum(arguments: Arguments, value: Expression) -> Expression:
    """x log Σ_k r_k − Σ_k r_k − log x!, with the logarithm by its bound."""
    rate = arguments["rate"]
    return value.weigh(rate.log_of_sum()) - rate - (value + 1.0).lgamma()


class SumOfRatesReparam(ConjugateReparam):
    """x ~ Poisson(Σ_k r_k) is x = Σ_k z_k with z_k ~ Poisson(r_k), which are multinomial given x.

    Their optimum is a function of the rates, E z_k = x π_k with π_k ∝ exp(E log r_k), and is put in their place: they
    are no sites of the recording, and take no memory.
    """

    densities = (dist.Poisson,)
    suffixes = ("counts",)
    condition = " of a sum of products of latents, with data"
    form = "counts of each summand, multinomial given their sum"
    source = "Cemgil (2009); Gopalan, Hofman and Blei (2015)"

    def applies(self, site: Site) -> bool:
        rate = raw_arguments(site.fn).get("rate")
        known = site.is_latent or issubclass(family_class(site.fn), PoissonOfSum)
        return not known and isinstance(rate, RandomTensor) and rate.expression.sums_products

    def augment(self, site: Site) -> Any:
        return PoissonOfSum(raw_arguments(site.fn)["rate"])
