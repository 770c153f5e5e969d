"""Distributions from a log density alone are scipy's, with exact gradients; what cannot be integrated is an error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import constraints

from pyro_latent.distributions import NumericInverseCDF, integrate, mesh

POSITIVE, UNIT = constraints.positive, constraints.unit_interval


def tensor(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def normal(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return -((z - loc) / scale).square() / 2


def gamma(z: Tensor, concentration: Tensor) -> Tensor:
    return (concentration - 1) * z.log() - z


def beta(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (a - 1) * z.log() + (b - 1) * torch.log1p(-z)


def student(z: Tensor, df: Tensor) -> Tensor:
    return -(df + 1) / 2 * torch.log1p(z.square() / df)


def gompertz(z: Tensor, concentration: Tensor) -> Tensor:
    return z - concentration * torch.expm1(z)


def uniform(z: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.zeros_like(z).masked_fill((z < low) | (z > high), -math.inf)


def two_modes(z: Tensor, first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Of unit scale and of scale 0.01."""
    narrow = normal(z, second, tensor(0.01)) - math.log(0.01)
    return torch.logaddexp(weight.log() + normal(z, first, tensor(1.0)), (1 - weight).log() + narrow)


CASES: dict[str, tuple[Callable[..., Tensor], constraints.Constraint, dict[str, float], Any]] = {
    "normal": (normal, constraints.real, {"loc": 1.0, "scale": 2.0}, scipy.stats.norm(1, 2)),
    "peak far from 0": (normal, constraints.real, {"loc": 1e4, "scale": 1e-3}, scipy.stats.norm(1e4, 1e-3)),
    "gamma with a pole": (gamma, POSITIVE, {"concentration": 0.3}, scipy.stats.gamma(0.3)),
    "gamma": (gamma, POSITIVE, {"concentration": 50.0}, scipy.stats.gamma(50)),
    "beta": (beta, UNIT, {"a": 2.0, "b": 3.0}, scipy.stats.beta(2, 3)),
    "beta with two poles": (beta, UNIT, {"a": 0.8, "b": 0.8}, scipy.stats.beta(0.8, 0.8)),
    "student": (student, constraints.real, {"df": 3.0}, scipy.stats.t(3)),
    "cauchy": (student, constraints.real, {"df": 1.0}, scipy.stats.cauchy()),
    "heavy tail": (student, constraints.real, {"df": 0.2}, scipy.stats.t(0.2)),
    "gompertz": (gompertz, constraints.nonnegative, {"concentration": 0.7}, scipy.stats.gompertz(0.7)),
    "jumps": (uniform, constraints.real, {"low": 1 / 3, "high": 2.0}, scipy.stats.uniform(1 / 3, 5 / 3)),
}


def made(name: str) -> tuple[NumericInverseCDF, Any]:
    log_density, support, parameters, reference = CASES[name]
    values: dict[str, Any] = {name: tensor(value) for name, value in parameters.items()}
    return NumericInverseCDF(log_density, support, **values), reference


@pytest.mark.parametrize("name", list(CASES))
def test_density_probability_and_quantile_are_scipys(name: str) -> None:
    ours, reference = made(name)
    probabilities = np.array([1e-6, 1e-3, 0.1, 0.45, 0.77, 0.999])
    points = reference.ppf(probabilities)
    np.testing.assert_allclose(ours.log_prob(tensor(points)).numpy(), reference.logpdf(points), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(ours.cdf(tensor(points)).numpy(), reference.cdf(points), rtol=0, atol=1e-10)
    found = ours.icdf(tensor(probabilities))
    exact = name != "peak far from 0"  # there, neighboring floats are 1e-9 of the probability apart
    np.testing.assert_allclose(found.numpy(), points, rtol=1e-6 if exact else 1e-15)
    np.testing.assert_allclose(ours.cdf(found).numpy(), probabilities, rtol=0, atol=1e-10 if exact else 1e-9)


@pytest.mark.parametrize("name", ["normal", "peak far from 0", "gamma with a pole", "beta", "gompertz", "jumps"])
def test_moments_are_scipys(name: str) -> None:
    ours, reference = made(name)
    assert ours.mean.item() == pytest.approx(reference.mean(), rel=1e-9)
    assert ours.variance.item() == pytest.approx(reference.var(), rel=1e-9)


@pytest.mark.parametrize("second", [9.0, 40.0])
def test_a_narrow_mode_far_from_a_wide_one_has_its_share(second: float) -> None:
    weight = tensor(0.3)
    ours = NumericInverseCDF(two_modes, first=tensor(-5.0), second=tensor(second), weight=weight)
    points = tensor([-6.0, -4.5, 3.0, second - 0.005, second + 0.02])
    parts = scipy.stats.norm(-5, 1), scipy.stats.norm(second, 0.01)
    expected = 0.3 * parts[0].cdf(points.numpy()) + 0.7 * parts[1].cdf(points.numpy())
    np.testing.assert_allclose(ours.cdf(points).numpy(), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.icdf(ours.cdf(points))[[0, 1, 3]].numpy(), points[[0, 1, 3]].numpy(), rtol=1e-9)
    assert ours.mean.item() == pytest.approx(-1.5 + 0.7 * second, rel=1e-10)


@pytest.mark.parametrize("name", ["normal", "gamma with a pole", "beta", "student"])
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    """The first of all functions, and the second of draws, densities and moments."""
    log_density, support, parameters, reference = CASES[name]
    values = [tensor(value).requires_grad_() for value in parameters.values()]
    probabilities = tensor([0.05, 0.95]).requires_grad_()
    points = tensor(reference.ppf([0.05, 0.95])).requires_grad_()

    def of(*values: Tensor) -> NumericInverseCDF:
        named: dict[str, Any] = dict(zip(parameters, values, strict=True))
        return NumericInverseCDF(log_density, support, **named)

    assert gradcheck(lambda x, *v: of(*v).cdf(x), [points, *values])
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x, *v: of(*v).log_prob(x), [points, *values])
        assert check(lambda p, *v: of(*v).icdf(p), [probabilities, *values])
    if name != "student":
        assert gradcheck(lambda *v: of(*v).mean, values)
        assert gradgradcheck(lambda *v: of(*v).variance, values)


def test_a_batch_has_the_numbers_and_gradients_of_its_members() -> None:
    values = tensor([0.3, 2.0, 40.0]).requires_grad_()
    batch = NumericInverseCDF(gamma, POSITIVE, concentration=values)
    draws = batch.icdf(tensor([0.2, 0.9])[:, None])
    slope = torch.autograd.grad(draws.sum(), values)[0]
    for i in range(3):
        value = values[i].detach().requires_grad_()
        alone = NumericInverseCDF(gamma, POSITIVE, concentration=value).icdf(tensor([0.2, 0.9]))
        torch.testing.assert_close(draws[:, i], alone, rtol=1e-9, atol=0)
        torch.testing.assert_close(slope[i], torch.autograd.grad(alone.sum(), value)[0], rtol=1e-9, atol=0)


def test_shapes_dtype_and_expansion() -> None:
    ours = NumericInverseCDF(normal, loc=torch.tensor([0.0, 5.0]), scale=1.0)
    wide = ours.expand((4, 3, 2))
    assert wide.rsample((5,)).shape == (5, 4, 3, 2)
    assert wide.rsample().dtype == wide.log_prob(torch.tensor(1.0)).dtype == torch.float32
    assert torch.equal(wide.log_prob(torch.tensor(1.0)), ours.log_prob(torch.tensor(1.0)).expand(4, 3, 2))
    assert wide.mean.shape == (4, 3, 2)
    assert wide.to_event(1).log_prob(wide.sample()).shape == (4, 3)
    draws = NumericInverseCDF(lambda z: -z.square() / 2).rsample((20_000,))
    assert scipy.stats.kstest(draws.numpy(), scipy.stats.norm.cdf).pvalue > 1e-3


def test_a_parameter_that_was_moved_in_place_is_integrated_anew() -> None:
    loc = tensor(0.0)
    ours = NumericInverseCDF(normal, loc=loc, scale=tensor(1e-3))
    loc += 50
    assert ours.mean.item() == pytest.approx(50, rel=1e-12)
    assert ours.log_prob(tensor(50.0)).item() == pytest.approx(scipy.stats.norm(50, 1e-3).logpdf(50), rel=1e-10)


def test_the_integral_gives_expectations_and_its_error() -> None:
    rate = tensor([0.5, 3.0])
    panels = integrate(lambda z: -rate * z, mesh(torch.zeros_like(rate), torch.full_like(rate, math.inf)))
    torch.testing.assert_close(panels.log_normalizer, -rate.log(), rtol=0, atol=1e-10)
    found = panels.expectation(lambda z: -rate * z, lambda z: z.square())
    torch.testing.assert_close(found, 2 / rate.square(), rtol=1e-10, atol=0)
    assert bool(((panels.log_normalizer.expm1() - (1 / rate - 1)).abs() * rate < panels.error + 1e-13).all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NumericInverseCDF(torch.zeros_like), "Expected a density whose normalizer settles; got"),
        (lambda: NumericInverseCDF(lambda z: -z.log(), POSITIVE), "Expected a density whose normalizer settles; got"),
        (lambda: NumericInverseCDF(lambda z: z, POSITIVE), "Expected a density whose normalizer settles; got"),
        (lambda: NumericInverseCDF(student, df=tensor(0.03)), "Expected a density whose normalizer settles; got"),
        (lambda: NumericInverseCDF(beta, UNIT, a=tensor(0.5), b=tensor(0.5)), "settles; got.* pole away from 0"),
        (lambda: made("cauchy")[0].mean, "Expected a density whose moment settles; got"),
        (lambda: NumericInverseCDF(student, df=tensor(2.0)).variance, "Expected a density whose moment settles; got"),
        (lambda: NumericInverseCDF(lambda z: z - math.inf), "Expected a log density that is finite somewhere; got"),
        (lambda: NumericInverseCDF(lambda z: z.log()), "Expected a log density that is a number; got NaN at -"),
        (lambda: NumericInverseCDF(lambda z: -z.square().sum()), "Expected a log density of the shape of its values"),
        (lambda: NumericInverseCDF(normal, constraints.simplex, loc=0.0, scale=1.0), "Expected real numbers, a half"),
        (lambda: NumericInverseCDF(normal, mean=0.0), "Expected parameters with names of their own; got 'mean'"),
        (lambda: NumericInverseCDF(normal, loc=math.nan, scale=1.0), "Expected.*loc|Expected parameter loc"),
        (lambda: made("gamma")[0].log_prob(tensor(-1.0)), "support"),
        (lambda: made("gamma")[0].icdf(tensor(1.5)), "Expected probabilities from 0 to 1; got"),
    ],
)
def test_what_cannot_be_integrated_is_an_error(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
