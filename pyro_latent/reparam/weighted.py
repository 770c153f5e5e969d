"""Densities beside the weight that they are a simple factor with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..rules import raw_arguments, register_rule


class GivenWeight:
    """A distribution beside the weight of its density: a draw takes no notice of the weight.

    The density is a factor of the joint density, not normalized over the values for one weight. To implement one: a
    subclass of this and of the distribution, whose constructor keeps its ``weight``, with a ``log_factor``, which is
    its rule too.
    """

    weight: Tensor

    def __init_subclass__(cls) -> None:
        register_rule(cls, lambda arguments, value: cls.log_factor(arguments, value))

    @staticmethod
    def log_factor(arguments: Any, value: Any) -> Any:
        """The logarithm of the factor, of numbers or of expressions."""
        raise NotImplementedError

    def log_prob(self, value: Tensor) -> Tensor:
        found: Tensor = self.log_factor(self, value)
        return found

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        make: Any = type(self)
        return make(**{n: v.expand(batch_shape) for n, v in raw_arguments(self).items()}, validate_args=False)
