"""Coordinate ascent whose sweeps begin where the last ones are going."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import DataError, NaturalDomainError
from ..objective import Block, BlockKey, Means, Program, State, of_start, starts_of
from ..settings import check_memory
from ..signatures import PlainState
from .extrapolation import WINDOW, Extrapolation, carried
from .full import FullSteps, Level, Reached
from .steps import Info, Task, joined
from .sweep import NotFiniteError, rounding_of

#: What a sweep from an extrapolated point may end in, which is then refused.
_REFUSED = (NaturalDomainError, NotFiniteError, DataError, torch.linalg.LinAlgError)


class AcceleratedSteps(FullSteps):
    """Sweeps that begin at an extrapolated point, each start at its own. Where that lowers the ELBO of a start, the
    point is refused, and the sweep begins where the last one ended. A run ends once a sweep without an extrapolation no
    longer raises the ELBO.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._carried: tuple[Program, list[Block]] | None = None
        self._keys: list[BlockKey] = []  # of these blocks
        self._paths: dict[int, Extrapolation] = {}  # by the number of each start
        self._elbo: dict[int, float] = {}  # that the last step ended at, by the number of each start
        self._swept_from: tuple[State, Means] = {}, {}
        self._swept_to: tuple[State, Means] = {}, {}
        self._is_plain = self._is_next_plain = True  # whether the last step was without an extrapolation, and the next

    def step(self, task: Task) -> tuple[State, Info]:
        """One sweep over all blocks, and another where its beginning was refused.

        Raises:
            ModelError: as a sweep does, or if what is remembered is over the limit of memory.
        """
        self._look_at(task)
        if self._paths and self._level is None:  # read from a file
            bound = task.program.bound(task.state, task.program.means(task.state))
            self._level = Level(task.program, bound, bound.elbo.tolist())
        found = super().step(task)
        self._is_next_plain = False
        self._elbo = dict(enumerate(found[1].elbo))
        return found

    def _look_at(self, task: Task) -> None:
        """Find the blocks that a sweep reads; what is remembered is forgotten, unless the last step ended at the ELBO
        that the recording has: it is then of the same model and data, as a second run is.
        """
        if self._carried is not None and self._carried[0] is task.program:
            return
        keys = carried(task.program, self.sequence(task))
        if keys != self._keys or (self._carried is not None and self._paths and not self._goes_on(task)):
            self._paths = {}
        blocks = [task.program.blocks[key] for key in keys]
        numbers = 3 * WINDOW * starts_of(task.state) * sum(block.numbers for block in blocks)
        check_memory("the last sweeps, which accelerate=True remembers", numbers, "Leave accelerate=True out.", 8)
        self._carried, self._keys = (task.program, blocks), keys

    def _goes_on(self, task: Task) -> bool:
        """Whether a recording has the ELBO that the last step ended at."""
        bound = task.program.bound(task.state, task.program.means(task.state))
        triples = enumerate(zip(bound.elbo.tolist(), bound.magnitude.tolist(), strict=True))
        dtype = task.program.recording.dtype
        ends = [(elbo, self._elbo.get(self.number_of(i), math.nan), size) for i, (elbo, size) in triples]
        return all(abs(now - before) <= rounding_of(size, dtype) for now, before, size in ends)

    @property
    def _blocks(self) -> list[Block]:
        assert self._carried is not None
        return self._carried[1]

    def _survivors(self, task: Task, before: Level | None) -> tuple[dict[int, str], State, Level]:
        points = {} if before is None or self._is_annealed or self._is_next_plain else self._points(task)
        self._is_plain = not points
        if before is not None and points:
            found = self._tried(task, before, points)
            if found is not None:
                return {}, *found
            self._is_plain = True
        failures, state, level = super()._survivors(task, before)
        if self._blocks and not self._is_annealed:
            living = [start for start in range(starts_of(task.state)) if start not in failures]
            for place, start in enumerate(living):
                self._note(self.number_of(start), place)
        return failures, state, level

    def _points(self, task: Task) -> dict[int, State]:
        """The blocks at an extrapolated point, by start."""
        found = {}
        for start in range(starts_of(task.state)):
            path = self._paths.get(self.number_of(start))
            point = None if path is None else path.point(self._blocks)
            if point is not None:
                found[start] = point
        return found

    def _tried(self, task: Task, before: Level, points: Mapping[int, State]) -> tuple[State, Level] | None:
        """A sweep from extrapolated points, and again without those of the starts that it leaves lower than
        before; None where every point is refused.
        """
        before.bound = before.bound._replace(held=None)
        try:
            reached, level = self._swept(_moved_to(task, points), None)
            lower = {i for i, (old, new) in enumerate(zip(before.elbo, level.elbo, strict=True)) if not new >= old}
            kept = {start: point for start, point in points.items() if start not in lower}
            if lower and kept:
                reached, level = self._swept(_moved_to(task, kept), before)
        except _REFUSED:
            kept = {}
        for start in points:
            path = self._paths[self.number_of(start)]
            path.keep() if start in kept else path.refuse()
        if not kept:
            return None
        for start in range(starts_of(task.state)):
            self._note(self.number_of(start), start)
        return reached.state, level

    def _swept(self, task: Task, before: Level | None) -> tuple[Reached, Level]:
        reached, level = super()._swept(task, before)
        begin, end = reached.ends or (task.program.means(task.state), task.program.means(reached.state))
        self._swept_from, self._swept_to = (task.state, begin), (reached.state, end)
        return reached, level

    def _note(self, number: int, place: int) -> None:
        """Remember the last sweep of a start, which is at this place in it."""
        path = self._paths.setdefault(number, Extrapolation())
        path.note(self._blocks, *(self._of(place, *ends) for ends in (self._swept_from, self._swept_to)))

    def _of(self, place: int, state: State, means: Means) -> tuple[State, Means]:
        """The blocks of one start that a sweep reads."""
        keys = [block.key for block in self._blocks]
        own = {key: means[key].map(lambda t: t[[place]]) for key in keys}
        ends = of_start({key: state[key] for key in keys}, place)
        return {key: natural.map(torch.clone) for key, natural in ends.items()}, own

    # What is remembered.

    def forget_level(self) -> None:
        super().forget_level()
        for path in self._paths.values():
            path.forget()

    def settled(self) -> None:
        """See whether a sweep raises the ELBO by itself."""
        self._is_next_plain = True

    @property
    def can_settle(self) -> bool:
        return super().can_settle and self._is_plain

    def moves_of(self, number: int) -> dict[str, int]:
        path = self._paths.get(number)
        return {} if path is None else {"point": path.kept, "refused": path.refused}

    def keep(self, start: int) -> None:
        number = self.number_of(start)
        path = self._paths.get(number)
        super().keep(start)
        self._paths = {} if path is None else {0: path}
        self._elbo = {0: self._elbo.get(number, math.nan)}

    def to_state(self) -> PlainState:
        paths = {number: path.to_state(self._keys) for number, path in self._paths.items()}
        plain = [self._is_plain, self._is_next_plain]
        return super().to_state() | {"keys": list(self._keys), "paths": list(paths.items()), "is_plain": plain}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        super().load_state(state, device)
        self._carried, self._keys = None, list(state["keys"])
        self._paths = {number: Extrapolation.of(path, self._keys, device) for number, path in state["paths"]}
        self._is_plain, self._is_next_plain = state["is_plain"]


def _moved_to(task: Task, points: Mapping[int, State]) -> Task:
    """A task whose starts are at extrapolated points, where they have one."""
    states = [of_start(task.state, start) | points.get(start, {}) for start in range(starts_of(task.state))]
    return task._replace(state=joined(task.program, states), probs={})


__all__ = ["AcceleratedSteps"]
