"""Which normal sites share a factor of q: those that are named together, or all that can be."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..distributions.joint_normal import Part
from ..errors import NotConjugateError
from ..families import family_of
from ..families.joint_normal import Gaussian
from ..families.multivariate_normal import MultivariateNormal
from ..families.normal import Normal
from ..recording import LatentSite, Recording
from .blocks import Block, BlockKey

#: In place of blocks: all normal sites that can be.
AUTO: tuple[tuple[str, ...], ...] = (("<auto>",),)
#: By joint normal block, pairs of its elements that are known to meet; see :attr:`.Gaussian.codes`.
KnownPairs = Mapping[BlockKey, Sequence[int]]


def is_normal(site: LatentSite) -> bool:
    return site.point is None and isinstance(site.family or family_of(site.distribution), Normal | MultivariateNormal)


def joint_normal_block(sites: Sequence[LatentSite], device: torch.device, pairs: Sequence[int]) -> Block:
    """The block of normal sites that are taken together, whatever their shapes and plates.

    Raises:
        NotConjugateError: if they do not weigh alike in the ELBO.
    """
    masked = [site.name for site in sites if site.mask is not None]
    if masked:
        raise NotConjugateError(
            f"Expected the sites of a joint normal block without masks; got {masked}. Mask what is observed of them, "
            "or leave them in blocks of their own."
        )
    names = tuple(site.name for site in sites)
    given = [site.update for site in sites if site.update is not None]
    if given and (len(given) < len(sites) or any(update is not given[0] for update in given)):
        raise NotConjugateError(
            f"Expected no hand-written update, or one of all of {names}, which share a block; got others. Leave them "
            f"out of handlers.closed_form, or write {{{names}: update}} there."
        )
    if not _have_one_scale(sites):
        scales = {site.name: site.scale for site in sites}
        raise NotConjugateError(
            f"Expected the sites of a joint normal block to have one scale; got {scales}. Sites of a subsampled plate "
            "are not joined with others: leave them in blocks of their own, or give all of the data."
        )
    parts, offset = [], 0
    for site in sites:
        parts.append(Part(site.name, offset, site.batch_shape, site.event_shape))
        offset += site.shape.numel()
    events = tuple(torch.Size([site.shape.numel()]) for site in sites)
    return Block(
        tuple(sites), Gaussian(parts, device, pairs), torch.Size(), events, float(sites[0].scale), None, device
    )


def groups_of(recording: Recording, joint: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """The blocks by the names of their sites, for names that may be patterns. A block of one site is one where the site
    is normal, so that its elements may meet; one of another single site says nothing.

    Raises:
        NotConjugateError: if a name is of no continuous latent site.
    """
    if joint == AUTO:
        return _connected(recording)
    found = []
    for names in joint:
        if len(set(names)) < len(names):
            raise NotConjugateError(f"Expected each site in one block; got the block {names}, which names one twice.")
        matches = {n: [x for x in recording.latents if x == n or fnmatch.fnmatchcase(x, n)] for n in names}
        missing = [name for name, sites in matches.items() if not sites]
        if missing:
            raise NotConjugateError(
                f"Expected blocks of continuous latent sites {sorted(recording.latents)}; got {missing} in the block "
                f"{names}."
            )
        own = dict.fromkeys(name for sites in matches.values() for name in sites)
        if len(own) > 1 or all(is_normal(recording.latents[n]) for n in own):
            found.append(tuple(own))
    return tuple(found)


def _connected(recording: Recording) -> tuple[tuple[str, ...], ...]:
    """The largest sets of normal sites that meet in some term, and of which every term is at most quadratic."""
    normal = {
        n for n, site in recording.latents.items() if is_normal(site) and site.mask is None and site.update is None
    }
    degrees: list[dict[str, float]] = []
    for scored in recording.scored.values():
        density = scored.density
        for term in density.terms if density is not None and density.opacity is None else ():
            own: dict[str, float] = {}
            for factor in term.factors:
                name = factor.variable.root.site
                if name in normal:
                    plain = factor.variable.scalar is None and factor.function == "x" and factor.power in (1, 2)
                    own[name] = own.get(name, 0) + (factor.power if plain else 9)
            if own:
                degrees.append(own)
    group = {name: {name} for name in sorted(normal, key=list(recording.latents).index)}
    for own in degrees:
        for first, second in itertools.combinations(own, 2):
            merged = group[first] | group[second]
            if group[first] is group[second] or not _have_one_scale([recording.latents[n] for n in merged]):
                continue
            if all(sum(d for n, d in other.items() if n in merged) <= 2 for other in degrees):
                for name in merged:
                    group[name] = merged
    sets = {id(g): g for g in group.values()}
    return tuple(tuple(n for n in recording.latents if n in g) for g in sets.values() if len(g) > 1)


def _have_one_scale(sites: Sequence[LatentSite]) -> bool:
    scales = [site.scale for site in sites]
    return all(not isinstance(s, Tensor) or s.numel() == 1 for s in scales) and len({float(s) for s in scales}) == 1


__all__ = ["AUTO", "KnownPairs", "groups_of", "is_normal", "joint_normal_block"]
