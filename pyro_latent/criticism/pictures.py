"""How pictures look: palette, dashes, style, and the density of draws.

matplotlib is imported when a picture is drawn, and its global state stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .arguments import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's palette, which color-blind readers tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 2, 1, 2)))

STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "legend.frameon": False,
}


@contextmanager
def picture(width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    """A figure of this size in inches, and an array ``[rows, columns]`` of its axes.

    It belongs to no global state, has this style, and is laid out at the end, while the style holds.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False)
        figure.canvas.draw()


@contextmanager
def panels_in(
    count: int, columns: int, width: float, height: float, margin: float
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A picture with ``count`` panels of one size in inches, and their axes in reading order; the rest stays empty."""
    columns = min(columns, max(count, 1))
    rows = math.ceil(max(count, 1) / columns)
    with picture(width * columns, height * rows + margin, rows, columns) as (figure, grid):
        for axes in grid.flatten()[count:]:
            axes.set_axis_off()
        yield figure, list(grid.flatten()[:count])


def colors(names: Sequence[str]) -> dict[str, str]:
    """A color for each name, in their order."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}


def density(values: Array, points: int = 200) -> tuple[Array, Array]:
    """A kernel estimate of the density of draws: where, and how high. Draws that do not vary make a spike."""
    from scipy.stats import gaussian_kde

    low, high = np.quantile(values, [0.002, 0.998])
    margin = 0.15 * (high - low)
    if high <= low:
        center, width = float(low), max(abs(float(low)) * 1e-3, 1e-6)
        return np.array([center - width, center, center + width]), np.array([0.0, 1.0 / width, 0.0])
    lowest, highest = max(low - margin, values.min()), min(high + margin, values.max())
    grid = np.linspace(lowest, highest, points)
    return grid, gaussian_kde(values)(grid)
