"""What the engine makes of a model, as a table."""

from __future__ import annotations

from ..errors import NotConjugateError, PyroLatentError
from .blocks import make_blocks
from .expectation import expect
from .program import usable_terms
from .recording import Recording


def explain(recording: Recording, joint: tuple[tuple[str, ...], ...] = ()) -> str:
    """One line for each site: its distribution, the block and family of its posterior, and its update or what is in the
    way.
    """
    try:
        blocks = make_blocks(recording, joint)
    except PyroLatentError as error:
        return f"No blocks: {error}"
    owners = {s.name: (b, i) for b in blocks.values() for i, s in enumerate(b.sites)}
    problems: dict[str, str] = {}
    children: dict[str, list[str]] = {name: [] for name in owners}
    for scored in recording.scored.values():
        density = scored.density
        parents = set(density.sites if density is not None else scored.parents)
        for parent in parents - {scored.name}:
            children[parent].append(scored.name)
        try:
            for term in usable_terms(scored):
                expect(term, owners, scored.name)
        except NotConjugateError as error:
            for parent in parents or {scored.name}:
                problems.setdefault(parent, str(error))
    rows = [("site", "distribution", "block", "posterior", "update")]
    for name, scored in recording.scored.items():
        if scored.observed:
            rows.append((name, scored.distribution, "-", "observed", "-"))
        elif name in recording.discrete:
            rows.append((name, scored.distribution, "-", "exact", "enumerated and eliminated, given the other blocks"))
        else:
            block = owners[name][0]
            if name in problems:
                update = "none: " + problems[name]
            elif block.update is not None:
                update = "hand-written"
            else:
                update = "closed form, by the densities of " + ", ".join([name, *children[name]])
            rows.append((name, scored.distribution, block.label, block.family.name, update))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4]]).rstrip() for row in rows
    )
