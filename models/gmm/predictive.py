"""The density of a new point under the posterior of a mixture, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent.distributions import IsotropicNormalGamma, NormalGamma, NormalWishart, TiedNormalWishart
from pyro_latent.errors import ArgumentTypeError

from .densities import Components, inverse, of_each
from .priors import Covariance, Prior, Priors, complete_priors
from .process import mean_stick_weights


def predictive(q: Mapping[Any, Any]) -> dist.MixtureSameFamily:
    """The density of a new point, averaged over q(weights) q(mean, precision): a mixture of Student's t.

    Args:
        q: the posterior by block, ``guide.posterior(joint=True)``; ``q["weights"]`` and ``q["mean", "precision"]`` are
            read.

    Returns:
        A distribution of points, event shape ``[D]``, to score (``log_prob``) and to draw from (``sample``).

    Raises:
        ArgumentTypeError: if mean and precision are not in one block, where the average is no known density.

    Source: Bishop 2006 (10.78)-(10.82); by dimension, with diagonal covariances, Murphy 2007 (97).
    """
    return dist.MixtureSameFamily(dist.Categorical(_weights(q, "weights").mean), _student(q["mean", "precision"]))


def process_predictive(
    q: Mapping[Any, Any], data: Tensor, num_components: int, *, covariance: Covariance = "full", **priors: Prior
) -> dist.MixtureSameFamily:
    """The density of a new point under a Dirichlet process mixture: a mixture of K + 1 Student's t.

    The last of them is for the components beyond the first K, which only the prior speaks of.

    Args:
        q: the posterior by block, ``guide.posterior(joint=True)``; ``q["stick"]`` and ``q["mean", "precision"]`` are
            read.
        data, num_components, covariance, priors: the arguments of
            :func:`~pyro_latent.models.gmm.process_model`.

    Returns:
        A distribution of points, event shape ``[D]``, to score (``log_prob``) and to draw from (``sample``).

    Raises:
        ArgumentTypeError: if mean and precision are not in one block, where the average is no known density.

    Source: Blei and Jordan 2006, §3.2, with the rest of the process kept.
    """
    weights = mean_stick_weights(_weights(q, "stick"))
    block = q["mean", "precision"]
    new = prior_block(complete_priors(data, num_components, covariance, **priors), covariance)
    shared = ("df", "covariance_matrix") if isinstance(block, TiedNormalWishart) else ()
    own = [name for name in block.arg_constraints if name not in shared]
    parts = {name: torch.cat([getattr(block, name), getattr(new, name)]) for name in own}
    whole = type(block)(**parts, **{name: getattr(block, name) for name in shared})
    return dist.MixtureSameFamily(dist.Categorical(weights), _student(whole))


def prior_block(priors: Priors, covariance: Covariance) -> Components:
    """The prior of the mean and the precision of one component: K = 1; with diagonal covariances ``[1, D]``."""
    loc, scaling = priors.mean[None], priors.mean_precision[None]
    if covariance == "full":
        return NormalWishart(loc, scaling, priors.degrees_of_freedom[None], inverse(priors.covariance)[None])
    if covariance == "tied":
        return TiedNormalWishart(loc, scaling, priors.degrees_of_freedom, inverse(priors.covariance))
    half = priors.degrees_of_freedom / 2, priors.covariance[None] / 2
    if covariance == "spherical":
        return IsotropicNormalGamma(loc, scaling, *(loc.shape[-1] * p for p in half))
    return NormalGamma(*torch.broadcast_tensors(loc, priors.mean_precision, *half))


def _weights(q: Mapping[Any, Any], site: str) -> Any:
    """The posterior of the weights, or of their sticks; mean and precision are in one block."""
    block = q.get(("mean", "precision")) if isinstance(q, Mapping) and site in q else None
    if not isinstance(block, Components):
        raise ArgumentTypeError(
            "Expected a posterior with mean and precision in one block; got "
            f"{list(q) if isinstance(q, Mapping) else q!r}. Write guide.posterior(joint=True), of "
            'AutoConjugate(gmm.model, blocks=[("mean", "precision")]).'
        )
    return q[site]


def _student(block: Components) -> dist.TorchDistribution:
    """A point of each component, its mean and precision averaged over."""
    if isinstance(block, NormalGamma | IsotropicNormalGamma):
        spread = block.rate * (1 + block.precision_scaling) / (block.concentration * block.precision_scaling)
        if isinstance(block, NormalGamma):
            return dist.StudentT(2 * block.concentration, block.loc, spread.sqrt()).to_event(1)
        scale = spread.sqrt().unsqueeze(-1).expand(block.loc.shape)
        return dist.MultivariateStudentT(2 * block.concentration, block.loc, scale.diag_embed())
    each = block if isinstance(block, NormalWishart) else of_each(block)
    df = each.df + 1 - each.loc.shape[-1]
    spread = (1 + each.precision_scaling) / (each.precision_scaling * df)
    factor = torch.linalg.cholesky(each.covariance_matrix.inverse())
    return dist.MultivariateStudentT(df, each.loc, spread.sqrt()[..., None, None] * factor)
