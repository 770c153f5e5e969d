r"""The maximum of \bar L over a point block, in closed form.

\bar L is a sum of functions of the point, each with a coefficient that the data and the other blocks give: ∂\bar L / ∂f(θ). Which functions
occur tells the maximum: x and x² a location, log x and x^p a scale, rate or precision, log x on the simplex a vector of probabilities,
log |Λ| and Λ a precision matrix. It solves ∇A = expected statistics for the observed family, in the coordinates that the model uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from ..errors import NaturalDomainError, NotConjugateError
from ..families import Natural
from ..families.point import VALUE, PointMean
from .blocks import Block

Coefficients = dict[str, Tensor]
Solver = Callable[[Coefficients, Tensor], Tensor]

_NEWTON_STEPS = 100
_HALVINGS = 60


def _location(c: Coefficients, value: Tensor) -> Tensor:
    return -0.5 * c[VALUE] / c["x^2"]


def _power(c: Coefficients, value: Tensor) -> Tensor:
    """log x and x^p: θ^p = −c_log / (p c_p)."""
    (name,) = [n for n in c if n != "log^1"]
    power = float(name.split("^")[1])
    return (-c["log^1"] / (power * c[name])) ** (1 / power)


def _simplex(c: Coefficients, value: Tensor) -> Tensor:
    return c["log^1"] / c["log^1"].sum(-1, keepdim=True)


def _interval(c: Coefficients, value: Tensor) -> Tensor:
    return c["log^1"] / (c["log^1"] + c["log1m^1"])


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _precision(c: Coefficients, value: Tensor) -> Tensor:
    return -c["log_det^1"][..., None, None] * torch.linalg.inv(_symmetric(c[VALUE]))


def _covariance(c: Coefficients, value: Tensor) -> Tensor:
    return _symmetric(c["inverse^1"]) / c["log_det^1"][..., None, None]


def _cholesky(c: Coefficients, value: Tensor) -> Tensor:
    return torch.linalg.cholesky(_symmetric(c["gram_inverse^1"]) / c["gram_log_det^1"][..., None, None])


def _gamma_shape(c: Coefficients, value: Tensor) -> Tensor:
    """c x − n log Γ(x): Newton on ψ(x) = c / n, in log x."""
    target = c[VALUE] / -c["lgamma^1"]
    x = torch.where(target > -2.22, target.exp() + 0.5, -1 / (target + 0.5772156649015329))
    for _ in range(8):
        x = x - (torch.digamma(x) - target) / torch.polygamma(1, x)
    return x


def _dirichlet(c: Coefficients, value: Tensor) -> Tensor:
    r"""Σ_k c_k α_k − n log B(α): Newton with the diagonal-plus-rank-one Hessian, each step halved until it is positive and rises.

    ``docs/sources.md``, [4] equations (140)–(145); Minka (2000).
    """
    count, totals = -c["log_beta^1"].unsqueeze(-1), c[VALUE]

    def objective(x: Tensor) -> Tensor:
        log_beta = torch.lgamma(x).sum(-1, keepdim=True) - torch.lgamma(x.sum(-1, keepdim=True))
        return (totals * x).sum(-1, keepdim=True) - count * log_beta

    x = value.clone()
    for _ in range(_NEWTON_STEPS):
        gradient = totals + count * (torch.digamma(x.sum(-1, keepdim=True)) - torch.digamma(x))
        diagonal = -count * torch.polygamma(1, x)
        rank_one = count * torch.polygamma(1, x.sum(-1, keepdim=True))
        shared = (gradient / diagonal).sum(-1, keepdim=True) / (1 / rank_one + (1 / diagonal).sum(-1, keepdim=True))
        step = -(gradient - shared) / diagonal
        x = _safeguarded(objective, x, step)
        if float((step.abs() / (1 + x)).max()) < 1e-13:
            break
    return x


def _safeguarded(objective: Callable[[Tensor], Tensor], x: Tensor, step: Tensor) -> Tensor:
    """The longest halved step that stays positive and does not lower the objective; none where there is no such step."""
    level = objective(x)
    size = torch.ones_like(level)
    for _ in range(_HALVINGS):
        trial = x + size * step
        positive = (trial > 0).all(-1, keepdim=True)
        good = positive & (objective(torch.where(positive, trial, x)) >= level)
        if bool(good.all()):
            break
        size = torch.where(good, size, size / 2)
    return torch.where(good, x + size * step, x)


def _is_power(statistics: frozenset[str]) -> bool:
    return len(statistics) == 2 and "log^1" in statistics and any(s.startswith("x^") for s in statistics)


_SOLVERS: dict[frozenset[str], Solver] = {
    frozenset((VALUE, "x^2")): _location,
    frozenset(("log^1",)): _simplex,
    frozenset(("log^1", "log1m^1")): _interval,
    frozenset((VALUE, "log_det^1")): _precision,
    frozenset(("inverse^1", "log_det^1")): _covariance,
    frozenset(("gram_inverse^1", "gram_log_det^1")): _cholesky,
    frozenset((VALUE, "lgamma^1")): _gamma_shape,
    frozenset((VALUE, "log_beta^1")): _dirichlet,
}


def mode(block: Block, value: Tensor, found: Sequence[object], evaluate: Callable[[PointMean], Tensor]) -> Natural:
    """The value that maximises the terms of a point block, the others held fixed.

    Args:
        block: the point block.
        value: the current value, ``[starts] + shape``.
        found: the summands with the block in them.
        evaluate: the sum of these as a function of the block's moments, one number for each start.

    Raises:
        NotConjugateError: if the functions of the parameter that occur have no joint maximum in closed form.
        NaturalDomainError: if the maximum is on the edge of the parameter's constraint.
    """
    reads = [[m.statistic for m in s.moments if m.block is block] for s in found]  # type: ignore[attr-defined]
    statistics = frozenset(name for names in reads for name in names)
    if not statistics:
        raise NotConjugateError(f"Expected the parameter {block.label!r} to be used by a density; got none that depends on it.")
    if statistics <= {VALUE, "x^2"} and any(len(names) > 1 for names in reads):
        return Natural(x=_quadratic(value, evaluate))
    point = PointMean(**{VALUE: value.detach()})
    leaves = {name: point[name].detach().requires_grad_() for name in statistics}
    with torch.enable_grad():
        gradients = torch.autograd.grad(evaluate(PointMean(**leaves)).sum(), list(leaves.values()))
    coefficients = dict(zip(leaves, gradients, strict=True))
    solver = _SOLVERS.get(statistics) or (_power if _is_power(statistics) else None)
    if solver is None or any(len(names) > 1 for names in reads):
        occurring = ", ".join(sorted(statistics))
        raise NotConjugateError(
            f"Expected a maximum over {block.label!r} in closed form; got a density with these functions of it: {occurring}. Use "
            "EM(model, m_step='gradient')."
        )
    best = solver(coefficients, value)
    _check(block, best)
    return Natural(x=best)


def _quadratic(value: Tensor, evaluate: Callable[[PointMean], Tensor]) -> Tensor:
    """One Newton step, exact for a concave quadratic whose elements are coupled."""
    shape = value.shape[1:]
    starts = len(value)

    def total(flat: Tensor) -> Tensor:
        return evaluate(PointMean(**{VALUE: flat.reshape(starts, *shape)})).sum()

    flat = value.detach().reshape(-1).clone()
    with torch.enable_grad():
        leaf = flat.requires_grad_()
        (gradient,) = torch.autograd.grad(total(leaf), leaf)
        hessian = torch.autograd.functional.hessian(total, flat)
    return (flat - torch.linalg.solve(hessian, gradient)).detach().reshape(value.shape)


def _check(block: Block, value: Tensor) -> None:
    constraint = block.sites[0].constraint or constraints.real
    inside = bool(value.isfinite().all()) and bool(constraint.check(value).all())
    if not inside or _on_edge(constraint, value):
        raise NaturalDomainError(
            f"Expected the maximum over {block.label!r} inside its constraint {constraint}; got {value.squeeze(0).tolist()}. The data leave "
            "it no interior maximum: give it a prior, or (a covariance that collapses on few points) a floor."
        )


def _on_edge(constraint: object, value: Tensor) -> bool:
    base = constraint
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    if isinstance(base, type(constraints.simplex)):
        return False
    if isinstance(base, type(constraints.positive)) and getattr(base, "lower_bound", None) == 0:
        return bool((value <= 0).any())
    return False


__all__ = ["mode"]
