"""Where the densities of a batch on the line have their mass: from a mesh over all numbers to their modes, and out.

A density may have several modes. Each maximum on the mesh is a hill on which one is looked for, so that modes narrower
than the steps of the mesh are found by their slopes. Of two on one hill, as the mesh sees it, the lower is found only
if it is within what the higher one takes; few densities are looked at on a finer mesh, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError

#: The density is cut where its logarithm has fallen by this much from its maximum.
DEPTH = 46.0
#: Where float64 ends a density has fallen by this much: what is beyond is then less than what an integral may err by.
_LEFT_OVER = 23.0
_ZOOM_POINTS, _MOST_ZOOMS = 13, 40
_DOUBLINGS = 8
#: Of more hills, the highest on the mesh are looked at.
_MOST_HILLS = 16
#: A second mesh goes so far, with so many times the places that are computed at a time, at most so many: a wide mode
#: hides a narrow one from the first mesh, whose places are a factor of three apart.
_NEAR, _FINE, _FINEST, _LEAST_FINE = 1e6, 4, 2**14 + 1, 2**9
#: What is narrower than this share of its place is rounding, as of lgamma far out, where other modes are not.
_NOISE = 1e-9
#: Of two ends that are further apart, in widths of a mode, 36 places may all be where it is e^-2 of its summit.
_WIDTHS_SEEN = 60.0

#: A log density is rounding where its second difference over steps of this share of the place is more than half, and
#: more than this share of itself: what rounds as its last bits do is far down, and known to be.
_STEP, _MOST_ROUNDING, _LAST_BITS, _BISECTIONS = 2.0**-40, 0.5, 2.0**-40, 8

LogDensity = Callable[[Tensor], Tensor]


class NoTableError(ArgumentError):
    """A log density has no table: its integral is infinite, or does not settle."""


class Modes(NamedTuple):
    """The modes of a batch of densities, as many for each; one that has fewer has its highest again.

    Attributes:
        mesh: places over all numbers ``[M]``.
        values: the log densities there, ``[M, *shape]``.
        places: the modes ``[K, *shape]``; one that is lower than the highest by :data:`DEPTH` does not count.
        steps: the width of each, roughly, ``[K, *shape]``.
        most: the log density at the highest one, ``[*shape]``.
        masses: roughly the log of the mass of each, ``[K, *shape]``.
    """

    mesh: Tensor
    values: Tensor
    places: Tensor
    steps: Tensor
    most: Tensor
    masses: Tensor

    def are_in(self, left: Tensor, right: Tensor) -> bool:
        """Whether all of them are between two ends ``[*shape]``."""
        return bool(((left < self.places) & (self.places < right)).all())

    def are_narrow_in(self, left: Tensor, right: Tensor) -> bool:
        """Whether one of several is so narrow that some tens of places between two ends ``[*shape]`` may miss it."""
        most, largest = self.masses.max(0, keepdim=True)
        counts = self.masses > most - _LEFT_OVER  # rounding, as of lgamma far out, has modes of no mass
        places, steps = (torch.where(counts, t, t.gather(0, largest)) for t in (self.places, self.steps))
        several = places.amax(0) - places.amin(0) > 2 * steps.amin(0)
        return bool((several & (right - left > _WIDTHS_SEEN * steps.amin(0))).any())

    def edges(self, left: Tensor, right: Tensor) -> Tensor:
        """Ends of panels about each mode, at a few of its widths, between two ends ``[*shape]``: ``[E, *shape]``."""
        ones = [1] * self.steps.ndim
        widths = self.steps.new_tensor([-16.0, -4.0, -1.0, 1.0, 4.0, 16.0]).reshape(-1, *ones)
        apart = 1 + torch.arange(len(self.places), device=left.device).reshape(-1, *ones[1:]) / 64  # of the same mode
        found = (self.places + widths * apart * self.steps).flatten(0, 1)
        shares = torch.linspace(0.05, 0.95, len(found), dtype=found.dtype, device=left.device).reshape(-1, *ones[1:])
        return torch.where((found > left) & (found < right), found, left + (right - left) * shares)


def modes_of(log_density: LogDensity, shape: torch.Size, limit: float, like: Tensor, rows: int) -> Modes:
    """The modes of log densities, which take places ``[L, *shape]``, no further than a limit from 0; ``rows`` of them
    at a time are what is cheap.

    Raises:
        NoTableError: if one is highest at an end of the line, zero everywhere, or has not fallen where the line ends.
    """
    mesh = _coarse_mesh(limit, like)
    values = _along(log_density, mesh, shape)
    most, best = values.max(0)
    at_end = (best == 0) | (best == len(mesh) - 1) | ~most.isfinite()
    if bool(at_end.any()):
        raise NoTableError(
            "Expected a density with a finite integral; got one that is highest at an end of its support, infinite, or "
            "zero everywhere."
        )
    meshes = [(mesh, values)]
    if (count := _FINE * rows) >= _LEAST_FINE:
        fine = _mesh(min(limit, _NEAR), min(count, _FINEST), like)
        meshes.append((fine, _along(log_density, fine, shape)))
    places, steps, heights = _tops(log_density, meshes)
    most, highest = heights.max(0)
    if bool((torch.maximum(values[0], values[-1]) > most - _LEFT_OVER).any()):
        raise NoTableError(
            f"Expected a density whose tails fall; got one that is not below e^-{_LEFT_OVER:g} of its maximum where "
            "the line ends that float64 reaches."
        )
    counts = heights > most - DEPTH
    masses = heights + steps.log()
    places, steps, masses = (torch.where(counts, t, t.gather(0, highest[None])) for t in (places, steps, masses))
    return Modes(mesh, values, places, steps, most, masses)


def _tops(log_density: LogDensity, meshes: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Where the hills seen on meshes, with the log densities there, are highest, how wide they are, and how high,
    ``[K, *shape]`` each; what is rounding is at minus infinity, unless all is.
    """
    climbed = [_climbed(log_density, mesh, _hills(values)) for mesh, values in meshes]
    places, steps, heights = (torch.cat(found) for found in zip(*climbed, strict=True))
    is_noise = steps < _NOISE * (1e-3 + places.abs())
    return places, steps, torch.where(is_noise & ~is_noise.all(0), -torch.inf, heights)


def resolved_ends(
    log_density: LogDensity, shape: torch.Size, limit: float, like: Tensor, rows: int
) -> tuple[Tensor, Tensor] | None:
    """The ends ``[*shape]`` about 0 from which on float64 does not resolve a log density that has fallen by then, as of
    differences of log Γ far out; infinite where it is resolved, or has not fallen. None where all are, or where no
    place that is looked at for modes shows another hill; ``rows`` places at a time are what is cheap.
    """
    mesh = _coarse_mesh(limit, like)
    places = mesh.reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    values = log_density(places)
    if _FINE * rows < _LEAST_FINE and _are_one_hill(values):
        return None
    noisy = _is_rounding(log_density, places)
    if not bool(noisy.any()):
        return None
    numbers = torch.arange(len(mesh), device=mesh.device).reshape(-1, *[1] * len(shape))
    center = len(mesh) // 2
    left = torch.where(noisy & (numbers <= center), numbers, -1).amax(0)
    right = torch.where(noisy & (numbers >= center), numbers, len(mesh)).amin(0)
    most = torch.where((numbers > left) & (numbers < right), values, -torch.inf).amax(0)
    ends = []
    for first, sign in ((left, 1), (right, -1)):
        outside, inside = mesh[first.clamp(0, len(mesh) - 1)], mesh[(first + sign).clamp(0, len(mesh) - 1)]
        for _ in range(_BISECTIONS):
            middle = (outside + inside) / 2
            bad = _is_rounding(log_density, middle[None])[0]
            outside, inside = torch.where(bad, middle, outside), torch.where(bad, inside, middle)
        has_fallen = log_density(inside[None])[0] < most - DEPTH
        is_end = (first < 0) | (first == len(mesh))
        ends.append((torch.where(is_end, -sign * torch.inf, inside), has_fallen | is_end))
    (low, falls_left), (high, falls_right) = ends
    known = falls_left & falls_right & most.isfinite()
    return torch.where(known, low, -torch.inf), torch.where(known, high, torch.inf)


def _are_one_hill(values: Tensor) -> bool:
    """Whether each column of values ``[M, *shape]`` rises to one finite maximum, and falls."""
    rises = values[1:] > values[:-1]
    falls = values[1:] < values[:-1]
    rises_again = rises & (falls.cumsum(0) > 0)
    return bool((values < torch.inf).all() & ~rises_again.any() & falls[-1].logical_or(values[-1] == -torch.inf).all())


def _is_rounding(log_density: LogDensity, places: Tensor) -> Tensor:
    """Whether log densities at places ``[L, *shape]`` are rounding, or infinite, for the most part."""
    steps = _STEP * (1 + places.abs())
    first, second, third = (log_density(places + i * steps) for i in (-1, 0, 1))
    bent = ((first - second) + (third - second)).abs() <= (_LAST_BITS * second.abs()).clamp(min=_MOST_ROUNDING)
    return ~(bent | ((first == second) & (second == third) & (second < torch.inf)))


def _coarse_mesh(limit: float, like: Tensor) -> Tensor:
    return _mesh(limit, 2 * round(5 * math.sqrt(math.asinh(10 * limit))) * 3 + 1, like)


def _mesh(limit: float, count: int, like: Tensor) -> Tensor:
    """Places ``[count]`` from minus a limit to the limit, dense about 0, far from it a factor apart."""
    far = math.asinh(10 * limit)
    return 0.1 * torch.sinh(torch.linspace(-far, far, count, dtype=torch.float64, device=like.device))


def _along(log_density: LogDensity, mesh: Tensor, shape: torch.Size) -> Tensor:
    """The log densities at places ``[M]``, ``[M, *shape]``."""
    return log_density(mesh.reshape(-1, *[1] * len(shape)).expand(-1, *shape))


def _hills(values: Tensor) -> Tensor:
    """The maxima of values ``[M, *shape]`` along the mesh, ``[K, *shape]``; the highest again where there are fewer."""
    inner, best = values[1:-1], values.argmax(0).clamp(1, len(values) - 2)
    is_top = (inner > values[:-2]) & (inner >= values[2:]) & inner.isfinite()
    count = min(max(1, int(is_top.sum(0).max())), _MOST_HILLS)
    if count == 1:
        return best[None]
    heights, found = torch.where(is_top, inner, -torch.inf).topk(count, 0)
    return torch.where(heights > -torch.inf, found + 1, best)


def _climbed(log_density: LogDensity, mesh: Tensor, hills: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The maximum between the neighbors on the mesh of each hill ``[K, *shape]``: its place, a step on which the log
    density falls by about one, and its height, ``[K, *shape]`` each.
    """
    low, high = mesh[hills - 1], mesh[hills + 1]
    shares = torch.linspace(0, 1, _ZOOM_POINTS, dtype=torch.float64, device=mesh.device).reshape(-1, *[1] * hills.ndim)
    for _ in range(_MOST_ZOOMS):
        places = low + (high - low) * shares
        near = _each(log_density, places)
        most, best = near.max(0)
        before, after = (best - 1).clamp(min=0), (best + 1).clamp(max=_ZOOM_POINTS - 1)
        mode, low, high = (places.gather(0, i[None])[0] for i in (best, before, after))
        drop = most - torch.minimum(near.gather(0, before[None])[0], near.gather(0, after[None])[0])
        if bool(((drop < 1) | (high - low <= 1e-12 * (1e-3 + mode.abs()))).all()):
            break
    return mode, _widened(log_density, mode, torch.maximum(mode - low, high - mode), most), most


def _widened(log_density: LogDensity, modes: Tensor, steps: Tensor, heights: Tensor) -> Tensor:
    """Steps on which the log density falls by one from each mode, on one side at least: those given, or twice, ..."""
    for _ in range(_MOST_ZOOMS):
        beside = _each(log_density, torch.stack([modes - steps, modes + steps])).amin(0)
        is_short = heights - beside < 1
        if not bool(is_short.any()):
            break
        steps = torch.where(is_short, 2 * steps, steps)
    return steps


def _each(log_density: LogDensity, places: Tensor) -> Tensor:
    """The log density at places ``[L, K, *shape]``."""
    return log_density(places.flatten(0, 1)).reshape(places.shape)


def window(log_density: LogDensity, modes: Modes, limit: float) -> tuple[Tensor, Tensor]:
    """Where each density has fallen on the left of its modes, and where it has on the right, ``[*shape]``.

    Raises:
        NoTableError: if it does not fall.
    """
    mesh, values, places, steps, most, _ = modes
    floor = (most - DEPTH).expand(places.shape)
    left = places - _distance(lambda d: _each(log_density, places - d), steps, floor, limit, "below")
    right = places + _distance(lambda d: _each(log_density, places + d), steps, floor, limit, "above")
    left, right = left.amin(0), right.amax(0)
    along = mesh.reshape(-1, *[1] * most.ndim)
    above = (values > floor[0]) & ((along < left) | (along > right))  # still more, as far as the mesh sees it
    first = above.int().argmax(0)
    last = len(mesh) - 1 - above.flip(0).int().argmax(0)
    any_above = above.any(0)
    left = torch.where(any_above, torch.minimum(left, mesh[(first - 1).clamp(min=0)].clamp(min=-limit)), left)
    right = torch.where(any_above, torch.maximum(right, mesh[(last + 1).clamp(max=len(mesh) - 1)]), right)
    return left, right


def _distance(log_density: LogDensity, step: Tensor, floor: Tensor, limit: float, side: str) -> Tensor:
    """How far from the mode each density is below its floor, to a tenth.

    Raises:
        NoTableError: if one never is.
    """
    ones = [1] * step.ndim
    powers = torch.arange(1, _DOUBLINGS + 1, dtype=torch.float64, device=step.device).reshape(-1, *ones)
    found, done = step, torch.zeros_like(step, dtype=torch.bool)
    while True:
        offsets = step * 2**powers
        below = log_density(offsets) < floor
        which = below.int().argmax(0)
        found = torch.where(below.any(0) & ~done, offsets.gather(0, which[None])[0], found)
        done = done | below.any(0)
        if bool(done.all()):
            break
        step = offsets[-1]
        if bool((step > 4 * limit)[~done].any()):
            raise NoTableError(
                f"Expected a density whose tails fall; got one that is not below e^-{DEPTH:g} of its maximum {side} "
                "the mode anywhere that float64 reaches."
            )
    offsets = found / 2 * 2 ** (powers / _DOUBLINGS)
    below = log_density(offsets) < floor
    return offsets.gather(0, torch.where(below.any(0), below.int().argmax(0), _DOUBLINGS - 1)[None])[0]


__all__ = ["DEPTH", "LogDensity", "Modes", "NoTableError", "modes_of", "resolved_ends", "window"]
