"""Which normal sites share a factor of q: those that are named together, or all that can be."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import torch

from ..distributions.joint_normal import SiteSlice
from ..errors import NotConjugateError
from ..families.joint_normal import Gaussian
from ..families.joint_normal_gamma import GaussianGamma
from ..recording import LatentSite, Recording
from .auto_joining import is_common_precision, is_normal, joined_by_themselves, weigh_alike
from .blocks import Block, BlockKey, elements_with_prior
from .locality import is_in_subsample

#: In place of blocks: all normal sites that can be.
AUTO: tuple[tuple[str, ...], ...] = (("<auto>",),)
#: By joint normal block, pairs of its elements that are known to meet; see :attr:`.Gaussian.codes`.
KnownPairs = Mapping[BlockKey, Sequence[int]]


def is_joint_normal(sites: Sequence[LatentSite]) -> bool:
    """Whether sites are normal, but for one precision at most."""
    others = [site for site in sites if not is_normal(site)]
    return len(others) < len(sites) and (not others or (len(others) == 1 and is_common_precision(others[0])))


def joint_normal_block(
    sites: Sequence[LatentSite], device: torch.device, known: KnownPairs = MappingProxyType({})
) -> Block:
    """The block of normal sites that are taken together, whatever their shapes and plates, with or without a precision.

    Raises:
        NotConjugateError: if they do not weigh alike in the ELBO.
    """
    names = tuple(site.name for site in sites)
    given = [site.update for site in sites if site.update is not None]
    masked = [site.name for site in sites if site.mask is not None]
    if masked and (given or not all(map(is_normal, sites))):
        raise NotConjugateError(
            "Expected the sites of a joint normal block with a precision, or with an update, without masks; got "
            f"{masked} in the block {names}. Leave the precision in a block of its own, or mask what is observed of "
            "them."
        )
    if given and (len(given) < len(sites) or any(update != given[0] for update in given)):
        raise NotConjugateError(
            f"Expected no hand-written update, or one of all of {names}, which share a block; got others. Leave them "
            f"out of handlers.closed_form, or write {{{names}: update}} there."
        )
    if not weigh_alike(sites):
        scales = {site.name: site.scale for site in sites}
        inside = [site.name for site in sites if is_in_subsample(site.plates)]
        raise NotConjugateError(
            "Expected the sites of a joint normal block to have one scale, and a subsampled plate to hold all or none "
            f"of them; got the scales {scales}, and {inside} in one. Leave sites inside and outside in blocks of their "
            "own, or give all of the data."
        )
    normal = [site for site in sites if is_normal(site)]
    precisions = [site for site in sites if site not in normal]
    parts, offset = [], 0
    for site in normal:
        parts.append(SiteSlice(site.name, offset, site.batch_shape, site.event_shape))
        offset += site.shape.numel()
    names = tuple(site.name for site in (*normal, *precisions))
    pairs = known.get(names if len(names) > 1 else names[0], ())
    family = GaussianGamma(parts, device, pairs, precisions[0].name) if precisions else Gaussian(parts, device, pairs)
    events = (*(torch.Size([site.shape.numel()]) for site in normal), *(site.shape for site in precisions))
    mask = elements_with_prior(normal)
    return Block((*normal, *precisions), family, torch.Size(), events, float(sites[0].scale), mask, device)


def joint_groups(recording: Recording, joint: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """The blocks by the names of their sites, for names that may be patterns. A block of one site is one where the site
    is normal, so that its elements may meet; one of another single site says nothing.

    Raises:
        NotConjugateError: if a name is of no continuous latent site.
    """
    if joint == AUTO:
        return joined_by_themselves(recording).groups
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
    return (*found, *_asked_by_sites(recording, {name for names in found for name in names}))


def _asked_by_sites(recording: Recording, used: Collection[str]) -> list[tuple[str, ...]]:
    """The blocks that sites name themselves, without the sites that others have used."""
    blocks: dict[str, list[str]] = {}
    for site in recording.latents.values():
        if site.block is not None and site.name not in used:
            blocks.setdefault(site.block, []).append(site.name)
    return [tuple(names) for names in blocks.values()]


__all__ = ["AUTO", "KnownPairs", "is_joint_normal", "joint_groups", "joint_normal_block"]
