"""Densities beside the weight that they are a simple factor with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..rules import raw_arguments, register_rule

#: Where a function is compared with a cdf; far out are those that see where it is cut.
_PLACES = (-30.0, -9.0, -6.0, -3.0, -1.0, -0.3, 0.5, 2.0, 5.0, 8.0, 30.0)
#: How many times its argument the cdf may be of: as it is, as erf has it, and of the other outcome.
SLOPES = (1.0, math.sqrt(2), -1.0, -math.sqrt(2))


class GivenWeight:
    """A distribution beside the weight of its density: a draw takes no notice of the weight.

    The density is a factor of the joint density, not normalized over the values for one weight. To implement one: a
    subclass of this and of the distribution, whose constructor keeps its ``weight``, with a ``log_factor``, which is
    its rule too.

    Attributes:
        is_bound: whether the factor's mean over the weight is below the density that it stands for, and not equal.
    """

    is_bound: ClassVar[bool] = False
    weight: Tensor

    def __init_subclass__(cls) -> None:
        register_rule(cls, lambda arguments, value: cls.log_factor(arguments, value))

    @staticmethod
    def log_factor(arguments: object, value: object) -> Any:
        """The logarithm of the factor, of numbers or of expressions."""
        raise NotImplementedError

    def log_prob(self, value: Tensor) -> Tensor:
        found: Tensor = self.log_factor(self, value)
        return found

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Any:
        make: Any = type(self)
        limits = self.arg_constraints  # type: ignore[attr-defined]
        given = raw_arguments(self)
        tensors = {n: v for n, v in given.items() if isinstance(v, Tensor)}
        own = {n: v.shape[v.ndim - getattr(limits.get(n), "event_dim", 0) :] for n, v in tensors.items()}
        wide = {n: v.expand(torch.Size(batch_shape) + own[n]) for n, v in tensors.items()}
        return make(**given | wide, validate_args=False)


def inside(distribution: object, cdf: Callable[[Tensor], Tensor]) -> Tensor | None:
    """What the recorded ``probs`` of a distribution are the cdf of, however it is written: it is known by its values;
    None where they are something else, or functions of points alone.
    """
    recorded = getattr(raw_arguments(distribution).get("probs"), "function_of", None)
    if recorded is None or recorded.beside or recorded.argument.replay is not None:
        return None
    argument, function = recorded.argument, recorded.function
    slope = next((s for s in SLOPES if _is_cdf(function, cdf, s, argument)), None)
    found: Tensor | None = None if slope is None else argument * slope
    return found


def places_of(like: Tensor) -> list[Tensor]:
    """Tensors like this one that have every place for each element, and no two elements alike, or near each other
    all the time, so that what moves or mixes them is seen.
    """
    count = torch.arange(like.numel(), device=like.device).reshape(like.shape)
    known = torch.tensor(_PLACES, dtype=torch.float64, device=like.device)
    turned = 3 * count + count // len(_PLACES)
    return [known[(turned + i) % len(_PLACES)] + 0.1 * count.double().sin() for i in range(len(_PLACES))]


def _is_cdf(function: Callable[[Tensor], Tensor], cdf: Callable[[Tensor], Tensor], slope: float, like: Tensor) -> bool:
    """Whether a function of elements is the cdf of so many times each."""
    for places in places_of(like):
        value = function(places)
        if value.shape != like.shape or bool(
            ((value - cdf(slope * places)).abs() > 4 * torch.finfo(value.dtype).eps).any()
        ):
            return False
    return True
