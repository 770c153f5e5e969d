"""Pictures of posteriors: races, bounds, densities, ELBO traces, mixtures over their data, topics, paths.

Each function draws on the matplotlib ``Axes`` given as ``ax=``, or on a new picture, and returns the ``Figure``, which
shows itself in a notebook and is written by ``figure.savefig(path)``. A method has one color and one line style in all
of them, by :func:`looks`. matplotlib is imported when one is called, and its global state stays as it is. What ArviZ
draws is not here: give it what :func:`~pyro_latent.to_arviz` makes.
"""

from ..criticism.comparison import plot_bounds, plot_densities
from ..criticism.pictures import looks
from .mixtures import ellipse as ellipse
from .mixtures import plot_mixture
from .paths import plot_path
from .posteriors import plot_posterior
from .races import plot_race
from .topics import plot_topics
from .traces import plot_elbo

__all__ = [
    "looks",
    "plot_bounds",
    "plot_densities",
    "plot_elbo",
    "plot_mixture",
    "plot_path",
    "plot_posterior",
    "plot_race",
    "plot_topics",
]
