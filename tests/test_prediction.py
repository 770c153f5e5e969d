"""New data under a fitted guide: draws and log predictive densities, against formulas, sums and averages over draws."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer import Predictive
from torch import Tensor

from pyro_latent import CAVI, EM, ArgumentError, AutoConjugate, ModelError
from pyro_latent.guide import LogPredictive
from pyro_latent.guide.new_data import NewData
from pyro_latent.models import gmm

DOUBLE = torch.float64


def fit(model: Any, *args: Any, **options: Any) -> AutoConjugate:
    guide = AutoConjugate(model, **options)
    CAVI(model, guide).run(*args, tol=1e-12)
    return guide


def agree(found: LogPredictive, expected: Any, more: Any = 0.0) -> None:
    """An estimate is within five of its standard errors, and of the other's."""
    error = torch.as_tensor(found.error**2 + torch.as_tensor(more) ** 2).sqrt()
    difference = (found.value - torch.as_tensor(expected)).abs()
    assert bool((difference <= 5 * error + 1e-9).all()), (found, expected)
    assert float(found.error.max()) < 0.3  # of which to be within says something


def log_mean(densities: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of the mean of log densities ``[S, ...]``, and its standard error."""
    ratios = (densities - densities.max(0).values).exp()
    value = ratios.mean(0).log() + densities.max(0).values
    return value, ratios.std(0) / ratios.mean(0) / len(ratios) ** 0.5


# Regression: Student-t.


def regression(features: Tensor, y: Tensor | None = None) -> None:
    tau = pyro.sample("tau", dist.Gamma(torch.tensor(2.0, dtype=DOUBLE), 1.0))
    w = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=DOUBLE), (0.1 * tau).rsqrt()).to_event(1))
    with pyro.plate("data", len(features)):
        pyro.sample("y", dist.Normal(features @ w, tau.rsqrt()), obs=y)


def rows(n: int) -> tuple[Tensor, Tensor]:
    features = torch.randn(n, 2, dtype=DOUBLE)
    return features, features @ torch.tensor([1.0, -2.0], dtype=DOUBLE) + 0.5 * torch.randn(n, dtype=DOUBLE)


def student(features: Tensor, y: Tensor, new: Tensor) -> tuple[Tensor, Tensor, float]:
    """Location, shape matrix and degrees of freedom of the exact prediction, by dense algebra."""
    precision = features.T @ features + 0.1 * torch.eye(2, dtype=DOUBLE)
    mean = torch.linalg.solve(precision, features.T @ y)
    a, b = 2.0 + len(y) / 2, 1.0 + 0.5 * float(y @ y - mean @ precision @ mean)
    shape = b / a * (torch.eye(len(new), dtype=DOUBLE) + new @ torch.linalg.inv(precision) @ new.T)
    return new @ mean, shape, 2 * a


@pytest.fixture(scope="module")
def fitted() -> tuple[AutoConjugate, Tensor, Tensor]:
    torch.manual_seed(0)
    features, y = rows(20)
    return fit(regression, features, y, blocks=[("w", "tau")]), features, y


def test_prediction_of_a_regression_is_a_student_t(fitted: Any) -> None:
    guide, features, y = fitted
    new, values = rows(3)
    location, shape, df = student(features, y, new)
    found = guide.predict(new, num_samples=4000)
    assert list(found) == ["y"] and found["y"].shape == (4000, 3) and set(found.latents) == {"w", "tau"}
    laws = [scipy.stats.t(df, float(location[i]), float(shape[i, i]) ** 0.5) for i in range(3)]
    for i, law in enumerate(laws):
        assert scipy.stats.kstest(found["y"][:, i].numpy(), law.cdf).pvalue > 1e-3
        assert float(found.quantiles([0.9])["y"][0, i]) == pytest.approx(law.ppf(0.9), abs=0.1)
    law = found.distributions["y"]
    assert isinstance(law, dist.StudentT) and float(law.df[0]) == df
    assert torch.allclose(law.loc, location, rtol=1e-9) and torch.allclose(law.scale**2, shape.diagonal(), rtol=1e-9)
    assert torch.equal(found.mean["y"], law.mean) and torch.equal(found.sd["y"], law.variance.sqrt())
    together = guide.log_predictive(new, values)
    assert together.is_exact
    assert float(together.value) == pytest.approx(scipy.stats.multivariate_t(location, shape, df).logpdf(values))
    alone = guide.log_predictive(new, values, pointwise=True)
    expected = [one.logpdf(float(v)) for one, v in zip(laws, values, strict=True)]
    assert alone.is_exact and alone.value.tolist() == pytest.approx(expected, rel=1e-9)


def test_one_draw_has_a_spread_where_there_is_a_closed_form_alone(fitted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guide, features, _ = fitted
    one = guide.predict(features, num_samples=1)
    assert torch.equal(one.sd["y"], one.distributions["y"].variance.sqrt())
    apart = AutoConjugate(regression)
    CAVI(regression, apart).run(*fitted[1:], max_steps=3)
    asked, draws = list[int](), NewData.draws

    def counted(new: NewData, num: int) -> Any:
        asked.append(num)
        return draws(new, num)

    monkeypatch.setattr(NewData, "draws", counted)
    drawn = apart.predict(features, num_samples=1)
    assert asked == [1]  # no more than these
    assert not drawn.distributions and torch.equal(drawn.mean["y"], drawn["y"][0])
    with pytest.raises(ModelError, match=r"Expected two draws or more for the standard deviation of \['y'\].*; got 1"):
        _ = drawn.sd


def test_evidences_differ_by_the_log_predictive_density(fitted: Any) -> None:
    guide, features, y = fitted
    new, values = rows(3)
    both = fit(regression, torch.cat([features, new]), torch.cat([y, values]), blocks=[("w", "tau")])
    assert float(guide.log_predictive(new, values).value) == pytest.approx(both.elbo() - guide.elbo(), rel=1e-9)


def test_draws_of_factors_that_meet_in_a_term_estimate_it(fitted: Any) -> None:
    _, features, y = fitted
    guide = fit(regression, features, y)
    new, values = rows(3)
    q = guide.posterior()
    w, tau = q["w"].sample((20_000,)), q["tau"].sample((20_000, 1))
    each = dist.Normal(w @ new.T, tau.rsqrt()).log_prob(values)
    agree(guide.log_predictive(new, values, num_samples=4000), *log_mean(each.sum(1)))
    agree(guide.log_predictive(new, values, pointwise=True, num_samples=4000), *log_mean(each))
    assert not guide.predict(new, num_samples=10).distributions


def test_pyros_predictive_draws_from_the_same_law(fitted: Any) -> None:
    guide, *_ = fitted
    new, _ = rows(2)
    ours = guide.predict(new, num_samples=1000, seed=1)["y"]
    theirs = Predictive(regression, guide=guide, num_samples=150)(new)["y"]
    for i in range(2):
        assert scipy.stats.ks_2samp(ours[:, i].numpy(), theirs[:, i].numpy()).pvalue > 1e-3


def test_data_that_is_given_is_drawn_anew_and_the_random_state_stays(fitted: Any) -> None:
    guide, features, y = fitted
    before = torch.get_rng_state()
    found = guide.predict(features, y, num_samples=500, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(found["y"], guide.predict(features, y, num_samples=500, seed=3)["y"])
    assert float((found["y"] - y).std()) > 0.4  # not the data itself
    assert float((found.mean["y"] - features @ guide.posterior()["w"].mean).abs().max()) < 0.2


# Other closed forms.


def with_intercept(features: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=DOUBLE), 2.0).to_event(1))
    b = pyro.sample("b", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 2.0))
    with pyro.plate("data", len(features)):
        pyro.sample("y", dist.Normal(features @ w + b, 0.5), obs=y)


def test_blocks_that_were_found_by_themselves_are_those_of_the_fit_without_its_data() -> None:
    """The weights meet the intercept in the density of the data alone, which is not given."""
    torch.manual_seed(0)
    features, y = rows(20)
    guide, new = fit(with_intercept, features + 3, y, blocks="auto"), torch.ones(1, 2, dtype=DOUBLE)
    design = torch.cat([features + 3, torch.ones(20, 1, dtype=DOUBLE)], 1)
    covariance = (4 * design.T @ design + torch.eye(3, dtype=DOUBLE) / 4).inverse()
    at = torch.ones(3, dtype=DOUBLE)
    found = guide.predict(new, num_samples=10)
    torch.testing.assert_close(found.mean["y"], (at @ covariance @ design.T @ y * 4).reshape(1))
    torch.testing.assert_close(found.sd["y"], (at @ covariance @ at + 0.25).sqrt().reshape(1))


def test_known_noise_predicts_a_normal() -> None:
    def model(features: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=DOUBLE), 3.0).to_event(1))
        with pyro.plate("data", len(features)):
            pyro.sample("y", dist.Normal(features @ w, 0.5), obs=y)

    guide = fit(model, *rows(12))
    new, values = rows(3)
    law, q = guide.predict(new, num_samples=10).distributions["y"], guide.posterior()["w"]
    covariance = new @ q.covariance_matrix @ new.T + 0.25 * torch.eye(3, dtype=DOUBLE)
    assert isinstance(law, dist.Normal)
    assert torch.allclose(law.loc, new @ q.mean, rtol=1e-9)
    assert torch.allclose(law.variance, covariance.diagonal(), rtol=1e-9)
    expected = scipy.stats.multivariate_normal(new @ q.mean, covariance).logpdf(values)
    assert float(guide.log_predictive(new, values).value) == pytest.approx(expected, rel=1e-9)


def test_conjugate_counts_and_categories_have_their_compound_laws() -> None:
    def model(n: int, counts: Any = None, kinds: Any = None, flags: Any = None) -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=DOUBLE), 3.0))
        probs = pyro.sample("probs", dist.Dirichlet(torch.ones(3, dtype=DOUBLE)))
        share = pyro.sample("share", dist.Beta(torch.tensor(1.0, dtype=DOUBLE), 2.0))
        with pyro.plate("data", n):
            pyro.sample("counts", dist.Poisson(rate), obs=counts)
            pyro.sample("kinds", dist.Categorical(probs), obs=kinds)
            pyro.sample("flags", dist.Bernoulli(share), obs=flags)

    counts = torch.tensor([0.0, 3.0, 1.0, 2.0], dtype=DOUBLE)
    kinds, flags = torch.tensor([0, 1, 1, 2]), torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=DOUBLE)
    guide = fit(model, 4, counts, kinds, flags)
    q = guide.posterior()
    found = guide.predict(2, num_samples=10)
    a, b = float(q["rate"].concentration), float(q["rate"].rate)
    negative = scipy.stats.nbinom(a, b / (b + 1))
    law = found.distributions["counts"]
    assert torch.allclose(law.log_prob(counts[:2]), torch.tensor(negative.logpmf(counts[:2].numpy())), rtol=1e-9)
    assert torch.allclose(found.distributions["kinds"].probs, q["probs"].mean.expand(2, 3), rtol=1e-9)
    assert torch.allclose(found.mean["kinds"], (q["probs"].mean * torch.arange(3)).sum().expand(2), rtol=1e-9)
    assert torch.allclose(found.distributions["flags"].probs, q["share"].mean.expand(2), rtol=1e-9)
    each = guide.log_predictive(4, counts, kinds, flags, pointwise=True)
    share = torch.where(flags > 0, q["share"].mean, 1 - q["share"].mean)
    logs = torch.tensor(negative.logpmf(counts.numpy())) + (q["probs"].mean[kinds] * share).log()
    assert each.is_exact and torch.allclose(each.value, logs, rtol=1e-9)


def test_clusters_in_joint_blocks_have_mixtures_of_student_ts() -> None:
    """Bishop 2006 (10.81), as the ready-made model has it."""
    torch.manual_seed(5)
    x = torch.randn(60, 2, dtype=DOUBLE) + 4.0 * (torch.arange(60) % 2)[:, None]
    guide = fit(gmm.model, x, 2, blocks=[("mean", "precision")])
    new = torch.randn(5, 2, dtype=DOUBLE)
    found = guide.log_predictive(new, 2, pointwise=True)
    expected = gmm.predictive(guide.posterior(joint=True)).log_prob(new)
    assert found.is_exact and torch.allclose(found.value, expected, rtol=1e-9)


def kinds_of_counts(size: int, counts: Tensor | None = None, x: Tensor | None = None) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([1.0, 2.0], dtype=DOUBLE)))
    with pyro.plate("kinds", 2):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=DOUBLE), 0.5))
        tau = pyro.sample("tau", dist.Gamma(torch.tensor(2.0, dtype=DOUBLE), 1.0))
        mu = pyro.sample("mu", dist.Normal(0.0, (0.1 * tau).rsqrt()))
    with pyro.plate("data", size):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("counts", dist.Poisson(rate[z]), obs=counts)
        pyro.sample("x", dist.Normal(mu[z], tau[z].rsqrt()), obs=x)


def test_new_points_of_a_mixture_have_mixtures_of_the_laws_of_its_components() -> None:
    """Of Student's t and of Gamma-Poissons, with the expected weights; not where other data tells of the label."""
    torch.manual_seed(6)
    counts = torch.tensor([0.0, 1.0, 0.0, 2.0, 9.0, 11.0, 8.0, 12.0, 1.0], dtype=DOUBLE)
    x = 2.0 * (counts > 5) + torch.randn(9, dtype=DOUBLE) / 2
    guide = fit(kinds_of_counts, 9, counts, x, blocks=[("mu", "tau")])
    q = guide.posterior(joint=True)
    found, places = guide.predict(2, num_samples=1), torch.tensor([0.0, 3.0], dtype=DOUBLE)
    block, rate, weights = q["mu", "tau"], q["rate"], q["weights"].mean.numpy()
    a, b, scaling = (getattr(block, n).numpy() for n in ("concentration", "rate", "precision_scaling"))
    student = scipy.stats.t(2 * a, block.loc.numpy(), np.sqrt(b / a * (1 + 1 / scaling)))
    negative = scipy.stats.nbinom(rate.concentration.numpy(), (rate.rate / (1 + rate.rate)).numpy())
    for site, each in (("x", student.pdf), ("counts", negative.pmf)):
        expected = np.log((weights * each(places.numpy()[:, None])).sum(1))
        law = found.distributions[site]
        assert isinstance(law, dist.MixtureSameFamily)
        np.testing.assert_allclose(law.log_prob(places).numpy(), expected, rtol=1e-6)
    mean = (weights * student.mean()).sum()
    assert found.mean["x"].tolist() == pytest.approx([mean, mean], rel=1e-6)
    second = (weights * (student.var() + student.mean() ** 2)).sum()
    assert float(found.sd["x"][0]) == pytest.approx((second - mean**2) ** 0.5, rel=1e-6)
    assert not guide.predict(9, counts, num_samples=2).distributions  # whose x the counts tell of


def clusters_of_vectors(size: int, x: Tensor | None = None, kinds: int = 2) -> None:
    with pyro.plate("kinds", kinds):
        tau = pyro.sample("tau", dist.Wishart(torch.tensor(4.0, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE)))
        mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2, dtype=DOUBLE), precision_matrix=0.1 * tau))
    with pyro.plate("data", size):
        z = pyro.sample("z", dist.Categorical(torch.ones(kinds, dtype=DOUBLE))) if kinds > 1 else 0
        pyro.sample("x", dist.MultivariateNormal(mu[z], precision_matrix=tau[z]), obs=x)


@pytest.mark.parametrize("kinds", [1, 2])
def test_new_vectors_have_mixtures_of_student_ts(kinds: int) -> None:
    """Bishop 2006 (10.81) and (10.82); of one component the law itself."""
    torch.manual_seed(7)
    x = torch.randn(20, 2, dtype=DOUBLE) @ torch.tensor([[1.0, 0.7], [0.0, 0.5]], dtype=DOUBLE)
    x = x + 5.0 * (torch.arange(20) % kinds)[:, None]
    guide = fit(clusters_of_vectors, 20, x, kinds, blocks=[("mu", "tau")])
    block = guide.posterior(joint=True)["mu", "tau"]
    law = guide.predict(3, None, kinds, num_samples=1).distributions["x"]
    assert isinstance(law, dist.MixtureSameFamily if kinds > 1 else dist.MultivariateStudentT)
    places = torch.randn(3, 2, dtype=DOUBLE) * 3
    each = []
    for loc, scaling, df, scale in zip(
        block.loc, block.precision_scaling, block.df, block.covariance_matrix, strict=True
    ):
        own, shape = float(df) - 1, torch.linalg.inv(scale) * (1 + scaling) / scaling / (df - 1)
        each.append(scipy.stats.multivariate_t(loc.numpy(), shape.numpy(), own).pdf(places.numpy()))
    np.testing.assert_allclose(law.log_prob(places).numpy(), np.log(np.mean(each, 0)), rtol=1e-6)


# Clusters: labels are summed out.


def mixture(x: Tensor | None = None, n: int = 0) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3, dtype=DOUBLE)))
    with pyro.plate("kinds", 3):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 10.0))
        tau = pyro.sample("tau", dist.Gamma(torch.tensor(2.0, dtype=DOUBLE), 1.0))
    with pyro.plate("data", n if x is None else len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mu[z], tau[z].rsqrt()), obs=x)


def test_labels_of_new_points_are_summed_out() -> None:
    torch.manual_seed(1)
    x = torch.randn(60, dtype=DOUBLE) + torch.tensor([-5.0, -5.0, 5.0], dtype=DOUBLE)[torch.arange(60) % 3]
    guide = fit(mixture, x)
    new = torch.tensor([-5.0, 0.3, 2.5, 6.0], dtype=DOUBLE)
    q, num = guide.posterior(), 20_000
    weights, mu, tau = (q[name].sample((num, 1)) for name in ("weights", "mu", "tau"))
    each = (weights.log() + dist.Normal(mu, tau.rsqrt()).log_prob(new[:, None])).logsumexp(-1)  # [num, 4]
    agree(guide.log_predictive(new, pointwise=True, num_samples=4000), *log_mean(each))
    agree(guide.log_predictive(new, num_samples=4000), *log_mean(each.sum(1)))
    agree(guide.log_predictive(new[:1], num_samples=4000), *[t[0] for t in log_mean(each)])
    assert guide.log_predictive(new[:1], pointwise=True).value.shape == (1,)
    drawn = guide.predict(n=2, num_samples=4000)
    share = torch.stack([(drawn.latents["z"] == k).double().mean() for k in range(3)])
    assert torch.allclose(share, q["weights"].mean, atol=0.03)
    given = guide.predict(new, num_samples=200).latents["z"]
    assert len(given[:, 0].unique()) == 1 or float((given[:, 0] == given[:, 0].mode().values).double().mean()) > 0.5


def chain(x: Tensor) -> None:
    rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 2, dtype=DOUBLE) + torch.eye(2)).to_event(1))
    with pyro.plate("states", 2):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 10.0))
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(rows[z]), infer={"enumerate": "parallel"})
        pyro.sample(f"x{t}", dist.Normal(mu[z], 1.0), obs=x[t])


def test_states_of_a_chain_are_summed_out_by_brute_force() -> None:
    torch.manual_seed(2)
    guide = fit(chain, torch.tensor([0.1, -0.3, 5.2, 4.9], dtype=DOUBLE))
    new = torch.tensor([0.0, 5.0, 2.0, 6.0], dtype=DOUBLE)
    q, num = guide.posterior(), 20_000
    table, mu = q["rows"].sample((num,)), q["mu"].sample((num,))
    paths = []
    for path in itertools.product(range(2), repeat=4):
        steps = [table[:, a, b].log() for a, b in itertools.pairwise((0, *path))]
        paths.append(sum(steps) + sum(dist.Normal(mu[:, k], 1.0).log_prob(v) for k, v in zip(path, new, strict=True)))
    agree(guide.log_predictive(new, num_samples=4000), *log_mean(torch.stack(paths).logsumexp(0)))


# Continuous latents of the new data.


def effects(x: Tensor | None, n: int = 0) -> None:
    top = pyro.sample("top", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 10.0))
    tau = pyro.sample("tau", dist.Gamma(torch.tensor(2.0, dtype=DOUBLE), 1.0))
    with pyro.plate("data", n if x is None else len(x)):
        mu = pyro.sample("mu", dist.Normal(top, tau.rsqrt()))
        pyro.sample("x", dist.Normal(mu, 0.5), obs=x)


# Steps after those of the fit.


def level(y: Tensor, steps: int, local: bool | None = None) -> None:
    """A random walk, and data of it at its first steps."""
    infer: Any = {} if local is None else {"local": local}
    state = y.new_tensor(0.0)
    for t in range(steps):
        state = pyro.sample(f"level_{t}", dist.Normal(state, 0.7), infer=infer)
        pyro.sample(f"y_{t}", dist.Normal(state, 0.4), obs=y[t] if t < len(y) else None)


def forecast(y: Tensor, steps: int) -> scipy.stats.multivariate_normal:
    """The joint law of the data of the steps after those of ``y``, by dense algebra."""
    times = np.arange(1, steps + 1)
    covariance = 0.49 * np.minimum.outer(times, times) + 0.16 * np.eye(steps)
    n = len(y)
    gain = covariance[n:, :n] @ np.linalg.inv(covariance[:n, :n])
    return scipy.stats.multivariate_normal(gain @ y.numpy(), covariance[n:, n:] - gain @ covariance[:n, n:])


@pytest.mark.parametrize("local", [None, True])
def test_steps_after_the_fit_are_kalmans_forecast(local: bool | None) -> None:
    """Of the series of the fit; where its states belong to the data at hand, also of another series."""
    y = torch.tensor([0.3, 1.1, 0.8, 1.9, 2.2], dtype=DOUBLE)
    guide = fit(level, y, len(y), local, blocks=["level_*"])
    for series in (y, -y) if local else (y,):
        found = guide.predict(series, 8, local, num_samples=20_000)
        draws = torch.stack([found[f"y_{t}"] for t in (5, 6, 7)], -1).numpy()
        law = forecast(series, 8)
        spread = np.sqrt(np.diag(law.cov))
        for step, mean, sd in zip((5, 6, 7), law.mean, spread, strict=True):
            exact = found.distributions[f"y_{step}"]
            assert isinstance(exact, dist.Normal)
            assert (float(exact.loc), float(exact.scale)) == pytest.approx((mean, sd), rel=1e-9)
        assert np.abs(draws.mean(0) - law.mean).max() < 4 * spread.max() / 20_000**0.5
        np.testing.assert_allclose(np.cov(draws.T), law.cov, atol=5 * law.cov.max() * (2 / 20_000) ** 0.5)


def seasons(y: Tensor, steps: int, kind: str = "known") -> None:
    """A level, a slope and an effect of two seasons, in factors of their own, and data at the first steps."""
    one = y.new_tensor(1.0)
    slope = pyro.sample("slope", dist.Normal(0.0 * one, 0.5))
    effect = pyro.sample("effect", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
    noise = pyro.sample("precision", dist.Gamma(one, one)).rsqrt() if kind == "precision" else 0.3
    state = 0.0 * one
    for t in range(steps):
        state = state.detach() if kind == "detached" and t >= len(y) else state
        after = state.sin() if kind == "sine" and t >= len(y) else slope * state if kind == "product" else state + slope
        state = pyro.sample(f"level_{t}", dist.Normal(after, 0.7))
        pyro.sample(f"y_{t}", dist.Normal(state + effect[t % 2], noise), obs=y[t] if t < len(y) else None)


def test_linear_predictions_add_the_variances_of_all_factors() -> None:
    """y = level + slopes + effect + noise, whose means and variances under q are those of its factors."""
    y = torch.tensor([0.3, 1.1, 0.8, 1.9], dtype=DOUBLE)
    guide = fit(seasons, y, 4, blocks=["level_*"])
    q = guide.posterior()
    for ahead, law in enumerate(guide.predict(y, 7, num_samples=2).distributions[f"y_{t}"] for t in (4, 5, 6)):
        effect = q["effect"].base_dist if hasattr(q["effect"], "base_dist") else q["effect"]
        mean = q["level_3"].mean + (ahead + 1) * q["slope"].mean + effect.mean[ahead % 2]
        variance = q["level_3"].variance + (ahead + 1) ** 2 * q["slope"].variance + effect.variance[ahead % 2]
        assert float(law.loc) == pytest.approx(float(mean), rel=1e-9)
        assert float(law.variance) == pytest.approx(float(variance) + (ahead + 1) * 0.49 + 0.09, rel=1e-9)


@pytest.mark.parametrize("kind", ["precision", "sine", "product", "detached"])
def test_what_is_not_linear_has_no_normal_prediction(kind: str) -> None:
    """A precision that is not known, and states: of a sine, multiplied by a latent, or detached, without a slope."""
    y = torch.tensor([0.3, 1.1, 0.8, 1.9], dtype=DOUBLE)
    guide = fit(seasons, y, 4, kind, blocks=["level_*"])
    found = guide.predict(y, 6, kind, num_samples=2).distributions
    assert found.keys() == ({"level_4", "level_5"} if kind == "precision" else set())  # the level's own scale is known


def test_states_of_steps_after_the_fit_follow_the_chain() -> None:
    """The probabilities of later states are the filtered ones times powers of the transition matrix."""
    transition = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=DOUBLE)

    def chain(y: Tensor, steps: int) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.tensor(3.0, dtype=DOUBLE), 1e-4))
        local: Any = {"local": True}
        z = torch.tensor(0)
        for t in range(steps):
            z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]), infer=local)
            pyro.sample(f"y_{t}", dist.Normal(mean * z, 1.0), obs=y[t] if t < len(y) else None)

    y = torch.tensor([0.2, 2.5, 1.4], dtype=DOUBLE)
    guide = fit(chain, y, 3)
    filtered = torch.tensor([1.0, 0.0], dtype=DOUBLE)
    for value in y:
        filtered = filtered @ transition * (-0.5 * (value - torch.tensor([0.0, 3.0], dtype=DOUBLE)) ** 2).exp()
        filtered = filtered / filtered.sum()
    found = guide.predict(y, 6, num_samples=20_000)
    for steps, name in enumerate(("y_3", "y_4", "y_5"), start=1):
        expected = 3.0 * float((filtered @ torch.linalg.matrix_power(transition, steps))[1])
        assert abs(float(found.mean[name]) - expected) < 4 * 1.8 / 20_000**0.5


def test_scalar_effects_of_new_data_in_mean_field_are_at_their_optimum() -> None:
    """Each effect is normal given its datum; data drawn beside it has that mean."""

    local: Any = {"local": True}

    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(y.new_tensor(0.0), 1.0))
        for t in range(len(y)):
            effect = pyro.sample(f"effect_{t}", dist.Normal(y.new_tensor(0.0), 1.0), infer=local)
            pyro.sample(f"y_{t}", dist.Normal(effect, 0.5), obs=y[t])
        pyro.sample("of_mean", dist.Normal(mean, 1.0), obs=y[0])

    found = fit(model, torch.tensor([0.3, 1.1], dtype=DOUBLE)).predict(torch.tensor([-2.0, 3.0], dtype=DOUBLE))
    for name, y in (("effect_0", -2.0), ("effect_1", 3.0)):
        assert float(found.latents[name].mean()) == pytest.approx(0.8 * y, abs=0.06)
        assert float(found.latents[name].std()) == pytest.approx(0.2**0.5, rel=0.1)


def test_later_steps_may_have_sites_without_a_family() -> None:
    """The states after a shock of Student's t have the covariance of the model, and are drawn together."""

    def shocked(y: Tensor, steps: int) -> None:
        state = y.new_tensor(0.0)
        for t in range(steps):
            state = pyro.sample(f"level_{t}", dist.Normal(state, 0.7))
            if t < len(y):
                pyro.sample(f"y_{t}", dist.Normal(state, 0.4), obs=y[t])
            else:
                state = state + pyro.sample(f"shock_{t}", dist.StudentT(y.new_tensor(10.0), 0.0, 0.4))

    y = torch.tensor([0.3, 1.1], dtype=DOUBLE)
    guide = fit(shocked, y, 2, blocks=["level_*"])
    gain = 0.49 / 0.65
    filtered = 0.16 * (gain * 0.16 + 0.49) / (gain * 0.16 + 0.65)
    last = [filtered + 0.49, filtered + 2 * 0.49 + 0.16 * 10 / 8]  # level_2, and level_3 after one shock
    assert guide.elbo(y, 4) == pytest.approx(guide.elbo(y, 2))
    assert set(guide(y, 4)).isdisjoint({"level_2", "level_3"})  # the model draws them together
    found = guide.predict(y, 4, num_samples=10_000)
    covariance = np.cov(torch.stack([found["level_2"], found["level_3"]]).numpy())
    np.testing.assert_allclose(covariance, [[last[0], last[0]], last], atol=6 * last[1] * (2 / 10_000) ** 0.5)


@pytest.mark.parametrize("masked", [False, True])
def test_steps_after_the_fit_go_on_from_the_data_that_is_given(masked: bool) -> None:
    """An autoregression that reads what ``pyro.sample`` returns: its forecast is from the last datum, as Predictive's;
    data that is given is drawn from the first on.
    """

    def autoregression(y: Tensor, steps: int) -> None:
        share = pyro.sample("share", dist.Normal(y.new_tensor(0.9), 1e-3))
        last = y.new_tensor(0.0)
        for t in range(steps):
            mask: Any = torch.tensor(True) if masked and t < len(y) else None
            law = dist.Normal(share * last, 0.1)
            last = pyro.sample(f"y_{t}", law, obs=y[t] if t < len(y) else None, obs_mask=mask)
            pyro.deterministic(f"twice_{t}", 2 * last)

    y = torch.tensor([0.1, -0.2, 8.0], dtype=DOUBLE)
    found = fit(autoregression, y, 3).predict(y, 5, num_samples=4000)
    share = float(found.latents["share"].mean())
    assert float(found.mean["y_2"]) == pytest.approx(0.0, abs=0.02)
    assert float(found.mean["y_3"]) == pytest.approx(8 * share, abs=0.01)
    assert float(found.mean["y_4"]) == pytest.approx(8 * share**2, abs=0.02)
    assert torch.equal(found["twice_4"], 2 * found["y_4"])
    assert torch.equal(found["twice_2"], 2 * found["y_2"])
    assert float(found.sd["y_4"]) == pytest.approx(0.1 * (1 + share**2) ** 0.5, rel=0.06)


def test_data_of_steps_after_the_fit_is_an_error() -> None:
    y = torch.tensor([0.3, 1.1, 0.8, 1.9], dtype=DOUBLE)
    guide = fit(level, y[:3], 3, blocks=["level_*"])
    with pytest.raises(ModelError, match=r"that nothing given depends on; got \['level_3'\] besides, which \['y_3'\]"):
        guide.predict(y, 4)


def test_effects_of_new_data_are_averaged_over() -> None:
    torch.manual_seed(3)
    x = 3.0 + torch.randn(30, dtype=DOUBLE)
    guide = fit(effects, x)
    q, num = guide.posterior(), 20_000
    top, tau = q["top"].sample((num, 1)), q["tau"].sample((num, 1))
    law = dist.Normal(top, (1 / tau + 0.25).sqrt())
    new = torch.tensor([3.0, 0.0, 6.0], dtype=DOUBLE)
    agree(guide.log_predictive(new, pointwise=True, num_samples=3000), *log_mean(law.log_prob(new)))
    agree(guide.log_predictive(new, num_samples=3000), *log_mean(law.log_prob(new).sum(1)))
    expected = law.sample()[:, 0].numpy()
    for count in (30, 7):  # as many as those of the fit, and others: theirs are new in both
        drawn = guide.predict(None, n=count, num_samples=2000)["x"]
        assert scipy.stats.ks_2samp(drawn[:, 0].numpy(), expected).pvalue > 1e-3
        assert scipy.stats.ks_2samp(drawn[:, -1].numpy(), expected).pvalue > 1e-3
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    loaded = AutoConjugate(effects)
    loaded.load_state_dict(torch.load(file))
    other = x + 2.0  # as many as those of the fit, which the loaded guide must not take them for
    here, there = (g.log_predictive(other, pointwise=True, num_samples=50).value for g in (guide, loaded))
    assert torch.allclose(here, there, rtol=1e-9)


def test_auxiliary_sites_leave_the_density_the_models_own() -> None:
    def model(features: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=DOUBLE), 3.0).to_event(1))
        scale = pyro.sample("scale", dist.HalfCauchy(torch.tensor(1.0, dtype=DOUBLE)))
        with pyro.plate("data", len(features)):
            pyro.sample("y", dist.StudentT(4.0, features @ w, scale), obs=y)

    torch.manual_seed(4)
    guide = fit(model, *rows(30), reparam=True)
    new, values = rows(4)
    q = guide.posterior()
    w, scale = q["w"].sample((20_000,)), q["scale"].sample((20_000, 1))
    law = dist.StudentT(4.0, w @ new.T, scale)
    agree(guide.log_predictive(new, values, pointwise=True, num_samples=3000), *log_mean(law.log_prob(values)))
    drawn = guide.predict(new, num_samples=2000)["y"]
    assert scipy.stats.ks_2samp(drawn[:, 0].numpy(), law.sample()[:, 0].numpy()).pvalue > 1e-3


def test_with_parameters_alone_it_is_exact_whatever_the_store_holds() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0, dtype=DOUBLE))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3, dtype=DOUBLE)))
            pyro.sample("x", dist.Normal(loc + 4 * z, 1.0), obs=x)

    pyro.clear_param_store()
    guide = AutoConjugate(model)
    EM(model, guide).run(torch.randn(30, dtype=DOUBLE))
    loc = guide.params()["loc"]
    pyro.clear_param_store()
    new = torch.tensor([0.0, 5.0], dtype=DOUBLE)
    parts = [weight * dist.Normal(loc + shift, 1.0).log_prob(new).exp() for weight, shift in ((0.7, 0.0), (0.3, 4.0))]
    expected = sum(parts).log()
    alone, together = guide.log_predictive(new, pointwise=True), guide.log_predictive(new)
    assert alone.is_exact and together.is_exact and not alone.error.any()
    assert torch.allclose(alone.value, expected, rtol=1e-12)
    assert float(together.value) == pytest.approx(float(expected.sum()), rel=1e-12)


def test_missing_data_weighs_nothing_and_is_predicted_under_its_own_name() -> None:
    def model(x: Tensor, seen: Any) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 10.0))
        twice = pyro.deterministic("twice", 2 * mu)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(twice / 2, 1.0), obs=x, obs_mask=seen)

    x, seen = torch.randn(4, dtype=DOUBLE), torch.tensor([True, True, False, True])
    guide = fit(model, x, seen)
    q = guide.posterior()["mu"]
    found = guide.log_predictive(x, seen, pointwise=True, num_samples=4000)
    agree(found, torch.where(seen, dist.Normal(q.mean, (q.variance + 1).sqrt()).log_prob(x), 0.0))
    drawn = guide.predict(x, seen, num_samples=2000)
    assert set(drawn) == {"twice", "x"}
    assert torch.allclose(drawn["twice"], 2 * drawn.latents["mu"])


# What is refused.


def switched(x: Tensor, local: bool | None = None) -> None:
    infer: Any = {"local": local}
    switch = pyro.sample("switch", dist.Bernoulli(torch.tensor(0.5, dtype=DOUBLE)), infer=infer)
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu + 3 * switch, 1.0), obs=x)


def test_a_discrete_site_of_the_fit_is_not_drawn_from_its_prior() -> None:
    x = 3.0 + torch.randn(10, dtype=DOUBLE)
    guide = fit(switched, x)
    for method in (guide.predict, guide.log_predictive):
        with pytest.raises(
            ModelError, match=r"Expected discrete sites that belong to the data at hand; got \['switch'"
        ):
            method(x[:3])
    found = fit(switched, x, True).log_predictive(x[:3], True, num_samples=2000)  # the new data has its own
    q = guide.posterior()["mu"].sample((20_000, 1))
    each = torch.stack([dist.Normal(q + shift, 1.0).log_prob(x[:3]).sum(1) + np.log(0.5) for shift in (0.0, 3.0)])
    agree(found, *log_mean(each.logsumexp(0)))


def test_what_cannot_be_predicted_is_an_error(fitted: Any) -> None:
    guide, features, y = fitted
    with pytest.raises(ModelError, match="Expected a guide that has seen data; got a new one"):
        AutoConjugate(regression).predict(features)
    with pytest.raises(ModelError, match="Expected new data whose density is asked for; got none"):
        guide.log_predictive(features)
    with pytest.raises(ArgumentError, match="Expected num_samples to be an integer of at least 1; got 0"):
        guide.predict(features, num_samples=0)
    with pytest.raises(ArgumentError, match=r"Expected quantiles in \(0, 1\); got \[2.0\]"):
        guide.predict(features, num_samples=2).quantiles([2])

    def weighed(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 1.0))
        pyro.factor("more", -0.5 * mu * mu)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    with pytest.raises(ModelError, match=r"Expected a model whose data is in sites with obs=; got pyro.factor at"):
        fit(weighed, y).log_predictive(y)


def test_a_density_that_few_draws_carry_is_said(fitted: Any) -> None:
    _, features, y = fitted
    guide = fit(regression, features, y)
    with pytest.warns(UserWarning, match="got an effective number of .* the value is low"):
        guide.log_predictive(features.repeat(50, 1), y.repeat(50) + 1.0, num_samples=100)
