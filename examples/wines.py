"""Cultivars of wines from a table with holes: a pipeline of scikit-learn in which every step but one has a posterior.

The 178 wines of scikit-learn's ``load_wine`` are of three cultivars, which nobody tells the pipeline. A tenth of their
13 measurements are taken away. ``PPCA`` describes each wine by what is left of it; a mixture of a Dirichlet process
finds how many kinds there are, up to six.

python examples/wines.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_wine
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from pyro_latent.models.estimators import PPCA, GaussianMixture

Table = np.ndarray[Any, Any]


def read_data(missing: float = 0.1, seed: int = 0) -> tuple[Table, Table]:
    """Measurements ``[178, 13]``, some of them NaN, and the cultivars ``[178]``."""
    wines = load_wine()
    hidden = np.random.default_rng(seed).random(wines.data.shape) < missing
    return np.where(hidden, np.nan, wines.data), wines.target


def make_kinds(seed: int = 0) -> Pipeline:
    """Measurements in units of their spread, then factors, then clusters."""
    mixture = GaussianMixture(6, weight_concentration_prior=0.01, n_init=2, tol=1e-6, random_state=seed)
    return make_pipeline(StandardScaler(), PPCA(3, tol=1e-6), mixture)


def main() -> None:
    table, cultivar = read_data()
    kinds = make_kinds()
    found = kinds.fit_predict(table)
    print(f"{np.isnan(table).mean():.0%} of the measurements are missing")
    print(f"kinds of wine with more than 5 % of the weight: {(kinds[-1].weights_ > 0.05).sum()}")
    print(f"agreement with the cultivars (adjusted Rand index): {adjusted_rand_score(cultivar, found):.2f}")


if __name__ == "__main__":
    main()
