"""Checkpoints: files that are whole or not there, and that load without running code.

A checkpoint is a dictionary of tensors, numbers, strings, and lists, tuples and dictionaries of these. It is written to
a file beside its place and moved there in one step, so a run that is killed at any moment leaves the last whole
checkpoint; it is read with ``torch.load(..., weights_only=True)``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError

#: What the format is called inside a file, and its version.
_FORMAT = "pyro_latent checkpoint 1"


def write_checkpoint(path: str | os.PathLike[str], kind: str, content: Mapping[str, Any]) -> None:
    """Write a checkpoint in one step: a reader sees the old file or the new one, never a part.

    Args:
        path: where; its folder must exist.
        kind: the driver that writes it, such as "CAVI"; :func:`read_checkpoint` asks for the same.
        content: tensors, numbers, strings, None, and lists, tuples and dicts of these.

    Raises:
        CheckpointError: if the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise CheckpointError(f"Expected a folder {str(path.parent)!r} for the checkpoint; got none. Make it first.")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": _FORMAT, "kind": kind, "content": dict(content)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_checkpoint(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The content of a checkpoint, its tensors on the CPU.

    Args:
        path: the file.
        kind: the driver that reads it.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is not a checkpoint, is damaged, or is of another driver.
    """
    path = Path(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # what torch and pickle raise on a damaged file has no common class
        raise CheckpointError(
            f"Expected a checkpoint in {str(path)!r}; got a file that does not load: {error}. "
            "Name another file, to start anew."
        ) from None
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise CheckpointError(f"Expected a checkpoint in {str(path)!r}; got another file. Name another, to start anew.")
    if found.get("kind") != kind:
        raise CheckpointError(
            f"Expected a checkpoint of {kind} in {str(path)!r}; got one of {found.get('kind')}. Name another file."
        )
    content: dict[str, Any] = found["content"]
    return content


def random_state() -> dict[str, torch.Tensor]:
    """The state of torch's random generators: of the CPU, and of the current CUDA device where there is one."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Put torch's random generators back to a state of :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
