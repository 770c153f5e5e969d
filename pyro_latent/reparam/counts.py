"""Counts of a mixture: the rate or the probabilities that they integrate out become sites."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch

from ..errors import NotConjugateError
from .base import ConjugateReparam, Site


class GammaPoissonReparam(ConjugateReparam):
    """x ~ GammaPoisson(a, b) is x ~ Poisson(λ) with λ ~ Gamma(a, b)."""

    densities = (dist.GammaPoisson,)
    suffixes = ("rate",)
    form = "Poisson with a Gamma rate"
    source = "Gelman et al. (2013), §2.6"

    def augment(self, site: Site) -> Any:
        return dist.Poisson(site.auxiliary("rate", dist.Gamma(site.fn.concentration, site.fn.rate)))


class BetaBinomialReparam(ConjugateReparam):
    """x ~ BetaBinomial(a, b, n) is x ~ Binomial(n, p) with p ~ Beta(a, b)."""

    densities = (dist.BetaBinomial,)
    suffixes = ("probs",)
    form = "Binomial with a Beta probability"
    source = "Gelman et al. (2013), §5.3"

    def augment(self, site: Site) -> Any:
        probs = site.auxiliary("probs", dist.Beta(site.fn.concentration1, site.fn.concentration0))
        return dist.Binomial(site.fn.total_count, probs)


class DirichletMultinomialReparam(ConjugateReparam):
    """x ~ DirichletMultinomial(a, n) is x ~ Multinomial(n, p) with p ~ Dirichlet(a)."""

    densities = (dist.DirichletMultinomial,)
    suffixes = ("probs",)
    form = "Multinomial with Dirichlet probabilities"
    source = "Minka (2000), Estimating a Dirichlet distribution, §3"

    def augment(self, site: Site) -> Any:
        probs = site.auxiliary("probs", dist.Dirichlet(site.fn.concentration))
        return dist.Multinomial(_one_count(site), probs)


def _one_count(site: Site) -> int:
    """The number of trials; of data of several numbers, each of which the data says, the largest.

    Raises:
        NotConjugateError: if the numbers differ and there is no data.
    """
    counts = torch.as_tensor(site.fn.total_count)
    if site.is_latent and bool((counts != counts.flatten()[0]).any()):
        raise NotConjugateError(
            f"Expected one total_count at site {site.name!r}, which has no data; got several. Write a Multinomial site "
            "for each."
        )
    return int(counts.max())
