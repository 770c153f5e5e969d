"""Textbook models, each an ordinary Pyro program with everything needed to check inference on it.

A module of a Bayesian model has a ``model``, a hand-written ``guide`` for gradient inference, and ``updates``: the
textbook's closed-form coordinate updates as plain functions, keyed by the site (or the tuple of sites) that they
update. An update is called as ``update(q, *args, **kwargs)`` with the model's own arguments. ``q`` maps a site to its
current marginal posterior and a tuple of sites to their joint posterior; ``q.scales``, where there is one, is a dict
from a site to its scale. The update returns its block's new posterior. The updates use nothing of the
engine, so that they can judge it. Models with parameters, for maximum likelihood by EM, are ``gmm.ml_model``, ``hmm``,
``restricted_q`` and ``three_coins``; beside each stands its exact log likelihood.

The sources are listed in ``docs/sources.md``.
"""

from pyro_latent.models import (
    bivariate_gaussian,
    gmm,
    hmm,
    lda,
    normal_gamma,
    restricted_q,
    three_coins,
    two_modes,
    vae,
)

__all__ = ["bivariate_gaussian", "gmm", "hmm", "lda", "normal_gamma", "restricted_q", "three_coins", "two_modes", "vae"]
