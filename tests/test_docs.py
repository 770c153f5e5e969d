"""The documentation: it builds without a warning, its links lead somewhere, and reading it needs no network.

(The snippets in its pages are run by ``tests/test_readme.py``.)
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import pyro_latent

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
REMOTE = ("http:", "https:", "//")

needs_sphinx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("furo", "myst_parser", "sphinx_copybutton")),
    reason="needs the extra docs",
)


class Page(HTMLParser):
    """What a page links to, loads and can be linked at.

    Attributes:
        links: the targets of its anchors.
        loaded: what a browser fetches to show it: scripts, style sheets, pictures.
        anchors: its ids.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if "id" in found:
            self.anchors.add(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built pages."""
    folder = tmp_path_factory.mktemp("docs")
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(folder / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """The built pages, but for Sphinx's own index and search and the listings of source code."""
    own = ("genindex", "search", "py-modindex")
    return {p.resolve(): Page(p) for p in (*site.glob("*.html"), *site.glob("api/*.html")) if p.stem not in own}


@needs_sphinx
@pytest.mark.slow
def test_every_document_becomes_a_page_of_the_menu(pages: dict[Path, Page]) -> None:
    """The build, in which a warning is an error, and then the start page's lists."""
    documents = {path.stem for path in DOCS.glob("*.md")}
    assert {path.stem for path in pages if path.parent.name != "api"} == documents
    start = next(page for path, page in pages.items() if path.stem == "index")
    assert {f"{name}.html" for name in documents - {"index"}} <= set(start.links)


@needs_sphinx
@pytest.mark.slow
def test_links_and_anchors_exist(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(link)
            if link.startswith((*REMOTE, "mailto:")):
                continue
            there = (path.parent / unquote(target)).resolve() if target else path
            known = there.is_file() and (not anchor or there not in pages or unquote(anchor) in pages[there].anchors)
            broken += [] if known else [f"{path.name}: {link}"]
    assert not broken


@needs_sphinx
@pytest.mark.slow
def test_nothing_is_fetched_from_the_network(site: Path, pages: dict[Path, Page]) -> None:
    loaded = {source for page in pages.values() for source in page.loaded}
    assert loaded
    assert not [source for source in loaded if source.startswith(REMOTE)]
    for sheet in site.rglob("*.css"):
        assert "url(http" not in sheet.read_text(encoding="utf-8").replace('"', "").replace("'", "")


def formulas(text: str) -> Iterator[str]:
    """The MathML elements of a page, as XML: entities that only HTML knows are left out."""
    for part in text.split("<math ")[1:]:
        element = "<math " + part.partition("</math>")[0] + "</math>"
        yield re.sub(r"&(?!lt;|gt;|amp;|#)\w+;", "", element)


@needs_sphinx
@pytest.mark.slow
def test_formulas_are_mathml(pages: dict[Path, Page]) -> None:
    """Each ``$$`` formula of a document is one well-formed element, and none of its TeX is left."""
    for path, page in pages.items():
        document = DOCS / f"{path.stem}.md"
        written = document.read_text(encoding="utf-8").count("$$") // 2 if document.exists() else 0
        found = list(formulas(page.text))
        assert len(found) >= written, path.name
        for formula in found:
            assert "\\" not in "".join(ElementTree.fromstring(formula).itertext()), path.name


@needs_sphinx
@pytest.mark.slow
def test_every_public_name_is_in_the_api(pages: dict[Path, Page]) -> None:
    page = next(page for path, page in pages.items() if path.stem == "api")
    classes = [name for name in pyro_latent.__all__ if name != "handlers"]
    assert not [name for name in classes if f"pyro_latent.{name}" not in page.anchors]


@needs_sphinx
@pytest.mark.slow
def test_the_api_has_inherited_methods_and_no_internals(pages: dict[Path, Page]) -> None:
    anchors = {anchor.removeprefix("pyro_latent.") for page in pages.values() for anchor in page.anchors}
    estimator = "models.estimators.GaussianMixture"
    assert {"EM.run", "models.lda.LDA.transform", f"{estimator}.to_arviz", "models.gmm.model"} <= anchors
    internal = ("AutoConjugate.prepare", "AutoConjugate.calls", "AutoConjugate.training", "CAVI.sites")
    assert not anchors & {*internal, "models.vae.VAE.zero_grad", f"{estimator}.get_metadata_routing"}


@needs_sphinx
@pytest.mark.slow
def test_a_page_has_what_its_theme_promises(pages: dict[Path, Page]) -> None:
    """A list of its own sections, the pages before and after it, and a button that copies code."""
    page = next(page for path, page in pages.items() if path.stem == "mixture")
    assert "On this page" in page.text and 'class="next-page"' in page.text and 'class="prev-page"' in page.text
    assert [source for source in page.loaded if "copybutton" in source]


def test_no_document_names_a_file_that_is_not_there() -> None:
    """In code spans, paths of the repository that end in a known suffix."""
    missing = []
    for document in DOCS.glob("*.md"):
        spans = document.read_text(encoding="utf-8").split("`")[1::2]
        paths = [s for s in spans if "/" in s and s.endswith((".py", ".md", ".csv")) and " " not in s and "*" not in s]
        missing += [f"{document.name}: {p}" for p in paths if not (ROOT / p).exists()]
    assert not missing


def _hops() -> list[tuple[str, str]]:
    """The names that the page on the architecture links to code, with their files."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    return re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", page)


@pytest.mark.parametrize(("name", "file"), _hops())
def test_each_hop_of_the_architecture_is_in_the_file_that_it_links_to(name: str, file: str) -> None:
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == part]
        assert found, f"expected {name} in {file}; {part} is not there"
        body = found[0].body


def test_the_architecture_links_every_hop_to_code() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert len(_hops()) == page.count("](")
