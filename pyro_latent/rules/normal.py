"""The normal distribution: its log density is a polynomial in the location and the precision, and their logarithm."""

import math

import pyro.distributions as dist

from ..expressions import Expression
from .base import Arguments, register_rule


@register_rule(dist.Normal)
def normal(arguments: Arguments, value: Expression) -> Expression:
    """½ (log λ − log 2π − λ (x − m)²), with precision λ = scale⁻²."""
    precision, log_precision = arguments["scale"] ** -2.0, -2.0 * arguments["scale"].log()
    return 0.5 * (log_precision - math.log(2 * math.pi) - precision * (value - arguments["loc"]) ** 2)
