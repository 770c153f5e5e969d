"""What fits: models of other libraries and collections, as their authors wrote them, each fitted and checked.

``python -m benchmarks coverage`` fits them all (half an hour), holds each bound against Pyro's own estimate of it, and
writes the tables of ``docs/coverage.md``.
"""

from __future__ import annotations

import datetime
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..timing import markdown
from . import (
    bayespy,
    bnpy,
    infernet,
    posteriordb_levels,
    posteriordb_mixtures,
    posteriordb_others,
    posteriordb_processes,
    posteriordb_regression,
    pyro_chains,
    pyro_series,
    pyro_tutorials,
    rxinfer,
)
from .entry import REFUSED, WAYS, WRONG, Entry, Outcome, examine

__all__ = ["ENTRIES", "PAGE", "Entry", "Outcome", "examine", "run"]

PAGE = Path(__file__).parent.parent.parent / "docs" / "coverage.md"
MARKS = ("<!-- tables -->\n", "<!-- end of tables -->")
_POSTERIORDB = (
    posteriordb_regression,
    posteriordb_levels,
    posteriordb_mixtures,
    posteriordb_others,
    posteriordb_processes,
)
#: The models, by library and in the order of the page.
ENTRIES: list[Entry] = [
    *pyro_tutorials.gallery.entries,
    *pyro_series.gallery.entries,
    *pyro_chains.gallery.entries,
    *sorted((e for m in _POSTERIORDB for e in m.gallery.entries), key=lambda e: e.name.lower()),
    *bayespy.bayespy.entries,
    *rxinfer.rxinfer.entries,
    *infernet.infernet.entries,
    *bnpy.bnpy.entries,
]


def run() -> str:
    """The tables, which are also written into the page, and the bounds beside their estimates."""
    outcomes = []
    for entry in ENTRIES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes.append(examine(entry))
        print(f"{entry.library} | {entry.name} | {outcomes[-1].way} | {outcomes[-1].words}", flush=True)
    write_page(outcomes)
    return report(outcomes)


def report(outcomes: Sequence[Outcome]) -> str:
    """The tables, and the bounds of all that fit."""
    bounds = [
        [e.library, e.name, f"{o.elbo:.3f}", f"{o.estimate:.3f} ± {o.error:.3f}"]
        for e, o in zip(ENTRIES, outcomes, strict=True)
        if o.way not in (REFUSED, WRONG)
    ]
    made = markdown(["library", "model", "bound", "by Pyro"], bounds)
    return f"{tables(ENTRIES, outcomes)}\n\n## Bounds\n\n{made}"


def write_page(outcomes: Sequence[Outcome]) -> None:
    """Write the tables into the page, each with the report that they are from."""
    source = f"<!-- numbers: benchmarks/results/{datetime.date.today().isoformat()}-coverage.md -->\n"
    marked = re.sub(r"^(?=\| (?:library|model) \|)", source, tables(ENTRIES, outcomes), flags=re.MULTILINE)
    head, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    PAGE.write_text(f"{head}{MARKS[0]}\n{marked}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


def tables(entries: Sequence[Entry], outcomes: Sequence[Outcome]) -> str:
    """How many models fit in which way, and for each library a table of its models."""
    libraries = list(dict.fromkeys(e.library for e in entries))
    ways = [*WAYS, *([WRONG] if any(o.way == WRONG for o in outcomes) else [])]
    pairs = list(zip(entries, outcomes, strict=True))
    counts = [[name, *_counts(ways, (o for e, o in pairs if e.library == name))] for name in libraries]
    counts.append(["all", *_counts(ways, outcomes)])
    parts = [markdown(["library", "models", *ways], counts)]
    for name in libraries:
        rows = [[e.name, o.way, _cell(e, o)] for e, o in pairs if e.library == name]
        parts.append(f"## {name}\n\n{markdown(['model', 'outcome', 'why not'], rows)}")
    return "\n\n".join(parts)


def _counts(ways: Sequence[str], outcomes: Iterable[Outcome]) -> list[str]:
    found = [o.way for o in outcomes]
    return [str(len(found)), *(str(found.count(way)) for way in ways)]


def _cell(entry: Entry, outcome: Outcome) -> str:
    """What a refused model has that does not fit, and the error's first sentence."""
    if not outcome.words:
        return ""
    words = re.sub(r"([|*_<\\])", r"\\\1", outcome.words)
    return f"{words}." if entry.expect in WAYS else f"{entry.expect}. *{words}.*"
