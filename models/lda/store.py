"""The checkpoint of a fit of ``LDA``: what it keeps between two passes, for the same data and settings only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from pyro_latent.checkpoint import read_checkpoint, write_checkpoint
from pyro_latent.errors import CheckpointError, is_count

from .corpus import Corpus
from .fitting import State

__all__ = ["Store"]


class Store:
    """A file that a fit is written to once in so many passes, and read from if it is there.

    Args:
        path: the file; None: nothing is written.
        every: passes between two writings.
        settings: parameters that a resumed fit must share, as text.
        corpus: the documents; the file holds their fingerprint, not themselves.
        generator: of the draws; None for torch's global one.

    Raises:
        ValueError: if ``every`` is not an integer of at least 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        every: int,
        settings: Mapping[str, str],
        corpus: Corpus,
        generator: torch.Generator | None,
    ) -> None:
        if not is_count(every):
            raise ValueError(
                f"Expected checkpoint_every to be an integer >= 1; got {every!r}. Write checkpoint_every=1 to keep "
                "every pass."
            )
        self.path = None if path is None else Path(path)
        self.every = every
        self.identity = {} if path is None else {**settings, "data": corpus.fingerprint}
        self.device = corpus.count.device
        self.generator = self._default_generator() if generator is None else generator
        self.in_file: int | None = None

    def _default_generator(self) -> torch.Generator:
        if self.device.type == "cuda":
            return torch.cuda.default_generators[self.device.index or 0]
        return torch.default_generator

    def keep(self, state: State) -> None:
        """Write the state, if it is the turn of its pass."""
        if state.passes % self.every == 0:
            self.write(state)

    def write(self, state: State) -> None:
        """Write the state, and that of the generator, unless they are in the file."""
        if self.path is not None and self.in_file != state.passes:
            content = {f.name: getattr(state, f.name) for f in fields(state)}
            random = self.generator.get_state()
            about = {"identity": self.identity, "random": random, "device": str(self.device)}
            write_checkpoint(self.path, "LDA", {**content, **about})
            self.in_file = state.passes

    def read(self) -> State | None:
        """The state that was written last, on the corpus's device, and the generator as it was; None without a file.

        Raises:
            CheckpointError: if it is of other data or settings, of a fit on another kind of device, or no checkpoint of
                a fit.
        """
        if self.path is None or not self.path.exists():
            return None
        found = read_checkpoint(self.path, "LDA")
        self._check(found.pop("identity"))
        self._draw_on(found.pop("random"), found.pop("device", "another device"))
        tensors = {n: v.to(self.device) for n, v in found.items() if isinstance(v, Tensor)}
        self.in_file = int(found["passes"])
        return State(**{**found, **tensors, "bounds": [(int(p), float(b)) for p, b in found["bounds"]]})

    def _draw_on(self, random: Tensor, device: str) -> None:
        """The generator as it was; those of another kind of device have other states, and draw other numbers."""
        same = device.split(":")[0] in (self.device.type, "another device")
        if not same or random.shape != self.generator.get_state().shape:
            raise CheckpointError(
                f"Expected the checkpoint {str(self.path)!r} to be of a fit on {self.device}, whose random draws go on "
                f"from it; got one of a fit on {device}. Fit on that kind of device, or name another file, "
                "to start anew."
            )
        self.generator.set_state(random)

    def _check(self, theirs: Mapping[str, str]) -> None:
        wrong = sorted(name for name in self.identity if theirs.get(name) != self.identity[name])
        if wrong:
            was = ", ".join(f"{n}={theirs.get(n)}" for n in wrong)
            now = ", ".join(f"{n}={self.identity[n]}" for n in wrong)
            raise CheckpointError(
                f"Expected the checkpoint {str(self.path)!r} to be of this fit, with {now}; got one with {was}. Use "
                "the same data and settings, or another file."
            )
