"""What families of a mean and its precision have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base import Family, Params


class MeanPrecisionFamily(Family):
    """A mean (component 0) and its precision (component 1), which is drawn first.

    To implement one: as of :class:`.Family`; its :meth:`distribution` is a
    :class:`~pyro_latent.distributions.joint.MeanPrecision`, and the first of its params is the location of the mean.
    """

    location = ("loc", 0)

    def marginals(self, params: Params) -> tuple[Any, ...]:
        joint = self.distribution(params)
        return joint.mean_marginal(), joint.precision_marginal()

    def conditionals(self, params: Params) -> tuple[tuple[int, Callable[..., Any]], ...]:
        joint = self.distribution(params)
        return ((1, joint.precision_marginal), (0, joint.mean_given))


__all__ = ["MeanPrecisionFamily"]
