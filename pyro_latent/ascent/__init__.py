"""Coordinate ascent: the drivers ``CAVI`` and ``EM``, their ways to step, and Gibbs sampling."""

from .cavi import CAVI, CAVIResult
from .em import EM
from .gibbs import Gibbs
from .step_size import ConstantStep, RobbinsMonro, StepSize

__all__ = ["CAVI", "EM", "CAVIResult", "ConstantStep", "Gibbs", "RobbinsMonro", "StepSize"]
