"""The strategy that makes a model conjugate: each site by the entry for its class, until none is for it."""

from __future__ import annotations

from typing import Any

from pyro.infer.reparam.reparam import Reparam
from pyro.infer.reparam.strategies import Strategy

from .base import ConjugateReparam, MovedReparam, Site
from .entries import OF_DENSITIES, first_for
from .half_cauchy import HalfCauchyReparam
from .hidden_markov import DiscreteHMMReparam
from .linear_chain import GaussianHMMReparam, LinearHMMReparam
from .masked import MaskedMixtureReparam
from .renamed import RenamedReparam

#: The entries, in the order of the table in the docs.
ENTRIES: tuple[type[ConjugateReparam], ...] = (
    *OF_DENSITIES,
    MaskedMixtureReparam,
    DiscreteHMMReparam,
    GaussianHMMReparam,
    LinearHMMReparam,
    HalfCauchyReparam,
    RenamedReparam,
)


class Conjugate(Strategy):
    """Makes a model conditionally conjugate by auxiliary sites; a site without an entry stays as it is.

    Attributes:
        auxiliary: by auxiliary site, the site that it belongs to, of the runs so far.
        moved: by site that is a function of an auxiliary one, that one and the function.

    Example::

        model = poutine.reparam(model, config=Conjugate())
        CAVI(model, AutoConjugate(model)).run(x)
    """

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary: dict[str, str] = {}
        self.moved: dict[str, tuple[str, Any]] = {}

    def configure(self, msg: object) -> Reparam | None:
        found = _Chain(self) if entry_for(msg) is not None else None
        return found


def entry_for(msg: object) -> ConjugateReparam | None:
    """The entry for the site of a message."""
    return first_for(Site.of(msg), ENTRIES)


class _Chain(Reparam):
    """The entries for a site, one after another, as for a mixture of Student-t's."""

    def __init__(self, strategy: Conjugate) -> None:
        self._strategy = strategy

    def apply(self, msg: Any) -> Any:
        while (entry := entry_for(msg)) is not None:
            name = msg["name"]
            names = entry.names(Site.of(msg))
            self._strategy.auxiliary |= dict.fromkeys(names, name)
            if isinstance(entry, MovedReparam):
                self._strategy.moved[name] = names[-1], entry.transform
            msg = entry.apply(msg)
        return msg


def table() -> str:
    """The entries as a Markdown table."""
    rows = ["| density | conjugate form | auxiliary sites | source | cost |", "|---|---|---|---|---|"]
    for entry in ENTRIES:
        densities = ", ".join(f"`{d.__name__}`" for d in entry.densities)
        sites = ", ".join(f"`…_{suffix}`" for suffix in entry.suffixes) or "none"
        rows.append(f"| {densities}{entry.condition} | {entry.form} | {sites} | {entry.source} | {entry.cost} |")
    return "\n".join(rows)


__all__ = ["ENTRIES", "Conjugate", "entry_for", "table"]
