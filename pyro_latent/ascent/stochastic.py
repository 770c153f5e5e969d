r"""Stochastic variational inference: coordinate ascent on minibatches.

The blocks of the minibatch go to their optimum given the globals; each global block takes a natural-gradient step
towards the optimum that the minibatch, scaled to the size of the whole, gives it:

.. math:: η_b \leftarrow (1 - ρ_t) η_b + ρ_t \frac{\partial \bar L}{\partial μ_b}

(``docs/sources.md``, [4] §2.6; Hoffman et al. 2013). Parameters and MAP sites have no natural parameters; for them the
summaries of the minibatches are averaged with the same weights, and maximised (online EM, Cappé and Moulines 2009).

Structured (Hoffman and Blei 2015): the blocks of the minibatch, and what they tell the globals, are computed at draws
of the globals instead of at their mean parameters, and averaged over the draws. Then q is q(β) q(z | β).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoint import fingerprint
from ..errors import ArgumentError, ModelError
from ..families import Natural
from ..gradient.natural_gradient import BlockDraws, covariance_term, draws_of
from ..guide import Prepared
from ..objective import Block, BlockKey, Means, Program, State, Summand, Summary, summarize
from .step_size import StepSize
from .sweep import Call, Sweep, check_finite, check_start

if TYPE_CHECKING:
    from .cavi import CAVI

#: Rounds over the blocks of a minibatch, and the change of their mean parameters that ends them.
LOCAL_STEPS, LOCAL_TOL = 100, 1e-3
#: How fast the average that ranks several starts forgets.
_FORGETTING = 0.05


class StochasticSteps:
    """The steps of stochastic variational inference, and what they remember.

    Args:
        step_size: ρ as a function of the step.
        draws: for structured inference, the number of draws of the globals at each step; 0 for mean field.
    """

    def __init__(self, step_size: StepSize, draws: int = 0) -> None:
        self.step_size = step_size
        self.draws = draws
        self.count = 0
        self._summary: Summary | None = None  # of the parameters' data, averaged over the minibatches
        self._average: list[float] = []
        self._last: Call | None = None

    def step(self, driver: CAVI, call: Call) -> list[float]:
        """One step; an estimate of the ELBO for each start, at the globals before the step."""
        prepared = driver.guide.prepare(call.args, call.kwargs)
        program = prepared.program
        check_start(program, prepared.starts)
        self._check(program, call)
        step_size = self.step_size(self.count)
        order = [key for key in driver.sites(program) if key is not None]
        local = [key for key in order if program.is_local(key)]
        if not 0 < step_size <= 1:
            raise ArgumentError(f"Expected step sizes in (0, 1]; got {step_size!r} at step {self.count}.")
        summary = self._summary
        if self.draws:
            sweep, elbo = self._structured(driver, prepared, call, order, local, step_size)
        else:
            sweep = Sweep(program, prepared.state, call, None, prepared.starts)
            settle(driver, sweep, local)
            elbo = sweep.held_bound().elbo
            summary = self._global_steps(sweep, [key for key in order if key not in local], step_size)
        values = sweep.check_proper([elbo])
        check_finite(values, program, sweep.means)
        self.count += 1
        self._summary = summary
        self._last = call
        best = self._ranked(values)
        driver.guide.posterior_state.commit(prepared, sweep.state, best=best, structured=self.draws > 0)
        return values

    def _global_steps(self, sweep: Sweep, keys: list[BlockKey], step_size: float) -> Summary | None:
        """Step the globals; returns the averaged summary that the parameters were set by."""
        program = sweep.program
        points = [key for key in keys if program.blocks[key].is_point]
        summary = self._summary
        if points and any(set(points) & v.parents for v in program.derived):
            for key in points:
                program.optimum(key, sweep.means, sweep.summands)  # raises, and names the operation
        averaged: list[Summand] = []
        if points and program.recording.is_subsample:
            seen = summarize(program, sweep.state, sweep.means, sweep.held)
            summary = seen if summary is None else summary.times(1 - step_size).plus(seen, step_size)
            averaged = summary.summands(program, program.recording.dtype)
        for key in keys:
            block = program.blocks[key]
            if block.is_point and program.recording.is_subsample:
                sweep.set(key, program.optimum(key, sweep.means, (), averaged))
            elif block.is_point:
                sweep.visit(key)
            else:
                sweep.blend(key, sweep.optimum_of(block), step_size)
        return summary

    def _structured(
        self,
        driver: CAVI,
        prepared: Prepared,
        call: Call,
        order: list[BlockKey],
        local: list[BlockKey],
        step_size: float,
    ) -> tuple[Sweep, Tensor]:
        program = prepared.program
        _check_structured(program, prepared.state, local)
        draws = {k: draws_of(program.blocks[k], prepared.state[k], self.draws) for k in order if k not in local}
        drawn = at_draws(program, prepared.state, draws, self.draws, call, prepared.starts)
        settle(driver, drawn, local)
        plain = Sweep(program, prepared.state, call, hold=False)
        elbo = structured_elbo(program, plain.state, drawn, local).mean(0, keepdim=True)
        for key in order:
            if key not in local:
                found = program.optimum(key, drawn.means, drawn.summands)
                target = _step_towards(program.blocks[key], plain.state[key], found, draws[key], step_size)
                plain.blend(key, target, step_size)
        return plain, elbo

    def _ranked(self, values: list[float]) -> int:
        """The best of several starts, by an average of their estimates."""
        pairs = zip(self._average or values, values, strict=True)
        self._average = [old + _FORGETTING * (new - old) for old, new in pairs]
        return max(range(len(values)), key=self._average.__getitem__)

    def _check(self, program: Program, call: Call) -> None:
        other = self._last is not None and not _same_data(self._last, call)
        if other and not program.recording.is_subsample and not program.recording.declares_size:
            raise ModelError(
                "Expected a plate that says how much data there is in all, for the model is given other data than in "
                'the last step; got none. Write pyro.plate("data", size, subsample_size=len(x)).'
            )

    def keep(self, start: int) -> None:
        """Forget all starts but one."""
        self._summary = None if self._summary is None else self._summary.of(start)
        self._average = self._average[start : start + 1]

    def to_state(self) -> dict[str, Any]:
        """What is remembered, in plain types and tensors."""
        summary = None if self._summary is None else self._summary.to_state()
        return {"count": self.count, "average": self._average, "summary": summary}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take on a state of :meth:`to_state`."""
        self.count, self._average = state["count"], list(state["average"])
        self._summary = None if state["summary"] is None else Summary.from_state(state["summary"], device)


def settle(
    driver: CAVI, sweep: Sweep, local: list[BlockKey], steps: int | None = None, tol: float | None = None
) -> None:
    """The local blocks at their optimum given the globals; of all the data, one round nearer to it."""
    part = sweep.program.recording.is_subsample
    steps = driver.local_steps or steps or (LOCAL_STEPS if part else 1)
    if driver.local_tol is not None:
        tol = driver.local_tol
    elif part:
        tol = LOCAL_TOL
    sweep.rounds(local, steps - 1, tol)
    for key in local:
        sweep.visit(key)
    if part:
        sweep.visit(None)


def _same_data(before: Call, now: Call) -> bool:
    """Whether two steps saw the same arguments: the same objects, or else equal data."""
    given = [[*c.args, *c.kwargs.values()] for c in (before, now)]
    if len(given[0]) == len(given[1]) and all(a is b for a, b in zip(*given, strict=True)):
        return True
    return fingerprint(*given[0]) == fingerprint(*given[1])


# Structured inference.


def _check_structured(program: Program, state: State, local: list[BlockKey]) -> None:
    starts = len(next(iter(next(iter(state.values())).values())))
    if starts != 1:
        raise ModelError(f"Expected one start for structured inference; got restarts={starts}.")
    written = [b.label for b in program.blocks.values() if b.update is not None and b.key not in local]
    written += [s.name for s in program.discrete if s.update is not None]
    points = [b.label for b in program.blocks.values() if b.is_point and b.key not in local]
    if written or points:
        raise ModelError(
            "Expected globals with a posterior and derived updates for structured inference; "
            f"got {written or 'no'} hand-written updates and {points or 'no'} parameters or MAP sites."
        )


def at_draws(
    program: Program,
    state: State,
    draws: Mapping[BlockKey, BlockDraws],
    count: int,
    call: Call,
    starts: Mapping[str, Tensor] | None = None,
) -> Sweep:
    """A sweep over the local blocks, with the globals at draws from their posterior: one start for each draw."""
    spread = {key: n.map(lambda t: t.expand(count, *t.shape[1:])) for key, n in state.items()}
    means: Means = {k: b.family.mean(spread[k]) for k, b in program.blocks.items() if k not in draws}
    means |= {key: drawn.statistics.map(Tensor.detach) for key, drawn in draws.items()}
    held = {n: p.expand(count, *p.shape[1:]) for n, p in (starts or {}).items()}
    return Sweep(program, spread, call, None, held, means)


def _step_towards(block: Block, old: Natural, found: Natural, draws: BlockDraws, step_size: float) -> Natural:
    """What the draws say is the block's optimum, with their covariance term where the step then stays proper."""
    target = found.map(lambda t: t.mean(0, keepdim=True))
    term = covariance_term(block, draws, found)
    if term is None:
        return target
    full = {n: target[n] + term[n] for n in target}
    proper = block.family.in_domain(Natural(**{n: old[n] + step_size * (full[n] - old[n]) for n in full}))
    fields = {}
    for name, event in block.family.statistics.items():
        fields[name] = torch.where(proper.reshape(proper.shape + (1,) * event), full[name], target[name])
    return Natural(**fields)


def structured_elbo(program: Program, state: State, drawn: Sweep, local: list[BlockKey]) -> Tensor:
    """The structured ELBO at each draw, float64: what the globals alone give, exactly, and the rest at the draw."""
    exact = [s for s in program.exact_summands if not s.blocks & set(local)]
    inner = [s for s in program.summands if s.blocks & set(local)]
    state, means = program.exactly(state)
    total, _ = program.entropy_terms(state, means, [key for key in program.blocks if key not in local])
    total = total + sum(s.value(means).double() for s in exact)
    rest, _ = program.entropy_terms(drawn.state, drawn.means, local)
    rest = rest + sum(s.value(drawn.means).double() for s in inner)
    return total + rest + (0.0 if drawn.held is None else drawn.held.log_normalizer)


__all__ = ["StochasticSteps", "at_draws", "settle", "structured_elbo"]
