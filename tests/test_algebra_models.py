"""Models in which the algebra decides: dtypes, signs, whole matrices, missing values, zeros.

Their posteriors are exact, so the ELBO is the log evidence, and so is log p(x, z) − log q(z) at every draw z of the
guide, scored by Pyro's own traces. Nothing of the recording enters the second number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from pyro_latent import CAVI, AutoConjugate, NotConjugateError

X = torch.tensor([0.5, 1.2, -0.3, 2.0], dtype=torch.float64)
PAIRS = torch.stack([X, -X], -1)
STEPS = torch.tensor([0, 1, 2, 3])
KNOWN = torch.tensor([torch.nan, 1.0, torch.nan, 2.0], dtype=torch.float64)
NORMAL, GAMMA = dist.Normal, dist.Gamma


pytestmark = pytest.mark.usefixtures("float64")


def location() -> torch.Tensor:
    return pyro.sample("m", NORMAL(0.0, 1.0))


def rate(name: str = "g") -> torch.Tensor:
    return pyro.sample(name, GAMMA(2.0, 1.0))


def observe(distribution: Callable[[], Any], data: torch.Tensor = X) -> None:
    with pyro.plate("data", len(data)):
        pyro.sample("x", distribution(), obs=data)


def integers_in_a_location() -> None:
    m = location()
    observe(lambda: NORMAL(STEPS + m + 0.5, 1.0))


def integers_in_a_rate() -> None:
    g = rate()
    observe(lambda: dist.Poisson((STEPS + 1) * g * 0.5), torch.tensor([1.0, 2.0, 0.0, 4.0]))


def integers_in_a_scale() -> None:
    g = rate()
    observe(lambda: NORMAL(0.0, ((STEPS + 1) * g).rsqrt()))


def an_integer_or_a_latent() -> None:
    m = location()
    observe(lambda: NORMAL(torch.where(STEPS > 1, 1, m) + 0.5, 1.0))


def a_doubled_location() -> None:
    m = location()
    observe(lambda: NORMAL(m + m, 0.5))


def a_diagonal_of_one() -> None:
    g = pyro.sample("g", GAMMA(torch.full((1,), 2.0), 1.0).to_event(1))
    observe(lambda: dist.MultivariateNormal(torch.zeros(1), precision_matrix=torch.diag_embed(g)), X[:, None])


def a_diagonal_of_a_stack() -> None:
    a, b = rate("a"), rate("b")
    precision = torch.diag(torch.stack([a, b]))
    observe(lambda: dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision), PAIRS)


def a_diagonal_of_choices() -> None:
    g = pyro.sample("g", GAMMA(torch.full((2,), 2.0), 1.0).to_event(1))
    precision = torch.diag(torch.where(torch.tensor([True, False]), g, 1.0))
    observe(lambda: dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision), PAIRS)


def rates_times_an_identity() -> None:
    g = pyro.sample("g", GAMMA(torch.full((2,), 2.0), 1.0).to_event(1))
    observe(lambda: dist.MultivariateNormal(torch.zeros(2), precision_matrix=g * torch.eye(2)), PAIRS)


def a_transposed_precision() -> None:
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
    observe(lambda: dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision.T), PAIRS)


def a_chosen_precision() -> None:
    one = pyro.sample("one", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
    two = pyro.sample("two", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
    precision = torch.where((STEPS > 1)[:, None, None], one, two)
    observe(lambda: dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision), PAIRS)


def two_choices_of_a_probability() -> None:
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    observe(lambda: dist.Categorical(torch.stack([1 - p, p])), torch.tensor([0, 1, 1, 0]))


def weights_and_an_empty_part() -> None:
    w = pyro.sample("w", NORMAL(torch.zeros(4), 1.0).to_event(1))
    pyro.sample("x", NORMAL(torch.cat([w, w[4:]]) + torch.ones(1).expand_as(w), 1.0).to_event(1), obs=X)


def missing_values() -> None:
    with pyro.plate("data", 4):
        m = pyro.sample("m", NORMAL(0.0, 1.0))
        pyro.sample("x", NORMAL(torch.where(KNOWN.isnan(), m, KNOWN), 1.0), obs=X)


def gated_probabilities() -> None:
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    observe(lambda: dist.Bernoulli(torch.tensor([0.0, 1.0, 1.0, 0.0]) * p), torch.tensor([0.0, 1.0, 0.0, 0.0]))


def gated_rates() -> None:
    g = rate()
    observe(lambda: dist.Poisson(torch.where(STEPS > 1, g, 0.0)), torch.tensor([0.0, 0.0, 0.0, 4.0]))


def certain_where_true() -> None:
    a = pyro.sample("a", dist.Bernoulli(0.75), infer={"enumerate": "parallel"})
    pyro.sample("b", dist.Bernoulli(1 - 0.25 * a), obs=torch.tensor(1.0))


@pytest.mark.parametrize(
    "model",
    [
        integers_in_a_location,
        integers_in_a_rate,
        integers_in_a_scale,
        an_integer_or_a_latent,
        a_doubled_location,
        a_diagonal_of_one,
        a_diagonal_of_a_stack,
        a_diagonal_of_choices,
        rates_times_an_identity,
        a_transposed_precision,
        a_chosen_precision,
        two_choices_of_a_probability,
        weights_and_an_empty_part,
        missing_values,
        gated_probabilities,
        gated_rates,
        certain_where_true,
    ],
)
def test_every_draw_of_an_exact_posterior_has_the_weight_of_the_evidence(model: Callable[[], None]) -> None:
    guide = AutoConjugate(model)
    bound = float(CAVI(model, guide).run(max_steps=200).elbo[-1])
    for _ in range(3):
        drawn = poutine.trace(guide).get_trace()
        scored = poutine.trace(poutine.replay(model, drawn)).get_trace()
        weight = float(scored.log_prob_sum() - drawn.log_prob_sum())
        assert weight == pytest.approx(bound, rel=1e-6, abs=1e-6)


def test_vectors_made_of_numbers_in_a_mixture_of_multivariate_normals() -> None:
    """The ELBO is the mean of log p(x, z) − log q(z) over draws of the guide."""

    def model() -> None:
        with pyro.plate("k", 2):
            m = pyro.sample("m", NORMAL(0.0, 1.0))
        precision = pyro.sample("precision", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            loc = m[z].unsqueeze(-1) * torch.ones(2)
            pyro.sample("x", dist.MultivariateNormal(loc, precision_matrix=precision), obs=PAIRS)

    guide = AutoConjugate(model)
    bound = float(CAVI(model, guide).run(max_steps=50).elbo[-1])
    weights = []
    torch.manual_seed(0)
    for _ in range(300):
        drawn = poutine.trace(guide).get_trace()
        scored = poutine.trace(poutine.replay(model, drawn)).get_trace()
        weights.append(float(scored.log_prob_sum() - drawn.log_prob_sum()))
    found = torch.tensor(weights)
    assert abs(float(found.mean()) - bound) < 5 * float(found.std()) / len(weights) ** 0.5


def a_corner_of_a_precision() -> None:
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(4.0), torch.eye(3)))
    observe(lambda: dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision[:2, :2]), PAIRS)


def the_root_of_a_square() -> None:
    m = location()
    observe(lambda: NORMAL(0.0, (4 * m**2).sqrt()))


def the_reciprocal_of_a_logarithm() -> None:
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    observe(lambda: NORMAL(1 / p.log(), 1.0))


def a_part_of_a_simplex() -> None:
    theta = pyro.sample("theta", dist.Dirichlet(torch.ones(3)))
    observe(lambda: dist.Categorical(theta[:1]), torch.zeros(4))


@pytest.mark.parametrize("model", [the_root_of_a_square, the_reciprocal_of_a_logarithm])
def test_what_the_algebra_cannot_carry_of_one_scalar_is_an_integral(model: Callable[[], None]) -> None:
    guide = AutoConjugate(model)
    result = CAVI(model, guide).run(max_steps=50)
    loss = SVI(
        model, guide, Adam({"lr": 0.0}), Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
    )
    assert abs(-loss.evaluate_loss() - float(result.elbo[-1])) < 0.1 + 0.01 * abs(float(result.elbo[-1]))


@pytest.mark.parametrize(
    ("model", "operation"),
    [
        (a_corner_of_a_precision, "logdet"),
        (a_part_of_a_simplex, "division of probs by their sum"),
    ],
)
def test_what_the_algebra_cannot_carry_exactly_is_refused(model: Callable[[], None], operation: str) -> None:
    with pytest.raises(NotConjugateError, match=rf"Site 'x'.*{operation}"):
        CAVI(model, AutoConjugate(model)).run(max_steps=2)
