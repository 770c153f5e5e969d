"""Moves between components that a sweep does not find: merges, deletes, and an order by size.

A sweep moves little by little. Two components that share what is one in truth stay two, as each of them has its part of
the observations. A move is a posterior of the discrete sites that is far away: two components in the place of one, or
what one had given to the others, or the components in another order. The blocks are updated from it, the discrete sites
are eliminated anew, and what was reached is taken on if its ELBO is at least the one that as many sweeps would have
reached without the move; otherwise everything is as it was. So the ELBO never falls.

Source: merges, Hughes and Sudderth (2013); deletes, Hughes, Kim and Sudderth (2015). They propose by the densities of
their models; here the proposals, like the updates, come from the expected log factors of any model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, NaturalDomainError
from ..objective import ComponentSites, DiscretePosterior, ElboBound, State
from .steps import Task
from .sweep import NotFiniteError, Sweep, rounding_of

#: What the updates after a move may end in, which is then refused.
_REFUSED = (NaturalDomainError, NotFiniteError, DataError, torch.linalg.LinAlgError)
#: How often the blocks are updated from a posterior that is held; they hang on each other.
_ROUNDS = 3
#: The sweeps after a delete in which the component stays empty.
_SWEEPS = 3
#: The sweeps after a move at most, in which it may catch up with as many sweeps without it.
_MOST_SWEEPS = 10
#: A component of less than this many observations is an empty one.
_LEAST = 0.1
#: The merges that are tried, for each component that is not empty.
_PAIRS = 2
#: The moves that are refused in one step until it ends.
_MOST_REFUSALS = 3

#: What is moved: its kind, the place of its components in the list of them, and their numbers.
Move = tuple[Any, ...]


@dataclass(frozen=True)
class Candidate:
    """A state of one start, with the discrete sites at their exact posterior there, and its ELBO."""

    state: State
    bound: ElboBound
    elbo: float

    @property
    def held(self) -> DiscretePosterior:
        assert self.bound.held is not None
        return self.bound.held


@dataclass
class Trials:
    """The moves that one start has tried: at which step each was refused, and how many of each kind were taken on.

    A move that was refused is tried again after as many steps again as there had been.
    """

    refused: dict[Move, int] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    is_exhausted: bool = False

    def are_open(self, move: Move, step: int) -> bool:
        """Whether a move may be tried at a step."""
        return move not in self.refused or step > 2 * self.refused[move]

    def accept(self, move: Move) -> None:
        """Take down a move, after which those that were refused for its components may be tried again."""
        kind, place, *numbers = move
        self.accepted[kind] = self.accepted.get(kind, 0) + 1
        if kind == "order":
            self.refused = {}
        self.refused = {m: s for m, s in self.refused.items() if m[1] != place or not set(m[2:]) & set(numbers)}


class Mover:
    """The moves of one start at one step.

    Args:
        task: what the step works on, for one start.
        components: the components of the model.
        trials: what was tried before.
        step: the number of the step.
    """

    def __init__(self, task: Task, components: list[ComponentSites], trials: Trials, step: int) -> None:
        self.task, self.components, self.trials, self.step = task, components, trials, step
        self.program = task.program
        self._done: set[Move] = set()  # what was taken on at this step
        self._ahead: Candidate | None = None  # where sweeps from the last point have led
        self._elbos: list[float] = []  # the ELBO after each of them
        self.is_written = any(block.update is not None for block in self.program.blocks.values())

    def run(self, point: Candidate) -> Candidate:
        """Try moves, the most promising first, until so many are refused or none is left."""
        candidates, gain, refusals = self._candidates(point), self._gain(point), 0
        while (move := next(candidates, None)) is not None and refusals < _MOST_REFUSALS:
            found = self._tried(move, point, gain)
            if found is None:
                self.trials.refused[move] = self.step
                refusals += 1
            else:
                point, self._ahead, self._elbos = found, None, []
                self.trials.accept(move)
                self._done.add(move)
                candidates, gain = self._candidates(point), self._gain(point)
        self.trials.is_exhausted = move is None
        return point

    def _candidates(self, point: Candidate) -> Iterator[Move]:
        """The moves that may be tried, the most promising first."""
        means = self.program.means(point.state)
        for place, components in enumerate(self.components):
            masses = components.masses(point.held)[0].tolist()
            loss = components.losses(means, point.held)[0].tolist()
            living = [k for k, mass in enumerate(masses) if mass > _LEAST]
            pairs = sorted((min(loss[k][j], loss[j][k]), k, j) for k in living for j in living if k < j)
            merges: list[Move] = [("merge", place, k, j) for _, k, j in pairs[: _PAIRS * len(living)]]
            deletes: list[Move] = [("delete", place, k) for k in sorted(living, key=masses.__getitem__)]
            turns = zip_longest(merges, deletes if len(living) > 1 else [])
            moves = [move for pair in turns for move in pair if move is not None]
            if any(after > before + _LEAST for before, after in pairwise(masses)):
                moves.insert(0, ("order", place))
            yield from (move for move in moves if move not in self._done and self.trials.are_open(move, self.step))

    def _gain(self, point: Candidate) -> float:
        """What the updates after a move gain without one, in nats: it is no merit of the move."""
        same = torch.arange(self.components[0].count, device=self.program.recording.device)
        try:
            return max(0.0, self._mapped(self.components[0], point, same).elbo - point.elbo)
        except _REFUSED:
            return math.inf  # the next step says why

    def _tried(self, move: Move, point: Candidate, gain: float) -> Candidate | None:
        """What a move reaches; None where it is refused."""
        kind, place, *numbers = move
        components = self.components[place]
        masses = components.masses(point.held)[0]
        try:
            if kind == "order":
                found = self._mapped(components, point, masses.argsort(descending=True, stable=True).argsort(), True)
                rounding = rounding_of(float(found.bound.magnitude), self.program.recording.dtype)
                return found if found.elbo > point.elbo + gain + rounding else None
            if kind == "merge":
                target = torch.arange(components.count, device=masses.device)
                target[numbers[1]] = numbers[0]
                found, sweeps = self._mapped(components, point, target), 1
            else:
                found, sweeps = self._without(components, point, numbers[0]), _SWEEPS
            is_behind = found.elbo < point.elbo + sweeps * gain
            last = self._caught_up(found, point, sweeps) if is_behind else found
        except _REFUSED:
            return None
        emptied = numbers[-1]
        left = math.inf if last is None else float(components.masses(last.held)[0, emptied])
        return last if left < max(_LEAST, float(masses[emptied]) / 2) else None

    def _caught_up(self, found: Candidate, point: Candidate, sweeps: int) -> Candidate | None:
        """What more sweeps after a move make of it, at the first where it is no lower than as many sweeps without it;
        None where it stays below, or would at the rate of its last sweep.
        """
        behind = math.inf
        for turn in range(1, _MOST_SWEEPS + 1):
            found, before = self._after(found), behind
            behind = self._elbo_after(point, sweeps + turn) - found.elbo
            if behind <= 0:
                return found
            if behind > (before - behind) * (_MOST_SWEEPS - turn):
                return None
        return None

    def _elbo_after(self, point: Candidate, number: int) -> float:
        """The ELBO that so many sweeps reach from a point without a move."""
        while len(self._elbos) < number:
            self._ahead = self._after(self._ahead or point)
            self._elbos.append(self._ahead.elbo)
        return self._elbos[number - 1]

    def _after(self, point: Candidate) -> Candidate:
        """What a sweep reaches."""
        sweep = Sweep(self.program, point.state, self.task.arguments)
        self._update(sweep)
        return self._reached(sweep)

    def _mapped(
        self, components: ComponentSites, point: Candidate, target: Tensor, is_permutation: bool = False
    ) -> Candidate:
        """The blocks updated from the posterior in which the value v of the discrete sites has become ``target[v]``."""
        state = components.permuted(point.state, target) if is_permutation else point.state
        probs = components.probabilities(self.program.means(point.state), target) if self.is_written else {}
        sweep = Sweep(self.program, state, self.task.arguments, hold=False)
        sweep.hold(components.mapped(point.held, target), probs)
        for _ in range(_ROUNDS):
            self._update(sweep)
        return self._reached(sweep)

    def _without(self, components: ComponentSites, point: Candidate, component: int) -> Candidate:
        """Some sweeps in which no discrete site has a value."""
        state, arguments = point.state, self.task.arguments
        for _ in range(_SWEEPS):
            probs = components.without(self.program.means(state), component)
            sweep = Sweep(self.program, state, arguments, probs=probs)
            self._update(sweep)
            state = sweep.state
        return self._reached(sweep)

    def _update(self, sweep: Sweep) -> None:
        """Set every block to its optimum, against the posterior that is held."""
        for key in self.task.schedule.blocks(self.program):
            sweep.visit(key)

    def _reached(self, sweep: Sweep) -> Candidate:
        """The state of a sweep, with the discrete sites eliminated anew.

        Raises:
            NaturalDomainError: if an update was improper.
            NotFiniteError: if the ELBO is not finite.
        """
        bound = self.program.bound(sweep.state, sweep.means)
        (elbo,) = sweep.check_proper([bound.elbo])
        return Candidate(sweep.state, bound, elbo)


__all__ = ["Candidate", "Move", "Mover", "Trials"]
