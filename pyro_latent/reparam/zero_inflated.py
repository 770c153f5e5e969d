"""Zero-inflated counts: the gate becomes a site."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch

from ..rules import RandomDistribution, family_class, raw_arguments, unwrap
from .base import ConjugateReparam, Site

#: Distributions that are around counts by the arguments of these.
_COUNTS: dict[type, Any] = {
    dist.ZeroInflatedPoisson: dist.Poisson,
    dist.ZeroInflatedNegativeBinomial: dist.NegativeBinomial,
}
#: What may be inflated.
_KNOWN = (dist.Poisson, dist.NegativeBinomial, dist.Binomial, dist.Geometric, dist.GammaPoisson, dist.BetaBinomial)


class ZeroInflatedReparam(ConjugateReparam):
    """x ~ ZeroInflatedPoisson(λ, gate) is x ~ Poisson((1 − z) λ) with z ~ Bernoulli(gate); of other counts, such as a
    negative binomial, x has their law where z = 0, and is 0 where z = 1.
    """

    densities = (dist.ZeroInflatedDistribution,)
    suffixes = ("gate",)
    condition = " of a Poisson, negative binomial, binomial, geometric, `GammaPoisson` or `BetaBinomial`"
    form = "the counts, or 0 where a Bernoulli site says so"
    source = "Lambert (1992)"

    def applies(self, site: Site) -> bool:
        return issubclass(family_class(unwrap(_counts(site.fn))[0]), _KNOWN)

    def augment(self, site: Site) -> Any:
        given = raw_arguments(site.fn)
        gate = {"probs": given["gate"]} if "gate" in given else {"logits": given["gate_logits"]}
        closed = site.auxiliary("gate", dist.Bernoulli(**gate).expand(site.fn.batch_shape))
        zero, counts = torch.zeros(()).to(closed), _counts(site.fn)
        if family_class(counts) is dist.Poisson:
            rate = raw_arguments(counts)["rate"]
            return dist.Poisson(torch.where(closed > 0, zero, rate), validate_args=False)
        nothing = dist.Poisson(zero, validate_args=False).expand(site.fn.batch_shape)
        return dist.MaskedMixture(closed > 0, counts.expand(site.fn.batch_shape), nothing)


def _counts(fn: Any) -> Any:
    """The distribution of the counts where the gate is open."""
    given = raw_arguments(fn)
    if not isinstance(fn, RandomDistribution):
        return fn.base_dist
    if "base_dist" in given:
        return given["base_dist"]
    return _COUNTS[family_class(fn)](**{n: v for n, v in given.items() if n not in ("gate", "gate_logits")})
