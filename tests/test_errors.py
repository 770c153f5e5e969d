"""Bad input: each mistake is an error that says what was expected, what came and what to write, and changes nothing."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import shared_models
import torch
from pyro import poutine
from pyro.distributions.distribution import COERCIONS
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from shared_models import gaussian
from torch import Tensor
from torch.distributions import biject_to

from pyro_latent import (
    CAVI,
    AutoConjugate,
    DataError,
    ElboDecreaseError,
    LatentValueError,
    MissingRuleError,
    ModelError,
    NaturalDomainError,
    NotConjugateError,
    PyroLatentError,
    handlers,
)
from pyro_latent.gradient.approximations import laplace
from pyro_latent.models import gmm, normal_gamma

Model = Callable[..., Any]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(20, dtype=torch.float64) + 3


def observe(distribution: Any, x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", distribution, obs=x)


def mixture(x: Tensor, k: int = 2) -> None:
    shared_models.mixture(x, k, width=10.0, marked=False)


def snapshot(guide: AutoConjugate) -> dict[str, Any]:
    return copy.deepcopy(dict(guide.state_dict()))


def assert_unchanged(guide: AutoConjugate, before: dict[str, Any]) -> None:
    after = dict(guide.state_dict())
    assert after.keys() == before.keys()
    for name, value in before.items():
        if isinstance(value, Tensor):
            assert torch.equal(after[name], value), name
            assert after[name].dtype == value.dtype
        else:
            assert after[name] == value, name


def assert_step_fails(
    model: Model, args: tuple[Any, ...], error: type[Exception], *words: str, guide: AutoConjugate | None = None
) -> None:
    """A step raises ``error`` with all the words, and leaves the guide, the hooks and the parameters alone."""
    guide = AutoConjugate(model) if guide is None else guide
    before, default, params = snapshot(guide), torch.get_default_dtype(), dict(pyro.get_param_store())
    with pytest.raises(error) as caught:
        CAVI(model, guide).step(*args)
    text = str(caught.value)
    assert issubclass(error, PyroLatentError)
    for word in ("Expected" if error is not NotConjugateError else "", *words):
        assert word in text, f"{word!r} is not in: {text}"
    assert_unchanged(guide, before)
    assert COERCIONS == []
    assert torch.get_default_dtype() == default
    assert dict(pyro.get_param_store()) == params


# The model.


def test_a_model_without_latents(x: Tensor) -> None:
    assert_step_fails(
        lambda x: observe(dist.Normal(0.0, 1.0), x), (x,), ModelError, "at least one latent site", "got none"
    )


def test_a_model_without_observations(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0))

    assert_step_fails(model, (x,), ModelError, "an observed site", "got none", "obs=")


def test_a_latent_that_forgot_its_obs_is_not_data(x: Tensor) -> None:
    def model(x: Tensor | None) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    assert_step_fails(model, (None,), ModelError, "an observed site", "Pass the data")


def test_a_subsampling_plate(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[rows])

    assert_step_fails(model, (x,), ModelError, "plate 'data'", "a subsample of 5 of 20", "Leave out subsample_size")


def test_a_mixture_of_no_components(x: Tensor) -> None:
    data = torch.stack([x, x], 1)
    guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")])
    with pytest.raises(ValueError, match="Expected num_components to be an integer of at least 1; got 0"):
        CAVI(gmm.model, guide).step(data, 0)
    assert not guide.state_dict()["_extra_state"]["layout"]


def test_an_error_of_the_model_itself_passes_through(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        raise KeyError("mine")

    guide = AutoConjugate(model)
    with pytest.raises(KeyError, match="mine"):
        CAVI(model, guide).step(x)
    assert COERCIONS == []
    assert not guide.state_dict()["_extra_state"]["layout"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (ValueError("my own words"), "got ValueError: my own words, at test_errors.py"),
        (ValueError(), "got ValueError: raise wrong, at test_errors.py"),
        (AssertionError(), "got AssertionError: raise wrong, at test_errors.py"),
    ],
)
def test_an_error_of_a_program_given_to_a_function_has_its_own_words_and_line(wrong: Exception, words: str) -> None:
    def model() -> None:
        raise wrong

    with pytest.raises(PyroLatentError, match=rf"{words}, line \d+: raise wrong\. Look at that line") as caught:
        laplace(model)
    assert isinstance(caught.value, type(wrong))


def test_an_error_of_arguments_has_no_line() -> None:
    with pytest.raises(TypeError, match=r"Expected expected_log_factors to run .*\. Write help\("):
        handlers.expected_log_factors(gaussian, 3, torch.ones(3).double())  # type: ignore[arg-type]


# The data.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_data_that_is_not_finite(value: float, x: Tensor) -> None:
    x[3] = x[7] = value
    assert_step_fails(
        gaussian, (x,), DataError, "finite data at site 'x'", "2 of 20 elements NaN or infinite", "obs_mask="
    )


def test_data_that_is_not_finite_in_a_vector_site() -> None:
    data = torch.randn(10, 2, dtype=torch.float64)
    data[4, 1] = torch.nan

    def model(data: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2).to(data), 1.0).to_event(1))
        with pyro.plate("data", len(data)):
            pyro.sample("rows", dist.Normal(mu, 1.0).to_event(1), obs=data)

    assert_step_fails(model, (data,), DataError, "finite data at site 'rows'", "1 of 20 elements")


@pytest.mark.parametrize("how", ["poutine.mask", "dist.mask", "obs_mask"])
def test_what_a_mask_hides_may_be_anything(how: str, x: Tensor) -> None:
    shown: Any = torch.arange(20) % 3 > 0
    hidden = torch.where(shown, x, torch.nan)

    def model(x: Tensor) -> None:
        tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            if how == "poutine.mask":
                with poutine.mask(mask=shown):
                    pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=x)
            elif how == "dist.mask":
                pyro.sample("x", dist.Normal(mu, tau.rsqrt()).mask(shown), obs=x)
            else:
                pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=x, obs_mask=shown)

    def without(x: Tensor) -> None:
        gaussian(x[shown])

    guide, expected = AutoConjugate(model), AutoConjugate(without)
    CAVI(model, guide).run(hidden, tol=1e-14)
    CAVI(without, expected).run(x, tol=1e-14)
    for name in ("mu", "tau"):
        torch.testing.assert_close(guide.posterior()[name].mean, expected.posterior()[name].mean, rtol=1e-6, atol=0)
        torch.testing.assert_close(
            guide.posterior()[name].variance, expected.posterior()[name].variance, rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, x: Tensor) -> None:
    assert_step_fails(gaussian, (x.to(dtype),), DataError, "float32 or float64 at site 'x'", str(dtype), "x.float()")


def test_data_outside_the_support() -> None:
    def model(counts: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(counts)):
            pyro.sample("counts", dist.Poisson(rate), obs=counts)

    bad = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    assert_step_fails(model, (bad,), DataError, "data at site 'counts'", "2 of 4 values outside")


def test_labels_beyond_the_last_category() -> None:
    def model(labels: Tensor) -> None:
        theta = pyro.sample("theta", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(labels)):
            pyro.sample("labels", dist.Categorical(theta), obs=labels)

    assert_step_fails(
        model, (torch.tensor([0, 3, -1, 2]),), DataError, "data at site 'labels'", "2 of 4 values outside"
    )


def test_data_that_broadcasts_with_its_plate(x: Tensor) -> None:
    """A column in a plate of a row makes a matrix of densities, which nobody means."""

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x.unsqueeze(-1))

    assert_step_fails(
        model, (x,), DataError, "observed site 'x'", "to be in a plate", "shape (20, 1)", "pyro.plate", ".to_event()"
    )


def test_data_in_a_plate_and_another_dimension(x: Tensor) -> None:
    assert_step_fails(gaussian, (x * x.unsqueeze(-1),), DataError, "'x'", "to be in a plate", "shape (20, 20)")


def test_data_of_another_size_than_its_plate(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 7):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    assert_step_fails(model, (x,), DataError, "size 7 along the plate at dimension -1", "'x'", "(20,)")


def test_a_matrix_for_a_plate_of_numbers() -> None:
    assert_step_fails(gaussian, (torch.randn(20, 3, dtype=torch.float64),), DataError, "'x'", "(20, 3)")


def test_events_of_another_size() -> None:
    def model(data: Tensor) -> None:
        mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(3).to(data), torch.eye(3).to(data)))
        with pyro.plate("data", len(data)):
            pyro.sample("rows", dist.MultivariateNormal(mu, torch.eye(3).to(data)), obs=data)

    assert_step_fails(
        model, (torch.randn(9, 2, dtype=torch.float64),), DataError, "data at site 'rows'", "(3,)", "got (9, 2)"
    )


def test_sites_of_two_dtypes(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        observe(dist.Normal(mu, 1.0), x)
        with pyro.plate("more", 3):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.zeros(3, dtype=torch.float32))

    assert_step_fails(model, (x,), DataError, "one dtype and device", "'x': torch.float64", "'y': torch.float32")


# What is not conjugate: which site, which operation, which parent, what would work.


def scale_is_tau(x: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    observe(dist.Normal(0.0, tau), x)


def exponential_of_location(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    observe(dist.Normal(mu.exp(), 1.0), x)


def log_scale(x: Tensor) -> None:
    s = pyro.sample("s", dist.Normal(0.0, 1.0))
    observe(dist.Normal(0.0, s.exp()), x)


def cubed_location(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    observe(dist.Normal(mu**3, 1.0), x)


def squared_location(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    observe(dist.Normal(mu**2, 1.0), x)


def variance_is_tau(x: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    observe(dist.Normal(0.0, tau.sqrt()), x)


def location_is_tau(x: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    observe(dist.Normal(tau, 1.0), x)


def sum_of_variances(x: Tensor) -> None:
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    b = pyro.sample("b", dist.Gamma(2.0, 1.0))
    observe(dist.Normal(0.0, (1 / a + 1 / b).sqrt()), x)


def random_concentration(x: Tensor) -> None:
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    observe(dist.Gamma(a, 1.0), x.abs())


def random_beta(x: Tensor) -> None:
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    observe(dist.Beta(a, 1.0), x.sigmoid())


def random_dirichlet(x: Tensor) -> None:
    a = pyro.sample("a", dist.Gamma(2.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Dirichlet(a), obs=torch.full((len(x), 3), 1 / 3, dtype=x.dtype))


def random_degrees(x: Tensor) -> None:
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    pyro.sample("x", dist.Wishart(a + 3, torch.eye(2).to(x)), obs=torch.eye(2).to(x))


def sum_of_rates(x: Tensor) -> None:
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    b = pyro.sample("b", dist.Gamma(2.0, 1.0))
    observe(dist.Poisson(a + b), x.abs().round())


def logistic(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    observe(dist.Bernoulli(logits=w * x), (x > 3).to(x))


def sigmoid(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    observe(dist.Bernoulli(torch.sigmoid(w * x)), (x > 3).to(x))


def softmax(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3).to(x), 1.0).to_event(1))
    observe(dist.Categorical(logits=w), (x > 3).long())


def gamma_weights(x: Tensor) -> None:
    p = pyro.sample("p", dist.Gamma(torch.ones(3).to(x), 1.0).to_event(1))
    observe(dist.Categorical(p / p.sum()), (x > 3).long())


def gamma_weights_as_they_are(x: Tensor) -> None:
    """Categorical divides by the sum by itself."""
    p = pyro.sample("p", dist.Gamma(torch.ones(3).to(x), 1.0).to_event(1))
    observe(dist.Categorical(p), (x > 3).long())


def beta_weights(x: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(torch.ones(3).to(x), 1.0).to_event(1))
    observe(dist.Categorical(p), (x > 3).long())


def part_of_a_simplex(x: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3).to(x)))
    observe(dist.Categorical(p[:2]), (x > 3).long())


def scaled_simplex(x: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3).to(x)))
    observe(dist.Categorical(p * torch.tensor([1.0, 2.0, 3.0]).to(x)), (x > 3).long())


def simplex_along_the_wrong_dimension(x: Tensor) -> None:
    with pyro.plate("groups", 3):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3).to(x)))
    observe(dist.Categorical(p.T[0]), (x > 3).long())


def mixed_simplex(x: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3).to(x)))
    observe(dist.Categorical(0.9 * p + 0.1 / 3), (x > 3).long())


def regression_in_a_plate(x: Tensor) -> None:
    with pyro.plate("features", 3):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    design = torch.stack([x, x**2, torch.ones_like(x)], 1)
    observe(dist.Normal(design @ w, 1.0), x)


def neighbours_in_a_plate(x: Tensor) -> None:
    with pyro.plate("states", len(x)):
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(s + s.roll(1), 1.0), obs=x)


def differences_in_a_plate(x: Tensor) -> None:
    with pyro.plate("states", len(x)):
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x) - 1):
        pyro.sample("x", dist.Normal(s[1:] - s[:-1], 1.0), obs=x[1:])


def student_observed(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    observe(dist.StudentT(3.0, mu, 1.0), x)


def latent_without_family(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.LKJCholesky(2, 1.0))
    observe(dist.Normal(mu[1, 0], 1.0), x)


def student_of_two(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    observe(dist.StudentT(3.0, mu, scale), x)


def laplace_of_two(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    observe(dist.Laplace(mu, 1 / rate), x)


def _weights(x: Tensor) -> Tensor:
    w: Tensor = pyro.sample("w", dist.Normal(torch.zeros(3).to(x), 1.0).to_event(1))
    return w


def exponential_of_vector(x: Tensor) -> None:
    observe(dist.Normal(_weights(x).exp().sum(), 1.0), x)


def cubed_vector(x: Tensor) -> None:
    observe(dist.Normal((_weights(x) ** 3).sum(), 1.0), x)


def logistic_vector(x: Tensor) -> None:
    observe(dist.Bernoulli(logits=_weights(x).sum() * x), (x > 3).to(x))


def sigmoid_vector(x: Tensor) -> None:
    observe(dist.Bernoulli(torch.sigmoid(_weights(x).sum() * x)), (x > 3).to(x))


def laplace_latent(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Laplace(0.0, 1.0))
    observe(dist.Normal(mu, 1.0), x)


def counted_latent(x: Tensor) -> None:
    n = pyro.sample("n", dist.Poisson(3.0))
    observe(dist.Normal(n, 1.0), x)


def random_matrix_sum(x: Tensor) -> None:
    p = pyro.sample("p", dist.Wishart(torch.tensor(4.0).to(x), torch.eye(2).to(x)))
    with pyro.plate("data", len(x)):
        eye = torch.eye(2).to(x)
        pyro.sample(
            "x", dist.MultivariateNormal(torch.zeros(2).to(x), precision_matrix=p + eye), obs=torch.stack([x, x], 1)
        )


def wishart_as_covariance(x: Tensor) -> None:
    p = pyro.sample("p", dist.Wishart(torch.tensor(4.0).to(x), torch.eye(2).to(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2).to(x), covariance_matrix=p), obs=torch.stack([x, x], 1))


NOT_CONJUGATE: list[tuple[Model, tuple[str, ...]]] = [
    (exponential_of_vector, ("'x'", "'w'", "exp of 'w'", "What would work")),
    (cubed_vector, ("'x'", "'w'", "w^3", "enters linearly")),
    (sum_of_variances, ("'x'", "'a', 'b'", "pow(0.5)")),
    (random_dirichlet, ("'x'", "'a'", "lgamma")),
    (sum_of_rates, ("'x'", "'a', 'b'", "log of")),
    (logistic_vector, ("'x'", "'w'", "sigmoid of the logits", "Bernoulli(probs=p)")),
    (sigmoid_vector, ("'x'", "'w'", "sigmoid of 'w'")),
    (softmax, ("'x'", "'w'", "softmax of the logits")),
    (gamma_weights, ("'x'", "'p'", "pow(-1) of 'p'")),
    (gamma_weights_as_they_are, ("'x'", "'p'", "division of probs by their sum", "Dirichlet")),
    (beta_weights, ("'x'", "'p'", "division of probs by their sum", "Dirichlet")),
    (part_of_a_simplex, ("'x'", "'p'", "division of probs by their sum")),
    (scaled_simplex, ("'x'", "'p'", "division of probs by their sum")),
    (simplex_along_the_wrong_dimension, ("'x'", "'p'", "division of probs by their sum")),
    (mixed_simplex, ("'x'", "'p'", "division of probs by their sum")),
    (regression_in_a_plate, ("elements of 'w'", "'x'", "couples them", ".to_event(1)", "without the plate")),
    (differences_in_a_plate, ("elements of 's'", "'x'", "couples them")),
    (neighbours_in_a_plate, ("elements of 's'", "'x'", "couples them")),
    (
        laplace_of_two,
        ("'x' (Laplace)", "absolute value of 'mu'", "a location that is no latent", "conjugate in its rate"),
    ),
    (
        student_of_two,
        ("'x'", "got StudentT", "register_rule(StudentT,", "exist:", "Gamma", "MultivariateNormal", "Wishart"),
    ),
    (latent_without_family, ("'mu'", "got LKJCholesky", "Known:", "Normal", "register_family(LKJCholesky, family)")),
    (counted_latent, ("'n'", "Poisson", "infinitely many values")),
    (random_matrix_sum, ("'x'", "'p'", "What would work")),
    (wishart_as_covariance, ("'x'", "'p'", "precision_matrix=")),
]


@pytest.mark.parametrize(("model", "words"), NOT_CONJUGATE, ids=[m.__name__ for m, _ in NOT_CONJUGATE])
def test_a_site_that_is_not_conjugate(model: Model, words: tuple[str, ...], x: Tensor) -> None:
    assert_step_fails(model, (x,), NotConjugateError, *words)


@pytest.mark.parametrize("model", [m for m, _ in NOT_CONJUGATE if m not in (counted_latent,)], ids=lambda m: m.__name__)
def test_explain_tells_what_is_in_the_way(model: Model, x: Tensor) -> None:
    with pytest.raises(NotConjugateError) as caught:
        CAVI(model, AutoConjugate(model)).step(x)
    obstacle = str(caught.value).partition(" Or write AutoConjugate(model, reparam=True)")[0]
    assert obstacle in AutoConjugate(model).explain(x)


def test_a_missing_rule_is_its_own_error(x: Tensor) -> None:
    with pytest.raises(MissingRuleError, match=r"'x'.*register_rule\(StudentT"):
        CAVI(student_of_two, AutoConjugate(student_of_two)).step(x)


# One scalar in an awkward place has an integral.

SCALARS = {
    "tau": (scale_is_tau, variance_is_tau, location_is_tau),
    "mu": (
        exponential_of_location,
        cubed_location,
        squared_location,
        student_observed,
        laplace_latent,
    ),
    "s": (log_scale,),
    "a": (random_concentration, random_beta, random_degrees),
    "w": (logistic, sigmoid),
}


@pytest.mark.parametrize(
    ("site", "model"),
    [(site, m) for site, models in SCALARS.items() for m in models],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_one_scalar_in_an_awkward_place_has_its_evidence(site: str, model: Model, x: Tensor) -> None:
    """By Gauss and Legendre's rule on panels between the posterior's far quantiles, of Pyro's own density."""
    guide = AutoConjugate(model)
    result = CAVI(model, guide).run(x, max_steps=50, tol=1e-12)
    posterior = guide.posterior()[site]
    transform = biject_to(posterior.support)
    ends = posterior.icdf(torch.tensor([1e-11, 1 - 1e-11], dtype=torch.float64))
    low, high = transform.inv(ends).tolist()
    points, weights = np.polynomial.legendre.leggauss(12)
    total = -math.inf
    for edge in np.linspace(low, high, 25)[:-1]:
        width = (high - low) / 24
        for point, weight in zip(points, weights, strict=True):
            place = torch.tensor(edge + width * (point + 1) / 2)
            value = transform(place)
            trace = poutine.trace(poutine.condition(model, {site: value})).get_trace(x)
            jacobian = float(transform.log_abs_det_jacobian(place, value))
            total = np.logaddexp(total, float(trace.log_prob_sum()) + jacobian + math.log(weight * width / 2))
    assert abs(float(result.elbo[-1]) - total) < 1e-6


def test_a_joint_block_has_its_moments_alone(x: Tensor) -> None:
    """Its members have no integral of their own."""

    def model(x: Tensor) -> None:
        tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
        mu = pyro.sample("mu", dist.Normal(0.0, tau.rsqrt()))
        observe(dist.Normal(mu, tau), x)

    words = ("'x'", "not conditionally conjugate in 'tau', 'mu'", "tau^-2", "of the Normal-Gamma block")
    assert_step_fails(model, (x,), NotConjugateError, *words, guide=AutoConjugate(model, blocks=[("mu", "tau")]))


# A latent's value used as a number, in a model.


def _branch(x: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    observe(dist.Normal(0.0, 1.0 if tau > 1 else 2.0), x)


def _item(x: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    observe(dist.Normal(0.0, tau.item() ** -0.5), x)


def _add_in_place(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    mu += 1
    observe(dist.Normal(mu, 1.0), x)


def _new_tensor(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    observe(dist.Normal(torch.tensor([mu, mu])[0].double(), 1.0), x)


def _direct_draw(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    observe(dist.Normal(dist.Normal(mu, 1.0).sample(), 1.0), x)


def _distribution_attribute(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    observe(dist.Normal(float(dist.Normal(mu, 1.0).loc), 1.0), x)


NUMBERS = [
    (_branch, "__bool__"),
    (_item, "item"),
    (_add_in_place, "in-place"),
]
NUMBERS += [(_new_tensor, ""), (_direct_draw, "direct draw"), (_distribution_attribute, "")]


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize(("model", "word"), NUMBERS, ids=[m.__name__ for m, _ in NUMBERS])
def test_a_latent_used_as_a_number(model: Model, word: str, x: Tensor) -> None:
    assert_step_fails(model, (x,), LatentValueError, "'tau'" if "tau" in model.__code__.co_varnames else "'mu'", word)


# Natural parameters.


def test_an_improper_prior(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        tau = pyro.sample("tau", dist.Gamma(torch.tensor(0.0), torch.tensor(0.0), validate_args=False))
        observe(dist.Normal(0.0, tau.rsqrt()), x)

    pyro.enable_validation(False)
    assert_step_fails(
        model, (x,), NaturalDomainError, "proper prior for 'tau'", "domain of Gamma", "concentrations, rates"
    )


def test_a_parameter_that_torch_refuses(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        tau = pyro.sample("tau", dist.Gamma(-1.0, 1.0))
        observe(dist.Normal(0.0, tau.rsqrt()), x)

    guide = AutoConjugate(model)
    with pytest.raises(ValueError, match="concentration"):
        CAVI(model, guide).step(x)
    assert COERCIONS == []


def test_data_too_large_for_its_dtype() -> None:
    x = torch.tensor([1e30, -1e30, 3e30], dtype=torch.float32)
    guide = AutoConjugate(gaussian)
    cavi = CAVI(gaussian, guide)
    with pytest.raises(NaturalDomainError, match=r"update of '(mu|tau)' to be a proper .*float64.*as before the step"):
        cavi.run(x)
    assert all(t.isfinite().all() for t in guide.state_dict().values() if isinstance(t, Tensor))


# A fitted guide.


@pytest.fixture
def fitted(x: Tensor) -> AutoConjugate:
    guide = AutoConjugate(gaussian)
    CAVI(gaussian, guide).run(x, max_steps=3)
    return guide


def test_later_data_that_is_not_finite(fitted: AutoConjugate, x: Tensor) -> None:
    x[5] = torch.nan
    assert_step_fails(gaussian, (x,), DataError, "finite data at site 'x'", "1 of 20", guide=fitted)


def test_later_data_of_another_dtype(fitted: AutoConjugate, x: Tensor) -> None:
    assert_step_fails(
        gaussian, (x.float(),), DataError, "torch.float64", "got torch.float32", "guide.to(...)", guide=fitted
    )


def test_later_data_of_another_shape(fitted: AutoConjugate, x: Tensor) -> None:
    assert_step_fails(gaussian, (x.reshape(4, 5),), DataError, "'x'", "(4, 5)", guide=fitted)


def test_later_global_shapes(x: Tensor) -> None:
    guide = AutoConjugate(mixture)
    CAVI(mixture, guide).run(x, 2, max_steps=3)
    before = snapshot(guide)
    with pytest.raises(ModelError, match=r"Expected the .*got .*Make a new guide"):
        CAVI(mixture, guide).step(x, 3)
    assert_unchanged(guide, before)

    def vectors(x: Tensor, n: int) -> None:
        with pyro.plate("components", n):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        observe(dist.Normal(mu[0], 1.0), x)

    assert_later_fails(vectors, (x, 2), (x, 3), "global block 'mu' of shape [[2]]", "got [[3]]", "Make a new guide")


def assert_later_fails(model: Model, first: tuple[Any, ...], then: tuple[Any, ...], *words: str) -> None:
    guide = AutoConjugate(model)
    CAVI(model, guide).run(*first, max_steps=2)
    assert_step_fails(model, then, ModelError, *words, guide=guide)


def test_later_latents_and_families(x: Tensor) -> None:
    def model(x: Tensor, kind: str) -> None:
        if kind == "other family":
            mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(1).to(x), torch.eye(1).to(x))).squeeze()
        else:
            mu = pyro.sample("nu" if kind == "other name" else "mu", dist.Normal(0.0, 1.0))
        if kind == "one more":
            mu = mu + pyro.sample("shift", dist.Normal(0.0, 1.0))
        if kind == "discrete":
            z = pyro.sample("z", dist.Bernoulli(0.5))
            mu = mu + z
        observe(dist.Normal(mu, 1.0), x)

    first = (x, "plain")
    assert_later_fails(
        model, first, (x, "one more"), "latent sites and blocks", "['mu'], ['shift']", "Make a new guide"
    )
    assert_later_fails(model, first, (x, "other name"), "latent sites and blocks", "[['mu']]", "got [['nu']]")
    assert_later_fails(model, first, (x, "other family"), "families", "'Normal'", "'Multivariate normal'")
    assert_later_fails(model, first, (x, "discrete"), "discrete sites", "{}", "'z'")


def test_later_errors_leave_the_run_where_it_was(fitted: AutoConjugate, x: Tensor) -> None:
    cavi = CAVI(gaussian, fitted)
    level = cavi.evaluate_loss(x)
    with pytest.raises(DataError):
        cavi.run(x.float())
    with pytest.raises(DataError):
        cavi.evaluate_loss(torch.where(x > 3, x, torch.nan))
    assert cavi.evaluate_loss(x) == pytest.approx(level, rel=1e-14)
    assert cavi.step(x) <= level + 1e-9


# Hand-written updates.


RIGHT_SWEEPS = 15


def converged(updates: dict[Any, Any], x: Tensor) -> tuple[AutoConjugate, CAVI]:
    """A fit by updates that are right so far."""
    model = handlers.closed_form(gaussian, updates)
    guide = AutoConjugate(model)
    cavi = CAVI(model, guide)
    cavi.run(x, max_steps=RIGHT_SWEEPS, tol=0)
    return guide, cavi


class Going:
    """An update that is right for a while, then returns something else."""

    def __init__(self, wrong: Callable[[Any], Any], right_steps: int = RIGHT_SWEEPS) -> None:
        self.wrong, self.left = wrong, right_steps

    def __call__(self, q: Any, x: Tensor) -> Any:
        mu = q["mu"]
        right = dist.Gamma(2.0 + len(x) / 2, 1.0 + ((x - mu.mean) ** 2 + mu.variance).sum() / 2)
        self.left -= 1
        return right if self.left >= 0 else self.wrong(right)


def improper(right: Any) -> Any:
    return dist.Gamma(right.concentration, -right.rate, validate_args=False)


def not_a_number(right: Any) -> Any:
    return dist.Gamma(right.concentration, right.rate * torch.nan, validate_args=False)


WRONG: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (improper, NaturalDomainError, r"update of 'tau' to be a proper Gamma.*outside its domain.*as before the step"),
    (not_a_number, NaturalDomainError, r"update of 'tau' to be a proper Gamma"),
    (
        lambda q: dist.Normal(q.mean, 1.0),
        ModelError,
        r"Expected a Gamma distribution from the update of 'tau'; got Normal",
    ),
    (
        lambda q: dist.LogNormal(q.mean, 1.0),
        ModelError,
        r"Expected a Gamma distribution from the update of 'tau'; got LogNormal",
    ),
    (lambda q: q.expand([3]), ModelError, r"Expected parameters of shapes .*from the update of 'tau'; got .*\(3,\)"),
    (lambda q: q.mean, ModelError, r"Expected a Gamma distribution from the update of 'tau'; got Tensor"),
    (lambda q: None, ModelError, r"Expected a Gamma distribution from the update of 'tau'; got NoneType"),
    (
        lambda q: dist.Gamma(q.concentration, q.rate * 3),
        ElboDecreaseError,
        r"ELBO not to fall; got a fall of [\d.]+ nats, by the update of 'tau'.*check_updates.*as before the step",
    ),
]


@pytest.mark.parametrize(("wrong", "error", "words"), WRONG)
def test_a_hand_written_update_that_goes_wrong(
    wrong: Callable[[Any], Any], error: type[Exception], words: str, x: Tensor
) -> None:
    guide, cavi = converged({"tau": Going(wrong)}, x)
    before, level = snapshot(guide), cavi.evaluate_loss(x)
    with pytest.raises(error, match=words):
        cavi.step(x)
    assert_unchanged(guide, before)
    assert cavi.evaluate_loss(x) == level


def test_an_update_that_raises_leaves_the_guide(x: Tensor) -> None:
    def wrong(q: Any, x: Tensor) -> Any:
        return q["no such site"]

    model = handlers.closed_form(gaussian, {"tau": wrong})
    guide = AutoConjugate(model)
    with pytest.raises(KeyError, match=r"Expected one of \['tau', 'mu'\]; got 'no such site'"):
        CAVI(model, guide).step(x)


def failing(x: Tensor, fail: bool) -> None:
    top = pyro.sample("top", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        mu = pyro.sample("mu", dist.Normal(top, 1.0))
        pyro.sample("x", dist.Normal(mu, 0.5), obs=x)


def update_top(q: Any, x: Tensor, fail: bool) -> Any:
    if fail:
        raise ArithmeticError("no update")
    precision = torch.as_tensor(len(x) + 0.01, dtype=x.dtype)
    return dist.Normal(q["mu"].mean.sum() / precision, precision.rsqrt())


@pytest.mark.parametrize("rows", [20, 33])
@pytest.mark.parametrize("seen", [False, True], ids=["new guide", "fitted guide"])
def test_an_error_inside_a_sweep_leaves_the_guide_as_it_was(rows: int, seen: bool, x: Tensor) -> None:
    """Also where the data has a new size, and where the guide has not seen any."""
    model = handlers.closed_form(failing, {"top": update_top})
    guide = AutoConjugate(model)
    cavi = CAVI(model, guide)
    if seen:
        cavi.run(x, False, max_steps=3)
    before = snapshot(guide)
    with pytest.raises(ArithmeticError, match="no update"):
        cavi.step(torch.randn(rows, dtype=torch.float64), True)
    assert_unchanged(guide, before)
    if seen:
        cavi.step(x, False)


def test_a_transformed_normal_is_no_normal(x: Tensor) -> None:
    """A LogNormal has a Normal inside, but is another family."""
    guide = AutoConjugate(gaussian, init={"mu": dist.LogNormal(0.0, 1.0)})
    words = (r"a Normal distribution from init['mu']", "got LogNormal")
    assert_step_fails(gaussian, (x,), ModelError, *words, guide=guide)


def test_the_fall_is_blamed_on_the_right_site(x: Tensor) -> None:
    def wrong_mean(q: Any, x: Tensor) -> Any:
        calls.append(1)
        precision = len(x) * q["tau"].mean + 0.01
        return dist.Normal(
            x.sum() * q["tau"].mean / precision + (0.5 if len(calls) > RIGHT_SWEEPS else 0.0), precision.rsqrt()
        )

    calls: list[int] = []
    _, cavi = converged({"mu": wrong_mean}, x)
    with pytest.raises(ElboDecreaseError, match="by the update of 'mu'"):
        cavi.step(x)


def test_closed_form_says_what_it_expected(x: Tensor) -> None:
    with pytest.raises(TypeError, match=r"Expected a function update\(q, \*args, \*\*kwargs\) for 'tau'; got 3"):
        handlers.closed_form(gaussian, {"tau": 3})  # type: ignore[dict-item]
    for updates, got in (
        (5, "got int"),
        ({3: scale_is_tau}, r"got updates for \[3\]"),
        ({(): scale_is_tau}, r"got .*\(\)"),
    ):
        with pytest.raises(TypeError, match=rf"Expected updates by site.*{got}.* Write closed_form\(model, {{'site': "):
            handlers.closed_form(gaussian, updates)  # type: ignore[arg-type]
    model = handlers.closed_form(gaussian, {"tua": lambda q, x: None})
    assert_step_fails(model, (x,), ModelError, "updates for latent sites", "['tua']", "which it lacks")
    observed = handlers.closed_form(gaussian, {"x": lambda q, x: None})
    assert_step_fails(observed, (x,), ModelError, "updates for latent sites", "['x']")


def test_updates_for_a_block_need_the_block(x: Tensor) -> None:
    """An update of (mean, precision) is for a joint block, not for two blocks of their own."""
    model = handlers.closed_form(normal_gamma.model, normal_gamma.joint_updates)
    guide = AutoConjugate(model)
    with pytest.raises(ModelError, match=r"blocks=\[\('mean', 'precision'\)\]"):
        CAVI(model, guide).step(x)


# The constructors.


@pytest.mark.parametrize("restarts", [0, -1, 1.5, True, "2", None])
def test_restarts(restarts: Any) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"Expected restarts to be an integer of at least 1; got {restarts!r}")
    ):
        AutoConjugate(gaussian, restarts=restarts)


@pytest.mark.parametrize("blocks", ["mu", ["mu", "tau"], [("mu", 3)], [["mu", None]]])
def test_blocks_that_are_no_tuples_of_names(blocks: Any) -> None:
    with pytest.raises(
        TypeError, match=r"Expected blocks to be tuples of site names, such as \[\('mean', 'precision'\)\]"
    ):
        AutoConjugate(gaussian, blocks=blocks)


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([("mu", "tua")], ("continuous latent sites ['mu', 'tau']", "['tua']")),
        ([("mu", "x")], ("continuous latent sites", "['x']")),
        ([("mu", "tau"), ("tau", "mu")], ("each site in one block", "share sites")),
        ([("mu", "mu")], ("each site in one block",)),
    ],
)
def test_blocks_of_the_wrong_sites(blocks: Any, words: tuple[str, ...], x: Tensor) -> None:
    guide = AutoConjugate(gaussian, blocks=blocks)
    assert_step_fails(gaussian, (x,), NotConjugateError, *words, guide=guide)


def test_blocks_that_no_family_fits(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Beta(1.0, 1.0))
        observe(dist.Normal(a + b, 1.0), x)

    guide = AutoConjugate(model, blocks=[("a", "b")])
    words = (
        "joint block of normal sites, or of a known family",
        "Normal-Gamma: Normal with Gamma",
        "got Normal with Beta",
    )
    assert_step_fails(model, (x,), NotConjugateError, *words, guide=guide)


def test_a_joint_block_without_a_conditional_prior(x: Tensor) -> None:
    """The prior of mu must have a precision proportional to tau."""
    guide = AutoConjugate(gaussian, blocks=[("mu", "tau")])
    words = ("'mu'", "Normal-Gamma", "precision is proportional to the latent precision", "separate blocks")
    assert_step_fails(gaussian, (x,), NotConjugateError, *words, guide=guide)


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ({"nu": dist.Normal(0.0, 1.0)}, ("init for sites or blocks among ['mu', 'tau']", "['nu']")),
        ({"mu": dist.Gamma(1.0, 1.0)}, ("Normal distribution from init['mu']", "got Gamma")),
        ({"mu": dist.Normal(torch.zeros(3), 1.0)}, ("shapes", "init['mu']", "(3,)")),
        ({"mu": torch.zeros(3)}, ("init", "'mu'", "(3,)")),
        ({"tau": torch.ones(())}, ("a distribution as init for 'tau'", "a Gamma block", "got a tensor")),
        ({"mu": "zero"}, ("init['mu']", "got str")),
        ("kmeans", ("init", "'kmeans'")),
        (1.5, ("init", "1.5")),
    ],
)
def test_starts(init: Any, words: tuple[str, ...], x: Tensor) -> None:
    with pytest.raises((ModelError, TypeError, ValueError)) as caught:
        CAVI(gaussian, AutoConjugate(gaussian, init=init)).step(x)
    for word in ("Expected", *words):
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def test_an_improper_start(x: Tensor) -> None:
    init = {"tau": dist.Gamma(torch.tensor(-1.0), torch.tensor(1.0), validate_args=False)}
    with pytest.raises(NaturalDomainError, match=r"'tau'.*domain"):
        CAVI(gaussian, AutoConjugate(gaussian, init=init)).step(x)


def test_responsibilities_of_the_wrong_shape(x: Tensor) -> None:
    guide = AutoConjugate(mixture, init={"z": torch.ones(20, 3)})
    words = ("responsibilities of shape (20, 2) for 'z'", "got (20, 3)")
    assert_step_fails(mixture, (x,), ModelError, *words, guide=guide)


@pytest.mark.parametrize("bad", [-0.5, float("nan"), 0.0])
def test_responsibilities_that_are_no_probabilities(bad: float, x: Tensor) -> None:
    probs = torch.full((20, 2), 0.5)
    probs[3] = bad
    guide = AutoConjugate(mixture, init={"z": probs})
    assert_step_fails(mixture, (x,), ModelError, "responsibilities", "'z'", guide=guide)


def test_init_of_half_a_block(x: Tensor) -> None:
    guide = AutoConjugate(
        normal_gamma.model, blocks=[("mean", "precision")], init={"mean": dist.Normal(torch.zeros(()).double(), 1.0)}
    )
    words = ("the whole block ('mean', 'precision')", "['mean'] alone")
    assert_step_fails(normal_gamma.model, (x,), ModelError, *words, guide=guide)


def test_cavi_wants_its_own_guide(x: Tensor) -> None:
    with pytest.raises(TypeError, match=r"got an autoguide for SVI. Write CAVI\(model, AutoConjugate\(model\)\)"):
        CAVI(gaussian, AutoNormal(gaussian))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got function"):
        CAVI(gaussian, gaussian)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the guide of this model; got the guide of another"):
        CAVI(mixture, AutoConjugate(gaussian))


@pytest.mark.parametrize("local_steps", [0, -1, 1.5, "2", True])
def test_local_steps(local_steps: Any) -> None:
    with pytest.raises(ValueError, match="Expected local_steps to be an integer of at least 1; got"):
        CAVI(gaussian, AutoConjugate(gaussian), local_steps=local_steps)


@pytest.mark.parametrize("local_tol", [-1.0, float("nan"), "small"])
def test_local_tol(local_tol: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="local_tol"):
        CAVI(gaussian, AutoConjugate(gaussian), local_tol=local_tol)


@pytest.mark.parametrize("max_steps", [0, -5, 2.5, "many"])
def test_max_steps(max_steps: Any, x: Tensor) -> None:
    with pytest.raises((ValueError, TypeError), match="Expected max_steps"):
        CAVI(gaussian, AutoConjugate(gaussian)).run(x, max_steps=max_steps)


@pytest.mark.parametrize("tol", [-1e-8, float("nan")])
def test_tol(tol: float, x: Tensor) -> None:
    with pytest.raises(ValueError, match="Expected a tolerance of at least 0; got"):
        CAVI(gaussian, AutoConjugate(gaussian)).run(x, tol=tol)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (["mu"], "['tau'] missing"),
        (["mu", "tau", "nu"], "['nu'] unknown"),
        ([], "['mu', 'tau']"),
        (["x", "mu", "tau"], "['x'] unknown"),
    ],
)
def test_order(order: list[str], words: str, x: Tensor) -> None:
    guide = AutoConjugate(gaussian)
    with pytest.raises(ModelError, match="Expected order to name every latent site") as caught:
        CAVI(gaussian, guide, order=order).step(x)
    for word in words.strip("[]").split(", "):
        assert word.strip("[]").split("]")[0] in str(caught.value)


def test_a_new_guide_has_nothing_to_tell() -> None:
    for ask in ("posterior", "median", "elbo"):
        with pytest.raises((ModelError, TypeError)):
            getattr(AutoConjugate(gaussian), ask)()
    with pytest.raises(ModelError, match=r"got a new one. Call CAVI\(model, guide\).run\(data\)"):
        _ = AutoConjugate(gaussian).state
    with pytest.raises(ModelError, match=r"Expected a guide that has seen data|Expected the model's arguments"):
        AutoConjugate(gaussian).posterior()


def test_quantiles_outside_the_unit_interval(fitted: AutoConjugate) -> None:
    with pytest.raises(ValueError, match=r"Expected quantiles in \(0, 1\); got \[0.0, 1.5\]"):
        fitted.quantiles([0.0, 0.5, 1.5])


def test_expected_log_factors_wants_every_posterior(x: Tensor) -> None:
    with pytest.raises(ModelError, match=r"a posterior for every continuous latent site; got none for \['tau'\]"):
        handlers.expected_log_factors(gaussian, {"mu": dist.Normal(0.0, 1.0)}, x)


# Nothing else in the process changes.


@pytest.mark.parametrize("model", [gaussian, mixture], ids=["continuous", "discrete"])
def test_the_random_state_is_left_alone(model: Model, x: Tensor) -> None:
    before = torch.get_rng_state()
    guide = AutoConjugate(model)
    handlers.record(model, x)
    guide.explain(x)
    CAVI(model, guide).run(x, max_steps=3)
    guide.posterior()
    guide.median()
    guide.elbo(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_baseline_by_svi_is_the_same_beside_it(x: Tensor) -> None:
    def baseline(beside: bool) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        svi = SVI(gaussian, AutoNormal(gaussian), Adam({"lr": 0.01}), Trace_ELBO())
        guide = AutoConjugate(gaussian)
        losses = []
        for _ in range(3):
            losses.append(svi.step(x))
            if beside:
                CAVI(gaussian, guide).step(x)
        return losses

    assert baseline(True) == baseline(False)


def test_parameters_do_not_leak(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.5, dtype=torch.float64))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        observe(dist.Normal(mu + shift, 1.0), x)

    with poutine.trace(param_only=True) as trace:
        CAVI(model, AutoConjugate(model)).run(x, max_steps=2)
    assert not trace.trace.nodes or set(trace.trace.nodes) <= {"_INPUT", "_RETURN"}
    store = dict(pyro.get_param_store())
    pyro.clear_param_store()
    CAVI(gaussian, AutoConjugate(gaussian)).run(x, max_steps=2)
    assert set(store) <= {"shift"}
    assert not dict(pyro.get_param_store())


def test_the_coercion_hook_is_gone_after_success_and_failure(x: Tensor) -> None:
    CAVI(gaussian, AutoConjugate(gaussian)).step(x)
    assert COERCIONS == []
    with pytest.raises(NotConjugateError):
        CAVI(sum_of_rates, AutoConjugate(sum_of_rates)).step(x)
    assert COERCIONS == []


def test_point_names_latent_sites() -> None:
    x = torch.randn(20).double()
    with pytest.raises(ModelError, match=r"Expected point to name continuous latent sites of .*; got \['typo'\]"):
        CAVI(normal_gamma.model, AutoConjugate(normal_gamma.model, point=["typo"])).step(x)


def test_quantiles_are_a_list() -> None:
    x = torch.randn(20).double()
    guide = AutoConjugate(normal_gamma.model)
    CAVI(normal_gamma.model, guide).step(x)
    with pytest.raises(TypeError, match=r"a list of quantiles, such as \[0.5\]"):
        guide.quantiles(0.5)  # type: ignore[arg-type]
