"""How time and memory grow with a model's size: the slope of log time in log size, which is 1 where it is linear.

Times are CPU seconds of this process; the first step includes recording, compiling and the start.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.ascent.progress import Progress
from pyro_latent.checkpoint import write_checkpoint
from pyro_latent.models import gmm

from .timing import markdown

SWEEPS = 3


@dataclass(frozen=True)
class Load:
    """A model that grows, its sizes, and a driver with its arguments at a size."""

    name: str
    sizes: Sequence[int]
    make: Callable[[int], tuple[CAVI, tuple[object, ...]]]


def points(count: int, dimensions: int, clusters: int) -> Tensor:
    """Points ``[count, dimensions]`` around well separated centers, float64."""
    generator = torch.Generator().manual_seed(0)
    centers = 4.0 * torch.randn(clusters, dimensions, generator=generator, dtype=torch.float64)
    labels = torch.randint(clusters, (count,), generator=generator)
    found = torch.randn(count, dimensions, generator=generator, dtype=torch.float64)
    for part, own in zip(found.split(2**14), labels.split(2**14), strict=True):  # in place: memory is measured
        part += centers[own]
    return found


def mixture(count: int, dimensions: int, clusters: int, restarts: int = 1) -> tuple[CAVI, tuple[object, ...]]:
    guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")], restarts=restarts)
    return CAVI(gmm.model, guide), (points(count, dimensions, clusters), clusters)


def separate_plates(count: int) -> tuple[CAVI, tuple[object, ...]]:
    """Groups in a plate of their own each, with a location in common."""
    x = points(count, 5, 3)

    def model() -> None:
        top = pyro.sample("top", dist.Normal(x.new_tensor(0.0), 10.0))
        for i in range(count):
            own = pyro.sample(f"own_{i}", dist.Normal(top, 1.0))
            with pyro.plate(f"rows_{i}", 5):
                pyro.sample(f"x_{i}", dist.Normal(own, 1.0), obs=x[i])

    return CAVI(model, AutoConjugate(model)), ()


def chain(length: int) -> tuple[CAVI, tuple[object, ...]]:
    """A hidden Markov model of two states."""
    x = points(length, 1, 2).squeeze(1)
    move = x.new_tensor([[0.9, 0.1], [0.2, 0.8]])

    def model() -> None:
        with pyro.plate("states", 2):
            mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 5.0))
        z = torch.tensor(0)
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z_{t}", dist.Categorical(move[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(mean[z], 1.0), obs=x[t])

    return CAVI(model, AutoConjugate(model)), ()


LOADS = [
    Load("points, D = 8, K = 8", (12_500, 25_000, 50_000, 100_000), lambda n: mixture(n, 8, 8)),
    Load("clusters, N = 20,000, D = 8", (20, 40, 80, 160), lambda k: mixture(20_000, 8, k)),
    Load("dimensions, N = 5,000, K = 8", (16, 32, 64, 128), lambda d: mixture(5_000, d, 8)),
    Load("starts, N = 1,000, D = 4, K = 4", (6, 12, 25, 50), lambda r: mixture(1_000, 4, 4, r)),
    Load("plates apart", (50, 100, 200, 400), separate_plates),
    Load("steps of a chain", (50, 100, 200, 400), chain),
]


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of a line through the last two points in logarithms: small sizes have costs of their own."""
    return math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2])


def measured(load: Load) -> list[list[str]]:
    first, sweep = [], []
    for size in load.sizes:
        driver, arguments = load.make(size)
        start = time.process_time()
        driver.step(*arguments)
        after = time.process_time()
        for _ in range(SWEEPS):
            driver.step(*arguments)
        first.append(after - start)
        sweep.append((time.process_time() - after) / SWEEPS)
    begun = [f - s for f, s in zip(first, sweep, strict=True)]
    rows = []
    for what, values in (("first step", first), ("sweep", sweep)):
        numbers = [f"{v:.3f}" for v in values]
        rows.append([load.name, what, *numbers, f"{slope(load.sizes, values):.2f}"])
    rows.append(
        [load.name, "sweeps that the start takes", *(f"{b / s:.1f}" for b, s in zip(begun, sweep, strict=True)), ""]
    )
    return rows


def large() -> str:
    """The seconds of the first step and of a sweep, N = 1,000,000, D = 8, K = 16, as a clock on the wall shows them."""
    driver, arguments = mixture(1_000_000, 8, 16)
    seconds = []
    for _ in range(1 + SWEEPS):
        start = time.perf_counter()
        driver.step(*arguments)
        seconds.append(time.perf_counter() - start)
    return f"{seconds[0]:.2f} s, and {sum(seconds[1:]) / SWEEPS:.2f} s for a sweep"


def writes() -> list[str]:
    """Milliseconds of a checkpoint's write after so many steps of a run."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for steps in (1_000, 10_000, 100_000, 1_000_000):
            progress = Progress()
            for _ in range(steps):
                progress.add([0.0])
            start = time.perf_counter()
            write_checkpoint(Path(folder) / "run.pt", "load", progress.to_state())
            found.append(f"{1e3 * (time.perf_counter() - start):.1f}")
    return found


def peak_memory(count: int, dimensions: int, clusters: int) -> float:
    """The peak memory of two steps on a mixture, above that of a process that has its data alone, in GB."""
    program = (
        "import resource, torch\n"
        "from benchmarks.load import mixture\n"
        f"driver, arguments = mixture({count}, {dimensions}, {clusters})\n"
        "for _ in range({steps}): driver.step(*arguments)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)\n"
    )
    peaks = []
    for steps in (0, 2):
        command = [sys.executable, "-c", program.replace("{steps}", str(steps))]
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]))
    return peaks[1] - peaks[0]


def run() -> str:
    memory = [  # first: a process starts at the peak of the one that makes it
        f"{peak_memory(*shape):.2f} GB at N = {shape[0]:,}, D = {shape[1]}, K = {shape[2]}"
        for shape in ((1_000_000, 8, 16), (20_000, 128, 8))
    ]
    driver, arguments = mixture(500, 2, 2)  # torch imports what the first use of a Wishart needs
    driver.step(*arguments)
    rows = [row for load in LOADS for row in measured(load)]
    sizes = "; ".join(f"{load.name}: {', '.join(f'{n:,}' for n in load.sizes)}" for load in LOADS)
    return "\n\n".join(
        [
            "## Load",
            f"CPU seconds at four sizes ({sizes}), and the slope between the last two.",
            markdown(["what grows", "of what", "1", "2", "3", "4", "slope"], rows),
            f"First step on a full mixture of a million points: {large()}; {torch.get_num_threads()} threads.",
            f"A checkpoint's write after 10³, 10⁴, 10⁵ and 10⁶ steps: {', '.join(writes())} ms.",
            f"Peak memory of a full Gaussian mixture above its data: {'; '.join(memory)}.",
        ]
    )


if __name__ == "__main__":
    print(run())
