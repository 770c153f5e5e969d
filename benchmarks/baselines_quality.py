"""Figures of docs/baselines.md: Monte Carlo EM on Old Faithful. (``examples/naive_monte_carlo.py`` prints the rest.)"""

from __future__ import annotations

import time

import pyro
import torch
from torch import Tensor

from examples.flows import old_faithful
from pyro_latent import EM
from pyro_latent.gradient.monte_carlo_em import MonteCarloEM
from pyro_latent.models import gmm

from .seeds import SEEDS, ranged

STEPS, NUM_DRAWS, AVERAGED = 40, 20, 20


def log_likelihood(data: Tensor, theta: dict[str, Tensor]) -> float:
    """log p(data) under a mixture with full covariances, in nats."""
    density = torch.distributions.MultivariateNormal(theta["mean"], theta["covariance"])
    return torch.logsumexp(theta["weights"].log() + density.log_prob(data[:, None]), -1).sum().item()


def run() -> str:
    """The likelihood that Monte Carlo EM's averaged parameters reach, beside the maximum."""
    found, seconds = [], []
    for seed in SEEDS:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        data = old_faithful()
        start = time.process_time()
        result = MonteCarloEM(gmm.ml_model, num_samples=NUM_DRAWS).run(data, 2, max_steps=STEPS)
        seconds.append(time.process_time() - start)
        found.append(log_likelihood(data, result.average(AVERAGED)))
    pyro.clear_param_store()
    best = EM(gmm.ml_model, restarts=3).run(data, 2, max_steps=500, tol=1e-10).elbo[-1].item()
    return (
        f"## Monte Carlo EM\n\nOld Faithful, two full Gaussians, {NUM_DRAWS} draws, {STEPS} steps, the last {AVERAGED} "
        f"averaged: log-likelihood {ranged(found, 3)}, in {ranged(seconds, 1)} CPU seconds; `EM` finds {best:,.3f}."
    )
