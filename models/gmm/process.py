"""The mixture whose weights are those of a Dirichlet process: sticks in place of a Dirichlet.

Source: Blei and Jordan 2006, "Variational inference for Dirichlet process mixtures"; Kurihara, Welling and Vlassis 2007
for the process that is cut under q alone, as in scikit-learn.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_latent.models.arguments import Guided, counted

from .densities import normal_of_component, sample_components
from .priors import Covariance, Prior, complete_priors


def process_model(
    data: Tensor,
    num_components: int,
    *,
    covariance: Covariance = "full",
    weight_concentration_prior: Prior = None,
    mean_precision_prior: Prior = None,
    mean_prior: Tensor | None = None,
    degrees_of_freedom_prior: Prior = None,
    covariance_prior: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> None:
    """A mixture of a Dirichlet process; sites ``stick``, ``precision``, ``mean``, ``component``, ``inside``, ``obs``.

        stick_k ~ Beta(1, α),  weight_k = stick_k Π_{j<k} (1 - stick_j),  k = 1, 2, …

    and the components as in :func:`~pyro_latent.models.gmm.model`. The process goes on for ever; no point is taken to
    lie in a component beyond the first K, and the factor ``inside`` says so: of K weights the last, which is what the
    sticks before it leave, counts times ``stick_K``. The ELBO is thus a bound on the evidence of the process itself.

    Args:
        data: the points, shape ``[N, D]``, floating; its dtype and device are the model's.
        num_components: K, the most components that points lie in, at least 1.
        covariance: ``"full"`` or ``"diagonal"``.
        weight_concentration_prior: α of every stick, scalar or ``[K]``; default 1 / K.
        mean_precision_prior, mean_prior, degrees_of_freedom_prior, covariance_prior: as in
            :func:`~pyro_latent.models.gmm.model`.
        sample_weight: how many observations each point counts as, ``[N]``, positive; default 1 each.

    Raises:
        DataError: if the data is not a floating ``[N, D]`` tensor with N, D >= 1, or has no empirical covariance.
        ValueError: if K, ``covariance`` or a prior is not as above.

    Source: Blei and Jordan 2006, §3; scikit-learn, ``BayesianGaussianMixture``.
    """
    priors = complete_priors(
        data,
        num_components,
        covariance,
        weight_concentration_prior=weight_concentration_prior,
        mean_precision_prior=mean_precision_prior,
        mean_prior=mean_prior,
        degrees_of_freedom_prior=degrees_of_freedom_prior,
        covariance_prior=covariance_prior,
        sample_weight=sample_weight,
    )
    with pyro.plate("sticks", num_components):
        stick = pyro.sample("stick", dist.Beta(data.new_tensor(1.0), priors.weight_concentration))
    weights = broken(stick[..., :-1]) if num_components > 1 else data.new_ones(1)
    within = pad(stick[..., -1:], (num_components - 1, 0), value=1.0)
    mean, precision = sample_components(priors, covariance)
    with pyro.plate("data", len(data)), counted(sample_weight):
        with Guided("Write TraceEnum_ELBO."):
            component = pyro.sample("component", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.factor("inside", within[component].log())
        pyro.sample("obs", normal_of_component(mean, precision, component, covariance), obs=data)


def broken(stick: Tensor) -> Tensor:
    """The lengths ``[K + 1]`` that K breaks of a stick make: each takes a share of the rest; the last is all of it."""
    return pad(stick, (0, 1), value=1.0) * pad((1 - stick).cumprod(-1), (1, 0), value=1.0)


def expected_log_stick_weights(stick: dist.Beta) -> Tensor:
    """E log weight_k of K sticks, shape ``[K]``."""
    total = torch.digamma(stick.concentration1 + stick.concentration0)
    rest = torch.digamma(stick.concentration0) - total
    return torch.digamma(stick.concentration1) - total + rest.cumsum(-1) - rest


def mean_stick_weights(stick: dist.Beta) -> Tensor:
    """E weight_k of K sticks, and of all weights beyond them, shape ``[K + 1]``."""
    return broken(stick.mean)
