r"""Pyro handlers: they translate between a model and the engine, and compute nothing themselves.

- :func:`record` runs a model once and returns its log densities as expressions in its latents.
- :func:`expected_log_factors` gives the expected log density of every site under a posterior.
- :func:`closed_form` attaches hand-written updates to the sites of an unchanged model.

A worked example::

    def model(x):
        precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(0.0, precision.rsqrt()), obs=x)

    recording = handlers.record(model, x)
    recording.scored["obs"].density          # an Expression of "precision"

    handlers.expected_log_factors(model, {"precision": dist.Gamma(3.0, 2.0)}, x)["obs"]     # E log p(x_n | precision)

    def update(q, x):
        return dist.Gamma(2.0 + len(x) / 2, 1.0 + (x**2).sum() / 2)

    model = handlers.closed_form(model, {"precision": update})    # CAVI now uses it; check_updates verifies it
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .errors import DataError, LatentValueError, ModelError, NotConjugateError
from .expressions import Expression, RandomTensor
from .expressions.terms import Axis, Factor, is_position
from .objective import DiscreteSite, LatentSite, Plate, Program, Recording, ScoredSite
from .objective.data import (
    base_constraint,
    check_plates,
    check_shape,
    checked_data,
    dtypes_of,
    ends_in_simplex,
    feasible,
    is_discrete,
    is_nonnegative,
    joined_mask,
    mean_over,
    placeholder_distribution,
    seen_data,
    support_of,
)
from .rules import RandomDistribution, expected_log_density, family_class, random_arguments, unwrap
from .verification import LARGEST_CHECK, check_recording

Update = Callable[..., Any]


class ClosedFormMessenger(Messenger):
    """Sets ``infer={"update": (block, function)}`` at the sites of hand-written updates."""

    def __init__(self, updates: Mapping[Any, Update]) -> None:
        super().__init__()
        self.by_site: dict[str, tuple[tuple[str, ...], Update]] = {}
        for key, update in updates.items():
            names = (key,) if isinstance(key, str) else tuple(key)
            if not callable(update):
                raise TypeError(f"Expected a function update(q, *args, **kwargs) for {key!r}; got {update!r}")
            for name in names:
                self.by_site[name] = (names, update)
        self.seen: set[str] = set()

    def __enter__(self) -> Any:
        self.seen = set()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.by_site and not msg["is_observed"]:
            self.seen.add(msg["name"])
            msg["infer"]["update"] = self.by_site[msg["name"]]

    def __exit__(self, *args: Any) -> Any:
        missing = sorted(set(self.by_site) - self.seen)
        if missing and args[0] is None:
            super().__exit__(*args)
            raise ModelError(
                f"Expected updates for latent sites of the model; got updates for {missing}, which it lacks."
            )
        return super().__exit__(*args)


def closed_form(model: Callable[..., Any], updates: Mapping[Any, Update]) -> Callable[..., Any]:
    """Attach hand-written coordinate updates to the sites of a model, which stays as it is.

    Args:
        model: a Pyro model.
        updates: by site, or by tuple of sites for a joint block, a function ``update(q, *args, **kwargs)`` of the
            current posteriors (``q[site]`` or ``q[block]``: Pyro distributions; ``q.scales[site]``: plate scales) and
            the model's own arguments. It returns the block's new posterior.

    Returns:
        A model with the same behaviour in Pyro, for which ``CAVI`` uses the updates in place of the derived ones.

    Raises:
        TypeError: if an update is not callable.
        ModelError: when run, if the model has no latent site of a name in ``updates``.

    Example::

        fast = handlers.closed_form(gmm.model, gmm.updates)
        CAVI(fast, AutoConjugate(fast, blocks=[("mean", "precision")])).run(data, 6)
    """
    return ClosedFormMessenger(updates)(model)


class RecordMessenger(Messenger):
    """Puts random tensors at the latents, and writes down every site's log density."""

    def __init__(
        self,
        like: Tensor,
        max_plate_nesting: int | None,
        origins: Mapping[str, Tensor],
        point: Collection[str] = (),
        rescale: bool = True,
    ) -> None:
        super().__init__()
        self.rescale = rescale
        self.is_alone = False  # whether no scan went before
        self.is_first = False  # whether no guide has been fitted, so that it matters where parameters start
        self.subsamples: dict[str, Tensor] = {}
        self.redraws = False
        self.declares_size = False
        self.like = like
        self.max_plate_nesting = max_plate_nesting
        self.point = point
        self.origins = origins
        self.latents: dict[str, LatentSite] = {}
        self.discrete: dict[str, DiscreteSite] = {}
        self.scored: dict[str, ScoredSite] = {}
        self.observations: dict[str, Tensor] = {}
        self.marked: dict[str, bool] = {}
        self.nesting = 0
        self.found_origins: dict[str, Tensor] = {}
        self.own_data: dict[str, Tensor] = {}

        self.locations: dict[str, _Location] = {}
        self.classes: dict[str, type] = {}
        self.dtypes: set[torch.dtype] = set()
        self.numbers = 0  # how many the distributions of a run would hold

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self._subsample(msg)
            return
        if msg["is_observed"] or msg["done"]:
            return
        msg["value"] = self._discrete_symbol(msg) if is_discrete(msg["fn"]) else self._symbol(msg)
        msg["done"] = True

    def _discrete_symbol(self, msg: Any) -> RandomTensor:
        """A discrete latent as a random tensor of the shape that its draws have, at its first value."""
        fn = msg["fn"]
        support = support_of(msg["name"], fn)
        shape = fn.batch_shape + fn.event_shape
        return RandomTensor(support[0].expand(shape), Expression.discrete(msg["name"], support, fn.batch_shape))

    def _subsample(self, msg: Any) -> None:
        """Every run of one recording sees the same subsample."""
        self.declares_size |= msg["fn"].subsample_size is not None or msg["value"] is not None
        if msg["value"] is not None or msg["done"]:
            return
        if msg["name"] in self.subsamples:
            msg["value"], msg["done"] = self.subsamples[msg["name"]], True
        else:
            size = msg["fn"].subsample_size
            self.redraws |= size is not None and size < msg["fn"].size

    def _like(self, fn: Any) -> Tensor:
        """The dtype of a latent: that of the data, or, while it is not known yet, that of its prior."""
        wide = self.max_plate_nesting is None and torch.float64 in dtypes_of(placeholder_distribution(fn))
        return self.like.double() if wide else self.like

    def _pyro_param(self, msg: Any) -> None:
        """A parameter is a point estimate: a symbol at the value it has, or would get; the store is left alone."""
        if msg["value"] is not None:  # poutine.substitute says what it is
            return
        name, constraint = msg["name"], msg["kwargs"].get("constraint", constraints.real)
        store = pyro.get_param_store()
        own = _own_value(msg) if self.is_first or name not in store else None
        unconstrained: Tensor | None = None
        if name in store:
            unconstrained, value = store._params[name], store[name].detach()
            _check_stored(name, value, own, constraint)
            constraint = store._constraints[name]
        elif own is None:
            return
        else:
            value = own
        self.dtypes.add(value.dtype)
        value = value.to(self.like)
        origin = self.origins.get(name)
        self.latents[name] = LatentSite(
            name,
            dist.Delta,
            value.shape,
            torch.Size(),
            (),
            1.0,
            None,
            origin=origin,
            point=value,
            constraint=constraint,
            is_param=True,
            own_point=None if own is None else own.to(self.like),
            module_value=unconstrained if isinstance(unconstrained, torch.nn.Parameter) else None,
        )
        self.classes[name] = dist.Normal if base_constraint(constraint) is constraints.real else dist.Delta
        symbol = self._expression(name, value, constraint)
        if origin is not None:
            symbol = symbol + Expression.constant(origin)
        msg["value"] = RandomTensor(value, symbol, lambda values, known: values[name])
        msg["done"] = True

    def _expression(self, name: str, value: Tensor, support: Any, is_point: bool = True) -> Expression:
        return Expression.latent(
            name,
            value,
            simplex=ends_in_simplex(support),
            is_point=is_point,
            lower_cholesky=isinstance(base_constraint(support), type(constraints.lower_cholesky)),
            is_matrix=isinstance(base_constraint(support), type(constraints.positive_definite)),
            nonnegative=is_nonnegative(support),
        )

    def _symbol(self, msg: Any) -> RandomTensor:
        """The latent as a random tensor, measured from its origin."""
        fn = msg["fn"]
        shape = fn.batch_shape + fn.event_shape
        value = feasible(fn.support, shape, self._like(fn))
        if self._is_point(msg):
            name = msg["name"]
            return RandomTensor(value, self._expression(name, value, fn.support), lambda values, known: values[name])
        symbol = self._expression(msg["name"], value, fn.support, is_point=False)
        origin = self._origin(msg["name"], shape)
        if origin is not None:
            symbol = symbol + Expression.constant(origin)
        return RandomTensor(value, symbol)

    def _origin(self, name: str, shape: torch.Size) -> Tensor | None:
        """The constant that a location is measured from; for data of another size, its mean over what has changed."""
        origin = self.origins.get(name)
        if origin is None or origin.ndim > len(shape):
            return origin
        last = shape[len(shape) - origin.ndim :]
        changed = [i for i, (n, size) in enumerate(zip(origin.shape, last, strict=True)) if n not in (1, size)]
        return origin.mean(changed, keepdim=True) if changed else origin

    def _is_point(self, msg: Any) -> bool:
        return msg["infer"].get("estimate") == "point" or msg["name"] in self.point

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.subsamples[msg["name"]] = msg["value"]
            return
        name, fn = msg["name"], msg["fn"]
        self._check_frames(msg["cond_indep_stack"], name)
        frames = [f for f in msg["cond_indep_stack"] if f.vectorized]
        self.nesting = max([self.nesting, *(-f.dim for f in frames)])
        if msg["infer"].get("_deterministic"):
            return
        if name not in self.marked:
            self.marked[name] = msg["infer"].get("enumerate") is not None
        plates = tuple(self._plate(f) for f in frames)
        if not self.rescale:
            msg["scale"] = msg["scale"] / math.prod(p.full_size / p.size for p in plates)
        if msg["is_observed"]:
            self._check_observed(msg, plates)
        if self.max_plate_nesting is None:
            self.classes[name] = family_class(unwrap(fn)[0])
            self.dtypes |= dtypes_of(placeholder_distribution(fn))
            if msg["is_observed"]:
                self.observations[name] = msg["value"]
            self._find_origins(msg)
            return
        base, _, masks = unwrap(fn)
        _check_weights(name, msg["scale"], [msg["mask"], *masks])
        mask = joined_mask([msg["mask"], *masks], self.like.device)
        if mask is False and msg["is_observed"]:
            return
        mask = torch.tensor(False, device=self.like.device) if mask is False else mask
        if msg["is_observed"]:
            value = checked_data(name, fn, msg["value"], mask)
            self.observations[name] = msg["value"]
        else:
            value = msg["value"]
            self._latent(msg, base, plates, mask)
        self._score(msg, value, plates, mask)

    def _check_observed(self, msg: Any, plates: tuple[Plate, ...]) -> None:
        """Data is a tensor, of the event's shape, in its plates."""
        name, value = msg["name"], msg["value"]
        if not isinstance(value, Tensor):
            raise DataError(
                f"Expected a torch.Tensor as obs= of site {name!r}; got {type(value).__name__}. Convert it: "
                "torch.as_tensor(data)."
            )
        if self.max_plate_nesting is None or self.is_alone:
            check_shape(name, msg["fn"], value, plates)

    def _find_origins(self, msg: Any) -> None:
        """Measure the latent that is a location of the data, and the locations above it, from the data's mean.

        Differences between data and location are then taken before squares, so data far from zero loses no digits.
        """
        location = _location_of(msg)
        if not msg["is_observed"]:
            if location is not None:
                self.locations[msg["name"]] = location
        elif location is not None and msg["value"].is_floating_point():
            masks = [msg["mask"], *unwrap(msg["fn"])[2]]
            mask = joined_mask([m for m in masks if not isinstance(m, RandomTensor)], self.like.device)
            seen = msg["value"] if mask is False else seen_data(msg["value"], mask, len(msg["fn"].event_shape))
            self._measure(location, seen)

    def _measure(self, location: _Location, value: Tensor) -> None:
        """Give the latent in a location the mean of a value, and go on from there to the latent's own location.

        In a sum of latents, as of an intercept and effects, the one with the fewest elements is measured.
        """
        factors = [f for f in location.latents() if self.classes.get(f.variable.site) in _LOCATED]
        if not factors or any(f.variable.site in self.found_origins for f in factors):
            return
        factor = min(factors, key=lambda f: f.variable.shape.numel())
        mean = mean_over(value, factor.axes)
        origin = _common(mean, factor.axes, location, value)
        if origin is not None:
            self.found_origins[factor.variable.site] = origin
        if sorted(a for a in factor.axes if isinstance(a, int)) == list(range(-value.ndim, 0)):
            self.own_data.setdefault(factor.variable.site, mean)  # one latent for each observation starts there
        above = self.locations.get(factor.variable.site)
        if above is not None:
            self._measure(above, mean.expand(factor.variable.shape))

    def _plate(self, frame: Any) -> Plate:
        subsample = self.subsamples.get(frame.name)
        full = frame.size if frame.full_size is None else frame.full_size
        return Plate(frame.name, frame.dim, frame.size, full, subsample if full != frame.size else None)

    def _check_frames(self, frames: Collection[Any], name: str) -> None:
        for frame in frames:
            if not frame.vectorized and frame.full_size is not None and frame.size != frame.full_size:
                raise ModelError(
                    f"Expected subsampling in a vectorized plate, with pyro.plate(...) as indices; got a loop over "
                    f"{frame.size} of {frame.full_size} in plate {frame.name!r} at site {name!r}."
                )

    def _latent(self, msg: Any, base: Any, plates: tuple[Plate, ...], mask: Tensor | None) -> None:
        name, fn, update = msg["name"], msg["fn"], msg["infer"].get("update")
        if is_discrete(fn):
            support = support_of(name, fn)
            self.discrete[name] = DiscreteSite(
                name, family_class(base), support, fn.batch_shape, plates, msg["scale"], mask, self.marked[name], update
            )
            return
        shape = msg["value"].shape
        batch = torch.Size(shape[: len(shape) - len(fn.event_shape)])
        check_plates(name, batch, plates, "latent")
        origin = self._origin(name, shape)
        site = LatentSite(
            name,
            family_class(base),
            batch,
            fn.event_shape,
            plates,
            msg["scale"],
            mask,
            update,
            origin,
            local=msg["infer"].get("local"),
        )
        if self._is_point(msg):
            site = replace(site, point=feasible(fn.support, shape, self.like), constraint=fn.support, origin=None)
        self.latents[name] = site

    def _score(self, msg: Any, value: Any, plates: tuple[Plate, ...], mask: Tensor | None) -> None:
        name, fn = msg["name"], msg["fn"]
        base = unwrap(fn)[0]
        random = (
            [a for a in base.arguments.values() if isinstance(a, RandomTensor)]
            if isinstance(base, RandomDistribution)
            else []
        )
        parents = frozenset().union(*(a.expression.sites for a in random))
        self.numbers += sum(a.numel() for a in random) + msg["value"].numel()
        density, error = None, None
        kind = family_class(unwrap(fn)[0]).__name__
        try:
            density = expected_log_density(fn, value, self.like)
        except (NotConjugateError, NotImplementedError) as problem:
            kind_of_error = type(problem) if isinstance(problem, NotConjugateError) else NotConjugateError
            error = kind_of_error(f"Site {name!r}: {problem}")
        batch = value.shape[: value.ndim - len(fn.event_shape)]
        shape = torch.broadcast_shapes(fn.batch_shape, batch, density.shape if density is not None else ())
        check_plates(name, shape, plates, "observed" if msg["is_observed"] else "latent")
        self.scored[name] = ScoredSite(
            name,
            density,
            shape,
            plates,
            msg["scale"],
            mask,
            msg["is_observed"],
            error,
            kind,
            len(fn.event_shape),
            parents,
        )


def _check_weights(name: str, scale: Any, masks: Collection[Any]) -> None:
    """Scales and masks are constants.

    Raises:
        NotConjugateError: if one depends on latents.
    """
    for kind, value in (("scale", scale), *(("mask", m) for m in masks)):
        if isinstance(value, RandomTensor):
            raise NotConjugateError(
                f"Expected a constant {kind} at site {name!r}; got one that depends on the latents "
                f"{sorted(value.expression.sites)}. Write torch.where(condition, a, b) in the arguments of its "
                "distribution."
            )


def _is_part(frame: Any) -> bool:
    """Whether a plate holds a part of the data only."""
    return frame.vectorized and frame.full_size is not None and frame.size != frame.full_size


#: Distributions with an argument that moves with the data.
_LOCATED = (dist.Normal, dist.MultivariateNormal)


class _Location(NamedTuple):
    """The location of a site as an expression, with the site's event dimensions and those of its subsampled plates."""

    expression: Expression
    event_dim: int
    parts: list[int]

    def latents(self) -> list[Factor]:
        """The latents that it is a sum of, each with coefficient one, beside other terms."""
        plain = [t for t in self.expression.terms if not t.constants and t.coefficient == 1 and len(t.factors) == 1]
        return [t.factors[0] for t in plain if t.factors[0].power == 1 and t.factors[0].function == "x"]


def _location_of(msg: Any) -> _Location | None:
    """The location of a site that has one, where it is computed of latents."""
    base = unwrap(msg["fn"])[0]
    if family_class(base) not in _LOCATED or not isinstance(base, RandomDistribution):
        return None
    location = base.arguments.get("loc")
    if not isinstance(location, RandomTensor) or location.expression.opacity or location.expression.pieces:
        return None
    event = len(msg["fn"].event_shape)
    return _Location(location.expression, event, [f.dim - event for f in msg["cond_indep_stack"] if _is_part(f)])


def _common(mean: Tensor, axes: tuple[Axis, ...], location: _Location, value: Tensor) -> Tensor | None:
    """The mean that elements of a latent share: over the plates that hold a part of the data, and over all plates where
    each datum has an element of its own, for that is no mean; None where that leaves one datum alone.
    """
    batch = [
        i for i, axis in enumerate(axes) if isinstance(axis, int) and is_position(axis) and axis < -location.event_dim
    ]
    gone = [i for i in batch if axes[i] in location.parts]
    if len([a for a in axes if isinstance(a, int) and is_position(a)]) == value.ndim:
        if not batch:
            return None
        gone = batch
    return mean.mean(gone, keepdim=True) if gone else mean


@contextmanager
def _recording_context(like: Tensor, arguments: AbstractContextManager[None] | None = None) -> Iterator[None]:
    """Random arguments (or another treatment of them), constants in the dtype and on the device of the data, no
    gradients, and the random state left as it was.
    """
    default = torch.get_default_dtype()
    store = pyro.get_param_store()
    known = set(store.keys())
    devices = [like.device] if like.device.type == "cuda" else []
    with (
        random_arguments() if arguments is None else arguments,
        poutine.block(),
        torch.random.fork_rng(devices),
        torch.no_grad(),
        torch.device(like.device) if like.device.type != "cpu" else nullcontext(),
    ):
        torch.set_default_dtype(like.dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
            for name in set(store.keys()) - known:
                del store[name]


def _own_value(msg: Any) -> Tensor | None:
    """Where the model itself starts a parameter; None where it only names it."""
    if len(msg["args"]) < 2 or msg["args"][1] is None:
        return None
    value = msg["args"][1]
    return (value() if callable(value) else torch.as_tensor(value)).detach()


def _check_stored(name: str, value: Tensor, own: Tensor | None, constraint: Any) -> None:
    """A parameter in Pyro's store is the model's own.

    Raises:
        ModelError: if its shape or its constraint is that of another model.
    """
    stored = pyro.get_param_store()._constraints[name]
    clear = "Write pyro.clear_param_store() before the fit of another model, or give the parameter another name."
    if own is not None and own.shape != value.shape:
        raise ModelError(
            f"Expected the parameter {name!r} of shape {tuple(own.shape)} in Pyro's store; got {tuple(value.shape)}, "
            f"of another model. {clear}"
        )
    if constraint is not constraints.real and repr(constraint) != repr(stored):
        raise ModelError(
            f"Expected the parameter {name!r} in {constraint} in Pyro's store; got {stored}, of another model. {clear}"
        )


def _scan(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], like: Tensor, is_first: bool
) -> RecordMessenger:
    messenger = RecordMessenger(like, None, {})
    messenger.is_first = is_first
    with _recording_context(like), messenger:
        model(*args, **kwargs)
    _move_on(messenger)
    return messenger


def _move_on(messenger: RecordMessenger) -> None:
    """The draws inside a recording are taken back: go on from them, so that the next one sees another subsample."""
    if messenger.redraws:
        for device in {s.device for s in messenger.subsamples.values()}:
            torch.rand(1, device=device)


def _first_guess(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A floating tensor among the arguments, whose dtype and device a model most likely computes in."""
    for item in (*args, *kwargs.values()):
        if isinstance(item, Tensor) and item.dtype in (torch.float32, torch.float64):
            return item.new_empty(0)
    for item in (*args, *kwargs.values()):
        if isinstance(item, Tensor):
            return torch.empty(0, device=item.device)
    return torch.empty(0)


def _data_like(observations: Mapping[str, Tensor], guess: Tensor) -> Tensor:
    """An empty tensor of the dtype and device of the data.

    Raises:
        DataError: if observed sites differ in dtype or device, or are of half precision.
    """
    kinds: dict[tuple[torch.dtype, torch.device], str] = {}
    for name, value in observations.items():
        if value.dtype in (torch.float16, torch.bfloat16):
            raise DataError(
                f"Expected data of float32 or float64 at site {name!r}; got {value.dtype}. Convert it: x.float()."
            )
        if value.is_floating_point() and not isinstance(value, RandomTensor):
            kinds.setdefault((value.dtype, value.device), name)
    if len(kinds) > 1:
        listed = ", ".join(f"{n!r}: {d} on {v}" for (d, v), n in kinds.items())
        raise DataError(f"Expected observed sites of one dtype and device; got {listed}.")
    if kinds:
        ((dtype, device),) = kinds
        return torch.empty(0, dtype=dtype, device=device)
    devices = {v.device for v in observations.values()}
    return torch.empty(0, dtype=guess.dtype, device=next(iter(devices), guess.device))


def record(
    model: Callable[..., Any],
    *args: Any,
    origins: Mapping[str, Tensor] | None = None,
    point: Collection[str] = (),
    known: Collection[str] | None = None,
    rescale: bool = True,
    before: Recording | None = None,
    check: bool = False,
    **kwargs: Any,
) -> Recording:
    """Run a model once, and write down the log density of every site as an expression in its latents.

    Latents are random tensors, discrete ones too. The model's random draws and its parameters
    leave no trace outside: the global random state and the handlers around are untouched.

    Args:
        model: a Pyro model; the other arguments are its own.
        origins: by site, a constant that the latent is measured from, for exact differences from data far from zero;
            by default the mean of the data that the latent is a location of, or a location of such a location.
        point: latent sites that get a point estimate, beside the parameters and those with ``infer={"estimate":
            "point"}``.
        known: the latent sites of a fitted guide, for prediction: others are data that is not given, and left out.
        rescale: whether subsampled plates scale their sites to the size of the whole, as Pyro does.
        before: a recording of the same model with data of the same kind, which saves one of two runs.
        check: whether to run the model once more, with draws of the latents, and compare the density of every site with
            Pyro's; not where ``before`` has been, nor where that run would hold more than four million numbers.

    Returns:
        The recording; sites without a rule hold their error, which is raised when the density is needed.

    Raises:
        ModelError: if there is no latent site, nothing is observed, or a loop over a plate subsamples.
        DataError: if observed data is not finite, outside the support, of the wrong shape or dtype.
        LatentValueError: if the model uses a latent's value as a number.
        RecordingError: if a recorded density is not Pyro's.
    """
    messenger = None if before is None else _recorded_as(before, model, args, kwargs, origins or {}, point, rescale)
    if messenger is None:
        scan = _scanned(model, args, kwargs, origins is None)
        like = _data_like(scan.observations, scan.like.double() if torch.float64 in scan.dtypes else scan.like)
        found = scan.found_origins if origins is None else origins
        messenger = RecordMessenger(like, scan.nesting, found, point, rescale)
        messenger.is_first = scan.is_first
        messenger.own_data = scan.own_data
        messenger.marked, messenger.subsamples = scan.marked, scan.subsamples
        messenger.redraws, messenger.declares_size = scan.redraws, scan.declares_size
        _run(model, args, kwargs, messenger)
    else:
        check = False
    like = messenger.like
    if known is None:
        _check_sites(messenger)
    hidden = _hidden_by_obs_mask(messenger)
    dropped = {*hidden, *_unknown(messenger, known)}
    recording = Recording(
        {name: site for name, site in messenger.latents.items() if name not in dropped},
        {name: site for name, site in messenger.discrete.items() if name not in dropped},
        {name: site for name, site in messenger.scored.items() if name not in dropped},
        messenger.max_plate_nesting or 0,
        like.dtype,
        like.device,
        messenger.observations,
        hidden,
        messenger.redraws,
        rescale,
        messenger.declares_size,
        messenger.own_data,
    )
    affordable = messenger.numbers <= LARGEST_CHECK
    trace = _draw(model, args, kwargs, messenger) if check and affordable else None
    if trace is not None:
        check_recording(recording, trace)
    return recording


class _Subsamples(Messenger):
    """Every plate at the subsample that was recorded."""

    def __init__(self, subsamples: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.subsamples = subsamples

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["value"] is None and msg["name"] in self.subsamples:
            msg["value"], msg["done"] = self.subsamples[msg["name"]], True


def _draw(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], messenger: RecordMessenger) -> Any:
    """A trace of the model itself; None where it cannot be drawn from, as under an improper prior."""
    try:
        with (
            _recording_context(messenger.like, nullcontext()),
            warnings.catch_warnings(),
            pyro.validation_enabled(False),
            _Subsamples(messenger.subsamples),
        ):
            warnings.simplefilter("ignore")
            return poutine.trace(model).get_trace(*args, **kwargs)
    except Exception:  # whatever a draw from a vague prior breaks
        return None


def _run(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], messenger: RecordMessenger) -> None:
    """Run the model under the messenger."""
    with _recording_context(messenger.like), messenger:
        model(*args, **kwargs)


def _scanned(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], is_first: bool
) -> RecordMessenger:
    """A first run, which finds the dtype of the data, the depth of the plates, and the origins."""
    guess = _first_guess(args, kwargs)
    try:
        return _scan(model, args, kwargs, guess, is_first)
    except ZeroDivisionError as error:
        raise DataError(
            f"Expected data in every plate; got a plate of size 0 ({error}). Leave empty batches out."
        ) from None
    except RuntimeError as error:
        if "dtype" not in str(error) or guess.dtype == torch.float64 or isinstance(error, LatentValueError):
            raise
        return _scan(model, args, kwargs, guess.double(), is_first)  # data that the model closes over


def _recorded_as(
    before: Recording,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    origins: Mapping[str, Tensor],
    point: Collection[str],
    rescale: bool,
) -> RecordMessenger | None:
    """One run instead of two, for data of the same kind as in an earlier recording; None if it is of another."""
    messenger = RecordMessenger(before.like, before.max_plate_nesting, origins, point, rescale)
    messenger.marked = {site.name: site.marked for site in before.discrete.values()}
    messenger.is_alone = True
    generators = torch.get_rng_state()
    try:
        _run(model, args, kwargs, messenger)
        like = _data_like(messenger.observations, before.like)
    except Exception:  # the two runs say better what is wrong
        torch.set_rng_state(generators)
        return None
    same = messenger.nesting == before.max_plate_nesting and (like.dtype, like.device) == (before.dtype, before.device)
    if not same or set(messenger.discrete) != set(before.discrete):
        return None
    _move_on(messenger)
    return messenger


def _unknown(messenger: RecordMessenger, known: Collection[str] | None) -> list[str]:
    """Latent sites that the guide does not know: data that is not given, to be predicted.

    Raises:
        ModelError: if something else depends on one, for then it is another model.
    """
    if known is None:
        return []
    found = [name for name in (*messenger.latents, *messenger.discrete) if name not in known]
    for name in found:
        users = [
            s.name
            for s in messenger.scored.values()
            if s.name != name and (name in s.parents or (s.density is not None and name in s.density.sites))
        ]
        if users:
            raise ModelError(
                f"Expected the latent sites of the fitted guide, {sorted(known)}; got {name!r} besides, which {users} "
                f"depend on. "
                "Make a new guide for another model."
            )
    return found


def _hidden_by_obs_mask(messenger: RecordMessenger) -> dict[str, tuple[Plate, ...]]:
    """The sites that ``obs_mask`` makes for missing data and nothing else depends on: they integrate to one."""
    found = {}
    for name in messenger.latents:
        observed = name.removesuffix("_unobserved") + "_observed"
        others = (s for s in messenger.scored.values() if s.name != name)
        used = any(s.density is None or name in s.density.sites for s in others)
        if name.endswith("_unobserved") and observed in messenger.scored and not used:
            found[name] = messenger.latents[name].plates
    return found


def _check_sites(messenger: RecordMessenger) -> None:
    if not messenger.latents and not messenger.discrete:
        raise ModelError("Expected a model with at least one latent site; got none: every pyro.sample has obs=.")
    if not any(s.observed for s in messenger.scored.values()):
        raise ModelError("Expected a model with an observed site; got none. Pass the data, and obs= at a pyro.sample.")


def expected_log_factors(
    model: Callable[..., Any], posterior: Mapping[Any, Any], *args: Any, **kwargs: Any
) -> dict[str, Tensor]:
    """The expected log density of every site under a posterior, of the site's batch shape.

    Args:
        model: a Pyro model; the other arguments are its own.
        posterior: by continuous latent site, or by tuple of sites for a joint block, a distribution of its family.

    Returns:
        By site a tensor of its batch shape; a factor that depends on discrete latents has their enumeration dimensions
        in front.

    Raises:
        ModelError: if a latent site has no posterior.
        NotConjugateError: if an expectation has no closed form.
    """
    recording = record(model, *args, **kwargs)
    program = Program(recording, tuple(k for k in posterior if isinstance(k, tuple)))
    missing = sorted(str(key) for key in program.blocks if key not in posterior)
    if missing:
        raise ModelError(f"Expected a posterior for every continuous latent site; got none for {missing}.")
    like = recording.like
    state = {}
    for key, block in program.blocks.items():
        params = block.family.distribution_params(unwrap(posterior[key])[0])
        state[key] = block.natural({n: p.to(like) for n, p in params.items()}).map(lambda t: t.unsqueeze(0))
    return {name: value.squeeze(0) for name, value in program.expected_log_densities(program.means(state)).items()}


__all__ = ["ClosedFormMessenger", "closed_form", "expected_log_factors", "record"]
