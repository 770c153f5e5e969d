"""Drivers, one a file."""

from .cavi import CAVI, CAVIResult

__all__ = ["CAVI", "CAVIResult"]
