"""Programs as people write them: what Pyro takes is fitted, or every obstacle is named."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam, StudentTReparam, TransformReparam
from shared_models import gaussian
from torch import Tensor
from torch.distributions import constraints

from pyro_latent import (
    CAVI,
    EM,
    ArgumentTypeError,
    AutoConjugate,
    LatentValueError,
    MissingRuleError,
    ModelError,
    NotConjugateError,
)
from pyro_latent.models import normal_gamma

Model = Callable[..., Any]

_THREE: Any = 3
_X = torch.tensor([0.5, 1.2, -0.3, 2.0], dtype=torch.float64)


def fit(model: Model, *args: Any, **options: Any) -> AutoConjugate:
    guide = AutoConjugate(model, **options)
    CAVI(model, guide).run(*args)
    return guide


def normal(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


# What is the same model.


class Holder:
    def model(self, x: Tensor) -> None:
        normal(x)


def test_a_bound_method_is_one_model() -> None:
    holder = Holder()
    guide = AutoConjugate(holder.model)
    CAVI(holder.model, guide).run(_X)
    assert guide.elbo() == fit(normal, _X).elbo()
    with pytest.raises(ValueError, match="got the guide of another"):
        CAVI(Holder().model, guide)


# What stands for what.


def explicit(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        noise = pyro.sample("z_decentered", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a + 2.0 * noise, 1.0), obs=x)


def centered(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Normal(a, 2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_decentering_a_normal_is_the_model_with_noise_of_its_own() -> None:
    found = fit(poutine.reparam(centered, config={"z": LocScaleReparam(0.0)}), _X)
    assert found.elbo() == pytest.approx(fit(explicit, _X).elbo(), abs=1e-12)


def student(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.StudentT(4.0, a, 1.5), obs=x)


def scale_mixture(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        gamma = pyro.sample("x_gamma", dist.Gamma(2.0, 2.0))
        pyro.sample("x", dist.Normal(a, 1.5 * gamma.rsqrt()), obs=x)


def test_a_student_t_is_a_scale_mixture_of_normals() -> None:
    found = fit(poutine.reparam(student, config={"x": StudentTReparam()}), _X)
    assert found.elbo() == pytest.approx(fit(scale_mixture, _X).elbo(), abs=1e-12)


def test_an_affine_transform_of_a_normal_is_a_normal() -> None:
    def model(x: Tensor) -> None:
        shift = dist.transforms.AffineTransform(1.0, 2.0)
        z = pyro.sample("z", dist.TransformedDistribution(dist.Normal(0.0, 1.0), [shift]))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    found = fit(poutine.reparam(model, config={"z": TransformReparam()}), torch.tensor(0.5).double())
    assert found.elbo() == pytest.approx(float(dist.Normal(1.0, 5**0.5).log_prob(torch.tensor(0.5))), abs=1e-6)


def test_a_replayed_latent_is_a_constant_as_a_conditioned_one() -> None:
    value = torch.tensor(0.7).double()
    trace = poutine.trace(lambda: pyro.sample("a", dist.Delta(value))).get_trace()
    replayed = fit(poutine.replay(centered, trace=trace), _X)
    conditioned = fit(poutine.condition(centered, data={"a": value}), _X)
    assert replayed.elbo() == pytest.approx(conditioned.elbo(), abs=1e-12)
    assert set(replayed.posterior()) == {"z"}


def test_a_parameter_is_the_same_wherever_it_is_read() -> None:
    def model(x: Tensor, again: bool) -> None:
        scale = pyro.param("scale", torch.tensor(1.0).double(), constraint=constraints.positive)
        scale = pyro.param("scale") if again else scale
        with pyro.plate("n", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    found = []
    for again in (False, True):
        pyro.clear_param_store()
        em = EM(model)
        em.run(2 * _X, again)
        found.append((em.guide.elbo(), float(em.guide.params()["scale"])))
    assert found[0] == found[1]


def test_a_distribution_knows_its_arguments_mean_and_copies() -> None:
    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        own = copy.copy(dist.Normal(a, 2.0))
        assert isinstance(own, dist.Normal) and not hasattr(own, "covariance_matrix")
        with pyro.plate("n", len(x)):
            pyro.sample("x", type(own)(own.mean + own.loc, own.stddev / 2.0), obs=x)

    def plain(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(x)):
            pyro.sample("x", dist.Normal(2.0 * a, 1.0), obs=x)

    assert fit(model, _X).elbo() == pytest.approx(fit(plain, _X).elbo(), abs=1e-12)


def test_totals_of_a_binomial_may_differ() -> None:
    """The evidence is ∏ C(n, x) B(1 + Σ x, 1 + Σ (n − x))."""

    def model(successes: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("n", 2):
            pyro.sample("x", dist.Binomial(torch.tensor([3.0, 5.0]), p), obs=successes)

    exact = math.log(3) + math.lgamma(7) + math.lgamma(3) - math.lgamma(10)
    assert fit(model, torch.tensor([1.0, 5.0]).double()).elbo() == pytest.approx(exact, abs=1e-6)


def test_a_joint_block_may_stand_below_a_location() -> None:
    """Where the location above is all but known, the evidence is that of the Normal-Gamma."""

    def model(x: Tensor) -> None:
        top = pyro.sample("top", dist.Normal(0.0, 1e-5))
        tau = pyro.sample("tau", dist.Gamma(1.0, 1.0))
        mu = pyro.sample("mu", dist.Normal(top, tau.rsqrt()))
        with pyro.plate("n", len(x)):
            pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=x)

    found = fit(model, _X, blocks=[("mu", "tau")]).elbo()
    assert found == pytest.approx(float(normal_gamma.log_evidence(_X)), abs=1e-6)


def test_a_mixture_distribution_of_parameters_is_scored_as_pyro_scores_it() -> None:
    def model(x: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([[-1.0], [1.0]]).double())
        pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(x)):
            mixture = dist.MixtureOfDiagNormals(locs, torch.ones(2, 1).double(), torch.zeros(2).double())
            pyro.sample("x", mixture, obs=x[:, None])

    halves = [dist.Normal(loc, 1.0).log_prob(_X) for loc in (-1.0, 1.0)]
    exact = float((torch.logaddexp(*halves) - math.log(2)).sum())
    assert AutoConjugate(model).elbo_terms(_X).log_densities["x"] == pytest.approx(exact, abs=1e-9)


# Where a fit starts.


def vector(x: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Normal(b.sum(), 1.0), obs=x)


@pytest.mark.parametrize(
    "start", [[1.0, 2.0], np.array([1.0, 2.0]), torch.distributions.Normal(torch.tensor([1.0, 2.0]), 1.0)]
)
def test_a_start_is_what_reads_as_numbers(start: Any) -> None:
    guide = AutoConjugate(vector, init={"b": start})
    guide.elbo(_X)
    assert torch.allclose(guide.posterior()["b"].mean, torch.tensor([1.0, 2.0]).double())


def test_a_matrix_starts_at_a_normal_of_its_shape() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        with pyro.plate("n", len(x)):
            pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)

    loc = torch.arange(6.0).reshape(3, 2)
    guide = AutoConjugate(model, init={"w": dist.Normal(loc, 0.1).to_event(2)})
    guide.elbo(_X)
    assert torch.allclose(guide.posterior()["w"].mean, loc.double())


# Modes of autograd.


def test_inference_mode_changes_nothing() -> None:
    expected = fit(gaussian, _X)
    with torch.inference_mode():
        inside = torch.tensor([0.5, 1.2, -0.3, 2.0], dtype=torch.float64)
        found = fit(gaussian, inside)
        assert found.elbo() == expected.elbo()
        assert found.elbo_terms() == expected.elbo_terms()
        assert {n: v.shape for n, v in found(inside).items()} == {n: v.shape for n, v in expected(_X).items()}
    CAVI(gaussian, found).step(inside)  # and the guide is an ordinary one


def test_em_by_gradients_runs_under_inference_mode() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0).double(), constraint=constraints.positive)
        with pyro.plate("n", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), scale), obs=x)

    with torch.inference_mode():
        em = EM(model, m_step="gradient")
        result = em.run(2 * _X, max_steps=3)
    assert bool((result.elbo.diff() >= 0).all())


# What is refused, and how.


def several_obstacles(x: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    a = pyro.sample("a", dist.HalfCauchy(b.exp()))
    fine = pyro.sample("fine", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.StudentT(3.0, b, a), obs=x)
        pyro.sample("y", dist.Normal((b * fine).exp(), 1.0), obs=x)


def test_all_obstacles_are_named_at_once() -> None:
    with pytest.raises(NotConjugateError, match="got 3 obstacles") as caught:
        CAVI(several_obstacles, AutoConjugate(several_obstacles)).step(_X)
    for words in (
        "1. Site 'a': Expected a distribution with a rule; got HalfCauchy",
        "2. Site 'x': Expected a distribution with a rule; got StudentT",
        "exp of 'b', 'fine'",
    ):
        assert words in str(caught.value)


def test_explain_tells_the_obstacles_of_each_site() -> None:
    rows = {r.split()[0]: r for r in AutoConjugate(several_obstacles).explain(_X).splitlines()}
    assert "HalfCauchy" in rows["a"] and "StudentT" in rows["a"]
    assert "StudentT" in rows["b"] and "exp of 'b', 'fine'" in rows["b"]
    assert "StudentT" not in rows["fine"]


def test_an_obstacle_is_told_at_each_latent_that_its_site_reads() -> None:
    """A density without an expectation is none of those that the update of its other latents is derived from."""

    def model(x: Tensor) -> None:
        w, v = (pyro.sample(n, dist.Normal(torch.zeros(2), 1.0).to_event(1)) for n in ("w", "v"))
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        loc = torch.where(x > 0, w.sum().sin() + v.sum().cos(), v.sum())
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(loc, rate.rsqrt()), obs=x)

    rows = {r.split()[0]: r for r in AutoConjugate(model).explain(_X).splitlines()}
    for name in ("w", "v", "rate"):
        assert "none: Site 'y' (Normal) is not conditionally conjugate in 'w': sin of 'w'" in rows[name]


def twice_latent(x: Tensor) -> None:
    pyro.sample("a", dist.Normal(0.0, 1.0))
    normal(x)


def twice_observed(x: Tensor) -> None:
    normal(x)
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[0])


def param_and_latent(x: Tensor) -> None:
    pyro.param("a", torch.tensor(1.0))
    normal(x)


@pytest.mark.parametrize(
    ("model", "both"),
    [(twice_latent, "two sites"), (twice_observed, "two sites"), (param_and_latent, "a parameter and a site")],
)
def test_a_name_belongs_to_one_site(model: Model, both: str) -> None:
    with pytest.raises(ModelError, match=f"a name of its own for each site; got {both} '[ax]'"):
        CAVI(model, AutoConjugate(model)).step(_X)


def test_a_rule_is_not_for_a_subclass_of_other_arguments() -> None:
    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1)).sum()
        with pyro.plate("n", 3):
            pyro.sample("x", dist.OrderedLogistic(a, torch.tensor([-1.0, 1.0])), obs=x)

    with pytest.raises(MissingRuleError, match="got OrderedLogistic, which has none"):
        CAVI(model, AutoConjugate(model)).step(torch.arange(3))


def test_an_error_inside_a_model_says_where_and_keeps_its_type() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(w[7], 1.0), obs=x)

    with pytest.raises(
        ModelError, match=r"got IndexError: index 7 .* at test_programs.py, line \d+: .*w\[7\]"
    ) as caught:
        CAVI(model, AutoConjugate(model)).step(_X[0])
    assert isinstance(caught.value, IndexError)
    assert "The model alone meets it too" in str(caught.value)


def test_what_pyros_validation_refuses_is_refused_of_the_model_alone() -> None:
    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(x)), poutine.scale(scale=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    with pytest.raises(ModelError, match=r"Expected scale > 0 .* The model alone meets it too"):
        CAVI(model, AutoConjugate(model)).step(_X)


def test_an_error_that_only_latents_cause_says_so() -> None:
    def model(x: Tensor) -> None:
        a: Any = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(round(a), 1.0), obs=x)

    with pytest.raises(ModelError, match="__round__"):
        CAVI(model, AutoConjugate(model)).step(_X[0])


@pytest.mark.parametrize("read", [range, lambda z: [1.0, 2.0][z]])
def test_a_latent_is_no_index_of_a_list(read: Callable[[Any], Any]) -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        read(z)
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(LatentValueError, match="got __index__"):
        CAVI(model, AutoConjugate(model)).step(_X[0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda guide: CAVI(gaussian, guide, 1, 2), r"got 2 more arguments\. Leave out the optimizer and the loss"),
        (lambda guide: CAVI(gaussian, guide).run(_X, num_steps=3), r"options of run: max_steps, tol, .*'num_steps'"),
        (
            lambda guide: CAVI(gaussian, guide).run(_X, callback=_THREE),
            "callback to be a function of the number",
        ),
        (lambda guide: CAVI(gaussian, guide).step(_X, _X), r"the arguments of the model, gaussian\(x"),
        (lambda guide: AutoConjugate(_THREE), "Expected a model, a function .*; got int"),
        (lambda guide: AutoConjugate(gaussian, point="mu"), r"a list of site names, such as \['mean'\]; got 'mu'"),
        (lambda guide: AutoConjugate(gaussian, init=0.5), "a seed .an integer."),  # type: ignore[arg-type]
        (lambda guide: guide.quantiles("ab"), "a list of numbers"),
        (lambda guide: guide.load_state_dict(None), r"Expected the state_dict\(\) of a guide; got NoneType"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_happens(call: Callable[[AutoConjugate], Any], words: str) -> None:
    guide = AutoConjugate(gaussian)
    with pytest.raises(ArgumentTypeError, match=words):
        call(guide)
    assert not guide.state_dict()["_extra_state"]["layout"]


def test_an_empty_state_is_no_fitted_guide_s() -> None:
    guide = fit(gaussian, _X)
    with pytest.raises(ModelError, match="the state of a guide of the same model"):
        guide.load_state_dict(AutoConjugate(gaussian).state_dict())


def test_a_masked_mixture_is_scored_by_the_component_that_its_mask_chooses() -> None:
    """A change point, against the sum over where it may be."""
    data = torch.tensor([0.1, -0.4, 2.2, 1.7], dtype=torch.float64)

    def model(known: bool) -> None:
        place = pyro.sample("place", dist.Normal(data.new_zeros(()), 1.0))
        change = 2 if known else pyro.sample("change", dist.Categorical(data.new_ones(5)))
        mask = torch.arange(4) >= change
        with pyro.plate("data", 4):
            pyro.sample(
                "x",
                dist.MaskedMixture(mask, dist.StudentT(3.0, data.new_zeros(()), 1.0), dist.Normal(place, 1.0)),
                obs=data,
            )

    before = dist.StudentT(3.0, data.new_zeros(()), 1.0).log_prob(data)
    cov = torch.eye(2, dtype=torch.float64) + 1
    exact = before[:2].sum() + dist.MultivariateNormal(data.new_zeros(2), cov).log_prob(data[2:])
    elbo = CAVI(model, AutoConjugate(model)).run(True).elbo[-1]
    assert elbo.item() == pytest.approx(exact.item(), rel=1e-10)
    guide = AutoConjugate(model, blocks=[])
    CAVI(model, guide).run(False)
    place = guide.posterior()["place"]
    joint = before.new_zeros(5)
    expected = dist.Normal(place.mean, 1.0).log_prob(data) - place.variance / 2
    for change in range(5):
        joint[change] = before[:change].sum() + expected[change:].sum()
    torch.testing.assert_close(guide.posterior()["change"].probs, joint.softmax(0), rtol=1e-4, atol=1e-6)
