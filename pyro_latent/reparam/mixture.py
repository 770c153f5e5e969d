"""A mixture: the component of each datum becomes a site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from ..errors import NotConjugateError
from ..rules import parts_of
from .base import ConjugateReparam, Site


class MixtureReparam(ConjugateReparam):
    """x ~ MixtureSameFamily(π, p) is x ~ p_z with z ~ π."""

    densities = (dist.MixtureSameFamily,)
    suffixes = ("component",)
    form = "the component, with a Categorical site that says which"
    source = "Bishop (2006), §9.2"

    def augment(self, site: Site) -> Any:
        weights, components = site.fn.mixture_distribution, site.fn.component_distribution
        number = site.auxiliary("component", weights.expand(site.fn.batch_shape))
        return component_of(components, number, site.name)


def component_of(
    components: object, number: Tensor, name: str, narrowed: Callable[[Tensor, int], Tensor] | None = None
) -> Any:
    """The distribution of one of several, whose batch ends in a dimension along them.

    Args:
        components: all of them.
        number: which one, of the batch shape of the result.
        name: of the site, for errors.
        narrowed: takes other dimensions from an argument of the components, of which so many are its own, with that
            along them.
    """
    family, given, events = parts_of(components)
    chosen = {}
    for argument, (value, event) in given.items():
        whole = narrowed(value, event + 1) if narrowed is not None and isinstance(value, Tensor) else value
        chosen[argument] = taken(whole, number, event, name)
    found = family(**chosen)
    return found.to_event(events) if events else found


def taken(value: object, number: Tensor, event: int, name: str) -> Any:
    """The argument of the component of each datum.

    Args:
        value: an argument of all components, ``batch + [K] + event``, or of fewer dimensions where they share it.
        number: the component, of batch shape.
        event: the number of event dimensions.
        name: of the site, for errors.

    Raises:
        NotConjugateError: if each datum has components of its own, with an event.
    """
    if not isinstance(value, Tensor) or value.ndim <= event:
        return value
    place = value.ndim - event - 1
    if type(value) is Tensor:
        for dim in range(place):
            value = value.narrow(dim, 0, 1) if value.stride(dim) == 0 else value
    if value.shape[place] == 1:
        return value.squeeze(place)
    if not any(n > 1 for n in value.shape[:place]):
        return value.reshape(value.shape[place:])[number]
    if event:
        raise NotConjugateError(
            f"Expected components that the data of site {name!r} share; got other ones for each datum, of shape "
            f"{tuple(value.shape)}. Write z = pyro.sample('z', Categorical(weights)), and index them by it."
        )
    return value.expand(*number.shape, value.shape[-1]).gather(-1, number.unsqueeze(-1)).squeeze(-1)
