r"""Exact elimination of the discrete sites from the log factors.

.. math:: \log Z = \log \sum_z \prod_f \exp f(z)

with the plates as products: a site inside a plate is summed out there, the result is weighted by the plate's scale, and
multiplied over the plate (Obermeyer et al. 2019, "Tensor variable elimination for plated factor graphs"). The gradient
of log Z in a factor is its posterior probabilities, so responsibilities need no code of their own.

Tensors are laid out as ``[starts] + enumeration dimensions + plates``; a dimension that a factor lacks has size 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .recording import DiscreteSite


@dataclass(frozen=True, eq=False)
class LogFactor:
    """A log factor, with the discrete sites that it depends on and the (negative) dimension of each."""

    tensor: Tensor
    dims: dict[str, int]


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
        joint = _product([f for f in pool if site.name in f.dims])
        pool = [f for f in pool if site.name not in f.dims]
        dims = {name: dim for name, dim in joint.dims.items() if name != site.name}
        reduced = joint.tensor.logsumexp(joint.dims[site.name], keepdim=True)
        parents = [s for s in remaining if s.name in dims]
        if any(plate_dims(s) == plate_dims(site) for s in parents):
            pool.append(LogFactor(reduced, dims))
            continue
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


def _product(factors: list[LogFactor]) -> LogFactor:
    """The sum of log factors; where two sites share a dimension (as along a chain), one moves to a free one on the
    left.
    """
    dims: dict[str, int] = {}
    total: Tensor | None = None
    free = min(1 - f.tensor.ndim for f in factors)
    for factor in factors:
        tensor = factor.tensor
        for name, dim in factor.dims.items():
            target = dims.get(name, dim)
            if name not in dims and dim in dims.values():
                free, target = free - 1, free - 1
            dims[name] = target
            if target != dim:
                tensor = _moved(tensor, dim, target)
        total = tensor if total is None else _padded(total, tensor.ndim) + _padded(tensor, total.ndim)
    assert total is not None
    return LogFactor(total, dims)


def _padded(tensor: Tensor, ndim: int) -> Tensor:
    """Dimensions of size 1 behind the first, up to ``ndim``."""
    return tensor.reshape(tensor.shape[:1] + (1,) * (ndim - tensor.ndim) + tensor.shape[1:])


def _moved(tensor: Tensor, dim: int, target: int) -> Tensor:
    """Swap a dimension with the one at ``target``, which has size 1."""
    return _padded(tensor, 1 - target).transpose(dim, target)


def _over_plates(tensor: Tensor, site: DiscreteSite) -> Tensor:
    """Repeat a result that does not vary along a plate, for it is multiplied over the plate."""
    shape = list(tensor.shape)
    for plate in site.plates:
        shape[plate.dim] = plate.size
    return tensor.expand(shape)


def _align(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape((1,) * (like.ndim - mask.ndim) + mask.shape)
