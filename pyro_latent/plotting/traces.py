"""The ELBO along a fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ascent import CAVIResult
from ..criticism.arguments import as_array
from ..criticism.pictures import looks, on_axes
from ..errors import ArgumentError, ArgumentTypeError, checked_call
from ..signatures import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_elbo"]


@checked_call
def plot_elbo(result: object, *, ax: Axes | None = None) -> Figure:
    """The ELBO after each step of a fit, or of several.

    Args:
        result: what ``CAVI.run`` or ``EM.run`` returned; a fitted estimator; anything with an attribute ``elbo``; or
            the numbers, ``[T]``. Of several fits, a dict of these by method. A list in place of one of them is the same
            fit with several seeds: its median, with a band from the least to the greatest, where a seed that has ended
            stays at its end.
        ax: matplotlib Axes to draw on; a new figure by default.

    Returns:
        The figure of ``ax``, or the new one.

    Raises:
        TypeError: if a fit has no ELBO.
        ValueError: if it has no step.

    Example::

        plot_elbo({"CAVI": cavi.run(x), "SVI": [-loss for loss in losses]})
    """
    fits = dict(result) if isinstance(result, Mapping) else {"": result}
    with on_axes(ax, 4.4, 2.8) as (figure, axes):
        for name, look in looks(fits).items():
            at, traces = _traces(name, fits[name])
            line: Any = {"linewidth": 1.4, "label": name or None, **look._asdict()}
            axes.plot(at, np.median(traces, 0), marker="o" if len(at) == 1 else "", **line)
            if len(traces) > 1:
                axes.fill_between(at, traces.min(0), traces.max(0), color=look.color, alpha=0.2, linewidth=0)
        is_sweep = all(isinstance(fit, CAVIResult) for each in fits.values() for fit in _seeds(each))
        axes.set(xlabel="sweep" if is_sweep else "step", ylabel="ELBO (nats)")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.set_title("ELBO along the fit" + _of_seeds(fits))
        if isinstance(result, Mapping):
            axes.legend()
    return figure


def _seeds(fit: Any) -> list[Any]:
    """The fit of each seed: the items of a list, unless they are the numbers of one."""
    is_list = isinstance(fit, list | tuple)
    return list(fit) if is_list and any(_is_fitted(each) or np.ndim(as_array(each)) for each in fit) else [fit]


def _of_seeds(fits: Mapping[str, object]) -> str:
    """What a band is, where there is one."""
    most = max((len(_seeds(fit)) for fit in fits.values()), default=1)
    return f"\n(medians of {most} seeds, and least to greatest)" if most > 1 else ""


#: Where a fit has its ELBO: results and histories, estimators, LDA.
_PLACES = ("elbo", "lower_bounds_", "bounds_")


def _is_fitted(fit: object) -> bool:
    return any(hasattr(fit, place) for place in _PLACES) and not callable(getattr(fit, "elbo", None))


def _traces(name: str, fit: object) -> tuple[Array, Array]:
    """The steps ``[T]``, from 1, and the ELBO of each seed after them, ``[seeds, T]``."""
    found = [_trace(name, each) for each in _seeds(fit)]
    at = max((steps for steps, _ in found), key=len)
    return at, np.stack([np.concatenate([elbo, np.full(len(at) - len(elbo), elbo[-1])]) for _, elbo in found])


def _trace(name: str, fit: object) -> tuple[Array, Array]:
    """The steps and the ELBO after each, of one fit."""
    what = f"of {name!r}" if name else "to draw"
    given = next((getattr(fit, place) for place in _PLACES if hasattr(fit, place)), fit)
    try:
        elbo = np.asarray(as_array(given), dtype=float) if not callable(given) else np.zeros((0, 0, 0))
    except (TypeError, ValueError):
        elbo = np.zeros((0, 0, 0))
    if elbo.ndim == 2 and elbo.shape[1] == 2 and hasattr(fit, "bounds_"):
        return elbo[:, 0], elbo[:, 1]
    if elbo.ndim != 1:
        raise ArgumentTypeError(
            f"Expected a fit {what} with the ELBO after each step; got {type(fit).__name__}. Give what CAVI.run "
            "returned, a fitted estimator, or the numbers."
        )
    if not len(elbo):
        raise ArgumentError(f"Expected at least one step {what}; got none. Run the fit first.")
    return np.arange(1, len(elbo) + 1), elbo
