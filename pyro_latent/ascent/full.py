"""Coordinate ascent on all of the data at once: its ELBO is exact, and never falls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ElboDecreaseError, ModelError, NaturalDomainError, NotConjugateError
from ..objective import BlockKey, ElboBound, Means, Program, State, starts_of
from ..recording import Recording, version_of
from ..signatures import PlainState
from .compiled_sweep import CompiledSweeps, flat, restored
from .steps import Info, Steps, Task
from .sweep import NotFiniteError, Sweep, fall_of

#: What the sweep of one start may end in while the others are right; a fall of the ELBO is no such thing.
_OF_ONE_START = (NaturalDomainError, NotFiniteError, torch.linalg.LinAlgError)
#: A run in float32 has not converged if one sweep in float64 raises its ELBO by more than this, relative to it or to 1.
_LEAST_RISE = 1e-6


@dataclass
class Level:
    """The ELBO that the last step reached: for which recording, as a bound, and as numbers.

    The bound lets its discrete posterior go once a sweep has taken it up: two of them do not fit where one does.
    """

    program: Program
    bound: ElboBound
    elbo: list[float]

    def of(self, starts: Sequence[int]) -> Level:
        """Keep some starts alone."""
        return Level(self.program, self.bound.of(starts), [self.elbo[i] for i in starts])


class Reached(NamedTuple):
    """What a sweep reaches; in one tensor, whether each update was proper, and the ELBO and its size by start; and the
    mean parameters at both ends of a sweep that is not compiled.
    """

    state: State
    bound: ElboBound
    report: Tensor
    ends: tuple[Means, Means] | None = None

    @property
    def start(self) -> list[Tensor]:
        """What the next sweep starts from, one tensor after another."""
        return [*flat(self.state), *self.bound.tensors]

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, one after another."""
        return [*self.start, self.report]

    def like(self, tensors: Sequence[Tensor]) -> Reached:
        """The same of other tensors in that order."""
        count = sum(len(natural) for natural in self.state.values())
        return Reached(restored(self.state, tensors[:count]), self.bound.like(tensors[count:-1]), tensors[-1])


class FullSteps(Steps):
    """Sweeps over every block; a start whose updates fail is dropped while others go on.

    The first ones are at the inverse temperatures of ``annealing``: they may lower the ELBO.
    """

    takes_batches = False

    def __init__(self, annealing: Sequence[float] = ()) -> None:
        self.annealing = annealing
        self.compiled = CompiledSweeps()
        self._count = 0  # the steps so far
        self._level: Level | None = None
        self._program: Program | None = None  # of the last step, and the order of its updates
        self._order: list[BlockKey | None] = []
        self._seen: dict[str, tuple[Tensor, int]] = {}  # the data of the last step alone, with its versions
        self._living: list[int] = []  # the numbers of the starts that the guide holds
        self._dropped: dict[int, str] = {}
        self._is_annealed = False  # whether the step in progress is at a temperature
        self._in_file: list[float] = []  # the level of a file that was loaded, until a step
        self._is_moved = False  # whether somebody has changed what is fitted, before the next step

    def step(self, task: Task) -> tuple[State, Info]:
        """One sweep over all blocks.

        Raises:
            ModelError: if a plate subsamples, or a step alone has other data than the one before.
            NaturalDomainError: if an update left its family's domain, for every start.
            ElboDecreaseError: if the ELBO fell by more than rounding explains.
        """
        program, before = task.program, self._level
        if self._program is not program:
            check_whole(program)
            self._program, self._order = program, task.schedule.sites(program)
        self._is_annealed = self._count < len(self.annealing)
        seen = _versions_of(program.recording) if task.is_alone else {}
        if seen and not program.recording.declares_size:
            _check_same(self._seen, seen)
        if before is not None and before.program is not program:  # recorded anew: where the sweep starts from now
            bound = program.bound(task.state, program.means(task.state))
            again = Level(program, bound, bound.elbo.tolist())
            self._is_moved |= fall_of(before.elbo, again.elbo, bound.magnitude.tolist(), program.recording.dtype) != 0
            before = again
        failures, state, self._level = self._survivors(task, before)
        self._seen = seen
        self._count += 1
        is_below = bool(self._in_file) and self._is_below_file()
        self._was_moved, self._is_moved = self._is_moved or is_below, False
        return state, self._info(self._level.elbo, failures)

    def _is_below_file(self) -> bool:
        """Whether the first step after a file ended lower than the file: latents of the data may have started anew."""
        last, self._in_file, level = self._in_file, [], self._level
        if level is None or len(last) != len(level.elbo):
            return False
        return fall_of(last, level.elbo, level.bound.magnitude.tolist(), level.program.recording.dtype) != 0

    def _survivors(self, task: Task, before: Level | None) -> tuple[dict[int, str], State, Level]:
        """The errors of the starts that a sweep fails for, and what a sweep over the others reaches."""
        try:
            reached, level = self._swept(task, before)
            return {}, reached.state, level
        except _OF_ONE_START:
            failures = self._failures(task, before)
            living = [start for start in range(starts_of(task.state)) if start not in failures]
            if not failures or not living:
                raise
        reached, level = self._swept_alone(task, before, living)
        return failures, reached.state, level

    def _failures(self, task: Task, before: Level | None) -> dict[int, str]:
        """The errors of the starts that a sweep fails for, where there are several of them."""
        failures, count = {}, starts_of(task.state)
        for start in range(count if count > 1 else 0):
            try:
                self._swept_alone(task, before, [start])
            except _OF_ONE_START as error:
                failures[start] = str(error)
        return failures

    def _swept_alone(self, task: Task, before: Level | None, starts: list[int]) -> tuple[Reached, Level]:
        """A sweep over some of the starts."""
        return self._swept(task.of(starts), None if before is None else before.of(starts))

    def _swept(self, task: Task, before: Level | None) -> tuple[Reached, Level]:
        """A sweep over every start, if every update was proper and none lowered the ELBO that it reaches."""
        program, is_annealed = task.program, self._is_annealed
        is_due = before is not None and self.compiled.is_due((program, len(before.elbo))) and self._is_compilable(task)
        found = self._compiled(task, before) if before is not None and is_due else None
        reached, elbo, magnitude = found or self._visited(task, before, is_due)
        fall = 0.0 if before is None or is_annealed else fall_of(before.elbo, elbo, magnitude, program.recording.dtype)
        if before is not None and fall:
            culprit = _culprit(task, before)
            raise ElboDecreaseError(
                f"Expected the ELBO not to fall; got a fall of {fall:.6g} nats, by the update of "
                f"{_label_of(program, culprit)}. {_advice(program, culprit)} The guide is as before the step."
            )
        return reached, Level(program, reached.bound, elbo)

    def _is_compilable(self, task: Task) -> bool:
        """Whether a sweep is a function of natural parameters and the posterior of the discrete sites alone."""
        is_free = not self._is_annealed and not task.probs
        return is_free and self.compiled.takes(task.program, task.state)

    def _compiled(self, task: Task, before: Level) -> tuple[Reached, list[float], list[float]] | None:
        """What a compiled sweep reaches, with the ELBO and its size by start as numbers; None where there is none, or
        it does not go well.
        """
        start = Reached(task.state, before.bound, before.bound.elbo)
        found = self.compiled.played(start.start)
        if found is None:
            return None
        reached = start.like(found)
        values = reached.report.tolist()  # one transfer from the device
        count = len(before.elbo)
        if not all(values[: -2 * count]) or not all(map(math.isfinite, values)):
            return None
        return reached, values[-2 * count : -count], values[-count:]

    def _visited(self, task: Task, before: Level | None, is_due: bool) -> tuple[Reached, list[float], list[float]]:
        """The same by a sweep that visits block by block; it is compiled for the next where that ``is_due``."""
        program, held = task.program, None if before is None or self._is_annealed else before.bound.held
        temperature = self.annealing[self._count] if self._is_annealed else 1.0
        sweep = Sweep(program, task.state, task.arguments, held, task.probs, inverse_temperature=temperature)
        if before is not None:
            before.bound = before.bound._replace(held=None)
        del held
        begin = sweep.means
        reached = self._outcome(sweep, task)
        values = sweep.checked(reached.report)  # one transfer from the device
        if is_due:

            def swept(tensors: list[Tensor]) -> list[Tensor]:
                start = reached.like([*tensors, reached.report])
                return self._outcome(Sweep(program, start.state, task.arguments, start.bound.held), task).tensors

            self.compiled.note(reached.tensors, swept, reached.start)
        return reached._replace(ends=(begin, sweep.means)), values[: len(values) // 2], values[len(values) // 2 :]

    def _outcome(self, sweep: Sweep, task: Task) -> Reached:
        """Visit every block; where that leads to. What was wrong first is raised, not what came of it."""
        try:
            self.visit_all(sweep, task)
            sweep.held = None
            bound = sweep.program.bound(sweep.state, sweep.means)
        except Exception:
            sweep.check_proper()
            raise
        return Reached(sweep.state, bound, torch.cat([*sweep.flags, bound.elbo, bound.magnitude]))

    def sequence(self, task: Task) -> list[BlockKey | None]:
        """The blocks in the order that a sweep visits them; those of the data's plates come first where there are
        rounds over them.
        """
        order = task.schedule.sites(task.program)
        if task.schedule.local_steps in (None, 1):
            return order
        return [*(key for key in order if key is not None and task.program.is_local(key)), *order]

    def visit_all(self, sweep: Sweep, task: Task) -> None:
        """Visit every block once, after further rounds over the blocks in the data's plates."""
        schedule = task.schedule
        if schedule.local_steps is not None:
            local = [key for key in self._order if key is not None and sweep.program.is_local(key)]
            sweep.rounds(local, schedule.local_steps - 1, schedule.local_tol)
        for key in self._order:
            sweep.visit(key)

    def _info(self, elbo: list[float], failures: Mapping[int, str]) -> Info:
        """What a step reached, by the number of each start."""
        living = self._living
        if len(living) != len(elbo) + len(failures):
            living, self._dropped = list(range(len(elbo) + len(failures))), {}
        self._dropped = self._dropped | {living[i]: failures[i] for i in failures}
        self._living = [number for i, number in enumerate(living) if i not in failures]
        by_number = dict(zip(self._living, elbo, strict=True))
        numbered = [by_number.get(i, -math.inf) for i in range(len(self._living) + len(self._dropped))]
        return Info(numbered, elbo.index(max(elbo)))

    # What is remembered.

    def forget_level(self) -> None:
        self._level, self._is_moved = None, True

    def keep(self, start: int) -> None:
        self._level, self._living, self._dropped = None, [], {}

    def to_state(self) -> PlainState:
        last = self._in_file if self._level is None else self._level.elbo
        place = {"count": self._count, "moved": self._was_moved, "last": last}
        return {"living": list(self._living), "dropped": list(self._dropped.items())} | place

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._level, self._living, self._dropped = None, list(state["living"]), dict(state["dropped"])
        self._count = state["count"]
        self._was_moved, self._is_moved = state.get("moved", False), False  # older files do not say
        self._in_file = list(state.get("last", []))

    @property
    def is_annealing(self) -> bool:
        return 0 < self._count <= len(self.annealing)

    def number_of(self, start: int) -> int:
        return self._living[start] if self._living else start

    @property
    def dropped(self) -> dict[int, str]:
        return dict(self._dropped)

    def rise_left(self, state: State) -> tuple[float, float]:
        level = self._level
        if level is None or level.program.recording.dtype == torch.float64:
            return 0.0, 0.0
        return float(level.program.rise_unrounded(state, level.bound.held).max()), _LEAST_RISE


def _culprit(task: Task, before: Level) -> BlockKey | None:
    """The block whose update lowers the ELBO most, one at a time; None for the discrete sites. A point without a closed
    form is taken for one that changes nothing.
    """
    again = Sweep(task.program, task.state, task.arguments, before.bound.held)
    level = before.bound.elbo
    drops: dict[BlockKey | None, float] = {}
    for key in task.schedule.sites(task.program):
        with suppress(NotConjugateError):
            again.visit(key)
        now = task.program.bound(again.state, again.means).elbo
        drops[key] = float((level - now).max())
        level = now
    return max(drops, key=drops.__getitem__)


def _label_of(program: Program, key: BlockKey | None) -> str:
    return "the discrete sites" if key is None else repr(program.blocks[key].label)


def _advice(program: Program, key: BlockKey | None) -> str:
    """What to do about an update that lowered the ELBO."""
    updates = [s.update for s in program.discrete] if key is None else [program.blocks[key].update]
    if any(update is not None for update in updates):
        return "It is hand-written: check_updates compares it with the derived one."
    wider = "" if program.recording.dtype == torch.float64 else ", or use float64"
    return (
        "It is derived, so digits were lost: data or columns of a design far from zero, beside their spread, cancel. "
        f"Subtract their means and divide by their standard deviations, mend outliers{wider}."
    )


def _check_same(before: Mapping[str, tuple[Tensor, int]], now: Mapping[str, tuple[Tensor, int]]) -> None:
    """The steps of one fit see the same data, for each of them forgets what it does not see.

    Raises:
        ModelError: if they do not.
    """
    other = [name for name in now if before and (name not in before or not _equal(before[name], now[name]))]
    if other:
        raise ModelError(
            "Expected the data of the last step, or a plate that says how much data there is in all; "
            f"got other data at {', '.join(map(repr, other))}, for which the guide would forget the last step's. "
            'For batches write pyro.plate("data", size, subsample_size=len(x)) and CAVI(model, guide, '
            "step_size=RobbinsMonro()) or CAVI(model, guide, memoised=True). To fit the guide to this data instead, "
            "use run, or a new CAVI(model, guide)."
        )


def _versions_of(recording: Recording) -> dict[str, tuple[Tensor, int]]:
    """The data of a recording, with what tells whether torch has written into them."""
    return {name: (value, version_of(value)) for name, value in recording.observations.items()}


def _equal(before: tuple[Tensor, int], now: tuple[Tensor, int]) -> bool:
    (old, old_version), (new, version) = before, now
    if old is new:
        return old_version == version
    alike = old.shape == new.shape and old.dtype == new.dtype and old.device == new.device
    return old_version == version_of(old) and alike and torch.equal(old, new)


def check_whole(program: Program) -> None:
    """Coordinate ascent sees all of the data at once.

    Raises:
        ModelError: if a plate holds a part of them.
    """
    part = next((p for s in program.recording.scored.values() for p in s.plates if p.is_subsample), None)
    if part is not None:
        raise ModelError(
            f"Expected plates over all of the data; got plate {part.name!r} with a subsample of {part.size} of "
            f"{part.full_size}. Leave out subsample_size, or write CAVI(model, guide, step_size=RobbinsMonro()) or "
            "CAVI(model, guide, memoised=True)."
        )


__all__ = ["FullSteps", "Level", "Reached", "check_whole"]
