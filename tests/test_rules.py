"""Rules: each is the log density of its distribution, at every point and in expectation.

Two laws, for every distribution with a rule and every argument that may be random. The recorded expression, read off
at values of the latents, is Pyro's ``log_prob`` there; and its expectation under a posterior is the Monte Carlo mean of
``log_prob``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from test_expressions import evaluate
from torch import Tensor

from pyro_latent import MissingRuleError, NotConjugateError, handlers, register_rule
from pyro_latent.distributions import NormalGamma, NormalWishart, Wishart
from pyro_latent.expressions import Expression, RandomTensor
from pyro_latent.rules import RULES, expected_log_density, random_arguments, rule_of

DRAWS = 20_000


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def spd(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    root = torch.randn(*shape[:-1], shape[-1] + 3, generator=generator, dtype=torch.float64)
    return root @ root.mT / shape[-1]


P, ROOT = spd(2, 2), torch.linalg.cholesky(spd(2, 2))
ZERO, ONE, TWO, HALF = f64(0.0)[0], f64(1.0)[0], f64(2.0)[0], f64(0.5)[0]
X = f64(0.3, -1.2, 2.0, 0.7, 1.1)
ROWS = torch.linspace(-1.5, 1.5, 10, dtype=torch.float64).reshape(5, 2).sin()
DESIGN = torch.linspace(-1, 2, 15, dtype=torch.float64).reshape(5, 3).cos()
COUNTS = f64(0, 3, 1, 7, 2)
LABELS = torch.tensor([0, 2, 1, 1, 2])
GROUPS = torch.tensor([0, 1, 1, 2, 0])
BITS = f64(0, 1, 1, 0, 1)
TALLY = f64(3, 0, 2)


@dataclass(frozen=True)
class Case:
    """A model without arguments, a posterior for each of its latents, and the distributions whose rules it tests."""

    rules: tuple[type, ...]
    model: Callable[[], None]
    posterior: Mapping[Any, Any]
    batches: bool = True

    def run(self, like: Tensor) -> None:
        """The model, with an argument that tells the dtype of its data."""
        self.model()


def normal(loc: float = 0.4, scale: float = 0.6, *shape: int) -> Any:
    return dist.Normal(torch.full(shape, loc, dtype=torch.float64) + 0.1 * torch.rand(shape).double(), f64(scale)[0])


def mvn(dim: int) -> Any:
    return dist.MultivariateNormal(torch.linspace(-0.5, 0.5, dim).double(), spd(dim, dim) / 4)


def gamma(*shape: int) -> Any:
    return dist.Gamma(torch.full(shape, 5.0).double(), 2.0 + torch.rand(shape).double())


def plain_normal() -> None:
    mu = pyro.sample("mu", dist.Normal(ZERO, TWO))
    tau = pyro.sample("tau", dist.Gamma(TWO, ONE))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=X)


def normal_of_sums() -> None:
    a = pyro.sample("a", dist.Normal(ZERO, TWO))
    b = pyro.sample("b", dist.Normal(ONE, ONE))
    c = pyro.sample("c", dist.Normal(a - b, ONE))
    tau = pyro.sample("tau", dist.Gamma(TWO, ONE))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal(a * X + 2.0 * b - c + 1.0, (0.5 * tau).rsqrt()), obs=X)


def normal_of_products() -> None:
    a = pyro.sample("a", dist.Normal(ZERO, TWO))
    b = pyro.sample("b", dist.Normal(ONE, ONE))
    tau = pyro.sample("tau", dist.Gamma(TWO, ONE))
    rate = pyro.sample("rate", dist.Gamma(TWO, TWO))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal((a + 1) * b + a, 1 / (tau * rate).sqrt()), obs=X)


def normal_of_indexed() -> None:
    with pyro.plate("groups", 3):
        mu = pyro.sample("mu", dist.Normal(ZERO, TWO))
        tau = pyro.sample("tau", dist.Gamma(TWO, ONE))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal(mu[GROUPS] + 1, tau[GROUPS] ** -0.5), obs=X)


def normal_of_contracted() -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3).double(), ONE).to_event(1))
    tau = pyro.sample("tau", dist.Gamma(TWO, ONE))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal(DESIGN @ w + 0.3, tau.rsqrt()), obs=X)


def normal_of_einsum() -> None:
    w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double()))
    b = pyro.sample("b", dist.Normal(ZERO, ONE))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal(torch.einsum("nd,d->n", DESIGN, w) - b, ONE), obs=X)


def normal_with_event() -> None:
    with pyro.plate("groups", 3):
        mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()))
    tau = pyro.sample("tau", dist.Gamma(TWO, ONE).expand([2]).to_event(1))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal(mu[GROUPS], tau.rsqrt()).to_event(1), obs=ROWS)


def normal_by_rank_one() -> None:
    """Probabilistic principal components: a product of two vectors, contracted."""
    with pyro.plate("columns", 2, dim=-1):
        w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double()))
    with pyro.plate("rows", 5, dim=-2):
        z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double()))
    with pyro.plate("rows_", 5, dim=-2), pyro.plate("columns_", 2, dim=-1):
        pyro.sample("x", dist.Normal((z * w).sum(-1), ONE), obs=ROWS)


def normal_hierarchy() -> None:
    top = pyro.sample("top", dist.Normal(ZERO, TWO))
    spread = pyro.sample("spread", dist.Gamma(TWO, ONE))
    with pyro.plate("groups", 3):
        mu = pyro.sample("mu", dist.Normal(top, spread.rsqrt()))
        tau = pyro.sample("tau", dist.Gamma(TWO, spread))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal(mu[GROUPS], tau[GROUPS].rsqrt()), obs=X)


def normal_joint() -> None:
    tau = pyro.sample("tau", dist.Gamma(TWO, ONE))
    mu = pyro.sample("mu", dist.Normal(ONE, (0.1 * tau).rsqrt()))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=X)


def mvn_by_precision() -> None:
    precision = pyro.sample("precision", dist.Wishart(f64(5.0)[0], P))
    mean = pyro.sample("mean", dist.MultivariateNormal(torch.zeros(2).double(), precision_matrix=P))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.MultivariateNormal(mean, precision_matrix=precision), obs=ROWS)


def mvn_by_scaled_precision() -> None:
    with pyro.plate("groups", 3):
        precision = pyro.sample("precision", dist.Wishart(f64(5.0)[0], covariance_matrix=P))
        mean = pyro.sample("mean", dist.MultivariateNormal(torch.ones(2).double(), precision_matrix=0.3 * precision))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.MultivariateNormal(mean[GROUPS], precision_matrix=precision[GROUPS]), obs=ROWS)


def mvn_by_inverse() -> None:
    precision = pyro.sample("precision", dist.Wishart(f64(5.0)[0], precision_matrix=P))
    mean = pyro.sample("mean", dist.MultivariateNormal(torch.zeros(2).double(), scale_tril=torch.eye(2).double()))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.MultivariateNormal(mean, covariance_matrix=torch.inverse(precision)), obs=ROWS)


def mvn_by_cholesky() -> None:
    precision = pyro.sample("precision", dist.Wishart(f64(5.0)[0], scale_tril=ROOT))
    with pyro.plate("data", 5):
        tril = torch.linalg.cholesky(torch.linalg.inv(precision))
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2).double(), scale_tril=tril), obs=ROWS)


def mvn_random_scale() -> None:
    """One precision for every covariance: a scaled constant matrix, in each form."""
    tau = pyro.sample("tau", dist.Gamma(TWO, ONE))
    mean = pyro.sample("mean", dist.MultivariateNormal(torch.zeros(2).double(), P))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.MultivariateNormal(mean, precision_matrix=tau * P), obs=ROWS)
        pyro.sample("y", dist.MultivariateNormal(mean, covariance_matrix=P / tau), obs=ROWS)
        pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=ROOT), obs=ROWS)


def mvn_diagonal() -> None:
    tau = pyro.sample("tau", dist.Gamma(TWO, ONE).expand([2]).to_event(1))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.MultivariateNormal(f64(0.1, 0.2), precision_matrix=torch.diag_embed(tau)), obs=ROWS)


def mvn_of_contracted() -> None:
    w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double()))
    with pyro.plate("data", 5):
        loc = (DESIGN @ w).unsqueeze(-1) * f64(1.0, -2.0) + w[:2]
        pyro.sample("x", dist.MultivariateNormal(loc, precision_matrix=P), obs=ROWS)


def gamma_rates() -> None:
    rate = pyro.sample("rate", dist.Gamma(TWO, ONE))
    scale = pyro.sample("scale", dist.Gamma(TWO, 3.0 * rate))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Gamma(HALF, 2 * rate * scale), obs=X.abs())
        pyro.sample("y", dist.Poisson(rate * scale * 2.0), obs=COUNTS)
        pyro.sample("z", dist.Exponential(rate * scale), obs=X.abs())


def poisson_rates() -> None:
    with pyro.plate("groups", 3):
        rate = pyro.sample("rate", dist.Gamma(TWO, ONE))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Poisson(rate[GROUPS] * X.abs()), obs=COUNTS)


def poisson_of_sums() -> None:
    """Only the sum of rates enters where nothing was counted."""
    a = pyro.sample("a", dist.Gamma(TWO, ONE))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Poisson(a).expand([5]), obs=COUNTS)


def binomial_probs() -> None:
    p = pyro.sample("p", dist.Beta(TWO, ONE))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Binomial(9, probs=p).expand([5]), obs=COUNTS)


def bernoulli_probs() -> None:
    with pyro.plate("groups", 3):
        p = pyro.sample("p", dist.Beta(TWO, HALF))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Bernoulli(p[GROUPS]), obs=BITS)
        pyro.sample("y", dist.Bernoulli(probs=1 - p[GROUPS]), obs=BITS)


def bernoulli_event() -> None:
    p = pyro.sample("p", dist.Beta(torch.ones(2).double(), TWO).to_event(1))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Bernoulli(p).to_event(1), obs=(ROWS > 0).double())


def categorical_probs() -> None:
    theta = pyro.sample("theta", dist.Dirichlet(f64(1.0, 2.0, 3.0)))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Categorical(theta), obs=LABELS)
        pyro.sample("y", dist.OneHotCategorical(theta), obs=torch.nn.functional.one_hot(LABELS, 3).double())


def categorical_indexed() -> None:
    with pyro.plate("groups", 3):
        theta = pyro.sample("theta", dist.Dirichlet(f64(1.0, 2.0, 3.0)))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Categorical(theta[GROUPS]), obs=LABELS)
        pyro.sample("y", dist.Categorical(probs=theta[GROUPS, :]), obs=LABELS)


def multinomial_probs() -> None:
    theta = pyro.sample("theta", dist.Dirichlet(f64(1.0, 2.0, 3.0)))
    with pyro.plate("data", 2):
        pyro.sample("x", dist.Multinomial(5, theta), obs=torch.stack([TALLY, TALLY.flip(0)]))


def wishart_inverse_scale() -> None:
    tau = pyro.sample("tau", dist.Gamma(f64(6.0)[0], ONE))
    precision = pyro.sample("precision", dist.Wishart(f64(5.0)[0], precision_matrix=tau * P))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.MultivariateNormal(f64(0.0, 0.0), precision_matrix=precision), obs=ROWS)


def factors() -> None:
    mu = pyro.sample("mu", dist.Normal(ZERO, ONE))
    tau = pyro.sample("tau", dist.Gamma(TWO, ONE))
    pyro.factor("penalty", -0.5 * tau * (mu - 1) ** 2 + 2 * tau.log() - 3.0)
    with pyro.plate("data", 5):
        pyro.factor("likelihood", dist.Normal(mu, tau.rsqrt()).log_prob(X))


def scaled_and_masked() -> None:
    """Scale and mask weigh a site; its own density is that of the distribution."""
    mu = pyro.sample("mu", dist.Normal(ZERO, TWO))
    with pyro.plate("data", 5), poutine.scale(scale=3.0):
        pyro.sample("x", dist.Normal(mu, ONE).mask(BITS.bool()), obs=X)


POSITIVE = f64(0.3, 1.2, 2.0, 0.7, 1.1)


def positive_data() -> None:
    tau = pyro.sample("tau", dist.Gamma(TWO, ONE))
    chi = pyro.sample("chi", dist.Chi2(f64(3.0)[0]))
    with pyro.plate("data", 5):
        pyro.sample("inverse_gamma", dist.InverseGamma(TWO, tau), obs=POSITIVE)
        pyro.sample("half_normal", dist.HalfNormal((tau * chi).rsqrt()), obs=POSITIVE)
        pyro.sample("laplace", dist.Laplace(ONE, 1 / tau), obs=POSITIVE)
        pyro.sample("pareto", dist.Pareto(0.2 * ONE, tau), obs=POSITIVE)
        pyro.sample("weibull", dist.Weibull((2.0 * tau) ** (-1 / 1.5), 1.5), obs=POSITIVE)


def variances() -> None:
    variance = pyro.sample("variance", dist.InverseGamma(f64(3.0)[0], TWO))
    mu = pyro.sample("mu", dist.Normal(ZERO, variance**0.5))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal(mu, variance.sqrt()), obs=X)


def trials() -> None:
    u = pyro.sample("u", dist.Uniform(ZERO, ONE))
    with pyro.plate("data", 5):
        pyro.sample("negative_binomial", dist.NegativeBinomial(f64(3.0)[0], u), obs=COUNTS)
        pyro.sample("geometric", dist.Geometric(u), obs=COUNTS)
        pyro.sample("by_logits", dist.Geometric(logits=torch.logit(u)), obs=COUNTS)
        pyro.sample("by_log_odds", dist.Bernoulli(logits=(1 - u).log() - u.log()), obs=BITS)


def shares_of_two() -> None:
    shares = pyro.sample("shares", dist.Dirichlet(f64(1.0, 2.0)))
    with pyro.plate("data", 5):
        pyro.sample("one", dist.Bernoulli(shares[1]), obs=BITS)
        pyro.sample("each", dist.Bernoulli(shares[LABELS % 2]), obs=BITS)
        pyro.sample("by_logits", dist.Categorical(logits=shares.log()), obs=LABELS % 2)
    pyro.sample("both", dist.Bernoulli(shares).to_event(1), obs=BITS[:2])


def low_rank() -> None:
    mean = pyro.sample("mean", dist.LowRankMultivariateNormal(f64(0.0, 1.0), ROWS[:2], f64(1.0, 2.0)))
    with pyro.plate("data", 5):
        pyro.sample("rows", dist.LowRankMultivariateNormal(mean, ROOT, f64(1.0, 2.0)), obs=ROWS)


def with_holes() -> None:
    holes = torch.where(ROWS > 0.6, torch.nan, ROWS)  # in one row one element, in another both
    tau, mean = pyro.sample("tau", dist.Gamma(TWO, ONE)), pyro.sample("mean", dist.Normal(f64(0.0, 1.0), 1).to_event(1))
    with pyro.plate("data", 5):
        pyro.sample("rows", dist.NanMaskedMultivariateNormal(mean, P), obs=holes)
        pyro.sample("x", dist.NanMaskedNormal(0.0, tau.rsqrt()), obs=holes[:, 0])


def scaled_factor() -> None:
    tau = pyro.sample("tau", dist.Gamma(TWO, ONE))
    with pyro.plate("data", 5):
        pyro.sample("rows", dist.MultivariateNormal(f64(0.0, 1.0), scale_tril=ROOT * tau.rsqrt()), obs=ROWS)


CASES = {
    "normal": Case((dist.Normal,), plain_normal, {"mu": normal(), "tau": gamma()}),
    "normal of sums": Case(
        (dist.Normal,), normal_of_sums, {"a": normal(), "b": normal(-0.3), "c": normal(1.0), "tau": gamma()}
    ),
    "normal of products": Case(
        (dist.Normal,), normal_of_products, {"a": normal(), "b": normal(-0.3), "tau": gamma(), "rate": gamma()}
    ),
    "normal of indexed": Case((dist.Normal,), normal_of_indexed, {"mu": normal(0.2, 0.5, 3), "tau": gamma(3)}),
    "normal of contracted": Case((dist.Normal,), normal_of_contracted, {"w": mvn(3), "tau": gamma()}),
    "normal of einsum": Case((dist.Normal,), normal_of_einsum, {"w": mvn(3), "b": normal()}),
    "normal with event": Case(
        (dist.Normal,), normal_with_event, {"mu": mvn(2).expand([3]), "tau": gamma(2).to_event(1)}
    ),
    "normal by rank one": Case(
        (dist.Normal,), normal_by_rank_one, {"w": mvn(3).expand([2]), "z": mvn(3).expand([5, 1])}
    ),
    "normal hierarchy": Case(
        (dist.Normal, dist.Gamma),
        normal_hierarchy,
        {"top": normal(), "spread": gamma(), "mu": normal(0.2, 0.5, 3), "tau": gamma(3)},
    ),
    "normal, joint": Case(
        (dist.Normal,), normal_joint, {("mu", "tau"): NormalGamma(f64(0.7)[0], TWO, f64(4.0)[0], f64(3.0)[0])}
    ),
    "mvn by precision": Case(
        (dist.MultivariateNormal, dist.Wishart),
        mvn_by_precision,
        {"precision": Wishart(f64(7.0)[0], spd(2, 2) / 7), "mean": mvn(2)},
    ),
    "mvn by scaled precision": Case(
        (dist.MultivariateNormal, dist.Wishart),
        mvn_by_scaled_precision,
        {"precision": Wishart(f64(7.0, 6.0, 8.0), spd(3, 2, 2) / 7), "mean": mvn(2).expand([3])},
    ),
    "mvn by inverse": Case(
        (dist.MultivariateNormal, dist.Wishart),
        mvn_by_inverse,
        {"precision": Wishart(f64(7.0)[0], spd(2, 2) / 7), "mean": mvn(2)},
    ),
    "mvn by Cholesky factor": Case(
        (dist.MultivariateNormal, dist.Wishart), mvn_by_cholesky, {"precision": Wishart(f64(7.0)[0], spd(2, 2) / 7)}
    ),
    "mvn of random scale": Case((dist.MultivariateNormal,), mvn_random_scale, {"tau": gamma(), "mean": mvn(2)}),
    "mvn, diagonal": Case((dist.MultivariateNormal,), mvn_diagonal, {"tau": gamma(2).to_event(1)}),
    "mvn of contracted": Case((dist.MultivariateNormal,), mvn_of_contracted, {"w": mvn(3)}),
    "mvn, joint": Case(
        (dist.MultivariateNormal, dist.Wishart),
        mvn_by_scaled_precision,
        {("mean", "precision"): NormalWishart(ROWS[:3], f64(2.0, 1.5, 1.0), f64(7.0, 6.0, 8.0), spd(3, 2, 2) / 7)},
    ),
    "gamma rates": Case((dist.Gamma, dist.Poisson, dist.Exponential), gamma_rates, {"rate": gamma(), "scale": gamma()}),
    "poisson rates": Case((dist.Poisson,), poisson_rates, {"rate": gamma(3)}),
    "poisson, expanded": Case((dist.Poisson,), poisson_of_sums, {"a": gamma()}),
    "binomial": Case((dist.Binomial, dist.Beta), binomial_probs, {"p": dist.Beta(TWO, ONE)}),
    "bernoulli": Case(
        (dist.Bernoulli, dist.Beta), bernoulli_probs, {"p": dist.Beta(f64(2.0, 3.0, 1.5), f64(2.0, 1.0, 2.5))}
    ),
    "bernoulli event": Case(
        (dist.Bernoulli, dist.Beta), bernoulli_event, {"p": dist.Beta(f64(2.0, 3.0), f64(2.0, 1.0)).to_event(1)}
    ),
    "categorical": Case(
        (dist.Categorical, dist.OneHotCategorical, dist.Dirichlet),
        categorical_probs,
        {"theta": dist.Dirichlet(f64(2.0, 4.0, 3.0))},
    ),
    "categorical indexed": Case(
        (dist.Categorical, dist.Dirichlet),
        categorical_indexed,
        {"theta": dist.Dirichlet(f64(2.0, 4.0, 3.0) + torch.arange(3).double().unsqueeze(1))},
    ),
    "multinomial": Case(
        (dist.Multinomial, dist.Dirichlet),
        multinomial_probs,
        {"theta": dist.Dirichlet(f64(2.0, 4.0, 3.0))},
        batches=False,
    ),
    "wishart inverse scale": Case(
        (dist.Wishart,), wishart_inverse_scale, {"tau": gamma(), "precision": Wishart(f64(7.0)[0], spd(2, 2) / 7)}
    ),
    "positive data": Case(
        (dist.InverseGamma, dist.HalfNormal, dist.Laplace, dist.Pareto, dist.Weibull, dist.Chi2),
        positive_data,
        {"tau": gamma(), "chi": gamma()},
    ),
    "variances": Case(
        (dist.InverseGamma,),
        variances,
        {"variance": dist.InverseGamma(f64(7.0)[0], TWO), "mu": normal()},
    ),
    "trials": Case(
        (dist.Uniform, dist.NegativeBinomial, dist.Geometric), trials, {"u": dist.Beta(f64(3.0)[0], f64(4.0)[0])}
    ),
    "shares of two": Case((dist.Bernoulli,), shares_of_two, {"shares": dist.Dirichlet(f64(3.0, 4.0))}, batches=False),
    "low rank": Case((dist.LowRankMultivariateNormal,), low_rank, {"mean": mvn(2)}),
    "NaN": Case(
        (dist.NanMaskedNormal, dist.NanMaskedMultivariateNormal),
        with_holes,
        {"tau": gamma(), "mean": mvn(2)},
        batches=False,
    ),
    "scaled factor": Case((dist.MultivariateNormal,), scaled_factor, {"tau": gamma()}),
    "factors": Case((dist.Unit,), factors, {"mu": normal(), "tau": gamma()}),
    "scaled and masked": Case((dist.Normal,), scaled_and_masked, {"mu": normal()}),
}


def draw(posterior: Mapping[Any, Any], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Draws by site, of blocks too, in the order (mean, precision)."""
    found: dict[str, Tensor] = {}
    for key, distribution in posterior.items():
        value = distribution.sample(shape)
        found |= dict(zip(key, value, strict=True)) if isinstance(key, tuple) else {key: value}
    return found


def log_densities(model: Callable[[], None], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pyro's own log density of every site, before scales and masks."""
    trace = poutine.trace(poutine.condition(model, values)).get_trace()
    found = {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site):
            fn: Any = site["fn"]
            while isinstance(fn, dist.MaskedDistribution):
                fn = fn.base_dist
            found[name] = fn.log_prob(site["value"])
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_density_is_log_prob_at_every_point(name: str) -> None:
    case = CASES[name]
    values = draw(case.posterior, ())
    recording = handlers.record(case.run, X, origins={})
    expected = log_densities(case.model, values)
    assert set(recording.scored) == set(expected)
    for site, scored in recording.scored.items():
        assert scored.error is None
        assert scored.density is not None
        found = evaluate(scored.density, values).expand(scored.shape)
        torch.testing.assert_close(found, expected[site].expand(scored.shape), rtol=1e-10, atol=1e-10)


def _sampled(case: Case, draws: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    if case.batches:
        with pyro.validation_enabled(False):
            found: dict[str, Tensor] = torch.func.vmap(lambda values: log_densities(case.model, values))(draws)
        return found
    each = [log_densities(case.model, {n: v[i] for n, v in draws.items()}) for i in range(count)]
    return {site: torch.stack([e[site] for e in each]) for site in each[0]}


@pytest.mark.parametrize("name", CASES)
def test_the_expected_log_density_is_the_mean_of_log_prob_over_draws(name: str) -> None:
    case = CASES[name]
    count = DRAWS if case.batches else DRAWS // 20
    draws = draw(case.posterior, (count,))
    sampled = _sampled(case, draws, count)
    expected = handlers.expected_log_factors(case.run, case.posterior, X)
    assert set(expected) == set(sampled)
    for site, value in expected.items():
        per_draw = sampled[site].expand(count, *value.shape)
        error = per_draw.std(0) / count**0.5
        assert bool(((per_draw.mean(0) - value).abs() <= 5 * error + 1e-9).all()), (
            site,
            per_draw.mean(0),
            value,
            error,
        )


def test_every_rule_has_a_case() -> None:
    covered = {rule for case in CASES.values() for rule in case.rules}
    own = {cls for cls in RULES if cls.__module__.startswith("pyro.") or cls.__module__.startswith("torch.")}
    assert own <= covered


CONSTANT: dict[str, tuple[Any, Tensor]] = {
    "Normal": (dist.Normal(f64(0.1, 2.0), f64(0.5, 3.0)), f64(0.3, -4.0)),
    "Normal of two events": (dist.Normal(ROWS, ONE).to_event(2), ROWS.flip(0)),
    "MultivariateNormal by covariance": (dist.MultivariateNormal(f64(0.1, 2.0), spd(2, 2)), ROWS[:1]),
    "MultivariateNormal by precision": (dist.MultivariateNormal(f64(0.1, 2.0), precision_matrix=spd(2, 2)), ROWS[1:2]),
    "MultivariateNormal by factor": (
        dist.MultivariateNormal(f64(0.1, 2.0), scale_tril=torch.linalg.cholesky(spd(2, 2))),
        ROWS[2:3],
    ),
    "MultivariateNormal, batched": (dist.MultivariateNormal(ROWS, spd(5, 2, 2)), ROWS.flip(0)),
    "Gamma": (dist.Gamma(f64(0.5, 3.0), f64(2.0, 0.1)), f64(0.3, 4.0)),
    "Beta": (dist.Beta(f64(0.5, 3.0), f64(2.0, 0.1)), f64(0.3, 0.9)),
    "Dirichlet": (dist.Dirichlet(f64(0.5, 3.0, 1.0)), f64(0.2, 0.5, 0.3)),
    "Bernoulli by probs": (dist.Bernoulli(probs=f64(0.2, 0.7)), f64(1.0, 0.0)),
    "Bernoulli by logits": (dist.Bernoulli(logits=f64(-20.0, 0.7)), f64(1.0, 0.0)),
    "Categorical by probs": (dist.Categorical(probs=f64(1.0, 2.0, 5.0)), LABELS[:1]),
    "Categorical by logits": (dist.Categorical(logits=f64(1.0, -2.0, 5.0)), LABELS[1:2]),
    "Categorical, batched": (dist.Categorical(logits=DESIGN), LABELS),
    "OneHotCategorical": (dist.OneHotCategorical(probs=f64(1.0, 2.0, 5.0)), f64(0.0, 0.0, 1.0)),
    "OneHotCategorical by logits": (dist.OneHotCategorical(logits=f64(1.0, 2.0, 5.0)), f64(0.0, 1.0, 0.0)),
    "Multinomial": (dist.Multinomial(5, probs=f64(1.0, 2.0, 5.0)), TALLY),
    "Multinomial by logits": (dist.Multinomial(5, logits=f64(1.0, 2.0, 5.0)), TALLY),
    "Binomial": (dist.Binomial(f64(5.0, 9.0), probs=f64(0.3, 0.6)), f64(0.0, 9.0)),
    "Binomial by logits": (dist.Binomial(9, logits=f64(0.3, -0.6)), f64(0.0, 9.0)),
    "Poisson": (dist.Poisson(f64(0.3, 4.0)), f64(0.0, 9.0)),
    "Wishart by covariance": (dist.Wishart(f64(4.0)[0], spd(2, 2)), spd(1, 2, 2)[0]),
    "Wishart by precision": (dist.Wishart(f64(4.0)[0], precision_matrix=spd(2, 2)), spd(1, 2, 2)[0]),
    "Wishart by factor": (dist.Wishart(f64(4.0)[0], scale_tril=torch.linalg.cholesky(spd(2, 2))), spd(1, 2, 2)[0]),
    "expanded": (dist.Normal(ZERO, ONE).expand([5]), X),
    "expanded event": (dist.Gamma(TWO, ONE).expand([2]).to_event(1), f64(0.1, 4.0)),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_without_random_arguments_it_is_log_prob(name: str) -> None:
    distribution, value = CONSTANT[name]

    def model() -> None:
        pyro.sample("unrelated", dist.Normal(ZERO, ONE))
        shape = torch.broadcast_shapes(
            distribution.batch_shape, value.shape[: value.ndim - len(distribution.event_shape)]
        )
        if shape:
            with pyro.plate("data", shape[-1]):
                pyro.sample("x", distribution, obs=value)
        else:
            pyro.sample("x", distribution, obs=value)

    found = handlers.expected_log_factors(lambda like: model(), {"unrelated": normal()}, X)["x"]
    torch.testing.assert_close(found, distribution.log_prob(value).double(), rtol=1e-11, atol=1e-12)


def test_data_may_be_closed_over_in_float64() -> None:
    """A model without arguments takes its dtype from its priors and its data."""
    for name in ("normal of contracted", "categorical"):
        case = CASES[name]
        found = handlers.expected_log_factors(case.model, case.posterior)
        expected = handlers.expected_log_factors(case.run, case.posterior, X)
        for site in expected:
            torch.testing.assert_close(found[site], expected[site])


def test_expected_factors_over_discrete_sites_have_their_enumeration_in_front() -> None:
    def model() -> None:
        theta = pyro.sample("theta", dist.Dirichlet(f64(1.0, 2.0, 3.0)))
        with pyro.plate("groups", 3):
            mu = pyro.sample("mu", dist.Normal(ZERO, ONE))
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.Categorical(theta))
            pyro.sample("x", dist.Normal(mu[z], ONE), obs=X)

    theta, mu = dist.Dirichlet(f64(2.0, 4.0, 3.0)), dist.Normal(f64(-1.0, 0.0, 2.0), f64(0.1, 0.2, 0.3))
    found = handlers.expected_log_factors(model, {"theta": theta, "mu": mu})
    log_theta = torch.digamma(theta.concentration) - torch.digamma(theta.concentration.sum())
    torch.testing.assert_close(found["z"], log_theta.unsqueeze(1).expand(3, 5))
    squared = (X - mu.loc.unsqueeze(1)) ** 2 + mu.variance.unsqueeze(1)
    torch.testing.assert_close(found["x"], -0.5 * (squared + torch.log(2 * torch.pi * ONE)))


# The catalogue.


def test_a_subclass_uses_the_rule_of_its_base() -> None:
    class Special(dist.Normal):
        pass

    assert rule_of(Special) is RULES[dist.Normal]


def test_a_missing_rule_says_what_to_write_and_which_exist() -> None:
    with pytest.raises(
        MissingRuleError, match=r"got LogNormal.*register_rule\(LogNormal, lambda.*exist: .*Gamma.*Wishart"
    ):
        rule_of(dist.LogNormal)
    assert issubclass(MissingRuleError, NotConjugateError)


def test_register_rule_says_what_it_expected() -> None:
    with pytest.raises(
        TypeError, match=r"Expected a distribution class such as pyro.distributions.Normal; got 'Normal'"
    ):
        register_rule("Normal", lambda arguments, value: value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Expected a rule of two arguments, rule\(arguments, value\); got"):
        register_rule(dist.Gumbel, lambda value: value)  # type: ignore[arg-type, misc]
    with pytest.raises(TypeError, match=r"Expected a rule of two arguments"):
        register_rule(dist.Gumbel, 3)  # type: ignore[arg-type]
    assert dist.Gumbel not in RULES


def test_a_registered_rule_is_used_by_a_model() -> None:
    """The Rayleigh distribution, through its density in the precision of the plane."""

    class Rayleigh(dist.TorchDistribution):
        arg_constraints = {"precision": dist.constraints.positive}
        support = dist.constraints.positive

        def __init__(self, precision: Tensor, validate_args: bool | None = None) -> None:
            self.precision = precision
            super().__init__(precision.shape, validate_args=validate_args)

        def log_prob(self, value: Tensor) -> Tensor:
            return self.precision.log() + value.log() - self.precision * value**2 / 2

    register_rule(Rayleigh, lambda a, x: a["precision"].log() + x.log() - 0.5 * a["precision"] * x**2)

    def model() -> None:
        tau = pyro.sample("tau", dist.Gamma(TWO, ONE))
        with pyro.plate("data", 5):
            pyro.sample("x", Rayleigh(tau), obs=X.abs())

    tau = dist.Gamma(f64(4.0)[0], f64(3.0)[0])
    found = handlers.expected_log_factors(model, {"tau": tau})["x"]
    log_tau = torch.digamma(tau.concentration) - tau.rate.log()
    torch.testing.assert_close(found, log_tau + X.abs().log() - tau.mean * X**2 / 2)


@pytest.mark.parametrize(
    ("distribution", "value", "expected"),
    [
        (dist.Bernoulli(ZERO), 0.0, 0.0),
        (dist.Bernoulli(ZERO), 1.0, -torch.inf),
        (dist.Bernoulli(ONE), 1.0, 0.0),
        (dist.Bernoulli(ONE), 0.0, -torch.inf),
        (dist.Binomial(TWO, ZERO), 0.0, 0.0),
        (dist.Binomial(TWO, ONE), 1.0, -torch.inf),
        (dist.Poisson(ZERO), 0.0, 0.0),
        (dist.Poisson(ZERO), 2.0, -torch.inf),
        (dist.Categorical(f64(0.0, 1.0)), 1, 0.0),
        (dist.Categorical(f64(0.0, 1.0)), 0, -torch.inf),
        (dist.OneHotCategorical(f64(0.0, 1.0)), [0.0, 1.0], 0.0),
        (dist.Multinomial(2, f64(0.0, 1.0)), [0.0, 2.0], 0.0),
        (dist.Multinomial(2, f64(0.0, 1.0)), [1.0, 1.0], -torch.inf),
        (dist.Dirichlet(f64(1.0, 1.0)), [0.0, 1.0], 0.0),
        (dist.Beta(ONE, ONE), 1.0, 0.0),
        (dist.Gamma(ONE, ONE), 0.0, 0.0),
    ],
    ids=str,
)
def test_zero_times_the_logarithm_of_zero_is_zero(distribution: Any, value: Any, expected: float) -> None:
    """And what the distribution finds impossible has a log density of minus infinity, never NaN."""
    data = torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float | list) else torch.long)
    density = expected_log_density(distribution, data, X).value()
    torch.testing.assert_close(density, f64(expected)[0], rtol=0, atol=1e-12)


def test_a_gated_probability_keeps_its_density_where_the_gate_is_shut() -> None:
    """Bernoulli(z p) for constant gates z, at every pair of a gate and a value."""
    gates, values = f64(0.0, 0.0, 1.0, 1.0), f64(0.0, 1.0, 0.0, 1.0)
    p = RandomTensor(HALF, Expression.latent("p", HALF, nonnegative=True))
    for gated in (gates * p, torch.where(gates > 0, p, 0.0)):
        with random_arguments():
            found = expected_log_density(dist.Bernoulli(gated), values, X).evaluate({"p": f64(0.3)[0]})
        torch.testing.assert_close(found, f64(1.0, 0.0, 0.7, 0.3).log())


def test_a_scale_whose_support_does_not_say_that_it_is_positive_has_a_density() -> None:
    """A parameter without a constraint beside a latent location: where the density exists, the scale is positive."""
    symbols = {name: RandomTensor(HALF, Expression.latent(name, HALF)) for name in ("m", "s")}
    with random_arguments():
        found = expected_log_density(dist.Normal(symbols["m"], symbols["s"]), X, X)
    torch.testing.assert_close(found.evaluate({"m": ONE, "s": TWO}), dist.Normal(ONE, TWO).log_prob(X))
