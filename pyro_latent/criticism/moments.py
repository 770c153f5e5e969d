"""Posterior moments by site, mixture components in one order, and how far one posterior is from another.

A mixture's posterior is the same for every order of its components, so two fits of one posterior may differ by a
permutation, and a chain may change it along the way. Components are matched to those of a pivot by the assignment with
the least squared distance between their parameters (Hungarian method), and the permutation is applied to every site.

Source: Stephens 2000 (label switching); Papastamoulis 2016 §2 (a pivot).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor
from torch.distributions import constraints

from ..errors import ModelError
from ..particles import Draws, Target, TraceSite, Values, close, innermost, log_joint


@dataclass(frozen=True)
class Moments:
    """The posterior moments of one latent site, elementwise.

    Attributes:
        mean, sd: of the site's shape, float64.
        error: the standard error of the mean, from the number of draws (independent) or their effective number (MCMC).
    """

    mean: Tensor
    sd: Tensor
    error: Tensor


@dataclass(frozen=True)
class Difference:
    """How far a posterior is from a reference's, elementwise, for one site.

    Attributes:
        mean: (mean − reference's mean) / reference's sd.
        sd: sd / reference's sd.
        error: the standard error of the first, of both Monte Carlo averages together.
    """

    mean: Tensor
    sd: Tensor
    error: Tensor


def moments(draws: Draws) -> dict[str, Moments]:
    """The moments of every site that has numbers; discrete sites are left out."""
    return {n: _moments(v.double(), draws) for n, v in draws.values.items() if v.is_floating_point()}


def _moments(values: Tensor, draws: Draws) -> Moments:
    mean, sd = values.mean(0), values.std(0)
    size: Any = len(values)
    if draws.log_q is None:
        chained = values.unflatten(0, (draws.chains, -1))
        size = effective_sample_size(chained, chain_dim=0, sample_dim=1).clamp(min=1.0)
    return Moments(mean, sd, sd / torch.as_tensor(size, dtype=sd.dtype, device=sd.device).sqrt())


def r_hat(values: Values, chains: int) -> float | None:
    """The largest split R̂ over sites that have numbers and their elements; None of chains with fewer than four draws.

    Args:
        values: by site the draws of equally long chains, one after another, ``[S] + shape``.
        chains: the number of chains.
    """
    chained = [v.double().unflatten(0, (chains, -1)) for v in values.values() if v.is_floating_point()]
    found = [float(split_gelman_rubin(v, 0, 1).max()) for v in chained if v.shape[1] >= 4]
    return max(found, default=None)


def difference(found: Mapping[str, Moments], reference: Mapping[str, Moments]) -> dict[str, Difference]:
    """The difference of each site that both have."""
    return {n: _difference(found[n], reference[n]) for n in reference if n in found}


def _difference(found: Moments, reference: Moments) -> Difference:
    unit = reference.sd.clamp(min=torch.finfo(reference.sd.dtype).tiny)
    error = (found.error.square() + reference.error.square()).sqrt()
    return Difference((found.mean - reference.mean) / unit, found.sd / unit, error / unit)


# --------------------------------------------------------------------------------------------------- label switching


@dataclass(frozen=True)
class Components:
    """Where a model's mixture components are.

    Attributes:
        plate: the plate that holds their parameters.
        size: how many there are.
        axes: by continuous site, the dimensions of its value (negative) that run over components.
        features: the sites in the plate, by which components are told apart.
        labels: the discrete sites whose values number them.
    """

    plate: str
    size: int
    axes: Mapping[str, tuple[int, ...]]
    features: tuple[str, ...]
    labels: tuple[str, ...]


def find_components(target: Target, plate: str | None = None) -> Components | None:
    """The plate of a model's mixture components, or None if it has none.

    It is a plate that holds continuous latents, and is as large as a Categorical latent outside of it has values; or
    one as large as a ``MixtureSameFamily`` has components, if a permutation along it leaves the joint density as it is.
    A simplex of as many entries (weights, rows of a transition matrix) runs over components too.

    Args:
        target: the model.
        plate: the name of a plate with continuous latents, where the model has several, or it is not found.

    Raises:
        ModelError: if there is no such plate.
    """
    labels = {n: len(s["fn"].enumerate_support(expand=False)) for n, s in target.latents.items() if _is_label(s)}
    sizes = {
        f.name: f.size
        for s in target.latents.values()
        for f in s["cond_indep_stack"]
        if f.vectorized and not s["fn"].has_enumerate_support
    }
    inside = {f.name for n in labels for f in target.latents[n]["cond_indep_stack"]}
    found = [p for p, size in sizes.items() if p not in inside and size in labels.values()]
    if plate is not None and plate not in sizes:
        raise ModelError(
            f"Expected a plate of mixture components, which holds continuous latent sites, one of {list(sizes)}; got "
            f"{plate!r}. Name one of these, or leave out components=."
        )
    chosen = plate or next(iter(found), None)
    if chosen is None:
        return _of_mixtures(target, sizes)
    return _components(target, chosen, sizes[chosen], tuple(n for n, k in labels.items() if k == sizes[chosen]))


def _of_mixtures(target: Target, sizes: Mapping[str, int]) -> Components | None:
    """The plate that a ``MixtureSameFamily`` takes its components from."""
    for site in target.mixtures.values():
        size = innermost(site["fn"]).mixture_distribution.logits.shape[-1]
        inside = {f.name for f in site["cond_indep_stack"]}
        for plate in (p for p, k in sizes.items() if 1 < k == size and p not in inside):
            found = _components(target, plate, size, ())
            if _is_exchangeable(target, found):
                return found
    return None


def _is_exchangeable(target: Target, components: Components) -> bool:
    """Whether another order of the components leaves the joint density as it is, at a draw from the prior."""
    one = {n: s["value"][None] for n, s in target.latents.items()}
    moved = relabeled(one, components, torch.arange(components.size).roll(1))
    here, there = log_joint(target, {n: torch.cat([v, moved[n]]) for n, v in one.items()})
    return bool(here.isfinite()) and close(here, there)


def _is_label(site: TraceSite) -> bool:
    return type(innermost(site["fn"])).__name__ == "Categorical" and not site["fn"].event_shape


def _components(target: Target, plate: str, size: int, labels: tuple[str, ...]) -> Components:
    axes: dict[str, tuple[int, ...]] = {}
    features = []
    for name, site in target.latents.items():
        if name in labels:
            continue
        event_dim = len(site["fn"].event_shape)
        found = [f.dim - event_dim for f in site["cond_indep_stack"] if f.name == plate]
        features += [name] if found else []
        if site["fn"].support is constraints.simplex and site["fn"].event_shape[-1] == size:
            found.append(-1)
        if found:
            axes[name] = tuple(found)
    return Components(plate, size, axes, tuple(features), labels)


def features_of(values: Values, components: Components) -> Tensor:
    """The parameters of each component in each draw: ``[S, K, F]``, float64."""
    parts = []
    for name in components.features:
        value = values[name].double()
        placed = value.movedim(components.axes[name][0], 1)
        parts.append(placed.reshape(len(value), components.size, -1))
    return torch.cat(parts, -1)


def relabeled(values: Values, components: Components, order: Tensor) -> Values:
    """Draws whose component k is the one that had the number ``order[..., k]``; ``order`` is ``[K]`` or ``[S, K]``."""
    return {n: _relabeled(n, v, components, order.to(v.device)) for n, v in values.items()}


def _relabeled(name: str, value: Tensor, components: Components, order: Tensor) -> Tensor:
    each = order.expand(len(value), components.size)
    if name in components.labels:
        place = each.argsort(-1)  # the new number of each old one
        return place.gather(1, value.long().reshape(len(value), -1)).reshape(value.shape).to(value.dtype)
    for axis in components.axes.get(name, ()):
        shape = [1] * value.ndim
        shape[0], shape[axis] = len(value), components.size
        value = value.gather(axis, each.reshape(shape).expand(value.shape))
    return value


def aligned(draws: Draws, components: Components, pivot: Tensor, unit: Tensor) -> Draws:
    """Draws with their components in the order of a pivot's.

    A guide's are moved all alike, by their means: its order is fixed. A chain's are moved each by itself.

    Args:
        pivot: parameters of each component, ``[K, F]``, as of :func:`features_of`.
        unit: of each parameter, ``[F]``.
    """
    found = features_of(draws.values, components)
    found = found.mean(0, keepdim=True) if draws.log_q is not None else found
    order = torch.stack([assignment(f / unit, pivot / unit) for f in found])
    values = relabeled(draws.values, components, order[0] if len(order) == 1 else order)
    return Draws(values, draws.log_p, draws.log_q, draws.summed, draws.chains)


def assignment(found: Tensor, pivot: Tensor) -> Tensor:
    """Which of the rows of ``found`` stands for each of ``pivot``, both ``[K, F]``: ``[K]``."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(pivot, found).square().cpu().numpy()
    return torch.as_tensor(linear_sum_assignment(cost)[1])


def align(all_draws: Mapping[str, Draws], components: Components) -> dict[str, Draws]:
    """The draws of several methods with their components in one order, that of the first guide.

    Where there are only chains, the last draw of the first is the pivot, and then the mean of what it made.
    """
    guides = [d for d in all_draws.values() if d.log_q is not None]
    first = guides[0] if guides else next(iter(all_draws.values()))
    start = features_of(first.values, components)
    pivot = start.mean(0) if guides else start[-1]
    unit = _unit(start, pivot)
    if not guides:
        start = features_of(aligned(first, components, pivot, unit).values, components)
        pivot = start.mean(0)
        unit = _unit(start, pivot)
    return {name: aligned(d, components, pivot, unit) for name, d in all_draws.items()}


def _unit(found: Tensor, pivot: Tensor) -> Tensor:
    """The scale of each parameter: its spread between components and within draws together, ``[F]``."""
    variance = pivot.var(0, correction=0) + found.var(0, correction=0).mean(0)
    return torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
