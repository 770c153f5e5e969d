"""Counts and choices: Bernoulli, Binomial, Categorical, Multinomial and Poisson.

Their values are data or enumerated, so they enter as constants; the probabilities and rates may be random.
"""

import pyro.distributions as dist
import torch

from ..expressions import Expression
from .base import Arguments, register_rule


def log_probs(arguments: Arguments) -> Expression:
    """log of the normalised probabilities, over the last dimension.

    The division by their sum is dropped where the sum is provably one: for a latent simplex such as a Dirichlet site.
    """
    if arguments.probs is None:
        logits = arguments["logits"]
        if logits.is_table:
            return Expression.apply(lambda t: torch.log_softmax(t, -1), logits, dims=(-1,))
        return Expression.opaque(logits.shape, logits.like, "softmax of the logits", (logits,))
    probs = arguments.probs
    if probs.is_table:
        return Expression.apply(lambda t: (t / t.sum(-1, keepdim=True)).log(), probs, dims=(-1,))
    if probs.is_normalized:
        return probs.log()
    return Expression.opaque(
        probs.shape, probs.like, "division of probs by their sum", (probs,), "give probs a Dirichlet site, unchanged"
    )


@register_rule(dist.Categorical)
def categorical(arguments: Arguments, value: Expression) -> Expression:
    """log p_x."""
    return log_probs(arguments).take_last(value)


@register_rule(dist.OneHotCategorical)
def one_hot_categorical(arguments: Arguments, value: Expression) -> Expression:
    """Σ_k x_k log p_k."""
    return value.times_log(log_probs(arguments)).sum(-1)


@register_rule(dist.Multinomial)
def multinomial(arguments: Arguments, value: Expression) -> Expression:
    """log n! − Σ_k log x_k! + Σ_k x_k log p_k."""
    ways = (value.sum(-1) + 1.0).lgamma() - (value + 1.0).lgamma().sum(-1)
    return ways + value.times_log(log_probs(arguments)).sum(-1)


@register_rule(dist.Bernoulli)
def bernoulli(arguments: Arguments, value: Expression) -> Expression:
    """x log p + (1 − x) log(1 − p)."""
    if arguments.probs is not None:
        probs = arguments.probs
        return value.xlogy(probs) + (1.0 - value).xlogy(1.0 - probs)
    logits = arguments["logits"]
    if not logits.is_table:
        hint = "give probs a Beta site: Bernoulli(probs=p)"
        return Expression.opaque(logits.shape, logits.like, "sigmoid of the logits", (logits,), hint)
    return value * logits - Expression.apply(torch.nn.functional.softplus, logits)


@register_rule(dist.Binomial)
def binomial(arguments: Arguments, value: Expression) -> Expression:
    """log C(n, x) + x log p + (n − x) log(1 − p)."""
    count = arguments["total_count"]
    ways = (count + 1.0).lgamma() - (value + 1.0).lgamma() - (count - value + 1.0).lgamma()
    if arguments.probs is not None:
        return ways + value.xlogy(arguments.probs) + (count - value).xlogy(1.0 - arguments.probs)
    logits = arguments["logits"]
    if not logits.is_table:
        return Expression.opaque(
            logits.shape, logits.like, "sigmoid of the logits", (logits,), "give probs a Beta site"
        )
    return ways + value * logits - count * Expression.apply(torch.nn.functional.softplus, logits)


@register_rule(dist.Poisson)
def poisson(arguments: Arguments, value: Expression) -> Expression:
    """x log r − r − log x!."""
    rate = arguments["rate"]
    return value.xlogy(rate) - rate - (value + 1.0).lgamma()
