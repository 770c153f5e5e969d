"""``HiddenMarkovModel`` beside hmmlearn's, against the engine on its Pyro model, and against sums over all paths."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hmmlearn.hmm import GaussianHMM
from hmmlearn.vhmm import VariationalGaussianHMM

from pyro_latent import CAVI
from pyro_latent.errors import ArgumentError, DataError
from pyro_latent.models import hidden_markov
from pyro_latent.models.estimators import HiddenMarkovModel

Rows = np.ndarray[Any, Any]
PRIORS: dict[str, Any] = {
    "startprob_prior": 0.8,
    "transmat_prior": 1.5,
    "means_prior": [1.0, 2.0],
    "beta_prior": 0.5,
    "dof_prior": 3.5,
    "scale_prior": [[2.0, 0.5], [0.5, 3.0]],
}


def chain(count: int, seed: int = 0) -> Rows:
    """Vectors along a chain of three states that stays nine times in ten."""
    rng = np.random.default_rng(seed)
    states = [0]
    for _ in range(count - 1):
        states.append(states[-1] if rng.random() < 0.9 else int(rng.integers(3)))
    centers = np.array([[0.0, 0.0], [3.0, 1.0], [-2.0, 4.0]])
    found: Rows = centers[states] + rng.normal(size=(count, 2))
    return found


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_the_posterior_is_a_fixed_point_of_hmmlearns_updates(covariance_type: str) -> None:
    rows, lengths = chain(200), [120, 80]
    found = HiddenMarkovModel(3, covariance_type=covariance_type, tol=1e-14, random_state=0, **PRIORS)
    found.fit(rows, lengths=lengths)
    theirs = VariationalGaussianHMM(3, covariance_type, init_params="", n_iter=3, tol=0.0)
    shape: dict[str, Any] = {"transmat_prior": (3, 3), "means_prior": (3, 2), "scale_prior": (3, 2, 2)}
    shape |= {"scale_prior": (2, 2), "dof_prior": ()} if covariance_type == "tied" else {}
    theirs.n_features, theirs._covars_ = 2, found.covars_
    for name, value in PRIORS.items():
        setattr(theirs, name, value)
        setattr(theirs, f"{name}_", np.broadcast_to(value, shape.get(name, 3)).astype(float)[()])
    names = [f"{name.removesuffix('_prior')}_posterior_" for name in PRIORS]
    for name in names:
        setattr(theirs, name, getattr(found, name).copy()[()])  # numbers rather than arrays of one
    theirs.fit(rows, lengths)
    for name in names:
        np.testing.assert_allclose(getattr(theirs, name), getattr(found, name), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("covariance_type", "lengths"),
    [("full", [15, 8]), ("full", [20]), ("diag", [20]), ("tied", [12, 8]), ("spherical", [12, 8])],
)
def test_the_posterior_is_that_of_coordinate_ascent_on_the_pyro_model(covariance_type: str, lengths: list[int]) -> None:
    rows = chain(sum(lengths))
    found = HiddenMarkovModel(3, covariance_type=covariance_type, tol=1e-13, random_state=0).fit(rows, lengths=lengths)
    guide = found.guide_
    assert guide.elbo() == pytest.approx(found.lower_bound_, abs=1e-8)
    swept = -CAVI(hidden_markov.model, guide).step(*found.model_args_, **found.model_kwargs_)
    assert swept == pytest.approx(found.lower_bound_, abs=1e-8)
    posterior = guide.posterior()
    np.testing.assert_allclose(posterior["transition"].concentration, found.transmat_posterior_, atol=1e-4)
    np.testing.assert_allclose(guide.posterior(joint=True)["mean", "precision"].loc, found.means_, atol=1e-4)
    of_first = np.stack([posterior[f"state_{t}"].probs[0] for t in range(lengths[0])])
    np.testing.assert_allclose(of_first, found.predict_proba(rows, lengths)[: lengths[0]], atol=1e-5)


def test_smoothing_and_the_best_path_are_those_of_a_sum_over_all_paths() -> None:
    rng = np.random.default_rng(0)
    initial, transition, emission = rng.normal(size=3), rng.normal(size=(3, 3)), 3 * rng.normal(size=(5, 3))
    paths = np.array(list(itertools.product(range(3), repeat=5)))
    values = initial[paths[:, 0]] + transition[paths[:, :-1], paths[:, 1:]].sum(1)
    values = values + emission[np.arange(5), paths].sum(1)
    log_normalizer = np.log(np.exp(values).sum())
    weights = np.exp(values - log_normalizer)
    found = hidden_markov.smooth(initial, transition, emission)
    assert found.log_normalizer == pytest.approx(log_normalizer, rel=1e-12)
    expected = [[weights[paths[:, t] == k].sum() for k in range(3)] for t in range(5)]
    np.testing.assert_allclose(found.states, expected, rtol=1e-10)
    pairs = np.zeros((3, 3))
    for path, weight in zip(paths, weights, strict=True):
        np.add.at(pairs, (path[:-1], path[1:]), weight)
    np.testing.assert_allclose(found.pairs, pairs, rtol=1e-10)
    value, likeliest = hidden_markov.best_path(initial, transition, emission)
    assert value == pytest.approx(values.max(), rel=1e-12)
    np.testing.assert_array_equal(likeliest, paths[values.argmax()])


def test_densities_and_paths_at_the_posterior_means_are_hmmlearns() -> None:
    rows, new, lengths = chain(150), chain(60, seed=1), [40, 20]
    found = HiddenMarkovModel(3, random_state=0).fit(rows)
    theirs = GaussianHMM(3, "full")
    theirs.startprob_, theirs.transmat_, theirs.n_features = found.startprob_, found.transmat_, 2
    theirs.means_, theirs.covars_ = found.means_, found.covars_
    assert found.score(new, lengths=lengths) == pytest.approx(theirs.score(new, lengths), rel=1e-10)
    agreement = np.mean(found.predict(new, lengths) == theirs.predict(new, lengths))
    assert agreement > 0.95  # these read E log of the parameters, and those the log of the means


def test_sequences_are_independent_of_their_order_and_of_each_other() -> None:
    one, two = chain(60), chain(40, seed=1)
    found = HiddenMarkovModel(3, random_state=0).fit(np.r_[one, two], lengths=[60, 40])
    together = found.predict_proba(np.r_[one, two], lengths=[60, 40])
    np.testing.assert_array_equal(together, np.r_[found.predict_proba(one), found.predict_proba(two)])
    turned = found.score(np.r_[two, one], lengths=[40, 60])
    assert turned == pytest.approx(found.score(one) + found.score(two), rel=1e-12)
    value, states = found.decode(one, algorithm="map")
    np.testing.assert_array_equal(states, found.predict_proba(one).argmax(1))
    assert value <= found.decode(one)[0] + 1e-9


def test_samples_move_and_emit_as_the_posterior_means_say() -> None:
    found = HiddenMarkovModel(3, random_state=0).fit(chain(300))
    draws, states = found.sample(20_000)
    for k in range(3):
        here = states[:-1] == k
        moves = np.bincount(states[1:][here], minlength=3) / here.sum()
        np.testing.assert_allclose(moves, found.transmat_[k], atol=5 * np.sqrt(0.25 / here.sum()))
        np.testing.assert_allclose(draws[states == k].mean(0), found.means_[k], atol=0.1)
        np.testing.assert_allclose(np.cov(draws[states == k].T), found.covars_[k], atol=0.15)


def test_the_best_start_is_kept_and_the_bound_never_falls() -> None:
    rows = chain(200)
    found = HiddenMarkovModel(3, n_init=3, random_state=1).fit(rows)
    single = HiddenMarkovModel(3, random_state=1).fit(rows)
    assert found.lower_bound_ >= single.lower_bound_
    assert (np.diff(found.lower_bounds_) > -1e-7).all()


def test_lengths_that_do_not_fit_are_errors() -> None:
    rows = chain(30)
    with pytest.raises(ArgumentError, match=r"For lengths write their name: fit\(X, lengths=...\)"):
        HiddenMarkovModel(2).fit(rows, [20, 10])
    with pytest.raises(DataError, match="Expected lengths to be positive integers that add up to the 30 rows"):
        HiddenMarkovModel(2).fit(rows, lengths=[20, 9])
    with pytest.raises(DataError, match="Expected lengths to be positive integers"):
        HiddenMarkovModel(2, random_state=0).fit(rows).predict(rows, lengths=[40, -10])
    with pytest.raises(ArgumentError, match="Expected transmat_prior to be a positive number, or 2 of them"):
        HiddenMarkovModel(2, transmat_prior=0.0).fit(rows)
    with pytest.raises(ArgumentError, match="Expected dof_prior to be numbers; got str"):
        HiddenMarkovModel(2).set_params(dof_prior="many").fit(rows)
    with pytest.raises(ArgumentError, match=r"Expected dof_prior > 1 for full .* Write dof_prior=2, the default"):
        HiddenMarkovModel(2, dof_prior=0.5).fit(rows)
    with pytest.raises(DataError, match="give scale_prior"):
        HiddenMarkovModel(2).fit(np.c_[rows, np.ones(len(rows))])
    with pytest.raises(ArgumentError, match="Expected algorithm to be 'viterbi' or 'map'"):
        HiddenMarkovModel(2, random_state=0).fit(rows).decode(rows, algorithm="best")
    with pytest.raises(DataError, match="Expected lengths to be 1 integers from 1 to 30"):
        hidden_markov.model(torch.from_numpy(rows)[None], 2, lengths=torch.tensor([31]))
