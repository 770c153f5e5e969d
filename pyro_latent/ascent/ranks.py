"""The processes of a ``torch.distributed`` group that fit one model together.

Everything that they say to each other goes through :class:`Ranks`, so that an error in one process is an error in all,
and a process that is gone ends the others within the timeout of the group.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .. import errors
from ..errors import ArgumentError, ArgumentTypeError, ProcessError

T = TypeVar("T")


class _Surprise(Exception):
    """Something in a piece of work is not as it mostly is, here or in another process."""


class Alone:
    """One process, with the face of :class:`Ranks`."""

    is_first = True

    def any(self, here: bool) -> bool:
        """Whether something holds in this process."""
        return here

    def agreed(self, work: Callable[[], T]) -> T:
        """What a piece of work returns."""
        return work()

    def hoped(self, work: Callable[[], T]) -> T:
        """What a piece of work returns."""
        return work()

    def shared(self, item: T) -> T:
        """The item, which no other process has to be told."""
        return item

    def ending(self, callback: Callable[[int, float], Any] | None) -> Callable[[int, float], Any] | None:
        """The callback, which ends the run of this process alone."""
        return callback


class Ranks:
    """The processes of a group.

    Args:
        group: the group, such as ``torch.distributed.group.WORLD`` after ``init_process_group``.

    Attributes:
        rank: the number of this process in the group.
        size: the number of processes.
        stands_in: whether this process has no data in this step, and what it says of data does not count.
        loans, last_loan: what processes without data were lent, by the kind of their arguments (:mod:`.loans`).
        last_full: the last arguments in which nothing was empty.

    Raises:
        ArgumentTypeError: if it is no process group.
        ArgumentError: if ``torch.distributed`` has not been started, or this process is not in the group.
    """

    def __init__(self, group: object) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ArgumentError(
                "Expected torch.distributed to have been started; got a process_group without. Write "
                "torch.distributed.init_process_group() first, and run the script by torchrun."
            )
        if not isinstance(group, dist.ProcessGroup):
            raise ArgumentTypeError(
                f"Expected a process group; got {group!r}. Write process_group=torch.distributed.group.WORLD after "
                "init_process_group()."
            )
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ArgumentError("Expected a process of the group; got one that is not in it. Leave it out of the fit.")
        self._is_gloo = dist.get_backend(group) == "gloo"
        self._timeout = _timeout_of(group) if self._is_gloo else None
        self._sum: Tensor | None = None  # the last one, whose size all processes know
        self.stands_in = False
        self.loans: dict[Hashable, Any] = {}
        self.last_loan: tuple[Any, Any] | None = None
        self.last_full: list[Any] = []
        self._hopes = False  # whether a piece of work is under way in which all is taken to be as usual

    @property
    def is_first(self) -> bool:
        """Whether this is the process that starts the fit and writes its files."""
        return self.rank == 0

    def agreed(self, work: Callable[[], T]) -> T:
        """What a piece of work returns here, once all processes have done theirs.

        Raises:
            PyroLatentError: in all processes if one of them failed: its error, with its number.
        """
        if self._hopes:
            return work()
        found, error = None, None
        try:
            found = work()
        except Exception as problem:
            error = problem
        if self.any(error is not None):
            raise self._failure(error) from error
        return found  # type: ignore[return-value]

    def any(self, here: bool) -> bool:
        """Whether something holds in one of the processes."""
        if self._hopes:
            if here:
                raise _Surprise
            return False
        return bool(self._added(torch.tensor([float(here)], device=self._device)).item())

    def hoped(self, work: Callable[[], T]) -> T:
        """What a piece of work with one :meth:`total` returns, by that one collective as long as all is as usual.

        What processes ask each other, :meth:`any` and :meth:`agreed`, is taken to be so in none of them, and their sum
        tells whether it was. If not, all of them do the work again, and ask.
        """
        if self._sum is None:
            return work()
        self._hopes = True
        try:
            return work()
        except _Surprise:
            pass
        except Exception as error:
            if isinstance(error, ProcessError) or not self._hopes:  # after the sum: in all processes alike
                raise
        finally:
            is_summed, self._hopes = not self._hopes, False
        if not is_summed:
            self._added(torch.cat([torch.zeros_like(self._sum), self._sum.new_ones(1)]))
        return work()

    def ending(self, callback: Callable[[int, float], Any] | None) -> Callable[[int, float], Any] | None:
        """A callback that ends a run in all processes, where that of one of them does, and whose error is one in all;
        None where none has one.
        """
        if not self.any(callback is not None):
            return None

        def asked(step: int, elbo: float) -> bool:
            ends, error = False, None
            try:
                ends = callback is not None and callback(step, elbo) is True
            except Exception as problem:
                error = problem
            if self.any(ends or error is not None):  # one question where nothing has happened
                self.agreed(lambda: _raised(error))
                return True
            return False

        return asked

    def gathered(self, item: T) -> list[T]:
        """The items that all processes give, in their order."""
        found: list[Any] = [None] * self.size
        self._heard(lambda: dist.all_gather_object(found, item, group=self._group))
        return found

    def shared(self, item: T, rank: int = 0) -> T:
        """The item that one process gives, by default the first, in all processes."""
        box = [item]
        source = dist.get_global_rank(self._group, rank)
        self._heard(lambda: dist.broadcast_object_list(box, src=source, group=self._group))
        return box[0]

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor ``[n]`` over all processes, the same to the last bit in each."""
        if not self._hopes:
            self._sum = self._added(tensor)
            return self._sum
        if self._sum is None or tensor.shape != self._sum.shape:
            raise _Surprise
        found = self._added(torch.cat([tensor, tensor.new_zeros(1)]))
        self._hopes = False
        if bool(found[-1] > 0):
            raise _Surprise
        return found[:-1]

    def _added(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in its place."""
        self._heard(lambda: dist.all_reduce(tensor, group=self._group))
        return tensor

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self._is_gloo else torch.device("cuda", torch.cuda.current_device())

    def moved(self, item: object) -> Any:
        """A tensor on the device of this process; another thing as it is."""
        return item.to(self._device) if isinstance(item, Tensor) else item

    def _failure(self, error: Exception | None) -> errors.PyroLatentError:
        """The error of the first process that has one, as all of them raise it."""
        told = self.gathered(None if error is None else (type(error).__name__, str(error)))
        rank, one = next((rank, one) for rank, one in enumerate(told) if one is not None)
        name, message = one
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, errors.PyroLatentError):
            return kind(f"{message} It came up in process {rank} of {self.size}.")
        return ProcessError(f"Expected all processes to go on; got {name} in process {rank} of {self.size}: {message}")

    def _heard(self, collective: Callable[[], Any]) -> None:
        """Run a collective.

        Raises:
            ProcessError: if a process does not take part within the timeout of the group.
        """
        try:
            if self._timeout is not None:  # a barrier of gloo's says who is missing
                dist.monitored_barrier(self._group, self._timeout, wait_all_ranks=True)
            collective()
        except RuntimeError as error:
            raise ProcessError(
                f"Expected all {self.size} processes to take part in each step; got one that is gone, or has not come "
                f"within the timeout of the group, as process {self.rank} sees it: {error} Start all of them again; a "
                "run with checkpoint= goes on from its last whole file."
            ) from error


def _raised(error: Exception | None) -> None:
    """Raise an error, if there is one."""
    if error is not None:
        raise error


def _timeout_of(group: Any) -> datetime.timedelta | None:
    """The timeout of a gloo group, which its barrier does not take by itself; None where torch does not tell."""
    try:
        found = group._get_backend(torch.device("cpu")).options._timeout
    except (AttributeError, RuntimeError):
        return None
    return found if isinstance(found, datetime.timedelta) else None


__all__ = ["Alone", "Ranks"]
