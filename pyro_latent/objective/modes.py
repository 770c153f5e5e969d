r"""The maximum of \bar L over a point block, in closed form.

\bar L is a sum of functions of the point, each with a coefficient that the data and the other blocks give,
∂\bar L / ∂f(θ). Which functions occur tells the maximum: x and x² a location, log x and x^p a scale, rate or precision,
log x on the simplex a vector of probabilities, log |Λ| and Λ a precision matrix. It solves ∇A = expected statistics for
the observed family, in the coordinates that the model uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from ..errors import ModelError, NaturalDomainError, NotConjugateError
from ..expressions.axes import spread
from ..families import Natural
from ..families.matrices import matvec
from ..families.newton import inverse_digamma, inverse_dirichlet_mean
from ..families.point import VALUE, PointMean
from .blocks import Block, Means
from .summands import Summand, slopes, sum_of

Coefficients = dict[str, Tensor]
Solver = Callable[[Coefficients, Tensor], Tensor]


#: Sums of squares that cancel to this many units of rounding are zero.
_ROUNDING = 64
#: By function of a location, its degree as a polynomial.
DEGREES = {VALUE: 1, "x^2": 2}
#: Products of a Hessian with vectors that are taken in one pass.
_PRODUCTS_AT_ONCE = 16


def _location(c: Coefficients, value: Tensor) -> Tensor:
    """x and x²; on data that are all at the origin the first is gone."""
    linear = c.get(VALUE)
    return torch.zeros_like(value) if linear is None else -0.5 * linear / c["x^2"]


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
    """c x − n log Γ(x): ψ(x) = c / n."""
    return inverse_digamma(c[VALUE] / -c["lgamma^1"])


def _dirichlet(c: Coefficients, value: Tensor) -> Tensor:
    """Σ_k c_k α_k − n log B(α): ψ(α_k) − ψ(Σ α) = c_k / n; infinite for vectors that are all equal.

    ``docs/sources.md``, [4] equations (140)–(145); Minka (2000).
    """
    mean_log = c[VALUE].double() / -c["log_beta^1"].double().unsqueeze(-1)
    spread = 1 - mean_log.exp().sum(-1, keepdim=True)
    usable = spread > _ROUNDING * torch.finfo(value.dtype).eps
    return torch.where(usable, inverse_dirichlet_mean(mean_log), torch.inf).to(value)


def _is_power(statistics: frozenset[str]) -> bool:
    return len(statistics) == 2 and "log^1" in statistics and any(s.startswith("x^") for s in statistics)


_SOLVERS: dict[frozenset[str], Solver] = {
    frozenset((VALUE, "x^2")): _location,
    frozenset(("x^2",)): _location,
    frozenset(("log^1",)): _simplex,
    frozenset(("log^1", "log1m^1")): _interval,
    frozenset((VALUE, "log_det^1")): _precision,
    frozenset(("inverse^1", "log_det^1")): _covariance,
    frozenset(("gram_inverse^1", "gram_log_det^1")): _cholesky,
    frozenset((VALUE, "lgamma^1")): _gamma_shape,
    frozenset((VALUE, "log_beta^1")): _dirichlet,
}


class Doubt(NamedTuple):
    """What is to be checked of a maximum: one flag, true where all is well, and what raises where it is not."""

    is_well: Tensor
    check: Callable[[], None]


def mode(block: Block, means: Means, summands: Sequence[Summand], doubts: list[Doubt] | None = None) -> Natural:
    """The value that maximises the terms of a point block, the others held fixed.

    Args:
        block: the point block.
        means: the mean parameters of every block, with the current value of this one, ``[starts] + shape``.
        summands: the terms with the block in it.
        doubts: where to leave what is to be checked of the maximum; None: it is checked at once.

    Raises:
        ModelError: if no density depends on the block.
        NotConjugateError: if the functions of the parameter that occur have no joint maximum in closed form.
        NaturalDomainError: if the maximum is on the edge of the parameter's constraint.
    """
    reads = [[m.statistic for m in s.moments if m.block.key == block.key] for s in summands]
    statistics = frozenset(name for names in reads for name in names)
    if not statistics:
        raise ModelError(
            f"Expected every pyro.param to reach a density; got {block.label!r}, which none depends on. "
            "Remove it, or use it."
        )
    if any(len(names) > 1 for names in reads) and degree_of(summands, [block]) == 2:
        (best,) = _joint([block], means, summands)
        if best is not means[block.key][VALUE]:  # which was checked when it came there
            _check_or_doubt(block, best, None, doubts)
        return Natural(x=best)
    solver = _SOLVERS.get(statistics) or (_power if _is_power(statistics) else None)
    if solver is None or any(len(names) > 1 for names in reads):
        occurring = ", ".join(sorted(statistics))
        raise NotConjugateError(
            f"Expected a maximum over {block.label!r} in closed form; got a density with these functions of it: "
            f"{occurring}. Use EM(model, m_step='gradient')."
        )
    found = slopes(block, means, summands)
    coefficients = {name: sum_of(each) for name, each in found.items()}
    best = solver(coefficients, means[block.key][VALUE])
    _check_or_doubt(block, best, _collapsed(solver, found, coefficients), doubts)
    return Natural(x=best)


def joint_mode(blocks: Sequence[Block], means: Means, summands: Sequence[Summand]) -> list[Natural] | None:
    """The joint maximum over several point blocks of terms that are quadratic in them together.

    Args:
        blocks: the point blocks.
        means: the mean parameters of every block, with the current values of these.
        summands: the terms with one of the blocks in it.

    Returns:
        Their natural parameters; None where the function is not concave.
    """
    try:
        best = _joint(blocks, means, summands)
    except torch.linalg.LinAlgError:
        return None
    for block, value in zip(blocks, best, strict=True):
        _check(block, value, None)
    return [Natural(x=value) for value in best]


def degree_of(summands: Iterable[Summand], blocks: Sequence[Block]) -> float:
    """The degree of a sum as a polynomial in point blocks; infinite where it is none."""
    keys = {block.key for block in blocks}
    return max(sum(DEGREES.get(m.statistic, math.inf) for m in s.moments if m.block.key in keys) for s in summands)


def _joint(blocks: Sequence[Block], means: Means, summands: Sequence[Summand]) -> list[Tensor]:
    """The maximum over point blocks of terms that are quadratic in them together."""
    keys, values = [block.key for block in blocks], [means[block.key][VALUE] for block in blocks]
    linear: list[Summand] = []
    square: list[Summand] = []
    for s in summands:
        if degree_of([s], blocks) == 1:
            linear.append(s)
        else:
            square.append(s.given(means, keys))

    def parts(at: Tensor) -> list[Tensor]:
        if len(values) == 1:
            return [at]
        pieces = at.reshape(len(at), -1).split([v[0].numel() for v in values], dim=1)
        return [piece.reshape(-1, *v.shape[1:]) for piece, v in zip(pieces, values, strict=True)]

    def gradient(terms: Sequence[Summand], at: Tensor) -> Tensor:
        points = parts(at)
        there = means | {key: PointMean(**{VALUE: point}) for key, point in zip(keys, points, strict=True)}
        found = []
        for block, point in zip(blocks, points, strict=True):
            own = slopes(block, there, terms)
            each = [*own.get(VALUE, ()), *(2 * point * c for c in own.get("x^2", ()))]
            found.append(sum_of(each).expand_as(point) if each else torch.zeros_like(point))
        return found[0] if len(found) == 1 else torch.cat([f.reshape(len(at), -1) for f in found], dim=1)

    def product(vectors: Tensor) -> Tensor:
        """The Hessian's product with vectors ``[n, starts] + shape``; those of one start are taken for starts."""
        if vectors.shape[1] == 1:
            return gradient(square, vectors[:, 0]).unsqueeze(1)
        return torch.stack([gradient(square, vector) for vector in vectors])

    flat = torch.cat([v.reshape(len(v), -1) for v in values], dim=1) if len(values) > 1 else values[0]
    hessian = _hessian(square, flat.shape) if len(values) == 1 else None
    if hessian is not None:
        return [_quadratic(flat, gradient(linear, flat), partial(matvec, hessian), hessian)]
    return parts(_quadratic(flat, gradient(linear, flat), product, check=len(blocks) > 1))


def _hessian(square: Sequence[Summand], shape: torch.Size) -> Tensor | None:
    """The Hessian of terms of degree two that couple elements along the last dimension of a block alone, ``[starts] +
    shape`` and that dimension again; None for other terms.
    """
    matrices = []
    for s in square:
        (*rows, last), (*columns, other) = (s.moments[0].labels, s.moments[-1].labels)
        if rows != columns or last == other or not all(m.is_whole for m in s.moments):
            return None
        where = {label: i for i, label in enumerate((*rows, last, other))}
        matrix = spread(s.constant, s.labels, where).expand(*shape, shape[-1])
        matrices.append(matrix + matrix.mT)
    return sum_of(matrices)


def _collapsed(solver: Solver, found: Mapping[str, list[Tensor]], totals: Coefficients) -> Tensor | None:
    """Whether a scale or covariance is zero to rounding: its expected squares cancel. None for other parameters."""
    if solver not in (_power, _precision, _covariance, _cholesky):
        return None
    (name,) = [n for n in totals if n not in ("log^1", "log_det^1", "gram_log_det^1")]
    total, magnitude = totals[name], sum_of(c.abs() for c in found[name])
    rounding = _ROUNDING * torch.finfo(total.dtype).eps
    if solver is _power:
        return total.abs() <= rounding * magnitude
    scale = magnitude.diagonal(dim1=-2, dim2=-1).sqrt()
    relative = -_symmetric(total) / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    shifted = relative - rounding * torch.eye(relative.shape[-1], dtype=relative.dtype, device=relative.device)
    return (torch.linalg.cholesky_ex(shifted).info != 0) | ~relative.isfinite().all((-2, -1))


def _quadratic(
    start: Tensor,
    at_zero: Tensor,
    product: Callable[[Tensor], Tensor],
    known: Tensor | None = None,
    check: bool = False,
) -> Tensor:
    """The maximum of a concave quadratic: a Newton step, whose gradient tells which elements are coupled.

    Elements along ever fewer leading dimensions are taken for independent of each other, until the gradient at the
    maximum that this gives is zero to rounding. A mixture's means ``[K, D]`` need 2 + D products with the Hessian, not
    K D of them; the starts, the first dimension, are always independent. The gradient is affine, so that a product
    tells it anywhere.

    Args:
        start: where the step is taken, ``[starts] + shape``.
        at_zero: the gradient at the origin, of the same shape.
        product: the Hessian's product with each of some vectors, ``[n, starts] + shape``.
        known: the Hessian where it is known to couple elements along the last dimension alone, ``[starts] + shape``
            and that dimension again.
        check: whether to raise if the Hessian is not negative definite.

    Raises:
        torch.linalg.LinAlgError: if the Hessian is singular; with ``check``, if it is not negative definite.
    """
    rounding = _ROUNDING * torch.finfo(start.dtype).eps
    gradient = at_zero + product(start.unsqueeze(0))[0]
    if bool((gradient.abs() <= rounding * at_zero.abs()).all()):
        return start
    if known is not None:
        return start - torch.linalg.solve(known, gradient.unsqueeze(-1)).squeeze(-1)
    sizes = list(dict.fromkeys(math.prod(start.shape[split:]) for split in range(max(1, start.ndim - 1), 0, -1)))
    for size in sizes:
        unit = torch.eye(size, dtype=start.dtype, device=start.device).repeat(1, start.numel() // size)
        rows = [product(part) for part in unit.reshape(size, *start.shape).split(_PRODUCTS_AT_ONCE)]
        hessian = torch.cat(rows).reshape(size, -1, size).movedim(0, 1)
        column = gradient.reshape(-1, size, 1)
        if size == sizes[-1]:
            break
        step = torch.linalg.solve_ex(hessian, column)[0].reshape(start.shape)
        left = (gradient - product(step.unsqueeze(0))[0]).reshape(-1, size, 1).abs()
        scale = hessian.abs() @ (start - step).reshape(-1, size, 1).abs() + column.abs()
        if bool((left <= rounding * scale).all()):
            return start - step
    if check:
        return start + torch.cholesky_solve(column, torch.linalg.cholesky(-hessian)).reshape(start.shape)
    return start - torch.linalg.solve(hessian, column).reshape(start.shape)


def _check_or_doubt(block: Block, value: Tensor, collapsed: Tensor | None, doubts: list[Doubt] | None) -> None:
    """Check a maximum, or leave that for later."""
    if doubts is None:
        _check(block, value, collapsed)
        return
    lost, outside = _faults(block, value)
    is_well = ~(lost | outside).any()
    is_well = is_well if collapsed is None else is_well & ~collapsed.any()
    doubts.append(Doubt(is_well, partial(_check, block, value, collapsed)))


def _faults(block: Block, value: Tensor) -> tuple[Tensor, Tensor]:
    """Where a maximum is no number, and where it is not inside the parameter's constraint.

    A zero in a vector of probabilities is let be: a category that is never seen has 0 log 0 = 0.
    """
    constraint = block.sites[0].constraint or constraints.real
    return ~_flat(value.isfinite(), constraint.event_dim), ~constraint.check(value) | on_edge(constraint, value)


def _check(block: Block, value: Tensor, collapsed: Tensor | None) -> None:
    """Raise where the maximum is not inside the parameter's constraint, and say which of its elements it is."""
    constraint, (lost, outside) = block.sites[0].constraint or constraints.real, _faults(block, value)
    is_wrong = bool((lost | outside).any())
    if collapsed is not None and bool(collapsed.any()):
        raise NaturalDomainError(
            f"Expected the maximum over {block.label!r} inside its constraint {constraint}; got {_where(collapsed)} at "
            "zero: it collapses on too few points, and the likelihood has no bound. Give it a floor (as reg_covar in "
            "models.gmm) or a prior, another init, or fewer components. The guide is as before the step."
        )
    if is_wrong and bool(lost.any()):
        raise NaturalDomainError(
            f"Expected data for every element of {block.label!r}; got none for {_where(lost)}, where no value is "
            "best. Give it a prior, another init, or fewer components. The guide is as before the step."
        )
    if is_wrong:
        raise NaturalDomainError(
            f"Expected the maximum over {block.label!r} inside its constraint {constraint}; got {_where(outside)} on "
            f"its edge or outside: {value.squeeze(0).tolist()}. The data leave it no interior maximum. Give it a "
            "prior: a site of AutoConjugate(model, point=[...]), with a concentration above 1. The guide is as before "
            "the step."
        )


def _flat(flags: Tensor, event_dim: int) -> Tensor:
    return flags.flatten(-event_dim).all(-1) if event_dim else flags


def _where(flags: Tensor) -> str:
    """The elements that a flag is set for, of ``[starts] + batch``."""
    found = flags.any(0)
    if found.ndim == 0:
        return "its value"
    listed: list[list[int]] = found.nonzero().tolist()
    return ("element " if len(listed) == 1 else "elements ") + ", ".join(str(index) for index in listed)


def on_edge(constraint: Any, value: Tensor) -> Tensor:
    """Whether a value is on the edge of an interval or a half-line, over the dimensions that the constraint checks."""
    base = constraint
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    inside = [value != getattr(base, bound) for bound in ("lower_bound", "upper_bound") if hasattr(base, bound)]
    if not inside:
        return value.new_zeros(value.shape[: value.ndim - constraint.event_dim], dtype=torch.bool)
    return ~_flat(torch.stack(inside).all(0) if len(inside) > 1 else inside[0], constraint.event_dim)


__all__ = ["Doubt", "degree_of", "joint_mode", "mode", "on_edge"]
