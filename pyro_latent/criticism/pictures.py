"""How pictures look: palette, the look of each method, style, axes, and the density of draws.

matplotlib is imported when a picture is drawn, and its global state stays as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import ArgumentError, ArgumentTypeError
from ..signatures import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's palette, which color-blind readers tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 2, 1, 2)))


class Look(NamedTuple):
    """How the lines of a method look: ``axes.plot(x, y, **looks(names)[name]._asdict())``."""

    color: str
    linestyle: Any


#: The look of a method in every picture, by the word that its name has in it; the first word found counts.
METHODS = {
    "exact": Look("0.2", DASHES[0]),
    "NUTS": Look("0.45", DASHES[2]),
    "MCMC": Look("0.45", DASHES[2]),
    "linear response": Look(PALETTE[2], DASHES[0]),
    "mean field": Look(PALETTE[4], DASHES[1]),
    "CAVI": Look(PALETTE[0], DASHES[0]),
    "AutoNormal": Look(PALETTE[1], DASHES[1]),
    "AutoMVN": Look(PALETTE[2], DASHES[3]),
    "AutoMultivariateNormal": Look(PALETTE[2], DASHES[3]),
    "SVI": Look(PALETTE[5], DASHES[3]),
    "EM": Look(PALETTE[6], DASHES[0]),
    "CVB0": Look(PALETTE[3], DASHES[0]),
    "Laplace": Look(PALETTE[3], DASHES[2]),
}

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
def on_axes(ax: Axes | None, width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """The figure and the axes to draw on: those given, in their own style, or a new picture of this size in inches."""
    if ax is None:
        with picture(width, height) as (figure, ((axes,),)):
            yield figure, axes
    else:
        (axes,) = checked_axes(ax, 1)
        yield figure_of(axes), axes


@contextmanager
def panels_in(
    count: int, columns: int, width: float, height: float, margin: float, ax: object = None
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure and ``count`` of its axes, in reading order: those given, or a new picture of panels of one size.

    Args:
        count: of panels.
        columns: of a new picture; the rest of its last row stays empty.
        width, height: of a new panel, in inches.
        margin: more height, for what is beside the panels.
        ax: axes to draw on, as many as panels.
    """
    if ax is not None:
        given = checked_axes(ax, count)
        yield figure_of(given[0]), given
        return
    columns = min(columns, max(count, 1))
    rows = math.ceil(max(count, 1) / columns)
    with picture(width * columns, height * rows + margin, rows, columns) as (figure, grid):
        for axes in grid.flatten()[count:]:
            axes.set_axis_off()
        yield figure, list(grid.flatten()[:count])


def checked_axes(ax: object, count: int) -> list[Axes]:
    """One Axes, or a sequence or array of them, as a list of ``count``.

    Raises:
        ArgumentTypeError: if something else came.
        ArgumentError: if there are not so many.
    """
    from matplotlib.axes import Axes

    given = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, dtype=object)))
    for each in given:
        if not isinstance(each, Axes):
            raise ArgumentTypeError(
                f"Expected ax to be matplotlib Axes; got {type(each).__name__}. Write figure, ax = plt.subplots()."
            )
    if len(given) != count:
        raise ArgumentError(
            f"Expected {count} Axes for ax, one for each panel; got {len(given)}. Write "
            f"figure, ax = plt.subplots(1, {count}), or leave ax out."
        )
    return given


def figure_of(axes: Axes) -> Figure:
    """The figure that axes lie in, also through a subfigure."""
    found: Figure = axes.figure.canvas.figure
    return found


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A color and a line style for each method, the same in every picture, and no two alike in one.

    Those of a known method are in a table, by the word that its name has in it: CAVI, mean field, SVI, AutoNormal,
    NUTS, EM, exact, linear response, CVB0, Laplace. Of a second one in a picture the dashes differ. Other names get
    what is left of Okabe and Ito's palette, and beside known ones the blue of CAVI last.

    Args:
        names: of the methods, in the order of the picture.

    Example::

        for name, look in looks(["CAVI", "SVI, AutoNormal"]).items():
            axes.plot(steps, elbo[name], label=name, **look._asdict())
    """
    names = list(dict.fromkeys(names))
    every = [Look(color, dashes) for dashes in DASHES for color in PALETTE]
    taken: dict[str, Look] = {}
    for name in sorted(names, key=lambda name: _known(name) is None):  # known methods choose first
        known = _known(name)
        wanted = [known, *(Look(known.color, dashes) for dashes in DASHES)] if known else []
        colors = {look.color for look in taken.values()} | ({PALETTE[0]} if any(map(_known, names)) else set())
        wanted += sorted(every, key=lambda look: look.color in colors)
        free = [look for look in wanted if look not in taken.values()]
        taken[name] = free[0] if free else every[len(taken) % len(every)]
    return {name: taken[name] for name in names}


def _known(name: str) -> Look | None:
    """The look of a method by the first word of the table that is in its name; EM only as a word of its own."""
    return next((look for word, look in METHODS.items() if re.search(rf"\b{word}\b", name, _case_of(word))), None)


def _case_of(word: str) -> re.RegexFlag:
    """Names written in capitals are told by them: EM is no "em"."""
    return re.NOFLAG if word.isupper() else re.IGNORECASE


def save(figure: Figure, path: Any, *, dpi: int = 150) -> None:
    """Write a picture; what is drawn twice is the same file, so an SVG has no date, and one salt for its names."""
    import matplotlib

    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.hashsalt": "pyro_latent"}):
        figure.savefig(path, dpi=dpi, metadata=nothing if str(path).endswith(".svg") else None)


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
