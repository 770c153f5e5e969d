r"""Where a sequence of sweeps is going: Anderson's extrapolation.

A sweep is a map of the blocks that it reads before it writes them, x → y(x), whose fixed points are optima. Of the last
sweeps that memory holds, the combination whose moves y − x cancel best is taken, and the blocks are put where it ends,

.. math:: η = \sum_i w_i η(y_i), \qquad w = \arg\min_{\sum_i w_i = 1} \Big\| \sum_i w_i (y_i - x_i) \Big\|.

The norm is the symmetrised divergence ⟨Δη, Δμ⟩ of q before and after a move: for small ones it is that of the Fisher
information, in nats, whatever units the sites have. For a map that is affine in η this is GMRES.

Source: Anderson (1965); Walker and Ni (2011), equations (2.2) to (2.4); for EM, Henderson and Varadhan (2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import transform_to

from ..errors import NaturalDomainError
from ..families import Natural
from ..objective import Block, BlockKey, Means, Program, State
from ..signatures import PlainState

#: The sweeps that are combined.
WINDOW = 11
#: Directions in which moves differ by less than this share of the most, squared, are left alone, by dtype.
_LEAST = {torch.float64: 1e-12, torch.float32: 1e-6}
#: How often a combination outside the domain is taken half the way back.
_HALVINGS = 5
#: The most sweeps without one after combinations were refused.
_LONGEST_WAIT = 8


class SweepMove(NamedTuple):
    """One sweep of one start: the natural parameters that it ended at, ``[1, ...]``, and how far it moved the blocks
    that it reads, in natural and in mean parameters, one after another: ``[n]``, float64.
    """

    end: State
    natural: Tensor
    mean: Tensor


def carried(program: Program, sequence: Sequence[BlockKey | None]) -> list[BlockKey]:
    """The blocks that a sweep reads before it writes them, in order: a sweep is a function of these alone.

    Args:
        program: the model.
        sequence: the blocks in the order of their visits.
    """
    keys = [key for key in dict.fromkeys(sequence) if key is not None]
    if any(block.update is not None for block in program.blocks.values()):
        return keys  # a hand-written update may read all
    at_once = {m.block.key for f in program.factors for p in f.pieces for m in p.moments} | set(program.turns)
    at_once |= {parent for variable in program.derived for parent in variable.parents}
    found: list[BlockKey] = []
    written: set[BlockKey] = set()
    for key in keys:
        if key in at_once or any(s.blocks & written for s in program.by_block[key]):
            found.append(key)
        written.add(key)
    return found


class Extrapolation:
    """The last sweeps of one start, and where they are going.

    Attributes:
        moves: the last sweeps.
        kept, refused: how many extrapolated points were kept, and how many were refused.
    """

    def __init__(self) -> None:
        self.moves: list[SweepMove] = []
        self.kept = self.refused = 0
        self._places: State = {}  # where tables are compared
        self._in_a_row = self._wait = 0  # refusals since the last one that was kept, and sweeps until the next

    def note(self, blocks: Sequence[Block], before: tuple[State, Means], after: tuple[State, Means]) -> None:
        """Remember a sweep: the natural and mean parameters of one start before and after it."""
        if not self.moves:
            self._places = {block.key: after[0][block.key] for block in blocks}
        moved = [_moved(block, before, after, self._places) for block in blocks]
        vectors = [torch.cat([part.double().reshape(-1) for part in parts]) for parts in zip(*moved, strict=True)]
        self.moves = [*self.moves[-WINDOW + 1 :], SweepMove({b.key: after[0][b.key] for b in blocks}, *vectors)]
        self._wait = max(0, self._wait - 1)

    def point(self, blocks: Sequence[Block]) -> State | None:
        """The blocks where the sweeps are going; None where nothing is known of it, or the last one was refused."""
        if len(self.moves) < 2 or self._wait:
            return None
        weights = self._weights(blocks)
        last = torch.zeros_like(weights)
        last[-1] = 1
        for halvings in range(_HALVINGS + 1 if bool(weights.isfinite().all()) else 0):
            share = 0.5**halvings
            found = self._combined(blocks, share * weights + (1 - share) * last)
            if found is not None:
                return found
        return None

    def _weights(self, blocks: Sequence[Block]) -> Tensor:
        """What each sweep counts for, which adds up to 1."""
        natural, mean = (torch.stack(vectors) for vectors in zip(*((m[1], m[2]) for m in self.moves), strict=True))
        steps, mean_steps = natural.diff(dim=0), mean.diff(dim=0)
        products = steps @ mean_steps.T
        slopes = steps @ mean[-1] + mean_steps @ natural[-1]
        shares = _least_squares(products + products.T, slopes, _LEAST[_dtype_of(self.moves[-1].end)])
        weights = torch.nn.functional.pad(shares, (1, 1)).diff()
        weights[-1] += 1
        return weights

    def _combined(self, blocks: Sequence[Block], weights: Tensor) -> State | None:
        """A combination of where the sweeps ended; None outside the domain."""
        found: State = {}
        for block in blocks:
            try:
                found[block.key] = _combination(block, [move.end[block.key] for move in self.moves], weights.tolist())
            except NaturalDomainError:
                return None
            if not bool(block.family.in_domain(found[block.key]).all()):
                return None
        return found

    def keep(self) -> None:
        """The point was kept."""
        self.kept += 1
        self._in_a_row = 0

    def refuse(self) -> None:
        """The point was refused: what led to it is forgotten, and the next one waits for twice as many sweeps."""
        self.refused += 1
        self._in_a_row += 1
        self.moves, self._wait = [], min(2**self._in_a_row, _LONGEST_WAIT)

    def forget(self) -> None:
        """The sweeps were those of something else."""
        self.moves, self._in_a_row, self._wait = [], 0, 0

    # What is remembered.

    def to_state(self, blocks: Sequence[BlockKey]) -> PlainState:
        """What is remembered, in plain types and tensors."""
        moves = [(_plain(move.end, blocks), move.natural, move.mean) for move in self.moves]
        places = _plain(self._places, blocks) if self.moves else []
        return {"moves": moves, "places": places, "counts": [self.kept, self.refused, self._in_a_row, self._wait]}

    @classmethod
    def of(cls, state: Mapping[str, Any], blocks: Sequence[BlockKey], device: torch.device) -> Extrapolation:
        """Take on a state of :meth:`to_state`."""
        found = cls()
        found.kept, found.refused, found._in_a_row, found._wait = state["counts"]
        for end, natural, mean in state["moves"]:
            found.moves.append(SweepMove(_state(end, blocks, device), natural.to(device), mean.to(device)))
        if found.moves:
            found._places = _state(state["places"], blocks, device)
        return found


def _plain(state: State, blocks: Sequence[BlockKey]) -> list[dict[str, Tensor]]:
    """Natural parameters by block, in order."""
    return [dict(state[key]) for key in blocks]


def _state(plain: Sequence[Mapping[str, Tensor]], blocks: Sequence[BlockKey], device: torch.device) -> State:
    """The inverse of :func:`_plain`."""
    pairs = zip(blocks, plain, strict=True)
    return {key: Natural(**{name: tensor.to(device) for name, tensor in own.items()}) for key, own in pairs}


def _dtype_of(state: State) -> torch.dtype:
    return next(iter(next(iter(state.values())).values())).dtype


def _least_squares(products: Tensor, slopes: Tensor, least: float) -> Tensor:
    """The solution of a symmetric system ``[m, m]``, zero along its small and its negative directions."""
    size = products.diagonal().abs().sqrt()
    size = torch.where(size > 0, size, 1.0)
    scaled = products / size.unsqueeze(-1) / size
    if not bool(scaled.isfinite().all()):
        return torch.full_like(slopes, torch.nan)
    values, directions = torch.linalg.eigh(scaled)
    along = directions.T @ (slopes / size)
    shares = torch.where(values > least * values.max(), along / values, 0.0)
    found: Tensor = directions @ shares / size
    return found


def _difference(before: Tensor, after: Tensor) -> Tensor:
    """How far a tensor moved: not at all where it stays infinite."""
    return torch.where(before == after, 0.0, after.double() - before.double())


def _moved(
    block: Block, before: tuple[State, Means], after: tuple[State, Means], places: State
) -> tuple[Tensor, Tensor]:
    """How far a block moved, in natural and in mean parameters ``[n]``; ``places`` is where a table is compared."""
    old, new = before[0][block.key], after[0][block.key]
    if block.is_point:
        line = _difference(_on_line(block, old), _on_line(block, new)).reshape(-1)
        return line, line
    if (table := block.family.log_ratio(old, new, places[block.key])) is not None:
        return table.reshape(-1), table.reshape(-1)
    names = block.family.statistics
    means = before[1][block.key], after[1][block.key]
    natural = torch.cat([_difference(old[n], new[n]).reshape(-1) for n in names])
    return natural, torch.cat([_difference(means[0][n], means[1][n]).reshape(-1) for n in names])


def _combination(block: Block, ends: Sequence[Natural], weights: Sequence[float]) -> Natural:
    """A block whose log density is a combination of several, up to a constant; of points, in unconstrained coordinates.

    Raises:
        NaturalDomainError: where that is no density.
    """
    if not block.is_point:
        return block.family.combined(ends, weights)
    lines = [_on_line(block, end) for end in ends]
    found = lines[-1] + sum(w * _difference(lines[-1], line) for w, line in zip(weights, lines, strict=True))
    value = transform_to(block.sites[0].constraint)(found)
    return block.natural({"value": value}).map(lambda t: t.to(ends[-1].x))


def _on_line(block: Block, natural: Natural) -> Tensor:
    """The value of a point in unconstrained coordinates, float64."""
    return transform_to(block.sites[0].constraint).inv(block.params(natural.map(Tensor.double))["value"])


__all__ = ["WINDOW", "Extrapolation", "SweepMove", "carried"]
