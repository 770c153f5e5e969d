"""A variational autoencoder with two latent dimensions on digits, trained by estimators A and B, in pictures.

    python examples/vae_digits.py --epochs 100 --out vae-output
    python examples/vae_digits.py --epochs 1000 --latent 2 128
    python examples/vae_digits.py --mnist FOLDER --device cuda

The digits are scikit-learn's (8 × 8), or MNIST's from a folder that holds its four IDX files. Estimator A takes the
KL divergence at the draw of z, B in closed form: [4] (152) and (153), and §3.6, which compares their loss curves. Both
start at the same network and see the same minibatches. It prints a table and writes four pictures:

- ``losses.png``: -ELBO of both along training, and how far single draws of each estimate scatter; a row for each number
  of latent dimensions;
- ``reconstructions.png``: held-out images above what the decoder makes of them;
- ``samples.png``: images drawn from the model;
- ``latent_plane.png``: where the encoder puts held-out images, and what the decoder draws across the plane, where there
  are two latent dimensions. The last three pictures are those of the first number of dimensions.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_latent.criticism.pictures import PALETTE
from pyro_latent.models.vae import (
    VAE,
    VAE_ELBO,
    History,
    PosteriorCollapseWarning,
    diagnose,
    fit,
    importance_weighted_bounds,
    load_digits,
    load_mnist,
)

ESTIMATORS = ("A", "B")
COLORS = {"A": PALETTE[1], "B": PALETTE[0]}
LABELS = {"A": "A: KL at the draw", "B": "B: KL in closed form"}
HELD_OUT = 297
DRAWS = 200


@dataclass
class Images:
    """Training images and held-out ones, each ``[N, height, width]`` in [0, 1], and the held-out ones' classes."""

    train: Tensor
    test: Tensor
    classes: Tensor


@dataclass
class Fit:
    """A trained VAE, its history, and by epoch the spread of single estimates of the ELBO of a minibatch."""

    estimator: str
    latent: int
    vae: VAE
    history: History = field(default_factory=History)
    spread: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0


def read_images(folder: Path | None, device: torch.device) -> Images:
    """The digits with the last 297 held out, or MNIST with its own test images."""
    if folder is not None:
        (train, _), (test, classes) = load_mnist(folder), load_mnist(folder, "test")
    else:
        images, labels = load_digits()
        train, test, classes = images[:-HELD_OUT], images[-HELD_OUT:], labels[-HELD_OUT:]
    return Images(train.to(device), test.to(device), classes)


def stops(epochs: int) -> list[int]:
    """Epochs at which to look at the spread: 0, 1, 2, 5, 10, 20, 50, … and the last."""
    steps = (m * 10**e for e in range(10) for m in (1, 2, 5))
    return [0, *(s for s in steps if s < epochs), epochs]


def spread(fitted: Fit, images: Tensor) -> float:
    """Standard deviation of the estimate of one minibatch's ELBO, in nats for each image, at fixed parameters."""
    elbo = VAE_ELBO(fitted.estimator)  # type: ignore[arg-type]
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        values = [elbo.loss(fitted.vae.model, fitted.vae.guide, images) for _ in range(DRAWS)]
    return float(torch.tensor(values, dtype=torch.float64).std()) / len(images)


def train(estimator: str, images: Images, latent: int, hidden: Sequence[int], epochs: int, seed: int) -> Fit:
    """Train from the seed; pauses at the stops by way of a checkpoint."""
    pyro.set_rng_seed(seed)
    vae = VAE(images.train.shape[1:], latent, hidden=hidden).to(images.train.device)
    fitted = Fit(estimator, latent, vae)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for epoch in stops(epochs):
            fitted.history = fit(
                vae,
                images.train,
                epochs=epoch,
                estimator=estimator,  # type: ignore[arg-type]
                validation=images.test,
                checkpoint=Path(folder) / "vae.pt",
                checkpoint_every=max(1, epochs),
                progress=False,
            )
            fitted.spread[epoch] = spread(fitted, images.train[:100])
    fitted.seconds = time.perf_counter() - start
    return fitted


# ------------------------------------------------------------------------------------------------------------- pictures


def draw_losses(fits: Sequence[Fit], path: Path) -> None:
    """-ELBO of training and of held-out images by epoch; beside it the spread of single estimates; by latent size."""
    sizes = list(dict.fromkeys(fitted.latent for fitted in fits))
    figure = Figure(figsize=(9, 3.6 * len(sizes)), layout="constrained")
    rows = figure.subplots(len(sizes), 2, squeeze=False, sharex="col")
    for size, (left, right) in zip(sizes, rows, strict=True):
        draw_losses_of(size, [fitted for fitted in fits if fitted.latent == size], left, right)
    figure.savefig(path, dpi=110)


def draw_losses_of(latent: int, fits: Iterable[Fit], left: Axes, right: Axes) -> None:
    """The two panels of one number of latent dimensions."""
    for fitted in fits:
        color, epochs = COLORS[fitted.estimator], range(1, len(fitted.history) + 1)
        style = "-" if fitted.estimator == "A" else (0, (4, 2))
        label = LABELS[fitted.estimator]
        left.plot(epochs, [-e for e in fitted.history.elbo], color=color, linestyle=style, label=f"{label}, training")
        held_out = [-e for e in fitted.history.validation_elbo]
        left.plot(epochs, held_out, color=color, linestyle=style, alpha=0.45, label=f"{label}, held out")
        right.plot(list(fitted.spread), list(fitted.spread.values()), "o-", color=color, markersize=4, label=label)
    left.set(xscale="log", xlabel="epoch", ylabel="-ELBO (nats per image)", title=f"Loss, {latent} latent dimensions")
    right.set_xscale("symlog", linthresh=1)
    right.set(xlabel="epoch", ylabel="nats per image, over 100 images", title="Standard deviation of one estimate")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)


def montage(images: Tensor, columns: int) -> Tensor:
    """Images ``[N, height, width]`` side by side, with a gap of one pixel, in rows of ``columns``."""
    padded = torch.nn.functional.pad(images, (0, 1, 0, 1), value=0.5)
    rows = [torch.cat(list(row), -1) for row in padded.split(columns)]
    return torch.cat(rows, -2)[:-1, :-1].cpu()


def show(axes: Axes, images: Tensor, columns: int, title: str) -> None:
    axes.imshow(montage(images, columns).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def draw_reconstructions(vae: VAE, images: Images, path: Path) -> None:
    """Two dozen held-out images, each above its reconstruction at the posterior's mean."""
    seen = images.test[:24]
    with torch.no_grad():
        again = vae.mean_images(vae.posterior(seen).base_dist.loc)
    pairs = torch.cat([torch.cat([seen[i : i + 12], again[i : i + 12]]) for i in (0, 12)])
    figure = Figure(figsize=(8, 2.9), layout="constrained")
    show(figure.subplots(), pairs, 12, "Held-out images (rows 1, 3) and their reconstructions (rows 2, 4)")
    figure.savefig(path, dpi=110)


def draw_samples(vae: VAE, path: Path) -> None:
    """Images from the model: means of p(x | z) at draws of z from its prior, and draws of black and white pixels."""
    with torch.no_grad():
        z = vae.prior().sample((48,))
        means, draws = vae.mean_images(z), vae.pixels(z).sample()
    figure = Figure(figsize=(8, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    show(left, means, 8, "Mean of p(x | z), z drawn from N(0, I)")
    show(right, draws, 8, "x drawn from p(x | z), the same z")
    figure.savefig(path, dpi=110)


def draw_latent_plane(vae: VAE, images: Images, path: Path, side: int = 15) -> None:
    """Posterior means of held-out images by class, and decoded images at quantiles of the prior."""
    with torch.no_grad():
        means = vae.posterior(images.test).base_dist.loc.cpu()
        levels = torch.linspace(0.03, 0.97, side, device=images.test.device)
        quantiles = math.sqrt(2) * torch.erfinv(2 * levels - 1)
        grid = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(-1)
        decoded = vae.mean_images(grid)
    figure = Figure(figsize=(9.4, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    points = left.scatter(*means.T.numpy(), c=images.classes.numpy(), cmap="tab10", vmin=-0.5, vmax=9.5, s=12)
    figure.colorbar(points, cax=left.inset_axes((1.03, 0, 0.04, 1)), ticks=range(10), label="digit")
    left.set(xlabel="z₁", ylabel="z₂", title="Posterior means of held-out images", aspect="equal")
    show(right, decoded, side, "Decoded at quantiles of the prior, 3 % to 97 %")
    right.set_axis_on()
    right.set(xticks=[], yticks=[], xlabel="z₁, from left to right", ylabel="z₂, upwards")
    figure.savefig(path, dpi=110)


# ----------------------------------------------------------------------------------------------------------------- main


def report(fits: Iterable[Fit], images: Images) -> str:
    """A table: what each estimator reached on held-out images, and how long it took."""
    lines = ["latent  estimator  ELBO (train)  ELBO (held out)       L_500 (held out)   KL  active  seconds"]
    for fitted in fits:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PosteriorCollapseWarning)
            found = diagnose(fitted.vae, images.test, num_samples=10)
        (bound,) = importance_weighted_bounds(fitted.vae, images.test, (500,))
        lines.append(
            f"{fitted.latent:6d}  {fitted.estimator:>9}  {fitted.history.elbo[-1]:12.2f}  "
            f"{found.elbo:15.2f}  {bound.mean:12.2f} ± {bound.error:.2f}  {found.kl:8.2f}  "
            f"{int(found.active.sum()):6d}  {fitted.seconds:7.1f}"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a VAE on digits by two estimators, and draw what it learned.")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of each estimator (default: 100)")
    parser.add_argument(
        "--hidden", type=int, nargs="+", default=[400], help="units of each hidden layer (default: 400)"
    )
    parser.add_argument(
        "--latent", type=int, nargs="+", default=[2], help="latent dimensions, of one VAE or more (default: 2)"
    )
    parser.add_argument("--mnist", type=Path, help="a folder with MNIST's IDX files, in the place of the digits")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (default: cpu)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("vae-output"), help="folder for the pictures")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"Expected --epochs of 1 or more; got {options.epochs}.")
    if min(options.latent) < 1:
        parser.error(f"Expected --latent of 1 or more; got {options.latent}.")
    return options


def main(arguments: Sequence[str] | None = None) -> list[Fit]:
    """Train by both estimators, report, and draw; returns the fits."""
    options = parse(arguments)
    images = read_images(options.mnist, torch.device(options.device))
    print(
        f"{len(images.train)} images of {tuple(images.train.shape[1:])}, {len(images.test)} held out; {options.device}"
    )
    fits = [
        train(name, images, latent, options.hidden, options.epochs, options.seed)
        for latent in options.latent
        for name in ESTIMATORS
    ]
    print(report(fits, images))
    options.out.mkdir(parents=True, exist_ok=True)
    best = fits[len(ESTIMATORS) - 1].vae
    draw_losses(fits, options.out / "losses.png")
    draw_reconstructions(best, images, options.out / "reconstructions.png")
    draw_samples(best, options.out / "samples.png")
    names = ["losses.png", "reconstructions.png", "samples.png"]
    if options.latent[0] == 2:
        draw_latent_plane(best, images, options.out / "latent_plane.png")
        names.append("latent_plane.png")
    print(f"Wrote {', '.join(names[:-1])} and {names[-1]} in {options.out}.")
    return fits


if __name__ == "__main__":
    main()
