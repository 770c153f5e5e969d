"""What each site contributes to the ELBO: its expected log density, with and without the discrete sites' posterior."""

from __future__ import annotations

import torch
from torch import Tensor

from ..expressions.axes import START, laid
from ..expressions.terms import LogOfSum
from .blocks import Means, State
from .densities import usable_terms, with_indicators
from .discrete import DiscretePosterior
from .expectation import expect
from .features import FactorTerm
from .log_sums import log_sum_of
from .program import Program


def expected_log_densities(program: Program, means: Means) -> dict[str, Tensor]:
    """The expected log density of each site for each start, over the site's batch shape.

    That of a site that depends on discrete sites has a dimension for the values of each, after the starts.
    """
    found = {}
    like = next(iter(next(iter(means.values())).values())) if means else program.recording.like
    for scored in program.recording.scored.values():
        total: Tensor | None = None
        terms = usable_terms(scored)
        choices = tuple({c.label: c for t in terms for c in t.choices if c.site not in program.mean_field}.values())
        depth = len(choices) + len(scored.shape)
        for term in with_indicators(terms, program.recording.discrete, program.mean_field):
            if any(isinstance(f, LogOfSum) for f in term.factors):
                tensor, labels = log_sum_of(scored, term, program.owners).each(means)
            else:
                expected = expect(term, program.owners, scored.name)
                constants = [(c.tensor.to(like), c.labels) for c in expected.constants]
                number = like.new_tensor(expected.coefficient)
                tensor, labels = FactorTerm([(number, ()), *constants], expected.moments).value(means)
            names = {c.label: i - depth for i, c in enumerate(choices)}
            part = laid(tensor, tuple(names.get(x, x) for x in labels), (START,), depth)
            total = part if total is None else total + part
        assert total is not None
        lead = total.shape[: 1 + len(choices)]
        found[scored.name] = total.expand(*lead, *scored.shape)
    return found


def expected_log_joint(program: Program, state: State, held: DiscretePosterior | None) -> dict[str, Tensor]:
    """E_q log p of each site, for each start, float64: the site's share of L̄, with scales and masks."""
    means, exact = program.means(state), program.exactly(state)[1]
    zero = torch.zeros((), dtype=torch.float64, device=program.recording.device)
    found = {n: sum((s.value(exact).double() for s in own), zero) for n, own in program.site_summands.items()}
    for factor, weight, energy in program.elimination.energies(means, held) if held is not None else ():
        rounded = sum(s.value(exact) - s.value(means, torch.float64) for s in factor.summands(weight))
        ((site, _),) = factor.rows
        found[site] = found[site] + energy + rounded
    return found


__all__ = ["expected_log_densities", "expected_log_joint"]
