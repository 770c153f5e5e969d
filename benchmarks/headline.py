"""Seconds to come within one nat of the best ELBO, by coordinate ascent and by the best SVI of a grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from examples.compare_guides import methods
from pyro_latent.criticism import Race, Runner, race
from pyro_latent.models import gmm

from .timing import Spread, markdown

NUM_POINTS, DIM, NUM_COMPONENTS = 10_000, 2, 5
MAX_STEPS = 800
REPEATS = 3
CAVI = "CAVI, joint blocks"


def overlapping_clusters() -> Tensor:
    """Points of five overlapping Gaussians, ``[N, 2]``, float64."""
    generator = torch.Generator().manual_seed(0)
    centers = 2.5 * torch.randn(NUM_COMPONENTS, DIM, generator=generator, dtype=torch.float64)
    mix = torch.randn(NUM_COMPONENTS, DIM, DIM, generator=generator, dtype=torch.float64)
    labels = torch.randint(NUM_COMPONENTS, (NUM_POINTS,), generator=generator)
    noise = torch.randn(NUM_POINTS, DIM, 1, generator=generator, dtype=torch.float64)
    return centers[labels] + (mix[labels] @ noise).squeeze(-1)


def contest(data: Tensor, *names: str, steps: int = MAX_STEPS) -> Race:
    """A race of these methods, of all but mean field by default, from the same clusters."""
    made = methods(data, NUM_COMPONENTS, steps, 0)
    chosen = names or [name for name in made if name != "CAVI, mean field"]
    run = {name: made[name] for name in chosen}
    return race(gmm.model, run, data, NUM_COMPONENTS, max_steps=steps, num_samples=200, final_samples=200)


def run() -> str:
    """Run the grid, repeat the fastest, and report."""
    torch.set_num_threads(1)
    data = overlapping_clusters()
    found = contest(data)
    grid = [r for r in found.runners.values() if r.rate]
    fastest = min(grid, key=lambda r: r.seconds_within(1.0, found.best))
    heading, *rows = found.rows()
    report = (
        f"## Within one nat of the best: mixture, N = {NUM_POINTS:,}, D = {DIM}, K = {NUM_COMPONENTS}, full "
        f"covariances\n\n{markdown(heading, rows)}\n\nSVI takes 10 vectorised particles a step, and its rate falls to "
        "10% over the run. All start at the same k-means clusters; the clock runs inside `step` only, on one thread, "
        "from the first step, which records the model or sets up the guide. Every q is scored by 200 draws of one "
        "seed, with the components summed out, outside the clock.\n\n"
    )
    if math.isinf(fastest.seconds_within(1.0, found.best)):
        return report + longer(data, found, max(grid, key=lambda r: r.score.elbo))
    return report + repeated(data, found.best, fastest.name)


def longer(data: Tensor, found: Race, nearest: Runner) -> str:
    """The SVI that came nearest, with three times the steps."""
    again = contest(data, nearest.name, steps=3 * MAX_STEPS)[nearest.name]
    within, reference = again.seconds_within(1.0, found.best), found[CAVI].seconds_within(1.0, found.best)
    if math.isinf(within):
        outcome = f"ended {found.best - again.score.elbo:.1f} nats below after {again.seconds:.0f} s"
    else:
        outcome = f"came within one nat after {within:.1f} s, {within / reference:,.0f} times as long as CAVI"
    return (
        f"No SVI of the grid came within one nat in {MAX_STEPS} steps; the best ended "
        f"{found.best - nearest.score.elbo:.1f} nats below. With {3 * MAX_STEPS} steps {nearest.name} {outcome}."
    )


def repeated(data: Tensor, best: float, fastest: str) -> str:
    """Coordinate ascent and the fastest SVI in turn, for the ratio and its spread."""
    races = [contest(data, CAVI, fastest) for _ in range(REPEATS)]
    cavi, svi = ([r[name].seconds_within(1.0, best) for r in races] for name in (CAVI, fastest))
    ratio = Spread.of([s / c for s, c in zip(svi, cavi, strict=True)])
    return (
        f"In {REPEATS} more runs in turn: CAVI {Spread.of(cavi).scaled(1)} s, the fastest SVI of the grid ({fastest}) "
        f"{Spread.of(svi).scaled(1)} s, {ratio.scaled(1)} times as long."
    )
