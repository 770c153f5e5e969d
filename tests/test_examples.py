"""The comparison of guides: what it computes is right, and what it writes can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.distributions import biject_to, constraints

from examples import compare_guides as demo
from examples import crowdsourcing, mixture_of_experts, neural_hmm, wines
from pyro_latent import CAVI, AutoConjugate
from pyro_latent.criticism import Comparison, Race
from pyro_latent.models import gmm

az = pytest.importorskip("arviz")
pytestmark = pytest.mark.filterwarnings("ignore:Singular sample detected")
RATES = (0.003, 0.01)
METHODS = ["CAVI, joint blocks", "CAVI, mean field", "SVI, hand-written guide", "SVI, AutoNormal"]


def test_every_method_starts_at_the_same_clusters(old_faithful: Tensor) -> None:
    made = demo.methods(old_faithful, 2, steps=3, seed=0)
    pyro.set_rng_seed(0)
    clusters = gmm.initial_responsibilities(old_faithful, 2)
    q = {"component": dist.Categorical(clusters)}
    update: Any = gmm.update_mean_precision(q, old_faithful, 2)
    pyro.set_rng_seed(0)
    made["SVI, hand-written guide, rate 0.01"]().guide(old_faithful, 2)
    torch.testing.assert_close(pyro.param("mean_loc").detach(), update.loc, rtol=1e-12, atol=0)
    median = made["SVI, AutoNormal, rate 0.01"]().guide
    median(old_faithful, 2)
    found = median.median(old_faithful, 2)
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


def test_a_cell_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("a,b\n1,2\n3,x\n")
    with pytest.raises(SystemExit, match=r"Expected a line of names and then lines of numbers in .*points\.csv; got"):
        demo.read_csv(path)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Race, Comparison, Path]:
    """The demo with two learning rates and few steps."""
    pyro.clear_param_store()
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "LEARNING_RATES", RATES)
        return *demo.main(["--steps", "12", "--out", str(out)]), out


def test_the_demo_fits_every_method_at_every_rate(outcome: tuple[Race, Comparison, Path]) -> None:
    contest, found, _ = outcome
    rates = [f"{method}, rate {rate:g}" for method in METHODS[2:] for rate in RATES]
    assert list(contest.runners) == [*METHODS[:2], *rates]
    assert list(found.entries) == METHODS and found.reference == METHODS[0]


def test_summing_components_out_never_lowers_the_bound(outcome: tuple[Race, Comparison, Path]) -> None:
    for method in METHODS[:2]:
        entry = outcome[1][method]
        assert entry.score is not None and entry.exact_elbo is not None
        assert entry.score.elbo > entry.exact_elbo - 4 * entry.score.elbo_error


def test_coordinate_ascent_in_the_demo_is_that_of_the_library(
    outcome: tuple[Race, Comparison, Path], old_faithful: Tensor
) -> None:
    contest, found, _ = outcome
    pyro.set_rng_seed(0)
    clusters = gmm.initial_responsibilities(old_faithful, 2)
    guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")], init={"component": clusters})
    result = CAVI(gmm.model, guide).run(old_faithful, 2, tol=1e-9)
    assert found[METHODS[0]].exact_elbo == pytest.approx(result.elbo[-1].item(), abs=1e-5)
    assert contest[METHODS[0]].laps[-1].step <= result.num_steps + 1
    moments = found[METHODS[0]].moments
    for name, q in guide.posterior().items():
        if name in ("weights", "mean"):
            assert bool(((moments[name].mean - q.mean).abs() < 5 * moments[name].error).all())


def test_the_file_holds_each_methods_draws_in_the_same_order_of_components(
    outcome: tuple[Race, Comparison, Path],
) -> None:
    _, found, out = outcome
    idata = az.from_netcdf(str(out / "comparison.nc"))
    means = idata.posterior["mean"].mean(("chain", "draw"))
    assert means.sel(column="waiting").values[0] == pytest.approx(54.7, abs=0.3)
    groups = {"posterior_cavi_mean_field", "posterior_svi_hand_written_guide", "posterior_svi_autonormal"}
    assert all(group in idata for group in groups)
    for group in groups:
        unit = np.array([1.1, 13.6])
        other = idata[group]["mean"].mean(("chain", "draw"))
        assert np.abs((other - means).values / unit).max() < 0.5
    draws = found["CAVI, mean field"].draws.values["weights"]
    np.testing.assert_array_equal(idata["posterior_cavi_mean_field"]["weights"].values[0], draws.numpy())


def test_the_picture_shows_the_data_and_the_race(outcome: tuple[Race, Comparison, Path]) -> None:
    from matplotlib.image import imread

    assert imread(outcome[2] / "comparison.png").shape[:2] == (600, 2100)


def test_the_tables_name_every_run_and_parameter(outcome: tuple[Race, Comparison, Path]) -> None:
    contest, found, _ = outcome
    lines = str(contest).splitlines()[2:]
    assert all(line.startswith(name) for line, name in zip(lines, contest.runners, strict=False))
    weights, means = ["weights[0]", "weights[1]"], [f"mean[{k}, {d}]" for k in (0, 1) for d in (0, 1)]
    assert all(f"\n{name} " in str(found) for name in (*weights, *means, "precision[1, 0, 1]"))


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


def test_experts_and_their_gate_climb_to_a_likelihood_above_that_of_one_line() -> None:
    pyro.clear_param_store()
    data = mixture_of_experts.read_data()
    model = mixture_of_experts.MixtureOfExperts()
    rise = mixture_of_experts.fit(model, data, max_steps=8)
    assert bool((rise.diff() > 0).all())
    duration, waiting = data[0][:, 0], data[1]
    residual = waiting - (duration @ waiting) / (duration @ duration) * duration
    line = dist.Normal(0.0, residual.square().mean().sqrt()).log_prob(residual).sum()
    assert rise[-1] > line + 10
    pyro.clear_param_store()
    again = mixture_of_experts.MixtureOfExperts()
    assert mixture_of_experts.fit_by_svi(again, data, steps=30)[-1] < rise[-1]


def test_kinds_of_wine_with_missing_measurements_are_the_cultivars() -> None:
    table, cultivar = wines.read_data()
    kinds = wines.make_kinds()
    assert np.isnan(table).mean() > 0.1
    assert adjusted_rand_score(cultivar, kinds.fit_predict(table)) > 0.75
    assert (kinds[-1].weights_ > 0.05).sum() == 3


def test_states_behind_a_neural_emission_are_found() -> None:
    pyro.clear_param_store()
    x, y, truth = neural_hmm.make_series(num_series=15, length=6)
    em, rise = neural_hmm.fit(neural_hmm.make_network(), x, y, max_steps=12)
    assert bool((rise.diff() > 0).all())
    right = (neural_hmm.states_found(em, x.shape[1]) == truth).double().mean().item()
    assert max(right, 1 - right) > 0.9
