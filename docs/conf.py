"""How Sphinx builds these pages: ``make docs`` writes them to ``build/docs``, and needs no network, then or to read.

Formulas become MathML by docutils' own converter, which every current browser draws without scripts.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

import pyro_latent

logger = logging.getLogger(__name__)

project = "pyro_latent"
author = "The pyro_latent authors"
release = version = pyro_latent.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
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

html_theme = "alabaster"
html_static_path = ["_static"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {
    "description": "Exact coordinate ascent for ordinary Pyro programs",
    "fixed_sidebar": True,
    "page_width": "1160px",
    "show_powered_by": False,
}


# The public modules beside the package itself; the models follow, each with what it exports.
MODULES = (
    "pyro_latent.handlers",
    "pyro_latent.reparam",
    "pyro_latent.distributions",
    "pyro_latent.families",
    "pyro_latent.rules",
    "pyro_latent.ascent",
    "pyro_latent.criticism",
    "pyro_latent.plotting",
    "pyro_latent.checkpoint",
    "pyro_latent.models",
    "pyro_latent.models.estimators",
)


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


def _name_sections(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon reads them: "Attributes (after a fit):" is the section "Attributes:"."""
    lines[:] = [re.sub(r"^(Args|Attributes|Returns) \(.*\):$", r"\1:", line) for line in lines]


def _escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """In docstrings |x| is an absolute value and bound_ a name, neither of them a reference of reStructuredText."""
    for i, line in enumerate(lines):
        spans = line.split("``")
        spans[::2] = [re.sub(r"\||(?<=\w)_(?!\w)", r"\\\g<0>", span) for span in spans[::2]]
        lines[i] = "``".join(spans)


def _list_modules(app: Any, page: str, source: list[str]) -> None:
    """Put every public module that exists into the page ``api``; names of the package itself stay where they are."""
    if page == "api":
        head, _, _ = source[0].partition("<!-- modules")
        source[0] = head + "".join(_section(name) for name in _existing())


def _existing() -> list[str]:
    models = importlib.import_module("pyro_latent.models")
    listed = [name for name in MODULES if importlib.util.find_spec(name)]
    return listed + [f"pyro_latent.models.{name}" for name in sorted(models.__all__)]


def _section(name: str) -> str:
    """An entry for a module: what its ``__all__`` names, or else what it defines itself."""
    options = [f"exclude-members: {', '.join(pyro_latent.__all__)}"]
    if hasattr(importlib.import_module(name), "__all__"):
        options.append("imported-members:")
    lines = [f".. automodule:: {name}", *(f"   :{option}" for option in options)]
    return "\n".join([f"## {name}", "", "```{eval-rst}", *lines, "```", "", ""])


# Browsers set "log x" without the thin spaces that TeX has around the name of a function.
_THIN = '<mspace width="0.17em"></mspace>'
_APPLIED = re.compile(r"(<mi>\w+</mi>)\s*<mo>&ApplyFunction;</mo>")


def _mathml(node: nodes.Element, as_block: bool) -> str:
    """A formula as MathML; one that docutils cannot read is a warning that names the page, and shown as it was."""
    closed = re.sub(r"\\([bB]igg?)(?=[)\]])", r"\\\1r", node.astext())  # docutils knows \bigl and \bigr, not \big
    tex = re.sub(r"\\([bB]igg?)(?![a-zA-Z])", r"\\\1l", closed)
    try:
        return _APPLIED.sub(rf"{_THIN}\1{_THIN}", str(tex2mathml(tex, as_block=as_block)))
    except MathError as error:
        logger.warning("Expected a formula that docutils reads; got %r: %s", tex, error, location=node)
        return f"<code>{html.escape(tex)}</code>"


def _inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(f'<span class="math">{_mathml(node, as_block=False)}</span>')
    raise nodes.SkipNode


def _display_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def _skip_routing(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the methods that scikit-learn makes for each argument of an estimator."""
    return True if re.fullmatch(r"set_\w+_request|get_metadata_routing", name) else None


def setup(app: Any) -> None:
    """Register the renderer of formulas, the lists of pages and modules, and a filter of docstrings."""
    app.connect("source-read", _list_pages)
    app.connect("autodoc-process-docstring", _name_sections, priority=400)
    app.connect("autodoc-process-docstring", _escape, priority=600)
    app.connect("source-read", _list_modules)
    app.connect("autodoc-skip-member", _skip_routing)
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))
