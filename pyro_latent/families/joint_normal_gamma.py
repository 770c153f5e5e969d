"""Normal distributions of several sites at once, with the precision that all of theirs are proportional to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..distributions.joint_normal import SiteSlice
from ..distributions.joint_normal_gamma import JointNormalGamma
from .base import Mean, Natural, Params
from .joint_normal import Gaussian
from .quantiles import gamma_quantile, student_quantile


class GaussianGamma(Gaussian):
    """The elements x of normal sites and a scalar τ, the last component: N(x; loc, (τΛ)⁻¹) Gamma(τ; a, b).

    t = (τ x_i, τ x_i x_j of the pairs that meet, τ, log τ), η = (Λ loc, −Λ_ii / 2 and −Λ_ij, −b − locᵀΛ loc / 2,
    a − 1 + n / 2). The first two are those of :class:`.Gaussian` at τ = 1, and so are the pairs and the elimination.

    Source: Bernardo and Smith 1994, Bayesian Theory, §5.2 and appendix A, for the multivariate normal-gamma.

    Args:
        parts, device, pairs: as of :class:`.Gaussian`.
        precision: the name of τ.
    """

    name = "Joint Normal-Gamma"
    is_relative = True
    statistics = {"x": 1, "xx": 1, "precision": 0, "log_precision": 0}
    param_names = ("loc", "precision", "concentration", "rate")

    def __init__(self, parts: Sequence[SiteSlice], device: torch.device, pairs: Sequence[int], precision: str) -> None:
        super().__init__(parts, device, pairs)
        self.event_dims = (*self.event_dims, 0)  # type: ignore[misc]
        self.precision_site = precision
        names = ", ".join(repr(part.name) for part in self.parts)
        self.hint = (  # type: ignore[misc]
            f"every term that reads {names} is proportional to {precision!r}. Write their scales relative to it, as "
            f"Normal(0, 2 * {precision}.rsqrt()) does, or leave {precision!r} out of the block."
        )

    @property
    def written_statistics(self) -> str:
        tau = self.precision_site
        return f"{tau} · x, {tau} · x · x, {tau}, log({tau})"

    @property
    def numbers(self) -> int:
        return super().numbers + 2

    def _spread(self, params: Params) -> Tensor:
        """The scales of the elements' marginals, Student-t."""
        ratio = (params["rate"] / params["concentration"]).sqrt().unsqueeze(-1)
        return ratio * self.distribution(params).normal.variance.sqrt()

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        *normal, precision = values
        wide = precision.unsqueeze(-1)
        weighted = super().sufficient_statistics(*normal).map(lambda t: wide * t)
        return Mean(**weighted, precision=precision, log_precision=precision.log())

    def _gamma(self, natural: Natural) -> tuple[Tensor, Tensor]:
        """The concentration and the rate, float64."""
        square = (self._location(natural) * natural.x).sum(-1)
        return natural.log_precision.double() + (1 - self.size / 2), -natural.precision - 0.5 * square

    def log_normalizer(self, natural: Natural) -> Tensor:
        concentration, rate = self._gamma(natural)
        log_gamma = torch.lgamma(concentration) - concentration * rate.log()
        return (log_gamma + self._log_volume(natural)).to(natural.x)

    def mean(self, natural: Natural) -> Mean:
        concentration, rate = self._gamma(natural)
        precision = (concentration / rate).unsqueeze(-1)
        loc, pairs = self._location(natural), self.plans.pairs
        xx = self._covariances(natural) + precision * loc[..., pairs.rows] * loc[..., pairs.columns]
        log_precision = torch.digamma(concentration) - rate.log()
        found = Mean(x=precision * loc, xx=xx, precision=precision.squeeze(-1), log_precision=log_precision)
        return found.map(lambda t: t.to(natural.x))

    def tempered(self, natural: Natural, inverse_temperature: float) -> Natural:
        """The densities of τ and of x given τ, each to the power and normalized: the power of both together would have
        no integral at a low one, where n is large.
        """
        powered = super().tempered(natural, inverse_temperature)
        kept = (1 - inverse_temperature) * self.size / 2
        return Natural(**powered | {"log_precision": powered.log_precision + kept})

    def to_params(self, natural: Natural) -> Params:
        concentration, rate = (t.to(natural.x) for t in self._gamma(natural))
        return super().to_params(natural) | {"concentration": concentration, "rate": rate}

    def from_params(self, params: Params) -> Natural:
        normal = super().from_params(params)
        square = (params["loc"] * normal.x).sum(-1)
        log_precision = params["concentration"] + (self.size / 2 - 1)
        return Natural(**normal, precision=-params["rate"] - 0.5 * square, log_precision=log_precision)

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        return super().example(batch, *events) | {"concentration": torch.full(batch, 2.0), "rate": torch.ones(batch)}

    def in_domain(self, natural: Natural) -> Tensor:
        concentration, rate = self._gamma(natural)
        rounding = self._factorized(natural).least_share * natural.precision.abs()
        return super().in_domain(natural) & (concentration > 0) & concentration.isfinite() & (rate > rounding)

    def distribution(self, params: Params) -> JointNormalGamma:
        return JointNormalGamma(
            super().distribution(params),
            params["concentration"],
            params["rate"],
            self.precision_site,
            validate_args=False,
        )

    def distribution_params(self, distribution: Any) -> Params:
        own = {"concentration": distribution.concentration, "rate": distribution.rate}
        return super().distribution_params(distribution.normal) | own

    def marginals(self, params: Params) -> tuple[Any, ...]:
        joint = self.distribution(params)
        return tuple(joint.marginal(name) for name in joint.sites)

    def conditionals(self, params: Params) -> tuple[tuple[int, Callable[..., Any]], ...]:
        joint = self.distribution(params)
        of_normals = ((i, partial(joint.given, turn)) for turn, i in enumerate(self.order))
        return ((len(self.parts), lambda: joint.precision_marginal), *of_normals)

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        concentration, spread = params["concentration"], self._spread(params)
        df = (2 * concentration).unsqueeze(-1).expand(spread.shape)
        found = student_quantile(df, params["loc"], spread, probability)
        return (*self._by_site(found), gamma_quantile(concentration, params["rate"], probability))


__all__ = ["GaussianGamma"]
