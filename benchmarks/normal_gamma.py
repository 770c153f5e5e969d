"""A sweep of coordinate ascent beside a step of SVI, on the same small model: what Python costs."""

from __future__ import annotations

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.models import normal_gamma

from .timing import Spread, interleaved, markdown, ratios

NUM_POINTS = 1000


def run() -> str:
    """Time both, and report."""
    pyro.clear_param_store()
    x = 3.0 + 2.0 * torch.randn(NUM_POINTS, dtype=torch.float64)
    cavi = CAVI(normal_gamma.model, AutoConjugate(normal_gamma.model))
    guide = AutoNormal(normal_gamma.model)
    svi = SVI(normal_gamma.model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    seconds = interleaved({"sweep": lambda: cavi.step(x), "step": lambda: svi.step(x)}, rounds=40, repeat=20, warm=3)
    sweep, step = seconds["sweep"], seconds["step"]
    rows = [
        ["`CAVI.step`, mean field", Spread.of(sweep).scaled(1e3)],
        ["`SVI.step`, AutoNormal, Trace_ELBO", Spread.of(step).scaled(1e3)],
    ]
    return (
        f"## Normal-Gamma, {NUM_POINTS:,} points\n\n{markdown(['one step', 'milliseconds'], rows)}\n\n"
        f"A step of SVI takes {ratios(step, sweep).scaled(1)} times as long as a sweep. The target is at least 1."
    )
