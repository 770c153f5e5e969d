"""The constructor's arguments of ``LDA``: each is declared once, with scikit-learn's name, a default and its check."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, fields
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from pyro_latent.errors import ArgumentError, ArgumentTypeError, check_count

from .model import Prior

__all__ = ["Parameters"]

#: Parameters that may differ between a run and the one that resumes it.
_FREE_ON_RESUMING = frozenset(("max_iter", "progress", "device"))
_DTYPES = (torch.float32, torch.float64, None)
#: Parameters that scikit-learn has under other names.
_RENAMED = {"n_components": "num_topics", "n_jobs": "torch.set_num_threads", "verbose": "progress"}


def _check_number(name: str, value: Any, low: float = 0.0, high: float = math.inf, above: bool = False) -> None:
    """That it is a number in a range, with its lower end or ``above`` it."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not low <= float(value) <= high or (above and value == low):
        expected = f"above {low}, up to {high}" if above else f"from {low} to {high}"
        raise ArgumentError(f"Expected {name} to be a number {expected}; got {value!r}. Leave it out for the default.")


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """That it is one of these, or None where that is the default of the others."""
    if value not in choices:
        listed = " or ".join(f'"{c}"' if isinstance(c, str) else str(c) for c in choices if c is not None)
        raise ArgumentError(f"Expected {name} to be {listed}; got {value!r}. Choose one of these, or leave it out.")


def _check_seed(name: str, value: Any) -> None:
    if not isinstance(value, Integral | torch.Generator | None):
        raise ArgumentTypeError(
            f"Expected {name} to be a seed or a torch.Generator; got {value!r}. Write a whole number, such as {name}=0."
        )


def _check_vectorizer(name: str, value: Any) -> None:
    """That it counts words as scikit-learn's vectorizers do, and knows them."""
    methods = ("fit", "transform", "get_feature_names_out")
    if value is not None and (isinstance(value, type) or not all(hasattr(value, m) for m in methods)):
        raise ArgumentTypeError(
            f"Expected {name} to be a vectorizer of scikit-learn that knows its words; got {value!r}. Write "
            f"{name}=CountVectorizer()."
        )


P = TypeVar("P", bound="Parameters")


def _with_hints(cls: type[P]) -> type[P]:
    """The class, with a constructor that says what a parameter is called here."""
    construct = cls.__init__

    @functools.wraps(construct)
    def init(self: Any, *args: Any, **params: Any) -> None:
        cls._check_names(params, ArgumentTypeError)
        construct(self, *args, **params)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


Count = Annotated[int, check_count]
NotNegative = Annotated[float, _check_number]


@_with_hints
@dataclass(repr=False, eq=False)
class Parameters:
    """The constructor of :class:`LDA`, whose docstring says what each argument is."""

    num_topics: Count = 10
    _: KW_ONLY
    doc_topic_prior: Prior = None
    topic_word_prior: Prior = None
    learning_method: Literal["batch", "online", "cvb0"] = "batch"
    max_iter: Count = 100
    tol: NotNegative = 1e-5
    evaluate_every: Annotated[int, functools.partial(check_count, least=0)] = 10
    batch_size: Count = 256
    learning_decay: Annotated[float, functools.partial(_check_number, low=0.5, high=1.0, above=True)] = 0.7
    learning_offset: NotNegative = 10.0
    total_samples: Count = 1_000_000
    mean_change_tol: NotNegative = 1e-3
    max_doc_update_iter: Count = 100
    learn_priors: Literal[False, True, "by_word"] = False
    topic_start: Literal["collapsed", "random", None] = None
    document_start: Literal["random", "previous"] = "random"
    random_state: Annotated[int | torch.Generator | None, _check_seed] = None
    dtype: Annotated[torch.dtype | None, functools.partial(_check_choice, choices=_DTYPES)] = None
    device: Any = None
    progress: bool = False
    vectorizer: Annotated[Any, _check_vectorizer] = None

    @classmethod
    def _check_names(cls, names: Iterable[str], error: type[Exception]) -> None:
        known = [field.name for field in fields(cls)]
        unknown = [name for name in names if name not in known]
        if unknown:
            hints = [f"scikit-learn's {n} is {_RENAMED[n]} here." for n in unknown if n in _RENAMED]
            advice = " ".join(hints or ["Check the spelling."])
            raise error(f"Expected parameters among {', '.join(known)}; got {', '.join(unknown)}. {advice}")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments.

        Raises:
            ArgumentError: for a name that the constructor does not have.
        """
        self._check_names(params, ArgumentError)
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        """The call that makes it, without the defaults; by their text, for a copy's need not be the same objects."""
        given = [(field, repr(getattr(self, field.name))) for field in fields(self)[1:]]
        changed = [f"{field.name}={text}" for field, text in given if text != repr(field.default)]
        return f"{type(self).__name__}({', '.join([repr(self.num_topics), *changed])})"

    def _check(self) -> None:
        """The ranges of the parameters, when fitting, as in scikit-learn; those of the priors need the data.

        Raises:
            ArgumentError: if a parameter is out of its range.
            ArgumentTypeError: if ``random_state`` is neither a seed nor a generator.
        """
        for name, hint in get_type_hints(Parameters, include_extras=True).items():
            if get_origin(hint) is Literal:
                _check_choice(name, getattr(self, name), get_args(hint))
            for check in getattr(hint, "__metadata__", ()):
                check(name, getattr(self, name))
        if self.learn_priors and self.learning_method != "batch":
            raise ArgumentError(
                f'Expected learning_method="batch" to learn priors; got "{self.learning_method}". Choose batch, or '
                "leave learn_priors out."
            )

    def _kept_on_resuming(self) -> dict[str, str]:
        """The parameters that a resumed fit must share, as text."""
        return {n: _shown(v) for n, v in self.get_params().items() if n not in _FREE_ON_RESUMING}

    def _generator(self, device: torch.device) -> torch.Generator:
        """That of the draws, on the device of the work: torch's global one where there is no seed."""
        if isinstance(self.random_state, torch.Generator):
            return self.random_state
        if self.random_state is not None:
            return torch.Generator(device).manual_seed(int(self.random_state))
        return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator


def _shown(value: Any) -> str:
    if isinstance(value, torch.Generator):
        return "a torch.Generator"
    dense = isinstance(value, Tensor) and not (value.is_nested or value.is_meta)
    return str(value.tolist() if dense else value)
