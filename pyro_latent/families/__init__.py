"""The exponential families, and which Pyro distribution each belongs to.

``FAMILIES`` has the family of a single site, and ``JOINT_FAMILIES`` that of a block of sites, by their distributions in
the order of the family's components.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch

from .. import distributions
from ..errors import PyroLatentError
from .base import Coordinates, Family, Mean, Moment, Monomial, Natural, Params
from .bernoulli import Bernoulli
from .beta import Beta
from .categorical import Categorical
from .dirichlet import Dirichlet
from .gamma import Gamma
from .inverse_gamma import InverseGamma
from .isotropic_normal_gamma import IsotropicNormalGamma
from .logistic_bound import LogisticBound
from .matrix_normal_wishart import MatrixNormalWishart
from .multivariate_normal import MultivariateNormal
from .normal import Normal
from .normal_gamma import NormalGamma
from .normal_wishart import NormalWishart
from .point import Point
from .polya_gamma import PolyaGamma
from .tied_normal_wishart import TiedNormalWishart
from .weight import Weight
from .wishart import Wishart

FAMILIES: dict[type, Family] = {
    dist.Normal: Normal(),
    dist.MultivariateNormal: MultivariateNormal(),
    dist.Gamma: Gamma(),
    dist.InverseGamma: InverseGamma(),
    dist.Beta: Beta(),
    dist.Dirichlet: Dirichlet(),
    dist.Bernoulli: Bernoulli(),
    dist.Categorical: Categorical(),
    dist.Wishart: Wishart(),
    distributions.NormalGamma: NormalGamma(),
    distributions.NormalWishart: NormalWishart(),
    distributions.IsotropicNormalGamma: IsotropicNormalGamma(),
    distributions.TiedNormalWishart: TiedNormalWishart(),
    distributions.MatrixNormalWishart: MatrixNormalWishart(),
}

JOINT_FAMILIES: dict[tuple[type, ...], Family] = {
    (dist.Normal, dist.Gamma): NormalGamma(),
    (dist.MultivariateNormal, dist.Wishart): NormalWishart(),
}

#: Families of blocks in plates, for sites that neither fit those above nor are a joint normal.
PLATE_FAMILIES: dict[tuple[type, ...], Family] = {
    (dist.MultivariateNormal, dist.Gamma): IsotropicNormalGamma(),
    (dist.MultivariateNormal, dist.Wishart): TiedNormalWishart(),
}

#: By family, one of the same components that has moments of elements of a plate together.
WIDER_FAMILIES: dict[type[Family], Family] = {TiedNormalWishart: MatrixNormalWishart()}

#: Families that hold constants of a site's prior, by its class, each made from that prior.
_WITH_CONSTANTS: dict[type, Callable[[Any], Family]] = {
    distributions.PolyaGamma: lambda prior: PolyaGamma(prior.count),
    distributions.LogisticBound: lambda prior: LogisticBound(prior.count),
    distributions.InverseGaussian: Weight,
    distributions.PositiveNormal: Weight,
    distributions.TruncatedNormal: Weight,
}


def register_family(distribution: type | tuple[type, ...], family: Family) -> None:
    """Make ``family`` the family of the sites of a distribution class, in place of an earlier one.

    A tuple of classes names a block of sites, in the order of the family's components.

    Raises:
        PyroLatentError: if ``distribution`` is not a distribution class or a tuple of them, if ``family`` is not a
            :class:`Family` instance, or if a tuple's length is not the family's number of components.
    """
    classes = distribution if isinstance(distribution, tuple) else (distribution,)
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, dist.Distribution | torch.distributions.Distribution)):
            raise PyroLatentError(f"Expected a distribution class such as pyro.distributions.Normal; got {cls!r}.")
    if not isinstance(family, Family):
        raise PyroLatentError(f"Expected an instance of a Family, such as Normal(); got {family!r}.")
    if not isinstance(distribution, tuple):
        FAMILIES[distribution] = family
        return
    if len(distribution) != len(family.event_dims):
        expected = f"{len(family.event_dims)} distribution classes, one for each component of {family.name}"
        raise PyroLatentError(f"Expected {expected}; got {len(distribution)}.")
    JOINT_FAMILIES[distribution] = family


def family_of(distribution_class: type) -> Family | None:
    """The family of a distribution class, or of the nearest of its bases that has one; None if none has."""
    return next((FAMILIES[cls] for cls in distribution_class.__mro__ if cls in FAMILIES), None)


def families_by_name() -> dict[str, Family]:
    """The families of sites and of blocks by their names, and that of points."""
    return {family.name: family for family in (*FAMILIES.values(), *JOINT_FAMILIES.values(), Point())}


def family_with_constants(prior: object) -> Family | None:
    """The family that holds constants of a site's prior, a distribution of known arguments; None if it needs none."""
    make = _WITH_CONSTANTS.get(type(prior))
    return None if make is None else make(prior)


__all__ = [
    "FAMILIES",
    "JOINT_FAMILIES",
    "PLATE_FAMILIES",
    "WIDER_FAMILIES",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Coordinates",
    "Dirichlet",
    "Family",
    "Gamma",
    "InverseGamma",
    "IsotropicNormalGamma",
    "LogisticBound",
    "MatrixNormalWishart",
    "Mean",
    "Moment",
    "Monomial",
    "MultivariateNormal",
    "Natural",
    "Normal",
    "NormalGamma",
    "NormalWishart",
    "Params",
    "PolyaGamma",
    "TiedNormalWishart",
    "Weight",
    "Wishart",
    "families_by_name",
    "family_of",
    "family_with_constants",
    "register_family",
]
