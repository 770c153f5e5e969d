"""The mixture by maximum likelihood: parameters instead of priors, for EM.

Source: [4] (31)-(44), Bishop 2006 §9.2.
"""

from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_latent.errors import ArgumentError
from pyro_latent.models.arguments import Guided

from .priors import Covariance, check, empirical_covariance, has_matrices
from .starts import initial_responsibilities, weighted_means


def ml_guide(data: Tensor, num_components: int, *, covariance: Covariance = "full", reg_covar: float = 0.0) -> None:
    """A guide without a site, for ``SVI`` with ``TraceEnum_ELBO``, which sums the components out exactly."""


def ml_model(data: Tensor, num_components: int, *, covariance: Covariance = "full", reg_covar: float = 0.0) -> None:
    """The mixture with parameters ``weights``, ``mean`` and ``covariance``, for maximum likelihood by ``EM``.

    ``weights`` is ``[K]``, ``mean`` ``[K, D]``, and ``covariance`` ``[K, D, D]`` (full), ``[D, D]`` (tied, shared by
    all), or variances ``[K, D]`` (diagonal) or ``[K]`` (spherical). Sites ``component``, enumerated in parallel, and
    ``obs`` are in plate ``data``.

    Without a floor the likelihood has no bound: a component may shrink on one point. ``reg_covar`` is the variance of a
    noise that each coordinate of each point is taken to carry: the log density of a point in a component becomes its
    mean over that noise,

        E log N(x_n + noise | mean_k, covariance_k) = log N(x_n | mean_k, covariance_k)
                                                      - reg_covar / 2 tr(covariance_k⁻¹),

    by a factor at site ``noise``. The M-step is then scikit-learn's, weighted scatter / weight + reg_covar I, and no
    variance falls below the floor. The E-step differs from scikit-learn's, which leaves the factor out there; so its
    likelihood may fall, and the objective here never does. An inverse-Wishart prior would be another floor, by (scatter
    + Ψ) / (weight + ν + D + 1), which fades as a component gathers points.

    Args:
        data: the points, shape ``[N, D]``, floating; its dtype and device are the model's.
        num_components: K, at least 1.
        covariance: ``"full"``, ``"tied"``, ``"diagonal"`` or ``"spherical"``.
        reg_covar: the floor of the variances, at least 0, in the unit of the data squared; 0: none.

    Raises:
        DataError: if the data is not a floating ``[N, D]`` tensor with N, D >= 1.
        ValueError: if K, ``covariance`` or ``reg_covar`` is not as above.

    Source: [4] (31)-(44), Bishop 2006 (9.7)-(9.13), §9.2.2.
    """
    check(data, num_components, covariance)
    if not 0 <= reg_covar < math.inf:
        raise ArgumentError(f"Expected reg_covar to be a finite number >= 0; got {reg_covar}. Write reg_covar=1e-6.")
    start = functools.cache(lambda: ml_start(data, num_components, covariance))
    is_matrix = has_matrices(covariance)
    weights = pyro.param("weights", lambda: start()["weights"], constraint=constraints.simplex)
    mean = pyro.param("mean", lambda: start()["mean"])
    spread = pyro.param(
        "covariance",
        lambda: start()["covariance"],
        constraint=constraints.positive_definite if is_matrix else constraints.positive,
    )
    with pyro.plate("data", len(data)):
        with Guided("Write TraceEnum_ELBO."):
            component = pyro.sample("component", dist.Categorical(weights), infer={"enumerate": "parallel"})
        loc, of_point = mean[component], spread if covariance == "tied" else spread[component]
        if is_matrix:
            pyro.sample("obs", dist.MultivariateNormal(loc, of_point), obs=data)
        else:
            variance = of_point.unsqueeze(-1) if covariance == "spherical" else of_point
            pyro.sample("obs", dist.Normal(loc, variance.sqrt()).to_event(1), obs=data)
        if reg_covar:
            pyro.factor("noise", -reg_covar / 2 * _trace_of_inverse(of_point, covariance, data.shape[-1]))


def _trace_of_inverse(of_point: Tensor, covariance: Covariance, dim: int) -> Tensor:
    if covariance == "spherical":
        return dim / of_point
    if covariance == "diagonal":
        return (1 / of_point).sum(-1)
    return (torch.linalg.inv(of_point) * torch.eye(dim, dtype=of_point.dtype, device=of_point.device)).sum((-2, -1))


def ml_start(data: Tensor, num_components: int, covariance: Covariance = "full") -> dict[str, Tensor]:
    """Where the parameters of :func:`ml_model` start: at the means of k-means clusters drawn from torch's random state.

    Returns:
        ``weights`` 1 / K, ``mean``, and the data's covariance as every ``covariance``, in the shapes of
        :func:`ml_model`.

    Raises:
        DataError, ValueError: as :func:`ml_model` does, and DataError if the data has no empirical covariance.
    """
    check(data, num_components, covariance)
    matrix = empirical_covariance(data, "full")
    shared = {"full": matrix, "tied": matrix, "diagonal": matrix.diagonal(), "spherical": matrix.diagonal().mean()}
    spread = shared[covariance]
    if covariance != "tied":
        spread = spread.expand(num_components, *spread.shape)
    _, mean = weighted_means(data, initial_responsibilities(data, num_components))
    weights = torch.full((num_components,), 1 / num_components, dtype=data.dtype, device=data.device)
    return {"weights": weights, "mean": mean, "covariance": spread.clone()}
