"""Checkpoints: files that are whole or not there, and that load without running code; and runs that go on from them.

A checkpoint is a dictionary of tensors, numbers, strings, and lists, tuples and dictionaries of these. It is written to
a file beside its place and moved there in one step, so a run that is killed at any moment leaves the last whole
checkpoint; it is read with ``torch.load(..., weights_only=True)``.

A :class:`Run` is such a file with what the killed run and the resumed one must have in common: their data, known by a
:func:`fingerprint`, and their settings.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError, check_count

__all__ = ["Run", "fingerprint", "random_state", "read_checkpoint", "restore_random_state", "write_checkpoint"]

#: What the format is called inside a file, and its version.
_FORMAT = "pyro_latent checkpoint 3"


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
        name = str(found.get("format")) if isinstance(found, dict) else ""
        got = f"a {name}, of another release" if name.startswith("pyro_latent checkpoint") else "another file"
        raise CheckpointError(f"Expected a {_FORMAT} in {str(path)!r}; got {got}. Name another, to start anew.")
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


class Run:
    """The file that a run is written to now and then, and goes on from where it exists.

    Args:
        path: the file; None: nothing is read or written.
        kind: the driver that writes it, as for :func:`write_checkpoint`.
        every: steps between two writings; what a step is, the driver says.
        data: by name, what a resumed run must see again, known by its :func:`fingerprint`; None is no data.
        settings: by name, the plain values that a resumed run must share. A name that only one of the two runs has is
            not compared.

    Raises:
        ValueError: if ``every`` is no integer of at least 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        kind: str,
        *,
        every: int = 1,
        data: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.kind = kind
        self.every = check_count("checkpoint_every", every)
        self._settings = dict(settings or {})
        known = {} if path is None else data
        self._data = {name: None if value is None else fingerprint(value) for name, value in known.items()}
        self._in_file: int | None = None

    def keep(self, step: int, state: Callable[[], Mapping[str, Any]], last: bool = False) -> None:
        """Write the state of the run after a step, if it is the turn of that step or the last one.

        Args:
            step: the number of steps behind the run.
            state: gives what a resumed run needs; the state of torch's random generators is added as ``"random"``,
                unless it has one of its own.
            last: whether to write in any case; what the file has already is not written again.
        """
        if self.path is None or step == self._in_file or not (last or step % self.every == 0):
            return
        content = {"random": random_state(), **state()}
        about = {"data": self._data, "settings": self._settings, "step": step}
        write_checkpoint(self.path, self.kind, {**about, "state": content})
        self._in_file = step

    def read(self) -> dict[str, Any] | None:
        """The state that was written last, its tensors on the CPU; None without a file.

        The random state is not restored here: the driver does so, by :func:`restore_random_state`, once it has rebuilt
        the rest.

        Raises:
            CheckpointError: as :func:`read_checkpoint` does, and if the file is of a run on other data or with other
                settings: it names the first that differs.
        """
        if self.path is None or not self.path.exists():
            return None
        found = read_checkpoint(self.path, self.kind)
        for name, ours in self._settings.items():
            theirs = found["settings"].get(name, ours)
            if ours != theirs:
                raise self._another(f"{name} = {ours}", f"{theirs}")
        for name, ours in self._data.items():
            theirs = found["data"].get(name)
            if ours != theirs:
                wanted = f"no {name}" if ours is None else f"the same {name}"
                raise self._another(wanted, f"no {name}" if theirs is None else "others")
        self._in_file = found["step"]
        state: dict[str, Any] = found["state"]
        return state

    def _another(self, wanted: str, got: str) -> CheckpointError:
        return CheckpointError(
            f"Expected a checkpoint with {wanted} in {str(self.path)!r}; got one with {got}. Delete the file, or name "
            "another."
        )


def fingerprint(*values: Any) -> str:
    """A hash of values, equal for equal data on any device: of the shape, dtype and bytes of each array.

    Mappings, lists, tuples and dataclasses are looked into. Plain values count as they are, others by their type alone.
    """
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        plain = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        digest.update(f"{list(value.shape)} {value.dtype} ".encode())
        digest.update(plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return
    parts: list[Any] | None = None
    if isinstance(value, Mapping):
        parts = [part for key, each in value.items() for part in (str(key), each)]
    elif isinstance(value, tuple | list):
        parts = list(value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [type(value).__name__, *(getattr(value, f.name) for f in fields(value))]
    if parts is None:
        plain_value = isinstance(value, int | float | str | bool | None)
        digest.update(f"{value!r} ".encode() if plain_value else f"{type(value).__name__} ".encode())
        return
    digest.update(f"{'mapping' if isinstance(value, Mapping) else 'list'} of {len(parts)} ".encode())
    for part in parts:
        _feed(digest, part)
