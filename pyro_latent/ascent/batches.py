"""Batches of data, such as a torch ``DataLoader`` gives, as the arguments of a model."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from ..checkpoint import fingerprint, random_state, restore_random_state
from ..errors import ArgumentTypeError, ModelError
from ..recording import AskedAgain
from ..signatures import Args, Kwargs, Model
from .sweep import ModelArguments


def arguments_of(batch: object, shared: Mapping[str, object], model: Model) -> ModelArguments:
    """A batch, with what all batches share, as the model's positional and keyword arguments.

    Args:
        batch: the positional arguments (a tuple or list), the keyword arguments (a mapping), or the only argument.
        shared: further keyword arguments, which go before those of the batch.
        model: the model that they are for.

    Raises:
        ArgumentTypeError: if Python could not call the model with them.
    """
    args: Args = ()
    kwargs = dict(shared)
    if isinstance(batch, Mapping):
        kwargs = dict(batch) | kwargs
    elif isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        args = tuple(batch)
    else:
        args = (batch,)
    _check_arguments(model, args, kwargs)
    return args, kwargs


def repeated(arguments: ModelArguments, anew: bool) -> ModelArguments:
    """The same arguments again; ``anew``: as others, of which a guide asks whether the model sees the same."""
    args, kwargs = arguments
    return args, AskedAgain(kwargs) if anew else kwargs


#: The state of torch's generators, and of those that a loader draws its order with.
RandomState = dict[str, Any]


def generators_of(batches: Iterable[object]) -> list[torch.Generator]:
    """The generators that a ``DataLoader`` and its samplers draw with, beside torch's own."""
    holders: list[Any] = [batches]
    for name in ("sampler", "batch_sampler"):
        inner = getattr(batches, name, None)
        holders += [inner, getattr(inner, "sampler", None)]
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def state_of(generators: Sequence[torch.Generator]) -> RandomState:
    """The shared random states of the process, and those of a loader's generators."""
    return random_state() | {"generators": [g.get_state() for g in generators]}


def restore_state(state: RandomState, generators: Sequence[torch.Generator]) -> None:
    """Put all of them back to a state of :func:`state_of`."""
    restore_random_state(state)
    for generator, saved in zip(generators, state["generators"], strict=False):
        generator.set_state(saved)


def first_of(batches: Iterable[object]) -> Any:
    """The first batch; all random states are left as they were.

    Raises:
        ModelError: if there is none.
    """
    generators = generators_of(batches)
    before = state_of(generators)
    try:
        return next(iter(batches))
    except StopIteration:
        raise ModelError("Expected batches of data; got none. Give a list of batches or a DataLoader.") from None
    finally:
        restore_state(before, generators)


def check_repeatable(batches: object) -> None:
    """Raise where batches cannot be iterated over again.

    Raises:
        ArgumentTypeError: for an iterator, or what has no batches.
    """
    if isinstance(batches, Iterator) or not hasattr(batches, "__iter__") or getattr(batches, "ndim", 1) == 0:
        raise ArgumentTypeError(
            "Expected batches that can be iterated over again, such as a list or a DataLoader; got "
            f"{'an iterator' if isinstance(batches, Iterator) else type(batches).__name__}."
        )


def check_resumable(batches: Iterable[object], in_processes: bool = False) -> None:
    """Warn at the start of a run with a checkpoint whose batches a resumed run cannot repeat, alone or in several
    processes, of which the file has the random state of the first.
    """
    obstacle = None
    if isinstance(batches, DataLoader):
        samplers = (batches.sampler, batches.batch_sampler)
        foreign = [s for s in samplers if s is not None and not type(s).__module__.startswith("torch.utils.data")]
        if isinstance(batches.dataset, IterableDataset):
            obstacle = "a DataLoader over a stream"
        elif foreign:
            obstacle = f"a DataLoader with {type(foreign[0]).__name__}, which may draw with a generator of its own"
        elif in_processes and isinstance(batches.sampler, RandomSampler):
            obstacle = "a DataLoader that shuffles by itself, without DistributedSampler, in several processes"
        elif batches.persistent_workers:
            obstacle = "a DataLoader with persistent workers, whose random states stay with them"
    elif not isinstance(batches, Sequence):
        obstacle = type(batches).__name__
    if obstacle is not None:
        warnings.warn(
            "Expected batches that a resumed run can repeat: a list, or a DataLoader with torch's samplers and without "
            f"persistent workers; got {obstacle}. If this run is killed and resumed, it may see other batches than it "
            "would have, and end elsewhere.",
            stacklevel=3,
        )


def held_data(batches: Iterable[object]) -> Any:
    """The data that batches are of, as far as it is at hand; of a dataset that makes its items, some of them."""
    dataset = getattr(batches, "dataset", batches)
    held = getattr(dataset, "tensors", dataset)
    return held if isinstance(held, tuple | list) else [type(held).__name__, _some_items(held)]


def _some_items(dataset: Any) -> list[str]:
    """Digests of items here and there; none of a dataset without places, or whose items are others at each reading."""
    before = random_state()
    try:
        places = sorted({part * (len(dataset) - 1) // 8 for part in range(9)})
        once, twice = ([fingerprint(dataset[i]) for i in places] for _ in range(2))
    except Exception:  # whatever a dataset of somebody else's does with a number
        return []
    finally:
        restore_random_state(before)
    return once if once == twice else []


def length_of(batches: Iterable[object]) -> int | None:
    """The number of batches, or None where nobody knows, as for a DataLoader over a stream."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None


def _check_arguments(model: Model, args: Args, kwargs: Kwargs) -> None:
    """A batch and what all batches share are the model's arguments.

    Raises:
        TypeError: if Python could not call the model with them.
    """
    others = [key for key in kwargs if not isinstance(key, str)]
    if others:
        raise ArgumentTypeError(f"Expected a batch that is a mapping to have argument names as keys; got {others}.")
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


__all__ = [
    "RandomState",
    "arguments_of",
    "check_resumable",
    "first_of",
    "generators_of",
    "held_data",
    "length_of",
    "repeated",
    "restore_state",
    "state_of",
]
