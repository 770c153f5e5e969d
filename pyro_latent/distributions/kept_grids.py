"""Grids on which densities are taken again and again, with the functions kept at their nodes.

While the sites about it move, the functions of a site do not, nor does the grid: a density there costs a loop over
numbers at hand, which Numba compiles (:mod:`.grid_kernel`), and neither a function nor a pass over memory for each
operation. That is for large plates on a CPU: a small one takes as long as its operations are many, and another device
has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .grids import Demands, Integrals, PanelTable, Sum, Sums, Waves, middle_of, places_of

#: So many numbers of functions are kept, 256 MiB at most, and no fewer than pay for the kernel.
_MOST, _LEAST = 2**25, 2**18
#: Functions at values ``[L, *shape]`` that the places ``[L, *shape]`` stand for, each ``[L, *shape]``, with the values.
FunctionsAt = Callable[[Tensor], tuple[Tensor, list[Tensor]]]


class KeptGrid(NamedTuple):
    """Functions at the nodes of grids, and at the places between these that show whether they are fine enough.

    Attributes:
        left, right: the ends ``[*shape]``.
        num_nodes: of each.
        demands: what is asked of densities there.
        values: ``[N, functions, count + probes]``, with N elements of the shape.
        squares: of the value at the outermost nodes and about the middle, ``[N, 2 + nodes]``.
    """

    left: Tensor
    right: Tensor
    num_nodes: int
    demands: Demands
    values: Tensor
    squares: Tensor

    def is_of(self, left: Tensor, right: Tensor, count: int, demands: Demands) -> bool:
        """Whether these are the nodes of a grid."""
        same = self.num_nodes == count and self.demands is demands and self.left.shape == left.shape
        return same and torch.equal(self.left, left) and torch.equal(self.right, right)


@lru_cache
def _kernel() -> Any:
    """The module of the kernel; None where Numba is not installed."""
    try:
        from . import grid_kernel
    except ImportError:
        return None
    return grid_kernel


def keeping_pays(num_functions: int, count: int, size: int, device: torch.device) -> bool:
    """Whether so many functions at so many nodes of so many elements are worth keeping."""
    return device.type == "cpu" and _LEAST <= num_functions * count * size <= _MOST and _kernel() is not None


def kept_grid(
    functions_at: FunctionsAt, left: Tensor, right: Tensor, count: int, demands: Demands, rows: int, num_functions: int
) -> KeptGrid:
    """The functions, of which there are so many, at nodes between ends ``[*shape]``, ``rows`` of them at a time."""
    size, shape = left.numel(), left.shape
    low = left.double()
    step = (right.double() - low) / count
    numbers = Waves.of(demands, count, left.device).places
    kept = low.new_empty(size, num_functions, len(numbers))
    squared = [0, count - 1, *middle_of(count)]
    squares = low.new_empty(size, len(squared))
    for first in range(0, len(numbers), rows):
        own = numbers[first : first + rows]
        values, functions = functions_at(places_of(low, step, own))
        for j, value in enumerate(functions):
            kept[:, j, first : first + len(own)] = value.expand(len(own), *shape).reshape(len(own), size).T
        for i, number in enumerate(squared):
            if first <= number < first + len(own):
                squares[:, i] = values[number - first].reshape(size).square()
    return KeptGrid(left, right, count, demands, kept, squares)


def on_kept_grid(kept: KeptGrid, slopes: Tensor, num_sums: int) -> tuple[PanelTable, Integrals] | None:
    """Tables and integrals of densities whose logarithms are sums of the functions, as :func:`.grids.on_grid` has them.

    Args:
        slopes: what each function is multiplied by, float64 ``[functions, N]``.
        num_sums: of so many functions, the first ones, there are expectations.
    """
    kernel, count, shape = _kernel(), kept.num_nodes, kept.left.shape
    step = ((kept.right.double() - kept.left.double()) / count).reshape(-1)
    waves = Waves.of(kept.demands, count, kept.left.device).matrix
    rows = kernel.BEFORE_WAVES + len(waves) + kernel.FOR_A_FUNCTION * num_sums
    found, table = slopes.new_empty(rows, slopes.shape[1]), kept.left.new_empty(slopes.shape[1], count)
    middle = middle_of(count)
    arrays = [t.detach().contiguous().numpy() for t in (kept.values, kept.squares, slopes, waves, step)]
    kernel.sums_of_nodes(*arrays, (middle.start, middle.stop), table.numpy(), found.numpy())
    level, heights, total, density_ends, square, square_ends, *others = found.reshape(rows, *shape)
    zero = torch.zeros_like(total)
    of_functions = [Sum(*others[i : i + 4]) for i in range(len(waves), len(others), kernel.FOR_A_FUNCTION)]
    sums = Sums(
        level,
        found[kernel.BEFORE_WAVES : kernel.BEFORE_WAVES + len(waves)].reshape(-1, *shape),
        heights,
        Sum(total, zero, total, density_ends),
        Sum(zero, zero, square, square_ends),
        of_functions,
    )
    if not sums.are_resolved(count, kept.demands):
        return None
    left, right = kept.left.unsqueeze(-1), kept.right.unsqueeze(-1)
    return (left, right, table.reshape(*shape, count)), sums.integrals(step.reshape(shape), [None] * num_sums)


__all__ = ["FunctionsAt", "KeptGrid", "keeping_pays", "kept_grid", "on_kept_grid"]
