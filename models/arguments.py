"""Checks of the data that the textbook models take."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_latent.errors import DataError
from pyro_latent.values import is_floating, kind_of

__all__ = ["check_data", "check_finite"]


def check_data(name: str, value: Any, shape: str, advice: str, least: int = 1) -> None:
    """The data is a floating tensor of a shape.

    Args:
        name: what the argument is called.
        value: what came.
        shape: the shape in letters, such as ``"[N, D]"``.
        advice: what to write instead.
        least: the smallest number that each letter may stand for.

    Raises:
        DataError: if it is none.
    """
    letters = shape.strip("[]")
    fits = is_floating(value) and value.dim() == len(letters.split(", "))
    if not fits or min(value.shape) < least:
        raise DataError(
            f"Expected {name} to be a floating tensor of shape {shape}, {letters} >= {least}; got "
            f"{kind_of(value)}. {advice}"
        )


def check_finite(name: str, value: Tensor) -> None:
    """The data has no NaN and no infinity.

    Raises:
        DataError: if it has.
    """
    if not bool(value.isfinite().all()):
        raise DataError(
            f"Expected {name} to be finite; got NaN or infinity. Drop those points: {name}[{name}.isfinite()]."
        )
