"""Blocks: the factors of q, each in one exponential family."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from ..errors import NotConjugateError
from ..families import FAMILIES, JOINT_FAMILIES, Family, Mean, Natural, Params, family_of
from ..families.finite import Finite
from ..families.point import Point
from ..recording import DiscreteSite, LatentSite, Recording, base_constraint

BlockKey = str | tuple[str, ...]
#: Natural parameters η by block, each with a leading dimension over starts.
State = dict[BlockKey, Natural]
#: Mean parameters μ by block, each with a leading dimension over starts.
Means = dict[BlockKey, Mean]


def starts_of(coordinates: State | Means) -> int:
    """The number of starts of a state, or of mean parameters; 1 where there are no blocks."""
    return next((len(tensor) for fields in coordinates.values() for tensor in fields.values()), 1)


_PRECISION = "Write a Gamma prior on the precision, and scale=precision.rsqrt(). "
#: What to write for priors that people use often and that are not conjugate.
_INSTEAD = {
    "Uniform": "On (0, 1), write Beta(1, 1); for a scale, a Gamma prior on the precision. ",
    "Exponential": "Write Gamma(1, rate). ",
    "HalfCauchy": _PRECISION,
    "HalfNormal": _PRECISION,
    "InverseGamma": _PRECISION,
    "LogNormal": _PRECISION,
    "LKJCholesky": "Write a Wishart prior on the precision matrix. ",
    "LKJ": "Write a Wishart prior on the precision matrix. ",
}
#: Events of more elements than this get a warning: a full covariance is seldom what is wanted.
_LARGE_EVENT = 500


@dataclass(frozen=True, eq=False)
class Block:
    """One factor of q: its sites in the order of the family's components, its family and shapes.

    ``scale`` and ``mask`` are laid over ``batch_shape`` and weight the entropy: the scale of its sites' log densities,
    and the elements that some log density reads. ``prior_mask`` are those that the prior reads, where they are others.
    """

    sites: tuple[LatentSite, ...]
    family: Family
    batch_shape: torch.Size
    event_shapes: tuple[torch.Size, ...]
    scale: Tensor | float
    mask: Tensor | None
    device: torch.device
    prior_mask: Tensor | None = None

    @cached_property
    def key(self) -> BlockKey:
        names = tuple(site.name for site in self.sites)
        return names[0] if len(names) == 1 else names

    @cached_property
    def label(self) -> str:
        return ", ".join(site.name for site in self.sites)

    @cached_property
    def is_param(self) -> bool:
        """Whether the block is a ``pyro.param``."""
        return self.sites[0].is_param

    @cached_property
    def is_point(self) -> bool:
        """Whether the block is a point estimate."""
        return isinstance(self.family, Point)

    @cached_property
    def is_discrete(self) -> bool:
        """Whether the block is a discrete site, whose elements are independent in q."""
        return isinstance(self.family, Finite)

    @cached_property
    def is_location(self) -> bool:
        """Whether the block has a location: it moves with the data, or lies anywhere on the line."""
        if self.is_point:
            return base_constraint(self.sites[0].constraint) is constraints.real
        return self.family.location is not None

    @cached_property
    def rank(self) -> tuple[bool, bool, bool, int, int]:
        """The block's place in the default order of updates.

        Parameters come last, discrete sites before them, whose start the others then see, locations before all that
        hangs on them, and the block that its plates repeat most often first. A precision that moves while its location
        is still at a wide prior falls to that width, and a mixture's components lose the start that the data gave them.
        """
        return (self.is_param, self.is_discrete, not self.is_location, -self.count, -self.numel)

    @cached_property
    def count(self) -> int:
        """The number of elements that the plates of its sites repeat it over."""
        return self.sites[0].batch_shape.numel()

    @cached_property
    def numel(self) -> int:
        return sum(site.shape.numel() for site in self.sites)

    @cached_property
    def numbers(self) -> int:
        """How many numbers its mean parameters hold, for one start."""
        size = max((shape[-1] for shape in self.event_shapes if shape), default=1)
        return self.batch_shape.numel() * sum(size**event for event in self.family.statistics.values())

    @cached_property
    def update(self) -> Any:
        """The hand-written update attached to the block, if any."""
        return self.sites[0].update

    @cached_property
    def example(self) -> Params:
        """The params of some proper member of the family, of the block's shapes."""
        return self.family.example(self.batch_shape, *self.event_shapes)

    @cached_property
    def location_site(self) -> LatentSite | None:
        """The site that the family's location belongs to."""
        return self.sites[self.family.location[1]] if self.family.location else None

    def weight(self, tensor: Tensor) -> Tensor:
        """Weight a tensor of batch shape (with leading dimensions) by the block's scale and mask."""
        tensor = tensor * self.scale
        return tensor if self.mask is None else torch.where(self.mask, tensor, torch.zeros_like(tensor))

    @cached_property
    def plate_scales(self) -> dict[str, Tensor | float]:
        """By statistic, the scale of the block's plates, laid over the statistic's batch shape."""

        def widened(event: int) -> Tensor | float:
            scale = self.scale
            return scale.reshape(scale.shape + (1,) * event) if isinstance(scale, Tensor) and scale.ndim else scale

        return {name: widened(event) for name, event in self.family.statistics.items()}

    def where_read(self, natural: Natural) -> Natural:
        """The natural parameters where the mask holds; elsewhere a standard distribution's, which weighs nothing."""
        assert self.mask is not None
        like = next(iter(natural.values()))
        standard = self.family.from_params({n: p.to(like) for n, p in self.example.items()})
        fields = {}
        for name, value in natural.items():
            wide = self.mask.reshape(self.mask.shape + (1,) * self.family.statistics[name])
            fields[name] = torch.where(wide, value, standard[name])
        return Natural(**fields)

    def counting(self, is_read: Tensor) -> Block:
        """The block with the elements that some log density reads, beside those with a prior, in the ELBO.

        Args:
            is_read: booleans of the batch shape.
        """
        assert self.mask is not None
        mask = self.mask | is_read
        extra = tuple(range(len(self.sites[0].batch_shape), mask.ndim))  # what to_event made of the batch
        whole = mask.any(extra) if extra else mask
        sites = tuple(replace(site, mask=whole) for site in self.sites)
        mask = whole.reshape(whole.shape + (1,) * len(extra))
        return replace(self, sites=sites, mask=mask, prior_mask=self.mask)

    def under_prior(self) -> Block:
        """The block as its prior alone sees it."""
        return self if self.prior_mask is None else replace(self, mask=self.prior_mask)

    def _shifted(self, params: Params, sign: float) -> Params:
        site = self.location_site
        if site is None or site.origin is None:
            return params
        name = self.family.location[0]  # type: ignore[index]
        location = params[name]
        tail = self.event_shapes[self.family.location[1]]  # type: ignore[index]
        origin = site.origin.expand(site.shape).reshape(self.batch_shape + tail)
        return params | {name: location + sign * origin}

    def statistics(self, values: Sequence[Tensor]) -> Mean:
        """The sufficient statistics of values of its sites, ``[draws] + shape``, in the model's own coordinates."""
        shaped = []
        for site, value, event in zip(self.sites, values, self.event_shapes, strict=True):
            event = site.event_shape if self.is_discrete else event
            if site is self.location_site and site.origin is not None:
                value = value - site.origin
            shaped.append(value.reshape(len(value), *self.batch_shape, *event))
        return self.family.sufficient_statistics(*shaped)

    def params(self, natural: Natural) -> Params:
        """The params of q, in the model's own coordinates."""
        return self._shifted(self.family.to_params(natural), 1.0)

    def natural(self, params: Params) -> Natural:
        """The natural parameters of q from params in the model's own coordinates."""
        return self.family.from_params(self._shifted(params, -1.0))


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

    def widen(x: Any) -> Any:
        return x.reshape(x.shape + (1,) * extra) if isinstance(x, Tensor) and x.ndim else x

    events = tuple(event for _, event in shapes)
    return Block(sites, family, batch, events, widen(sites[0].scale), widen(sites[0].mask), device)


def _shapes(family: Family, sites: Sequence[LatentSite]) -> list[tuple[torch.Size, torch.Size]]:
    """The shape of each site, split into batch and event as the family has them."""
    splits = [(site.shape, len(site.shape) - own) for site, own in zip(sites, family.event_dims, strict=True)]
    return [(torch.Size(shape[:split]), torch.Size(shape[split:])) for shape, split in splits]


def _batches(family: Family, sites: Sequence[LatentSite]) -> set[torch.Size]:
    return {batch for batch, _ in _shapes(family, sites)}


def _joint(names: tuple[str, ...], recording: Recording) -> Block:
    missing = [n for n in names if n not in recording.latents]
    if missing:
        raise NotConjugateError(
            f"Expected blocks of continuous latent sites {sorted(recording.latents)}; got {missing} in the block "
            f"{names}."
        )
    sites = [recording.latents[n] for n in names]
    fitting = [(f, o) for classes, f in JOINT_FAMILIES.items() if (o := _in_order(sites, classes)) is not None]
    if fitting:  # the first whose events fit the sites' shapes; else the first, whose error says what does not
        family, order = next((c for c in fitting if len(_batches(*c)) == 1), fitting[0])
        return _over(family, order, recording.device)
    known = "; ".join(f"{f.name}: " + " with ".join(c.__name__ for c in cs) for cs, f in JOINT_FAMILIES.items())
    got = " with ".join(s.distribution.__name__ for s in sites)
    raise NotConjugateError(f"Expected a joint block of a known family ({known}); got {got} in the block {names}.")


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


def discrete_block(site: DiscreteSite, seen: Tensor | None, device: torch.device) -> Block:
    """A block of a discrete site whose elements are independent in q; ``seen``: where it weighs something."""
    event = torch.Size([site.cardinality])
    shape = site.support.shape[1:]
    latent = LatentSite(
        site.name, site.distribution, site.batch_shape, shape, site.plates, site.scale, seen, site.update
    )
    family = Finite(site.distribution, site.support)
    return Block((latent,), family, site.batch_shape, (event,), site.scale, None, device)


def make_blocks(recording: Recording, joint: tuple[tuple[str, ...], ...] = ()) -> dict[BlockKey, Block]:
    """One block for each continuous site, but for those named together in ``joint``.

    Raises:
        NotConjugateError: for a prior outside the known families, or a joint block that no family fits.
    """
    blocks, problems = find_blocks(recording, joint)
    for problem in problems.values():
        raise problem
    return blocks


def find_blocks(
    recording: Recording, joint: tuple[tuple[str, ...], ...] = ()
) -> tuple[dict[BlockKey, Block], dict[str, NotConjugateError]]:
    """The blocks of :func:`make_blocks` that there are, and by site without one what is in the way."""
    used = [n for names in joint for n in names]
    if len(used) != len(set(used)):
        raise NotConjugateError(f"Expected each site in one block; got blocks {list(joint)}, which share sites.")
    blocks: list[Block] = []
    problems: dict[str, NotConjugateError] = {}
    for names in (*joint, *((name,) for name in recording.latents if name not in used)):
        try:
            one = _joint(names, recording) if len(names) > 1 else _single(recording.latents[names[0]], recording.device)
        except NotConjugateError as problem:
            problems |= dict.fromkeys(names, problem)
        else:
            blocks.append(one)
    return {block.key: block for block in blocks}, problems
