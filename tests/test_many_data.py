"""One scalar of many data: what a density is far from its mode is rounding, and no part of it."""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, RobbinsMonro
from pyro_latent.distributions.functions import function_of
from pyro_latent.distributions.gamma_ratios import LOG_DENSITIES, log_rising
from pyro_latent.distributions.panels import nodes_of, tabulate
from pyro_latent.distributions.windows import resolved_ends

Array = np.ndarray
LIKE = torch.empty(0, dtype=torch.float64)


def mean_five(s: Tensor) -> dist.NegativeBinomial:
    """Counts of mean five, of which s is the number of failures."""
    return dist.NegativeBinomial(s, logits=torch.tensor(5.0).double().log() - s.log())


def log_counts(y: Array, s: Array, log_odds: Array) -> Array:
    """Of a negative binomial distribution, to the rounding of log Γ of at most 1e5."""
    ways = scipy.special.gammaln(y + s) - scipy.special.gammaln(s) - scipy.special.gammaln(y + 1)
    found: Array = ways + y * log_odds - (y + s) * np.logaddexp(0, log_odds)
    return found


#: The likelihood given s, one to draw data from, and its log density by scipy.
CASES: dict[str, tuple[Callable[[Tensor], Any], Any, Callable[[Array, Array], Array]]] = {
    "Student": (
        lambda s: dist.StudentT(s, 1.0, 2.0),
        dist.StudentT(4.0, 1.0, 2.0),
        lambda y, s: scipy.stats.t.logpdf(y, s, 1, 2),
    ),
    "Gamma of known mean": (
        lambda s: dist.Gamma(s, s / 2),
        dist.Gamma(3.0, 1.5),
        lambda y, s: scipy.stats.gamma.logpdf(y, s, scale=2 / s),
    ),
    "Beta": (lambda s: dist.Beta(s, 2.0), dist.Beta(3.0, 2.0), lambda y, s: scipy.stats.beta.logpdf(y, s, 2)),
    "Beta of known mean": (
        lambda s: dist.Beta(0.6 * s, 0.4 * s),
        dist.Beta(6.0, 4.0),
        lambda y, s: scipy.stats.beta.logpdf(y, 0.6 * s, 0.4 * s),
    ),
    "NegativeBinomial": (
        lambda s: dist.NegativeBinomial(s, probs=torch.tensor(0.6).double()),
        dist.NegativeBinomial(3.0, probs=torch.tensor(0.6)),
        lambda y, s: log_counts(y, s, np.log(1.5)),
    ),
    "NegativeBinomial of known mean": (
        mean_five,
        mean_five(torch.tensor(3.0)),
        lambda y, s: log_counts(y, s, np.log(5 / s)),
    ),
    "BetaBinomial": (
        lambda s: dist.BetaBinomial(s, 2.0, 20),
        dist.BetaBinomial(3.0, 2.0, 20),
        lambda y, s: scipy.stats.betabinom.logpmf(y, 20, s, 2),
    ),
}


@pytest.mark.parametrize("count", [30, 2_000])
@pytest.mark.parametrize("name", CASES)
def test_a_scalar_of_many_data_is_exact(name: str, count: int) -> None:
    likelihood, truth, log_density = CASES[name]
    torch.manual_seed(0)
    y = truth.sample((count,)).double()

    def model() -> None:
        s = pyro.sample("s", dist.LogNormal(torch.tensor(0.0).double(), 2.0))
        with pyro.plate("data", count):
            pyro.sample("y", likelihood(s), obs=y)

    guide = AutoConjugate(model)
    elbo = -CAVI(model, guide).step()
    places = np.linspace(-2, 11, 1_001) if count == 30 else np.linspace(0.3, 2.8, 501)
    step, s = places[1] - places[0], np.exp(places)
    each = np.array([log_density(y.numpy(), at).sum() for at in s])
    heights = each + scipy.stats.norm.logpdf(places, 0, 2)
    log_evidence = scipy.special.logsumexp(heights) + np.log(step)
    weights = np.exp(heights - log_evidence) * step
    assert elbo == pytest.approx(log_evidence, abs=1e-7 if count > 30 else 1e-4)  # scipy's grid cuts the tail of few
    assert float(guide.posterior()["s"].mean) == pytest.approx(weights @ s, rel=1e-8 if count > 30 else 1e-2)


def test_rising_factorials_do_not_round_more_than_they_are() -> None:
    mpmath.mp.dps = 60
    for x in (1e-3, 0.5, 3.0, 11.9, 12.0, 12.1, 40.0, 1e3, 1e8, 1e15, 1e22):
        for n in (0.0, 1e-4, 0.5, -0.0004, 1.0, 7.0, 100.0, 1e6):
            expected = float(mpmath.loggamma(mpmath.mpf(x) + mpmath.mpf(n)) - mpmath.loggamma(mpmath.mpf(x)))
            found = float(log_rising(LIKE.new_tensor(x), LIKE.new_tensor(n)))
            rounding = 3e-14 * max(abs(expected), abs(n), 0.2)  # also of log Γ(12) = 17
            assert found == pytest.approx(expected, abs=rounding), (x, n)
    assert float(log_rising(LIKE.new_tensor(1e300), LIKE.new_tensor(3.0))) == pytest.approx(900 * np.log(10))


def test_the_mean_of_a_scale_is_exact_of_a_precision_known_well() -> None:
    """E x^-½ of x ~ Gamma(a, b), whose logarithm is a difference of log Γ at 1e9."""
    precision = dist.Gamma(torch.tensor(1e9).double(), torch.tensor(1e9).double())
    found = function_of(precision, torch.distributions.transforms.PowerTransform(torch.tensor(-0.5).double())).mean
    assert float(found) - 1 == pytest.approx(3 / 8e9, rel=1e-5)


def test_rounding_ends_where_a_density_has_fallen_before_it() -> None:
    """A density that has fallen, one that has not, and one without rounding."""
    falls = torch.tensor([1.0, 1e-3, 1.0]).double()
    noise = torch.tensor([1.0, 1.0, 0.0]).double()

    def log_density(places: Tensor) -> Tensor:
        jitter = torch.sin(1e15 * places) * 100 * (places > 30) * noise
        return -0.5 * falls * places.square() + jitter

    ends = resolved_ends(log_density, torch.Size((3,)), 700.0, LIKE, 2**10)
    assert ends is not None
    torch.testing.assert_close(ends[0], torch.full((3,), -torch.inf).double())
    assert 29 < float(ends[1][0]) < 31
    torch.testing.assert_close(ends[1][1:], torch.full((2,), torch.inf).double())
    assert resolved_ends(lambda places: -0.5 * places.square(), torch.Size((3,)), 700.0, LIKE, 2**10) is None


@pytest.mark.parametrize(
    "modes",
    [
        [(0.0, 1.0), (1e6, 1e4)],
        [(0.0, 1.0), (1e10, 100.0)],
        [(1.0, 1e-3), (-1e8, 100.0)],
        [(1.0, 1e-3), (1e8, 1.0)],
        [(5.5, 0.47), (-4.3, 1.46), (1.06, 0.03), (-5.4, 0.42)],
    ],
)
def test_modes_of_any_width_far_apart_count(modes: list[tuple[float, float]]) -> None:
    """Each has its mass, also next to the end of what the widest one takes, and behind where squares round."""

    def log_density(places: Tensor) -> Tensor:
        normals = [dist.Normal(LIKE.new_tensor(loc), LIKE.new_tensor(scale)) for loc, scale in modes]
        return torch.stack([normal.log_prob(places) for normal in normals]).logsumexp(0)

    left, right, found = tabulate(log_density, (), 1e30, LIKE)
    nodes, best = nodes_of(left, right, found.shape[-1] // left.shape[-1]).flatten(), found.argmax()
    log_normalizer = log_density(nodes[best]) - found[best]
    assert float(log_normalizer) == pytest.approx(np.log(len(modes)), abs=1e-8)


@pytest.mark.parametrize("datum", [0.0, 1.0, 2.0, 15.0])
def test_a_density_that_falls_in_waves_ends(datum: float) -> None:
    """Beyond its ends a wave of a tail may be higher than what is before it."""

    def model() -> None:
        s = pyro.sample("s", dist.Normal(LIKE.new_tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal((3 * s).sin(), 0.3), obs=LIKE.new_tensor(datum))

    places, step = np.linspace(-12, 12, 60_001, retstep=True)
    heights = scipy.stats.norm.logpdf(places) + scipy.stats.norm.logpdf(datum, np.sin(3 * places), 0.3)
    elbo = -CAVI(model, AutoConjugate(model)).step()
    assert elbo == pytest.approx(scipy.special.logsumexp(heights) + np.log(step), abs=1e-8)


def test_degrees_of_freedom_may_be_any_number() -> None:
    """A Student's t is a normal distribution where they are many, and a half-Cauchy prior lets them be so."""
    torch.manual_seed(0)
    y = dist.StudentT(LIKE.new_tensor(4.0), 1.0, 2.0).sample((30,))

    def model() -> None:
        df = pyro.sample("df", dist.HalfCauchy(LIKE.new_tensor(1.0)))
        with pyro.plate("data", 30):
            pyro.sample("y", dist.StudentT(df, 1.0, 2.0), obs=y)

    places, step = np.linspace(-12, 20, 3_201, retstep=True)
    each = scipy.stats.t.logpdf(y.numpy()[:, None], np.exp(places), 1, 2).sum(0)
    log_evidence = scipy.special.logsumexp(each + scipy.stats.halfcauchy.logpdf(np.exp(places)) + places) + np.log(step)
    assert -CAVI(model, AutoConjugate(model)).step() == pytest.approx(log_evidence, abs=1e-7)


#: A distribution by a number, and the one that it tends to as that number grows.
LIMITS: dict[str, tuple[Callable[[Tensor], Any], Any]] = {
    "Student": (lambda s: dist.StudentT(s, LIKE.new_tensor(1.0), 2.0), dist.Normal(LIKE.new_tensor(1.0), 2.0)),
    "NegativeBinomial": (mean_five, dist.Poisson(LIKE.new_tensor(5.0))),
    "GammaPoisson": (lambda s: dist.GammaPoisson(s, s / 5), dist.Poisson(LIKE.new_tensor(5.0))),
    "BetaBinomial": (
        lambda s: dist.BetaBinomial(s, 3 * s, LIKE.new_tensor(20.0)),
        dist.Binomial(LIKE.new_tensor(20.0), LIKE.new_tensor(0.25)),
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_density_tends_to_its_limit(name: str) -> None:
    family, limit = LIMITS[name]
    values = torch.arange(21.0).double().unsqueeze(-1)
    few, many = family(torch.logspace(-2, 2, 50).double()), family(LIKE.new_tensor([1e11, 1e15, 1e22]))
    ours = LOG_DENSITIES[type(few)]
    torch.testing.assert_close(ours(few, values), few.log_prob(values), rtol=0, atol=1e-11)
    torch.testing.assert_close(ours(many, values), limit.log_prob(values).expand(21, 3), rtol=0, atol=1e-6)

    def model() -> None:
        s = pyro.sample("s", dist.HalfCauchy(LIKE.new_tensor(1.0)))
        pyro.sample("y", family(s), obs=LIKE.new_tensor(3.0))

    places, step = np.linspace(-25, 25, 3_001, retstep=True)
    s = torch.as_tensor(np.exp(places))
    each = torch.where(s < 1e7, family(s).log_prob(LIKE.new_tensor(3.0)), limit.log_prob(LIKE.new_tensor(3.0)))
    heights = each.numpy() + scipy.stats.halfcauchy.logpdf(s.numpy()) + places
    log_evidence = scipy.special.logsumexp(heights) + np.log(step)
    assert -CAVI(model, AutoConjugate(model)).step() == pytest.approx(log_evidence, abs=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_steps_between_tables_in_single_precision(seed: int) -> None:
    """A step blends two log densities that are known to the rounding of float32, which is no error of an integral."""
    torch.manual_seed(seed)
    data = dist.StudentT(3.0, 0.0, 1.0).sample((1_000,))

    def model(batch: Tensor) -> None:
        df = pyro.sample("df", dist.LogNormal(1.0, 1.0))
        with pyro.plate("data", len(data), subsample_size=len(batch)):
            pyro.sample("y", dist.StudentT(df, 0.0, 1.0), obs=batch)

    whole, guide = AutoConjugate(model), AutoConjugate(model)
    CAVI(model, whole).step(data)
    driver = CAVI(model, guide, step_size=RobbinsMonro())
    for _ in range(25):
        driver.step(data[torch.randint(0, len(data), (200,))])
    found, expected = guide.posterior(data[:200])["df"], whole.posterior(data)["df"]
    assert found.mean.dtype == torch.float32
    assert abs(float(found.mean - expected.mean)) < 3 * float(expected.stddev)
    assert float(found.stddev) == pytest.approx(float(expected.stddev), rel=0.5)
