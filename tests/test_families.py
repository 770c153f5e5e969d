"""The laws of exponential families, each tested for every family of the catalogue and for several batch shapes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from shared_models import registries_kept
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, distributions, families
from pyro_latent.errors import PyroLatentError
from pyro_latent.families import Family, Mean, Natural, Params, family_of, register_family
from pyro_latent.families.base import Coordinates, multivariate_digamma
from pyro_latent.families.newton import inverse_digamma, inverse_dirichlet_mean, inverse_log_minus_digamma
from pyro_latent.families.quantiles import quantile
from pyro_latent.reparam.laplace import WeightedLaplace

Shape = tuple[int, ...]
DIM = 3
DRAWS = 20_000


def real(shape: Shape) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def positive(shape: Shape) -> Tensor:
    return 0.3 + 4 * torch.rand(shape, dtype=torch.float64)


def definite(batch: Shape) -> Tensor:
    root = real((*batch, DIM, DIM))
    return root @ root.mT / DIM + 0.5 * torch.eye(DIM, dtype=torch.float64)


class Entry(NamedTuple):
    """A family, its random params of a batch shape, and for some statistics a change that leaves the domain."""

    family: Family
    params: Callable[[Shape], Params]
    broken: dict[str, Callable[[Tensor], Tensor]]


def constant(value: float) -> Callable[[Tensor], Tensor]:
    return lambda field: torch.full_like(field, value)


CATALOGUE = {
    "Normal": Entry(families.Normal(), lambda b: {"loc": real(b), "scale": positive(b)}, {"xx": torch.neg}),
    "MultivariateNormal": Entry(
        families.MultivariateNormal(),
        lambda b: {"loc": real((*b, DIM)), "covariance_matrix": definite(b)},
        {"xx": torch.neg},
    ),
    "Gamma": Entry(
        families.Gamma(),
        lambda b: {"concentration": positive(b), "rate": positive(b)},
        {"log_x": constant(-1.0), "x": torch.neg},
    ),
    "InverseGamma": Entry(
        families.InverseGamma(),
        lambda b: {"concentration": 2.5 + positive(b), "rate": positive(b)},
        {"log_x": constant(-1.0), "reciprocal": torch.neg},
    ),
    "Beta": Entry(
        families.Beta(),
        lambda b: {"concentration1": positive(b), "concentration0": positive(b)},
        {"log_x": constant(-1.0), "log1m_x": constant(-1.5)},
    ),
    "Dirichlet": Entry(
        families.Dirichlet(), lambda b: {"concentration": positive((*b, DIM))}, {"log_x": constant(-1.0)}
    ),
    "Bernoulli": Entry(families.Bernoulli(), lambda b: {"probs": torch.sigmoid(real(b))}, {"x": constant(torch.inf)}),
    "Categorical": Entry(
        families.Categorical(categories=DIM),
        lambda b: {"probs": real((*b, DIM)).softmax(-1)},
        {"x": constant(-torch.inf)},
    ),
    "Wishart": Entry(
        families.Wishart(),
        lambda b: {"df": DIM + positive(b), "covariance_matrix": definite(b)},
        {"log_det": constant(-1.0), "x": torch.neg},
    ),
    "NormalGamma": Entry(
        families.NormalGamma(),
        lambda b: {
            "loc": real(b),
            "precision_scaling": positive(b),
            "concentration": positive(b),
            "rate": positive(b),
        },
        {"precision_mean_squared": torch.neg, "precision": constant(0.0), "log_precision": constant(-0.5)},
    ),
    "NormalWishart": Entry(
        families.NormalWishart(),
        lambda b: {
            "loc": real((*b, DIM)),
            "precision_scaling": positive(b),
            "df": DIM + positive(b),
            "covariance_matrix": definite(b),
        },
        {"quadratic": torch.neg, "precision": torch.neg, "log_det": constant(-0.5)},
    ),
    "IsotropicNormalGamma": Entry(
        families.IsotropicNormalGamma(),
        lambda b: {
            "loc": real((*b, DIM)),
            "precision_scaling": positive(b),
            "concentration": positive(b),
            "rate": positive(b),
        },
        {"quadratic": torch.neg, "precision": constant(0.0), "log_precision": constant(DIM / 2 - 1)},
    ),
    "TiedNormalWishart": Entry(
        families.TiedNormalWishart(),
        lambda b: {
            "loc": real((*b, 2, DIM)),
            "precision_scaling": positive((*b, 2)),
            "df": DIM + positive(b),
            "covariance_matrix": definite(b),
        },
        {"quadratic": torch.neg, "precision": torch.neg, "log_det": constant(0.0)},
    ),
    "MatrixNormalWishart": Entry(
        families.MatrixNormalWishart(),
        lambda b: {
            "loc": real((*b, 2, DIM)),
            "row_precision": definite(b)[..., :2, :2],
            "df": DIM + positive(b),
            "covariance_matrix": definite(b),
        },
        {"quadratic": torch.neg, "precision": torch.neg, "log_det": constant(0.0)},
    ),
}


def documented() -> dict[str, Any]:
    """What the page on new distributions defines for a joint block; its registration does not outlive the call."""
    page = Path(__file__).parent.parent / "docs" / "add-a-distribution.md"
    snippet = page.read_text(encoding="utf-8").split("## A joint block")[1].split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    with registries_kept():
        exec(compile(snippet, str(page), "exec"), names)
    return names


Documented = documented()["IsotropicNormalGamma"]
CATALOGUE["documented"] = Entry(
    Documented(),
    lambda b: {
        "center": real((*b, DIM)),
        "scaling": positive(b),
        "concentration": positive(b),
        "rate": positive(b),
    },
    {"square": torch.neg, "precision": constant(0.0), "log_precision": constant(DIM / 2 - 1)},
)
JOINT = ("NormalGamma", "NormalWishart", "IsotropicNormalGamma", "documented")
TIED = ("TiedNormalWishart", "MatrixNormalWishart")
WITHOUT_TORCH_KL = {"Wishart", *TIED, *JOINT}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "x": lambda x: x,
    "reciprocal": torch.reciprocal,
    "log": torch.log,
    "log1m": lambda x: (1 - x).log(),
    "log_det": torch.logdet,
}

every_entry = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE.keys())
every_joint = pytest.mark.parametrize("entry", [CATALOGUE[name] for name in JOINT], ids=JOINT)
every_pair = pytest.mark.parametrize("entry", [CATALOGUE[name] for name in (*JOINT, *TIED)], ids=(*JOINT, *TIED))
every_batch = pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)


def random_natural(entry: Entry, batch: Shape) -> Natural:
    return entry.family.from_params(entry.params(batch))


def draw(entry: Entry, params: Params, shape: Shape) -> tuple[Tensor, ...]:
    values = entry.family.distribution(params).sample(shape)
    return values if isinstance(values, tuple) else (values,)


def symmetric(family: Family, coordinates: Coordinates) -> dict[str, Tensor]:
    """The fields, with the symmetric part of the matrices; and the categorical's η, free up to a constant, centred."""
    fields = {k: (v + v.mT) / 2 if k in family.symmetric else v for k, v in coordinates.items()}
    if isinstance(family, families.Categorical) and isinstance(coordinates, Natural):
        fields = {k: v - v.mean(-1, keepdim=True) for k, v in fields.items()}
    return fields


def assert_same(actual: Any, expected: Any, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-2 * rtol)


def assert_mean(samples: Tensor, expected: Tensor) -> None:
    """The mean of samples over the first dimension is within five standard errors of what is expected."""
    error = (samples.mean(0) - expected).abs()
    assert (error <= 5 * samples.std(0) / len(samples) ** 0.5 + 1e-12).all(), error


def gradient(output: Tensor, natural: Natural, **options: Any) -> dict[str, Tensor]:
    return dict(zip(natural, torch.autograd.grad(output, list(natural.values()), **options), strict=True))


# Coordinates


@every_batch
@every_entry
def test_gradient_of_log_normalizer_is_mean(entry: Entry, batch: Shape) -> None:
    natural = random_natural(entry, batch).map(lambda v: v.clone().requires_grad_())
    log_normalizer = entry.family.log_normalizer(natural)
    assert log_normalizer.shape == batch
    expected = entry.family.mean(natural.map(torch.detach))
    assert_same(symmetric(entry.family, Mean(**gradient(log_normalizer.sum(), natural))), dict(expected))


@every_batch
@every_entry
def test_log_normalizer_is_convex(entry: Entry, batch: Shape) -> None:
    natural = random_natural(entry, batch).map(lambda v: v.clone().requires_grad_())
    direction = symmetric(entry.family, natural.map(torch.randn_like))
    first = gradient(entry.family.log_normalizer(natural).sum(), natural, create_graph=True)
    slope = sum(((direction[k] * first[k]).sum() for k in direction), torch.zeros((), dtype=torch.float64))
    second = Mean(**gradient(slope, natural))
    curvature = entry.family.inner(Natural(**direction), second)
    assert curvature.shape == batch
    assert (curvature > 0).all()


@every_batch
@every_entry
def test_from_mean_inverts_mean(entry: Entry, batch: Shape) -> None:
    natural = random_natural(entry, batch)
    restored = entry.family.from_mean(entry.family.mean(natural))
    assert_same(symmetric(entry.family, restored), symmetric(entry.family, natural))


@every_entry
def test_from_mean_inverts_mean_to_second_order(entry: Entry) -> None:
    """from_mean(mean(η)) = η has the identity as first derivative, and no second."""
    natural = random_natural(entry, (3,)).map(lambda v: v.clone().requires_grad_())
    weights = symmetric(entry.family, natural.map(torch.randn_like))
    restored = entry.family.from_mean(entry.family.mean(natural))
    first = gradient(entry.family.inner(restored, Mean(**weights)).sum(), natural, create_graph=True)
    assert_same(symmetric(entry.family, Natural(**first)), weights, rtol=1e-8)
    bend = sum((v.square().sum() for v in first.values()), torch.zeros((), dtype=torch.float64))
    second = gradient(bend, natural, materialize_grads=True)
    assert_same(second, {k: torch.zeros_like(v) for k, v in second.items()}, rtol=1e-4)


@every_batch
@every_entry
def test_to_params_inverts_from_params(entry: Entry, batch: Shape) -> None:
    params = entry.params(batch)
    restored = entry.family.to_params(entry.family.from_params(params))
    assert tuple(restored) == entry.family.param_names
    assert_same(restored, params)


@every_batch
@every_entry
def test_distribution_params_inverts_distribution(entry: Entry, batch: Shape) -> None:
    params = entry.params(batch)
    distribution = entry.family.distribution(params)
    assert distribution.batch_shape == batch
    assert_same(entry.family.distribution_params(distribution), params)


@every_entry
def test_from_params_broadcasts(entry: Entry) -> None:
    first, *others = entry.family.param_names
    params = entry.params((2, 3))
    mixed = {first: params[first], **{name: entry.params(())[name] for name in others}}
    natural = entry.family.from_params(mixed)
    assert {k: v.shape for k, v in natural.items()} == {k: v.shape for k, v in random_natural(entry, (2, 3)).items()}
    assert_same(natural.map(lambda v: v[1, 2]), entry.family.from_params({**mixed, first: params[first][1, 2]}))


@every_batch
@every_entry
def test_domain_holds_what_comes_from_params_and_nothing_broken(entry: Entry, batch: Shape) -> None:
    natural = random_natural(entry, batch)
    inside = entry.family.in_domain(natural)
    assert inside.dtype == torch.bool and inside.shape == batch and inside.all()
    not_finite = {name: constant(torch.nan) for name in natural}
    for changes in (entry.broken, not_finite):
        for name, change in changes.items():
            outside = entry.family.in_domain(Natural(**{**natural, name: change(natural[name])}))
            assert outside.shape == batch and not outside.any(), name


@every_entry
def test_domain_is_told_by_element(entry: Entry) -> None:
    natural = random_natural(entry, (3,))
    for name, change in entry.broken.items():
        mixed = natural[name].clone()
        mixed[1] = change(natural[name])[1]
        assert entry.family.in_domain(Natural(**{**natural, name: mixed})).tolist() == [True, False, True], name


@pytest.mark.filterwarnings("error")
@every_entry
def test_single_precision_stays_single(entry: Entry) -> None:
    family, params = entry.family, entry.params((3,))
    double = family.from_params(params)
    natural = family.from_params({k: v.float() for k, v in params.items()})
    for low, high in (
        (natural, double),
        (family.mean(natural), family.mean(double)),
        (family.to_params(natural), family.to_params(double)),
        ({"A": family.log_normalizer(natural)}, {"A": family.log_normalizer(double)}),
    ):
        assert_same(dict(low), {k: v.float() for k, v in high.items()}, rtol=1e-3)
    restored = symmetric(family, family.from_mean(family.mean(natural)))
    assert_same(restored, symmetric(family, natural), rtol=1e-2)


# Densities


@every_batch
@every_entry
def test_log_prob_is_the_distributions(entry: Entry, batch: Shape) -> None:
    params = entry.params(batch)
    values = draw(entry, params, (7,))
    log_prob = entry.family.distribution(params).log_prob(values if len(values) > 1 else values[0])
    assert log_prob.shape == (7, *batch)
    assert_same(entry.family.log_prob(entry.family.from_params(params), *values), log_prob)


@every_batch
@every_entry
def test_sample_means_of_statistics_agree(entry: Entry, batch: Shape) -> None:
    params = entry.params(batch)
    mean = entry.family.mean(entry.family.from_params(params))
    statistics = entry.family.sufficient_statistics(*draw(entry, params, (DRAWS,)))
    for name in entry.family.statistics:
        assert_mean(statistics[name].double(), mean[name])


@every_entry
def test_entropy_is_the_distributions(entry: Entry) -> None:
    params = entry.params((3,))
    natural = entry.family.from_params(params)
    entropy = entry.family.entropy(natural)
    assert_mean(-entry.family.log_prob(natural, *draw(entry, params, (DRAWS,))), entropy)
    if len(entry.family.event_dims) == 1:
        assert_same(entropy, entry.family.distribution(params).entropy())


@pytest.mark.parametrize("name", CATALOGUE)
def test_kl_divergence_is_the_distributions(name: str) -> None:
    entry = CATALOGUE[name]
    params, others = entry.params((3,)), entry.params((3,))
    natural, other = entry.family.from_params(params), entry.family.from_params(others)
    divergence = entry.family.kl_divergence(natural, other)
    assert (divergence > 0).all()
    assert_same(entry.family.kl_divergence(natural, natural), torch.zeros(3, dtype=torch.float64))
    values = draw(entry, params, (DRAWS,))
    assert_mean(entry.family.log_prob(natural, *values) - entry.family.log_prob(other, *values), divergence)
    if name not in WITHOUT_TORCH_KL:
        pair = entry.family.distribution(params), entry.family.distribution(others)
        assert_same(divergence, torch.distributions.kl_divergence(*pair))


@every_batch
@every_entry
def test_moments_read_the_statistics(entry: Entry, batch: Shape) -> None:
    """Each product of functions of x, contracted by its pattern, is the statistic that the table names."""
    values = draw(entry, entry.params(batch), (5,))
    statistics = entry.family.sufficient_statistics(*values)
    for monomial, moment in entry.family.moments.items():
        assert list(monomial) == sorted(monomial)
        groups, axes = moment.pattern.split("->")
        equation = ",".join(f"...{group}" for group in groups.split(",")) + f"->...{axes}"
        factors = [FUNCTIONS[function](values[component]) for component, function in monomial]
        assert_same(torch.einsum(equation, *factors), statistics[moment.statistic])


@pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if entry.family.location])
def test_location_moves_with_the_values(name: str) -> None:
    entry = CATALOGUE[name]
    assert entry.family.location is not None
    location, component = entry.family.location
    params = entry.params((3,))
    values = list(draw(entry, params, (5,)))
    before = entry.family.log_prob(entry.family.from_params(params), *values)
    values[component] = values[component] + 1.5
    moved = entry.family.from_params({**params, location: params[location] + 1.5})
    assert_same(entry.family.log_prob(moved, *values), before)


@pytest.mark.parametrize("probs", [[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]], ids=str)
def test_impossible_categories_have_a_finite_entropy(probs: list[float]) -> None:
    params = {"probs": torch.tensor(probs, dtype=torch.float64)}
    family = families.Categorical()
    natural = family.from_params(params)
    assert family.in_domain(natural)
    assert_same(family.to_params(natural), params)
    assert_same(family.entropy(natural), dist.Categorical(params["probs"]).entropy())


def test_certain_bernoulli_has_no_entropy() -> None:
    params = {"probs": torch.tensor([0.0, 1.0], dtype=torch.float64)}
    family = families.Bernoulli()
    natural = family.from_params(params)
    assert_same(family.to_params(natural), params)
    assert_same(family.entropy(natural), torch.zeros(2, dtype=torch.float64))


# What the base class derives


@every_entry
def test_example_is_a_proper_member_of_the_given_shapes(entry: Entry) -> None:
    wanted = entry.params((2, 3))
    events = [value.shape for value in draw(entry, entry.params(()), ())]
    if isinstance(entry.family, families.Categorical):  # whose value is an index, and whose statistic is K numbers
        events = [torch.Size((DIM,))]
    example = entry.family.example(torch.Size((2, 3)), *events)
    assert {name: p.shape for name, p in example.items()} == {name: p.shape for name, p in wanted.items()}
    natural = entry.family.from_params(example)
    assert entry.family.in_domain(natural).all()
    assert all(field.isfinite().all() for field in entry.family.mean(natural).values())


@every_batch
@every_entry
def test_constraints_hold_for_the_params(entry: Entry, batch: Shape) -> None:
    params = entry.params(batch)
    found = entry.family.constraints(params)
    assert tuple(found) == entry.family.param_names
    assert all(found[name].check(value).all() for name, value in params.items())


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.95])
@every_entry
def test_quantiles_split_the_draws(entry: Entry, probability: float) -> None:
    """No less than q of the mass is at the quantile or below, and no more than q below, element by element."""
    params = entry.params((3,))
    values = draw(entry, params, (DRAWS,))
    for value, found in zip(values, entry.family.quantiles(params, probability), strict=True):
        assert found.shape == value.shape[1:]
        error = 6 * (probability * (1 - probability) / DRAWS) ** 0.5 + 6 * 0.5 / 4000**0.5 * (value.ndim > 2)
        slack = 1e-9 * found.abs() if value.is_floating_point() else 0
        assert ((value <= found + slack).double().mean(0) >= probability - error).all()
        assert ((value < found - slack).double().mean(0) <= probability + error).all()


@pytest.mark.parametrize("name", ["Laplace", "Weibull", "LogNormal", "Kumaraswamy"])
def test_quantile_inverts_the_cdf(name: str) -> None:
    one, two = positive((4,)), 1 + positive((4,))
    distribution = getattr(dist, name)(one, two)
    for probability in (1e-4, 0.3, 0.999):
        level = torch.full((4,), probability, dtype=torch.float64)
        assert_same(distribution.cdf(quantile(distribution, probability)), level, rtol=1e-8)


def test_quantile_of_a_gamma_by_bisection_is_that_of_its_family() -> None:
    params = CATALOGUE["Gamma"].params((5,))
    for probability in (0.01, 0.5, 0.99):
        (expected,) = families.Gamma().quantiles(params, probability)
        assert_same(quantile(dist.Gamma(params["concentration"], params["rate"]), probability), expected, rtol=1e-9)


@pytest.mark.parametrize("groups", [None, 2], ids=["one", "in a plate"])
def test_documented_family_has_the_exact_posterior(groups: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conjugate posterior, evidence and marginals of a mean vector with one precision, in each of its groups."""
    key = dist.MultivariateNormal, dist.Gamma
    monkeypatch.setitem(families.JOINT_FAMILIES, key, Documented())
    x = 5 + real((7, groups or 1, DIM))
    prior_center = real((DIM,))

    def model(data: Tensor) -> None:
        with pyro.plate("groups", data.shape[-2]) if groups else contextlib.nullcontext():
            precision = pyro.sample("precision", dist.Gamma(torch.tensor(3.0).to(data), 2.0))
            scale = (0.5 * precision).rsqrt().unsqueeze(-1)
            mean = pyro.sample("mean", dist.Normal(prior_center, scale).expand([*precision.shape, DIM]).to_event(1))
            with pyro.plate("points", len(data), dim=-2 if groups else -1):
                pyro.sample("x", dist.Normal(mean, precision.rsqrt().unsqueeze(-1)).to_event(1), obs=data)

    data = x if groups else x.squeeze(1)
    guide = AutoConjugate(model, blocks=[("mean", "precision")])
    result = CAVI(model, guide).run(data)
    found = guide.posterior(joint=True)["mean", "precision"]
    count = len(x)
    scaling = 0.5 + count
    center = (0.5 * prior_center + x.sum(0)) / scaling
    squares = 0.5 * (prior_center**2).sum(-1) + (x**2).sum((0, -1)) - scaling * (center**2).sum(-1)
    concentration, rate = torch.full((groups or 1,), 3 + count * DIM / 2).double(), 2 + 0.5 * squares
    expected = {
        "center": center,
        "scaling": torch.full_like(rate, scaling),
        "concentration": concentration,
        "rate": rate,
    }
    for name, value in expected.items():
        assert_same(getattr(found, name), value if groups else value.squeeze(0))
    evidence = torch.lgamma(concentration) - math.lgamma(3) + 3 * math.log(2) - concentration * rate.log()
    evidence = evidence + 0.5 * DIM * math.log(0.5 / scaling) - 0.5 * count * DIM * math.log(2 * math.pi)
    assert result.elbo == pytest.approx(float(evidence.sum()), rel=1e-10)
    scale = (rate / (concentration * scaling)).sqrt().unsqueeze(-1)
    level = torch.as_tensor(scipy.stats.t.ppf(0.9, 2 * concentration.numpy())).unsqueeze(-1)
    quantiles = guide.quantiles([0.9])["mean"][0]
    wanted = center + scale * level if groups else (center + scale * level).squeeze(0)
    assert ((quantiles - wanted).abs() < 0.2 * scale).all()  # a marginal of draws, for the family gives no formula


def test_a_scalar_normal_and_a_gamma_stay_a_normal_gamma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.JOINT_FAMILIES, (dist.MultivariateNormal, dist.Gamma), Documented())

    def model(data: Tensor) -> None:
        precision = pyro.sample("precision", dist.Gamma(3.0, 2.0))
        mean = pyro.sample("mean", dist.Normal(0.0, precision.rsqrt()))
        pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=data)

    guide = AutoConjugate(model, blocks=[("mean", "precision")])
    CAVI(model, guide).run(torch.tensor(1.5))
    assert isinstance(guide.posterior(joint=True)["mean", "precision"], distributions.NormalGamma)


# Blocks


def precision_given_mean(entry: Entry, params: Params, mean: Tensor) -> Any:
    """p(precision | mean) by Bayes' rule: one more observation of weight precision_scaling."""
    location, scaling = (params[name] for name in entry.family.param_names[:2])
    offset = mean - location
    if isinstance(entry.family, Documented | families.IsotropicNormalGamma):
        square = offset.square().sum(-1)
        return dist.Gamma(params["concentration"] + DIM / 2, params["rate"] + 0.5 * scaling * square)
    if isinstance(entry.family, families.NormalGamma):
        return dist.Gamma(params["concentration"] + 0.5, params["rate"] + 0.5 * scaling * offset**2)
    square = offset.unsqueeze(-1) * offset.unsqueeze(-2)
    rate = torch.linalg.inv(params["covariance_matrix"]) + scaling[..., None, None] * square
    return dist.Wishart(params["df"] + 1, precision_matrix=rate)


@every_batch
@every_joint
def test_marginals_and_bayes_rule_give_the_joint(entry: Entry, batch: Shape) -> None:
    params = entry.params(batch)
    mean, precision = draw(entry, params, (5,))
    mean_marginal, _ = entry.family.marginals(params)
    product = mean_marginal.log_prob(mean) + precision_given_mean(entry, params, mean).log_prob(precision)
    assert_same(product, entry.family.log_prob(entry.family.from_params(params), mean, precision))


@every_batch
@every_pair
def test_conditionals_give_the_joint(entry: Entry, batch: Shape) -> None:
    params = entry.params(batch)
    drawn: list[Tensor] = []
    values: dict[int, Tensor] = {}
    total = torch.zeros(batch, dtype=torch.float64)
    for component, conditional in entry.family.conditionals(params):
        distribution = conditional(*drawn)
        values[component] = distribution.sample()
        drawn.append(values[component])
        total = total + distribution.log_prob(values[component]).reshape(*batch, -1).sum(-1)
    assert_same(total, entry.family.log_prob(entry.family.from_params(params), values[0], values[1]))


@every_entry
def test_marginals_have_the_shapes_of_the_components(entry: Entry) -> None:
    params = entry.params((2, 3))
    marginals = entry.family.marginals(params)
    plates = entry.family.plate_dims or (0,) * len(marginals)
    events = tuple(len(marginal.event_shape) + own for marginal, own in zip(marginals, plates, strict=True))
    assert events == entry.family.event_dims
    assert [marginal.sample().shape for marginal in marginals] == [value.shape for value in draw(entry, params, ())]


@every_pair
def test_joint_distributions_expand_and_differentiate(entry: Entry) -> None:
    params = {name: value.requires_grad_() for name, value in entry.params((3,)).items()}
    wide = entry.family.distribution(params).expand((2, 3))
    mean, precision = wide.rsample((4,))
    assert wide.batch_shape == (2, 3) and mean.shape[:3] == precision.shape[:3] == (4, 2, 3)
    assert wide.log_prob((mean, precision)).shape == (4, 2, 3)
    gradients = torch.autograd.grad(mean.sum() + precision.sum(), list(params.values()))
    assert all((g != 0).all() for g in gradients)


@every_batch
def test_one_mean_is_tied_to_nothing(batch: Shape) -> None:
    """With K = 1 the tied Normal-Wishart is the Normal-Wishart, and each of K means with the precision is one."""
    params = CATALOGUE["TiedNormalWishart"].params(batch)
    own = {"loc": -2, "precision_scaling": -1}  # the dimension of the means
    for k in range(2):
        tied = {n: v.narrow(own[n], k, 1) if n in own else v for n, v in params.items()}
        one = {n: v.squeeze(own[n]) if n in own else v for n, v in tied.items()}
        mean, precision = draw(CATALOGUE["NormalWishart"], one, (5,))
        found = families.TiedNormalWishart().distribution(tied).log_prob((mean.unsqueeze(-2), precision))
        assert_same(found, families.NormalWishart().distribution(one).log_prob((mean, precision)))
        whole = families.TiedNormalWishart().marginals(params)[0]
        marginal = families.NormalWishart().marginals(one)[0]
        at = real((*batch, 2, DIM))
        assert_same(whole.log_prob(at)[..., k], marginal.log_prob(at[..., k, :]))


def test_wishart_samples_carry_gradients() -> None:
    params = {name: value.requires_grad_() for name, value in CATALOGUE["Wishart"].params((3,)).items()}
    sample = distributions.Wishart(**params).expand((2, 3)).rsample((4,))
    assert sample.shape == (4, 2, 3, DIM, DIM)
    assert all((g != 0).all() for g in torch.autograd.grad(sample.sum(), list(params.values())))


@every_pair
def test_joint_distributions_are_pyro_sites(entry: Entry) -> None:
    params = entry.params(())
    joint = entry.family.distribution(params)

    def model() -> None:
        with pyro.plate("components", 4):
            pyro.sample("block", joint)

    trace = pyro.poutine.trace(model).get_trace()
    value: Any = trace.nodes["block"]["value"]
    mean, precision = value
    assert_same(trace.log_prob_sum(), joint.log_prob((mean, precision)).sum())
    assert mean.shape[0] == precision.shape[0] == 4


@pytest.mark.parametrize("name", ["precision_scaling", "concentration", "rate"])
def test_normal_gamma_rejects_what_is_not_positive(name: str) -> None:
    params = {**CATALOGUE["NormalGamma"].params(()), name: torch.tensor(-1.0)}
    with pytest.raises(ValueError, match=f"Expected parameter {name}"):
        families.NormalGamma().distribution(params)


@pytest.mark.parametrize("name", ["precision_scaling", "df", "covariance_matrix"])
def test_normal_wishart_rejects_what_is_outside_its_domain(name: str) -> None:
    outside = {"precision_scaling": torch.tensor(0.0), "df": torch.tensor(DIM - 1.0)}
    params = {**CATALOGUE["NormalWishart"].params(()), name: outside.get(name, -torch.eye(DIM))}
    with pytest.raises(ValueError, match=f"Expected parameter {name}"):
        families.NormalWishart().distribution(params)


# Inverses


def test_inverse_digamma_over_twelve_decades() -> None:
    x = torch.logspace(-6, 6, 49, dtype=torch.float64)
    assert_same(inverse_digamma(torch.digamma(x)), x, rtol=1e-13)


@pytest.mark.parametrize("dim", [1, 2, 5, 20])
def test_inverse_log_minus_digamma_solves_its_equation(dim: int) -> None:
    a = (dim - 1) / 2 + torch.logspace(-4, 4, 33, dtype=torch.float64)
    gap = dim * a.log() - multivariate_digamma(a, dim)
    solution = inverse_log_minus_digamma(gap, dim)
    # The gap is a difference of terms of size dim log a: 1e-15 of them, divided by the gap, bounds what it tells of a.
    accuracy = 1e-15 * dim * (1 + a.log().abs()) / gap
    assert ((solution / a - 1).abs() <= 20 * accuracy + 1e-13).all()


@pytest.mark.parametrize("size", [2, 3, 10, 100])
def test_inverse_dirichlet_mean_solves_its_equations(size: int) -> None:
    """For concentrations that spread over six decades, where Newton on the concentrations themselves diverges."""
    a = torch.exp(2.5 * torch.randn(500, size, dtype=torch.float64)).clamp(1e-3, 1e3)
    mean = torch.digamma(a) - torch.digamma(a.sum(-1, keepdim=True))
    solution = inverse_dirichlet_mean(mean)
    residual = torch.digamma(solution) - torch.digamma(solution.sum(-1, keepdim=True)) - mean
    assert (residual.abs() <= 1e-13 * (1 + mean.abs())).all()
    assert_same(solution, a, rtol=1e-7)


# The registry


def test_every_family_has_a_distribution() -> None:
    registered = {type(family) for family in families.FAMILIES.values()}
    assert registered == {type(entry.family) for name, entry in CATALOGUE.items() if name != "documented"}
    for cls, family in families.FAMILIES.items():
        (entry,) = (entry for entry in CATALOGUE.values() if type(entry.family) is type(family))
        own = dist.Normal if cls is WeightedLaplace else cls  # quadratic, given its weight
        assert isinstance(family.distribution(entry.params(())), own)


def test_blocks_list_the_distributions_of_the_components() -> None:
    assert {k: type(v) for k, v in families.JOINT_FAMILIES.items()} == {
        (dist.Normal, dist.Gamma): families.NormalGamma,
        (dist.MultivariateNormal, dist.Wishart): families.NormalWishart,
    }
    assert {k: type(v) for k, v in families.PLATE_FAMILIES.items()} == {
        (dist.MultivariateNormal, dist.Gamma): families.IsotropicNormalGamma,
        (dist.MultivariateNormal, dist.Wishart): families.TiedNormalWishart,
    }


def test_family_of_looks_at_the_bases() -> None:
    class Special(dist.Normal):
        pass

    assert isinstance(family_of(Special), families.Normal)
    assert family_of(dist.Cauchy) is None


def test_register_family_adds_and_replaces() -> None:
    class Other(families.Gamma):
        pass

    first, second = families.Gamma(), Other()
    register_family(dist.Exponential, first)
    assert family_of(dist.Exponential) is first
    register_family(dist.Exponential, second)
    assert family_of(dist.Exponential) is second
    joint = families.NormalGamma()
    register_family((dist.Normal, dist.Exponential), joint)
    assert families.JOINT_FAMILIES[dist.Normal, dist.Exponential] is joint


@pytest.mark.parametrize(
    ("distribution", "family", "message"),
    [
        (dist.Normal(0.0, 1.0), families.Normal(), r"Expected a distribution class .*; got Normal\(loc"),
        (int, families.Normal(), "Expected a distribution class .*; got <class 'int'>"),
        ((dist.Normal, "Gamma"), families.NormalGamma(), "Expected a distribution class .*; got 'Gamma'"),
        (dist.Normal, families.Normal, "Expected an instance of a Family.*; got <class"),
        (dist.Normal, None, "Expected an instance of a Family.*; got None"),
        ((dist.Normal,), families.NormalGamma(), "Expected 2 distribution classes.*Normal-Gamma; got 1"),
    ],
)
def test_register_family_says_what_it_expected(distribution: Any, family: Any, message: str) -> None:
    before = dict(families.FAMILIES), dict(families.JOINT_FAMILIES)
    with pytest.raises(PyroLatentError, match=message):
        register_family(distribution, family)
    after = families.FAMILIES, families.JOINT_FAMILIES
    assert after == before


def test_categorical_statistics_need_the_number_of_categories() -> None:
    with pytest.raises(PyroLatentError, match=r"Expected the number of categories.*Categorical\(categories=K\)"):
        families.Categorical().sufficient_statistics(torch.tensor([0, 1]))
