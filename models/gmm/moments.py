"""What is read of the posterior of a mixture's components, whatever the kind of covariance."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pyro_latent.distributions import IsotropicNormalGamma, NormalGamma

from .densities import Components, inverse

__all__ = ["ComponentMoments", "matrices_of", "moments_of"]


class ComponentMoments(NamedTuple):
    """Numbers with the names and shapes of scikit-learn's ``BayesianGaussianMixture``.

    Attributes:
        mean_precision: how many points each mean is worth, ``[K]``.
        degrees_of_freedom: of the precisions, ``[K]``, or ``[]`` of a tied one.
        precision: E precision, ``[K, D, D]`` (full), ``[D, D]`` (tied), ``[K, D]`` (diagonal) or ``[K]`` (spherical).
        covariance: its inverse, of the same shape.
    """

    mean_precision: Tensor
    degrees_of_freedom: Tensor
    precision: Tensor
    covariance: Tensor


def moments_of(block: Components) -> ComponentMoments:
    """Those of the factor q(mean, precision)."""
    if isinstance(block, NormalGamma | IsotropicNormalGamma):
        precision, degrees, scaling = block.concentration / block.rate, 2 * block.concentration, block.precision_scaling
        if isinstance(block, NormalGamma):
            degrees, scaling = degrees[:, 0], scaling[:, 0]
        else:
            degrees = degrees / block.loc.shape[-1]
        return ComponentMoments(scaling, degrees, precision, 1 / precision)
    precision = block.df[..., None, None] * block.covariance_matrix
    return ComponentMoments(block.precision_scaling, block.df, precision, inverse(precision))


def matrices_of(block: Components, found: ComponentMoments) -> Tensor:
    """The covariances as matrices, ``[K, D, D]``."""
    count, dim = block.loc.shape
    spread = found.covariance
    if isinstance(block, NormalGamma | IsotropicNormalGamma):
        spread = spread.reshape(count, -1).expand(count, dim).diag_embed()
    return spread.expand(count, dim, dim)
