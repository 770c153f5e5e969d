"""``pyro.factor``: the log factor itself."""

import pyro.distributions as dist

from ..expressions import Expression
from .base import Arguments, register_rule


@register_rule(dist.Unit)
def unit(arguments: Arguments, value: Expression) -> Expression:
    """The log factor."""
    return arguments["log_factor"]
