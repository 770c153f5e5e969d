"""``FactorAnalysis`` and ``PPCA`` beside scikit-learn's, with missing values, and by laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn import decomposition

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.errors import ArgumentError, DataError
from pyro_latent.models import factors
from pyro_latent.models.estimators import PPCA, FactorAnalysis

Rows = np.ndarray[Any, Any]
both = pytest.mark.parametrize("kind", [FactorAnalysis, PPCA])


def table(count: int, missing: float = 0.0, seed: int = 0) -> Rows:
    """Rows of two factors in seven columns of different levels and noise, some entries of them missing."""
    rng = np.random.default_rng(seed)
    loading = np.array([[2.0, -1.0, 1.0, 0.0, 1.0, -1.5, 1.0], [0.0, 1.0, 1.5, -1.0, 0.5, 0.0, 1.0]])
    noise = np.array([0.5, 0.8, 0.7, 0.6, 0.4, 0.5, 0.6])
    level = [3.0, 0.0, -2.0, 10.0, 1.0, 0.0, 4.0]
    rows = rng.normal(size=(count, 2)) @ loading + level + noise * rng.normal(size=(count, 7))
    rows[rng.random(rows.shape) < missing] = np.nan
    return rows


@both
def test_with_many_rows_the_density_is_that_of_maximum_likelihood(kind: Any) -> None:
    """The prior counts for as little as one of 2,000 rows."""
    rows, new = table(2_000), table(500, seed=1)
    found = kind(2).fit(rows)
    theirs = {FactorAnalysis: decomposition.FactorAnalysis(2, tol=1e-8), PPCA: decomposition.PCA(2)}[kind].fit(rows)
    np.testing.assert_allclose(found.get_covariance(), theirs.get_covariance(), rtol=0.01, atol=0.01)
    np.testing.assert_allclose(found.mean_, theirs.mean_, atol=2e-3)
    np.testing.assert_allclose(found.noise_variance_, theirs.noise_variance_, rtol=0.01)
    assert found.score(new) == pytest.approx(theirs.score(new), abs=2e-3)


@both
def test_factors_of_new_rows_are_those_of_the_guide(kind: Any) -> None:
    new = table(20, missing=0.2, seed=1)
    found = kind(2, tol=1e-6).fit(table(60, missing=0.2))
    data, seen = torch.from_numpy(new).nan_to_num(), torch.from_numpy(new).isfinite()
    kwargs = found.model_kwargs_ | {"seen": seen}
    factor = found.guide_.posterior(data, 2, **kwargs)["factor"].mean.squeeze(1)
    np.testing.assert_allclose(found.transform(new), factor, rtol=1e-7, atol=1e-9)


@both
def test_the_fit_is_that_of_the_pyro_model_by_hand(kind: Any) -> None:
    rows = table(60, missing=0.2)
    found = kind(2, tol=1e-6).fit(rows)
    data, seen = torch.from_numpy(rows).nan_to_num(), torch.from_numpy(rows).isfinite()
    guide = AutoConjugate(factors.model, init=found.guide_.init)
    result = CAVI(factors.model, guide).run(data, 2, seen=seen, noise_by_column=kind is FactorAnalysis, tol=1e-6)
    assert found.lower_bound_ == pytest.approx(float(result.elbo[-1]), abs=1e-6)
    np.testing.assert_allclose(found.components_, guide.posterior()["loading"].mean.mT, rtol=1e-6, atol=1e-9)


def test_a_row_of_which_nothing_is_seen_says_nothing() -> None:
    """Its factor is at the prior; the posterior of the rest, and the bound, are as without it."""
    rows = table(80)
    found = PPCA(2, tol=1e-9).fit(rows)
    more = PPCA(2, tol=1e-9).fit(np.r_[rows, np.full((1, 7), np.nan)])
    assert more.lower_bound_ == pytest.approx(found.lower_bound_, abs=1e-3)
    np.testing.assert_allclose(more.get_covariance(), found.get_covariance(), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found.transform(np.full((1, 7), np.nan)), [[0.0, 0.0]])
    np.testing.assert_array_equal(found.score_samples(np.full((1, 7), np.nan)), [0.0])


def test_the_density_of_a_row_is_the_margin_of_what_is_seen_of_it() -> None:
    found = PPCA(2).fit(table(80))
    row = table(1, seed=3)[0]
    seen = [0, 2, 3, 5, 6]
    row[[1, 4]] = np.nan
    margin = multivariate_normal(found.mean_[seen], found.get_covariance()[np.ix_(seen, seen)])
    assert found.score_samples(row[None])[0] == pytest.approx(margin.logpdf(row[seen]), rel=1e-10)


@pytest.mark.filterwarnings("ignore:Expected the fit to converge")
def test_the_unit_and_the_level_of_a_column_make_no_difference() -> None:
    rows, unit, level = table(80, missing=0.1), np.array([1.0, 100.0, 0.01, 3.0, 1.0, 1.0, 7.0]), 50.0
    found, other = (FactorAnalysis(2, max_iter=5).fit(r) for r in (rows, rows * unit + level))
    np.testing.assert_allclose(other.transform(rows * unit + level), found.transform(rows), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(other.components_, found.components_ * unit, rtol=1e-5, atol=1e-7)


def test_missing_entries_are_filled_in_near_their_values() -> None:
    whole, holes = table(300), table(300, missing=0.15)
    found = FactorAnalysis(2).fit(holes)
    filled = found.inverse_transform(found.transform(holes))
    hidden = np.isnan(holes)
    error = np.square(filled - whole)[hidden].mean() / np.square(np.nanmean(holes, 0) - whole)[hidden].mean()
    assert error < 0.5


def test_a_factor_that_the_data_do_not_need_is_switched_off() -> None:
    rng = np.random.default_rng(0)
    rows = np.outer(rng.normal(size=200), [1.0, -2.0, 0.5, 1.0]) + 0.3 * rng.normal(size=(200, 4))
    lengths = np.linalg.norm(PPCA(2).fit(rows).components_, axis=1)
    assert lengths.min() < 0.05 * lengths.max()


def test_draws_go_to_arviz_though_the_prior_is_too_wide_to_draw_from() -> None:
    analysis = PPCA(1, prior=1e-5).fit(table(20))
    draws = analysis.to_arviz(num_samples=50).posterior["mean"].values  # [1, 50, 7]
    mean = analysis.guide_.posterior()["mean"]
    assert (np.abs(draws.mean((0, 1)) - mean.mean.numpy()) < 5 * mean.stddev.numpy() / 50**0.5).all()
    with pytest.raises(ArgumentError, match="Expected prior_samples=0"):
        analysis.to_arviz(prior_samples=10)


def test_data_and_parameters_that_make_no_sense_are_errors() -> None:
    rows = table(20)
    with pytest.raises(DataError, match=r"Expected at least two different values in each column.*columns \[7\]"):
        FactorAnalysis().fit(np.c_[rows, np.full(20, np.nan)])
    with pytest.raises(DataError, match=r"Expected at least two different values.*columns \[7\]"):
        FactorAnalysis().fit(np.c_[rows, np.full(20, 0.1)])
    with pytest.raises(DataError, match=r"Expected at least two different values.*columns \[7\]"):
        FactorAnalysis().fit(np.c_[table(1000), np.full(1000, 0.1)].astype(np.float32))  # whose mean is rounded
    with pytest.raises(ValueError, match="infinity"):
        FactorAnalysis().fit(np.c_[rows, np.full(20, np.inf)])
    with pytest.raises(ArgumentError, match="Expected prior to be a finite number above 0"):
        PPCA(prior=0.0).fit(rows)
    with pytest.raises(DataError, match="Expected 2 factors in each row; got 3"):
        PPCA(2).fit(rows).inverse_transform(np.zeros((1, 3)))
    with pytest.raises(DataError, match="Expected seen to be a tensor of bool"):
        factors.model(torch.from_numpy(rows), 2, seen=torch.ones(20, 7))
