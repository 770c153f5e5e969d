r"""Coordinate ascent variational inference.

A sweep visits every block and sets it to its optimum given the others,

.. math:: η_b \leftarrow \frac{1}{s_b} \frac{\partial \bar L}{\partial μ_b},

then eliminates the discrete sites at the new blocks. The ELBO that this reports is exact, and never falls
(``docs/sources.md``, [4] equation (89); Bishop 2006, §10.1).
"""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from tqdm.auto import tqdm

from ..checkpoint import fingerprint, random_state, read_checkpoint, restore_random_state, write_checkpoint
from ..errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    ElboDecreaseError,
    ModelError,
    NaturalDomainError,
    check_count,
)
from ..gradient.natural_gradient import draws_of
from ..guide import AutoConjugate
from ..objective import Block, BlockKey, Bound, Program, State
from .memoised import MemoisedSteps
from .place import Place
from .step_size import RobbinsMonro, StepSize, as_step_size
from .stochastic import LOCAL_STEPS, LOCAL_TOL, StochasticSteps, at_draws, settle, structured_elbo
from .sweep import Call, NotFiniteError, Sweep, check_finite, rounding_of


@dataclass(frozen=True)
class CAVIResult:
    """What :meth:`CAVI.run` reached.

    Attributes:
        elbo: the ELBO at the end of each sweep, in nats, as it was computed: 1-D, float64. It never falls by more than
            rounding, relative to the sum of its terms' absolute values (or to 1, if that is more): 1e-9 of it for data
            in float64, 1e-4 in float32. On minibatches it is an unbiased estimate at each step, and with
            ``memoised=True`` the exact ELBO of the pieces seen so far.
        converged: whether the last sweep (or pass over pieces) raised it by no more than the tolerance, and not only
            because float32 lacks the digits to raise it.
        num_steps: the number of steps.
        restarts: the last ELBO of every start; the best one is the guide's. It is −∞ for a start that was dropped.
        dropped: by the number of each start that was dropped, the error that its updates ended in, while others went
            on.
    """

    elbo: Tensor
    converged: bool
    num_steps: int
    restarts: Tensor
    dropped: Mapping[int, str] = field(default_factory=dict)


#: A run in float32 has not converged if one sweep in float64 raises its ELBO by more than this, or than the
#: tolerance if that is more, relative to the ELBO or to 1.
_LEAST_RISE = 1e-6


def _place(block: Block) -> tuple[bool, bool, bool, int, int]:
    """Where a block comes by default: parameters last, discrete sites before them, whose start the others then see,
    locations before all that hangs on them, and the block that its plates repeat most often first.

    A precision that moves while its location is still at a wide prior falls to that width, and a mixture's components
    lose the start that the data gave them.
    """
    return (block.is_param, block.is_discrete, not block.is_location, -block.count, -block.numel)


class _Memory(NamedTuple):
    """What the last step left for the next one, and for which recording and state it holds."""

    program: Program
    revision: int
    bound: Bound
    elbo: list[float]

    def of(self, starts: Sequence[int]) -> _Memory:
        """That of some starts alone."""
        return self._replace(bound=self.bound.of(starts), elbo=[self.elbo[i] for i in starts])


class _Task(NamedTuple):
    """What one sweep works on: the recorded call, where it starts, and what the last step left."""

    program: Program
    call: Call
    state: State
    probs: Mapping[str, Tensor]
    before: _Memory | None

    def of(self, starts: Sequence[int]) -> _Task:
        """That of some starts alone."""
        index = list(starts)
        state = {key: n.map(lambda t: t[index]) for key, n in self.state.items()}
        probs = {name: p[index] for name, p in self.probs.items()}
        return self._replace(state=state, probs=probs, before=None if self.before is None else self.before.of(index))


#: What the sweep of one start may end in while the others are right; a fall of the ELBO is no such thing.
_OF_ONE_START = (NaturalDomainError, NotFiniteError, torch.linalg.LinAlgError)


class CAVI:
    """Coordinate ascent, with the face of ``pyro.infer.SVI``.

    Args:
        model: a Pyro model.
        guide: an :class:`~pyro_latent.AutoConjugate` of that model.
        order: the sites in the order of their updates; a discrete site's name stands for the elimination of all
            discrete sites. By default locations come first, after the discrete sites, then scales, probabilities and
            the like; of either kind those in the largest plates first; parameters come last.
        local_steps: how often the blocks in the data's plates are updated, with the discrete sites, before the others;
            by default once, and on minibatches up to 100 times.
        local_tol: stop these early once no mean parameter of theirs changes by more than this; by default never, and
            on minibatches at 1e-3.
        step_size: for stochastic inference, where a plate of the model subsamples: a number in (0, 1],
            :class:`~pyro_latent.RobbinsMonro`, or a function of the step t = 0, 1, …. A step optimises the blocks of
            the minibatch, and moves the natural parameters of the others by this share of the way to their optimum.
        memoised: for exact inference on data in pieces: each piece, in a subsampled plate, keeps its summary.
        structured: for structured stochastic inference, q(β) q(z | β): the number of draws of the globals β at each
            step; 0 for mean field. It needs ``step_size``.

    Example::

        guide = AutoConjugate(model)
        result = CAVI(model, guide).run(x, max_steps=500, tol=1e-8)

        svi = CAVI(model, guide, step_size=RobbinsMonro(delay=1, forgetting=0.7))
        svi.run_batches(DataLoader(TensorDataset(x), batch_size=100, shuffle=True), epochs=3, size=len(x))

    Source: coordinate ascent, Bishop (2006) §10.1; stochastic, Hoffman et al. (2013); memoised, Hughes and Sudderth
    (2013); structured, Hoffman and Blei (2015).
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AutoConjugate,
        *,
        order: Sequence[str] | None = None,
        local_steps: int | None = None,
        local_tol: float | None = None,
        step_size: float | StepSize | None = None,
        memoised: bool = False,
        structured: int = 0,
    ) -> None:
        if not isinstance(guide, AutoConjugate):
            kind = "an autoguide for SVI" if isinstance(guide, AutoGuide) else type(guide).__name__
            raise ArgumentTypeError(
                f"Expected an AutoConjugate guide; got {kind}. Write CAVI(model, AutoConjugate(model))."
            )
        if guide.model is not model:
            raise ArgumentError(
                "Expected the guide of this model; got the guide of another. Write AutoConjugate(model)."
            )
        if local_steps is not None:
            local_steps = check_count("local_steps", local_steps)
        if local_tol is not None and not (isinstance(local_tol, int | float) and local_tol >= 0):
            raise ArgumentError(f"Expected local_tol to be None or a number of at least 0; got {local_tol!r}.")
        self.model = model
        self.guide = guide
        self.order = None if order is None else list(order)
        self.local_steps = local_steps
        self.local_tol = local_tol
        self._memory: _Memory | None = None
        self._seen: dict[str, tuple[Tensor, int]] = {}  # the data of the last call of step, with its versions
        self._living: list[int] = []  # the numbers of the starts that the guide holds
        self._dropped: dict[int, str] = {}
        self._steps = _steps(step_size, memoised, structured)
        self._settings = {
            "order": self.order,
            "local_steps": local_steps,
            "local_tol": local_tol,
            "step_size": None if step_size is None else _described(step_size),
            "memoised": memoised,
            "structured": structured,
        }

    # The face of SVI.

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One sweep over all blocks; the exact −ELBO after it, in nats. On any error the guide is as it was.

        With ``step_size``, one step on the minibatch that the model is given or draws; an estimate of −ELBO at the
        globals before the step, which the minibatch has not seen.

        Raises:
            ModelError: if the data is not that of the step before, which the guide would then forget.
            NaturalDomainError: if an update left its family's domain.
            ElboDecreaseError: if the ELBO fell by more than rounding explains.
        """
        return -max(self._step(args, kwargs, alone=True))

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
        checkpoint: str | PathLike[str] | None = None,
        checkpoint_every: int = 10,
        **kwargs: Any,
    ) -> CAVIResult:
        """Sweep until the ELBO rises by no more than ``tol · max(1, |ELBO|)``, for every start.

        With ``step_size`` the ELBO is an estimate, and ``max_steps`` steps are taken.

        Args:
            args, kwargs: the model's arguments.
            max_steps: the largest number of sweeps.
            tol: the relative tolerance; 0 never stops early.
            progress: whether to show a progress bar with the ELBO.
            callback: called after each sweep with the number of sweeps and the ELBO; if it returns True the run ends.
            checkpoint: a file that the run is written to, and goes on from where it exists: a run that was killed ends
                where it would have ended.
            checkpoint_every: the number of sweeps between writes.

        Returns:
            The result. Ctrl-C ends the run after the last whole sweep and returns what was reached.

        Raises:
            CheckpointError: if the file is of another model, other data or other settings.
        """
        check_count("max_steps", max_steps)
        _check_tolerance(tol)
        if isinstance(self._steps, MemoisedSteps):
            raise ModelError("Expected pieces of data with memoised=True; got run. Use run_batches, or step_piece.")
        exact = self._steps is None
        task = {} if checkpoint is None else {"data": fingerprint(args, kwargs)}
        place = Place(self, checkpoint, checkpoint_every, task)
        history = place.history
        converged = exact and _has_settled(history, tol)
        self.guide.posterior_state.doubted = True
        with _recording(place, max_steps, progress, callback) as record:
            while len(history) < max_steps and not converged:
                record(self._step(args, kwargs))
                converged = exact and _has_settled(history, tol)
        if history and self.guide.posterior_state.program is None:  # a finished run was loaded
            self.guide.posterior_state.commit(self.guide.prepare(args, kwargs))
        return self._result(history, converged and not self._lacks_digits(history[-1], tol))

    def _lacks_digits(self, elbo: list[float], tol: float) -> bool:
        """Whether a run in float32 has stopped because its updates are rounded, not because it is at an optimum."""
        memory = self._memory
        if memory is None or memory.program.recording.dtype == torch.float64:
            return False
        rise = float(memory.program.rise_unrounded(self.guide.state, memory.bound.held).max())
        if rise <= max(_LEAST_RISE, tol) * max(1.0, abs(max(elbo))):
            return False
        warnings.warn(
            "Expected float32 to have the digits for this fit; got an ELBO that one sweep in float64 raises by "
            f"{rise:.3g} nats, so it has not converged. Subtract the means of data and of columns of a design, and "
            "divide by their spread, or write x.double().",
            stacklevel=3,
        )
        return True

    def run_batches(
        self,
        batches: Iterable[Any],
        *,
        epochs: int = 1,
        tol: float = 1e-8,
        progress: bool = False,
        callback: Callable[[int, float], Any] | None = None,
        checkpoint: str | PathLike[str] | None = None,
        checkpoint_every: int = 10,
        **kwargs: Any,
    ) -> CAVIResult:
        """A step on each batch, in so many passes over them: stochastic with ``step_size``, exact with ``memoised``.

        Args:
            batches: something that can be iterated over again, such as a torch ``DataLoader``. Each batch is the
                model's positional arguments (a tuple or list), its keyword arguments (a mapping), or its only argument.
            epochs: the largest number of passes.
            tol: with ``memoised``, stop once a pass raises the ELBO by no more than ``tol · max(1, |ELBO|)``.
            progress, callback, checkpoint, checkpoint_every: as in :meth:`run`, counted in batches.
            kwargs: further keyword arguments of the model, the same for all batches, such as the size of the data.

        Returns:
            The result, with one ELBO for each step.

        Raises:
            ModelError: if the driver has neither ``step_size`` nor ``memoised=True``, or no plate says how much data
                there is in all.
            DataError: with ``memoised``, if the batches are not the same in each pass.
            CheckpointError: if the file is of another model, other data or other settings.
        """
        check_count("epochs", epochs)
        _check_tolerance(tol)
        if self._steps is None:
            raise ModelError(
                "Expected a driver for batches; got one for all of the data. Write CAVI(model, guide, "
                "step_size=RobbinsMonro()) or CAVI(model, guide, memoised=True)."
            )
        if isinstance(batches, Iterator):
            raise ArgumentTypeError(
                "Expected batches that can be iterated over again, such as a list or a DataLoader; got an iterator."
            )
        task = {} if checkpoint is None else {"data": [_data_of(batches), fingerprint(kwargs)]}
        place = Place(self, checkpoint, checkpoint_every, task)
        history, ends = place.history, place.ends
        converged = self._passed(history, ends, tol)
        length = _length(batches)
        total = None if length is None else epochs * length
        with _recording(place, total, progress, callback) as record:
            while len(ends) < epochs and not converged:
                for number, batch in place.rest(batches):
                    record(self._batch_step(number, *self._arguments(batch, kwargs)))
                if not history or (ends and ends[-1] == len(history)):
                    raise ModelError("Expected batches of data; got none. Give a list of batches or a DataLoader.")
                ends.append(len(history))
                converged = self._passed(history, ends, tol)
        if history and self.guide.posterior_state.program is None:
            args, kwargs = self._arguments(next(iter(batches)), kwargs)
            self.guide.posterior_state.commit(self.guide.prepare(args, kwargs))
        return self._result(history, converged)

    def step_piece(self, piece: int | str, *args: Any, **kwargs: Any) -> float:
        """With ``memoised=True``, one step on a piece of the data; the exact −ELBO of all pieces seen so far.

        Args:
            piece: what the piece is known by, a number or a name; it must stand for the same data at each pass.
            args, kwargs: the model's arguments for that piece.
        """
        if not isinstance(piece, int | str):
            raise ArgumentTypeError(f"Expected a piece to be known by an integer or a string; got {piece!r}.")
        if not isinstance(self._steps, MemoisedSteps):
            raise ModelError("Expected CAVI(model, guide, memoised=True) for pieces of data; got another driver.")
        return -max(self._steps.step(self, piece, Call(args, kwargs)))

    def _arguments(self, batch: Any, shared: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A batch, with what all batches share, as the model's positional and keyword arguments."""
        args: tuple[Any, ...] = ()
        kwargs = dict(shared)
        if isinstance(batch, Mapping):
            kwargs = dict(batch) | kwargs
        elif isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
            args = tuple(batch)
        else:
            args = (batch,)
        _check_arguments(self.model, args, kwargs)
        return args, kwargs

    def _batch_step(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[float]:
        if isinstance(self._steps, MemoisedSteps):
            return self._steps.step(self, number, Call(args, kwargs))
        return self._step(args, kwargs)

    def _passed(self, history: list[list[float]], ends: list[int], tol: float) -> bool:
        """Whether the last pass of memoised inference has settled; the first one adds pieces, and does not count."""
        if not isinstance(self._steps, MemoisedSteps) or len(ends) < 2:
            return False
        return _has_settled([history[ends[-2] - 1], history[ends[-1] - 1]], tol)

    def structured_elbo(self, *args: Any, draws: int = 1000, **kwargs: Any) -> tuple[float, float]:
        """The ELBO of q(β) q(z | β), in nats, and its standard error.

        The local blocks and discrete sites z are at their optimum given each draw of the globals β, so that for the
        same q(β) it is at least the mean-field ELBO. Unlike that it needs draws.

        Args:
            args, kwargs: the model's arguments.
            draws: the number of draws of β.
        """
        draws = check_count("draws", draws)
        prepared = self.guide.prepare(args, kwargs, predict=True)
        program, state = prepared.program, prepared.state
        local = [key for key in program.blocks if program.is_local(key)]
        values = {k: draws_of(b, state[k], draws) for k, b in program.blocks.items() if k not in local}
        drawn = at_draws(program, state, values, draws, Call(args, kwargs))
        settle(self, drawn, local, LOCAL_STEPS, LOCAL_TOL)
        elbo = structured_elbo(program, state, drawn, local)
        return float(elbo.mean()), float(elbo.std() / math.sqrt(draws))

    # Saving.

    def save(self, path: str | PathLike[str]) -> None:
        """Write a checkpoint: the guide, what the driver remembers, and torch's random state; see :meth:`load`."""
        write_checkpoint(path, type(self).__name__, self.content())

    def load(self, path: str | PathLike[str]) -> None:
        """Go on from a checkpoint that :meth:`save` or a run wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: if it is of another driver or of other settings.
            ModelError: if it is of another model.
        """
        self.restore(read_checkpoint(path, type(self).__name__))

    def content(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain types and tensors."""
        device = next((str(b.device) for b in self.guide.buffers()), "cpu")
        steps = None if self._steps is None else self._steps.to_state()
        return {
            "guide": self.guide.state_dict(),
            "device": device,
            "settings": self._settings,
            "steps": steps,
            "living": list(self._living),
            "dropped": list(self._dropped.items()),
            "random": random_state(),
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Take on the content of a checkpoint."""
        if content["settings"] != self._settings:
            raise CheckpointError(
                f"Expected a checkpoint of a driver with {self._settings}; got one with {content['settings']}."
            )
        self.guide.load_state_dict(content["guide"])
        device = torch.device(content["device"])
        if device.type == "cuda" and torch.cuda.is_available():
            self.guide.to(device)
        else:
            device = torch.device("cpu")
        if self._steps is not None:
            self._steps.load_state(content["steps"], device)
        restore_random_state(content["random"])
        self._memory = None
        self._living, self._dropped = list(content.get("living", ())), dict(content.get("dropped", ()))

    def _result(self, history: list[list[float]], converged: bool) -> CAVIResult:
        values = torch.tensor(history, dtype=torch.float64)
        if not history:
            return CAVIResult(torch.empty(0, dtype=torch.float64), False, 0, torch.empty(0, dtype=torch.float64))
        kept = self.guide.posterior_state.best
        best = self._living[kept] if self._living else kept
        dropped = dict(self._dropped)
        if values.shape[1] > 1:
            self._keep(kept)
        self.guide.write_params()
        return CAVIResult(values[:, best].clone(), converged, len(history), values[-1].clone(), dropped)

    def _keep(self, start: int) -> None:
        """Forget all starts but one, of those that the guide holds."""
        self.guide.posterior_state.collapse(start)
        self._memory = None
        self._living, self._dropped = [], {}
        if self._steps is not None:
            self._steps.keep(start)

    # One step.

    def _step(self, args: tuple[Any, ...], kwargs: dict[str, Any], alone: bool = False) -> list[float]:
        """One step; the ELBO of each start. ``alone``: not in a run, which says by itself what it is fitted to."""
        if isinstance(self._steps, MemoisedSteps):
            raise ModelError("Expected a named piece of data with memoised=True; got step. Use step_piece(name, ...).")
        if self._steps is not None:
            return self._steps.step(self, Call(args, kwargs))
        prepared = self.guide.prepare(args, kwargs)
        program = prepared.program
        check_whole(program)
        seen = _observed(program)
        if alone and not program.recording.declares_size:
            _check_same(self._seen, seen)
        before = self._memory
        if before is not None and before.revision != self.guide.posterior_state.revision:
            before = None
        if before is not None and before.program is not program:  # recorded anew: where the sweep starts from now
            bound = program.bound(prepared.state, program.means(prepared.state))
            before = _Memory(program, before.revision, bound, bound.elbo.tolist())
        task = _Task(program, Call(args, kwargs), prepared.state, prepared.starts, before)
        failures, (sweep, bound, elbo) = self._survivors(task)
        self.guide.posterior_state.commit(prepared, sweep.state, best=max(range(len(elbo)), key=elbo.__getitem__))
        self._seen = seen if alone else {}
        self._memory = _Memory(program, self.guide.posterior_state.revision, bound, elbo)
        return self._numbered(elbo, failures)

    def _swept(self, task: _Task) -> tuple[Sweep, Bound, list[float]]:
        """A sweep over every start, with the bounds that it reaches.

        Raises:
            NaturalDomainError, ElboDecreaseError: as :meth:`step`.
        """
        held = None if task.before is None else task.before.bound.held
        sweep = Sweep(task.program, task.state, task.call, held, task.probs)
        self._run(sweep)
        bound = sweep.bound()
        return sweep, bound, self._checked(sweep, bound, task.before, task.state)

    def _survivors(self, task: _Task) -> tuple[dict[int, str], tuple[Sweep, Bound, list[float]]]:
        """A sweep over the starts that it does not fail for, and the errors of the others."""
        try:
            return {}, self._swept(task)
        except _OF_ONE_START:
            failures: dict[int, str] = {}
            count = _count(task.state)
            for start in range(count if count > 1 else 0):
                try:
                    self._swept(task.of([start]))
                except _OF_ONE_START as error:
                    failures[start] = str(error)
            living = [start for start in range(count) if start not in failures]
            if not failures or not living:
                raise
        return failures, self._swept(task.of(living))

    def _numbered(self, elbo: list[float], failures: Mapping[int, str]) -> list[float]:
        """The ELBO by the number of each start, −∞ for those that were dropped, now or before."""
        living = self._living
        if len(living) != len(elbo) + len(failures):
            living, self._dropped = list(range(len(elbo) + len(failures))), {}
        self._dropped |= {living[i]: failures[i] for i in failures}
        self._living = [number for i, number in enumerate(living) if i not in failures]
        by_number = dict(zip(self._living, elbo, strict=True))
        return [by_number.get(i, -math.inf) for i in range(len(self._living) + len(self._dropped))]

    def _run(self, sweep: Sweep) -> None:
        """Visit every block once, after further rounds over the blocks in the data's plates."""
        order = self.sites(sweep.program)
        local = [key for key in order if key is not None and sweep.program.is_local(key)]
        sweep.rounds(local, (self.local_steps or 1) - 1, self.local_tol)
        for key in order:
            sweep.visit(key)

    def sites(self, program: Program) -> list[BlockKey | None]:
        """The blocks in the order of their updates; None stands for the discrete sites."""
        if self.order is None:
            return [block.key for block in sorted(program.blocks.values(), key=_place)]
        places = {s.name: block.key for block in program.blocks.values() for s in block.sites}
        unknown = [name for name in self.order if name not in places and name not in program.recording.discrete]
        missing = [name for name in places if name not in self.order]
        if unknown or missing:
            raise ModelError(
                f"Expected order to name every latent site of {sorted(places)}; got {self.order}, with "
                f"{unknown or 'none'} unknown and {missing or 'none'} missing."
            )
        return list(dict.fromkeys(places.get(n) for n in self.order))

    def _checked(self, sweep: Sweep, bound: Bound, before: _Memory | None, state: State) -> list[float]:
        """The ELBO of each start, if every update was proper and none lowered it; one transfer from the device.

        Raises:
            NaturalDomainError: naming the first block outside its domain.
            ElboDecreaseError: naming the block whose update lowered the ELBO.
        """
        values = sweep.check_proper([bound.elbo, bound.magnitude])
        elbo, magnitude = values[: len(bound.elbo)], values[len(bound.elbo) :]
        check_finite(elbo, sweep.program, sweep.means)
        if before is not None:
            slack = [rounding_of(m, sweep.program.recording.dtype) for m in magnitude]
            falls = [o - e for o, e, s in zip(before.elbo, elbo, slack, strict=True) if o - e > s]
            if falls:
                culprit = self._culprit(sweep, before, state)
                raise ElboDecreaseError(
                    f"Expected the ELBO not to fall; got a fall of {max(falls):.6g} nats, by the update of "
                    f"{_label_of(sweep.program, culprit)}. {_advice(sweep.program, culprit)} The guide is as before "
                    "the step."
                )
        return elbo

    def _culprit(self, sweep: Sweep, before: _Memory, state: State) -> BlockKey | None:
        """The block whose update lowers the ELBO most, one at a time; None for the discrete sites."""
        again = Sweep(sweep.program, state, sweep.call, before.bound.held)
        level = before.bound.elbo
        drops: dict[BlockKey | None, float] = {}
        for key in self.sites(sweep.program):
            again.visit(key)
            now = again.bound().elbo
            drops[key] = float((level - now).max())
            level = now
        return max(drops, key=drops.__getitem__)


def _label_of(program: Program, key: BlockKey | None) -> str:
    return "the discrete sites" if key is None else repr(program.blocks[key].label)


def _advice(program: Program, key: BlockKey | None) -> str:
    """What to do about an update that lowered the ELBO."""
    updates = [s.update for s in program.discrete] if key is None else [program.blocks[key].update]
    if any(update is not None for update in updates):
        return "It is hand-written: check_updates compares it with the derived one."
    wider = "" if program.recording.dtype == torch.float64 else ", or use float64"
    return (
        "It is derived, so digits were lost: data or columns of a design far from zero, beside their spread, cancel. "
        f"Subtract their means and divide by their standard deviations, mend outliers{wider}."
    )


def _steps(
    step_size: float | StepSize | None, memoised: bool, structured: int
) -> StochasticSteps | MemoisedSteps | None:
    if isinstance(structured, bool) or not isinstance(structured, int) or structured < 0:
        raise ArgumentError(f"Expected structured to be a number of draws, or 0; got {structured!r}.")
    if memoised and step_size is not None:
        raise ArgumentError("Expected step_size or memoised=True; got both. Memoised inference has no step size.")
    if structured and step_size is None:
        raise ArgumentError("Expected a step_size with structured inference; got none. Write step_size=RobbinsMonro().")
    if memoised:
        return MemoisedSteps()
    return None if step_size is None else StochasticSteps(as_step_size(step_size), structured)


def _described(step_size: float | StepSize) -> str:
    """What a step size is known by in a checkpoint: of a function, its first values and a few later ones."""
    if isinstance(step_size, int | float | RobbinsMonro):
        return repr(step_size)
    return repr([float(step_size(t)) for t in (*range(20), 100, 1_000, 10_000)])


def _count(state: State) -> int:
    """The number of starts."""
    return len(next(iter(next(iter(state.values())).values()))) if state else 1


def _observed(program: Program) -> dict[str, tuple[Tensor, int]]:
    """By observed site, its data and the version of it, which changes when it is written to."""
    return {name: (value, value._version) for name, value in program.recording.observations.items()}


def _check_same(before: Mapping[str, tuple[Tensor, int]], now: Mapping[str, tuple[Tensor, int]]) -> None:
    """The steps of one fit see the same data, for each of them forgets what it does not see.

    Raises:
        ModelError: if they do not.
    """
    other = [name for name in now if before and (name not in before or not _equal(before[name], now[name]))]
    if other:
        raise ModelError(
            "Expected the data of the last step, or a plate that says how much data there is in all; "
            f"got other data at {', '.join(map(repr, other))}, for which the guide would forget the last step's. "
            'For batches write pyro.plate("data", size, subsample_size=len(x)) and CAVI(model, guide, '
            "step_size=RobbinsMonro()) or CAVI(model, guide, memoised=True). To fit the guide to this data instead, "
            "use run, or a new CAVI(model, guide)."
        )


def _equal(before: tuple[Tensor, int], now: tuple[Tensor, int]) -> bool:
    (old, old_version), (new, version) = before, now
    if old is new:
        return old_version == version
    alike = old.shape == new.shape and old.dtype == new.dtype and old.device == new.device
    return old_version == old._version and alike and torch.equal(old, new)


def check_whole(program: Program) -> None:
    """Coordinate ascent sees all of the data at once.

    Raises:
        ModelError: if a plate holds a part of them.
    """
    part = next((p for s in program.recording.scored.values() for p in s.plates if p.is_subsample), None)
    if part is not None:
        raise ModelError(
            f"Expected plates over all of the data; got plate {part.name!r} with a subsample of {part.size} of "
            f"{part.full_size}. Leave out subsample_size, or write CAVI(model, guide, step_size=RobbinsMonro()) or "
            "CAVI(model, guide, memoised=True)."
        )


def _data_of(batches: Iterable[Any]) -> list[Any]:
    """What batches are known by in a checkpoint: their number, and their data as far as it is at hand."""
    dataset = getattr(batches, "dataset", batches)
    held = getattr(dataset, "tensors", dataset)
    plain = fingerprint(held) if isinstance(held, tuple | list) else [type(held).__name__]
    return [_length(batches), plain]


def _length(batches: Iterable[Any]) -> int | None:
    """The number of batches, or None where nobody knows, as for a DataLoader over a stream."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None


def _check_arguments(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A batch and what all batches share are the model's arguments.

    Raises:
        TypeError: if Python could not call the model with them.
    """
    try:
        signature = inspect.signature(model)
    except ValueError:  # of a program in C there is none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentTypeError(
            f"Expected batches, with the keyword arguments that they share, to be the model's arguments {signature}; "
            f"got a batch of {len(args)} with {sorted(kwargs) or 'no'} keywords: {error}. Give what all batches share "
            "by keyword, as in run_batches(batches, size=1000)."
        ) from None


@contextlib.contextmanager
def _recording(
    place: Place, total: int | None, progress: bool, callback: Callable[[int, float], Any] | None
) -> Iterator[Callable[[list[float]], None]]:
    """What takes down each step's ELBOs: in the history, the checkpoint, the bar, and for the callback.

    Ctrl-C, or a callback that returns True, ends the run there; the checkpoint is written at the end.
    """
    history = place.history
    with tqdm(total=total, initial=len(history), disable=not progress, desc="CAVI") as bar:

        def record(elbo: list[float]) -> None:
            history.append(elbo)
            place.write()
            bar.update()
            bar.set_postfix_str(f"ELBO {max(elbo):.6f}", refresh=False)
            if callback is not None and callback(len(history), max(elbo)) is True:
                raise _AskedToEnd

        with contextlib.suppress(KeyboardInterrupt, _AskedToEnd):
            yield record
    place.write(last=True)


class _AskedToEnd(Exception):
    """A callback ends a run."""


def _check_tolerance(tol: Any) -> None:
    if not (isinstance(tol, int | float) and tol >= 0):
        raise ArgumentError(f"Expected a tolerance of at least 0; got {tol!r}.")


def _has_settled(history: list[list[float]], tol: float) -> bool:
    return tol > 0 and len(history) > 1 and _settled(history[-2], history[-1], tol)


def _settled(before: list[float], after: list[float], tol: float) -> bool:
    """Whether no start rose by more than the tolerance; one that was dropped, at −∞, did not."""
    return all(a == -math.inf or a - b <= tol * max(1.0, abs(a)) for b, a in zip(before, after, strict=True))
