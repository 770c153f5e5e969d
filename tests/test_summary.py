"""What guides and results say of themselves: exact moments under ArviZ's names, and how far a fit came."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import arviz as az
import mpmath
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor
from torch.distributions.transforms import PowerTransform

from pyro_latent import CAVI, EM, ArgumentError, AutoConjugate, ModelError, to_arviz
from pyro_latent.distributions import PowerOfGamma


@pytest.fixture
def x() -> Tensor:
    return 3.0 + 2.0 * torch.randn(40, dtype=torch.float64)


def normal(x: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(torch.tensor(2.0).double(), 1.0))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2).double(), (0.1 * tau).rsqrt()).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu[0], tau.rsqrt()), obs=x)


def scale(x: Tensor) -> None:
    sigma = pyro.sample("sigma", dist.HalfCauchy(torch.ones(2).double()).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(3.0, sigma[0]), obs=x)


def switched(x: Tensor) -> None:
    """A switch that the model has once, and labels of the data."""
    switch = pyro.sample("switch", dist.Bernoulli(torch.tensor(0.5).double()))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2).double(), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7]).double()))
        pyro.sample("y", dist.Normal(0.1 * switch, 1.0), obs=0.01 * x)
        pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def fit(model: Callable[..., Any], *args: Any, **options: Any) -> AutoConjugate:
    guide = AutoConjugate(model, **options)
    CAVI(model, guide).run(*args, tol=1e-12)
    return guide


def rows(guide: AutoConjugate, prob: float = 0.94) -> dict[str, list[float]]:
    frame = guide.summary(prob=prob).to_frame()
    return {name: [float(v) for v in row] for name, row in zip(frame.index, frame.to_numpy(), strict=True)}


def test_moments_and_intervals_are_those_of_the_marginals(x: Tensor) -> None:
    guide = fit(normal, x, blocks=[("mu", "tau")])
    found, joint = rows(guide, 0.8), guide.posterior(joint=True)["mu", "tau"]
    a, b = float(joint.concentration), float(joint.rate)
    gamma = scipy.stats.gamma(a, scale=1 / b)
    student = scipy.stats.t(2 * a, float(joint.loc[0]), float(joint.normal.variance[0] * b / a) ** 0.5)
    for name, law in (("tau", gamma), ("mu[0]", student)):
        np.testing.assert_allclose(found[name], [law.mean(), law.std(), *law.ppf([0.1, 0.9])], rtol=1e-6)


def test_moments_by_quadrature_are_integrals_of_the_posterior(x: Tensor) -> None:
    square, count = float((x - 3.0).square().sum()), len(x)

    def integral(power: int) -> float:
        def density(s: float) -> float:
            return float(s ** (power - count) / (1 + s * s) * np.exp(-square / (2 * s * s) + square / 8))

        return float(scipy.integrate.quad(density, 0.5, 30, limit=500, epsabs=0, epsrel=1e-12)[0])

    first, second = integral(1) / integral(0), integral(2) / integral(0)
    mean, sd, *_ = rows(fit(scale, x))["sigma[0]"]
    np.testing.assert_allclose([mean, sd], [first, (second - first**2) ** 0.5], rtol=1e-8)


@pytest.mark.parametrize("concentration", [1.5, 30.5, 2.0e6])
@pytest.mark.parametrize("power", [-0.5, 0.25, 2.0])
def test_powers_of_a_gamma_have_its_fractional_moments(concentration: float, power: float) -> None:
    law = PowerOfGamma(
        dist.Gamma(torch.tensor(concentration).double(), torch.tensor(2.5).double()),
        PowerTransform(torch.tensor(power).double()),
    )
    with mpmath.workdps(50):
        a, p = mpmath.mpf(concentration), mpmath.mpf(power)
        first = mpmath.mpf(2.5) ** -p * mpmath.gammaprod([a + p], [a])
        second = mpmath.mpf(2.5) ** (-2 * p) * mpmath.gammaprod([a + 2 * p], [a])
        expected = float(first), float(second - first**2)
    np.testing.assert_allclose([float(law.mean), float(law.variance)], expected, rtol=1e-7)


def test_a_power_without_moments_says_infinity() -> None:
    law = PowerOfGamma(dist.Gamma(torch.tensor(0.75), torch.tensor(1.0)), PowerTransform(torch.tensor(-0.5)))
    assert law.mean.isfinite() and law.variance == torch.inf


@pytest.mark.parametrize("added", [0.0, 1.0], ids=["Gamma", "table"])
def test_a_site_that_is_a_function_of_an_auxiliary_one_has_moments(x: Tensor, added: float) -> None:
    """A half-Cauchy is a power of a Gamma precision, or of one by quadrature: against integrals of its cdf."""

    def model(x: Tensor) -> None:
        sigma = pyro.sample("sigma", dist.HalfCauchy(torch.tensor(1.0).double()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(3.0, added + sigma), obs=x)

    guide = fit(model, x, reparam=True)
    places = torch.linspace(0, 40, 400_001).double()
    above = 1 - guide.posterior()["sigma"].cdf(places[1:])
    first, second = (float(torch.trapezoid(f * above, places[1:])) for f in (1.0, 2 * places[1:]))
    mean, sd, low, high = rows(guide)["sigma"]
    np.testing.assert_allclose([mean, sd], [first + 1e-4, (second - (first + 1e-4) ** 2) ** 0.5], rtol=1e-6)
    np.testing.assert_allclose([low, high], guide.quantiles([0.03, 0.97])["sigma"], rtol=1e-9)
    assert list(rows(guide)) == ["sigma"]  # no auxiliary site
    assert "function of" in str(guide)


def test_names_are_those_of_arviz(x: Tensor) -> None:
    guide = fit(normal, x)
    frame = guide.summary().to_frame()
    idata = to_arviz(normal, guide, x, num_samples=50)
    means, medians = (az.summary(idata, kind="stats", stat_focus=f) for f in ("mean", "median"))
    assert set(frame.index) == set(means.index)
    assert list(frame.columns[:2]) == list(means.columns[:2])
    assert list(frame.columns[2:]) == list(medians.columns[2:])


def test_a_discrete_site_of_the_model_has_probabilities_and_one_of_the_data_a_line(x: Tensor) -> None:
    """The probability of the switch is Bayes' rule."""
    guide = fit(switched, x)
    odds = scipy.stats.norm.logpdf(0.01 * x, 0.1).sum() - scipy.stats.norm.logpdf(0.01 * x, 0.0).sum()
    np.testing.assert_allclose(rows(guide)["P(switch = 1)"][0], scipy.special.expit(odds), rtol=1e-9)
    (line,) = [line for line in str(guide).splitlines() if line.startswith("z ")]
    assert line.split() == ["z", "[40]", "Categorical,", "local"]
    assert not any(name.startswith("z") for name in rows(guide))


def test_points_and_parameters_have_a_value_alone(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0).double())
        tau = pyro.sample("tau", dist.Gamma(torch.tensor(2.0).double(), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, tau.rsqrt()), obs=x)

    pyro.clear_param_store()
    guide = AutoConjugate(model, point=["tau"], restarts=3)
    result = EM(model, guide).run(x)
    found = rows(guide)
    assert found["loc"][0] == pytest.approx(float(x.mean())) and np.isnan(found["loc"][1:]).all()
    assert np.isnan(found["tau"][1:]).all()
    assert "the best of 3 starts" in str(guide)
    assert len(str(result).splitlines()) == 3 and "3 starts" in str(result)


def test_how_far_a_guide_is_fitted_is_said(x: Tensor) -> None:
    guide = AutoConjugate(normal, blocks=[("mu", "tau")], restarts=2)
    assert "not fitted" in str(guide) and "blocks=[['mu', 'tau']], restarts=2" in str(guide)
    guide(x)
    assert "not fitted, at its start" in str(guide)
    cavi = CAVI(normal, guide)
    cavi.step(x)
    assert f"ELBO {guide.elbo():.6f} nats, 1 sweep, the best" in str(guide)
    result = cavi.run(x)
    assert f"ELBO {float(result.elbo[-1]):.6f} nats, {result.num_steps + 1} sweeps, converged" in str(guide)
    assert str(result).splitlines()[0] == f"CAVIResult: converged after {result.num_steps} steps"
    assert f"ELBO {float(result.elbo[-1]):.6f} nats" in str(result)
    for copied in (pickle.loads(pickle.dumps(guide)), guide):
        assert str(copied.summary()) == str(copied) == repr(copied)
    html = guide._repr_html_()
    assert html.count("<tr>") == 1 + 3 and "<td>mu[0]</td>" in html


def test_large_sites_and_many_sites_are_cut_with_a_word(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        walk = x.new_zeros(())
        for t in range(70):
            walk = pyro.sample(f"s{t}", dist.Normal(walk, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(walk, 1.0), obs=x)

    def weighed(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(100).double(), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)

    guide = AutoConjugate(weighed)
    CAVI(weighed, guide).step(x)
    assert "... (92 more of w)" in str(guide)
    assert len(guide.summary().to_frame()) == 100
    guide = AutoConjugate(model)
    CAVI(model, guide).step(x)
    assert "more rows: summary().to_frame() has all" in str(guide)


def test_a_model_without_latents_has_no_table() -> None:
    assert "AutoConjugate of normal: not fitted" in AutoConjugate(normal).summary()._repr_html_()


def loaded(model: Callable[..., Any], guide: AutoConjugate, **options: Any) -> list[AutoConjugate]:
    """Guides that have not seen data: from a file, and from a pickle."""
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    again = AutoConjugate(model, **options)
    again.load_state_dict(torch.load(file, weights_only=True))
    return [again, pickle.loads(pickle.dumps(guide))]


LOADED = [
    (normal, {}),
    (normal, {"blocks": [("mu", "tau")]}),
    (normal, {"blocks": "auto", "restarts": 2}),
    (scale, {}),
    (scale, {"reparam": True}),
    (normal, {"point": ["mu"]}),
]


@pytest.mark.parametrize(("model", "options"), LOADED, ids=[f"{m.__name__} {o}" for m, o in LOADED])
def test_a_loaded_guide_shows_its_factors_without_data(x: Tensor, model: Any, options: dict[str, Any]) -> None:
    guide = fit(model, x, **options)
    marginals, joints = guide.posterior(), guide.posterior(joint=True)
    levels = guide.quantiles([0.1, 0.9])
    for other in loaded(model, guide, **options):
        assert str(other) == str(guide)
        assert other.posterior().keys() == marginals.keys() and other.posterior(joint=True).keys() == joints.keys()
        for name, law in other.posterior().items():
            torch.manual_seed(0)
            expected = marginals[name].sample()
            torch.manual_seed(0)
            assert torch.equal(law.sample(), expected)
            assert torch.equal(other.quantiles([0.1, 0.9])[name], levels[name])
            assert torch.equal(other.median()[name], guide.median()[name])
        draws = torch.stack([other()[name].reshape(-1)[0] for name in marginals for _ in range(50)])
        assert draws.isfinite().all()
        trace = pyro.poutine.trace(other).get_trace()
        log_q = float(trace.log_prob_sum())
        values: dict[str, Any] = {n: trace.nodes[n]["value"] for n in marginals}
        held = pyro.poutine.condition(guide, values)
        assert log_q == pytest.approx(float(pyro.poutine.trace(held).get_trace(x).log_prob_sum()), rel=1e-9)
        assert other.elbo(x) == pytest.approx(guide.elbo(), rel=1e-9)


def test_a_loaded_guide_has_discrete_sites_once_it_has_data(x: Tensor) -> None:
    guide = fit(switched, x)
    for other in loaded(switched, guide):
        assert set(other.posterior()) == {"mu"} and "switch: its posterior is made of the data" in str(other)
        assert set(other.posterior(x)) == {"mu", "switch", "z"} == set(other.posterior())
        assert str(other) == str(guide)


def test_the_state_of_another_model_is_refused_on_loading_and_changes_nothing(x: Tensor) -> None:
    state = fit(normal, x).state_dict()
    new, seen, others = AutoConjugate(scale), AutoConjugate(scale), AutoConjugate(normal, point=["mu"])
    seen(x)
    others(x)
    for guide, words in (
        (new, r"got one of another model, with the sites \['tau', 'mu'\], which its code does not name"),
        (seen, "Expected a state of the blocks .*sigma.*; got one of .*tau"),
        (others, "Expected a state with the families .*point.*; got one with .*Multivariate normal"),
        (AutoConjugate(normal, reparam=True), None),  # the same model: nothing of it needs auxiliary sites
    ):
        before = str(guide)
        if words is None:
            guide.load_state_dict(state)
            continue
        with pytest.raises(ModelError, match=words):
            guide.load_state_dict(state)
        assert str(guide) == before
    helped = fit(scale, x, reparam=True).state_dict()
    with pytest.raises(ModelError, match=r"Write AutoConjugate\(model, reparam=True\)"):
        AutoConjugate(scale).load_state_dict(helped)
    broken = {n: -t if n.startswith("natural") else t for n, t in helped.items()}
    fresh = AutoConjugate(scale, reparam=True)
    with pytest.raises(ModelError, match="Expected a saved state of proper distributions"):
        fresh.load_state_dict(broken)
    assert not fresh.augmented.names
    assert not fresh.posterior_state.layout


def test_a_probability_that_is_none_is_an_error(x: Tensor) -> None:
    for prob in (0, 1.0, "94"):
        with pytest.raises(ArgumentError, match=r"Expected prob to be a number in \(0, 1\); got"):
            AutoConjugate(normal).summary(prob=prob)  # type: ignore[arg-type]
