"""What an expression is in: latents, parameters, and what the model made of them by operations without a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .axes import Axis

#: A tensor computed again from the values of points by name, and of choices by label (the number of each); the second
#: argument keeps what was computed on the way.
Replay = Callable[[Mapping[Any, Any], dict[Any, Tensor]], Tensor]


@dataclass(frozen=True, eq=False)
class ScalarFunction:
    """A function of the elements of one scalar latent: ``evaluate`` takes values ``[L] + shape of the parent`` and
    gives ``[L] + own shape``.

    ``axes`` tell which element of the parent each of its own elements is a function of: axes of the parent whose labels
    are places of its own dimensions, counted from the right. None: it has the parent's shape, element by element.
    ``is_smooth``: it is known to have no kink. ``logarithms`` are log f, "log", and log(1 − f), "log1m", where these
    are known beyond where f rounds to 0 or 1.
    """

    parent: Variable
    evaluate: Callable[[Tensor], Tensor]
    axes: tuple[Axis, ...] | None
    is_smooth: bool
    logarithms: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Variable:
    """A latent site or a parameter: its name, the shape of its value, and what is known of it.

    ``nonnegative``: no element is below zero. ``simplex``: the last dimension sums to one. ``is_point``: it gets a
    point estimate, so any function of it is known. ``lower_cholesky``: it is a Cholesky factor. ``is_matrix``: its last
    two dimensions are a positive definite matrix. ``is_scalar``: its elements are scalars with a density each, so any
    function of one of them has an expectation, as an integral.
    ``replay`` computes what the model made of its ``parents``, which are points, by an operation that has no rule;
    ``scalar`` is what it made of the elements of one scalar latent.
    """

    site: str
    shape: torch.Size
    simplex: bool = False
    is_point: bool = False
    lower_cholesky: bool = False
    is_matrix: bool = False
    replay: Replay | None = None
    parents: frozenset[str] = frozenset()
    nonnegative: bool = False
    is_scalar: bool = False
    scalar: ScalarFunction | None = None

    @property
    def root(self) -> Variable:
        """The latent that it is a function of: itself, but for a function of a scalar latent."""
        return self if self.scalar is None else self.scalar.parent
