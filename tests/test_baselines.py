"""Monte Carlo estimates of the evidence against exact evidences, the law of their error, and Monte Carlo EM."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor
from torch.distributions import constraints

from examples import naive_monte_carlo as example
from pyro_latent import CAVI, EM, AutoConjugate
from pyro_latent.criticism import Weights, importance_sampling, naive_monte_carlo
from pyro_latent.errors import ModelError, check_count
from pyro_latent.gradient.monte_carlo_em import MonteCarloEM, MonteCarloEMResult, _Chain
from pyro_latent.models import bivariate_gaussian, gmm, normal_gamma, restricted_q
from pyro_latent.particles import SCORING_WAYS, Particles, ProgramCall, ProgramRunner


@pytest.fixture
def sample() -> Tensor:
    return torch.tensor([1.3, -0.2, 2.5, 0.8, 1.1], dtype=torch.float64)


def points(count: int) -> Tensor:
    center = torch.arange(count, dtype=torch.float64) % 2
    return torch.stack([4 * center, -center], -1) + torch.randn(count, 2, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------ evidence


def test_every_proposal_estimates_the_exact_evidence(sample: Tensor) -> None:
    exact = normal_gamma.log_evidence(sample).item()
    guide = AutoConjugate(normal_gamma.model, blocks=[("mean", "precision")])
    wide = AutoConjugate(normal_gamma.model, init={"mean": dist.Normal(sample.new_tensor(1.0), sample.new_tensor(2.0))})
    CAVI(normal_gamma.model, guide).run(sample)
    wide.elbo(sample)
    naive = naive_monte_carlo(normal_gamma.model, sample, num_samples=20_000)
    for found in (naive, importance_sampling(normal_gamma.model, wide, sample, num_samples=20_000)):
        assert abs(found.log_evidence - exact) < 4 * found.standard_error < 0.2
        assert found.elbo < exact


def test_the_exact_posterior_is_a_proposal_without_error(sample: Tensor) -> None:
    guide = AutoConjugate(normal_gamma.model, blocks=[("mean", "precision")])
    CAVI(normal_gamma.model, guide).run(sample)
    found = importance_sampling(normal_gamma.model, guide, sample, num_samples=100)
    assert found.log_evidence == pytest.approx(normal_gamma.log_evidence(sample).item(), abs=1e-12)
    assert found.effective_sample_size == pytest.approx(100, abs=1e-9)
    assert found.standard_error < 1e-6


def test_naive_weights_are_likelihoods_of_draws_of_the_prior(sample: Tensor) -> None:
    found = naive_monte_carlo(normal_gamma.model, sample, num_samples=50, keep_samples=True)
    mean, precision = found.samples["mean"].numpy(), found.samples["precision"].numpy()
    expected = scipy.stats.norm.logpdf(sample.numpy(), mean[:, None], precision[:, None] ** -0.5).sum(1)
    np.testing.assert_allclose(found.log_weights.numpy(), expected, rtol=1e-10)


def test_estimate_error_and_effective_size_are_those_of_the_weights() -> None:
    log_weights = 3 * torch.randn(40, dtype=torch.float64) - 900
    found, w = Weights(log_weights), np.exp(log_weights.numpy() + 900)
    assert found.log_evidence == pytest.approx(math.log(w.mean()) - 900, rel=1e-12)
    assert found.effective_sample_size == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-12)
    assert found.standard_error == pytest.approx(w.std(ddof=1) / w.mean() / math.sqrt(40), rel=1e-10)


def linear_gaussian(x: Tensor) -> None:
    """z ~ N(0, I), x ~ N(z, I), in as many dimensions as x has; x_i is N(0, 2)."""
    z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def second_moment_ratio(x: float) -> float:
    """E w² / (E w)² of one dimension: the weight N(x; z, 1) has a Gaussian for its square."""
    square = scipy.stats.norm.pdf(x, 0, math.sqrt(1.5)) / (2 * math.sqrt(math.pi))
    return float(square / scipy.stats.norm.pdf(x, 0, math.sqrt(2)) ** 2)


def test_the_error_of_naive_monte_carlo_grows_exponentially_with_the_dimension() -> None:
    size, repeats = 400, 500
    for dim in (1, 2, 4, 8):
        found = naive_monte_carlo(linear_gaussian, torch.ones(dim, dtype=torch.float64), num_samples=size * repeats)
        exact = dim * scipy.stats.norm.logpdf(1.0, 0, math.sqrt(2))
        means = (found.log_weights - exact).exp().reshape(repeats, size).mean(1)
        predicted = (second_moment_ratio(1.0) ** dim - 1) / size
        # the mean of (mean weight - 1)² over repeats, and its own standard error
        squares = (means - 1).square()
        error = squares.std() / math.sqrt(repeats)
        assert abs(squares.mean() - predicted) < 4 * error < 0.6 * predicted


def test_the_picture_of_the_errors_follows_the_prediction(tmp_path: Path) -> None:
    rows = example.main(["--out", str(tmp_path), "--repeats", "60", "--dimensions", "2", "8", "32"])
    for dim in (2, 8):
        error, predicted = rows[dim]["naive Monte Carlo"][0], example.predicted_error(dim, 1000)
        assert error == pytest.approx(predicted, rel=0.4)  # 60 repeats: four standard errors of a root mean square
    assert rows[32]["naive Monte Carlo"][0] > 10 * rows[32]["importance sampling"][0]
    assert (tmp_path / "naive_monte_carlo.svg").exists()


def test_the_reported_error_is_the_spread_of_the_estimates() -> None:
    x, size, repeats = torch.ones(2, dtype=torch.float64), 500, 400
    exact = 2 * scipy.stats.norm.logpdf(1.0, 0, math.sqrt(2))
    weights = naive_monte_carlo(linear_gaussian, x, num_samples=size * repeats).log_weights.reshape(repeats, size)
    found = [Weights(row) for row in weights]
    scores = np.array([(f.log_evidence - exact) / f.standard_error for f in found])
    low, high = scipy.stats.chi2.ppf([1e-4, 1 - 1e-4], repeats) / repeats
    assert low < (scores**2).mean() < high


def test_a_product_of_marginals_wastes_the_share_that_the_correlation_says() -> None:
    """With q the product of the marginals of a Gaussian, E w² / (E w)² = 1 / (1 - ρ²).

    Beyond |ρ| = 1/3 the fourth moment of the weights is infinite, and their second one hard to estimate.
    """
    loc = torch.tensor([1.0, -2.0], dtype=torch.float64)
    precision = torch.tensor([[2.0, 0.45], [0.45, 1.0]], dtype=torch.float64)
    factors = bivariate_gaussian.marginals(loc, precision)

    def guide(*args: Any) -> None:
        for name, factor in factors.items():
            pyro.sample(name, factor)

    found = importance_sampling(bivariate_gaussian.model, guide, loc, precision, num_samples=200_000)
    exact = bivariate_gaussian.log_evidence(loc, precision).item()
    squares = (found.log_weights - exact).exp().square()
    error = (squares.std() / math.sqrt(len(squares))).item()
    share = 1 - bivariate_gaussian.contraction_rate(precision).item()
    assert abs(squares.mean().item() - 1 / share) < 4 * error < 0.02
    assert found.effective_sample_size / found.num_samples == pytest.approx(share, rel=0.02)
    assert abs(found.log_evidence - exact) < 4 * found.standard_error


def two_normals(x: Tensor) -> None:
    """The auditor's case: z ~ N(0, 1), x ~ N(z, 1), so that x ~ N(0, 2)."""
    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("vectorized", [None, False])
@pytest.mark.parametrize("num_samples", [1, 100])
def test_a_guide_without_density_is_no_proposal(sample: Tensor, num_samples: int, vectorized: bool | None) -> None:
    """At a point every weight is the same, whatever the evidence: an answer with no error, and far off."""
    options: dict[str, Any] = {"num_samples": num_samples, "vectorized": vectorized}
    with pytest.raises(ModelError, match=r"Expected a guide with a density; got a point at \['z'\] \(AutoDelta\)"):
        importance_sampling(two_normals, AutoDelta(two_normals), torch.tensor(3.0), **options)
    point = AutoConjugate(normal_gamma.model, point=["precision"])
    CAVI(normal_gamma.model, point).run(sample)
    with pytest.raises(ModelError, match=r"got a point at \['precision'\] \(AutoConjugate\).* leave out point="):
        importance_sampling(normal_gamma.model, point, sample, **options)


def test_one_draw_of_a_guide_with_a_density_is_enough() -> None:
    """An autoguide's sites are Deltas of auxiliary ones: they move from draw to draw."""
    x = torch.tensor(3.0, dtype=torch.float64)
    found = importance_sampling(two_normals, AutoNormal(two_normals), x, num_samples=1)
    assert found.num_samples == 1 and math.isfinite(found.log_evidence)


def test_a_point_that_the_model_itself_has_is_no_fault() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.Delta(x.new_tensor(2.0)))
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), scale))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.tensor(1.0, dtype=torch.float64)
    found = naive_monte_carlo(model, x, num_samples=5000)
    assert abs(found.log_evidence - scipy.stats.norm.logpdf(1.0, 0, 5**0.5)) < 4 * found.standard_error


# ----------------------------------------------------------------------------------------------------- many particles


def indexed(x: Tensor, labels: Tensor) -> None:
    """``mean[labels]`` picks along the wrong dimension once there is a plate to the left."""
    mean = pyro.sample("mean", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean[labels], 1.0), obs=x)


def test_a_model_that_does_not_bear_a_plate_goes_draw_by_draw() -> None:
    x, labels = torch.randn(6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    values = {"mean": torch.randn(8, 3, dtype=torch.float64)}
    found = Particles(indexed, None, (x, labels), {}).log_joint(values)
    mean = values["mean"].numpy()
    expected = scipy.stats.norm.logpdf(mean).sum(1) + scipy.stats.norm.logpdf(x, mean[:, labels.numpy()]).sum(1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    with pytest.raises(ModelError, match="Expected a model that bears one more plate to the left"):
        naive_monte_carlo(indexed, x, labels, vectorized=True)


def test_draws_together_and_one_by_one_estimate_the_same(sample: Tensor) -> None:
    guide = AutoNormal(normal_gamma.model)
    results = [
        importance_sampling(normal_gamma.model, guide, sample, num_samples=400, vectorized=v) for v in (True, False)
    ]
    gap = abs(results[0].elbo - results[1].elbo)
    assert gap < 4 * math.sqrt(sum(r.log_weights.var().item() / 400 for r in results))


def test_marked_discrete_sites_that_the_guide_leaves_out_are_summed_out() -> None:
    data = points(20)
    gmm.guide(data, 2)
    particles = Particles(gmm.model, gmm.guide, (data, 2), {})
    draws = particles.draw(4)
    weights, mean, precision = (draws.values[n].numpy() for n in ("weights", "mean", "precision"))
    prior = gmm.default_priors(data, 2)
    center, scatter = prior["mean_prior"].numpy(), np.linalg.inv(prior["covariance_prior"].numpy())
    for s in range(4):
        logs = np.log(weights[s]) + np.stack(
            [
                scipy.stats.multivariate_normal.logpdf(data.numpy(), mean[s, k], np.linalg.inv(precision[s, k]))
                for k in (0, 1)
            ],
            -1,
        )
        expected = scipy.special.logsumexp(logs, -1).sum() + scipy.stats.dirichlet.logpdf(weights[s], [0.5, 0.5])
        for k in (0, 1):
            expected += scipy.stats.wishart.logpdf(precision[s, k], 2, scatter)
            expected += scipy.stats.multivariate_normal.logpdf(mean[s, k], center, np.linalg.inv(precision[s, k]))
        assert draws.log_p[s].item() == pytest.approx(expected, rel=1e-8)


def test_mixtures_evidence_lies_above_the_bound_and_agrees_between_guides() -> None:
    data = points(30)
    guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")])
    bound = CAVI(gmm.model, guide).run(data, 2).elbo[-1].item()
    joint = importance_sampling(gmm.model, guide, data, 2, num_samples=2000)
    written = importance_sampling(gmm.model, gmm.guide, data, 2, num_samples=2000)
    error = math.hypot(joint.standard_error, written.standard_error)
    assert abs(joint.log_evidence - written.log_evidence) < 4 * error
    assert joint.log_evidence > bound


def test_batches_make_up_the_whole_sample(sample: Tensor) -> None:
    found = naive_monte_carlo(normal_gamma.model, sample, num_samples=1050, batch_size=500, keep_samples=True)
    assert found.num_samples == len(found.samples["mean"]) == 1050
    exact = normal_gamma.posterior(sample)
    spread = math.sqrt(exact.rate / (exact.concentration - 1) / exact.precision_scaling)
    assert abs(found.mean()["mean"] - exact.loc) < 4 * spread / math.sqrt(found.effective_sample_size)


def test_a_latent_that_the_guide_lacks_comes_from_its_prior(sample: Tensor) -> None:
    def half(x: Tensor) -> None:
        pyro.sample("precision", dist.Gamma(x.new_tensor(3.0), x.new_tensor(3.0)))

    found = importance_sampling(normal_gamma.model, half, sample, num_samples=20_000)
    assert abs(found.log_evidence - normal_gamma.log_evidence(sample).item()) < 4 * found.standard_error


def subsampled(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x), subsample_size=2) as index:
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x[index])


def stranger(x: Tensor) -> None:
    pyro.sample("meen", dist.Normal(x.new_zeros(()), 1.0))


def not_a_number(x: Tensor) -> None:
    pyro.factor("f", pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0)) * math.nan)


def all_discrete(x: Tensor) -> None:
    z = pyro.sample("z", dist.Categorical(x.new_tensor([0.2, 0.8])), infer={"enumerate": "parallel"})
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(x.new_tensor([-1.0, 1.0])[z], 1.0), obs=x)


def test_a_model_whose_latents_are_all_summed_out_has_its_evidence_exactly(sample: Tensor) -> None:
    found = importance_sampling(all_discrete, lambda x: None, sample, num_samples=3)
    logs = [math.log(w) + scipy.stats.norm.logpdf(sample.numpy(), m).sum() for w, m in ((0.2, -1.0), (0.8, 1.0))]
    assert found.log_evidence == pytest.approx(scipy.special.logsumexp(logs), rel=1e-12)
    assert found.standard_error < 1e-6


def two_clusters(x: Tensor) -> None:
    """Two clusters, the one at a latent place: each point's label is marked for enumeration."""
    place = pyro.sample("place", dist.Normal(x.new_zeros(()), 2.0))
    with pyro.plate("data", len(x)):
        label = pyro.sample("label", dist.Bernoulli(x.new_tensor(0.3)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(place * label, 1.0), obs=x)


def picked(x: Tensor) -> None:
    """``mean[label]`` picks along the wrong dimension once there is a plate to the left."""
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 2.0))
    with pyro.plate("data", len(x)):
        label = pyro.sample("label", dist.Categorical(x.new_tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mean[label], 1.0), obs=x)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_draws_that_summed_labels_pick_from_are_scored_in_one_batch(scale: float, sample: Tensor) -> None:
    call = ProgramCall(poutine.scale(picked, scale), (sample,), {})
    runner = ProgramRunner(call, 1, ways=SCORING_WAYS, marginal=True)
    mean = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    found = runner.log_prob({"mean": mean}, 8)
    assert runner.ways[0] == "vmap"
    points = dist.Normal(mean[:, None], 1.0).log_prob(sample[:, None]) + sample.new_tensor([0.3, 0.7]).log()
    expected = scale * (dist.Normal(sample.new_tensor(0.0), 2.0).log_prob(mean).sum(1) + points.logsumexp(-1).sum(1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
    gradients = [torch.autograd.grad(value.sum(), mean)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("vectorized", [True, False])
def test_with_the_prior_as_proposal_marked_sites_are_summed_out_too(vectorized: bool, sample: Tensor) -> None:
    """Each weight is the likelihood with every one of the 2⁵ labellings added up."""
    exact = naive_monte_carlo(all_discrete, sample, num_samples=3)
    assert exact.log_evidence == importance_sampling(all_discrete, lambda x: None, sample, num_samples=3).log_evidence
    found = naive_monte_carlo(two_clusters, sample, num_samples=20, keep_samples=True, vectorized=vectorized)
    assert set(found.samples) == {"place"}
    x = sample.numpy()
    for place, weight in zip(found.samples["place"].tolist(), found.log_weights.tolist(), strict=True):
        terms = []
        for labels in itertools.product((0, 1), repeat=5):
            chosen = np.array(labels)
            terms.append(np.log(np.where(chosen, 0.3, 0.7)).sum() + scipy.stats.norm.logpdf(x, place * chosen).sum())
        assert weight == pytest.approx(scipy.special.logsumexp(terms), rel=1e-10)


def impossible(x: Tensor) -> None:
    place = pyro.sample("place", dist.Uniform(x.new_zeros(()), 1.0))
    pyro.sample("x", dist.Uniform(place + 10, place + 20).expand([len(x)]).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("model", "guide", "words"),
    [
        (subsampled, None, "Expected a model over all of its data; got plate 'data' with 2 of 5"),
        (lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)), None, "Expected a model with an observed site"),
        (
            normal_gamma.model,
            stranger,
            r"Expected the latent sites of the model, \['mean', 'precision'\]; got \['meen'\] besides",
        ),
        (not_a_number, None, "Expected finite log densities; got NaN for 1000 of"),
        (impossible, None, "Expected a draw under which the data are possible; got a density of zero for all of 1000"),
    ],
)
def test_a_model_that_has_no_such_estimate_is_named(model: Any, guide: Any, words: str, sample: Tensor) -> None:
    with pyro.validation_enabled(False), pytest.raises(ModelError, match=words):
        importance_sampling(model, guide, sample)


def test_bad_numbers_and_values_are_named(sample: Tensor) -> None:
    for name, count in itertools.product(("num_samples", "batch_size"), (0, 2.5, True)):
        wrong: dict[str, Any] = {name: count}
        with pytest.raises(ValueError, match=f"Expected {name} to be an integer of at least 1; got {count}. Write"):
            naive_monte_carlo(normal_gamma.model, sample, **wrong)
    counts: dict[str, Any] = {"num_samples": np.int64(5), "batch_size": np.int64(2)}
    found = naive_monte_carlo(normal_gamma.model, sample, **counts)
    assert found.num_samples == 5
    particles = Particles(normal_gamma.model, None, (sample,), {})
    with pytest.raises(ModelError, match=r"Expected values of the latent sites \['mean', 'precision'\]"):
        particles.log_joint({"mean": torch.zeros(2)})
    with pytest.raises(ModelError, match="with one S; got"):
        particles.log_joint({"mean": torch.zeros(2), "precision": torch.ones(3)})


# ------------------------------------------------------------------------------------------------------ Monte Carlo EM


def coins(tosses: Tensor) -> None:
    """A mixture of two normals with known spread: weights and locations by maximum likelihood."""
    weight = pyro.param("weight", tosses.new_tensor(0.4), constraint=constraints.unit_interval)
    loc = pyro.param("loc", tosses.new_tensor([-1.0, 1.0]))
    with pyro.plate("data", len(tosses)):
        z = pyro.sample("z", dist.Bernoulli(weight), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z.long()], 1.0), obs=tosses)


def mixture_log_likelihood(x: np.ndarray, weight: float, loc: np.ndarray) -> float:
    density = (1 - weight) * scipy.stats.norm.pdf(x, loc[0]) + weight * scipy.stats.norm.pdf(x, loc[1])
    return float(np.log(density).sum())


@pytest.mark.slow
def test_sampled_em_reaches_the_likelihood_of_em_with_discrete_latents() -> None:
    x = torch.cat([torch.randn(60).double() - 1.5, torch.randn(90).double() + 2])
    em = EM(coins)
    best = em.run(x, max_steps=500, tol=1e-12).elbo[-1].item()
    pyro.clear_param_store()
    result = MonteCarloEM(coins, num_samples=30).run(x, max_steps=25)
    found = [
        mixture_log_likelihood(x.numpy(), w.item(), loc.numpy())
        for w, loc in zip(result.params["weight"], result.params["loc"], strict=True)
    ]
    assert mixture_log_likelihood(x.numpy(), 0.4, np.array([-1.0, 1.0])) < best - 10
    # near the maximum each of P parameters costs about half a squared deviation of Monte Carlo's, 1 / S in units of the
    # standard error: with S = 30 a step stays within a tenth of a nat, and their mean far within
    assert best - 0.2 < min(found[-10:]) <= max(found[-10:]) <= best + 1e-9
    mean = result.average(10)
    assert best - mixture_log_likelihood(x.numpy(), mean["weight"].item(), mean["loc"].numpy()) < 0.05


@pytest.mark.slow
def test_sampled_em_reaches_the_likelihood_of_em_with_continuous_latents() -> None:
    x = 1 + 2 * torch.randn(150, dtype=torch.float64)
    exact = restricted_q.log_likelihood(x, x.mean(), restricted_q.fixed_point(x, factorised=False)).item()
    result = MonteCarloEM(restricted_q.model, num_samples=10).run(x, False, max_steps=30)
    mean = result.average(10)
    assert exact - 0.2 < restricted_q.log_likelihood(x, mean["loc"], mean["scale"]).item() <= exact + 1e-9


def test_a_chain_draws_at_the_parameters_as_they_are() -> None:
    """A chain that goes on after an M-step draws as one made anew at its place: it keeps no energy of before."""
    x = 1 + 2 * torch.randn(20, dtype=torch.float64)
    driver = MonteCarloEM(restricted_q.model, num_samples=3, burn_in=1, warmup=10, max_tree_depth=3)
    driver.step(x, False)
    chain = driver._chain
    assert chain is not None
    pyro.get_param_store()["loc"] = torch.tensor(9.0, dtype=torch.float64)
    anew = _Chain(driver, (x, False), {}, chain.state())
    pyro.set_rng_seed(1)
    found = chain.draws()
    pyro.set_rng_seed(1)
    for name, expected in anew.draws().items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)


def test_a_run_of_sampled_em_with_continuous_latents_rises() -> None:
    x = 1 + 2 * torch.randn(40, dtype=torch.float64)
    before = restricted_q.log_likelihood(x, 0.0, 1.0).item()
    result = MonteCarloEM(restricted_q.model, num_samples=4, burn_in=2, warmup=10, max_tree_depth=3).run(
        x, False, max_steps=6
    )
    after = restricted_q.log_likelihood(x, result.params["loc"][-1], result.params["scale"][-1]).item()
    exact = restricted_q.log_likelihood(x, x.mean(), restricted_q.fixed_point(x, factorised=False)).item()
    assert before + 0.8 * (exact - before) < after <= exact


def test_models_that_sampled_em_does_not_fit_are_named(sample: Tensor) -> None:
    with pytest.raises(ModelError, match=r"Expected a model with pyro.param sites"):
        MonteCarloEM(normal_gamma.model, warmup=2, num_samples=2).step(sample)

    def mixed(x: Tensor) -> None:
        scale = pyro.param("scale", x.new_tensor(1.0), constraint=constraints.positive)
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 1.0))
        z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.5)), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean + z, scale), obs=x)

    with pytest.raises(ModelError, match=r"Expected latents of one kind, discrete or not; got \['mean', 'z'\]"):
        MonteCarloEM(mixed).step(sample)
    for name, least in {"num_samples": 1, "burn_in": 0, "warmup": 0, "gradient_steps": 1, "max_tree_depth": 1}.items():
        for wrong in (least - 1, 2.5, True):
            options: dict[str, Any] = {name: wrong}
            with pytest.raises(ValueError, match=f"Expected {name} to be an integer of at least {least}; got {wrong}"):
                MonteCarloEM(mixed, **options)
    for name in ("max_steps", "checkpoint_every"):
        options = {name: 0}
        with pytest.raises(ValueError, match=f"Expected {name} to be an integer of at least 1; got 0. Write {name}=1"):
            MonteCarloEM(mixed).run(sample, **options)


def test_an_error_of_the_m_step_is_not_said_to_be_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the optimizer failed")

    monkeypatch.setattr("pyro_latent.gradient.monte_carlo_em.descend_quasi_newton", failing)
    with pytest.raises(RuntimeError, match=r"^the optimizer failed$"):
        MonteCarloEM(coins, num_samples=2).step(torch.randn(9).double())


def test_an_average_is_over_at_least_one_step() -> None:
    result = MonteCarloEMResult(torch.zeros(3).double(), {"loc": torch.tensor([1.0, 2.0, 4.0])})
    assert result.average(2)["loc"].item() == 3.0
    with pytest.raises(ValueError, match=r"Expected last to be an integer of at least 1; got 0\. Write last=1 or more"):
        result.average(0)


@pytest.mark.parametrize("count", [3, np.int64(3), np.uint8(3)])
def test_a_count_is_a_plain_integer_whoever_made_it(count: Any) -> None:
    assert check_count("n", count) == 3 and type(check_count("n", count)) is int


@pytest.mark.parametrize(
    ("count", "least", "advice"),
    [
        (0, 1, "at least 1; got 0. Write n=1 or more."),
        (-1, 0, "at least 0; got -1. Write n=0 or more."),
        (1e3, 1, "at least 1; got 1000.0. Write n=1000."),
        (1.0, 2, "at least 2; got 1.0. Write n=2 or more."),
        (math.inf, 1, "at least 1; got inf. Write n=1 or more."),
        (True, 1, "at least 1; got True. Write n=1 or more."),
        (np.True_, 1, "at least 1; got .*True.*. Write n=1 or more."),
        ("3", 1, "at least 1; got '3'. Write n=1 or more."),
        (None, 1, "at least 1; got None. Write n=1 or more."),
    ],
)
def test_what_is_no_count_is_named_with_what_to_write(count: Any, least: int, advice: str) -> None:
    with pytest.raises(ValueError, match=f"Expected n to be an integer of {advice}"):
        check_count("n", count, least)
