"""The density of a new point under the posterior of a mixture, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch

from pyro_latent.distributions import NormalGamma, NormalWishart
from pyro_latent.errors import ArgumentTypeError


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
    block = q.get(("mean", "precision")) if isinstance(q, Mapping) and "weights" in q else None
    component: Any
    if isinstance(block, NormalWishart):
        df = block.df + 1 - block.loc.shape[-1]
        spread = (1 + block.precision_scaling) / (block.precision_scaling * df)
        factor = torch.linalg.cholesky(block.covariance_matrix.inverse())
        component = dist.MultivariateStudentT(df, block.loc, spread.sqrt()[..., None, None] * factor)
    elif isinstance(block, NormalGamma):
        spread = block.rate * (1 + block.precision_scaling) / (block.concentration * block.precision_scaling)
        component = dist.StudentT(2 * block.concentration, block.loc, spread.sqrt()).to_event(1)
    else:
        raise ArgumentTypeError(
            "Expected a posterior with mean and precision in one block; got "
            f"{list(q) if isinstance(q, Mapping) else q!r}. Write guide.posterior(joint=True), of "
            'AutoConjugate(gmm.model, blocks=[("mean", "precision")]).'
        )
    return dist.MixtureSameFamily(dist.Categorical(q["weights"].mean), component)
