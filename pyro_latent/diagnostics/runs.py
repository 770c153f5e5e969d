"""Many runs of a Pyro program at once: one draw after another in meaning, as one batch in time.

:func:`run` executes a program once with some sites held; :func:`run_many` does so for S draws, in the first of three
ways that works for the program:

- **plate**: inside one more plate, to the left of the program's own, as ``vectorize_particles`` does;
- **vmap**: by ``torch.vmap``, which a program never sees (``x @ w`` and ``mu[z]`` mean what they mean in one run);
- **loop**: one after another.

A batch is believed only if the densities of its first and its last draw are those of a single run with the same values;
else the next way is tried. So a program that a further dimension breaks silently is slow, and never wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import ModelError
from ..infer.particles import innermost

Program = Callable[..., Any]
Values = dict[str, Tensor]
Way = Literal["plate", "vmap", "loop"]

WAYS: tuple[Way, ...] = ("plate", "vmap", "loop")

#: The elements of a batch, over all sites: about 16 MB of float64, and a few times that in between.
BATCH_ELEMENTS = 2**21

#: How far a batch's log densities may be from a single run's, relative to their size: what the order of a sum changes.
AGREEMENT = {torch.float64: 1e-7, torch.float32: 1e-3}


@dataclass(frozen=True)
class Call:
    """A program with its arguments.

    Attributes:
        program: a model or a guide.
        args, kwargs: its arguments.
    """

    program: Program
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def with_program(self, program: Program) -> Call:
        """The same arguments for another program."""
        return Call(program, self.args, self.kwargs)

    def trace(self) -> Any:
        """One run of the program, outside all handlers."""
        with poutine.block():
            return poutine.trace(self.program).get_trace(*self.args, **self.kwargs)


class Run(NamedTuple):
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

    def at(self, draw: int) -> Run:
        """One of many."""
        return Run(*({n: t[draw] for n, t in part.items()} for part in self))

    @staticmethod
    def stacked(runs: Iterable[Run]) -> Run:
        """Single runs as many."""
        return _joined(list(runs), torch.stack)

    @staticmethod
    def concatenated(runs: Sequence[Run]) -> Run:
        """Batches as one."""
        return runs[0] if len(runs) == 1 else _joined(runs, torch.cat)


def _joined(runs: Sequence[Run], join: Callable[[list[Tensor]], Tensor]) -> Run:
    return Run(*({n: join([r[i][n] for r in runs]) for n in part} for i, part in enumerate(runs[0])))


# ------------------------------------------------------------------------------------------------------------ one run


def sample_sites(trace: Any) -> dict[str, Any]:
    """The sample sites of a trace, without those of plates."""
    return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}


def is_latent(site: Mapping[str, Any]) -> bool:
    """Whether a site is a latent: not observed, and not deterministic."""
    return not site["is_observed"] and not site["infer"].get("_deterministic")


def is_mixture(site: Mapping[str, Any]) -> bool:
    """Whether a site's distribution is a ``MixtureSameFamily``."""
    return isinstance(innermost(site["fn"]), torch.distributions.MixtureSameFamily)


def max_plate_nesting(*traces: Any) -> int:
    """The number of batch dimensions that the plates of these traces take up."""
    frames = [f for t in traces for s in sample_sites(t).values() for f in s["cond_indep_stack"] if f.vectorized]
    return max((-f.dim for f in frames), default=0)


def run(call: Call, held: Mapping[str, Tensor]) -> Run:
    """One run with the sites ``held`` at their values, and the others drawn."""
    return read(trace_with(call, held))


def trace_with(call: Call, held: Mapping[str, Tensor]) -> Any:
    """The trace of such a run."""
    return call.with_program(poutine.condition(call.program, data=dict(held))).trace()


def read(trace: Any) -> Run:
    """Values and densities of a trace."""
    trace.compute_log_prob()
    sites = {n: s for n, s in sample_sites(trace).items() if isinstance(s["value"], Tensor)}
    return Run(
        {n: s["value"] for n, s in sites.items()},
        {n: s["log_prob"] for n, s in sites.items()},
        {n: scale_and_mask(s["unscaled_log_prob"], mask=s["mask"]) for n, s in sites.items()},
    )


# ---------------------------------------------------------------------------------------------------------- many runs


@dataclass
class Runner:
    """Runs of one program, in batches; it remembers the way that worked.

    Attributes:
        call: the program and its arguments.
        nesting: the batch dimensions that its plates, and those of a program beside it, take up.
        ways: what to try, in this order.
    """

    call: Call
    nesting: int
    ways: Sequence[Way] = WAYS
    fixed: frozenset[str] = frozenset()
    """Sites that are functions of others (Deltas): a check computes them anew and does not hold them."""
    _single: Run | None = field(default=None, repr=False)
    _drawn: frozenset[str] = frozenset()

    def __call__(self, held: Mapping[str, Tensor], num: int) -> Run:
        """``num`` runs; each tensor of ``held`` is ``[num] + shape``."""
        held = dict(held)
        trace = trace_with(self.call, {n: t[0] for n, t in held.items()})
        self._single = read(trace)
        self._drawn = frozenset(n for n, s in sample_sites(trace).items() if is_latent(s)) - self.fixed
        size = self._batch(self._single)
        parts = [{n: t[i : i + size] for n, t in held.items()} for i in range(0, num, size)]
        counts = [min(size, num - i) for i in range(0, num, size)]
        return Run.concatenated([self._run(part, count) for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def _batch(single: Run) -> int:
        numel = sum(t.numel() for part in single for t in part.values())
        return max(1, BATCH_ELEMENTS // max(numel, 1))

    def _run(self, held: Values, num: int) -> Run:
        for way in self.ways if num > 1 else ("loop",):
            if way == "loop":
                break
            found = self._attempt(way, held, num)
            if found is not None and all(self._agrees(found.at(i), held, i) for i in (0, num - 1)):
                self.ways = (way, "loop")
                return found
        return Run.stacked(run(self.call, {n: t[i] for n, t in held.items()}) for i in range(num))

    def _attempt(self, way: Way, held: Values, num: int) -> Run | None:
        """A batch, or None where the program does not allow it: it may then raise anything."""
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch's, of operations that it batches slowly; a pass for each draw is slower
            try:
                return self._by_plate(held, num) if way == "plate" else self._by_vmap(held, num)
            except Exception:
                return None

    def _by_vmap(self, held: Values, num: int) -> Run:
        def one(_: Tensor, values: Values) -> Run:
            return run(self.call, values)

        with pyro.validation_enabled(False), OutOfPlaceDraws():
            return torch.vmap(one, randomness="different")(torch.arange(num), held)

    def _by_plate(self, held: Values, num: int) -> Run:
        assert self._single is not None
        call = self.call.with_program(within_draws(self.call.program, num, self.nesting))
        found = run(call, {n: self._beside_plates(n, t, num) for n, t in held.items()})
        parts = [
            {n: _unplated(t, num, shapes[n].shape) for n, t in part.items()}
            for part, shapes in zip(found, self._single, strict=True)
        ]
        return Run(*parts)

    def _beside_plates(self, name: str, value: Tensor, num: int) -> Tensor:
        """``[num] + shape`` with as many dimensions of 1 after the first as puts it to the left of all plates."""
        assert self._single is not None
        batch = self._single.log_probs[name].ndim if name in self._single.log_probs else 0
        return beside_plates(value, batch, self.nesting)

    def _agrees(self, found: Run, held: Values, draw: int) -> bool:
        """Whether a single run with these values has these densities."""
        values = {n: found.values[n] for n in self._drawn}
        single = run(self.call, values | {n: t[draw] for n, t in held.items()})
        names = found.log_probs.keys()
        return names == single.log_probs.keys() and all(
            close(found.log_probs[n], single.log_probs[n]) and close(found.values[n], single.values[n]) for n in names
        )


def beside_plates(value: Tensor, batch_dim: int, nesting: int) -> Tensor:
    """A site's draws ``[S] + shape`` with S to the left of ``nesting`` plates, of which it has ``batch_dim``."""
    return value.reshape(len(value), *[1] * (nesting - batch_dim), *value.shape[1:])


def within_draws(program: Program, num: int, nesting: int) -> Program:
    """The program inside a plate of draws, to the left of its own plates."""

    def draws(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate("_draws", num, dim=-1 - nesting):
            return program(*args, **kwargs)

    return draws


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


class OutOfPlaceDraws(TorchFunctionMode):
    """Random numbers by functions that ``vmap`` knows, where torch's distributions fill a new tensor in place.

    ``Normal``, for one, draws by ``torch.empty(shape).normal_()``, which ``vmap`` refuses.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.exponential_) and len(args) == 1 and not kwargs:
            like: Any = {"dtype": args[0].dtype, "device": args[0].device}
            if func is torch.Tensor.normal_:
                return torch.randn(args[0].shape, **like)
            return -torch.log1p(-torch.rand(args[0].shape, **like))
        return func(*args, **(kwargs or {}))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A random state of its own, and no gradients."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        yield


@contextmanager
def quiet_redraws() -> Iterator[None]:
    """No warning of singular draws from a Wishart prior, which torch draws anew by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Singular sample detected")
        yield


def check_no_subsample(trace: Any) -> None:
    """All plates have to be full: a density over a part of the data is another one at each run.

    Raises:
        ModelError: naming the plate.
    """
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site_is_subsample(site):
            size, subsample = site["fn"].size, site["fn"].subsample_size
            if subsample is not None and subsample != size:
                raise ModelError(
                    f"Expected a model over all of its data; got plate {name!r} with {subsample} of {size}. Pass the "
                    "whole data, with no subsample_size."
                )
