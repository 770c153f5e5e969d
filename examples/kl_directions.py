"""KL(q ‖ p), KL(p ‖ q) and Laplace on a Gaussian and on a density with two modes; and the path of coordinate ascent.

Prints the divergences of each approximation, by quadrature over the plane, and draws ``misleads.png`` (contours of the
density and of the three approximations) and ``coordinate_path.svg`` (the means after each update, and their distance
from the end beside what the correlation predicts).

python examples/kl_directions.py --out demo-output
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.criticism.pictures import PALETTE, looks, picture, save
from pyro_latent.gradient.approximations import laplace
from pyro_latent.models import bivariate_gaussian, two_modes
from pyro_latent.particles import Particles

SITES = ("first", "second")
#: KL(q ‖ p) is what coordinate ascent climbs down; the fourth approximation is in the table only.
LOOKS = dict(zip(("KL(q ‖ p)", "KL(p ‖ q)", "Laplace"), looks(["CAVI", "KL(p ‖ q)", "Laplace"]).values(), strict=True))


@dataclass(frozen=True)
class Plane:
    """A posterior on a grid over the plane.

    Attributes:
        axis: the nodes of either coordinate, ``[G]``.
        log_density: log p(first, second | x) at the nodes, ``[G, G]``, first along the rows.
    """

    axis: Tensor
    log_density: Tensor

    @property
    def points(self) -> Tensor:
        """The nodes, ``[G * G, 2]``."""
        return torch.cartesian_prod(self.axis, self.axis)

    @property
    def log_cell(self) -> float:
        return 2 * math.log(float(self.axis[1] - self.axis[0]))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``[2]`` and covariance ``[2, 2]``."""
        probability = (self.log_density.flatten() + self.log_cell).exp()
        loc = probability @ self.points
        centered = self.points - loc
        return loc, (probability[:, None] * centered).mT @ centered

    def divergences(self, q: Any) -> tuple[float, float]:
        """KL(q ‖ p) and KL(p ‖ q), in nats."""
        log_q, log_p = q.log_prob(self.points), self.log_density.flatten()
        one = ((log_q + self.log_cell).exp() * (log_q - log_p)).sum().item()
        return one, ((log_p + self.log_cell).exp() * (log_p - log_q)).sum().item()


def plane_of(model: Callable[..., Any], arguments: tuple[Any, ...], half: float, center: Tensor) -> Plane:
    """The posterior of a model with the sites ``first`` and ``second``, normalised on the grid."""
    axis = torch.linspace(-half, half, 601, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis) + center
    log_joint = Particles(model, None, arguments, {}).log_joint({"first": points[:, 0], "second": points[:, 1]})
    log_density = log_joint - torch.logsumexp(log_joint, 0) - 2 * math.log(float(axis[1] - axis[0]))
    return Plane(axis, log_density.reshape(len(axis), -1))


def gaussian(loc: Tensor, covariance: Tensor) -> dist.MultivariateNormal:
    return dist.MultivariateNormal(loc, covariance)


def approximations(model: Callable[..., Any], arguments: tuple[Any, ...], plane: Plane) -> dict[str, Any]:
    """The Gaussians by coordinate ascent, by the moments of the grid (factorised, and full), and by Laplace."""
    guide = AutoConjugate(model)
    CAVI(model, guide).run(*arguments, max_steps=1000, tol=1e-14)
    factors = [guide.posterior()[name] for name in SITES]
    mean_field = gaussian(
        torch.stack([f.mean for f in factors]), torch.diag(torch.stack([f.variance for f in factors]))
    )
    loc, covariance = plane.moments()
    mode = laplace(model, *arguments)
    return {
        "KL(q ‖ p)": mean_field,
        "KL(p ‖ q)": gaussian(loc, torch.diag(covariance.diagonal())),
        "KL(p ‖ q), full": gaussian(loc, covariance),
        "Laplace": gaussian(mode.loc, mode.covariance_matrix),
    }


def ellipse(q: Any, deviations: float) -> Tensor:
    """The contour of a Gaussian at so many standard deviations, ``[2, 200]``."""
    turn = torch.linspace(0, 2 * math.pi, 200, dtype=torch.float64)
    return q.mean[:, None] + deviations * q.scale_tril @ torch.stack([turn.cos(), turn.sin()])


def draw_plane(axes: Axes, plane: Plane, fits: dict[str, Any], title: str) -> None:
    """Filled contours of the density, and each approximation at one and two standard deviations."""
    density = plane.log_density.exp().mT.numpy()
    levels = [density.max() * level for level in (0.02, 0.1, 0.25, 0.5, 0.75, 1.0)]
    axes.contourf(plane.axis, plane.axis, density, levels=levels, cmap="Greys", alpha=0.6)
    for name, look in LOOKS.items():
        for deviations in (1, 2):
            x, y = ellipse(fits[name], deviations)
            axes.plot(x, y, linewidth=1.5, label=name * (deviations == 1), **look._asdict())
    axes.set(aspect="equal", xlabel="first", ylabel="second", title=title)


def draw_directions(cases: dict[str, tuple[Plane, dict[str, Any], float]], path: Path) -> None:
    with picture(6.4, 4.0, 1, 2) as (figure, (panels,)):
        for axes, (title, (plane, fits, half)) in zip(panels, cases.items(), strict=True):
            draw_plane(axes, plane, fits, title)
            axes.set(xlim=(-half, half), ylim=(-half, half), title=f"{title}\n(outlines: 1 and 2 s.d.)")
        lines, labels = panels[0].get_legend_handles_labels()
        chosen = [(line, label) for line, label in zip(lines, labels, strict=True) if label]
        figure.legend(*zip(*chosen, strict=True), loc="outside lower center", ncols=3)
    save(figure, path)


def path_of_means(precision: Tensor, start: float, sweeps: int) -> Tensor:
    """The means after each update, ``[1 + 2 * sweeps, 2]``, from first = -start, second = start."""
    loc = torch.zeros(2, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    guide = AutoConjugate(bivariate_gaussian.model, init={"second": dist.Normal(start * one, one)})
    cavi = CAVI(bivariate_gaussian.model, guide, order=list(SITES))
    points = [torch.tensor([-start, start], dtype=torch.float64)]
    for _ in range(sweeps):
        cavi.step(loc, precision)
        after = torch.stack([guide.posterior()[name].mean for name in SITES])
        points += [torch.stack([after[0], points[-1][1]]), after]
    return torch.stack(points)


def measured_rate(path: Tensor) -> float:
    """By what a sweep multiplies the distance of the second mean from zero: the mean over sweeps, geometric."""
    second = path[2::2, 1].abs()
    return float((second[-1] / second[0]) ** (1 / (len(second) - 1)))


def draw_path(paths: dict[float, Tensor], precisions: dict[float, Tensor], path: Path) -> None:
    """Left one path over the density, right the distances of all with the predicted lines."""
    shown = sorted(paths)[1]
    with picture(7.4, 2.9, 1, 2) as (figure, ((left, right),)):
        covariance = torch.linalg.inv(precisions[shown])
        for deviations in (1, 2, 3):
            left.plot(*ellipse(gaussian(torch.zeros(2).double(), covariance), deviations), color="0.6", linewidth=0.8)
        left.plot(*paths[shown].mT, color=LOOKS["KL(q ‖ p)"].color, marker="o", markersize=2.5, linewidth=1)
        left.set(
            aspect="equal",
            xlabel="mean of first",
            ylabel="mean of second",
            title=f"ρ² = {shown:g}: one update a segment\n(contours at 1, 2, 3 s.d.)",
        )
        for (rate, points), color in zip(paths.items(), (PALETTE[2], PALETTE[1], PALETTE[0]), strict=True):
            distance = points[2::2, 1].abs()
            sweeps = torch.arange(1, len(distance) + 1)
            right.plot(sweeps, distance, "o", color=color, markersize=3, label=f"ρ² = {rate:g}, measured")
            right.plot(sweeps, distance[0] * rate ** (sweeps - 1), color=color, linewidth=0.8)
        right.set(
            yscale="log",
            xlabel="sweep",
            ylabel="|mean of second - its end|",
            title="distance after each sweep\n(lines: predicted by ρ²)",
        )
        right.set_ylim(bottom=1e-8)
        right.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save(figure, path)


def precision_with(rate: float) -> Tensor:
    """A precision matrix of unit diagonal whose ρ² is the rate; positively correlated coordinates."""
    off = -math.sqrt(rate)
    return torch.tensor([[1.0, off], [off, 1.0]], dtype=torch.float64)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, tuple[float, float]]]:
    """Print the tables and draw the pictures; returns KL(q ‖ p) and KL(p ‖ q) by density and approximation."""
    parser = argparse.ArgumentParser(description="The two directions of the KL divergence, and Laplace.")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the pictures")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(0)
    zero, data = torch.zeros(2, dtype=torch.float64), torch.tensor([4.0, 3.0, 2.5], dtype=torch.float64)
    inputs: dict[str, tuple[Callable[..., Any], tuple[Any, ...], float, float]] = {
        "a Gaussian, ρ² = 0.8": (bivariate_gaussian.model, (zero, precision_with(0.8)), 12.0, 6.0),
        "two modes": (two_modes.model, (data,), 16.0, 5.0),
    }
    cases, found = {}, {}
    for title, (model, given, half, window) in inputs.items():
        plane = plane_of(model, given, half, zero)
        fits = approximations(model, given, plane)
        cases[title] = plane, fits, window
        found[title] = {name: plane.divergences(q) for name, q in fits.items()}
        print(f"{title}\n  {'q by':<15}  {'KL(q ‖ p)':>9}  {'KL(p ‖ q)':>9}  sd of first  correlation")
        for name, directions in found[title].items():
            exclusive, inclusive = (max(value, 0.0) for value in directions)  # rounding may leave -1e-9
            cov = fits[name].covariance_matrix
            correlation = cov[0, 1] / (cov[0, 0] * cov[1, 1]).sqrt()
            print(f"  {name:<15}  {exclusive:9.3f}  {inclusive:9.3f}  {cov[0, 0].sqrt():11.3f}  {correlation:11.3f}")
        _, cov = plane.moments()
        print(f"  {'p itself':<15}  {0:9.3f}  {0:9.3f}  {cov[0, 0].sqrt():11.3f}  {cov[0, 1] / cov[0, 0]:11.3f}")
    draw_directions(cases, options.out / "misleads.png")
    precisions = {rate: precision_with(rate) for rate in (0.25, 0.64, 0.9)}
    paths = {rate: path_of_means(precision, 4.0, 25) for rate, precision in precisions.items()}
    print("ρ² (predicted)  measured contraction of a sweep")
    for rate, points in paths.items():
        print(f"{rate:14.6f}  {measured_rate(points[:21]):.6f}")
    draw_path(paths, precisions, options.out / "coordinate_path.svg")
    return found


if __name__ == "__main__":
    main()
