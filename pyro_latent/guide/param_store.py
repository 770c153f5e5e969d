"""The parameters of a program in Pyro's store, where SVI and modules keep theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import transform_to

from ..objective import Program
from ..recording import ALONE, version_of


def param_versions(program: Program) -> dict[str, tuple[int, int]]:
    """What tells whether an entry of Pyro's store has changed, for the program's parameters."""
    store = pyro.get_param_store()
    names = [block.sites[0].name for block in program.params]
    found = {n: _unconstrained(n) for n in names if n in store}
    return {n: (id(t), version_of(t)) for n, t in found.items()}


def changed_params(program: Program, seen: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """The program's parameters in Pyro's store that have changed since :func:`param_versions` gave ``seen``."""
    store = pyro.get_param_store()
    return {n: store[n].detach() for n, version in param_versions(program).items() if version != seen.get(n)}


def write_params(program: Program, values: Mapping[str, Tensor]) -> None:
    """Put constrained values into Pyro's store; entries that exist keep their identity, and so their optimizers."""
    store = pyro.get_param_store()
    with ALONE, torch.no_grad():
        for block in program.params:
            site = block.sites[0]
            name = site.name
            if name not in store and site.module_value is None:
                store.setdefault(name, values[name].clone(), site.constraint)
                continue
            if name not in store:
                _register(name, site.module_value, site.constraint)
            unconstrained = _unconstrained(name)
            inverse = transform_to(store._constraints[name]).inv
            unconstrained.copy_(inverse(values[name]).to(unconstrained))


def _register(name: str, unconstrained: Any, constraint: Any) -> None:
    """Put a module's own tensor into Pyro's store, as a PyroModule does, so that both go on as one."""
    store = pyro.get_param_store()
    store._params[name], store._constraints[name] = unconstrained, constraint
    store._param_to_name[unconstrained] = name


def _unconstrained(name: str) -> Tensor:
    """The tensor that Pyro's store keeps for a parameter, and optimizers hold."""
    entry: Any = pyro.get_param_store()[name]
    unconstrained: Tensor = entry.unconstrained()
    return unconstrained


__all__ = ["changed_params", "param_versions", "write_params"]
