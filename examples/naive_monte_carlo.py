"""How the error of naive Monte Carlo grows with the dimension of z, where the evidence is known exactly.

    z ~ N(0, I), x ~ N(z, I), x = (1, …, 1): p(x) is N(0, 2 I) at x

Naive Monte Carlo averages p(x | z_s) over the prior; importance sampling weights draws of a fitted guide, here a
Gaussian that is a tenth too wide. Prints a table, and draws the errors with what the second moment of the weights
predicts.

python examples/naive_monte_carlo.py --out demo-output
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent.criticism import Weights, importance_sampling, naive_monte_carlo
from pyro_latent.criticism.pictures import looks, picture, save

DIMENSIONS = (1, 2, 4, 8, 16, 32, 64, 128)


def model(x: Tensor) -> None:
    """Sites ``z`` and ``x``, both of event shape [D]."""
    z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def wide_guide(x: Tensor) -> None:
    """The posterior N(x / 2, I / 2), its standard deviation a tenth too wide."""
    pyro.sample("z", dist.Normal(x / 2, torch.full_like(x, 1.1 * math.sqrt(0.5))).to_event(1))


def log_evidence(dim: int) -> float:
    """log p(x), in nats, for x = (1, …, 1)."""
    return dim * dist.Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(1.0)).item()


def predicted_error(dim: int, num_samples: int) -> float:
    """The standard error of log p(x) by naive Monte Carlo, √((E w² / (E w)² - 1) / S), where it is small."""
    normal = torch.distributions.Normal
    square = normal(0.0, math.sqrt(1.5)).log_prob(torch.tensor(1.0)).exp() / (2 * math.sqrt(math.pi))
    ratio = square.item() / math.exp(2 * log_evidence(1))
    return math.sqrt((ratio**dim - 1) / num_samples)


def errors(dim: int, num_samples: int, repeats: int) -> dict[str, tuple[float, float]]:
    """By method, the root mean square error of log p(x) over repeats, and the mean effective sample size."""
    x = torch.ones(dim, dtype=torch.float64)
    total = num_samples * repeats
    samples = {
        "naive Monte Carlo": naive_monte_carlo(model, x, num_samples=total, batch_size=50_000),
        "importance sampling": importance_sampling(model, wide_guide, x, num_samples=total, batch_size=50_000),
    }
    found = {}
    for name, sample in samples.items():
        parts = [Weights(row) for row in sample.log_weights.reshape(repeats, num_samples)]
        square = sum((p.log_evidence - log_evidence(dim)) ** 2 for p in parts) / repeats
        found[name] = math.sqrt(square), sum(p.effective_sample_size for p in parts) / repeats
    return found


def draw_picture(rows: dict[int, dict[str, tuple[float, float]]], num_samples: int, path: Path) -> None:
    """Errors against the dimension, both logarithmic."""
    look = looks(["naive Monte Carlo", "importance sampling"])
    with picture(4.4, 2.9) as (figure, ((axes,),)):
        for name, marker in zip(look, "os", strict=True):
            line = look[name]._asdict()
            axes.plot(list(rows), [rows[d][name][0] for d in rows], marker=marker, ms=4, label=name, **line)
        small = [d for d in range(1, max(rows) + 1) if predicted_error(d, num_samples) < 3]
        predicted = [predicted_error(d, num_samples) for d in small]
        axes.plot(small, predicted, color="0.3", linestyle="--", linewidth=1, label="naive, predicted while small")
        axes.axhline(1, color="0.7", linewidth=0.6, zorder=0)
        axes.set(xscale="log", yscale="log", xlabel="dimension of z", ylabel="error of log p(x) (nats)")
        axes.set_xticks(list(rows), [str(d) for d in rows], minor=False)
        axes.minorticks_off()
        axes.set_title(f"{num_samples:,} draws of each estimate")
        axes.legend(loc="upper left")
    save(figure, path)


def main(arguments: Sequence[str] | None = None) -> dict[int, dict[str, tuple[float, float]]]:
    """Measure, print and draw; returns the errors by dimension and method."""
    parser = argparse.ArgumentParser(description="The error of naive Monte Carlo against the dimension of z.")
    parser.add_argument("--samples", type=int, default=1000, help="draws of each estimate (default: 1000)")
    parser.add_argument("--repeats", type=int, default=200, help="estimates of each dimension (default: 200)")
    parser.add_argument("--dimensions", type=int, nargs="+", default=list(DIMENSIONS))
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the picture")
    options = parser.parse_args(arguments)
    pyro.set_rng_seed(0)
    rows = {dim: errors(dim, options.samples, options.repeats) for dim in options.dimensions}
    print(f"{'dimension':>9}  {'naive error':>11}  {'predicted':>9}  {'naive ESS':>9}  {'IS error':>8}  {'IS ESS':>7}")
    for dim, row in rows.items():
        naive, importance = row["naive Monte Carlo"], row["importance sampling"]
        predicted = predicted_error(dim, options.samples)
        shown = f"{predicted:9.3f}" if predicted < 3 else f"{'large':>9}"
        print(f"{dim:9d}  {naive[0]:11.3f}  {shown}  {naive[1]:9.1f}  {importance[0]:8.4f}  {importance[1]:7.1f}")
    options.out.mkdir(parents=True, exist_ok=True)
    draw_picture(rows, options.samples, options.out / "naive_monte_carlo.svg")
    return rows


if __name__ == "__main__":
    main()
