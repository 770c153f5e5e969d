r"""The natural gradient of E_q f(β) by differentiable draws.

For q in an exponential family, ∇_μ E_q f = F⁻¹ ∇_η E_q f with F = ∂μ/∂η, the Fisher information. Where the gradient of
f in the statistics t(β) is s(β), and t(β) is a differentiable draw,

.. math:: ∇_μ E_q f = E\,s(β) + F^{-1} ∇_η E \langle t(β(η)), s(β) - E\,s \rangle,

the first term a mean, the second a covariance of draws (Hoffman and Blei 2015, whose SSVI-A keeps the first alone).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..families import Mean, Natural
from ..objective import Block

#: The second term is left out for blocks with more statistics an element than this, whose F is not inverted.
LARGEST_FISHER = 64


class BlockDraws(NamedTuple):
    """Draws of a block: the natural parameters that they are a function of, and their statistics, ``[draws] + ...``."""

    natural: Natural
    statistics: Mean


def draws_of(block: Block, natural: Natural, count: int) -> BlockDraws:
    """Draws from a block, differentiable in its natural parameters where its distributions can be drawn so."""
    leaves = natural.map(lambda t: t[0].detach().requires_grad_())
    values: dict[int, Tensor] = {}
    with torch.enable_grad():
        for component, conditional in block.family.conditionals(block.family.to_params(leaves)):
            distribution = conditional(*values.values())
            draw = distribution.rsample if distribution.has_rsample else distribution.sample
            values[component] = draw(() if values else (count,))
        statistics = block.family.sufficient_statistics(*(values[component] for component in sorted(values)))
    return BlockDraws(leaves, statistics)


def covariance_term(block: Block, draws: BlockDraws, gradients: Natural) -> Natural | None:
    """F⁻¹ ∇_η E⟨t(β(η)), s − E s⟩ from the gradients s at each draw, with a leading dimension of one.

    None where it is left out: for one draw, for blocks of many statistics, and for draws that are not differentiable.
    """
    count = len(next(iter(gradients.values())))
    width = sum(_width(block, t) for t in draws.natural.values())
    if count < 2 or width > LARGEST_FISHER or not all(t.requires_grad for t in draws.statistics.values()):
        return None
    with torch.enable_grad():
        parts = [(draws.statistics[n] * (g - g.mean(0))).sum() for n, g in gradients.items()]
        covariance = torch.stack(parts).sum() / (count - 1)
        found = torch.autograd.grad(covariance, list(draws.natural.values()))
    slope = _rows(block, dict(zip(draws.natural, found, strict=True)))
    inverse = torch.linalg.pinv(fisher_information(block, draws.natural), hermitian=True)
    return _fields(block, (inverse @ slope.unsqueeze(-1)).squeeze(-1), draws.natural)


def fisher_information(block: Block, natural: Natural) -> Tensor:
    """∂μ/∂η of each element of a block, ``batch + (statistics, statistics)``, on symmetric matrices."""
    leaves = natural.map(lambda t: t.detach().requires_grad_())
    with torch.enable_grad():
        mean = _rows(block, block.family.mean(leaves))
        rows = []
        for i in range(mean.shape[-1]):
            found = torch.autograd.grad(mean[..., i].sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
            pairs = zip(leaves.items(), found, strict=True)
            rows.append(_rows(block, {n: torch.zeros_like(t) if g is None else g for (n, t), g in pairs}))
    matrix = torch.stack(rows, -2)
    return (matrix + matrix.mT) / 2


def _width(block: Block, field: Tensor) -> int:
    return math.prod(field.shape[len(block.batch_shape) :])


def _rows(block: Block, fields: Mean | dict[str, Tensor]) -> Tensor:
    """Fields side by side, ``batch + (statistics,)``; matrices by their symmetric part."""
    parts = []
    for name, event in block.family.statistics.items():
        field = (fields[name] + fields[name].mT) / 2 if event == 2 else fields[name]
        parts.append(field.reshape(*block.batch_shape, -1))
    return torch.cat(parts, -1)


def _fields(block: Block, rows: Tensor, like: Natural) -> Natural:
    sizes = [_width(block, like[name]) for name in block.family.statistics]
    parts = rows.split(sizes, -1)
    return Natural(**{n: p.reshape(1, *like[n].shape) for n, p in zip(block.family.statistics, parts, strict=True)})


__all__ = ["BlockDraws", "covariance_term", "draws_of", "fisher_information"]
