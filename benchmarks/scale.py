"""Scaling of ``CAVI(process_group=...)``: two processes over one, with twice the data and with the same.

``python -m benchmarks scale`` starts the processes, of one thread each.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import torch.distributed as td
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate

POINTS, DIMENSIONS, COMPONENTS = 100_000, 8, 16
SWEEPS, ROUNDS = 10, 3


def mixture(x: Tensor, size: int) -> None:
    """Normals with diagonal precisions; ``x`` is a shard of ``size`` points."""
    weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(COMPONENTS)))
    with pyro.plate("components", COMPONENTS):
        precision = pyro.sample("precision", dist.Gamma(x.new_ones(x.shape[1]), 1.0).to_event(1))
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(x.shape[1]), 10.0).to_event(1))
    with pyro.plate("data", size, subsample_size=len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mean[z], precision[z].rsqrt()).to_event(1), obs=x)


def work(rank: int, size: int, store: str, points: int) -> None:
    """Sweep on a shard of so many points; the first process prints the seconds of a sweep."""
    torch.set_num_threads(1)
    td.init_process_group("gloo", f"file://{store}", datetime.timedelta(seconds=120), size, rank)
    generator = torch.Generator().manual_seed(rank)
    centers = 6 * torch.randn(COMPONENTS, DIMENSIONS, generator=torch.Generator().manual_seed(99))
    own = torch.randint(COMPONENTS, (points,), generator=generator)
    x = centers[own] + torch.randn(points, DIMENSIONS, generator=generator)
    driver = CAVI(mixture, AutoConjugate(mixture, check=False), process_group=td.group.WORLD)
    arguments = (x, size * points)
    driver.step(*arguments)
    best = float("inf")
    for _ in range(ROUNDS):
        td.barrier()
        began = time.perf_counter()
        for _ in range(SWEEPS):
            driver.step(*arguments)
        best = min(best, (time.perf_counter() - began) / SWEEPS)
    if rank == 0:
        print(best)
    td.destroy_process_group()


def seconds(size: int, points: int) -> float:
    """The best time of a sweep with so many processes, and points for each."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.scale"]
        more = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stdout": subprocess.PIPE, "text": True}
        store = str(Path(folder) / "store")
        words = [[*command, str(rank), str(size), store, str(points)] for rank in range(size)]
        started = [subprocess.Popen(word, **more) for word in words]  # type: ignore[call-overload]
        printed = [process.communicate(timeout=600)[0] for process in started]
    return float(printed[0].split()[-1])


def run() -> str:
    """The table."""
    one, two, half = (min(seconds(*case) for _ in range(2)) for case in ((1, POINTS), (2, POINTS), (2, POINTS // 2)))
    exchanged = 8 * (COMPONENTS * (2 * DIMENSIONS + 3) + 2)
    return f"""## Weak and strong scaling

A mixture of {COMPONENTS} normals with diagonal precisions in {DIMENSIONS} dimensions, float32, processes of one thread
each; {exchanged:,} bytes are added up in a sweep.

| processes | points | a sweep | of the time of the first |
|---|---|---|---|
| 1 | {POINTS:,} | {one * 1e3:.0f} ms | 1 |
| 2 | {2 * POINTS:,} | {two * 1e3:.0f} ms | {two / one:.2f} |
| 2 | {POINTS:,} | {half * 1e3:.0f} ms | {half / one:.2f} |
"""


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
