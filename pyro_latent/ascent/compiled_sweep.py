"""Sweeps that run as one program of torch's: the same numbers, without Python between two operations.

A sweep is a function of tensors: of natural parameters, of the posterior of the discrete sites, of a minibatch. Once a
model has been swept a few times, that function is compiled from a tape of one sweep. Now and then, at its first call
first, a compiled sweep is compared with one that is not; where it reads other numbers than the tape did, it gives way,
and where that goes on, it is compiled from another tape.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..families.quadrature import Quadrature
from ..objective import Program, State
from ..recording import Compiled, NotCompiledError, Tape

#: So many sweeps are worth the time that it takes to compile one, for a sweep of few numbers.
_WAIT = 30
#: Sweeps of more numbers are compiled where that is asked for: torch's operations take most of their time.
_LARGEST = 2**18
#: From one comparison to the next, so many times as many sweeps.
_SPACING = 4
#: After so many more sweeps that read other numbers than the tape did than sweeps that did not, there is another tape;
#: so often.
_PATIENCE, _TAPES = 5, 3

#: A sweep, from tensors to tensors.
Swept = Callable[[list[Tensor]], list[Tensor]]


def flat(state: State) -> list[Tensor]:
    """The natural parameters of all blocks, one after another."""
    return [tensor for natural in state.values() for _, tensor in natural.items()]


def restored(like: State, tensors: Sequence[Tensor]) -> State:
    """A state like another one, of the first of some tensors."""
    rest = iter(tensors)
    return {key: natural.map(lambda _: next(rest)) for key, natural in like.items()}


def _obstacle_of(program: Program) -> str | None:
    """Why a sweep is no function of tensors alone; None if it is one."""
    blocks = list(program.blocks.values())
    if any(block.update for block in blocks) or any(site.update for site in program.discrete):
        return "an update that is written by hand."
    if any(isinstance(block.family, Quadrature) for block in blocks):
        return "a factor by quadrature, whose panels come of its last ones."
    return None


class _TapedSweep:
    """A sweep that is compiled from a tape of it.

    Raises:
        NotCompiledError: where it cannot be.
    """

    def __init__(self, swept: Swept, like: Sequence[Tensor]) -> None:
        given = [t.clone() for t in like]  # which nothing has been computed from
        with Tape(given) as tape:
            wanted = swept(given)
        places = [tape.place_of(t) for t in wanted]
        obstacle = tape.obstacle or tape.changed_constant()
        if any(place is None and tape.shares(t) for place, t in zip(places, wanted, strict=True)):
            obstacle = obstacle or "a result in the memory of another"
        if obstacle is not None:
            raise NotCompiledError(f"Expected operations of torch alone; got {obstacle}.")
        self._kinds = [(t.shape, t.dtype) for t in given]
        self._fixed = [t if place is None else None for place, t in zip(places, wanted, strict=True)]
        needed = [place for place in places if place is not None]
        self._compiled = Compiled(tape.played(needed), needed, given)

    def __call__(self, given: Sequence[Tensor]) -> list[Tensor] | None:
        """What it reaches; None where it reads other numbers than the tape, or is given tensors of other kinds."""
        found = self._compiled(given) if [(t.shape, t.dtype) for t in given] == self._kinds else None
        if found is None:
            return None
        rest = iter(found)
        return [next(rest) if fixed is None else fixed for fixed in self._fixed]


@dataclass
class _Kind:
    """The sweeps of one key, and how they went so far.

    ``count``: how many there were, compiled or not. ``calls``: how often the compiled one was called.
    ``failures``: those that read other numbers than the tape did, less those that did not, of late; ``tapes``: how many
    tapes that has cost.
    ``obstacle``: why they are not compiled, though it was tried; None if they are, or it was not.
    """

    key: Any
    sweep: _TapedSweep | None = None
    count: int = 0
    calls: int = 0
    failures: int = 0
    tapes: int = 0
    next_comparison: int = 1
    obstacle: str | None = None


class CompiledSweeps:
    """The sweeps of a run, compiled where they are worth it.

    Args:
        wanted: whether to compile them: at once, or never; None: where they have few numbers, after a while.
        most: how many kinds are known at once, such as whole batches and a smaller last one.
    """

    def __init__(self, wanted: bool | None = None, most: int = 1) -> None:
        self.wanted, self._most = wanted, most
        self._has_warned = False
        self._taken: tuple[Program, bool] | None = None
        self._known: list[_Kind] = []
        self._kind = _Kind(None)  # that of the last sweep
        self._compared: list[Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """What copies are made by: what was compiled is made anew."""
        return type(self), (self.wanted, self._most)

    @property
    def is_compiled(self) -> bool:
        """Whether there is a compiled sweep of the last kind."""
        return self._kind.sweep is not None

    def takes(self, program: Program, state: State, obstacle: str | None = None) -> bool:
        """Whether sweeps of a program can be compiled, and are worth it; ``obstacle``: why they cannot be, if that is
        known.
        """
        if self.wanted is False:
            return False
        if self._taken is None or self._taken[0] is not program:
            obstacle = obstacle or _obstacle_of(program)
            numbers = program.recording.observed_numbers + sum(t.numel() for t in flat(state))
            self._taken = program, obstacle is None and bool(self.wanted or numbers <= _LARGEST)
            if obstacle is not None:
                self._warn(obstacle)
        return self._taken[1]

    def is_due(self, key: object) -> bool:
        """Whether the next sweep is one to compile, or compiled: at once where that is asked for, or after a while.

        Args:
            key: what the sweep is of, beside tensors, and of what kinds these are: that which is compiled is of one
                key. Where there are too many of them, the oldest is forgotten.
        """
        if self.wanted is False:
            return False
        if self._kind.key != key:
            found = next((kind for kind in self._known if kind.key == key), None)
            self._kind = found or _Kind(key)
            self._known = self._known if found else [*self._known, self._kind][-self._most :]
        self._kind.count += 1
        return self._kind.obstacle is None and self._kind.count >= (1 if self.wanted else _WAIT)

    def called(self, key: object, given: list[Tensor], swept: Swept) -> list[Tensor] | None:
        """What a sweep reaches, compiled or not; None where it was given up to compile it.

        Args:
            key: as in :meth:`is_due`.
            given: the tensors.
            swept: the sweep, as a function.
        """
        is_due = self.is_due(key)
        found = self.played(given) if is_due else None
        if found is None and self._kind.obstacle is None:
            found = swept(given)
            if is_due:
                self.note(found, swept, given)
        return found

    def played(self, given: Sequence[Tensor]) -> list[Tensor] | None:
        """What a compiled sweep reaches; None where there is none, it fails, or it is to be compared with another.

        Args:
            given: the tensors.
        """
        kind, self._compared = self._kind, None
        if kind.sweep is None:
            return None
        kind.calls += 1
        try:
            found = kind.sweep(given)
        except Exception:  # whatever an operation says of such numbers: so will the sweep that is not compiled
            found = None
        if found is None:
            kind.failures += 1
            if kind.failures == _PATIENCE:
                kind.sweep, kind.failures, kind.tapes = None, 0, kind.tapes + 1
            if kind.tapes == _TAPES:
                self._give_up("numbers that are read, and are others from sweep to sweep.")
            return None
        kind.failures = max(0, kind.failures - 1)
        if kind.calls >= kind.next_comparison:
            self._compared = found
            return None
        return found

    def note(self, found: list[Tensor], swept: Swept, like: list[Tensor]) -> None:
        """Know what a sweep reached that was due, and not compiled: to compare it, or to compile the next.

        Args:
            found: what it reached.
            swept: such a sweep, as a function.
            like: tensors like those that it is given.
        """
        if self._compared is not None:
            if _differ(self._compared, found):
                self._give_up("other numbers of it, once it is compiled.")
            self._kind.next_comparison *= _SPACING
        elif self._kind.sweep is None and self._kind.obstacle is None:
            try:
                self._kind.sweep = _TapedSweep(swept, like)
            except Exception as error:  # of whatever a tape or the compiler meets; the sweep before it went well
                self._give_up(str(error))

    def _give_up(self, why: str) -> None:
        """Go on without it in sweeps of this kind."""
        self._kind.sweep, self._kind.obstacle = None, why
        self._warn(why)

    def _warn(self, why: str) -> None:
        """Tell who asked for compiled sweeps that there are none, once."""
        if self.wanted and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"Expected sweeps that can be compiled, for jit_compile=True; got {why} They go on without, with the "
                "same numbers.",
                stacklevel=2,
            )


def _differ(ours: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether tensors differ; on a CPU, by a bit. What is no number in both is the same."""
    return any(
        a.shape != b.shape
        or a.dtype is not b.dtype
        or not torch.allclose(a, b, rtol=0 if a.device.type == "cpu" else 1e-4, atol=0, equal_nan=True)
        for a, b in zip(ours, others, strict=True)
    )


__all__ = ["CompiledSweeps", "flat", "restored"]
