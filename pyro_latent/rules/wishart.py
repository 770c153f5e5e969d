"""The Wishart distribution, with fixed degrees of freedom; its scale may be a scaled latent matrix."""

import math

import pyro.distributions as dist
import torch

from ..expressions import Expression
from .base import Arguments, register_rule
from .multivariate_normal import precision_matrix


@register_rule(dist.Wishart)
def wishart(arguments: Arguments, value: Expression) -> Expression:
    """½ ((n − D − 1) log |X| − tr(V⁻¹ X) + n log |V⁻¹| − n D log 2) − log Γ_D(n / 2)."""
    df, inverse_scale = arguments["df"], precision_matrix(arguments)
    dim = inverse_scale.shape[-1]
    trace = (inverse_scale * value).sum((-1, -2))
    if not df.is_table:
        return Expression.opaque(df.shape, df.like, "multivariate log gamma of df", (df,))
    log_gamma = Expression.apply(lambda t: torch.mvlgamma(t / 2, dim), df)
    powers = (df - float(dim + 1)) * value.log_det() + df * inverse_scale.log_det()
    return 0.5 * (powers - trace - df * (dim * math.log(2))) - log_gamma
