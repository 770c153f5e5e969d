"""Whether to believe a posterior: weights, calibration, evidence, moments; comparisons and races of methods."""

from ..particles import Draws, ParetoK, Target, Weights, pareto_k
from .calibration import Calibration, calibrate, fit_conjugate
from .compare import compare
from .comparison import Comparison, Entry
from .draws import draw
from .evidence import Evidence, evidence
from .importance import importance_sampling, naive_monte_carlo, score
from .moments import Components, Difference, Moments, align, difference, find_components, moments
from .race import Lap, Race, Runner, race, start_like, svi_grid

__all__ = [
    "Calibration",
    "Comparison",
    "Components",
    "Difference",
    "Draws",
    "Entry",
    "Evidence",
    "Lap",
    "Moments",
    "ParetoK",
    "Race",
    "Runner",
    "Target",
    "Weights",
    "align",
    "calibrate",
    "compare",
    "difference",
    "draw",
    "evidence",
    "find_components",
    "fit_conjugate",
    "importance_sampling",
    "moments",
    "naive_monte_carlo",
    "pareto_k",
    "race",
    "score",
    "start_like",
    "svi_grid",
]
