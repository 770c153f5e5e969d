"""Linear response: exact where the posterior is normal, the derivative that it is called after, and near to NUTS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from shared_models import batch_mixture, gaussian, mixture
from torch import Tensor

from benchmarks.acceleration import crossed, factors, level, ratings, schools, walk
from benchmarks.mixtures import ppca_model
from examples.originals.fits import ORIGINALS, REFERENCES
from pyro_latent import CAVI, ArgumentError, AutoConjugate, ModelError, settings
from pyro_latent.distributions.elimination import Elimination
from pyro_latent.guide import LinearResponse
from pyro_latent.models import bivariate_gaussian

pytestmark = pytest.mark.usefixtures("float64")


def fitted(model: Callable[..., Any], *args: Any, tol: float = 1e-14, **options: Any) -> AutoConjugate:
    guide = AutoConjugate(model, **options)
    CAVI(model, guide, accelerate=True).run(*args, tol=tol, max_steps=3000)
    return guide


def response_of(model: Callable[..., Any], *args: Any, **options: Any) -> LinearResponse:
    return fitted(model, *args, **options).linear_response(*args)


def close(found: Tensor, expected: Tensor, rtol: float = 1e-8) -> None:
    """Equal, relative to the largest element."""
    assert float((found - expected).abs().max()) <= rtol * float(expected.abs().max())


# -------------------------------------------------------------------------------------------- exact where all is normal


def lines(x: Tensor, y: Tensor) -> None:
    """Slopes and an intercept of their own factors; the noise is known."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 10.0).to_event(1))
    b = pyro.sample("b", dist.Normal(x.new_tensor(0.0), 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ w + b, 0.5), obs=y)


def test_a_regression_with_its_intercept_apart_has_the_exact_covariance() -> None:
    x = 3 + torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    found = response_of(lines, x, x.sum(1) + 1)
    design = torch.cat([x, torch.ones(40, 1)], 1)
    exact = (design.T @ design / 0.25 + torch.eye(3) / 100).inverse()
    close(found.covariance("w"), exact[:2, :2])
    close(found.covariance("w", "b"), exact[:2, 2])
    close(found.covariance("b", "w"), exact[:2, 2])
    close(found.sd("b"), exact[2, 2].sqrt())
    close(found.correlation("w", "b"), exact[:2, 2] / (exact[:2, :2].diagonal() * exact[2, 2]).sqrt())
    assert found.gap < 1e-9
    assert found.sites == ("w", "b")


def test_crossed_effects_of_known_variances_have_the_exact_covariance() -> None:
    y, rows, columns = ratings(30, 4, 5, 1.0)

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 10.0))
        with pyro.plate("rows", 4):
            a = pyro.sample("a", dist.Normal(y.new_tensor(0.0), 1.0))
        with pyro.plate("columns", 5):
            b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + a[rows] + b[columns], 0.7), obs=y)

    found = response_of(model)
    design = torch.zeros(30, 10)
    design[:, 0] = 1
    design[torch.arange(30), 1 + rows] = design[torch.arange(30), 5 + columns] = 1
    prior = torch.cat([torch.full((1,), 0.01), torch.ones(4), torch.full((5,), 0.25)])
    exact = (design.T @ design / 0.49 + torch.diag(prior)).inverse()
    close(found.covariance("a"), exact[1:5, 1:5])
    close(found.covariance("a", "b"), exact[1:5, 5:])
    close(found.sd("mu"), exact[0, 0].sqrt())


@pytest.mark.parametrize("blocks", [None, [("x_0", "x_1", "x_2")]])
def test_a_random_walk_has_the_exact_covariance(blocks: Any) -> None:
    """By itself, and where some of its steps share a factor."""
    (y,) = walk(6)
    found = response_of(level, y, 0.3, blocks=blocks)
    difference = torch.eye(6)[1:] - torch.eye(6)[:-1]
    exact = (torch.eye(6) + torch.diag(torch.tensor([0.01] + [0.0] * 5)) + difference.T @ difference / 0.09).inverse()
    covariance = torch.stack([torch.stack([found.covariance(f"x_{i}", f"x_{j}") for j in range(6)]) for i in range(6)])
    close(covariance, exact)


def test_the_plane_of_two_factors_has_the_exact_covariance() -> None:
    loc, precision = torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 1.5], [1.5, 3.0]])
    found = response_of(bivariate_gaussian.model, loc, precision)
    exact = precision.inverse()
    close(found.covariance("first", "second"), exact[0, 1])
    close(torch.stack([found.sd("first"), found.sd("second")]), exact.diagonal().sqrt())


# ------------------------------------------------------------------------------------------ the law: it is a derivative


def pushed(model: Callable[..., Any], site: str, t: float, element: tuple[int, ...]) -> Callable[..., None]:
    """The model whose log joint has t times an element of a site more."""

    def changed(*args: Any) -> None:
        seen: dict[str, Any] = {}

        class Catch(poutine.messenger.Messenger):
            def _pyro_post_sample(self, msg: Any) -> None:
                if msg["name"] == site:
                    seen[site] = msg["value"]

        with Catch():
            model(*args)
        pyro.factor("push", t * seen[site][element])

    return changed


def normal_gamma(x: Tensor) -> None:
    """A joint block beside another site."""
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    mu = pyro.sample("mu", dist.Normal(0.0, (0.1 * tau).rsqrt()))
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu + shift, tau.rsqrt()), obs=x)


def chain(y: Tensor) -> None:
    """Hidden states with unknown transitions and levels."""
    with pyro.plate("states", 2):
        rows = pyro.sample("rows", dist.Dirichlet(2 * torch.ones(2)))
        level = pyro.sample("level", dist.Normal(0.0, 3.0))
    z: Any = 0
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(rows[z]), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Normal(level[z], 1.0), obs=y[t])


DATA = torch.tensor([0.1, 2.5, 2.0, 3.0, -0.5, 0.3, 2.9, 2.2, 0.1, -0.3], dtype=torch.float64)
START = torch.tensor([0.0, 2.5], dtype=torch.float64)
LAWS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str, tuple[int, ...], dict[str, Any]]] = {
    "two factors": (gaussian, (DATA,), "mu", (), {}),
    "a Gamma": (gaussian, (DATA,), "tau", (), {}),
    "a mixture": (mixture, (DATA, 2), "mu", (0,), {"init": {"mu": START}}),
    "a chain": (chain, (DATA,), "level", (1,), {"init": {"level": START}}),
    "a scale by quadrature": (schools, (), "theta", (2,), {}),
    "a joint block beside it": (schools, (), "mu", (), {"blocks": [("mu", "theta")]}),
    "a normal-gamma block": (normal_gamma, (DATA,), "shift", (), {"blocks": [("mu", "tau")]}),
    "effects": (crossed, ratings(40, 4, 5, 1.0), "tau_rows", (), {}),
}


@pytest.mark.parametrize("name", list(LAWS))
def test_a_covariance_is_how_a_mean_moves_with_what_pushes_another_site(name: str) -> None:
    """By fits of the model that is pushed to either side."""
    model, args, site, element, options = LAWS[name]
    found, step = response_of(model, *args, **options), 3e-3
    means: list[dict[str, Tensor]] = []
    for t in (step, -step):
        posterior = fitted(pushed(model, site, t, element), *args, check=False, **options).posterior()
        means.append({other: posterior[other].mean for other in found.sites})
    for other in found.sites:
        slope = (means[0][other] - means[1][other]) / (2 * step)
        covariance = found.covariance(other, site)
        for index in reversed(element):
            covariance = covariance[..., index]
        scale = (found.sd(other).max() * found.sd(site).max()).item()
        torch.testing.assert_close(covariance, slope, atol=2e-4 * scale, rtol=1e-3)


def test_with_nothing_to_correct_covariances_are_those_of_the_factors() -> None:
    """Alone, a Gamma has its variance, its logarithm a trigamma; a Dirichlet its covariance."""

    def model() -> None:
        pyro.sample("tau", dist.Gamma(torch.tensor(3.0), 2.0))
        shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.3), 0.4))
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Categorical(shares), obs=torch.tensor([0, 1, 1, 2]))
        pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0 + 0 * scale), obs=torch.tensor(1.0))

    found = response_of(model)
    close(found.covariance("tau"), torch.tensor(3 / 4))
    close(found.sd("log tau"), torch.special.polygamma(1, torch.tensor(3.0)).sqrt())
    close(found.covariance("tau", "log tau"), torch.tensor(0.5))  # d E x / d shape = 1 / rate
    concentration = torch.tensor([2.0, 4.0, 4.0])
    share = concentration / 10
    close(found.covariance("shares"), (torch.diag(share) - share.outer(share)) / 11)
    close(found.sd("log scale"), torch.tensor(0.4))
    assert float(found.covariance("tau", "scale")) == 0


def test_the_gradient_of_eliminated_covariances_counts_each_pair_once() -> None:
    """∂Σ / ∂Λ = −Σ ∂Λ Σ, also of cells of several variables, whose pairs have two places in their matrix."""
    rows, columns = torch.tril_indices(4, 4)
    precision = torch.eye(4) * 3 + 0.5
    plan = Elimination(4, rows, columns)
    at = precision[rows, columns].unsqueeze(0).requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda p: plan.factorize(p).covariances[0], at)[:, 0]
    covariance = precision.inverse()
    for k, (i, j) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        change = torch.zeros(4, 4)
        change[i, j] = change[j, i] = 1
        torch.testing.assert_close(jacobian[:, k], -(covariance @ change @ covariance)[rows, columns])


# -------------------------------------------------------------------------------------------- against long runs of NUTS

NUTS = {
    "eight_schools": {"mu": "mu", "log tau": "log_tau"},
    "kidiq": {"weights": "weights", "log sigma": "log_sigma"},
    "radon": {name: name.replace(" ", "_") for name in ("alpha", "mu", "beta", "log spread", "log sigma")},
    "logistic": {"weights": "weights"},
    "probit": {"weights": "weights"},
    "negative_binomial": {"weights": "weights"},
}


@pytest.mark.parametrize("name", list(NUTS))
def test_standard_deviations_are_within_a_tenth_of_those_of_nuts(name: str) -> None:
    """Also where those under q are 0.42 of them, as with auxiliary weights."""
    original = next(o for o in ORIGINALS if o.reference == name)
    data = original.data()
    found = fitted(original.model, *data, tol=1e-10, **original.options).linear_response(*data)
    reference = np.load(REFERENCES / f"{name}.npz")
    for site, quantity in NUTS[name].items():
        ratio = found.sd(site).numpy() / reference[f"{quantity}/sd"]
        assert np.abs(ratio - 1).max() < 0.1, (site, ratio)


def test_correlations_are_those_of_draws_by_nuts() -> None:
    original = next(o for o in ORIGINALS if o.reference == "probit")
    data = original.data()
    found = fitted(original.model, *data, tol=1e-10, **original.options).linear_response(*data)
    draws = np.load(REFERENCES / "probit.npz")["weights/draws"]
    assert np.abs(found.correlation("weights").numpy() - np.corrcoef(draws.T)).max() < 0.12


# ------------------------------------------------------------------------------------------------------ what it refuses


def test_a_guide_that_is_not_at_an_optimum_is_an_error() -> None:
    data = ratings(60, 5, 6)
    guide = AutoConjugate(crossed)
    CAVI(crossed, guide).run(*data, max_steps=5)
    with pytest.raises(ModelError, match=r"Expected a guide at an optimum.*got one (that|whose).*Run on"):
        guide.linear_response(*data)
    other = fitted(crossed, *data)
    with pytest.raises(ModelError, match="Expected a guide at an optimum"):
        other.linear_response(data[0] + 1, *data[1:])  # new data, at which the globals are no optimum


def test_a_saddle_is_an_error() -> None:
    """Components that start as one stay one, though the bound rises where they part."""
    x = torch.cat([torch.randn(30) - 4, torch.randn(30) + 4])
    guide = AutoConjugate(mixture, init={"z": torch.full((60, 2), 0.5), "mu": torch.zeros(2)})
    CAVI(mixture, guide).run(x, 2, tol=1e-14)
    with pytest.raises(ModelError, match="got a saddle, from which it rises along 'mu'"):
        guide.linear_response(x, 2)


def test_a_line_of_optima_is_an_error() -> None:
    """Factors and their loadings may be rotated: no data tells how, and a variance would be infinite."""
    data = factors(12, 4, (2.0, 1.0))
    guide = fitted(ppca_model, *data)
    with pytest.raises(ModelError, match="Expected one optimum; got a line of them along"):
        guide.linear_response(*data)


def test_points_and_parameters_are_given() -> None:
    x = torch.randn(20)
    guide = fitted(gaussian, x, point=["tau"])
    found = guide.linear_response(x)
    assert found.conditional_on == ("tau",)
    tau = guide.posterior()["tau"].mean
    close(found.sd("mu"), (20 * tau + 0.01).rsqrt())
    with pytest.raises(ArgumentError, match=r"Expected one of the sites \['mu'\]; got 'tau'. It is a point"):
        found.covariance("mu", "tau")


def test_sites_that_it_has_no_covariance_of_are_errors() -> None:
    found = response_of(mixture, DATA, 2, init={"mu": START})
    with pytest.raises(ArgumentError, match="got 'z'"):
        found.sd("z")
    with pytest.raises(ModelError, match="whose covariances under q have a formula; got 'mu'"):
        found.sd("log mu")


def test_what_is_too_large_or_a_part_of_the_data_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = fitted(gaussian, DATA)
    monkeypatch.setattr(settings, "memory_limit", 100)
    with pytest.raises(ModelError, match="the system of the 4 statistics of all factors"):
        guide.linear_response(DATA)
    monkeypatch.undo()
    half = AutoConjugate(batch_mixture)
    CAVI(batch_mixture, half, step_size=0.5).step(DATA, 20)
    with pytest.raises(ModelError, match="Expected all of the data; got a subsample"):
        half.linear_response(DATA, 20)

    def scaled(x: Tensor) -> None:
        with poutine.scale(scale=2.0):
            gaussian(x)

    with pytest.raises(ModelError, match="Expected sites that count once; got 'tau' with a scale"):
        fitted(scaled, DATA).linear_response(DATA)


def test_float32_has_nearly_the_same_covariances() -> None:
    torch.set_default_dtype(torch.float32)
    found = response_of(mixture, DATA.float(), 2, tol=1e-8, init={"mu": START})
    torch.set_default_dtype(torch.float64)
    exact = response_of(mixture, DATA, 2, init={"mu": START})
    torch.testing.assert_close(found.covariance("mu"), exact.covariance("mu"), atol=1e-3, rtol=1e-3)
