"""Which latents new data has of its own, and what its density is then, against integrals written out."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, DataError, ModelError

DOUBLE = torch.float64


def fit(model: Any, *args: Any) -> AutoConjugate:
    guide = AutoConjugate(model)
    CAVI(model, guide).run(*args, max_steps=300, tol=1e-10)
    return guide


def repeated(x: Tensor | None, n: int = 0) -> None:
    """Two measurements of each subject."""
    precision = pyro.sample("precision", dist.Gamma(torch.tensor(2.0, dtype=DOUBLE), 1.0))
    with pyro.plate("subject", n if x is None else len(x), dim=-2):
        effect = pyro.sample("effect", dist.Normal(0.0, 3.0))
        with pyro.plate("twice", 2, dim=-1):
            pyro.sample("x", dist.Normal(effect, precision.rsqrt()), obs=x)


def test_fewer_subjects_are_others() -> None:
    """Their effects are integrated out, and not read off the data whose density is asked for."""
    torch.manual_seed(0)
    guide = fit(repeated, 3 * torch.randn(6, 1, dtype=DOUBLE) + torch.randn(6, 2, dtype=DOUBLE))
    new = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=DOUBLE)
    precision = guide.posterior()["precision"].sample((20_000, 1, 1, 1))
    covariance = 9 + torch.eye(2, dtype=DOUBLE) / precision
    each = dist.MultivariateNormal(torch.zeros(2, dtype=DOUBLE), covariance).log_prob(new)
    found = guide.log_predictive(new, pointwise=True, num_samples=3000)
    assert found.value.shape == (2,)  # the elements of the inner plate share an effect
    expected = each.logsumexp(0) - math.log(20_000)
    assert bool(((found.value - expected).abs() < 5 * found.error + 0.02).all())
    with pytest.raises(ModelError, match="Expected to know whether 'effect'"):
        guide.log_predictive(torch.zeros(6, 2, dtype=DOUBLE))


def grouped(infer: Any) -> Any:
    def model(group: Tensor, x: Tensor | None = None) -> None:
        with pyro.plate("groups", 3):
            mean = pyro.sample("mean", dist.Normal(torch.tensor(100.0, dtype=DOUBLE), 10.0), infer=infer)
        with pyro.plate("data", len(group)):
            pyro.sample("x", dist.Normal(mean[group], 1.0), obs=x)

    return model


def test_one_datum_of_each_group_in_order_is_no_group_of_its_own() -> None:
    """Read at 0, 1, 2 the groups are as those read at 2, 1, 0, once the model says so."""
    group = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    x = torch.tensor([90.0, 100.0, 110.0], dtype=DOUBLE)[group] + torch.linspace(-1, 1, 7, dtype=DOUBLE)
    new, order = torch.tensor([91.0, 101.0, 109.0], dtype=DOUBLE), torch.arange(3)
    with pytest.raises(ModelError, match="Expected to know whether 'mean'"):
        fit(grouped({}), group, x).log_predictive(order, new)
    guide = fit(grouped({"local": False}), group, x)
    q = guide.posterior()["mean"]
    expected = dist.Normal(q.mean, (q.variance + 1).sqrt()).log_prob(new)
    for places in (order, order.flip(0)):
        assert torch.allclose(guide.log_predictive(places, new[places], pointwise=True).value, expected[places])


def curve(x: Tensor | None, n: int = 0) -> None:
    size = n if x is None else len(x)
    top = pyro.sample("top", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 10.0))
    values = pyro.sample("values", dist.Normal(top, 2.0).expand([size]).to_event(1))
    with pyro.plate("data", size):
        pyro.sample("x", dist.Normal(values, 0.5), obs=x)


def test_what_a_vector_of_the_data_reads_stays_as_it_was_fitted() -> None:
    torch.manual_seed(1)
    guide = fit(curve, 5 + torch.randn(20, dtype=DOUBLE))
    q = guide.posterior()["top"]
    new = torch.tensor([5.0, 9.0], dtype=DOUBLE)
    law = dist.MultivariateNormal(q.mean.expand(2), q.variance + 4.25 * torch.eye(2, dtype=DOUBLE))
    found = guide.log_predictive(new, num_samples=3000)
    assert abs(float(found.value - law.log_prob(new))) < 5 * float(found.error)
    drawn = guide.predict(None, n=3, num_samples=4000)
    assert drawn.mean["x"] == pytest.approx(q.mean.expand(3).numpy(), abs=0.2)


@pytest.mark.parametrize("prior", [dist.HalfCauchy(2.0), dist.Gamma(2.0, 1.0), dist.LogNormal(0.0, 1.0)])
def test_scales_by_quadrature_predict_data_that_is_not_given(prior: Any) -> None:
    """Var x = Var loc + E scale², of as many elements as the fit had, and of others."""

    def model(x: Tensor | None = None, n: int = 0) -> None:
        loc = pyro.sample("loc", dist.Uniform(torch.tensor(-5.0, dtype=DOUBLE), 5.0))
        scale = pyro.sample("scale", prior.expand(torch.Size()))
        with pyro.plate("data", n if x is None else len(x)):
            pyro.sample("x", dist.Normal(loc, scale.double()), obs=x)

    torch.manual_seed(2)
    guide = fit(model, 1 + torch.randn(20, dtype=DOUBLE))
    q = guide.posterior()
    sd = (q["loc"].variance + q["scale"].variance + q["scale"].mean ** 2).sqrt()
    for count in (20, 3):
        found = guide.predict(None, n=count, num_samples=4000)
        assert found["x"].shape == (4000, count)
        assert bool(((found.mean["x"] - q["loc"].mean).abs() < 5 * sd / 4000**0.5).all())
        assert torch.allclose(found.sd["x"], sd.expand(count), rtol=0.1)


def test_nan_under_a_mask_of_new_data_is_an_error_that_says_what_to_write() -> None:
    def model(x: Tensor, seen: Any) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.tensor(0.0, dtype=DOUBLE), 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x, obs_mask=seen)

    x = torch.tensor([1.0, math.nan, 2.0], dtype=DOUBLE)
    guide = fit(model, x.nan_to_num(), x.isfinite())
    with pytest.raises(DataError, match="nan_to_num"):
        guide.log_predictive(x, x.isfinite())
    assert float(guide.log_predictive(x.nan_to_num(), x.isfinite(), pointwise=True).value[1]) == 0
