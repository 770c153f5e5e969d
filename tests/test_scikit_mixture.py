"""``GaussianMixture`` beside scikit-learn's ``BayesianGaussianMixture``, and its density by laws."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import betaln, gammaln
from sklearn.base import clone
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.errors import ArgumentError
from pyro_latent.models import gmm
from pyro_latent.models.estimators import GaussianMixture
from pyro_latent.models.estimators.base import COVARIANCES

KINDS = ["dirichlet_process", "dirichlet_distribution"]
Points = np.ndarray[Any, Any]


class Started(BayesianGaussianMixture):
    """scikit-learn's mixture, from responsibilities that are given."""

    responsibilities: Points

    def _initialize_parameters(self, X: Points, random_state: Any, xp: Any = None) -> None:
        self._initialize(X, self.responsibilities)


def starting_at(responsibilities: Points, **params: Any) -> Started:
    found = Started(**params)
    found.responsibilities = responsibilities
    return found


@pytest.fixture
def points(old_faithful: Tensor) -> Points:
    return old_faithful.numpy()


def log_normalizer_of_priors(fitted: Any) -> float:
    """What scikit-learn leaves out of its bound: log Z of the K Normal-Wisharts and of the weights, of the priors."""
    count, dim = fitted.means_.shape
    degrees, scaling = fitted.degrees_of_freedom_prior_, fitted.mean_precision_prior_
    log_det = -np.linalg.slogdet(fitted.covariance_prior_)[1]
    wishart = degrees * (log_det + dim * np.log(2)) / 2 + gammaln((degrees - np.arange(dim)) / 2).sum()
    concentration = fitted.weight_concentration_prior_
    if fitted.weight_concentration_prior_type == "dirichlet_process":
        weights = count * betaln(1.0, concentration)
    else:
        weights = count * gammaln(concentration) - gammaln(count * concentration)
    return float(count * (wishart - dim * np.log(scaling) / 2) + weights)


@pytest.mark.parametrize("kind", KINDS)
def test_the_posterior_and_its_bound_are_scikit_learns(points: Points, kind: str) -> None:
    params: dict[str, Any] = {
        "n_components": 4,
        "weight_concentration_prior_type": kind,
        "weight_concentration_prior": 0.7,
        "mean_precision_prior": 0.5,
        "mean_prior": [3.0, 60.0],
        "degrees_of_freedom_prior": 3.5,
        "covariance_prior": [[1.0, 2.0], [2.0, 90.0]],
    }
    ours = GaussianMixture(**params, tol=1e-13, random_state=0).fit(points)
    generator = torch.Generator().manual_seed(np.random.RandomState(0).randint(2**31 - 1))
    start = gmm.initial_responsibilities(torch.from_numpy(points), 4, generator=generator).numpy()
    theirs = starting_at(start, **params, reg_covar=0.0, tol=1e-9, max_iter=5000).fit(points)
    assert ours.converged_ and theirs.converged_
    for name in ("weights_", "means_", "covariances_", "mean_precision_", "degrees_of_freedom_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(ours.weight_concentration_, theirs.weight_concentration_, rtol=1e-4)
    np.testing.assert_allclose(ours.predict_proba(points), theirs.predict_proba(points), atol=1e-5)
    constant = log_normalizer_of_priors(theirs) + points.size * np.log(2 * np.pi) / 2
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_ - constant, abs=1e-6)


@pytest.mark.parametrize("kind", [KINDS[1], pytest.param(KINDS[0], marks=pytest.mark.slow)])
def test_a_tied_fit_is_scikit_learns_whose_points_count_one_kth(points: Points, kind: str) -> None:
    """With K times its degrees of freedom and its prior of the covariance."""
    count, spread = 2, np.array([[1.0, 2.0], [2.0, 90.0]])
    params: dict[str, Any] = {
        "n_components": count,
        "covariance_type": "tied",
        "weight_concentration_prior_type": kind,
        "weight_concentration_prior": 0.7,
        "mean_precision_prior": 0.5,
    }
    own: dict[str, Any] = {"degrees_of_freedom_prior": count * 3.5, "covariance_prior": count * spread}
    ours = GaussianMixture(**params, **own, tol=1e-13, random_state=0).fit(points)
    generator = torch.Generator().manual_seed(np.random.RandomState(0).randint(2**31 - 1))
    start = gmm.initial_responsibilities(torch.from_numpy(points), count, generator=generator).numpy()
    theirs = starting_at(
        start, **params, degrees_of_freedom_prior=3.5, covariance_prior=spread, reg_covar=0.0, tol=1e-9, max_iter=5000
    ).fit(points)
    for name in ("weights_", "means_", "covariances_", "precisions_", "mean_precision_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(ours.predict_proba(points), theirs.predict_proba(points), atol=1e-5)
    assert ours.degrees_of_freedom_ == pytest.approx(count * theirs.degrees_of_freedom_)
    assert (np.diff(ours.lower_bounds_) > -1e-9).all()


def test_a_spherical_fit_to_one_column_is_scikit_learns(points: Points) -> None:
    start = np.eye(2)[(points[:, 1] > 65.0).astype(int)]
    params: dict[str, Any] = {"n_components": 2, "covariance_type": "spherical", "covariance_prior": 30.0}
    theirs = starting_at(start, **params, reg_covar=0.0, tol=1e-9, max_iter=5000).fit(points[:, 1:])
    ours = GaussianMixture(**params, tol=1e-13, random_state=0).fit(points[:, 1:])
    for name in ("weights_", "means_", "covariances_", "precisions_", "mean_precision_", "degrees_of_freedom_"):
        found, expected = (getattr(fit, name)[np.argsort(fit.means_[:, 0])] for fit in (ours, theirs))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("covariance_type", "kind"),
    [("full", KINDS[0]), ("tied", KINDS[0]), ("diag", KINDS[1]), ("spherical", KINDS[0]), ("tied", KINDS[1])],
)
def test_the_fit_is_that_of_the_pyro_model_by_hand(points: Points, covariance_type: str, kind: str) -> None:
    found = GaussianMixture(
        3, covariance_type=covariance_type, weight_concentration_prior_type=kind, tol=1e-6, random_state=5
    ).fit(points)
    model = gmm.model if kind == "dirichlet_distribution" else gmm.process_model
    generator = torch.Generator().manual_seed(np.random.RandomState(5).randint(2**31 - 1))
    data = torch.from_numpy(points)
    start = {"component": gmm.initial_responsibilities(data, 3, generator=generator)}
    guide = AutoConjugate(model, blocks=[("mean", "precision")], init=start)
    kwargs: Any = {"covariance": COVARIANCES[covariance_type]}
    result = CAVI(model, guide).run(data, 3, tol=1e-6, max_steps=1000, **kwargs)
    assert found.lower_bound_ == pytest.approx(float(result.elbo[-1]), abs=1e-9) and found.n_iter_ == result.num_steps
    posterior = guide.posterior(joint=True)
    np.testing.assert_allclose(found.means_, posterior["mean", "precision"].loc, rtol=1e-9)
    np.testing.assert_allclose(found.predict_proba(points), posterior["component"].probs, atol=1e-9)
    predictive = gmm.predictive(posterior) if kind == KINDS[1] else gmm.process_predictive(posterior, data, 3, **kwargs)
    np.testing.assert_allclose(found.score_samples(points), predictive.log_prob(data), rtol=1e-9)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.score_samples(points), found.score_samples(points))
    assert found.to_arviz(num_samples=3).posterior["mean"].shape == (1, 3, 3, 2)


@pytest.mark.parametrize(
    ("covariance_type", "kind"),
    [("full", KINDS[0]), ("diag", KINDS[0]), ("full", KINDS[1]), ("spherical", KINDS[0]), ("tied", KINDS[0])],
)
def test_the_density_is_that_of_points_averaged_over_draws_of_q(covariance_type: str, kind: str) -> None:
    """Draws of the weights and components of q, new components by their prior; within five standard errors."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-2.0, 1.0, 8), rng.normal(3.0, 0.5, 5)])[:, None]
    found = GaussianMixture(
        2,
        covariance_type=covariance_type,
        weight_concentration_prior_type=kind,
        weight_concentration_prior=1.5,
        degrees_of_freedom_prior=3.0,
        random_state=0,
    ).fit(x)
    draws, at = 20_000, np.array([-3.0, 0.0, 2.5, 6.0])
    kwargs = found.model_kwargs_
    if kind == "dirichlet_process":
        sticks = rng.beta(found.weight_concentration_[0], found.weight_concentration_[1], size=(draws, 2))
        rest = np.cumprod(1 - sticks, axis=1)
        weights = np.concatenate([sticks * np.c_[np.ones(draws), rest[:, :1]], rest[:, 1:]], axis=1)
    else:
        weights = np.c_[rng.dirichlet(found.weight_concentration_, size=draws), np.zeros(draws)]
    degrees = np.append(found.degrees_of_freedom_, 3.0)
    rates = np.append(found.degrees_of_freedom_ * found.covariances_.ravel(), float(kwargs["covariance_prior"]))
    size = (draws, 3)
    if covariance_type == "tied":  # also by the components beyond K
        degrees, rates, size = degrees[:1], rates[:1], (draws, 1)
    precision = rng.gamma(degrees / 2, 2 / rates, size=size)
    loc, scaling = np.append(found.means_, x.mean()), np.append(found.mean_precision_, 1.0)
    mean = rng.normal(loc, (scaling * precision) ** -0.5)
    densities = (weights * stats.norm.pdf(at[:, None, None], mean, precision**-0.5)).sum(-1)
    error = densities.std(1) / np.sqrt(draws)
    assert (np.abs(np.exp(found.score_samples(at[:, None])) - densities.mean(1)) < 5 * error).all()


def test_points_of_a_process_count_as_often_as_their_weights_say(points: Points) -> None:
    data, counts = torch.from_numpy(points[:60]), torch.arange(60) % 3 + 1
    start = gmm.initial_responsibilities(data, 3, generator=torch.Generator().manual_seed(0))
    bounds = []
    for times, weights in ((torch.ones_like(counts), counts.double()), (counts, None)):
        init = {"component": start.repeat_interleave(times, 0)}
        guide = AutoConjugate(gmm.process_model, blocks=[("mean", "precision")], init=init)
        args: Any = data.repeat_interleave(times, 0), 3
        options: dict[str, Any] = {"max_steps": 8, "tol": 0, "sample_weight": weights}
        bounds.append(CAVI(gmm.process_model, guide).run(*args, **options).elbo)
    torch.testing.assert_close(*bounds, rtol=1e-11, atol=0)


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_a_point_counts_as_often_as_its_weight_says(covariance_type: str) -> None:
    """A weight of 2 is the point twice, of 0 no point, also for default priors; from starts in the same clusters."""
    rng = np.random.default_rng(0)
    points, weights = np.r_[rng.normal(-6.0, 1.0, (25, 2)), rng.normal(6.0, 1.5, (15, 2))], rng.integers(0, 4, 40)
    kind = "dirichlet_distribution"  # in which the order of the components makes no difference
    mixture = GaussianMixture(
        2, covariance_type=covariance_type, weight_concentration_prior_type=kind, tol=1e-12, random_state=0
    )
    found = clone(mixture).fit(points, sample_weight=weights)
    repeated = clone(mixture).fit(np.repeat(points, weights, 0))
    assert found.lower_bound_ == pytest.approx(repeated.lower_bound_, rel=1e-11)
    np.testing.assert_allclose(found.score_samples(points), repeated.score_samples(points), rtol=1e-9)
    np.testing.assert_allclose(
        found.means_[found.predict(points)], repeated.means_[repeated.predict(points)], rtol=1e-9
    )
    assert clone(mixture).fit_predict(points, sample_weight=weights).shape == (40,)
    with pytest.raises(ArgumentError, match="Expected sample_weight to be finite and at least 0; got -1 among it"):
        found.fit(points, sample_weight=weights - 1)


def test_samples_are_of_the_density() -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(-2.0, 1.0, 30), rng.normal(3.0, 0.5, 20)])[:, None]
    found = GaussianMixture(2, random_state=0).fit(x)
    draws, labels = found.sample(4000)
    assert draws.shape == (4000, 1) and set(labels) <= {0, 1, 2}
    grid = np.linspace(-60.0, 60.0, 24_001)
    density = np.exp(found.score_samples(grid[:, None]))
    cumulative = np.cumsum(density) * (grid[1] - grid[0])
    assert cumulative[-1] == pytest.approx(1.0, abs=5e-3)
    assert stats.kstest(draws[:, 0], lambda v: np.interp(v, grid, cumulative)).pvalue > 1e-3
    np.testing.assert_array_equal(draws, found.sample(4000)[0])


def test_the_best_of_several_starts_is_kept(points: Points) -> None:
    several = GaussianMixture(3, n_init=3, tol=1e-5, random_state=3).fit(points[:80])
    state = np.random.RandomState(3)
    one = GaussianMixture(3, n_init=1, tol=1e-5, random_state=state).fit(points[:80])
    assert several.lower_bound_ >= one.lower_bound_
    assert several.lower_bound_ == several.lower_bounds_[-1] == pytest.approx(several.guide_.elbo(), abs=1e-6)


def test_superfluous_components_of_a_process_end_without_points(points: Points) -> None:
    found = GaussianMixture(8, weight_concentration_prior=0.01, tol=1e-6, random_state=0).fit(points)
    assert (found.weights_ > 0.05).sum() < 8
    assert len(np.unique(found.fit_predict(points))) < 8


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"covariance_type": "diagonal"}, "Expected covariance_type to be 'full' or 'tied' or .*; got 'diagonal'"),
        ({"covariance_type": "spherical", "covariance_prior": [1.0, 2.0]}, r"covariance_prior of shape \[\] for sph"),
        ({"weight_concentration_prior_type": "dp"}, "Expected weight_concentration_prior_type to be"),
        ({"n_components": 0}, "Expected n_components to be an integer of at least 1; got 0"),
        ({"n_init": 1.5}, "Expected n_init to be an integer"),
        ({"degrees_of_freedom_prior": 0.5}, "Expected degrees_of_freedom_prior > 1 for full covariances"),
        ({"mean_prior": ["a", "b"]}, "Expected mean_prior to be numbers; got list"),
        ({"mean_prior": [0.0]}, r"Expected mean_prior of shape \[2\]; got shape \[1\]"),
        ({"covariance_prior": [[1.0, 2.0], [2.0, 1.0]]}, "Expected covariance_prior to be symmetric and positive"),
    ],
)
def test_parameters_out_of_their_range_are_errors(points: Points, params: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        GaussianMixture(**params).fit(points)


def test_a_column_without_spread_and_missing_values_are_errors(points: Points) -> None:
    with pytest.raises(ValueError, match="positive definite empirical covariance"):
        GaussianMixture().fit(np.c_[points, np.ones(len(points))])
    with pytest.raises(ValueError, match="positive definite empirical covariance"):
        GaussianMixture().fit(np.c_[points, np.full(len(points), 0.1)].astype(np.float32))  # whose mean is rounded
    points[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        GaussianMixture().fit(points)
