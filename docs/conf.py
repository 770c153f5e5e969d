"""How Sphinx builds these pages: ``make docs`` writes them to ``build/docs``, and needs no network, then or to read.

Formulas become MathML by docutils' own converter, which every current browser draws without scripts.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pyro_latent

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "pyro_latent"
author = "The pyro_latent authors"
release = version = pyro_latent.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "api_pages",
    "mathml",
]
exclude_patterns = ["_extensions", "numbers"]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["ref.python"]  # an attribute "elbo" of one class is taken for a reference to every other's

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes_style")]
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "pyro_latent"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"
copybutton_selector = "div.highlight:not(.highlight-text div) pre"


def _list_pages(app: Any, page: str, source: list[str]) -> None:
    """The start page's lists keep the pages that exist; one that they forget goes into the last of them."""
    if page != "index":
        return
    pages = {path.stem for path in Path(app.srcdir).glob("*.md")} - {"index"}
    blocks = re.split(r"(?<=^```\{toctree\}\n)(.*?)(?=^```)", source[0], flags=re.MULTILINE | re.DOTALL)
    entries = {line for block in blocks[1::2] for line in block.splitlines()}
    for i in range(1, len(blocks), 2):
        lines = [line for line in blocks[i].splitlines() if not line or line.startswith(":") or line in pages]
        blocks[i] = "\n".join([*lines, *(sorted(pages - entries) if i == len(blocks) - 2 else []), ""])
    source[0] = "".join(blocks)


def setup(app: Any) -> None:
    """Register the lists of pages."""
    app.connect("source-read", _list_pages)
