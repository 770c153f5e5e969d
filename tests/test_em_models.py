"""EM on the models of the notes, against their own formulas, scikit-learn, hmmlearn, and optimisers of the exact
likelihood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch
from hmmlearn.hmm import CategoricalHMM, GaussianHMM
from pyro.infer import TraceEnum_ELBO
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import constraints

from pyro_latent import EM, DataError, NaturalDomainError
from pyro_latent.models import gmm, hmm, restricted_q, three_coins

FORMS = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}


@pytest.fixture
def tosses() -> Tensor:
    return torch.tensor(three_coins.TOSSES, dtype=torch.float64)


def unconstrained_gradient(log_likelihood: Callable[[], Tensor]) -> Tensor:
    """The gradient of a function of the stored parameters, in unconstrained space."""
    stored: dict[str, Any] = dict(pyro.get_param_store().items())
    leaves = [value.unconstrained() for value in stored.values()]
    return torch.cat([g.flatten() for g in torch.autograd.grad(log_likelihood(), leaves)])


def enumerated(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Tensor]:
    """The log likelihood of a model with discrete latents, by Pyro's own enumeration at the stored parameters."""
    elbo = TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False)
    return lambda: -elbo.differentiable_loss(model, lambda *a, **k: None, *args, **kwargs)


# ------------------------------------------------------------------------------------------------------ Three coins


@pytest.mark.parametrize(("start", "end"), list(zip(three_coins.STARTS, three_coins.ENDS, strict=True)))
def test_three_coins_end_where_the_book_says(tosses: Tensor, start: Any, end: Any) -> None:
    em = EM(three_coins.model)
    result = em.run(tosses, start)
    found = [em.guide.params()[name].item() for name in ("pi", "p", "q")]
    assert found == pytest.approx(list(end), abs=1e-4)
    assert result.elbo[-1].item() == pytest.approx(three_coins.log_likelihood(tosses, end), abs=1e-6)
    gradient = unconstrained_gradient(enumerated(three_coins.model, tosses, start))
    assert gradient.abs().max().item() / len(tosses) <= 1e-6


@pytest.mark.parametrize("tosses_seen", [three_coins.TOSSES, (1, 1, 1, 0), (0, 1, 0, 0, 0, 1, 0)])
def test_each_step_is_the_documents_formula_and_raises_the_likelihood(tosses_seen: tuple[int, ...]) -> None:
    data = torch.tensor(tosses_seen, dtype=torch.float64)
    theta = (0.3, 0.2, 0.9)
    em = EM(three_coins.model)
    level = three_coins.log_likelihood(data, theta)
    for _ in range(20):
        theta = three_coins.em_step(data, theta)
        after = -em.step(data, (0.3, 0.2, 0.9))
        assert [em.guide.params()[name].item() for name in ("pi", "p", "q")] == pytest.approx(list(theta), abs=1e-12)
        assert after == pytest.approx(three_coins.log_likelihood(data, theta), abs=1e-12)
        assert after >= level - 1e-12
        level = after


def test_the_printed_second_start_cannot_part_the_coins(tosses: Tensor) -> None:
    em = EM(three_coins.model)
    em.run(tosses, (0.4, 0.6, 0.6))
    found = em.guide.params()
    assert found["p"].item() == pytest.approx(0.6, abs=1e-12)
    assert found["q"].item() == pytest.approx(0.6, abs=1e-12)
    assert found["pi"].item() == pytest.approx(0.4, abs=1e-12)


def test_three_coins_say_what_data_they_expect() -> None:
    with pytest.raises(
        DataError, match=r"Expected tosses to be a floating tensor of shape \[N\].*got torch.int64 \[3\]"
    ):
        three_coins.model(torch.tensor([0, 1, 1]))


# -------------------------------------------------------------------------------------------------------- Mixtures


def soft_responsibilities(num_points: int, num_components: int) -> Tensor:
    generator = np.random.default_rng(3)
    return torch.from_numpy(generator.dirichlet(np.ones(num_components), size=num_points))


@pytest.mark.parametrize("covariance", FORMS)
def test_mixture_equals_scikit_learn_after_each_of_fifty_iterations(old_faithful: Tensor, covariance: str) -> None:
    start = soft_responsibilities(len(old_faithful), 3)
    theirs = GaussianMixture(3, covariance_type=FORMS[covariance], reg_covar=0.0)
    theirs._initialize(old_faithful.numpy(), start.numpy())
    em = EM(gmm.ml_model, init={"component": start})
    for iteration in range(50):
        em.step(old_faithful, 3, covariance=covariance)
        found = em.guide.params()
        np.testing.assert_allclose(found["weights"], theirs.weights_, rtol=1e-8, err_msg=str(iteration))
        np.testing.assert_allclose(found["mean"], theirs.means_, rtol=1e-8)
        np.testing.assert_allclose(found["covariance"], theirs.covariances_, rtol=1e-8, atol=1e-12)
        _, log_responsibilities = theirs._e_step(old_faithful.numpy())
        theirs._m_step(old_faithful.numpy(), log_responsibilities)


def test_old_faithful_has_the_likelihood_of_the_literature(old_faithful: Tensor) -> None:
    em = EM(gmm.ml_model)
    result = em.run(old_faithful, 2, tol=1e-13)
    assert result.elbo[-1].item() == pytest.approx(-1130.264, abs=1e-3)
    assert sorted(em.guide.params()["weights"].tolist()) == pytest.approx([0.3559, 0.6441], abs=1e-4)


@pytest.mark.parametrize("reg_covar", [0.0, 0.05])
@pytest.mark.parametrize("covariance", FORMS)
def test_the_likelihood_of_the_mixture_is_flat_where_em_ends(
    old_faithful: Tensor, covariance: str, reg_covar: float
) -> None:
    kwargs: dict[str, Any] = {"covariance": covariance, "reg_covar": reg_covar}
    result = EM(gmm.ml_model).run(old_faithful, 2, max_steps=2000, tol=1e-15, **kwargs)
    assert bool((result.elbo.diff() >= -1e-9 * result.elbo.abs().max()).all())
    log_likelihood = enumerated(gmm.ml_model, old_faithful, 2, **kwargs)
    assert log_likelihood().item() == pytest.approx(result.elbo[-1].item(), rel=1e-9)
    assert unconstrained_gradient(log_likelihood).abs().max().item() / len(old_faithful) <= 1e-6


@pytest.mark.parametrize("m_step", ["conditional", "gradient"])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_ecm_and_generalised_em_reach_the_fixed_point_of_em(old_faithful: Tensor, m_step: Any, covariance: str) -> None:
    data = (old_faithful - old_faithful.mean(0)) / old_faithful.std(0)
    start = gmm.initial_responsibilities(data, 2)
    ends = []
    for form in ("closed_form", m_step):
        pyro.clear_param_store()
        em = EM(gmm.ml_model, m_step=form, init={"component": start})
        result = em.run(data, 2, covariance=covariance, max_steps=1000, tol=1e-15)
        assert bool((result.elbo.diff() >= -1e-9).all())
        ends.append(em.guide.params() | {"elbo": result.elbo[-1]})
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("covariance", FORMS)
def test_reg_covar_adds_the_noise_to_scikit_learns_m_step(old_faithful: Tensor, covariance: str) -> None:
    start = soft_responsibilities(len(old_faithful), 3)
    theirs = GaussianMixture(3, covariance_type=FORMS[covariance], reg_covar=0.3)
    theirs._initialize(old_faithful.numpy(), start.numpy())
    em = EM(gmm.ml_model, init={"component": start})
    em.step(old_faithful, 3, covariance=covariance, reg_covar=0.3)
    np.testing.assert_allclose(em.guide.params()["covariance"], theirs.covariances_, rtol=1e-8, atol=1e-12)


def collapsing() -> tuple[Tensor, Tensor]:
    """A component that starts, and stays, on one far point."""
    data = torch.randn(30, 2, dtype=torch.float64)
    data[-1] = 50.0
    start = torch.zeros(30, 2, dtype=torch.float64)
    start[:-1, 0] = 1.0
    start[-1, 1] = 1.0
    return data, start


@pytest.mark.parametrize("covariance", ["full", "diagonal", "spherical"])
def test_a_collapsing_component_is_named_and_a_floor_holds_it(covariance: str) -> None:
    data, start = collapsing()
    expected = r"maximum over 'covariance' inside its constraint.*element.* \[1.*collapses on too few points.*reg_covar"
    em = EM(gmm.ml_model, init={"component": start})
    with pytest.raises(NaturalDomainError, match=expected):
        em.run(data, 2, covariance=covariance)
    assert not pyro.get_param_store().keys()
    em = EM(gmm.ml_model, init={"component": start})
    em.run(data, 2, covariance=covariance, reg_covar=0.01)
    floor = em.guide.params()["covariance"][1]
    expected_floor = {"full": torch.eye(2), "diagonal": torch.ones(2), "spherical": torch.ones(())}[covariance]
    torch.testing.assert_close(floor, 0.01 * expected_floor.double(), rtol=0, atol=1e-9)


def test_a_component_that_collapses_slowly_is_named_too() -> None:
    data = torch.cat([torch.randn(40, dtype=torch.float64), torch.tensor([4.0, 4.0], dtype=torch.float64)])[:, None]
    start = torch.where(data > 3, 0.9, 0.1)
    em = EM(gmm.ml_model, init={"component": torch.cat([1 - start, start], 1)})
    with pytest.raises(NaturalDomainError, match=r"'covariance'.*element \[1\] at zero.*likelihood has no bound"):
        em.run(data, 2, covariance="spherical", max_steps=2000, tol=0.0)


def test_ml_model_says_what_it_expects(old_faithful: Tensor) -> None:
    with pytest.raises(ValueError, match=r"covariance to be 'full' or 'tied' or 'diagonal' or 'spherical'; got 'diag'"):
        gmm.ml_model(old_faithful, 2, covariance="diag")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected reg_covar to be a finite number >= 0; got -1"):
        gmm.ml_model(old_faithful, 2, reg_covar=-1)
    with pytest.raises(ValueError, match="Expected num_components to be an integer of at least 1; got 0"):
        gmm.ml_model(old_faithful, 0)


@pytest.mark.parametrize("offset", [1e6])
def test_em_does_not_mind_where_the_data_lie(old_faithful: Tensor, offset: float) -> None:
    start = gmm.initial_responsibilities(old_faithful, 2)
    near, far = EM(gmm.ml_model, init={"component": start}), EM(gmm.ml_model, init={"component": start})
    near.run(old_faithful, 2, max_steps=20, tol=0.0)
    pyro.clear_param_store()
    far.run(old_faithful + offset, 2, max_steps=20, tol=0.0)
    torch.testing.assert_close(far.guide.params()["mean"] - offset, near.guide.params()["mean"], rtol=0, atol=1e-7)
    torch.testing.assert_close(far.guide.params()["covariance"], near.guide.params()["covariance"], rtol=1e-7, atol=0)


# -------------------------------------------------------------------------------------------------- Markov chains


def chain(num_sequences: int, length: int) -> tuple[np.ndarray, np.random.Generator]:
    """States of a sticky chain with three states."""
    generator = np.random.default_rng(5)
    transition = np.array([[0.85, 0.1, 0.05], [0.1, 0.8, 0.1], [0.1, 0.15, 0.75]])
    states = np.zeros((num_sequences, length), dtype=int)
    for s in range(num_sequences):
        for t in range(length):
            probs = np.full(3, 1 / 3) if t == 0 else transition[states[s, t - 1]]
            states[s, t] = generator.choice(3, p=probs)
    return states, generator


def test_baum_welch_with_normal_emissions_equals_hmmlearn() -> None:
    states, generator = chain(4, 40)
    data = np.array([-2.0, 0.5, 3.0])[states] + np.array([0.5, 1.0, 0.7])[states] * generator.normal(size=states.shape)
    sequences = torch.from_numpy(data)
    theirs = GaussianHMM(3, n_iter=1, tol=0, init_params="", covars_prior=0.0, covars_weight=1.0)
    start = {name: value.numpy() for name, value in hmm.start(sequences, 3).items()}
    theirs.startprob_, theirs.transmat_ = start["initial"], start["transition"]
    theirs.means_, theirs.covars_ = start["loc"][:, None], start["scale"][:, None] ** 2
    em = EM(hmm.model)
    for _ in range(10):
        theirs.fit(data.reshape(-1, 1), [data.shape[1]] * len(data))
        elbo = -em.step(sequences, 3)
        found = em.guide.params()
        np.testing.assert_allclose(found["initial"], theirs.startprob_, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(found["transition"], theirs.transmat_, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(found["loc"], theirs.means_[:, 0], rtol=1e-8)
        np.testing.assert_allclose(found["scale"] ** 2, theirs.covars_[:, 0, 0], rtol=1e-8)
        assert elbo == pytest.approx(theirs.score(data.reshape(-1, 1), [data.shape[1]] * len(data)), rel=1e-10)


def test_baum_welch_with_categorical_emissions_equals_hmmlearn() -> None:
    states, generator = chain(4, 30)
    table = np.array([[0.7, 0.2, 0.05, 0.05], [0.1, 0.1, 0.7, 0.1], [0.05, 0.15, 0.1, 0.7]])
    data = np.array([[generator.choice(4, p=table[k]) for k in row] for row in states])
    sequences = torch.from_numpy(data)
    theirs = CategoricalHMM(3, n_iter=1, tol=0, init_params="", n_features=4)
    start = hmm.start(sequences, 3, num_symbols=4)
    theirs.startprob_, theirs.transmat_, theirs.emissionprob_ = (
        start[name].numpy() for name in ("initial", "transition", "emission")
    )
    em = EM(hmm.model)
    for _ in range(10):
        theirs.fit(data.reshape(-1, 1), [data.shape[1]] * len(data))
        em.step(sequences, 3, num_symbols=4)
        found = em.guide.params()
        np.testing.assert_allclose(found["initial"], theirs.startprob_, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(found["transition"], theirs.transmat_, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(found["emission"], theirs.emissionprob_, rtol=1e-8, atol=1e-12)


def test_the_likelihood_of_the_chain_is_flat_where_baum_welch_ends() -> None:
    states, generator = chain(6, 12)
    sequences = torch.from_numpy(np.array([-2.0, 0.5, 3.0])[states] + 0.4 * generator.normal(size=states.shape))
    result = EM(hmm.model).run(sequences, 3, max_steps=300, tol=1e-15)
    assert bool((result.elbo.diff() >= -1e-9).all())
    theta = {name: pyro.param(name) for name in ("initial", "transition", "loc", "scale")}
    assert hmm.log_likelihood(sequences, theta).item() == pytest.approx(result.elbo[-1].item(), rel=1e-9)
    gradient = unconstrained_gradient(lambda: hmm.log_likelihood(sequences, theta))
    assert gradient.abs().max().item() / sequences.numel() <= 1e-6


def test_the_chain_says_what_it_expects() -> None:
    with pytest.raises(DataError, match=r"Expected sequences of shape \[S, T\].*got \[3\]"):
        hmm.model(torch.zeros(3), 2)
    with pytest.raises(
        DataError, match=r"integers with num_symbols for categorical ones; got torch.int64 with num_symbols=None"
    ):
        hmm.model(torch.zeros(2, 3, dtype=torch.long), 2)


# ---------------------------------------------------------------------------------------------------- Restricted q


@pytest.mark.parametrize("factorised", [True, False])
def test_a_restricted_e_step_climbs_to_its_own_fixed_point_below_the_likelihood(factorised: bool) -> None:
    x = 2.5 * torch.randn(100, dtype=torch.float64) + 1.0
    em = EM(restricted_q.model)
    result = em.run(x, factorised, max_steps=5000, tol=1e-15)
    assert bool((result.elbo.diff() >= -1e-9).all())
    scale, loc = (em.guide.params()[name] for name in ("scale", "loc"))
    assert scale.item() == pytest.approx(restricted_q.fixed_point(x, factorised), rel=1e-6)
    assert loc.item() == pytest.approx(x.mean().item(), abs=1e-6)
    em.e_step(x, factorised)
    below = restricted_q.log_likelihood(x, loc, scale).item() - em.free_energy(x, factorised)
    assert below == pytest.approx(restricted_q.gap(len(x), scale.item()) if factorised else 0.0, abs=1e-6)


# ---------------------------------------------------------------------------------------------- A logistic link


def logistic_mixture(covariates: Tensor, responses: Tensor, num_components: int) -> None:
    """Groups of binary responses; each group follows one of K logistic regressions."""
    spread = torch.linspace(-1, 1, num_components, dtype=covariates.dtype)
    weights = pyro.param("weights", torch.full_like(spread, 1 / num_components), constraint=constraints.simplex)
    slopes = pyro.param("slopes", spread.unsqueeze(-1).expand(num_components, covariates.shape[-1]).clone())
    groups = pyro.plate("groups", covariates.shape[0], dim=-2)
    with groups:
        component = pyro.sample("component", dist.Categorical(weights), infer={"enumerate": "parallel"})
        with pyro.plate("trials", covariates.shape[1], dim=-1):
            logits = (slopes[component] * covariates).sum(-1)
            pyro.sample("response", dist.Bernoulli(logits=logits), obs=responses)


def logistic_data() -> tuple[Tensor, Tensor]:
    covariates = torch.randn(60, 8, 2, dtype=torch.float64)
    slopes = torch.tensor([[2.0, -1.0], [-1.5, 0.5]], dtype=torch.float64)[torch.arange(60) % 3 // 2]
    probs = torch.sigmoid((slopes[:, None] * covariates).sum(-1))
    return covariates, torch.bernoulli(probs)


def logistic_log_likelihood(free: Tensor, covariates: Tensor, responses: Tensor) -> Tensor:
    """By hand, of the logit of the first weight and the slopes."""
    log_weights = torch.nn.functional.logsigmoid(torch.stack([free[0], -free[0]]))
    logits = covariates @ free[1:].reshape(2, 2).T
    log_probs = dist.Bernoulli(logits=logits).log_prob(responses.unsqueeze(-1)).sum(1)
    return (log_weights + log_probs).logsumexp(-1).sum()


def test_generalised_em_with_a_logistic_link_raises_q_and_finds_the_maximum_of_the_likelihood() -> None:
    data = logistic_data()
    em = EM(logistic_mixture, m_step="gradient")
    em.step(*data, 2)
    for _ in range(10):
        em.e_step(*data, 2)
        before = em.q_function(*data, 2)
        em.step(*data, 2)
        assert em.q_function(*data, 2) >= before - 1e-10
    result = em.run(*data, 2, max_steps=500, tol=1e-15)

    def objective(free: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(free).requires_grad_()
        loss = -logistic_log_likelihood(leaf, *data)
        loss.backward()
        assert leaf.grad is not None
        return loss.item(), leaf.grad.numpy()

    start = np.array([0.0, -1.0, -1.0, 1.0, 1.0])
    best = scipy.optimize.minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-8})
    assert result.elbo[-1].item() == pytest.approx(-best.fun, rel=1e-9)
    np.testing.assert_allclose(em.guide.params()["slopes"].flatten(), best.x[1:], atol=1e-4)
    gradient = unconstrained_gradient(enumerated(logistic_mixture, *data, 2))
    assert gradient.abs().max().item() / data[1].numel() <= 1e-6
