"""What all ways to step have in common: what a step works on, what it returns, and the order of its updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError, ModelError, as_real, check_count
from ..guide.arguments import site_names
from ..guide.rebinding import Binding
from ..objective import BlockKey, Program, State
from ..signatures import PlainState
from .sweep import ModelArguments, Sweep

#: Rounds over the blocks of a minibatch, and the change of their mean parameters that ends them.
LOCAL_STEPS, LOCAL_TOL = 100, 1e-3


@dataclass(frozen=True)
class Schedule:
    """The order of the updates, and how often the local blocks are updated before the others; see ``CAVI``."""

    order: Sequence[str] | None = None
    local_steps: int | None = None
    local_tol: float | None = None

    @classmethod
    def of(cls, order: object, local_steps: object, local_tol: object) -> Schedule:
        """A schedule of settings as they came.

        Raises:
            ArgumentTypeError, ArgumentError: naming the setting, and what it may be.
        """
        if local_tol is not None and not as_real(local_tol) >= 0:
            raise ArgumentError(f"Expected local_tol to be None or a number of at least 0; got {local_tol!r}.")
        return cls(
            None if order is None else list(site_names("order", order)),
            None if local_steps is None else check_count("local_steps", local_steps),
            None if local_tol is None else as_real(local_tol),
        )

    def sites(self, program: Program) -> list[BlockKey | None]:
        """The blocks in the order of their updates; None stands for the discrete sites.

        Raises:
            ModelError: if an order is given that is not of all latent sites.
        """
        if self.order is None:
            return list(program.default_order)
        places = {s.name: block.key for block in program.blocks.values() for s in block.sites}
        unknown = [name for name in self.order if name not in places and name not in program.recording.discrete]
        missing = [name for name in places if name not in self.order]
        if unknown or missing:
            raise ModelError(
                f"Expected order to name every latent site of {sorted(places)}; got {self.order}, with "
                f"{unknown or 'none'} unknown and {missing or 'none'} missing."
            )
        return list(dict.fromkeys(places.get(n) for n in self.order))

    def blocks(self, program: Program) -> list[BlockKey]:
        """The blocks alone, in the order of their updates."""
        return [key for key in self.sites(program) if key is not None]

    def settle(
        self, sweep: Sweep, local: Sequence[BlockKey], steps: int | None = None, tol: float | None = None
    ) -> None:
        """Bring local blocks to their optimum given the globals; those of all the data, one round nearer to it.

        ``steps`` and ``tol`` stand in where the schedule does not say.
        """
        part = sweep.program.recording.is_subsample
        sweep.rounds(local, *self.rounds(part, steps, tol))
        for key in local:
            sweep.visit(key)
        if part:
            sweep.visit(None)

    def rounds(self, part: bool, steps: int | None = None, tol: float | None = None) -> tuple[int, float | None]:
        """The rounds over the local blocks, of a part of the data or of all, before the visits that end in the optimum:
        at most how many, and the change that ends them.
        """
        steps = self.local_steps or steps or (LOCAL_STEPS if part else 1)
        if self.local_tol is not None:
            tol = self.local_tol
        elif part:
            tol = LOCAL_TOL
        return steps - 1, tol


class Task(NamedTuple):
    """What one step works on.

    The compiled model; its arguments; the natural parameters and the responsibilities that the step starts at, with a
    leading dimension over starts; the order of updates; the name of the piece where the data comes in pieces or
    batches; whether the step is alone, not in a run, which says by itself what it is fitted to; and what the program
    was made of, if it was not recorded.
    """

    program: Program
    arguments: ModelArguments
    state: State
    probs: Mapping[str, Tensor]
    schedule: Schedule
    piece: int | str | None = None
    is_alone: bool = False
    binding: Binding | None = None

    def of(self, starts: Sequence[int]) -> Task:
        """Keep some starts alone."""
        index = list(starts)
        state = {key: n.map(lambda t: t[index]) for key, n in self.state.items()}
        return self._replace(state=state, probs={name: p[index] for name, p in self.probs.items()})


class Info(NamedTuple):
    """What a step reached: the ELBO by the number of each start, in nats (−∞ for one that was dropped, now or before),
    and the best of the starts that the returned state holds, by its position there.
    """

    elbo: list[float]
    best: int


class Steps(ABC):
    """A way to step, and what it remembers from step to step.

    To implement one: write ``step``, which returns the new state and raises before it remembers anything; ``keep``,
    ``to_state`` and ``load_state``; and say by the class attributes what it takes.
    """

    #: Whether the ELBO of a step is exact, so that a run ends once passes over the data no longer raise it.
    is_exact: ClassVar[bool] = True
    #: Whether a step may be given all of the data without a name, and whether it may be given a batch.
    takes_all: ClassVar[bool] = True
    takes_batches: ClassVar[bool] = True
    #: Whether subsampled plates scale their sites to the size of the whole.
    rescales: ClassVar[bool] = True
    #: Whether a plate that draws its subsample draws another one at each step.
    redraws: ClassVar[bool] = True
    #: Whether the posterior is q(β) q(z | β).
    is_structured: ClassVar[bool] = False
    #: Whether somebody else has changed what is fitted, before the last step, or in the pass at hand.
    _was_moved = False

    @abstractmethod
    def step(self, task: Task) -> tuple[State, Info]:
        """One step: the state after it, and what it reached."""

    @abstractmethod
    def keep(self, start: int) -> None:
        """Forget all starts but one."""

    @abstractmethod
    def to_state(self) -> PlainState:
        """What is remembered, in plain types and tensors."""

    @abstractmethod
    def load_state(self, state: Mapping[str, object], device: torch.device) -> None:
        """Take on a state of :meth:`to_state`."""

    def forget_level(self) -> None:  # noqa: B027 - most ways to step know no level
        """Forget the ELBO of the last step: somebody else has moved the guide."""

    def settled(self) -> None:  # noqa: B027 - most ways to step have nothing else to try
        """Know that passes over the data no longer raise the ELBO: what else there is to try, is tried from here."""

    @property
    def is_annealing(self) -> bool:
        """Whether the last step was at a temperature, so that its ELBO may have fallen."""
        return False

    @property
    def can_settle(self) -> bool:
        """Whether a run ends once a pass over the data no longer raises the ELBO: not by one that began at another ELBO
        than the one before ended at.
        """
        return self.is_exact and not self.is_annealing and not self._was_moved

    def number_of(self, start: int) -> int:
        """The number of a start, as a run counts them, by its position in the state."""
        return start

    @property
    def dropped(self) -> dict[int, str]:
        """The error that the updates of each dropped start ended in, by its number."""
        return {}

    def moves_of(self, number: int) -> dict[str, int]:
        """How many moves of each kind a start, by its number, has taken on."""
        return {}

    def rise_left(self, state: State) -> tuple[float, float]:
        """How far one sweep in float64 would raise the ELBO of the last step, which was in float32, in nats, and the
        largest rise, relative to the ELBO, that counts as none; zeros where digits are no concern.
        """
        return 0.0, 0.0


def joined(program: Program, states: Sequence[State]) -> State:
    """The starts of several states, one after another."""
    return {key: block.family.joined([state[key] for state in states]) for key, block in program.blocks.items()}


__all__ = ["LOCAL_STEPS", "LOCAL_TOL", "Info", "Schedule", "Steps", "Task", "joined"]
