"""Pyro distributions that Pyro lacks: joint ones of a mean and a precision, and reparameterised ones of the notes.

``joint`` has Normal-Gamma and Normal-Wishart, ``joint_vectors`` those of vectors with one number, or one matrix, as
their precision, ``matrix_normal_wishart`` that of the rows of a matrix with theirs, ``joint_normal`` that of several
sites, ``joint_normal_gamma`` that with their precision, ``inverse_cdf`` Rayleigh, LogUniform, Gompertz, Triangular and
Erlang, ``numeric`` one of any log density by the integrals of ``quadrature``, ``elliptical`` a location, a shape and a
radius of any law, ``polya_gamma`` the weights of a logistic function, ``truncated_normal`` and ``weights`` those of
other densities, ``tabulated`` a scalar by a table of its log density, ``functions`` a function of such a one or of a
Gamma, and ``transforms`` what a flow remembers of its last draw.
"""

from __future__ import annotations

from .elliptical import Elliptical
from .functions import FunctionOfTabulated, PowerOfGamma
from .inverse_cdf import Erlang, Gompertz, InverseCDF, LogUniform, Rayleigh, Triangular, open_uniform
from .joint import MeanPrecision, NormalGamma, NormalWishart, Pair, Wishart
from .joint_normal import JointNormal
from .joint_normal_gamma import JointNormalGamma
from .joint_vectors import IsotropicNormalGamma, TiedNormalWishart
from .matrix_normal_wishart import MatrixNormalWishart, RowsGivenPrecision
from .numeric import NumericInverseCDF
from .panels import tabulate
from .polya_gamma import LogisticBound, PolyaGamma
from .quadrature import Panels, integrate, mesh
from .tabulated import Tabulated
from .transforms import forget_last_draw
from .truncated_normal import TruncatedNormal
from .weights import InverseGaussian, PositiveNormal, Weight

__all__ = [
    "Elliptical",
    "Erlang",
    "FunctionOfTabulated",
    "Gompertz",
    "InverseCDF",
    "InverseGaussian",
    "IsotropicNormalGamma",
    "JointNormal",
    "JointNormalGamma",
    "LogUniform",
    "LogisticBound",
    "MatrixNormalWishart",
    "MeanPrecision",
    "NormalGamma",
    "NormalWishart",
    "NumericInverseCDF",
    "Pair",
    "Panels",
    "PolyaGamma",
    "PositiveNormal",
    "PowerOfGamma",
    "Rayleigh",
    "RowsGivenPrecision",
    "Tabulated",
    "TiedNormalWishart",
    "Triangular",
    "TruncatedNormal",
    "Weight",
    "Wishart",
    "forget_last_draw",
    "integrate",
    "mesh",
    "open_uniform",
    "tabulate",
]
