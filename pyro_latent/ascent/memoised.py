r"""Memoised variational inference: exact coordinate ascent on data in pieces.

Each piece of the data keeps its summary. A step brings the local blocks of one piece to their optimum, exchanges its
summary in the total, and sets the globals to their optimum given the total. Passes over all pieces are coordinate
ascent on the ELBO of all the data, which they know exactly and never lower (Hughes and Sudderth 2013).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import fingerprint
from ..errors import DataError, ModelError
from ..objective import BlockKey, DataSummary, Program, State, in_turn, padded, summarize
from ..recording import ScoredSite
from ..signatures import PlainState
from .pieces import Piece, PieceFile, PieceFolder
from .steps import Info, Steps, Task
from .sweep import Sweep, check_risen, check_start


class MemoisedSteps(Steps):
    """The steps of memoised inference: the pieces seen so far, and the total of their summaries.

    Args:
        folder: where pieces are kept; None: in memory.
    """

    takes_all = False
    rescales = False

    def __init__(self, folder: str | PathLike[str] | None = None) -> None:
        self._folder = None if folder is None else PieceFolder(folder)
        self.pieces: dict[int | str, Piece | PieceFile] = {}
        self._total: DataSummary | None = None
        self._level: list[float] | None = None

    def _known(self, name: int | str) -> Piece | None:
        """What a piece left when it was seen last."""
        return self.pieces[name].read() if name in self.pieces else None

    def _kept(self, piece: Piece) -> Piece | PieceFile:
        """A piece where it is to be kept."""
        return piece if self._folder is None else self._folder.write(piece)

    def step(self, task: Task) -> tuple[State, Info]:
        """One step on the named piece; the exact ELBO, for each start, of all pieces seen so far.

        Raises:
            DataError: if the piece had other data before.
            ModelError: if the model cannot tell pieces from the whole.
            ElboDecreaseError: if the ELBO fell by more than rounding explains.
        """
        program, name = task.program, task.piece
        assert name is not None
        known = self._known(name)
        check_start(program, task.probs)
        mark = mark_of(task)
        self._check(program, name, known, mark)
        state = task.state if known is None else padded(program.blocks, task.state | dict(known.local))
        sweep = settled_sweep(task, state, {} if self.pieces else task.probs)
        order = task.schedule.blocks(program)
        local = [key for key in order if program.in_subsample(key)]
        found = summarize(program, sweep.state, sweep.means, sweep.held)
        total = found if self._total is None else self._total.plus(found)
        total = total if known is None else total.minus(known.summary)
        others = [key for key in order if key not in local]
        set_globals(program, sweep, total, others)
        elbo, sizes = reached(program, sweep, total, others)
        before = elbo if self._level is None or known is None else self._level
        check_risen(before, elbo, sizes, program)
        self.pieces[name] = self._kept(Piece(found, {key: sweep.state[key] for key in local}, mark))
        self._total, self._level = total, elbo
        return sweep.state, Info(elbo, elbo.index(max(elbo)))

    def _check(self, program: Program, name: int | str, known: Piece | None, mark: str) -> None:
        whole = not program.recording.is_subsample and not program.recording.declares_size
        if self.pieces and name not in self.pieces and whole:
            raise ModelError(
                f"Expected a plate that says how much data there is in all, for this is piece {len(self.pieces) + 1}; "
                'got none. Write pyro.plate("data", size, subsample_size=len(piece)).'
            )
        check_pieces(program)
        if known is not None and known.mark != mark:
            raise DataError(
                f"Expected the data of piece {name!r} as in the pass before, with its masks and scales; got other "
                "data. Give pieces in a fixed order, as a DataLoader with shuffle=False does, and as data: a subsample "
                "that a plate draws is another one at each pass, and so is what a scale that is annealed weighs."
            )

    def forget_level(self) -> None:
        self._level, self._was_moved = None, True

    def settled(self) -> None:
        self._was_moved = False

    def keep(self, start: int) -> None:
        """Forget all starts but one."""
        for name, piece in self.pieces.items():
            self.pieces[name] = self._kept(piece.read().of(start))
        self._total = None if self._total is None else self._total.of(start)
        self._level = None

    def to_state(self) -> PlainState:
        """What is remembered, in plain types and tensors."""
        pieces = [[name, *piece.read().to_state()] for name, piece in self.pieces.items()]
        total = None if self._total is None else self._total.to_state()
        return {"pieces": pieces, "total": total, "level": self._level}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take on a state of :meth:`to_state`."""
        self.pieces = {name: self._kept(Piece.from_state(piece, device)) for name, *piece in state["pieces"]}
        self._total = None if state["total"] is None else DataSummary.from_state(state["total"], device)
        self._level, self._was_moved = state["level"], False


def mark_of(task: Task) -> str:
    """What the data of a piece are known by, with their masks and scales."""
    (args, kwargs), recording = task.arguments, task.program.recording
    weights = [(s.scale, s.mask) for s in recording.scored.values() if _has_weights(s)]
    return fingerprint(*args, *kwargs.values(), recording.observations, *weights)


def _has_weights(site: ScoredSite) -> bool:
    """Whether a site has a mask, or a scale other than 1."""
    return site.mask is not None or isinstance(site.scale, Tensor) or site.scale != 1


def settled_sweep(task: Task, state: State, probs: Mapping[str, Tensor]) -> Sweep:
    """A sweep over the data of a task whose local blocks and discrete sites are at their optimum given the globals."""
    program = task.program
    sweep = Sweep(program, state, task.arguments, None, probs)
    task.schedule.settle(sweep, [key for key in task.schedule.blocks(program) if program.in_subsample(key)])
    sweep.visit(None)
    return sweep


def set_globals(program: Program, sweep: Sweep, total: DataSummary, keys: Sequence[BlockKey]) -> None:
    """Set blocks, in order, to their optimum given the others and what all of the data says."""
    summands = total.summands(program, program.recording.dtype)
    for key in keys:
        for turn in program.turns.get(key, (None,)):
            natural = program.optimum(key, sweep.means, (), summands, start=sweep.state[key])
            sweep.set(key, in_turn(turn, natural, sweep.state[key]))


def reached(
    program: Program, sweep: Sweep, total: DataSummary, keys: Sequence[BlockKey]
) -> tuple[list[float], list[float]]:
    """The ELBO of all of the data for each start, and the size of what it sums; ``keys`` are the globals."""
    state, means = program.exactly(sweep.state)
    sums = (*program.whole_summands, *total.summands(program, torch.float64))
    value, size = program.terms(state, means, keys, sums)
    values = sweep.check_proper([value + total.number, size + total.magnitude])
    return values[: len(value)], values[len(value) :]


def check_pieces(program: Program) -> None:
    """Pieces of the data have no local block in common, and no update of the globals sees one of them alone.

    Raises:
        ModelError: naming the blocks.
    """
    _check_apart(program)
    written = [b.label for b in program.blocks.values() if b.update is not None and not program.in_subsample(b.key)]
    if written and program.recording.is_subsample:
        raise ModelError(
            f"Expected derived updates of the globals, which see all pieces; got hand-written ones of {written}, "
            "which would see one. Leave them out of handlers.closed_form."
        )


def _check_apart(program: Program) -> None:
    """Pieces have no local block in common.

    Raises:
        ModelError: naming the blocks that several pieces would share, each with a value of its own.
    """
    shared: set[str] = set()
    for scored in program.recording.scored.values():
        parts = {p.dim for p in scored.plates if p.is_subsample}
        latents = [] if scored.density is None else sorted(scored.density.sites & set(program.recording.latents))
        for site in (program.recording.latents[name] for name in latents):
            own = {p.dim for p in site.plates if p.is_subsample}
            shared |= {site.name} if own and parts - own else set()
    if shared:
        raise ModelError(
            f"Expected pieces that share no latent; got {', '.join(sorted(shared))!r}, which lies in one of several "
            "subsampled plates that cross, so that pieces along the others have it in common. Subsample one plate, or "
            "write CAVI(model, guide, step_size=RobbinsMonro())."
        )


__all__ = ["MemoisedSteps", "check_pieces", "mark_of", "reached", "set_globals", "settled_sweep"]
