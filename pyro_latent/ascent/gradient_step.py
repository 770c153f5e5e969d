"""The M-step of generalised EM: an optimizer raises Q in unconstrained coordinates, and never lowers it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import transform_to

from ..errors import ArgumentTypeError
from ..families import Natural
from ..objective import BlockKey
from .sweep import Sweep

_HALVINGS = 40
#: An optimizer that is taken back by more halves than these went the wrong way: what it remembers is forgotten.
_FORGIVEN = 5
#: The learning rate is no less than this share of the one that was asked for.
_LEAST_SHARE = 2.0**-20

#: What makes an optimizer of a list of parameters.
MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
#: By parameter, its unconstrained value, with a leading dimension over starts.
Free = dict[BlockKey, Tensor]


class Memory(NamedTuple):
    """What an optimizer goes on from at the next M-step.

    ``shapes``: those of its parameters; ``state``: what it remembers of them; ``share``: that of its learning rate
    which it steps with; ``is_back``: whether its last steps, taken whole, would have lowered Q.
    """

    shapes: list[list[int]]
    state: dict[Any, Any]
    share: float
    is_back: bool


def raise_q(
    sweep: Sweep, keys: list[BlockKey], make: MakeOptimizer | None, count: int, memory: Memory | None
) -> Memory | None:
    """Move the parameters by so many steps of an optimizer, half the way back until Q is no lower than before.

    Steps that would have lowered Q halve the learning rate of the next M-step; others double it, up to what was asked
    for. Q is summed in float64, as the ELBO is, and compared where the parameters are rounded to the dtype of the data.

    Args:
        sweep: the sweep in progress, after its E-step.
        keys: the parameters.
        make: makes the optimizer; None: L-BFGS.
        count: the number of its steps, or of L-BFGS iterations.
        memory: what it goes on from.
    """
    blocks = {key: sweep.program.blocks[key] for key in keys}
    maps = {key: transform_to(block.sites[0].constraint) for key, block in blocks.items()}
    like = sweep.program.recording.like
    exact, means = sweep.program.exactly(sweep.state)
    energy = sweep.program.points_energy(means, sweep.summands)
    start = {key: maps[key].inv(b.params(exact[key])["value"]).detach() for key, b in blocks.items()}

    def naturals(free: Free) -> dict[BlockKey, Natural]:
        return {key: b.natural({"value": maps[key](free[key])}) for key, b in blocks.items()}

    def q_function(free: Free) -> Tensor:
        return energy({key: blocks[key].family.mean(n) for key, n in naturals(free).items()})

    def rounded_q(free: Free) -> Tensor:
        rounded = {key: n.map(lambda t: t.to(like).to(t)) for key, n in naturals(free).items()}
        return energy({key: blocks[key].family.mean(n) for key, n in rounded.items()})

    level = energy({key: means[key] for key in keys})
    free, memory = _optimized(start, q_function, make, count, memory)
    lower = ~(rounded_q(free) >= level)
    halvings = 0
    while bool(lower.any()) and halvings < _HALVINGS:
        halvings += 1
        free = {key: torch.where(_spread(lower, f), (f + start[key]) / 2, f) for key, f in free.items()}
        lower = ~(rounded_q(free) >= level)
    for key, natural in naturals(free).items():
        natural = natural.map(lambda t: t.to(like))
        old = sweep.state[key]
        sweep.set(key, Natural(**{n: torch.where(_spread(lower, t), old[n], t) for n, t in natural.items()}))
    if memory is None:
        return None
    share = max(memory.share / 2, _LEAST_SHARE) if halvings else min(2 * memory.share, 1.0)
    return memory._replace(share=share, is_back=halvings > 0, state={} if halvings > _FORGIVEN else memory.state)


def _optimized(
    start: Free, q_function: Callable[[Free], Tensor], make: MakeOptimizer | None, count: int, memory: Memory | None
) -> tuple[Free, Memory | None]:
    """Where an optimizer comes to, and what it remembers: nothing of L-BFGS, whose curvature is that of one Q."""
    with torch.enable_grad():
        free = {key: value.clone().requires_grad_() for key, value in start.items()}
        leaves = list(free.values())
        if make is None:
            optimizer: torch.optim.Optimizer = torch.optim.LBFGS(leaves, max_iter=count, line_search_fn="strong_wolfe")
        else:
            optimizer = optimizer_of(make, leaves)
        goes_on = not isinstance(optimizer, torch.optim.LBFGS)
        shapes = [list(leaf.shape) for leaf in leaves]
        if memory is None or memory.shapes != shapes or not goes_on:
            memory = Memory(shapes, {}, 1.0, False)
        else:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": deepcopy(memory.state)})
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * memory.share

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = -q_function(free).sum()
            loss.backward()
            return loss

        for _ in range(count if goes_on else 1):
            optimizer.step(closure)  # type: ignore[arg-type]
    found = {key: f.detach() for key, f in free.items()}
    return found, memory._replace(state=optimizer.state_dict()["state"]) if goes_on else None


def optimizer_of(make: MakeOptimizer, leaves: list[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of some leaves.

    Raises:
        ArgumentTypeError: if it is none of torch's.
    """
    optimizer: Any = make(leaves) if callable(make) else make
    if not callable(make) or not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentTypeError(
            f"Expected optimizer to make a torch optimizer; got {type(optimizer).__name__}. Write "
            "optimizer=lambda params: torch.optim.Adam(params, 1e-2)."
        )
    return optimizer


def described_optimizer(make: MakeOptimizer | None) -> str | None:
    """What an optimizer is known by in a checkpoint: its class and its options; its maker's type where that needs to
    see the parameters.
    """
    if make is None:
        return None
    try:
        return " ".join(repr(optimizer_of(make, [torch.zeros(1, requires_grad=True)])).split())
    except ArgumentTypeError:
        raise
    except Exception:  # whatever a function of the parameters looks for among them
        return type(make).__name__


def _spread(flags: Tensor, like: Tensor) -> Tensor:
    return flags.reshape(-1, *[1] * (like.ndim - 1))


__all__ = ["MakeOptimizer", "Memory", "described_optimizer", "optimizer_of", "raise_q"]
