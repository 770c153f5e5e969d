"""How ``LDA`` fits: what a pass over the documents does by each method, and what a fit keeps from pass to pass.

A batch pass brings every document to convergence, then moves the topics; an online pass does so a minibatch at a time,
and moves the topics part of the way; a collapsed pass is one of CVB0. All three are functions of a state, so that a fit
can stop after any pass and go on from what it kept.

Source: [4] (113)-(118), (133)-(145); Hoffman, Blei and Bach 2010 for minibatches; Asuncion et al. 2009 for CVB0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_latent.checkpoint import Run

from .collapsed import CollapsedState, collapsed_fit, collapsed_start, collapsed_topics
from .corpus import Corpus
from .evaluation import dirichlet_bound
from .hyperparameters import dirichlet_concentration, symmetric_concentration
from .kernel import DocumentStep, document_step, expected_topics
from .model import complete_priors
from .parameters import Parameters
from .updates import expected_log

__all__ = [
    "WHOLE",
    "FitState",
    "Whole",
    "bound",
    "documents",
    "finished",
    "first_topics",
    "fitted",
    "initial",
    "near_one",
    "online_step",
    "passes",
]

T = TypeVar("T")

#: With learned priors, passes before the first is learned: earlier, all documents still look alike.
_PASSES_BEFORE_PRIORS = 10


@dataclass(frozen=True)
class FitState:
    """Where a fit is, after a number of passes.

    Attributes:
        topic_word: λ, shape ``[K, V]``.
        alpha, xi: the priors, shapes ``[K]`` and ``[V]``.
        gamma: γ of the last pass, shape ``[D, K]``.
        passes, batches: passes made, and minibatches seen.
        converged: whether the tolerance was reached.
        bounds: (pass, ELBO) where it was worked out.
        counts: the responsibilities and the two counts that CVB0 goes on from, and changes in place; see
            ``CollapsedState``.
    """

    topic_word: Tensor
    alpha: Tensor
    xi: Tensor
    gamma: Tensor | None = None
    passes: int = 0
    batches: int = 0
    converged: bool = False
    bounds: list[tuple[int, float]] = field(default_factory=list)
    counts: tuple[Tensor, ...] = ()


class Whole:
    """The documents of a fit, all in this process; where others have some too, what is said of all is added up."""

    #: Whether this process starts the fit and shows how far it is.
    is_first = True

    def begin(self, parameters: Parameters, corpus: Corpus) -> None:
        """Check that a fit with these parameters and documents is possible.

        Raises:
            DataError: if there is no document, or none has words.
        """
        corpus.check_documents()
        corpus.check_tokens()

    def agreed(self, work: Callable[[], T]) -> T:
        """What a piece of work returns."""
        return work()

    def first(self, work: Callable[[], T]) -> T:
        """What a piece of work of the first process with documents returns."""
        return work()

    def shared(self, item: T) -> T:
        """The item of the process that starts the fit, and has its file."""
        return item

    def data_of(self, corpus: Corpus) -> list[Any]:
        """What the documents are known by in a file."""
        return [corpus.num_documents, corpus.num_words, corpus.doc, corpus.word, corpus.count]

    def kept(self, state: FitState) -> FitState:
        """What a file keeps of a state."""
        return state

    def starts(self, corpus: Corpus, num_topics: int, generator: torch.Generator) -> Tensor:
        """Where the documents' concentrations start, at random: shape ``[D, K]``."""
        return near_one((corpus.num_documents, num_topics), corpus.count, generator)

    def total(self, part: Tensor) -> Tensor:
        """The sum of what is said of the documents here, over all documents."""
        return part

    def mean(self, rows: Tensor) -> Tensor:
        """The mean of rows, one for each document, over all documents."""
        return rows.mean(0)


#: Where no other process has documents.
WHOLE = Whole()


def initial(parameters: Parameters, corpus: Corpus, generator: torch.Generator) -> FitState:
    """Where the passes of a fit start: for CVB0 at random responsibilities, else at topics."""
    if parameters.learning_method != "cvb0":
        return first_topics(parameters, corpus, generator)
    alpha, xi = _priors(parameters, corpus)
    start = collapsed_start(corpus, parameters.num_topics, generator)
    return FitState(xi.expand(parameters.num_topics, -1), alpha, xi, counts=start.counts)


def first_topics(
    parameters: Parameters, corpus: Corpus, generator: torch.Generator, default: str = "collapsed"
) -> FitState:
    """Topics of CVB0, merged; or drawn from Gamma(100, rate 100), as in scikit-learn: no two are alike."""
    alpha, xi = _priors(parameters, corpus)
    if (parameters.topic_start or default) == "collapsed":
        return FitState(collapsed_topics(corpus, alpha, xi, generator), alpha, xi)
    return FitState(near_one((corpus.num_words, len(alpha)), corpus.count, generator).mT, alpha, xi)


def near_one(shape: tuple[int, int], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws from Gamma(100, rate 100): mean 1, standard deviation 0.1; of the dtype and device of ``like``."""
    return torch._standard_gamma(like.new_full(shape, 100.0), generator=generator) / 100


def _priors(parameters: Parameters, corpus: Corpus) -> tuple[Tensor, Tensor]:
    return complete_priors(corpus, parameters.num_topics, parameters.doc_topic_prior, parameters.topic_word_prior)


def fitted(
    parameters: Parameters,
    corpus: Corpus,
    path: str | os.PathLike[str] | None = None,
    every: int = 10,
    shards: Whole = WHOLE,
) -> tuple[FitState, float]:
    """The state after all passes, with the documents at the final topics, and its ELBO in nats.

    Args:
        parameters: how to fit.
        corpus: a whole corpus.
        path: a file that the fit is written to, and goes on from where it exists.
        every: passes between two writings.
        shards: the documents of other processes, if some have others.

    Raises:
        CheckpointError: if the file is of other data or settings, or of a fit on another kind of device, whose draws
            cannot go on here; or cannot be written.
    """
    device = corpus.count.device
    generator = parameters._generator(device)
    data = {"data": shards.data_of(corpus)}
    settings = {"device": device.type, **parameters._kept_on_resuming()}
    file = partial(Run, path if shards.is_first else None, "LDA", every=every, data=data, settings=settings)
    run = shards.agreed(file)
    found = shards.shared(shards.agreed(run.read))
    if found is None:
        start = partial(initial, parameters, corpus, generator)
        found = shards.first(lambda: _named(start()) | {"random": generator.get_state()})
    generator.set_state(found.pop("random"))
    state = FitState(**{name: _on(device, value) for name, value in found.items()})

    def content() -> dict[str, Any]:
        return {"random": generator.get_state()} | _named(shards.kept(state))

    for after in passes(parameters, corpus, state, generator, shards):
        state = after
        run.keep(state.passes, content)
    run.keep(state.passes, content, last=True)
    return finished(parameters, corpus, state, shards)


def _named(state: FitState) -> dict[str, Any]:
    return {f.name: getattr(state, f.name) for f in fields(state)}


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_on(device, each) for each in value)
    return value.to(device) if isinstance(value, Tensor) else value


def passes(
    parameters: Parameters, corpus: Corpus, state: FitState, generator: torch.Generator, shards: Whole = WHOLE
) -> Iterator[FitState]:
    """The state after each pass over the documents."""
    one, hidden = _PASS[parameters.learning_method], not (parameters.progress and shards.is_first)
    with tqdm(total=parameters.max_iter, initial=state.passes, disable=hidden, desc="LDA") as bar:
        while state.passes < parameters.max_iter and not state.converged:
            state = one(parameters, corpus, state, generator, shards)
            bar.update()
            if state.bounds:
                bar.set_postfix_str(f"ELBO {state.bounds[-1][1]:.2f}", refresh=False)
            yield state


def finished(parameters: Parameters, corpus: Corpus, state: FitState, shards: Whole = WHOLE) -> tuple[FitState, float]:
    """The documents once more, so that they belong to the final topics; the priors, if learned, to them; the ELBO."""
    step = shards.agreed(lambda: documents(parameters, corpus, state, state.gamma, statistics=False))
    after = replace(state, gamma=step.gamma, counts=())
    if parameters.learn_priors and state.passes > _PASSES_BEFORE_PRIORS:
        after = _with_learned_priors(after, shards, parameters.learn_priors == "by_word")
    return after, bound(step, after, shards)


# ------------------------------------------------------------------------------------------------------------- a pass


def _batch_pass(
    parameters: Parameters, corpus: Corpus, state: FitState, generator: torch.Generator, shards: Whole
) -> FitState:
    """All documents to convergence, then the topics, then, if asked for, the priors."""
    number = state.passes + 1
    evaluate = parameters.evaluate_every > 0 and number % parameters.evaluate_every == 0
    start = state.gamma
    if parameters.document_start == "random" or start is None:
        start = shards.starts(corpus, len(state.alpha), generator)
    step = shards.agreed(lambda: documents(parameters, corpus, state, start, bound=evaluate))
    assert step.statistics is not None
    bounds = [*state.bounds, (number, bound(step, state, shards))] if evaluate else state.bounds
    after = replace(
        state,
        topic_word=state.xi + shards.total(step.statistics),
        gamma=step.gamma,
        passes=number,
        converged=evaluate and _settled(bounds, parameters.tol),
        bounds=bounds,
    )
    learns = parameters.learn_priors and number > _PASSES_BEFORE_PRIORS
    return _with_learned_priors(after, shards, parameters.learn_priors == "by_word") if learns else after


def _settled(bounds: list[tuple[int, float]], tol: float) -> bool:
    """Whether the last two ELBOs differ by no more than this share, up or down; never at a tolerance of 0.

    Where documents start anew in each pass the ELBO may fall, which is no sign that it has reached its place.
    """
    if len(bounds) < 2 or tol == 0:
        return False
    (_, before), (_, last) = bounds[-2:]
    return abs(last - before) <= tol * abs(last)


def _online_pass(
    parameters: Parameters, corpus: Corpus, state: FitState, generator: torch.Generator, _: Whole
) -> FitState:
    """All minibatches once, in an order drawn at random."""
    for part in corpus.minibatches(parameters.batch_size, generator):
        state = online_step(parameters, part, state, generator)
    return replace(state, passes=state.passes + 1)


def online_step(parameters: Parameters, part: Corpus, state: FitState, generator: torch.Generator) -> FitState:
    """A natural-gradient step: λ moves towards the update that the whole corpus would give."""
    start = near_one((part.num_documents, len(state.alpha)), part.count, generator)
    step = documents(parameters, part, state, start, bound=False)
    assert step.statistics is not None
    batches = state.batches + 1
    rate = (parameters.learning_offset + batches) ** -parameters.learning_decay
    topic_word = torch.lerp(state.topic_word, state.xi + part.upscaling * step.statistics, rate)
    return replace(state, topic_word=topic_word, batches=batches)


def _collapsed_pass(parameters: Parameters, corpus: Corpus, state: FitState, _: torch.Generator, __: Whole) -> FitState:
    """A pass of CVB0, with the tolerance of ``collapsed_fit``."""
    found = collapsed_fit(
        corpus,
        len(state.alpha),
        doc_topic_prior=state.alpha,
        topic_word_prior=state.xi,
        max_iter=1,
        state=CollapsedState(corpus, *state.counts),
    )
    return replace(
        state, topic_word=found.lambda_, gamma=found.gamma, passes=state.passes + 1, converged=found.converged
    )


Pass = Callable[[Parameters, Corpus, FitState, torch.Generator, Whole], FitState]
_PASS: dict[str, Pass] = {"batch": _batch_pass, "online": _online_pass, "cvb0": _collapsed_pass}


# ---------------------------------------------------------------------------------------------------------- its parts


def documents(
    parameters: Parameters, corpus: Corpus, state: FitState, start: Tensor | None, **options: Any
) -> DocumentStep:
    """Each document to convergence under the topics of a state."""
    return document_step(
        corpus,
        expected_topics(state.topic_word),
        state.alpha,
        start=start,
        tol=parameters.mean_change_tol,
        max_steps=parameters.max_doc_update_iter,
        **options,
    )


def bound(step: DocumentStep, state: FitState, shards: Whole = WHOLE) -> float:
    """The ELBO of the documents of a step, and of those of other processes, with the topics' part."""
    assert step.word_bound is not None
    own = step.word_bound + dirichlet_bound(step.gamma, state.alpha)
    return float(shards.total(own) + dirichlet_bound(state.topic_word, state.xi))


def _with_learned_priors(state: FitState, shards: Whole, by_word: bool) -> FitState:
    """α and ξ at the maximum of the ELBO, given the documents and the topics; ξ one number, or one for each word.

    Where there is one topic, or one word, its share is always 1: the ELBO does not depend on its concentration, which
    stays.
    """
    assert state.gamma is not None
    alpha, xi = state.alpha, state.xi
    if len(alpha) > 1:
        alpha = dirichlet_concentration(shards.mean(expected_log(state.gamma)))
    if len(xi) > 1:
        mean_log = expected_log(state.topic_word).mean(0)
        xi = dirichlet_concentration(mean_log) if by_word else symmetric_concentration(mean_log).repeat(len(xi))
    return replace(state, alpha=alpha, xi=xi)
