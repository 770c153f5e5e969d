"""Data of the models, in float64: those that scikit-learn ships, and where it has none, simulated by a stated seed.

A call gives the same tensors again: a fitted guide knows its data by them.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

SEED = 14
"""Of the data that are simulated."""

STUDENT_DF = 4.0
"""Degrees of freedom of the regression with outliers."""

DISPERSION = 4.0
"""Failures that a negative binomial counts up to: its variance is m + m² / 4."""

FEATURES = (1, 2, 3, 8)
"""Of the diabetes data: sex, body mass index, blood pressure and the logarithm of triglycerides."""

PARTS = 2
"""Of the factorised rates."""


def standardised(x: Tensor) -> Tensor:
    """Columns with mean 0 and standard deviation 1 (divisor N)."""
    return (x - x.mean(0)) / x.std(0, correction=0)


def with_ones(features: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(features[:, :1]), features], -1)


@functools.cache
def schools() -> tuple[Tensor, Tensor]:
    """Effects of coaching in eight schools and their standard errors ``[8]``, in points of the test (Rubin 1981)."""
    effects, errors = (28, 8, -3, 7, -1, 1, 18, 12), (15, 10, 16, 11, 9, 11, 10, 18)
    return torch.tensor(effects, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64)


@functools.cache
def diabetes() -> tuple[Tensor, Tensor]:
    """The ten covariates ``[442, 10]`` and the target ``[442]`` of scikit-learn's diabetes data, standardised."""
    from sklearn.datasets import load_diabetes

    features, target = (torch.from_numpy(a.astype(np.float64)) for a in load_diabetes(return_X_y=True, scaled=False))
    return standardised(features), standardised(target)


@functools.cache
def kidiq() -> tuple[Tensor, Tensor]:
    """1, whether the mother finished high school and her IQ ``[434, 3]``; the scores of 434 children ``[434]``.

    Simulated, with the coefficients and the noise that Gelman and Hill (2007, §3.2) find in theirs.
    """
    random = np.random.RandomState(SEED)
    finished, iq = (random.rand(434) < 0.79).astype(float), 100 + 15 * random.randn(434)
    score = 26 + 6 * finished + 0.56 * iq + 18 * random.randn(434)
    return with_ones(torch.from_numpy(np.column_stack([finished, iq]))), torch.from_numpy(score)


@functools.cache
def radon() -> tuple[Tensor, Tensor, Tensor]:
    """The county of 919 houses, 0 to 84, whether measured on the ground floor, and log radon ``[919]`` each.

    Simulated, of the size of the survey in Minnesota and with the coefficients of Gelman and Hill (2007, §12.3); many
    counties have few houses.
    """
    random = np.random.RandomState(SEED)
    county = np.concatenate([np.arange(85), random.choice(85, 834, p=random.dirichlet(np.full(85, 0.7)))])
    floor = (random.rand(919) < 0.17).astype(float)
    level = 1.46 + 0.33 * random.randn(85)
    return (
        torch.from_numpy(county),
        torch.from_numpy(floor),
        torch.from_numpy(level[county] - 0.69 * floor + 0.76 * random.randn(919)),
    )


@functools.cache
def progression() -> tuple[Tensor, Tensor]:
    """1 and FEATURES of the diabetes data ``[442, 5]``, and the target ``[442]``, standardised."""
    features, target = diabetes()
    return with_ones(features[:, FEATURES]), target


@functools.cache
def progressed() -> tuple[Tensor, Tensor]:
    """The same, and whether the target is above its median, 0. or 1. ``[442]``."""
    features, target = progression()
    return features, (target > target.median()).double()


@functools.cache
def tumours() -> tuple[Tensor, Tensor]:
    """1, texture, smoothness, symmetry of scikit-learn's breast cancer data ``[569, 4]``; whether benign ``[569]``."""
    from sklearn.datasets import load_breast_cancer

    features, benign = (torch.from_numpy(a.astype(np.float64)) for a in load_breast_cancer(return_X_y=True))
    return with_ones(standardised(features[:, (1, 4, 8)])), benign


@functools.cache
def situps() -> tuple[Tensor, Tensor]:
    """1, weight, waist, pulse of scikit-learn's Linnerud data, standardised ``[20, 4]``; numbers of situps ``[20]``."""
    from sklearn.datasets import load_linnerud

    exercise, body = load_linnerud(return_X_y=True)
    return with_ones(standardised(torch.from_numpy(body))), torch.from_numpy(exercise[:, 1])


@functools.cache
def counts() -> Tensor:
    """Counts ``[12, 10]`` of a product of two nonnegative matrices, simulated."""
    random = np.random.RandomState(SEED)
    return (
        torch.from_numpy(random.poisson(random.gamma(1.0, 3.0, (12, PARTS)) @ random.gamma(1.0, 1.0, (PARTS, 10))))
        + 0.0
    )
