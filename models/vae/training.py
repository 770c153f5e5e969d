"""Training a VAE, Algorithm 5 of [4]: minibatches, annealing, free bits, a history, and checkpoints to resume from.

Each step runs the VAE's two Pyro programs on a minibatch, takes the gradient of [4] (153) or (152), and gives it to a
torch optimiser that holds the module's parameters; Pyro's parameter store is not touched.

Source: [4] (154), Algorithm 5; Kingma and Welling 2014, Algorithm 1.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_latent.checkpoint import Run
from pyro_latent.errors import ArgumentError, ArgumentTypeError, ModelError, as_real, check_count, checked_call
from pyro_latent.gradient.flows.layers import layers_of
from pyro_latent.gradient.trainer import Trainer, copied_state, trainable
from pyro_latent.particles import seeded

from .model import Autoencoder
from .objective import VAE_ELBO, Estimator, Terms
from .reading import Minibatches, as_images, minibatches
from .store import NonFiniteLossError

__all__ = ["History", "NonFiniteLossError", "anneal_linearly", "fit"]

Schedule: TypeAlias = Callable[[int], float]
OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

#: Steps between two looks at the loss, by device: a GPU waits for each look, which costs nothing on a CPU.
_STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 50}

#: A schedule is known in a checkpoint by its values at these steps.
_STEPS_COMPARED = (*range(20), *(m * 10**e for e in range(1, 6) for m in (2, 3, 5, 7, 10)))

#: Of an optimiser's groups: what is no option of it, and what changes how it computes, not what.
_NOT_OPTIONS = ("params", "param_names", "foreach", "fused", "capturable", "differentiable")

_TERMS = ("reconstruction", "KL divergence of z", "KL divergence of the weights")


@dataclass
class History:
    """What each epoch had, one number an epoch; in nats for each image, but for ``loss``, ``kl_weight``, ``seconds``.

    Attributes:
        loss: what was minimised, of N images or of one, as the VAE's ``reduction`` says.
        elbo: ``reconstruction - kl - weight_kl``, whatever weight the KL divergence had in the loss.
        reconstruction, kl: the two terms, averaged over the epoch's steps.
        weight_kl: KL(q(w) ‖ p(w)) / N; zero for a point-estimate decoder.
        kl_weight: of the epoch's last step.
        validation_elbo: ``reconstruction - kl`` of the validation images, where there are any.
        seconds: of the epoch.
    """

    loss: list[float] = field(default_factory=list)
    elbo: list[float] = field(default_factory=list)
    reconstruction: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    weight_kl: list[float] = field(default_factory=list)
    kl_weight: list[float] = field(default_factory=list)
    validation_elbo: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def best_epoch(self) -> int:
        """The first epoch, from 1, with the best ELBO of the validation images.

        Raises:
            ModelError: if there were none.
        """
        if not self.validation_elbo:
            raise ModelError(
                "Expected a history with validation images; got none. Write fit(..., validation=held_out)."
            )
        return int(np.argmax(np.nan_to_num(self.validation_elbo, nan=-np.inf))) + 1


@checked_call
def anneal_linearly(num_steps: int, start: float = 0.0) -> Schedule:
    """A schedule for ``kl_weight``: from ``start`` to 1 over so many steps, then 1.

    Source: Bowman et al. 2016, §3.1.
    """
    check_count("num_steps", num_steps)
    if not 0 <= start <= 1:
        raise ArgumentError(
            f"Expected start in [0, 1]; got {start}. Write start=0.0 to begin without the KL divergence."
        )
    return lambda step: min(1.0, start + (1 - start) * step / num_steps)


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    vae: Autoencoder,
    images: Any,
    *,
    epochs: int = 100,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    optimizer: OptimizerFactory | None = None,
    estimator: Estimator = "B",
    num_particles: int = 1,
    kl_weight: float | Schedule = 1.0,
    free_bits: float = 0.0,
    validation: Any = None,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    progress: bool = False,
) -> History:
    """Train a VAE on images, in epochs over random minibatches.

    Draws come from torch's global random state, which ``pyro.set_rng_seed`` sets.

    Args:
        vae: trained in place, on its device.
        images: ``[N, *input_shape]``: a tensor of the VAE's dtype and device, a NumPy array, or a ``DataLoader`` of
            images, alone or with labels after them. A loader streams its minibatches, N being the size of its dataset.
        epochs: how often each image is seen, those of a resumed run counted in; at least 1, or, with ``checkpoint``, 0,
            which only writes the start.
        batch_size: M, 100 by default; the last minibatch of an epoch may be smaller. A ``DataLoader`` has its own.
        learning_rate: of Adam, the default optimiser.
        optimizer: takes the parameters and makes a torch optimiser, such as
            ``lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=1e-2)``.
        estimator: ``"B"`` has KL divergences in closed form, [4] (153), (162); ``"A"`` takes them at the draws, and is
            the one for a VAE with a flow.
        num_particles: L, draws of z for each image.
        kl_weight: what KL(q(z | x) ‖ p(z)) counts in the loss: a number, or a function of the step (0, 1, …) such as
            :func:`anneal_linearly`.
        free_bits: nats of each latent dimension that cost nothing; not with a flow.
        validation: held-out images, as ``images``; their ELBO is in the history, estimated from the same draws each
            epoch.
        patience: stop early, after so many epochs without a new best ELBO of the held-out images. The VAE then has the
            parameters of the best epoch, ``history.best_epoch``, also if ``epochs`` ends the run. None: never, and it
            has the last ones.
        checkpoint: a file. It is written before the first epoch and after every ``checkpoint_every``; where it exists
            the run goes on from it, with its random state and its optimiser's state. A file of as many epochs or
            more is read as it is, and nothing is trained. Delete it to begin anew. Other images (or another order of
            them; of a ``DataLoader`` it knows the numbers of images and minibatches alone), other options of the
            optimiser, another VAE or another argument are an error; a function for ``kl_weight`` is known by its values
            at the first 20 steps and at some later ones, as far as the runs go.
        checkpoint_every: epochs between two writes.
        progress: show a bar.

    Returns:
        The history, from the first epoch of the first run on.

    Raises:
        DataError: if the images do not fit the VAE.
        NonFiniteLossError: if a term of the loss is not finite.
        CheckpointError: if the file is of another VAE, other images or other arguments.
        ModelError: if there are free bits with a flow, or several particles of the weights of convolutions.
        TypeError: if ``optimizer`` makes no torch optimiser.
        ValueError: if another argument is not as above.

    Source: [4] Algorithm 5, with M = 100 and L = 1 as it advises.
    """
    least = 1 if checkpoint is None else 0
    check_count("epochs", epochs, least)
    _check_patience(patience, validation)
    if not 0 < as_real(learning_rate) < math.inf:
        raise ArgumentError(f"Expected learning_rate > 0 and finite; got {learning_rate}. Write learning_rate=1e-3.")
    source = minibatches(vae, images, batch_size)
    held_out = None if validation is None else trainable(vae, as_images(vae, validation))
    if vae.flow is not None and estimator == "B":
        raise ArgumentError(
            "Expected estimator='A' for a VAE with a flow, whose KL divergence has no closed form; got 'B'. Write "
            "fit(..., estimator='A')."
        )
    elbo = VAE_ELBO(estimator, free_bits=free_bits, num_particles=num_particles)
    parameters = list(vae.parameters())
    made = _adam(parameters, learning_rate) if optimizer is None else _own(optimizer, parameters)
    if not callable(kl_weight):
        elbo.kl_weight = kl_weight
    schedule = kl_weight if callable(kl_weight) else _constant(kl_weight)
    rate = learning_rate if optimizer is None else None
    training = _Training(vae, source, held_out, elbo, made, schedule, learning_rate=rate, patience=patience)
    training.num_steps = epochs * source.steps
    file = training.start(checkpoint, checkpoint_every)
    # The values were checked once, above; Pyro would check every minibatch of every step.
    with pyro.validation_enabled(False), tqdm(total=epochs, disable=not progress, unit="epoch") as bar:
        bar.update(min(epochs, len(training.history)))
        while not training.is_done(epochs):
            training.run_epoch()
            file.keep(len(training.history), training.state, last=training.is_done(epochs))
            bar.set_postfix(elbo=f"{training.history.elbo[-1]:.2f}")
            bar.update()
    training.take_best()
    return training.history


def _check_patience(patience: int | None, validation: Any) -> None:
    if patience is None:
        return
    check_count("patience", patience)
    if validation is None:
        raise ArgumentError(
            f"Expected held-out images with patience={patience}; got none. Write fit(..., validation=held_out)."
        )


def _constant(value: float) -> Schedule:
    return lambda step: value


def _adam(parameters: Sequence[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Adam in one kernel where torch has it."""
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(parameters, learning_rate, fused=fused)


def _own(optimizer: OptimizerFactory, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The user's optimiser. Pyro's is refused: it can be called too, but that would be a step."""
    fits = callable(optimizer) and not isinstance(optimizer, PyroOptim)
    made: Any = optimizer(parameters) if fits else optimizer
    if not fits or not isinstance(made, torch.optim.Optimizer):
        raise ArgumentTypeError(
            f"Expected optimizer to be a function of the parameters; got {type(made).__name__}. Write "
            "lambda parameters: torch.optim.Adam(parameters, 1e-3)."
        )
    return made


@dataclass
class _Training:
    """A training under way: all of its state, and one epoch of it."""

    vae: Autoencoder
    source: Minibatches
    validation: Tensor | None
    elbo: VAE_ELBO
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    history: History = field(default_factory=History)
    num_steps: int = 0  #: in all, for the values of the schedule that a checkpoint has
    learning_rate: float | None = None  #: None: the optimiser has its own
    patience: int | None = None
    best: dict[str, Tensor] = field(default_factory=dict)  #: the VAE's state after the best epoch, with patience

    def __post_init__(self) -> None:
        self.options = _options(self.optimizer)  # as it was made: a checkpoint would put its own in their place
        self.steps_between_looks = _STEPS_BETWEEN_LOOKS.get(self.vae.prior_loc.device.type, 1)
        every_step = self.steps_between_looks == 1
        self.trainer = Trainer(self.vae, self.optimizer, self._error, every_step=every_step)

    # ----------------------------------------------------------------------------------------------------------- steps

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return self.trainer.step

    def run_epoch(self) -> None:
        """Every image once, in a random order."""
        start = time.perf_counter()
        batches, parts, lengths = self.source.epoch(), [], []
        while window := list(itertools.islice(batches, self.steps_between_looks)):
            parts.append(self.run_window(window))
            lengths += [len(batch) for batch in window]
        counts = torch.tensor(lengths, dtype=torch.float64)
        loss, *terms = (counts / counts.sum() @ torch.cat(parts).double()).tolist()
        size = len(self.source) if self.vae.reduction == "sum" else 1
        reconstruction, kl, weight_kl = (value / size for value in terms)
        found = {"loss": loss, "reconstruction": reconstruction, "kl": kl, "weight_kl": weight_kl}
        found |= {"elbo": reconstruction - kl - weight_kl, "kl_weight": self.elbo.kl_weight}
        if self.validation is not None:
            found["validation_elbo"] = self._validate(self.validation)
        found["seconds"] = time.perf_counter() - start
        for name, value in found.items():
            getattr(self.history, name).append(value)
        if self.patience is not None and self.history.best_epoch == len(self.history):
            self.best = copied_state(self.vae)

    def is_done(self, epochs: int) -> bool:
        """Whether all epochs were run, or the last best one is too long ago."""
        number = len(self.history)
        waited = 0 if self.patience is None or not number else number - self.history.best_epoch
        return number >= epochs or (self.patience is not None and waited >= self.patience)

    def take_best(self) -> None:
        """Give the VAE the parameters of the best epoch, with patience."""
        if self.best:
            self.vae.load_state_dict(self.best)

    def run_window(self, batches: Sequence[Tensor]) -> Tensor:
        """Some minibatches' steps, then one look at their loss; the terms of each step, ``[steps, 4]`` on the CPU."""
        for batch in batches:
            terms = self._terms(batch)
            self.trainer.watch(_row(terms))
            self.trainer.descend(terms.loss)
        return self.trainer.look()

    def _terms(self, batch: Tensor) -> Terms:
        self.elbo.kl_weight = self.schedule(self.step)
        # The programs without their param statements: the optimizer has the module's parameters already.
        return self.elbo.terms(self.vae._model, self.vae._guide, batch, len(self.source), None)

    def _error(self, step: int, row: Tensor) -> NonFiniteLossError:
        values = zip(("loss", *_TERMS), row.tolist(), strict=True)
        wrong = [f"{name} {value:g}" for name, value in values if not math.isfinite(value)]
        return NonFiniteLossError(
            f"Expected a finite loss; got {', '.join(wrong[1:] or wrong)} at step {step} (epoch "
            f"{len(self.history)}), both counted from 0. The parameters are {self.vae._health()}. Lower the "
            "learning rate, or scale the images."
        )

    def _validate(self, images: Tensor) -> float:
        """``reconstruction - kl`` for each image, from the same draws each time; the random state stays as it was."""
        elbo = VAE_ELBO("B" if self.vae.flow is None else "A")
        total = torch.zeros((), dtype=torch.float64, device=images.device)
        with seeded(0, images.device):
            for batch in images.split(max(self.source.batch_size, 1000)):
                terms = elbo.terms(self.vae._model, self.vae._guide, batch, None, None)
                size = len(batch) if self.vae.reduction == "mean" else 1
                total += (terms.reconstruction - terms.kl) * size
        return float(total) / len(images)

    # ----------------------------------------------------------------------------------------------------- checkpoints

    def start(self, path: str | os.PathLike[str] | None, every: int) -> Run:
        """Go on from the checkpoint, or write the first one."""
        file = Run(path, "vae.fit", every=every, data=self._data(), settings={} if path is None else self._settings())
        found = file.read()
        if found is None:
            file.keep(0, self.state)
            return file
        self.trainer.load_state(found)
        self.history = History(**found["history"])
        self.best = found.get("best", {})
        return file

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        best = {} if self.patience is None else {"best": self.best}
        return {**self.trainer.to_state(), "history": asdict(self.history), **best}

    def _data(self) -> dict[str, Any]:
        shapes = {name: list(value.shape) for name, value in self.vae.named_parameters()}
        return {"parameter shapes": shapes, "images": self.source.content, "validation": self.validation}

    def _settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with the first; a schedule by its values, as far as both runs go."""
        vae, elbo = self.vae, self.elbo
        names = ("input_shape", "latent_dim", "hidden", "likelihood", "network", "levels", "weight_prior", "reduction")
        settings = {name: getattr(vae, name) for name in names}
        settings |= {"context_dim": vae.context_dim}
        settings["flow"] = None if vae.flow is None else [type(layer).__name__ for layer in layers_of(vae.flow)]
        settings |= {"dtype": str(vae.prior_loc.dtype), "batch_size": self.source.batch_size}
        settings |= {"optimizer": type(self.optimizer).__name__, "learning_rate": self.learning_rate}
        settings |= self.options | ({} if self.patience is None else {"patience": self.patience})
        steps = [step for step in _STEPS_COMPARED if step < self.num_steps]
        settings |= {f"kl_weight at step {step}": float(self.schedule(step)) for step in steps}
        settings |= {"closed_form": elbo.closed_form, "free_bits": elbo.free_bits, "num_particles": elbo.num_particles}
        return settings


def _options(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the optimiser was made with: its rate, its weight decay, … of each group of parameters."""
    groups = optimizer.param_groups
    options = {
        f"an optimiser of {name}" + (f" (group {number})" if number else ""): _plain(value)
        for number, group in enumerate(groups)
        for name, value in group.items()
        if name not in _NOT_OPTIONS
    }
    return {"groups of parameters": len(groups), **options}


def _plain(value: Any) -> Any:
    """A number for a tensor with one, and a list for a tuple."""
    if isinstance(value, Tensor):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _row(terms: Terms) -> Tensor:
    """The loss and its terms, without the graph, ``[4]``."""
    with torch.no_grad():
        return torch.stack([terms.loss, terms.reconstruction, terms.kl, terms.weight_kl])
