"""Exceptions whose messages carry the fix, and the checks of a count and of a choice, which every layer makes.

Every error of the library derives from :class:`PyroLatentError`, and says what was expected, what came, at
which site, and what to write instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any


class PyroLatentError(Exception):
    """Base of the library's own errors."""


class ArgumentError(PyroLatentError, ValueError):
    """An argument has a value that makes no sense: it names the argument, and the values that do."""


class ArgumentTypeError(PyroLatentError, TypeError):
    """An argument is of a type that cannot be used: it names the argument, and the types that can."""


class NotConjugateError(PyroLatentError):
    """A site whose coordinate update has no closed form: it names the site, the operation, and the parent."""


class LatentValueError(PyroLatentError, RuntimeError):
    """A latent's value was used as a number, where only its distribution is known."""


class NaturalDomainError(PyroLatentError, ValueError):
    """An update left the domain of its family's natural parameters."""


class ElboDecreaseError(PyroLatentError, ArithmeticError):
    """The ELBO fell by more than rounding explains: an update is wrong."""


class ModelError(PyroLatentError, ValueError):
    """The model has no latent site, nothing observed, or changed between two calls."""


class DataError(PyroLatentError, ValueError):
    """The data has a wrong shape, dtype or device, or is not finite."""


class MissingRuleError(NotConjugateError):
    """No rule gives the expected log density of a distribution."""


class RecordingError(PyroLatentError, ArithmeticError):
    """What was recorded of a model is not what Pyro computes: it names the site. An error of the library."""


class CheckpointError(PyroLatentError, ValueError):
    """A checkpoint cannot be written or read, or is of another driver, model or data."""


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value is an integer, NumPy's among them but not ``bool``, and at least this large."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_count(name: str, value: Any, least: int = 1) -> int:
    """An argument that counts something, as a plain integer; NumPy's integers count too, and ``bool`` does not.

    Args:
        name: what the argument is called.
        value: what came.
        least: the smallest count that makes sense.

    Raises:
        ArgumentError: if it is no integer, or below ``least``; with what to write.
    """
    if is_count(value, least):
        return int(value)
    whole = isinstance(value, float) and value.is_integer() and value >= least
    advice = f"{name}={int(value)}" if whole else f"{name}={least} or more"
    raise ArgumentError(f"Expected {name} to be an integer of at least {least}; got {value!r}. Write {advice}.")


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """An argument that is one of a few values.

    Args:
        name: what the argument is called.
        value: what came.
        allowed: the values, that to advise first.

    Raises:
        ArgumentError: if it is none of them; with what to write.
    """
    if value not in allowed:
        listed = " or ".join(map(repr, allowed))
        raise ArgumentError(f"Expected {name} to be {listed}; got {value!r}. Write {name}={allowed[0]!r}.")
