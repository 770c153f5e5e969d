"""Figures of several seeds: the median, with the least and the greatest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Each comparison is made with all of these; a seed sets the data's split, the networks' start and the noise.
SEEDS = tuple(range(5))


def ranged(values: Sequence[float], digits: int = 2) -> str:
    """``median (least to greatest)``; without the brackets if all are shown as one number."""
    low, median, high = (f"{v:,.{digits}f}" for v in np.quantile(np.asarray(values, float), [0, 0.5, 1]))
    return median if low == high else f"{median} ({low} to {high})"


def less(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Differences seed by seed."""
    return [v - o for v, o in zip(values, others, strict=True)]
