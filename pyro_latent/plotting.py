"""Pictures of posteriors: races, bounds, densities, mixtures over their data, topics, the path of coordinate ascent.

Each function returns a matplotlib ``Figure``, which shows itself in a notebook and is written by
``figure.savefig(path)``. matplotlib is imported when one is called, and its global state stays as it is. What ArviZ
draws is not here: give it what :func:`~pyro_latent.to_arviz` makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .criticism.arguments import Array, as_array
from .criticism.comparison import plot_bounds, plot_densities
from .criticism.pictures import DASHES, PALETTE, colors, panels_in, picture
from .criticism.race import Race
from .errors import ArgumentError, check_count, checked_call

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "draw_mixture",
    "draw_race",
    "plot_bounds",
    "plot_densities",
    "plot_mixture",
    "plot_path",
    "plot_race",
    "plot_topics",
]


# --------------------------------------------------------------------------------------------------------------- races


def plot_race(race: Race, *, title: str = "Gap to the best ELBO") -> Figure:
    """Nats below the best ELBO against the clock, both logarithmic.

    Of each method the best learning rate is bold, and a higher one darker.

    Args:
        race: what :func:`pyro_latent.criticism.race` returned.
        title: above the axes.
    """
    with picture(5.6, 3.2) as (figure, ((axes,),)):
        draw_race(axes, race)
        axes.set_title(title)
    return figure


def draw_race(axes: Axes, race: Race) -> None:
    """The lines of :func:`plot_race` on axes of a picture of your own."""
    chosen, floor = race.chosen(), race.floor
    color = _shades(race)
    for r in race.runners.values():
        gaps = [max(race.best - lap.elbo, floor) for lap in r.laps]
        width, level, mark = (1.8, 3, "o") if chosen[r.group] is r else (0.8, 2, "")
        look: Any = {"color": color[r.name], "linewidth": width, "zorder": level, "marker": mark}
        axes.plot([lap.seconds for lap in r.laps], gaps, markevery=[-1], markersize=4, **look)
    if floor < 1.0:
        axes.axhline(1.0, color="0.5", linewidth=0.6, linestyle=(0, (4, 3)), zorder=1)
        axes.text(1.01, 1.0, "1 nat", transform=axes.get_yaxis_transform(), va="center", color="0.4")
    axes.axhspan(floor / 2, floor, color="0.93", linewidth=0, zorder=0)
    axes.text(
        1.01, floor / math.sqrt(2), "Monte Carlo\nerror", transform=axes.get_yaxis_transform(), va="center", color="0.4"
    )
    axes.set(xscale="log", yscale="log", xlabel=f"seconds, on {race.device}", ylabel="nats below the best")
    axes.set_ylim(bottom=floor / 2)
    handles = _handles(race, color)
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.12, 1.0), borderaxespad=0, handlelength=1.2)


def _shades(race: Race) -> dict[str, Any]:
    """A color for each run: one for each method, from light to dark with its learning rate."""
    from matplotlib.colors import to_rgb

    found: dict[str, Any] = {}
    for group, color in colors([r.group for r in race.runners.values()]).items():
        names = _by_rate(race, group)
        for name, depth in zip(names, np.linspace(-0.5, 0.45, len(names)) if len(names) > 1 else [0.0], strict=True):
            towards = np.ones(3) if depth < 0 else np.zeros(3)
            found[name] = tuple((1 - abs(depth)) * np.array(to_rgb(color)) + abs(depth) * towards)
    return found


def _by_rate(race: Race, group: str) -> list[str]:
    """The runs of one method, the smallest learning rate first."""
    found = [r for r in race.runners.values() if r.group == group]
    return [r.name for r in sorted(found, key=lambda r: float(r.rate or 0))]


def _handles(race: Race, color: Mapping[str, Any]) -> list[Any]:
    """What the legend lists: the methods, the one that ends lowest last, each with its learning rates."""
    from matplotlib.lines import Line2D

    handles = []
    for group, best in sorted(race.chosen().items(), key=lambda item: item[1].laps[-1].elbo):
        names = _by_rate(race, group)
        if len(names) > 1:
            handles.append(Line2D([], [], linestyle="", label=f"{group}, rate"))
        for name in names:
            bold = name == best.name
            label = race[name].rate + (" (best)" if bold else "") if len(names) > 1 else name
            handles.append(Line2D([], [], color=color[name], linewidth=1.8 if bold else 0.8, label=label))
    return handles


# ------------------------------------------------------------------------------------------------------------- mixtures


@checked_call
def plot_mixture(
    data: Any, fits: Mapping[str, tuple[Any, Any]], *, labels: Sequence[str] = (), deviations: float = 2.0
) -> Figure:
    """Points in two columns, and the ellipse of each component of each fit.

    Args:
        data: the points, ``[N, D]``; the first two columns are drawn.
        fits: by method, means ``[K, D]`` and covariances ``[K, D, D]``, or variances ``[K, D]``. From the eighth on
            colors come again, with other dashes.
        labels: of the two axes, both or none.
        deviations: how many standard deviations an ellipse is wide to each side.

    Raises:
        ValueError: if a shape is not as above, or there are not two labels.
    """
    with picture(4.4, 3.0) as (figure, ((axes,),)):
        draw_mixture(axes, data, fits, labels=labels, deviations=deviations)
    return figure


def draw_mixture(
    axes: Axes,
    data: Any,
    fits: Mapping[str, tuple[Any, Any]],
    *,
    labels: Sequence[str] = (),
    deviations: float = 2.0,
) -> None:
    """The points and ellipses of :func:`plot_mixture` on axes of a picture of your own."""
    from matplotlib.lines import Line2D

    points = as_array(data)
    if points.ndim != 2 or points.shape[1] < 2:
        raise ArgumentError(
            f"Expected data of shape [N, D] with D >= 2; got {list(points.shape)}. Draw one column otherwise."
        )
    if isinstance(labels, str) or len(labels) not in (0, 2):
        raise ArgumentError(
            f'Expected two labels; got {labels!r}. Write labels=("duration (min)", "waiting time (min)").'
        )
    axes.scatter(points[:, 0], points[:, 1], s=5, color="0.75", linewidths=0)
    handles = []
    for number, (name, fit) in enumerate(fits.items()):
        look: Any = {
            "color": PALETTE[number % len(PALETTE)],
            "linestyle": DASHES[number % len(DASHES)],
            "linewidth": 2.2 - 0.7 * min(number, 2),
        }
        for mean, covariance in zip(*_components(name, *fit), strict=True):
            axes.add_patch(ellipse(mean[:2], covariance[:2, :2], deviations, **look))
        handles.append(Line2D([], [], label=name, **look))
    names = labels or ("first column", "second column")
    axes.set(xlabel=names[0], ylabel=names[1], title=f"Components ({deviations:g} s.d.)")
    place: Any = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0)}  # beside the data, not on them
    axes.legend(handles=handles, fontsize=7, handlelength=1.6, borderaxespad=0, **place)


def _components(name: str, means: Any, covariances: Any) -> tuple[Array, Array]:
    """Means ``[K, D]`` and covariances ``[K, D, D]``, the latter also from variances."""
    centers, spreads = as_array(means), as_array(covariances)
    if centers.ndim == 2 and spreads.shape == centers.shape:
        spreads = spreads[:, :, None] * np.eye(centers.shape[1])
    if centers.ndim != 2 or centers.shape[1] < 2 or spreads.shape != (*centers.shape, centers.shape[1]):
        raise ArgumentError(
            f"Expected means [K, D], D >= 2, and covariances [K, D, D] of {name!r}; got {list(centers.shape)} and "
            f"{list(spreads.shape)}. Give one matrix, or one row of variances, for each mean."
        )
    return centers, spreads


def ellipse(mean: Array, covariance: Array, deviations: float, **look: Any) -> Any:
    """The outline of a normal in two dimensions, at a distance of ``deviations`` standard deviations."""
    from matplotlib.patches import Ellipse

    values, vectors = np.linalg.eigh(covariance)
    width, height = 2 * deviations * np.sqrt(values)
    angle = math.degrees(math.atan2(vectors[1, 0], vectors[0, 0]))
    return Ellipse((float(mean[0]), float(mean[1])), width, height, angle=angle, fill=False, **look)


# --------------------------------------------------------------------------------------------------------------- topics


@checked_call
def plot_topics(
    topics: Any, vocabulary: Sequence[str], *, top: int = 8, columns: int = 4, titles: Sequence[str] | None = None
) -> Figure:
    """The likeliest words of each topic.

    Args:
        topics: word weights, ``[K, V]``, not negative; each row is divided by its sum.
        vocabulary: the V words.
        top: how many words of each.
        columns: of panels.
        titles: above the panels, one for each topic; its number by default.

    Raises:
        ValueError: if there are not as many words as columns of ``topics``, if there is no topic, or a weight is
            negative or not finite, or all of a row are 0, or ``top`` or ``columns`` is below 1.
    """
    shares = _shares(topics, vocabulary)
    top, columns = check_count("top", top), check_count("columns", columns)
    titles = [f"topic {k}" for k in range(len(shares))] if titles is None else titles
    if len(titles) != len(shares):
        raise ArgumentError(f"Expected {len(shares)} titles, one for each topic; got {len(titles)}. Give all of them.")
    best = [np.argsort(-row)[:top] for row in shares]
    longest = max(len(str(vocabulary[i])) for words in best for i in words)
    with panels_in(len(shares), columns, 1.0 + 0.065 * longest, 0.16 * top + 0.35, 0.15) as (figure, grid):
        for axes, row, words, title in zip(grid, shares, best, titles, strict=True):
            axes.barh(range(len(words)), row[words], color=PALETTE[0], height=0.7)
            axes.set_yticks(range(len(words)), [vocabulary[i] for i in words])
            axes.invert_yaxis()
            axes.tick_params(axis="y", length=0)
            axes.locator_params(axis="x", nbins=2)
            axes.set_title(title)
        figure.supxlabel("probability of the word in the topic", fontsize=8)
    return figure


def _shares(topics: Any, vocabulary: Sequence[str]) -> Array:
    """Word weights over the sum of their row, ``[K, V]``."""
    weights = as_array(topics).astype(float)
    if weights.ndim != 2 or len(weights) == 0 or weights.shape[1] != len(vocabulary):
        raise ArgumentError(
            f"Expected topics of shape [K, {len(vocabulary)}], one column a word; got "
            f"{list(weights.shape)}. Give at least one topic, and the vocabulary that they were fitted with."
        )
    sums = weights.sum(1, keepdims=True)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and (sums > 0).all()):
        raise ArgumentError(
            f"Expected word weights that are not negative, and not all 0 in a topic; got {weights.min():.3g} at the "
            f"least, and {sums.min():.3g} as the least sum. Give probabilities or counts, not logarithms: "
            "log_weights.exp()."
        )
    found: Array = weights / sums
    return found


# ----------------------------------------------------------------------------------------------------------------- path


@checked_call
def plot_path(
    path: Any,
    log_density: Callable[[Array, Array], Any],
    *,
    labels: Sequence[str] = ("z_1", "z_2"),
    margin: float = 0.6,
) -> Figure:
    """The way that coordinate ascent took over the contours of a density in two dimensions.

    Args:
        path: the means after each update of one coordinate, ``[T, 2]``.
        log_density: of two arrays of coordinates, elementwise.
        labels: of the axes.
        margin: how much wider than the path the picture is, on each side, as a share of the path's extent.
    """
    steps = as_array(path)
    if steps.ndim != 2 or steps.shape[1] != 2:
        raise ArgumentError(
            f"Expected a path of shape [T, 2]; got {list(steps.shape)}. Write torch.stack(means), one mean of two "
            "coordinates for each update."
        )
    extent = max(float(np.ptp(steps, axis=0).max()), 1e-9)
    center = (steps.max(0) + steps.min(0)) / 2
    half = extent * (0.5 + margin)
    x, y = (np.linspace(c - half, c + half, 160) for c in center)
    height = as_array(log_density(*np.meshgrid(x, y)))
    with picture(3.4, 3.2) as (figure, ((axes,),)):
        levels = height.max() - 0.5 * np.array([4.0, 3.0, 2.0, 1.0, 0.25]) ** 2
        axes.contour(x, y, height, levels=levels, colors="0.7", linewidths=0.8, linestyles="solid")
        axes.plot(steps[:, 0], steps[:, 1], "-", color=PALETTE[1], linewidth=1.0)
        axes.plot(steps[:, 0], steps[:, 1], "o", color=PALETTE[1], markersize=2.5)
        axes.plot(*steps[0], "o", color=PALETTE[1], markersize=5, fillstyle="none")
        axes.plot(*steps[-1], "x", color=PALETTE[0], markersize=6)
        axes.set(xlabel=labels[0], ylabel=labels[1], aspect="equal")
        axes.set_title(f"Coordinate ascent, {len(steps) - 1} updates")
    return figure
