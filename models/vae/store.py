"""What every autoencoder here shares: a name in Pyro's parameter store, the check that its parameters are there, and
the error of a training that has gone wrong."""

from __future__ import annotations

import pyro
import torch
from pyro.nn import PyroModule
from torch import nn

from pyro_latent.errors import ModelError, PyroLatentError

__all__ = ["NonFiniteLossError", "StoredModule"]


class NonFiniteLossError(PyroLatentError, ArithmeticError):
    """A term of the loss is not finite; the parameters are those before the step."""


class StoredModule(PyroModule):
    """A module that ``SVI`` trains, and that says so where it would train another in its place.

    Args:
        name: a prefix of the parameters' names in Pyro's store, for more than one module there.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(name)

    def _check_store(self, attribute: str, network: nn.Module) -> None:
        """Pyro's store keeps what it first had under a name: an optimiser would train another module's parameters.

        Call it in a program, with the network that was read there, which puts it into the store.

        Raises:
            ModelError: if the store has another module's parameters under the names of this one's.
        """
        if not torch.is_grad_enabled():
            return  # what is only looked at reads the module's own parameters
        store = pyro.get_param_store()
        name, parameter = next(network.named_parameters())
        taken = [key for key in store if key.endswith(f"{attribute}$$${name}")]
        if taken and store.param_name(parameter) is None:
            raise ModelError(
                f"Expected this {type(self).__name__}'s own parameter under {taken[0]!r} in Pyro's store; got another "
                f"module's. Write pyro.clear_param_store() first, or give each {type(self).__name__} a name=."
            )

    def _health(self) -> str:
        """How the parameters are after a step that was not taken: for the words of an error."""
        lost = [name for name, value in self.named_parameters() if not bool(value.isfinite().all())]
        return f"not finite in {', '.join(lost)}" if lost else "as before the step"
