"""Models and their hand-written guides, each trained from its own start by each estimator that suits it."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.poutine.util import site_is_subsample
from test_models import Posteriors, mixture_elbo
from torch import Tensor

import pyro_latent.models
from pyro_latent import CAVI, EM, AutoConjugate, DataError, ModelError, distributions
from pyro_latent.gradient.elbos import AnalyticKLELBO
from pyro_latent.models import (
    bivariate_gaussian,
    gmm,
    hidden_markov,
    hmm,
    lda,
    normal_gamma,
    regression,
    restricted_q,
    three_coins,
    two_modes,
)
from pyro_latent.models import factors as factor_analysis

BLOCK = ("mean", "precision")
COVARIANCES: tuple[gmm.Covariance, ...] = ("full", "diagonal")
Program = Callable[..., Any]
ENUMERATED: Any = TraceEnum_ELBO(max_plate_nesting=1)


def trained(model: Program, guide: Program, elbo: Any, steps: int, rate: float, *args: Any, **kwargs: Any) -> None:
    """SVI with a rate that falls a hundredfold."""
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": rate, "lrd": 0.01 ** (1 / steps)}), elbo)
    for _ in range(steps):
        svi.step(*args, **kwargs)


def stored() -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def bound_at(model: Program, init: Mapping[Any, Any], *args: Any, **kwargs: Any) -> float:
    """The exact ELBO of given factors, with discrete sites at their optimum."""
    return float(AutoConjugate(model, init=init).elbo(*args, **kwargs))


def normals(*names: str) -> dict[str, Any]:
    return {name: dist.Normal(stored()[f"{name}_loc"], stored()[f"{name}_scale"]) for name in names}


# --------------------------------------------------------------------------------------------------------- Normal-Gamma


@pytest.mark.parametrize("elbo", [Trace_ELBO(), AnalyticKLELBO()], ids=["Trace", "AnalyticKL"])
@pytest.mark.parametrize("count", [4, pytest.param(272, marks=pytest.mark.slow)])
def test_the_normal_gamma_guide_reaches_coordinate_ascent(elbo: Any, count: int, old_faithful: Tensor) -> None:
    """In 300 steps: to 0.05 nats with 272 points, from 0.09, and to half a nat with four, from 4.5."""
    x = old_faithful[:count, 0]
    guide = AutoConjugate(normal_gamma.model)
    best = CAVI(normal_gamma.model, guide).run(x, tol=0, max_steps=50).elbo[-1].item()

    def missing() -> float:
        with torch.no_grad():
            trace = poutine.trace(normal_gamma.guide).get_trace(x)
        q = {name: trace.nodes[name]["fn"] for name in ("mean", "precision")}  # what the guide draws from
        return best - bound_at(normal_gamma.model, q, x)

    normal_gamma.guide(x)
    start = missing()
    trained(normal_gamma.model, normal_gamma.guide, elbo, 300, 0.03, x)
    assert -1e-9 < missing() < min(start, 0.05 if count > 4 else 0.5)


def test_the_joint_guide_reaches_the_evidence(old_faithful: Tensor) -> None:
    x = old_faithful[:, 0]
    trained(normal_gamma.model, normal_gamma.joint_guide, Trace_ELBO(), 300, 0.03, x)
    losses = [Trace_ELBO().loss(normal_gamma.model, normal_gamma.joint_guide, x) for _ in range(30)]
    assert sum(losses) / len(losses) == pytest.approx(-normal_gamma.log_evidence(x).item(), abs=0.1)


# ---------------------------------------------------------------------------------------------------------- the mixture


def factors(data: Tensor, covariance: gmm.Covariance) -> Posteriors:
    """The factors that the guide's parameters stand for; without a factor of the components, their update."""
    value = stored()
    loc, scaling = value["mean_loc"], value["mean_precision_scaling"]
    uniform = dist.Categorical(logits=data.new_zeros(len(data), len(loc)))
    kind = type(gmm.update_mean_precision({"component": uniform}, data, len(loc), covariance=covariance))
    if covariance in ("full", "tied"):
        tril = value["precision_scale_tril"]
        block: Any = kind(loc, scaling, value["precision_df"], tril @ tril.mT)
    elif covariance == "spherical":
        block = kind(loc, scaling, value["precision_concentration"], value["precision_rate"])
    else:
        gammas = value["precision_concentration"].unsqueeze(-1), value["precision_rate"]
        block = kind(*torch.broadcast_tensors(loc, scaling.unsqueeze(-1), *gammas))
    q = Posteriors({"weights": dist.Dirichlet(value["weight_concentration"]), BLOCK: block})
    own = value.get("component_probs")
    q["component"] = (
        gmm.update_component(q, data, len(loc), covariance=covariance) if own is None else dist.Categorical(own)
    )
    return q


@pytest.mark.filterwarnings("ignore:Singular sample detected", "ignore:component", "ignore:z")
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize(
    ("guide", "elbo", "steps"),
    [
        (gmm.full_guide, Trace_ELBO(), 100),
        (gmm.full_guide, ENUMERATED, 100),
        pytest.param(gmm.guide, ENUMERATED, 300, marks=pytest.mark.slow),
        pytest.param(gmm.full_guide, Trace_ELBO(), 300, marks=pytest.mark.slow),
        pytest.param(gmm.full_guide, TraceGraph_ELBO(), 300, marks=pytest.mark.slow),
        pytest.param(gmm.full_guide, ENUMERATED, 300, marks=pytest.mark.slow),
    ],
)
def test_the_guides_of_the_mixture_reach_coordinate_ascent(
    guide: Program, elbo: Any, steps: int, covariance: gmm.Covariance, old_faithful: Tensor
) -> None:
    """To half a nat in 100 steps and a quarter of one in 300, from 0.52 (full) and 0.58 (diagonal)."""
    options: Any = {"covariance": covariance}
    priors = gmm.default_priors(old_faithful, 2, covariance)
    torch.manual_seed(0)
    init = {"component": gmm.initial_responsibilities(old_faithful, 2)}
    reference = AutoConjugate(gmm.model, blocks=[BLOCK], init=init)
    best = CAVI(gmm.model, reference).run(old_faithful, 2, tol=1e-10, **options).elbo[-1].item()
    torch.manual_seed(0)
    trained(gmm.model, guide, elbo, steps, 0.003 if steps == 300 else 0.002, old_faithful, 2, **options)
    missing = best - mixture_elbo(factors(old_faithful, covariance), old_faithful, priors, covariance).item()
    assert -1e-9 < missing < (0.25 if steps == 300 else 0.5)


@pytest.mark.filterwarnings("ignore:Singular sample detected", "ignore:component")
@pytest.mark.parametrize(("covariance", "elbo"), [("tied", ENUMERATED), ("spherical", Trace_ELBO())])
def test_guides_whose_precisions_are_shared_come_back_to_coordinate_ascent(
    covariance: gmm.Covariance, elbo: Any, old_faithful: Tensor
) -> None:
    """From means that are off by a tenth of a standard deviation, three quarters of what is missing in 60 steps."""
    data = (old_faithful / old_faithful.std(0))[::2]
    priors, options = gmm.default_priors(data, 2, covariance), dict[str, Any](covariance=covariance)
    torch.manual_seed(0)
    init = {"component": gmm.initial_responsibilities(data, 2)}
    reference = AutoConjugate(gmm.model, blocks=[BLOCK], init=init)
    best = CAVI(gmm.model, reference).run(data, 2, tol=1e-10, **options).elbo[-1].item()

    def missing() -> float:
        return best - mixture_elbo(factors(data, covariance), data, priors, covariance).item()

    torch.manual_seed(0)
    gmm.full_guide(data, 2, covariance=covariance)
    with torch.no_grad():
        pyro.param("mean_loc").add_(0.1)
    start = missing()
    trained(gmm.model, gmm.full_guide, elbo, 60, 0.01, data, 2, **options)
    assert -1e-9 < missing() < start / 4


@pytest.mark.filterwarnings("ignore:Singular sample detected", "ignore:component")
@pytest.mark.parametrize("elbo", [Trace_ELBO(), ENUMERATED], ids=["Trace", "Enum"])
def test_the_guides_of_the_mixture_count_points_as_often_as_their_weights_say(elbo: Any, old_faithful: Tensor) -> None:
    """Of one component q starts at the posterior, where each draw has the log evidence: that of repeated points."""
    points = old_faithful[::8]
    losses = []
    for data, weights in ((points, torch.full((len(points),), 3.0).to(points)), (points.repeat(3, 1), None)):
        pyro.clear_param_store()
        losses += [elbo.loss(gmm.model, gmm.full_guide, data, 1, sample_weight=weights) for _ in range(2)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-9)


@pytest.mark.filterwarnings("ignore:Singular sample detected")
def test_the_full_guide_of_the_mixture_goes_on_from_the_other_one(old_faithful: Tensor) -> None:
    """Its components have the labels of the parameters that are there."""
    gmm.guide(old_faithful, 2)
    torch.manual_seed(5)
    gmm.full_guide(old_faithful, 2)
    q = factors(old_faithful, "full")
    expected = gmm.update_component(q, old_faithful, 2).probs
    torch.testing.assert_close(q["component"].probs, expected, rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- topics


@pytest.fixture
def documents() -> lda.Corpus:
    torch.manual_seed(1)
    topics = dist.Dirichlet(torch.full((2, 12), 0.3, dtype=torch.float64)).sample()
    shares = dist.Dirichlet(torch.full((15, 2), 0.5, dtype=torch.float64)).sample()
    return lda.as_corpus(dist.Multinomial(30, shares @ topics).sample())


def topic_init() -> dict[str, Any]:
    value = stored()
    return {"beta": dist.Dirichlet(value["topic_word"]), "theta": dist.Dirichlet(value["doc_topic"])}


@pytest.mark.filterwarnings("ignore:z")
@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceGraph_ELBO(), ENUMERATED], ids=["Trace", "Graph", "Enum"])
def test_the_guide_of_topics_with_z_reaches_coordinate_ascent(elbo: Any, documents: lda.Corpus) -> None:
    """Within half a nat all along the first 60 steps: its start is there, and the noise does not lead it away."""
    lda.full_guide(documents, 2)
    best = CAVI(lda.model, AutoConjugate(lda.model, init=topic_init())).run(documents, 2, tol=1e-9).elbo[-1].item()
    trained(lda.model, lda.full_guide, elbo, 60, 0.003, documents, 2)
    init, probs = topic_init(), stored()["topic_probs"]
    optimum = lda.update_z({name: q for name, q in init.items()}, documents, 2).probs
    divergence = documents.count @ (torch.xlogy(probs, probs) - probs * optimum.log()).sum(-1)
    assert -1e-9 < best - bound_at(lda.model, init, documents, 2) + divergence.item() < 0.5


@pytest.mark.slow
def test_the_guide_of_topics_without_z_reaches_coordinate_ascent(documents: lda.Corpus) -> None:
    """Its bound, with z summed out for each draw, is the tighter one: in 400 steps it is not a nat lower."""
    pyro.set_rng_seed(0)
    lda.guide(documents, 2)
    best = CAVI(lda.model, AutoConjugate(lda.model, init=topic_init())).run(documents, 2, tol=1e-9).elbo[-1].item()
    trained(lda.model, lda.guide, Trace_ELBO(), 400, 0.1, documents, 2, marginal=True)
    many = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    assert -many.loss(lda.model, lda.guide, documents, 2, marginal=True) > best - 1


def test_the_guide_of_topics_with_z_is_of_the_whole_corpus(documents: lda.Corpus) -> None:
    with pytest.raises(DataError, match=r"Expected the whole corpus.*got a minibatch. Write lda.guide"):
        lda.full_guide(documents.minibatch([0, 1]), 2)


# --------------------------------------------------------------------------------------------------------- small models


PLANE = (torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([[2.0, 1.2], [1.2, 3.0]], dtype=torch.float64))
PRODUCT = torch.tensor([3.8, 4.1, 4.5], dtype=torch.float64)


@dataclass(frozen=True)
class Pair:
    model: Program
    guide: Program
    args: tuple[Any, ...]
    init: Any = None


@pytest.mark.parametrize(
    "pair",
    [
        Pair(bivariate_gaussian.model, bivariate_gaussian.guide, PLANE),
        Pair(two_modes.model, two_modes.guide, (PRODUCT,), {"first": dist.Normal(2.0, 0.5)}),
    ],
    ids=["plane", "two modes"],
)
def test_two_normals_reach_coordinate_ascent(pair: Pair) -> None:
    """In 300 steps, to a tenth of a nat."""
    best = CAVI(pair.model, AutoConjugate(pair.model, init=pair.init)).run(*pair.args, tol=1e-12).elbo[-1].item()
    trained(pair.model, pair.guide, Trace_ELBO(num_particles=5, vectorize_particles=True), 300, 0.05, *pair.args)
    assert -1e-9 < best - bound_at(pair.model, normals("first", "second"), *pair.args) < 0.1


def factors_of(guide: Program, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """What the guide draws each site from."""
    with torch.no_grad():
        nodes = poutine.trace(guide).get_trace(*args, **kwargs).nodes
    return {n: node["fn"] for n, node in nodes.items() if node["type"] == "sample" and not site_is_subsample(node)}


@pytest.mark.parametrize("options", [{}, {"ard": True}, {"relative": True, "intercept": False}], ids=str)
def test_a_regression_reaches_coordinate_ascent(options: dict[str, bool]) -> None:
    """In 300 steps, to half a nat."""
    x = torch.randn(60, 3, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.1], dtype=torch.float64) + 0.5 * torch.randn(60, dtype=torch.float64)
    more: dict[str, Any] = options | dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 1.0)

    def model(x: Tensor) -> None:
        regression.model(x, y, **more)

    best = CAVI(model, AutoConjugate(model)).run(x, max_steps=300).elbo[-1].item()
    trained(regression.model, regression.guide, Trace_ELBO(), 300, 0.02, x, y, **more)
    q = factors_of(regression.guide, x, y, **more)
    assert -1e-6 < best - bound_at(model, q, x) < 0.5


@pytest.mark.parametrize("by_column", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_factors_reach_coordinate_ascent(by_column: bool) -> None:
    """In 400 steps, to a nat, of a table with holes."""
    loading = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0], [1.0, -1.0]], dtype=torch.float64)
    x = torch.randn(50, 2, dtype=torch.float64) @ loading.mT + 0.5 * torch.randn(50, 4, dtype=torch.float64)
    seen = torch.rand(50, 4) < 0.9
    more: dict[str, Any] = {"seen": seen, "noise_by_column": by_column}
    trained(factor_analysis.model, factor_analysis.guide, Trace_ELBO(), 400, 0.02, x, 1, **more)
    q = factors_of(factor_analysis.guide, x, 1, **more)

    def model(x: Tensor) -> None:
        factor_analysis.model(x, 1, **more)

    best = CAVI(model, AutoConjugate(model, init=q)).run(x, max_steps=300).elbo[-1].item()
    assert -1e-6 < best - bound_at(model, q, x) < 1


def test_a_hidden_markov_model_reaches_coordinate_ascent(old_faithful: Tensor) -> None:
    """In 100 steps, to a nat of the bound that coordinate ascent reaches from where they end."""
    sequences = ((old_faithful - old_faithful.mean(0)) / old_faithful.std(0))[:60].reshape(6, 10, 2)
    trained(hidden_markov.model, hidden_markov.guide, ENUMERATED, 100, 0.03, sequences, 2)
    q = factors_of(hidden_markov.guide, sequences, 2)
    joint = {"initial": q["initial"], "transition": q["transition"]}

    def model() -> None:
        hidden_markov.model(sequences, 2)

    found = stored()
    root = found["precision_scale_tril"]
    emissions = distributions.NormalWishart(
        found["mean_loc"], found["mean_precision_scaling"], found["precision_df"], root @ root.mT
    )
    guide = AutoConjugate(model, init={**joint, BLOCK: emissions}, blocks=[BLOCK])
    best = CAVI(model, guide).run(max_steps=300).elbo[-1].item()
    losses = [ENUMERATED.loss(hidden_markov.model, hidden_markov.guide, sequences, 2) for _ in range(50)]
    assert -sum(losses) / 50 == pytest.approx(best, abs=1)


@pytest.mark.parametrize("kind", ["categorical", pytest.param("poisson", marks=pytest.mark.slow)])
def test_chains_of_counts_and_symbols_reach_coordinate_ascent(kind: str) -> None:
    """In 60 steps, most of what the start misses of the bound that coordinate ascent reaches from where they end."""
    torch.manual_seed(0)
    level = torch.arange(40).div(4, rounding_mode="floor") % 2
    counts, symbols = torch.poisson(2.0 + 10.0 * level), torch.where(torch.rand(40) < 0.9, level, 2)
    choices: dict[str, tuple[Program, Program, tuple[Any, ...]]] = {
        "poisson": (hidden_markov.poisson_model, hidden_markov.poisson_guide, (counts.reshape(10, 4, 1), 2)),
        "categorical": (
            hidden_markov.categorical_model,
            hidden_markov.categorical_guide,
            (symbols.reshape(10, 4), 2, 3),
        ),
    }
    model, guide, args = choices[kind]
    guide(*args)
    start = bound_at(model, factors_of(guide, *args), *args)
    trained(model, guide, ENUMERATED, 60, 0.3, *args)
    q = factors_of(guide, *args)
    best = CAVI(model, AutoConjugate(model, init=q)).run(*args, max_steps=300).elbo[-1].item()
    assert -1e-4 < best - bound_at(model, q, *args) < (best - start) / 4


@pytest.mark.slow
@pytest.mark.parametrize("factorised", [True, False])
def test_the_restricted_guide_reaches_em(factorised: bool) -> None:
    """Of the parameters in 800 steps: the scale to a fifth, the bound of 40 points to a nat."""
    x = 4 * torch.randn(40, dtype=torch.float64)
    best = EM(restricted_q.model).run(x, factorised, max_steps=500).elbo[-1].item()
    pyro.clear_param_store()
    loss = Trace_ELBO(num_particles=10, vectorize_particles=True)
    trained(restricted_q.model, restricted_q.guide, loss, 800, 0.05, x, factorised)
    many = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    assert -many.loss(restricted_q.model, restricted_q.guide, x, factorised) == pytest.approx(best, abs=1)


@pytest.mark.parametrize("name", ["mixture", "coins", pytest.param("chain", marks=pytest.mark.slow)])
def test_models_with_parameters_reach_em(name: str, old_faithful: Tensor) -> None:
    """With the discrete sites summed out, in 200 steps to a nat; the loss is the likelihood itself."""
    points = (old_faithful - old_faithful.mean(0)) / old_faithful.std(0)
    sequences = old_faithful[:40, 0].reshape(4, 10)
    tosses = torch.tensor(three_coins.TOSSES, dtype=torch.float64)
    programs: dict[str, tuple[Program, Program, tuple[Any, ...]]] = {
        "mixture": (gmm.ml_model, gmm.ml_guide, (points, 2)),
        "coins": (three_coins.model, three_coins.guide, (tosses,)),
        "chain": (hmm.model, hmm.guide, (sequences, 2)),
    }
    model, guide, args = programs[name]
    torch.manual_seed(0)
    best = EM(model).run(*args, max_steps=300).elbo[-1].item()
    pyro.clear_param_store()
    torch.manual_seed(0)
    trained(model, guide, ENUMERATED, 200, 0.05, *args)
    assert ENUMERATED.loss(model, guide, *args) == pytest.approx(-best, abs=1)


# -------------------------------------------------------------------------------------------------- what does not match


@pytest.mark.filterwarnings("ignore:Singular sample detected", "ignore:Found vars in model")
@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceGraph_ELBO(), Trace_ELBO(num_particles=2)])
def test_a_guide_that_lacks_a_discrete_site_is_an_error(elbo: Any, old_faithful: Tensor, documents: lda.Corpus) -> None:
    tosses = torch.tensor(three_coins.TOSSES, dtype=torch.float64)
    pairs: list[tuple[Program, Program, tuple[Any, ...], str]] = [
        (gmm.model, gmm.guide, (old_faithful, 2), "'component'.*gmm.full_guide for gmm.guide, or TraceEnum_ELBO"),
        (gmm.ml_model, gmm.ml_guide, (old_faithful, 2), "'component'.*Write TraceEnum_ELBO"),
        (lda.model, lda.guide, (documents, 2), "'z'.*marginal=True for the model.*lda.full_guide for the guide"),
        (three_coins.model, three_coins.guide, (tosses,), "'choice'.*Write TraceEnum_ELBO"),
        (hmm.model, hmm.guide, (old_faithful[:12, 0].reshape(3, 4), 2), "'state_0'.*Write TraceEnum_ELBO"),
    ]
    for model, guide, args, words in pairs:
        pyro.clear_param_store()
        with pytest.raises(ModelError, match=f"Expected a guide with the site {words}"):
            SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo).step(*args)


@pytest.mark.filterwarnings("ignore:Singular sample detected")
def test_pyro_may_count_the_plates_and_draw_by_given_sites(old_faithful: Tensor) -> None:
    """``TraceEnum_ELBO`` runs the model once with the site drawn; a condition on the others draws it, too."""
    assert math.isfinite(TraceEnum_ELBO().loss(gmm.model, gmm.guide, old_faithful, 2))
    trace = poutine.trace(gmm.guide).get_trace(old_faithful, 2)
    given: dict[str, Any] = {name: trace.nodes[name]["value"] for name in ("weights", "mean", "precision")}
    drawn: Any = poutine.trace(poutine.condition(gmm.model, data=given)).get_trace(old_faithful, 2)
    assert drawn.nodes["component"]["value"].shape == (272,)


def test_every_module_with_a_model_has_a_guide_that_the_package_names() -> None:
    names = [module.name for module in pkgutil.iter_modules(pyro_latent.models.__path__)]
    modules = {name: importlib.import_module(f"pyro_latent.models.{name}") for name in names}
    with_model = {name for name, module in modules.items() if hasattr(module, "model") and name != "vae"}
    assert len(with_model) == 11 and all(hasattr(modules[name], "guide") for name in with_model)
    text = pyro_latent.models.__doc__
    assert text is not None and all(f"``{name}.guide``" in text for name in with_model)
