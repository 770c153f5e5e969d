"""``compare``: methods beside each other, by one estimator, components in one order; errors that name what differs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, handlers, plotting
from pyro_latent.criticism import Comparison, compare, race, score
from pyro_latent.criticism.parameters import own_parameters
from pyro_latent.errors import ModelError, NotConjugateError
from pyro_latent.models import gmm, lda, normal_gamma

Model = Callable[..., Any]
MODEL = normal_gamma.model


def svi(model: Model, guide: Any, rate: float = 0.05, loss: Any = None) -> SVI:
    return SVI(model, guide, pyro.optim.Adam({"lr": rate}), loss or Trace_ELBO())


def exact() -> AutoConjugate:
    return AutoConjugate(MODEL, blocks=[("mean", "precision")])


def normal_mean(x: Tensor) -> None:
    """One unknown mean: its posterior is a Normal in closed form."""
    mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(mean, 1.5), obs=x)


def normal_mean_posterior(x: Tensor) -> tuple[Tensor, Tensor]:
    precision = 1 / 4.0 + len(x) / 2.25
    return x.sum() / 2.25 / precision, torch.tensor(precision**-0.5, dtype=x.dtype)


# -------------------------------------------------------------------------------------------------------------- values


def test_every_kind_of_method_stands_in_one_table(x: Tensor) -> None:
    methods = {
        "joint": exact(),
        "mean field": CAVI(MODEL, AutoConjugate(MODEL)),
        "svi": svi(MODEL, AutoNormal(MODEL)),
        "hand": svi(MODEL, normal_gamma.guide),
        "nuts": MCMC(NUTS(MODEL), 150, warmup_steps=100, disable_progbar=True),
    }
    found = compare(MODEL, methods, x, max_steps=150)
    truth = normal_gamma.log_evidence(x).item()
    assert list(found.entries) == list(methods) and found.reference == "nuts"
    joint, field, chain = found["joint"], found["mean field"], found["nuts"]
    assert joint.score is not None and joint.score.k.label == "exact"
    assert joint.score.log_evidence == pytest.approx(truth, rel=1e-11) == joint.exact_elbo
    assert field.score is not None and field.exact_elbo is not None and field.exact_elbo < truth
    assert field.score.elbo == pytest.approx(field.exact_elbo, abs=5 * field.score.elbo_error)
    assert field.converged and field.steps is not None and field.steps < 50
    assert chain.score is None and chain.steps == 250 and chain.r_hat is not None and chain.r_hat < 1.1
    assert found["svi"].steps == 150 and found["svi"].seconds is not None
    assert found.worst_difference("joint") < 0.4 and found.worst_difference("nuts") == 0.0
    text = str(found)
    for shown in (
        *methods,
        "exact (exact posterior)",
        "R̂",
        "reference",
        "coordinate ascent",
        "MCMC, NUTS",
        "precision",
    ):
        assert shown in text


def test_differences_are_in_units_of_the_references_sd(x: Tensor) -> None:
    loc, scale = normal_mean_posterior(x)

    def truth(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(loc, scale))

    def off(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(loc + 1.5 * scale, 0.5 * scale))

    found = compare(normal_mean, {"truth": truth, "off": off}, x, reference="truth", num_samples=4000)
    d = found.differences["off"]["mean"]
    assert float(d.mean) == pytest.approx(1.5, abs=4 * float(d.error))
    assert float(d.sd) == pytest.approx(0.5, rel=0.05)
    assert float(d.error) == pytest.approx(((1 + 0.25) / 4000) ** 0.5, rel=0.05)
    gap = -0.5 * (1.5**2 + 0.25 - 1) - torch.tensor(2.0).log().item()  # −KL(off ‖ truth)
    first, other = found["truth"].score, found["off"].score
    assert first is not None and other is not None
    assert other.elbo - first.elbo == pytest.approx(gap, abs=4 * other.elbo_error)
    assert "(+1.5" in str(found) and "×0.5" in str(found)


def test_scores_are_those_of_score(x: Tensor) -> None:
    guide = exact()
    CAVI(MODEL, guide).run(x)
    normal_gamma.guide(x)
    found = compare(MODEL, {"joint": guide, "start": normal_gamma.guide}, x, num_samples=500, seed=7)
    for name, method in (("joint", guide), ("start", normal_gamma.guide)):
        assert found[name].score == score(MODEL, method, x, num_samples=500, seed=7)


def test_one_seed_is_one_comparison(x: Tensor) -> None:
    before = torch.get_rng_state()
    first, again = (compare(MODEL, {"svi": svi(MODEL, AutoNormal(MODEL))}, x, max_steps=20) for _ in range(2))
    assert first["svi"].score == again["svi"].score
    assert torch.equal(torch.get_rng_state(), before)


def test_autoguides_of_one_class_keep_their_own_parameters(x: Tensor) -> None:
    near, far = AutoNormal(MODEL), AutoNormal(MODEL)
    near_svi, far_svi = svi(MODEL, near, 0.05), svi(MODEL, far, 1e-5)
    for one in (near_svi, far_svi):
        pyro.clear_param_store()
        for _ in range(150):
            one.step(x)
    together = compare(MODEL, {"near": near, "far": far}, x)
    for name, guide in (("near", near), ("far", far)):
        with own_parameters(guide):
            assert together[name].score == score(MODEL, guide, x, num_samples=2000)
    first, other = together["near"].score, together["far"].score
    assert first is not None and other is not None and first.elbo > other.elbo + 1


def test_the_models_parameters_outlive_a_fit_and_a_guides_do_not(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", x.new_tensor(1.0), constraint=dist.constraints.positive)
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, scale), obs=x)

    compare(model, {"svi": svi(model, AutoNormal(model))}, x, max_steps=30)
    assert set(pyro.get_param_store()) == {"scale"}
    assert pyro.param("scale").item() != 1.0


def unknown_scale(x: Tensor) -> None:
    """A Normal whose scale is a parameter, far from the data's at the start."""
    scale = pyro.param("scale", lambda: x.new_tensor(100.0), constraint=dist.constraints.positive)
    mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 5.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(mean, scale), obs=x)


class Shifted(pyro.nn.PyroModule):
    """A Normal whose mean a parameter of a module moves."""

    def __init__(self) -> None:
        super().__init__()
        self.shift: Any = pyro.nn.PyroParam(torch.zeros(1).double())

    def forward(self, x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 5.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean + self.shift, 2.0), obs=x)


def with_module() -> Model:
    """The same by ``pyro.module``."""
    layer = torch.nn.Linear(1, 1).double()

    def model(x: Tensor) -> None:
        pyro.module("layer", layer)
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 5.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean + layer(x.new_ones(1)), 2.0), obs=x)

    return model


@pytest.mark.parametrize("make", [lambda: unknown_scale, Shifted, with_module], ids=["param", "PyroModule", "module"])
def test_equal_methods_of_a_model_with_parameters_have_equal_scores(x: Tensor, make: Any) -> None:
    model = make()
    found = compare(model, {n: svi(model, AutoNormal(model)) for n in "ab"}, x, max_steps=40, num_samples=100)
    assert found["a"].score == found["b"].score
    pyro.clear_param_store()
    contest = race(model, {n: lambda: svi(model, AutoNormal(model)) for n in "ab"}, x, max_steps=10)
    assert [lap.elbo for lap in contest["a"].laps] == [lap.elbo for lap in contest["b"].laps]
    assert list(pyro.get_param_store()) == []


def test_parameters_are_afterwards_those_of_the_first_fit(x: Tensor) -> None:
    def left_by(rates: list[float]) -> float:
        pyro.clear_param_store()
        methods = {str(rate): svi(unknown_scale, AutoNormal(unknown_scale), rate) for rate in rates}
        compare(unknown_scale, methods, x, max_steps=30, num_samples=50)
        assert list(pyro.get_param_store()) == ["scale"]
        return pyro.param("scale").item()

    first, other = left_by([0.05]), left_by([0.01])
    assert 100 > other > first == left_by([0.05, 0.01]) and left_by([0.01, 0.05]) == other


@pytest.mark.parametrize("order", [["fitted", "svi"], ["svi", "fitted"]], ids=str)
def test_a_fitted_guide_is_scored_with_the_parameters_of_its_own_fit(x: Tensor, order: list[str]) -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(pyro.param("loc", x.mean()), 0.4))

    pyro.param("scale", x.new_tensor(2.0), constraint=dist.constraints.positive)
    guide(x)
    alone = score(unknown_scale, guide, x, num_samples=200)
    methods = {"fitted": guide, "svi": svi(unknown_scale, AutoNormal(unknown_scale), 0.1)}
    found = compare(unknown_scale, {n: methods[n] for n in order}, x, max_steps=30, num_samples=200)
    assert found["fitted"].score == alone
    assert found["svi"].steps == 30 and pyro.param("scale").item() != 2.0  # the fit went on from there


def test_a_failed_comparison_leaves_parameters_as_they_were(x: Tensor) -> None:
    pyro.param("scale", x.new_tensor(2.0), constraint=dist.constraints.positive)
    methods = {"svi": svi(unknown_scale, AutoNormal(unknown_scale)), "new": AutoNormal(unknown_scale)}
    with pytest.raises(ModelError, match="a fitted guide for 'new'"):
        compare(unknown_scale, methods, x, max_steps=5, num_samples=50)
    assert {n: v.item() for n, v in pyro.get_param_store().items()} == {"scale": 2.0}


def test_a_laplace_approximation_is_the_gaussian_around_the_maximum(x: Tensor) -> None:
    """Of a Gaussian posterior it is the posterior itself."""
    loc, scale = normal_mean_posterior(x)
    methods = {"laplace": svi(normal_mean, AutoLaplaceApproximation(normal_mean), 0.1)}
    found = compare(normal_mean, methods, x, max_steps=400)["laplace"]
    assert found.kind == "SVI, AutoLaplaceApproximation" and found.steps == 400
    assert float(found.moments["mean"].mean) == pytest.approx(float(loc), abs=4 * float(found.moments["mean"].error))
    assert float(found.moments["mean"].sd) == pytest.approx(float(scale), rel=0.06)
    truth = dist.MultivariateNormal(x.new_zeros(30), 2.25 * torch.eye(30).double() + 4.0).log_prob(x).item()
    assert found.score is not None and found.score.log_evidence == pytest.approx(truth, abs=1e-3)


def test_a_laplace_approximation_away_from_a_maximum_is_an_error(x: Tensor) -> None:
    def saddle(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.StudentT(x.new_tensor(1.0), 0.0, 1.0))
        pyro.factor("far", 0.0 * mean)

    start = AutoLaplaceApproximation(saddle, init_loc_fn=lambda site: torch.tensor(3.0).double())
    with pytest.raises(ModelError, match=r"Hessian is not negative definite \('l'\). Take more steps"):
        compare(saddle, {"l": svi(saddle, start, 1e-6)}, x, max_steps=1, num_samples=50)


@pytest.mark.parametrize("kind", ["CAVI", "SVI"])
def test_a_budget_in_seconds_or_steps_ends_a_fit(x: Tensor, kind: str) -> None:
    def method() -> Any:
        return CAVI(MODEL, AutoConjugate(MODEL)) if kind == "CAVI" else svi(MODEL, AutoNormal(MODEL))

    assert compare(MODEL, {"m": method()}, x, max_steps=2)["m"].steps == 2
    brief = compare(MODEL, {"m": method()}, x, max_seconds=1e-9)["m"]
    assert brief.steps == 1
    if kind == "CAVI":
        assert brief.converged is False


# ----------------------------------------------------------------------------------------------------- label switching


def mixture(data: Tensor, swap: bool, **options: Any) -> AutoConjugate:
    """Two components fitted from the same clusters, or from these with their numbers swapped."""
    clusters = gmm.initial_responsibilities(data, 2, generator=torch.Generator().manual_seed(0))
    start = clusters.flip(-1) if swap else clusters
    guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")], init={"component": start}, **options)
    CAVI(gmm.model, guide).run(data, 2, tol=1e-12)
    return guide


def test_components_are_aligned_at_every_site(old_faithful: Tensor) -> None:
    methods = {"one": mixture(old_faithful, False), "swapped": mixture(old_faithful, True)}
    raw = [m.posterior()["weights"].mean for m in methods.values()]
    torch.testing.assert_close(raw[0], raw[1].flip(0), rtol=1e-5, atol=1e-6)
    found = compare(gmm.model, methods, old_faithful, 2)
    assert found.components is not None and found.components.plate == "components"
    for site in ("weights", "mean", "precision"):
        d = found.differences["swapped"][site]
        assert float((d.mean / d.error).abs().max()) < 4.5, site
    assert (
        found["one"].score is not None and "one order" in str(found) and "Summed out exactly: component" in str(found)
    )


def test_svi_with_enumeration_stands_beside_coordinate_ascent(old_faithful: Tensor) -> None:
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    methods = {"cavi": mixture(old_faithful, False), "svi": svi(gmm.model, gmm.guide, 0.01, loss)}
    found = compare(gmm.model, methods, old_faithful, 2, max_steps=60, num_samples=500)
    first, other = found["cavi"].score, found["svi"].score
    assert first is not None and other is not None and first.summed == other.summed == ("component",)
    assert first.elbo > other.elbo and found.worst_difference("svi") < 3.0


def same_family(data: Tensor) -> None:
    """Two components, summed out by the distribution itself."""
    weights = pyro.sample("weights", dist.Dirichlet(data.new_ones(2)))
    with pyro.plate("k", 2):
        mean = pyro.sample("mean", dist.Normal(data.new_tensor(0.0), 10.0))
    with pyro.plate("data", len(data)):
        mixed = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(mean, 1.0))
        pyro.sample("obs", mixed, obs=data)


def guide_at(first: float, second: float, counts: list[float]) -> Model:
    def guide(data: Tensor) -> None:
        pyro.sample("weights", dist.Dirichlet(data.new_tensor(counts)))
        with pyro.plate("k", 2):
            pyro.sample("mean", dist.Normal(data.new_tensor([first, second]), 0.15))

    return guide


@pytest.mark.parametrize("components", [None, "k"])
def test_components_of_a_mixture_that_sums_itself_are_aligned(components: str | None) -> None:
    data = torch.cat([torch.randn(60) - 3, torch.randn(40) + 3]).double()
    methods = {"one": guide_at(-3.0, 3.0, [61.0, 41.0]), "swapped": guide_at(3.0, -3.0, [41.0, 61.0])}
    found = compare(same_family, methods, data, components=components)
    assert found.components is not None and found.components.axes == {"weights": (-1,), "mean": (-1,)}
    for site, d in found.differences["swapped"].items():
        assert float((d.mean / d.error).abs().max()) < 4.5, site


def test_one_component_is_no_mixture(x: Tensor) -> None:
    """With a single component the model is the Normal with an unknown mean, and so is its evidence."""

    def model(x: Tensor, size: int) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(size)))
        with pyro.plate("components", size):
            mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("obs", dist.Normal(mean[z], 1.5), obs=x)

    found = compare(model, {"cavi": AutoConjugate(model)}, x, 1)["cavi"].score
    truth = dist.MultivariateNormal(x.new_zeros(30), 2.25 * torch.eye(30).double() + 4.0).log_prob(x).item()
    assert found is not None and found.log_evidence == pytest.approx(truth, abs=1e-6)


def test_an_unknown_plate_of_components_is_an_error(old_faithful: Tensor) -> None:
    with pytest.raises(ModelError, match=r"one of \['components'\]; got 'rows'"):
        compare(gmm.model, {"cavi": mixture(old_faithful, False)}, old_faithful, 2, components="rows")


# ------------------------------------------------------------------------------------------------------ what is wrong


def cases(x: Tensor) -> dict[str, tuple[Callable[[], Any], str]]:
    """By name: what makes a method that does not fit, and the words of the error."""

    def other_prior(x: Tensor) -> None:
        MODEL(x, prior_rate=5.0)

    def on(model: Model, data: Tensor) -> AutoConjugate:
        guide = AutoConjugate(model)
        CAVI(model, guide).run(data)
        return guide

    def called(guide: Any, data: Tensor) -> Any:
        guide(data)
        return guide

    def chain(model: Model, data: Tensor) -> MCMC:
        mcmc = MCMC(NUTS(model), 4, warmup_steps=2, disable_progbar=True)
        mcmc.run(data)
        return mcmc

    changed = x.clone()
    changed[3] += 1.0
    return {
        "conjugate, other model": (
            lambda: on(other_prior, x),
            "'m', whose model gives 'precision' a log density that differs",
        ),
        "conjugate, other sites": (lambda: on(normal_mean, x), r"leaves out \['precision'\] \('m'\)"),
        "conjugate, other data": (
            lambda: on(MODEL, changed),
            "'m' was fitted to; got another argument 'x': 1 of 30 elements",
        ),
        "conjugate, less data": (lambda: on(MODEL, x[:9]), r"another argument 'x': shape \[30\] in place of \[9\]"),
        "autoguide, other model": (
            lambda: called(AutoNormal(other_prior), x),
            "whose model gives 'precision' a log density",
        ),
        "autoguide, new": (lambda: AutoNormal(MODEL), "a fitted guide for 'm'; got a new AutoNormal.*in an SVI"),
        "autoguide, point": (
            lambda: called(AutoDelta(MODEL), x),
            r"a density; got a point at \['mean', 'precision'\] \('m'\)",
        ),
        "conjugate, point": (
            lambda: AutoConjugate(MODEL, point=["mean"]),
            r"a density; got a point at \['mean'\] \('m'\)",
        ),
        "SVI, other model": (
            lambda: svi(other_prior, normal_gamma.guide),
            "whose model gives 'precision' a log density",
        ),
        "MCMC, other data": (lambda: chain(MODEL, changed), "'m' was fitted to; got another argument 'x'"),
        "MCMC, other model": (lambda: chain(other_prior, x), "whose model gives 'precision' a log density"),
        "MCMC, other sites": (
            lambda: chain(normal_mean, x),
            r"draws with \['precision'\] missing and none besides \('m'\)",
        ),
        "guide, other arguments": (lambda: gmm.guide, r"takes the model's arguments; got one that does not \('m'\)"),
    }


@pytest.mark.parametrize("case", cases(torch.zeros(30)))
def test_a_method_that_does_not_fit_is_an_error_that_names_the_difference(x: Tensor, case: str) -> None:
    make, words = cases(x)[case]
    with pytest.raises(ModelError, match=words):
        compare(MODEL, {"m": make()}, x, max_steps=2, num_samples=50)


def corpora() -> tuple[lda.Corpus, lda.Corpus]:
    counts = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 1.0]])
    return lda.as_corpus(counts), lda.as_corpus(counts + 1)


OTHER_DATA: dict[str, tuple[Any, Any, str]] = {
    "dataclass": (*corpora(), r"'data': doc: shape \[6\] in place of \[4\]"),
    "array": (np.arange(3.0), np.array([0.0, 5.0, 2.0]), "'data': 1 of 3 elements differ"),
    "list": ([1.0, 2.0], [1.0, 3.0], "'data': item 1: 3.0 in place of 2.0"),
    "shorter list": ([1.0, 2.0], [1.0], "'data': 1 items in place of 2"),
    "dict": ({"a": (torch.zeros(2),)}, {"a": (torch.ones(2),)}, "'data': 'a': item 0: 2 of 2 elements differ"),
    "other keys": ({"a": 1}, {"b": 1}, r"'data': keys \['b'\] in place of \['a'\]"),
    "other type": ([1.0, 2.0], torch.ones(2), "'data': Tensor in place of list"),
    "words": (np.array(["a", "b"]), np.array(["a", "c"]), "'data': 1 of 2 elements differ"),
}


@pytest.mark.parametrize("case", OTHER_DATA)
def test_other_data_is_seen_in_any_container(x: Tensor, case: str) -> None:
    before, now, words = OTHER_DATA[case]

    def model(data: Any) -> None:
        normal_mean(x)

    guide = AutoConjugate(model)
    CAVI(model, guide).run(before)
    with pytest.raises(ModelError, match=words):
        compare(model, {"m": guide}, now, num_samples=50)


@pytest.mark.parametrize(
    "data",
    [*corpora(), np.array([np.nan, 1.0]), [1, {"a": None, "b": float("nan")}], torch.eye(2).to_sparse(), object()],
    ids=lambda d: type(d).__name__,
)
def test_equal_data_in_any_container_is_the_same_data(x: Tensor, data: Any) -> None:
    def model(data: Any) -> None:
        normal_mean(x)

    guide = AutoConjugate(model)
    CAVI(model, guide).run(data)
    again = copy.deepcopy(data)
    assert compare(model, {"m": guide}, again, num_samples=50)["m"].score is not None


def test_an_argument_is_the_same_by_name_by_place_and_by_default(x: Tensor) -> None:
    def model(x: Tensor, size: int = 30, prior: float = 2.0) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), prior))
        with pyro.plate("data", size):
            pyro.sample("obs", dist.Normal(mean, 1.5), obs=x)

    named, batches = AutoConjugate(model), AutoConjugate(model)
    CAVI(model, named).run(x=x, prior=2.0)
    CAVI(model, batches, step_size=1.0).run_batches([(x,)], size=30)
    assert compare(model, {"named": named, "batches": batches}, x, 30, num_samples=50)["named"].score is not None
    with pytest.raises(ModelError, match=r"another argument 'prior': 3\.0 in place of 2\.0"):
        compare(model, {"named": named}, x, prior=3.0, num_samples=50)


def test_guides_that_saw_minibatches_are_let_through_when_told(x: Tensor) -> None:
    guide = AutoConjugate(MODEL)
    CAVI(MODEL, guide).step(x[:10])
    with pytest.raises(ModelError, match="pass same_data=False"):
        compare(MODEL, {"m": guide}, x)
    assert compare(MODEL, {"m": guide}, x, same_data=False)["m"].score is not None


def test_equal_data_in_another_tensor_is_the_same_data_and_a_wrapped_model_the_same_model(x: Tensor) -> None:
    written = handlers.closed_form(MODEL, normal_gamma.updates)
    guide = AutoConjugate(written)
    CAVI(written, guide).run(x)
    assert compare(MODEL, {"written": guide}, x.clone())["written"].score is not None
    hidden = AutoNormal(poutine.block(MODEL, hide=["obs"]))
    hidden(x)
    assert compare(MODEL, {"hidden": hidden}, x)["hidden"].score is not None


def test_a_failure_inside_a_method_names_it(x: Tensor) -> None:
    def broken(x: Tensor) -> None:
        raise RuntimeError("out of luck")

    with pytest.raises(ModelError, match="got RuntimeError from 'bad': out of luck") as found:
        compare(MODEL, {"good": exact(), "bad": svi(MODEL, broken)}, x, num_samples=50)
    assert isinstance(found.value.__cause__, RuntimeError)


def test_errors_of_the_library_name_the_method_and_keep_their_class(x: Tensor) -> None:
    def logistic(x: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(x.new_tensor(0.0), 1.0))
        offset = pyro.sample("offset", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(logits=slope * x + offset), obs=(x > 3).to(x))

    methods = {"svi": svi(logistic, AutoNormal(logistic)), "by rules": AutoConjugate(logistic)}
    with pytest.raises(NotConjugateError, match="That was method 'by rules'"):
        compare(logistic, methods, x, max_steps=2, num_samples=50)


def test_nothing_to_draw_is_an_error(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.5)), infer={"enumerate": "parallel"})
            pyro.sample("obs", dist.Normal(z, 1.0), obs=x)

    words = r"got only \['z'\], marked for enumeration. Leave out infer={'enumerate': 'parallel'}"
    for call in (
        lambda: compare(model, {"m": AutoConjugate(model)}, x),
        lambda: race(model, {"m": lambda: CAVI(model, AutoConjugate(model))}, x),
        lambda: score(model, AutoConjugate(model), x),
    ):
        with pytest.raises(ModelError, match=words):
            call()


@pytest.mark.gpu
def test_a_comparison_on_the_gpu_is_that_on_the_cpu(x: Tensor, old_faithful: Tensor) -> None:
    def methods() -> dict[str, Any]:
        chain = MCMC(NUTS(MODEL), 60, warmup_steps=60, disable_progbar=True)
        return {"joint": exact(), "cavi": AutoConjugate(MODEL), "svi": svi(MODEL, AutoNormal(MODEL)), "nuts": chain}

    here, there = (compare(MODEL, methods(), data, max_steps=60) for data in (x, x.cuda()))
    for name in ("joint", "cavi"):
        first, other = here[name].score, there[name].score
        assert first is not None and other is not None
        assert other.elbo == pytest.approx(first.elbo, abs=5 * (first.elbo_error + other.elbo_error) + 1e-8)
    assert there.worst_difference("joint") < 1.0 and "exact" in str(there)
    two = compare(gmm.model, {"a": AutoConjugate(gmm.model), "b": AutoConjugate(gmm.model)}, old_faithful.cuda(), 2)
    assert two.components is not None and len(two.html()) > 10_000


def test_what_is_no_method_is_an_error(x: Tensor) -> None:
    with pytest.raises(TypeError, match="a guide, AutoConjugate, CAVI, SVI or MCMC for 'm'; got dict"):
        compare(MODEL, {"m": {}}, x)
    with pytest.raises(TypeError, match=r"Expected methods by name, in a dict; got list. Write {'cavi': Auto"):
        compare(MODEL, [exact()], x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Expected methods by name, in a dict; got list. Write {'CAVI': lambda"):
        race(MODEL, [exact], x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one method; got none"):
        compare(MODEL, {}, x)
    with pytest.raises(ValueError, match=r"reference to be one of \['m'\]; got 'n'. Name one"):
        compare(MODEL, {"m": exact()}, x, reference="n")
    same = normal_gamma.guide
    with pytest.raises(ModelError, match="the same one in 'a' and 'b'"):
        compare(MODEL, {"a": svi(MODEL, same), "b": svi(MODEL, same, 0.1)}, x)


# ---------------------------------------------------------------------------------------------------------------- page


class Balance(HTMLParser):
    """Every tag that opens closes, and no address leads out of the page."""

    VOID = {"img", "meta"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images = 0
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        addresses = [v for n, v in attrs if n in ("src", "href")]
        assert all(v is not None and v.startswith("data:image/png;base64,") for v in addresses)
        self.images += tag == "img"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_holds_its_pictures(x: Tensor, tmp_path: Path) -> None:
    found = compare(MODEL, {"a <b> & c": exact(), "cavi": AutoConjugate(MODEL)}, x)
    path = found.save_html(tmp_path / "page.html")
    page = Balance()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == [] and page.images == 2
    assert "a <b> & c" in page.text and "exact (exact posterior)" in page.text
    assert f"{normal_gamma.log_evidence(x).item():.3f}" in page.text
    assert not re.search(r"https?://", path.read_text(encoding="utf-8"))


def test_pictures_have_a_panel_for_each_element_and_a_line_for_each_method(old_faithful: Tensor) -> None:
    methods = {"one": mixture(old_faithful, False), "swapped": mixture(old_faithful, True)}
    found: Comparison = compare(gmm.model, methods, old_faithful, 2, num_samples=200)
    panels = [a for a in plotting.plot_densities(found).axes if a.get_title(loc="left")]
    titles = [a.get_title(loc="left") for a in panels]
    assert titles[:2] == ["weights[0]", "weights[1]"] and "precision[0, 1, 0]" not in titles
    assert all(len(a.lines) == 2 for a in panels)
    bounds = plotting.plot_bounds(found).axes[0]
    assert [t.get_text() for t in bounds.get_yticklabels()] == ["one", "swapped"]


def test_a_large_site_is_summed_up_in_one_row() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("obs", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(50, dtype=torch.float64)
    found = compare(model, {"a": AutoConjugate(model), "b": AutoConjugate(model)}, x)
    (head, row) = found.site_rows("z")
    assert (
        head == ["z", "a", "b"]
        and row[0] == "z [50]"
        and row[1] == "reference"
        and row[2].startswith("at most 0.00 sd")
    )
