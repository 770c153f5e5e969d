"""Weights of broken sticks, as models of Dirichlet processes write them: exact posteriors and evidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, NotConjugateError
from pyro_latent.expressions import Expression, RandomTensor

Weights = Callable[[Tensor], Tensor]


def padded(v: Tensor) -> Tensor:
    """As Pyro's tutorial writes them."""
    return F.pad(v, (0, 1), value=1) * F.pad((1 - v).cumprod(-1), (1, 0), value=1)


def joined(v: Tensor) -> Tensor:
    one = v.new_ones(*v.shape[:-1], 1)
    rest = torch.cat([one, torch.cumprod(1 - v, dim=-1)], -1)
    return torch.cat([v, one], -1) * rest


def sliced(v: Tensor) -> Tensor:
    rest = (1.0 - v).cumprod(-1)
    first = v[..., :1]
    return torch.cat([first, v[..., 1:] * rest[..., :-1], rest[..., -1:]], -1)


def by_logarithms(v: Tensor) -> Tensor:
    rest = F.pad(torch.cumsum(torch.log(1 - v), -1), (1, 0), value=0.0)
    return torch.exp(rest + F.pad(v, (0, 1), value=1.0).log())


pytestmark = pytest.mark.usefixtures("float64")


WRITTEN = [padded, joined, sliced, by_logarithms]


@pytest.mark.parametrize("size", [2, 5, 12, 40])
@pytest.mark.parametrize("weights", WRITTEN)
def test_posterior_and_evidence_are_those_of_beta_counts(weights: Weights, size: int) -> None:
    counts = torch.arange(size) * 7 % 5
    label = torch.arange(size).repeat_interleave(counts)
    a, b = counts.new_tensor(1.0, dtype=torch.float64), counts.new_tensor(1.5, dtype=torch.float64)

    def model(label: Tensor) -> None:
        with pyro.plate("sticks", size - 1):
            v = pyro.sample("v", dist.Beta(a, b))
        with pyro.plate("data", len(label)):
            pyro.sample("label", dist.Categorical(weights(v)), obs=label)

    guide = AutoConjugate(model)
    elbo = CAVI(model, guide).run(label).elbo
    after = counts.flip(0).cumsum(0).flip(0)[1:]

    def log_beta(x: Tensor, y: Tensor) -> Tensor:
        return torch.lgamma(x) + torch.lgamma(y) - torch.lgamma(x + y)

    evidence = (log_beta(a + counts[:-1], b + after) - log_beta(a, b)).sum()
    assert float(elbo[-1]) == pytest.approx(float(evidence), rel=1e-11)
    q = guide.posterior()["v"]
    torch.testing.assert_close(q.mean, (a + counts[:-1]) / (a + b + counts[:-1] + after))


def test_a_dirichlet_process_mixture_as_in_the_tutorial() -> None:
    pyro.set_rng_seed(0)
    centers = torch.tensor([-6.0, 0.0, 6.0]).repeat_interleave(30).double()
    x = centers + torch.randn(90).double()

    def model(x: Tensor) -> None:
        with pyro.plate("sticks", 9):
            v = pyro.sample("v", dist.Beta(x.new_tensor(1.0), 1.0))
        with pyro.plate("components", 10):
            mu = pyro.sample("mu", dist.Normal(x.new_tensor(0.0), 5.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(padded(v)))
            pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    guide = AutoConjugate(model, restarts=3)
    result = CAVI(model, guide).run(x)
    estimates = torch.tensor([-Trace_ELBO().loss(model, guide, x) for _ in range(300)])
    assert float(estimates.mean()) == pytest.approx(float(result.elbo[-1]), abs=5 * float(estimates.std()) / 300**0.5)
    probs = guide.posterior()["z"].probs
    assert int((probs.sum(0) > 5).sum()) == 3


def test_groups_of_sticks() -> None:
    counts = torch.tensor([[3, 0, 2, 4], [1, 5, 0, 2]])
    label = torch.stack([torch.arange(4).repeat_interleave(c)[:8] for c in counts])

    def model(label: Tensor) -> None:
        with pyro.plate("groups", 2, dim=-2), pyro.plate("sticks", 3, dim=-1):
            v = pyro.sample("v", dist.Beta(torch.tensor(1.0), torch.tensor(1.5)))
        with pyro.plate("groups", 2, dim=-2), pyro.plate("data", 8, dim=-1):
            pyro.sample("label", dist.Categorical(padded(v).unsqueeze(-2)), obs=label)

    guide = AutoConjugate(model)
    CAVI(model, guide).run(label)
    seen = torch.stack([torch.bincount(row, minlength=4) for row in label])
    after = seen.flip(1).cumsum(1).flip(1)[:, 1:]
    torch.testing.assert_close(guide.posterior()["v"].mean, (1 + seen[:, :-1]) / (2.5 + seen[:, :-1] + after))


def test_weights_that_do_not_sum_to_one_are_refused() -> None:
    def model(label: Tensor) -> None:
        with pyro.plate("sticks", 3):
            v = pyro.sample("v", dist.Beta(torch.tensor(1.0), torch.tensor(1.5)))
        with pyro.plate("data", len(label)):
            pyro.sample("label", dist.Categorical((1 - v).cumprod(-1)), obs=label)

    with pytest.raises(NotConjugateError, match="sum"):
        CAVI(model, AutoConjugate(model)).run(torch.tensor([0, 1, 2]))


def test_a_power_and_functions_of_what_remembers_its_logarithm() -> None:
    """log exp(x)² is 2 x; exp(exp(x)) remembers nothing of x."""
    at = torch.tensor([0.3, 1.0], dtype=torch.float64)
    x: Any = RandomTensor(at, Expression.latent("x", at))
    for power in (2, 3.0, -1):
        found = (2 * x.exp() ** power).log()
        torch.testing.assert_close(found.expression.evaluate({"x": at}), (2 * at.exp() ** power).log())
    assert x.exp().exp().log().expression.opacity
    assert (x.exp() ** math.nan).expression.opacity


@pytest.mark.parametrize(
    "move",
    [
        lambda v: v[torch.tensor([2, 0])],
        lambda v: v[torch.tensor([True, False, True])],
        lambda v: v.gather(-1, torch.tensor([1, 1])),
        lambda v: v.index_select(0, torch.tensor([2])),
        lambda v: torch.cat([v, torch.tensor([1, 2])]),
        lambda v: torch.stack([v, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)]),
    ],
    ids=["index", "mask", "gather", "index_select", "whole numbers", "numbers"],
)
def test_what_is_moved_remembers_its_logarithm(move: Callable[[Tensor], Tensor]) -> None:
    """Places are no values: they have no logarithm."""
    at = torch.tensor([0.3, 1.0, -0.5], dtype=torch.float64)
    x: Any = RandomTensor(at, Expression.latent("x", at))
    found: Any = move(x.exp()).log()
    torch.testing.assert_close(found.expression.evaluate({"x": at}), move(at.exp()).log())


def test_a_cast_to_another_tensor_reads_its_dtype_alone() -> None:
    at, other = torch.tensor([0.3, 1.0, -0.5], dtype=torch.float64), torch.zeros(2, dtype=torch.float32)
    x: Any = RandomTensor(at, Expression.latent("x", at))
    y: Any = RandomTensor(other, Expression.latent("y", other))
    for found in (x.to(y), x.type_as(other), x.to(other, copy=True), (2 * x).exp().log().type_as(y)):
        assert found.dtype == torch.float32
        assert found.expression.sites == {"x"}
    assert x.exp().type_as(y).shape == at.shape
    assert at.to(y).dtype == torch.float32


@pytest.mark.parametrize(
    "fill",
    [
        lambda v: torch.tril(torch.stack([v, v, v])),
        lambda v: torch.diagflat(v),
        lambda v: v.index_fill(0, torch.tensor([1]), 2.0),
        lambda v: v.scatter(0, torch.tensor([1]), 2.0),
    ],
    ids=["tril", "diagflat", "index_fill", "scatter"],
)
def test_what_is_filled_up_with_numbers_remembers_no_logarithm(fill: Callable[[Tensor], Tensor]) -> None:
    at = torch.tensor([0.3, 1.0, -0.5], dtype=torch.float64)
    x: Any = RandomTensor(at, Expression.latent("x", at))
    found: Any = fill(x.exp())
    assert found.expression.logarithm is None


def test_a_running_sum_has_no_number_only_from_where_a_constant_is_none() -> None:
    at = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    x: Any = RandomTensor(at, Expression.latent("x", at))
    constant = torch.tensor([1.0, math.nan, 2.0], dtype=torch.float64)
    found = (x * constant).cumsum(0).expression.evaluate({"x": at})
    torch.testing.assert_close(found, (at * constant).cumsum(0), equal_nan=True)
