"""Clusters of points by k-means: where coordinate ascent and the mixtures start.

Source: Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding".
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["k_means"]


def k_means(points: Tensor, count: int, *, num_steps: int = 10, generator: torch.Generator | None = None) -> Tensor:
    """Labels of clusters, integers ``[N]`` from 0 to ``count - 1``: k-means++ seeds, then Lloyd steps.

    With fewer distinct points than clusters some clusters stay empty.

    Args:
        points: the points, ``[N, D]``, floating and finite.
        count: the number of clusters.
        num_steps: the number of Lloyd steps.
        generator: the source of the seeds, on the device of the points; torch's global one by default.
    """
    points = points - points.mean(0)
    centers = _seeds(points, count, generator)
    for _ in range(num_steps):
        members = torch.nn.functional.one_hot(_nearest(points, centers), count).to(points.dtype)
        sizes = members.sum(0).unsqueeze(-1)
        centers = torch.where(sizes > 0, members.mT @ points / sizes.clamp(min=1), centers)
    return _nearest(points, centers)


def _nearest(points: Tensor, centers: Tensor) -> Tensor:
    return torch.cdist(points, centers).argmin(-1)


def _seeds(points: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Some of the points, ``[count, D]``, each drawn by its squared distance from those before it."""
    centers = points[torch.randint(len(points), (1,), generator=generator, device=points.device)]
    distances = (points - centers[0]).square().sum(-1)
    while len(centers) < count:
        # Ends of a uniform draw on the cumulated distances: torch.multinomial stops at 2**24 points.
        cumulated = distances.cumsum(0)
        draw = torch.rand(1, generator=generator, device=points.device, dtype=points.dtype) * cumulated[-1]
        chosen = points[torch.searchsorted(cumulated, draw, right=True).clamp(max=len(points) - 1)]
        centers = torch.cat([centers, chosen])
        distances = torch.minimum(distances, (points - chosen[0]).square().sum(-1))
    return centers
