"""Latent Dirichlet allocation: topics of a collection of documents.

:class:`LDA` is the way in for users: scikit-learn's conventions on a fast document step. Beneath it, ``model`` is the
ordinary Pyro program, ``guide``, ``full_guide`` and ``AmortizedGuide`` are guides for gradient inference, and
``updates`` are the textbook's closed-form updates, which use nothing of the engine. ``as_corpus`` reads count matrices
and lists of tokens.

Source: [4] (106)-(145).
"""

from .collapsed import collapsed_fit, collapsed_topics, merge_topics
from .corpus import Corpus
from .distributions import MixedWord, TopicWord
from .evaluation import (
    Completion,
    coherence_npmi,
    dirichlet_bound,
    document_completion,
    elbo_terms,
    split_tokens,
    top_words,
)
from .front import LDA
from .guides import full_guide
from .hyperparameters import dirichlet_concentration, dirichlet_gradient, symmetric_concentration
from .kernel import DocumentStep, ExpectedTopics, document_step, expected_topics, has_compiled_kernel
from .model import AmortizedGuide, complete_priors, guide, model
from .reading import as_corpus
from .updates import (
    expected_log,
    fast_updates,
    update_beta,
    update_theta,
    update_theta_to_convergence,
    update_z,
    updates,
)

__all__ = [
    "LDA",
    "AmortizedGuide",
    "Completion",
    "Corpus",
    "DocumentStep",
    "ExpectedTopics",
    "MixedWord",
    "TopicWord",
    "as_corpus",
    "coherence_npmi",
    "collapsed_fit",
    "collapsed_topics",
    "complete_priors",
    "dirichlet_bound",
    "dirichlet_concentration",
    "dirichlet_gradient",
    "document_completion",
    "document_step",
    "elbo_terms",
    "expected_log",
    "expected_topics",
    "fast_updates",
    "full_guide",
    "guide",
    "has_compiled_kernel",
    "merge_topics",
    "model",
    "split_tokens",
    "symmetric_concentration",
    "top_words",
    "update_beta",
    "update_theta",
    "update_theta_to_convergence",
    "update_z",
    "updates",
]
