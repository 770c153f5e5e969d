"""Coordinate ascent: the drivers ``CAVI`` and ``EM``, and their ways to step."""

from .cavi import CAVI, CAVIResult
from .em import EM
from .step_size import ConstantStep, RobbinsMonro, StepSize

__all__ = ["CAVI", "EM", "CAVIResult", "ConstantStep", "RobbinsMonro", "StepSize"]
