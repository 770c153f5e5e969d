"""The structure of the source: no import circle, no file that outgrows a reader, errors in one form."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_layers import imported_layers

ROOT = Path(__file__).parent.parent
LONGEST_FILE = 400


def modules(root: Path = ROOT) -> dict[str, Path]:
    """The source files by the name of their module; a package's is its ``__init__.py``."""
    found = {}
    for directory, prefix in ((root / "pyro_latent", ["pyro_latent"]), (root / "models", ["pyro_latent", "models"])):
        for path in sorted(directory.rglob("*.py")):
            parts = [*prefix, *path.relative_to(directory).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the library that a module imports: at its top, in its functions, and for types alone."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for _, _, full in imported_layers(path, package):
        found = full if full in known else full.rpartition(".")[0]
        if found in known:
            yield found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The sets of modules that reach one another, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1 or node in graph[node]:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_import_circle_types_included() -> None:
    known = modules()
    graph = {name: set(imports_of(name, path, known)) - {name} for name, path in known.items()}
    assert circles(graph) == []


def test_no_file_outgrows_a_reader() -> None:
    long = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in modules().values()}
    assert {name for name, count in long.items() if count > LONGEST_FILE} == set()


def types_of(path: Path) -> Iterator[str]:
    """The public classes of a module, and, of the engine, its aliases of types, written as names of classes are."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [node.name] if isinstance(node, ast.ClassDef) else []
        targets = node.targets if isinstance(node, ast.Assign) and "models" not in path.relative_to(ROOT).parts else []
        names += [t.id for t in targets if isinstance(t, ast.Name) and not t.id.isupper() and t.id[0].isupper()]
        yield from (name for name in names if not name.startswith("_"))


def test_a_type_has_a_name_of_its_own() -> None:
    """But for a family, which has that of its distribution, and for what is a module's own."""
    places: dict[str, list[str]] = {}
    for module, path in modules().items():
        for name in types_of(path):
            places.setdefault(name, []).append(module.split(".")[1])
    several = {name: rooms for name, rooms in places.items() if len(rooms) > 1}
    assert {name for name, rooms in several.items() if sorted(rooms) != ["distributions", "families"]} == set()


def messages(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, exception and text of each message that is raised, a field of an f-string shown as ``{}``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
            continue
        message = node.exc.args[0]
        if isinstance(message, ast.Constant) and isinstance(message.value, str):
            text = message.value
        elif isinstance(message, ast.JoinedStr):
            text = "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in message.values)
        else:
            continue
        yield node.lineno, ast.unparse(node.exc.func), text


def _says_what_came(text: str) -> bool:
    """Whether a message has both halves; that of a density which is not conjugate says what would work."""
    return ("xpected" in text and "got" in text) or "What would work" in text


@pytest.mark.parametrize("path", modules().values(), ids=lambda p: str(p.relative_to(ROOT)))
def test_errors_say_what_was_expected_and_what_came(path: Path) -> None:
    plain = {"ValueError", "TypeError", "RuntimeError", "ImportError", "FileNotFoundError", "Exception"}
    foreign = {"NotImplementedError", "AttributeError", "KeyError", "IndexError", "TypingError"}
    foreign |= {"TooLargeError", "_number_error"}  # caught where the words around them are known
    wrong = []
    for line, name, text in messages(path):
        if name in plain:
            wrong.append(f"line {line}: {name} is not the library's own; derive it from PyroLatentError")
        elif name.endswith("Error") and name not in foreign and not _says_what_came(text):
            wrong.append(f"line {line}: {text!r} does not say what was expected and what came")
        elif "expected" in text and text.startswith("expected"):
            wrong.append(f"line {line}: {text!r} starts without a capital")
    assert wrong == []
