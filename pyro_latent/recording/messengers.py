"""The two runs of a model that make a recording: one learns its structure, the next writes its densities down.

Both put random tensors at the latents. What the second one needs to know beforehand (the dtype of the data, the
constants that locations are measured from, the subsamples that were drawn) is found by the first, which writes the
densities down, too, until it finds something that changes them: where it does not, there is no second one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..errors import ModelError, NotConjugateError
from ..expressions import RandomTensor
from ..families import family_with_constants
from ..rules import RandomDistribution, Repeats, family_class, unwrap, without_latents
from ..values import broadcast_shapes
from .data import check_plates, checked_data, joined_mask
from .origins import Origins, origin_for
from .sites import DiscreteSite, LatentSite, Plate, ScoredSite
from .supports import (
    base_constraint,
    class_of_latent,
    dtypes_of,
    feasible,
    is_discrete,
    is_scalar,
)
from .symbols import SymbolMessenger

ScaleOrMask = TypeVar("ScaleOrMask", Tensor | None, Tensor | float)  # a mask, a scale


class RecordMessenger(SymbolMessenger):
    """A run that writes down every site, and its log density as an expression in the latents.

    Args:
        like: an empty tensor of the dtype and device of the data.
        origins: by site, the constant that it is measured from.
        point: sites that get a point estimate, beside those that ask for it.
        rescale: whether the scales of sites hold those of subsampled plates.
        marked: by discrete site, whether the model asked for its enumeration in an earlier run.
        subsamples, is_first: as in :class:`SymbolMessenger`.
    """

    def __init__(
        self,
        like: Tensor,
        origins: Mapping[str, Tensor],
        point: Collection[str],
        rescale: bool,
        marked: Mapping[str, bool],
        subsamples: Mapping[str, Tensor],
        is_first: bool = False,
    ) -> None:
        super().__init__(like, subsamples, is_first)
        self.origins = origins
        self.point = point
        self.rescale = rescale
        self.marked = dict(marked)
        self.latents: dict[str, LatentSite] = {}
        self.discrete: dict[str, DiscreteSite] = {}
        self.scored: dict[str, ScoredSite] = {}
        self.repeats = Repeats(like)
        self.numbers = 0  # how many the distributions of a run would hold

    def _origin(self, name: str, shape: torch.Size) -> Tensor | None:
        return origin_for(self.origins, name, shape)

    def _is_point(self, msg: Any) -> bool:
        return super()._is_point(msg) or msg["name"] in self.point

    def _parameter(self, site: LatentSite) -> None:
        assert site.point is not None
        self.latents[site.name] = replace(site, point=site.point.to(self.like))

    def _site(self, msg: Any, plates: tuple[Plate, ...]) -> None:
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        if not self.rescale:
            msg["scale"] = msg["scale"] / math.prod(p.full_size / p.size for p in plates)
        masks = [msg["mask"], *unwrap(fn)[2]]
        self._check_weights(msg, masks)
        mask = joined_mask([m for m in masks if not isinstance(m, RandomTensor)], self.like.device)
        if mask is False and msg["is_observed"]:
            self._check_update(msg)
            return
        mask = torch.tensor(False, device=self.like.device) if mask is False else _trimmed(mask)
        msg["scale"] = _trimmed(msg["scale"])
        if msg["is_observed"]:
            self._observe(name, value)
            value = checked_data(name, fn, value, mask)
        elif is_discrete(fn):
            self._discrete(msg, plates, mask)
        else:
            self._latent(msg, plates, mask)
        self._score(msg, value, plates, mask)

    def finish(self) -> None:
        for name, error in self.repeats.finish().items():
            self.scored[name] = replace(self.scored[name], density=None, error=error)

    def _check_update(self, msg: Any) -> None:
        """A hand-written update is of a site that is still there.

        Raises:
            ModelError: if ``poutine.reparam`` has put others in its place.
        """
        if "update" in msg["infer"] and family_class(unwrap(msg["fn"])[0]) is dist.Delta:
            name = msg["name"]
            raise ModelError(
                f"Expected a latent site for the update of {name!r}; got one that poutine.reparam puts others in the "
                "place of. Write closed_form(poutine.reparam(model, config), updates), with updates of those or "
                f"without one of {name!r}."
            )

    def _check_weights(self, msg: Any, masks: Collection[Any]) -> None:
        """Scales and masks are constants: others stand for ones, so that the run goes on."""
        for kind, value in (("scale", msg["scale"]), *(("mask", m) for m in masks)):
            if isinstance(value, RandomTensor):
                instead = (
                    "a number, or a tensor of numbers"
                    if kind == "scale"
                    else "torch.where(condition, a, b) in the arguments of its distribution"
                )
                problem = NotConjugateError(
                    f"Expected a constant {kind} at site {msg['name']!r}; got one that depends on the latents "
                    f"{sorted(value.expression.sites)}. Write {instead}."
                )
                self.refused.setdefault(msg["name"], problem)
                msg["scale"] = 1.0 if kind == "scale" else msg["scale"]

    def _discrete(self, msg: Any, plates: tuple[Plate, ...], mask: Tensor | None) -> None:
        name, fn = msg["name"], msg["fn"]
        self.discrete[name] = DiscreteSite(
            name,
            family_class(unwrap(fn)[0]),
            self._support(name, fn),
            fn.batch_shape,
            plates,
            msg["scale"],
            mask,
            self.marked.get(name, _is_marked(msg)),
            msg["infer"].get("update"),
        )

    def _latent(self, msg: Any, plates: tuple[Plate, ...], mask: Tensor | None) -> None:
        name, fn, shape = msg["name"], msg["fn"], msg["value"].shape
        batch = torch.Size(shape[: len(shape) - len(fn.event_shape)])
        check_plates(name, batch, plates, "latent")
        scalar = is_scalar(fn)
        site = LatentSite(
            name,
            class_of_latent(fn),
            batch,
            torch.Size(fn.event_shape),  # which an ImproperUniform has as a tuple
            plates,
            msg["scale"],
            mask,
            msg["infer"].get("update"),
            self._origin(name, shape),
            constraint=base_constraint(fn.support) if scalar else None,
            local=msg["infer"].get("local"),
            family=family_with_constants(unwrap(fn)[0]),
            is_scalar=scalar,
            block=msg["infer"].get("block"),
        )
        if self._is_point(msg):
            site = replace(site, point=feasible(fn.support, shape, self.like), constraint=fn.support, origin=None)
        self.latents[name] = site

    def _score(self, msg: Any, value: Any, plates: tuple[Plate, ...], mask: Tensor | None) -> None:
        name, fn, event = msg["name"], msg["fn"], len(msg["fn"].event_shape)
        base = unwrap(fn)[0]
        arguments = base.arguments.values() if isinstance(base, RandomDistribution) else ()
        random = [a.expression for a in arguments if isinstance(a, RandomTensor)]
        self.numbers += sum([a.shape.numel() for a in random]) + msg["value"].numel()
        density, error = None, self.refused.get(name)
        try:
            density = self.repeats.density(name, fn, value) if error is None else None
        except (NotConjugateError, NotImplementedError) as problem:
            kind_of_error = type(problem) if isinstance(problem, NotConjugateError) else NotConjugateError
            error = kind_of_error(f"Site {name!r}: {problem}")
        batch = value.shape[: value.ndim - event]
        shape = broadcast_shapes(fn.batch_shape, batch, density.shape if density is not None else ())
        check_plates(name, shape, plates, "observed" if msg["is_observed"] else "latent")
        _check_fits(name, shape, scale=msg["scale"], mask=mask)
        self.scored[name] = ScoredSite(
            name,
            density,
            shape,
            plates,
            msg["scale"],
            mask,
            msg["is_observed"],
            error,
            family_class(base).__name__,
            event,
            frozenset() if name in self.refused else frozenset().union(*(a.sites for a in random)),
            getattr(family_class(base), "is_bound", False),
        )


class StructureMessenger(RecordMessenger):
    """The first run: it finds the dtypes, the depth of the plates, the subsamples, the origins, and what is marked.

    It is the recording itself, and no other run is needed, where it ``is_final``: nothing that it has found would make
    another run write anything else down.

    Args:
        like, rescale, is_first: as in :class:`RecordMessenger`.
        is_final: whether it may be.
    """

    def __init__(self, like: Tensor, rescale: bool, is_first: bool, is_final: bool) -> None:
        super().__init__(like, {}, (), rescale, {}, {}, is_first)
        self.dtypes: set[torch.dtype] = set()
        self.search = Origins()
        self.is_final = is_final

    def _latent_like(self, fn: object) -> Tensor:
        """The dtype of a latent is that of its prior, while that of the data is not known."""
        return self.like.double() if torch.float64 in dtypes_of(without_latents(fn)) else self.like

    def _parameter(self, site: LatentSite) -> None:
        assert site.point is not None
        self.dtypes.add(site.point.dtype)
        self.search.add_parameter(site.name, base_constraint(site.constraint) is constraints.real)
        super()._parameter(site)

    def _site(self, msg: Any, plates: tuple[Plate, ...]) -> None:
        name = msg["name"]
        self.marked.setdefault(name, _is_marked(msg))
        self.dtypes |= dtypes_of(without_latents(msg["fn"]))
        if msg["is_observed"]:
            self._observe(name, msg["value"])
        self.search.add_site(msg, self.like.device)
        narrow = self.like.dtype != torch.float64 and torch.float64 in {*self.dtypes, msg["value"].dtype}
        self.is_final = self.is_final and not narrow and not self.search.found
        if self.is_final:
            try:
                super()._site(msg, plates)
            except Exception:  # the next run says what is wrong
                self.is_final = False

    def finish(self) -> None:
        if self.is_final:
            try:
                super().finish()
            except Exception:  # the next run says what is wrong
                self.is_final = False


def _is_marked(msg: Any) -> bool:
    """Whether the model asks for the enumeration of a site."""
    return msg["infer"].get("enumerate") is not None


def _trimmed(weight: ScaleOrMask) -> ScaleOrMask:
    """A scale or mask without dimensions of size 1 on its left, which its site need not have."""
    while isinstance(weight, Tensor) and weight.ndim and len(weight) == 1:
        weight = weight[0]
    return weight


def _check_fits(name: str, shape: torch.Size, **weights: Tensor | float | None) -> None:
    """Scales and masks do not count an element of a site more than once, which Pyro's broadcasting would.

    Raises:
        ModelError: if one does.
    """
    for kind, weight in weights.items():
        wide = weight.shape if isinstance(weight, Tensor) else ()
        if any(n not in (1, size) for n, size in zip_longest(wide[::-1], shape[::-1], fillvalue=1)):
            raise ModelError(
                f"Expected a {kind} that fits site {name!r}, of batch shape {tuple(shape)}; got one of shape "
                f"{tuple(wide)}, which would count the site several times. Put the handler inside the plate that the "
                f"{kind} runs along."
            )
