"""Parameters in Pyro's store and in modules, when several methods of one model run one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ..guide import AutoConjugate


class SavedValues:
    """Tensors by name, and the values that they have now: a fit changes them in place."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self.tensors = dict(tensors)
        self._values = {n: t.detach().clone() for n, t in self.tensors.items()}

    def restore(self) -> None:
        """Put the values back."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(self._values[name])

    def has(self, name: str, tensor: Tensor) -> bool:
        """Whether this is a tensor of that name here, and has its value."""
        return tensor is self.tensors.get(name) and torch.equal(tensor, self._values[name])


class ParameterStates:
    """Pyro's parameters, as each method finds them and as a comparison leaves them.

    The tensors stay the same ones, for modules have theirs registered in the store; their values are put back before
    each method.

    Args:
        start: the store's state at the call, with the parameters that the model makes.
        guides: of the methods. Autoguides among them keep their parameters in themselves.
    """

    def __init__(self, start: Any, guides: Iterable[Any]) -> None:
        self._own = tuple(f"{g._pyro_name}." for g in guides if _keeps_parameters(g))
        self._start = start
        self._before = SavedValues(self._shared(start))
        self._left: dict[str, tuple[SavedValues, Any]] = {}
        self._has_fit = False

    def _shared(self, state: Any) -> list[tuple[str, Tensor]]:
        return [(n, p) for n, p in state["params"].items() if not n.startswith(self._own)]

    @contextmanager
    def of(self, guide: Any, *, keep: bool) -> Iterator[None]:
        """The parameters that one method finds. What it makes of them stays in here, or is noted to be kept."""
        self._before.restore()
        state: Any = {part: dict(self._start[part]) for part in self._start}
        with pyro.get_param_store().scope(state) as found, own_parameters(guide):
            yield
        if keep:
            self._keep(found)

    def _keep(self, state: Any) -> None:
        self._has_fit = True
        for name, tensor in self._shared(state):
            if name not in self._left and not self._before.has(name, tensor):
                self._left[name] = SavedValues([(name, tensor)]), state["constraints"][name]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Afterwards the store is as before, but for what the first fit that made or changed a parameter left."""
        try:
            yield
        finally:
            self._before.restore()
        store: Any = pyro.get_param_store()
        if self._has_fit:
            store.set_state(self._start)
        for name, (left, constraint) in self._left.items():
            left.restore()
            store.set_state({"params": left.tensors, "constraints": {name: constraint}})


def _keeps_parameters(guide: object) -> bool:
    return isinstance(guide, AutoGuide) and not isinstance(guide, AutoConjugate)


@contextmanager
def own_parameters(guide: Any) -> Iterator[None]:
    """An autoguide reads its own parameters, and not those that another of its class left in Pyro's store.

    Two ``AutoNormal`` guides have the same names there. Each keeps its parameters in itself too, and uses these where
    the store has none of the name.
    """
    if not _keeps_parameters(guide):
        yield
        return
    store, prefix = pyro.get_param_store(), f"{guide._pyro_name}."
    state: Any = store.get_state()
    inner: Any = {part: {n: v for n, v in state[part].items() if not n.startswith(prefix)} for part in state}
    with store.scope(inner):  # it holds at the end what was made inside
        yield
    known = state["params"]
    made = {n for n, p in inner["params"].items() if known.get(n) is not p and not n.startswith(prefix)}
    new: Any = {part: {n: v for n, v in inner[part].items() if n in made} for part in inner}
    store.set_state(new)  # the model's own parameters outlive the scope
