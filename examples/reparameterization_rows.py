"""The rows of the table of reparameterisations: each distribution of the notes as z = g(ε).

The notes name three ways to draw z from q_φ(z) so that the noise ε has no parameter: the inverse distribution function
of uniform noise, location + scale · ε, and compositions of such draws. Logistic stands in two of their lists; so it
does here. ``examples/reparameterization_table.py`` checks the rows and prints them.

Source: ``docs/sources.md``, [4] (163)-(166) and the three lists after them; Kingma and Welling 2014, §2.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyro.distributions as dist
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from pyro_latent.distributions import Elliptical, Erlang, Gompertz, LogUniform, Rayleigh, Triangular

WAYS = ("inverse CDF", "location-scale", "composition")
INVERSE_CDF, LOCATION_SCALE, COMPOSITION = WAYS


def _only(uniform: Tensor) -> Tensor:
    return uniform[..., 0]


def _same(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Reparameterization:
    """One row of the table.

    Attributes:
        words: what the table says of it: one of :data:`WAYS`, the name of the distribution, ε, g(ε) and the Pyro class.
        parameters: where the row is checked, by name: numbers, or nested lists of them.
        transform: g, from noise ``[n, ...]`` and parameters by name that carry the same ``[n]`` on the left.
        distribution: the Pyro distribution of the parameters by name.
        reference: scipy's frozen distribution of ``project(z)``, of the parameters by name.
        draw: noise from uniform numbers ``[n, size]``; by default their first column.
        size: how many uniform numbers one draw of the noise takes.
        project: a scalar of each draw, ``[n]``, where z is a vector.
        bounded: whether arctan(z) is averaged in place of z and z², which have no mean.
        tolerance: of the derivative of g at fixed noise, relative.
    """

    words: tuple[str, str, str, str, str]
    parameters: Mapping[str, Any]
    transform: Callable[..., Tensor]
    distribution: Callable[..., Any]
    reference: Callable[..., Any]
    draw: Callable[[Tensor], Tensor] = _only
    size: int = 1
    project: Callable[[Tensor], Tensor] = _same
    bounded: bool = False
    tolerance: float = 1e-6

    #: What is averaged over draws, by name.
    MOMENTS: ClassVar[Mapping[str, Callable[[Tensor], Tensor]]] = {"mean": _same, "square": torch.square}

    @property
    def way(self) -> str:
        """One of :data:`WAYS`."""
        return self.words[0]

    @property
    def name(self) -> str:
        """The name of the distribution in the notes."""
        return self.words[1]

    @property
    def moments(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """By name, the functions of z whose expectations are compared."""
        return {"arctan": torch.arctan} if self.bounded else self.MOMENTS

    def exact(self, moment: str, parameters: Mapping[str, Any]) -> float:
        """The expectation of a moment of ``project(z)``, by scipy."""
        reference = self.reference(**parameters)
        if moment == "arctan":
            return float(scipy.integrate.quad(lambda u: math.atan(reference.ppf(u)), 0, 1, epsabs=1e-12)[0])
        mean = float(reference.mean())
        return mean if moment == "mean" else float(reference.var()) + mean**2

    def tensors(self) -> dict[str, Tensor]:
        """The parameters as float64 tensors."""
        return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in self.parameters.items()}


class StandardGamma(torch.autograd.Function):
    """The quantile of Gamma(concentration, 1) at ``probability``, with torch's own implicit gradient.

    torch draws a Gamma by rejection, and differentiates the draw as if it were the quantile of a fixed probability.
    Here the quantile is written out, by scipy and on the CPU, so that the two can be compared.
    """

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, probability: Tensor) -> Tensor:
        """Shapes broadcast; float64."""
        concentration, probability = torch.broadcast_tensors(concentration, probability)
        value = torch.from_numpy(scipy.special.gammaincinv(concentration.numpy(), probability.numpy()))
        ctx.save_for_backward(concentration, value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """By ``concentration`` alone."""
        concentration, value = ctx.saved_tensors
        return gradient * torch._standard_gamma_grad(concentration, value), None


def _gamma(concentration: Tensor, probability: Tensor) -> Tensor:
    value: Tensor = StandardGamma.apply(concentration, probability)
    return value


DF = 7.0
COUNT = 3
PEAK = 0.3
#: torch's derivative of a Gamma by its concentration is an approximation, off by up to 1e-3 of itself. In F two such
#: terms nearly cancel. With the exact derivative all rows meet 1e-6.
IMPLICIT = 1e-3
IMPLICIT_RATIO = 5e-3
LOC_SCALE: Mapping[str, Any] = {"loc": 0.5, "scale": 1.5}
UNIFORM = "U(0, 1)"


def _located(name: str, noise: str, code: str, distribution: Callable[..., Any], standard: Any) -> Reparameterization:
    """A row of location and scale, by the Pyro distribution and scipy's of both."""
    return Reparameterization(
        words=(LOCATION_SCALE, name, noise, "loc + scale ε", code),
        parameters=LOC_SCALE,
        transform=lambda e, loc, scale: loc + scale * e,
        distribution=distribution,
        reference=standard,
        draw=lambda uniform: torch.from_numpy(np.asarray(standard().ppf(uniform[..., 0].numpy()))),
    )


def _elliptical_noise(uniform: Tensor) -> Tensor:
    """R u in two dimensions, ``[n, 2]``: R² / 2 ~ F(2, DF), and an angle for the direction."""
    radius = torch.from_numpy(np.sqrt(2 * scipy.stats.f(2, DF).ppf(uniform[:, 0].numpy())))
    angle = 2 * math.pi * uniform[:, 1]
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)


def student_radius(dim: int, df: Tensor) -> Any:
    """√(D F), F ~ F(D, df): the radius that makes an ``Elliptical`` a multivariate Student t."""
    ratio = dist.FisherSnedecor(torch.full_like(df, dim), df)
    root = dist.transforms.PowerTransform(torch.full_like(df, 0.5))
    return dist.TransformedDistribution(ratio, [dist.transforms.AffineTransform(0.0, float(dim)), root])


def _elliptical_sum(loc: Any, scale_tril: Any) -> Any:
    """The sum of the coordinates, a Student t."""
    factor = np.asarray(scale_tril)
    return scipy.stats.t(DF, np.sum(loc), np.sqrt((factor @ factor.T).sum()))


def _triangular(loc: Tensor, scale: Tensor) -> Triangular:
    return Triangular(loc, loc + PEAK * scale, loc + scale)


def _fisher(uniform: Tensor, df1: Tensor, df2: Tensor) -> Tensor:
    top, bottom = (_gamma(df / 2, uniform[:, i]) / df for i, df in enumerate((df1, df2)))
    return top / bottom


def _beta(uniform: Tensor, concentration1: Tensor, concentration0: Tensor) -> Tensor:
    first, second = (_gamma(c, uniform[:, i]) for i, c in enumerate((concentration1, concentration0)))
    return first / (first + second)


def _dirichlet(uniform: Tensor, concentration: Tensor) -> Tensor:
    gammas = _gamma(concentration, uniform)
    return gammas / gammas.sum(-1, keepdim=True)


#: The notes' three lists, in their order; all numbers are float64.
TABLE: tuple[Reparameterization, ...] = (
    Reparameterization(
        (INVERSE_CDF, "Exponential", UNIFORM, "-log(1 - ε) / rate", "dist.Exponential"),
        {"rate": 1.5},
        lambda e, rate: -torch.log1p(-e) / rate,
        dist.Exponential,
        lambda rate: scipy.stats.expon(scale=1 / rate),
    ),
    Reparameterization(
        (INVERSE_CDF, "Cauchy", UNIFORM, "loc + scale tan(π (ε - 1/2))", "dist.Cauchy"),
        LOC_SCALE,
        lambda e, loc, scale: loc + scale * torch.tan(math.pi * (e - 0.5)),
        dist.Cauchy,
        scipy.stats.cauchy,
        bounded=True,
    ),
    Reparameterization(
        (INVERSE_CDF, "Logistic", UNIFORM, "loc + scale log(ε / (1 - ε))", "dist.Logistic"),
        LOC_SCALE,
        lambda e, loc, scale: loc + scale * torch.logit(e),
        dist.Logistic,
        scipy.stats.logistic,
    ),
    Reparameterization(
        (INVERSE_CDF, "Rayleigh", UNIFORM, "scale √(-2 log(1 - ε))", "Rayleigh"),
        {"scale": 1.5},
        lambda e, scale: Rayleigh(scale).icdf(e),
        Rayleigh,
        scipy.stats.rayleigh,
    ),
    Reparameterization(
        (INVERSE_CDF, "Pareto", UNIFORM, "scale (1 - ε)^(-1 / alpha)", "dist.Pareto"),
        {"scale": 1.5, "alpha": 9.0},
        lambda e, scale, alpha: scale * (1 - e) ** (-1 / alpha),
        dist.Pareto,
        lambda scale, alpha: scipy.stats.pareto(alpha, scale=scale),
    ),
    Reparameterization(
        (INVERSE_CDF, "Weibull", UNIFORM, "scale (-log(1 - ε))^(1 / concentration)", "dist.Weibull"),
        {"scale": 1.5, "concentration": 2.5},
        lambda e, scale, concentration: scale * (-torch.log1p(-e)) ** (1 / concentration),
        dist.Weibull,
        lambda scale, concentration: scipy.stats.weibull_min(concentration, scale=scale),
    ),
    Reparameterization(
        (INVERSE_CDF, "Reciprocal", UNIFORM, "low (high / low)^ε", "LogUniform"),
        {"low": 0.5, "high": 4.0},
        lambda e, low, high: LogUniform(low, high).icdf(e),
        LogUniform,
        lambda low, high: scipy.stats.loguniform(low, high),
    ),
    Reparameterization(
        (INVERSE_CDF, "Gompertz", UNIFORM, "scale log(1 - log(1 - ε) / concentration)", "Gompertz"),
        {"concentration": 0.7, "scale": 1.5},
        lambda e, concentration, scale: Gompertz(concentration, scale).icdf(e),
        Gompertz,
        lambda concentration, scale: scipy.stats.gompertz(concentration, scale=scale),
    ),
    Reparameterization(
        (INVERSE_CDF, "Gumbel", UNIFORM, "loc - scale log(-log ε)", "dist.Gumbel"),
        LOC_SCALE,
        lambda e, loc, scale: loc - scale * (-e.log()).log(),
        dist.Gumbel,
        scipy.stats.gumbel_r,
    ),
    Reparameterization(
        (INVERSE_CDF, "Erlang", UNIFORM, "F⁻¹(ε) of 3 exponentials, numerically", "Erlang"),
        {"rate": 1.5},
        lambda e, rate: Erlang(COUNT, rate).icdf(e),
        partial(Erlang, COUNT),
        lambda rate: scipy.stats.erlang(COUNT, scale=1 / rate),
    ),
    _located("Laplace", "Laplace(0, 1)", "dist.Laplace", dist.Laplace, scipy.stats.laplace),
    Reparameterization(
        (LOCATION_SCALE, "Elliptical", "R u: a radius R, a direction u", "loc + scale_tril ε", "Elliptical"),
        {"loc": [0.5, -1.0], "scale_tril": [[1.5, 0.0], [0.4, 0.8]]},
        lambda e, loc, scale_tril: loc + (scale_tril @ e.unsqueeze(-1)).squeeze(-1),
        partial(Elliptical, radius=student_radius(2, torch.tensor(DF).double())),
        _elliptical_sum,
        draw=_elliptical_noise,
        size=2,
        project=lambda z: z.sum(-1),
    ),
    _located("Student t", "Student t(7)", "dist.StudentT", partial(dist.StudentT, DF), partial(scipy.stats.t, DF)),
    _located("Logistic", "Logistic(0, 1)", "dist.Logistic", dist.Logistic, scipy.stats.logistic),
    Reparameterization(
        (LOCATION_SCALE, "Uniform", UNIFORM, "low + (high - low) ε", "dist.Uniform"),
        {"low": -1.0, "high": 2.5},
        lambda e, low, high: low + (high - low) * e,
        dist.Uniform,
        lambda low, high: scipy.stats.uniform(low, high - low),
    ),
    _located("Triangular", "Triangular(0, 0.3, 1)", "Triangular", _triangular, partial(scipy.stats.triang, PEAK)),
    _located("Gaussian", "N(0, 1)", "dist.Normal", dist.Normal, scipy.stats.norm),
    Reparameterization(
        (COMPOSITION, "LogNormal", "N(0, 1)", "exp(loc + scale ε)", "dist.LogNormal"),
        {"loc": 0.5, "scale": 0.4},
        lambda e, loc, scale: (loc + scale * e).exp(),
        dist.LogNormal,
        lambda loc, scale: scipy.stats.lognorm(scale, scale=np.exp(loc)),
        draw=lambda uniform: torch.special.ndtri(uniform)[..., 0],
    ),
    Reparameterization(
        (COMPOSITION, "Gamma, integer shape", "3 × U(0, 1)", "-Σᵢ log εᵢ / rate", "Erlang"),
        {"rate": 1.5},
        lambda e, rate: -e.log().sum(-1) / rate,
        partial(Erlang, COUNT),
        lambda rate: scipy.stats.gamma(COUNT, scale=1 / rate),
        draw=_same,
        size=COUNT,
    ),
    Reparameterization(
        (COMPOSITION, "Gamma, any shape", "G ~ Gamma(concentration, 1)", "G / rate", "dist.Gamma"),
        {"concentration": 2.6, "rate": 1.5},
        lambda e, concentration, rate: _gamma(concentration, e) / rate,
        dist.Gamma,
        lambda concentration, rate: scipy.stats.gamma(concentration, scale=1 / rate),
        tolerance=IMPLICIT,
    ),
    Reparameterization(
        (COMPOSITION, "Dirichlet", "Gᵢ ~ Gamma(concentrationᵢ, 1)", "Gᵢ / Σⱼ Gⱼ", "dist.Dirichlet"),
        {"concentration": [1.3, 2.6, 0.8]},
        _dirichlet,
        dist.Dirichlet,
        lambda concentration: scipy.stats.beta(concentration[0], np.sum(concentration[1:])),
        draw=_same,
        size=3,
        project=lambda z: z[..., 0],
        tolerance=IMPLICIT,
    ),
    Reparameterization(
        (COMPOSITION, "Beta", "Gᵢ ~ Gamma(concentrationᵢ, 1)", "G₁ / (G₁ + G₀)", "dist.Beta"),
        {"concentration1": 1.3, "concentration0": 2.6},
        _beta,
        dist.Beta,
        lambda concentration1, concentration0: scipy.stats.beta(concentration1, concentration0),
        draw=_same,
        size=2,
        tolerance=IMPLICIT,
    ),
    Reparameterization(
        (COMPOSITION, "χ²", "G ~ Gamma(df / 2, 1)", "2 G", "dist.Chi2"),
        {"df": 5.2},
        lambda e, df: 2 * _gamma(df / 2, e),
        dist.Chi2,
        scipy.stats.chi2,
        tolerance=IMPLICIT,
    ),
    Reparameterization(
        (COMPOSITION, "F", "Gᵢ ~ Gamma(dfᵢ / 2, 1)", "(G₁ / df1) / (G₂ / df2)", "dist.FisherSnedecor"),
        {"df1": 5.2, "df2": 15.0},
        _fisher,
        dist.FisherSnedecor,
        lambda df1, df2: scipy.stats.f(df1, df2),
        draw=_same,
        size=2,
        tolerance=IMPLICIT_RATIO,
    ),
)
