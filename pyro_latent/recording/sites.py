"""What one run of a model leaves behind: its latents, its discrete sites, and the log density of every site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ..expressions import Expression
from ..expressions.terms import Term
from ..families import Family
from ..families.finite import is_row


@dataclass(frozen=True, eq=False)
class Plate:
    """A plate: its name, its dimension (negative), its size, and that of the whole of which it may be a subsample.

    ``subsample`` holds the indices of a subsample within the whole. A batch dimension that the model has in no plate is
    one that is not ``declared``.
    """

    name: str
    dim: int
    size: int
    full_size: float
    subsample: Tensor | None = None
    declared: bool = True

    @cached_property
    def is_subsample(self) -> bool:
        """Whether the plate holds a part of the data."""
        return self.size != self.full_size


@dataclass(frozen=True, eq=False)
class LatentSite:
    """A continuous latent: its distribution's class and shapes, plates, and the scale and mask of its log density.

    ``origin`` is a constant that its symbol is measured from, for sites with a location. A point estimate has a
    ``point``, where it starts, and a ``constraint``, which a site of scalars (``is_scalar``) has, too; ``is_param``: it
    is a ``pyro.param``, else a latent site's mode.
    ``own_point`` is where the model itself starts a parameter, whatever Pyro's store holds; ``module_value`` is the
    (unconstrained) tensor of the module that a parameter belongs to.
    ``family`` holds constants of its prior, where its family needs them.
    ``block``: of sites of one, which are one factor unless the guide says otherwise, its name.
    ``local``: whether the model says that it belongs to the data at hand, or that it does not; None: it says nothing.
    """

    name: str
    distribution: type
    batch_shape: torch.Size
    event_shape: torch.Size
    plates: tuple[Plate, ...]
    scale: Tensor | float
    mask: Tensor | None
    update: Callable[..., Any] | None = None
    origin: Tensor | None = None
    point: Tensor | None = None
    constraint: Any = None
    is_param: bool = False
    own_point: Tensor | None = None
    module_value: Tensor | None = None
    local: bool | None = None
    family: Family | None = None
    is_scalar: bool = False
    block: str | None = None

    @property
    def shape(self) -> torch.Size:
        return self.batch_shape + self.event_shape


@dataclass(frozen=True, eq=False)
class DiscreteSite:
    """A discrete latent: its values, one in each row of ``support``, its batch shape, plates, scale and mask.

    ``marked``: the model asks for its enumeration.
    """

    name: str
    distribution: type
    support: Tensor
    batch_shape: torch.Size
    plates: tuple[Plate, ...]
    scale: Tensor | float
    mask: Tensor | None
    marked: bool
    update: Callable[..., Any] | None = None

    @property
    def cardinality(self) -> int:
        return self.support.shape[0]

    def numbers_of(self, values: Tensor) -> Tensor:
        """Which of its values, counted from 0, each element has, of any batch shape."""
        return is_row(values, self.support).int().argmax(-1)

    @property
    def constraint(self) -> Any:
        """The support as a constraint."""
        return constraints.one_hot if self.support.ndim > 1 else constraints.integer_interval(0, self.cardinality - 1)


@dataclass(frozen=True, eq=False)
class ScoredSite:
    """A site's log density as an expression of its batch shape, or the error that stands in its place.

    ``is_bound``: it is below the density that the model has there.
    """

    name: str
    density: Expression | None
    shape: torch.Size
    plates: tuple[Plate, ...]
    scale: Tensor | float
    mask: Tensor | None
    observed: bool
    error: Exception | None = None
    distribution: str = ""
    event_dim: int = 0
    parents: frozenset[str] = frozenset()
    is_bound: bool = False

    @property
    def known_terms(self) -> tuple[Term, ...]:
        """The terms of its density; none where that has no rule, or an operation in it has none."""
        return () if self.density is None or self.density.opacity else self.density.terms


@dataclass(frozen=True, eq=False)
class Recording:
    """One run of a model, with its observed data inside.

    ``hidden`` names latent sites that no data depends on, with their plates: they are integrated out, and not in
    ``latents``; others of them read ``hidden_parents``. ``redraws``: a plate draws another subsample at each run.
    ``rescaled``: the scales of sites in subsampled plates hold the plates' own. ``declares_size``: a plate says how
    much data there is. ``own_data``: by latent that is the location of one observation for each of its elements, that
    data.
    """

    latents: dict[str, LatentSite]
    discrete: dict[str, DiscreteSite]
    scored: dict[str, ScoredSite]
    max_plate_nesting: int
    dtype: torch.dtype
    device: torch.device
    observations: dict[str, Tensor] = field(default_factory=dict)
    hidden: dict[str, tuple[Plate, ...]] = field(default_factory=dict)
    hidden_parents: frozenset[str] = frozenset()
    redraws: bool = False
    rescaled: bool = True
    declares_size: bool = False
    own_data: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def observed_numbers(self) -> int:
        """How many numbers there are in the data."""
        return sum(value.numel() for value in self.observations.values())

    @cached_property
    def is_subsample(self) -> bool:
        """Whether a plate holds a part of the data only."""
        return any(p.is_subsample for s in self.scored.values() for p in s.plates)

    @property
    def like(self) -> Tensor:
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def with_event(self, name: str) -> Recording | None:
        """The recording with the batch of a latent site as its event; None where it is in plates, or has weights."""
        site, scored = self.latents[name], self.scored[name]
        weighted = site.mask is not None or isinstance(site.scale, Tensor) or scored.density is None
        if weighted or not site.plates or any(p.declared for p in site.plates):
            return None
        assert scored.density is not None
        whole = replace(site, batch_shape=torch.Size(), event_shape=site.shape, plates=())
        density = scored.density.sum(range(scored.density.ndim))
        summed = replace(scored, density=density, shape=torch.Size(), plates=(), event_dim=len(site.shape))
        return replace(self, latents=self.latents | {name: whole}, scored=self.scored | {name: summed})
