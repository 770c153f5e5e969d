"""A discrete latent of finitely many values, by the probability of each."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..errors import ModelError
from .base import Mean, Natural, Params
from .categorical import Categorical


def is_row(values: Tensor, support: Tensor) -> Tensor:
    """Which row of ``support``, ``[K] + event``, each element of values ``(...) + event`` is: ``(..., K)``, bool."""
    event = support.ndim - 1
    equal = values.unsqueeze(-1 - event) == support
    return equal.flatten(equal.ndim - event).all(-1) if event else equal


class Finite(Categorical):
    """A distribution over the rows of ``support``, as one of the Pyro distribution class ``kind``.

    t(x) = (x is row 0, …, x is row K − 1), η = log probs up to a constant. Params: probs ``(..., K)``.

    Args:
        kind: the class of the site's prior.
        support: ``[K] + event``.
    """

    def __init__(self, kind: type, support: Tensor) -> None:
        super().__init__(support.shape[0])
        self.kind = kind
        self.support = support

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        (x,) = values
        return Mean(x=is_row(x, self.support).to(torch.get_default_dtype()))

    def log_prob(self, natural: Natural, *values: Tensor) -> Tensor:
        return self.inner(natural, self.sufficient_statistics(*values)) - self.log_normalizer(natural)

    def distribution(self, params: Params) -> Any:
        """The distribution that the prior's class has with these probabilities.

        Raises:
            ModelError: if the values are none of 0, 1, …, and no one-hot vectors.
        """
        probs = params["probs"]
        if issubclass(self.kind, dist.Bernoulli):
            return dist.Bernoulli(probs[..., 1])
        if issubclass(self.kind, dist.OneHotCategorical):
            return dist.OneHotCategorical(probs)
        count = torch.arange(self.support.shape[0], device=self.support.device, dtype=self.support.dtype)
        if self.support.ndim != 1 or not torch.equal(self.support, count):
            raise ModelError(
                f"Expected a discrete site with values 0, 1, …; got one with values {self.support.tolist()}. Use "
                "Categorical."
            )
        return dist.Categorical(probs)

    def distribution_params(self, distribution: Any) -> Params:
        if isinstance(distribution, dist.Bernoulli):
            return {"probs": torch.stack([1 - distribution.probs, distribution.probs], -1)}
        return {"probs": distribution.probs}

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        """The quantile in the values of the support, which rise; for one-hot vectors element by element."""
        if self.support.ndim > 1:
            probs = params["probs"]
            return ((1 - probs < probability).to(self.support),)
        (index,) = super().quantiles(params, probability)
        return (self.support[index],)
