"""Races: the gap to the best ELBO against the clock, of one race or of several seeds with bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..criticism.pictures import looks, on_axes
from ..criticism.race import Race, Runner
from ..errors import ArgumentError, ArgumentTypeError, checked_call
from ..signatures import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_race"]


@checked_call
def plot_race(race: Race | Sequence[Race], *, title: str = "Gap to the best ELBO", ax: Axes | None = None) -> Figure:
    """Nats below the best ELBO against the clock, both logarithmic.

    Of each method the best learning rate is bold, and a higher one darker. Several races, one for each seed, are drawn
    by their medians, with a band from the least to the greatest of each method that needs no learning rate, and of the
    rate that ends best.

    Args:
        race: what :func:`pyro_latent.criticism.race` returned; or several, with the same methods.
        title: above the axes.
        ax: matplotlib Axes to draw on; a new figure by default.

    Returns:
        The figure of ``ax``, or the new one.

    Raises:
        ValueError: if the races have not the same methods, or there are none.
    """
    with on_axes(ax, 5.6, 3.2) as (figure, axes):
        if isinstance(race, Race):
            _draw_race(axes, race)
        else:
            _draw_races(axes, _checked(race))
        axes.set_title(title)
    return figure


def _checked(races: object) -> Sequence[Race]:
    """Races of the same methods."""
    found = list(races) if isinstance(races, Sequence) else []
    if not found or not all(isinstance(each, Race) for each in found):
        raise ArgumentTypeError(
            f"Expected a Race, or a list of them, one for each seed; got {type(races).__name__}. Write "
            "plot_race(race(model, methods, data))."
        )
    if any(list(each.runners) != list(found[0].runners) for each in found):
        raise ArgumentError(
            f"Expected races of the same methods, {list(found[0].runners)}; got others. Draw them one by one."
        )
    return found


# ------------------------------------------------------------------------------------------------------------- one race


def _draw_race(axes: Axes, race: Race) -> None:
    """A line for each run, with its end marked."""
    chosen, floor = race.chosen(), race.floor
    look = looks(r.group for r in race.runners.values())
    color = _shades(race)
    for r in race.runners.values():
        gaps = [max(race.best - lap.elbo, floor) for lap in r.laps]
        width, level, mark = (1.8, 3, "o") if chosen[r.group] is r else (0.8, 2, "")
        line: Any = {"color": color[r.name], "linestyle": look[r.group].linestyle, "linewidth": width}
        axes.plot(
            [lap.seconds for lap in r.laps], gaps, zorder=level, marker=mark, markevery=[-1], markersize=4, **line
        )
    if floor < 1.0:
        axes.axhline(1.0, color="0.5", linewidth=0.6, linestyle=(0, (4, 3)), zorder=1)
        axes.text(1.01, 1.0, "1 nat", transform=axes.get_yaxis_transform(), va="center", color="0.4")
    axes.text(
        1.01, floor / math.sqrt(2), "Monte Carlo\nerror", transform=axes.get_yaxis_transform(), va="center", color="0.4"
    )
    _dress(axes, floor, f"seconds, on {race.device}")
    handles = _handles(race, color)
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.12, 1.0), borderaxespad=0, handlelength=2.4)


def _dress(axes: Axes, floor: float, label: str) -> None:
    """Both axes logarithmic, with the gaps shaded that scores cannot tell."""
    axes.axhspan(floor / 2, floor, color="0.93", linewidth=0, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="nats below the best")
    axes.set_ylim(bottom=floor / 2)


def _shades(race: Race) -> dict[str, Any]:
    """A color for each run: one for each method, from light to dark with its learning rate."""
    from matplotlib.colors import to_rgb

    found: dict[str, Any] = {}
    for group, look in looks(r.group for r in race.runners.values()).items():
        names = _by_rate(race, group)
        for name, depth in zip(names, np.linspace(-0.5, 0.45, len(names)) if len(names) > 1 else [0.0], strict=True):
            towards = np.ones(3) if depth < 0 else np.zeros(3)
            found[name] = tuple((1 - abs(depth)) * np.array(to_rgb(look.color)) + abs(depth) * towards)
    return found


def _by_rate(race: Race, group: str) -> list[str]:
    """The runs of one method, the smallest learning rate first."""
    found = [r for r in race.runners.values() if r.group == group]
    return [r.name for r in sorted(found, key=lambda r: float(r.rate or 0))]


def _handles(race: Race, color: Mapping[str, object]) -> list[Any]:
    """What the legend lists: the methods, the one that ends lowest last, each with its learning rates."""
    from matplotlib.lines import Line2D

    handles, look = [], looks(r.group for r in race.runners.values())
    for group, best in sorted(race.chosen().items(), key=lambda item: item[1].laps[-1].elbo):
        names = _by_rate(race, group)
        if len(names) > 1:
            handles.append(Line2D([], [], linestyle="", label=f"{group}, rate"))
        for name in names:
            bold = name == best.name
            label = race[name].rate + (" (best)" if bold else "") if len(names) > 1 else name
            style: Any = {"color": color[name], "linestyle": look[group].linestyle}
            handles.append(Line2D([], [], linewidth=1.8 if bold else 0.8, label=label, **style))
    return handles


# -------------------------------------------------------------------------------------------------------- several seeds


def _draw_races(axes: Axes, races: Sequence[Race]) -> None:
    """Medians over the races, and a band for the best rate of each method; other rates are thin."""
    runs = {name: [race[name] for race in races] for name in races[0].runners}
    best = _ending_best(races)
    floor = max(2 * run.laps[-1].error for name in best.values() for run in runs[name])
    look = looks(own[0].group for own in runs.values())
    for name, own in runs.items():
        group = own[0].group
        is_best, has_rates = name == best[group], sum(r[0].group == group for r in runs.values()) > 1
        clock, gaps = _on_one_clock(races, own, floor)
        label = f"{name} (best)" if is_best and has_rates else name if is_best else None
        width = 1.6 if is_best else 0.5
        axes.plot(clock, np.median(gaps, 0), label=label, linewidth=width, **look[group]._asdict())
        if is_best:
            axes.fill_between(clock, gaps.min(0), gaps.max(0), color=look[group].color, alpha=0.2, linewidth=0)
    _dress(axes, floor, f"seconds, on {races[0].device}; medians of {len(races)} seeds, least to greatest")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=7, handlelength=2.4, borderaxespad=0)


def _ending_best(races: Sequence[Race]) -> dict[str, str]:
    """By method the run, of those with its learning rates, whose median gap at the end is the least."""
    found: dict[str, tuple[float, str]] = {}
    for name, runner in races[0].runners.items():
        end = float(np.median([race.best - race[name].score.elbo for race in races]))
        if runner.group not in found or end < found[runner.group][0]:
            found[runner.group] = (end, name)
    return {group: name for group, (_, name) in found.items()}


def _on_one_clock(races: Sequence[Race], runs: Sequence[Runner], floor: float) -> tuple[Array, Array]:
    """200 times that all runs have, and by run the gap of the last checkpoint at each, not below the floor."""
    seconds = [[lap.seconds for lap in run.laps] for run in runs]
    clock = np.geomspace(max(s[0] for s in seconds), max(s[-1] for s in seconds), 200)
    gaps = []
    for race, run, times in zip(races, runs, seconds, strict=True):
        last = np.clip(np.searchsorted(times, clock, side="right") - 1, 0, None)
        gaps.append(np.array([max(race.best - lap.elbo, floor) for lap in run.laps])[last])
    return clock, np.array(gaps)
