"""Deterministic annealing: first sweeps at an inverse temperature, for any model; then exact ones that never fall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from shared_models import mixture
from torch import Tensor
from torch.distributions import constraints

from pyro_latent import CAVI, EM, ArgumentError, ArgumentTypeError, AutoConjugate, handlers
from pyro_latent.criticism import race
from pyro_latent.models import gmm, lda

DOUBLE = torch.float64


def test_a_sweep_at_a_temperature_is_the_posterior_to_that_power() -> None:
    """For an exact posterior N(m, 1 / p) it is N(m, 1 / (β p)); for Gamma(a, b), Gamma(1 + β (a − 1), β b)."""

    def model(x: Tensor, counts: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.tensor(1.0).to(x), 2.0))
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0).to(x), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 0.5), obs=x)
            pyro.sample("counts", dist.Poisson(rate), obs=counts)

    x, counts = torch.randn(20, dtype=DOUBLE), torch.poisson(torch.full((20,), 4.0, dtype=DOUBLE))
    guide = AutoConjugate(model)
    CAVI(model, guide, annealing=[0.3]).step(x, counts)
    precision = 1 / 4 + 20 / 0.25
    posterior = guide.posterior()
    mean, rate = posterior["mean"], posterior["rate"]
    assert mean.variance.item() == pytest.approx(1 / (0.3 * precision), rel=1e-12)
    assert mean.mean.item() == pytest.approx((1 / 4 + x.sum().item() / 0.25) / precision, rel=1e-12)
    assert rate.concentration.item() == pytest.approx(1 + 0.3 * (2 + counts.sum().item()), rel=1e-12)
    assert rate.rate.item() == pytest.approx(0.3 * 22, rel=1e-12)


def test_the_e_step_of_em_has_responsibilities_to_that_power() -> None:
    """Deterministic annealing EM: the M-step is as ever."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 2.0], dtype=DOUBLE))
        share = pyro.param("share", torch.tensor([0.3, 0.7], dtype=DOUBLE), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(share))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    x = torch.randn(40, dtype=DOUBLE)
    joint = torch.tensor([0.3, 0.7], dtype=DOUBLE).log() + dist.Normal(
        torch.tensor([-1.0, 2.0], dtype=DOUBLE), 1.0
    ).log_prob(x[:, None])
    expected = (0.4 * joint).softmax(-1)
    em = EM(model, annealing=[0.4])
    em.step(x)
    found = em.guide.params()
    torch.testing.assert_close(found["share"], expected.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found["loc"], (expected * x[:, None]).sum(0) / expected.sum(0), rtol=1e-12, atol=0)


def test_written_updates_are_annealed_as_the_derived_ones_are(old_faithful: Tensor) -> None:
    written = handlers.closed_form(gmm.model, gmm.updates)
    levels = []
    for model in (gmm.model, written):
        guide = AutoConjugate(model, blocks=[("mean", "precision")], init=1)
        levels.append(CAVI(model, guide, annealing=5).run(old_faithful, 2, max_steps=7, tol=0.0).elbo)
    torch.testing.assert_close(levels[0], levels[1], rtol=1e-9, atol=0)


def corpus_of(seed: int, words: int = 40, topics: int = 4, documents: int = 60) -> Any:
    """Documents of known topics."""
    torch.manual_seed(seed)
    known = torch.distributions.Dirichlet(torch.full((words,), 0.1, dtype=DOUBLE)).sample((topics,))
    shares = torch.distributions.Dirichlet(torch.full((topics,), 0.3, dtype=DOUBLE)).sample((documents,))
    return lda.as_corpus(torch.distributions.Multinomial(60, shares @ known).sample())


def test_the_elbo_is_the_models_own_and_never_falls_once_the_temperature_is_one() -> None:
    x = torch.cat([torch.randn(30, dtype=DOUBLE) - 3, torch.randn(30, dtype=DOUBLE) + 2])
    guide = AutoConjugate(mixture, init=3)
    seen: list[tuple[float, float]] = []
    cavi = CAVI(mixture, guide, annealing=np.array([0.6, 0.8, 0.9]))  # type: ignore[arg-type]
    result = cavi.run(x, max_steps=500, tol=1e-12, callback=lambda _, elbo: seen.append((elbo, guide.elbo(x))))
    assert all(reported == pytest.approx(own, rel=1e-12) for reported, own in seen)
    assert bool((result.elbo[2:].diff() >= -1e-10).all())
    assert result.converged and not cavi.is_annealing
    assert result.num_steps > 4


def test_a_run_does_not_settle_at_a_temperature() -> None:
    x = torch.randn(30, dtype=DOUBLE)
    cavi = CAVI(mixture, AutoConjugate(mixture, init=0), annealing=[0.8] * 40)
    with pytest.warns(UserWarning, match="Expected more steps than those of annealing; got max_steps=40"):
        assert not cavi.run(x, max_steps=40, tol=1e-3).converged
    assert cavi.is_annealing
    assert cavi.run(x, tol=1e-9).converged


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_topics_end_far_higher_from_the_same_start(seed: int) -> None:
    """By 600 nats and more; with six seeds by 643 to 1,144."""
    corpus = corpus_of(seed, words=200, topics=8, documents=150)
    plain, annealed = (
        CAVI(lda.model, AutoConjugate(lda.model, init=seed), annealing=sweeps).run(corpus, 8, tol=1e-7).elbo[-1]
        for sweeps in (0, 60)
    )
    assert annealed > plain + 200


def test_restarts_are_annealed() -> None:
    x = torch.cat([torch.randn(30, dtype=DOUBLE) - 3, torch.randn(30, dtype=DOUBLE) + 2])
    together = CAVI(mixture, AutoConjugate(mixture, init=5, restarts=3), annealing=10).run(x, tol=1e-12)
    assert together.restarts.max().item() == together.elbo[-1].item()
    assert together.restarts.isfinite().all()


def test_a_run_that_is_cut_while_it_anneals_goes_on_where_it_was(tmp_path: Path) -> None:
    x = torch.cat([torch.randn(30, dtype=DOUBLE) - 3, torch.randn(30, dtype=DOUBLE) + 2])

    def made() -> CAVI:
        return CAVI(mixture, AutoConjugate(mixture, init=5), annealing=12)

    whole = made().run(x, max_steps=40, tol=0.0)
    path = tmp_path / "run.pt"
    made().run(x, max_steps=7, tol=0.0, checkpoint=path)
    resumed = made().run(x, max_steps=40, tol=0.0, checkpoint=path)
    assert resumed.elbo.equal(whole.elbo)


def test_a_race_goes_on_while_a_run_anneals() -> None:
    corpus = corpus_of(0)
    makes = {"annealed": lambda: CAVI(lda.model, AutoConjugate(lda.model, init=0), annealing=15)}
    found = race(lda.model, makes, corpus, 4, max_steps=20, num_samples=50, final_samples=50)
    assert found["annealed"].laps[-1].step > 15


@pytest.mark.parametrize(
    ("annealing", "error", "words"),
    [
        (-1, ArgumentError, "number of sweeps of at least 0; got -1"),
        ([0.5, 0.0], ArgumentError, r"inverse temperatures in \(0, 1\]; got 0.0"),
        ([0.5, 1.5], ArgumentError, r"inverse temperatures in \(0, 1\]; got 1.5"),
        ([float("nan")], ArgumentError, r"inverse temperatures in \(0, 1\]; got nan"),
        (["hot"], ArgumentError, r"inverse temperatures in \(0, 1\]; got 'hot'. Write annealing=60"),
        (True, ArgumentTypeError, "a number of sweeps, or a sequence"),
        (0.5, ArgumentTypeError, "a number of sweeps, or a sequence"),
        ("hot", ArgumentTypeError, "a number of sweeps, or a sequence"),
    ],
)
def test_what_is_no_annealing_is_named(annealing: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        CAVI(mixture, AutoConjugate(mixture), annealing=annealing)


@pytest.mark.parametrize("option", [{"step_size": 0.5}, {"memoised": True}])
def test_parts_of_the_data_are_not_annealed(option: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="annealing on all of the data"):
        CAVI(mixture, AutoConjugate(mixture), annealing=5, **option)
