"""Figures of docs/flows.md: flows as densities, as posteriors, and as an autoencoder's posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch

from examples.flows import GUIDES, NUM_DRAWS, POSTERIORS, density_scores, fit_guide, splits
from pyro_latent.criticism import Weights
from pyro_latent.gradient.flows import FlowGuide, make_flow
from pyro_latent.models import two_modes
from pyro_latent.models.vae import VAE, fit, importance_weighted_bounds, load_digits

from .seeds import SEEDS, less, ranged
from .timing import markdown

STEPS = 600
#: A mode that gets fewer of the draws than this has not been found; each has half of the posterior.
LEAST_SHARE = 0.1


def run() -> str:
    """The page's tables."""
    return "\n\n".join([densities(), posteriors(), both_modes(), autoencoders()])


# ------------------------------------------------------------------------------------------------------------ densities


def densities() -> str:
    """Flows and mixtures on points that no fit has seen; each seed splits or draws the points anew."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in SEEDS:
        pyro.set_rng_seed(seed)
        for name, split in splits().items():
            scores, _ = density_scores(split, STEPS, seed)
            found.setdefault(name, []).append({label: float(values.mean()) for label, values in scores.items()})
    rows = []
    for label in found["Old Faithful"][0]:
        row = [label]
        for name, other in (("Old Faithful", "mixture of 2, by EM"), ("half circles", "mixture of 4, by EM")):
            values = [scores[label] for scores in found[name]]
            row += [ranged(values), ranged(less(values, [scores[other] for scores in found[name]]))]
        rows.append(row)
    heading = ["", "Old Faithful, 72 points", "less the mixture of 2", "half circles, 1,000", "less the mixture of 4"]
    return f"## Densities\n\nMean log density of a test point, {STEPS} steps, in nats.\n\n{markdown(heading, rows)}"


# ----------------------------------------------------------------------------------------------------------- posteriors


def finds_both(sample: Weights) -> bool:
    """Whether draws are in both quadrants with a mode."""
    share = float((sample.samples["first"] > 0).double().mean())
    return min(share, 1 - share) >= LEAST_SHARE


def posteriors() -> str:
    """Every guide of the example on both posteriors."""
    x = torch.tensor([4.0], dtype=torch.float64)
    rows = []
    for name, (model, evidence) in POSTERIORS.items():
        for label, make in GUIDES.items():
            fits = [fit_guide(model, make, x, STEPS, seed=seed) for seed in SEEDS]
            samples = [fit.sample for fit in fits]
            rows.append(
                [
                    f"{name}, {evidence(x).item():.3f}",
                    label,
                    ranged([s.elbo for s in samples]),
                    ranged([s.log_evidence for s in samples]),
                    ranged([s.effective_sample_size for s in samples], 0),
                    f"{sum(map(finds_both, samples))} of {len(samples)}" if name == "two modes" else "",
                    ranged([fit.seconds for fit in fits], 1),
                ]
            )
    heading = ["posterior", "q", "bound", "by importance", "effective draws", "both modes", "CPU seconds"]
    return f"## Posteriors\n\n{STEPS} steps of 16 particles, then {NUM_DRAWS:,} draws.\n\n{markdown(heading, rows)}"


def both_modes() -> str:
    """Whether more particles and a smaller rate find the second mode."""
    x = torch.tensor([4.0], dtype=torch.float64)
    options: Any = {"particles": 32, "rate": 0.01}
    samples = [fit_guide(two_modes.model, FlowGuide, x, STEPS, seed=seed, **options).sample for seed in SEEDS]
    return (
        f"Affine coupling with 32 particles and half the rate: bound {ranged([s.elbo for s in samples])}; both modes "
        f"in {sum(map(finds_both, samples))} of {len(samples)}."
    )


# --------------------------------------------------------------------------------------------------------- autoencoders


#: The posteriors of an autoencoder with two latent dimensions: the flow, and the length of its context.
FLOWS: dict[str, Callable[[], tuple[Any, int | None]]] = {
    "Gaussian": lambda: (None, None),
    "planar, 4 layers": lambda: (make_flow("planar", 2, length=4), None),
    "affine coupling, 4 layers": lambda: (make_flow("affine_coupling", 2, length=4, hidden=(16,)), None),
    "affine autoregressive, 4 layers, context of 8": lambda: (
        make_flow("affine_autoregressive", 2, length=4, hidden=(16,), context_dim=8),
        8,
    ),
}


def autoencoders() -> str:
    """L_1 and L_100 of held-out digits with a Gaussian posterior and with flows."""
    digits = (load_digits()[0].flatten(1) > 7 / 16).float()
    found: dict[str, list[tuple[float, float]]] = {}
    for name, make in FLOWS.items():
        for seed in SEEDS:
            generator = torch.Generator().manual_seed(seed)
            images = digits[torch.randperm(len(digits), generator=generator)]
            pyro.set_rng_seed(seed)
            flow, context_dim = make()
            vae = VAE((64,), 2, hidden=(64,), flow=flow, context_dim=context_dim)
            fit(vae, images[:1400], epochs=140, batch_size=128, learning_rate=3e-3, estimator="A")
            loose, tight = importance_weighted_bounds(vae, images[1400:], (1, 100))
            found.setdefault(name, []).append((loose.mean, tight.mean))
    rows = []
    for name, by_seed in found.items():
        row = [name]
        for values, base in zip(zip(*by_seed, strict=True), zip(*found["Gaussian"], strict=True), strict=True):
            row += [ranged(values), ranged(less(values, base))]
        rows.append(row)
    heading = ["posterior", "L_1", "less the Gaussian's", "L_100", "less the Gaussian's"]
    return (
        "## Autoencoders\n\nBlack and white digits, 2 dimensions, 64 hidden units, 140 epochs of 1,400; 397 held "
        f"out, in nats an image.\n\n{markdown(heading, rows)}"
    )
