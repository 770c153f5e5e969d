"""Draws of a posterior as Pyro sample statements: blocks, discrete sites, missing data, within their plates."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from ..errors import ModelError, in_our_words
from ..families import Natural
from ..objective import (
    Block,
    BlockKey,
    DependentElements,
    Means,
    Program,
    State,
    Table,
    conditional_probabilities,
    discrete_distribution,
    responsibilities,
    shaped,
)
from ..recording import DiscreteSite, Plate
from ..signatures import Args, Kwargs, Model


class Sampler:
    """Draws of the latent sites of a program, in the particles that surround it.

    Args:
        program: the recorded model.
        state: the natural parameters of one start, ``[1, ...]``.
        structured: whether the local blocks are drawn given the draw of the others, q(β) q(z | β).
        local: which blocks are local, where others than those of the program are.
    """

    def __init__(
        self, program: Program, state: State, structured: bool, local: Collection[BlockKey] | None = None
    ) -> None:
        self.program, self.state = program, state
        local = program.local if local is None else local
        self._local = [k for k in program.blocks if structured and k in local]
        self._structured = structured
        sites: list[Any] = [*(s for b in program.blocks.values() for s in b.sites), *program.discrete]
        used = [*(p for s in sites for p in s.plates), *(p for held in program.recording.hidden.values() for p in held)]
        self._nesting = max((-p.dim for p in used), default=0)
        self._plates = {name: _plate(p) for name, p in {p.name: p for p in used}.items()}
        self.values: dict[str, Tensor] = {}

    def latents(self) -> dict[str, Tensor]:
        """Draw every latent, by site; inside an enumeration the sites that the model marks are left out."""
        program = self.program
        for key, block in program.blocks.items():
            if not block.is_param and key not in self._local:
                self._block(block, self.state[key].map(lambda t: t[0]))
        means = program.means(self.state)
        outer = torch.Size()
        if self._structured:
            outer = self._particles(self.values)
            state, means = self._given_globals(outer.numel())
            for key in self._local:
                own = 0 if program.blocks[key].joint_normal else len(program.blocks[key].sites[0].batch_shape)
                depth = self._nesting - own
                lead = (*outer, *[1] * depth) if outer else ()
                self._block(
                    program.blocks[key],
                    Natural(**{n: t.reshape((*lead, *t.shape[1:])) for n, t in state[key].items()}),
                )
        self._discrete_sites(means, outer)
        return self.values

    def missing(self, model: Model, args: Args, kwargs: Kwargs) -> None:
        """Draw the missing data, and what else no data depends on, from the model, given everything before it."""
        recording = self.program.recording
        nodes = nodes_given(model, self.values, args, kwargs, recording.hidden)
        for name, used in recording.hidden.items():
            node = nodes[name]
            with self._within(used, node["scale"]):
                self.values[name] = pyro.sample(name, _masked(node["fn"], node["mask"]))
            if name in recording.hidden_parents:
                nodes = nodes_given(model, self.values, args, kwargs, recording.hidden)

    def discrete(self, means: Means, draws: int) -> dict[str, Tensor]:
        """A draw of the discrete sites for each start of the mean parameters, by site ``[draws] + shape``."""
        self.values = {}
        self._discrete_sites(means, torch.Size([draws]))
        sites = self.program.recording.discrete
        return {n: v.reshape(draws, *sites[n].batch_shape, *sites[n].support.shape[1:]) for n, v in self.values.items()}

    def _block(self, block: Block, natural: Natural) -> None:
        drawn: list[Tensor] = []
        for component, conditional in block.family.conditionals(block.params(natural)):
            site = block.sites[component]
            distribution = shaped(block, component, conditional(*drawn))
            with self._within(site.plates, site.scale):
                value = pyro.sample(site.name, _masked(distribution, site.mask))
            drawn.append(value)
            self.values[site.name] = value

    def _given_globals(self, draws: int) -> tuple[State, Means]:
        """The local blocks at their optimum given draws of the others, and the mean parameters there, by draw."""
        program = self.program
        state = {key: n.map(lambda t: t[0].expand(draws, *t.shape[1:])) for key, n in self.state.items()}
        means = program.means(state)
        for key, block in program.blocks.items():
            if key in self._local or block.is_point:
                continue
            drawn = [self.values[site.name].reshape(-1, *site.shape) for site in block.sites]
            means[key] = block.statistics([d.expand(draws, *d.shape[1:]) for d in drawn])
        state = program.settled(state, self._local, means)
        return state, means | {key: program.blocks[key].family.mean(state[key]) for key in self._local}

    def _discrete_sites(self, means: Means, outer: torch.Size) -> None:
        """Draw each discrete site given those before it: a draw of their joint posterior."""
        marked = {s.name for s in self.program.discrete if s.marked} if _enumerating() else set[str]()
        sites = [s for s in self.program.discrete if s.name not in marked]
        if sites and _mean_field_elbo():
            raise ModelError(
                f"Expected a guide without discrete sites in TraceMeanField_ELBO; got {[s.name for s in sites]}. Use "
                "TraceEnum_ELBO: mark the sites with infer={'enumerate': 'parallel'}."
            )
        drawn: dict[str, Tensor] = {}
        beside = outer
        for site, table in self._in_turn(sites, means):
            turns = self.program.elimination.turns_of(site, drawn, marked)
            found = self._given_discrete(means, site, table, drawn, outer, beside, turns)
            with self._within(site.plates, site.scale):
                drawn[site.name] = pyro.sample(
                    site.name, _masked(found, self.program.elimination.seen(site)), infer={"is_auxiliary": False}
                )
            beside = outer or max(beside, self._particles({site.name: drawn[site.name]}), key=len)
        self.values |= drawn

    def _in_turn(self, sites: Sequence[DiscreteSite], means: Means) -> Iterator[tuple[DiscreteSite, Table | None]]:
        """The sites in an order in which they can be drawn, each with the table that it is drawn from given those
        before it, from one elimination of them all; None where there is no such table, for elements meet, or sites that
        hang together with it are not drawn.
        """
        program, names = self.program, {s.name for s in sites}
        tables: dict[str, Table] = {}
        for number, joint in enumerate(program.elimination.joints):
            if not joint.is_by_elements and {s.name for s in joint.sites} <= names:
                tables |= {str(t.variable): t for t in program.elimination.conditionals(number, means)}
        yield from ((program.recording.discrete[name], table) for name, table in tables.items())
        rest = [s for s in sites if s.name not in tables]
        rest.sort(key=lambda s: len(s.plates))  # given those outside of a plate, its elements are independent
        yield from ((site, None) for site in rest)

    def _given_discrete(
        self,
        means: Means,
        site: DiscreteSite,
        table: Table | None,
        drawn: dict[str, Tensor],
        outer: torch.Size,
        beside: torch.Size,
        turns: list[Tensor] | None,
    ) -> Any:
        """The distribution of a discrete site given those drawn before it, whose values have the dimensions ``beside``
        to the left of all plates; ``turns``: its elements that are drawn after one another.
        """
        program, nesting = self.program, self._nesting
        if turns is None:
            if table is None:
                probs = responsibilities(program, means, [site], drawn, nesting)[site.name]
            else:
                probs = conditional_probabilities(program, table, drawn, nesting)
            probs = probs.expand(outer.numel(), *probs.shape[1:]) if outer else probs
            return discrete_distribution(site, probs[0] if len(probs) == 1 else self._beside_plates(probs, beside))
        before = dict(drawn)

        def conditional(values: Tensor, known: Tensor) -> Tensor:
            given = before | {site.name: values}
            return responsibilities(program, means, [site], given, nesting, {site.name: known})[site.name]

        batch = torch.Size((*beside, *[1] * (nesting - len(site.batch_shape)), *site.batch_shape))
        return DependentElements(site, conditional, turns, batch if beside else site.batch_shape)

    def _particles(self, values: dict[str, Tensor]) -> torch.Size:
        """The dimensions that values have to the left of all plates."""
        outer = torch.Size()
        for name, value in values.items():
            event = self.program.recording.scored[name].event_dim
            batch = value.shape[: value.ndim - event]
            outer = max(outer, batch[: max(0, len(batch) - self._nesting)], key=len)
        return outer

    def _beside_plates(self, probs: Tensor, outer: torch.Size) -> Tensor:
        """Probabilities ``[draws, plates..., values]`` with the draws in the dimensions that particles have."""
        plates = probs.shape[1:-1]
        return probs.reshape(*outer, *[1] * (self._nesting - len(plates)), *plates, probs.shape[-1])

    @contextmanager
    def _within(self, used: Sequence[Plate], scale: Tensor | float) -> Iterator[None]:
        """The plates of a site, and what its scale holds besides theirs."""
        with ExitStack() as stack:
            for plate in used:
                stack.enter_context(self._plates[plate.name])
            if self.program.recording.rescaled:
                scale = scale / math.prod(p.full_size / p.size for p in used)
            if isinstance(scale, Tensor) or scale != 1:
                stack.enter_context(poutine.scale(scale=scale))
            yield


def nodes_given(
    model: Model,
    values: Mapping[str, Tensor],
    args: Args,
    kwargs: Kwargs,
    names: Collection[str],
) -> Any:
    """The sites of a model, of which some are asked for, that runs with given values of others, such as all but the
    missing data.
    """
    drawn = ", ".join(map(repr, names))
    words = f"a model that runs with the draws of several particles, for {drawn}, which no data depends on"
    with poutine.block(), in_our_words(words, lambda: "Write it for draws with more dimensions, or draw one by one."):
        return poutine.trace(poutine.condition(model, data=dict(values))).get_trace(*args, **kwargs).nodes


def _plate(plate: Plate) -> pyro.plate:
    if plate.is_subsample:
        size: Any = plate.full_size
        return pyro.plate(plate.name, size, subsample=plate.subsample, dim=plate.dim)
    return pyro.plate(plate.name, plate.size, dim=plate.dim)


def _masked(distribution: Any, mask: Tensor | None) -> Any:
    return distribution if mask is None else distribution.mask(mask)


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


__all__ = ["Sampler", "nodes_given"]
