"""Newton on a Dirichlet's concentration against Minka's fixed point, to a relative error of 1e-8.

    python -m benchmarks.dirichlet_newton

Both see the same mean of log θ. Medians of interleaved runs, with their quartiles; a whole EM step,
which records the model first, is timed too. Source: ``docs/sources.md``, [4] (140)-(145); Minka 2000, "Estimating a
Dirichlet distribution", (5)-(18).
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_latent import EM
from pyro_latent.families.newton import inverse_dirichlet_mean

REPEATS = 15
CASES = {
    "K = 4, Σ α = 10.5": (0.5, 2.0, 7.0, 1.0),
    "K = 5, Σ α = 88.5": (0.5, 20.0, 7.0, 1.0, 60.0),
    "K = 50, Σ α = 250": tuple(0.2 * k for k in range(1, 51)),
}


def model(shares: Tensor) -> None:
    """Dirichlet observations with one concentration."""
    start = torch.ones(shares.shape[-1], dtype=shares.dtype)
    concentration = pyro.param("concentration", start, constraint=constraints.positive)
    with pyro.plate("documents", len(shares)):
        pyro.sample("shares", dist.Dirichlet(concentration), obs=shares)


def newton(mean_log: Tensor) -> Tensor:
    """The library's own iteration, to its own tolerance, which is below 1e-8."""
    return inverse_dirichlet_mean(mean_log)


def fixed_point(mean_log: Tensor, target: Tensor) -> int:
    """ψ(α_k) ← ψ(Σ α) + mean log θ_k until 1e-8 from the target; the number of iterations."""
    alpha = torch.ones_like(mean_log)
    euler = -torch.digamma(torch.ones_like(mean_log))
    for iteration in range(1, 1_000_000):
        wanted = torch.digamma(alpha.sum()) + mean_log
        alpha = torch.where(wanted > -2.22, wanted.exp() + 0.5, -1 / (wanted + euler))
        for _ in range(5):
            alpha = alpha - (torch.digamma(alpha) - wanted) / torch.polygamma(1, alpha)
        if bool(((alpha - target).abs() <= 1e-8 * target).all()):
            return iteration
    return 1_000_000


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _em(shares: Tensor) -> None:
    pyro.clear_param_store()
    EM(model).step(shares)


def _shown(seconds: list[float]) -> str:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return f"{1e3 * middle:.3f} ms [{1e3 * low:.3f}, {1e3 * high:.3f}]"


def run() -> str:
    """The table, as Markdown."""
    torch.manual_seed(0)
    lines = ["## Dirichlet concentrations: Newton against the fixed point, to 1e-8", ""]
    lines += ["| case | Newton | fixed point | its iterations | ratio | a whole EM step |", "|---|---|---|---|---|---|"]
    for label, concentration in CASES.items():
        shares = dist.Dirichlet(torch.tensor(concentration, dtype=torch.float64)).sample((5000,))
        mean_log = shares.log().mean(0)
        target = newton(mean_log)
        ours, theirs, steps = [], [], []
        for _ in range(REPEATS):
            ours.append(_seconds(functools.partial(newton, mean_log)))
            theirs.append(_seconds(functools.partial(fixed_point, mean_log, target)))
            steps.append(_seconds(functools.partial(_em, shares)))
        ratio = statistics.median(theirs) / statistics.median(ours)
        cells = [label, _shown(ours), _shown(theirs), str(fixed_point(mean_log, target)), f"{ratio:.1f}", _shown(steps)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(run())
