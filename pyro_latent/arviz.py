"""A fitted guide as ArviZ data: draws, predictions, log likelihoods, data, and how they came about.

ArviZ itself is imported when :func:`to_arviz` is called, so that ``import pyro_latent`` stays fast.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .errors import ModelError
from .guide import AutoConjugate

Groups = dict[str, dict[str, Any]]
Site = Mapping[str, Any]

#: The groups whose arrays have no dimensions of chain and draw.
_FIXED = ("observed_data", "constant_data")


class _Draw(NamedTuple):
    """One draw from the guide: the model run on it, the model run without its data, and log q."""

    model: Any
    predicted: Any
    log_q: Tensor


def to_arviz(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    seed: int = 0,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    **kwargs: Any,
) -> Any:
    """Draws from a guide, with what ArviZ needs to plot, summarise, criticise and compare them.

    The groups are ``posterior`` (one chain of independent draws of every latent and deterministic site),
    ``posterior_predictive``, ``log_likelihood`` (of each observation given every latent; 0 where a mask hides it),
    ``sample_stats`` (``lp``, the log joint density, and ``log_q``, the guide's, in nats), ``observed_data``, and
    ``constant_data`` (tensors among the arguments that are not observed). Attributes of the posterior say by which
    method and versions, and the exact ELBO of an :class:`~pyro_latent.AutoConjugate`.

    Args:
        model: a Pyro model.
        guide: its guide, fitted, which samples every latent site; the positional arguments after it are the model's.
        num_samples: the number of draws.
        seed: of the draws. The global random state stays as it is.
        coords: by dimension, the labels along it.
        dims: by site, the names of its dimensions. By default those of a site's plates, and ``<site>_dim_<i>``.
        kwargs: the model's keyword arguments.

    Returns:
        An ``InferenceData`` (ArviZ 0.x) or a ``DataTree`` (ArviZ 1.x).

    Raises:
        ValueError: if ``num_samples`` is not a positive integer.
        ModelError: if the guide leaves a latent site out.

    Example::

        idata = to_arviz(model, guide, x, coords={"data": names})
        arviz.summary(idata, kind="stats")
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"Expected num_samples to be an integer of at least 1; got {num_samples!r}.")
    with _seeded(seed), torch.no_grad(), poutine.block():
        draws = [_draw(model, guide, args, kwargs) for _ in range(num_samples)]
    sites = {name: s for name, s in draws[0].model.nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}
    named = {name: _dims(name, site) for name, site in sites.items()} | dict(dims or {})
    groups = _groups(draws, sites)
    groups["constant_data"] = _constant_data(model, args, kwargs, groups["observed_data"])
    attributes = _attributes(guide, args, kwargs) | {"num_samples": num_samples, "seed": seed}
    datasets = {
        group: _dataset(arrays, group not in _FIXED, named, coords or {}, attributes if group == "posterior" else {})
        for group, arrays in groups.items()
        if arrays
    }
    return _container(datasets, attributes)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A random state of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _draw(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Draw:
    drawn = poutine.trace(guide).get_trace(*args, **kwargs)
    scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    missing = [n for n in scored.stochastic_nodes if n not in drawn and not site_is_subsample(scored.nodes[n])]
    if missing:
        raise ModelError(
            f"Expected a guide that samples every latent site; got one that leaves out {missing}. A guide for "
            "TraceEnum_ELBO leaves them to enumeration: sample them in the guide, or use AutoConjugate."
        )
    predicted = poutine.trace(poutine.replay(poutine.uncondition(model), trace=drawn)).get_trace(*args, **kwargs)
    scored.compute_log_prob()
    return _Draw(scored, predicted, torch.as_tensor(drawn.log_prob_sum()))


def _groups(draws: Sequence[_Draw], sites: Mapping[str, Site]) -> Groups:
    """The groups that are made of draws, each array ``[chain=1, draw] + shape``, and the observed data."""
    kept = [n for n, s in sites.items() if not s["is_observed"] or s["infer"].get("_deterministic")]
    observed = [n for n, s in sites.items() if n not in kept and _numel(s["value"])]
    return {
        "posterior": {n: _stack(d.model.nodes[n]["value"] for d in draws) for n in kept},
        "posterior_predictive": {n: _stack(d.predicted.nodes[n]["value"] for d in draws) for n in observed},
        "log_likelihood": {n: _stack(_log_likelihood(d.model.nodes[n]) for d in draws) for n in observed},
        "sample_stats": {
            "lp": _stack(d.model.log_prob_sum() for d in draws),
            "log_q": _stack(d.log_q for d in draws),
        },
        "observed_data": {n: _array(sites[n]["value"]) for n in observed},
    }


def _log_likelihood(site: Site) -> Tensor:
    """The log density of each observation, without the scale of its plates."""
    density: Tensor = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
    return density


def _numel(value: Any) -> int:
    """The number of elements; ``pyro.factor`` observes a tensor of none."""
    return value.numel() if isinstance(value, Tensor) else 1


def _array(value: Any) -> np.ndarray[Any, Any]:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _stack(values: Iterator[Any]) -> np.ndarray[Any, Any]:
    return np.stack([_array(v) for v in values])[None]


def _dims(name: str, site: Site) -> list[str]:
    """A name for each dimension of a site's value: its plate's, or the one that ArviZ would give."""
    ndim, event = site["value"].ndim if isinstance(site["value"], Tensor) else 0, site["fn"].event_dim
    frames = {f.dim - event: f.name for f in site["cond_indep_stack"] if f.vectorized}
    return [frames.get(i - ndim, f"{name}_dim_{i}") for i in range(ndim)]


def _constant_data(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], observed: Mapping[str, Any]
) -> dict[str, Any]:
    """Tensor arguments by the names that the model gives them, without those that are observed as they are."""
    try:
        arguments = inspect.signature(model).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return {}
    found = {name: _array(value) for name, value in arguments.items() if isinstance(value, Tensor)}
    return {n: a for n, a in found.items() if not any(a.shape == o.shape and _equal(a, o) for o in observed.values())}


def _equal(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> bool:
    return bool(np.array_equal(first, second, equal_nan=first.dtype.kind == second.dtype.kind == "f"))


def _attributes(guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    versions = {
        "inference_library": "pyro_latent",
        "inference_library_version": importlib.metadata.version("pyro-latent"),
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
    }
    if isinstance(guide, AutoConjugate):
        return {"method": "coordinate ascent (AutoConjugate)", "elbo": guide.elbo(*args, **kwargs)} | versions
    return {"method": getattr(guide, "__name__", type(guide).__name__)} | versions


def _container(datasets: dict[str, Any], attributes: dict[str, Any]) -> Any:
    """The structure that holds the groups: ArviZ's own in 0.x, xarray's tree in 1.x."""
    import arviz
    import xarray

    if int(arviz.__version__.split(".")[0]) >= 1:
        return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=attributes), **datasets})
    return arviz.InferenceData(attrs=attributes, **datasets)


def _dataset(
    arrays: Mapping[str, np.ndarray[Any, Any]],
    drawn: bool,
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any],
    attributes: Mapping[str, Any],
) -> Any:
    """Arrays with names and labels for their dimensions; a log likelihood has its site's dims but for the event's."""
    import xarray

    variables = {}
    for name, array in arrays.items():
        lead = ["chain", "draw"] if drawn else []
        given = list(dims.get(name, ()))[: array.ndim - len(lead)]
        given += [f"{name}_dim_{i}" for i in range(len(given), array.ndim - len(lead))]
        variables[name] = ([*lead, *given], array)
    dataset = xarray.Dataset(variables, attrs=dict(attributes))
    labels = {d: coords.get(str(d), np.arange(n)) for d, n in dataset.sizes.items()}
    return dataset.assign_coords(labels)
