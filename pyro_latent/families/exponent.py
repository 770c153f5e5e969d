"""The logarithm of the optimum of a scalar, a sum of functions of it and the Jacobian of its line, at any places."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import constraints

from ..distributions.kept_grids import KeptGrid
from ..distributions.panels import line_of
from ..values import is_at_hand
from .scalar_function import Function


def _where_it_counts(values: Tensor, slope: Tensor) -> Tensor:
    """Values of a function, with zero where its slope is zero if some are infinite."""
    total = values.sum()
    if is_at_hand(total) and bool(total.isfinite()):  # so that none is
        return values
    return torch.where((slope == 0) & ~total.isfinite(), 0.0, values)


class Exponent:
    """Σ_j η_j f_j(x) for a batch of scalars, as an integrand of :mod:`pyro_latent.distributions.grids`.

    Args:
        functions: by name.
        slopes: η_j by name, float64 ``[starts, *shape of the function]``.
        support: of an element.
        batch_shape: of the elements.
        mask: over the batch; where it does not hold, the density is standard on the line.
    """

    def __init__(
        self,
        functions: Mapping[str, Function],
        slopes: Mapping[str, Tensor],
        support: constraints.Constraint,
        batch_shape: torch.Size,
        mask: Tensor | None,
    ) -> None:
        self.functions = {name: functions[name] for name in slopes}
        self.slopes, self.support, self.batch_shape, self.mask = slopes, support, batch_shape, mask
        self.starts = len(next(iter(slopes.values())))
        self.is_smooth = all(f.is_smooth for f in self.functions.values())
        self._transform = line_of(support)[0]

    @cached_property
    def _numbers_of_slopes(self) -> list[int]:
        """How many slopes of each function are not zero."""
        found: list[int] = torch.stack([slope.count_nonzero() for slope in self.slopes.values()]).tolist()
        return found

    def __call__(self, places: Tensor) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor | None]]]:
        values, jacobian, found = self._at(places)
        total = torch.zeros_like(places)
        terms = zip(self.functions.values(), self.slopes.values(), self._numbers_of_slopes, found, strict=True)
        for function, slope, number, value in terms:
            if not number:
                continue
            known = value if number == slope.numel() else _where_it_counts(value, slope)
            if function.element is None:
                total.addcmul_(known, slope)
            else:
                total += self._gathered(function, known * slope)
        if jacobian is not None:
            total += jacobian
        if self.mask is not None:
            total = torch.where(self.mask, total, -0.5 * places.square())
        return total, values, [(v, f.element) for v, f in zip(found, self.functions.values(), strict=True)]

    def energy(self, means: Mapping[str, Tensor]) -> Tensor:
        """Σ_j η_j E f_j, ``[starts, *batch]``, of means by name ``[starts, *shape of the function]``."""
        parts = []
        for name, slope in self.slopes.items():
            part = torch.where(slope == 0, 0.0, slope * means[name])  # also of an infinite mean
            parts.append(self._gathered(self.functions[name], part.unsqueeze(0))[0])
        return sum(parts[1:], parts[0])

    # The functions where they are kept.

    @property
    def can_be_kept(self) -> bool:
        """Whether it is a sum of functions of each element."""
        return self.mask is None and all(f.element is None for f in self.functions.values())

    @property
    def num_kept(self) -> int:
        """The number of functions that it is a sum of, the Jacobian among them."""
        return len(self.functions) + (self.support is not constraints.real)

    def functions_at(self, places: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The values that places ``[L, starts, *batch]`` stand for, and the functions there, with the Jacobian."""
        values, jacobian, found = self._at(places)
        return values, found if jacobian is None else [*found, jacobian]

    def kept_slopes(self, kept: KeptGrid) -> Tensor:
        """What each of those functions is multiplied by, ``[functions, starts * batch]``."""
        shape = kept.left.shape
        slopes = [slope.expand(shape).reshape(-1) for slope in self.slopes.values()]
        return torch.stack([*slopes, *[torch.ones_like(slopes[0])] * (self.num_kept - len(slopes))])

    def _at(self, places: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Values, the log Jacobian, and the functions at places ``[L, starts, *batch]``."""
        flat = places.reshape(-1, *self.batch_shape)
        values, jacobian = self._transform(flat), None
        found = [f.at(values).reshape(-1, self.starts, *f.shape) for f in self.functions.values()]
        if self.support is not constraints.real:
            jacobian = self._transform.log_abs_det_jacobian(flat, values).reshape(places.shape)
        return values.reshape(places.shape), jacobian, found

    def _gathered(self, function: Function, values: Tensor) -> Tensor:
        """Sums over what each element of the batch is read by: ``[K, starts, *shape]`` to ``[K, starts, *batch]``."""
        if function.element is None:
            return values
        lead, count = values.shape[:2], self.batch_shape.numel()
        if count == 1:
            return values.reshape(*lead, -1).sum(-1).reshape(*lead, *self.batch_shape)
        total = values.new_zeros(*lead, count)
        return total.index_add_(-1, function.element.reshape(-1), values.reshape(*lead, -1)).reshape(
            *lead, *self.batch_shape
        )


__all__ = ["Exponent"]
