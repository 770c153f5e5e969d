"""The fit of a density by maximum likelihood under way: its steps, what it keeps, and its checkpoint.

:meth:`pyro_latent.infer.flows.FlowDensity.fit` checks what it is given and runs this.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..checkpoint import Run, restore_random_state
from ..errors import ModelError

if TYPE_CHECKING:
    from .flows import FlowDensity

__all__ = ["FlowFit", "FlowTraining", "Settings"]


@dataclass(frozen=True, eq=False)
class FlowFit:
    """What :meth:`FlowDensity.fit` did.

    Attributes:
        log_likelihood: of the batch at each step, the mean per point in nats, float64 ``[steps]``.
        held_out: of the held-out points, mean per point in nats, at the steps in ``checked``; empty without any.
        checked: the steps at which the held-out points were scored.
    """

    log_likelihood: Tensor
    held_out: Tensor
    checked: list[int]


@dataclass(frozen=True)
class Settings:
    """The arguments of :meth:`FlowDensity.fit` that its result depends on, beside the data."""

    max_steps: int
    learning_rate: float
    batch_size: int | None
    check_every: int


@dataclass
class FlowTraining:
    """A fit under way: all of its state. The parameters to keep are the best by held-out points, else the last.

    ``density`` has the units, dtype and device of ``data`` already. What is not finite is looked for at checks only, so
    that steps do not wait for the device; there the last parameters with a finite likelihood are kept by a mask.
    """

    density: FlowDensity
    data: Tensor
    held_out: Tensor | None
    settings: Settings
    values: list[Tensor] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    checked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.density.parameters(), lr=self.settings.learning_rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.settings.max_steps)
        self._good = self._parameters()
        self._last = self._parameters()
        self._live = self.density.state_dict()  # shares its memory with the parameters
        self._alive = torch.ones((), dtype=torch.bool, device=self.data.device)
        self._terms: dict[int, Tensor] = {}  # by step, since the last look

    def run(self, file: Run, progress: bool) -> FlowFit:
        """The steps that are left, written to the file now and then; the density keeps the best parameters."""
        last = self.settings.max_steps
        done = len(self.values)
        for step in tqdm(range(done, last), initial=done, total=last, disable=not progress, desc="flow"):
            self._step(step)
            if step + 1 == last:
                self._score_last()
            file.keep(step + 1, self._state, last=step + 1 == last)
        self._check(last)
        return self._finish()

    # ----------------------------------------------------------------------------------------------------------- steps

    def _step(self, step: int) -> None:
        log_prob = self._watched(step, self._batch())
        self.values.append(log_prob.detach())
        if step % self.settings.check_every == 0:
            self._check(step)
        self.optimizer.zero_grad()
        (-log_prob).backward()
        self.optimizer.step()
        self.schedule.step()

    def _batch(self) -> Tensor:
        size = self.settings.batch_size
        return self.data if size is None else self.data[torch.randint(len(self.data), (size,), device=self.data.device)]

    def _watched(self, step: int, x: Tensor) -> Tensor:
        """The mean log density; and the parameters are kept as the last good ones if it is finite, as all before."""
        terms = self.density.terms(x)
        units, *layers, noise = terms.unbind(-1)
        log_prob = (units + sum(layers) + noise).mean()
        self._terms[step] = torch.cat([terms.mean(0), log_prob.unsqueeze(0)]).detach()
        self._alive = self._alive & log_prob.detach().isfinite()
        for name, value in self._live.items():
            torch.where(self._alive, value, self._last[name], out=self._last[name])
        return log_prob

    @torch.no_grad()
    def _score_last(self) -> None:
        """What the last step led to is not the start of another one: look at it too."""
        self._watched(self.settings.max_steps, self.data[: self.settings.batch_size])

    @torch.no_grad()
    def _check(self, step: int) -> None:
        """Score the held-out points; on the host only here, so that steps do not wait for the device."""
        self._look()
        score = math.inf
        if self.held_out is not None:
            score = self.density.distribution.log_prob(self.held_out).mean().item()
            self.scores.append(score)
            self.checked.append(step)
        if score >= max((s for s in self.scores if not math.isnan(s)), default=score):
            self._good = self._parameters()

    def _look(self) -> None:
        """Go back, and say why, if something was not finite since the last look."""
        steps, terms = list(self._terms), list(self._terms.values())
        whole = [p.isfinite().all() for p in self.density.parameters()]
        if bool(torch.stack([*whole, *(t.isfinite().all() for t in terms)]).all()):
            self._terms = {}
            return
        bad = (~torch.stack(terms).isfinite()).nonzero().tolist() if terms else []
        if bad:
            row, column = bad[0]
            found = f"{terms[row][-1].item()} at step {steps[row]}, first in {self._name(column)}"
        else:
            names = [n for n, p in self.density.named_parameters() if not bool(p.isfinite().all())]
            found = f"a likelihood that is, and parameters {names} that are not, after step {len(self.values) - 1}"
        self.density.load_state_dict(self._last)
        raise ModelError(
            f"Expected a finite likelihood and finite parameters; got {found}. The parameters are again those before "
            "the step that led there. Lower learning_rate."
        )

    def _name(self, column: int) -> str:
        """What :meth:`FlowDensity.terms` has there, with the sum as one more."""
        layers = [type(part).__name__ for part in getattr(self.density.flow, "parts", [self.density.flow])]
        names = [f"the log-determinant of layer {k} ({layer})" for k, layer in enumerate(layers, 1)]
        return ["the units", *names, "the density of the noise", "their sum"][column]

    def _finish(self) -> FlowFit:
        """Leave the density with the parameters that are kept."""
        self.density.load_state_dict(self._good)
        held_out = torch.tensor(self.scores, dtype=torch.float64)
        return FlowFit(torch.stack(self.values).double().cpu(), held_out, self.checked)

    def _parameters(self) -> dict[str, Tensor]:
        return copy.deepcopy(self.density.state_dict())

    # ----------------------------------------------------------------------------------------------------- checkpoints

    def start(self, path: str | PathLike[str] | None, every: int) -> Run:
        """Go on from the checkpoint, or write the first one."""
        file = Run(path, "FlowDensity.fit", every=every, data=self._data(), settings=asdict(self.settings))
        found = file.read()
        if found is None:
            file.keep(0, self._state)
            return file
        self.density.load_state_dict(found["density"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.schedule.load_state_dict(found["schedule"])
        self._good = found["good"]
        for name, value in found["last"].items():
            self._last[name].copy_(value)
        self.values = list(found["values"].to(self.data.device))
        self.scores, self.checked = found["scores"], found["checked"]
        restore_random_state(found["random"])
        return file

    def _state(self) -> dict[str, Any]:
        """All that a resumed run needs, and nothing that it could not go on from."""
        self._look()
        return {
            "density": self.density.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "good": self._good,
            "last": self._last,
            "values": torch.stack(self.values) if self.values else self.data.new_zeros(0),
            "scores": self.scores,
            "checked": self.checked,
        }

    def _data(self) -> dict[str, Any]:
        """What a resumed run must have in common with the first, beside the settings."""
        state = self.density.state_dict()
        layers = [
            # The order of Pyro's Permute is drawn where none is given, and is no part of the module's state.
            [type(part).__name__, getattr(part, "permutation", None)]
            for part in getattr(self.density.flow, "parts", [self.density.flow])
        ]
        shapes = {name: list(value.shape) for name, value in state.items()}
        return {"flow": layers, "parameter shapes": shapes, "data": self.data, "held_out": self.held_out}
