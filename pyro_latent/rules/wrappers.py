"""What distributions are wrapped in: independent dimensions, expansions and masks."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..signatures import Args, Kwargs

#: The arguments of a class of distributions, for which a loop asks at each step.
signature_of: Callable[[Any], inspect.Signature] = functools.cache(inspect.signature)


def has_latents(distribution: object) -> bool:
    """Whether a base distribution has random arguments."""
    return getattr(type(distribution), "has_latents", False)


def named_arguments(cls: object, args: Args, kwargs: Kwargs) -> dict[str, Any]:
    """The arguments of a constructor by name, with the defaults of the others.

    Raises:
        TypeError: if it does not take them.
    """
    names, defaults = _parameters(cls)
    given = dict(zip(names, args, strict=False)) | kwargs
    if len(given) == len(args) + len(kwargs) and given.keys() | defaults.keys() == set(names):
        return defaults | given
    bound = signature_of(cls).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


@functools.cache
def _parameters(cls: object) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of the arguments of a constructor, and the defaults; no names where it takes them otherwise."""
    own = signature_of(cls).parameters
    plain = all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in own.values())
    return tuple(own) if plain else (), {n: p.default for n, p in own.items() if p.default is not p.empty}


def unwrap(distribution: object) -> tuple[Any, int, list[Any]]:
    """The base distribution, the number of its batch dimensions that are events, and the masks over its plates."""
    base, reinterpreted, masks, _ = unwrap_masks(distribution)
    return base, reinterpreted, masks


def unwrap_masks(distribution: object) -> tuple[Any, int, list[Any], list[Tensor]]:
    """Unwrap as :func:`unwrap` does, with the masks over elements of events last: of shapes that broadcast with the
    base's batch.
    """
    reinterpreted = 0
    masks: list[Any] = []
    inner: list[Tensor] = []
    while "base_dist" in getattr(distribution, "__dict__", ()):
        if isinstance(distribution, dist.Independent | torch.distributions.Independent):
            reinterpreted += distribution.reinterpreted_batch_ndims
        elif isinstance(distribution, dist.MaskedDistribution):
            if isinstance(distribution._mask, Tensor) and reinterpreted:
                inner.append(distribution._mask)
            else:
                masks.append(distribution._mask)
        elif not isinstance(distribution, dist.ExpandedDistribution):
            break
        distribution = distribution.base_dist
    return distribution, reinterpreted, masks, inner


def made(cls: Any, arguments: dict[str, Any]) -> Any:
    """A distribution whose arguments are not checked, where its class can leave that out."""
    unvalidated = {"validate_args": False} if "validate_args" in signature_of(cls).parameters else {}
    return cls(**arguments, **unvalidated)


def unchecked(distribution: Any) -> Any:
    """A distribution in float64 that scores values outside its support, too, which nodes may round to."""
    found = copy.copy(distribution)
    for name, value in list(vars(found).items()):
        if isinstance(value, torch.distributions.Distribution):
            setattr(found, name, unchecked(value))
        elif isinstance(value, Tensor) and value.is_floating_point():
            setattr(found, name, value.detach().double())
    found._validate_args = False
    return found


__all__ = ["has_latents", "made", "named_arguments", "signature_of", "unchecked", "unwrap", "unwrap_masks"]
