"""The guide: its face for users, draws of it as Pyro sample statements, and the state that drivers move."""

from .autoguide import AutoConjugate, ElboTerms
from .prediction import LogPredictive, Prediction
from .response import LinearResponse
from .sampling import Sampler, nodes_given
from .state import Fit, PosteriorState, Prepared
from .summary import Summary

__all__ = [
    "AutoConjugate",
    "ElboTerms",
    "Fit",
    "LinearResponse",
    "LogPredictive",
    "PosteriorState",
    "Prediction",
    "Prepared",
    "Sampler",
    "Summary",
    "nodes_given",
]
