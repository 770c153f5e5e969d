"""What extrapolation saves: sweeps and CPU seconds to one ELBO, ``python -m benchmarks.acceleration``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.annealing import corpus_of
from benchmarks.merges import clusters, mixture
from benchmarks.mixtures import ppca_model
from benchmarks.timing import interleaved, markdown, ratios
from pyro_latent import CAVI, AutoConjugate
from pyro_latent.models import lda

#: A run has arrived where its ELBO is within this of the best, relative to it.
NEAR = 1e-6
ROUNDS = 3


def _normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def factors(count: int = 300, dim: int = 12, strengths: tuple[float, ...] = (3.0, 2.0, 1.0, 0.6)) -> tuple[Tensor, int]:
    """Columns ``[count, dim]`` of factors of several strengths with noise, and the number of these."""
    loadings = _normal(len(strengths), dim) * torch.tensor(strengths).unsqueeze(1)
    return _normal(count, len(strengths), seed=1) @ loadings + 0.5 * _normal(count, dim, seed=2), len(strengths)


def crossed(y: Tensor, rows: Tensor, columns: Tensor) -> None:
    """A mean with effects of rows and of columns, each of its own precision."""
    one = y.new_tensor(1.0)
    mu = pyro.sample("mu", dist.Normal(0 * one, 10.0))
    precisions = [pyro.sample(f"tau_{name}", dist.Gamma(one, one)) for name in ("rows", "columns", "noise")]
    with pyro.plate("of_rows", int(rows.max()) + 1):
        a = pyro.sample("a", dist.Normal(0 * one, precisions[0].rsqrt()))
    with pyro.plate("of_columns", int(columns.max()) + 1):
        b = pyro.sample("b", dist.Normal(0 * one, precisions[1].rsqrt()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + a[rows] + b[columns], precisions[2].rsqrt()), obs=y)


def ratings(count: int = 400, rows: int = 30, columns: int = 40, noise: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Ratings that miss most of their table."""
    generator = torch.Generator().manual_seed(0)
    i, j = (torch.randint(n, (count,), generator=generator) for n in (rows, columns))
    y = 3 + _normal(rows, seed=1)[i] + _normal(columns, seed=2)[j] + noise * _normal(count, seed=3)
    return y, i, j


def level(y: Tensor, spread: float = 0.05) -> None:
    """A local level: a random walk with noise, each of its steps a site."""
    x = pyro.sample("x_0", dist.Normal(y.new_tensor(0.0), 10.0))
    for t in range(len(y)):
        if t:
            x = pyro.sample(f"x_{t}", dist.Normal(x, spread))
        pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=y[t])


def walk(steps: int = 20) -> tuple[Tensor]:
    return (0.05 * _normal(steps).cumsum(0) + _normal(steps, seed=1),)


def regression(x: Tensor, y: Tensor) -> None:
    """Slopes and an intercept of their own factors, columns far from zero."""
    one = y.new_tensor(1.0)
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 10.0).to_event(1))
    b = pyro.sample("b", dist.Normal(0 * one, 10.0))
    tau = pyro.sample("tau", dist.Gamma(one, one))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ w + b, tau.rsqrt()), obs=y)


def lines(count: int = 100) -> tuple[Tensor, Tensor]:
    x = 3 + _normal(count, 3)
    return x, x @ x.new_tensor([1.0, -2.0, 0.5]) + 4 + 0.5 * _normal(count, seed=1)


def schools() -> None:
    """Rubin's eight schools, whose spread has a half-Cauchy prior."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]).double()
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]).double()
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, errors), obs=y)


class Case(NamedTuple):
    """A model with its arguments."""

    label: str
    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}


def cases() -> Iterator[Case]:
    """Models that creep, and others."""
    yield Case("probabilistic PCA, four factors, one of them weak", ppca_model, factors())
    yield Case("crossed effects, 30 rows, 40 columns", crossed, ratings())
    yield Case("local level, 20 sites", level, walk())
    yield Case("regression and its intercept", regression, lines())
    yield Case("eight schools, half-Cauchy", schools)
    yield Case("mixture, 5 clusters, 8 components", mixture, (clusters(5, 500, 0), 8))
    corpus = corpus_of(0, documents=100, length=80, words=60, topics=5)
    yield Case("topics, 6", lda.model, (corpus, 6), {"doc_topic_prior": 0.1, "topic_word_prior": 0.1})


def fit(case: Case, accelerate: bool, target: float | None = None) -> Any:
    """A run to convergence, or until its ELBO is as high as a target."""
    cavi = CAVI(case.model, AutoConjugate(case.model), accelerate=accelerate)
    callback = None if target is None else lambda _, elbo: elbo >= target
    return cavi.run(*case.args, max_steps=10_000, tol=1e-11, callback=callback, **case.kwargs)


def sweeps(result: Any) -> int:
    """All sweeps of a run, with those that were refused."""
    return int(result.num_steps) + result.moves.get("refused", 0)


def compare(case: Case) -> list[str]:
    """Sweeps and time of both ways to the ELBO that both reach."""
    ends = [float(fit(case, accelerate).elbo[-1]) for accelerate in (False, True)]
    target = min(ends) - NEAR * abs(min(ends))
    needed: dict[str, int] = {}

    def run(name: str) -> None:
        needed[name] = sweeps(fit(case, name == "extrapolated", target))

    seconds = interleaved(
        {name: partial(run, name) for name in ("plain", "extrapolated")}, ROUNDS, warm=0, clock=time.process_time
    )
    ratio = ratios(seconds["plain"], seconds["extrapolated"]).scaled(1, 2)
    fewer, higher = needed["plain"] / needed["extrapolated"], ends[1] - ends[0]
    gain = f"{higher:.1f}" if abs(higher) > 0.05 else "0"
    return [case.label, str(needed["plain"]), str(needed["extrapolated"]), f"{fewer:.1f}", ratio, gain]


def main() -> None:
    """Print a row for each model, as it is done."""
    torch.set_num_threads(1)
    heading = ["model", "sweeps", "extrapolated", "times fewer", "times faster", "ELBO higher at the end, nats"]
    print(markdown(heading, []), flush=True)
    for case in cases():
        print("| " + " | ".join(compare(case)) + " |", flush=True)


if __name__ == "__main__":
    main()
