"""Figures of docs/vae.md: annealing and free bits, a posterior over weights with few data, and two estimators."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_latent.gradient.estimators import AnalyticKLELBO, PathwiseELBO, estimator_variance
from pyro_latent.models.vae import (
    VAE,
    Bound,
    anneal_linearly,
    binarize,
    diagnose,
    fit,
    importance_weighted_bounds,
    load_digits,
)

from .seeds import SEEDS, less, ranged
from .timing import markdown

TRAININGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "`kl_weight=anneal_linearly(900)`": {"kl_weight": anneal_linearly(900)},
    "`free_bits=0.5`": {"free_bits": 0.5},
}
PRIORS: dict[str, float | None] = {"point estimate": None, "`weight_prior=1.0`": 1.0, "`weight_prior=0.3`": 0.3}
EPOCHS = (200, 400, 1000)
NUM_SEEN, NUM_HELD_OUT = 200, 1000
STOPS = (0, 1, 10, 100)


def run() -> str:
    """The page's tables."""
    return "\n\n".join([collapse(), few_data(), scatter()])


# ------------------------------------------------------------------------------------------------------------- collapse


def collapse() -> str:
    """All digits, ten dimensions, 64 hidden units, 100 epochs, three ways to train."""
    images, _ = load_digits()
    found: dict[str, list[list[float]]] = {}
    for name, options in TRAININGS.items():
        for seed in SEEDS:
            pyro.set_rng_seed(seed)
            vae = VAE((8, 8), 10, hidden=(64,))
            fit(vae, images, epochs=100, **options)
            d = diagnose(vae, images, num_samples=20)
            large = int((d.kl_per_dimension > 0.1).sum())
            found.setdefault(name, []).append([d.elbo, d.kl, int(d.active.sum()), large])
    plain = [row[0] for row in found["plain"]]
    rows = []
    for name, by_seed in found.items():
        elbo, kl, active, used = (list(column) for column in zip(*by_seed, strict=True))
        rows.append([name, ranged(elbo), ranged(less(elbo, plain)), ranged(kl), ranged(active, 0), ranged(used, 0)])
    heading = ["training", "ELBO", "less the plain one's", "KL", "active of 10", "dimensions above 0.1 nats"]
    return f"## Collapse\n\nAll 1,797 digits, 10 dimensions, 64 hidden units, 100 epochs.\n\n{markdown(heading, rows)}"


# ------------------------------------------------------------------------------------------------------------- few data


def few_data() -> str:
    """A posterior over the decoder's weights beside a point estimate, from 200 images."""
    found = {name: [course(prior, seed) for seed in SEEDS] for name, prior in PRIORS.items()}
    rows = []
    for name, by_seed in found.items():
        tight = [[bounds[1].mean for bounds in run] for run in by_seed]  # L_500 at each stop
        columns = [list(column) for column in zip(*tight, strict=True)]
        rows.append(
            [
                name,
                *map(ranged, columns),
                ranged([run[-1][0].mean for run in by_seed]),
                ranged(less(columns[0], columns[-1])),
                ranged([max(run) for run in tight]),
            ]
        )
    last = {name: [run[-1][1] for run in by_seed] for name, by_seed in found.items()}
    gains = "; ".join(
        f"{name} {ranged(less([b.mean for b in last[name]], [b.mean for b in last['point estimate']]))}"
        for name in list(PRIORS)[1:]
    )
    errors = [b.error for bounds in last.values() for b in bounds]
    heading = ["decoder", *(f"L_500 at {e:,} epochs" for e in EPOCHS), "L_1 at 1,000", "lost from 200 to 1,000", "best"]
    return (
        f"## Few data\n\n{NUM_SEEN} black and white digits, 8 dimensions, 200 hidden units; L_500 of {NUM_HELD_OUT:,} "
        f"others, in nats an image; the standard error over images is {min(errors):.2f} to {max(errors):.2f}.\n\n"
        f"{markdown(heading, rows)}\n\nL_500 at 1,000 epochs less the point estimate's: {gains}."
    )


def course(weight_prior: float | None, seed: int) -> list[tuple[Bound, Bound]]:
    """L_1 and L_500 of the held-out images at each of ``EPOCHS``; the seed draws the split and the pixels too."""
    images, held_out = few_digits(seed)
    pyro.set_rng_seed(seed)
    vae = VAE((8, 8), 8, hidden=(200,), weight_prior=weight_prior)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for epochs in EPOCHS:
            fit(vae, images, epochs=epochs, checkpoint=Path(folder) / "vae.pt", checkpoint_every=max(EPOCHS))
            loose, tight = importance_weighted_bounds(vae, held_out, (1, 500))
            found.append((loose, tight))
    return found


def few_digits(seed: int) -> tuple[Tensor, Tensor]:
    """Black and white digits to train on, and others."""
    generator = torch.Generator().manual_seed(seed)
    images = binarize(load_digits()[0], generator)[torch.randperm(1797, generator=generator)]
    return images[:NUM_SEEN], images[NUM_SEEN : NUM_SEEN + NUM_HELD_OUT]


# ----------------------------------------------------------------------------------------------------------- estimators


def scatter() -> str:
    """How far single estimates A and B of the loss and of its gradient scatter along training."""
    found: dict[int, list[tuple[float, float]]] = {}
    images, _ = load_digits()
    for seed in SEEDS:
        pyro.set_rng_seed(seed)
        vae = VAE((8, 8), 2, hidden=(400,))
        with tempfile.TemporaryDirectory() as folder:
            for epochs in STOPS:
                fit(vae, images[:1500], epochs=epochs, checkpoint=Path(folder) / "vae.pt", checkpoint_every=100)
                found.setdefault(epochs, []).append(ratios(vae, images[:100]))
    rows = [[f"{epochs}", *(ranged(list(c)) for c in zip(*pairs, strict=True))] for epochs, pairs in found.items()]
    heading = ["epochs", "standard deviation of the loss", "of the encoder's gradient"]
    return (
        "## Estimators A and B\n\n1,500 digits, 2 dimensions, 400 hidden units; A's standard deviation over B's, 200 "
        f"estimates of one minibatch.\n\n{markdown(heading, rows)}"
    )


def ratios(vae: VAE, images: Tensor) -> tuple[float, float]:
    """A over B: standard deviations of the loss, and of the gradient by the encoder, all elements together."""
    pyro.clear_param_store()
    named = {"A": PathwiseELBO(), "B": AnalyticKLELBO()}
    with torch.random.fork_rng():
        report = estimator_variance(vae.model, vae.guide, images, estimators=named, num_samples=200)
    loss = [report[name].loss_variance for name in named]
    encoder = [
        sum(float(v.sum()) for n, v in report[name].gradient_variance.items() if "encoder" in n) for name in named
    ]
    pyro.clear_param_store()
    return (loss[0] / loss[1]) ** 0.5, (encoder[0] / encoder[1]) ** 0.5
