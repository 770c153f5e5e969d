"""Programs of calls that differ in the numbers of their tensors alone, made without running the model again.

The third call of a kind is recorded with a :class:`~pyro_latent.recording.Tape`; from then on, what the program holds
of its data is computed from the new tensors by what the tape wrote down. Now and then, at the next call first, the
model is recorded again all the same, and compared to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..checkpoint import fingerprint, random_state
from ..errors import RecordingError
from ..objective import Program
from ..recording import ALONE, Compiled, NotCompiledError, Player, Tape, Template, first_difference
from ..signatures import Args, Kwargs

#: Kinds of calls that are known at once, such as whole batches and a smaller last one.
_KINDS = 4
#: From one comparison to the next, so many times as many calls.
_SPACING = 4
#: A kind of call that takes so many other ways through the model is recorded each time; so is a model that so many
#: times changes what it reads.
_PATIENCE = 3
#: Calls of a kind before it is worth a tape, which costs some ten recordings.
_WAIT = 2
#: Calls of more numbers are recorded each time: that costs little beside the rest of their step.
_LARGEST = 2**24


class Kind(NamedTuple):
    """What two calls have in common if they differ in the numbers of their tensors alone."""

    structure: Any
    leaves: tuple[Any, ...]
    dtype: torch.dtype


class Binding(NamedTuple):
    """What a program was made of: a template, and the tensors in it in the order of their numbers there."""

    template: Template
    tensors: list[Tensor]

    def program_of(self, tensors: Sequence[Tensor]) -> Program:
        """The program of other tensors in that order."""
        program: Program = self.template.filled(dict(zip(sorted(self.template.needed), tensors, strict=True)))
        return program


#: A program, and what it was made of; None where it was recorded.
Made = tuple[Program, Binding | None]


class _Known:
    """A program with the tape of what it holds of its data, and how that went so far."""

    def __init__(self, settings: object) -> None:
        self.settings = settings
        self.waits = _WAIT
        self.calls, self.next_comparison, self.failures = 0, 1, 0
        self.is_used = False  # for a step
        self.obstacle: str | None = None
        self._template: Template | None = None
        self._player: Player | None = None
        self._graph: Compiled | None = None

    @property
    def is_taped(self) -> bool:
        """Whether there is a tape."""
        return self._player is not None

    def record(self, given: list[Tensor], compiled: Callable[[], Program]) -> Program:
        """A program that is recorded, with a tape."""
        drawn = _drawn()
        try:
            with Tape(given) as tape:
                program = compiled()
        except Exception as error:  # of the model's, or of something in it that no tape can look at
            self.give_up(str(error))
            return compiled()
        template = Template(program, tape.place_of, tape.shares)
        obstacle = tape.obstacle or tape.changed_constant() or template.obstacle
        if any(block.is_param for block in program.blocks.values()):
            obstacle = "parameters, whose values Pyro keeps"
        if _drawn() != drawn:
            obstacle = "numbers that Python or NumPy draws"
        if obstacle is not None:
            self.give_up(obstacle)
        else:
            self._template, self._player = template, tape.played(template.needed)
            with suppress(NotCompiledError):  # then it is played operation by operation
                self._graph = Compiled(self._player, sorted(template.needed), given)
        return program

    def program(self, given: list[Tensor]) -> tuple[Program, Binding] | None:
        """The program of these tensors; None where the model takes another way with them."""
        if self._template is None:
            return None
        found = None
        try:
            tensors = self._tensors(given)
            if tensors is not None:
                binding = Binding(self._template, tensors)
                found = binding.program_of(tensors), binding
        except Exception:  # whatever an operation says of such numbers, or Python of so deep a program
            found = None
        if found is None:
            self.failures += 1
            if self.failures == _PATIENCE:
                self.give_up("numbers that the model reads")
        elif found[0].recording.redraws:
            torch.rand(1, device=found[0].recording.device)  # the next call draws another subsample
        return found

    def _tensors(self, given: list[Tensor]) -> list[Tensor] | None:
        """What the template needs, in the order of its numbers, of these tensors."""
        if self._template is None or self._player is None:
            return None
        if self._graph is not None:
            return self._graph(given)
        with ALONE, torch.random.fork_rng(_cards(given), enabled=self._player.is_random), torch.no_grad():
            values = self._player.play(given)
        return None if values is None else [values[number] for number in sorted(self._template.needed)]

    def next_program(self, given: list[Tensor], compiled: Callable[[], Program]) -> Made:
        """The program for the next step: by the tape, where that can be, or recorded, at times to compare both."""
        self.calls += 1
        if self.calls >= self.next_comparison:
            return self.compared(given, compiled), None
        found = self.program(given)
        self.is_used |= found is not None
        return found or (compiled(), None)

    def compared(self, given: list[Tensor], compiled: Callable[[], Program]) -> Program:
        """A program that is recorded anew, and that is the same as the known one with these tensors."""
        with torch.random.fork_rng(_cards(given)):
            found = self.program(given)
        program = compiled()
        why = None if found is None else first_difference(found[0], program)
        if why is not None:
            self.give_up(why)
        elif found is not None:
            self.next_comparison *= _SPACING
        if why is not None and self.is_used:
            raise RecordingError(
                "Expected a model that differs from step to step by its arguments alone; got one that reads something "
                f"else ({why.lstrip('.')}). Pass that on as an argument."
            )
        return program

    def give_up(self, why: str) -> None:
        """Record calls of this kind each time."""
        self.obstacle, self._template, self._player, self._graph = why, None, None, None


class Rebinding:
    """The programs of calls, as far as they are known."""

    def __init__(self) -> None:
        self._known: list[tuple[Kind, _Known]] = []  # few, of structures that may have no hash
        self._changes = 0  # of the model's, in calls of its own

    def forget(self) -> None:
        """Know nothing: the model may be another one."""
        self._known.clear()

    def program(
        self,
        args: Args,
        kwargs: Kwargs,
        settings: object,
        compiled: Callable[[], Program],
        is_same: Callable[[], bool],
    ) -> Made:
        """The program of a call, and what it was made of.

        Args:
            args, kwargs: the arguments.
            settings: what else must be equal.
            compiled: records the model with the arguments.
            is_same: whether the model is what it was before the call.

        Raises:
            RecordingError: if the model is found to have changed, past what its arguments and its code show.
        """
        kind, given = kind_of_call(args, kwargs)
        known = next((known for other, known in self._known if other == kind), None)
        if kind is None or self._changes == _PATIENCE:
            return compiled(), None
        if known is not None and (known.obstacle is not None or known.settings != settings):
            return compiled(), None
        if known is None:
            if len(self._known) == _KINDS:
                return compiled(), None
            known = _Known(settings)
            self._known.append((kind, known))
        if known.waits:
            known.waits -= 1
            return compiled(), None
        if not known.is_taped:
            program = known.record(given, compiled)
            if not is_same():
                known.give_up("a model that changes what it reads")
                self._changes += 1
            return program, None
        return known.next_program(given, compiled)


def _cards(tensors: list[Tensor]) -> list[torch.device]:
    """The accelerators that tensors are on, whose random states are their own."""
    return list({t.device for t in tensors if t.device.type == "cuda"})


def _drawn() -> str:
    """What changes when a model draws numbers that are not torch's."""
    state = random_state()
    return fingerprint([state["numpy"], state["python"]])


def kind_of_call(args: Args, kwargs: Kwargs) -> tuple[Kind | None, list[Tensor]]:
    """The kind of a call, and its tensors; no kind, if something in it is neither a tensor nor a plain value."""
    leaves, structure = tree_flatten((args, kwargs))
    given: list[Tensor] = []
    about: list[Any] = []
    for leaf in leaves:
        if type(leaf) is Tensor and leaf.layout is torch.strided and not vars(leaf):
            same = next((i for i, other in enumerate(given) if other is leaf), len(given))
            about.append((leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad, same))
            given.append(leaf)
        elif isinstance(leaf, int | float | str | torch.dtype | torch.device | None):
            about.append((type(leaf), repr(leaf)))  # in which a zero has its sign
        else:
            return None, []
    if not given or sum(t.numel() for t in given) > _LARGEST:
        return None, []
    return Kind(structure, tuple(about), torch.get_default_dtype()), given


__all__ = ["Binding", "Made", "Rebinding"]
