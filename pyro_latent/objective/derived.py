"""What a model computes from point estimates by operations without a rule: values, computed again when they move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from ..expressions.variables import Variable
from ..families import Natural
from ..families.point import VALUE, Point, PointMean
from ..recording import LatentSite, Recording
from .blocks import Block, BlockKey, Means


def derived_variables(recording: Recording) -> list[Variable]:
    """What the model computes from points, as far as densities use it."""
    found: dict[str, Variable] = {}
    for scored in recording.scored.values():
        for term in scored.density.terms if scored.density is not None else ():
            found |= {f.variable.site: f.variable for f in term.factors if f.variable.replay is not None}
    return list(found.values())


def derived_block(variable: Variable, recording: Recording) -> Block:
    """A point block in a derived variable's place."""
    site = LatentSite(variable.site, dist.Delta, variable.shape, torch.Size(), (), 1.0, None)
    return Block((site,), Point(), variable.shape, (torch.Size(),), 1.0, None, recording.device)


def with_derived(
    means: Means, variables: Sequence[Variable], blocks: Mapping[BlockKey, Block], dtype: torch.dtype
) -> Means:
    """The mean parameters with the values of these variables at the points in them, computed in the model's dtype."""
    like = next(means[k][VALUE] for k, b in blocks.items() if b.is_point)
    points = {k: b.params(Natural(x=means[k][VALUE]))["value"] for k, b in blocks.items() if b.is_point}
    rows: dict[str, list[Tensor]] = {v.site: [] for v in variables}
    for start in range(len(like)):
        values = {str(k): p[start].to(dtype) for k, p in points.items()}
        known: dict[int, Tensor] = {}
        for variable in variables:
            assert variable.replay is not None
            rows[variable.site].append(variable.replay(values, known).to(like.dtype))
    return means | {name: PointMean(**{VALUE: torch.stack(r)}) for name, r in rows.items()}


__all__ = ["derived_block", "derived_variables", "with_derived"]
