"""Inverses of digamma equations by Newton's method, each from a start where it converges without safeguards.

The iterations run without a graph; the last two steps carry derivatives. Newton squares the error at each step, so two
steps from the solution have its exact first and second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import multivariate_digamma

NewtonStep = Callable[[Tensor], Tensor]

#: Iterations end after a step of this relative size.
_SMALL_STEP = 1e-5


def inverse_digamma(y: Tensor) -> Tensor:
    """The x > 0 with ψ(x) = y, elementwise. Minka (2000), Estimating a Dirichlet distribution, appendix C."""
    low = -1 / (y.clamp(max=-2.22) - torch.digamma(torch.ones_like(y)))
    start = torch.where(y >= -2.22, y.exp() + 0.5, low)
    return _newton(lambda x: x - (torch.digamma(x) - y) / torch.polygamma(1, x), start, 6)


def inverse_log_minus_digamma(gap: Tensor, dim: int = 1) -> Tensor:
    """The a > (dim − 1) / 2 with dim · log a − ψ_dim(a) = gap > 0, elementwise; ψ_dim is the multivariate digamma.

    The unknown is r = 1 / (a − (dim − 1) / 2). The left side bends one way as a function of r (it is convex for dim = 1
    and concave above), with slope dim (dim + 1) / 4 at 0, so from r = gap / slope the steps approach on one side.
    For dim = 1 it is the step of Minka (2002), Estimating a Gamma distribution.
    """
    offset = (dim - 1) / 2

    def step(r: Tensor) -> Tensor:
        a = 1 / r + offset
        residual = dim * a.log() - multivariate_digamma(a, dim) - gap
        return r + residual * r**2 / (dim / a - _multivariate_trigamma(a, dim))

    return 1 / _newton(step, gap * (4 / (dim * (dim + 1))), 8) + offset


def inverse_dirichlet_mean(y: Tensor) -> Tensor:
    """The concentrations a > 0 with ψ(a_k) − ψ(Σ a) = y_k, over the last dimension.

    Newton on the a_k diverges from many starts. Newton on their sum s does not: Σ_k ψ⁻¹(y_k + ψ(s)) − s bends down
    along an asymptote whose root, the start, is above the solution. Two steps on the a_k then carry the derivatives;
    their Hessian is a diagonal plus a matrix of rank one. Minka (2000), Estimating a Dirichlet distribution, §1.
    """

    def total_step(total: Tensor) -> Tensor:
        a = inverse_digamma(y + torch.digamma(total))
        slope = (torch.polygamma(1, total) / torch.polygamma(1, a)).sum(-1, keepdim=True) - 1
        return total - (a.sum(-1, keepdim=True) - total) / slope

    def step(a: Tensor) -> Tensor:
        total = a.sum(-1, keepdim=True)
        residual = torch.digamma(a) - torch.digamma(total) - y
        diagonal, common = torch.polygamma(1, a), torch.polygamma(1, total)
        shift = (residual / diagonal).sum(-1, keepdim=True) / (1 / common - (1 / diagonal).sum(-1, keepdim=True))
        return a - (residual + shift) / diagonal

    log_mass = y.detach().logsumexp(-1, keepdim=True)
    total = _iterate(total_step, (y.shape[-1] - log_mass.exp()) / (-2 * torch.expm1(log_mass)), 12)
    return _newton(step, inverse_digamma(y + torch.digamma(total)), 0)


@torch.no_grad()
def _iterate(step: NewtonStep, x: Tensor, iterations: int) -> Tensor:
    """x after at most so many steps; the two that follow square an error of the last step's size to rounding."""
    for _ in range(iterations):
        before, x = x, step(x)
        if bool(((x - before).abs() <= _SMALL_STEP * x.abs()).all()):
            break
    return x


def _newton(step: NewtonStep, start: Tensor, iterations: int) -> Tensor:
    return step(step(_iterate(step, start.detach(), iterations).detach()))


def _multivariate_trigamma(x: Tensor, dim: int) -> Tensor:
    offsets = torch.arange(dim, dtype=x.dtype, device=x.device) / 2
    return torch.polygamma(1, x.unsqueeze(-1) - offsets).sum(-1)
