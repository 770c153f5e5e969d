"""What the engine makes of a model, as a table."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import NotConjugateError, PyroLatentError
from ..recording import Recording
from .blocks import make_blocks
from .compilation import compile_program
from .densities import usable_terms
from .expectation import expect

_EXACT = ("-", "exact", "enumerated and eliminated, given the other blocks")


def explain(recording: Recording, joint: tuple[tuple[str, ...], ...] = (), mean_field: Collection[str] = ()) -> str:
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
        for parent in parents & owners.keys() - {scored.name}:
            children[parent].append(scored.name)
        try:
            for term in usable_terms(scored):
                expect(term, owners, scored.name)
        except NotConjugateError as error:
            for parent in parents or {scored.name}:
                problems.setdefault(parent, str(error))
    joints = _joints(recording, joint, mean_field)
    rows = [("site", "distribution", "block", "posterior", "update")]
    for name, scored in recording.scored.items():
        if scored.observed:
            rows.append((name, scored.distribution, "-", "observed", "-"))
        elif name in recording.discrete:
            rows.append((name, scored.distribution, *joints.get(name, _EXACT)))
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


def _joints(
    recording: Recording, joint: tuple[tuple[str, ...], ...], mean_field: Collection[str]
) -> dict[str, tuple[str, str, str]]:
    """By discrete site, its block, posterior and update, where they are not the usual ones."""
    try:
        program = compile_program(recording, joint, mean_field)
    except PyroLatentError:
        return {}
    found = {
        name: (name, "mean field", f"closed form, element by element, independent in q: {why}")
        for name, why in program.mean_field.items()
    }
    for group in program.joints:
        if group.is_by_elements:
            others = ", ".join(s.name for s in group.sites)
            how = "exact joint of its elements" + (f" with those of {others}" if len(group.sites) > 1 else "")
            found |= {s.name: ("-", "exact", how + ", enumerated and eliminated one by one") for s in group.sites}
    return found
