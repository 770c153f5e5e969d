"""A mixture by a mask: each of its two components in its own conjugate form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro.distributions as dist

from ..rules import raw_arguments
from .base import ConjugateReparam, Site
from .entries import OF_DENSITIES, first_for

_PARTS = ("component0", "component1")


class MaskedMixtureReparam(ConjugateReparam):
    """x ~ MaskedMixture(mask, p, q) with the auxiliary sites of p and of q, if they have any, as ``name_component0_…``.

    The mask is known, or made of discrete latents.
    """

    densities = (dist.MaskedMixture,)
    suffixes = ("component0_…", "component1_…")
    form = "the components in their own conjugate forms"
    source = "those of the components"
    cost = "as of the components"

    def applies(self, site: Site) -> bool:
        return any(first_for(_part(site, name), OF_DENSITIES) is not None for name in _PARTS)

    def names(self, site: Site) -> list[str]:
        parts = [_part(site, name) for name in _PARTS]
        pairs = [(entry, part) for part in parts if (entry := first_for(part, OF_DENSITIES)) is not None]
        return [name for entry, part in pairs for name in entry.names(part)]

    def augment(self, site: Site) -> Any:
        components = {}
        for name in _PARTS:
            part = _part(site, name)
            entry = first_for(part, OF_DENSITIES)
            whole = replace(part, wrappers=site.wrappers + part.wrappers)  # as its auxiliary sites are wrapped
            components[name] = part.wrapped(part.fn if entry is None else entry.augment(whole))
        return dist.MaskedMixture(raw_arguments(site.fn)["mask"], **components)


def _part(site: Site, component: str) -> Site:
    """A component as a site, with its own wrappers."""
    fn = raw_arguments(site.fn)[component].expand(site.fn.batch_shape)
    return Site.of({"name": f"{site.name}_{component}", "fn": fn, "value": site.value})
