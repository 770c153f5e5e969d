"""The value of a term at given values of the latents: what its symbols stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..families import point
from .terms import Axis, Choice, Constant, Factor, Gather, Term, contract, read, substitute

#: The functions of a factor, by name. Those of a point keep the logarithm of zero finite; here it is infinite.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **point.FUNCTIONS,
    "log": torch.log,
    "log1m": lambda x: torch.log1p(-x),
}


class Values:
    """The values of the latents in float64, with those that are computed from points by operations without a rule; of
    discrete latents the numbers of their values.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = values
        self._known: dict[Any, Tensor] = {}

    def of(self, site: str) -> Tensor:
        """The value of a site as it was given."""
        if site not in self._values:
            raise KeyError(f"Expected a value for the latent {site!r}; got values of {sorted(self._values)}.")
        return self._values[site]

    def factor(self, factor: Factor) -> Tensor:
        """The value of a factor, before it is read along its axes."""
        variable = factor.variable
        replay = variable.replay
        value = self.of(variable.site) if replay is None else replay(self._values, self._known)
        value = FUNCTIONS[factor.function](value.double())
        return value if factor.power == 1 else value**factor.power

    def number(self, choice: Choice) -> Axis:
        """The axis that reads the values of a discrete latent at the one it takes."""
        return Gather(*read(self.of(choice.site).long(), choice.axes))


def evaluate_term(term: Term, values: Values) -> tuple[Tensor, tuple[int, ...]]:
    """The value of a term in float64: a tensor, and the labels of its dimensions in ascending order."""
    numbers = {choice.label: values.number(choice) for choice in term.choices}
    constants = [c.substitute(numbers) for c in term.constants]
    operands = [(c.tensor.double(), c.labels) for c in constants]
    for factor in term.factors:
        axes = tuple(substitute(axis, numbers) for axis in factor.axes)
        operands.append(_unmasked(*read(values.factor(factor), axes), constants))
    labels = tuple(sorted({label for _, own in operands for label in own if label < 0}))
    if not operands:
        return torch.tensor(term.coefficient, dtype=torch.float64), ()
    return contract(operands, labels) * term.coefficient, labels


def _unmasked(tensor: Tensor, labels: tuple[int, ...], constants: list[Constant]) -> tuple[Tensor, tuple[int, ...]]:
    """A factor that is 0 where a constant is, even if it is not finite there: the constant may be a mask."""
    found = Constant(tensor, labels)
    if not found.is_finite:
        for constant in constants:
            found = found.where(constant)
    return found.tensor, found.labels
