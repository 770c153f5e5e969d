"""Priors that are a member of a conjugate family by another name."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch

from ..rules import raw_arguments
from .base import ConjugateReparam, Site


class RenamedReparam(ConjugateReparam):
    """A latent Exponential(r) is a Gamma(1, r), a Chi2(n) a Gamma(n / 2, 1/2), a Uniform(0, 1) a Beta(1, 1)."""

    densities = (dist.Exponential, dist.Chi2, dist.Uniform)
    condition = ", latent"
    form = "Gamma; Gamma; Beta, for Uniform(0, 1)"
    source = "Gelman et al. (2013), appendix A"

    def applies(self, site: Site) -> bool:
        if not site.is_latent:
            return False
        ends = raw_arguments(site.fn)
        constant = all(type(v) is not torch.Tensor or not v.requires_grad for v in ends.values())
        return not isinstance(site.fn, dist.Uniform) or (constant and _is_unit(ends))

    def augment(self, site: Site) -> Any:
        if isinstance(site.fn, dist.Exponential):
            return dist.Gamma(torch.ones_like(site.fn.rate), site.fn.rate)
        if isinstance(site.fn, dist.Chi2):
            half = 0.5 * site.fn.df
            return dist.Gamma(half, torch.full_like(half, 0.5))
        one = torch.ones_like(site.fn.low)
        return dist.Beta(one, one)


def _is_unit(ends: dict[str, Any]) -> bool:
    """Whether an interval is (0, 1)."""
    low, high = ends["low"], ends["high"]
    plain = type(low) is torch.Tensor and type(high) is torch.Tensor
    return plain and bool((low == 0).all()) and bool((high == 1).all())
