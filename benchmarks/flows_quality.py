"""Figures of docs/flows.md: flows as densities, as posteriors, and as an autoencoder's posterior."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from examples.flows import GUIDES, POSTERIORS, gaussian_score, half_circles, mixture_score, old_faithful
from pyro_latent.criticism import Weights, importance_sampling
from pyro_latent.gradient.flows import FlowDensity, FlowGuide, make_flow
from pyro_latent.models import two_modes
from pyro_latent.models.vae import VAE, fit, importance_weighted_bounds, load_digits

from .seeds import SEEDS, less, ranged
from .timing import markdown

STEPS = 600
NUM_DRAWS = 20_000
KINDS = {"planar": 10, "affine_coupling": 6, "spline_coupling": 6}
#: A mode that gets fewer of the draws than this has not been found; each has half of the posterior.
LEAST_SHARE = 0.1


def run() -> str:
    """The page's tables."""
    return "\n\n".join([densities(), posteriors(), both_modes(), autoencoders()])


# ------------------------------------------------------------------------------------------------------------ densities


def splits() -> dict[str, tuple[Tensor, Tensor, Tensor, int | None]]:
    """Points to fit, to choose by, and to test with, and the size of a minibatch."""
    faithful, circles = old_faithful(), half_circles(4000)
    return {
        "Old Faithful": (faithful[:150], faithful[150:200], faithful[200:], None),
        "half circles": (circles[:2000], circles[2000:3000], circles[3000:], 256),
    }


def density_scores(train: Tensor, held_out: Tensor, test: Tensor, batch: int | None, seed: int) -> dict[str, float]:
    """The mean log density of the test points, by method."""
    seen = torch.cat([train, held_out])
    scores = {"one Gaussian": gaussian_score(seen, test)}
    scores |= {f"mixture of {k}, by `EM`": mixture_score(seen, test, k) for k in (2, 4)}
    for kind, length in KINDS.items():
        torch.manual_seed(seed)
        density = FlowDensity(2, kind, length=length)
        density.fit(train, held_out=held_out, max_steps=STEPS, batch_size=batch, learning_rate=1e-2)
        scores[f"flow, {kind.replace('_', ' ')}, {length} layers"] = density.log_prob(test).detach()
    return {name: float(values.mean()) for name, values in scores.items()}


def densities() -> str:
    """Flows and mixtures on points that no fit has seen; each seed splits or draws the points anew."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in SEEDS:
        pyro.set_rng_seed(seed)
        for name, split in splits().items():
            found.setdefault(name, []).append(density_scores(*split, seed))
    rows = []
    for label in found["Old Faithful"][0]:
        row = [label]
        for name, other in (("Old Faithful", "mixture of 2, by `EM`"), ("half circles", "mixture of 4, by `EM`")):
            values = [scores[label] for scores in found[name]]
            row += [ranged(values), ranged(less(values, [scores[other] for scores in found[name]]))]
        rows.append(row)
    heading = ["", "Old Faithful, 72 points", "less the mixture of 2", "half circles, 1,000", "less the mixture of 4"]
    return f"## Densities\n\nMean log density of a test point, {STEPS} steps, in nats.\n\n{markdown(heading, rows)}"


# ----------------------------------------------------------------------------------------------------------- posteriors


def fitted(
    model: Callable[..., Any], make: Callable[[Any], Any], x: Tensor, seed: int, particles: int = 16, rate: float = 0.02
) -> tuple[Weights, float]:
    """The weighted draws of a guide after SVI whose rate falls to a tenth, and the CPU seconds of the fit."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = make(model)
    adam = pyro.optim.ClippedAdam({"lr": rate, "lrd": 0.1 ** (1 / STEPS)})
    svi = SVI(model, guide, adam, Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1))
    start = time.process_time()
    for _ in range(STEPS):
        svi.step(x)
    seconds = time.process_time() - start
    return importance_sampling(model, guide, x, num_samples=NUM_DRAWS, keep_samples=True), seconds


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
            fits = [fitted(model, make, x, seed) for seed in SEEDS]
            samples = [sample for sample, _ in fits]
            rows.append(
                [
                    f"{name}, {evidence(x).item():.3f}",
                    label,
                    ranged([s.elbo for s in samples]),
                    ranged([s.log_evidence for s in samples]),
                    ranged([s.effective_sample_size for s in samples], 0),
                    f"{sum(map(finds_both, samples))} of {len(samples)}" if name == "two modes" else "",
                    ranged([seconds for _, seconds in fits], 1),
                ]
            )
    heading = ["posterior", "q", "bound", "by importance", "effective draws", "both modes", "CPU seconds"]
    return f"## Posteriors\n\n{STEPS} steps of 16 particles, then {NUM_DRAWS:,} draws.\n\n{markdown(heading, rows)}"


def both_modes() -> str:
    """Whether more particles and a smaller rate find the second mode."""
    x = torch.tensor([4.0], dtype=torch.float64)
    samples = [fitted(two_modes.model, FlowGuide, x, seed, 32, 0.01)[0] for seed in SEEDS]
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
