"""The table of the three coins: where EM ends from each start, beside the numbers of the book.

python examples/three_coins.py
"""

from __future__ import annotations

import pyro
import torch

from pyro_latent import EM
from pyro_latent.models import three_coins

NAMES = ("pi", "p", "q")


def _triple(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"


def main() -> None:
    """Fit the ten tosses from the three starts, and print θ = (π, p, q) and log p(x | θ) after each step."""
    tosses = torch.tensor(three_coins.TOSSES, dtype=torch.float64)
    print("tosses", *three_coins.TOSSES)
    print(
        f"{'start':>24}  {'end by EM':>24}  {'end in the book':>24}  {'log p(x | start)':>16}  "
        f"{'log p(x | end)':>14}  steps"
    )
    for start, book in zip(three_coins.STARTS, three_coins.ENDS, strict=True):
        pyro.clear_param_store()
        em = EM(three_coins.model)
        result = em.run(tosses, start)
        found = tuple(em.guide.params()[name].item() for name in NAMES)
        before = three_coins.log_likelihood(tosses, start)
        print(
            f"{_triple(start):>24}  {_triple(found):>24}  {_triple(book):>24}  {before:16.6f}  "
            f"{result.elbo[-1].item():14.6f}  "
            f"{result.num_steps:5d}"
        )
    print(
        "Every end has π p + (1 - π) q = 0.6, the share of heads: the likelihood is a ridge, and the start says "
        "where on it EM stops."
    )


if __name__ == "__main__":
    main()
