r"""Two posteriors on the plane that no Gaussian fits: one with two modes, and one bent like a banana.

    two modes:  first, second ~ N(0, prior_scale²),  x_n ~ N(first · second, noise_scale²)
    banana:     first, second ~ N(0, prior_scale²),  x_n ~ N(second + curvature · first², noise_scale²)

In the first, (first, second) and (-first, -second) give the same data: the posterior has a mode at ±(a, a), with
a² = mean(x) - noise_scale² / (n prior_scale²) if that is positive (and at ±(a, -a) for negative data). A product of two
independent normals is conditionally conjugate in each, so mean field has closed-form updates; it settles in one mode,
and which one depends on its start. In the second, the sum alone is known, so that the posterior lies along a parabola.

Both posteriors depend on the data by their mean only, and both evidences are integrals over one dimension, done here by
the trapezoid rule.

Source: [1], "different KL divergences", which shows a density with two modes; Bishop 2006 §10.1.2, figure 10.3. The
models are ours; the second is the curved density that Rosenbrock's function makes, with data.
"""

import math
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent.errors import ArgumentError, checked_call

from .arguments import check_data, check_finite, normal_factor, relative_scale

__all__ = [
    "banana_log_evidence",
    "banana_model",
    "guide",
    "log_evidence",
    "model",
    "modes",
    "update_first",
    "update_second",
    "updates",
]

_NODES = 20_001
_WIDTHS = 12.0


def model(x: Tensor, *, prior_scale: float = 1.5, noise_scale: float = 1.0) -> None:
    """A posterior with two modes; sites ``first``, ``second`` and, in plate ``data``, ``obs``.

    Args:
        x: measurements of the product, shape ``[n]``, floating; its dtype and device are the model's.
        prior_scale: standard deviation of both priors, positive, in the square root of the unit of ``x``.
        noise_scale: standard deviation of a measurement, positive, in the unit of ``x``.

    Raises:
        DataError: if ``x`` is not a non-empty, finite, one-dimensional floating tensor.
        ValueError: if a scale is not positive.
    """
    _check(x, prior_scale=prior_scale, noise_scale=noise_scale)
    prior = dist.Normal(x.new_zeros(()), x.new_tensor(prior_scale))
    first, second = pyro.sample("first", prior), pyro.sample("second", prior)
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(first * second, x.new_tensor(noise_scale)), obs=x)


def banana_model(x: Tensor, *, curvature: float = 0.5, prior_scale: float = 2.0, noise_scale: float = 0.5) -> None:
    """A bent posterior; sites ``first``, ``second`` and, in plate ``data``, ``obs``.

    Args:
        x: measurements of second + curvature · first², shape ``[n]``, floating.
        curvature: of the parabola, finite, in one over the unit of ``x``.
        prior_scale: standard deviation of both priors, positive, in the unit of ``x``.
        noise_scale: standard deviation of a measurement, positive, in the unit of ``x``.

    Raises:
        DataError, ValueError: as :func:`model` does.
    """
    _check(x, prior_scale=prior_scale, noise_scale=noise_scale)
    prior = dist.Normal(x.new_zeros(()), x.new_tensor(prior_scale))
    first, second = pyro.sample("first", prior), pyro.sample("second", prior)
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(second + curvature * first**2, x.new_tensor(noise_scale)), obs=x)


@checked_call
def modes(x: Tensor, *, prior_scale: float = 1.5, noise_scale: float = 1.0) -> Tensor:
    """The modes of the posterior of :func:`model`, ``[2, 2]``, or the origin, ``[1, 2]``, where the data are too weak.

    Source: the gradient of log p(x, first, second) is zero.
    """
    _check(x, prior_scale=prior_scale, noise_scale=noise_scale)
    center = x.mean()
    square = center.abs() - noise_scale**2 / (len(x) * prior_scale**2)
    if not bool(square > 0):
        return x.new_zeros(1, 2)
    mode = square.sqrt() * torch.stack([torch.ones_like(center), center.sign()])
    return torch.stack([mode, -mode])


@checked_call
def log_evidence(x: Tensor, *, prior_scale: float = 1.5, noise_scale: float = 1.0) -> Tensor:
    """log p(x) of :func:`model`, a float64 scalar in nats.

    Given first, the mean of x is N(0, first² prior_scale² + noise_scale² / n): first is integrated by the trapezoid
    rule, exact to about ten digits.
    """
    _check(x, prior_scale=prior_scale, noise_scale=noise_scale)
    first, log_prior = _nodes(x, prior_scale, noise_scale / (math.sqrt(len(x)) * prior_scale))
    spread = (first.square() * prior_scale**2 + noise_scale**2 / len(x)).sqrt()
    log_density = dist.Normal(torch.zeros_like(spread), spread).log_prob(x.double().mean())
    return torch.logsumexp(log_prior + log_density, 0) + _log_rest(x, noise_scale)


@checked_call
def banana_log_evidence(
    x: Tensor, *, curvature: float = 0.5, prior_scale: float = 2.0, noise_scale: float = 0.5
) -> Tensor:
    """log p(x) of :func:`banana_model`, a float64 scalar in nats; as :func:`log_evidence`.

    Given first, the mean of x is N(curvature · first², prior_scale² + noise_scale² / n).
    """
    _check(x, prior_scale=prior_scale, noise_scale=noise_scale)
    spread = math.sqrt(prior_scale**2 + noise_scale**2 / len(x))
    first, log_prior = _nodes(x, prior_scale, min(prior_scale, math.sqrt(spread / max(abs(curvature), 1e-300))))
    log_density = dist.Normal(curvature * first.square(), first.new_tensor(spread)).log_prob(x.double().mean())
    return torch.logsumexp(log_prior + log_density, 0) + _log_rest(x, noise_scale)


def update_first(q: Mapping[Any, Any], x: Tensor, *, prior_scale: float = 1.5, noise_scale: float = 1.0) -> dist.Normal:
    """Update of q(first) in :func:`model`: precision 1/s² + n E[second²]/σ², mean n x̄ E[second] / σ² over it.

    Args:
        q: current posteriors; ``q["second"]`` is read.
        x: the data, shape ``[n]``.
        prior_scale, noise_scale: s and σ.

    Source: [4] (75).
    """
    return _update(q, "first", "second", x, prior_scale, noise_scale)


def update_second(
    q: Mapping[Any, Any], x: Tensor, *, prior_scale: float = 1.5, noise_scale: float = 1.0
) -> dist.Normal:
    """Update of q(second) in :func:`model`: as :func:`update_first`, which see; ``q["first"]`` is read."""
    return _update(q, "second", "first", x, prior_scale, noise_scale)


updates = {"first": update_first, "second": update_second}
"""The closed-form mean-field updates of :func:`model`, [4] (75)."""


def guide(x: Tensor, *, prior_scale: float = 1.5, noise_scale: float = 1.0) -> None:
    """Mean-field guide q(first) q(second) in :func:`model`, both normal, for ``SVI`` with ``Trace_ELBO``.

    The parameters ``first_loc``, ``first_scale``, ``second_loc`` and ``second_scale`` start at the first of
    :func:`modes`, and at the standard deviation that each site has given the other one there.
    """
    first, second = modes(x, prior_scale=prior_scale, noise_scale=noise_scale)[0]
    for name, loc, other in (("first", first, second), ("second", second, first)):
        normal_factor(name, loc, (prior_scale**-2 + len(x) * other**2 / noise_scale**2).rsqrt())


def _update(
    q: Mapping[Any, Any], own: str, other: str, x: Tensor, prior_scale: float, noise_scale: float
) -> dist.Normal:
    _check(x, prior_scale=prior_scale, noise_scale=noise_scale)
    scale = relative_scale(q, "obs", own)
    mean, variance = q[other].mean, q[other].variance
    precision = prior_scale**-2 + scale * len(x) * (mean**2 + variance) / noise_scale**2
    return dist.Normal(scale * x.sum() * mean / noise_scale**2 / precision, precision.rsqrt())


def _nodes(x: Tensor, prior_scale: float, width: float) -> tuple[Tensor, Tensor]:
    """Nodes of the trapezoid rule over twelve prior deviations each way, and the log of prior times weight.

    They are equally spaced in t, where first = width · sinh t: a likelihood that turns within ``width`` of zero is seen
    as well as the prior, however far apart the two scales are.
    """
    half = math.asinh(_WIDTHS * prior_scale / width)
    t = torch.linspace(-half, half, _NODES, dtype=torch.float64, device=x.device)
    first = width * t.sinh()
    prior = dist.Normal(first.new_zeros(()), first.new_tensor(prior_scale))
    return first, prior.log_prob(first) + (width * t.cosh()).log() + math.log(2 * half / (_NODES - 1))


def _log_rest(x: Tensor, noise_scale: float) -> Tensor:
    """log p(x | mean of x): the density of the data over that of their mean, which no parameter is in."""
    center = x.double().mean()
    whole = dist.Normal(center, center.new_tensor(noise_scale)).log_prob(x.double()).sum()
    return whole - dist.Normal(center, center.new_tensor(noise_scale / math.sqrt(len(x)))).log_prob(center)


def _check(x: Tensor, **scales: float) -> None:
    check_data("x", x, "[n]", "Write torch.tensor([...], dtype=torch.float64).")
    check_finite("x", x)
    for name, scale in scales.items():
        if not 0 < scale < math.inf:
            raise ArgumentError(f"Expected {name} to be a positive number; got {scale}. Write {name}=1.0, say.")
