"""A model run once with random tensors at its latents: its sites, and the log density of each as an expression."""

from .compiled import Compiled, NotCompiledError
from .data import seen_data
from .identity import check_identity, difference_of, identity_of_call, identity_outside_parts, is_in_part
from .run import ALONE, check_arguments, record
from .sites import DiscreteSite, LatentSite, Plate, Recording, ScoredSite
from .snapshot import AskedAgain, Snapshot, literals, version_of
from .supports import base_constraint, ends_in_simplex
from .tape import Player, Tape
from .template import Template, first_difference

__all__ = [
    "ALONE",
    "AskedAgain",
    "Compiled",
    "DiscreteSite",
    "LatentSite",
    "NotCompiledError",
    "Plate",
    "Player",
    "Recording",
    "ScoredSite",
    "Snapshot",
    "Tape",
    "Template",
    "base_constraint",
    "check_arguments",
    "check_identity",
    "difference_of",
    "ends_in_simplex",
    "first_difference",
    "identity_of_call",
    "identity_outside_parts",
    "is_in_part",
    "literals",
    "record",
    "seen_data",
    "version_of",
]
