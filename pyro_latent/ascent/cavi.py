r"""Coordinate ascent variational inference.

A sweep visits every block and sets it to its optimum given the others,

.. math:: η_b \leftarrow \frac{1}{s_b} \frac{\partial \bar L}{\partial μ_b},

then eliminates the discrete sites at the new blocks (``sweep.py``). The ELBO that this reports is exact, and never
falls (``docs/sources.md``, [4] equation (89); Bishop 2006, §10.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from os import PathLike
from typing import Any

import torch

from ..checkpoint import Run, fingerprint
from ..errors import ArgumentError, ArgumentTypeError, MissingFileError, ModelError, as_real, check_count
from ..guide import AutoConjugate
from ..objective import BlockKey, Program
from ..recording import check_arguments, identity_of_call
from ..values import leaving_random_state
from .batches import arguments_of, check_resumable, held_data, repeated
from .distributed import SharedSteps, join
from .distributed_batches import Delivery, agreed_length, delivered, given, own_random
from .loans import Own, first_lent, lent
from .options import check_guide, compile_sweeps, inverse_temperatures, settings_of, steps_for
from .progress import CAVIResult, Progress, check_callback, lacks_digits, naming_batches, recording, warn_of_annealing
from .ranks import Alone, Ranks
from .saving import content_of, read, restore
from .step_size import StepSize
from .steps import Schedule, Task
from .structured import structured_elbo
from .sweep import ModelArguments


class CAVI:
    """Coordinate ascent, with the face of ``pyro.infer.SVI``.

    Args:
        model: a Pyro model, with its handlers around it, as in ``poutine.scale(model, scale=0.5)``: a step hears none
            that it is called in.
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
        memoised: for exact inference on data in pieces of a plate: each keeps its summary, in a folder if given one.
        structured: for structured stochastic inference, q(β) q(z | β): the number of draws of the globals β at each
            step; 0 for mean field. It needs ``step_size``.
        annealing: a number of first sweeps, or their inverse temperatures in (0, 1], by default from 0.7 to 1. Such a
            sweep is exact for the model's densities to that power, in which optima are fewer; the ELBO that it reports
            is the model's own, which may fall until these sweeps are done, and never from there on.
        merges: whether moves between components follow each sweep: two of them become one, one is given up for the
            others, or they are put in order by their size, wherever that does not lower the ELBO. Components are the
            values of discrete sites that choose among elements of latents, ``mu[z]``: of mixtures, topics, states of a
            chain. There may be too many of them at the start: those that are not needed end empty.
        accelerate: whether sweeps begin where the last ones are going, where that does not lower the ELBO.
        process_group: processes of ``torch.distributed`` that fit the model together, such as ``group.WORLD``: each is
            given its shard of the data (with ``step_size`` a minibatch, with ``memoised`` a piece) in a plate that says
            how much there is in all; each ends with the same globals and ELBO. Local latents stay with their data.
        jit_compile: whether sweeps, and steps on minibatches, are compiled by ``torch.jit``: the same numbers, without
            Python between two operations. By default, those of few numbers are after a while; True: at once, with a
            warning where that cannot be.

    Example::

        guide = AutoConjugate(model)
        result = CAVI(model, guide).run(x, max_steps=500, tol=1e-8)

        svi = CAVI(model, guide, step_size=RobbinsMonro(delay=1, forgetting=0.7))
        svi.run_batches(DataLoader(TensorDataset(x), batch_size=100, shuffle=True), epochs=3, size=len(x))

    Source: coordinate ascent, Bishop (2006) §10.1; stochastic, Hoffman et al. (2013); memoised, Hughes and Sudderth
    (2013); structured, Hoffman and Blei (2015); annealing, Katahira, Watanabe and Okada (2008); merges, Hughes and
    Sudderth (2013), Hughes, Kim and Sudderth (2015); acceleration, Anderson (1965), Walker and Ni (2011).
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AutoConjugate,
        *more: Any,
        order: Sequence[str] | None = None,
        local_steps: int | None = None,
        local_tol: float | None = None,
        step_size: float | StepSize | None = None,
        memoised: bool | str | PathLike[str] = False,
        structured: int = 0,
        annealing: int | Sequence[float] = 0,
        merges: bool = False,
        accelerate: bool = False,
        process_group: Any = None,
        jit_compile: bool | None = None,
    ) -> None:
        check_guide(model, guide, more)
        self.model = model
        self.guide = guide
        self._schedule = Schedule.of(order, local_steps, local_tol)
        self.order, self.local_steps = self._schedule.order, self._schedule.local_steps
        self.local_tol = self._schedule.local_tol
        structured, temperatures = check_count("structured", structured, least=0), inverse_temperatures(annealing)
        self._ranks = Alone() if process_group is None else Ranks(process_group)
        self._steps = steps_for(step_size, memoised, structured, temperatures, merges, accelerate, self._ranks)
        compile_sweeps(self._steps, jit_compile)
        # Of the guide, after the last step; none where other processes have not been asked for theirs.
        self._revision = guide.posterior_state.revision if process_group is None else -1
        about = (step_size, memoised, structured, temperatures, merges, accelerate)
        self._settings = asdict(self._schedule) | settings_of(*about)

    @torch.inference_mode(False)
    def step(self, *args: Any, **kwargs: Any) -> float:
        """One sweep over all blocks; the exact −ELBO after it, in nats. On any error the guide is as it was.

        With ``step_size``, one step on the minibatch that the model is given or draws; an estimate of −ELBO at the
        globals before the step, which the minibatch has not seen.

        Raises:
            ModelError: if the data is not that of the step before, which the guide would then forget.
            NaturalDomainError: if an update left its family's domain.
            ElboDecreaseError: if the ELBO fell by more than rounding explains.
        """
        if not self._steps.takes_all:
            raise ModelError("Expected a named piece of data with memoised=True; got step. Use step_piece(name, ...).")
        return -max(self._step(lambda: (args, kwargs), is_alone=True))

    @torch.inference_mode(False)
    def step_piece(self, piece: int | str, *args: Any, **kwargs: Any) -> float:
        """Take one step on a piece of the data, with ``memoised=True``; return the exact −ELBO of all pieces so far.

        Args:
            piece: what the piece is known by, a number or a name; it must stand for the same data at each pass.
            args, kwargs: the model's arguments for that piece.
        """
        if not isinstance(piece, int | str):
            raise ArgumentTypeError(f"Expected a piece to be known by an integer or a string; got {piece!r}.")
        if self._steps.takes_all:
            raise ModelError("Expected CAVI(model, guide, memoised=True) for pieces of data; got another driver.")
        return -max(self._step(lambda: (args, kwargs), piece))

    def _step(self, give: Delivery, piece: int | str | None = None, is_alone: bool = False) -> list[float]:
        return self._ranks.hoped(lambda: self._stepped(self._ranks.agreed(give), piece, is_alone))

    @leaving_random_state()
    def _stepped(self, own: Own, piece: int | str | None, is_alone: bool) -> list[float]:
        """One step, which the guide takes on once it has succeeded; the ELBO by the number of each start."""
        arguments = self._join(own)
        posterior, steps = self.guide.posterior_state, self._steps
        if posterior.revision != self._revision or posterior.params_moved:
            steps.forget_level()
        prepare = partial(self.guide.prepare, rescale=steps.rescales, redraws=steps.redraws)
        found = self._ranks.agreed(lambda: prepare(*arguments))
        task = Task(found.program, arguments, found.state, found.starts, self._schedule, piece, is_alone, found.binding)
        try:
            state, info = steps.step(task)
        except KeyboardInterrupt:  # at any line: what it remembers may be of a state that the guide does not have
            steps.forget_level()
            raise
        fit = posterior.fit.after(info.elbo, steps.is_exact)
        posterior.commit(found, state, best=info.best, structured=steps.is_structured, fit=fit)
        self._revision = posterior.revision
        return info.elbo

    def _join(self, own: Own) -> ModelArguments:
        """Bring the guides of all processes to one state, where one of them has left it; the arguments to step on."""
        ranks, posterior, arguments = self._ranks, self.guide.posterior_state, lent(self._ranks, self.guide, own)
        if isinstance(ranks, Ranks) and ranks.any(posterior.revision != self._revision or posterior.params_moved):
            join(ranks, self.guide, arguments, self._schedule, self._settings, self._steps)
            self._steps.forget_level()
            self._revision = posterior.revision
        return arguments

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The exact −ELBO of the current posterior, without a step; with a ``process_group``, of all shards."""
        if not isinstance(self._steps, SharedSteps):
            return -self.guide.elbo(*args, **kwargs)
        arguments = self._join((args, kwargs))
        return -self._steps.evaluate(self.guide, arguments, self._schedule)[self.guide.posterior_state.best]

    @torch.inference_mode(False)
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
                The next sweep sees what it changes of what the model reads, or of parameters in Pyro's store.
            checkpoint: a file that the run is written to, and goes on from where it exists: a run that was killed ends
                where it would have ended.
            checkpoint_every: the number of sweeps between writes.

        Returns:
            The result. Ctrl-C ends the run after the last whole sweep and returns what was reached.

        Raises:
            CheckpointError: if the file is of another model, other data or other settings.
        """
        check_count("max_steps", max_steps)
        check_arguments(self.model, args, kwargs, type(self).run)
        if not self._steps.takes_all:
            raise ModelError("Expected pieces of data with memoised=True; got run. Use run_batches, or step_piece.")
        path = checkpoint if self._ranks.is_first else None
        file = self._ranks.agreed(lambda: self._file(path, checkpoint_every, {}))
        self.guide.posterior_state.doubted = True
        again = partial(repeated, anew=callback is not None)
        reached, converged = self._passes([(args, kwargs)], again, max_steps, tol, file, 1, progress, callback)
        if self.is_annealing:
            warn_of_annealing(max_steps)
        return self._result(reached, converged and not lacks_digits(self._steps, self.guide.state, reached, tol))

    @torch.inference_mode(False)
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
        if not self._steps.takes_batches:
            raise ModelError(
                "Expected a driver for batches; got one for all of the data. Write CAVI(model, guide, "
                "step_size=RobbinsMonro()) or CAVI(model, guide, memoised=True)."
            )
        length = agreed_length(batches, epochs, tol, checkpoint is not None, self._steps, self._ranks)
        if checkpoint is not None:
            check_resumable(batches, isinstance(self._ranks, Ranks))
        path, data = checkpoint if self._ranks.is_first else None, {"data": (length, held_data(batches), kwargs)}
        file = self._ranks.agreed(lambda: self._file(path, checkpoint_every, data))
        arguments = partial(arguments_of, shared=kwargs, model=self.model)
        end = self._passes(batches, arguments, epochs, tol, file, length, progress, callback, naming_batches)
        return self._result(*end)

    def _passes(
        self,
        batches: Iterable[Any],
        arguments: Callable[[Any], ModelArguments],
        passes: int,
        tol: float,
        file: Run,
        length: int | None,
        bar: bool,
        callback: Callable[[int, float], Any] | None,
        placed: Callable[[Progress], AbstractContextManager[Any]] = nullcontext,
    ) -> tuple[Progress, bool]:
        """Step on each batch in passes over them, until one settles; how far that came, and whether it has settled."""
        if not as_real(tol) >= 0:
            raise ArgumentError(f"Expected a tolerance of at least 0; got {tol!r}.")
        check_callback(callback)
        steps, progress = self._steps, Progress(resumes=file.path is not None)
        first = partial(first_lent, self._ranks, self.guide, batches, arguments)
        known = first() if self._ranks.any(file.path is not None) else ((), {})
        about: dict[str, Any] = {"point": self.guide.point, "rescale": steps.rescales}
        identify = partial(identity_of_call, self.guide.augmented.model, *known, **about)
        identity, held = self._ranks.agreed(lambda: read(file, identify))
        if (found := own_random(self._ranks.shared(held), self._ranks)) is not None:
            self._ranks.agreed(lambda: restore(self.guide, self._steps, found, progress))
            self._revision = self.guide.posterior_state.revision if isinstance(self._ranks, Alone) else -1

        def state() -> dict[str, Any]:
            return content_of(self.guide, steps) | progress.to_state() | {"identity": identity}

        converged = steps.can_settle and progress.has_settled(tol)
        total, bar = None if length is None else passes * length, bar and self._ranks.is_first
        callback = self._ranks.ending(callback)
        with recording(progress, lambda last: file.keep(len(progress), state, last), total, bar, callback) as record:
            while len(progress.ends) < passes and not converged:
                for number, batch in delivered(progress, batches, length, self._ranks):
                    with placed(progress):
                        elbo = self._step(partial(given, batch, arguments), number)
                    record(elbo)
                progress.end_pass()
                if progress.has_settled(tol):
                    converged = steps.can_settle
                    steps.settled()
        if len(progress) and self.guide.posterior_state.program is None:  # a finished run was loaded
            self.guide.posterior_state.commit(self.guide.prepare(*first()))
        return progress, converged

    @torch.inference_mode(False)
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
        elbo = structured_elbo(prepared.program, prepared.state, (args, kwargs), self._schedule, draws)
        return float(elbo.mean()), float(elbo.std() / math.sqrt(draws))

    @property
    def is_annealing(self) -> bool:
        """Whether the last sweep was at a temperature, so that its ELBO may have fallen."""
        return self._steps.is_annealing

    def sites(self, program: Program) -> list[BlockKey | None]:
        """The blocks in the order of their updates; None stands for the discrete sites."""
        return self._schedule.sites(program)

    # Saving.

    def _file(self, path: str | PathLike[str] | None, every: int = 1, data: Mapping[str, Any] | None = None) -> Run:
        """The file of a run with this data; without data, that of a driver, which knows no start."""
        start = {} if data is None else {"restarts": self.guide.restarts, "init": fingerprint(self.guide.init)}
        return Run(path, type(self).__name__, every=every, data=data or {}, settings=self._settings | start)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a checkpoint: the guide, what the driver remembers, and torch's random state; see :meth:`load`."""
        if path is None:
            raise ArgumentTypeError("Expected the path of a checkpoint; got None. Write cavi.save('run.pt').")
        self._file(path).write(0, lambda: content_of(self.guide, self._steps))

    @torch.inference_mode(False)
    def load(self, path: str | PathLike[str]) -> None:
        """Go on from a checkpoint that :meth:`save` or a run wrote.

        Raises:
            MissingFileError: if there is no such file.
            CheckpointError: if it is of another driver or of other settings.
            ModelError: if it is of another model.
        """
        found = own_random(self._file(path).read(), self._ranks)
        if found is None:
            raise MissingFileError(f"Expected a checkpoint in {str(path)!r}; got no such file.")
        restore(self.guide, self._steps, found)
        self._revision = self.guide.posterior_state.revision

    def _result(self, progress: Progress, converged: bool) -> CAVIResult:
        """The result of a run, after which the guide holds the best start alone."""
        values, posterior = progress.history, self.guide.posterior_state
        if not len(values):
            return CAVIResult(values[:, 0], False, 0, values[:, 0])
        best = self._steps.number_of(posterior.best)
        more = (self._steps.dropped, self.guide.augmented.names, self._steps.moves_of(best))
        if values.shape[1] > 1:
            self._steps.keep(posterior.best)
            posterior.collapse(posterior.best)
            self._revision = posterior.revision
        self.guide.write_params()
        posterior.fit = posterior.fit._replace(converged=converged)
        return CAVIResult(values[:, best].clone(), converged, len(values), values[-1].clone(), *more)


__all__ = ["CAVI", "CAVIResult"]
