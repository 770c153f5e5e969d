"""Run the benchmarks and write ``benchmarks/results/<date>-cpu.md``.

``python -m benchmarks`` runs all; names after it (such as ``normal_gamma``) run those only, into ``<date>-<names>.md``.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import warnings
from pathlib import Path

import pyro
import sklearn
import torch

from . import dirichlet_newton, headline, lda, lda_quality, mixtures, normal_gamma, stochastic, vae
from .timing import write_report

BENCHMARKS = {
    "normal_gamma": normal_gamma.run,
    "mixtures": mixtures.run,
    "dirichlet_newton": dirichlet_newton.run,
    "headline": headline.run,
    "lda": lda.run,
    "lda-quality": lda_quality.run,
    "stochastic": stochastic.run,
    "vae": vae.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run the benchmarks.")
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help="default: all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(mixtures.THREADS)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", "Singular sample detected")
    today = datetime.date.today().isoformat()
    heading = (
        f"# Benchmarks, {today}\n\nCPU ({platform.machine()}), {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}, torch {torch.__version__}, Pyro {pyro.__version__}, scikit-learn "
        f"{sklearn.__version__}. Numbers are medians of runs taken in turn, with the quartiles in brackets."
    )
    parts = (BENCHMARKS[name]() for name in options.names or BENCHMARKS)
    write_report(heading, parts, options.out / f"{today}-{'-'.join(options.names) or 'cpu'}.md")


if __name__ == "__main__":
    main()
