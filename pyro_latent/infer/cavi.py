r"""Coordinate ascent variational inference.

A sweep visits every block and sets it to its optimum given the others,

.. math:: η_b \leftarrow \frac{1}{s_b} \frac{\partial \bar L}{\partial μ_b},

then eliminates the discrete sites at the new blocks. The ELBO that this reports is exact, and never falls
(``docs/sources.md``, [4] equation (89); Bishop 2006, §10.1).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import ElboDecreaseError, ModelError, NaturalDomainError
from ..families import Natural
from ..guide import AutoConjugate
from ..objective import (
    Block,
    BlockKey,
    Bound,
    DiscreteSite,
    Held,
    Means,
    Posteriors,
    Program,
    State,
    Summand,
    natural_of,
    responsibilities,
)

#: A fall of the ELBO beyond this, relative to the sum of its terms' absolute values, is an error and not rounding.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(frozen=True)
class CAVIResult:
    """What :meth:`CAVI.run` reached.

    Attributes:
        elbo: the ELBO at the end of each sweep, in nats: 1-D, float64, never falling.
        converged: whether the last sweep raised it by no more than the tolerance.
        num_steps: the number of sweeps.
        restarts: the last ELBO of every start; the best one is the guide's.
    """

    elbo: Tensor
    converged: bool
    num_steps: int
    restarts: Tensor


class Call(NamedTuple):
    """The model's own arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Sweep:
    """One sweep in progress: the blocks so far, and the discrete posterior that they are updated against.

    ``held`` is that posterior where it is known already; ``probs`` where it was given by its probabilities.
    """

    def __init__(
        self,
        program: Program,
        state: State,
        call: Call,
        held: Held | None = None,
        probs: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.program = program
        self.state = state
        self.call = call
        self.means: Means = program.means(state)
        self.proper: dict[BlockKey, Tensor] = {}
        self.summands: list[Summand] = []
        self._probs: dict[str, Tensor] = {}
        self.held: Held | None = None
        self._stale = False  # whether a block has changed since the discrete posterior was held
        if program.discrete:
            self._hold(held, dict(probs or {}))

    @property
    def starts(self) -> int:
        """The number of starts that are swept at once."""
        return len(next(iter(next(iter(self.state.values())).values()))) if self.state else 1

    def _hold(self, held: Held | None, probs: dict[str, Tensor]) -> None:
        written = [s for s in self.program.discrete if s.update is not None and s.name not in probs]
        self._held_means = self.means
        self._stale = False
        self._probs = probs
        for site in written:
            _, update = site.update  # type: ignore[misc]
            values = [update(q, *self.call.args, **self.call.kwargs).probs for q in self._posteriors()]
            self._probs[site.name] = torch.stack(values).to(self.program.recording.like)
        if self._probs:
            held = self.program.hold({s.name: self.responsibilities(s) for s in self.program.discrete}, self.means)
        self.held = held or self.program.eliminate(self.means)
        self.summands = self.program.held_summands(self.held)

    def responsibilities(self, site: DiscreteSite) -> Tensor:
        """The held posterior of a discrete site, for each start."""
        if site.name not in self._probs:
            self._probs = responsibilities(self.program, self._held_means, self.program.discrete) | self._probs
        return self._probs[site.name]

    def visit(self, key: BlockKey | None) -> None:
        """Set a block to its optimum given the others; None stands for the discrete sites."""
        if key is None:
            if self._stale:
                self._hold(None, {})
            return
        block = self.program.blocks[key]
        self.set(key, self.updated(block))

    def set(self, key: BlockKey, natural: Natural) -> None:
        """Put a block at given natural parameters."""
        self._stale = True
        proper = self.program.in_domain(key, natural)
        self.proper[key] = proper & self.proper[key] if key in self.proper else proper
        self.state = self.state | {key: natural}
        self.means = self.program.updated(self.means, key, natural)

    def updated(self, block: Block) -> Natural:
        """The block's optimum: by its hand-written update if it has one, else derived."""
        if block.update is None:
            return self.program.optimum(block.key, self.means, self.summands)
        where, like = f"the update of {block.label!r}", self.program.recording.like
        _, update = block.update
        found = [
            natural_of(block, update(q, *self.call.args, **self.call.kwargs), where, like) for q in self._posteriors()
        ]
        return Natural(**{n: torch.stack([f[n] for f in found]) for n in block.family.statistics})

    def _posteriors(self) -> list[Posteriors]:
        """The current posteriors of every start, for hand-written updates."""
        probs = {
            s.name: self.responsibilities(s) for s in self.program.discrete if s.update is None or s.name in self._probs
        }
        params = {k: b.params(self.state[k]) for k, b in self.program.blocks.items()}
        return [
            Posteriors(
                self.program,
                {k: {n: t[i] for n, t in p.items()} for k, p in params.items()},
                {n: r[i] for n, r in probs.items()},
            )
            for i in range(self.starts)
        ]

    def bound(self) -> Bound:
        """The exact ELBO at the blocks so far."""
        return self.program.bound(self.state, self.means)


class _Memory(NamedTuple):
    """What the last step left for the next one, and for which recording and state it holds."""

    program: Program
    revision: int
    bound: Bound
    elbo: list[float]


class CAVI:
    """Coordinate ascent, with the face of ``pyro.infer.SVI``.

    Args:
        model: a Pyro model.
        guide: an :class:`~pyro_latent.AutoConjugate` of that model.
        order: the sites in the order of their updates; a discrete site's name stands for the elimination of all
            discrete sites. By default the blocks with the most elements come first, after the discrete sites;
            parameters come last.
        local_steps: how often the blocks in the data's plates are updated, with the discrete sites, before the others.
        local_tol: stop these early once no mean parameter of theirs changes by more than this.

    Example::

        guide = AutoConjugate(model)
        result = CAVI(model, guide).run(x, max_steps=500, tol=1e-8)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AutoConjugate,
        *,
        order: Sequence[str] | None = None,
        local_steps: int = 1,
        local_tol: float | None = None,
    ) -> None:
        if not isinstance(guide, AutoConjugate):
            kind = "an autoguide for SVI" if isinstance(guide, AutoGuide) else type(guide).__name__
            raise TypeError(f"Expected an AutoConjugate guide; got {kind}. Write CAVI(model, AutoConjugate(model)).")
        if guide.model is not model:
            raise ValueError("Expected the guide of this model; got the guide of another. Write AutoConjugate(model).")
        _check_count("local_steps", local_steps)
        if local_tol is not None and not (isinstance(local_tol, int | float) and local_tol >= 0):
            raise ValueError(f"Expected local_tol to be None or a number of at least 0; got {local_tol!r}.")
        self.model = model
        self.guide = guide
        self.order = None if order is None else list(order)
        self.local_steps = local_steps
        self.local_tol = local_tol
        self._memory: _Memory | None = None

    # The face of SVI.

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One sweep over all blocks; the exact −ELBO after it, in nats. On any error the guide is as it was.

        Raises:
            NaturalDomainError: if an update left its family's domain.
            ElboDecreaseError: if the ELBO fell by more than rounding explains.
        """
        return -max(self._step(args, kwargs))

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The exact −ELBO of the current posterior, without a step."""
        return -self.guide.elbo(*args, **kwargs)

    def run(
        self,
        *args: Any,
        max_steps: int = 1000,
        tol: float = 1e-8,
        progress: bool = False,
        callback: Callable[[int, float], Any] | None = None,
        **kwargs: Any,
    ) -> CAVIResult:
        """Sweep until the ELBO rises by no more than ``tol · max(1, |ELBO|)``, for every start.

        Args:
            args, kwargs: the model's arguments.
            max_steps: the largest number of sweeps.
            tol: the relative tolerance; 0 never stops early.
            progress: whether to show a progress bar with the ELBO.
            callback: called after each sweep with the number of sweeps and the ELBO.

        Returns:
            The result. Ctrl-C ends the run after the last whole sweep and returns what was reached.
        """
        _check_count("max_steps", max_steps)
        if not (isinstance(tol, int | float) and tol >= 0):
            raise ValueError(f"Expected a tolerance of at least 0; got {tol!r}.")
        history: list[list[float]] = []
        converged = False
        with tqdm(total=max_steps, disable=not progress, desc="CAVI") as bar, contextlib.suppress(KeyboardInterrupt):
            while len(history) < max_steps and not converged:
                history.append(self._step(args, kwargs))
                bar.update()
                bar.set_postfix_str(f"ELBO {max(history[-1]):.6f}", refresh=False)
                if callback is not None:
                    callback(len(history), max(history[-1]))
                converged = tol > 0 and len(history) > 1 and _settled(history[-2], history[-1], tol)
        return self._result(history, converged)

    def _result(self, history: list[list[float]], converged: bool) -> CAVIResult:
        values = torch.tensor(history, dtype=torch.float64)
        if not history:
            return CAVIResult(torch.empty(0, dtype=torch.float64), False, 0, torch.empty(0, dtype=torch.float64))
        best = int(values[-1].argmax())
        if values.shape[1] > 1:
            self.guide.collapse(best)
            self._memory = None
        self.guide.write_params()
        return CAVIResult(values[:, best].clone(), converged, len(history), values[-1].clone())

    # One step.

    def _step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[float]:
        prepared = self.guide.prepare(args, kwargs)
        program = prepared.program
        before = self._memory
        if before is not None and not (before.program is program and before.revision == self.guide.revision):
            before = None
        state, call = prepared.state, Call(args, kwargs)
        held = None if before is None else before.bound.held
        sweep = Sweep(program, state, call, held, prepared.starts)
        self._run(sweep)
        bound = sweep.bound()
        elbo = self._checked(sweep, bound, before, state)
        self.guide.commit(prepared, sweep.state)
        self.guide.keep_best(max(range(len(elbo)), key=elbo.__getitem__))
        self._memory = _Memory(program, self.guide.revision, bound, elbo)
        return elbo

    def _run(self, sweep: Sweep) -> None:
        """Visit every block once, after further rounds over the blocks in the data's plates."""
        order = self._order(sweep.program)
        local = [key for key in order if key is not None and sweep.program.is_local(key)]
        for _ in range(self.local_steps - 1 if local else 0):
            before = sweep.means
            for inner in local:
                sweep.visit(inner)
            if sweep.program.discrete:
                sweep.visit(None)
            if self.local_tol is not None and _change(before, sweep.means, local) <= self.local_tol:
                break
        for key in order:
            sweep.visit(key)

    def _order(self, program: Program) -> list[BlockKey | None]:
        """The blocks in the order of their updates; None stands for the discrete sites."""
        if self.order is None:
            largest = sorted(program.blocks.values(), key=lambda b: (b.is_param, -b.numel))
            return [block.key for block in largest]
        places = {s.name: block.key for block in program.blocks.values() for s in block.sites}
        unknown = [name for name in self.order if name not in places and name not in program.recording.discrete]
        missing = [name for name in places if name not in self.order]
        if unknown or missing:
            raise ModelError(
                f"Expected order to name every latent site of {sorted(places)}; got {self.order}, with "
                f"{unknown or 'none'} unknown "
                f"and {missing or 'none'} missing."
            )
        return list(dict.fromkeys(places.get(n) for n in self.order))

    def _checked(self, sweep: Sweep, bound: Bound, before: _Memory | None, state: State) -> list[float]:
        """The ELBO of each start, if every update was proper and none lowered it; one transfer from the device.

        Raises:
            NaturalDomainError: naming the first block outside its domain.
            ElboDecreaseError: naming the block whose update lowered the ELBO.
        """
        proper = [p.reshape(1).to(torch.float64) for p in sweep.proper.values()]
        values: list[float] = torch.cat([*proper, bound.elbo, bound.magnitude]).tolist()
        flags, elbo = values[: len(proper)], values[len(proper) : len(proper) + len(bound.elbo)]
        for key, flag in zip(sweep.proper, flags, strict=True):
            if not flag:
                block = sweep.program.blocks[key]
                raise NaturalDomainError(
                    f"Expected the update of {block.label!r} to be a proper {block.family.name}; got natural "
                    f"parameters outside its "
                    "domain. A prior may be improper, or the data too extreme for its precision: shift or scale the "
                    "data, or use "
                    "float64. The guide is as before the step."
                )
        if not all(math.isfinite(e) for e in elbo):
            raise ElboDecreaseError(f"Expected a finite ELBO; got {elbo}. The guide is as before the step.")
        if before is not None:
            slack = [ROUNDING[sweep.program.recording.dtype] * m for m in values[len(proper) + len(elbo) :]]
            falls = [o - e for o, e, s in zip(before.elbo, elbo, slack, strict=True) if o - e > s]
            if falls:
                raise ElboDecreaseError(
                    f"Expected the ELBO not to fall; got a fall of {max(falls):.6g} nats, by the update of "
                    f"{self._culprit(sweep, before, state)}. If that update is hand-written, check_updates compares "
                    f"it with the "
                    "derived one. The guide is as before the step."
                )
        return elbo

    def _culprit(self, sweep: Sweep, before: _Memory, state: State) -> str:
        """The block whose update lowers the ELBO most, one at a time."""
        again = Sweep(sweep.program, state, sweep.call, before.bound.held)
        level = before.bound.elbo
        drops: dict[str, float] = {}
        for key in self._order(sweep.program):
            again.visit(key)
            now = again.bound().elbo
            drops["the discrete sites" if key is None else repr(sweep.program.blocks[key].label)] = float(
                (level - now).max()
            )
            level = now
        return max(drops, key=drops.__getitem__)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"Expected {name} to be an integer of at least 1; got {value!r}.")


def _settled(before: list[float], after: list[float], tol: float) -> bool:
    return all(a - b <= tol * max(1.0, abs(a)) for b, a in zip(before, after, strict=True))


def _change(before: Means, after: Means, keys: Sequence[BlockKey]) -> float:
    """The largest absolute change of a mean parameter."""
    changes = [(after[k][n] - before[k][n]).abs().max() for k in keys for n in after[k]]
    return float(torch.stack(changes).max())
