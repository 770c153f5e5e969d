"""Many draws of a Pyro program at once: made, and scored, under models and guides of any kind."""

from .particles import Draws, Particles, Proposal, without_marked
from .runs import (
    WAYS,
    ProgramCall,
    ProgramRunner,
    PyroProgram,
    ScoredRun,
    Values,
    Way,
    close,
    quiet_redraws,
    run,
    seeded,
)
from .sites import check_no_subsample, innermost, is_delta, is_latent, max_nesting, sample_sites
from .target import LogJoint, Target, log_joint
from .weights import LEAST_DRAWS, ParetoK, Weights, pareto_k

__all__ = [
    "LEAST_DRAWS",
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
    "pareto_k",
    "quiet_redraws",
    "run",
    "sample_sites",
    "seeded",
    "without_marked",
]
