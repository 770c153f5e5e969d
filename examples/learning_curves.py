"""One mixture by four ways to go over its data: all of it, minibatches, pieces, and structured inference.

All begin at the same components; structured inference, which draws from q(β), goes on from one pass of minibatches,
before which q(β) is as wide as the prior and its draws are of any components. After each pass over the data the
globals q(β) of each are scored by the ELBO of q(β) q(z | β) on all of the data, a bound that each of them has,
whichever it climbs. Writes ``learning-curves.svg``.

python examples/learning_curves.py --out demo-output
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, RobbinsMonro
from pyro_latent.criticism.pictures import looks, picture, save

K, BATCH, DRAWS = 5, 250, 200
CENTERS = torch.tensor([-9.0, -4.0, 0.0, 3.0, 8.0], dtype=torch.float64)
#: Where all ways begin.
START = torch.tensor([-7.5, -5.0, -1.0, 4.5, 6.5], dtype=torch.float64)
WAYS: dict[str, dict[str, Any]] = {
    "CAVI, all data": {},
    "minibatches": {"step_size": RobbinsMonro(delay=10, forgetting=0.7)},
    "memoised, in pieces": {"memoised": True},
    "structured, 10 draws": {"step_size": RobbinsMonro(delay=10, forgetting=0.7), "structured": 10},
}


def model(x: Tensor, size: int) -> None:
    """Normals of their own locations and precisions, and weights."""
    weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(K)))
    with pyro.plate("components", K):
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
        precision = pyro.sample("precision", dist.Gamma(x.new_tensor(2.0), 2.0))
    with pyro.plate("data", size, subsample_size=len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mean[z], precision[z].rsqrt()), obs=x)


def simulated(size: int) -> Tensor:
    """Points of the five components."""
    return CENTERS[torch.randint(K, (size,))] + torch.randn(size, dtype=torch.float64)


def curve(x: Tensor, options: dict[str, Any], passes: int) -> list[float]:
    """The ELBO of q(β) q(z | β) on all of the data after each pass, in nats."""
    pyro.set_rng_seed(1)
    guide = AutoConjugate(model, init={"mean": START})
    pieces, size = list(x.split(BATCH)), len(x)
    driver = CAVI(model, guide, **{name: value for name, value in options.items() if name != "structured"})
    found: list[float] = []
    for _ in range(passes):
        if "structured" in options and len(found) == 1:
            driver = CAVI(model, guide, **options)
        if not options:
            driver.step(x, size)
        elif options.get("memoised"):
            for number, piece in enumerate(pieces):
                driver.step_piece(number, piece, size)
        else:
            for index in torch.randperm(len(x)).split(BATCH):
                driver.step(x[index], size)
        found.append(CAVI(model, guide).structured_elbo(x, size, draws=DRAWS)[0])
    return found


def curves(size: int, passes: int) -> dict[str, list[float]]:
    """The curve of each way on one data set."""
    pyro.set_rng_seed(0)
    x = simulated(size)
    return {name: curve(x, options, passes) for name, options in WAYS.items()}


def draw(found: dict[str, list[float]]) -> Figure:
    """Nats below the best against passes, on a logarithmic scale."""
    best = max(map(max, found.values()))
    with picture(5.2, 3.0) as (figure, ((axes,),)):
        for name, look in looks(found).items():
            gap = [best - value + 0.1 for value in found[name]]
            axes.plot(range(1, len(gap) + 1), gap, marker=".", label=name, **look._asdict())
        axes.set(xlabel="passes over the data", ylabel="nats below the best, and 0.1", yscale="log")
        axes.legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Fit and draw; returns the curves."""
    parser = argparse.ArgumentParser(description="Learning curves of four ways to go over the data.")
    parser.add_argument("--size", type=int, default=5_000, help="points (default: 5,000)")
    parser.add_argument("--passes", type=int, default=12, help="passes over them (default: 12)")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the picture")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", "Expected more steps")
    found = curves(options.size, options.passes)
    for name, values in found.items():
        print(f"{name:22}{values[0]:12.1f} after the first pass{values[-1]:12.1f} after the last")
    save(draw(found), options.out / "learning-curves.svg")
    return found


if __name__ == "__main__":
    main()
