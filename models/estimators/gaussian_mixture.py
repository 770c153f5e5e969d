"""``GaussianMixture``: a Bayesian mixture of Gaussians with the names of scikit-learn's ``BayesianGaussianMixture``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

import pyro.distributions as dist
import torch
from sklearn.base import DensityMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_latent.errors import check_choice, check_count
from pyro_latent.models import gmm
from pyro_latent.models.arguments import expected_log
from pyro_latent.models.gmm.densities import expected_log_density
from pyro_latent.models.gmm.moments import moments_of
from pyro_latent.models.gmm.priors import complete_priors
from pyro_latent.models.gmm.process import expected_log_stick_weights

from .base import COVARIANCES, Array, Estimator, drawing, generator_of, tensors_of, weights_of

__all__ = ["GaussianMixture"]

_PRIORS = (
    "weight_concentration_prior",
    "mean_precision_prior",
    "mean_prior",
    "degrees_of_freedom_prior",
    "covariance_prior",
)
_PROCESS = "dirichlet_process"


class GaussianMixture(DensityMixin, Estimator):
    """Clusters by a Bayesian mixture of Gaussians, fitted by exact coordinate ascent.

    The model is :func:`pyro_latent.models.gmm.model`, or with ``"dirichlet_process"``
    :func:`~pyro_latent.models.gmm.process_model`; q is q(component) q(weights) Π_k q(mean_k, precision_k), where a
    tied precision is one for all k. The priors are those of scikit-learn's ``BayesianGaussianMixture``, and with full
    covariances and its ``reg_covar=0`` so is the posterior. The others differ where scikit-learn's updates are those of
    no model:

    - ``"diag"`` and ``"spherical"``: it takes E log det precision from a Wishart of D dimensions; here it is that of
      Gammas with the same mean, so that fits are the same for D = 1. A spherical precision is
      Gamma(D v_0 / 2, D ``covariance_prior`` / 2), v_0 the ``degrees_of_freedom_prior``.
    - ``"tied"``: it counts each point as 1 / K of one. Its fit with v_0 and ``covariance_prior`` is this one with K
      times both, and its ``degrees_of_freedom_`` is a K-th of that here.

    Args:
        n_components: K, the number of components; of a Dirichlet process the most that points lie in.
        covariance_type: ``"full"``, ``"tied"`` (one covariance for all), ``"diag"`` or ``"spherical"``.
        tol: the fit has converged once a sweep raises the ELBO by no more than this share of it.
        max_iter: the largest number of sweeps of each start.
        n_init: the number of starts, at clusters of k-means; the one with the highest ELBO is kept.
        weight_concentration_prior_type: ``"dirichlet_process"`` or ``"dirichlet_distribution"``.
        weight_concentration_prior: concentration of every weight, or of every stick; default 1 / K.
        mean_precision_prior: how many points the prior of a mean is worth; default 1.
        mean_prior: prior mean of the means, ``[D]``, in the unit of the data; default the data's mean.
        degrees_of_freedom_prior: of the precisions, above D - 1 (full, tied) or 0 (diag, spherical); default D.
        covariance_prior: ``[D, D]`` (full, tied), ``[D]`` (diag) or a number (spherical), in the unit of the data
            squared; default the data's.
        random_state: a seed, a NumPy state, or None for NumPy's global one: for the starts, and for :meth:`sample`.

    Attributes (after a fit):
        weights_: the mean weights, ``[K]``; of a Dirichlet process without what lies beyond K, scaled to sum to 1.
        means_: the posterior means of the means, ``[K, D]``.
        covariances_, precisions_: (E precision_k)⁻¹ and E precision_k, ``[K, D, D]`` (full), ``[D, D]`` (tied),
            ``[K, D]`` (diag) or ``[K]`` (spherical).
        weight_concentration_: ``[K]``; of a Dirichlet process the two parameters of the sticks' Beta factors.
        mean_precision_, degrees_of_freedom_: of q(mean_k, precision_k), ``[K]``; the latter of a tied precision is one
            number.
        lower_bound_: the exact ELBO in nats, all constants included (scikit-learn leaves out those of the priors).
        lower_bounds_, n_iter_, converged_: the ELBO after each sweep, the number of sweeps, whether ``tol`` was met.
        guide_: the :class:`~pyro_latent.AutoConjugate` guide; model_args_, model_kwargs_: its model's arguments.
        n_features_in_, feature_names_in_: D, and the names of a data frame's columns.

    Example::

        mixture = GaussianMixture(n_components=10, random_state=0).fit(X)
        labels = mixture.predict(X_new)
        log_density = mixture.score_samples(X_new)

    Source: Bishop 2006, §10.2; Blei and Jordan 2006.
    """

    weights_: Array
    means_: Array
    covariances_: Array
    precisions_: Array
    weight_concentration_: Array | tuple[Array, Array]
    mean_precision_: Array
    degrees_of_freedom_: Array

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-8,
        max_iter: int = 1000,
        n_init: int = 1,
        weight_concentration_prior_type: str = _PROCESS,
        weight_concentration_prior: Any = None,
        mean_precision_prior: float | None = None,
        mean_prior: Any = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: Any = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
        self.random_state = random_state

    # Fitting.

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit the mixture to points.

        Args:
            X: the points, ``[N, D]`` with N >= 2: an array or a data frame, all finite.
            y: ignored.
            sample_weight: how many observations each point counts as, ``[N]``, at least 0; default 1 each. A point of
                weight 2 is that point twice, and one of weight 0 is left out; the starts do not read them.

        Raises:
            ValueError: if a parameter or the data is not as said; NaN among it, and a column without spread.
        """
        self._check()
        data = self._read(X, reset=True, ensure_min_samples=2)
        each = weights_of(sample_weight, data)
        if each is not None:
            data, each = data[each > 0], each[each > 0]
        covariance = COVARIANCES[self.covariance_type]
        given = tensors_of({name: getattr(self, name) for name in _PRIORS}, data.dtype)
        priors = complete_priors(data, self.n_components, covariance, **given, sample_weight=each)
        kwargs: dict[str, Any] = {"covariance": covariance, **priors.arguments(), "sample_weight": each}
        args = data, self.n_components
        self._ascend(self._model, self._starts(data), args, kwargs, blocks=[("mean", "precision")])
        self._set_attributes()
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Array:
        """Fit, and the most probable component of each point, ``[N]``."""
        return self.fit(X, sample_weight=sample_weight).predict(X)

    @property
    def _is_process(self) -> bool:
        return self.weight_concentration_prior_type == _PROCESS

    @property
    def _model(self) -> Callable[..., None]:
        return gmm.process_model if self._is_process else gmm.model

    def _check(self) -> None:
        self._check_fit()
        check_count("n_components", self.n_components)
        check_count("n_init", self.n_init)
        check_choice("covariance_type", self.covariance_type, list(COVARIANCES))
        kinds = [_PROCESS, "dirichlet_distribution"]
        check_choice("weight_concentration_prior_type", self.weight_concentration_prior_type, kinds)

    def _starts(self, data: Tensor) -> Iterator[dict[str, Tensor]]:
        generator = generator_of(self.random_state)
        for _ in range(self.n_init):
            yield {"component": gmm.initial_responsibilities(data, self.n_components, generator=generator)}

    def _set_attributes(self) -> None:
        q = self.guide_.posterior(joint=True)
        block = q["mean", "precision"]
        self._posterior = q = {name: value for name, value in q.items() if name != "component"}
        self._predictive = self._predictive_of(q)
        self.means_ = block.loc.numpy()
        found = moments_of(block)
        self.mean_precision_, self.degrees_of_freedom_ = found.mean_precision.numpy(), found.degrees_of_freedom.numpy()
        self.precisions_, self.covariances_ = found.precision.numpy(), found.covariance.numpy()
        weights = self._predictive.mixture_distribution.probs[: self.n_components]
        self.weights_ = (weights / weights.sum()).numpy()
        if self._is_process:
            self.weight_concentration_ = q["stick"].concentration1.numpy(), q["stick"].concentration0.numpy()
        else:
            self.weight_concentration_ = q["weights"].concentration.numpy()

    def _predictive_of(self, q: Any) -> dist.MixtureSameFamily:
        if self._is_process:
            return gmm.process_predictive(q, *self.model_args_, **self.model_kwargs_)
        return gmm.predictive(q)

    # What was found.

    def predict_proba(self, X: Any) -> Array:
        """The probabilities of the K components for each point under q, ``[N, K]``: the update of q(component)."""
        data, q = self._read(X), self._posterior
        log_weights = expected_log_stick_weights(q["stick"]) if "stick" in q else expected_log(q["weights"])
        logits = log_weights + expected_log_density(data, q["mean", "precision"])
        return logits.softmax(-1).numpy()

    def predict(self, X: Any) -> Array:
        """The most probable component of each point, ``[N]``."""
        return self.predict_proba(X).argmax(1)

    def score_samples(self, X: Any) -> Array:
        """The log density of each point, in nats, ``[N]``, averaged over the posterior: of a mixture of Student's t.

        It is :func:`pyro_latent.models.gmm.predictive`; of a Dirichlet process it counts in the components beyond K,
        by their prior (:func:`~pyro_latent.models.gmm.process_predictive`).
        """
        data = self._read(X)
        return self._predictive.log_prob(data).numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of :meth:`score_samples`."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> tuple[Array, Array]:
        """Draw points from the density of :meth:`score_samples`.

        Returns:
            Points ``[n_samples, D]`` and their components ``[n_samples]``; K for one beyond the first K, which a
            Dirichlet process has.
        """
        check_is_fitted(self)
        count = check_count("n_samples", n_samples)
        mixture = self._predictive
        with drawing(self.random_state):
            labels = mixture.mixture_distribution.sample((count,))
            points = mixture.component_distribution.sample((count,))
        return points[torch.arange(count), labels].numpy(), labels.numpy()
