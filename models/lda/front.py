"""``LDA``: topics of a bag of words in two lines, with the names and conventions of scikit-learn.

The class drives the document step and the topics' update by itself, which is the same coordinate ascent as the engine's
on ``lda.model``, run faster: documents to convergence, then the topics. What it found is a fitted
:class:`~pyro_latent.AutoConjugate` guide of that model, ``guide_``.

Its constructor is in ``parameters``, what a pass does in ``fitting``, and what can be asked after a fit in ``results``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from pyro_latent.arviz import to_arviz
from pyro_latent.errors import ArgumentError
from pyro_latent.guide import AutoConjugate
from pyro_latent.rules import register_rule

from .corpus import Corpus
from .distributions import TopicWord
from .fitting import WHOLE, first_topics, fitted, online_step
from .model import model
from .processes import Shards
from .reading import as_corpus, column_names, corpus_of
from .results import Results
from .strings import counts_of, fitted_counts

__all__ = ["LDA"]


@register_rule(TopicWord)
def _topic_word_rule(arguments: Any, value: Any) -> Any:
    """E log β_zw: the expectation reads the topics at the assignment and the word."""
    return arguments["topics"].log().take(arguments["assignment"]).take_last(value)


class LDA(Results):
    """Latent Dirichlet allocation by variational Bayes.

    Args:
        num_topics: K, at least 1.
        doc_topic_prior: α, concentration of the topics in a document, a number or shape ``[K]``; default 1 / K.
        topic_word_prior: ξ, concentration of the words in a topic, a number or shape ``[V]``; default 1 / K.
        learning_method: ``"batch"`` (all documents, then the topics), ``"online"`` (stochastic: minibatches), or
            ``"cvb0"`` (collapsed, without a bound while it runs; it stops as ``collapsed_fit`` does by default).
        max_iter: passes over the documents, at most.
        tol: batch only: the fit has converged, and stops, once the ELBO moves by no more than this share of it from one
            evaluation to the next, up or down. 0: never. Where ``document_start="random"`` keeps it moving by more,
            ``max_iter`` ends the fit.
        evaluate_every: batch only: evaluate the ELBO once in so many passes; 0: never, and never stop early.
        batch_size: documents in a minibatch.
        learning_decay, learning_offset: κ in (0.5, 1] and τ of the step sizes (t + τ)^−κ of minibatches. With κ ≤ 0.5
            the squares of the step sizes would add up to infinity, and minibatches never settle.
        total_samples: for :meth:`partial_fit`, how many documents the minibatches are taken from.
        mean_change_tol: a document is done when the mean of \\|change of its concentrations\\| is below this.
        max_doc_update_iter: or after so many updates.
        learn_priors: batch only: fit α (each topic its own) and ξ (one for all words; with ``"by_word"`` each its own)
            by Newton's method, after ten passes.
        topic_start: where the topics start. ``"collapsed"``: what at most 50 passes of CVB0 find with half as many
            topics again, merged to K; at 100 passes a fit takes a third more time so, and ends at a much better bound
            and at more coherent topics. ``"random"``: drawn from Gamma(100, rate 100), as in scikit-learn. None:
            "collapsed" in :meth:`fit`, and "random" in :meth:`partial_fit`, whose first documents may be few.
        document_start: batch only: where a document's concentrations start in each pass. ``"random"``: drawn anew from
            Gamma(100, rate 100), which as a rule ends at a better bound. ``"previous"``: where the last pass left them;
            then the bound never falls.
        random_state: a seed, or a torch.Generator on the device; None: torch's global generator.
        dtype: of the work, torch.float32 or torch.float64; default float64, or that of floating data.
        device: default that of the data.
        progress: whether to show a progress bar.
        vectorizer: what counts the words of raw strings, such as scikit-learn's ``CountVectorizer()``; :meth:`fit` fits
            a copy of it, ``vectorizer_``, and :meth:`partial_fit` takes it as it is, so that its words must be known:
            ``CountVectorizer(vocabulary=words)``, or a fitted one.

    Attributes (after a fit):
        components_: λ, concentrations of the words in each topic, shape ``[K, V]``.
        doc_topic_: γ of the documents of :meth:`fit`, shape ``[D, K]``.
        doc_topic_prior_, topic_word_prior_: α ``[K]`` and ξ ``[V]``.
        bound_: the exact ELBO of the fit in nats (scikit-learn's attribute of this name is a perplexity).
        bounds_: (passes, ELBO) wherever it was evaluated.
        vectorizer_: the vectorizer that was fitted to raw strings, if one was.
        n_iter_: passes made; ``n_batch_iter_``: minibatches seen; ``converged_``: whether ``tol`` was reached.
        vocabulary_: the words, where they are known; ``feature_names_in_``: the same as an array, or no such attribute;
            ``n_features_in_``: V.
        guide_: an AutoConjugate guide of ``lda.model`` with this posterior; ``model_args_``, ``model_kwargs_`` are its
            arguments.

    Example::

        lda = LDA(20, random_state=0).fit(counts, vocabulary=words)
        for words in lda.top_words(n=8):
            print(" ".join(words))
        proportions = lda.transform(new_counts)

    Source: [4] §2.5, (106)-(145); Hoffman, Blei and Bach 2010 for minibatches.
    """

    # Fitting.

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        vocabulary: Sequence[str] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 10,
        process_group: Any = None,
    ) -> LDA:
        """Fit the topics to documents; ``topic_start`` says where from.

        Args:
            X: counts ``[documents, words]`` (SciPy sparse, NumPy, torch, a data frame), documents as lists of tokens,
                with ``vectorizer=`` raw strings, or a whole Corpus. Lists of numbers, all of one length, may be tokens
                or counts, and are an error.
            y: ignored.
            vocabulary: the words, in the order of the columns; default the columns' names of a data frame.
            checkpoint: a file to write the state to; if it is there, the fit goes on from it, and ends where it would
                have ended without the interruption. By CVB0 its size is that of (entries of the counts) × topics.
            checkpoint_every: passes between two writings.
            process_group: processes of ``torch.distributed``, such as ``group.WORLD`` after ``init_process_group``, of
                which each is given its shard of the documents, and some may have none. All end with the same topics and
                the ELBO of all documents, ``doc_topic_`` and ``guide_`` are of the shard. Batch only. Topics that start
                as ``"collapsed"`` do so by the documents of the first process that has some. The first process writes
                the checkpoint, without the documents of any, and all read it, also in another number.

        Raises:
            DataError: if the data is not as :func:`as_corpus` wants it, has no tokens, or is a minibatch; in all
                processes, if it is so in one of them.
            ArgumentError: if a parameter is out of its range.
            ProcessError: if a process is gone, or has not come within the timeout of the group.
            CheckpointError: if the checkpoint is of other data or settings, or of a fit on another kind of device, or
                cannot be written.
        """
        shards = WHOLE if process_group is None else Shards(process_group)
        corpus, vectorizer = shards.agreed(lambda: self._read_whole(X, vocabulary))
        shards.begin(self, corpus)
        state, bound = fitted(self, corpus, checkpoint, checkpoint_every, shards)
        self._forget("_stream", "vectorizer_")
        self._state, self._bound = state, bound
        if vectorizer is not None:
            self.vectorizer_ = vectorizer
        self._corpus, self._vocabulary, self._framed = corpus, corpus.vocabulary, column_names(X) is not None
        return self

    def fit_transform(self, X: Any, y: Any = None, **options: Any) -> Any:
        """Fit, and the topic proportions of the same documents, shape ``[D, K]``; rows sum to 1; see `set_output`."""
        gamma = self.fit(X, y, **options).doc_topic_
        return self._as_set(gamma / gamma.sum(1, keepdim=True), X)

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
            ArgumentError: if a parameter is out of its range, or there are topics so far, but not ``num_topics``.
        """
        self._check()
        new = not hasattr(self, "_state")
        corpus = self._read_first(X, vocabulary) if new else self._read_on(X, vocabulary)
        if not hasattr(self, "_stream"):
            self._stream = self._generator(corpus.count.device)
        state = first_topics(self, corpus, self._stream, default="random") if new else self._state
        whole = replace(corpus, total_documents=max(self.total_samples, corpus.num_documents))
        order = torch.arange(corpus.num_documents, device=corpus.doc.device)
        for part in order.split(self.batch_size):
            state = online_step(self, whole.minibatch(part), state, self._stream)
        self._forget()
        self._state = replace(state, gamma=None)
        return self

    def _read_whole(self, X: Any, vocabulary: Sequence[str] | None) -> tuple[Corpus, Any]:
        """The documents of a fit, and the vectorizer of raw strings, with the parameters' ranges checked."""
        self._check()
        vectorizer, X, vocabulary = fitted_counts(self.vectorizer, X, vocabulary)
        corpus = corpus_of(X, vocabulary, dtype=self.dtype, device=self.device)
        corpus.check_whole()
        return corpus, vectorizer

    def _read_first(self, X: Any, vocabulary: Sequence[str] | None) -> Corpus:
        """The documents that say what the words are."""
        X, vocabulary = counts_of(self.vectorizer, X, vocabulary)
        corpus = as_corpus(X, vocabulary=vocabulary, dtype=self.dtype, device=self.device)
        self._vocabulary, self._framed = corpus.vocabulary, column_names(X) is not None
        return corpus

    def _read_on(self, X: Any, vocabulary: Sequence[str] | None) -> Corpus:
        """Further documents of a stream: over the same words, for as many topics."""
        found = len(self._fitted.topic_word)
        if found != self.num_topics:
            raise ArgumentError(
                f"Expected num_topics={found} of the topics so far; got {self.num_topics}. Call fit to begin anew."
            )
        corpus = self._read(X, vocabulary)
        self._vocabulary = corpus.vocabulary
        return corpus

    def _forget(self, *also: str) -> None:
        """Drop what was worked out from an earlier fit."""
        for name in ("guide_", "_corpus", "_bound", *also):
            self.__dict__.pop(name, None)

    # The Pyro model.

    @property
    def model_args_(self) -> tuple[Corpus, int]:
        """The arguments of ``lda.model``: the corpus of the fit, and K of the topics found."""
        _ = self.doc_topic_
        return self._corpus, len(self.components_)

    @property
    def model_kwargs_(self) -> dict[str, Any]:
        """The keyword arguments of ``lda.model``: α ``[K]`` and ξ ``[V]``."""
        return {"doc_topic_prior": self.doc_topic_prior_, "topic_word_prior": self.topic_word_prior_}

    @cached_property
    def guide_(self) -> AutoConjugate:
        """An AutoConjugate guide of ``lda.model`` whose factors are these: for ``posterior()``, ``Predictive``, …"""
        start = {"beta": dist.Dirichlet(self.components_), "theta": dist.Dirichlet(self.doc_topic_)}
        guide = AutoConjugate(model, init=start)
        guide.posterior_state.commit(guide.prepare(self.model_args_, self.model_kwargs_))
        return guide

    def to_arviz(self, num_samples: int = 200, seed: int = 0) -> Any:
        """Draws of topics and proportions as ArviZ data, with the words as labels; see :func:`pyro_latent.to_arviz`.

        The topic assignments are summed out in the log likelihood, of one value for each entry of the corpus.
        """
        corpus, num_topics = self.model_args_
        topics, documents = dist.Dirichlet(self.components_), dist.Dirichlet(self.doc_topic_)

        def guide(*_: Any, **__: Any) -> None:
            """The two Dirichlet factors, without the topic assignments."""
            with pyro.plate("topics", num_topics):
                pyro.sample("beta", topics)
            with pyro.plate("documents", corpus.num_documents):
                pyro.sample("theta", documents)

        return to_arviz(
            partial(model, marginal=True),
            guide,
            corpus,
            num_topics,
            num_samples=num_samples,
            seed=seed,
            coords={} if corpus.vocabulary is None else {"vocabulary": list(corpus.vocabulary)},
            dims={"beta": ["topics", "vocabulary"], "theta": ["documents", "topics"]},
            **self.model_kwargs_,
        )
