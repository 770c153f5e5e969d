"""The constructor hook: while a model is recorded, a distribution with random arguments is made a random one."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.distribution import COERCIONS
from torch import Tensor

from ..errors import NotConjugateError
from ..expressions import RandomTensor, StandIns, placeholders
from ..signatures import Args, Kwargs
from ..values import broadcast_shapes
from .base import around_latents
from .random_distribution import (
    BOUNDS,
    RandomDistribution,
    family_class,
    random_distribution,
    without_latents,
)
from .wrappers import has_latents, made, named_arguments, unwrap

_WRAPPERS = (dist.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)
#: Distributions around others that a reparameterizer takes apart, or that have a density.
_CHAINS = (dist.DiscreteHMM, dist.GaussianHMM)
_COMPOUNDS = (dist.MixtureSameFamily, dist.ZeroInflatedDistribution, dist.MaskedMixture, *_CHAINS)


def _coerce(stand_ins: StandIns, cls: type, args: Args, kwargs: Kwargs) -> Any:
    args, kwargs = stand_ins.of((args, kwargs))
    if _has_latents(cls):
        return cls.family(*args, **kwargs)  # type: ignore[attr-defined]
    if cls is dist.LinearHMM:  # which keeps its arguments, and computes nothing of them
        return None
    given = (*args, *kwargs.values())
    is_random = any([isinstance(a, RandomTensor) for a in given])
    inside = [a for a in given if hasattr(a, "log_prob")]
    if not is_random and not inside:
        return None
    random = [a for a in inside if has_latents(a)]
    if random and not issubclass(cls, (*_WRAPPERS, *_COMPOUNDS, dist.TransformedDistribution)):
        raise around_latents(cls, family_class(random[0]))
    is_compound = bool(inside) and issubclass(cls, _COMPOUNDS) and any(has_latents(unwrap(a)[0]) for a in inside)
    is_compound |= cls in _CHAINS and is_random
    if not is_compound and not is_random:
        return None
    if issubclass(cls, _WRAPPERS):
        sites = sorted(
            {s for a in (*args, *kwargs.values()) if isinstance(a, RandomTensor) for s in a.expression.sites}
        )
        raise NotConjugateError(
            f"Expected a constant mask of a distribution; got one that depends on the latents {sites}. Write "
            "torch.where(condition, a, b) in the arguments of the distribution."
        )
    bound = named_arguments(cls, args, kwargs)
    named = {k: v for k, v in bound.items() if v is not None and k != "validate_args"}
    _check_numbers(cls, named)
    with stand_ins.resting():
        return _random(cls, named, is_compound, bound.get("validate_args") is not False)


@functools.cache
def _has_latents(cls: type) -> bool:
    return issubclass(cls, RandomDistribution)


def _random(cls: type, named: dict[str, Any], is_compound: bool, is_checked: bool) -> RandomDistribution:
    """The distribution of a class with these arguments; ``is_compound``: one around others."""
    if is_compound:
        plain = {name: without_latents(value) for name, value in placeholders(named).items()}
        placeholder = made(cls, plain)
        return random_distribution(cls, named, placeholder, placeholder.batch_shape)
    values, batch_shape = _one_element(cls, placeholders(named))
    placeholder = made(cls, values)
    if batch_shape is not None and len(placeholder.batch_shape) != len(batch_shape):  # events are more than they say
        placeholder, batch_shape = made(cls, placeholders(named)), None
    found = random_distribution(
        cls, named, placeholder, placeholder.batch_shape if batch_shape is None else batch_shape
    )
    found.is_checked = is_checked
    return found


def _check_numbers(cls: type, arguments: dict[str, Any]) -> None:
    """PyTorch cuts the fractions of numbers beside a tensor of whole numbers off, which nobody means.

    Raises:
        NotConjugateError: naming the latents that are whole.
    """
    tensors = [v for v in arguments.values() if isinstance(v, Tensor)]
    cut = {n: v for n, v in arguments.items() if isinstance(v, float) and not v.is_integer()}
    if cut and not any(t.is_floating_point() for t in tensors):
        sites = sorted({s for t in tensors if isinstance(t, RandomTensor) for s in t.expression.sites})
        raise NotConjugateError(
            f"Expected arguments of {cls.__name__} that are all floating; got whole numbers of the latents {sites} "
            f"beside {', '.join(f'{n}={v}' for n, v in cut.items())}, which PyTorch cuts to whole numbers too. Write "
            "z.float() or z * 1.0."
        )


def _one_element(cls: type, values: dict[str, Any]) -> tuple[dict[str, Any], torch.Size | None]:
    """The arguments at one element of the batch, and the batch shape: no constructor factors a matrix for each
    datum.
    """
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    try:
        limits: dict[str, Any] = cls.arg_constraints  # type: ignore[attr-defined]
        split = {name: value.ndim - limits[name].event_dim for name, value in tensors.items()}
    except (AttributeError, KeyError, NotImplementedError, TypeError):
        return values, None
    batch_shape = broadcast_shapes(*(value.shape[: split[name]] for name, value in tensors.items()))
    first = {n: v[(slice(0, 1),) * split[n]] for n, v in tensors.items() if n not in BOUNDS and split[n] > 0}
    return values | first, batch_shape


@contextmanager
def random_arguments(stand_ins: StandIns | None = None) -> Iterator[None]:
    """Let distributions be constructed with random tensors, or what they stand for; the hook is process-wide."""
    hook = functools.partial(_coerce, stand_ins := stand_ins or StandIns())
    COERCIONS.append(hook)
    try:
        with stand_ins:
            yield
    finally:
        COERCIONS.remove(hook)
        stand_ins.restore()


__all__ = ["random_arguments"]
