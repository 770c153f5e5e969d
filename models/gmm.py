"""A mixture of K Gaussians: Bayesian (``model``, full or diagonal), or by maximum likelihood (``ml_model``).

    weights ~ Dirichlet(a_0),  precision_k ~ Wishart(v_0, W_0),  mean_k | precision_k ~ N(m_0, (k_0 precision_k)⁻¹)
    component_n ~ Categorical(weights),  x_n ~ N(mean_k, precision_k⁻¹) for k = component_n

The priors have the names, meanings and defaults of scikit-learn's ``BayesianGaussianMixture``: a_0 is
``weight_concentration_prior``, k_0 ``mean_precision_prior``, m_0 ``mean_prior``, v_0 ``degrees_of_freedom_prior``, and
``covariance_prior`` is W_0⁻¹, so that the prior mean of a precision is v_0 W_0. With diagonal covariances each
dimension has its own precision, Gamma(v_0 / 2, ``covariance_prior`` / 2), which is the Wishart of one dimension. (There
scikit-learn takes E[log det precision] from a D-dimensional Wishart instead, so its diagonal fit is this model's only
for D = 1.)

The posterior is approximated by q(component) q(weights) q(mean, precision), the last factor Normal-Wishart, or
Normal-Gamma where covariances are diagonal.

The maximum-likelihood form has parameters instead of priors, and covariances that may also be shared (tied) or one
number each (spherical): EM on it is the textbook's, and scikit-learn's ``GaussianMixture``.

Source: [4] (29)-(44) for the mixture and EM, (75) and (89) for the updates; Bishop 2006 §9.2, §10.2.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

from pyro_latent.distributions import NormalGamma, NormalWishart
from pyro_latent.errors import ArgumentError, DataError

__all__ = [
    "default_priors",
    "guide",
    "initial_responsibilities",
    "ml_model",
    "ml_start",
    "model",
    "update_component",
    "update_mean_precision",
    "update_weights",
    "updates",
]

Covariance: TypeAlias = Literal["full", "diagonal"]
MLCovariance: TypeAlias = Literal["full", "tied", "diagonal", "spherical"]
Prior: TypeAlias = float | Tensor | None


class _Priors(NamedTuple):
    """The prior's parameters as tensors of the data's dtype; ``covariance`` is ``[D, D]`` (full) or ``[D]``."""

    weight_concentration: Tensor
    mean_precision: Tensor
    mean: Tensor
    degrees_of_freedom: Tensor
    covariance: Tensor


def model(
    data: Tensor,
    num_components: int,
    *,
    covariance: Covariance = "full",
    weight_concentration_prior: Prior = None,
    mean_precision_prior: Prior = None,
    mean_prior: Tensor | None = None,
    degrees_of_freedom_prior: Prior = None,
    covariance_prior: Tensor | None = None,
) -> None:
    """A Gaussian mixture; sites ``weights``, ``precision``, ``mean``, ``component`` and ``obs``.

    ``weights`` has event shape ``[K]``. ``precision`` and ``mean`` are in plate ``components`` of size K, with event
    shapes ``[D, D]`` (full) or ``[D]`` (diagonal) and ``[D]``. ``component``, marked for parallel enumeration, and
    ``obs`` are in plate ``data`` of size N.

    Args:
        data: the points, shape ``[N, D]``, floating; its dtype and device are the model's.
        num_components: K, at least 1.
        covariance: ``"full"`` or ``"diagonal"``.
        weight_concentration_prior: Dirichlet concentration of every component, scalar or ``[K]``; default 1 / K.
        mean_precision_prior: how many points the prior of a mean is worth, scalar; default 1.
        mean_prior: prior mean of the means, shape ``[D]``, in the unit of the data; default the data's mean.
        degrees_of_freedom_prior: Wishart degrees of freedom, a scalar above D - 1 (full) or 0 (diagonal); default D.
        covariance_prior: inverse scale of the precisions, shape ``[D, D]`` (full) or ``[D]`` (diagonal), in the unit
            of the data squared; default the empirical covariance or variance, divisor N - 1.

    A default prior depends on the points passed. With minibatches pass ``**default_priors(...)`` of all the data.

    Raises:
        DataError: if the data is not a floating ``[N, D]`` tensor with N, D >= 1, or has no empirical covariance.
        ValueError: if K, ``covariance`` or a prior is not as above.

    Source: [4] (29)-(35), Bishop 2006 (10.37)-(10.40).
    """
    priors = _complete_priors(
        data,
        num_components,
        covariance,
        weight_concentration_prior=weight_concentration_prior,
        mean_precision_prior=mean_precision_prior,
        mean_prior=mean_prior,
        degrees_of_freedom_prior=degrees_of_freedom_prior,
        covariance_prior=covariance_prior,
    )
    weights = pyro.sample("weights", dist.Dirichlet(priors.weight_concentration))
    if covariance == "full":
        _sample_full(data, num_components, priors, weights)
    else:
        _sample_diagonal(data, num_components, priors, weights)


def _sample_full(data: Tensor, num_components: int, priors: _Priors, weights: Tensor) -> None:
    scale_matrix = _inverse(priors.covariance)
    with pyro.plate("components", num_components):
        precision = pyro.sample("precision", dist.Wishart(priors.degrees_of_freedom, covariance_matrix=scale_matrix))
        mean = pyro.sample(
            "mean", dist.MultivariateNormal(priors.mean, precision_matrix=priors.mean_precision * precision)
        )
    with pyro.plate("data", len(data)):
        component = pyro.sample("component", dist.Categorical(weights), infer={"enumerate": "parallel"})
        loc, matrix = _of_component(mean, component, 1), _of_component(precision, component, 2)
        pyro.sample("obs", dist.MultivariateNormal(loc, precision_matrix=matrix), obs=data)


def _sample_diagonal(data: Tensor, num_components: int, priors: _Priors, weights: Tensor) -> None:
    with pyro.plate("components", num_components):
        precision = pyro.sample(
            "precision", dist.Gamma(priors.degrees_of_freedom / 2, priors.covariance / 2).to_event(1)
        )
        mean = pyro.sample("mean", dist.Normal(priors.mean, (priors.mean_precision * precision).rsqrt()).to_event(1))
    with pyro.plate("data", len(data)):
        component = pyro.sample("component", dist.Categorical(weights), infer={"enumerate": "parallel"})
        loc, precision = _of_component(mean, component, 1), _of_component(precision, component, 1)
        pyro.sample("obs", dist.Normal(loc, precision.rsqrt()).to_event(1), obs=data)


def _of_component(parameter: Tensor, component: Tensor, event_dim: int) -> Tensor:
    """Each point's ``parameter[component]``, also where particles of ``Trace_ELBO`` add dimensions on the left.

    ``parameter`` is ``[..., K] + event``. The new dimension stands for the plate of points.
    """
    batched = parameter.unsqueeze(-2 - event_dim)
    return Vindex(batched)[(..., component, *[slice(None)] * event_dim)]


def ml_model(data: Tensor, num_components: int, *, covariance: MLCovariance = "full", reg_covar: float = 0.0) -> None:
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
    _check(data, num_components, covariance, ("full", "tied", "diagonal", "spherical"))
    if not 0 <= reg_covar < math.inf:
        raise ArgumentError(f"Expected reg_covar to be a finite number >= 0; got {reg_covar}.")
    start = functools.cache(lambda: ml_start(data, num_components, covariance))
    is_matrix = covariance in ("full", "tied")
    weights = pyro.param("weights", lambda: start()["weights"], constraint=constraints.simplex)
    mean = pyro.param("mean", lambda: start()["mean"])
    spread = pyro.param(
        "covariance",
        lambda: start()["covariance"],
        constraint=constraints.positive_definite if is_matrix else constraints.positive,
    )
    with pyro.plate("data", len(data)):
        component = pyro.sample("component", dist.Categorical(weights), infer={"enumerate": "parallel"})
        loc, of_point = mean[component], spread if covariance == "tied" else spread[component]
        if is_matrix:
            pyro.sample("obs", dist.MultivariateNormal(loc, of_point), obs=data)
        else:
            variance = of_point.unsqueeze(-1) if covariance == "spherical" else of_point
            pyro.sample("obs", dist.Normal(loc, variance.sqrt()).to_event(1), obs=data)
        if reg_covar:
            pyro.factor("noise", -reg_covar / 2 * _trace_of_inverse(of_point, covariance, data.shape[-1]))


def _trace_of_inverse(of_point: Tensor, covariance: MLCovariance, dim: int) -> Tensor:
    if covariance == "spherical":
        return dim / of_point
    if covariance == "diagonal":
        return (1 / of_point).sum(-1)
    return (torch.linalg.inv(of_point) * torch.eye(dim, dtype=of_point.dtype, device=of_point.device)).sum((-2, -1))


def ml_start(data: Tensor, num_components: int, covariance: MLCovariance = "full") -> dict[str, Tensor]:
    """Where the parameters of :func:`ml_model` start: at the means of k-means clusters drawn from torch's random state.

    Returns:
        ``weights`` 1 / K, ``mean``, and the data's covariance as every ``covariance``, in the shapes of
        :func:`ml_model`.

    Raises:
        DataError, ValueError: as :func:`ml_model` does, and DataError if the data has no empirical covariance.
    """
    _check(data, num_components, covariance, ("full", "tied", "diagonal", "spherical"))
    matrix = _covariance(data, "full", None)
    shared = {"full": matrix, "tied": matrix, "diagonal": matrix.diagonal(), "spherical": matrix.diagonal().mean()}
    spread = shared[covariance]
    if covariance != "tied":
        spread = spread.expand(num_components, *spread.shape)
    _, mean = _weighted_means(data, initial_responsibilities(data, num_components))
    weights = torch.full((num_components,), 1 / num_components, dtype=data.dtype, device=data.device)
    return {"weights": weights, "mean": mean, "covariance": spread.clone()}


def default_priors(data: Tensor, num_components: int, covariance: Covariance = "full") -> dict[str, Tensor]:
    """The priors that :func:`model` takes where none are given, by the model's names.

    Args:
        data: the points, shape ``[N, D]``.
        num_components: K.
        covariance: ``"full"`` or ``"diagonal"``.

    Returns:
        ``weight_concentration_prior`` 1 / K ``[K]``, ``mean_precision_prior`` 1 ``[]``, ``mean_prior`` ``[D]``,
        ``degrees_of_freedom_prior`` D ``[]``, ``covariance_prior`` ``[D, D]`` or ``[D]``.

    Raises:
        DataError, ValueError: as :func:`model` does.

    Source: scikit-learn, ``BayesianGaussianMixture``.
    """
    priors = _complete_priors(data, num_components, covariance)
    return {f"{name}_prior": value for name, value in priors._asdict().items()}


def update_component(
    q: Mapping[Any, Any],
    data: Tensor,
    num_components: int,
    *,
    covariance: Covariance = "full",
    **priors: Prior,
) -> dist.Categorical:
    """Update of q(component): the responsibilities, proportional to exp E[log weight_k + log N(x_n | component k)].

    Args:
        q: current posteriors; ``q["weights"]`` and ``q[("mean", "precision")]`` are read.
        data: the points, shape ``[N, D]``.
        num_components: K.
        covariance: ``"full"`` or ``"diagonal"``.
        **priors: the model's priors; not needed here.

    Returns:
        A Categorical of batch shape ``[N]``, ``probs`` of shape ``[N, K]``.

    Source: [4] (75), Bishop 2006 (10.46)-(10.49), (10.64)-(10.66).
    """
    _check(data, num_components, covariance)
    concentration = q["weights"].concentration
    expected_log_weights = torch.digamma(concentration) - torch.digamma(concentration.sum(-1, keepdim=True))
    expected_log_density = _expected_log_density_full if covariance == "full" else _expected_log_density_diagonal
    logits = expected_log_weights + expected_log_density(data, q[("mean", "precision")])
    return dist.Categorical(probs=logits.softmax(-1))


def _expected_log_density_full(data: Tensor, block: NormalWishart) -> Tensor:
    """E log N(x_n | mean_k, precision_k⁻¹) under a Normal-Wishart, shape ``[N, K]``."""
    dim = data.shape[-1]
    tril = torch.linalg.cholesky(block.covariance_matrix)
    halves = (block.df.unsqueeze(-1) - torch.arange(dim, dtype=data.dtype, device=data.device)) / 2
    expected_log_det = (
        torch.digamma(halves).sum(-1) + dim * math.log(2) + 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    )
    squares = torch.stack(
        [((data - loc) @ factor).square().sum(-1) for loc, factor in zip(block.loc, tril, strict=True)], -1
    )
    expected_square = dim / block.precision_scaling + block.df * squares
    return (expected_log_det - dim * math.log(2 * math.pi) - expected_square) / 2


def _expected_log_density_diagonal(data: Tensor, block: NormalGamma) -> Tensor:
    """Σ_d E log N(x_nd | mean_kd, 1 / precision_kd) under Normal-Gammas, shape ``[N, K]``."""
    expected_log_precision = torch.digamma(block.concentration) - block.rate.log()
    expected_precision = block.concentration / block.rate
    squares = torch.stack(
        [
            ((data - loc).square() * precision).sum(-1)
            for loc, precision in zip(block.loc, expected_precision, strict=True)
        ],
        -1,
    )
    constant = (expected_log_precision - math.log(2 * math.pi) - 1 / block.precision_scaling).sum(-1)
    return (constant - squares) / 2


def update_weights(
    q: Mapping[Any, Any],
    data: Tensor,
    num_components: int,
    *,
    covariance: Covariance = "full",
    **priors: Prior,
) -> dist.Dirichlet:
    """Update of q(weights): Dirichlet(a_0 + Σ_n r_nk).

    Args:
        q: current posteriors; ``q["component"]`` is read.
        data: the points, shape ``[N, D]``.
        num_components: K.
        covariance: ``"full"`` or ``"diagonal"``.
        **priors: the model's priors.

    Returns:
        A Dirichlet of event shape ``[K]``.

    Source: [4] (89), Bishop 2006 (10.51), (10.57)-(10.58).
    """
    prior = _complete_priors(data, num_components, covariance, **priors)
    return dist.Dirichlet(prior.weight_concentration + _responsibilities(q).sum(0))


def update_mean_precision(
    q: Mapping[Any, Any],
    data: Tensor,
    num_components: int,
    *,
    covariance: Covariance = "full",
    **priors: Prior,
) -> NormalWishart | NormalGamma:
    """Update of q(mean, precision): the conjugate posterior of each component, given its responsibilities.

    Args:
        q: current posteriors; ``q["component"]`` is read.
        data: the points, shape ``[N, D]``.
        num_components: K.
        covariance: ``"full"`` or ``"diagonal"``.
        **priors: the model's priors.

    Returns:
        A Normal-Wishart of batch shape ``[K]`` (full), or Normal-Gammas of batch shape ``[K, D]`` (diagonal).

    Source: [4] (80), (89); Bishop 2006 (10.51)-(10.53), (10.59)-(10.63).
    """
    prior = _complete_priors(data, num_components, covariance, **priors)
    responsibilities = _responsibilities(q)
    if covariance == "full":
        return _normal_wishart(data, responsibilities, prior)
    return _normal_gamma(data, responsibilities, prior)


def _normal_wishart(data: Tensor, responsibilities: Tensor, prior: _Priors) -> NormalWishart:
    counts, means = _weighted_means(data, responsibilities)
    scatter = torch.stack(
        [
            ((data - mean) * weight.unsqueeze(-1)).mT @ (data - mean)
            for mean, weight in zip(means, responsibilities.mT, strict=True)
        ]
    )
    scaling, loc, deviation, shrinkage = _conjugate_mean(counts, means, prior)
    between = shrinkage[:, None, None] * deviation.unsqueeze(-1) * deviation.unsqueeze(-2)
    scale_matrix = _inverse(prior.covariance + scatter + between)
    return NormalWishart(loc, scaling, prior.degrees_of_freedom + counts, scale_matrix)


def _normal_gamma(data: Tensor, responsibilities: Tensor, prior: _Priors) -> NormalGamma:
    counts, means = _weighted_means(data, responsibilities)
    scatter = torch.stack(
        [weight @ (data - mean).square() for mean, weight in zip(means, responsibilities.mT, strict=True)]
    )
    scaling, loc, deviation, shrinkage = _conjugate_mean(counts, means, prior)
    rate = (prior.covariance + scatter + shrinkage.unsqueeze(-1) * deviation.square()) / 2
    concentration = (prior.degrees_of_freedom + counts) / 2
    return NormalGamma(loc, scaling.unsqueeze(-1).expand_as(loc), concentration.unsqueeze(-1).expand_as(loc), rate)


def _weighted_means(data: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor]:
    """Counts ``[K]`` and weighted means ``[K, D]``; the data's mean for a component without points."""
    center = data.mean(0)
    counts = responsibilities.sum(0)
    sums = responsibilities.mT @ (data - center)
    return counts, center + sums / counts.clamp(min=torch.finfo(data.dtype).tiny).unsqueeze(-1)


def _conjugate_mean(counts: Tensor, means: Tensor, prior: _Priors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Precision scaling ``[K]``, location ``[K, D]``, deviation from the prior ``[K, D]`` and its weight ``[K]``."""
    scaling = prior.mean_precision + counts
    deviation = means - prior.mean
    loc = prior.mean + (counts / scaling).unsqueeze(-1) * deviation
    return scaling, loc, deviation, prior.mean_precision * counts / scaling


def _responsibilities(q: Mapping[Any, Any]) -> Tensor:
    """Responsibilities ``[N, K]``, times the scale of the plate of points."""
    probs = q["component"].probs
    scale = torch.as_tensor(getattr(q, "scales", {}).get("component", 1.0), dtype=probs.dtype)
    return probs * scale.to(probs.device).unsqueeze(-1)


updates: dict[str | tuple[str, str], Callable[..., Any]] = {
    "component": update_component,
    "weights": update_weights,
    ("mean", "precision"): update_mean_precision,
}
"""The closed-form updates, for both kinds of covariance; Bishop 2006 §10.2.1."""


def guide(
    data: Tensor,
    num_components: int,
    *,
    covariance: Covariance = "full",
    **priors: Prior,
) -> None:
    """Structured guide q(weights) q(mean, precision) for ``SVI``; ``component`` is left to ``TraceEnum_ELBO``.

    Parameters: ``weight_concentration`` ``[K]``, ``mean_loc`` ``[K, D]``, ``mean_precision_scaling`` ``[K]``, and
    ``precision_df`` ``[K]`` with ``precision_scale_tril`` ``[K, D, D]``, the Cholesky factor of the Wishart's scale
    matrix (full), or ``precision_concentration`` ``[K]`` with ``precision_rate`` ``[K, D]`` (diagonal). They start at
    the closed-form update for the clusters of :func:`initial_responsibilities`, drawn from torch's random state.

    Args:
        data: the points, shape ``[N, D]``.
        num_components: K.
        covariance: ``"full"`` or ``"diagonal"``.
        **priors: the model's priors.

    Raises:
        DataError, ValueError: as :func:`model` does.

    Source: Bishop 2006 (10.42), (10.57), (10.59).
    """
    prior = _complete_priors(data, num_components, covariance, **priors)
    start = functools.cache(lambda: _start(data, num_components, covariance, prior))
    concentration = pyro.param(
        "weight_concentration", lambda: start().weight_concentration, constraint=constraints.positive
    )
    pyro.sample("weights", dist.Dirichlet(concentration))
    loc = pyro.param("mean_loc", lambda: start().block.loc)
    scaling = pyro.param("mean_precision_scaling", lambda: start().precision_scaling, constraint=constraints.positive)
    with pyro.plate("components", num_components):
        if covariance == "full":
            _guide_full(start, data.shape[-1], loc, scaling)
        else:
            _guide_diagonal(start, loc, scaling)


def _guide_full(start: Callable[[], "_Start"], dim: int, loc: Tensor, scaling: Tensor) -> None:
    df = pyro.param("precision_df", lambda: start().block.df, constraint=constraints.greater_than(dim - 1))
    scale_tril = pyro.param(
        "precision_scale_tril",
        lambda: torch.linalg.cholesky(start().block.covariance_matrix),
        constraint=constraints.lower_cholesky,
    )
    precision = pyro.sample("precision", dist.Wishart(df, scale_tril=scale_tril))
    pyro.sample("mean", dist.MultivariateNormal(loc, precision_matrix=scaling[:, None, None] * precision))


def _guide_diagonal(start: Callable[[], "_Start"], loc: Tensor, scaling: Tensor) -> None:
    concentration = pyro.param(
        "precision_concentration", lambda: start().block.concentration[:, 0], constraint=constraints.positive
    )
    rate = pyro.param("precision_rate", lambda: start().block.rate, constraint=constraints.positive)
    precision = pyro.sample("precision", dist.Gamma(concentration.unsqueeze(-1), rate).to_event(1))
    pyro.sample("mean", dist.Normal(loc, (scaling.unsqueeze(-1) * precision).rsqrt()).to_event(1))


class _Start(NamedTuple):
    """Where the guide starts: ``weight_concentration`` and ``precision_scaling`` are ``[K]``."""

    weight_concentration: Tensor
    precision_scaling: Tensor
    block: Any


def _start(data: Tensor, num_components: int, covariance: Covariance, prior: _Priors) -> _Start:
    responsibilities = initial_responsibilities(data, num_components)
    concentration = prior.weight_concentration + responsibilities.sum(0)
    conjugate = _normal_wishart if covariance == "full" else _normal_gamma
    scaling = prior.mean_precision + responsibilities.sum(0)
    return _Start(concentration, scaling, conjugate(data, responsibilities, prior))


def initial_responsibilities(
    data: Tensor, num_components: int, *, num_steps: int = 10, generator: torch.Generator | None = None
) -> Tensor:
    """One-hot responsibilities of K clusters: k-means++ seeds and a few Lloyd steps on standardised data.

    Args:
        data: the points, shape ``[N, D]``.
        num_components: K; with fewer distinct points than K some clusters stay empty.
        num_steps: Lloyd steps.
        generator: source of the random seeds, on the data's device; torch's global one by default.

    Returns:
        Responsibilities, shape ``[N, K]``, of the data's dtype.

    Raises:
        DataError, ValueError: as :func:`model` does.

    Source: Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding".
    """
    _check(data, num_components, "full")
    points = data - data.mean(0)
    spread = points.square().mean(0).sqrt()
    points = points / torch.where(spread > 0, spread, torch.ones_like(spread))
    centers = _seed_centers(points, num_components, generator)
    for _ in range(num_steps):
        labels = torch.cdist(points, centers).argmin(-1)
        members = torch.nn.functional.one_hot(labels, num_components).to(data.dtype)
        counts = members.sum(0).unsqueeze(-1)
        centers = torch.where(counts > 0, members.mT @ points / counts.clamp(min=1), centers)
    labels = torch.cdist(points, centers).argmin(-1)
    return torch.nn.functional.one_hot(labels, num_components).to(data.dtype)


def _seed_centers(points: Tensor, num_components: int, generator: torch.Generator | None) -> Tensor:
    """K of the points ``[K, D]``, each drawn by its squared distance from those before it."""
    first = torch.randint(len(points), (1,), generator=generator, device=points.device)
    centers = points[first]
    distances = (points - centers[0]).square().sum(-1)
    while len(centers) < num_components:
        # Ends of a uniform draw on the cumulated distances: torch.multinomial stops at 2**24 points.
        cumulated = distances.cumsum(0)
        draw = torch.rand(1, generator=generator, device=points.device, dtype=points.dtype) * cumulated[-1]
        chosen = points[torch.searchsorted(cumulated, draw, right=True).clamp(max=len(points) - 1)]
        centers = torch.cat([centers, chosen])
        distances = torch.minimum(distances, (points - chosen[0]).square().sum(-1))
    return centers


def _complete_priors(
    data: Tensor,
    num_components: int,
    covariance: Covariance,
    *,
    weight_concentration_prior: Prior = None,
    mean_precision_prior: Prior = None,
    mean_prior: Prior = None,
    degrees_of_freedom_prior: Prior = None,
    covariance_prior: Prior = None,
) -> _Priors:
    """The given priors checked, and the others at their defaults, in the data's dtype and on its device."""
    _check(data, num_components, covariance)
    dim = data.shape[-1]
    weight_concentration = _positive(
        "weight_concentration_prior", weight_concentration_prior, 1 / num_components, data, [num_components]
    )
    degrees_of_freedom = _as_data("degrees_of_freedom_prior", degrees_of_freedom_prior, float(dim), data, [])
    least = dim - 1 if covariance == "full" else 0
    if degrees_of_freedom_prior is not None and not bool(degrees_of_freedom > least):
        raise ArgumentError(
            f"Expected degrees_of_freedom_prior > {least} for {covariance} covariances in {dim} dimensions; "
            f"got {degrees_of_freedom_prior}."
        )
    return _Priors(
        weight_concentration.expand(num_components),
        _positive("mean_precision_prior", mean_precision_prior, 1.0, data, []),
        data.mean(0) if mean_prior is None else _as_data("mean_prior", mean_prior, 0.0, data, [dim]),
        degrees_of_freedom,
        _covariance(data, covariance, covariance_prior),
    )


def _covariance(data: Tensor, covariance: Covariance, covariance_prior: Prior) -> Tensor:
    """The covariance prior, ``[D, D]`` or ``[D]``, checked to be positive definite."""
    dim = data.shape[-1]
    if covariance_prior is not None:
        value = torch.as_tensor(covariance_prior, dtype=data.dtype, device=data.device)
        expected = [dim, dim] if covariance == "full" else [dim]
        if list(value.shape) != expected:
            raise ArgumentError(
                f"Expected covariance_prior of shape {expected} for {covariance} covariances; got {list(value.shape)}."
            )
        if not _is_positive_definite(value):
            raise ArgumentError(
                f"Expected covariance_prior to be symmetric and positive definite; got {value.tolist()}."
            )
        return value
    if len(data) < 2:
        raise DataError(
            f"Expected at least 2 points for an empirical covariance; got {len(data)}. Give covariance_prior."
        )
    deviations = data - data.mean(0)
    value = deviations.mT @ deviations if covariance == "full" else deviations.square().sum(0)
    value = value / (len(data) - 1)
    if not _is_positive_definite(value):
        raise DataError(
            "Expected data with a positive definite empirical covariance; a column is constant, depends on the others, "
            "or is not finite. Drop it, or give covariance_prior."
        )
    return value


def _is_positive_definite(value: Tensor) -> bool:
    if value.dim() == 1:
        return bool(((value > 0) & value.isfinite()).all())
    if not torch.allclose(value, value.mT, rtol=1e-5):
        return False
    return int(torch.linalg.cholesky_ex(value).info) == 0


def _inverse(matrix: Tensor) -> Tensor:
    """Inverse of positive definite matrices ``[..., D, D]``, symmetric to the last bit."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    return (inverse + inverse.mT) / 2


def _as_data(name: str, value: Prior, default: float, data: Tensor, shape: list[int]) -> Tensor:
    """``value``, or ``default``, in the data's dtype and on its device; a vector may be given by a scalar."""
    tensor = torch.as_tensor(default if value is None else value, dtype=data.dtype)
    if list(tensor.shape) not in ([], shape) or (name == "mean_prior" and tensor.dim() == 0):
        raise ArgumentError(f"Expected {name} of shape {shape}; got shape {list(tensor.shape)}.")
    return tensor.to(data.device)


def _positive(name: str, value: Prior, default: float, data: Tensor, shape: list[int]) -> Tensor:
    tensor = _as_data(name, value, default, data, shape)
    if value is not None and not bool(((tensor > 0) & tensor.isfinite()).all()):
        raise ArgumentError(f"Expected {name} to be positive and finite; got {value}.")
    return tensor


def _check(data: Tensor, num_components: int, covariance: str, allowed: tuple[str, ...] = ("full", "diagonal")) -> None:
    if not isinstance(data, Tensor) or not data.is_floating_point():
        found = f"dtype {data.dtype}" if isinstance(data, Tensor) else type(data).__name__
        raise DataError(
            f"Expected data to be a floating-point tensor; got {found}. Write torch.as_tensor(data).double()."
        )
    if data.dim() != 2 or data.numel() == 0:
        raise DataError(
            f"Expected data of shape [N, D] with N, D >= 1; got shape {list(data.shape)}. "
            "Write data.unsqueeze(-1) for points on a line."
        )
    if isinstance(num_components, bool) or not isinstance(num_components, int) or num_components < 1:
        raise ArgumentError(f"Expected num_components to be an integer >= 1; got {num_components!r}.")
    if covariance not in allowed:
        listed = " or ".join(f'"{name}"' for name in allowed)
        raise ArgumentError(f"Expected covariance to be {listed}; got {covariance!r}.")
