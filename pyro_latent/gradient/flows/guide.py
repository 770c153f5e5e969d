"""A flow as the posterior of a whole model.

Source: ``docs/sources.md`` [2], "normalizing flows"; Rezende and Mohamed 2015.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from torch import Tensor
from torch.distributions import Transform, biject_to

from ...distributions import forget_last_draw
from ...errors import ArgumentError, ArgumentTypeError, as_real, in_our_words
from ...particles import seeded
from ...signatures import Model, PlainState
from ...values import kind_of
from .layers import FLOWS, ElementwiseAffine, Flow, layers_of, make_flow

__all__ = ["FlowGuide"]


class FlowGuide(AutoNormalizingFlow):
    """A flow over all latents of a model: Pyro's ``AutoNormalizingFlow``, placed and scaled.

    The noise N(0, I) goes through the flow and then through a trained location and scale for each coordinate, so that
    the mean-field Gaussian is the special case without a flow, and a posterior far from zero, or in other units, is
    within reach. The parameters are of the latents' dtype and device. Fit it by ``SVI``, as any autoguide. A deep copy
    shares the model; a pickle leaves it out, as that of any autoguide, so pickle a guide that has been called.

    Args:
        model: a Pyro model with continuous latents.
        flow: the kind of :func:`make_flow`, or a function from the number of unconstrained dimensions to a transform.
        length, hidden: as in :func:`make_flow`; for a function, unused.
        init_loc_fn: where the location starts, as in Pyro's autoguides.
        init_scale: the scale that every coordinate starts at, positive.

    Raises:
        ValueError: at the first call, if the flow does not suit the number of dimensions.

    Source: [2]; Rezende and Mohamed 2015.
    """

    def __init__(
        self,
        model: Model,
        flow: str | Callable[[int], Transform] = "affine_coupling",
        *,
        length: int = 4,
        hidden: Sequence[int] = (32, 32),
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.5,
    ) -> None:
        if not 0 < as_real(init_scale) < math.inf:
            raise ArgumentError(
                f"Expected init_scale to be positive; got {init_scale}. Write init_scale=0.5, the default."
            )
        if not callable(model):
            raise ArgumentTypeError(f"Expected a Pyro model; got {kind_of(model)}. Write FlowGuide(model).")
        if not callable(flow) and (not isinstance(flow, str) or flow not in FLOWS):
            raise ArgumentError(
                f"Expected flow to be one of {sorted(FLOWS)}, or a function; got {flow!r}. Try 'affine_coupling' "
                "first, or write lambda dim: make_flow(...)."
            )
        make = flow if callable(flow) else functools.partial(make_flow, flow, length=length, hidden=hidden)
        super().__init__(InitMessenger(init_loc_fn)(model), make)
        self._init_scale = as_real(init_scale)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        advice = "Call it with these arguments, and mend it, or them."
        with in_our_words("a model that runs with these arguments", lambda: advice):
            super()._setup_prototype(*args, **kwargs)
            loc = self._init_loc()
            with in_our_words("flow to make a transform of a number of dimensions", lambda: "Write lambda dim: ..."):
                flow = self._init_transform_fn(self.latent_dim)
            if not all(isinstance(layer, Transform) for layer in layers_of(flow)):
                raise ArgumentTypeError(
                    f"Expected flow to make a transform of vectors; got {kind_of(flow)}. "
                    "Write lambda dim: make_flow(...)."
                )
        parts = [*layers_of(flow), ElementwiseAffine(loc, self._init_scale)]
        self.transform = Flow(parts).to(loc)

    @property
    def _parameter(self) -> Tensor:
        flow: Any = self.transform
        found: Tensor = next(flow.parameters())
        return found

    def get_base_dist(self) -> Any:
        """N(0, I), where the parameters are now."""
        like = self._parameter
        return dist.Normal(like.new_zeros(1), like.new_ones(1)).expand([self.latent_dim]).to_event(1)

    def __getstate__(self) -> PlainState:
        model = self._model
        try:
            return dict(super().__getstate__())  # Pyro's takes the model away from the guide itself
        finally:
            self._model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> FlowGuide:
        forget_last_draw(self)
        memo[id(self.prototype_trace)] = self.prototype_trace  # is read only, and may hold a graph
        new: FlowGuide = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new._model = self._model
        return new

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, num_samples: int = 10_000, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Marginal quantiles of every latent, ``[quantiles] + shape``, from draws of the flow.

        The draws have a seed of their own: torch's random state stays as it is, and two calls find the same.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        with seeded(0, self._parameter.device):
            draws = self.get_posterior(*args, **kwargs).sample((num_samples,))
        levels = torch.as_tensor(quantiles, dtype=draws.dtype, device=draws.device)
        found = torch.stack([torch.quantile(draws, level, 0) for level in levels])
        # Bijections of one coordinate keep its quantiles; others (a simplex) are not monotone in each, nor quantiles.
        return {name: torch.stack([dict(self._sites(row))[name] for row in found]) for name, _ in self._sites(found[0])}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The marginal median of every latent, as :meth:`quantiles`."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    def _sites(self, latent: Tensor) -> list[tuple[str, Tensor]]:
        return [(site["name"], biject_to(site["fn"].support)(value)) for site, value in self._unpack_latent(latent)]
