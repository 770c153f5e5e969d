"""Blocks: the factors of q, each in one exponential family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from ..families import Family, Mean, Natural, Params
from ..families.finite import Finite
from ..families.joint_normal import Gaussian
from ..families.point import Point
from ..families.quadrature import Quadrature
from ..recording import DiscreteSite, LatentSite, base_constraint

BlockKey = str | tuple[str, ...]
#: Natural parameters η by block, each with a leading dimension over starts.
State = dict[BlockKey, Natural]
#: Mean parameters μ by block, each with a leading dimension over starts.
Means = dict[BlockKey, Mean]


def starts_of(coordinates: State | Means) -> int:
    """The number of starts of a state, or of mean parameters; 1 where there are no blocks."""
    return next((len(tensor) for fields in coordinates.values() for tensor in fields.values()), 1)


def of_start(state: State, start: int) -> State:
    """One start of a state, alone: views of its tensors."""
    return {key: natural.map(lambda t: t[start : start + 1]) for key, natural in state.items()}


@dataclass(frozen=True, eq=False)
class Block:
    """One factor of q: its sites in the order of the family's components, its family and shapes.

    ``scale`` and ``mask`` are laid over ``batch_shape`` and weight the entropy: the scale of its sites' log densities,
    and the elements that some log density reads. ``prior_mask`` are those that the prior reads, where they are others.
    The mask of a joint normal block is over the elements of all its sites, one after another.
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
    def is_scalar(self) -> bool:
        """Whether the block's elements are factors by quadrature."""
        return isinstance(self.family, Quadrature)

    @cached_property
    def joint_normal(self) -> Gaussian | None:
        """The family of a block of normal sites that are taken together, each a location; None for other blocks."""
        return self.family if isinstance(self.family, Gaussian) else None

    @cached_property
    def symmetric(self) -> tuple[str, ...]:
        """The statistics that are symmetric matrices."""
        return self.family.symmetric

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
        if self.joint_normal:
            return self.joint_normal.numbers
        size = max((shape[-1] for shape in self.event_shapes if shape), default=1)
        return self.batch_shape.numel() * sum(size**event for event in self.family.statistics.values())

    @cached_property
    def update(self) -> Any:
        """The hand-written update attached to the block, if any."""
        return self.sites[0].update

    @cached_property
    def example(self) -> Params:
        """The params of some proper member of the family, of the block's shapes."""
        found = self.family.example(self.batch_shape, *self.event_shapes)
        if self.joint_normal is None or self.mask is None:
            return found
        return self.family.to_params(self.joint_normal.where_read(self.family.from_params(found), self.mask.cpu()))

    @cached_property
    def location_site(self) -> LatentSite | None:
        """The site that the family's location belongs to; None where there is none, or several are locations."""
        if self.joint_normal:
            return None
        return self.sites[self.family.location[1]] if self.family.location else None

    @cached_property
    def normal_sites(self) -> tuple[LatentSite, ...]:
        """Those of a joint normal block: all but a precision."""
        assert self.joint_normal is not None
        return self.sites[: len(self.joint_normal.parts)]

    @cached_property
    def has_origin(self) -> Tensor:
        """By element of all normal sites, one after another, whether it is measured from an origin."""
        is_moved = [torch.full((s.shape.numel(),), s.origin is not None) for s in self.normal_sites]
        return torch.cat(is_moved).to(self.device)

    def weight(self, tensor: Tensor) -> Tensor:
        """Weight a tensor of batch shape (with leading dimensions) by the block's scale and mask."""
        tensor = tensor * self.scale
        if self.mask is None or self.joint_normal:
            return tensor
        return torch.where(self.mask, tensor, torch.zeros_like(tensor))

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
        if self.joint_normal:
            return self.joint_normal.where_read(natural, self.mask)
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
            is_read: booleans of the batch shape, or over the elements of a joint normal block.
        """
        assert self.mask is not None
        if self.joint_normal:
            return self._counting_elements(is_read)
        mask = self.mask | is_read
        extra = tuple(range(len(self.sites[0].batch_shape), mask.ndim))  # what to_event made of the batch
        whole = mask.any(extra) if extra else mask
        sites = tuple(replace(site, mask=whole) for site in self.sites)
        mask = whole.reshape(whole.shape + (1,) * len(extra))
        return replace(self, sites=sites, mask=mask, prior_mask=self.mask)

    def _counting_elements(self, is_read: Tensor) -> Block:
        """The same of a joint normal block, whose events are read as a whole."""
        sites, start = [], 0
        for site in self.sites:
            own = is_read[start : start + site.shape.numel()].reshape((*site.batch_shape, -1))
            sites.append(site if site.mask is None else replace(site, mask=own.any(-1)))
            start += site.shape.numel()
        return replace(self, sites=tuple(sites), mask=elements_with_prior(sites))

    def under_prior(self) -> Block:
        """The block as its prior alone sees it."""
        return self if self.prior_mask is None else replace(self, mask=self.prior_mask)

    def _shifted(self, params: Params, sign: float) -> Params:
        if self.is_scalar and self.sites[0].origin is not None:
            moved = sign * self.sites[0].origin.expand(self.batch_shape).unsqueeze(-1)
            return params | {"left": params["left"] + moved, "right": params["right"] + moved}
        if self.joint_normal:
            zero = torch.zeros((), device=self.device)
            origins = [(zero if s.origin is None else s.origin).expand(s.shape).reshape(-1) for s in self.normal_sites]
            return params | {"loc": params["loc"] + sign * torch.cat(origins).to(params["loc"])}
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
            if site.origin is not None and (site is self.location_site or self.is_scalar or self.joint_normal):
                value = value - site.origin
            shaped.append(value.reshape(len(value), *self.batch_shape, *event))
        return self.family.sufficient_statistics(*shaped)

    def params(self, natural: Natural) -> Params:
        """The params of q, in the model's own coordinates."""
        return self._shifted(self.family.to_params(natural), 1.0)

    def natural(self, params: Params) -> Natural:
        """The natural parameters of q from params in the model's own coordinates."""
        return self.family.from_params(self._shifted(params, -1.0))


def elements_with_prior(sites: Sequence[LatentSite]) -> Tensor | None:
    """The elements of sites, one after another, that their masks leave; None where there is no mask."""
    if all(site.mask is None for site in sites):
        return None
    masks = [torch.tensor(True) if s.mask is None else s.mask for s in sites]
    whole = [m.reshape(m.shape + (1,) * len(s.event_shape)) for m, s in zip(masks, sites, strict=True)]
    device = next(s.mask.device for s in sites if s.mask is not None)
    return torch.cat([m.to(device).expand(s.shape).reshape(-1) for m, s in zip(whole, sites, strict=True)])


def padded(blocks: Mapping[BlockKey, Block], state: State) -> State:
    """A state with zeros at the pairs of joint normals that have come since it was made."""
    joint = {key: block.joint_normal for key, block in blocks.items() if key in state}
    return state | {key: family.padded(state[key]) for key, family in joint.items() if family}


def discrete_block(site: DiscreteSite, seen: Tensor | None, device: torch.device) -> Block:
    """A block of a discrete site whose elements are independent in q; ``seen``: where it weighs something."""
    event = torch.Size([site.cardinality])
    shape = site.support.shape[1:]
    latent = LatentSite(
        site.name, site.distribution, site.batch_shape, shape, site.plates, site.scale, seen, site.update
    )
    family = Finite(site.distribution, site.support)
    return Block((latent,), family, site.batch_shape, (event,), site.scale, None, device)
