"""The estimators of ``pyro_latent.models.estimators`` beside those that they are named after: results, seconds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from hmmlearn.vhmm import VariationalGaussianHMM
from sklearn import decomposition, linear_model
from sklearn.mixture import BayesianGaussianMixture

from pyro_latent.models import estimators
from pyro_latent.models.estimators import GaussianMixture

from .timing import Spread, interleaved, markdown, ratios

ROUNDS = 5
Rows = np.ndarray[Any, Any]
#: Names of the two runs, in the order of the table.
OURS, THEIRS = "here", "theirs"


def clusters(count: int, dimensions: int, components: int) -> Rows:
    """Points of some well mixed clusters, ``[N, D]``."""
    rng = np.random.default_rng(0)
    centers = 3.0 * rng.normal(size=(components, dimensions))
    return centers[rng.integers(components, size=count)] + rng.normal(size=(count, dimensions))


def fit(make: Callable[[], Any], *data: Any) -> Callable[[], Any]:
    """A fit of a new estimator; that it is cut short, where it is, need not be said each time."""

    def run() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make().fit(*data)

    return run


def row(case: str, runs: dict[str, Callable[[], Any]], found: Callable[[Any], str]) -> list[str]:
    """A line of the table: what both find, and how long they take."""
    seconds = interleaved(runs, ROUNDS, clock=time.process_time)
    made = {name: run() for name, run in runs.items()}
    sweeps = " and ".join(str(sweeps_of(made[name])) for name in (OURS, THEIRS))
    return [
        case,
        found(made[OURS]),
        found(made[THEIRS]),
        sweeps,
        *(Spread.of(seconds[name]).scaled(1e3) for name in (OURS, THEIRS)),
        ratios(seconds[THEIRS], seconds[OURS]).scaled(1.0, 3),
    ]


def sweeps_of(fitted: Any) -> int:
    """How many iterations a fit took; hmmlearn's monitor knows."""
    return len(fitted.monitor_.history) if hasattr(fitted, "monitor_") else int(fitted.n_iter_)


def mixture(count: int = 10_000, dimensions: int = 2, components: int = 10) -> list[str]:
    """Full covariances and a Dirichlet process, each from its own k-means."""
    points = clusters(count, dimensions, components)
    new = clusters(2 * count, dimensions, components)[count:]
    runs = {
        OURS: fit(lambda: GaussianMixture(components, random_state=0), points),
        THEIRS: fit(
            lambda: BayesianGaussianMixture(
                n_components=components, reg_covar=0.0, max_iter=1000, tol=1e-8 * 4.5 * count, random_state=0
            ),
            points,
        ),
    }
    case = f"`BayesianGaussianMixture`, N = {count:,}, D = {dimensions}, K = {components}"
    return row(case, runs, lambda fitted: f"log density of new points {fitted.score(new):.4f}")


def linear(kind: str, count: int, dimensions: int) -> list[str]:
    """A regression half of whose weights are zero."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=dimensions) * (np.arange(dimensions) % 2)
    features = rng.normal(size=(2 * count, dimensions))
    target = features @ weights + rng.normal(size=2 * count)
    here, there = getattr(estimators, kind), getattr(linear_model, kind)
    data = features[:count], target[:count]
    runs = {OURS: fit(here, *data), THEIRS: fit(there, *data)}

    def found(fitted: Any) -> str:
        error = fitted.predict(features[count:]) - target[count:]
        return f"root mean squared error of new targets {np.sqrt(np.mean(error**2)):.4f}"

    return row(f"`{kind}`, N = {count:,}, D = {dimensions}", runs, found)


def factor_analysis(count: int, dimensions: int, factors: int) -> list[str]:
    """Complete tables: scikit-learn's takes no others."""
    rng = np.random.default_rng(0)
    loading, noise = rng.normal(size=(factors, dimensions)), rng.uniform(0.5, 1.0, size=dimensions)
    table = rng.normal(size=(2 * count, factors)) @ loading + noise * rng.normal(size=(2 * count, dimensions))
    runs = {
        OURS: fit(lambda: estimators.FactorAnalysis(factors), table[:count]),
        THEIRS: fit(lambda: decomposition.FactorAnalysis(factors, tol=1e-7 * count), table[:count]),
    }
    case = f"`FactorAnalysis`, N = {count:,}, D = {dimensions}, K = {factors}"
    return row(case, runs, lambda fitted: f"log density of new rows {fitted.score(table[count:]):.4f}")


def chain(count: int, dimensions: int, states: int) -> list[str]:
    """States that stay nine times in ten."""
    rng = np.random.default_rng(0)
    path = [0]
    for _ in range(2 * count - 1):
        path.append(path[-1] if rng.random() < 0.9 else int(rng.integers(states)))
    rows = 2.0 * rng.normal(size=(states, dimensions))[path] + rng.normal(size=(2 * count, dimensions))
    prior, tol = np.tile(np.cov(rows[:count].T), (states, 1, 1)), 1e-8 * 4 * count
    runs = {
        OURS: fit(lambda: estimators.HiddenMarkovModel(states, random_state=0), rows[:count]),
        THEIRS: fit(
            lambda: VariationalGaussianHMM(states, n_iter=1000, tol=tol, scale_prior=prior, random_state=0),
            rows[:count],
        ),
    }
    case = f"hmmlearn's `VariationalGaussianHMM`, T = {count:,}, D = {dimensions}, K = {states}"
    return row(case, runs, lambda fitted: f"log density of a new vector {fitted.score(rows[count:]) / count:.4f}")


CASES: list[Callable[[], list[str]]] = [
    mixture,
    lambda: mixture(1_000, 2, 5),
    lambda: mixture(5_000, 8, 10),
    lambda: linear("BayesianRidge", 200, 10),
    lambda: linear("BayesianRidge", 20_000, 50),
    lambda: linear("ARDRegression", 200, 10),
    lambda: linear("ARDRegression", 20_000, 50),
    lambda: factor_analysis(500, 10, 3),
    lambda: factor_analysis(5_000, 20, 5),
    lambda: chain(1_000, 2, 3),
    lambda: chain(10_000, 4, 5),
]


def run() -> str:
    """The table of all cases."""
    heading = ["beside", "result here", "result there", "sweeps", "ms here", "ms there", "times as long there"]
    return (
        "## Estimators beside scikit-learn's and hmmlearn's\n\n"
        f"{markdown(heading, [case() for case in CASES])}\n\n"
        f"A fit in CPU milliseconds, median and quartiles of {ROUNDS} rounds. Each mixture starts at its own "
        "k-means; regressions there stop at a change of the weights, here at one of the ELBO."
    )


if __name__ == "__main__":
    print(run())
