"""What the pictures of the pages show is true: bounds that touch, and ELBO + KL = log p(x)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from examples import document_figures as figures
from examples import learning_curves
from pyro_latent.models import datasets

LARGEST = 120_000


@pytest.fixture(scope="module")
def lines() -> dict[str, figures.Line]:
    return figures.bounds()


@pytest.mark.parametrize("case", [0, 1])
def test_the_bound_touches_where_its_e_step_was_and_is_below_elsewhere(
    lines: dict[str, figures.Line], case: int
) -> None:
    line = list(lines.values())[case]
    for bound, touched in ((line.old_bound, 0.0), (line.new_bound, 1.0)):
        here = (line.t - touched).abs() < 1e-12
        assert here.sum() == 1
        gap = line.log_likelihood - bound
        assert gap[here].abs().item() < 1e-9
        assert bool((gap[~here] > 1e-9).all())


@pytest.mark.parametrize("case", [0, 1])
def test_the_next_theta_is_the_maximum_of_the_bound_and_the_likelihood_rises_more(
    lines: dict[str, figures.Line], case: int
) -> None:
    line = list(lines.values())[case]
    old, new = ((line.t - t).abs().argmin() for t in (0.0, 1.0))
    assert line.old_bound.argmax() == new
    rise = line.log_likelihood[new] - line.log_likelihood[old]
    assert rise > line.old_bound[new] - line.old_bound[old] > 0


@pytest.mark.parametrize("fit", [figures.normal_gamma_fit, figures.gaussian_fit])
def test_elbo_and_divergence_add_up_to_the_log_evidence(fit: Callable[[], figures.Fit]) -> None:
    found = fit()
    assert bool((found.elbo + found.divergence - found.log_evidence).abs().lt(1e-9).all())
    assert bool((found.elbo.diff() >= -1e-12).all()) and found.divergence[-1] > 0.01


def test_stages_are_those_of_the_textbook() -> None:
    """Bishop (9.23)-(9.28), by hand, from the same start."""
    x, theta = datasets.old_faithful(), figures.POOR_START
    for stage in figures.stages(range(4)):
        normal = torch.distributions.MultivariateNormal(theta["mean"], theta["covariance"])
        joint = theta["weights"].log() + normal.log_prob(x[:, None])
        shares = joint.softmax(-1)
        assert stage.log_likelihood == pytest.approx(joint.logsumexp(-1).sum().item(), rel=1e-12)
        torch.testing.assert_close(stage.first, shares[:, 0])
        count = shares.sum(0)
        mean = shares.mT @ x / count[:, None]
        apart = x[:, None] - mean
        scatter = torch.einsum("nk,nki,nkj->kij", shares, apart, apart)
        theta = {"weights": count / len(x), "mean": mean, "covariance": scatter / count[:, None, None]}


def test_the_pictures_are_made_and_small(
    lines: dict[str, figures.Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "bounds", lambda: lines)
    figures.main(["--out", str(tmp_path)])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"em-bound.svg", "em-mixture.png", "elbo-kl.svg", "normal-gamma.svg"}
    kept = Path(figures.__file__).parent.parent / "docs"
    assert all(path.stat().st_size < LARGEST and (kept / path.name).exists() for path in tmp_path.iterdir())


def test_learning_curves_begin_alike_and_rise(tmp_path: Path) -> None:
    found = learning_curves.main(["--size", "1000", "--passes", "2", "--out", str(tmp_path)])
    assert found["structured, 10 draws"][0] == found["minibatches"][0]  # of which the first pass is
    assert all(curve[1] > curve[0] for curve in found.values())
    assert (tmp_path / "learning-curves.svg").stat().st_size < LARGEST
