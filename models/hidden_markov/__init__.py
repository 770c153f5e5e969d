"""A Bayesian hidden Markov model: sequences of vectors, counts or symbols, of one length or of several.

    initial ~ Dirichlet(startprob_prior),  transition_k ~ Dirichlet(transmat_prior)
    state_1 ~ Categorical(initial),  state_t | state_{t-1} ~ Categorical(transition[state_{t-1}])

and what a state emits is, for k = state_t,

- in ``model`` a Gaussian vector, obs_t ~ N(mean_k, precision_k⁻¹), with the components and the priors of
  :mod:`~pyro_latent.models.gmm`;
- in ``poisson_model`` counts, obs_td ~ Poisson(rate_kd) with rate_kd ~ Gamma(lambdas_prior, lambdas_weight);
- in ``categorical_model`` a symbol, obs_t ~ Categorical(emission_k) with emission_k ~ Dirichlet(emissionprob_prior).

(:mod:`~pyro_latent.models.hmm` is a chain with parameters, for maximum likelihood.) The states of a sequence are one
factor of q, and :func:`smooth` finds it by the forward-backward recursions, in time that is linear in its length.

Source: MacKay 1997, "Ensemble learning for hidden Markov models"; Bishop 2006 §13.2, (13.34)-(13.43).
"""

from .discrete import categorical_guide, categorical_model, poisson_guide, poisson_model
from .gaussian import guide, model
from .recursions import Smoothed, best_path, smooth

__all__ = [
    "Smoothed",
    "best_path",
    "categorical_guide",
    "categorical_model",
    "guide",
    "model",
    "poisson_guide",
    "poisson_model",
    "smooth",
]
