"""A step of EM for a Gaussian mixture beside a sweep of its Bayesian one and an iteration of scikit-learn's EM.

``python -m benchmarks em``. All start at the same responsibilities; CPU seconds, one thread. The M-step's share is that
of the parameters' updates in a step of EM with Python. Those of few numbers are compiled in the first, warm rounds.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from pyro_latent import CAVI, EM, AutoConjugate
from pyro_latent.models import gmm

from .mixtures import clusters, fitted
from .timing import Spread, interleaved, markdown, ratios

#: Points, dimensions, components, and the rounds that are timed.
SIZES = ((10_000, 2, 10, 150), (100_000, 16, 32, 16))
#: Rounds of two steps before those.
WARM = 20


def sklearn_iteration(data: Tensor, components: int) -> Callable[[], object]:
    """One iteration of scikit-learn's loop: E step and M step, without the checks around them."""
    points = data.numpy()
    mixture = GaussianMixture(components, max_iter=1, init_params="random_from_data", random_state=0)
    fitted(mixture, points)

    def iterate() -> None:
        _, log_responsibilities = mixture._e_step(points)
        mixture._m_step(points, log_responsibilities)

    return iterate


class _Watch:
    """CPU seconds that M-steps take, and their number."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0

    def around(self, step: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: object) -> None:
            start = time.process_time()
            step(*args)
            self.seconds += time.process_time() - start
            self.steps += 1

        return timed


def run() -> str:
    """Time them, and report."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = [_row(*size) for size in SIZES]
    torch.set_num_threads(threads)
    head = ["N, D, K", "`EM.step`", "with Python", "of it the M-step", "`CAVI.step`", "scikit-learn"]
    head += ["EM / CAVI", "EM / scikit-learn"]
    return f"## EM of a Gaussian mixture\n\nMilliseconds of CPU, one thread.\n\n{markdown(head, rows)}"


def _row(count: int, dimensions: int, components: int, rounds: int) -> list[str]:
    data = clusters(count, dimensions, components, torch.Generator().manual_seed(0))
    make = functools.partial(EM, gmm.ml_model, init=gmm.ml_start(data, components))
    em, plain, watch = make(), make(jit_compile=False), _Watch()
    setattr(plain._em, "_joint_m_step", watch.around(plain._em._joint_m_step))  # noqa: B010
    start = gmm.initial_responsibilities(data, components)
    cavi = CAVI(gmm.model, AutoConjugate(gmm.model, init={"component": start}))
    iterate = sklearn_iteration(data, components)

    def step() -> float:
        return em.step(data, components)

    ways = {"em": step, "plain": lambda: plain.step(data, components), "cavi": lambda: cavi.step(data, components)}
    seconds = interleaved(ways, rounds, 2, WARM, time.process_time)
    beside = interleaved({"sklearn": iterate, "em": step}, rounds // 2, 2, 1, time.process_time)
    share = watch.seconds / watch.steps / Spread.of(seconds["plain"]).median
    return [
        f"{count:,}, {dimensions}, {components}",
        Spread.of(seconds["em"]).scaled(1e3),
        Spread.of(seconds["plain"]).scaled(1e3),
        f"{share:.0%}",
        Spread.of(seconds["cavi"]).scaled(1e3),
        Spread.of(beside["sklearn"]).scaled(1e3),
        ratios(seconds["em"], seconds["cavi"]).scaled(1),
        ratios(beside["em"], beside["sklearn"]).scaled(1),
    ]
