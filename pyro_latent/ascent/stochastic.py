r"""Stochastic variational inference: coordinate ascent on minibatches.

The blocks of the minibatch go to their optimum given the globals; each global block takes a natural-gradient step
towards the optimum that the minibatch, scaled to the size of the whole, gives it:

.. math:: η_b \leftarrow (1 - ρ_t) η_b + ρ_t \frac{\partial \bar L}{\partial μ_b}

(``docs/sources.md``, [4] §2.6; Hoffman et al. 2013). Parameters and MAP sites have no natural parameters; for them the
summaries of the minibatches are averaged with the same weights, and maximised (online EM, Cappé and Moulines 2009).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import fingerprint
from ..errors import ArgumentError, ModelError
from ..objective import BlockKey, DataSummary, Program, State, Summand, starts_of, summarize
from ..signatures import PlainState
from .compiled_sweep import CompiledSweeps, flat, restored
from .step_size import StepSize
from .steps import Info, Steps, Task
from .sweep import ModelArguments, Sweep, change_of_means, check_start

#: How fast the average that ranks several starts forgets.
_FORGETTING = 0.05
#: Kinds of minibatches whose rounds and steps are compiled at once, such as whole ones and a smaller last one.
_KINDS = 8


#: The state that a step reaches, the ELBO of each start, and the averaged summary of the parameters' data.
_StepOutcome = tuple[State, list[float], DataSummary | None]


class StochasticSteps(Steps):
    """The steps of stochastic variational inference, and what they remember.

    Args:
        step_size: ρ as a function of the step.
    """

    is_exact = False

    def __init__(self, step_size: StepSize) -> None:
        self.step_size = step_size
        self.count = 0
        self._summary: DataSummary | None = None  # of the parameters' data, averaged over the minibatches
        self._average: list[float] = []
        self._last: ModelArguments | None = None
        self.compiled = CompiledSweeps(most=_KINDS)

    def step(self, task: Task) -> tuple[State, Info]:
        """One step; an estimate of the ELBO for each start, at the globals before the step.

        Raises:
            ModelError: if the data is not that of the step before, and no plate says how much there is in all.
            ValueError: if the step size is outside (0, 1].
            NaturalDomainError: if an update left its family's domain.
        """
        program = task.program
        check_start(program, task.probs)
        self._check(program, task.arguments)
        order = task.schedule.blocks(program)
        local = [key for key in order if program.is_local(key)]
        others = [key for key in order if key not in local]
        step_size = self._next_size()
        task = self._nearly_settled(task, local)
        is_due = self._is_due(task)
        found = self._compiled(task, step_size) if is_due else None
        state, values, summary = found or self._visited(task, local, others, step_size, is_due)
        return state, self._took(task, values, summary)

    def _next_size(self) -> float:
        """ρ of the step at hand.

        Raises:
            ArgumentError: if it is outside (0, 1].
        """
        step_size = self.step_size(self.count)
        if not 0 < step_size <= 1:
            raise ArgumentError(f"Expected step sizes in (0, 1]; got {step_size!r} at step {self.count}.")
        return step_size

    def _took(self, task: Task, values: list[float], summary: DataSummary | None) -> Info:
        """Remember a step that has gone well, and say what it reached."""
        self.count += 1
        self._summary, self._last = summary, task.arguments
        pairs = zip(self._average or values, values, strict=True)
        self._average = [old + _FORGETTING * (new - old) for old, new in pairs]
        return Info(values, self._average.index(max(self._average)))

    def _nearly_settled(self, task: Task, local: list[BlockKey]) -> Task:
        """The task after the rounds over its local blocks, where those are compiled: one visit to each is left."""
        binding, (count, tol) = task.binding, task.schedule.rounds(task.program.recording.is_subsample)
        if not local or not count or binding is None or not self._is_compilable(task):
            return task

        def swept(tensors: list[Tensor]) -> list[Tensor]:
            sweep = Sweep(binding.program_of(tensors[size:]), restored(task.state, tensors), task.arguments)
            before = sweep.means
            for key in local:
                sweep.visit(key)
            change = change_of_means(before, sweep.means, local).reshape(1).double()
            return [*flat(sweep.state), torch.cat([*sweep.flags, change])]

        state, size = task.state, len(flat(task.state))
        for _ in range(count):
            found = self.compiled.called((binding.template, "round"), [*flat(state), *binding.tensors], swept)
            *tensors, report = found or [torch.zeros(1)]
            *flags, change = report.tolist()  # one transfer from the device
            if found is None or not all(flags):
                return task
            state = restored(state, tensors)
            if tol is not None and change <= tol:
                break
        return task._replace(state=state, schedule=replace(task.schedule, local_steps=1))

    def _is_due(self, task: Task) -> bool:
        """Whether a step is one to compile, or compiled."""
        if task.binding is None or not self._is_compilable(task):
            return False
        return self.compiled.is_due((task.binding.template, task.schedule))  # by which rounds are in it, or behind it

    def _compiled(self, task: Task, step_size: float) -> _StepOutcome | None:
        """What a compiled step reaches; None where there is none, or it does not go well."""
        assert task.binding is not None
        found = self.compiled.played(_given(task.state, task.binding.tensors, step_size))
        if found is None:
            return None
        *tensors, report = found
        values = report.tolist()  # one transfer from the device
        flags = len(values) - starts_of(task.state)
        is_well = all(values[:flags]) and all(map(math.isfinite, values))
        return (restored(task.state, tensors), values[flags:], self._summary) if is_well else None

    def _visited(
        self, task: Task, local: list[BlockKey], others: list[BlockKey], step_size: float, is_due: bool
    ) -> _StepOutcome:
        """What a step reaches that visits block by block; it is compiled for the next where that ``is_due``."""
        sweep, elbo, summary = self._moved(task, local, others, step_size)
        values = sweep.check_proper([elbo])
        binding, count = task.binding, len(flat(task.state))
        if binding is not None and is_due:

            def swept(tensors: list[Tensor]) -> list[Tensor]:
                program, state = binding.program_of(tensors[count:-1]), restored(task.state, tensors)
                again = task._replace(program=program, state=state)
                sweep, elbo, _ = self._moved(again, local, others, tensors[-1])
                return [*flat(sweep.state), torch.cat([*sweep.flags, elbo])]

            found = [*flat(sweep.state), torch.cat([*sweep.flags, elbo])]
            self.compiled.note(found, swept, _given(sweep.state, binding.tensors, step_size))
        return sweep.state, values, summary

    def _is_compilable(self, task: Task) -> bool:
        """Whether a step is a function of natural parameters, the minibatch and the step size alone."""
        points = any(block.is_point for block in task.program.blocks.values())
        obstacle = "parameters, whose summaries are averaged." if points else None
        return not task.probs and self.compiled.takes(task.program, task.state, obstacle)

    def _moved(
        self, task: Task, local: list[BlockKey], others: list[BlockKey], step_size: float | Tensor
    ) -> tuple[Sweep, Tensor, DataSummary | None]:
        """A sweep whose local blocks are settled and whose other blocks have taken their step; the ELBO of each start
        before that, and the averaged summary of the parameters' data.
        """
        sweep = Sweep(task.program, task.state, task.arguments, None, task.probs)
        task.schedule.settle(sweep, local)
        elbo = task.program.bound(sweep.state, sweep.means, None if sweep.is_stale else sweep.held).elbo
        return sweep, elbo, self._global_steps(sweep, others, step_size)

    def _global_steps(self, sweep: Sweep, keys: list[BlockKey], step_size: Any) -> DataSummary | None:
        """Step the globals; returns the averaged summary that the parameters were set by."""
        program = sweep.program
        points = [key for key in keys if program.blocks[key].is_point]
        summary = self._summary
        if points and any(set(points) & v.parents for v in program.derived):
            for key in points:
                program.optimum(key, sweep.means, sweep.summands)  # raises, and names the operation
        averaged: list[Summand] = []
        if points and program.recording.is_subsample:
            seen = summarize(program, sweep.state, sweep.means, sweep.held)
            summary = self._averaged(seen, step_size)
            averaged = summary.summands(program, program.recording.dtype)
        for key in keys:
            block = program.blocks[key]
            if block.is_point and program.recording.is_subsample:
                sweep.set(key, program.optimum(key, sweep.means, (), averaged))
            elif block.is_point:
                sweep.visit(key)
            else:
                sweep.blend(key, sweep.optimum_of(block), step_size)
        return summary

    def _averaged(self, seen: DataSummary, step_size: float) -> DataSummary:
        """What the minibatches so far say of the parameters, with one more."""
        return seen if self._summary is None else self._summary.times(1 - step_size).plus(seen, step_size)

    def _check(self, program: Program, arguments: ModelArguments) -> None:
        is_whole = not program.recording.is_subsample and not program.recording.declares_size
        if is_whole and self._last is not None and not _same_data(self._last, arguments):
            raise ModelError(
                "Expected a plate that says how much data there is in all, for the model is given other data than in "
                'the last step; got none. Write pyro.plate("data", size, subsample_size=len(x)).'
            )

    def keep(self, start: int) -> None:
        """Forget all starts but one."""
        self._summary = None if self._summary is None else self._summary.of(start)
        self._average = self._average[start : start + 1]

    def to_state(self) -> PlainState:
        """What is remembered, in plain types and tensors."""
        summary = None if self._summary is None else self._summary.to_state()
        return {"count": self.count, "average": self._average, "summary": summary}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take on a state of :meth:`to_state`."""
        self.count, self._average = state["count"], list(state["average"])
        self._summary = None if state["summary"] is None else DataSummary.from_state(state["summary"], device)


def _given(state: State, data: list[Tensor], step_size: float) -> list[Tensor]:
    """What a step is a function of: the state, the minibatch, and the step size, 0-dimensional in float64."""
    return [*flat(state), *data, torch.tensor(step_size, dtype=torch.float64)]


def _same_data(before: ModelArguments, now: ModelArguments) -> bool:
    """Whether two steps saw the same arguments: the same objects, or else equal data."""
    given = [[*args, *kwargs.values()] for args, kwargs in (before, now)]
    if len(given[0]) == len(given[1]) and all(a is b for a, b in zip(*given, strict=True)):
        return True
    return fingerprint(*given[0]) == fingerprint(*given[1])


__all__ = ["StochasticSteps"]
