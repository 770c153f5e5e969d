"""Every Python snippet of the README and of each page of the docs runs, in order, in one namespace a page.

Those of the README run in an empty folder, with what an installation has; those of the docs in a clone.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#)([^)#]+)")


def snippets(page: Path) -> list[tuple[int, str]]:
    """The snippets of a page, each with the line that it starts after."""
    text = page.read_text(encoding="utf-8")
    return [(text[: match.start()].count("\n") + 1, match[1]) for match in SNIPPET.finditer(text)]


@pytest.mark.parametrize("page", [p for p in PAGES if snippets(p)], ids=lambda p: p.name)
def test_snippets_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the snippets claim they assert themselves; a line number in an error is that of the page."""
    monkeypatch.chdir(tmp_path if page.name == "README.md" else ROOT)
    namespace: dict[str, object] = {"__name__": page.stem}
    for line, source in snippets(page):
        exec(compile("\n" * line + source, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    text = SNIPPET.sub("", page.read_text(encoding="utf-8"))  # Layer[nn.Linear](1, 2) is no link
    missing = [t for t in LINK.findall(text) if not (page.parent / t).exists()]
    assert not missing


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250
