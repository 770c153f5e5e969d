"""Moments of a scalar's factor by quadrature: which functions of it a product is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256

import torch
from torch import Tensor

from ..expressions.axes import Axis, Label, Labels, axis_key, read, same_axes, spread, substitute, unique_labels
from ..expressions.scalars import factor_values, is_smooth, root_axes
from ..expressions.terms import Factor, Term
from ..families.quadrature import Quadrature
from ..families.scalar_function import Function


def quadrature_moment(family: Quadrature, factors: Sequence[Factor]) -> tuple[str, tuple[Axis, ...]] | None:
    """The function that a product of factors of one scalar site is, and the axes that it is read along; None where they
    read different elements. The family takes it in.
    """
    axes = root_axes(factors[0])
    if not all(same_axes(axes, root_axes(f)) for f in factors[1:]):
        return None
    smooth = all(is_smooth(f) for f in factors)
    words = " ".join(sorted(f"{f.variable.site}.{f.function}^{f.power:g}" for f in factors))
    if all(f.variable.scalar is None or f.variable.scalar.axes is None for f in factors):
        if words not in family.functions:
            family.functions[words] = Function(family.batch_shape, _product(factors, None), None, smooth)
        return words, axes
    labels = unique_labels(a for f in factors for a in f.axes)
    numbers: dict[Label, Axis] = {x: i + 1 for i, x in enumerate(labels)}
    moved = [tuple(substitute(a, numbers) for a in f.axes) for f in factors]
    digest = sha256(repr([[axis_key(a) for a in own] for own in moved]).encode()).hexdigest()[:16]
    name = f"{words} {digest}"
    if name not in family.functions:
        own = tuple(range(1, len(labels) + 1))
        sizes = Term(1.0, (), tuple(factors)).sizes
        shape = torch.Size(sizes[x] for x in labels)
        element = _elements(family, tuple(substitute(a, numbers) for a in axes), own, shape)
        relabeled = [replace(f, axes=a) for f, a in zip(factors, moved, strict=True)]
        family.functions[name] = Function(shape, _product(relabeled, own), element, smooth)
    return name, labels


def _elements(family: Quadrature, axes: tuple[Axis, ...], order: Labels, shape: torch.Size) -> Tensor:
    """Which element of the batch each element of a function reads."""
    batch = family.batch_shape
    numbers = torch.arange(batch.numel(), device=family.device).reshape(batch)
    found, labels = read(numbers, axes)
    return spread(found, labels, {x: i for i, x in enumerate(order)}).expand(shape).contiguous()


def _product(factors: Sequence[Factor], order: Labels | None) -> Callable[[Tensor], Tensor]:
    """The product of factors at values of their root ``[L, *batch]``: of the root's shape, or along labels in order."""

    def evaluate(values: Tensor) -> Tensor:
        total: Tensor | None = None
        for factor in factors:
            part = factor_values(factor, values)
            if order is not None:
                part, labels = read(part, factor.axes, lead=1)
                where = {x: i for i, x in enumerate((0, *order))}
                part = spread(part, (0, *labels), where)
            total = part if total is None else total * part
        assert total is not None
        return total

    return evaluate


__all__ = ["quadrature_moment"]
