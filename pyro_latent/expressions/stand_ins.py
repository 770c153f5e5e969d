"""Symbols in the place of tensors that the model keeps itself, such as the weights of its networks.

A module reads its weights from itself, whatever ``pyro.param`` returns. While the model is recorded, every operation of
torch sees the symbol of a weight in its place; the module stays as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from ..errors import ModelError
from ..signatures import Args, Kwargs
from .expression import Expression
from .operations import SHAPE_QUERIES
from .recorded import mapped, recorded_in, tensors_in
from .tables import words
from .tensor import RandomTensor, writes_in_place

_LAYERS = "torch.nn.functional"
#: Functions that draw numbers of the shapes of their arguments.
_DRAWS = words("bernoulli multinomial normal poisson rand_like randint_like randn_like")
_INSTEAD = "Write module.eval() before the fit, or leave the layer out."


class StandIns(TorchFunctionMode):
    """What stands for which tensor, known by identity, in the thread that made this."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self.is_resting = False  # while the engine computes, and not the model
        self._symbols: dict[int, tuple[Tensor, RandomTensor | str]] = {}
        self._written: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Nothing stands for anything inside, nor is looked at: it is the engine that computes."""
        if threading.get_ident() != self._thread:
            yield
            return
        before, self.is_resting = self.is_resting, not self._symbols  # a density of the user's may hold a module
        is_on_top = self.is_resting and _get_current_function_mode() is self
        if is_on_top:
            self.__exit__(None, None, None)
        try:
            yield
        finally:
            if is_on_top:
                self.__enter__()
            self.is_resting = before

    def put(self, tensor: Tensor, symbol: RandomTensor | str) -> None:
        """Let a symbol stand for a tensor; a string in its place is the name of another tensor that Pyro keeps."""
        self._symbols[id(tensor)] = (tensor, symbol)  # which keeps it alive, and its number its own

    def _write_into(self, tensor: Any) -> None:
        """Let a symbol stand for a tensor that is about to hold latents; what else shares its elements is lost."""
        plain = type(tensor) is Tensor and tensor.is_floating_point() and not tensor.requires_grad
        if not plain or tensor in self or tensor._is_view() or tensor.is_inference():
            return
        symbol = RandomTensor(tensor.clone(), Expression.constant(tensor.clone()))
        symbol.is_own = True
        self._written.append((tensor, tensor.clone()))
        self.put(tensor, symbol)
        tensor.fill_(torch.nan)

    def restore(self) -> None:
        """Give tensors that the model wrote into the numbers that they had."""
        for tensor, before in self._written:
            tensor.copy_(before)

    def __contains__(self, tensor: object) -> bool:
        return id(tensor) in self._symbols

    def of(self, item: object) -> Any:
        """The item, with symbols in the place of the tensors inside tuples, lists and dicts."""
        here = bool(self._symbols) and threading.get_ident() == self._thread
        return mapped(item, self._symbol, Tensor) if here else item

    def _symbol(self, tensor: Tensor) -> Tensor:
        found = self._symbols.get(id(tensor), (tensor, tensor))[1]
        if isinstance(found, str):
            raise ModelError(
                f"Expected the module's own weights in Pyro's store; got those of another module as {found!r}. Write "
                "pyro.clear_param_store() before the fit of another module, or, to go on from the stored weights, "
                "pyro.module(name, module, update_module_params=True)."
            )
        return found

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.is_resting:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if writes_in_place(name, kwargs) and recorded_in(args[1:]) and threading.get_ident() == self._thread:
            self._write_into(args[0])
        is_layer = getattr(func, "__module__", None) == _LAYERS
        if not self._symbols and not is_layer and name not in _DRAWS:
            return func(*args, **kwargs)
        if name == "__get__" or name in SHAPE_QUERIES:
            found = func(*args, **kwargs)
            if not isinstance(found, Tensor):
                return found
        args, kwargs = self.of((args, kwargs))
        if is_layer:
            _check_layer(name, args, kwargs)
        if not is_layer and not any(isinstance(t, RandomTensor) and t.replay for t in tensors_in(args, kwargs)):
            return func(*args, **kwargs)
        before = _random_states()
        result = func(*args, **kwargs)
        if not all(map(torch.equal, before, _random_states())):
            raise ModelError(
                f"Expected layers that compute the same from the same weights; got {name}, which draws random numbers. "
                f"{_INSTEAD}"
            )
        return result


def _check_layer(name: str, args: Args, kwargs: Kwargs) -> None:
    """A layer leaves its module as it is.

    Raises:
        ModelError: for one that keeps statistics of the batches that it has seen.
    """
    learns = kwargs.get("training") if name == "batch_norm" else kwargs.get("use_input_stats", True)
    running = kwargs.get("running_mean", args[1] if len(args) > 1 else None)
    if name in ("batch_norm", "instance_norm") and learns and running is not None:
        raise ModelError(
            f"Expected layers that leave the module as it is; got {name}, which averages the batches of its training. "
            f"{_INSTEAD} With track_running_stats=False it normalizes by the data at hand alone."
        )


def _random_states() -> list[Tensor]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


__all__ = ["StandIns"]
