"""The estimators pass scikit-learn's own checks, and leave alone what is not theirs."""

from __future__ import annotations

import importlib
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import check_sample_weight_equivalence_on_dense_data, parametrize_with_checks

from pyro_latent.errors import ArgumentError, ModelError
from pyro_latent.models.estimators import (
    PPCA,
    ARDRegression,
    BayesianRidge,
    FactorAnalysis,
    GaussianMixture,
    HiddenMarkovModel,
)

pd = pytest.importorskip("pandas")

#: Each estimator with what is read of new data.
ESTIMATORS: list[tuple[Any, list[str]]] = [
    (GaussianMixture(2, random_state=0), ["predict", "predict_proba", "score_samples"]),
    (BayesianRidge(), ["predict"]),
    (ARDRegression(relative=True), ["predict"]),
    (FactorAnalysis(1), ["transform", "score_samples"]),
    (HiddenMarkovModel(2, random_state=0), ["predict", "predict_proba"]),
]
each = pytest.mark.parametrize(("estimator", "readings"), ESTIMATORS, ids=lambda v: type(v).__name__)


@pytest.fixture(autouse=True)
def of_any_fit() -> Iterator[None]:
    """The checks fit noise, which need not converge in time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def test_without_scikit_learn_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("pyro_latent.models.estimators")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"Run: pip install 'pyro-latent\[estimators\]'"):
        importlib.import_module("pyro_latent.models.estimators")


def without_meaning(estimator: Any) -> dict[str, str]:
    """The checks that an estimator cannot pass, and why."""
    if not isinstance(estimator, GaussianMixture):
        return {}
    why = "15 rows of 30 columns have no covariance, and three clusters of noise are those of the random start"
    return {"check_sample_weight_equivalence_on_dense_data": why}


@parametrize_with_checks([GaussianMixture(), HiddenMarkovModel()], expected_failed_checks=without_meaning)
def test_scikit_learns_own_checks_pass(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_weights_of_points_are_their_repetition_to_scikit_learn(kind: str) -> None:
    """Of one component, whatever the start, with variances, which the rows of the check have."""
    check_sample_weight_equivalence_on_dense_data("GaussianMixture", GaussianMixture(covariance_type=kind))


OTHERS = [
    BayesianRidge(max_iter=5),
    PPCA(max_iter=5),
    GaussianMixture(3, covariance_type="diag"),
    GaussianMixture(3, covariance_type="tied"),
    GaussianMixture(3, covariance_type="spherical"),
    ARDRegression(max_iter=20),
    BayesianRidge(relative=True, max_iter=20),
    FactorAnalysis(max_iter=20),
    HiddenMarkovModel(2),
]


@pytest.mark.slow
@parametrize_with_checks(OTHERS, expected_failed_checks=without_meaning)
def test_scikit_learns_own_checks_pass_of_others(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


def table() -> tuple[Any, np.ndarray[Any, Any]]:
    """Two clusters of 20 rows with named columns, and a target."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 2)) + 5.0 * (np.arange(40) % 2)[:, None]
    return pd.DataFrame(rows, columns=["height", "width"]), rows @ [1.0, -2.0] + rng.normal(size=40)


@each
def test_a_fit_leaves_the_state_of_torch_and_pyro_alone(estimator: Any, readings: list[str]) -> None:
    frame, target = table()
    pyro.param("kept", torch.tensor(1.0))
    before = torch.get_rng_state(), torch.get_default_dtype(), np.random.get_state()[1].copy()  # type: ignore[index]
    fitted = clone(estimator).fit(frame, target)
    for reading in readings:
        getattr(fitted, reading)(frame)
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.get_default_dtype() == before[1]
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])  # type: ignore[index]
    assert dict(pyro.get_param_store().items()).keys() == {"kept"}


@each
def test_the_same_seed_gives_the_same_fit_whatever_the_default_dtype(estimator: Any, readings: list[str]) -> None:
    frame, target = table()
    first = clone(estimator).fit(frame, target)
    torch.set_default_dtype(torch.float64)
    try:
        again = clone(estimator).fit(frame, target)
    finally:
        torch.set_default_dtype(torch.float32)
    assert first.lower_bound_ == again.lower_bound_


@each
def test_a_pickle_reads_data_as_the_estimator_does(estimator: Any, readings: list[str]) -> None:
    frame, target = table()
    fitted = clone(estimator).fit(frame, target)
    again = pickle.loads(pickle.dumps(fitted))
    for reading in readings:
        np.testing.assert_array_equal(getattr(again, reading)(frame), getattr(fitted, reading)(frame))
    with pytest.raises(ModelError, match="Expected the estimator that was fitted; got an unpickled one"):
        again.to_arviz()


@each
def test_names_of_columns_are_kept(estimator: Any, readings: list[str]) -> None:
    frame, target = table()
    fitted = clone(estimator).fit(frame, target)
    assert fitted.n_features_in_ == 2 and fitted.feature_names_in_.tolist() == ["height", "width"]
    with pytest.raises(ValueError, match="feature names"):
        getattr(fitted, readings[0])(frame[["width", "height"]])


@each
def test_draws_of_the_posterior_go_to_arviz(estimator: Any, readings: list[str]) -> None:
    frame, target = table()
    fitted = clone(estimator).fit(frame[:12], target[:12])
    found = fitted.to_arviz(num_samples=20)
    assert found.posterior.sizes["draw"] == 20
    assert found.posterior.attrs["elbo"] == pytest.approx(fitted.lower_bound_, abs=1e-6)


@pytest.mark.parametrize(("estimator", "readings"), ESTIMATORS[:-1], ids=lambda v: type(v).__name__)
def test_float32_data_is_fitted_and_read_in_float32(estimator: Any, readings: list[str]) -> None:
    frame, target = table()
    small = frame.to_numpy(np.float32)
    fitted = clone(estimator).set_params(tol=1e-6).fit(small, target.astype(np.float32))
    whole = clone(estimator).set_params(tol=1e-6).fit(small.astype(float), target)
    for reading in readings:
        found, expected = (getattr(e, reading)(x) for e, x in ((fitted, small), (whole, small.astype(float))))
        assert reading == "predict" or found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@each
def test_reading_before_a_fit_and_bad_limits_of_a_fit_are_errors(estimator: Any, readings: list[str]) -> None:
    frame, target = table()
    for reading in readings:
        with pytest.raises(NotFittedError):
            getattr(clone(estimator), reading)(frame)
    with pytest.raises(NotFittedError):
        clone(estimator).to_arviz()
    with pytest.raises(ArgumentError, match="Expected tol to be a finite number of at least 0"):
        clone(estimator).set_params(tol=-1.0).fit(frame, target)
    with pytest.raises(ArgumentError, match="Expected max_iter to be an integer of at least 1"):
        clone(estimator).set_params(max_iter=0).fit(frame, target)


@each
def test_a_fit_that_is_cut_short_says_so(estimator: Any, readings: list[str]) -> None:
    frame, target = table()
    with pytest.warns(ConvergenceWarning, match="Expected the fit to converge within max_iter=1 sweeps"):
        fitted = clone(estimator).set_params(max_iter=1).fit(frame, target)
    assert not fitted.converged_ and fitted.n_iter_ == 1
