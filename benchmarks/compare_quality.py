"""Figures of docs/compare.md: the diagnostics of the regression's guides; the races are in ``races.py``."""

from __future__ import annotations

import pyro
import torch

from examples.compare_posteriors import methods, proper, read, separate
from pyro_latent import CAVI
from pyro_latent.criticism import calibrate, score

from .seeds import SEEDS, ranged
from .timing import markdown

SVI_STEPS = 800
NUM_DRAWS = 4000
SIMULATIONS, NUM_POINTS = 60, 40


def run() -> str:
    """The page's tables."""
    return "\n\n".join([guides(), calibration()])


# ----------------------------------------------------------------------------------------------------------- regression


def guides() -> str:
    """Bound, k̂ and the width of the slope by mean field, AutoNormal and AutoMultivariateNormal."""
    data = read()
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
    data = [column[:NUM_POINTS] for column in read()]
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
