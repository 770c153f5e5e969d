"""A page of the API for each public module, written into ``docs/api`` before Sphinx reads the pages.

A class shows what it inherits from classes of the library too. What only the library itself calls is left out, and so
is what PyTorch, Pyro and scikit-learn document.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pyro_latent

#: The public modules beside the package itself, whose page is ``docs/api.md``; ``MODELS`` stands for each model.
MODULES = (
    "pyro_latent.handlers",
    "pyro_latent.criticism",
    "pyro_latent.plotting",
    "pyro_latent.distributions",
    "pyro_latent.gradient.estimators",
    "pyro_latent.gradient.approximations",
    "pyro_latent.gradient.flows",
    "pyro_latent.gradient.monte_carlo_em",
    "pyro_latent.models",
    "pyro_latent.models.estimators",
    "MODELS",
    "pyro_latent.families",
    "pyro_latent.rules",
    "pyro_latent.reparam",
)
#: Those whose classes inherit from one base that stands on the page.
FLAT = ("pyro_latent.distributions", "pyro_latent.families", "pyro_latent.reparam")
#: Packages whose members have documentation of their own.
FOREIGN = ("torch", "pyro", "sklearn", "collections")
#: What has no underscore, since other modules of the library call it, and is none of a user's business.
INTERNAL = re.compile(
    r"AutoConjugate\.(state|prepare|write_params|set_extra_state|get_extra_state)"
    r"|(CAVI|EM)\.(is_annealing|sites)|leaves_out_marked|augmented|joint|posterior_state|calls"
    r"|\w+\.(expand|set_\w+_request|get_metadata_routing)|(tuple|BaseException|MutableMapping|Mapping)\.\w+"
    r"|forget_last_draw|open_uniform|rule_of|is_checked|unwrap|unwrap_masks|without_latents|families_by_name"
    r"|Coordinates\.(update|setdefault|pop|popitem|clear)"
)


def public_modules() -> list[str]:
    """The modules that have a page, in order."""
    models = [f"pyro_latent.models.{name}" for name in sorted(importlib.import_module("pyro_latent.models").__all__)]
    return [name for part in MODULES for name in (models if part == "MODELS" else [part])]


def _page(name: str) -> str:
    """A page: what the module's ``__all__`` names, or else what it defines itself."""
    module = importlib.import_module(name)
    options = ["imported-members:"] if hasattr(module, "__all__") else []
    if shown := set(pyro_latent.__all__) & set(getattr(module, "__all__", ())):
        options.append(f"exclude-members: {', '.join(sorted(shown))}")
    if name not in FLAT:
        options.append("inherited-members:")
    lines = [f".. automodule:: {name}", *(f"   :{option}" for option in options)]
    return "\n".join([f"# {name}", "", "```{eval-rst}", *lines, "```", ""])


def _write_pages(app: Any) -> None:
    """Write the pages that changed, and remove those of modules that are gone."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    pages = {folder / f"{name}.md": _page(name) for name in public_modules()}
    for old in set(folder.glob("*.md")) - set(pages):
        old.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _list_pages(app: Any, page: str, source: list[str]) -> None:
    """The page ``api`` has them all in its menu."""
    if page == "api":
        listed = "\n".join(f"api/{name}" for name in public_modules())
        source[0] = source[0].replace("<!-- modules -->", f"```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```")


def _name_sections(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon reads them: "Attributes (after a fit):" is the section "Attributes:"."""
    lines[:] = [re.sub(r"^(Args|Attributes|Returns) \(.*\):$", r"\1:", line) for line in lines]


def _escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """In docstrings |x| is an absolute value, bound_ a name and *args arguments: none is reStructuredText's."""
    for i, line in enumerate(lines):
        spans = line.split("``")
        spans[::2] = [re.sub(r"\||(?<=\w)_(?!\w)|(?<!\\)\*(?=\*?(kw)?args\b)", r"\\\g<0>", span) for span in spans[::2]]
        lines[i] = "``".join(spans)


def _link_sources(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A docstring's ``[4]`` and ``docs/sources.md`` lead to the page that says what they are."""
    for i, line in enumerate(lines):
        named = line.replace("``docs/sources.md``", ":doc:`Sources </sources>`")
        lines[i] = re.sub(r"(?<=[ (])\[([0-4])\](?=[ ,;.])", r":doc:`[\1] </sources>`", named)


def _definition(member: Any) -> Any:
    """The function behind a method or a property, or the member itself."""
    member = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
    return inspect.unwrap(member) if callable(member) else member


def _skip(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what is internal, what others' packages define, and families' versions of a method of their base."""
    found = _definition(member)
    module = str(getattr(found, "__module__", ""))
    theirs = what == "class" and module.partition(".")[0] in FOREIGN
    repeated = what == "class" and module.startswith(FLAT) and callable(found) and not found.__doc__
    internal = INTERNAL.fullmatch(str(getattr(found, "__qualname__", name)))
    return True if theirs or repeated or internal else None


def _show_public_bases(app: Any, name: str, obj: Any, options: Any, bases: list[Any]) -> None:
    """In the place of a base with an underscore stand that one's own bases."""
    while private := [base for base in bases if getattr(base, "__name__", "").startswith("_")]:
        at = bases.index(private[0])
        bases[at : at + 1] = [base for base in private[0].__bases__ if base not in bases]


def setup(app: Any) -> dict[str, bool]:
    """Register the pages, and the filters of members and docstrings."""
    app.connect("builder-inited", _write_pages)
    app.connect("source-read", _list_pages)
    app.connect("autodoc-process-docstring", _name_sections, priority=400)
    app.connect("autodoc-process-docstring", _escape, priority=600)
    app.connect("autodoc-process-docstring", _link_sources, priority=700)
    app.connect("autodoc-process-bases", _show_public_bases)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}
