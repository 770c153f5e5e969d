"""The ELBO of each start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .discrete import DiscretePosterior


class Bound(NamedTuple):
    """The ELBO of each start, the sum of the absolute values of its terms, and where the state is proper."""

    elbo: Tensor
    magnitude: Tensor
    held: DiscretePosterior | None

    def of(self, starts: Sequence[int]) -> Bound:
        """Keep some starts alone."""
        index = list(starts)
        held = None if self.held is None else self.held.of(index)
        return Bound(self.elbo[index], self.magnitude[index], held)
