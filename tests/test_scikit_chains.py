"""``PoissonHMM`` and ``CategoricalHMM`` beside hmmlearn's, against the engine on their Pyro models, and brute force."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hmmlearn.hmm import PoissonHMM as TheirPoissonHMM
from hmmlearn.vhmm import VariationalCategoricalHMM
from sklearn.base import clone

from pyro_latent import CAVI
from pyro_latent.errors import ArgumentError, DataError, ModelError
from pyro_latent.models import hidden_markov
from pyro_latent.models.estimators import CategoricalHMM, PoissonHMM

Rows = np.ndarray[Any, Any]
RATES = np.array([[1.0, 6.0], [8.0, 2.0], [3.0, 15.0]])
SYMBOLS = np.array([[0.7, 0.2, 0.05, 0.05], [0.05, 0.05, 0.8, 0.1], [0.1, 0.4, 0.1, 0.4]])
CHAIN: dict[str, Any] = {"startprob_prior": 0.8, "transmat_prior": 1.5}


def states(count: int, rng: np.random.Generator) -> list[int]:
    """A chain of three states that stays nine times in ten."""
    found = [0]
    for _ in range(count - 1):
        found.append(found[-1] if rng.random() < 0.9 else int(rng.integers(3)))
    return found


def counts(size: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    return rng.poisson(RATES[states(size, rng)])


def symbols(size: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    return np.array([[rng.choice(4, p=SYMBOLS[k])] for k in states(size, rng)])


EACH = [(PoissonHMM(3, random_state=0, **CHAIN), counts), (CategoricalHMM(3, random_state=0, **CHAIN), symbols)]
each = pytest.mark.parametrize(("estimator", "data"), EACH, ids=["Poisson", "Categorical"])


@each
def test_the_posterior_is_that_of_coordinate_ascent_on_the_pyro_model(estimator: Any, data: Any) -> None:
    found = clone(estimator).set_params(tol=1e-13).fit(data(12), lengths=[7, 5])
    guide = found.guide_
    assert guide.elbo() == pytest.approx(found.lower_bound_, abs=1e-8)
    model: Any = type(found)._model
    assert -CAVI(model, guide).step(*found.model_args_, **found.model_kwargs_) == pytest.approx(
        found.lower_bound_, abs=1e-8
    )
    q = guide.posterior()
    np.testing.assert_allclose(q["transition"].concentration, found.transmat_posterior_, atol=1e-4)
    emitted = found.lambdas_ if isinstance(found, PoissonHMM) else found.emissionprob_
    site = "rate" if isinstance(found, PoissonHMM) else "emission"
    np.testing.assert_allclose(q[site].mean, emitted, atol=1e-4)
    of_first = np.stack([q[f"state_{t}"].probs[0] for t in range(7)])
    np.testing.assert_allclose(of_first, found.predict_proba(data(12), [7, 5])[:7], atol=1e-5)
    assert found.to_arviz(num_samples=5).posterior[site].sizes["draw"] == 5


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_sweep_over_symbols_and_its_bound_are_those_of_hmmlearn() -> None:
    rows, lengths = symbols(150), [90, 60]
    ours = CategoricalHMM(3, emissionprob_prior=0.6, tol=0.0, random_state=0, **CHAIN)
    before, after = (clone(ours).set_params(max_iter=n).fit(rows, lengths=lengths) for n in (10, 11))
    theirs = VariationalCategoricalHMM(3, init_params="", n_iter=1, n_features=4)
    shapes = {"startprob": (3,), "transmat": (3, 3), "emissionprob": (3, 4)}
    for name, shape in shapes.items():
        prior = getattr(ours, f"{name}_prior")
        setattr(theirs, f"{name}_prior", prior)
        setattr(theirs, f"{name}_prior_", np.full(shape, prior))
        setattr(theirs, f"{name}_posterior_", getattr(before, f"{name}_posterior_").copy())
    theirs.fit(rows, lengths)
    for name in shapes:
        for ending in ("_posterior_", "_"):
            expected = getattr(theirs, name + ending)
            np.testing.assert_allclose(getattr(after, name + ending), expected, rtol=1e-9, err_msg=name)
    assert before.lower_bound_ == pytest.approx(theirs.monitor_.history[0], rel=1e-10)


def test_counts_have_the_density_and_the_states_of_a_sum_over_all_paths() -> None:
    """At the posterior means by every path of states, with scipy's densities; and of hmmlearn's model there."""
    found = PoissonHMM(3, random_state=0).fit(counts(150))
    new = counts(5, seed=1)
    paths = np.array(list(itertools.product(range(3), repeat=5)))
    density = scipy.stats.poisson.pmf(new[:, None], found.lambdas_).prod(-1)
    weights = found.startprob_[paths[:, 0]] * found.transmat_[paths[:, :-1], paths[:, 1:]].prod(1)
    weights = weights * density[np.arange(5), paths].prod(1)
    assert found.score(new) == pytest.approx(np.log(weights.sum()), rel=1e-12)
    assert found.score(np.r_[new, new], lengths=[5, 5]) == pytest.approx(2 * np.log(weights.sum()), rel=1e-12)
    theirs = TheirPoissonHMM(3)
    theirs.startprob_, theirs.transmat_, theirs.lambdas_, theirs.n_features = (
        found.startprob_,
        found.transmat_,
        found.lambdas_,
        2,
    )
    assert found.score(counts(60, seed=2)) == pytest.approx(theirs.score(counts(60, seed=2)), rel=1e-10)


def test_the_update_of_rates_is_the_one_of_the_textbook() -> None:
    """Gamma(a + Σ r x, b + Σ r): with responsibilities of an own forward-backward, and the ELBO of the last sweep."""
    rows = counts(80)
    found = PoissonHMM(2, tol=1e-14, lambdas_prior=0.5, lambdas_weight=[0.1, 0.2], random_state=0).fit(rows)
    r = found.predict_proba(rows)
    np.testing.assert_allclose(found.lambdas_posterior_, 0.5 + r.T @ rows, rtol=1e-5)
    np.testing.assert_allclose(found.lambdas_weight_posterior_, [0.1, 0.2] + r.sum(0)[:, None], rtol=1e-5)
    np.testing.assert_allclose(found.startprob_posterior_, 0.5 + r[0], rtol=1e-5)
    assert found.transmat_posterior_.sum() == pytest.approx(4 * 0.5 + 79)


@each
def test_the_bound_never_falls_and_the_best_start_is_kept(estimator: Any, data: Any) -> None:
    rows, estimator = data(100), clone(estimator).set_params(tol=1e-6)
    several = clone(estimator).set_params(n_init=3).fit(rows)
    assert (np.diff(several.lower_bounds_) > -1e-7).all()
    assert several.lower_bound_ >= estimator.fit(rows).lower_bound_
    value, paths = several.decode(rows)
    assert value >= several.decode(rows, algorithm="map")[0] - 1e-9 and (paths == several.predict(rows)).all()


@each
def test_draws_move_and_emit_as_the_posterior_means_say(estimator: Any, data: Any) -> None:
    found = clone(estimator).set_params(tol=1e-6).fit(data(200))
    draws, path = found.sample(8000)
    np.testing.assert_array_equal(found.sample(50)[0], found.sample(50)[0])
    emitted = draws if isinstance(found, PoissonHMM) else np.eye(4)[draws[:, 0]]
    means = found.lambdas_ if isinstance(found, PoissonHMM) else found.emissionprob_
    for k in range(3):
        here = emitted[path == k]
        np.testing.assert_array_less(np.abs(here.mean(0) - means[k]), 5 * here.std(0) / np.sqrt(len(here)) + 1e-3)
        np.testing.assert_allclose(
            np.bincount(path[1:][path[:-1] == k], minlength=3) / (path[:-1] == k).sum(), found.transmat_[k], atol=0.05
        )


@each
def test_a_pickle_reads_sequences_as_the_estimator_does(estimator: Any, data: Any) -> None:
    fitted = clone(estimator).fit(data(60))
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(data(30, 1)), fitted.predict_proba(data(30, 1)))
    with pytest.raises(ModelError, match="Expected the estimator that was fitted"):
        again.to_arviz()


def test_data_that_are_no_counts_or_symbols_are_errors() -> None:
    rows = counts(20)
    for wrong in (rows - 5.0, rows + 0.5):
        with pytest.raises(DataError, match="Expected counts, which are integers of at least 0; got"):
            PoissonHMM(2).fit(wrong)
    with pytest.raises(ValueError, match="NaN"):
        PoissonHMM(2).fit(np.where(rows == rows.max(), np.nan, rows))
    with pytest.raises(DataError, match="Expected a positive count in every column"):
        PoissonHMM(2).fit(rows * [1, 0])
    with pytest.raises(ArgumentError, match="Expected lambdas_weight to be a positive number, or 2 of them; got"):
        PoissonHMM(2, lambdas_weight=[1.0, -1.0]).fit(rows)
    chain = symbols(20)
    with pytest.raises(DataError, match=r"Expected symbols, one column of integers; got 2 columns"):
        CategoricalHMM(2).fit(np.c_[chain, chain])
    with pytest.raises(DataError, match="Expected symbols, one column of integers"):
        CategoricalHMM(2).fit(chain + 0.5)
    with pytest.raises(DataError, match="Expected symbols from 0 to 2; got 3"):
        CategoricalHMM(2, n_features=3).fit(chain)
    with pytest.raises(DataError, match="Expected symbols from 0 to 3; got 4"):
        CategoricalHMM(2, random_state=0).fit(chain).predict([[0], [4]])
    with pytest.raises(ArgumentError, match="Expected emissionprob_prior to be a positive number, or 4 of them"):
        CategoricalHMM(2, emissionprob_prior=[1.0, 1.0]).fit(chain)
    with pytest.raises(DataError, match="Expected sequences to be an integer tensor of shape"):
        hidden_markov.categorical_model(torch.zeros(2, 3), 2, 2)
    with pytest.raises(DataError, match="Expected symbols from 0 to 1; got 5"):
        hidden_markov.categorical_model(torch.tensor([[0, 5]]), 2, 2)
    for program in (hidden_markov.poisson_model, hidden_markov.poisson_guide):
        with pytest.raises(ArgumentError, match=r"Expected startprob_prior to be a positive number, or 2 of them; got"):
            program(torch.ones(1, 2, 1), 2, startprob_prior=torch.ones(3))
    with pytest.raises(ArgumentError, match="Expected num_states to be an integer of at least 1; got 0"):
        hidden_markov.guide(torch.ones(1, 2, 1), 0)
    with pytest.raises(DataError, match="Expected lengths to be 1 integers from 1 to 2"):
        hidden_markov.poisson_model(torch.ones(1, 2, 1), 2, lengths=torch.tensor([3]))


def test_a_symbol_of_the_alphabet_that_was_not_seen_has_its_prior() -> None:
    found = CategoricalHMM(2, n_features=6, emissionprob_prior=0.5, random_state=0).fit(symbols(60))
    np.testing.assert_allclose(found.emissionprob_posterior_[:, 4:], 0.5)
    assert np.isfinite(found.score([[5], [0]]))
