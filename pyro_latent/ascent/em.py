r"""Expectation maximisation, and its family.

The E-step sets q to the posterior of the latents at θ (exact for discrete and conjugate latents, else its mean-field
optimum: variational EM); the M-step raises Q(θ) = E_q log p(x, z | θ). Both are coordinate ascent on
F(q, θ) = Q(θ) + H(q) (``docs/sources.md``, [4] equations (11), (45)–(61); Neal and Hinton 1998).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from ..errors import ArgumentError, ModelError, check_count
from ..guide import AutoConjugate
from ..objective import BlockKey, DiscretePosterior, Init, Program, State
from ..signatures import Args, Kwargs, Model, PlainState
from .acceleration import AcceleratedSteps
from .cavi import CAVI
from .distributed import DistributedSteps
from .full import FullSteps, Level, Reached, check_whole
from .gradient_step import MakeOptimizer, Memory, described_optimizer, raise_q
from .m_step import M_STEP_PASSES, moved_from, points_of
from .options import compile_sweeps, inverse_temperatures
from .ranks import Alone, Ranks
from .steps import Info, Task
from .sweep import Sweep

_Groups: TypeAlias = Mapping[BlockKey, Collection[BlockKey]]

#: How the M-step raises Q.
MStep = Literal["closed_form", "conditional", "gradient"]


class _EStep(NamedTuple):
    """The discrete posterior that an M-step went by: as it was given, or exact at a state, from which it is computed
    anew when it is asked for. Only the state is kept: it is as large as the data times the values.
    """

    program: Program
    given: DiscretePosterior | None
    state: State | None
    inverse_temperature: float

    @classmethod
    def of(cls, sweep: Sweep) -> _EStep:
        """That of a sweep whose latents are up to date."""
        state = sweep.exact_at
        return cls(sweep.program, sweep.held if state is None else None, state, sweep.inverse_temperature)

    def posterior(self) -> DiscretePosterior | None:
        """The posterior, for each start; None where the model has no discrete sites."""
        if self.state is None or not self.program.discrete:
            return self.given
        return self.program.elimination.eliminate(self.program.means(self.state), self.inverse_temperature)

    def of_start(self, start: int) -> _EStep:
        """Keep one start alone."""
        given = None if self.given is None else self.given.of([start])
        state = self.state
        if state is not None:
            state = {key: natural.map(lambda t: t[[start]]) for key, natural in state.items()}
        return self._replace(given=given, state=state)


class EMSteps(FullSteps):
    """Sweeps of an E-step and an M-step; the arguments are those of :class:`EM`."""

    def __init__(
        self,
        m_step: MStep,
        optimizer: MakeOptimizer | None,
        gradient_steps: int,
        annealing: Sequence[float] = (),
    ) -> None:
        super().__init__(annealing)
        self.m_step = m_step
        self.optimizer = optimizer
        self.gradient_steps = gradient_steps
        #: The last E-step of a step that succeeded.
        self.last_e_step: _EStep | None = None
        # What the optimizer remembers after the last step that succeeded, and what the step in progress has of both.
        self._memory: Memory | None = None
        self._new_e_step: _EStep | None = None
        self._coupling: tuple[Program, _Groups, _Groups] | None = None
        self._new_memory: Memory | None = None

    def step(self, task: Task) -> tuple[State, Info]:
        found = super().step(task)
        self.last_e_step, self._memory = self._new_e_step, self._new_memory
        return found

    def to_state(self) -> PlainState:
        return super().to_state() | {"optimizer": None if self._memory is None else tuple(self._memory)}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        super().load_state(state, device)
        self._memory = None if state["optimizer"] is None else Memory(*state["optimizer"])

    @property
    def can_settle(self) -> bool:
        return super().can_settle and not (self._memory is not None and self._memory.is_back)

    def keep(self, start: int) -> None:
        super().keep(start)
        self._memory = None  # of all starts
        if self.last_e_step is not None:
            self.last_e_step = self.last_e_step.of_start(start)

    def _is_compilable(self, task: Task) -> bool:
        return self.m_step != "gradient" and super()._is_compilable(task)

    def _compiled(self, task: Task, before: Level) -> tuple[Reached, list[float], list[float]] | None:
        found = super()._compiled(task, before)
        if found is not None:
            self._new_e_step = _EStep(task.program, None, task.state, 1.0)  # whose order has latents first
        return found

    def sequence(self, task: Task) -> list[BlockKey | None]:
        """The latents, then the parameters."""
        blocks, order = task.program.blocks, task.schedule.sites(task.program)
        return sorted(order, key=lambda key: key is not None and blocks[key].is_point)

    def visit_all(self, sweep: Sweep, task: Task) -> None:
        """The E-step and the M-step."""
        points = points_of(task)
        for key in self._order:
            if key not in points:
                sweep.visit(key)
        self._new_e_step = _EStep.of(sweep)
        if self.m_step == "gradient":
            self._new_memory = raise_q(sweep, points, self.optimizer, self.gradient_steps, self._memory)
            return
        if self.m_step == "conditional":
            for key in points:
                sweep.visit(key)
            return
        self._joint_m_step(sweep, points)

    def _joint_m_step(self, sweep: Sweep, points: list[BlockKey]) -> None:
        """Visit each parameter, and again those that share a term with one that has moved since, until none moves.

        Parameters that Q is jointly quadratic in are visited together.
        """
        coupled, together = self._coupling_of(sweep, points)
        stale = list(points)
        for _ in range(M_STEP_PASSES * len(points)):
            if not stale:
                break
            group = list(together.get(stale[0], stale[:1]))
            before = {key: sweep.state[key].x for key in group if set(coupled[key]) - set(group)}
            best = sweep.program.joint_optimum(group, sweep.means, sweep.summands) if len(group) > 1 else {}
            if best is None:  # not one maximum: in turn, from here on
                together = {key: own for key, own in together.items() if key not in group}
                continue
            for key in group:
                sweep.set(key, best[key]) if best else sweep.visit(key)
            moved = moved_from(before, sweep)
            again = {other for key in moved for other in coupled[key] if other not in group}
            stale = [key for key in stale if key not in group]
            stale += [key for key in points if key in again and key not in stale]

    def _coupling_of(self, sweep: Sweep, points: list[BlockKey]) -> tuple[_Groups, _Groups]:
        """By parameter those that it shares a term with, and those that Q is jointly quadratic in; once for a model."""
        if self._coupling is None or self._coupling[0] is not sweep.program:
            coupled = _coupled(sweep, points)
            groups = sweep.program.quadratic_groups(points, coupled, sweep.summands)
            self._coupling = (sweep.program, coupled, groups)
        return self._coupling[1:]


class AcceleratedEMSteps(AcceleratedSteps, EMSteps):
    """Sweeps of an E-step and an M-step that begin at an extrapolated point."""


class EM(CAVI):
    """EM for a model with ``pyro.param`` sites, with the face of :class:`~pyro_latent.CAVI`.

    Latent sites with a point estimate (MAP) are maximised over with the parameters, their prior in Q.

    Args:
        model: a Pyro model with at least one ``pyro.param``, or latent site with a point estimate.
        guide: its guide; by default ``AutoConjugate(model, init=init, restarts=restarts)``.
        m_step: "closed_form": the joint maximum of Q, one parameter after another until none moves; "conditional": one
            pass over the parameters (ECM, (60)–(61)); "gradient": steps of an optimizer that never lower Q (generalised
            EM, (58)–(59)), for parameters without a closed form, such as the weights of a network.
        optimizer: for "gradient", makes a torch optimizer of a list of (unconstrained) parameters, each with a leading
            dimension over starts; by default L-BFGS with a strong Wolfe line search. It is made anew for each M-step
            and goes on from what the last one remembered, such as Adam's moments. Steps that would have lowered Q are
            taken back by halves, and the next ones have half the learning rate.
        gradient_steps: the number of its steps, or of L-BFGS iterations, in an M-step.
        init, restarts: as in :class:`~pyro_latent.AutoConjugate`. With neither, the parameters start at their values in
            Pyro's store, where it has them; with either, at the model's own where ``init`` does not name them.
        annealing: as in :class:`~pyro_latent.CAVI`; the E-step alone has a temperature (Ueda and Nakano 1998).
        accelerate: as in :class:`~pyro_latent.CAVI`, on the unconstrained parameters; not for m_step="gradient".
        process_group: as in :class:`~pyro_latent.CAVI`: E-steps on shards, one M-step on their sum, which has a closed
            form.
        jit_compile: as in :class:`~pyro_latent.CAVI`: a step of EM is one program of an E-step and an M-step; not for
            m_step="gradient".

    The parameters are written to Pyro's store once, at the end of :meth:`run`.

    Raises:
        ValueError: if ``m_step`` is none of these, or ``gradient_steps`` no integer of at least 1.
    """

    def __init__(
        self,
        model: Model,
        guide: AutoConjugate | None = None,
        *,
        m_step: MStep = "closed_form",
        optimizer: MakeOptimizer | None = None,
        gradient_steps: int = 20,
        init: Init = None,
        restarts: int = 1,
        annealing: int | Sequence[float] = 0,
        accelerate: bool = False,
        process_group: object = None,
        jit_compile: bool | None = None,
    ) -> None:
        if not isinstance(m_step, str) or m_step not in ("closed_form", "conditional", "gradient"):
            raise ArgumentError(f"Expected m_step to be 'closed_form', 'conditional' or 'gradient'; got {m_step!r}.")
        guide = AutoConjugate(model, init=init, restarts=restarts) if guide is None else guide
        super().__init__(model, guide, annealing=annealing, accelerate=accelerate, process_group=process_group)
        if accelerate and m_step == "gradient":
            raise ArgumentError(
                "Expected m_step='closed_form' or 'conditional' with accelerate=True; got 'gradient', whose optimizer "
                "goes on from its own last steps. Leave one of them out."
            )
        self._settings |= {
            "m_step": m_step,
            "gradient_steps": gradient_steps,
            "optimizer": described_optimizer(optimizer),
        }
        count = check_count("gradient_steps", gradient_steps)
        kind = AcceleratedEMSteps if accelerate else EMSteps
        self._em = kind(m_step, optimizer, count, inverse_temperatures(annealing))
        if isinstance(self._ranks, Alone):
            self._steps = self._em
        elif m_step == "gradient":
            raise ArgumentError("Expected an M-step in closed form with a process_group; got m_step='gradient'.")
        else:
            self._steps = DistributedSteps(self._ranks, "joint" if m_step == "closed_form" else "conditional")
        if jit_compile and m_step == "gradient":
            raise ArgumentError(
                "Expected jit_compile=True with an M-step in closed form; got m_step='gradient', whose optimizer runs "
                "in Python. Leave jit_compile=True out."
            )
        compile_sweeps(self._steps, jit_compile)

    @torch.inference_mode(False)
    def e_step(self, *args: Any, **kwargs: Any) -> None:
        """Set q to the posterior at the current parameters.

        It is exact for discrete latents and for one conjugate block; several blocks are visited once each.
        """
        self._check_one_process("e_step")
        program = self.guide.posterior_state.commit(self.guide.prepare(args, kwargs))
        check_whole(program)
        sweep = Sweep(program, self.guide.state, (args, kwargs), None, self.guide.posterior_state.starts)
        latent = [key for key in self._schedule.blocks(program) if not program.blocks[key].is_point]
        for key in latent:
            sweep.visit(key)
        if program.discrete and (latent or self.guide.posterior_state.starts):
            sweep.visit(None)
        if latent:
            self.guide.posterior_state.store(sweep.state)
        self._em.last_e_step = _EStep.of(sweep)

    @torch.inference_mode(False)
    def q_function(self, *args: Any, **kwargs: Any) -> float:
        """Q(θ) = E_q log p(x, z | θ), in nats, under the q of the last E-step."""
        program, held = self._last(args, kwargs)
        return self._free_energy(program, held) - float(
            program.entropy(self.guide.state, held)[self.guide.posterior_state.best]
        )

    @torch.inference_mode(False)
    def free_energy(self, *args: Any, **kwargs: Any) -> float:
        """F(q, θ) = Q(θ) + H(q), in nats: a lower bound on log p(x | θ), and equal to it right after an E-step."""
        program, held = self._last(args, kwargs)
        return self._free_energy(program, held)

    def _free_energy(self, program: Program, held: DiscretePosterior | None) -> float:
        state, means = self.guide.state, program.means(self.guide.state)
        bound = program.bound(state, means, program.elimination.at(means, held))
        return float(bound.elbo[self.guide.posterior_state.best])

    @torch.inference_mode(False)
    def log_likelihood(self, *args: Any, **kwargs: Any) -> float:
        """log p(x | θ), in nats, of a model whose latents are all discrete or points.

        Raises:
            ModelError: if a continuous latent has a posterior, for then only a bound is known.
        """
        self._check_one_process("log_likelihood")
        program = self.guide.posterior_state.commit(self.guide.prepare(args, kwargs))
        spread = [b.label for b in program.blocks.values() if not b.is_point]
        if spread:
            raise ModelError(f"Expected discrete latents only; got {spread}, for which evaluate_loss gives the bound.")
        return self.guide.elbo(*args, **kwargs)

    def _check_one_process(self, name: str) -> None:
        if isinstance(self._ranks, Ranks):
            raise ModelError(
                f"Expected one process for {name}; got a process_group. evaluate_loss gives the bound on all shards; "
                "the guide, which all processes have, may be given to EM(model, guide) without a group."
            )

    def _last(self, args: Args, kwargs: Kwargs) -> tuple[Program, DiscretePosterior | None]:
        self._check_one_process("q_function and free_energy")
        program = self.guide.posterior_state.commit(self.guide.prepare(args, kwargs))
        if self._em.last_e_step is None or self._em.last_e_step.program is not program:
            self.e_step(*args, **kwargs)
        assert self._em.last_e_step is not None
        return program, self._em.last_e_step.posterior()


def _coupled(sweep: Sweep, points: list[BlockKey]) -> dict[BlockKey, set[BlockKey]]:
    """Give by parameter those that it shares a term of Q with."""
    groups = {s.blocks & set(points) for s in (*sweep.program.summands, *sweep.summands)}
    return {key: {other for group in groups if key in group for other in group} - {key} for key in points}


__all__ = ["EM"]
