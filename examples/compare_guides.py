"""One Pyro model, fitted by exact coordinate ascent and by stochastic gradients, side by side.

The model is the Gaussian mixture ``pyro_latent.models.gmm.model`` with K full covariances, unchanged for every method:

- CAVI, joint blocks: ``CAVI`` with q(weights) q(mean, precision), updates derived from the model;
- CAVI, mean field: ``CAVI`` with q(weights) q(mean) q(precision);
- SVI, hand-written guide: ``SVI`` and Adam with ``gmm.guide``, the same family as the joint blocks;
- SVI, AutoNormal: ``SVI`` and Adam with Pyro's automatic guide, a Normal in the unconstrained space.

Each SVI runs over a grid of learning rates, each falling to a tenth of itself over the run, with ``TraceEnum_ELBO``,
which sums the components out, and ten particles a step, which cost hardly more than one here. Fair play:

- all methods start at the same k-means clusters, found before the clocks start;
- each method first makes an untimed throwaway run of a few steps, so that imports and first calls cost nobody;
- then a clock runs during ``step`` only, from the first one, which records the model or sets up the guide; scores are
  taken outside it;
- one estimator scores every q: TraceEnum_ELBO with 1,000 particles from the same seed.

Run it with ``make demo``, or ``python examples/compare_guides.py --help``. It prints tables and writes
``comparison.nc`` (for ArviZ) and ``comparison.png``.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.patheffects import withStroke
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform
from torch.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.arviz import to_arviz
from pyro_latent.criticism.pictures import STYLE
from pyro_latent.distributions import NormalWishart
from pyro_latent.models import gmm

LEARNING_RATES = (0.003, 0.01, 0.03, 0.1)
DECAY = 0.1
SVI_PARTICLES = 10
JOINT = ("mean", "precision")
PARAMETERS = ("weights", "mean", "precision")
DATA = Path(__file__).parent / "data" / "old_faithful.csv"

Guide = Callable[..., Any]


@dataclass(frozen=True)
class Task:
    """What every method is given.

    Attributes:
        data: the points, ``[N, D]``.
        num_components: K.
        clusters: one-hot responsibilities that every method starts at, ``[N, K]``.
        seed: of every random draw.
        particles: particles of a score, in batches of ``batch``.
        columns: the names of the data's columns.
    """

    data: Tensor
    num_components: int
    clusters: Tensor
    seed: int
    particles: int = 1000
    batch: int = 100
    columns: Sequence[str] = ()

    @property
    def arguments(self) -> tuple[Tensor, int]:
        return self.data, self.num_components


@dataclass(frozen=True)
class Fit:
    """What one method reached, and how.

    Attributes:
        method: its name.
        learning_rate: of Adam at the start; None for coordinate ascent.
        seconds, elbos: the clock and the score at each checkpoint.
        steps: the number of steps.
        exact: the exact ELBO with q(component) a factor, where the family of q has one.
        score, error: the last score and its standard error.
        draws: by parameter, draws from q, ``[draws] + shape``.
        guide: an AutoConjugate, for coordinate ascent.
    """

    method: str
    learning_rate: float | None
    seconds: list[float]
    elbos: list[float]
    steps: int
    exact: float | None
    score: float
    error: float
    draws: dict[str, Tensor] = field(repr=False)
    guide: AutoConjugate | None = None

    @property
    def label(self) -> str:
        return self.method if self.learning_rate is None else f"{self.method}, rate {self.learning_rate:g}"

    def seconds_within(self, gap: float, best: float) -> float:
        """The clock at the first checkpoint whose score is within ``gap`` of ``best``; infinite if there is none."""
        reached = (s for s, e in zip(self.seconds, self.elbos, strict=True) if e >= best - gap)
        return next(reached, math.inf)


# ------------------------------------------------------------------------------------------------------------ fitting


def make_task(data: Tensor, num_components: int, seed: int, **options: Any) -> Task:
    """The task of fitting ``num_components`` to the data, with clusters to start at."""
    pyro.set_rng_seed(seed)
    return Task(data, num_components, gmm.initial_responsibilities(data, num_components), seed, **options)


@contextmanager
def common_draws(task: Task) -> Iterator[None]:
    """The same random draws each time, and the global random state as before."""
    with torch.random.fork_rng():
        torch.manual_seed(task.seed)
        yield


def score(task: Task, guide: Guide) -> tuple[float, float]:
    """Pyro's own estimate of the ELBO of a guide, in nats, with its standard error."""
    elbo = TraceEnum_ELBO(num_particles=task.batch, vectorize_particles=True, max_plate_nesting=1)
    with common_draws(task), torch.no_grad():
        values = [-elbo.loss(gmm.model, guide, *task.arguments) for _ in range(task.particles // task.batch)]
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def draw(task: Task, guide: Guide, count: int = 4000) -> dict[str, Tensor]:
    """Draws of the parameters from a guide, ``[count] + shape``."""
    with common_draws(task), torch.no_grad(), pyro.plate("draws", count, dim=-2):
        trace: Any = poutine.trace(poutine.block(guide, hide=["component"])).get_trace(*task.arguments)
    shapes = {"weights": (), "mean": (task.num_components,), "precision": (task.num_components,)}
    values = {name: trace.nodes[name]["value"] for name in PARAMETERS}
    return {n: v.reshape(count, *shapes[n], *trace.nodes[n]["fn"].event_shape).cpu() for n, v in values.items()}


class Stopwatch:
    """Seconds spent inside ``with watch:``; waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device
        self._start = 0.0

    def __enter__(self) -> None:
        self._wait()
        self._start = time.perf_counter()

    def __exit__(self, *args: object) -> None:
        self._wait()
        self.seconds += time.perf_counter() - self._start

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def checkpoints(max_steps: int) -> set[int]:
    """Steps at which to score: each a third more than the one before, and the last."""
    steps, step = {max_steps}, 1.0
    while step < max_steps:
        steps.add(math.ceil(step))
        step *= 4 / 3
    return steps


def climb(
    task: Task, step: Callable[..., float], guide: Guide, max_steps: int, tol: float
) -> tuple[list[float], list[float], int]:
    """Call ``step`` of an ``SVI`` or a ``CAVI``: the clock and the score at the checkpoints, and the number of steps.

    It stops early once the loss falls by no more than ``tol``, relative to its size.
    """
    watch, at = Stopwatch(task.data.device), checkpoints(max_steps)
    seconds: list[float] = []
    elbos: list[float] = []
    before = math.inf
    for number in range(1, max_steps + 1):
        with watch:
            loss = step(*task.arguments)
        settled = before - loss <= tol * abs(loss)
        if number in at or settled:
            seconds.append(watch.seconds)
            elbos.append(score(task, guide)[0])
        if settled:
            return seconds, elbos, number
        before = loss
    return seconds, elbos, max_steps


def fit_cavi(task: Task, method: str, blocks: Sequence[Sequence[str]] | None, max_steps: int = 200) -> Fit:
    """Coordinate ascent to convergence."""

    def start() -> tuple[CAVI, AutoConjugate]:
        guide = AutoConjugate(gmm.model, blocks=blocks, init={"component": task.clusters})
        return CAVI(gmm.model, guide), guide

    warm, _ = start()
    for _ in range(3):
        warm.step(*task.arguments)
    cavi, guide = start()
    seconds, elbos, steps = climb(task, cavi.step, guide, max_steps, tol=1e-9)
    return Fit(
        method, None, seconds, elbos, steps, guide.elbo(*task.arguments), *score(task, guide), draw(task, guide), guide
    )


def fit_svi(task: Task, method: str, make_guide: Callable[[Task], Guide], learning_rate: float, max_steps: int) -> Fit:
    """Stochastic gradient steps by Adam, the learning rate falling to ``DECAY`` of itself."""

    def start() -> tuple[SVI, Guide]:
        pyro.clear_param_store()
        pyro.set_rng_seed(task.seed)
        guide = make_guide(task)
        decay = DECAY ** (1 / max_steps)
        adam = pyro.optim.ClippedAdam({"lr": learning_rate, "lrd": decay, "clip_norm": math.inf})
        elbo = TraceEnum_ELBO(num_particles=SVI_PARTICLES, vectorize_particles=True, max_plate_nesting=1)
        return SVI(gmm.model, guide, adam, elbo), guide

    warm, _ = start()
    for _ in range(3):
        warm.step(*task.arguments)
    svi, guide = start()
    seconds, elbos, steps = climb(task, svi.step, guide, max_steps, tol=-math.inf)
    exact = exact_elbo(task) if guide is gmm.guide else None
    fit = Fit(method, learning_rate, seconds, elbos, steps, exact, *score(task, guide), draw(task, guide))
    pyro.clear_param_store()
    return fit


def hand_written(task: Task) -> Guide:
    """The mixture's own guide, its parameters made from the clusters."""
    gmm.guide(*task.arguments)
    return gmm.guide


def auto_normal(task: Task) -> Guide:
    """Pyro's AutoNormal, at the means of the posterior given the clusters."""
    q = {"component": dist.Categorical(task.clusters)}
    block: Any = gmm.update_mean_precision(q, *task.arguments)
    start = {
        "weights": gmm.update_weights(q, *task.arguments).mean,
        "mean": block.loc,
        "precision": block.df[:, None, None] * block.covariance_matrix,
    }
    return AutoNormal(poutine.block(gmm.model, hide=["component"]), init_loc_fn=init_to_value(values=start))


class PositiveDefiniteBijection(Transform):
    """Vectors ``[D (D + 1) / 2]`` to positive definite matrices ``L Lᵀ``: the entries of L, logs on its diagonal.

    torch and Pyro have no bijection onto a Wishart's support, and AutoNormal needs one.
    """

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        entries = vec_to_tril_matrix(x)
        factor = entries.tril(-1) + torch.diag_embed(entries.diagonal(dim1=-2, dim2=-1).exp())
        return factor @ factor.transpose(-1, -2)

    def _inverse(self, y: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(y)
        return tril_matrix_to_vec(factor.tril(-1) + torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1).log()))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        logs = vec_to_tril_matrix(x).diagonal(dim1=-2, dim2=-1)
        dim = logs.shape[-1]
        powers = torch.arange(dim + 1, 1, -1, dtype=x.dtype, device=x.device)
        return dim * math.log(2) + (powers * logs).sum(-1)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        dim = (math.isqrt(8 * shape[-1] + 1) - 1) // 2
        return torch.Size((*shape[:-1], dim, dim))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


@biject_to.register(constraints.positive_definite)
def _(constraint: Any) -> Transform:
    return PositiveDefiniteBijection()


def exact_elbo(task: Task) -> float:
    """The exact ELBO of the hand-written guide at its current parameters, by way of the same q as an AutoConjugate."""
    store = {name: value.detach() for name, value in pyro.get_param_store().items()}
    tril = store["precision_scale_tril"]
    block = NormalWishart(
        store["mean_loc"], store["mean_precision_scaling"], store["precision_df"], tril @ tril.transpose(-1, -2)
    )
    init = {"weights": dist.Dirichlet(store["weight_concentration"]), JOINT: block}
    return AutoConjugate(gmm.model, blocks=[JOINT], init=init).elbo(*task.arguments)


METHODS: dict[str, Callable[[Task], Guide]] = {
    "SVI, hand-written guide": hand_written,
    "SVI, AutoNormal": auto_normal,
}


def fit_all(task: Task, max_steps: int, report: Callable[[str], None]) -> list[Fit]:
    """Every method, and SVI at every learning rate, with components in the order of the first fit's."""
    report("CAVI")
    fits = [fit_cavi(task, "CAVI, joint blocks", [JOINT]), fit_cavi(task, "CAVI, mean field", None)]
    for method, make_guide in METHODS.items():
        for rate in LEARNING_RATES:
            report(f"{method}, rate {rate:g}")
            fits.append(fit_svi(task, method, make_guide, rate, max_steps))
    first = fits[0].draws
    return [replace(fit, draws=aligned(fit.draws, first, task.data.std(0).cpu())) for fit in fits]


def aligned(draws: dict[str, Tensor], like: dict[str, Tensor], unit: Tensor) -> dict[str, Tensor]:
    """Draws with their components permuted so that the means are closest to those of ``like``, in units of ``unit``."""
    here, there = draws["mean"].mean(0) / unit, like["mean"].mean(0) / unit
    _, order = linear_sum_assignment(torch.cdist(there, here).square().numpy())
    return {name: value[:, torch.as_tensor(order)] for name, value in draws.items()}


def best_by_method(fits: Sequence[Fit]) -> list[Fit]:
    """Of each method the fit with the highest score."""
    best: dict[str, Fit] = {}
    for fit in fits:
        if fit.method not in best or fit.score > best[fit.method].score:
            best[fit.method] = fit
    return list(best.values())


# ---------------------------------------------------------------------------------------------------------- reporting


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right, with a line under the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def fits_table(fits: Sequence[Fit]) -> str:
    """One row for each fit."""
    best = max(fit.score for fit in fits)
    rows = [["method", "rate", "steps", "seconds", "to 1 nat (s)", "exact ELBO", "scored ELBO"]]
    for fit in fits:
        within = fit.seconds_within(1.0, best)
        rows.append(
            [
                fit.method,
                "" if fit.learning_rate is None else f"{fit.learning_rate:g}",
                f"{fit.steps:,}",
                f"{fit.seconds[-1]:.3f}",
                "never" if math.isinf(within) else f"{within:.3f}",
                "unknown" if fit.exact is None else f"{fit.exact:.3f}",
                f"{fit.score:.3f} ± {fit.error:.3f}",
            ]
        )
    return table(rows)


def parameters_table(fits: Sequence[Fit]) -> str:
    """Posterior mean ± standard deviation of each parameter, one column for each fit."""
    rows = [["parameter", *(fit.label for fit in fits)]]
    for name in PARAMETERS:
        shape = fits[0].draws[name].shape[1:]
        for index in np.ndindex(*shape):
            if name == "precision" and index[1] > index[2]:
                continue  # symmetric
            values = [fit.draws[name][(slice(None), *index)] for fit in fits]
            cells = [f"{v.mean():.4g} ± {v.std():.2g}" for v in values]
            rows.append([f"{name}[{', '.join(map(str, index))}]", *cells])
    return table(rows)


def save_arviz(task: Task, fits: Sequence[Fit], path: Path) -> None:
    """Write the first fit as ArviZ data, with a group ``posterior_<method>`` for each of the others."""
    guide = fits[0].guide
    assert guide is not None
    labels = {"column": list(task.columns), "other_column": list(task.columns)}
    dims = {
        "weights": ["components"],
        "mean": ["components", "column"],
        "precision": ["components", "column", "other_column"],
        "obs": ["data", "column"],
    }
    idata = to_arviz(gmm.model, guide, *task.arguments, seed=task.seed, coords=labels, dims=dims)
    path.unlink(missing_ok=True)
    idata.to_netcdf(str(path))
    for fit in fits[1:]:
        arrays = {name: (("chain", "draw", *dims[name]), value[None].numpy()) for name, value in fit.draws.items()}
        attributes = {"method": fit.label, "elbo_estimate": fit.score, "elbo_estimate_error": fit.error}
        group = "posterior_" + re.sub(r"\W+", "_", fit.method.lower())
        xarray.Dataset(arrays, labels, attributes).to_netcdf(path, mode="a", group=group, engine="h5netcdf")


# ----------------------------------------------------------------------------------------------------------- pictures

# Okabe and Ito's palette, which colour-blind readers tell apart; the lightness differs too.
COLOURS = {
    "CAVI, joint blocks": "#0072B2",
    "CAVI, mean field": "#56B4E9",
    "SVI, hand-written guide": "#D55E00",
    "SVI, AutoNormal": "#009E73",
}
AXES = {"eruptions": "duration of the eruption (min)", "waiting": "time to the next one (min)"}
HALO = [withStroke(linewidth=2, foreground="white")]


def draw_picture(task: Task, fits: Sequence[Fit], path: Path) -> None:
    """Left the data with ellipses of two fits, right the gap of every fit to the best score against its clock."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.4])
        svi = max((f for f in fits if f.learning_rate is not None), key=lambda f: f.score)
        draw_data(left, task, [fits[0], svi])
        draw_gaps(right, fits)
        figure.savefig(path, dpi=200)


def draw_data(axes: Axes, task: Task, fits: Sequence[Fit]) -> None:
    """The first two columns, with the ellipse of two standard deviations of each component."""
    points = task.data.cpu().numpy()
    axes.scatter(points[:, 0], points[:, 1], s=5, color="0.75", linewidths=0)
    handles = []
    for fit, style, width in zip(fits, ["-", (0, (2, 2))], [2.2, 1.1], strict=True):
        look: Any = {"color": COLOURS[fit.method], "linestyle": style, "linewidth": width}
        for ellipse in ellipses(fit):
            axes.add_patch(ellipse)
            ellipse.set(fill=False, **look)
        handles.append(Line2D([], [], label=fit.method, **look))
    names = [AXES.get(name, name) for name in task.columns]
    axes.set(xlabel=names[0], ylabel=names[1], title="Fitted components (two s.d.)")
    axes.legend(handles=handles, loc="upper left", handlelength=1.6, borderaxespad=0, fontsize=7)


def ellipses(fit: Fit) -> Iterator[Ellipse]:
    """By component, two standard deviations of the normal at the posterior means, in the first two columns."""
    for mean, precision in zip(fit.draws["mean"].mean(0), fit.draws["precision"].mean(0), strict=True):
        values, vectors = np.linalg.eigh(np.linalg.inv(precision.numpy())[:2, :2])
        width, height = 4 * np.sqrt(values)
        angle = math.degrees(math.atan2(vectors[1, 0], vectors[0, 0]))
        yield Ellipse((float(mean[0]), float(mean[1])), width, height, angle=angle)


def draw_gaps(axes: Axes, fits: Sequence[Fit]) -> None:
    """Gaps to the best score, cut off at its Monte Carlo error; the best rate of each method bold."""
    best = max(fits, key=lambda f: f.score)
    floor = 2 * best.error
    chosen = best_by_method(fits)
    for fit in fits:
        gaps = np.maximum(best.score - np.array(fit.elbos), floor)
        bold = any(fit is other for other in chosen)
        width, level = (1.6, 3) if bold else (0.5, 2)
        axes.plot(fit.seconds, gaps, color=COLOURS[fit.method], linewidth=width, zorder=level)
        if bold:
            axes.plot(fit.seconds[-1], gaps[-1], "o", color=COLOURS[fit.method], markersize=4, zorder=4)
    ends = [(f.seconds[-1], max(best.score - f.elbos[-1], 1.15 * floor), f.method) for f in chosen]
    for (x, _, method), y in zip(ends, spread([y for _, y, _ in ends], 2.2), strict=True):
        axes.annotate(
            method, (x, y), (6, 0), textcoords="offset points", va="center", color=COLOURS[method], path_effects=HALO
        )
    axes.axhline(1.0, color="0.5", linewidth=0.6, linestyle=(0, (4, 3)), zorder=1)
    axes.axhspan(floor / 2, floor, color="0.93", linewidth=0, zorder=0)
    beside: Any = {"transform": axes.get_yaxis_transform(), "va": "center", "color": "0.4", "fontsize": 7}
    axes.text(1.01, 1.0, "1 nat", **beside)
    axes.text(1.01, floor / math.sqrt(2), "Monte Carlo error", **beside)
    axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="nats below the best ELBO")
    axes.set_ylim(bottom=floor / 2)
    axes.set_title("Gap to the best ELBO (thin: other learning rates)")


def spread(values: Sequence[float], factor: float) -> list[float]:
    """Positive numbers moved up until each is at least ``factor`` times the next smaller one, in their own order."""
    placed: dict[int, float] = {}
    last = 0.0
    for i in sorted(range(len(values)), key=values.__getitem__):
        last = placed[i] = max(values[i], factor * last)
    return [placed[i] for i in range(len(values))]


# --------------------------------------------------------------------------------------------------------------- main


def read_csv(path: Path) -> tuple[list[str], Tensor]:
    """The heading and the numbers of a CSV file, float64.

    Raises:
        SystemExit: if it has no heading, or a cell that is no number.
    """
    with path.open(encoding="utf-8", newline="") as file:
        heading, *rows = csv.reader(file)
    try:
        return heading, torch.tensor([[float(cell) for cell in row] for row in rows], dtype=torch.float64)
    except ValueError as error:
        raise SystemExit(f"Expected a line of names and then lines of numbers in {path}; got: {error}.") from None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fit one mixture by coordinate ascent and by SVI, and compare.")
    parser.add_argument("--data", type=Path, default=DATA, help="CSV with a heading (default: Old Faithful)")
    parser.add_argument("--components", type=int, default=2, help="number of components (default: 2)")
    parser.add_argument("--steps", type=int, default=700, help="steps of each SVI run (default: 700)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (default: cpu)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for what is written")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[Fit]:
    """Run the comparison; returns every fit."""
    options = parse(arguments)
    warnings.filterwarnings("ignore", "Singular sample detected")  # torch redraws those Wishart samples itself
    torch.set_num_threads(1)  # so few points gain nothing from more, and lose much where cores are shared
    columns, data = read_csv(options.data)
    task = make_task(data.to(options.device), options.components, options.seed, columns=columns)
    print(
        f"{options.data.name}: {len(data)} points, {data.shape[1]} columns; {options.components} components, "
        f"on {options.device}, seed {options.seed}"
    )
    fits = fit_all(task, options.steps, lambda what: print(f"  fitting: {what}", flush=True))
    chosen = best_by_method(fits)
    print(f"\n{fits_table(fits)}\n{NOTES}\n\n{parameters_table(chosen)}\n")
    options.out.mkdir(parents=True, exist_ok=True)
    save_arviz(task, chosen, options.out / "comparison.nc")
    draw_picture(task, fits, options.out / "comparison.png")
    print(f"Wrote {options.out / 'comparison.nc'} and {options.out / 'comparison.png'}.")
    return fits


NOTES = """\
rate: of Adam at the start; it falls to a tenth over the run. seconds: inside step() only, on one thread; no imports,
no first call, no scoring. to 1 nat: until the score was first within one nat of the best here. exact ELBO: with
q(component) a factor. scored ELBO: TraceEnum_ELBO, 1,000 particles, one seed, ± standard error; it sums the
components out, so it lies a little above the exact one."""


if __name__ == "__main__":
    main()
