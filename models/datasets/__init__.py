"""Small real data sets that the documentation fits: they are installed with the package, so nothing is downloaded.

Each function reads its file anew and returns float64 tensors on the CPU; ``.float()`` or ``.to(device)`` does the rest.
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["EightSchools", "eight_schools", "nile", "old_faithful"]


class EightSchools(NamedTuple):
    """What :func:`eight_schools` returns, in points of the test.

    Attributes:
        effects: the estimated effect of coaching in each school, shape ``[8]``.
        standard_errors: the standard error of each estimate, shape ``[8]``.
    """

    effects: Tensor
    standard_errors: Tensor


def old_faithful() -> Tensor:
    """Eruptions of the Old Faithful geyser, Yellowstone.

    Returns:
        Float64, shape ``[272, 2]``: how long each eruption lasted, and the wait for the next one, both in minutes.

    Source: Härdle (1991), *Smoothing Techniques with Implementation in S*, Springer; the data set ``faithful`` of R.
    """
    return _read("old_faithful.csv")


def eight_schools() -> EightSchools:
    """Effects of coaching on the scores of a test (SAT-V) in eight schools, each estimated from its own experiment.

    Returns:
        The effects and their standard errors, float64, shape ``[8]`` each, in points of the test.

    Source: Rubin (1981), *Estimation in parallel randomized experiments*, Journal of Educational Statistics 6, table 1.
    """
    effects, standard_errors = _read("eight_schools.csv").unbind(1)
    return EightSchools(effects, standard_errors)


def nile() -> Tensor:
    """Yearly flow of the Nile at Aswan, 1871 to 1970.

    Returns:
        Float64, shape ``[100]``, in 10⁸ m³.

    Source: Cobb (1978), *The problem of the Nile*, Biometrika 65; Durbin and Koopman (2012), chapter 2.
    """
    return _read("nile.csv")[:, 1]


def _read(name: str) -> Tensor:
    """The numbers of a file with a line of headings, shape ``[rows, columns]``."""
    with files(__name__).joinpath(name).open(encoding="utf-8") as file:
        return torch.from_numpy(np.loadtxt(file, delimiter=",", skiprows=1))
