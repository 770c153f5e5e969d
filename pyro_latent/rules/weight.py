"""The laws of weights, by their densities relative to the one without a tilt."""

from typing import Any

from torch import Tensor

from ..distributions import InverseGaussian, LogisticBound, PolyaGamma, PositiveNormal, TruncatedNormal
from ..expressions import Expression
from .base import Arguments, register_rule


def _register(law: Any) -> None:
    def rule(arguments: Arguments, value: Expression) -> Expression:
        """η x − A(η), of known arguments."""
        if not all(a.is_constant for a in arguments.values()):
            what = f"{' or '.join(arguments)} of a {law.__name__} site"
            return Expression.opaque(value.shape, value.like, what, tuple(arguments.values()))

        def log_normalizer(*constants: Tensor) -> Tensor:
            found: Tensor = law(**dict(zip(arguments, constants, strict=True)), validate_args=False).log_normalizer
            return found

        natural = Expression.apply(law.natural_of, arguments["tilt"])
        return natural * value - Expression.apply(log_normalizer, *arguments.values())

    register_rule(law, rule)


for _law in (InverseGaussian, PolyaGamma, PositiveNormal, TruncatedNormal):
    _register(_law)


@register_rule(LogisticBound)
def logistic_bound(arguments: Arguments, value: Expression) -> Expression:
    """0 of known arguments: it is a point at its optimum, which the density that takes the bound says."""
    if not all(a.is_constant for a in arguments.values()):
        what = "count of a LogisticBound site"
        return Expression.opaque(value.shape[:-1], value.like, what, tuple(arguments.values()))
    return Expression.constant(value.like.new_zeros(value.shape[:-1]))
