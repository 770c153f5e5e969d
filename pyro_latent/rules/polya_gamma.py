"""The Pólya-gamma distribution, by its density relative to the one without a tilt."""

from ..distributions.polya_gamma import PolyaGamma, log_cosh
from ..expressions import Expression
from .base import Arguments, register_rule


@register_rule(PolyaGamma)
def polya_gamma(arguments: Arguments, value: Expression) -> Expression:
    """b log cosh(c / 2) − ½ c² x, for a known count b and tilt c."""
    count, tilt = arguments["count"], arguments["tilt"]
    if not (count.is_constant and tilt.is_constant):
        return Expression.opaque(value.shape, value.like, "the count or tilt of a Pólya-gamma site", (count, tilt))
    return count * Expression.apply(lambda c: log_cosh(c / 2), tilt) - 0.5 * tilt**2 * value


__all__ = ["polya_gamma"]
