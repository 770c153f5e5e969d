"""The laws of weights: positive numbers whose laws differ by their tilt, as an exponential family of one statistic."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ..errors import MissingFormulaError

#: Beyond so many standard deviations below zero the moments of a positive normal are by their series.
_FAR = 1e3
#: Beyond so many, draws are by its tail.
_TAIL = 5.0


class Weight(TorchDistribution):
    """A law of a weight x whose density, relative to that of a law of the class without a tilt, is e^{η x − A(η)}.

    ``log_prob`` is an error: a recording has densities relative to those without a tilt, which cancel between a
    posterior and its prior, and :meth:`log_ratio` is all that coordinate ascent needs.

    To implement one: ``log_normalizer``, ``mean`` and ``sample``; where η is not −c² / 2 of the tilt c, its
    ``natural_of`` and ``tilt_of`` too.

    Args:
        tilt: c, of any shape.
    """

    arg_constraints = {"tilt": constraints.real}
    support: Any = constraints.positive

    def __init__(self, tilt: Tensor | float = 0.0, validate_args: bool | None = None) -> None:
        self.tilt = torch.as_tensor(tilt)
        super().__init__(self.tilt.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Any:
        make: Any = type(self)
        return make(self.tilt.expand(batch_shape), validate_args=False)

    def tilted(self, tilt: Tensor) -> Any:
        """The law of another tilt, with the same constants."""
        make: Any = type(self)
        return make(tilt=tilt, validate_args=False)

    @staticmethod
    def natural_of(tilt: Tensor) -> Tensor:
        """η of a tilt, elementwise."""
        return -(tilt**2) / 2

    @staticmethod
    def tilt_of(natural: Tensor) -> Tensor:
        """The tilt of η, elementwise."""
        return (-2 * natural).sqrt()

    @property
    @abstractmethod
    def log_normalizer(self) -> Tensor:
        """A(η), of batch shape."""

    def log_ratio(self, value: Tensor) -> Tensor:
        """The log density relative to that without a tilt."""
        return self.natural_of(self.tilt) * value - self.log_normalizer

    def log_prob(self, value: Tensor) -> Tensor:
        raise MissingFormulaError(
            f"Expected a distribution with a density; got {type(self).__name__}, whose density relative to another one "
            "is all that is used. To score the model, write it without its weights, as AutoConjugate(model, "
            "reparam=True) takes it; to draw from its posterior, write Gibbs(poutine.reparam(model, "
            "config=Conjugate()), 1000)."
        )


class InverseGaussian(Weight):
    """The inverse Gaussian distribution of mean 1 / c and shape 1; without a tilt it is Lévy's, of scale 1.

    Its use is e^{−|z|} = E e^{−x z² / 2} over x without a tilt. Park and Casella (2008), §2.
    """

    arg_constraints = {"tilt": constraints.nonnegative}

    @property
    def log_normalizer(self) -> Tensor:
        return -self.tilt

    @property
    def mean(self) -> Tensor:
        return 1 / self.tilt

    @property
    def variance(self) -> Tensor:
        return self.tilt**-3.0

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws are made by the two roots of a squared normal, of Michael, Schucany and Haas (1976)."""
        with torch.no_grad():
            tilt = self.tilt.double().expand(torch.Size(sample_shape) + self.batch_shape)
            square = torch.randn_like(tilt) ** 2
            small = 2 / (2 * tilt + square + (square * (4 * tilt + square)).sqrt())
            is_small = torch.rand_like(tilt) * (1 + tilt * small) <= 1
            return torch.where(is_small, small, 1 / (tilt**2 * small)).to(self.tilt)


class NormalWeight(Weight):
    """A law whose tilt c is η itself: the location of a normal of scale 1, on a part of the line."""

    @staticmethod
    def natural_of(tilt: Tensor) -> Tensor:
        return tilt

    @staticmethod
    def tilt_of(natural: Tensor) -> Tensor:
        return natural


class PositiveNormal(NormalWeight):
    """The normal distribution of location c and scale 1, given that it is positive; without a tilt it is half-normal.

    Its use is Φ(z) = ½ e^{−z² / 2} E e^{z x} over x without a tilt. Albert and Chib (1993), §3.1.
    """

    @property
    def log_normalizer(self) -> Tensor:
        """½ c² + log 2 Φ(c)."""
        tilt = self.tilt.double()
        scaled = torch.special.erfcx(tilt.clamp(max=0) / -math.sqrt(2)).log()  # c² / 2 and log Φ cancel below zero
        return torch.where(tilt < 0, scaled, tilt**2 / 2 + torch.special.log_ndtr(tilt) + math.log(2)).to(self.tilt)

    @property
    def mean(self) -> Tensor:
        """c + φ(c) / Φ(c)."""
        tilt = self.tilt.double()
        far = -1 / tilt.clamp(max=-_FAR)
        near = tilt + _hazard(tilt.clamp(min=-_FAR))
        return torch.where(tilt < -_FAR, far - 2 * far**3, near).to(self.tilt)

    @property
    def variance(self) -> Tensor:
        mean, tilt = self.mean.double(), self.tilt.double()
        return torch.where(tilt < -_FAR, mean**2 * (1 - 2 * mean**2), 1 - mean * (mean - tilt)).to(self.tilt)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws are made by the inverse cdf; in the tail by Newton's steps on its logarithm, from an exponential's."""
        with torch.no_grad():
            tilt = self.tilt.double().expand(torch.Size(sample_shape) + self.batch_shape)
            level = 1 - torch.rand_like(tilt)
            near = tilt - torch.special.ndtri(level * torch.special.ndtr(tilt))
            tail = tilt.clamp(max=-_TAIL)
            far, goal = level.log() / tail, torch.special.log_ndtr(tail) + level.log()
            for _ in range(8):
                far = far + (torch.special.log_ndtr(tail - far) - goal) / _hazard(tail - far)
            return torch.where(tilt < -_TAIL, far, near).clamp(min=1e-300).to(self.tilt)


def _hazard(place: Tensor) -> Tensor:
    """φ(c) / Φ(c), elementwise."""
    return math.sqrt(2 / math.pi) / torch.special.erfcx(place / -math.sqrt(2))


__all__ = ["InverseGaussian", "NormalWeight", "PositiveNormal", "Weight"]
