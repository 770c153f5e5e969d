"""Structured stochastic inference, q(β) q(z | β) (Hoffman and Blei 2015).

The blocks of the minibatch, and what they tell the globals, are computed at draws of the globals instead of at their
mean parameters. The ELBO is then E log p(β) + L(β) − log q(β), with L(β) that of the locals at their optimum, whose
gradient in β is the one with the locals held. A step goes along the natural gradient of this by differentiable draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..families import Family, Mean, Natural
from ..gradient.natural_gradient import BlockDraws, draws_of, natural_gradient
from ..objective import Block, BlockKey, DataSummary, Means, Program, State, starts_of
from .step_size import StepSize
from .steps import LOCAL_STEPS, LOCAL_TOL, Schedule, Task
from .stochastic import StochasticSteps
from .sweep import ModelArguments, Sweep

#: How often a step that goes too far is halved.
_HALVINGS = 60
#: How far a step may go: KL(q_new ‖ q_old) + KL(q_old ‖ q_new), in nats for each number that q is given by.
_REACH = 1.0


class StructuredSteps(StochasticSteps):
    """Stochastic steps at draws of the globals.

    Args:
        step_size: ρ as a function of the step.
        draws: the number of draws at each step.
    """

    is_structured = True

    def __init__(self, step_size: StepSize, draws: int) -> None:
        super().__init__(step_size)
        self.draws = draws

    def _is_compilable(self, task: Task) -> bool:
        return False  # it draws

    def _moved(
        self, task: Task, local: list[BlockKey], others: list[BlockKey], step_size: Any
    ) -> tuple[Sweep, Tensor, DataSummary | None]:
        program, state = task.program, task.state
        _check_structured(program, state, local)
        draws = {key: draws_of(program.blocks[key], state[key], self.draws) for key in others}
        drawn = _at_draws(program, state, draws, self.draws, task.arguments, task.probs)
        # responsibilities to start at tell equal components apart until the globals have seen them
        task.schedule.settle(drawn, local, None if task.probs else LOCAL_STEPS, LOCAL_TOL)
        sweep = Sweep(program, state, task.arguments, hold=False)
        elbo = _elbo_at_draws(drawn, draws).mean(0, keepdim=True)
        for key in others:
            found = program.optimum(key, drawn.means, drawn.summands)
            sweep.blend(key, _step_towards(program.blocks[key], state[key], found, draws[key], step_size), step_size)
        return sweep, elbo, None


def structured_elbo(
    program: Program, state: State, arguments: ModelArguments, schedule: Schedule, draws: int
) -> Tensor:
    """The ELBO of q(β) q(z | β) at each of a number of draws of β, in nats: float64 ``[draws]``.

    Args:
        program, state: a compiled model, and natural parameters of one start.
        arguments: the model's.
        schedule: how the local blocks z reach their optimum given a draw.
        draws: the number of draws.

    Raises:
        ModelError: for joint normal blocks of globals.
    """
    local = [key for key in program.blocks if program.is_local(key)]
    _check_blocks(program, local)
    values = {k: draws_of(b, state[k], draws) for k, b in program.blocks.items() if k not in local}
    drawn = _at_draws(program, state, values, draws, arguments)
    schedule.settle(drawn, local, LOCAL_STEPS, LOCAL_TOL)
    return _elbo_at_draws(drawn, values)


def _check_blocks(program: Program, local: Sequence[BlockKey]) -> None:
    """Raise where draws of a global block say nothing of its natural parameters."""
    joined = [b.label for b in program.blocks.values() if b.joint_normal and b.key not in local]
    if joined:
        raise ModelError(
            f"Expected globals in blocks of their own for structured inference; got the joint normal blocks {joined}, "
            "whose natural parameters have no closed form in their moments. Leave them out of blocks=."
        )


def _check_structured(program: Program, state: State, local: list[BlockKey]) -> None:
    starts = starts_of(state)
    if starts != 1:
        raise ModelError(f"Expected one start for structured inference; got restarts={starts}.")
    _check_blocks(program, local)
    written = [b.label for b in program.blocks.values() if b.update is not None and b.key not in local]
    written += [s.name for s in program.discrete if s.update is not None]
    points = [b.label for b in program.blocks.values() if b.is_point and b.key not in local]
    if written or points:
        raise ModelError(
            "Expected globals with a posterior and derived updates for structured inference; "
            f"got {written or 'no'} hand-written updates and {points or 'no'} parameters or MAP sites."
        )


def _at_draws(
    program: Program,
    state: State,
    draws: Mapping[BlockKey, BlockDraws],
    count: int,
    arguments: ModelArguments,
    starts: Mapping[str, Tensor] | None = None,
) -> Sweep:
    """A sweep over the local blocks, with the globals at draws from their posterior: one start for each draw."""
    spread = {key: n.map(lambda t: t.expand(count, *t.shape[1:])) for key, n in state.items()}
    means: Means = {k: b.family.mean(spread[k]) for k, b in program.blocks.items() if k not in draws}
    means |= {key: drawn.statistics.map(Tensor.detach) for key, drawn in draws.items()}
    held = {n: p.expand(count, *p.shape[1:]) for n, p in (starts or {}).items()}
    return Sweep(program, spread, arguments, None, held, means)


def _step_towards(block: Block, old: Natural, found: Natural, draws: BlockDraws, step_size: float) -> Natural:
    """Where the natural gradient of the draws leads, as far as it can be trusted.

    ``found`` has the slopes of log p(β) + L(β) in t(β) at each draw, with L the ELBO of the locals at their optimum.
    Those of −log q(β) are added to them: where q(β) is exact, every draw gives zero (the total pathwise gradient of
    Roeder et al. 2017). Where draws are not differentiable, the way leads to what they say on average.
    """
    direction = natural_gradient(draws, Natural(**{n: found[n] - old[n] for n in found}))
    if direction is None:
        return found.map(lambda t: t.mean(0, keepdim=True))
    for _ in range(_HALVINGS):
        near = _is_near(block.family, old, direction.map(lambda t: step_size * t))
        if bool(near.all()):
            break
        direction = _where(block.family, near, direction, direction.map(lambda t: t / 2))
    return Natural(**{n: old[n] + direction[n] for n in old})


def _is_near(family: Family, old: Natural, step: Natural) -> Tensor:
    """Where a step goes at most half the way to the edge of the family's domain, and q stays near what it was.

    Few draws may say, by their noise, that q is a hundred times narrower: from there the way back is long.
    """
    is_proper = family.in_domain(Natural(**{n: old[n] + 2 * step[n] for n in old}))
    step = _where(family, is_proper, step, step.map(torch.zeros_like))
    before, after = family.mean(old), family.mean(Natural(**{n: old[n] + step[n] for n in old}))
    divergence = family.inner(step, Mean(**{n: after[n] - before[n] for n in before}))  # both ways
    size = sum(old[n].shape[old[n].ndim - event :].numel() for n, event in family.statistics.items())
    return is_proper & (divergence <= _REACH * size)


def _where(family: Family, condition: Tensor, yes: Natural, no: Natural) -> Natural:
    """Natural parameters by a condition of batch shape."""
    return Natural(
        **{
            name: torch.where(condition.reshape(condition.shape + (1,) * event), yes[name], no[name])
            for name, event in family.statistics.items()
        }
    )


def _elbo_at_draws(drawn: Sweep, draws: Mapping[BlockKey, BlockDraws]) -> Tensor:
    """The structured ELBO at each draw, float64: log p(β) + L(β) − log q(β).

    No part is averaged exactly, not even the entropy: what cancels at a draw does not cancel with an average.
    """
    program = drawn.program
    state, means = program.exactly(drawn.state)
    means |= {key: drawn.means[key].map(Tensor.double) for key in draws}
    held = program.elimination.eliminate(drawn.means) if drawn.is_stale else drawn.held
    total, _ = program.terms(state, means, program.blocks, program.exact_summands)
    return total + (0.0 if held is None else held.log_normalizer)


__all__ = ["StructuredSteps", "structured_elbo"]
