"""What a process without data takes part with: a datum of another process, which counts for nothing.

A model cannot be recorded with an empty plate. So where the shard of a process is empty, or its batch, or it has no
batches, the first process with data lends it some, once: in place of each array that is empty there, one datum. From
there on it computes and says all that the others do, its sums at weight zero: it learns the globals and the ELBO, and
adds nothing to them.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from ..checkpoint import fingerprint
from ..errors import DataError
from ..guide import AutoConjugate
from ..recording import record
from .batches import first_of, length_of
from .ranks import Alone, Ranks
from .sweep import ModelArguments

#: The arguments of a step; None in a process that has no batches.
Own = ModelArguments | None


class Loan(NamedTuple):
    """What a process without data was lent.

    ``items``: by its place among the arguments, what stands for one that is empty; None: all of them are another
    process's ``arguments``, as long as the ``mark`` of the own ones is this.
    """

    items: dict[int, Any] | None
    arguments: ModelArguments
    mark: str

    def of(self, own: Own) -> ModelArguments:
        """Arguments in which this stands for what is missing; others than before if the own ones are."""
        args, kwargs = self.arguments
        if own is None:
            return args, kwargs
        if self.items is not None:
            leaves, structure = _leaves(own)
            parts = tree_unflatten([self.items.get(i, leaf) for i, leaf in enumerate(leaves)], structure)
            args = tuple(parts[: len(own[0])])
            kwargs = dict(zip(own[1], parts[len(own[0]) :], strict=True))
        return args, type(own[1])(kwargs)


def lent(ranks: Alone | Ranks, guide: AutoConjugate, own: Own) -> ModelArguments:
    """The arguments of a step: in a process without data, those that it was lent.

    ``ranks.stands_in`` says from here on whether that is so.

    Raises:
        DataError: in all processes, if none of them has data.
        PyroLatentError: in all processes, if the model does not run with what one of them was lent.
    """
    if isinstance(ranks, Alone) or ranks.size == 1:
        assert own is not None
        return own
    kind = _kind_again(ranks, own)
    if ranks.any(kind is not None and not _is_known(ranks, kind, own)):
        _ask(ranks, guide, own, kind)
    loan = None if kind is None else ranks.loans[kind]
    ranks.stands_in = loan is not None
    if loan is None:
        assert own is not None
        return own
    if own is None or ranks.last_loan is None or any(a is not b for a, b in zip(ranks.last_loan[0], own, strict=True)):
        ranks.last_loan = (own or ((), {}), loan.of(own))
    return ranks.last_loan[1]


def first_lent(
    ranks: Alone | Ranks, guide: AutoConjugate, batches: Iterable[object], arguments: Callable[[Any], ModelArguments]
) -> ModelArguments:
    """The arguments of the first batch, as :func:`lent`."""
    is_shared = isinstance(ranks, Ranks) and ranks.size > 1

    def first() -> Own:
        return None if is_shared and length_of(batches) == 0 else arguments(first_of(batches))

    return lent(ranks, guide, ranks.agreed(first))


def _leaves(own: ModelArguments) -> tuple[list[Any], TreeSpec]:
    """The arguments, and what the lists and mappings among them hold; an empty one counts as one."""
    return tree_flatten([*own[0], *own[1].values()], is_leaf=lambda item: item is not None and _is_empty(item))


def _is_empty(item: object) -> bool:
    if isinstance(item, list | tuple | dict):
        return len(item) == 0
    shape = getattr(item, "shape", ())
    return isinstance(shape, tuple) and 0 in shape


def _kind_again(ranks: Ranks, own: Own) -> Hashable | None:
    """The kind of arguments; where the last ones had nothing empty, they are not looked through again."""
    items = [] if own is None else [*own[0], *own[1].values()]
    last = ranks.last_full
    if items and len(last) == len(items) and all(a is b for a, b in zip(last, items, strict=True)):
        return None
    kind = _kind(own)
    ranks.last_full = items if kind is None else []
    return kind


def _kind(own: Own) -> Hashable | None:
    """What decides whether arguments are of data, where something in them is empty: their structure and shapes. None
    where nothing is.
    """
    if own is None:
        return ()
    leaves, structure = _leaves(own)
    if not any(map(_is_empty, leaves)):
        return None
    shapes = tuple(tuple(leaf.shape) if hasattr(leaf, "shape") else None for leaf in leaves)
    return len(own[0]), tuple(own[1]), str(structure), shapes


def _is_known(ranks: Ranks, kind: Hashable, own: Own) -> bool:
    if kind not in ranks.loans:
        return False
    loan = ranks.loans[kind]
    return loan is None or loan.items is not None or loan.mark == _mark(own)


def _mark(own: Own) -> str:
    return "" if own is None else fingerprint(*own)


class _Gaps(NamedTuple):
    """Where the arguments of a process are empty: their structure, and by place the shape of an array, or None for what
    is no array.
    """

    structure: Hashable
    shapes: dict[int, tuple[int, ...] | None]


def _gaps(own: Own) -> _Gaps | None:
    if own is None:
        return None
    leaves, structure = _leaves(own)
    empty = {i: leaf for i, leaf in enumerate(leaves) if _is_empty(leaf)}
    shapes = {i: tuple(e.shape) if isinstance(e, Tensor | np.ndarray) else None for i, e in empty.items()}
    return _Gaps((len(own[0]), tuple(own[1]), str(structure)), shapes)


def _ask(ranks: Ranks, guide: AutoConjugate, own: Own, kind: Hashable | None) -> None:
    """Find out which processes have no data, and let the first one that has lend them some."""
    sites, problem = _recorded(guide, own)
    lacks = kind is not None and _is_empty_handed(own, problem)
    ranks.agreed(lambda: None if lacks else _raised(problem))
    told = ranks.gathered((lacks, _gaps(own) if lacks else None, sites))
    holders = [rank for rank, (is_empty, _, _) in enumerate(told) if not is_empty]
    if not holders:
        raise DataError(
            f"Expected data in at least one of {ranks.size} processes; got empty plates, or no batches, in all of them."
        )
    if kind is not None and not lacks:
        ranks.loans[kind] = None
    if len(holders) == ranks.size:
        return
    for whole in (False, True) if len(holders) > 1 else (True,):  # a model may tell a part of the data from all of it
        loan = _given(ranks, own, [gaps for _, gaps, _ in told], holders[0], whole)
        found, problem = _recorded(guide, loan.of(own)) if lacks else ([], None)
        if not ranks.any(lacks and found != told[holders[0]][2]):
            break
    ranks.agreed(lambda: _raised(problem))
    if lacks:
        ranks.loans[kind], ranks.last_loan = loan, None
        warnings.warn(
            f"Expected data in each process; got none in process {ranks.rank} of {ranks.size}. It takes part with data "
            f"of process {holders[0]}, which here count for nothing: the globals and the ELBO are those of all data, "
            "and local sites of the guide here are of that data.",
            stacklevel=2,
        )


def _raised(problem: Exception | None) -> None:
    if problem is not None:
        raise problem


def _given(ranks: Ranks, own: Own, gaps: list[_Gaps | None], donor: int, whole: bool) -> Loan:
    """What the donor lends to this process."""

    def packed() -> bytes:
        if ranks.rank != donor:
            return b""
        assert own is not None
        cuts = [None if whole or one is None else _cut(one, own) for one in gaps]
        args, kwargs = tree_map(_apart, (own[0], dict(own[1]))) if None in cuts else ((), {})
        return pickle.dumps((cuts, args, kwargs))

    cuts, args, kwargs = pickle.loads(ranks.shared(ranks.agreed(packed), donor))
    if cuts[ranks.rank] is None:
        return Loan(None, tree_map(ranks.moved, (args, kwargs)), _mark(own))
    return Loan(tree_map(ranks.moved, cuts[ranks.rank]), ((), {}), "")


def _cut(gaps: _Gaps, own: ModelArguments) -> dict[int, Any] | None:
    """By place, one datum in place of each array that is empty elsewhere; None where that is not all that differs."""
    (structure, shapes), (leaves, found) = gaps, _leaves(own)
    ours = {i: leaves[i] for i in shapes if i < len(leaves) and isinstance(leaves[i], Tensor | np.ndarray)}
    fits = all(i in ours and shape is not None and len(shape) == ours[i].ndim for i, shape in shapes.items())
    if not fits or structure != (len(own[0]), tuple(own[1]), str(found)):
        return None
    first = {i: tuple(slice(0, 1) if n == 0 else slice(None) for n in shape or ()) for i, shape in shapes.items()}
    return {i: _apart(array[first[i]]) for i, array in ours.items()}


def _apart(item: Any) -> Any:
    """A tensor or array without the larger one that it may be a view of."""
    return item.detach().cpu().clone() if isinstance(item, Tensor) else item.copy() if _is_view(item) else item


def _is_view(item: object) -> bool:
    return isinstance(item, np.ndarray) and item.base is not None


def _is_empty_handed(own: Own, problem: Exception | None) -> bool:
    """Whether the model does not run because a plate is empty, or it does not and no argument has elements."""
    if own is None or problem is None:
        return own is None
    is_of_plate = isinstance(problem.__context__, ZeroDivisionError)  # Pyro divides by the size of a plate
    return is_of_plate or not any(getattr(leaf, "shape", ()) and not _is_empty(leaf) for leaf in _leaves(own)[0])


def _recorded(guide: AutoConjugate, arguments: Own) -> tuple[list[str], Exception | None]:
    """The sites that a recording of the model finds, or the error that it ends in; the random state is as before."""
    args, kwargs = arguments or ((), {})
    with torch.random.fork_rng():
        try:
            found = record(guide.augmented.model, *args, origins={}, point=guide.point, rescale=False, **kwargs)
        except Exception as error:
            return [], error
    return list(found.scored), None


__all__ = ["Own", "first_lent", "lent"]
