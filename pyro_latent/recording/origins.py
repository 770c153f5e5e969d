"""Constants that locations are measured from, so that data far from zero loses no digits.

A latent that is a location of the data, and the locations above it, are measured from the data's mean: differences
between data and location are then taken before squares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..expressions import Expression, RandomTensor
from ..expressions.axes import Axis, is_position
from ..expressions.terms import Factor
from ..rules import NAN_MASKED, RandomDistribution, family_class, unwrap
from ..values import all_finite
from .data import joined_mask, seen_data

#: Distributions with an argument that moves with the data.
LOCATED = (dist.Normal, dist.MultivariateNormal, *NAN_MASKED)


class Origins:
    """The search for origins, site by site in the order of the model.

    ``found`` holds the origin of each latent that has one. ``own_data`` holds, by latent that is the location of one
    observation for each of its elements, that data.
    """

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self.own_data: dict[str, Tensor] = {}
        self._classes: dict[str, type] = {}
        self._locations: dict[str, _Location] = {}

    def add_parameter(self, name: str, is_real: bool) -> None:
        """Take a parameter in: a real one is a location as a normal latent is."""
        self._classes[name] = dist.Normal if is_real else dist.Delta

    def add_site(self, msg: Any, device: torch.device) -> None:
        """Take a site in, and measure its location where it is observed."""
        self._classes[msg["name"]] = family_class(unwrap(msg["fn"])[0])
        location = _location_of(msg)
        if location is None:
            return
        if not msg["is_observed"]:
            self._locations[msg["name"]] = location
        elif msg["value"].is_floating_point():
            masks = [msg["mask"], *unwrap(msg["fn"])[2]]
            mask = joined_mask([m for m in masks if not isinstance(m, RandomTensor)], device)
            seen = msg["value"] if mask is False else seen_data(msg["value"], mask, len(msg["fn"].event_shape))
            self._measure(location, seen)

    def _measure(self, location: _Location, value: Tensor, is_above: bool = False) -> None:
        """Give the latent in a location the mean of a value, and go on from there to the latent's own location.

        In a sum of latents, as of an intercept and effects, the one with the fewest elements is measured. Above the
        observation's own, a latent that an earlier one has started is left: a chain is climbed once.
        """
        factors = [f for f in location.latents() if self._classes.get(f.variable.site) in LOCATED]
        if not factors or any(f.variable.site in self.found for f in factors):
            return
        factor = min(factors, key=lambda f: f.variable.shape.numel())
        if is_above and factor.variable.site in self.own_data:
            return
        mean = _mean_over(value, factor.axes)
        origin = _common(mean, factor.axes, location, value)
        if origin is not None:
            self.found[factor.variable.site] = origin
        if sorted(a for a in factor.axes if isinstance(a, int)) == list(range(-value.ndim, 0)):
            self.own_data.setdefault(factor.variable.site, mean)  # one latent for each observation starts there
        above = self._locations.get(factor.variable.site)
        if above is not None:
            self._measure(above, mean.expand(factor.variable.shape), is_above=True)


class _Location(NamedTuple):
    """The location of a site as an expression, with the site's event dimensions and those of its subsampled plates."""

    expression: Expression
    event_dim: int
    parts: list[int]

    def latents(self) -> list[Factor]:
        """The latents that it is a sum of, each with coefficient one, beside other terms."""
        plain = [t for t in self.expression.terms if not t.constants and t.coefficient == 1 and len(t.factors) == 1]
        return [t.factors[0] for t in plain if t.factors[0].power == 1 and t.factors[0].function == "x"]


def _location_of(msg: Any) -> _Location | None:
    """The location of a site that has one, where it is computed of latents."""
    base = unwrap(msg["fn"])[0]
    if family_class(base) not in LOCATED or not isinstance(base, RandomDistribution):
        return None
    location = base.arguments.get("loc")
    if not isinstance(location, RandomTensor) or location.expression.opacity or location.expression.pieces:
        return None
    event = len(msg["fn"].event_shape)
    parts = [f.dim - event for f in msg["cond_indep_stack"] if f.vectorized and is_part(f)]
    return _Location(location.expression, event, parts)


def is_part(frame: Any) -> bool:
    """Whether a plate holds a part of the data only."""
    return frame.full_size is not None and frame.size != frame.full_size


def _common(mean: Tensor, axes: tuple[Axis, ...], location: _Location, value: Tensor) -> Tensor | None:
    """The mean that elements of a latent share: over the plates that hold a part of the data, and over all plates where
    each datum has an element of its own, for that is no mean; None where that leaves one datum alone.
    """
    positions = {i: axis for i, axis in enumerate(axes) if isinstance(axis, int) and is_position(axis)}
    batch = [i for i, axis in positions.items() if axis < -location.event_dim]
    gone = [i for i in batch if positions[i] in location.parts]
    if len(positions) == value.ndim:
        if not batch:
            return None
        gone = batch
    return mean.mean(gone, keepdim=True) if gone else mean


def _mean_over(value: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """The mean of finite data over every dimension that the axes do not run along; size 1 where they gather."""
    value = seen_data(value, None, 0)
    along = [
        a if isinstance(a, int) and -value.ndim <= a < 0 and a not in axes[:i] else None for i, a in enumerate(axes)
    ]
    labels = [a for a in along if a is not None]
    gone = [d for d in range(value.ndim) if d - value.ndim not in labels]
    whole = value.double()
    mean = whole if not gone else whole.mean(gone) if all_finite(whole) else whole.nanmean(gone)
    kept = [d - value.ndim for d in range(value.ndim) if d not in gone]
    mean = torch.nan_to_num(mean).to(value.dtype).permute([kept.index(a) for a in labels])
    return mean.reshape([1 if a is None else value.shape[a] for a in along])


def origin_for(origins: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor | None:
    """The constant that a latent of this shape is measured from; for data of another size than the origin was found
    with, its mean over what has changed.
    """
    origin = origins.get(name)
    if origin is None or origin.ndim > len(shape):
        return origin
    last = shape[len(shape) - origin.ndim :]
    changed = [i for i, (n, size) in enumerate(zip(origin.shape, last, strict=True)) if n not in (1, size)]
    return origin.mean(changed, keepdim=True) if changed else origin
