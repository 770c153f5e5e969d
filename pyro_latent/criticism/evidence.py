"""The evidence log p(x) in four ways, side by side: naive Monte Carlo, importance sampling, the ELBO, and exactly.

Naive Monte Carlo draws from the prior, and fails where the posterior is much narrower; importance sampling draws from a
guide; the ELBO is a bound. Where the guide is the exact posterior, p(x, z) / q(z) is the evidence at every z.

Source: ``docs/sources.md`` [2], "why plain Monte Carlo fails"; Vehtari et al. 2024 for the Pareto k̂ of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import check_count
from ..guide import AutoConjugate
from ..particles import LEAST_DRAWS, ParetoK, Target, Weights, seeded
from ..signatures import Model
from ..tables import text_table
from .draws import draw
from .importance import naive_monte_carlo


@dataclass(frozen=True)
class Estimate:
    """One number for the evidence, in nats.

    Attributes:
        way: how it was found.
        value, error: with its standard error, which is 0 where it is exact.
        k: Pareto k̂ of the weights behind it, if there are any.
    """

    way: str
    value: float
    error: float
    k: ParetoK | None = None


@dataclass(frozen=True)
class Evidence:
    """Estimates of one model's evidence.

    Attributes:
        naive: from draws of the prior.
        importance: from draws of the guide.
        elbo: the guide's bound; exact for an :class:`~pyro_latent.AutoConjugate`.
        exact: the evidence itself, if the guide is the exact posterior.
    """

    naive: Estimate
    importance: Estimate
    elbo: Estimate
    exact: Estimate | None

    @property
    def best(self) -> Estimate:
        """The exact one, else importance sampling where its k̂ allows, else the bound."""
        if self.exact is not None:
            return self.exact
        k = self.importance.k
        return self.importance if k is not None and k.k <= k.threshold else self.elbo

    def __str__(self) -> str:
        rows = [["evidence by", "nats", "±", "k̂"]]
        for e in (self.naive, self.importance, self.elbo, self.exact):
            if e is not None:
                rows.append([e.way, f"{e.value:.4f}", f"{e.error:.4f}", "" if e.k is None else str(e.k)])
        return text_table(rows)


def evidence(
    model: Model,
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 2000,
    seed: int = 0,
    **kwargs: Any,
) -> Evidence:
    """The evidence of a model by every way that there is.

    Args:
        model: a Pyro model with proper priors.
        guide: any guide with a density, fitted; the positional arguments after it are the model's.
        num_samples: the draws of each Monte Carlo estimate.
        seed: of the draws.
        kwargs: the model's keyword arguments.

    Raises:
        ModelError: if the guide's sites are not the model's, or it has no density.

    Example::

        print(evidence(model, guide, x))
    """
    num_samples = check_count("num_samples", num_samples, LEAST_DRAWS)
    with seeded(seed):
        prior = naive_monte_carlo(model, *args, num_samples=num_samples, **kwargs)
        drawn = Weights.of(draw(Target.of(model, args, kwargs), guide, num_samples))
    elbo = Estimate("ELBO (bound)", drawn.elbo, drawn.elbo_error)
    if isinstance(guide, AutoConjugate):
        elbo = Estimate("ELBO (bound, exact)", guide.elbo(*args, **kwargs), 0.0)
    return Evidence(
        naive=Estimate("naive Monte Carlo", prior.log_evidence, prior.standard_error, prior.k),
        importance=Estimate("importance sampling", drawn.log_evidence, drawn.standard_error, drawn.k),
        elbo=elbo,
        exact=Estimate("exact posterior", drawn.elbo, 0.0) if drawn.k.is_exact else None,
    )
