"""Functions of one scalar latent by operations that have no rule: their expectations are integrals.

The value of such a function is computed again from values of the latent, as it was recorded, at as many of them as
there are nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..values import broadcast_shapes
from .axes import (
    START,
    Axis,
    Label,
    Labels,
    contract,
    in_last,
    is_free,
    is_position,
    laid,
    position_axes,
    read,
    same_axes,
    shift,
    substitute,
    unique_labels,
)
from .evaluation import applied
from .numbering import fresh_number
from .symbolic import Symbolic
from .terms import Choice, Factor, Term, check_combinations
from .variables import ScalarFunction, Variable

#: Functions of a sum of constants times a root each that are known to have no kink.
_SMOOTH = ("exp", "log_prob of HalfCauchy")
#: By function, log f and log(1 − f) where f rounds to 0 or 1.
_OF_SIGMOID: Mapping[str, Callable[[Tensor], Tensor]] = {"log": logsigmoid, "log1m": lambda x: logsigmoid(-x)}
_LOGARITHMS: Mapping[str, Mapping[str, Callable[[Tensor], Tensor]]] = {
    "sigmoid": _OF_SIGMOID,
    "special_expit": _OF_SIGMOID,
    "special_ndtr": {"log": torch.special.log_ndtr, "log1m": lambda x: torch.special.log_ndtr(-x)},
}


def factor_values(factor: Factor, values: Tensor) -> Tensor:
    """The values of a factor over its variable's whole shape, at values of its root; both ``[L] + shape``."""
    found = applied(factor.function, values, factor.variable.scalar)
    return found if factor.power == 1 else found**factor.power


def is_smooth(factor: Factor) -> bool:
    """Whether a factor is known to have no kink and no pole: it is a power or a logarithm of its root, or of an
    exponential of multiples of it, or the prior is half-Cauchy.
    """
    scalar, power = factor.variable.scalar, factor.power
    if factor.function not in ("x", "log"):
        return False
    if scalar is not None:
        return scalar.is_smooth
    return factor.variable.nonnegative or (power > 0 and power == round(power))


def _is_smooth(name: str, arguments: Sequence[Symbolic]) -> bool:
    """Whether a function has no kink: it is one of a list, of sums of constants times one root each."""
    terms = [t for a in arguments for t in a.terms]
    plain = all(f.variable.scalar is None and f.function == "x" and f.power == 1 for t in terms for f in t.factors)
    return name in _SMOOTH and plain and all(len(t.factors) <= 1 for t in terms)


def root_axes(factor: Factor) -> tuple[Axis, ...]:
    """The axes that a factor reads the elements of its root along."""
    scalar = factor.variable.scalar
    if scalar is None or scalar.axes is None:
        return factor.axes
    own = len(factor.variable.shape)
    mapping = {i - own: axis for i, axis in enumerate(factor.axes)}
    return tuple(substitute(axis, mapping) for axis in scalar.axes)


def of_scalar(
    name: str,
    function: Callable[..., Tensor],
    arguments: Sequence[Symbolic],
    like: Tensor,
    events: Sequence[int] = (),
    batch_shape: Sequence[int] | None = None,
    nonnegative: bool = False,
    only_plain: bool = False,
) -> Term | None:
    """A function of expressions in one scalar latent, elementwise but for their last ``events`` dimensions, which it
    takes away, as a term; None where it is a function of something else.

    Args:
        name: what the function is called.
        function: it is given a tensor for each argument, with leading dimensions.
        arguments: the expressions; they may be constant.
        like: an empty tensor of the dtype of the result.
        events: the number of event dimensions of each argument; by default none.
        batch_shape: the shape of the result; by default that of the arguments' batches, broadcast.
        nonnegative: whether the result is nowhere negative.
        only_plain: give None, too, where it has other constants for some elements of the latent than for others.
    """
    events = events or [0] * len(arguments)
    batches = [a.shape[: a.ndim - e] for a, e in zip(arguments, events, strict=True)]
    shape = broadcast_shapes(*batches) if batch_shape is None else torch.Size(batch_shape)
    if any(a.opacity for a in arguments):
        return None
    polynomials = [a.polynomial() if a.pieces else a for a in arguments]  # type: ignore[attr-defined]
    beside = [
        {c.label: c.substitute(shift(c.labels, e)) for c in p.choices} for p, e in zip(polynomials, events, strict=True)
    ]
    found = _one_reading(polynomials, events, beside)
    if found is None:
        return None
    root, axes = found
    smooth = _is_smooth(name, polynomials)
    choices = tuple({c.label: c for own in beside for c in own.values()}.values())
    places_in = [{c.label: label for label, c in own.items()} for own in beside]
    orders = [tuple(own.get(c.label, c.label) for c in choices) for own in places_in]
    if _is_plain(polynomials, events, root, axes):
        moved = [p._with([_plain(t, root) for t in p.terms], root.shape) for p in polynomials]
        make = partial(_evaluator, arguments=moved, events=events, orders=[()] * len(moved), shape=root.shape)
        variable = _variable(name, root, make, function, None, root.shape, nonnegative, smooth)
        return Term(1.0, (), (Factor(variable, axes),), choices)
    if only_plain:
        return None
    varies = {x + e for p, e in zip(polynomials, events, strict=True) for x in _free_labels(p) if is_position(x)}
    sizes = tuple(n if i - len(shape) in varies else 1 for i, n in enumerate(shape))
    own = torch.Size((*(c.size for c in choices), *sizes))
    check_combinations(choices, own.numel())
    places: dict[Label, Axis] = {c.label: i - len(own) for i, c in enumerate(choices)}
    make = partial(_evaluator, arguments=polynomials, events=events, orders=orders, shape=own)
    own_reading = tuple(substitute(a, places) for a in axes)
    variable = _variable(name, root, make, function, own_reading, own, nonnegative, smooth)
    own_axes = (*(c.label for c in choices), *position_axes(sizes))
    return Term(1.0, (), (Factor(variable, own_axes),), choices)


def _variable(
    name: str,
    root: Variable,
    make: Callable[[Callable[..., Tensor]], Callable[[Tensor], Tensor]],
    function: Callable[..., Tensor],
    axes: tuple[Axis, ...] | None,
    shape: torch.Size,
    nonnegative: bool,
    smooth: bool,
) -> Variable:
    """The variable that a function of arguments is, of which ``make`` makes one of the root."""
    site = f"{name.replace(' ', '_')}({root.site}) {fresh_number()}"
    logarithms = {n: _Once(make(f)) for n, f in _LOGARITHMS.get(name, {}).items()}
    scalar = ScalarFunction(root, _Once(make(function)), axes, smooth, logarithms)
    return Variable(site, shape, nonnegative=nonnegative, is_scalar=True, scalar=scalar)


class _Once:
    """A function, which for the same tensor as the last time gives what it gave then: several factors are of it."""

    remembered: ClassVar = ("last",)

    def __init__(self, evaluate: Callable[[Tensor], Tensor]) -> None:
        self.evaluate = evaluate
        self.last: tuple[Tensor, int, Tensor] | None = None

    def __call__(self, values: Tensor) -> Tensor:
        known = self.last
        if known is None or known[0] is not values or known[1] != values._version:
            known = self.last = values, values._version, self.evaluate(values)
        return known[2]


def _one_reading(
    arguments: Sequence[Symbolic], events: Sequence[int], beside: Sequence[Mapping[Label, Choice]]
) -> tuple[Variable, tuple[Axis, ...]] | None:
    """The one scalar latent in some expressions, and the axes that its elements are read along in all of them;
    ``beside`` are, by label of a choice in each, that choice without the event dimensions.
    """
    found: tuple[Variable, tuple[Axis, ...]] | None = None
    for argument, event, choices in zip(arguments, events, beside, strict=True):
        if any(in_last(x, event) for c in argument.choices for x in c.labels):
            return None
        for factor in (f for t in argument.terms for f in t.factors):
            root, axes = factor.variable.root, root_axes(factor)
            labels = unique_labels(axes)
            if not root.is_scalar or not all(is_free(x) for x in labels) or any(in_last(x, event) for x in labels):
                return None
            if event:
                moved = shift(labels, event) | {label: c.label for label, c in choices.items()}
                axes = tuple(substitute(a, moved) for a in axes)
            if found is not None and (found[0].site != root.site or not same_axes(found[1], axes)):
                return None
            found = found or (root, axes)
    return found


def _free_labels(expression: Symbolic) -> set[Label]:
    return {x for t in expression.terms for x in t.labels if is_free(x)}


def _is_plain(arguments: Sequence[Symbolic], events: Sequence[int], root: Variable, axes: tuple[Axis, ...]) -> bool:
    """Whether the result has an element for each of the latent's: nothing else varies but along its dimensions."""
    terms = [t for a in arguments for t in a.terms]
    own = set(unique_labels(axes)) if same_axes(axes, position_axes(root.shape)) else set()
    constants = all(set(c.labels) <= own for t in terms for c in t.constants) and not any(t.summed for t in terms)
    factors = (f.variable.scalar is None or f.variable.scalar.axes is None for t in terms for f in t.factors)
    return constants and all(factors) and not any(events)


def _plain(term: Term, root: Variable) -> Term:
    """The term over the latent's own dimensions."""
    return Term(
        term.coefficient, term.constants, tuple(replace(f, axes=position_axes(root.shape)) for f in term.factors)
    )


def _evaluator(
    function: Callable[..., Tensor],
    arguments: Sequence[Symbolic],
    events: Sequence[int],
    orders: Sequence[Labels],
    shape: torch.Size,
) -> Callable[[Tensor], Tensor]:
    """``[L] + shape of the root`` -> ``[L] + shape``; ``orders``: by argument the labels of its first dimensions."""
    batch = len(shape) - len(orders[0])

    def evaluate(values: Tensor) -> Tensor:
        each = zip(arguments, orders, events, strict=True)
        laid_out = [_value(a, values, order, batch + e) for a, order, e in each]
        result: Tensor = function(*laid_out)
        whole = torch.Size((len(values), *shape))
        return result.reshape(whole) if result.numel() == whole.numel() else result.expand(whole)

    return evaluate


def _value(expression: Symbolic, values: Tensor, order: Labels, ndim: int) -> Tensor:
    """The value of a polynomial: ``[L]``, a dimension for each label of ``order``, then ``ndim`` positions."""
    total: Tensor | None = None
    for term in expression.terms:
        operands = [(c.tensor.double(), c.labels) for c in term.constants]
        for factor in term.factors:
            tensor, labels = read(factor_values(factor, values), factor.axes, lead=1)
            operands.append((tensor, (START, *labels)))
        read_along = {x for _, labels in operands for x in labels}
        out = (*((START,) if START in read_along else ()), *sorted(x for x in read_along if is_free(x)))
        number = torch.tensor(term.coefficient, dtype=torch.float64, device=values.device)
        tensor = contract(operands, out) if operands else number
        tensor = tensor * number if operands and term.coefficient != 1 else tensor
        part = laid(tensor, out, (START, *order), ndim)
        total = part if total is None else total + part
    if total is None:
        total = values.new_zeros([1] * (1 + len(order) + ndim))
    return total != 0 if expression.like.dtype == torch.bool else total


__all__ = ["factor_values", "is_smooth", "of_scalar", "root_axes"]
