"""A posterior as ArviZ data: draws, predictions, log likelihoods, data, and how they came about.

ArviZ itself is imported when :func:`to_arviz` is called, so that ``import pyro_latent`` stays fast; what needs no torch
is in :mod:`pyro_latent.arviz_core`.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC, SVI
from pyro.infer.autoguide import AutoCallable, AutoGuide
from torch import Tensor

from .arviz_core import check_coords, check_dims, container, loo
from .ascent import CAVI
from .criticism.arguments import as_array, check_same_data
from .criticism.draws import guide_values, mcmc_values, with_discrete
from .criticism.methods import Method
from .criticism.moments import r_hat
from .errors import ArgumentTypeError, ModelError, check_count
from .guide import AutoConjugate
from .particles import (
    LEAST_DRAWS,
    SCORING_WAYS,
    Draws,
    ProgramCall,
    ProgramRunner,
    PyroProgram,
    ScoredRun,
    Target,
    TraceSite,
    Weights,
    is_latent,
    name_of,
    quiet_redraws,
    sample_sites,
    seeded,
)
from .signatures import Args, Array, Kwargs, Model

__all__ = ["loo", "to_arviz"]

Groups = dict[str, dict[str, Array]]


def to_arviz(
    model: Model,
    guide: Method,
    *args: Any,
    num_samples: int = 1000,
    prior_samples: int = 0,
    seed: int = 0,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    result: object = None,
    same_data: bool = True,
    **kwargs: Any,
) -> Any:
    """Draws from a posterior, with what ArviZ needs to plot, summarise, criticise and compare them.

    The groups are ``posterior`` (every latent and deterministic site; one chain of independent draws, or the chains of
    MCMC), ``posterior_predictive``, ``log_likelihood`` (of each observation given every latent; 0 where a mask hides
    it), ``sample_stats`` (``lp``, the log joint density, and ``log_q``, the guide's, in nats; for MCMC ``diverging``),
    ``observed_data``, and ``constant_data`` (dense tensors and numeric arrays among the arguments, also inside dicts,
    lists and tuples, which are not observed: ``X``, ``data.X`` for ``data["X"]``, ``parts.0`` for ``parts[0]``); with
    ``prior_samples`` also ``prior`` and ``prior_predictive``. Attributes of the posterior say by which method and
    versions, the exact ELBO of an :class:`~pyro_latent.AutoConjugate`, the ELBO and Pareto k̂ that these draws give (as
    ``criticism.score`` with this seed does, but with no discrete site summed out), and up to which differences
    (``rounding``, in nats) their weights count as equal.

    Draws are made and scored in batches where the model and the guide allow it, else one by one.

    Args:
        model: a Pyro model.
        guide: its guide, fitted, which samples every latent site; a :class:`~pyro_latent.CAVI` or an ``SVI`` that has
            run, for its guide; or an ``MCMC`` that has run, whose enumerated discrete sites are then drawn from their
            exact posterior. The positional arguments after it are the model's.
        num_samples: the number of draws; of MCMC, the largest number.
        prior_samples: the number of draws from the prior, which has to be proper; 0: no such groups.
        seed: of the draws. The global random state stays as it is.
        coords: by dimension, the labels along it.
        dims: by site or constant, a list of names of its dimensions, the first ones or all. By default those of a
            site's plates, and ``<site>_dim_<i>``.
        result: what the driver's ``run`` returned, for the attributes ``converged`` (1 or 0) and ``num_steps``.
        same_data: whether to check that the arguments are those of the fit, which an ``AutoConjugate`` and an ``MCMC``
            remember. False for a guide that saw minibatches.
        kwargs: the model's keyword arguments.

    Returns:
        An ``InferenceData`` (ArviZ 0.x) or a ``DataTree`` (ArviZ 1.x).

    Raises:
        TypeError: if the guide is none of these, ``result`` no result of a run, or names of dimensions are no list.
        ValueError: if ``num_samples`` is not a positive integer, ``dims`` names what is no site or constant data or has
            more names than dimensions, ``coords`` names no dimension, or labels are not as many as a dimension is long.
        ModelError: if the guide leaves a latent site out, has others than the model, has a point in place of a density,
            or was fitted to other data; or if a plate subsamples.

    Example::

        idata = to_arviz(model, guide, x, coords={"data": names})
        arviz.summary(idata, kind="stats")
    """
    num_samples = check_count("num_samples", num_samples)
    prior_samples = check_count("prior_samples", prior_samples, 0)
    _check_result(result)
    guide = _guide_of(guide)
    with seeded(seed):
        target = Target.of(model, args, kwargs)
        if same_data:
            check_same_data(target.call, guide, name_of(guide))
        with quiet_redraws():
            sites = sample_sites(target.call.trace())
        constants = _constant_data(target.call, sites)
        named = _names(sites, constants, dims or {}, coords or {})
    with seeded(seed):
        draws, groups = _posterior(target, guide, num_samples, sites)
        groups |= _prior(target, prior_samples, sites)
    if isinstance(guide, MCMC):
        groups["sample_stats"] |= _divergences(guide, groups["sample_stats"]["lp"].shape)
    attributes = _method(guide, args, kwargs) | _convergence(guide, result) | _quality(draws)
    counts = {"num_samples": len(draws.log_p), "seed": seed}
    return container(groups | {"constant_data": constants}, named, coords or {}, attributes | counts)


def _guide_of(method: Method) -> PyroProgram | MCMC:
    """The guide that a driver has fitted; any other guide, and MCMC, as it is.

    Raises:
        TypeError: if it is none.
        ModelError: if an SVI has not run.
    """
    guide: Any = method.guide if isinstance(method, CAVI | SVI) else method
    if not (callable(guide) or isinstance(guide, MCMC)):
        raise ArgumentTypeError(
            f"Expected a guide, CAVI, SVI or MCMC after the model; got {type(guide).__name__}. Write "
            "to_arviz(model, guide, *args)."
        )
    remembers = isinstance(guide, AutoGuide) and not isinstance(guide, AutoCallable | AutoConjugate)
    if isinstance(method, SVI) and remembers and guide.prototype_trace is None:
        raise ModelError("Expected an SVI that has run; got a new one. Call svi.step(*args) first, many times.")
    return guide


def _check_result(result: object) -> None:
    if result is not None and not (hasattr(result, "converged") and hasattr(result, "num_steps")):
        raise ArgumentTypeError(
            f"Expected result to be what a driver's run returned; got {type(result).__name__}. Write "
            "result=cavi.run(*args)."
        )


def _names(
    sites: Mapping[str, TraceSite],
    constants: Mapping[str, Array],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, object],
) -> dict[str, list[str]]:
    """The names of the dimensions of every site and constant, those of the user first.

    Raises:
        TypeError, ValueError: if ``dims`` or ``coords`` do not fit.
    """
    shapes: dict[str, tuple[int, ...]] = {n: tuple(np.shape(s["value"])) for n, s in sites.items()}
    shapes |= {n: max(shapes.get(n, ()), a.shape, key=len) for n, a in constants.items()}  # an argument and its site
    check_dims(dims, shapes)
    own = {n: _dims(n, s) for n, s in sites.items()}
    named = {n: own.get(n, [f"{n}_dim_{i}" for i in range(len(shape))]) for n, shape in shapes.items()}
    named |= {n: [*given, *(f"{n}_dim_{i}" for i in range(len(given), len(shapes[n])))] for n, given in dims.items()}
    check_coords(coords, {"chain", "draw"}.union(*named.values()))
    return named


def _posterior(
    target: Target, guide: PyroProgram | MCMC, num: int, sites: Mapping[str, TraceSite]
) -> tuple[Draws, Groups]:
    """Draws of every latent, scored, and the groups that are made of them."""
    if isinstance(guide, MCMC):
        values, chains = mcmc_values(target, guide, num)
        values, log_q = with_discrete(target, values), None
    else:
        (values, log_q), chains = guide_values(target, guide, num, name_of(guide)), 1
    made = len(next(iter(values.values())))
    scored = ProgramRunner(target.call, target.nesting, SCORING_WAYS)(values, made)
    draws = Draws(values, scored.log_prob, log_q, chains=chains)
    return draws, _groups(draws, scored, _predictive(target)(values, made), sites)


def _groups(draws: Draws, scored: ScoredRun, predicted: ScoredRun, sites: Mapping[str, TraceSite]) -> Groups:
    """The groups that are made of draws, each array ``[chain, draw] + shape``, and the observed data."""
    kept, observed = _kinds(sites)

    def drawn(found: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Array]:
        lead = (draws.chains, len(draws.log_p) // draws.chains)
        return {n: as_array(found[n]).reshape(*lead, *found[n].shape[1:]) for n in names}

    stats = {"lp": draws.log_p} | ({} if draws.log_q is None else {"log_q": draws.log_q})
    return {
        "posterior": drawn(scored.values, kept),
        "posterior_predictive": drawn(predicted.values, observed),
        "log_likelihood": drawn(scored.pointwise, observed),
        "sample_stats": drawn(stats, list(stats)),
        "observed_data": _observed(sites),
    }


def _observed(sites: Mapping[str, TraceSite]) -> dict[str, Array]:
    return {n: as_array(sites[n]["value"]) for n in _kinds(sites)[1]}


def _predictive(target: Target) -> ProgramRunner:
    """The model without its data."""
    call: ProgramCall = target.call.with_program(poutine.uncondition(target.call.program))
    return ProgramRunner(call, target.nesting, SCORING_WAYS)


def _prior(target: Target, num: int, sites: Mapping[str, TraceSite]) -> Groups:
    if not num:
        return {}
    with quiet_redraws():
        found: ScoredRun = _predictive(target)({}, num)
    kept, observed = _kinds(sites)
    return {
        "prior": {n: as_array(found.values[n])[None] for n in kept},
        "prior_predictive": {n: as_array(found.values[n])[None] for n in observed},
    }


def _kinds(sites: Mapping[str, TraceSite]) -> tuple[list[str], list[str]]:
    """The latent and deterministic sites, and the observed ones; ``pyro.factor`` observes a tensor of no elements."""
    kept = [n for n, s in sites.items() if is_latent(s) or s["infer"].get("_deterministic")]
    return kept, [n for n, s in sites.items() if n not in kept and torch.as_tensor(s["value"]).numel()]


def _dims(name: str, site: TraceSite) -> list[str]:
    """A name for each dimension of a site's value: its plate's, or the one that ArviZ would give."""
    ndim, event = site["value"].ndim if isinstance(site["value"], Tensor) else 0, site["fn"].event_dim
    frames = {f.dim - event: f.name for f in site["cond_indep_stack"] if f.vectorized}
    return [frames.get(i - ndim, f"{name}_dim_{i}") for i in range(ndim)]


def _divergences(mcmc: MCMC, shape: tuple[int, int]) -> dict[str, Array]:
    """Which draws diverged, where MCMC says so and all draws are kept."""
    chains: Any = mcmc._diagnostics
    noted = [d["divergences"] for d in chains if d and "divergences" in d]
    if len(noted) != shape[0] or shape[1] != mcmc.num_samples:
        return {}
    diverging = np.zeros(shape, dtype=bool)
    for chain, draws in enumerate(noted):
        diverging[chain, [int(i) for i in draws]] = True
    return {"diverging": diverging}


def _constant_data(call: ProgramCall, sites: Mapping[str, TraceSite]) -> dict[str, Array]:
    """Arrays among the arguments by the names that the model gives them, without those that are observed."""
    try:
        bound = call.bound()
    except (TypeError, ValueError):  # no signature to read
        return {}
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        rest = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        arguments |= value if rest else {name: value}  # **rest are arguments with names of their own
    found = {name: array for key, value in arguments.items() for name, array in _arrays(key, value)}
    observed = _observed(sites).values()
    return {n: a for n, a in found.items() if not any(a.shape == o.shape and _equal(a, o) for o in observed)}


def _arrays(name: str, value: object) -> Iterator[tuple[str, Array]]:
    """The dense tensors and numeric arrays in a value, with names: ``data.X`` for ``data["X"]``."""
    if isinstance(value, Tensor):
        if value.layout is torch.strided and not (value.is_nested or value.is_quantized or value.is_meta):
            yield name, as_array(value)
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _arrays(f"{name}.{key}", inner)


def _equal(first: Array, second: Array) -> bool:
    return bool(np.array_equal(first, second, equal_nan=first.dtype.kind == second.dtype.kind == "f"))


# --------------------------------------------------------------------------------------------------------- attributes


def _method(guide: PyroProgram | MCMC, args: Args, kwargs: Kwargs) -> dict[str, Any]:
    versions = {
        "inference_library": "pyro_latent",
        "inference_library_version": importlib.metadata.version("pyro-latent"),
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
    }
    if isinstance(guide, AutoConjugate):
        return {"method": "coordinate ascent (AutoConjugate)", "elbo": guide.elbo(*args, **kwargs)} | versions
    if isinstance(guide, MCMC):
        return {"method": f"MCMC ({type(guide.kernel).__name__})"} | versions
    return {"method": name_of(guide)} | versions


def _convergence(guide: PyroProgram | MCMC, result: Any) -> dict[str, Any]:
    """Whether a driver converged, and a chain's largest split R̂; in numbers, which files keep."""
    found: dict[str, Any] = {}
    if result is not None:
        found |= {"converged": int(result.converged), "num_steps": int(result.num_steps)}
    if isinstance(guide, MCMC) and guide._samples:
        largest = r_hat({n: v.flatten(0, 1) for n, v in guide._samples.items()}, guide.num_chains)
        found |= {} if largest is None else {"r_hat_max": largest}
    return found


def _quality(draws: Draws) -> dict[str, Any]:
    """The rounding of the draws' weights, and the ELBO and Pareto k̂ that they give, where there are enough."""
    if draws.log_q is None:
        return {}
    score = Weights.of(draws)
    found: dict[str, Any] = {"rounding": score.rounding}
    if score.num_samples < LEAST_DRAWS:
        return found
    return found | {
        "elbo_estimate": score.elbo,
        "elbo_estimate_error": score.elbo_error,
        "pareto_k": score.k.label,
        "pareto_k_meaning": score.k.verdict,
    }
