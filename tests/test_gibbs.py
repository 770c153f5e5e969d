"""Gibbs sampling: its draws against exact posteriors, brute force, and long runs of NUTS."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from references import problems
from references.make_references import FOLDER
from shared_models import gaussian, schools_with_gamma, weights_and_bias
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, Gibbs, ModelError, NotConjugateError, settings, to_arviz
from pyro_latent.criticism import compare

X = torch.tensor([1.2, -0.7, 3.4, 0.4, 2.2], dtype=torch.float64)
_LINKS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)


def draws(model: Callable[..., Any], *args: Any, num: int = 2000, **options: Any) -> dict[str, Tensor]:
    pyro.set_rng_seed(0)
    sampler = Gibbs(model, num, 200, **options)
    sampler.run(*args)
    found: dict[str, Tensor] = sampler.get_samples()
    return found


def joint(x: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    mu = pyro.sample("mu", dist.Normal(0.0, (0.1 * tau).rsqrt()))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=x)


@pytest.mark.parametrize("blocks", [(), [("mu", "tau")]], ids=["each", "together"])
def test_the_moments_are_those_of_the_exact_posterior(blocks: Any) -> None:
    guide = AutoConjugate(joint, blocks=[("mu", "tau")])
    CAVI(joint, guide).run(X)
    found = draws(joint, X, blocks=blocks)
    for name, exact in guide.posterior().items():
        assert found[name].dtype == torch.float64 and found[name].shape == (8000,)
        error = float((found[name].mean() - exact.mean).abs() / exact.variance.sqrt())
        assert error < 0.05, name
        assert float(found[name].var() / exact.variance) == pytest.approx(1, abs=0.12), name


# Discrete latents, by brute force.


def chain(x: Tensor) -> None:
    move, z = torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor(0)
    for t in range(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(move[z]))
        pyro.sample(f"x_{t}", dist.Normal(2.0 * z, 1.0), obs=x[t])


def pairs(x: Tensor) -> None:
    """Elements of one site that meet in a density."""
    with pyro.plate("node", 3, dim=-2):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
    with pyro.plate("from", 3, dim=-2), pyro.plate("to", 3, dim=-1):
        table = torch.tensor([[0.8, 0.1], [0.3, 0.6]])
        pyro.sample("link", dist.Bernoulli(table[z, z.transpose(-1, -2)]), obs=_LINKS)


def with_a_location(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", 3):
        z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mu + 2 * z, 1.0), obs=x[:3])


def exact_probabilities(
    model: Callable[..., Any], x: Tensor, names: list[str], shape: tuple[int, ...]
) -> dict[tuple[int, ...], float]:
    """By values of the discrete sites: Pyro's own joint density, summed over ``mu`` where there is one."""
    grid = torch.linspace(-8.0, 8.0, 101, dtype=torch.float64) if model is with_a_location else torch.zeros(1)
    found = {}
    for values in itertools.product([0, 1], repeat=len(names) * int(np.prod(shape))):
        numbers = torch.tensor(values).reshape(len(names), *shape)
        given = dict(zip(names, numbers.double() if model is with_a_location else numbers, strict=True))
        traces: list[Any] = [poutine.trace(poutine.condition(model, given | {"mu": m})).get_trace(x) for m in grid]
        found[values] = float(torch.stack([trace.log_prob_sum() for trace in traces]).logsumexp(0).exp())
    total = sum(found.values())
    return {values: each / total for values, each in found.items()}


@pytest.mark.parametrize(
    ("model", "names", "shape", "options"),
    [
        pytest.param(chain, ["z_0", "z_1", "z_2", "z_3", "z_4"], (), {}, marks=pytest.mark.slow),
        (pairs, ["z"], (3, 1), {}),
        (pairs, ["z"], (3, 1), {"mean_field": ["z"]}),
        (with_a_location, ["z"], (3,), {}),
    ],
    ids=["chain", "elements that meet", "elements in turn", "beside a location"],
)
def test_discrete_sites_have_their_exact_probabilities(
    model: Callable[..., Any], names: list[str], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    found = draws(model, X, num=200, num_chains=20, **options)
    rows = torch.stack([found[n].long().reshape(4000, *shape) for n in names], 1).flatten(1)
    seen, counts = rows.unique(dim=0, return_counts=True)
    shares = {tuple(row): int(n) / 4000 for row, n in zip(seen.tolist(), counts, strict=True)}
    for values, exact in exact_probabilities(model, X, names, shape).items():
        assert abs(shares.get(values, 0.0) - exact) < 5 * (exact / 4000) ** 0.5 + 1e-3, values


def test_chains_of_discrete_sites_alone_differ() -> None:
    pyro.set_rng_seed(0)
    sampler = Gibbs(chain, 50, 0, num_chains=3)
    sampler.run(X)
    first, second, third = sampler.get_samples(group_by_chain=True)["z_2"]
    assert not torch.equal(first, second) and not torch.equal(second, third) and first.dtype == torch.int64


# Long runs of NUTS, whose draws are committed with their script.


def check_against(name: str, found: dict[str, Tensor]) -> None:
    reference = np.load(FOLDER / f"{name}.npz")
    for quantity, values in found.items():
        mean, sd = reference[f"{quantity}/mean"], reference[f"{quantity}/sd"]
        assert np.all(np.abs(values.mean(0).numpy() - mean) < 0.1 * sd), quantity
        np.testing.assert_allclose(values.std(0).numpy(), sd, rtol=0.08, err_msg=quantity)


@pytest.mark.slow
def test_eight_schools_are_those_of_nuts() -> None:
    data = [torch.tensor(each, dtype=torch.float64) for each in (problems.STANDARD_ERRORS, problems.EFFECTS)]
    found = draws(schools_with_gamma, *data, num=1500)
    log_tau = -found["precision"].log() / 2
    check_against("eight_schools_gamma", {"mu": found["mu"], "theta": found["theta"], "log_tau": log_tau})


def test_a_regression_with_correlated_weights_is_that_of_nuts() -> None:
    check_against("diabetes_regression", draws(weights_and_bias, *problems.diabetes(), num=600))


# As any MCMC.


def test_missing_data_is_drawn_and_what_takes_an_mcmc_takes_it() -> None:
    seen: Any = torch.tensor([True, True, False, True, True])

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("n", 5):
            z = pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(mu + 3 * z, 1.0), obs=x, obs_mask=seen)

    pyro.set_rng_seed(0)
    sampler = Gibbs(model, 500, 100)
    sampler.run(X)
    found = sampler.get_samples()
    assert {n: tuple(v.shape) for n, v in found.items()} == {"mu": (2000,), "z": (2000, 5), "x_unobserved": (2000, 5)}
    missing = found["x_unobserved"][:, 2] - found["mu"] - 3 * found["z"][:, 2]
    assert float(missing.mean()) == pytest.approx(0, abs=0.08) and float(missing.std()) == pytest.approx(1, abs=0.08)
    sampler.summary()
    assert float(sampler.diagnostics()["mu"]["r_hat"]) < 1.1


def test_arviz_and_the_comparison_take_it_with_the_discrete_sites_that_it_drew() -> None:
    sampler = Gibbs(with_a_location, 300, 100)
    pyro.set_rng_seed(0)
    sampler.run(X)
    data = to_arviz(with_a_location, sampler, X, num_samples=1200)
    z = sampler.get_samples(group_by_chain=True)["z"]
    np.testing.assert_array_equal(data["posterior"]["z"].values, z.numpy())
    guide = AutoConjugate(with_a_location)
    CAVI(with_a_location, guide).run(X)
    table = compare(with_a_location, {"gibbs": sampler, "cavi": guide}, X, reference="gibbs", num_samples=1000)
    assert "gibbs" in str(table)
    assert Predictive(with_a_location, sampler.get_samples())(X)["x"].shape == (1200, 3)


def test_the_seed_decides_and_save_params_says_what_is_kept() -> None:
    first, again = draws(gaussian, X, num=20), draws(gaussian, X, num=20, save_params=["mu"])
    assert again.keys() == {"mu"}
    assert torch.equal(first["mu"], again["mu"])


def _with_param(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("x", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), scale).expand([5]).to_event(1), obs=x)


def _scaled(x: Tensor) -> None:
    with poutine.scale(scale=2.0):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mu, 1.0), obs=x[0])


def _part(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", 5, subsample_size=2) as i:
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x[i])


def _not_conjugate(x: Tensor) -> None:
    spread = pyro.sample("spread", dist.HalfCauchy(1.0))
    pyro.sample("x", dist.Normal(pyro.sample("mu", dist.HalfCauchy(spread)), 1.0), obs=x[0])


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        (_with_param, {}, ModelError, r"parameters or points \['scale'\]"),
        (_scaled, {}, ModelError, r"outside of poutine.scale; got \['mu'\]"),
        (_part, {}, ModelError, "subsample of 2 of 5"),
        (_not_conjugate, {}, NotConjugateError, "'mu'"),
        (gaussian, {"save_params": ["nu"]}, ModelError, r"got \['nu'\]"),
        (gaussian, {"num_chains": 0}, ValueError, "num_chains to be an integer of at least 1"),
        (gaussian, {"warmup_steps": -1}, ValueError, "warmup_steps to be an integer of at least 0"),
    ],
    ids=lambda v: v.__name__ if callable(v) else None,
)
def test_what_has_no_full_conditionals_is_refused(model: Any, options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        Gibbs(model, 5, **options).run(X)


def test_reading_it_before_it_has_run_is_an_error() -> None:
    for read in (Gibbs.summary, Gibbs.diagnostics, Gibbs.get_samples):
        with pytest.raises(ModelError, match=r"Call run\(data\)"):
            read(Gibbs(gaussian, 5))
    short = Gibbs(gaussian, 3, 0)
    short.run(X)
    with pytest.raises(ModelError, match="Expected 4 draws or more"):
        short.summary()
    with pytest.raises(TypeError, match=r"Write save_params=\['mu'\]"):
        Gibbs(gaussian, 5, save_params="mu")


def test_tables_of_many_chains_are_within_the_limit_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table of an elimination is kept until the draw, so their sum counts."""

    def model(x: Tensor) -> None:
        mu, move, z = pyro.sample("mu", dist.Normal(x.new_tensor(0.0), 1.0)), x.new_ones(2, 2) / 2, torch.tensor(0)
        for t in range(len(x)):
            z = pyro.sample(f"z_{t}", dist.Categorical(move[z]))
            pyro.sample(f"x_{t}", dist.Normal(mu + z, 1.0), obs=x[t])

    monkeypatch.setattr(settings, "_memory_limit", 14_000)  # of 18 numbers a chain, 8 bytes each
    Gibbs(model, 2, 0, num_chains=1).run(X)
    with pytest.raises(ModelError, match=r"the joint posterior of 'z_0', .* in tables .* got 14,400 bytes"):
        Gibbs(model, 2, 0, num_chains=100).run(X)
