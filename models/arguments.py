"""Checks of the data and the guides that the textbook models take, and what their updates read of posteriors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.distributions import constraints

from pyro_latent.errors import DataError, ModelError
from pyro_latent.values import is_floating, kind_of

__all__ = [
    "Guided",
    "check_data",
    "check_finite",
    "check_weights",
    "counted",
    "expected_log",
    "gamma_factor",
    "mean_of",
    "multivariate_normal_factor",
    "normal_factor",
    "probabilities",
    "relative_scale",
]

#: Where a parameter starts, or what gives it once the parameter is new.
Start: TypeAlias = Tensor | Callable[[], Tensor]


def check_data(name: str, value: Any, shape: str, advice: str, least: int = 1) -> None:
    """The data is a floating tensor of a shape.

    Args:
        name: what the argument is called.
        value: what came.
        shape: the shape in letters, such as ``"[N, D]"``.
        advice: what to write instead.
        least: the smallest number that each letter may stand for.

    Raises:
        DataError: if it is none.
    """
    letters = shape.strip("[]")
    fits = is_floating(value) and value.dim() == len(letters.split(", "))
    if not fits or min(value.shape) < least:
        raise DataError(
            f"Expected {name} to be a floating tensor of shape {shape}, {letters} >= {least}; got "
            f"{kind_of(value)}. {advice}"
        )


def check_finite(name: str, value: Tensor) -> None:
    """The data has no NaN and no infinity.

    Raises:
        DataError: if it has.
    """
    if not bool(value.isfinite().all()):
        raise DataError(
            f"Expected {name} to be finite; got NaN or infinity. Drop those points: {name}[{name}.isfinite()]."
        )


def check_weights(weights: Any, count: int) -> None:
    """Weights of points are a floating tensor of positive numbers, one for each; or None.

    Raises:
        DataError: if they are not.
    """
    if weights is None:
        return
    if not is_floating(weights) or weights.shape != (count,):
        raise DataError(
            f"Expected sample_weight to be a floating tensor of shape [{count}]; got {kind_of(weights)}. Write how "
            "many observations each point counts as."
        )
    if not bool((weights.isfinite() & (weights > 0)).all()):
        wrong = weights[~(weights.isfinite() & (weights > 0))][0].item()
        raise DataError(
            f"Expected sample_weight to be positive and finite; got {wrong:g} among it. Drop points that count for "
            "nothing."
        )


def counted(sample_weight: Any) -> Any:
    """Inside, each point counts as often as the weights ``[N]`` say; once without them."""
    return nullcontext() if sample_weight is None else poutine.scale(scale=sample_weight)


def mean_of(data: Tensor, each: Tensor | None) -> Tensor:
    """The mean of points that count as often as ``each`` says, ``[D]``; once each without it."""
    return data.mean(0) if each is None else data[0] + each @ (data - data[0]) / each.sum()


def relative_scale(q: Mapping[Any, Any], site: str, own: str) -> float | Tensor:
    """How much the density of a site counts beside that of the site that is updated; 1 where ``q`` does not say."""
    scales: Mapping[str, Any] = getattr(q, "scales", {})
    return scales.get(site, 1.0) / scales.get(own, 1.0)


def expected_log(posterior: Any) -> Tensor:
    """E log p of probabilities p, over the last dimension, under a Dirichlet or at the value of a Delta."""
    if isinstance(posterior, dist.Delta):
        return posterior.v.log()
    concentration: Tensor = posterior.concentration
    return torch.digamma(concentration) - torch.digamma(concentration.sum(-1, keepdim=True))


def probabilities(posterior: Any, num_values: int, like: Tensor) -> Tensor:
    """The probabilities of each value of a discrete site, ``[..., num_values]``; all at one value under a Delta."""
    if isinstance(posterior, dist.Delta):
        return torch.nn.functional.one_hot(posterior.v.long(), num_values).to(like)
    found: Tensor = posterior.probs
    return found


class Guided(Messenger):
    """Around a discrete site: it is an error to draw it from its prior where a guide gives the other latents.

    ``Trace_ELBO`` would do so, with a warning, and train towards a bound that is far too low.

    Args:
        advice: what to write instead.
    """

    def __init__(self, advice: str) -> None:
        super().__init__()
        self.advice = advice

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        is_given = msg["is_observed"] or "_enumerate_dim" in msg["infer"]
        hidden = any(isinstance(m, BlockMessenger) for m in _PYRO_STACK)  # Pyro counts plates, or the engine records
        traces = [m.trace for m in _PYRO_STACK if isinstance(m, ReplayMessenger) and m.trace is not None]
        if traces and not is_given and not hidden and all(name not in trace for trace in traces):
            raise ModelError(
                f"Expected a guide with the site {name!r}, or an estimator that sums it out; got a replay of "
                f"neither, so that it was drawn from its prior. {self.advice} "
                "To draw it so, use Predictive or poutine.condition."
            )


def normal_factor(name: str, loc: Start, scale: Start) -> None:
    """A normal site of a guide, whose parameters ``{name}_loc`` and ``{name}_scale`` start at these."""
    mean = pyro.param(f"{name}_loc", loc)
    pyro.sample(name, dist.Normal(mean, pyro.param(f"{name}_scale", scale, constraint=constraints.positive)))


def multivariate_normal_factor(name: str, loc: Start, scale_tril: Start) -> None:
    """A multivariate normal site of a guide; ``{name}_loc`` and ``{name}_scale_tril`` start at these."""
    mean = pyro.param(f"{name}_loc", loc)
    root = pyro.param(f"{name}_scale_tril", scale_tril, constraint=constraints.lower_cholesky)
    pyro.sample(name, dist.MultivariateNormal(mean, scale_tril=root))


def gamma_factor(name: str, concentration: Start, rate: Start) -> Tensor:
    """A Gamma site of a guide, and its draw; ``{name}_concentration`` and ``{name}_rate`` start at these."""
    shape = pyro.param(f"{name}_concentration", concentration, constraint=constraints.positive)
    speed = pyro.param(f"{name}_rate", rate, constraint=constraints.positive)
    return pyro.sample(name, dist.Gamma(shape, speed))
