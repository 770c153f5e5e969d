"""The types of what users give: a Pyro model, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

#: A Pyro model, or a guide: a function with ``pyro.sample`` statements, of any arguments.
Model = Callable[..., Any]
#: The arguments of a call, by position.
Args = tuple[Any, ...]
#: The arguments of a call, by keyword.
Kwargs = dict[str, Any]
#: Plain types and tensors, and lists and dicts of these, as a checkpoint holds them.
PlainState = dict[str, Any]
#: An array of NumPy's.
Array = np.ndarray[Any, Any]

__all__ = ["Args", "Array", "Kwargs", "Model", "PlainState"]
