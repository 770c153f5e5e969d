"""The normal distribution of several sites at once whose precision has an unknown factor, with the Gamma of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from .joint import Pair
from .joint_normal import JointNormal, SiteGiven, beside


class JointNormalGamma(TorchDistribution):
    """τ ~ Gamma(concentration, rate), and x | τ has the location of ``normal`` and τ times its precision.

    Values are pairs (x, τ) of shapes ``batch + (n,)`` and ``batch``, x the elements of the normal sites one after
    another; ``event_shape`` is empty, and ``log_prob`` and ``batch_shape`` count batch dimensions.

    Args:
        normal: x at τ = 1.
        concentration, rate: of τ, of the batch shape of ``normal``.
        precision_site: the name of τ.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "precision": constraints.real_vector,
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    has_rsample = True

    def __init__(
        self,
        normal: JointNormal,
        concentration: Tensor,
        rate: Tensor,
        precision_site: str,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.normal, self.precision_site = normal, precision_site
        self.concentration, self.rate = (t.expand(normal.batch_shape) for t in (concentration, rate))
        super().__init__(normal.batch_shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> JointNormalGamma:
        shape = Size(batch_shape)
        params = (self.concentration.expand(shape), self.rate.expand(shape))
        return JointNormalGamma(self.normal.expand(shape), *params, self.precision_site, validate_args=False)

    @property
    def loc(self) -> Tensor:
        """The means of the elements of the normal sites, ``batch + (n,)``."""
        return self.normal.loc

    @property
    def precision(self) -> Tensor:
        """What τ multiplies at the pairs of elements that meet, ``batch + (P,)``."""
        return self.normal.precision

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the normal sites, in the order of their elements, and that of the precision."""
        return (*self.normal.sites, self.precision_site)

    @property
    def precision_marginal(self) -> dist.Gamma:
        return dist.Gamma(self.concentration, self.rate, validate_args=False)

    def marginal(self, site: str) -> Any:
        """The distribution of a site: a Student-t by element, and of its events as a whole where they have covariances;
        of the precision a Gamma.
        """
        if site == self.precision_site:
            return self.precision_marginal
        part, normal = self.normal.part(site), self.normal.marginal(site)
        beside_batch = self.batch_shape + (1,) * len(part.batch_shape)
        df = (2 * self.concentration).reshape(beside_batch)
        spread = (self.rate / self.concentration).sqrt().reshape(beside_batch)
        if not part.is_vector:
            return dist.StudentT(df, normal.loc, spread * normal.scale, validate_args=False)
        factor = spread[..., None, None] * normal.scale_tril
        return dist.MultivariateStudentT(df.expand(factor.shape[:-2]), normal.loc, factor, validate_args=False)

    def covariance(self, site: str, other: str | None = None) -> Tensor:
        """The covariances of all elements of a normal site with all of another, by default itself: ``batch`` and the
        shapes of both; infinite where the concentration is at most one.
        """
        found = self.normal.covariance(site, other)
        inflation = torch.where(self.concentration > 1, self.rate / (self.concentration - 1), torch.inf)
        return inflation.reshape(self.batch_shape + (1,) * (found.ndim - len(self.batch_shape))) * found

    def split(self, value: Pair) -> dict[str, Tensor]:
        """A pair by site, each ``[...] + the site's shape``."""
        return self.normal.split(value[0]) | {self.precision_site: value[1]}

    def entropy(self) -> Tensor:
        log_precision = torch.digamma(self.concentration) - self.rate.log()
        half = 0.5 * self.normal.event_shape[0]
        return self.precision_marginal.entropy() + self.normal.entropy() - half * log_precision

    def rsample(self, sample_shape: Sequence[int] = ()) -> Pair:  # type: ignore[override]
        """A pair, each with ``sample_shape`` on the left."""
        precision = self.precision_marginal.rsample(Size(sample_shape))
        loc = self.normal.loc
        return loc + (self.normal.rsample(sample_shape) - loc) / precision.sqrt().unsqueeze(-1), precision

    def log_prob(self, value: Pair) -> Tensor:  # type: ignore[override]
        """log q(x, τ) of a pair."""
        x, precision = value
        loc = self.normal.loc
        standard = loc + (x - loc) * precision.sqrt().unsqueeze(-1)
        half = 0.5 * loc.shape[-1]
        return self.precision_marginal.log_prob(precision) + self.normal.log_prob(standard) + half * precision.log()

    def given(self, turn: int, precision: Tensor, *drawn: Tensor) -> SiteGivenPrecision:
        """The distribution of the normal site that is drawn at a turn, given τ and the values of those drawn before."""
        return SiteGivenPrecision(self.normal, turn, precision, drawn)


class SiteGivenPrecision(SiteGiven):
    """A site of a joint normal distribution whose precision is multiplied by τ, given τ and those drawn before it.

    Values are stretched about the location by √τ: there the distribution is that at τ = 1.

    Args:
        joint: the joint distribution at τ = 1.
        turn: which in the order of drawing.
        precision: draws of τ.
        drawn: the values of the sites before, each of its site's shape with dimensions of draws on the left.
    """

    def __init__(
        self,
        joint: JointNormal,
        turn: int,
        precision: Tensor,
        drawn: Sequence[Tensor],
        batch_shape: Size | None = None,
    ) -> None:
        self.precision = precision
        super().__init__(joint, turn, drawn, batch_shape)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> SiteGivenPrecision:
        return SiteGivenPrecision(self.joint, self.turn, self.precision, self.drawn, Size(batch_shape))

    @property
    def _lead(self) -> Size:
        """The dimensions of τ on the left of the site's plates."""
        return beside(self.precision.shape, 0, len(self.site.batch_shape))

    def _outer(self) -> list[Size]:
        return [self._lead, *super()._outer()]

    def _root(self, events: int) -> Tensor:
        """√τ beside the plates of the site, with so many event dimensions."""
        return self.precision.sqrt().reshape(self._lead + (1,) * (len(self.site.batch_shape) + events))

    @property
    def _loc(self) -> Tensor:
        loc = self.joint.loc[..., self.site.elements]
        return loc.reshape(beside(loc.shape[:-1], 0, len(self.site.batch_shape)) + self.site.shape)

    def _values(self, lead: Size) -> Tensor:
        values, loc = super()._values(lead), self.joint.loc
        root = self.precision.sqrt().reshape(self._lead).expand(lead)
        center = loc.reshape(-1, loc.shape[-1], 1).to(values)
        stretch = root.reshape(-1, 1, len(center)).permute(2, 1, 0).to(values)
        values[:, :-1] = center + (values[:, :-1] - center) * stretch
        return values

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws ``sample_shape + batch + event``."""
        loc = self._loc
        return loc + (super().rsample(sample_shape) - loc) / self._root(len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log densities of the site's batch shape, with the draws on the left."""
        loc = self._loc
        stretched = loc + (value - loc) * self._root(len(self.event_shape))
        return super().log_prob(stretched) + self.event_shape.numel() * self._root(0).log()


__all__ = ["JointNormalGamma", "SiteGivenPrecision"]
