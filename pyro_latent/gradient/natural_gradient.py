r"""The natural gradient of E_q f(β) by differentiable draws.

For q in an exponential family the natural gradient, F⁻¹ ∇_η E_q f, is the plain one in the mean parameters μ. Where f
has the slopes s(β) in the statistics t(β), and β is a differentiable draw from q at natural parameters η(μ),

.. math:: ∇_μ E_q f = E\, ∇_μ \langle t(β(η(μ))), s(β) \rangle

(Hoffman and Blei 2015). No Fisher matrix F is made: the families' inverse of ∇A is differentiable.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..families import Mean, Natural
from ..objective import Block


class BlockDraws(NamedTuple):
    """Draws of a block: the mean parameters that they are a function of, and their statistics, ``[draws] + ...``."""

    mean: Mean
    statistics: Mean


def draws_of(block: Block, natural: Natural, count: int) -> BlockDraws:
    """Draws from a block, differentiable in its mean parameters where its distributions can be drawn so.

    They are made in float64, at the natural parameters as they are: to take a variance from E x² and E x costs digits.
    """
    family, exact = block.family, natural.map(lambda t: t[0].detach().double())
    leaves = family.mean(exact).map(Tensor.requires_grad_)
    values: dict[int, Tensor] = {}
    with torch.enable_grad():
        moving = family.from_mean(leaves)
        at = Natural(**{n: exact[n] + (moving[n] - moving[n].detach()) for n in exact})
        for component, conditional in family.conditionals(family.to_params(at)):
            distribution = conditional(*values.values())
            draw = distribution.rsample if distribution.has_rsample else distribution.sample
            values[component] = draw(() if values else (count,))
        statistics = family.sufficient_statistics(*(values[component] for component in sorted(values)))
    dtype = next(iter(natural.values())).dtype
    return BlockDraws(leaves, statistics.map(lambda t: t.to(dtype)))


def natural_gradient(draws: BlockDraws, slopes: Natural) -> Natural | None:
    """E ∇_μ⟨t(β(μ)), s⟩ from the slopes s at each draw, with a leading dimension of one.

    None where the draws are not differentiable.
    """
    if not all(t.requires_grad for t in draws.statistics.values()):
        return None
    with torch.enable_grad():
        total = torch.stack([(draws.statistics[n] * s).sum() / len(s) for n, s in slopes.items()]).sum()
        found = torch.autograd.grad(total, list(draws.mean.values()))
    pairs = zip(draws.mean, found, strict=True)
    return Natural(**{n: t.unsqueeze(0).to(slopes[n].dtype) for n, t in pairs})


__all__ = ["BlockDraws", "draws_of", "natural_gradient"]
