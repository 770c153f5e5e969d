"""Elimination of a normal distribution over many variables, few of which meet: log Z, moments and draws.

A density exp(hᵀx − xᵀΛx / 2) is kept by h and by the entries of Λ at the pairs of variables that meet in it. Variables
are summed out in rounds: sets of cells that do not meet, cells being variables with the same neighbors, are taken
together as a batch of small matrices, whatever model they come from. The elements of a plate go in one round, a chain
of T variables in some log T, and where most of what is left meets, one dense matrix is. What a round leaves behind is
the factor of Cholesky, which gives the means, the covariances of all pairs that meet, and draws, back to front.

Source: Rue and Held 2005, Gaussian Markov Random Fields, §2.3-2.4; Takahashi, Fagan and Chen 1973, for covariances;
Luby 1986, for sets that do not meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..settings import check_memory

#: So few variables go at once, whether they meet or not; and all, where this share of their pairs meets.
_FEW, _MOSTLY = 48, 0.5
#: Variables with up to so many times the fewest neighbors go in one round.
_ALIKE = 1.5
_PASSES = 4
FEWER = "Leave some of the sites in blocks of their own."
_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Step:
    """Cells that are summed out at once: m of s variables, each beside k variables that are left.

    ``cells [m, s]`` and ``near [m, k]`` are numbers of variables, where that of no variable fills up; ``own [m, s,
    s]``, ``cross [m, s, k]`` and ``fill [m, k, k]`` are places of their pairs.
    """

    stage: int
    cells: Tensor
    near: Tensor
    own: Tensor
    cross: Tensor
    fill: Tensor

    @cached_property
    def upper(self) -> Tensor:
        """The upper triangle of ``fill``, ``[2, k (k + 1) / 2]``."""
        return torch.triu_indices(self.near.shape[1], self.near.shape[1], device=self.near.device)

    @cached_property
    def halves(self) -> Tensor:
        """The rows and the columns of the pairs within a cell, each pair once."""
        return torch.triu_indices(self.own.shape[1], self.own.shape[1], device=self.own.device)

    @cached_property
    def filled(self) -> Tensor:
        """The places of the pairs in the upper triangle, in order."""
        return self.fill[:, self.upper[0], self.upper[1]].reshape(-1)


class Elimination:
    """The order in which variables are summed out, and the pairs that meet on the way.

    Args:
        size: the number of variables.
        rows, columns: of the pairs that meet, ``[P]`` each, every variable with itself among them.
        stages: by variable, when it may go: those of the highest number first; by default all at any time.
    """

    def __init__(self, size: int, rows: Tensor, columns: Tensor, stages: Tensor | None = None) -> None:
        self.size = size
        first, second = _ordered(rows.cpu().numpy(), columns.cpu().numpy())
        stage = np.zeros(size, dtype=np.int64) if stages is None else stages.cpu().numpy()
        width, rounds, numbers = size + 1, [], 0
        codes = [first * width + second]
        for turn, cells, near in _rounds(size, first, second, stage):
            both = np.concatenate([cells, near], 1)
            numbers += both.size * both.shape[1]
            check_memory(f"the joint posterior of {size} elements that meet", 3 * numbers, FEWER)
            rounds.append((turn, cells, near))
            codes.append(_codes(both[:, :, None], both[:, None, :], width).reshape(-1))
        known = np.unique(np.concatenate(codes))
        known = known[known // width < size]
        self.num_pairs = len(known)
        self.numbers = numbers  #: that the tables of all steps hold
        device = rows.device

        def places(a: np.ndarray, b: np.ndarray) -> Tensor:
            wanted = _codes(a, b, width)
            found = np.where(wanted // width < size, np.searchsorted(known, wanted), self.num_pairs)
            return torch.from_numpy(found).to(device)

        self.places = places(first, second)
        self.steps = [
            Step(
                stage_of,
                torch.from_numpy(cells).to(device),
                torch.from_numpy(near).to(device),
                places(cells[:, :, None], cells[:, None, :]),
                places(cells[:, :, None], near[:, None, :]),
                places(near[:, :, None], near[:, None, :]),
            )
            for stage_of, cells, near in rounds
        ]

    def factorize(self, precision: Tensor) -> Factorization:
        """The factor of Cholesky of precisions ``[S, P]`` at the pairs, float64."""
        return Factorization(self, precision)


class Factorization:
    """A normal distribution's precision, factorized: ``scales`` L ``[S, m, s, s]`` and ``slopes`` L⁻¹B ``[S, m, s, k]``
    by step, where B is what a cell has with those beside it.
    """

    def __init__(self, plan: Elimination, precision: Tensor) -> None:
        self.plan, self.starts = plan, len(precision)
        self.least_share = torch.finfo(precision.dtype).eps ** 0.75  # as of a matrix that is well conditioned
        values = precision.new_zeros(self.starts, plan.num_pairs + 1, dtype=torch.float64)
        values[:, plan.places] = precision.double()
        before = values.clone()
        self.scales: list[Tensor] = []
        self.slopes: list[Tensor] = []
        self.half_log_det = values.new_zeros(self.starts)
        self.worst = values.new_ones(self.starts)
        for step in plan.steps:
            scale = _cholesky(values[:, step.own])
            slope = _solved(scale, values[:, step.cross])
            if step.near.shape[1]:
                found = (slope.mT @ slope)[..., step.upper[0], step.upper[1]]
                values.index_add_(1, step.filled, found.reshape(self.starts, -1), alpha=-1)
                values[:, -1] = 0
            diagonal = scale.diagonal(dim1=-2, dim2=-1)
            first = before[:, step.own.diagonal(dim1=-2, dim2=-1)]
            self.worst = torch.minimum(self.worst, (diagonal.square() / first).flatten(1).amin(1))
            self.half_log_det = self.half_log_det + diagonal.log().flatten(1).sum(1)
            self.scales.append(scale)
            self.slopes.append(slope)

    @property
    def is_proper(self) -> Tensor:
        """Whether each precision is positive definite beyond the rounding of its entries, ``[S]``; the log determinant
        is off by about eps over the worst share of a precision that is left.
        """
        return (self.worst > self.least_share) & self.half_log_det.isfinite()

    def forward(self, linear: Tensor) -> list[Tensor]:
        """L⁻¹ of linear terms ``[S, n, r]``, by step ``[S, m, s, r]``."""
        rest = torch.cat([linear.double(), linear.new_zeros(len(linear), 1, linear.shape[2])], 1)
        found = []
        for step, scale, slope in zip(self.plan.steps, self.scales, self.slopes, strict=True):
            part = _solved(scale, rest[:, step.cells])
            found.append(part)
            if step.near.shape[1]:
                rest.index_add_(1, step.near.reshape(-1), (slope.mT @ part).flatten(1, 2), alpha=-1)
                rest[:, -1] = 0
        return found

    def back(self, parts: list[Tensor], values: Tensor, stage: int | None = None) -> Tensor:
        """Lᵀx = parts, solved for x ``[S, n + 1, r]``: into the variables of this stage, by default all, which
        ``values`` holds a place for; the others are as they are there.
        """
        steps = list(zip(self.plan.steps, self.scales, self.slopes, parts, strict=True))
        for step, scale, slope, part in reversed(steps):
            if stage is not None and step.stage != stage:
                continue
            right = part - slope @ values[:, step.near] if step.near.shape[1] else part
            values[:, step.cells] = _solved_transposed(scale, right)
        return values

    def solve(self, linear: Tensor) -> Tensor:
        """Λ⁻¹ of ``[S, n, r]``."""
        parts = self.forward(linear)
        return self.back(parts, linear.new_zeros(self.starts, self.plan.size + 1, linear.shape[2]).double())[:, :-1]

    @cached_property
    def covariances(self) -> Tensor:
        """The covariances of the pairs that the elimination was made for, ``[S, P]``."""
        found = self.half_log_det.new_zeros(self.starts, self.plan.num_pairs + 1)
        for step, scale, slope in reversed(list(zip(self.plan.steps, self.scales, self.slopes, strict=True))):
            inverse = _solved(
                scale, torch.eye(scale.shape[-1], dtype=scale.dtype, device=scale.device).expand_as(scale)
            )
            own = inverse.mT @ inverse
            if step.near.shape[1]:
                gain = inverse.mT @ slope
                cross = gain @ found[:, step.fill]
                own = own + cross @ gain.mT
                found[:, step.cross] = -cross
                found[:, -1] = 0
            rows, columns = step.halves  # each pair once: the gradient of a place that is written twice counts twice
            found[:, step.own[:, rows, columns]] = own[..., rows, columns]
        return found[:, self.plan.places]

    def log_densities(self, values: Tensor, parts: list[Tensor], stage: int) -> Tensor:
        """The log densities of the variables of a stage, each given those before it, at values ``[S, n + 1, r]``, of
        that shape; zero at others.
        """
        found = torch.zeros_like(values)
        for step, scale, slope, part in zip(self.plan.steps, self.scales, self.slopes, parts, strict=True):
            if step.stage != stage:
                continue
            noise = scale.mT @ values[:, step.cells] - part
            noise = noise + slope @ values[:, step.near] if step.near.shape[1] else noise
            log_scale = scale.diagonal(dim1=-2, dim2=-1).log().unsqueeze(-1)
            found[:, step.cells] = log_scale - 0.5 * (noise.square() + _LOG_2PI)
        return found


def _cholesky(matrix: Tensor) -> Tensor:
    """Factors of matrices, NaN where they are not positive definite."""
    if matrix.shape[-1] == 1:
        return matrix.sqrt()
    factor, info = torch.linalg.cholesky_ex(matrix)
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def _solved(scale: Tensor, right: Tensor) -> Tensor:
    if scale.shape[-1] == 1:
        return right / scale
    return torch.linalg.solve_triangular(scale, right, upper=False)


def _solved_transposed(scale: Tensor, right: Tensor) -> Tensor:
    if scale.shape[-1] == 1:
        return right / scale
    return torch.linalg.solve_triangular(scale.mT, right, upper=True)


def _ordered(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(a, b), np.minimum(a, b)


def _codes(a: np.ndarray, b: np.ndarray, width: int) -> np.ndarray:
    high, low = _ordered(a, b)
    codes: np.ndarray = high * width + low
    return codes


def _rounds(
    size: int, first: np.ndarray, second: np.ndarray, stage: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The steps: the stage, cells ``[m, s]``, and what is left beside each ``[m, k]``, filled up by ``size``."""
    counts = np.bincount(stage, minlength=1)
    if len(counts) > _FEW and counts.max() <= _FEW:
        yield from _one_by_one(size, first, second, stage)
        return
    random = np.random.default_rng(0)
    names = random.integers(1, 2**63, size, dtype=np.uint64)
    stage_names = random.integers(1, 2**63, int(stage.max(initial=0)) + 1, dtype=np.uint64)
    off = first != second
    edges = np.unique(first[off] * size + second[off])
    left = np.ones(size, dtype=bool)
    remaining = counts
    now = len(remaining) - 1
    while now >= 0:
        if remaining[now] == 0:
            now -= 1
            continue
        a, b = edges // size, edges % size
        candidates = left & (stage == now)
        inside = candidates[a] & candidates[b]
        count = remaining[now]
        if count <= _FEW or inside.sum() > _MOSTLY * count * (count - 1) / 2:
            cell = np.where(candidates, 0, -1)
        else:
            cell = _chosen(size, a, b, left, candidates, names, stage_names[stage])
        for cells, near in _grouped(size, a, b, cell):
            yield now, cells, near
        gone = cell >= 0
        left &= ~gone
        remaining[now] -= gone.sum()
        edges = _left_over(size, a, b, cell)


def _one_by_one(
    size: int, first: np.ndarray, second: np.ndarray, stage: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The steps where all variables of a stage go at once, which are few."""
    beside: list[set[int]] = [set() for _ in range(size)]
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        beside[i].add(j)
        beside[j].add(i)
    order = np.argsort(-stage, kind="stable")
    for cell in np.split(order, np.flatnonzero(np.diff(stage[order])) + 1):
        own = set(cell.tolist())
        near = set().union(*(beside[i] for i in own)) - own
        for i in near:
            beside[i] |= near
            beside[i] -= own
        yield int(stage[cell[0]]), np.sort(cell)[None], np.array(sorted(near), dtype=np.int64)[None]


def _chosen(
    size: int,
    a: np.ndarray,
    b: np.ndarray,
    left: np.ndarray,
    candidates: np.ndarray,
    names: np.ndarray,
    stage_names: np.ndarray,
) -> np.ndarray:
    """By variable the cell that it goes in now, counted from 0; -1 where it stays."""
    around = names.copy()
    np.add.at(around, a, names[b])
    np.add.at(around, b, names[a])
    around ^= stage_names
    _, cell = np.unique(np.where(left, around, 0), return_inverse=True)
    cell = np.where(left, cell, -1)
    count = int(cell.max()) + 1
    sizes = np.bincount(cell[left], minlength=count)
    from_, to = np.concatenate([cell[a], cell[b]]), np.concatenate([cell[b], cell[a]])
    pairs = np.unique((from_ * count + to)[from_ != to])
    from_, to = pairs // count, pairs % count
    degree = np.bincount(from_, weights=sizes[to], minlength=count)
    may = np.zeros(count, dtype=bool)
    may[cell[candidates]] = True
    alive = may & (degree <= _ALIKE * degree[may].min() + 1)
    order = np.lexsort((np.random.default_rng(1).permutation(count), degree))
    rank = np.empty(count)
    rank[order] = np.arange(count)
    chosen = np.zeros(count, dtype=bool)
    for _ in range(_PASSES):
        both = alive[from_] & alive[to]
        best = np.full(count, np.inf)
        np.minimum.at(best, from_[both], rank[to[both]])
        picked = alive & (rank < best)
        chosen |= picked
        beside = np.zeros(count, dtype=bool)
        beside[to[picked[from_]]] = True
        alive &= ~picked & ~beside
    numbers = np.where(chosen, np.cumsum(chosen) - 1, -1)
    found: np.ndarray = np.where(left, numbers[cell], -1)
    return found


def _beside(size: int, a: np.ndarray, b: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (cell, variable beside it), in order."""
    from_, to = np.concatenate([a, b]), np.concatenate([b, a])
    cross = (cell[from_] >= 0) & (cell[from_] != cell[to])
    pairs = np.unique(cell[from_[cross]] * size + to[cross])
    return pairs // size, pairs % size


def _grouped(size: int, a: np.ndarray, b: np.ndarray, cell: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cells of one size, with about as many variables beside each."""
    variables = np.flatnonzero(cell >= 0)
    variables = variables[np.argsort(cell[variables], kind="stable")]
    sizes = np.bincount(cell[variables])
    starts = np.cumsum(sizes) - sizes
    owners, beside = _beside(size, a, b, cell)
    counts = np.bincount(owners, minlength=len(sizes))
    offsets = np.cumsum(counts) - counts
    padded = _rounded_up(counts)
    for s, k in np.unique(np.stack([sizes, padded], 1), axis=0):
        which = np.flatnonzero((sizes == s) & (padded == k))
        cells = variables[starts[which][:, None] + np.arange(s)]
        near = np.full((len(which), k), size, dtype=np.int64)
        here = np.arange(k) < counts[which][:, None]
        near[here] = beside[(offsets[which][:, None] + np.arange(k))[here]]
        yield cells, near


def _rounded_up(counts: np.ndarray) -> np.ndarray:
    """Counts above 8 in few sizes, at most an eighth larger."""
    unit = 2 ** np.maximum(0, np.floor(np.log2(np.maximum(counts, 1))) - 2).astype(np.int64)
    found: np.ndarray = np.where(counts > 8, -(-counts // unit) * unit, counts)
    return found


def _left_over(size: int, a: np.ndarray, b: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """The pairs that meet once these cells are gone, as codes."""
    stay = (cell[a] < 0) & (cell[b] < 0)
    found = [a[stay] * size + b[stay]]
    for _, near in _grouped(size, a, b, cell):
        high, low = _ordered(near[:, :, None], near[:, None, :])
        there = (high != low) & (high < size)
        found.append(high[there] * size + low[there])
    return np.unique(np.concatenate(found))


__all__ = ["FEWER", "Elimination", "Factorization", "Step"]
