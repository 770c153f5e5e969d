"""The constructor's arguments of ``LDA``: their names as scikit-learn has them, and their ranges."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, Self

import torch
from torch import Tensor

from pyro_latent.errors import is_count

from .corpus import Corpus
from .model import Prior

__all__ = ["Parameters"]

LearningMethod = Literal["batch", "online", "cvb0"]
TopicStart = Literal["random", "collapsed"]
DocumentStart = Literal["random", "previous"]

#: Whole numbers, and the least of each.
_WHOLE = {
    "num_topics": 1,
    "max_iter": 1,
    "evaluate_every": 0,
    "batch_size": 1,
    "max_doc_update_iter": 1,
    "total_samples": 1,
}
#: Real numbers, and their ranges.
_REAL = {
    "tol": (0.0, math.inf),
    "mean_change_tol": (0.0, math.inf),
    "learning_offset": (0.0, math.inf),
    "learning_decay": (0.5, 1.0),
}
_CHOICES = {
    "learning_method": ("batch", "online", "cvb0"),
    "topic_start": ("random", "collapsed"),
    "document_start": ("random", "previous"),
}
#: Parameters that may differ between a run and the one that resumes it.
_FREE_ON_RESUMING = frozenset(("max_iter", "progress", "device"))
#: Parameters that scikit-learn has under other names.
_RENAMED = {"n_components": "num_topics", "n_jobs": "torch.set_num_threads", "verbose": "progress"}


class Parameters:
    """The constructor of :class:`LDA`, whose docstring says what each argument is."""

    def __init__(
        self,
        num_topics: int = 10,
        *,
        doc_topic_prior: Prior = None,
        topic_word_prior: Prior = None,
        learning_method: LearningMethod = "batch",
        max_iter: int = 100,
        tol: float = 1e-5,
        evaluate_every: int = 10,
        batch_size: int = 256,
        learning_decay: float = 0.7,
        learning_offset: float = 10.0,
        total_samples: int = 1_000_000,
        mean_change_tol: float = 1e-3,
        max_doc_update_iter: int = 100,
        learn_priors: bool = False,
        topic_start: TopicStart = "random",
        document_start: DocumentStart = "random",
        random_state: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
        progress: bool = False,
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            raise TypeError(self._unknown_message(list(unknown)))
        self.num_topics = num_topics
        self.doc_topic_prior = doc_topic_prior
        self.topic_word_prior = topic_word_prior
        self.learning_method = learning_method
        self.max_iter = max_iter
        self.tol = tol
        self.evaluate_every = evaluate_every
        self.batch_size = batch_size
        self.learning_decay = learning_decay
        self.learning_offset = learning_offset
        self.total_samples = total_samples
        self.mean_change_tol = mean_change_tol
        self.max_doc_update_iter = max_doc_update_iter
        self.learn_priors = learn_priors
        self.topic_start = topic_start
        self.document_start = document_start
        self.random_state = random_state
        self.dtype = dtype
        self.device = device
        self.progress = progress

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return [n for n, p in inspect.signature(cls).parameters.items() if p.kind is not p.VAR_KEYWORD]

    @classmethod
    def _unknown_message(cls, names: Sequence[str]) -> str:
        """What is wrong with these parameters, and what they are called here."""
        hints = [f"scikit-learn's {n} is {_RENAMED[n]} here." for n in names if n in _RENAMED]
        listed = ", ".join(cls._parameter_names())
        return " ".join(
            [f"Expected parameters among {listed}; got {', '.join(names)}.", *(hints or ["Check the spelling."])]
        )

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments.

        Raises:
            ValueError: for a name that the constructor does not have.
        """
        unknown = sorted(set(params) - set(self._parameter_names()))
        if unknown:
            raise ValueError(self._unknown_message(unknown))
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        """The call that makes it, without the defaults; by their text, for a copy's need not be the same objects."""
        defaults = inspect.signature(type(self)).parameters
        changed = {n: repr(v) for n, v in self.get_params().items() if repr(v) != repr(defaults[n].default)}
        shown = [f"{n}={v}" for n, v in changed.items() if n != "num_topics"]
        return f"{type(self).__name__}({', '.join([repr(self.num_topics), *shown])})"

    def _check(self) -> None:
        """The ranges of the parameters, when fitting, as in scikit-learn; those of the priors need the data.

        Raises:
            ValueError: if a parameter is out of its range.
            TypeError: if ``random_state`` is neither a seed nor a generator.
        """
        self._check_numbers()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                listed = " or ".join(f'"{c}"' for c in choices)
                raise ValueError(f"Expected {name} to be {listed}; got {getattr(self, name)!r}. Choose one of these.")
        if self.learn_priors and self.learning_method != "batch":
            raise ValueError(
                f'Expected learning_method="batch" to learn priors; got "{self.learning_method}". Choose batch, or '
                "leave learn_priors out."
            )
        if self.dtype not in (None, torch.float32, torch.float64):
            raise ValueError(
                f"Expected dtype to be torch.float32 or torch.float64; got {self.dtype}. Leave it out for that of the "
                "counts."
            )
        if not (self.random_state is None or isinstance(self.random_state, numbers.Integral | torch.Generator)):
            raise TypeError(
                f"Expected random_state to be a seed or a torch.Generator; got {self.random_state!r}. Write a whole "
                "number, such as random_state=0."
            )

    def _check_numbers(self) -> None:
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if not is_count(value, least):
                raise ValueError(
                    f"Expected {name} to be an integer >= {least}; got {value!r}. Write {name}={max(least, 1)} or more."
                )
        for name, (low, high) in _REAL.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= float(value) <= high:
                raise ValueError(
                    f"Expected {name} to be a number from {low} to {high}; got {value!r}. Leave it out for "
                    f"{inspect.signature(type(self)).parameters[name].default}."
                )
        if self.learning_decay == 0.5:
            raise ValueError(
                "Expected learning_decay above 0.5, up to 1; got 0.5. The squares of smaller step sizes add up to "
                "infinity, so that minibatches never settle: take 0.7."
            )

    def _kept_on_resuming(self) -> dict[str, str]:
        """The parameters that a resumed fit must share, as text."""
        return {n: _shown(v) for n, v in self.get_params().items() if n not in _FREE_ON_RESUMING}

    def _generator(self, corpus: Corpus) -> torch.Generator | None:
        """That of the draws, on the corpus's device; None for torch's global one."""
        if isinstance(self.random_state, torch.Generator) or self.random_state is None:
            return self.random_state
        return torch.Generator(corpus.count.device).manual_seed(int(self.random_state))


def _shown(value: Any) -> str:
    if isinstance(value, torch.Generator):
        return "a torch.Generator"
    return str(value.tolist() if isinstance(value, Tensor) else value)
