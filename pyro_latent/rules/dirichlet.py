"""The Dirichlet distribution, with a fixed concentration."""

import pyro.distributions as dist

from ..expressions import Expression
from .base import Arguments, register_rule


@register_rule(dist.Dirichlet)
def dirichlet(arguments: Arguments, value: Expression) -> Expression:
    """Σ_k (a_k − 1) log x_k + log Γ(Σ a) − Σ_k log Γ(a_k)."""
    concentration = arguments["concentration"]
    return (concentration - 1.0).xlogy(value).sum(-1) - concentration.log_beta()
