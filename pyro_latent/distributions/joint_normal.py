"""The normal distribution of several sites at once, by what it has at the pairs of elements that meet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from ..errors import ArgumentError
from ..settings import check_memory
from ..values import broadcast_shapes
from .elimination import Elimination, Factorization


class SiteSlice(NamedTuple):
    """A site in a joint distribution: where its elements begin, and its shapes. All pairs of elements of an event are
    among those that are known, so that its marginals have covariances.
    """

    name: str
    offset: int
    batch_shape: Size
    event_shape: Size

    @property
    def is_vector(self) -> bool:
        return bool(self.event_shape)

    @property
    def shape(self) -> Size:
        return self.batch_shape + self.event_shape

    @property
    def elements(self) -> slice:
        return slice(self.offset, self.offset + self.shape.numel())


class Pairs(NamedTuple):
    """The pairs of elements ``rows[p] ≥ columns[p]`` that a joint distribution has a precision at, the first those of
    an element with itself. ``parts`` are the sites, and ``order`` says in which order they are drawn.
    """

    rows: Tensor
    columns: Tensor
    parts: tuple[SiteSlice, ...]
    order: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(part.shape.numel() for part in self.parts)

    @property
    def codes(self) -> Tensor:
        """Each pair as one number, ``[P]``."""
        return self.rows * self.size + self.columns


class Plans:
    """The eliminations of some pairs, made when they are asked for."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    @cached_property
    def at_once(self) -> Elimination:
        return Elimination(self.pairs.size, self.pairs.rows, self.pairs.columns)

    @cached_property
    def in_turn(self) -> Elimination:
        """That by site, in the reverse of the order that sites are drawn in."""
        stages = torch.empty(self.pairs.size, dtype=torch.long)
        for turn, i in enumerate(self.pairs.order):
            stages[self.pairs.parts[i].elements] = turn
        return Elimination(self.pairs.size, self.pairs.rows, self.pairs.columns, stages)


class JointNormal(TorchDistribution):
    """The normal distribution of the elements of several sites, laid out one after another in a vector.

    Args:
        loc: ``batch + (n,)``.
        precision: of each pair of elements that meet, ``batch + (P,)``; zero at all others.
        plans: which pairs these are.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "precision": constraints.real_vector,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, precision: Tensor, plans: Plans, *, validate_args: bool | None = None) -> None:
        self.loc, self.precision, self.plans = loc, precision, plans
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> JointNormal:
        shape = Size(batch_shape)
        loc, precision = (t.expand(*shape, -1) for t in (self.loc, self.precision))
        return JointNormal(loc, precision, self.plans, validate_args=False)

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the sites, in the order of their elements."""
        return tuple(part.name for part in self.plans.pairs.parts)

    @cached_property
    def _factor(self) -> Factorization:
        return self.plans.at_once.factorize(self.precision.reshape(-1, self.precision.shape[-1]))

    @cached_property
    def _in_turn(self) -> tuple[Factorization, list[Tensor]]:
        """The factor by site, and what its steps hold of the location."""
        factor = self.plans.in_turn.factorize(self.precision.reshape(-1, self.precision.shape[-1]))
        linear = times(self.plans.pairs, self.precision.double(), self.loc.double())
        return factor, factor.forward(linear.reshape(-1, linear.shape[-1], 1))

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    def entropy(self) -> Tensor:
        half = self._factor.half_log_det.reshape(self.loc.shape[:-1]).to(self.loc)
        return 0.5 * self.loc.shape[-1] * (1 + math.log(2 * math.pi)) - half

    @cached_property
    def variance(self) -> Tensor:
        return self._covariances[..., : self.loc.shape[-1]]

    @cached_property
    def _covariances(self) -> Tensor:
        """Those of the pairs, ``batch + (P,)``."""
        return self._factor.covariances.reshape(self.precision.shape).to(self.loc)

    def part(self, site: str) -> SiteSlice:
        """Where a site is.

        Raises:
            ArgumentError: if it is not among the sites.
        """
        found = next((part for part in self.plans.pairs.parts if part.name == site), None)
        if found is None:
            raise ArgumentError(f"Expected one of the sites {list(self.sites)}; got {site!r}.")
        return found

    def split(self, value: Tensor) -> dict[str, Tensor]:
        """A vector ``[..., n]`` by site, each ``[...] + the site's shape``."""
        return {p.name: value[..., p.elements].reshape(value.shape[:-1] + p.shape) for p in self.plans.pairs.parts}

    def marginal(self, site: str) -> Any:
        """The distribution of a site: normal by element, and of its events as a whole where they have covariances."""
        part = self.part(site)
        lead = self.loc.shape[:-1]
        loc = self.loc[..., part.elements].reshape(lead + part.shape)
        if not part.is_vector:
            scale = self.variance[..., part.elements].sqrt().reshape(lead + part.shape)
            return dist.Normal(loc, scale, validate_args=False).to_event(len(part.event_shape))
        size = part.event_shape.numel()
        elements = torch.arange(part.offset, part.elements.stop).reshape(-1, size).to(self.loc.device)
        covariance = self._at(elements.unsqueeze(-1), elements.unsqueeze(-2)).reshape(
            *lead, *part.batch_shape, size, size
        )
        return dist.MultivariateNormal(loc.reshape(*lead, *part.batch_shape, size), covariance, validate_args=False)

    def _at(self, first: Tensor, second: Tensor) -> Tensor:
        """The covariances of pairs that are among the known."""
        size = self.loc.shape[-1]
        known, order = self.plans.pairs.codes.sort()
        wanted = torch.maximum(first, second) * size + torch.minimum(first, second)
        return self._covariances[..., order[torch.searchsorted(known, wanted)]]

    def covariance(self, site: str, other: str | None = None) -> Tensor:
        """The covariances of all elements of a site with all of another, by default itself: ``batch`` and the shapes of
        both.
        """
        first, second = self.part(site), self.part(other or site)
        numbers = (self.loc.shape[-1] + first.shape.numel()) * second.shape.numel()
        check_memory(f"the covariances of {first.name!r} and {second.name!r}", numbers, "Ask for smaller sites.")
        columns = self.loc.new_zeros(self.loc.shape[-1], second.shape.numel())
        columns[second.elements] = torch.eye(second.shape.numel(), dtype=columns.dtype, device=columns.device)
        found = self._factor.solve(columns.expand(self._factor.starts, *columns.shape))[:, first.elements]
        return found.reshape(self.loc.shape[:-1] + first.shape + second.shape).to(self.loc)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Vectors ``sample_shape + batch + (n,)``."""
        shape = Size(sample_shape) + self.loc.shape
        draws = Size(sample_shape).numel()
        values = self.loc.new_zeros(self._factor.starts, self.loc.shape[-1] + 1, draws, dtype=torch.float64)
        noise = [
            torch.randn(*s.shape[:3], draws, dtype=values.dtype, device=values.device) for s in self._factor.scales
        ]
        moved = self._factor.back(noise, values)[:, :-1].permute(2, 0, 1).reshape(shape)
        return self.loc + moved.to(self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(x) of vectors ``[..., n]``."""
        away = value - self.loc
        square = (away * times(self.plans.pairs, self.precision, away)).sum(-1)
        half = self._factor.half_log_det.reshape(self.loc.shape[:-1]).to(away)
        return half - 0.5 * (square + self.loc.shape[-1] * math.log(2 * math.pi))

    def given(self, turn: int, *drawn: Tensor) -> SiteGiven:
        """The distribution of the site that is drawn at a turn, given the values of those drawn before it."""
        return SiteGiven(self, turn, drawn)


def times(pairs: Pairs, precision: Tensor, vector: Tensor) -> Tensor:
    """Λx of precisions ``[..., P]`` at the pairs and vectors ``[..., n]``."""
    n = vector.shape[-1]
    rows, columns = pairs.rows[n:], pairs.columns[n:]
    found = precision[..., :n] * vector
    found = found.index_add(-1, rows, precision[..., n:] * vector[..., columns])
    return found.index_add(-1, columns, precision[..., n:] * vector[..., rows])


class SiteGiven(TorchDistribution):
    """A site of a joint normal distribution given values of those drawn before it.

    ``log_prob`` has for each element its log density given those before it and some of its own site, which add up to
    that of the site.

    Args:
        joint: the joint distribution.
        turn: which in the order of drawing.
        drawn: the values of the sites before, each of its site's shape with dimensions of draws on the left.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(self, joint: JointNormal, turn: int, drawn: Sequence[Tensor], batch_shape: Size | None = None) -> None:
        self.joint, self.turn, self.drawn = joint, turn, drawn
        pairs = joint.plans.pairs
        self.site = pairs.parts[pairs.order[turn]]
        if batch_shape is None:
            batch_shape = broadcast_shapes(Size(), *self._outer()) + self.site.batch_shape
        super().__init__(batch_shape, self.site.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> SiteGiven:
        return SiteGiven(self.joint, self.turn, self.drawn, Size(batch_shape))

    def _outer(self) -> list[Size]:
        """The dimensions on the left of the site's own that each thing given has."""
        lead = self.joint.loc.shape[:-1]
        return [beside(lead, 0, len(self.site.batch_shape)), *(outer for _, _, outer in self._drawn())]

    def _drawn(self) -> Iterator[tuple[SiteSlice, Tensor, Size]]:
        """The sites drawn before with their values, and the dimensions of these on the left of this site's own."""
        pairs, own = self.joint.plans.pairs, len(self.site.batch_shape)
        for i, value in zip(pairs.order, self.drawn, strict=False):
            other = pairs.parts[i]
            yield other, value, beside(value.shape[: value.ndim - len(other.shape)], len(other.batch_shape), own)

    def _values(self, lead: Size) -> Tensor:
        """The values drawn before, ``[S, n + 1, draws]``, in the draws of these dimensions."""
        loc = self.joint.loc
        values = loc.new_zeros(lead.numel(), loc.shape[-1] + 1, dtype=torch.float64)
        for other, value, outer in self._drawn():
            flat = value.reshape((*outer, other.shape.numel()))
            values[:, other.elements] = flat.expand((*lead, -1)).reshape(lead.numel(), -1).double()
        return self._by_start(values)

    def _by_start(self, values: Tensor) -> Tensor:
        starts = self.joint._in_turn[0].starts
        return values.reshape(-1, starts, values.shape[-1]).permute(1, 2, 0)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``sample_shape + batch + event``."""
        factor, parts = self.joint._in_turn
        shape = self._extended_shape(Size(sample_shape))
        lead = shape[: len(shape) - len(self.site.shape)]
        values = self._values(lead)
        noisy = [
            p
            if s.stage != self.turn
            else p + torch.randn(*p.shape[:3], values.shape[2], dtype=p.dtype, device=p.device)
            for s, p in zip(factor.plan.steps, parts, strict=True)
        ]
        found = factor.back(noisy, values, self.turn)[:, self.site.elements]
        return found.permute(2, 0, 1).reshape(shape).to(self.joint.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log densities of the site's batch shape, with the draws on the left."""
        factor, parts = self.joint._in_turn
        shape = broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        lead = shape[: len(shape) - len(self.site.shape)]
        values = self._values(lead)
        values[:, self.site.elements] = self._by_start(
            value.expand(shape).reshape(lead.numel(), self.site.shape.numel()).double()
        )
        found = factor.log_densities(values, parts, self.turn)[:, self.site.elements]
        found = found.permute(2, 0, 1).reshape(lead + self.site.shape)
        events = len(self.event_shape)
        return (found.sum(tuple(range(-events, 0))) if events else found).to(value)


def beside(shape: Size, had: int, own: int) -> Size:
    """The dimensions on the left of a site with ``had`` batch dimensions, on the left of one with ``own``: those of the
    plates that only one of them is in have size 1 there.
    """
    if own <= had:
        return Size((*shape, *[1] * (had - own))) if len(shape) else Size()
    gap = min(own - had, len(shape))
    return shape[: len(shape) - gap]


__all__ = ["JointNormal", "Pairs", "Plans", "SiteGiven", "SiteSlice", "times"]
