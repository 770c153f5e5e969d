"""The Bernoulli distribution of zeros and ones."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .base import Family, Mean, Moment, Natural, Params


class Bernoulli(Family):
    """t(x) = x, η = log(probs / (1 − probs)). Params: probs. Bishop (2006), §2.4."""

    name = "Bernoulli"
    statistics = {"x": 0}
    # x² = x
    moments = {((0, "x"),): Moment("x", "->"), ((0, "x"), (0, "x")): Moment("x", ",->")}
    param_names = ("probs",)

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        (x,) = values
        return Mean(x=x)

    def log_normalizer(self, natural: Natural) -> Tensor:
        # log(1 + exp(η)); torch's softplus turns linear at 20, where it is still curved in float64.
        return -logsigmoid(-natural.x)

    def mean(self, natural: Natural) -> Mean:
        return Mean(x=torch.sigmoid(natural.x))

    def from_mean(self, mean: Mean) -> Natural:
        # 0 and 1 get the largest finite number, whose sigmoid is exact, as 0 · inf would spoil the entropy.
        bound = torch.finfo(mean.x.dtype).max
        return Natural(x=torch.logit(mean.x).clamp(-bound, bound))

    def to_params(self, natural: Natural) -> Params:
        return {"probs": torch.sigmoid(natural.x)}

    def from_params(self, params: Params) -> Natural:
        return self.from_mean(Mean(x=params["probs"]))

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        return {"probs": torch.full(batch, 0.5)}

    def in_domain(self, natural: Natural) -> Tensor:
        return natural.x.isfinite()

    def distribution(self, params: Params) -> Any:
        return dist.Bernoulli(probs=params["probs"])

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        probs = params["probs"]
        return ((1 - probs < probability).to(probs),)
