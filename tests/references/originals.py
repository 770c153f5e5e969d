"""Posteriors of models as their authors write them: heavy-tailed scales, and likelihoods that need auxiliary sites.

Nothing here uses the library; each density is written out as tensor arithmetic, as those of ``problems``. Scales and
rates are in logarithms, coefficients in coordinates in which the data make them nearly independent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from examples.originals import data
from examples.originals.data import DISPERSION, PARTS, STUDENT_DF

try:
    from references.problems import Problem, normal
except ImportError:  # as the script make_references.py is run
    from problems import Problem, normal  # type: ignore[import-not-found, no-redef]

SHORT = (500, 1200)
"""Warmup and draws of chains that mix well."""

LONG = (500, 2000)
"""The same where a scale has long tails."""


def half_cauchy(log_scale: Tensor, scale: float) -> Tensor:
    """Log density of the logarithm of a half-Cauchy, without the constant; summed."""
    return (log_scale - torch.log1p((log_scale.exp() / scale) ** 2)).sum()


def half_normal(log_scale: Tensor, scale: float) -> Tensor:
    """Log density of the logarithm of a half-normal, without the constant; summed."""
    return (log_scale - (log_scale.exp() / scale) ** 2 / 2).sum()


def whitening(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares ``[D]`` and a factor F ``[D, D]`` with F Fᵀ = (XᵀX)⁻¹: weights = least squares + F z."""
    least_squares = torch.linalg.lstsq(x, y.unsqueeze(-1)).solution.squeeze(-1)
    return least_squares, torch.linalg.inv(torch.linalg.cholesky(x.T @ x)).T


def zeros(dim: int) -> Tensor:
    return torch.zeros(dim, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------ problems


def eight_schools_wide() -> Problem:
    """mu ~ N(0, 5²), tau ~ HalfCauchy(5), theta_j ~ N(mu, tau²); coordinates (mu, log tau, (theta - mu) / tau)."""
    effects, errors = data.schools()

    def log_density(z: Tensor) -> Tensor:
        prior = normal(z[0], 0.0, 5.0) + half_cauchy(z[1], 5.0) + normal(z[2:], 0.0, 1.0)
        return prior + normal(effects, z[0] + z[1].exp() * z[2:], errors)

    def quantities(z: Tensor) -> dict[str, Tensor]:
        return {"mu": z[:, 0], "log_tau": z[:, 1], "theta": z[:, :1] + z[:, 1:2].exp() * z[:, 2:]}

    return Problem(10, log_density, quantities, torch.tensor([5.0, 1.0, *[0.0] * 8], dtype=torch.float64), lengths=LONG)


def linear(
    x: Tensor, y: Tensor, centre: Tensor, factor: Tensor, log_joint: Callable[[Tensor, Tensor], Tensor], scale: bool
) -> Problem:
    """Weights, ``centre + factor @ z``, and maybe the logarithm of a scale; ``log_joint(weights, log scale)``."""
    dim = x.shape[1]

    def log_density(z: Tensor) -> Tensor:
        return log_joint(centre + factor @ z[:dim], z[-1])

    def quantities(z: Tensor) -> dict[str, Tensor]:
        found = {"weights": centre + z[:, :dim] @ factor.T}
        return found | ({"log_sigma": z[:, -1]} if scale else {})

    return Problem(dim + scale, log_density, quantities, zeros(dim + scale), lengths=SHORT)


def kidiq_regression() -> Problem:
    """Flat weights, sigma ~ HalfCauchy(2.5), y ~ N(x w, sigma²)."""
    x, y = data.kidiq()
    centre, factor = whitening(x, y)
    spread = (y - x @ centre).std()

    def log_joint(weights: Tensor, log_sigma: Tensor) -> Tensor:
        return half_cauchy(log_sigma, 2.5) + normal(y, x @ weights, log_sigma.exp().expand(y.shape))

    problem = linear(x, y, centre, spread * factor, log_joint, scale=True)
    start = problem.start.clone()
    start[-1] = spread.log()
    return Problem(problem.dim, problem.log_density, problem.quantities, start, lengths=SHORT)


def student_regression() -> Problem:
    """weights ~ N(0, 1), sigma ~ HalfCauchy(1), y ~ StudentT(4, x w, sigma)."""
    x, y = data.progression()

    def log_joint(weights: Tensor, log_sigma: Tensor) -> Tensor:
        prior = normal(weights, 0.0, 1.0) + half_cauchy(log_sigma, 1.0)
        squares = ((y - x @ weights) / log_sigma.exp()) ** 2
        return prior - y.numel() * log_sigma - (STUDENT_DF + 1) / 2 * torch.log1p(squares / STUDENT_DF).sum()

    return linear(x, y, *whitening(x, y), log_joint, scale=True)


def logistic_regression() -> Problem:
    """weights ~ N(0, 2.5²), label ~ Bernoulli(sigmoid(x w))."""
    x, label = data.tumours()

    def log_joint(weights: Tensor, _: Tensor) -> Tensor:
        logits = x @ weights
        return normal(weights, 0.0, 2.5) + (label * logits - torch.nn.functional.softplus(logits)).sum()

    return linear(x, label, zeros(4), 3 * whitening(x, label)[1], log_joint, scale=False)


def probit_regression() -> Problem:
    """weights ~ N(0, 2.5²), label ~ Bernoulli(Φ(x w))."""
    x, label = data.progressed()

    def log_joint(weights: Tensor, _: Tensor) -> Tensor:
        return normal(weights, 0.0, 2.5) + torch.special.log_ndtr((2 * label - 1) * (x @ weights)).sum()

    return linear(x, label, zeros(5), 1.5 * whitening(x, label)[1], log_joint, scale=False)


def negative_binomial_regression() -> Problem:
    """weights ~ N(0, 2.5²); counts have the mean 4 exp(x w) and the variance m + m² / 4."""
    x, y = data.situps()

    def log_joint(weights: Tensor, _: Tensor) -> Tensor:
        logits = x @ weights
        return normal(weights, 0.0, 2.5) + (y * logits - (y + DISPERSION) * torch.nn.functional.softplus(logits)).sum()

    start = torch.linalg.lstsq(x, (y / DISPERSION).log().unsqueeze(-1)).solution.squeeze(-1)
    return linear(x, y, start, 0.5 * whitening(x, y)[1], log_joint, scale=False)


def radon_intercepts() -> Problem:
    """alpha_j ~ N(mu, sigma_alpha²), log radon ~ N(alpha_county + beta floor, sigma²).

    mu and beta ~ N(0, 10²), both scales ~ HalfNormal(1). Coordinates: (alpha - mu) / sigma_alpha, mu, beta, log scales.
    """
    county, floor, y = data.radon()
    num = int(county.max()) + 1

    def log_density(z: Tensor) -> Tensor:
        mu, beta, log_spread, log_sigma = z[num], z[num + 1], z[num + 2], z[num + 3]
        prior = normal(z[:num], 0.0, 1.0) + normal(z[num : num + 2], 0.0, 10.0) + half_normal(z[num + 2 :], 1.0)
        mean = (mu + log_spread.exp() * z[:num])[county] + beta * floor
        return prior + normal(y, mean, log_sigma.exp().expand(y.shape))

    def quantities(z: Tensor) -> dict[str, Tensor]:
        mu, beta, log_spread, log_sigma = z[:, num:].unbind(-1)
        alpha = mu[:, None] + log_spread.exp()[:, None] * z[:, :num]
        return {"alpha": alpha, "mu": mu, "beta": beta, "log_spread": log_spread, "log_sigma": log_sigma}

    start = torch.cat([zeros(num), torch.tensor([1.4, -0.7, -1.0, -0.3], dtype=torch.float64)])
    return Problem(num + 4, log_density, quantities, start, lengths=LONG)


def horseshoe() -> Problem:
    """beta_j ~ N(0, (tau lambda_j)²) on the ten covariates, tau, lambda_j and sigma ~ HalfCauchy(1).

    Coordinates: log lambda, log tau, log sigma; beta, which is Gaussian given these, is integrated out of the density,
    and drawn for the quantities.
    """
    x, y = data.diabetes()
    dim, gram, projected = x.shape[1], x.T @ x, x.T @ y

    def conditional(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of beta = S u, the scales S ``[..., D]``, the Cholesky factor of u's precision, and that times E u."""
        scales = (z[..., :dim] + z[..., dim : dim + 1]).exp()
        precision = (-2 * z[..., -1:]).exp()
        coupled = scales.unsqueeze(-1) * gram * scales.unsqueeze(-2) * precision.unsqueeze(-1)
        return scales, torch.linalg.cholesky(torch.eye(dim, dtype=x.dtype) + coupled), scales * projected * precision

    def log_density(z: Tensor) -> Tensor:
        _, factor, linear = conditional(z)
        whitened = torch.linalg.solve_triangular(factor, linear.unsqueeze(-1), upper=False)
        evidence = whitened.square().sum() / 2 - factor.diagonal(dim1=-2, dim2=-1).log().sum()
        return half_cauchy(z, 1.0) + normal(y, 0.0, z[-1].exp().expand(y.shape)) + evidence

    def quantities(z: Tensor) -> dict[str, Tensor]:
        scales, factor, linear = conditional(z)
        whitened = torch.linalg.solve_triangular(factor, linear.unsqueeze(-1), upper=False)
        drawn = torch.linalg.solve_triangular(factor.mT, whitened + torch.randn_like(whitened), upper=True).squeeze(-1)
        return {"beta": scales * drawn, "log_local": z[:, :dim], "log_tau": z[:, dim], "log_sigma": z[:, dim + 1]}

    start = zeros(dim + 2)
    start[dim], start[dim + 1] = -1.5, -0.3
    return Problem(len(start), log_density, quantities, start, lengths=LONG)


def poisson_factorisation() -> Problem:
    """theta, beta ~ Gamma(1, 1/2), x_ij ~ Poisson(Σ_k theta_ik beta_kj); coordinates: their logarithms.

    The parts can be exchanged, and their scales moved between theta and beta; reported are the rates.
    """
    x = data.counts()
    rows, columns = x.shape

    def unpack(z: Tensor) -> tuple[Tensor, Tensor]:
        theta, beta = z[..., : rows * PARTS], z[..., rows * PARTS :]
        return theta.unflatten(-1, (rows, PARTS)), beta.unflatten(-1, (PARTS, columns))

    def log_density(z: Tensor) -> Tensor:
        theta, beta = unpack(z)
        rates = theta.exp() @ beta.exp()
        return (z - z.exp() / 2).sum() + (x * rates.log() - rates).sum()

    def quantities(z: Tensor) -> dict[str, Tensor]:
        theta, beta = unpack(z)
        return {"rates": theta.exp() @ beta.exp()}

    start = zeros((rows + columns) * PARTS)
    start[::PARTS] += 0.5
    return Problem(len(start), log_density, quantities, start, lengths=SHORT)


ORIGINALS: dict[str, Callable[[], Problem]] = {
    "eight_schools": eight_schools_wide,
    "kidiq": kidiq_regression,
    "radon": radon_intercepts,
    "student_regression": student_regression,
    "horseshoe": horseshoe,
    "logistic": logistic_regression,
    "probit": probit_regression,
    "negative_binomial": negative_binomial_regression,
    "poisson_factorisation": poisson_factorisation,
}
"""By the name of the file that the reference is kept in."""
