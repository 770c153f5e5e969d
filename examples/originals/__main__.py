"""Hold each model's posterior by coordinate ascent against its reference by NUTS: ``python -m examples.originals``.

A line for each quantity: the largest error of a mean of its elements, in standard deviations of the reference, how many
are larger than 0.1, and the smallest and the largest ratio of a standard deviation to the reference's, by 20,000 draws
of the guide. Then a line for each reference: its draws after warmup, its largest R-hat and smallest effective sample
size (of bulk and tail), and its divergences.
"""

from __future__ import annotations

import json

import numpy as np
import pyro
import torch

from .fits import ORIGINALS, REFERENCES, Errors, Original, draws_of, errors, fit, in_float64


def of_fit(original: Original) -> list[list[str]]:
    """A row for each quantity."""
    guide, result = fit(original)
    pyro.set_rng_seed(1)
    found = errors(original, draws_of(original, guide))
    head = [original.reference.replace("_", " "), f"{result.num_steps}"]
    return [[*(head if not i else ["", ""]), *cells(name, found[name])] for i, name in enumerate(found)]


def cells(name: str, found: Errors) -> list[str]:
    low, high = found.sds.min(), found.sds.max()
    ratio = f"{low:.2f}" if found.sds.size == 1 else f"{low:.2f} to {high:.2f}"
    beyond = f"{(found.means > 0.1).sum()} of {found.means.size}"
    return [name.replace("_", " "), f"{found.means.max():.2f}", beyond, ratio]


def of_reference(original: Original) -> list[str]:
    made = json.loads(str(np.load(REFERENCES / f"{original.reference}.npz")["settings"]))
    length = f"{made['chains']} × {made['draws']:,}"
    return [
        original.reference.replace("_", " "),
        length,
        f"{made['max_r_hat']:.3f}",
        f"{made['min_ess']:,}",
        str(made["divergences"]),
    ]


def table(heading: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (heading, ["---"] * len(heading), *rows))


def main() -> None:
    torch.set_num_threads(1)
    with in_float64():
        rows = [row for original in ORIGINALS for row in of_fit(original)]
    print(
        table(["model", "sweeps", "quantity", "largest error of a mean", "beyond 0.1", "sd over the reference's"], rows)
    )
    heading = ["reference", "draws", "largest R-hat", "smallest effective size", "divergences"]
    print(f"\n{table(heading, [of_reference(original) for original in ORIGINALS])}")


if __name__ == "__main__":
    main()
