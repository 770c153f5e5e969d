"""Where the bound of a logistic function is taken, of a Pólya-gamma weight of one count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..distributions.polya_gamma import LogisticBound as Distribution
from ..distributions.polya_gamma import log_cosh
from .base import Family, Mean, Moment, Natural, Params


class LogisticBound(Family):
    r"""A point x = (ω, KL) that is at its optimum, A(η) = max_x ⟨η, x⟩, with no entropy.

    Its density has η = −m (c² / 2, 1), where m is how often the bound is taken, as E z of a gate, and c² is the mean of
    the squared logits ψ where it is, E[z ψ²] / m; so A(η) = −m b log cosh(c / 2). Where m = 0 it is taken at c = 0.
    Params: tilt, c ≥ 0, and weight, m ≥ 0. Jaakkola and Jordan (2000).

    Args:
        count: b, which is the prior's; of a shape that broadcasts to the batch shape.
    """

    name = "logistic bound"
    event_dims = (1,)
    statistics = {"x": 1}
    moments = {((0, "x"),): Moment("x", "i->i")}
    hint = "a logistic bound is conjugate in the density that it was made for."
    param_names = ("tilt", "weight")

    def __init__(self, count: Tensor) -> None:
        self.count = count

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        return Mean(x=values[0])

    def log_normalizer(self, natural: Natural) -> Tensor:
        params = self.to_params(natural)
        return -params["weight"] * self.count.to(natural.x) * log_cosh(params["tilt"] / 2)

    def mean(self, natural: Natural) -> Mean:
        return Mean(x=self.distribution(self.to_params(natural)).mean)

    def to_params(self, natural: Natural) -> Params:
        half_square, weight = (-natural.x).unbind(-1)
        is_taken = weight > 0
        square = torch.where(is_taken, 2 * half_square / torch.where(is_taken, weight, 1.0), 0.0)
        return {"tilt": square.sqrt(), "weight": weight}

    def from_params(self, params: Params) -> Natural:
        tilt, weight = params["tilt"], params["weight"]
        return Natural(x=-torch.stack([weight * tilt**2 / 2, weight], -1))

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        return {"tilt": torch.ones(batch), "weight": torch.ones(batch)}

    def in_domain(self, natural: Natural) -> Tensor:
        return natural.x.isfinite().all(-1) & (natural.x <= 0).all(-1)

    def distribution(self, params: Params) -> Any:
        return Distribution(self.count.to(params["tilt"]), params["tilt"], validate_args=False)


__all__ = ["LogisticBound"]
