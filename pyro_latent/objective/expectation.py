"""Expectations of terms: products of moments, one for each block.

A term is a product of functions of latents. Its expectation under q groups them by block, and reads each block's joint
moment off its mean parameters; so it is affine in the mean parameters of every block, which is what conditional
conjugacy means. A product that is not among a family's moments has no closed form here, and raises.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ..errors import NotConjugateError
from ..expressions.axes import (
    START,
    Axis,
    Gather,
    Label,
    Labels,
    is_summed,
    read,
    same_axes,
    same_axis,
    spread,
    unique_labels,
)
from ..expressions.constants import Constant
from ..expressions.terms import Choice, Factor, LogOfSum, Term
from ..families.base import Monomial
from ..families.joint_normal import Gaussian
from ..families.joint_normal_gamma import GaussianGamma
from ..families.multivariate_normal import MultivariateNormal
from ..families.normal import Normal
from ..families.quadrature import Quadrature
from .blocks import Block, BlockKey, Means
from .elements import elements_read, family_of_elements
from .scalars import quadrature_moment


@dataclass(frozen=True, eq=False)
class BlockMoment:
    """A statistic of a block, read through axes over its batch and event dimensions."""

    block: Block
    statistic: str
    axes: tuple[Axis, ...]

    @cached_property
    def labels(self) -> Labels:
        """The labels that the moment runs along, after that of the starts."""
        return (START, *unique_labels(self.axes))

    @cached_property
    def is_whole(self) -> bool:
        """Whether every dimension has a label of its own, so that there is nothing to read."""
        return len(self.labels) == 1 + len(self.axes) and all(isinstance(a, int) for a in self.axes)

    def read(self, means: Means) -> Tensor:
        """The moment at these mean parameters, with a dimension for each of its labels."""
        tensor = means[self.block.key][self.statistic]
        return tensor if self.is_whole else read(tensor, self.axes, lead=1)[0]

    def unread(self, gradient: Tensor, labels: Labels, means: Means) -> Tensor:
        """The gradient in the statistic, given that in what is read, which runs along some of the labels, in order."""
        if labels != self.labels:
            gradient = spread(gradient, labels, {x: i for i, x in enumerate(self.labels)})
        elif self.is_whole:
            return gradient
        whole = means[self.block.key][self.statistic]
        if self.is_whole:
            return gradient.expand_as(whole)
        with torch.enable_grad():
            leaf = whole.detach().requires_grad_()
            found = read(leaf, self.axes, lead=1)[0]
        return torch.autograd.grad(found, leaf, gradient.expand_as(found))[0]


@dataclass(frozen=True, eq=False)
class ExpectedTerm:
    """``coefficient`` × constants × moments, summed over its summed labels, at the values of its choices."""

    coefficient: float
    constants: tuple[Constant, ...]
    moments: tuple[BlockMoment, ...]
    choices: tuple[Choice, ...] = ()

    @property
    def averaged(self) -> ExpectedTerm:
        """The term, averaged over the values of its choices where they are summed."""
        return replace(self, coefficient=self.coefficient / math.prod(c.size for c in self.choices))


class NoMomentError(NotConjugateError):
    """A product of functions of a block that is not one of its family's moments: ``product``, in words."""

    def __init__(self, message: str, key: BlockKey = "", product: str = "") -> None:
        super().__init__(message)
        self.key, self.product = key, product


@dataclass(frozen=True, eq=False)
class _FunctionReading:
    """One function of one component: its place in the block, and its axes split into batch and event."""

    component: int
    function: str
    batch: tuple[Axis, ...]
    event: tuple[Axis, ...]


def expect(term: Term, owners: Mapping[str, tuple[Block, int]], site: str) -> ExpectedTerm:
    """The expectation of one term of the log density of ``site``.

    Args:
        term: the term.
        owners: for each latent site its block and its place there.
        site: the site whose log density the term belongs to, for errors.

    Raises:
        NotConjugateError: if a block's product is not one of its moments, or couples elements within it.
    """
    groups: dict[int, list[Factor]] = {}
    for factor in term.factors:
        if isinstance(factor, LogOfSum):
            raise NotConjugateError(
                f"Expected a sum of rates alone in the density of site {site!r}; got one that depends on discrete "
                "latents, or is multiplied by latents. Write a site of counts for each of the rates."
            )
        groups.setdefault(id(owners[factor.variable.root.site][0]), []).append(factor)
    moments = []
    for factors in groups.values():
        block = owners[factors[0].variable.root.site][0]
        if block.is_point:
            moments += [_point_moment(f, owners) for f in factors]
            continue
        if block.is_discrete:
            moments += [BlockMoment(block, "x", f.axes) for f in factors]
            continue
        if block.is_scalar:
            assert isinstance(block.family, Quadrature)
            found = quadrature_moment(block.family, factors)
            if found is None:
                raise _coupled(block, site)
            moments.append(BlockMoment(block, *found))
            continue
        if block.joint_normal:
            moments.append(_joint_moment(block.joint_normal, block, factors, owners, site))
            continue
        outside = {label for c in term.constants for label in c.labels}
        outside.update([label for f in term.factors if f not in factors for label in f.labels])
        moments.append(_moment(factors, owners, outside, site))
    return ExpectedTerm(term.coefficient, term.constants, tuple(moments), term.choices)


def expect_together(
    terms: Sequence[Term], owners: Mapping[str, tuple[Block, int]], site: str, label: Label
) -> ExpectedTerm:
    """The expectation of the first of some terms that are alike, with the moments of joint normal blocks, of which each
    reads elements of its own, along a label.

    Raises:
        NotConjugateError: as :func:`expect` does of the first, in the density of ``site``.
    """
    found = expect(terms[0], owners, site)
    return found if len(terms) == 1 else replace(found, moments=tuple(_along(found.moments, terms, owners, label)))


def _along(
    moments: Sequence[BlockMoment], terms: Sequence[Term], owners: Mapping[str, tuple[Block, int]], label: Label
) -> Iterator[BlockMoment]:
    for moment in moments:
        family = moment.block.joint_normal
        if family and moment.axes:
            rows = [[f for f in term.factors if family_of_elements(f, owners) is family] for term in terms]
            yield replace(moment, axes=(elements_read(family, rows, owners, label)[1],))
        else:
            yield moment


def _joint_moment(
    family: Gaussian, block: Block, factors: list[Factor], owners: Mapping[str, tuple[Block, int]], site: str
) -> BlockMoment:
    """The moment of one or two elements of a joint normal block, whichever they are; times its precision, where it has
    one, or of the precision alone.
    """
    is_plain = all(f.variable.scalar is None for f in factors)
    if not isinstance(family, GaussianGamma):
        found = _pair_moment(family, block, factors, owners) if is_plain else None
    else:
        normal = [f for f in factors if family_of_elements(f, owners) is family]
        own = [(f.function, f.power) for f in factors if f not in normal]
        found = None
        if is_plain and own == [("x", 1)]:
            found = _pair_moment(family, block, normal, owners) if normal else BlockMoment(block, "precision", ())
        elif is_plain and own == [("log", 1)] and not normal:
            found = BlockMoment(block, "log_precision", ())
    if found is None:
        raise _no_moment(block, factors, site)
    return found


def _pair_moment(
    family: Gaussian, block: Block, factors: list[Factor], owners: Mapping[str, tuple[Block, int]]
) -> BlockMoment | None:
    """The moment of one or two elements; None for other functions."""
    if any([f.function != "x" or f.power not in (1, 2) for f in factors]):
        return None
    if sum(f.power for f in factors) > 2:
        return None
    statistic, axis = elements_read(family, [factors], owners, START)
    return BlockMoment(block, statistic, (Gather(axis.index[0], axis.labels[1:]),))


def _point_moment(factor: Factor, owners: Mapping[str, tuple[Block, int]]) -> BlockMoment:
    """Any function of a point is known: it needs no joint moment."""
    return BlockMoment(owners[factor.variable.site][0], f"{factor.function}^{factor.power:g}", factor.axes)


def _moment(
    factors: list[Factor], owners: Mapping[str, tuple[Block, int]], outside: set[Label], site: str
) -> BlockMoment:
    block = owners[factors[0].variable.root.site][0]
    readings: list[_FunctionReading] = []
    for factor in factors:
        if factor.variable.scalar is not None:
            raise _no_moment(block, factors, site)
        if not float(factor.power).is_integer() or (factor.power < 0 and factor.function != "x"):
            raise _no_moment(block, factors, site)
        component = owners[factor.variable.site][1]
        readings += [_reading(block, component, factor)] * abs(int(factor.power))
    if not all([same_axes(readings[0].batch, r.batch) for r in readings[1:]]):
        raise _coupled(block, site)
    readings.sort(key=lambda r: (r.component, r.function))
    monomial: Monomial = tuple([(r.component, r.function) for r in readings])
    rule = block.family.moments.get(monomial)
    if rule is None:
        raise _no_moment(block, factors, site)
    for order in _orders(readings):
        event = _match(rule.pattern, order, outside)
        if event is not None:
            return BlockMoment(block, rule.statistic, readings[0].batch + event)
    raise _no_moment(block, factors, site)


def _reading(block: Block, component: int, factor: Factor) -> _FunctionReading:
    """Split the axes of a factor; a function such as ``log_det`` has lost the event axes, a flattened event has one."""
    shape = block.event_shapes[component]
    split = len(block.batch_shape)
    batch, event = factor.axes[:split], factor.axes[split:]
    value_event = block.sites[component].shape[split:]
    if len(event) > len(shape) and value_event.numel() == shape.numel():
        flat = torch.arange(shape.numel(), device=block.device).reshape(value_event)
        index, labels = read(flat, event)
        event = (Gather(index, labels),)
    elif len(event) == len(shape):
        event = tuple(axis if n != 1 else None for axis, n in zip(event, shape, strict=True))
    function = "reciprocal" if factor.power < 0 and factor.function == "x" else factor.function
    return _FunctionReading(component, function, batch, event)


def _orders(readings: list[_FunctionReading]) -> list[tuple[_FunctionReading, ...]]:
    """The orders that a pattern may be tried in: equal functions swapped, and (symmetric) matrices transposed."""
    if len(readings) == 1:
        return [(r,) for r in _transposes(readings[0])]
    choices: list[list[tuple[_FunctionReading, ...]]] = []
    for _, group in itertools.groupby(readings, key=lambda r: (r.component, r.function)):
        choices.append(list(itertools.permutations(group)))
    orders: list[tuple[_FunctionReading, ...]] = []
    for parts in itertools.product(*choices):
        order = tuple(r for part in parts for r in part)
        orders += list(itertools.product(*(_transposes(r) for r in order)))
    return orders


def _transposes(reading: _FunctionReading) -> tuple[_FunctionReading, ...]:
    if len(reading.event) != 2:
        return (reading,)
    return reading, replace(reading, event=reading.event[::-1])


def _match(pattern: str, order: tuple[_FunctionReading, ...], outside: set[Label]) -> tuple[Axis, ...] | None:
    """The axes of the statistic, if the readings fit the pattern."""
    left, right, uses = _letters(pattern)
    found: dict[str, Axis] = {}
    for letters, reading in zip(left, order, strict=True):
        if len(letters) != len(reading.event):
            return None
        for letter, axis in zip(letters, reading.event, strict=True):
            if letter in found and not same_axis(found[letter], axis):
                return None
            found[letter] = axis
    for letter, axis in found.items():
        contracted = letter not in right
        if contracted and not _summed_here(axis, uses[letter], found, outside):
            return None
    return tuple([found[letter] for letter in right])


@lru_cache
def _letters(pattern: str) -> tuple[list[str], str, Mapping[str, int]]:
    """The letters of each reading and of the statistic, and how often each is read."""
    left, right = pattern.split("->")
    return left.split(","), right, Counter(left.replace(",", ""))


def _summed_here(axis: Axis, uses: int, found: Mapping[str, Axis], outside: set[Label]) -> bool:
    """Whether the axis is summed over in the term, and used nowhere else in it."""
    if axis is None:
        return True
    shared = sum(1 for other in found.values() if other == axis)
    return isinstance(axis, int) and is_summed(axis) and axis not in outside and shared == 1 and uses > 1


def _written(factors: list[Factor]) -> str:
    parts = []
    for f in factors:
        own = f.variable.site.split()[0] if f.variable.scalar is not None else f.variable.site
        name = own if f.function == "x" else f"{f.function}({own})"
        parts.append(name if f.power == 1 else f"{name}^{f.power:g}")
    return "E[" + " · ".join(parts) + "]"


def _hint(block: Block, factors: list[Factor]) -> str:
    family = block.family
    if family.reciprocal_hint is not None and any(f.power < 0 for f in factors):
        return family.reciprocal_hint
    return family.hint


def _no_moment(block: Block, factors: list[Factor], site: str) -> NotConjugateError:
    parents = ", ".join(repr(name) for name in dict.fromkeys(f.variable.root.site for f in factors))
    return NoMomentError(
        f"Site {site!r} is not conditionally conjugate in {parents}: its log density needs {_written(factors)}, which "
        f"is not linear in the statistics ({block.family.written_statistics}) of the {block.family.name} block. "
        f"What would work: {_hint(block, factors)}",
        block.key,
        _written(factors),
    )


class CoupledElementsError(NotConjugateError):
    """A density multiplies different elements of a block."""

    block: Block


def _coupled(block: Block, site: str) -> CoupledElementsError:
    advice = f"Declare {block.label!r} with .to_event(1) and without the plate: it becomes one multivariate block."
    if isinstance(block.family, Normal | MultivariateNormal):
        advice = f"Write blocks=[({block.key!r},)], one factor of all of them. Or d{advice[1:]}"
    elif block.family.event_class is None:
        advice = (
            f"Give {block.label!r} a Normal prior with .to_event(1), whose elements become one multivariate block; or "
            "write each of its elements as a site of its own, in a loop."
        )
    error = CoupledElementsError(
        f"Expected the elements of {block.label!r} to be independent within its plates; got site {site!r}, whose log "
        "density couples them (it multiplies different elements, as X @ w does). Updating them all at once would not "
        f"be coordinate ascent. {advice}"
    )
    error.block = block
    return error
