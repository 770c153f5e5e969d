"""Topics of the Reuters news of the package ``lda``: 395 documents, 84,010 tokens over 4,258 words.

Fits latent Dirichlet allocation, prints the topics with their coherence, the bound, the perplexity and a held-out
score, draws the largest topics as bar charts, and writes draws from the posterior as an ArviZ file.

python examples/topics.py --out topics-output
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from pyro_latent.models import lda
from pyro_latent.plotting import plot_topics


def load() -> lda.Corpus:
    """The corpus with its vocabulary.

    Raises:
        SystemExit: if the package ``lda`` is not installed.
    """
    try:
        from lda import datasets
    except ImportError:
        raise SystemExit("Expected the package lda, which holds the data; got none. Run: pip install lda") from None
    return lda.as_corpus(datasets.load_reuters(), vocabulary=datasets.load_reuters_vocab())


def fit(corpus: lda.Corpus, options: argparse.Namespace) -> lda.LDA:
    """The topics of a corpus, by batch coordinate ascent."""
    estimator = lda.LDA(
        options.topics,
        doc_topic_prior=0.1,
        topic_word_prior=0.01,
        topic_start=options.start,
        max_iter=options.passes,
        random_state=options.seed,
        progress=True,
    )
    return estimator.fit(corpus)


def held_out_score(corpus: lda.Corpus, options: argparse.Namespace) -> lda.Completion:
    """Topics fitted to four fifths of the documents, scored on halves of the others."""
    order = torch.randperm(len(corpus), generator=torch.Generator().manual_seed(options.seed))
    test, train = order[: len(corpus) // 5], order[len(corpus) // 5 :]
    fitted = fit(corpus.select(train), options)
    topics = fitted.components_ / fitted.components_.sum(1, keepdim=True)
    generator = torch.Generator().manual_seed(options.seed)
    return lda.document_completion(corpus.select(test), topics, fitted.doc_topic_prior_, generator=generator)


def shares(fitted: lda.LDA) -> torch.Tensor:
    """The share of each topic in all tokens, shape ``[K]``."""
    counts = (fitted.components_ - fitted.topic_word_prior_).sum(1)
    return counts / counts.sum()


def table(fitted: lda.LDA, corpus: lda.Corpus, num_words: int = 8) -> str:
    """One line for each topic, the largest first: its share, its coherence, and its top words."""
    share, coherence, words = shares(fitted), fitted.coherence(corpus), fitted.top_words(n=num_words)
    lines = ["topic  share   NPMI  words"]
    for k in share.argsort(descending=True).tolist():
        lines.append(f"{k:5d}  {share[k]:5.1%}  {coherence[k]:5.2f}  {' '.join(words[k])}")
    return "\n".join(lines)


def draw_topics(fitted: lda.LDA, path: Path, num_topics: int = 12) -> None:
    """A picture of the largest topics: the mean probabilities of their top words."""
    share = shares(fitted)
    chosen = share.argsort(descending=True)[:num_topics]
    words = fitted.vocabulary_ or [str(w) for w in range(fitted.components_.shape[1])]
    titles = [f"{s:.0%} of the tokens" for s in share[chosen].tolist()]
    plot_topics(fitted.components_[chosen], words, titles=titles).savefig(path)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Topics of the Reuters news by latent Dirichlet allocation.")
    parser.add_argument("--topics", type=int, default=20, help="number of topics (default: 20)")
    parser.add_argument("--passes", type=int, default=100, help="passes at most (default: 100)")
    parser.add_argument("--start", choices=["random", "collapsed"], default="collapsed", help="where topics start")
    parser.add_argument("--draws", type=int, default=100, help="draws in the ArviZ file (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("topics-output"), help="folder for what is written")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> lda.LDA:
    """Fit, print and write; returns the fitted estimator."""
    options = parse(arguments)
    corpus = load()
    print(corpus)
    fitted = fit(corpus, options)
    print(f"\n{table(fitted, corpus)}\n")
    print(f"ELBO {fitted.bound_:,.1f} nats after {fitted.n_iter_} passes; perplexity {fitted.perplexity(corpus):,.1f}")
    print(f"mean coherence (NPMI of ten words, in these documents) {fitted.coherence(corpus).mean():.3f}")
    score = held_out_score(corpus, options)
    print(
        f"document completion, a fifth of the documents held out: {score.per_word:.3f} nats a word (perplexity "
        f"{score.perplexity:,.0f}, {score.num_tokens:,} tokens)"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    draw_topics(fitted, options.out / "topics.png")
    fitted.to_arviz(num_samples=options.draws, seed=options.seed).to_netcdf(str(options.out / "topics.nc"))
    print(f"Wrote {options.out / 'topics.png'} and {options.out / 'topics.nc'}.")
    return fitted


if __name__ == "__main__":
    main()
