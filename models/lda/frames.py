"""Tables whose columns have names, such as pandas' data frames: what they are called, and their counts.

pandas need not be there: a frame is known by what it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from numbers import Real
from typing import Any

import numpy as np

from pyro_latent.errors import ArgumentTypeError, DataError

__all__ = ["as_frame", "column_names", "frame_counts"]


def column_names(data: Any) -> tuple[str, ...] | None:
    """The names of a frame's columns if they are strings; None for other data, or columns that are only numbered.

    Raises:
        TypeError: if some names are strings, and others are not.
    """
    columns = getattr(data, "columns", None)
    names = list(columns) if isinstance(columns, Iterable) else []
    others = [name for name in names if not isinstance(name, str)]
    if others and len(others) < len(names):
        raise ArgumentTypeError(
            f"Expected columns that all have strings as names, or none; got {others[0]!r} among strings. Write "
            "data.columns = data.columns.astype(str)."
        )
    return tuple(str(name) for name in names) if names and not others else None


def frame_counts(data: Any) -> Any:
    """The counts of a pandas frame: a SciPy matrix if its columns are sparse, else an array. Other data stays.

    Raises:
        DataError: if a column holds no numbers.
    """
    if not hasattr(data, "columns") or not hasattr(data, "dtypes"):
        return data
    dtypes = list(data.dtypes)
    if not all(hasattr(dtype, "kind") for dtype in dtypes):
        return data
    unlike = [i for i, dtype in enumerate(dtypes) if dtype.kind not in "bifu"]
    wrong = [data.columns[i] for i in unlike if not all(isinstance(value, Real) for value in data.iloc[:, i])]
    if wrong:
        raise DataError(
            f"Expected columns of counts; got {wrong[0]!r}, which holds no real numbers, and {len(wrong)} such in all. "
            "Drop them, or count their words first."
        )
    sparse: Any = getattr(data, "sparse", None)  # an attribute only where all columns are sparse
    if sparse is not None and all(dtype.fill_value == 0 for dtype in dtypes):
        return sparse.to_coo()
    array = np.asarray(data)
    # Where numbers may be missing they are objects to NumPy; those that are missing are found later, as not finite.
    return data.to_numpy(dtype=np.float64, na_value=np.nan) if array.dtype.kind == "O" else array


def as_frame(values: Any, names: Iterable[str], index: Any = None) -> Any:
    """A pandas data frame of an array ``[rows, columns]``.

    Raises:
        ImportError: if pandas is not installed.
    """
    try:
        pandas = import_module("pandas")
    except ImportError:
        raise ImportError(
            'Expected pandas for set_output(transform="pandas"); got none. Run: pip install pandas'
        ) from None
    return pandas.DataFrame(values, index=index, columns=list(names))
