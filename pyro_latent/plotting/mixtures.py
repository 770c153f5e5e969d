"""Mixtures: points, and the ellipse of each component of each fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..criticism.arguments import as_array
from ..criticism.pictures import looks, on_axes
from ..errors import ArgumentError, ArgumentTypeError, ModelError, checked_call
from ..guide import AutoConjugate
from ..signatures import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ellipse", "plot_mixture"]


@checked_call
def plot_mixture(
    data: object, fits: object, *, labels: Sequence[str] = (), deviations: float = 2.0, ax: Axes | None = None
) -> Figure:
    """Points in two columns, and the ellipse of each component of each fit.

    An ellipse at r standard deviations holds a share 1 − exp(−r² / 2) of a component in these two columns, which the
    title says.

    Args:
        data: the points, ``[N, D]``; the first two columns are drawn.
        fits: a fitted estimator with ``means_`` and ``covariances_``, of this library or scikit-learn's; a guide with
            sites or parameters ``mean`` ``[K, D]`` and ``precision`` or ``covariance``, as those of ``models.gmm``; or
            a pair of means ``[K, D]`` and covariances ``[K, D, D]``, or variances ``[K, D]``. Of several fits, a dict
            of these by method.
        labels: of the two axes, both or none; by default the columns of a data frame.
        deviations: how many standard deviations an ellipse is wide to each side.
        ax: matplotlib Axes to draw on; a new figure by default.

    Returns:
        The figure of ``ax``, or the new one.

    Raises:
        ValueError: if a shape is not as above, or there are not two labels.
        TypeError: if a fit has no means and covariances.

    Example::

        plot_mixture(data, {"CAVI": guide, "EM": sklearn.mixture.GaussianMixture(2).fit(data)})
    """
    points = _points(data)
    names = _labels(labels, data)
    found = fits if isinstance(fits, Mapping) else {"": fits}
    components = {name: _components(name, fit) for name, fit in found.items()}
    with on_axes(ax, 4.4, 3.0) as (figure, axes):
        axes.scatter(points[:, 0], points[:, 1], s=5, color="0.75", linewidths=0)
        for number, (name, look) in enumerate(looks(components).items()):
            line: Any = {"linewidth": 2.2 - 0.7 * min(number, 2), **look._asdict()}
            for mean, covariance in zip(*components[name], strict=True):
                axes.add_patch(ellipse(mean[:2], covariance[:2, :2], deviations, **line))
            axes.plot([], [], label=name or None, **line)
        axes.autoscale_view()
        axes.set(xlabel=names[0], ylabel=names[1])
        axes.set_title(f"Components ({deviations:g} s.d., {-math.expm1(-(deviations**2) / 2):.0%} of each)")
        if isinstance(fits, Mapping):  # beside the data, not on them
            axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), fontsize=7, handlelength=2.2, borderaxespad=0)
    return figure


def _points(data: object) -> Array:
    points = as_array(data)
    if points.ndim != 2 or points.shape[1] < 2:
        raise ArgumentError(
            f"Expected data of shape [N, D] with D >= 2; got {list(points.shape)}. Draw one column otherwise."
        )
    return points


def _labels(labels: Sequence[str], data: object) -> Sequence[str]:
    """Those given, the columns of a data frame, or which columns they are."""
    if isinstance(labels, str) or len(labels) not in (0, 2):
        raise ArgumentError(
            f'Expected two labels; got {labels!r}. Write labels=("duration (min)", "waiting time (min)").'
        )
    columns = [str(name) for name in getattr(data, "columns", ())]
    return labels or (columns[:2] if len(columns) > 1 else ("first column", "second column"))


def _components(name: str, fit: object) -> tuple[Array, Array]:
    """Means ``[K, D]`` and covariances ``[K, D, D]`` of what a user has."""
    if isinstance(fit, AutoConjugate):
        return _full(name, *_of_guide(name, fit))
    if isinstance(fit, Sequence) and len(fit) == 2:
        return _full(name, *fit)
    means = getattr(fit, "means_", None)
    spreads = getattr(fit, "covariances_", getattr(fit, "covars_", None))
    if means is None or spreads is None:
        raise ArgumentTypeError(
            "Expected a fitted estimator with means_ and covariances_, a guide, or a pair of means and covariances"
            f"{_of(name)}; got {type(fit).__name__}. Call fit first, or write (means, covariances)."
        )
    means, spreads = as_array(means), as_array(spreads)
    if getattr(fit, "covariance_type", "") in ("tied", "spherical") and spreads.ndim < 3:
        spreads = _of_all(means, spreads)
    return _full(name, means, spreads)


def _of(name: str) -> str:
    return f" of {name!r}" if name else ""


def _of_all(means: Array, spreads: Array) -> Array:
    """Covariances ``[K, D, D]`` from one matrix for all, or one variance for each component."""
    eye = np.eye(means.shape[-1])
    spread = spreads if spreads.ndim == 2 else spreads[:, None, None] * eye
    return np.broadcast_to(spread, (len(means), *eye.shape))


def _of_guide(name: str, guide: AutoConjugate) -> tuple[Any, Any]:
    """The posterior means of a guide's sites, or its parameters; a covariance is the inverse of the mean precision."""
    sites = guide.posterior()
    wanted: list[str] = [site for site in ("mean", "precision", "covariance") if site in sites]
    found = {site: as_array(sites[site].mean) for site in wanted}
    found |= {param: as_array(value) for param, value in guide.params().items()}
    if "mean" not in found or not {"precision", "covariance"} & found.keys():
        raise ModelError(
            f"Expected a guide{_of(name)} with sites or parameters mean and precision, or covariance; got "
            f"{[*sites, *guide.params()]}. Write a pair of means [K, D] and covariances [K, D, D]."
        )
    means = found["mean"]
    if "covariance" not in found:
        precision = found["precision"]
        is_matrix = precision.ndim == 3 or ("precision" in sites and len(sites["precision"].event_shape) == 2)
        spreads = np.linalg.inv(precision) if is_matrix else 1 / precision
        is_of_all = precision.ndim == 2 if is_matrix else precision.ndim == 1
        return means, _of_all(means, spreads) if is_of_all else spreads
    spreads = found["covariance"]
    if spreads.ndim == 2 and means.shape == spreads.shape and len(means) == means.shape[1]:
        raise ModelError(
            f"Expected a covariance{_of(name)} of shape [K, D, D] where K is D; got {list(spreads.shape)}, which may "
            "be one matrix for all, or variances of each. Write a pair of means [K, D] and covariances [K, D, D]."
        )
    return means, spreads if spreads.ndim == 3 or spreads.shape == means.shape else _of_all(means, spreads)


def _full(name: str, means: object, covariances: object) -> tuple[Array, Array]:
    """Means ``[K, D]`` and covariances ``[K, D, D]``, the latter also from variances."""
    centers, spreads = as_array(means), as_array(covariances)
    if centers.ndim == 2 and spreads.shape == centers.shape:
        spreads = spreads[:, :, None] * np.eye(centers.shape[1])
    if centers.ndim != 2 or centers.shape[1] < 2 or spreads.shape != (*centers.shape, centers.shape[1]):
        raise ArgumentError(
            f"Expected means [K, D], D >= 2, and covariances [K, D, D]{_of(name)}; got {list(centers.shape)} and "
            f"{list(spreads.shape)}. Give one matrix, or one row of variances, for each mean."
        )
    if not np.isfinite(spreads).all() or not (np.linalg.eigvalsh(spreads[:, :2, :2]) > 0).all():
        raise ArgumentError(
            f"Expected covariances{_of(name)} that are positive definite; got others, which have no ellipse. Give the "
            "inverse of precisions, and matrices [K, D, D] rather than one for all."
        )
    return centers, spreads


def ellipse(mean: Array, covariance: Array, deviations: float, **look: Any) -> Any:
    """The outline of a normal in two dimensions, at a distance of ``deviations`` standard deviations."""
    from matplotlib.patches import Ellipse

    values, vectors = np.linalg.eigh(covariance)
    width, height = 2 * deviations * np.sqrt(values)
    angle = math.degrees(math.atan2(vectors[1, 0], vectors[0, 0]))
    return Ellipse((float(mean[0]), float(mean[1])), width, height, angle=angle, fill=False, **look)
