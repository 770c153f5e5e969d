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

Table = tuple[Tensor, Tensor, Tensor]
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


class _Sum:
    """The sum of a function times a density over even and odd nodes; its size about the middle and at the ends."""

    def __init__(self, like: Tensor) -> None:
        self.halves = torch.zeros_like(like), torch.zeros_like(like)
        self.size, self.ends = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, number: int, value: Tensor, density: Tensor) -> None:
        self.halves[number % 2].addcmul_(value, density)

    def add_size(self, size: Tensor, is_end: bool) -> None:
        if is_end:
            self.ends += size
        else:
            self.size += size

    @property
    def is_settled(self) -> Tensor:
        """Whether both halves agree, and the ends add nothing: one flag."""
        even, odd = self.halves
        size = torch.maximum((even + odd).abs(), self.size)
        return (((even - odd).abs() <= _RESOLVED_FUNCTION * size) & (self.ends <= _SETTLED * size)).all()


def on_grid(
    integrand: Integrand, left: Tensor, right: Tensor, count: int, rows: int, like: Tensor, demands: Demands
) -> tuple[Table, Integrals] | None:
    """Tables on ``count`` nodes between ends ``[*shape]``, of which ``rows`` are taken at a time, with the integrals;
    None where these do not resolve a density, or a function under it, or the square of its value.
    """
    left, right = left.to(like.dtype), right.to(like.dtype)
    low = left.double()
    step = (right.double() - low) / count
    table = like.new_empty(count, *left.shape)
    numbers = torch.arange(count, dtype=torch.float64, device=left.device)
    probes = numbers.new_tensor(demands.probes(count)).reshape(-1, 1)
    waves = torch.stack([(7 / 8 * math.pi * numbers).cos(), (7 / 8 * math.pi * numbers).sin()])
    waves = torch.cat([waves, (probes - numbers).sinc()])
    spectrum, heights = waves.new_zeros(len(waves), left.numel()), torch.zeros_like(low)
    density_sum, square_sum, sums = _Sum(low), _Sum(low), list[_Sum]()
    level: Tensor | None = None
    for first in sorted(range(0, count, rows), key=lambda i: abs(2 * i + rows - count)):  # from the middle
        taken = range(first, min(first + rows, count))
        own = (
            numbers[first : taken.stop] if level is not None else torch.cat([numbers[first : taken.stop], probes[:, 0]])
        )
        places = torch.addcmul(low, step, (own + 0.5).reshape(-1, *[1] * low.ndim))
        log_density, values, functions = integrand(places)
        if level is None:
            log_density, beside = log_density[: len(taken)], log_density[len(taken) :]
            level = log_density.amax(0)
            spectrum[2:] -= ((beside - level) / 2).exp().reshape(len(probes), left.numel())
        log_density -= level
        table[first : taken.stop] = log_density
        heights += table[first : taken.stop].sum(0)  # while they are in the cache
        root = log_density.mul_(0.5).exp_()
        spectrum.addmm_(waves[:, first : taken.stop], root.reshape(len(taken), -1))
        density = root.square_()
        by_element = density.reshape(*density.shape[:2], -1)
        weighed = [(v, density if e is None else by_element[..., e]) for v, e in functions]
        sums = sums or [_Sum(value[0]) for value, _ in weighed]
        for i, number in enumerate(taken):
            density_sum.halves[0].add_(density[i])
            for found, (value, weight) in zip(sums, weighed, strict=True):
                found.add(number, value[i], weight[i])
            is_end = number in (0, count - 1)
            if is_end or abs(2 * number + 1 - count) < _MIDDLE:
                density_sum.add_size(density[i], is_end)
                square_sum.add_size(values[i].square() * density[i], is_end)
                for found, (value, weight) in zip(sums, weighed, strict=True):
                    found.add_size((value[i] * weight[i]).abs(), is_end)
    total, settled = density_sum.halves[0], [square_sum, *sums]
    resolved = spectrum[:2].square().sum(0).reshape(total.shape) <= demands.resolved**2 * total
    resolved &= (spectrum[2:].square() <= _BETWEEN**2 * total.reshape(1, -1)).all(0).reshape(total.shape)
    resolved &= density_sum.ends <= math.exp(-demands.enough) / count * total
    is_known = (resolved & total.isfinite() & heights.isfinite()).all()
    if not bool(torch.stack([is_known, *(s.is_settled for s in settled)]).all()):  # one read
        return None
    log_total = (total * step).log()
    table -= log_total.to(like.dtype)
    expectations = [
        (s.halves[0] + s.halves[1]) / (total if e is None else total.reshape(len(total), -1)[:, e])
        for s, (_, e) in zip(sums, functions, strict=True)
    ]
    assert level is not None
    return (left.unsqueeze(-1), right.unsqueeze(-1), table.movedim(0, -1)), Integrals(level + log_total, expectations)


def cut(places: Tensor, values: Tensor, depth: float) -> tuple[Tensor, Tensor] | None:
    """Where log densities known at places ``[K, *shape]`` in ascending order have fallen by a depth, left and right
    ``[*shape]``; None where one does not by the ends.
    """
    drop = values - values.amax(0) + depth
    above = drop > 0
    if not bool((values.amax(0).isfinite() & ~(above[0] | above[-1])).all()):
        return None
    above = above.int()
    first, last = above.argmax(0)[None], (len(above) - 1 - above.flip(0).argmax(0))[None]

    def crossing(inside: Tensor, outside: Tensor) -> Tensor:
        near, far = drop.gather(0, inside), drop.gather(0, outside).clamp(min=-10 * depth)
        start = places.gather(0, inside)
        return (start + (places.gather(0, outside) - start) * near / (near - far))[0]

    return crossing(first, first - 1), crossing(last, last + 1)


__all__ = ["ANY", "LOWEST", "SMOOTH", "Demands", "Integrals", "Integrand", "Table", "cut", "on_grid"]
