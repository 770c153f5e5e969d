"""Where ``LDA`` ends from each start, on the Reuters news: ``python -m benchmarks.lda_starts``."""

from __future__ import annotations

import time
from typing import Any

import torch

from pyro_latent.models import lda

from .lda import reuters
from .seeds import SEEDS, ranged
from .timing import markdown

NUM_TOPICS = 20
FITS: dict[str, dict[str, Any]] = {
    'topic_start="random"': {"topic_start": "random"},
    "the default, CVB0's topics merged": {},
    'learning_method="cvb0"': {"learning_method": "cvb0"},
    'learning_method="online", topic_start="random"': {"learning_method": "online", "topic_start": "random"},
    'learning_method="online", the default start': {"learning_method": "online"},
}


def row(name: str, corpus: lda.Corpus) -> list[str]:
    """The CPU seconds, the bound and the mean coherence of a fit, over the seeds."""
    seconds, bounds, coherence = [], [], []
    for seed in SEEDS:
        began = time.process_time()
        fit = lda.LDA(NUM_TOPICS, random_state=seed, **FITS[name]).fit(corpus)
        seconds.append(time.process_time() - began)
        bounds.append(fit.bound_)
        coherence.append(float(fit.coherence(corpus).mean()))
    return [name, ranged(seconds), ranged(bounds, 0), ranged(coherence, 3)]


def main() -> None:
    torch.set_num_threads(1)
    corpus = lda.as_corpus(reuters())
    for options in FITS.values():
        lda.LDA(3, max_iter=1, **options).fit(corpus)  # compiles
    heading = ["fit", "CPU seconds", "ELBO in nats", "coherence (NPMI)"]
    print(markdown(heading, [row(name, corpus) for name in FITS]))


if __name__ == "__main__":
    main()
