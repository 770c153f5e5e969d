"""What torch computes from the tensors of a call, written down to be computed again from other tensors.

A :class:`Tape` sees every operation of torch on the tensors that it is given and on what came of them. What Python
reads of them (a number, a truth value) is written down with its value: played on other tensors, a tape says where it
reads another one, for there the program may have taken another way. What it cannot see (the bytes as an array, writes
in place) spoils it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..expressions.operations import SHAPE_QUERIES
from ..expressions.tables import words
from ..signatures import Args, Kwargs
from .snapshot import version_of

#: What reads nothing of a tensor's numbers, beside its shape.
_QUERIES = SHAPE_QUERIES | words(
    "__get__ __hash__ __len__ stride storage_offset is_contiguous is_floating_point is_complex is_signed is_inference "
    "is_shared element_size get_device result_type can_cast is_tensor is_storage is_conj is_neg is_same_size "
    "promote_types _is_view"
)
#: What reads a tensor's bytes past the operations of torch.
_READS = words(
    "numpy tolist data_ptr storage untyped_storage _typed_storage __array__ __deepcopy__ __reduce_ex__ __dlpack__ "
    "apply_ map_ map2_ __cuda_array_interface__ __setstate__ __set__ set_ resize_ share_memory_"
)


#: A tape of more operations is not worth its time.
_MOST = 20_000


class Place(NamedTuple):
    """Where a tensor stands among those of a tape: the tensors that it was given first, then all results."""

    number: int


class Operation(NamedTuple):
    """One operation: its arguments, with places for the tensors of the tape, its results, and their places.

    ``reads``: what it gave that is no tensor, which must be the same again. ``written``: the storages that it wrote
    into. ``depends``: whether it comes of what was given, or is random. ``default``: torch's default dtype then.
    """

    function: Any
    args: Args
    kwargs: Kwargs
    places: tuple[int, ...]
    kinds: tuple[tuple[torch.Size, torch.dtype], ...]
    reads: tuple[str, ...]
    written: frozenset[int]
    depends: bool
    is_random: bool
    default: torch.dtype


class Tape:
    """Write down what is computed while it is entered, and what of it comes of some tensors.

    Args:
        given: the tensors.

    Attributes:
        obstacle: why it cannot be played again; None if it can.
        dispatched: how many operations there were.
    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        self.obstacle: str | None = None
        self.operations: list[Operation] = []
        self.dispatched = 0
        self._held: list[Tensor] = []  # which keeps them alive, and their numbers their own
        self._places: dict[int, int] = {}
        self._made: set[int] = set()  # storages that came of operations here
        self._changing: set[int] = set()  # storages that hold what comes of the given
        self._constants: dict[int, tuple[Tensor, int]] = {}
        for tensor in given:
            self._place(tensor, True)
        self._modes = ExitStack()

    def __enter__(self) -> Tape:
        self._modes.enter_context(_Reads(self))
        self._modes.enter_context(_Operations(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._modes.close()

    def spoil(self, why: str) -> None:
        """Know why the tape cannot be played again."""
        self.obstacle = self.obstacle or why

    def place_of(self, tensor: Tensor) -> int | None:
        """The number of a tensor among those of the tape; None of one that does not depend on what was given."""
        return self._places.get(id(tensor)) if self.shares(tensor) else None

    def shares(self, tensor: Tensor) -> bool:
        """Whether a tensor is in the memory of what comes of the given."""
        return _storage_of(tensor) in self._changing

    def _place(self, tensor: Tensor, depends: bool) -> int:
        if id(tensor) not in self._places:
            self._places[id(tensor)] = len(self._held)
            self._held.append(tensor)
        if depends:
            self._changing.add(_storage_of(tensor))
            if tensor.layout is not torch.strided:
                self.spoil(f"a tensor of layout {tensor.layout}")
        return self._places[id(tensor)]

    def write(self, function: object, args: Args, kwargs: Kwargs, result: object) -> None:
        """Take an operation down."""
        self.dispatched += 1
        if self.dispatched > _MOST:
            self.spoil(f"more than {_MOST} operations")
        if self.obstacle is not None:
            return
        if not isinstance(function, torch._ops.OpOverload):
            self.spoil(f"{function}, whose operations are not seen")
            return
        leaves = list(_leaves_of([args, *kwargs.values()]))
        inputs = [t for t in leaves if isinstance(t, Tensor)]
        is_random = torch.Tag.nondeterministic_seeded in function.tags
        depends = is_random or any(map(self.shares, inputs))
        written = frozenset(map(_storage_of, _written(function, args, kwargs)))
        if any(isinstance(leaf, torch.Generator) for leaf in leaves):
            self.spoil(f"{function} of a generator of its own")
        self._check(function, inputs, written, depends)
        if depends:
            self._changing |= written
        results = list(_leaves_of(result))
        tensors = [t for t in results if isinstance(t, Tensor)]
        self._made |= {_storage_of(t) for t in tensors} - set(map(_storage_of, inputs))
        args, kwargs = _mapped(args, kwargs, self._named)
        places = tuple(self._place(t, depends) for t in tensors)
        kinds, reads = _kinds_of(tensors), _reads_of(results)
        default = torch.get_default_dtype()
        self.operations.append(
            Operation(function, args, kwargs, places, kinds, reads, written, depends, is_random, default)
        )

    def _check(self, function: object, inputs: Sequence[Tensor], written: frozenset[int], depends: bool) -> None:
        """Know whether what comes of the given has left what is written down here."""
        if any(self.shares(t) and id(t) not in self._places for t in inputs):
            self.spoil(f"{function} of a tensor that shares the data's memory")
        if written - self._made:
            self.spoil(f"{function}, which writes into the model's own memory")
        if depends and function is torch.ops.aten.as_strided.default:
            self.spoil(f"{function}, which works on the data's memory")
        for tensor in inputs:
            if _storage_of(tensor) not in self._made and not self.shares(tensor):
                self._constants.setdefault(id(tensor), (tensor, version_of(tensor)))

    def _named(self, item: object) -> Any:
        return Place(self._places[id(item)]) if isinstance(item, Tensor) and id(item) in self._places else item

    def changed_constant(self) -> str | None:
        """What of that which was taken from elsewhere has been written into since; None if nothing has."""
        changed = _changed(self._constants.values())
        return None if changed is None else f"a constant of shape {tuple(changed.shape)} that is written into"

    def played(self, needed: Collection[int]) -> Player:
        """What computes the tensors at these places again."""
        live, storages = set(needed), {_storage_of(self._held[n]) for n in needed}
        kept = []
        for operation in reversed(self.operations):
            is_root = operation.depends and (operation.reads or operation.is_random)
            if not (is_root or live.intersection(operation.places) or storages & operation.written):
                continue
            args, kwargs = _mapped(operation.args, operation.kwargs, self._filled)
            kept.append(operation._replace(args=args, kwargs=kwargs))
            leaves = _leaves_of([args, *kwargs.values()])
            more = {leaf.number for leaf in leaves if isinstance(leaf, Place)} - live
            live |= more
            storages |= {_storage_of(self._held[n]) for n in more}
        return Player(kept[::-1], list(self._constants.values()))

    def _filled(self, item: Any) -> Any:
        """The tensor itself, where it does not come of what was given."""
        is_constant = isinstance(item, Place) and not self.shares(self._held[item.number])
        return self._held[item.number] if is_constant else item


class Player:
    """The operations of a tape that are needed, to be computed again, and what it took from elsewhere, by version."""

    def __init__(self, operations: Sequence[Operation], constants: Sequence[tuple[Tensor, int]]) -> None:
        self.operations, self.constants = operations, constants
        self.is_random = any(operation.is_random for operation in operations)

    @property
    def is_valid(self) -> bool:
        """Whether what was taken from elsewhere is as it was."""
        return _changed(self.constants) is None

    def play(self, given: Sequence[Tensor]) -> dict[int, Tensor] | None:
        """The tensors of the tape from other ones; None where it reads or finds what it had not."""
        default = torch.get_default_dtype()
        try:
            return self._played(given) if self.is_valid else None
        finally:
            torch.set_default_dtype(default)

    def _played(self, given: Sequence[Tensor]) -> dict[int, Tensor] | None:
        values, default = dict(enumerate(given)), torch.get_default_dtype()
        for operation in self.operations:
            if operation.default is not default:
                default = operation.default
                torch.set_default_dtype(default)
            args = [value_of(a, values) for a in operation.args]
            kwargs = {name: value_of(a, values) for name, a in operation.kwargs.items()}
            result = operation.function(*args, **kwargs)
            if type(result) is Tensor:  # most are
                if operation.kinds != ((result.shape, result.dtype),):
                    return None
                values[operation.places[0]] = result
                continue
            results = list(_leaves_of(result))
            tensors = [t for t in results if isinstance(t, Tensor)]
            if _kinds_of(tensors) != operation.kinds or _reads_of(results) != operation.reads:
                return None
            values.update(zip(operation.places, tensors, strict=True))
        return values


def _changed(constants: Iterable[tuple[Tensor, int]]) -> Tensor | None:
    """The first tensor that was written into since it had its version."""
    return next((tensor for tensor, version in constants if version_of(tensor) != version), None)


def _kinds_of(tensors: Sequence[Tensor]) -> tuple[tuple[torch.Size, torch.dtype], ...]:
    return tuple((t.shape, t.dtype) for t in tensors)


def _reads_of(results: Sequence[object]) -> tuple[str, ...]:
    """What an operation gave that is no tensor, written out: so a zero has its sign."""
    return tuple(repr(r) for r in results if not isinstance(r, Tensor))


def value_of(item: object, values: Mapping[int, Tensor]) -> Any:
    """An argument of an operation, with the tensors at its places."""
    if type(item) is Place:
        return values[item.number]
    return [value_of(i, values) for i in item] if isinstance(item, list | tuple) else item


def _mapped(args: Args, kwargs: Kwargs, change: Callable[[Any], Any]) -> tuple[Args, Kwargs]:
    """The arguments of an operation, with another leaf for each."""

    def mapped(item: object) -> Any:
        return [mapped(i) for i in item] if isinstance(item, list | tuple) and type(item) is not Place else change(item)

    return tuple(map(mapped, args)), {name: mapped(item) for name, item in kwargs.items()}


def _leaves_of(item: object) -> Iterator[Any]:
    """The leaves of an argument, or of a result: operations have lists and tuples of them alone."""
    if isinstance(item, list | tuple) and type(item) is not Place:
        for part in item:
            yield from _leaves_of(part)
    else:
        yield item


def _written(function: Any, args: Args, kwargs: Kwargs) -> list[Tensor]:
    """The tensors that an operation writes into."""
    given = dict(zip((a.name for a in function._schema.arguments), args, strict=False)) | kwargs
    names = [a.name for a in function._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [t for name in names for t in _leaves_of(given.get(name)) if isinstance(t, Tensor)]


def _storage_of(tensor: Tensor) -> int:
    """A number of the memory that a tensor is in; of one of another layout, of the tensor itself."""
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else -id(tensor)


class _Operations(TorchDispatchMode):
    """Tells a tape of every operation."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """The compiler of torch is not asked: it would be imported first, which takes seconds."""
        return False

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._tape.write(func, args, kwargs or {}, result)
        return result


class _Reads(TorchFunctionMode):
    """Tells a tape of the functions that read a tensor without an operation of torch."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        before, name = self._tape.dispatched, getattr(func, "__name__", "")
        result = func(*args, **(kwargs or {}))
        silent = self._tape.dispatched == before and name not in _QUERIES and not isinstance(result, Tensor)
        silent = silent and not all(isinstance(r, Tensor) for r in tree_leaves(result))
        if (silent or name in _READS) and any(
            isinstance(t, Tensor) and self._tape.shares(t) for t in tree_leaves((args, kwargs or {}))
        ):
            self._tape.spoil(f"{resolve_name(func) or name}, which reads the data's memory")
        return result


__all__ = ["Operation", "Place", "Player", "Tape", "value_of"]
