"""Clusters of the data beside discrete sites, found by k-means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kmeans import k_means
from ..recording import DiscreteSite, seen_data
from ..values import all_finite
from .program import Program


def clusters_of(
    program: Program, sites: Sequence[DiscreteSite], generator: torch.Generator, restarts: int
) -> dict[str, Tensor]:
    """Cluster labels ``[starts, elements]`` of the data beside each site; sites of one kind, as along a chain,
    together.
    """
    groups: dict[tuple[int, int], list[tuple[DiscreteSite, Tensor]]] = {}
    for site in sites:
        rows = _cluster_data(program, site)
        if rows is not None:
            groups.setdefault((site.cardinality, rows.shape[1]), []).append((site, rows))
    found: dict[str, Tensor] = {}
    for (cardinality, _), members in groups.items():
        rows = torch.cat([r for _, r in members]) if len(members) > 1 else members[0][1]
        if len(rows) < cardinality:
            continue
        labels = torch.stack([k_means(rows, cardinality, generator=generator) for _ in range(restarts)])
        parts = labels.split([len(r) for _, r in members], 1)
        found |= {site.name: part for (site, _), part in zip(members, parts, strict=True)}
    return found


def _cluster_data(program: Program, site: DiscreteSite) -> Tensor | None:
    """The floating data observed in a site's plates, one row for each of the site's elements."""
    dims = [p.dim for p in site.plates]
    depth = max((-dim for dim in dims), default=0)
    if sorted(dims) != list(range(-depth, 0)):
        return None
    columns = []
    for name in program.elimination.readers.get(site.name, ()):
        value = program.recording.observations.get(name)
        if value is None or not value.is_floating_point():
            continue
        scored = program.recording.scored[name]
        event = scored.event_dim
        batch = value.ndim - event
        holed = scored.mask is not None or not all_finite(value)
        value = seen_data(value, scored.mask, event) if holed else value
        if batch >= depth and all(value.shape[p.dim - event] == p.size for p in site.plates):
            rows = value.movedim([d - event for d in sorted(dims)], list(range(depth)))
            rows = rows.reshape(rows.shape[:depth].numel(), -1)
            columns.append(torch.where(rows.isfinite(), rows, torch.nan_to_num(rows.nanmean(0))) if holed else rows)
    return columns[0] if len(columns) == 1 else torch.cat(columns, 1) if columns else None


__all__ = ["clusters_of"]
