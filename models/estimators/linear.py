"""``BayesianRidge`` and ``ARDRegression``: linear regression with the names of scikit-learn's."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils.validation import validate_data
from torch import Tensor

from pyro_latent.errors import check_choice
from pyro_latent.models import regression
from pyro_latent.models.arguments import mean_of

from .base import Array, WideEstimator, check_number, weights_of

__all__ = ["ARDRegression", "BayesianRidge"]


class _Linear(RegressorMixin, WideEstimator):
    """A linear regression; one of these says by ``_ard`` whether each weight has a precision of its own."""

    _ard: ClassVar[bool]

    coef_: Array
    intercept_: float
    alpha_: float
    lambda_: Any
    sigma_: Array

    def __init__(
        self,
        *,
        max_iter: int = 1000,
        tol: float = 1e-8,
        alpha_1: float = 1e-6,
        alpha_2: float = 1e-6,
        lambda_1: float = 1e-6,
        lambda_2: float = 1e-6,
        relative: bool = False,
        fit_intercept: bool = True,
    ) -> None:
        self.max_iter = max_iter
        self.tol = tol
        self.alpha_1 = alpha_1
        self.alpha_2 = alpha_2
        self.lambda_1 = lambda_1
        self.lambda_2 = lambda_2
        self.relative = relative
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the weights to rows and their targets.

        Args:
            X: features, ``[N, D]`` with N >= 2: an array or a data frame, all finite.
            y: targets, ``[N]``.
            sample_weight: how many observations each row counts as, ``[N]``, at least 0; default 1 each. A row of
                weight 2 is that row twice, and one of weight 0 is left out.

        Raises:
            ValueError: if a parameter or the data is not as said; NaN among it.
        """
        priors = self._checked_priors()
        X, y = validate_data(
            self, X, y, dtype=[np.float64, np.float32], y_numeric=True, multi_output=False, ensure_min_samples=2
        )
        features = torch.tensor(X)
        target = torch.tensor(np.asarray(y)).to(features.dtype)
        weights = weights_of(sample_weight, features)
        if weights is not None:
            features, target, weights = (t[weights > 0] for t in (features, target, weights))
        shape = {"relative": self.relative, "intercept": self.fit_intercept}
        center = mean_of(features, weights) if self.fit_intercept else None
        kwargs = {**priors, **shape, "ard": self._ard, "center": center, "sample_weight": weights}
        self._ascend(regression.model, [None], (features, target), kwargs, blocks=regression.joint_sites(**shape))
        self._set_attributes(features.new_zeros(features.shape[1]) if center is None else center)
        return self

    def _checked_priors(self) -> dict[str, float]:
        self._check_fit()
        for name in ("relative", "fit_intercept"):
            check_choice(name, getattr(self, name), [False, True])
        priors = {name: getattr(self, name) for name in ("alpha_1", "alpha_2", "lambda_1", "lambda_2")}
        for name, value in priors.items():
            check_number(name, value, above=True)
        return priors

    def _set_attributes(self, center: Tensor) -> None:
        """Read the posterior, in which the features are taken from a center."""
        q, sites = self.guide_.posterior(), ["weights", *["intercept"] * self.fit_intercept]
        noise, mean = q["noise_precision"], q["weights"].mean
        self._center, self._covariance = center, self._covariance_of(sites)
        level = q["intercept"].mean if self.fit_intercept else mean.new_zeros(())
        self.coef_, self.intercept_ = mean.numpy(), float(level - center @ mean)
        self.sigma_ = self._covariance[: len(mean), : len(mean)].numpy()
        weights = q["weight_precision"].mean
        self.alpha_ = float(noise.mean)
        precision = weights * noise.mean if self.relative else weights
        self.lambda_ = precision.numpy() if self._ard else float(precision)
        excess = noise.concentration - 1
        self._noise_variance = float(noise.rate / excess) if float(excess) > 0 else float("inf")

    def _covariance_of(self, sites: list[str]) -> Tensor:
        """The posterior covariance of the weights, and of the intercept after them."""
        q = self.guide_.posterior(joint=True)
        joint = regression.joint_sites(relative=self.relative, intercept=self.fit_intercept)
        if not joint:
            covariance: Tensor = q["weights"].covariance_matrix
            return covariance
        block = q[joint[0]]
        size = {"weights": self.n_features_in_, "intercept": 1}
        rows = [torch.cat([block.covariance(a, b).reshape(size[a], size[b]) for b in sites], -1) for a in sites]
        return torch.cat(rows)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The mean of the targets of rows, ``[N]``, and with ``return_std`` their standard deviation, in that order.

        The deviation is that of a new target, in the unit of the target: of the noise, whose precision is averaged
        over, and of the weights and the intercept. With ``relative`` such a target is exactly a Student's t.
        """
        rows = self._read(X)
        from_center = rows - self._center
        mean = rows @ torch.from_numpy(self.coef_) + self.intercept_
        if not return_std:
            return mean.numpy()
        if self.fit_intercept:
            from_center = torch.cat([from_center, from_center.new_ones(len(rows), 1)], -1)
        variance = ((from_center @ self._covariance) * from_center).sum(-1) + self._noise_variance
        return mean.numpy(), variance.sqrt().numpy()


class BayesianRidge(_Linear):
    """Linear regression in which the data choose how far weights shrink, fitted by exact coordinate ascent.

    The model is :func:`pyro_latent.models.regression.model`; q is q(weights, intercept) q(noise precision)
    q(weight precision), or with ``relative`` q(weights, intercept, noise precision) q(weight precision). Without an
    intercept the posterior is that of scikit-learn's ``BayesianRidge``, whose maximum of the evidence is a fixed point
    of the same updates; with one, this takes its uncertainty into account, which scikit-learn does not.

    Args:
        max_iter: the largest number of sweeps.
        tol: the fit has converged once a sweep raises the ELBO by no more than this share of it.
        alpha_1, alpha_2: concentration and rate of the Gamma prior of the noise's precision, positive.
        lambda_1, lambda_2: the same of the weights' precision.
        relative: whether the weights' precision is relative to the noise's.
        fit_intercept: whether there is an intercept; its prior is flat.

    Attributes (after a fit):
        coef_: posterior means of the weights, ``[D]``; sigma_: their covariance, ``[D, D]``.
        intercept_: posterior mean of the intercept, at features of zero; 0.0 without one.
        alpha_: posterior mean of the noise's precision; lambda_: of the weights' precision (with ``relative`` of the
            product of both).
        lower_bound_: the exact ELBO in nats, of the flat intercept up to a constant.
        lower_bounds_, n_iter_, converged_: the ELBO after each sweep, the number of sweeps, whether ``tol`` was met.
        guide_: the :class:`~pyro_latent.AutoConjugate` guide; model_args_, model_kwargs_: its model's arguments.
        n_features_in_, feature_names_in_: D, and the names of a data frame's columns.

    Source: MacKay 1992; Bishop 2006, §10.3.
    """

    _ard = False


class ARDRegression(_Linear):
    """Linear regression in which weights that the data do not need go to zero, fitted by exact coordinate ascent.

    Each weight has a precision of its own. The model is :func:`pyro_latent.models.regression.model` with ``ard``; see
    :class:`BayesianRidge` for q. No weight is cut off: ``coef_`` of a superfluous one is small, and not zero.

    Args:
        max_iter: the largest number of sweeps; many are needed where precisions go far.
        tol: the fit has converged once a sweep raises the ELBO by no more than this share of it.
        alpha_1, alpha_2: concentration and rate of the Gamma prior of the noise's precision, positive.
        lambda_1, lambda_2: the same of each weight's precision.
        relative: whether the weights' precisions are relative to the noise's.
        fit_intercept: whether there is an intercept; its prior is flat.

    Attributes (after a fit):
        lambda_: posterior means of the weights' precisions, ``[D]`` (with ``relative`` of their product with the
            noise's); the others are those of :class:`BayesianRidge`.

    Source: Tipping 2001; Bishop 2006, §7.2.
    """

    _ard = True
