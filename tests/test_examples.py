"""The comparison of guides: what it computes is right, and what it writes can be read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from examples import compare_guides as demo
from examples import crowdsourcing
from pyro_latent import CAVI, AutoConjugate
from pyro_latent.models import gmm

az = pytest.importorskip("arviz")
pytestmark = pytest.mark.filterwarnings("ignore:Singular sample detected")
RATES = (0.003, 0.01)


@pytest.fixture
def task(old_faithful: Tensor) -> demo.Task:
    return demo.make_task(old_faithful, 2, seed=0, particles=400, batch=100)


def fit_with(seconds: list[float], elbos: list[float], **changes: Any) -> demo.Fit:
    """A fit with a course of its own."""
    fit = demo.Fit("CAVI, joint blocks", None, seconds, elbos, len(elbos), None, elbos[-1], 0.1, {})
    return replace(fit, **changes)


def test_the_estimate_is_the_exact_elbo_where_that_has_no_discrete_site_to_sum_out() -> None:
    """With one component TraceEnum_ELBO and the exact ELBO are the same number."""
    data = torch.randn(30, 2, dtype=torch.float64)
    task = demo.make_task(data, 1, seed=0, particles=2000, batch=200)
    fit = demo.fit_cavi(task, "CAVI, joint blocks", [demo.JOINT])
    assert fit.exact is not None
    assert abs(fit.score - fit.exact) < 4 * fit.error + 1e-8
    assert fit.score == fit.elbos[-1]


def test_summing_components_out_never_lowers_the_bound(task: demo.Task) -> None:
    fit = demo.fit_cavi(task, "CAVI, joint blocks", [demo.JOINT])
    assert fit.exact is not None
    assert fit.score > fit.exact - 4 * fit.error


def test_the_exact_elbo_of_the_hand_written_guide_is_that_of_the_same_q_as_an_autoconjugate(task: demo.Task) -> None:
    """Parameters of the guide are set to the fitted posterior, so the bounds must be equal."""
    fit = demo.fit_cavi(task, "CAVI, joint blocks", [demo.JOINT])
    assert fit.guide is not None
    posterior = fit.guide.posterior(joint=True)
    block = posterior[demo.JOINT]
    demo.hand_written(task)
    store = pyro.get_param_store()
    store["weight_concentration"] = posterior["weights"].concentration
    store["mean_loc"], store["mean_precision_scaling"] = block.loc, block.precision_scaling
    store["precision_df"], store["precision_scale_tril"] = block.df, torch.linalg.cholesky(block.covariance_matrix)
    assert demo.exact_elbo(task) == pytest.approx(fit.exact, rel=1e-10)
    score, error = demo.score(task, gmm.guide)
    assert abs(score - fit.score) < 4 * math.hypot(error, fit.error)


def test_scores_use_the_same_draws_and_leave_the_random_state_alone(task: demo.Task) -> None:
    demo.hand_written(task)
    before = torch.get_rng_state()
    first = demo.score(task, gmm.guide)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert demo.score(task, gmm.guide) == first


def test_every_method_starts_at_the_same_clusters(task: demo.Task) -> None:
    q = {"component": dist.Categorical(task.clusters)}
    update: Any = gmm.update_mean_precision(q, *task.arguments)
    pyro.set_rng_seed(task.seed)
    demo.hand_written(task)
    torch.testing.assert_close(pyro.param("mean_loc").detach(), update.loc, rtol=1e-12, atol=0)
    median = demo.auto_normal(task)
    median(*task.arguments)
    found = median.median(*task.arguments)  # type: ignore[attr-defined]
    torch.testing.assert_close(found["mean"], update.loc, rtol=1e-9, atol=0)
    mean_precision = update.df[:, None, None] * update.covariance_matrix
    torch.testing.assert_close(found["precision"], mean_precision, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_the_bijection_onto_positive_definite_matrices_has_its_inverse_and_its_jacobian(dim: int) -> None:
    transform = biject_to(constraints.positive_definite)
    size = dim * (dim + 1) // 2
    x = torch.randn(3, size, dtype=torch.float64)
    y = transform(x)
    assert y.shape == transform.forward_shape(x.shape)
    assert x.shape == transform.inverse_shape(y.shape)
    assert bool(constraints.positive_definite.check(y).all())
    torch.testing.assert_close(demo.PositiveDefiniteBijection().inv(y), x, rtol=1e-9, atol=1e-9)
    rows, columns = torch.tril_indices(dim, dim)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v: transform(v)[rows, columns], x[i])
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(transform.log_abs_det_jacobian(x, y)[i], expected, rtol=1e-9, atol=1e-9)


def test_components_are_aligned_whatever_their_order() -> None:
    means = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 50.0]], dtype=torch.float64)
    like = {"mean": means + 0.01 * torch.randn(100, 3, 2).double(), "weights": torch.rand(100, 3).double()}
    order = torch.tensor([2, 0, 1])
    shuffled = {name: value[:, order] for name, value in like.items()}
    found = demo.aligned(shuffled, like, torch.tensor([1.0, 10.0]).double())
    for name, value in like.items():
        assert torch.equal(found[name], value)


def test_seconds_to_a_gap_are_those_of_the_first_checkpoint_within_it() -> None:
    fit = fit_with([0.1, 0.2, 0.4], [-20.0, -10.9, -10.0])
    assert fit.seconds_within(1.0, -10.0) == 0.2
    assert fit.seconds_within(0.5, -10.0) == 0.4
    assert math.isinf(fit.seconds_within(1.0, -5.0))


def test_of_each_method_the_best_learning_rate_is_kept() -> None:
    fits = [
        fit_with([1.0], [-3.0]),
        fit_with([1.0], [-9.0], method="SVI, AutoNormal", learning_rate=0.1),
        fit_with([1.0], [-4.0], method="SVI, AutoNormal", learning_rate=0.01),
    ]
    assert demo.best_by_method(fits) == [fits[0], fits[2]]


def test_checkpoints_begin_at_one_end_at_the_last_and_grow_by_a_third() -> None:
    steps = sorted(demo.checkpoints(700))
    assert steps[:4] == [1, 2, 3, 4]
    assert steps[-1] == 700
    assert all(b <= max(a + 1, math.ceil(a * 4 / 3) + 1) for a, b in itertools.pairwise(steps))


def test_the_clock_runs_inside_steps_only() -> None:
    watch = demo.Stopwatch(torch.device("cpu"))
    with watch:
        pass
    stopped = watch.seconds
    sum(range(100_000))
    assert watch.seconds == stopped


def test_the_ellipse_is_two_standard_deviations() -> None:
    covariance = torch.tensor([[4.0, 1.5], [1.5, 1.0]], dtype=torch.float64)
    draws = {"mean": torch.tensor([[[1.0, 2.0]]]).double(), "precision": covariance.inverse()[None, None]}
    (ellipse,) = demo.ellipses(fit_with([1.0], [-1.0], draws=draws))
    edge = ellipse.get_patch_transform().transform(np.asarray(ellipse.get_path().vertices)[::3]) - [1.0, 2.0]
    distances = np.einsum("ni,ij,nj->n", edge, np.linalg.inv(covariance.numpy()), edge)
    np.testing.assert_allclose(distances[:-1], 4.0, rtol=1e-3)


def test_labels_that_would_overlap_are_moved_up_in_their_order() -> None:
    assert demo.spread([1.0, 100.0, 1.1], 2.0) == [1.0, 100.0, 2.0]


def test_a_cell_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("a,b\n1,2\n3,x\n")
    with pytest.raises(SystemExit, match=r"Expected a line of names and then lines of numbers in .*points\.csv; got"):
        demo.read_csv(path)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[demo.Fit], Path]:
    """The demo with two learning rates and few steps."""
    pyro.clear_param_store()
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "LEARNING_RATES", RATES)
        return demo.main(["--steps", "3", "--out", str(out)]), out


def test_the_demo_fits_every_method_at_every_rate(outcome: tuple[list[demo.Fit], Path]) -> None:
    fits, _ = outcome
    rates = [(method, rate) for method in demo.METHODS for rate in RATES]
    expected = [("CAVI, joint blocks", None), ("CAVI, mean field", None), *rates]
    assert [(f.method, f.learning_rate) for f in fits] == expected


def test_coordinate_ascent_in_the_demo_is_that_of_the_library(
    outcome: tuple[list[demo.Fit], Path], task: demo.Task
) -> None:
    fits, _ = outcome
    guide = AutoConjugate(gmm.model, blocks=[demo.JOINT], init={"component": task.clusters})
    result = CAVI(gmm.model, guide).run(*task.arguments, tol=1e-9)
    assert fits[0].exact == pytest.approx(result.elbo[-1].item(), abs=1e-5)
    assert fits[0].steps <= result.num_steps + 1


def test_the_file_holds_each_methods_draws_in_the_same_order_of_components(
    outcome: tuple[list[demo.Fit], Path],
) -> None:
    fits, out = outcome
    idata = az.from_netcdf(str(out / "comparison.nc"))
    means = idata.posterior["mean"].mean(("chain", "draw"))
    assert means.sel(column="waiting").values[0] == pytest.approx(54.7, abs=0.3)
    groups = {"posterior_cavi_mean_field", "posterior_svi_hand_written_guide", "posterior_svi_autonormal"}
    assert all(group in idata for group in groups)
    for group in groups:
        unit = np.array([1.1, 13.6])
        other = idata[group]["mean"].mean(("chain", "draw"))
        assert np.abs((other - means).values / unit).max() < 0.5
    draws = next(f for f in fits if f.method == "CAVI, mean field").draws["weights"]
    np.testing.assert_array_equal(idata["posterior_cavi_mean_field"]["weights"].values[0], draws.numpy())


def test_the_picture_is_seven_inches_by_three(outcome: tuple[list[demo.Fit], Path]) -> None:
    from matplotlib.image import imread

    assert imread(outcome[1] / "comparison.png").shape[:2] == (600, 1400)


def test_the_tables_name_every_fit_and_parameter(outcome: tuple[list[demo.Fit], Path]) -> None:
    fits, _ = outcome
    lines = demo.fits_table(fits).splitlines()
    assert len(lines) == 2 + len(fits)
    assert all(line.startswith(fit.method) for line, fit in zip(lines[2:], fits, strict=True))
    names = [line.split("  ")[0].strip() for line in demo.parameters_table(fits[:2]).splitlines()[2:]]
    weights, means = ["weights[0]", "weights[1]"], [f"mean[{k}, {d}]" for k in (0, 1) for d in (0, 1)]
    precisions = [f"precision[{k}, {i}, {j}]" for k in (0, 1) for i, j in ((0, 0), (0, 1), (1, 1))]
    assert names == [*weights, *means, *precisions]


def test_a_mean_in_the_table_is_the_posterior_mean(outcome: tuple[list[demo.Fit], Path]) -> None:
    fit = outcome[0][0]
    assert fit.guide is not None
    exact: Callable[[str], Tensor] = lambda name: fit.guide.posterior()[name].mean  # type: ignore[union-attr]  # noqa: E731
    for name in ("weights", "mean"):
        draws = fit.draws[name]
        error = draws.std(0) / math.sqrt(len(draws))
        assert bool(((draws.mean(0) - exact(name)).abs() < 5 * error).all())


@pytest.fixture(scope="module")
def crowd() -> tuple[crowdsourcing.Labels, AutoConjugate]:
    data = crowdsourcing.make_labels(num_items=40)
    return data, crowdsourcing.fit(data)


def test_classes_of_crowdsourced_items_are_those_of_dawid_and_skene(
    crowd: tuple[crowdsourcing.Labels, AutoConjugate],
) -> None:
    """Given the other factors, log q(truth_n) is E log share plus E log confusion, summed over the item's labels."""
    data, guide = crowd
    posterior = guide.posterior()
    share, confusion = (posterior[name].concentration for name in ("share", "confusion"))
    expected_log = torch.digamma(confusion) - torch.digamma(confusion.sum(-1, keepdim=True))
    log_probs = (torch.digamma(share) - torch.digamma(share.sum())).expand(len(data.truth), -1)
    log_probs = log_probs.index_add(0, data.item, expected_log[data.annotator, :, data.label])
    torch.testing.assert_close(posterior["truth"].probs, log_probs.softmax(-1), rtol=0, atol=1e-9)


def test_knowing_the_annotators_beats_a_majority_of_votes() -> None:
    data = crowdsourcing.make_labels(num_items=80)
    found = crowdsourcing.fit(data).posterior()["truth"].probs
    assert crowdsourcing.accuracy(found, data) > crowdsourcing.accuracy(crowdsourcing.votes(data), data)
