"""Figures of docs/compare.md: the diagnostics of the regression's guides, and the races."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import torch

from examples.compare_posteriors import DATA, methods, proper, read, separate
from examples.race import RACES
from pyro_latent import CAVI
from pyro_latent.criticism import Race, Runner, calibrate, score

from .seeds import SEEDS, ranged
from .timing import markdown

SVI_STEPS = 800
NUM_DRAWS = 4000
SIMULATIONS, NUM_POINTS = 60, 40
RACE_STEPS = {"normal-gamma": 300, "mixture": 300, "lda": 400, "vae": 300}


def run() -> str:
    """The page's tables."""
    return "\n\n".join([guides(), calibration(), races()])


# ----------------------------------------------------------------------------------------------------------- regression


def guides() -> str:
    """Bound, k̂ and the width of the slope by mean field, AutoNormal and AutoMultivariateNormal."""
    data = read(DATA)
    found: dict[str, list[tuple[float, float, float, bool]]] = {}
    for seed in SEEDS:
        with pyro.get_param_store().scope():
            pyro.set_rng_seed(seed)
            for name, method in methods(data, 1).items():
                if name == "NUTS":
                    continue
                if name == "mean field":
                    CAVI(separate, method).run(*data)
                else:
                    for _ in range(SVI_STEPS):
                        method.step(*data)
                guide = getattr(method, "guide", method)
                result = score(separate, guide, *data, num_samples=NUM_DRAWS, seed=seed)
                with torch.no_grad():
                    low, high = guide.quantiles([0.1587, 0.8413], *data)["slope"]
                fits = result.k.k <= result.k.threshold
                found.setdefault(name, []).append((result.elbo, result.k.k, float(high - low) / 2, fits))
    rows = []
    for name, by_seed in found.items():
        elbo, k, width, good = zip(*by_seed, strict=True)
        rows.append([name, ranged(elbo), ranged(k), f"{sum(good)} of {len(good)}", ranged(width, 3)])
    heading = ["guide", "scored ELBO", "k̂", "k̂ below the threshold", "sd of the slope"]
    return (
        f"## Guides of the regression\n\nOld Faithful, {SVI_STEPS} steps of SVI, {NUM_DRAWS:,} draws; the page's table "
        f"is by `examples/compare_posteriors.py`.\n\n{markdown(heading, rows)}"
    )


def calibration() -> str:
    """The dispersion and the verdict of mean field's slope."""
    data = [column[:NUM_POINTS] for column in read(DATA)]
    spreads, verdicts = [], []
    for seed in SEEDS:
        checked = calibrate(proper, *data, num_simulations=SIMULATIONS, seed=seed)
        spreads.append(float(checked.dispersion("slope")))
        verdicts.append(checked.verdict("slope"))
    counted = ", ".join(f"{word} in {verdicts.count(word)}" for word in sorted(set(verdicts)))
    return (
        f"## Calibration\n\nMean field's slope, {SIMULATIONS} simulations of {NUM_POINTS} points: dispersion "
        f"{ranged(spreads)}; verdict {counted} of {len(SEEDS)}."
    )


# ---------------------------------------------------------------------------------------------------------------- races


def races() -> str:
    """Where each method ends below the best of its race, and the seconds to come within one nat of it."""
    parts = ["## Races\n\n`examples/race.py`; each seed draws data, start and noise anew; the clock is the wall's."]
    for name, make in RACES.items():
        found = [raced(make, seed, RACE_STEPS[name]) for seed in SEEDS]
        rows = [row(method, found) for method in found[0].runners]
        heading = ["method", "nats below the best", "best bound", "within 1 nat", "seconds to 1 nat", "seconds"]
        parts.append(f"{name}, at most {RACE_STEPS[name]} steps:\n\n{markdown(heading, rows)}\n\n{duel(found)}")
    return "\n\n".join(parts)


def raced(make: Callable[..., Race], seed: int, steps: int) -> Race:
    """A race of the example, with this seed for its data and starts, and for the noise of its methods too."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    return make(steps, "cpu", seed)


def row(method: str, found: list[Race]) -> list[str]:
    runners = [contest[method] for contest in found]
    gaps = [contest.best - r.score.elbo for contest, r in zip(found, runners, strict=True)]
    best = sum(gap == 0 for gap in gaps)
    within = [r.seconds_within(1.0, contest.best) for contest, r in zip(found, runners, strict=True)]
    reached = [w for w in within if math.isfinite(w)]
    return [
        method,
        ranged(gaps, 3 if max(gaps) < 10 else 0),
        f"{best} of {len(gaps)}",
        f"{len(reached)} of {len(gaps)}",
        ranged(reached) if reached else "never",
        ranged([r.seconds for r in runners]),
    ]


def duel(found: list[Race]) -> str:
    """The last bound of coordinate ascent less that of SVI at its best rate."""

    def best_of(contest: Race, is_svi: bool) -> Runner | None:
        runners = [r for r in contest.runners.values() if bool(r.rate) == is_svi]
        return max(runners, key=lambda r: r.score.elbo, default=None)

    pairs = [(best_of(contest, False), best_of(contest, True)) for contest in found]
    gaps = [cavi.score.elbo - svi.score.elbo for cavi, svi in pairs if cavi is not None and svi is not None]
    rates = ", ".join(svi.rate for _, svi in pairs if svi is not None)
    ahead = f"Coordinate ascent less SVI at its best rate: {ranged(gaps, 3)}. " if gaps else ""
    return f"{ahead}The best rate by seed: {rates}."
