"""The components of a model: values of discrete sites that choose among the elements of a plate of latents.

In a mixture ``mu[z]`` the values of z are the components; in a topic model they are the topics, and in a hidden Markov
model, whose sites ``z_0``, ``z_1``, … all choose among the same elements, the states. What a value chooses is read from
the expected log factors. A posterior of the discrete sites in which one component takes over the place of another is
the held one with the weights of the two added up, in every factor: it is that of the sites mapped value by value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import ModelError
from ..expressions.axes import axis_labels
from .blocks import BlockKey, Means, State
from .discrete import DiscretePosterior
from .factors import DiscreteFactor
from .groups import connected
from .posterior import responsibilities
from .program import Program

#: A block and one of its dimensions.
_Place = tuple[BlockKey, int]


@dataclass(frozen=True, eq=False)
class ComponentSites:
    """The values of discrete sites that choose among the same elements.

    Attributes:
        program: the model.
        sites: the names of the sites, which have equally many values.
        count: the number of values, K.
        dims: by block whose elements they choose one by one, the batch dimension along which they do.
    """

    program: Program
    sites: tuple[str, ...]
    count: int
    dims: Mapping[BlockKey, int]

    @cached_property
    def readings(self) -> list[tuple[int, ...]]:
        """By factor, the dimensions of its weights, after that of the starts, that run along the components."""
        own = set(self.sites)
        return [
            tuple(i + 1 for i, name in enumerate(f.layout.names) if name in own and f.shape[i] == self.count)
            for f in self.program.factors
        ]

    def mapped(self, held: DiscretePosterior, target: Tensor) -> DiscretePosterior:
        """The posterior of the sites whose value v has become ``target[v]``; its log Z and entropy are of no meaning.

        Args:
            held: a posterior of the discrete sites.
            target: the numbers of values, ``[K]``.
        """
        weights = [w.view_as(w) for w in held.weights]  # its sums are kept by the identity of these: never the same
        for i, dims in enumerate(self.readings):
            for dim in (d for d in dims if weights[i].shape[d] == self.count):
                weights[i] = torch.zeros_like(weights[i]).index_add_(dim, target, weights[i])
        return held._replace(weights=tuple(weights))

    def probabilities(self, means: Means, target: Tensor) -> dict[str, Tensor]:
        """The exact posterior of every discrete site, ``[starts, plates..., values]``, with such values mapped."""
        found = responsibilities(self.program, means, self.program.discrete)
        return found | {n: torch.zeros_like(found[n]).index_add_(-1, target, found[n]) for n in self.sites}

    def without(self, means: Means, component: int) -> dict[str, Tensor]:
        """The exact posterior of every discrete site given that none has the value ``component``."""
        shape = (1, self.count, *[1] * self.program.recording.max_plate_nesting)
        log = self.program.recording.like.new_zeros(shape)
        log[:, component] = -torch.inf
        return responsibilities(self.program, means, self.program.discrete, more=dict.fromkeys(self.sites, log))

    def permuted(self, state: State, target: Tensor) -> State:
        """A state whose component ``target[k]`` is the component k of another, where blocks have it element by element.

        Args:
            state: natural parameters.
            target: a permutation, ``[K]``.
        """
        order = target.argsort()
        moved = dict(state)
        for key, dim in self.dims.items():
            moved[key] = type(state[key])(**{n: t.index_select(1 + dim, order) for n, t in state[key].items()})
        return moved

    def masses(self, held: DiscretePosterior) -> Tensor:
        """The expected number of observations of each component, float64 ``[starts, K]``; scales of plates count."""
        left, found = set(self.sites), []
        for factor, dims, weight in zip(self.program.factors, self.readings, held.weights, strict=True):
            for dim in (d for d in dims if weight.shape[d] == self.count):
                names = [layout.names[dim - 1] for layout in factor.layouts]
                rows = [number for number, name in enumerate(names) if name in left]
                left -= set(names)
                if rows:
                    each = weight.movedim(dim, 1)
                    at, several = 1 + len(factor.layout.readings), len(rows) < len(names)
                    if several and weight.shape[at] > 1:
                        each = each.index_select(at, torch.tensor(rows, device=weight.device))
                    found.append(each.flatten(2).sum(-1, dtype=torch.float64))
        return torch.stack(found).sum(0)

    def losses(self, means: Means, held: DiscretePosterior) -> Tensor:
        """How far L̄ falls, in nats, where all that is component k becomes component l as that is: ``[starts, K, K]``.

        The densities of discrete sites are left out: what they say of the sizes of components follows them.
        """
        total = held.log_normalizer.new_zeros(len(held.weights[0]), self.count, self.count)
        for factor, dims, weight in zip(self.program.factors, self.readings, held.weights, strict=True):
            if len(dims) != 1 or _is_prior(factor, self.program) or weight.shape[dims[0]] == 1:
                continue
            value = factor.value(means).expand_as(weight)
            value = value.clamp(min=torch.finfo(value.dtype).min)
            each, taken_over = (t.movedim(dims[0], 1).flatten(2) for t in (weight, value))
            total = total + each @ taken_over.mT
        return total.diagonal(dim1=1, dim2=2).unsqueeze(-1) - total


def components_of(program: Program) -> list[ComponentSites]:
    """The components of a model, those of one kind together.

    Raises:
        ModelError: if no discrete site chooses among elements of latents.
    """
    choosing: dict[_Place, list[tuple[set[str], bool]]] = {}
    for factor in program.factors:
        for place, names, is_direct in _choices_of(factor, _is_prior(factor, program)):
            choosing.setdefault(place, []).append((names, is_direct))
    sites = {site.name: site for site in program.discrete}
    found = []
    groups = [set().union(*(own for own, _ in chosen)) for chosen in choosing.values()]
    for names in map(set, connected(dict.fromkeys(name for group in groups for name in group), groups)):
        own = tuple(name for name in sites if name in names)
        counts = {sites[name].cardinality for name in own}
        places = {place: chosen for place, chosen in choosing.items() if names & chosen[0][0]}
        dims = {key: dim for (key, dim), chosen in places.items() if all(direct for _, direct in chosen)}
        if len(counts) == 1:
            found.append(ComponentSites(program, own, counts.pop(), dims))
    if not found:
        raise ModelError(_nothing(program))
    return found


def _is_prior(factor: DiscreteFactor, program: Program) -> bool:
    """Whether a factor is the density of a discrete site, or of several."""
    return any(row.site in program.recording.discrete for row in factor.rows)


def _choices_of(factor: DiscreteFactor, is_prior: bool) -> Iterator[tuple[_Place, set[str], bool]]:
    """The places that the values of sites choose in latents with a distribution: block and dimension, the sites' names,
    and whether each value chooses the element of its own number.

    ``is_prior``: the factor is the density of a discrete site. Within an event it chooses probabilities, no component.
    """
    ndim = len(factor.shape)
    for moment in (m for piece in factor.pieces for m in piece.moments if not m.block.is_point):
        joint, plates = moment.block.joint_normal, len(moment.block.batch_shape)
        for dim, axis in enumerate(moment.axes):
            for label in () if is_prior and dim >= plates and not joint else axis_labels(axis):
                if label + ndim < len(factor.layout.names):
                    names, size = {x.names[label + ndim] for x in factor.layouts}, factor.shape[label + ndim]
                    is_direct = isinstance(axis, int) and dim < plates and moment.block.batch_shape[dim] == size
                    yield (moment.block.key, dim), names, is_direct


def _nothing(program: Program) -> str:
    """What is said of a model without components."""
    if program.mean_field:
        got = f"{', '.join(map(repr, program.mean_field))} with elements that are independent in q"
    elif program.discrete:
        got = f"{', '.join(repr(s.name) for s in program.discrete[:5])}, whose values choose no element of such a plate"
    else:
        got = "no discrete site"
    return (
        "Expected components to merge: a discrete site with an exact posterior whose values choose among elements of "
        f'latents with a prior, such as mu[z] of mu in pyro.plate("components", K); got {got}. Leave out merges=True.'
    )


__all__ = ["ComponentSites", "components_of"]
