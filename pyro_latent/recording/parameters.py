"""What a ``pyro.param`` statement says: where the parameter starts, and what Pyro's store has of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..errors import ModelError


class Parameter(NamedTuple):
    """A parameter at one statement.

    ``value``: where it is now, or None where nobody says; ``own``: where the model itself starts it, or None;
    ``weight``: the tensor that a module reads it from, where that is not what ``pyro.param`` returns; ``displaced``: a
    tensor of a module in whose place Pyro's store has another; ``module_value``: the (unconstrained) tensor of the
    module that the parameter belongs to.
    """

    constraint: Any
    value: Tensor | None
    own: Tensor | None
    weight: Tensor | None = None
    displaced: Tensor | None = None
    module_value: Tensor | None = None


def parameter_of(msg: Any, is_first: bool) -> Parameter:
    """The parameter of a statement; ``is_first``: whether it matters where the model itself starts it.

    Raises:
        ModelError: if the shape or the constraint in Pyro's store is that of another model.
    """
    name, constraint = msg["name"], msg["kwargs"].get("constraint", constraints.real)
    store = pyro.get_param_store()
    given = msg["args"][1] if len(msg["args"]) > 1 else None
    own = _own_value(given, constraint) if is_first or name not in store else None
    is_real = constraint is constraints.real
    if name not in store and given is None and pyro.settings.get("module_local_params"):
        local = msg["fn"]()
        return Parameter(constraint, local.detach(), local.detach(), module_value=local.unconstrained())
    if name not in store:
        weight = given if is_real and isinstance(given, torch.nn.Parameter) else None
        return Parameter(constraint, own, own, weight, module_value=weight)
    stored, value = store._params[name], store[name].detach()
    _check_stored(name, value, own, constraint)
    module_value = stored if isinstance(stored, torch.nn.Parameter) else None
    if not is_real or not (given is stored or isinstance(given, torch.nn.Parameter)):
        return Parameter(store._constraints[name], value, own, module_value=module_value)
    return Parameter(constraint, value, own, stored, None if given is stored else given, stored)


def _own_value(given: object, constraint: object) -> Tensor | None:
    """The value that the model itself starts a parameter at; None where it only names it. Pyro normalizes a simplex."""
    if given is None:
        return None
    value: Tensor = (given() if callable(given) else torch.as_tensor(given)).detach()
    is_share = constraint is constraints.simplex and bool((value > 0).all())
    return value / value.sum(-1, keepdim=True) if is_share else value


def _check_stored(name: str, value: Tensor, own: Tensor | None, constraint: object) -> None:
    """A parameter in Pyro's store is the model's own.

    Raises:
        ModelError: if its shape or its constraint is that of another model.
    """
    stored = pyro.get_param_store()._constraints[name]
    clear = "Write pyro.clear_param_store() before the fit of another model, or give the parameter another name."
    if own is not None and own.shape != value.shape:
        raise ModelError(
            f"Expected the parameter {name!r} of shape {tuple(own.shape)} in Pyro's store; got {tuple(value.shape)}, "
            f"of another model. {clear}"
        )
    if constraint is not constraints.real and repr(constraint) != repr(stored):
        raise ModelError(
            f"Expected the parameter {name!r} in {constraint} in Pyro's store; got {stored}, of another model. {clear}"
        )


__all__ = ["Parameter", "parameter_of"]
