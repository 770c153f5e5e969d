"""What ``to_arviz`` puts into each group: values, names, labels, and that a file keeps them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.arviz import loo, to_arviz
from pyro_latent.criticism import score
from pyro_latent.errors import ModelError
from pyro_latent.models import gmm, normal_gamma
from pyro_latent.particles import runs

az = pytest.importorskip("arviz")

GROUPS = {"posterior", "posterior_predictive", "log_likelihood", "sample_stats", "observed_data"}


@pytest.fixture
def x() -> Tensor:
    """Twenty points, float64."""
    return 3.0 + 2.0 * torch.randn(20, dtype=torch.float64)


@pytest.fixture
def exact(x: Tensor) -> AutoConjugate:
    """A guide that is the exact posterior of the Normal-Gamma model."""
    guide = AutoConjugate(normal_gamma.model, blocks=[("mean", "precision")])
    CAVI(normal_gamma.model, guide).run(x)
    return guide


def regression(features: Tensor, target: Tensor) -> None:
    """A linear regression with a deterministic site."""
    precision = pyro.sample("precision", dist.Gamma(features.new_tensor(2.0), features.new_tensor(1.0)))
    dim = features.shape[1]
    zero, one = features.new_zeros(dim), features.new_ones(dim)
    weights = pyro.sample("weights", dist.Normal(zero, one).to_event(1))
    pyro.deterministic("norm", weights.square().sum())
    with pyro.plate("rows", len(features)):
        pyro.sample("target", dist.Normal(features @ weights, precision.rsqrt()), obs=target)


def test_log_joint_less_log_q_is_the_evidence_at_every_draw_from_the_exact_posterior(
    x: Tensor, exact: AutoConjugate
) -> None:
    stats = to_arviz(normal_gamma.model, exact, x, num_samples=50).sample_stats
    evidence = normal_gamma.log_evidence(x).item()
    np.testing.assert_allclose((stats.lp - stats.log_q).values, evidence, rtol=1e-11)


def test_log_likelihood_is_the_density_of_each_point_at_each_draw(x: Tensor, exact: AutoConjugate) -> None:
    idata = to_arviz(normal_gamma.model, exact, x, num_samples=30)
    mean, precision = idata.posterior["mean"].values, idata.posterior["precision"].values
    expected = scipy.stats.norm.logpdf(x.numpy(), mean[..., None], precision[..., None] ** -0.5)
    np.testing.assert_allclose(idata.log_likelihood["obs"].values, expected, rtol=1e-12)


def test_posterior_draws_follow_the_marginals_of_the_guide(x: Tensor, exact: AutoConjugate) -> None:
    posterior = to_arviz(normal_gamma.model, exact, x, num_samples=1000).posterior
    known = normal_gamma.posterior(x)
    df, loc = 2 * known.concentration.item(), known.loc.item()
    scale = (known.rate / (known.concentration * known.precision_scaling)).sqrt().item()
    assert scipy.stats.kstest(posterior["mean"].values[0], "t", (df, loc, scale)).pvalue > 1e-3
    gamma = (known.concentration.item(), 0, 1 / known.rate.item())
    assert scipy.stats.kstest(posterior["precision"].values[0], "gamma", gamma).pvalue > 1e-3


def test_predictive_draws_follow_the_exact_predictive_density_and_not_the_data(x: Tensor, exact: AutoConjugate) -> None:
    predicted = to_arviz(normal_gamma.model, exact, x, num_samples=1000).posterior_predictive["obs"]
    student = normal_gamma.posterior_predictive(normal_gamma.posterior(x))
    shape = (student.df.item(), student.loc.item(), student.scale.item())
    for point in (0, 7):
        assert scipy.stats.kstest(predicted.values[0, :, point], "t", shape).pvalue > 1e-3


def elpd(found: Any) -> float:
    """What ArviZ 0.x calls ``elpd_loo`` and 1.x ``elpd``."""
    return float(getattr(found, "elpd_loo" if hasattr(found, "elpd_loo") else "elpd"))


def test_loo_is_the_exact_leave_one_out_density(x: Tensor, exact: AutoConjugate) -> None:
    without = [torch.cat([x[:i], x[i + 1 :]]) for i in range(len(x))]
    evidence = normal_gamma.log_evidence(x)
    expected = sum((evidence - normal_gamma.log_evidence(rest)).item() for rest in without)
    found = [elpd(az.loo(to_arviz(normal_gamma.model, exact, x, num_samples=4000, seed=seed))) for seed in range(8)]
    assert np.mean(found) == pytest.approx(expected, abs=0.045)  # four standard errors: one has a deviation of 0.031


def test_the_seed_fixes_the_draws_and_the_global_state_stays(x: Tensor, exact: AutoConjugate) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = to_arviz(normal_gamma.model, exact, x, num_samples=5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again = to_arviz(normal_gamma.model, exact, x, num_samples=5, seed=3)
    other = to_arviz(normal_gamma.model, exact, x, num_samples=5, seed=4)
    assert first.posterior.equals(again.posterior)
    assert first.posterior_predictive.equals(again.posterior_predictive)
    assert not first.posterior.equals(other.posterior)


def test_plates_name_the_dimensions_of_every_group(old_faithful: Tensor) -> None:
    guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")])
    CAVI(gmm.model, guide).run(old_faithful, 2)
    names = ["eruptions", "waiting"]
    idata = to_arviz(
        gmm.model,
        guide,
        old_faithful,
        2,
        num_samples=4,
        coords={"components": ["short", "long"], "feature": names},
        dims={"mean": ["components", "feature"], "obs": ["data", "feature"]},
    )
    sample = ("chain", "draw")
    assert idata.posterior["mean"].dims == (*sample, "components", "feature")
    assert idata.posterior["precision"].dims == (*sample, "components", "precision_dim_1", "precision_dim_2")
    assert idata.posterior["weights"].dims == (*sample, "weights_dim_0")
    assert idata.posterior["component"].dims == (*sample, "data")
    assert idata.log_likelihood["obs"].dims == (*sample, "data")
    assert idata.posterior_predictive["obs"].dims == (*sample, "data", "feature")
    assert idata.observed_data["obs"].dims == ("data", "feature")
    assert idata.posterior["components"].values.tolist() == ["short", "long"]
    assert idata.observed_data["feature"].values.tolist() == names
    assert idata.posterior["data"].values.tolist() == list(range(272))
    waiting = idata.observed_data["obs"].sel(feature="waiting").values
    np.testing.assert_array_equal(waiting, old_faithful[:, 1].numpy())


def test_draws_of_a_discrete_site_have_the_frequencies_of_its_posterior(old_faithful: Tensor) -> None:
    guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")])
    CAVI(gmm.model, guide).run(old_faithful, 2)
    drawn = to_arviz(gmm.model, guide, old_faithful, 2, num_samples=200).posterior["component"]
    probs = guide.posterior()["component"].probs[:, 1].numpy()
    error = np.sqrt(np.maximum(probs * (1 - probs), 1 / 200) / 200)
    assert np.abs(drawn.values[0].mean(0) - probs).max() < 5 * error.max()


def test_arguments_that_are_not_observed_are_constant_data_and_deterministic_sites_are_in_the_posterior() -> None:
    features = torch.randn(12, 2, dtype=torch.float64)
    target = features @ features.new_tensor([1.0, -2.0]) + 0.1 * torch.randn(12, dtype=torch.float64)
    guide = AutoConjugate(regression)
    CAVI(regression, guide).run(features, target)
    idata = to_arviz(regression, guide, features, target=target, num_samples=6)
    assert list(idata.constant_data.data_vars) == ["features"]
    np.testing.assert_array_equal(idata.constant_data["features"].values, features.numpy())
    assert list(idata.observed_data.data_vars) == ["target"]
    squares = (idata.posterior["weights"].values ** 2).sum(-1)
    np.testing.assert_allclose(idata.posterior["norm"].values, squares, rtol=1e-12)


class Regression(PyroModule):
    """A regression whose ``__call__`` hides the names of its arguments."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weights: Any = PyroSample(dist.Normal(torch.zeros(dim).double(), 1.0).to_event(1))

    def forward(self, features: Tensor, target: Tensor) -> None:
        mean = features @ self.weights
        with pyro.plate("rows", len(features)):
            pyro.sample("target", dist.Normal(mean, 1.0), obs=target)


def test_a_module_names_its_constant_data_as_its_forward_does() -> None:
    features = torch.randn(6, 2, dtype=torch.float64)
    model = Regression(2)
    idata = to_arviz(model, AutoNormal(model), features, features.sum(1), num_samples=2)
    assert list(idata.constant_data.data_vars) == ["features"]
    np.testing.assert_array_equal(idata.constant_data["features"].values, features.numpy())


def test_arrays_inside_arguments_are_constant_data_by_their_place() -> None:
    features = torch.randn(6, 2, dtype=torch.float64)
    data = {"features": features, "target": features.sum(1), "note": "no array"}

    def model(data: dict[str, Any], offsets: list[Any], **more: Any) -> None:
        regression(data["features"], data["target"] + 0 * offsets[0].sum())

    arguments: Any = [features[:, 0], [np.arange(3), np.array(["text"])], features.to_sparse()]
    idata = to_arviz(model, AutoNormal(model), data, arguments, speed=features[0], num_samples=2)
    expected = {
        "data.features": features.numpy(),
        "offsets.0": features[:, 0].numpy(),
        "offsets.1.0": np.arange(3),
        "speed": features[0].numpy(),
    }
    assert set(idata.constant_data.data_vars) == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(idata.constant_data[name].values, array)


def test_a_constant_has_the_names_of_the_dimensions_that_it_is_given_and_a_file_keeps_it(tmp_path: Path) -> None:
    features = torch.randn(6, 2, dtype=torch.float64)

    def model(data: dict[str, Tensor]) -> None:
        regression(data["features"], data["target"])

    data = {"features": features, "target": features.sum(1)}
    dims = {"data.features": ["rows", "column"]}
    idata = to_arviz(model, AutoNormal(model), data, num_samples=2, dims=dims, coords={"column": ["a", "b"]})
    idata.to_netcdf(str(tmp_path / "fit.nc"))
    loaded = az.from_netcdf(str(tmp_path / "fit.nc"))
    assert loaded["constant_data"]["data.features"].dims == ("rows", "column")
    assert loaded["constant_data"]["column"].values.tolist() == ["a", "b"]


def test_log_likelihood_is_zero_behind_a_mask_and_free_of_scale(x: Tensor) -> None:
    mask: Any = torch.arange(20) < 15

    def model(x: Tensor) -> None:
        precision = pyro.sample("precision", dist.Gamma(x.new_tensor(2.0), x.new_tensor(1.0)))
        with pyro.plate("data", len(x)), poutine.scale(scale=3.0), poutine.mask(mask=mask):
            pyro.sample("obs", dist.Normal(x.new_tensor(3.0), precision.rsqrt()), obs=x)

    guide = AutoConjugate(model)
    CAVI(model, guide).run(x)
    idata = to_arviz(model, guide, x, num_samples=10)
    precision, found = idata.posterior["precision"].values, idata.log_likelihood["obs"].values
    expected = scipy.stats.norm.logpdf(x.numpy(), 3.0, precision[..., None] ** -0.5)
    np.testing.assert_allclose(found[..., :15], expected[..., :15], rtol=1e-12)
    assert (found[..., 15:] == 0).all()
    prior = scipy.stats.gamma.logpdf(precision, 2.0)
    np.testing.assert_allclose(idata.sample_stats["lp"].values, prior + 3 * found.sum(-1), rtol=1e-12)


def test_a_factor_is_in_the_log_joint_but_no_observation(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), x.new_tensor(1.0)))
        pyro.factor("bonus", x.new_tensor(2.5))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, x.new_tensor(1.0)), obs=x)

    guide = AutoConjugate(model)
    CAVI(model, guide).run(x)
    idata = to_arviz(model, guide, x, num_samples=3)
    assert list(idata.observed_data.data_vars) == ["obs"]
    mean = idata.posterior["mean"].values
    expected = scipy.stats.norm.logpdf(mean) + idata.log_likelihood["obs"].values.sum(-1) + 2.5
    np.testing.assert_allclose(idata.sample_stats["lp"].values, expected, rtol=1e-12)


def test_attributes_say_method_elbo_and_versions(x: Tensor, exact: AutoConjugate) -> None:
    idata = to_arviz(normal_gamma.model, exact, x, num_samples=2)
    attributes = idata.posterior.attrs
    assert attributes["method"] == "coordinate ascent (AutoConjugate)"
    assert attributes["elbo"] == pytest.approx(normal_gamma.log_evidence(x).item(), rel=1e-12)
    assert attributes["inference_library"] == "pyro_latent"
    assert attributes["pyro_version"] == pyro.__version__
    assert attributes["torch_version"] == torch.__version__
    assert idata.attrs["method"] == attributes["method"]


def test_any_guide_that_samples_every_latent_will_do(x: Tensor) -> None:
    guide = AutoNormal(normal_gamma.model)
    idata = to_arviz(normal_gamma.model, guide, x, num_samples=3)
    assert set(idata.posterior.data_vars) == {"mean", "precision"}
    assert idata.posterior.attrs["method"] == "AutoNormal"
    assert "elbo" not in idata.posterior.attrs


def test_a_file_keeps_groups_values_labels_and_attributes(x: Tensor, exact: AutoConjugate, tmp_path: Path) -> None:
    idata = to_arviz(normal_gamma.model, exact, x, num_samples=7, coords={"data": [f"p{i}" for i in range(20)]})
    idata.to_netcdf(str(tmp_path / "fit.nc"))
    loaded = az.from_netcdf(str(tmp_path / "fit.nc"))
    for group in GROUPS:
        assert loaded[group].equals(idata[group]), group
    assert loaded.posterior.attrs["elbo"] == idata.posterior.attrs["elbo"]


def test_arviz_1_gets_a_tree_of_the_same_groups(
    x: Tensor, exact: AutoConjugate, monkeypatch: pytest.MonkeyPatch
) -> None:
    old: Any = to_arviz(normal_gamma.model, exact, x, num_samples=3)
    monkeypatch.setattr(az, "__version__", "1.0.0")
    tree: Any = to_arviz(normal_gamma.model, exact, x, num_samples=3)
    assert type(tree).__name__ == "DataTree"
    assert set(tree.children) == GROUPS
    for group in GROUPS:
        expected = old[group].to_dataset() if hasattr(old[group], "to_dataset") else old[group]
        assert tree[group].to_dataset().equals(expected), group
    assert tree.attrs["elbo"] == tree["posterior"].attrs["elbo"]


def test_a_guide_that_leaves_out_a_latent_is_an_error_with_its_name(old_faithful: Tensor) -> None:
    with pytest.raises(ModelError, match=r"samples every latent site; got one that leaves out \['component'\]"):
        to_arviz(gmm.model, gmm.guide, old_faithful, 2, num_samples=2)


def test_numpy_counts_are_counts(x: Tensor, exact: AutoConjugate) -> None:
    counts: dict[str, Any] = {"num_samples": np.int64(3), "prior_samples": np.int32(2)}
    idata = to_arviz(normal_gamma.model, exact, x, **counts)
    assert idata.posterior.sizes["draw"] == 3 and idata.prior.sizes["draw"] == 2


@pytest.mark.parametrize("num_samples", [0, -1, 2.5, True])
def test_a_number_of_draws_below_one_is_an_error(x: Tensor, exact: AutoConjugate, num_samples: Any) -> None:
    with pytest.raises(ValueError, match="Expected num_samples to be an integer of at least 1; got"):
        to_arviz(normal_gamma.model, exact, x, num_samples=num_samples)


def test_a_driver_stands_for_its_guide(x: Tensor) -> None:
    cavi = CAVI(normal_gamma.model, AutoConjugate(normal_gamma.model))
    cavi.run(x)
    svi = SVI(normal_gamma.model, AutoNormal(normal_gamma.model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    with pytest.raises(ModelError, match=r"Expected an SVI that has run; got a new one. Call svi.step"):
        to_arviz(normal_gamma.model, svi, x)
    svi.step(x)
    for driver in (cavi, svi):
        found, expected = (to_arviz(normal_gamma.model, g, x, num_samples=50) for g in (driver, driver.guide))
        assert found.posterior.equals(expected.posterior)
        assert found.posterior.attrs["method"] == expected.posterior.attrs["method"]


def test_a_forgotten_model_is_an_error(x: Tensor, exact: AutoConjugate) -> None:
    for arguments in ((exact, x), (exact, x, x), (normal_gamma.model, x)):
        with pytest.raises(TypeError, match=r"CAVI, SVI or MCMC after the model; got Tensor. Write to_arviz\("):
            to_arviz(*arguments)


def test_dims_of_what_is_not_there_are_an_error(x: Tensor, exact: AutoConjugate) -> None:
    with pytest.raises(ValueError, match=r"Expected dims of \['precision', 'mean', 'obs'\]; got \['unknown'\]"):
        to_arviz(normal_gamma.model, exact, x, num_samples=2, dims={"unknown": ["a"], "obs": ["b"]})
    features, target = torch.randn(5, 2).double(), torch.randn(5).double()
    guide = AutoNormal(regression)
    dims = {"features": ["row", "column"], "weights": ["column"]}
    found = to_arviz(regression, guide, features, target, num_samples=2, dims=dims)
    assert found.constant_data["features"].dims == ("row", "column")


def test_names_and_labels_that_do_not_fit_say_what_was_expected(x: Tensor, exact: AutoConjugate) -> None:
    def call(**options: Any) -> None:
        to_arviz(normal_gamma.model, exact, x, num_samples=2, **options)

    with pytest.raises(
        TypeError, match=r"list of names of the dimensions of 'obs'; got 'day'. Write dims={'obs': \['d"
    ):
        call(dims={"obs": "day"})
    with pytest.raises(ValueError, match=r"'obs', of shape \[20\]; got \['a', 'b', 'c'\]. Leave out 2 of them"):
        call(dims={"obs": ["a", "b", "c"]})
    with pytest.raises(
        ValueError, match=r"Expected coords along \['chain', 'data', 'draw'\]; got \['Data'\]. Name one"
    ):
        call(coords={"Data": list("abc")})
    with pytest.raises(ValueError, match=r"Expected 20 labels along 'data'; got 3"):
        call(coords={"data": list("abc")})
    with pytest.raises(TypeError, match=r"Expected result to be what a driver's run returned; got str. Write result="):
        call(result="x")


def test_other_data_than_those_of_the_fit_are_an_error_where_the_fit_remembers_them(x: Tensor) -> None:
    guide = AutoConjugate(normal_gamma.model)
    CAVI(normal_gamma.model, guide).run(x)
    mcmc = MCMC(NUTS(normal_gamma.model), 8, warmup_steps=2, disable_progbar=True)
    mcmc.run(x)
    for method, name in ((guide, "AutoConjugate"), (mcmc, "MCMC")):
        for other, words in ((x[:5], r"shape \[5\] in place of \[20\]"), (x + 1, "20 of 20 elements differ")):
            with pytest.raises(ModelError, match=f"Expected the data that {name} was fitted to; got .*{words}"):
                to_arviz(normal_gamma.model, method, other, num_samples=4)
    mixed = to_arviz(normal_gamma.model, mcmc, x[:5], num_samples=4, same_data=False)
    assert mixed.observed_data["obs"].shape == (5,)


def test_a_point_estimate_is_an_error_that_says_what_to_give(x: Tensor) -> None:
    point = AutoConjugate(normal_gamma.model, point=["precision"])
    CAVI(normal_gamma.model, point).run(x)
    for guide, sites in ((AutoDelta(normal_gamma.model), "'mean', 'precision'"), (point, "'precision'")):
        with pytest.raises(ModelError, match=rf"Expected a guide with a density; got a point at \[{sites}\]") as caught:
            to_arviz(normal_gamma.model, guide, x)
        assert "compared" not in str(caught.value) and "Use AutoNormal in place of AutoDelta" in str(caught.value)


def test_the_elbo_and_k_of_the_draws_are_those_of_score(x: Tensor) -> None:
    guide = AutoConjugate(normal_gamma.model)
    CAVI(normal_gamma.model, guide).run(x)
    expected = score(normal_gamma.model, guide, x, num_samples=200, seed=5)
    attributes = to_arviz(normal_gamma.model, guide, x, num_samples=200, seed=5).posterior.attrs
    assert attributes["elbo_estimate"] == pytest.approx(expected.elbo, rel=1e-12)
    assert attributes["elbo_estimate_error"] == pytest.approx(expected.elbo_error, rel=1e-9)
    assert attributes["pareto_k"] == expected.k.label and attributes["pareto_k_meaning"] == expected.k.verdict


def test_an_argument_and_a_site_of_one_name_share_their_dimensions() -> None:
    def model(obs: Tensor, size: int) -> None:
        mean = pyro.sample("mean", dist.Normal(obs.new_zeros(()), 1.0))
        with pyro.plate("data", size):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=obs.expand(size))

    idata = to_arviz(model, AutoNormal(model), torch.tensor(2.0), 3, num_samples=2, dims={"obs": ["day"]})
    assert idata.observed_data["obs"].dims == ("day",) and idata.constant_data["obs"].dims == ()


@pytest.mark.filterwarnings("error:Singular sample detected")
def test_draws_of_a_wishart_prior_do_not_warn(old_faithful: Tensor) -> None:
    guide = AutoConjugate(gmm.model)
    CAVI(gmm.model, guide).run(old_faithful, 3)
    found = to_arviz(gmm.model, guide, old_faithful, 3, num_samples=2, prior_samples=50)
    assert found.prior.sizes["draw"] == 50


def test_the_corrected_loo_of_an_exact_posterior_is_arvizs(x: Tensor, exact: AutoConjugate) -> None:
    idata = to_arviz(normal_gamma.model, exact, x, num_samples=500)
    assert elpd(loo(idata)) == elpd(az.loo(idata))


def test_an_exact_posterior_is_known_as_one_in_single_precision(x: Tensor, tmp_path: Path) -> None:
    guide = AutoConjugate(normal_gamma.model, blocks=[("mean", "precision")])
    CAVI(normal_gamma.model, guide).run(x.float())
    idata = to_arviz(normal_gamma.model, guide, x.float(), num_samples=500)
    expected = score(normal_gamma.model, guide, x.float(), num_samples=500)
    attributes = idata.posterior.attrs
    assert attributes["pareto_k"] == expected.k.label == "exact"
    assert attributes["elbo_estimate"] == pytest.approx(expected.elbo, abs=attributes["rounding"])
    idata.to_netcdf(str(tmp_path / "fit.nc"))
    for data in (idata, az.from_netcdf(str(tmp_path / "fit.nc"))):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert elpd(loo(data)) == pytest.approx(elpd(az.loo(data)))


def test_draws_in_batches_have_the_densities_of_draws_one_by_one() -> None:
    features = torch.randn(12, 2, dtype=torch.float64)
    target = features @ features.new_tensor([1.0, -2.0])
    guide = AutoConjugate(regression)
    CAVI(regression, guide).run(features, target)
    batched = to_arviz(regression, guide, features, target, num_samples=20)
    values = {n: torch.from_numpy(batched.posterior[n].values[0]) for n in ("precision", "weights")}
    for i in range(20):
        held = {n: v[i] for n, v in values.items()}
        trace = poutine.trace(poutine.condition(regression, data=held)).get_trace(features, target)
        trace.compute_log_prob()
        assert float(batched.sample_stats["lp"].values[0, i]) == pytest.approx(float(trace.log_prob_sum()), rel=1e-12)
        pointwise = trace.nodes["target"]["log_prob"].numpy()
        np.testing.assert_allclose(batched.log_likelihood["target"].values[0, i], pointwise, rtol=1e-12)
        assert float(batched.posterior["norm"].values[0, i]) == pytest.approx(float(held["weights"].square().sum()))


def test_small_batches_make_the_same_groups(x: Tensor, exact: AutoConjugate, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = to_arviz(normal_gamma.model, exact, x, num_samples=30)
    monkeypatch.setattr(runs, "BATCH_ELEMENTS", 500)
    parts = to_arviz(normal_gamma.model, exact, x, num_samples=30)
    evidence = normal_gamma.log_evidence(x).item()
    for idata in (whole, parts):
        stats = idata.sample_stats
        np.testing.assert_allclose((stats.lp - stats.log_q).values, evidence, rtol=1e-11)
        assert idata.posterior_predictive["obs"].shape == (1, 30, 20)


def test_predictions_in_a_batch_are_independent_given_their_draw() -> None:
    """Were one noise shared by a batch, residuals of different draws or points would agree."""
    features = torch.randn(12, 2, dtype=torch.float64)
    guide = AutoConjugate(regression)
    CAVI(regression, guide).run(features, torch.zeros(12).double())
    idata = to_arviz(regression, guide, features, torch.zeros(12).double(), num_samples=1000)
    mean = idata.posterior["weights"].values[0] @ features.T.numpy()
    noise = (idata.posterior_predictive["target"].values[0] - mean) * idata.posterior["precision"].values[0][
        :, None
    ] ** 0.5
    assert scipy.stats.kstest(noise.flatten(), "norm").pvalue > 1e-3
    between = np.corrcoef(noise.T) - np.eye(12)
    assert np.abs(between).max() < 5 / np.sqrt(1000)


def test_draws_from_the_prior_follow_it(x: Tensor, exact: AutoConjugate) -> None:
    idata = to_arviz(normal_gamma.model, exact, x, num_samples=5, prior_samples=1000)
    assert idata.prior["precision"].shape == (1, 1000) and idata.prior_predictive["obs"].shape == (1, 1000, 20)
    assert scipy.stats.kstest(idata.prior["precision"].values[0], "gamma", (1.0, 0, 1.0)).pvalue > 1e-3
    assert scipy.stats.kstest(idata.prior_predictive["obs"].values[0, :, 3], "t", (2.0, 0.0, 2**0.5)).pvalue > 1e-3
    assert idata.prior_predictive["obs"].dims == ("chain", "draw", "data")


def test_mcmc_keeps_its_chains_and_draws(x: Tensor) -> None:
    mcmc = MCMC(NUTS(normal_gamma.model), 40, warmup_steps=30, num_chains=1, disable_progbar=True)
    mcmc.run(x)
    idata = to_arviz(normal_gamma.model, mcmc, x)
    for site, values in mcmc.get_samples(group_by_chain=True).items():
        np.testing.assert_array_equal(idata.posterior[site].values, values.numpy())
    mean, precision = idata.posterior["mean"].values, idata.posterior["precision"].values
    expected = scipy.stats.norm.logpdf(x.numpy(), mean[..., None], precision[..., None] ** -0.5)
    np.testing.assert_allclose(idata.log_likelihood["obs"].values, expected, rtol=1e-12)
    assert "log_q" not in idata.sample_stats and idata.sample_stats["diverging"].dtype == bool
    assert idata.posterior.attrs["method"] == "MCMC (NUTS)" and idata.posterior.attrs["r_hat_max"] > 0


def funnel() -> None:
    """Neal's funnel: a long step falls off where it is narrow."""
    depth = pyro.sample("depth", dist.Normal(0.0, 3.0))
    pyro.sample("place", dist.Normal(torch.zeros(4), (depth / 2).exp()).to_event(1))
    pyro.sample("seen", dist.Normal(depth, 3.0), obs=torch.tensor(-4.0))


@pytest.fixture
def funnel_chain() -> MCMC:
    mcmc = MCMC(NUTS(funnel, step_size=0.9, adapt_step_size=False), 60, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    return mcmc


def test_the_draws_at_which_a_chain_diverged_are_marked(funnel_chain: MCMC) -> None:
    """Those that Pyro counts, no more and no fewer; of thinned draws it cannot be said."""
    noted: Any = funnel_chain.diagnostics()["divergences"]
    diverged = noted["chain 0"]
    assert 0 < len(diverged) < 60
    marks = to_arviz(funnel, funnel_chain).sample_stats["diverging"]
    assert marks.shape == (1, 60) and np.flatnonzero(marks.values[0]).tolist() == sorted(diverged)
    assert "diverging" not in to_arviz(funnel, funnel_chain, num_samples=30).sample_stats


def test_the_largest_r_hat_is_that_of_half_chains(x: Tensor) -> None:
    """R̂² = (n - 1) / n + B / (n W), of means and variances of half chains of n draws (Gelman et al. 2013, 11.4)."""
    mcmc = MCMC(NUTS(normal_gamma.model), 40, warmup_steps=10, disable_progbar=True)
    mcmc.run(x)
    attributes = to_arviz(normal_gamma.model, mcmc, x, num_samples=10).posterior.attrs
    columns = np.stack([v.numpy() for v in mcmc.get_samples().values()], -1)
    halves = columns.reshape(2, 20, -1)
    within = halves.var(1, ddof=1).mean(0)
    r_hat = np.sqrt(19 / 20 + halves.mean(1).var(0, ddof=1) / within)
    assert attributes["r_hat_max"] == pytest.approx(r_hat.max(), rel=1e-9)
    assert abs(r_hat[0] - r_hat[1]) > 1e-6  # so that it is the largest that is kept


def test_discrete_sites_that_mcmc_sums_out_are_drawn_from_their_posterior(old_faithful: Tensor) -> None:
    def model(data: Tensor) -> None:
        gap = pyro.sample("gap", dist.Normal(data.new_tensor(2.0), 1.0))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(data.new_tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
            pyro.sample("obs", dist.Normal(2.0 + gap * z, 0.7), obs=data)

    data = old_faithful[:10, 0]
    mcmc = MCMC(NUTS(model), 200, warmup_steps=50, disable_progbar=True)
    mcmc.run(data)
    posterior = to_arviz(model, mcmc, data).posterior
    gap = torch.from_numpy(posterior["gap"].values[0])[:, None]
    odds = (0.6 / 0.4) * (dist.Normal(2.0 + gap, 0.7).log_prob(data) - dist.Normal(2.0, 0.7).log_prob(data)).exp()
    expected = (odds / (1 + odds)).mean(0).numpy()
    np.testing.assert_allclose(posterior["z"].values[0].mean(0), expected, atol=5 * (0.25 / 200) ** 0.5)


def test_attributes_say_how_good_the_draws_are_and_whether_the_driver_converged(x: Tensor) -> None:
    guide = AutoConjugate(normal_gamma.model)
    result = CAVI(normal_gamma.model, guide).run(x)
    attributes = to_arviz(normal_gamma.model, guide, x, result=result).posterior.attrs
    assert attributes["converged"] == 1 and attributes["num_steps"] == result.num_steps
    error = attributes["elbo_estimate_error"]
    assert attributes["elbo_estimate"] == pytest.approx(attributes["elbo"], abs=5 * error)


def test_exactness_is_an_attribute_that_a_file_keeps(x: Tensor, exact: AutoConjugate, tmp_path: Path) -> None:
    idata = to_arviz(normal_gamma.model, exact, x, num_samples=60)
    idata.to_netcdf(str(tmp_path / "fit.nc"))
    assert az.from_netcdf(str(tmp_path / "fit.nc")).posterior.attrs["pareto_k"] == "exact"


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal], ids=lambda m: m.__name__)
def test_the_groups_of_an_autoguide_agree_with_each_other(x: Tensor, make: Any) -> None:
    guide = make(normal_gamma.model)
    idata = to_arviz(normal_gamma.model, guide, x, num_samples=25)
    mean, precision = (idata.posterior[n].values for n in ("mean", "precision"))
    prior = scipy.stats.norm.logpdf(mean, 0, precision**-0.5) + scipy.stats.gamma.logpdf(precision, 1.0)
    lp = prior + idata.log_likelihood["obs"].values.sum(-1)
    np.testing.assert_allclose(idata.sample_stats["lp"].values, lp, rtol=1e-6)


def test_importing_the_library_imports_neither_arviz_nor_matplotlib() -> None:
    code = (
        "import sys, pyro_latent, pyro_latent.arviz, pyro_latent.plotting; "
        "print(*(name in sys.modules for name in ('arviz', 'xarray', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]
