"""Tables of smooth densities on a grid of equal steps, with the expectations of functions, in one pass over its nodes.

A sum over nodes of equal steps h integrates a density over the line, which falls to nothing at both ends, up to its
Fourier transform at 2π / h: for what is analytic that is exponentially small, and a grid takes a third of the nodes
that panels do. It is right where the square root of the density has nothing at frequencies near π / h, for then its
square has nothing near twice that; the root is also where a kink in a tail shows. How little is nothing depends on what
is known of the density (:class:`Demands`): under a smooth one a weak kink is as high as the root may be. What nodes
cannot tell from something slower, such as a wave of period h, is seen between them: there the root is the sum of sincs
through those at the nodes. A density with a kink, or narrow beside its tails, is not resolved, and :mod:`.panels` takes
it.

Source: Trefethen and Weideman 2014, The Exponentially Convergent Trapezoidal Rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: What a function times the density may have at the highest frequency of the grid, and at the outermost nodes, as
#: shares of the sum of its size.
_RESOLVED_FUNCTION, _SETTLED = 1e-4, 1e-9
#: How far the root of a density may be between nodes from what it is by those at the nodes, as that share.
_BETWEEN = 1e-7
_GOLDEN = (math.sqrt(5) - 1) / 2
#: So many nodes, half of them on either side, are about the middle.
_MIDDLE = 7
#: A log density is kept down to this below its maximum.
LOWEST = -1e4

PanelTable = tuple[Tensor, Tensor, Tensor]
#: It takes places on the line ``[L, *shape]``, and gives the log density there, up to a constant, the values that the
#: places stand for, and functions: each with values ``[L, starts, *own]``, and which element of ``shape[1:]``, counted
#: in order, each of its own is of, if not its own.
Integrand = Callable[[Tensor], tuple[Tensor, Tensor, list[tuple[Tensor, Tensor | None]]]]


class Demands(NamedTuple):
    """What is asked of a grid.

    Attributes:
        counts: numbers of nodes, of which the first that resolves the density is taken.
        depth: by how much the logarithm of the density has fallen from its maximum where it is cut.
        enough: by how much the outermost nodes are below its average, at least.
        resolved: what the root of the density may have at 7/8 of the highest frequency of the grid, as a share of the
            root of the sum of the density, which is a third of the sum of the root.
        between: where the root is looked at between nodes too, as shares of the grid, from its middle.
    """

    counts: Sequence[int]
    depth: float
    enough: float
    resolved: float
    between: Sequence[float]

    def probes(self, count: int) -> list[float]:
        """The numbers of nodes, with a fraction of its own each, that stand for places between the nodes."""
        return [math.floor(count * (0.5 + share)) + (i + 1) * _GOLDEN % 1 for i, share in enumerate(self.between)]


#: Of a density whose logarithm is a sum of powers and exponentials of the place: what its root has at high frequencies
#: falls on, and that of its square is the square of it.
SMOOTH = Demands((36, 48), 38.0, 27.0, 5e-6, ())
#: Of any density: a kink has in its square about what it has in its root, and has to be below 1e-9 itself.
ANY = Demands((36, 48, 60, 72, 96), 42.0, 37.0, 2e-9, (-0.15, -0.06, 0.0, 0.08, 0.17))


class Integrals(NamedTuple):
    """The log of the integral of each density ``[*shape]``, and the expectation of each function ``[starts, *own]``."""

    log_normalizer: Tensor
    expectations: list[Tensor]


class Sum:
    """The sum of a function times densities ``[*shape]`` over even and odd nodes; its size about the middle and at the
    ends.
    """

    def __init__(self, even: Tensor, odd: Tensor, size: Tensor, ends: Tensor) -> None:
        self.halves, self.size, self.ends = (even, odd), size, ends

    @classmethod
    def of_none(cls, like: Tensor) -> Sum:
        return cls(*(torch.zeros_like(like) for _ in range(4)))

    def add(self, value: Tensor, density: Tensor, nodes: range, count: int) -> None:
        """Take in a function at some nodes of ``count``, and the density there, ``[nodes, *shape]`` both."""
        if len(nodes) == 1:
            self.halves[nodes.start % 2].addcmul_(value[0], density[0])
        else:
            parts = value * density
            for i in range(2):
                self.halves[(nodes.start + i) % 2].add_(parts[i::2].sum(0))
        self.add_size(value, density, nodes, count)

    def add_size(self, value: Tensor, density: Tensor, nodes: range, count: int, power: int = 1) -> None:
        """Take in its size alone, or that of a power of it, of those of the nodes that are about the middle or the
        ends.
        """
        middle, first = middle_of(count), nodes.start
        if own := range(max(middle.start, first), min(middle.stop, nodes.stop)):
            inner = slice(own.start - first, own.stop - first)
            self.size.add_((value[inner] ** power * density[inner]).abs_().sum(0))
        for end in (0, count - 1):
            if end in nodes:
                self.ends.add_((value[end - first] ** power * density[end - first]).abs_())

    @property
    def total(self) -> Tensor:
        """Over all nodes."""
        return self.halves[0] + self.halves[1]

    @property
    def is_settled(self) -> Tensor:
        """Whether both halves agree, and the ends add nothing: one flag."""
        even, odd = self.halves
        size = torch.maximum((even + odd).abs(), self.size)
        return (((even - odd).abs() <= _RESOLVED_FUNCTION * size) & (self.ends <= _SETTLED * size)).all()


class Waves(NamedTuple):
    """What the root of a density at the nodes is multiplied by.

    Attributes:
        matrix: the two waves of 7/8 of the highest frequency, and the sums of sincs that give the root at places
            between the nodes, ``[2 + probes, count]``.
        places: the nodes, in numbers of them, and these places after them.
    """

    matrix: Tensor
    places: Tensor

    @classmethod
    def of(cls, demands: Demands, count: int, device: torch.device) -> Waves:
        numbers = torch.arange(count, dtype=torch.float64, device=device)
        probes = numbers.new_tensor(demands.probes(count))
        waves = torch.stack([(7 / 8 * math.pi * numbers).cos(), (7 / 8 * math.pi * numbers).sin()])
        return cls(torch.cat([waves, (probes.reshape(-1, 1) - numbers).sinc()]), torch.cat([numbers, probes]))


class Sums(NamedTuple):
    """What one pass over the nodes of a grid finds of densities ``[*shape]``, each divided by e to the ``level``.

    Attributes:
        level: of each; its log density at the nodes is at most about this.
        spectrum: the root of each times :class:`Waves`, less the root at the places between, ``[2 + probes, *shape]``.
        heights: the sum of the log density over the nodes, which is finite where all of them are.
        density, square, functions: of 1, of the square of the value, which has no halves, and of each function.
    """

    level: Tensor
    spectrum: Tensor
    heights: Tensor
    density: Sum
    square: Sum
    functions: list[Sum]

    def are_resolved(self, count: int, demands: Demands) -> bool:
        """Whether the grid is fine and wide enough for each density, each function and the square of the value."""
        total = self.density.total
        resolved = self.spectrum[:2].square().sum(0) <= demands.resolved**2 * total
        resolved &= (self.spectrum[2:].square() <= _BETWEEN**2 * total).all(0)
        resolved &= self.density.ends <= math.exp(-demands.enough) / count * total
        is_known = (resolved & total.isfinite() & self.heights.isfinite()).all()
        settled = [found.is_settled for found in (self.square, *self.functions)]
        return bool(torch.stack([is_known, *settled]).all())  # one read

    def integrals(self, step: Tensor, elements: Sequence[Tensor | None]) -> Integrals:
        """The integrals, of functions each of whose own are of the elements given, by nodes that are a step apart."""
        total = self.density.total
        expectations = [
            s.total / (total if e is None else total.reshape(len(total), -1)[:, e])
            for s, e in zip(self.functions, elements, strict=True)
        ]
        return Integrals(self.level + (total * step).log(), expectations)


def middle_of(count: int) -> range:
    """The nodes about the middle."""
    return range((count - _MIDDLE - 1) // 2 + 1, (count + _MIDDLE) // 2)


def on_grid(
    integrand: Integrand, left: Tensor, right: Tensor, count: int, rows: int, like: Tensor, demands: Demands
) -> tuple[PanelTable, Integrals] | None:
    """Tables on ``count`` nodes between ends ``[*shape]``, of which ``rows`` are taken at a time, with the integrals;
    None where these do not resolve a density, or a function under it, or the square of its value.
    """
    left, right = left.to(like.dtype), right.to(like.dtype)
    low = left.double()
    step = (right.double() - low) / count
    table = like.new_empty(count, *left.shape)
    waves, numbers = Waves.of(demands, count, left.device)
    spectrum, heights = waves.new_zeros(len(waves), left.numel()), torch.zeros_like(low)
    density_sum, square_sum, sums = Sum.of_none(low), Sum.of_none(low), list[Sum]()
    elements: list[Tensor | None] = []
    level: Tensor | None = None
    for first in sorted(range(0, count, rows), key=lambda i: abs(2 * i + rows - count)):  # from the middle
        taken = range(first, min(first + rows, count))
        own = numbers[first : taken.stop]
        own = own if level is not None else torch.cat([own, numbers[count:]])
        log_density, values, functions = integrand(places_of(low, step, own))
        if level is None:
            log_density, beside = log_density[: len(taken)], log_density[len(taken) :]
            level = log_density.amax(0)
            spectrum[2:] -= ((beside - level) / 2).exp().reshape(len(beside), left.numel())
        log_density -= level
        table[first : taken.stop] = log_density
        heights += table[first : taken.stop].sum(0)  # while they are in the cache
        root = log_density.mul_(0.5).exp_()
        spectrum.addmm_(waves[:, first : taken.stop], root.reshape(len(taken), -1))
        density = root.square_()
        by_element = density.reshape(*density.shape[:2], -1)
        weighed = [(v, density if e is None else by_element[..., e]) for v, e in functions]
        sums, elements = sums or [Sum.of_none(value[0]) for value, _ in weighed], [e for _, e in functions]
        density_sum.add(density.new_ones(()).expand_as(density), density, taken, count)
        square_sum.add_size(values, density, taken, count, 2)
        for found, (value, weight) in zip(sums, weighed, strict=True):
            found.add(value[: len(taken)], weight, taken, count)
    assert level is not None
    found_sums = Sums(level, spectrum.reshape(-1, *low.shape), heights, density_sum, square_sum, sums)
    if not found_sums.are_resolved(count, demands):
        return None
    integrals = found_sums.integrals(step, elements)
    table -= (integrals.log_normalizer - level).to(like.dtype)
    return (left.unsqueeze(-1), right.unsqueeze(-1), table.movedim(0, -1)), integrals


def places_of(low: Tensor, step: Tensor, numbers: Tensor) -> Tensor:
    """The places ``[L, *shape]`` of nodes by their numbers ``[L]``, from lower ends, a step apart."""
    return torch.addcmul(low, step, (numbers + 0.5).reshape(-1, *[1] * low.ndim))


def cut(places: Tensor, values: Tensor, depth: float) -> tuple[Tensor, Tensor] | None:
    """Where log densities known at places ``[K, *shape]`` in ascending order have fallen by a depth, left and right
    ``[*shape]``; None where one does not by the ends.
    """
    drop = values - values.amax(0) + depth
    if not bool((values.amax(0).isfinite() & (drop[0] <= 0) & (drop[-1] <= 0)).all()):
        return None
    return _crossings(places, drop, depth)


def cut_within(left: Tensor, right: Tensor, table: Tensor, depth: float) -> tuple[Tensor, Tensor]:
    """Where log densities on a grid between ends ``[*shape]``, of which there is a table ``[*shape, count]``, have
    fallen by a depth; an end itself, where one does not by then.
    """
    count = table.shape[-1]
    step = (right.double() - left.double()) / count
    numbers = torch.arange(-1, count + 1, dtype=torch.float64, device=table.device)
    drop = (table - table.amax(-1, keepdim=True) + depth).movedim(-1, 0).double()
    beyond = torch.full_like(drop[:1], -1e-9)  # half a step outside of the grid at least
    low, high = _crossings(places_of(left.double(), step, numbers), torch.cat([beyond, drop, beyond]), depth)
    return low.maximum(left), high.minimum(right)


def _crossings(places: Tensor, drop: Tensor, depth: float) -> tuple[Tensor, Tensor]:
    """The first place and the last where a function known at some ``[K, *shape]``, negative at both ends, is zero."""
    above = (drop > 0).int()
    first, last = above.argmax(0)[None], (len(above) - 1 - above.flip(0).argmax(0))[None]

    def crossing(inside: Tensor, outside: Tensor) -> Tensor:
        near, far = drop.gather(0, inside), drop.gather(0, outside).clamp(min=-10 * depth)
        start = places.gather(0, inside)
        return (start + (places.gather(0, outside) - start) * near / (near - far))[0]

    return crossing(first, first - 1), crossing(last, last + 1)


__all__ = [
    "ANY",
    "LOWEST",
    "SMOOTH",
    "Demands",
    "Integrals",
    "Integrand",
    "PanelTable",
    "Sum",
    "Sums",
    "Waves",
    "cut",
    "cut_within",
    "middle_of",
    "on_grid",
    "places_of",
]
