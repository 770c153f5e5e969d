"""What a tape computes as one program of torch's own, which runs without Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import PyroLatentError
from .tape import Operation, Place, Player, value_of

_aten = torch.ops.aten
#: The operations that give Python a number, with what gives that number as a tensor: of a check that raises, zero where
#: it does not.
_READS: dict[Any, Callable[..., Tensor]] = {
    _aten._local_scalar_dense.default: lambda value: value,
    _aten.equal.default: lambda one, other: (one == other).all(),
    _aten._linalg_check_errors.default: lambda info, name: (info != 0).any(),
}


class NotCompiledError(PyroLatentError):
    """A tape cannot be compiled, and why."""


class Compiled:
    """The operations of a tape, compiled: it gives the same numbers, to the last bit where torch's kernels do.

    Args:
        player: what they are.
        needed: the numbers of the tensors that are wanted.
        given: tensors like those that the tape was given.

    Raises:
        NotCompiledError: where an operation draws, has a shape that its numbers say, or is unknown to the compiler.
    """

    def __init__(self, player: Player, needed: Sequence[int], given: Sequence[Tensor]) -> None:
        self._player, self._needed = player, list(needed)
        self._default = torch.get_default_dtype()
        self._kinds = [(t.shape, t.dtype, t.device) for t in given]
        self._check()
        self._expected = [_number_of(read) for operation in player.operations for read in operation.reads]
        example = tuple(t.clone() for t in given)
        self._arguments = [(_plain(o.args), {n: _plain(a) for n, a in o.kwargs.items()}) for o in player.operations]
        with torch.no_grad():
            try:  # not torch.jit.trace, which keeps what it traced, and its constants, as long as Python runs
                graph = torch._C._create_graph_by_tracing(self._computed, example, _unnamed, True, False, None, [])[0]
                self._run = torch._C._create_function_from_graph("computed", graph)
            except (AttributeError, RuntimeError, TypeError) as error:  # private, so that they may be others one day
                why = (str(error).splitlines() or [type(error).__name__])[0]  # tensors may follow
                raise NotCompiledError(f"Expected operations that torch compiles; got {why}") from error

    def __call__(self, given: Sequence[Tensor]) -> list[Tensor] | None:
        """The tensors that are wanted, from other ones of the same kinds; None where a number that was read is another,
        or what was taken from elsewhere has been written into.
        """
        if torch.get_default_dtype() is not self._default or not self._player.is_valid:
            return None
        if [(t.shape, t.dtype, t.device) for t in given] != self._kinds:
            return None
        with torch.no_grad(), torch.jit.optimized_execution(False):  # as written: no kernels are fused
            *found, reads = self._run(*given)
        if self._expected and [repr(read) for read in reads.tolist()] != self._expected:
            return None
        return found

    def _check(self) -> None:
        """Raise at the first operation that cannot be compiled."""
        dtypes = {number: dtype for number, (_, dtype, _) in enumerate(self._kinds)}
        for operation in self._player.operations:
            tags = operation.function.tags
            if operation.is_random:
                raise NotCompiledError(f"Expected operations that draw nothing; got {operation.function}.")
            if torch.Tag.dynamic_output_shape in tags and not _has_fixed_shape(operation, dtypes):
                raise NotCompiledError(f"Expected results whose shapes are known; got {operation.function}.")
            if operation.reads and operation.function not in _READS:
                raise NotCompiledError(f"Expected reads of single numbers; got {operation.function}.")
            if operation.default is not self._default:
                raise NotCompiledError(f"Expected one default dtype; got {operation.default} and {self._default}.")
            dtypes |= {place: dtype for place, (_, dtype) in zip(operation.places, operation.kinds, strict=True)}

    def _computed(self, *given: Tensor) -> tuple[Tensor, ...]:
        """What is wanted, and after it all numbers that are read."""
        values, reads = dict(enumerate(given)), [given[0].new_zeros(0, dtype=torch.float64)]
        for operation, (plain, named) in zip(self._player.operations, self._arguments, strict=True):
            args = [value_of(a, values) for a in plain]
            kwargs = {name: value_of(a, values) for name, a in named.items()}
            if operation.reads:
                reads.append(_READS[operation.function](*args).reshape(1).double())
                continue
            result: Any = operation.function(*args, **kwargs)
            results = [result] if isinstance(result, Tensor) else [t for t in result or () if isinstance(t, Tensor)]
            values.update(zip(operation.places, results, strict=True))
        return *(values[n] for n in self._needed), torch.cat(reads)


def _unnamed(value: Tensor) -> str:
    """The name of a tensor in a graph, which needs none."""
    return ""


def _plain(item: Any) -> Any:
    """An argument whose tensors are no part of a gradient, as those of a graph may not be."""
    if isinstance(item, Tensor):
        return item.detach()
    return [_plain(i) for i in item] if type(item) in (list, tuple) else item


def _has_fixed_shape(operation: Operation, dtypes: Mapping[int, torch.dtype]) -> bool:
    """Whether an operation takes elements at integers, or by masks that are the same each time."""
    return operation.function is _aten.index.Tensor and not any(
        isinstance(index, Place) and dtypes[index.number] in (torch.bool, torch.uint8) for index in operation.args[1]
    )


def _number_of(read: str) -> str:
    """A number that was read, as the tensor of all of them gives it back."""
    named: Mapping[str, float] = {"True": 1.0, "False": 0.0, "None": 0.0}
    try:
        number = named[read] if read in named else float(read)
    except ValueError as error:
        raise NotCompiledError(f"Expected reads of real numbers; got {read}.") from error
    if abs(number) > 2**53:
        raise NotCompiledError(f"Expected reads of numbers that float64 has; got {read}.")
    return repr(number)


__all__ = ["Compiled", "NotCompiledError"]
