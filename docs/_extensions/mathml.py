"""Formulas as MathML, by docutils' own converter, which every current browser draws without scripts."""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)

# Browsers set "log x" without the thin spaces that TeX has around the name of a function.
_THIN = '<mspace width="0.17em"></mspace>'
_APPLIED = re.compile(r"(<mi>\w+</mi>)\s*<mo>&ApplyFunction;</mo>")


def _mathml(node: nodes.Element, as_block: bool) -> str:
    """A formula as MathML; one that docutils cannot read is a warning that names the page, and shown as it was."""
    closed = re.sub(
        r"\\([bB]igg?)(?=[)\]])", r"\\\1r", node.astext().replace("∇", r"\nabla ")
    )  # docutils knows \bigl and \bigr, not \big
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


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer of formulas."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))
    return {"parallel_read_safe": True}
