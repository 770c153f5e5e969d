"""What one sweep of Normal-Gamma passes through: distinct functions, their source lines, files, and depth of calls.

Run ``python -m benchmarks.sweep_path``. The step that is counted is one of a fitted guide on the data that it knows, so
that nothing is recorded or compiled. It is counted twice: the sweep alone (``FullSteps.step``), and each step of a run
(``CAVI._step``), where driver and guide compare the data with what was recorded and take the new state on. Lines are
counted without docstrings, comments and blank lines.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

import pyro_latent
from pyro_latent import CAVI, AutoConjugate
from pyro_latent.ascent.full import FullSteps
from pyro_latent.models import normal_gamma

ROOT = Path(pyro_latent.__file__).parent


def source_lines(code: CodeType) -> int:
    """The source lines of a function without its docstring, comments and blank lines."""
    try:
        source = textwrap.dedent(inspect.getsource(code))
        tree = ast.parse(source)
    except (OSError, SyntaxError):  # made by a decorator, or a part of an expression
        return 0
    documented: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(source.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in documented for i, line in lines)


def calls_of(run: Any, within: CodeType | None = None) -> tuple[set[CodeType], int]:
    """The functions of the package that a call passes through, and the depth of their deepest nesting.

    ``within``: only those that a function of the package passes through, itself included.
    """
    found: set[CodeType] = set()
    depth = deepest = 0
    inside = within is None

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal depth, deepest, inside
        code = frame.f_code
        inside = inside or code is within
        if not inside or not code.co_filename.startswith(str(ROOT)) or code.co_name.startswith("<"):
            return
        if event == "call":
            found.add(code)
            depth += 1
            deepest = max(deepest, depth)
        elif event == "return":
            depth -= 1
            inside = within is None or depth > 0

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found, deepest


def main() -> None:
    """Print the functions with their lines, by file, and the totals."""
    x = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    cavi = CAVI(normal_gamma.model, AutoConjugate(normal_gamma.model))
    cavi.run(x)
    cavi.step(x)
    found, depth = calls_of(lambda: cavi._step(lambda: ((x,), {})))
    lines = {code: source_lines(code) for code in found}
    for code in sorted(found, key=lambda c: (c.co_filename, c.co_firstlineno)):
        print(f"{Path(code.co_filename).relative_to(ROOT)!s:32} {lines[code]:4} {code.co_qualname}")
    sweep, depth_of_sweep = calls_of(lambda: cavi._step(lambda: ((x,), {})), FullSteps.step.__code__)
    for name, codes, deepest in (("the sweep alone", sweep, depth_of_sweep), ("with driver and guide", found, depth)):
        files = {code.co_filename for code in codes}
        total = sum(lines[code] for code in codes)
        print(f"{name}: {len(codes)} functions, {total} lines, {len(files)} files, depth {deepest}")


if __name__ == "__main__":
    main()
