r"""Normalizing flows: densities by change of variables, as models and as posteriors.

A flow is a chain of invertible maps f = f_K ∘ … ∘ f_1, each with parameters. Its log-determinants add up,

.. math:: \log p(x) = \log p_z(f(x)) + \sum_k \log |\det J_{f_k}|,

the maps being Pyro's own (``pyro.distributions.transforms``). There are three uses of one:

- :class:`FlowDensity`: a model of data, fitted by maximum likelihood; f takes data to noise, the *normalizing* way.
- :class:`FlowGuide`: the posterior of any model with continuous latents; f takes noise to latents, the *generative*
  way.
- :class:`FlowPosterior`: the posterior of a variational autoencoder, whose base an encoder gives for each datum.

Source: ``docs/sources.md`` [2], "normalizing flows"; Rezende and Mohamed 2015 (planar, radial); Dinh et al. 2017
(affine coupling); Kingma et al. 2016 (autoregressive); Durkan et al. 2019 (splines).
"""

from .density import FlowDensity, FlowFit
from .guide import FlowGuide
from .layers import ElementwiseAffine, ElementwiseSpline, Reverse, make_flow, push
from .posterior import FlowPosterior

__all__ = [
    "ElementwiseAffine",
    "ElementwiseSpline",
    "FlowDensity",
    "FlowFit",
    "FlowGuide",
    "FlowPosterior",
    "Reverse",
    "make_flow",
    "push",
]
