"""The algebra by search: random programs on symbols against the same programs on values.

A recorded expression is exact or opaque. Its value is torch's wherever torch's is a number: where torch's is not (a
logarithm of a negative number), nothing is promised.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from algebra_programs import Program, run, write
from torch import Tensor

from pyro_latent.expressions import Expression, RandomTensor

#: A result with more terms is not used in further lines.
MOST_TERMS = 60


def failure(program: Program) -> str | None:
    """What is wrong with the recording of a program; None where nothing is."""
    names = program.symbols()
    tolerance = 1e-8 if program.is_double else 1e-4
    for name, code in program.lines:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = names[name] = run(code, names)
        except Exception as error:
            return f"{name}: {type(error).__name__}: {error}"
        if not isinstance(found, RandomTensor):
            return f"{name}: expected a random tensor; got {type(found).__name__}"
        wrong = mismatch(found.expression, program.values[name], program.latent_values, tolerance)
        if wrong is None and found.expression.like.dtype != found.dtype:
            wrong = f"dtype {found.expression.like.dtype} for {found.dtype}"
        if wrong:
            return f"{name}: {wrong}"
        if len(found.expression.terms) > MOST_TERMS:
            return None
    return None


def mismatch(expression: Expression, expected: Tensor, values: dict[str, Tensor], tolerance: float) -> str | None:
    """How an expression differs from the value that torch computes; None where it does not."""
    if expression.shape != expected.shape:
        return f"shape {tuple(expression.shape)} for {tuple(expected.shape)}"
    if expression.opacity:
        return None
    found = expression.evaluate(values)
    known = ~expected.isnan()
    scale = float(expected[known].abs().max()) if known.any() else 0.0
    if not torch.allclose(found[known], expected[known].double(), rtol=tolerance, atol=tolerance * (1 + scale)):
        return f"value {found.tolist()} for {expected.tolist()}"
    return None


def search(seeds: range) -> list[str]:
    """The failures among the programs of the seeds, as code."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        programs = [(seed, write(seed)) for seed in seeds]
        wrong = [(seed, program, failure(program)) for seed, program in programs]
    finally:
        torch.set_default_dtype(default)
    return [f"seed {seed}\n{program}\n{text}" for seed, program, text in wrong if text]


def test_recorded_programs_have_the_values_of_torch() -> None:
    wrong = search(range(2_000))
    assert not wrong, f"{len(wrong)} programs; the shortest:\n" + min(wrong, key=len)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(2_000, 100_000, 2_000))
def test_many_more_recorded_programs_have_the_values_of_torch(start: int) -> None:
    wrong = search(range(start, start + 2_000))
    assert not wrong, f"{len(wrong)} programs; the shortest:\n" + min(wrong, key=len)
