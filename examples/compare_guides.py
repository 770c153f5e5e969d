"""One Pyro model, fitted by exact coordinate ascent and by stochastic gradients, side by side.

The model is the Gaussian mixture ``pyro_latent.models.gmm.model`` with K full covariances, unchanged for every method:

- CAVI, joint blocks: ``CAVI`` with q(weights) q(mean, precision), updates derived from the model;
- CAVI, mean field: ``CAVI`` with q(weights) q(mean) q(precision);
- SVI, hand-written guide: ``SVI`` and Adam with ``gmm.guide``, the same family as the joint blocks;
- SVI, AutoNormal: ``SVI`` and Adam with Pyro's automatic guide, a Normal in the unconstrained space.

Each SVI runs over a grid of learning rates, each falling to a tenth of itself over the run, with ``TraceEnum_ELBO``,
which sums the components out, and ten particles a step, which cost hardly more than one here. All start at the same
k-means clusters. ``race`` times what is inside ``step`` and scores every q by one estimator; ``compare`` then fits each
method at its best rate, and puts the posteriors beside each other.

Run it with ``make demo``, or ``python examples/compare_guides.py --help``. It prints tables and writes
``comparison.nc`` (for ArviZ) and ``comparison.png``.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform
from torch.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.arviz import to_arviz
from pyro_latent.criticism import Comparison, Race, compare, race, svi_grid
from pyro_latent.criticism.pictures import picture
from pyro_latent.models import gmm
from pyro_latent.plotting import plot_mixture, plot_race

LEARNING_RATES = (0.003, 0.01, 0.03, 0.1)
DATA = Path(__file__).parent.parent / "models" / "datasets" / "old_faithful.csv"
LABELS = {"eruptions": "duration of the eruption (min)", "waiting": "time to the next one (min)"}
DIMS = {
    "weights": ["components"],
    "mean": ["components", "column"],
    "precision": ["components", "column", "other_column"],
    "obs": ["data", "column"],
}


def methods(data: Tensor, num_components: int, steps: int, seed: int) -> dict[str, Callable[[], Any]]:
    """What makes the driver of each method, by name; all start at the same clusters of the points ``[N, D]``."""
    pyro.set_rng_seed(seed)  # as race does before each run: the hand-written guide draws its own clusters
    clusters = gmm.initial_responsibilities(data, num_components)

    def cavi(blocks: Any) -> CAVI:
        return CAVI(gmm.model, AutoConjugate(gmm.model, blocks=blocks, init={"component": clusters}))

    loss = partial(TraceEnum_ELBO, num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    grid = partial(svi_grid, gmm.model, rates=LEARNING_RATES, loss=loss, over=steps)
    return {
        "CAVI, joint blocks": lambda: cavi([("mean", "precision")]),
        "CAVI, mean field": lambda: cavi(None),
        **grid(lambda: gmm.guide, name="SVI, hand-written guide"),
        **grid(lambda: auto_normal(data, num_components, clusters), name="SVI, AutoNormal"),
    }


def auto_normal(data: Tensor, num_components: int, clusters: Tensor) -> AutoNormal:
    """Pyro's AutoNormal, at the means of the posterior given the clusters ``[N, K]``."""
    q = {"component": dist.Categorical(clusters)}
    block: Any = gmm.update_mean_precision(q, data, num_components)
    start = {
        "weights": gmm.update_weights(q, data, num_components).mean,
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
        return factor @ factor.mT

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


biject_to.register(constraints.positive_definite, lambda constraint: PositiveDefiniteBijection())


def save_arviz(found: Comparison, guide: AutoConjugate, given: Any, columns: Sequence[str], path: Path) -> None:
    """Write the reference's guide as ArviZ data, with a group ``posterior_<method>`` for each of the others."""
    import xarray

    labels = {"column": list(columns), "other_column": list(columns)}
    idata = to_arviz(gmm.model, guide, *given, coords=labels, dims=DIMS)
    path.unlink(missing_ok=True)
    idata.to_netcdf(str(path))
    for name, entry in found.entries.items():
        if name != found.reference and entry.score is not None:
            draws = {n: (("chain", "draw", *DIMS[n]), v[None].cpu().numpy()) for n, v in entry.draws.values.items()}
            score = {"elbo_estimate": entry.score.elbo, "elbo_estimate_error": entry.score.elbo_error}
            group = "posterior_" + re.sub(r"\W+", "_", name.lower())
            page = xarray.Dataset(draws, labels, {"method": name, **score})
            page.to_netcdf(path, mode="a", group=group, engine="h5netcdf")


def save_picture(contest: Race, found: Comparison, data: Tensor, columns: Sequence[str], path: Path) -> None:
    """Left the data with the ellipses of each method, right the gaps of all runs against the clock."""
    moments = {name: entry.moments for name, entry in found.entries.items()}
    fits = {name: (m["mean"].mean, torch.linalg.inv(m["precision"].mean)) for name, m in moments.items()}
    with picture(10.5, 3, 1, 2) as (figure, ((left, right),)):
        plot_mixture(data, fits, labels=[LABELS.get(name, name) for name in columns[:2]], ax=left)
        plot_race(contest, title="Gap to the best ELBO (bold: the best learning rate)", ax=right)
    figure.savefig(path, dpi=200)


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


def main(arguments: Sequence[str] | None = None) -> tuple[Race, Comparison]:
    """Run the race, and compare each method at its best rate; returns both."""
    parser = argparse.ArgumentParser(description="Fit one mixture by coordinate ascent and by SVI, and compare.")
    parser.add_argument("--data", type=Path, default=DATA, help="CSV with a heading (default: Old Faithful)")
    parser.add_argument("--components", type=int, default=2, help="number of components (default: 2)")
    parser.add_argument("--steps", type=int, default=700, help="steps of each SVI run (default: 700)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (default: cpu)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for what is written")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "Singular sample detected")  # torch redraws those Wishart samples itself
    torch.set_num_threads(1)  # so few points gain nothing from more, and lose much where cores are shared
    columns, data = read_csv(options.data)
    given = data.to(options.device), options.components
    print(f"{options.data.name}: {len(data)} points, {given[1]} components, on {options.device}, seed {options.seed}")
    made = methods(*given, options.steps, options.seed)
    budget: Any = {"max_steps": options.steps, "seed": options.seed}
    contest = race(gmm.model, made, *given, num_samples=400, **budget)
    print(f"\n{contest}\n", flush=True)
    drivers = {group: made[runner.name]() for group, runner in contest.chosen().items()}
    found = compare(gmm.model, drivers, *given, **budget)
    print(found)
    options.out.mkdir(parents=True, exist_ok=True)
    file, image = options.out / "comparison.nc", options.out / "comparison.png"
    save_arviz(found, drivers[found.reference].guide, given, columns, file)
    save_picture(contest, found, data, columns, image)
    print(f"\nWrote {file} and {image}.")
    return contest, found


if __name__ == "__main__":
    main()
