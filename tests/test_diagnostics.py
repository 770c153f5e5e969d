"""Diagnostics: Pareto k̂, evidence, calibration, draws in batches, and mixture components in one order."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from scipy.stats import beta, ks_2samp, kstest, multivariate_normal
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.criticism import (
    Calibration,
    Components,
    Draws,
    Evidence,
    ParetoK,
    Target,
    align,
    calibrate,
    draw,
    evidence,
    find_components,
    moments,
    pareto_k,
    score,
)
from pyro_latent.criticism.calibration import simulated, with_data
from pyro_latent.criticism.evidence import Estimate
from pyro_latent.criticism.moments import features_of, relabeled
from pyro_latent.errors import DataError, ModelError
from pyro_latent.models import gmm, normal_gamma
from pyro_latent.particles import ProgramCall, ProgramRunner, log_joint, run, seeded

Model = Callable[..., Any]


def fitted(model: Model, *args: Any, **options: Any) -> AutoConjugate:
    """Coordinate ascent to convergence."""
    guide = AutoConjugate(model, **options)
    CAVI(model, guide).run(*args)
    return guide


def exact_normal_gamma(model: Model, x: Tensor, **kwargs: Any) -> AutoConjugate:
    """The exact posterior of the Normal-Gamma model."""
    guide = AutoConjugate(model, blocks=[("mean", "precision")])
    CAVI(model, guide).run(x, **kwargs)
    return guide


def standard_normal(dim: int) -> tuple[Model, Callable[[float], Model]]:
    """A model whose posterior is a standard normal in so many dimensions, and its guide at a given sd."""

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(dim).double(), 1.0).to_event(1))

    def guide_at(scale: float) -> Model:
        return lambda: pyro.sample("z", dist.Normal(torch.zeros(dim).double(), scale).to_event(1))

    return model, guide_at


# ------------------------------------------------------------------------------------------------------------ Pareto k̂


@pytest.mark.parametrize("df", [1.5, 3.0, 10.0, 1000.0])
def test_k_is_that_of_arviz(df: float) -> None:
    z = torch.randn(3600, dtype=torch.float64)  # 3√S is whole: ArviZ 0.x rounds the tail's size up, 1.x down
    log_weights = torch.distributions.StudentT(df).log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z)
    weights = log_weights.numpy()
    if hasattr(arviz, "psislw"):
        expected = float(arviz.psislw(weights)[1])
    else:  # ArviZ 1.x; its sign is that of a log likelihood
        expected = float(importlib.import_module("arviz_stats.base").array_stats.psislw(-weights[None])[1].squeeze())
    assert pareto_k(log_weights).k == pytest.approx(expected, abs=1e-6)


def test_k_takes_arrays_and_tensors_that_have_gradients() -> None:
    log_weights = torch.randn(200, dtype=torch.float64, requires_grad=True)
    found = pareto_k(log_weights)
    assert found == pareto_k(log_weights.detach().numpy()) and 0 < found.k < 1
    with pytest.raises(DataError, match=r"S >= 50; got an array of float64 \[\]. Draw more"):
        pareto_k(np.array(1.0))


@pytest.mark.gpu
def test_k_of_weights_on_the_gpu_is_that_on_the_cpu(x: Tensor) -> None:
    log_weights = torch.randn(2000, dtype=torch.float64)
    assert pareto_k(log_weights.cuda()).k == pytest.approx(pareto_k(log_weights).k, rel=1e-12)
    model = normal_gamma.model
    found = evidence(model, fitted(model, x.cuda()), x.cuda())
    assert found.importance.value == pytest.approx(normal_gamma.log_evidence(x).item(), abs=5 * found.importance.error)
    prior: Any = {"prior_concentration": 3.0, "prior_rate": 2.0}
    assert calibrate(model, x.cuda(), num_simulations=5, num_samples=20, **prior).p_values["mean"].shape == (5,)


def test_k_is_exact_for_exact_posteriors(x: Tensor) -> None:
    found = score(normal_gamma.model, exact_normal_gamma(normal_gamma.model, x), x)
    truth = normal_gamma.log_evidence(x).item()
    assert (found.k.label, found.k.verdict) == ("exact", "exact posterior")
    assert found.elbo == pytest.approx(truth, rel=1e-12) and found.log_evidence == pytest.approx(truth, rel=1e-12)
    assert found.elbo_error < 1e-10 and found.effective_sample_size == pytest.approx(1000, rel=1e-9)


def test_k_is_exact_in_single_precision_too(x: Tensor) -> None:
    single = x.float()
    assert score(normal_gamma.model, exact_normal_gamma(normal_gamma.model, single), single).k.label == "exact"


def test_k_of_a_good_guide_is_below_a_half_and_of_a_guide_at_a_tenth_of_the_sd_in_five_dimensions_above_07() -> None:
    model, guide_at = standard_normal(5)
    for seed in range(5):
        good, bad = (score(model, guide_at(s), num_samples=4000, seed=seed).k for s in (1.1, 0.1))
        assert good.k < 0.5 and good.verdict == "good"
        assert bad.k > 0.7 and bad.verdict.startswith("poor")


@pytest.mark.parametrize(
    ("k", "draws", "verdict"),
    [
        (0.2, 1000, "good"),
        (0.6, 10_000, "usable, with importance weights"),
        (0.71, 10_000, "poor: do not rely on it"),
        (0.6, 100, "poor: do not rely on it"),  # 1 - 1 / log10(100) = 0.5
        (-float("inf"), 100, "exact posterior"),
    ],
)
def test_the_verdict_follows_the_threshold_for_the_number_of_draws(k: float, draws: int, verdict: str) -> None:
    assert ParetoK(k, draws).verdict == verdict


def test_weights_over_a_thousand_orders_of_magnitude_are_poor() -> None:
    found = pareto_k(1e4 * torch.randn(1000, dtype=torch.float64))
    assert found.k > 1 and found.verdict.startswith("poor")


def test_weights_that_hardly_vary_are_nearly_exact_whatever_their_tail() -> None:
    tail = (1 - (torch.arange(4000).double() + 0.5) / 4000) ** -0.9  # quantiles of a tail of shape 0.9
    heavy, light = pareto_k(tail.log()), pareto_k((1 + 1e-6 * tail).log())
    assert heavy.k > 0.7 and light.k == pytest.approx(heavy.k, abs=0.01)
    assert heavy.verdict.startswith("poor") and light.verdict == "nearly exact: the weights hardly vary"


def test_weights_that_are_not_finite_have_no_k() -> None:
    found = pareto_k(torch.cat([torch.zeros(99), torch.tensor([float("-inf")])]))
    assert found.k == float("inf") and found.verdict == "some weights are not finite"


def test_too_few_weights_are_an_error() -> None:
    with pytest.raises(DataError, match=r"Expected log weights of shape \[S\] with S >= 50; got torch.float32 \[49\]"):
        pareto_k(torch.zeros(49))
    with pytest.raises(ValueError, match="Expected num_samples to be an integer of at least 50; got 10"):
        score(normal_gamma.model, normal_gamma.guide, torch.randn(5), num_samples=10)


# ------------------------------------------------------------------------------------------------- draws, in batches


def coupled(features: Tensor, y: Tensor) -> None:
    """A matrix product, and a sum over all elements, which a further dimension on the left would break."""
    weights = pyro.sample("weights", dist.Normal(features.new_zeros(features.shape[1]), 1.0).to_event(1))
    norm = pyro.deterministic("norm", weights.square().sum())
    with pyro.plate("rows", len(features)):
        pyro.sample("y", dist.Normal(features @ weights, 1.0 + norm), obs=y)


def indexed(labels: Tensor, y: Tensor) -> None:
    """Picks along the first dimension: with as many draws as levels, a batch picks draws, without an error."""
    with pyro.plate("levels", 4):
        level = pyro.sample("level", dist.Normal(y.new_tensor(0.0), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(level[labels], 1.0), obs=y)


def branching(y: Tensor) -> None:
    """A branch on a latent's value, which no batch can follow."""
    z = pyro.sample("z", dist.Normal(y.new_tensor(0.0), 1.0))
    pyro.sample("y", dist.Normal(z if float(z) > 0 else 3.0 * z, 1.0).expand([len(y)]).to_event(1), obs=y)


Y = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64)
TRICKY: dict[str, tuple[Model, tuple[Any, ...]]] = {
    "matrix product": (coupled, (torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2), Y)),
    "indexing": (indexed, (torch.tensor([0, 1, 2, 3, 0, 1]), Y)),
    "branch": (branching, (Y,)),
}


@pytest.mark.parametrize("name", TRICKY)
def test_densities_in_batches_are_those_of_single_runs(name: str) -> None:
    model, args = TRICKY[name]
    guide = AutoNormal(model)
    guide(*args)
    with seeded(0):
        target = Target.of(model, args, {})
        found = draw(target, guide, 4)
        for i in range(4):
            held = {n: v[i] for n, v in found.values.items()}
            single = poutine.trace(poutine.condition(model, data=held)).get_trace(*args)
            assert float(found.log_p[i]) == pytest.approx(float(single.log_prob_sum()), rel=1e-10)


def test_a_program_that_allows_no_batch_runs_one_by_one_and_the_others_do_not() -> None:
    ways = {}
    for name, (model, args) in TRICKY.items():
        call = ProgramCall(model, args, {})
        runner = ProgramRunner(call, 1, ways=("vmap", "plate", "loop"))
        latent = next(n for n in ("weights", "level", "z") if n in run(call, {}).values)
        values = run(call, {}).values[latent]
        runner({latent: torch.randn(20, *values.shape, dtype=torch.float64)}, 20)
        ways[name] = runner.ways[0]
    assert ways["matrix product"] == ways["indexing"] == "vmap"


def test_a_mixture_is_scored_with_its_components_summed_out(old_faithful: Tensor) -> None:
    guide = fitted(gmm.model, old_faithful, 2, blocks=[("mean", "precision")])
    with seeded(0):
        found = draw(Target.of(gmm.model, (old_faithful, 2), {}), guide, 50)
    assert found.summed == ("component",)
    priors = gmm.default_priors(old_faithful, 2)
    scale = torch.linalg.inv(priors["covariance_prior"])
    for i in (0, 17, 49):
        weights, mean, precision = (found.values[n][i] for n in ("weights", "mean", "precision"))
        points = torch.stack(
            [
                weights[k].log()
                + dist.MultivariateNormal(mean[k], precision_matrix=precision[k]).log_prob(old_faithful)
                for k in (0, 1)
            ]
        )
        expected = (
            torch.logsumexp(points, 0).sum()
            + dist.Dirichlet(priors["weight_concentration_prior"]).log_prob(weights)
            + dist.Wishart(priors["degrees_of_freedom_prior"], covariance_matrix=scale).log_prob(precision).sum()
            + dist.MultivariateNormal(priors["mean_prior"], precision_matrix=precision).log_prob(mean).sum()
        )
        assert float(found.log_p[i]) == pytest.approx(float(expected), rel=1e-10)


def test_the_score_of_a_guide_for_enumeration_is_that_of_trace_enum_elbo(old_faithful: Tensor) -> None:
    gmm.guide(old_faithful, 2)
    found = score(gmm.model, gmm.guide, old_faithful, 2, num_samples=2000)
    elbo = TraceEnum_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    other = np.array([-elbo.loss(gmm.model, gmm.guide, old_faithful, 2) for _ in range(4)])
    assert found.elbo == pytest.approx(other.mean(), abs=4 * np.hypot(found.elbo_error, other.std() / 2))


def test_a_scale_on_enumerated_sites_applies_after_the_sum(old_faithful: Tensor) -> None:
    def scaled(data: Tensor) -> None:
        with pyro.plate("components", 2):
            loc = pyro.sample("loc", dist.Normal(data.new_tensor(3.0), 2.0))
        with pyro.plate("data", len(data)), poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Categorical(data.new_tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
            pyro.sample("obs", dist.Normal(loc[..., z] if loc.dim() == 1 else loc, 1.0), obs=data)

    data = old_faithful[:20, 0]
    loc = torch.tensor([[2.0, 4.5]], dtype=torch.float64)
    found = log_joint(Target.of(scaled, (data,), {}), {"loc": loc})
    points = dist.Normal(loc[0], 1.0).log_prob(data[:, None]) + data.new_tensor([0.4, 0.6]).log()
    expected = 0.5 * torch.logsumexp(points, -1).sum() + dist.Normal(data.new_tensor(3.0), 2.0).log_prob(loc).sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_a_scale_for_each_element_counts_it_so_often(old_faithful: Tensor) -> None:
    """A point with the count 2 is two points: their enumerated sum, each on its own."""

    def counted(data: Tensor, counts: Tensor) -> None:
        with pyro.plate("components", 2):
            loc = pyro.sample("loc", dist.Normal(data.new_tensor(3.0), 2.0))
        with pyro.plate("data", len(data)), poutine.scale(scale=counts):
            z = pyro.sample("z", dist.Categorical(data.new_tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
            pyro.sample("obs", dist.Normal(loc[..., z] if loc.dim() == 1 else loc, 1.0), obs=data)

    data, counts = old_faithful[:9, 0], torch.arange(9) % 3 + 1
    loc = torch.tensor([[2.0, 4.5]], dtype=torch.float64)
    once = data.repeat_interleave(counts)
    found = log_joint(Target.of(counted, (data, counts.double()), {}), {"loc": loc})
    expected = log_joint(Target.of(counted, (once, torch.ones(len(once)).double()), {}), {"loc": loc})
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    "make", [AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoIAFNormal], ids=lambda m: m.__name__
)
def test_any_autoguide_is_scored_as_trace_elbo_scores_it(x: Tensor, make: Any) -> None:
    guide = make(normal_gamma.model)
    svi = SVI(normal_gamma.model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(100):
        svi.step(x)
    found = score(normal_gamma.model, guide, x, num_samples=2000)
    elbo = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    other = np.array([-elbo.loss(normal_gamma.model, guide, x) for _ in range(4)])
    assert found.elbo == pytest.approx(other.mean(), abs=4 * np.hypot(found.elbo_error, other.std() / 2))


def test_one_seed_is_one_score_and_the_global_state_stays(x: Tensor) -> None:
    normal_gamma.guide(x)
    before = torch.get_rng_state()
    first, again = (score(normal_gamma.model, normal_gamma.guide, x, seed=3) for _ in range(2))
    assert first == again and torch.equal(torch.get_rng_state(), before)
    assert score(normal_gamma.model, normal_gamma.guide, x, seed=4) != first


# -------------------------------------------------------------------------------------------------- what does not fit


def test_a_guide_without_density_is_an_error_with_its_sites(x: Tensor) -> None:
    points = AutoDelta(normal_gamma.model)
    with pytest.raises(ModelError, match=r"with a density; got a point at \['mean', 'precision'\]"):
        score(normal_gamma.model, points, x)
    half = AutoGuideList(normal_gamma.model)
    half.append(AutoDelta(poutine.block(normal_gamma.model, expose=["mean"])))
    half.append(AutoNormal(poutine.block(normal_gamma.model, hide=["mean"])))
    with pytest.raises(ModelError, match=r"with a density; got a point at \['mean'\]"):
        score(normal_gamma.model, half, x)


def test_draws_outside_of_the_support_are_an_error_with_their_share(x: Tensor) -> None:
    """A Normal at one sd above 0 is below 0 with a probability of 16%."""

    def normal(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(x.mean(), 0.1))
        pyro.sample("precision", dist.Normal(x.new_tensor(0.2), 0.2))

    words = r"'precision' inside the model's support, Greater.*; got (\d+)% of its draws outside .the guide.. Draw"
    with pytest.raises(ModelError, match=words) as found:
        score(normal_gamma.model, normal, x)
    share = re.search(words, str(found.value))
    assert share is not None and abs(int(share[1]) - 16) < 10
    always = poutine.condition(normal, data={})
    with pyro.validation_enabled(False), pytest.raises(ModelError, match=words):
        score(normal_gamma.model, always, x)


def test_a_support_that_depends_on_another_site_is_that_of_each_draw(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        width = pyro.sample("width", dist.Gamma(x.new_tensor(20.0), 2.0))
        pyro.sample("place", dist.Uniform(-width, width))

    def guide(x: Tensor, far: float = 0.0) -> None:
        pyro.sample("width", dist.Gamma(x.new_tensor(20.0), 2.0))
        pyro.sample("place", dist.Uniform(x.new_tensor(-1.0) + far, 1.0 + far))

    assert np.isfinite(score(model, guide, x).elbo)
    with pytest.raises(ModelError, match=r"'place' inside the model's support, Interval.*100% of its draws outside"):
        score(model, lambda x: guide(x, far=100.0), x)


def test_a_fit_that_diverged_is_an_error_that_says_so(x: Tensor) -> None:
    def lost(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(x.new_tensor(float("inf")), 1.0, validate_args=False))
        pyro.sample("precision", dist.Gamma(x.new_tensor(1.0), 1.0))

    with pytest.raises(ModelError, match=r"finite draws of 'mean'; got 100% with infinite.*smaller learning rate"):
        score(normal_gamma.model, lost, x)


@pytest.mark.parametrize("value", [np.int64(60), 60])
def test_counts_are_integers_of_any_kind(x: Tensor, value: Any) -> None:
    normal_gamma.guide(x)
    assert score(normal_gamma.model, normal_gamma.guide, x, num_samples=value).k.num_draws == 60


@pytest.mark.parametrize("value", [True, 60.0, np.float64(60), np.int64(10), "60"], ids=repr)
def test_counts_that_are_none_are_errors(x: Tensor, value: Any) -> None:
    with pytest.raises(ValueError, match=r"an integer of at least 50; got .*\. Write num_samples=[56]0"):
        score(normal_gamma.model, normal_gamma.guide, x, num_samples=value)


def test_sites_that_differ_are_errors_with_their_names(x: Tensor) -> None:
    def less(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 1.0))

    def more(x: Tensor) -> None:
        less(x)
        pyro.sample("precision", dist.Gamma(x.new_tensor(1.0), 1.0))
        pyro.sample("slope", dist.Normal(x.new_tensor(0.0), 1.0))

    def longer(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        pyro.sample("precision", dist.Gamma(x.new_tensor(1.0), 1.0))

    with pytest.raises(ModelError, match=r"one that leaves out \['precision'\]"):
        score(normal_gamma.model, less, x)
    with pytest.raises(ModelError, match=r"\['mean', 'precision'\]; got \['slope'\] besides"):
        score(normal_gamma.model, more, x)
    with pytest.raises(ModelError, match=r"'mean' of shape \[\], as the model has it.*got \[3\]"):
        score(normal_gamma.model, longer, x)
    with pytest.raises(ModelError, match=r"takes the model's arguments; got one that does not.*'num_components'"):
        score(normal_gamma.model, gmm.guide, x)


def test_a_subsampling_plate_is_an_error_with_its_name(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("data", len(x), subsample_size=10) as index:
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=x[index])

    with pytest.raises(ModelError, match="over all of its data; got plate 'data' with 10 of 30"):
        score(model, AutoNormal(model), x)


# ----------------------------------------------------------------------------------------------------------- evidence


def test_evidence_estimates_agree_with_the_exact_value_where_they_can(x: Tensor) -> None:
    truth = normal_gamma.log_evidence(x).item()
    joint = evidence(normal_gamma.model, exact_normal_gamma(normal_gamma.model, x), x)
    assert joint.exact is not None and joint.exact.value == pytest.approx(truth, rel=1e-12)
    assert joint.best is joint.exact
    mean_field = evidence(normal_gamma.model, fitted(normal_gamma.model, x), x)
    assert mean_field.exact is None
    assert mean_field.elbo.value < truth
    assert mean_field.importance.value == pytest.approx(truth, abs=4 * mean_field.importance.error)
    assert mean_field.best.value == pytest.approx(truth, abs=0.05)
    assert "naive Monte Carlo" in str(mean_field)


@pytest.mark.parametrize(("k", "way"), [(0.5, "importance"), (0.66, "importance"), (0.69, "elbo"), (0.9, "elbo")])
def test_the_best_estimate_is_the_weighted_one_only_where_its_k_allows(k: float, way: str) -> None:
    """Of 1,000 draws the threshold is 1 − 1/3."""
    parts = {name: Estimate(name, value, 0.1) for name, value in (("naive", -9.0), ("elbo", -2.0))}
    weighted = Estimate("importance", -1.0, 0.1, ParetoK(k, 1000))
    assert Evidence(parts["naive"], weighted, parts["elbo"], None).best.way == way
    exactly = Estimate("exact", -1.5, 0.0)
    assert Evidence(parts["naive"], weighted, parts["elbo"], exactly).best is exactly


# -------------------------------------------------------------------------------------------------------- calibration


@pytest.mark.filterwarnings("ignore:ks_2samp")  # scipy's, of a p-value too small to count exactly
def test_verdicts_of_many_elements_allow_for_as_many_tests() -> None:
    """Bonferroni: the least of E p-values is held against a level that is E times smaller."""
    even = (np.arange(200) + 0.4) / 200
    lopsided = even**1.4
    narrow = beta(0.4, 0.55).ppf(even)  # both too narrow and a little lopsided
    uniform, symmetric = kstest(lopsided, "uniform").pvalue, ks_2samp(narrow, 1 - narrow).pvalue

    def verdict(p: Any, elements: int) -> str:
        columns = np.stack([p, *[even] * (elements - 1)], 1)
        return Calibration({"site": torch.from_numpy(columns)}, 100).verdict("site")

    assert 0.01 / 30 < uniform < 0.01 and 0.01 / 30 < symmetric < 0.01
    assert [verdict(lopsided, n) for n in (1, 30)] == ["biased", "calibrated"]
    assert [verdict(narrow, n) for n in (1, 30)] == ["biased", "overconfident"]


def correlated(features: Tensor, target: Tensor) -> None:
    """Regression on two inputs: correlated ones give weights that mean field takes for independent."""
    first = pyro.sample("first", dist.Normal(features.new_tensor(0.0), 1.0))
    second = pyro.sample("second", dist.Normal(features.new_tensor(0.0), 1.0))
    with pyro.plate("rows", len(features)):
        pyro.sample("target", dist.Normal(features[:, 0] * first + features[:, 1] * second, 1.0), obs=target)


def correlated_features() -> Tensor:
    common = torch.randn(20, 1, dtype=torch.float64)
    return torch.cat([common, common + 0.6 * torch.randn(20, 1, dtype=torch.float64)], 1)


def test_exact_posteriors_are_calibrated() -> None:
    x = torch.zeros(10, dtype=torch.float64)
    prior: Any = {"prior_concentration": 3.0, "prior_rate": 2.0}
    found = calibrate(normal_gamma.model, x, fit=exact_normal_gamma, num_simulations=150, num_samples=60, **prior)
    for site in ("mean", "precision"):
        assert float(found.uniformity(site)) > 0.01 and float(found.symmetry(site)) > 0.01
        assert float(found.dispersion(site)) == pytest.approx(1.0, abs=3 * (0.8 / 150) ** 0.5)
        assert found.verdict(site) == "calibrated"


@pytest.mark.slow
def test_mean_field_is_found_overconfident_where_inputs_are_correlated() -> None:
    def quick(model: Model, *args: Any) -> AutoConjugate:
        guide = AutoConjugate(model)
        CAVI(model, guide).run(*args, tol=1e-6)
        return guide

    features = correlated_features()
    found = calibrate(correlated, features, torch.zeros(20).double(), fit=quick, num_simulations=120, num_samples=60)
    covariance = torch.linalg.inv(features.T @ features + torch.eye(2).double())
    narrow = (1 / torch.linalg.inv(covariance).diagonal() / covariance.diagonal()).sqrt()  # q's sd over the true one
    assert bool((narrow < 0.75).all())
    for site in ("first", "second"):
        assert found.verdict(site) == "overconfident"
        assert float(found.symmetry(site)) > 0.01  # narrow, and not biased
    assert "overconfident" in str(found)


def test_a_biased_guide_is_found_biased() -> None:
    def shifted(model: Model, x: Tensor) -> Model:
        data: Any = poutine.trace(model).get_trace(x).nodes["obs"]["value"]
        n, total = len(data), data.sum()
        sd = (1 / (1.0 + n)) ** 0.5
        return lambda x: pyro.sample("mean", dist.Normal(total / (1 + n) + 1.5 * sd, sd))

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=x)

    assert calibrate(model, torch.zeros(5).double(), fit=shifted, num_samples=40).verdict("mean") == "biased"


def test_simulated_data_takes_the_place_of_the_observed(x: Tensor) -> None:
    call = ProgramCall(normal_gamma.model, (x,), {})
    truth, data = simulated(call)
    assert set(truth) == {"mean", "precision"} and set(data) == {"obs"}
    assert not torch.equal(data["obs"], x)
    trace: Any = poutine.trace(with_data(normal_gamma.model, data)).get_trace(x)
    assert trace.nodes["obs"]["is_observed"] and torch.equal(trace.nodes["obs"]["value"], data["obs"])


def test_sites_to_calibrate_are_continuous_latents(old_faithful: Tensor) -> None:
    with pytest.raises(
        ModelError, match=r"continuous latent sites, of \['weights', 'precision', 'mean'\]; got \['component'\]"
    ):
        calibrate(gmm.model, old_faithful, 2, sites=["component"])


# ------------------------------------------------------------------------------------------------- moments, components


def test_moments_are_those_of_the_posterior(x: Tensor) -> None:
    guide = exact_normal_gamma(normal_gamma.model, x)
    with seeded(0):
        found = moments(draw(Target.of(normal_gamma.model, (x,), {}), guide, 4000))
    known = guide.posterior()
    for site in ("mean", "precision"):
        assert float(found[site].mean) == pytest.approx(float(known[site].mean), abs=4 * float(found[site].error))
        assert float(found[site].sd) == pytest.approx(float(known[site].stddev), rel=0.06)


def test_components_are_the_plate_of_their_parameters(old_faithful: Tensor) -> None:
    found = find_components(Target.of(gmm.model, (old_faithful, 3), {}))
    assert found is not None
    assert (found.plate, found.size, found.labels) == ("components", 3, ("component",))
    assert found.axes == {"weights": (-1,), "precision": (-3,), "mean": (-2,)}
    assert find_components(Target.of(normal_gamma.model, (old_faithful[:, 0],), {})) is None
    with pytest.raises(ModelError, match=r"one of \['components'\]; got 'data'"):
        find_components(Target.of(gmm.model, (old_faithful, 3), {}), "data")


def test_a_plate_is_of_components_only_if_their_order_does_not_matter() -> None:
    data = torch.randn(20, dtype=torch.float64)

    def model(data: Tensor, centres: list[float]) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(data.new_ones(2)))
        with pyro.plate("k", 2):
            mean = pyro.sample("mean", dist.Normal(data.new_tensor(centres), 1.0))
        with pyro.plate("sides", 2):
            pyro.sample("side", dist.Normal(data.new_tensor([0.0, 9.0]), 1.0))
        with pyro.plate("data", len(data)):
            mixed = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(mean, 1.0))
            pyro.sample("obs", mixed, obs=data)

    with seeded(0):
        same, other = (Target.of(model, (data, centres), {}) for centres in ([0.0, 0.0], [-3.0, 3.0]))
        found = find_components(same)
        assert found is not None and (found.plate, found.features, found.labels) == ("k", ("mean",), ())
        assert find_components(other) is None
        named = find_components(other, "sides")
        assert named is not None and named.features == ("side",)
        with pytest.raises(ModelError, match=r"one of \['k', 'sides'\]; got 'data'. Name one of these"):
            find_components(other, "data")


def test_relabelling_leaves_every_density_as_it_is(old_faithful: Tensor) -> None:
    guide = fitted(gmm.model, old_faithful, 3, blocks=[("mean", "precision")])
    with seeded(0):
        target = Target.of(gmm.model, (old_faithful, 3), {})
        plate = find_components(target)
        assert plate is not None
        found = draw(target, guide, 5)
        labels = torch.randint(3, (5, 272))
        order = torch.stack([torch.randperm(3) for _ in range(5)])
        values = found.values | {"component": labels}
        moved = relabeled(values, plate, order)
        torch.testing.assert_close(log_joint(target, moved), log_joint(target, values), rtol=1e-12, atol=0.0)
        torch.testing.assert_close(moved["weights"], values["weights"].gather(1, order))


def test_a_chain_that_swaps_labels_is_aligned_draw_by_draw(old_faithful: Tensor) -> None:
    guide = fitted(gmm.model, old_faithful, 2, blocks=[("mean", "precision")])
    with seeded(0):
        target = Target.of(gmm.model, (old_faithful, 2), {})
        plate = find_components(target)
        assert plate is not None
        found = draw(target, guide, 200)
        order = torch.stack([torch.randperm(2) for _ in range(200)])
    chain = type(found)(relabeled(found.values, plate, order), found.log_p, None)
    once = align({"guide": found, "chain": chain}, plate)["chain"]
    torch.testing.assert_close(features_of(once.values, plate), features_of(found.values, plate))
    alone = align({"chain": chain}, plate)["chain"]
    spread = features_of(alone.values, plate).std(0)
    torch.testing.assert_close(spread.sort(0).values, features_of(found.values, plate).std(0).sort(0).values)


def test_components_are_told_apart_by_parameters_in_units_of_their_spread() -> None:
    """A parameter that says nothing, in large units, must not outweigh one that tells the components apart."""
    plate = Components("k", 2, {"centre": (-1,), "noise": (-1,)}, ("centre", "noise"), ())

    def drawn(order: list[int]) -> Draws:
        centre = torch.tensor([0.0, 0.5]) + 0.1 * torch.randn(200, 2)
        values = {"centre": centre[:, order].double(), "noise": 1000 * torch.randn(200, 2).double()}
        return Draws(values, torch.zeros(200).double(), torch.zeros(200).double())

    for order in ([0, 1], [1, 0]) * 5:
        found = align({"pivot": drawn([0, 1]), "other": drawn(order)}, plate)["other"].values["centre"]
        assert float(found[:, 0].mean()) < 0.1 < float(found[:, 1].mean())


def test_a_gaussian_posterior_has_the_evidence_of_its_marginal(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.5), obs=x)

    found = score(model, fitted(model, x), x)
    marginal = multivariate_normal(np.zeros(30), 2.25 * np.eye(30) + 4.0 * np.ones((30, 30)))
    assert found.log_evidence == pytest.approx(marginal.logpdf(x.numpy()), rel=1e-10)
    assert found.k.label == "exact"
