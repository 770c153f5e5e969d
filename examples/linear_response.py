"""Standard deviations under mean field, and corrected by linear response, beside those of NUTS.

Of the models of ``examples/originals``, a line for each quantity: the smallest and the largest ratio of a standard
deviation to the reference's, by 20,000 draws of the guide, and by ``guide.linear_response``. The picture has two pairs
of latents, as ellipses that hold 90 percent of a normal with the covariance: a plane whose posterior is known, and two
weights of a probit regression.

python -m examples.linear_response [--out docs/linear-response.svg]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import torch

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.criticism.pictures import looks, picture, save
from pyro_latent.models import bivariate_gaussian
from pyro_latent.plotting import ellipse

from .originals.fits import ORIGINALS, REFERENCES, Original, draws_of, errors, in_float64

#: By reference, its quantities and how linear response names them.
QUANTITIES = {
    "eight_schools": {"mu": "mu", "log_tau": "log tau"},
    "kidiq": {"weights": "weights", "log_sigma": "log sigma"},
    "radon": {"alpha": "alpha", "mu": "mu", "log_spread": "log spread", "log_sigma": "log sigma"},
    "student_regression": {"weights": "weights"},
    "horseshoe": {"beta": "beta", "log_local": "log local", "log_tau": "log tau", "log_sigma": "log sigma"},
    "logistic": {"weights": "weights"},
    "probit": {"weights": "weights"},
    "negative_binomial": {"weights": "weights"},
}
#: An ellipse of this many standard deviations holds 90 percent.
DEVIATIONS = math.sqrt(-2 * math.log(0.1))


class Plane(NamedTuple):
    """Two latents: their mean, and covariances ``[2, 2]`` by the name of a method."""

    title: str
    mean: np.ndarray
    covariances: dict[str, np.ndarray]
    draws: np.ndarray | None = None


def guide_of(original: Original) -> AutoConjugate:
    guide = AutoConjugate(original.model, **original.options)
    CAVI(original.model, guide, accelerate=True).run(*original.data(), tol=1e-11)
    return guide


def rows_of(original: Original) -> Iterator[list[str]]:
    """A row for each quantity."""
    guide, reference = guide_of(original), np.load(REFERENCES / f"{original.reference}.npz")
    pyro.set_rng_seed(1)
    under_q = errors(original, draws_of(original, guide))
    response = guide.linear_response(*original.data())
    for quantity, site in QUANTITIES[original.reference].items():
        corrected = response.sd(site).numpy() / reference[f"{quantity}/sd"]
        yield [original.reference.replace("_", " "), site, ranged(under_q[quantity].sds), ranged(corrected)]


def ranged(ratios: np.ndarray) -> str:
    low, high = f"{np.min(ratios):.2f}", f"{np.max(ratios):.2f}"
    return low if low == high else f"{low} to {high}"


def known() -> Plane:
    """Two normals of which only a weighted sum is read off."""
    loc, precision = torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 1.7], [1.7, 2.5]])
    guide = AutoConjugate(bivariate_gaussian.model)
    CAVI(guide.model, guide, accelerate=True).run(loc, precision, tol=1e-13)
    names = ["first", "second"]
    factors = torch.diag(torch.stack([guide.posterior()[name].variance for name in names]))
    response = guide.linear_response(loc, precision)
    corrected = torch.stack([torch.stack([response.covariance(a, b) for b in names]) for a in names])
    covariances = {"exact": precision.inverse(), "mean field": factors, "linear response": corrected}
    return Plane("two normals, a sum of which is read", loc.numpy(), {n: c.numpy() for n, c in covariances.items()})


def weights() -> Plane:
    """The first two weights of the probit regression."""
    original = next(o for o in ORIGINALS if o.reference == "probit")
    guide = guide_of(original)
    q, response = guide.posterior()["weights"], guide.linear_response(*original.data())
    draws = np.load(REFERENCES / "probit.npz")["weights/draws"][:, :2]
    covariances = {
        "NUTS": np.cov(draws.T),
        "mean field": q.covariance_matrix[:2, :2].numpy(),
        "linear response": response.covariance("weights")[:2, :2].numpy(),
    }
    return Plane("two weights of a probit regression", q.mean[:2].numpy(), covariances, draws)


def draw(planes: list[Plane], path: Path) -> None:
    """Ellipses of each plane."""
    with picture(7.4, 3.4, 1, len(planes)) as (figure, (panels,)):
        for panel, plane in zip(panels, planes, strict=True):
            if plane.draws is not None:
                panel.plot(*plane.draws.T, ".", color="0.8", markersize=1.5, zorder=0, rasterized=True)
            for name, look in looks(plane.covariances).items():
                mean = plane.draws.mean(0) if name == "NUTS" and plane.draws is not None else plane.mean
                width = 2.6 if name in ("exact", "NUTS") else 1.4
                outline = ellipse(mean, plane.covariances[name], DEVIATIONS, linewidth=width, **look._asdict())
                panel.add_patch(outline)
                panel.plot([], [], label=name, linewidth=width, **look._asdict())
            panel.autoscale_view()
            panel.set(title=f"{plane.title} (90 %)", xlabel="the first", ylabel="the second")
            panel.legend(loc="lower left", handlelength=2.6)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, help="where to write the picture")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    with in_float64():
        heading = ["model", "quantity", "under q", "linear response"]
        for row in (heading, ["---"] * 4, *(r for o in ORIGINALS if o.reference in QUANTITIES for r in rows_of(o))):
            print("| " + " | ".join(row) + " |")
        if out is not None:
            draw([known(), weights()], out)


if __name__ == "__main__":
    main()
