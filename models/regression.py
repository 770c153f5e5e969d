"""Linear regression with an unknown noise, and one precision of the weights, or one for each of them.

    noise_precision ~ Gamma(alpha_1, alpha_2),  weight_precision ~ Gamma(lambda_1, lambda_2)
    weight_d ~ N(0, 1 / weight_precision),  target_n ~ N((x_n - center) · weights + intercept, 1 / noise_precision)

With ``ard`` each weight has a precision of its own (automatic relevance determination), and those that the data do not
need go to zero. With ``relative`` the precisions of the weights are relative to that of the noise,
N(0, 1 / (weight_precision noise_precision)); then weights, intercept and noise precision have an exact joint posterior
given the precisions of the weights, and predictions are Student's t.

Source: MacKay 1992, "Bayesian interpolation"; Tipping 2001 for ``ard``; Bishop 2006 §3.3-3.5, §7.2, §10.3.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_latent.errors import DataError, check_choice
from pyro_latent.models.arguments import (
    check_data,
    check_weights,
    counted,
    gamma_factor,
    multivariate_normal_factor,
    normal_factor,
)
from pyro_latent.values import kind_of

__all__ = ["guide", "joint_sites", "model"]


def model(
    features: Tensor,
    target: Tensor,
    *,
    ard: bool = False,
    relative: bool = False,
    intercept: bool = True,
    center: Tensor | None = None,
    sample_weight: Tensor | None = None,
    alpha_1: float = 1e-6,
    alpha_2: float = 1e-6,
    lambda_1: float = 1e-6,
    lambda_2: float = 1e-6,
) -> None:
    """Sites ``noise_precision``, ``weight_precision``, ``weights``, ``intercept`` and ``target``.

    ``weights`` has event shape ``[D]``; with ``ard`` ``weight_precision`` is in plate ``features`` of size D;
    ``intercept``, whose prior is flat, and the precisions are scalars; ``target`` is in plate ``data`` of size N.

    Args:
        features: shape ``[N, D]``, floating; its dtype and device are the model's.
        target: shape ``[N]``.
        ard: whether each weight has a precision of its own.
        relative: whether precisions of weights are relative to that of the noise.
        intercept: whether there is an intercept.
        center: where the features are zero for the intercept, ``[D]``; default at their zero.
        sample_weight: how many observations each row counts as, ``[N]``, positive; default 1 each.
        alpha_1, alpha_2: concentration and rate of the noise precision's prior, the rate in the unit of the target
            squared.
        lambda_1, lambda_2: the same of the weights' precisions.

    Raises:
        DataError: if ``features`` is not a floating ``[N, D]`` tensor, ``target`` not of shape ``[N]``, or
            ``sample_weight`` not as said.

    Source: Bishop 2006 (3.10), (3.52), (7.79)-(7.80).
    """
    _check(features, target, sample_weight, ard, relative, intercept)
    noise = pyro.sample("noise_precision", dist.Gamma(features.new_tensor(alpha_1), alpha_2))
    shrinkage = dist.Gamma(features.new_tensor(lambda_1), lambda_2)
    if ard:
        with pyro.plate("features", features.shape[1]):
            precision = pyro.sample("weight_precision", shrinkage)
    else:
        precision = pyro.sample("weight_precision", shrinkage)
    spread = (precision * noise if relative else precision).rsqrt()
    weights = pyro.sample("weights", dist.Normal(features.new_zeros(features.shape[1]), spread).to_event(1))
    mean = (features if center is None else features - center) @ weights
    if intercept:
        mean = mean + pyro.sample("intercept", dist.ImproperUniform(constraints.real, (), ()))
    with pyro.plate("data", len(target)), counted(sample_weight):
        pyro.sample("target", dist.Normal(mean, noise.rsqrt()), obs=target)


def guide(
    features: Tensor,
    target: Tensor,
    *,
    ard: bool = False,
    relative: bool = False,
    intercept: bool = True,
    center: Tensor | None = None,
    sample_weight: Tensor | None = None,
    alpha_1: float = 1e-6,
    alpha_2: float = 1e-6,
    lambda_1: float = 1e-6,
    lambda_2: float = 1e-6,
) -> None:
    """Mean-field guide for ``SVI``: Gamma precisions, a multivariate normal of the weights, a normal intercept.

    Parameters: ``weights_loc`` ``[D]``, ``weights_scale_tril`` ``[D, D]``, ``intercept_loc`` and ``intercept_scale``,
    ``noise_precision_concentration`` and ``noise_precision_rate``, and those of ``weight_precision``, ``[D]`` with
    ``ard``. They start at least squares.

    Args:
        features, target, ard, relative, intercept, center, sample_weight: as in :func:`model`.
        alpha_1, alpha_2, lambda_1, lambda_2: the model's prior.

    Raises:
        DataError: as :func:`model` does.

    Source: Bishop 2006 (10.93)-(10.103).
    """
    _check(features, target, sample_weight, ard, relative, intercept)
    each = torch.ones_like(target) if sample_weight is None else sample_weight
    start = functools.cache(lambda: _least_squares(features, target, each, intercept, center))
    count, half = each.sum(), features.new_tensor(0.5)
    gamma_factor("noise_precision", lambda: alpha_1 + count * half, lambda: alpha_2 + count * half * start().variance)

    def relevance() -> Tensor:
        squares = start().weights.square() / (start().variance if relative else 1.0) + start().covariance.diagonal()
        return lambda_2 + half * (squares if ard else squares.sum())

    def shape() -> Tensor:
        return lambda_1 + (half.expand(features.shape[1]) if ard else features.shape[1] * half)

    with pyro.plate("features", features.shape[1]) if ard else nullcontext():
        gamma_factor("weight_precision", shape, relevance)
    multivariate_normal_factor("weights", lambda: start().weights, lambda: torch.linalg.cholesky(start().covariance))
    if intercept:
        normal_factor("intercept", lambda: start().intercept, lambda: (start().variance / count).sqrt())


class _Fit(NamedTuple):
    """Weights ``[D]`` with their covariance ``[D, D]``, the intercept, and the variance of the residuals."""

    weights: Tensor
    covariance: Tensor
    intercept: Tensor
    variance: Tensor


def _least_squares(features: Tensor, target: Tensor, each: Tensor, intercept: bool, center: Tensor | None) -> _Fit:
    """Least squares, with a thousandth of the features' spread on the diagonal, so that there is one solution.

    ``each`` is how many observations each row counts as.
    """
    x, share = features if center is None else features - center, each / each.sum()
    middle, level = (share @ x, share @ target) if intercept else (torch.zeros_like(x[0]), target.new_zeros(()))
    inner, own = x - middle, target - level
    weighted = inner * each.unsqueeze(-1)
    gram = weighted.mT @ inner
    gram = gram + (1e-3 * gram.diagonal().mean() + 1e-12) * torch.eye(x.shape[1]).to(x)
    weights = torch.linalg.solve(gram, weighted.mT @ own)
    variance = (share @ (own - inner @ weights).square()).clamp_min(1e-6 * (share @ own.square()) + 1e-12)
    return _Fit(weights, variance * torch.linalg.inv(gram), level - middle @ weights, variance)


def joint_sites(*, relative: bool = False, intercept: bool = True) -> list[tuple[str, ...]]:
    """The blocks that are exact given the others: weights with the intercept, and with the noise where it is relative.

    They are for ``AutoConjugate(regression.model, blocks=joint_sites(...))``.
    """
    sites = ("weights", *["intercept"] * intercept, *["noise_precision"] * relative)
    return [sites] if len(sites) > 1 else []


def _check(
    features: Tensor, target: Tensor, sample_weight: Tensor | None, ard: bool, relative: bool, intercept: bool
) -> None:
    check_data("features", features, "[N, D]", "Write features.unsqueeze(-1) for one feature.")
    check_data("target", target, "[N]", "Write one number for each row of the features.")
    if len(target) != len(features):
        raise DataError(
            f"Expected target of shape [{len(features)}], one number for each row of the features; got "
            f"{kind_of(target)}. Take the same rows of both."
        )
    check_weights(sample_weight, len(target))
    for name, value in (("ard", ard), ("relative", relative), ("intercept", intercept)):
        check_choice(name, value, [False, True])
