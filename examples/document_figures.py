"""The pictures of the pages on EM, on mixtures and on the Normal-Gamma, from the library's own quantities.

- ``em-bound.png``: the bound F(q, θ) touches log p(x | θ) at the θ of its E-step; its maximum is the next θ.
- ``em-mixture.png``: EM on Old Faithful step by step: responsibilities, and two standard deviations of each component.
- ``elbo-kl.png``: ELBO + KL(q ‖ posterior) = log p(x), after each update of a fit.
- ``normal-gamma.png``: the exact posterior of a Normal-Gamma, and mean field's.

python examples/document_figures.py --out docs
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_latent import CAVI, EM, AutoConjugate
from pyro_latent.criticism.pictures import PALETTE, looks, picture, save
from pyro_latent.models import bivariate_gaussian, datasets, gmm, normal_gamma, three_coins
from pyro_latent.plotting import ellipse

#: A sample so small that its mean and precision depend on each other.
SMALL_SAMPLE = torch.tensor([1.3, -0.2, 2.5, 0.8, 1.1], dtype=torch.float64)
#: A poor start on Old Faithful: both components are wide, and in the middle.
POOR_START = {
    "weights": torch.tensor([0.5, 0.5]).double(),
    "mean": torch.tensor([[3.0, 78.0], [4.0, 62.0]], dtype=torch.float64),
    "covariance": torch.diag(torch.tensor([1.3, 180.0], dtype=torch.float64)).expand(2, 2, 2),
}

Theta = dict[str, Tensor]


# ----------------------------------------------------------------------------------------------------- the bound of EM


class Line(NamedTuple):
    """The bounds of two E-steps and the log likelihood along one parameter, the others held, in nats.

    Attributes:
        t: where on the way of the parameter, ``[T]``: its value at the first E-step is at 0, the maximum of Q at 1.
        log_likelihood: log p(x | θ), ``[T]``.
        old_bound: F(q, θ) with q of the E-step at 0, ``[T]``.
        new_bound: F(q, θ) with q of the E-step at 1, ``[T]``.
    """

    t: Tensor
    log_likelihood: Tensor
    old_bound: Tensor
    new_bound: Tensor


def bound_along(model: Callable[..., Any], args: tuple[Any, ...], start: Theta, name: str, t: Tensor) -> Line:
    """The bounds around the step of EM from ``start`` in the parameter ``name``."""
    em = EM(model)
    em.guide(*args)
    end = after_step(em, args, start)[name]
    way = {s: start | {name: start[name] + s * (end - start[name])} for s in (0.0, 1.0, *t.tolist())}
    bounds = []
    for s in (0.0, 1.0):
        move_to(em, way[s])
        em.e_step(*args)
        bounds.append(torch.tensor([at(em, em.free_energy, way[s], args) for s in t.tolist()], dtype=torch.float64))
    level = torch.tensor([at(em, em.log_likelihood, way[s], args) for s in t.tolist()], dtype=torch.float64)
    return Line(t, level, *bounds)


def after_step(em: EM, args: tuple[Any, ...], theta: Theta) -> Theta:
    """θ after a step of EM from ``theta``."""
    move_to(em, theta)
    em.step(*args)
    return em.guide.params()


def at(em: EM, quantity: Callable[..., float], theta: Theta, args: tuple[Any, ...]) -> float:
    """A quantity of EM at θ; q stays that of the last E-step."""
    move_to(em, theta)
    return quantity(*args)


def move_to(em: EM, theta: Theta) -> None:
    """Give the parameters in Pyro's store values, which EM's next call takes up."""
    em.guide.write_params()
    store = pyro.get_param_store()
    for name, value in theta.items():
        store[name] = value.clone()  # the store writes into what it holds


def bounds() -> dict[str, Line]:
    """The lines of the picture: p of three coins, and the means of a mixture on Old Faithful, on its way."""
    tosses = torch.tensor(three_coins.TOSSES, dtype=torch.float64)
    coins = dict(zip(("pi", "p", "q"), torch.tensor(three_coins.STARTS[1], dtype=torch.float64), strict=True))
    mixture = stages([6])[0].theta
    cases: dict[str, tuple[Callable[..., Any], tuple[Any, ...], Theta, str, tuple[float, float]]] = {
        "three coins: p": (three_coins.model, (tosses,), coins, "p", (-0.5, 2.0)),
        "mixture: the two means": (gmm.ml_model, (datasets.old_faithful(), 2), mixture, "mean", (-1.5, 3.0)),
    }
    found = {}
    for title, (model, args, start, name, (low, high)) in cases.items():
        pyro.clear_param_store()
        found[title] = bound_along(model, args, start, name, torch.linspace(low, high, 46, dtype=torch.float64))
    return found


def draw_bound(axes: Axes, line: Line, title: str) -> None:
    """log p, the two bounds, and the two halves of the step: to the maximum of the bound, and up to log p."""
    zero, one = (int((line.t - t).abs().argmin()) for t in (0.0, 1.0))
    axes.plot(line.t, line.log_likelihood, color="0.2", linewidth=1.4, label="log p(x | θ)")
    axes.plot(line.t, line.old_bound, color=PALETTE[0], linewidth=1.1, label="F(q_old, θ)")
    axes.plot(line.t, line.new_bound, color=PALETTE[1], linewidth=1.1, label="F(q_new, θ)")
    corners = [float(y) for y in (line.log_likelihood[zero], line.old_bound[one], line.log_likelihood[one])]
    places = list(zip((0.0, 1.0, 1.0), corners, strict=True))
    for place, color in zip(places, (PALETTE[0], PALETTE[0], PALETTE[1]), strict=True):
        axes.plot(*place, "o", color=color, markersize=4, zorder=3)
    arrow: Any = {"arrowstyle": "->", "color": "0.3", "shrinkA": 2, "shrinkB": 2}
    for before, after in pairwise(places):
        axes.annotate("", after, before, arrowprops=arrow)
    axes.set_xticks([0.0, 1.0], ["θ_old", "θ_new"])
    axes.set(ylabel="nats", title=title)


def draw_bounds(lines: dict[str, Line]) -> Figure:
    """A panel for each line."""
    with picture(6.8, 2.8, 1, 2) as (figure, ((left, right),)):
        for axes, (title, line) in zip((left, right), lines.items(), strict=True):
            draw_bound(axes, line, title)
        right.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0)
    return figure


# ---------------------------------------------------------------------------------------------- a mixture, step by step


class Stage(NamedTuple):
    """EM on a mixture after some steps: θ, the probability of the first component by point ``[N]``, and log p."""

    steps: int
    theta: Theta
    first: Tensor
    log_likelihood: float


def stages(steps: Sequence[int] = (0, 1, 10, 12, 14, 30)) -> list[Stage]:
    """EM on Old Faithful from a poor start, looked at after each of these numbers of steps, with q at its optimum."""
    pyro.clear_param_store()
    em, args = EM(gmm.ml_model), (datasets.old_faithful(), 2)
    em.guide(*args)
    move_to(em, POOR_START)
    found = []
    for count in range(max(steps) + 1):
        if count:
            em.step(*args)
        if count in steps:
            em.e_step(*args)
            first = em.guide.posterior(*args)["component"].probs[:, 0]
            found.append(Stage(count, em.guide.params(), first, em.log_likelihood(*args)))
    return found


def draw_stages(found: Sequence[Stage]) -> Figure:
    """Six panels: the points in the colors of their components, and two standard deviations of each component."""
    from matplotlib.colors import LinearSegmentedColormap

    mix = LinearSegmentedColormap.from_list("responsibilities", [PALETTE[1], "0.75", PALETTE[0]])
    data = datasets.old_faithful()
    with picture(6.8, 4.0, 2, 3) as (figure, grid):
        for axes, stage in zip(grid.flatten(), found, strict=True):
            axes.scatter(data[:, 0], data[:, 1], s=3, c=stage.first, cmap=mix, vmin=0, vmax=1, linewidths=0)
            theta = [stage.theta[name].numpy() for name in ("mean", "covariance")]
            for mean, covariance, color in zip(*theta, PALETTE, strict=False):
                axes.add_patch(ellipse(mean, covariance, 2.0, color=color, linewidth=1.4))
            axes.set(xlim=(1.0, 6.0), ylim=(35.0, 105.0))
            count = f"{stage.steps} step{'s' * (stage.steps != 1)}"
            axes.set_title(f"{count}: {stage.log_likelihood:.1f} nats".replace("-", "−"))
            axes.label_outer()
        figure.supxlabel("duration (min)", fontsize=8)
        figure.supylabel("waiting time (min)", fontsize=8)
        figure.suptitle("EM on a mixture of two (ellipses: 2 s.d., 86 % of a component)", fontsize=8)
    return figure


# -------------------------------------------------------------------------------------- ELBO + KL = log evidence


class Fit(NamedTuple):
    """After each sweep the ELBO and KL(q ‖ posterior), both ``[T]``, and the log evidence, in nats."""

    elbo: Tensor
    divergence: Tensor
    log_evidence: float


def normal_gamma_divergence(mean: Any, precision: Any, exact: Any) -> Tensor:
    """KL(q(mean) q(precision) ‖ Normal-Gamma), in closed form: that of the precision, and of the mean given it."""
    of_precision = torch.distributions.kl_divergence(precision, dist.Gamma(exact.concentration, exact.rate))
    expected_log = torch.digamma(precision.concentration) - precision.rate.log()
    scaled = exact.precision_scaling * precision.mean * (mean.variance + (mean.mean - exact.loc) ** 2)
    log_ratio = expected_log + exact.precision_scaling.log() + mean.variance.log()
    return of_precision + (scaled - 1 - log_ratio) / 2


def normal_gamma_fit(sweeps: int = 6) -> Fit:
    """Mean field on the small sample, from a precision that is far too high."""
    x = SMALL_SAMPLE
    start = dist.Gamma(torch.tensor(40.0).double(), torch.tensor(2.0).double())
    guide = AutoConjugate(normal_gamma.model, init={"precision": start})
    exact = normal_gamma.posterior(x)

    def divergence() -> Tensor:
        q = guide.posterior()
        return normal_gamma_divergence(q["mean"], q["precision"], exact)

    cavi = CAVI(normal_gamma.model, guide, order=["mean", "precision"])
    return followed(cavi, (x,), divergence, float(normal_gamma.log_evidence(x)), sweeps)


def gaussian_fit(rate: float = 0.64, sweeps: int = 12) -> Fit:
    """Mean field on two coupled coordinates, of which a sweep leaves the share ``rate`` of the way."""
    loc = torch.zeros(2, dtype=torch.float64)
    precision = torch.tensor([[1.0, -(rate**0.5)], [-(rate**0.5), 1.0]], dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(loc, precision_matrix=precision)
    start = dist.Normal(torch.tensor(3.0).double(), torch.tensor(1.0).double())
    guide = AutoConjugate(bivariate_gaussian.model, init={"second": start})

    def divergence() -> Tensor:
        factors = [guide.posterior()[name] for name in ("first", "second")]
        spread = torch.diag(torch.stack([q.variance for q in factors]))
        q = torch.distributions.MultivariateNormal(torch.stack([q.mean for q in factors]), spread)
        return torch.distributions.kl_divergence(q, exact)

    cavi = CAVI(bivariate_gaussian.model, guide, order=["first", "second"])
    evidence = float(bivariate_gaussian.log_evidence(loc, precision))
    return followed(cavi, (loc, precision), divergence, evidence, sweeps)


def followed(cavi: CAVI, args: tuple[Any, ...], divergence: Callable[[], Tensor], evidence: float, sweeps: int) -> Fit:
    """Take the sweeps, and read both numbers after each."""
    elbo, apart = [], []
    for _ in range(sweeps):
        elbo.append(-cavi.step(*args))
        apart.append(divergence())
    return Fit(torch.tensor(elbo, dtype=torch.float64), torch.stack(apart), evidence)


def draw_fits(fits: dict[str, Fit]) -> Figure:
    """A panel for each fit: the KL divergence on top of the ELBO, and the log evidence that they reach together."""
    with picture(6.8, 2.6, 1, 2) as (figure, ((left, right),)):
        for axes, (title, fit) in zip((left, right), fits.items(), strict=True):
            sweeps = torch.arange(1, len(fit.elbo) + 1)
            bottom = float(fit.elbo.min() - 0.25 * (fit.log_evidence - fit.elbo.min()))
            axes.bar(sweeps, fit.elbo - bottom, bottom=bottom, color=PALETTE[4], width=0.7, label="ELBO, from below")
            axes.bar(sweeps, fit.divergence, bottom=fit.elbo, color=PALETTE[5], width=0.7, label="KL(q ‖ posterior)")
            axes.axhline(fit.log_evidence, color="0.2", linewidth=1.0, label="log p(x)")
            axes.set(xlabel="sweep", ylabel="nats", title=title, xticks=sweeps[:: max(len(sweeps) // 6, 1)].tolist())
            axes.set_ylim(bottom, fit.log_evidence + 0.08 * (fit.log_evidence - bottom))
        right.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0)
    return figure


# --------------------------------------------------------------------------------------- exact against mean field


def draw_posteriors() -> Figure:
    """Contours of both joint densities, and both marginals of the mean."""
    x = SMALL_SAMPLE
    exact = normal_gamma.posterior(x)
    joint, field = AutoConjugate(normal_gamma.model, blocks=[("mean", "precision")]), AutoConjugate(normal_gamma.model)
    for guide in (joint, field):
        CAVI(normal_gamma.model, guide).run(x, tol=1e-12)
    q = field.posterior()
    loc, rate = torch.linspace(-1.2, 3.0, 161).double(), torch.linspace(0.01, 2.6, 161).double()
    mean, precision = torch.meshgrid(loc, rate, indexing="xy")
    densities = {
        "exact": exact.log_prob((mean, precision)).exp(),
        "mean field": (q["mean"].log_prob(mean) + q["precision"].log_prob(precision)).exp(),
    }
    with picture(6.8, 2.8, 1, 2) as (figure, ((left, right),)):
        marginals = {"exact": joint.posterior()["mean"], "mean field": q["mean"]}
        for name, look in looks(densities).items():
            levels = (float(densities[name].max()) * torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])).tolist()
            line: Any = {"colors": look.color, "linestyles": [look.linestyle], "linewidths": 0.9}
            left.contour(loc, rate, densities[name], levels=levels, **line)
            right.plot(loc, marginals[name].log_prob(loc).exp(), linewidth=1.3, label=name, **look._asdict())
        left.set(
            xlabel="mean", ylabel="precision", title="joint density\n(contours: 10, 30, 50, 70, 90 % of its maximum)"
        )
        right.set(xlabel="mean", ylabel="density", title="marginal of the mean", ylim=(0, None))
        right.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description="The pictures of the pages on EM, mixtures and the Normal-Gamma.")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the pictures")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    fits = {"Normal-Gamma, five points": normal_gamma_fit(), "Gaussian, ρ² = 0.64": gaussian_fit()}
    figures = {
        "em-bound.svg": draw_bounds(bounds()),
        "em-mixture.png": draw_stages(stages()),
        "elbo-kl.svg": draw_fits(fits),
        "normal-gamma.svg": draw_posteriors(),
    }
    for name, figure in figures.items():
        save(figure, out / name, dpi=105)


if __name__ == "__main__":
    main()
