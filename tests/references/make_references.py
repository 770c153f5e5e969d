"""Make the references: ``python tests/references/make_references.py [name ...]`` writes one ``.npz`` for each problem.

Pyro's NUTS runs on the traced log density, four chains from scattered starts, one after another. A file holds, for
each quantity, ``<name>/mean``, ``/sd``, ``/quantiles`` (at QUANTILES, along the first dimension), ``/ess`` (the smaller
of bulk and tail), ``/r_hat`` and ``/draws`` (thinned, float32), and ``settings``, a JSON text with seed, lengths,
divergences, seconds and versions. A run that has not converged is an error, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

try:
    from references.originals import ORIGINALS
    from references.problems import PROBLEMS, Problem
except ImportError:  # run as a script
    sys.path.append(str(Path(__file__).parent.parent.parent))  # for the data, in examples/
    from originals import ORIGINALS  # type: ignore[import-not-found, no-redef]
    from problems import PROBLEMS, Problem  # type: ignore[import-not-found, no-redef]

FOLDER = Path(__file__).parent
QUANTILES = (0.025, 0.25, 0.5, 0.75, 0.975)
CHAINS, KEPT = 4, 1000
LARGEST = 50  # elements of which so many draws are kept; of twice as many, half
ALL = {**PROBLEMS, **ORIGINALS}
SEED = 20
MAX_R_HAT, MIN_ESS = 1.01, 2000


def sample_chain(problem: Problem, seed: int) -> tuple[Tensor, int]:
    """Draws of one chain, ``[draws, dim]``, and its number of divergences."""
    pyro.set_rng_seed(seed)
    traced = torch.jit.trace(lambda z: -problem.log_density(z), (problem.start,), check_trace=False)
    adapted = {"target_accept_prob": problem.target_accept, "full_mass": problem.full_mass}
    kernel = NUTS(potential_fn=lambda params: traced(params["z"]), **adapted)
    start = problem.start + 0.1 * torch.randn(problem.dim, dtype=torch.float64)
    warmup, draws = problem.lengths
    settings = {"warmup_steps": warmup, "initial_params": {"z": start}, "disable_progbar": True}
    mcmc = MCMC(kernel, num_samples=draws, **settings)
    mcmc.run()
    return mcmc.get_samples()["z"], len(mcmc.diagnostics()["divergences"]["chain 0"])


def summarise(name: str, draws: np.ndarray) -> dict[str, np.ndarray]:
    """The entries of one quantity, from draws ``[CHAINS, draws] + shape``."""
    dataset = az.convert_to_dataset({name: draws})
    ess = np.minimum(az.ess(dataset, method="bulk")[name], az.ess(dataset, method="tail")[name])
    pooled = draws.reshape(-1, *draws.shape[2:])
    mean = pooled.mean(0)
    entries = {
        "mean": mean,
        "sd": pooled.std(0, ddof=1),
        "quantiles": np.quantile(pooled, QUANTILES, axis=0),
        "ess": np.asarray(ess),
        "r_hat": np.asarray(az.rhat(dataset)[name]),
        "draws": pooled[:: len(pooled) // KEPT * math.ceil(mean.size / LARGEST)].astype(np.float32),
    }
    return {f"{name}/{key}": value for key, value in entries.items()}


def make(name: str) -> dict[str, Any]:
    """The arrays of one reference.

    Raises:
        RuntimeError: if the chains disagree, are too short, or diverged.
    """
    problem = ALL[name]()
    warmup, draws = problem.lengths
    start, began = time.perf_counter(), time.process_time()
    chains, divergences = zip(*(sample_chain(problem, SEED + i) for i in range(CHAINS)), strict=True)
    seconds, of_cpu = time.perf_counter() - start, time.process_time() - began
    by_chain = [problem.quantities(chain) for chain in chains]
    arrays: dict[str, Any] = {}
    for quantity in by_chain[0]:
        arrays |= summarise(quantity, np.stack([found[quantity].numpy() for found in by_chain]))
    r_hat = max(float(a.max()) for key, a in arrays.items() if key.endswith("/r_hat"))
    ess = min(float(a.min()) for key, a in arrays.items() if key.endswith("/ess"))
    if r_hat > MAX_R_HAT or ess < MIN_ESS or sum(divergences) > CHAINS * draws // 1000:
        raise RuntimeError(
            f"Expected R-hat <= {MAX_R_HAT}, ESS >= {MIN_ESS} and at most one divergence in a thousand draws for "
            f"{name}; got {r_hat:.4f}, {ess:.0f} and {sum(divergences)}. Run longer chains."
        )
    settings = {
        "seed": SEED, "chains": CHAINS, "warmup": warmup, "draws": draws,
        "divergences": int(sum(divergences)), "seconds": round(seconds, 1), "cpu_seconds": round(of_cpu, 1),
        "torch": torch.__version__, "pyro": pyro.__version__, "max_r_hat": round(r_hat, 4), "min_ess": round(ess),
    }  # fmt: skip
    return arrays | {"settings": np.array(json.dumps(settings))}


def main() -> None:
    """Make the references that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(ALL)}; default all")
    names = parser.parse_args().names or list(ALL)
    if unknown := set(names) - set(ALL):
        parser.error(f"Expected names of {list(ALL)}; got {sorted(unknown)}.")
    torch.set_num_threads(1)
    for name in names:
        arrays = make(name)
        np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
        print(name, arrays["settings"])


if __name__ == "__main__":
    main()
