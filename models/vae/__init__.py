"""Variational autoencoders on Pyro: the model and its amortised guide, training, evaluation, and images.

``VAE`` holds the two programs, and fits, encodes, decodes and draws; ``diagnose`` and ``importance_weighted_bounds``
say how well.
``docs/vae.md`` explains all of it; the source is [4] §3.
"""

from .evaluation import Bound, Diagnosis, PosteriorCollapseWarning, diagnose, importance_weighted_bounds
from .front import VAE
from .images import binarize, load_digits, load_mnist, read_idx
from .model import BernoulliImages
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
