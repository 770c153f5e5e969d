"""What the engine makes of a model, as a table."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..errors import PyroLatentError
from ..families.quadrature import Quadrature
from ..recording import Recording
from .auto_joining import joined_by_themselves
from .blocks import Block
from .compilation import compile_program
from .joining import AUTO
from .obstacles import obstacles
from .partition import find_blocks
from .program import Program

#: So many names are listed at most.
_MOST = 8
_EXACT = ("-", "exact", "enumerated and eliminated, given the other blocks")


def explain(recording: Recording, joint: tuple[tuple[str, ...], ...] = (), mean_field: Collection[str] = ()) -> str:
    """One line for each site: its distribution, the block and family of its posterior, and its update or what is in the
    way; then one for each joint normal block, which says what an update of it costs.
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
    program = _program(recording, joint, mean_field)
    joints = {} if program is None else _joints(program)
    apart = joined_by_themselves(recording).apart if joint == AUTO else {}
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
            own, how = owners[name], _how(name, owners[name], problems.keys())
            derived = f"{how}, by the densities of " + ", ".join([name, *children[name]])
            derived += f"; on its own, for {apart[name]}" if name in apart and len(own.sites) == 1 else ""
            label = _few([site.name for site in own.sites])
            rows.append((name, scored.distribution, label, own.family.name, way or written or derived))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4]]).rstrip() for row in rows]
    return "\n".join([*lines, *([] if program is None else _costs(program))])


def _few(names: Sequence[str]) -> str:
    """Names, but for those in the middle of many, as of the steps of a loop."""
    return ", ".join(names if len(names) <= _MOST else [*names[: _MOST - 2], f"and {len(names) - _MOST + 2} more"])


def _costs(program: Program) -> list[str]:
    """What an update of each joint normal block costs."""
    found = []
    for block in program.blocks.values():
        family = block.joint_normal
        if family:
            plan = family.plans.at_once
            names = _few([site.name for site in block.sites])
            pairs = family.num_pairs - family.size
            found.append(
                f"An update of {names}: numbers: {family.size:,}, pairs of them that meet: {pairs:,}, rounds of "
                f"elimination: {len(plan.steps):,}, numbers in its tables: {plan.numbers:,}"
            )
    return found


def _how(name: str, block: Block, problems: Collection[str]) -> str:
    """How a site is updated, and why it shares its block, where no site of that has a problem."""
    family = block.family
    if isinstance(family, Quadrature):
        return f"by quadrature ({family.why})"
    if len(block.sites) == 1 or any(site.name in problems for site in block.sites):
        return "closed form"
    others = _few([site.name for site in block.sites if site.name != name])
    is_precision = family.is_relative and name == block.sites[-1].name
    why = f", whose terms are all proportional to {name}" if is_precision else ""
    return f"closed form, jointly with {others}{why}"


def _program(recording: Recording, joint: tuple[tuple[str, ...], ...], mean_field: Collection[str]) -> Program | None:
    """The program of a model; None where something is in the way of one."""
    try:
        return compile_program(recording, joint, mean_field)
    except PyroLatentError:
        return None


def _joints(program: Program) -> dict[str, tuple[str, str, str]]:
    """The words for each discrete site: its block, posterior and update, where they are not the usual ones."""
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
