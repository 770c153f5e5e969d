"""The Bayesian mixture: model, closed-form updates, and a structured guide for ``SVI``.

Source: [4] (29)-(35), (75), (89); Bishop 2006 §10.2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_latent.distributions import IsotropicNormalGamma, NormalGamma, NormalWishart, TiedNormalWishart
from pyro_latent.models.arguments import Guided, counted, expected_log, probabilities, relative_scale
from pyro_latent.models.normal_gamma import NormalGammaPrior, SampleStatistics, conjugate_parameters

from .densities import (
    Components,
    expected_log_density,
    inverse,
    normal,
    normal_of_component,
    sample_components,
)
from .priors import Covariance, Prior, Priors, check, complete_priors, has_matrices
from .starts import initial_responsibilities, weighted_means

Start: TypeAlias = Callable[[], tuple[dist.Dirichlet, Components]]


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
    sample_weight: Tensor | None = None,
) -> None:
    """A Gaussian mixture; sites ``weights``, ``precision``, ``mean``, ``component`` and ``obs``.

    ``weights`` has event shape ``[K]``. ``precision`` and ``mean`` are in plate ``components`` of size K, with event
    shapes ``[D, D]`` (full), ``[D]`` (diagonal) or ``[]`` (spherical), and ``[D]``; a tied precision, ``[D, D]``, is
    outside of it. ``component``, marked for parallel enumeration, and ``obs`` are in plate ``data`` of size N.

    Args:
        data: the points, shape ``[N, D]``, floating; its dtype and device are the model's.
        num_components: K, at least 1.
        covariance: ``"full"``, ``"tied"``, ``"diagonal"`` or ``"spherical"``.
        weight_concentration_prior: Dirichlet concentration of every component, scalar or ``[K]``; default 1 / K.
        mean_precision_prior: how many points the prior of a mean is worth, scalar; default 1.
        mean_prior: prior mean of the means, shape ``[D]``, in the unit of the data; default the data's mean.
        degrees_of_freedom_prior: Wishart degrees of freedom, a scalar above D - 1 (full, tied) or 0; default D.
        covariance_prior: inverse scale of the precisions, shape ``[D, D]`` (full, tied), ``[D]`` (diagonal) or ``[]``
            (spherical), in the unit of the data squared; default the empirical covariance, its diagonal, or the mean
            of that, divisor N - 1.
        sample_weight: how many observations each point counts as, ``[N]``, positive; default 1 each.

    A default prior depends on the points passed. With minibatches pass ``**default_priors(...)`` of all the data.

    Raises:
        DataError: if the data is not a floating ``[N, D]`` tensor with N, D >= 1, or has no empirical covariance.
        ValueError: if K, ``covariance`` or a prior is not as above.

    Source: [4] (29)-(35), Bishop 2006 (10.37)-(10.40).
    """
    priors = complete_priors(
        data,
        num_components,
        covariance,
        weight_concentration_prior=weight_concentration_prior,
        mean_precision_prior=mean_precision_prior,
        mean_prior=mean_prior,
        degrees_of_freedom_prior=degrees_of_freedom_prior,
        covariance_prior=covariance_prior,
        sample_weight=sample_weight,
    )
    weights = pyro.sample("weights", dist.Dirichlet(priors.weight_concentration))
    mean, precision = sample_components(priors, covariance)
    with pyro.plate("data", len(data)), counted(sample_weight):
        with Guided("Write gmm.full_guide for gmm.guide, or TraceEnum_ELBO for Trace_ELBO."):
            component = pyro.sample("component", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("obs", normal_of_component(mean, precision, component, covariance), obs=data)


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
        covariance: ``"full"``, ``"tied"``, ``"diagonal"`` or ``"spherical"``.
        **priors: the model's priors; not needed here.

    Returns:
        A Categorical of batch shape ``[N]``, ``probs`` of shape ``[N, K]``.

    Source: [4] (75), Bishop 2006 (10.46)-(10.49), (10.64)-(10.66).
    """
    check(data, num_components, covariance)
    logits = expected_log(q["weights"]) + expected_log_density(data, q[("mean", "precision")])
    return dist.Categorical(probs=logits.softmax(-1))


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
        covariance: ``"full"``, ``"tied"``, ``"diagonal"`` or ``"spherical"``.
        **priors: the model's priors.

    Returns:
        A Dirichlet of event shape ``[K]``.

    Source: [4] (89), Bishop 2006 (10.51), (10.57)-(10.58).
    """
    prior = complete_priors(data, num_components, covariance, **priors)
    return dist.Dirichlet(
        prior.weight_concentration
        + _scaled_responsibilities(q, data, num_components, "weights", priors.get("sample_weight")).sum(0)
    )


def update_mean_precision(
    q: Mapping[Any, Any],
    data: Tensor,
    num_components: int,
    *,
    covariance: Covariance = "full",
    **priors: Prior,
) -> Components:
    """Update of q(mean, precision): the conjugate posterior of each component, given its responsibilities.

    Args:
        q: current posteriors; ``q["component"]`` is read.
        data: the points, shape ``[N, D]``.
        num_components: K.
        covariance: ``"full"``, ``"tied"``, ``"diagonal"`` or ``"spherical"``.
        **priors: the model's priors.

    Returns:
        A Normal-Wishart of batch shape ``[K]`` (full), Normal-Gammas of batch shape ``[K, D]`` (diagonal), an isotropic
        Normal-Gamma of batch shape ``[K]`` (spherical), or one tied Normal-Wishart.

    Source: [4] (80), (89); Bishop 2006 (10.51)-(10.53), (10.59)-(10.63).
    """
    prior = complete_priors(data, num_components, covariance, **priors)
    responsibilities = _scaled_responsibilities(q, data, num_components, "mean", priors.get("sample_weight"))
    if has_matrices(covariance):
        return _wisharts(data, responsibilities, prior, covariance == "tied")
    gammas = _normal_gamma(data, responsibilities, prior)
    if covariance == "diagonal":
        return gammas
    concentration, rate = gammas.concentration.sum(-1), gammas.rate.sum(-1)  # one precision of all dimensions
    return IsotropicNormalGamma(gammas.loc, gammas.precision_scaling[:, 0], concentration, rate)


def _wisharts(
    data: Tensor, responsibilities: Tensor, prior: Priors, is_tied: bool
) -> NormalWishart | TiedNormalWishart:
    counts, means = weighted_means(data, responsibilities)
    scatter = torch.stack(
        [
            ((data - mean) * weight.unsqueeze(-1)).mT @ (data - mean)
            for mean, weight in zip(means, responsibilities.mT, strict=True)
        ]
    )
    scaling, deviation = prior.mean_precision + counts, means - prior.mean
    loc = prior.mean + (counts / scaling).unsqueeze(-1) * deviation
    shrinkage = prior.mean_precision * counts / scaling
    between = shrinkage[:, None, None] * deviation.unsqueeze(-1) * deviation.unsqueeze(-2)
    if is_tied:
        scale_matrix = inverse(prior.covariance + (scatter + between).sum(0))
        return TiedNormalWishart(loc, scaling, prior.degrees_of_freedom + counts.sum(), scale_matrix)
    scale_matrix = inverse(prior.covariance + scatter + between)
    return NormalWishart(loc, scaling, prior.degrees_of_freedom + counts, scale_matrix)


def _normal_gamma(data: Tensor, responsibilities: Tensor, prior: Priors) -> NormalGamma:
    """A normal sample for each component and dimension, by the conjugate update of ``normal_gamma``."""
    counts, means = weighted_means(data, responsibilities)
    scatter = torch.stack(
        [weight @ (data - mean).square() for mean, weight in zip(means, responsibilities.mT, strict=True)]
    )
    half = NormalGammaPrior(prior.mean, prior.mean_precision, prior.degrees_of_freedom / 2, prior.covariance / 2)
    after = conjugate_parameters(half, SampleStatistics(counts.unsqueeze(-1), means, scatter))
    return NormalGamma(*(p.expand(means.shape) for p in after))


def _scaled_responsibilities(
    q: Mapping[Any, Any], data: Tensor, num_components: int, own: str, sample_weight: Prior
) -> Tensor:
    """Responsibilities ``[N, K]``, times how much the points count beside the site that is updated."""
    probs = probabilities(q["component"], num_components, data)
    known = "component" in getattr(q, "scales", {}) or sample_weight is None  # the engine's scales hold the weights
    scale = torch.as_tensor(relative_scale(q, "component", own) if known else sample_weight, dtype=probs.dtype)
    return probs * scale.to(probs.device).unsqueeze(-1)


updates: dict[str | tuple[str, str], Callable[..., Any]] = {
    "component": update_component,
    "weights": update_weights,
    ("mean", "precision"): update_mean_precision,
}
"""The closed-form updates, for all kinds of covariance; Bishop 2006 §10.2.1."""


def guide(
    data: Tensor,
    num_components: int,
    *,
    covariance: Covariance = "full",
    **priors: Prior,
) -> None:
    """Structured guide q(weights) q(mean, precision) for ``SVI``; ``component`` is left to ``TraceEnum_ELBO``.

    :func:`full_guide` has a factor for it, for ``Trace_ELBO``.

    Parameters: ``weight_concentration`` ``[K]``, ``mean_loc`` ``[K, D]``, ``mean_precision_scaling`` ``[K]``, and
    ``precision_df`` ``[K]`` with ``precision_scale_tril`` ``[K, D, D]``, the Cholesky factor of the Wishart's scale
    matrix (full; tied: without K), or ``precision_concentration`` ``[K]`` with ``precision_rate`` ``[K, D]`` (diagonal)
    or ``[K]`` (spherical). They start at the closed-form update for the clusters of :func:`initial_responsibilities`,
    drawn from torch's random state.

    Args:
        data: the points, shape ``[N, D]``.
        num_components: K.
        covariance: ``"full"``, ``"tied"``, ``"diagonal"`` or ``"spherical"``.
        **priors: the model's priors.

    Raises:
        DataError, ValueError: as :func:`model` does.

    Source: Bishop 2006 (10.42), (10.57), (10.59).
    """
    start = functools.cache(lambda: _start(data, num_components, covariance=covariance, **priors))
    complete_priors(data, num_components, covariance, **priors)
    concentration = pyro.param(
        "weight_concentration", lambda: start()[0].concentration, constraint=constraints.positive
    )
    pyro.sample("weights", dist.Dirichlet(concentration))
    _sample_factors(start, num_components, data.shape[-1], covariance)


def guide_components(data: Tensor, num_components: int, *, covariance: Covariance = "full", **priors: Prior) -> None:
    """The factors q(mean, precision) of :func:`guide` alone, with its parameters of these names."""
    start = functools.cache(lambda: _start(data, num_components, covariance=covariance, **priors))
    _sample_factors(start, num_components, data.shape[-1], covariance)


def _sample_factors(start: Start, num_components: int, width: int, covariance: Covariance) -> None:
    """Sites ``precision`` and ``mean`` of a guide, whose parameters start at the second of ``start()``."""
    loc = pyro.param("mean_loc", lambda: start()[1].loc)
    scaling = pyro.param("mean_precision_scaling", lambda: _scaling(start), constraint=constraints.positive)
    wide = scaling.reshape(num_components, *[1] * {"diagonal": 1, "spherical": 0}.get(covariance, 2))
    plate = pyro.plate("components", num_components)
    with nullcontext() if covariance == "tied" else plate:
        prior = _wishart(start, width) if has_matrices(covariance) else _gammas(start, covariance)
        precision = pyro.sample("precision", prior)
    with plate:
        pyro.sample("mean", normal(loc, wide * precision, covariance))


def full_guide(
    data: Tensor,
    num_components: int,
    *,
    covariance: Covariance = "full",
    **priors: Prior,
) -> None:
    """Guide q(weights) q(mean, precision) q(component), the factors of coordinate ascent, for ``SVI``.

    It is :func:`guide` with one more parameter, ``component_probs`` ``[N, K]``, which starts at the responsibilities
    that the other factors give. ``Trace_ELBO`` and ``TraceGraph_ELBO`` draw the components, and take their gradient
    by the score function; ``TraceEnum_ELBO`` enumerates them. The arguments and errors are those of :func:`guide`.

    Source: Bishop 2006 (10.42), (10.48).
    """
    guide(data, num_components, covariance=covariance, **priors)
    options: dict[str, Any] = {"covariance": covariance, **priors}
    probs = pyro.param(
        "component_probs",
        lambda: _first_responsibilities(data, num_components, options),
        constraint=constraints.simplex,
    )
    with pyro.plate("data", len(data)), counted(priors.get("sample_weight")):
        pyro.sample("component", dist.Categorical(probs), infer={"enumerate": "parallel"})


def _first_responsibilities(data: Tensor, num_components: int, options: dict[str, Any]) -> Tensor:
    """The update of q(component) at the other factors' parameters, of which none is near zero."""
    value = {name: param.detach() for name, param in pyro.get_param_store().items()}
    loc, scaling = value["mean_loc"], value["mean_precision_scaling"]
    block: Components
    if has_matrices(options["covariance"]):
        tril = value["precision_scale_tril"]
        kind = TiedNormalWishart if options["covariance"] == "tied" else NormalWishart
        block = kind(loc, scaling, value["precision_df"], tril @ tril.mT)
    elif options["covariance"] == "spherical":
        block = IsotropicNormalGamma(loc, scaling, value["precision_concentration"], value["precision_rate"])
    else:
        gammas = value["precision_concentration"].unsqueeze(-1), value["precision_rate"]
        block = NormalGamma(*torch.broadcast_tensors(loc, scaling.unsqueeze(-1), *gammas))
    q = {"weights": dist.Dirichlet(value["weight_concentration"]), ("mean", "precision"): block}
    probs = update_component(q, data, num_components, **options).probs.clamp(min=1e-6)
    return probs / probs.sum(-1, keepdim=True)


def _start(data: Tensor, num_components: int, **options: Any) -> tuple[dist.Dirichlet, Components]:
    """The updates of q(weights) and q(mean, precision) at clusters of the data."""
    q = {"component": dist.Categorical(probs=initial_responsibilities(data, num_components))}
    return update_weights(q, data, num_components, **options), update_mean_precision(q, data, num_components, **options)


def _scaling(start: Start) -> Tensor:
    """The precision scaling ``[K]``, which Normal-Gammas have for each dimension."""
    block = start()[1]
    return block.precision_scaling[:, 0].clone() if isinstance(block, NormalGamma) else block.precision_scaling


def _wishart(start: Start, dim: int) -> dist.Wishart:
    df = pyro.param("precision_df", lambda: start()[1].df, constraint=constraints.greater_than(dim - 1))
    scale_tril = pyro.param(
        "precision_scale_tril",
        lambda: torch.linalg.cholesky(start()[1].covariance_matrix),
        constraint=constraints.lower_cholesky,
    )
    return dist.Wishart(df, scale_tril=scale_tril)


def _gammas(start: Start, covariance: Covariance) -> dist.TorchDistribution:
    def first() -> Tensor:
        found: Tensor = start()[1].concentration
        return found if covariance == "spherical" else found[:, 0].clone()

    concentration = pyro.param("precision_concentration", first, constraint=constraints.positive)
    rate = pyro.param("precision_rate", lambda: start()[1].rate, constraint=constraints.positive)
    if covariance == "spherical":
        return dist.Gamma(concentration, rate)
    return dist.Gamma(concentration.unsqueeze(-1), rate).to_event(1)
