"""A normal sample whose mean and precision are unknown, under the conjugate Normal-Gamma prior.

    precision ~ Gamma(a_0, b_0),  mean | precision ~ N(m_0, 1 / (k_0 precision)),  x_i ~ N(mean, 1 / precision)

with m_0 ``prior_loc``, k_0 ``prior_precision_scaling``, a_0 ``prior_concentration`` and b_0 ``prior_rate``. The
posterior is known exactly, and so are the evidence and the predictive density; mean field, q(mean) q(precision), is the
smallest example of coordinate ascent, and its distance from the exact posterior can be read off.

Source: [4] (77)-(88), Bishop 2006 §2.3.6 and §10.1.3, Murphy 2007 §3. The lecture notes' (86) and (88) give
the shape a_0 + n/2 for mean field, which forgets the half of log(precision) in the prior of the mean: it is
a_0 + (n + 1)/2.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_latent.distributions import NormalGamma
from pyro_latent.errors import ArgumentError, checked_call
from pyro_latent.values import as_tensor

from .arguments import check_data, check_finite, gamma_factor, normal_factor, relative_scale

__all__ = [
    "guide",
    "joint_guide",
    "joint_updates",
    "log_evidence",
    "model",
    "posterior",
    "posterior_predictive",
    "update_joint",
    "update_mean",
    "update_precision",
    "updates",
]


class NormalGammaPrior(NamedTuple):
    """The four numbers of a prior, as tensors of any shapes that broadcast."""

    loc: Tensor
    precision_scaling: Tensor
    concentration: Tensor
    rate: Tensor


class SampleStatistics(NamedTuple):
    """Number of points, mean and sum of squared deviations of a sample, or of many samples side by side."""

    num_points: Tensor
    mean: Tensor
    squared_deviations: Tensor


def model(
    x: Tensor,
    *,
    prior_loc: float | Tensor = 0.0,
    prior_precision_scaling: float | Tensor = 1.0,
    prior_concentration: float | Tensor = 1.0,
    prior_rate: float | Tensor = 1.0,
) -> None:
    """A normal sample with a Normal-Gamma prior; sites ``precision``, ``mean`` and, in plate ``data``, ``obs``.

    The joint prior has density N(mean | prior_loc, 1 / (prior_precision_scaling * precision)) *
    Gamma(precision | prior_concentration, prior_rate). Parameters take the dtype and device of ``x``.

    Args:
        x: the sample, shape ``[n]``.
        prior_loc: prior mean of the mean, scalar, in the unit of ``x``.
        prior_precision_scaling: how many observations the prior of the mean is worth, positive scalar.
        prior_concentration: shape of the precision's Gamma, positive scalar.
        prior_rate: rate of the precision's Gamma, positive scalar, in the unit of ``x`` squared.

    Raises:
        DataError: if ``x`` is not a non-empty one-dimensional floating tensor.
        ValueError: if a prior's number is not a finite scalar, or not positive where it has to be.

    Source: [4] (77)-(78), Bishop 2006 (2.154), (10.21)-(10.23).
    """
    prior = _check(x, prior_loc, prior_precision_scaling, prior_concentration, prior_rate)
    precision = pyro.sample("precision", dist.Gamma(prior.concentration, prior.rate))
    mean = pyro.sample("mean", dist.Normal(prior.loc, (prior.precision_scaling * precision).rsqrt()))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(mean, precision.rsqrt()), obs=x)


def posterior(x: Tensor, **prior: float | Tensor) -> NormalGamma:
    """The exact posterior of (mean, precision).

    Args:
        x: the sample, shape ``[n]``.
        **prior: the model's prior, by the names that :func:`model` gives it.

    Returns:
        A Normal-Gamma with scalar parameters, of the dtype of ``x``.

    Raises:
        DataError, ValueError: as :func:`model` does.

    Source: [4] (79)-(80), Murphy 2007 §3.3.
    """
    return update_joint({}, x, **prior)


def log_evidence(x: Tensor, **prior: float | Tensor) -> Tensor:
    """Logarithm of the marginal density of the sample, log p(x), in nats.

    Args:
        x: the sample, shape ``[n]``.
        **prior: the model's prior, by the names that :func:`model` gives it.

    Returns:
        A float64 scalar.

    Raises:
        DataError, ValueError: as :func:`model` does.

    Source: Murphy 2007 §3.5, the ratio of the normalizers of [4] (78) and (79).
    """
    before = _double(_check(x, **prior))
    summary = _summarize(x)
    after = _double(conjugate_parameters(before, summary))
    return (
        torch.lgamma(after.concentration)
        - torch.lgamma(before.concentration)
        + before.concentration * before.rate.log()
        - after.concentration * after.rate.log()
        + (before.precision_scaling / after.precision_scaling).log() / 2
        - summary.num_points * math.log(2 * math.pi) / 2
    )


@checked_call
def posterior_predictive(posterior: NormalGamma) -> dist.StudentT:
    """Density of one new observation, p(x_new | x), with mean and precision integrated out.

    Args:
        posterior: the Normal-Gamma posterior of (mean, precision), as :func:`posterior` gives it.

    Returns:
        A Student-t with 2a degrees of freedom at the posterior's location, scale sqrt(b (k + 1) / (a k)), of the
        posterior's batch shape; a the concentration, b the rate, k the precision scaling.

    Source: [4] (62), Murphy 2007 §3.6, Bishop 2006 (2.158)-(2.159).
    """
    scaling = posterior.precision_scaling
    scale = (posterior.rate * (scaling + 1) / (posterior.concentration * scaling)).sqrt()
    return dist.StudentT(2 * posterior.concentration, posterior.loc, scale)


def update_mean(q: Mapping[Any, Any], x: Tensor, **prior: float | Tensor) -> dist.Normal:
    """Mean-field update of q(mean): N((k_0 m_0 + n x̄) / (k_0 + n), 1 / ((k_0 + n) E[precision])).

    Args:
        q: current posteriors; ``q["precision"]`` is read.
        x: the sample, shape ``[n]``.
        **prior: the model's prior.

    Source: [4] (82)-(84), whose N takes a precision second; Bishop 2006 (10.25)-(10.27).
    """
    given, summary = _check(x, **prior), _summarize(x, relative_scale(q, "obs", "mean"))
    after = conjugate_parameters(_double(given), summary)
    variance = 1 / (after.precision_scaling * q["precision"].mean.double())
    return dist.Normal(after.loc.to(x.dtype), variance.sqrt().to(x.dtype))


def update_precision(q: Mapping[Any, Any], x: Tensor, **prior: float | Tensor) -> dist.Gamma:
    """Mean-field update of q(precision): Gamma(a_0 + (n + 1)/2, b_0 + E[Σ(x_i - mean)² + k_0 (mean - m_0)²] / 2).

    Args:
        q: current posteriors; ``q["mean"]`` is read.
        x: the sample, shape ``[n]``.
        **prior: the model's prior.

    Source: [4] (86)-(87) with the shape corrected, Bishop 2006 (10.28)-(10.30).
    """
    given, summary = _double(_check(x, **prior)), _summarize(x, relative_scale(q, "obs", "precision"))
    loc, variance = q["mean"].mean.double(), q["mean"].variance.double()
    from_data = summary.squared_deviations + summary.num_points * ((summary.mean - loc) ** 2 + variance)
    of_mean = relative_scale(q, "mean", "precision")
    from_prior = of_mean * given.precision_scaling * ((loc - given.loc) ** 2 + variance)
    concentration = given.concentration + (summary.num_points + of_mean) / 2
    rate = given.rate + (from_data + from_prior) / 2
    return dist.Gamma(concentration.to(x.dtype), rate.to(x.dtype))


def update_joint(q: Mapping[Any, Any], x: Tensor, **prior: float | Tensor) -> NormalGamma:
    """Update of the joint block (mean, precision): the exact posterior, whatever ``q`` is; one step converges.

    Args:
        q: current posteriors; only ``q.scales`` is read.
        x: the sample, shape ``[n]``.
        **prior: the model's prior.

    Source: [4] (79)-(80), Murphy 2007 §3.3.
    """
    after = conjugate_parameters(_double(_check(x, **prior)), _summarize(x, relative_scale(q, "obs", "mean")))
    return NormalGamma(*(value.to(x.dtype) for value in after))


updates = {"mean": update_mean, "precision": update_precision}
"""Mean-field updates, [4] (81)-(87)."""

joint_updates = {("mean", "precision"): update_joint}
"""The exact update of the joint block, [4] (79)-(80)."""


def guide(x: Tensor, **prior: float | Tensor) -> None:
    """Mean-field guide q(mean) q(precision), Normal and Gamma, for ``SVI``.

    The parameters ``mean_loc``, ``mean_scale``, ``precision_concentration`` and ``precision_rate`` are scalars of the
    dtype of ``x``. They start at the sample mean and its standard error, and at the Gamma of n / 2 with mean
    1 / (sample variance).

    Args:
        x: the sample, shape ``[n]``.
        **prior: the model's prior; checked, not used.

    Source: [4] (81), Bishop 2006 (10.24).
    """
    _check(x, **prior)
    start = functools.cache(lambda: _start(x))
    _sample_precision(start)
    normal_factor("mean", lambda: start().mean, lambda: (start().variance / len(x)).sqrt())


def joint_guide(x: Tensor, **prior: float | Tensor) -> None:
    """Structured guide q(precision) q(mean | precision), which holds the exact posterior, for ``SVI``.

    The parameters ``mean_loc``, ``mean_precision_scaling``, ``precision_concentration`` and ``precision_rate`` are
    scalars of the dtype of ``x``, and mean what they mean in the Normal-Gamma. They start at the sample mean, at n, and
    at the Gamma of n / 2 with mean 1 / (sample variance).

    Args:
        x: the sample, shape ``[n]``.
        **prior: the model's prior; checked, not used.

    Source: [4] (79).
    """
    _check(x, **prior)
    start = functools.cache(lambda: _start(x))
    loc = pyro.param("mean_loc", lambda: start().mean)
    scaling = pyro.param(
        "mean_precision_scaling", lambda: torch.full_like(start().mean, len(x)), constraint=constraints.positive
    )
    precision = _sample_precision(start)
    pyro.sample("mean", dist.Normal(loc, (scaling * precision).rsqrt()))


class _Start(NamedTuple):
    """Where the guides start: sample mean, variance and half the number of points, scalars of the sample's dtype."""

    mean: Tensor
    variance: Tensor
    half: Tensor


def _start(x: Tensor) -> _Start:
    summary = _summarize(x)
    variance = summary.squared_deviations / summary.num_points
    variance = torch.where(variance > 0, variance, torch.ones_like(variance))
    return _Start(summary.mean.to(x.dtype), variance.to(x.dtype), (summary.num_points / 2).to(x.dtype))


def _sample_precision(start: Callable[[], _Start]) -> Tensor:
    return gamma_factor("precision", lambda: start().half, lambda: start().half * start().variance)


def _summarize(x: Tensor, scale: float | Tensor = 1.0) -> SampleStatistics:
    """Count, mean and squared deviations of observations that count ``scale`` times each.

    Deviations are taken from the first point, then from their mean, in float64: an offset far larger than the spread
    costs no digits of the spread.
    """
    weights = torch.as_tensor(scale, dtype=torch.float64, device=x.device).expand(x.shape)
    count = weights.sum()
    check_finite("x", x)
    offset = x[0].double()
    shifted = x.double() - offset
    shift = (weights * shifted).sum() / count
    deviations = shifted - shift
    residual = (weights * deviations).sum()
    squared_deviations = (weights * deviations**2).sum() - residual**2 / count
    return SampleStatistics(count, offset + shift, squared_deviations.clamp(min=0.0))


def conjugate_parameters(prior: NormalGammaPrior, summary: SampleStatistics) -> NormalGammaPrior:
    """The parameters of the posterior, [4] (80), about the prior's location, so that they stay exact far from zero."""
    count, precision_scaling = summary.num_points, prior.precision_scaling + summary.num_points
    deviation = summary.mean - prior.loc
    return NormalGammaPrior(
        loc=prior.loc + count / precision_scaling * deviation,
        precision_scaling=precision_scaling,
        concentration=prior.concentration + count / 2,
        rate=prior.rate
        + (summary.squared_deviations + prior.precision_scaling * count / precision_scaling * deviation**2) / 2,
    )


def _double(prior: NormalGammaPrior) -> NormalGammaPrior:
    return NormalGammaPrior(*(value.double() for value in prior))


def _check(
    x: Tensor,
    prior_loc: float | Tensor = 0.0,
    prior_precision_scaling: float | Tensor = 1.0,
    prior_concentration: float | Tensor = 1.0,
    prior_rate: float | Tensor = 1.0,
) -> NormalGammaPrior:
    """The prior as scalars with the dtype and device of a sample that is fit for the model."""
    check_data("x", x, "[n]", "Write torch.as_tensor(x).double().flatten() for a sample.")
    return NormalGammaPrior(
        _scalar("prior_loc", prior_loc, x),
        _positive("prior_precision_scaling", prior_precision_scaling, x),
        _positive("prior_concentration", prior_concentration, x),
        _positive("prior_rate", prior_rate, x),
    )


def _scalar(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    scalar = as_tensor(value, like.dtype)  # a Python number is checked on the CPU: no wait for the device
    if scalar is None or scalar.dim() != 0 or not bool(scalar.isfinite()):
        raise ArgumentError(f"Expected {name} to be a finite scalar; got {value}.")
    return scalar.to(like.device)


def _positive(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    given = as_tensor(value, like.dtype)
    if given is not None and not bool((given > 0).all()):
        raise ArgumentError(f"Expected {name} to be positive; got {value}.")
    return _scalar(name, value, like)
