"""Many draws of a Pyro program at once: made, and scored, under models and guides of any kind."""

from .particles import Draws, Particles, Proposal, without_marked
from .runs import (
    SCORING_WAYS,
    WAYS,
    ProgramCall,
    ProgramRunner,
    PyroProgram,
    ScoredRun,
    Values,
    Way,
    close,
    name_of,
    no_params_of_failures,
    quiet_redraws,
    run,
    seeded,
)
from .sites import TraceSite, check_no_subsample, innermost, is_delta, is_latent, max_nesting, sample_sites
from .target import LogJoint, Target, log_joint
from .weights import LEAST_DRAWS, ParetoK, Weights, pareto_k

__all__ = [
    "LEAST_DRAWS",
    "SCORING_WAYS",
    "WAYS",
    "Draws",
    "LogJoint",
    "ParetoK",
    "Particles",
    "ProgramCall",
    "ProgramRunner",
    "Proposal",
    "PyroProgram",
    "ScoredRun",
    "Target",
    "TraceSite",
    "Values",
    "Way",
    "Weights",
    "check_no_subsample",
    "close",
    "innermost",
    "is_delta",
    "is_latent",
    "log_joint",
    "max_nesting",
    "name_of",
    "no_params_of_failures",
    "pareto_k",
    "quiet_redraws",
    "run",
    "sample_sites",
    "seeded",
    "without_marked",
]
