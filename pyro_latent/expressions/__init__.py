"""Latents as symbols: tensors that record what the model computes, and the algebra that expectations are taken in."""

from .derivations import Derivations, Question, question, renamed, taken_apart
from .expression import Expression
from .numbering import fresh_number, numbers_in
from .recorded import FunctionOf, derived_from_points, placeholders
from .stand_ins import StandIns
from .symbolic import Opacity
from .tables import over_batch
from .tensor import RandomTensor

__all__ = [
    "Derivations",
    "Expression",
    "FunctionOf",
    "Opacity",
    "Question",
    "RandomTensor",
    "StandIns",
    "derived_from_points",
    "fresh_number",
    "numbers_in",
    "over_batch",
    "placeholders",
    "question",
    "renamed",
    "taken_apart",
]
