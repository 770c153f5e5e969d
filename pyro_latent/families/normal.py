"""The normal distribution on the line."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .base import Family, Mean, Moment, Natural, Params


class Normal(Family):
    """t(x) = (x, x²), η = (loc / scale², −1 / (2 scale²)). Params: loc, scale. Bishop (2006), §2.3.1."""

    name = "Normal"
    statistics = {"x": 0, "xx": 0}
    moments = {((0, "x"),): Moment("x", "->"), ((0, "x"), (0, "x")): Moment("xx", ",->")}
    location = ("loc", 0)
    event_class = dist.MultivariateNormal
    hint = "a normal site is conjugate inside a location, where it enters linearly."
    param_names = ("loc", "scale")

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        (x,) = values
        return Mean(x=x, xx=x * x)

    def log_normalizer(self, natural: Natural) -> Tensor:
        precision = -2 * natural.xx
        return 0.5 * (natural.x**2 / precision - precision.log() + math.log(2 * math.pi))

    def mean(self, natural: Natural) -> Mean:
        variance = -0.5 / natural.xx
        loc = natural.x * variance
        return Mean(x=loc, xx=loc**2 + variance)

    def from_mean(self, mean: Mean) -> Natural:
        variance = mean.xx - mean.x**2
        return Natural(x=mean.x / variance, xx=-0.5 / variance)

    def to_params(self, natural: Natural) -> Params:
        variance = -0.5 / natural.xx
        return {"loc": natural.x * variance, "scale": variance.sqrt()}

    def from_params(self, params: Params) -> Natural:
        loc, scale = torch.broadcast_tensors(params["loc"], params["scale"])
        precision = scale**-2
        return Natural(x=loc * precision, xx=-0.5 * precision)

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        return {"loc": torch.zeros(batch), "scale": torch.ones(batch)}

    def in_domain(self, natural: Natural) -> Tensor:
        return (natural.xx < 0) & natural.x.isfinite() & natural.xx.isfinite()

    def distribution(self, params: Params) -> Any:
        return dist.Normal(params["loc"], params["scale"])
