"""Textbook models, each an ordinary Pyro program with everything needed to check inference on it.

Every module has a ``model``, a hand-written ``guide`` for gradient inference, and ``updates``: the textbook's
closed-form coordinate updates as plain functions, keyed by the site (or the tuple of sites) that they update. An update
is called as ``update(q, *args, **kwargs)`` with the model's own arguments. ``q`` maps a site to its current marginal
posterior and a tuple of sites to their joint posterior; ``q.scales``, where there is one, is a dict from a site to the
scale of its plates. The update returns its block's new posterior. The updates use nothing of the engine, so that they
can judge it.

The sources are listed in ``docs/sources.md``.
"""

from pyro_latent.models import gmm, normal_gamma

__all__ = ["gmm", "normal_gamma"]
