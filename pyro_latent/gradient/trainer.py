"""Training a module by a torch optimizer: steps, watched for what is not finite, that a checkpoint can go on from.

The host does not wait for the device at each step: the terms of the loss are gathered there, and looked at now and
then. Meanwhile the parameters that an error goes back to are kept on the device by a mask, so what came after a loss
that is not finite does not reach them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import restore_random_state
from ..errors import ModelError
from ..signatures import PlainState

__all__ = ["Trainer", "copied_state", "descend_quasi_newton", "trainable"]


def copied_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, in memory of its own."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def descend_quasi_newton(leaves: list[Tensor], loss: Callable[[], Tensor], **options: Any) -> None:
    """Move leaves down a loss, a scalar, by L-BFGS with a strong Wolfe line search; the options are torch's."""
    optimizer = torch.optim.LBFGS(leaves, line_search_fn="strong_wolfe", **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss()
        found.backward()
        return found

    optimizer.step(closure)
    optimizer.zero_grad()


def trainable(module: nn.Module, data: Tensor) -> Tensor:
    """Data that gradients can be taken beside: a copy where it was made under ``torch.inference_mode()``.

    Raises:
        ModelError: if the module was made there.
    """
    if any(p.is_inference() for p in module.parameters()):
        raise ModelError(
            f"Expected a {type(module).__name__} that can be trained; got one made under torch.inference_mode(). Make "
            "it outside."
        )
    return data.clone() if data.is_inference() else data


class Trainer:
    """The steps of an optimizer on a module, and the guard of its parameters.

    A step is ``watch(row)`` with the terms of the loss, then ``descend(loss)``.

    Args:
        module: it is trained in place, and stays on its device.
        optimizer: of its parameters.
        error: makes the error of a step whose terms are not finite, from its number and its row of terms; it is called
            once the module has the parameters that it goes back to.
        schedule: of the optimizer's rate, if it has one.
        every_step: whether each row is looked at when it is watched, which makes the host wait, and needs no copy of
            the parameters. Else call :meth:`look`.
        go_back: whether an error goes back to the last parameters with finite terms: those before the step that led to
            the others. Else it goes back to the parameters whose terms are not finite, and only later steps are undone.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        error: Callable[[int, Tensor], Exception],
        *,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
        every_step: bool = False,
        go_back: bool = False,
    ) -> None:
        self.module, self.optimizer, self.schedule = module, optimizer, schedule
        self.step = 0
        self._error, self._every_step, self._go_back = error, every_step, go_back
        self._live = module.state_dict()  # shares its memory with the parameters
        self._kept = {} if every_step and not go_back else copied_state(module)
        self._alive = torch.ones((), dtype=torch.bool, device=next(module.parameters()).device)
        self._rows: list[Tensor] = []  # since the last look
        self._first = 0  # the step of the first of them

    def watch(self, row: Tensor) -> None:
        """Note the terms of the loss at the parameters as they are, ``[terms]``, before they move.

        Raises:
            Exception: that of ``error``, with ``every_step`` and terms that are not finite.
        """
        if not self._rows:
            self._first = self.step
        self._rows.append(row.detach())
        if self._kept:
            alive, self._alive = self._alive, self._alive & row.detach().isfinite().all()
            for name, value in self._live.items():
                torch.where(self._alive if self._go_back else alive, value, self._kept[name], out=self._kept[name])
        if self._every_step and not bool(row.isfinite().all()):
            self.look()

    def descend(self, loss: Tensor) -> None:
        """One step of the optimizer down the gradient of a loss."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        self.step += 1

    def look(self) -> Tensor:
        """The rows since the last look, ``[steps, terms]``, on the CPU.

        Raises:
            Exception: that of ``error``, if one is not finite; the parameters are then those that it goes back to.
        """
        rows = torch.stack(self._rows).cpu() if self._rows else torch.zeros(0, 1)
        self._rows = []
        wrong = (~rows.isfinite().all(-1)).nonzero().flatten().tolist()
        if wrong:
            self.go_back()
            raise self._error(self._first + wrong[0], rows[wrong[0]])
        return rows

    def go_back(self) -> None:
        """Give the module the parameters that an error goes back to."""
        if self._kept:
            self.module.load_state_dict(self._kept)

    def to_state(self) -> PlainState:
        """What a resumed run needs, in plain types and tensors."""
        return {
            "step": self.step,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "kept": self._kept if self._go_back else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take on a state of :meth:`to_state`, and torch's random state with it."""
        self.step = state["step"]
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        for name, value in (state["kept"] or {}).items():
            self._kept[name].copy_(value)
        restore_random_state(state["random"])
