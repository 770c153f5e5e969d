"""Structured stochastic inference, q(β) q(z | β) (Hoffman and Blei 2015).

The blocks of the minibatch, and what they tell the globals, are computed at draws of the globals instead of at their
mean parameters, and averaged over the draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import ModelError
from ..families import Natural
from ..gradient.natural_gradient import BlockDraws, covariance_term, draws_of
from ..objective import Block, BlockKey, Means, Program, State, Summary, starts_of
from .step_size import StepSize
from .steps import LOCAL_STEPS, LOCAL_TOL, Schedule, Task
from .stochastic import StochasticSteps
from .sweep import ModelArguments, Sweep


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

    def _moved(
        self, task: Task, local: list[BlockKey], others: list[BlockKey], step_size: float
    ) -> tuple[Sweep, Tensor, Summary | None]:
        program, state = task.program, task.state
        _check_structured(program, state, local)
        draws = {key: draws_of(program.blocks[key], state[key], self.draws) for key in others}
        drawn = _at_draws(program, state, draws, self.draws, task.arguments, task.probs)
        task.schedule.settle(drawn, local)
        sweep = Sweep(program, state, task.arguments, hold=False)
        elbo = _elbo_at_draws(program, state, drawn, local).mean(0, keepdim=True)
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
    """
    local = [key for key in program.blocks if program.is_local(key)]
    values = {k: draws_of(b, state[k], draws) for k, b in program.blocks.items() if k not in local}
    drawn = _at_draws(program, state, values, draws, arguments)
    schedule.settle(drawn, local, LOCAL_STEPS, LOCAL_TOL)
    return _elbo_at_draws(program, state, drawn, local)


def _check_structured(program: Program, state: State, local: list[BlockKey]) -> None:
    starts = starts_of(state)
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


def _elbo_at_draws(program: Program, state: State, drawn: Sweep, local: Sequence[BlockKey]) -> Tensor:
    """The structured ELBO at each draw, float64: what the globals alone give, exactly, and the rest at the draw."""
    exact = [s for s in program.exact_summands if not s.blocks & set(local)]
    inner = [s for s in program.summands if s.blocks & set(local)]
    total, _ = program.terms(*program.exactly(state), [key for key in program.blocks if key not in local], exact)
    rest, _ = program.terms(drawn.state, drawn.means, local, inner)
    return total + rest + (0.0 if drawn.held is None else drawn.held.log_normalizer)


__all__ = ["StructuredSteps", "structured_elbo"]
