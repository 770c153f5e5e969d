"""What one sweep of Normal-Gamma passes through: distinct functions, their source lines, files, and depth of calls.

Run ``python -m benchmarks.sweep_path``. Nothing is recorded in the steps that are counted. A step of a run
(``CAVI._step``) is counted, and the sweep in it alone (``FullSteps.step``); the same once torch has compiled the sweep,
as it does for sweeps of few numbers after a while; and a step by itself (``CAVI.step``), where the guide looks whether
the model still sees the data that it was recorded with. Lines are counted without docstrings, comments and blank lines.
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


def steps_of_a_run(jit_compile: bool | None, within: CodeType | None = None) -> tuple[set[CodeType], int]:
    """What a step of a run passes through that neither records the model nor compiles the sweep."""
    counted: list[tuple[set[CodeType], int]] = []

    class Counted(CAVI):
        def _step(self, *args: Any, **kwargs: Any) -> list[float]:
            found: list[float] = []
            counted.append(calls_of(lambda: found.extend(CAVI._step(self, *args, **kwargs)), within))
            return found

    driver = Counted(normal_gamma.model, AutoConjugate(normal_gamma.model), jit_compile=jit_compile)
    driver.run(data(), max_steps=7, tol=0)  # the second sweep is compiled, the third and the sixth are compared with it
    return counted[-1]


def a_step_by_itself() -> tuple[set[CodeType], int]:
    """What a step on known data passes through."""
    x = data()
    driver = CAVI(normal_gamma.model, AutoConjugate(normal_gamma.model))
    driver.run(x, max_steps=5, tol=0)
    driver.step(x)
    return calls_of(lambda: driver.step(x))


def data() -> torch.Tensor:
    """A hundred numbers."""
    return torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3


def main() -> None:
    """Print the functions of a step of a run with their lines, by file, and the totals."""
    rows = {
        "the sweep alone": steps_of_a_run(None, FullSteps.step.__code__),
        "a step of a run": steps_of_a_run(None),
        "the sweep alone, compiled": steps_of_a_run(True, FullSteps.step.__code__),
        "a step of a run, compiled": steps_of_a_run(True),
        "a step by itself": a_step_by_itself(),
    }
    for code in sorted(rows["a step of a run"][0], key=lambda c: (c.co_filename, c.co_firstlineno)):
        print(f"{Path(code.co_filename).relative_to(ROOT)!s:32} {source_lines(code):4} {code.co_qualname}")
    for name, (codes, deepest) in rows.items():
        files = {code.co_filename for code in codes}
        total = sum(map(source_lines, codes))
        print(f"{name}: {len(codes)} functions, {total} lines, {len(files)} files, depth {deepest}")


if __name__ == "__main__":
    main()
