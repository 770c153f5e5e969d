"""A density of vectors by a flow, and its fit by maximum likelihood.

Source: ``docs/sources.md`` [2], "training of normalizing flows".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import Transform
from tqdm.auto import tqdm

from ...checkpoint import Run
from ...distributions import forget_last_draw
from ...errors import ArgumentError, ArgumentTypeError, CheckpointError, DataError, ModelError, as_real, check_count
from ...signatures import PlainState
from ...values import is_floating, kind_of
from ..trainer import Trainer, copied_state, trainable
from .layers import NO_INVERSE, layers_of, make_flow, push

__all__ = ["FlowDensity", "FlowFit", "FlowTraining"]


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
class FitSettings:
    """The arguments of :meth:`FlowDensity.fit` that its result depends on, beside the data."""

    max_steps: int
    learning_rate: float
    batch_size: int | None
    check_every: int


class FlowDensity(PyroModule):
    """A density of vectors by a flow, for maximum likelihood: x → (x - shift) / spread → f → N(0, I).

    Called with data it is a Pyro model: the data, in a plate, under :attr:`distribution`. ``shift`` and ``spread`` are
    buffers, the mean and standard deviation of the data once :meth:`fit` has seen them.

    Args:
        dim: D, the length of the vectors.
        flow: the kind of :func:`make_flow`, or a composed transform in the normalizing way, from data to noise.
        length, hidden: as in :func:`make_flow`.

    Source: [2], "training of normalizing flows".
    """

    def __init__(
        self, dim: int, flow: str | Transform = "spline_coupling", *, length: int = 4, hidden: Sequence[int] = (32, 32)
    ) -> None:
        super().__init__()
        self.dim = check_count("dim", dim)
        if not isinstance(flow, str | torch.distributions.Transform):
            raise ArgumentTypeError(f"Expected flow to be a kind of flow, or a torch transform; got {kind_of(flow)}.")
        self.flow = make_flow(flow, dim, length=length, hidden=hidden) if isinstance(flow, str) else flow
        self.shift: Tensor
        self.spread: Tensor
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))

    @property
    def distribution(self) -> dist.TransformedDistribution:
        """p(x), of event shape ``[D]``; a Pyro distribution."""
        noise = dist.Normal(torch.zeros_like(self.shift), torch.ones_like(self.spread), validate_args=False)
        units = T.AffineTransform(self.shift, self.spread, event_dim=1)
        # Without torch's own checks, so that a fit that diverges ends in the error of fit.
        return dist.TransformedDistribution(noise.to_event(1), [self.flow.inv, units], validate_args=False)

    def terms(self, x: Tensor) -> Tensor:
        """log p(x) by terms, ``[..., 2 + K]``: minus log spread, each layer's log-determinant, and log p_z(f(x))."""
        z, layers = push(self.flow, (x - self.shift) / self.spread)
        noise = dist.Normal(torch.zeros_like(z), torch.ones_like(z), validate_args=False).log_prob(z).sum(-1)
        units = -self.spread.log().sum().expand(noise.shape)
        return torch.cat([units.unsqueeze(-1), layers, noise.unsqueeze(-1)], -1)

    def __getstate__(self) -> PlainState:
        forget_last_draw(self)
        return dict(super().__getstate__())

    def forward(self, data: Tensor) -> Tensor:
        """The Pyro model: site ``x`` in plate ``data``; ``data`` is ``[N, D]``."""
        with pyro.plate("data", len(data)):
            return pyro.sample("x", self.distribution, obs=data)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, ``[...]``, for x ``[..., D]`` of the density's dtype and device.

        Raises:
            DataError: if x is not as above, or not finite.
        """
        self._check(x)
        _check_like("x", x, self.shift)
        return self.distribution.log_prob(x)

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:
        """Draws, ``[num_samples, D]``, from torch's random state.

        Raises:
            ValueError: if the flow has no inverse, or ``num_samples`` is no integer of at least 1.
        """
        num_samples = check_count("num_samples", num_samples)
        try:
            return self.distribution.sample((num_samples,))
        except (KeyError, NotImplementedError):
            raise ArgumentError(f"Expected a flow that can be inverted, to sample; got one that {NO_INVERSE}") from None

    @torch.inference_mode(False)
    @torch.enable_grad()
    def fit(
        self,
        data: Tensor,
        *,
        max_steps: int = 1000,
        learning_rate: float = 5e-3,
        batch_size: int | None = None,
        held_out: Tensor | None = None,
        check_every: int = 25,
        progress: bool = False,
        checkpoint: str | PathLike[str] | None = None,
        checkpoint_every: int = 100,
    ) -> FlowFit:
        """Maximum likelihood by Adam, the rate falling to zero along a cosine; the module takes the data's dtype.

        A flow bends around single points if it is let. With held-out points the parameters that score them best are
        kept.

        Args:
            data: the points, ``[N, D]``, N at least 2, finite and floating; no column constant.
            max_steps: steps of Adam.
            learning_rate: its rate at the start.
            batch_size: points a step, drawn with replacement from torch's random state; all of them by default.
            held_out: points that are scored, not fitted, ``[M, D]``, of the data's dtype and device.
            check_every: steps between two scores of these.
            progress: whether to show a bar.
            checkpoint: a file. It is written before the first step and after every ``checkpoint_every``; where it
                exists the fit goes on from it, with its random state: a run that was killed ends where it would have
                ended. Delete it to begin anew.
            checkpoint_every: steps between two writes.

        Raises:
            DataError: if the data is not as above.
            ValueError: if ``max_steps``, ``batch_size``, ``check_every`` or ``checkpoint_every`` is below 1.
            CheckpointError: if the file is of another flow, other data or other arguments; the density is then as it
                was.
            ModelError: if the likelihood or a parameter is no longer finite, naming the step and the first term of
                :meth:`terms` that is not; the parameters are then the last that had a finite one, those before the
                step that spoiled them. Looked for every ``check_every`` steps, and before a checkpoint is written.
        """
        counts = {"max_steps": max_steps, "check_every": check_every, "checkpoint_every": checkpoint_every}
        counts |= {} if batch_size is None else {"batch_size": batch_size}
        for name, value in counts.items():
            check_count(name, value)
        if not as_real(learning_rate) > 0:
            raise ArgumentError(f"Expected learning_rate > 0; got {learning_rate!r}. Write 5e-3.")
        self._check(data, held_out)
        data = trainable(self, data)
        for x in (data, held_out):
            if x is not None and x.dim() != 2:
                raise DataError(
                    f"Expected points of shape [N, {self.dim}]; got shape {list(x.shape)}. Write x.reshape(-1, "
                    f"{self.dim})."
                )
        if held_out is not None:
            _check_like("held_out", held_out, data)
        for name, x, least in (("data", data, 2), ("held_out", held_out, 1)):
            if x is not None and len(x) < least:
                raise DataError(f"Expected {name} of at least {least} points; got {len(x)}. Give more points.")
        settings = FitSettings(max_steps, learning_rate, batch_size, check_every)
        before = self.state_dict()
        self._standardize(data)
        training = FlowTraining(self, data, held_out, settings)
        try:
            file = training.start(checkpoint, checkpoint_every)
        except CheckpointError:  # the density stays as it was
            self.to(before["shift"])
            self.load_state_dict(before)
            raise
        return training.run(file, progress)

    def _standardize(self, data: Tensor) -> None:
        """Take the dtype, device, mean and standard deviation of the data."""
        spread = data.std(0, correction=0)
        if not bool((spread > 0).all()):
            constant = [i for i, s in enumerate(spread.tolist()) if s == 0]
            raise DataError(
                f"Expected columns that vary; got column {constant} constant. A flow has a density: drop constants."
            )
        self.to(data)
        self.shift, self.spread = data.mean(0), spread

    def _check(self, *points: Tensor | None) -> None:
        for x in points:
            if x is None:
                continue
            if not is_floating(x) or x.dim() == 0 or x.shape[-1] != self.dim:
                raise DataError(
                    f"Expected a floating tensor of shape [..., {self.dim}]; got {kind_of(x)}. Write "
                    "torch.as_tensor(x).float(), and make the FlowDensity with the number of columns."
                )
            if not bool(x.isfinite().all()):
                raise DataError("Expected finite data; got NaN or infinity. Drop those rows: x[x.isfinite().all(-1)].")


def _check_like(name: str, x: Tensor, like: Tensor) -> None:
    if x.dtype != like.dtype or x.device != like.device:
        raise DataError(
            f"Expected {name} in {like.dtype} on {like.device}; got {x.dtype} on {x.device}. Write {name}.to"
            f"(dtype={like.dtype}, device={str(like.device)!r})."
        )


class FlowTraining:
    """A fit under way. The parameters that it leaves are the best by held-out points, else the last.

    Args:
        density: it has the units, dtype and device of ``data`` already.
        data: the points, ``[N, D]``.
        held_out: points to score, ``[M, D]``, if there are any.
        settings: the rest of the arguments of :meth:`FlowDensity.fit` that the result depends on.
    """

    def __init__(self, density: FlowDensity, data: Tensor, held_out: Tensor | None, settings: FitSettings) -> None:
        self.density, self.data, self.held_out, self.settings = density, data, held_out, settings
        optimizer = torch.optim.Adam(density.parameters(), lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.max_steps)
        self.trainer = Trainer(density, optimizer, self._term_error, schedule=schedule, go_back=True)
        self.good = copied_state(density)
        self.values: list[float] = []
        self.scores: list[float] = []
        self.checked: list[int] = []

    def run(self, file: Run, progress: bool) -> FlowFit:
        """The steps that are left, written to the file now and then; the density keeps the best parameters."""
        last, done = self.settings.max_steps, self.trainer.step
        for step in tqdm(range(done, last), initial=done, total=last, disable=not progress, desc="flow"):
            self._step(step)
            if step + 1 == last:
                self._watch_last()
            file.keep(step + 1, self._state, last=step + 1 == last)
        self._check(last)
        return self._finish()

    def _step(self, step: int) -> None:
        log_prob = self._watched(self._batch())
        if step % self.settings.check_every == 0:
            self._check(step)
        self.trainer.descend(-log_prob)

    def _batch(self) -> Tensor:
        size = self.settings.batch_size
        return self.data if size is None else self.data[torch.randint(len(self.data), (size,), device=self.data.device)]

    def _watched(self, x: Tensor) -> Tensor:
        """The mean log density, watched with its terms."""
        terms = self.density.terms(x)
        units, *layers, noise = terms.unbind(-1)
        log_prob = (units + sum(layers) + noise).mean()
        self.trainer.watch(torch.cat([terms.mean(0), log_prob.unsqueeze(0)]))
        return log_prob

    @torch.no_grad()
    def _watch_last(self) -> None:
        """What the last step led to is not the start of another one: look at it too."""
        self._watched(self.data[: self.settings.batch_size])

    @torch.no_grad()
    def _check(self, step: int) -> None:
        """Score the held-out points, and keep the parameters if they are the best."""
        self._look()
        score = math.inf
        if self.held_out is not None:
            score = self.density.distribution.log_prob(self.held_out).mean().item()
            self.scores.append(score)
            self.checked.append(step)
        if score >= max((s for s in self.scores if not math.isnan(s)), default=score):
            self.good = copied_state(self.density)

    def _look(self) -> None:
        """Go back, and say why, if something was not finite since the last look."""
        self.values += self.trainer.look()[:, -1].tolist()
        named = dict(self.density.named_parameters())
        whole = torch.stack([p.isfinite().all() for p in named.values()])
        if not bool(whole.all()):
            names = [name for name, each in zip(named, whole.tolist(), strict=True) if not each]
            self.trainer.go_back()
            step = self.trainer.step - 1
            raise _broken(f"a likelihood that is, and parameters {names} that are not, after step {step}")

    def _term_error(self, step: int, row: Tensor) -> ModelError:
        column = int((~row.isfinite()).nonzero()[0])
        layers = [type(part).__name__ for part in layers_of(self.density.flow)]
        names = [f"the log-determinant of layer {k} ({layer})" for k, layer in enumerate(layers, 1)]
        name = ["the units", *names, "the density of the noise", "their sum"][column]
        return _broken(f"{row[-1].item()} at step {step}, first in {name}")

    def _finish(self) -> FlowFit:
        """Leave the density with the parameters that are kept."""
        self.density.load_state_dict(self.good)
        values, scores = self.values[: self.settings.max_steps], self.scores
        return FlowFit(
            torch.tensor(values, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64), self.checked
        )

    def start(self, path: str | PathLike[str] | None, every: int) -> Run:
        """Go on from the checkpoint, or write the first one."""
        file = Run(path, "FlowDensity.fit", every=every, data=self._data(), settings=asdict(self.settings))
        found = file.read()
        if found is None:
            file.keep(0, self._state)
            return file
        self.trainer.load_state(found)
        self.good = found["good"]
        self.values, self.scores, self.checked = found["values"], found["scores"], found["checked"]
        return file

    def _state(self) -> dict[str, Any]:
        """All that a resumed run needs, and nothing that it could not go on from."""
        self._look()
        history = {"values": self.values, "scores": self.scores, "checked": self.checked}
        return {**self.trainer.to_state(), "good": self.good, **history}

    def _data(self) -> dict[str, Any]:
        """What a resumed run must have in common with the first, beside the settings."""
        layers = [
            # The order of Pyro's Permute is drawn where none is given, and is no part of the module's state.
            [type(part).__name__, getattr(part, "permutation", None)]
            for part in layers_of(self.density.flow)
        ]
        shapes = {name: list(value.shape) for name, value in self.density.state_dict().items()}
        return {"flow": layers, "parameter shapes": shapes, "data": self.data, "held_out": self.held_out}


def _broken(found: str) -> ModelError:
    return ModelError(
        f"Expected a finite likelihood and finite parameters; got {found}. The parameters are again those before the "
        "step that led there. Lower learning_rate."
    )
