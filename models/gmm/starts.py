"""Where the mixtures start: at clusters of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_latent.kmeans import k_means

from .priors import check


def initial_responsibilities(
    data: Tensor, num_components: int, *, num_steps: int = 10, generator: torch.Generator | None = None
) -> Tensor:
    """One-hot responsibilities of K clusters: k-means++ seeds and a few Lloyd steps on standardised data.

    Args:
        data: the points, shape ``[N, D]``.
        num_components: K; with fewer distinct points than K some clusters stay empty.
        num_steps: Lloyd steps.
        generator: source of the random seeds, on the data's device; torch's global one by default.

    Returns:
        Responsibilities, shape ``[N, K]``, of the data's dtype.

    Raises:
        DataError, ValueError: as :func:`~pyro_latent.models.gmm.model` does.

    Source: Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding".
    """
    check(data, num_components, "full")
    spread = (data - data.mean(0)).square().mean(0).sqrt()
    points = (data - data.mean(0)) / torch.where(spread > 0, spread, torch.ones_like(spread))
    labels = k_means(points, num_components, num_steps=num_steps, generator=generator)
    return torch.nn.functional.one_hot(labels, num_components).to(data.dtype)


def weighted_means(data: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor]:
    """Counts ``[K]`` and weighted means ``[K, D]``; the data's mean for a component without points."""
    center = data.mean(0)
    counts = responsibilities.sum(0)
    sums = responsibilities.mT @ (data - center)
    return counts, center + sums / counts.clamp(min=torch.finfo(data.dtype).tiny).unsqueeze(-1)
