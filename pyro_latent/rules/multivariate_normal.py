"""The multivariate normal distribution, by precision, covariance or Cholesky factor."""

import math

import pyro.distributions as dist

from ..expressions import Expression
from .base import Arguments, register_rule


def precision_matrix(arguments: Arguments) -> Expression:
    """The precision matrix, whichever way it was given."""
    if arguments.precision_matrix is not None:
        return arguments.precision_matrix
    if arguments.covariance_matrix is not None:
        return arguments.covariance_matrix.inverse()
    return arguments["scale_tril"].gram().inverse()


@register_rule(dist.MultivariateNormal)
def multivariate_normal(arguments: Arguments, value: Expression) -> Expression:
    """½ (log |Λ| − D log 2π − (x − m)ᵀ Λ (x − m))."""
    precision = precision_matrix(arguments)
    quadratic = (value - arguments["loc"]).quadratic_form(precision)
    return 0.5 * (precision.log_det() - precision.shape[-1] * math.log(2 * math.pi) - quadratic)


@register_rule(dist.LowRankMultivariateNormal)
def low_rank_multivariate_normal(arguments: Arguments, value: Expression) -> Expression:
    """The multivariate normal of covariance W Wᵀ + diag(d)."""
    factor = arguments["cov_factor"]
    covariance = factor.matmul(factor.transpose(-1, -2)) + arguments["cov_diag"].diag_embed()
    return multivariate_normal(Arguments({"loc": arguments["loc"], "covariance_matrix": covariance}), value)
