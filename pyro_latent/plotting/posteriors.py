"""The exact density, or mass, of a factor of q."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from ..criticism.arguments import as_array
from ..criticism.pictures import density, looks, on_axes
from ..errors import ArgumentError, ArgumentTypeError, checked_call
from ..families.quantiles import quantile
from ..signatures import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_posterior"]

#: How many lines a picture has at most, and how many points a line of a density.
_LINES, _POINTS = 12, 400


@checked_call
def plot_posterior(
    fits: object, site: str, index: int | tuple[int, ...] | None = None, *, ax: Axes | None = None
) -> Figure:
    """The exact posterior density of a site's elements under q, or their mass where they are discrete.

    An element of a vector has its marginal: a normal, Student-t or Beta where the factor is a multivariate normal, a
    multivariate Student-t or a Dirichlet.

    Args:
        fits: a fitted guide with ``posterior()``, such as ``AutoConjugate``, or an estimator that has it as ``guide_``.
            To put several into one picture, a dict of these by method; it may also hold Pyro distributions, such as a
            known posterior, and draws, ``[S]`` + the shape of the site, whose density is a kernel estimate.
        site: the site's name.
        index: of an element of the site; all of them by default, where there are at most twelve.
        ax: matplotlib Axes to draw on; a new figure by default.

    Returns:
        The figure of ``ax``, or the new one.

    Raises:
        ValueError: if there is no such site or element, there are too many elements, or they have no density: matrices,
            and point estimates.
        TypeError: if a fit has no posterior.

    Example::

        plot_posterior({"CAVI": guide, "NUTS": mcmc.get_samples()["mean"]}, "mean")
    """
    found = fits if isinstance(fits, Mapping) else {"": fits}
    laws = {name: _law(name, fit, site) for name, fit in found.items()}
    lines = [(name, at) for name, law in laws.items() for at in _elements(law, site, index)]
    if len(lines) > _LINES:
        raise ArgumentError(
            f"Expected at most {_LINES} lines for site {site!r}; got {len(lines)}. Name an element: "
            f'plot_posterior(guide, "{site}", index=0).'
        )
    titles = {line: _title(*line, site, len({at for _, at in lines}) > 1) for line in lines}
    with on_axes(ax, 4.0, 2.6) as (figure, axes):
        is_mass = False
        for line, look in zip(lines, looks(titles.values()).values(), strict=True):
            is_mass |= _draw(axes, laws[line[0]], line[1], titles[line] or None, look._asdict())
        axes.set(xlabel=_title("", _one_index(lines), site, True), ylabel="probability" if is_mass else "density")
        axes.set_ylim(bottom=0)
        if any(titles.values()):
            axes.legend()
    return figure


def _one_index(lines: list[tuple[str, tuple[int, ...]]]) -> tuple[int, ...]:
    """The element that all lines are of, or none."""
    indices = {at for _, at in lines}
    return indices.pop() if len(indices) == 1 else ()


def _title(name: str, at: tuple[int, ...], site: str, with_index: bool) -> str:
    element = f"{site}[{', '.join(map(str, at))}]" if at else site
    return ", ".join(part for part in (name, element if with_index else "") if part)


# ------------------------------------------------------------------------------------------------- what is to be drawn


def _law(name: str, fit: Any, site: str) -> Any:
    """What a fit says of a site: draws as an array, or distributions of its elements with the site's shape."""
    if isinstance(fit, Tensor | np.ndarray):
        return as_array(fit).astype(float)
    if hasattr(fit, "log_prob") and hasattr(fit, "event_shape"):
        return _elementwise(fit, site)
    guide = getattr(fit, "guide_", fit)
    if not callable(getattr(guide, "posterior", None)):
        raise ArgumentTypeError(
            "Expected a guide with posterior(), an estimator that has one, a distribution, or draws"
            f"{f' of {name!r}' if name else ''}; got {type(fit).__name__}. Of another guide, give its draws: "
            f'{{"SVI": Predictive(model, guide=guide, num_samples=1000)(data)["{site}"]}}.'
        )
    q = guide.posterior()
    if site not in q:
        raise ArgumentError(f"Expected a site among {', '.join(map(str, q))}; got {site!r}. Name one of these.")
    return _elementwise(q[site], site)


def _elementwise(law: Any, site: str) -> Any:
    """The marginals of the elements of a distribution's events, all as one batch."""
    while isinstance(law, torch.distributions.Independent):
        law = law.base_dist
    if isinstance(law, torch.distributions.Dirichlet):
        one = law.concentration
        return dist.Beta(one, one.sum(-1, keepdim=True) - one)
    if isinstance(law, dist.MultivariateStudentT):
        scale = law.scale_tril.square().sum(-1).sqrt()
        return dist.StudentT(law.df.unsqueeze(-1), law.loc.expand(scale.shape), scale)
    if isinstance(law, torch.distributions.MultivariateNormal):
        return dist.Normal(law.loc, law.variance.sqrt())
    if law.event_shape or isinstance(law, dist.Delta):
        raise ArgumentError(
            f"Expected a site whose elements have densities of their own; got {site!r}, "
            f"{_in_words(law)}. Draw another site, or print guide.summary()."
        )
    return law


def _in_words(law: Any) -> str:
    if isinstance(law, dist.Delta):
        return "a point estimate"
    return f"a {type(law).__name__} of event shape {list(law.event_shape)}"


def _elements(law: Any, site: str, index: int | tuple[int, ...] | None) -> list[tuple[int, ...]]:
    """The indices of the elements to draw.

    Raises:
        ArgumentError: if there is no such element.
    """
    shape = law.shape[1:] if isinstance(law, np.ndarray) else tuple(law.batch_shape)
    if index is None:
        return list(np.ndindex(*shape))
    at = index if isinstance(index, tuple) else (index,)
    if len(at) != len(shape) or not all(-n <= i < n for i, n in zip(at, shape, strict=True)):
        raise ArgumentError(
            f"Expected the index of an element of site {site!r}, of shape {list(shape)}; got {index!r}. Write "
            f"index={tuple(0 for _ in shape)!r}."
        )
    return [tuple(int(i) % n for i, n in zip(at, shape, strict=True))]


# ------------------------------------------------------------------------------------------------------------- drawing


def _draw(axes: Axes, law: Any, at: tuple[int, ...], label: str | None, look: dict[str, Any]) -> bool:
    """The line of a density, or the stems of a mass; whether it is the latter."""
    if isinstance(law, np.ndarray):
        axes.plot(*density(np.moveaxis(law, 0, -1)[at]), linewidth=1.2, label=label, **look)
        return False
    is_mass = bool(law.support.is_discrete)
    x, y = _mass(law, at) if is_mass else _density(law, at)
    if is_mass:
        axes.vlines(x, 0, y, linewidth=1.2, **{"color": look["color"]})
    axes.plot(x, y, **(look | {"marker": "o", "markersize": 4, "linestyle": ""} if is_mass else look), label=label)
    return is_mass


def _at(law: Any, values: Tensor, at: tuple[int, ...]) -> Array:
    """The density of one element at values ``[P]``."""
    grid = values.reshape(-1, *[1] * len(law.batch_shape)).expand(-1, *law.batch_shape)
    return as_array(law.log_prob(grid).exp()[(slice(None), *at)]).astype(float)


def _mass(law: Any, at: tuple[int, ...]) -> tuple[Array, Array]:
    values = law.enumerate_support(expand=False).flatten()
    return as_array(values).astype(float), _at(law, values, at)


def _density(law: Any, at: tuple[int, ...]) -> tuple[Array, Array]:
    """Points where the density is not near zero, and its heights."""
    ends = [quantile(law, level).expand(law.batch_shape)[at] for level in (0.0005, 0.25, 0.75, 0.9995)]
    spread = ends[2] - ends[1]
    low, high = torch.maximum(ends[0], ends[1] - 4 * spread), torch.minimum(ends[3], ends[2] + 4 * spread)
    values = low + (high - low) * torch.linspace(0, 1, _POINTS, dtype=low.dtype, device=low.device)
    return as_array(values).astype(float), _at(law, values, at)
