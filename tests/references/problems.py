"""The posteriors that references are computed for: data, priors, and log densities in unconstrained coordinates.

Nothing here uses the library. Each density is written out as tensor arithmetic, discrete latents are summed out, and
the Jacobian of each change of coordinates is added by hand; so it shares neither code nor Pyro model with what is
tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent.parent.parent / "models" / "datasets"

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
"""Coaching effects in eight schools, in points of the test (Rubin 1981)."""

STANDARD_ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
"""Their standard errors, taken as known."""

MU_SCALE, TAU_SCALE = 10.0, 25.0
"""Prior of the schools' mean, N(0, 10²), and scale of the half-Cauchy prior of their spread."""

PRECISION_PRIOR = (1.0, 25.0)
"""Shape and rate of the Gamma prior of the spread's precision, in the conjugate variant."""

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Problem:
    """A posterior over a vector of unconstrained coordinates.

    Attributes:
        dim: how many coordinates.
        log_density: of a vector ``[dim]``, the unnormalised log posterior with the Jacobian; a scalar.
        quantities: of draws ``[draws, dim]``, what is reported, by name: ``[draws] + shape``.
        start: a point near the mode, ``[dim]``.
        full_mass: whether NUTS adapts a dense mass matrix.
        lengths: of each chain, its warmup and its draws.
        target_accept: the probability of acceptance that NUTS adapts its step to.
    """

    dim: int
    log_density: Callable[[Tensor], Tensor]
    quantities: Callable[[Tensor], dict[str, Tensor]]
    start: Tensor
    full_mass: bool = False
    lengths: tuple[int, int] = (1000, 5000)
    target_accept: float = 0.9


def normal(x: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """Sum of the log densities of normals, without the constant; a number as ``scale`` is a constant too."""
    squares = -0.5 * ((x - loc) / scale) ** 2
    return (squares - scale.log()).sum() if isinstance(scale, Tensor) else squares.sum()


# ------------------------------------------------------------------------------------------------------- eight schools


def schools() -> tuple[Tensor, Tensor]:
    """Effects and their standard errors, ``[8]`` each, float64."""
    return torch.tensor(EFFECTS, dtype=torch.float64), torch.tensor(STANDARD_ERRORS, dtype=torch.float64)


def half_cauchy_spread(log_tau: Tensor) -> Tensor:
    """Log density of log tau for tau ~ HalfCauchy(25)."""
    return log_tau - torch.log1p((log_tau.exp() / TAU_SCALE) ** 2) + math.log(2 / (math.pi * TAU_SCALE))


def gamma_precision(log_tau: Tensor) -> Tensor:
    """Log density of log tau for tau⁻² ~ Gamma(1, 25); |d log tau⁻² / d log tau| is 2."""
    shape, rate = PRECISION_PRIOR
    constant = math.log(2) + shape * math.log(rate) - math.lgamma(shape)
    return constant - 2 * shape * log_tau - rate * (-2 * log_tau).exp()


def eight_schools(log_prior: Callable[[Tensor], Tensor]) -> Problem:
    """Coordinates (mu, log tau, eta_1 … eta_8), theta = mu + tau eta: the parametrisation without a funnel."""
    effects, errors = schools()

    def log_density(z: Tensor) -> Tensor:
        mu, log_tau, eta = z[0], z[1], z[2:]
        theta = mu + log_tau.exp() * eta
        return normal(mu, 0.0, MU_SCALE) + log_prior(log_tau) + normal(eta, 0.0, 1.0) + normal(effects, theta, errors)

    def quantities(z: Tensor) -> dict[str, Tensor]:
        mu, tau = z[:, 0], z[:, 1].exp()
        return {"mu": mu, "tau": tau, "log_tau": z[:, 1], "theta": mu[:, None] + tau[:, None] * z[:, 2:]}

    return Problem(10, log_density, quantities, torch.tensor([5.0, 1.5, *[0.0] * 8], dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------------- regression


def diabetes() -> tuple[Tensor, Tensor]:
    """The ten covariates ``[442, 10]`` and the target ``[442]`` of scikit-learn's diabetes data, standardised."""
    from sklearn.datasets import load_diabetes

    features, target = (torch.from_numpy(a.astype(np.float64)) for a in load_diabetes(return_X_y=True, scaled=False))
    return standardised(features), standardised(target)


def standardised(x: Tensor) -> Tensor:
    """Columns with mean 0 and standard deviation 1 (divisor N)."""
    return (x - x.mean(0)) / x.std(0, correction=0)


def regression() -> Problem:
    """weights_j ~ N(0, 1), bias ~ N(0, 1), precision ~ Gamma(1, 1); coordinates (weights, bias, log precision)."""
    features, target = diabetes()

    def log_density(z: Tensor) -> Tensor:
        weights, bias, log_precision = z[:-2], z[-2], z[-1]
        prior = normal(z[:-1], 0.0, 1.0) + log_precision - log_precision.exp()
        return prior + normal(target, features @ weights + bias, (-0.5 * log_precision).exp().expand(target.shape))

    def quantities(z: Tensor) -> dict[str, Tensor]:
        return {"weights": z[:, :-2], "bias": z[:, -2], "precision": z[:, -1].exp()}

    start = torch.zeros(features.shape[1] + 2, dtype=torch.float64)
    return Problem(len(start), log_density, quantities, start, full_mass=True)


# ------------------------------------------------------------------------------------------------------------- mixture


def old_faithful() -> Tensor:
    """Duration and waiting time of 272 eruptions, standardised, ``[272, 2]``."""
    return standardised(torch.from_numpy(np.loadtxt(DATA / "old_faithful.csv", delimiter=",", skiprows=1)))


def durations() -> Tensor:
    """Durations of the eruptions, in minutes, ``[272]``."""
    return torch.from_numpy(np.loadtxt(DATA / "old_faithful.csv", delimiter=",", skiprows=1)[:, 0])


def durations_mixture() -> Problem:
    """Two normals on the durations, the assignments summed out; relabeled by location.

    weights ~ Dirichlet(1, 1), loc_k ~ N(0, 10²), precision_k ~ Gamma(1, 1). Coordinates: the logit of the first weight,
    the locations, the logs of the precisions.
    """
    data = durations()

    def log_density(z: Tensor) -> Tensor:
        log_weights = torch.nn.functional.logsigmoid(torch.stack([z[0], -z[0]]))
        loc, log_precision = z[1:3], z[3:]
        prior = log_weights.sum() + normal(loc, 0.0, 10.0) + (log_precision - log_precision.exp()).sum()
        squares = log_precision.exp() * (data[:, None] - loc) ** 2
        return prior + (log_weights + (log_precision - squares - LOG_2PI) / 2).logsumexp(-1).sum()

    def quantities(z: Tensor) -> dict[str, Tensor]:
        weight = z[:, :1].sigmoid()
        order = z[:, 1:3].argsort(-1)
        found = {"weights": torch.cat([weight, 1 - weight], -1), "loc": z[:, 1:3], "precision": z[:, 3:].exp()}
        return {name: value.gather(-1, order) for name, value in found.items()}

    return Problem(5, log_density, quantities, torch.tensor([-0.6, 2.0, 4.3, 2.0, 1.6], dtype=torch.float64))


def mixture() -> Problem:
    """Two components with full covariances, the assignments summed out; relabeled by duration, short eruptions first.

    weights ~ Dirichlet(1, 1), precision_k ~ Wishart(2, I), mean_k | precision_k ~ N(0, precision_k⁻¹). Coordinates: the
    logit of the first weight, the means, and of each precision L Lᵀ the entries (log L_11, L_21, log L_22).
    """
    data = old_faithful()

    def unpack(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights ``[2]``, means ``[2, 2]`` and Cholesky factors ``[2, 2, 2]`` of the precisions."""
        log_weights = torch.nn.functional.logsigmoid(torch.stack([z[0], -z[0]]))
        entries = z[5:].reshape(2, 3)
        top = torch.stack([entries[:, 0].exp(), torch.zeros_like(entries[:, 0])], -1)
        bottom = torch.stack([entries[:, 1], entries[:, 2].exp()], -1)
        return log_weights, z[1:5].reshape(2, 2), torch.stack([top, bottom], -2)

    def log_density(z: Tensor) -> Tensor:
        log_weights, means, factors = unpack(z)
        log_diagonal = z[5:].reshape(2, 3)[:, [0, 2]]
        half_log_det = log_diagonal.sum(-1)
        # Wishart with two degrees of freedom in two dimensions: |P|^(-1/2) exp(-tr P / 2), tr L Lᵀ the sum of squares.
        wishart = (-half_log_det - factors.square().sum((-2, -1)) / 2).sum()
        jacobian = (log_diagonal * log_diagonal.new_tensor([3.0, 2.0])).sum()
        of_means = (half_log_det - (means.unsqueeze(-2) @ factors).square().sum((-2, -1)) / 2).sum()
        whitened = torch.einsum("nkd,kde->nke", data[:, None] - means, factors)
        points = log_weights + half_log_det - whitened.square().sum(-1) / 2 - LOG_2PI
        return wishart + jacobian + of_means + log_weights.sum() + points.logsumexp(-1).sum()

    def quantities(z: Tensor) -> dict[str, Tensor]:
        log_weights, means, factors = (torch.stack(t) for t in zip(*(unpack(row) for row in z), strict=True))
        order = means[..., 0].argsort(-1)
        row = torch.arange(len(z))[:, None]
        precision = factors @ factors.mT
        return {"weights": log_weights.exp()[row, order], "mean": means[row, order], "precision": precision[row, order]}

    start = torch.tensor([-0.6, -1.3, -1.2, 0.7, 0.7, *[1.0, 0.0, 1.0] * 2], dtype=torch.float64)
    return Problem(11, log_density, quantities, start)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "eight_schools_half_cauchy": lambda: eight_schools(half_cauchy_spread),
    "eight_schools_gamma": lambda: eight_schools(gamma_precision),
    "diabetes_regression": regression,
    "durations_mixture": durations_mixture,
    "old_faithful_mixture": mixture,
}
