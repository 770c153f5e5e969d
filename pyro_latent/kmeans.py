"""Clusters of points by k-means: where coordinate ascent and the mixtures start.

Source: Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding".
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["k_means"]

#: The centers are found among so many points at most, or so many for each center.
_SAMPLE, _SAMPLE_OF_EACH = 2**13, 50
#: The distances that are looked at at once.
_CHUNK = 2**20


def k_means(points: Tensor, count: int, *, num_steps: int = 10, generator: torch.Generator | None = None) -> Tensor:
    """Labels of clusters, integers ``[N]`` from 0 to ``count - 1``: k-means++ seeds, then Lloyd steps.

    With fewer distinct points than clusters some clusters stay empty. The centers of many points are those of a sample.

    Args:
        points: the points, ``[N, D]``, floating and finite.
        count: the number of clusters.
        num_steps: the number of Lloyd steps.
        generator: the source of the seeds, on the device of the points; torch's global one by default.
    """
    points = points - points.mean(0)
    sample = points
    if len(points) > max(_SAMPLE, _SAMPLE_OF_EACH * count):
        order = torch.randperm(len(points), generator=generator, device=points.device)
        sample = points[order[: max(_SAMPLE, _SAMPLE_OF_EACH * count)]]
    centers = _seeds(sample, count, generator)
    for _ in range(num_steps):
        labels = _nearest(sample, centers)
        sizes = torch.bincount(labels, minlength=count).to(points.dtype).unsqueeze(-1)
        sums = torch.zeros_like(centers).index_add_(0, labels, sample)
        centers = torch.where(sizes > 0, sums / sizes.clamp(min=1), centers)
    return _nearest(points, centers)


def _nearest(points: Tensor, centers: Tensor) -> Tensor:
    """The nearest center of each point, by chunks, since all distances take more memory than the points."""
    lengths = centers.square().sum(-1)
    chunks = points.split(max(1, _CHUNK // len(centers)))
    return torch.cat([(lengths - 2 * part @ centers.mT).argmin(-1) for part in chunks])


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
