"""Latent Dirichlet allocation as Pyro programs: the model, with or without its topic assignments, and two guides.

    beta_k ~ Dirichlet(topic_word_prior),   theta_d ~ Dirichlet(doc_topic_prior)
    z_dn ~ Categorical(theta_d),            word_dn ~ Categorical(beta_k) for k = z_dn

Tokens of one word in one document are alike, so they are one entry of the plate ``tokens``, whose log density counts
as often as the word occurs.

``model`` has the site ``z``, which coordinate ascent sums out. With ``marginal=True`` the words are Categorical(theta_d
@ beta), the same likelihood without ``z``: for ``SVI`` with ``Trace_ELBO``, since Pyro's own enumeration takes no scale
for each token.

Source: [4] (106)-(109), Blei, Ng and Jordan 2003 for the model; Srivastava and Sutton 2017, "Autoencoding
variational inference for topic models", for the amortised guide.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, TypeAlias, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_latent.errors import ArgumentError, DataError, check_count
from pyro_latent.models.arguments import Guided
from pyro_latent.settings import check_memory
from pyro_latent.values import as_tensor, kind_of

from .corpus import Corpus
from .distributions import MixedWord, TopicWord

__all__ = ["AmortizedGuide", "complete_priors", "guide", "model"]

Prior: TypeAlias = float | Tensor | None


def model(
    corpus: Corpus,
    num_topics: int,
    *,
    doc_topic_prior: Prior = None,
    topic_word_prior: Prior = None,
    marginal: bool = False,
) -> None:
    """Latent Dirichlet allocation; sites ``beta``, ``theta``, ``z`` (unless ``marginal``) and ``word``.

    ``beta`` is in plate ``topics`` of size K, with event shape ``[V]``. ``theta`` is in plate ``documents``, with event
    shape ``[K]``. ``z``, marked for parallel enumeration, and ``word`` are in plate ``tokens``, of one element for each
    entry of the corpus, and are scaled by the counts. For a minibatch plate ``documents`` has the size of the whole,
    and all of its documents' sites are scaled up by the same factor. A minibatch of empty documents has one element in
    plate ``tokens``, which is masked; it cannot be the first of a fit that starts at random assignments of tokens.

    Args:
        corpus: the documents.
        num_topics: K, at least 1.
        doc_topic_prior: α, concentration of the topics in a document, a number or shape ``[K]``, positive; default 1/K.
        topic_word_prior: ξ, concentration of the words in a topic, a number or shape ``[V]``, positive; default 1/K.
        marginal: whether to sum the topic assignments out.

    Raises:
        DataError: if ``corpus`` is not a :class:`Corpus`, or is a whole one without tokens.
        ArgumentError: if K or a prior is not as above.

    Source: [4] (106)-(108).
    """
    alpha, xi = complete_priors(corpus, num_topics, doc_topic_prior, topic_word_prior)
    if corpus.is_whole:
        corpus.check_tokens()
    with pyro.plate("topics", num_topics):
        beta = pyro.sample("beta", dist.Dirichlet(xi))
    with _documents(corpus):
        theta = pyro.sample("theta", dist.Dirichlet(alpha), infer=cast(Any, {"local": True}))
    entries = with_an_entry(corpus)
    topics, weights = _over_tokens(beta), theta[..., entries.doc, :]
    with tokens(entries), counted(corpus):
        if marginal:
            pyro.sample("word", MixedWord(weights, topics), obs=entries.word)
        else:
            with Guided("Write marginal=True for the model, which sums it out, or lda.full_guide for the guide."):
                z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("word", TopicWord(topics, z), obs=entries.word)


def _documents(corpus: Corpus) -> Any:
    """The plate of documents: a minibatch is a subsample of the whole."""
    if corpus.is_whole:
        return pyro.plate("documents", corpus.num_documents)
    return pyro.plate("documents", corpus.total_documents, subsample=corpus.index)


def tokens(corpus: Corpus) -> Any:
    """The plate of entries: those of a minibatch count for as many as the whole has, by its share of the documents."""
    entries = len(corpus.doc)
    if corpus.is_whole:
        return pyro.plate("tokens", entries)
    whole: Any = entries * corpus.upscaling
    return pyro.plate("tokens", whole, subsample=torch.arange(entries, device=corpus.doc.device))


def with_an_entry(corpus: Corpus) -> Corpus:
    """The corpus; where it has no entry, with one of count 0, so that the model of empty documents has all sites."""
    if len(corpus.doc) > 0:
        return corpus
    zero = torch.zeros(1, dtype=torch.int64, device=corpus.doc.device)
    return replace(corpus, doc=zero, word=zero, count=corpus.count.new_zeros(1))


def counted(corpus: Corpus) -> Any:
    """The sites of an entry weigh as much as its count; that of empty documents nothing, which Pyro has a mask for."""
    if len(corpus.doc) == 0:
        nowhere: Any = torch.zeros(1, dtype=torch.bool, device=corpus.count.device)
        return poutine.mask(mask=nowhere)
    return poutine.scale(scale=corpus.count)


def _over_tokens(beta: Tensor) -> Tensor:
    """Topics ``[K, V]``; draws by several particles get a dimension that stands for the plate of tokens."""
    return beta if beta.dim() == 2 else beta.unsqueeze(-3)


def guide(
    corpus: Corpus, num_topics: int, *, doc_topic_prior: Prior = None, topic_word_prior: Prior = None, **_: Any
) -> None:
    """Mean-field guide q(beta) q(theta) with parameters for each document, for ``SVI`` on the marginal model.

    :func:`~pyro_latent.models.lda.full_guide` has a factor for ``z``, for the model that has the site.

    Parameters: ``topic_word`` λ, shape ``[K, V]``, and ``doc_topic`` γ, shape ``[D, K]`` for the D documents of the
    whole corpus; a minibatch reads and trains its own rows. λ starts at the prior plus counts drawn from torch's random
    state, γ at the prior plus an even share of an average document.

    Args:
        corpus: the documents.
        num_topics: K.
        doc_topic_prior, topic_word_prior: the model's.

    Source: [4] (109).
    """
    alpha, xi = complete_priors(corpus, num_topics, doc_topic_prior, topic_word_prior)
    share = corpus.num_tokens / corpus.num_documents / num_topics
    topics = functools.partial(_topic_word_start, corpus, num_topics, xi)
    documents = functools.partial(torch.Tensor.repeat, alpha + share, corpus.total_documents, 1)
    topic_word = pyro.param("topic_word", topics, constraint=constraints.positive)
    doc_topic = pyro.param("doc_topic", documents, constraint=constraints.positive)
    with pyro.plate("topics", num_topics):
        pyro.sample("beta", dist.Dirichlet(topic_word))
    with _documents(corpus):
        pyro.sample("theta", dist.Dirichlet(doc_topic if corpus.is_whole else doc_topic[corpus.index]))


def _topic_word_start(corpus: Corpus, num_topics: int, xi: Tensor) -> Tensor:
    """The prior plus each word's counts, dealt out to the topics by random proportions."""
    totals = corpus.count.new_zeros(corpus.num_words).index_add_(0, corpus.word, corpus.count) * corpus.upscaling
    shares = corpus.count.new_empty(num_topics, corpus.num_words).exponential_()
    return xi + totals * shares / shares.sum(0)


class AmortizedGuide(PyroModule):
    """Guide q(beta) q(theta | words) whose document proportions come from a network, for ``SVI`` on the marginal model.

    The network reads a document's relative word frequencies, through one hidden layer, and gives the concentrations of
    its topics; so its size does not grow with the number of documents, and new ones need no fitting.

    Args:
        corpus: whose vocabulary and dtype it takes, and whose counts its topics start from.
        num_topics: K.
        hidden: units of the hidden layer.
        doc_topic_prior, topic_word_prior: the model's.

    Raises:
        DataError: when it reads documents over another vocabulary.
        ArgumentError: when it is called for another number of topics.
    """

    prior: Tensor
    topic_word: Any
    vocabulary: tuple[str, ...] | None

    def __init__(
        self,
        corpus: Corpus,
        num_topics: int,
        hidden: int = 64,
        *,
        doc_topic_prior: Prior = None,
        topic_word_prior: Prior = None,
    ) -> None:
        super().__init__()
        alpha, xi = complete_priors(corpus, num_topics, doc_topic_prior, topic_word_prior)
        options: dict[str, Any] = {"dtype": corpus.count.dtype, "device": corpus.count.device}
        self.num_topics, self.vocabulary = num_topics, corpus.vocabulary
        self.words = nn.EmbeddingBag(corpus.num_words, check_count("hidden", hidden), mode="sum", **options)
        self.output = nn.Sequential(nn.Softplus(), nn.Linear(hidden, num_topics, **options), nn.Softplus())
        self.register_buffer("prior", alpha)
        self.topic_word = PyroParam(_topic_word_start(corpus, num_topics, xi), constraints.positive)

    def concentration(self, corpus: Corpus) -> Tensor:
        """γ of each document, shape ``[D, K]``: the prior, plus a share of its length for each topic."""
        self._check(corpus)
        lengths = corpus.lengths.clamp(min=1.0)
        hidden = self.words(corpus.word, corpus.starts[:-1], per_sample_weights=corpus.count / lengths[corpus.doc])
        shares: Tensor = self.output(hidden)
        return self.prior + shares * lengths.unsqueeze(1) / self.num_topics

    def _check(self, corpus: Corpus) -> None:
        """That the documents are over the words that the network reads."""
        known = self.words.num_embeddings
        renamed = None not in (self.vocabulary, corpus.vocabulary) and self.vocabulary != corpus.vocabulary
        if corpus.num_words != known or renamed:
            raise DataError(
                f"Expected documents over the {known} words that the guide was made for; got {corpus.num_words} "
                f"{'others' if renamed else 'words'}. Count these words, in their order: as_corpus(data, "
                "vocabulary=..., num_words=...)."
            )

    def forward(self, corpus: Corpus, num_topics: int, **_: Any) -> None:
        """Sample ``beta`` and ``theta``; the arguments are the model's."""
        if num_topics != self.num_topics:
            raise ArgumentError(
                f"Expected {self.num_topics} topics, as the guide was made for; got {num_topics}. Make a guide "
                "for as many."
            )
        with pyro.plate("topics", num_topics):
            pyro.sample("beta", dist.Dirichlet(self.topic_word))
        with _documents(corpus):
            pyro.sample("theta", dist.Dirichlet(self.concentration(corpus)))


def complete_priors(
    corpus: Corpus, num_topics: int, doc_topic_prior: Prior = None, topic_word_prior: Prior = None
) -> tuple[Tensor, Tensor]:
    """α of shape ``[K]`` and ξ of shape ``[V]``, in the corpus's dtype and on its device; 1 / K where none is given.

    Raises:
        DataError: if ``corpus`` is not a :class:`Corpus`.
        ArgumentError: if K is not an integer of at least 1, or a prior is not positive or has another shape.
    """
    if not isinstance(corpus, Corpus):
        raise DataError(f"Expected a Corpus; got {type(corpus).__name__}. Write as_corpus(data).")
    check_count("num_topics", num_topics)
    advice = "Number the tokens from 0 without gaps, by a vocabulary."
    check_memory(f"{num_topics} topics of {corpus.num_words} words", num_topics * corpus.num_words, advice)
    return (
        _concentration("doc_topic_prior", doc_topic_prior, num_topics, 1 / num_topics, corpus.count),
        _concentration("topic_word_prior", topic_word_prior, corpus.num_words, 1 / num_topics, corpus.count),
    )


def _concentration(name: str, value: Prior, size: int, default: float, like: Tensor) -> Tensor:
    given = as_tensor(default if value is None else value, like.dtype)
    if given is None:
        raise ArgumentError(f"Expected {name} to be a number or of shape [{size}]; got {kind_of(value)}.")
    found = given.to(like.device)
    if list(found.shape) not in ([], [size]):
        raise ArgumentError(
            f"Expected {name} to be a number or of shape [{size}]; got shape {list(found.shape)}. Write one number for "
            "all, or leave it out for 1 / num_topics."
        )
    wrong = ~((found > 0) & found.isfinite())
    if bool(wrong.any()):
        raise ArgumentError(
            f"Expected {name} to be positive and finite; got {found[wrong].flatten()[0].item()}. Leave it out for "
            "1 / num_topics."
        )
    return found.expand(size).contiguous()
