"""Where the numbers of the pages come from: the commands that print them, and what they printed.

A comment in a page names the command and the file that keeps its output, or a report alone:

    <!-- numbers: python -m examples.kl_directions > docs/numbers/kl_directions.txt -->
    <!-- numbers: benchmarks/results/2026-11-21-quality.md -->

It speaks for the block below it. Of a fenced block each line is in the kept output, in this order; a line "…" stands
for lines left out, and words may be wrapped otherwise. Of a table, a list or a paragraph the numbers in digits are
there at their printed precision, but those in code, links and names, and an equation's, "(153)": of a table, all
numbers of a row in one line, but where the comment begins with "numbers anywhere". A number printed without a sign may
be there with a minus.

``python -m benchmarks.page_numbers`` runs each command and keeps its output; with words, only the commands that contain
one of them. ``--run PAGE`` runs the Python snippets of a page, and prints what they print. Times are those of one
thread, of the machine and the day that the first line of an output names.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyro

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MARK = re.compile(
    r"^<!-- numbers(?P<anywhere> anywhere)?: (?:(?P<command>.+) > )?(?P<outputs>[\w/.-]+(?: [\w/.-]+)*) -->\n\n?",
    re.MULTILINE,
)
BLOCK = re.compile(r"```text\n(?P<fenced>(?:.*\n)*?)```|(?P<table>(?:\|.*\n)+)|(?P<prose>(?:.+(?:\n|$))+)")
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ASIDE = re.compile(r"`[^`]*`|\]\([^)]*\)|\(\d+\)")
NUMBER = re.compile(r"(?<![\w.,\[^_/])[-−]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+)(?![\w.]*\d)(?![\w\]])")
ANY_NUMBER = re.compile(r"[-−]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+)")


class Source(NamedTuple):
    """A block of a page and where its numbers come from.

    Attributes:
        page: the page.
        command: what prints the numbers; empty for a report that is kept by other means.
        outputs: the file that keeps what was printed, relative to the repository; of reports, one or more.
        kind: "fenced", "table" or "prose", as which a table counts whose numbers may be anywhere.
        block: the text of the block.
    """

    page: Path
    command: str
    outputs: tuple[str, ...]
    kind: str
    block: str

    def kept(self) -> str:
        """What the outputs have.

        Raises:
            FileNotFoundError: if one was never made.
        """
        return "\n".join((ROOT / output).read_text(encoding="utf-8") for output in self.outputs)


def sources(page: Path) -> Iterator[Source]:
    """The blocks of a page below a comment."""
    text = page.read_text(encoding="utf-8")
    for mark in MARK.finditer(text):
        block = BLOCK.match(text, mark.end())
        if block is None:
            raise SystemExit(
                f"Expected a block below {mark[0].strip()!r} in {page.name}; got none. Remove the comment."
            )
        kind = str(block.lastgroup)
        outputs = tuple(mark["outputs"].split())
        yield Source(page, mark["command"] or "", outputs, "prose" if mark["anywhere"] else kind, block[kind])


def missing(source: Source, kept: str) -> list[str]:
    """The lines of a fenced block, or the numbers of a table or paragraph, that the kept output does not have."""
    if source.kind == "fenced":
        return _missing_lines(source.block.splitlines(), kept)
    if source.kind == "prose":
        return _missing_numbers(source.block, kept)
    lines = [line for line in kept.splitlines() if ANY_NUMBER.search(line)]
    return [
        row for row in source.block.splitlines() if row not in lines and all(_missing_numbers(row, x) for x in lines)
    ]


def _missing_lines(lines: Sequence[str], kept: str) -> list[str]:
    if " ".join(" ".join(lines).split()) in " ".join(kept.split()):
        return []
    there = iter([line.rstrip() for line in kept.splitlines()])
    return [line for line in lines if line.strip() not in ("", "…") and line.rstrip() not in there]


def _missing_numbers(text: str, kept: str) -> list[str]:
    there = [_value(found) for found in ANY_NUMBER.findall(kept)]
    return [number for number in NUMBER.findall(ASIDE.sub("", text)) if not _is_among(number, there)]


def _is_among(number: str, there: Sequence[float]) -> bool:
    """Whether a number rounds to this one, which was printed with so many digits."""
    slack = 0.5 * 10.0 ** -len(number.partition(".")[2]) * (1 + 1e-9)
    value = _value(number)
    return any(abs(x - value) <= slack or (value >= 0 and abs(-x - value) <= slack) for x in there)


def _value(number: str) -> float:
    return float(number.replace("−", "-").replace(",", ""))


def run_page(page: Path) -> None:
    """Run the snippets of a page in one namespace, as a reader would, from one state of the generators."""
    pyro.set_rng_seed(0)
    namespace: dict[str, object] = {"__name__": page.stem}
    for snippet in SNIPPET.findall(page.read_text(encoding="utf-8")):
        exec(compile(snippet, str(page), "exec"), namespace)


def make(words: Sequence[str]) -> None:
    """Run the commands that contain one of the words, all without words, and keep what they print."""
    commands = {s.command: s.outputs[0] for page in PAGES for s in sources(page) if s.command}
    for command, output in commands.items():
        if words and not any(word in command for word in words):
            continue
        print(command, flush=True)
        run = [sys.executable if word == "python" else word for word in shlex.split(command)]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # times of more do not repeat where others use the machine
        done = subprocess.run(run, cwd=ROOT, env=one_thread, stdout=subprocess.PIPE, text=True, check=True)
        head = f"{datetime.date.today()}, {platform.machine()}, Python {platform.python_version()}: {command}"
        (ROOT / output).write_text(f"{head}\n\n{done.stdout}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the kept outputs anew and say what the pages have that these do not; or make some, or run one page."""
    parser = argparse.ArgumentParser(description="Run the commands that print the numbers of the pages.")
    parser.add_argument("words", nargs="*", help="only commands that contain one of these")
    parser.add_argument("--run", type=Path, metavar="PAGE", help="run the snippets of this page instead")
    options = parser.parse_args(arguments)
    if options.run is not None:
        run_page(options.run)
        return
    make(options.words)
    for page in PAGES if not options.words else ():
        for source in sources(page):
            for part in missing(source, source.kept()):
                print(f"{page.name} has, and {' '.join(source.outputs)} has not: {part}")


if __name__ == "__main__":
    main()
