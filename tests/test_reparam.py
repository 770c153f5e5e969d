"""Auxiliary sites that make a model conjugate: integrated out they leave the original density, and the ELBO that they
give is that of the same model by hand, below the exact evidence of the original one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, Gibbs, NotConjugateError, reparam
from pyro_latent.distributions import PolyaGamma
from pyro_latent.families import PolyaGamma as PolyaGammaFamily
from pyro_latent.reparam.conjugate import table

Model = Callable[..., Any]


def tensor(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def fit(model: Model, *args: Any, **options: Any) -> AutoConjugate:
    """A fit whose ELBO never fell."""
    guide = AutoConjugate(model, **options)
    found = CAVI(model, guide).run(*args, max_steps=2000, tol=1e-12)
    assert bool((found.elbo.diff() > -1e-8).all())
    return guide


def augmented(model: Model) -> Model:
    strategy: Any = reparam.Conjugate()
    found: Model = poutine.reparam(model, config=strategy)
    return found


# The Pólya-gamma distribution.

COUNTS, TILTS = [1.0, 2.5, 7.0], [0.0, 0.01, 1.5, 12.0]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("tilt", TILTS)
def test_polya_gamma_draws_have_its_laplace_transform_and_moments(count: float, tilt: float) -> None:
    """E e^{−s ω} = (cosh(c / 2) / cosh(√(c² / 4 + s / 2)))^b; Polson et al. (2013), equation (4)."""
    ours = PolyaGamma(tensor(count), tensor(tilt))
    draws = ours.sample((10_000,))
    for rate in (0.3, 2.0):
        values = (-rate * draws).exp()
        expected = (math.cosh(tilt / 2) / math.cosh(math.sqrt(tilt**2 / 4 + rate / 2))) ** count
        assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / 100
    assert abs(float(draws.mean() - ours.mean)) < 5 * float(draws.std()) / 100
    assert float(draws.var()) == pytest.approx(float(ours.variance), rel=0.12)


@pytest.mark.parametrize("tilt", [1e-3, 0.0199, 0.0201, 0.0999, 0.1001, 0.7, 9.0])
def test_polya_gamma_moments_are_derivatives_of_the_log_normalizer(tilt: float) -> None:
    family = PolyaGammaFamily(tensor(2.5))
    natural = family.from_params({"tilt": tensor(tilt)}).map(lambda t: t.requires_grad_())
    ours = PolyaGamma(tensor(2.5), tensor(tilt))
    (mean,) = torch.autograd.grad(family.log_normalizer(natural), natural.x, create_graph=True)
    assert mean.item() == pytest.approx(float(ours.mean), rel=1e-9)
    assert family.mean(natural.map(torch.detach)).x.item() == pytest.approx(float(ours.mean), rel=1e-12)
    if tilt > 0.01:
        (variance,) = torch.autograd.grad(mean, natural.x)
        assert variance.item() == pytest.approx(float(ours.variance), rel=1e-5)


def test_polya_gamma_family_is_the_distribution() -> None:
    family = PolyaGammaFamily(tensor(COUNTS))
    params = {"tilt": tensor([0.0, 0.5, 3.0])}
    natural, ours = family.from_params(params), family.distribution(params)
    value = tensor([0.1, 0.4, 2.0])
    torch.testing.assert_close(family.log_prob(natural, value), ours.log_ratio(value))
    torch.testing.assert_close(family.to_params(natural), params)
    assert family.in_domain(natural).all()
    assert not family.in_domain(natural.map(lambda t: torch.ones_like(t))).any()
    draws = ours.sample((20_000,))
    error = (-ours.log_ratio(draws)).mean(0) - family.entropy(natural)
    assert bool((error.abs() < 0.02).all())
    wide = ours.expand((2, 3))
    assert wide.sample((4,)).shape == (4, 2, 3)
    assert PolyaGamma(tensor(0.0)).sample().item() < 1e-300


# The table in the docs.


def test_the_table_in_the_docs_is_that_of_the_entries() -> None:
    page = (Path(__file__).parent.parent / "docs" / "auxiliary.md").read_text(encoding="utf-8")
    written = page.split("<!-- entries -->")[1].split("<!-- end of entries -->")[0]
    assert written.strip() == table()


# One site alone.

SITES: dict[str, tuple[Any, list[Any]]] = {
    "StudentT": (dist.StudentT(tensor(4.0), tensor(0.5), tensor(1.5)), [0.3, -4.0]),
    "Laplace": (dist.Laplace(tensor(0.5), tensor(1.5)), [0.3, -4.0]),
    "Bernoulli": (dist.Bernoulli(logits=tensor(0.7)), [0.0, 1.0]),
    "Binomial": (dist.Binomial(tensor(5.0), logits=tensor(-0.7)), [0.0, 3.0]),
    "NegativeBinomial": (dist.NegativeBinomial(tensor(2.5), logits=tensor(0.4)), [0.0, 3.0]),
    "GammaPoisson": (dist.GammaPoisson(tensor(2.0), tensor(0.5)), [0.0, 6.0]),
    "BetaBinomial": (dist.BetaBinomial(tensor(2.0), tensor(3.0), tensor(6.0)), [0.0, 4.0]),
    "DirichletMultinomial": (dist.DirichletMultinomial(tensor([1.0, 2.0, 0.5]), 4), [[1.0, 3.0, 0.0], [4.0, 0.0, 0.0]]),
    "MixtureSameFamily": (
        dist.MixtureSameFamily(
            dist.Categorical(tensor([0.3, 0.7])), dist.Normal(tensor([-1.0, 2.0]), tensor([1.0, 0.5]))
        ),
        [0.0, 2.0],
    ),
    "mixture of events": (
        dist.MixtureSameFamily(
            dist.Categorical(tensor([0.3, 0.7])),
            dist.MultivariateNormal(tensor([[-1.0, 1.0], [2.0, 0.0]]), torch.eye(2).double()),
        ),
        [[0.0, 0.5], [2.0, 0.0]],
    ),
    "mixture of Student-t's": (
        dist.MixtureSameFamily(
            dist.Categorical(tensor([0.3, 0.7])), dist.StudentT(tensor(3.0), tensor([-1.0, 2.0]), 1.0)
        ),
        [0.0, 2.0],
    ),
    "ZeroInflatedPoisson": (dist.ZeroInflatedPoisson(tensor(2.0), gate=tensor(0.3)), [0.0, 3.0]),
    "ZeroInflatedPoisson, logits": (dist.ZeroInflatedPoisson(tensor(2.0), gate_logits=tensor(0.3)), [0.0, 3.0]),
    "ZeroInflatedDistribution": (
        dist.ZeroInflatedDistribution(dist.Poisson(tensor(2.0)), gate=tensor(0.3)),
        [0.0, 3.0],
    ),
    "ZeroInflatedNegativeBinomial": (
        dist.ZeroInflatedNegativeBinomial(tensor(2.5), logits=tensor(0.3), gate=tensor(0.3)),
        [0.0, 3.0],
    ),
    "zero-inflated GammaPoisson": (
        dist.ZeroInflatedDistribution(dist.GammaPoisson(tensor(2.0), tensor(0.5)), gate_logits=tensor(-0.3)),
        [0.0, 3.0],
    ),
    "MaskedMixture": (
        dist.MaskedMixture(
            torch.tensor(True), dist.Laplace(tensor(0.5), 1.0), dist.StudentT(tensor(4.0), tensor(0.5), tensor(1.5))
        ),
        [0.3, -4.0],
    ),
    "MaskedMixture of events": (
        dist.MaskedMixture(
            torch.tensor(False),
            dist.Laplace(tensor([0.5, 1.0]), 1.0).to_event(1),
            dist.Normal(tensor([0.5, 1.0]), 1.0).to_event(1),
        ),
        [[1.5, 2.0], [-1.0, -0.2]],  # where the mean over the weights has a variance
    ),
}
DRAWS = 40_000


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("at", [0, 1])
def test_the_mean_over_the_auxiliary_sites_is_the_density(name: str, at: int) -> None:
    fn, values = SITES[name]
    value = tensor(values[at])

    def model() -> None:
        with pyro.plate("n", DRAWS):
            pyro.sample("y", fn, obs=value.expand(DRAWS, *value.shape))

    pyro.set_rng_seed(0)
    trace: Any = poutine.trace(augmented(model)).get_trace()
    assert len([n for n, s in trace.nodes.items() if s["type"] == "sample" and n.startswith("y_")]) > 0
    y = trace.nodes["y"]
    gates = [n for n in trace.nodes if n.endswith("_gate_weight")]
    density = y["fn"].log_prob(y["value"]).exp()
    for weight in gates:  # a gate by logits has a weight of its own, which its density is a factor with
        gate = trace.nodes[weight.removesuffix("_weight")]
        ratio = gate["fn"].log_prob(gate["value"]) - dist.Bernoulli(logits=gate["fn"].logits).log_prob(gate["value"])
        density = density * ratio.exp()
    error = 5 * float(density.std()) / DRAWS**0.5 + 1e-12
    assert abs(float(density.mean() - fn.log_prob(value).exp())) < error


def latent(fn: Any) -> Tensor:
    def model() -> Tensor:
        with pyro.plate("n", 20_000):
            found: Tensor = pyro.sample("s", fn)
            return found

    pyro.set_rng_seed(0)
    found: Tensor = augmented(model)()
    return found


@pytest.mark.parametrize(
    ("fn", "law"),
    [
        (dist.HalfCauchy(tensor(2.0)), scipy.stats.halfcauchy(scale=2.0)),
        (dist.Exponential(tensor(2.0)), scipy.stats.expon(scale=0.5)),
        (dist.Chi2(tensor(3.0)), scipy.stats.chi2(3.0)),
        (dist.Uniform(tensor(0.0), tensor(1.0)), scipy.stats.uniform()),
        (dist.StudentT(tensor(3.0), tensor(1.0), tensor(2.0)), scipy.stats.t(3.0, 1.0, 2.0)),
        (dist.Laplace(tensor(1.0), tensor(2.0)), scipy.stats.laplace(1.0, 2.0)),
    ],
    ids=["HalfCauchy", "Exponential", "Chi2", "Uniform", "StudentT", "Laplace"],
)
def test_a_latent_site_keeps_its_law(fn: Any, law: Any) -> None:
    assert scipy.stats.kstest(latent(fn).numpy(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["StudentT", "Bernoulli", "Binomial", "GammaPoisson", "MixtureSameFamily"])
def test_draws_of_new_data_have_the_law_of_the_site(name: str) -> None:
    """Forward draws of the augmented model, as of a prior predictive."""
    fn, _ = SITES[name]
    drawn, expected = latent(fn), fn.expand((20_000,)).sample()
    assert abs(float(drawn.mean() - expected.mean())) < 5 * float(expected.std()) * (2 / 20_000) ** 0.5


def test_a_negative_binomial_without_data_stays_as_it_is() -> None:
    drawn = latent(dist.NegativeBinomial(tensor(2.5), logits=tensor(0.4)))
    assert abs(float(drawn.mean()) - 2.5 * math.exp(0.4)) < 0.2


# Wrappers.


@pytest.mark.parametrize("name", ["StudentT", "Laplace", "Bernoulli", "NegativeBinomial", "GammaPoisson"])
def test_masks_and_events_are_kept(name: str) -> None:
    fn, values = SITES[name]
    mask = torch.tensor([True, False, True])
    value = tensor([values[0], values[1], values[1]]).expand(2, 3)

    def model() -> None:
        with pyro.plate("m", 2):
            pyro.sample("y", fn.expand([2, 3]).mask(mask).to_event(1), obs=value)

    trace: Any = poutine.trace(augmented(model)).get_trace()
    sites = [site for site in trace.nodes.values() if site["type"] == "sample" and site["name"] != "m"]
    assert len(sites) == 2
    for site in sites:
        layers = [site["fn"], site["fn"].base_dist]
        assert [type(layer) for layer in layers] == [dist.Independent, dist.MaskedDistribution]
        assert torch.equal(layers[1]._mask, mask.expand(2, 3))
        assert layers[1].batch_shape == (2, 3)


# Whole models, beside the same model by hand.

X = tensor([0.5, 1.2, -0.3, 2.0, 4.0, -1.5, 0.1, 9.0])
COUNT = tensor([0.0, 0.0, 3.0, 1.0, 0.0, 7.0, 2.0, 0.0])
LABEL = tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
INPUTS = torch.stack([torch.ones(8).double(), tensor([0.3, 1.5, 0.7, -0.4, 2.0, 1.0, -0.2, -2.0])], -1)


def location() -> Tensor:
    found: Tensor = pyro.sample("mu", dist.Normal(0.0, 3.0))
    return found


def rate() -> Tensor:
    found: Tensor = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    return found


def student() -> None:
    mu = location()
    with pyro.plate("n", 8):
        pyro.sample("y", dist.StudentT(4.0, mu, 1.5), obs=X)


def student_by_hand() -> None:
    mu = location()
    with pyro.plate("n", 8):
        gamma = pyro.sample("gamma", dist.Gamma(2.0, 2.0))
        pyro.sample("y", dist.Normal(mu, 1.5 * gamma.rsqrt()), obs=X)


def latent_student() -> None:
    mu = pyro.sample("mu", dist.StudentT(4.0, 0.0, 3.0))
    with pyro.plate("n", 8):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=X)


def latent_student_by_hand() -> None:
    gamma = pyro.sample("gamma", dist.Gamma(2.0, 2.0))
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0 * gamma.rsqrt()))
    with pyro.plate("n", 8):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=X)


def gamma_poisson() -> None:
    lam = rate()
    with pyro.plate("n", 8):
        pyro.sample("y", dist.GammaPoisson(3.0, lam), obs=COUNT)


def gamma_poisson_by_hand() -> None:
    lam = rate()
    with pyro.plate("n", 8):
        own = pyro.sample("own", dist.Gamma(3.0, lam))
        pyro.sample("y", dist.Poisson(own), obs=COUNT)


def zero_inflated() -> None:
    lam, gate = rate(), pyro.sample("gate", dist.Beta(1.0, 2.0))
    with pyro.plate("n", 8):
        pyro.sample("y", dist.ZeroInflatedPoisson(lam, gate=gate), obs=COUNT)


def zero_inflated_by_hand() -> None:
    """What is not 0 has an open gate; of the zeros each has its own."""
    lam, gate = rate(), pyro.sample("gate", dist.Beta(1.0, 2.0))
    with pyro.plate("n", 8):
        z = pyro.sample("z", dist.Bernoulli(gate))
        pyro.sample("y", dist.Poisson(torch.where(z > 0, torch.tensor(1e-30).double(), lam)), obs=COUNT)


def mixture() -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("k", 2):
        mu = location()
    with pyro.plate("n", 8):
        parts = dist.Normal(mu, tensor([1.0, 2.0]))
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=X)


def mixture_by_hand() -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("k", 2):
        mu = location()
    with pyro.plate("n", 8):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(mu[z], tensor([1.0, 2.0])[z]), obs=X)


def mixture_of_events() -> None:
    with pyro.plate("k", 2):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("n", 8):
        parts = dist.Normal(mu, 1.0).to_event(1)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts), obs=INPUTS)


def mixture_of_events_by_hand() -> None:
    with pyro.plate("k", 2):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("n", 8):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("y", dist.Normal(mu[z], 1.0).to_event(1), obs=INPUTS)


def mixture_of_shifts() -> None:
    """Each datum has components of its own: a shared location, shifted."""
    mu = location()
    with pyro.plate("n", 8):
        parts = dist.Normal(mu + torch.stack([X - 1, X.flip(0)], -1), 1.0)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts), obs=X)


def mixture_of_shifts_by_hand() -> None:
    mu = location()
    with pyro.plate("n", 8):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        shift = torch.where(z > 0, X.flip(0), X - 1)
        pyro.sample("y", dist.Normal(mu + shift, 1.0), obs=X)


def half_cauchy() -> None:
    mu, s = location(), pyro.sample("s", dist.HalfCauchy(2.0))
    with pyro.plate("n", 8):
        pyro.sample("y", dist.Normal(mu, s), obs=X)


def half_cauchy_by_hand() -> None:
    mu, r = location(), pyro.sample("r", dist.Gamma(0.5, 0.25))
    precision = pyro.sample("precision", dist.Gamma(0.5, r))
    with pyro.plate("n", 8):
        pyro.sample("y", dist.Normal(mu, precision.rsqrt()), obs=X)


def horseshoe() -> None:
    width = pyro.sample("width", dist.HalfCauchy(1.0))
    with pyro.plate("n", 8):
        own = pyro.sample("own", dist.HalfCauchy(1.0))
        mu = pyro.sample("mu", dist.Normal(0.0, width * own))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=X)


def horseshoe_by_hand() -> None:
    wide = pyro.sample("wide", dist.Gamma(0.5, pyro.sample("wide_rate", dist.Gamma(0.5, 1.0))))
    with pyro.plate("n", 8):
        own = pyro.sample("own", dist.Gamma(0.5, pyro.sample("own_rate", dist.Gamma(0.5, 1.0))))
        mu = pyro.sample("mu", dist.Normal(0.0, wide.rsqrt() * own.rsqrt()))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=X)


def variance() -> None:
    mu, v = location(), pyro.sample("v", dist.InverseGamma(2.0, 3.0))
    tau = pyro.sample("tau", dist.Exponential(2.0))
    with pyro.plate("n", 8):
        pyro.sample("y", dist.Normal(mu, v.sqrt()), obs=X)
        pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=X + 1)


def variance_by_hand() -> None:
    mu, precision = location(), pyro.sample("precision", dist.Gamma(2.0, 3.0))
    tau = pyro.sample("tau", dist.Gamma(1.0, 2.0))
    with pyro.plate("n", 8):
        pyro.sample("y", dist.Normal(mu, precision.rsqrt()), obs=X)
        pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=X + 1)


BY_HAND: list[tuple[Model, Model]] = [
    (student, student_by_hand),
    (latent_student, latent_student_by_hand),
    (gamma_poisson, gamma_poisson_by_hand),
    (zero_inflated, zero_inflated_by_hand),
    (mixture, mixture_by_hand),
    (mixture_of_events, mixture_of_events_by_hand),
    (mixture_of_shifts, mixture_of_shifts_by_hand),
    (half_cauchy, half_cauchy_by_hand),
    (horseshoe, horseshoe_by_hand),
]


@pytest.mark.parametrize(("model", "by_hand"), BY_HAND, ids=[m.__name__ for m, _ in BY_HAND])
def test_the_elbo_is_that_of_the_model_by_hand(model: Model, by_hand: Model) -> None:
    assert fit(augmented(model)).elbo() == pytest.approx(fit(by_hand).elbo(), abs=1e-5)


def test_a_variance_is_conjugate_by_itself_and_as_the_reciprocal_of_a_precision() -> None:
    expected = fit(variance_by_hand).elbo()
    assert fit(variance).elbo() == pytest.approx(expected, abs=1e-5)
    assert fit(augmented(variance)).elbo() == pytest.approx(expected, abs=1e-5)


# Logistic models, beside Jaakkola and Jordan's bound.


def logistic(kind: str) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2).double(), 2.0).to_event(1))
    with pyro.plate("n", 8):
        logits = INPUTS @ w
        if kind == "Bernoulli":
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=LABEL)
        elif kind == "Binomial":
            pyro.sample("y", dist.Binomial(COUNT + 2, logits=logits), obs=COUNT)
        else:
            pyro.sample("y", dist.NegativeBinomial(2.5, logits=logits), obs=COUNT)


def trials(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """a, b and log h of the density h e^{a ψ} / (1 + e^ψ)^b."""
    one = torch.ones(8).double()
    if kind == "Bernoulli":
        return LABEL, one, 0 * one
    n = COUNT + 2 if kind == "Binomial" else COUNT + 2.5
    over = COUNT + 1 if kind == "Binomial" else one * 2.5
    rest = 3 * one if kind == "Binomial" else None  # n − x + 1
    ways = (n + 1).lgamma() - over.lgamma() - rest.lgamma() if rest is not None else None
    if ways is None:
        ways = n.lgamma() - over.lgamma() - (COUNT + 1).lgamma()
    return COUNT, n, ways


def jaakkola_jordan(kind: str) -> tuple[float, Tensor, Tensor]:
    """The largest bound, by Bishop (2006), equations (10.157) to (10.164), with b observations for one."""
    a, b, ways = trials(kind)
    xi = torch.ones(8).double()
    prior = torch.eye(2).double() / 4
    for _ in range(500):
        weight = b * torch.tanh(xi / 2) / (2 * xi)  # 2 λ(ξ), b times
        precision = prior + (INPUTS.mT * weight) @ INPUTS
        mean = torch.linalg.solve(precision, INPUTS.mT @ (a - b / 2))
        covariance = torch.linalg.inv(precision)
        xi = ((INPUTS @ (covariance + torch.outer(mean, mean))) * INPUTS).sum(-1).sqrt()
    bound = 0.5 * (torch.logdet(prior) - torch.logdet(precision) + mean @ precision @ mean)
    bound = bound + (b * (torch.nn.functional.logsigmoid(xi) - xi / 2) + weight * xi**2 / 2 + ways).sum()
    return float(bound), mean, covariance


KINDS = ["Bernoulli", "Binomial", "NegativeBinomial"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_of_the_weights_is_jaakkola_and_jordans_bound(kind: str) -> None:
    guide = fit(augmented(logistic), kind)
    bound, mean, covariance = jaakkola_jordan(kind)
    assert guide.elbo() == pytest.approx(bound, abs=1e-8)
    found = guide.posterior()["w"]
    base = found.base_dist if hasattr(found, "base_dist") else found
    torch.testing.assert_close(base.mean, mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(base.covariance_matrix, covariance, atol=1e-5, rtol=1e-5)


# The original model's evidence, by quadrature.


def grid(low: float, high: float, count: int = 1201) -> np.ndarray:
    return np.linspace(low, high, count)


def integral(log_density: np.ndarray, *axes: np.ndarray) -> float:
    """The logarithm of the integral over axes of even steps."""
    return float(scipy.special.logsumexp(log_density)) + sum(math.log(axis[1] - axis[0]) for axis in axes)


def of_location(log_likelihood: Callable[[np.ndarray], np.ndarray]) -> float:
    mu = grid(-25, 25, 4001)
    return integral(scipy.stats.norm(0, 3).logpdf(mu) + log_likelihood(mu[:, None]).sum(-1), mu)


def of_rate(log_likelihood: Callable[[np.ndarray], np.ndarray]) -> float:
    log_rate = grid(-12, 5, 4001)
    prior = scipy.stats.gamma(2.0).logpdf(np.exp(log_rate)) + log_rate
    return integral(prior + log_likelihood(np.exp(log_rate)[:, None]).sum(-1), log_rate)


def evidence_of_logistic(kind: str) -> float:
    a, b, ways = (t.numpy() for t in trials(kind))
    first, second = grid(-12, 12, 401), grid(-12, 12, 401)
    logits = first[:, None, None] * INPUTS[:, 0].numpy() + second[None, :, None] * INPUTS[:, 1].numpy()
    likelihood = (a * logits - b * np.logaddexp(0, logits) + ways).sum(-1)
    prior = scipy.stats.norm(0, 2).logpdf(first)[:, None] + scipy.stats.norm(0, 2).logpdf(second)
    return integral(prior + likelihood, first, second)


def evidence_of_zero_inflated() -> float:
    gate, log_rate = grid(0.0005, 0.9995, 1000), grid(-8, 4, 601)
    poisson = scipy.stats.poisson(np.exp(log_rate)[None, :, None]).pmf(COUNT.numpy())
    zero = (COUNT.numpy() == 0) * gate[:, None, None]
    likelihood = np.log(zero + (1 - gate[:, None, None]) * poisson + 1e-300).sum(-1)
    prior = scipy.stats.beta(1, 2).logpdf(gate)[:, None] + scipy.stats.gamma(2.0).logpdf(np.exp(log_rate)) + log_rate
    return integral(prior + likelihood, gate, log_rate)


def evidence_of_half_cauchy() -> float:
    mu, log_scale = grid(-25, 25, 1001), grid(-6, 12, 1001)
    scale = np.exp(log_scale)
    likelihood = scipy.stats.norm(mu[:, None, None], scale[None, :, None]).logpdf(X.numpy()).sum(-1)
    prior = scipy.stats.norm(0, 3).logpdf(mu)[:, None] + scipy.stats.halfcauchy(scale=2).logpdf(scale) + log_scale
    return integral(prior + likelihood, mu, log_scale)


EVIDENCE: list[tuple[Model, tuple[Any, ...], Callable[[], float], float]] = [
    (student, (), lambda: of_location(lambda mu: scipy.stats.t(4.0, mu, 1.5).logpdf(X.numpy())), 0.6),
    (
        gamma_poisson,
        (),
        lambda: of_rate(lambda r: scipy.stats.nbinom(3.0, r / (1 + r)).logpmf(COUNT.numpy())),
        1.0,
    ),
    (zero_inflated, (), evidence_of_zero_inflated, 1.0),
    (half_cauchy, (), evidence_of_half_cauchy, 1.0),
    *((logistic, (kind,), lambda kind=kind: evidence_of_logistic(kind), 0.6) for kind in KINDS),
]


@pytest.mark.parametrize(
    ("model", "args", "evidence", "gap"), EVIDENCE, ids=[" ".join([m.__name__, *a]) for m, a, _, _ in EVIDENCE]
)
def test_the_elbo_is_below_the_exact_evidence_of_the_original_model(
    model: Model, args: tuple[Any, ...], evidence: Callable[[], float], gap: float
) -> None:
    below = evidence() - fit(augmented(model), *args).elbo()
    assert 0 < below < gap


# What else reads the weights.


@pytest.mark.slow
def test_gibbs_with_weights_draws_from_the_exact_posterior() -> None:
    """Polson et al. (2013), §3.1, beside a grid."""
    pyro.set_rng_seed(0)
    mcmc = Gibbs(augmented(logistic), 1500, num_chains=4, disable_progbar=True)
    mcmc.run("Bernoulli")
    first, second = grid(-12, 12, 301), grid(-12, 12, 301)
    a, b, _ = (t.numpy() for t in trials("Bernoulli"))
    logits = first[:, None, None] * INPUTS[:, 0].numpy() + second[None, :, None] * INPUTS[:, 1].numpy()
    prior = scipy.stats.norm(0, 2).logpdf(first)[:, None] + scipy.stats.norm(0, 2).logpdf(second)
    weights = scipy.special.softmax(prior + (a * logits - b * np.logaddexp(0, logits)).sum(-1))
    exact = np.array([(weights.sum(1) * first).sum(), (weights.sum(0) * second).sum()])
    spread = np.array([(weights.sum(1) * first**2).sum(), (weights.sum(0) * second**2).sum()]) - exact**2
    drawn = mcmc.get_samples()["w"]
    np.testing.assert_allclose(drawn.mean(0).numpy(), exact, atol=0.08)
    np.testing.assert_allclose(drawn.var(0).numpy(), spread, rtol=0.15)


def test_what_needs_the_density_of_a_weight_is_an_error() -> None:
    """Its density relative to another would be a wrong number in NUTS, or beside a guide of one's own."""
    changed = augmented(logistic)
    guide = AutoConjugate(changed)
    CAVI(changed, guide).run("Bernoulli")
    with pytest.raises(NotImplementedError, match=r"got PolyaGamma.*AutoConjugate\(model, reparam=True\)"):
        Trace_ELBO().loss(changed, guide, "Bernoulli")


# What else a recording holds.


def gated(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Bernoulli(logits=a + x / 4))
        pyro.sample("y", dist.Normal(3.0 * z, 1.0), obs=x)


def test_a_latent_label_by_logits_has_a_weight_too() -> None:
    """q(a) q(z, ω): the bound with z summed out by hand is below the exact evidence, and near it."""
    guide = fit(augmented(gated), X)
    a, x = grid(-8, 8)[:, None], X.numpy()
    one = -np.logaddexp(0, -(a + x / 4)) + scipy.stats.norm(3, 1).logpdf(x)
    zero = -np.logaddexp(0, a + x / 4) + scipy.stats.norm(0, 1).logpdf(x)
    exact = integral(scipy.stats.norm(0, 1).logpdf(a[:, 0]) + np.logaddexp(one, zero).sum(-1), a[:, 0])
    assert 0 < exact - guide.elbo() < 0.2


def test_hidden_and_float32_data_have_weights() -> None:
    seen = torch.tensor([True] * 6 + [False] * 2)

    def model(count: Tensor, inputs: Tensor, mask: Any) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("n", len(count)), poutine.mask(mask=mask):
            pyro.sample("y", dist.NegativeBinomial(2.5, logits=inputs @ w), obs=count)

    count = torch.where(seen, COUNT, torch.nan)
    hidden = fit(augmented(model), count, INPUTS, seen).elbo()
    whole = fit(augmented(model), COUNT[:6], INPUTS[:6], seen[:6]).elbo()
    assert hidden == pytest.approx(whole, abs=1e-9)
    single = AutoConjugate(augmented(model))
    CAVI(single.model, single).run(count.float(), INPUTS.float(), seen)
    assert single.elbo() == pytest.approx(whole, rel=1e-4)


def test_minibatches_have_weights_of_their_own() -> None:
    def model(label: Tensor, inputs: Tensor, size: int) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        with pyro.plate("n", size, subsample=label):
            pyro.sample("y", dist.Bernoulli(logits=inputs @ w), obs=label)

    changed = augmented(model)
    guide = AutoConjugate(changed)
    batches = [(LABEL[i : i + 2], INPUTS[i : i + 2]) for i in range(0, 8, 2)]
    CAVI(changed, guide, memoised=True).run_batches(batches, epochs=40, size=8)
    assert guide.posterior(*batches[0], size=8)["w"].mean.tolist() == pytest.approx(
        jaakkola_jordan("Bernoulli")[1].tolist(), abs=1e-3
    )


def test_components_of_each_datum_with_events_are_named() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("n", 8):
            parts = dist.Normal(mu + INPUTS.unsqueeze(-2) + torch.zeros(2, 1), 1.0).to_event(1)
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts), obs=INPUTS)

    with pytest.raises(NotConjugateError, match="components that the data of site 'y' share; got other ones for each"):
        fit(augmented(model))


def test_a_dirichlet_multinomial_of_several_counts_needs_data() -> None:
    with pytest.raises(NotConjugateError, match="one total_count at site 's', which has no data; got several"):
        latent(dist.DirichletMultinomial(torch.ones(20_000, 3), torch.arange(20_000)))


def test_a_random_count_of_a_weight_is_refused() -> None:
    def model() -> None:
        r = pyro.sample("r", dist.Gamma(1.0, 1.0))
        w = pyro.sample("w", dist.Normal(0.0, 2.0))
        with pyro.plate("n", 8):
            pyro.sample("y", dist.Binomial(20 + r, logits=INPUTS[:, 1] * w, validate_args=False), obs=COUNT)

    with pytest.raises(NotConjugateError, match=r"'y_weight'.*PolyaGamma"):
        fit(augmented(model))


def test_a_masked_half_cauchy_is_flat_in_itself_and_not_in_its_precision() -> None:
    """The evidence is the integral of s^−n exp(−½ Σ x² / s²) over s, and (2 π)^(−n/2)."""

    def model() -> None:
        with poutine.mask(mask=False):
            s = pyro.sample("s", dist.HalfCauchy(1.0))
        with pyro.plate("n", 8):
            pyro.sample("y", dist.Normal(0.0, s), obs=X)

    result = CAVI(model, AutoConjugate(model, reparam=True)).run()
    half = 0.5 * (len(X) - 1)
    evidence = math.lgamma(half) - half * math.log(0.5 * float((X**2).sum())) - math.log(2) - 4 * math.log(2 * math.pi)
    assert result.elbo[-1] == pytest.approx(evidence, abs=1e-7)
    assert result.augmented == ()
