"""Student-t: a normal whose precision is a Gamma."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist

from .base import ConjugateReparam, Site


class StudentTReparam(ConjugateReparam):
    """x ~ StudentT(ν, m, s) is x ~ Normal(m, s γ^(−1/2)) with γ ~ Gamma(ν / 2, ν / 2)."""

    densities = (dist.StudentT,)
    suffixes = ("gamma",)
    form = "Normal with a Gamma weight of its precision"
    source = "Bishop (2006), §2.3.7"

    def augment(self, site: Site) -> Any:
        half = 0.5 * site.fn.df
        gamma = site.auxiliary("gamma", dist.Gamma(half, half))
        return dist.Normal(site.fn.loc, site.fn.scale * gamma.rsqrt())
