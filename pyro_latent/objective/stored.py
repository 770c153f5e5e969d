"""Blocks in plain types, as files keep them, and the blocks that are made of these without a model and its data.

Such a block knows what reads the posterior needs: its family, its shapes and its origins. It knows no plates and no
densities: what is computed from data waits for the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..distributions.joint_normal import SiteSlice
from ..families import Family, families_by_name
from ..families.finite import Finite
from ..families.joint_normal import Gaussian
from ..families.joint_normal_gamma import GaussianGamma
from ..families.quadrature import Quadrature
from ..recording import DiscreteSite, LatentSite, ScoredSite
from .blocks import Block
from .program import Program


def stored_blocks(program: Program) -> list[dict[str, Any]]:
    """What :func:`block_of` needs of each block of a program, in plain types."""
    return [_stored(block, program.is_local(block.key)) for block in program.blocks.values()]


def of_data(program: Program) -> list[str]:
    """The discrete sites that belong to the data at hand: those in a plate of some data, and those outside of plates
    that one observation at most reads, which is in no plate either, as the states of a chain.
    """
    data = [s for s in program.recording.scored.values() if s.observed]
    plates = {p.name for s in data for p in s.plates}
    readers: dict[str, list[ScoredSite]] = defaultdict(list)
    for observation in data:
        density = observation.density
        for name in observation.parents | (frozenset() if density is None else density.sites):
            readers[name].append(observation)

    def is_own(site: DiscreteSite) -> bool:
        if any(p.name in plates for p in site.plates):
            return True
        own = readers[site.name]
        return bool(data) and not site.plates and len(own) <= 1 and not any(s.plates for s in own)

    return [site.name for site in program.discrete if is_own(site)]


def _stored(block: Block, is_local: bool) -> dict[str, Any]:
    family = block.family
    found: dict[str, Any] = {
        "family": family.name,
        "sites": [[s.name, list(s.batch_shape), list(s.event_shape)] for s in block.sites],
        "batch": list(block.batch_shape),
        "events": [list(event) for event in block.event_shapes],
        "local": is_local,
        "param": block.is_param,
    }
    if isinstance(family, Quadrature):
        found["support"] = _bounds_of(family.support)
        found["why"] = family.why
    if isinstance(family, Finite):
        found["kind"], found["values"] = family.kind.__name__, family.support.tolist()
    return found


def _bounds_of(support: object) -> list[Any] | None:
    """The ends of an interval, None for one that there is not; None for a support that is no interval."""
    ends = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    if ends == [None, None] and support is not constraints.real:
        return None
    return [end if end is None else torch.as_tensor(end).tolist() for end in ends]


def block_of(
    stored: Mapping[str, Any], origins: Mapping[str, Tensor], pairs: Sequence[int] | None, like: Tensor
) -> Block | None:
    """The block that was stored; None for one whose family holds constants that no file keeps.

    Args:
        stored: of :func:`stored_blocks`.
        origins: by site, what its location is measured from.
        pairs: of a joint normal, the pairs of its elements that meet.
        like: a tensor of the dtype and device of its parameters.
    """
    family = _family_of(stored, pairs, like)
    if family is None:
        return None
    sites = tuple(_site_of(site, stored, origins) for site in stored["sites"])
    events = tuple(map(torch.Size, stored["events"]))
    return Block(sites, family, torch.Size(stored["batch"]), events, 1.0, None, like.device)


def _site_of(site: Sequence[Any], stored: Mapping[str, Any], origins: Mapping[str, Tensor]) -> LatentSite:
    """A site without plates."""
    name, batch, event = site
    shapes = torch.Size(batch), torch.Size(event)
    return LatentSite(
        name, dist.Distribution, *shapes, (), 1.0, None, origin=origins.get(name), is_param=stored["param"]
    )


def _family_of(stored: Mapping[str, Any], pairs: Sequence[int] | None, like: Tensor) -> Family | None:
    """The family of a stored block."""
    name = stored["family"]
    if "support" in stored:
        return _quadrature_of(stored, like)
    if "values" in stored:
        kind = getattr(dist, stored["kind"], None)
        values = torch.tensor(stored["values"], device=like.device)
        return None if kind is None else Finite(kind, values)
    if name in (Gaussian.name, GaussianGamma.name):
        return _joint_of(stored, pairs or (), like)
    return families_by_name().get(name)


def _quadrature_of(stored: Mapping[str, Any], like: Tensor) -> Family | None:
    if stored["support"] is None:
        return None
    low, high = (_end_of(end, like) for end in stored["support"])
    support: Any = constraints.real
    if low is not None:
        support = constraints.greater_than(low) if high is None else constraints.interval(low, high)
    elif high is not None:
        support = constraints.less_than(high)
    name, batch, event = stored["sites"][0]
    return Quadrature(name, support, torch.Size([*batch, *event]), stored["why"], like.device)


def _end_of(end: object, like: Tensor) -> Any:
    """An end of an interval: a number, a tensor of them, or None."""
    return torch.tensor(end, dtype=torch.float64, device=like.device) if isinstance(end, list) else end


def _joint_of(stored: Mapping[str, Any], pairs: Sequence[int], like: Tensor) -> Family:
    sites = [(name, torch.Size(batch), torch.Size(event)) for name, batch, event in stored["sites"]]
    has_precision = stored["family"] == GaussianGamma.name
    parts, offset = [], 0
    for name, batch, event in sites[: len(sites) - has_precision]:
        parts.append(SiteSlice(name, offset, batch, event))
        offset += (batch + event).numel()
    if has_precision:
        return GaussianGamma(parts, like.device, pairs, sites[-1][0])
    return Gaussian(parts, like.device, pairs)


__all__ = ["block_of", "of_data", "stored_blocks"]
