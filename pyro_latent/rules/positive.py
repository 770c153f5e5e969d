"""Distributions of positive numbers whose log density is linear in a rate, a precision, or its logarithm."""

import math

import pyro.distributions as dist
import torch

from ..expressions import Expression
from .base import Arguments, register_rule
from .gamma import gamma
from .normal import normal


@register_rule(dist.InverseGamma)
def inverse_gamma(arguments: Arguments, value: Expression) -> Expression:
    """a log b − log Γ(a) − (a + 1) log x − b / x."""
    concentration, rate = arguments["concentration"], arguments["rate"]
    powers = concentration * rate.log() - (concentration + 1.0) * value.log()
    return powers - concentration.lgamma() - rate * value**-1.0


@register_rule(dist.Chi2)
def chi2(arguments: Arguments, value: Expression) -> Expression:
    """The Gamma distribution of concentration ½ df and rate ½."""
    half = arguments["df"] * 0.5
    return gamma(Arguments({"concentration": half, "rate": half * 0.0 + 0.5}), value)


@register_rule(dist.HalfNormal)
def half_normal(arguments: Arguments, value: Expression) -> Expression:
    """Twice the normal distribution around zero."""
    scale = arguments["scale"]
    return math.log(2) + normal(Arguments({"loc": value * 0.0, "scale": scale}), value)


@register_rule(dist.Laplace)
def laplace(arguments: Arguments, value: Expression) -> Expression:
    """−log 2s − |x − m| / s, of a known location."""
    scale, offset = arguments["scale"], value - arguments["loc"]
    if not offset.is_table:
        hint = "a location that is no latent; Laplace(loc, 1 / rate) is conjugate in its rate"
        return Expression.opaque(offset.shape, offset.like, "absolute value", (offset,), hint)
    return -(2.0 * scale).log() - Expression.apply(torch.abs, offset) * scale**-1.0


@register_rule(dist.Pareto)
def pareto(arguments: Arguments, value: Expression) -> Expression:
    """log a + a log m − (a + 1) log x, above a known scale m."""
    alpha, scale = arguments["alpha"], arguments["scale"]
    if not scale.is_constant:
        return Expression.opaque(scale.shape, scale.like, "support", (scale,), "a scale that is no latent")
    return alpha.log() + alpha * scale.log() - (alpha + 1.0) * value.log()


@register_rule(dist.Weibull)
def weibull(arguments: Arguments, value: Expression) -> Expression:
    """log k − k log s + (k − 1) log x − (x / s)ᵏ, of a known shape k."""
    scale, shape = arguments["scale"], arguments["concentration"]
    powers = shape.log() - shape * scale.log() + (shape - 1.0) * value.log()
    return powers - value**shape * scale ** (-1.0 * shape)


@register_rule(dist.Uniform)
def uniform(arguments: Arguments, value: Expression) -> Expression:
    """−log (b − a), of known bounds."""
    width = arguments["high"] - arguments["low"]
    if not width.is_constant:
        return Expression.opaque(width.shape, width.like, "support", (width,), "bounds that are no latents")
    return -width.log()
