"""Seconds to one nat of the bound that each method ends at, on the models of ``examples.originals``, beside NUTS.

``python -m benchmarks originals``. Coordinate ascent, its recording of the model included; SVI with AutoNormal and with
AutoMultivariateNormal, Adam at each of RATES for STEPS steps, of which only the steps are timed. Where SVI ends is the
highest bound of its guide at any rate, and its seconds are those of the rate that is there first. Bounds are of the
model as it is written, by Pyro's estimator with noise that all share. CPU seconds of one thread; coordinate ascent and
the best rates are run in turn, with ROUNDS seeds. NUTS is the run that made the reference.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_median, init_to_value
from pyro.optim import Adam

from examples.originals.fits import ORIGINALS, REFERENCES, Original, fit, in_float64
from pyro_latent import CAVI, AutoConjugate

from .timing import markdown

RATES = (0.1, 0.03, 0.01)
STOPS = (10, 20, 30, 50, 75, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
STEPS = STOPS[-1]
ROUNDS = 3
PARTICLES, FINAL_PARTICLES = 30, 400
GUIDES = (AutoNormal, AutoMultivariateNormal)


class Path(NamedTuple):
    """Where SVI was at each of STOPS: CPU seconds of its steps so far, and its bound."""

    seconds: list[float]
    bounds: list[float]

    def first(self, bound: float) -> float:
        """The seconds until the bound is reached; infinite where it is not."""
        return next((s for s, b in zip(self.seconds, self.bounds, strict=True) if b >= bound), math.inf)


class Best(NamedTuple):
    """SVI with one guide at its best rate.

    Attributes:
        rate: what Adam is given.
        seconds: to one nat of ``bound``, over the seeds.
        bound: the highest at the end of any rate.
    """

    rate: float
    seconds: list[float]
    bound: float


def bound_of(original: Original, guide: Callable[..., Any], particles: int) -> float:
    """Pyro's estimate of the ELBO of the model as it is written; the generator is left as it was."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        return -float(Trace_ELBO(num_particles=particles).loss(original.model, guide, *original.data()))


def start_of(original: Original) -> Callable[..., Any]:
    """Pyro's, but for a flat prior, which has no median: zero."""
    flat = {"weights": torch.zeros(original.data()[0].shape[-1])} if original.reference == "kidiq" else {}
    return init_to_value(values=flat, fallback=init_to_median)


def ascend(original: Original, make: Callable[..., Any], rate: float, seed: int, until: float = math.inf) -> Path:
    """SVI from a fresh start, to the last of STOPS or to a bound."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide, data, path = make(original.model, init_loc_fn=start_of(original)), original.data(), Path([], [])
    svi = SVI(original.model, guide, Adam({"lr": rate}), Trace_ELBO())
    spent = 0.0
    for before, stop in zip((0, *STOPS), STOPS, strict=False):
        began = time.process_time()
        for _ in range(before, stop):
            svi.step(*data)
        spent += time.process_time() - began
        path.seconds.append(spent)
        path.bounds.append(bound_of(original, guide, PARTICLES))
        if path.bounds[-1] >= until:
            break
    return path


def best_svi(original: Original, make: Callable[..., Any]) -> Best:
    """The rate that is first within a nat of the best end of all."""
    paths = {rate: ascend(original, make, rate, 0) for rate in RATES}
    ends = [path.bounds[-1] for path in paths.values() if math.isfinite(path.bounds[-1])]
    bound = max(ends)
    rate = min(paths, key=lambda rate: paths[rate].first(bound - 1))
    return Best(rate, [paths[rate].first(bound - 1)], bound)


def coordinate_ascent(original: Original, sweeps: int) -> float:
    """CPU seconds of a new guide's first sweeps, the recording included."""
    pyro.set_rng_seed(0)
    guide = AutoConjugate(original.model, **original.options)
    began = time.process_time()
    CAVI(original.model, guide).run(*original.data(), tol=0.0, max_steps=sweeps)
    return time.process_time() - began


def sweeps_to_one_nat(elbo: Sequence[float]) -> int:
    return next(i for i, value in enumerate(elbo, 1) if value >= elbo[-1] - 1)


def row(original: Original) -> list[str]:
    """A row of the table."""
    guide, result = fit(original)
    sweeps = sweeps_to_one_nat([float(value) for value in result.elbo])
    bests = [best_svi(original, make) for make in GUIDES]
    own = [coordinate_ascent(original, sweeps)]
    for seed in range(1, ROUNDS):
        own.append(coordinate_ascent(original, sweeps))
        for make, best in zip(GUIDES, bests, strict=True):
            goal = best.bound - 1
            best.seconds.append(ascend(original, make, best.rate, seed, until=goal).first(goal))
    return [
        original.reference.replace("_", " "),
        f"{statistics.median(own):.3f} ({sweeps} of {result.num_steps})",
        f"{bound_of(original, guide, FINAL_PARTICLES):.1f}",
        *(cell for best in bests for cell in (seconds_of(best), f"{best.bound:.1f}")),
    ]


def of_nuts(original: Original) -> list[str]:
    """CPU seconds of the reference's chains, and the least effective sample size of a quantity in each."""
    made = json.loads(str(np.load(REFERENCES / f"{original.reference}.npz")["settings"]))
    return [f"{made['cpu_seconds']:.0f}", f"{made['min_ess'] / made['cpu_seconds']:.1f}"]


def seconds_of(best: Best) -> str:
    median = statistics.median(best.seconds)
    return f"{median:.2f} (rate {best.rate:g})" if math.isfinite(median) else f"not always (rate {best.rate:g})"


def run() -> str:
    """Time them, and report."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    with in_float64():
        for original in ORIGINALS:
            rows.append(row(original))
            print(" | ".join(rows[-1]), flush=True)
    torch.set_num_threads(threads)
    rows = [cells + of_nuts(original) for cells, original in zip(rows, ORIGINALS, strict=True)]
    heading = [
        "model",
        "coordinate ascent, s (sweeps)",
        "bound",
        "AutoNormal, s",
        "bound",
        "AutoMultivariateNormal, s",
        "bound",
        "NUTS, s",
        "its least ESS a second",
    ]
    return f"## Models as written: seconds to one nat\n\n{markdown(heading, rows)}"
