"""The sums of :mod:`.grids` over nodes where the functions are known, in one loop over densities, by Numba.

A density is some hundred numbers, which stay in the cache from its logarithm to its moments: a node costs two reads of
each function, and an exponential without a call: exp(x) = 2ⁿ exp(r) with |r| ≤ ½ log 2 and a Taylor polynomial. Adding
1.5 · 2⁵² rounds to an integer, which then stands in the last bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from ..jit import compile_function

#: Below this a log density counts as this: its exponential is nothing.
_NOTHING = -1400.0
_LOG2E, _ROUND = 1.4426950408889634, 1.5 * 2.0**52
_LOG2_HIGH, _LOG2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # their sum is log 2
_TAYLOR = tuple(1 / math.factorial(i) for i in range(13, -1, -1))
#: Products are added in one operation, and sums in any order; what is no number stays none.
_LOOPS = {"contract", "reassoc"}
#: The rows of what is found before those of the waves, and for each function.
BEFORE_WAVES, FOR_A_FUNCTION = 6, 4

_part = njit(error_model="numpy", fastmath=_LOOPS)


@njit(error_model="numpy", fastmath={"nnan", "nsz"})
def _maximum(numbers: Any) -> float:
    """The largest of some numbers; any number if there is one that is none."""
    found = numbers[0]
    for i in range(len(numbers)):
        found = max(found, numbers[i])
    return found


@_part
def _exponentials(numbers: Any, room: Any, out: Any) -> None:
    """exp of numbers from −700 to 700, with room for as many."""
    c = _TAYLOR
    for i in range(len(out)):
        shifted = numbers[i] * _LOG2E + _ROUND
        room[i] = shifted
        n = shifted - _ROUND
        r = numbers[i] - n * _LOG2_HIGH - n * _LOG2_LOW
        p = ((((((c[0] * r + c[1]) * r + c[2]) * r + c[3]) * r + c[4]) * r + c[5]) * r + c[6]) * r + c[7]
        out[i] = (((((p * r + c[8]) * r + c[9]) * r + c[10]) * r + c[11]) * r + c[12]) * r + c[13]
    bits = room.view(np.int64)
    for i in range(len(out)):
        bits[i] = (bits[i] + 1023) << 52
    for i in range(len(out)):
        out[i] *= room[i]


@_part
def _log_density(values: Any, slopes: Any, out: Any) -> None:
    """Σ_j η_j f_j at places, of functions ``[J, places]``; where a slope is 0, what the function is does not matter."""
    out[:] = 0.0
    for j in range(len(slopes)):
        if slopes[j] != 0.0:
            for k in range(len(out)):
                out[k] += slopes[j] * values[j, k]


def _sums_of_nodes(
    values: Any, squares: Any, slopes: Any, waves: Any, steps: Any, middle: tuple[int, int], table: Any, found: Any
) -> None:
    """Fill the normalized log densities ``table [N, count]``, and what is ``found [rows, N]``.

    Args:
        values: functions at the nodes and at the places between them, ``[N, J, count + probes]``; those after the
            first of them whose sums are found only add to the log density.
        squares: the squares of the value at the outermost nodes and those about the middle, ``[N, 2 + nodes]``.
        slopes: ``[J, N]``.
        waves: what the root of a density is multiplied by, ``[2 + probes, count]``.
        steps: between nodes, ``[N]``.
        middle: the first node about the middle, and the one after the last.
    """
    num_waves, count = waves.shape
    first, after = middle
    start = BEFORE_WAVES + num_waves
    num_functions = (len(found) - start) // FOR_A_FUNCTION
    num_places = values.shape[2]
    log_density, root = np.empty(num_places), np.empty(num_places)
    halves, room = np.empty(num_places), np.empty(num_places)
    even = np.empty(count)
    for k in range(count):
        even[k] = 1.0 - k % 2
    for n in range(len(values)):
        _log_density(values[n], slopes[:, n], log_density)
        heights = 0.0
        for k in range(count):
            heights += log_density[k]
        level = _maximum(log_density[:count])
        for k in range(num_places):
            log_density[k] -= level
            halves[k] = 0.5 * min(max(log_density[k], _NOTHING), -_NOTHING)
        _exponentials(halves, room, root)
        for w in range(num_waves):
            wave = 0.0
            for k in range(count):
                wave += waves[w, k] * root[k]
            found[BEFORE_WAVES + w, n] = wave if w < 2 else wave - root[count + w - 2]
        density, total = root, 0.0
        for k in range(count):
            density[k] *= density[k]
            total += density[k]
        square = 0.0
        for k in range(first, after):
            square += squares[n, 2 + k - first] * density[k]
        found[0, n], found[1, n], found[2, n] = level, heights, total
        found[3, n] = density[0] + density[count - 1]
        found[4, n] = square
        found[5, n] = squares[n, 0] * density[0] + squares[n, 1] * density[count - 1]
        for j in range(num_functions):
            row, evens, whole, size = start + FOR_A_FUNCTION * j, 0.0, 0.0, 0.0
            for k in range(count):
                part = values[n, j, k] * density[k]
                whole += part
                evens += even[k] * part
            for k in range(first, after):
                size += abs(values[n, j, k] * density[k])
            found[row, n], found[row + 1, n], found[row + 2, n] = evens, whole - evens, size
            found[row + 3, n] = abs(values[n, j, 0] * density[0]) + abs(values[n, j, count - 1] * density[count - 1])
        log_total = math.log(total * steps[n])
        for k in range(count):
            table[n, k] = log_density[k] - log_total


sums_of_nodes = compile_function(_sums_of_nodes, fastmath=_LOOPS)

__all__ = ["BEFORE_WAVES", "FOR_A_FUNCTION", "sums_of_nodes"]
