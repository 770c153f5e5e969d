"""Latent labels whose logits are latent: beside labels that are seen, logistic sites, and integrals on a grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import pad

from pyro_latent import CAVI, AutoConjugate, Gibbs, ModelError
from pyro_latent.reparam import OneVersusEachReparam

SLOPES = torch.tensor([0.3, 1.5, 0.7, -0.4, 2.0, 1.0, -0.2, -2.0, 0.6, -1.1], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 2, 0, 1, 2])
NOISE = torch.tensor([0.1, -0.4, 0.3, 0.7, -0.9, 0.2, 0.5, -0.1, -0.6, 0.4], dtype=torch.float64)


@pytest.fixture(autouse=True)
def double(float64: None) -> None:
    """All numbers in double precision."""


def fit(model: Callable[..., Any], *args: Any) -> tuple[AutoConjugate, float]:
    """A fit with auxiliary sites, whose ELBO never fell."""
    guide = AutoConjugate(model, reparam=True)
    found = CAVI(model, guide).run(*args, max_steps=1000, tol=1e-13)
    assert bool((found.elbo.diff() > -1e-8).all())
    return guide, float(found.elbo[-1])


def hidden(y: Tensor, apart: float, size: int = 3, labels: Tensor | None = None) -> None:
    """Data about the place of a label, whose logits are products with slopes; the first label is the reference."""
    w = pyro.sample("w", dist.Normal(torch.zeros(size - 1), 1.5).to_event(1))
    logits = pad(SLOPES.unsqueeze(-1) * w, (1, 0))
    with pyro.plate("n", len(y)):
        z = pyro.sample("z", dist.Categorical(logits=logits), obs=labels)
        pyro.sample("y", dist.Normal(apart * z, 1.0), obs=y)


def test_labels_that_the_data_tell_have_the_bound_of_labels_that_are_seen() -> None:
    y = 100.0 * LABELS + NOISE
    (guide, bound), (seen, expected) = fit(hidden, y, 100.0), fit(hidden, y, 100.0, 3, LABELS)
    assert bound == pytest.approx(expected, abs=1e-8)
    torch.testing.assert_close(guide.posterior()["w"].mean, seen.posterior()["w"].mean, rtol=1e-6, atol=1e-6)
    assert torch.equal(guide.posterior()["z"].probs.argmax(-1), LABELS)


def test_two_labels_are_a_logistic_site() -> None:
    """The bound is that of a Bernoulli site by logits, which is exact but for the weight's independence."""

    def logistic(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(1), 1.5).to_event(1))
        with pyro.plate("n", len(y)):
            z = pyro.sample("z", dist.Bernoulli(logits=(SLOPES.unsqueeze(-1) * w).sum(-1)))
            pyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y)

    y = 2.0 * LABELS.clamp(max=1) + NOISE
    (guide, bound), (other, expected) = fit(hidden, y, 2.0, 2), fit(logistic, y)
    assert bound == pytest.approx(expected, abs=1e-8)
    torch.testing.assert_close(guide.posterior()["w"].mean, other.posterior()["w"].mean, rtol=1e-5, atol=1e-6)


def test_posterior_is_near_that_of_a_grid_and_the_bound_below_the_evidence() -> None:
    y = 3.0 * LABELS + NOISE
    guide, bound = fit(hidden, y, 3.0)
    line = torch.linspace(-8.0, 8.0, 161)
    w = torch.cartesian_prod(line, line)
    log_prior = dist.Normal(0.0, 1.5).log_prob(w).sum(-1)
    log_probs = pad(SLOPES[:, None, None] * w, (1, 0)).log_softmax(-1)  # [N, grid, 3]
    log_data = dist.Normal(3.0 * torch.arange(3.0), 1.0).log_prob(y[:, None])[:, None]
    joint = log_prior + (log_probs + log_data).logsumexp(-1).sum(0)
    evidence = float(joint.logsumexp(0) + 2 * (line[1] - line[0]).log())
    weights = joint.softmax(0).unsqueeze(-1)
    mean = (weights * w).sum(0)
    deviation = (weights * (w - mean) ** 2).sum(0).sqrt()
    q = guide.posterior()["w"]
    assert evidence - 4.0 < bound < evidence
    assert bool(((q.mean - mean).abs() < 0.3 * deviation).all())
    ratio = q.variance.sqrt() / deviation
    assert bool(((ratio > 0.6) & (ratio < 1.05)).all())


def test_gibbs_does_not_draw_from_a_bound() -> None:
    alone = poutine.reparam(hidden, config={"z": OneVersusEachReparam()})
    with pytest.raises(ModelError, match=r"got those of \['z'\], which are bounds of logistic functions"):
        Gibbs(alone, 10).run(NOISE, 3.0)
