"""Random tensors at the latents and parameters of a model, while it runs under a messenger that records it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..errors import DataError, ModelError, NotConjugateError
from ..expressions import Derivations, Expression, RandomTensor, StandIns
from ..rules import RandomDistribution, family_class, unwrap
from .data import check_shape, undeclared_plates
from .hearing import OwnThreadMessenger
from .origins import is_part
from .parameters import Parameter, parameter_of
from .sites import LatentSite, Plate
from .supports import (
    base_constraint,
    ends_in_simplex,
    feasible,
    is_discrete,
    is_nonnegative,
    is_scalar,
    support_of,
)

#: Of a plate of up to so many, Pyro's own subsample is drawn.
_PERMUTED = 10**5


class SymbolMessenger(OwnThreadMessenger):
    """Puts random tensors at the latents and parameters of a model, and keeps to one subsample of each plate.

    To implement one: ``_site(msg, plates)`` takes each site in once it has its value, ``_parameter(site)`` each
    parameter.

    Args:
        like: an empty tensor of the dtype and device that latents have.
        subsamples: by plate, the indices that an earlier run drew.
        is_first: whether no guide has been fitted, so that it matters where the model starts its parameters.
    """

    def __init__(self, like: Tensor, subsamples: Mapping[str, Tensor], is_first: bool) -> None:
        super().__init__()
        self.like = like
        self.subsamples = dict(subsamples)
        self.is_first = is_first
        self.observations: dict[str, Tensor] = {}
        self.nesting = 0
        self._kinds: dict[str, str] = {}  # by name so far: whether it is of a site, a parameter or a plate
        self._plates: dict[str, tuple[int, int]] = {}  # so far, with their dimensions and sizes
        self._symbols: dict[str, Tensor] = {}  # by parameter so far, what its statement returns
        self.stand_ins = StandIns()
        self.derivations = Derivations()
        self.refused: dict[str, NotConjugateError] = {}  # what is in the way of sites, raised once all are recorded
        self.redraws = False
        self.declares_size = False

    def _process_message(self, msg: object) -> None:
        with self.stand_ins.resting():
            super()._process_message(msg)

    def _postprocess_message(self, msg: object) -> None:
        with self.stand_ins.resting():
            super()._postprocess_message(msg)

    def _site(self, msg: object, plates: tuple[Plate, ...]) -> None:
        raise NotImplementedError

    def _parameter(self, site: LatentSite) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Do what has waited for the end of the run."""

    def _observe(self, name: str, value: Tensor) -> None:
        """Keep data; a site at what the model computes of latents has none."""
        if not isinstance(value, RandomTensor):
            self.observations[name] = value

    def _latent_like(self, fn: object) -> Tensor:
        """An empty tensor of the dtype and device of a latent."""
        return self.like

    def _origin(self, name: str, shape: torch.Size) -> Tensor | None:
        """The constant that a latent is measured from."""
        return None

    def _is_point(self, msg: Any) -> bool:
        return msg["infer"].get("estimate") == "point"

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self._subsample(msg)
            return
        self._take_name(msg["name"], "site")
        base = unwrap(msg["fn"])[0]
        msg["value"] = self.stand_ins.of(msg["value"])
        if not msg["is_observed"] and family_class(base) is dist.Delta and not self._is_point(msg):
            value = base.arguments["v"] if isinstance(base, RandomDistribution) else base.v
            if value.shape == msg["fn"].shape():
                msg["value"], msg["done"] = value, True
        if msg["is_observed"] and isinstance(msg["value"], int | float):
            floating = isinstance(msg["value"], float)
            msg["value"] = torch.tensor(msg["value"], dtype=self.like.dtype if floating else None)
        if msg["is_observed"] or msg["done"]:
            msg["is_observed"] = True  # a value that poutine.replay gives is a constant, as data is
            return
        msg["value"] = self._discrete_symbol(msg) if is_discrete(msg["fn"]) else self._symbol(msg)
        msg["done"] = True

    def _take_name(self, name: str, kind: Literal["site", "parameter", "plate"]) -> None:
        """Each site and plate has a name of its own; a parameter may come again.

        Raises:
            ModelError: if another site or plate has the name.
        """
        other = self._kinds.get(name)
        if other is not None and not other == kind == "parameter":
            both = f"two {kind}s" if other == kind else f"a {other} and a {kind}"
            raise ModelError(
                f"Expected a name of its own for each {kind}; got {both} {name!r}. Write another for one of them, "
                f"such as {name + '_2'!r}; in a loop, f'{name}_{{i}}'."
            )
        self._kinds[name] = kind

    def _subsample(self, msg: Any) -> None:
        """Every run of one recording sees the same subsample."""
        size, is_given = msg["fn"].subsample_size, msg["value"] is not None
        self.declares_size |= size is not None or is_given
        if is_given or msg["done"]:
            return
        self.redraws |= size is not None and size < msg["fn"].size
        if msg["name"] in self.subsamples:
            msg["value"], msg["done"] = self.subsamples[msg["name"]], True
        elif size is not None and msg["fn"].size > max(_PERMUTED, 10 * size) and size > 0:
            msg["value"], msg["done"] = spread_out(msg["fn"]), True

    def _symbol(self, msg: Any) -> RandomTensor:
        """The latent as a random tensor, measured from its origin."""
        name, fn = msg["name"], msg["fn"]
        shape = fn.batch_shape + fn.event_shape
        value = feasible(fn.support, shape, self._latent_like(fn))
        if self._is_point(msg):
            return _point_symbol(name, value, fn.support, None)
        symbol, origin = _latent(name, value, fn.support, False, is_scalar(fn)), self._origin(name, shape)
        found = RandomTensor(value, _measured(symbol, origin))
        found.pattern = self.derivations.start(symbol) if origin is None else None
        return found

    def _discrete_symbol(self, msg: Any) -> RandomTensor:
        """A discrete latent as a random tensor of the shape that its draws have, at its first value."""
        name, fn = msg["name"], msg["fn"]
        support = self._support(name, fn)
        symbol = Expression.discrete(name, support, fn.batch_shape)
        found = RandomTensor(support[0].expand(fn.batch_shape + fn.event_shape), symbol)
        found.pattern = self.derivations.start(symbol)
        return found

    def _support(self, name: str, fn: Any) -> Tensor:
        """The values of a discrete latent; two stand in for those that cannot be listed, so that the run goes on."""
        try:
            return support_of(name, fn)
        except NotConjugateError as problem:
            self.refused.setdefault(name, problem)
            return torch.stack([torch.full(fn.event_shape, i, device=self.like.device) for i in (0.0, 1.0)])

    def _pyro_param(self, msg: Any) -> None:
        """A parameter is a point estimate: a symbol at the value it has, or would get; the store is left alone."""
        if msg["value"] is not None:  # poutine.substitute says what it is
            return
        name = msg["name"]
        self._take_name(name, "parameter")
        found = parameter_of(msg, self.is_first)
        if name not in self._symbols:
            if found.value is None:
                return
            self._declare(name, found)
        if found.displaced is not None and found.displaced not in self.stand_ins:
            self.stand_ins.put(found.displaced, name)
        msg["value"], msg["done"] = self._symbols[name], True

    def _declare(self, name: str, found: Parameter) -> None:
        """Take a parameter in, and what is to stand for it: of a weight, which modules read from themselves, that is
        the weight, which all operations of torch see the symbol in the place of.
        """
        assert found.value is not None
        site = LatentSite(
            name,
            dist.Delta,
            found.value.shape,
            torch.Size(),
            (),
            1.0,
            None,
            origin=self._origin(name, found.value.shape),
            point=found.value,
            constraint=found.constraint,
            is_param=True,
            own_point=None if found.own is None else found.own.to(self.like),
            module_value=found.module_value,
        )
        if found.weight is None:
            self._symbols[name] = _point_symbol(name, found.value.to(self.like), found.constraint, site.origin)
        else:
            self._symbols[name] = found.weight
            if found.weight in self.stand_ins:  # under another name, too
                return
            self.stand_ins.put(found.weight, _point_symbol(name, found.value, found.constraint, site.origin))
        self._parameter(site)

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.subsamples[msg["name"]] = msg["value"]
            return
        _check_frames(msg["cond_indep_stack"], msg["name"])
        frames = [f for f in msg["cond_indep_stack"] if f.vectorized and f.size != -1]
        if msg["infer"].get("_deterministic"):
            return
        plates = tuple(self._plate(f) for f in frames)
        plates += undeclared_plates(msg["fn"], msg["value"], plates)
        width = msg["value"].ndim - len(msg["fn"].event_shape) if isinstance(msg["value"], Tensor) else 0
        self.nesting = max([self.nesting, *(-p.dim for p in plates), len(msg["fn"].batch_shape), width])
        if msg["is_observed"]:
            _check_observed(msg, plates)
        self._site(msg, plates)

    def _plate(self, frame: Any) -> Plate:
        if self._plates.get(frame.name) != (frame.dim, frame.size):  # a plate may be entered again as it was
            self._take_name(frame.name, "plate")
            self._plates[frame.name] = frame.dim, frame.size
        subsample = self.subsamples.get(frame.name) if is_part(frame) else None
        full = frame.size if frame.full_size is None else frame.full_size
        return Plate(frame.name, frame.dim, frame.size, full, subsample)


def spread_out(fn: Any) -> Tensor:
    """A subsample of a plate, without the permutation of the whole that Pyro draws: a place in each of as many parts of
    it, moved around by a number that is the same for all, so that each place is as likely.
    """
    whole, size, place = fn.size, fn.subsample_size, {"device": fn.device, "dtype": torch.float64}
    parts = torch.arange(size, device=fn.device)
    width, wider = divmod(whole, size)
    inside = torch.rand(size, **place) * (width + (parts < wider))
    moved = (torch.rand((), **place) * whole).long()
    return (parts * width + parts.clamp(max=wider) + inside.long() + moved) % whole


def _latent(name: str, value: Tensor, support: object, is_point: bool, is_scalar: bool = False) -> Expression:
    """The symbol of a latent or parameter, with what its support says of it."""
    base = base_constraint(support)
    return Expression.latent(
        name,
        value,
        simplex=ends_in_simplex(support),
        is_point=is_point,
        lower_cholesky=isinstance(base, type(constraints.lower_cholesky)),
        is_matrix=isinstance(base, type(constraints.positive_definite)),
        nonnegative=is_nonnegative(support),
        is_scalar=is_scalar,
    )


def _measured(symbol: Expression, origin: Tensor | None) -> Expression:
    return symbol if origin is None else symbol + Expression.constant(origin)


def _point_symbol(name: str, value: Tensor, support: object, origin: Tensor | None) -> RandomTensor:
    """A point estimate as a random tensor, which knows how to compute itself again."""
    symbol = _measured(_latent(name, value, support, True), origin)
    return RandomTensor(value, symbol, lambda values, known: values[name].to(value.dtype))


def _check_frames(frames: Collection[Any], name: str) -> None:
    """A loop over a plate goes over all of it.

    Raises:
        ModelError: if it subsamples.
    """
    for frame in frames:
        if not frame.vectorized and is_part(frame):
            raise ModelError(
                "Expected subsampling in a vectorized plate, with pyro.plate(...) as indices; "
                f"got a loop over {frame.size} of {frame.full_size} in plate {frame.name!r} at site {name!r}."
            )


def _check_observed(msg: Any, plates: tuple[Plate, ...]) -> None:
    """Data is a tensor, of the event's shape, in its plates.

    Raises:
        DataError: if it is not.
    """
    name, value = msg["name"], msg["value"]
    if not isinstance(value, Tensor):
        raise DataError(
            f"Expected a torch.Tensor as obs= of site {name!r}; got {type(value).__name__}. Convert it: "
            "torch.as_tensor(data)."
        )
    check_shape(name, msg["fn"], value, plates)
