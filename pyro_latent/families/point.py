r"""Point estimates: a distribution at one value, θ̂.

All its moments are functions of the value, so every product of them is known, and its entropy is left out. What a
family's gradient is for the others, the coefficients of the functions of θ in \bar L are here:
:mod:`pyro_latent.objective.modes` finds the θ that maximises them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .base import Family, Mean, Natural, Params

VALUE = "x^1"


def _log_beta(x: Tensor) -> Tensor:
    return torch.lgamma(x).sum(-1) - torch.lgamma(x.sum(-1))


def _log(x: Tensor) -> Tensor:
    """A probability of zero has a logarithm that is finite, so that 0 log 0 = 0."""
    return x.clamp(min=torch.finfo(x.dtype).tiny).log()


def _log1m(x: Tensor) -> Tensor:
    return torch.log1p(-x.clamp(max=1 - torch.finfo(x.dtype).eps))


def _gram(x: Tensor) -> Tensor:
    return x @ x.mT


#: Functions of a point, by name; "log_det" and "inverse" act on the last two dimensions, "log_beta" on the last.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "x": lambda x: x,
    "log": _log,
    "log1m": _log1m,
    "log_det": torch.logdet,
    "inverse": torch.linalg.inv,
    "lgamma": torch.lgamma,
    "log_beta": _log_beta,
    "gram": _gram,
    "gram_inverse": lambda x: torch.cholesky_inverse(x),
    "gram_log_det": lambda x: 2 * x.diagonal(dim1=-2, dim2=-1).log().sum(-1),
}


class PointMean(Mean):
    """Functions of a point, computed once asked for: a field ``function^power``, and the value itself at ``x^1``."""

    __slots__ = ("_known",)
    _known: dict[str, Tensor]

    def __init__(self, *fields: Any, **more: Tensor) -> None:
        super().__init__(*fields, **more)
        object.__setattr__(self, "_known", {})

    def __getitem__(self, name: str) -> Tensor:
        if name in self:
            return super().__getitem__(name)
        if name in self._known:
            return self._known[name]
        function, power = name.rsplit("^", 1)
        point = super().__getitem__(VALUE)
        value = FUNCTIONS[function](point)
        value = value if power == "1" else value ** float(power)
        if not point.requires_grad:  # a graph can be used once
            self._known[name] = value
        return value


class Point(Family):
    """A value without uncertainty. Params: value."""

    name = "point"
    statistics = {"x": 0}
    moments = {}
    param_names = ("value",)
    location = ("value", 0)

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        return PointMean(**{VALUE: values[0]})

    def log_normalizer(self, natural: Natural) -> Tensor:
        return torch.zeros_like(natural.x)

    def inner(self, natural: Natural, coordinates: Mean) -> Tensor:
        return torch.zeros_like(natural.x)

    def mean(self, natural: Natural) -> Mean:
        return PointMean(**{VALUE: natural.x})

    def from_mean(self, mean: Mean) -> Natural:
        return Natural(x=mean[VALUE])

    def to_params(self, natural: Natural) -> Params:
        return {"value": natural.x}

    def from_params(self, params: Params) -> Natural:
        return Natural(x=params["value"])

    def in_domain(self, natural: Natural) -> Tensor:
        return natural.x.isfinite()

    def distribution(self, params: Params) -> Any:
        return dist.Delta(params["value"])
