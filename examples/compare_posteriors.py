"""Posteriors of one regression beside each other: coordinate ascent, SVI with two guides, and NUTS.

The data is Old Faithful: the time to the next eruption, given how long the last one took. Intercept and slope are
latent sites of their own, and their posterior is strongly correlated, since no eruption is near 0 minutes. So
q(intercept) q(slope) q(precision) is far too narrow, and every diagnostic says so; a guide with correlations is not.

Run it with ``python examples/compare_posteriors.py``. It prints the tables, and writes ``posteriors.html``, a page that
needs no other file, ``densities.png``, ``forest.png`` and ``calibration.txt``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, plotting
from pyro_latent.arviz import to_arviz
from pyro_latent.criticism import Comparison, calibrate, compare, evidence
from pyro_latent.models import datasets

UNITS = {"intercept": "min", "slope": "min per min", "precision": "min⁻²"}


def separate(duration: Tensor, waiting: Tensor) -> None:
    """waiting ~ N(intercept + slope · duration, 1 / precision), in minutes; each coefficient a site of its own."""
    precision = pyro.sample("precision", dist.Gamma(duration.new_tensor(1.0), 1.0))
    intercept = pyro.sample("intercept", dist.Normal(duration.new_tensor(0.0), 100.0))
    slope = pyro.sample("slope", dist.Normal(duration.new_tensor(0.0), 100.0))
    with pyro.plate("eruptions", len(duration)):
        pyro.sample("waiting", dist.Normal(intercept + slope * duration, precision.rsqrt()), obs=waiting)


def read() -> tuple[Tensor, Tensor]:
    """Duration and waiting time in minutes, ``[272]`` each."""
    duration, waiting = datasets.old_faithful().unbind(1)
    return duration, waiting


def svi(guide: Any, rate: float) -> SVI:
    return SVI(separate, guide, pyro.optim.ClippedAdam({"lr": rate, "lrd": 0.998}), Trace_ELBO(num_particles=4))


def methods(data: tuple[Tensor, Tensor], draws: int) -> dict[str, Any]:
    """What is compared. Autoguides start at the medians that coordinate ascent ends at, and learn the spread."""
    start = AutoConjugate(separate)
    CAVI(separate, start).run(*data)
    near = {name: value.clone() for name, value in start.median().items()}
    init = pyro.infer.autoguide.initialization.init_to_value(values=near)
    return {
        "mean field": AutoConjugate(separate),
        "AutoNormal": svi(AutoNormal(separate, init_loc_fn=init, init_scale=0.05), 0.05),
        "AutoMVN": svi(AutoMultivariateNormal(separate, init_loc_fn=init, init_scale=0.05), 0.05),
        "NUTS": MCMC(NUTS(separate), draws, warmup_steps=draws, disable_progbar=True),
    }


def main(arguments: Sequence[str] | None = None) -> Comparison:
    """Run the comparison; returns it."""
    parser = argparse.ArgumentParser(description="Compare posteriors of a regression by four methods.")
    parser.add_argument("--steps", type=int, default=1500, help="steps of each SVI (default: 1500)")
    parser.add_argument("--draws", type=int, default=500, help="draws of NUTS, and its warm-up (default: 500)")
    parser.add_argument("--simulations", type=int, default=100, help="of the calibration (default: 100; 0: none)")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for what is written")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    data = read()
    given = methods(data, options.draws)
    found = compare(separate, given, *data, max_steps=options.steps)
    print(found)
    options.out.mkdir(parents=True, exist_ok=True)
    found.save_html(options.out / "posteriors.html")
    plotting.plot_densities(found, units=UNITS).savefig(options.out / "densities.png")
    idata = {name: to_arviz(separate, getattr(m, "guide", m), *data) for name, m in given.items()}
    look: Any = {"combined": True, "figsize": (5, 2.2), "textsize": 8}
    forest = arviz.plot_forest(list(idata.values()), model_names=list(idata), var_names=["intercept"], **look)
    np.ravel(forest)[0].figure.savefig(options.out / "forest.png", bbox_inches="tight")
    print(f"\nevidence, with the guide of mean field:\n{evidence(separate, given['mean field'], *data)}")
    if options.simulations:
        checked = calibrate(proper, *(v[:40] for v in data), num_simulations=options.simulations)
        (options.out / "calibration.txt").write_text(f"{checked}\n", encoding="utf-8")
        print(f"\ncalibration of mean field:\n{checked}")
    print(f"\nWrote {options.out / 'posteriors.html'} and pictures beside it.")
    return found


def proper(duration: Tensor, waiting: Tensor) -> None:
    """The same model with priors that simulate data of a sensible size."""
    precision = pyro.sample("precision", dist.Gamma(duration.new_tensor(4.0), 100.0))
    intercept = pyro.sample("intercept", dist.Normal(duration.new_tensor(30.0), 10.0))
    slope = pyro.sample("slope", dist.Normal(duration.new_tensor(10.0), 5.0))
    with pyro.plate("eruptions", len(duration)):
        pyro.sample("waiting", dist.Normal(intercept + slope * duration, precision.rsqrt()), obs=waiting)


if __name__ == "__main__":
    main()
