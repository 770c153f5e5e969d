"""Estimators with scikit-learn's face: data in, a fitted object out, and no Pyro to know.

Each is a thin face on an ordinary Pyro model, which it names, and which is the thing to extend. ``fit`` runs coordinate
ascent on that model, in float64, or float32 for data of that dtype. What it found are NumPy arrays with scikit-learn's
names, and ``guide_``, the fitted :class:`~pyro_latent.AutoConjugate` guide. A fit draws from ``random_state`` alone,
and leaves torch's random state and default dtype, and Pyro's parameters, as they are.

They need scikit-learn: ``pip install 'pyro-latent[estimators]'``.
"""

from pyro_latent.errors import MissingPackageError

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError:
    raise MissingPackageError(
        "Expected scikit-learn for pyro_latent.models.estimators; got none. Run: pip install 'pyro-latent[estimators]'"
    ) from None

from .discrete_chains import CategoricalHMM, PoissonHMM
from .factors import PPCA, FactorAnalysis
from .gaussian_mixture import GaussianMixture
from .hidden_markov import HiddenMarkovModel
from .linear import ARDRegression, BayesianRidge

__all__ = [
    "PPCA",
    "ARDRegression",
    "BayesianRidge",
    "CategoricalHMM",
    "FactorAnalysis",
    "GaussianMixture",
    "HiddenMarkovModel",
    "PoissonHMM",
]
