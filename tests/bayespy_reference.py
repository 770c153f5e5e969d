"""Models written in BayesPy, swept by hand: the ELBO after each sweep, and the moments at the end.

Moments are BayesPy's: of a Gaussian E[x] and E[xxᵀ], of a Gamma E[x] and E[log x], of a Wishart E[Λ] and E[log |Λ|],
of a Dirichlet E[log p], of a Categorical the probabilities. Nothing here is of this library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bayespy.inference import VB
from bayespy.nodes import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Dot,
    Gamma,
    Gaussian,
    GaussianARD,
    Mixture,
    Poisson,
    SumMultiply,
    Wishart,
)

Array = np.ndarray


@dataclass(frozen=True)
class Reference:
    """``elbo`` has one number for each sweep, in nats; ``moments`` are by the name of the latent."""

    elbo: Array
    moments: dict[str, list[Array]]


def sweep(observed: Any, latents: dict[str, Any], order: Sequence[str], count: int) -> Reference:
    """Update the latents in order, ``count`` times."""
    inference = VB(observed, *latents.values())
    elbo = []
    for _ in range(count):
        for name in order:
            latents[name].update()
        elbo.append(float(inference.compute_lowerbound()))
    moments = {name: [np.asarray(u) for u in node.get_moments()] for name, node in latents.items()}
    return Reference(np.array(elbo), moments)


def gaussian_mixture(data: Array, responsibilities: Array, prior: dict[str, Any], count: int) -> Reference:
    """Independent priors on means and precisions; means start at zero with unit covariance."""
    size, dim = responsibilities.shape[1], data.shape[1]
    weights = Dirichlet(np.full(size, prior["concentration"]), name="weights")
    component = Categorical(weights, plates=(len(data),), name="component")
    mean = Gaussian(prior["loc"], prior["precision"], plates=(size,), name="mean")
    precision = Wishart(prior["df"], prior["inverse_scale"], plates=(size,), name="precision")
    observed = Mixture(component, Gaussian, mean, precision, name="obs")
    mean.initialize_from_parameters(np.zeros((size, dim)), np.tile(np.eye(dim), (size, 1, 1)))
    component.initialize_from_parameters(responsibilities)
    observed.observe(data)
    latents = {"weights": weights, "component": component, "mean": mean, "precision": precision}
    return sweep(observed, latents, ["mean", "precision", "weights", "component"], count)


def bernoulli_mixture(data: Array, responsibilities: Array, concentration: float, count: int) -> Reference:
    """Binary rows; every probability has a uniform prior."""
    weights = Dirichlet(np.full(responsibilities.shape[1], concentration), name="weights")
    component = Categorical(weights, plates=(len(data), 1), name="component")
    probs = Beta([1.0, 1.0], plates=(data.shape[1], responsibilities.shape[1]), name="probs")
    observed = Mixture(component, Bernoulli, probs, name="obs")
    component.initialize_from_parameters(responsibilities[:, None, :])
    observed.observe(data)
    latents = {"weights": weights, "component": component, "probs": probs}
    return sweep(observed, latents, ["probs", "weights", "component"], count)


def poisson_mixture(data: Array, responsibilities: Array, count: int) -> Reference:
    """Counts; weights Dirichlet(1, …), rates Gamma(2, 0.5)."""
    size = responsibilities.shape[1]
    weights = Dirichlet(np.ones(size), name="weights")
    component = Categorical(weights, plates=(len(data),), name="component")
    rate = Gamma(2.0, 0.5, plates=(size,), name="rate")
    observed = Mixture(component, Poisson, rate, name="obs")
    component.initialize_from_parameters(responsibilities)
    observed.observe(data)
    latents = {"weights": weights, "component": component, "rate": rate}
    return sweep(observed, latents, ["rate", "weights", "component"], count)


def regression(features: Array, target: Array, count: int, *, relevance: bool) -> Reference:
    """Noise precision Gamma(2, 3); weights of precision 0.1, or Gamma(1.5, 0.7) each where ``relevance``."""
    dim = features.shape[1]
    latents = {}
    weight_precision: Any = 0.1
    if relevance:
        weight_precision = latents["relevance"] = Gamma(1.5, 0.7, plates=(dim,), name="relevance")
    latents["weights"] = GaussianARD(0.0, weight_precision, shape=(dim,), name="weights")
    latents["precision"] = Gamma(2.0, 3.0, name="precision")
    mean = SumMultiply("i,i", latents["weights"], features)
    observed = GaussianARD(mean, latents["precision"], name="obs")
    observed.observe(target)
    order = ["weights", "relevance", "precision"] if relevance else ["weights", "precision"]
    return sweep(observed, latents, order, count)


def principal_components(data: Array, loadings: Array, count: int, mask: Any = True) -> Reference:
    """Scores Normal(0, 1), loadings of precision Gamma(1.5, 0.7) by column, noise precision Gamma(2, 3).

    Loadings start at the given values with covariance 0.01.
    """
    size, dim = data.shape[0], loadings.shape[1]
    relevance = Gamma(1.5, 0.7, plates=(dim,), name="relevance")
    loading = GaussianARD(0.0, relevance, shape=(dim,), plates=(data.shape[1],), name="loadings")
    scores = GaussianARD(0.0, 1.0, shape=(dim,), plates=(size, 1), name="scores")
    precision = Gamma(2.0, 3.0, name="precision")
    observed = GaussianARD(Dot(scores, loading), precision, name="obs")
    observed.observe(data, mask=mask)
    loading.initialize_from_parameters(loadings, np.full(loadings.shape, 100.0))
    latents = {"relevance": relevance, "loadings": loading, "scores": scores, "precision": precision}
    return sweep(observed, latents, ["scores", "loadings", "relevance", "precision"], count)


def group_means(target: Array, group: Array, num_groups: int, count: int) -> Reference:
    """Group means about a common mean Normal(0, 10), with precisions Gamma(2, 1) between and Gamma(2, 3) within."""
    common = GaussianARD(0.0, 0.01, name="common")
    between = Gamma(2.0, 1.0, name="between")
    means = GaussianARD(common, between, plates=(num_groups,), name="means")
    within = Gamma(2.0, 3.0, name="within")
    observed = Mixture(group, GaussianARD, means, within, name="obs")
    observed.observe(target)
    latents = {"common": common, "between": between, "means": means, "within": within}
    return sweep(observed, latents, ["means", "common", "between", "within"], count)


def schools(effects: Array, errors: Array, count: int) -> Reference:
    """Effects with known standard errors about a common mean Normal(0, 10), their precision Gamma(1, 10)."""
    common = GaussianARD(0.0, 0.01, name="common")
    between = Gamma(1.0, 10.0, name="between")
    means = GaussianARD(common, between, plates=effects.shape, name="means")
    observed = GaussianARD(means, errors**-2.0, name="obs")
    observed.observe(effects)
    latents = {"common": common, "between": between, "means": means}
    return sweep(observed, latents, ["means", "common", "between"], count)
