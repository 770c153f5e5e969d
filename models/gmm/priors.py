"""The priors of the Bayesian mixture: those that are given, checked, and scikit-learn's where none are."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from pyro_latent.errors import ArgumentError, DataError, check_choice, check_count
from pyro_latent.models.arguments import check_data, check_weights, mean_of
from pyro_latent.values import as_tensor, kind_of

Covariance: TypeAlias = Literal["full", "tied", "diagonal", "spherical"]
Prior: TypeAlias = float | Tensor | None


class Priors(NamedTuple):
    """The prior's parameters as tensors of the data's dtype.

    ``weight_concentration`` is ``[K]``, ``mean`` ``[D]``, ``covariance`` ``[D, D]`` (full, tied), ``[D]`` (diagonal) or
    a scalar (spherical); the others are scalars.
    """

    weight_concentration: Tensor
    mean_precision: Tensor
    mean: Tensor
    degrees_of_freedom: Tensor
    covariance: Tensor

    def arguments(self) -> dict[str, Tensor]:
        """The priors by the names of the model's arguments."""
        return {f"{name}_prior": value for name, value in self._asdict().items()}


def default_priors(
    data: Tensor, num_components: int, covariance: Covariance = "full", sample_weight: Tensor | None = None
) -> dict[str, Tensor]:
    """The priors that :func:`model` takes where none are given, by the model's names.

    Args:
        data: the points, shape ``[N, D]``.
        num_components: K.
        covariance: ``"full"``, ``"tied"``, ``"diagonal"`` or ``"spherical"``.
        sample_weight: how many observations each point counts as, ``[N]``; default 1 each.

    Returns:
        ``weight_concentration_prior`` 1 / K ``[K]``, ``mean_precision_prior`` 1 ``[]``, ``mean_prior`` ``[D]``,
        ``degrees_of_freedom_prior`` D ``[]``, ``covariance_prior`` ``[D, D]``, ``[D]`` or ``[]``.

    Raises:
        DataError, ValueError: as :func:`model` does.

    Source: scikit-learn, ``BayesianGaussianMixture``.
    """
    return complete_priors(data, num_components, covariance, sample_weight=sample_weight).arguments()


def complete_priors(
    data: Tensor,
    num_components: int,
    covariance: Covariance,
    *,
    weight_concentration_prior: Prior = None,
    mean_precision_prior: Prior = None,
    mean_prior: Prior = None,
    degrees_of_freedom_prior: Prior = None,
    covariance_prior: Prior = None,
    sample_weight: Prior = None,
) -> Priors:
    """The given priors checked, and the others at their defaults, in the data's dtype and on its device."""
    check(data, num_components, covariance)
    check_weights(sample_weight, len(data))
    each = sample_weight.to(data) if isinstance(sample_weight, Tensor) else None
    dim = data.shape[-1]
    weights = _given("weight_concentration_prior", weight_concentration_prior, data, [], [num_components])
    precision = _given("mean_precision_prior", mean_precision_prior, data, [])
    for name, value in (("weight_concentration_prior", weights), ("mean_precision_prior", precision)):
        if value is not None and not bool(((value > 0) & value.isfinite()).all()):
            raise ArgumentError(f"Expected {name} to be positive and finite; got {value.tolist()}. Write {name}=1.0.")
    mean = _given("mean_prior", mean_prior, data, [dim])
    degrees = _given("degrees_of_freedom_prior", degrees_of_freedom_prior, data, [])
    least = dim - 1 if has_matrices(covariance) else 0
    if degrees is not None and not bool(degrees > least):
        raise ArgumentError(
            f"Expected degrees_of_freedom_prior > {least} for {covariance} covariances in {dim} dimensions; "
            f"got {degrees_of_freedom_prior}. Write degrees_of_freedom_prior={dim}, the default."
        )
    shape = {"diagonal": [dim], "spherical": []}.get(covariance, [dim, dim])
    scale = _given("covariance_prior", covariance_prior, data, shape, note=f" for {covariance} covariances")
    if scale is not None and not _is_positive_definite(scale):
        raise ArgumentError(
            f"Expected covariance_prior to be symmetric and positive definite; got {scale.tolist()}. Leave it out for "
            "that of the data."
        )
    return Priors(
        (data.new_tensor(1 / num_components) if weights is None else weights).expand(num_components),
        data.new_ones(()) if precision is None else precision,
        mean_of(data, each) if mean is None else mean,
        data.new_tensor(float(dim)) if degrees is None else degrees,
        empirical_covariance(data, covariance, each) if scale is None else scale,
    )


def has_matrices(covariance: Covariance) -> bool:
    """Whether covariances are matrices, with a Wishart prior of the precision."""
    return covariance in ("full", "tied")


def _given(name: str, value: Prior, data: Tensor, *shapes: list[int], note: str = "") -> Tensor | None:
    """A prior that is given, in the data's dtype and on its device; it has one of the shapes."""
    if value is None:
        return None
    tensor = as_tensor(value, data.dtype)
    if tensor is None or list(tensor.shape) not in shapes:
        found = kind_of(value) if tensor is None else f"shape {list(tensor.shape)}"
        raise ArgumentError(f"Expected {name} of shape {shapes[-1]}{note}; got {found}. Leave it out, say.")
    return tensor.to(data.device)


def empirical_covariance(data: Tensor, covariance: Covariance, each: Tensor | None = None) -> Tensor:
    """The covariance ``[D, D]`` (full, tied), the variances ``[D]``, or their mean ``[]`` (spherical), divisor N - 1.

    ``each`` is how often each point counts, ``[N]``, and N their sum; default once.

    Raises:
        DataError: if it is not positive definite.
    """
    if len(data) < 2:
        raise DataError(
            f"Expected at least 2 points for an empirical covariance; got {len(data)}. Give covariance_prior."
        )
    count = len(data) if each is None else each.sum().item()
    if count <= 1:
        raise DataError(
            f"Expected points that count as more than 1 for an empirical covariance; got a sum of {count:g}. "
            "Give covariance_prior."
        )
    deviations = data - mean_of(data, each)
    weighted = deviations if each is None else deviations * each.unsqueeze(-1)
    value = weighted.mT @ deviations if has_matrices(covariance) else (weighted * deviations).sum(0)
    value = value / (count - 1)
    is_constant = (data == data[0]).all(0)  # from its mean, which is rounded, it may deviate
    if covariance == "spherical":
        value, is_constant = value.mean(), is_constant.all(0, keepdim=True)
    if bool(is_constant.any()) or not _is_positive_definite(value):
        raise DataError(
            "Expected data with a positive definite empirical covariance; got a column that is constant, depends on "
            "the others, or is not finite. Drop it, or give covariance_prior."
        )
    return value


def _is_positive_definite(value: Tensor) -> bool:
    if value.dim() < 2:
        return bool(((value > 0) & value.isfinite()).all())
    if not torch.allclose(value, value.mT, rtol=1e-5):
        return False
    return int(torch.linalg.cholesky_ex(value).info) == 0


def check(data: Tensor, num_components: int, covariance: str) -> None:
    """Check what every function of the mixture takes.

    Raises:
        DataError: if the data is not a floating ``[N, D]`` tensor with N, D >= 1.
        ValueError: if K is no positive integer, or ``covariance`` no kind of covariance.
    """
    advice = "Write torch.as_tensor(data).double(), and data.unsqueeze(-1) for points on a line."
    check_data("data", data, "[N, D]", advice)
    check_count("num_components", num_components)
    check_choice("covariance", covariance, get_args(Covariance))
