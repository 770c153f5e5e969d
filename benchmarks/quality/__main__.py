"""Compute the pages' figures and write ``benchmarks/results/<date>-quality.md``, or ``<date>-quality-<names>.md``."""

from __future__ import annotations

import argparse
import datetime
import platform
import time
import warnings
from pathlib import Path

import pyro
import torch

from ..timing import write_report
from . import baselines, compare, estimators, flows, vae
from .seeds import SEEDS

PAGES = {
    "vae": vae.run,
    "estimators": estimators.run,
    "flows": flows.run,
    "baselines": baselines.run,
    "compare": compare.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description="Compute the pages' figures.")
    parser.add_argument("names", nargs="*", choices=[[], *PAGES], help="default: all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Latent dimensions .* have collapsed")
    warnings.filterwarnings("ignore", "Singular sample detected")
    today = datetime.date.today().isoformat()
    heading = (
        f"# Figures of the documentation, {today}\n\nCPU ({platform.machine()}), one thread; Python "
        f"{platform.python_version()}, torch {torch.__version__}, Pyro {pyro.__version__}. Numbers are medians over "
        f"{len(SEEDS)} seeds, with the least and the greatest in brackets."
    )
    parts = (page(name) for name in options.names or PAGES)
    write_report(heading, parts, options.out / f"{today}-{'-'.join(['quality', *options.names])}.md")


def page(name: str) -> str:
    """The figures of one page, and what they cost."""
    start = time.process_time()
    return f"# docs/{name}.md\n\n{PAGES[name]()}\n\n({time.process_time() - start:.0f} s of CPU)"


if __name__ == "__main__":
    main()
