"""Crowdsourced labels: the true classes of items, and how reliable each annotator is (Dawid and Skene 1979).

Each item has a class that nobody sees. Some annotators label it, each with a confusion matrix of their own:

    p(label | truth) = confusion[annotator, truth[item]].

The made-up data have good, middling and careless annotators, and one who names the next class. A majority
vote counts all of them alike; the posterior of the confusion matrices tells them apart.

python examples/crowdsourcing.py
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate

#: The chance that an annotator names the true class; the last one otherwise names the next class.
SKILL = (0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.15)


@dataclass(frozen=True)
class Labels:
    """Labels ``[L]``, the item and the annotator of each ``[L]``, and the classes that made them ``[N]``."""

    label: Tensor
    item: Tensor
    annotator: Tensor
    truth: Tensor
    num_classes: int


def make_labels(num_items: int = 150, num_classes: int = 4, per_item: int = 5, seed: int = 0) -> Labels:
    """Made-up labels: each item is labeled by ``per_item`` of the annotators, chosen at random."""
    generator = torch.Generator().manual_seed(seed)
    skill = torch.tensor(SKILL)
    truth = torch.randint(num_classes, (num_items,), generator=generator)
    item = torch.arange(num_items).repeat_interleave(per_item)
    chosen = [torch.randperm(len(skill), generator=generator)[:per_item] for _ in range(num_items)]
    annotator = torch.cat(chosen)
    is_right = torch.rand(len(item), generator=generator) < skill[annotator]
    error = torch.randint(1, num_classes, (len(item),), generator=generator)
    error = torch.where(annotator == len(skill) - 1, 1, error)
    return Labels((truth[item] + torch.where(is_right, 0, error)) % num_classes, item, annotator, truth, num_classes)


def model(data: Labels) -> None:
    """Classes of items, a confusion matrix for each annotator, and the labels that they gave."""
    num_classes = data.num_classes
    share = pyro.sample("share", dist.Dirichlet(torch.ones(num_classes, dtype=torch.float64)))
    honest = 1.0 + torch.eye(num_classes, dtype=torch.float64)  # the true class is the likeliest label
    with pyro.plate("annotators", len(SKILL), dim=-2), pyro.plate("classes", num_classes, dim=-1):
        confusion = pyro.sample("confusion", dist.Dirichlet(honest))
    with pyro.plate("items", len(data.truth)):
        truth = pyro.sample("truth", dist.Categorical(share))
    with pyro.plate("labels", len(data.label)):
        pyro.sample("label", dist.Categorical(confusion[data.annotator, truth[data.item]]), obs=data.label)


def votes(data: Labels) -> Tensor:
    """How often each item was given each class, ``[N, K]``."""
    counts = torch.zeros(len(data.truth), data.num_classes, dtype=torch.float64)
    return counts.index_put_((data.item, data.label), counts.new_ones(()), accumulate=True)


def fit(data: Labels) -> AutoConjugate:
    """The fitted guide, started at the shares of the votes."""
    start = votes(data) / votes(data).sum(-1, keepdim=True)
    guide = AutoConjugate(model, init={"truth": start})
    CAVI(model, guide).run(data, tol=1e-7)
    return guide


def accuracy(found: Tensor, data: Labels) -> float:
    """The share of items whose likeliest class in ``[N, K]`` is the true one."""
    return (found.argmax(-1) == data.truth).double().mean().item()


def main() -> None:
    """Fit the made-up labels, and print accuracies, annotators and what the library made of the model."""
    data = make_labels()
    guide = fit(data)
    posterior = guide.posterior()
    print(guide.explain())
    print(f"ELBO {guide.elbo():.3f}")
    print(f"majority vote:  {accuracy(votes(data), data):.1%} of {len(data.truth)} items")
    print(f"Dawid and Skene: {accuracy(posterior['truth'].probs, data):.1%}")
    found = posterior["confusion"].mean.diagonal(dim1=-2, dim2=-1).mean(-1)
    for number, (estimate, skill) in enumerate(zip(found.tolist(), SKILL, strict=True)):
        print(f"annotator {number}: right {estimate:.0%} of the time; made with {skill:.0%}")


if __name__ == "__main__":
    main()
