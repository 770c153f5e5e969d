"""What the engine makes of a model, as a table."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import PyroLatentError
from ..families.quadrature import Quadrature
from ..recording import Recording
from .compilation import compile_program
from .obstacles import obstacles
from .partition import find_blocks

_EXACT = ("-", "exact", "enumerated and eliminated, given the other blocks")


def explain(recording: Recording, joint: tuple[tuple[str, ...], ...] = (), mean_field: Collection[str] = ()) -> str:
    """One line for each site: its distribution, the block and family of its posterior, and its update or what is in the
    way.
    """
    try:
        blocks, without = find_blocks(recording, joint)
    except PyroLatentError as error:
        return f"No blocks: {error}"
    owners = {s.name: b for b in blocks.values() for s in b.sites}
    children: dict[str, list[str]] = {name: [] for name in owners}
    for scored in recording.scored.values():
        parents = set(scored.density.sites if scored.density is not None else scored.parents)
        for parent in parents & owners.keys() - {scored.name}:
            children[parent].append(scored.name)
    problems: dict[str, list[str]] = {}
    for names, problem in obstacles(recording, joint):
        for name in names:
            problems.setdefault(name, []).append(str(problem))
    joints = _joints(recording, joint, mean_field)
    rows = [("site", "distribution", "block", "posterior", "update")]
    for name, scored in recording.scored.items():
        way = "none: " + " ".join(problems[name]) if name in problems else None
        if scored.observed:
            rows.append((name, scored.distribution, "-", "observed", way or "-"))
        elif name in recording.discrete:
            block, posterior, update = joints.get(name, _EXACT)
            rows.append((name, scored.distribution, block, posterior, way or update))
        elif name in without:
            rows.append((name, scored.distribution, "-", "none", way or "none"))
        else:
            written = "hand-written" if owners[name].update is not None else None
            derived = "closed form, by the densities of " + ", ".join([name, *children[name]])
            own = owners[name]
            if isinstance(own.family, Quadrature):
                derived = f"by quadrature ({own.family.why}), by the densities of " + ", ".join([name, *children[name]])
            rows.append((name, scored.distribution, own.label, own.family.name, way or written or derived))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4]]).rstrip() for row in rows
    )


def _joints(
    recording: Recording, joint: tuple[tuple[str, ...], ...], mean_field: Collection[str]
) -> dict[str, tuple[str, str, str]]:
    """The words for each discrete site: its block, posterior and update, where they are not the usual ones."""
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
