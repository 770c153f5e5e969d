"""The guide: its face for users, draws of it as Pyro sample statements, and the state that drivers move."""

from .autoguide import AutoConjugate, ElboTerms
from .sampling import Sampler, nodes_given
from .state import PosteriorState, Prepared

__all__ = ["AutoConjugate", "ElboTerms", "PosteriorState", "Prepared", "Sampler", "nodes_given"]
