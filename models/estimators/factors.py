"""``FactorAnalysis`` and ``PPCA``: low-dimensional descriptions of tables, with missing values."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from scipy.stats import multivariate_normal
from sklearn import decomposition
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_latent.errors import DataError, check_count
from pyro_latent.models import factors

from .base import Array, WideEstimator, check_number

__all__ = ["PPCA", "FactorAnalysis"]


class _Factors(ClassNamePrefixFeaturesOutMixin, TransformerMixin, WideEstimator):
    """A factor model; one of these says by ``_by_column`` whether each column has a noise of its own."""

    _by_column: ClassVar[bool]

    components_: Array
    mean_: Array
    noise_variance_: Any

    def __init__(
        self,
        n_components: int = 2,
        *,
        tol: float = 1e-7,
        max_iter: int = 1000,
        prior: float = 1e-3,
    ) -> None:
        self.n_components = n_components
        self.tol = tol
        self.max_iter = max_iter
        self.prior = prior

    # Fitting.

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit loadings, means and noise to rows.

        Args:
            X: the table, ``[N, D]`` with N >= 2: an array or a data frame; NaN is a missing value.
            y: ignored.

        Raises:
            ValueError: if a parameter or the data is not as said: an infinity, and a column with fewer than two
                different values.
        """
        self._check_fit()
        check_count("n_components", self.n_components)
        check_number("prior", self.prior, above=True)
        data, seen = self._entries(X, reset=True, ensure_min_samples=2)
        center, deviation = factors.column_moments(data, seen)
        data = torch.where(seen, data, center)
        hidden = None if bool(seen.all()) else seen
        kwargs = {"seen": hidden, "noise_by_column": self._by_column, "prior": self.prior}
        start = factors.start(data, *self._first(data, deviation), seen=hidden)
        self._ascend(factors.model, [start], (data, self.n_components), kwargs)
        self._set_attributes()
        return self

    def _entries(self, X: Any, **checks: Any) -> tuple[Tensor, Tensor]:
        """The table with zeros in place of NaN, and where it had none."""
        rows = self._read(X, ensure_all_finite="allow-nan", **checks)
        return rows.nan_to_num(), rows.isfinite()

    def _first(self, data: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Loadings and variances of the noise by maximum likelihood, of the table with means for missing values."""
        count = min(self.n_components, *data.shape)
        least = 1e-3 * deviation.square()
        found = self._likeliest(data.double().numpy(), count)
        loading = torch.zeros(data.shape[1], self.n_components, dtype=data.dtype)
        loading[:, :count] = torch.from_numpy(found.components_.T[:, :count])
        noise = torch.as_tensor(found.noise_variance_, dtype=data.dtype)
        return loading, torch.maximum(noise, least if self._by_column else least.mean())

    def _likeliest(self, table: Array, count: int) -> Any:
        unit = table.std(0)
        found = decomposition.FactorAnalysis(count, svd_method="lapack").fit(table / unit)
        found.components_, found.noise_variance_ = found.components_ * unit, found.noise_variance_ * unit**2
        return found

    def _set_attributes(self) -> None:
        q = self.guide_.posterior()
        self._loading, self._precision = q["loading"], q["noise_precision"].mean
        self.components_, self.mean_ = q["loading"].mean.mT.numpy(), q["mean"].mean.numpy()
        variance = 1 / self._precision
        self.noise_variance_ = variance.numpy() if self._by_column else float(variance)
        self._n_features_out = self.n_components

    # What was found.

    def transform(self, X: Any) -> Array:
        """The posterior means of the factors of rows, ``[N, K]``, by what is seen of them: the update of q(factor)."""
        data, seen = self._entries(X)
        loc, by_column = self._loading.mean, self._precision.expand(data.shape[1]) * seen
        squares = self._loading.covariance_matrix + loc.unsqueeze(-1) * loc.unsqueeze(-2)
        precision = torch.eye(loc.shape[1], dtype=data.dtype) + torch.einsum("nd,dkl->nkl", by_column, squares)
        residual = by_column * (data - torch.from_numpy(self.mean_))
        return torch.linalg.solve(precision, residual @ loc).numpy()

    def inverse_transform(self, X: Any) -> Array:
        """Rows, ``[N, D]``, at factors ``[N, K]``: ``X @ components_ + mean_``."""
        check_is_fitted(self)
        values = check_array(X, dtype=[np.float64, np.float32])
        if values.shape[1] != len(self.components_):
            raise DataError(
                f"Expected {len(self.components_)} factors in each row; got {values.shape[1]}. Write what transform "
                "gives."
            )
        rows: Array = values @ self.components_ + self.mean_
        return rows

    def get_covariance(self) -> Array:
        """The covariance of rows at the posterior means of the parameters, ``[D, D]``."""
        check_is_fitted(self)
        noise = np.broadcast_to(self.noise_variance_, self.mean_.shape)
        covariance: Array = self.components_.T @ self.components_ + np.diag(noise)
        return covariance

    def score_samples(self, X: Any) -> Array:
        """The log density of what is seen of each row, in nats, ``[N]``, at the posterior means of the parameters.

        (Averaged over the posterior of the loadings it has no closed form.)
        """
        data, seen = (t.numpy() for t in self._entries(X))
        covariance, found = self.get_covariance(), np.zeros(len(data), dtype=data.dtype)
        patterns, which = np.unique(seen, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            rows = which == number
            if pattern.any():
                normal = multivariate_normal(self.mean_[pattern], covariance[np.ix_(pattern, pattern)])
                found[rows] = normal.logpdf(data[rows][:, pattern])
        return found

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of :meth:`score_samples`."""
        return float(self.score_samples(X).mean())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class FactorAnalysis(_Factors):
    """Factor analysis with a posterior, and with missing values, fitted by exact coordinate ascent.

    The model is :func:`pyro_latent.models.factors.model`; each of its sites is a factor of
    q. It starts at scikit-learn's ``FactorAnalysis``, in its rotation. Where rows are many the densities are the same;
    where they are few, loadings shrink, those of factors that the data do not need to zero.

    Args:
        n_components: K, the number of factors.
        tol: the fit has converged once a sweep raises the ELBO by no more than this share of it.
        max_iter: the largest number of sweeps.
        prior: concentration and rate of the Gamma priors of the precisions.

    Attributes (after a fit):
        components_: posterior means of the loadings, ``[K, D]``.
        noise_variance_: of each column, (E precision)⁻¹, ``[D]``, in the unit of the data squared.
        mean_: posterior means of the columns' means, ``[D]``.
        lower_bound_: the exact ELBO in nats.
        lower_bounds_, n_iter_, converged_: the ELBO after each sweep, the number of sweeps, whether ``tol`` was met.
        guide_: the :class:`~pyro_latent.AutoConjugate` guide; model_args_, model_kwargs_: its model's arguments.
        n_features_in_, feature_names_in_: D, and the names of a data frame's columns.

    Source: Bishop 1999; Bishop 2006, §12.2.
    """

    _by_column = True


class PPCA(_Factors):
    """Probabilistic principal components with a posterior, and with missing values, by exact coordinate ascent.

    As :class:`FactorAnalysis` with one variance of the noise; it starts at the principal components, and
    ``components_`` are loadings, not unit vectors: the directions of the ``[K, D]`` rows, as long as the standard
    deviation that a factor gives.

    Args:
        n_components: K, the number of factors.
        tol: the fit has converged once a sweep raises the ELBO by no more than this share of it.
        max_iter: the largest number of sweeps.
        prior: concentration and rate of the Gamma priors of the precisions.

    Attributes (after a fit):
        noise_variance_: (E precision)⁻¹, a number; the others are those of :class:`FactorAnalysis`.

    Source: Tipping and Bishop 1999; Bishop 1999.
    """

    _by_column = False

    def _likeliest(self, table: Array, count: int) -> Any:
        """The closed form of Tipping and Bishop: loadings are scaled principal components."""
        found = decomposition.PCA(count, svd_solver="full").fit(table)
        excess = np.clip(found.explained_variance_ - found.noise_variance_, 0.0, None)
        found.components_ = np.sqrt(excess)[:, None] * found.components_
        return found
