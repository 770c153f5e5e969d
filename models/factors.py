"""Factor analysis and probabilistic PCA, Bayesian, of tables in which entries may be missing.

    relevance_k ~ Gamma(a, a),  noise_precision_d ~ Gamma(a, a scale_d²)  (of each column, or of all)
    loading_dk ~ N(0, 1 / (relevance_k noise_precision_d)),  mean_d ~ N(center_d, (1000 scale_d)²)
    factor_n ~ N(0, I),  data_nd ~ N(factor_n · loading_d + mean_d, 1 / noise_precision_d)

One precision of the noise makes it probabilistic PCA, one for each column factor analysis. With the scales of the
columns and loadings relative to the noise, the unit of a column makes no difference to the latter. A factor that the
data do not need gets a large relevance, and loadings near zero.

Source: Tipping and Bishop 1999; Bishop 1999, "Variational principal components"; Bishop 2006 §12.2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent.errors import DataError, check_choice, check_count
from pyro_latent.models.arguments import check_data, gamma_factor, multivariate_normal_factor, normal_factor
from pyro_latent.values import kind_of

__all__ = ["guide", "model", "start"]

_WIDE = 1000.0


def model(
    data: Tensor,
    num_factors: int,
    *,
    seen: Tensor | None = None,
    noise_by_column: bool = True,
    prior: float = 1e-3,
    center: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    """Sites ``relevance``, ``noise_precision``, ``loading``, ``mean``, ``factor`` and ``data``.

    ``relevance`` is in plate ``factors``, of size K; ``loading``, of event shape ``[K]``, and ``mean`` are in plate
    ``columns``, of size D and dim -1, and so is ``noise_precision`` with ``noise_by_column``; ``factor``, of event
    shape ``[K]``, is in plate ``rows``, of size N and dim -2.

    Args:
        data: the table, shape ``[N, D]``, floating and finite; its dtype and device are the model's.
        num_factors: K, at least 1.
        seen: which entries count, ``[N, D]`` of bool; default all.
        noise_by_column: True: factor analysis; False: probabilistic PCA.
        prior: a, concentration and, in the unit of the columns, rate of the Gamma priors.
        center, scale: where the columns lie and how far they spread, ``[D]``, for the priors; default the mean and the
            standard deviation of what is seen.

    Raises:
        DataError: if ``data`` is not a floating ``[N, D]`` tensor, ``seen`` is of another shape, or a column has fewer
            than two different values that are seen.

    Source: Bishop 1999 (12)-(16).
    """
    _check(data, num_factors, seen, noise_by_column)
    if center is None or scale is None:
        own_center, deviation = column_moments(data, seen)
        center = own_center if center is None else center
        scale = deviation if scale is None else scale
    (count, width), shape = data.shape, data.new_tensor(prior)
    variance = scale.square() if noise_by_column else scale.square().mean()
    columns, rows = pyro.plate("columns", width, dim=-1), pyro.plate("rows", count, dim=-2)
    with pyro.plate("factors", num_factors, dim=-1):
        relevance = pyro.sample("relevance", dist.Gamma(shape, shape))
    with columns if noise_by_column else nullcontext():
        noise = pyro.sample("noise_precision", dist.Gamma(shape, shape * variance), infer=_shared())
    with columns:
        spread = (relevance * noise.unsqueeze(-1)).rsqrt()
        own = dist.Normal(data.new_zeros(width, num_factors), spread).to_event(1)
        loading = pyro.sample("loading", own, infer=_shared())
        mean = pyro.sample("mean", dist.Normal(center, _WIDE * scale), infer=_shared())
    with rows:
        standard = dist.Normal(data.new_zeros(count, 1, num_factors), 1.0).to_event(1)
        factor = pyro.sample("factor", standard)
        with columns:
            entry = dist.Normal((factor * loading).sum(-1) + mean, noise.rsqrt())
            pyro.sample("data", entry if seen is None else entry.mask(seen), obs=data)


def guide(
    data: Tensor,
    num_factors: int,
    *,
    seen: Tensor | None = None,
    noise_by_column: bool = True,
    **prior: Any,
) -> None:
    """Mean-field guide for ``SVI``: Gamma precisions, and normals of the loadings of a column, its mean, and a row's
    factors.

    Parameters: by site its name with ``_concentration`` and ``_rate``, or ``_loc`` and ``_scale_tril`` (``_scale`` of
    the mean), of the site's shape. They start at principal components of the data, with what is not seen at the mean of
    its column.

    Args:
        data, num_factors, seen, noise_by_column: as in :func:`model`.
        **prior: the model's prior; not used.

    Raises:
        DataError: as :func:`model` does.

    Source: Bishop 1999 (17)-(24).
    """
    _check(data, num_factors, seen, noise_by_column)
    begin = functools.cache(lambda: _principal(data, num_factors, seen, noise_by_column))

    def at(name: str, *parameters: str) -> list[Callable[[], Tensor]]:
        return [functools.partial(_own, begin, name, parameter) for parameter in parameters]

    with pyro.plate("factors", num_factors, dim=-1):
        gamma_factor("relevance", *at("relevance", "concentration", "rate"))
    columns, rows = pyro.plate("columns", data.shape[1], dim=-1), pyro.plate("rows", len(data), dim=-2)
    with columns if noise_by_column else nullcontext():
        gamma_factor("noise_precision", *at("noise_precision", "concentration", "rate"))
    with columns:
        multivariate_normal_factor("loading", *at("loading", "loc", "scale_tril"))
        normal_factor("mean", *at("mean", "loc", "scale"))
    with rows:
        multivariate_normal_factor("factor", *at("factor", "loc", "scale_tril"))


def _own(begin: Callable[[], dict[str, Any]], name: str, parameter: str) -> Tensor:
    """A parameter of a site's distribution, with memory of its own."""
    found: Tensor = getattr(begin()[name], parameter)
    return found.clone()


def _principal(data: Tensor, num_factors: int, seen: Tensor | None, by_column: bool) -> dict[str, Any]:
    """Factors of all sites at principal components; those of ``factor`` given the loadings, of shape ``[N, 1, K]``."""
    center, _ = column_moments(data, seen)
    filled = data - center if seen is None else torch.where(seen, data - center, 0.0)
    _, sizes, axes = torch.linalg.svd(filled, full_matrices=False)
    loading = axes[:num_factors].mT * sizes[:num_factors] / len(data) ** 0.5
    residual = (filled - filled @ axes[:num_factors].mT @ axes[:num_factors]).square().mean(0)
    noise = residual.clamp_min(1e-3 * filled.square().mean(0))
    noise = noise if by_column else noise.mean()
    weighted = loading / noise.expand(len(center)).unsqueeze(-1)
    covariance = torch.linalg.inv(weighted.mT @ loading + torch.eye(loading.shape[1]).to(loading))
    places = (filled @ weighted @ covariance).unsqueeze(1)
    factor = dist.MultivariateNormal(places, covariance.expand(len(data), 1, -1, -1))
    return {**start(data, loading, noise, seen=seen), "factor": factor}


def _shared() -> Any:
    """New rows have the same columns."""
    return {"local": False}


def start(
    data: Tensor, loading: Tensor, noise_variance: Tensor, *, seen: Tensor | None = None
) -> dict[str, dist.TorchDistribution]:
    """Where to start: at loadings ``[D, K]`` and variances of the noise, ``[D]`` or scalar, that another method found.

    Returns:
        ``init`` of an ``AutoConjugate`` guide: factors of all sites but ``factor``, which a sweep updates first; each
        about as certain as N rows make it.
    """
    (count, width), num_factors = data.shape, loading.shape[1]
    center, deviation = column_moments(data, seen)
    by_column = noise_variance.expand(width)
    half = count * (1 if noise_variance.dim() else width) / 2
    squares = (loading.square() / by_column.unsqueeze(-1)).mean(0) + 1e-3
    identity = torch.eye(num_factors, dtype=data.dtype, device=data.device)
    return {
        "relevance": dist.Gamma(data.new_tensor(width / 2), width / 2 * squares),
        "noise_precision": dist.Gamma(data.new_tensor(half), half * noise_variance),
        "loading": dist.MultivariateNormal(loading, by_column[:, None, None] / count * identity),
        "mean": dist.Normal(center, deviation / count**0.5),
    }


def column_moments(data: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what is seen of each column, ``[D]``.

    Raises:
        DataError: if a column has fewer than two different values.
    """
    weight = torch.ones_like(data) if seen is None else seen.to(data.dtype)
    count = weight.sum(0)
    center = (data * weight).sum(0) / count
    deviation = (((data - center) * weight).square().sum(0) / count).sqrt()
    first = data[weight.argmax(0), torch.arange(data.shape[1], device=data.device)]  # of what is seen
    known = ((data != first) & (weight > 0)).any(0) & (deviation > 1e-12 * center.abs())
    if not bool(known.all()):
        raise DataError(
            "Expected at least two different values in each column, NaN left aside; got fewer in columns "
            f"{(~known).nonzero().squeeze(-1).tolist()}. Drop them."
        )
    return center, deviation


def _check(data: Tensor, num_factors: int, seen: Tensor | None, noise_by_column: bool) -> None:
    check_data("data", data, "[N, D]", "Write torch.as_tensor(data).double().")
    check_count("num_factors", num_factors)
    check_choice("noise_by_column", noise_by_column, [True, False])
    if seen is not None and (seen.dtype != torch.bool or seen.shape != data.shape):
        raise DataError(
            f"Expected seen to be a tensor of bool of the data's shape {list(data.shape)}; got {kind_of(seen)}. Write "
            "data.isfinite(), and data.nan_to_num() for the data."
        )
