"""``BayesianRidge`` and ``ARDRegression`` beside scikit-learn's, and against dense algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from sklearn import linear_model

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.errors import ArgumentError, DataError
from pyro_latent.models import regression
from pyro_latent.models.estimators import ARDRegression, BayesianRidge

Rows = np.ndarray[Any, Any]
PRIORS: dict[str, Any] = {"alpha_1": 2.0, "alpha_2": 0.5, "lambda_1": 1.5, "lambda_2": 0.7}


@pytest.fixture
def rows() -> tuple[Rows, Rows]:
    """Sixty rows of four features that are correlated and lie off zero, and their targets."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)) + [3.0, -1.0, 0.0, 2.0]
    return features, features @ [1.0, -0.5, 0.3, 2.0] + 4.0 + 0.8 * rng.normal(size=60)


@pytest.mark.parametrize("kind", ["BayesianRidge", "ARDRegression"])
def test_without_an_intercept_the_posterior_is_scikit_learns(rows: tuple[Rows, Rows], kind: str) -> None:
    """Its fixed point λ m² = γ is that of λ (m² + tr Σ) = D, and so with the noise's precision and the priors."""
    ours = {"BayesianRidge": BayesianRidge, "ARDRegression": ARDRegression}[kind]
    found = ours(fit_intercept=False, tol=1e-14, **PRIORS).fit(*rows)
    theirs = getattr(linear_model, kind)(fit_intercept=False, tol=1e-12, max_iter=2000, **PRIORS).fit(*rows)
    for name in ("coef_", "alpha_", "lambda_", "sigma_"):
        np.testing.assert_allclose(getattr(found, name), getattr(theirs, name), rtol=1e-5, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(found.predict(rows[0]), theirs.predict(rows[0]), rtol=1e-6)


@pytest.mark.parametrize("ard", [False, True])
def test_with_relative_precisions_the_joint_factor_is_the_conjugate_posterior(
    rows: tuple[Rows, Rows], ard: bool
) -> None:
    """Normal-Gamma by dense algebra, given E λ; and E λ from E τ w w' of that."""
    features, target = rows
    ours = ARDRegression if ard else BayesianRidge
    found = ours(relative=True, tol=1e-14, **PRIORS).fit(features, target)
    design = np.c_[features - features.mean(0), np.ones(60)]
    shrinkage = np.broadcast_to(found.guide_.posterior()["weight_precision"].mean.numpy(), 4)
    precision = design.T @ design + np.diag([*shrinkage, 0.0])
    mean = np.linalg.solve(precision, design.T @ target)
    concentration = PRIORS["alpha_1"] + (60 - 1) / 2
    rate = PRIORS["alpha_2"] + (target @ target - mean @ precision @ mean) / 2
    covariance = np.linalg.inv(precision) * rate / (concentration - 1)
    np.testing.assert_allclose(found.coef_, mean[:4], rtol=1e-6)
    assert found.intercept_ == pytest.approx(mean[4] - features.mean(0) @ mean[:4], rel=1e-6)
    assert found.alpha_ == pytest.approx(concentration / rate, rel=1e-6)
    np.testing.assert_allclose(found.sigma_, covariance[:4, :4], rtol=1e-6, atol=1e-12)
    _, std = found.predict(features, return_std=True)
    variance = rate / (concentration - 1) + ((design @ covariance) * design).sum(1)
    np.testing.assert_allclose(std, np.sqrt(variance), rtol=1e-6)
    squares = np.diag(np.linalg.inv(precision))[:4] + found.alpha_ * mean[:4] ** 2
    count, squares = (1, squares) if ard else (4, squares.sum())
    expected = (PRIORS["lambda_1"] + count / 2) / (PRIORS["lambda_2"] + squares / 2)
    np.testing.assert_allclose(found.lambda_, np.squeeze(expected) * found.alpha_, rtol=1e-5)


@pytest.mark.parametrize("intercept", [False, True])
def test_the_deviation_of_a_prediction_is_that_of_draws_of_q(rows: tuple[Rows, Rows], intercept: bool) -> None:
    found = BayesianRidge(fit_intercept=intercept).fit(rows[0][:12], rows[1][:12])
    rng = np.random.default_rng(1)
    q, draws = found.guide_.posterior(joint=True), 100_000
    at = rows[0][20] - (rows[0][:12].mean(0) if intercept else 0.0)
    if intercept:
        joint = q["weights", "intercept"]
        torch.manual_seed(0)
        parts = joint.split(joint.sample((draws,)))
        mean = parts["weights"].numpy() @ at + parts["intercept"].numpy()
    else:
        mean = rng.multivariate_normal(found.coef_, found.sigma_, size=draws) @ at
    noise = q["noise_precision"]
    precision = rng.gamma(noise.concentration.item(), 1 / noise.rate.item(), size=draws)
    values = mean + rng.normal(size=draws) / np.sqrt(precision)
    predicted, std = found.predict(rows[0][20:21], return_std=True)
    assert predicted[0] == pytest.approx(values.mean(), abs=5 * values.std() / np.sqrt(draws))
    squares = (values - predicted[0]) ** 2
    assert std[0] ** 2 == pytest.approx(squares.mean(), abs=5 * squares.std() / np.sqrt(draws))


def test_where_features_and_target_lie_makes_no_difference(rows: tuple[Rows, Rows]) -> None:
    found = BayesianRidge().fit(*rows)
    moved = BayesianRidge().fit(rows[0] + 1e4, rows[1] - 1e3)
    np.testing.assert_allclose(moved.coef_, found.coef_, rtol=1e-6)
    np.testing.assert_allclose(moved.predict(rows[0] + 1e4), found.predict(rows[0]) - 1e3, rtol=1e-8)
    assert moved.lower_bound_ == pytest.approx(found.lower_bound_, abs=1e-5)


@pytest.mark.parametrize("relative", [False, True])
def test_the_fit_is_that_of_the_pyro_model_by_hand(rows: tuple[Rows, Rows], relative: bool) -> None:
    found = BayesianRidge(relative=relative).fit(*rows)
    features, target = map(torch.from_numpy, rows)
    guide = AutoConjugate(regression.model, blocks=regression.joint_sites(relative=relative))
    result = CAVI(regression.model, guide).run(features, target, relative=relative, center=features.mean(0))
    assert found.lower_bound_ == pytest.approx(float(result.elbo[-1]), abs=1e-9)
    np.testing.assert_allclose(found.coef_, guide.posterior()["weights"].mean, rtol=1e-9)


def test_weights_that_the_data_do_not_need_go_to_zero() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 6))
    target = features[:, 0] - 2 * features[:, 1] + 0.5 * rng.normal(size=100)
    found = ARDRegression(max_iter=300, tol=1e-6).fit(features, target)
    least_squares = linear_model.LinearRegression().fit(features, target)
    np.testing.assert_allclose(found.coef_[:2], least_squares.coef_[:2], rtol=0.05)
    assert (np.abs(found.coef_[2:]) < 0.9 * np.abs(least_squares.coef_[2:])).all()
    assert np.abs(found.coef_[2:]).min() < 0.001


def test_draws_of_a_prior_without_draws_are_an_error(rows: tuple[Rows, Rows]) -> None:
    with pytest.raises(ArgumentError, match="Expected prior_samples=0"):
        BayesianRidge().fit(*rows).to_arviz(prior_samples=10)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"alpha_1": 0.0}, "Expected alpha_1 to be a finite number above 0; got 0.0"),
        ({"lambda_2": "1"}, "Expected lambda_2 to be a finite number above 0; got '1'"),
        ({"relative": "yes"}, "Expected relative to be False or True; got 'yes'"),
        ({"fit_intercept": None}, "Expected fit_intercept to be False or True; got None"),
    ],
)
def test_parameters_out_of_their_range_are_errors(rows: tuple[Rows, Rows], params: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        BayesianRidge(**params).fit(*rows)


def test_the_model_says_what_data_it_expects(rows: tuple[Rows, Rows]) -> None:
    features, target = map(torch.from_numpy, rows)
    with pytest.raises(DataError, match=r"Expected features to be a floating tensor of shape \[N, D\]"):
        regression.model(features[:, 0], target)
    with pytest.raises(DataError, match=r"Expected target of shape \[60\]"):
        regression.model(features, target[:10])


@pytest.mark.parametrize(
    ("kind", "params"),
    [(BayesianRidge, {}), (BayesianRidge, {"relative": True}), (ARDRegression, {"fit_intercept": False})],
)
def test_a_row_counts_as_often_as_its_weight_says(rows: tuple[Rows, Rows], kind: Any, params: dict[str, Any]) -> None:
    """A weight of 2 is the row twice, of 0 no row; the sweeps are the same, and the bound."""
    features, target = rows
    weights = np.arange(60) % 4
    found = kind(**PRIORS, **params).fit(features, target, sample_weight=weights)
    repeated = kind(**PRIORS, **params).fit(np.repeat(features, weights, 0), np.repeat(target, weights))
    assert found.n_iter_ == repeated.n_iter_
    assert found.lower_bound_ == pytest.approx(repeated.lower_bound_, rel=1e-11)
    for name in ("coef_", "intercept_", "alpha_", "lambda_", "sigma_"):
        np.testing.assert_allclose(getattr(found, name), getattr(repeated, name), rtol=1e-9, err_msg=name)
    for mine, theirs in zip(
        found.predict(features, return_std=True), repeated.predict(features, return_std=True), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)


def test_weighted_rows_have_the_posterior_of_scikit_learn(rows: tuple[Rows, Rows]) -> None:
    weights = np.random.default_rng(1).gamma(2.0, size=60)
    found = BayesianRidge(fit_intercept=False, tol=1e-14, **PRIORS).fit(*rows, sample_weight=weights)
    theirs = linear_model.BayesianRidge(fit_intercept=False, tol=1e-12, max_iter=2000, **PRIORS)
    theirs.fit(*rows, sample_weight=weights)
    for name in ("coef_", "alpha_", "lambda_", "sigma_"):
        np.testing.assert_allclose(getattr(found, name), getattr(theirs, name), rtol=1e-5, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.full(60, -1.0), "Expected sample_weight to be finite and at least 0; got -1 among it"),
        (np.where(np.arange(60) == 3, np.nan, 1.0), "at least 0; got nan among it"),
        (np.ones(59), r"Expected sample_weight to be 60 numbers, one for each row; got an array of float64 \[59\]"),
        (np.ones((60, 1)), "Expected sample_weight to be 60 numbers, one for each row"),
        (["heavy"] * 60, "Expected sample_weight to be 60 numbers"),
        (np.eye(60)[0], "Expected sample_weight to be above zero for 2 rows at least; got 1"),
        (0.0, "Expected sample_weight to be above zero for 2 rows at least; got 0"),
    ],
)
def test_weights_that_count_nothing_are_errors_and_leave_the_fit(
    rows: tuple[Rows, Rows], weights: Any, words: str
) -> None:
    fitted = BayesianRidge(max_iter=50).fit(*rows)
    before = fitted.coef_
    with pytest.raises(ArgumentError, match=words):
        fitted.fit(*rows, sample_weight=weights)
    assert fitted.coef_ is before


def test_weights_of_the_model_are_checked_and_its_guide_starts_at_weighted_least_squares(
    rows: tuple[Rows, Rows],
) -> None:
    features, target = map(torch.from_numpy, rows)
    weights = torch.arange(1, 61).double() % 3 + 1
    for program in (regression.model, regression.guide):
        with pytest.raises(DataError, match=r"Expected sample_weight to be a floating tensor of shape \[60\]"):
            program(features, target, sample_weight=weights[1:])
        with pytest.raises(DataError, match="positive and finite; got -1 among it"):
            program(features, target, sample_weight=weights - 3)
    pyro.clear_param_store()
    regression.guide(features, target, sample_weight=weights)
    found = {name: value.detach() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()
    counts = weights.long()
    regression.guide(features.repeat_interleave(counts, 0), target.repeat_interleave(counts))
    for name, value in pyro.get_param_store().items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-9, atol=1e-12)
