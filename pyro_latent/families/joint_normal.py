"""Normal distributions of several sites at once, with a precision wherever two of their elements meet in the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..distributions.elimination import FEWER, Factorization
from ..distributions.joint_normal import JointNormal, Pairs, Plans, SiteSlice, times
from ..errors import ArgumentError
from ..settings import check_memory
from ..values import broadcast_shapes
from .base import Family, Mean, Natural, Params
from .quantiles import quantile

_PRECISION_OF_NO_ENTROPY = 2 * math.pi * math.e


class Gaussian(Family):
    """t(x) = (x_i, and x_i x_j of the pairs that meet), η = (Λ loc, −Λ_ii / 2 and −Λ_ij), Λ the precision.

    Its log normalizer is an elimination of the elements, and the moments are the gradient of that; see
    :mod:`pyro_latent.distributions.elimination`. Which pairs meet, the model says: :meth:`places` notes them.

    Args:
        parts: the sites of the block.
        device: where its tensors are.
        pairs: those that are known to meet, as :attr:`codes` of a block of the same size has them.
    """

    name = "Joint normal"
    statistics = {"x": 1, "xx": 1}
    moments = {}
    location = ("loc", 0)
    param_names: ClassVar[tuple[str, ...]] = ("loc", "precision")
    hint = "normal sites of a joint block are conjugate where each term is at most quadratic in all of them."

    remembered = ("_factor", "_plans")  # of the last natural parameters

    def __init__(self, parts: Sequence[SiteSlice], device: torch.device, pairs: Sequence[int] = ()) -> None:
        self.parts, self.device = tuple(parts), device
        self.size = sum(part.shape.numel() for part in parts)
        self.event_dims = (1,) * len(self.parts)  # type: ignore[misc]
        # Outside of plates first, else in the order of the model: parents before children.
        self.order = tuple(sorted(range(len(self.parts)), key=lambda i: self.parts[i].batch_shape.numel() > 1))
        own = [i * (self.size + 1) for i in range(self.size)]
        is_known = list(pairs[: self.size]) == own and max(pairs, default=0) < self.size**2
        codes = pairs if is_known else own
        self._known = {code: i for i, code in enumerate(codes)}
        self._plans: tuple[int, Plans] | None = None
        self._factor: tuple[Tensor, int, Factorization] | None = None
        for part in self.parts:
            if part.is_vector:
                elements = torch.arange(part.offset, part.elements.stop).reshape(-1, part.event_shape.numel())
                self.places(elements.unsqueeze(-1), elements.unsqueeze(-2))

    # The pairs.

    @property
    def num_pairs(self) -> int:
        """How many pairs meet, those of an element with itself among them."""
        return len(self._known)

    @property
    def numbers(self) -> int:
        """How many numbers its mean parameters hold."""
        return self.size + self.num_pairs

    @property
    def codes(self) -> list[int]:
        """The pairs in order, each as the larger element times ``size`` plus the smaller."""
        return list(self._known)

    def padded(self, natural: Natural) -> Natural:
        """The natural parameters of the same distribution, made when fewer pairs were known: zero at the others."""
        missing = self.num_pairs - natural.xx.shape[-1]
        return Natural(**natural | {"xx": torch.nn.functional.pad(natural.xx, (0, missing))}) if missing else natural

    @cached_property
    def _pairs_in_words(self) -> str:
        few = ", ".join(p.name for p in self.parts[:8])
        return f"the pairs of elements that meet in {few}" + (" and others" if len(self.parts) > 8 else "")

    def places(self, first: Tensor, second: Tensor) -> Tensor:
        """Where the moments of pairs of elements are; new pairs are noted."""
        numbers = broadcast_shapes(first.shape, second.shape).numel()
        check_memory(self._pairs_in_words, 12 * numbers, FEWER)
        codes = torch.maximum(first, second) * self.size + torch.minimum(first, second)
        if codes.numel() == 1:
            return torch.full_like(codes, self._known.setdefault(int(codes), len(self._known)))
        unique, inverse = codes.unique(return_inverse=True)
        found = [self._known.setdefault(code, len(self._known)) for code in unique.tolist()]
        return torch.tensor(found, device=codes.device)[inverse]

    @property
    def plans(self) -> Plans:
        """The eliminations of the pairs that are known by now."""
        if self._plans is None or self._plans[0] != self.num_pairs:
            codes = torch.tensor(self.codes, device=self.device)
            self._plans = (self.num_pairs, Plans(Pairs(codes // self.size, codes % self.size, self.parts, self.order)))
        return self._plans[1]

    def _halves(self, like: Tensor) -> Tensor:
        """What −Λ is multiplied by in η: one half on the diagonal, which is first."""
        found = like.new_ones(self.num_pairs)
        found[: self.size] = 0.5
        return found

    def _precision(self, natural: Natural) -> Tensor:
        """Λ at the pairs."""
        return -natural.xx / self._halves(natural.xx)

    def _factorized(self, natural: Natural) -> Factorization:
        xx, plan = natural.xx, self.plans.at_once
        if self._factor is not None:
            seen, version, factor = self._factor
            if seen is xx and version == xx._version and factor.plan is plan:
                return factor
        factor = plan.factorize(self._precision(natural).reshape(-1, self.num_pairs))
        if not xx.requires_grad:
            self._factor = (xx, xx._version, factor)
        return factor

    def moved(self, natural: Natural, fixed: Tensor, noise: Tensor, largest: float) -> Natural:
        """The distribution with another location: zero for elements that are ``fixed [n]``, and for others as it is but
        for noise ``[..., n]`` times their spread, which counts as ``largest`` at most.
        """
        params = self.to_params(natural)
        spread = self._spread(params).clamp(max=largest)
        loc = torch.where(fixed, 0.0, params["loc"] + spread * noise)
        return self.from_params(params | {"loc": loc})

    def _spread(self, params: Params) -> Tensor:
        """The scales of the elements' marginals."""
        return self.distribution(params).variance.sqrt()

    def where_read(self, natural: Natural, mask: Tensor) -> Natural:
        """The natural parameters where a mask over the elements holds; elsewhere a normal of entropy 0, which weighs
        nothing.
        """
        is_read = torch.nn.functional.pad(mask, (0, self.num_pairs - self.size), value=True)
        return Natural(
            x=torch.where(mask, natural.x, 0.0), xx=torch.where(is_read, natural.xx, -0.5 * _PRECISION_OF_NO_ENTROPY)
        )

    def elements_of(self, statistic: str, which: Tensor) -> Tensor:
        """The elements that are in some of the elements of a statistic, as booleans ``[n]``."""
        if statistic == "x":
            return which
        pairs, counts = self.plans.pairs, which.double()
        zero = counts.new_zeros(self.size)
        return zero.index_add(0, pairs.rows, counts).index_add(0, pairs.columns, counts) > 0

    # The family.

    def sufficient_statistics(self, *values: Tensor) -> Mean:
        x = torch.cat(values, -1)
        pairs = self.plans.pairs
        return Mean(x=x, xx=x[..., pairs.rows] * x[..., pairs.columns])

    def _location(self, natural: Natural) -> Tensor:
        found = self._factorized(natural).solve(natural.x.reshape(-1, self.size, 1))
        return found.reshape(natural.x.shape)

    def _log_volume(self, natural: Natural) -> Tensor:
        """log ∫ exp(−xᵀΛx / 2) dx, float64."""
        half = self._factorized(natural).half_log_det.reshape(natural.x.shape[:-1])
        return 0.5 * self.size * math.log(2 * math.pi) - half

    def _covariances(self, natural: Natural) -> Tensor:
        """Λ⁻¹ at the pairs, float64."""
        return self._factorized(natural).covariances.reshape((*natural.x.shape[:-1], -1))

    def log_normalizer(self, natural: Natural) -> Tensor:
        square = (self._location(natural) * natural.x).sum(-1)
        return (0.5 * square + self._log_volume(natural)).to(natural.x)

    def mean(self, natural: Natural) -> Mean:
        loc, pairs = self._location(natural), self.plans.pairs
        xx = self._covariances(natural) + loc[..., pairs.rows] * loc[..., pairs.columns]
        return Mean(x=loc.to(natural.x), xx=xx.to(natural.x))

    def to_params(self, natural: Natural) -> Params:
        return {"loc": self._location(natural).to(natural.x), "precision": self._precision(natural)}

    def from_params(self, params: Params) -> Natural:
        loc, precision = params["loc"], params["precision"]
        return Natural(x=times(self.plans.pairs, precision, loc), xx=-precision * self._halves(precision))

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        precision = torch.zeros(self.num_pairs)
        precision[: self.size] = 1.0
        return {"loc": torch.zeros((*batch, self.size)), "precision": precision.expand((*batch, -1))}

    def in_domain(self, natural: Natural) -> Tensor:
        proper = self._factorized(natural).is_proper.reshape(natural.x.shape[:-1])
        return proper & natural.x.isfinite().all(-1)

    def distribution(self, params: Params) -> JointNormal:
        return JointNormal(params["loc"], params["precision"], self.plans, validate_args=False)

    def distribution_params(self, distribution: Any) -> Params:
        pairs = distribution.plans.pairs
        if [(p.name, p.shape) for p in pairs.parts] != [(p.name, p.shape) for p in self.parts]:
            raise ArgumentError(
                f"Expected a joint normal of the sites {[(p.name, tuple(p.shape)) for p in self.parts]}; got one of "
                f"{[(p.name, tuple(p.shape)) for p in pairs.parts]}."
            )
        found = [self._known.get(code, self.num_pairs) for code in pairs.codes.tolist()]
        places, given = torch.tensor(found, device=self.device), distribution.precision
        precision = given.new_zeros(*given.shape[:-1], self.num_pairs + 1)
        precision[..., places] = given
        if bool((given[..., places == self.num_pairs] != 0).any()):
            raise ArgumentError(
                "Expected a joint normal whose elements depend on each other where they meet in the model alone; got "
                "one of other data, where others do."
            )
        return {"loc": distribution.loc, "precision": precision[..., :-1]}

    def marginals(self, params: Params) -> tuple[Any, ...]:
        joint = self.distribution(params)
        return tuple(joint.marginal(part.name) for part in self.parts)

    def conditionals(self, params: Params) -> tuple[tuple[int, Callable[..., Any]], ...]:
        joint = self.distribution(params)
        return tuple((i, partial(joint.given, turn)) for turn, i in enumerate(self.order))

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        joint = self.distribution(params)
        return self._by_site(quantile(torch.distributions.Normal(joint.loc, joint.variance.sqrt()), probability))

    def _by_site(self, found: Tensor) -> tuple[Tensor, ...]:
        return tuple(found[..., part.elements].reshape(found.shape[:-1] + part.shape) for part in self.parts)


__all__ = ["Gaussian"]
