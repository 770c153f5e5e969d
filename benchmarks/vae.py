"""A step of a VAE of MNIST's size through Pyro, beside the same step in plain PyTorch.

``python -m benchmarks.vae`` prints the report alone, by the wall clock. ``python -m benchmarks.vae cpu`` counts CPU
seconds of the process, which works on one thread: for a machine that others share.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_latent.models.vae import VAE, VAE_ELBO
from pyro_latent.models.vae.objective import _Recorder
from pyro_latent.models.vae.reading import Minibatches
from pyro_latent.models.vae.training import _Training

from .timing import Spread, interleaved, markdown, ratios

N, PIXELS, HIDDEN, LATENT, BATCH = 60_000, 784, 400, 20, 128
ROUNDS, REPEAT = 40, 5
THREADS = 2
LEARNING_RATE = 1e-3

Step = Callable[[], object]


class PlainVAE(nn.Module):
    """The networks and the loss of [4] (168), N / M times the sum over the minibatch, without Pyro."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS))

    def forward(self, images: Tensor) -> Tensor:
        loc, scale, z = self.encoded(images)
        return plain_loss(self.decoder(z), images, loc, scale)

    def encoded(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Location, scale and a draw of z."""
        loc, log_scale = self.encoder(images).chunk(2, -1)
        scale = log_scale.exp()
        return loc, scale, loc + scale * torch.randn_like(loc)


def plain_loss(logits: Tensor, images: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """N / M times -ELBO of a minibatch, with the divergence in closed form."""
    error = nn.functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
    kl = 0.5 * (loc.square() + scale.square() - 1).sum() - scale.log().sum()
    return (error + kl) * (N / BATCH)


def grey_images() -> Tensor:
    """As many grey values as MNIST has in 40 minibatches, a fifth of them not zero, ``[N', 784]``."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(40 * BATCH, PIXELS, generator=generator)
    return values * (torch.rand(values.shape, generator=generator) < 0.2)


def minibatches(images: Tensor) -> Callable[[], Tensor]:
    """Indices of minibatches, without end, where the images are."""
    orders = torch.randperm(len(images), device=images.device).split(BATCH)
    count = 0

    def take() -> Tensor:
        nonlocal count
        count += 1
        return orders[count % len(orders)]

    return take


def plain_step(images: Tensor, fused: bool) -> Step:
    """Forward, backward and Adam, and a look at the loss."""
    model, take = PlainVAE().to(images.device), minibatches(images)
    adam = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=fused)

    def step() -> float:
        loss = model(images[take()])
        adam.zero_grad()
        loss.backward()
        adam.step()
        return float(loss.item())

    return step


def fit_step(images: Tensor, fused: bool) -> Step:
    """The step that ``fit`` takes: both Pyro programs, estimator B, its check of the loss, and torch's Adam."""
    vae = VAE((PIXELS,), LATENT, hidden=(HIDDEN,)).to(images.device)
    adam = torch.optim.Adam(vae.parameters(), LEARNING_RATE, fused=fused)
    training = _Training(vae, Minibatches(images, BATCH), None, VAE_ELBO(), adam, lambda step: 1.0)
    take = minibatches(images)
    return lambda: training.run_window([images[take()]])


def estimator_step(images: Tensor, fused: bool) -> Step:
    """Pyro's own estimator with the KL in closed form, differentiated, and torch's Adam."""
    vae = VAE((PIXELS,), LATENT, hidden=(HIDDEN,), name=f"estimator_{fused}").to(images.device)
    adam = torch.optim.Adam(vae.parameters(), LEARNING_RATE, fused=fused)
    elbo, take = TraceMeanField_ELBO(), minibatches(images)

    def step() -> float:
        loss = elbo.differentiable_loss(vae.model, vae.guide, images[take()], num_images=N)
        adam.zero_grad()
        loss.backward()
        adam.step()
        return float(loss.item())

    return step


def svi_step(images: Tensor, name: str, elbo: object) -> Step:
    """``SVI.step`` with ``pyro.optim.Adam``."""
    vae = VAE((PIXELS,), LATENT, hidden=(HIDDEN,), name=name).to(images.device)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), elbo)
    take = minibatches(images)
    return lambda: svi.step(images[take()], num_images=N)


def table(
    images: Tensor, fused: bool, clock: Callable[[], float], rounds: int = ROUNDS, repeat: int = REPEAT
) -> tuple[str, Spread]:
    """A table of the steps with one kind of Adam, and how many times as long as plain PyTorch ``fit`` takes."""
    runs: dict[str, Step] = {
        "plain PyTorch": plain_step(images, fused),
        "`fit`": fit_step(images, fused),
        "`TraceMeanField_ELBO`, torch's Adam": estimator_step(images, fused),
    }
    if not fused:
        runs["`SVI.step`, `VAE_ELBO`"] = svi_step(images, "svi_ours", VAE_ELBO())
        runs["`SVI.step`, `TraceMeanField_ELBO`"] = svi_step(images, "svi", TraceMeanField_ELBO())
    seconds = interleaved(runs, rounds, repeat, warm=3, clock=clock)
    plain = seconds["plain PyTorch"]
    rows = [[name, Spread.of(s).scaled(1e3), ratios(s, plain).scaled(1)] for name, s in seconds.items()]
    return markdown(["one step", "milliseconds", "times plain PyTorch"], rows), ratios(seconds["`fit`"], plain)


def parts(images: Tensor, clock: Callable[[], float]) -> str:
    """A table of the forward pass of a step of ``fit``, beside what plain PyTorch does of it."""
    vae, elbo, batch = VAE((PIXELS,), LATENT, hidden=(HIDDEN,), name="parts"), VAE_ELBO(), images[:BATCH]
    guided, generated = _Recorder({}), _Recorder({})

    def guide() -> None:
        nonlocal guided
        with _Recorder({}) as guided:
            vae._guide(batch, N, None)

    def model() -> None:
        nonlocal generated
        with _Recorder(guided.sites) as generated:
            vae._model(batch, N, None)

    guide()
    model()
    plain = PlainVAE()
    loc, scale, z = plain.encoded(batch)
    logits = plain.decoder(z)
    pairs: dict[str, tuple[Step, Step]] = {
        "the guide's program": (guide, lambda: plain.encoded(batch)),
        "the model's program": (model, lambda: plain.decoder(z)),
        "the terms of the loss": (
            lambda: elbo._terms(generated.sites, guided.sites).loss,
            lambda: plain_loss(logits, batch, loc, scale),
        ),
    }
    rows = []
    for name, (ours, beside) in pairs.items():
        found = interleaved({"ours": ours, "plain": beside}, ROUNDS, REPEAT, warm=3, clock=clock)
        rest = Spread.of([a - b for a, b in zip(found["ours"], found["plain"], strict=True)])
        rows.append([name, *(Spread.of(each).scaled(1e3) for each in found.values()), rest.scaled(1e3)])
    return markdown(["forward", "milliseconds", "plain PyTorch", "the difference"], rows)


def run(clock: Callable[[], float] = time.perf_counter) -> str:
    """Time the steps with both kinds of Adam, and report."""
    pyro.clear_param_store()
    images = grey_images()
    with pyro.validation_enabled(False):
        default, ratio = table(images, False, clock)
        fused, fused_ratio = table(images, True, clock)
        forward = parts(images, clock)
    pyro.clear_param_store()
    return (
        f"## VAE {PIXELS}-{HIDDEN}-{LATENT}, batch {BATCH}, float32, KL in closed form\n\n"
        "Every row takes a minibatch by its indices, makes a step of Adam and reads the loss; validation is off.\n\n"
        f"torch's default Adam:\n\n{default}\n\nfused Adam, which `fit` takes by default:\n\n{fused}\n\n"
        f"`fit` takes {ratio.scaled(1)} times as long as plain PyTorch with the default Adam, and "
        f"{fused_ratio.scaled(1)} times with the fused one. The target is at most 1.15.\n\n"
        f"The forward pass of a step of `fit` in parts:\n\n{forward}"
    )


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    if sys.argv[1:] == ["cpu"]:
        torch.set_num_threads(1)
        print(run(time.process_time))
    elif not sys.argv[1:]:
        print(run())
    else:
        raise SystemExit("Expected `cpu` or nothing; for all by the wall clock write python -m benchmarks.vae.")
