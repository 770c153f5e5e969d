"""Drivers, one a file."""

from .cavi import CAVI, CAVIResult
from .em import EM

__all__ = ["CAVI", "EM", "CAVIResult"]
