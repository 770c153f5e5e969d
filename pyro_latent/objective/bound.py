"""The ELBO of each start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .discrete import DiscretePosterior


class ElboBound(NamedTuple):
    """The ELBO of each start, the sum of the absolute values of its terms, and where the state is proper."""

    elbo: Tensor
    magnitude: Tensor
    held: DiscretePosterior | None

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, one after another."""
        held = [] if self.held is None else [*self.held.weights, *self.held[1:]]
        return [self.elbo, self.magnitude, *held]

    def like(self, tensors: Sequence[Tensor]) -> ElboBound:
        """A bound of other tensors in the same order."""
        elbo, magnitude, *rest = tensors
        if self.held is None:
            return ElboBound(elbo, magnitude, None)
        count = len(self.held.weights)
        return ElboBound(elbo, magnitude, DiscretePosterior(tuple(rest[:count]), *rest[count:]))

    def of(self, starts: Sequence[int]) -> ElboBound:
        """Keep some starts alone."""
        index = list(starts)
        held = None if self.held is None else self.held.of(index)
        return ElboBound(self.elbo[index], self.magnitude[index], held)
