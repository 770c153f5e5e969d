"""Whether to believe a posterior: importance weights, simulation-based calibration, evidence, moments."""

from ..particles import Draws, Target
from .calibration import Calibration, calibrate, fit_conjugate
from .draws import draw
from .evidence import Evidence, evidence
from .importance import ParetoK, Score, pareto_k, score
from .moments import Components, Difference, Moments, align, difference, find_components, moments

__all__ = [
    "Calibration",
    "Components",
    "Difference",
    "Draws",
    "Evidence",
    "Moments",
    "ParetoK",
    "Score",
    "Target",
    "align",
    "calibrate",
    "difference",
    "draw",
    "evidence",
    "find_components",
    "fit_conjugate",
    "moments",
    "pareto_k",
    "score",
]
