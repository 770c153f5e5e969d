"""What people do with a fitted guide: other starts, other data, prediction, missing data, copies."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import shared_models
import torch
from pyro.contrib.forecast import ForecastingModel
from pyro.infer import Predictive, Trace_ELBO
from shared_models import batch_mixture
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, DataError, ModelError, NotConjugateError, PyroLatentError


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mixture(x: Tensor) -> None:
    shared_models.batch_mixture(x, k=2, width=30.0)


def regression(features: Tensor, targets: Tensor | None = None) -> None:
    shared_models.regression(features, targets, width=10.0)


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("start", [[-3.0, 3.0], [3.0, -3.0]])
def test_a_given_block_says_where_a_mixture_starts(start: list[float]) -> None:
    """Its order of components is kept: no cluster start overrides it."""
    x = torch.cat([rows(40) - 3, rows(40) + 3])
    guide = AutoConjugate(mixture, init={"mean": dist.Normal(torch.tensor(start), 0.1)})
    CAVI(mixture, guide).run(x)
    found = guide.posterior()["mean"].mean
    torch.testing.assert_close(found.sign(), torch.tensor(start, dtype=torch.float64).sign())


def chain(x: Tensor) -> None:
    transition = pyro.sample("transition", dist.Dirichlet(x.new_ones(2, 2)).to_event(1))
    with pyro.plate("states", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]))
        pyro.sample(f"x_{t}", dist.Normal(mean[z], precision.rsqrt()), obs=x[t])


def test_a_chain_starts_at_clusters_of_its_data() -> None:
    states = torch.tensor([0] * 8 + [1] * 9 + [0] * 8)
    x = f64(-1.0, 2.0)[states] + 0.3 * rows(len(states))
    guide = AutoConjugate(chain)
    CAVI(chain, guide).run(x, max_steps=50)
    means = guide.posterior()["mean"].mean.sort().values
    torch.testing.assert_close(means, f64(-1.0, 2.0), rtol=0, atol=0.4)


def factors(x: Tensor, count: int) -> None:
    with pyro.plate("columns", x.shape[1]):
        loadings = pyro.sample("loadings", dist.Normal(x.new_zeros(count), 1.0).to_event(1))
    precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(count), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ loadings.T, precision.rsqrt()).to_event(1), obs=x)


def test_looking_at_other_data_leaves_the_fit() -> None:
    """``elbo``, ``posterior`` and draws for other data change neither the state nor what the guide says without
    arguments.
    """
    x = rows(60, 2) @ rows(2, 4) + 0.1 * rows(60, 4)
    guide = AutoConjugate(factors)
    level = float(CAVI(factors, guide).run(x, 2, max_steps=300).elbo[-1])
    before = {name: value.clone() for name, value in guide.state_dict().items() if isinstance(value, Tensor)}
    guide.elbo(x[:20], 2)
    guide.posterior(x.flip(0), 2)
    guide(x[:5], 2)
    assert guide.elbo(x, 2) == guide.elbo() == pytest.approx(level, rel=1e-12)
    for name, value in before.items():
        torch.testing.assert_close(guide.state_dict()[name], value, rtol=0, atol=0)


def test_local_blocks_of_other_data_are_at_their_optimum() -> None:
    """The factors of the fitted rows are found again from the loadings alone, also in another order and number."""
    x = rows(60, 2) @ rows(2, 4) + 0.1 * rows(60, 4)
    guide = AutoConjugate(factors)
    CAVI(factors, guide, order=["loadings", "precision", "z"]).run(x, 2, max_steps=20, tol=0)
    fitted = guide.posterior()["z"].mean
    torch.testing.assert_close(guide.posterior(x.flip(0), 2)["z"].mean, fitted.flip(0), rtol=0, atol=1e-8)
    torch.testing.assert_close(guide.posterior(x[:7], 2)["z"].mean, fitted[:7], rtol=0, atol=1e-8)


def test_predictive_draws_targets_that_are_not_given() -> None:
    """Pyro's way to predict: the same model without the data, at new features."""
    features, weights = rows(200, 2), f64(1.0, -2.0)
    guide = AutoConjugate(regression)
    CAVI(regression, guide).run(features, features @ weights + 0.5 * rows(200))
    new = rows(5, 2)
    draws = Predictive(regression, guide=guide, num_samples=2000)(new)["targets"]
    assert draws.shape == (2000, 5)
    torch.testing.assert_close(draws.mean(0), new @ weights, rtol=0, atol=0.15)
    torch.testing.assert_close(draws.std(0), torch.full((5,), 0.5, dtype=torch.float64), rtol=0.15, atol=0)


def test_predictive_draws_mixtures_that_are_not_given() -> None:
    """New points come from the components by their weights, and not from the data that was fitted."""

    def model(count: int, x: Tensor | None = None) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(f64(1.0, 1.0)))
        with pyro.plate("components", 2):
            mean = pyro.sample("mean", dist.Normal(f64(0.0), 30.0))
        with pyro.plate("data", count):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x)

    x = torch.cat([rows(150) - 5, rows(50) + 5])
    guide = AutoConjugate(model)
    CAVI(model, guide).run(200, x)
    draws = Predictive(model, guide=guide, num_samples=400)(10)["x"]
    assert float((draws < 0).double().mean()) == pytest.approx(0.75, abs=0.05)


def test_a_site_that_others_depend_on_is_not_left_out() -> None:
    def model(x: Tensor, more: bool = False) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0)) if more else 0.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean + shift, 1.0), obs=x)

    guide = AutoConjugate(model)
    CAVI(model, guide).run(rows(9))
    with pytest.raises(ModelError, match=r"'shift'\] besides.*'x'.*Make a new guide"):
        guide.elbo(rows(9), True)


def test_missing_data_is_scored_in_its_plate() -> None:
    """Under ``obs_mask`` the estimate of Trace_ELBO is the exact ELBO, and draws of the missing data follow the
    model.
    """

    def model(x: Tensor, mask: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x, obs_mask=mask)  # type: ignore[arg-type]

    x, mask = rows(30) + 4, torch.arange(30) % 3 > 0
    guide = AutoConjugate(model)
    CAVI(model, guide).run(x, mask, tol=1e-12)
    losses = torch.tensor([Trace_ELBO().loss(model, guide, x, mask) for _ in range(300)], dtype=torch.float64)
    assert float((losses.mean() + guide.elbo()).abs() / (losses.std() / len(losses) ** 0.5)) < 4
    draws = torch.stack([guide(x, mask)["x_unobserved"] for _ in range(200)])
    assert draws.shape == (200, 30)
    assert float(draws.mean()) == pytest.approx(4.0, abs=0.5)


def test_a_copy_of_a_guide_is_a_guide() -> None:
    x = rows(20)
    guide = AutoConjugate(mixture)
    CAVI(mixture, guide).run(x)
    again = copy.deepcopy(guide)
    assert again.elbo(x) == pytest.approx(guide.elbo(x), rel=1e-12)
    assert guide.model is mixture


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_what_a_fit_leaves_can_be_copied_and_pickled(copied: Callable[[Any], Any]) -> None:
    x = torch.randn(20, dtype=torch.float64)
    guide = AutoConjugate(batch_mixture)
    result = CAVI(batch_mixture, guide).run(x, max_steps=3)
    state = copied(guide.state)
    assert state.keys() == guide.state.keys()
    assert all(torch.equal(t, state[key][n]) for key, natural in guide.state.items() for n, t in natural.items())
    assert all(type(state[key]) is type(natural) for key, natural in guide.state.items())
    assert copied(guide).elbo(x) == pytest.approx(guide.elbo(x), rel=1e-12)
    assert copied(result).elbo.equal(result.elbo)
    for name, found in guide.posterior().items():
        value = found.sample()
        assert torch.equal(copied(found).log_prob(value), found.log_prob(value)), name


def broken_batches(x: Tensor, size: int = 12) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = pyro.sample("tau", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", size, subsample_size=len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("x", dist.Normal(mu + z, tau.rsqrt()), obs=x)


BROKEN: dict[str, Callable[[Tensor], Any]] = {
    "shape": lambda x: x.reshape(2, 2),
    "NaN": lambda x: x * torch.nan,
    "dtype": lambda x: x.float(),
    "length": lambda x: x.repeat(5),
    "empty": lambda x: x[:0],
    "overflow": lambda x: 1e200 * x,
    "arguments": lambda x: (x, 12, 3),
    "names": lambda x: {"y": x},
    "nothing": lambda x: None,
}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"step_size": 0.5}, marks=pytest.mark.slow),
        {"memoised": True},
        {"step_size": 0.5, "structured": 2},
    ],
    ids=str,
)
def test_a_bad_batch_is_named_and_leaves_all_as_after_the_one_before(settings: dict[str, Any]) -> None:
    x = torch.randn(12, dtype=torch.float64)
    for name, broken in BROKEN.items():
        guide, whole = AutoConjugate(broken_batches), AutoConjugate(broken_batches)
        cavi = CAVI(broken_batches, guide, **settings)
        pyro.set_rng_seed(0)
        with pytest.raises(PyroLatentError, match="batch 2 of pass 0") as caught:
            cavi.run_batches([x[:4], x[4:8], broken(x[8:])], epochs=2)
        pyro.set_rng_seed(0)
        other = CAVI(broken_batches, whole, **settings)
        other.run_batches([x[:4], x[4:8]])
        for key, natural in whole.state.items():
            assert all(torch.equal(t, guide.state[key][n]) for n, t in natural.items()), (name, caught.value)
        pyro.set_rng_seed(1)
        after = cavi.run_batches([x[:4], x[4:8], x[8:]]).elbo
        pyro.set_rng_seed(1)
        assert torch.allclose(after, other.run_batches([x[:4], x[4:8], x[8:]]).elbo, rtol=1e-12)


class Trend(ForecastingModel):
    def model(self, zero_data: Tensor, covariates: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 10.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
        self.predict(dist.Normal(0.0, precision.rsqrt()), level + slope * covariates)


def trend(data: Tensor, covariates: Tensor) -> None:
    """What ``Trend`` says, in plain Pyro."""
    level = pyro.sample("level", dist.Normal(0.0, 10.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    loc = (level + slope * covariates).squeeze(-1)
    with pyro.plate("time", len(data)):
        pyro.sample("residual", dist.Normal(loc, precision.rsqrt()), obs=data.squeeze(-1))


def test_a_forecasting_model_fits_as_its_plain_form_does() -> None:
    time = torch.linspace(0, 1, 20, dtype=torch.float64).unsqueeze(-1)
    data = 1 + 2 * time + 0.3 * torch.randn(20, 1, dtype=torch.float64)
    forecasting = Trend()
    guides = AutoConjugate(forecasting), AutoConjugate(trend)
    elbos = [CAVI(g.model, g).run(data, time, max_steps=100, tol=0.0).elbo[-1].item() for g in guides]
    assert elbos[0] == pytest.approx(elbos[1], rel=1e-9)
    with pytest.raises(ModelError, match=r"AssertionError: assert .*self\.predict"):
        guides[0].elbo(data, torch.cat([time, 1 + time]))  # a forecast, whose residuals are drawn


def test_the_posterior_of_a_matrix_of_normals_has_its_moments() -> None:
    def model(x: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(f64(0.0), 1.0).expand([1, 3]).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x @ weight.T).squeeze(-1), 1.0), obs=x.sum(1))

    x = rows(50, 3)
    guide = AutoConjugate(model)
    CAVI(model, guide).run(x)
    found = guide.posterior()["weight"]
    exact = torch.linalg.inv(x.T @ x + torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(found.mean, (exact @ x.T @ x.sum(1)).reshape(1, 3), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.variance, exact.diagonal().reshape(1, 3), rtol=1e-9, atol=0)


def test_numpy_data_is_named() -> None:
    def model(x: Any) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(DataError, match=r"torch.Tensor as obs= of site 'x'; got ndarray.*torch.as_tensor"):
        CAVI(model, AutoConjugate(model)).step(np.zeros(3))


def test_a_marginalised_mixture_is_named() -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(2)))
        with pyro.plate("data", len(x)):
            components = dist.Normal(f64(-1.0, 1.0), 1.0)
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=x)

    with pytest.raises(NotConjugateError, match=r"MixtureSameFamily around.*Categorical.*discrete latent site"):
        CAVI(model, AutoConjugate(model)).step(rows(5))


@pytest.mark.parametrize("prior", [dist.HalfCauchy(1.0), dist.Uniform(0.0, 1.0)])
def test_common_priors_of_a_scale_are_factors_by_quadrature(prior: Any) -> None:
    def model(x: Tensor) -> None:
        scale = pyro.sample("scale", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    guide = AutoConjugate(model)
    assert math.isfinite(CAVI(model, guide).step(rows(5)))
    assert "by quadrature" in guide.explain(rows(5))


def test_a_guide_of_a_model_without_arguments_can_be_called_first() -> None:
    """Data in a closure: the first call records it, also after a state was loaded."""
    x = rows(20)

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    assert set(AutoConjugate(model)()) == {"mean"}
    guide = AutoConjugate(model)
    CAVI(model, guide).run()
    again = AutoConjugate(model)
    again.load_state_dict(guide.state_dict())
    again()
    assert again.elbo() == pytest.approx(guide.elbo(), rel=1e-12)
    torch.testing.assert_close(again.posterior()["mean"].loc, guide.posterior()["mean"].loc, rtol=0, atol=0)
