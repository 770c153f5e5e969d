"""The categorical distribution of 0, …, K − 1."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..errors import PyroLatentError
from .base import Family, Mean, Natural, Params


class Categorical(Family):
    """t(x) = (x = 0, …, x = K − 1), η = log probs up to a constant. Params: probs ``(..., K)``. Bishop (2006), §2.4.

    An index does not tell K: ``sufficient_statistics`` needs ``Categorical(categories=K)``, and nothing else does.
    """

    name = "Categorical"
    statistics = {"x": 1}
    # The value is an index, so no product of its functions is linear in the statistic.
    moments = {}
    param_names = ("probs",)

    def __init__(self, categories: int | None = None) -> None:
        self.categories = categories

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        if self.categories is None:
            raise PyroLatentError("Expected the number of categories; got none: write Categorical(categories=K).")
        (x,) = values
        return Mean(x=one_hot(x.long(), self.categories).to(torch.get_default_dtype()))

    def log_prob(self, natural: Natural, *values: Tensor) -> Tensor:
        family = Categorical(natural.x.shape[-1])
        return family.inner(natural, family.sufficient_statistics(*values)) - self.log_normalizer(natural)

    def log_normalizer(self, natural: Natural) -> Tensor:
        return natural.x.logsumexp(-1)

    def mean(self, natural: Natural) -> Mean:
        return Mean(x=natural.x.softmax(-1))

    def from_mean(self, mean: Mean) -> Natural:
        # log 0 becomes the lowest finite number, whose exponential is 0 too, as 0 · inf would spoil the entropy.
        return Natural(x=mean.x.log().clamp(min=torch.finfo(mean.x.dtype).min))

    def to_params(self, natural: Natural) -> Params:
        return {"probs": natural.x.softmax(-1)}

    def from_params(self, params: Params) -> Natural:
        return self.from_mean(Mean(x=params["probs"]))

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        (event,) = events
        return {"probs": torch.full(batch + event, 1 / event[0])}

    def in_domain(self, natural: Natural) -> Tensor:
        return natural.x.isfinite().all(-1)

    def distribution(self, params: Params) -> Any:
        return dist.Categorical(probs=params["probs"])

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        probs = params["probs"]
        return ((probs.cumsum(-1) < probability).sum(-1).clamp(max=probs.shape[-1] - 1),)
