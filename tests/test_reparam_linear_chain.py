"""GaussianHMM and LinearHMM as one site: beside the same model as a loop, dense algebra, integrals and statsmodels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from statsmodels.tsa.statespace.structural import UnobservedComponents
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.errors import PyroLatentError

Model = Callable[..., Any]
ZERO, ONE, PAIR = torch.zeros(1).double(), torch.eye(1).double(), torch.zeros(2).double()


def real(*shape: int) -> Tensor:
    return (7.0 * torch.arange(math.prod(shape)).double()).sin().reshape(shape)


X = 2 * real(6, 1)
SHORT = X[:4]
TURN = torch.tensor([[0.8, 0.3], [-0.2, 0.7]]).double() + 0.2 * real(4, 2, 2)
SEEN = torch.tensor([[1.0, 0.4, 0.0], [0.0, 1.0, -0.5]]).double()


def fit(
    model: Model, *args: Any, tol: float = 1e-10, max_steps: int = 1000, **options: Any
) -> tuple[AutoConjugate, Any]:
    """A fit whose ELBO never fell."""
    guide = AutoConjugate(model, init=3, **options)
    found = CAVI(model, guide).run(*args, max_steps=max_steps, tol=tol)
    assert bool((found.elbo.diff() > -1e-8).all())
    return guide, found


def gamma(name: str, like: Tensor = ZERO) -> Tensor:
    return pyro.sample(name, dist.Gamma(like.new_tensor(2.0), 1.0))


def normal(loc: Any, scale: Any) -> Any:
    return dist.Normal(loc, scale).to_event(1)


def loop(x: Tensor, first: Any, step: Callable[[int, Tensor], Any], seen: Callable[[int, Tensor], Any]) -> None:
    """What the distribution stands for: one transition comes before the first datum. Data lie ``batch + [T, D]``."""
    z = pyro.sample("z_before", first)
    for t in range(x.shape[-2]):
        z = pyro.sample(f"z_{t}", step(t, z))
        pyro.sample(f"x_{t}", seen(t, z), obs=x[..., t, :])


def scalar(as_loop: bool) -> None:
    """Every argument has a latent of its own, the observation matrix but for its scale."""
    q, r, a = gamma("q"), gamma("r"), pyro.sample("a", dist.Normal(ZERO[0], 1.0))
    mean, drift = (pyro.sample(n, dist.Normal(ZERO, 1.0).to_event(1)) for n in ("mean", "drift"))
    first = normal(mean, 1.0)
    if as_loop:
        steps = lambda t, z: normal(a * z + drift, q.rsqrt())  # noqa: E731
        loop(SHORT, first, steps, lambda t, z: normal(2 * z, r.rsqrt()))
    else:
        chain = dist.GaussianHMM(first, a * ONE, normal(drift, q.rsqrt()), 2 * ONE, normal(ZERO, r.rsqrt()), duration=4)
        pyro.sample("x", chain, obs=SHORT)


def vector(as_loop: bool) -> None:
    """Three series in a plate, one of them masked, matrices of each step, and a Wishart precision of the steps."""
    wishart = pyro.sample("wishart", dist.Wishart(torch.tensor(4.0).double(), torch.eye(2).double()))
    r = gamma("r")
    data, first = 2 * real(3, 4, 3), dist.MultivariateNormal(PAIR, torch.eye(2).double())
    noise, error = dist.MultivariateNormal(PAIR, precision_matrix=wishart), normal(torch.zeros(3).double(), r.rsqrt())
    seen: Any = torch.tensor([True, False, True])
    with pyro.plate("series", 3), poutine.mask(mask=seen):
        if as_loop:
            through = lambda z, m: (z.unsqueeze(-2) @ m).squeeze(-2)  # noqa: E731
            steps = lambda t, z: dist.MultivariateNormal(through(z, TURN[t]), precision_matrix=wishart)  # noqa: E731
            loop(data, first, steps, lambda t, z: normal(through(z, SEEN), r.rsqrt()))
        else:
            pyro.sample("x", dist.GaussianHMM(first, TURN, noise, SEEN, error), obs=data)


def exponential(as_loop: bool) -> None:
    """A LinearHMM of known arguments with Student-t steps, whose data are exponentials."""
    first, steps = normal(ZERO, 1.0), lambda t, z: dist.StudentT(3.0, 0.8 * z, 1.0).to_event(1)
    if as_loop:
        loop(SHORT.exp(), first, steps, lambda t, z: dist.LogNormal(z, 0.5).to_event(1))
    else:
        error = dist.LogNormal(ZERO, 0.5).to_event(1)
        noise = dist.StudentT(3.0, ZERO, 1.0).to_event(1)
        pyro.sample("x", dist.LinearHMM(first, 0.8 * ONE, noise, ONE, error, duration=4), obs=SHORT.exp())


def heavy(as_loop: bool) -> None:
    """A LinearHMM whose steps are Student-t."""
    q, r = gamma("q"), gamma("r")
    first = normal(ZERO, 1.0)
    if as_loop:
        steps = lambda t, z: dist.StudentT(3.0, 0.8 * z, q.rsqrt()).to_event(1)  # noqa: E731
        loop(SHORT, first, steps, lambda t, z: normal(z, r.rsqrt()))
    else:
        noise = dist.StudentT(3.0, ZERO, q.rsqrt()).to_event(1)
        pyro.sample("x", dist.LinearHMM(first, 0.8 * ONE, noise, ONE, normal(ZERO, r.rsqrt()), duration=4), obs=SHORT)


@pytest.mark.parametrize("model", [scalar, vector, heavy, exponential], ids=lambda m: m.__name__)
def test_the_elbo_is_that_of_the_loop_with_its_states_as_one_factor(model: Model) -> None:
    ours, found = fit(model, False, reparam=True)
    states = [tuple(f"z_{t}" for t in ("before", *range(4)))]
    theirs, _ = fit(model, True, blocks=states, reparam=True)
    assert ours.elbo() == pytest.approx(theirs.elbo(), abs=1e-8)
    loops = theirs.posterior(auxiliary=True)
    for name, q in ours.posterior(auxiliary=True).items():
        torch.testing.assert_close(q.mean, loops[name.replace("x_state", "z")].mean, atol=1e-5, rtol=1e-5)
    assert {"x_state_before", "x_state_0", "x_state_3"} <= set(found.augmented)
    assert not any(name.startswith("x_") for name in ours.posterior())


Chain = tuple[Tensor, ...]
NOISE = normal(ZERO, 1.0)


def dense(first: Tensor, p: Tensor, a: Tensor, b: Tensor, q: Tensor, c: Tensor, r: Tensor) -> Any:
    """The joint normal distribution of the data of all six steps, one after another, by dense covariances."""
    mean, states = first, p
    means, blocks = [], [[torch.zeros_like(p)] * 6 for _ in range(6)]
    for t in range(6):
        mean, states = mean @ a + b, a.T @ states @ a + q
        means.append(mean @ c)
        across = states
        for s in range(t, 6):
            blocks[t][s], blocks[s][t] = c.T @ across @ c, c.T @ across.T @ c
            across = across @ a
    covariance = torch.cat([torch.cat(row, -1) for row in blocks]) + torch.block_diag(*[r] * 6)
    return dist.MultivariateNormal(torch.cat(means), covariance)


E2, EDGE = torch.eye(2).double(), torch.tensor([[0.8, 0.3], [-0.2, 0.7]]).double()
G, N = dist.Gamma(ZERO[0] + 2.0, 1.0), dist.Normal(ZERO[0], 1.0)
#: By what the one latent v is: its prior, and means, covariances and matrices of a chain that it is in.
OF_ONE: dict[str, tuple[Any, Callable[[Tensor], Chain]]] = {
    "matrix": (N, lambda v: (PAIR, E2, v * EDGE, PAIR + 0.1, E2, E2, E2)),
    "noise": (G, lambda v: (PAIR, E2, EDGE, PAIR, E2 / v, E2, E2)),
    "start": (N, lambda v: (PAIR + v, E2, EDGE, PAIR, E2, E2, E2)),
    "error": (G, lambda v: (PAIR, E2, EDGE, PAIR, E2, E2, (E2 + 0.3) / v)),
    "all": (G, lambda v: (PAIR + v, E2 / v, EDGE, PAIR - v, E2 / v, E2 + v, (E2 + 0.3) / v)),
}


@pytest.mark.parametrize(("kind", "cls"), list(zip(OF_ONE, [dist.GaussianHMM, dist.LinearHMM] * 3, strict=False)))
def test_the_evidence_of_a_chain_of_one_latent_is_the_integral(kind: str, cls: Any) -> None:
    """By the trapezoidal rule, of dense densities of all data; without auxiliary sites."""
    prior, given = OF_ONE[kind]
    data = 2 * real(6, 2)

    def model() -> None:
        first, p, a, b, q, c, r = given(pyro.sample("v", prior))
        scales = [x[0, 0] ** 0.5 for x in (p, q)]  # one number for both elements
        init, noise = (dist.Normal(m, s).to_event(1) for m, s in zip((first, b), scales, strict=True))
        error = dist.MultivariateNormal(PAIR, r)
        pyro.sample("x", cls(init, a, noise, c, error, duration=6), obs=data)

    guide, _ = fit(model)
    axis = torch.linspace(-6, 3.5, 150).double() if prior is G else torch.linspace(-7, 7, 150).double()
    values = axis.exp() if prior is G else axis
    joint = torch.stack([dense(*given(v)).log_prob(data.reshape(-1)) + prior.log_prob(v) for v in values])
    joint = joint + axis if prior is G else joint
    assert guide.elbo() == pytest.approx(float(joint.logsumexp(0) + (axis[1] - axis[0]).log()), abs=1e-5)


@pytest.mark.parametrize("reparam", [False, True])
@pytest.mark.parametrize("cls", [dist.GaussianHMM, dist.LinearHMM])
def test_a_chain_of_constants_is_scored_by_dense_algebra(cls: Any, reparam: bool) -> None:
    """Beside a latent of its own; the data of the LinearHMM are exponentials, too."""
    first, p, a, b, q, c, r = OF_ONE["error"][1](torch.tensor(2.0).double())
    normals = [dist.MultivariateNormal(m, v) for m, v in ((first, p), (b, q), (PAIR, r))]
    data = 2 * real(6, 2)

    def model() -> None:
        pyro.sample("v", N)
        pyro.sample("x", cls(normals[0], a, normals[1], c, normals[2], duration=6), obs=data)
        if cls is dist.LinearHMM:
            error = dist.LogNormal(PAIR, 1.0).to_event(1)
            pyro.sample("e", cls(normals[0], a, normals[1], c, error, duration=6), obs=data.exp())

    guide, found = fit(model, reparam=reparam)
    expected = dense(first, p, a, b, q, c, r).log_prob(data.reshape(-1))
    if cls is dist.LinearHMM:
        expected = expected + dense(first, p, a, b, q, c, E2).log_prob(data.reshape(-1)) - data.sum()
    assert found.augmented == ()
    assert guide.elbo() == pytest.approx(float(expected), abs=1e-9)


def test_a_scale_that_is_one_number_is_that_of_every_element() -> None:
    """As of a normal distribution that was expanded."""

    def model(scale: Callable[[Tensor], Any]) -> Model:
        def run() -> None:
            v = pyro.sample("v", G)
            unit = dist.MultivariateNormal(PAIR, E2)
            pyro.sample("x", dist.GaussianHMM(unit, EDGE, scale(v), E2, unit, duration=6), obs=2 * real(6, 2))

        return run

    short, _ = fit(model(lambda v: dist.Normal(0.0, v).expand([2]).to_event(1)))
    long, _ = fit(model(lambda v: dist.Normal(PAIR, v * PAIR.exp()).to_event(1)))
    assert short.elbo() == pytest.approx(long.elbo(), abs=1e-9)


def test_the_states_of_a_local_level_are_those_of_statsmodels() -> None:
    """At the precisions that the factors of the parameters expect."""
    series = 2 * real(25).cumsum(0)

    def model() -> None:
        q, r = gamma("q"), gamma("r")
        step, error = normal(ZERO, q.rsqrt()), normal(ZERO, r.rsqrt())
        pyro.sample("x", dist.GaussianHMM(normal(ZERO, 3.0), ONE, step, ONE, error, duration=25), obs=series[:, None])

    guide, _ = fit(model, reparam=True, tol=0.0, max_steps=100)
    found = guide.posterior(auxiliary=True)
    q, r = (float(found[name].mean) for name in ("q", "r"))
    theirs = UnobservedComponents(series.numpy(), "llevel")
    theirs.ssm.initialize_known([0.0], [[9.0 + 1 / q]])
    smoothed = theirs.smooth([1 / r, 1 / q])
    means = torch.stack([found[f"x_state_{t}"].mean.squeeze() for t in range(25)])
    spread = torch.stack([found[f"x_state_{t}"].variance.squeeze() for t in range(25)])
    torch.testing.assert_close(means, torch.from_numpy(smoothed.smoothed_state[0]), atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(spread, torch.from_numpy(smoothed.smoothed_state_cov[0, 0]), atol=1e-7, rtol=1e-7)


def bounded() -> None:
    q, r = gamma("q"), gamma("r")
    noise, error = dist.Gumbel(ZERO, q.rsqrt()).to_event(1), normal(ZERO, r.rsqrt())
    pyro.sample("x", dist.LinearHMM(normal(ZERO, 1.0), ONE, noise, ONE, error, duration=6), obs=X)


def too_short() -> None:
    chain = dist.GaussianHMM(NOISE, ONE, normal(ZERO, gamma("q").rsqrt()), ONE, NOISE, duration=7)
    pyro.sample("x", chain, obs=X)


def skewed() -> None:
    noise = dist.LogNormal(ZERO, gamma("q").rsqrt()).to_event(1)
    pyro.sample("x", dist.LinearHMM(normal(ZERO, 1.0), ONE, noise, ONE, normal(ZERO, 1.0), duration=6), obs=X)


@pytest.mark.parametrize(
    ("model", "reparam", "words"),
    [
        (
            lambda: scalar(False),
            False,
            r"Site 'x'.*got GaussianHMM of latent .*loop.*AutoConjugate\(model, reparam=True\)",
        ),
        (
            lambda: heavy(False),
            False,
            r"Site 'x'.*got LinearHMM of latent .*loop.*AutoConjugate\(model, reparam=True\)",
        ),
        (too_short, True, "Expected data at site 'x' of 7 steps, as its chain has; got 6"),
        (skewed, True, "Expected noises of the chain 'x' among Normal, .*; got LogNormal.*loop"),
        (bounded, True, "Expected noises of the chain 'x' among Normal, .*; got Gumbel.*loop"),
    ],
)
def test_the_error_names_the_site_and_what_to_write(model: Model, reparam: bool, words: str) -> None:
    with pytest.raises(PyroLatentError, match=words):
        fit(model, reparam=reparam)
