"""Coordinate ascent on all of the data with moves between components after each sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..objective import ComponentSites, Program, State, components_of, of_start
from ..signatures import PlainState
from .full import FullSteps, Level
from .moves import Candidate, Mover, Trials
from .steps import Info, Task, joined

#: Moves wait until a sweep raises the ELBO by no more than this, in nats: components that are still on their way look
#: alike, and what is one by then stays one.
_NEARLY_SETTLED = 1.0


class MergingSteps(FullSteps):
    """Sweeps over every block, each followed by some moves once a start has nearly settled; a run ends once all moves
    are refused where it settled.
    """

    def __init__(self, annealing: Sequence[float] = ()) -> None:
        super().__init__(annealing)
        self._components: tuple[Program, list[ComponentSites]] | None = None
        self._trials: dict[int, Trials] = {}  # by the number of each start
        self._reached: dict[int, float] = {}  # the ELBO after the last step, by the number of each start
        self._is_last_round = False

    def step(self, task: Task) -> tuple[State, Info]:
        """One sweep over all blocks, and the moves after it.

        Raises:
            ModelError: as a sweep does, or if the model has no components.
        """
        is_other = self._components is not None and self._components[0] is not task.program
        components = self._components_of(task.program)
        state, info = super().step(task)
        if is_other and any(abs(e - self._reached.get(i, e)) > _NEARLY_SETTLED for i, e in enumerate(info.elbo)):
            self._forget_trials()  # other data
        if self.is_annealing or self._level is None:
            return state, info
        before = [self._point(task, state, self._level, i) for i in range(len(self._level.elbo))]
        after = [self._moved(task, components, point, self.number_of(i)) for i, point in enumerate(before)]
        self._reached = {self.number_of(i): point.elbo for i, point in enumerate(after)}
        if all(new is old for new, old in zip(after, before, strict=True)):
            return state, info
        self._is_last_round = False
        state = joined(task.program, [point.state for point in after])
        bound = task.program.bound(state, task.program.means(state)) if len(after) > 1 else after[0].bound
        self._level = Level(task.program, bound, [point.elbo for point in after])
        return state, self._info(self._level.elbo, {})

    def _point(self, task: Task, state: State, level: Level, start: int) -> Candidate:
        """One start after a sweep."""
        return Candidate(of_start(state, start), level.bound.of([start]), level.elbo[start])

    def _moved(self, task: Task, components: list[ComponentSites], point: Candidate, number: int) -> Candidate:
        """A start after moves; as it was where it has not nearly settled, or they are all refused."""
        rise = point.elbo - self._reached.get(number, -math.inf)
        trials = self._trials.setdefault(number, Trials())
        if rise > _NEARLY_SETTLED and not self._is_last_round:
            return point
        one = task._replace(state=point.state, probs={})
        return Mover(one, components, trials, self._count).run(point)

    def _components_of(self, program: Program) -> list[ComponentSites]:
        """The components of a model, which are found once."""
        if self._components is None or self._components[0] is not program:
            self._components = program, components_of(program)
        return self._components[1]

    def _forget_trials(self) -> None:
        """What was refused was refused elsewhere."""
        self._trials, self._reached, self._is_last_round = {}, {}, False

    def forget_level(self) -> None:
        super().forget_level()
        self._forget_trials()

    def settled(self) -> None:
        """Try every move once more from where the run has settled."""
        if not self._is_last_round:
            self._is_last_round = True
            for trials in self._trials.values():
                trials.refused, trials.is_exhausted = {}, False

    @property
    def can_settle(self) -> bool:
        tried = (self._trials[number].is_exhausted for number in self._living if number in self._trials)
        return super().can_settle and self._is_last_round and all(tried)

    def moves_of(self, number: int) -> dict[str, int]:
        return dict(self._trials[number].accepted) if number in self._trials else {}

    def keep(self, start: int) -> None:
        number = self.number_of(start)
        super().keep(start)
        self._trials = {0: self._trials[number]} if number in self._trials else {}
        self._reached = {0: self._reached[number]} if number in self._reached else {}

    def to_state(self) -> PlainState:
        trials = [
            (number, list(t.refused.items()), list(t.accepted.items()), t.is_exhausted)
            for number, t in self._trials.items()
        ]
        more = {"trials": trials, "reached": list(self._reached.items()), "is_last_round": self._is_last_round}
        return super().to_state() | more

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        super().load_state(state, device)
        self._reached, self._is_last_round = dict(state["reached"]), state["is_last_round"]
        self._trials = {
            number: Trials(dict(refused), dict(accepted), is_exhausted)
            for number, refused, accepted, is_exhausted in state["trials"]
        }


__all__ = ["MergingSteps"]
