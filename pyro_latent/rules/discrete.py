"""Counts and choices: Bernoulli, Binomial, Categorical, Geometric, Multinomial, negative binomial and Poisson.

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
        if logits.exp().is_normalized:
            return logits
        return Expression.opaque(logits.shape, logits.like, "softmax of the logits", (logits,))
    probs = arguments.probs
    if probs.is_table:
        return Expression.apply(lambda t: (t / t.sum(-1, keepdim=True)).log(), probs, dims=(-1,))
    if probs.is_normalized:
        return probs.log()
    return Expression.opaque(
        probs.shape,
        probs.like,
        "division of probs by their sum",
        (probs,),
        "give probs a Dirichlet site, unchanged, or the weights of broken sticks",
    )


@register_rule(dist.Categorical)
def categorical(arguments: Arguments, value: Expression) -> Expression:
    """log p_x."""
    return log_probs(arguments).take_last(value)


@register_rule(dist.OneHotCategorical)
def one_hot_categorical(arguments: Arguments, value: Expression) -> Expression:
    """Σ_k x_k log p_k."""
    return value.weigh(log_probs(arguments)).sum(-1)


@register_rule(dist.Multinomial)
def multinomial(arguments: Arguments, value: Expression) -> Expression:
    """log n! − Σ_k log x_k! + Σ_k x_k log p_k."""
    ways = (value.sum(-1) + 1.0).lgamma() - (value + 1.0).lgamma().sum(-1)
    return ways + value.weigh(log_probs(arguments)).sum(-1)


def log_odds(arguments: Arguments, hint: str) -> tuple[Expression, Expression]:
    """log p and log(1 − p) of probabilities, or of logits that are known, or are log p − log(1 − p)."""
    if arguments.probs is not None:
        return arguments.probs.log(), arguments.probs.log1m()
    logits = arguments["logits"]
    if logits.is_table:
        logsigmoid = torch.nn.functional.logsigmoid
        return Expression.apply(logsigmoid, logits), Expression.apply(logsigmoid, logits * -1.0)
    for odds in (logits, -logits):
        probs = odds.of_terms([t for t in odds.terms if all(f.function != "log1m" for f in t.factors)]).exp()
        if not probs.opacity and (odds - probs.log() + probs.log1m() + 1.0).is_one:
            pair = probs.log(), probs.log1m()
            return pair if odds is logits else pair[::-1]
    opaque = Expression.opaque(logits.shape, logits.like, "sigmoid of the logits", (logits,), hint)
    return opaque, opaque


@register_rule(dist.Bernoulli)
def bernoulli(arguments: Arguments, value: Expression) -> Expression:
    """x log p + (1 − x) log(1 − p)."""
    log_p, log_q = log_odds(arguments, "give probs a Beta site: Bernoulli(probs=p)")
    return value.weigh(log_p) + (1.0 - value).weigh(log_q)


@register_rule(dist.Geometric)
def geometric(arguments: Arguments, value: Expression) -> Expression:
    """log p + x log(1 − p)."""
    log_p, log_q = log_odds(arguments, "give probs a Beta site: Geometric(probs=p)")
    return log_p + value.weigh(log_q)


@register_rule(dist.Binomial)
def binomial(arguments: Arguments, value: Expression) -> Expression:
    """log C(n, x) + x log p + (n − x) log(1 − p)."""
    count = arguments["total_count"]
    ways = (count + 1.0).lgamma() - (value + 1.0).lgamma() - (count - value + 1.0).lgamma()
    log_p, log_q = log_odds(arguments, "give probs a Beta site")
    return ways + value.weigh(log_p) + (count - value).weigh(log_q)


@register_rule(dist.NegativeBinomial)
def negative_binomial(arguments: Arguments, value: Expression) -> Expression:
    """log Γ(n + x) − log Γ(n) − log x! + x log p + n log(1 − p)."""
    count = arguments["total_count"]
    ways = count.log_rising(value) - (value + 1.0).lgamma()
    log_p, log_q = log_odds(arguments, "give probs a Beta site")
    return ways + value.weigh(log_p) + count.weigh(log_q)


@register_rule(dist.Poisson)
def poisson(arguments: Arguments, value: Expression) -> Expression:
    """x log r − r − log x!."""
    rate = arguments["rate"]
    return value.weigh(rate.log()) - rate - (value + 1.0).lgamma()
