"""``LDA``: topics of a bag of words in two lines, with the names and conventions of scikit-learn.

The class drives the document step and the topics' update by itself, which is the same coordinate ascent as the engine's
on ``lda.model``, run faster: documents to convergence, then the topics. What it found is a fitted
:class:`~pyro_latent.AutoConjugate` guide of that model, ``guide_``.
"""

from __future__ import annotations

import inspect
import math
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_latent.arviz import to_arviz
from pyro_latent.checkpoint import read_checkpoint, write_checkpoint
from pyro_latent.errors import CheckpointError, DataError, ModelError
from pyro_latent.guide import AutoConjugate
from pyro_latent.rules import register_rule

from .collapsed import collapsed_fit
from .corpus import Corpus, as_corpus
from .distributions import TopicWord
from .evaluation import coherence_npmi, dirichlet_bound, top_words
from .hyperparameters import dirichlet_concentration, symmetric_concentration
from .kernels import DocumentStep, document_step, expected_topics
from .model import Prior, complete_priors, model
from .starts import collapsed_topics, near_one
from .updates import expected_log

__all__ = ["LDA"]

LearningMethod = Literal["batch", "online", "cvb0"]
TopicStart = Literal["random", "collapsed"]
DocumentStart = Literal["random", "previous"]

#: Parameters that may differ between a run and the one that resumes it.
_FREE_ON_RESUMING = frozenset(("max_iter", "progress", "device"))
#: With learned priors, passes before the first is learned: earlier, all documents still look alike.
_PASSES_BEFORE_PRIORS = 10


@register_rule(TopicWord)
def _topic_word_rule(arguments: Any, value: Any) -> Any:
    """E log β_zw: the expectation reads the topics at the assignment and the word."""
    return arguments["topics"].log().take(arguments["assignment"].value().long()).take_last(value.value())


@dataclass(frozen=True)
class _State:
    """Where a fit is, after a number of passes.

    ``topic_word`` is λ ``[K, V]``, ``gamma`` γ ``[D, K]`` of the last pass, ``alpha`` ``[K]`` and ``xi`` ``[V]`` the
    priors; ``bounds`` holds (pass, ELBO) where it was worked out.
    """

    topic_word: Tensor
    alpha: Tensor
    xi: Tensor
    gamma: Tensor | None = None
    passes: int = 0
    batches: int = 0
    converged: bool = False
    bounds: list[tuple[int, float]] = field(default_factory=list)


class LDA:
    """Latent Dirichlet allocation by variational Bayes.

    Args:
        num_topics: K, at least 1.
        doc_topic_prior: α, concentration of the topics in a document, a number or shape ``[K]``; default 1 / K.
        topic_word_prior: ξ, concentration of the words in a topic, a number or shape ``[V]``; default 1 / K.
        learning_method: ``"batch"`` (all documents, then the topics), ``"online"`` (stochastic: minibatches), or
            ``"cvb0"`` (collapsed, without a bound while it runs).
        max_iter: passes over the documents, at most.
        tol: batch only: stop once the ELBO, from one evaluation to the next, rises by no more than this share of it.
        evaluate_every: batch only: evaluate the ELBO once in so many passes; 0: never, and never stop early.
        batch_size: documents in a minibatch.
        learning_decay, learning_offset: κ in (0.5, 1] and τ of the step sizes (t + τ)^−κ of minibatches.
        total_samples: for :meth:`partial_fit`, how many documents the minibatches are taken from.
        mean_change_tol: a document is done when the mean of \\|change of its concentrations\\| is below this.
        max_doc_update_iter: or after so many updates.
        learn_priors: batch only: fit α (each topic its own) and ξ (one for all words) by Newton's method, after ten
            passes.
        topic_start: where the topics start. ``"random"``: drawn from Gamma(100, rate 100). ``"collapsed"``: what CVB0
            finds with half as many topics again, merged to K; that takes some passes more, and as a rule leads to a
            much better bound.
        document_start: batch only: where a document's concentrations start in each pass. ``"random"``: drawn anew from
            Gamma(100, rate 100), which as a rule ends at a better bound. ``"previous"``: where the last pass left them;
            then the bound never falls.
        random_state: a seed, or a torch.Generator on the device; None: torch's global generator.
        dtype: of the work, torch.float32 or torch.float64; default float64, or that of floating data.
        device: default that of the data.
        progress: whether to show a progress bar.

    Attributes (after a fit):
        components_: λ, concentrations of the words in each topic, shape ``[K, V]``.
        doc_topic_: γ of the documents of :meth:`fit`, shape ``[D, K]``.
        doc_topic_prior_, topic_word_prior_: α ``[K]`` and ξ ``[V]``.
        bound_: the exact ELBO of the fit in nats (scikit-learn's attribute of this name is a perplexity).
        bounds_: (passes, ELBO) wherever it was evaluated.
        n_iter_: passes made; ``n_batch_iter_``: minibatches seen; ``converged_``: whether ``tol`` was reached.
        vocabulary_: the words, where they are known.
        guide_: an AutoConjugate guide of ``lda.model`` with this posterior; ``model_args_``, ``model_kwargs_`` are its
            arguments.

    Example::

        lda = LDA(20, random_state=0).fit(counts, vocabulary=words)
        for words in lda.top_words(n=8):
            print(" ".join(words))
        proportions = lda.transform(new_counts)

    Source: [4] §2.5, (106)-(145); Hoffman, Blei and Bach 2010 for minibatches.
    """

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
            raise TypeError(_unknown_message(list(unknown)))
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

    # Parameters, as scikit-learn has them.

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {name: getattr(self, name) for name in _parameter_names()}

    def set_params(self, **params: Any) -> LDA:
        """Change constructor arguments.

        Raises:
            ValueError: for a name that the constructor does not have.
        """
        unknown = sorted(set(params) - set(_parameter_names()))
        if unknown:
            raise ValueError(_unknown_message(unknown))
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(LDA).parameters
        shown = [
            f"{n}={v!r}" for n, v in self.get_params().items() if v is not defaults[n].default and n != "num_topics"
        ]
        return f"LDA({', '.join([repr(self.num_topics), *shown])})"

    # Fitting.

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        vocabulary: Sequence[str] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 10,
    ) -> LDA:
        """Fit the topics to documents, from a random start.

        Args:
            X: counts ``[documents, words]`` (SciPy sparse, NumPy, torch), documents as lists of tokens, or a Corpus.
            y: ignored.
            vocabulary: the words, in the order of the columns.
            checkpoint: a file to write the state to; if it is there, the fit goes on from it, and ends where it would
                have ended without the interruption.
            checkpoint_every: passes between two writings.

        Raises:
            DataError: if the data is not as :func:`as_corpus` wants it, or has no tokens.
            ValueError: if a parameter is out of its range.
            CheckpointError: if the checkpoint is of other data or settings.
        """
        self._check()
        corpus = as_corpus(X, vocabulary=vocabulary, dtype=self.dtype, device=self.device)
        if len(corpus.doc) == 0:
            raise DataError("Expected a corpus with at least one token; got empty documents only.")
        self._vocabulary = corpus.vocabulary
        generator = self._generator(corpus)
        store = (
            None if checkpoint is None else _Store(checkpoint, checkpoint_every, self._settings(), corpus, generator)
        )
        if self.learning_method == "cvb0":
            if store is not None:
                raise ValueError('Expected learning_method "batch" or "online" for checkpoints; got "cvb0".')
            return self._finish(corpus, self._collapsed(corpus, generator))
        state = store.read(corpus) if store is not None and store.exists else self._initial(corpus, generator)
        for after in self._passes(corpus, state, generator):
            state = after
            if store is not None and state.passes % checkpoint_every == 0:
                store.write(state)
        if store is not None:
            store.write(state)
        return self._finish(corpus, state)

    def fit_transform(self, X: Any, y: Any = None, **options: Any) -> Tensor:
        """Fit, and the topic proportions of the same documents, shape ``[D, K]``; rows sum to 1."""
        gamma = self.fit(X, y, **options).doc_topic_
        return gamma / gamma.sum(1, keepdim=True)

    def partial_fit(self, X: Any, y: Any = None, *, vocabulary: Sequence[str] | None = None) -> LDA:
        """Go on with documents that stream by: one stochastic step for each ``batch_size`` of them.

        The step for minibatch t, from 1, is λ ← (1 − ρ) λ + ρ λ̂ with ρ = (t + learning_offset)^−learning_decay, where λ̂
        is the update that ``total_samples`` documents like these would give. After :meth:`fit` it goes on from there.

        Args:
            X: documents, as in :meth:`fit`; the vocabulary must be the same each time.
            y: ignored.
            vocabulary: the words, with the first documents, or the same ones again.

        Raises:
            DataError: if the data is not as :func:`as_corpus` wants it, or of another vocabulary than the first.
            ValueError: if a parameter is out of its range, or there are topics so far, but not ``num_topics``.
        """
        self._check()
        known = getattr(self, "_state", None)
        if known is None:
            corpus = as_corpus(X, vocabulary=vocabulary, dtype=self.dtype, device=self.device)
            self._vocabulary = corpus.vocabulary
            self._stream = self._generator(corpus)
            known = self._initial(corpus, self._stream)
        else:
            corpus = self._read_on(X, vocabulary)
        if not hasattr(self, "_stream"):
            self._stream = self._generator(corpus)
        whole = replace(corpus, total_documents=max(self.total_samples, corpus.num_documents))
        order = torch.arange(corpus.num_documents, device=corpus.doc.device)
        for part in order.split(self.batch_size):
            known = self._online_step(whole.minibatch(part), known, self._stream)
        self._forget()
        self._state = replace(known, gamma=None)
        return self

    def _read_on(self, X: Any, vocabulary: Sequence[str] | None) -> Corpus:
        """Further documents of a stream: over the same words, for as many topics."""
        found = len(self._fitted.topic_word)
        if found != self.num_topics:
            raise ValueError(
                f"Expected num_topics={found} of the topics so far; got {self.num_topics}. Call fit to begin anew."
            )
        corpus = self._read(X, vocabulary)
        self._vocabulary = corpus.vocabulary
        return corpus

    def _initial(self, corpus: Corpus, generator: torch.Generator | None) -> _State:
        """Topics drawn from Gamma(100, rate 100), as in scikit-learn, so that no two are alike; or those of CVB0."""
        alpha, xi = complete_priors(corpus, self.num_topics, self.doc_topic_prior, self.topic_word_prior)
        if self.topic_start == "collapsed":
            return _State(collapsed_topics(corpus, alpha, xi, generator), alpha, xi)
        return _State(near_one((corpus.num_words, self.num_topics), corpus.count, generator).mT, alpha, xi)

    def _passes(self, corpus: Corpus, state: _State, generator: torch.Generator | None) -> Iterator[_State]:
        """The state after each pass over the documents."""
        one = self._batch_pass if self.learning_method == "batch" else self._online_pass
        with tqdm(total=self.max_iter, initial=state.passes, disable=not self.progress, desc="LDA") as bar:
            while state.passes < self.max_iter and not state.converged:
                state = one(corpus, state, generator)
                bar.update()
                if state.bounds:
                    bar.set_postfix_str(f"ELBO {state.bounds[-1][1]:.2f}", refresh=False)
                yield state

    def _batch_pass(self, corpus: Corpus, state: _State, generator: torch.Generator | None) -> _State:
        """All documents to convergence, then the topics, then, if asked for, the priors."""
        evaluate = self.evaluate_every > 0 and (state.passes + 1) % self.evaluate_every == 0
        start = state.gamma
        if self.document_start == "random" or start is None:
            start = near_one((corpus.num_documents, self.num_topics), corpus.count, generator)
        step = self._documents(corpus, state, start, bound=evaluate)
        assert step.statistics is not None
        bounds, converged = state.bounds, False
        if evaluate:
            bounds = [*state.bounds, (state.passes + 1, _bound(step, state))]
            converged = len(bounds) > 1 and bounds[-1][1] - bounds[-2][1] <= self.tol * abs(bounds[-1][1])
        after = replace(
            state,
            topic_word=state.xi + step.statistics,
            gamma=step.gamma,
            passes=state.passes + 1,
            converged=converged and self.tol > 0,
            bounds=bounds,
        )
        return _with_learned_priors(after) if self.learn_priors and after.passes > _PASSES_BEFORE_PRIORS else after

    def _online_pass(self, corpus: Corpus, state: _State, generator: torch.Generator | None) -> _State:
        for part in corpus.minibatches(self.batch_size, generator):
            state = self._online_step(part, state, generator)
        return replace(state, passes=state.passes + 1)

    def _online_step(self, part: Corpus, state: _State, generator: torch.Generator | None) -> _State:
        """A natural-gradient step: λ moves towards the update that the whole corpus would give."""
        start = near_one((part.num_documents, self.num_topics), part.count, generator)
        step = self._documents(part, state, start, bound=False)
        assert step.statistics is not None
        batches = state.batches + 1
        rate = (self.learning_offset + batches) ** -self.learning_decay
        upscaling = part.total_documents / part.num_documents
        topic_word = torch.lerp(state.topic_word, state.xi + upscaling * step.statistics, rate)
        return replace(state, topic_word=topic_word, batches=batches)

    def _collapsed(self, corpus: Corpus, generator: torch.Generator | None) -> _State:
        alpha, xi = complete_priors(corpus, self.num_topics, self.doc_topic_prior, self.topic_word_prior)
        found = collapsed_fit(
            corpus,
            self.num_topics,
            doc_topic_prior=alpha,
            topic_word_prior=xi,
            max_iter=self.max_iter,
            generator=generator,
        )
        return _State(found.lambda_, alpha, xi, found.gamma, len(found.change), converged=found.converged)

    def _documents(self, corpus: Corpus, state: _State, start: Tensor | None, **options: Any) -> DocumentStep:
        return document_step(
            corpus,
            expected_topics(state.topic_word),
            state.alpha,
            start=start,
            tol=self.mean_change_tol,
            max_steps=self.max_doc_update_iter,
            **options,
        )

    def _finish(self, corpus: Corpus, state: _State) -> LDA:
        """The documents once more, so that they belong to the final topics; then the priors, if learned, to them."""
        step = self._documents(corpus, state, state.gamma, statistics=False)
        after = replace(state, gamma=step.gamma)
        if self.learn_priors and state.passes > _PASSES_BEFORE_PRIORS:
            after = _with_learned_priors(after)
        self._forget()
        self.__dict__.pop("_stream", None)
        self._state = after
        self._bound, self._corpus = _bound(step, after), corpus
        return self

    def _forget(self) -> None:
        """Drop what was worked out from an earlier fit."""
        for name in ("guide_", "_corpus", "_bound"):
            self.__dict__.pop(name, None)

    # What was found.

    @property
    def _fitted(self) -> _State:
        state: _State | None = getattr(self, "_state", None)
        if state is None:
            raise ModelError("Expected a fitted LDA; got a new one. Call fit(counts) first.")
        return state

    @property
    def components_(self) -> Tensor:
        """λ, concentrations of the words in each topic, shape ``[K, V]``."""
        return self._fitted.topic_word

    @property
    def doc_topic_(self) -> Tensor:
        """γ, concentrations of the topics in each document of :meth:`fit`, shape ``[D, K]``."""
        gamma = self._fitted.gamma
        if gamma is None:
            raise ModelError("Expected the documents of fit; got a stream by partial_fit. Call transform(counts).")
        return gamma

    @property
    def doc_topic_prior_(self) -> Tensor:
        """α, prior concentrations of the topics in a document, shape ``[K]``: as given, or learned."""
        return self._fitted.alpha

    @property
    def topic_word_prior_(self) -> Tensor:
        """ξ, prior concentrations of the words in a topic, shape ``[V]``: as given, or learned."""
        return self._fitted.xi

    @property
    def bounds_(self) -> list[tuple[int, float]]:
        """(passes, ELBO in nats) wherever a batch fit evaluated it."""
        return self._fitted.bounds

    @property
    def n_iter_(self) -> int:
        """Passes over the documents."""
        return self._fitted.passes

    @property
    def n_batch_iter_(self) -> int:
        """Minibatches seen."""
        return self._fitted.batches

    @property
    def converged_(self) -> bool:
        """Whether the fit stopped because ``tol`` was reached."""
        return self._fitted.converged

    @property
    def n_features_in_(self) -> int:
        """V, the number of words."""
        return self._fitted.topic_word.shape[1]

    @property
    def vocabulary_(self) -> tuple[str, ...] | None:
        """The V words in the order of the columns, or None where they are not known."""
        state = self._fitted
        return self._vocabulary if state is not None else None

    @property
    def bound_(self) -> float:
        """The ELBO of the documents of :meth:`fit` and its topics, in nats."""
        self._whole()
        return self._bound

    def _whole(self) -> Corpus:
        """The documents of the fit."""
        _ = self.doc_topic_
        return self._corpus

    @property
    def model_args_(self) -> tuple[Corpus, int]:
        """The arguments of ``lda.model``: the corpus of the fit, and K of the topics found."""
        return self._whole(), len(self._fitted.topic_word)

    @property
    def model_kwargs_(self) -> dict[str, Any]:
        """The keyword arguments of ``lda.model``: α ``[K]`` and ξ ``[V]``."""
        return {"doc_topic_prior": self.doc_topic_prior_, "topic_word_prior": self.topic_word_prior_}

    @cached_property
    def guide_(self) -> AutoConjugate:
        """An AutoConjugate guide of ``lda.model`` whose factors are these: for ``posterior()``, ``Predictive``, …"""
        start = {"beta": dist.Dirichlet(self.components_), "theta": dist.Dirichlet(self.doc_topic_)}
        guide = AutoConjugate(model, init=start)
        guide.program(*self.model_args_, **self.model_kwargs_)
        return guide

    def transform(self, X: Any, *, normalize: bool = True) -> Tensor:
        """Topic proportions of documents under the fitted topics, shape ``[D, K]``.

        Args:
            X: documents, as in :meth:`fit`, over the same vocabulary. A document without words gets the prior.
            normalize: False: the concentrations γ in place of the mean proportions.
        """
        gamma = self._infer(self._read(X)).gamma
        return gamma / gamma.sum(1, keepdim=True) if normalize else gamma

    def score(self, X: Any, y: Any = None) -> float:
        """The ELBO of documents under the fitted topics, in nats: a lower bound on their log likelihood."""
        return _bound(self._infer(self._read(X)), self._fitted)

    def perplexity(self, X: Any) -> float:
        """exp(−score / number of tokens), as in scikit-learn: lower is better. The topics' part counts."""
        corpus = self._read(X)
        if corpus.num_tokens == 0:
            raise DataError("Expected a corpus with at least one token; got empty documents only.")
        return math.exp(-_bound(self._infer(corpus), self._fitted) / corpus.num_tokens)

    def _read(self, X: Any, vocabulary: Sequence[str] | None = None) -> Corpus:
        """Documents over the words of the fit, which may be named only now."""
        state = self._fitted
        given = X.vocabulary if vocabulary is None and isinstance(X, Corpus) else vocabulary
        if given is not None and self._vocabulary not in (None, tuple(given)):
            raise DataError(
                "Expected the vocabulary of the first documents; got another. Count the words in that order."
            )
        known = self._vocabulary if given is None else given
        corpus = as_corpus(X, vocabulary=known, num_words=state.topic_word.shape[1])
        return corpus.to(state.topic_word.device, state.topic_word.dtype)

    def _infer(self, corpus: Corpus) -> DocumentStep:
        return self._documents(corpus, self._fitted, None, statistics=False)

    def top_words(self, vocabulary: Sequence[str] | None = None, n: int = 10) -> list[list[str]]:
        """The n most probable words of each topic, best first; their numbers, as strings, where no words are known."""
        known = self.vocabulary_ if vocabulary is None else vocabulary
        if known is not None and len(known) != self.n_features_in_:
            raise DataError(f"Expected a vocabulary of {self.n_features_in_} words; got {len(known)}.")
        found = top_words(self.components_, n).tolist()
        return [[str(w) if known is None else known[w] for w in topic] for topic in found]

    def coherence(self, X: Any, n: int = 10) -> Tensor:
        """Coherence of each topic's n top words by NPMI in documents, shape ``[K]``; see ``coherence_npmi``."""
        return coherence_npmi(top_words(self.components_, n), self._read(X))

    def to_arviz(self, num_samples: int = 200, seed: int = 0) -> Any:
        """Draws of topics and proportions as ArviZ data, with the words as labels; see :func:`pyro_latent.to_arviz`.

        The topic assignments are summed out in the log likelihood, of one value for each entry of the corpus.
        """
        corpus, num_topics = self.model_args_
        labels = {} if corpus.vocabulary is None else {"vocabulary": list(corpus.vocabulary)}
        return to_arviz(
            _marginal,
            _posterior_guide(self.components_, self.doc_topic_),
            corpus,
            num_topics,
            num_samples=num_samples,
            seed=seed,
            coords=labels,
            dims={"beta": ["topics", "vocabulary"], "theta": ["documents", "topics"]},
            **self.model_kwargs_,
        )

    # Checks and settings.

    def _settings(self) -> dict[str, str]:
        """The parameters that a resumed fit must share."""
        return {n: _shown(v) for n, v in self.get_params().items() if n not in _FREE_ON_RESUMING}

    def _generator(self, corpus: Corpus) -> torch.Generator | None:
        if isinstance(self.random_state, int | numbers.Integral):
            return torch.Generator(corpus.count.device).manual_seed(int(self.random_state))
        return self.random_state

    def _check(self) -> None:
        """The ranges of the parameters, which scikit-learn checks when fitting, too."""
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Expected {name} to be an integer >= {least}; got {value!r}.")
        for name, (low, high) in _REAL.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"Expected {name} to be a number from {low} to {high}; got {value!r}.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                listed = " or ".join(f'"{c}"' for c in choices)
                raise ValueError(f"Expected {name} to be {listed}; got {getattr(self, name)!r}.")
        if self.learn_priors and self.learning_method != "batch":
            raise ValueError(f'Expected learning_method="batch" to learn priors; got "{self.learning_method}".')
        if self.learning_decay == 0.5:
            raise ValueError(
                "Expected learning_decay above 0.5, up to 1; got 0.5. The squares of smaller step sizes add up to "
                "infinity, so that minibatches never settle: take 0.7."
            )
        if self.dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"Expected dtype to be torch.float32 or torch.float64; got {self.dtype}.")
        if not (self.random_state is None or isinstance(self.random_state, numbers.Integral | torch.Generator)):
            raise TypeError(f"Expected random_state to be a seed or a torch.Generator; got {self.random_state!r}.")


_WHOLE = {
    "num_topics": 1,
    "max_iter": 1,
    "evaluate_every": 0,
    "batch_size": 1,
    "max_doc_update_iter": 1,
    "total_samples": 1,
}
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


#: Parameters that scikit-learn has under other names.
_RENAMED = {"n_components": "num_topics", "verbose": "progress"}


def _parameter_names() -> list[str]:
    return [n for n, p in inspect.signature(LDA).parameters.items() if p.kind is not p.VAR_KEYWORD]


def _unknown_message(names: Sequence[str]) -> str:
    """What is wrong with these parameters, and what they are called here."""
    hints = [f"scikit-learn's {n} is {_RENAMED[n]} here." for n in names if n in _RENAMED]
    return " ".join([f"Expected parameters among {', '.join(_parameter_names())}; got {', '.join(names)}.", *hints])


def _shown(value: Any) -> str:
    if isinstance(value, torch.Generator):
        return "a torch.Generator"
    return str(value.tolist() if isinstance(value, Tensor) else value)


def _bound(step: DocumentStep, state: _State) -> float:
    """The ELBO of the documents of a step, with the topics' part."""
    assert step.word_bound is not None
    parts = dirichlet_bound(step.gamma, state.alpha) + dirichlet_bound(state.topic_word, state.xi)
    return float(step.word_bound + parts)


def _with_learned_priors(state: _State) -> _State:
    """α and ξ at the maximum of the ELBO, given the documents and the topics.

    Where there is one topic, or one word, its share is always 1: the ELBO does not depend on its concentration, which
    stays.
    """
    assert state.gamma is not None
    alpha, xi = state.alpha, state.xi
    if len(alpha) > 1:
        alpha = dirichlet_concentration(expected_log(state.gamma).mean(0), alpha)
    if len(xi) > 1:
        shared = symmetric_concentration(expected_log(state.topic_word).mean(0), float(xi.mean()))
        xi = torch.full_like(xi, shared)
    return replace(state, alpha=alpha, xi=xi)


def _marginal(corpus: Corpus, num_topics: int, **priors: Any) -> None:
    model(corpus, num_topics, marginal=True, **priors)


def _posterior_guide(topic_word: Tensor, doc_topic: Tensor) -> Any:
    """A guide that samples from the two Dirichlet factors, without the topic assignments."""

    def guide(corpus: Corpus, num_topics: int, **_: Any) -> None:
        with pyro.plate("topics", num_topics):
            pyro.sample("beta", dist.Dirichlet(topic_word))
        with pyro.plate("documents", corpus.num_documents):
            pyro.sample("theta", dist.Dirichlet(doc_topic))

    return guide


class _Store:
    """The checkpoint of a fit: it is only read back for the same data and settings."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: int,
        settings: Mapping[str, str],
        corpus: Corpus,
        generator: torch.Generator | None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"Expected checkpoint_every to be an integer >= 1; got {every!r}.")
        self.path = Path(path)
        self.identity = {**settings, "data": corpus.fingerprint}
        device = corpus.count.device
        default = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
        self.generator = default if generator is None else generator

    @property
    def exists(self) -> bool:
        return self.path.exists()

    def write(self, state: _State) -> None:
        content = {f.name: getattr(state, f.name) for f in fields(state)}
        write_checkpoint(self.path, "LDA", {**content, "identity": self.identity, "random": self.generator.get_state()})

    def read(self, corpus: Corpus) -> _State:
        found = read_checkpoint(self.path, "LDA")
        theirs = found.pop("identity")
        wrong = sorted(name for name in self.identity if theirs.get(name) != self.identity[name])
        if wrong:
            was = ", ".join(f"{n}={theirs.get(n)}" for n in wrong)
            now = ", ".join(f"{n}={self.identity[n]}" for n in wrong)
            raise CheckpointError(
                f"Expected the checkpoint {str(self.path)!r} to be of this fit, with {now}; got one with {was}. Use "
                "the same data and settings, or another file."
            )
        self.generator.set_state(found.pop("random"))
        tensors = {n: v.to(corpus.count.device) for n, v in found.items() if isinstance(v, Tensor)}
        return _State(**{**found, **tensors, "bounds": [(int(p), float(b)) for p, b in found["bounds"]]})
