"""Numbers that the pages print are those that a command printed, whose output is kept; and what counts as the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.page_numbers import PAGES, ROOT, Source, missing, sources

FENCE = re.compile(r"^```text\n", re.MULTILINE)
CODE = re.compile(r"^```.*?^```\n", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
#: What is not a result: formulas, code, links, sections of books, and the thresholds of k̂ that its authors give.
GIVEN = re.compile(r"\$[^$]*\$|`[^`]*`|\]\([^)]*\)|§[\d.]+|^\| up to .*$", re.MULTILINE)
ALL = [source for page in PAGES for source in sources(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_is_printed_is_what_the_kept_output_has(page: Path) -> None:
    wrong = []
    for source in sources(page):
        lost = [output for output in source.outputs if not (ROOT / output).exists()]
        assert lost == [], "run make docs-numbers"
        wrong += [f"{' '.join(source.outputs)}: {part}" for part in missing(source, source.kept())]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_printed_table_says_where_it_comes_from(page: Path) -> None:
    named = [source for source in sources(page) if source.kind == "fenced"]
    assert len(named) == len(FENCE.findall(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_table_of_results_says_where_it_comes_from(page: Path) -> None:
    """A result has a decimal point."""
    named = [source.block for source in sources(page)]
    tables = TABLE.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    assert [t for t in tables if re.search(r"\d\.\d", GIVEN.sub("", t)) and not any(t in x for x in named)] == []


def test_an_output_comes_from_one_command_and_is_used() -> None:
    commands = {(source.command, *source.outputs) for source in ALL if source.command}
    kept = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "numbers").iterdir()}
    assert sorted(kept) == sorted(output for _, *outputs in commands for output in outputs)


def block(kind: str, text: str) -> Source:
    return Source(ROOT / "README.md", "", ("docs/numbers/none.txt",), kind, text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("an ELBO of −642,602.7 nats", "ELBO -642602.71"),
        ("0.40 nats below", "gap -0.396"),
        ("within .51 of 20 seeds", "0.5096, 20"),
        ("Python 3.11.7", ""),
        ("2,000 steps", "2000"),
        ("below SVI by 34 nats", "gap -33.81"),
        ("equation (153) of [4], `x[2]` and x^2", ""),
    ],
)
def test_numbers_are_the_same_at_their_printed_precision(text: str, kept: str) -> None:
    assert missing(block("prose", text), kept) == []


@pytest.mark.parametrize(
    ("text", "kept", "found"),
    [
        ("an ELBO of −642,602.7 nats", "ELBO 642602.7", ["−642,602.7"]),
        ("0.40 nats", "0.41", ["0.40"]),
        ("1,000 steps and .5 nats", "1001 .5", ["1,000"]),
        ("34 nats (32 to 48)", "34.2 32.0", ["48"]),
    ],
)
def test_numbers_that_differ_are_named(text: str, kept: str, found: list[str]) -> None:
    assert missing(block("prose", text), kept) == found


def test_lines_are_the_same_in_the_same_order() -> None:
    kept = "a  1.0\nb  2.0\nc  3.0\n"
    assert missing(block("fenced", "a  1.0\n…\nc  3.0\n"), kept) == []
    assert missing(block("fenced", "a  1.0\nb  2.1\n"), kept) == ["b  2.1"]
    assert missing(block("fenced", "c  3.0\na  1.0\n"), kept) == ["a  1.0"]


def test_the_numbers_of_a_row_are_in_one_line() -> None:
    kept = "one 1.5 2.5\ntwo 3.5 4.5\n"
    assert missing(block("table", "| one | 1.5 | 2.5 |\n"), kept) == []
    assert missing(block("table", "| one | 1.5 | 4.5 |\n"), kept) == ["| one | 1.5 | 4.5 |"]
