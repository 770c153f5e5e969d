"""Integrals of a batch of densities of a scalar, with an estimate of their error: adaptive Gauss-Legendre.

Panels start as a mesh whose widths are a share of the distance from 0, or from the ends of an interval. One is split in
halves until the sum of the halves is the whole to 1e-13 of the integral, and the polynomial through the nodes meets
the density at the ends of the panel, which no node is near; also where the log density has a maximum that its nodes
jump over. The nodes are linear in z, so that a peak of width 1e-3 at 1e4 keeps its digits.

No rule sees what lies between its nodes: beside a wide mode, a narrow one whose summit rises above the wide one's log
density only within 2% of its distance from the start of the mesh is not seen.

Source: Davis and Rabinowitz 1984, §2.7 and §6.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError

TOLERANCE = 1e-10
EPS = torch.finfo(torch.double).eps
NUM_NODES = 12
MOST_PANELS, MOST_ROUNDS = 4096, 300
#: How far inside a panel its ends are looked at, and how far from an end the first node is, as shares of its width; how
#: many roundings of a place are in the polynomial there.
_INSIDE, _EDGE, _ROUNDINGS = 1e-9, 0.01, 64
# Powers of 2 of the distance: a quarter apart from 2^-12 to 2^28, and 4 apart out to where a square still has a float.
EXPONENTS = np.concatenate([np.arange(-1020, -12, 4), np.arange(-12, 28, 0.25), np.arange(28, 501, 4)])


_gauss = lru_cache(np.polynomial.legendre.leggauss)


@lru_cache
def kept_on(numbers: Callable[[], np.ndarray], device: torch.device) -> Tensor:
    """A constant array on a device, float64, which is copied there once: each copy waits for an accelerator."""
    with torch.inference_mode(False):
        return torch.as_tensor(numbers(), dtype=torch.float64, device=device)


def _rule() -> np.ndarray:
    points, weights = _gauss(NUM_NODES)
    return np.stack([(points + 1) / 2, weights / 2])


def rule(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], ``[NUM_NODES]`` both."""
    points, weights = kept_on(_rule, like.device).to(like.dtype)
    return points, weights


def mesh(lower: Tensor, upper: Tensor) -> Tensor:
    """Edges of the panels to begin with on a batch of intervals, whose ends may be infinite: ``[E, *batch]``."""
    steps = lower.new_tensor(2.0**EXPONENTS).reshape(-1, *[1] * lower.dim())
    near = steps[EXPONENTS < 0]
    width = upper - lower
    from_below = torch.cat([lower[None], lower + steps])
    from_above = torch.cat([upper - steps.flip(0), upper[None]])
    if bool(width.isfinite().all()):
        middle = (lower + upper)[None] / 2
        return torch.cat([lower[None], lower + near * width, middle, upper - near.flip(0) * width, upper[None]]).sort(
            0
        )[0]
    if bool(lower.isfinite().all()):
        return from_below
    if bool(upper.isfinite().all()):
        return from_above
    zero = torch.zeros_like(lower)[None]
    far = steps[EXPONENTS >= -12].expand(-1, *lower.shape)
    return torch.cat([-far.flip(0), zero, far])


class Panels(NamedTuple):
    """Where a batch of densities has its mass.

    Attributes:
        left, right: the ends of the panels in ascending order, ``[P, *batch]``.
        nodes: where the density is read, ``[P, NUM_NODES, *batch]``.
        log_weights: the log density plus these is log mass; -1e30 where a node counts for nothing.
        log_normalizer: the log of the integral, ``[*batch]``.
        error: an estimate of its relative error, ``[*batch]``.
    """

    left: Tensor
    right: Tensor
    nodes: Tensor
    log_weights: Tensor
    log_normalizer: Tensor
    error: Tensor

    def log_masses(self, log_density: Callable[[Tensor], Tensor]) -> Tensor:
        """The log of the integral over each panel, ``[P, *batch]``; differentiable in what the log density is of."""
        return (log_density(self.nodes) + self.log_weights).logsumexp(1)

    def expectation(self, log_density: Callable[[Tensor], Tensor], function: Callable[[Tensor], Tensor]) -> Tensor:
        """E function(z) under the normalized density, ``[*batch]``, for a function smooth on panels."""
        weights = (log_density(self.nodes) + self.log_weights).flatten(0, 1).softmax(0)
        return (weights * function(self.nodes).flatten(0, 1)).sum(0)

    def expand(self, batch: Sequence[int]) -> Panels:
        """The same panels for a larger batch."""
        dim = self.error.dim()

        def spread(tensor: Tensor) -> Tensor:
            lead = tensor.shape[: tensor.dim() - dim]
            ones = [1] * (len(batch) - dim)
            return tensor.reshape(*lead, *ones, *tensor.shape[len(lead) :]).expand(*lead, *batch)

        return Panels(*map(spread, self))


class _State(NamedTuple):
    """Panels while they are split: ``[P, *batch]``, the log density at their nodes ``[P, NUM_NODES, *batch]``."""

    left: Tensor
    right: Tensor
    values: Tensor
    log_masses: Tensor
    log_errors: Tensor


@torch.no_grad()
def integrate(
    log_density: Callable[[Tensor], Tensor], edges: Tensor, name: str = "normalizer", tolerance: float = TOLERANCE
) -> Panels:
    """The integral of exp(log_density) over all of ``edges``, for each of a batch.

    Args:
        log_density: takes nodes ``[..., *batch]`` and gives as many values.
        edges: ends of the panels to begin with, in ascending order, float64 ``[E, *batch]``; :func:`mesh` has some.
        name: what the integral is called in errors.
        tolerance: what the relative error has to be below.

    Raises:
        ArgumentError: if the density has another shape, is NaN or infinite, is 0 everywhere, or if the relative error
            does not come below the tolerance, as for a density that has no integral.
    """
    ends = torch.nextafter(edges[0], edges[-1]), torch.nextafter(edges[-1], edges[0])

    def inside(nodes: Tensor) -> Tensor:
        return log_density(nodes.clamp(*ends))

    state = _evaluate(inside, edges[:-1], edges[1:])
    first, last = state.log_masses[:2], state.log_masses[-2:].flip(0)
    for _ in range(MOST_ROUNDS):
        total = state.log_masses.logsumexp(0)
        middle = state.left + (state.right - state.left) / 2
        split = (state.log_errors - total > np.log(tolerance / 1000)) | _jumps_over_a_maximum(state)
        split &= (state.left < middle) & (middle < state.right)
        chosen = _which(split | (state.log_masses - total > -200))  # the others stay as negligible as they are
        state, split = _select(state, chosen), split.gather(0, chosen)
        if not bool(split.any()) or len(state.left) > MOST_PANELS:
            break
        state = _halve(inside, state, split)
    total = state.log_masses.logsumexp(0)
    if not bool(total.isfinite().all()):
        raise ArgumentError(
            f"Expected a log density that is finite somewhere; got {total.tolist()} as the log of its {name}. "
            "Give the support on which it is finite, and parameters inside their domain."
        )
    error = (
        (state.log_errors - total).exp().sum(0) + _tail(first, total) + _tail(last, total) + _unresolved(state, total)
    )
    if not bool((error < tolerance).all()):
        raise ArgumentError(
            f"Expected a density whose {name} settles; got a relative error of {float(error.max()):.1g}, above "
            f"{tolerance:.2g}. It has no {name}, or its tail is too heavy, or it has a pole away from 0, or more than "
            "float64 resolves. Check its parameters, move a pole to 0, or write the density of a transform of z."
        )
    panels = _prune(state, total, error)
    return panels._replace(nodes=panels.nodes.clamp(*ends))


def _evaluate(log_density: Callable[[Tensor], Tensor], left: Tensor, right: Tensor) -> _State:
    """Panels that have not been compared with their halves: the error is the whole mass."""
    nodes, log_weights = _nodes(left, right)
    flat = nodes.flatten(0, 1)
    values = log_density(flat)
    if values.shape != flat.shape:
        raise ArgumentError(
            f"Expected a log density of the shape of its values, {list(flat.shape)}; got {list(values.shape)}. "
            "Write it elementwise, without a sum."
        )
    if bool(values.isnan().any()):
        raise ArgumentError(
            f"Expected a log density that is a number; got NaN at {float(flat[values.isnan()][0]):.6g}. "
            "Write it so that its parts do not overflow, or give it the support on which it is finite."
        )
    # Next to a pole a node may round onto it. It counts for nothing, and the halves tell whether that matters.
    values = values.double().masked_fill(values == torch.inf, -torch.inf).reshape(nodes.shape)
    log_masses = (values + log_weights).logsumexp(1)
    return _State(left, right, values, log_masses, log_masses)


def _nodes(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    points, weights = (part.reshape(-1, *[1] * (left.dim() - 1)) for part in rule(left))
    width = (right - left)[:, None]
    return left[:, None] + width * points, width.log() + weights.log()


def _halve(log_density: Callable[[Tensor], Tensor], state: _State, split: Tensor) -> _State:
    """The panels with the chosen ones in halves. All of the batch get as many; those without need get empty ones."""
    chosen = (2 * split.byte() + (state.left < state.right)).topk(int(split.sum(0).max()), 0)[1]
    split = split.gather(0, chosen)
    left, right, whole, error = (
        part.gather(0, chosen) for part in (state.left, state.right, state.log_masses, state.log_errors)
    )
    middle = torch.where(split, left + (right - left) / 2, right)
    new = _evaluate(log_density, torch.cat([left, middle]), torch.cat([middle, right]))
    lower, upper = new.log_masses.chunk(2)
    halves = torch.logaddexp(lower, upper)
    difference = torch.maximum(whole, halves) + (-torch.expm1(-(whole - halves).abs())).log() - np.log(2)
    difference = torch.where(torch.maximum(whole, halves) > -torch.inf, difference, -torch.inf)
    below, above = torch.maximum(_log_missed(log_density, new), difference.repeat(2, *[1] * (whole.dim() - 1))).chunk(2)
    errors = torch.cat([torch.where(split, below, error), torch.where(split, above, -torch.inf)])
    # The empty ones stand at the upper end, where nodes in order do not meet them.
    aside = torch.where(split, middle, state.right[-1]), torch.where(split, right, state.right[-1])
    new = new._replace(left=torch.cat([left, aside[0]]), right=torch.cat([middle, aside[1]]))
    new = new._replace(log_errors=errors)
    kept = _which(torch.ones_like(state.left, dtype=torch.bool).scatter(0, chosen, False))
    merged = _State(*(torch.cat(pair) for pair in zip(_select(state, kept), new, strict=True)))
    order = merged.right.argsort(dim=0)
    return _select(merged, order.gather(0, merged.left.gather(0, order).argsort(dim=0, stable=True)))


def _log_missed(log_density: Callable[[Tensor], Tensor], state: _State) -> Tensor:
    """The log of the mass that panels may lack at their ends, where a kink or a jump is between no two nodes: how far
    the polynomial through the nodes is from the density there, by more than the rounding of places accounts for, times
    the width next to the last node, ``[P, *batch]``.
    """
    width = state.right - state.left
    ends = torch.stack([state.left + _INSIDE * width, state.right - _INSIDE * width], 1)
    values = log_density(ends.flatten(0, 1)).double().reshape(ends.shape)
    most = torch.maximum(state.values.amax(1), values.amax(1)).unsqueeze(1)
    density, there = (torch.where(v > -torch.inf, v - most, -torch.inf).exp() for v in (state.values, values))
    ahead = torch.as_tensor(_extrapolation(), dtype=torch.float64, device=density.device)
    missed = (torch.einsum("en,pn...->pe...", ahead, density) - there).abs().sum(1)
    slope = (density.amax(1) - density.amin(1)) / width
    missed = (missed - _ROUNDINGS * EPS * (slope * torch.maximum(-state.left, state.right) + 1)) * (width * _EDGE)
    known = missed.isfinite() & (missed > 0)  # next to a pole the halves tell
    return torch.where(known, missed.log() + most.squeeze(1), -torch.inf)


@lru_cache
def _extrapolation() -> np.ndarray:
    """The matrix that takes values at the nodes to the polynomial through them next to both ends, ``[2, n]``."""
    points, weights = _gauss(NUM_NODES)
    degrees = np.arange(NUM_NODES)
    to_legendre = (2 * degrees[:, None] + 1) / 2 * np.polynomial.legendre.legvander(points, NUM_NODES - 1).T * weights
    ends = np.array([2 * _INSIDE - 1, 1 - 2 * _INSIDE])
    found: np.ndarray = np.polynomial.legendre.legvander(ends, NUM_NODES - 1) @ to_legendre
    return found


def _jumps_over_a_maximum(state: _State) -> Tensor:
    """The panels at a node so far above its neighbors that a peak or a jump may stand between, ``[P, *batch]``."""
    flat, real = state.values.flatten(0, 1), (state.left < state.right).repeat_interleave(NUM_NODES, 0)
    before, after = torch.cat([flat[:1], flat[:-1]]), torch.cat([flat[1:], flat[-1:]])
    before = torch.where(torch.cat([real[:1], real[:-1]]), before, flat)
    after = torch.where(torch.cat([real[1:], real[-1:]]), after, flat)
    top = (flat >= before) & (flat >= after) & (flat > -torch.inf) & real
    top &= flat - torch.minimum(before, after) > 3 + 1e-9 * flat.abs()
    beside = torch.cat([top[1:], top[-1:]]) | torch.cat([top[:1], top[:-1]])
    return (top | beside).reshape(state.values.shape).any(1)


def _tail(ends: Tensor, total: Tensor) -> Tensor:
    """What lies beyond the outermost panel, by the ratio of two, ``[2, *batch]``, as a share of the total."""
    mass, ratio = (ends[0] - total).exp(), (ends[0] - ends[1]).exp()
    beyond = torch.where(ratio < 1, mass * ratio / (1 - ratio), torch.inf)
    return torch.where(mass < 1e-30, 0.0, beyond)


def _which(wanted: Tensor) -> Tensor:
    """The places of the wanted panels in order, as many for all of the batch: some have others among theirs."""
    return wanted.byte().topk(int(wanted.sum(0).max()), 0)[1].sort(0)[0]


def _select(state: _State, places: Tensor) -> _State:
    nodewise = places[:, None]
    return _State(*(torch.take_along_dim(p, nodewise if p.dim() > places.dim() else places, 0) for p in state))


def _unresolved(state: _State, total: Tensor) -> Tensor:
    """The mass of panels so narrow that float64 does not part their nodes, as far as the density varies there."""
    narrow = state.right - state.left < 64 * EPS * torch.maximum(-state.left, state.right)
    varies = (state.values.amax(1) - state.values.amin(1)).clamp(max=1)
    return torch.where(narrow & (state.log_masses > -torch.inf), (state.log_masses - total).exp() * varies, 0.0).sum(0)


def _prune(state: _State, total: Tensor, error: Tensor) -> Panels:
    """The panels that count. A node of no weight moves to the mode, where no derivative is NaN."""
    # 1e-40 of the mass is less than the smallest draw of float32.
    left, right, values, *_ = _select(state, _which(state.log_masses - total > -92))
    nodes, log_weights = _nodes(left, right)
    silent = values + log_weights - total < -120
    mode = torch.take_along_dim(nodes.flatten(0, 1), values.flatten(0, 1).argmax(0, keepdim=True), 0)
    nodes = torch.where(silent, mode, nodes)
    # Not -inf: the log mass of a panel of such nodes has a derivative too.
    return Panels(left, right, nodes, log_weights.masked_fill(silent, -1e30), total, error)
