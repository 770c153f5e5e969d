"""The auxiliary sites of a guide's model, and what is shown of its posterior: that of the model's own sites."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions.transforms import PowerTransform

from ..distributions.functions import function_of
from ..errors import ArgumentTypeError, ModelError, NotConjugateError
from ..objective import compile_program
from ..recording import record
from ..reparam import Conjugate, Site
from ..signatures import Args, Model
from ..values import leaving_random_state


class Augmented:
    """A model with auxiliary sites that make it conjugate, or as it is.

    Args:
        model: a Pyro model.
        reparam: whether to add the auxiliary sites of :class:`~pyro_latent.reparam.Conjugate`, or one of these.

    Attributes:
        model: the model that is recorded.
    """

    def __init__(self, model: Model, reparam: bool | Conjugate) -> None:
        if not isinstance(reparam, bool | Conjugate):
            raise ArgumentTypeError(
                f"Expected reparam to be True, False or a Conjugate(); got {reparam!r}. For other reparameterizers, "
                "write poutine.reparam(model, config) as the model of both CAVI and AutoConjugate."
            )
        self._strategy = Conjugate() if reparam is True else reparam or None
        config: Any = self._strategy
        self.model: Model = model if config is None else poutine.reparam(model, config=config)

    @property
    def is_used(self) -> bool:
        """Whether auxiliary sites were asked for."""
        return self._strategy is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The auxiliary sites of the runs so far."""
        return tuple(self._strategy.auxiliary) if self._strategy else ()

    @property
    def moved(self) -> dict[str, tuple[str, Any]]:
        """By auxiliary site that one of the model is a function of, that one and the function."""
        moved = self._strategy.moved if self._strategy else {}
        return {source: (name, transform) for name, (source, transform) in moved.items()}

    def stored(self) -> dict[str, Any]:
        """The auxiliary sites of the runs so far, and which sites are powers of them, in plain types."""
        if self._strategy is None:
            return {}
        powers = {
            name: [source, float(transform.exponent)]
            for name, (source, transform) in self._strategy.moved.items()
            if isinstance(transform, PowerTransform)
        }
        return {"auxiliary": dict(self._strategy.auxiliary), "powers": powers}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Take on what :meth:`stored` gave.

        Raises:
            ModelError: if one model has auxiliary sites, and the other has none.
        """
        if bool(stored.get("auxiliary")) and self._strategy is None:
            raise ModelError(
                f"Expected the state of a guide without auxiliary sites; got one with {list(stored['auxiliary'])}. "
                "Write AutoConjugate(model, reparam=True)."
            )
        if self._strategy is not None:
            self._strategy.auxiliary |= stored.get("auxiliary", {})
            for name, (source, power) in stored.get("powers", {}).items():
                self._strategy.moved.setdefault(name, (source, PowerTransform(torch.tensor(power))))

    def own(self, found: Mapping[Any, object], change: Callable[[Any, Any], Any]) -> dict[Any, Any]:
        """What there is of the model's own sites, from what there is by site or by block.

        Args:
            found: by site, or by tuple of sites.
            change: gives that of a function of a site, from that of the site and the function.
        """
        result = {}
        for key, value in found.items():
            if key in self.moved:
                name, transform = self.moved[key]
                result[name] = change(value, transform)
            elif not self._is_auxiliary(key):
                result[key] = value
        return result

    def _is_auxiliary(self, key: Any) -> bool:
        return all(name in self.names for name in ((key,) if isinstance(key, str) else key))

    @contextmanager
    def advising(
        self, args: Args, kwargs: Mapping[str, object], joint: tuple[tuple[str, ...], ...] = ()
    ) -> Iterator[None]:
        """Errors of a model as it is say whether auxiliary sites would make it conjugate, with the same blocks."""
        try:
            yield
        except NotConjugateError as error:
            if self._strategy is not None or not self._would_do(args, kwargs, joint):
                raise
            raise type(error)(
                f"{error} Or write AutoConjugate(model, reparam=True), which adds sites for it."
            ) from error

    def advice(
        self, explained: str, args: Args, kwargs: Mapping[str, object], joint: tuple[tuple[str, ...], ...]
    ) -> str:
        """The table of a model with obstacles, with a line where auxiliary sites would make it conjugate."""
        is_in_the_way = "none: " in explained or explained.startswith("No blocks: ")
        if not is_in_the_way or self._strategy is not None or not self._would_do(args, kwargs, joint):
            return explained
        return f"{explained}\nWith AutoConjugate(model, reparam=True), which adds sites, all sites have an update."

    def _would_do(self, args: Args, kwargs: Mapping[str, Any], joint: tuple[tuple[str, ...], ...]) -> bool:
        """Whether the model is conjugate with auxiliary sites."""
        try:
            with leaving_random_state(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile_program(record(Augmented(self.model, True).model, *args, **kwargs), joint)
        except Exception:  # whatever else is wrong, the first error has said
            return False
        return True

    def drawing(self) -> AbstractContextManager[Any]:
        """While it lasts, sample statements of auxiliary sites are seen by no handler outside, but for those that a
        site of the model is a function of: they are seen as that site.
        """
        return _Shown(self.names, self.moved) if self._strategy else nullcontext()


class _Shown(Messenger):
    def __init__(self, hidden: Iterable[str], moved: Mapping[str, tuple[str, Any]]) -> None:
        super().__init__()
        self._hidden = set(hidden)
        self._moved = moved
        self._inverse = {name: transform.inv for name, transform in moved.values()}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._moved:
            site = Site.of(msg)
            msg["name"], transform = self._moved[msg["name"]]
            msg["fn"] = transformed(site.wrapped(site.fn), transform)
        elif msg["name"] in self._hidden:
            msg["stop"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self._inverse:
            msg["value"] = self._inverse[msg["name"]](msg["value"])


def transformed(distribution: object, transform: object) -> Any:
    """The distribution of a function of a value, masked as that of the value is."""
    site = Site.of({"name": "", "fn": distribution, "value": None})
    return site.wrapped(function_of(site.fn, transform))


def moved_value(value: Tensor, transform: Any) -> Tensor:
    """The function of a value."""
    found: Tensor = transform(value)
    return found


__all__ = ["Augmented", "moved_value", "transformed"]
