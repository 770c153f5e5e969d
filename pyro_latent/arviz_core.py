"""Arrays with names become ArviZ data, and what ArviZ says of them: no torch here, and no Pyro.

:func:`container` makes an ``InferenceData`` (ArviZ 0.x) or a ``DataTree`` (ArviZ 1.x) of numpy arrays; :func:`loo`
corrects for an approximate posterior where ArviZ can. ArviZ and xarray are imported when a function needs them.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import ArgumentError, ArgumentTypeError
from .signatures import Array

#: The groups whose arrays have no dimensions of chain and draw.
FIXED = ("observed_data", "constant_data")


#: Weights that vary by no more than this, relative to log p, are those of the exact posterior, where the data do not
#: say how much of it is rounding.
ROUNDING = 1e-9


def container(
    groups: Mapping[str, Mapping[str, Array]],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, object],
    attributes: Mapping[str, object],
) -> Any:
    """The arrays of each group in the structure of the ArviZ that is installed.

    Args:
        groups: by group and variable, arrays ``[chain, draw] + shape``, or ``shape`` in observed and constant data.
        dims: by variable, the names of the dimensions of its shape; a log likelihood has the first of them. Others are
            called ``<variable>_dim_<i>``.
        coords: by dimension, the labels along it; 0, 1, … by default.
        attributes: of the whole, and of the posterior.

    Returns:
        An ``InferenceData`` (ArviZ 0.x) or a ``DataTree`` (ArviZ 1.x), without the groups that are empty.

    Raises:
        ValueError: if there are not as many labels as the dimension is long.

    What ``dims`` and ``coords`` name is not looked up here: see :func:`check_dims` and :func:`check_coords`.
    """
    import arviz
    import xarray

    datasets = {
        group: dataset(arrays, group not in FIXED, dims, coords, attributes if group == "posterior" else {})
        for group, arrays in groups.items()
        if arrays
    }
    if is_tree(arviz):
        return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=dict(attributes)), **datasets})
    return arviz.InferenceData(attrs=dict(attributes), **datasets)


def check_dims(dims: Mapping[str, Sequence[str]], shapes: Mapping[str, Sequence[int]]) -> None:
    """The names of dimensions that a user gives have to fit the variables that there are.

    Args:
        dims: by variable, the names.
        shapes: by variable, its shape, without chain and draw.

    Raises:
        TypeError: if the names of a variable are no sequence, or one string.
        ValueError: if there is no such variable, or there are more names than dimensions.
    """
    if not isinstance(dims, Mapping):
        raise ArgumentTypeError(f"Expected dims to be a dict from site to names of dimensions; got {dims!r}.")
    unknown = [name for name in dims if name not in shapes]
    if unknown:
        raise ArgumentError(f"Expected dims of {list(shapes)}; got {unknown}. Name sites, or constant data.")
    for name, given in dims.items():
        if isinstance(given, str) or not isinstance(given, Sequence):
            advice = repr([given]) if isinstance(given, str) else "['name']"
            raise ArgumentTypeError(
                f"Expected a list of names of the dimensions of {name!r}; got {given!r}. "
                f"Write dims={{{name!r}: {advice}}}."
            )
        if len(given) > len(shapes[name]):
            raise ArgumentError(
                f"Expected names for the dimensions of {name!r}, of shape {list(shapes[name])}; got {list(given)}. "
                f"Leave out {len(given) - len(shapes[name])} of them: chain and draw are named by themselves."
            )


def check_coords(coords: Mapping[str, object], known: Collection[str]) -> None:
    """Labels have to be along a dimension that there is.

    Raises:
        ValueError: if one is not in ``known``.
    """
    if not isinstance(coords, Mapping):
        raise ArgumentTypeError(f"Expected coords to be a dict from dimension to labels; got {coords!r}.")
    unknown = [name for name in coords if name not in known]
    if unknown:
        raise ArgumentError(
            f"Expected coords along {sorted(known)}; got {unknown}. Name one of these, or name dimensions by dims=."
        )


def is_tree(arviz: Any) -> bool:
    """Whether this ArviZ is 1.x, which keeps data in xarray's trees."""
    return int(arviz.__version__.split(".")[0]) >= 1


def dataset(
    arrays: Mapping[str, Array],
    drawn: bool,
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, object],
    attributes: Mapping[str, object],
) -> Any:
    """Arrays with names and labels for their dimensions; a log likelihood has its site's dims but for the event's."""
    import xarray

    variables = {}
    for name, array in arrays.items():
        lead = ["chain", "draw"] if drawn else []
        given = list(dims.get(name, ()))[: array.ndim - len(lead)]
        given += [f"{name}_dim_{i}" for i in range(len(given), array.ndim - len(lead))]
        variables[name] = ([*lead, *given], array)
    found = xarray.Dataset(variables, attrs=dict(attributes))
    labels = {d: _labels(str(d), n, coords) for d, n in found.sizes.items()}
    return found.assign_coords(labels)


def _labels(dim: str, size: int, coords: Mapping[str, Any]) -> Any:
    labels = coords.get(dim, np.arange(size))
    if len(labels) != size:
        raise ArgumentError(f"Expected {size} labels along {dim!r}; got {len(labels)}. Give one for each element.")
    return labels


def loo(data: Any, var_name: str | None = None, pointwise: bool | None = None) -> Any:
    """Leave-one-out cross-validation, corrected for the approximation where ArviZ can.

    Draws of an approximate posterior q stand for those of p(z | x) only with weights p / q. ArviZ 1.x applies them
    (``loo_approximate_posterior``). ArviZ 0.x cannot: a warning says so, unless the posterior is exact.

    Args:
        data: what :func:`~pyro_latent.to_arviz` made.
        var_name: the observed site, where there are several.
        pointwise: whether to keep the value of each observation.

    Source: Magnusson, Andersen, Jonasson and Vehtari 2019 (leave-one-out for approximate posteriors).
    """
    import arviz

    stats = data["sample_stats"]
    if "log_q" not in stats or is_exact(stats["lp"].values, stats["log_q"].values, _rounding(data)):
        return arviz.loo(data, var_name=var_name, pointwise=pointwise)
    if hasattr(arviz, "loo_approximate_posterior"):
        given = {"var_name": var_name, "pointwise": pointwise}
        return arviz.loo_approximate_posterior(data, log_p=stats["lp"], log_q=stats["log_q"], **given)
    warnings.warn(
        f"ArviZ {arviz.__version__} cannot correct leave-one-out for an approximate posterior, so this is that of the "
        "approximation as it is. ArviZ 1.x, for Python 3.12 or newer, can.",
        stacklevel=2,
    )
    return arviz.loo(data, var_name=var_name, pointwise=pointwise)


def _rounding(data: Any) -> float | None:
    found = data["posterior"].attrs.get("rounding")
    return None if found is None else float(found)


def is_exact(log_p: Array, log_q: Array, rounding: float | None = None) -> bool:
    """Whether log p − log q is the same for every draw: the posterior is then exact.

    Args:
        log_p, log_q: of each draw.
        rounding: differences up to this are none, in nats; by default those of float64.
    """
    weights = np.asarray(log_p, dtype=np.float64) - np.asarray(log_q, dtype=np.float64)
    if rounding is None:
        rounding = ROUNDING * max(1.0, float(np.abs(log_p).max()))
    return bool(np.ptp(weights) <= rounding)
