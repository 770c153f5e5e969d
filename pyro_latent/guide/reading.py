"""What is read of a posterior: of a call that was recorded, or of a guide from a file that has not seen its data.

The second has its factors, but no discrete sites: their posterior is computed from data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyro
from torch import Tensor

from ..errors import ArgumentTypeError
from ..families import Params
from ..objective import Block, BlockKey, marginals, posteriors, quantiles_of, quantiles_of_block, shaped
from ..recording import check_arguments
from ..signatures import Model
from .state import PosteriorState, Prepared


def waits_for_data(posterior: PosteriorState, args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Whether a call without arguments asks a guide that was loaded and has not seen its data."""
    return bool(posterior.layout) and posterior.program is None and not args and not kwargs


def posterior_of(prepared: Prepared, joint: bool) -> dict[Any, Any]:
    """The marginals by site, or with ``joint`` the distributions by block, and those of discrete sites."""
    program = prepared.program
    found = posteriors(program, prepared.state)
    blocks = [(key, block) for key, block in program.blocks.items() if not block.is_param]
    keys = [key for key, _ in blocks] if joint else [s.name for _, b in blocks for s in b.sites]
    whole = found.joints if joint else {}
    return {key: whole.get(key) or found[key] for key in (*keys, *(s.name for s in program.discrete))}


def stored_posterior(posterior: PosteriorState, joint: bool) -> dict[Any, Any]:
    """What :func:`posterior_of` gives, of a guide that waits for its data: without the discrete sites."""
    found: dict[Any, Any] = {}
    for key, (block, params) in _factors(posterior).items():
        if joint and (isinstance(key, tuple) or block.joint_normal):
            found[key] = block.family.distribution(params)
        else:
            found |= marginals(block, params)
    return found


def read_quantiles(
    posterior: PosteriorState, prepared: Prepared | None, levels: Sequence[float], turned: Collection[str]
) -> dict[str, Tensor]:
    """The elementwise quantiles of each site, ``[levels] + shape``.

    Args:
        posterior: what the guide keeps.
        prepared: the call; None of a guide that waits for its data.
        levels: the levels.
        turned: sites of which those of 1 − level are given, for functions of them fall.
    """

    def read(levels: Sequence[float]) -> dict[str, Tensor]:
        if prepared is not None:
            return quantiles_of(prepared.program, prepared.state, levels)
        pairs = _factors(posterior).values()
        return {name: q for pair in pairs for name, q in quantiles_of_block(*pair, levels).items()}

    found = read(levels)
    falling = read([1 - level for level in levels]) if turned else {}
    return found | {name: falling[name] for name in turned}


def stored_draw(posterior: PosteriorState) -> dict[str, Tensor]:
    """A draw of each site as a Pyro sample statement, in no plates, of a guide that waits for its data."""
    values: dict[str, Tensor] = {}
    for block, params in _factors(posterior).values():
        drawn: list[Tensor] = []
        for component, conditional in block.family.conditionals(params):
            law = shaped(block, component, conditional(*drawn))
            drawn.append(
                pyro.sample(block.sites[component].name, law.to_event(len(block.sites[component].batch_shape)))
            )
            values[block.sites[component].name] = drawn[-1]
    return values


def _factors(posterior: PosteriorState) -> dict[BlockKey, tuple[Block, Params]]:
    """The blocks that are no parameters, and their params at the best start."""
    naturals, best = posterior.naturals, posterior.best
    blocks = {key: block for key, block in posterior.blocks.items() if not block.is_param}
    return {key: (block, block.params(naturals[key].map(lambda t: t[best]))) for key, block in blocks.items()}


def runs_bare(model: Model) -> bool:
    """Whether a model takes no arguments."""
    try:
        check_arguments(model, (), {})
    except ArgumentTypeError:
        return False
    return True


__all__ = [
    "posterior_of",
    "read_quantiles",
    "runs_bare",
    "stored_draw",
    "stored_posterior",
    "waits_for_data",
]
