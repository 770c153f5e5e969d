"""Exceptions whose messages carry the fix, and the checks of a count and of a choice, which every layer makes.

Every error of the library derives from :class:`PyroLatentError`, and says what was expected, what came, at
which site, and what to write instead.
"""

from __future__ import annotations

import functools
import math
import os
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class PyroLatentError(Exception):
    """Base of the library's own errors."""


E = TypeVar("E", bound=PyroLatentError)


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


class MissingPosteriorError(ModelError, KeyError):
    """A hand-written update asked for a posterior that there is none of."""

    __str__ = Exception.__str__


class DataError(PyroLatentError, ValueError):
    """The data has a wrong shape, dtype or device, or is not finite."""


class MissingFormulaError(PyroLatentError, NotImplementedError):
    """A distribution or a family has no formula for what was asked of it."""


class MissingNameError(PyroLatentError, KeyError):
    """Something was asked for by a name that nothing has."""

    __str__ = Exception.__str__


class MissingPackageError(PyroLatentError, ImportError):
    """A package that comes with an extra is not installed."""


class MissingRuleError(NotConjugateError):
    """No rule gives the expected log density of a distribution."""


class RecordingError(PyroLatentError, ArithmeticError):
    """What was recorded of a model is not what Pyro computes: it names the site. An error of the library."""


class CheckpointError(PyroLatentError, ValueError):
    """A checkpoint cannot be written or read, or is of another driver, model or data."""


class ProcessError(PyroLatentError, RuntimeError):
    """A process that fits a model with others has failed, or is gone: it says which one."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """There is no checkpoint to read."""


def is_count(value: object, least: int = 1) -> bool:
    """Whether a value is an integer, NumPy's among them but not ``bool``, and at least this large."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < 2**63


def check_seed(seed: Any) -> int:
    """A seed as a plain integer.

    Raises:
        ArgumentError: if torch takes it for none.
    """
    if is_count(seed, -(2**63)) and int(seed) < 2**63:
        return int(seed)
    raise ArgumentError(f"Expected a seed that is an integer of at most 63 bits; got {seed!r}. Write seed=0.")


def as_real(value: object) -> float:
    """A number as a plain float, NumPy's among them; NaN, which fails every comparison, for anything else."""
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.inf


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


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """An argument that is one of a few values.

    Args:
        name: what the argument is called.
        value: what came.
        allowed: the values, that to advise first.

    Raises:
        ArgumentError: if it is none of them; with what to write.
    """
    if not any(value is one or (type(value) is type(one) and value == one) for one in allowed):
        listed = " or ".join(map(repr, allowed))
        raise ArgumentError(f"Expected {name} to be {listed}; got {value!r}. Write {name}={allowed[0]!r}.")


# Errors of others.


#: The packages whose errors are said in our words.
_FOREIGN = ("builtins", "numba", "numpy", "pandas")
#: The folders of this library, without its ready-made models, and of Python's own.
_LIBRARIES = (f"{Path(__file__).parent}{os.sep}", f"{sysconfig.get_path('stdlib')}{os.sep}")
#: What Pyro puts between the words of an error inside a traced program and the shapes of its sites.
_SHAPES = "\nTrace Shapes:"


@contextmanager
def in_our_words(expected: str, advise: Callable[[], str]) -> Iterator[None]:
    """Errors of Python, NumPy or PyTorch inside a user's program say where they came up, and what to do; and as far as
    the random generators go, a program that failed did not run.

    Args:
        expected: what was expected, such as "a model that runs with these arguments".
        advise: makes the last sentences.

    Raises:
        ModelError: that is of the error's own type as well.
    """
    from .values import leaving_random_state

    try:
        with leaving_random_state():
            yield
    except PyroLatentError:
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _FOREIGN:  # of the program's own, or of the machine
            raise
        raise _error_of(ModelError, type(error))(
            f"Expected {expected}; got {_words_of(error)}{_place_of(error)}. {advise()}"
        ) from error


def _error_of(ours: type[E], kind: type[Exception]) -> type[E]:
    """An error of ours that ``except`` takes for one of another type too."""
    try:
        return type(ours.__name__, (ours, kind), {"__str__": Exception.__str__, "__module__": ours.__module__})
    except TypeError:  # two types that no class can derive from
        return ours


def checked_call(function: Callable[P, T]) -> Callable[P, T]:
    """A function where errors of Python, NumPy, PyTorch or Numba inside say what it was given; a call that fails draws
    no random number, as if it had not been made.

    An error in a user's program that it runs, such as a model, is said in the program's own words, with the line there
    that it came up at.

    Raises:
        ArgumentError: that is of the error's own type as well.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        from .values import kind_of, leaving_random_state  # with torch, which errors alone do without

        try:
            with leaving_random_state():
                return function(*args, **kwargs)
        except (PyroLatentError, MemoryError):
            raise
        except Exception as error:
            name = function.__qualname__.removesuffix(".__init__")
            if type(error).__module__.split(".")[0] not in _FOREIGN:  # of a program given to it
                raise
            given = ", ".join([*map(kind_of, args), *(f"{n}: {kind_of(v)}" for n, v in kwargs.items())])
            is_ready_made = function.__module__.startswith("pyro_latent.models.")  # which is given no program
            place = "" if is_ready_made else _place_of(error)
            raise _error_of(ArgumentError, type(error))(
                f"Expected {name} to run with the arguments ({given}); got {_words_of(error)}{place}. "
                f"{'Look at that line, or write' if place else 'Write'} help({name}), which says what each may be."
            ) from error

    return called


def _words_of(error: Exception) -> str:
    """The type of an error and what it says, without the shapes that Pyro adds; without words, as of an assertion, the
    line that it came up at.
    """
    frames = traceback.extract_tb(error.__traceback__)
    line = (frames[-1].line or "") if frames else ""
    return f"{type(error).__name__}: {str(error).partition(_SHAPES)[0] or line}"


def _place_of(error: Exception) -> str:
    """The line of the model that an error came up at, the innermost that is in no library."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(_LIBRARIES)]
    if not own:
        return ""
    line = textwrap.shorten(own[-1].line or "", 120, placeholder=" ...")
    return f", at {Path(own[-1].filename).name}, line {own[-1].lineno}: {line}"
