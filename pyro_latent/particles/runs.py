"""Many runs of a Pyro program at once: one draw after another in meaning, as one batch in time.

:func:`run` executes a program once with some sites held; :func:`run_many` does so for S draws, in the first of three
ways that works for the program:

- **vmap**: by ``torch.vmap``, which a program never sees (``x @ w`` and ``mu[z]`` mean what they mean in one run); it
  cannot draw from a Beta, Dirichlet or Wishart;
- **plate**: inside one more plate, to the left of the program's own, as ``vectorize_particles`` does;
- **loop**: one after another.

A batch is believed only if the densities of its first and its last draw are those of a single run with the same values;
else the next way is tried. So a program that a further dimension breaks silently is slow, and never wrong.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import ModelError, check_seed, in_our_words
from ..signatures import Args
from .enumeration import DRAWS, Factors
from .sites import is_latent, sample_sites

PyroProgram = Callable[..., Any]
Values = dict[str, Tensor]
Way = Literal["plate", "vmap", "loop"]

#: The ways to draw, which vmap often cannot; and those to score draws that are given.
WAYS: tuple[Way, ...] = ("plate", "vmap", "loop")
SCORING_WAYS: tuple[Way, ...] = ("vmap", "plate", "loop")

#: The elements of a batch, over all sites: about 16 MB of float64, and a few times that in between.
BATCH_ELEMENTS = 2**21

#: How far a batch's log densities may be from a single run's, relative to their size: what the order of a sum changes.
AGREEMENT = {torch.float64: 1e-7, torch.float32: 1e-3}


def name_of(program: object) -> str:
    """What errors and tables call a program: the name of a function, or of an object's class."""
    name: str = getattr(program, "__name__", type(program).__name__)
    return name


@dataclass(frozen=True)
class ProgramCall:
    """A program with its arguments.

    Attributes:
        program: a model or a guide.
        args, kwargs: its arguments.
    """

    program: PyroProgram
    args: Args
    kwargs: Mapping[str, Any]

    def with_program(self, program: PyroProgram) -> ProgramCall:
        """The same arguments for another program."""
        return ProgramCall(program, self.args, self.kwargs)

    def bound(self) -> inspect.BoundArguments:
        """The arguments by the parameters of the program, of a module by those of its ``forward``.

        Raises:
            TypeError: if they do not fit.
            ValueError: if the program has no signature to read.
        """
        takes = self.program.forward if isinstance(self.program, torch.nn.Module) else self.program
        return inspect.signature(takes).bind(*self.args, **self.kwargs)

    def trace(self) -> Trace:
        """One run of the program, outside all handlers."""
        advice = "Call it with these arguments, and mend it, or them."
        with (
            in_our_words(f"{name_of(self.program)} to run with these arguments", lambda: advice),
            no_params_of_failures(),
            poutine.block(),
        ):
            return poutine.trace(self.program).get_trace(*self.args, **self.kwargs)


@contextmanager
def no_params_of_failures() -> Iterator[None]:
    """What fails leaves no new parameters in Pyro's store."""
    store = pyro.get_param_store()
    known = set(store.keys())
    try:
        yield
    except Exception:
        for name in set(store.keys()) - known:
            del store[name]
        raise


class ScoredRun(NamedTuple):
    """What runs leave, by site; each tensor has a leading dimension over draws, or none for a single run.

    ``values`` are of the site's shape. ``log_probs`` are of its batch shape and hold scales and masks; ``pointwise``
    hold masks only.
    """

    values: Values
    log_probs: Values
    pointwise: Values

    @property
    def log_prob(self) -> Tensor:
        """The sum over sites: ``[S]``, float64."""
        return torch.stack([p.double().reshape(len(p), -1).sum(1) for p in self.log_probs.values()]).sum(0)

    @staticmethod
    def stacked(runs: Iterable[ScoredRun]) -> ScoredRun:
        """Single runs as many."""
        return _joined(list(runs), torch.stack)

    @staticmethod
    def concatenated(runs: Sequence[ScoredRun]) -> ScoredRun:
        """Batches as one."""
        return runs[0] if len(runs) == 1 else _joined(runs, torch.cat)


def _joined(runs: Sequence[ScoredRun], join: Callable[[list[Tensor]], Tensor]) -> ScoredRun:
    return ScoredRun(*({n: join([r[i][n] for r in runs]) for n in part} for i, part in enumerate(runs[0])))


# ------------------------------------------------------------------------------------------------------------ one run


def run(call: ProgramCall, held: Mapping[str, Tensor]) -> ScoredRun:
    """One run with the sites ``held`` at their values, and the others drawn."""
    return scored_run(call.with_program(poutine.condition(call.program, data=dict(held))).trace())


def scored_run(trace: Trace) -> ScoredRun:
    """Values and densities of a trace."""
    with in_our_words("values that the sites can score", lambda: "Give data of the shapes of the sites."):
        trace.compute_log_prob()
    sites = sample_sites(trace)
    return ScoredRun(
        {n: s["value"] for n, s in sites.items() if isinstance(s["value"], Tensor)},
        {n: s["log_prob"] for n, s in sites.items()},
        {n: scale_and_mask(s["unscaled_log_prob"], mask=s["mask"]) for n, s in sites.items()},
    )


# ---------------------------------------------------------------------------------------------------------- many runs


@dataclass
class ProgramRunner:
    """Runs of one program, in batches; it remembers the way that worked.

    Attributes:
        call: the program and its arguments.
        nesting: the batch dimensions that it takes up, and those of a program beside it.
        ways: what to try, in this order. Without "loop", a program that no other way fits is an error.
        fixed: sites that are functions of others (Deltas): a check computes them anew and does not hold them.
        marginal: whether sites that are marked for enumeration and not held are summed out. A run is then one log
            density, under the name ``""``, and no values.
        without, kept: with ``marginal``, sites that do not count, and plates, of more than one element and with every
            other site in them, along which the log density stays apart.
        once: whether to check the first batch only: for an optimiser's closure, which asks a hundred times.
    """

    call: ProgramCall
    nesting: int
    ways: Sequence[Way] = WAYS
    fixed: frozenset[str] = frozenset()
    marginal: bool = False
    once: bool = False
    without: frozenset[str] = frozenset()
    kept: tuple[str, ...] = ()
    _single: ScoredRun | None = field(default=None, init=False, repr=False)
    _size: int = field(default=1, init=False, repr=False)
    _drawn: frozenset[str] = field(default=frozenset(), init=False, repr=False)
    _batch_dims: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _trusted: bool = field(default=False, init=False, repr=False)

    def __call__(self, held: Mapping[str, Tensor], num: int) -> ScoredRun:
        """``num`` runs; each tensor of ``held`` is ``[num] + shape``.

        Raises:
            ModelError: if no way is left.
        """
        return ScoredRun.concatenated(list(self._parts(dict(held), num)))

    def log_prob(self, held: Mapping[str, Tensor], num: int) -> Tensor:
        """The log densities of ``num`` runs, ``[num]``, float64, differentiable; nothing else is kept."""
        return torch.cat([part.log_prob for part in self._parts(dict(held), num)])

    def _parts(self, held: Values, num: int) -> Iterator[ScoredRun]:
        if self._single is None or not self.once:
            self._look({n: t[0] for n, t in held.items()})
        for i in range(0, num, self._size):
            yield self._run({n: t[i : i + self._size] for n, t in held.items()}, min(self._size, num - i))

    @torch.no_grad()
    def _look(self, held: Values) -> None:
        """One run: what the program is like, and how many runs a batch may have."""
        trace = self._trace(held)
        self._single = self._read(trace)
        sites = sample_sites(trace)
        self._batch_dims = {n: len(s["fn"].batch_shape) for n, s in sites.items()}
        self._drawn = frozenset(n for n, s in sites.items() if is_latent(s)) - self.fixed
        numel = sum(s["log_prob"].numel() + torch.as_tensor(s["value"]).numel() for s in sites.values())
        self._size = max(1, BATCH_ELEMENTS // max(2 * numel, 1))

    def _run(self, held: Values, num: int) -> ScoredRun:
        batches = [way for way in self.ways if way != "loop"] if num > 1 else []
        for way in batches:
            found = self._attempt(way, held, num)
            if found is None:
                continue
            if self._trusted or all(self._agrees(way, found, held, i) for i in (0, num - 1)):
                self.ways = (way, *(w for w in self.ways if w == "loop"))
                self._trusted = self.once
                return found
        if batches and "loop" not in self.ways:
            raise ModelError(
                "Expected a model that bears one more plate to the left, for vectorized=True; got other densities "
                "there, or an error. Index plated sites with pyro.ops.indexing.Vindex, or leave vectorized=None."
            )
        return ScoredRun.stacked(self._one({n: t[i] for n, t in held.items()}) for i in range(num))

    def _attempt(self, way: Way, held: Values, num: int) -> ScoredRun | None:
        """A batch, or None where the program does not allow it: it may then raise anything."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that vmap batches slowly; a pass a draw is slower
            try:
                return self._by_plate(held, num) if way == "plate" else self._by_vmap(held, num)
            except Exception:
                return None

    def _by_vmap(self, held: Values, num: int) -> ScoredRun:
        factors: list[Factors] = []

        def one(_: Tensor, values: Values) -> Any:
            if not self.marginal:
                return self._one(values)
            factors.append(self._factors(self._trace(values)))
            return factors[0].tensors

        with pyro.validation_enabled(False), OutOfPlaceDraws():
            found = torch.vmap(one, randomness="different")(torch.arange(num), held)
        # Pyro's sums have gradients that vmap does not know.
        return ScoredRun({}, {"": factors[0].of_draws(found).total()}, {}) if factors else found

    def _by_plate(self, held: Values, num: int) -> ScoredRun | None:
        assert self._single is not None
        placed = {n: self._beside_plates(n, t) for n, t in held.items()}
        found = self._read(self._trace(placed, num))
        if any(t.numel() != num * self._single.values[n].numel() for n, t in found.values.items() if n in self._drawn):
            return None  # one draw for all: the program hides its sites from plates, as infer_discrete does
        parts = [
            {n: _unplated(t, num, shapes[n].shape) for n, t in part.items()}
            for part, shapes in zip(found, self._single, strict=True)
        ]
        return ScoredRun(*parts)

    def _beside_plates(self, name: str, value: Tensor) -> Tensor:
        """``[num] + shape`` with as many dimensions of 1 after the first as puts it to the left of all plates."""
        between = self.nesting - self._batch_dims.get(name, 0)
        return value.reshape(len(value), *[1] * between, *value.shape[1:])

    @torch.no_grad()
    def _agrees(self, way: Way, found: ScoredRun, held: Values, draw: int) -> bool:
        """Whether a single run with these values has these densities."""
        values = {n: found.values[n] for n in self._drawn if n in found.values} | held
        try:
            single = self._one({n: t[draw] for n, t in values.items()})
        except Exception:
            if not self._drawn:
                raise
            # It has a density at its own draws only, as a flow without inverse: vmap is a single run by construction.
            return way == "vmap" or "loop" not in self.ways
        pairs = zip(found, single, strict=True)
        return all(a.keys() == b.keys() and all(close(a[n][draw], b[n]) for n in a) for a, b in pairs)

    def _one(self, held: Values) -> ScoredRun:
        return self._read(self._trace(held))

    def _trace(self, held: Values, num: int | None = None) -> Trace:
        """A run with sites held; ``num`` puts it inside a plate of that many draws, to the left of its own plates."""
        program = poutine.condition(self.call.program, data=held)
        if num is not None:
            program = pyro.plate(DRAWS, num, dim=-1 - self.nesting)(program)
        if self.marginal:
            program = poutine.enum(program, first_available_dim=-2 - self.nesting)
        return self.call.with_program(program).trace()

    def _read(self, trace: Trace) -> ScoredRun:
        return ScoredRun({}, {"": self._factors(trace).total()}, {}) if self.marginal else scored_run(trace)

    def _factors(self, trace: Trace) -> Factors:
        return Factors.of(trace, self.without, self.kept)


def _unplated(tensor: Tensor, num: int, shape: torch.Size) -> Tensor:
    """``[num] + shape`` from a tensor with dimensions of 1 between, or, if no draw changes it, without the first."""
    if tensor.numel() == shape.numel() and tensor.numel() != num * shape.numel():
        return tensor.reshape(shape).expand(num, *shape)
    return tensor.reshape(num, *shape)


def close(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal but for the order of sums, NaN and infinities included."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if not first.is_floating_point() or not first.numel():
        return torch.equal(first, second)
    tolerance = AGREEMENT.get(first.dtype, 1e-2)
    finite = first[first.isfinite()]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


#: ``Tensor.data``, of which torch announces the reading.
DATA: Any = torch.Tensor.data


class OutOfPlaceDraws(TorchFunctionMode):
    """Random numbers by functions that ``vmap`` knows, where torch's distributions fill a new tensor in place.

    ``Normal``, for one, draws by ``torch.empty(shape).normal_()``, which ``vmap`` refuses. It refuses ``Tensor.data``
    too, by which Pyro reads shapes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.exponential_) and len(args) == 1 and not kwargs:
            like: Any = {"dtype": args[0].dtype, "device": args[0].device}
            if func is torch.Tensor.normal_:
                return torch.randn(args[0].shape, **like)
            return -torch.log1p(-torch.rand(args[0].shape, **like))
        if func == DATA.__get__:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """A random state of its own, and no gradients; with ``device``, other CUDA devices' states are left to change."""
    devices = None if device is None else [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(check_seed(seed))
        yield


@contextmanager
def quiet_redraws() -> Iterator[None]:
    """Singular draws from a Wishart prior, which torch draws anew by itself, give no warning inside."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Singular sample detected")
        yield
