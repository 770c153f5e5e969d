"""A mixture of K Gaussians: Bayesian (``model``, ``process_model``), or by maximum likelihood (``ml_model``).

    weights ~ Dirichlet(a_0),  precision_k ~ Wishart(v_0, W_0),  mean_k | precision_k ~ N(m_0, (k_0 precision_k)⁻¹)
    component_n ~ Categorical(weights),  x_n ~ N(mean_k, precision_k⁻¹) for k = component_n

The priors have the names, meanings and defaults of scikit-learn's ``BayesianGaussianMixture``: a_0 is
``weight_concentration_prior``, k_0 ``mean_precision_prior``, m_0 ``mean_prior``, v_0 ``degrees_of_freedom_prior``, and
``covariance_prior`` is W_0⁻¹, so that the prior mean of a precision is v_0 W_0. With diagonal covariances each
dimension has its own precision, Gamma(v_0 / 2, ``covariance_prior`` / 2), which is the Wishart of one dimension; with
spherical ones all D dimensions share Gamma(D v_0 / 2, D ``covariance_prior`` / 2), of the same mean. (For both
scikit-learn takes E[log det precision] from a D-dimensional Wishart instead, so its fits are this model's only for
D = 1.) With tied ones all components share a precision, Wishart(v_0, W_0). (There scikit-learn divides the counts by K:
its fit is this model's with K v_0 and K times ``covariance_prior``.)

The posterior is approximated by q(component) q(weights) q(mean, precision), the last factor Normal-Wishart, tied or for
each component, or Normal-Gamma where covariances are diagonal or spherical.

``process_model`` is the same with the weights of a Dirichlet process, broken sticks, in place of the Dirichlet.

The maximum-likelihood form has parameters instead of priors, and covariances that may also be shared (tied) or one
number each (spherical): EM on it is the textbook's, and scikit-learn's ``GaussianMixture``.

Source: [4] (29)-(44) for the mixture and EM, (75) and (89) for the updates; Bishop 2006 §9.2, §10.2.
"""

from .bayesian import full_guide, guide, model, update_component, update_mean_precision, update_weights, updates
from .likelihood import ml_guide, ml_model, ml_start
from .predictive import predictive, process_predictive
from .priors import Covariance as Covariance
from .priors import default_priors
from .process import process_model
from .starts import initial_responsibilities

__all__ = [
    "default_priors",
    "full_guide",
    "guide",
    "initial_responsibilities",
    "ml_guide",
    "ml_model",
    "ml_start",
    "model",
    "predictive",
    "process_model",
    "process_predictive",
    "update_component",
    "update_mean_precision",
    "update_weights",
    "updates",
]
