"""Normalizing flows beside Gaussians: as posteriors of two bent densities, and as densities of data.

The first table fits the same two models by mean field, by one full Gaussian and by flows, with the same optimizer,
steps and particles, and scores each by 20,000 draws: the bound, the evidence that importance sampling makes of it, and
the exact evidence. The second scores flows and Gaussian mixtures on points that no fit has seen. Writes ``flows.png``
and ``flow_density.png``.

python examples/flows.py --out demo-output
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from pyro_latent import EM
from pyro_latent.criticism import Weights, importance_sampling
from pyro_latent.gradient.flows import FlowDensity, FlowGuide
from pyro_latent.models import gmm, two_modes
from pyro_latent.particles import Particles

DATA = Path(__file__).parent / "data" / "old_faithful.csv"
STYLE: Any = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 8}
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
    """A fitted guide: its weighted draws, and the seconds of its fit."""

    sample: Weights
    seconds: float

    @property
    def error(self) -> float:
        """The standard error of the bound."""
        return float(self.sample.log_weights.std() / math.sqrt(self.sample.num_samples))


def fit_guide(model: Callable[..., Any], make: Callable[[Any], Any], x: Tensor, steps: int) -> Posterior:
    """SVI with sixteen particles a step, the rate falling to a tenth; then 20,000 draws from a common seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = make(model)
    adam = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.1 ** (1 / steps)})
    svi = SVI(model, guide, adam, Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1))
    start = time.perf_counter()
    for _ in range(steps):
        svi.step(x)
    seconds = time.perf_counter() - start
    torch.manual_seed(1)
    return Posterior(importance_sampling(model, guide, x, num_samples=20_000, keep_samples=True), seconds)


def compare_posteriors(x: Tensor, steps: int) -> dict[str, dict[str, Posterior]]:
    """Every guide on every posterior, and the table."""
    found: dict[str, dict[str, Posterior]] = {}
    for name, (model, evidence) in POSTERIORS.items():
        exact = evidence(x).item()
        print(f"{name}: exact evidence {exact:.3f}")
        print(f"  {'q':<22}  {'bound':>16}  {'by importance':>16}  {'ESS':>6}  seconds")
        found[name] = {}
        for label, make in GUIDES.items():
            fit = found[name][label] = fit_guide(model, make, x, steps)
            bound = f"{fit.sample.elbo:.3f} ± {fit.error:.3f}"
            estimate = f"{fit.sample.log_evidence:.3f} ± {fit.sample.standard_error:.3f}"
            size = fit.sample.effective_sample_size
            print(f"  {label:<22}  {bound:>16}  {estimate:>16}  {size:6.0f}  {fit.seconds:7.1f}", flush=True)
    return found


def draw_posteriors(x: Tensor, found: dict[str, dict[str, Posterior]], path: Path) -> None:
    """A row a posterior, a column a q: contours of the density, and draws."""
    axis = torch.linspace(-5, 5, 201, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 4.4), layout="compressed")
        rows = figure.subplots(2, 3, sharex=True, sharey=True)
        for row, (name, (model, _)) in zip(rows, POSTERIORS.items(), strict=True):
            values = {"first": points[:, 0], "second": points[:, 1]}
            density = Particles(model, None, (x,), {}).log_joint(values).softmax(0).reshape(201, 201).mT
            for axes, label in zip(row, DRAWN, strict=True):
                axes.contourf(
                    axis, axis, density, levels=[density.max() * t for t in (0.05, 0.3, 0.6, 1)], cmap="Greys"
                )
                draws = found[name][label].sample.samples
                axes.plot(draws["first"][:400], draws["second"][:400], ".", color="#D55E00", markersize=2)
                axes.set(aspect="equal", xlim=(-5, 5), ylim=(-5, 5), title=f"{name}: {label}")
                axes.set(xlabel="first", ylabel="second")
                axes.label_outer()
        figure.savefig(path, dpi=130)


def old_faithful() -> Tensor:
    """Duration and waiting time in minutes, ``[272, 2]``, shuffled."""
    with DATA.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    data = torch.tensor([[float(cell) for cell in row] for row in rows], dtype=torch.float64)
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


def compare_densities(steps: int) -> dict[str, tuple[FlowDensity, Tensor]]:
    """Flows and mixtures on points set apart for the test, and the table."""
    pyro.set_rng_seed(0)
    faithful, circles = old_faithful(), half_circles(4000)
    splits = {
        "Old Faithful": (faithful[:150], faithful[150:200], faithful[200:], None),
        "half circles": (circles[:2000], circles[2000:3000], circles[3000:], 256),
    }
    shown = {}
    print(f"{'log density of a test point, nats':<36}" + "".join(f"{name:>18}" for name in splits))
    scores: dict[str, list[Tensor]] = {}
    for name, (train, held_out, test, batch) in splits.items():
        seen = torch.cat([train, held_out])
        scores.setdefault("one Gaussian", []).append(gaussian_score(seen, test))
        for components in (2, 4):
            scores.setdefault(f"mixture of {components} by EM", []).append(mixture_score(seen, test, components))
        for kind in ("planar", "affine_coupling", "spline_coupling"):
            torch.manual_seed(0)
            density = FlowDensity(2, kind, length=10 if kind == "planar" else 6)
            density.fit(train, held_out=held_out, max_steps=steps, batch_size=batch, learning_rate=1e-2)
            scores.setdefault(f"flow, {kind.replace('_', ' ')}", []).append(density.log_prob(test).detach())
            if kind == "affine_coupling":
                shown[name] = density, train
    for label, columns in scores.items():
        cells = (f"{v.mean():8.3f} ± {v.std() / math.sqrt(len(v)):.3f}" for v in columns)
        print(f"{label:<36}" + "".join(f"{cell:>18}" for cell in cells))
    return shown


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
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 2.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_density(left, *shown["Old Faithful"], "Old Faithful")
        left.set(xlabel="duration of the eruption (min)", ylabel="time to the next one (min)")
        draw_density(right, *shown["half circles"], "two half circles")
        right.set(xlabel="first column", ylabel="second column")
        figure.savefig(path, dpi=130)


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
    draw_densities(compare_densities(options.steps), options.out / "flow_density.png")
    return found


if __name__ == "__main__":
    main()
