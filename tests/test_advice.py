"""What errors advise is what helps, once; and scalars whose cdf rounds to 0 or 1 are fitted, or their data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, DataError, NotConjugateError, PyroLatentError

Y = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
DESIGN = torch.tensor([[1.0, 0.3], [1.0, -2.0], [1.0, 0.7], [1.0, 1.5]], dtype=torch.float64)
ZERO = torch.tensor(0.0, dtype=torch.float64)


def bound(model: Callable[..., Any], *args: Any, **options: Any) -> float:
    guide = AutoConjugate(model, **options)
    return CAVI(model, guide).run(*args, max_steps=300, tol=1e-10).elbo[-1].item()


def words(model: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(PyroLatentError) as caught:
        bound(model, *args, **options)
    return str(caught.value)


# Obstacles of a loop.


def loop(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    for t in range(len(y)):
        pyro.sample(f"y_{t}", dist.Bernoulli(logits=DESIGN[t] @ w), obs=y[t])


def test_an_obstacle_of_each_step_of_a_loop_is_told_once_with_their_number() -> None:
    text = words(loop, Y)
    assert "got 4 obstacles:\n1. Site 'y_0'" in text
    assert "(And 3 more like it, in which only numbers differ.)" in text
    assert "'y_1'" not in text
    assert text.endswith("Or write AutoConjugate(model, reparam=True), which adds sites for it.")


# Advice to add auxiliary sites.


def uncoupled(y: Tensor) -> None:
    precision = pyro.sample("precision", dist.Gamma(ZERO + 1, 1.0))
    place = pyro.sample("place", dist.Normal(ZERO, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(place, precision.rsqrt()), obs=y)


def half_cauchy(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfCauchy(ZERO + 1))
    place = pyro.sample("place", dist.Normal(ZERO, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(place, scale), obs=y)


@pytest.mark.parametrize(("model", "block"), [(uncoupled, ("precision", "place")), (half_cauchy, ("scale", "place"))])
def test_an_error_about_blocks_does_not_advise_auxiliary_sites(model: Any, block: tuple[str, str]) -> None:
    """The model fits without the block, with or without them; with it, in neither way."""
    assert math.isfinite(bound(model, Y))
    with pytest.raises(NotConjugateError):
        bound(model, Y, blocks=[block], reparam=True)
    assert "reparam" not in words(model, Y, blocks=[block])


# Counts whose number of trials is not told.

COUNTS = torch.tensor([[1.0, 2.0, 3.0], [0.0, 4.0, 0.0], [2.0, 2.0, 1.0]], dtype=torch.float64)


def of_counts(x: Tensor, latent: bool, **settings: Any) -> None:
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3).double())) if latent else torch.ones(3).double() / 3
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Multinomial(probs=w, **settings), obs=x)


@pytest.mark.parametrize("latent", [True, False])
def test_counts_above_the_trials_are_named_as_that(latent: bool) -> None:
    text = words(of_counts, COUNTS, latent)
    assert "Expected counts at site 'x' that add up to at most total_count=1; got 6 in a row." in text
    assert "total_count=6, or validate_args=False" in text


def test_counts_that_are_not_to_be_checked_have_the_density_of_their_own_totals() -> None:
    """Beside the evidence of a Dirichlet-multinomial, which is exact."""
    total = dist.DirichletMultinomial(torch.ones(3).double(), int(COUNTS.sum())).log_prob(COUNTS.sum(0))

    def log_ways(n: Tensor) -> Tensor:
        return (n.sum(-1) + 1).lgamma() - (n + 1).lgamma().sum(-1)

    exact = float(total - log_ways(COUNTS.sum(0)) + log_ways(COUNTS).sum())
    found = CAVI(of_counts, AutoConjugate(of_counts)).run(COUNTS, True, validate_args=False)
    assert found.elbo[-1].item() == pytest.approx(exact, abs=1e-9)


def test_counts_that_are_none_are_still_refused() -> None:
    below = torch.where(COUNTS == 4, -1.0, COUNTS)
    with pytest.raises(DataError, match="got 1 of 3 values outside"):
        CAVI(of_counts, AutoConjugate(of_counts)).run(below, True, total_count=6, validate_args=False)


# Scalars whose probability rounds to 0 or 1 before the tails of the prior end.

LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "cdf": lambda f: dist.Normal(0.0, 1.0).cdf(f),
    "erf": lambda f: 0.5 * (1 + torch.erf(f / math.sqrt(2))),
    "ndtr": torch.special.ndtr,
}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_outcomes_that_are_all_alike_are_fitted_by_quadrature(link: str, label: float) -> None:
    """The mean of Φ(f)^n over a standard normal f is 1 / (n + 1)."""

    def shared(y: Tensor) -> None:
        f = pyro.sample("f", dist.Normal(ZERO, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Bernoulli(probs=LINKS[link](f)), obs=y)

    def own(y: Tensor) -> None:
        with pyro.plate("n", len(y)):
            f = pyro.sample("f", dist.Normal(ZERO, 1.0))
            pyro.sample("y", dist.Bernoulli(probs=LINKS[link](f)), obs=y)

    alike = torch.full((4,), label).double()
    assert bound(shared, alike) == pytest.approx(-math.log(5), abs=1e-8)
    assert bound(own, alike) == pytest.approx(-4 * math.log(2), abs=1e-8)
    assert bound(own, Y) == pytest.approx(-4 * math.log(2), abs=1e-8)


@pytest.mark.parametrize("link", LINKS)
def test_a_draw_whose_probability_is_rounded_does_not_refuse_the_model(link: str) -> None:
    """A wide prior draws such ones half of the time."""

    def model(y: Tensor) -> None:
        f = pyro.sample("f", dist.Normal(ZERO, 10.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Binomial(10, probs=LINKS[link](f)), obs=10 * y)

    found = []
    for seed in range(6):
        pyro.set_rng_seed(seed)
        found.append(bound(model, Y))
    assert max(found) - min(found) < 1e-8
