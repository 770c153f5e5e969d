"""Loops over steps, discrete and normal: recording, a sweep, and what one would use instead.

``python -m benchmarks chains``. Hidden Markov models of four states whose emissions and transitions are unknown, as a
plain loop, beside Baum-Welch by hmmlearn and a step of SVI with ``TraceEnum_ELBO``; walks and state-space models as a
loop, beside statsmodels' smoother at known variances and a step of SVI with ``AutoMultivariateNormal``. CPU seconds,
one thread.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from hmmlearn.hmm import GaussianHMM
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.optim import Adam
from statsmodels.tsa.statespace.mlemodel import MLEModel
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate

from .timing import markdown

LENGTHS = (1_000, 10_000)
#: Python's loops of SVI are timed at this length.
_SHORT = 1_000
_STATES, _SWEEPS = 4, 10


def chain(x: Tensor) -> None:
    with pyro.plate("states", _STATES):
        moves = pyro.sample("moves", dist.Dirichlet(x.new_ones(_STATES)))
        level = pyro.sample("level", dist.Normal(x.new_tensor(0.0), 10.0))
        precision = pyro.sample("precision", dist.Gamma(x.new_tensor(1.0), 1.0))
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(moves[..., z, :]), infer={"enumerate": "parallel"})
        pyro.sample(f"x_{t}", dist.Normal(level[..., z], precision[..., z].rsqrt()), obs=x[t])


def walk(x: Tensor) -> None:
    move = pyro.sample("move", dist.Gamma(x.new_tensor(2.0), 1.0))
    noise = pyro.sample("noise", dist.Gamma(x.new_tensor(2.0), 1.0))
    level = pyro.sample("x_0", dist.Normal(x.new_tensor(0.0), 10.0))
    for t in range(len(x)):
        if t:
            level = pyro.sample(f"x_{t}", dist.Normal(level, move.rsqrt()))
        pyro.sample(f"y_{t}", dist.Normal(level, noise.rsqrt()), obs=x[t])


def trend(x: Tensor) -> None:
    """A level with a slope: a state of two dimensions."""
    noise = pyro.sample("noise", dist.Gamma(x.new_tensor(2.0), 1.0))
    step = x.new_tensor([[1.0, 1.0], [0.0, 1.0]])
    cov = torch.diag(x.new_tensor([0.1, 0.01]))
    state = pyro.sample("x_0", dist.MultivariateNormal(x.new_zeros(2), 100.0 * torch.eye(2, dtype=x.dtype)))
    for t in range(len(x)):
        if t:
            state = pyro.sample(f"x_{t}", dist.MultivariateNormal(step @ state, cov))
        pyro.sample(f"y_{t}", dist.Normal(state[0], noise.rsqrt()), obs=x[t])


def run() -> str:
    """Time them, and report."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rows = [_row(*case, length) for case in _CASES for length in LENGTHS]
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    head = ["loop", "T", "first step, s", "a sweep, ms", "instead", "ms", "instead, by SVI", "a step, ms"]
    return f"## Loops over steps\n\nSeconds and milliseconds of CPU, one thread.\n\n{markdown(head, rows)}"


def _row(name: str, model: Callable[..., None], blocks: list[Any], peer: Any, svi: Any, length: int) -> list[str]:
    x = _series(length) if name.startswith("hidden") else _series(length).cumsum(0) / 10
    driver = CAVI(model, AutoConjugate(model, blocks=blocks, init=0))
    first = _seconds(lambda: driver.step(x))
    sweep = _seconds(lambda: [driver.step(x) for _ in range(_SWEEPS)]) / _SWEEPS
    words, each = peer(x)
    row = [name, f"{length:,}", f"{first:.1f}", f"{1e3 * sweep:.1f}", words, f"{1e3 * each:.1f}"]
    return [*row, *svi(model, x)] if length == _SHORT else [*row, "", ""]


def _seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _series(length: int) -> Tensor:
    """Levels that change now and then, with noise."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([-4.0, 0.0, 3.0, 7.0], dtype=torch.float64)
    switch = torch.rand(length, generator=generator) < 0.05
    states = torch.where(switch, torch.randint(0, 4, (length,), generator=generator), 0).cumsum(0) % 4
    return levels[states] + torch.randn(length, generator=generator, dtype=torch.float64)


def _baum_welch(x: Tensor) -> tuple[str, float]:
    peer, data = (
        GaussianHMM(_STATES, n_iter=_SWEEPS, tol=-1.0, covariance_type="diag", random_state=0),
        x.numpy()[:, None],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.fit(data)
        peer.init_params = ""  # it goes on from there, without k-means
        return "an iteration of hmmlearn", _seconds(lambda: peer.fit(data)) / _SWEEPS


def _smoother(x: Tensor, dim: int) -> tuple[str, float]:
    model = MLEModel(x.numpy(), k_states=dim, initialization="approximate_diffuse", loglikelihood_burn=0)
    model["transition"] = torch.tensor([[1.0, 1.0], [0.0, 1.0]])[:dim, :dim].double().numpy()
    model["design"] = torch.eye(1, dim).double().numpy()
    model["selection"] = torch.eye(dim).double().numpy()
    model["state_cov"] = torch.diag(torch.tensor([0.1, 0.01])[:dim]).double().numpy()
    model["obs_cov"] = [[1.0]]
    model.ssm.smooth()
    return "statsmodels' smoother", _seconds(model.ssm.smooth)


def _by_enumeration(model: Callable[..., None], x: Tensor) -> list[str]:
    guide = AutoNormal(pyro.poutine.block(model, expose=["moves", "level", "precision"]))
    return ["TraceEnum_ELBO", _step_of(model, guide, TraceEnum_ELBO(), x)]


def _by_a_full_normal(model: Callable[..., None], x: Tensor) -> list[str]:
    return ["AutoMultivariateNormal", _step_of(model, AutoMultivariateNormal(model), Trace_ELBO(), x)]


def _step_of(model: Callable[..., None], guide: Any, elbo: Any, x: Tensor) -> str:
    pyro.clear_param_store()
    svi = SVI(model, guide, Adam({"lr": 0.01}), elbo)
    svi.step(x)
    return f"{1e3 * _seconds(lambda: svi.step(x)):,.0f}"


_CASES = [
    ("hidden Markov, 4 states", chain, [], _baum_welch, _by_enumeration),
    ("walk", walk, ["x_*"], lambda x: _smoother(x, 1), _by_a_full_normal),
    ("level and slope", trend, ["x_*"], lambda x: _smoother(x, 2), _by_a_full_normal),
]
