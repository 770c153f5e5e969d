"""A race to the best bound: each method's gap against the clock, from a common start.

The clock runs inside ``step`` only. Scores are taken beside it, all by one estimator with the same random numbers, and
each method first makes an untimed throwaway run, so that imports and first calls cost nobody.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import pyro
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ..ascent import CAVI
from ..errors import ArgumentTypeError, DataError, check_count, checked_call
from ..guide import AutoConjugate
from ..particles import LEAST_DRAWS, Target, Weights, seeded
from ..signatures import Model
from ..tables import text_table
from .draws import draw
from .methods import Stopwatch, check_methods
from .parameters import SavedValues


class Driver(Protocol):
    """What a race runs: a ``CAVI``, an ``SVI``, or another with a guide and steps that return a loss."""

    guide: Any

    def step(self, *args: Any, **kwargs: Any) -> Any: ...


#: What makes a fresh driver.
Make = Callable[[], Driver]

#: Between the method and its learning rate, in the names that :func:`svi_grid` gives.
RATE = ", rate "


@dataclass(frozen=True)
class Lap:
    """The state of a run at one checkpoint: the step, the seconds so far, and the ELBO with its standard error."""

    step: int
    seconds: float
    elbo: float
    error: float


@dataclass(frozen=True)
class Runner:
    """What one method did.

    Attributes:
        name: the method's.
        laps: its checkpoints.
        score: its last score, with more draws.
        settled: whether it stopped because its loss no longer fell.
    """

    name: str
    laps: list[Lap]
    score: Weights
    settled: bool

    @property
    def group(self) -> str:
        """The method without its learning rate."""
        return self.name.split(RATE)[0]

    @property
    def rate(self) -> str:
        """The learning rate as it stands in the name; empty if there is none."""
        return self.name.partition(RATE)[2]

    @property
    def seconds(self) -> float:
        return self.laps[-1].seconds

    def seconds_within(self, gap: float, best: float) -> float:
        """The clock at the checkpoint from which all are within ``gap`` nats of ``best``; infinite if there is none."""
        late = next((i for i, lap in enumerate(reversed(self.laps)) if lap.elbo < best - gap), len(self.laps))
        return self.laps[-late].seconds if late else math.inf


@dataclass(frozen=True)
class Race:
    """What :func:`race` found; ``print`` shows a table, :func:`pyro_latent.plotting.plot_race` a picture.

    Attributes:
        runners: by method, in the order given.
        device: where it ran.
    """

    runners: dict[str, Runner]
    device: str

    def __getitem__(self, method: str) -> Runner:
        return self.runners[method]

    @property
    def best(self) -> float:
        """The best last ELBO, in nats."""
        return max(r.score.elbo for r in self.runners.values())

    @property
    def floor(self) -> float:
        """The gap below which scores say nothing: twice the standard error of the best one's checkpoints, in nats."""
        winner = max(self.runners.values(), key=lambda r: r.score.elbo)
        return max(2 * winner.laps[-1].error, 1e-9 * max(1.0, abs(self.best)))

    def chosen(self) -> dict[str, Runner]:
        """The run with the best last ELBO among the learning rates of each method."""
        found: dict[str, Runner] = {}
        for r in self.runners.values():
            if r.group not in found or r.score.elbo > found[r.group].score.elbo:
                found[r.group] = r
        return found

    def rows(self, gap: float = 1.0) -> list[list[str]]:
        """A heading, and a row for each method."""
        rows = [["method", "steps", "seconds", f"to {gap:g} nat (s)", "last ELBO", "gap", "k̂"]]
        for r in self.runners.values():
            within = r.seconds_within(gap, self.best)
            reached = "never" if math.isinf(within) else f"{within:.3f}"
            elbo = f"{r.score.elbo:.3f} ± {r.score.elbo_error:.3f}"
            below = f"{self.best - r.score.elbo:.3f}"
            rows.append([r.name, f"{r.laps[-1].step:,}", f"{r.seconds:.3f}", reached, elbo, below, r.score.k.label])
        return rows

    def __str__(self) -> str:
        return f"{text_table(self.rows())}\non {self.device}; seconds inside step() only; gap: nats below the best ELBO"


@checked_call
def race(
    model: Model,
    methods: Mapping[str, Make],
    *args: Any,
    max_steps: int = 1000,
    max_seconds: float = math.inf,
    tol: float = 1e-9,
    num_samples: int = 100,
    final_samples: int = 1000,
    warmup: int = 3,
    device: str | torch.device | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Race:
    """Run methods on one model, and score each along the way.

    Args:
        model: a Pyro model.
        methods: by name, a function without arguments that makes a fresh ``CAVI``, ``SVI``, or other driver with
            ``step`` and ``guide``. :func:`svi_grid` makes them for several learning rates, :func:`start_like` lets
            autoguides start where coordinate ascent does. The positional arguments after it are the model's.
        max_steps, max_seconds: the budget of each method; its clock counts what is inside ``step``.
        tol: coordinate ascent stops early once its loss falls by no more than this, relative to its size.
        num_samples: draws of each checkpoint's score, at least 50; the checkpoints are a third more steps apart each.
        final_samples: draws of the last score.
        warmup: steps of the throwaway run.
        device: where to put the tensors among the arguments, ``"cuda"`` for instance; by default they stay.
        seed: of every method's random numbers.
        kwargs: the model's keyword arguments.

    Raises:
        TypeError: if a method makes no driver, or ``methods`` is no dict.
        DataError: if there is no such device.
        ModelError: if a guide's sites are not the model's, or it has no density.

    Pyro's parameter store is empty for each method, and afterwards as before. So are the parameters of the model's
    modules, which are as at the call for each; a guide with modules is made afresh by its function.

    Example::

        grid = svi_grid(model, lambda: AutoNormal(model), [0.003, 0.01, 0.03])
        result = race(model, {"CAVI": lambda: CAVI(model, AutoConjugate(model)), **grid}, x)
        print(result)
    """
    for name, value, least in (
        ("max_steps", max_steps, 1),
        ("num_samples", num_samples, LEAST_DRAWS),
        ("final_samples", final_samples, LEAST_DRAWS),
        ("warmup", warmup, 0),
    ):
        check_count(name, value, least)
    check_methods(methods, "{'CAVI': lambda: CAVI(model, guide)}")
    args, kwargs = on_device((args, kwargs), device)
    with pyro.get_param_store().scope() as made, seeded(seed):
        target = Target.of(model, args, kwargs)
    target.check_drawn()
    start = SavedValues(made["params"].items())
    course = _Course(target, start, max_steps, max_seconds, tol, num_samples, final_samples, warmup, seed)
    return Race({name: course.run(name, make) for name, make in methods.items()}, _device_name(target))


@dataclass(frozen=True)
class _Course:
    """What is the same for every method."""

    target: Target
    start: SavedValues
    max_steps: int
    max_seconds: float
    tol: float
    num_samples: int
    final_samples: int
    warmup: int
    seed: int

    def run(self, name: str, make: Make) -> Runner:
        """One method, from its start to the end of its budget."""
        with self._alone():
            thrown_away = self._made(name, make)
            for _ in range(self.warmup):
                self._step(thrown_away)
        with self._alone():
            driver = self._made(name, make)
            _check_fresh(name, driver, thrown_away)
            laps, settled = self._laps(driver, name)
            return Runner(name, laps, self._score(driver, name, self.final_samples), settled)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """An empty parameter store, the model's modules as they were, and a random state of its own."""
        with pyro.get_param_store().scope(), torch.random.fork_rng():
            torch.manual_seed(self.seed)
            try:
                yield
            finally:
                self.start.restore()

    @staticmethod
    def _made(name: str, make: Make) -> Driver:
        # A guide can be called as well, but it is the model's arguments that it wants.
        made = callable(make) and not isinstance(make, AutoGuide)
        driver = make() if made else make
        if not made or not hasattr(driver, "step") or not hasattr(driver, "guide"):
            raise ArgumentTypeError(
                f"Expected a function that makes a CAVI or an SVI for {name!r}; got {type(driver).__name__}. Write "
                f"{{{name!r}: lambda: SVI(model, guide, optim, loss)}}, so that each run starts afresh."
            )
        return driver

    def _step(self, driver: Driver) -> float:
        loss: float = driver.step(*self.target.call.args, **self.target.call.kwargs)
        return loss

    def _laps(self, driver: Driver, name: str) -> tuple[list[Lap], bool]:
        laps: list[Lap] = []
        seconds, before, due = 0.0, math.inf, 1
        for step in range(1, self.max_steps + 1):
            watch = Stopwatch()
            loss = self._step(driver)
            seconds += watch.seconds()
            settled = isinstance(driver, CAVI) and not driver.is_annealing
            settled = settled and before - loss <= self.tol * max(1.0, abs(loss))
            last = settled or step == self.max_steps or seconds >= self.max_seconds
            if step >= due or last:
                score = self._score(driver, name, self.num_samples)
                laps.append(Lap(step, seconds, score.elbo, score.elbo_error))
                due = math.ceil(step * 4 / 3)
            if last:
                return laps, settled
            before = loss
        return laps, False

    def _score(self, driver: Driver, name: str, num: int) -> Weights:
        with seeded(self.seed):
            return Weights.of(draw(self.target, driver.guide, num, repr(name)))


def _check_fresh(name: str, driver: Driver, before: Driver) -> None:
    """A run does not go on from the throwaway one.

    Raises:
        TypeError: if it does.
    """
    if driver is before or (isinstance(driver.guide, torch.nn.Module) and driver.guide is before.guide):
        what = "driver" if driver is before else "guide"
        raise ArgumentTypeError(
            f"Expected a function that makes a fresh driver with a fresh guide for {name!r} each time; got the same "
            f"{what} twice. Write lambda: CAVI(model, AutoConjugate(model)), with all that it needs made inside."
        )


def _device_name(target: Target) -> str:
    tensors: list[Tensor] = []
    _mapped(lambda tensor: tensors.append(tensor), (target.call.args, target.call.kwargs))
    device = tensors[0].device if tensors else torch.device("cpu")
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def on_device(value: object, device: str | torch.device | None) -> Any:
    """The same arguments with every tensor in them, also inside lists, tuples, dicts and dataclasses, on a device.

    Raises:
        DataError: if there is no such device.
    """
    if device is None:
        return value
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"Expected a CUDA device for device={str(device)!r}; got none here. Leave out device=.")
    return _mapped(lambda tensor: tensor.to(device), value)


def _mapped(function: Callable[[Tensor], Any], value: object) -> Any:
    """The function of every tensor, in the same containers."""

    def leaf(item: object) -> Any:
        if isinstance(item, Tensor):
            return function(item)
        if is_dataclass(item) and not isinstance(item, type):
            found = {f.name: _mapped(function, getattr(item, f.name)) for f in fields(item) if f.init}
            return replace(item, **found)
        return item

    return torch.utils._pytree.tree_map(leaf, value)


# ------------------------------------------------------------------------------------------------------------- methods


@checked_call
def svi_grid(
    model: Model,
    make_guide: Callable[[], Any],
    rates: Sequence[float],
    *,
    loss: Callable[[], Any],
    name: str = "SVI",
    decay: float = 0.1,
    over: int = 1000,
) -> dict[str, Make]:
    """Methods for :func:`race`: SVI by Adam at several learning rates, which fall as the run goes on.

    Args:
        model: the model.
        make_guide: makes a fresh guide, or returns a guide function.
        rates: the learning rates at the start.
        loss: makes the objective, ``lambda: Trace_ELBO()`` for instance.
        name: of the methods, before the rate.
        decay: to which share of itself a rate falls.
        over: in how many steps.
    """

    def method(rate: float) -> Make:
        def make() -> SVI:
            options = {"lr": rate, "lrd": decay ** (1 / over), "clip_norm": math.inf}
            return SVI(model, make_guide(), pyro.optim.ClippedAdam(options), loss())

        return make

    return {f"{name}{RATE}{rate:g}": method(rate) for rate in rates}


@checked_call
def start_like(make: Callable[[], AutoConjugate], *args: Any, **kwargs: Any) -> Callable[[Mapping[str, Any]], Tensor]:
    """An ``init_loc_fn`` for autoguides: the posterior medians where coordinate ascent is after its first sweep.

    Coordinate ascent begins at clusters of the data or a draw from the prior, which gradients from a default start do
    not see; with this, all methods begin at the same place, and that sweep is given to the others for free.

    Args:
        make: makes the guide that coordinate ascent starts with.
        args, kwargs: the model's arguments.

    Example::

        init = start_like(lambda: AutoConjugate(model, init=0), x)
        methods = svi_grid(model, lambda: AutoNormal(model, init_loc_fn=init), [0.01], loss=Trace_ELBO)
    """
    guide = make()
    with seeded(0):
        CAVI(guide.model, guide).step(*args, **kwargs)
        values = {name: value.detach() for name, value in guide.median().items()}

    def init_to_start(site: Mapping[str, Any]) -> Tensor:
        like = site["fn"].sample()
        return values[site["name"]].to(like) if site["name"] in values else like

    return init_to_start
