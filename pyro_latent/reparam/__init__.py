"""Auxiliary sites that make a model conjugate, as reparameterizers of Pyro: one entry a class of densities.

``Conjugate`` is the strategy that uses them all; each is a ``Reparam`` to use alone.
"""

from .base import ConjugateReparam, MovedReparam, Site
from .conjugate import ENTRIES, Conjugate
from .counts import BetaBinomialReparam, DirichletMultinomialReparam, GammaPoissonReparam
from .gate import GateReparam
from .gated_logistic import GatedLogisticReparam
from .half_cauchy import HalfCauchyReparam
from .hidden_markov import DiscreteHMMReparam
from .laplace import LaplaceReparam
from .levels import LevelsReparam
from .linear_chain import GaussianHMMReparam, LinearHMMReparam
from .logistic import PolyaGammaReparam
from .masked import MaskedMixtureReparam
from .mixture import MixtureReparam
from .one_versus_each import OneVersusEachReparam
from .ordered_probit import OrderedProbitReparam
from .probit import ProbitReparam
from .renamed import RenamedReparam
from .student_t import StudentTReparam
from .sum_of_rates import PoissonOfSum, SumOfRatesReparam
from .zero_inflated import ZeroInflatedReparam

__all__ = [
    "ENTRIES",
    "BetaBinomialReparam",
    "Conjugate",
    "ConjugateReparam",
    "DirichletMultinomialReparam",
    "DiscreteHMMReparam",
    "GammaPoissonReparam",
    "GateReparam",
    "GatedLogisticReparam",
    "GaussianHMMReparam",
    "HalfCauchyReparam",
    "LaplaceReparam",
    "LevelsReparam",
    "LinearHMMReparam",
    "MaskedMixtureReparam",
    "MixtureReparam",
    "MovedReparam",
    "OneVersusEachReparam",
    "OrderedProbitReparam",
    "PoissonOfSum",
    "PolyaGammaReparam",
    "ProbitReparam",
    "RenamedReparam",
    "Site",
    "StudentTReparam",
    "SumOfRatesReparam",
    "ZeroInflatedReparam",
]
