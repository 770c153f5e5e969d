"""Which precisions ``blocks="auto"`` joins with vectors: a Wishart, or a Gamma for each vector of a plate, that every
term with the vectors is proportional to.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist

from ..families import family_of
from ..families.wishart import Wishart
from ..recording import LatentSite, Recording
from .auto_joining import TermReading, is_normal, readings_of, weigh_alike


def pairs_of_vectors(recording: Recording, groups: Sequence[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Normal sites of vectors with a Wishart or a Gamma, of which every term that reads the vectors has that once, at
    the same element where it has one for each; whose moments a family has is not told.

    Args:
        recording: the model.
        groups: sites that share a factor already; those of one site may be taken.
    """
    free = {n: s for n, s in recording.latents.items() if s.mask is None and s.update is None and s.point is None}
    taken = {name for group in groups if len(group) > 1 for name in group}
    vectors = {n for n, s in free.items() if n not in taken and is_normal(s) and s.event_shape}
    precisions = {n for n, s in free.items() if n not in taken and (_is_wishart(s) or _is_gamma_for_each(s))}
    readings = list(readings_of(recording, vectors, precisions)) if precisions else []
    found = []
    for precision in (n for n in free if n in precisions):
        met = [v for v in free if v in vectors and any(v in r.normal and precision in r.precisions for r in readings)]
        if len(met) == 1 and _are_proportional(free[met[0]], free[precision], readings):
            found.append((met[0], precision))
    return found


def _is_wishart(site: LatentSite) -> bool:
    return isinstance(site.family or family_of(site.distribution), Wishart)


def _is_gamma_for_each(site: LatentSite) -> bool:
    return issubclass(site.distribution, dist.Gamma) and bool(site.batch_shape) and not site.event_shape


def _are_proportional(vector: LatentSite, precision: LatentSite, readings: Sequence[TermReading]) -> bool:
    """Whether every term with the vectors has the precision once, and no other one."""
    own = [r for r in readings if vector.name in r.normal]
    if any(r.precisions != {precision.name: 1} or r.degree({vector.name}) > 2 for r in own):
        return False
    depth = len(precision.batch_shape)
    most = depth + _is_wishart(precision)  # one that is outside of the vectors' plate may be that of them all
    is_one_for_each = vector.batch_shape[:depth] == precision.batch_shape and len(vector.batch_shape) <= most
    if not is_one_for_each or not weigh_alike([vector, precision]):
        return False
    if depth == 0:
        return True
    return all(r.is_elementwise(vector.name, precision.name, depth) for r in own)


__all__ = ["pairs_of_vectors"]
