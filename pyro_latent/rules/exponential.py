"""The exponential distribution: log rate − rate · x; the rate may be random."""

import pyro.distributions as dist

from ..expressions import Expression
from .base import Arguments, register_rule


@register_rule(dist.Exponential)
def exponential(arguments: Arguments, value: Expression) -> Expression:
    """log rate − rate · x."""
    rate = arguments["rate"]
    return rate.log() - rate * value
