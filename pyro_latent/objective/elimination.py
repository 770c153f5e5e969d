r"""Exact elimination of the discrete sites from the log factors.

.. math:: \log Z = \log \sum_z \prod_f \exp f(z)

with the plates as products: a site inside a plate is summed out there, the result is weighted by the plate's scale, and
multiplied over the plate (Obermeyer et al. 2019, "Tensor variable elimination for plated factor graphs"). The gradient of log Z in a
factor is its posterior probabilities, so responsibilities need no code of their own.

Tensors are laid out as ``[starts] + enumeration dimensions + plates``; a dimension that a factor lacks has size 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .recording import DiscreteSite


@dataclass(frozen=True, eq=False)
class LogFactor:
    """A log factor, with the discrete sites that it depends on (by dimension)."""

    tensor: Tensor
    dims: frozenset[int]


def plate_dims(site: DiscreteSite) -> frozenset[int]:
    """The dimensions of a site's plates."""
    return frozenset(plate.dim for plate in site.plates)


def relative_scale(inner: Tensor | float, outer: Tensor | float) -> Tensor | float:
    """``inner / outer``, and 1 where they are the same object or number."""
    if inner is outer:
        return 1.0
    return inner / outer


def eliminate(factors: list[LogFactor], sites: list[DiscreteSite]) -> tuple[Tensor, Tensor]:
    """log Z for each start, float64, and the sum of the absolute values of what was added up to it.

    Args:
        factors: log factors, already weighted by their scale relative to that of their innermost discrete site.
        sites: the discrete sites; each is in at least one factor.
    """
    remaining = sorted(sites, key=lambda s: len(s.plates), reverse=True)
    pool = list(factors)
    total: Tensor | None = None
    magnitude: Tensor | None = None
    while remaining:
        site = remaining.pop(0)
        touching = [f for f in pool if site.dim in f.dims]
        pool = [f for f in pool if site.dim not in f.dims]
        combined = touching[0].tensor
        for factor in touching[1:]:
            combined = combined + factor.tensor
        dims = frozenset().union(*(f.dims for f in touching)) - {site.dim}
        reduced = _log_sum_exp(combined, site)
        if any(s.dim in dims and plate_dims(s) == plate_dims(site) for s in remaining):
            pool.append(LogFactor(reduced, dims))
            continue
        parents = [s for s in remaining if s.dim in dims]
        outer = parents[0].scale if parents else 1.0
        weighted = _over_plates(reduced, site) * relative_scale(site.scale, outer)
        if site.mask is not None:
            weighted = torch.where(_align(site.mask, weighted), weighted, torch.zeros_like(weighted))
        kept = frozenset().union(*(plate_dims(s) for s in parents)) if parents else frozenset()
        if parents:
            gone = tuple(plate_dims(site) - kept)
            pool.append(LogFactor(weighted.sum(gone, keepdim=True) if gone else weighted, dims))
            continue
        flat = weighted.flatten(1)
        part, size = flat.sum(1, dtype=torch.float64), flat.detach().abs().sum(1, dtype=torch.float64)
        total = part if total is None else total + part
        magnitude = size if magnitude is None else magnitude + size
    assert total is not None and magnitude is not None
    return total, magnitude


def _log_sum_exp(tensor: Tensor, site: DiscreteSite) -> Tensor:
    return tensor.logsumexp(site.dim, keepdim=True)


def _over_plates(tensor: Tensor, site: DiscreteSite) -> Tensor:
    """Repeat a result that does not vary along a plate, for it is multiplied over the plate."""
    shape = list(tensor.shape)
    for plate in site.plates:
        shape[plate.dim] = plate.size
    return tensor.expand(shape)


def _align(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape((1,) * (like.ndim - mask.ndim) + mask.shape)
