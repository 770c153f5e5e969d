"""Normal distributions of data in which NaN stands for what is missing: Pyro's own count as nothing."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from ..errors import NotConjugateError
from ..expressions import Expression
from .base import Arguments, register_rule
from .multivariate_normal import multivariate_normal, precision_matrix
from .normal import normal

#: Distributions whose data may be NaN.
NAN_MASKED = (dist.NanMaskedNormal, dist.NanMaskedMultivariateNormal)


@register_rule(dist.NanMaskedNormal)
def nan_masked_normal(arguments: Arguments, value: Expression) -> Expression:
    """The normal density of each number, and 0 for NaN."""
    seen = _seen(value)
    return normal(arguments, value) if seen is None else normal(arguments, _filled(value, seen)) * _weight(seen, value)


@register_rule(dist.NanMaskedMultivariateNormal)
def nan_masked_multivariate_normal(arguments: Arguments, value: Expression) -> Expression:
    """The density of the numbers in each vector: ½ (log |Λ| − D log 2π − (x − m)ᵀ Λ (x − m)) of these D alone.

    Raises:
        NotConjugateError: if some elements of a vector are NaN, and the covariance is latent.
    """
    seen = _seen(value)
    if seen is None:
        return multivariate_normal(arguments, value)
    whole = seen.all(-1)
    if torch.equal(whole, seen.any(-1)):
        return multivariate_normal(arguments, _filled(value, seen)) * _weight(whole, value)
    known = precision_matrix(arguments)
    if not known.is_constant:
        raise NotConjugateError(
            "Expected vectors that are NaN as a whole, or not at all, where the covariance is latent; got some with "
            "other elements missing. Write NanMaskedNormal(loc, scale).to_event(1), if the elements are independent."
        )
    precision, log_det = _of_the_seen(torch.linalg.inv(known.value()), seen)
    quadratic = (_filled(value, seen) - arguments["loc"]).quadratic_form(Expression.constant(precision))
    return 0.5 * (Expression.constant(log_det - seen.sum(-1) * math.log(2 * math.pi)) - quadratic)


def _of_the_seen(covariance: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The precision matrix of the elements that are seen, with 0 at the others, and its log determinant."""
    both = seen.unsqueeze(-1) & seen.unsqueeze(-2)
    apart = torch.where(both, covariance, torch.eye(seen.shape[-1]).to(covariance))  # a block for each of the others
    factor = torch.linalg.cholesky(apart)
    return torch.cholesky_inverse(factor) * both, -2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _seen(value: Expression) -> Tensor | None:
    """Which elements are numbers; None where all are, as of a latent."""
    if not value.is_constant:
        return None
    found = value.value().isfinite()
    return None if bool(found.all()) else found


def _filled(value: Expression, seen: Tensor) -> Expression:
    return Expression.constant(torch.where(seen, value.value(), 0.0))


def _weight(seen: Tensor, value: Expression) -> Expression:
    return Expression.constant(seen.to(value.like.dtype))


__all__ = ["NAN_MASKED", "nan_masked_multivariate_normal", "nan_masked_normal"]
