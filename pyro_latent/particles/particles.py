"""Draws of a guide, many at once, with their log densities under the guide and under the model.

Discrete sites that the model marks for parallel enumeration and the guide leaves out are summed out, exactly, by Pyro's
tensor variable elimination.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..errors import ArgumentTypeError, ModelError
from ..signatures import Args, Model
from .runs import SCORING_WAYS, WAYS, ProgramRunner, PyroProgram, Values, Way, name_of
from .sites import TraceSite, is_delta, is_latent, max_nesting, sample_sites
from .target import LogJoint, Target


@dataclass(frozen=True)
class Draws:
    """Draws of a model's latents.

    Attributes:
        values: by latent site of the model, ``[S] + shape``.
        log_p: the log joint density of latents and data, ``[S]``, float64, in nats; discrete sites of ``summed`` are
            summed out.
        log_q: the guide's log density, ``[S]``, float64; None for MCMC, which has none.
        summed: the discrete sites that are summed out.
        chains: of how many chains the draws come, one after another.
    """

    values: Values
    log_p: Tensor
    log_q: Tensor | None
    summed: tuple[str, ...] = ()
    chains: int = 1

    @property
    def log_weights(self) -> Tensor:
        """log p − log q of each draw, ``[S]``, float64.

        Raises:
            ModelError: for MCMC.
        """
        if self.log_q is None:
            raise ModelError("Expected draws from a guide; got those of MCMC, which has no density. Use a guide.")
        return self.log_p - self.log_q


class Particles:
    """A model and its guide at given arguments, ready to draw and to score many particles.

    A latent site that the guide leaves out is summed out where the model marks it for enumeration, and else drawn from
    its own prior given the others.

    Args:
        model: a Pyro model.
        guide: a Pyro guide; None: the prior.
        args, kwargs: the arguments of both.
        vectorized: True: all draws in one run; False: one run for each draw; None: one run, if some draws then
            have the densities that they have alone.

    Raises:
        ModelError: if the model observes nothing or subsamples a plate, or if the guide has a site that the model
            lacks; with ``vectorized=True``, if draws have other densities alone.

    Attributes:
        target: the model.
        log_joint: log p(x, z) at given values of the latent sites, a :class:`LogJoint`.
    """

    def __init__(
        self,
        model: Model,
        guide: Callable[..., Any] | None,
        args: Args,
        kwargs: Mapping[str, object],
        vectorized: bool | None = None,
    ) -> None:
        if vectorized is not None and not isinstance(vectorized, bool):
            raise ArgumentTypeError(f"Expected vectorized to be True, False or None; got {vectorized!r}.")
        ways: Sequence[Way] | None = None if vectorized is None else ("plate",) if vectorized else ("loop",)
        self.target = Target.of(model, args, kwargs, inferred=False)
        self.target.check_observed()
        self.log_joint = LogJoint(self.target, ways or SCORING_WAYS, once=True)
        self._proposal = _complete(self.target, guide, ways)

    @torch.no_grad()
    def draw(self, num_samples: int) -> Draws:
        """``num_samples`` draws of the guide, scored.

        Raises:
            ModelError: if the guide draws a site at a point.
        """
        values, log_q = self._proposal.draw(num_samples)
        summed = tuple(n for n in self.target.latents if n not in values)
        log_p = self.log_joint(values, num_samples)
        return Draws(values, log_p, log_q.to(log_p.device), summed)


class Proposal:
    """A guide of a target, looked at by one run, ready to draw.

    Args:
        target: the model.
        guide: a Pyro guide with the model's arguments.
        wanted: the latents that it has to sample.
        name: how errors call it.
        ways, once: as of :class:`ProgramRunner`.

    Raises:
        ModelError: if its sites are not these.
    """

    def __init__(
        self,
        target: Target,
        guide: PyroProgram,
        wanted: Collection[str],
        name: str = "the guide",
        *,
        ways: Sequence[Way] | None = None,
        once: bool = False,
    ) -> None:
        call = target.call.with_program(guide)
        with torch.no_grad():
            trace = call.trace()
        sites = sample_sites(trace)
        check_sites(target, wanted, sites, name)
        deltas = frozenset(n for n, s in sites.items() if is_delta(s["fn"]))
        self._points = {n: sites[n]["value"] for n in wanted if n in deltas and not is_delta(target.sites[n]["fn"])}
        self._wanted, self._name = wanted, name
        nesting = max(target.nesting, max_nesting(trace))
        self._runner = ProgramRunner(call, nesting, ways or WAYS, fixed=deltas, once=once)

    def draw(self, num: int) -> tuple[Values, Tensor]:
        """Draws of the wanted latents, each ``[num] + shape``, and the guide's log density of each, float64 ``[num]``.

        Raises:
            ModelError: if some latents are the same in every draw.
        """
        found = self._runner({}, num)
        # Beside the value of the first run, so that a single draw is enough.
        check_density({n: torch.cat([one[None], found.values[n]]) for n, one in self._points.items()}, self._name)
        log_q = found.log_prob if found.log_probs else torch.zeros(num, dtype=torch.float64)
        return {n: found.values[n] for n in self._wanted}, log_q


def _complete(target: Target, guide: PyroProgram | None, ways: Sequence[Way] | None) -> Proposal:
    """A guide with all latents, but for marked ones that it leaves out."""
    name = name_of(guide)
    program = _nothing if guide is None else guide
    if guide is not None and getattr(guide, "leaves_out_marked", False):
        program = without_marked(guide, target)
    with torch.no_grad():
        found = sample_sites(target.call.with_program(program).trace())
    wanted = [n for n in target.latents if n in found or n not in target.marked]
    left = [n for n in wanted if n not in found]
    if left:
        program = _with_prior(program, target)
        _check_prior(target, program, left, name)
    return Proposal(target, program, wanted, name, ways=ways, once=True)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """A guide without sites."""


def _with_prior(guide: PyroProgram, target: Target) -> PyroProgram:
    """The guide, and then from the model's prior what it leaves out; sites to be summed out are enumerated there."""

    def is_hidden(msg: Mapping[str, object]) -> bool:
        return bool(msg["type"] != "sample" or msg["is_observed"] or msg["name"] in target.marked)

    def program(*args: Any, **kwargs: Any) -> None:
        with poutine.trace() as drawn:
            guide(*args, **kwargs)
        given = {n: s["value"] for n, s in sample_sites(drawn.trace).items()}
        model = poutine.condition(target.call.program, data=given)
        model = poutine.enum(model, first_available_dim=-2 - target.nesting)
        poutine.block(model, hide_fn=is_hidden)(*args, **kwargs)

    return program


def _check_prior(target: Target, program: PyroProgram, names: Collection[str], name: str) -> None:
    """Sites that are drawn from their prior must not depend on enumerated ones, whose dimensions they would have.

    Raises:
        ModelError: naming those that do.
    """
    with torch.no_grad():
        found = sample_sites(target.call.with_program(program).trace())
    mixed = [n for n in names if found[n]["value"].shape != target.shape(n)]
    if mixed:
        raise ModelError(
            f"Expected a guide that samples {mixed}, whose prior depends on sites that are summed out, "
            f"{list(target.marked)}; got one that leaves them out ({name}). Sample both in the guide."
        )


def without_marked(guide: PyroProgram, target: Target) -> PyroProgram:
    """The guide as it runs inside ``TraceEnum_ELBO``, without the sites that the model marks."""
    hidden = poutine.block(guide, hide=list(target.marked))
    return poutine.enum(hidden, first_available_dim=-2 - target.nesting)


def check_sites(target: Target, wanted: Collection[str], found: Mapping[str, TraceSite], name: str) -> None:
    """The guide has to sample every latent of the model, in its shape, and nothing else but auxiliary sites.

    Raises:
        ModelError: naming what differs.
    """
    missing = [n for n in wanted if n not in found]
    if missing:
        raise ModelError(
            f"Expected a guide that samples every latent site; got one that leaves out {missing} ({name}). A guide for "
            "TraceEnum_ELBO leaves them to enumeration: sample them in the guide, or use AutoConjugate; or it was "
            "made for another model."
        )
    extra = [
        n for n, s in found.items() if n not in target.latents and is_latent(s) and not s["infer"].get("is_auxiliary")
    ]
    if extra:
        raise ModelError(
            f"Expected the latent sites of the model, {sorted(wanted)}; got {extra} besides ({name}). Make the guide "
            "for this model, or mark sites of its own with infer={'is_auxiliary': True}."
        )
    for n in wanted:
        shape = found[n]["value"].shape
        if shape != target.shape(n):
            raise ModelError(
                f"Expected {n!r} of shape {list(target.shape(n))}, as the model has it for these arguments; got "
                f"{list(shape)} ({name}). Fit the guide to this model with this data."
            )


def check_density(points: Mapping[str, Tensor], name: str) -> None:
    """A proposal needs a density: the draws of a point estimate are all the same, and say nothing about its weight.

    Args:
        points: by site that a guide draws from a ``Delta``, its draws, ``[S] + shape``; of one draw nothing is said.
        name: how errors call the guide.

    Raises:
        ModelError: naming the sites whose draws are all the same.
    """
    fixed = [n for n in sorted(points) if len(points[n]) > 1 and bool((points[n] == points[n][:1]).all())]
    if fixed:
        raise ModelError(
            f"Expected a guide with a density; got a point at {fixed} ({name}): its draws are all the same there, so "
            "they have no weights p / q. Use AutoNormal in place of AutoDelta, leave out point=, or give what "
            "guide.laplace_approximation(*args) returns."
        )
