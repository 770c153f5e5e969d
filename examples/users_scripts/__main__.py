"""What the three scripts gain: ``python -m examples.users_scripts`` prints lines changed, times, bounds and errors.

For each script, coordinate ascent and SVI (two autoguides, Adam at the best of several learning rates) fit the
conjugate model, and Pyro's NUTS samples it, compiled and with a dense mass matrix. One estimator scores all guides.
The reference is a long run of NUTS on a density written out by hand, in ``tests/references``. Seconds are those of one
core for the whole fit, its first call included; other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_value
from pyro.optim import Adam
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate

from . import (
    eight_schools,
    eight_schools_conjugate,
    mixture,
    mixture_conjugate,
    regression,
    regression_conjugate,
)

FOLDER = Path(__file__).parent
REFERENCES = FOLDER.parent.parent / "tests" / "references"
LEARNING_RATES = (0.005, 0.02, 0.1)
DRAWS = 4000

Quantities = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Script:
    """A pair of scripts, and what is read from their posterior.

    Attributes:
        written, conjugate: the modules of the pair.
        reference: the name of the file in ``tests/references``.
        quantities: the reference's quantities, from draws by site.
        hide: enumerated sites, which autoguides leave out.
        start: values that SVI starts at.
    """

    written: Any
    conjugate: Any
    reference: str
    quantities: Quantities
    hide: list[str] = field(default_factory=list)
    start: Callable[..., dict[str, Tensor]] = lambda *data: {}

    @property
    def name(self) -> str:
        return str(self.written.__name__).rpartition(".")[2]


@dataclass(frozen=True)
class Result:
    """What a method took and reached.

    Attributes:
        method: its name.
        seconds: of the whole fit.
        bound, error: the scored ELBO in nats and its standard error; None for NUTS.
        mean_error: the largest error of a posterior mean, in standard deviations of the reference.
        sd_ratios: the smallest and the largest standard deviation, as a fraction of the reference's.
    """

    method: str
    seconds: float
    bound: float | None
    error: float | None
    mean_error: float
    sd_ratios: tuple[float, float]

    def row(self) -> list[str]:
        bound = "" if self.bound is None else f"{self.bound:.2f} ± {self.error:.2f}"
        low, high = self.sd_ratios
        return [self.method, f"{self.seconds:.2f}", bound, f"{self.mean_error:.2f}", f"{low:.2f} to {high:.2f}"]


def of_mixture(draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Components in the order of their locations."""
    order = draws["loc"].argsort(-1)
    return {name: draws[name].gather(-1, order) for name in ("weights", "loc", "precision")}


def of_regression(draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        "weights": draws["linear.weight"].squeeze(-2),
        "bias": draws["linear.bias"].squeeze(-1),
        "precision": draws["precision"],
    }


def of_schools(draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"mu": draws["mu"], "log_tau": -draws["precision"].log() / 2, "theta": draws["theta"]}


SCRIPTS = (
    Script(
        mixture,
        mixture_conjugate,
        "durations_mixture",
        of_mixture,
        ["assignment"],
        lambda data: {"loc": torch.quantile(data, torch.tensor([0.25, 0.75]))},
    ),
    Script(regression, regression_conjugate, "diabetes_regression", of_regression),
    Script(eight_schools, eight_schools_conjugate, "eight_schools_half_cauchy", of_schools),
)


# ------------------------------------------------------------------------------------------------------- lines changed


def lines_changed(script: Script) -> tuple[int, int]:
    """How many lines of code go and how many come, docstrings and blank lines apart."""
    before, after = (code_of(Path(module.__file__)) for module in (script.written, script.conjugate))
    changes = [line[0] for line in difflib.ndiff(before, after)]
    return changes.count("-"), changes.count("+")


def code_of(path: Path) -> list[str]:
    """The lines of a script after its docstring that hold code."""
    _, _, body = path.read_text(encoding="utf-8").partition("from __future__")
    return [line for line in body.splitlines() if line.strip()]


# --------------------------------------------------------------------------------------------------------------- fits


def elbo_of(script: Script, particles: int = 1) -> Any:
    """The estimator that a user would take."""
    if script.hide:
        return TraceEnum_ELBO(max_plate_nesting=1, num_particles=particles)
    return Trace_ELBO(num_particles=particles)


def fit_cavi(script: Script) -> AutoConjugate:
    guide = AutoConjugate(script.conjugate.model)
    CAVI(script.conjugate.model, guide).run(*script.conjugate.load())
    return guide


def fit_svi(script: Script, autoguide: Callable[..., Any], rate: float, num_steps: int) -> Callable[..., Any]:
    model, data = script.conjugate.model, script.conjugate.load()
    init = init_to_value(values=script.start(*data))
    guide = autoguide(poutine.block(model, hide=script.hide), init_loc_fn=init)
    svi = SVI(model, guide, Adam({"lr": rate}), elbo_of(script))
    for _ in range(num_steps):
        svi.step(*data)
    return guide


def sample_nuts(script: Script, num_samples: int, warmup: int) -> dict[str, Tensor]:
    data = script.conjugate.load()
    kernel = NUTS(script.conjugate.model, full_mass=True, jit_compile=True, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, num_samples=num_samples, warmup_steps=warmup, disable_progbar=True)
    mcmc.run(*data)
    return mcmc.get_samples()


def timed(fit: Callable[[], Any], seed: int = 0) -> tuple[float, Any]:
    """Processor seconds of a fit from a fresh parameter store, and what it returns."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    start = time.process_time()
    found = fit()
    return time.process_time() - start, found


# ------------------------------------------------------------------------------------------------------------- scoring


def score(script: Script, guide: Callable[..., Any], batches: int = 10, particles: int = 50) -> tuple[float, float]:
    """Pyro's estimate of the ELBO, in nats, and its standard error."""
    pyro.set_rng_seed(1)
    elbo, model, data = elbo_of(script, particles), script.conjugate.model, script.conjugate.load()
    with torch.no_grad():
        values = [-elbo.loss(model, guide, *data) for _ in range(batches)]
    return statistics.fmean(values), statistics.stdev(values) / batches**0.5


def draws_of(script: Script, guide: Callable[..., Any]) -> dict[str, Tensor]:
    """Draws from a guide by site, ``[DRAWS] + shape``."""
    if isinstance(guide, AutoConjugate):
        posterior = guide.posterior()
        return {name: q.sample((DRAWS,)) for name, q in posterior.items() if name not in script.hide}
    model = poutine.block(script.conjugate.model, hide=script.hide)
    data = script.conjugate.load()
    sites = guide.median(*data)  # type: ignore[attr-defined]
    draws = Predictive(model, guide=guide, num_samples=DRAWS, return_sites=list(sites))(*data)
    return {name: value.reshape(DRAWS, *sites[name].shape) for name, value in draws.items()}


def errors(script: Script, draws: Mapping[str, Tensor]) -> tuple[float, tuple[float, float]]:
    """The largest error of a mean, in sds of the reference, and the smallest and largest ratio of sds."""
    reference = np.load(REFERENCES / f"{script.reference}.npz")
    means, ratios = [], []
    for name, values in script.quantities(draws).items():
        mean, sd = reference[f"{name}/mean"], reference[f"{name}/sd"]
        means.append(np.abs(values.double().mean(0).numpy() - mean) / sd)
        ratios.append(values.double().std(0).numpy() / sd)
    every = np.concatenate([np.ravel(r) for r in ratios])
    return float(max(m.max() for m in means)), (float(every.min()), float(every.max()))


def result(script: Script, method: str, seconds: float, found: Any) -> Result:
    """The result of a guide, or of draws by site."""
    if isinstance(found, dict):
        return Result(method, seconds, None, None, *errors(script, found))
    return Result(method, seconds, *score(script, found), *errors(script, draws_of(script, found)))


def best_svi(script: Script, autoguide: Callable[..., Any], num_steps: int) -> Result:
    """SVI at the learning rate that ends at the highest bound; the seconds are those of that run alone."""
    fits = []
    for rate in LEARNING_RATES:
        fit = timed(functools.partial(fit_svi, script, autoguide, rate, num_steps))
        fits.append(result(script, f"SVI, {autoguide.__name__}, {num_steps:,} steps at rate {rate:g}", *fit))
    return max(fits, key=lambda fit: -math.inf if fit.bound is None else fit.bound)


def compare(script: Script, num_steps: int, num_samples: int) -> list[Result]:
    """Every method on one script; of each guide for SVI the best learning rate."""
    timed(lambda: fit_cavi(script))  # imports and first calls cost nobody
    results = [result(script, "CAVI", *timed(lambda: fit_cavi(script)))]
    results += [best_svi(script, autoguide, num_steps) for autoguide in (AutoNormal, AutoMultivariateNormal)]
    if num_samples:
        nuts = timed(lambda: sample_nuts(script, num_samples, num_samples // 2))
        results.append(result(script, f"NUTS, {num_samples // 2:,} + {num_samples:,} draws", *nuts))
    return results


def markdown(script: Script, results: Sequence[Result]) -> str:
    """A table, under a line that says how many lines of the script have changed."""
    gone, come = lines_changed(script)
    heading = ["method", "seconds", "ELBO (nats)", "largest error of a mean", "sd over the reference's"]
    rows = [heading, ["---"] * len(heading), *(r.row() for r in results)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"**{script.name}**: {gone} lines go, {come} come\n\n{table}\n"


def main() -> None:
    """Compare all three, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="steps of each SVI")
    parser.add_argument("--samples", type=int, default=1000, help="draws of NUTS after half as many of warmup; 0: none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for script in SCRIPTS:
        print(markdown(script, compare(script, options.steps, options.samples)), flush=True)


if __name__ == "__main__":
    main()
