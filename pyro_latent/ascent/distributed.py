r"""Coordinate ascent by several processes, each with a shard of the data.

A step settles the local blocks of each shard where it is, adds up what the shards say about the globals
(:class:`~pyro_latent.objective.DataSummary`) by one all-reduce, and sets the globals, in every process alike, to their
optimum given the sum: the mathematics is that of :mod:`.memoised`, with all pieces exchanged at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ..checkpoint import fingerprint
from ..errors import CheckpointError, DataError, ModelError
from ..guide import AutoConjugate, Prepared
from ..objective import BlockKey, DataSummary, Program, State, summarize
from ..recording import difference_of, identity_of_call
from ..signatures import PlainState
from .exchange import Exchange
from .m_step import M_STEP_PASSES, moved_from, points_of
from .memoised import MemoisedSteps, check_pieces, reached, set_globals, settled_sweep
from .ranks import Ranks
from .steps import Info, Schedule, Steps, Task
from .sweep import ModelArguments, Sweep, check_risen, fall_of

#: Of EM: one visit to each parameter, or visits until none moves.
SharedMStep = Literal["conditional", "joint"]


class SharedSteps(Steps):
    """Steps on data that lie in several processes.

    Args:
        ranks: the processes.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.exchange = Exchange(ranks)

    def evaluate(self, guide: AutoConjugate, arguments: ModelArguments, schedule: Schedule) -> list[float]:
        """The exact ELBO of all shards for each start, without a step."""

        def found() -> tuple[Task, Sweep, DataSummary]:
            prepared = guide.prepare(*arguments, rescale=False, redraws=False)
            task = Task(prepared.program, arguments, prepared.state, {}, schedule)
            return task, *self.read(task)

        task, sweep, own = self.ranks.agreed(found)
        check_shards(self.ranks, None if self.ranks.stands_in else task.program)
        total, _ = Exchange(self.ranks).total(task.program, own)
        return reached(task.program, sweep, total, globals_of(task))[0]

    def read(self, task: Task) -> tuple[Sweep, DataSummary]:
        """What a shard says about the globals, with its local blocks at their optimum given these."""
        return settled(task)


class DistributedSteps(SharedSteps):
    """Steps on a shard of the data, with the processes that have the others.

    Args:
        ranks: the processes.
        m_step: of EM, how often its parameters are visited: once, or until none moves.
    """

    takes_batches = False
    rescales = False
    redraws = False

    def __init__(self, ranks: Ranks, m_step: SharedMStep | None = None) -> None:
        super().__init__(ranks)
        self.m_step = m_step
        self._program: Program | None = None
        self._level: list[float] | None = None
        self._last: list[float] = []  # the level after the last step, also where that is forgotten
        self._carried: DataSummary | None = None  # what all shards say at the end of the last step, to begin with

    def step(self, task: Task) -> tuple[State, Info]:
        """One sweep; the exact ELBO of all shards, for each start.

        Raises:
            PyroLatentError: in all processes, if the updates of one shard fail.
            ElboDecreaseError: if the ELBO fell by more than rounding explains.
        """
        program, others = task.program, globals_of(task)
        before, is_new = self._level, self.ranks.any(self._program is not program)
        if is_new:
            self.exchange.forget()
            self._carried = None
            before = None if self.ranks.any(before is None) else self._start_of(task)
        sweep, total = self._settled(task)
        set_globals(program, sweep, total, others)
        self._settle_points(task, sweep, total)
        if program.discrete:  # whose posterior is that at the new globals
            sweep.check_proper()
            total = self._total_at(task._replace(state=sweep.state))
        elbo, sizes = reached(program, sweep, total, others)
        check_risen(before or elbo, elbo, sizes, program)
        last = self._last if len(self._last) == len(elbo) else elbo
        self._was_moved = fall_of(last, elbo, sizes, program.recording.dtype) != 0
        self._program, self._level, self._last = program, elbo, elbo
        self._carried = total if _is_carried(program) else None
        return sweep.state, Info(elbo, elbo.index(max(elbo)))

    def _start_of(self, task: Task) -> list[float]:
        """The ELBO of all shards where a step begins, of a model or of data that have changed since the last one."""
        sweep = Sweep(task.program, task.state, task.arguments, hold=False)
        return reached(task.program, sweep, self._total_at(task), globals_of(task))[0]

    def _settled(self, task: Task) -> tuple[Sweep, DataSummary]:
        """A sweep with local blocks and discrete sites at their optimum, and what all shards say; where these are the
        discrete sites alone, the last step has ended so.
        """
        if _is_carried(task.program) and not self.ranks.any(self._carried is None):
            assert self._carried is not None
            return Sweep(task.program, task.state, task.arguments, hold=False), self._carried
        sweep, found = self.ranks.agreed(lambda: settled(task))
        return sweep, self.exchange.total(task.program, found)[0]

    def _total_at(self, task: Task) -> DataSummary:
        """What all shards say at the state of a task, with the discrete sites at their optimum."""

        def found() -> DataSummary:
            sweep, own = self.read(task)
            sweep.check_proper([own.number])
            return own

        return self.exchange.total(task.program, self.ranks.agreed(found))[0]

    def _settle_points(self, task: Task, sweep: Sweep, total: DataSummary) -> None:
        """Visit parameters, again, until none moves, where an M-step is to be joint."""
        points = points_of(task) if self.m_step is not None else []
        for _ in range(M_STEP_PASSES if self.m_step == "joint" and len(points) > 1 else 0):
            before = {key: sweep.state[key].x for key in points}
            set_globals(task.program, sweep, total, points)
            if not moved_from(before, sweep):
                break

    def read(self, task: Task) -> tuple[Sweep, DataSummary]:
        """What the shard says, with its local blocks as the last sweep left them."""
        sweep = Sweep(task.program, task.state, task.arguments)
        return sweep, summarize(task.program, sweep.state, sweep.means, sweep.held)

    def forget_level(self) -> None:
        self._level = self._carried = None

    def keep(self, start: int) -> None:
        self._level, self._program, self._last, self._carried = None, None, [], None

    def to_state(self) -> PlainState:
        """What is remembered, as one process that has all of the data would say it, for it may go on from there."""
        of_one: dict[str, Any] = {"living": [], "dropped": [], "count": 0, "optimizer": None}
        return of_one | {"moved": self._was_moved, "last": self._last}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take on a state of :meth:`to_state`, or of one process that has kept all of its starts.

        Raises:
            CheckpointError: if it has dropped some.
        """
        if state.get("dropped"):
            raise CheckpointError(
                "Expected a checkpoint of a run that has kept all of its starts, to go on in several processes; got "
                f"one that has dropped {len(state['dropped'])}. End it in one process, or keep guide.state_dict()."
            )
        self._level, self._program, self._carried = None, None, None
        self._last = list(state.get("last", []))
        self._was_moved = state.get("moved", False)  # older files say neither


def _is_carried(program: Program) -> bool:
    """Whether discrete sites are all that a shard has of its own."""
    return bool(program.discrete) and not any(program.in_subsample(key) for key in program.blocks)


def globals_of(task: Task) -> list[BlockKey]:
    """The blocks that all processes have, in the order of their updates."""
    return [key for key in task.schedule.blocks(task.program) if not task.program.in_subsample(key)]


def settled(task: Task) -> tuple[Sweep, DataSummary]:
    """A sweep whose local blocks are up to date, and what its shard says about the globals."""
    check_pieces(task.program)
    sweep = settled_sweep(task, task.state, task.probs)
    found = summarize(task.program, sweep.state, sweep.means, sweep.held)
    sweep.check_proper([found.number])
    return sweep, found


def join(
    ranks: Ranks, guide: AutoConjugate, arguments: ModelArguments, schedule: Schedule, settings: object, steps: Steps
) -> None:
    """Bring the guides of all processes to one state: that of the first one with data, which, if it is new, takes a
    step on its shard, or its first batch, for a start.

    Raises:
        ModelError: in all processes, if their models, arguments that are no data, settings, or what has been changed in
            Pyro's store differ.
        DataError: in all processes, if the shards are not the whole of the data.
    """
    _check_alike(ranks, guide, arguments, settings)
    _check_moved(ranks, guide)
    rescale = steps.rescales
    prepared = ranks.agreed(lambda: None if ranks.stands_in else guide.prepare(*arguments, rescale=rescale))
    if not steps.takes_batches:
        check_shards(ranks, prepared and prepared.program)
        ranks.agreed(lambda: _check_fixed(guide, arguments, prepared.program) if prepared else None)
    source = ranks.gathered(prepared is not None).index(True)
    ranks.agreed(lambda: _start(guide, arguments, schedule, prepared) if prepared and ranks.rank == source else None)
    _take_on(ranks, guide, arguments, source, [rank for rank in range(ranks.size) if rank != source], rescale)
    pairs = ranks.gathered(guide.posterior_state.pairs)
    if any(own != pairs[0] for own in pairs):  # each adds those of its joint normal blocks
        for rank in range(1, ranks.size):
            _take_on(ranks, guide, arguments, rank - 1, [rank], rescale)
        _take_on(ranks, guide, arguments, ranks.size - 1, range(ranks.size - 1), rescale)


def _check_fixed(guide: AutoConjugate, arguments: ModelArguments, program: Program) -> None:
    """The model sees the same shard at each step, and not a subsample that a plate draws.

    Raises:
        DataError: if it does not.
    """
    if not program.recording.redraws:
        return
    again = guide.prepare(*arguments, rescale=False).program
    if fingerprint(again.recording.observations) != fingerprint(program.recording.observations):
        raise DataError(
            "Expected the same shard of the data at each step; got a plate that draws another subsample each time. "
            'Give each process its shard, and write pyro.plate("data", size, subsample_size=len(shard)), without '
            "reading the data at what the plate draws."
        )


def _check_alike(ranks: Ranks, guide: AutoConjugate, arguments: ModelArguments, settings: Any) -> None:
    args, kwargs = arguments
    own = ranks.agreed(lambda: identity_of_call(guide.augmented.model, args, kwargs, point=guide.point, rescale=False))
    first, first_settings = ranks.shared((own, settings))
    different = difference_of(first, own)
    if different is None and first_settings != settings:
        name = next(n for n in settings if settings[n] != first_settings.get(n))
        different = f"{name} = {settings[name]!r} for {first_settings.get(name)!r}"

    def check() -> None:
        if different is not None:
            raise ModelError(
                f"Expected the same model, priors and settings in all processes; got {different}. Only the data in "
                "the subsampled plate may differ."
            )

    ranks.agreed(check)


def _check_moved(ranks: Ranks, guide: AutoConjugate) -> None:
    """What somebody has changed in Pyro's store since the last step is the same in all processes.

    Raises:
        ModelError: in all processes, naming a parameter that is not.
    """
    program = guide.posterior_state.program
    moved = {} if program is None else guide.posterior_state.moved_params(program)
    by_rank = ranks.gathered({name: fingerprint(value) for name, value in moved.items()})
    for rank, own in enumerate(by_rank):
        for name in sorted(own.keys() | by_rank[0].keys()):
            if own.get(name) != by_rank[0].get(name):
                raise ModelError(
                    f"Expected parameter {name!r} to be changed in Pyro's store in all processes alike, before the "
                    f"same step; got another change, or none, in process {rank} than in process 0. Set it in all."
                )


def _start(guide: AutoConjugate, arguments: ModelArguments, schedule: Schedule, prepared: Prepared) -> None:
    """A step on a shard, from which all processes start; a guide that is not new stays as it is."""
    posterior = guide.posterior_state
    if posterior.layout and not posterior.starts:
        posterior.commit(prepared)
        return
    task = Task(prepared.program, arguments, prepared.state, prepared.starts, schedule, 0)
    state, info = MemoisedSteps().step(task)
    posterior.commit(prepared, state, best=info.best)


def _take_on(
    ranks: Ranks, guide: AutoConjugate, arguments: ModelArguments, source: int, targets: Sequence[int], rescale: bool
) -> None:
    """Bring the guides of some processes to the state of another one's."""
    content = ranks.shared(guide.state_dict() if ranks.rank == source else None, source)

    def take_on() -> None:
        if ranks.rank in targets:
            assert content is not None
            guide.load_state_dict(content)
            guide.posterior_state.commit(guide.prepare(*arguments, rescale=rescale))

    ranks.agreed(take_on)


def check_shards(ranks: Ranks, program: Program | None) -> None:
    """The shards of each subsampled plate are all of it; a process without data has no program of its own.

    Raises:
        ModelError: if no plate says how much data there is.
        DataError: if they are more, or less.
    """
    plates = [] if program is None else [p for scored in program.recording.scored.values() for p in scored.plates]
    own = {p.name: (p.size, p.full_size, p.is_subsample) for p in plates}
    by_rank = ranks.gathered(None if program is None else own)
    holders = [one for one in by_rank if one is not None]
    parts = sorted({name for one in holders for name, (_, _, is_part) in one.items() if is_part})
    if len(holders) > 1 and not parts:
        raise ModelError(
            "Expected a plate that says how much data there is in all; got none, so that each process takes its shard "
            'for the whole. Write pyro.plate("data", size, subsample_size=len(shard)).'
        )
    for name in parts:
        sizes = [one[name][0] if one and name in one else 0 for one in by_rank]
        full = next(one[name][1] for one in holders if name in one)
        if sum(sizes) != full:
            raise DataError(
                f"Expected shards of plate {name!r} that are the whole of it, {full} in all; got {sum(sizes)}, as "
                f"{', '.join(map(str, sizes))} in processes 0 to {ranks.size - 1}. Give each datum to one process; a "
                "DistributedSampler repeats some, and drops others with drop_last=True."
            )


__all__ = [
    "DistributedSteps",
    "SharedSteps",
    "check_shards",
    "globals_of",
    "join",
    "settled",
]
