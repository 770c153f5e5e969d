"""The Beta distribution, with fixed concentrations."""

import pyro.distributions as dist

from ..expressions import Expression
from .base import Arguments, register_rule


@register_rule(dist.Beta)
def beta(arguments: Arguments, value: Expression) -> Expression:
    """(a − 1) log x + (b − 1) log(1 − x) − log B(a, b)."""
    a, b = arguments["concentration1"], arguments["concentration0"]
    powers = (a - 1.0).xlogy(value) + (b - 1.0).xlogy(1.0 - value)
    return powers + (a + b).lgamma() - a.lgamma() - b.lgamma()
