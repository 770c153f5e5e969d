"""Exact coordinate ascent for ordinary Pyro models."""

from . import handlers
from .arviz import to_arviz
from .ascent import CAVI, EM, CAVIResult, Gibbs, RobbinsMonro
from .checks import check_updates
from .errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    DataError,
    ElboDecreaseError,
    LatentValueError,
    MissingRuleError,
    ModelError,
    NaturalDomainError,
    NotConjugateError,
    ProcessError,
    PyroLatentError,
    RecordingError,
)
from .families import register_family
from .guide import AutoConjugate
from .rules import register_rule
from .settings import settings

__version__ = "0.2.0"

__all__ = [
    "CAVI",
    "EM",
    "ArgumentError",
    "ArgumentTypeError",
    "AutoConjugate",
    "CAVIResult",
    "CheckpointError",
    "DataError",
    "ElboDecreaseError",
    "Gibbs",
    "LatentValueError",
    "MissingRuleError",
    "ModelError",
    "NaturalDomainError",
    "NotConjugateError",
    "ProcessError",
    "PyroLatentError",
    "RecordingError",
    "RobbinsMonro",
    "check_updates",
    "handlers",
    "register_family",
    "register_rule",
    "settings",
    "to_arviz",
]
