"""The algebra by search: random programs on symbols against the same programs on values.

A recorded expression is exact or opaque. Its value is torch's wherever torch's is a number: where torch's is not (a
logarithm of a negative number), nothing is promised.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from algebra_densities import Density
from algebra_densities import run as run_density
from algebra_densities import write as write_density
from algebra_programs import Program, run, write
from torch import Tensor

from pyro_latent.errors import NotConjugateError
from pyro_latent.expressions import Expression, RandomTensor
from pyro_latent.rules import expected_log_density, random_arguments

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
    try:
        found = expression.evaluate(values)
    except torch.linalg.LinAlgError:  # no inverse at these values, where torch may have given one that is no number
        if expected.isnan().any():
            return None
        found = torch.full(expected.shape, torch.nan, dtype=torch.float64)
    singular = (found < -30) & (expected < -30)  # a determinant that is zero but for rounding
    known = ~expected.isnan() & ~singular
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
    wrong = search(range(1_000))
    assert not wrong, f"{len(wrong)} programs; the shortest:\n" + min(wrong, key=len)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1_000, 99_000, 2_000))
def test_many_more_recorded_programs_have_the_values_of_torch(start: int) -> None:
    wrong = search(range(start, start + 2_000))
    assert not wrong, f"{len(wrong)} programs; the shortest:\n" + min(wrong, key=len)


def density_failure(density: Density) -> str | None:
    """What is wrong with the recorded log density of a distribution; None where nothing is."""
    names = {leaf.name: leaf.symbol() for leaf in density.leaves}
    values = {leaf.name: leaf.value for leaf in (*density.leaves, density.value) if leaf.decoy is not None}
    like = torch.empty(0, dtype=torch.float64)
    try:
        with random_arguments():
            found = expected_log_density(run_density(density.code, names), density.value.symbol(), like)
    except NotConjugateError:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    expected = density.log_prob
    if not found.opacity and found.shape == expected.shape:
        impossible = found.evaluate(values).isneginf() & (expected < -30)  # torch keeps log 0 finite for some
        expected = expected.where(~impossible, -torch.inf)
    return mismatch(found, expected, values, 1e-8)


def search_densities(seeds: range) -> list[str]:
    """The failures among the log densities of the seeds, as code."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        densities = [(seed, write_density(seed)) for seed in seeds]
        wrong = [(seed, density, density_failure(density)) for seed, density in densities]
    finally:
        torch.set_default_dtype(default)
    return [f"seed {seed}\n{density}\n{text}" for seed, density, text in wrong if text]


def test_recorded_log_densities_are_those_of_torch() -> None:
    wrong = search_densities(range(500))
    assert not wrong, f"{len(wrong)} densities; the shortest:\n" + min(wrong, key=len)


@pytest.mark.slow
def test_many_more_recorded_log_densities_are_those_of_torch() -> None:
    wrong = search_densities(range(500, 20_000))
    assert not wrong, f"{len(wrong)} densities; the shortest:\n" + min(wrong, key=len)
