"""Normal sites that share a factor: posterior, evidence and draws against dense algebra, whatever the program."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, Gibbs
from pyro_latent.distributions.elimination import Elimination
from pyro_latent.distributions.joint_normal import SiteSlice
from pyro_latent.errors import ArgumentTypeError, ModelError, NaturalDomainError, NotConjugateError, PyroLatentError
from pyro_latent.families import Natural
from pyro_latent.families.joint_normal import Gaussian
from pyro_latent.handlers import closed_form

Model = Callable[..., None]
X = torch.linspace(-2, 2, 30, dtype=torch.float64)[:, None] ** torch.tensor([1.0, 2.0, 3.0])
Y = (X @ torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64) + 3).sin() * 2
GROUP = torch.arange(40) ** 2 % 6
ITEM = torch.arange(40) ** 2 % 11 % 9
SERIES = (torch.arange(40).double() / 3).sin() + torch.arange(40) % 3 / 5


def regression(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(y.new_zeros(3), 2.0).to_event(1))
    b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ w + b, 0.3), obs=y)


def coupled_plate(x: Tensor, y: Tensor) -> None:
    with pyro.plate("features", 3):
        w = pyro.sample("w", dist.Normal(y.new_tensor(0.0), 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)


def random_effects(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 3.0))
    with pyro.plate("groups", 6):
        b = pyro.sample("b", dist.Normal(mu, 1.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b[GROUP], 0.7), obs=y)


def crossed_effects(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(1.0), 3.0))
    with pyro.plate("groups", 6):
        a = pyro.sample("a", dist.Normal(y.new_tensor(0.0), 1.5))
    with pyro.plate("items", 9):
        b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), 0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + a[GROUP] - 2 * b[ITEM], 0.7), obs=y)


def random_slopes(y: Tensor) -> None:
    m = pyro.sample("m", dist.MultivariateNormal(y.new_zeros(2), 4 * torch.eye(2).to(y)))
    with pyro.plate("groups", 6):
        b = pyro.sample("b", dist.MultivariateNormal(m, y.new_tensor([[1.0, 0.3], [0.3, 0.5]])))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b[GROUP, 0] + b[GROUP, 1] * SERIES.to(y), 0.7), obs=y)


def walk(y: Tensor) -> None:
    x = pyro.sample("x_0", dist.Normal(y.new_tensor(0.0), 3.0))
    for t in pyro.markov(range(len(y))):
        if t:
            x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x + 0.1, 0.5))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.7), obs=y[t])


def second_order(y: Tensor) -> None:
    level = [pyro.sample(f"x_{t}", dist.Normal(y.new_tensor(0.0), 3.0)) for t in range(2)]
    for t in range(2, 12):
        level.append(pyro.sample(f"x_{t}", dist.Normal(1.8 * level[-1] - 0.85 * level[-2], 0.5)))
    pyro.sample("y", dist.Normal(torch.stack(level), 0.7).to_event(1), obs=y[:12])


def slices(y: Tensor) -> None:
    with pyro.plate("time", len(y)):
        x = pyro.sample("x", dist.Normal(y.new_tensor(0.0), 3.0))
    with pyro.plate("steps", len(y) - 1):
        pyro.sample("d", dist.Normal(x[1:] - x[:-1], 0.5), obs=torch.zeros_like(y[1:]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x, 0.7), obs=y)


def state_space(y: Tensor) -> None:
    step, seen = y.new_tensor([[1.0, 0.2], [0.0, 0.8]]), y.new_tensor([[1.0, 0.5]])
    x = pyro.sample("x_0", dist.MultivariateNormal(y.new_zeros(2), 2 * torch.eye(2).to(y)))
    for t in range(12):
        if t:
            x = pyro.sample(f"x_{t}", dist.MultivariateNormal(step @ x, y.new_tensor([[0.3, 0.1], [0.1, 0.2]])))
        with poutine.mask(mask=t % 4 != 2):
            pyro.sample(f"y_{t}", dist.MultivariateNormal(seen @ x, 0.5 * torch.eye(1).to(y)), obs=y[t : t + 1])


def chains(y: Tensor) -> None:
    with pyro.plate("series", 5):
        x = y.new_zeros(5)
        for t in range(8):
            x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
            pyro.sample(f"y_{t}", dist.Normal(x, 0.7), obs=y.reshape(5, 8)[:, t])


def matrix_weights(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(y.new_zeros(3, 2), 1.0).to_event(2))
    with pyro.plate("outputs", 2):
        b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), 2.0))
    with pyro.plate("data", 20):
        pyro.sample("y", dist.Normal(X[:20].to(y) @ w + b, 0.4).to_event(1), obs=y.reshape(20, 2))


CASES: dict[str, tuple[Model, tuple[Tensor, ...], Any]] = {
    "regression": (regression, (X, Y), [("w", "b")]),
    "a plate that a matrix couples": (coupled_plate, (X, Y), [("w",)]),
    "random effects": (random_effects, (SERIES,), [("b", "mu")]),
    "crossed effects": (crossed_effects, (SERIES,), "auto"),
    "random slopes": (random_slopes, (SERIES,), "auto"),
    "walk": (walk, (SERIES,), ["x_*"]),
    "second order": (second_order, (SERIES,), [("x_?", "x_1?")]),
    "slices": (slices, (SERIES,), [("x",)]),
    "state space": (state_space, (SERIES,), ["x_*"]),
    "chains": (chains, (SERIES,), "auto"),
    "matrix weights": (matrix_weights, (SERIES,), "auto"),
}


class Dense:
    """The posterior of a normal model by the derivatives of its log joint, which Pyro's own trace gives."""

    def __init__(self, model: Model, args: tuple[Any, ...]) -> None:
        nodes = poutine.trace(poutine.block(model, hide_types=["plate"])).get_trace(*args).nodes
        latent: dict[str, Any] = {n: s["value"] for n, s in nodes.items() if s["type"] == "sample"}
        is_latent = {n: not nodes[n]["is_observed"] and v.is_floating_point() for n, v in latent.items()}
        self.shapes = {n: v.shape for n, v in latent.items() if is_latent[n]}
        self.sizes = [s.numel() for s in self.shapes.values()]

        def log_joint(x: Tensor) -> Tensor:
            parts = x.split(self.sizes)
            values = {n: p.reshape(s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}
            return torch.as_tensor(poutine.trace(poutine.condition(model, values)).get_trace(*args).log_prob_sum())

        zero = torch.zeros(sum(self.sizes), dtype=torch.float64)
        precision = -torch.autograd.functional.hessian(log_joint, zero)
        linear = torch.autograd.functional.jacobian(log_joint, zero)
        self.mean = torch.linalg.solve(precision, linear)
        self.covariance = torch.linalg.inv(precision)
        self.evidence = float(
            log_joint(self.mean) + 0.5 * len(zero) * math.log(2 * math.pi) - 0.5 * torch.logdet(precision)
        )

    def flat(self, values: dict[str, Tensor], lead: int = 0) -> Tensor:
        return torch.cat([values[n].reshape(*values[n].shape[:lead], -1) for n in self.shapes], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        return dist.MultivariateNormal(self.mean, self.covariance).log_prob(x)


def fitted(model: Model, args: tuple[Any, ...], blocks: Any, **options: Any) -> tuple[AutoConjugate, list[float]]:
    guide = AutoConjugate(model, blocks=blocks, **options)
    return guide, [float(e) for e in CAVI(model, guide).run(*args).elbo]


@pytest.fixture(params=CASES)
def case(request: Any) -> tuple[Model, tuple[Tensor, ...], Any, Dense]:
    pyro.set_rng_seed(0)
    model, args, blocks = CASES[request.param]
    return model, args, blocks, dense(request.param)


@functools.cache
def dense(name: str) -> Dense:
    """What is exact for a case, once for all tests."""
    model, args, _ = CASES[name]
    return Dense(model, args)


def test_one_step_is_exact(case: Any) -> None:
    model, args, blocks, exact = case
    guide, elbo = fitted(model, args, blocks)
    assert elbo[0] == pytest.approx(exact.evidence, abs=1e-8)
    posterior = guide.posterior()
    means = exact.flat({n: q.mean for n, q in posterior.items()})
    torch.testing.assert_close(means, exact.mean, rtol=1e-9, atol=1e-9)
    variances = exact.flat({n: q.variance for n, q in posterior.items()})
    torch.testing.assert_close(variances, exact.covariance.diagonal(), rtol=1e-9, atol=1e-9)
    (joint,) = guide.posterior(joint=True).values()
    entropy = dist.MultivariateNormal(exact.mean, exact.covariance).entropy()
    torch.testing.assert_close(joint.entropy(), entropy, rtol=1e-8, atol=1e-8)
    places = dict(zip(exact.shapes, torch.arange(len(exact.mean)).split(exact.sizes), strict=True))
    for site in joint.sites:
        for other in joint.sites[:2]:
            found = joint.covariance(site, other).reshape(len(places[site]), len(places[other]))
            torch.testing.assert_close(found, exact.covariance[places[site]][:, places[other]], rtol=1e-8, atol=1e-9)


def test_draws_and_their_densities(case: Any) -> None:
    model, args, blocks, exact = case
    guide, _ = fitted(model, args, blocks)

    def particles() -> None:
        with pyro.plate("particles", 5_000, dim=-4):
            guide(*args)

    trace = poutine.trace(particles).get_trace()
    trace.compute_log_prob()
    nodes: dict[str, Any] = trace.nodes
    drawn = exact.flat({n: nodes[n]["value"].reshape(5_000, *s) for n, s in exact.shapes.items()}, 1)
    density = sum(nodes[n]["log_prob"].reshape(5_000, -1).sum(1) for n in exact.shapes)
    torch.testing.assert_close(density, exact.log_prob(drawn), rtol=0, atol=1e-8)
    (joint,) = guide.posterior(joint=True).values()
    order = exact.flat({n: v for n, v in joint.split(joint.sample((5_000,))).items()}, 1)
    scale = exact.covariance.diagonal().sqrt()
    for found in (drawn, order):
        assert float(((found.mean(0) - exact.mean) / scale).abs().max()) < 5 / math.sqrt(5_000)
        errors = (torch.cov(found.T) - exact.covariance) / (scale[:, None] * scale)
        assert float(errors.abs().max()) < 7 / math.sqrt(5_000)
    one = poutine.trace(guide).get_trace(*args)
    again = poutine.trace(poutine.replay(guide, one)).get_trace(*args)
    assert float(again.log_prob_sum()) == pytest.approx(float(one.log_prob_sum()), abs=1e-8)


def test_float32_and_restarts_and_a_file(case: Any, tmp_path: Any) -> None:
    model, args, blocks, exact = case
    guide, elbo = fitted(model, tuple(a.float() for a in args), blocks, restarts=2)
    assert elbo[-1] == pytest.approx(exact.evidence, rel=1e-4, abs=1e-3)
    torch.save(guide.state_dict(), tmp_path / "guide.pt")
    loaded = AutoConjugate(model, blocks=blocks)
    loaded.load_state_dict(torch.load(tmp_path / "guide.pt", weights_only=True))
    for n, q in loaded.posterior(*(a.float() for a in args)).items():
        torch.testing.assert_close(q.mean, guide.posterior()[n].mean)


def test_an_elimination_is_that_of_the_matrix() -> None:
    torch.manual_seed(0)
    for size, share in ((1, 1.0), (7, 0.3), (60, 0.05), (150, 0.02), (150, 0.5)):
        dense = (torch.rand(size, size) < share).double().tril(-1) * torch.randn(size, size, dtype=torch.float64)
        precision = dense + dense.T
        precision = precision + torch.diag(precision.abs().sum(1) + 0.5)
        rows, columns = torch.nonzero(precision.tril(), as_tuple=True)
        for stages in (None, torch.arange(size) // 3, torch.arange(size) % 4):
            factor = Elimination(size, rows, columns, stages).factorize(precision[rows, columns][None])
            inverse = torch.linalg.inv(precision)
            right = torch.randn(1, size, 2, dtype=torch.float64)
            torch.testing.assert_close(factor.solve(right)[0], inverse @ right[0])
            torch.testing.assert_close(factor.covariances[0], inverse[rows, columns])
            assert float(factor.half_log_det[0]) == pytest.approx(0.5 * float(torch.logdet(precision)), rel=1e-12)
            assert bool(factor.is_proper)
    assert not bool(
        Elimination(2, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])).factorize(torch.ones(1, 3)).is_proper
    )


def level(y: Tensor) -> None:
    """A local level with both variances unknown."""
    tau = pyro.sample("tau", dist.Gamma(y.new_tensor(2.0), 1.0))
    noise = pyro.sample("noise", dist.Gamma(y.new_tensor(2.0), 1.0))
    x = pyro.sample("x_0", dist.Normal(y.new_tensor(0.0), 3.0))
    for t in range(15):
        if t:
            x = pyro.sample(f"x_{t}", dist.Normal(x, tau.rsqrt()))
        pyro.sample(f"y_{t}", dist.Normal(x, noise.rsqrt()), obs=y[t])


def test_with_unknown_variances_the_bound_is_above_that_of_separate_factors_and_equals_draws() -> None:
    joint, rising = fitted(level, (SERIES,), ["x_*"])
    _, apart = fitted(level, (SERIES,), None)
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(rising))
    assert rising[-1] > apart[-1] + 0.5
    pyro.set_rng_seed(0)
    loss = pyro.infer.Trace_ELBO(num_particles=4_000, vectorize_particles=True)
    draws = [-loss.loss(poutine.scale(level, 1.0), joint, SERIES) for _ in range(5)]
    assert sum(draws) / 5 == pytest.approx(rising[-1], abs=0.1)


@pytest.mark.slow
def test_gibbs_draws_a_joint_block_at_once() -> None:
    pyro.set_rng_seed(0)
    exact = Dense(random_effects, (SERIES,))
    gibbs = Gibbs(random_effects, num_samples=1_000, warmup_steps=10, blocks="auto")
    gibbs.run(SERIES)
    drawn = exact.flat(gibbs.get_samples(), 1)
    errors = (torch.cov(drawn.T) - exact.covariance) / exact.covariance.diagonal().sqrt().square().max()
    assert float(errors.abs().max()) < 0.1


@pytest.mark.slow
def test_minibatches_that_meet_other_groups() -> None:
    def model(y: Tensor, size: int) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 3.0))
        with pyro.plate("groups", 6):
            a = pyro.sample("a", dist.Normal(mu, 1.5))
        with pyro.plate("items", 9):
            b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), 0.5))
        with pyro.plate("data", 40, subsample_size=size) as i:
            pyro.sample("y", dist.Normal(a[GROUP[i]] + b[ITEM[i]], 0.7), obs=y[i])

    pyro.set_rng_seed(0)
    guide = AutoConjugate(model, blocks=[("mu", "a", "b")])
    cavi = CAVI(model, guide, step_size=0.01)
    for _ in range(800):
        cavi.step(SERIES, 10)

    exact = Dense(model, (SERIES, 40))
    found = exact.flat({n: q.mean for n, q in guide.posterior().items()})
    assert float(((found - exact.mean) / exact.covariance.diagonal().sqrt()).abs().max()) < 0.3


@pytest.mark.parametrize(
    "blocks, error, words",
    [
        ([("w", "nothing")], NotConjugateError, "nothing"),
        (["v_*"], NotConjugateError, "v_"),
        ([("w", "tau", "z")], NotConjugateError, "proportional to 'tau'"),
        ([("w", "z")], NotConjugateError, "at most quadratic"),
        ([3], ArgumentTypeError, "auto"),
    ],
)
def test_what_is_no_joint_block(blocks: Any, error: type[Exception], words: str) -> None:
    def model(y: Tensor) -> None:
        tau = pyro.sample("tau", dist.Gamma(y.new_tensor(2.0), 1.0))
        w = pyro.sample("w", dist.Normal(y.new_zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(3), 1.0).to_event(1))
            pyro.sample("y", dist.Normal((z * w).sum(-1), tau.rsqrt()), obs=y)

    with pytest.raises(error, match=words):
        CAVI(model, AutoConjugate(model, blocks=blocks)).step(SERIES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_walk_may_start_anywhere(dtype: torch.dtype) -> None:
    """A prior that rounding hides beside the steps needs the data to be proper, and has it."""

    def model(y: Tensor) -> None:
        x = pyro.sample("x_0", dist.Normal(y.new_tensor(0.0), 1e8))
        for t in range(12):
            x = pyro.sample(f"x_{t}", dist.Normal(x, 0.5)) if t else x
            pyro.sample(f"y_{t}", dist.Normal(x, 0.7), obs=y[t])

    exact = Dense(model, (SERIES,))
    guide, elbo = fitted(model, (SERIES.to(dtype),), ["x_*"])
    assert elbo[-1] == pytest.approx(exact.evidence, abs=1e-5)
    posterior = guide.posterior()
    means = exact.flat({n: q.mean.double() for n, q in posterior.items()})
    torch.testing.assert_close(means, exact.mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale, dtype", [(1e6, torch.float64), (300.0, torch.float32)])
def test_what_rounding_decides_is_refused(scale: float, dtype: torch.dtype) -> None:
    def model(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(y.new_tensor(0.0), scale))
        b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), scale))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a + b, 0.7), obs=y)

    with pytest.raises(NaturalDomainError, match="proper Joint normal"):
        fitted(model, (SERIES.to(dtype),), "auto")


def test_a_site_of_new_data_is_not_mixed_with_others() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 3.0))
        with pyro.plate("data", len(y)):
            x = pyro.sample("x", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    guide, _ = fitted(model, (SERIES,), "auto")
    with pytest.raises(ModelError, match="in another block"):
        guide.posterior(SERIES[:10])
    assert guide.posterior(SERIES)["mu"].mean == guide.posterior()["mu"].mean


def test_a_local_level_and_a_trend_are_those_of_statsmodels() -> None:
    """Smoothed moments and evidence of Kalman's filter, with steps that are missing."""
    structural = pytest.importorskip("statsmodels.tsa.statespace.structural")
    series = SERIES.clone()
    series[7:10] = math.nan

    def trend(y: Tensor) -> None:
        level, slope = (pyro.sample(f"{n}_0", dist.Normal(y.new_tensor(0.0), 3.0)) for n in ("level", "slope"))
        for t in range(len(y)):
            if t:
                level, slope = (
                    pyro.sample(f"level_{t}", dist.Normal(level + slope, 0.5)),
                    pyro.sample(f"slope_{t}", dist.Normal(slope, 0.1)),
                )
            if not bool(y[t].isnan()):
                pyro.sample(f"y_{t}", dist.Normal(level, 0.7), obs=y[t])

    guide, elbo = fitted(trend, (series,), [("level_*", "slope_*")])
    other = structural.UnobservedComponents(series.numpy(), "local linear trend")
    other.ssm.initialize_known([0.0, 0.0], [[9.0, 0.0], [0.0, 9.0]])
    other.loglikelihood_burn = 0  # it starts from a known prior: no step is left out
    found = other.smooth([0.49, 0.25, 0.01])
    assert elbo[0] == pytest.approx(found.llf, abs=1e-7)
    posterior = guide.posterior()
    for row, name in enumerate(("level", "slope")):
        mean = torch.stack([posterior[f"{name}_{t}"].mean for t in range(40)])
        variance = torch.stack([posterior[f"{name}_{t}"].variance for t in range(40)])
        torch.testing.assert_close(mean, torch.tensor(found.smoothed_state[row]), rtol=0, atol=1e-7)
        torch.testing.assert_close(variance, torch.tensor(found.smoothed_state_cov[row, row]), rtol=0, atol=1e-7)


def crossed(y: Tensor, group: Tensor, item: Tensor, places: Tensor) -> None:
    with pyro.plate("groups", 6):
        a = pyro.sample("a", dist.Normal(y.new_tensor(0.0), 1.5))
    with pyro.plate("items", 9):
        b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), 0.5))
    with pyro.plate("data", 40, subsample=places):
        pyro.sample("y", dist.Normal(a[group[places]] + b[item[places]], 0.7), obs=y[places])


def whole_and_by_pieces(model: Model) -> tuple[AutoConjugate, AutoConjugate]:
    """A crossed model fitted to all of the data, and to pieces of it, which end in the same ELBO."""
    whole, elbo = fitted(model, (SERIES, GROUP, ITEM, torch.arange(40)), "auto")
    pieces = AutoConjugate(model, blocks="auto")
    cavi = CAVI(model, pieces, memoised=True)
    for _ in range(2):
        for k in range(4):
            last = cavi.step_piece(k, SERIES, GROUP, ITEM, torch.arange(10 * k, 10 * k + 10))
    assert -last == pytest.approx(elbo[-1], abs=1e-9)
    return whole, pieces


def test_pieces_that_meet_other_pairs_say_what_all_of_the_data_says() -> None:
    whole, pieces = whole_and_by_pieces(crossed)
    torch.testing.assert_close(pieces.posterior()["b"].mean, whole.posterior()["b"].mean)


def test_a_joint_normal_of_other_data_is_placed_by_its_pairs() -> None:
    data = (SERIES, GROUP, ITEM, torch.arange(40))
    turned = (SERIES.flip(0), GROUP.flip(0), ITEM.flip(0), torch.arange(40))
    _, elbo = fitted(crossed, data, [("a", "b")])
    other, _ = fitted(crossed, turned, [("a", "b")])
    start = other.posterior(joint=True)[("a", "b")]
    again = AutoConjugate(crossed, blocks=[("a", "b")], init={("a", "b"): start})
    assert again.elbo(*data) == pytest.approx(elbo[-1], abs=1e-8)
    shuffled = (SERIES, (GROUP + 1) % 6, ITEM, torch.arange(40))
    with pytest.raises(PyroLatentError, match="meet in the model"):
        CAVI(crossed, AutoConjugate(crossed, blocks=[("a", "b")], init={("a", "b"): start})).step(*shuffled)


def test_a_block_of_one_element_knows_no_pairs_of_more() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_tensor(0.0), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    guide, _ = fitted(model, (SERIES,), [("z",)])
    torch.testing.assert_close(guide.posterior(SERIES[:1])["z"].mean, SERIES[:1] / 2)


def test_a_latent_given_a_discrete_one_starts_at_its_prior() -> None:
    def model(y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(y.new_tensor([-1.0, 1.0]), 3.0).to_event(1))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(y.new_tensor([0.5, 0.5])))
            x = pyro.sample("x", dist.Normal(m[z], 1.0))
            pyro.sample("y", dist.Normal(x, 0.5), obs=y)

    _, elbo = fitted(model, (SERIES,), None)
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(elbo))


def test_moments_are_the_gradient_of_the_log_normalizer() -> None:
    part = SiteSlice("x", 0, torch.Size([5]), torch.Size())
    family = Gaussian([part], torch.device("cpu"))
    family.places(torch.tensor([1, 2, 3, 4, 4]), torch.tensor([0, 1, 2, 3, 0]))
    xx = torch.cat([-torch.ones(5), 0.3 * torch.ones(5)]).double()[None].requires_grad_()
    x = torch.linspace(-1, 1, 5).double()[None].requires_grad_()
    natural = Natural(x=x, xx=xx)
    found = torch.autograd.grad(family.log_normalizer(natural).sum(), (x, xx))
    mean = family.mean(natural.map(Tensor.detach))
    torch.testing.assert_close(found, (mean.x, mean.xx))
    joint = family.distribution(family.to_params(natural.map(Tensor.detach)))
    value = torch.linspace(0, 2, 5).double()[None]
    by_family = family.log_prob(natural.map(Tensor.detach), value)
    torch.testing.assert_close(joint.log_prob(value), by_family)
    again = family.from_params(family.to_params(natural.map(Tensor.detach)))
    torch.testing.assert_close(again.xx, xx.detach())
    torch.testing.assert_close(again.x, x.detach())


def test_a_hand_written_update_of_one_joined_site_is_refused_and_left_apart() -> None:
    def update(q: Any, *args: Any, **kwargs: Any) -> Any:
        return dist.Normal(SERIES.new_zeros(()), 1.0)

    written = closed_form(random_effects, {"mu": update})
    with pytest.raises(NotConjugateError, match="hand-written"):
        CAVI(written, AutoConjugate(written, blocks=[("mu", "b")])).step(SERIES)
    guide, _ = fitted(written, (SERIES,), "auto")
    assert float(guide.posterior()["mu"].mean) == 0.0


def test_a_block_over_the_limit_of_memory_is_refused() -> None:
    def model(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(y.new_zeros(30_000), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=y[0])

    with pytest.raises(ModelError, match="memory_limit"):
        CAVI(model, AutoConjugate(model, blocks=[("w",)])).step(SERIES)


def test_auto_joins_the_elements_of_one_site_that_meet() -> None:
    """The sum over a plate of independent normals: its evidence is exact."""

    def model() -> None:
        with pyro.plate("k", 3):
            v = pyro.sample("v", dist.Normal(torch.tensor(0.5).double(), 1.2))
        pyro.sample("x", dist.Normal(v.sum(-1), 0.7), obs=torch.tensor(2.0).double())

    guide = AutoConjugate(model, blocks="auto")
    found = CAVI(model, guide).run().elbo[-1].item()
    variance = 3 * 1.2**2 + 0.7**2
    assert found == pytest.approx(-0.125 / variance - 0.5 * math.log(2 * math.pi * variance), abs=1e-10)


@pytest.mark.parametrize("steep", [False, True], ids=["linear", "of a function"])
def test_auto_leaves_out_a_site_that_another_density_has_a_function_of(steep: bool) -> None:
    """w meets b in one density; of the other that reads it no joint normal factor has the moments."""
    counts = torch.tensor([1.0, 2.0, 0.0, 3.0])

    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.tensor(0.0), 1.0))
        b = pyro.sample("b", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(w + b, 1.0), obs=counts - 0.5)
            if steep:
                pyro.sample("c", dist.Poisson(w.exp()), obs=counts)

    guide = AutoConjugate(model, blocks="auto")
    elbo = CAVI(model, guide).run(max_steps=20).elbo
    assert bool((elbo.diff() > -1e-9).all())
    assert any(isinstance(key, tuple) for key in guide.posterior(joint=True)) is not steep


def test_explain_says_what_an_update_of_a_block_costs_and_names_few_of_many() -> None:
    """The tables of a walk grow with its length; one dense block has the square of its numbers."""

    def walk(steps: int) -> None:
        x = torch.tensor(0.0).double()
        for t in range(steps):
            x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
            pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=torch.tensor(1.0).double())

    def line(model: Model, *args: Any) -> tuple[str, int]:
        words = AutoConjugate(model, blocks="auto", check=False).explain(*args).splitlines()[-1]
        return words, int(words.rsplit(": ", 1)[1].replace(",", ""))

    (short, few), (_, many) = line(walk, 100), line(walk, 200)
    assert "x_5, and 94 more: numbers: 100, pairs of them that meet: 99, rounds" in short
    assert few < many < 2.5 * few
    words, dense = line(regression, X, Y)
    elements = X.shape[1] + 1
    assert f"pairs of them that meet: {elements * (elements - 1) // 2}, rounds of elimination: 1," in words
    assert dense == elements**2
