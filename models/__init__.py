"""Textbook models, each an ordinary Pyro program with everything needed to check inference on it.

A module has a ``model`` and a hand-written ``guide`` for gradient inference. One of a Bayesian model has ``updates``
too: the textbook's closed-form coordinate updates as plain functions, keyed by the site (or the tuple of sites) that
they update. An update is called as ``update(q, *args, **kwargs)`` with the model's own arguments. ``q`` maps a site to
its current marginal posterior and a tuple of sites to their joint posterior; ``q.scales``, where there is one, is a
dict from a site to its scale. The update returns its block's new posterior. The updates use nothing of the engine, so
that they can judge it; ``factors``, ``gmm.process_model``, ``hidden_markov`` and ``regression`` have none.
Models with parameters, for maximum likelihood by EM, are ``gmm.ml_model``, ``hmm``, ``restricted_q`` and
``three_coins``; beside each stands its exact log likelihood. ``datasets`` has the data that the documentation fits.

The guides, and the estimators to train them by:

- ``normal_gamma.guide`` (mean, precision) and ``joint_guide`` (the exact posterior): ``Trace_ELBO``, or
  ``AnalyticKLELBO``.
- ``gmm.guide`` (weights, means with precisions): ``TraceEnum_ELBO``; ``gmm.full_guide`` (the same, and components):
  ``Trace_ELBO``, ``TraceGraph_ELBO`` and ``TraceEnum_ELBO``.
- ``lda.guide`` and ``lda.AmortizedGuide`` (beta, theta): ``Trace_ELBO`` on the model with ``marginal=True``;
  ``lda.full_guide`` (the same, and z): ``Trace_ELBO``, ``TraceGraph_ELBO`` and ``TraceEnum_ELBO``.
- ``bivariate_gaussian.guide``, ``two_modes.guide`` and ``restricted_q.guide`` (all latents, normal): ``Trace_ELBO``.
- ``regression.guide`` and ``factors.guide`` (all latents): ``Trace_ELBO``.
- ``hidden_markov.guide`` (initial, transition, means with precisions), ``poisson_guide`` and ``categorical_guide``
  (rates or probabilities in their place): ``TraceEnum_ELBO``.
- ``gmm.ml_guide``, ``hmm.guide`` and ``three_coins.guide`` (no site): ``TraceEnum_ELBO``.
- ``vae.VAE.guide`` (the code given an image): ``Trace_ELBO``, or ``vae.VAE_ELBO``.

A guide that meets a model with a discrete site that it lacks, under an estimator that does not sum it out, is an error.

The sources are listed in ``docs/sources.md``.
"""

from pyro_latent.models import (
    bivariate_gaussian,
    datasets,
    factors,
    gmm,
    hidden_markov,
    hmm,
    lda,
    normal_gamma,
    regression,
    restricted_q,
    three_coins,
    two_modes,
    vae,
)

__all__ = [
    "bivariate_gaussian",
    "datasets",
    "factors",
    "gmm",
    "hidden_markov",
    "hmm",
    "lda",
    "normal_gamma",
    "regression",
    "restricted_q",
    "three_coins",
    "two_modes",
    "vae",
]
