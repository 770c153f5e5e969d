"""Batches of data, such as a torch ``DataLoader`` gives, as the arguments of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import ArgumentTypeError
from .sweep import ModelArguments


def arguments_of(batch: Any, shared: Mapping[str, Any], model: Callable[..., Any]) -> ModelArguments:
    """A batch, with what all batches share, as the model's positional and keyword arguments.

    Args:
        batch: the positional arguments (a tuple or list), the keyword arguments (a mapping), or the only argument.
        shared: further keyword arguments, which go before those of the batch.
        model: the model that they are for.

    Raises:
        ArgumentTypeError: if Python could not call the model with them.
    """
    args: tuple[Any, ...] = ()
    kwargs = dict(shared)
    if isinstance(batch, Mapping):
        kwargs = dict(batch) | kwargs
    elif isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        args = tuple(batch)
    else:
        args = (batch,)
    _check_arguments(model, args, kwargs)
    return args, kwargs


def held_data(batches: Iterable[Any]) -> Any:
    """The data that batches are of, as far as it is at hand; else the name of what holds it."""
    dataset = getattr(batches, "dataset", batches)
    held = getattr(dataset, "tensors", dataset)
    return held if isinstance(held, tuple | list) else type(held).__name__


def length_of(batches: Iterable[Any]) -> int | None:
    """The number of batches, or None where nobody knows, as for a DataLoader over a stream."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None


def _check_arguments(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A batch and what all batches share are the model's arguments.

    Raises:
        TypeError: if Python could not call the model with them.
    """
    try:
        signature = inspect.signature(model)
    except ValueError:  # of a program in C there is none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentTypeError(
            f"Expected batches, with the keyword arguments that they share, to be the model's arguments {signature}; "
            f"got a batch of {len(args)} with {sorted(kwargs) or 'no'} keywords: {error}. Give what all batches share "
            "by keyword, as in run_batches(batches, size=1000)."
        ) from None


__all__ = ["arguments_of", "held_data", "length_of"]
