"""Where a run stands, and the checkpoint that keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoint import random_state, read_checkpoint, restore_random_state, write_checkpoint
from ..errors import CheckpointError, check_count

if TYPE_CHECKING:
    from .cavi import CAVI


class Place:
    """How far a run has come, and the file that keeps it."""

    def __init__(self, driver: CAVI, path: str | PathLike[str] | None, every: int, task: dict[str, Any]) -> None:
        self.driver, self.path, self.task = driver, path, task
        self.every = check_count("checkpoint_every", every)
        self.history: list[list[float]] = []
        self.ends: list[int] = []  # the number of steps at the end of each pass
        self._pass_random: dict[str, Tensor] | None = None
        self._resumed: dict[str, Tensor] | None = None
        self._shuffler: torch.Generator | None = None
        if path is not None and Path(path).exists():
            self._read(path)

    def _read(self, path: str | PathLike[str]) -> None:
        content = read_checkpoint(path, type(self.driver).__name__)
        if content.get("task") != self.task:
            raise CheckpointError(
                f"Expected a checkpoint of a run on the same data in {str(path)!r}; got one on other data. Delete it "
                "to start anew, or name another file."
            )
        self.driver.restore(content)
        self.history, self.ends = content["history"], content["ends"]
        self._pass_random = content["pass_random"]
        self._resumed = content["now_random"]

    def write(self, last: bool = False) -> None:
        """Write the run to its file, if it is time."""
        if self.path is None or not self.history or not (last or len(self.history) % self.every == 0):
            return
        place = {"task": self.task, "history": self.history, "ends": self.ends, "pass_random": self._pass_random}
        place["now_random"] = self._random()
        write_checkpoint(self.path, type(self.driver).__name__, self.driver.content() | place)

    def rest(self, batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """The batches of this pass that are left, with their numbers, in the order that the killed run had."""
        done = len(self.history) - (self.ends[-1] if self.ends else 0)
        self._shuffler = getattr(batches, "generator", None)  # a DataLoader's own
        if self._resumed is not None and self._pass_random is not None:
            self._restore(self._pass_random if done else self._resumed)
        if self._resumed is None or not done:
            self._pass_random = self._random()
        for number, batch in enumerate(batches):
            if number == done:
                self._go_on(bool(done))
            if number >= done:
                yield number, batch
        self._go_on(True)  # if the run was killed at the very end of a pass

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


__all__ = ["Place"]
