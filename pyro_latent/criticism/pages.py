"""Tables and pictures as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 70em; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 1.6em; }
table { border-collapse: collapse; margin: .8em 0; display: block; overflow-x: auto; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #888; }
p { margin: .2em 0; color: #555; font-size: .9em; } img { max-width: 100%; margin: 1em 0; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of HTML parts."""
    shown = html.escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{shown}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{shown}</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def table_html(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its heading."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows[1:])
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>\n</table>"


def figure_html(figure: Any, description: str) -> str:
    """A matplotlib figure inside the page, as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'
