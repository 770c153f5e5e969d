"""Zero-inflated counts: the gate becomes a site."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch

from ..rules import family_class, raw_arguments
from .base import ConjugateReparam, Site


class ZeroInflatedReparam(ConjugateReparam):
    """x ~ ZeroInflatedPoisson(λ, gate) is x ~ Poisson((1 − z) λ) with z ~ Bernoulli(gate)."""

    densities = (dist.ZeroInflatedDistribution,)
    suffixes = ("gate",)
    condition = " of a Poisson"
    form = "Poisson, whose rate a Bernoulli site sets to 0"
    source = "Lambert (1992)"

    def applies(self, site: Site) -> bool:
        return family_class(site.fn) is dist.ZeroInflatedPoisson or _base_class(site.fn) is dist.Poisson

    def augment(self, site: Site) -> Any:
        arguments = raw_arguments(site.fn) | vars(site.fn)
        rate = arguments["rate"] if "rate" in arguments else arguments["base_dist"].rate
        gate = {"logits": site.fn.gate_logits} if "gate_logits" in arguments else {"probs": site.fn.gate}
        closed = site.auxiliary("gate", dist.Bernoulli(**gate).expand(site.fn.batch_shape))
        return dist.Poisson(torch.where(closed > 0, torch.zeros(()).to(closed), rate), validate_args=False)


def _base_class(fn: Any) -> type:
    return family_class(getattr(fn, "base_dist", None))
