"""Three roads to one posterior: derived updates, hand-written updates, and a hand-written guide by gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_latent import CAVI, AutoConjugate, handlers
from pyro_latent.models import gmm, normal_gamma

DOUBLE = torch.float64
BLOCK = ("mean", "precision")
PRIOR: dict[str, Any] = {
    "prior_loc": 0.5,
    "prior_precision_scaling": 0.3,
    "prior_concentration": 1.5,
    "prior_rate": 2.0,
}
MIXTURE: dict[str, Any] = {
    "mean_precision_prior": 0.05,
    "degrees_of_freedom_prior": 3.5,
    "weight_concentration_prior": 0.8,
}

Updates = Mapping[Any, Callable[..., Any]]


def parameters(distribution: Any) -> dict[str, Tensor]:
    names = ("loc", "scale", "precision_scaling", "df", "covariance_matrix", "concentration", "rate", "probs")
    return {n: getattr(distribution, n) for n in names if isinstance(getattr(distribution, n, None), Tensor)}


def assert_same_posteriors(found: AutoConjugate, expected: AutoConjugate, rtol: float) -> None:
    ours, theirs = found.posterior(joint=True), expected.posterior(joint=True)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        values = parameters(theirs[key])
        assert values
        for name, value in values.items():
            size = value.abs().max().item()
            torch.testing.assert_close(parameters(ours[key])[name], value, rtol=rtol, atol=rtol * size)


def assert_roads_agree(
    model: Callable[..., None],
    updates: Updates,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    sweeps: int,
    init: Any = None,
) -> None:
    """The derived and the hand-written updates give one ELBO and one posterior after every sweep, and each is used."""
    blocks = [key for key in updates if isinstance(key, tuple)]
    used = dict.fromkeys(updates, 0)

    def counted(key: Any) -> Callable[..., Any]:
        def update(*args: Any, **kwargs: Any) -> Any:
            used[key] += 1
            return updates[key](*args, **kwargs)

        return update

    written_model = handlers.closed_form(model, {key: counted(key) for key in updates})
    derived = AutoConjugate(model, blocks=blocks, init=init)
    written = AutoConjugate(written_model, blocks=blocks, init=init)
    by_engine, by_hand = CAVI(model, derived), CAVI(written_model, written)
    for _ in range(sweeps):
        expected = by_engine.step(*args, **kwargs)
        assert by_hand.step(*args, **kwargs) == pytest.approx(expected, rel=1e-10)
        assert_same_posteriors(written, derived, rtol=1e-9)
    assert min(used.values()) >= sweeps - 1, used  # a start of the discrete sites stands for their first update


@pytest.mark.parametrize("count", [1, 10, 1000])
@pytest.mark.parametrize("updates", [normal_gamma.updates, normal_gamma.joint_updates])
@pytest.mark.parametrize("prior", [{}, PRIOR])
def test_written_normal_gamma_updates_are_the_derived_ones(
    count: int, updates: Updates, prior: dict[str, float]
) -> None:
    x = 5 + 2 * torch.randn(count, dtype=DOUBLE)
    assert_roads_agree(normal_gamma.model, updates, (x,), prior, sweeps=30)


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("covariance", "priors"),
    [("full", {}), ("full", MIXTURE), ("tied", MIXTURE), ("diagonal", {}), ("diagonal", MIXTURE), ("spherical", {})],
)
def test_written_mixture_updates_are_the_derived_ones(
    old_faithful: Tensor, size: int, covariance: gmm.Covariance, priors: dict[str, float]
) -> None:
    responsibilities = torch.rand(len(old_faithful), size, dtype=DOUBLE).mul(3).softmax(-1)
    assert_roads_agree(
        gmm.model,
        gmm.updates,
        (old_faithful, size),
        {"covariance": covariance, **priors},
        sweeps=30,
        init={"component": responsibilities},
    )


def test_written_mixture_updates_of_weighted_points_are_the_derived_ones(old_faithful: Tensor) -> None:
    points = old_faithful[:80]
    responsibilities = torch.rand(80, 2, dtype=DOUBLE).mul(3).softmax(-1)
    weights = 0.5 + torch.rand(80, dtype=DOUBLE)
    init = {"component": responsibilities}
    assert_roads_agree(gmm.model, gmm.updates, (points, 2), {"sample_weight": weights}, sweeps=10, init=init)


@pytest.mark.parametrize("key", [("weights",), ("component",), (BLOCK,), ("weights", BLOCK)])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_one_written_update_among_derived_ones_changes_nothing(
    old_faithful: Tensor, covariance: gmm.Covariance, key: tuple[Any, ...]
) -> None:
    chosen: dict[Any, Callable[..., Any]] = {k: gmm.updates[k] for k in key}
    model = handlers.closed_form(gmm.model, chosen)
    init = {"component": gmm.initial_responsibilities(old_faithful, 3)}
    mixed = AutoConjugate(model, blocks=[BLOCK], init=init)
    derived = AutoConjugate(gmm.model, blocks=[BLOCK], init=init)
    by_both, by_engine = CAVI(model, mixed), CAVI(gmm.model, derived)
    for _ in range(10):
        expected = by_engine.step(old_faithful, 3, covariance=covariance)
        assert by_both.step(old_faithful, 3, covariance=covariance) == pytest.approx(expected, rel=1e-10)
    assert_same_posteriors(mixed, derived, rtol=1e-8)


@pytest.mark.filterwarnings("ignore:Singular sample detected")
def test_written_updates_leave_the_model_as_it_is(old_faithful: Tensor) -> None:
    written = handlers.closed_form(gmm.model, dict[Any, Callable[..., Any]](gmm.updates))
    losses = []
    for model in (gmm.model, written):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        svi = SVI(model, gmm.guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))
        losses.append([svi.step(old_faithful, 2) for _ in range(3)])
    assert losses[0] == losses[1]


def follow_gradients(
    model: Callable[..., None], guide: Callable[..., None], elbo: Any, args: Any, kwargs: Any, steps: int
) -> None:
    """SVI with a learning rate that falls from 0.05 a thousandfold."""
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.001 ** (1 / steps)})
    svi = SVI(model, guide, optimizer, elbo)
    for _ in range(steps):
        svi.step(*args, **kwargs)


@pytest.mark.slow
def test_gradients_reach_the_mean_field_of_coordinate_ascent() -> None:
    """Both minimise one divergence, so they agree to the noise of SVI: 10⁻³ nats in each factor."""
    x = 5 + 2 * torch.randn(30, dtype=DOUBLE)
    guide = AutoConjugate(normal_gamma.model)
    CAVI(normal_gamma.model, guide).run(x, tol=0, max_steps=50, **PRIOR)
    elbo = Trace_ELBO(num_particles=20, vectorize_particles=True)
    follow_gradients(normal_gamma.model, normal_gamma.guide, elbo, (x,), PRIOR, 4000)
    store = {name: value.detach() for name, value in pyro.get_param_store().items()}
    q = guide.posterior()
    mean = dist.Normal(store["mean_loc"], store["mean_scale"])
    precision = dist.Gamma(store["precision_concentration"], store["precision_rate"])
    assert kl_divergence(mean, dist.Normal(q["mean"].loc, q["mean"].scale)) < 1e-3
    exact = dist.Gamma(q["precision"].concentration, q["precision"].rate)
    assert kl_divergence(precision, exact) < 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Singular sample detected")
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_gradients_reach_the_mixture_of_coordinate_ascent(old_faithful: Tensor, covariance: gmm.Covariance) -> None:
    """Means to a tenth of their posterior sd; the precision scaling and the weights' concentrations to 10%.

    TraceEnum_ELBO sums the components out for each draw, where mean field averages first: its bound is a little higher,
    and its optimum a little elsewhere, by the points that lie between the clusters.
    """
    init = {"component": gmm.initial_responsibilities(old_faithful, 2)}
    guide = AutoConjugate(gmm.model, blocks=[BLOCK], init=init)
    options: dict[str, Any] = {"covariance": covariance}
    CAVI(gmm.model, guide).run(old_faithful, 2, tol=1e-12, **options)
    pyro.set_rng_seed(0)
    elbo = TraceEnum_ELBO(max_plate_nesting=1, num_particles=5, vectorize_particles=False)
    follow_gradients(gmm.model, gmm.guide, elbo, (old_faithful, 2), options, 1500)
    store = {name: value.detach() for name, value in pyro.get_param_store().items()}
    q = guide.posterior(joint=True)
    order, theirs = q[BLOCK].loc[:, 0].argsort(), store["mean_loc"][:, 0].argsort()
    marginal = q[BLOCK].mean_marginal()
    sd = marginal.variance.sqrt()[order]
    assert ((store["mean_loc"][theirs] - q[BLOCK].loc[order]).abs() / sd).max() < 0.1
    scaling = q[BLOCK].precision_scaling[order]
    scaling = scaling if covariance == "full" else scaling[:, 0]
    torch.testing.assert_close(store["mean_precision_scaling"][theirs], scaling, rtol=0.1, atol=0)
    weights = q["weights"].concentration[order]
    torch.testing.assert_close(store["weight_concentration"][theirs], weights, rtol=0.1, atol=0)
    assert math.isclose(store["weight_concentration"].sum(), weights.sum(), rel_tol=0.1)
