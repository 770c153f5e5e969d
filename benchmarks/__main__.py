"""Run the benchmarks and write ``benchmarks/results/<date>-cpu.md``.

``python -m benchmarks`` times all; names after it (such as ``normal_gamma``) run those only, into
``<date>-<names>.md``. The figures of the pages that are no times have names of their own: ``vae-quality``, for one,
computes the tables of ``docs/vae.md`` with several seeds, and ``quality`` all such pages.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pyro
import sklearn
import torch

from . import (
    baselines_quality,
    chains,
    compare_quality,
    compiled_sweep,
    coverage,
    dirichlet_newton,
    em,
    estimators_quality,
    flows_quality,
    headline,
    lda,
    lda_quality,
    load,
    minibatch_step,
    mixtures,
    normal_gamma,
    originals,
    scalars,
    scale,
    scikit_learn,
    stochastic,
    vae,
    vae_quality,
)
from .seeds import SEEDS
from .timing import write_report

BENCHMARKS: dict[str, Callable[[], str]] = {
    "chains": chains.run,
    "normal_gamma": normal_gamma.run,
    "mixtures": mixtures.run,
    "dirichlet_newton": dirichlet_newton.run,
    "em": em.run,
    "headline": headline.run,
    "lda": lda.run,
    "lda-quality": lda_quality.run,
    "load": load.run,
    "compiled_sweep": compiled_sweep.run,
    "minibatch_step": minibatch_step.run,
    "originals": originals.run,
    "scalars": scalars.run,
    "scale": scale.run,
    "scikit-learn": scikit_learn.run,
    "stochastic": stochastic.run,
    "vae": vae.run,
}
#: The figures of a page each, of several seeds, on one thread.
PAGES: dict[str, Callable[[], str]] = {
    "vae-quality": vae_quality.run,
    "estimators-quality": estimators_quality.run,
    "flows-quality": flows_quality.run,
    "baselines-quality": baselines_quality.run,
    "compare-quality": compare_quality.run,
    "coverage": coverage.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run the benchmarks.")
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS, *PAGES, "quality"], help="default: all timings")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", "Singular sample detected")
    warnings.filterwarnings("ignore", "Latent dimensions .* have collapsed")
    today = datetime.date.today().isoformat()
    heading = (
        f"# Benchmarks, {today}\n\nCPU ({platform.machine()}), {mixtures.THREADS} threads; Python "
        f"{platform.python_version()}, torch {torch.__version__}, Pyro {pyro.__version__}, scikit-learn "
        f"{sklearn.__version__}. Numbers are medians of runs taken in turn, with the quartiles in brackets; those of a "
        f"page are medians over {len(SEEDS)} seeds, on one thread, with the least and the greatest in brackets."
    )
    names = [n for name in options.names or BENCHMARKS for n in (PAGES if name == "quality" else [name])]
    path = options.out / f"{today}-{'-'.join(options.names) or 'cpu'}.md"
    write_report(heading, map(report, names), path)


def report(name: str) -> str:
    """What one benchmark found; of a page also what its figures cost."""
    if name in BENCHMARKS:
        torch.set_num_threads(mixtures.THREADS)
        return BENCHMARKS[name]()
    torch.set_num_threads(1)
    start = time.process_time()
    found = PAGES[name]()
    page = name.removesuffix("-quality")
    return f"# docs/{page}.md\n\n{found}\n\n({time.process_time() - start:.0f} s of CPU)"


if __name__ == "__main__":
    main()
