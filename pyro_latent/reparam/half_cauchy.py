"""A half-Cauchy scale: the power −1/2 of a precision."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import PowerTransform

from .base import MovedReparam, Site


class HalfCauchyReparam(MovedReparam):
    """s ~ HalfCauchy(a) is s = λ^(−1/2) with λ ~ Gamma(1/2, r) and r ~ Gamma(1/2, a⁻²)."""

    densities = (dist.HalfCauchy,)
    condition = ", latent and not masked"
    suffixes = ("rate", "precision")
    form = "the power −1/2 of a Gamma precision, whose rate is a Gamma"
    source = "Wand et al. (2011), result 5"
    transform = PowerTransform(torch.tensor(-0.5))

    def augment(self, site: Site) -> Any:
        half = torch.full(site.fn.batch_shape, 0.5).to(site.fn.scale)
        rate = site.auxiliary("rate", dist.Gamma(half, site.fn.scale**-2.0))
        return dist.Gamma(half, rate)
