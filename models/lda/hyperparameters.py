r"""The concentration of a Dirichlet that has drawn many vectors, from their mean logarithms: safeguarded Newton steps.

For N vectors with mean log s the log likelihood, divided by N, is

    ℓ(a) = log Γ(Σ a) − Σ_k log Γ(a_k) + Σ_k (a_k − 1) s_k,

which is concave. Its Hessian ψ'(Σ a) 11ᵀ − diag(ψ'(a_k)) is a diagonal plus a matrix of rank one, so a Newton step
takes O(K). A full step may leave the positive numbers, and overshoot; so it is cut short of the edge, and halved until
ℓ does not fall. In LDA s is the mean of E log θ_d, or of E log β_k, under q.

Everything here is a few vectors, so it is done on the CPU in float64, once in a pass.

Source: [4] (140)-(145); Blei, Ng and Jordan 2003, appendix A.2, A.4.2; Minka 2000, "Estimating a Dirichlet
distribution".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["dirichlet_concentration", "dirichlet_gradient", "symmetric_concentration"]

#: The share of the way to zero that one step may take.
_TO_THE_EDGE = 0.9
_MAX_STEPS = 200
#: 1 − Σ exp(mean log) of vectors that count as equal: their concentration would be above 10⁶.
_SMALLEST_SPREAD = 1e-7


def dirichlet_concentration(mean_log: Tensor, start: Tensor, *, tol: float = 1e-10) -> Tensor:
    """The concentration, shape ``[K]``, under which vectors with this mean logarithm are likeliest.

    Args:
        mean_log: mean over the vectors of log x_k, shape ``[K]``; it must be the mean of some: Σ_k exp(s_k) < 1.
        start: positive concentrations to start at, shape ``[K]``; ℓ is no lower at the result.
        tol: largest absolute gradient of ℓ at which to stop.

    Raises:
        ValueError: if there is no finite maximum, or ``start`` is not positive.

    Source: [4] (141)-(142), (144)-(145).
    """
    statistics = mean_log.detach().double().cpu()
    _check(statistics.exp().sum(), statistics, start)

    def value(a: Tensor) -> Tensor:
        return torch.lgamma(a.sum()) - torch.lgamma(a).sum() + (a - 1) @ statistics

    def step(a: Tensor) -> tuple[Tensor, Tensor]:
        gradient = dirichlet_gradient(statistics, a)
        diagonal, common = torch.polygamma(1, a), torch.polygamma(1, a.sum())
        shift = (gradient / diagonal).sum() / (1 / common - (1 / diagonal).sum())
        return (gradient + shift) / diagonal, gradient

    return _ascend(value, step, start.detach().double().cpu(), tol).to(start)


def symmetric_concentration(mean_log: Tensor, start: float, *, tol: float = 1e-10) -> float:
    """The concentration that all components share, under which vectors with this mean logarithm are likeliest.

    Args:
        mean_log: mean over the vectors of log x_v, shape ``[V]``.
        start: positive concentration to start at; ℓ is no lower at the result.
        tol: largest absolute gradient of ℓ / V at which to stop.

    Raises:
        ValueError: if there is no finite maximum, or ``start`` is not positive.

    Source: [4] (143)-(145), with one parameter.
    """
    size = len(mean_log)
    statistic = mean_log.detach().double().cpu().mean()
    _check(size * statistic.exp(), statistic, torch.tensor(start))

    def value(a: Tensor) -> Tensor:
        return torch.lgamma(size * a) / size - torch.lgamma(a) + (a - 1) * statistic

    def step(a: Tensor) -> tuple[Tensor, Tensor]:
        gradient = torch.digamma(size * a) - torch.digamma(a) + statistic
        curvature = size * torch.polygamma(1, size * a) - torch.polygamma(1, a)
        return -gradient / curvature, gradient

    return float(_ascend(value, step, torch.tensor(start, dtype=torch.float64), tol))


def dirichlet_gradient(mean_log: Tensor, concentration: Tensor) -> Tensor:
    """∇ℓ = ψ(Σ a) − ψ(a_k) + s_k, shape ``[K]``: the gradient of the mean log likelihood. [4] (141), (144)."""
    return torch.digamma(concentration.sum()) - torch.digamma(concentration) + mean_log


Step = Callable[[Tensor], tuple[Tensor, Tensor]]


def _ascend(value: Callable[[Tensor], Tensor], step: Step, a: Tensor, tol: float) -> Tensor:
    """Newton steps from ``a``, each cut to stay positive and halved until the value does not fall."""
    for _ in range(_MAX_STEPS):
        direction, gradient = step(a)
        if gradient.abs().max() <= tol:
            break
        room = torch.where(direction < 0, -a / direction, torch.inf).min()
        size, before = min(1.0, _TO_THE_EDGE * float(room)), value(a)
        while value(a + size * direction) < before and size > 1e-12:
            size /= 2
        if size <= 1e-12:  # at the maximum, to rounding
            break
        a = a + size * direction
    return a


def _check(mass: Tensor, statistics: Tensor, start: Tensor) -> None:
    if not bool(statistics.isfinite().all()) or not float(mass) < 1 - _SMALLEST_SPREAD:
        raise ValueError(
            f"Expected the mean logarithm of probability vectors that differ: finite, with Σ exp(mean_log) < 1; got "
            f"{float(mass):.6g}. Vectors that are all equal have no finite concentration: keep the one that there is."
        )
    if not bool((start > 0).all()):
        raise ValueError(
            f"Expected a positive start; got {start.tolist()}. Start at ones, or at the last concentration."
        )
