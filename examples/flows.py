"""Normalizing flows beside Gaussians: as posteriors of two bent densities, and as densities of data.

The first table fits the same two models by mean field, by one full Gaussian and by flows, with the same optimizer,
steps and particles, and scores each by 20,000 draws: the bound, the evidence that importance sampling makes of it, and
the exact evidence. The second scores flows and Gaussian mixtures on points that no fit has seen. Writes ``flows.png``,
``flow_density.png`` and ``flow-layers.png``, draws of a flow from layer to layer.

python examples/flows.py --out demo-output
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from matplotlib.axes import Axes
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from pyro_latent import EM
from pyro_latent.criticism import Weights, importance_sampling
from pyro_latent.criticism.pictures import looks, picture, save
from pyro_latent.gradient.flows import FlowDensity, FlowGuide, Reverse
from pyro_latent.gradient.flows.layers import layers_of
from pyro_latent.models import datasets, gmm, two_modes
from pyro_latent.particles import Particles
from pyro_latent.tables import text_table

NUM_DRAWS = 20_000
KINDS = {"planar": 10, "affine_coupling": 6, "spline_coupling": 6}
DRAWN = ("mean field", "full Gaussian", "flow, affine coupling")
GUIDES: dict[str, Callable[[Any], Any]] = {
    "mean field": AutoNormal,
    "full Gaussian": AutoMultivariateNormal,
    "flow, planar": lambda model: FlowGuide(model, "planar", length=8),
    "flow, affine coupling": lambda model: FlowGuide(model, "affine_coupling"),
    "flow, spline coupling": lambda model: FlowGuide(model, "spline_coupling"),
}
POSTERIORS: dict[str, tuple[Any, Any]] = {
    "two modes": (two_modes.model, two_modes.log_evidence),
    "banana": (two_modes.banana_model, two_modes.banana_log_evidence),
}


@dataclass(frozen=True)
class Posterior:
    """A fitted guide: its weighted draws, and the CPU seconds of its fit."""

    sample: Weights
    seconds: float


def fit_guide(
    model: Callable[..., Any],
    make: Callable[[Any], Any],
    x: Tensor,
    steps: int,
    *,
    seed: int = 0,
    particles: int = 16,
    rate: float = 0.02,
) -> Posterior:
    """SVI with ``particles`` draws a step, the rate falling to a tenth; then 20,000 draws from a common seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = make(model)
    adam = pyro.optim.ClippedAdam({"lr": rate, "lrd": 0.1 ** (1 / steps)})
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, adam, elbo)
    start = time.process_time()
    for _ in range(steps):
        svi.step(x)
    seconds = time.process_time() - start
    torch.manual_seed(seed + 1)
    return Posterior(importance_sampling(model, guide, x, num_samples=NUM_DRAWS, keep_samples=True), seconds)


def compare_posteriors(x: Tensor, steps: int) -> dict[str, dict[str, Posterior]]:
    """Every guide on every posterior, and the table."""
    found: dict[str, dict[str, Posterior]] = {}
    for name, (model, evidence) in POSTERIORS.items():
        exact = evidence(x).item()
        print(f"{name}: exact evidence {exact:.3f}")
        rows = [["q", "bound", "by importance", "ESS", "seconds"]]
        for label, make in GUIDES.items():
            fit = fit_guide(model, make, x, steps)
            found.setdefault(name, {})[label] = fit
            bound = f"{fit.sample.elbo:.3f} ± {fit.sample.elbo_error:.3f}"
            estimate = f"{fit.sample.log_evidence:.3f} ± {fit.sample.standard_error:.3f}"
            rows.append([label, bound, estimate, f"{fit.sample.effective_sample_size:.0f}", f"{fit.seconds:.1f}"])
        print(text_table(rows), flush=True)
    return found


def draw_posteriors(x: Tensor, found: dict[str, dict[str, Posterior]], path: Path) -> None:
    """A row a posterior, a column a q: contours of the density, and draws."""
    axis = torch.linspace(-5, 5, 201, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    look = looks(DRAWN)
    with picture(6.8, 4.8, 2, 3) as (figure, rows):
        for row, (name, (model, _)) in zip(rows, POSTERIORS.items(), strict=True):
            values = {"first": points[:, 0], "second": points[:, 1]}
            density = Particles(model, None, (x,), {}).log_joint(values).softmax(0).reshape(201, 201).mT
            for axes, label in zip(row, DRAWN, strict=True):
                axes.contourf(
                    axis, axis, density, levels=[density.max() * t for t in (0.05, 0.3, 0.6, 1)], cmap="Greys"
                )
                draws = found[name][label].sample.samples
                axes.plot(draws["first"][:400], draws["second"][:400], ".", color=look[label].color, markersize=2)
                axes.set(aspect="equal", xlim=(-5, 5), ylim=(-5, 5), title=f"{name}: {label}")
                axes.set(xlabel="first", ylabel="second")
                axes.label_outer()
        figure.supxlabel("grey: 5, 30 and 60 % of the greatest density; dots: draws of q", fontsize=8)
    save(figure, path)


def old_faithful() -> Tensor:
    """Duration and waiting time in minutes, ``[272, 2]``, shuffled."""
    data = datasets.old_faithful()
    return data[torch.randperm(len(data))]


def half_circles(count: int) -> Tensor:
    """Two interleaved half circles with noise, ``[count, 2]``."""
    angle = math.pi * torch.rand(count, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], -1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], -1)
    points = torch.where(torch.rand(count, 1) < 0.5, upper, lower)
    return points + 0.08 * torch.randn(count, 2, dtype=torch.float64)


def gaussian_score(train: Tensor, test: Tensor) -> Tensor:
    """log density of each test point under one Gaussian fitted to the training points."""
    return torch.distributions.MultivariateNormal(train.mean(0), train.mT.cov(correction=0)).log_prob(test)


def mixture_score(train: Tensor, test: Tensor, components: int) -> Tensor:
    """The same under a mixture by EM, the best of five starts."""
    pyro.clear_param_store()
    em = EM(gmm.ml_model, restarts=5)
    em.run(train, components, reg_covar=1e-6 * train.var().item(), max_steps=300)
    theta = em.guide.params()
    density = torch.distributions.MultivariateNormal(theta["mean"], theta["covariance"])
    return torch.logsumexp(theta["weights"].log() + density.log_prob(test[:, None]), -1)


def splits() -> dict[str, tuple[Tensor, Tensor, Tensor, int | None]]:
    """Points to fit, to choose by, and to test with, and the size of a minibatch."""
    faithful, circles = old_faithful(), half_circles(4000)
    return {
        "Old Faithful": (faithful[:150], faithful[150:200], faithful[200:], None),
        "half circles": (circles[:2000], circles[2000:3000], circles[3000:], 256),
    }


def density_scores(
    split: tuple[Tensor, Tensor, Tensor, int | None], steps: int, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, FlowDensity]]:
    """The log density of each test point, by method, and the flows, by kind."""
    train, held_out, test, batch = split
    seen = torch.cat([train, held_out])
    scores = {"one Gaussian": gaussian_score(seen, test)}
    scores |= {f"mixture of {k}, by EM": mixture_score(seen, test, k) for k in (2, 4)}
    flows = {}
    for kind, length in KINDS.items():
        torch.manual_seed(seed)
        density = flows[kind] = FlowDensity(2, kind, length=length)
        density.fit(train, held_out=held_out, max_steps=steps, batch_size=batch, learning_rate=1e-2)
        scores[f"flow, {kind.replace('_', ' ')}, {length} layers"] = density.log_prob(test).detach()
    return scores, flows


def compare_densities(steps: int) -> dict[str, tuple[FlowDensity, Tensor]]:
    """Flows and mixtures on points set apart for the test, and the table."""
    pyro.set_rng_seed(0)
    given = splits()
    found = {name: density_scores(split, steps) for name, split in given.items()}
    rows = [["log density of a test point, nats", *found]]
    for label in found["Old Faithful"][0]:
        values = [scores[label] for scores, _ in found.values()]
        rows.append([label, *(f"{v.mean():.3f} ± {v.std() / math.sqrt(len(v)):.3f}" for v in values)])
    print(text_table(rows))
    return {name: (flows["affine_coupling"], given[name][0]) for name, (_, flows) in found.items()}


def draw_density(axes: Axes, density: FlowDensity, data: Tensor, title: str) -> None:
    """The data over levels of the fitted density."""
    low, high = data.min(0).values, data.max(0).values
    margin = 0.15 * (high - low)
    first, second = (
        torch.linspace(a, b, 200, dtype=torch.float64) for a, b in zip(low - margin, high + margin, strict=True)
    )
    with torch.no_grad():
        values = density.log_prob(torch.cartesian_prod(first, second)).exp().reshape(200, 200).mT
    levels = [values.max() * level for level in (0.01, 0.05, 0.15, 0.3, 0.5, 0.75, 1)]
    axes.contourf(first, second, values, levels=levels, cmap="Blues")
    axes.plot(*data[:400].mT, ".", color="0.2", markersize=1.5)
    axes.set_title(title)


def draw_densities(shown: dict[str, tuple[FlowDensity, Tensor]], path: Path) -> None:
    with picture(6.2, 2.7, 1, 2) as (figure, ((left, right),)):
        draw_density(left, *shown["Old Faithful"], "Old Faithful")
        left.set(xlabel="duration of the eruption (min)", ylabel="time to the next one (min)")
        draw_density(right, *shown["half circles"], "two half circles")
        right.set(xlabel="first column", ylabel="second column")
    save(figure, path)


def after_layers(density: FlowDensity, draws: int, after: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Standard normal draws, as they are after so many of the layers that make data of them, in which the coordinates
    that change places do not count; ``[draws, D]`` each.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        z = torch.randn(draws, density.dim, dtype=density.shift.dtype)
        found = [z]
        for layer in reversed(layers_of(density.flow)):
            z = layer.inv(z)
            if isinstance(layer, Reverse):
                found[-1] = z
            else:
                found.append(z)
    found[-1] = density.shift + density.spread * z
    return [found[count] for count in after]


def draw_layers(density: FlowDensity, path: Path) -> None:
    """The same draws before the flow, within it, and as data; each keeps the color of where it began."""
    count = sum(not isinstance(layer, Reverse) for layer in layers_of(density.flow))
    shown = sorted({0, count // 3, 2 * count // 3, count})
    stages = after_layers(density, 2000, shown)
    angle = torch.atan2(stages[0][:, 1], stages[0][:, 0])
    with picture(8.0, 2.5, 1, len(shown)) as (figure, (row,)):
        for axes, number, stage in zip(row, shown, stages, strict=True):
            axes.scatter(*stage.mT, c=angle, cmap="hsv", s=1.2, linewidths=0)
            axes.set(title="standard normal draws" if number == 0 else f"after {number} layers", xlabel="first column")
        row[0].set_ylabel("second column")
        row[-1].set_title(f"after all {count}: data")
    save(figure, path, dpi=105)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, Posterior]]:
    """Fit, print and draw; returns the posteriors by model and guide."""
    parser = argparse.ArgumentParser(description="Normalizing flows beside Gaussians.")
    parser.add_argument("--steps", type=int, default=600, help="steps of each fit (default: 600)")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the pictures")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    x = torch.tensor([4.0], dtype=torch.float64)
    found = compare_posteriors(x, options.steps)
    draw_posteriors(x, found, options.out / "flows.png")
    densities = compare_densities(options.steps)
    draw_densities(densities, options.out / "flow_density.png")
    draw_layers(densities["half circles"][0], options.out / "flow-layers.png")
    return found


if __name__ == "__main__":
    main()
