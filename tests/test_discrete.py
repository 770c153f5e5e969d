"""Discrete latents: what a model computes from them is read exactly, and their posterior is the joint one.

Small programs are compared with brute force, the sum over every combination of values of Pyro's own log joint; larger
ones with draws of the guide, scored by Pyro's own traces.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.ops.indexing import Vindex
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, RecordingError
from pyro_latent.errors import DataError, LatentValueError, ModelError, NotConjugateError
from pyro_latent.expressions import Expression, RandomTensor
from pyro_latent.families import Natural
from pyro_latent.objective.elimination import Plan
from pyro_latent.rules import RULES

ENUMERATED: Any = {"enumerate": "parallel"}
sample = pyro.sample


pytestmark = pytest.mark.usefixtures("float64")


def number(*values: float) -> Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values)


def fitted(model: Callable[..., Any], *args: Any, **settings: Any) -> AutoConjugate:
    guide = AutoConjugate(model, **settings)
    CAVI(model, guide).run(*args, tol=1e-10)
    return guide


def log_joints(model: Callable[..., Any]) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Every combination of values of the discrete latents, and Pyro's log joint of each."""
    nodes: Any = poutine.trace(model).get_trace().nodes.values()
    sites = [n for n in nodes if n["type"] == "sample" and not n["is_observed"] and "Subsample" not in str(n["fn"])]
    values = []
    for site in sites:
        support = site["fn"].enumerate_support(expand=False).reshape(-1, *site["fn"].event_shape)
        shape = site["fn"].batch_shape
        rows = itertools.product(range(len(support)), repeat=shape.numel())
        values.append([support[list(r)].reshape(shape + site["fn"].event_shape) for r in rows])
    found = [dict(zip([s["name"] for s in sites], v, strict=True)) for v in itertools.product(*values)]
    scores: Any = [poutine.trace(poutine.condition(model, v)).get_trace().log_prob_sum() for v in found]
    return found, torch.stack(scores)


def elbo_of_draws(model: Callable[..., Any], guide: AutoConjugate, *args: Any, draws: int) -> Tensor:
    """log p − log q at draws of the guide, by Pyro's traces."""
    found: list[Any] = []
    for _ in range(draws):
        drawn = poutine.trace(guide).get_trace(*args)
        scored = poutine.trace(poutine.replay(model, drawn)).get_trace(*args)
        found.append(scored.log_prob_sum() - drawn.log_prob_sum())
    return torch.stack(found).detach()


# Programs of discrete latents alone: the ELBO is the evidence, and q the exact joint posterior.

RATES = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
LEVELS = torch.tensor([-1.0, 1.0], dtype=torch.float64)
CUBE = torch.tensor([[[0.9, 0.1], [0.7, 0.3]], [[0.4, 0.6], [0.05, 0.95]]], dtype=torch.float64)
GROUPS = torch.tensor([0, 1, 1, 2, 0])
LINKS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)


def masked_child() -> None:
    with pyro.plate("n", 3):
        a = sample("a", dist.Categorical(RATES[0]))
        sample("x0", dist.Normal(LEVELS[a], 1.0), obs=number(-1.0, 0.5, 2.0))
        mask: Any = torch.tensor([True, True, False])
        with poutine.mask(mask=mask):
            sample("b", dist.Categorical(RATES[a]))


def chained_index() -> None:
    rain = sample("rain", dist.Categorical(number(0.8, 0.2)), infer=ENUMERATED)
    sample("wet", dist.Categorical(CUBE[rain][1]), obs=torch.tensor(1))


def index_with_ellipsis() -> None:
    a = sample("a", dist.Categorical(number(0.8, 0.2)))
    with pyro.plate("n", 3):
        b = sample("b", dist.Categorical(Vindex(CUBE)[..., a, :][1]))
        sample("x", dist.Normal(LEVELS[b], 1.0), obs=number(0.1, -1.0, 2.0))


def elements_of_a_plate() -> None:
    with pyro.plate("group", 2):
        z = sample("z", dist.Categorical(number(0.3, 0.7)), infer=ENUMERATED)
    with pyro.plate("a", 2):
        sample("ya", dist.Normal(LEVELS[z[0]], 1.0), obs=number(-1.2, 0.3))
    with pyro.plate("b", 3):
        sample("yb", dist.Normal(LEVELS[z[1]], 1.0), obs=number(1.2, 0.3, 0.1))


def gathered() -> None:
    with pyro.plate("group", 3):
        z = sample("z", dist.Categorical(number(0.2, 0.3, 0.5)))
    with pyro.plate("n", 5):
        w = sample("w", dist.Bernoulli(number(0.1, 0.5, 0.8)[z[GROUPS]]))
        sample("x", dist.Normal(w + z[GROUPS], 1.0), obs=number(0.0, 1.0, 2.0, -1.0, 0.5))


def counted() -> None:
    with pyro.plate("n", 4):
        z = sample("z", dist.Bernoulli(number(0.2, 0.4, 0.6, 0.5)))
    sample("total", dist.Normal(z.sum(), 1.0), obs=number(3.0))
    sample("most", dist.Poisson(1 + z.max() + z[0] * z[1] + z.roll(1)[0]), obs=number(2.0))


def blocks_of_a_graph() -> None:
    with pyro.plate("node", 3, dim=-2):
        z = sample("z", dist.Categorical(number(0.4, 0.6)))
    with pyro.plate("from", 3, dim=-2), pyro.plate("to", 3, dim=-1):
        sample("link", dist.Bernoulli(torch.tensor([[0.8, 0.1], [0.3, 0.6]])[z, z.transpose(-1, -2)]), obs=LINKS)


def crossed_plates() -> None:
    rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1)
    with rows:
        z = sample("z", dist.Bernoulli(0.4))
    with columns:
        v = sample("v", dist.Bernoulli(0.3))
    with rows, columns:
        sample("x", dist.Normal(z - 2.0 * v, 1.0), obs=torch.arange(6.0).reshape(2, 3) / 3)


def chain_with_zeros() -> None:
    z: Any = torch.tensor(1)
    left_to_right = torch.tensor([[1.0, 0.0], [0.3, 0.7]])
    steps: Any = list(enumerate(number(0.5, -1.0, -2.0)))
    for t, x in pyro.markov(steps):
        z = sample(f"z{t}", dist.Categorical(left_to_right[z]), infer=ENUMERATED)
        sample(f"x{t}", dist.Normal(LEVELS[z], 1.0), obs=x)


def ragged_chain() -> None:
    lengths: Any = torch.tensor([3, 1])
    data = torch.tensor([[0.5, -1.0, -2.0], [0.2, 0.0, 0.0]])
    z: Any = None
    with pyro.plate("sequences", 2):
        for t in pyro.markov(range(3)):
            with poutine.mask(mask=t < lengths):
                z = sample(f"z{t}", dist.Categorical(RATES[0] if z is None else RATES[z]))
                sample(f"x{t}", dist.Normal(LEVELS[z], 1.0), obs=data[:, t])


def gates() -> None:
    a, c = sample("a", dist.Bernoulli(0.75)), sample("c", dist.Bernoulli(0.5))
    sample("b", dist.Bernoulli(1 - 0.25 * a), obs=number(1.0))
    sample("d", dist.Bernoulli(a * c), obs=number(1.0))


def siblings() -> None:
    z = sample("z", dist.Bernoulli(0.4))
    for i in range(5):
        sample(f"x{i}", dist.Normal(sample(f"y{i}", dist.Bernoulli(0.3 + 0.4 * z)), 1.0), obs=number(0.3))


def plate_before_its_parent() -> None:
    plate = pyro.plate("b", 3)
    with plate:
        z1 = sample("z1", dist.Categorical(number(5 / 12, 7 / 12)))
    z2 = sample("z2", dist.Categorical(number(9 / 21, 3 / 21, 9 / 21)))
    with plate:
        sample("x", dist.Normal(torch.where(z1 == z2, 0.9, -0.36), 0.73), obs=number(1.33, 0.48, -1.15))


def one_hot() -> None:
    with pyro.plate("n", 3):
        z = sample("z", dist.OneHotCategorical(number(0.2, 0.3, 0.5)))
        sample("x", dist.Normal((z * number(-1.0, 0.0, 1.0)).sum(-1), 1.0), obs=number(0.0, 1.0, 2.0))


def without_a_rule() -> None:
    with pyro.plate("n", 3):
        z = sample("z", dist.Categorical(number(0.3, 0.7)))
        sample("x", dist.StudentT(3.0, LEVELS[z], 1.0), obs=number(0.0, 1.0, 2.0))


EXACT = [
    chained_index,
    index_with_ellipsis,
    elements_of_a_plate,
    gathered,
    counted,
    blocks_of_a_graph,
    crossed_plates,
    chain_with_zeros,
    gates,
    siblings,
    plate_before_its_parent,
    one_hot,
    without_a_rule,
]


@pytest.mark.parametrize("model", EXACT, ids=lambda m: m.__name__)
def test_the_elbo_is_the_evidence_and_q_the_joint_posterior(model: Callable[[], None]) -> None:
    guide = fitted(model)
    values, log_joint = log_joints(model)
    evidence = float(log_joint.logsumexp(0))
    assert guide.elbo() == pytest.approx(evidence, abs=1e-9)
    torch.testing.assert_close(
        elbo_of_draws(model, guide, draws=20), torch.full((20,), evidence), rtol=0, atol=1e-9, check_dtype=False
    )
    weights = (log_joint - evidence).exp()
    for name, posterior in guide.posterior().items():
        draws = torch.stack([v[name].to(torch.float64) for v in values])
        mean = (weights.reshape(-1, *[1] * (draws.ndim - 1)) * draws).sum(0)
        probs = posterior.probs
        is_number = isinstance(posterior, dist.Categorical)
        found = (probs * torch.arange(probs.shape[-1], dtype=torch.float64)).sum(-1) if is_number else probs
        torch.testing.assert_close(found.expand(mean.shape), mean, rtol=0, atol=1e-9)


def test_a_masked_child_leaves_its_parent_alone() -> None:
    terms = (RATES[0].log() + dist.Normal(LEVELS, 1.0).log_prob(number(-1.0, 0.5, 2.0)[:, None])).logsumexp(1)
    assert fitted(masked_child).elbo() == pytest.approx(float(terms.sum()), abs=1e-9)


def test_a_chain_that_is_masked_at_its_end_is_a_shorter_chain() -> None:
    guide = fitted(ragged_chain)
    forward = RATES[0].log() + dist.Normal(LEVELS, 1.0).log_prob(torch.tensor([[0.5], [0.2]]))
    first = forward[0]
    for x in number(-1.0, -2.0):
        first = (first[:, None] + RATES.log()).logsumexp(0) + dist.Normal(LEVELS, 1.0).log_prob(x)
    expected = float(first.logsumexp(0) + forward[1].logsumexp(0))
    assert guide.elbo() == pytest.approx(expected, abs=1e-9)


def test_labels_that_are_partly_seen() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    seen: Any = torch.tensor([True, False, True, True])
    x, weights = number(0.5, 1.2, -0.3, 2.0), number(0.3, 0.7)

    def model() -> None:
        with pyro.plate("n", 4):
            z = sample("z", dist.Categorical(weights), obs=labels, obs_mask=seen)
            sample("x", dist.Normal(LEVELS[z], 1.0), obs=x)

    each = weights.log() + dist.Normal(LEVELS, 1.0).log_prob(x[:, None])
    expected = torch.where(seen, each[torch.arange(4), labels], each.logsumexp(1)).sum()
    assert fitted(model).elbo() == pytest.approx(float(expected), abs=1e-9)


def test_many_siblings_take_no_exponential_table() -> None:
    def model() -> None:
        z = sample("z", dist.Bernoulli(0.4))
        for i in range(40):
            sample(f"x{i}", dist.Normal(sample(f"y{i}", dist.Bernoulli(0.3 + 0.4 * z)), 1.0), obs=number(0.3))

    each = torch.tensor([[0.7, 0.3], [0.3, 0.7]]).log() + dist.Normal(number(0.0, 1.0), 1.0).log_prob(number(0.3))
    expected = (number(0.6, 0.4).log() + 40 * each.logsumexp(1)).logsumexp(0)
    started = time.perf_counter()
    assert fitted(model).elbo() == pytest.approx(float(expected), abs=1e-9)
    assert time.perf_counter() - started < 60  # 2^40 numbers would not end


def test_a_tree_over_the_elements_of_one_plate_is_exact() -> None:
    parents = torch.tensor([0, 0, 1, 1, 2, 2, 3])

    def model() -> None:
        with pyro.plate("node", 8):
            z = sample("z", dist.Bernoulli(0.4))
        with pyro.plate("edge", 7):
            sample("same", dist.Bernoulli(torch.where(z[1:] == z[parents], 0.8, 0.3)), obs=(parents % 2).double())

    guide = fitted(model)
    _, log_joint = log_joints(model)
    assert guide.elbo() == pytest.approx(float(log_joint.logsumexp(0)), abs=1e-9)
    assert "exact joint of its elements" in guide.explain()


# Discrete and continuous latents together.


def zero_inflated(x: Tensor) -> None:
    rate, p = sample("rate", dist.Gamma(2.0, 1.0)), sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("n", len(x)):
        z = sample("z", dist.Bernoulli(p))
        sample("x", dist.Poisson(torch.where(z > 0, rate, 0.0)), obs=x)


def gated(x: Tensor) -> None:
    p = sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("n", len(x)):
        sample("x", dist.Bernoulli(sample("z", dist.Bernoulli(0.6)) * p), obs=(x > 1).double())


def noisy_annotators(x: Tensor) -> None:
    with pyro.plate("annotator", 2), pyro.plate("truth", 2, dim=-2):
        confusion = sample("confusion", dist.Dirichlet(number(2.0, 1.0)))
    with pyro.plate("item", 3):
        truth = sample("class", dist.Categorical(number(0.5, 0.5)))
    items, who = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 0, 1, 1])
    with pyro.plate("label", 5):
        sample("x", dist.Categorical(confusion[truth[items], who]), obs=(x > 1).long())


@pytest.mark.parametrize("model", [zero_inflated, gated, noisy_annotators], ids=lambda m: m.__name__)
def test_the_elbo_is_that_of_draws(model: Callable[[Tensor], None]) -> None:
    x = number(0.0, 0.0, 3.0, 2.0, 0.0)
    guide = fitted(model, x)
    found = elbo_of_draws(model, guide, x, draws=100)
    assert abs(float(found.mean()) - guide.elbo(x)) < 5 * float(found.std()) / 10 + 1e-9


def block_model(links: Tensor) -> None:
    count = len(links)
    weights = sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("k", 2, dim=-2), pyro.plate("l", 2, dim=-1):
        rates = sample("rates", dist.Beta(1.0, 1.0))
    with pyro.plate("node", count, dim=-2):
        z = sample("z", dist.Categorical(weights))
    with pyro.plate("from", count, dim=-2), pyro.plate("to", count, dim=-1):
        sample("link", dist.Bernoulli(rates[z, z.transpose(-1, -2)]), obs=links)


def planted(count: int) -> tuple[Tensor, Tensor]:
    """Links of a graph of two blocks, and the blocks."""
    z = torch.arange(count) % 2
    return torch.bernoulli(torch.tensor([[0.8, 0.15], [0.15, 0.7]])[z[:, None], z]), z


def test_elements_that_meet_in_a_large_joint_are_in_mean_field_and_said_to_be() -> None:
    links, z = planted(24)
    guide = AutoConjugate(block_model)
    with pytest.warns(
        UserWarning, match=r"discrete sites \['z'\] are independent in the posterior .* mean_field=\['z'\]"
    ):
        result = CAVI(block_model, guide).run(links, tol=1e-12)
    assert "mean field" in guide.explain() and "independent in q" in guide.explain()
    assert bool((result.elbo.diff() >= -1e-9).all())
    found = guide.posterior()["z"].probs[:, 0].argmax(-1)
    assert bool((found == z).all()) or bool((found == 1 - z).all())
    draws = elbo_of_draws(block_model, guide, links, draws=50)
    assert abs(float(draws.mean()) - guide.elbo()) < 5 * float(draws.std()) / 50**0.5 + 1e-6


@pytest.mark.parametrize("site", ["weights", "rates", "z"])
def test_no_perturbation_of_a_factor_raises_the_elbo_of_a_mean_field_fit(site: str) -> None:
    links, _ = planted(8)
    guide = fitted(block_model, links, mean_field=["z"])
    best, state = guide.elbo(), guide.state
    for _ in range(10):
        moved = Natural(**{n: t * (1 + 1e-3 * torch.randn_like(t)) for n, t in state[site].items()})
        guide.posterior_state.store({**state, site: moved})
        assert guide.elbo() <= best + 1e-10
    guide.posterior_state.store(state)
    assert guide.elbo() == best


def test_mean_field_is_below_the_exact_joint_and_both_are_below_the_evidence() -> None:
    evidence = float(log_joints(blocks_of_a_graph)[1].logsumexp(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was asked for
        guide = fitted(blocks_of_a_graph, mean_field=["z"])
    assert guide.elbo() < evidence - 1e-3
    assert float(elbo_of_draws(blocks_of_a_graph, guide, draws=200).mean()) == pytest.approx(guide.elbo(), abs=0.5)


def test_a_guide_in_mean_field_is_saved_and_loaded() -> None:
    links, _ = planted(8)
    guide = fitted(block_model, links, mean_field=["z"])
    other = AutoConjugate(block_model, mean_field=["z"])
    other.load_state_dict(guide.state_dict())
    assert other.elbo(links) == pytest.approx(guide.elbo(), abs=1e-9)


def test_mean_field_of_a_site_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"mean_field to name discrete sites of \['z'\]; got \['y'\]"):
        fitted(blocks_of_a_graph, mean_field=["y"])


# What has no meaning is an error that says what to write.


def scales_of_their_own() -> None:
    with pyro.plate("n", 2):
        with poutine.scale(scale=2.0):
            a = sample("a", dist.Bernoulli(0.4))
        b = sample("b", dist.Bernoulli(0.2 + 0.5 * a))
        sample("x", dist.Normal(b, 1.0), obs=number(0.3, 1.0))


def branch() -> None:
    z = sample("z", dist.Bernoulli(0.4))
    sample("x", dist.Normal(1.0 if z == 1 else 0.0, 1.0), obs=number(0.3))


def number_of_it() -> None:
    sample("x", dist.Normal(float(sample("z", dist.Bernoulli(0.4))), 1.0), obs=number(0.3))


def written_into() -> None:
    z = sample("z", dist.Categorical(number(0.5, 0.5)))
    loc = torch.zeros(2)
    loc[z] = 1.0
    sample("x", dist.Normal(loc[0], 1.0), obs=number(0.3))


def values_of_another_shape() -> None:
    with pyro.plate("n", 3):
        z = sample("z", dist.Categorical(number(0.5, 0.5)))
    sample("x", dist.Normal(1.0 * len(z.unique()), 1.0), obs=number(0.3))


def latent_mask() -> None:
    z = sample("z", dist.Bernoulli(0.4))
    sample("x", dist.Normal(0.0, 1.0).mask(z > 0), obs=number(0.3))


def fractions_beside_whole_numbers() -> None:
    z = sample("z", dist.Categorical(number(0.5, 0.5)))
    sample("x", dist.Normal(z, 1.66), obs=number(0.3))


def counts_without_end() -> None:
    sample("x", dist.Normal(sample("n", dist.Poisson(2.0)), 1.0), obs=number(0.3))


def most_of_many() -> None:
    with pyro.plate("n", 40):
        z = sample("z", dist.Bernoulli(0.4))
    sample("x", dist.Normal(z.max(), 1.0), obs=number(0.3))


REFUSED = [
    (scales_of_their_own, ModelError, r"one scale .* at 'b', 'a'.*poutine\.scale around all"),
    (branch, LatentValueError, r"latent 'z'; got __bool__.*torch\.where"),
    (number_of_it, LatentValueError, r"latent 'z'; got .*float.*torch\.where"),
    (written_into, LatentValueError, r"in-place __setitem__ with latent 'z'"),
    (values_of_another_shape, LatentValueError, r"discrete latents 'z' whose result has one shape"),
    (latent_mask, NotConjugateError, r"constant mask.*\['z'\]"),
    (fractions_beside_whole_numbers, NotConjugateError, r"whole numbers of the latents \['z'\] beside scale=1\.66"),
    (counts_without_end, NotConjugateError, r"site 'n', a Poisson with infinitely many values"),
    (most_of_many, LatentValueError, r"few discrete latents at once; got one on 40 elements of 'z'"),
]


@pytest.mark.parametrize(("model", "error", "words"), REFUSED, ids=lambda x: getattr(x, "__name__", ""))
def test_what_has_no_exact_meaning_is_refused(model: Callable[[], None], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fitted(model)


def test_a_longer_chain_than_the_fitted_one_is_an_error() -> None:
    def model(x: Tensor) -> None:
        z: Any = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = sample(f"z{t}", dist.Categorical(RATES[z]))
            sample(f"x{t}", dist.Normal(LEVELS[z], 1.0), obs=x[t])

    guide = fitted(model, torch.randn(3))
    with pytest.raises(ModelError, match=r"latent sites of the fitted guide.* got \['z3', 'z4'\] besides"):
        guide.elbo(torch.randn(5))


# The recorded value.


def symbol(name: str, values: int, count: int) -> RandomTensor:
    expression = Expression.discrete(name, torch.arange(values), torch.Size((count,)))
    return RandomTensor(torch.zeros(count, dtype=torch.long), expression)


TABLE = torch.arange(6, dtype=torch.float64).reshape(3, 2) ** 2
MATRIX = torch.arange(9, dtype=torch.float64).reshape(3, 3).sin()
WHERE = torch.tensor([True, False, True])
COMPUTED: dict[str, Callable[[Any, Any], Any]] = {
    "read": lambda z, v: TABLE[z],
    "read twice": lambda z, v: TABLE[z][1],
    "read by two": lambda z, v: TABLE[z, v],
    "an element": lambda z, v: z[0] + v[-1],
    "gathered": lambda z, v: z[torch.tensor([1, 0, 2, 2])],
    "pairs": lambda z, v: MATRIX[z.unsqueeze(-1), z.unsqueeze(0)],
    "sum": lambda z, v: z.sum() + v.sum(),
    "greatest": lambda z, v: z.max(),
    "greatest of two": lambda z, v: torch.stack([z, v], -1).amax(-1),
    "cumsum": lambda z, v: z.cumsum(0),
    "sorted": lambda z, v: z.sort()[0],
    "rolled and flipped": lambda z, v: z.roll(1) - v.flip(0),
    "chosen": lambda z, v: torch.where(WHERE, z, v * 2),
    "compared": lambda z, v: (z > 1) & (v == 0),
    "one hot": lambda z, v: torch.nn.functional.one_hot(z, 3),
    "summed stack": lambda z, v: torch.stack([z, v], -1).sum(-1),
    "read by a sum": lambda z, v: torch.arange(20)[z.sum() + v[1]],
    "divided": lambda z, v: z.double() / (v + 1),
    "softmax": lambda z, v: TABLE[z].softmax(-1),
    "product": lambda z, v: z.prod() + v.prod(),
    "mean": lambda z, v: z.double().mean(),
    "equal pairs": lambda z, v: z[:, None] == z[None, :],
    "any": lambda z, v: (z > 1).any(),
    "matmul": lambda z, v: z.double() @ torch.arange(3.0),
    "neighbors": lambda z, v: (z[1:] == z[:-1]).double(),
    "from the end": lambda z, v: MATRIX[z - 1],
    "joined": lambda z, v: torch.cat([z, v]),
    "polynomial": lambda z, v: z**2 - v * z,
    "repeated": lambda z, v: z.repeat(2),
    "embedded": lambda z, v: torch.nn.functional.embedding(z, TABLE),
    "whole numbers": lambda z, v: z // 2 + z % 2,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_operations_on_discrete_latents_are_those_on_their_values(name: str) -> None:
    found = COMPUTED[name](symbol("z", 3, 3), symbol("v", 2, 3))
    for z in itertools.product(range(3), repeat=3):
        for v in [(0, 0, 1), (1, 0, 1), (1, 1, 0)]:
            expected = COMPUTED[name](torch.tensor(z), torch.tensor(v))
            values = {"z": torch.tensor(z), "v": torch.tensor(v)}
            assert found.shape == expected.shape and found.dtype == expected.dtype
            torch.testing.assert_close(found.expression.evaluate(values), expected.double())


def test_a_discrete_latent_has_the_shape_of_its_draws() -> None:
    shapes = []

    def model() -> None:
        with pyro.plate("a", 2, dim=-2), pyro.plate("b", 3):
            z = sample("z", dist.Categorical(number(0.5, 0.5)), infer=ENUMERATED)
            sample("x", dist.Normal(LEVELS[z], 1.0), obs=torch.zeros(2, 3))
        shapes.append((tuple(z.shape), len(z), z.numel(), z.ndim))

    fitted(model)
    assert set(shapes) == {((2, 3), 2, 6, 2)}


# The check of a recording against Pyro's densities.


def rates(x: Tensor) -> None:
    rate = sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("n", len(x)):
        sample("x", dist.Poisson(rate), obs=x)


def test_a_recorded_density_that_is_not_pyros_is_an_error_that_names_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RULES[dist.Poisson]
    monkeypatch.setitem(RULES, dist.Poisson, lambda arguments, value: right(arguments, value) + 0.01)
    x = number(1.0, 2.0, 0.0)
    with pytest.raises(
        RecordingError, match=r"recorded log density of site 'x' to be that of Pyro.*\['rate'\].*check=False"
    ):
        fitted(rates, x)
    assert fitted(rates, x, check=False).elbo() > fitted(lambda: rates(x), check=False).elbo() - 1


def test_the_check_leaves_no_trace() -> None:
    x = number(1.0, 2.0, 0.0)
    before, names = torch.get_rng_state(), set(pyro.get_param_store().keys())
    guide = AutoConjugate(rates)
    guide.posterior_state.commit(guide.prepare((x,), {}))
    assert torch.equal(torch.get_rng_state(), before) and set(pyro.get_param_store().keys()) == names


# Regressions of draws, of starts and of impossible data.


def chains_in_rows() -> None:
    with pyro.plate("row", 2, dim=-2):
        with pyro.plate("node", 3):
            z = sample("z", dist.Bernoulli(0.5))
            sample("x", dist.Normal(z, 1.0), obs=torch.tensor([[0.3, 1.0, -0.5], [2.0, 0.1, 0.4]]))
        with pyro.plate("edge", 2):
            sample("y", dist.Bernoulli(torch.where(z[:, 1:] == z[:, :-1], 0.9, 0.1)), obs=torch.ones(2, 2))


def scaled_child_of_an_element() -> None:
    with pyro.plate("a", 1):
        z0 = sample("z0", dist.Bernoulli(0.37))
    with pyro.plate("b", 2, dim=-1), poutine.scale(scale=2.0):
        sample("z1", dist.Categorical(torch.tensor([[0.6, 0.4], [0.1, 0.9]])[z0[0].long()]))
    sample("x", dist.Normal(0.0, 1.0), obs=number(0.3))


def leaves_of_two_plates() -> None:
    """A root, a site in a plate, and one in a plate inside, and one beside it that only the root tells of."""
    root = sample("root", dist.Categorical(number(0.2, 0.5, 0.3)))
    with pyro.plate("a", 2, dim=-2):
        inner = sample("inner", dist.Bernoulli(number(0.1, 0.5, 0.8)[root.long()]))
        with pyro.plate("b", 3, dim=-1):
            leaf = sample("leaf", dist.Bernoulli(0.2 + 0.5 * inner))
            sample("x", dist.Normal(LEVELS[leaf.long()], 1.0), obs=number(0.3, -1.0, 2.0, 1.0, 0.1, -0.2).reshape(2, 3))
    with pyro.plate("b2", 2, dim=-1):
        sample("beside", dist.Bernoulli(number(0.3, 0.6, 0.9)[root.long()]))


IN_PLACE = [leaves_of_two_plates, chain_with_zeros, ragged_chain, siblings, plate_before_its_parent]


@pytest.mark.parametrize("model", [chains_in_rows, scaled_child_of_an_element, *IN_PLACE], ids=lambda m: m.__name__)
def test_draws_of_an_exact_posterior_have_the_evidence_each(model: Callable[[], None]) -> None:
    guide = fitted(model)
    draws = elbo_of_draws(model, guide, draws=20)
    torch.testing.assert_close(draws, torch.full_like(draws, guide.elbo()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("model", IN_PLACE, ids=lambda m: m.__name__)
def test_particles_that_are_drawn_at_once_have_the_evidence_each(model: Callable[[], None]) -> None:
    guide = fitted(model)
    loss = Trace_ELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=3).loss(model, guide)
    assert -loss == pytest.approx(float(guide.elbo()), abs=1e-9)


def marked_outside(count: int) -> None:
    """Elements that hang together by a site outside of their plate, which enumeration sums out."""
    k = sample("k", dist.Categorical(number(0.5, 0.5)), infer=ENUMERATED)
    with pyro.plate("n", count):
        z = sample("z", dist.Categorical(RATES[k]))
        sample("x", dist.Normal(3.0 * z, 1.0), obs=torch.linspace(0.5, 1.5, count))


def marked_between() -> None:
    k = sample("k", dist.Categorical(number(0.5, 0.5)))
    with pyro.plate("rows", 2, dim=-2):
        a = sample("a", dist.Categorical(RATES[k]), infer=ENUMERATED)
        with pyro.plate("n", 3, dim=-1):
            z = sample("z", dist.Categorical(RATES[a]))
            sample("x", dist.Normal(3.0 * z, 1.0), obs=number(0.3, 1.0, 2.0, 1.0, 0.1, -0.2).reshape(2, 3))


@pytest.mark.parametrize("model", [lambda: marked_outside(3), marked_between], ids=["outside", "between"])
def test_a_site_whose_elements_hang_together_by_one_that_is_summed_out_is_drawn_jointly(model: Any) -> None:
    guide = fitted(model)
    for _ in range(8):
        loss = TraceEnum_ELBO(max_plate_nesting=2).loss(model, guide)
        assert -loss == pytest.approx(float(guide.elbo()), abs=1e-9)


def test_too_many_such_elements_are_an_error_that_says_what_to_mark() -> None:
    def model() -> None:
        marked_outside(101)

    guide = fitted(model)
    with pytest.raises(ModelError, match=r"Expected 'z' to be marked for enumeration too, or \['k'\] not"):
        TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide)


def test_a_chain_is_drawn_from_one_elimination(monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> None:
        z = torch.tensor(0)
        for t in range(40):
            z = sample(f"z_{t}", dist.Categorical(RATES[z.long()]))
            sample(f"x_{t}", dist.Normal(LEVELS[z.long()], 1.0), obs=number(0.1 * t))

    guide, runs, run = fitted(model), [], Plan.run

    def counted_run(self: Plan, *args: Any) -> Any:
        runs.append(self)
        return run(self, *args)

    monkeypatch.setattr(Plan, "run", counted_run)
    drawn = poutine.trace(guide).get_trace()
    assert len(runs) == 1
    scored = poutine.trace(poutine.replay(model, drawn)).get_trace()
    assert scored.log_prob_sum() - drawn.log_prob_sum() == pytest.approx(guide.elbo(), abs=1e-9)


def test_data_that_no_latents_can_have_made_are_an_error_that_names_their_site() -> None:
    def model() -> None:
        z = sample("z", dist.Bernoulli(0.4))
        sample("x", dist.Bernoulli(0.0 * z), obs=number(1.0))

    with pytest.raises(DataError, match=r"density of zero at 'x', whatever the latents are"):
        fitted(model)


def test_a_start_that_cannot_have_made_the_data_is_left_at_once() -> None:
    x = number(4.0, 4.0, 2.0)

    def model(x: Tensor) -> None:
        with pyro.plate("n", 6, subsample=torch.tensor([1, 2, 5])):
            z = sample("z", dist.Bernoulli(0.31))
            sample("x", dist.Binomial(4, 0.89 * z), obs=x)

    guide = AutoConjugate(model)
    CAVI(model, guide, step_size=1.0).step(x)
    expected = 2 * (3 * number(0.31).log() + dist.Binomial(4, number(0.89)).log_prob(x).sum())
    assert guide.elbo(x) == pytest.approx(float(expected), abs=1e-9)


def test_a_count_with_a_latent_limit() -> None:
    """The N-mixture of counts: data above some values of the limit rule these out."""
    y = number(2.0, 0.0, 3.0)

    def model() -> None:
        limit = sample("limit", dist.Binomial(4, number(0.6)))
        with pyro.plate("visit", 3):
            sample("y", dist.Binomial(limit, number(0.4)), obs=y)

    limits = torch.arange(3.0, 5.0)  # below three the third count cannot be
    each = dist.Binomial(limits, number(0.4)).log_prob(y[:, None]).sum(0)
    expected = (dist.Binomial(4, number(0.6)).log_prob(limits) + each).logsumexp(0)
    assert fitted(model).elbo() == pytest.approx(float(expected), abs=1e-9)


def test_an_event_of_discrete_latents_is_an_error_that_says_where_to_put_them() -> None:
    def model() -> None:
        g = sample("g", dist.Bernoulli(torch.ones(3) / 2).to_event(1))
        sample("x", dist.Normal(g.sum(-1), 1.0), obs=number(1.0))

    with pytest.raises(NotConjugateError, match=r"one by one; got site 'g', an event of several.*pyro\.plate"):
        fitted(model)


@pytest.mark.parametrize("init", [0, pytest.param(1, marks=pytest.mark.slow), None])
def test_a_start_does_not_see_what_a_mask_hides(init: int | None) -> None:
    lengths, states = torch.tensor([20, 9, 14]), torch.bernoulli(torch.full((3, 20), 0.15)).cumsum(1).long() % 2
    x = 3.0 * states + 0.5 * torch.randn(3, 20)
    shown = torch.arange(20) < lengths[:, None]

    def model(x: Tensor) -> None:
        with pyro.plate("state", 2):
            transition = sample("transition", dist.Dirichlet(number(2.0, 2.0)))
            loc, precision = sample("loc", dist.Normal(0.0, 10.0)), sample("precision", dist.Gamma(2.0, 1.0))
        z: Any = None
        with pyro.plate("sequence", 3):
            for t in pyro.markov(range(20)):
                seen: Any = shown[:, t]
                with poutine.mask(mask=seen):
                    z = sample(f"z{t}", dist.Categorical(number(0.5, 0.5) if z is None else transition[z]))
                    sample(f"x{t}", dist.Normal(loc[z], precision[z].rsqrt()), obs=x[:, t])

    found = [fitted(model, torch.where(shown, x, hidden), init=init).elbo() for hidden in (0.0, 50.0)]
    assert found[1] == pytest.approx(found[0], abs=1e-6)


def one_number(x: Tensor) -> None:
    z = sample("z", dist.Bernoulli(0.3), infer=ENUMERATED)
    sample("x", dist.Normal(z, 1.0), obs=x)


def in_a_loop(x: Tensor) -> None:
    z: Any = 0
    for t in range(len(x)):
        z = sample(f"z_{t}", dist.Categorical(RATES[z]), infer=ENUMERATED)
        sample(f"x_{t}", dist.Normal(3.0 * z, 1.0), obs=x[t])


def of_a_plate(x: Tensor) -> None:
    weights = sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("n", 3):
        z = sample("z", dist.Categorical(weights), infer=ENUMERATED)
        sample("x", dist.Normal(3.0 * z, 1.0), obs=x)


def with_a_precision(x: Tensor) -> None:
    precision = sample("precision", dist.Gamma(torch.ones(x.shape), 1.0))
    z = sample("z", dist.Bernoulli(0.3), infer=ENUMERATED)
    sample("x", dist.Normal(z, precision.rsqrt()), obs=x)


@pytest.mark.parametrize(
    ("model", "x", "wide"),
    [
        (one_number, number(0.7).double().squeeze(), number(0.7).double().reshape(1)),
        (in_a_loop, number(0.1, 2.0, 3.5).double(), number(0.1, 2.0, 3.5).double().unsqueeze(1)),
        (of_a_plate, number(0.1, 2.0, 3.5).double(), number(0.1, 2.0, 3.5).double().unsqueeze(0)),
        (with_a_precision, number(0.7).double().squeeze(), number(0.7).double().reshape(1)),
    ],
    ids=["a number", "a loop", "a plate", "a precision"],
)
def test_a_dimension_of_one_to_the_left_of_all_plates_changes_nothing(model: Any, x: Tensor, wide: Tensor) -> None:
    def found(data: Tensor) -> tuple[float, dict[str, Tensor], dict[str, torch.Size]]:
        guide = AutoConjugate(model, init=0)
        CAVI(model, guide).run(data, max_steps=30)
        probs = {n: d.probs for n, d in guide.posterior().items() if n.startswith("z")}
        return guide.elbo(), probs, {n: draw.shape for n, draw in guide(data).items() if n.startswith("z")}

    (elbo, probs, shapes), (same, wide_probs, wide_shapes) = found(x), found(wide)
    assert elbo == pytest.approx(same, abs=1e-9) and shapes == wide_shapes
    for name, own in probs.items():
        torch.testing.assert_close(own.reshape(-1), wide_probs[name].reshape(-1))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_one_choice_of_a_precision_matrix_for_all_data_is_that_of_a_loop(count: int) -> None:
    """x_i x_j is summed over the data before it meets a matrix that a site outside of their plate chooses."""
    x = torch.randn(count, 2, dtype=torch.float64)

    def model(in_a_plate: bool) -> None:
        with pyro.plate("k", 2):
            matrix = sample("matrix", dist.Wishart(torch.tensor(3.5), torch.eye(2) + 0.2))
        z = sample("z", dist.Bernoulli(0.6))
        location = torch.tensor([0.15, -0.7])
        if in_a_plate:
            with pyro.plate("data", count):
                sample("x", dist.MultivariateNormal(location, precision_matrix=matrix[z.long()]), obs=x)
        for i in range(count if not in_a_plate else 0):
            sample(f"x_{i}", dist.MultivariateNormal(location, precision_matrix=matrix[z.long()]), obs=x[i])

    plate, loop = fitted(model, True), fitted(model, False)
    assert plate.elbo() == pytest.approx(loop.elbo(), abs=1e-9)
    torch.testing.assert_close(plate.posterior()["z"].probs, loop.posterior()["z"].probs)


# Starts that cannot have made the data.


def inflated_clusters(y: Tensor, size: int) -> None:
    """Two clusters of counts, of which some are zero whatever the cluster."""
    weights, gate = sample("weights", dist.Dirichlet(torch.ones(2))), sample("gate", dist.Beta(1.0, 1.0))
    with pyro.plate("clusters", 2):
        rate = sample("rate", dist.Gamma(1.0, 0.1))
    with pyro.plate("n", size, subsample_size=len(y)):
        cluster = sample("cluster", dist.Categorical(weights))
        none = sample("none", dist.Bernoulli(gate))
        sample("y", dist.Poisson(torch.where(none > 0, torch.zeros_like(rate[cluster]), rate[cluster])), obs=y)


def test_clusters_part_where_some_values_of_another_latent_are_impossible() -> None:
    """A random start, which has weight on zeros that are counts, tells components apart nevertheless."""
    y = torch.tensor([0.0, 1, 2, 2, 3, 15, 16, 13, 0, 14])
    apart = fitted(inflated_clusters, y, 10, init={"rate": dist.Gamma(number(2.0, 15.0), 1.0)})
    assert fitted(inflated_clusters, y, 10).elbo() == pytest.approx(apart.elbo(), abs=1e-5)


def inflated(y: Tensor, size: int) -> None:
    gate, rate = sample("gate", dist.Beta(1.0, 1.0)), sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("n", size, subsample_size=len(y)):
        none = sample("none", dist.Bernoulli(gate))
        sample("y", dist.Poisson(torch.where(none > 0, torch.zeros_like(rate), rate)), obs=y)


def test_a_start_that_is_impossible_leaves_nothing_in_the_elbo_of_pieces() -> None:
    """Of one impossible element, where the smallest number in the place of minus infinity would be subtracted again."""
    y = torch.tensor([1.0, 2, 1, 0, 1, 0, 0, 2, 1, 1, 1, 0])
    guide = AutoConjugate(inflated)
    found = CAVI(inflated, guide, memoised=True).run_batches([(p,) for p in y.split(4)], epochs=8, size=12)
    assert found.elbo[-1] == pytest.approx(guide.elbo(y, 12), abs=1e-3)
    assert (found.elbo > -1e3).all()
