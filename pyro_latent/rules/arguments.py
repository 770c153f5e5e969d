"""The arguments of a distribution, as they were given or as a plain one keeps them, and as expressions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Arguments, as_expression
from .wrappers import has_latents, signature_of

#: Arguments of which a constructor takes one, and derives the others when asked.
_ALTERNATIVES = frozenset(("probs", "logits", "covariance_matrix", "precision_matrix", "scale_tril"))


def raw_arguments(distribution: Any) -> dict[str, Any]:
    """The arguments of a base distribution that there are, by name, as they were given or as a plain one keeps them."""
    if has_latents(distribution):
        known: dict[str, Any] = distribution.arguments
        return known
    raw = {n: _attribute(distribution, n) for n in signature_of(type(distribution)).parameters if n != "validate_args"}
    return {n: v for n, v in raw.items() if v is not None}


def distribution_arguments(distribution: object, like: Tensor) -> Arguments:
    """The arguments of a base distribution as expressions."""
    like = like.double()  # log-normalizers of constant arguments are large, and cancel
    found = {n: as_expression(v, like) for n, v in raw_arguments(distribution).items()}
    return Arguments({n: e for n, e in found.items() if e is not None})


def _attribute(distribution: object, name: str) -> Any:
    """An argument of a plain distribution; of the alternative forms (probs or logits, …) only one that was computed."""
    if name not in _ALTERNATIVES:
        return getattr(distribution, name, None)
    holder = vars(distribution).get("_categorical", distribution)
    return vars(holder).get(name)


__all__ = ["distribution_arguments", "raw_arguments"]
