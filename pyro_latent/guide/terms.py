"""The terms of an ELBO, site by site and block by block."""

from __future__ import annotations

from typing import NamedTuple

from ..objective import BlockKey, Program, State, expected_log_joint


class ElboTerms(NamedTuple):
    """The terms of an ELBO, in nats.

    ``log_densities``: by site, E_q log p(site | its parents). ``entropies``: by block, the entropy of its factor; the
    discrete sites, whose posterior is joint, share one.
    """

    log_densities: dict[str, float]
    entropies: dict[BlockKey, float]

    @property
    def total(self) -> float:
        """The sum of all terms, which is the ELBO."""
        return sum(self.log_densities.values()) + sum(self.entropies.values())


def elbo_terms_of(program: Program, state: State) -> ElboTerms:
    """The terms of the exact ELBO of a state of one start."""
    held = program.elimination.eliminate(program.means(state))
    densities = {n: float(v) for n, v in expected_log_joint(program, state, held).items()}
    exact = program.exactly(state)
    entropies = {
        key: float(program.terms(*exact, [key])[0]) for key, block in program.blocks.items() if not block.is_point
    }
    if held is not None:
        names = tuple(site.name for site in program.discrete)
        entropies[names[0] if len(names) == 1 else names] = float(held.entropy)
    return ElboTerms(densities, entropies)


__all__ = ["ElboTerms", "elbo_terms_of"]
