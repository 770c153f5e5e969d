"""How far a run over passes of data has come, how it goes on from a checkpoint, and what it reached."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..checkpoint import random_state, restore_random_state
from ..errors import ModelError


@dataclass(frozen=True)
class CAVIResult:
    """What :meth:`CAVI.run` reached.

    Attributes:
        elbo: the ELBO at the end of each sweep, in nats, as it was computed: 1-D, float64. It never falls by more than
            rounding, relative to the sum of its terms' absolute values (or to 1, if that is more): 1e-9 of it for data
            in float64, 1e-4 in float32. On minibatches it is an unbiased estimate at each step, and with
            ``memoised=True`` the exact ELBO of the pieces seen so far.
        converged: whether the last sweep (or pass over pieces) raised it by no more than the tolerance, and not only
            because float32 lacks the digits to raise it.
        num_steps: the number of steps.
        restarts: the last ELBO of every start; the best one is the guide's. It is −∞ for a start that was dropped.
        dropped: by the number of each start that was dropped, the error that its updates ended in, while others went
            on.
    """

    elbo: Tensor
    converged: bool
    num_steps: int
    restarts: Tensor
    dropped: Mapping[int, str] = field(default_factory=dict)


class Progress:
    """The ELBOs of a run, where its passes end, and the random state that its batches are drawn with.

    Attributes:
        history: the ELBO of every start after each step, in nats.
        ends: the number of steps at the end of each pass.
    """

    def __init__(self, resumes: bool = False) -> None:
        self.history: list[list[float]] = []
        self.ends: list[int] = []
        self._resumes = resumes
        self._pass_random: dict[str, Tensor] | None = None
        self._resumed: dict[str, Tensor] | None = None
        self._shuffler: torch.Generator | None = None

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of :meth:`to_state`."""
        self.history, self.ends = state["history"], state["ends"]
        self._pass_random, self._resumed = state["pass_random"], state["random"]

    def to_state(self) -> dict[str, Any]:
        """What a resumed run needs, the random state of now included."""
        place = {"history": self.history, "ends": self.ends, "pass_random": self._pass_random}
        return place | {"random": self._random()}

    def rest(self, batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """The batches of this pass that are left, with their numbers, in the order that the killed run had."""
        done = len(self.history) - (self.ends[-1] if self.ends else 0)
        self._shuffler = getattr(batches, "generator", None)  # a DataLoader's own
        if self._resumed is not None and self._pass_random is not None:
            self._restore(self._pass_random if done else self._resumed)
        if self._resumes and (self._resumed is None or not done):
            self._pass_random = self._random()
        for number, batch in enumerate(batches):
            if number == done:
                self._go_on(bool(done))
            if number >= done:
                yield number, batch
        self._go_on(True)  # if the run was killed at the very end of a pass

    def end_pass(self) -> None:
        """Note the end of a pass.

        Raises:
            ModelError: if it had no batch.
        """
        if not self.history or (self.ends and self.ends[-1] == len(self.history)):
            raise ModelError("Expected batches of data; got none. Give a list of batches or a DataLoader.")
        self.ends.append(len(self.history))

    def has_settled(self, tol: float) -> bool:
        """Whether the last pass raised the ELBO of no start by more than the tolerance; one that was dropped, at −∞,
        did not rise. The first pass has nothing to compare with.
        """
        if tol <= 0 or len(self.ends) < 2:
            return False
        before, after = (self.history[end - 1] for end in self.ends[-2:])
        return all(a == -math.inf or a - b <= tol * max(1.0, abs(a)) for b, a in zip(before, after, strict=True))

    def _go_on(self, restore: bool) -> None:
        """Where the killed run ended, take on its random state."""
        if self._resumed is not None and restore:
            self._restore(self._resumed)
        self._resumed = None

    def _random(self) -> dict[str, Tensor]:
        own = {} if self._shuffler is None else {"shuffler": self._shuffler.get_state()}
        return random_state() | own

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        restore_random_state(state)
        if self._shuffler is not None and "shuffler" in state:
            self._shuffler.set_state(state["shuffler"])


class _AskedToEnd(Exception):
    """A callback ends a run."""


@contextlib.contextmanager
def recording(
    progress: Progress,
    write: Callable[[bool], None],
    total: int | None,
    bar: bool,
    callback: Callable[[int, float], Any] | None,
) -> Iterator[Callable[[Sequence[float]], None]]:
    """What takes down each step's ELBOs: in the history, the checkpoint, the bar, and for the callback.

    Ctrl-C, or a callback that returns True, ends the run there; the checkpoint is written at the end.

    Args:
        progress: the run's.
        write: writes the checkpoint if it is time, or, given True, in any case.
        total: the number of steps, where it is known.
        bar: whether to show a progress bar.
        callback: called with the number of steps and the best ELBO.
    """
    history = progress.history
    with tqdm(total=total, initial=len(history), disable=not bar, desc="CAVI") as shown:

        def record(elbo: Sequence[float]) -> None:
            history.append(list(elbo))
            write(False)
            shown.update()
            shown.set_postfix_str(f"ELBO {max(elbo):.6f}", refresh=False)
            if callback is not None and callback(len(history), max(elbo)) is True:
                raise _AskedToEnd

        with contextlib.suppress(KeyboardInterrupt, _AskedToEnd):
            yield record
    if history:
        write(True)


__all__ = ["CAVIResult", "Progress", "recording"]
