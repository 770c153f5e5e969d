r"""What a part of the data says about the globals: its expected sufficient statistics.

Given the local blocks and the discrete posterior of a part of the data, its share of the ELBO is a sum of constants
times moments of the globals, and a number. The constants have the shapes of the globals, whatever the size of the part,
and add up over parts: so data seen in pieces is the same mathematics as data seen at once (Hughes and Sudderth 2013,
"Memoized online variational inference"), and the average of what minibatches say is what all of the data says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..expressions.axes import START, Gather, Labeled, Labels, contract, spread
from ..families.quadrature import Quadrature
from ..signatures import PlainState
from .blocks import BlockKey, Means, State
from .discrete import DiscretePosterior
from .expectation import BlockMoment
from .program import Program
from .summands import Summand, canonical, labels_of

#: A moment without its block: the block's key, the statistic, and its axes.
MomentKey = tuple[BlockKey, str, tuple[int | None, ...]]
Key = tuple[tuple[MomentKey, ...], Labels]

#: A summary of more numbers than this is refused.
_LARGEST = 10**8


@dataclass(frozen=True, eq=False)
class DataSummary:
    """A sum of constants times moments of the globals, and a number, for each start; float64.

    ``constants`` has, by the moments that it multiplies and the labels of its dimensions, a tensor
    ``[starts, labels...]``; ``number`` is the rest of the ELBO of the data, and ``magnitude`` the size of what it sums.
    """

    constants: Mapping[Key, Tensor]
    number: Tensor
    magnitude: Tensor

    def plus(self, other: DataSummary, weight: float = 1.0) -> DataSummary:
        """``self + weight · other``."""
        constants = dict(self.constants)
        for key, constant in other.constants.items():
            known = constants.get(key)
            constants[key] = weight * constant if known is None else _added(known, weight * constant)
        return DataSummary(
            constants, self.number + weight * other.number, self.magnitude + abs(weight) * other.magnitude
        )

    def minus(self, other: DataSummary) -> DataSummary:
        """``self − other``, where other is one of the parts that self is the sum of."""
        found = self.plus(other, -1.0)
        return DataSummary(found.constants, found.number, self.magnitude - other.magnitude)

    def of(self, start: int) -> DataSummary:
        """Keep one start alone."""
        constants = {key: constant[start : start + 1] for key, constant in self.constants.items()}
        return DataSummary(constants, self.number[start : start + 1], self.magnitude[start : start + 1])

    def times(self, weight: float) -> DataSummary:
        """``weight · self``."""
        constants = {key: weight * constant for key, constant in self.constants.items()}
        return DataSummary(constants, weight * self.number, abs(weight) * self.magnitude)

    def summands(self, program: Program, dtype: torch.dtype) -> list[Summand]:
        """The sums over the blocks of a program.

        Raises:
            ModelError: if a scalar has functions beside its powers and its logarithm, which the program does not know.
        """
        found = []
        for (readings, labels), constant in self.constants.items():
            moments = tuple(BlockMoment(program.blocks[k], s, axes) for k, s, axes in readings)
            for moment in moments:
                _check_known(moment)
                joint = moment.block.joint_normal
                if joint and moment.statistic == "xx" and moment.axes[0] in labels:
                    constant = _filled_up(constant, labels.index(moment.axes[0]), joint.num_pairs)
            found.append(Summand(constant.to(dtype), labels, moments))
        return found

    def to_state(self) -> PlainState:
        """The summary in plain types and tensors."""
        return {"keys": list(self.constants), "constants": list(self.constants.values())} | {
            "number": self.number,
            "magnitude": self.magnitude,
        }

    @staticmethod
    def from_state(state: Mapping[str, Any], device: torch.device) -> DataSummary:
        """A summary from its plain form."""
        constants = {k: c.to(device) for k, c in zip(state["keys"], state["constants"], strict=True)}
        return DataSummary(constants, state["number"].to(device), state["magnitude"].to(device))


def _check_known(moment: BlockMoment) -> None:
    """A function of a scalar is one of the program's."""
    family = moment.block.family
    if isinstance(family, Quadrature) and moment.statistic not in family.functions:
        raise ModelError(
            f"Expected functions of the scalar {moment.block.label!r} that all pieces of the data share, which its "
            "powers and its logarithm are; got one of a piece's own, as its exponential, or the log of a probability "
            "that depends on a covariate. Write step_size= in place of memoised=True, or fit all of the data at once."
        )


def _filled_up(constant: Tensor, dim: int, size: int) -> Tensor:
    """Zeros at the pairs of a joint normal that other data have brought since."""
    missing = size - constant.shape[dim]
    shape = [missing if i == dim else n for i, n in enumerate(constant.shape)]
    return torch.cat([constant, constant.new_zeros(shape)], dim) if missing > 0 else constant


def _added(a: Tensor, b: Tensor) -> Tensor:
    for dim in range(a.ndim):
        a, b = _filled_up(a, dim, b.shape[dim]), _filled_up(b, dim, a.shape[dim])
    return a + b


def summarize(program: Program, state: State, means: Means, held: DiscretePosterior | None) -> DataSummary:
    """The summary of the data in the program's subsampled plates.

    Args:
        program, state, means: the blocks; those in subsampled plates are summed into the summary.
        held: the posterior of the discrete sites, held at these mean parameters.

    Raises:
        ModelError: if a discrete site is outside of the subsampled plates, for then the parts are not independent.
    """
    local = {key for key in program.blocks if program.in_subsample(key)}
    outside = [s.name for s in program.discrete if not any(p.is_subsample for p in s.plates)]
    if outside and program.recording.is_subsample:
        raise ModelError(
            f"Expected discrete sites inside the subsampled plate; got {outside} outside, which tie its parts "
            "together. Fit all of the data at once, or move them into the plate."
        )
    exact_state, exact = program.exactly(state)
    number, magnitude = program.terms(exact_state, exact, local)
    discrete = program.elimination.held_summands(held)
    if held is not None:
        values = [s.value(means, torch.float64) for s in discrete]
        number = number + held.log_normalizer - sum(values)  # what the sums leave out: constants, and the entropy
        magnitude = magnitude + held.magnitude + sum(v.abs() for v in values)
    constants: dict[Key, Tensor] = {}
    for summand in (*(s for whole in program.part_summands for s in whole.linear(exact)), *discrete):
        if not any(m.block.key not in local for m in summand.moments):
            value = summand.value(exact)
            number, magnitude = number + value, magnitude + value.abs()
            continue
        found = _collapsed(summand, exact, local, len(number))
        readings: Any = tuple((m.block.key, m.statistic, m.axes) for m in found.moments)
        key = (readings, found.labels)
        constants[key] = constants[key] + found.constant if key in constants else found.constant
    return DataSummary(constants, number, magnitude)


def _collapsed(summand: Summand, means: Means, local: Collection[BlockKey], starts: int) -> Summand:
    """A sum over moments of the globals only, each read whole: what runs along the data is summed out."""
    outer = tuple(m for m in summand.moments if m.block.key not in local)
    operands = [(summand.constant.double(), summand.labels)]
    operands += [(m.read(means), m.labels) for m in summand.moments if m.block.key in local]
    if not any(START in labels for _, labels in operands):
        operands.append((torch.ones(starts).to(operands[0][0]), (START,)))
    gathers = {(id(a.index), a.labels): a for m in outer for a in m.axes if isinstance(a, Gather)}
    present = {x for _, labels in operands for x in labels}
    for gather in gathers.values():
        for label, size in zip(gather.labels, gather.index.shape, strict=True):
            if label not in present:
                operands.append((torch.ones(size).to(operands[0][0]), (label,)))
                present.add(label)
    plain = {a for m in outer for a in m.axes if isinstance(a, int)}
    kept = tuple(x for x in labels_of(outer) if x in plain and x in present)
    rest = tuple(x for g in gathers.values() for x in g.labels if x not in kept)
    out = (START, *kept, *dict.fromkeys(rest))
    tensor = contract(operands, out).double()
    if not gathers:
        return canonical(Summand(tensor, out, outer))
    return canonical(_scattered(tensor, out, len(kept), outer, gathers, means))


def _scattered(
    tensor: Tensor,
    labels: Labels,
    kept: int,
    moments: tuple[BlockMoment, ...],
    gathers: Mapping[tuple[int, Labels], Gather],
    means: Means,
) -> Summand:
    """Add elements up where gathers read them, so that the moments are read whole."""
    fresh = max((*labels, *labels_of(moments))) + 1
    names = {key: fresh + i for i, key in enumerate(gathers)}
    sizes = _gathered_sizes(moments, means)
    shape = [*tensor.shape[1 : 1 + kept], *(sizes[key] for key in gathers)]
    count = torch.Size(shape).numel()
    if count > max(_LARGEST, 4 * tensor.numel()):
        raise ModelError(
            f"Expected data whose summary is small; got one of {count} numbers, for the moments of "
            f"{[m.block.label for m in moments]} that each observation reads together. Fit all of the data at once."
        )
    place = torch.zeros((), dtype=torch.long, device=tensor.device)
    inner = labels[1:]
    axes: list[Labeled] = [
        (torch.arange(n, device=tensor.device), (label,)) for n, label in zip(shape, inner[:kept], strict=False)
    ]
    axes += [(g.index, g.labels) for g in gathers.values()]
    for size, (index, own) in zip(shape, axes, strict=True):
        place = place * size + spread(index, own, {label: i for i, label in enumerate(inner)})
    place = place.expand(tensor.shape[1:]).reshape(-1)
    total = tensor.new_zeros(tensor.shape[0], count).index_add_(1, place, tensor.reshape(len(tensor), -1))
    renamed = tuple(
        replace(m, axes=tuple(names[id(a.index), a.labels] if isinstance(a, Gather) else a for a in m.axes))
        for m in moments
    )
    return Summand(total.reshape(-1, *shape), (START, *inner[:kept], *names.values()), renamed)


def _gathered_sizes(moments: tuple[BlockMoment, ...], means: Means) -> dict[tuple[int, Labels], int]:
    """The size of the dimension that each gather reads."""
    pairs = [(a, n) for m in moments for a, n in zip(m.axes, means[m.block.key][m.statistic].shape[1:], strict=True)]
    return {(id(a.index), a.labels): n for a, n in pairs if isinstance(a, Gather)}


__all__ = ["DataSummary", "summarize"]
