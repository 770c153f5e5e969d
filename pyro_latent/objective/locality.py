"""Which blocks belong to the data at hand, and which stay as they are for new data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..expressions.axes import Axis, is_position
from ..expressions.scalars import root_axes
from ..recording import Plate, Recording
from .blocks import Block, BlockKey
from .densities import usable_terms


def is_in_subsample(plates: Sequence[Plate]) -> bool:
    """Whether one of the plates holds a part of the data only."""
    return any(p.is_subsample for p in plates)


def locality(
    recording: Recording, blocks: Mapping[BlockKey, Block], owners: Mapping[str, tuple[Block, int]]
) -> tuple[frozenset[BlockKey], frozenset[BlockKey]]:
    """The blocks that belong to the data at hand, and those of which nobody can tell.

    A block is local where it lies in a subsampled plate, or, where no plate is, where each observation has an element
    of its own, or the model says so. Nobody can tell where several observations share an element of it, and others
    another, as rows share a group's mean, or all items that of a feature; and the model does not say.
    """
    if recording.is_subsample:
        inside = (key for key, b in blocks.items() if any(is_in_subsample(s.plates) for s in b.sites))
        return frozenset(inside), frozenset()
    said = {key: [s.local for s in b.sites if s.local is not None] for key, b in blocks.items()}
    sites, shared = _own_sites(recording, owners)
    own = {owners[name][0].key for name in sites}
    # Sites of a joint normal block may differ in this: such a block is neither.
    mixed = {
        key
        for key, b in blocks.items()
        if b.joint_normal and key in own and not sites.issuperset(s.name for s in b.sites)
    }
    local = {key for key, says in said.items() if (any(says) if says else key in own)} - mixed
    return frozenset(local), frozenset(key for key in shared - own if not said[key]) | mixed


def _own_sites(recording: Recording, owners: Mapping[str, tuple[Block, int]]) -> tuple[set[str], set[BlockKey]]:
    """The sites of which each observation has an element of its own, and the blocks of which only some of them do.

    What a latent with an own element for each observation reads in turn element by element, an observation reads. Where
    it is in a plate of its own, of as many elements, nobody can tell: the observations may have read it at an index.
    """
    scored = recording.scored
    data = [s.name for s in scored.values() if s.observed and s.plates]
    own: set[str] = set()
    shared: set[BlockKey] = set()
    apart: set[str] = set()
    for name in data:  # grows on the way
        dims, names = {p.dim for p in scored[name].plates}, {p.name for p in scored[name].plates}
        for site, plates, axes in _reads(recording, name):
            read = {a for a in axes if isinstance(a, int) and is_position(a)} | {p.dim for p in plates if p.size == 1}
            is_apart = name in apart or (bool(plates) and names.isdisjoint(p.name for p in plates))
            is_own = bool(dims) and read >= dims  # a site without a plate, a vector of the data, reads what is global
            if site in owners and is_own and not is_apart:
                own.add(site)
            elif site in owners and read & dims:
                shared.add(owners[site][0].key)
            if is_own and site not in data:
                data.append(site)
                apart |= {site} if is_apart else set()
    return own, shared


def _reads(recording: Recording, name: str) -> list[tuple[str, tuple[Plate, ...], tuple[Axis, ...]]]:
    """The latents that a site's density reads, with their plates, and the axes that they are read along."""
    found = []
    for term in usable_terms(recording.scored[name]):
        for factor in (f for part in term.opened for f in part.factors):
            latent = recording.latents.get(factor.variable.root.site)
            if latent is not None and not latent.is_param:
                found.append((latent.name, latent.plates, root_axes(factor)))
        for choice in term.choices:
            found.append((choice.site, recording.discrete[choice.site].plates, choice.axes))
    return found


__all__ = ["is_in_subsample", "locality"]
