"""What needs no rule: sites whose density is a number, and sites that integrate to one, whatever their distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions.transforms import ExpTransform

from pyro_latent import CAVI, EM, AutoConjugate, NotConjugateError

DOUBLE = torch.float64
ONE = torch.ones((), dtype=DOUBLE)
THREE = torch.tensor([1.0, 2.0, 0.5], dtype=DOUBLE)

#: Distributions without a rule, with a value each.
STRANGE: dict[str, tuple[Any, Tensor]] = {
    "Cauchy": (dist.Cauchy(0 * ONE, 1.0), 0.3 * ONE),
    "Student-t": (dist.StudentT(3.0 * ONE), 0.3 * ONE),
    "masked": (dist.StudentT(3.0 * ONE).mask(False), 0.3 * ONE),
    "event": (dist.Laplace(0 * THREE, 1.0).to_event(1), THREE),
    "Uniform": (dist.Uniform(-1.0 * ONE, 3.0), 0.2 * ONE),
    "LKJ": (dist.LKJCholesky(2, ONE), torch.eye(2, dtype=DOUBLE)),
    "transformed": (dist.TransformedDistribution(dist.Gumbel(0 * ONE, 1.0), [ExpTransform()]), 0.2 * ONE),
    "mixture": (dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(THREE[:2], 1.0)), 0.2 * ONE),
    "zero-inflated": (dist.ZeroInflatedPoisson(gate=0.3 * ONE, rate=ONE), 0 * ONE),
    "negative binomial": (dist.NegativeBinomial(3.0, 0.4 * ONE), 2 * ONE),
    "multivariate t": (dist.MultivariateStudentT(3.0 * ONE, THREE[:2], torch.eye(2, dtype=DOUBLE)), THREE[:2]),
}


def one_normal(extra: Callable[[], Any] = lambda: None) -> Tensor:
    """A normal with one datum, and whatever else the model has."""
    place: Tensor = pyro.sample("place", dist.Normal(0.0, 1.0))
    extra()
    pyro.sample("x", dist.Normal(place, 1.0), obs=0.7 * ONE)
    return place


EVIDENCE = scipy.stats.norm.logpdf(0.7, scale=math.sqrt(2))


def bound(model: Callable[[], Any], **settings: Any) -> float:
    return CAVI(model, AutoConjugate(model, **settings)).run(max_steps=200).elbo[-1].item()


@pytest.mark.parametrize("name", STRANGE)
def test_an_observed_site_of_constants_adds_its_log_density(name: str) -> None:
    strange, value = STRANGE[name]
    found = bound(lambda: one_normal(lambda: pyro.sample("strange", strange, obs=value)))
    expected = 0.0 if name == "masked" else strange.log_prob(value).item()
    assert found == pytest.approx(EVIDENCE + expected, rel=1e-10)


@pytest.mark.parametrize("name", STRANGE)
def test_a_latent_that_no_data_depends_on_integrates_to_one_and_is_drawn(name: str) -> None:
    strange, value = STRANGE[name]

    def model() -> None:
        one_normal(lambda: pyro.sample("strange", strange))

    guide = AutoConjugate(model)
    assert CAVI(model, guide).run().elbo[-1].item() == pytest.approx(EVIDENCE, rel=1e-10)
    assert set(guide.posterior()) == {"place"}
    drawn = guide()["strange"]
    assert drawn.shape == value.shape
    assert strange.support.check(drawn).all()


def test_draws_of_such_a_latent_follow_those_that_it_depends_on() -> None:
    """A prediction by a Student-t around a latent: its median is the latent's posterior mean."""

    def model() -> None:
        place = one_normal()
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        with pyro.plate("new", 400):
            pyro.sample("prediction", dist.StudentT(5.0, place, 0.1 + 0 * scale))

    guide = AutoConjugate(model)
    assert CAVI(model, guide).run().elbo[-1].item() == pytest.approx(EVIDENCE, rel=1e-10)
    pyro.set_rng_seed(1)
    for _ in range(3):
        drawn = guide()
        assert drawn["prediction"].median() == pytest.approx(drawn["place"].item(), abs=0.05)


def test_a_conditioned_scale_needs_no_family() -> None:
    def model() -> None:
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        place = pyro.sample("place", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(place, scale), obs=ONE)

    found = bound(poutine.condition(model, data={"scale": 2.0 * ONE}))
    exact = scipy.stats.norm.logpdf(1.0, scale=math.sqrt(5)) + scipy.stats.halfcauchy.logpdf(2.0)
    assert found == pytest.approx(exact, rel=1e-10)


def test_a_point_mass_is_what_it_is_at() -> None:
    def model() -> None:
        place = pyro.sample("place", dist.Normal(0.0, 1.0))
        double = pyro.sample("double", dist.Delta(2 * place))
        pyro.sample("x", dist.Normal(double, pyro.sample("scale", dist.Delta(3 * ONE))), obs=ONE)

    assert bound(model) == pytest.approx(scipy.stats.norm.logpdf(1.0, scale=math.sqrt(4 + 9)), rel=1e-10)


# Without data.


def test_without_data_the_posterior_is_the_prior() -> None:
    def model() -> None:
        pyro.sample("place", dist.Normal(2.0, 3.0))
        rain = pyro.sample("rain", dist.Bernoulli(0.3 * ONE))
        pyro.sample("wet", dist.Bernoulli(0.1 + 0.8 * rain))

    guide = AutoConjugate(model)
    with pytest.warns(UserWarning, match="got none, so the posterior is the prior"):
        result = CAVI(model, guide).run()
    assert result.elbo[-1].item() == pytest.approx(0.0, abs=1e-12)
    found = guide.posterior()
    assert (found["place"].mean.item(), found["place"].stddev.item()) == pytest.approx((2.0, 3.0))
    assert found["rain"].mean.item() == pytest.approx(0.3)
    assert found["wet"].mean.item() == pytest.approx(0.3 * 0.9 + 0.7 * 0.1)


# Batch dimensions in no plate.

ROWS = torch.arange(12, dtype=DOUBLE).reshape(3, 4).cos()


def means() -> None:
    place = pyro.sample("place", dist.Normal(torch.zeros(3, dtype=DOUBLE), 1.0))
    pyro.sample("x", dist.Normal(place, 2.0), obs=THREE)


def shared() -> None:
    place = pyro.sample("place", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(place, 2.0), obs=THREE)


def crossed() -> None:
    place = pyro.sample("place", dist.Normal(torch.zeros(3, dtype=DOUBLE), 1.0))
    with pyro.plate("rows", 2, dim=-2):
        pyro.sample("x", dist.Normal(place, 2.0), obs=torch.stack([THREE, -THREE]))


def regression() -> None:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(4, dtype=DOUBLE), 1.0))
    pyro.sample("x", dist.Normal(ROWS @ weights, 2.0), obs=THREE)


def sizeless() -> None:
    place = pyro.sample("place", dist.Normal(0.0, 1.0))
    with pyro.plate("data"):
        pyro.sample("x", dist.Normal(place, 2.0), obs=THREE)


def covariance_of(rows: Tensor) -> Callable[[], float]:
    def logpdf() -> float:
        data = THREE if len(rows) == 3 else torch.cat([THREE, -THREE])
        cov = rows @ rows.T + 4 * torch.eye(len(rows), dtype=DOUBLE)
        return float(scipy.stats.multivariate_normal.logpdf(data, torch.zeros(len(rows)), cov))

    return logpdf


EYE = torch.eye(3, dtype=DOUBLE)
BATCHES: Mapping[Callable[[], None], Callable[[], float]] = {
    means: covariance_of(EYE),
    shared: covariance_of(torch.ones(3, 1, dtype=DOUBLE)),
    crossed: covariance_of(torch.cat([EYE, EYE])),
    regression: covariance_of(ROWS),
    sizeless: covariance_of(torch.ones(3, 1, dtype=DOUBLE)),
}


@pytest.mark.parametrize("model", BATCHES, ids=lambda m: m.__name__)
def test_a_batch_in_no_plate_has_the_evidence_of_its_gaussian(model: Callable[[], None]) -> None:
    """Elementwise where nothing couples the elements, else as one multivariate factor."""
    assert bound(model) == pytest.approx(BATCHES[model](), rel=1e-10)


def test_a_batch_that_became_an_event_is_drawn_and_scored_as_pyro_does() -> None:
    guide = AutoConjugate(regression)
    CAVI(regression, guide).run()
    assert guide.posterior()["weights"].event_shape == (4,)
    assert guide()["weights"].shape == guide.median()["weights"].shape == (4,)
    with pyro.validation_enabled(False):
        draws = [_log_ratio(regression, guide) for _ in range(20)]
    torch.testing.assert_close(torch.stack(draws), torch.full((20,), BATCHES[regression](), dtype=DOUBLE))


def _log_ratio(model: Callable[[], None], guide: Callable[[], Any]) -> Tensor:
    """log p(x, z) − log q(z) at a draw of an exact q: the evidence."""
    drawn = poutine.trace(guide).get_trace()
    return torch.as_tensor(
        poutine.trace(poutine.replay(model, drawn)).get_trace().log_prob_sum() - drawn.log_prob_sum()
    )


def test_a_mixture_in_no_plate_is_summed_out() -> None:
    def model() -> None:
        which = pyro.sample("which", dist.Categorical(torch.ones(3, 2, dtype=DOUBLE)))
        pyro.sample("x", dist.Normal(torch.tensor([-1.0, 1.0], dtype=DOUBLE)[which], 1.0), obs=THREE)

    densities = [(dist.Normal(m, 1.0).log_prob(THREE)).exp() / 2 for m in (-1.0, 1.0)]
    assert bound(model) == pytest.approx((densities[0] + densities[1]).log().sum().item(), rel=1e-10)


# Pyro's spellings.


def test_numbers_are_data() -> None:
    def model() -> None:
        place = pyro.sample("place", dist.Normal(0.0, 1.0))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(place, 1.0), obs=0.7)  # type: ignore[arg-type]
        pyro.sample("n", dist.Poisson(rate), obs=3)  # type: ignore[arg-type]

    exact = scipy.stats.norm.logpdf(0.7, scale=math.sqrt(2)) + scipy.stats.nbinom.logpmf(3, 2, 0.5)
    assert bound(model) == pytest.approx(exact, rel=1e-6)


def test_a_simplex_starts_where_pyro_normalizes_it() -> None:
    def model(start: Tensor) -> None:
        shares = pyro.param("shares", start, constraint=dist.constraints.simplex)
        which = pyro.sample("which", dist.Categorical(shares))
        pyro.sample("x", dist.Normal(THREE[which], 1.0), obs=0.7 * ONE)

    elbos = []
    for start in (torch.tensor([1.0, 2.0, 1.0], dtype=DOUBLE), torch.tensor([0.25, 0.5, 0.25], dtype=DOUBLE)):
        pyro.clear_param_store()
        elbos.append(EM(model).run(start, max_steps=3).elbo)
    torch.testing.assert_close(*elbos)


def test_a_latent_outside_of_the_support_is_no_observation() -> None:
    """A rule would score it there; a positive one is scored."""

    def model(positive: bool) -> None:
        z = pyro.sample("z", dist.Gamma(2.0, 1.0) if positive else dist.Normal(0.0, 1.0))
        pyro.sample("f", dist.Exponential(1.0), obs=z)

    with pytest.raises(NotConjugateError, match="'f' to be observed at values inside its support"):
        CAVI(model, AutoConjugate(model)).step(False)
    assert abs(float(CAVI(model, AutoConjugate(model)).run(True).elbo[-1]) - math.log(0.25)) < 1e-6


def test_latents_that_no_data_depends_on_are_drawn_given_one_another() -> None:
    """In particles, too, and where a name comes before that of what it depends on."""

    def model() -> None:
        one_normal()
        parent = pyro.sample("z_parent", dist.LogNormal(0.2 * ONE, 0.5))
        child = pyro.sample("child", dist.StudentT(50.0, 10 * parent, 1e-4))
        pyro.sample("a_grandchild", dist.Normal(10 * child, 1e-4))

    guide = AutoConjugate(model)
    CAVI(model, guide).run()
    for _ in range(3):
        drawn = guide()
        assert float(drawn["child"]) == pytest.approx(10 * float(drawn["z_parent"]), abs=0.01)
        assert float(drawn["a_grandchild"]) == pytest.approx(10 * float(drawn["child"]), abs=0.01)
    with pyro.plate("particles", 5, dim=-1):
        drawn = guide()
    torch.testing.assert_close(drawn["child"], 10 * drawn["z_parent"], atol=0.01, rtol=0.0)
    assert float(drawn["z_parent"].std()) > 0.01
    given = poutine.condition(guide, {"z_parent": 3 * ONE})()
    assert float(given["child"]) == pytest.approx(30, abs=0.01)
