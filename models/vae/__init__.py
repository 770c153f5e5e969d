"""Variational autoencoders on Pyro: the model and its amortised guide, training, evaluation, and images.

``VAE`` holds the two programs, ``fit`` trains them, ``diagnose`` and ``importance_weighted_bounds`` say how well.
``docs/vae.md`` explains all of it; the source is [4] §3.
"""

from .evaluation import Bound, Diagnosis, PosteriorCollapseWarning, diagnose, importance_weighted_bounds
from .images import binarize, load_digits, load_mnist, read_idx
from .model import VAE, BernoulliImages
from .objective import VAE_ELBO, Terms
from .store import NonFiniteLossError
from .training import History, anneal_linearly, fit

__all__ = [
    "VAE",
    "VAE_ELBO",
    "BernoulliImages",
    "Bound",
    "Diagnosis",
    "History",
    "NonFiniteLossError",
    "PosteriorCollapseWarning",
    "Terms",
    "anneal_linearly",
    "binarize",
    "diagnose",
    "fit",
    "importance_weighted_bounds",
    "load_digits",
    "load_mnist",
    "read_idx",
]
