"""A sweep over scalars by quadrature beside one over a Gamma site in the same plate.

``python -m benchmarks scalars``. Rates of counts have a LogNormal prior, or a Gamma one; or the logarithm of a rate is
a random intercept of a Normal of unknown mean and precision, beside a Gamma site of unknown rate. CPU seconds, one
thread, sweeps in turn; the first one by quadrature, which records the model and looks for the densities, is in sweeps
that follow it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate

from .timing import Spread, interleaved, markdown, ratios

#: Elements of the plate, and the rounds that are timed.
SIZES = ((1_000, 12), (10_000, 10), (100_000, 6))


def lognormal_rates(counts: Tensor) -> None:
    with pyro.plate("units", len(counts)):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        pyro.sample("counts", dist.Poisson(rate), obs=counts)


def gamma_rates(counts: Tensor) -> None:
    with pyro.plate("units", len(counts)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("counts", dist.Poisson(rate), obs=counts)


def intercepts(counts: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 2.0))
    precision = pyro.sample("precision", dist.Gamma(2.0, 2.0))
    with pyro.plate("units", len(counts)):
        own = pyro.sample("own", dist.Normal(level, precision.rsqrt()))
        pyro.sample("counts", dist.Poisson(own.exp()), obs=counts)


def gamma_intercepts(counts: Tensor) -> None:
    inverse_scale = pyro.sample("inverse_scale", dist.Gamma(2.0, 2.0))
    with pyro.plate("units", len(counts)):
        rate = pyro.sample("rate", dist.Gamma(2.0, inverse_scale))
        pyro.sample("counts", dist.Poisson(rate), obs=counts)


#: By name, the model by quadrature and the one with a Gamma site.
MODELS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    "LogNormal rates": (lognormal_rates, gamma_rates),
    "random intercepts": (intercepts, gamma_intercepts),
}


def run() -> str:
    """Time them, and report."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rows = [_row(name, *size) for name in MODELS for size in SIZES]
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    head = ["model", "N", "quadrature", "Gamma", "quadrature / Gamma", "first sweep, in sweeps"]
    return f"## Scalars by quadrature\n\nMilliseconds of CPU a sweep, one thread.\n\n{markdown(head, rows)}"


def _row(name: str, count: int, rounds: int) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson((0.5 + 0.8 * torch.randn(count, generator=generator)).exp(), generator=generator)
    drivers = [CAVI(model, AutoConjugate(model)) for model in MODELS[name]]
    start = time.process_time()
    drivers[0].step(counts)
    first = time.process_time() - start
    sweeps = {str(i): (lambda driver=driver: driver.step(counts)) for i, driver in enumerate(drivers)}
    seconds = interleaved(sweeps, rounds, warm=5, clock=time.process_time)
    own = Spread.of(seconds["0"])
    return [
        name,
        f"{count:,}",
        own.scaled(1e3),
        Spread.of(seconds["1"]).scaled(1e3),
        ratios(seconds["0"], seconds["1"]).scaled(1),
        f"{first / own.median:.0f}",
    ]
