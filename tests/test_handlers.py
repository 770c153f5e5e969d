"""Hand-written updates under Pyro's handlers: they agree with the derived ones, or an error says what to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, ModelError, check_updates, handlers
from pyro_latent.models import bivariate_gaussian, gmm, lda, normal_gamma, two_modes

Model = Callable[..., Any]
Handler = Callable[[Model], Model]
Updates = Mapping[Any, Callable[..., Any]]
BLOCK = ("mean", "precision")


def tensor(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def noisy_spikes(x: Tensor, is_seen: Any) -> None:
    """Points of which some are masked, each about a latent level that a discrete site moves."""
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)), poutine.mask(mask=is_seen):
        z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.25)), infer={"enumerate": "parallel"})
        level = pyro.sample("level", dist.Normal(z, x.new_tensor(1.0)))
        pyro.sample("x", dist.Normal(level, tau.rsqrt()), obs=x)


def update_tau(q: Any, x: Tensor, is_seen: Tensor) -> dist.Gamma:
    squares = (x - q["level"].mean) ** 2 + q["level"].variance
    return dist.Gamma(2.0 + is_seen.sum() / 2, 1.0 + (is_seen * squares).sum() / 2)


def update_level(q: Any, x: Tensor, is_seen: Tensor) -> dist.Normal:
    precision = 1.0 + q["tau"].mean
    return dist.Normal((q["z"].mean + q["tau"].mean * x) / precision, precision.rsqrt())


def update_z(q: Any, x: Tensor, is_seen: Tensor) -> dist.Bernoulli:
    return dist.Bernoulli(logits=x.new_tensor(0.25).logit() + q["level"].mean - 0.5)


POINTS = tensor([1.0, 1.5, 2.0, 4.0, -0.5])
CLOUD = torch.cat([tensor([[-3.0, -3.5], [-2.0, -3.0], [-4.0, -2.5]]), tensor([[3.0, 2.5], [2.0, 4.0], [3.5, 3.0]])])
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])
SHARES = tensor([[0.9, 0.1]] * 3 + [[0.2, 0.8]] * 3)
CORPUS = lda.as_corpus(torch.tensor([[3, 1, 0, 2], [0, 4, 1, 0], [2, 0, 0, 5], [1, 1, 1, 1]]))
TOPICS = tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.2, 0.6]])
PROPORTIONS = tensor([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1], [0.4, 0.6]])
PLANE = (tensor([1.0, 2.0]), tensor([[2.0, 1.0], [1.0, 3.0]]))
EVERYWHERE: Any = torch.tensor(True)
NOWHERE: Any = torch.tensor(False)
SEEN = torch.tensor([True, True, False, True, True])

#: The model, its updates, its arguments, and where discrete sites or topics start.
PROBLEMS: dict[str, tuple[Model, Updates, tuple[Any, ...], Mapping[str, Any]]] = {
    "normal-gamma": (normal_gamma.model, normal_gamma.updates, (POINTS,), {}),
    "joint normal-gamma": (normal_gamma.model, normal_gamma.joint_updates, (POINTS,), {}),
    "mixture": (gmm.model, gmm.updates, (CLOUD, 2), {"component": SHARES}),
    "topics": (lda.model, lda.updates, (CORPUS, 2), {"beta": dist.Dirichlet(1 + 5 * TOPICS)}),
    "two modes": (two_modes.model, two_modes.updates, (POINTS,), {"first": dist.Normal(1.0, 1.0)}),
    "plane": (bivariate_gaussian.model, bivariate_gaussian.updates, PLANE, {}),
    "spikes": (noisy_spikes, {"tau": update_tau, "level": update_level, "z": update_z}, (POINTS, SEEN), {}),
}


def assert_agree(
    name: str, handler: Handler, sites: set[str], order: Callable[[Handler, Model, Updates], Model]
) -> None:
    """Both ways have one ELBO after each sweep, the updates of the sites that are left are used, and each is right."""
    model, updates, args, init = PROBLEMS[name]
    used: set[str] = set()

    def noted(key: Any, update: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            used.update((key,) if isinstance(key, str) else key)
            return update(*args, **kwargs)

        return called

    plain, written = handler(model), order(handler, model, {key: noted(key, u) for key, u in updates.items()})
    left = {key: value for key, value in init.items() if key in sites}
    blocks = [key for key in updates if isinstance(key, tuple) and sites.issuperset(key)]
    by_engine = CAVI(plain, AutoConjugate(plain, blocks=blocks, init=left or None))
    by_hand = CAVI(written, AutoConjugate(written, blocks=blocks, init=left or None))
    for _ in range(3):
        assert by_hand.step(*args) == pytest.approx(by_engine.step(*args), rel=1e-10, abs=1e-10)
    assert used == sites
    report = check_updates(written, by_hand.guide, *args)
    assert report.ok, str(report)


def outside(handler: Handler, model: Model, updates: Updates) -> Model:
    return handler(handlers.closed_form(model, updates))


def inside(handler: Handler, model: Model, updates: Updates) -> Model:
    return handlers.closed_form(handler(model), updates)


def sites_of(name: str) -> set[str]:
    return {site for key in PROBLEMS[name][1] for site in ((key,) if isinstance(key, str) else key)}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("normal-gamma", {"mean": tensor(1.2)}),
        ("normal-gamma", {"precision": tensor(0.6)}),
        ("mixture", {"weights": tensor([0.3, 0.7])}),
        ("mixture", {"component": LABELS}),
        ("mixture", {"component": LABELS, "weights": tensor([0.3, 0.7])}),
        ("topics", {"beta": TOPICS}),
        ("topics", {"theta": PROPORTIONS}),
        ("topics", {"z": torch.arange(len(CORPUS.doc)) % 2}),
        ("two modes", {"first": tensor(0.8)}),
        ("plane", {"second": tensor(0.8)}),
        ("spikes", {"tau": tensor(0.8)}),
        ("spikes", {"level": 0.5 * POINTS}),
    ],
)
@pytest.mark.parametrize("how", ["condition", "replay"])
@pytest.mark.filterwarnings("ignore:Singular sample detected")
def test_updates_of_the_others_read_a_site_that_has_a_value(name: str, data: dict[str, Tensor], how: str) -> None:
    args = PROBLEMS[name][2]

    def handled(model: Model) -> Model:
        conditioned = poutine.condition(model, data=data)
        if how == "condition":
            return conditioned
        trace = poutine.trace(conditioned).get_trace(*args)
        for site in sites_of(name) - set(data):
            trace.remove_node(site)
        for site in data:
            trace.nodes[site]["is_observed"] = False
        return poutine.replay(model, trace=trace)

    assert_agree(name, handled, sites_of(name) - set(data), outside)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(
    ("handler", "order"),
    [
        (lambda model: poutine.scale(model, scale=2.5), outside),
        (lambda model: poutine.scale(model, scale=2.5), inside),
        (lambda model: poutine.mask(model, mask=EVERYWHERE), outside),
        (lambda model: poutine.block(model, hide=[]), outside),
    ],
    ids=["scale", "scale inside", "mask", "block"],
)
def test_updates_are_the_derived_ones_under_a_handler_of_the_whole_model(
    name: str, handler: Handler, order: Any
) -> None:
    assert_agree(name, handler, sites_of(name), order)


def repeated(x: Tensor, size: int, weight: float) -> None:
    """Points of which each stands for several: by the plate, by ``poutine.scale``, or both."""
    mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 2.0))
    tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), 1.0))
    with pyro.plate("data", size, subsample_size=len(x)), poutine.scale(scale=weight):
        pyro.sample("x", dist.Normal(mean, tau.rsqrt()), obs=x)


def repeated_mean(q: Any, x: Tensor, size: int, weight: float) -> dist.Normal:
    count = q.scales["x"] / q.scales["mean"]
    precision = 0.25 + count * len(x) * q["tau"].mean
    return dist.Normal(count * q["tau"].mean * x.sum() / precision, precision.rsqrt())


def repeated_tau(q: Any, x: Tensor, size: int, weight: float) -> dist.Gamma:
    half = q.scales["x"] / q.scales["tau"] / 2
    squares = (x - q["mean"].mean) ** 2 + q["mean"].variance
    return dist.Gamma(2.0 + half * len(x), 1.0 + half * squares.sum())


@pytest.mark.parametrize(("size", "weight"), [(5, 3.0), (20, 1.0), (20, 0.5)])
@pytest.mark.parametrize("around", [1.0, 0.3])
def test_updates_read_the_scales_of_plates_and_handlers(size: int, weight: float, around: float) -> None:
    written = handlers.closed_form(repeated, {"mean": repeated_mean, "tau": repeated_tau})
    by_hand, by_engine = (poutine.scale(model, scale=around) for model in (written, repeated))
    more: Any = {} if size == len(POINTS) else {"step_size": 0.5}
    drivers = [CAVI(model, AutoConjugate(model), **more) for model in (by_hand, by_engine)]
    for _ in range(3):
        found, expected = (driver.step(POINTS, size, weight) for driver in drivers)
        assert found == pytest.approx(expected, rel=1e-10)
    assert check_updates(by_hand, drivers[0].guide, POINTS, size, weight).ok


def test_updates_of_what_is_masked_altogether_are_not_wrong() -> None:
    """No density reads the sites: any posterior is as good as another."""
    model = poutine.mask(handlers.closed_form(normal_gamma.model, normal_gamma.updates), mask=NOWHERE)
    report = check_updates(model, AutoConjugate(model), POINTS)
    assert report.ok and max(check.gain for check in report.checks) == 0


def test_a_site_with_a_value_is_a_delta() -> None:
    seen = []

    def update(q: Any, x: Tensor) -> Any:
        seen.extend([q["mean"], q["obs"]])
        return normal_gamma.update_precision(q, x)

    written = handlers.closed_form(normal_gamma.model, {"precision": update})
    model = poutine.condition(written, data={"mean": tensor(1.2)})
    CAVI(model, AutoConjugate(model)).step(POINTS)
    assert all(isinstance(found, dist.Delta) for found in seen)
    assert seen[0].v == 1.2 and torch.equal(seen[1].v, POINTS)


def test_the_fast_document_step_reads_topics_that_are_known() -> None:
    model = poutine.condition(handlers.closed_form(lda.model, lda.fast_updates), data={"beta": TOPICS})
    plain = poutine.condition(lda.model, data={"beta": TOPICS})
    fast = CAVI(model, AutoConjugate(model)).run(CORPUS, 2)
    assert fast.elbo[-1] == pytest.approx(CAVI(plain, AutoConjugate(plain)).run(CORPUS, 2).elbo[-1].item(), abs=1e-5)


def by_scales(q: Any, x: Tensor) -> Any:
    return dist.Gamma(1.0 + len(x) / 2 * q.scales["mean"], 1.0)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            handlers.closed_form(
                poutine.condition(normal_gamma.model, data={"mean": tensor(1.0)}), normal_gamma.updates
            ),
            r"updates for \['mean'\], which it lacks.*write poutine.condition\(closed_form\(model, updates\), data\)",
        ),
        (
            poutine.condition(
                handlers.closed_form(normal_gamma.model, normal_gamma.joint_updates), data={"mean": tensor(1.0)}
            ),
            r"a Gamma distribution from the update of 'precision'; got NormalGamma. .*\['mean'\] are observed: write",
        ),
        (
            poutine.reparam(
                handlers.closed_form(normal_gamma.model, normal_gamma.updates), config={"mean": LocScaleReparam(0.0)}
            ),
            r"a latent site for the update of 'mean'; got one that poutine.reparam .* Write closed_form\(poutine.rep",
        ),
        (
            handlers.closed_form(
                poutine.reparam(normal_gamma.model, config={"mean": LocScaleReparam(0.0)}), normal_gamma.updates
            ),
            r"updates for \['mean'\], which it lacks. \['mean'\] are observed, or replaced by a reparametrization",
        ),
        (
            poutine.reparam(
                handlers.closed_form(normal_gamma.model, {"precision": by_scales}),
                config={"mean": LocScaleReparam(0.0)},
            ),
            r"Expected one of \['precision', 'mean_decentered', 'obs'\]; got 'mean', which the update reads",
        ),
        (
            poutine.block(handlers.closed_form(two_modes.model, two_modes.updates), hide=["first"]),
            r"Expected one of \['second'\]; got 'first'.*the engine derives one",
        ),
    ],
    ids=["updates outside", "half of a block", "reparam outside", "reparam inside", "a scale", "block"],
)
def test_what_cannot_work_says_what_to_write(model: Model, words: str) -> None:
    guide = AutoConjugate(model, check=False)  # a blocked site is drawn at random
    with pytest.raises(ModelError, match=words):
        CAVI(model, guide).step(POINTS)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (3, "a Categorical distribution from the update of 'z'; got int"),
        (dist.Normal(0.0, 1.0), "a Categorical distribution from the update of 'z'; got Normal"),
        (dist.Categorical(torch.ones(4, 2)), r"of shape \(3, 2\) from the update of 'z'; got \(4, 2\)"),
        (dist.Categorical(torch.ones(3)), r"of shape \(3, 2\) from the update of 'z'; got \(3,\)"),
    ],
    ids=str,
)
def test_an_update_of_a_discrete_site_gives_probabilities_of_its_shape(found: Any, words: str) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Categorical(x.new_ones(2)))
            pyro.sample("x", dist.Normal(z, x.new_tensor(1.0)), obs=x)

    written = handlers.closed_form(model, {"z": lambda q, x: found})
    with pytest.raises(ModelError, match=words):
        CAVI(written, AutoConjugate(written)).run(tensor([0.0, 1.0, 3.0]), max_steps=2, tol=0)
