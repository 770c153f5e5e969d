r"""Exponential families in three coordinates.

A family has statistics t(x), natural parameters η and log-normalizer A(η), with base measure 1:

.. math:: \log q(x) = \langle η, t(x) \rangle - A(η), \qquad E\,t(x) = ∇A(η),

with entropy H(q) = A(η) − ⟨η, E t⟩

(``docs/sources.md``, [4] equations (91)–(100)). The coordinates are three types that are never mixed: *params* (the
constructor arguments of the Pyro distribution), :class:`Natural` (η) and :class:`Mean` (E t); the fields of the last
two are named after the statistics.

To implement a family: name its ``statistics`` with the number of event dimensions of each, list its ``moments``, and
write ``sufficient_statistics``, ``log_normalizer``, ``mean``, ``from_mean``, ``to_params``, ``from_params``,
``in_domain`` and ``distribution``; a family whose params have several shapes, or where a one is out of place, writes
``example`` too. The base class derives log densities, entropies and divergences, the constraints of the params and the
quantiles, and one suite of laws tests every family in the catalogue.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ..errors import MissingFormulaError
from .quantiles import quantile

Params = dict[str, Tensor]


class Coordinates(dict[str, Tensor]):
    """An immutable record of tensors, one per statistic; its fields are attributes and mapping entries."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Tensor:
        try:
            return dict.__getitem__(self, name)
        except KeyError:
            raise AttributeError(f"Expected one of {sorted(self)}; got {name!r}") from None

    def _refuse(self, *args: Any, **fields: Any) -> Any:
        raise AttributeError(f"{type(self).__name__} is immutable; build a new one with map()")

    __setattr__ = __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        """What copies and pickles are made by, which would set the entries one by one."""
        return type(self), (dict(self),)

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={tuple(v.shape)}" for k, v in self.items())
        return f"{type(self).__name__}({inner})"

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``function`` to every field."""
        return type(self)(**{k: function(v) for k, v in self.items()})


class Natural(Coordinates):
    """Natural parameters η, one tensor per statistic, shaped ``batch + event of the statistic``."""

    __slots__ = ()


class Mean(Coordinates):
    """Mean parameters E t(x), one tensor per statistic, shaped ``batch + event of the statistic``."""

    __slots__ = ()


class Moment(NamedTuple):
    """How an expected product of functions of x is read off the mean parameters.

    ``statistic`` names the field. ``pattern`` tells its axes in einsum letters: one group of letters for each function
    in the product, then ``->`` and the axes of the field. Letters that are missing on the right must be summed in
    the term and used nowhere else in it: ``"ij,j->i"`` reads Σ_j E[Λ_ij μ_j] from the statistic Λμ.
    """

    statistic: str
    pattern: str


#: A product of functions of a block's components, as sorted (component index, function name) pairs. Function
#: names: "x" (the value itself), "reciprocal" (1 / x), "log", "log1m" (log(1 - x)) and "log_det".
Monomial = tuple[tuple[int, str], ...]


class Family(ABC):
    """One exponential family; instances hold no state but what is ``remembered``.

    Attributes:
        name: the field's name for it, as shown by ``explain``.
        event_dims: the number of event dimensions of each component of x (one component, but for joint blocks).
        plate_dims: of each component, how many of its event dimensions are plates of the model.
        statistics: the statistics t(x), with the number of event dimensions of each.
        moments: the expected products that are linear in the mean parameters.
        location: the params entry that moves when x is shifted by a constant, and the component that it belongs to.
        counts: the params entries that count observations, as those of a Dirichlet do: each observation adds one to
            one element of them. Only families of probabilities have some.
        event_class: the distribution class whose family is that of several elements that ``.to_event()`` makes one
            event; None: they stay independent.
        is_relative: whether the last component is a precision that all statistics of the others are proportional to.
        read_classes: distribution classes, beside that of :meth:`distribution`, that :meth:`distribution_params` reads.
        hint: where a site of the family is conjugate, for errors; ``reciprocal_hint`` is for a site that is read by a
            negative power, and by default the same.
        remembered: attributes that hold what was last computed, so as not to do it again.
    """

    name: ClassVar[str]
    event_dims: ClassVar[tuple[int, ...]] = (0,)
    plate_dims: ClassVar[tuple[int, ...]] = ()
    statistics: ClassVar[dict[str, int]]
    moments: ClassVar[dict[Monomial, Moment]]
    location: ClassVar[tuple[str, int] | None] = None
    counts: ClassVar[tuple[str, ...]] = ()
    event_class: ClassVar[type | None] = None
    is_relative: ClassVar[bool] = False
    read_classes: ClassVar[tuple[type, ...]] = ()
    hint: ClassVar[str] = "a density that is linear in its statistics."
    reciprocal_hint: ClassVar[str | None] = None
    remembered: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def sufficient_statistics(self, *values: Tensor) -> Mean:
        """t(x), for the components of x in order."""

    @abstractmethod
    def log_normalizer(self, natural: Natural) -> Tensor:
        """A(η), of batch shape."""

    @abstractmethod
    def mean(self, natural: Natural) -> Mean:
        """E t(x) = ∇A(η), in closed form."""

    def from_mean(self, mean: Mean) -> Natural:
        """The inverse of :meth:`mean`; coordinate ascent does not need it, fitting by moments does."""
        raise MissingFormulaError(
            f"Expected {type(self).__name__}.from_mean(mean), the inverse of mean(); got no method."
        )

    @abstractmethod
    def to_params(self, natural: Natural) -> Params:
        """The Pyro distribution's arguments."""

    @abstractmethod
    def from_params(self, params: Params) -> Natural:
        """The inverse of :meth:`to_params`."""

    @abstractmethod
    def in_domain(self, natural: Natural) -> Tensor:
        """A boolean tensor of batch shape: where η is a proper distribution's. It never raises."""

    @abstractmethod
    def distribution(self, params: Params) -> Any:
        """The Pyro distribution over x; a joint distribution object for a block of several components."""

    def distribution_params(self, distribution: Any) -> Params:
        """The params of a Pyro distribution of this family; the inverse of :meth:`distribution`."""
        return {name: getattr(distribution, name) for name in self.param_names}

    #: The names of the params, read from a Pyro distribution's attributes.
    param_names: ClassVar[tuple[str, ...]] = ()

    def example(self, batch: torch.Size, *events: torch.Size) -> Params:
        """The params of some proper member, of the default dtype; by default all ones.

        Args:
            batch: the batch shape.
            events: the event shape of each component.
        """
        (event,) = events
        return {name: torch.ones(batch + event) for name in self.param_names}

    def marginals(self, params: Params) -> tuple[Any, ...]:
        """A Pyro distribution for each component."""
        return (self.distribution(params),)

    def covariance(self, params: Params) -> Tensor | None:
        """The covariances of the elements of an event, ``batch + [n, n]``, of a family of vectors that are no statistic
        of it; None where there is no formula.
        """
        return None

    def conditionals(self, params: Params) -> tuple[tuple[int, Callable[..., Any]], ...]:
        """How to draw a block: (component, function of the values drawn so far) in drawing order."""
        return ((0, lambda: self.distribution(params)),)

    @property
    def written_statistics(self) -> str:
        """The statistics, for errors."""
        return ", ".join(self.statistics)

    # What follows from the above.

    @property
    def symmetric(self) -> tuple[str, ...]:
        """The statistics that are symmetric matrices: by default those of two event dimensions."""
        return tuple(name for name, event in self.statistics.items() if event == 2)

    def constraints(self, params: Params) -> dict[str, constraints.Constraint]:
        """The constraint on each param, as the Pyro distribution at ``params`` declares it."""
        declared = self.distribution(params).arg_constraints
        return {name: declared[name] for name in self.param_names}

    def quantiles(self, params: Params, probability: float) -> tuple[Tensor, ...]:
        """The elementwise quantile of each component at a probability in (0, 1), of the shape of a draw."""
        return tuple(quantile(marginal, probability) for marginal in self.marginals(params))

    def location_scale(self, params: Params) -> Tensor:
        """The scale of each element of the location's marginal, of the location's shape."""
        assert self.location is not None
        marginal = self.marginals(params)[self.location[1]]
        if hasattr(marginal, "scale_tril"):
            return marginal.scale_tril.square().sum(-1).sqrt()
        scale: Tensor = marginal.scale if hasattr(marginal, "scale") else marginal.stddev
        return scale

    def blend(self, old: Natural, new: Natural, step_size: float) -> Natural:
        """(1 − ρ) η + ρ η̂: a natural-gradient step."""
        return Natural(**{n: old[n] + step_size * (new[n] - old[n]) for n in new})

    def combined(self, naturals: Sequence[Natural], weights: Sequence[float]) -> Natural:
        """Σ_i w_i η_i, where the weights add up to 1, computed in float64 from the last of them on. It may lie outside
        the domain.

        Raises:
            NaturalDomainError: where a table would be of no density.
        """
        last = naturals[-1]

        def total(name: str) -> Tensor:
            start = last[name].double()
            moves = [torch.where(n[name] == last[name], 0.0, n[name].double() - start) for n in naturals]
            return (start + sum(w * move for w, move in zip(weights, moves, strict=True))).to(last[name])

        return Natural(**{name: total(name) for name in last})

    def joined(self, naturals: Sequence[Natural]) -> Natural:
        """The natural parameters of several starts, ``[starts, ...]`` each, one after another."""
        return Natural(**{name: torch.cat([n[name] for n in naturals]) for name in naturals[0]})

    def log_ratio(self, before: Natural, after: Natural, places: Natural) -> Tensor | None:
        """The log ratio is None of a family that is known by its statistics; of one that is known by a table, it is
        :meth:`~pyro_latent.distributions.tabulated.Tabulated.log_ratio` at the nodes of the table ``places``.
        """
        return None

    def tempered(self, natural: Natural, inverse_temperature: float) -> Natural:
        """The density to a power, normalized."""
        return natural.map(lambda t: inverse_temperature * t)

    def inner(self, natural: Natural, coordinates: Mean) -> Tensor:
        """⟨η, t⟩, of batch shape."""
        total: Tensor | None = None
        for name, event_dim in self.statistics.items():
            term = natural[name] * coordinates[name]
            if event_dim:
                term = term.sum(tuple(range(-event_dim, 0)))
            total = term if total is None else total + term
        assert total is not None
        return total

    def log_prob(self, natural: Natural, *values: Tensor) -> Tensor:
        """log q(x) = ⟨η, t(x)⟩ − A(η)."""
        return self.inner(natural, self.sufficient_statistics(*values)) - self.log_normalizer(natural)

    def entropy(self, natural: Natural) -> Tensor:
        """H(q) = A(η) − ⟨η, E t⟩."""
        return self.log_normalizer(natural) - self.inner(natural, self.mean(natural))

    def kl_divergence(self, natural: Natural, other: Natural) -> Tensor:
        """KL(q_η ‖ q_other), of batch shape."""
        difference = Natural(**{k: natural[k] - other[k] for k in self.statistics})
        inner = self.inner(difference, self.mean(natural))
        return inner - self.log_normalizer(natural) + self.log_normalizer(other)


def multivariate_digamma(x: Tensor, dim: int) -> Tensor:
    """Derivative of ``torch.mvlgamma(x, dim)``: Σ_i ψ(x + (1 − i)/2), i = 1, …, dim."""
    offsets = torch.arange(dim, dtype=x.dtype, device=x.device) / 2
    return torch.digamma(x.unsqueeze(-1) - offsets).sum(-1)


__all__ = ["Coordinates", "Family", "Mean", "Moment", "Monomial", "Natural", "Params", "dist", "multivariate_digamma"]
