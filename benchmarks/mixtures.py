"""Sweeps over 100,000 points: the Gaussian mixture beside scikit-learn's, a Bernoulli mixture, and probabilistic PCA.

``python -m benchmarks.mixtures`` fits the Gaussian mixture for three sweeps and prints the peak memory of its process.
``OMP_NUM_THREADS=1 python -m benchmarks.mixtures cpu`` prints the report on it in CPU seconds of one thread: for a
machine that others share.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.models import gmm

from .timing import Spread, interleaved, markdown, ratios

N, D, K = 100_000, 16, 32
ROUNDS = 7
THREADS = 2


def clusters(count: int, dimensions: int, components: int, generator: torch.Generator) -> Tensor:
    """Points of some well mixed clusters, ``[N, D]``, float64."""
    centers = 3.0 * torch.randn(components, dimensions, generator=generator, dtype=torch.float64)
    labels = torch.randint(components, (count,), generator=generator)
    return centers[labels] + torch.randn(count, dimensions, generator=generator, dtype=torch.float64)


def fitted(mixture: Any, points: Any) -> Any:
    """A mixture of scikit-learn after its few iterations, without the warning that they are few."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mixture.fit(points)


def points() -> tuple[Tensor, Tensor]:
    """Points of K clusters, ``[N, D]``, and responsibilities to start at, ``[N, K]``; float64."""
    generator = torch.Generator().manual_seed(0)
    data = clusters(N, D, K, generator)
    return data, gmm.initial_responsibilities(data, K, num_steps=2, generator=generator)


def gaussian_sweep(data: Tensor, responsibilities: Tensor) -> Callable[[], float]:
    """One sweep of the mixture as a plain model, joint blocks."""
    guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")], init={"component": responsibilities})
    cavi = CAVI(gmm.model, guide)
    return lambda: cavi.step(data, K)


def sklearn_iteration(data: Tensor) -> Callable[[], object]:
    """One iteration of scikit-learn's loop: E step, M step and lower bound, without the checks around them."""
    points = data.numpy()
    mixture = BayesianGaussianMixture(
        n_components=K,
        max_iter=1,
        tol=0.0,
        reg_covar=0.0,
        init_params="random_from_data",
        weight_concentration_prior_type="dirichlet_distribution",
        random_state=0,
    )
    fitted(mixture, points)

    def iterate() -> object:
        log_norm, log_responsibilities = mixture._e_step(points)
        mixture._m_step(points, log_responsibilities)
        return mixture._compute_lower_bound(log_responsibilities, log_norm)

    return iterate


def matrix_products(features: int) -> Callable[[], object]:
    """The two products that a sweep cannot do without: [K, F] [F, N] and [K, N] [N, F]."""
    left = torch.randn(K, features, dtype=torch.float64)
    middle = torch.randn(features, N, dtype=torch.float64)
    right = torch.randn(K, N, dtype=torch.float64)
    return lambda: (left @ middle, right @ middle.mT)


def peak_memory() -> float:
    """GB of a process of its own that fits the Gaussian mixture for three sweeps."""
    command = [sys.executable, "-m", "benchmarks.mixtures"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def gaussian(clock: Callable[[], float] = time.perf_counter) -> str:
    """The Gaussian mixture beside scikit-learn's, with arithmetic and memory counted."""
    memory = peak_memory()  # first: a process starts at the peak of the one that makes it
    data, responsibilities = points()
    features = D * (D + 1) // 2 + D + 1
    start = clock()
    sweep = gaussian_sweep(data, responsibilities)
    sweep()
    first = clock() - start
    runs = {"sweep": sweep, "sklearn": sklearn_iteration(data), "products": matrix_products(features)}
    seconds = interleaved(runs, ROUNDS, clock=clock)
    flops = 2 * 2 * N * K * features
    passes = 8 * (2 * N * features + 6 * N * K)
    rows = [
        ["`CAVI.step`, joint blocks", Spread.of(seconds["sweep"]).scaled(1e3)],
        ["`BayesianGaussianMixture`, one iteration", Spread.of(seconds["sklearn"]).scaled(1e3)],
        ["the sweep's two matrix products alone", Spread.of(seconds["products"]).scaled(1e3)],
    ]
    rate = flops / Spread.of(seconds["sweep"]).median / 1e9
    return (
        f"## Gaussian mixture, N = {N:,}, D = {D}, K = {K}, full covariances, float64\n\n"
        f"{markdown(['one sweep', 'milliseconds'], rows)}\n\n"
        f"scikit-learn takes {ratios(seconds['sklearn'], seconds['sweep']).scaled(1)} times as long. The target is at "
        f"least 2. The sweep takes {ratios(seconds['sweep'], seconds['products']).scaled(1)} times as long as its two "
        f"matrix products with {features} features: {flops / 1e9:.2f} GFLOP and at least {passes / 1e9:.2f} GB moved "
        "(the features twice, and six passes over N × K numbers: logit, maximum, exponential, sum, quotient, product), "
        f"{rate:.1f} GFLOP/s over the whole sweep. Peak memory of the process {memory:.2f} GB; the target is "
        f"below 2. The first step, which records the model and forms the features, took {first:.1f} s."
    )


def bernoulli_model(data: Tensor, num_components: int) -> None:
    """A mixture of products of Bernoullis."""
    one = data.new_tensor(1.0)
    weights = pyro.sample("weights", dist.Dirichlet(one.expand(num_components)))
    with pyro.plate("components", num_components):
        probs = pyro.sample("probs", dist.Beta(one, one).expand([data.shape[1]]).to_event(1))
    with pyro.plate("data", len(data)):
        component = pyro.sample("component", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("obs", dist.Bernoulli(Vindex(probs)[component, :]).to_event(1), obs=data)


def ppca_model(data: Tensor, num_factors: int) -> None:
    """Probabilistic PCA with a precision of the noise."""
    dim = data.shape[1]
    zero, one = data.new_zeros(()), data.new_ones(())
    precision = pyro.sample("precision", dist.Gamma(one, one))
    with pyro.plate("columns", dim, dim=-1):
        loadings = pyro.sample("loadings", dist.Normal(zero, one).expand([num_factors]).to_event(1))
    with pyro.plate("data", len(data), dim=-2):
        factors = pyro.sample("factors", dist.Normal(zero, one).expand([len(data), 1, num_factors]).to_event(1))
        with pyro.plate("columns_again", dim, dim=-1):
            pyro.sample("obs", dist.Normal((factors * loadings).sum(-1), precision.rsqrt()), obs=data)


def others() -> str:
    """A Bernoulli mixture and probabilistic PCA: the time of a sweep."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.rand(N, 64, generator=generator, dtype=torch.float64)
    levels = torch.rand(16, 64, generator=generator, dtype=torch.float64)
    bits = (bits < levels[torch.randint(16, (N,), generator=generator)]).double()
    bernoulli = CAVI(bernoulli_model, AutoConjugate(bernoulli_model))
    loadings = torch.randn(4, 20, generator=generator, dtype=torch.float64)
    columns = torch.randn(10_000, 4, generator=generator, dtype=torch.float64) @ loadings
    columns = columns + 0.5 * torch.randn(columns.shape, generator=generator, dtype=torch.float64)
    ppca = CAVI(ppca_model, AutoConjugate(ppca_model))
    runs = {"bernoulli": lambda: bernoulli.step(bits, 16), "ppca": lambda: ppca.step(columns, 4)}
    seconds = interleaved(runs, ROUNDS)
    rows = [
        [f"Bernoulli mixture, N = {N:,}, D = 64, K = 16", Spread.of(seconds["bernoulli"]).scaled(1e3)],
        ["probabilistic PCA, N = 10,000, D = 20, 4 factors", Spread.of(seconds["ppca"]).scaled(1e3)],
    ]
    return f"## Beside it\n\n{markdown(['one sweep', 'milliseconds'], rows)}"


def run() -> str:
    """Time all, and report."""
    return f"{gaussian()}\n\n{others()}"


if __name__ == "__main__":
    if sys.argv[1:] == ["cpu"]:
        torch.set_num_threads(1)
        print(gaussian(time.process_time))
        sys.exit()
    torch.set_num_threads(THREADS)
    sweep = gaussian_sweep(*points())
    for _ in range(3):
        sweep()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
