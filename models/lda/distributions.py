"""Two distributions of a word under topics, which never lay out a row of word probabilities for each token.

``Categorical(topics[z])`` and ``Categorical(weights @ topics)`` say the same, in arrays of tokens × vocabulary; these
read only the probabilities of the words that are there.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical

__all__ = ["MixedWord", "TopicWord"]


class TopicWord(TorchDistribution):
    """A word of an assigned topic: Categorical(topics[assignment]).

    Args:
        topics: word probabilities of each topic, shape ``[K, V]``; with more dimensions ``[..., 1, K, V]``, those in
            front belong to the batch.
        assignment: topics, integers from 0 to K − 1, of the batch's shape.
    """

    arg_constraints = {
        "topics": constraints.independent(constraints.simplex, 1),
        "assignment": constraints.nonnegative_integer,
    }
    has_enumerate_support = False

    def __init__(self, topics: Tensor, assignment: Tensor, validate_args: bool | None = None) -> None:
        self.topics, self.assignment = topics, assignment
        batch_shape = torch.broadcast_shapes(topics.shape[:-2], assignment.shape)
        super().__init__(batch_shape, torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(0, self.topics.shape[-1] - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """log β_zw in nats, of the shape of ``value`` (words, integers below V) broadcast with the batch's."""
        value = torch.as_tensor(value)
        topics = _stacked(self.topics, max(value.dim(), len(self.batch_shape)))
        return topics[(*_places(topics), self.assignment, value)].log()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        topics = _stacked(self.topics, len(shape)).detach()
        flat = topics.reshape(-1, topics.shape[-1])
        numbers = torch.arange(len(flat), device=flat.device).reshape(topics.shape[:-1])
        return _draw(flat, numbers[(*_places(topics), self.assignment)].expand(shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> TopicWord:
        assignment = self.assignment.expand(torch.Size(batch_shape))
        return TopicWord(self.topics, assignment, validate_args=False)


class MixedWord(TorchDistribution):
    """A word of topics mixed in given proportions: Categorical(weights @ topics).

    Args:
        weights: proportions of the topics, shape ``[..., K]``, of the batch's shape in front.
        topics: word probabilities of each topic, shape ``[K, V]``, or ``[..., 1, K, V]``.
    """

    arg_constraints = {
        "weights": constraints.simplex,
        "topics": constraints.independent(constraints.simplex, 1),
    }
    has_enumerate_support = False

    def __init__(self, weights: Tensor, topics: Tensor, validate_args: bool | None = None) -> None:
        self.weights, self.topics = weights, topics
        batch_shape = torch.broadcast_shapes(weights.shape[:-1], topics.shape[:-2])
        super().__init__(batch_shape, torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(0, self.topics.shape[-1] - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """log Σ_k θ_k β_kw in nats, of the shape of ``value`` (words, integers below V) broadcast with the batch's."""
        value = torch.as_tensor(value)
        topics = _stacked(self.topics, max(value.dim(), len(self.batch_shape))).mT
        chosen = topics[(*_places(topics), value)]
        return torch.linalg.vecdot(self.weights, chosen).log()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        weights = self.weights.expand(*self.batch_shape, -1)
        assignment = Categorical(weights, validate_args=False).sample(torch.Size(sample_shape))
        return TopicWord(self.topics, assignment, validate_args=False).sample()

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixedWord:
        weights = self.weights.expand(*torch.Size(batch_shape), self.weights.shape[-1])
        return MixedWord(weights, self.topics, validate_args=False)


def _stacked(topics: Tensor, ndim: int) -> Tensor:
    """Topics ``[K, V]`` as they are; batches of them with their dimensions over those of a batch of ``ndim``."""
    batch = topics.shape[:-2]
    return topics.reshape(*[1] * (ndim - len(batch)), *batch, *topics.shape[-2:]) if batch else topics


def _places(stacked: Tensor) -> list[Tensor]:
    """Indices of the batch dimensions of ``[..., rows, columns]`` matrices, which broadcast over those."""
    batch = stacked.shape[:-2]
    return [
        torch.arange(n, device=stacked.device).reshape([n if i == j else 1 for j in range(len(batch))])
        for i, n in enumerate(batch)
    ]


def _draw(rows: Tensor, chosen: Tensor) -> Tensor:
    """A column from each chosen row of probabilities ``[rows, columns]``, by the inverse of its distribution function.

    The functions of all rows, each raised by its number, make one ascending sequence to search in.
    """
    cumulated = rows.double().cumsum(-1)
    cumulated = cumulated / cumulated[:, -1:]
    raised = cumulated + torch.arange(len(rows), device=rows.device).unsqueeze(1)
    uniform = torch.rand(chosen.shape, dtype=torch.float64, device=rows.device)
    found = torch.searchsorted(raised.flatten(), chosen + uniform, right=True) - chosen * rows.shape[1]
    return found.clamp(0, rows.shape[1] - 1)
