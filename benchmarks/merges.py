"""What moves between components end at, from thirty of them: ``python -m benchmarks.merges``, of ``topics`` alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.annealing import corpus_of
from pyro_latent import CAVI, AutoConjugate
from pyro_latent.models import lda

LARGEST, STARTS = 30, 5
PRIORS = {"doc_topic_prior": 0.1, "topic_word_prior": 0.1}


def clusters(count: int, size: int = 1000, seed: int = 0) -> Tensor:
    """Points ``[size, 2]`` of clusters of several widths around points of a circle."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.arange(count) * 2 * torch.pi / count
    centers = 8 * torch.stack([angle.cos(), angle.sin()], 1)
    own = torch.randint(count, (size,), generator=generator)
    widths = 0.4 + torch.rand(count, 1, generator=generator)
    return (centers[own] + widths[own] * torch.randn(size, 2, generator=generator)).double()


def components(x: Tensor, weights: Tensor) -> None:
    """Normals of unknown mean and precisions, of given weights."""
    with pyro.plate("components", weights.shape[-1]):
        tau = pyro.sample("tau", dist.Gamma(x.new_ones(2), 1.0).to_event(1))
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(2), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mu[z], tau[z].rsqrt()).to_event(1), obs=x)


def mixture(x: Tensor, k: int = LARGEST) -> None:
    """With weights of a Dirichlet."""
    components(x, pyro.sample("weights", dist.Dirichlet(x.new_ones(k))))


def sticks(x: Tensor, k: int = LARGEST) -> None:
    """With weights of broken sticks: a Dirichlet process mixture as Pyro's tutorial has it."""
    with pyro.plate("sticks", k - 1):
        v = pyro.sample("v", dist.Beta(x.new_tensor(1.0), 1.0))
    components(x, F.pad(v, (0, 1), value=1.0) * F.pad((1 - v).cumprod(-1), (1, 0), value=1.0))


def in_mixture(guide: AutoConjugate) -> int:
    """The components with more than one observation."""
    return int((guide.posterior()["z"].probs.sum(0) > 1).sum())


def in_topics(guide: AutoConjugate) -> int:
    """The topics with more than one percent of the words."""
    words = (guide.posterior()["theta"].concentration - PRIORS["doc_topic_prior"]).sum(0)
    return int((words > 0.01 * words.sum()).sum())


def compare(label: str, model: Any, count: Callable[[AutoConjugate], int], *args: Any, **kwargs: Any) -> None:
    """Print how many remain and how far above the best of as many starts without moves each start ends."""
    found: dict[bool, list[tuple[int, float, float]]] = {}
    for merges in (False, True):
        for seed in range(STARTS):
            guide, began = AutoConjugate(model, init=seed), time.perf_counter()
            result = CAVI(model, guide, merges=merges).run(*args, tol=1e-7, **kwargs)
            found.setdefault(merges, []).append((count(guide), float(result.elbo[-1]), time.perf_counter() - began))
    best = max(elbo for _, elbo, _ in found[False])
    above = [elbo - best for _, elbo, _ in found[True]]
    numbers = {merges: ", ".join(str(n) for n, _, _ in each) for merges, each in found.items()}
    seconds = {merges: sum(s for _, _, s in each) / STARTS for merges, each in found.items()}
    print(
        f"{label}: {numbers[True]} remain, without moves {numbers[False]}; {min(above):,.1f} to {max(above):,.1f} nats "
        f"above the best without; {seconds[True]:.1f} s a start, without {seconds[False]:.1f} s",
        flush=True,
    )


def main() -> None:
    """Print one line for each kind of model and true number, those of topics where they are asked for."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["topics"]:
        of_topics()
        return
    for label, model in (("mixture", mixture), ("broken sticks", sticks)):
        for number in (5, 6, 7, 8):
            compare(f"{label}, {number} clusters", model, in_mixture, clusters(number, 1000, number))


def of_topics() -> None:
    """Topic models of 200 documents of 80 words, over 100."""
    for number in (4, 6, 8):
        corpus = corpus_of(0, documents=200, length=80, words=100, topics=number)
        compare(f"topics, {number}", lda.model, in_topics, corpus, LARGEST, **PRIORS)


if __name__ == "__main__":
    main()
