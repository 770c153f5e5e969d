"""Many draws at once: independent, differentiable, and with the densities that they have alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer import Trace_ELBO, infer_discrete
from torch import Tensor

from pyro_latent.criticism import importance_sampling, score
from pyro_latent.errors import ModelError
from pyro_latent.gradient.flows import FlowGuide
from pyro_latent.models import normal_gamma
from pyro_latent.particles import LogJoint, Particles, ProgramCall, ProgramRunner, Target, Way, log_joint

X = torch.tensor([-1.4, 0.3, 2.1, 1.2, -0.6], dtype=torch.float64)
RATE = 0.3
ONE_WAY: tuple[tuple[Way, ...], ...] = (("plate",), ("vmap", "loop"), ("loop",))


def two_clusters(x: Tensor) -> None:
    """Two clusters, one of them at a latent place, with a parameter for the spread of all points."""
    scale = pyro.param("scale", x.new_tensor(0.8))
    place = pyro.sample("place", dist.Normal(x.new_zeros(()), 2.0))
    with pyro.plate("data", len(x)):
        label = pyro.sample("label", dist.Bernoulli(x.new_tensor(RATE)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(place * label, scale), obs=x)


def summed_by_hand(place: float, scale: float) -> float:
    """log p(place, x) with each point's label summed out."""
    components = [scipy.stats.norm.logpdf(X.numpy(), m, scale) + np.log(w) for m, w in ((0, 1 - RATE), (place, RATE))]
    return float(np.logaddexp(*components).sum() + scipy.stats.norm.logpdf(place, 0, 2))


def without_plate(x: Tensor) -> None:
    """A batch of five that no plate declares."""
    z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("ways", ONE_WAY, ids=lambda w: w[0])
def test_sums_over_labels_are_differentiable_in_values_and_parameters(ways: tuple[Way, ...]) -> None:
    """The gradient is that of central differences of the sum written by hand."""
    target = Target.of(two_clusters, (X,), {})
    place = torch.tensor([-0.5, 0.4, 1.7], dtype=torch.float64, requires_grad=True)
    scale = pyro.param("scale")
    found = LogJoint(target, ways)({"place": place})
    by_place, by_scale = torch.autograd.grad(found.sum(), [place, scale])
    values = place.tolist()
    assert found.tolist() == pytest.approx([summed_by_hand(p, 0.8) for p in values], rel=1e-12)
    step = 1e-6
    slopes = [(summed_by_hand(p + step, 0.8) - summed_by_hand(p - step, 0.8)) / (2 * step) for p in values]
    assert by_place.tolist() == pytest.approx(slopes, rel=1e-7)
    slope = sum((summed_by_hand(p, 0.8 + step) - summed_by_hand(p, 0.8 - step)) / (2 * step) for p in values)
    assert by_scale.item() == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize("ways", ONE_WAY, ids=lambda w: w[0])
def test_given_labels_are_scored_and_others_are_summed_out(ways: tuple[Way, ...]) -> None:
    """exp of the density at each of the 2⁵ labellings adds up to that without labels."""
    target = Target.of(two_clusters, (X,), {})
    labels = torch.tensor(list(itertools.product((0.0, 1.0), repeat=5)), dtype=torch.float64)
    given = LogJoint(target, ways)({"place": torch.full((32,), 1.5).double(), "label": labels})
    assert given.logsumexp(0).item() == pytest.approx(summed_by_hand(1.5, 0.8), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sums_go_in_one_batch_in_either_precision(dtype: torch.dtype) -> None:
    """Rounding in single precision is not taken for a program that bears no plate."""
    x = torch.randn(2000, dtype=dtype)
    target = Target.of(two_clusters, (x,), {})
    runner = ProgramRunner(target.call, target.nesting, ("plate", "loop"), marginal=True)
    places = torch.randn(20, dtype=dtype)
    found = runner.log_prob({"place": places}, 20)
    assert runner.ways[0] == "plate" and found.dtype == torch.float64
    alone = torch.cat([log_joint(target, {"place": p[None]}) for p in places])
    torch.testing.assert_close(found, alone, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=0.0)


def test_draws_of_a_program_that_hides_its_sites_from_plates_are_independent() -> None:
    """``infer_discrete`` draws once for all that a plate holds; every draw has to be its own."""
    x = torch.linspace(-2, 2, 40, dtype=torch.float64)
    pyro.param("scale", x.new_tensor(0.8))

    def known_place(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            label = pyro.sample("label", dist.Bernoulli(x.new_tensor(RATE)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(label, 0.8), obs=x)

    posterior = infer_discrete(known_place, first_available_dim=-3)
    found = ProgramRunner(ProgramCall(posterior, (x,), {}), 1)({}, 400).values["label"]
    odds = RATE / (1 - RATE) * np.exp(scipy.stats.norm.logpdf(x, 1, 0.8) - scipy.stats.norm.logpdf(x, 0, 0.8))
    share = odds / (1 + odds)
    variance = (share * (1 - share)).sum()
    sums = found.sum(1)
    assert sums.mean().item() == pytest.approx(share.sum(), abs=4 * (variance / 400) ** 0.5)
    assert sums.var().item() == pytest.approx(variance, rel=4 * (2 / 400) ** 0.5)


@pytest.mark.parametrize("num", [4, 5], ids=["other", "as many as the batch is long"])
@pytest.mark.parametrize("vectorized", [True, False, None])
def test_batches_that_no_plate_declares_are_kept_apart_from_draws(vectorized: bool | None, num: int) -> None:
    values = torch.randn(num, 5, dtype=torch.float64)
    found = Particles(without_plate, None, (X,), {}, vectorized).log_joint({"z": values})
    expected = (scipy.stats.norm.logpdf(values) + scipy.stats.norm.logpdf(X, values)).sum(1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_a_guide_may_sample_marked_sites_itself() -> None:
    """Its weights then are over labels too, and their mean is the same evidence."""

    def labelled(x: Tensor) -> None:
        pyro.sample("place", dist.Normal(x.new_tensor(0.8), 1.2))
        with pyro.plate("data", len(x)):
            pyro.sample("label", dist.Bernoulli(torch.sigmoid(x - 0.7)))

    def unlabelled(x: Tensor) -> None:
        pyro.sample("place", dist.Normal(x.new_tensor(0.8), 1.2))

    draws = Particles(two_clusters, labelled, (X,), {}).draw(3)
    assert draws.summed == () and draws.values["label"].shape == (3, 5)
    assert Particles(two_clusters, unlabelled, (X,), {}).draw(3).summed == ("label",)
    grid = np.linspace(-12, 12, 4001)
    exact = np.log(np.trapezoid(np.exp([summed_by_hand(p, 0.8) for p in grid]), grid))
    for guide in (labelled, unlabelled):
        found = importance_sampling(two_clusters, guide, X, num_samples=20_000)
        assert abs(found.log_evidence - exact) < 4 * found.standard_error < 0.2


def test_a_site_from_the_prior_may_not_depend_on_what_is_summed_out() -> None:
    def model(x: Tensor) -> None:
        label = pyro.sample("label", dist.Bernoulli(x.new_tensor(0.4)), infer={"enumerate": "parallel"})
        place = pyro.sample("place", dist.Normal(label, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(place, 1.0), obs=x)

    with pytest.raises(ModelError, match=r"samples \['place'\], whose prior depends on sites .* \['label'\]; got one"):
        Particles(model, None, (X,), {})


def test_a_plate_that_changes_densities_without_an_error_is_not_believed() -> None:
    """With as many draws as levels and points, ``level[labels]`` picks draws."""

    def picks(x: Tensor, labels: Tensor) -> None:
        with pyro.plate("levels", 3):
            level = pyro.sample("level", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(level[labels], 1.0), obs=x)

    x, labels = X[:3], torch.tensor([1, 2, 1])
    values = torch.randn(3, 3, dtype=torch.float64)
    found = ProgramRunner(ProgramCall(picks, (x, labels), {}), 1, ("plate", "loop")).log_prob({"level": values}, 3)
    expected = scipy.stats.norm.logpdf(values).sum(1) + scipy.stats.norm.logpdf(x, values[:, labels]).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_only_way_left_out_is_an_error_that_names_the_cure() -> None:
    def picks(x: Tensor, labels: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean[labels], 1.0), obs=x)

    particles = Particles(picks, None, (X, torch.tensor([0, 1, 2, 0, 1])), {}, vectorized=True)
    with pytest.raises(ModelError, match=r"one more plate to the left, for vectorized=True; got .*Vindex"):
        particles.log_joint({"mean": torch.randn(3, 3, dtype=torch.float64)})


@pytest.mark.parametrize("kind", ["planar", "radial", "affine_autoregressive"])
def test_a_guide_that_scores_only_its_own_draws_has_a_score(kind: str) -> None:
    """A flow without inverse: its bound and its evidence by importance sampling are those of Pyro's own estimates."""
    x = torch.tensor([1.3, -0.2, 2.5, 0.8, 1.1], dtype=torch.float64)
    guide = FlowGuide(normal_gamma.model, kind, length=2, init_scale=0.5)
    found = score(normal_gamma.model, guide, x, num_samples=10_000)
    weights = importance_sampling(normal_gamma.model, guide, x, num_samples=10_000, vectorized=True).log_weights
    elbo = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    estimates = torch.tensor([-elbo.loss(normal_gamma.model, guide, x) for _ in range(20)], dtype=torch.float64)
    for other in (weights, estimates):
        spread = math.hypot(found.elbo_error, other.std().item() / math.sqrt(len(other)))
        assert abs(found.elbo - other.mean().item()) < 4 * spread < 0.2
