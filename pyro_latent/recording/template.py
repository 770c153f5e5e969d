"""An object of Python's, however deep, with other tensors in the place of some of its own.

What holds none of them is shared between the copies. Containers, objects and the variables that functions close over
are copied as they were when the template was made, so that what an object has kept since then is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from types import BuiltinFunctionType, CellType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, NamedTuple
from weakref import ReferenceType, WeakValueDictionary

import torch
from torch import Tensor

from ..expressions import RandomTensor, numbers_in
from .snapshot import CACHED, slots_of

#: What is known by its value or its identity, and holds nothing of a call.
_WHOLE: tuple[type, ...] = (int, float, complex, str, bytes, bool, type(None), type(...), range, slice, type)
_WHOLE += (ModuleType, BuiltinFunctionType, torch.dtype, torch.device, torch.Size)
#: What holds nothing for long.
_WEAK = (ReferenceType, WeakValueDictionary)
#: What holds more than Python shows.
_CLOSED = (CACHED, defaultdict)
#: An object of more parts is not looked into.
_MOST = 100_000

Parts = dict[Any, Any]


class _Changing(NamedTuple):
    """An object that holds a tensor with a number: what makes another one of its parts, and the parts as they were, but
    for those that change, each with the place that it has among the parts.
    """

    key: int
    make: Callable[[list[Any]], Any]
    parts: list[Any]
    changing: list[tuple[int, int]]


class Template:
    """An object, some of whose tensors have numbers.

    Args:
        root: the object.
        number_of: the number of a tensor; None of one that stays.
        shares: whether a tensor is in the memory of one that has a number.

    Attributes:
        needed: the numbers of the tensors that it holds.
        obstacle: why it cannot be copied; None if it can.
    """

    def __init__(
        self, root: object, number_of: Callable[[Tensor], int | None], shares: Callable[[Tensor], bool]
    ) -> None:
        self.root = root
        self.obstacle: str | None = None
        self._numbers: dict[int, int] = {}
        self._cells: dict[int, Any] = {}
        self._order: list[_Changing] = []
        self._held = self._look(number_of, shares)
        if self.obstacle is None:
            self._put_in_order()
        self.needed = set(self._numbers.values())

    def _look(
        self, number_of: Callable[[Tensor], int | None], shares: Callable[[Tensor], bool]
    ) -> dict[int, tuple[Any, Parts]]:
        """Find the tensors with numbers, and all that holds one, with its parts."""
        found: dict[int, tuple[Any, Parts]] = {}
        holders: dict[int, list[int]] = defaultdict(list)
        waiting = [self.root]
        while waiting:
            item = waiting.pop()
            if id(item) in found or isinstance(item, _WHOLE + _WEAK):
                continue
            parts = _parts(item)
            if parts is None or len(found) > _MOST:
                self.obstacle = f"a {type(item).__name__}, which is not looked into"
            elif isinstance(item, Tensor) and shares(item):
                self._number(item, number_of(item))
            if self.obstacle is not None or parts is None:
                return {}
            found[id(item)] = item, parts
            for part in parts.values():
                holders[id(part)].append(id(item))
            waiting += parts.values()
        return self._above(found, holders)

    def _number(self, tensor: Tensor, number: int | None) -> None:
        if number is None or type(tensor) is not Tensor:
            self.obstacle = f"a {type(tensor).__name__} in the data's memory"
        else:
            self._numbers[id(tensor)] = number

    def _above(
        self, found: Mapping[int, tuple[Any, Parts]], holders: Mapping[int, list[int]]
    ) -> dict[int, tuple[Any, Parts]]:
        """What holds a tensor with a number; and the dicts and lists in which such an object or function keeps what it
        finds, for a copy will find other things.
        """
        changing: dict[int, tuple[Any, Parts]] = {}
        above = list(self._numbers)
        while above:
            for holder in holders.get(above.pop(), ()):
                if holder not in changing:
                    changing[holder] = found[holder]
                    above.append(holder)
        if any(isinstance(item, Tensor) for item, _ in changing.values()):
            self.obstacle = "a recorded tensor"
        for item, parts in list(changing.values()):
            cells = (item.__closure__ or ()) if isinstance(item, FunctionType) else ()
            inside = [(cell, found[id(cell)][1].get(0)) for cell in cells]
            own: list[Any] = [p for name, p in parts.items() if isinstance(name, str) and isinstance(p, dict | list)]
            own += [part for pair in inside if isinstance(pair[1], dict | list) for part in pair]
            changing |= {id(part): found[id(part)] for part in own}
        return changing

    def _put_in_order(self) -> None:
        """What is held before what holds it; of a function that calls itself, the variable that holds it is first."""
        state: dict[int, bool] = {}
        waiting = [(key, False) for key in self._held]
        while waiting:
            key, is_done = waiting.pop()
            item, parts = self._held[key]
            below = [id(p) for p in parts.values() if id(p) in self._held and not isinstance(p, CellType)]
            if isinstance(item, CellType):
                self._cells[key] = id(item.cell_contents), item.cell_contents
            elif is_done:
                state[key] = True
                self._order.append(self._changing_of(key, item, parts))
            elif key not in state:
                state[key] = False
                waiting.append((key, True))
                waiting += [(other, False) for other in below]
                if any(state.get(other) is False for other in below):
                    self.obstacle = "an object that holds itself"
                    return

    def _changing_of(self, key: int, item: object, parts: Parts) -> _Changing:
        values = list(parts.values())
        changing = [(i, id(p)) for i, p in enumerate(values) if id(p) in self._held or id(p) in self._numbers]
        return _Changing(key, _maker_of(item, list(parts)), values, changing)

    def filled(self, values: Mapping[int, Tensor]) -> Any:
        """A copy with these tensors at the numbers."""
        made: dict[int, Any] = {key: values[number] for key, number in self._numbers.items()}
        made |= {key: CellType() for key in self._cells}
        for key, make, parts, changing in self._order:
            own = parts.copy()
            for place, part in changing:
                own[place] = made[part]
            made[key] = make(own)
        for key, (content, before) in self._cells.items():
            made[key].cell_contents = made.get(content, before)
        return made.get(id(self.root), self.root)


def _parts(item: object) -> Parts | None:
    """What an object holds, by names of its own; None of one that cannot be looked into."""
    parts: Parts = {}
    if isinstance(item, _CLOSED):
        return None
    if isinstance(item, list | tuple | set | frozenset):
        parts = dict(enumerate(item))
    elif isinstance(item, dict | MappingProxyType):
        parts = {
            (i, what): p for i, pair in enumerate(item.items()) for what, p in zip(("key", "value"), pair, strict=True)
        }
    elif isinstance(item, CellType):
        with suppress(ValueError):  # not assigned yet
            parts = {0: item.cell_contents}
    elif isinstance(item, FunctionType):
        parts = {0: item.__closure__, 1: item.__defaults__, 2: item.__kwdefaults__}
    elif isinstance(item, MethodType):
        return {0: item.__func__, 1: item.__self__}
    elif isinstance(item, partial):
        parts = {0: item.func, 1: item.args, 2: item.keywords}
    elif not isinstance(item, Tensor) and not hasattr(item, "__dict__") and not slots_of(item):
        return None
    return parts | getattr(item, "__dict__", {}) | {n: getattr(item, n) for n in slots_of(item) if hasattr(item, n)}


def _maker_of(like: object, names: list[Any]) -> Callable[[list[Any]], Any]:
    """What makes an object like another one, of its parts in the order of their names."""
    inside = sum(not isinstance(name, str) for name in names)
    bare = _bare_maker_of(like)
    slots = set(slots_of(like))
    attributes = names[inside:]

    def make(parts: list[Any]) -> Any:
        made = bare(parts[:inside])
        for name, part in zip(attributes, parts[inside:], strict=True):
            if name in slots:
                object.__setattr__(made, name, part)
            else:
                made.__dict__[name] = part
        return made

    return make if attributes else bare


def _bare_maker_of(like: object) -> Callable[[list[Any]], Any]:
    """The same without its attributes."""
    kind: Any = type(like)
    if isinstance(like, MappingProxyType):
        return lambda parts: MappingProxyType(dict(zip(parts[::2], parts[1::2], strict=True)))
    if isinstance(like, MethodType):
        return lambda parts: MethodType(*parts)
    if isinstance(like, FunctionType):
        return lambda parts: _function_like(like, *parts)
    if isinstance(like, partial):
        return lambda parts: kind(parts[0], *parts[1], **parts[2])
    if isinstance(like, tuple | frozenset):
        base = tuple if isinstance(like, tuple) else frozenset
        return lambda parts: base.__new__(kind, parts)
    content: Any = next((c for c in (dict, list, set) if isinstance(like, c)), None)

    def make(parts: list[Any]) -> Any:
        made = kind.__new__(kind)
        if content is dict:
            dict.update(made, zip(parts[::2], parts[1::2], strict=True))
        elif content is not None:
            (list.extend if content is list else set.update)(made, parts)
        return made

    return make


def _function_like(like: FunctionType, closure: Any, defaults: Any, kwdefaults: Any) -> FunctionType:
    made = FunctionType(like.__code__, like.__globals__, like.__name__, defaults, closure)
    made.__kwdefaults__, made.__qualname__ = kwdefaults, like.__qualname__
    return made


def first_difference(ours: Any, other: Any) -> str | None:
    """The first thing in which an object differs from another one that was made anew, in words; None if there is none.

    What one of them has computed of itself, in cached properties or in attributes that its class calls ``remembered``,
    is no difference, nor are other numbers of :func:`~pyro_latent.expressions.fresh_number`.
    """
    seen: dict[tuple[int, int], Any] = {}
    numbers: tuple[dict[int, int], dict[int, int]] = {}, {}
    waiting = [("", ours, other)]
    while waiting:
        where, a, b = waiting.pop()
        if a is b or (id(a), id(b)) in seen or isinstance(a, _WEAK):
            continue
        seen[id(a), id(b)] = a, b
        if type(a) is not type(b):
            return f"{where}: {type(a).__name__} for {type(b).__name__}"
        if isinstance(a, _WHOLE):
            if not _same_value(a, b, *numbers):
                return f"{where}: {a!r} for {b!r}"
        elif isinstance(a, Tensor) and not _same(a, b):
            return f"{where}: another tensor of shape {tuple(a.shape)}"
        elif isinstance(a, FunctionType) and a.__code__ is not b.__code__:
            return f"{where}: another function"
        else:
            mine, its = (_parts(sorted(s, key=str) if isinstance(s, set | frozenset) else s) or {} for s in (a, b))
            if any(not _is_cached(a, name) for name in mine.keys() ^ its.keys()):
                return f"{where}: other parts of a {type(a).__name__}"
            common = [n for n in mine if n in its and n not in getattr(type(a), "remembered", ())]
            waiting += [(f"{where}.{name}", mine[name], its[name]) for name in common]
    return None


def _same_value(a: object, b: object, ours: dict[int, int], others: dict[int, int]) -> bool:
    """Whether two values are the same, once the numbers of one recording stand for those of the other."""
    (mine, rest), (its, other_rest) = numbers_in(a), numbers_in(b)
    if len(mine) != len(its) or (rest != other_rest and not (rest != rest and other_rest != other_rest)):
        return False
    pairs = zip(mine, its, strict=True)
    return all(ours.setdefault(m, n) == n and others.setdefault(n, m) == m for m, n in pairs)


def _is_cached(item: Any, name: Any) -> bool:
    """Whether this is what an object has computed of itself."""
    return any(isinstance(vars(c).get(name), cached_property) for c in type(item).__mro__)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are alike to the last bit, of no number (NaN) too; of random tensors, in shape."""
    if (a.shape, a.dtype, a.device, a.layout) != (b.shape, b.dtype, b.device, b.layout):
        return False
    is_random = isinstance(a, RandomTensor)
    return is_random or torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


__all__ = ["Template", "first_difference"]
