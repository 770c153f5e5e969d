"""The table of reparameterisations, checked against scipy as it is printed.

For each row of :data:`~examples.reparameterization_rows.TABLE`, :func:`check` compares z = g(ε) with scipy:

- the moments of z, and its distribution (Kolmogorov and Smirnov);
- the gradient of those moments by the parameters, with finite differences of the exact moments;
- the derivative of g at fixed noise, with its own finite differences.

``python -m examples.reparameterization_table`` checks all rows and prints them; with the path of a page, such as
``docs/reparameterization.md``, it writes them between that page's two marks.

Source: ``docs/sources.md``, [4] (163)-(166) and the three lists after them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from examples.reparameterization_rows import TABLE, Reparameterization

BEGIN = "<!-- table: python -m examples.reparameterization_table docs/reparameterization.md -->"
END = "<!-- end of the table -->"


@dataclass(frozen=True)
class Check:
    """What :func:`check` measured of a row.

    Attributes:
        row: the row.
        mean, exact_mean: of z, or of arctan z where z has no mean, over the draws and by scipy.
        moment_error: the largest distance of a moment from scipy's, in standard errors.
        gradient_error: the same of the derivatives of the moments by each element of each parameter.
        derivative_error: the largest distance of d arctan(g)/dφ at fixed noise from its central differences, over their
            root mean square.
        p_value: of the Kolmogorov-Smirnov test against scipy's distribution function.
    """

    row: Reparameterization
    mean: float
    exact_mean: float
    moment_error: float
    gradient_error: float
    derivative_error: float
    p_value: float

    @property
    def ok(self) -> bool:
        """Within four standard errors and the row's tolerance, and a p-value above 1e-3.

        The noise comes from a seed, so the outcome does not change from run to run.
        """
        in_moments = max(self.moment_error, self.gradient_error) < 4
        return in_moments and self.derivative_error < self.row.tolerance and self.p_value > 1e-3


class _Draws:
    """z at given noise, and its derivative by a copy of the parameters for each draw."""

    def __init__(self, row: Reparameterization, noise: Tensor) -> None:
        self.row = row
        self.noise = noise
        self.parameters = {n: t.expand(len(noise), *t.shape) for n, t in row.tensors().items()}

    def values(self, **changed: Tensor) -> Tensor:
        """project(g(ε)), ``[n]``, at the parameters with some of them changed."""
        return self.row.project(self.row.transform(self.noise, **{**self.parameters, **changed}))

    def derivatives(self, moment: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """By parameter, the derivative of each draw's moment: ``[n]`` and the parameter's own shape."""
        leaves = {n: p.clone().requires_grad_() for n, p in self.parameters.items()}
        gradients = torch.autograd.grad(moment(self.values(**leaves)).sum(), list(leaves.values()))
        return dict(zip(leaves, gradients, strict=True))


def check(row: Reparameterization, num_samples: int = 100_000, seed: int = 0) -> Check:
    """Compare a row with scipy, at noise from a seed; torch's global random state stays as it is.

    Args:
        row: of :data:`TABLE`, or one of your own.
        num_samples: how many draws the moments take, at least 2.
        seed: of the noise.

    Raises:
        ValueError: if ``num_samples`` is below 2.
    """
    if num_samples < 2:
        raise ValueError(f"Expected num_samples >= 2; got {num_samples}. Take 100,000.")
    generator = torch.Generator().manual_seed(seed)
    noise = row.draw(torch.rand(num_samples, row.size, generator=generator, dtype=torch.float64))
    draws = _Draws(row, noise)
    values = draws.values()
    first = next(iter(row.moments))
    return Check(
        row=row,
        mean=float(row.moments[first](values).mean()),
        exact_mean=row.exact(first, row.parameters),
        moment_error=max(_standard_errors(m(values), row.exact(n, row.parameters)) for n, m in row.moments.items()),
        gradient_error=max(_gradient_errors(draws)),
        derivative_error=max(_derivative_errors(_Draws(row, noise[:1000]))),
        p_value=float(scipy.stats.kstest(values.numpy(), row.reference(**row.parameters).cdf).pvalue),
    )


def _standard_errors(draws: Tensor, exact: Any) -> float:
    """The largest distance of a mean over draws from the exact one; a constant has to be exact to 1e-6."""
    error = draws.std(0) / math.sqrt(len(draws)) + 2.5e-7
    return float(((draws.mean(0) - torch.as_tensor(exact, dtype=draws.dtype)) / error).abs().max())


def _gradient_errors(draws: _Draws) -> Iterable[float]:
    row = draws.row
    for name, moment in row.moments.items():
        for parameter, found in draws.derivatives(moment).items():
            yield _standard_errors(found, _exact_gradient(row, name, parameter))


def _exact_gradient(row: Reparameterization, moment: str, parameter: str) -> np.ndarray:
    """Central differences of scipy's moment by each element of a parameter, in the parameter's shape."""
    start = np.asarray(row.parameters[parameter], dtype=float)
    gradient = np.empty(start.shape)
    for index, step in _steps(start.shape, 1e-4):
        up, down = (row.exact(moment, {**row.parameters, parameter: start + s * step}) for s in (1, -1))
        gradient[index] = (up - down) / 2e-4
    return gradient


def _derivative_errors(draws: _Draws) -> Iterable[float]:
    for name, found in draws.derivatives(torch.arctan).items():
        for index, step in _steps(tuple(found.shape[1:]), 1e-5):
            shift = torch.from_numpy(np.asarray(step))
            up, down = (draws.values(**{name: draws.parameters[name] + s * shift}).arctan() for s in (1, -1))
            expected = (up - down) / 2e-5
            difference = found[(slice(None), *index)] - expected
            yield float(difference.abs().max() / expected.square().mean().sqrt())


def _steps(shape: Sequence[int], size: float) -> Iterable[tuple[Any, np.ndarray]]:
    """Each index of an array, with an array that is ``size`` there and 0 elsewhere."""
    for index in np.ndindex(*shape):
        step = np.zeros(shape)
        step[index] = size
        yield index, step


def markdown_table(checks: Iterable[Check] | None = None) -> str:
    """The table as Markdown, a line for each row.

    Args:
        checks: of the rows; by default all of :data:`TABLE` is checked now, which takes seconds.

    Raises:
        ArithmeticError: if a row is wrong: no table is printed of a row that fails.
    """
    lines = [
        r"| way | distribution | noise $\epsilon$ | $z = g(\epsilon)$ | in code | E z: draws, exact | moments | "
        r"gradients | $dg / d\phi$ |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_line, map(check, TABLE) if checks is None else checks)])


def _line(found: Check) -> str:
    row = found.row
    if not found.ok:
        raise ArithmeticError(f"Expected {row.name} by {row.way} to agree with scipy; got {found}. Mend g.")
    mean = f"{found.mean:.3f}, {found.exact_mean:.3f}" + (" (arctan z)" if row.bounded else "")
    errors = f"{found.moment_error:.1f} | {found.gradient_error:.1f} | < {row.tolerance:.0e}"
    *words, code = row.words
    return f"| {' | '.join(words)} | `{code}` | {mean} | {errors} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Check all rows, and print the table or write it into a page."""
    parser = argparse.ArgumentParser(description="Check the table of reparameterisations, and print or write it.")
    parser.add_argument("page", nargs="?", type=Path, help="a page with the two marks; default: print")
    page = parser.parse_args(arguments).page
    table = markdown_table()
    if page is None:
        print(table)
        return
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(
            f"Expected the lines {BEGIN!r} and {END!r} once each in {page}; got {text.count(BEGIN)} and "
            f"{text.count(END)}. Add them where the table goes."
        )
    before, rest = text.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
