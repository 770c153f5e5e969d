"""Ordered probit likelihoods: given a truncated normal weight they are quadratic in the predictor."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..distributions import TruncatedNormal
from ..expressions import Expression, RandomTensor
from ..rules import raw_arguments
from .base import ConjugateReparam, Site
from .weighted import SLOPES, GivenWeight

#: How large the places are at which a function is compared with differences of normal cdfs.
_SIZES = (0.3, 2.0, 9.0)


class WeightedOrderedProbit(GivenWeight, dist.Categorical):
    """Categorical whose probabilities are Φ(c_k − f) − Φ(c_{k−1} − f), given u ~ TruncatedNormal(c_{y−1}, c_y).

    u is Albert and Chib's z. ``log_mass`` is log (Φ(c_y) − Φ(c_{y−1})), of batch shape as ``predictor`` and ``weight``.
    """

    arg_constraints = {"probs": constraints.simplex}
    arg_constraints |= dict.fromkeys(("predictor", "weight", "log_mass"), constraints.real)

    def __init__(
        self, probs: Tensor, predictor: Tensor, weight: Tensor, log_mass: Tensor, validate_args: bool | None = None
    ) -> None:
        self.predictor, self.weight, self.log_mass = predictor, weight, log_mass
        super().__init__(probs=probs, validate_args=validate_args)

    @staticmethod
    def log_factor(arguments: Any, value: Any) -> Any:
        """f u − ½ f² + log (Φ(c_y) − Φ(c_{y−1}))."""
        predictor = arguments.predictor
        return predictor * arguments.weight - predictor**2 * 0.5 + arguments.log_mass


class OrderedProbitReparam(ConjugateReparam):
    """A Categorical of data whose ``probs`` are the differences of Φ at known cutpoints minus a predictor, given a
    normal weight on the interval of the datum.

    They are known by their values, of cumulative probabilities ``Normal(0, 1).cdf(cutpoints - f.unsqueeze(-1))`` that
    are computed once, and padded by 0 and 1.
    """

    densities = (dist.Categorical,)
    suffixes = ("weight",)
    condition = " by `probs` that are differences of Φ at known cutpoints; with data"
    form = "a normal factor of the predictor, with a truncated normal weight"
    source = "Albert and Chib (1993), §4"

    def applies(self, site: Site) -> bool:
        known = site.is_latent or isinstance(site.value, RandomTensor) or isinstance(site.fn, GivenWeight)
        return not known and _places(site.fn) is not None

    def augment(self, site: Site) -> Any:
        found = _places(site.fn)
        assert found is not None and site.value is not None
        places, cutpoints = found
        batch = site.fn.batch_shape
        predictor = -places[..., 0].expand(batch)
        ends = torch.nn.functional.pad(
            torch.nn.functional.pad(cutpoints, (1, 0), value=-torch.inf), (0, 1), value=torch.inf
        )
        label = site.value.long().clamp(0, ends.shape[-1] - 2).unsqueeze(-1).expand(*batch, 1)
        low, high = (ends.expand(*batch, -1).gather(-1, at).squeeze(-1) for at in (label, label + 1))
        law = TruncatedNormal(low, high)
        weight = site.auxiliary("weight", law)
        return WeightedOrderedProbit(raw_arguments(site.fn)["probs"], predictor, weight, law.log_normalizer)


def _places(fn: object) -> tuple[Tensor, Tensor] | None:
    """The places that Φ is taken at, ``batch + [K − 1]``, and how far each is from the first one, which is constant;
    None where probabilities are something else.
    """
    recorded = getattr(raw_arguments(fn).get("probs"), "function_of", None)
    if recorded is None or recorded.beside:
        return None
    before, function = recorded.argument, recorded.function
    if before.ndim == 0 or before.expression.opacity or before.expression.choices:
        return None
    slope = next((s for s in SLOPES if _is_differences(function, s, before)), None)
    if slope is None:
        return None
    places = before * slope
    apart = _constant((places - places[..., :1]).expression)
    return None if apart is None else (places, apart.to(places.dtype))


def _is_differences(function: Any, slope: float, like: Tensor) -> bool:
    """Whether a function of rows in ascending order is the differences of Φ, with 0 and 1 at the ends."""
    count = torch.arange(like.numel(), dtype=torch.float64, device=like.device).reshape(like.shape)
    for size in _SIZES:
        places = (size * (1.7 * count + size).sin()).sort(-1).values
        ends = torch.nn.functional.pad(torch.special.ndtr(places), (1, 1))
        ends[..., -1] = 1
        value, expected = function(places / slope), ends.diff(dim=-1)
        error = 8 * torch.finfo(value.dtype).eps
        if value.shape != expected.shape or bool(((value - expected).abs() > error).any()):
            return False
    return True


def _constant(expression: Expression) -> Tensor | None:
    """The value of an expression that no latent changes, by two draws of the latents; None of another."""
    variables = [f.variable for t in expression.terms for f in t.factors]
    if expression.pieces or any(v.replay is not None for v in variables):
        return None
    shapes = {v.root.site: v.root.shape for v in variables}
    chance = torch.Generator().manual_seed(0)
    draws = [
        {n: torch.randn(s, generator=chance, dtype=torch.float64).to(expression.like.device) for n, s in shapes.items()}
        for _ in range(2)
    ]
    first, second = (expression.evaluate(d).double().expand(expression.shape) for d in draws)
    return first if bool(((first - second).abs() <= 1e-7 * (1 + first.abs())).all()) else None
