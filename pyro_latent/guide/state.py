"""What a guide keeps: natural parameters, the call that they belong to, and where its locations are measured from.

The tensors are buffers of the guide: they follow ``.to()``, appear in ``state_dict()``, and no optimizer sees them.
Drivers move them by :meth:`PosteriorState.commit`, once a step has succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoint import uninterrupted
from ..errors import DataError, ModelError
from ..families import Natural
from ..families.quadrature import Quadrature
from ..objective import Block, BlockKey, Program, State, block_of, fresh_blocks, of_data, padded, stored_blocks
from ..recording import Recording, Snapshot
from ..signatures import Args, Kwargs, Model, PlainState
from .param_store import changed_params, param_versions
from .rebinding import Binding
from .refusals import check_told


class RecordedCall:
    """The arguments of a recorded call, and what the model saw then, to tell whether it would see the same again."""

    def __init__(
        self,
        model: Model,
        args: Args,
        kwargs: Kwargs,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.args, self.kwargs = args, kwargs
        self._model = model
        self._snapshot = snapshot or Snapshot(model, args, kwargs)

    def of(self, args: Args, kwargs: Kwargs) -> RecordedCall:
        """A call of the same model with other arguments."""
        return RecordedCall(self._model, args, kwargs, self._snapshot.of(args, kwargs))

    def now(self) -> RecordedCall:
        """The same call of a model that has changed since."""
        return RecordedCall(self._model, self.args, self.kwargs)

    def is_of_same_model(self) -> bool:
        """Whether the model would see the same now, beside its arguments."""
        return self._snapshot.is_of_same_model()

    @property
    def is_of_moving(self) -> bool:
        """Whether the model holds what may be another one without a trace."""
        return self._snapshot.is_of_moving

    @property
    def has_arguments(self) -> bool:
        return bool(self.args or self.kwargs)

    def matches(self, args: Args, kwargs: Kwargs) -> bool:
        """Whether a call would see the same; within one run, which passes on the same dict, without looking."""
        return (args is self.args and kwargs is self.kwargs) or self._snapshot.matches(args, kwargs)


class Prepared(NamedTuple):
    """What a call works on; a guide takes it on by :meth:`PosteriorState.commit`.

    ``state``: the natural parameters ``[starts, ...]``. ``starts``: by discrete site, the responsibilities ``[starts,
    plates..., values]`` that the first sweep begins at, or labels ``[starts, plates...]``. ``origins``: by site, what
    its location is measured from. ``binding``: what the program was made of; None where it was recorded.
    """

    program: Program
    state: State
    starts: dict[str, Tensor]
    layout: dict[str, Any]
    origins: dict[str, Tensor]
    call: RecordedCall
    binding: Binding | None = None


class Fit(NamedTuple):
    """How far a guide was fitted.

    ``steps``: how many steps moved it; None of a guide from a file that does not say. ``elbo``: the ELBO that the last
    one ended at, in nats; None once something else has moved the guide since. ``is_exact``: whether that is exact, and
    not the estimate from a minibatch or by draws. ``converged``: what the last run says; None where none has ended.
    ``starts``: how many starts there were, of which the best is kept.
    """

    steps: int | None = 0
    elbo: float | None = None
    is_exact: bool = True
    converged: bool | None = None
    starts: int = 1

    def after(self, elbo: Sequence[float], is_exact: bool) -> Fit:
        """How far the guide is fitted after one more step, with the ELBO of each start."""
        return Fit((self.steps or 0) + 1, max(elbo), is_exact, None, max(len(elbo), self.starts))


class PosteriorState:
    """The natural parameters of a guide, and the recorded call that they were fitted to.

    Args:
        module: the guide, whose buffers they are.

    Attributes:
        program, call: the recorded model and what it was recorded with; None of a new or a loaded guide.
        starts: responsibilities ``[starts, plates..., values]`` that the first sweep begins at, or labels ``[starts,
            plates...]``, until it is done.
        best: the start that the posterior is read from.
        structured: whether q is q(β) q(z | β), the sites of a data plate given a draw of the others.
        fit: how far the guide was fitted.
        revision: a number that changes with the natural parameters.
        doubted: whether the next step records the model anew; drivers set it at the start of a run, for a model may
            read what no :class:`~pyro_latent.recording.Snapshot` sees.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.keys: tuple[BlockKey, ...] = ()
        self.layout: dict[str, Any] = {}
        self.program: Program | None = None
        self.call: RecordedCall | None = None
        self.starts: dict[str, Tensor] = {}
        self.best = 0
        self.structured = False
        self.fit = Fit()
        self.revision = 0
        self.doubted = False
        self._params_seen: dict[str, tuple[int, int]] = {}
        self._is_loaded = False

    @property
    def naturals(self) -> State:
        """The natural parameters by block, each with a leading dimension over starts."""
        self.require_data()
        return {
            key: Natural(**{n: getattr(self._module, f"natural_{i}_{n}") for n in self.layout["statistics"][i]})
            for i, key in enumerate(self.keys)
        }

    def require_data(self) -> None:
        """Raise where the guide is new.

        Raises:
            ModelError: saying what to call first.
        """
        if not self.layout:
            raise ModelError(
                "Expected a guide that has seen data; got a new one. Call CAVI(model, guide).run(data), or "
                "guide(data), first."
            )

    @property
    def origins(self) -> dict[str, Tensor]:
        """The constant that the location of each site is measured from."""
        return {name: getattr(self._module, f"origin_{i}") for i, name in enumerate(self.layout.get("origins", []))}

    @property
    def pairs(self) -> dict[BlockKey, list[int]]:
        """By joint normal block, the pairs of elements that its natural parameters are of."""
        return {
            k: pairs for k, pairs in zip(self.keys, self.layout.get("pairs", ()), strict=False) if pairs is not None
        }

    @property
    def blocks(self) -> dict[BlockKey, Block]:
        """The blocks: those of the recorded model, or, before a loaded guide has seen data, what its file tells."""
        if self.program is not None:
            return self.program.blocks
        found: dict[BlockKey, Block] = {}
        stored, pairs = self.layout.get("factors", ()), self.layout.get("pairs", ())
        for key, one, own in zip(self.keys, stored, pairs, strict=False):
            block = block_of(one, self.origins, own, next(iter(self.naturals[key].values())))
            found |= {} if block is None else {key: block}
        return found

    def is_local(self, key: BlockKey) -> bool:
        """Whether a block belongs to the data at hand, of the call that the guide was fitted to."""
        if self.program is not None:
            return self.program.is_local(key)
        stored = self.layout.get("factors")
        return bool(stored and stored[self.keys.index(key)]["local"])

    def of_new_data(self, program: Program) -> list[BlockKey]:
        """The blocks of which new data has elements of its own: those of its data or of the fit's, and those whose
        shapes it changes.
        """
        old_shapes = self.layout["shapes"]
        return [
            key
            for key, old in zip(self.keys, old_shapes, strict=True)
            if program.is_local(key) or self.is_local(key) or _shapes(program.blocks[key]) != old
        ]

    def store(self, state: State) -> None:
        """Replace the natural parameters."""
        for i, key in enumerate(self.keys):
            for name, tensor in state[key].items():
                self._module.register_buffer(f"natural_{i}_{name}", tensor.detach())
        self.revision += 1
        self.starts = {}
        self.fit = self.fit._replace(elbo=None, converged=None)

    def collapse(self, start: int) -> None:
        """Drop all starts but one."""
        kept, fit = {key: n.map(lambda t: t[start : start + 1].clone()) for key, n in self.naturals.items()}, self.fit
        with uninterrupted():
            self.best = 0
            self.store(kept)
            self.fit = fit

    def last(self) -> Prepared | None:
        """The last call as it stands, if there was one."""
        if self.program is None or self.call is None:
            return None
        return Prepared(self.program, self.naturals, self.starts, self.layout, self.origins, self.call)

    def commit(
        self,
        prepared: Prepared,
        state: State | None = None,
        *,
        best: int = 0,
        structured: bool = False,
        fit: Fit | None = None,
    ) -> Program:
        """Take on a prepared call; its program is returned.

        Args:
            prepared: the call.
            state, best, structured, fit: what a driver has reached by it, once a step has succeeded. Without a state,
                the guide takes on what the recording made of its own, if that has changed.
        """
        program = prepared.program
        if state is not None:
            self.best, self.structured = best, structured
        elif program is self.program and self._params_seen == param_versions(program):
            return program
        fit = fit or (self.fit if self.program is None else None)  # a loaded guide is shown its data
        with uninterrupted():
            if program is not self.program:
                self.program, self.call, self.layout = program, prepared.call, prepared.layout
                self.keys = tuple(program.blocks)
                for i, origin in enumerate(prepared.origins.values()):
                    self._module.register_buffer(f"origin_{i}", origin)
            self.store(prepared.state if state is None else state)
            self.starts = prepared.starts if state is None else {}
            self.fit = fit or self.fit
            self.doubted = False
            self._params_seen = param_versions(program)
        return program

    def adopted(self, program: Program, predict: bool) -> tuple[State, dict[str, Any]]:
        """The state for a new recording: globals are kept; blocks in a subsampled plate, or in a data plate whose size
        changed, start anew.
        """
        self._check_structure(program)
        state = self.naturals
        like = next(iter(next(iter(state.values())).values())) if state else program.recording.like
        if like.dtype != program.recording.dtype or like.device != program.recording.device:
            raise DataError(
                f"Expected data of {like.dtype} on {like.device}, as the guide was fitted; got "
                f"{program.recording.dtype} on {program.recording.device}. Convert the data, or the guide with "
                "guide.to(...)."
            )
        shapes = [_shapes(b) for b in program.blocks.values()]
        old_shapes = self.layout["shapes"]
        changed = [k for k, old, new in zip(self.keys, old_shapes, shapes, strict=True) if old != new]
        changed += [k for k in self.keys if program.in_subsample(k) and k not in changed]
        state = state | padded(program.blocks, {k: n for k, n in state.items() if k not in changed})
        if changed:
            state = fresh_blocks(program, state, changed)
        if predict:
            local = self.of_new_data(program)
            asked = [k for k in program.blocks if program.is_shared(k)]
            check_told(program, [k for k in asked if program.blocks[k].joint_normal or k not in local])
            state = program.settled(state, local)
        changes = {"shapes": shapes, "pairs": _pairs_of(program), "factors": stored_blocks(program)}
        return state, {**self.layout, **changes}

    def with_integrals(self, recording: Recording) -> Recording:
        """A recording whose scalars have factors by quadrature where the fit has, also where the densities that asked
        for them are of data that is not given.
        """
        latents = dict(recording.latents)
        for names, family in zip(self.layout["blocks"], self.layout["families"], strict=True):
            site = latents.get(names[0])
            if family == Quadrature.name and site is not None and site.is_scalar:
                why = f"{site.name} has a factor by quadrature"
                own = Quadrature(site.name, site.constraint, site.shape, why, recording.device)
                latents[site.name] = replace(site, family=own)
        return replace(recording, latents=latents)

    def _check_structure(self, program: Program) -> None:
        blocks = list(program.blocks.values())
        found = {
            "latent sites and blocks": [[s.name for s in b.sites] for b in blocks],
            "families": [b.family.name for b in blocks],
            "discrete sites": {s.name: s.cardinality for s in program.discrete},
        }
        fitted = dict(zip(found, (self.layout[k] for k in ("blocks", "families", "discrete")), strict=True))
        for what, value in found.items():
            if value != fitted[what]:
                raise ModelError(
                    f"Expected the {what} of the fitted guide, {fitted[what]}; got {value}. Make a new guide for "
                    "another model."
                )
        for block, old in zip(blocks, self.layout["shapes"], strict=True):
            new = _shapes(block)
            is_of_data = program.is_local(block.key) or program.is_shared(block.key) or self.is_local(block.key)
            if new != old and not is_of_data:
                raise ModelError(
                    f"Expected the global block {block.label!r} of shape {old}, as the guide was fitted; got {new}. "
                    'Make a new guide, or, if new data has others, as of new groups, write infer={"local": True} at it.'
                )

    # Pyro's store.

    def with_params(self, program: Program, state: State) -> State:
        """The state with the parameters that somebody else (SVI, say) has changed in Pyro's store since the last
        call.
        """
        if self._is_loaded:  # what was loaded goes before what the store happens to hold
            self._is_loaded, self._params_seen = False, param_versions(program)
            return state
        moved = self.moved_params(program) if program.params else {}
        for block in program.params:
            if (value := moved.get(block.sites[0].name)) is not None:
                values = value.to(program.recording.like).expand(len(state[block.key].x), *value.shape)
                state = state | {block.key: block.natural({"value": values})}
        return state

    def moved_params(self, program: Program) -> dict[str, Tensor]:
        """The parameters that somebody else has changed in Pyro's store since the last call."""
        return changed_params(program, self._params_seen)

    @property
    def params_moved(self) -> bool:
        """Whether somebody else has changed parameters in Pyro's store since the last call."""
        program = None if self._is_loaded else self.program
        return program is not None and self._params_seen != param_versions(program)

    def note_params(self, program: Program) -> None:
        """Take the parameters in Pyro's store for known: what changes from here on, somebody else has changed."""
        self._params_seen = param_versions(program)

    # Saving.

    def __getstate__(self) -> PlainState:
        """What a copy keeps: not the recorded program, which is made anew at the next call."""
        return self.__dict__ | {"program": None, "call": None}

    def receive(self, layout: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take on the layout of a saved state that was checked, and make its buffers, which torch fills."""
        self.layout = {k: (v.copy() if hasattr(v, "copy") else v) for k, v in layout.items()}
        self.keys = tuple(b[0] if len(b) == 1 else tuple(b) for b in layout["blocks"])
        for name, tensor in tensors.items():
            if name.startswith(("natural_", "origin_")):
                self._module.register_buffer(name, torch.empty_like(tensor))
        self.program = self.call = None
        self.starts = {}
        self._is_loaded = True
        self.revision += 1


def _shapes(block: Block) -> list[list[int]]:
    """Those of its sites."""
    return [list(site.shape) for site in block.sites]


def _pairs_of(program: Program) -> list[list[int] | None]:
    """By block, the pairs of elements of a joint normal that its natural parameters are of."""
    return [b.joint_normal.codes if b.joint_normal else None for b in program.blocks.values()]


def layout_of(program: Program) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What names a guide's buffers, in plain types, and the origins of its locations."""
    blocks = program.blocks.values()
    origins = {s.name: s.origin for s in program.recording.latents.values() if s.origin is not None}
    layout = {
        "blocks": [[s.name for s in b.sites] for b in blocks],
        "families": [b.family.name for b in blocks],
        "shapes": [_shapes(b) for b in blocks],
        "pairs": _pairs_of(program),
        "factors": stored_blocks(program),
        "statistics": [list(b.family.statistics) for b in blocks],
        "discrete": {s.name: s.cardinality for s in program.discrete},
        "of_data": of_data(program),
        "origins": list(origins),
    }
    return layout, origins


__all__ = ["Fit", "PosteriorState", "Prepared", "RecordedCall", "layout_of"]
