"""Programs against brute force: draws of the posterior, or all values of the discrete latents, scored by Pyro alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, ModelError

Model = Callable[..., Any]
Values = dict[str, Tensor]

_DRAWS = 24


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def data(*shape: int) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def log_joint(model: Model, values: Values) -> float:
    return float(poutine.trace(poutine.condition(model, data=values)).get_trace().log_prob_sum())


def draw(guide: AutoConjugate) -> tuple[Values, dict[str, float]]:
    """A draw of every latent, and its log probability by site."""
    trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    nodes: dict[str, Any] = {n: trace.nodes[n] for n in trace.stochastic_nodes if "subsample" not in n}
    nodes = {n: s for n, s in nodes.items() if type(s["fn"]).__name__ != "_Subsample"}
    return {n: s["value"] for n, s in nodes.items()}, {n: float(s["log_prob"].sum()) for n, s in nodes.items()}


def near(samples: list[float], expected: float) -> bool:
    """Whether the mean of samples is the expected number, within 4.5 standard errors and what a fit leaves."""
    found = tensor(*samples)
    return abs(float(found.mean()) - expected) <= 4.5 * float(found.std()) / len(samples) ** 0.5 + 2e-3


# Continuous and discrete latents.


def three_normals_in_one_product() -> None:
    a, b, c = (pyro.sample(n, dist.Normal(1.0, 1.0)) for n in "abc")
    precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    with pyro.plate("n", 6):
        pyro.sample("x", dist.Normal(a * b * c - a + 2 * b + a * b, (1 / precision).sqrt()), obs=data(6))


def residuals_of_observed_data() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    with pyro.plate("n", 4):
        pyro.sample("x", dist.Normal(0.0, precision.rsqrt()), obs=data(4) - mean)


def precision_matrices_of_several_forms() -> None:
    diagonal = pyro.sample("diagonal", dist.Gamma(2 * torch.ones(3).double(), 1.0).to_event(1))
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    matrix = pyro.sample("matrix", dist.Wishart(tensor(4.0)[0], torch.eye(3).double()))
    with pyro.plate("n", 4):
        pyro.sample("x", dist.MultivariateNormal(mean, precision_matrix=torch.diag(diagonal)), obs=data(4, 3))
        pyro.sample("y", dist.MultivariateNormal(mean, precision_matrix=scale * matrix), obs=data(4, 3) + 1)


def plates_of_three_dimensions() -> None:
    with pyro.plate("t", 3, dim=-3):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        with pyro.plate("f", 4, dim=-1):
            v = pyro.sample("v", dist.Normal(u, 1.0))
    with pyro.plate("f_again", 4, dim=-1), pyro.plate("s", 2, dim=-2):
        w = pyro.sample("w", dist.Gamma(2.0, 1.0))
    with pyro.plate("t_", 3, dim=-3), pyro.plate("s_", 2, dim=-2), pyro.plate("f_", 4, dim=-1):
        pyro.sample("x", dist.Normal(v + u, w.rsqrt()), obs=data(3, 2, 4))


def groups_of_clusters_with_masks() -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("k", 2):
        mean = pyro.sample("mean", dist.Normal(tensor(-1.0, 1.0), 2.0))
        precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    with pyro.plate("g", 4, dim=-2):
        with poutine.mask(mask=torch.tensor([[True], [False], [True], [True]])):  # type: ignore[call-overload]
            z = pyro.sample("z", dist.Categorical(weights))
        with pyro.plate("n", 3, dim=-1), poutine.mask(mask=data(4, 3) < 1):  # type: ignore[call-overload]
            pyro.sample("x", dist.Normal(mean[z], precision[z].rsqrt()), obs=data(4, 3))


def mixture_with_a_scale_for_each_datum() -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("k", 2):
        mean = pyro.sample("mean", dist.Normal(tensor(-1.0, 1.0), 2.0))
    with pyro.plate("n", 4), poutine.scale(scale=tensor(1.0, 2.0, 0.5, 3.0)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mean[z], 1.0), obs=data(4))


def matrix_read_at_two_discrete_latents() -> None:
    first = pyro.sample("first", dist.Dirichlet(torch.ones(2)))
    second = pyro.sample("second", dist.Dirichlet(torch.ones(3)))
    means = pyro.sample("means", dist.Normal(torch.arange(6.0).reshape(2, 3).double(), 1.0).to_event(2))
    with pyro.plate("n", 6):
        i, j = pyro.sample("i", dist.Categorical(first)), pyro.sample("j", dist.Categorical(second))
        pyro.sample("x", dist.Normal(means[i, j], 1.0), obs=data(6))


def components_by_where_and_by_products() -> None:
    means = [pyro.sample(f"mean_{i}", dist.Normal(2.0 * i - 1, 1.0)) for i in range(2)]
    precisions = [pyro.sample(f"precision_{i}", dist.Gamma(2.0, 1.0 + i)) for i in range(2)]
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("n", 5):
        z = pyro.sample("z", dist.Bernoulli(p))
        chosen = torch.where(z == 0, precisions[0], precisions[1])
        pyro.sample("x", dist.Normal(torch.where(z == 0, means[0], means[1]), chosen.rsqrt()), obs=data(5))
        both = z * precisions[0] + (1 - z) * precisions[1]
        pyro.sample("y", dist.Normal(z * means[0] + (1 - z) * means[1], both.rsqrt()), obs=data(5) + 1)


@pytest.mark.parametrize(
    "model",
    [
        three_normals_in_one_product,
        residuals_of_observed_data,
        precision_matrices_of_several_forms,
        plates_of_three_dimensions,
        groups_of_clusters_with_masks,
        mixture_with_a_scale_for_each_datum,
        matrix_read_at_two_discrete_latents,
        components_by_where_and_by_products,
    ],
)
def test_elbo_and_optima_are_those_of_draws(model: Model) -> None:
    """ELBO = E_q (log p − log q), and log q of each block = E log p + constant, over draws of the other blocks."""
    guide = AutoConjugate(model)
    assert CAVI(model, guide).run(max_steps=1000, tol=1e-10).converged
    pyro.set_rng_seed(0)
    draws = [draw(guide) for _ in range(_DRAWS)]
    assert near([log_joint(model, v) - sum(q.values()) for v, q in draws], guide.elbo())
    discrete = [n for n in draws[0][0] if n in ("z", "i", "j")]
    (one, log_one), (two, log_two) = draws[:2]
    for block in [*([n] for n in one if n not in discrete), *([discrete] if discrete else [])]:
        differences = [
            log_joint(model, values | {n: one[n] for n in block})
            - log_joint(model, values | {n: two[n] for n in block})
            for values, _ in draws[2:]
        ]
        assert near(differences, sum(log_one[n] - log_two[n] for n in block)), block


# Discrete latents alone.


def whole_numbers_and_comparisons() -> None:
    a = pyro.sample("a", dist.Categorical(tensor(0.1, 0.2, 0.3, 0.4)))
    b = pyro.sample("b", dist.Categorical(tensor(0.6, 0.4)))
    odd = ((a == 1) & (b == 0)) | (a > 2)
    pyro.sample("x", dist.Normal((a // 2 + b) % 2 * 1.5 - odd.double() * 0.3 + a / 2, 1.0), obs=tensor(0.3)[0])
    pyro.sample("y", dist.Bernoulli(torch.where(odd, 0.25, 0.75).double()), obs=tensor(1.0)[0])


def indexes_from_the_end() -> None:
    a = pyro.sample("a", dist.Categorical(tensor(0.1, 0.2, 0.7)))
    b = pyro.sample("b", dist.Categorical(tensor(0.5, 0.5)))
    means = tensor(1.0, 5.0, -3.0)
    pyro.sample("x", dist.Normal(means[a - 1] + means[-b - 1], 1.0), obs=tensor(0.3)[0])


def row_of_each_datum_at_its_class() -> None:
    means = tensor([0.0, 1.0], [5.0, -5.0], [2.0, 2.0])
    with pyro.plate("n", 3):
        a = pyro.sample("a", dist.Categorical(tensor([0.1, 0.9], [0.4, 0.6], [0.8, 0.2])))
        pyro.sample("x", dist.Normal(Vindex(means)[torch.arange(3), a], 1.0), obs=data(3))


def neighbors_by_factors() -> None:
    z = [pyro.sample(f"z{i}", dist.Bernoulli(tensor(0.5)[0])) for i in range(4)]
    for i in range(3):
        pyro.factor(f"f{i}", 0.7 * (2 * z[i] - 1) * (2 * z[i + 1] - 1))
    pyro.sample("x", dist.Normal(z[0] + z[3], 1.0), obs=tensor(0.3)[0])


def rows_and_columns_that_meet() -> None:
    with pyro.plate("rows", 2, dim=-2):
        a = pyro.sample("a", dist.Categorical(tensor(0.4, 0.6)))
    with pyro.plate("columns", 3, dim=-1):
        b = pyro.sample("b", dist.Bernoulli(tensor(0.3)[0]))
    with pyro.plate("rows_", 2, dim=-2), pyro.plate("columns_", 3, dim=-1):
        pyro.sample("x", dist.Normal(2 * b - a, 1.0), obs=data(2, 3))


def sums_means_and_largest_of_a_plate() -> None:
    with pyro.plate("n", 4):
        z = pyro.sample("z", dist.Bernoulli(tensor(0.1, 0.2, 0.3, 0.4)))
    pyro.sample("x", dist.Normal(z.sum(-1) * 2 - z[..., 0] * z[..., 3], 1.0), obs=tensor(3.0)[0])
    pyro.sample("y", dist.Poisson(0.5 + z.mean(-1)), obs=tensor(2.0)[0])
    pyro.sample("w", dist.Bernoulli(0.2 + 0.6 * z.max(-1).values), obs=tensor(1.0)[0])


def gates_that_are_shut() -> None:
    """Zero inflation: 0 log 0 is 0."""
    gate = pyro.sample("gate", dist.Bernoulli(tensor(0.75)[0]))
    pyro.sample("seen", dist.Bernoulli(1 - 0.25 * gate), obs=tensor(1.0)[0])
    with pyro.plate("n", 3):
        z = pyro.sample("z", dist.Bernoulli(tensor(0.4, 0.5, 0.2)))
        pyro.sample("x", dist.Bernoulli(z * 0.7), obs=tensor(0.0, 1.0, 0.0))
        pyro.sample("y", dist.Poisson(torch.where(z > 0, tensor(0.9), tensor(0.0))), obs=tensor(0.0, 3.0, 0.0))
        pyro.sample("w", dist.Binomial(4, torch.where(z > 0, tensor(0.3), tensor(0.0))), obs=tensor(0.0, 2.0, 0.0))


@pytest.mark.parametrize(
    ("model", "latents"),
    [
        (gates_that_are_shut, {"gate": (2, ()), "z": (2, (3,))}),
        (whole_numbers_and_comparisons, {"a": (4, ()), "b": (2, ())}),
        (indexes_from_the_end, {"a": (3, ()), "b": (2, ())}),
        (row_of_each_datum_at_its_class, {"a": (2, (3,))}),
        (neighbors_by_factors, {f"z{i}": (2, ()) for i in range(4)}),
        (rows_and_columns_that_meet, {"a": (2, (2, 1)), "b": (2, (3,))}),
        (sums_means_and_largest_of_a_plate, {"z": (2, (4,))}),
    ],
)
def test_elbo_of_discrete_latents_is_the_sum_over_all_values(
    model: Model, latents: dict[str, tuple[int, tuple[int, ...]]]
) -> None:
    spaces = []
    for count, shape in latents.values():
        elements = itertools.product(range(count), repeat=torch.Size(shape).numel())
        spaces.append([torch.tensor(e).reshape(shape) for e in elements])
    names = list(latents)
    scores = [
        log_joint(model, {n: _as_drawn(model, n, v) for n, v in zip(names, each, strict=True)})
        for each in itertools.product(*spaces)
    ]
    guide = AutoConjugate(model)
    CAVI(model, guide).step()
    assert guide.elbo() == pytest.approx(float(tensor(*scores).logsumexp(0)), abs=1e-9)


def _as_drawn(model: Model, name: str, value: Tensor) -> Tensor:
    """Values of a Bernoulli site are floating, of a Categorical whole."""
    return value if name == "a" or (name == "b" and model is not rows_and_columns_that_meet) else value.double()


# Weights and names that Pyro would read in another way.


def unweighted() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("n", 4):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=data(4))


@pytest.mark.parametrize(
    "model",
    [
        poutine.mask(unweighted, mask=torch.tensor([True, False, True, True])),  # type: ignore[call-overload]
        poutine.scale(unweighted, scale=tensor(1.0, 2.0, 3.0, 4.0)),
    ],
)
def test_a_weight_fits_each_site_that_it_is_on(model: Model) -> None:
    """Pyro's broadcasting would count the prior four times."""
    with pytest.raises(ModelError, match=r"fits site 'mean', of batch shape \(\); got one of shape \(4,\)"):
        CAVI(model, AutoConjugate(model)).run()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_weight_may_have_more_dimensions_of_size_one(shape: tuple[int, ...]) -> None:
    model = poutine.scale(unweighted, scale=torch.full(shape, 2.0, dtype=torch.float64))
    plain, scaled = AutoConjugate(unweighted), AutoConjugate(model)
    CAVI(unweighted, plain).run()
    CAVI(model, scaled).run()
    assert scaled.elbo() == pytest.approx(2 * plain.elbo(), abs=1e-9)
    hidden = poutine.mask(unweighted, mask=torch.zeros(shape, dtype=torch.bool))  # type: ignore[call-overload]
    assert CAVI(hidden, AutoConjugate(hidden)).run().elbo[-1] == 0


@pytest.mark.parametrize(
    ("second", "size", "dim", "both"), [("n", 3, -2, "two plates 'n'"), ("a", 4, -1, "a site and a plate 'a'")]
)
def test_a_plate_has_a_name_of_its_own(second: str, size: int, dim: int, both: str) -> None:
    """The guide enters each plate by its name: of two it would draw the sites of one in the other."""

    def model() -> None:
        with pyro.plate("n", 3):
            pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate(second, size, dim=dim):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.ones(size, *[1] * (-1 - dim)).double())

    with pytest.raises(ModelError, match=f"a name of its own for each plate; got {both}. Write another"):
        CAVI(model, AutoConjugate(model)).run()
