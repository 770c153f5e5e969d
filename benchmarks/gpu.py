"""What a GPU is for: the tests of it, and the time of a sweep, a pass, a race and a step on it, beside the CPU's.

``make gpu`` runs all parts, ``make gpu PART=mixture`` one, each in about two minutes, with the Python that is named by
``GPU_PYTHON``. They are sections of ``benchmarks/results/<date>-<card>.md``: each is written when it is done, and takes
the place of the one that was there. ``--device cpu --tiny`` runs the same on small data without a card.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from pyro_latent import CAVI, AutoConjugate, settings
from pyro_latent.models import gmm
from pyro_latent.models.lda import LDA, Corpus, as_corpus

from . import vae
from .timing import Spread, interleaved, markdown

ROOT = Path(__file__).resolve().parent.parent
#: Bytes of features that a sweep keeps rather than computes anew: those of ten million points in 16 dimensions.
MEMORY_LIMIT = 2**38
SWEEPS = 5
#: Operations that compute nothing.
NO_KERNELS = """_reshape_alias _unsafe_view alias as_strided as_strided_ broadcast_tensors detach empty empty_strided
flatten lift_fresh real resize_ resolve_conj resolve_neg result_type set_ to view"""


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        points: the numbers of points of the mixture; the CPU has the first.
        dim, components: its dimensions and components.
        copied: bytes that are copied to measure the bandwidth.
        documents, words, topics, length: of the corpus, and the tokens of a document.
        passes: of LDA, between two times.
        steps: of each method of a race.
        races: the models that are raced on.
    """

    points: tuple[int, ...] = (10**6, 10**7)
    dim: int = 16
    components: int = 32
    copied: int = 2**31
    documents: int = 20_000
    words: int = 5_000
    topics: int = 50
    length: int = 150
    passes: int = 10
    steps: int = 150
    races: tuple[str, ...] = ("normal-gamma", "mixture", "lda", "vae")


TINY = Scale((300,), 2, 3, 2**16, 20, 30, 3, 15, 2, 2, ("normal-gamma",))


class Bench:
    """A device, and how large everything is on it."""

    def __init__(self, device: str, scale: Scale) -> None:
        self.device, self.scale = torch.device(device), scale
        self.has_failed = False  # whether a test has

    @property
    def card(self) -> str:
        """The name of the device."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    @property
    def devices(self) -> list[torch.device]:
        """The CPU, and the device where it is another."""
        return list(dict.fromkeys([torch.device("cpu"), self.device]))

    def clock(self) -> float:
        """Seconds, with the work that waits on the device done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


# --------------------------------------------------------------------------------------------------------------- tests


def tests(bench: Bench) -> str:
    """The tests that are marked ``gpu``."""
    files = sorted(p for p in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in p.read_text(encoding="utf-8"))
    options = ["-q", "-m", "gpu", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *(str(p.relative_to(ROOT)) for p in files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    bad = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    bench.has_failed = done.returncode != 0
    return "\n".join([*(f"- {line}" for line in bad), *([""] if bad else []), lines[-1]])


# ------------------------------------------------------------------------------------------------------------- mixture


def mixture(bench: Bench) -> str:
    """A sweep of the Gaussian mixture with full covariances, and the bytes that it moves."""
    limit, settings.memory_limit = settings.memory_limit, MEMORY_LIMIT
    try:
        rows = [
            timed_sweep(bench, device, dtype, count)
            for dtype in (torch.float32, torch.float64)
            for device in bench.devices
            for count in (bench.scale.points if device == bench.device else bench.scale.points[:1])
        ]
    finally:
        settings.memory_limit = limit
    heading = [
        "N",
        "dtype",
        "device",
        "first sweep, seconds",
        "a sweep, milliseconds",
        "GB/s",
        "of a copy's",
        "launches",
    ]
    return (
        f"D = {bench.scale.dim}, K = {bench.scale.components}, joint blocks.\n\n{markdown(heading, rows)}\n\nBytes are "
        "those that a sweep cannot do without: the features of the data twice, and six passes over N × K numbers. The "
        "copy is one of the device's memory to itself. A sweep is the median, with the quartiles in brackets. Launches "
        "are the kernels of a sweep; on the CPU, the operations that are no views."
    )


def timed_sweep(bench: Bench, device: torch.device, dtype: torch.dtype, count: int) -> list[str]:
    """A row: the first sweep, which records the model and forms the features, and those after it."""
    dim, components = bench.scale.dim, bench.scale.components
    data, start = points(count, dim, components, device, dtype)
    guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")], init={"component": start})
    cavi = CAVI(gmm.model, guide)
    times = [bench.clock()]
    cavi.run(data, components, max_steps=1 + SWEEPS, tol=0, callback=lambda step, elbo: times.append(bench.clock()))
    first, *sweeps = [after - before for before, after in pairwise(times)]
    features = dim * (dim + 1) // 2 + dim + 1
    rate = dtype.itemsize * count * (2 * features + 6 * components) / Spread.of(sweeps).median
    share = rate / bandwidth(bench, device)
    name = bench.card if device == bench.device else device.type
    spread, dtype_name = Spread.of(sweeps).scaled(1e3), str(dtype).split(".")[1]
    speed = [f"{rate / 1e9:,.0f}", f"{share:.2f}", f"{launches_of_a_sweep(cavi, data, components):.0f}"]
    return [f"{count:,}", dtype_name, name, f"{first:.2f}", spread, *speed]


def launches_of_a_sweep(cavi: CAVI, *arguments: Any) -> float:
    """The launches of a run of three sweeps more than of one of one, by sweep."""
    one, three = (launches(partial(cavi.run, *arguments, max_steps=n, tol=0)) for n in (1, 3))
    return (three - one) / 2


def launches(work: Callable[[], Any]) -> int:
    """The kernels that a piece of work launches on a card; without one, as a proxy, the operations of torch that are
    made of no others, and are no views.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as found:
        work()
    kernels = [event for event in found.events() if event.device_type == DeviceType.CUDA]
    leaves = [event for event in found.events() if event.name.startswith("aten::") and not event.cpu_children]
    return len(kernels) or sum(event.name.removeprefix("aten::") not in NO_KERNELS.split() for event in leaves)


def points(count: int, dim: int, components: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Points of well mixed clusters ``[N, D]``, and responsibilities near their labels ``[N, K]``, on the device."""
    generator = torch.Generator(device).manual_seed(0)
    place: Any = {"generator": generator, "device": device, "dtype": dtype}
    centers = 3.0 * torch.randn(components, dim, **place)
    labels = torch.randint(components, (count,), generator=generator, device=device)
    start = torch.full((count, components), 0.2 / components, device=device, dtype=dtype)
    start.scatter_add_(1, labels.unsqueeze(1), torch.full((count, 1), 0.8, device=device, dtype=dtype))
    return torch.randn(count, dim, **place).add_(centers[labels]), start


def bandwidth(bench: Bench, device: torch.device) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.ones(bench.scale.copied // 8, dtype=torch.float64, device=device)
    target = torch.empty_like(source)
    seconds = interleaved({"copy": lambda: target.copy_(source)}, 5, clock=bench.clock)["copy"]
    return 2 * source.numel() * 8 / Spread.of(seconds).median


# ----------------------------------------------------------------------------------------------------------------- LDA


def lda(bench: Bench) -> str:
    """A pass of variational Bayes over a corpus."""
    corpus, rows = documents(bench.scale, bench.device), []
    tokens = float(corpus.count.sum())
    for device in bench.devices:
        seconds = [timed_passes(bench, corpus, device, passes) for passes in (1, 1, 1 + bench.scale.passes)]
        each = (seconds[2] - seconds[1]) / bench.scale.passes
        name = bench.card if device == bench.device else device.type
        rows.append([name, f"{each * 1e3:,.1f}", f"{tokens / each:,.0f}"])
    scale = bench.scale
    return (
        f"{scale.documents:,} documents of {scale.length} tokens, {scale.words:,} words, K = {scale.topics}, float64, "
        f"`LDA` from a random start.\n\n{markdown(['device', 'a pass, milliseconds', 'tokens a second'], rows)}"
    )


def documents(scale: Scale, device: torch.device) -> Corpus:
    """A draw from the model, θ ~ Dir(0.1) and β ~ Dir(0.05)."""
    torch.manual_seed(0)
    options: Any = {"dtype": torch.float64, "device": device}
    topics = torch.distributions.Dirichlet(torch.full((scale.words,), 0.05, **options)).sample((scale.topics,))
    shares = torch.distributions.Dirichlet(torch.full((scale.topics,), 0.1, **options)).sample((scale.documents,))
    drawn = [
        torch.zeros_like(probs).scatter_add_(
            1, probs.multinomial(scale.length, replacement=True), torch.ones(len(probs), scale.length, **options)
        )
        for probs in (part @ topics for part in shares.split(1000))
    ]
    return as_corpus(torch.cat(drawn))


def timed_passes(bench: Bench, corpus: Corpus, device: torch.device, passes: int) -> float:
    """Seconds of a fit of so many passes."""
    model = LDA(bench.scale.topics, max_iter=passes, evaluate_every=0, random_state=0, device=device)
    start = bench.clock()
    model.fit(corpus)
    return bench.clock() - start


# ------------------------------------------------------------------------------------------------------------ the race


def race(bench: Bench) -> str:
    """Coordinate ascent and SVI on the models of the documents, all on the device."""
    from examples.race import RACES

    made = []
    for name in bench.scale.races:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        try:
            found = RACES[name](bench.scale.steps, str(bench.device))
        except ImportError as error:
            made.append(f"### {name}\n\nLeft out: it needs {error.name}, which is not installed here.")
            continue
        heading, *rows = found.rows()
        made.append(f"### {name}\n\n{markdown(heading, rows)}")
    note = (
        f"At most {bench.scale.steps} steps of each method, on {bench.card}; seconds are inside `step` alone, the gap "
        "is in nats below the best bound. SVI goes by `TraceEnum_ELBO` where discrete sites are summed out by Pyro, "
        "else by `Trace_ELBO`."
    )
    return "\n\n".join([note, *made])


# ----------------------------------------------------------------------------------------------------------------- VAE


def autoencoder(bench: Bench) -> str:
    """A step of a VAE of MNIST's size, beside the same step in plain PyTorch."""
    pyro.clear_param_store()
    rounds = (vae.ROUNDS, vae.REPEAT) if bench.scale != TINY else (1, 1)
    images = vae.grey_images().to(bench.device)
    with pyro.validation_enabled(False):
        tables = {fused: vae.table(images, fused, bench.clock, *rounds) for fused in (False, True)}
    pyro.clear_param_store()
    return (
        f"{vae.PIXELS}-{vae.HIDDEN}-{vae.LATENT}, batch {vae.BATCH}, float32, on {bench.card}.\n\ntorch's default "
        f"Adam:\n\n{tables[False][0]}\n\nfused Adam, which `fit` takes by default:\n\n{tables[True][0]}\n\n`fit` takes "
        f"{tables[True][1].scaled(1)} times as long as plain PyTorch with the fused one."
    )


PARTS: dict[str, Callable[[Bench], str]] = {
    "tests": tests,
    "mixture": mixture,
    "lda": lda,
    "vae": autoencoder,
    "race": race,
}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the parts; returns the file that they are written to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Run the GPU tests and benchmarks.")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--tiny", action="store_true", help="on small data, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"Expected a CUDA device; got none: torch {torch.__version__} of {sys.executable} sees no card. Name a "
            "Python whose torch does: make gpu GPU_PYTHON=/path/to/python"
        )
    bench = Bench(options.device, TINY if options.tiny else Scale())
    today = datetime.date.today().isoformat()
    path = options.out / f"{today}-{re.sub('[^a-z0-9]+', '-', bench.card.lower())}.md"
    heading = (
        f"# GPU, {today}\n\n{bench.card}; CPU ({platform.machine()}), {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}, torch {torch.__version__}, Pyro {pyro.__version__}."
    )
    for name in options.parts or PARTS:
        start = bench.clock()
        found = f"{PARTS[name](bench)}\n\n({bench.clock() - start:.0f} s in all)"
        print(f"## {name}\n\n{found}\n", flush=True)
        write_section(path, heading, name, found)
    print(f"Wrote {path}.")
    if bench.has_failed:
        raise SystemExit("Expected the tests to pass; got those above.")
    return path


def write_section(path: Path, heading: str, name: str, body: str) -> None:
    """Put a section into the file, in the place of one of that name, below a heading of now."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    _, *kept = re.split(r"^## ", text, flags=re.MULTILINE)
    sections = dict(part.rstrip().split("\n\n", 1) for part in kept) | {name: body}
    ordered = [f"## {n}\n\n{sections[n]}" for n in PARTS if n in sections]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join([heading, *ordered]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
