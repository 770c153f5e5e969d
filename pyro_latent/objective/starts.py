"""The states that coordinate ascent starts at.

Continuous blocks start at their prior, in the order of the model, given the blocks before; locations are then drawn
from it, since a symmetric start is a fixed point (a factor loading of zero stays zero), but for the location of one
observation for each of its elements, which starts at that observation. Discrete sites start at clusters of the data in
their plate, found by k-means, or at random where there is no such data. Data that several discrete sites share does not
tell them apart: clusters are then for the first of them, and the others start at random; or, where each element of a
plate has probabilities of its own for them, these start unequal, and the sites follow. A user's starts come before all
of these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from ..errors import ArgumentTypeError, ModelError, NaturalDomainError
from ..families import Natural
from ..families.quadrature import Quadrature
from ..recording import DiscreteSite, LatentSite, ends_in_simplex
from .blocks import Block, BlockKey, Means, State, starts_of
from .clusters import clusters_of
from .modes import on_edge
from .posterior import natural_of
from .program import Program

Init = None | int | Mapping[Any, Any] | Callable[[LatentSite | DiscreteSite], Any]

#: Locations start at most this many units from their prior's mean, so that a vague prior does not throw them far away.
_LARGEST_SPREAD = 1.0
#: How far a drawn value of a discrete site in mean field is from certain at the start.
_DOUBT = 0.2


def initial_state(program: Program, init: Init, restarts: int) -> tuple[State, dict[str, Tensor]]:
    """Naturals by block and responsibilities by discrete site, or labels, for each start.

    Raises:
        ModelError: if ``init`` names an unknown site, or gives a wrong family or shape.
        NaturalDomainError: if a prior is improper.
    """
    seed = init if isinstance(init, int) else 0
    generator = torch.Generator(device=program.recording.device).manual_seed(seed)
    given = _given(program, init)

    def start(key: BlockKey, state: State) -> Natural:
        block = program.blocks[key]
        if block.is_point:
            own = block.sites[0].own_point if init is not None or restarts > 1 else None
            point = _point_start(block, given.get(key, own), restarts, program.recording.like)
            return point if given else _moved(program, block, point, generator)
        if block.is_discrete:
            return _discrete_start(program, block, given.get(key), generator, restarts)
        drawn = _perturbed(program, block, _prior(program, block, state, restarts), generator)
        return _user_natural(program, block, given, drawn, restarts)

    state = _started(program, {}, start)
    if not any(site.name in given for site in program.discrete):
        from_params = bool(program.params) and not isinstance(init, int) and restarts == 1
        if given or from_params:
            return state, {}  # those say where to start: the discrete posterior follows from them
    following = _following(program)
    free = [s for s in program.discrete if s.name not in given]
    clusters = clusters_of(program, _first_of_each(program, free), generator, restarts)
    starts = {
        site.name: _responsibilities(program, site, given.get(site.name), clusters.get(site.name), generator, restarts)
        for site in program.discrete
        if site.name in given or site.name not in following
    }
    return state, starts


def _point_start(block: Block, given: Any, restarts: int, like: Tensor) -> Natural:
    """The value that the parameter has in Pyro's store or in the model, or that is given."""
    (site,) = block.sites
    if hasattr(given, "log_prob"):
        raise ModelError(
            f"Expected a value as init for {site.name!r}, a point estimate; got a distribution. Write "
            f"init={{{site.name!r}: value}}."
        )
    value = site.point if given is None else torch.as_tensor(given)
    assert value is not None
    value = value.detach().to(like)
    constraint = constraints.real if site.constraint is None else site.constraint
    if value.shape != site.shape or not bool(constraint.check(value).all()):
        raise ModelError(
            f"Expected {site.name!r} to start at a value of shape {tuple(site.shape)} in {constraint}; got "
            f"{value.tolist()}."
        )
    if bool(on_edge(constraint, value).any()) or (ends_in_simplex(constraint) and bool((value == 0).any())):
        raise ModelError(
            f"Expected {site.name!r} to start inside its constraint {constraint}; got {value.tolist()}, on the edge, "
            "which the M-step cannot leave. Start it inside."
        )
    return block.natural({"value": value.expand(restarts, *value.shape).clone()})


def _moved(program: Program, block: Block, natural: Natural, generator: torch.Generator) -> Natural:
    """A point that is not at a start of symmetry: modes of locations and probabilities are moved, and parameters are in
    all starts but the first where no discrete sites tell the starts apart.
    """
    (site,), value = block.sites, natural.x
    if site.is_param:
        if program.discrete or len(value) == 1:
            return natural
        transform = transform_to(site.constraint)
        free = transform.inv(value)
        moved: Tensor = transform(free + _noise(free, generator))
        return Natural(x=torch.cat([value[:1], moved[1:]]))
    if block.is_location:
        return Natural(x=value + _noise(value, generator))
    if ends_in_simplex(site.constraint):
        weights = -_uniform(value, generator).log()
        return Natural(x=(value + weights / weights.sum(-1, keepdim=True)) / 2)
    return natural


def _given(program: Program, init: Init) -> dict[Any, Any]:
    if init is None or isinstance(init, int):
        return {}
    sites: list[LatentSite | DiscreteSite] = [
        *(b.sites[i] for b in program.blocks.values() for i in range(len(b.sites))),
        *program.discrete,
    ]
    if callable(init):
        found = {site.name: init(site) for site in sites}
        return {name: _as_start(name, value) for name, value in found.items() if value is not None}
    if not isinstance(init, Mapping):
        raise ArgumentTypeError(
            "Expected init to be None, a seed (an integer), a dict from site to distribution or responsibilities, or "
            f"a function; got {init!r}."
        )
    known = {*(s.name for s in sites), *program.blocks}
    unknown = [key for key in init if key not in known]
    if unknown:
        raise ModelError(f"Expected init for sites or blocks among {sorted(map(str, known))}; got {unknown}.")
    return {key: _as_start(key, value) for key, value in init.items() if value is not None}


def _as_start(key: Any, value: Any) -> Any:
    """A distribution as it is; numbers, lists and arrays as tensors.

    Raises:
        ArgumentTypeError: if it is neither.
    """
    if hasattr(value, "log_prob"):
        return value
    try:
        found = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        numeric = found.is_floating_point() or found.dtype in (torch.int64, torch.int32, torch.bool)
    except (TypeError, ValueError, RuntimeError):
        numeric = False
    if not numeric:
        raise ArgumentTypeError(
            f"Expected a distribution, a location, or responsibilities from init[{key!r}]; got "
            f"{type(value).__name__}. Write init={{{key!r}: dist.Normal(loc, scale)}}, say, or a tensor."
        )
    return found


def fresh_blocks(program: Program, state: State, keys: Collection[BlockKey]) -> State:
    """Some blocks at their start again, given the others: the local ones of data that has not been seen."""
    restarts = starts_of(state)
    generator = torch.Generator(device=program.recording.device).manual_seed(0)

    def start(key: BlockKey, state: State) -> Natural:
        block = program.blocks[key]
        if block.is_point:
            return _point_start(block, None, restarts, program.recording.like)
        if block.is_discrete:
            return _discrete_start(program, block, None, generator, restarts)
        return _perturbed(program, block, _prior(program, block, state, restarts), generator)

    return _started(program, {key: natural for key, natural in state.items() if key not in keys}, start)


class _TooEarlyError(ModelError):
    """A block's prior depends on blocks that have not been started."""


def _started(program: Program, state: State, start: Callable[[BlockKey, State], Natural]) -> State:
    """A state with every other block at its start, in the order of the model, but each after those that its prior
    depends on: a joint block may come before a location above it.
    """
    state, waiting = dict(state), [key for key in program.blocks if key not in state]
    while waiting:
        later = {}
        for key in waiting:
            try:
                state[key] = start(key, state)
            except _TooEarlyError as problem:
                later[key] = problem
        if len(later) == len(waiting):
            raise next(iter(later.values()))
        waiting = list(later)
    return {key: state[key] for key in program.blocks}


def _discrete_start(program: Program, block: Block, given: Any, generator: torch.Generator, restarts: int) -> Natural:
    """A discrete site in mean field at the user's responsibilities, or near drawn values, which tell its elements
    apart.
    """
    site = program.recording.discrete[block.sites[0].name]
    probs = _responsibilities(program, site, given, None, generator, restarts)
    if given is None:
        drawn = torch.nn.functional.one_hot(probs.argmax(-1), site.cardinality).to(probs)
        probs = (1 - _DOUBT) * drawn + _DOUBT / site.cardinality
    lead = len(block.batch_shape) + 2 - probs.ndim
    probs = probs.reshape(len(probs), *[1] * lead, *probs.shape[1:])
    return block.family.from_params({"probs": probs.expand(-1, *block.batch_shape, -1).clone()})


def _prior(program: Program, block: Block, state: State, restarts: int) -> Natural:
    """The optimum of a block against its own log density alone, given the blocks before it."""
    names = {site.name for site in block.sites}
    summands = [s for s in program.prior_summands(names) if block.key in s.blocks]
    if not summands:  # a flat prior starts at a standard distribution
        return program.standard(block, restarts)
    used = {k for s in summands for k in s.blocks} - {block.key}
    parents = used & program.blocks.keys()
    if used - program.blocks.keys():  # what the model computes from its points
        parents |= {key for key, other in program.blocks.items() if other.is_point}
    unknown = sorted(map(str, parents - state.keys()))
    if unknown:
        raise _TooEarlyError(f"Expected the prior of {block.label!r} to depend on earlier sites only; got {unknown}.")
    means: Means = {k: program.blocks[k].family.mean(state[k]) for k in parents}
    means = program.with_derived(means) if used - program.blocks.keys() else means
    means[block.key] = program.blank_mean(block, restarts)
    try:
        natural = program.optimum_of(block.under_prior(), means, summands)
    except NaturalDomainError:
        if not block.is_scalar:
            raise
        return program.standard(block, restarts)  # the data may make it proper
    if not bool(block.family.in_domain(natural).all()):
        if block.joint_normal:  # a wide prior, lost beside what its elements say of each other
            return program.standard(block, restarts)
        raise NaturalDomainError(
            f"Expected a proper prior for {block.label!r}; got natural parameters outside the domain of "
            f"{block.family.name}. Check its concentrations, rates, scales and degrees of freedom."
        )
    return natural


def _perturbed(program: Program, block: Block, natural: Natural, generator: torch.Generator) -> Natural:
    """A location at the data's mean, where it is that of data; else drawn from the prior, with a limited spread."""
    if isinstance(block.family, Quadrature):
        return block.family.narrowed(natural, _noise(natural.left[..., 0], generator))
    if block.joint_normal:
        return block.joint_normal.moved(natural, block.has_origin, _noise(natural.x, generator), _LARGEST_SPREAD)
    params = block.family.to_params(natural)
    if block.location_site is None:
        if any(block.key in s.blocks for s in program.log_sums):  # a random number of observations more, about one each
            return Natural(**{n: t - (n == "log_x") * _uniform(t, generator).log() for n, t in natural.items()})
        return _unequal(block, params, generator) if _tells_apart(program, block) else natural
    name = block.family.location[0]  # type: ignore[index]
    loc, own = params[name], program.recording.own_data.get(block.location_site.name)
    origin = block.location_site.origin
    if own is not None and own.numel() == block.location_site.shape.numel():
        own = own.reshape(block.location_site.shape)
        own = (own if origin is None else own - origin).to(loc)
        return block.family.from_params(params | {name: own.reshape(loc.shape[1:]).expand_as(loc)})
    if origin is not None:
        return block.family.from_params(params | {name: torch.zeros_like(loc)})
    spread = block.family.location_scale(params).clamp(max=_LARGEST_SPREAD)
    return block.family.from_params(params | {name: loc + spread * _noise(loc, generator)})


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _tells_apart(program: Program, block: Block) -> bool:
    """Whether a block holds the probabilities, by element of a plate, of discrete sites that share their data."""
    if block.count == 1 or not _is_probability(block):
        return False
    return any(block.sites[0].name in program.recording.scored[name].parents for name in _sharing(program))


def _is_probability(block: Block) -> bool:
    if block.is_point:
        return not block.is_param and ends_in_simplex(block.sites[0].constraint)
    return bool(block.family.counts)


def _following(program: Program) -> set[str]:
    """The discrete sites whose start follows from blocks that tell them apart."""
    names = {block.sites[0].name for block in program.blocks.values() if _tells_apart(program, block)}
    return {name for name in _sharing(program) if names & program.recording.scored[name].parents} if names else set()


def _first_of_each(program: Program, sites: Sequence[DiscreteSite]) -> list[DiscreteSite]:
    """The sites, but of those that share their data the first alone."""
    shared = _sharing(program)
    firsts: dict[str, DiscreteSite] = {}
    for site in sites:
        firsts.setdefault(shared.get(site.name, site.name), site)
    return list(firsts.values())


def _unequal(block: Block, params: Mapping[str, Tensor], generator: torch.Generator) -> Natural:
    """Probabilities with one observation more for each element: a random one in part, so that no two are equal."""
    counts = {name: params[name] for name in block.family.counts}
    first = next(iter(counts.values()))
    weights = -_uniform(first, generator).log()
    if len(counts) == 1:
        shares = [weights / weights.sum(-1, keepdim=True)]
    else:
        share = _uniform(first, generator)
        shares = [share, 1 - share]
    more = {name: count + own for (name, count), own in zip(counts.items(), shares, strict=True)}
    return block.family.from_params({**params, **more})


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    found = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return found.clamp(min=torch.finfo(like.dtype).tiny)


def _sharing(program: Program) -> dict[str, str]:
    """For each discrete site whose observed data is that of others as well, name the first of them in the model."""
    readers, observed_sites = program.elimination.readers, program.recording.observations.keys()
    data = {site.name: observed_sites & set(readers.get(site.name, ())) for site in program.discrete}
    groups: dict[frozenset[str], list[str]] = {}
    for name, observed in data.items():
        groups.setdefault(frozenset(observed), []).append(name)
    return {name: names[0] for seen, names in groups.items() if seen and len(names) > 1 for name in names}


def _user_natural(program: Program, block: Block, given: Mapping[Any, Any], natural: Natural, restarts: int) -> Natural:
    found = given.get(block.key)
    if found is None and len(block.sites) > 1 and (inner := [s.name for s in block.sites if s.name in given]):
        raise ModelError(
            f"Expected init for the whole block {block.key}; got it for {inner} alone. Give "
            f"init={{{block.key!r}: distribution}}."
        )
    if found is None:
        return natural
    if isinstance(found, Tensor):
        if block.family.location is None or len(block.sites) > 1:
            raise ModelError(
                f"Expected a distribution as init for {block.label!r}, a {block.family.name} block; got a tensor."
            )
        params, name = block.params(natural), block.family.location[0]
        shape = block.batch_shape + block.event_shapes[0]
        if found.shape.numel() != shape.numel() or not bool(found.isfinite().all()):
            raise ModelError(
                f"Expected a finite location of shape {tuple(shape)} as init for {block.label!r}; got "
                f"{found.tolist() if found.shape.numel() == shape.numel() else tuple(found.shape)}."
            )
        loc = found.to(params[name]).reshape(shape)
        return block.natural(params | {name: loc.expand_as(params[name])})
    one = natural_of(block, found, where := f"init[{block.key!r}]", program.recording.like)
    if not bool(block.family.in_domain(one).all()):
        words = f"Expected a proper {block.family.name} from {where}; got parameters outside its domain."
        raise NaturalDomainError(words)
    return one.map(lambda t: t.expand(restarts, *t.shape).clone())


def _responsibilities(
    program: Program,
    site: DiscreteSite,
    given: Any,
    labels: Tensor | None,
    generator: torch.Generator,
    restarts: int,
) -> Tensor:
    """``[starts, plates..., values]``: the user's, or a draw; or labels ``[starts, plates...]`` of clusters of data."""
    depth = max((-p.dim for p in site.plates), default=0)
    sizes = {p.dim: p.size for p in site.plates}
    plates = [sizes.get(i - depth, 1) for i in range(depth)]
    like = program.recording.like
    if given is not None:
        probs = given if isinstance(given, Tensor) else getattr(given, "probs", torch.empty(0))
        if tuple(probs.shape) != (*plates, site.cardinality):
            raise ModelError(
                f"Expected responsibilities of shape {(*plates, site.cardinality)} for {site.name!r}; got "
                f"{tuple(probs.shape)}."
            )
        probs = probs.to(like)
        if not bool(probs.isfinite().all()) or bool((probs < 0).any()) or bool((probs.sum(-1) <= 0).any()):
            raise ModelError(
                f"Expected responsibilities for {site.name!r} that are finite, not negative, and not all zero for an "
                "element; got others."
            )
        return (probs / probs.sum(-1, keepdim=True)).expand(restarts, *probs.shape)
    if labels is not None:
        return labels.reshape(restarts, *plates)
    weights = -_uniform(like.new_empty(restarts, *plates, site.cardinality), generator).log()
    return weights / weights.sum(-1, keepdim=True)


__all__ = ["Init", "fresh_blocks", "initial_state"]
