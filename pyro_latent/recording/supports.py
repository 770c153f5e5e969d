"""What a recording asks of distributions: supports, dtypes, values of a discrete latent, and a place inside."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to

from ..errors import NotConjugateError
from ..expressions import RandomTensor
from ..families import family_of
from ..rules import BOUNDS, RandomDistribution, family_class, unwrap, without_latents
from ..settings import check_memory

#: Constraints of several events, or of several components; those of a mixture are a class of newer releases of torch.
_AROUND_OTHERS = (constraints.independent, getattr(constraints, "MixtureSameFamilyConstraint", constraints.independent))


def dtypes_of(distribution: object) -> set[torch.dtype]:
    """The floating dtypes of a distribution's parameters."""
    found = set()
    distribution = getattr(distribution, "placeholder", distribution)
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
        distribution = getattr(distribution, "placeholder", distribution)
    for value in vars(distribution).values():
        if isinstance(value, Tensor) and value.is_floating_point():
            found.add(value.dtype)
    return found


def is_discrete(fn: object) -> bool:
    """Whether a distribution is over discrete values."""
    return bool(without_latents(fn).support.is_discrete)


def support_of(name: str, fn: Any) -> Tensor:
    """The values of a discrete latent, one in each row: ``[K] + event``.

    Raises:
        NotConjugateError: if there are infinitely many, or they depend on a latent.
    """
    base, reinterpreted, _ = unwrap(fn)
    if reinterpreted:
        raise NotConjugateError(
            f"Expected discrete latents one by one; got site {name!r}, an event of several. Put them into a "
            "pyro.plate, without .to_event()."
        )
    if is_bound_by_latent(base):
        raise NotConjugateError(
            f"Expected a known total_count of the discrete latent {name!r}; got one that depends on latents. Write it "
            "as a sum of Bernoulli sites."
        )
    _check_size(name, fn)
    try:
        support: Tensor = without_latents(fn).enumerate_support(expand=False)
    except NotImplementedError:
        raise NotConjugateError(
            f"Expected discrete latents that can be enumerated; got site {name!r}, a {family_class(base).__name__} "
            "with infinitely many values, or without a list of them."
        ) from None
    return support.reshape(support.shape[0], *fn.event_shape)


def _check_size(name: str, fn: Any) -> None:
    """The list of a discrete latent's values fits into memory.

    Raises:
        ModelError: if it does not.
    """
    plain, event = without_latents(fn), fn.event_shape.numel()
    bound = getattr(plain, "total_count", None)
    count = int(torch.as_tensor(bound).max()) + 1 if bound is not None and not event > 1 else event
    check_memory(f"the values of the discrete latent {name!r}", count * event, "Give it fewer values.")


def is_bound_by_latent(base: object) -> bool:
    """Whether the support of a base distribution depends on a latent."""
    return isinstance(base, RandomDistribution) and any(isinstance(base.arguments.get(n), RandomTensor) for n in BOUNDS)


#: Distributions that are members of another's family.
_MEMBERS: dict[type, type] = {
    dist.Exponential: dist.Gamma,
    dist.Chi2: dist.Gamma,
    dist.LowRankMultivariateNormal: dist.MultivariateNormal,
}


def class_of_latent(fn: Any) -> type:
    """The class whose family a latent's posterior is of: that of its distribution, or one that it is a member of; a
    normal's of a transformed normal and of a flat prior on the real numbers, whose densities say whether they are
    conjugate; a Beta's of a uniform one on (0, 1).
    """
    base = unwrap(fn)[0]
    family = family_class(base)
    if family in _MEMBERS:
        return _MEMBERS[family]
    if family is dist.Uniform and not is_bound_by_latent(base) and bool(((base.low == 0) & (base.high == 1)).all()):
        return dist.Beta
    if base_constraint(fn.support) is not constraints.real:
        return family
    while type(base) is dist.TransformedDistribution:
        base = unwrap(base.base_dist)[0]
    normals = (dist.Normal, dist.MultivariateNormal)
    return (
        dist.Normal if family is dist.ImproperUniform else next((n for n in normals if n is family_class(base)), family)
    )


def is_scalar(fn: Any) -> bool:
    """Whether the elements of a continuous latent are scalars whose support is known: each may be a factor of q of its
    own, of any shape.

    Elements that ``to_event`` joins to a multivariate normal are not.
    """
    base, reinterpreted, _ = unwrap(fn)
    if is_discrete(fn) or base.event_shape or is_bound_by_latent(base):
        return False
    family = family_class(base)
    joined = family_of(class_of_latent(fn))
    depends = isinstance(base, RandomDistribution) and constraints.is_dependent(getattr(family, "support", None))
    if depends or (reinterpreted and joined is not None and joined.event_class is not None):
        return False
    support = base_constraint(fn.support)
    if isinstance(base, dist.MixtureSameFamily) and any(getattr(x, "ndim", 0) for x in vars(support).values()):
        return False  # its components end at places of their own
    try:
        biject_to(support)
    except NotImplementedError:
        return False
    return True


def base_constraint(support: object) -> Any:
    """The constraint of one event inside of independent ones, and of one component of a mixture."""
    while isinstance(support, _AROUND_OTHERS):
        support = support.base_constraint
    return support


def ends_in_simplex(support: object) -> bool:
    """Whether the last dimension of a value sums to one."""
    return isinstance(base_constraint(support), type(constraints.simplex))


def is_nonnegative(support: object) -> bool:
    """Whether no element of a value in the support is below zero."""
    base = base_constraint(support)
    least = getattr(base, "lower_bound", None)
    return ends_in_simplex(support) or (least is not None and bool(torch.as_tensor(least >= 0).all()))


def feasible(support: object, shape: torch.Size, like: Tensor) -> Tensor:
    """A value inside the support."""
    base = base_constraint(support)
    value = torch.zeros(shape, dtype=like.dtype, device=like.device)
    if isinstance(base, type(constraints.simplex)):
        return value + 1.0 / shape[-1]
    if isinstance(base, type(constraints.positive_definite)):
        return value + torch.eye(shape[-1], dtype=like.dtype, device=like.device)
    if isinstance(base, type(constraints.unit_interval)):
        return value + 0.5
    if isinstance(base, constraints.greater_than | constraints.greater_than_eq):
        return value + base.lower_bound + 1.0
    return value
