"""The way of coordinate ascent over a density in two dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..criticism.arguments import as_array
from ..criticism.pictures import looks, on_axes
from ..errors import ArgumentError, checked_call
from ..signatures import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_path"]

#: Where the contours are: at so many standard deviations of a normal density.
_DEVIATIONS = (0.25, 1.0, 2.0, 3.0, 4.0)


@checked_call
def plot_path(
    path: object,
    log_density: Callable[[Array, Array], Any],
    *,
    labels: Sequence[str] = ("first coordinate", "second coordinate"),
    margin: float = 0.6,
    ax: Axes | None = None,
) -> Figure:
    """The way that coordinate ascent took over the contours of a density in two dimensions.

    A contour at r standard deviations is where the log density is r² / 2 nats below its maximum in the picture.

    Args:
        path: the means after each update of one coordinate, ``[T, 2]``.
        log_density: of two arrays of coordinates, elementwise.
        labels: of the axes.
        margin: how much wider than the path the picture is, on each side, as a share of the path's extent.
        ax: matplotlib Axes to draw on; a new figure by default.

    Returns:
        The figure of ``ax``, or the new one.

    Raises:
        ValueError: if the path is not as above.
    """
    steps = as_array(path)
    if steps.ndim != 2 or steps.shape[1] != 2:
        raise ArgumentError(
            f"Expected a path of shape [T, 2]; got {list(steps.shape)}. Write torch.stack(means), one mean of two "
            "coordinates for each update."
        )
    x, y, height = _heights(steps, log_density, margin)
    color = looks(["CAVI"])["CAVI"].color
    with on_axes(ax, 3.4, 3.4) as (figure, axes):
        levels = height.max() - 0.5 * np.array(_DEVIATIONS[::-1]) ** 2
        axes.contour(x, y, height, levels=levels, colors="0.7", linewidths=0.8, linestyles="solid")
        axes.plot(steps[:, 0], steps[:, 1], "-", color=color, linewidth=1.0)
        axes.plot(steps[:, 0], steps[:, 1], "o", color=color, markersize=2.5)
        axes.plot(*steps[0], "o", color=color, markersize=5, fillstyle="none")
        axes.plot(*steps[-1], "x", color="0.2", markersize=6)
        axes.set(xlabel=labels[0], ylabel=labels[1], aspect="equal")
        said = ", ".join(f"{r:g}" for r in _DEVIATIONS)
        axes.set_title(f"Coordinate ascent, {len(steps) - 1} updates\n(contours at {said} s.d.)")
    return figure


def _heights(steps: Array, log_density: Callable[[Array, Array], Any], margin: float) -> tuple[Array, Array, Array]:
    """The log density on a square around the path: the nodes of either axis, and the heights."""
    extent = max(float(np.ptp(steps, axis=0).max()), 1e-9)
    center = (steps.max(0) + steps.min(0)) / 2
    half = extent * (0.5 + margin)
    x, y = (np.linspace(c - half, c + half, 160) for c in center)
    return x, y, as_array(log_density(*np.meshgrid(x, y)))
