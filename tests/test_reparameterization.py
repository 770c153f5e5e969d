"""z = g(ε): densities, draws and gradients are scipy's, and the table of the docs is the one that was checked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import biject_to

from examples import reparameterization_table
from examples.reparameterization_rows import TABLE, WAYS, Reparameterization, student_radius
from examples.reparameterization_table import Check, check, markdown_table
from pyro_latent.distributions import Elliptical, Erlang, Gompertz, LogUniform, Rayleigh, Triangular

PAGE = Path(__file__).parent.parent / "docs" / "reparameterization.md"


def tensor(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# Each distribution of a scalar, beside scipy's of the same parameters, and points inside the support.
SCALARS = {
    "Rayleigh": (Rayleigh(tensor(1.5)), scipy.stats.rayleigh(scale=1.5), [0.01, 1.2, 6.0]),
    "LogUniform": (LogUniform(tensor(0.5), tensor(4.0)), scipy.stats.loguniform(0.5, 4.0), [0.5, 1.7, 3.99]),
    "Gompertz": (Gompertz(tensor(0.7), tensor(1.5)), scipy.stats.gompertz(0.7, scale=1.5), [0.01, 1.2, 4.0]),
    "Triangular": (
        Triangular(tensor(-1.0), tensor(0.5), tensor(2.0)),
        scipy.stats.triang(0.5, -1, 3),
        [-0.9, 0.5, 1.8],
    ),
    "Triangular, falling": (Triangular(tensor(0.0), tensor(0.0), tensor(2.0)), scipy.stats.triang(0, 0, 2), [0.0, 1.9]),
    "Triangular, rising": (Triangular(tensor(0.0), tensor(2.0), tensor(2.0)), scipy.stats.triang(1, 0, 2), [0.1, 2.0]),
    "Erlang": (Erlang(3, tensor(1.5)), scipy.stats.erlang(3, scale=1 / 1.5), [0.01, 1.2, 8.0]),
    "Erlang of one": (Erlang(1, tensor(0.2)), scipy.stats.expon(scale=5), [0.01, 1.2, 80.0]),
}


@pytest.fixture(params=list(SCALARS))
def scalar(request: pytest.FixtureRequest) -> tuple[Any, Any, Tensor]:
    ours, reference, points = SCALARS[request.param]
    return ours, reference, tensor(points)


def test_density_is_scipys(scalar: tuple[Any, Any, Tensor]) -> None:
    ours, reference, points = scalar
    np.testing.assert_allclose(ours.log_prob(points).numpy(), reference.logpdf(points.numpy()), rtol=1e-12, atol=1e-13)


def test_distribution_function_and_quantiles_are_scipys(scalar: tuple[Any, Any, Tensor]) -> None:
    ours, reference, points = scalar
    np.testing.assert_allclose(ours.cdf(points).numpy(), reference.cdf(points.numpy()), rtol=1e-12, atol=1e-15)
    probabilities = tensor([0.0, 1e-6, 0.2, 0.5, 0.9, 1 - 1e-6, 1.0])
    np.testing.assert_allclose(ours.icdf(probabilities).numpy(), reference.ppf(probabilities.numpy()), rtol=1e-11)


def test_moments_are_scipys(scalar: tuple[Any, Any, Tensor]) -> None:
    ours, reference, _ = scalar
    if isinstance(ours, Gompertz):
        pytest.skip("its moments need the exponential integral, and are not given")
    assert ours.mean.item() == pytest.approx(reference.mean(), rel=1e-12)
    assert ours.variance.item() == pytest.approx(reference.var(), rel=1e-12)


def test_draws_have_scipys_law(scalar: tuple[Any, Any, Tensor]) -> None:
    ours, reference, _ = scalar
    draws = ours.rsample((20_000,))
    assert ours.support.check(draws).all()
    assert scipy.stats.kstest(draws.numpy(), reference.cdf).pvalue > 1e-3


def test_float32_noise_never_reaches_an_infinite_quantile(scalar: tuple[Any, Any, Tensor]) -> None:
    ours, _, _ = scalar
    parameters = {n: getattr(ours, n).float() for n in type(ours).arg_constraints if not isinstance(ours, Erlang)}
    single = Erlang(ours.count, ours.rate.float()) if isinstance(ours, Erlang) else type(ours)(**parameters)
    draws = single.rsample((200_000,))
    assert draws.dtype == torch.float32
    assert torch.isfinite(draws).all()


@pytest.mark.parametrize(
    ("family", "parameters"),
    [
        (Rayleigh, [1.5]),
        (LogUniform, [0.5, 4.0]),
        (Gompertz, [0.7, 1.5]),
        (Triangular, [-1.0, 0.7, 4.0]),
        (lambda rate: Erlang(3, rate), [1.5]),
    ],
)
def test_gradients_of_density_probability_and_quantile_equal_finite_differences(family: Any, parameters: Any) -> None:
    values = [tensor(p).requires_grad_() for p in parameters]
    points, probabilities = tensor([0.6, 1.2, 3.0]), tensor([0.05, 0.6, 0.95])
    assert torch.autograd.gradcheck(lambda *v: family(*v).log_prob(points), values)
    assert torch.autograd.gradcheck(lambda *v: family(*v).cdf(points), values)
    assert torch.autograd.gradcheck(lambda *v: family(*v).icdf(probabilities), values)


@pytest.mark.parametrize("peak", [0.0, 2.0])
def test_gradients_of_a_triangle_with_its_peak_at_an_end_are_finite(peak: float) -> None:
    low, high = tensor(0.0).requires_grad_(), tensor(2.0).requires_grad_()
    triangle = Triangular(low, low if peak == 0 else high, high)
    value = triangle.rsample((1000,))
    gradients = torch.autograd.grad(value.sum() + triangle.log_prob(value.detach()).sum(), [low, high])
    assert all(bool(torch.isfinite(g)) for g in gradients)


def test_the_quantile_of_erlang_is_differentiable_in_both_arguments() -> None:
    def icdf(rate: Tensor, probability: Tensor) -> Tensor:
        return Erlang(4, rate).icdf(probability)

    arguments = tensor(0.7).requires_grad_(), tensor([0.1, 0.5, 0.95]).requires_grad_()
    reference = scipy.stats.erlang(4, scale=1 / 0.7)
    slopes = torch.autograd.grad(icdf(*arguments).sum(), arguments)
    quantiles = reference.ppf([0.1, 0.5, 0.95])
    np.testing.assert_allclose(slopes[0].item(), -quantiles.sum() / 0.7, rtol=1e-10)
    np.testing.assert_allclose(slopes[1].numpy(), 1 / reference.pdf(quantiles), rtol=1e-10)


@pytest.mark.parametrize("name", list(SCALARS))
def test_expand_keeps_class_law_and_gradient(name: str) -> None:
    ours, _, points = SCALARS[name]
    wide = ours.expand((4, 3))
    assert type(wide) is type(ours)
    assert wide.batch_shape == (4, 3)
    assert wide.rsample((2,)).shape == (2, 4, 3)
    assert torch.equal(wide.log_prob(tensor(points[0])), ours.log_prob(tensor(points[0])).expand(4, 3))
    assert wide.to_event(1).rsample().shape == (4, 3)


def test_parameters_broadcast_and_unconstrain() -> None:
    wide = Gompertz(tensor([0.5, 1.0, 2.0]), tensor([[1.0], [3.0]]))
    assert wide.batch_shape == (2, 3)
    free = torch.zeros(5, dtype=torch.float64)
    low, high = tensor(0.5), tensor(4.0)
    inside = biject_to(LogUniform(low, high).support)(free)
    assert bool(((inside > low) & (inside < high)).all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rayleigh(tensor(0.0)), "scale"),
        (lambda: LogUniform(tensor(2.0), tensor(1.0)), "Expected low < high; got"),
        (lambda: Gompertz(tensor(-1.0)), "concentration"),
        (lambda: Triangular(tensor(0.0), tensor(3.0), tensor(2.0)), "Expected low <= peak <= high and low < high; got"),
        (lambda: Erlang(0, tensor(1.0)), "Expected a positive integer concentration; got 0. Use Gamma"),
        (lambda: Erlang(2.5, tensor(1.0)), "Expected a positive integer concentration; got 2.5"),  # type: ignore[arg-type]
        (lambda: Elliptical(torch.zeros(3), torch.eye(2), dist.Chi2(2.0)), r"Expected loc \[..., D\] and scale_tril"),
        (lambda: Elliptical(torch.zeros(2), torch.eye(2), dist.Poisson(2.0)), "Expected radius to be a reparam"),
        (lambda: Rayleigh(tensor(1.0)).log_prob(tensor(-1.0)), "support"),
    ],
)
def test_wrong_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# ------------------------------------------------------------------------------------------------------- elliptical

LOC = tensor([0.5, -1.0, 2.0])
TRIL = tensor([[1.5, 0.0, 0.0], [0.4, 0.8, 0.0], [-0.3, 0.2, 1.1]])
COVARIANCE = (TRIL @ TRIL.mT).numpy()


def normal_radius(dim: int) -> Any:
    """The chi distribution, whose square is chi-squared of ``dim`` degrees of freedom."""
    return dist.TransformedDistribution(dist.Chi2(tensor(float(dim))), [dist.transforms.PowerTransform(tensor(0.5))])


@pytest.mark.parametrize(
    ("radius", "reference"),
    [
        (normal_radius(3), scipy.stats.multivariate_normal(LOC.numpy(), COVARIANCE)),
        (student_radius(3, tensor(5.0)), scipy.stats.multivariate_t(LOC.numpy(), COVARIANCE, 5.0)),
    ],
    ids=["normal", "student"],
)
def test_elliptical_is_scipys_of_that_radius(radius: Any, reference: Any) -> None:
    ours = Elliptical(LOC, TRIL, radius)
    points = torch.randn(20, 3, dtype=torch.float64) * 3
    np.testing.assert_allclose(ours.log_prob(points).numpy(), reference.logpdf(points.numpy()), rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_elliptical_has_scipys_density_at_its_centre(dim: int, dtype: torch.dtype) -> None:
    """Where the density of the radius over the area of the sphere is 0 / 0."""
    loc, tril = torch.ones(dim, dtype=dtype), 2 * torch.eye(dim, dtype=dtype)
    normal = scipy.stats.multivariate_normal(np.ones(dim), 4 * np.eye(dim))
    student = scipy.stats.multivariate_t(np.ones(dim), 4 * np.eye(dim), 5.0)
    power = dist.transforms.PowerTransform(torch.tensor(0.5, dtype=dtype))
    chi = dist.TransformedDistribution(dist.Chi2(torch.tensor(float(dim), dtype=dtype)), [power])
    for radius, reference in ((chi, normal), (student_radius(dim, torch.tensor(5.0, dtype=dtype)), student)):
        centre = loc.clone().requires_grad_()
        found = Elliptical(loc, tril, radius).log_prob(centre)
        assert found.item() == pytest.approx(reference.logpdf(np.ones(dim)), abs=1e-12 if dtype.itemsize == 8 else 1e-4)
        assert bool(torch.autograd.grad(found, centre)[0].isfinite().all())


def test_gompertz_says_that_its_moments_have_no_closed_form() -> None:
    for moment in ("mean", "variance"):
        with pytest.raises(
            NotImplementedError, match=r"Expected a moment in closed form; got Gompertz.*Write d\.sample"
        ):
            getattr(Gompertz(tensor(1.0)), moment)


def test_elliptical_draws_have_the_law_of_every_projection() -> None:
    draws = Elliptical(LOC, TRIL, student_radius(3, tensor(5.0))).rsample((20_000,)).numpy()
    for direction in np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, -1, 0.5]]):
        spread = math.sqrt(direction @ COVARIANCE @ direction)
        law = scipy.stats.t(5.0, direction @ LOC.numpy(), spread)
        assert scipy.stats.kstest(draws @ direction, law.cdf).pvalue > 1e-3


def test_elliptical_covariance_and_shapes() -> None:
    ours = Elliptical(LOC, TRIL, dist.Gamma(tensor(3.0), tensor(1.5)))  # E R² = 3 · 4 / 1.5²
    np.testing.assert_allclose(ours.covariance_matrix.numpy(), 12 / 2.25 / 3 * COVARIANCE, rtol=1e-12)
    draws = ours.rsample((200_000,))
    np.testing.assert_allclose(np.cov(draws.numpy().T), ours.covariance_matrix.numpy(), atol=0.1)
    wide = ours.expand((4, 2))
    assert wide.batch_shape == (4, 2)
    assert wide.event_shape == (3,)
    assert wide.rsample((5,)).shape == (5, 4, 2, 3)
    torch.testing.assert_close(wide.log_prob(LOC + 1), ours.log_prob(LOC + 1).expand(4, 2))


# ------------------------------------------------------------------------------------------------------------ table


@pytest.fixture(scope="module")
def checks() -> list[Check]:
    return [check(row) for row in TABLE]


def row_id(row: Reparameterization) -> str:
    return f"{row.name}, {row.way}"


def test_every_row_agrees_with_scipy_in_moments_law_and_gradients(checks: list[Check]) -> None:
    wrong = [found for found in checks if not found.ok]
    assert not wrong


def test_the_table_has_every_distribution_that_the_notes_list() -> None:
    listed = {
        WAYS[0]: [
            *("Exponential", "Cauchy", "Logistic", "Rayleigh", "Pareto", "Weibull", "Reciprocal"),
            *("Gompertz", "Gumbel", "Erlang"),
        ],
        WAYS[1]: ["Laplace", "Elliptical", "Student t", "Logistic", "Uniform", "Triangular", "Gaussian"],
        WAYS[2]: ["LogNormal", "Gamma, integer shape", "Gamma, any shape", "Dirichlet", "Beta", "χ²", "F"],
    }
    assert {way: [row.name for row in TABLE if row.way == way] for way in WAYS} == listed


@pytest.mark.parametrize("row", [r for r in TABLE if r.way == WAYS[0]], ids=row_id)
def test_an_inverse_distribution_function_is_scipys_quantile(row: Reparameterization) -> None:
    probability = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    expected = row.reference(**row.parameters).ppf(probability.numpy())
    np.testing.assert_allclose(row.transform(probability, **row.tensors()).numpy(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("row", TABLE, ids=row_id)
def test_the_distribution_in_code_draws_the_same_law_with_the_same_gradient(row: Reparameterization) -> None:
    """``rsample`` of torch's and our distributions: law and gradient of each moment, within four standard errors."""
    count = 20_000
    parameters = {n: p.expand(count, *p.shape).clone().requires_grad_() for n, p in row.tensors().items()}
    draws = row.project(row.distribution(**parameters).rsample())
    assert scipy.stats.kstest(draws.detach().numpy(), row.reference(**row.parameters).cdf).pvalue > 1e-3
    for name, moment in row.moments.items():
        gradients = torch.autograd.grad(moment(draws).sum(), list(parameters.values()), retain_graph=True)
        for parameter, found in zip(parameters, gradients, strict=True):
            exact = reparameterization_table._exact_gradient(row, name, parameter)
            assert reparameterization_table._standard_errors(found, exact) < 4


def test_with_the_exact_implicit_derivative_every_composition_meets_1e_6(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows' wider tolerance is torch's approximation of a Gamma's derivative, and nothing of g."""

    def exact(concentration: Tensor, value: Tensor) -> Tensor:
        shape, probability = concentration.numpy(), scipy.special.gammainc(concentration.numpy(), value.numpy())
        ends = [scipy.special.gammaincinv(shape + s * 1e-5, probability) for s in (1, -1)]
        return torch.from_numpy((ends[0] - ends[1]) / 2e-5)

    monkeypatch.setattr(torch, "_standard_gamma_grad", exact)
    for row in TABLE:
        if row.tolerance > 1e-6:
            assert check(row, num_samples=1000).derivative_error < 1e-6, row.name


def test_torchs_derivative_of_a_gamma_is_within_the_tolerance_that_the_page_states() -> None:
    for concentration in (0.1, 0.5, 1.0, 2.6, 7.5, 30.0):
        shape = torch.full((2000,), concentration, dtype=torch.float64)
        value = torch._standard_gamma(shape)
        probability = scipy.special.gammainc(concentration, value.numpy())
        inside = (probability > 1e-6) & (probability < 1 - 1e-6)
        ends = [scipy.special.gammaincinv(concentration + s * 1e-5, probability) for s in (1, -1)]
        exact = (ends[0] - ends[1]) / 2e-5
        found = torch._standard_gamma_grad(shape, value).numpy()
        assert np.abs(found / exact - 1)[inside].max() < 1e-3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda e, rate: -torch.log1p(-e) / rate * 1.02, "moment_error"),
        (lambda e, rate: -torch.log1p(-e) / rate.detach(), "gradient_error"),
    ],
    ids=["wrong scale", "no gradient"],
)
def test_a_wrong_row_is_found_and_prints_no_table(change: Any, field: str) -> None:
    def wrong(e: Tensor, rate: Tensor) -> Tensor:
        return change(e, rate) + 0 * rate

    found = check(replace(TABLE[0], transform=wrong))
    assert getattr(found, field) > 4
    assert not found.ok
    with pytest.raises(ArithmeticError, match="Expected Exponential by inverse CDF to agree with scipy; got"):
        markdown_table([found])


def test_the_committed_table_is_the_generated_one(checks: list[Check]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    committed = text.split(reparameterization_table.BEGIN)[1].split(reparameterization_table.END)[0]
    assert committed.strip() == markdown_table(checks)


def test_the_table_is_written_between_the_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reparameterization_table, "markdown_table", lambda: "| new |")
    page = tmp_path / "page.md"
    page.write_text(f"above\n{reparameterization_table.BEGIN}\n| old |\n{reparameterization_table.END}\nbelow\n")
    reparameterization_table.main([str(page)])
    assert (
        page.read_text() == f"above\n{reparameterization_table.BEGIN}\n| new |\n{reparameterization_table.END}\nbelow\n"
    )
    reparameterization_table.main([])
    assert capsys.readouterr().out == "| new |\n"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="Expected the lines"):
        reparameterization_table.main([str(page)])


def test_check_needs_two_draws() -> None:
    with pytest.raises(ValueError, match="Expected num_samples >= 2; got 1"):
        check(TABLE[0], num_samples=1)
