"""What is in the way of coordinate ascent on a model: every site that cannot be updated, not the first alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..errors import NotConjugateError
from ..recording import Recording
from .densities import summed_terms
from .derived import derived_block, derived_variables
from .expectation import expect
from .partition import find_blocks


def obstacles(
    recording: Recording, joint: tuple[tuple[str, ...], ...] = ()
) -> Iterator[tuple[frozenset[str], NotConjugateError]]:
    """Each obstacle, with the latent sites that it keeps from an update in closed form."""
    blocks, problems = find_blocks(recording, joint)
    for name, problem in problems.items():
        yield frozenset({name}), problem
    owners = {s.name: (b, i) for b in blocks.values() for i, s in enumerate(b.sites)}
    owners |= {v.site: (derived_block(v, recording), 0) for v in derived_variables(recording)}
    for scored in recording.scored.values():
        parents = frozenset(scored.density.sites if scored.density is not None else scored.parents)
        try:
            for term in (part for whole in summed_terms(scored) for part in whole.opened):
                if all(f.variable.root.site in owners for f in term.factors):
                    expect(term, owners, scored.name)
        except NotConjugateError as problem:
            own = frozenset() if scored.observed else frozenset({scored.name})
            if parents - {scored.name} or scored.name not in problems:
                yield parents | own or frozenset({scored.name}), problem


def all_at_once(
    recording: Recording, joint: tuple[tuple[str, ...], ...], first: NotConjugateError
) -> NotConjugateError:
    """One error that lists the obstacles of a model, whose first is known."""
    words = dict.fromkeys([str(first), *(str(problem) for _, problem in obstacles(recording, joint))])
    if len(words) == 1:
        return first
    kinds: dict[str, list[str]] = {}  # the steps of a loop have one kind, by names that differ in their numbers
    for text in words:
        kinds.setdefault(re.sub(r"\d+", "#", text), []).append(text)
    others = (
        f" (And {len(k) - 1} more like it, in which only numbers differ.)" if len(k) > 1 else "" for k in kinds.values()
    )
    listed = "\n".join(f"{i}. {k[0]}{more}" for i, (k, more) in enumerate(zip(kinds.values(), others, strict=True), 1))
    return type(first)(f"Expected sites that can all be updated; got {len(words)} obstacles:\n{listed}")


__all__ = ["all_at_once", "obstacles"]
