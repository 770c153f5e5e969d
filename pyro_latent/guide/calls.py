"""The calls of a guide: what each works on, and whether the model has to be recorded for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from ..errors import ModelError
from ..objective import AUTO, Init, Program, compile_program, initial_state, of_start
from ..recording import Recording, record
from ..signatures import Args, Kwargs, PlainState
from ..values import without_collecting
from .augmented import Augmented
from .param_store import param_versions
from .rebinding import Made, Rebinding
from .refusals import sites_of
from .state import PosteriorState, Prepared, RecordedCall, layout_of


class CalledGuide(Protocol):
    """What the calls of a guide read of it; see :class:`~pyro_latent.AutoConjugate`."""

    joint: tuple[tuple[str, ...], ...]
    init: Init
    restarts: int
    point: tuple[str, ...]
    mean_field: tuple[str, ...]
    check: bool
    augmented: Augmented
    posterior_state: PosteriorState

    @property
    def model(self) -> Callable[..., Any]: ...


class Calls:
    """What the calls of a guide work on: the model is recorded only if a call would see something new.

    Args:
        guide: the guide.
    """

    def __init__(self, guide: CalledGuide) -> None:
        self._guide = guide
        self._reading: tuple[Any, Prepared] | None = None
        self._rebinding = Rebinding()

    def __getstate__(self) -> PlainState:
        """What a copy keeps: not what was recorded, which is made anew at the next call."""
        return self.__dict__ | {"_reading": None, "_rebinding": Rebinding()}

    def fit(self, args: Args, kwargs: Kwargs, rescale: bool = True, redraws: bool = True) -> Prepared:
        """What a call works on that fits the guide.

        Args:
            args, kwargs: the model's arguments.
            rescale: whether subsampled plates scale their sites to the size of the whole.
            redraws: whether a plate that draws its subsample draws another one.
        """
        guide = self._guide
        with guide.augmented.advising(args, kwargs, guide.joint):
            return self._again(args, kwargs, rescale, redraws) or self._recorded(args, kwargs, rescale)

    def read(self, args: Args, kwargs: Kwargs) -> Prepared:
        """What a call works on that reads the best start of a guide, and leaves it; a bare call is the last one."""
        posterior, last = self._guide.posterior_state, self._guide.posterior_state.last()
        bare = not args and not kwargs
        if bare and last is None:
            posterior.require_data()
            raise ModelError(
                "Expected the model's arguments; got none, and the guide has not seen its data since it was loaded. "
                "Call guide(data) once."
            )
        if last is not None and bare and last.call.has_arguments:
            found = last
        elif last is None or (last.call.matches(args, kwargs) and not last.program.recording.is_subsample):
            found = self.fit(args, kwargs)
            posterior.commit(found)
        else:
            found = self._looked_at(last.program, args, kwargs)
        return self._at_best(found)

    def new(self, args: Args, kwargs: Kwargs) -> Prepared:
        """What a call works on that looks at new data, which is not taken for that of the fit, not even by a guide that
        was loaded.
        """
        posterior, last = self._guide.posterior_state, self._guide.posterior_state.last()
        posterior.require_data()
        if last is not None and last.call.matches(args, kwargs) and not last.program.recording.is_subsample:
            return self._at_best(self.fit(args, kwargs))
        if last is not None:
            return self._at_best(self._looked_at(last.program, args, kwargs))
        return self._at_best(self._recorded(args, kwargs, predict=True))

    def _at_best(self, found: Prepared) -> Prepared:
        """What a call works on, at the best start."""
        posterior = self._guide.posterior_state
        program, state = found.program, of_start(found.state, posterior.best)
        if posterior.structured:  # which has no local blocks of its own: they are at their optimum given the globals
            state = program.settled(state, [k for k in program.blocks if program.is_local(k)])
        return found._replace(state=state)

    def _again(self, args: Args, kwargs: Kwargs, rescale: bool = True, redraws: bool = True) -> Prepared | None:
        """The last call, with the parameters that Pyro's store has now; None for one that would see something new."""
        posterior, last = self._guide.posterior_state, self._guide.posterior_state.last()
        if last is None or posterior.doubted or (redraws and last.program.recording.redraws):
            return None
        if last.program.recording.rescaled != rescale or not last.call.matches(args, kwargs):
            return None
        return last._replace(state=posterior.with_params(last.program, last.state))

    def _looked_at(self, known: Program, args: Args, kwargs: Kwargs) -> Prepared:
        """Data that the guide is not fitted to, remembered for the next call."""
        now = (self._guide.posterior_state.revision, param_versions(known))
        if self._reading is None or self._reading[0] != now or not self._reading[1].call.matches(args, kwargs):
            self._reading = (now, self._again(args, kwargs) or self._recorded(args, kwargs, predict=True))
        found = self._reading[1]
        if found.program.recording.redraws:
            self._reading = None  # the next call sees another subsample
        return found

    @without_collecting()
    def _recorded(self, args: Args, kwargs: Kwargs, rescale: bool = True, predict: bool = False) -> Prepared:
        """A call that is recorded anew; a guide that is not fitted, or waits for its first sweep, starts anew."""
        guide, posterior = self._guide, self._guide.posterior_state
        fitted = bool(posterior.layout) and (predict or not posterior.starts)
        compiled = partial(self._compiled, args, kwargs, rescale, fitted, predict)
        if posterior.program is None or posterior.call is None or not fitted or predict:
            program, binding, call = compiled(), None, RecordedCall(guide.model, args, kwargs)
        else:
            (program, binding), call = self._rebound(posterior.call, args, kwargs, rescale, compiled)
        if fitted:
            state, layout = posterior.adopted(program, predict)
            state = posterior.with_params(program, state)
            return Prepared(program, state, {}, layout, posterior.origins, call, binding)
        _warn_of_mean_field(program, guide.mean_field)
        state, starts = initial_state(program, guide.init, guide.restarts)
        layout, origins = layout_of(program)
        return Prepared(program, state, starts, layout, origins, call)

    def _compiled(self, args: Args, kwargs: Kwargs, rescale: bool, fitted: bool, predict: bool) -> Program:
        """The program of a new recording under the blocks of the guide.

        Raises:
            ModelError: if ``point`` names no site.
        """
        guide, posterior = self._guide, self._guide.posterior_state
        before = posterior.program if fitted and not predict else None
        recording = record(
            guide.augmented.model,
            *args,
            origins=posterior.origins if fitted else None,
            point=guide.point,
            known=sites_of(posterior.layout) if fitted and predict else None,
            rescale=rescale,
            before=None if before is None else before.recording,
            check=guide.check and not predict,
            **kwargs,
        )
        unknown = [name for name in guide.point if name not in recording.latents]
        if unknown and not predict:
            raise ModelError(
                f"Expected point to name continuous latent sites of {sorted(recording.latents)}; got {unknown}."
            )
        if fitted and predict:
            recording = posterior.with_integrals(recording)
        restarts = 1 if predict else guide.restarts
        joint = self._joint_of(recording) if fitted else guide.joint
        return compile_program(recording, joint, self._mean_field_of(recording), restarts, posterior.pairs)

    def _joint_of(self, recording: Recording) -> tuple[tuple[str, ...], ...]:
        """The blocks that are asked for; of those that were found by themselves, the ones of the fit."""
        layout = self._guide.posterior_state.layout
        if self._guide.joint != AUTO:
            return self._guide.joint
        each = zip(layout["blocks"], layout["pairs"], strict=True)
        own = (tuple(names) for names, pairs in each if len(names) > 1 or pairs is not None)
        return tuple(names for names in own if recording.latents.keys() >= set(names))

    def _rebound(
        self,
        last: RecordedCall,
        args: Args,
        kwargs: Kwargs,
        rescale: bool,
        compiled: Callable[[], Program],
    ) -> tuple[Made, RecordedCall]:
        """The program of a call like the last one, which is recorded anew only where it has to be."""
        posterior = self._guide.posterior_state
        is_same = last.is_of_same_model() and not posterior.doubted
        if not is_same:
            self._rebinding.forget()
        call = last.of(args, kwargs) if is_same else RecordedCall(self._guide.model, args, kwargs)
        settings = (rescale, posterior.pairs, [id(origin) for origin in posterior.origins.values()])
        if call.is_of_moving:
            return (compiled(), None), call
        return self._rebinding.program(args, kwargs, settings, compiled, call.is_of_same_model), call

    def _mean_field_of(self, recording: Recording) -> list[str]:
        """The discrete sites to treat in mean field: those asked for, and, once fitted, those that are."""
        blocks = [name for block in self._guide.posterior_state.layout.get("blocks", []) for name in block]
        found = [name for name in recording.discrete if name in blocks and name not in self._guide.mean_field]
        return [*self._guide.mean_field, *found]


def _warn_of_mean_field(program: Program, asked: Sequence[str]) -> None:
    """Say once what is an approximation beyond the blocks."""
    names = [n for n in program.mean_field if n not in asked]
    if names:
        warnings.warn(
            f"The elements of the discrete sites {names} are independent in the posterior (mean field): "
            f"{program.mean_field[names[0]]}, more than is affordable. Write AutoConjugate(model, mean_field={names}) "
            "to ask for it.",
            stacklevel=2,
        )


__all__ = ["Calls"]
