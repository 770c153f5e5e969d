"""A model of the gallery, and what becomes of it."""

from __future__ import annotations

import logging
import math
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_latent import CAVI, EM, AutoConjugate, PyroLatentError

#: Sweeps at most: a fit that has not settled by then is scored where it stands.
MAX_STEPS = 40
#: Draws of the guide in each of ten batches by which a bound is checked.
NUM_DRAWS = 50
#: Standard errors by which an estimate may differ.
TOLERANCE = 4.0
#: Seconds after which a fit counts as one that hangs.
LIMIT = 60

CLOSED = "in closed form"
QUADRATURE = "with factors by quadrature"
AUXILIARY = "with auxiliary sites"
JOINT = "with joint blocks"
BOTH = "with auxiliary sites and joint blocks"
BY_EM = "as EM"
REFUSED = "refused"
WRONG = "wrong"
WAYS = (CLOSED, QUADRATURE, AUXILIARY, JOINT, BOTH, BY_EM, REFUSED)
#: What is asked of the guide of a model that is refused as it stands, in this order.
SETTINGS: dict[str, dict[str, Any]] = {
    AUXILIARY: {"reparam": True},
    JOINT: {"blocks": "auto"},
    BOTH: {"reparam": True, "blocks": "auto"},
}


@dataclass(frozen=True)
class Entry:
    """A model as its authors wrote it, in Pyro.

    Attributes:
        library: who has the model.
        name: what it is called there.
        model: the program.
        data: makes the model's arguments, after a seed is set.
        expect: a way in which it fits, or why it is refused.
    """

    library: str
    name: str
    model: Callable[..., Any]
    data: Callable[[], tuple[Any, ...]]
    expect: str


@dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes:
        way: one of the ways in which a model fits, "refused", or "wrong".
        words: why it is refused, or what is wrong.
        elbo: the last bound.
        estimate: what Pyro's estimator makes of the bound.
        error: its standard error.
    """

    way: str
    words: str = ""
    elbo: float = math.nan
    estimate: float = math.nan
    error: float = math.nan


class Gallery:
    """The models of one library."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.entries: list[Entry] = []

    def add(self, name: str, model: Callable[..., Any], data: Callable[[], tuple[Any, ...]], expect: str) -> None:
        self.entries.append(Entry(self.library, name, model, data, expect))

    def model(
        self, name: str, data: Callable[[], tuple[Any, ...]], expect: str = CLOSED
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A decorator that adds the model below it."""

        def add(model: Callable[..., Any]) -> Callable[..., Any]:
            self.add(name, model, data, expect)
            return model

        return add


@contextmanager
def double_precision() -> Iterator[None]:
    """Numbers in double precision, and a parameter store of one's own."""
    before = torch.get_default_dtype()
    logging.disable(logging.INFO)  # Pyro tells what it guesses
    torch.set_default_dtype(torch.float64)
    try:
        with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(before)
        logging.disable(logging.NOTSET)


class TooSlowError(BaseException):
    """A fit has not ended in time. No handler of other errors is to take it for one of them."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """A TooSlowError after so many seconds of this process."""

    def stop(*_: object) -> None:
        raise TooSlowError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def examine(entry: Entry, num_draws: int = NUM_DRAWS) -> Outcome:
    """Fit a model in the first way that takes it, and hold the bound against Pyro's estimator."""
    with double_precision():
        pyro.set_rng_seed(0)
        args = entry.data()
        try:
            with at_most(LIMIT):
                fitted = _fit(entry, args)
        except PyroLatentError as error:
            return Outcome(REFUSED, first_sentence(error))
        except (Exception, TooSlowError) as error:  # what is not ours is a fault
            return Outcome(WRONG, f"{type(error).__name__}: {first_sentence(error)}")
        way, guide, history = fitted
        if bool((history.diff() < -1e-8 * (1 + history[1:].abs())).any()):
            return Outcome(WRONG, "the bound falls", float(history[-1]))
        try:
            return holds(way, entry.model, guide, args, num_draws)
        except Exception as error:  # so is this
            return Outcome(WRONG, f"scored: {type(error).__name__}: {first_sentence(error)}")


def _fit(entry: Entry, args: tuple[Any, ...]) -> tuple[str, Any, Tensor]:
    """The way, the guide, and the bound after each sweep."""
    if entry.expect == BY_EM:
        em = EM(entry.model)
        try:
            return BY_EM, em.guide, em.run(*args, max_steps=MAX_STEPS).elbo
        except PyroLatentError:
            em = EM(entry.model, m_step="gradient", init=0)
            return BY_EM, em.guide, em.run(*args, max_steps=MAX_STEPS).elbo
    guide = AutoConjugate(entry.model)
    try:
        history = CAVI(entry.model, guide).run(*args, max_steps=MAX_STEPS).elbo
    except PyroLatentError:
        for way, settings in SETTINGS.items():
            asked = AutoConjugate(entry.model, **settings)
            with suppress(PyroLatentError):
                return way, asked, CAVI(entry.model, asked).run(*args, max_steps=MAX_STEPS).elbo
        raise
    return QUADRATURE if "  by quadrature (" in guide.explain() else CLOSED, guide, history


def holds(way: str, model: Callable[..., Any], guide: Any, args: tuple[Any, ...], num_draws: int) -> Outcome:
    """The bound beside its estimate. With auxiliary sites, whose posteriors are their own factors, it may be below."""
    bound = float(guide.elbo())
    words = ""
    for estimated in (many_at_once, one_by_one):
        try:
            losses = estimated(model, guide, args, num_draws)
        except Exception as problem:  # of a model that takes no batch of draws
            words = words or f"scored: {type(problem).__name__}: {first_sentence(problem)}"
            continue
        estimate, error = -float(losses.mean()), float(losses.std()) / len(losses) ** 0.5
        slack = TOLERANCE * error + 1e-6 * (1 + abs(bound))
        if error < 1 and estimate > bound - slack and (way in (AUXILIARY, BOTH) or estimate < bound + slack):
            return Outcome(way, "", bound, estimate, error)
        words = f"the bound is {bound:.3f}, Pyro's estimate {estimate:.3f} ± {error:.3f}"
    return Outcome(WRONG, words, bound)


def many_at_once(model: Callable[..., Any], guide: Any, args: tuple[Any, ...], num_draws: int) -> Tensor:
    """Pyro's estimate of the negative bound from each of ten batches of draws [10]."""
    elbo = Trace_ELBO(num_particles=num_draws, vectorize_particles=True)
    with torch.no_grad():
        return torch.tensor([elbo.loss(model, guide, *args) for _ in range(10)])


def one_by_one(model: Callable[..., Any], guide: Any, args: tuple[Any, ...], num_draws: int) -> Tensor:
    """Pyro's estimate of the negative bound from each draw [4 M], for models that take no batch of them."""
    elbo = Trace_ELBO()
    with torch.no_grad(), pyro.validation_enabled(False):
        return torch.tensor([elbo.loss(model, guide, *args) for _ in range(4 * num_draws)])


def first_sentence(error: BaseException) -> str:
    """What an error says first, in one line; of several obstacles the first."""
    words = " ".join(str(error).split())
    return re.sub(r"^Expected sites that can all be updated; got \d+ obstacles: 1\. ", "", words).partition(". ")[0]
