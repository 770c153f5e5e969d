r"""A two-dimensional Gaussian by one-dimensional factors: the smallest model in which mean field errs.

    p(z) = N(loc, precision⁻¹) on the plane, approximated by q(z) = q_1(z_1) q_2(z_2)

As a Pyro program it is a measurement: two quantities with independent priors, of which only a weighted sum is read off,

    first ~ N(loc_1, 1 / (Λ_11 (1 - |ρ|))),  second ~ N(loc_2, 1 / (Λ_22 (1 - |ρ|))),
    reading ~ N(a first + b second, 1) = a loc_1 + b loc_2,  a² = Λ_11 |ρ|, b² = Λ_22 |ρ|, a b = Λ_12,

with ρ = Λ_12 / √(Λ_11 Λ_22). The posterior of (first, second) given the reading is N(loc, Λ⁻¹) exactly.

Coordinate ascent gives q_1 = N(m_1, 1 / Λ_11) with m_1 = loc_1 - Λ_12 / Λ_11 (m_2 - loc_2), and symmetrically q_2. The
means end at loc, and each sweep divides their distance from it by 1 / ρ² = Λ_11 Λ_22 / Λ_12². The variances are those
of a coordinate *given* the other, smaller than the marginal ones by the factor 1 - ρ². The best factorised q by the
other divergence, KL(p ‖ q), is the product of the marginals. At their minima the two divergences have one value,
-½ log(1 - ρ²).

Source: [1], "two-dimensional Gaussian" and "different KL divergences"; Bishop 2006 §10.1.2, (10.10)-(10.17). The slides
print 1 / Λ_11 for the variance of q_2: it is 1 / Λ_22.
"""

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent.errors import DataError, checked_call

from .arguments import normal_factor

__all__ = [
    "contraction_rate",
    "factor_divergence",
    "guide",
    "log_evidence",
    "marginals",
    "mean_field",
    "model",
    "posterior",
    "update_first",
    "update_second",
    "updates",
]


def model(loc: Tensor, precision: Tensor) -> None:
    """Sites ``first`` and ``second``, whose joint posterior is N(loc, precision⁻¹), and ``reading``, observed.

    Args:
        loc: the mean, shape ``[2]``, floating; its dtype and device are the model's.
        precision: Λ, symmetric and positive definite, shape ``[2, 2]``, in one over the unit of ``loc`` squared.

    Raises:
        DataError: if the shapes or dtypes are not these, or ``precision`` is not a precision matrix.

    Source: [1]; Bishop 2006 (10.10).
    """
    _check(loc, precision)
    shared = _correlation(precision).abs()
    own = precision.diagonal() * (1 - shared)
    gain = (precision.diagonal() * shared).sqrt()
    gain = torch.stack([gain[0], gain[1].copysign(precision[0, 1])])
    first = pyro.sample("first", dist.Normal(loc[0], own[0].rsqrt()))
    second = pyro.sample("second", dist.Normal(loc[1], own[1].rsqrt()))
    mean = gain[0] * first + gain[1] * second
    pyro.sample("reading", dist.Normal(mean, torch.ones_like(loc[0])), obs=gain @ loc)


@checked_call
def posterior(loc: Tensor, precision: Tensor) -> dist.MultivariateNormal:
    """The exact posterior of (first, second), N(loc, precision⁻¹), event shape ``[2]``."""
    _check(loc, precision)
    return dist.MultivariateNormal(loc, precision_matrix=precision)


@checked_call
def log_evidence(loc: Tensor, precision: Tensor) -> Tensor:
    """log p(reading), a scalar in nats: the reading is at its own mean, with variance 1 + 2 |ρ| / (1 - |ρ|)."""
    _check(loc, precision)
    shared = _correlation(precision).abs()
    variance = 1 + 2 * shared / (1 - shared)
    return dist.Normal(torch.zeros_like(variance), variance.sqrt()).log_prob(torch.zeros_like(variance))


@checked_call
def mean_field(loc: Tensor, precision: Tensor) -> dict[str, dist.Normal]:
    """The factors that minimise KL(q ‖ p), where coordinate ascent ends: N(loc_i, 1 / Λ_ii).

    Source: [1] with the variance of q_2 corrected; Bishop 2006 (10.12)-(10.15).
    """
    _check(loc, precision)
    scale = precision.diagonal().rsqrt()
    return {"first": dist.Normal(loc[0], scale[0]), "second": dist.Normal(loc[1], scale[1])}


@checked_call
def marginals(loc: Tensor, precision: Tensor) -> dict[str, dist.Normal]:
    """The factors that minimise KL(p ‖ q), the marginals of p: N(loc_i, (Λ⁻¹)_ii).

    Source: [1]; Bishop 2006 (10.17).
    """
    _check(loc, precision)
    scale = torch.linalg.inv(precision).diagonal().sqrt()
    return {"first": dist.Normal(loc[0], scale[0]), "second": dist.Normal(loc[1], scale[1])}


@checked_call
def factor_divergence(precision: Tensor) -> Tensor:
    """-½ log(1 - ρ²), a scalar in nats.

    It is KL(q ‖ p) at :func:`mean_field`, and KL(p ‖ q) at :func:`marginals`, where it is the mutual information.
    """
    return -torch.log1p(-contraction_rate(precision)) / 2


@checked_call
def contraction_rate(precision: Tensor) -> Tensor:
    """ρ² = Λ_12² / (Λ_11 Λ_22), a scalar: what one sweep multiplies the distance of the means from ``loc`` by."""
    return _correlation(precision).square()


def update_first(q: Mapping[Any, Any], loc: Tensor, precision: Tensor) -> dist.Normal:
    """Update of q(first): N(loc_1 - Λ_12 / Λ_11 (E[second] - loc_2), 1 / Λ_11).

    Args:
        q: current posteriors; ``q["second"]`` is read.
        loc: the mean, shape ``[2]``.
        precision: Λ, shape ``[2, 2]``.

    Source: [1]; Bishop 2006 (10.12)-(10.13).
    """
    return _conditional(loc, precision, 0, q["second"].mean)


def update_second(q: Mapping[Any, Any], loc: Tensor, precision: Tensor) -> dist.Normal:
    """Update of q(second): N(loc_2 - Λ_21 / Λ_22 (E[first] - loc_1), 1 / Λ_22).

    Args:
        q: current posteriors; ``q["first"]`` is read.
        loc: the mean, shape ``[2]``.
        precision: Λ, shape ``[2, 2]``.

    Source: [1], whose slide has 1 / Λ_11; Bishop 2006 (10.14)-(10.15).
    """
    return _conditional(loc, precision, 1, q["first"].mean)


updates = {"first": update_first, "second": update_second}
"""The closed-form updates, [1]."""


def guide(loc: Tensor, precision: Tensor) -> None:
    """Mean-field guide q(first) q(second), both normal, for ``SVI`` with ``Trace_ELBO``.

    The parameters ``first_loc``, ``first_scale``, ``second_loc`` and ``second_scale`` start at zero and at the standard
    deviations that ``precision`` alone gives, doubled.

    Source: [1]; Bishop 2006 (10.12).
    """
    _check(loc, precision)
    for i, name in enumerate(("first", "second")):
        normal_factor(name, torch.zeros_like(loc[i]), 2 * precision[i, i].rsqrt())


def _conditional(loc: Tensor, precision: Tensor, i: int, other: Tensor) -> dist.Normal:
    """Coordinate i given that the other one is at ``other``."""
    _check(loc, precision)
    mean = loc[i] - precision[0, 1] / precision[i, i] * (other - loc[1 - i])
    return dist.Normal(mean, precision[i, i].rsqrt())


def _correlation(precision: Tensor) -> Tensor:
    return precision[0, 1] * (precision[0, 0] * precision[1, 1]).rsqrt()


def _check(loc: Tensor, precision: Tensor) -> None:
    shapes = [list(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (loc, precision)]
    if shapes != [[2], [2, 2]] or not loc.is_floating_point() or loc.dtype != precision.dtype:
        dtypes = [str(getattr(t, "dtype", "none")) for t in (loc, precision)]
        raise DataError(
            "Expected loc of shape [2] and precision of shape [2, 2], floating tensors of one dtype; got shapes "
            f"{shapes[0]} and {shapes[1]}, dtypes {dtypes[0]} and {dtypes[1]}. Write torch.tensor(..., dtype="
            "torch.float64) for both."
        )
    symmetric = bool(torch.allclose(precision, precision.mT, rtol=1e-5, atol=0))
    if not symmetric or not bool((precision.diagonal() > 0).all()) or not bool(torch.det(precision) > 0):
        raise DataError(
            f"Expected precision to be symmetric and positive definite; got {precision.tolist()}. From a covariance "
            "write torch.linalg.inv(covariance)."
        )
