"""The value of a term at given values of the latents: what its symbols stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..families import point
from ..values import all_finite
from .axes import Axis, Gather, Label, Labeled, Labels, contract, is_free, laid, read, substitute
from .constants import Constant
from .terms import Factor, LogOfSum, Term
from .variables import ScalarFunction, Variable

#: The functions of a factor, by name. Those of a point keep the logarithm of zero finite; here it is infinite.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **point.FUNCTIONS,
    "log": torch.log,
    "log1m": lambda x: torch.log1p(-x),
}


def applied(function: str, values: Tensor, scalar: ScalarFunction | None = None) -> Tensor:
    """A function by its name, of values; or of what the model made of them, where they are those of a scalar's root,
    with a leading dimension.
    """
    if scalar is None:
        return FUNCTIONS[function](values)
    if function in scalar.logarithms:
        return scalar.logarithms[function](values).double()
    return FUNCTIONS[function](scalar.evaluate(values).double())


class LatentValues:
    """The values of the latents in float64, with those that are computed from points by operations without a rule."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = values
        self._known: dict[int, Tensor] = {}
        self._read: dict[tuple[Variable, str, float], Tensor] = {}

    def __getitem__(self, factor: Factor) -> Tensor:
        """The value of a factor, before it is read along its axes."""
        key = factor.variable, factor.function, factor.power
        if key not in self._read:
            self._read[key] = self._value_of(factor)
        return self._read[key]

    def _value_of(self, factor: Factor) -> Tensor:
        variable = factor.variable
        if isinstance(factor, LogOfSum):
            ndim = len(variable.shape)
            parts = [laid(*evaluate_term(term, self), (), ndim) for term in factor.summands]
            value = sum(parts, torch.zeros((), dtype=torch.float64, device=parts[0].device)).expand(variable.shape)
        elif variable.replay is not None:
            value = variable.replay(self._values, self._known)
        elif variable.root.site in self._values:
            value = self._values[variable.root.site]
        else:
            name = variable.root.site
            raise KeyError(f"Expected a value for the latent {name!r}; got values of {sorted(self._values)}.")
        value = applied(factor.function, value.double().unsqueeze(0), variable.scalar).squeeze(0)
        return value if factor.power == 1 else value**factor.power

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return next((value.device for value in self._values.values()), torch.device("cpu"))

    def numbers(self, site: str) -> Tensor:
        """The numbers of the values of a discrete latent."""
        return self._values[site].long()


def evaluate_term(term: Term, values: LatentValues) -> Labeled:
    """The value of a term in float64: a tensor, and the labels of its dimensions in ascending order."""
    chosen: dict[Label, Axis] = {c.label: Gather(*read(values.numbers(c.site), c.axes)) for c in term.choices}
    constants = [c.substitute(chosen) for c in term.constants]
    factors = [read(values[f], tuple(substitute(axis, chosen) for axis in f.axes)) for f in term.factors]
    operands = [*((c.tensor.double(), c.labels) for c in constants), *factors]
    if not operands:
        return torch.tensor(term.coefficient, dtype=torch.float64, device=values.device), ()
    labels = tuple(sorted({x for _, own in operands for x in own if is_free(x)}))
    total = contract(operands, labels)
    if constants and factors and not all_finite(total):
        operands[len(constants) :] = [_unmasked(*factor, constants) for factor in factors]
        total = contract(operands, labels)
    return total * term.coefficient, labels


def _unmasked(tensor: Tensor, labels: Labels, constants: Sequence[Constant]) -> Labeled:
    """A factor that is 0 where a constant is, even if it is not finite there: the constant may be a mask."""
    found = Constant(tensor, labels)
    if not found.is_finite:
        for constant in constants:
            found = found.chosen(constant)
    return found.tensor, found.labels
