"""The level of the Nile: a random walk that is one factor of the posterior, beside a walk whose steps are independent.

The yearly flow at Aswan, 1871 to 1970 (Durbin and Koopman 2012, chapter 2), is a
level that moves as a random walk, and noise:

    level[t] ~ Normal(level[t - 1], 1 / sqrt(step)),    flow[t] ~ Normal(level[t], 1 / sqrt(noise)),

with Gamma priors on both precisions. The model is a loop over the years. With ``blocks=["level_*"]`` all levels are one
factor, eliminated along the walk as Kalman's smoother does. Without, each year is a factor of its own: the level then
follows its own year's flow, and noise is taken for movement.

python examples/nile.py [--out docs/joint-walk.svg]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.criticism.pictures import looks, picture, save
from pyro_latent.models import datasets


@dataclass(frozen=True)
class Fit:
    """A fit: the levels' means and standard deviations ``[T]``, the precisions' means, the bound, and its sweeps."""

    mean: Tensor
    stddev: Tensor
    step: float
    noise: float
    elbo: float
    sweeps: int


def load() -> Tensor:
    """The flows in 10¹⁰ m³, ``[100]``."""
    return datasets.nile() / 100


def model(flow: Tensor) -> None:
    """A local level with both precisions unknown."""
    step = pyro.sample("step", dist.Gamma(flow.new_tensor(0.5), 0.5))
    noise = pyro.sample("noise", dist.Gamma(flow.new_tensor(0.5), 0.5))
    level = flow.new_tensor(0.0)
    for t in range(len(flow)):
        level = pyro.sample(f"level_{t}", dist.Normal(level, step.rsqrt() if t else flow.new_tensor(20.0)))
        pyro.sample(f"flow_{t}", dist.Normal(level, noise.rsqrt()), obs=flow[t])


def fit(flow: Tensor, blocks: list[str] | None) -> Fit:
    """Coordinate ascent, with the levels in one block or each in its own."""
    guide = AutoConjugate(model, blocks=blocks)
    result = CAVI(model, guide).run(flow, max_steps=2_000, tol=1e-7)
    posterior = guide.posterior()
    levels = [posterior[f"level_{t}"] for t in range(len(flow))]
    return Fit(
        torch.stack([q.mean for q in levels]),
        torch.stack([q.stddev for q in levels]),
        float(posterior["step"].mean),
        float(posterior["noise"].mean),
        float(result.elbo[-1]),
        result.num_steps,
    )


def draw(flow: Tensor, fits: dict[str, Fit], path: Path) -> None:
    """A picture of the levels with bands of two standard deviations."""
    years, look = torch.arange(1871, 1871 + len(flow)), looks(["CAVI"])["CAVI"]
    with picture(7.6, 2.7, 1, len(fits)) as (figure, (panels,)):
        for panel, (name, found) in zip(panels, fits.items(), strict=True):
            panel.plot(years, flow, ".", color="0.6", markersize=4)
            low, high = found.mean - 2 * found.stddev, found.mean + 2 * found.stddev
            panel.fill_between(years, low, high, color=look.color, alpha=0.25, linewidth=0)
            panel.plot(years, found.mean, **look._asdict())
            panel.set(title=f"{name}: ELBO {found.elbo:.1f} nats (band: 2 s.d.)", xlabel="year")
            panel.sharey(panels[0])
        panels[0].set_ylabel("flow, 10¹⁰ m³")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, help="where to write the picture")
    out = parser.parse_args().out
    flow = load()
    fits = {"one factor": fit(flow, ["level_*"]), "a factor for each year": fit(flow, None)}
    print(f"{'levels':24}{'ELBO':>9}{'sweeps':>8}{'sd of the level in 1920':>25}{'1/step':>9}{'1/noise':>9}")
    for name, found in fits.items():
        spread, moved, noisy = found.stddev[49], 1 / found.step, 1 / found.noise
        print(f"{name:24}{found.elbo:9.2f}{found.sweeps:8}{spread:25.3f}{moved:9.3f}{noisy:9.3f}")
    if out is not None:
        draw(flow, fits, out)


if __name__ == "__main__":
    main()
