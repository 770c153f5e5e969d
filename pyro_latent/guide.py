"""``AutoConjugate``: the posterior of coordinate ascent, as a Pyro autoguide.

The guide keeps the natural parameters of its blocks as buffers: they follow ``.to()``, appear in ``state_dict()``, and
no optimizer sees them. :class:`pyro_latent.CAVI` moves them; the guide itself only samples, describes and saves.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.distributions import transform_to

from .errors import DataError, ModelError
from .families import FAMILIES, JOINT_FAMILIES, Natural
from .families.point import Point
from .objective import (
    Block,
    BlockKey,
    DependentElements,
    Init,
    Means,
    Posteriors,
    Program,
    State,
    discrete_distribution,
    explain,
    fresh_blocks,
    initial_state,
    posteriors,
    quantile,
    responsibilities,
    shaped,
)
from .recording import DiscreteSite, Plate, Recording, Snapshot, record


class _Call:
    """The arguments of a recorded call, and what the model saw then, to tell whether it would see the same again."""

    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        self._snapshot = Snapshot(model, args, kwargs)

    @property
    def has_arguments(self) -> bool:
        return bool(self.args or self.kwargs)

    def matches(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call would see the same; within one run, which passes on the same dict, without looking."""
        return (args is self.args and kwargs is self.kwargs) or self._snapshot.matches(args, kwargs)


class Prepared(NamedTuple):
    """A call that has been recorded but not taken on: what it would make of the guide."""

    program: Program
    state: State
    starts: dict[str, Tensor]
    layout: dict[str, Any]
    origins: dict[str, Tensor]
    call: _Call


class ElboTerms(NamedTuple):
    """The terms of an ELBO, in nats.

    ``log_densities``: by site, E_q log p(site | its parents). ``entropies``: by block, the entropy of its factor; the
    discrete sites, whose posterior is joint, share one.
    """

    log_densities: dict[str, float]
    entropies: dict[BlockKey, float]

    @property
    def total(self) -> float:
        """Their sum, the ELBO."""
        return sum(self.log_densities.values()) + sum(self.entropies.values())


def _layout_of(program: Program) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What names a guide's buffers, in plain types, and the origins of its locations."""
    blocks = program.blocks.values()
    origins = {s.name: s.origin for s in program.recording.latents.values() if s.origin is not None}
    layout = {
        "blocks": [[s.name for s in b.sites] for b in blocks],
        "families": [b.family.name for b in blocks],
        "shapes": [[list(s.shape) for s in b.sites] for b in blocks],
        "statistics": [list(b.family.statistics) for b in blocks],
        "discrete": {s.name: s.cardinality for s in program.discrete},
        "origins": list(origins),
    }
    return layout, origins


class AutoConjugate(AutoGuide):
    """A guide whose factors are exponential families, found from the model, and fitted in closed form.

    It is the guide of :class:`pyro_latent.CAVI`, and an ordinary Pyro guide: for ``SVI`` with ``Trace_ELBO`` or
    ``TraceEnum_ELBO`` (which then scores it), ``Predictive``, and ``pyro.infer.importance``. Discrete sites are sampled
    from their exact joint posterior given the other blocks; inside an enumeration the sites that the model marks are
    left out.

    Args:
        model: a Pyro model.
        blocks: tuples of sites that share a joint factor, such as ``[("mean", "precision")]`` for a Normal-Gamma or
            Normal-Wishart. Every other site is a factor of its own (mean field).
        init: where to start. None: from the data where the model has clusters in it, else a draw from the prior, with
            seed 0; an integer: the same with that seed; a dict from site or block to a distribution, a location, or
            (discrete sites) responsibilities of shape ``plates + (values,)``; or a function of a site that returns one
            of these or None.
        restarts: the number of starts that are optimised at once; the best is kept.
        point: latent sites that get a point estimate, the mode of their coordinate optimum (MAP), as do sites with
            ``infer={"estimate": "point"}``. Their entropy is left out, so the ELBO is then a bound on log p(x, point).
            Every ``pyro.param`` of the model is a point estimate too, by maximum likelihood.
        mean_field: discrete sites whose elements are independent in the posterior. By default the joint posterior of
            all discrete sites is exact, given the continuous ones; where elements of one site meet (``z[i]`` against
            ``z[j]``) and their joint is not affordable, they become independent by themselves, with a warning.
        check: whether to run the model once more when it is first recorded, and again for data of another kind, with
            draws of the latents, and to compare the log density of every site with Pyro's own; it is left out where
            the distributions of a run hold more than four million numbers.

    Blocks in subsampled plates, those of which each observation has an element of its own, and those whose site has
    ``infer={"local": True}`` (the proportions of a document, say) belong to the data at hand: they are fitted anew to
    new data, and first in a sweep. The others are global, and stay. Where some observations share an element, and
    others another, new data of the same size may be of the same groups or of others: the model says which by
    ``infer={"local": True}`` or ``False``; data of another size is of others.

    Raises:
        ModelError, DataError, NotConjugateError: at the first call, which records the model.

    Source: mean-field coordinate ascent, Bishop (2006) §10.1; the updates are gradients, Hoffman et al. (2013) §2.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        blocks: Sequence[Sequence[str]] | None = None,
        init: Init = None,
        restarts: int = 1,
        point: Sequence[str] = (),
        mean_field: Sequence[str] = (),
        check: bool = True,
    ) -> None:
        if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 1:
            raise ValueError(f"Expected restarts to be an integer of at least 1; got {restarts!r}.")
        super().__init__(model)
        self._joint = _joint_blocks(blocks)
        self._init = init
        self.restarts = restarts
        self.point = tuple(point)
        self.mean_field = tuple(mean_field)
        self.check = check
        self._keys: tuple[BlockKey, ...] = ()
        self._layout: dict[str, Any] = {}
        self._program: Program | None = None
        self._call: _Call | None = None
        self._starts: dict[str, Tensor] = {}
        self._params_seen: dict[str, tuple[int, int]] = {}
        self._reading: tuple[Any, Prepared] | None = None
        self._best = 0
        self._revision = 0
        self._doubted = False
        self._is_loaded = False
        #: Whether q is q(β) q(z | β), the sites of a data plate given a draw of the others, as structured inference
        #: fits it; drivers set it.
        self.structured = False

    # State.

    @property
    def state(self) -> State:
        """The natural parameters by block, each with a leading dimension over starts."""
        self._require_state()
        return {
            key: Natural(**{n: getattr(self, f"natural_{i}_{n}") for n in self._layout["statistics"][i]})
            for i, key in enumerate(self._keys)
        }

    def _require_state(self) -> None:
        if not self._layout:
            raise ModelError(
                "Expected a guide that has seen data; got a new one. Call CAVI(model, guide).run(data), or "
                "guide(data), first."
            )

    def store(self, state: State) -> None:
        """Replace the natural parameters; called by drivers once a step has succeeded."""
        for i, key in enumerate(self._keys):
            for name, tensor in state[key].items():
                self.register_buffer(f"natural_{i}_{name}", tensor.detach())
        self._revision += 1
        self._starts = {}

    @property
    def revision(self) -> int:
        """A number that changes with the state."""
        return self._revision

    @property
    def has_program(self) -> bool:
        """Whether the model has been recorded since the guide was made or loaded."""
        return self._program is not None

    @property
    def pending_starts(self) -> dict[str, Tensor]:
        """Responsibilities ``[starts, plates..., values]`` that the first sweep begins at, until it is done."""
        return self._starts

    @property
    def best(self) -> int:
        """The start that the posterior is read from."""
        return self._best

    def keep_best(self, start: int) -> None:
        """Use one start for the posterior."""
        self._best = start

    def collapse(self, start: int) -> None:
        """Drop all starts but one."""
        self._best = 0
        self.store({key: n.map(lambda t: t[start : start + 1].clone()) for key, n in self.state.items()})

    @property
    def origins(self) -> dict[str, Tensor]:
        """By site, the constant that its location is measured from."""
        return {name: getattr(self, f"origin_{i}") for i, name in enumerate(self._layout.get("origins", []))}

    # Recording.

    def prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, predict: bool = False, rescale: bool = True
    ) -> Prepared:
        """What a call with these arguments works on: the model is recorded only if the call would see something new.

        Args:
            args, kwargs: the model's arguments.
            predict: False: the call fits the guide, which stays as it is until :meth:`commit`. True: the call reads its
                best start. A fitted guide stays as it is: new data is looked at with the globals as they are and the
                local blocks at their optimum. Without arguments the call is the last one.
            rescale: whether subsampled plates scale their sites to the size of the whole.

        Raises:
            ModelError: if latents, families or global shapes are not those of the fitted guide.
            DataError: if the data's dtype or device are not.
        """
        if predict:
            return self._predicted(args, kwargs)
        known, call = self._program, self._call
        if known is not None and call is not None and not self._doubted:
            same = known.recording.rescaled == rescale and not known.recording.redraws
            if same and call.matches(args, kwargs):
                return self._last(known, call, self._with_params(known, self.state))
        return self._recorded(args, kwargs, rescale)

    def _last(self, program: Program, call: _Call, state: State) -> Prepared:
        return Prepared(program, state, self._starts, self._layout, self.origins, call)

    def _predicted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Prepared:
        """What :meth:`prepare` gives a call that reads the posterior."""
        known, call = self._program, self._call
        if not args and not kwargs and known is None:
            self._require_state()
            raise ModelError(
                "Expected the model's arguments; got none, and the guide has not seen its data since it was loaded. "
                "Call guide(data) once."
            )
        if not args and not kwargs and known is not None and call is not None and call.has_arguments:
            found = self._last(known, call, self.state)
        elif known is None or call is None or (call.matches(args, kwargs) and not known.recording.is_subsample):
            found = self.prepare(args, kwargs)
            self.commit(found)
        else:
            found = self._looked_at(known, args, kwargs)
        program = found.program
        state = {key: n.map(lambda t: t[self._best : self._best + 1]) for key, n in found.state.items()}
        if self.structured:  # which has no local blocks of its own: they are at their optimum given the globals
            state = program.settled(state, [k for k in program.blocks if program.is_local(k)])
        return found._replace(state=state)

    def _looked_at(self, known: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Prepared:
        """Data that the guide is not fitted to, remembered for the next call."""
        now = (self._revision, _param_versions(known))
        if self._reading is None or self._reading[0] != now or not self._reading[1].call.matches(args, kwargs):
            self._reading = (now, self._recorded(args, kwargs, predict=True))
        found = self._reading[1]
        if found.program.recording.redraws:
            self._reading = None  # the next call sees another subsample
        return found

    def _recorded(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], rescale: bool = True, predict: bool = False
    ) -> Prepared:
        """A call that is recorded anew; a guide that is not fitted, or waits for its first sweep, starts anew."""
        known = self._program
        fitted = bool(self._layout) and (predict or not self._starts)
        sites = (
            [*(name for block in self._layout["blocks"] for name in block), *self._layout["discrete"]] if fitted else []
        )
        recording = record(
            self.model,
            *args,
            origins=self.origins if fitted else None,
            point=self.point,
            known=sites if fitted and predict else None,
            rescale=rescale,
            before=known.recording if known is not None and fitted and not predict else None,
            check=self.check and not predict,
            **kwargs,
        )
        unknown = [name for name in self.point if name not in recording.latents]
        if unknown and not predict:
            raise ModelError(
                f"Expected point to name continuous latent sites of {sorted(recording.latents)}; got {unknown}."
            )
        program = Program(recording, self._joint, self._mean_field_of(recording))
        call = _Call(self.model, args, kwargs)
        if fitted:
            state, layout = self._adopted(program, predict)
            return Prepared(program, self._with_params(program, state), {}, layout, self.origins, call)
        _warn_of_mean_field(program, self.mean_field)
        state, starts = initial_state(program, self._init, self.restarts)
        layout, origins = _layout_of(program)
        return Prepared(program, state, starts, layout, origins, call)

    def _mean_field_of(self, recording: Recording) -> list[str]:
        """The discrete sites to treat in mean field: those asked for, and, once fitted, those that are."""
        blocks = [name for block in self._layout.get("blocks", []) for name in block]
        found = [name for name in recording.discrete if name in blocks and name not in self.mean_field]
        return [*self.mean_field, *found]

    def doubt(self) -> None:
        """Have the next step record the model anew: drivers do so at the start of a run, for a model may read what no
        :class:`~pyro_latent.recording.Snapshot` sees.
        """
        self._doubted = True

    def commit(
        self, prepared: Prepared, state: State | None = None, starts: dict[str, Tensor] | None = None
    ) -> Program:
        """Take on a prepared call, and its program is returned.

        Drivers give the state that they have reached once a step has succeeded. Without one, the guide takes on what
        the recording made of its own, if that has changed.
        """
        program = prepared.program
        if state is None:
            if program is self._program and self._params_seen == _param_versions(program):
                return program
            state, starts = prepared.state, prepared.starts
        if program is not self._program:
            self._program, self._call, self._layout = program, prepared.call, prepared.layout
            self._keys = tuple(program.blocks)
            for i, origin in enumerate(prepared.origins.values()):
                self.register_buffer(f"origin_{i}", origin)
        self.store(state)
        self._doubted = False
        self._starts = starts or {}
        self._params_seen = _param_versions(program)
        return program

    def _with_params(self, program: Program, state: State) -> State:
        """The state with the parameters that somebody else (SVI, say) has changed in Pyro's store since the last
        call.
        """
        now = _param_versions(program)
        if self._is_loaded:  # what was loaded goes before what the store happens to hold
            self._is_loaded, self._params_seen = False, now
            return state
        store = pyro.get_param_store()
        for key, block in program.blocks.items():
            name = block.sites[0].name
            if block.is_param and name in now and now[name] != self._params_seen.get(name):
                value = store[name].detach().to(program.recording.like)
                state = state | {key: block.natural({"value": value.expand(len(state[key].x), *value.shape)})}
        return state

    def _adopted(self, program: Program, predict: bool) -> tuple[State, dict[str, Any]]:
        """The state for a new recording: globals are kept; blocks in a subsampled plate, or in a data plate whose size
        changed, start anew.
        """
        self._check_structure(program)
        state = self.state
        like = next(iter(next(iter(state.values())).values())) if state else program.recording.like
        if like.dtype != program.recording.dtype or like.device != program.recording.device:
            raise DataError(
                f"Expected data of {like.dtype} on {like.device}, as the guide was fitted; got "
                f"{program.recording.dtype} on "
                f"{program.recording.device}. Convert the data, or the guide with guide.to(...)."
            )
        shapes = [[list(s.shape) for s in b.sites] for b in program.blocks.values()]
        old_shapes = self._layout["shapes"]
        changed = [k for k, old, new in zip(self._keys, old_shapes, shapes, strict=True) if old != new]
        changed += [k for k in self._keys if program.in_subsample(k) and k not in changed]
        if changed:
            state = fresh_blocks(program, state, changed)
        if predict:
            local = [k for k in program.blocks if program.is_local(k) or k in changed]
            _check_told(program, [k for k in program.blocks if program.is_shared(k) and k not in local])
            state = program.settled(state, local)
        return state, {**self._layout, "shapes": shapes}

    def _check_structure(self, program: Program) -> None:
        blocks = list(program.blocks.values())
        found = {
            "latent sites and blocks": [[s.name for s in b.sites] for b in blocks],
            "families": [b.family.name for b in blocks],
            "discrete sites": {s.name: s.cardinality for s in program.discrete},
        }
        fitted = dict(zip(found, (self._layout[k] for k in ("blocks", "families", "discrete")), strict=True))
        for what, value in found.items():
            if value != fitted[what]:
                raise ModelError(
                    f"Expected the {what} of the fitted guide, {fitted[what]}; got {value}. Make a new guide for "
                    f"another model."
                )
        for block, old in zip(blocks, self._layout["shapes"], strict=True):
            new = [list(s.shape) for s in block.sites]
            if new != old and not program.is_local(block.key) and not program.is_shared(block.key):
                raise ModelError(
                    f"Expected the global block {block.label!r} of shape {old}, as the guide was fitted; got {new}. "
                    f"Make a new guide."
                )

    # Sampling.

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every latent site from the posterior, as Pyro sample statements."""
        if self._program is None:
            self.commit(self.prepare(args, kwargs))  # a model without arguments, too, is recorded by the first call
        found = self.prepare(args, kwargs, predict=True)
        program, state = found.program, found.state
        plates = _Plates(program)
        values = self._sample_sites(program, state, plates)
        if program.recording.hidden:  # missing data: drawn from the model, given everything else
            with poutine.block():
                given = poutine.trace(poutine.condition(self.model, data=values)).get_trace(*args, **kwargs)
            for name, used in program.recording.hidden.items():
                node: Any = given.nodes[name]
                with plates.within(used, node["scale"]):
                    values[name] = pyro.sample(name, _masked(node["fn"], node["mask"]))
        return values

    def _sample_sites(self, program: Program, state: State, plates: _Plates) -> dict[str, Tensor]:
        state = {key: n.map(lambda t: t[0]) for key, n in state.items()}
        values: dict[str, Tensor] = {}
        local = [k for k in program.blocks if self.structured and program.is_local(k)]
        for key, block in program.blocks.items():
            if not block.is_param and key not in local:
                self._sample_block(block, state[key], plates, values)
        means = program.means({k: n.map(lambda t: t.unsqueeze(0)) for k, n in state.items()})
        outer = torch.Size()
        if self.structured:
            outer = _draws_shape(program, values)
            state, means = _given(program, state, values, local, outer.numel())
            for key in local:
                nesting = _guide_nesting(program) - len(program.blocks[key].sites[0].batch_shape)
                lead = (*outer, *[1] * nesting) if outer else ()
                natural = Natural(**{n: t.reshape(*lead, *t.shape[1:]) for n, t in state[key].items()})
                self._sample_block(program.blocks[key], natural, plates, values)
        sites = [s for s in program.discrete if not (s.marked and _enumerating())]
        sites.sort(key=lambda s: len(s.plates))  # given those outside of a plate, its elements are independent
        if sites and _mean_field_elbo():
            raise ModelError(
                f"Expected a guide without discrete sites in TraceMeanField_ELBO; got {[s.name for s in sites]}. Use "
                f"TraceEnum_ELBO: "
                "mark the sites with infer={'enumerate': 'parallel'}."
            )
        if not sites:
            return values
        drawn: dict[str, Tensor] = {}
        for site in sites:
            found = self._discrete(program, means, site, drawn, outer)
            with plates.within(site.plates, site.scale):
                drawn[site.name] = pyro.sample(
                    site.name, _masked(found, program.seen(site)), infer={"is_auxiliary": False}
                )
        return values | drawn

    def _discrete(
        self, program: Program, means: Means, site: DiscreteSite, drawn: dict[str, Tensor], outer: torch.Size
    ) -> Any:
        """The distribution of a discrete site given those drawn before it."""
        nesting = _guide_nesting(program)
        turns = program.turns_of(site)
        if turns is None:
            probs = responsibilities(program, means, [site], drawn, nesting)[site.name]
            beside = outer or _draws_shape(program, drawn)
            return discrete_distribution(site, probs[0] if len(probs) == 1 else _beside_plates(probs, beside, program))
        before = dict(drawn)

        def conditional(values: Tensor, known: Tensor) -> Tensor:
            given = before | {site.name: values}
            return responsibilities(program, means, [site], given, nesting, {site.name: known})[site.name]

        depth = _draws_shape(program, drawn)
        batch = torch.Size((*depth, *[1] * (nesting - len(site.batch_shape)), *site.batch_shape))
        return DependentElements(site, conditional, turns, batch if depth else site.batch_shape)

    def _sample_block(self, block: Block, natural: Natural, plates: _Plates, values: dict[str, Tensor]) -> None:
        drawn: list[Tensor] = []
        for component, conditional in block.family.conditionals(block.params(natural)):
            site = block.sites[component]
            distribution = shaped(block, component, conditional(*drawn))
            with plates.within(site.plates, site.scale):
                value = pyro.sample(site.name, _masked(distribution, site.mask))
            drawn.append(value)
            values[site.name] = value

    # Summaries.

    def posterior(self, *args: Any, joint: bool = False, **kwargs: Any) -> dict[Any, Any]:
        """The posterior as Pyro distributions.

        Args:
            joint: False: by site, the marginals (a Student-t for the mean of a joint block, responsibilities for a
                discrete site); True: by block, its distribution, and the discrete sites'.
            args, kwargs: the model's arguments; left out, those of the last call.
        """
        prepared = self.prepare(args, kwargs, predict=True)
        program = prepared.program
        found: Posteriors = posteriors(program, prepared.state)
        blocks = [(key, block) for key, block in program.blocks.items() if not block.is_param]
        keys = [key for key, _ in blocks] if joint else [s.name for _, b in blocks for s in b.sites]
        return {key: found[key] for key in (*keys, *(s.name for s in program.discrete))}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """By site, the elementwise posterior median, of the site's shape."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    def quantiles(self, quantiles: Sequence[float], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """By site, elementwise posterior quantiles: the first dimension runs along ``quantiles`` (numbers in (0, 1)).

        They are exact, but for matrix-valued sites, where they come from 4,000 draws with a fixed seed.
        """
        if isinstance(quantiles, int | float):
            raise TypeError(f"Expected a list of quantiles, such as [{quantiles}]; got a number.")
        wrong = [q for q in quantiles if not 0 < q < 1]
        if wrong:
            raise ValueError(f"Expected quantiles in (0, 1); got {wrong}.")
        found = self.posterior(*args, **kwargs)
        return {name: torch.stack([quantile(d, float(q)) for q in quantiles]) for name, d in found.items()}

    def elbo(self, *args: Any, **kwargs: Any) -> float:
        """The exact ELBO, in nats, of the current posterior.

        Raises:
            DataError: if it is not finite.
        """
        prepared = self.prepare(args, kwargs, predict=True)
        program, state = prepared.program, prepared.state
        value = float(program.bound(state, program.means(state)).elbo)
        if not math.isfinite(value):
            raise DataError(
                f"Expected data whose ELBO is a number in {program.recording.dtype}; got {value}. Values as large as "
                "these overflow when they are squared: divide the data by their scale."
            )
        return value

    def elbo_terms(self, *args: Any, **kwargs: Any) -> ElboTerms:
        """The exact ELBO, site by site and block by block; its terms add up to :meth:`elbo`."""
        prepared = self.prepare(args, kwargs, predict=True)
        program, state = prepared.program, prepared.state
        held = program.eliminate(program.means(state))
        densities = {n: float(v) for n, v in program.expected_log_joint(state, held).items()}
        exact = program.exactly(state)
        entropies = {
            key: float(program.entropy_terms(*exact, [key])[0])
            for key, block in program.blocks.items()
            if not block.is_point
        }
        if held is not None:
            names = tuple(site.name for site in program.discrete)
            entropies[names[0] if len(names) == 1 else names] = float(held.entropy)
        return ElboTerms(densities, entropies)

    def explain(self, *args: Any, **kwargs: Any) -> str:
        """A table of the sites: family, block, and how each is updated, or why it is not."""
        if not args and not kwargs and self._program is not None:
            return explain(self._program.recording, self._joint, self.mean_field)
        return explain(record(self.model, *args, point=self.point, **kwargs), self._joint, self.mean_field)

    def params(self) -> dict[str, Tensor]:
        """By name, the current values of the model's parameters, constrained."""
        state = self.state
        params = [b for b in self._require_program().blocks.values() if b.is_param]
        return {b.sites[0].name: b.params(state[b.key])["value"][self._best] for b in params}

    def write_params(self) -> None:
        """Put the parameters into Pyro's store, as SVI leaves them; existing entries keep their identity."""
        store = pyro.get_param_store()
        values = self.params()
        for block in self._require_program().blocks.values():
            name = block.sites[0].name
            if not block.is_param:
                continue
            site = block.sites[0]
            if name not in store and site.module_value is None:
                store.setdefault(name, values[name].clone(), site.constraint)
                continue
            if name not in store:
                _register(name, site.module_value, site.constraint)
            with torch.no_grad():
                unconstrained = _unconstrained(name)
                inverse = transform_to(store._constraints[name]).inv
                unconstrained.copy_(inverse(values[name]).to(unconstrained))
        self._params_seen = _param_versions(self._require_program())

    def _require_program(self) -> Program:
        if self._program is None:
            raise ModelError("Expected a guide that has seen its data; got none. Call guide(data) once.")
        return self._program

    # Saving.

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> AutoConjugate:
        """What ``.to()``, ``.float()`` and ``.double()`` do; ``.half()`` and ``.bfloat16()`` are an error."""
        for buffer in self.buffers():
            _check_dtype(fn(buffer[:0] if buffer.ndim else buffer).dtype)
        moved: AutoConjugate = super()._apply(fn, *args, **kwargs)
        return moved

    def __getstate__(self) -> dict[str, Any]:
        """What a copy keeps: not the recorded programs, which are made anew at the next call."""
        return self.__dict__ | {"master": None, "_program": None, "_call": None, "_reading": None}

    def get_extra_state(self) -> dict[str, Any]:
        """What names the buffers, in plain types: safe under ``weights_only=True``."""
        return {"layout": self._layout, "best": self._best, "structured": self.structured}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take on a saved layout."""
        self._best, self.structured = state["best"], state.get("structured", False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        extra = state_dict.get(prefix + "_extra_state")
        if extra and extra["layout"]:
            layout = extra["layout"]
            _check_state(layout, {name[len(prefix) :]: t for name, t in state_dict.items() if name.startswith(prefix)})
            if self._layout and layout["blocks"] != self._layout["blocks"]:
                raise ModelError(
                    f"Expected a state of the blocks {self._layout['blocks']}; got one of {layout['blocks']}."
                )
            self._layout = {k: (v.copy() if hasattr(v, "copy") else v) for k, v in layout.items()}
            self._keys = tuple(b[0] if len(b) == 1 else tuple(b) for b in layout["blocks"])
            for name, tensor in state_dict.items():
                local = name[len(prefix) :]
                if name.startswith(prefix) and local.startswith(("natural_", "origin_")):
                    self.register_buffer(local, torch.empty_like(tensor))
            self._program = self._call = None
            self._starts = {}
            self._is_loaded = True
            self._revision += 1
        super()._load_from_state_dict(state_dict, prefix, *args)


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


def _check_told(program: Program, keys: Sequence[BlockKey]) -> None:
    """New data is read with globals as they are, and locals of its own.

    Raises:
        ModelError: naming the blocks that may be either.
    """
    if keys:
        labels = ", ".join(program.blocks[key].label for key in keys)
        raise ModelError(
            f"Expected to know whether {labels!r} stays as it is for new data; got a site that some observations share "
            'in a plate of theirs. Write infer={"local": False} at it if the new data has the same elements, as of '
            'features, and infer={"local": True} if it has others, as of new groups or items.'
        )


def _check_state(layout: dict[str, Any], tensors: dict[str, Any]) -> None:
    """A saved state is one of proper distributions.

    Raises:
        ModelError: naming the first block that is not.
    """
    families = {f.name: f for f in (*FAMILIES.values(), *JOINT_FAMILIES.values(), Point())}
    for i, names in enumerate(layout["blocks"]):
        family = families.get(layout["families"][i])
        fields = {n: tensors.get(f"natural_{i}_{n}") for n in layout["statistics"][i]}
        natural = Natural(**{n: t for n, t in fields.items() if isinstance(t, Tensor)})
        if len(natural) < len(fields):
            continue  # torch names what is missing
        _check_dtype(next(iter(natural.values())).dtype)
        proper = family is None or bool(family.in_domain(natural).all())
        if not proper or not all(bool(t.isfinite().all()) for t in natural.values()):
            raise ModelError(
                f"Expected a saved state of proper distributions; got natural parameters of {', '.join(names)!r} that "
                f"are not finite, or outside the domain of {layout['families'][i]}. Save the guide again, or fit it "
                "anew."
            )


def _check_dtype(dtype: torch.dtype) -> None:
    """The mathematics needs 24 bits.

    Raises:
        DataError: for half precision.
    """
    if dtype in (torch.float16, torch.bfloat16):
        raise DataError(f"Expected a guide in float32 or float64; got {dtype}. Write guide.float().")


def _joint_blocks(blocks: Sequence[Sequence[str]] | None) -> tuple[tuple[str, ...], ...]:
    found = []
    for block in blocks or ():
        if isinstance(block, str) or not all(isinstance(name, str) for name in block):
            raise TypeError(
                f"Expected blocks to be tuples of site names, such as [('mean', 'precision')]; got {block!r}."
            )
        if len(block) > 1:
            found.append(tuple(block))
    return tuple(found)


def _register(name: str, unconstrained: Any, constraint: Any) -> None:
    """Put a module's own tensor into Pyro's store, as a PyroModule does, so that both go on as one."""
    store = pyro.get_param_store()
    store._params[name], store._constraints[name] = unconstrained, constraint
    store._param_to_name[unconstrained] = name


def _unconstrained(name: str) -> Tensor:
    """The tensor that Pyro's store keeps for a parameter, and optimizers hold."""
    entry: Any = pyro.get_param_store()[name]
    unconstrained: Tensor = entry.unconstrained()
    return unconstrained


def _param_versions(program: Program) -> dict[str, tuple[int, int]]:
    """What tells whether an entry of Pyro's store has changed, for the program's parameters."""
    store = pyro.get_param_store()
    names = [b.sites[0].name for b in program.blocks.values() if b.is_param]
    found = {n: _unconstrained(n) for n in names if n in store}
    return {n: (id(t), t._version) for n, t in found.items()}


class _Plates:
    """The plates of a program, to sample within."""

    def __init__(self, program: Program) -> None:
        sites: list[Any] = [*(s for b in program.blocks.values() for s in b.sites), *program.discrete]
        unique = {p.name: p for s in sites for p in s.plates}
        unique |= {p.name: p for used in program.recording.hidden.values() for p in used}
        self._plates = {name: _plate(p) for name, p in unique.items()}
        self._rescaled = program.recording.rescaled

    @contextmanager
    def within(self, used: Sequence[Plate], scale: Tensor | float) -> Iterator[None]:
        """The plates of a site, and what its scale holds besides theirs."""
        with ExitStack() as stack:
            for plate in used:
                stack.enter_context(self._plates[plate.name])
            if self._rescaled:
                scale = scale / math.prod(p.full_size / p.size for p in used)
            if isinstance(scale, Tensor) or scale != 1:
                stack.enter_context(poutine.scale(scale=scale))
            yield


def _plate(plate: Plate) -> pyro.plate:
    if plate.is_subsample:
        size: Any = plate.full_size
        return pyro.plate(plate.name, size, subsample=plate.subsample, dim=plate.dim)
    return pyro.plate(plate.name, plate.size, dim=plate.dim)


def _guide_nesting(program: Program) -> int:
    """The depth of the plates that the guide itself has sites in."""
    sites: list[Any] = [*(s for b in program.blocks.values() for s in b.sites), *program.discrete]
    used = [p for s in sites for p in s.plates]
    used += [p for plates in program.recording.hidden.values() for p in plates]
    return max((-p.dim for p in used), default=0)


def _draws_shape(program: Program, values: dict[str, Tensor]) -> torch.Size:
    """The dimensions that values have to the left of all plates: particles."""
    nesting = _guide_nesting(program)
    outer = torch.Size()
    for name, value in values.items():
        event = program.recording.scored[name].event_dim
        batch = value.shape[: value.ndim - event]
        outer = max(outer, batch[: max(0, len(batch) - nesting)], key=len)
    return outer


def _given(
    program: Program, state: State, values: dict[str, Tensor], local: Sequence[BlockKey], draws: int
) -> tuple[State, Means]:
    """The local blocks at their optimum given draws of the others, and the mean parameters there: a start a draw."""
    spread = {key: n.map(lambda t: t.expand(draws, *t.shape)) for key, n in state.items()}
    means = program.means(spread)
    for key, block in program.blocks.items():
        if key in local or block.is_point:
            continue
        drawn = [values[site.name].reshape(-1, *site.shape) for site in block.sites]
        means[key] = block.statistics([d.expand(draws, *d.shape[1:]) for d in drawn])
    spread = program.settled(spread, local, means)
    return spread, means | {key: program.blocks[key].family.mean(spread[key]) for key in local}


def _masked(distribution: Any, mask: Tensor | None) -> Any:
    return distribution if mask is None else distribution.mask(mask)


def _beside_plates(probs: Tensor, outer: torch.Size, program: Program) -> Tensor:
    """Probabilities ``[draws, plates..., values]`` with the draws in the dimensions that particles have, left of all
    plates.
    """
    plates = probs.shape[1:-1]
    nesting = _guide_nesting(program)
    return probs.reshape(*outer, *[1] * (nesting - len(plates)), *plates, probs.shape[-1])


def _enumerating() -> bool:
    return any(isinstance(handler, EnumMessenger) for handler in _PYRO_STACK)


def _mean_field_elbo() -> bool:
    """Whether TraceMeanField_ELBO runs the guide: its own error would not say what to use instead."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "pyro.infer.trace_mean_field_elbo":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
