"""The rows of the table of reparameterisations: each distribution of the notes as z = g(ε).

The notes name three ways to draw z from q_φ(z) so that the noise ε has no parameter: the inverse distribution function
of uniform noise, location + scale · ε, and compositions of such draws. Logistic stands in two of their lists; so it
does here. ``pyro_latent.reparameterization`` checks the rows and prints them.

Source: ``docs/sources.md``, [4] (163)-(166) and the three lists after them; Kingma and Welling 2014, §2.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyro.distributions as dist
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from .reparam_distributions import Elliptical, Erlang, Gompertz, LogUniform, Rayleigh, Triangular

__all__ = ["TABLE", "WAYS", "Reparameterization", "StandardGamma"]

Parameters = Mapping[str, Any]
Numbers = Mapping[str, Any]
WAYS = ("inverse CDF", "location-scale", "composition")


def _only(uniform: Tensor) -> Tensor:
    return uniform[..., 0]


def _same(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True, kw_only=True)
class Reparameterization:
    """One row of the table.

    Attributes:
        name: of the distribution.
        way: one of :data:`WAYS`.
        noise, formula, code: ε, g(ε) and the Pyro distribution, as text.
        parameters: where the row is checked, by name: numbers, or nested lists of them.
        transform: g, from noise ``[n, ...]`` and parameters that carry the same ``[n]`` on the left.
        reference: scipy's frozen distribution of ``project(z)`` at the parameters.
        distribution: the Pyro distribution at the parameters.
        draw: noise from uniform numbers ``[n, size]``; by default their first column.
        size: how many uniform numbers one draw of the noise takes.
        project: a scalar of each draw, ``[n]``, where z is a vector.
        bounded: whether arctan(z) is averaged in place of z and z², which have no mean.
        tolerance: of the derivative of g at fixed noise, relative.
    """

    name: str
    way: str
    noise: str
    formula: str
    code: str
    parameters: Numbers
    transform: Callable[[Tensor, Parameters], Tensor]
    reference: Callable[[Numbers], Any]
    distribution: Callable[[Parameters], Any]
    draw: Callable[[Tensor], Tensor] = _only
    size: int = 1
    project: Callable[[Tensor], Tensor] = _same
    bounded: bool = False
    tolerance: float = 1e-6

    #: What is averaged over draws, by name.
    MOMENTS: ClassVar[Mapping[str, Callable[[Tensor], Tensor]]] = {"mean": _same, "square": torch.square}

    @property
    def moments(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """By name, the functions of z whose expectations are compared."""
        return {"arctan": torch.arctan} if self.bounded else self.MOMENTS

    def exact(self, moment: str, parameters: Numbers) -> float:
        """The expectation of a moment of ``project(z)``, by scipy."""
        reference = self.reference(parameters)
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


def _standard(reference: Any) -> Callable[[Tensor], Tensor]:
    """Noise of a standard distribution, by scipy's quantiles."""
    return lambda uniform: torch.from_numpy(np.asarray(reference.ppf(uniform[..., 0].numpy())))


def _normal(uniform: Tensor) -> Tensor:
    return torch.special.ndtri(uniform)[..., 0]


def _location_scale(noise: Tensor, p: Parameters) -> Tensor:
    return p["loc"] + p["scale"] * noise


DF = 7.0
COUNT = 3
PEAK = 0.3
#: torch's derivative of a Gamma by its concentration is an approximation, off by up to 1e-3 of itself. In F two such
#: terms nearly cancel. With the exact derivative all rows meet 1e-6.
IMPLICIT = 1e-3
IMPLICIT_RATIO = 5e-3
LOC_SCALE: Numbers = {"loc": 0.5, "scale": 1.5}


def _elliptical_noise(uniform: Tensor) -> Tensor:
    """R u in two dimensions, ``[n, 2]``: R² / 2 ~ F(2, DF), and an angle for the direction."""
    radius = torch.from_numpy(np.sqrt(2 * scipy.stats.f(2, DF).ppf(uniform[:, 0].numpy())))
    angle = 2 * math.pi * uniform[:, 1]
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)


def student_radius(dim: int, df: Tensor) -> Any:
    """√(D F), F ~ F(D, df): the radius that makes an :class:`Elliptical` a multivariate Student t."""
    ratio = dist.FisherSnedecor(torch.full_like(df, dim), df)
    root = dist.transforms.PowerTransform(torch.full_like(df, 0.5))
    return dist.TransformedDistribution(ratio, [dist.transforms.AffineTransform(0.0, float(dim)), root])


def _elliptical_sum(p: Numbers) -> Any:
    """The sum of the coordinates, a Student t."""
    factor = np.asarray(p["scale_tril"])
    return scipy.stats.t(DF, np.sum(p["loc"]), np.sqrt((factor @ factor.T).sum()))


def _fisher(uniform: Tensor, p: Parameters) -> Tensor:
    top, bottom = (_gamma(p[name] / 2, uniform[:, i]) / p[name] for i, name in enumerate(("df1", "df2")))
    return top / bottom


def _beta(uniform: Tensor, p: Parameters) -> Tensor:
    first, second = (_gamma(p[f"concentration{1 - i}"], uniform[:, i]) for i in (0, 1))
    return first / (first + second)


def _dirichlet(uniform: Tensor, p: Parameters) -> Tensor:
    gammas = _gamma(p["concentration"], uniform)
    return gammas / gammas.sum(-1, keepdim=True)


def _dirichlet_first(p: Numbers) -> Any:
    """The first coordinate, a Beta."""
    first, *others = np.asarray(p["concentration"])
    return scipy.stats.beta(first, np.sum(others))


#: The notes' three lists, in their order; all numbers are float64.
TABLE: tuple[Reparameterization, ...] = (
    Reparameterization(
        name="Exponential",
        way=WAYS[0],
        noise="U(0, 1)",
        formula="-log(1 - ε) / rate",
        code="dist.Exponential",
        parameters={"rate": 1.5},
        transform=lambda e, p: -torch.log1p(-e) / p["rate"],
        reference=lambda p: scipy.stats.expon(scale=1 / p["rate"]),
        distribution=lambda p: dist.Exponential(**p),
    ),
    Reparameterization(
        name="Cauchy",
        way=WAYS[0],
        noise="U(0, 1)",
        formula="loc + scale tan(π (ε - 1/2))",
        code="dist.Cauchy",
        parameters=LOC_SCALE,
        transform=lambda e, p: p["loc"] + p["scale"] * torch.tan(math.pi * (e - 0.5)),
        reference=lambda p: scipy.stats.cauchy(**p),
        distribution=lambda p: dist.Cauchy(**p),
        bounded=True,
    ),
    Reparameterization(
        name="Logistic",
        way=WAYS[0],
        noise="U(0, 1)",
        formula="loc + scale log(ε / (1 - ε))",
        code="dist.Logistic",
        parameters=LOC_SCALE,
        transform=lambda e, p: p["loc"] + p["scale"] * torch.logit(e),
        reference=lambda p: scipy.stats.logistic(**p),
        distribution=lambda p: dist.Logistic(**p),
    ),
    Reparameterization(
        name="Rayleigh",
        way=WAYS[0],
        noise="U(0, 1)",
        formula="scale √(-2 log(1 - ε))",
        code="Rayleigh",
        parameters={"scale": 1.5},
        transform=lambda e, p: Rayleigh(**p).icdf(e),
        reference=lambda p: scipy.stats.rayleigh(**p),
        distribution=lambda p: Rayleigh(**p),
    ),
    Reparameterization(
        name="Pareto",
        way=WAYS[0],
        noise="U(0, 1)",
        formula="scale (1 - ε)^(-1 / alpha)",
        code="dist.Pareto",
        parameters={"scale": 1.5, "alpha": 9.0},
        transform=lambda e, p: p["scale"] * (1 - e) ** (-1 / p["alpha"]),
        reference=lambda p: scipy.stats.pareto(p["alpha"], scale=p["scale"]),
        distribution=lambda p: dist.Pareto(**p),
    ),
    Reparameterization(
        name="Weibull",
        way=WAYS[0],
        noise="U(0, 1)",
        formula="scale (-log(1 - ε))^(1 / concentration)",
        code="dist.Weibull",
        parameters={"scale": 1.5, "concentration": 2.5},
        transform=lambda e, p: p["scale"] * (-torch.log1p(-e)) ** (1 / p["concentration"]),
        reference=lambda p: scipy.stats.weibull_min(p["concentration"], scale=p["scale"]),
        distribution=lambda p: dist.Weibull(**p),
    ),
    Reparameterization(
        name="Reciprocal",
        way=WAYS[0],
        noise="U(0, 1)",
        formula="low (high / low)^ε",
        code="LogUniform",
        parameters={"low": 0.5, "high": 4.0},
        transform=lambda e, p: LogUniform(**p).icdf(e),
        reference=lambda p: scipy.stats.loguniform(p["low"], p["high"]),
        distribution=lambda p: LogUniform(**p),
    ),
    Reparameterization(
        name="Gompertz",
        way=WAYS[0],
        noise="U(0, 1)",
        formula="scale log(1 - log(1 - ε) / concentration)",
        code="Gompertz",
        parameters={"concentration": 0.7, "scale": 1.5},
        transform=lambda e, p: Gompertz(**p).icdf(e),
        reference=lambda p: scipy.stats.gompertz(p["concentration"], scale=p["scale"]),
        distribution=lambda p: Gompertz(**p),
    ),
    Reparameterization(
        name="Gumbel",
        way=WAYS[0],
        noise="U(0, 1)",
        formula="loc - scale log(-log ε)",
        code="dist.Gumbel",
        parameters=LOC_SCALE,
        transform=lambda e, p: p["loc"] - p["scale"] * (-e.log()).log(),
        reference=lambda p: scipy.stats.gumbel_r(**p),
        distribution=lambda p: dist.Gumbel(**p),
    ),
    Reparameterization(
        name="Erlang",
        way=WAYS[0],
        noise="U(0, 1)",
        formula="F⁻¹(ε) of 3 exponentials, by bisection",
        code="Erlang",
        parameters={"rate": 1.5},
        transform=lambda e, p: Erlang(COUNT, p["rate"]).icdf(e),
        reference=lambda p: scipy.stats.erlang(COUNT, scale=1 / p["rate"]),
        distribution=lambda p: Erlang(COUNT, p["rate"]),
    ),
    Reparameterization(
        name="Laplace",
        way=WAYS[1],
        noise="Laplace(0, 1)",
        formula="loc + scale ε",
        code="dist.Laplace",
        parameters=LOC_SCALE,
        transform=_location_scale,
        reference=lambda p: scipy.stats.laplace(**p),
        distribution=lambda p: dist.Laplace(**p),
        draw=_standard(scipy.stats.laplace),
    ),
    Reparameterization(
        name="Elliptical",
        way=WAYS[1],
        noise="R u: a radius R, a direction u",
        formula="loc + scale_tril ε",
        code="Elliptical",
        parameters={"loc": [0.5, -1.0], "scale_tril": [[1.5, 0.0], [0.4, 0.8]]},
        transform=lambda e, p: p["loc"] + (p["scale_tril"] @ e.unsqueeze(-1)).squeeze(-1),
        reference=lambda p: _elliptical_sum(p),
        distribution=lambda p: Elliptical(**p, radius=student_radius(2, torch.tensor(DF).double())),
        draw=_elliptical_noise,
        size=2,
        project=lambda z: z.sum(-1),
    ),
    Reparameterization(
        name="Student t",
        way=WAYS[1],
        noise="Student t(7)",
        formula="loc + scale ε",
        code="dist.StudentT",
        parameters=LOC_SCALE,
        transform=_location_scale,
        reference=lambda p: scipy.stats.t(DF, **p),
        distribution=lambda p: dist.StudentT(DF, **p),
        draw=_standard(scipy.stats.t(DF)),
    ),
    Reparameterization(
        name="Logistic",
        way=WAYS[1],
        noise="Logistic(0, 1)",
        formula="loc + scale ε",
        code="dist.Logistic",
        parameters=LOC_SCALE,
        transform=_location_scale,
        reference=lambda p: scipy.stats.logistic(**p),
        distribution=lambda p: dist.Logistic(**p),
        draw=_standard(scipy.stats.logistic),
    ),
    Reparameterization(
        name="Uniform",
        way=WAYS[1],
        noise="U(0, 1)",
        formula="low + (high - low) ε",
        code="dist.Uniform",
        parameters={"low": -1.0, "high": 2.5},
        transform=lambda e, p: p["low"] + (p["high"] - p["low"]) * e,
        reference=lambda p: scipy.stats.uniform(p["low"], p["high"] - p["low"]),
        distribution=lambda p: dist.Uniform(**p),
    ),
    Reparameterization(
        name="Triangular",
        way=WAYS[1],
        noise="Triangular(0, 0.3, 1)",
        formula="loc + scale ε",
        code="Triangular",
        parameters=LOC_SCALE,
        transform=_location_scale,
        reference=lambda p: scipy.stats.triang(PEAK, **p),
        distribution=lambda p: Triangular(p["loc"], p["loc"] + PEAK * p["scale"], p["loc"] + p["scale"]),
        draw=_standard(scipy.stats.triang(PEAK)),
    ),
    Reparameterization(
        name="Gaussian",
        way=WAYS[1],
        noise="N(0, 1)",
        formula="loc + scale ε",
        code="dist.Normal",
        parameters=LOC_SCALE,
        transform=_location_scale,
        reference=lambda p: scipy.stats.norm(**p),
        distribution=lambda p: dist.Normal(**p),
        draw=_normal,
    ),
    Reparameterization(
        name="LogNormal",
        way=WAYS[2],
        noise="N(0, 1)",
        formula="exp(loc + scale ε)",
        code="dist.LogNormal",
        parameters={"loc": 0.5, "scale": 0.4},
        transform=lambda e, p: (p["loc"] + p["scale"] * e).exp(),
        reference=lambda p: scipy.stats.lognorm(p["scale"], scale=np.exp(p["loc"])),
        distribution=lambda p: dist.LogNormal(**p),
        draw=_normal,
    ),
    Reparameterization(
        name="Gamma, integer shape",
        way=WAYS[2],
        noise="3 × U(0, 1)",
        formula="-Σᵢ log εᵢ / rate",
        code="Erlang",
        parameters={"rate": 1.5},
        transform=lambda e, p: -e.log().sum(-1) / p["rate"],
        reference=lambda p: scipy.stats.gamma(COUNT, scale=1 / p["rate"]),
        distribution=lambda p: Erlang(COUNT, p["rate"]),
        draw=_same,
        size=COUNT,
    ),
    Reparameterization(
        name="Gamma, any shape",
        way=WAYS[2],
        noise="G ~ Gamma(concentration, 1)",
        formula="G / rate",
        code="dist.Gamma",
        parameters={"concentration": 2.6, "rate": 1.5},
        transform=lambda e, p: _gamma(p["concentration"], e) / p["rate"],
        reference=lambda p: scipy.stats.gamma(p["concentration"], scale=1 / p["rate"]),
        distribution=lambda p: dist.Gamma(**p),
        tolerance=IMPLICIT,
    ),
    Reparameterization(
        name="Dirichlet",
        way=WAYS[2],
        noise="Gᵢ ~ Gamma(concentrationᵢ, 1)",
        formula="Gᵢ / Σⱼ Gⱼ",
        code="dist.Dirichlet",
        parameters={"concentration": [1.3, 2.6, 0.8]},
        transform=_dirichlet,
        reference=lambda p: _dirichlet_first(p),
        distribution=lambda p: dist.Dirichlet(**p),
        draw=_same,
        size=3,
        project=lambda z: z[..., 0],
        tolerance=IMPLICIT,
    ),
    Reparameterization(
        name="Beta",
        way=WAYS[2],
        noise="Gᵢ ~ Gamma(concentrationᵢ, 1)",
        formula="G₁ / (G₁ + G₀)",
        code="dist.Beta",
        parameters={"concentration1": 1.3, "concentration0": 2.6},
        transform=_beta,
        reference=lambda p: scipy.stats.beta(p["concentration1"], p["concentration0"]),
        distribution=lambda p: dist.Beta(**p),
        draw=_same,
        size=2,
        tolerance=IMPLICIT,
    ),
    Reparameterization(
        name="χ²",
        way=WAYS[2],
        noise="G ~ Gamma(df / 2, 1)",
        formula="2 G",
        code="dist.Chi2",
        parameters={"df": 5.2},
        transform=lambda e, p: 2 * _gamma(p["df"] / 2, e),
        reference=lambda p: scipy.stats.chi2(p["df"]),
        distribution=lambda p: dist.Chi2(**p),
        tolerance=IMPLICIT,
    ),
    Reparameterization(
        name="F",
        way=WAYS[2],
        noise="Gᵢ ~ Gamma(dfᵢ / 2, 1)",
        formula="(G₁ / df1) / (G₂ / df2)",
        code="dist.FisherSnedecor",
        parameters={"df1": 5.2, "df2": 15.0},
        transform=_fisher,
        reference=lambda p: scipy.stats.f(p["df1"], p["df2"]),
        distribution=lambda p: dist.FisherSnedecor(**p),
        draw=_same,
        size=2,
        tolerance=IMPLICIT_RATIO,
    ),
)
