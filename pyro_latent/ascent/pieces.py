"""What pieces of the data leave behind, in memory or in files."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import read_checkpoint, write_checkpoint
from ..errors import CheckpointError, MissingFileError
from ..families import Natural
from ..objective import BlockKey, DataSummary, of_start


@dataclass(frozen=True, eq=False)
class Piece:
    """What a piece of the data leaves: its summary, its local blocks, and what its data is known by."""

    summary: DataSummary
    local: Mapping[BlockKey, Natural]
    mark: str

    def of(self, start: int) -> Piece:
        """Keep one start alone."""
        return Piece(self.summary.of(start), of_start(dict(self.local), start), self.mark)

    def to_state(self) -> list[Any]:
        """The piece in plain types and tensors."""
        fields = {str(i): dict(natural) for i, natural in enumerate(self.local.values())}
        return [self.summary.to_state(), fields, list(self.local), self.mark]

    def read(self) -> Piece:
        """The piece itself, as :meth:`PieceFile.read`."""
        return self

    @staticmethod
    def from_state(state: list[Any], device: torch.device) -> Piece:
        """A piece from its plain form."""
        summary, fields, keys, mark = state
        naturals = (Natural(**{n: t.to(device) for n, t in fields[str(i)].items()}) for i in range(len(keys)))
        return Piece(DataSummary.from_state(summary, device), dict(zip(keys, naturals, strict=True)), mark)


class PieceFolder:
    """A folder of its own for the files of pieces, which is deleted with the driver that they are of.

    Args:
        parent: where it is made.

    Raises:
        CheckpointError: if it cannot be made.
    """

    def __init__(self, parent: str | PathLike[str]) -> None:
        try:
            Path(parent).mkdir(parents=True, exist_ok=True)
            self._path = Path(tempfile.mkdtemp(prefix="pieces-", dir=parent))
        except OSError as error:
            raise CheckpointError(
                f"Expected a folder for the summaries of pieces; got {str(parent)!r}: {error}. Name one that can be "
                "written to."
            ) from None
        self._numbers = count()
        weakref.finalize(self, shutil.rmtree, self._path, ignore_errors=True)

    def write(self, piece: Piece) -> PieceFile:
        """Write a piece to a new file.

        Raises:
            CheckpointError: if that cannot be written.
        """
        path = self._path / f"{next(self._numbers)}.pt"
        write_checkpoint(path, "piece", {"piece": piece.to_state()})
        return PieceFile(path, piece.summary.number.device)


class PieceFile:
    """A piece in a file, which is deleted once nobody asks for it any more.

    Args:
        path: the file.
        device: where its tensors belong.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path, self._device = path, device
        weakref.finalize(self, path.unlink, missing_ok=True)

    def read(self) -> Piece:
        """The piece.

        Raises:
            CheckpointError: if the file is gone or damaged.
        """
        try:
            return Piece.from_state(read_checkpoint(self._path, "piece")["piece"], self._device)
        except FileNotFoundError:
            raise MissingFileError(
                f"Expected the summary of a piece in {str(self._path)!r}; got no such file. Leave the folder alone "
                "during a fit, and begin anew with another driver."
            ) from None


__all__ = ["Piece", "PieceFile", "PieceFolder"]
