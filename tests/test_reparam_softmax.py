"""Softmax likelihoods by one-versus-each: the bound by hand, below the evidence of the model as it was written."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, DataError, Gibbs, ModelError, NotConjugateError
from pyro_latent.distributions import PolyaGamma
from pyro_latent.reparam import OneVersusEachReparam
from pyro_latent.reparam.one_versus_each import BoundedCategorical, BoundedMultinomial

Model = Callable[..., Any]
SLOPES = torch.tensor([0.3, 1.5, 0.7, -0.4, 2.0, 1.0, -0.2, -2.0, 0.6, -1.1], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 2, 0, 1, 2])
COUNTS = torch.tensor([[3, 0, 1], [0, 4, 0], [1, 1, 2], [0, 0, 4], [2, 2, 0]] * 2).double()


def fit(model: Model, *args: Any) -> tuple[AutoConjugate, Any]:
    """A fit with auxiliary sites, whose ELBO never fell."""
    guide = AutoConjugate(model, reparam=True)
    found = CAVI(model, guide).run(*args, max_steps=2000, tol=1e-12)
    assert bool((found.elbo.diff() > -1e-8).all())
    return guide, found


def logits_of(slopes: Tensor) -> Tensor:
    """Two slopes; the first class is the reference."""
    w = pyro.sample("w", dist.Normal(slopes.new_zeros(2), 1.5).to_event(1))
    return torch.nn.functional.pad(slopes.unsqueeze(-1) * w, (1, 0))


def labelled(labels: Tensor, slopes: Tensor, size: int = 10, mask: Any = True) -> None:
    logits = logits_of(slopes)
    with pyro.plate("n", size, subsample_size=len(slopes)), poutine.mask(mask=mask):
        pyro.sample("y", dist.Categorical(logits=logits), obs=labels)


def by_probs(labels: Tensor, slopes: Tensor) -> None:
    probs = torch.softmax(logits_of(slopes), -1)
    with pyro.plate("n", len(slopes)):
        pyro.sample("y", dist.Categorical(probs), obs=labels)


def by_normalized_logits(labels: Tensor, slopes: Tensor) -> None:
    logits = torch.nn.functional.log_softmax(logits_of(slopes), dim=-1)
    with pyro.plate("n", len(slopes)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=labels)


def in_a_row(labels: Tensor, slopes: Tensor) -> None:
    """The probabilities of all in a plate beside another one of size 1."""
    probs = torch.softmax(logits_of(slopes), -1)[:, None]
    with pyro.plate("n", len(slopes), dim=-2):
        pyro.sample("y", dist.Categorical(probs), obs=labels[:, None])


def counted(counts: Tensor, slopes: Tensor) -> None:
    logits = logits_of(slopes)
    with pyro.plate("n", len(slopes)):
        pyro.sample("y", dist.Multinomial(int(counts.sum(-1).max()), logits=logits), obs=counts)


@functools.cache
def by_hand(kind: str) -> tuple[float, np.ndarray, np.ndarray]:
    """The largest bound: a logistic regression of the differences of logits, each successes of so many trials."""
    counts = np.eye(3)[LABELS] if kind == "labels" else COUNTS.numpy()
    design = np.zeros((3, 2))
    design[1, 0] = design[2, 1] = 1.0
    rows, wins, trials = [], [], []
    for slope, n in zip(SLOPES.numpy(), counts, strict=True):
        for i in range(3):
            for j in range(i):
                rows.append(slope * (design[i] - design[j]))
                wins.append(n[i])
                trials.append(n[i] + n[j])
    x, a, b = np.array(rows), np.array(wins), np.array(trials)
    tilt, prior = np.ones(len(x)), np.eye(2) / 1.5**2
    for _ in range(500):
        weight = b * np.tanh(tilt / 2) / (2 * tilt)
        precision = prior + (x.T * weight) @ x
        covariance = np.linalg.inv(precision)
        mean = covariance @ (x.T @ (a - b / 2))
        tilt = np.sqrt(((x @ (covariance + np.outer(mean, mean))) * x).sum(-1))
    ways = scipy.special.gammaln(counts.sum(-1) + 1).sum() - scipy.special.gammaln(counts + 1).sum()
    bound = 0.5 * (np.linalg.slogdet(prior)[1] - np.linalg.slogdet(precision)[1] + mean @ precision @ mean)
    return (
        bound + (b * (scipy.special.log_expit(tilt) - tilt / 2) + weight * tilt**2 / 2).sum() + ways,
        mean,
        covariance,
    )


def exact(kind: str) -> tuple[float, np.ndarray, np.ndarray]:
    """The log evidence, and the posterior means and standard deviations, on a grid."""
    counts = np.eye(3)[LABELS] if kind == "labels" else COUNTS.numpy()
    axis = np.linspace(-8, 8, 321)
    first, second = np.meshgrid(axis, axis, indexing="ij")
    zero = np.zeros_like(first)
    logits = np.stack([zero, first, second], -1)[..., None, :] * SLOPES.numpy()[:, None]
    joint = (counts * scipy.special.log_softmax(logits, -1)).sum((-1, -2))
    joint += scipy.stats.norm(0, 1.5).logpdf(first) + scipy.stats.norm(0, 1.5).logpdf(second)
    ways = scipy.special.gammaln(counts.sum(-1) + 1).sum() - scipy.special.gammaln(counts + 1).sum()
    total = scipy.special.logsumexp(joint)
    weights = np.exp(joint - total)
    mean = np.array([(weights * v).sum() for v in (first, second)])
    square = np.array([(weights * v**2).sum() for v in (first, second)])
    return total + 2 * math.log(axis[1] - axis[0]) + ways, mean, np.sqrt(square - mean**2)


CASES: list[tuple[Model, Tensor, str]] = [
    (labelled, LABELS, "labels"),
    (by_probs, LABELS, "labels"),
    (by_normalized_logits, LABELS, "labels"),
    (in_a_row, LABELS, "labels"),
    (counted, COUNTS, "counts"),
]


@pytest.mark.parametrize(("model", "data", "kind"), CASES, ids=[m.__name__ for m, _, _ in CASES])
def test_a_softmax_regression_is_that_of_the_differences_by_hand(model: Model, data: Tensor, kind: str) -> None:
    guide, found = fit(model, data, SLOPES)
    bound, mean, covariance = by_hand(kind)
    assert guide.elbo() == pytest.approx(bound, abs=1e-7)
    q = guide.posterior()["w"]
    np.testing.assert_allclose(q.mean, mean, atol=1e-5)
    np.testing.assert_allclose(q.covariance_matrix, covariance, atol=1e-5)
    assert found.augmented == ("y_weight",)
    assert set(guide.posterior()) == {"w"}


@pytest.mark.parametrize(("model", "data", "kind"), [CASES[0], CASES[-1]], ids=["labels", "counts"])
def test_the_bound_is_below_the_evidence_and_the_posterior_near(model: Model, data: Tensor, kind: str) -> None:
    """Of three equal logits one-versus-each is 2 log 2 − log 3 = 0.288 nats below the softmax."""
    guide, _ = fit(model, data, SLOPES)
    evidence, mean, spread = exact(kind)
    q, trials = guide.posterior()["w"], 10 if kind == "labels" else float(COUNTS.sum())
    assert 0 < evidence - guide.elbo() < 0.3 * trials
    assert (np.abs(q.mean.numpy() - mean) / spread).max() < 0.15
    ratio = q.covariance_matrix.diagonal().sqrt().numpy() / spread
    assert 0.7 < ratio.min() < ratio.max() < 1  # as mean field's


def test_two_values_are_a_logistic_regression() -> None:
    def of_two(labels: Tensor, slopes: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(slopes.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("n", len(slopes)):
            pyro.sample("y", dist.Categorical(logits=slopes.unsqueeze(-1) * w), obs=labels)

    def of_one(labels: Tensor, slopes: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(slopes.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("n", len(slopes)):
            pyro.sample("y", dist.Bernoulli(logits=slopes * (w[1] - w[0])), obs=labels.double())

    labels = LABELS.clamp(max=1)
    assert fit(of_two, labels, SLOPES)[0].elbo() == pytest.approx(fit(of_one, labels, SLOPES)[0].elbo(), abs=1e-9)


LOGITS = torch.tensor([0.4, -1.0, 1.3]).double()
FIRST, SECOND = torch.triu_indices(3, 3, 1)


@pytest.mark.parametrize("value", [0, 1, 2, [2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 4.0, 2.0]], ids=str)
def test_the_mean_over_the_weights_is_below_the_softmax(value: Any) -> None:
    """It is the product of logistic functions of the differences, one for each other value."""
    pyro.set_rng_seed(0)
    data = torch.tensor(value)
    counts = torch.eye(3)[value] if isinstance(value, int) else data
    if isinstance(value, int):
        others = [i for i in range(3) if i != value]
        differences = LOGITS[value] - LOGITS[others]
        weight = PolyaGamma(torch.ones(2).double()).expand((40_000, 2)).sample()
        bound = BoundedCategorical(LOGITS.expand(40_000, 3), differences.expand(40_000, 2), weight)
        density = dist.Categorical(logits=LOGITS).log_prob(data)
    else:
        weight = PolyaGamma((data[FIRST] + data[SECOND]).double()).expand((40_000, 3)).sample()
        differences = (LOGITS[FIRST] - LOGITS[SECOND]).expand(40_000, 3)
        bound = BoundedMultinomial(int(data.sum()), LOGITS.expand(40_000, 3), differences, weight)
        density = dist.Multinomial(int(data.sum()), logits=LOGITS).log_prob(data)
    factors = bound.log_prob(data.double() if counts is data else data.expand(40_000)).exp()
    log = torch.nn.functional.logsigmoid(LOGITS[:, None] - LOGITS)
    expected = (
        (counts * (log.sum(1) - log.diagonal())).sum() + (counts.sum() + 1).lgamma() - (counts + 1).lgamma().sum()
    )
    assert abs(float(factors.mean() - expected.exp())) < 5 * float(factors.std()) / 200 + 1e-12
    assert float(expected) <= float(density) + 1e-9


def test_hidden_and_float32_data_and_minibatches() -> None:
    seen = torch.arange(10) < 7
    hidden, _ = fit(labelled, torch.where(seen, LABELS, 99), SLOPES, 10, seen)
    whole, _ = fit(labelled, LABELS[:7], SLOPES[:7], 7)
    assert hidden.elbo() == pytest.approx(whole.elbo(), abs=1e-8)
    single = AutoConjugate(labelled, reparam=True)
    CAVI(labelled, single).run(LABELS, SLOPES.float())
    assert single.elbo() == pytest.approx(by_hand("labels")[0], rel=1e-5)
    batches = [(LABELS[i : i + 5], SLOPES[i : i + 5]) for i in (0, 5)]
    guide = AutoConjugate(labelled, reparam=True)
    CAVI(labelled, guide, memoised=True).run_batches(batches, epochs=30, size=10)
    np.testing.assert_allclose(guide.posterior(*batches[0], size=10)["w"].mean, by_hand("labels")[1], atol=2e-3)


def test_counts_of_several_totals() -> None:
    """Of data the largest number stands for all, as PyTorch's density does not ask for it."""
    counts = COUNTS.clone()
    counts[3] = torch.tensor([0.0, 1.0, 0.0])
    labels = torch.cat([torch.arange(3).repeat_interleave(n.long()) for n in counts])
    slopes = SLOPES.repeat_interleave(counts.sum(-1).long())

    def model(data: Tensor, where: Tensor) -> None:
        logits = logits_of(where)
        with pyro.plate("n", len(where)), pyro.validation_enabled(False):
            pyro.sample("y", dist.Multinomial(4, logits=logits, validate_args=False), obs=data)

    ways = (counts.sum(-1) + 1).lgamma().sum() - (counts + 1).lgamma().sum()
    expected = fit(labelled, labels, slopes, len(labels))[0].elbo() + float(ways)
    assert fit(model, counts, SLOPES)[0].elbo() == pytest.approx(expected, abs=1e-7)


def test_the_entry_alone_and_what_it_leaves() -> None:
    """Logits of data have a rule; those of one scalar a factor by quadrature, which is exact."""

    def model(labels: Tensor, slopes: Tensor) -> None:
        v = pyro.sample("v", dist.Normal(0.0, 1.0))
        logits = torch.stack([0 * slopes, slopes, v * slopes], -1)
        with pyro.plate("n", len(slopes)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=labels)
            pyro.sample("known", dist.Categorical(logits=torch.stack([slopes, -slopes], -1)), obs=labels.clamp(max=1))

    guide, found = fit(model, LABELS, SLOPES)
    assert found.augmented == ()
    axis = np.linspace(-8, 8, 4001)
    slopes = SLOPES.numpy()
    logits = np.stack([np.zeros((4001, 10)), np.tile(slopes, (4001, 1)), axis[:, None] * slopes], -1)
    joint = scipy.special.log_softmax(logits, -1)[:, np.arange(10), LABELS.numpy()].sum(-1) + scipy.stats.norm.logpdf(
        axis
    )
    known = dist.Categorical(logits=torch.stack([SLOPES, -SLOPES], -1)).log_prob(LABELS.clamp(max=1)).sum()
    evidence = scipy.special.logsumexp(joint) + math.log(axis[1] - axis[0]) + float(known)
    assert guide.elbo() == pytest.approx(evidence, abs=1e-6)
    alone = poutine.reparam(labelled, config={"y": OneVersusEachReparam()})
    guide = AutoConjugate(alone)
    CAVI(alone, guide).run(LABELS, SLOPES, max_steps=500, tol=1e-12)
    assert guide.elbo() == pytest.approx(by_hand("labels")[0], abs=1e-6)
    assert "y_weight" in guide.posterior()


@pytest.mark.parametrize(
    "change",
    [
        lambda f: torch.softmax(f, -1).clamp(min=1e-9),
        lambda f: 0.99 * torch.softmax(f, -1) + 0.01 / 3,
        lambda f: torch.softmax(f, -1) + 1e-12,
        lambda f: torch.softmax(f, 0),
        lambda f: torch.softmax(f, -1) ** 2,
        lambda f: torch.softmax(f, -1).flip(0),
        lambda f: torch.softmax(f, -1).mT.reshape(10, 3),
    ],
    ids=["clamp", "mixed", "shifted", "other dimension", "square", "other order", "mixed up"],
)
def test_what_is_made_of_a_softmax_is_none(change: Any) -> None:
    def model(labels: Tensor, slopes: Tensor) -> None:
        probs = change(logits_of(slopes))
        with pyro.plate("n", len(slopes)):
            pyro.sample("y", dist.Categorical(probs), obs=labels)

    with pytest.raises(NotConjugateError, match="Site 'y'"):
        fit(model, LABELS, SLOPES)


def test_what_is_no_softmax_and_what_is_no_label_is_refused() -> None:
    def other(labels: Tensor, slopes: Tensor) -> None:
        rates = logits_of(slopes).exp() + 1.0
        with pyro.plate("n", len(slopes)):
            pyro.sample("y", dist.Categorical(rates), obs=labels)

    with pytest.raises(NotConjugateError, match="Site 'y'"):
        fit(other, LABELS, SLOPES)
    with pytest.raises(DataError, match=r"'y' in IntegerInterval.*got 1 of 10 values outside"):
        fit(labelled, LABELS.index_fill(0, torch.tensor([3]), 3), SLOPES)


def test_gibbs_does_not_draw_from_a_bound() -> None:
    """Its draws would be of another posterior without a word."""
    alone = poutine.reparam(labelled, config={"y": OneVersusEachReparam()})
    with pytest.raises(ModelError, match=r"got those of \['y'\], which are bounds of logistic functions"):
        Gibbs(alone, 10).run(LABELS, SLOPES)


def test_the_error_of_a_softmax_says_that_reparam_would_do() -> None:
    with pytest.raises(NotConjugateError, match=r"Or write AutoConjugate\(model, reparam=True\)"):
        CAVI(labelled, AutoConjugate(labelled)).run(LABELS, SLOPES)
