"""The Gamma distribution; its rate may be random, its concentration may not."""

import pyro.distributions as dist

from ..expressions import Expression
from .base import Arguments, register_rule


@register_rule(dist.Gamma)
def gamma(arguments: Arguments, value: Expression) -> Expression:
    """a log b − log Γ(a) + (a − 1) log x − b x."""
    concentration, rate = arguments["concentration"], arguments["rate"]
    powers = concentration * rate.log() + (concentration - 1.0).xlogy(value)
    return powers - concentration.lgamma() - rate * value
