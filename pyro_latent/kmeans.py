"""Clusters of points by k-means: where coordinate ascent and the mixtures start.

Source: Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding".
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["k_means"]

#: The centers are found among so many points at most, or so many for each center; their seeds among fewer.
_SAMPLE, _SAMPLE_OF_EACH = 2**12, 40
_SEEDED, _SEEDED_OF_EACH = 2**11, 20
#: The distances that each thread looks at at once: they stay in the processor's cache.
_CHUNK = 2**18
#: Lloyd steps end once at most this share of the points has moved to another center.
_SETTLED = 0.001


def k_means(points: Tensor, count: int, *, num_steps: int = 10, generator: torch.Generator | None = None) -> Tensor:
    """Labels of clusters, integers ``[N]`` from 0 to ``count - 1``: k-means++ seeds, then Lloyd steps.

    With fewer distinct points than clusters some clusters stay empty. The centers of many points are those of a sample.

    Args:
        points: the points, ``[N, D]``, floating and finite.
        count: the number of clusters.
        num_steps: the largest number of Lloyd steps; fewer where hardly a point moves any more.
        generator: the source of the seeds, on the device of the points; torch's global one by default.
    """
    most, seeded = max(_SAMPLE, _SAMPLE_OF_EACH * count), max(_SEEDED, _SEEDED_OF_EACH * count)
    origin, sample = points.mean(0), points
    if len(points) > seeded:  # in random order: data may come sorted
        sample = points[torch.randperm(len(points), generator=generator, device=points.device)[:most]]
    sample = sample - origin
    centers, before = _seeds(sample[:seeded], count, generator), None
    for _ in range(num_steps):
        labels = _nearest(sample, centers)
        sizes = torch.bincount(labels, minlength=count).to(points.dtype).unsqueeze(-1)
        sums = torch.zeros_like(centers).index_add_(0, labels, sample)
        centers = torch.where(sizes > 0, sums / sizes.clamp(min=1), centers)
        if before is not None and int((labels != before).sum()) <= _SETTLED * len(sample):
            break
        before = labels
    return _nearest(points, centers, origin)


def _nearest(points: Tensor, centers: Tensor, origin: Tensor | None = None) -> Tensor:
    """The nearest center of each point, by chunks, since all distances take more memory than the points.

    ``origin``: what the centers are measured from, where the points are not.
    """
    lengths = centers.square().sum(-1)
    found = torch.empty(len(points), dtype=torch.long, device=points.device)
    step = max(1, _CHUNK * torch.get_num_threads() // len(centers))
    for part, out in zip(points.split(step), found.split(step), strict=True):
        near = part if origin is None else part - origin
        torch.argmin(torch.addmm(lengths, near, centers.mT, alpha=-2), -1, out=out)
    return found


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
