"""Posteriors as Pyro distributions: marginals by site, joint blocks, and what hand-written updates see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.transforms import ReshapeTransform
from torch import Tensor

from ..errors import MissingPosteriorError, ModelError
from ..families import Natural, Params, family_of
from ..families.finite import Finite
from ..families.quadrature import Quadrature
from ..recording import DiscreteSite
from ..values import broadcast_shapes
from .blocks import Block, BlockKey, Means, State, starts_of
from .elimination import Table
from .program import Program


class Reshaped(dist.TransformedDistribution):
    """A distribution over a vector, seen in another event shape, with its moments."""

    @property
    def mean(self) -> Tensor:
        return self._seen(self.base_dist.mean)

    @property
    def variance(self) -> Tensor:
        return self._seen(self.base_dist.variance)

    def _seen(self, vector: Tensor) -> Tensor:
        return vector.reshape(self.batch_shape + self.event_shape)

    def __repr__(self) -> str:
        return f"{type(self.base_dist).__name__} over events of shape {tuple(self.event_shape)}"


def shaped(block: Block, component: int, distribution: Any) -> Any:
    """A distribution over a component of a block with the batch and event shape of its site."""
    site = block.sites[component]
    extra = len(block.batch_shape) - len(site.batch_shape)
    if extra > 0:
        return distribution.to_event(extra)
    if len(site.event_shape) > len(distribution.event_shape):
        return Reshaped(distribution, [ReshapeTransform(torch.Size(distribution.event_shape), site.event_shape)])
    return distribution


def marginals(block: Block, params: Params) -> dict[str, Any]:
    """The marginals of a block, by site."""
    found = block.family.marginals(params)
    return {site.name: shaped(block, i, found[i]) for i, site in enumerate(block.sites)}


class _BySite(dict[Any, Any]):
    def __missing__(self, key: object) -> Any:
        raise MissingPosteriorError(
            f"Expected one of {list(self)}; got {key!r}, which the update reads and which is no latent or observed "
            "site, or block of sites, here. Write an update that reads others, or leave it out: the engine derives one."
        )


class Posteriors(Mapping[Any, Any]):
    """The current posteriors, as a hand-written update sees them.

    ``q[site]`` is a site's marginal, ``q[block]`` a joint block's distribution, ``q.scales[site]`` the scale of the
    site. Of an observed site, such as one that ``poutine.condition`` gives a value, ``q[site]`` is a Delta there.
    """

    def __init__(
        self, program: Program, params: Mapping[BlockKey, Params], responsibilities: Mapping[str, Tensor]
    ) -> None:
        self._entries, self._recording = _BySite(), program.recording
        self.joints: dict[BlockKey, Any] = {}
        for key, block in program.blocks.items():
            self._entries |= marginals(block, params[key])
            if isinstance(key, tuple) or block.joint_normal:
                self.joints[key] = block.family.distribution(params[key])
        self._entries |= {key: joint for key, joint in self.joints.items() if isinstance(key, tuple)}
        self.scales = _BySite({scored.name: scored.scale for scored in program.recording.scored.values()})
        for site in program.discrete:
            if site.name in responsibilities:
                self._entries[site.name] = discrete_distribution(site, responsibilities[site.name])

    def __getitem__(self, key: object) -> Any:
        if key in self._recording.observations:
            site = self._recording.scored[key]
            return dist.Delta(self._recording.observations[key], event_dim=site.event_dim)
        return self._entries[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def discrete_distribution(site: DiscreteSite, probs: Tensor) -> Any:
    """The posterior of a discrete site from probabilities over its support, in the last dimension."""
    return Finite(site.distribution, site.support).distribution({"probs": probs})


def responsibilities(
    program: Program,
    means: Means,
    sites: Sequence[DiscreteSite],
    clamped: Mapping[str, Tensor] | None = None,
    nesting: int | None = None,
    known: Mapping[str, Tensor] | None = None,
    more: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The posterior probabilities of each discrete site given values of others: ``[starts, plates..., values]``.

    They are the gradient of log Z in probes added to the sites' log factors. ``nesting``: how many dimensions of the
    clamped values may be plates, by default those of the model; what is on their left are draws. ``known``: of a
    clamped site, the elements whose value is given, by default all. ``more``: further log factors on sites,
    ``[draws, values] + plates``.
    """
    depth = program.recording.max_plate_nesting
    nesting = depth if nesting is None else nesting
    given = {
        s.name: _clamp(s, clamped[s.name], nesting, depth, (known or {}).get(s.name))
        for s in program.discrete
        if clamped and s.name in clamped and s.cardinality > 1
    }
    given = given | dict(more or {})
    several = {s.name for s in sites if s.cardinality > 1}
    found = program.elimination.responsibilities(means, several, given)
    starts = max([starts_of(means), *map(len, given.values())])
    ones = program.recording.like.new_ones(starts)
    return {s.name: _normalized(s, found[s.name]) if s.name in found else _certain(s, ones) for s in sites}


def conditional_probabilities(program: Program, table: Table, drawn: Mapping[str, Tensor], nesting: int) -> Tensor:
    """The posterior probabilities of a discrete site given values of others: ``[draws, plates..., values]``.

    Args:
        program: the recorded model.
        table: that of the site, of :meth:`.DiscreteElimination.conditionals`.
        drawn: the values of the sites before it.
        nesting: how many dimensions of the values may be plates; what is on their left are draws.
    """
    sites, depth = program.recording.discrete, program.recording.max_plate_nesting
    site = sites[str(table.variable)]
    log = table.log_weights.movedim(1 + table.names.index(site.name), -1)
    others = [sites[str(name)] for name in table.names if name != site.name]
    numbers = [_beside_draws(s.numbers_of(drawn[s.name]), nesting, depth) for s in others]
    places = [log.shape[0], *log.shape[1 + len(others) : -1]]
    grid = [torch.arange(n, device=log.device).reshape(n, *[1] * (depth - i)) for i, n in enumerate(places)]
    log = log[(grid[0], *numbers, *grid[1:])]
    probs = log.softmax(-1)  # NaN where no value is possible
    probs = torch.where(probs.isnan(), torch.full_like(probs, 1 / site.cardinality), probs)
    batch = site.batch_shape
    return probs.reshape(len(probs), *probs.shape[1 + depth - len(batch) :]).expand(-1, *batch, -1)


def _beside_draws(numbers: Tensor, nesting: int, depth: int) -> Tensor:
    """Numbers ``[draws] + plates``, with a dimension for each of the ``depth`` plates of the model."""
    inner = numbers.shape[max(0, numbers.ndim - nesting) :]
    return numbers.reshape(-1, *[1] * (depth - len(inner)), *inner)


class DependentElements(TorchDistribution):
    """The joint posterior of the elements of a discrete site that meet in a density, given sites drawn before.

    ``log_prob`` has for each element the log probability of its value given the elements before it, which add up to
    that of the whole.

    Args:
        site: the site.
        conditional: the probabilities ``[draws, batch..., values]`` given values and where they are known.
        turns: masks over the elements, which are drawn in turn; those of one mask are independent given those before.
        batch_shape: that of the site, with draws on its left.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        site: DiscreteSite,
        conditional: Callable[[Tensor, Tensor], Tensor],
        turns: Sequence[Tensor],
        batch_shape: torch.Size,
    ) -> None:
        self.site, self.conditional, self.turns = site, conditional, turns
        super().__init__(batch_shape, site.support.shape[1:], validate_args=False)

    @property
    def support(self) -> Any:
        return self.site.constraint

    def expand(self, batch_shape: Any, _instance: Any = None) -> DependentElements:
        return DependentElements(self.site, self.conditional, self.turns, torch.Size(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        values = self.site.support[0].expand(shape + self.event_shape).clone()
        known = torch.zeros(self.site.batch_shape, dtype=torch.bool, device=values.device)
        for turn in self.turns:
            drawn = self.site.support[torch.distributions.Categorical(self._given(values, known, shape)).sample()]
            values = torch.where(turn.reshape(turn.shape + (1,) * len(self.event_shape)), drawn, values)
            known = known | turn
        return values

    def log_prob(self, value: Tensor) -> Tensor:
        shape = broadcast_shapes(value.shape[: value.ndim - len(self.event_shape)], self.batch_shape)
        value = value.expand(shape + self.event_shape)
        known = torch.zeros(self.site.batch_shape, dtype=torch.bool, device=value.device)
        numbers = self.site.numbers_of(value).unsqueeze(-1)
        found = torch.zeros(shape, dtype=torch.get_default_dtype(), device=value.device)
        for turn in self.turns:
            each = self._given(value, known, shape).gather(-1, numbers).squeeze(-1).log()
            found = torch.where(turn, each, found.to(each))
            known = known | turn
        return found

    def _given(self, values: Tensor, known: Tensor, shape: torch.Size) -> Tensor:
        """The probabilities of every element given those that are known."""
        probs = self.conditional(values, known)
        outer = shape[: len(shape) - len(self.site.batch_shape)]
        probs = probs.expand(max(outer.numel(), 1), *probs.shape[1:])
        return probs.reshape(*outer, *self.site.batch_shape, probs.shape[-1])


def _certain(site: DiscreteSite, ones: Tensor) -> Tensor:
    """The probabilities of a site of one value."""
    return ones.reshape(-1, *[1] * len(site.batch_shape), 1).expand(-1, *site.batch_shape, 1)


def _normalized(site: DiscreteSite, weights: Tensor) -> Tensor:
    """Probabilities ``[starts, batch..., values]`` from the weights of a factor of the site."""
    probs = weights.reshape(*weights.shape[:2], *site.batch_shape).movedim(1, -1)
    total = probs.sum(-1, keepdim=True)
    return (probs / total).masked_fill_(~(total > 0), 1 / site.cardinality)


def _clamp(site: DiscreteSite, value: Tensor, nesting: int, depth: int, known: Tensor | None) -> Tensor:
    """A log factor that is zero where the site has the given value, and minus infinity elsewhere.

    Dimensions of the value to the left of the ``nesting`` plates are draws: they take the place of starts.
    """
    event = site.support.ndim - 1
    spread = site.support.reshape(site.cardinality, *[1] * (value.ndim - event), *site.support.shape[1:])
    equal = spread == value.unsqueeze(0)
    equal = equal.flatten(-event).all(-1) if event else equal
    equal = equal if known is None else equal | ~known
    inner = equal.shape[max(1, equal.ndim - nesting) :]
    equal = equal.reshape(len(equal), -1, *inner).movedim(0, 1)  # what is on the left of the plates are draws
    log = torch.where(equal, 0.0, -torch.inf).to(torch.get_default_dtype())
    return log.reshape(*log.shape[:2], *[1] * (depth - len(inner)), *inner)


def posteriors(program: Program, state: State, start: int = 0, with_discrete: bool = True) -> Posteriors:
    """The posteriors of one start of a state."""
    one = {key: natural.map(lambda t: t[start]) for key, natural in state.items()}
    params = {key: block.params(one[key]) for key, block in program.blocks.items()}
    found: dict[str, Tensor] = {}
    if with_discrete and program.discrete:
        means = program.means({key: natural.map(lambda t: t.unsqueeze(0)) for key, natural in one.items()})
        found = {n: p[0] for n, p in responsibilities(program, means, program.discrete).items()}
    return Posteriors(program, params, found)


def quantiles_of(program: Program, state: State, levels: Sequence[float]) -> dict[str, Tensor]:
    """The elementwise quantiles of each site that is no parameter, in a state of one start, ``[levels] + shape``."""
    found: dict[str, Tensor] = {}
    for key, block in program.blocks.items():
        if not block.is_param:
            found |= quantiles_of_block(block, block.params(state[key].map(lambda t: t[0])), levels)
    probs = responsibilities(program, program.means(state), program.discrete) if program.discrete else {}
    for discrete in program.discrete:
        family, own = Finite(discrete.distribution, discrete.support), {"probs": probs[discrete.name][0]}
        found[discrete.name] = torch.stack([family.quantiles(own, level)[0] for level in levels])
    return found


def quantiles_of_block(block: Block, params: Params, levels: Sequence[float]) -> dict[str, Tensor]:
    """The elementwise quantiles of each site of a block, ``[levels] + shape``."""
    by_level = [block.family.quantiles(params, level) for level in levels]
    return {s.name: torch.stack([q[i].reshape(s.shape) for q in by_level]) for i, s in enumerate(block.sites)}


def natural_of(block: Block, distribution: object, where: str, like: Tensor, advice: str = "") -> Natural:
    """The natural parameters of a Pyro distribution given for a block: by an update, or as a start.

    ``advice`` is what to write where it is that of a larger block, if it is not to join the sites.

    Raises:
        ModelError: if it is not of the block's family, or has another shape.
    """
    if not hasattr(distribution, "log_prob"):
        raise ModelError(
            f"Expected a {block.family.name} distribution from {where}; got {type(distribution).__name__}."
        )
    if isinstance(block.family, Quadrature):
        return _tabulated(block, distribution, where, like)
    base: Any = _base(distribution)
    example = block.example
    classes: tuple[Any, ...] = (type(block.family.distribution(example)), *block.family.read_classes)
    if not isinstance(base, classes) and not any(type(base) in c.__mro__ for c in classes):  # or torch's own
        got = family_of(type(base))
        is_joint = got is not None and len(got.event_dims) > 1
        hint = f" {advice or f'Give the guide blocks=[{_names_of(block)}].'}" if is_joint else ""
        raise ModelError(f"Expected a {block.family.name} distribution from {where}; got {type(base).__name__}.{hint}")
    params = {name: p.to(like) for name, p in block.family.distribution_params(_as_event(block, base)).items()}
    shapes = {name: tuple(t.shape) for name, t in example.items()}
    try:
        full = {name: p.expand(shapes[name]) for name, p in params.items()}
    except RuntimeError:
        found = {name: tuple(p.shape) for name, p in params.items()}
        raise ModelError(f"Expected parameters of shapes {shapes} from {where}; got {found}.") from None
    return block.natural(full)


def _tabulated(block: Block, distribution: Any, where: str, like: Tensor) -> Natural:
    """The table of any distribution over the scalars of a block.

    Raises:
        ModelError: if it has another shape.
    """
    (site,), extra, base = block.sites, len(distribution.event_shape), distribution
    while hasattr(base, "base_dist") and isinstance(base, dist.Independent | torch.distributions.Independent):
        base = base.base_dist
    try:
        whole = base.expand(site.shape)
    except RuntimeError:
        shape = tuple(distribution.batch_shape + distribution.event_shape)
        raise ModelError(
            f"Expected a distribution of shape {tuple(site.shape)} from {where}; got one of shape {shape}."
        ) from None
    if len(base.event_shape):
        raise ModelError(f"Expected a distribution of scalars from {where}; got one of vectors, of {extra} dimensions.")
    params = block.family.distribution_params(whole)
    return block.natural({name: p.to(like) for name, p in params.items()})


def probabilities_of(site: DiscreteSite, distribution: object, like: Tensor) -> Tensor:
    """The probabilities ``batch + [values]`` of a distribution that an update gives for a discrete site.

    Raises:
        ModelError: if it is no distribution over these values, or has another shape.
    """
    where, shape = f"the update of {site.name!r}", (*site.batch_shape, site.cardinality)
    if not hasattr(distribution, "probs"):
        raise ModelError(
            f"Expected a {site.distribution.__name__} distribution from {where}; got {type(distribution).__name__}."
        )
    probs = Finite(site.distribution, site.support).distribution_params(distribution)["probs"]
    try:
        return probs.to(like).expand(shape)
    except RuntimeError:
        raise ModelError(f"Expected probabilities of shape {shape} from {where}; got {tuple(probs.shape)}.") from None


def _as_event(block: Block, base: Any) -> Any:
    """A normal whose batch holds the elements of a block of vectors, as one over these vectors."""
    if len(block.sites) > 1 or len(base.event_shape) >= block.family.event_dims[0]:
        return base
    shape = block.batch_shape + block.event_shapes[0]
    try:
        whole = base.expand(block.sites[0].shape)
    except RuntimeError:
        return base
    return dist.Normal(whole.loc.reshape(shape), whole.scale.reshape(shape))


def _names_of(block: Block) -> str:
    update = block.update
    return str(update[0] if update is not None else tuple(s.name for s in block.sites))


def _base(distribution: object) -> Any:
    """The distribution inside wrappers that keep its values."""
    while hasattr(distribution, "base_dist"):
        if not all(isinstance(t, ReshapeTransform) for t in getattr(distribution, "transforms", ())):
            break
        distribution = distribution.base_dist
    return distribution


__all__ = [
    "DependentElements",
    "Posteriors",
    "conditional_probabilities",
    "discrete_distribution",
    "marginals",
    "natural_of",
    "posteriors",
    "probabilities_of",
    "quantiles_of",
    "quantiles_of_block",
    "responsibilities",
    "shaped",
]
