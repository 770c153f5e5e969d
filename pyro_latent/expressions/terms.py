"""Sums of products of latents, seen through index maps.

A :class:`Term` is a number times constants times latents. Every operand carries an :data:`Axis` for each of its
dimensions: a *label*, which says which dimension of the result it runs along, or a :class:`Gather`, which reads it at
given places. Positions are the result's dimensions, counted from the right as in broadcasting; along summed labels the
product is added up. A label that an operand lacks is one that it does not vary along, so broadcasting, expansion and
``unsqueeze`` cost nothing, a matrix product is a product with a shared summed label, and ``mu[index]`` is ``mu`` with
a gathered axis.

A discrete latent enters a term as a :class:`Choice`: a label that runs along its values, which operands have as they
have others. The term's value at a place is read at the value that the latent takes in the element that the choice's own
axes name, so that ``mu[z]`` is ``mu`` with the label of ``z`` in place of its axis, and ``z[group]`` is ``z`` with a
gathered axis.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import LatentValueError
from ..settings import settings
from .axes import (
    Axis,
    Gather,
    Label,
    Labeled,
    Labels,
    axis_key,
    contract,
    fresh_choice,
    fresh_label,
    in_last,
    is_free,
    is_summed,
    position_axes,
    same_axes,
    substitute,
    unique_labels,
    widened,
)
from .constants import Constant
from .variables import Variable

#: A table has at most so many combinations of values.
_MOST_COMBINATIONS = 2**20


@dataclass(frozen=True, eq=False)
class Choice:
    """The value of a discrete latent in the elements that ``axes`` name, one axis for each of its batch dimensions.

    ``label`` runs along the ``size`` values. Choices of the same site in the same elements are one object, with one
    label.
    """

    site: str
    axes: tuple[Axis, ...]
    size: int
    label: Label

    @staticmethod
    def of(site: str, axes: tuple[Axis, ...], size: int) -> Choice:
        """The choice of these elements."""
        key = (site, size, tuple(axis_key(axis) for axis in axes))
        found = _choices.get(key)
        if found is None:
            found = _choices[key] = Choice(site, axes, size, fresh_choice())
        return found

    @cached_property
    def labels(self) -> Labels:
        """The labels that the elements run along."""
        return unique_labels(self.axes)

    def substitute(self, mapping: Mapping[Label, Axis]) -> Choice:
        """Replace the labels of the axes by other axes."""
        if not any(label in mapping for label in self.labels):
            return self
        return Choice.of(self.site, tuple(substitute(a, mapping) for a in self.axes), self.size)


_choices: weakref.WeakValueDictionary[Any, Choice] = weakref.WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class Factor:
    """A function of a latent, to a power: ``function`` is "x", "log", "log1m", "log_det", "inverse", …, and the power
    is taken elementwise.
    """

    variable: Variable
    axes: tuple[Axis, ...]
    function: str = "x"
    power: float = 1.0
    labels: Labels = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", unique_labels(self.axes))

    def substitute(self, mapping: Mapping[Label, Axis]) -> Factor:
        """Replace labels of the axes by other axes."""
        if not any(label in mapping for label in self.labels):
            return self
        return self.at(tuple(substitute(a, mapping) for a in self.axes))

    def at(self, axes: tuple[Axis, ...]) -> Factor:
        """The factor read along other axes."""
        return Factor(self.variable, axes, self.function, self.power)

    @property
    def sites(self) -> frozenset[str]:
        """The latents that the factor is a function of."""
        return frozenset((self.variable.root.site,))

    @property
    def is_nonnegative(self) -> bool:
        """Whether the factor is nowhere negative, or is not a number where its base is."""
        return self.power % 2 != 1 or (self.function == "x" and self.variable.nonnegative)

    def raised(self, exponent: float) -> Factor | None:
        """The factor to a power; None where that would drop the absolute value in ``(x**2) ** 0.5``, or the zero in
        ``(1 / x.log()) ** 0.5`` at 0.
        """
        power = self.power * exponent
        power = round(power) if abs(power - round(power)) < 1e-12 else power  # x ** (1 / 3) ** 3
        even = self.power % 2 == 0 and not (self.function == "x" and self.variable.nonnegative)
        drops_sign = even and power % 2 != 0
        drops_zero = self.function == "log" and self.power < 0
        return None if exponent % 1 != 0 and (drops_sign or drops_zero) else replace(self, power=power)

    @property
    def as_log(self) -> Factor:
        """The logarithm of what the factor is a power of."""
        return replace(self, function="log", power=1.0)

    def reads_whole(self, shape: Sequence[int]) -> bool:
        """Whether the last axes read all of the variable's last dimensions, in order, along the result's last ones.

        Args:
            shape: the sizes of the result's last dimensions.
        """
        event = len(shape)
        if self.variable.shape[len(self.variable.shape) - event :] != torch.Size(shape) or len(self.axes) < event:
            return False
        split = len(self.axes) - event
        plain = position_axes(shape)
        return self.axes[split:] == plain and not any(in_last(x, event) for x in unique_labels(self.axes[:split]))

    def is_whole_matrix(self, dim: int) -> bool:
        """Whether the factor is all of a matrix of the latent, or its transpose, along the result's last two
        dimensions.
        """
        turned = replace(self, axes=(*self.axes[:-2], *self.axes[:-3:-1]))
        return self.reads_whole((dim, dim)) or turned.reads_whole((dim, dim))


@dataclass(frozen=True, eq=False)
class LogOfSum(Factor):
    """The logarithm of a sum of nonnegative products of latents, ``summands``, of the variable's shape."""

    summands: tuple[Term, ...] = ()

    def at(self, axes: tuple[Axis, ...]) -> LogOfSum:
        return LogOfSum(self.variable, axes, self.function, self.power, self.summands)

    @property
    def sites(self) -> frozenset[str]:
        return frozenset().union(*(f.sites for t in self.summands for f in t.factors))

    def read(self) -> list[Term]:
        """The summands along the factor's axes."""
        mapping = {place - len(self.axes): axis for place, axis in enumerate(self.axes)}
        return [term.substitute({x: a for x, a in mapping.items() if x != a}) for term in self.summands]


@dataclass(frozen=True, eq=False)
class Term:
    """``coefficient`` × constants × factors, summed over its summed labels, at the values of its choices.

    A choice that no operand varies with is dropped.
    """

    coefficient: float = 1.0
    constants: tuple[Constant, ...] = ()
    factors: tuple[Factor, ...] = ()
    choices: tuple[Choice, ...] = ()
    labels: frozenset[Label] = field(init=False)

    def __post_init__(self) -> None:
        operands: tuple[Constant | Factor, ...] = (*self.constants, *self.factors)
        found = {label for operand in operands for label in operand.labels}
        if self.choices:
            kept = {c.label: c for c in self.choices if c.label in found}
            object.__setattr__(self, "choices", tuple(kept.values()))
            found.update(label for c in kept.values() for label in c.labels)
        object.__setattr__(self, "labels", frozenset(found))

    @cached_property
    def summed(self) -> frozenset[Label]:
        return frozenset(label for label in self.labels if is_summed(label))

    @cached_property
    def sizes(self) -> dict[Label, int]:
        """The sizes of the labels, from what runs along them; a position that only choices run along has none."""
        sizes = {label: n for c in self.constants for label, n in zip(c.labels, c.tensor.shape, strict=True)}
        read = [(a, n) for f in self.factors for a, n in zip(f.axes, f.variable.shape, strict=False)]
        sizes |= {a: n for a, n in read if isinstance(a, int)}
        for axis in (*(a for a, _ in read), *(a for c in self.choices for a in c.axes)):
            if isinstance(axis, Gather):
                sizes |= dict(zip(axis.labels, axis.index.shape, strict=True))
        return sizes

    def substitute(self, mapping: Mapping[Label, Axis]) -> Term:
        """Replace labels by other axes; labels not named stay."""
        if self.labels.isdisjoint(mapping):
            return self
        choices = tuple(c.substitute(mapping) for c in self.choices)
        if choices:
            moved = {old.label: new.label for old, new in zip(self.choices, choices, strict=True) if new is not old}
            mapping = moved | dict(mapping)
        constants = tuple(c.substitute(mapping) for c in self.constants)
        return Term(self.coefficient, constants, tuple(f.substitute(mapping) for f in self.factors), choices)

    def at(self, choice: Choice, value: int, device: torch.device) -> Term:
        """The term where a choice takes the value of this number."""
        constants = tuple(_chosen(c, choice.label, value) for c in self.constants)
        index: dict[Label, Axis] = {choice.label: Gather(torch.tensor(value, device=device), ())}
        return Term(self.coefficient, constants, tuple(f.substitute(index) for f in self.factors), self.choices)

    def scaled(self, number: float) -> Term:
        return Term(self.coefficient * number, self.constants, self.factors, self.choices)

    def times(self, other: Term) -> Term:
        """The product; equal elementwise factors add their powers."""
        clash = {label for label in self.labels if is_summed(label) and label in other.labels}
        if clash:
            other = other.substitute({label: fresh_label() for label in clash})
        factors = list(self.factors)
        for new in other.factors:
            for i, old in enumerate(factors):
                if _same_reading(old, new):
                    factors[i] = replace(old, power=old.power + new.power)
                    break
            else:
                factors.append(new)
        kept = tuple(f for f in factors if f.power != 0)
        choices = self.choices + other.choices
        return Term(self.coefficient * other.coefficient, self.constants + other.constants, kept, choices)

    def raised(self, exponent: float, like: Tensor) -> Term | None:
        """A term without a sum to a power, of the dtype of ``like``; None where the power of the product is not the
        product of the powers.
        """
        factors = [f.raised(exponent) for f in self.factors]
        if any(f is None for f in factors) or (exponent % 1 != 0 and not self._has_sign):
            return None
        constants = tuple(Constant(widened(c.tensor, like) ** exponent, c.labels) for c in self.constants)
        coefficient = self.coefficient
        if coefficient != 1:
            coefficient = float(torch.tensor(coefficient, dtype=torch.float64) ** exponent)
        return Term(coefficient, constants, tuple(f for f in factors if f is not None and f.power != 0), self.choices)

    def log(self, like: Tensor) -> list[Term] | None:
        """The terms of the logarithm of a term without a sum, of the dtype of ``like``; None where it is not the sum
        of logarithms.
        """
        absolute = any(f.power % 2 == 0 and not f.variable.nonnegative for f in self.factors)
        if self.coefficient <= 0 or absolute or not self._has_sign or any(f.function != "x" for f in self.factors):
            return None
        terms = [Term(math.log(self.coefficient))] if self.coefficient != 1 else []
        terms += [
            Term(1.0, (Constant(widened(c.tensor, like).log(), c.labels),), (), self.choices) for c in self.constants
        ]
        terms += [Term(f.power, (), (replace(f, function="log", power=1.0),), self.choices) for f in self.factors]
        return terms or [Term(0.0)]

    @property
    def opened(self) -> list[Term]:
        """The term; of one with the logarithm of a sum, those of the logarithms that stand for it."""
        parts = [f for f in self.factors if isinstance(f, LogOfSum)]
        return [Term(1.0, (), (f.as_log,)) for s in parts for t in s.read() for f in t.factors] if parts else [self]

    @property
    def _has_sign(self) -> bool:
        """Whether at most one factor may be negative, and everything else is positive: then a negative product has
        one negative factor, and roots and logarithms of both are not a number.
        """
        unknown = sum(not f.is_nonnegative for f in self.factors)
        tensors = [c.tensor for c in self.constants]
        least = any(bool((t <= 0 if unknown else t < 0).any()) for t in tensors)
        return unknown <= 1 and self.coefficient > 0 and not least

    def same_factors(self, other: Term) -> bool:
        """Whether two terms have the same factors, none of them summed over, to the same powers."""
        left = list(other.factors)
        for factor in self.factors:
            match = next((f for f in left if f.power == factor.power and _same_reading(f, factor)), None)
            if match is None:
                return False
            left.remove(match)
        return not left

    def masked(self, mask: Constant, choices: tuple[Choice, ...] = ()) -> Term:
        """The term where the mask, with its choices, holds, and 0 elsewhere, also where constants are not finite."""
        constants = self.constants
        both = (*self.choices, *choices)
        if not math.isfinite(self.coefficient):
            number = torch.tensor(self.coefficient, dtype=mask.tensor.dtype, device=mask.tensor.device)
            whole = Term(1.0, (*constants, Constant(number, ())), self.factors, self.choices)
            return whole.masked(mask, choices)
        kept = tuple(c if c.is_finite else c.chosen(mask) for c in constants)
        return Term(self.coefficient, (*kept, mask), self.factors, both)

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.coefficient) and all(c.is_finite for c in self.constants)

    def dense(self, like: Tensor) -> Labeled:
        """The value of a term without factors: a tensor and the labels of its dimensions, in ascending order, so that
        those of choices come first.
        """
        labels = tuple(sorted({label for c in self.constants for label in c.labels if is_free(label)}))
        if not self.constants:
            dtype = like.dtype if like.is_floating_point() else torch.float64
            return torch.as_tensor(self.coefficient, dtype=dtype, device=like.device), ()
        numbers = math.prod(self.sizes[label] for label in labels)
        if 8 * numbers > settings.memory_limit and numbers > max(c.tensor.numel() for c in self.constants):
            check_combinations(self.choices, numbers)
        return contract([c.unrepeated() for c in self.constants], labels) * self.coefficient, labels


def check_combinations(choices: Sequence[Choice], numbers: int = 0) -> None:
    """A table of all combinations of some discrete latents, of so many numbers, is affordable.

    Raises:
        LatentValueError: if it is not.
    """
    count, size = math.prod(c.size for c in choices), 8 * numbers
    if count <= _MOST_COMBINATIONS and (size <= settings.memory_limit or not choices):
        return
    names = ", ".join(repr(s) for s in sorted({c.site for c in choices}))
    is_large = size > settings.memory_limit
    table = f" in a table of {size:,} bytes, over pyro_latent.settings.memory_limit" if is_large else ""
    raise LatentValueError(
        f"Expected an operation on few discrete latents at once; got one on {len(choices)} elements of {names}, which "
        f"have {count} combinations of values{table}. Sums of them, and sums of functions of one element each, need no "
        "joint table: write those, or give the elements a site of fewer values."
    )


def _chosen(constant: Constant, label: Label, value: int) -> Constant:
    if label not in constant.labels:
        return constant
    tensor = constant.tensor.select(constant.labels.index(label), value)
    return Constant(tensor, tuple(x for x in constant.labels if x != label))


def _same_reading(a: Factor, b: Factor) -> bool:
    return (
        a.variable.site == b.variable.site
        and a.function == b.function
        and not any(is_summed(label) for label in a.labels)
        and same_axes(a.axes, b.axes)
    )
