"""Checkpoints: files that are whole or not there, and that load without running code; and runs that go on from them.

A checkpoint is a dictionary of tensors, numbers, strings, and lists, tuples and dictionaries of these. It is written to
a file beside its place and moved there in one step, so a run that is killed at any moment leaves the last whole
checkpoint. A digest of its bytes is checked before it is read, with ``torch.load(..., weights_only=True)``.

A :class:`Run` is such a file with what the killed run and the resumed one must have in common: their data, known by a
:func:`fingerprint`, and their settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import ArgumentTypeError, CheckpointError, check_count

__all__ = [
    "Run",
    "fingerprint",
    "plain",
    "random_state",
    "read_checkpoint",
    "restore_random_state",
    "uninterrupted",
    "write_checkpoint",
]

#: What the format is called inside a file, and its version.
_FORMAT = "pyro_latent checkpoint 3"
#: A file of torch's, whose last bytes are the digest of all others, looked at before anything is unpickled, and this.
_MARK = f"\n{_FORMAT}\n".encode()
_DIGEST_SIZE = 32


def write_checkpoint(path: str | os.PathLike[str], kind: str, content: Mapping[str, object]) -> None:
    """Write a checkpoint in one step: a reader sees the old file or the new one, never a part.

    Ctrl-C waits until the file is whole. A symbolic link is followed.

    Args:
        path: where; its folder must exist.
        kind: the driver that writes it, such as "CAVI"; :func:`read_checkpoint` asks for the same.
        content: tensors, numbers, strings, None, and lists, tuples and dicts of these; NumPy's numbers and arrays are
            kept as Python's and torch's.

    Raises:
        CheckpointError: if the folder does not exist, the file cannot be written, or the content holds something else.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise CheckpointError(f"Expected a folder {str(path.parent)!r} for the checkpoint; got none. Make it first.")
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "kind": kind, "content": plain(dict(content))}, buffer)
    payload = buffer.getbuffer()
    partial = path.with_name(f".{path.name}.partial")  # one name: what a killed process leaves, the next one replaces
    with uninterrupted():
        try:
            with open(partial, "wb") as file:
                file.write(payload)
                file.write(_digest(payload) + _MARK)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"Expected to write the checkpoint {str(path)!r}; got {error}. Name a file in a folder with room and "
                "the right to write."
            ) from None


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
    if path.exists() and not path.is_file():
        raise CheckpointError(f"Expected a checkpoint in {str(path)!r}; got a folder or a device. Name a file.")
    whole = path.read_bytes()
    payload, digest = whole[: -len(_MARK) - _DIGEST_SIZE], whole[-len(_MARK) - _DIGEST_SIZE : -len(_MARK)]
    if not whole.endswith(_MARK):
        raise _not_ours(path, whole)
    if digest != _digest(payload):
        raise _changed(path)
    try:
        found = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        written, content = found["kind"], found["content"]
    except Exception as error:  # what torch and pickle raise has no common class
        raise _does_not_load(path, error) from None
    if written != kind:
        raise CheckpointError(
            f"Expected a checkpoint of {kind} in {str(path)!r}; got one of {written}. Name another file."
        )
    return dict(content)


def _not_ours(path: Path, whole: bytes) -> CheckpointError:
    """What a file without our mark is: cut off, of another release, or of something else."""
    try:
        found = torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
    except Exception as error:
        return _does_not_load(path, error)
    name = str(found.get("format")) if isinstance(found, dict) else ""
    if name == _FORMAT:
        return _changed(path)
    got = f"a {name}, of another release" if name.startswith("pyro_latent checkpoint") else "another file"
    return CheckpointError(f"Expected a {_FORMAT} in {str(path)!r}; got {got}. Name another, to start anew.")


def _does_not_load(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"Expected a checkpoint in {str(path)!r}; got a file that does not load: {error}. "
        "Name another file, to start anew."
    )


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(
        f"Expected a whole checkpoint in {str(path)!r}; got one whose bytes have changed since it was written. "
        "Name another file, to start anew."
    )


def _digest(payload: bytes | memoryview) -> bytes:
    return hashlib.blake2b(payload, digest_size=_DIGEST_SIZE).digest()


def plain(value: object, where: str = "") -> Any:
    """A value as ``torch.load(..., weights_only=True)`` reads it: NumPy's numbers, paths and enumerations are cast.

    Raises:
        CheckpointError: naming what cannot be kept.
    """
    if value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, complex, str, bytes):
        return value
    if isinstance(value, Mapping):
        return {plain(k, where): plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if isinstance(value, Enum):
        return plain(value.value, where)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise CheckpointError(
        "Expected tensors, numbers, strings, and lists and dictionaries of these in a checkpoint; got "
        f"{type(value).__name__} at {where or 'its top'}."
    )


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the end of the block. Outside of the main thread, where none arrives, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # ignored, or not Python's
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])


def random_state() -> dict[str, Any]:
    """The states of the random generators that a process shares: torch's (on the CPU, and on the current CUDA device
    where there is one), NumPy's and Python's.
    """
    numpy_state: Any = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "cpu": torch.get_rng_state(),
        "numpy": [numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]],
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the random generators back to a state of :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
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
        data: Mapping[str, object],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(path, str | os.PathLike | None):
            raise ArgumentTypeError(f"Expected the path of a checkpoint; got {path!r}. Write checkpoint='run.pt'.")
        self.path = None if path is None else Path(path)
        self.kind = kind
        self.every = check_count("checkpoint_every", every)
        self._settings = plain(settings or {})
        known = {} if path is None else data
        self._data = {name: None if value is None else fingerprint(value) for name, value in known.items()}
        self._in_file: int | None = None
        self._has_failed = False

    def keep(self, step: int, state: Callable[[], Mapping[str, Any]], last: bool = False) -> None:
        """Write the state of the run after a step, if it is the turn of that step or the last one.

        A file that cannot be written costs a warning, and never the run; the next turn tries again.

        Args:
            step: the number of steps behind the run.
            state: gives what a resumed run needs; the state of torch's random generators is added as ``"random"``,
                unless it has one of its own.
            last: whether to write in any case; what the file has already is not written again.
        """
        if self.path is None or step == self._in_file or not (last or step % self.every == 0):
            return
        try:
            self.write(step, state)
        except CheckpointError as error:
            if not self._has_failed:
                warnings.warn(f"{error} The run goes on without it.", stacklevel=2)
            self._has_failed = True

    def write(self, step: int, state: Callable[[], Mapping[str, Any]]) -> None:
        """Write the state of the run after a step in any case; the arguments are those of :meth:`keep`.

        Raises:
            CheckpointError: if the file cannot be written.
        """
        assert self.path is not None
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
        if not {"data", "settings", "step", "state"} <= found.keys():
            raise self._another("the state of a run", f"{sorted(map(str, found))}")
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
    if not isinstance(value, Tensor | np.generic) and hasattr(value, "__array__"):  # pandas', too
        array = np.asarray(value)
        value = torch.from_numpy(np.ascontiguousarray(array)) if array.dtype.kind in "biuf" else array.tolist()
    if isinstance(value, Tensor):
        plain = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        digest.update(f"{list(value.shape)} {value.dtype} ".encode())
        flat = plain.cpu().contiguous().as_strided((plain.numel(),), (1,))  # of one element any stride is contiguous
        digest.update(flat.view(torch.uint8).numpy())
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
