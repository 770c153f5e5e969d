"""What a comparison of posteriors found: tables, pictures, and a page of them."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..particles import Draws, Weights
from ..tables import text_table
from .moments import Components, Difference, Moments
from .pages import figure_html, page, table_html
from .pictures import PALETTE, Look, density, looks, on_axes, panels_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: How many panels a picture of densities has at most.
PANELS = 12

#: How many elements of a site are listed one by one; of a larger one, the table has the extremes.
LISTED = 12

NOTES = (
    "ELBO: mean log weight, with its standard error; all guides by one estimator and the same random numbers.",
    "exact ELBO: of AutoConjugate, with the discrete sites as factors of their own; the scored ELBO sums them out.",
    "evidence: log of the mean weight; k̂ says whether to believe it. −: not defined for MCMC, or not measured.",
)


@dataclass(frozen=True)
class Entry:
    """One method of a comparison.

    Attributes:
        kind: what it is, in words.
        draws: from it, with mixture components in the common order.
        moments: by site.
        score: ELBO, evidence and k̂; None for MCMC.
        exact_elbo: of an :class:`~pyro_latent.AutoConjugate` without auxiliary sites, in nats.
        seconds: inside its fit, if it was fitted here.
        steps: sweeps, gradient steps, or MCMC transitions (warm-up included) of all chains, where known.
        converged: whether its own criterion was met, if it has one.
        r_hat: of MCMC, the largest split R̂ over sites and elements.
    """

    kind: str
    draws: Draws = field(repr=False)
    moments: dict[str, Moments] = field(repr=False)
    score: Weights | None
    exact_elbo: float | None = None
    seconds: float | None = None
    steps: int | None = None
    converged: bool | None = None
    r_hat: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found; ``print`` shows its tables, a notebook its page.

    Attributes:
        entries: by method, in the order given.
        reference: the method that the others are measured against.
        differences: by method and site, from the reference.
        components: where the mixture components are, if the model has any.
        title: the model's name.
    """

    entries: dict[str, Entry]
    reference: str
    differences: dict[str, dict[str, Difference]] = field(repr=False)
    components: Components | None
    title: str

    def __getitem__(self, method: str) -> Entry:
        return self.entries[method]

    def worst_difference(self, method: str) -> float:
        """The largest |difference of means| from the reference, over sites and elements, in its standard deviations."""
        return max(
            (float(d.mean.abs().max()) for d in self.differences[method].values() if d.mean.numel()), default=0.0
        )

    def score_rows(self) -> list[list[str]]:
        """The table of scores: a heading, then a row for each method."""
        head = ["method", "ELBO", "exact ELBO", "evidence", "k̂", "max |Δ|/sd", "seconds", "steps"]
        return [head, *(self._score_row(name, entry) for name, entry in self.entries.items())]

    def _score_row(self, name: str, entry: Entry) -> list[str]:
        s = entry.score
        elbo = "−" if s is None else f"{s.elbo:.3f} ± {s.elbo_error:.3f}"
        evidence = "−" if s is None else f"{s.log_evidence:.3f} ± {s.standard_error:.3f}"
        exact, seconds, steps = (
            "−" if value is None else format(value, form)
            for value, form in ((entry.exact_elbo, ".3f"), (entry.seconds, ".3g"), (entry.steps, ","))
        )
        worst = "reference" if name == self.reference else f"{self.worst_difference(name):.2f}"
        if entry.converged is False:
            steps += " (not converged)"
        return [name, elbo, exact, evidence, _k_of(entry), worst, seconds, steps]

    def site_rows(self, site: str) -> list[list[str]]:
        """Mean ± sd of a site by method: a row for each element, or, of a large one, one of extremes."""
        mean = self.entries[self.reference].moments[site].mean
        head = [site, *self.entries]
        if mean.numel() > LISTED:
            return [head, self._extremes(site)]
        return [head, *(self._element(*element) for element in self.elements([site]))]

    def _element(self, site: str, index: tuple[int, ...]) -> list[str]:
        cells = []
        for name, entry in self.entries.items():
            m = entry.moments[site]
            shown = f"{float(m.mean[index]):.4g} ± {float(m.sd[index]):.2g}"
            if name != self.reference:
                d = self.differences[name][site]
                shown += f" ({float(d.mean[index]):+.2f} sd, ×{float(d.sd[index]):.2f})"
            cells.append(shown)
        return [_name_of(site, index), *cells]

    def _extremes(self, site: str) -> list[str]:
        cells = []
        for name in self.entries:
            d = self.differences[name][site]
            low, high = float(d.sd.min()), float(d.sd.max())
            cells.append(
                "reference"
                if name == self.reference
                else f"at most {float(d.mean.abs().max()):.2f} sd, sd ×{low:.2f} to ×{high:.2f}"
            )
        return [f"{site} {list(self.entries[self.reference].moments[site].mean.shape)}", *cells]

    @property
    def sites(self) -> list[str]:
        """The latent sites that have numbers."""
        return list(self.entries[self.reference].moments)

    def elements(self, sites: Sequence[str] | None = None) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The elements of the sites, each with its index; those of symmetric matrices once."""
        for site in self.sites if sites is None else sites:
            sd = self.entries[self.reference].moments[site].sd
            symmetric = sd.ndim >= 2 and sd.shape[-1] == sd.shape[-2] and torch.allclose(sd, sd.mT)
            for index in np.ndindex(*sd.shape):
                if not (symmetric and index[-1] < index[-2]):
                    yield site, index

    def __str__(self) -> str:
        sites = [text_table(self.site_rows(site)) for site in self.sites]
        kinds = [f"{name}: {entry.kind}" for name, entry in self.entries.items()]
        return "\n\n".join([text_table(self.score_rows()), "\n".join([*kinds, *self.notes()]), *sites])

    def notes(self) -> list[str]:
        """What the columns mean, and what was done."""
        found = [*NOTES, f"(+0.10 sd, ×0.90): from {self.reference}, the mean in its sd, and the ratio of the sds."]
        summed = self.entries[self.reference].draws.summed
        if summed:
            found.append(f"Summed out exactly: {', '.join(summed)}.")
        if self.components is not None:
            found.append(
                f"Components of plate {self.components.plate!r} are in one order, in {', '.join(self.components.axes)}."
            )
        return found

    def html(self, pictures: bool = True) -> str:
        """One page that needs nothing else: its pictures are inside."""
        parts = [table_html(self.score_rows()), *(f"<p>{html.escape(n)}</p>" for n in self.notes())]
        if pictures:
            parts.append(figure_html(plot_bounds(self), "ELBO and evidence by method"))
            parts.append(figure_html(plot_densities(self), "Posterior densities by method"))
        parts += [f"<h2>{html.escape(site)}</h2>{table_html(self.site_rows(site))}" for site in self.sites]
        return page(f"Posteriors of {self.title}", parts)

    def save_html(self, path: str | Path) -> Path:
        """Write the page; returns where."""
        target = Path(path)
        target.write_text(self.html(), encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        return self.html()


def _name_of(site: str, index: tuple[int, ...]) -> str:
    return f"{site}[{', '.join(map(str, index))}]" if index else site


def _k_of(entry: Entry) -> str:
    if entry.score is not None:
        return str(entry.score.k)
    return "−" if entry.r_hat is None else f"R̂ {entry.r_hat:.3f}"


# ------------------------------------------------------------------------------------------------------------ pictures


def plot_bounds(comparison: Comparison, *, ax: Axes | None = None) -> Figure:
    """ELBO and importance-weighted evidence of each guide, with two standard errors, and what k̂ says of it.

    Args:
        comparison: what :func:`pyro_latent.criticism.compare` returned.
        ax: matplotlib Axes to draw on; a new figure by default.

    Returns:
        The figure of ``ax``, or the new one.
    """
    scores = {name: e.score for name, e in comparison.entries.items() if e.score is not None}
    with on_axes(ax, 5.6, 0.6 + 0.42 * max(len(scores), 1)) as (figure, axes):
        for place, s in enumerate(scores.values()):
            for shift, mark, color, value, error in (
                (0.12, "o", PALETTE[0], s.elbo, s.elbo_error),
                (-0.12, "s", PALETTE[1], s.log_evidence, s.standard_error),
            ):
                axes.errorbar(value, place + shift, xerr=2 * error, fmt=mark, color=color, markersize=4)
            axes.text(1.01, place, f"k̂ {s.k}", transform=axes.get_yaxis_transform(), va="center", color="0.35")
        axes.set_yticks(range(len(scores)), list(scores))
        axes.set(xlabel="nats, ± 2 standard errors", ylim=(len(scores) - 0.5, -0.5))
        axes.set_title("ELBO (circle) and importance-weighted evidence (square)")
        axes.ticklabel_format(axis="x", useOffset=False)
    return figure


def plot_densities(
    comparison: Comparison,
    sites: Sequence[str] | None = None,
    *,
    panels: int = PANELS,
    units: Mapping[str, str] | None = None,
    ax: object = None,
) -> Figure:
    """The posterior density of each element of the sites, by method, the reference filled.

    They are kernel estimates of the draws that were compared; :func:`pyro_latent.plotting.plot_posterior` has the exact
    ones of a guide's factors.

    Args:
        comparison: what :func:`pyro_latent.criticism.compare` returned.
        sites: which; all that have numbers by default.
        panels: how many elements at most, in the order of the sites.
        units: what is written below the panels, by site.
        ax: matplotlib Axes to draw on, an array of as many as there are panels; a new figure by default.

    Returns:
        The figure of ``ax``, or the new one.
    """
    chosen = list(comparison.elements(sites))[:panels]
    look = looks(comparison.entries)
    with panels_in(len(chosen), 4, 1.9, 1.5, 0.35, ax) as (figure, grid):
        for axes, (site, index) in zip(grid, chosen, strict=True):
            _draw_densities(axes, comparison, site, index, look)
            axes.set_xlabel((units or {}).get(site, ""))
        if ax is not None:
            grid[0].legend()
        else:
            handles = figure.axes[0].get_legend_handles_labels()
            figure.legend(*handles, loc="outside upper center", ncols=min(4, len(comparison.entries)))
    return figure


def _draw_densities(
    axes: Axes, comparison: Comparison, site: str, index: tuple[int, ...], look: Mapping[str, Look]
) -> None:
    for name, entry in comparison.entries.items():
        values = entry.draws.values[site].movedim(0, -1)[index].double().cpu().numpy()
        grid, height = density(values)
        if name == comparison.reference:
            axes.fill_between(grid, height, color=look[name].color, alpha=0.2, linewidth=0)
        axes.plot(grid, height, linewidth=1.2, label=name, **look[name]._asdict())
    axes.set_title(_name_of(site, index))
    axes.set(yticks=[], ylim=(0, None))
    axes.spines["left"].set_visible(False)
