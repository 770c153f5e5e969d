"""What annealing gains on topics, from the same start: ``python -m benchmarks.annealing``."""

from __future__ import annotations

import torch

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.models import lda

SEEDS = 6


def corpus_of(seed: int, *, documents: int, length: int, words: int, topics: int) -> lda.Corpus:
    """Documents of known topics."""
    torch.manual_seed(seed)
    known = torch.distributions.Dirichlet(torch.full((words,), 0.1, dtype=torch.float64)).sample((topics,))
    shares = torch.distributions.Dirichlet(torch.full((topics,), 0.3, dtype=torch.float64)).sample((documents,))
    return lda.as_corpus(torch.distributions.Multinomial(length, shares @ known).sample())


def gain(seed: int, corpus: lda.Corpus, topics: int) -> float:
    """The ELBO with sixty annealed sweeps less that without, in nats."""
    plain, annealed = (
        CAVI(lda.model, AutoConjugate(lda.model, init=seed), annealing=sweeps).run(corpus, topics, tol=1e-7).elbo[-1]
        for sweeps in (0, 60)
    )
    return float(annealed - plain)


def main() -> None:
    """Print the least and the greatest gain over the seeds, for two shapes of a corpus."""
    torch.set_num_threads(1)
    for documents, length, words, topics in ((150, 60, 200, 8), (200, 80, 200, 5)):
        found = []
        for seed in range(SEEDS):
            corpus = corpus_of(seed, documents=documents, length=length, words=words, topics=topics)
            found.append(gain(seed, corpus, topics))
        shape = f"{documents} documents of {length} words, over {words}, from {topics} topics, {SEEDS} seeds"
        print(f"{shape}: {min(found):,.0f} to {max(found):,.0f} nats higher", flush=True)


if __name__ == "__main__":
    main()
