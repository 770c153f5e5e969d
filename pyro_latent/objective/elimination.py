r"""Exact elimination of discrete variables from log factors.

.. math:: \log Z = \log \sum_z \prod_f \exp f(z)

with the plates as products: a variable inside a plate is summed out there, the result is weighted by the plate's scale,
and multiplied over the plate (Obermeyer et al. 2019, "Tensor variable elimination for plated factor graphs"). The
gradient of log Z in a factor is its posterior probabilities, so responsibilities need no code of their own.

Factors of one shape lie in one tensor, a buffer, ``[rows, starts] + their variables + plates``; a dimension that they
lack has size 1. A :class:`Plan` is the work, found once: variables that do not meet are summed out together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import broadcast_shapes
from .order import DiscreteVariable, Order, Scope, SumStep, result_of


class Table(NamedTuple):
    """What a variable is summed out of: log p(variable | the others of ``names``), up to a constant, given the data;
    ``[starts] + names + plates``.
    """

    variable: Hashable
    names: tuple[Hashable, ...]
    log_weights: Tensor


@dataclass(frozen=True, eq=False)
class _Slot:
    """The factors of one buffer that each step of a group takes, as many and of the same place in its table: the
    ``place``-th to be taken, ``count`` for each step, of the dimensions ``where`` of the table.
    """

    buffer: int
    place: int
    count: int
    where: tuple[int, ...]

    def read(self, buffers: Sequence[Sequence[Tensor]], ndim: int) -> Tensor:
        """The sum of the factors of each step, ``[steps, starts]``, then ``ndim`` variables, then plates."""
        taken = buffers[self.buffer][self.place]
        taken = taken.unflatten(0, (-1, self.count)).sum(1) if self.count > 1 else taken
        return _laid(taken, self.where, ndim)


class _Uses:
    """The rows of each buffer in the order in which they are taken: a row is taken once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rows: dict[int, list[list[int]]] = {}

    def add(self, buffer: int, rows: list[int]) -> int:
        """Note rows that are taken together; the number of those before."""
        known = self._rows.setdefault(buffer, [])
        known.append(rows)
        return len(known) - 1

    @cached_property
    def _orders(self) -> dict[int, tuple[Tensor | None, list[int]]]:
        found = {}
        for buffer, parts in self._rows.items():
            flat = [row for part in parts for row in part]
            order = None if flat == list(range(len(flat))) else torch.tensor(flat, device=self._device)
            found[buffer] = order, [len(part) for part in parts]
        return found

    def split(self, buffer: int, tensor: Tensor) -> Sequence[Tensor]:
        """A buffer in parts that are taken one after another; all at once, so that its gradient is made at once."""
        order, sizes = self._orders[buffer]
        ordered = tensor if order is None else tensor.index_select(0, order)
        return (ordered,) if len(sizes) == 1 else ordered.split(sizes)


class _Group:
    """Steps that are done at once."""

    def __init__(self, steps: Sequence[SumStep], uses: _Uses) -> None:
        first = steps[0]
        self.steps, self.variable, self.at = steps, first.variable, first.names.index(first.variable.name)
        self.ndim, self.gone, self.weight = len(first.names), first.gone, first.weight
        slots: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for i, ((buffer, _), own) in enumerate(zip(first.factors, first.scopes, strict=True)):
            slots.setdefault((buffer, tuple(map(first.names.index, own))), []).append(i)
        self.slots = []
        for (buffer, where), places in slots.items():
            rows = [step.factors[i][1] for step in steps for i in places]
            self.slots.append(_Slot(buffer, uses.add(buffer, rows), len(places), where))

    def run(self, buffers: Sequence[Sequence[Tensor]], sizes: Mapping[int, int]) -> tuple[Tensor, Tensor]:
        """The tables, ``[steps, starts] + names + plates``, and what is left of them."""
        parts = [slot.read(buffers, self.ndim) for slot in self.slots]
        joint = sum(parts[1:], parts[0])
        reduced = _LogSumExp.apply(joint, 2 + self.at)
        if self.gone or self.ndim == 1:
            reduced = _over(reduced, {**self.variable.plates, **sizes}) * self.weight
        return joint, reduced.sum(self.gone, keepdim=True) if self.gone and self.ndim > 1 else reduced


class _Round:
    """Groups of steps that do not meet, and the buffers that their results go to."""

    def __init__(self, groups: Sequence[Sequence[SumStep]], uses: _Uses) -> None:
        self.groups = [_Group(steps, uses) for steps in groups]
        found: dict[Hashable, list[int]] = {}
        for i, steps in enumerate(groups):
            if len(steps[0].names) > 1:
                found.setdefault(result_of(steps[0]), []).append(i)
        self._together = list(found.values())

    def buffers(self, results: Sequence[Tensor]) -> list[Tensor]:
        """The results of one shape together, in the order of the groups."""
        return [_joined([results[i] for i in places]) for places in self._together]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors one below the other, each repeated where it does not vary along a plate."""
    if len(tensors) == 1:
        return tensors[0]
    shape = broadcast_shapes(*(t.shape[1:] for t in tensors))
    return torch.cat([t.expand(len(t), *shape) for t in tensors])


#: Many small rounds are slow, and large tables are: seconds for a group of steps, and for a number of a table.
_GROUP_COST, _NUMBER_COST = 1e-4, 2e-8
#: Tables of more numbers, for one start, are kept small.
_MOST_WIDE = 2**24
#: Up to so many rounds the order that makes the smallest tables is taken.
_FEW_ROUNDS = 32


class _Work(NamedTuple):
    """What the steps of an order cost: see :class:`Plan`; ``groups`` is the number of groups of steps."""

    largest: int
    work: int
    numbers: int
    total: int
    groups: int

    @staticmethod
    def of(rounds: Sequence[Sequence[Sequence[SumStep]]]) -> _Work:
        groups = [steps for each in rounds for steps in each]
        sizes = [math.prod(steps[0].sizes) for steps in groups]
        work = [len(steps) * size for steps, size in zip(groups, sizes, strict=True)]
        numbers = [w * math.prod(steps[0].variable.plates.values()) for w, steps in zip(work, groups, strict=True)]
        return _Work(max(sizes, default=1), sum(work), max(numbers, default=1), sum(numbers), len(groups))

    @property
    def seconds(self) -> float:
        """About how long they take."""
        return _GROUP_COST * self.groups + _NUMBER_COST * self.total


class Plan:
    """The order in which variables are eliminated.

    Args:
        buffers: the factors: by buffer, whose rows are factors of one shape, the scope of each.
        variables: all that factors have.
        device: where the factors are.
        most: limits for ``largest`` and ``work``, which an order with fewer rounds and larger tables keeps.

    Attributes:
        largest: the number of elements of the largest table, without starts and plates.
        work: the number of elements of the tables of all steps, without starts and plates.
        numbers: the number of elements of the tables that are made at once, with their plates, without starts.
        total: the number of elements of all tables with their plates, without starts.

    Raises:
        NotNestedError: if variables meet in a factor whose plates cross.
        ModelError: if variables of the same plates that meet have different scales.
    """

    def __init__(
        self,
        buffers: Sequence[Sequence[Scope]],
        variables: Sequence[DiscreteVariable],
        device: torch.device,
        most: tuple[float, float] = (math.inf, math.inf),
    ) -> None:
        known = {v.name: v for v in variables}
        rounds = Order(buffers, known, is_wide=False).rounds
        work = _Work.of(rounds)
        if len(rounds) > _FEW_ROUNDS:
            wide = Order(buffers, known, is_wide=True).rounds
            more = _Work.of(wide)
            fits = more.largest <= most[0] and more.work <= most[1] and more.total <= _MOST_WIDE
            if fits and more.seconds < work.seconds:
                rounds, work = wide, more
        self.largest, self.work, self.numbers, self.total, _ = work
        self._uses = _Uses(device)
        self.rounds = [_Round(groups, self._uses) for groups in rounds]

    def run(
        self,
        buffers: Sequence[Tensor],
        sizes: Mapping[int, int] = MappingProxyType({}),
        tables: list[Table] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """log Z for each start, float64, and the sum of the absolute values of what was added up to it.

        Args:
            buffers: the factors ``[rows, starts] + variables + plates``, each weighted by its scale relative to that
                of its innermost variable.
            sizes: those of the plates of which the factors are a part only.
            tables: a list that the table of each step is added to, in the order of elimination.
        """
        held = [self._uses.split(i, tensor) for i, tensor in enumerate(buffers)]
        totals: list[Tensor] = []
        for each in self.rounds:
            results = []
            for group in each.groups:
                joint, reduced = group.run(held, sizes)
                if tables is not None:
                    own = zip(group.steps, joint.unbind(0), strict=True)
                    tables += [Table(step.variable.name, step.names, table) for step, table in own]
                if group.ndim == 1:
                    totals.append(reduced.transpose(0, 1).flatten(1))
                results.append(reduced)
            held += [self._uses.split(len(held) + i, tensor) for i, tensor in enumerate(each.buffers(results))]
        parts = [t.sum(1, dtype=torch.float64) for t in totals]
        magnitudes = [t.detach().abs().sum(1, dtype=torch.float64) for t in totals]
        total, magnitude = (torch.stack(torch.broadcast_tensors(*each)).sum(0) for each in (parts, magnitudes))
        return total, magnitude


def _laid(tensor: Tensor, where: tuple[int, ...], ndim: int) -> Tensor:
    """Factors ``[steps, starts] + variables + plates`` with ``ndim`` variables, of which theirs are at these places."""
    if where == tuple(range(ndim)):
        return tensor
    order = sorted(range(len(where)), key=where.__getitem__)
    end = 2 + len(where)
    ordered = tensor.permute(0, 1, *(2 + i for i in order), *range(end, tensor.ndim))
    sizes = [1] * ndim
    for i, place in enumerate(where):
        sizes[place] = tensor.shape[2 + i]
    return ordered.reshape(*tensor.shape[:2], *sizes, *tensor.shape[end:])


class _LogSumExp(torch.autograd.Function):
    """log Σ exp over a dimension; −∞, with gradient zero, where every term is −∞."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int) -> Tensor:
        result = tensor.logsumexp(dim)
        ctx.save_for_backward(tensor, result)
        ctx.dim = dim
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        tensor, result = ctx.saved_tensors
        (gradient,) = gradients
        finite = torch.where(result.isfinite(), result, torch.zeros_like(result)).unsqueeze(ctx.dim)
        if torch.is_grad_enabled():  # which has a gradient of its own
            return (tensor - finite).exp() * gradient.unsqueeze(ctx.dim), None
        return (tensor - finite).exp_().mul_(gradient.unsqueeze(ctx.dim)), None


def _over(tensor: Tensor, plates: Mapping[int, int]) -> Tensor:
    """Repeat a result that does not vary along a plate, for it is multiplied over the plate."""
    shape = list(tensor.shape)
    for dim, size in plates.items():
        shape[dim] = size
    return tensor.expand(shape)


__all__ = ["Plan", "Table"]
