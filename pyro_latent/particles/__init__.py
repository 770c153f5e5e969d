"""Many draws of a Pyro program at once: made, and scored, under models and guides of any kind."""

from .particles import Draws, Particles, Proposal, without_marked
from .runs import WAYS, Call, Program, Run, Runner, Values, Way, close, quiet_redraws, run, seeded
from .sites import check_no_subsample, innermost, is_delta, is_latent, max_nesting, sample_sites
from .target import LogJoint, Target, log_joint

__all__ = [
    "WAYS",
    "Call",
    "Draws",
    "LogJoint",
    "Particles",
    "Program",
    "Proposal",
    "Run",
    "Runner",
    "Target",
    "Values",
    "Way",
    "check_no_subsample",
    "close",
    "innermost",
    "is_delta",
    "is_latent",
    "log_joint",
    "max_nesting",
    "quiet_redraws",
    "run",
    "sample_sites",
    "seeded",
    "without_marked",
]
