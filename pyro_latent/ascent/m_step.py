"""What M-steps have in common: the parameters that they are over, and when one has settled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import ModelError
from ..objective import BlockKey
from .steps import Task
from .sweep import Sweep

#: A joint M-step visits each parameter at most so often, and until none moves by more than this, relative to it.
M_STEP_PASSES, SETTLED = 100, 1e-13


def points_of(task: Task) -> list[BlockKey]:
    """The parameters, and latents with a point estimate, in the order of their updates.

    Raises:
        ModelError: if there is none, or one that no density depends on.
    """
    program = task.program
    points = [key for key in task.schedule.blocks(program) if program.blocks[key].is_point]
    if not points:
        raise ModelError(
            "Expected a model with pyro.param sites; got none. Use CAVI for a model with latent sites only, or give "
            "some of them a point estimate: AutoConjugate(model, point=[...])."
        )
    if program.unused_params:
        raise ModelError(
            f"Expected every pyro.param to reach a density; got {program.unused_params}, which none depends on. "
            "Remove them, or use them."
        )
    return points


def _change_of(before: Tensor, after: Tensor) -> Tensor:
    """How far a parameter has moved, relative to its size: one number, float64 ``[1]``."""
    return ((after - before).abs() / (1 + before.abs())).max().reshape(1).double()


def moved_from(before: Mapping[BlockKey, Tensor], sweep: Sweep) -> set[BlockKey]:
    """The parameters that a sweep has moved from these values, by more than rounding.

    One transfer from the device, of truths alone, which also says whether the maxima are what they should be.

    Raises:
        NaturalDomainError: if they are not.
    """
    if not before:
        return set()
    still = [_change_of(value, sweep.state[key].x) <= SETTLED for key, value in before.items()]
    truths = torch.cat([torch.cat(sweep.flags).all().reshape(1), *still]).cpu()
    is_well, *are_still = map(bool, truths)
    if not is_well:
        sweep.check_proper()
    return {key for key, is_still in zip(before, are_still, strict=True) if not is_still}


__all__ = ["M_STEP_PASSES", "moved_from", "points_of"]
