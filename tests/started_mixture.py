"""scikit-learn's mixture, for tests that compare with it."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.mixture import BayesianGaussianMixture


class StartedMixture(BayesianGaussianMixture):
    """scikit-learn's mixture from given responsibilities."""

    responsibilities: np.ndarray

    def _initialize_parameters(self, X: np.ndarray, random_state: Any, xp: Any = None) -> None:
        self._initialize(X, self.responsibilities)
