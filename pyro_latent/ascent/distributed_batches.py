r"""Stochastic and memoised inference by several processes, each with minibatches or pieces of its own.

What the minibatches say about the globals adds up (:class:`~pyro_latent.objective.DataSummary`). Where process r has
n_r of the N data, its summary s_r is scaled by N / n_r, and that of all of them together, scaled by N / Σ n_r, is

.. math:: s = \sum_r \frac{n_r}{\sum n_r} s_r.

One all-reduce gives it to all processes, and all of them take the same step: that of one process with the minibatches
in one. Of pieces, the change of their summaries is exchanged, and the total is that of all pieces of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from typing import Any, NamedTuple

import torch

from ..checkpoint import fingerprint
from ..errors import ArgumentError, DataError, ModelError
from ..objective import DataSummary, Program, State, padded
from ..signatures import PlainState
from .batches import check_repeatable, length_of, state_of
from .distributed import SharedSteps, globals_of, settled
from .loans import Own
from .memoised import MemoisedSteps, mark_of, reached, set_globals
from .pieces import Piece, PieceFile
from .progress import Progress
from .ranks import Alone, Ranks
from .step_size import StepSize
from .steps import Info, Steps, Task
from .stochastic import StochasticSteps
from .sweep import ModelArguments, Sweep, check_risen

#: What gives the arguments of a step, None in a process without batches, or raises what was wrong with them.
Delivery = Callable[[], Own]

_NO_FILE = (
    "Expected a checkpoint of one process, for with memoised=True each process has pieces of its own; got a "
    "process_group. Leave it out: keep guide.state_dict(), and begin with a guide that has loaded it."
)

_PAIRS = (
    "pairs of elements in joint normal blocks, which the first batches must all have (without blocks= there are none),"
)


class _Part(NamedTuple):
    """How much of the data is here, and what is the same in all processes: how much there is, and the pairs of elements
    that joint normal blocks are of.
    """

    size: int
    full_size: float
    alike: dict[str, Any]


class SharedStochasticSteps(SharedSteps, StochasticSteps):
    """Stochastic steps on the minibatches of several processes, as one step on all of them.

    Args:
        ranks: the processes.
        step_size: ρ as a function of the step.
    """

    def __init__(self, ranks: Ranks, step_size: StepSize) -> None:
        SharedSteps.__init__(self, ranks)
        StochasticSteps.__init__(self, step_size)

    def step(self, task: Task) -> tuple[State, Info]:
        """One step; the estimate of the ELBO by all minibatches, for each start, at the globals before the step.

        Raises:
            ModelError: in all processes, if no plate says how much data there is in all.
            PyroLatentError: in all processes, if the updates of one minibatch fail.
        """
        program = task.program

        def found() -> tuple[float, _Part, Sweep, DataSummary]:
            return self._next_size(), _part_of(program), *settled(task)

        step_size, part, sweep, own = self.ranks.agreed(found)
        total, (count,) = self.exchange.total(program, own.times(part.size), [part.size], part.alike)
        total = total.times(1 / count)
        elbo, _ = reached(program, sweep, total, globals_of(task))
        summary = self._moved_globals(task, sweep, total, step_size)
        sweep.check_proper()
        return sweep.state, self._took(task, elbo, summary)

    def _moved_globals(self, task: Task, sweep: Sweep, total: DataSummary, step_size: float) -> DataSummary | None:
        """Step the globals; returns the averaged summary that the parameters were set by."""
        program, keys = task.program, globals_of(task)
        points = {key for key in keys if program.blocks[key].is_point}
        summary = self._averaged(total, step_size) if points else None
        means = [] if summary is None else summary.summands(program, program.recording.dtype)
        now = total.summands(program, program.recording.dtype)
        for key in keys:
            if key in points:
                sweep.set(key, program.optimum(key, sweep.means, (), means))
            else:
                natural = program.optimum(key, sweep.means, (), now, start=sweep.state[key])
                sweep.blend(key, natural, step_size)
        return summary

    def keep(self, start: int) -> None:
        StochasticSteps.keep(self, start)
        self.exchange.forget()


class SharedMemoisedSteps(SharedSteps, MemoisedSteps):
    """Memoised steps on a piece in each of several processes, as one step on all of these pieces.

    Args:
        ranks: the processes.
        folder: where pieces are kept; None: in memory.
    """

    def __init__(self, ranks: Ranks, folder: str | PathLike[str] | None = None) -> None:
        SharedSteps.__init__(self, ranks)
        MemoisedSteps.__init__(self, folder)
        self._size = 0.0  # of all pieces of all processes

    def step(self, task: Task) -> tuple[State, Info]:
        """One step on a piece of each process; the exact ELBO, for each start, of all pieces of all processes so far.

        Raises:
            DataError: in all processes, if a piece had other data before, or the pieces are more than all of the data.
            ModelError: in all processes, if the model cannot tell pieces from the whole.
            ElboDecreaseError: if the ELBO fell by more than rounding explains.
        """
        program, others = task.program, globals_of(task)
        name = task.piece
        assert name is not None
        known = self.ranks.agreed(lambda: self._known(name))
        part, sweep, found, kept = self.ranks.agreed(lambda: self._found(task, name, known))
        change = found if known is None else found.minus(known.summary)
        new = [0.0, 0.0] if known else [1.0, part.size]
        change, (news, size) = self.exchange.total(program, change, new, part.alike)
        _check_size(self._size + size, part)
        total = change if self._total is None else self._total.plus(change)
        set_globals(program, sweep, total, others)
        elbo, sizes = reached(program, sweep, total, others)
        check_risen(elbo if self._level is None or news else self._level, elbo, sizes, program)
        self.pieces[name] = kept
        self._total, self._level, self._size = total, elbo, self._size + size
        return sweep.state, Info(elbo, elbo.index(max(elbo)))

    def _found(
        self, task: Task, name: int | str, known: Piece | None
    ) -> tuple[_Part, Sweep, DataSummary, Piece | PieceFile]:
        """How much data a piece has, a sweep with its local blocks settled, its summary, and what is kept of it.

        Raises:
            DataError, ModelError: if it is not the piece that it was.
        """
        program, mark = task.program, mark_of(task)
        part = _part_of(program)
        self._check(program, name, known, mark)
        state = task.state if known is None else padded(program.blocks, task.state | dict(known.local))
        sweep, found = settled(task._replace(state=state))
        local = {key: natural for key, natural in sweep.state.items() if program.in_subsample(key)}
        return part, sweep, found, self._kept(Piece(found, local, mark))

    def keep(self, start: int) -> None:
        MemoisedSteps.keep(self, start)
        self.exchange.forget()

    def to_state(self) -> PlainState:
        """Nothing: each process has pieces of its own.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(_NO_FILE)

    def load_state(self, state: Mapping[str, object], device: torch.device) -> None:
        raise ArgumentError(_NO_FILE)


def _check_size(size: float, part: _Part) -> None:
    """Raise, in all processes alike, where the pieces are more than all of the data.

    Raises:
        DataError: with how much they are.
    """
    if size > part.full_size:
        raise DataError(
            f"Expected pieces that are all of the data, {part.full_size:.0f}, at most; got {size:.0f} in those of all "
            "processes. Give each datum to one process; a DistributedSampler repeats some."
        )


def _part_of(program: Program) -> _Part:
    """How much of the data the program has.

    Raises:
        ModelError: if there is not one plate of which it has a part.
    """
    plates = {p.name: p for scored in program.recording.scored.values() for p in scored.plates if p.is_subsample}
    if len(plates) != 1:
        raise ModelError(
            "Expected one plate of which each process has a part, and which says how much there is in all; got "
            f"{', '.join(map(repr, sorted(plates))) or 'none'}. Write one "
            'pyro.plate("data", size, subsample_size=len(batch)), with less than all of the data in each process.'
        )
    ((name, plate),) = plates.items()
    joint = {b.label: b.joint_normal.codes for b in program.blocks.values() if b.joint_normal}
    pairs = {label: f"{len(codes)}, {fingerprint(codes)[:8]}" for label, codes in joint.items()}
    alike = {f"size of plate {name!r}": float(plate.full_size), _PAIRS: pairs}
    return _Part(plate.size, float(plate.full_size), alike)


def agreed_length(
    batches: Iterable[object], epochs: int, tol: float, keeps_file: bool, steps: Steps, ranks: Alone | Ranks
) -> int | None:
    """The number of batches of a pass, as all processes agree on it, and on when they end; None where there is one
    process, and it does not know.

    Raises:
        ArgumentTypeError: for what cannot be iterated over again.
        ArgumentError: for a file of pieces that several processes have.
        DataError: in all processes, if they have no number of batches, or others.
    """

    def own() -> int | None:
        check_repeatable(batches)
        if keeps_file and isinstance(steps, SharedMemoisedSteps):
            raise ArgumentError(_NO_FILE)
        return length_of(batches)

    length = ranks.agreed(own)
    if isinstance(ranks, Alone) or ranks.size == 1:
        return length
    told = ranks.gathered((length, epochs, tol))
    length = next((n for n, _, _ in told if n != 0), 0)  # a process without data has none
    if length is None or any(one not in ((length, *told[0][1:]), (0, *told[0][1:])) for one in told):
        words = (f"{'an unknown number' if n is None else n} in each of {k} passes, tol={t}" for n, k, t in told)
        raise DataError(
            f"Expected as many batches in all processes; got {'; '.join(words)}, in processes 0 to {ranks.size - 1}. "
            "Give each a DataLoader with a DistributedSampler, or a list of as many batches as the others have."
        )
    return length


class _Undelivered(NamedTuple):
    """What stands for a batch that did not come, by an error, or because a process has none."""

    error: Exception | None


def delivered(
    progress: Progress, batches: Iterable[object], length: int | None, ranks: Alone | Ranks
) -> Iterator[tuple[int, Any]]:
    """The batches of this pass that are left, with their numbers. What goes wrong in one process is given as its next
    batch, of which :func:`given` raises it in all of them.
    """
    rest, number = progress.rest(batches), progress.in_pass
    if isinstance(ranks, Alone) or length is None:
        yield from rest
        return
    if length_of(batches) == 0:
        yield from ((i, _Undelivered(None)) for i in range(number, length))
        return
    try:
        for number, batch in rest:
            if number + 1 >= length and next(rest, None) is not None:
                raise DataError(f"Expected {length} batches, as the loader says that it has; got more.")
            yield number, batch
            number += 1
        if number < length:
            raise DataError(f"Expected {length} batches, as the loader says that it has; got {number}.")
    except Exception as error:
        yield number, _Undelivered(error)


def given(batch: object, arguments: Callable[[Any], ModelArguments]) -> Own:
    """The model's arguments of a batch; raises what was wrong with one of :func:`delivered`."""
    if not isinstance(batch, _Undelivered):
        return arguments(batch)
    if batch.error is not None:
        raise batch.error
    return None


def own_random(content: dict[str, Any] | None, ranks: Alone | Ranks) -> dict[str, Any] | None:
    """The content of a file of the first process, with this one's random state in place of that one's, so that all of
    them do not draw the same minibatches.
    """
    if content is None or isinstance(ranks, Alone) or ranks.is_first:
        return content
    own = state_of([])
    return content | {"random": own, "pass_random": own}


__all__ = [
    "Delivery",
    "SharedMemoisedSteps",
    "SharedStochasticSteps",
    "agreed_length",
    "delivered",
    "given",
    "own_random",
]
