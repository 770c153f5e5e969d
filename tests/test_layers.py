"""The import direction of the layers, held by reading the source; and no trace of one machine in the files.

A module of ``pyro_latent`` imports from its own layer and from those above it in ``LAYERS``; the root ``__init__.py``
imports from all; ``models`` sees the families, and what a user of the engine's handlers needs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = (
    {"errors", "jit", "settings", "signatures", "tables", "values"},
    {"checkpoint", "distributions", "kmeans"},
    {"families"},
    {"expressions"},
    {"rules"},
    {"recording"},
    {"objective"},
    {"handlers", "reparam"},
    {"particles"},
    {"guide"},
    {"gradient"},
    {"ascent"},
    {"criticism"},
    {"arviz", "arviz_core", "checks", "plotting"},
)
MODELS_SEE = {
    *("models", "errors", "jit", "settings", "values", "checkpoint", "distributions"),
    *("kmeans", "families", "gradient", "handlers"),
}
#: Modules of ``models`` that put a model and the engine together for users: they may import from both.
FRONTS = {"front", "processes", "training"}
#: Packages of ``models`` all of whose modules do so.
FRONT_PACKAGES = {"estimators"}

SKIPPED_DIRECTORIES = {"build", "dist", "demo-output", "bench-output", "_build", "__pycache__"}
TEXT_SUFFIXES = {".cfg", ".csv", ".ipynb", ".json", ".md", ".py", ".rst", ".toml", ".txt", ".yaml", ".yml", ""}
PATHS_OF_ONE_MACHINE = re.compile(r"(?<![\w.~])/(?:work|root|home|opt|tmp/venv)/")
REGISTRY_HOSTS = re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|index-url|find-links")


def visible_from(layer: str, parts: Sequence[str]) -> set[str]:
    """The layers that the module at these parts of a path, of ``layer``, may import from."""
    if layer == "models":
        is_front = parts[-1] in FRONTS or not FRONT_PACKAGES.isdisjoint(parts)
        return {"models"}.union(*LAYERS) if is_front else MODELS_SEE
    depth = next(depth for depth, names in enumerate(LAYERS) if layer in names)
    return set().union(*LAYERS[: depth + 1])


def imported_layers(path: Path, package: list[str]) -> Iterator[tuple[int, str, str]]:
    """Line, layer and full name of each import from ``pyro_latent`` in a module of ``package``; "" is the root's."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = above + (node.module.split(".") if node.module else [])
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "pyro_latent":
                known = set().union({"models"}, *LAYERS)
                layer = name[1] if len(name) > 1 and name[1] in known else ""
                yield node.lineno, layer, ".".join(name)


def violations(root: Path) -> Iterator[str]:
    """One message for each import that goes against the layers, and for each module that has none."""
    for directory, prefix in ((root / "pyro_latent", ["pyro_latent"]), (root / "models", ["pyro_latent", "models"])):
        for path in sorted(directory.rglob("*.py")):
            parts = [*prefix, *path.relative_to(directory).with_suffix("").parts]
            if parts == ["pyro_latent", "__init__"]:
                continue
            shown, layer = path.relative_to(root), parts[1]
            if not any(layer in names for names in (*LAYERS, {"models"})):
                yield f"{shown}: expected a module of a layer; got {layer!r}, which LAYERS does not place"
                continue
            for line, target, name in imported_layers(path, parts[:-1]):
                if target not in visible_from(layer, parts):
                    allowed = ", ".join(sorted(visible_from(layer, parts)))
                    yield f"{shown}:{line}: {layer} imports {name}; it may import only from {allowed}"


def text_files() -> Iterator[Path]:
    """The project's own text files: nothing installed, built or cached."""
    shown = {".ci", ".gitignore"}
    tops = [top for top in ROOT.iterdir() if top.name in shown or not top.name.startswith(".")]  # not all of .venv
    for path in sorted(path for top in tops for path in (top, *top.rglob("*"))):
        inside = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") for part in inside) and inside[0] not in shown
        skipped = any(part in SKIPPED_DIRECTORIES or part.endswith(".egg-info") for part in inside)
        if not hidden and not skipped and path.is_file() and path.suffix in TEXT_SUFFIXES:
            yield path


def test_modules_import_only_from_the_layers_above() -> None:
    found = list(violations(ROOT))
    assert not found, "\n".join(["imports against the direction of the layers:", *found])


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("pyro_latent/errors.py", "\nfrom .families.base import F", "errors.py:2: errors imports pyro_latent.families"),
        ("pyro_latent/families/normal.py", "from ..rules import base", "families imports pyro_latent.rules"),
        ("pyro_latent/families/__init__.py", "from .. import guide", "families imports pyro_latent.guide"),
        ("pyro_latent/guide/state.py", "def f():\n    import pyro_latent.ascent.cavi", "state.py:2: guide imports"),
        ("pyro_latent/guide/state.py", "from pyro_latent import CAVI", "state.py:1: guide imports pyro_latent.CAVI"),
        ("pyro_latent/handlers.py", "import pyro_latent", "handlers.py:1: handlers imports pyro_latent;"),
        ("pyro_latent/rules/normal.py", "from pyro_latent.models import gmm", "rules imports pyro_latent.models.gmm"),
        ("models/gmm.py", "from pyro_latent.rules.normal import x", "models imports pyro_latent.rules.normal"),
        ("pyro_latent/helpers.py", "", "helpers.py: expected a module of a layer; got 'helpers'"),
    ],
)
def test_an_import_from_below_is_found_and_named(tmp_path: Path, file: str, source: str, expected: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    (message,) = violations(tmp_path)
    assert expected in message


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("pyro_latent/__init__.py", "from pyro_latent.ascent.cavi import CAVI"),
        ("pyro_latent/families/normal.py", "from pyro_latent.families.base import Family\nfrom ..errors import Error"),
        ("pyro_latent/ascent/cavi.py", "import pyro_latent.guide\nfrom .base import Driver\nimport torch"),
        ("pyro_latent/arviz.py", "import arviz\nfrom . import criticism, families"),
        ("models/gmm.py", "from pyro_latent import handlers\nfrom .base import prior"),
        ("models/lda/front.py", "from pyro_latent.ascent import CAVI"),
        ("models/estimators/base.py", "from pyro_latent.ascent import CAVI"),
    ],
)
def test_an_import_from_above_or_beside_is_allowed(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert not list(violations(tmp_path))


@pytest.mark.parametrize("pattern", [PATHS_OF_ONE_MACHINE, REGISTRY_HOSTS], ids=["absolute paths", "registry hosts"])
def test_files_name_no_machine(pattern: re.Pattern[str]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if path != Path(__file__).resolve() and pattern.search(line)
    ]
    assert not found, "\n".join(found)
