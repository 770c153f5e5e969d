"""Which sites share a factor of q, and of which family each factor is."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import NotConjugateError
from ..expressions.alike import likeness_of_factors, named
from ..expressions.axes import Label
from ..expressions.terms import Factor, Term
from ..families import FAMILIES, JOINT_FAMILIES, PLATE_FAMILIES, WIDER_FAMILIES, Family, family_of
from ..families.point import Point
from ..families.quadrature import Quadrature
from ..recording import LatentSite, Recording
from .auto_joining import weigh_alike
from .auto_vectors import pairs_of_vectors
from .blocks import Block, BlockKey
from .derived import derived_block, derived_variables
from .expectation import NoMomentError, expect
from .joining import AUTO, KnownPairs, is_joint_normal, joint_groups, joint_normal_block

#: What to write for priors that people use often and that are not conjugate.
_INSTEAD = {
    "Uniform": "On (0, 1), write Beta(1, 1); for a scale, a Gamma prior on the precision. ",
    "LKJCholesky": "Write a Wishart prior on the precision matrix. ",
    "LKJ": "Write a Wishart prior on the precision matrix. ",
}
#: Events of more elements than this get a warning: a full covariance is seldom what is wanted.
_LARGE_EVENT = 500


def make_blocks(
    recording: Recording, joint: tuple[tuple[str, ...], ...] = (), pairs: KnownPairs = MappingProxyType({})
) -> dict[BlockKey, Block]:
    """One block for each continuous site, but for those named together in ``joint``.

    Raises:
        NotConjugateError: for a prior outside the known families, or a joint block that no family fits.
    """
    blocks, problems = find_blocks(recording, joint, pairs)
    for problem in problems.values():
        raise problem
    return blocks


def find_blocks(
    recording: Recording, joint: tuple[tuple[str, ...], ...] = (), pairs: KnownPairs = MappingProxyType({})
) -> tuple[dict[BlockKey, Block], dict[str, NotConjugateError]]:
    """The blocks of :func:`make_blocks` that there are, and by site without one what is in the way."""
    is_auto = joint == AUTO
    joint = joint_groups(recording, joint)
    for pair in pairs_of_vectors(recording, joint) if is_auto else ():
        tried = (*(names for names in joint if names != pair[:1]), pair)
        joint = tried if _has_moments(recording, tried, pair) else joint
    used = [n for names in joint for n in names]
    if len(used) != len(set(used)):
        raise NotConjugateError(f"Expected each site in one block; got blocks {list(joint)}, which share sites.")
    blocks: list[Block] = []
    problems: dict[str, NotConjugateError] = {}
    for names in (*joint, *((name,) for name in recording.latents if name not in used)):
        try:
            one = (
                _joint(names, recording, pairs)
                if names in joint
                else _single(recording.latents[names[0]], recording.device)
            )
        except NotConjugateError as problem:
            problems |= dict.fromkeys(names, problem)
        else:
            blocks.append(one)
    return _with_integrals(recording, {block.key: block for block in blocks}), problems


def _has_moments(recording: Recording, joint: tuple[tuple[str, ...], ...], names: tuple[str, ...]) -> bool:
    """Whether the block of some sites is of a family that has a moment for every term that reads them."""
    blocks, problems = find_blocks(recording, joint)
    owners = {s.name: (b, i) for b in blocks.values() for i, s in enumerate(b.sites)}
    terms = [(n, part) for n, s in recording.scored.items() for whole in s.known_terms for part in whole.opened]
    for name, term in terms:
        sites = {f.variable.root.site for f in term.factors}
        try:
            if sites & set(names) and sites <= owners.keys():
                expect(term, owners, name)
        except NotConjugateError:
            return False
    return not set(names) & problems.keys()


def _with_integrals(recording: Recording, blocks: dict[BlockKey, Block]) -> dict[BlockKey, Block]:
    """The blocks with factors by quadrature for scalars that a density has functions of that their families lack."""
    owners = {s.name: (b, i) for b in blocks.values() for i, s in enumerate(b.sites)}
    owners |= {v.site: (derived_block(v, recording), 0) for v in derived_variables(recording)}
    fitting: dict[Hashable, Term] = {}  # which keeps the tensors that a likeness knows by their numbers
    for name, scored in recording.scored.items():
        for term in (part for whole in scored.known_terms for part in whole.opened):
            while all([f.variable.root.site in owners for f in term.factors]):
                kind = _likeness(term, owners)
                if kind is not None and kind in fitting:
                    break
                try:
                    expect(term, owners, name)
                except NoMomentError as problem:
                    block = blocks[problem.key]
                    fitting.clear()
                    wider = WIDER_FAMILIES.get(type(block.family))
                    if wider is not None:
                        blocks = blocks | {block.key: replace(block, family=wider)}
                        owners |= {s.name: (blocks[block.key], i) for i, s in enumerate(block.sites)}
                        continue
                    (site, *others) = block.sites
                    if others or not site.is_scalar or block.is_scalar:
                        break
                    why = f"{problem.product} in {name} has no closed form in a {block.family.name}"
                    blocks = blocks | {block.key: _by_quadrature(site, recording.device, why)}
                    owners[site.name] = (blocks[block.key], 0)
                except NotConjugateError:
                    break
                else:
                    fitting[kind] = term
                    break
    return blocks


def _likeness(term: Term, owners: Mapping[str, tuple[Block, int]]) -> Hashable | None:
    """What terms have in common that have an expectation if one of them has: all but names, numbers and constants; None
    where that is not known.
    """

    def of(factor: Factor) -> Hashable:
        block, component = owners[factor.variable.site]
        is_location = block.joint_normal is not None and component < len(block.joint_normal.parts)
        return id(block), -1 if is_location else component

    numbers: dict[Label, Label] = {}
    factors = likeness_of_factors(term.factors, of, numbers)
    return None if factors is None else (factors, tuple([named(c.labels, numbers) for c in term.constants]))


def _by_quadrature(site: LatentSite, device: torch.device, why: str) -> Block:
    return _over(Quadrature(site.name, site.constraint, site.shape, why, device), (site,), device)


def _single(site: LatentSite, device: torch.device) -> Block:
    if site.point is not None:
        weight = 1.0 if site.is_param else site.scale
        return Block((site,), Point(), torch.Size(site.shape), (torch.Size(),), weight, None, device)
    found = site.family or family_of(site.distribution)
    if found is not None and found.event_class is not None and site.event_shape:
        size = site.event_shape.numel()
        if size > _LARGE_EVENT:
            warnings.warn(
                f"Site {site.name!r} is a .to_event() normal of {size} elements: its posterior has a full covariance, "
                f"of {size}² numbers for each batch element. If its elements may be independent, declare them with "
                "pyro.plate instead.",
                stacklevel=2,
            )
        joined, events = FAMILIES[found.event_class], (torch.Size([size]),)
        return Block((site,), joined, site.batch_shape, events, site.scale, site.mask, device)
    if found is None and site.is_scalar:
        return _by_quadrature(site, device, f"{site.distribution.__name__} has no family here")
    if found is None:
        known = ", ".join(sorted(d.__name__ for d in FAMILIES))
        raise NotConjugateError(
            f"Expected site {site.name!r} to have a prior in a known exponential family; got "
            f"{site.distribution.__name__}. {_INSTEAD.get(site.distribution.__name__, '')}Known: {known}. "
            f"Add one with register_family({site.distribution.__name__}, family), or fit the site by gradient (an "
            "autoguide in SVI)."
        )
    return _over(found, (site,), device)


def _over(family: Family, sites: tuple[LatentSite, ...], device: torch.device) -> Block:
    """A block over sites, with events that ``to_event`` made counted as batch."""
    shapes = _shapes(family, sites)
    if len({batch for batch, _ in shapes}) > 1:
        listed = ", ".join(f"{s.name!r} {tuple(b)}" for s, (b, _) in zip(sites, shapes, strict=True))
        raise NotConjugateError(
            f"Expected the sites of a {family.name} block to have one batch shape; got {listed}. "
            "Put them in the same plates."
        )
    batch = shapes[0][0]
    extra = len(batch) - len(sites[0].batch_shape)

    def widen(x: object) -> Any:
        return x.reshape(x.shape + (1,) * extra) if isinstance(x, Tensor) and x.ndim else x

    events = tuple(event for _, event in shapes)
    return Block(sites, family, batch, events, widen(sites[0].scale), widen(sites[0].mask), device)


def _shapes(family: Family, sites: Sequence[LatentSite]) -> list[tuple[torch.Size, torch.Size]]:
    """The shape of each site, split into batch and event as the family has them."""
    splits = [(site.shape, len(site.shape) - own) for site, own in zip(sites, family.event_dims, strict=True)]
    return [(torch.Size(shape[:split]), torch.Size(shape[split:])) for shape, split in splits]


def _batches(family: Family, sites: Sequence[LatentSite]) -> set[torch.Size]:
    return {batch for batch, _ in _shapes(family, sites)}


def _joint(names: tuple[str, ...], recording: Recording, pairs: KnownPairs) -> Block:
    sites = [recording.latents[n] for n in names]
    fitting = _fitting(JOINT_FAMILIES, sites)
    of_shapes = next((c for c in fitting if len(_batches(*c)) == 1), None)
    if of_shapes is None and is_joint_normal(sites):
        return joint_normal_block(sites, recording.device, pairs)
    of_shapes = of_shapes or _in_plates(sites)
    if of_shapes or fitting:  # the first that fits the sites' shapes; else the first, whose error says what does not
        return _over(*(of_shapes or fitting[0]), recording.device)
    known = "; ".join(f"{f.name}: " + " with ".join(c.__name__ for c in cs) for cs, f in JOINT_FAMILIES.items())
    known += "; Joint Normal-Gamma: normal sites with one Gamma of a single number"
    got = " with ".join(s.distribution.__name__ for s in sites)
    points = [site.name for site in sites if site.point is not None]
    if points:
        raise NotConjugateError(
            f"Expected a joint block of sites with a distribution; got the point estimates {points} in the block "
            f"{names}. Leave them out of the block, or out of point=."
        )
    raise NotConjugateError(
        f"Expected a joint block of normal sites, or of a known family ({known}); got {got} in the block {names}, of "
        f"shapes {[tuple(s.shape) for s in sites]}."
    )


def _fitting(
    families: Mapping[tuple[type, ...], Family], sites: Sequence[LatentSite]
) -> list[tuple[Family, tuple[LatentSite, ...]]]:
    """The families whose components are of the sites' classes, each with the sites in its order."""
    return [(f, o) for classes, f in families.items() if (o := _in_order(sites, classes)) is not None]


def _in_plates(sites: Sequence[LatentSite]) -> tuple[Family, tuple[LatentSite, ...]] | None:
    """The family of a block whose plates are those of all sites, or of one inner plate more; None if there is none."""
    for family, ordered in _fitting(PLATE_FAMILIES, sites):
        inner = family.plate_dims or (0,) * len(ordered)
        plates = [[p.name for p in s.plates if -p.dim > own] for s, own in zip(ordered, inner, strict=True)]
        is_tied = any(inner)
        if any(len(s.event_shape) + i > own for s, i, own in zip(ordered, inner, family.event_dims, strict=True)):
            continue  # the marginals of rows that are one event would leave out what ties them
        alike = all(names == plates[0] for names in plates) and len(_batches(family, ordered)) == 1
        if alike and not (is_tied and (any(s.mask is not None for s in ordered) or not weigh_alike(ordered))):
            return family, ordered
    return None


def _in_order(sites: Sequence[LatentSite], classes: tuple[type, ...]) -> tuple[LatentSite, ...] | None:
    """The sites in the order of the classes that they belong to; None if they do not."""
    if len(sites) != len(classes):
        return None
    orders = itertools.permutations(sites)
    return next((o for o in orders if all(map(_belongs, o, classes))), None)


def _belongs(site: LatentSite, cls: type) -> bool:
    """Whether a site is of a class, by its own class or by that of its events."""
    family = family_of(site.distribution) if site.event_shape else None
    event_class = None if family is None else family.event_class
    return issubclass(site.distribution, cls) or (event_class is not None and issubclass(event_class, cls))
