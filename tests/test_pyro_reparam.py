"""Pyro's reparameterizers under coordinate ascent: each is the model that one would write by hand, or our own error."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import reparam
from pyro.infer.reparam.strategies import MinimalReparam
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, LatentValueError, MissingRuleError, NaturalDomainError, PyroLatentError

Model = Callable[..., Any]

_X = torch.tensor([0.5, 1.2, -0.3, 2.0, 4.0, -1.5, 0.1], dtype=torch.float64)


def elbo(model: Model, *args: Any, **options: Any) -> float:
    guide = AutoConjugate(model)
    CAVI(model, guide).run(*args, **options)
    return guide.elbo()


def globals_() -> tuple[Tensor, Tensor]:
    return pyro.sample("mu", dist.Normal(0.0, 3.0)), pyro.sample("tau", dist.Gamma(2.0, 2.0))


# Distributions whose arguments are latent.


def student(df: float, x: Tensor, how: str = "plate") -> None:
    mu, tau = globals_()
    if how == "event":
        pyro.sample("y", dist.StudentT(df, mu, tau.rsqrt()).expand([len(x)]).to_event(1), obs=x)
        return
    mask: Any = torch.arange(len(x)) > 2 if how == "mask" else True
    with pyro.plate("n", len(x)), poutine.mask(mask=mask):
        pyro.sample("y", dist.StudentT(df, mu, tau.rsqrt()), obs=x)


def scale_mixture(df: float, x: Tensor, how: str = "plate") -> None:
    mu, tau = globals_()
    x = x[3:] if how == "mask" else x
    with pyro.plate("n", len(x)):
        gamma = pyro.sample("y_gamma", dist.Gamma(df / 2, df / 2))
        pyro.sample("y", dist.Normal(mu, tau.rsqrt() * gamma.rsqrt()), obs=x)


@pytest.mark.parametrize("how", ["plate", "event", "mask"])
def test_a_student_t_of_latents_is_a_scale_mixture_of_normals(how: str) -> None:
    found = poutine.reparam(student, config={"y": reparam.StudentTReparam()})
    assert elbo(found, 4.0, _X, how) == pytest.approx(elbo(scale_mixture, 4.0, _X, how), abs=1e-9)


def test_a_recorded_distribution_gives_the_arguments_that_were_left_out() -> None:
    seen = []

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("n", len(x)):
            y = dist.StudentT(4.0, mu).expand([len(x)])
            seen.append((isinstance(y, dist.StudentT), isinstance(y, dist.Normal), y.df, y.scale))
            pyro.sample("y", y, obs=x)

    elbo(poutine.reparam(model, config={"y": reparam.StudentTReparam()}), _X)
    *answers, df, scale = seen[0]
    assert answers == [True, False]
    assert df.tolist() == [4.0] * len(_X)
    assert scale.tolist() == [1.0] * len(_X)


def test_a_binomial_of_one_trial_that_is_not_written_is_a_bernoulli() -> None:
    def model(x: Tensor, kind: Any) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 2.0))
        with pyro.plate("n", len(x)):
            pyro.sample("x", kind(probs=p), obs=x)

    x = torch.tensor([1.0, 0.0, 1.0]).double()
    assert elbo(model, x, dist.Binomial) == pytest.approx(elbo(model, x, dist.Bernoulli), abs=1e-12)


# Latents in other coordinates.


def hierarchy(x: Tensor, kind: str = "plate") -> None:
    mu, tau = globals_()
    if kind == "event":
        z = pyro.sample("z", dist.Normal(mu * torch.ones(len(x)), 1.5).to_event(1))
        pyro.sample("y", dist.Normal(z, tau.rsqrt()).to_event(1), obs=x)
        return
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.5))
        pyro.sample("y", dist.Normal(z, tau.rsqrt()), obs=x)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (reparam.HaarReparam(), "event"),
        (reparam.HaarReparam(flip=True), "event"),
        (reparam.HaarReparam(experimental_allow_batch=True), "plate"),
        (reparam.SplitReparam([2, 5], -1), "event"),
        (reparam.LocScaleReparam(1.0), "plate"),
    ],
    ids=["Haar", "Haar, flipped", "Haar over a plate", "Split", "LocScale, centered"],
)
def test_an_orthogonal_change_of_coordinates_leaves_the_elbo_as_it_is(config: Any, kind: str) -> None:
    """Data is independent given z, so that a full covariance and the product of its parts are the same factor."""
    found = elbo(poutine.reparam(hierarchy, config={"z": config}), _X, kind)
    assert found == pytest.approx(elbo(hierarchy, _X), abs=1e-6)


def test_coordinates_at_a_given_value_are_data() -> None:
    """HaarReparam of a site with a value: the transformed site is observed, and has the density of a rotation."""
    plain = poutine.condition(hierarchy, data={"z": _X + 0.3})
    turned = poutine.reparam(plain, config={"z": reparam.HaarReparam()})
    assert elbo(turned, _X, "event") == pytest.approx(elbo(plain, _X, "event"), abs=1e-9)


def decentered(x: Tensor, centered: float, scale: float = 1.5, shift: float = 0.0) -> None:
    mu, tau = globals_()
    with pyro.plate("n", len(x)):
        noise = pyro.sample("noise", dist.Normal(centered * mu, scale**centered))
        z = shift + mu + scale ** (1 - centered) * (noise - centered * mu)
        pyro.sample("y", dist.Normal(z, tau.rsqrt()), obs=x)


@pytest.mark.parametrize("centered", [0.0, 0.3])
def test_decentering_is_the_model_with_noise(centered: float) -> None:
    found = elbo(poutine.reparam(hierarchy, config={"z": reparam.LocScaleReparam(centered)}), _X)
    assert found == pytest.approx(elbo(decentered, _X, centered), abs=1e-6)


def affine(x: Tensor, latent: bool) -> None:
    mu, tau = globals_()
    with pyro.plate("n", len(x)):
        shift = dist.transforms.AffineTransform(mu if latent else 1.0, 1.5)
        base = dist.Normal(0.0, 1.0) if latent else dist.Normal(mu / 1.5, 1.0)
        z = pyro.sample("z", dist.TransformedDistribution(base, [shift]))
        pyro.sample("y", dist.Normal(z if latent else z - 1, tau.rsqrt()), obs=x)


@pytest.mark.parametrize("latent", [True, False], ids=["latent shift", "latent base"])
def test_a_transformed_normal_is_a_normal_with_or_without_its_base_as_a_site(latent: bool) -> None:
    assert elbo(affine, _X, latent) == pytest.approx(elbo(hierarchy, _X), abs=1e-6)
    found = elbo(poutine.reparam(affine, config={"z": reparam.TransformReparam()}), _X, latent)
    assert found == pytest.approx(elbo(decentered, _X, 0.0) if latent else elbo(hierarchy, _X), abs=1e-6)


def log_normal(x: Tensor) -> None:
    mu, tau = globals_()
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.LogNormal(mu, tau.rsqrt()), obs=x)


def test_the_logarithm_of_log_normal_data_is_normal() -> None:
    def model(x: Tensor) -> None:
        mu, tau = globals_()
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(mu, tau.rsqrt()), obs=x)

    expected = elbo(model, _X) - float(_X.sum())
    assert elbo(log_normal, _X.exp()) == pytest.approx(expected, abs=1e-9)
    found = poutine.reparam(log_normal, config={"y": reparam.TransformReparam()})
    assert elbo(found, _X.exp()) == pytest.approx(elbo(model, _X), abs=1e-9)  # of the base's data


def test_autoreparam_of_a_tower_of_normals_has_noise_at_each_floor() -> None:
    def model(x: Tensor) -> None:
        noise, tau = pyro.sample("mu", dist.Normal(0.0, 1.0)), pyro.sample("tau", dist.Gamma(2.0, 2.0))
        with pyro.plate("n", len(x)):
            z = 3 * noise + 1.5 * pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, tau.rsqrt()), obs=x)

    strategy: Any = reparam.AutoReparam(centered=0.0)
    found = elbo(poutine.reparam(hierarchy, config=strategy), _X)
    assert found == pytest.approx(elbo(model, _X), abs=1e-6)


def test_a_run_in_other_coordinates_is_taken_up_from_a_file(tmp_path: Path) -> None:
    found = poutine.reparam(hierarchy, config={"z": reparam.HaarReparam()})
    runs = []
    for count in (2, 6):
        cavi = CAVI(found, AutoConjugate(found))
        runs.append(cavi.run(_X, "event", checkpoint=tmp_path / "run.pt", max_steps=count, tol=0.0))
    assert len(runs[1].elbo) == 6
    assert torch.equal(runs[1].elbo[:2], runs[0].elbo)


# Flat priors.


def flat(x: Tensor, read: bool = True) -> None:
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    if not read:
        mu = pyro.sample("nu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Normal(mu, 2.0), obs=x)


def test_under_a_flat_prior_the_posterior_is_the_normalized_likelihood() -> None:
    guide = AutoConjugate(flat)
    CAVI(flat, guide).run(_X)
    found = guide.posterior()["mu"]
    assert found.loc.item() == pytest.approx(float(_X.mean()), abs=1e-12)
    assert found.scale.item() == pytest.approx(2 / len(_X) ** 0.5, abs=1e-12)
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    likelihood = dist.Normal(grid[:, None], 2.0).log_prob(_X).sum(-1)
    assert guide.elbo() == pytest.approx(float(likelihood.logsumexp(0)) + math.log(0.001), abs=1e-9)


def test_a_flat_prior_that_nothing_reads_is_improper() -> None:
    with pytest.raises(NaturalDomainError, match="'mu'"):
        elbo(flat, _X, False)


def test_a_delta_away_from_its_point_has_no_density() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Delta(mu), obs=x)

    with pytest.raises(MissingRuleError, match="Delta"):
        elbo(model, _X[0])


@pytest.mark.parametrize("fn", [dist.Exponential(torch.ones(())), dist.HalfNormal(torch.ones(()))])
def test_whether_a_latent_is_in_a_smaller_support_is_not_known(fn: Any) -> None:
    """Its density is 0 below 0, which a polynomial would not say."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", fn.log_prob(z))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(LatentValueError, match="'z'"):
        elbo(model, _X[0])


# What is not conjugate.


def stable(x: Tensor, skew: float = 0.0) -> None:
    mu, _ = globals_()
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Stable(1.5, skew, 1.0, mu), obs=x)


def latent_stable(x: Tensor) -> None:
    mu, _ = globals_()
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Stable(1.5, 0.3, 1.0, mu))
        pyro.sample("y", dist.Normal(z, 1.0), obs=x)


def hidden_markov(x: Tensor) -> None:
    precision = pyro.sample("precision", dist.Gamma(2.0, 2.0))
    one, wide = torch.eye(1), dist.StudentT(3.0, torch.zeros(1), 1.0).to_event(1)
    step = dist.Normal(torch.zeros(1), precision.rsqrt() * torch.ones(1)).to_event(1)
    chain = dist.LinearHMM(wide, one, step, one, dist.Normal(torch.zeros(1), 1.0).to_event(1), duration=len(x))
    pyro.sample("y", chain, obs=x[:, None])


def tower(x: Tensor) -> None:
    mu, tau = globals_()
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.LogNormal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, tau.rsqrt()), obs=x)


def test_a_transform_of_a_scalar_leaves_its_elbo_as_it_is() -> None:
    moved = poutine.reparam(tower, config={"z": reparam.TransformReparam()})
    assert abs(elbo(moved, _X) - elbo(tower, _X)) < 1e-6


@pytest.mark.parametrize(
    ("model", "config", "words"),
    [
        (stable, {"y": reparam.StableReparam()}, "y_z_uniform"),
        (stable, {"y": reparam.SymmetricStableReparam()}, "y_uniform"),
        (stable, reparam.AutoReparam(), "y_uniform"),
        (stable, MinimalReparam(), "y_uniform"),
        (latent_stable, {"z": reparam.LatentStableReparam()}, "z_uniform"),
        (hidden_markov, {"y": reparam.LinearHMMReparam(init=reparam.StudentTReparam())}, "'y'.*rule; got GaussianHMM"),
        (hidden_markov, {}, "'y'.*rule; got LinearHMM"),
        (hierarchy, {"z": reparam.LocScaleReparam()}, "'z_centered' in closed form.*m_step='gradient'"),
        (hierarchy, {"z": reparam.StudentTReparam()}, "assert isinstance"),
    ],
)
def test_what_is_not_conjugate_is_our_own_error(model: Model, config: Any, words: str) -> None:
    with pytest.raises(PyroLatentError, match=f"(?s){words}"):
        elbo(poutine.reparam(model, config=config), _X)
